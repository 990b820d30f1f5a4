"""The command line that all trainers have, and how they set up this process.

Put here: options and process-wide settings of every trainer.
Keep out: options of one model (its own module).
"""

import argparse
from pathlib import Path

import cv2
import torch


def make_parser(description: str, minutes: float) -> argparse.ArgumentParser:
    """Make a parser with the options of all trainers.

    Parameters
    ----------
    minutes : default length in CPU minutes of one thread
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Ctrl-C ends a run early: a checkpoint and the files are written, and --resume goes on from there.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for weights and checkpoints")
    parser.add_argument("--minutes", type=float, default=minutes, help=f"CPU minutes; default: {minutes:g}")
    parser.add_argument("--init", type=Path, metavar="WEIGHTS", help="weights to start from; default: from nothing")
    parser.add_argument("--seed", type=int, default=0, help="default: 0; evaluation media use seeds from 500000")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; default: 1")
    parser.add_argument("--resume", action="store_true", help="go on with the checkpoint in --out")
    return parser


def add_steps(parser: argparse.ArgumentParser) -> None:
    """Add the option that makes two runs equal to the bit."""
    parser.add_argument("--steps", type=int, help="end after so many steps instead of --minutes: repeatable exactly")


def set_up(threads: int, seed: int) -> None:
    """Set the threads of all libraries and torch's seed."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    torch.manual_seed(seed)

"""Plant protocol bugs in copies of the code: `python scripts/mutations.py [--list] [NAME ...]`; each must be caught.

Put here: reading the bugs, patching copies, running the tests over them.
Keep out: the bugs themselves (mutations.toml), the tests that catch them.

The tests must pass in an unpatched copy first. Exit code 1: a bug survived; 2: the check itself is broken (a text to
replace is not there exactly once, a test fails without a bug, a patched copy cannot even be tested).
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ("mm_assets", "jobs", "sensors", "tests", "scripts", "pyproject.toml")
_PACKAGES = CODE[:3]
_NOT_CODE = shutil.ignore_patterns(".*", "*.pt", "*.bin", "*.onnx")  # the weights of the packs: no test here loads any
_AT_ONCE = 2
_START_S, _TEST_S = 240.0, 60.0  # how long tests may take; the slowest takes some ten seconds on idle cores
_CAUGHT = re.compile(r"^\d+ failed", re.MULTILINE)  # an error while tests are collected catches nothing


class BrokenCheckError(Exception):
    """The check cannot be made as it is written."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One replacement of a text that stands exactly once in a file."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutation:
    """One bug.

    Attributes
    ----------
    breaks : the rule that no longer holds
    tests : ids of the tests of which one must fail
    """

    name: str
    breaks: str
    tests: tuple[str, ...]
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of tests came to; ``said`` is pytest's output."""

    is_caught: bool
    seconds: float
    said: str


def read_mutations(file: Path = ROOT / "scripts" / "mutations.toml") -> dict[str, Mutation]:
    """Read all bugs, by name."""
    known = tomllib.loads(file.read_text(encoding="utf-8"))
    return {
        name: Mutation(name, told["breaks"], tuple(told["tests"]), tuple(Edit(**edit) for edit in told["edits"]))
        for name, told in known.items()
    }


def patched(mutation: Mutation, root: Path) -> dict[Path, str]:
    """Return file → text with the bug.

    Raises
    ------
    BrokenCheckError
        A text to replace does not stand exactly once in its file.
    """
    texts: dict[Path, str] = {}
    for edit in mutation.edits:
        file = root / edit.file
        text = texts.get(file) or file.read_text(encoding="utf-8")
        if (n := text.count(edit.old)) != 1:
            msg = f"{mutation.name}: the text to replace stands {n} times in {edit.file}, not once"
            raise BrokenCheckError(msg)
        texts[file] = text.replace(edit.old, edit.new)
    return texts


def check(mutations: Sequence[Mutation], root: Path = ROOT) -> list[str]:
    """Plant each bug and print what came of it; returns the names of those that survived.

    Raises
    ------
    BrokenCheckError
        A patch does not apply, or a test does not do without a bug what it does with one.
    """
    for mutation in mutations:
        patched(mutation, root)
    with _folder() as folder, ThreadPoolExecutor(_AT_ONCE) as pool:
        _pass_unpatched({test for mutation in mutations for test in mutation.tests}, root, folder)
        _print_row("mutation", "result", "seconds", ["tests"])
        runs = pool.map(lambda mutation: _plant(mutation, root, folder), mutations)
        survived = []
        for mutation, outcome in zip(mutations, runs, strict=True):
            result = "caught" if outcome.is_caught else "SURVIVED"
            _print_row(mutation.name, result, f"{outcome.seconds:.0f}", mutation.tests)
            survived += [] if outcome.is_caught else [mutation.name]
    return survived


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mutations-", ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


def _print_row(name: str, result: str, seconds: str, tests: Sequence[str]) -> None:
    for n, test in enumerate(tests):
        first = (name, result, seconds) if n == 0 else ("", "", "")
        print("{:<30}  {:<8}  {:>7}  {}".format(*first, test), flush=True)


def _pass_unpatched(tests: Iterable[str], root: Path, folder: Path) -> None:
    """Run all tests once, and see that it is the copy that they test."""
    copy = _copy(root, folder / "unpatched")
    names = ", ".join(_PACKAGES)
    found = _python(copy, "-c", f"import {names}\nfor module in ({names}): print(module.__file__)").stdout.splitlines()
    if len(found) != len(_PACKAGES) or not all(Path(file).is_relative_to(copy) for file in found):
        msg = f"the tests would not import the copy in {copy}, but:\n" + "\n".join(found)
        raise BrokenCheckError(msg)
    outcome = _test(copy, sorted(tests))
    if not re.search(r"^\d+ passed", outcome.said, re.MULTILINE):
        msg = f"without any bug the tests do not pass:\n{outcome.said}"
        raise BrokenCheckError(msg)
    print(f"without a bug all {len(set(tests))} tests pass, in {outcome.seconds:.0f} s", flush=True)


def _plant(mutation: Mutation, root: Path, folder: Path) -> Outcome:
    copy = _copy(root, folder / mutation.name)
    for file, text in patched(mutation, copy).items():
        file.write_text(text, encoding="utf-8")
    outcome = _test(copy, mutation.tests)
    shutil.rmtree(copy, ignore_errors=True)
    if not outcome.is_caught and not re.search(r"^\d+ passed", outcome.said, re.MULTILINE):
        msg = f"{mutation.name}: the tests neither pass nor fail:\n{outcome.said}"
        raise BrokenCheckError(msg)
    return outcome


def _copy(root: Path, to: Path) -> Path:
    for name in CODE:
        if (root / name).is_dir():
            shutil.copytree(root / name, to / name, ignore=_NOT_CODE)
        else:
            shutil.copy2(root / name, to / name)
    return to


def _test(copy: Path, tests: Sequence[str]) -> Outcome:
    """Run tests in a copy until the first fails."""
    started, limit_s = time.monotonic(), _START_S + _TEST_S * len(tests)
    options = ("-p", "no:xdist", "-p", "no:cacheprovider", "-x", "-q", f"--basetemp={copy / 'places'}")
    try:
        said = _python(copy, "-m", "pytest", *options, *tests, limit_s=limit_s).stdout
    except subprocess.TimeoutExpired:
        said = f"not over after {limit_s:.0f} s"
    return Outcome(bool(_CAUGHT.search(said)), time.monotonic() - started, said)


def _python(copy: Path, *arguments: str, limit_s: float = _START_S) -> subprocess.CompletedProcess[str]:
    """Run this interpreter in a copy, whose packages come before those that are installed."""
    command = ["env", f"PYTHONPATH={copy}", "OMP_NUM_THREADS=1", sys.executable, *arguments]
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    return subprocess.run(command, cwd=copy, stdout=pipe, stderr=both, text=True, timeout=limit_s, check=False)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Plant protocol bugs in copies of the code; each must be caught.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="bugs to plant; default: all")
    parser.add_argument("--list", action="store_true", help="tell the bugs and plant none")
    asked, known = parser.parse_args(arguments), read_mutations()
    if unknown := sorted(set(asked.names) - known.keys()):
        parser.error(f"no such bug: {', '.join(unknown)}; --list tells them")
    chosen = [known[name] for name in asked.names or known]
    if asked.list:
        print("\n".join(f"{mutation.name:<30}  {mutation.breaks}" for mutation in chosen))
        return 0
    try:
        survived = check(chosen)
    except BrokenCheckError as broken:
        print(broken, file=sys.stderr)
        return 2
    print(
        f"{len(chosen) - len(survived)} of {len(chosen)} bugs were caught"
        + "".join(f"\nSURVIVED: {n}" for n in survived)
    )
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())

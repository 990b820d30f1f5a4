"""Loading the definitions is cheap and touches nothing: no model library, no network, no settings."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BUDGET_CPU_S = 3.0
HEAVY = (
    "torch",
    "torchvision",
    "open_clip",
    "ultralytics",
    "insightface",
    "onnxruntime",
    "pytesseract",
    "whisper",
    "faiss",
    "cv2",
    "sklearn",
    "hdbscan",
    "scenedetect",
    "av",
    "scipy",
    "polars",
    "duckdb",
)
PROBE = """
import json, sys, time
opened = []
def hear(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        opened.append(event)
sys.addaudithook(hear)
before = time.process_time()
import mm_assets.definitions
cpu_s = time.process_time() - before
assert mm_assets.definitions.defs.resolve_asset_graph().materializable_asset_keys
modules = sorted(sys.modules)
from mm_assets.errors import ConfigError
from mm_assets.settings import load_settings
try:
    load_settings()
    refusal = ""
except ConfigError as error:
    refusal = str(error)
print(json.dumps({"cpu_s": cpu_s, "modules": modules, "sockets": opened, "refusal": refusal}))
"""
# Stops a run with a ConfigError; definitions must load all the same.
WRONG_SETTINGS = {"MM_ASSETS_CONFIG": "/no/such/file.yaml"}


def probe(folder: Path) -> dict[str, Any]:
    """Load the definitions in a new process, in a folder without a settings file."""
    command = [sys.executable, "-c", PROBE]
    environment = {"PATH": os.defpath, "HOME": str(folder), **WRONG_SETTINGS}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@cache
def loaded(folder: Path) -> dict[str, Any]:
    """Load them once for all questions that the first answer settles."""
    return probe(folder)


def folder_of(tmp_path: Path) -> Path:
    """Give one empty folder for the whole module."""
    folder = tmp_path.parent / "nothing_here"
    folder.mkdir(exist_ok=True)
    return folder


def test_definitions_load_within_the_budget(tmp_path: Path) -> None:
    """The best of three loads costs at most three seconds of CPU, of which Dagster and boto3 take most; 2.3 were measured on a busy machine."""
    assert min(probe(tmp_path)["cpu_s"] for _ in range(3)) <= BUDGET_CPU_S


def test_definitions_load_no_model_library(tmp_path: Path) -> None:
    """Code server, sensors and step planning never import a library that is only for runs."""
    assert set(HEAVY) & set(loaded(folder_of(tmp_path))["modules"]) == set()


def test_definitions_open_no_connection(tmp_path: Path) -> None:
    """No client is made to connect and no name is resolved while definitions load."""
    assert loaded(folder_of(tmp_path))["sockets"] == []


def test_definitions_read_no_setting(tmp_path: Path) -> None:
    """Settings are read when a run or tick begins: definitions load though the settings are wrong."""
    assert "/no/such/file.yaml does not exist" in loaded(folder_of(tmp_path))["refusal"]

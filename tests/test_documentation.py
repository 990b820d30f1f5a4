"""Documentation says what is there: generated pages are fresh, examples work, nothing that exists is left out."""

import json
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pytest
from extractor_samples import jpeg_of
from fakes import fake_extractors
from flow_driver import ingest
from generate_docs import stale_files, walk_commands, write_settings
from places import Place

from mm_assets.cli import main as mm
from mm_assets.cli.settings_text import list_settings
from mm_assets.extractors.base import Placement
from mm_assets.extractors.packs import Pack, list_packs
from mm_assets.extractors.registry import build_extractor, known_steps
from mm_assets.schemas import STEP_TABLES, TABLES
from mm_assets.settings import Settings, SourceSettings

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = dict(walk_commands(mm, "mm"))


def fenced(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language, without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


# -- generated pages ---------------------------------------------------------------------------------------------------


def test_generated_pages_are_fresh() -> None:
    """docs/tables.md, settings.md and commands.md are what the code says."""
    assert stale_files(ROOT / "docs") == []


def test_stale_page_is_found(tmp_path: Path) -> None:
    """A page that says something else, or is missing, counts as stale."""
    (tmp_path / "settings.md").write_text(write_settings() + "more\n", encoding="utf-8")
    assert stale_files(tmp_path) == ["tables.md", "settings.md", "commands.md"]


@pytest.mark.parametrize("name", [*TABLES])
def test_table_is_documented(name: str) -> None:
    """Every table has a section with each of its columns."""
    _, found, rest = PAGES["tables.md"].partition(f"### `{name}`\n")
    assert found
    section = rest.partition("\n##")[0]
    assert not [column.name for column in TABLES[name].columns if f"`{column.name}`" not in section]
    assert all(column.description for column in TABLES[name].columns)


def test_every_setting_says_what_it_means() -> None:
    """No setting is without a meaning, each is in docs/settings.md, and each variable is one that is read."""
    for setting in list_settings():
        assert setting.meaning, setting.path
        assert f"`{setting.path}`" in PAGES["settings.md"]


def test_named_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable that the page names for a nested setting sets it."""
    variable = {s.path: s.variable for s in list_settings()}["media.page_dpi"]
    monkeypatch.setenv(variable, "99")
    assert Settings().media.page_dpi == 99


@pytest.mark.parametrize("path", [*COMMANDS])
def test_command_is_documented(path: str) -> None:
    """Every command has a section, a help text, and each of its options explained."""
    assert f"## `{path}`\n" in PAGES["commands.md"]
    assert COMMANDS[path].help
    options = [option for option in COMMANDS[path].params if isinstance(option, click.Option)]
    assert all(option.help for option in options)


# -- README and pages by hand --------------------------------------------------------------------------------------------


def shell_commands() -> Iterator[str]:
    """Yield every ``mm`` command of the README and the pages written by hand."""
    for text in (README, *(PAGES[name] for name in PAGES if name != "commands.md")):
        for block in fenced(text, "sh"):
            yield from (line for line in block.replace("\\\n", "").splitlines() if line.startswith("mm "))
        yield from re.findall(r"`(mm [^`]+)`", text)


@pytest.mark.parametrize("line", sorted(set(shell_commands())))
def test_command_in_the_text_is_understood(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command in the text exists, with these options and arguments; a group may be named alone."""
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "person.jpg").touch()
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line, comments=True)[1:]
    command, path = COMMANDS["mm"], ["mm"]
    while words and isinstance(command, click.Group):
        path.append(words.pop(0))
        command = COMMANDS[" ".join(path)]
    if words:
        command.make_context(" ".join(path), words).close()


def test_readme_shows_the_two_commands_first() -> None:
    """Purpose, picture, and the two commands stand in the first forty lines."""
    first = "\n".join(README.splitlines()[:40])
    assert all(word in first for word in ("make demo", "make test", "```"))


def test_every_make_target_is_documented() -> None:
    """The README has every public target of the Makefile, and no other."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):.*##", makefile, flags=re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)`", README)) == targets


def test_every_top_level_folder_is_documented() -> None:
    """The README says what each tracked folder of the root holds."""
    listed = subprocess.run(
        ["git", "ls-tree", "-d", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    folders = [name for name in listed.stdout.split() if not name.startswith(".")]
    assert folders
    assert not [name for name in folders if f"`{name}/`" not in README]


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}" for name in PAGES)])
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link of a page names a file or folder of the repository."""
    file = ROOT / page
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", file.read_text(encoding="utf-8"))
    assert not [link for link in links if not (file.parent / link).exists()]


@pytest.mark.parametrize("step", STEP_TABLES)
def test_step_is_in_the_graph_of_the_architecture(step: str) -> None:
    """The picture of the flow has every step, and every step has an extractor or is decoding."""
    assert step in PAGES["architecture.md"]
    assert step in {"raw_objects", "segments", *known_steps()}


def test_module_map_is_complete() -> None:
    """The layers of the architecture name every module and package of the product."""
    modules = {
        path.stem for path in (ROOT / "mm_assets").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert not [name for name in modules - {"__init__"} if f"`{name}`" not in PAGES["architecture.md"]]


def test_packs_and_their_licences_are_named() -> None:
    """The README names every pack, and the two licences that are not ours."""
    assert not [name for name in list_packs() if f"`{name}`" not in README]
    assert "AGPL-3.0" in README
    assert "non-commercial" in README


# -- examples ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install the example of docs/add-an-extractor.md as a package; returns the name of its step."""
    [source] = fenced(PAGES["add-an-extractor.md"], "python")
    [toml] = fenced(PAGES["add-an-extractor.md"], "toml")
    [(step, target)] = tomllib.loads(toml)["project"]["entry-points"]["mm_assets.extractors"].items()
    (tmp_path / f"{target.partition(':')[0]}.py").write_text(source, encoding="utf-8")
    metadata = tmp_path / "my_extractors-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-extractors\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[mm_assets.extractors]\n{step} = {target}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return str(step)


def test_example_extractor_works(plug_in: str, tmp_path: Path) -> None:
    """The extractor of the page is found by its entry point, may stand in ``steps``, and measures what it says."""
    assert plug_in in known_steps()
    assert SourceSettings(uri="x", steps=("segments", plug_in)).steps[1] == plug_in
    extractor = build_extractor(plug_in, Pack("none", {}, tmp_path), None, Placement())
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    names = ("object_id", "bucket", "key", "etag", "segment_id")
    segments = pa.table({name: ["x"] for name in names} | {"keyframe_jpeg": [jpeg_of(red)]})
    [row] = extractor.extract(segments, "r1").to_pylist()
    assert row["recipe"] == "r1"
    assert [round(row[f"{colour}_frac"], 1) for colour in ("red", "green", "blue")] == [1.0, 0.0, 0.0]


def test_readme_reads_the_tables_and_searches(tmp_path: Path, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's Python reads a real lake, and asks it with fakes for models."""
    place = _fill(tmp_path, media)
    monkeypatch.chdir(place.folder)
    monkeypatch.setattr("mm_assets.resources.readers.build_extractor", _fake_vision)
    sources = fenced(README, "python")
    assert len(sources) == 2
    for source in sources:
        exec(compile(source, "README.md", "exec"), {})  # noqa: S102  the example itself is under test


def _fill(folder: Path, media: Path) -> Place:
    place = Place(folder, media)
    place.write_settings()
    place.add("picture0.png", "picture1.png", "clip.mp4", "broken.png")
    workspace = place.open()
    ingest(workspace)
    place.close()
    return place


# -- notebook ------------------------------------------------------------------------------------------------------------

NOTEBOOK: dict[str, Any] = json.loads((ROOT / "notebooks" / "search.ipynb").read_text(encoding="utf-8"))


def test_notebook_holds_no_outputs() -> None:
    """Outputs are stripped: they would be large, and of somebody's media."""
    assert not [cell for cell in NOTEBOOK["cells"] if cell.get("outputs") or cell.get("execution_count")]


def test_notebook_runs(tmp_path: Path, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell runs, in order, on a lake whose vectors are of fake models."""
    place = _fill(tmp_path, media)
    for name in [name for name in os.environ if name.startswith("MM_ASSETS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MM_ASSETS_CONFIG", str(place.config_file))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr("mm_assets.resources.readers.build_extractor", _fake_vision)
    names: dict[str, Any] = {}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)  # noqa: S102  the example itself is under test
    assert names["contact_sheet"](names["moments"]).width > 1_000
    assert names["lanes"]["answers"]
    names["tables"].close()


def _fake_vision(step: str, *_: object) -> Any:
    return fake_extractors(Settings(sources=(SourceSettings(uri="source"),)))[step]


def test_every_guarantee_names_a_test_that_is_there() -> None:
    """A promise whose proof was renamed or removed is found."""
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    there = {name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.MULTILINE)}
    assert len(named) > 20
    assert named <= there, sorted(named - there)

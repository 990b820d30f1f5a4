"""Write the parts of the documentation that follow from the code: tables, settings, commands.

Put here: the form of docs/tables.md, docs/settings.md and docs/commands.md.
Keep out: what they say, which stands in schemas, settings and the commands.

With --check nothing is written, and the exit code is 1 when a file is stale.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from mm_assets.cli import main as mm
from mm_assets.cli.settings_text import list_settings
from mm_assets.schemas import JUDGEMENT_TABLES, STEP_TABLES, TABLES, Column, Table

DOCS = Path(__file__).resolve().parents[1] / "docs"
NOTE = "<!-- Written by scripts/generate_docs.py; change the code and run it again. -->"
TABLES_HEAD = """\
What analysts read: `tables/<table>/shard=<n>/part-0.parquet` in the lake, at any moment and with any reader of Parquet.
A shard is replaced as a whole, so a glob sees neither duplicates nor half a file; two tables may be one publish apart.

Types are Arrow's. Columns marked *null* may be empty; all others are always filled. The key is unique in the table.
Boxes are in pixels of the segment's image as it is stored (`width_px` × `height_px` of `segments`); times are seconds
from the start of the media."""
SETTINGS_HEAD = """\
Settings stand in one file, `mm_assets.yaml` (`mm init` writes one), found by `--config`, `MM_ASSETS_CONFIG`, or in the
working folder. A variable wins over the file. Relative folders in the file are relative to the file.

`sources` is a list; as a variable it is given whole, as JSON: `MM_ASSETS_SOURCES='[{"uri": "s3://my-bucket"}]'`. Keys
of buckets are found as boto3 finds them: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, a profile, or the machine's
role. Two more variables are read: `MM_ASSETS_CONFIG`, and Dagster's `DAGSTER_HOME` (default: `dagster` below `state`)."""
COMMANDS_HEAD = """\
Exit codes: 0 done · 1 a run, a check or a service failed · 2 wrong usage or settings · 130 interrupted. Messages and
progress go to stderr, answers to stdout: aligned on a terminal, tab-separated in a pipe."""


def write_tables() -> str:
    """Return docs/tables.md."""
    others = tuple(name for name in TABLES if name not in {*STEP_TABLES, *JUDGEMENT_TABLES})
    groups = {
        "Steps: found in the media": STEP_TABLES,
        "Judgements: derived from vectors and a frozen generation": JUDGEMENT_TABLES,
        "Books": others,
    }
    parts = ["# Tables", NOTE, TABLES_HEAD]
    for title, names in groups.items():
        parts.append(f"## {title}")
        parts += [part for name in names for part in _table(TABLES[name])]
    return _join(parts)


def _table(table: Table) -> Iterator[str]:
    yield f"### `{table.name}`"
    yield f"{table.description} Key: {', '.join(f'`{name}`' for name in table.key)}."
    public = [column for column in table.columns if column.name not in table.private]
    rows = [f"| `{c.name}` | {_type(table, c)} | {_cell(c.description)} |" for c in public]
    yield "\n".join(["| column | type | meaning |", "|---|---|---|", *rows])
    if table.private:
        named = ", ".join(f"`{c.name}` ({c.description})" for c in table.columns if c.name in table.private)
        yield f"Only in the results (`results/{table.name}/`), because they are large: {named}."


def _type(table: Table, column: Column) -> str:
    kind = "fixed_size_list<float>" if table.has_vector and column.name == "vector" else str(column.type)
    return f"`{kind}`{' *null*' if column.nullable else ''}"


def _cell(text: str) -> str:
    """Escape what a Markdown table would read as its own."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("**", "\\*\\*")


def write_settings() -> str:
    """Return docs/settings.md."""
    rows = [
        f"| `{s.path}` | `{s.default}` | {_cell(s.meaning)} | {f'`{s.variable}`' if s.variable else ''} |"
        for s in list_settings()
    ]
    head = ["| setting | default | meaning | variable |", "|---|---|---|---|"]
    return _join(["# Settings", NOTE, SETTINGS_HEAD, "\n".join([*head, *rows])])


def write_commands() -> str:
    """Return docs/commands.md."""
    parts = ["# Commands", NOTE, COMMANDS_HEAD]
    for path, command in walk_commands(mm, "mm"):
        # Rendered for a width that no terminal decides.
        context = click.Context(command, info_name=path, terminal_width=100, help_option_names=["-h", "--help"])
        parts += [f"## `{path}`", f"```text\n{command.get_help(context)}\n```"]
    return _join(parts)


def walk_commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its words, groups before what is in them."""
    yield path, command
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from walk_commands(below, f"{path} {name}")


def _join(parts: list[str]) -> str:
    return "\n\n".join(parts) + "\n"


GENERATED: dict[str, Callable[[], str]] = {
    "tables.md": write_tables,
    "settings.md": write_settings,
    "commands.md": write_commands,
}


def stale_files(docs: Path = DOCS) -> list[str]:
    """Return the names of the files that are not what the code says."""
    return [
        name
        for name, write in GENERATED.items()
        if not (docs / name).is_file() or (docs / name).read_text(encoding="utf-8") != write()
    ]


def main(arguments: list[str]) -> int:
    """Write the files, or check them."""
    if arguments not in ([], ["--check"]):
        print("usage: generate_docs.py [--check]", file=sys.stderr)
        return 2
    stale = stale_files()
    if arguments == ["--check"]:
        for name in stale:
            print(f"docs/{name} is stale: run scripts/generate_docs.py", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (DOCS / name).write_text(GENERATED[name](), encoding="utf-8")
        print(f"wrote docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

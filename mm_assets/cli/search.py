"""``mm search``: words, a picture or a face → moments.

Put here: the question and the form of the answer. Keep out: ranking, which is ``retrieval``'s.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mm_assets.cli.options import PICTURE, config_option, examples, json_option, not_blank, once, where_option
from mm_assets.cli.output import place, print_json, print_table

if TYPE_CHECKING:
    import polars as pl


@examples(
    'mm search "a red circle"',
    "mm search --said '\"green star\" mountain*'",
    'mm search --face photo.jpg --threshold 0.4 --where "duration_s > 5" --group-by object',
    'mm search "a person" --image photo.jpg --limit 3 --json',
)
@click.command()
@click.argument("text", required=False, callback=not_blank)
@once("--image", type=PICTURE, help="What looks like a picture.")
@once("--face", type=PICTURE, help="Who is on a picture: its largest face.")
@once("--like", metavar="SEGMENT", help="What looks like a segment, by its id.")
@once(
    "--said",
    metavar="WORDS",
    help='Any of these words are spoken, the more the better; "a phrase" must be; begin* may go on.',
)
@once("--shown", metavar="WORDS", help="Words on screen or page, in the same way.")
@once("--seen", metavar="NAMES", help="Detected classes or tags, separated by commas.")
@where_option
@click.option("--limit", type=click.IntRange(1), default=10, show_default=True, help="Answers at most, up to 1,000.")
@click.option("--group-by", type=click.Choice(["object"]), help="One answer for each object.")
@click.option("--diversify", type=click.FloatRange(0, 1), default=0.0, help="0…1: prefer pictures that differ.")
@click.option("--collapse", is_flag=True, help="Leave out pictures that are near-duplicates of better answers.")
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    default=-1.0,
    metavar="COSINE",
    help="Pictures, faces and meanings less alike than this do not count; look at what --explain shows.",
)
@once(
    "--spaces",
    metavar="NAMES",
    help="Signals to use: visual, face, text, words, names; default: all.",
)
@click.option("--explain", is_flag=True, help="Show the place that each signal gave.")
@json_option
@config_option
def search(*, config: Path | None, as_json: bool, explain: bool, limit: int, spaces: str, **asked: Any) -> None:
    """Find moments: what looks like TEXT, means it or has it word for word; what looks like a picture; who is on it.

    Everything that is given counts: moments that several signals name come first (reciprocal rank fusion, k = 60), so
    scores compare within one answer only. Needs the lake and the models, nothing else.
    """
    from mm_assets.cli.opening import read_settings
    from mm_assets.resources.readers import open_retriever
    from mm_assets.retrieval import Question

    question = Question(**asked, k=limit, spaces=spaces)
    answer = open_retriever(read_settings(config)).ask(question)
    for note in answer.notes:
        click.echo(note, err=True)
    if as_json:
        for row in answer.frame.drop("thumbnail_jpeg").to_dicts():
            print_json(row)
    else:
        print_moments(answer.frame, is_explained=explain)


def print_moments(moments: "pl.DataFrame", *, is_explained: bool = False) -> None:
    """Print answers, best first."""
    if moments.is_empty():
        click.echo("Nothing was found.", err=True)
        return
    rows = [
        (
            f"{row['bucket']}/{row['key']}",
            place(row["start_s"], row["end_s"], row["page_number"]),
            _explain(row["signals"]) if is_explained else row["why"],
            row["snippet"] or "",
        )
        for row in moments.iter_rows(named=True)
    ]
    print_table(("object", "where", "why", "words"), rows)


def _explain(signals: list[dict[str, Any]]) -> str:
    return ", ".join(f"{signal['signal']}: #{signal['rank']} ({signal['score']:.3f})" for signal in signals)

"""``mm search``: words or a picture → moments.

Put here: the question and the form of the answer. Keep out: ranking, which is ``retrieval``'s.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mm_assets.cli.options import config_option, examples, json_option
from mm_assets.cli.output import place, print_json, print_table

if TYPE_CHECKING:
    from mm_assets.retrieval import Moment


@examples(
    'mm search "a red circle"',
    "mm search --image photo.jpg --limit 3 --json",
    'mm search "a person" --where "media_kind = \'video\' AND start_s > 60"',
)
@click.command()
@click.argument("text", required=False)
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Search by a picture.")
@click.option("--where", metavar="SQL", help="Condition on the columns of `moments` (see `mm sql 'DESCRIBE moments'`).")
@click.option("--limit", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Answers at most.")
@json_option
@config_option
def search(
    text: str | None, *, image: Path | None, where: str | None, limit: int, as_json: bool, config: Path | None
) -> None:
    """Find moments that look like TEXT or a picture.

    Needs the lake and the visual model, nothing else. Similarity is a cosine: compare it within one answer only.
    """
    if (text is None) == (image is None):
        msg = "give either TEXT or --image FILE"
        raise click.UsageError(msg)
    from mm_assets.resources.readers import open_retriever
    from mm_assets.settings import load_settings

    retriever = open_retriever(load_settings(config))
    if image is not None:
        moments = retriever.search_image(image, limit=limit, where=where)
    else:
        moments = retriever.search_text(text or "", limit=limit, where=where)
    if as_json:
        for moment in moments:
            print_json(moment.to_dict())
    else:
        print_moments(moments)


def print_moments(moments: "list[Moment]") -> None:
    """Print answers, best first."""
    if not moments:
        click.echo("Nothing was found.", err=True)
        return
    rows = [
        (
            f"{m.bucket}/{m.key}",
            place(m.start_s, m.end_s, m.page_number),
            f"{m.similarity:.2f}",
            m.why,
            ", ".join(m.tags),
        )
        for m in moments
    ]
    print_table(("object", "where", "similarity", "why", "tags"), rows)

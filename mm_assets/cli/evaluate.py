"""``mm evaluate``: golden queries → how good search is.

Put here: the forms of the figures. Keep out: the figures, which are ``retrieval.evaluation``'s.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mm_assets.cli.ingest import progress
from mm_assets.cli.options import config_option, examples, json_option
from mm_assets.cli.output import print_json, print_table

if TYPE_CHECKING:
    from mm_assets.retrieval.evaluation import Evaluation, Metrics

_SHOWN = 20


@examples("mm evaluate golden.yaml", "mm evaluate golden.yaml --k 5 --min-recall 0.9 --json")
@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--k", type=click.IntRange(1, 1_000), default=10, show_default=True, help="Answers to each query.")
@click.option("--min-recall", type=click.FloatRange(0, 1), help="End with 1 where recall@1 of all is below this.")
@json_option
@config_option
def evaluate(*, file: Path, k: int, min_recall: float | None, as_json: bool, config: Path | None) -> None:
    """Ask the queries of FILE, whose right answers are known, and show how many are found and how high.

    Figures of all queries and of each kind, then the queries whose first answer is wrong. docs/evaluation.md has the
    form of FILE and what the figures mean.
    """
    from mm_assets.cli.opening import read_settings
    from mm_assets.resources.readers import evaluate_search
    from mm_assets.retrieval.golden import read_golden

    settings, golden = read_settings(config), read_golden(file)
    with progress() as report:
        evaluation = evaluate_search(settings, golden, k, partial(report, "queries"))
    if as_json:
        print_json(_to_dict(evaluation))
    else:
        _print_figures(evaluation)
        _print_missed(evaluation)
    recall = evaluation.overall.recall_at_1
    if min_recall is not None and recall < min_recall:
        click.echo(f"recall@1 is {recall:.3f}, below {min_recall:g}", err=True)
        raise click.exceptions.Exit(1)


def _to_dict(evaluation: "Evaluation") -> dict[str, Any]:
    metrics = {kind: asdict(metrics) for kind, metrics in evaluation.by_kind.items()}
    return {"k": evaluation.k, "metrics": metrics, "queries": [item.describe() for item in evaluation.judged]}


def _print_figures(evaluation: "Evaluation") -> None:
    k = evaluation.k
    columns = ("kind", "queries", "recall@1", f"recall@{k}", "MRR", f"nDCG@{k}", "median rank", "worst rank")
    print_table(columns, [(kind, *_cells(metrics, k)) for kind, metrics in evaluation.by_kind.items()])


def _cells(metrics: "Metrics", k: int) -> list[object]:
    shares = (metrics.recall_at_1, metrics.recall_at_k, metrics.mrr, metrics.ndcg_at_k)
    ranks = (metrics.median_rank, metrics.worst_rank)
    return [metrics.n_queries, *(f"{share:.3f}" for share in shares), *(rank or f"> {k}" for rank in ranks)]


def _print_missed(evaluation: "Evaluation") -> None:
    missed = [item.describe() for item in evaluation.missed]
    if not missed:
        return
    click.echo("\nWhere the first answer is wrong:")
    rows = [_row(item, evaluation.k) for item in missed[:_SHOWN]]
    print_table(("query", "asked", "expected", "found at rank", "came first"), rows)
    if len(missed) > _SHOWN:
        click.echo(f"… and {len(missed) - _SHOWN} more; --json has all", err=True)


def _row(item: dict[str, Any], k: int) -> list[object]:
    rank, first = item["rank"] or f"> {k}", item["came_first"] or "nothing"
    return [item["query"], item["asked"], " or ".join(item["expected"]), rank, first]

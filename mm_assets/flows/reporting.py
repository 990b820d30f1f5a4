"""The scan report: what there is, what is done, what failed and why, as Parquet and as one page to read.

Put here: reading the books into rows, and their rendering. Keep out: how the numbers come about.

Keys and errors come from strangers: on the page everything is escaped, and the page forbids its reader's browser
scripts, forms and requests of any kind.
"""

import time
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import pyarrow as pa

from mm_assets.flows import metrics
from mm_assets.flows.workspace import Workspace
from mm_assets.lake import to_parquet
from mm_assets.ledger.dead import DeadFilter, DeadLetter
from mm_assets.ledger.scans import Scan

_SHOWN_LETTERS = 200
_SHOWN_ERROR_CHARS = 300
_ROWS = pa.schema([*((name, pa.string()) for name in ("bucket", "step", "state", "reason")), ("n_objects", pa.int64())])
_METRICS = pa.schema(
    [
        *((name, pa.string()) for name in ("name", "kind")),
        ("labels", pa.map_(pa.string(), pa.string())),
        ("value", pa.float64()),
    ]
)
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>mm_assets: scan report</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; overflow-wrap: anywhere; }}
th {{ font-weight: 600; color: #555; }} td.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
.alarm {{ background: #fde8e8; padding: .5rem .75rem; border-left: 4px solid #c00; }}
</style></head><body>
<h1>Scan report</h1>
<p>{lake}, {made_at}</p>
{body}
</body></html>
"""


def write_scan_report(workspace: Workspace) -> dict[str, Any]:
    """Write ``reports/latest.parquet``, ``reports/metrics.parquet`` and ``reports/latest.html``.

    Returns
    -------
    key of the Parquet, page's key, the rows, and when they were made
    """
    rows, samples = _rows(workspace), metrics.collect(workspace)
    made_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    table = pa.Table.from_pylist(rows, _ROWS)
    key = workspace.lake.write_report("latest.parquet", to_parquet(table, {"made_at": made_at}))
    plain = [{"name": s.name, "kind": s.kind, "labels": list(s.labels), "value": s.value} for s in samples]
    measured = pa.Table.from_pylist(plain, _METRICS)
    workspace.lake.write_report("metrics.parquet", to_parquet(measured, {"made_at": made_at}))
    letters = workspace.ledger.dead.letters(DeadFilter(recipes=workspace.recipes), limit=_SHOWN_LETTERS)
    page = render(workspace.lake.uri, made_at, rows, letters, samples)
    page_key = workspace.lake.write_report("latest.html", page.encode("utf-8"))
    return {"key": key, "page_key": page_key, "rows": rows, "made_at": made_at}


def _rows(workspace: Workspace) -> list[dict[str, Any]]:
    """Return one row per source, and one per step, state and reason."""
    rows: list[dict[str, Any]] = []
    for source in workspace.settings.sources:
        scan = workspace.ledger.objects.scan(source.alias)
        n_live = workspace.ledger.objects.n_live(source.alias)
        rows.append(
            {"bucket": source.alias, "step": None, "state": "live", "reason": _alarms(scan), "n_objects": n_live}
        )
    counts = workspace.ledger.work.counts(dict(workspace.recipes), list(workspace.sources))
    for (step, state, reason), n in sorted(counts.items(), key=str):
        rows.append({"bucket": None, "step": step, "state": state, "reason": reason, "n_objects": n})
    return rows


def _alarms(scan: Scan) -> str | None:
    """Say what holds a source up."""
    paused = scan.pause_reason if (scan.paused_until or 0.0) > time.time() else None
    return "; ".join(text for text in (scan.waiting_alarm, scan.events_alarm, paused) if text) or None


def render(
    lake: str,
    made_at: str,
    rows: Sequence[dict[str, Any]],
    letters: Sequence[DeadLetter],
    samples: Sequence[metrics.Sample],
) -> str:
    """Return the page; nothing in it is fetched from anywhere, and nothing runs."""
    sources = [(row["bucket"], row["n_objects"]) for row in rows if row["bucket"]]
    alarms = "".join(
        f'<p class="alarm">{_text(row["bucket"])}: {_text(row["reason"])}</p>\n'
        for row in rows
        if row["bucket"] and row["reason"]
    )
    steps = [(r["step"], r["state"], r["reason"], r["n_objects"]) for r in rows if r["step"]]
    parts = [
        alarms,
        _table("Sources", ("source", "objects"), sources),
        _table("Steps", ("step", "state", "reason", "objects"), steps),
        _table(f"Dead letters (first {_SHOWN_LETTERS})", ("object", "step", "reason", "error"), map(_letter, letters)),
        _table("Metrics", ("name", "labels", "value"), map(_sample, samples)),
    ]
    return _PAGE.format(lake=_text(lake), made_at=_text(made_at), body="".join(parts))


def _letter(letter: DeadLetter) -> tuple[object, ...]:
    place = f"{letter.known.version.alias}/{letter.known.version.key}"
    return place, letter.step, letter.reason, (letter.error or "")[:_SHOWN_ERROR_CHARS]


def _sample(sample: metrics.Sample) -> tuple[object, ...]:
    return sample.name, ", ".join(f"{name}={value}" for name, value in sample.labels), sample.value


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    if not body:
        return f"<h2>{_text(title)}</h2>\n<p>none</p>\n"
    return f"<h2>{_text(title)}</h2>\n<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>\n"


def _cell(value: object) -> str:
    if isinstance(value, int | float):
        return f'<td class="n">{value:,.10g}</td>'
    return f"<td>{_text(value)}</td>"


def _text(value: object) -> str:
    """Write a text so that a page shows it as it is: no markup, no controls, no change of direction."""
    shown = "" if value is None else str(value)
    return escape("".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown))

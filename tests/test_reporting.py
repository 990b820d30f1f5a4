"""The scan report: the same numbers as Parquet and as a page that strangers' texts cannot turn against its reader."""

import json
from collections.abc import Callable
from html.parser import HTMLParser

import pyarrow.parquet as pq
from flow_driver import process
from places import Place

from mm_assets.flows.discovery import discover
from mm_assets.flows.reporting import render, write_scan_report
from mm_assets.identity import ObjectVersion
from mm_assets.ledger import KnownObject
from mm_assets.ledger.dead import DeadLetter

HOSTILE = '<script>alert(1)</script>"\'><img src=x onerror=alert(1)>\x1b[31m\u202egnp.exe\n=HYPERLINK("http://x")'


class _Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def _parse(page: str) -> _Page:
    parser = _Page()
    parser.feed(page)
    parser.close()
    return parser


def test_the_report_is_written_in_all_its_forms(make_workspace: Callable[..., Place]) -> None:
    """Counts, metrics and the page lie in the lake and say the same."""
    place = make_workspace("picture0.png", "broken.png", "notes.txt")
    workspace = place.open()
    discover(workspace, "source")
    process(workspace)
    report = write_scan_report(workspace)

    rows = pq.read_table(place.lake / report["key"]).to_pylist()
    assert rows == report["rows"]
    assert {"bucket": None, "step": "segments", "state": "dead", "reason": "corrupt", "n_objects": 1} in rows
    assert {"bucket": "source", "step": None, "state": "live", "reason": None, "n_objects": 3} in rows
    measured = pq.read_table(place.lake / "reports" / "metrics.parquet").to_pylist()
    assert ("dead_letters", [("reason", "corrupt")], 1.0) in [(m["name"], m["labels"], m["value"]) for m in measured]
    page = _parse((place.lake / report["page_key"]).read_text(encoding="utf-8"))
    for text in ("source/broken.png", "corrupt", "step_results_total", report["made_at"]):
        assert text in page.text


def test_a_reader_sees_what_holds_a_source_up(make_workspace: Callable[..., Place]) -> None:
    """Pauses and alarms stand on top of the page and in the rows."""
    place = make_workspace("picture0.png")
    workspace = place.open()
    discover(workspace, "source")
    workspace.ledger.objects.pause("source", 4e9, "the daily cap is used up")
    report = write_scan_report(workspace)

    assert report["rows"][0]["reason"] == "the daily cap is used up"
    assert "source: the daily cap is used up" in _parse((place.lake / report["page_key"]).read_text("utf-8")).text


def test_hostile_texts_stay_texts() -> None:
    """Keys and errors bring no tag, no attribute, no control character and no change of direction into the page."""
    known = KnownObject(ObjectVersion("source", HOSTILE, "e", ""), "0" * 32, "p", 1, 0.0, 0, "live")
    letter = DeadLetter(known, HOSTILE, "r", "dead", HOSTILE, HOSTILE, 1, 1, 0, 0.0, 0.0)
    rows = [
        {"bucket": HOSTILE, "step": None, "state": "live", "reason": HOSTILE, "n_objects": 1},
        {"bucket": None, "step": HOSTILE, "state": HOSTILE, "reason": HOSTILE, "n_objects": 1},
    ]
    page = render(HOSTILE, "now", rows, [letter], [])

    parsed = _parse(page)
    assert not {"script", "img", "link", "iframe", "form", "a", "object"} & parsed.tags
    assert parsed.attributes <= {"lang", "charset", "http-equiv", "content", "name", "class"}
    assert "<script>alert(1)</script>" in parsed.text
    assert not {"\x1b", "\u202e"} & set(page)
    assert "default-src 'none'" in page


def test_the_page_of_an_empty_lake_is_readable(make_workspace: Callable[..., Place]) -> None:
    """Nothing found is said, and no reading of the books fails for want of rows."""
    place = make_workspace()
    report = write_scan_report(place.open())

    assert "none" in _parse((place.lake / report["page_key"]).read_text("utf-8")).text
    json.dumps(report)

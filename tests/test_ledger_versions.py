"""Versions of objects: whatever pages, hints and deletions come, in any order, on either database."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError

from mm_assets.identity import ObjectVersion
from mm_assets.ledger import Ledger, LostCursorError, PageDelta, Refusal, Scan, SeenObject, versions
from mm_assets.ledger.inbox import Hint
from mm_assets.ledger.tables import INBOX, OBJECTS, WORK

RECIPES = {"segments": "r1", "faces": "r2"}
KEYS, ETAGS = "abcd", "12"


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """Open an empty ledger, on SQLite and on PostgreSQL in turn."""
    opened = Ledger(ledger_url)
    yield opened
    opened.close()


def _seen(key: str, etag: str = "e", alias: str = "b") -> SeenObject:
    return SeenObject(ObjectVersion(alias, key, etag), 10, 0.0)


def _page(ledger: Ledger, *seen: SeenObject, at: Scan | None = None, after: str | None = None) -> PageDelta:
    return ledger.objects.record_page("b", seen, at=at or ledger.objects.scan("b"), after=after, shard_objects=3)


def _hint(ledger: Ledger, *seen: SeenObject, settled: tuple[int, ...] = ()) -> PageDelta:
    return ledger.objects.record_hinted("b", seen, settled, shard_objects=3)


def _ids(ledger: Ledger, *keys: str) -> list[str]:
    return [known.object_id for known in ledger.objects.live_at_key("b", keys).values()]


def _rows(ledger: Ledger, *conditions: Any) -> list[Any]:
    with ledger._engine.connect() as connection:
        return list(connection.execute(select(OBJECTS).where(*conditions)))


def _n_work(ledger: Ledger) -> int:
    with ledger._engine.connect() as connection:
        return int(connection.scalar(select(func.count()).select_from(WORK)) or 0)


# -- the algebra -----------------------------------------------------------------------------------------------------

_content = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(ETAGS))
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("page"), _content),
        st.tuples(st.just("hint"), _content),
        st.tuples(st.just("pass"), _content),
        st.tuples(st.just("retire"), st.sampled_from(KEYS)),
        st.tuples(st.just("erase"), st.sampled_from(KEYS)),
        st.tuples(st.just("sweep"), st.none()),
    ),
    max_size=12,
)


class _Model:
    """A bucket as the ledger ought to see it."""

    def __init__(self) -> None:
        self.live: dict[str, str] = {}
        self.erased: set[tuple[str, str]] = set()

    def show(self, content: dict[str, str]) -> None:
        for key, etag in content.items():
            self.live.pop(key, None)
            if (key, etag) not in self.erased:
                self.live[key] = etag

    def erase(self, key: str) -> None:
        if key in self.live:
            self.erased.add((key, self.live.pop(key)))


def _apply(ledger: Ledger, alias: str, model: _Model, kind: str, what: Any) -> None:
    objects = ledger.objects
    at = objects.scan(alias)
    if kind in {"page", "pass"}:
        seen = [_seen(*item, alias=alias) for item in what.items()]
        objects.record_page(alias, seen, at=at, after=None, shard_objects=2)
        model.show(what)
    if kind == "hint":
        objects.record_hinted(alias, [_seen(*item, alias=alias) for item in what.items()], (), shard_objects=2)
        model.show(what)
    if kind == "pass":
        missing = objects.missing(alias)
        assert len(missing) == objects.n_missing(alias)
        objects.finish_pass(alias, [known.object_id for known in missing], None, at=at)
        model.live = {key: etag for key, etag in model.live.items() if key in _at(ledger, alias)}
    if kind in {"retire", "erase"}:
        found = [known.object_id for known in objects.live_at_key(alias, [what]).values()]
        if kind == "retire":
            assert objects.retire(alias, found, ()) == len(found)
            model.live.pop(what, None)
        else:
            ledger.removals.erase(found)
            model.erase(what)
    if kind == "sweep":
        ledger.removals.forget([known.object_id for known in ledger.removals.leaving(100)])


def _at(ledger: Ledger, alias: str) -> dict[str, str]:
    return {key: known.version.etag for key, known in ledger.objects.live_at_key(alias, KEYS).items()}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_steps)
def test_any_order_of_what_is_seen_leaves_one_live_version_of_a_key(
    ledger: Ledger, steps: list[tuple[str, Any]]
) -> None:
    """The ledger shows the bucket; places belong to one key; the erased stay away; the live have not left."""
    alias, model = uuid.uuid4().hex, _Model()
    for kind, what in steps:
        _apply(ledger, alias, model, kind, what)

        rows = _rows(ledger, OBJECTS.c.alias == alias)
        live = [row for row in rows if row.state == "live"]
        assert sorted((row.key, row.etag) for row in live) == sorted(model.live.items())
        assert _at(ledger, alias) == model.live
        assert len({row.place for row in rows}) == len({(row.place, row.key) for row in rows})
        assert {(row.key, row.etag) for row in rows if row.state == "erased"} == model.erased
        assert all((row.state == "live") == (row.left_at is None) for row in rows)


# -- cursors ---------------------------------------------------------------------------------------------------------


def test_an_overtaken_lister_writes_nothing(ledger: Ledger) -> None:
    """The cursor moves only from where the page was asked for; the rows of a page that came too late are not stored."""
    at = ledger.objects.scan("b")
    _page(ledger, _seen("a"), at=at, after="a")

    with pytest.raises(LostCursorError, match="another process listed 'b'"):
        _page(ledger, _seen("late"), at=at, after="m")
    with pytest.raises(LostCursorError):
        ledger.objects.finish_pass("b", _ids(ledger, "a"), None, at=at)

    assert ledger.objects.scan("b").after == "a"
    assert list(ledger.objects.live_at_key("b", ["a", "late"])) == ["a"]


def test_a_lister_of_an_earlier_pass_writes_nothing(ledger: Ledger) -> None:
    """Cursors of two passes may look alike."""
    at = ledger.objects.scan("b")
    ledger.objects.finish_pass("b", [], None, at=at)

    with pytest.raises(LostCursorError):
        _page(ledger, _seen("a"), at=at, after="a")


def test_what_an_event_showed_meanwhile_is_not_retired(ledger: Ledger) -> None:
    """Between looking and writing, an object may have come back."""
    _page(ledger, _seen("a"), _seen("b"))
    ledger.objects.finish_pass("b", [], None, at=ledger.objects.scan("b"))
    at, gone = ledger.objects.scan("b"), _ids(ledger, "a", "b")
    _hint(ledger, _seen("a"))

    assert ledger.objects.finish_pass("b", gone, None, at=at) == 1
    assert list(ledger.objects.live_at_key("b", ["a", "b"])) == ["a"]


def test_an_alarm_does_not_end_by_itself(ledger: Ledger) -> None:
    """What events removed counts until a person confirmed or a pass found nothing wrong."""
    _page(ledger, _seen("a"), _seen("b"))
    ledger.objects.retire("b", _ids(ledger, "a"), ())

    ledger.objects.finish_pass("b", [], "too many", at=ledger.objects.scan("b"))
    assert ledger.objects.scan("b").n_gone_by_event == 1

    ledger.objects.finish_pass("b", [], None, at=ledger.objects.scan("b"))
    assert ledger.objects.scan("b").n_gone_by_event == 0


def test_a_listing_does_not_undo_an_erasure(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that looked just before it: the statement that revives says itself what may return."""
    _page(ledger, _seen("a"))
    ledger.objects.retire("b", _ids(ledger, "a"), ())
    known = versions._known

    def known_before(connection: Any, object_ids: list[str]) -> Any:
        found = known(connection, object_ids)
        connection.execute(update(OBJECTS).values(state="erased"))
        return found

    monkeypatch.setattr(versions, "_known", known_before)

    assert _page(ledger, _seen("a")) == PageDelta()
    assert [row.state for row in _rows(ledger)] == ["erased"]


def test_listing_calls_are_counted_by_the_day(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new day (GMT) begins at none."""
    monkeypatch.setattr("mm_assets.ledger.scans.gmt_day", lambda: "2026-01-01")
    at = ledger.objects.scan("b")
    ledger.objects.record_page("b", [], at=at, after=None, shard_objects=3, n_calls=2)
    ledger.objects.count_calls("b", 3)
    ledger.objects.finish_pass("b", [], None, at=at, n_calls=1)
    assert ledger.objects.scan("b").n_calls == 6

    monkeypatch.setattr("mm_assets.ledger.scans.gmt_day", lambda: "2026-01-02")

    assert ledger.objects.scan("b").n_calls == 0
    ledger.objects.count_calls("b", 1)
    assert ledger.objects.scan("b").n_calls == 1


def test_a_pause_ends_by_itself(ledger: Ledger) -> None:
    """Sources whose time is over are not paused; the scan still tells when and why."""
    ledger.objects.pause("b", 4_000_000_000.0, "daily cap")
    ledger.objects.pause("old", 1.0, "daily cap")

    assert ledger.objects.paused() == {"b": (4_000_000_000.0, "daily cap")}
    assert ledger.objects.scan("old").pause_reason == "daily cap"


def test_an_events_alarm_is_set_and_cleared(ledger: Ledger) -> None:
    """It stands beside the scan until the provider sends again."""
    ledger.objects.set_events_alarm("b", "rule suspended")
    assert ledger.objects.scan("b").events_alarm == "rule suspended"

    ledger.objects.set_events_alarm("b", None)
    assert ledger.objects.scan("b").events_alarm is None


def test_a_name_is_refused_once(ledger: Ledger) -> None:
    """The same name at every pass is one row, with the time of the first."""
    refusal = Refusal("id1", "b", "a\\x00b", "policy", "key holds NUL")
    ledger.objects.refuse([refusal], seen_pass=1)
    [first] = ledger.objects.refusals()

    ledger.objects.refuse([refusal], seen_pass=2)

    [kept] = ledger.objects.refusals()
    assert kept == first
    assert (kept.alias, kept.shown_key, kept.reason) == ("b", "a\\x00b", "policy")
    assert kept.first_seen_at > 0


# -- hints -----------------------------------------------------------------------------------------------------------


def _inbox_id(ledger: Ledger) -> int:
    ledger.inbox.add([Hint(uuid.uuid4().hex, "s3", "b", "k")])
    [waiting] = ledger.inbox.waiting(10)
    return waiting.inbox_ids[0]


def _is_settled(ledger: Ledger, inbox_id: int) -> bool:
    with ledger._engine.connect() as connection:
        return connection.scalar(select(INBOX.c.done_at).where(INBOX.c.inbox_id == inbox_id)) is not None


def test_a_hint_is_settled_with_its_row(ledger: Ledger) -> None:
    """Neither without the other, and the cursor of the listing stays where it is."""
    at, inbox_id = ledger.objects.scan("b"), _inbox_id(ledger)
    broken = SeenObject(ObjectVersion("b", "b", "1"), None, 0.0)  # type: ignore[arg-type]  what a bad store may say
    with pytest.raises(IntegrityError):
        _hint(ledger, _seen("a"), broken, settled=(inbox_id,))
    assert not _is_settled(ledger, inbox_id)

    assert _hint(ledger, _seen("a"), settled=(inbox_id,)) == PageDelta(n_new=1)
    assert _is_settled(ledger, inbox_id)
    assert ledger.objects.scan("b") == at


def test_a_hint_needs_no_listing_before(ledger: Ledger) -> None:
    """Events may come for a source that was never listed."""
    assert _hint(ledger, _seen("a")).n_new == 1
    assert ledger.objects.scan("b").pass_number == 1


def test_retiring_counts_for_the_brake_until_a_pass_is_over(ledger: Ledger) -> None:
    """What events removed is known when the listing judges what is missing."""
    _page(ledger, _seen("a"), _seen("b"))
    inbox_id = _inbox_id(ledger)

    assert ledger.objects.retire("b", [*_ids(ledger, "a"), "0" * 32], (inbox_id,)) == 1
    assert _is_settled(ledger, inbox_id)
    assert ledger.objects.scan("b").n_gone_by_event == 1

    ledger.objects.finish_pass("b", [], None, at=ledger.objects.scan("b"))
    assert ledger.objects.scan("b").n_gone_by_event == 0


# -- keys ------------------------------------------------------------------------------------------------------------


def test_a_page_that_names_a_key_twice_keeps_the_last(ledger: Ledger) -> None:
    """Some stores repeat a key at the seam of two pages."""
    assert _page(ledger, _seen("a", "1"), _seen("a", "2")) == PageDelta(n_new=1)
    assert ledger.objects.live_at_key("b", ["a"])["a"].version.etag == "2"


def test_keys_of_any_length_and_kind_are_found(ledger: Ledger) -> None:
    """Paths of folders outgrow an index row; quotes, percents and wide characters are plain characters."""
    keys = ["x" * 4_000, "x" * 4_001, "a'b\"c%s:d?", "\U0001f600/ü/u\u0308", "\\", "{}", ","]
    _page(ledger, *(_seen(key) for key in keys))

    assert set(ledger.objects.live_at_key("b", [*keys, "missing"])) == set(keys)
    assert _page(ledger, *(_seen(key) for key in keys)) == PageDelta()


def test_sources_share_no_keys(ledger: Ledger) -> None:
    """The same key in two sources is two objects."""
    _page(ledger, _seen("a"))
    at = ledger.objects.scan("other")
    ledger.objects.record_page("other", [_seen("a", alias="other")], at=at, after=None, shard_objects=3)

    assert ledger.objects.n_live("b") == ledger.objects.n_live("other") == 1


# -- work that is not open yet ----------------------------------------------------------------------------------------


def test_a_new_object_costs_one_row(ledger: Ledger) -> None:
    """Work is counted from the beginning and opened only as it is planned."""
    ledger.work.want("b", RECIPES)
    _page(ledger, *(_seen(f"k{i:02}") for i in range(50)))
    wanted = {("segments", "wanted", None): 50, ("faces", "wanted", None): 50}
    assert (_n_work(ledger), ledger.work.counts(RECIPES), ledger.work.n_waiting(RECIPES)) == (0, wanted, 50)

    assert ledger.work.open_work("b", RECIPES, 10) == 10

    assert (_n_work(ledger), ledger.work.counts(RECIPES), ledger.work.n_waiting(RECIPES)) == (20, wanted, 50)
    assert ledger.work.open_work("b", RECIPES, 100) == 40
    assert ledger.work.open_work("b", RECIPES, 100) == 0
    assert (_n_work(ledger), ledger.work.counts(RECIPES), ledger.work.n_waiting(RECIPES)) == (100, wanted, 50)


def test_work_is_opened_in_the_order_of_discovery(ledger: Ledger) -> None:
    """What was found first is done first."""
    _page(ledger, *(_seen(key) for key in "dcba"))

    ledger.work.open_work("b", RECIPES, 2)

    opened = {row.key for row in _rows(ledger, OBJECTS.c.opened_for != "")}
    assert opened == {"d", "c"}


def test_a_step_is_not_complete_while_versions_are_not_opened(ledger: Ledger) -> None:
    """Old rows stay published until every version has an end under the new recipe, opened or not."""
    ledger.work.want("b", RECIPES)
    assert ledger.work.complete("faces", "r2", ["b"])
    _page(ledger, _seen("a"))
    assert not ledger.work.complete("faces", "r2", ["b"])
    assert not ledger.work.complete("faces", "r9", ["b"])
    assert ledger.work.complete("of another source", "r1", ["b"])

    _page(ledger, _seen("a", "2"))
    ledger.objects.retire("b", _ids(ledger, "a"), ())
    assert ledger.work.complete("faces", "r2", ["b"])


def test_a_source_that_left_the_settings_holds_no_recipe_up(ledger: Ledger) -> None:
    """Nothing is planned for it any more, whether its rows were opened or not; it is not waited for either."""
    at = ledger.objects.scan("removed")
    seen = [_seen(key, alias="removed") for key in "ab"]
    ledger.objects.record_page("removed", seen, at=at, after=None, shard_objects=3)
    ledger.work.open_work("removed", RECIPES, 1)

    assert not ledger.work.complete("faces", "r2", ["b", "removed"])
    assert ledger.work.complete("faces", "r2", ["b"])
    assert ledger.work.complete("faces", "r9", ["b"])
    assert (ledger.work.n_waiting(RECIPES), ledger.work.n_waiting(RECIPES, ["b"])) == (2, 0)


def test_work_on_what_left_is_not_counted(ledger: Ledger) -> None:
    """Rows of versions that left stay until the sweep; no count shows them."""
    _page(ledger, _seen("a"), _seen("b"))
    ledger.work.open_work("b", RECIPES, 10)
    ledger.objects.retire("b", _ids(ledger, "a"), ())

    assert ledger.work.counts(RECIPES) == {("segments", "wanted", None): 1, ("faces", "wanted", None): 1}
    assert ledger.work.n_waiting(RECIPES) == 1


def test_a_step_that_one_source_does_not_ask_for_is_not_wanted_of_it(ledger: Ledger) -> None:
    """Each source has its own steps."""
    at = ledger.objects.scan("sounds")
    ledger.objects.record_page("sounds", [_seen("s", alias="sounds")], at=at, after=None, shard_objects=3)
    _page(ledger, _seen("a"))
    ledger.work.want("sounds", {"segments": "r1"})
    ledger.work.want("b", RECIPES)

    assert ledger.work.counts(RECIPES) == {("segments", "wanted", None): 2, ("faces", "wanted", None): 1}
    assert ledger.work.counts(RECIPES, ["sounds"]) == {("segments", "wanted", None): 1}
    ledger.work.open_work("sounds", {"segments": "r1"}, 10)
    ledger.work.open_work("b", RECIPES, 10)
    assert ledger.work.counts(RECIPES, ["sounds"]) == {("segments", "wanted", None): 1}
    assert ledger.work.counts(RECIPES, ["b"]) == {("segments", "wanted", None): 1, ("faces", "wanted", None): 1}


def test_a_version_that_comes_back_after_the_sweep_is_done_again(ledger: Ledger) -> None:
    """Its results were removed, so its rows are opened anew."""
    _page(ledger, _seen("a"))
    ledger.work.open_work("b", RECIPES, 10)
    [object_id] = _ids(ledger, "a")
    ledger.objects.retire("b", [object_id], ())
    ledger.removals.forget([object_id])
    assert _n_work(ledger) == 0

    assert _page(ledger, _seen("a")) == PageDelta(n_revived=1)

    assert ledger.work.n_waiting(RECIPES) == 1
    assert ledger.work.open_work("b", RECIPES, 10) == 1
    assert _n_work(ledger) == 2

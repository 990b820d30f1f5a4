"""Standing queries, what matched them, and which of that was told.

Put here: watches, their matches, claims on matches that are to be told. Keep out: matching and sending.

A match is one for a watch and an object version, whatever is told twice or killed: its two ids are its key. Who tells
it claims it first, which counts as a try and puts it off; the number of tries is the token of that claim.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, and_, delete, func, literal_column, select, update
from sqlalchemy.engine import Connection, Row

from mm_assets.ledger.clock import epoch_now
from mm_assets.ledger.tables import IS_LIVE, MATCHES, OBJECTS, WATCHES, WORK
from mm_assets.ledger.transactions import insert_into, retried
from mm_assets.ledger.versions import chunks

_STATES = ("waiting", "sent", "given_up")
# The state as a literal: SQLite uses a partial index only where the statement shows its condition.
_WAITS = MATCHES.c.state == literal_column("'waiting'")
_IS_DUE = and_(_WAITS, MATCHES.c.not_before <= epoch_now())


@dataclass(frozen=True, slots=True)
class Watch:
    """A question that is put to every new object.

    Attributes
    ----------
    kind : text, image, face, said or shown
    question : the text or the words; of a picture, the name of its file
    threshold : cosine from which on a vector matches; None for words
    webhook, command : where matches go, one of the two
    secret : key of the webhook's signature
    vector : float32 in the machine's order; None for words, and where the question cannot be encoded
    recipe : of the step whose vectors it may be compared with; empty for words
    error : why there is no vector under this recipe
    """

    watch_id: str
    name: str
    kind: str
    question: str
    threshold: float | None = None
    webhook: str | None = None
    secret: str | None = field(default=None, repr=False)
    command: str | None = None
    vector: bytes | None = field(default=None, repr=False)
    recipe: str = ""
    error: str | None = None
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Match:
    """Where an object version matches a watch best.

    Attributes
    ----------
    score : cosine; None for words
    """

    watch_id: str
    object_id: str
    segment_id: str
    start_s: float | None
    end_s: float | None
    page_number: int | None
    score: float | None

    @property
    def match_id(self) -> str:
        """The same for every telling of this match."""
        return f"{self.watch_id}-{self.object_id}"


@dataclass(frozen=True, slots=True)
class KnownMatch:
    """A match with what it is of, and how far its telling is.

    Attributes
    ----------
    state : waiting | sent | given_up
    tries : tellings that were begun
    """

    match: Match
    watch: str
    bucket: str
    key: str
    etag: str
    matched_at: float
    state: str
    tries: int
    error: str | None


_WATCH_FIELDS = tuple(Watch.__dataclass_fields__)
_PLACE = tuple(Match.__dataclass_fields__)
_WATCHES = select(*(WATCHES.c[name] for name in _WATCH_FIELDS))
_KNOWN = (
    select(MATCHES, WATCHES.c.name, OBJECTS.c.alias, OBJECTS.c.key, OBJECTS.c.etag)
    .join(WATCHES, WATCHES.c.watch_id == MATCHES.c.watch_id)
    .join(OBJECTS, OBJECTS.c.object_id == MATCHES.c.object_id)
)


class WatchBook:
    """Watches and their matches."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(mm_reads=True)

    # -- watches -------------------------------------------------------------------------------------------------

    @retried
    def add(self, watch: Watch, picture: bytes | None = None) -> bool:
        """Keep a watch, with the picture that it was made of; False when its name is taken."""
        values = {name: getattr(watch, name) for name in _WATCH_FIELDS}
        values |= {"picture": picture, "created_at": epoch_now()}
        with self._engine.begin() as connection:
            insert = insert_into(connection, WATCHES).values(**values).on_conflict_do_nothing()
            return connection.scalar(insert.returning(WATCHES.c.watch_id)) is not None

    def all(self) -> list[Watch]:
        """Return all watches, by name."""
        with self._reader.connect() as connection:
            return [Watch(*row) for row in connection.execute(_WATCHES.order_by(WATCHES.c.name))]

    def find(self, name: str) -> Watch | None:
        """Return the watch of a name; None when there is none."""
        with self._reader.connect() as connection:
            row = connection.execute(_WATCHES.where(WATCHES.c.name == name)).first()
        return None if row is None else Watch(*row)

    def picture(self, watch_id: str) -> bytes | None:
        """Return the picture that a watch was made of."""
        with self._reader.connect() as connection:
            return connection.scalar(select(WATCHES.c.picture).where(WATCHES.c.watch_id == watch_id))

    @retried
    def encode(self, watch_id: str, recipe: str, vector: bytes | None, error: str | None) -> None:
        """Note a watch's vector under another recipe, or why there is none."""
        values = {"recipe": recipe, "vector": vector, "error": error}
        with self._engine.begin() as connection:
            connection.execute(update(WATCHES).where(WATCHES.c.watch_id == watch_id).values(**values))

    @retried
    def remove(self, name: str) -> bool:
        """Forget a watch with its picture, vector and matches; False when there is none."""
        with self._engine.begin() as connection:
            watch_id = connection.scalar(delete(WATCHES).where(WATCHES.c.name == name).returning(WATCHES.c.watch_id))
            connection.execute(delete(MATCHES).where(MATCHES.c.watch_id == watch_id))
            return watch_id is not None

    # -- matches -------------------------------------------------------------------------------------------------

    def done_before(self, object_ids: Collection[str], steps: Collection[str]) -> set[str]:
        """Return those of these versions that have a result of one of the steps already, under any recipe."""
        results = and_(WORK.c.step.in_(sorted(steps)), WORK.c.n_rows.is_not(None))
        found: set[str] = set()
        with self._reader.connect() as connection:
            for part in chunks(sorted(object_ids)):
                found.update(connection.scalars(select(WORK.c.object_id).where(WORK.c.object_id.in_(part), results)))
        return found

    @retried
    def record(self, matches: Sequence[Match]) -> list[Match]:
        """Keep those that are new, of watches and versions that are still there; returns them."""
        with self._engine.begin() as connection:
            watches = _there(connection, WATCHES.c.watch_id, {match.watch_id for match in matches})
            objects = _there(connection, OBJECTS.c.object_id, {match.object_id for match in matches}, IS_LIVE)
            return [m for m in matches if m.watch_id in watches and m.object_id in objects and _insert(connection, m)]

    def matches(self, name: str | None = None) -> list[KnownMatch]:
        """Return the matches of one watch, or of all, latest first."""
        query = _KNOWN.order_by(MATCHES.c.matched_at.desc(), MATCHES.c.watch_id, MATCHES.c.object_id)
        if name is not None:
            query = query.where(WATCHES.c.name == name)
        with self._reader.connect() as connection:
            return [_known_match(row) for row in connection.execute(query)]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the name of each watch → state → number of its matches."""
        query = (
            select(WATCHES.c.name, MATCHES.c.state, func.count(MATCHES.c.state).label("n"))
            .outerjoin(MATCHES, WATCHES.c.watch_id == MATCHES.c.watch_id)
            .group_by(WATCHES.c.name, MATCHES.c.state)
        )
        found: dict[str, dict[str, int]] = {}
        with self._reader.connect() as connection:
            for row in connection.execute(query):
                found.setdefault(row.name, dict.fromkeys(_STATES, 0)).update({row.state: row.n} if row.state else {})
        return found

    # -- telling -------------------------------------------------------------------------------------------------

    @retried
    def claim_due(self, lease_s: float, *, without: Collection[str] = ()) -> KnownMatch | None:
        """Claim the match that is due longest, for as long as the lease; None when none is.

        Parameters
        ----------
        without : ids of watches that are not asked for now
        """
        query = (
            _KNOWN.where(_IS_DUE, WATCHES.c.watch_id.not_in(sorted(without))).order_by(MATCHES.c.not_before).limit(1)
        )
        with self._reader.connect() as connection:
            if connection.execute(query).first() is None:
                return None  # most of the time: no turn among the writers is taken for it
        with self._engine.begin() as connection:
            row = connection.execute(query.with_for_update(of=MATCHES, skip_locked=True)).first()
            if row is None:
                return None
            values = {"not_before": epoch_now() + lease_s, "tries": MATCHES.c.tries + 1}
            connection.execute(update(MATCHES).where(_is(_to_match(row))).values(**values))
            return _known_match(row, tries=row.tries + 1)

    @retried
    def settle(self, told: KnownMatch, state: str, error: str | None = None, wait_s: float = 0.0) -> None:
        """Note how a telling ended; without effect when another has claimed it meanwhile."""
        values = {"state": state, "error": error, "not_before": epoch_now() + wait_s}
        mine = and_(_is(told.match), MATCHES.c.tries == told.tries, _WAITS)
        with self._engine.begin() as connection:
            connection.execute(update(MATCHES).where(mine).values(**values))


def forget_matches(connection: Connection, object_ids: Collection[str]) -> None:
    """Drop the matches of versions of which nothing is kept, in the transaction that forgets them."""
    for part in chunks(sorted(object_ids)):
        connection.execute(delete(MATCHES).where(MATCHES.c.object_id.in_(part)))


def _there(connection: Connection, column: Any, ids: Collection[str], *also: Any) -> set[str]:
    """Return those of these rows that are there, and keep them there until the transaction ends."""
    found: set[str] = set()
    for part in chunks(sorted(ids)):
        query = select(column).where(column.in_(part), *also).order_by(column)
        found.update(connection.scalars(query.with_for_update(read=True)))
    return found


def _insert(connection: Connection, match: Match) -> bool:
    values = {name: getattr(match, name) for name in _PLACE} | {"matched_at": epoch_now(), "not_before": epoch_now()}
    insert = insert_into(connection, MATCHES).values(**values).on_conflict_do_nothing()
    return connection.scalar(insert.returning(MATCHES.c.object_id)) is not None


def _is(match: Match) -> Any:
    return and_(MATCHES.c.watch_id == match.watch_id, MATCHES.c.object_id == match.object_id)


def _to_match(row: Row[Any]) -> Match:
    return Match(*(getattr(row, name) for name in _PLACE))


def _known_match(row: Row[Any], tries: int | None = None) -> KnownMatch:
    return KnownMatch(
        _to_match(row),
        row.name,
        row.alias,
        row.key,
        row.etag,
        row.matched_at,
        row.state,
        row.tries if tries is None else tries,
        row.error,
    )

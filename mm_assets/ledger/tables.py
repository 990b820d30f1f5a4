"""The ledger's tables, as SQLAlchemy Core.

Put here: columns, indexes, and the conditions that indexes rest on. Keep out: statements. Times are seconds since the
epoch, UTC. A column added after the first release has a default of the server's, so that older ledgers can be given it.
"""

import hashlib

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    and_,
    literal_column,
    or_,
    text,
)

METADATA = MetaData()
_MAX_KEPT_BYTES = 200
_LIVE = text("state = 'live'")
_HELD_SQLITE, _HELD_POSTGRESQL = text("in_dagster = 1"), text("in_dagster")
_PLANNED = text("batch_id IS NOT NULL")
_TO_SWEEP = text("left_at IS NOT NULL AND swept_at IS NULL")
_WAITS = text("done_at IS NULL")
_NOT_REVOKED = text("revoked_at IS NULL")
_TO_TELL = text("state = 'waiting'")

OBJECTS = Table(
    "objects",
    METADATA,
    Column("object_id", String(32), primary_key=True),
    Column("alias", String(63), nullable=False),
    Column("key", Text, nullable=False),
    Column("short_key", Text, nullable=False, server_default=""),  # keys outgrow PostgreSQL's index rows
    Column("etag", Text, nullable=False),
    Column("version_id", Text, nullable=False, default=""),
    Column("partition_key", Text, nullable=False, unique=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("modified_at", Float, nullable=False),
    Column("place", BigInteger, nullable=False),  # order of discovery; a new version takes its predecessor's
    Column("shard", Integer, nullable=False),
    Column("state", String(16), nullable=False),  # live | superseded | gone | erased
    Column("first_seen_at", Float, nullable=False),
    Column("seen_pass", Integer, nullable=False),
    Column("in_dagster", Boolean, nullable=False, default=False),
    Column(
        "opened_for", String(16), nullable=False, default="", server_default=""
    ),  # recipes for which its rows of work were opened
    Column("left_at", Float),  # when it ceased to be live
    Column("swept_at", Float),  # when its results were removed
    # The highest of its rows of work that were swept: a token never comes twice.
    Column("last_token", BigInteger, nullable=False, default=0, server_default="0"),
    Index("objects_live_key", "alias", "short_key", unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE),
    Index("objects_in_place", "shard", "place", sqlite_where=_LIVE, postgresql_where=_LIVE),
    Index("objects_to_open", "alias", "opened_for", "place", sqlite_where=_LIVE, postgresql_where=_LIVE),
    Index("objects_in_dagster", "place", sqlite_where=_HELD_SQLITE, postgresql_where=_HELD_POSTGRESQL),
    Index("objects_to_sweep", "left_at", sqlite_where=_TO_SWEEP, postgresql_where=_TO_SWEEP),
)

# Why a step was skipped; what begins with the second has no input of a kind that the step takes.
SEGMENTS_DEAD, NO_INPUT = "segments_dead", "no "
FORBIDDEN = "forbidden"  # why it waits: its source does not let us read it
# Why it waits: a step whose results it reads is not over. What a worker holds is marked by the latter meanwhile.
WAITS_FOR_INPUT, INPUT_CHANGED = "waits_for_input", "input_changed"

WORK = Table(
    "work",
    METADATA,
    Column("object_id", String(32), nullable=False),
    Column("step", String(63), nullable=False),
    Column("recipe", String(32), nullable=False),
    Column("state", String(16), nullable=False),  # wanted | claimed | done | skipped | dead
    Column("reason", Text),
    Column("error", Text),
    Column("n_rows", BigInteger),
    Column("tries", Integer, nullable=False, default=0),  # failures that the object caused
    Column("claims", Integer, nullable=False, default=0),  # starts; deaths of the worker show as claims without an end
    Column("token", BigInteger, nullable=False, default=0),  # fencing: only the latest claim may finish
    Column("owner", Text),
    Column("lease_until", Float),
    Column("not_before", Float, nullable=False, default=0.0),
    Column("batch_id", String(32)),
    Column("changed_at", Float, nullable=False),
    Column("replays", Integer, nullable=False, default=0, server_default="0"),  # how often a person asked for it again
    PrimaryKeyConstraint("object_id", "step", "recipe"),
    Index("work_by_state", "state", "step", "recipe", "reason"),
    Index("work_by_change", "changed_at"),
    Index("work_by_batch", "batch_id", sqlite_where=_PLANNED, postgresql_where=_PLANNED),
)

# The record of a dead letter is written before the row says dead, and removed after the row says something else: a
# worker that ends in between leaves it to the next one, whose token is higher.
MAY_BE_RECORDED = or_(
    WORK.c.state == "dead",
    WORK.c.replays > 0,
    WORK.c.token > 1,
    WORK.c.reason == "dropped",
    and_(WORK.c.state.in_(("wanted", "claimed")), WORK.c.token > 0),
)

BATCHES = Table(
    "batches",
    METADATA,
    Column("batch_id", String(32), primary_key=True),
    Column("lane", String(16), nullable=False),  # bulk | single
    Column("steps", Text, nullable=False),  # comma-separated
    Column("n_objects", Integer, nullable=False),
    Column("planner", Text, nullable=False),  # the process that made it
    Column("created_at", Float, nullable=False),
)

SCANS = Table(
    "scans",
    METADATA,
    Column("alias", String(63), primary_key=True),
    Column("after", Text, nullable=False, default=""),
    Column("pass_number", Integer, nullable=False, default=1),
    Column("n_seen", BigInteger, nullable=False, default=0),
    Column("pages", BigInteger, nullable=False, default=0),
    Column("finished_at", Float),
    Column("alarm", Text),  # why deletions wait for a person
    Column("deletions_confirmed", Boolean, nullable=False, default=False),
    # Since the last complete pass; the brake counts them.
    Column("n_gone_by_event", BigInteger, nullable=False, default=0, server_default="0"),
    Column("call_day", String(10), nullable=False, default="", server_default=""),
    # Listing calls on that day (GMT).
    Column("n_calls", BigInteger, nullable=False, default=0, server_default="0"),
    Column("paused_until", Float),  # a daily cap is used up
    Column("pause_reason", Text),
    Column("events_alarm", Text),  # the provider suspended the rule that sends events
    Column("wants", Text, nullable=False, default="{}", server_default="{}"),  # JSON: step → recipe the source asks for
)

PUBLISHED = Table(
    "published",
    METADATA,
    Column("step", String(63), primary_key=True),
    Column("recipe", String(32), nullable=False),
)

GENERATIONS = Table(
    "generations",
    METADATA,
    Column("name", String(63), primary_key=True),
    Column("generation", String(32), nullable=False),
    Column("manifest", Text, nullable=False),
)

SHARD_FILES = Table(
    "shard_files",
    METADATA,
    Column("name", String(63), nullable=False),
    Column("shard", Integer, nullable=False),
    Column("fingerprint", String(32), nullable=False),
    Column("n_rows", BigInteger, nullable=False),
    Column("published_at", Float, nullable=False),
    PrimaryKeyConstraint("name", "shard"),
)

LOCKS = Table(
    "locks",
    METADATA,
    Column("name", String(127), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("token", BigInteger, nullable=False),  # fencing: rises with each holder
    Column("expires_at", Float, nullable=False),
)

INBOX = Table(
    "inbox",
    METADATA,
    Column("inbox_id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True),
    Column("event_id", String(64), nullable=False, unique=True),  # SHA-256 of what makes the event one
    Column("provider", String(16), nullable=False),
    Column("alias", String(63), nullable=False),
    Column("key", Text, nullable=False),
    Column("key_hash", String(32), nullable=False),
    Column("received_at", Float, nullable=False),
    Column("fails", Integer, nullable=False, default=0),
    Column("not_before", Float, nullable=False, default=0.0),
    Column("done_at", Float),
    Index("inbox_waiting", "not_before", sqlite_where=_WAITS, postgresql_where=_WAITS),
    Index("inbox_done", "done_at"),
)

REFUSALS = Table(
    "refusals",
    METADATA,
    Column("refusal_id", String(32), primary_key=True),  # hash of alias and raw name
    Column("alias", String(63), nullable=False),
    Column("shown_key", Text, nullable=False),  # escaped: the name itself is no text
    Column("reason", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("first_seen_at", Float, nullable=False),
    Column("seen_pass", Integer, nullable=False, default=0, server_default="0"),  # the last listing that met it
)

METERS = Table(
    "meters",
    METADATA,
    Column("day", String(10), nullable=False),  # GMT
    Column("name", String(63), nullable=False),
    Column("labels", String(255), nullable=False),  # JSON object, keys in order
    Column("value", Float, nullable=False),
    PrimaryKeyConstraint("day", "name", "labels"),
)

API_KEYS = Table(
    "api_keys",
    METADATA,
    Column("key_id", String(16), primary_key=True),
    Column("name", String(63), nullable=False),
    Column("digest", String(64), nullable=False),  # SHA-256 of the secret
    Column("rights", Text, nullable=False),  # comma-separated
    Column("sources", Text, nullable=False),  # comma-separated aliases; '' for all
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
    Index("api_keys_name", "name", unique=True, sqlite_where=_NOT_REVOKED, postgresql_where=_NOT_REVOKED),
)

WATCHES = Table(
    "watches",
    METADATA,
    Column("watch_id", String(32), primary_key=True),
    Column("name", String(63), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),  # text | image | face | said | shown
    Column("question", Text, nullable=False),
    Column("picture", LargeBinary),
    Column("threshold", Float),
    Column("webhook", Text),
    Column("secret", Text),
    Column("command", Text),
    Column("vector", LargeBinary),  # float32
    Column("recipe", String(32), nullable=False, default=""),  # of the vectors it may be compared with
    Column("error", Text),  # why there is no vector under this recipe
    Column("created_at", Float, nullable=False),
)

MATCHES = Table(
    "matches",
    METADATA,
    Column("watch_id", String(32), nullable=False),
    Column("object_id", String(32), nullable=False),
    Column("segment_id", String(63), nullable=False),
    Column("start_s", Float),
    Column("end_s", Float),
    Column("page_number", Integer),
    Column("score", Float),
    Column("matched_at", Float, nullable=False),
    Column("state", String(16), nullable=False, default="waiting"),  # waiting | sent | given_up
    Column("tries", Integer, nullable=False, default=0),  # tellings that were begun; the token of the latest
    Column("not_before", Float, nullable=False),  # while it is told, the end of the lease
    Column("error", Text),
    PrimaryKeyConstraint("watch_id", "object_id"),
    Index("matches_by_object", "object_id"),
    Index("matches_to_tell", "not_before", sqlite_where=_TO_TELL, postgresql_where=_TO_TELL),
)

FACTS = Table(
    "facts",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

# With the state as a literal, not as a parameter: SQLite uses a partial index only where the statement shows its condition.
IS_LIVE = OBJECTS.c.state == literal_column("'live'")


def key_hash(key: str) -> str:
    """First 32 hex digits of the SHA-256 of a key."""
    return hashlib.sha256(key.encode("utf-8")).hexdigest()[:32]


def short_key(key: str) -> str:
    """Return a key that fits an index row: itself, or its beginning and its hash, longer than any that is kept whole.

    Deliberately not the hash alone: a page of a listing holds neighbours, and their index entries are neighbours, too.
    Scattered over the index, a million objects cost a third more (2026-11).
    """
    raw = key.encode("utf-8")
    if len(raw) <= _MAX_KEPT_BYTES:
        return key
    return f"{raw[:_MAX_KEPT_BYTES].decode('utf-8', 'ignore')}~{key_hash(key)}"

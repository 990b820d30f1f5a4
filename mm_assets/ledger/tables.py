"""The ledger's tables, as SQLAlchemy Core.

Put here: columns and indexes. Keep out: statements. Times are seconds since the epoch, UTC.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

METADATA = MetaData()

OBJECTS = Table(
    "objects",
    METADATA,
    Column("object_id", String(32), primary_key=True),
    Column("alias", String(63), nullable=False),
    Column("key", Text, nullable=False),
    Column("etag", Text, nullable=False),
    Column("version_id", Text, nullable=False, default=""),
    Column("partition_key", Text, nullable=False, unique=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("modified_at", Float, nullable=False),
    Column("place", BigInteger, nullable=False),  # order of discovery; a new version takes its predecessor's
    Column("shard", Integer, nullable=False),
    Column("state", String(16), nullable=False),  # live | superseded | gone
    Column("first_seen_at", Float, nullable=False),
    Column("seen_pass", Integer, nullable=False),
    Column("in_dagster", Boolean, nullable=False, default=False),
    Index("objects_by_key", "alias", "key"),
    Index("objects_by_shard", "shard", "state"),
    Index("objects_by_pass", "alias", "state", "seen_pass"),
)

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
    PrimaryKeyConstraint("object_id", "step", "recipe"),
    Index("work_by_state", "state", "step"),
    Index("work_by_batch", "batch_id"),
    Index("work_by_step", "step", "recipe", "state"),
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

FACTS = Table(
    "facts",
    METADATA,
    Column("name", String(63), primary_key=True),
    Column("value", Text, nullable=False),
)

"""Creating the ledger's tables, and bringing those of an earlier release up to date.

Put here: missing tables, columns and indexes, and what has to be filled into them. Keep out: what the rows mean.

Columns are only ever added. The fact ``schema`` says for which release the tables are; where it is ours, opening a
ledger writes nothing.
"""

import time

from sqlalchemy import Connection, Engine, Table, bindparam, inspect, select, text, update
from sqlalchemy.schema import CreateColumn

from mm_assets.errors import ConfigError
from mm_assets.ledger.tables import FACTS, METADATA, OBJECTS, REFUSALS, SCANS, short_key
from mm_assets.ledger.transactions import insert_into, take_turn
from mm_assets.ledger.urls import show_url
from mm_assets.ledger.versions import chunks

_SCHEMA = 5
_ROWS_AT_ONCE = 10_000


def create_tables(engine: Engine) -> None:
    """Make the tables what this release needs, unless they are; of several processes at once, one does it.

    Raises
    ------
    ConfigError
        A later release made them.
    """
    with engine.execution_options(mm_reads=True).connect() as connection:
        if _schema(connection) == _SCHEMA:
            return
    with engine.begin() as connection:
        take_turn(connection, "schema")
        if (found := _schema(connection)) == _SCHEMA:
            return
        if found > _SCHEMA:
            msg = f"the ledger at {show_url(engine.url)} was made by a later release of mm-assets; upgrade this one"
            raise ConfigError(msg)
        _upgrade(connection)
        METADATA.create_all(connection)
        fact = insert_into(connection, FACTS).values(name="schema", value=str(_SCHEMA))
        connection.execute(fact.on_conflict_do_update(index_elements=["name"], set_={"value": str(_SCHEMA)}))


def _schema(connection: Connection) -> int:
    """Return the release of the tables; 0 for none, or from before releases were noted."""
    if not inspect(connection).has_table(FACTS.name):
        return 0
    return int(connection.scalar(select(FACTS.c.value).where(FACTS.c.name == "schema")) or 0)


def _upgrade(connection: Connection) -> None:
    tables = [table for table in METADATA.sorted_tables if inspect(connection).has_table(table.name)]
    for table in tables:
        _drop_indexes(connection, table)
        _add_columns(connection, table)
    if OBJECTS in tables:
        _fill(connection)
    for table in tables:
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            index.create(connection)


def _drop_indexes(connection: Connection, table: Table) -> None:
    for found in inspect(connection).get_indexes(table.name):
        if found["name"] and not found.get("duplicates_constraint"):
            connection.execute(text(f'DROP INDEX "{found["name"]}"'))


def _add_columns(connection: Connection, table: Table) -> None:
    known = {column["name"] for column in inspect(connection).get_columns(table.name)}
    for column in table.columns:
        if column.name not in known:
            definition = CreateColumn(column).compile(dialect=connection.dialect)
            connection.execute(text(f'ALTER TABLE "{table.name}" ADD COLUMN {definition}'))


def _fill(connection: Connection) -> None:
    """Shorten the keys, and let versions that are not live be swept."""
    statement = update(OBJECTS).where(OBJECTS.c.object_id == bindparam("of")).values(short_key=bindparam("short"))
    rows = connection.execute(select(OBJECTS.c.object_id, OBJECTS.c.key).where(OBJECTS.c.short_key == "")).all()
    for part in chunks(rows, _ROWS_AT_ONCE):
        connection.execute(statement, [{"of": row.object_id, "short": short_key(row.key)} for row in part])
    left = update(OBJECTS).where(OBJECTS.c.state != "live", OBJECTS.c.left_at.is_(None))
    connection.execute(left.values(left_at=time.time()))
    _mark_refusals(connection)


def _mark_refusals(connection: Connection) -> None:
    """Let refused names count as met by the pass that is under way: when they were met was not noted before."""
    if inspect(connection).has_table(REFUSALS.name):
        under_way = select(SCANS.c.pass_number).where(SCANS.c.alias == REFUSALS.c.alias).scalar_subquery()
        unmarked = update(REFUSALS).where(REFUSALS.c.seen_pass == 0, under_way.is_not(None))
        connection.execute(unmarked.values(seen_pass=under_way))

"""The database's own clock: leases of several hosts are then compared on one. And the day by which calls are counted.

Put here: the SQL expression of the present, today's name. Keep out: the times of anything else.
"""

import time
from typing import Any

from sqlalchemy import Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class epoch_now(FunctionElement[float]):  # noqa: N801  named like SQLAlchemy's functions
    """Seconds since the epoch, by the database's clock, as it is at this statement."""

    type = Float()
    inherit_cache = True


@compiles(epoch_now, "sqlite")
def _sqlite(_element: Any, _compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(epoch_now, "postgresql")
def _postgresql(_element: Any, _compiler: Any, **_: Any) -> str:
    return "extract(epoch from clock_timestamp())::float8"


def gmt_day() -> str:
    """Name today in GMT, ``2026-01-31``: daily caps and their counters begin anew at 00:00 GMT."""
    return time.strftime("%Y-%m-%d", time.gmtime())

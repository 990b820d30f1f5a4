"""The database's URL as people may see it.

Put here: what of a URL is a secret. Keep out: connecting.
"""

import re

from sqlalchemy.engine import URL

_MASK = "***"
# Parameters of the drivers that hold a secret, or say where one lies: password, passfile, sslpassword, sslkey, …
_SECRET = re.compile("pass|pwd|secret|token|key|dsn", re.IGNORECASE)


def show_url(url: URL) -> str:
    """Return the URL for messages and logs: passwords and secret parameters are masked."""
    masked = url.update_query_dict({name: _MASK for name in url.query if _SECRET.search(name)})
    return masked.render_as_string(hide_password=True).replace("%2A%2A%2A", _MASK)

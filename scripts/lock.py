"""Write ``requirements.lock``: the exact versions installed here of all that this project needs, and of nothing else.

Run by a person after an upgrade (``make lock``). Versions only, no addresses: any index that serves them will do.
"""

import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("objects", "cluster", "lance", "qdrant", "oidc", "notebook", "dev")
LOCK = Path(__file__).parents[1] / "requirements.lock"


def closure(name: str, extras: frozenset[str], found: dict[str, str]) -> None:
    """Add a distribution and all that it needs here."""
    installed = distribution(name)
    found[canonicalize_name(name)] = installed.version
    for text in installed.requires or []:
        needed = Requirement(text)
        applies = any(needed.marker.evaluate({"extra": extra}) for extra in (*extras, "")) if needed.marker else True
        key = (canonicalize_name(needed.name), frozenset(needed.extras))
        if applies and key not in _SEEN:
            _SEEN.add(key)
            closure(needed.name, frozenset(needed.extras), found)


_SEEN: set[tuple[str, frozenset[str]]] = set()


def main() -> int:
    """Write the lock file."""
    found: dict[str, str] = {}
    closure("mm-assets", frozenset(EXTRAS), found)
    found.pop("mm-assets")
    lines = ["# Written by `make lock`: versions that work together, tested on Linux x86-64 with Python 3.11.", ""]
    lines += [f"{name}=={version}" for name, version in sorted(found.items())]
    LOCK.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(found)} packages in {LOCK.name}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

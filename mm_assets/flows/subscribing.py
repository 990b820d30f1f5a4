"""Adding a watch: what can be asked for, and what is refused.

Put here: checks of a new watch, its secret, its first vector. Keep out: matching and telling.
"""

import re
import secrets
import shlex
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mm_assets.errors import ConfigError
from mm_assets.flows.standing import STEPS, WORD_KINDS, encode, why_stale
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import Watch
from mm_assets.retrieval import Question
from mm_assets.texts import parse_question

MAX_PICTURE_BYTES = 10 << 20  # it is kept in the ledger, for the day when another model encodes it
_MIN_SECRET_CHARS = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")


@dataclass(frozen=True, slots=True)
class Wish:
    """A watch as a person asks for it; of the five questions one is given, of the two actions one.

    Attributes
    ----------
    secret : of the webhook's signature; None for one that is made up
    """

    name: str
    text: str | None = None
    image: Path | None = None
    face: Path | None = None
    said: str | None = None
    shown: str | None = None
    threshold: float | None = None
    webhook: str | None = None
    command: str | None = None
    secret: str | None = None


def subscribe(workspace: Workspace, wish: Wish) -> Watch:
    """Add a watch; from the next batch on, new objects are put to it.

    Raises
    ------
    ConfigError
        It cannot be asked for like this; says what to write instead.
    """
    kind, question, picture = _question_of(wish)
    _check_name(workspace, wish.name)
    _check_threshold(kind, wish.threshold)
    _check_action(wish)
    watch = Watch(
        uuid.uuid4().hex,
        wish.name,
        kind,
        question,
        wish.threshold,
        wish.webhook,
        (wish.secret or secrets.token_urlsafe(32)) if wish.webhook else None,
        wish.command,
        recipe="" if kind in WORD_KINDS else workspace.recipes.get(STEPS[kind][0], ""),
    )
    if (why := why_stale(workspace, watch)) is not None:
        msg = f"{why}, so nothing would ever match; add it to `steps` of a source"
        raise ConfigError(msg)
    if kind not in WORD_KINDS:
        watch = replace(watch, vector=encode(workspace, kind, question, picture))
    if not workspace.ledger.watches.add(watch, picture):
        raise ConfigError(_taken(wish.name))
    return watch


def _question_of(wish: Wish) -> tuple[str, str, bytes | None]:
    """Return kind, question and, of a picture, its bytes."""
    given: dict[str, Any] = {kind: getattr(wish, kind) for kind in STEPS if getattr(wish, kind)}
    if len(given) != 1:
        msg = "give one of --text, --image, --face, --said and --shown; another watch can ask for another thing"
        raise ConfigError(msg)
    [(kind, asked)] = given.items()
    if isinstance(asked, Path):
        name = asked.name.encode("utf-8", "backslashreplace").decode()  # a file's name may be no text
        return kind, name, _read_picture(asked)
    question: str = getattr(Question(**given), kind)
    if kind in WORD_KINDS:
        parse_question(question)
    return kind, question, None


def _read_picture(path: Path) -> bytes:
    if path.stat().st_size > MAX_PICTURE_BYTES:
        msg = f"{path} has over {MAX_PICTURE_BYTES >> 20} MiB, and would be kept in the ledger; give a smaller picture"
        raise ConfigError(msg)
    return path.read_bytes()


def _check_name(workspace: Workspace, name: str) -> None:
    if not _NAME.fullmatch(name):
        msg = f"{name!r} is no name of a watch: 1 to 48 letters, digits, dots, dashes and underscores, none of these first"
        raise ConfigError(msg)
    if workspace.ledger.watches.find(name) is not None:
        raise ConfigError(_taken(name))


def _taken(name: str) -> str:
    return f"there is a watch {name!r}; choose another name, or `mm watch remove {name}` first"


def _check_threshold(kind: str, threshold: float | None) -> None:
    if kind in WORD_KINDS and threshold is not None:
        msg = "words stand in a text or not, so there is no threshold for them"
        raise ConfigError(msg)
    if threshold is not None and not -1 <= threshold <= 1:
        msg = f"--threshold is a cosine, -1…1, not {threshold:g}"
        raise ConfigError(msg)
    if kind not in WORD_KINDS and threshold is None:
        msg = (
            "give --threshold, the cosine (-1…1) from which on an object matches: it depends on the model, so look what "
            f"hits and misses have now: mm search {'TEXT' if kind == 'text' else f'--{kind} FILE'} --explain"
        )
        raise ConfigError(msg)


def _check_action(wish: Wish) -> None:
    if (wish.webhook is None) == (wish.command is None):
        msg = "give either --webhook URL or --command PROGRAM"
        raise ConfigError(msg)
    if wish.webhook is not None:
        _check_url(wish.webhook)
    elif not _words(wish.command or ""):
        msg = f"{wish.command!r} is no command: write a program and its arguments, as for a shell, with quotes in pairs"
        raise ConfigError(msg)
    if wish.secret is not None and (wish.webhook is None or not _is_secret(wish.secret)):
        msg = f"a secret belongs to a webhook, and has {_MIN_SECRET_CHARS} characters of ASCII or more"
        raise ConfigError(msg)


def _is_secret(text: str) -> bool:
    return len(text) >= _MIN_SECRET_CHARS and text.isascii() and text.isprintable()


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_right = (
            url.isascii()
            and url.isprintable()
            and " " not in url
            and parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and (parts.port or 1) > 0
        )
    except ValueError:
        is_right = False
    if not is_right or parts.username is not None:
        msg = f"{url!r} is no address of a webhook: write https://HOST/PATH, without a user; the signature says who we are"
        raise ConfigError(msg)


def _words(command: str) -> list[str]:
    try:
        command.encode("utf-8")
        return shlex.split(command)
    except ValueError:
        return []

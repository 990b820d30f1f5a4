"""A PostgreSQL server of the tests' own, on a Unix socket in a temporary folder.

Put here: starting and stopping the server, fresh databases in it. Keep out: tests.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from mm_assets.media.sandbox import die_with

MISSING = "PostgreSQL is not installed: `scripts/install_programs.sh postgresql` installs it (Debian: apt-get install postgresql)"
_INSTALLED = Path("/usr/lib/postgresql")
_START_S, _STOP_S = 60, 30
_USER = "mm_assets"
# Data lie in memory or are thrown away, so no write needs to reach a disk.
_CARELESS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
_SETTINGS = ("listen_addresses=", "max_connections=300", "shared_buffers=64MB", "log_min_messages=warning")


class PostgresMissingError(Exception):
    """There are no server binaries; says what installs them."""

    def __init__(self) -> None:
        super().__init__(MISSING)


@dataclass(frozen=True)
class _Server:
    """Where the binaries and the files of one server are, and who runs it."""

    binaries: Path
    folder: Path
    owner: pwd.struct_passwd

    @property
    def url(self) -> str:
        """URL of the database that is always there."""
        return f"postgresql+psycopg2://{_USER}@/postgres?host={self.folder}"

    def identity(self) -> dict[str, Any]:
        """Arguments of ``subprocess`` that make a process the owner's: the server refuses to run as root."""
        home: dict[str, Any] = {"cwd": self.folder, "env": {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}}
        if os.geteuid() != 0:
            return home
        return home | {"user": self.owner.pw_uid, "group": self.owner.pw_gid, "extra_groups": []}

    def initialise(self) -> None:
        """Make the cluster; texts sort as a language does where possible, as they do in most real clusters."""
        command = [str(self.binaries / "initdb"), "-D", "data", "-U", _USER, "-A", "trust", "-E", "UTF8", "--no-sync"]
        about = subprocess.run([command[0], "--help"], check=True, capture_output=True, text=True, **self.identity())
        if "--icu-locale" in about.stdout:
            command += ["--locale-provider=icu", "--icu-locale=en"]
        made = subprocess.run(command, check=False, capture_output=True, text=True, **self.identity())
        assert made.returncode == 0, f"initdb failed:\n{made.stdout}{made.stderr}"

    def start(self, settings: tuple[str, ...]) -> "subprocess.Popen[bytes]":
        """Start the server; its log lies beside the data."""
        options = [word for setting in settings for word in ("-c", setting)]
        command = [str(self.binaries / "postgres"), "-D", "data", "-k", str(self.folder), *options]
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the tests: their last statements need the server
                preexec_fn=partial(die_with, os.getpid()),  # noqa: PLW1509  no server outlives a killed test run
                **self.identity(),
            )

    def wait(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait until the server answers."""
        end = time.monotonic() + _START_S
        while not _answers(self.url):
            log = (self.folder / "log").read_text(encoding="utf-8", errors="replace")
            assert process.poll() is None, f"PostgreSQL did not start:\n{log}"
            assert time.monotonic() < end, f"PostgreSQL did not answer in {_START_S} s:\n{log}"
            time.sleep(0.05)


def find_binaries() -> Path:
    """Return the folder of the newest server binaries.

    Raises
    ------
    PostgresMissingError
        There are none.
    """
    installed = [path.parent for path in _INSTALLED.glob("*/bin/postgres")]
    if installed:
        return max(installed, key=lambda path: float(path.parent.name))
    found = shutil.which("postgres")
    if found is None or shutil.which("initdb") is None:
        raise PostgresMissingError
    return Path(found).parent


@contextmanager
def postgres_server(*, careless: bool = True) -> Iterator[str]:
    """Run a server; yields the SQLAlchemy URL of a database in it, from which ``fresh_database`` makes others.

    Parameters
    ----------
    careless : writes need not survive a crash of the machine; False is for measurements

    Raises
    ------
    PostgresMissingError
        The server is not installed.
    """
    binaries = find_binaries()
    with tempfile.TemporaryDirectory(prefix="mm-postgres-") as folder:
        server = _Server(binaries, Path(folder), _owner())
        os.chown(folder, server.owner.pw_uid, server.owner.pw_gid)
        server.initialise()
        process = server.start(_SETTINGS + (_CARELESS if careless else ()))
        try:
            server.wait(process)
            yield server.url
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(_STOP_S)


@contextmanager
def fresh_database(url: str) -> Iterator[str]:
    """Make an empty database in the server of ``url``; yields its URL; dropped at the end, whoever still uses it."""
    name = f"ledger_{uuid.uuid4().hex[:12]}"
    _execute(url, f"CREATE DATABASE {name}")
    try:
        yield make_url(url).set(database=name).render_as_string(hide_password=False)
    finally:
        _execute(url, f"DROP DATABASE {name} WITH (FORCE)")


def empty_database(url: str) -> None:
    """Drop all tables of a database."""
    _execute(url, "DROP SCHEMA public CASCADE")
    _execute(url, "CREATE SCHEMA public")


def _execute(url: str, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(statement))


def _answers(url: str) -> bool:
    try:
        _execute(url, "SELECT 1")
    except OperationalError:
        return False
    return True


def _owner() -> pwd.struct_passwd:
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    names = {user.pw_name for user in pwd.getpwall()}
    return pwd.getpwnam("postgres" if "postgres" in names else "nobody")

#!/usr/bin/env python
"""Plants bugs in the protocol, one at a time, and sees whether a test notices.

    scripts/mutations.py                # all
    scripts/mutations.py no_fencing     # some

Each bug is a change of text in a copy of the package, so that the checkout is never touched. A bug that no test
notices survives, and the check fails; so does a change whose old text is no longer in the package.

Put here: the bugs, and which tests must notice them. Keep out: the tests.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("mm_assets", "jobs", "sensors", "tests", "scripts/world", "pyproject.toml")
_TIMEOUT_S = 600
_NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc", "snapshots")


@dataclass(frozen=True)
class Mutation:
    """A bug.

    Attributes
    ----------
    file : below the package's root
    old, new : the text that is replaced; must be there exactly once
    tests : what ``pytest`` is given; at least one of them must fail
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _kills(text: str, test: str = "commit_point") -> tuple[str, ...]:
    return ("tests/faults/test_kills.py", "-k", f"{test} and {text}")


MUTATIONS = (
    Mutation(
        "commit_before_data",
        "mm_assets/flows/extracting.py",
        "    key = workspace.lake.write_result(step, recipe, object_id, table, described)\n",
        "    early = ends.to_finished(prepared.claim, ends.done(step, table.num_rows, '', 0.0))\n"
        "    workspace.ledger.work.finish([early])\n"
        "    key = workspace.lake.write_result(step, recipe, object_id, table, described)\n",
        _kills("before and write_result"),
    ),
    Mutation(
        "dead_before_record",
        "mm_assets/flows/ends.py",
        "    dead_letters.write_record(workspace, claim, step, error.reason, message, tries=tries, stage=stage)\n",
        '    early = StepEnd(step, "dead", str(error.reason), message)\n'
        "    workspace.ledger.work.finish([to_finished(claim, early)])\n"
        "    dead_letters.write_record(workspace, claim, step, error.reason, message, tries=tries, stage=stage)\n",
        _kills("before and write_dead_letter"),
    ),
    Mutation(
        "cursor_before_rows",
        "mm_assets/ledger/objects.py",
        "            row = lock_scan(connection, alias, at)\n"
        "            delta = upsert(connection, alias, seen, row.pass_number, shard_objects)\n"
        '            moved = {"after": row.after if after is None else after, "pages": row.pages + 1}\n'
        "            set_scan(connection, alias, n_seen=row.n_seen + len(seen), **moved, **calls_today(row, n_calls))\n"
        "        return delta\n",
        "            row = lock_scan(connection, alias, at)\n"
        '            moved = {"after": row.after if after is None else after, "pages": row.pages + 1}\n'
        "            set_scan(connection, alias, n_seen=row.n_seen + len(seen), **moved, **calls_today(row, n_calls))\n"
        "        with self._engine.begin() as connection:\n"
        "            return upsert(connection, alias, seen, row.pass_number, shard_objects)\n",
        ("tests/faults/test_orders.py", "-k", "cursor"),
    ),
    Mutation(
        "acknowledge_before_commit",
        "mm_assets/server/receivers.py",
        "        await asyncio.wait_for(asyncio.wrap_future(stored), _ANSWER_WITHIN_S)\n",
        "        stored.add_done_callback(lambda _: None)\n",
        ("tests/faults/test_events.py", "-k", "means_503"),
    ),
    Mutation(
        "settle_before_upsert",
        "mm_assets/ledger/objects.py",
        "            row = lock_scan(connection, alias)\n"
        "            delta = upsert(connection, alias, seen, row.pass_number, shard_objects)\n"
        "            inbox.settle(connection, settled)\n"
        "        return delta\n",
        "            row = lock_scan(connection, alias)\n"
        "            inbox.settle(connection, settled)\n"
        "        with self._engine.begin() as connection:\n"
        "            return upsert(connection, alias, seen, row.pass_number, shard_objects)\n",
        ("tests/faults/test_orders.py", "-k", "hint and record_hinted"),
    ),
    Mutation(
        "settle_before_retire",
        "mm_assets/ledger/objects.py",
        '            n = leave(connection, object_ids, "gone", OBJECTS.c.alias == alias)\n'
        "            set_scan(connection, alias, n_gone_by_event=row.n_gone_by_event + n)\n"
        "            inbox.settle(connection, settled)\n",
        "            inbox.settle(connection, settled)\n"
        "        with self._engine.begin() as connection:\n"
        '            n = leave(connection, object_ids, "gone", OBJECTS.c.alias == alias)\n'
        "            set_scan(connection, alias, n_gone_by_event=row.n_gone_by_event + n)\n",
        ("tests/faults/test_orders.py", "-k", "hint and retire"),
    ),
    Mutation(
        "no_fencing",
        "mm_assets/ledger/work.py",
        '    return row is not None and row.state == "claimed" and row.token == end.token\n',
        '    return row is not None and row.state == "claimed"\n',
        ("tests/faults/test_orders.py", "-k", "late_end"),
    ),
    Mutation(
        "one_counter",
        "mm_assets/ledger/work.py",
        '            counters = {"claims": WORK.c.claims + 1, "token": WORK.c.token + 1}\n',
        '            counters = {"claims": WORK.c.claims + 1, "token": WORK.c.token + 1, "tries": WORK.c.tries + 1}\n',
        ("tests/faults/test_kills.py", "-k", "container and moto"),
    ),
    Mutation(
        "no_claim_budget",
        "mm_assets/flows/processing.py",
        "lease_s=runs.lease_s, max_claims=runs.max_claims)\n    work.release_batches",
        "lease_s=runs.lease_s, max_claims=10**6)\n    work.release_batches",
        ("tests/faults/test_kills.py", "-k", "kills_its_worker and moto"),
    ),
    Mutation(
        "no_wrap",
        "mm_assets/ledger/objects.py",
        '            ended = {"after": "", "pass_number"',
        '            ended = {"after": row.after, "pass_number"',
        ("tests/faults/test_listings.py", "-k", "behind_the_cursor and moto-sqlite"),
    ),
    Mutation(
        "no_brake",
        "mm_assets/flows/discovery.py",
        "    if not n_missing or scan.deletions_confirmed:\n",
        "    if True:\n",
        ("tests/faults/test_orders.py", "-k", "mass_deletion and moto"),
    ),
    Mutation(
        "publish_without_token",
        "mm_assets/ledger/catalog.py",
        "            is_ours = token is None or keeps_lock(connection, PUBLISH_LOCK, token)\n",
        "            is_ours = True\n",
        ("tests/test_publishing.py", "-k", "overtaken"),
    ),
    Mutation(
        "forget_before_files",
        "mm_assets/flows/removing.py",
        "            _settle(workspace, receipts.intend(workspace, _files_of(workspace, part, unknown, in_lake)), swept)\n"
        "            came_back = workspace.ledger.removals.forget([known.object_id for known in part])\n",
        "            removals = _files_of(workspace, part, unknown, in_lake)\n"
        "            came_back = workspace.ledger.removals.forget([known.object_id for known in part])\n"
        "            _settle(workspace, receipts.intend(workspace, removals), swept)\n",
        _kills("forget", "while_changes"),
    ),
    Mutation(
        "pointer_before_build",
        "mm_assets/flows/refreshing.py",
        "    workspace.lake.write_generation(name, manifest, files)\n    _point(workspace, name, manifest)\n",
        "    _point(workspace, name, manifest)\n    workspace.lake.write_generation(name, manifest, files)\n",
        _kills("before and write_generation"),
    ),
    Mutation(
        "two_listers",
        "mm_assets/ledger/locks.py",
        "                    where=or_(LOCKS.c.expires_at <= epoch_now(), LOCKS.c.owner == instead_of),\n",
        "                    where=or_(LOCKS.c.expires_at >= 0, LOCKS.c.owner == instead_of),\n",
        ("tests/faults/test_locks.py", "-k", "moto-sqlite"),
    ),
    Mutation(
        "lease_by_own_clock",
        "mm_assets/ledger/work.py",
        'WORK.c.state == "claimed", WORK.c.lease_until < epoch_now()), 0)',
        'WORK.c.state == "claimed", WORK.c.lease_until < time.time()), 0)',
        ("tests/faults/test_machines.py", "-k", "clock_jumps and forth and moto"),
    ),
    Mutation(
        "outage_is_a_try",
        "mm_assets/flows/ends.py",
        'return StepEnd(step, "wanted", reason=reason, error=_storable(str(error)), retry_after_s=wait_s)',
        'return StepEnd(step, "wanted", reason, _storable(str(error)), counts_as_try=True, retry_after_s=wait_s)',
        ("tests/faults/test_reads.py", "-k", "deleted_before_its_get and moto-sqlite"),
    ),
    Mutation(
        "no_digest",
        "mm_assets/buckets/s3.py",
        "        if md5 == etag.lower():\n",
        "        if md5:\n",
        ("tests/faults/test_reads.py", "-k", "damaged_body and one_bit"),
    ),
    Mutation(
        "no_retry_after",
        "mm_assets/buckets/retry.py",
        "wait_s = max(error.retry_after_s, self._backoff_s(n_failed))",
        "wait_s = self._backoff_s(n_failed)",
        ("tests/faults/test_services.py", "-k", "throttling and moto-sqlite"),
    ),
)


class StaleMutationError(Exception):
    """The text that a mutation replaces is not in the package, or more than once."""


def plant(mutation: Mutation, folder: Path) -> None:
    """Copy the package and put the bug into the copy."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=_NOT_COPIED)
        else:
            shutil.copyfile(source, target)
    file = folder / mutation.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        msg = f"{mutation.name}: its text is {text.count(mutation.old)} times in {mutation.file}, not once"
        raise StaleMutationError(msg)
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")


def run_tests(tests: Sequence[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run tests in the copy, whose package comes before the installed one."""
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-q", "-x", *tests]
    surroundings = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )


def judge(mutation: Mutation) -> tuple[str, float]:
    """Return caught | SURVIVED | STALE | NO TEST RAN, and seconds."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        try:
            plant(mutation, Path(name))
        except StaleMutationError as error:
            print(error, file=sys.stderr)
            return "STALE", 0.0
        done = run_tests(mutation.tests, Path(name))
    outcomes = {0: "SURVIVED", 1: "caught"}  # pytest's codes; others: nothing was collected, or it could not start
    if done.returncode not in outcomes:
        print(done.stdout[-2_000:], done.stderr[-2_000:], file=sys.stderr)
    return outcomes.get(done.returncode, "NO TEST RAN"), time.monotonic() - started


def main() -> int:
    """Judge the mutations that were asked for and print a table; 1 where one was not caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    names = parser.parse_args().names
    unknown = set(names) - {mutation.name for mutation in MUTATIONS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    verdicts = []
    print(f"{'mutation':<28} {'outcome':<12} {'seconds':>7}")
    for mutation in MUTATIONS:
        if not names or mutation.name in names:
            verdict, seconds = judge(mutation)
            verdicts.append(verdict)
            print(f"{mutation.name:<28} {verdict:<12} {seconds:>7.1f}", flush=True)
    n_missed = sum(verdict != "caught" for verdict in verdicts)
    print(f"{len(verdicts) - n_missed} of {len(verdicts)} caught")
    return int(n_missed > 0)


if __name__ == "__main__":
    sys.exit(main())

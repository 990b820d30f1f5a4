"""From a claimed object version to its segments in a local file: download, decode in a guarded child, commit.

Put here: the two decoding steps, run ahead of the models in threads. Keep out: the models.

Each object is read once from its source whatever the number of steps: everything later reads its segments.
"""

import queue
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mm_assets import segmentation
from mm_assets.buckets.base import DailyCapError, Download, ObjectChangedError, ObjectNotFoundError
from mm_assets.errors import ConfigError, ObjectError, Reason, ServiceError
from mm_assets.flows import ends
from mm_assets.flows.ends import StepEnd
from mm_assets.flows.recipes import DECODING_STEPS, provenance
from mm_assets.flows.workspace import Workspace
from mm_assets.lake import open_parquet
from mm_assets.ledger import FORBIDDEN, SEGMENTS_DEAD, Claim
from mm_assets.media.guard import DecodedMedia, MediaWorker
from mm_assets.media.segments import MediaFacts
from mm_assets.media.sniff import MediaType, sniff
from mm_assets.schemas import TABLES

_ROWS_AT_ONCE = 64
_AHEAD = 2  # prepared objects that may wait for the models, beyond those being decoded


@dataclass
class Prepared:
    """One object version whose segments lie in a local Parquet file.

    Attributes
    ----------
    segments : None when there are none: the object is unsupported, broken, gone, or all its work is over
    is_adopted : its segments were found in the lake; results of other steps may be there as well
    stage : how far reading it came, for who asks where it failed: download or decode
    ends : the ends of the steps that are over
    """

    claim: Claim
    folder: Path
    segments: Path | None = None
    n_segments: int = 0
    is_adopted: bool = False
    stage: str = "download"
    ends: list[StepEnd] = field(default_factory=list)

    @property
    def open_steps(self) -> list[str]:
        """Steps of the claim that have no end yet."""
        over = {end.step for end in self.ends}
        return [step for step in self.claim.steps if step not in over]

    def end_all(self, make: Callable[[str], StepEnd]) -> None:
        """End all open steps in the same way; ``make`` maps a step to its end."""
        self.ends += [make(step) for step in self.open_steps]

    def discard(self) -> None:
        """Remove the local files."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _PutOffError(Exception):
    """A source, a decoder or this disk does not do its part: the object waits, and it burns no try."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s


@contextmanager
def _no_fault_of_the_object() -> Iterator[None]:
    """Put an object off when a service fails; what the lake does not take is not caught here and stops the run."""
    try:
        yield
    except DailyCapError as error:
        raise _PutOffError(reason="daily_cap", wait_s=max(0.0, error.resets_at - time.time())) from error
    except (ServiceError, OSError) as error:
        raise _PutOffError(reason="service") from error
    except ConfigError as error:  # of this object alone: the stores were looked at before any work
        raise _PutOffError(reason=FORBIDDEN) from error


class Preparer:
    """Prepares claims in threads, one decoding child each, a bounded number ahead of the reader."""

    def __init__(self, workspace: Workspace, scratch: Path, *, workers: int, adopt: bool) -> None:
        self._adopts = adopt
        self._workspace = workspace
        self._scratch = scratch
        self._workers: queue.SimpleQueue[MediaWorker] = queue.SimpleQueue()
        self._made: list[MediaWorker] = []
        self._capped: dict[str, DailyCapError] = {}
        for _ in range(workers):
            worker = MediaWorker(workspace.settings.media)
            self._made.append(worker)
            self._workers.put(worker)

    def close(self) -> None:
        """End the decoding children."""
        for worker in self._made:
            worker.close()

    def run(self, claims: Sequence[Claim]) -> Iterator[Prepared]:
        """Yield the prepared objects in the order of the claims."""
        waiting = deque(claims)
        running: deque[Future[Prepared]] = deque()
        pool = ThreadPoolExecutor(len(self._made), thread_name_prefix="prepare")
        try:
            while waiting or running:
                while waiting and len(running) < len(self._made) + _AHEAD:
                    running.append(pool.submit(self._prepare, waiting.popleft()))
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
            self.close()  # ends what is being decoded
            pool.shutdown(wait=True)
            self.close()  # a thread between two steps may have started a child anew

    def _prepare(self, claim: Claim) -> Prepared:
        prepared = Prepared(claim, self._scratch / claim.known.object_id)
        try:
            self._fill(prepared)
        except _PutOffError as put_off:
            reason, error, wait_s = put_off.reason, put_off.__cause__, put_off.wait_s
            prepared.end_all(lambda step: ends.interrupted(step, reason, error, wait_s))
        except ObjectError as error:
            self._blame(prepared, error)
        except (ObjectNotFoundError, ObjectChangedError) as error:
            message = f"the object is gone or was overwritten; the next listing decides ({error})"
            prepared.end_all(lambda step: ends.interrupted(step, "changed", message))
        return prepared

    def _fill(self, prepared: Prepared) -> None:
        with _no_fault_of_the_object():
            prepared.folder.mkdir(mode=0o700, exist_ok=True)
        if not set(DECODING_STEPS) & set(prepared.claim.steps):
            self._reuse(prepared)
        elif not self._adopt(prepared):
            self._read(prepared)

    def _adopt(self, prepared: Prepared) -> bool:
        """Keep results that are in the lake although the ledger does not know: its run died, or it was wiped."""
        claim, lake = prepared.claim, self._workspace.lake
        if not self._adopts or not set(DECODING_STEPS) <= set(claim.steps):
            return False
        with _no_fault_of_the_object():
            is_there = all(lake.has_result(s, claim.steps[s], claim.known.object_id) for s in DECODING_STEPS)
        if not is_there or not self._fetch(prepared):
            return False
        prepared.is_adopted = True
        for step in DECODING_STEPS:
            key = lake.result_key(step, claim.steps[step], claim.known.object_id)
            rows = 1 if step == "raw_objects" else prepared.n_segments
            prepared.ends.append(ends.done(step, rows, key, 0.0, is_new=False))
        return True

    def _reuse(self, prepared: Prepared) -> None:
        """Take the segments of an earlier run; where they never will be, the other steps end as well."""
        object_id, recipe = prepared.claim.known.object_id, self._workspace.recipes["segments"]
        rows = {r["step"]: r for r in self._workspace.ledger.work.states(object_id) if r["recipe"] == recipe}
        found = rows.get("segments", {"state": "wanted", "reason": None})
        if found["state"] in {"dead", "skipped"}:
            reason = SEGMENTS_DEAD if found["state"] == "dead" else str(found["reason"])
            prepared.end_all(lambda step: ends.skipped(step, reason))
        elif not self._has_segments(object_id, recipe) or not self._fetch(prepared):
            self._workspace.ledger.work.want_again("segments", recipe, [object_id])
            message = "the segments are not in the lake (any more), or damaged; they are made first"
            prepared.end_all(lambda step: ends.interrupted(step, "waits_for_segments", message))

    def _has_segments(self, object_id: str, recipe: str) -> bool:
        with _no_fault_of_the_object():
            return self._workspace.lake.has_result("segments", recipe, object_id)

    def _fetch(self, prepared: Prepared) -> bool:
        """Bring the segments of an earlier run; returns False where they cannot be read.

        Pictures and sound stay in the lake where no step of the claim reads them.
        """
        recipe = self._workspace.recipes["segments"]
        if not self._needs_media(prepared.claim):
            return self._fetch_small(prepared, recipe)
        file = prepared.folder / "segments.parquet"
        with _no_fault_of_the_object():
            self._workspace.lake.fetch_result("segments", recipe, prepared.claim.known.object_id, file)
        try:
            for _ in pq.ParquetFile(file).iter_batches(_ROWS_AT_ONCE):
                pass  # a damaged page would otherwise end the run each time the models came to it
            self._hold(prepared, file)
        except (pa.ArrowException, OSError):  # pyarrow raises the one or the other
            file.unlink()
            return False
        return True

    def _needs_media(self, claim: Claim) -> bool:
        """Whether a step of a claim reads pictures or sound."""
        extractors = [self._workspace.extractors.get(step) for step in claim.steps]
        private = TABLES["segments"].private
        return any(extractor is None or private & set(extractor.columns) for extractor in extractors)

    def _fetch_small(self, prepared: Prepared, recipe: str) -> bool:
        """Bring the columns of segments that are no media."""
        schema, object_id = TABLES["segments"].published_schema(), prepared.claim.known.object_id
        with _no_fault_of_the_object():
            [rows] = self._workspace.lake.read_results("segments", [(recipe, object_id)], schema.names)
            if rows is None:
                return False
            file = prepared.folder / "segments.parquet"
            pq.write_table(rows, file)
        self._hold(prepared, file)
        return True

    @staticmethod
    def _hold(prepared: Prepared, file: Path) -> None:
        prepared.n_segments = pq.read_metadata(file).num_rows
        prepared.segments = file

    def _read(self, prepared: Prepared) -> None:
        """Download once, decode, commit both results."""
        claim, started = prepared.claim, time.monotonic()
        source = self._workspace.settings.source(claim.known.version.alias)
        if claim.known.size_bytes > source.max_object_bytes:
            prepared.end_all(lambda step: ends.skipped(step, str(Reason.TOO_LARGE)))
            return
        file = prepared.folder / f"{claim.known.object_id}.bin"
        with _no_fault_of_the_object():
            download, media = self._download(claim, file)
        if claim.known.size_bytes and media is None:
            self._commit_raw(prepared, download, None, None, started)
            prepared.end_all(lambda step: ends.skipped(step, str(Reason.UNSUPPORTED)))
            return
        prepared.stage = "decode"
        try:
            with _no_fault_of_the_object():
                decoded = self._decode(file, prepared.folder, media)
        except ObjectError as error:
            if self._give_up(prepared, error):
                self._commit_raw(prepared, download, media, None, started)
            return
        finally:
            file.unlink(missing_ok=True)
        self._commit_raw(prepared, download, media, decoded.facts, started)
        self._commit_segments(prepared, decoded, started)

    def _download(self, claim: Claim, file: Path) -> tuple[Download, MediaType | None]:
        """Read the object from its source; a cap that is used up pauses the source, which is then not asked again."""
        version = claim.known.version
        if version.alias in self._capped:
            raise self._capped[version.alias]
        seen: list[MediaType | None] = []

        def accept(head: bytes) -> bool:
            seen.append(sniff(head))
            return seen[-1] is not None

        store = self._workspace.sources[version.alias]
        try:
            download = store.download(version.key, file, etag=version.etag, accept=accept)
        except DailyCapError as error:
            self._capped[version.alias] = error
            self._workspace.ledger.objects.pause(version.alias, error.resets_at, str(error))
            raise
        return download, seen[-1] if seen else None

    def _decode(self, file: Path, folder: Path, media: MediaType | None) -> DecodedMedia:
        if media is None:
            raise ObjectError(Reason.CORRUPT, "the object is empty (0 bytes)")
        worker = self._workers.get()
        try:
            return worker.decode(file, folder)
        finally:
            self._workers.put(worker)

    def _commit_raw(
        self, prepared: Prepared, download: Download, media: MediaType | None, facts: MediaFacts | None, started: float
    ) -> None:
        claim = prepared.claim
        if "raw_objects" not in claim.steps:
            return
        recipe = claim.steps["raw_objects"]
        row = segmentation.raw_object_row(
            claim.known.version,
            media_kind=media.kind if media else "unsupported",
            facts=facts,
            size_bytes=download.stored.size_bytes,
            modified_at=download.stored.modified_at,
            sha256=download.sha256,
            recipe=recipe,
        )
        key = self._workspace.lake.write_result(
            "raw_objects", recipe, claim.known.object_id, row, self._provenance("raw_objects", recipe)
        )
        prepared.ends.append(ends.done("raw_objects", 1, key, time.monotonic() - started))

    def _blame(self, prepared: Prepared, error: ObjectError) -> None:
        """End all open steps for a fault of the object outside its decoding."""
        if "segments" in prepared.open_steps:
            self._give_up(prepared, error)
        for step in prepared.open_steps:
            prepared.ends.append(ends.failed(self._workspace, prepared.claim, step, error, prepared.stage))

    def _give_up(self, prepared: Prepared, error: ObjectError) -> bool:
        """End the steps of an object that cannot be decoded; returns whether that is final.

        While another try is allowed, all its steps wait for it: ``raw_objects`` learns its facts from decoding.
        """
        if "segments" not in prepared.open_steps:
            return True
        end = ends.failed(self._workspace, prepared.claim, "segments", error, prepared.stage)
        prepared.ends.append(end)
        if end.state != "dead":
            wait = end.retry_after_s
            prepared.end_all(lambda step: StepEnd(step, "wanted", "waits_for_segments", retry_after_s=wait))
            return False
        for step in prepared.open_steps:
            if step != "raw_objects":
                prepared.ends.append(ends.skipped(step, SEGMENTS_DEAD))
        return True

    def _commit_segments(self, prepared: Prepared, decoded: DecodedMedia, started: float) -> None:
        claim = prepared.claim
        recipe = claim.steps.get("segments", self._workspace.recipes["segments"])
        file = prepared.folder / "segments.parquet"
        schema = TABLES["segments"].arrow_schema()
        with (
            _no_fault_of_the_object(),
            open_parquet(file, schema, self._provenance("segments", recipe)) as writer,
        ):
            for batch in segmentation.segment_batches(claim.known.version, decoded, recipe):
                writer.write_batch(batch)
        self._hold(prepared, file)
        if "segments" in claim.steps:
            key = self._workspace.lake.upload_result("segments", recipe, claim.known.object_id, file)
            prepared.ends.append(ends.done("segments", prepared.n_segments, key, time.monotonic() - started))

    def _provenance(self, step: str, recipe: str) -> dict[str, object]:
        return provenance(step, recipe, self._workspace.settings, self._workspace.extractors)

# SPDX-License-Identifier: Apache-2.0
"""Extraction: find the missing shards, hand them to the actors, and count the results."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ray_embed import planning
from ray_embed.config import RunConfig
from ray_embed.core.console import Progress
from ray_embed.encoders import artifacts
from ray_embed.errors import RayEmbedError, RunError
from ray_embed.extraction import pixels, scheduler
from ray_embed.extraction.messages import Job, JobRun, ShardResult
from ray_embed.extraction.prepare import PreparedRun
from ray_embed.extraction.work_queue import WorkQueue
from ray_embed.runtime.actors import Worker
from ray_embed.runtime.session import RunSession
from ray_embed.storage import part_files

# Byte images with no value above this are dark, or have a range such as 0 to 16. Either way, their
# features are nearly the same as for black images.
_MAX_DARK_VALUE = 31
# If more than this share of the files would be turned by their Exif orientation, warn about it.
_TURNED_SHARE = 0.001


@dataclass(frozen=True)
class Found:
    """What an earlier start of a run has finished: its shards, and the number of rejects."""

    done: part_files.FinishedShards
    rejected: int


@dataclass(frozen=True)
class Extraction:
    """What extracting came to.

    Attributes:
        speed: images per second, measured from the end of the first shard; 0 if the rest took
            hardly any time.
        failures: the errors of the runs that failed, by their position.
    """

    speed: float
    failures: dict[int, RayEmbedError]


def find_finished(prepared: PreparedRun) -> Found:
    """Find what is finished of a run.

    Raises:
        DamagedError: a part is damaged.
    """
    done = part_files.FinishedShards(prepared.folder)
    return Found(done, sum(part_files.count_rejects(prepared.folder, done).values()))


def extract_missing(
    config: RunConfig,
    runs: Sequence[PreparedRun],
    found: Sequence[Found],
    session: RunSession,
    siblings: Sequence[str] = (),
) -> Extraction:
    """Extract the shards that have no part yet, for all runs at once.

    Args:
        config: the options that all runs share.
        runs: the runs, whose folders exist and whose records are the same.
        found: what is finished of each run.
        session: the session that runs the extractors.
        siblings: the run folders of finished runs with the same records.

    Raises:
        InputError: a dataset is not repeatable, or a planned file is missing.
        RunError: an error persists after retries, or there are too many rejects. Of several runs,
            those with too many rejects or a failing encoder do not stop the others.
    """
    prepared = runs[0]
    shards = prepared.plan.shards
    left = None if shards is None else shards - min(each.done.count for each in found)
    monitors = [_RunMonitor(run, each.rejected) for run, each in zip(runs, found, strict=True)]
    failures: dict[int, RayEmbedError] = {}

    def find_runs(shard: int) -> tuple[int, ...]:
        return tuple(
            number
            for number, each in enumerate(found)
            if number not in failures and shard not in each.done
        )

    counted = set[int]()
    with Progress(prepared.plan.records) as progress:
        work = WorkQueue(
            prepared.plan.splits,
            prepared.dataset_readers,
            [run.target.uri for run in runs],
            find_runs,
            progress.skip,
        )
        list_workers = _make_worker_list(session, left)
        any_done = any(each.done.count > 0 for each in found)
        for results in scheduler.extract_all(
            list_workers(0), _make_job(runs, siblings), work, config, any_done, list_workers
        ):
            if results[0].number not in counted:
                counted.add(results[0].number)
                progress.advance(results[0].rows + sum(results[0].rejects.values()))
            for result in results:
                if result.run in failures:
                    continue
                try:
                    monitors[result.run].add(result)
                except RayEmbedError as error:
                    failures[result.run] = error
                    if len(failures) == len(runs):
                        raise
    for number, monitor in enumerate(monitors):
        if number not in failures:
            monitor.finish()
    # Actors still waiting to start have nothing to do, but could make the cluster start machines.
    session.pool.dismiss_waiting()
    for run in runs:
        _save_lengths(run, work.records)
    return Extraction(progress.reliable_rate, failures)


def _save_lengths(run: PreparedRun, records: Mapping[int, int]) -> None:
    """Save the lengths of the splits, which are known once sequential sources were read."""
    finished = run.plan
    for ordinal, length in records.items():
        finished = finished.with_records(ordinal, length)
    if finished != planning.load(run.folder):
        planning.save(run.folder, finished)


def _make_worker_list(session: RunSession, left: int | None) -> Callable[[int], list[Worker]]:
    """Return a function from the number of finished shards to the extractors still useful."""
    return lambda done: session.pool.fill(None if left is None else left - done)


def _make_job(runs: Sequence[PreparedRun], siblings: Sequence[str]) -> Job:
    return Job(
        id=uuid.uuid4().hex,
        plan=runs[0].plan,
        readers=runs[0].readers,
        runs=tuple(_make_job_run(run) for run in runs),
        siblings=tuple(siblings),
    )


def _make_job_run(prepared: PreparedRun) -> JobRun:
    config, encoder = prepared.config, artifacts.strip_contents(prepared.encoder)
    specs = tuple(pixels.make_pixel_spec(config, split, encoder) for split in prepared.plan.splits)
    owner = part_files.Owner(prepared.fingerprint, prepared.thumbnail_fingerprint)
    return JobRun(out=prepared.target.uri, owner=owner, pixels=specs, encoder=encoder)


class _RunMonitor:
    """Watches the results of a run: for failures, and for signs of wrong pixels, of which it warns.

    Args:
        prepared: the run.
        rejected: the number of rejects so far.
    """

    def __init__(self, prepared: PreparedRun, rejected: int) -> None:
        config = prepared.config
        self._config, self._encoder = config, prepared.encoder
        self._out, self._say, self._rejected = prepared.target.out, prepared.say, rejected
        decided = config.scale is not None or config.preprocess is not None
        # Images of these splits are scaled as bytes, 0 to 255, by default and not by request.
        self._bytes = {
            split.name
            for split in prepared.plan.splits
            if split.image_dtype == "uint8" and not decided
        }
        self._unseen = {split.name for split in prepared.plan.splits}
        self._records = self._turned = self._reduced = self._passed_over = 0
        self._uniform: list[bool] = []

    def add(self, shard: ShardResult) -> None:
        """Take a finished shard into account. The first shard of each split may cause warnings.

        Raises:
            RunError: the encoder failed, or there are too many rejects.
        """
        if shard.error is not None:
            raise RunError(f"shard {shard.number}: the encoder failed: {shard.error}")
        self._rejected += sum(shard.rejects.values())
        self._check_rejects()
        self._records += shard.rows
        self._turned += shard.turned
        self._reduced += shard.reduced
        self._passed_over += shard.passed_over
        if shard.rows > 1:
            self._uniform.append(shard.is_uniform)
        if shard.rows and shard.split in self._unseen:
            self._unseen.remove(shard.split)
            for text in self._warnings(shard):
                self._say(f"warning: {text}")

    def _check_rejects(self) -> None:
        allowed = self._config.max_rejects
        if allowed is not None and self._rejected > allowed:
            raise RunError(
                f"{self._rejected} records were rejected, more than --max-rejects {allowed}; see "
                f"{self._out}/rejects; to accept them, resume with a higher --max-rejects"
            )

    def _warnings(self, shard: ShardResult) -> Iterator[str]:
        if shard.split in self._bytes and shard.brightest <= _MAX_DARK_VALUE:
            yield (
                f"{shard.split}: no value in the thumbnails of {shard.rows} pictures is above "
                f"{shard.brightest}, and all are scaled as 0 to 255; if yours have another range, "
                "bring them to 0 to 255, or name a function that scales them (--preprocess)"
            )
        if shard.values is None:
            return
        low, high = shard.values
        if text := pixels.find_unit_warning(shard.split, low, high, self._config, self._encoder):
            yield text
        if not self._config.scale and not self._config.preprocess:
            self._say(
                f"{shard.split}: float images go to the encoder as they are; the first ones have "
                f"values from {low:.4g} to {high:.4g}"
            )
            if text := pixels.find_float_warning(shard.split, low, high, self._encoder):
                yield text

    def finish(self) -> None:
        """Report what only all shards together can show."""
        if self._uniform and all(self._uniform):
            self._say(
                f"warning: all {self._records} records got the same features, so the encoder "
                "makes no difference between them: does it get the pixels that it expects? See "
                "`ray-embed preview` with the same options"
            )
        if self._turned > self._records * _TURNED_SHARE and not self._config.exif_orientation:
            self._say(
                f"warning: {self._turned} of {self._records} files are to be turned by their Exif "
                "orientation, and were embedded as they are stored, as Keras loads them; give "
                "--exif-orientation if the encoder was trained on upright images"
            )
        if self._reduced:
            self._say(
                f"{self._reduced} of {self._records} images have more than 8 bits per channel and "
                "were reduced to 8; --depth 16 keeps 16"
            )
        if self._passed_over and self._config.pages == "first":
            self._say(
                f"pages or frames passed over: {self._passed_over}; --pages all makes each page "
                "of a TIFF file in a folder a record"
            )

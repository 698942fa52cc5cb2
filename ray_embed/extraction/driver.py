# SPDX-License-Identifier: Apache-2.0
"""Extraction: find the missing shards, hand them to the actors, and count the results."""

import uuid
from collections.abc import Callable, Iterator

from ray_embed import planning
from ray_embed.config import RunConfig
from ray_embed.core.console import Progress, say
from ray_embed.encoders import artifacts
from ray_embed.errors import RunError
from ray_embed.extraction import pixels, scheduler
from ray_embed.extraction.messages import Job, ShardResult
from ray_embed.extraction.prepare import PreparedRun
from ray_embed.extraction.work_queue import WorkQueue
from ray_embed.runtime.actors import Worker
from ray_embed.runtime.session import Session
from ray_embed.storage import part_files

# Byte images with no value above this are dark, or have a range such as 0 to 16. Either way, their
# features are nearly the same as for black images.
_MAX_DARK_VALUE = 31
# If more than this share of the files would be turned by their Exif orientation, warn about it.
_TURNED_SHARE = 0.001


def extract_missing(config: RunConfig, prepared: PreparedRun, session: Session) -> float:
    """Extract the shards that have no part yet.

    Args:
        config: the options of the run.
        prepared: the run, whose folder exists.
        session: the session that runs the extractors.

    Returns:
        Images per second, measured from the end of the first shard; 0 if the rest took hardly any
        time.

    Raises:
        InputError: a dataset is not repeatable, or a planned file is missing.
        RunError: an error persists after retries, or there are too many rejects.
    """
    done = part_files.FinishedShards(prepared.folder)
    shards = prepared.plan.shards
    rejected = sum(part_files.count_rejects(prepared.folder, done).values())
    left = None if shards is None else shards - done.count
    job = _make_job(config, prepared)
    watch = _ResultMonitor(config, prepared)
    with Progress(prepared.plan.records) as progress:
        work = WorkQueue(
            prepared.plan.splits,
            prepared.dataset_readers,
            prepared.target.uri,
            done.__contains__,
            progress.skip,
        )
        list_workers = _make_worker_list(session, left)
        any_done = done.count > 0
        for shard in scheduler.extract_all(
            list_workers(0), job, work, config, any_done, list_workers
        ):
            progress.advance(shard.rows + sum(shard.rejects.values()))
            rejected += sum(shard.rejects.values())
            watch.add(shard)
            _check_rejects(config, rejected, prepared.target.out)
    watch.finish()
    # Actors still waiting to start have nothing to do, but could make the cluster start machines.
    session.pool.dismiss_waiting()
    finished = prepared.plan
    for ordinal, records in work.records.items():
        finished = finished.with_records(ordinal, records)
    if finished != planning.load(prepared.folder):
        planning.save(prepared.folder, finished)
    return progress.reliable_rate


def _make_worker_list(session: Session, left: int | None) -> Callable[[int], list[Worker]]:
    """Return a function from the number of finished shards to the extractors still useful."""
    return lambda done: session.pool.fill(None if left is None else left - done)


def _make_job(config: RunConfig, prepared: PreparedRun) -> Job:
    encoder = artifacts.strip_contents(prepared.encoder)
    specs = tuple(pixels.make_pixel_spec(config, split, encoder) for split in prepared.plan.splits)
    return Job(
        id=uuid.uuid4().hex,
        out=prepared.target.uri,
        plan=prepared.plan,
        fingerprint=prepared.fingerprint,
        pixels=specs,
        readers=prepared.readers,
        encoder=encoder,
    )


def _check_rejects(config: RunConfig, rejected: int, out: str) -> None:
    if config.max_rejects is not None and rejected > config.max_rejects:
        raise RunError(
            f"{rejected} records were rejected, more than --max-rejects {config.max_rejects}; see "
            f"{out}/rejects; to accept them, resume with a higher --max-rejects"
        )


class _ResultMonitor:
    """Watches the results of the shards for signs of wrong pixels, and warns about them."""

    def __init__(self, config: RunConfig, prepared: PreparedRun) -> None:
        self._config, self._encoder = config, prepared.encoder
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
        """Take a finished shard into account. The first shard of each split may cause warnings."""
        self._records += shard.rows
        self._turned += shard.turned
        self._reduced += shard.reduced
        self._passed_over += shard.passed_over
        if shard.rows > 1:
            self._uniform.append(shard.is_uniform)
        if shard.rows and shard.split in self._unseen:
            self._unseen.remove(shard.split)
            for text in self._warnings(shard):
                say(f"warning: {text}")

    def _warnings(self, shard: ShardResult) -> Iterator[str]:
        if shard.split in self._bytes and shard.brightest <= _MAX_DARK_VALUE:
            yield (
                f"{shard.split}: no value in the thumbnails of {shard.rows} pictures is above "
                f"{shard.brightest}, and all are scaled as 0 to 255; if yours have another range, "
                "bring them to 0 to 255, or name a function that scales them (--preprocess)"
            )
        if shard.values is not None and not self._config.scale and not self._config.preprocess:
            say(
                f"{shard.split}: float images go to the encoder as they are; the first ones have "
                f"values from {shard.values[0]:.4g} to {shard.values[1]:.4g}"
            )
            if text := pixels.find_float_warning(shard.split, *shard.values, self._encoder):
                yield text

    def finish(self) -> None:
        """Report what only all shards together can show."""
        if self._uniform and all(self._uniform):
            say(
                f"warning: all {self._records} records got the same features, so the encoder "
                "makes no difference between them: does it get the pixels that it expects? See "
                "`ray-embed preview` with the same options"
            )
        if self._turned > self._records * _TURNED_SHARE and not self._config.exif_orientation:
            say(
                f"warning: {self._turned} of {self._records} files are to be turned by their Exif "
                "orientation, and were embedded as they are stored, as Keras loads them; give "
                "--exif-orientation if the encoder was trained on upright images"
            )
        if self._reduced:
            say(
                f"{self._reduced} of {self._records} images have more than 8 bits per channel and "
                "were reduced to 8; --depth 16 keeps 16"
            )
        if self._passed_over and self._config.pages == "first":
            say(
                f"pages or frames passed over: {self._passed_over}; --pages all makes each page "
                "of a TIFF file in a folder a record"
            )

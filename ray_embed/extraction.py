# SPDX-License-Identifier: Apache-2.0
"""Extraction: which shards are missing, handed to the actors, and counted."""

import pickle
from collections.abc import Callable, Generator, Iterator

from ray_embed import plan, schedule, store
from ray_embed.config import RunConfig
from ray_embed.decode import PixelSpec
from ray_embed.encoder import Encoder, keep
from ray_embed.errors import RunError
from ray_embed.extractor import Item, Job, ShardResult
from ray_embed.plan import Shard, SplitPlan
from ray_embed.prepare import Prepared
from ray_embed.progress import Progress, say
from ray_embed.session import Session
from ray_embed.workers import Worker

_Work = Iterator[Item]

# Pictures of bytes that hold nothing above this are dark ones, or are meant to hold no more than,
# say, 16: features of such are nearly those of black.
_DARK = 31


def extract_missing(config: RunConfig, prepared: Prepared, session: Session) -> float:
    """Extract the shards that have no part yet.

    Args:
        config: the limits.
        prepared: the run, whose folder is there already.
        session: where the extractors run.

    Returns:
        Images a second, from the first shard that was done on; 0 where that took no time to
        speak of.

    Raises:
        InputError: a dataset is not repeatable, or a planned file is gone.
        RunError: an error that trying again does not mend, or too many rejects.
    """
    done = store.Done(prepared.folder)
    shards = prepared.plan.shards
    rejected = sum(store.rejects_by_reason(prepared.folder, done).values())
    lengths: dict[int, int] = {}
    left = None if shards is None else shards - done.count
    job = _job(config, prepared)
    unseen = _of_bytes(config, prepared)
    before: list[Item] = []
    with Progress(prepared.plan.records) as progress:
        work = _missing(prepared, done, lengths, progress, before)
        there = _there(session, left)
        begun = done.count > 0
        for shard in schedule.extract_all(there(0), job, work, config, before, begun, there):
            progress.advance(shard.rows + sum(shard.rejects.values()))
            rejected += sum(shard.rejects.values())
            if shard.split in unseen and shard.rows:
                unseen.remove(shard.split)
                _warn_if_dark(shard)
            _check_rejects(config, rejected, prepared.target.out)
    # What is not there yet has nothing left to do, and might have machines started for it.
    session.crew.dismiss_waiting()
    finished = prepared.plan
    for ordinal, records in lengths.items():
        finished = finished.with_records(ordinal, records)
    if finished != plan.load(prepared.folder):
        plan.save(prepared.folder, finished)
    return progress.measured


def _there(session: Session, left: int | None) -> Callable[[int], list[Worker]]:
    """Give what tells the extractors there are to be when so many shards of those left are done."""
    return lambda done: session.crew.filled(None if left is None else left - done)


def _job(config: RunConfig, prepared: Prepared) -> bytes:
    encoder = keep.without_contents(prepared.encoder)
    pixels = tuple(_pixels(config, split, encoder) for split in prepared.plan.splits)
    job = Job(
        prepared.target.uri, prepared.plan, prepared.fingerprint, pixels, prepared.roots, encoder
    )
    # Ray would take it apart anew for each shard, which takes longer than all else done for one.
    return pickle.dumps(job)


def _pixels(config: RunConfig, split: SplitPlan, encoder: Encoder) -> PixelSpec:
    floats = split.image_shape is not None and split.image_dtype != "uint8"
    usual = "none" if floats or config.preprocess is not None else "unit"
    return PixelSpec(
        encoder.image_shape,
        config.scale or usual,
        resize=not floats or config.image_size is not None,
        max_pixels=config.max_pixels,
    )


def _missing(
    prepared: Prepared,
    done: store.Done,
    lengths: dict[int, int],
    progress: Progress,
    before: list[Item],
) -> _Work:
    """Yield the shards that are not done, in order.

    Fills in the lengths of streams, and some of the shards that are done.
    """
    number = index = 0
    for split in prepared.plan.splits:
        if split.kind == "stream":
            work = _walked(prepared, split, number, index, done, progress)
        else:
            work = _listed(split, number, index, done, progress, before)
        records = yield from work
        lengths[split.ordinal] = records
        number += -(-records // split.shard_size)
        index += records


def _listed(
    split: SplitPlan,
    number: int,
    index: int,
    done: store.Done,
    progress: Progress,
    before: list[Item],
) -> Generator[Item, None, int]:
    total = split.records or 0
    for local, position in enumerate(range(0, total, split.shard_size)):
        records = min(split.shard_size, total - position)
        shard = Shard(number + local, split, local, index + position, position, records)
        if shard.number not in done:
            yield shard, None
            continue
        progress.skip(records)
        if len(before) < schedule.KNOWN:
            before.append((shard, None))
    return total


def _walked(
    prepared: Prepared,
    split: SplitPlan,
    number: int,
    index: int,
    done: store.Done,
    progress: Progress,
) -> Generator[Item, None, int]:
    position = 0
    walk = prepared.walks[split.split]
    shards = walk.shards(prepared.target.uri, split, lambda local: number + local in done)
    for local, walked in enumerate(shards):
        if number + local in done:
            progress.skip(walked.records)
        else:
            at = (local, index + position, position, walked.records)
            yield Shard(number + local, split, *at), walked.images
        position += walked.records
    return position


def _of_bytes(config: RunConfig, prepared: Prepared) -> set[str]:
    """Name the splits whose pictures are scaled as bytes, 0 to 255, without anybody's word."""
    if config.scale is not None or config.preprocess is not None:
        return set()
    splits = prepared.plan.splits
    return {split.split for split in splits if split.image_dtype == "uint8"}


def _warn_if_dark(shard: ShardResult) -> None:
    if shard.brightest <= _DARK:
        say(
            f"warning: {shard.split}: no value in the thumbnails of {shard.rows} pictures is above "
            f"{shard.brightest}, and all are scaled as 0 to 255; if yours have another range, "
            "bring them to 0 to 255, or name a function that scales them (--preprocess)"
        )


def _check_rejects(config: RunConfig, rejected: int, out: str) -> None:
    if config.max_rejects is not None and rejected > config.max_rejects:
        raise RunError(
            f"{rejected} records were rejected, more than --max-rejects {config.max_rejects}; see "
            f"{out}/rejects; what is finished is kept: go on with a higher --max-rejects"
        )

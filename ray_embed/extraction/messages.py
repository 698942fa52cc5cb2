# SPDX-License-Identifier: Apache-2.0
"""The messages that the driver and the actors send each other."""

from dataclasses import dataclass
from typing import Any

from ray_embed.encoders.spec import Encoder
from ray_embed.images.pixel_spec import PixelSpec
from ray_embed.planning import Plan, Shard
from ray_embed.sources.base import ImageReader
from ray_embed.storage.part_files import Owner


@dataclass(frozen=True)
class Item:
    """A shard to extract.

    `images` is a reference to its images if a sequential source delivered them. `runs` are the
    positions of the runs that need it in `Job.runs`.
    """

    shard: Shard
    images: Any = None
    runs: tuple[int, ...] = (0,)


@dataclass(frozen=True, kw_only=True)
class JobRun:
    """One run of a job: an encoder, and the run folder for its features.

    `pixels` is indexed by the ordinal of the split. `encoder` lacks its graph and weights, which
    each actor reads once from the run folder.
    """

    out: str
    owner: Owner
    pixels: tuple[PixelSpec, ...]
    encoder: Encoder


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all shards have in common. Each actor receives it once, before its first shard.

    The runs of a job have the same records, whose images are decoded once for all of them. `id` is
    random. `readers`, which open the images, are indexed by the ordinal of the split. `siblings`
    are the run folders of finished runs with the same records.
    """

    id: str
    plan: Plan
    readers: tuple[ImageReader, ...]
    runs: tuple[JobRun, ...]
    siblings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ready:
    """What an extractor reports once it is ready: its number of images per batch, and its node."""

    batch_size: int
    node: str


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """The result of a shard in one run, which is numbered as in `Job.runs`.

    If the encoder failed, `error` says how, and nothing was written.

    `brightest` is the largest value in its thumbnails, 0 to 255. `turned` is the number of its
    files with an orientation other than upright, `reduced` that of images with more than 8 bits
    that were reduced to 8, and `passed_over` that of pages that were passed over. `is_uniform`
    tells whether there are several records and all have the same features. `values` holds the
    lowest and the highest values of its float images.
    """

    number: int
    split: str
    rows: int
    rejects: dict[str, int]
    brightest: int
    turned: int
    reduced: int
    passed_over: int
    is_uniform: bool
    values: tuple[float, float] | None
    finished: float
    run: int = 0
    error: str | None = None

# SPDX-License-Identifier: Apache-2.0
"""What an actor knows of a shard while it is extracted: its decoded images, and its features."""

from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from ray_embed.core.arrays import Array, as_column
from ray_embed.encoders.spec import Encoder
from ray_embed.images.decode import Batch
from ray_embed.storage import part_files

_NOT_FINITE = "not finite"


@dataclass
class DecodedShard:
    """The decoded batches of a shard, without their images, and the ranges of float images."""

    count: int
    batches: list[Batch] = field(default_factory=list)
    ranges: list[tuple[float, float]] = field(default_factory=list)

    def add(self, batch: Batch, *, has_pixels: bool) -> None:
        """Keep what is needed of a batch."""
        if has_pixels and len(values := batch.images[batch.unscaled]):
            self.ranges.append((float(values.min()), float(values.max())))
        self.batches.append(replace(batch, images=np.zeros(0)))

    @property
    def values(self) -> tuple[float, float] | None:
        """The range of all float images, or None if there are none."""
        if not self.ranges:
            return None
        lows, highs = zip(*self.ranges, strict=True)
        return min(lows), max(highs)

    def find_undecoded(self) -> list[int]:
        """Return the records that were in no batch."""
        decoded = np.zeros(self.count, bool)
        for batch in self.batches:
            decoded[batch.positions] = True
        return np.flatnonzero(~decoded).tolist()

    def find_brightest(self) -> int:
        """Return the largest value in a thumbnail."""
        return max((int(batch.thumbnails.max()) for batch in self.batches), default=0)

    def count_turned(self) -> int:
        """Return the number of files with an orientation other than upright."""
        return sum(int(np.count_nonzero(batch.turned)) for batch in self.batches)

    def count_reduced(self) -> int:
        """Return the number of images that were reduced to 8 bits."""
        return sum(int(np.count_nonzero(batch.reduced)) for batch in self.batches)

    def count_passed_over(self) -> int:
        """Return the number of pages that were passed over."""
        return sum(int(np.sum(batch.passed_over)) for batch in self.batches)

    def encode_thumbnails(self) -> Array:
        """Return the thumbnail of each record as PNG, or None for a record without one."""
        pngs = np.full(self.count, None, object)
        for batch in self.batches:
            pngs[batch.positions] = list(batch.encode_thumbnails())
        return pngs

    def scatter(self, positions: Array, count: int) -> "DecodedShard":
        """Return the batches with records moved to their positions among all `count` of a shard."""
        batches = [replace(batch, positions=positions[batch.positions]) for batch in self.batches]
        return DecodedShard(count, batches, self.ranges)


@dataclass
class ShardFeatures:
    """Features and reject reasons by record number, or the error of the encoder."""

    features: list[Array]
    reasons: list[str | None]
    error: str | None = None

    def is_uniform(self) -> bool:
        """Return whether there are at least two kept records and all have the same features."""
        kept = np.flatnonzero([reason is None for reason in self.reasons])
        if len(kept) < 2:
            return False
        return all(bool(np.all(rows[kept] == rows[kept[0]])) for rows in self.features)

    def scatter(self, positions: Array, count: int) -> "ShardFeatures":
        """Return the results with records moved to their positions among all `count` of a shard."""
        features = [np.zeros((count, values.shape[1]), np.float32) for values in self.features]
        reasons: list[str | None] = [None] * count
        for target, values in zip(features, self.features, strict=True):
            target[positions] = values
        for position, reason in zip(positions.tolist(), self.reasons, strict=True):
            reasons[position] = reason
        return ShardFeatures(features, reasons, self.error)

    def reject_not_finite(self) -> None:
        """Reject the records with a feature that is not finite."""
        finite = np.logical_and.reduce([np.isfinite(f).all(axis=1) for f in self.features])
        for number in np.flatnonzero(~finite).tolist():
            self.reasons[number] = self.reasons[number] or _NOT_FINITE


def allocate_features(count: int, encoder: Encoder) -> ShardFeatures:
    """Return zeros for a number of records, none of which is rejected."""
    features = [np.zeros((count, output.dimension), np.float32) for output in encoder.outputs]
    return ShardFeatures(features, [None] * count)


def make_part(
    number: int, encoder: Encoder, records: pa.Table, results: ShardFeatures, pngs: Array
) -> part_files.Part:
    """Make the part of a shard.

    Args:
        number: the number of the shard.
        encoder: the encoder.
        records: the columns of its records, but the features.
        results: the features.
        pngs: the thumbnails of the records, (n,) bytes.
    """
    kept = np.array([reason is None for reason in results.reasons], bool)
    features = records.filter(pa.array(kept))
    for output, values in zip(encoder.outputs, results.features, strict=True):
        features = features.append_column(output.column, as_column(values[kept]))
    rejected = records.filter(pa.array(~kept)).select(["index", "key", "split"])
    reasons = [reason for reason in results.reasons if reason is not None]
    rejected = rejected.append_column("reason", pa.array(reasons, pa.string()))
    thumbnails = pa.table(
        [features["index"], pa.array(pngs[kept], pa.binary())], part_files.THUMBNAIL_SCHEMA
    )
    return part_files.Part(number, features, rejected.cast(part_files.REJECT_SCHEMA), thumbnails)

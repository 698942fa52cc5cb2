# SPDX-License-Identifier: Apache-2.0
"""The plan's outline: the splits, how many records each has, and how they fall into shards."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

import pyarrow as pa

from ray_embed.errors import InputError
from ray_embed.sources import label_schema
from ray_embed.storage import layout
from ray_embed.storage.filesystem import Folder


@dataclass(frozen=True)
class SplitPlan:
    """One split of the plan.

    `kind` is the source's form, which no code reads; `root` names its place, for messages. For a
    sequential source, `records` and `shards` are None until it has been read, and `digest` is
    always None.
    """

    ordinal: int
    split: str
    kind: str
    root: str
    label_type: str
    extras: tuple[str, ...]
    shard_size: int
    shards_a_file: int
    records: int | None = None
    digest: str | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    image_shape: tuple[int, int, int] | None = None
    image_dtype: str = "uint8"

    @property
    def shards(self) -> int | None:
        """The number of shards; None until it is known."""
        return None if self.records is None else -(-self.records // self.shard_size)

    def file_of(self, shard: int) -> str:
        """Return the name of the plan file that holds the shard number `shard` of this split."""
        return (
            f"plan/{self.ordinal:02d}-{self.split}/part-{shard // self.shards_a_file:08d}.parquet"
        )


@dataclass(frozen=True)
class Plan:
    """The splits in order, the columns that all parts share, and lines for the user."""

    splits: tuple[SplitPlan, ...]
    label_type: str
    extras: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def records(self) -> int | None:
        """The number of records; None while the length of a split is unknown."""
        return _add_counts([split.records for split in self.splits])

    @property
    def shards(self) -> int | None:
        """The number of shards; None while the length of a split is unknown."""
        return _add_counts([split.shards for split in self.splits])

    def schema(self) -> pa.Schema:
        """Return the columns of a part before its features."""
        return label_schema.make_record_schema(
            pa.type_for_alias(self.label_type),
            [pa.field(name, pa.string()) for name in self.extras],
        )

    def with_records(self, ordinal: int, records: int) -> "Plan":
        """Return the plan with the length of a sequential split filled in."""
        splits = [
            replace(split, records=records) if split.ordinal == ordinal else split
            for split in self.splits
        ]
        return replace(self, splits=tuple(splits))


@dataclass(frozen=True)
class Shard:
    """Consecutive records of one split.

    `number` counts over all splits and names the part, `local` within the split; `index` is the
    position of the first record among all records, `position` within its split; `records` is how
    many there are.
    """

    number: int
    split: SplitPlan
    local: int
    index: int
    position: int
    records: int


def _add_counts(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)


def save(folder: Folder, plan: Plan) -> None:
    """Write the plan's outline to the run folder, after its records."""
    folder.write(layout.PLAN, json.dumps(asdict(plan), indent=1).encode())


def load(folder: Folder) -> Plan:
    """Read the outline of the plan of a run folder.

    Raises:
        InputError: it is missing or damaged.
    """
    advice = "`ray-embed run` with the same options writes it again"
    if not folder.exists(layout.PLAN):
        raise InputError(f"{folder.display_path(layout.PLAN)}: it is missing; {advice}")
    try:
        data = json.loads(folder.read(layout.PLAN))
        splits = [
            SplitPlan(
                **split
                | {
                    "extras": tuple(split["extras"]),
                    "image_shape": tuple(split["image_shape"]) if split["image_shape"] else None,
                }
            )
            for split in data["splits"]
        ]
        notes = tuple(data.get("notes", ()))
        return Plan(tuple(splits), data["label_type"], tuple(data["extras"]), notes)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{folder.display_path(layout.PLAN)}: damaged; {advice}") from error

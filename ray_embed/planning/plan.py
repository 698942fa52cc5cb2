# SPDX-License-Identifier: Apache-2.0
"""The plan summary: the splits, their record counts, and their division into shards."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from ray_embed.errors import InputError
from ray_embed.sources import label_schema
from ray_embed.storage import layout
from ray_embed.storage.filesystem import Folder

# The keys of a split in plan.json that are not the names of its fields.
_KEYS = {"name": "split", "shards_per_file": "shards_a_file"}


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """The plan of one split.

    `root` names the source's place, for messages. For a sequential source, `records` and `shards`
    are None until it has been read. `digest` is None for all datasets.
    """

    ordinal: int
    name: str
    root: str
    label_type: str
    extras: tuple[str, ...]
    shard_size: int
    shards_per_file: int
    records: int | None = None
    digest: str | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    image_shape: tuple[int, int, int] | None = None
    image_dtype: str = "uint8"

    @property
    def shards(self) -> int | None:
        """The number of shards, or None if unknown."""
        return None if self.records is None else -(-self.records // self.shard_size)

    def file_of(self, shard: int) -> str:
        """Return the name of the plan file that contains shard number `shard` of this split."""
        return (
            f"plan/{self.ordinal:02d}-{self.name}/part-{shard // self.shards_per_file:08d}.parquet"
        )


@dataclass(frozen=True)
class Plan:
    """The plan: the splits in order, the columns shared by all parts, and notes for the user."""

    splits: tuple[SplitPlan, ...]
    label_type: str
    extras: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def records(self) -> int | None:
        """The total number of records, or None if the length of a split is unknown."""
        return _add_counts([split.records for split in self.splits])

    @property
    def shards(self) -> int | None:
        """The total number of shards, or None if the length of a split is unknown."""
        return _add_counts([split.shards for split in self.splits])

    def schema(self) -> pa.Schema:
        """Return the schema of a part, without the features."""
        return label_schema.make_record_schema(
            label_schema.parse_type(self.label_type),
            [pa.field(name, pa.string()) for name in self.extras],
        )

    def with_records(self, ordinal: int, records: int) -> "Plan":
        """Return a copy of the plan with the length of a sequential split set."""
        splits = [
            replace(split, records=records) if split.ordinal == ordinal else split
            for split in self.splits
        ]
        return replace(self, splits=tuple(splits))


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Consecutive records of one split.

    `number` counts over all splits and names the part, `local` within the split; `index` is the
    position of the first record among all records; `records` is how many there are.
    """

    number: int
    split: SplitPlan
    local: int
    index: int
    records: int

    @property
    def position(self) -> int:
        """The position of the first record within its split."""
        return self.local * self.split.shard_size


def _add_counts(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)


def save(folder: Folder, plan: Plan) -> None:
    """Write the plan summary to the run folder. The records must be written first."""
    splits = [
        {_KEYS.get(name, name): value for name, value in asdict(split).items()}
        for split in plan.splits
    ]
    content = asdict(replace(plan, splits=())) | {"splits": splits}
    folder.write(layout.PLAN, json.dumps(content, indent=1).encode())


def load(folder: Folder) -> Plan:
    """Read the plan summary from the run folder.

    Raises:
        InputError: the plan is missing or damaged.
    """
    advice = "run `ray-embed run` with the same options to write it again"
    if not folder.exists(layout.PLAN):
        raise InputError(f"{folder.display_path(layout.PLAN)}: missing; {advice}")
    try:
        data = json.loads(folder.read(layout.PLAN))
        splits = [_parse_split(split) for split in data["splits"]]
        notes = tuple(data.get("notes", ()))
        return Plan(tuple(splits), data["label_type"], tuple(data["extras"]), notes)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{folder.display_path(layout.PLAN)}: damaged; {advice}") from error


def _parse_split(data: dict[str, Any]) -> SplitPlan:
    fields = {
        _KEYS.get(field.name, field.name): field.name for field in dataclasses.fields(SplitPlan)
    }
    # Runs of earlier versions have more keys.
    content = {fields[key]: value for key, value in data.items() if key in fields}
    shape = data["image_shape"]
    return SplitPlan(
        **content
        | {"extras": tuple(data["extras"]), "image_shape": tuple(shape) if shape else None}
    )

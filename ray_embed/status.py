# SPDX-License-Identifier: Apache-2.0
"""What a run folder holds, and whether it is sound; imports neither TensorFlow nor Ray."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ray_embed import plan, store
from ray_embed.errors import InputError
from ray_embed.filesystem import Folder
from ray_embed.matrix import as_matrix


@dataclass(frozen=True)
class Status:
    """The state of a run; counts are None where a stream's length is not known yet."""

    run: str
    fingerprint: str
    shards_done: int
    shards_planned: int | None
    records_planned: int | None
    rows: int
    rejects: int
    rejects_by_reason: dict[str, int]
    projector: bool
    problems: tuple[str, ...] = field(default=())
    verified: bool = False

    def to_json(self) -> dict[str, Any]:
        """Give the state as plain data."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Give the state as lines for a reader."""
        planned = "?" if self.shards_planned is None else self.shards_planned
        records = "?" if self.records_planned is None else self.records_planned
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejects_by_reason.items())
        lines = [
            f"run          {self.run}",
            f"shards       {self.shards_done} of {planned} done",
            f"records      {records} planned, {self.rows} embedded, {self.rejects} rejected"
            + (f" ({reasons})" if reasons else ""),
            f"projector    {'written' if self.projector else 'not written yet'}",
            f"fingerprint  {self.fingerprint}",
        ]
        if self.verified:
            lines.append(f"verified     {'sound' if not self.problems else 'NOT sound'}")
        return lines + [f"  {problem}" for problem in self.problems]


def status(run: str, *, verify: bool = False) -> Status:
    """Look at a run folder; with `verify` read all of it and list what is wrong.

    Raises:
        InputError: no run folder.
    """
    folder = Folder.at(run)
    about = store.read_run(folder)
    if about is None:
        raise InputError(f"{run}: no such run folder")
    if "fingerprint" not in about:
        raise InputError(f"{run}: its run stopped before it was planned; run the command again")
    outline = plan.load(folder)
    reasons = store.rejects_by_reason(folder)
    numbers = list(store.part_numbers(folder))
    problems: list[str] = []
    rows = 0
    for number in numbers:
        try:
            rows += store.footer(folder, number)[0]
        except (OSError, ValueError) as error:
            problems.append(f"{store.part_name(store.FEATURES, number)}: cannot be read: {error}")
    if verify:
        problems = list(_problems(folder, about["fingerprint"], numbers, outline))
    return Status(
        run,
        about["fingerprint"],
        len(numbers),
        outline.shards,
        outline.records,
        rows,
        sum(reasons.values()),
        reasons,
        folder.exists("projector/projector_config.pbtxt"),
        tuple(problems),
        verify,
    )


def _problems(folder: Folder, fingerprint: str, numbers: list[int], outline: plan.Plan) -> Any:
    """Read every part; yield what is wrong, in a sentence that names the part."""
    expected = 0
    for number in numbers:
        name = store.part_name(store.FEATURES, number)
        try:
            _, footer = store.footer(folder, number)
            table = store.read_part(folder, store.FEATURES, number)
            seen = table["index"].to_pylist()
            if folder.exists(store.part_name(store.REJECTS, number)):
                seen += store.read_part(folder, store.REJECTS, number)["index"].to_pylist()
            pictured = store.read_part(folder, store.THUMBNAILS, number)["index"]
        except (OSError, ValueError, KeyError) as error:
            yield f"{name}: cannot be read: {error}"
            continue
        if footer.get("fingerprint") != fingerprint or footer.get("shard") != str(number):
            yield f"{name}: belongs to another run or shard"
        planned = int(footer.get("planned", -1))
        start = _start_of(outline, number)
        if start is not None:
            expected = start
        if sorted(seen) != list(range(expected, expected + planned)):
            yield f"{name}: its records and rejects are not the {planned} planned ones"
        if table["index"].to_pylist() != sorted(table["index"].to_pylist()):
            yield f"{name}: its records are out of order"
        if pictured.to_pylist() != table["index"].to_pylist():
            yield f"{name}: its thumbnails are of other records"
        for column in store.feature_columns(table.schema):
            if not np.isfinite(as_matrix(table[column])).all():
                yield f"{name}: {column} holds numbers that are not finite"
        expected += planned
    if outline.shards is not None and numbers != list(range(outline.shards)):
        missing = sorted(set(range(outline.shards)) - set(numbers))
        if missing:
            yield f"{len(missing)} shards are not done, the first is {missing[0]}"


def _start_of(outline: plan.Plan, number: int) -> int | None:
    """Give the index of a shard's first record, where the plan tells it."""
    index = 0
    for split in outline.splits:
        shards, records = split.shards, split.records
        if shards is None or records is None:
            return None
        if number < shards:
            return index + number * split.shard_size
        number -= shards
        index += records
    return None

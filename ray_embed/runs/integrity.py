# SPDX-License-Identifier: Apache-2.0
"""Whether the parts of a run are what was written, and of that run."""

import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_embed.core.arrays import as_column, as_matrix
from ray_embed.core.console import say
from ray_embed.errors import DamagedError, InputError, RunError
from ray_embed.planning import Plan, load
from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder

_WRITER = re.compile(r"parquet-cpp-arrow version \d+\.\d+\.\d+[\w.+-]*")


@dataclass(frozen=True)
class Expected:
    """What all features parts of a run have in common: the fingerprint, and names and types.

    `shards` is how many there may be, None where that is not known yet.
    """

    fingerprint: str
    columns: tuple[tuple[str, pa.DataType], ...]
    shards: int | None

    @classmethod
    def from_run(cls, run: dict[str, Any], plan: Plan) -> "Expected":
        """Make it of a run's description and its plan."""
        features = [
            (output["column"], pa.list_(pa.float32(), output["dimension"]))
            for output in run["encoder"]["outputs"]
        ]
        columns = (*((field.name, field.type) for field in plan.schema()), *features)
        return cls(run["fingerprint"], columns, plan.shards)


def check_shard(folder: Folder, number: int, expected: Expected) -> None:
    """Read all parts of a shard.

    Raises:
        DamagedError: one of them is not what was written, or of another shard or run.
    """
    about, found = part_files.read_part_with(
        folder, layout.FEATURES, number, lambda part: (part_files.parse_footer(part), part.read())
    )
    check_footer(folder, number, about, expected)
    pictured = part_files.read_part(
        folder, layout.THUMBNAILS, number, ["index"], expected.fingerprint
    )
    if pictured["index"].to_pylist() != found["index"].to_pylist():
        name = folder.display_path(part_files.part_name(layout.THUMBNAILS, number))
        raise DamagedError(f"{name}: it is of other records", number)
    if about.rejected:
        part_files.read_part(folder, layout.REJECTS, number)


def check_footer(folder: Folder, number: int, about: part_files.Footer, expected: Expected) -> None:
    """Compare what a features part says of itself with what it must be.

    No checksum covers that, so a flipped bit could rename a column.

    Raises:
        DamagedError: the part is of another shard or run, or of none, or its rejects are not all
            there.
    """
    name = folder.display_path(part_files.part_name(layout.FEATURES, number))
    if expected.shards is not None and number >= expected.shards:
        raise DamagedError(f"{name}: no such shard was planned", number)
    part_files.check_owner(name, about, number, expected.fingerprint)
    if about.planned != about.rows + about.rejected or about.columns != expected.columns:
        raise DamagedError(f"{name}: damaged: its rows or columns are not those planned", number)
    if about.rejected:
        name = folder.display_path(part_files.part_name(layout.REJECTS, number))
        rejects = part_files.read_part_with(folder, layout.REJECTS, number, part_files.parse_footer)
        part_files.check_owner(name, rejects, number, expected.fingerprint)
        if rejects.rows != about.rejected:
            raise DamagedError(f"{name}: its rows are not those rejected", number)


def check_footers(folder: Folder, expected: Expected) -> None:
    """Compare what all features parts say of themselves with what they must be.

    Raises:
        DamagedError: as :func:`check_footer` raises.
    """

    def read_and_check(number: int) -> None:
        check_footer(folder, number, part_files.read_footer(folder, number), expected)

    for _ in part_files.map_parts(folder, read_and_check, part_files.list_part_numbers(folder)):
        pass


def require_all_parts(folder: Folder, expected: Expected) -> list[int]:
    """Give the numbers of the parts of a run of which no shard is missing.

    Raises:
        DamagedError: a part is of no shard that was planned.
        RunError: shards are missing.
    """
    numbers = list(part_files.list_part_numbers(folder))
    shards = expected.shards
    if shards is not None and numbers and numbers[-1] >= shards:
        check_footers(folder, expected)
    if shards is None or numbers != list(range(shards)):
        done = len(numbers) if shards is None else len(set(numbers) & set(range(shards)))
        raise RunError(
            f"{folder.display_path()}: only {done} of {'?' if shards is None else shards} shards "
            "are done; run `ray-embed extract` (or `run`) again with the same options to do the "
            "rest"
        )
    return numbers


def check_finished(folder: Folder, run: dict[str, Any]) -> None:
    """Refuse a run of which shards are missing, given its description.

    Raises:
        InputError: they are.
        DamagedError: a part is of no shard that was planned.
    """
    try:
        require_all_parts(folder, Expected.from_run(run, load(folder)))
    except DamagedError:
        raise
    except RunError as error:
        raise InputError(str(error)) from error


def is_as_written(folder: Folder, kind: str, number: int) -> bool:
    """Whether a part is, byte for byte, what writing its content again gives.

    Only the version of pyarrow that wrote it can say that; of others' parts it is taken as given.

    Raises:
        DamagedError: it is not what was written.
        StorageError: it cannot be read.
    """
    content, writer = part_files.read_part_with(
        folder, kind, number, lambda part: (part.read(), part.metadata.created_by)
    )
    for column in part_files.list_feature_columns(content.schema):
        # Parquet has its own name for the items of a list, which reading keeps.
        values = as_column(as_matrix(content[column]))
        content = content.set_column(content.column_names.index(column), column, values)
    again = part_files.encode_part(content)
    ours = pq.read_metadata(pa.BufferReader(again)).created_by
    if writer != ours and _WRITER.fullmatch(writer):
        return True
    return again == folder.read(part_files.part_name(kind, number))


def delete_damaged_shards(folder: Folder, expected: Expected, damage: DamagedError) -> None:
    """Check all parts after one turned out damaged, and delete the shards that are.

    Args:
        folder: the run folder.
        expected: what the features parts of its run have in common.
        damage: the damage that was detected first.
    """

    def find_damage(number: int) -> DamagedError | None:
        try:
            check_shard(folder, number, expected)
        except DamagedError as error:
            return error
        return None

    damaged = {damage.number: damage}
    for error in part_files.map_parts(folder, find_damage, part_files.list_part_numbers(folder)):
        if error:
            damaged.setdefault(error.number, error)
    for number, error in damaged.items():
        unplanned = expected.shards is not None and number >= expected.shards
        action = "it is deleted" if unplanned else f"shard {number} is extracted again"
        say(f"{error.args[0]}; {action}")
        # Without its features part a shard counts as missing, so that part is deleted first.
        for kind in (layout.FEATURES, layout.REJECTS, layout.THUMBNAILS):
            folder.delete(part_files.part_name(kind, number))

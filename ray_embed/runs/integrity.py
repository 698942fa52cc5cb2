# SPDX-License-Identifier: Apache-2.0
"""Check that the parts of a run are undamaged and belong to it, and delete damaged shards."""

import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_embed.core.arrays import as_column, as_matrix
from ray_embed.core.console import say
from ray_embed.errors import DamagedError, InputError, RunError
from ray_embed.planning import Plan, load
from ray_embed.storage import layout, manifest, part_files
from ray_embed.storage.filesystem import Folder

_WRITER = re.compile(r"parquet-cpp-arrow version \d+\.\d+\.\d+[\w.+-]*")


@dataclass(frozen=True)
class Expected:
    """What all feature parts of a run must have in common.

    Attributes:
        fingerprint: the fingerprint of the run.
        thumbnail_fingerprint: the fingerprint of its thumbnails.
        columns: the names and types of the columns.
        shards: the number of planned shards, or None if it is not known yet.
    """

    fingerprint: str
    thumbnail_fingerprint: str
    columns: tuple[tuple[str, pa.DataType], ...]
    shards: int | None

    @classmethod
    def from_run(cls, run: dict[str, Any], plan: Plan) -> "Expected":
        """Return what the parts must have in common, from ``run.json`` and the plan."""
        features = [
            (output["column"], pa.list_(pa.float32(), output["dimension"]))
            for output in run["encoder"]["outputs"]
        ]
        columns = (*((field.name, field.type) for field in plan.schema()), *features)
        thumbnails = manifest.get_thumbnail_fingerprint(run)
        return cls(run["fingerprint"], thumbnails, columns, plan.shards)


def check_shard(folder: Folder, number: int, expected: Expected) -> None:
    """Read and check all parts of a shard.

    Raises:
        DamagedError: a part is damaged, or belongs to another shard or run.
    """
    footer, features = part_files.read_part_with(
        folder, layout.FEATURES, number, lambda part: (part_files.parse_footer(part), part.read())
    )
    check_footer(folder, number, footer, expected)
    thumbnails = part_files.read_part(
        folder, layout.THUMBNAILS, number, ["index"], expected.thumbnail_fingerprint
    )
    if thumbnails["index"].to_pylist() != features["index"].to_pylist():
        name = folder.display_path(part_files.part_name(layout.THUMBNAILS, number))
        raise DamagedError(f"{name}: it holds thumbnails of other records", number)
    if footer.rejected:
        part_files.read_part(folder, layout.REJECTS, number)


def check_footer(
    folder: Folder, number: int, footer: part_files.Footer, expected: Expected
) -> None:
    """Check the footer of a feature part, and check that all rejects exist.

    No checksum covers the footer, so a flipped bit could rename a column.

    Raises:
        DamagedError: the part is damaged, belongs to another shard or run, or lacks rejects.
    """
    name = folder.display_path(part_files.part_name(layout.FEATURES, number))
    if expected.shards is not None and number >= expected.shards:
        raise DamagedError(f"{name}: the plan has no such shard", number)
    part_files.check_owner(name, footer, number, expected.fingerprint)
    if footer.planned != footer.rows + footer.rejected or footer.columns != expected.columns:
        raise DamagedError(f"{name}: damaged: its rows or columns differ from the plan", number)
    if footer.rejected:
        name = folder.display_path(part_files.part_name(layout.REJECTS, number))
        rejects = part_files.read_part_with(folder, layout.REJECTS, number, part_files.parse_footer)
        part_files.check_owner(name, rejects, number, expected.fingerprint)
        if rejects.rows != footer.rejected:
            raise DamagedError(
                f"{name}: it has {rejects.rows} of {footer.rejected} rejected records", number
            )


def check_footers(folder: Folder, expected: Expected) -> None:
    """Check the footers of all feature parts.

    Raises:
        DamagedError: see :func:`check_footer`.
    """

    def read_and_check(number: int) -> None:
        check_footer(folder, number, part_files.read_footer(folder, number), expected)

    for _ in part_files.map_parts(folder, read_and_check, part_files.list_part_numbers(folder)):
        pass


def require_all_parts(folder: Folder, expected: Expected) -> list[int]:
    """Return the numbers of all parts of a run; refuse a run with missing shards.

    Raises:
        DamagedError: a part belongs to no planned shard.
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


def require_finished(folder: Folder, run: dict[str, Any]) -> None:
    """Refuse a run with missing shards, given the content of its ``run.json``.

    Raises:
        InputError: shards are missing.
        DamagedError: a part belongs to no planned shard.
    """
    try:
        require_all_parts(folder, Expected.from_run(run, load(folder)))
    except DamagedError:
        raise
    except RunError as error:
        raise InputError(str(error)) from error


def is_as_written(folder: Folder, kind: str, number: int) -> bool:
    """Return whether writing the content of a part again results in the same bytes.

    Only the version of pyarrow that wrote the part can tell. Parts of other versions pass.

    Raises:
        DamagedError: the part is damaged.
        StorageError: the part cannot be read.
    """
    content, writer, rows = part_files.read_part_with(
        folder,
        kind,
        number,
        lambda part: (part.read(), part.metadata.created_by, part_files.get_group_rows(part)),
    )
    for column in part_files.list_feature_columns(content.schema):
        # Reading keeps Parquet's name for the items of a list, so the column is built again.
        values = as_column(as_matrix(content[column]))
        content = content.set_column(content.column_names.index(column), column, values)
    encoded = part_files.encode_part(content, rows)
    own_writer = pq.read_metadata(pa.BufferReader(encoded)).created_by
    if writer != own_writer and _WRITER.fullmatch(writer):
        return True
    return encoded == folder.read(part_files.part_name(kind, number))


def delete_damaged_shards(folder: Folder, expected: Expected, damage: DamagedError) -> None:
    """Check all parts after one was found to be damaged, and delete all damaged shards.

    Args:
        folder: the run folder.
        expected: what the feature parts of the run must have in common.
        damage: the damage that was found first.
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
        # Without its feature part, a shard counts as missing, so that part is deleted first.
        for kind in (layout.FEATURES, layout.REJECTS, layout.THUMBNAILS):
            folder.delete(part_files.part_name(kind, number))

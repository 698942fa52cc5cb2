# SPDX-License-Identifier: Apache-2.0
"""Parts that are not what was written: found, named, and given up to be extracted again."""

from ray_embed.runs import integrity
from ray_embed.storage import part_files
from ray_embed.errors import DamagedError
from ray_embed.storage.filesystem import Folder
from ray_embed.core.console import say


def mend(folder: Folder, expected: integrity.Expected, found: DamagedError) -> None:
    """Look at all parts since one was found damaged, and delete those that are.

    Args:
        folder: the run folder.
        expected: what the features parts of its run have in common.
        found: the part that was found first.
    """

    def look_at(number: int) -> DamagedError | None:
        try:
            integrity.check(folder, number, expected)
        except DamagedError as error:
            return error
        return None

    damaged = {found.number: found}
    for error in part_files.each(folder, look_at, part_files.part_numbers(folder)):
        if error:
            damaged.setdefault(error.number, error)
    for number, damage in damaged.items():
        unplanned = expected.shards is not None and number >= expected.shards
        done = "it is deleted" if unplanned else f"shard {number} is extracted again"
        say(f"{damage.args[0]}; {done}")
        # Without its features nothing of a shard counts.
        for kind in (part_files.FEATURES, part_files.REJECTS, part_files.THUMBNAILS):
            folder.delete(part_files.part_name(kind, number))

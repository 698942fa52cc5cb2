# SPDX-License-Identifier: Apache-2.0
"""Parts that are not what was written: found, named, and given up to be extracted again."""

from ray_embed import soundness, store
from ray_embed.errors import DamagedError
from ray_embed.filesystem import Folder
from ray_embed.progress import say


def mend(folder: Folder, expected: soundness.Expected, found: DamagedError) -> None:
    """Look at all parts since one was found damaged, and delete those that are.

    Args:
        folder: the run folder.
        expected: what the features parts of its run have in common.
        found: the part that was found first.
    """

    def look_at(number: int) -> DamagedError | None:
        try:
            soundness.check(folder, number, expected)
        except DamagedError as error:
            return error
        return None

    damaged = {found.number: found}
    for error in store.each(folder, look_at, store.part_numbers(folder)):
        if error:
            damaged.setdefault(error.number, error)
    for number, damage in damaged.items():
        unplanned = expected.shards is not None and number >= expected.shards
        done = "it is deleted" if unplanned else f"shard {number} is extracted again"
        say(f"{damage.args[0]}; {done}")
        # Without its features nothing of a shard counts.
        for kind in (store.FEATURES, store.REJECTS, store.THUMBNAILS):
            folder.delete(store.part_name(kind, number))

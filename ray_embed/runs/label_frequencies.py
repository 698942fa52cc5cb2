# SPDX-License-Identifier: Apache-2.0
"""How many records of a run have each label, if labels are lists."""

from collections import Counter

from ray_embed.storage import layout, part_files
from ray_embed.storage.filesystem import Folder


def rank_labels(folder: Folder) -> list[str]:
    """Return the labels in the lists of all records, the most frequent first, and ties by name.

    A label that is repeated in a list counts once.

    Raises:
        DamagedError: a part is damaged.
        StorageError: a part cannot be read.
    """

    def count(number: int) -> Counter[str]:
        lists = part_files.read_part(folder, layout.FEATURES, number, ["label"])["label"]
        return Counter(label for labels in lists.to_pylist() for label in set(labels or ()))

    counts: Counter[str] = Counter()
    for part in part_files.map_parts(folder, count, part_files.list_part_numbers(folder)):
        counts.update(part)
    return sorted(counts, key=lambda label: (-counts[label], label))

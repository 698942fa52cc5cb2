# SPDX-License-Identifier: Apache-2.0
"""The usual names of splits: their aliases and their order."""

from collections.abc import Iterable, Sequence

SPLITS = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))


def find_split(names: Sequence[str], split: str) -> str | None:
    """Return the name of a split, which may be an alias such as `val` for `valid`, or None."""
    if split in names:
        return split
    aliases = get_aliases(split)
    matching = [name for name in names if name.lower() in aliases]
    return matching[0] if len(matching) == 1 else None


def get_aliases(split: str) -> tuple[str, ...]:
    """Return the usual names of a split, such as ``valid`` and ``val``; none if it has no other."""
    return next((group for group in SPLITS if split.lower() in group), ())


def sort_splits(names: Iterable[str]) -> list[str]:
    """Return the names of splits in order: training, validation and test first, others by name."""

    def rank(name: str) -> tuple[int, str]:
        aliases = get_aliases(name)
        return (SPLITS.index(aliases) if aliases else len(SPLITS), name)

    return sorted(names, key=rank)

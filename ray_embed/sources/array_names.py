# SPDX-License-Identifier: Apache-2.0
"""Find the images and labels among named arrays, by the names that people give them.

``images`` and ``labels``, ``x`` and ``y``, and for several splits in one file ``x_train``,
``y_train`` (Keras) or ``train_images``, ``train_labels`` (MedMNIST). In HDF5, ``train/images`` and
``train/labels``.
"""

import re
from collections.abc import Sequence

from ray_embed.errors import InputError
from ray_embed.sources.split_names import SPLITS, get_aliases

_LABELS = {
    "images": ("labels", "label", "targets"),
    "image": ("label", "labels", "target"),
    "imgs": ("labels", "label"),
    "x": ("y",),
    "X": ("y", "Y"),
    "data": ("labels", "label", "target", "targets"),
}
_IMAGES = "|".join(sorted(_LABELS, key=len, reverse=True))
_ALL_SPLITS = "|".join(name for names in SPLITS for name in names)
# In HDF5, a split may be a group: train/images.
_NAME = re.compile(rf"(?:({_ALL_SPLITS})([_/]))?({_IMAGES})(?:_({_ALL_SPLITS}))?")


def choose_arrays(
    names: Sequence[str], split: str, image: str | None, label: str | None, where: str
) -> tuple[str, str | None]:
    """Return the name of the array of images, and that of labels or None.

    Args:
        names: the names of all arrays.
        split: the split, which chooses between several pairs.
        image: the array of images that was asked for.
        label: the array of labels that was asked for.
        where: the file, for messages.

    Raises:
        InputError: there is no such array, or the split does not choose one; lists all names.
    """
    listed = ", ".join(names) or "no arrays"
    for wanted, flag in ((image, "--image-column"), (label, "--label-column")):
        if wanted is not None and wanted not in names:
            raise InputError(f"{where}: no array {wanted!r} for {flag}; the file contains {listed}")
    if image is not None:
        return image, label
    pairs = _find_pairs(names)
    if not pairs:
        raise InputError(
            f"{where}: no array 'images'; the file contains {listed}: select the images with "
            "--image-column, or write them as images, and their labels as labels"
        )
    chosen = pairs[0] if len(pairs) == 1 else _choose_pair(pairs, split)
    if chosen is None:
        found = ", ".join(pair[1] for pair in pairs)
        raise InputError(
            f"{where}: several arrays may be the images: {found}; name the split, such as "
            f"--source {pairs[0][0] or 'NAME'}={where}, or select one with --image-column"
        )
    return chosen[1], label or chosen[2]


# The split in the name of an array, or "", and the names of images and labels.
_Pair = tuple[str, str, str | None]


def _find_pairs(names: Sequence[str]) -> list[_Pair]:
    pairs: list[_Pair] = []
    for name in names:
        if match := _NAME.fullmatch(name):
            labels = next((label for label in find_label_names(name) if label in names), None)
            pairs.append((match[1] or match[4] or "", name, labels))
    return pairs


def find_label_names(name: str) -> tuple[str, ...]:
    """Return the names that the labels may have; none if the images have no usual name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return ()
    before = (match[1] or "") + (match[2] or "")
    after = f"_{match[4]}" if match[4] else ""
    return tuple(f"{before}{label}{after}" for label in _LABELS[match[3]])


def _choose_pair(pairs: Sequence[_Pair], split: str) -> _Pair | None:
    aliases = get_aliases(split)
    matching = [pair for pair in pairs if pair[0] in aliases] if aliases else []
    if not matching:
        # An array without a split in its name is for every split.
        matching = [pair for pair in pairs if not pair[0]]
    exact = [pair for pair in matching if pair[1] == "images"]
    matching = exact or matching
    return matching[0] if len(matching) == 1 else None

# SPDX-License-Identifier: Apache-2.0
"""Objects of Hugging Face datasets: their images are taken as they are stored, without decoding."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ray_embed.errors import InputError
from ray_embed.sources.elements import IMAGE_FIELDS, LABEL_FIELDS, Fields
from ray_embed.sources.split_names import find_split


@dataclass(frozen=True)
class StoredDataset:
    """A dataset whose images are not decoded, the fields to use, and the names of its classes."""

    content: Any
    fields: Fields
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def is_dataset(value: Any) -> bool:
    """Return whether a value is a Dataset or an IterableDataset. The library is not imported."""
    module = sys.modules.get("datasets")
    return module is not None and isinstance(value, (module.Dataset, module.IterableDataset))


def is_dict(value: Any) -> bool:
    """Return whether a value is a DatasetDict or an IterableDatasetDict."""
    return isinstance(value, dict) and bool(value) and all(map(is_dataset, value.values()))


def choose_split(splits: Mapping[str, Any], split: str, where: str) -> Any:
    """Return the dataset of a split: that of the same name or an alias, or else the only one.

    Raises:
        InputError: there are several, and none has the name.
    """
    names = list(splits)
    name = names[0] if len(names) == 1 else find_split(names, split)
    if name is None:
        raise InputError(
            f"{where}: the datasets are of the splits {', '.join(names)}, and none is {split!r}; "
            f"name one of them, such as --source {names[0]}=…"
        )
    return splits[name]


def keep_stored(dataset: Any, fields: Fields) -> StoredDataset:
    """Return a dataset that gives encoded images, with the names of its classes.

    A dataset with a transform of the user stays as it is.
    """
    import datasets

    features = dataset.features or {}
    has_transform = getattr(dataset, "format", {}).get("type") == "custom"
    if has_transform or not features:
        return StoredDataset(dataset, fields)
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    usual = [name for name in IMAGE_FIELDS if name in features]
    if fields.image is None and not usual and len(images) == 1:
        fields = replace(fields, image=images[0])
    image = fields.image or next(iter(usual), None)
    label = fields.label or next((name for name in LABEL_FIELDS if name in features), None)
    feature = features.get(label)
    # A label may be a list of classes.
    names = tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())
    notes = (f"labels are the names of the classes in {label!r}",) if names else ()
    # Formats such as NumPy's would convert what is stored.
    dataset = dataset.with_format(None)
    if image in images:
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
    return StoredDataset(dataset, fields, names, notes)

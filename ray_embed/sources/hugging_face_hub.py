# SPDX-License-Identifier: Apache-2.0
"""Data sets that Hugging Face datasets loads by their names, or finds in a folder.

The library prepares Arrow files in its cache. The actors read the images in them, as those of a
saved dataset. If the images are in other files, the actors read the rows with the library.
"""

from pathlib import Path
from typing import Any

from ray_embed.config import RunConfig, make_absolute
from ray_embed.errors import InputError
from ray_embed.sources.array_checks import get_wanted_labels
from ray_embed.sources.container_files import ContainerFiles
from ray_embed.sources.dataset import Dataset
from ray_embed.sources.saved_dataset import (
    SPLITS,
    STATE,
    SavedDataset,
    has_external_images,
    open_files,
)
from ray_embed.sources.split_names import find_split

PREFIX = "hf:"
_MAX_REASON = 500


def open_all_splits(named: str, config: RunConfig) -> list[SavedDataset | Dataset]:
    """Open each split of a named data set as a source.

    Raises:
        InputError: the data set cannot be loaded, or has no column with images.
    """
    builder = _prepare(named)
    return [_open_split(builder, name, name, named, config) for name in builder.info.splits]


def open_hub_dataset(split: str, named: str, config: RunConfig) -> SavedDataset | Dataset:
    """Open a split of a named data set as a source.

    Raises:
        InputError: the data set cannot be loaded, has no such split or no column with images.
    """
    builder = _prepare(named)
    chosen = _choose_split(list(builder.info.splits), split, named)
    return _open_split(builder, split, chosen, named, config)


def _open_split(
    builder: Any, split: str, chosen: str, named: str, config: RunConfig
) -> SavedDataset | Dataset:
    """Open the split `chosen` of a prepared data set as the source `split`."""
    dataset = builder.as_dataset(split=chosen)
    names = tuple(Path(item["filename"]).name for item in dataset.cache_files)
    if not names:
        raise InputError(f"--source {split}={named}: the split {chosen!r} is empty")
    notes = [f"{named}: read from {builder.cache_dir}, which all nodes of a cluster must see"]
    if chosen != split:
        notes.append(f"{named}: read the split {chosen!r} of the data set")
    files = ContainerFiles(named, builder.cache_dir, names)
    if not has_external_images(files, config):
        return open_files(split, files, config, tuple(notes))
    return Dataset(
        split,
        f"{__name__}:{load_split.__name__}",
        # Actors work in another folder.
        {"named": make_absolute(named, Path.cwd()), "split": chosen},
        image_column=config.image_column,
        label_column=get_wanted_labels(config),
        key_column=config.key_column,
        label_type=config.label_type,
        name=named,
    )


def load_split(named: str, split: str) -> Any:
    """Return a split of a named data set, as an object of Hugging Face datasets."""
    return _prepare(named).as_dataset(split=split)


def _parse_name(named: str) -> tuple[str, str | None]:
    """Return the name or the absolute path of a data set, and its configuration if one is named."""
    name, variant = named.removeprefix(PREFIX), None
    if not Path(name).is_dir():
        name, _, variant = name.partition(":")
    if not name:
        raise InputError(
            f"--source {named}: not the name of a data set; write hf:NAME or hf:NAME:CONFIG, such "
            "as hf:cifar10, or hf:FOLDER"
        )
    return (str(Path(name).absolute()) if Path(name).is_dir() else name), variant or None


def _prepare(named: str) -> Any:
    """Return the builder of a data set, whose files are in the cache of the library.

    Raises:
        InputError: the library is missing, or cannot load the data set.
    """
    name, variant = _parse_name(named)
    for marker in (STATE, SPLITS):
        if Path(name, marker).exists():
            raise InputError(
                f"--source {named}: a folder written by save_to_disk; give the folder itself, "
                f"without {PREFIX}"
            )
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise InputError(
            f"--source {named}: needs the datasets library of Hugging Face; install it with pip "
            "install 'ray_embed[hf]'"
        ) from error
    try:
        builder = datasets.load_dataset_builder(name, variant)
        builder.download_and_prepare()
    except Exception as error:
        cause: BaseException = error
        if isinstance(error, datasets.exceptions.DatasetGenerationError):
            # Its own message has no reason.
            cause = error.__cause__ or error
        # The names of the configurations are not in the first line.
        reason = " ".join(str(cause).split())[:_MAX_REASON]
        raise InputError(
            f"--source {named}: cannot be loaded: {type(cause).__name__}: {reason}; check the name "
            "with datasets.load_dataset, and that this machine reaches the hub or has the data set "
            "in its cache; a configuration is named as hf:NAME:CONFIG"
        ) from error
    return builder


def _choose_split(names: list[str], split: str, named: str) -> str:
    name = names[0] if len(names) == 1 else find_split(names, split)
    if name is None:
        raise InputError(
            f"--source {split}={named}: the data set has no split {split!r}; its splits are "
            f"{', '.join(names)}; name one, such as --source {names[0]}={named}, or none for all"
        )
    return name

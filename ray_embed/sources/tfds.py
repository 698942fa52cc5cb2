# SPDX-License-Identifier: Apache-2.0
"""Data sets that TensorFlow Datasets has prepared: a folder of TFRecord files by split.

``dataset_info.json`` lists the splits and their files, ``features.json`` the features, and
``label.labels.txt`` the names of the classes (https://www.tensorflow.org/datasets/external_tfrecord).
The library itself is not needed to read them.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_embed.config import RunConfig
from ray_embed.core.uri import join_uri, redact_uri
from ray_embed.errors import InputError, StorageError
from ray_embed.sources.container_files import ContainerFiles, list_names
from ray_embed.sources.split_names import find_split
from ray_embed.sources.tfrecord import FeatureNames, TFRecordSource, choose_names, open_records
from ray_embed.storage.filesystem import Folder

PREFIX = "tfds:"
INFO, FEATURES = "dataset_info.json", "features.json"
_NAME = re.compile(r"(\w+)(?:/([^:]+))?(?::(\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_FORMAT = "tfrecord"
_FILE_NAMES = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclass(frozen=True, kw_only=True)
class _PreparedSplit:
    """A split: its files, and how many records each of them has."""

    name: str
    files: tuple[str, ...]
    counts: tuple[int, ...]


def open_prepared(
    split: str, named: str, config: RunConfig, notes: tuple[str, ...] = ()
) -> TFRecordSource:
    """Open a split of a prepared folder as a source.

    Args:
        split: the name of the split; that of the data set has the same name or an alias of it.
        named: the folder, a path or URI.
        config: the options.
        notes: messages for the user.

    Raises:
        InputError: there is no such split, it is in another file format or incomplete, or it has no
            images.
    """
    prepared = _choose_split(_list_splits(named), split, named)
    if prepared.name != split:
        notes += (f"{redact_uri(named)}: read the split {prepared.name!r} of the data set",)
    files = ContainerFiles(named, named, prepared.files)
    missing = [name for name, _, stat in files.locate() if stat[0] is None]
    if missing:
        raise InputError(
            f"{redact_uri(named)}: {len(missing)} of {len(files.names)} files of the split "
            f"{prepared.name!r} are missing, such as {missing[0]}; prepare the data set again"
        )
    features = _read_json(named, FEATURES).get("featuresDict", {}).get("features", {})
    names = choose_names(config, _choose_features(features))
    for image in names.images:
        _refuse_floats(features.get(image, {}), image, named)
    return open_records(
        split,
        files,
        names,
        class_names=_read_class_names(named, features, names.labels),
        counts=prepared.counts,
        notes=notes,
    )


def open_named(split: str, named: str, config: RunConfig) -> TFRecordSource:
    """Open a data set by its name: ``tfds:NAME``, ``tfds:NAME/CONFIG`` or ``tfds:NAME:1.0.0``.

    Raises:
        InputError: the data set is not prepared (the message says how to do that), or
            :func:`open_prepared` refuses it.
    """
    match = _NAME.fullmatch(named.removeprefix(PREFIX))
    if match is None:
        raise InputError(
            f"--source {named}: not the name of a data set; write tfds:NAME, tfds:NAME/CONFIG or "
            "tfds:NAME:VERSION, such as tfds:mnist:3.0.1"
        )
    name, variant, version = match.groups()
    base = os.environ.get("TFDS_DATA_DIR") or str(Path("~/tensorflow_datasets").expanduser())
    try:
        folder = _find_version(join_uri(base, name), variant, version, named)
    except StorageError as error:
        raise InputError(f"--source {named}: {error}") from error
    if folder is None:
        builder = "/".join(part for part in (name, variant) if part)
        builder += f":{version}" if version else ""
        raise InputError(
            f"--source {named}: not prepared in {redact_uri(base)}; prepare it with python -c "
            f"\"import tensorflow_datasets as tfds; tfds.builder('{builder}')"
            '.download_and_prepare()", or set TFDS_DATA_DIR to the folder that has it'
        )
    return open_prepared(split, folder, config, (f"{named}: read from {redact_uri(folder)}",))


def _find_version(folder: str, variant: str | None, version: str | None, named: str) -> str | None:
    """Return the folder of the wanted version, or of the newest one; None if there is none."""
    if variant is not None:
        folder = join_uri(folder, variant)
    elif not _list_versions(folder):
        variants = sorted(
            name for name in list_names(folder) if _list_versions(join_uri(folder, name))
        )
        if not variants:
            return None
        if len(variants) > 1:
            raise InputError(
                f"--source {named}: several configurations are prepared: {', '.join(variants)}; "
                f"choose one, such as {named}/{variants[0]}"
            )
        folder = join_uri(folder, variants[0])
    versions = _list_versions(folder)
    if version is not None:
        return join_uri(folder, version) if version in versions else None
    return join_uri(folder, versions[-1]) if versions else None


def _list_versions(folder: str) -> list[str]:
    """Return the prepared versions in a folder, the newest last."""
    if not Folder.open(folder).exists():
        return []
    found = [
        name
        for name in list_names(folder)
        if _VERSION.fullmatch(name) and Folder.open(folder).exists(f"{name}/{INFO}")
    ]
    return sorted(found, key=lambda name: [int(part) for part in name.split(".")])


def _list_splits(folder: str) -> list[_PreparedSplit]:
    """Return the splits of a prepared folder.

    Raises:
        InputError: they are in another file format, or there are none.
    """
    info = _read_json(folder, INFO)
    where = f"{redact_uri(folder)}/{INFO}"
    if info.get("fileFormat", _FORMAT) != _FORMAT:
        raise InputError(
            f"{where}: the data set was prepared in the file format {info['fileFormat']}, but only "
            f"{_FORMAT} is supported; prepare it again with tfds.builder({info.get('name')!r}, "
            f"file_format='{_FORMAT}').download_and_prepare()"
        )
    try:
        return [_parse_split(info["name"], split) for split in info["splits"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: not the description of a data set as TensorFlow Datasets 4 writes it "
            f"({type(error).__name__}: {error}); prepare the data set again"
        ) from error


def _parse_split(data_set: str, split: Mapping[str, Any]) -> _PreparedSplit:
    counts = tuple(int(count) for count in split["shardLengths"])
    name = split["name"]
    template = split.get("filepathTemplate") or _FILE_NAMES
    return _PreparedSplit(
        name=name,
        files=tuple(
            template.format(
                DATASET=data_set,
                SPLIT=name,
                FILEFORMAT=_FORMAT,
                SHARD_INDEX=f"{number:05d}",
                NUM_SHARDS=f"{len(counts):05d}",
                SHARD_X_OF_Y=f"{number:05d}-of-{len(counts):05d}",
            )
            for number in range(len(counts))
        ),
        counts=counts,
    )


def _choose_split(prepared: list[_PreparedSplit], split: str, named: str) -> _PreparedSplit:
    """Return the split of the same name, or else with an alias of it, or else the only one."""
    filled = {item.name: item for item in prepared if item.counts}
    name = next(iter(filled)) if len(filled) == 1 else find_split(list(filled), split)
    if name is not None:
        return filled[name]
    listed = ", ".join(filled) or "none"
    example = next(iter(filled), "train")
    raise InputError(
        f"--source {split}={redact_uri(named)}: the data set has no split {split!r}; its splits "
        f"are {listed}; name one, such as --source {example}={redact_uri(named)}"
    )


def _choose_features(features: Mapping[str, Any]) -> FeatureNames:
    """Return the names of the image and the label: the usual ones, or else the only ones."""
    images = tuple(name for name in features if _get_class(features[name]) == "Image")
    labels = tuple(name for name in features if _get_class(features[name]) == "ClassLabel")
    usual = FeatureNames()
    return FeatureNames(
        images=images if len(images) == 1 else usual.images,
        labels=labels if len(labels) == 1 and "label" not in features else usual.labels,
    )


def _get_class(feature: Mapping[str, Any]) -> str:
    return str(feature.get("pythonClassName", "")).rpartition(".")[2]


def _refuse_floats(feature: Mapping[str, Any], name: str, named: str) -> None:
    dtype = feature.get("image", {}).get("dtype", "uint8")
    if dtype.startswith("float"):
        raise InputError(
            f"{redact_uri(named)}: the images in {name!r} are of {dtype}, whose bytes TensorFlow "
            "Datasets stores as the colors of PNG images; give a function that returns tfds.load() "
            "instead, as module:callable"
        )


def _read_class_names(
    folder: str, features: Mapping[str, Any], labels: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes of those labels, alone or in lists, that have some."""
    names: dict[str, tuple[str, ...]] = {}
    opened = Folder.open(folder)
    for label in labels:
        file = f"{label.replace('/', '.')}.labels.txt"
        kind = _get_class(features.get(label, {}))
        if kind in ("ClassLabel", "Sequence") and opened.exists(file):
            lines = opened.read(file).decode("utf-8", "backslashreplace").split("\n")
            names[label] = tuple(line.strip() for line in lines if line.strip())
    return names


def _read_json(folder: str, name: str) -> dict[str, Any]:
    where = f"{redact_uri(folder)}/{name}"
    try:
        content = json.loads(Folder.open(folder).read(name))
    except StorageError as error:
        raise InputError(f"{error}; a prepared data set has {INFO} and {FEATURES}") from error
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}; prepare the data set again") from error
    if not isinstance(content, dict):
        raise InputError(f"{where}: not a JSON object; prepare the data set again")
    return content

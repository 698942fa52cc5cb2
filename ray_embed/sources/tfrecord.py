# SPDX-License-Identifier: Apache-2.0
"""TFRecord files of ``tf.train.Example``: a record is a map from names to lists of values.

Planning reads the lengths of the records, their labels and metadata, and hops over the images; the
actors read the records of their shards, check them, and take the images out.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from ray_embed.config import RunConfig
from ray_embed.core.keys import make_key
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.container_files import ContainerFiles
from ray_embed.sources.example_features import Feature, get_bytes, read_small_features
from ray_embed.sources.files import File, SizeAndTime
from ray_embed.sources.label_lists import LABEL_LIST, check_not_vectors, make_lists
from ray_embed.sources.label_schema import describe_reserved, is_reserved
from ray_embed.sources.packed_images import PackedReader, Place, make_packed_records
from ray_embed.sources.tfrecord_format import find_records, read_records

_RECORDS_PER_BATCH = 4096
# The first records show which features there are.
_RECORDS_INSPECTED = 100
_FEATURES_LISTED = 12
_LABEL_TYPES = {"bytes": pa.string(), "float": pa.float64(), "int64": pa.int64()}

_Features = Mapping[str, Feature]


@dataclass(frozen=True, kw_only=True)
class FeatureNames:
    """Which features are the image, the label and the key; of several names, the first present.

    `takes_lists` says whether several values of the label are a list of labels.
    """

    images: tuple[str, ...] = ("image/encoded", "image")
    labels: tuple[str, ...] = ("image/class/text", "image/class/label", "label")
    keys: tuple[str, ...] = ("image/filename",)
    takes_lists: bool = False


@dataclass(frozen=True)
class _Record:
    """A record: its number in its file, where its data are, and its features."""

    number: int
    place: Place
    features: _Features

    def get_text(self, name: str | None) -> str | None:
        """Return the single value of a feature as text; None if it has none."""
        feature = self.features.get(name or "")
        if feature is None or feature.values is None or len(feature.values) != 1:
            return None
        (value,) = feature.values
        if feature.kind == "float":
            # Not the digits that only 64 bits have.
            return str(np.float32(value))
        return make_key(value) if isinstance(value, bytes) else str(value)


@dataclass(frozen=True, kw_only=True)
class TFRecordSource:
    """The records of TFRecord files: the files by name, and in each the records in their order.

    `key` and `label` are the names of features, or None. `class_names` are those of integer labels,
    if known. `counts` is how many records each file must have; empty if that is unknown.
    """

    split: str
    files: ContainerFiles
    image: str
    key: str | None
    label: str | None
    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    info: SourceInfo

    @property
    def location(self) -> str:
        """The folder of the files."""
        return self.files.folder

    def records(self, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
        """Yield the records.

        Raises:
            InputError: a file is not a TFRecord of Examples, is compressed, cut off or damaged, or
                a label has another type than the first ones.
        """
        for position, (name, file, stat) in enumerate(self.files.locate()):
            if stat[0] == 0:
                skipped["empty files"] += 1
            count = 0
            records = _read_records(file, stat)
            while batch := list(islice(records, _RECORDS_PER_BATCH)):
                yield self._make_records(batch, name, str(file), stat, skipped)
                count += len(batch)
            if self.counts and count != self.counts[position]:
                raise InputError(
                    f"{file}: the file has {count:,} records, but dataset_info.json says "
                    f"{self.counts[position]:,}; copy the data set again, or prepare it again"
                )

    def _make_records(
        self,
        records: list[_Record],
        name: str,
        where: str,
        stat: SizeAndTime,
        skipped: Counter[str],
    ) -> pa.RecordBatch:
        keys = [record.get_text(self.key) or f"{name}#{record.number}" for record in records]
        return make_packed_records(
            {
                "key": pa.array(keys, pa.string()),
                "label": self._make_labels(records, where),
                **{
                    extra: pa.array(_make_texts(records, extra, skipped), pa.string())
                    for extra in self.info.extras
                },
            },
            name,
            stat,
            positions=pa.array([record.place.position for record in records], pa.int64()),
            lengths=pa.array([record.place.length for record in records], pa.int64()),
        )

    def _make_labels(self, records: list[_Record], where: str) -> pa.Array:
        labels = [self._make_label(record, where) for record in records]
        if self.info.label_type != LABEL_LIST:
            return pa.array(labels, self.info.label_type)
        if not self.class_names:
            check_not_vectors(labels, where)
        return make_lists(labels)

    def _make_label(self, record: _Record, where: str) -> Any:
        feature = record.features.get(self.label or "")
        if feature is None or feature.is_empty:
            return None
        if self.info.label_type == LABEL_LIST:
            return self._make_list(feature, record, where)
        if feature.values is None or len(feature.values) != 1:
            raise self._explain_values(feature, record, where)
        (value,) = feature.values
        if self.class_names:
            return self._get_class_name(value, record, where)
        target = self.info.label_type
        if pa.types.is_string(target):
            return record.get_text(self.label)
        if feature.kind == "bytes" or (feature.kind == "float" and target == pa.int64()):
            raise InputError(
                f"{where}: record {record.number} has the label {record.get_text(self.label)!r}, "
                f"but the first labels have the type {target}; give all labels one type"
            )
        return value

    def _make_list(self, feature: Feature, record: _Record, where: str) -> list[Any]:
        """Return the label of a record as a list of texts, numbers or names of classes."""
        if feature.values is None or feature.kind == "float":
            raise self._explain_values(feature, record, where)
        if self.class_names:
            return [self._get_class_name(value, record, where) for value in feature.values]
        return list(feature.values)

    def _explain_values(self, feature: Feature, record: _Record, where: str) -> InputError:
        return InputError(
            f"{where}: record {record.number}: the feature {self.label!r} has "
            f"{feature.describe()}; a label must be a single int, float or short text: select "
            "another feature with --label-column"
            + (
                f"; --label-column {self.label} takes several values as a list of labels, if one "
                f"of the first {_RECORDS_INSPECTED} records has several"
                if feature.values is not None and feature.kind != "float"
                else ""
            )
        )

    def _get_class_name(self, value: Any, record: _Record, where: str) -> str | None:
        if isinstance(value, int) and value < len(self.class_names):
            # TensorFlow Datasets writes -1 for a record without a label.
            return self.class_names[value] if value >= 0 else None
        raise InputError(
            f"{where}: record {record.number} has the label {value!r}, but there are only "
            f"{len(self.class_names)} class names"
        )

    def reader(self) -> PackedReader:
        """Return what opens the images."""
        return PackedReader(self.location, functools.partial(read_images, feature=self.image))


def open_tfrecord(split: str, files: ContainerFiles, config: RunConfig) -> TFRecordSource:
    """Open TFRecord files as a source.

    Raises:
        InputError: a file is not a TFRecord of Examples, or a feature is missing.
    """
    return open_records(split, files, choose_names(config, FeatureNames()))


def choose_names(config: RunConfig, default: FeatureNames) -> FeatureNames:
    """Return the names of features that were asked for, and otherwise the default ones."""
    has_label = "label_column" in config.model_fields_set
    return FeatureNames(
        images=default.images if config.image_column is None else (config.image_column,),
        labels=(config.label_column,) if has_label else default.labels,
        takes_lists=has_label,
        keys=default.keys if config.key_column is None else (config.key_column,),
    )


def open_records(
    split: str,
    files: ContainerFiles,
    names: FeatureNames,
    *,
    class_names: Mapping[str, tuple[str, ...]] | None = None,
    counts: tuple[int, ...] = (),
    notes: Sequence[str] = (),
) -> TFRecordSource:
    """Open TFRecord files as a source.

    Args:
        split: the name of the split.
        files: the files.
        names: the names of the features.
        class_names: the names of classes, by feature.
        counts: how many records each file must have; empty if that is unknown.
        notes: messages for the user.

    Raises:
        InputError: a file is not a TFRecord of Examples, or a feature is missing.
    """
    named = redact_uri(files.named)
    where, records = _read_first(files, named)
    image = _choose_image(records, names.images, where)
    label = _find_present(records, names.labels)
    key = _find_present(records, names.keys)
    if key is None and names.keys != FeatureNames().keys:
        raise InputError(
            f"{where}: no feature {names.keys[0]!r} for --key-column; the features are "
            f"{_list_features(records)}"
        )
    extras, reserved = _find_extras(records, {image, key, label})
    said = [*notes, *files.notes, *describe_reserved(named, "features", reserved)]
    said += _describe_other_labels(label, names.labels, named, records)
    known = (class_names or {}).get(label or "", ())
    return TFRecordSource(
        split=split,
        files=files,
        image=image,
        key=key,
        label=label,
        class_names=known,
        counts=counts,
        info=SourceInfo(
            label_type=_find_label_type(records, label, known, names.takes_lists),
            extras=extras,
            has_label_column=label is not None,
            notes=tuple(said),
            unlabeled="" if label else _explain_no_label(names.labels, named, records),
        ),
    )


def read_images(file: File, places: Sequence[Place], *, feature: str) -> Iterator[bytes | None]:
    """Yield the encoded images of some records of a TFRecord file.

    Raises:
        OSError: the file cannot be read, or ends before a record does.
        ValueError: a record is damaged.
    """
    for place, data in zip(places, read_records(file, places), strict=True):
        try:
            yield get_bytes(data, feature)
        except ValueError as error:
            raise ValueError(f"the record at byte {place.position}: {error}") from error


def _read_first(files: ContainerFiles, named: str) -> tuple[str, list[_Record]]:
    """Return the first file that has records, and the first of them."""
    for _, file, stat in files.locate():
        if records := list(islice(_read_records(file, stat), _RECORDS_INSPECTED)):
            return str(file), records
    raise InputError(f"--source {named}: no records; all its files are empty")


def _read_records(file: File, stat: SizeAndTime) -> Iterator[_Record]:
    for number, (place, reader) in enumerate(find_records(file, stat[0] or 0)):
        try:
            features = read_small_features(reader.read, place.position, place.length or 0)
        except ValueError as error:
            raise InputError(
                f"{file}: record {number} cannot be read: {error}; a record must be a serialized "
                "tf.train.Example with an encoded image"
            ) from error
        yield _Record(number, place, features)


def _get_filled(records: Sequence[_Record], name: str) -> list[Feature]:
    """Return a feature of all records in which it has values."""
    features = (record.features.get(name) for record in records)
    return [feature for feature in features if feature is not None and not feature.is_empty]


def _find_present(records: Sequence[_Record], names: Sequence[str]) -> str | None:
    """Return the first of some features that has a value in any of the records."""
    for name in names:
        for feature in _get_filled(records, name):
            # Writers that have no text often write an empty one.
            if feature.values is None or any(value != b"" for value in feature.values):
                return name
    return None


def _choose_image(records: Sequence[_Record], names: Sequence[str], where: str) -> str:
    name = _find_present(records, names)
    if name is None:
        wanted = " or ".join(repr(name) for name in names)
        raise InputError(
            f"{where}: no feature {wanted} with encoded images; the features are "
            f"{_list_features(records)}; select one with --image-column"
        )
    for feature in _get_filled(records, name):
        if feature.kind != "bytes":
            raise InputError(
                f"{where}: the feature {name!r} has numbers ({feature.describe()}) and not encoded "
                "images (JPEG, PNG, …): write them with tf.io.encode_png, or select another "
                "feature with --image-column"
            )
        if feature.values is not None and len(feature.values) > 1:
            raise InputError(
                f"{where}: the feature {name!r} has {len(feature.values)} values, but a record is "
                "one image; write one record for each"
            )
    return name


def _find_extras(
    records: Sequence[_Record], used: set[str | None]
) -> tuple[tuple[str, ...], list[str]]:
    """Return the features of single values, sorted, and those of them with reserved names."""
    names = sorted({name for record in records for name in record.features} - used)
    single = [name for name in names if _is_single(records, name)]
    reserved = [name for name in single if is_reserved(name)]
    return tuple(name for name in single if name not in reserved), reserved


def _is_single(records: Sequence[_Record], name: str) -> bool:
    """Return whether a feature has one number or text in each of the records that have it."""
    filled = _get_filled(records, name)
    return bool(filled) and all(
        feature.values is not None
        and len(feature.values) == 1
        and (feature.kind != "bytes" or _is_text(feature.values[0]))
        for feature in filled
    )


def _is_text(value: bytes) -> bool:
    try:
        return "\0" not in value.decode()
    except UnicodeDecodeError:
        return False


def _make_texts(
    records: Sequence[_Record], name: str, skipped: Counter[str]
) -> Iterator[str | None]:
    for record in records:
        text = record.get_text(name)
        feature = record.features.get(name)
        if text is None and feature is not None and not feature.is_empty:
            skipped[f"values of {name!r} that are not single and short"] += 1
        yield text


def _explain_no_label(names: Sequence[str], named: str, records: Sequence[_Record]) -> str:
    wanted = " or ".join(repr(name) for name in names)
    return (
        f"{named}: no feature {wanted}, so the records are unlabeled; the features are "
        f"{_list_features(records)}; select the label with --label-column"
    )


def _describe_other_labels(
    label: str | None, names: Sequence[str], named: str, records: Sequence[_Record]
) -> list[str]:
    others = [name for name in names if name != label and _find_present(records, [name])]
    if label is None or not others:
        return []
    return [
        f"{named}: the labels are the feature {label!r}; for {' or '.join(map(repr, others))}, use "
        "--label-column"
    ]


def _find_label_type(
    records: Sequence[_Record], label: str | None, class_names: Sequence[str], takes_lists: bool
) -> pa.DataType:
    filled = _get_filled(records, label or "")
    if takes_lists and any(len(feature.values or ()) > 1 for feature in filled):
        return LABEL_LIST
    if class_names:
        return pa.string()
    kinds = {feature.kind for feature in filled}
    if not kinds:
        return pa.null()
    if kinds == {"float", "int64"}:
        return pa.float64()
    return _LABEL_TYPES[kinds.pop()] if len(kinds) == 1 else pa.string()


def _list_features(records: Sequence[_Record]) -> str:
    """Return the first features with their types, by name."""
    features = {name: f for record in reversed(records) for name, f in record.features.items()}
    listed = [f"{name} ({features[name].describe()})" for name in sorted(features)]
    more = ", …" if len(listed) > _FEATURES_LISTED else ""
    return ", ".join(listed[:_FEATURES_LISTED]) + more if listed else "none"

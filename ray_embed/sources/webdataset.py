# SPDX-License-Identifier: Apache-2.0
"""Tar files in the WebDataset format: the files of one sample follow each other.

The base name up to the first dot is the key of a sample, and the rest says what a file is: ``jpg``
or ``png`` an image, ``cls`` a label, ``json`` metadata, ``txt`` a text
(https://github.com/webdataset/webdataset#the-webdataset-format). Planning reads the headers of a
tar and these small files; the actors read the images, by their byte offsets.
"""

import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Any

import pyarrow as pa

from ray_embed.config import RunConfig
from ray_embed.core.keys import make_key
from ray_embed.core.uri import redact_uri
from ray_embed.errors import InputError, get_first_line
from ray_embed.sources.array_checks import get_wanted_labels
from ray_embed.sources.base import SourceInfo
from ray_embed.sources.container_files import ContainerFiles
from ray_embed.sources.files import File, SizeAndTime, open_file
from ray_embed.sources.image_walk import IMAGE_ENDINGS
from ray_embed.sources.json_rows import parse_object
from ray_embed.sources.label_lists import LABEL_LIST, check_not_vectors, make_lists
from ray_embed.sources.label_schema import (
    describe_reserved,
    find_common_type,
    find_label_type,
    is_reserved,
)
from ray_embed.sources.packed_images import PackedReader, Place, make_packed_records, read_ranges
from ray_embed.sources.tar_headers import Member, read_members
from ray_embed.storage.retry import explain_error

_RECORDS_PER_BATCH = 4096
# The first samples show which labels and fields there are.
_SAMPLES_INSPECTED = 100
_MAX_SMALL_FILE = 1 << 20
_LABEL_FIELD = "label"
# Not \d, which matches the digits of all scripts.
_CLASS_NUMBER = re.compile("-?[0-9]{1,18}")
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}


@dataclass
class _Sample:
    """The files of one sample: where its image is, and the contents of its small files."""

    key: str
    place: Place | None = None
    texts: dict[str, bytes] = field(default_factory=dict)

    def find_label(self, fields: dict[str, Any], wanted: str | None, where: str) -> Any:
        """Return the label: from the ``cls`` file, a field of the ``json`` file, or ``txt``.

        Args:
            fields: the fields of the ``json`` file.
            wanted: the field or file that was asked for; None for any of them.
            where: the tar, for messages.
        """
        field = wanted or _LABEL_FIELD
        if field in fields and (wanted or "cls" not in self.texts):
            return fields[field]
        ending = wanted or ("cls" if "cls" in self.texts else "txt")
        text = self._read_text(ending, where)
        if text is None or ending != "cls":
            return text
        return int(text) if _CLASS_NUMBER.fullmatch(text) else text

    def read_fields(self, where: str) -> dict[str, Any]:
        """Return the fields of the ``json`` file; none if there is no such file.

        Raises:
            InputError: it is not a JSON object.
        """
        text = self._read_text("json", where)
        if text is None:
            return {}
        try:
            return parse_object(text)
        except ValueError as error:
            raise InputError(f"{where}: {self.key}.json {error}") from error

    def _read_text(self, ending: str, where: str) -> str | None:
        if ending not in self.texts:
            return None
        try:
            return self.texts[ending].decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: {self.key}.{ending} is not UTF-8: {error}") from error


@dataclass(frozen=True, kw_only=True)
class WebDataset:
    """The samples of tar files: the files by name, and in each the samples in their order.

    `image` is the ending of the images, such as ``input.png``, and `label` the field or the ending
    of the labels; None for any. `fields` are the ``json`` fields of the first samples; others are
    skipped.
    """

    split: str
    files: ContainerFiles
    image: str | None
    label: str | None
    fields: frozenset[str]
    info: SourceInfo

    @property
    def location(self) -> str:
        """The folder of the files."""
        return self.files.folder

    def records(self, skipped: Counter[str]) -> Iterator[pa.RecordBatch]:
        """Yield the samples that have an image.

        Raises:
            InputError: a file is not a tar or is cut off, a key occurs twice, or a label has
                another type than the first ones.
        """
        for name, file, stat in self.files.locate():
            samples = _read_samples(file, skipped, self.image)
            while batch := list(islice(samples, _RECORDS_PER_BATCH)):
                fields = [sample.read_fields(str(file)) for sample in batch]
                if unknown := sum(len(item.keys() - self.fields) for item in fields):
                    skipped[f"json fields that the first {_SAMPLES_INSPECTED} samples lack"] += (
                        unknown
                    )
                yield self._make_records(batch, fields, name, str(file), stat)

    def _make_records(
        self,
        samples: list[_Sample],
        fields: list[dict[str, Any]],
        name: str,
        where: str,
        stat: SizeAndTime,
    ) -> pa.RecordBatch:
        places = [sample.place or Place(0, None) for sample in samples]
        extras = {
            extra: pa.array([_to_text(item.get(extra)) for item in fields], pa.string())
            for extra in self.info.extras
        }
        return make_packed_records(
            {
                "key": pa.array([sample.key for sample in samples], pa.string()),
                "label": self._make_labels(samples, fields, where),
                **extras,
            },
            name,
            stat,
            positions=pa.array([place.position for place in places], pa.int64()),
            lengths=pa.array([place.length for place in places], pa.int64()),
        )

    def _make_labels(
        self, samples: list[_Sample], fields: list[dict[str, Any]], where: str
    ) -> pa.Array:
        target = self.info.label_type
        labels = _find_labels(samples, fields, self.label, where)
        if target == LABEL_LIST:
            for label in labels:
                _find_type(label, where)
            check_not_vectors(labels, where)
            return make_lists(labels)
        if pa.types.is_string(target):
            labels = [label if isinstance(label, list) else _to_text(label) for label in labels]
        try:
            return pa.array(labels, target)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            for sample, label in zip(samples, labels, strict=True):
                if label is not None and _find_type(label, where) != target:
                    found = (
                        f"samples have none; put one with a label among the first "
                        f"{_SAMPLES_INSPECTED}"
                        if pa.types.is_null(target)
                        else f"labels have the type {target}; give all labels one type"
                    )
                    raise InputError(
                        f"{where}: {sample.key} has the label {label!r}, but the first {found}"
                    ) from None
            raise

    def reader(self) -> PackedReader:
        """Return what opens the images."""
        return PackedReader(self.location, read_ranges)


def open_webdataset(split: str, files: ContainerFiles, config: RunConfig) -> WebDataset:
    """Open tar files as a source.

    Raises:
        InputError: a file is not a tar, is compressed, or has no images.
    """
    first = files.first
    where = str(first)
    skipped: Counter[str] = Counter()
    image = config.image_column and config.image_column.lower().removeprefix(".")
    samples = list(islice(_read_samples(first, skipped, image), _SAMPLES_INSPECTED))
    if not samples:
        endings = image or ", ".join(IMAGE_ENDINGS)
        found = ", ".join(f"{count} × {reason}" for reason, count in skipped.items())
        raise InputError(
            f"{where}: no images in it (supported extensions are {endings})"
            + (f"; it has {found}" if found else "")
            + "; select another extension with --image-column, such as input.png for 0001.input.png"
        )
    fields = [sample.read_fields(where) for sample in samples]
    wanted = get_wanted_labels(config)
    labels = _find_labels(samples, fields, wanted, where)
    types = {_find_type(label, where) for label in labels if label is not None}
    label_type = find_common_type(types) if types else pa.null()
    # Lists and objects have no place in a column of text.
    scalars = [
        name
        for item in fields
        for name, value in item.items()
        if not isinstance(value, (list, dict)) and name != config.label_column
    ]
    scalars = list(dict.fromkeys(scalars))
    reserved = list(filter(is_reserved, scalars))
    named = redact_uri(files.named)
    unlabeled = ""
    if not types:
        names = ", ".join(dict.fromkeys(name for item in fields for name in item)) or "none"
        looked_for = f".{wanted}" if wanted else ".cls or .txt"
        unlabeled = (
            f"{named}: no {looked_for} file and no json field "
            f"{config.label_column!r}, so the records are unlabeled (json fields: {names}); select "
            "one with --label-column"
        )
    return WebDataset(
        split=split,
        files=files,
        image=image,
        label=wanted,
        fields=frozenset(name for item in fields for name in item),
        info=SourceInfo(
            label_type=label_type,
            extras=tuple(name for name in scalars if name not in reserved),
            has_label_column=bool(types),
            notes=(*files.notes, *describe_reserved(named, "json fields", reserved)),
            unlabeled=unlabeled,
        ),
    )


def _find_labels(
    samples: list[_Sample], fields: list[dict[str, Any]], wanted: str | None, where: str
) -> list[Any]:
    pairs = zip(samples, fields, strict=True)
    return [sample.find_label(items, wanted, where) for sample, items in pairs]


def _read_samples(file: File, skipped: Counter[str], image: str | None) -> Iterator[_Sample]:
    """Yield the samples of a tar that have an image, in order.

    Args:
        file: the tar.
        skipped: counter to update with the number of skipped files, by reason.
        image: the ending of the images; None for that of any image.

    Raises:
        InputError: the file is not a tar, is compressed or cut off, or a key occurs twice.
    """
    seen: set[int] = set()
    sample: _Sample | None = None
    for name, place, content in _read_members(file):
        base, ending = _split_name(name)
        if ending is None:
            skipped["hidden"] += 1
            continue
        if sample is None or sample.key != base:
            if sample is not None:
                yield from _finish(sample, skipped)
            if hash(base) in seen:
                raise InputError(
                    f"{file}: the key {base!r} occurs twice, or its files do not follow each "
                    "other; write the tar with sorted names"
                )
            seen.add(hash(base))
            sample = _Sample(base)
        if ending == image or (image is None and f".{ending}" in IMAGE_ENDINGS):
            if sample.place is not None:
                raise InputError(
                    f"{file}: the key {base!r} has two images; give each image a key of its own, "
                    "or select the extension of one with --image-column"
                )
            sample.place = place
        elif content is not None:
            sample.texts[ending] = content
        else:
            skipped[f".{ending}"] += 1
    if sample is not None:
        yield from _finish(sample, skipped)


def _finish(sample: _Sample, skipped: Counter[str]) -> Iterator[_Sample]:
    if sample.place is None:
        skipped["samples without an image"] += 1
    else:
        yield sample


def _read_members(file: File) -> Iterator[tuple[str, Place, bytes | None]]:
    """Yield the name and place of each file in a tar, and the content of labels and metadata."""
    try:
        with open_file(file) as stream:
            _refuse_compressed(stream, file)
            for member in read_members(stream):
                place = Place(member.offset, member.size)
                yield make_key(member.name), place, _read_small(member, stream)
    except tarfile.TarError as error:
        raise InputError(
            f"{file}: cannot be read as a tar: {get_first_line(error)}; is the file complete?"
        ) from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {explain_error(error)}") from error


def _read_small(member: Member, stream: IO[bytes]) -> bytes | None:
    """Return the content of a label or of metadata; None for other files."""
    ending = member.name.rpartition(".")[2].lower()
    if ending not in ("cls", "json", "txt") or member.size > _MAX_SMALL_FILE:
        return None
    return member.read(stream)


def _refuse_compressed(stream: IO[bytes], file: File) -> None:
    start = stream.read(8)
    stream.seek(0)
    for magic, (name, tool) in _COMPRESSED.items():
        if start.startswith(magic):
            raise InputError(
                f"{file}: the tar is compressed with {name}, so that its images cannot be read one "
                f"by one; uncompress it with {tool} (JPEG and PNG files hardly get larger)"
            )


def _split_name(name: str) -> tuple[str, str | None]:
    """Split a name at the first dot of its base name; the ending is None for a hidden file."""
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    return folder + slash + stem, ending.lower() if stem and dot else None


def _find_type(label: Any, where: str) -> pa.DataType:
    try:
        return find_label_type(pa.scalar(label).type, where)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise InputError(f"{where}: {label!r} is not a valid label: {error}") from error


def _to_text(value: Any) -> str | None:
    return None if value is None else str(value)

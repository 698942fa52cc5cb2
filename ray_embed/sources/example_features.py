# SPDX-License-Identifier: Apache-2.0
"""The features of a serialized ``tf.train.Example``, without reading its long values.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/example/example.proto is a map
from names to lists of bytes, floats or integers. Protocol Buffers can only parse a message as a
whole, with its image. So what is long is left out before parsing: a feature lies in the message as
a tag, its length, and its content (https://protobuf.dev/programming-guides/encoding).
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Features that take more bytes than this are not read when planning.
MAX_SMALL_FEATURE = 1024

# Returns `size` bytes from `start`; fewer at the end.
ReadRange = Callable[[int, int], bytes]

# Both the features of an Example and the entries of its map are in fields of number 1.
_FIRST_FIELD, _SECOND_FIELD = 0x0A, 0x12
_KINDS = {0x0A: "bytes", 0x12: "float", 0x1A: "int64"}
# A tag and a length have at most 1 + 10 bytes.
_MAX_PREFIX = 11


@dataclass(frozen=True)
class Feature:
    """A feature: its kind (``bytes``, ``float`` or ``int64``; empty if it has no list) and values.

    `values` is None if they are too long to be read when planning.
    """

    kind: str
    values: Sequence[Any] | None

    @property
    def is_empty(self) -> bool:
        """Whether it has no values."""
        return self.values is not None and not self.values

    def describe(self) -> str:
        """Return the kind, and how many values there are if not one."""
        if self.values is None:
            return f"{self.kind}, long"
        return self.kind if len(self.values) == 1 else f"{len(self.values)} × {self.kind or 'none'}"


def read_small_features(read: ReadRange, start: int, length: int) -> dict[str, Feature]:
    """Return the features of a serialized Example; long ones without their values.

    Args:
        read: reads a part of the file.
        start: where the Example begins.
        length: its length in bytes.

    Raises:
        ValueError: it is not an Example.
    """
    small: list[bytes] = []
    features: dict[str, Feature] = {}
    for _, begin, end in _find_fields(read, start, start + length):
        for field, first, last in _find_fields(read, begin, end):
            if last - first <= MAX_SMALL_FEATURE:
                small.append(read(field, last - field))
            else:
                name, kind = _read_name(read, first, last)
                features[name] = Feature(kind, None)
    return _parse_features(b"".join(small)) | features


def get_bytes(example: bytes, name: str) -> bytes | None:
    """Return the value of a feature of a serialized Example; None if it has no value.

    Raises:
        ValueError: it is not an Example, or the feature has several values.
    """
    features = _parse(_define_messages()["Example"], example).features.feature
    # A lookup would add a missing feature.
    values = features[name].bytes_list.value if name in features else ()
    if len(values) > 1:
        raise ValueError(
            f"the feature {name!r} has {len(values)} values, but a record is one image"
        )
    return values[0] if values else None


def _find_fields(read: ReadRange, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield where each field of a message and its content begin, and where it ends.

    All fields must have number 1.
    """
    while start < stop:
        prefix = read(start, min(_MAX_PREFIX, stop - start))
        size, used = _decode_number(prefix, 1)
        end = start + used + size
        if prefix[0] != _FIRST_FIELD or end > stop:
            raise ValueError("it is not a tf.train.Example")
        yield start, start + used, end
        start = end


def _read_name(read: ReadRange, start: int, stop: int) -> tuple[str, str]:
    """Return the name and the kind of a long feature."""
    entry = read(start, min(MAX_SMALL_FEATURE, stop - start))
    size, begin = _decode_number(entry, 1)
    value = begin + size
    # The value begins with its own tag and length, and then the tag of its list.
    if (
        entry[0] != _FIRST_FIELD
        or value + _MAX_PREFIX >= len(entry)
        or entry[value] != (_SECOND_FIELD)
    ):
        raise ValueError("it is not a tf.train.Example, or the name of a feature is too long")
    _, kind = _decode_number(entry, value + 1)
    return entry[begin:value].decode(), _KINDS.get(entry[kind], "")


def _decode_number(content: bytes, start: int) -> tuple[int, int]:
    """Return the number (a varint) at a position, and the position after it."""
    if start < len(content) and content[start] < 0x80:
        return content[start], start + 1
    number = shift = 0
    for position in range(start, min(start + 10, len(content))):
        number |= (content[position] & 0x7F) << shift
        if content[position] < 0x80:
            return number, position + 1
        shift += 7
    raise ValueError("it is not a tf.train.Example")


def _parse_features(content: bytes) -> dict[str, Feature]:
    features = {}
    for name, feature in _parse(_define_messages()["Features"], content).feature.items():
        kind = feature.WhichOneof("kind")
        values = getattr(feature, kind).value if kind else ()
        features[name] = Feature(kind.removesuffix("_list") if kind else "", values)
    return features


def _parse(message: Any, content: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return message.FromString(content)
    except DecodeError as error:
        raise ValueError("it is not a tf.train.Example") from error


@functools.cache
def _define_messages() -> dict[str, Any]:
    """Return the classes of the messages by name. Those of TensorFlow take seconds to import."""
    from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

    def field(number: int, name: str, type_: str, **others: Any) -> dict[str, Any]:
        kind = {"type": type_} if type_.isupper() else {"typeName": f".{type_}"}
        return {"number": number, "name": name, "label": "LABEL_OPTIONAL", **kind, **others}

    def values(name: str, type_: str) -> dict[str, Any]:
        return {"name": name, "field": [field(1, "value", type_, label="LABEL_REPEATED")]}

    kinds = [("bytes", "BytesList"), ("float", "FloatList"), ("int64", "Int64List")]
    choices = [
        field(number, f"{kind}_list", list_, oneofIndex=0)
        for number, (kind, list_) in enumerate(kinds, 1)
    ]
    entry = {
        "name": "FeatureEntry",
        "field": [field(1, "key", "TYPE_STRING"), field(2, "value", "Feature")],
        "options": {"mapEntry": True},
    }
    entries = field(1, "feature", "Features.FeatureEntry", label="LABEL_REPEATED")
    schema = {
        "name": "example.proto",
        "syntax": "proto3",
        "messageType": [
            values("BytesList", "TYPE_BYTES"),
            values("FloatList", "TYPE_FLOAT"),
            values("Int64List", "TYPE_INT64"),
            {"name": "Feature", "field": choices, "oneofDecl": [{"name": "kind"}]},
            {"name": "Features", "nestedType": [entry], "field": [entries]},
            {"name": "Example", "field": [field(1, "features", "Features")]},
        ],
    }
    # Not the default pool, which may hold the same messages of TensorFlow.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(json_format.ParseDict(schema, descriptor_pb2.FileDescriptorProto()))
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
        for name in ("Example", "Features")
    }

# SPDX-License-Identifier: Apache-2.0
"""The files found in a tar are those that `tarfile` finds."""

import io
import tarfile

import pytest

from ray_embed.sources import tar_headers
from ray_embed.sources.tar_headers import read_members

NAMES = [
    "a.png",
    "folder/b.cls",
    "n" * 100,
    "l" * 300 + ".json",
    "p" * 90 + "/" + "q" * 90,
    "猫.png",
]
SIZES = [0, 1, 511, 512, 513, 5000]


def write(format_: int) -> bytes:
    """Write files of all names and sizes, a folder, a link, and a file with other attributes."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=format_) as tar:
        for name in NAMES if format_ != tarfile.USTAR_FORMAT else NAMES[:3] + NAMES[4:]:
            for size in SIZES:
                member = tarfile.TarInfo(f"{size}{name}"[: len(name)])
                member.size = size
                tar.addfile(member, io.BytesIO(bytes([size % 251]) * size))
        for type_ in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.AREGTYPE):
            member = tarfile.TarInfo("other")
            member.type, member.linkname = type_, "a.png"
            tar.addfile(member)
    return content.getvalue()


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(format_):
    content = write(format_)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [
            (m.name, m.offset_data, m.size, tar.extractfile(m).read()) for m in tar if m.isfile()
        ]
    stream = io.BytesIO(content)
    found = [(m.name, m.offset, m.size, m.read(stream)) for m in read_members(stream)]
    assert found == expected
    assert len(found) > 30


def test_plain_headers_are_read_without_tarfile(monkeypatch):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for number in range(5):
            tar.addfile(tarfile.TarInfo(f"{number}.cls"))
    parsed = []
    parse = tar_headers._parse_plain
    monkeypatch.setattr(tar_headers, "_parse_plain", lambda block: parsed.append(parse(block)))
    assert len(list(read_members(content))) == 5
    assert parsed[:5] == [(f"{number}.cls", 0) for number in range(5)]


@pytest.mark.parametrize("length", [700, 1024 + 100, 512 * 40 + 100])
def test_a_tar_that_is_cut_off_is_an_error(length):
    content = write(tarfile.GNU_FORMAT)
    with pytest.raises(tarfile.TarError):
        list(read_members(io.BytesIO(content[:length])))


def test_a_damaged_header_is_an_error():
    content = bytearray(write(tarfile.GNU_FORMAT))
    second = next(
        at for at in range(512, len(content), 512) if content[at + 257 : at + 262] == b"ustar"
    )
    content[second] ^= 1
    with pytest.raises(tarfile.TarError):
        list(read_members(io.BytesIO(bytes(content))))

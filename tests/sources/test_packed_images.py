# SPDX-License-Identifier: Apache-2.0
"""Encoded images at ranges of a file."""

import io

from ray_embed.sources import packed_images
from ray_embed.sources.files import File
from ray_embed.sources.packed_images import Place


def test_a_store_is_asked_for_neighboring_ranges_at_once(tmp_path, monkeypatch):
    class Counting(io.BytesIO):
        reads = 0

        def read(self, size=-1):
            Counting.reads += 1
            return super().read(size)

    content = bytes(range(256)) * 8
    monkeypatch.setattr(packed_images, "open_file", lambda file: Counting(content))
    monkeypatch.setattr(packed_images, "_CHUNK_BYTES", 500)
    places = [Place(start, 10) for start in (0, 100, 450, 600, 2000)]
    file = File(b"x", filesystem=object())  # type: ignore[arg-type]
    found = list(packed_images.read_ranges(file, places))
    assert found == [content[place.position :][:10] for place in places]
    assert Counting.reads == 3


def test_a_record_without_an_image_has_none(tmp_path):
    (tmp_path / "d.bin").write_bytes(b"abcdef")
    places = [Place(0, 2), Place(2, None), Place(2, 0), Place(3, 3)]
    found = packed_images.read_ranges(File(bytes(tmp_path / "d.bin")), places)
    assert list(found) == [b"ab", None, b"", b"def"]

# SPDX-License-Identifier: Apache-2.0
"""A folder of real pictures in category folders, with broken files among them.

    apt-get install openclipart-png
    python tests/benchmarks/clipart.py DIR [--images 3000] [--copy] [--max-pixels N]

The pictures are those of the Debian package openclipart-png, of many kinds of PNG and of any size
up to gigantic, taken from its categories in turn, so that a small corpus has all of them; the
category is the first folder of a path and is the label. Among them lie about thirty files that
cannot be decoded, or not rightly, `CATEGORY/broken-KIND-0.png` and the like. Their relative paths
are printed, one a line, and with them those of pictures above `--max-pixels`: all the records
that have to be rejected where the same limit is given to ray-embed.

The order and every byte are the same for the same package and number.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE = "openclipart-png"
USUAL = Path("/usr/share/openclipart/png")
MAX_PIXELS = 178_956_970  # ray-embed's default


def build(
    root: Path,
    n: int = 3000,
    source: Path | None = None,
    copy: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> list[str]:
    """Put n pictures and the broken files into root; return what has to be rejected, sorted.

    That is the relative paths of the broken files and of pictures above `max_pixels`.

    Pictures are symlinks into `source` (default: where the package is), or copies with `copy`.
    n larger than the package: all there are. What is there already stays.

    Raises FileNotFoundError where the package is not installed and ValueError where root holds
    other files than these.
    """
    root = Path(root)
    source = installed() if source is None else Path(source).resolve()
    names = pictures(source)[:n]
    categories = sorted({name.split("/")[0] for name in names})
    broken = {
        f"{categories[i % len(categories)]}/broken-{name}": content
        for i, (name, content) in enumerate(broken_files())
    }
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    if foreign := sorted(there - set(names) - set(broken)):
        raise ValueError(f"{root} holds {len(foreign)} other files, such as {foreign[0]}")
    for name in names:
        target = root / name
        if name in there and (copy or target.is_symlink()):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            shutil.copyfile(source / name, target)
        else:
            target.unlink(missing_ok=True)
            target.symlink_to(source / name)
    for name, content in broken.items():
        (root / name).write_bytes(content)
    return sorted([*broken, *(name for name in names if _pixels(source / name) > max_pixels)])


def installed() -> Path:
    """The folder of the package's pictures."""
    if USUAL.is_dir():
        return USUAL
    try:
        listed = subprocess.run(
            ["dpkg", "-L", PACKAGE], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except (FileNotFoundError, subprocess.CalledProcessError):
        listed = []
    folders = [Path(line) for line in listed if line.endswith("/png") and Path(line).is_dir()]
    if not folders:
        raise FileNotFoundError(f"no pictures of {PACKAGE}: apt-get install {PACKAGE}")
    return folders[0]


def pictures(source: Path) -> list[str]:
    """The files below source, one of each category in turn, each category in path order.

    The package's own symlinks (one picture in several places) are left out.
    """
    by_category: dict[str, list[str]] = {}
    for parent, _, names in os.walk(source):
        for name in names:
            path = Path(parent, name)
            relative = path.relative_to(source).as_posix()
            if "/" in relative and path.suffix.lower() == ".png" and not path.is_symlink():
                by_category.setdefault(relative.split("/")[0], []).append(relative)
    columns = [sorted(by_category[category]) for category in sorted(by_category)]
    return [name for name in chain.from_iterable(zip_longest(*columns)) if name is not None]


def _pixels(png: Path) -> int:
    """Width times height, as the header tells."""
    with png.open("rb") as file:
        width, height = struct.unpack(">16xII", file.read(24))
    return int(width * height)


def broken_files() -> Iterator[tuple[str, bytes]]:
    """Names (the kind is in them) and contents of files that no picture can be had from.

    Palette BMPs are among them: TensorFlow decodes them without a word, and wrongly.
    """
    rng = np.random.default_rng(0)
    for k in range(2):
        picture = _drawing(rng, 160 + 40 * k, 120)
        png, jpeg = _encoded(picture, "PNG"), _encoded(picture, "JPEG", quality=90)
        gif, bmp = _encoded(picture.convert("P"), "GIF"), _encoded(picture, "BMP")
        yield f"png-cut-{k}.png", png[: len(png) // (2 + k)]
        yield f"png-data-damaged-{k}.png", _damaged(png)
        yield f"jpeg-tail-cut-{k}.jpg", jpeg[: len(jpeg) * (6 + 2 * k) // 10]
        yield f"gif-header-only-{k}.gif", gif[: 6 + 7 * k]
        yield f"bmp-cut-{k}.bmp", bmp[: len(bmp) // 2]
        yield f"bmp-1-bit-{k}.bmp", _encoded(picture.convert("1"), "BMP")
        yield f"bmp-palette-{k}.bmp", _encoded(picture.quantize(16 << (4 * k)), "BMP")
        yield f"random-{k}.jpg", rng.bytes(2000 + 500 * k)
    yield "empty-0.png", b""
    yield "empty-1.jpg", b""
    yield "empty-2.bmp", b""
    yield "one-byte-0.jpeg", b"\xff"
    yield "text-0.png", b"this is no picture\n"
    yield "text-1.png", "label\tpath\nkatze\tbäume/01.png\n".encode()
    yield "html-0.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n"
    yield "svg-0.png", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>\n'
    yield "random-2.png", b"\x89PNG\r\n\x1a\n" + rng.bytes(1000)
    yield "jpeg-start-only-0.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"
    yield "tiff-0.png", _encoded(_drawing(rng, 40, 30), "TIFF")
    yield "png-no-pixels-0.png", _png_header(0, 0)
    yield "png-no-width-0.png", _png_header(0, 16)
    yield "png-too-large-0.png", _png_header(2**31 - 1, 2**31 - 1)
    yield "gif-no-pixels-0.gif", b"GIF89a" + struct.pack("<HHBBB", 0, 0, 0, 0, 0) + b";"
    yield "bmp-no-pixels-0.bmp", _bmp_header(0, 0)


def _drawing(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A smooth coloured pattern with some grain."""
    y, x = np.mgrid[:height, :width] / 20
    waves = np.stack([np.sin(x * a + y * b) for a, b in rng.uniform(-1, 1, (3, 2))], axis=-1)
    grain = rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(128 + 90 * waves + grain, 0, 255).astype(np.uint8))


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _damaged(png: bytes) -> bytes:
    """The compressed pixels with a stretch of other bytes in their middle."""
    middle = len(png) // 2
    turned = bytes(255 - value for value in png[middle : middle + 64])
    return png[:middle] + turned + png[middle + 64 :]


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _png_header(width: int, height: int) -> bytes:
    """A PNG with sound checksums that claims this size and has one row of one pixel."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\x00\x00\x00\x00")
    chunks = [_chunk(b"IHDR", header), _chunk(b"IDAT", pixels), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _bmp_header(width: int, height: int) -> bytes:
    """A 24-bit BMP of this size without pixels."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 14 + len(info), 0, 0, 14 + len(info)) + info


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--copy", action="store_true", help="copies, not symlinks")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS)
    given = parser.parse_args()
    try:
        rejected = build(given.folder, given.images, copy=given.copy, max_pixels=given.max_pixels)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    print("\n".join(rejected))


if __name__ == "__main__":
    main()

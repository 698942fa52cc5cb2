# SPDX-License-Identifier: Apache-2.0
"""Thousands of image files that were made to break a decoder, through the whole program.

    python tests/faults/hostile.py --files 10000

They are made of real pictures (scikit-learn's photographs and digits) of every kind, and then
harmed: cut off, bits flipped, pieces swapped, given another ending, put behind or before
other files, told to be of 60,000 × 60,000 pixels or of none, with comments of a megabyte, thousands
of scans, names of any bytes. Each must end as a row or as a reject, in bounded time and memory, and
the run with exit 0; what is not harmed must be a row.

Exit 0: so it is; 1: not so.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pillow_heif
import pyarrow.parquet as pq
import tifffile
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from processes import measure
from support.sample_runs import part_files, save_encoder

Kind = tuple[str, str, bytes]  # name, ending, content
BIG = 60_000
ENDINGS = ("jpg", "jpeg", "png", "gif", "bmp", "JPG", "PnG", "tif", "webp", "dcm", "heic", "jp2")
pillow_heif.register_heif_opener()


def photographs() -> list[Image.Image]:
    from sklearn.datasets import load_digits, load_sample_images

    cut = [
        Image.fromarray(photo[at : at + 160, at : at + 200])
        for photo in load_sample_images().images
        for at in (0, 120)
    ]
    digits = [
        Image.fromarray((digit * 15).astype(np.uint8)).resize((32, 32))
        for digit in load_digits().images[:4]
    ]
    return [*cut, *digits]


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content), kind) + content + struct.pack(
        ">I", zlib.crc32(kind + content)
    )  # fmt: skip


def png(head: bytes, lines: bytes, *others: bytes) -> bytes:
    body = chunk(b"IHDR", head) + b"".join(others) + chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    sink = io.BytesIO()
    tifffile.imwrite(sink, pixels, **options)
    return sink.getvalue()


def dicom(pixels: np.ndarray) -> bytes:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.set_pixel_data(pixels, "MONOCHROME2", 12)
    dataset.WindowCenter, dataset.WindowWidth = 1000, 1500
    sink = io.BytesIO()
    dataset.save_as(sink, enforce_file_format=True)
    return sink.getvalue()


def interlaced(image: Image.Image) -> bytes:
    """Adam7: seven small pictures, one after the other (PNG, third edition, section 8)."""
    pixels = np.asarray(image.convert("RGB"))
    lines = b""
    for y, x, down, right in (
        (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):  # fmt: skip
        for row in pixels[y::down, x::right]:
            lines += b"\0" + row.tobytes() if row.size else b""
    head = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 1)
    return png(head, lines)


def kinds() -> list[Kind]:
    """Unharmed pictures of every kind; a name ends in `odd` where it may be rejected."""
    found: list[Kind] = []
    for at, image in enumerate(photographs()):
        rgb = image.convert("RGB")
        frames = [rgb.rotate(angle) for angle in (0, 30, 60)]
        found += [
            (f"jpeg-{at}", "jpg", saved(rgb, "JPEG")),
            (f"jpeg-progressive-{at}", "jpeg", saved(rgb, "JPEG", progressive=True)),
            (f"jpeg-grey-{at}", "jpg", saved(rgb.convert("L"), "JPEG")),
            (f"jpeg-cmyk-{at}", "jpg", saved(rgb.convert("CMYK"), "JPEG")),
            (f"png-{at}", "png", saved(rgb, "PNG")),
            (f"png-alpha-{at}", "png", saved(rgb.convert("RGBA"), "PNG")),
            (f"png-grey-{at}", "png", saved(rgb.convert("L"), "PNG")),
            (f"png-palette-{at}", "png", saved(rgb.quantize(40), "PNG")),
            (f"png-one-bit-{at}", "png", saved(rgb.convert("1"), "PNG")),
            (f"png-16-bit-{at}", "png", saved(rgb.convert("I;16"), "PNG")),
            (f"png-interlaced-{at}", "png", interlaced(image)),
            (f"gif-{at}", "gif", saved(rgb.quantize(64), "GIF")),
            (
                f"gif-animated-{at}",
                "gif",
                saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
            ),
            (f"bmp-{at}", "bmp", saved(rgb, "BMP")),
            (f"bmp-palette-{at}-odd", "bmp", saved(rgb.quantize(40), "BMP")),
            (f"bmp-one-bit-{at}-odd", "bmp", saved(rgb.convert("1"), "BMP")),
            (f"webp-{at}", "png", saved(rgb, "WEBP")),
            (f"webp-lossless-{at}", "webp", saved(rgb.convert("RGBA"), "WEBP", lossless=True)),
            (
                f"webp-animated-{at}",
                "webp",
                saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
            ),
            (f"avif-{at}", "avif", saved(rgb, "AVIF", speed=10)),
            (f"heic-{at}", "heic", saved(rgb, "HEIF")),
            (f"jp2-{at}", "jp2", saved(rgb, "JPEG2000")),
            (f"tiff-{at}", "jpg", saved(rgb, "TIFF")),
            (f"tiff-cmyk-{at}-odd", "tif", saved(rgb.convert("CMYK"), "TIFF")),
        ]
        levels = np.asarray(rgb)
        found += [
            (f"tiff-lzw-{at}", "tif", tiff(levels, compression="lzw", predictor=True)),
            (f"tiff-jpeg-{at}", "tif", tiff(levels, compression="jpeg")),
            (f"tiff-tiles-{at}", "tiff", tiff(levels, compression="deflate", tile=(64, 64))),
            (f"tiff-16-{at}", "tif", tiff(levels.astype(np.uint16) * 200, bigtiff=True)),
            (f"tiff-float-{at}", "tif", tiff(levels.astype(np.float32), photometric="rgb")),
            (f"tiff-pages-{at}", "tif", tiff(np.stack([levels] * 3), photometric="rgb")),
            (f"dicom-{at}", "dcm", dicom(levels[..., 0].astype(np.uint16) * 16)),
        ]
    return found


def with_size(content: bytes, width: int, height: int) -> bytes:
    """Let a picture say it has another size."""
    changed = bytearray(content)
    if content.startswith(b"\x89PNG"):
        changed[16:24] = struct.pack(">II", width, height)
        changed[29:33] = struct.pack(">I", zlib.crc32(bytes(changed[12:29])))
    elif content.startswith(b"GIF8"):
        changed[6:10] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    elif content.startswith(b"BM"):
        changed[18:26] = struct.pack("<ii", width, height)
    elif content.startswith((b"RIFF", b"II*\0", b"II+\0")) or content[128:132] == b"DICM":
        for mark, side in (
            (b"\0\1\4\0\1\0\0\0", width), (b"\1\1\4\0\1\0\0\0", height),
            (b"\0\1\3\0\1\0\0\0", width), (b"\1\1\3\0\1\0\0\0", height),
            (b"\x28\0\x11\0US\2\0", width), (b"\x28\0\x10\0US\2\0", height),
        ):  # fmt: skip
            at = content.find(mark)
            if at >= 0:
                whole = mark[2] != 3 and mark[4:6] != b"US"
                packed = struct.pack("<I", side) if whole else struct.pack("<H", side & 0xFFFF)
                changed[at + 8 : at + 8 + len(packed)] = packed
        if content[12:16] == b"VP8X":
            changed[24:30] = (width - 1 & 0xFFFFFF).to_bytes(3, "little") + (
                height - 1 & 0xFFFFFF
            ).to_bytes(3, "little")
        elif content[12:16] == b"VP8 ":
            changed[26:30] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
    elif (at := content.find(b"ispe")) >= 0:
        changed[at + 8 : at + 16] = struct.pack(">II", width, height)
    elif (at := content.find(b"\xff\x51")) >= 0:
        changed[at + 6 : at + 14] = struct.pack(">II", width, height)
    else:
        for at in range(2, len(content) - 9):
            if content[at] == 0xFF and content[at + 1] in (0xC0, 0xC2):
                changed[at + 5 : at + 9] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
                break
    return bytes(changed)


def with_comment(content: bytes, size: int) -> bytes:
    text = b"x" * size
    if content.startswith(b"\xff\xd8"):
        pieces = [text[at : at + 65533] for at in range(0, size, 65533)]
        comments = [b"\xff\xfe" + struct.pack(">H", len(piece) + 2) + piece for piece in pieces]
        return content[:2] + b"".join(comments) + content[2:]
    if content.startswith(b"\x89PNG"):
        return content[:33] + chunk(b"tEXt", b"Comment\0" + text) + content[33:]
    return content + text


def many_scans(content: bytes, times: int, side: int) -> bytes:
    """Repeat the last scan of a progressive JPEG, and let it be larger than it is."""
    last = content.rfind(b"\xff\xda")
    end = content.rfind(b"\xff\xd9")
    return with_size(content[:last] + content[last:end] * times + content[end:], side, side)


def bomb(side: int) -> bytes:
    """A PNG of one colour: few bytes, many pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pack = zlib.compressobj(9)
    line = b"\0" * (1 + 3 * side)
    lines = b"".join(pack.compress(line) for _ in range(side)) + pack.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def tiff_of(*tags: tuple[int, int, int, int], after: int = 0, data: bytes = b"") -> bytes:
    """A TIFF of one directory with these tags (number, type, count, value), and what follows."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", after) + data


def gray_tiff(
    side: int, strip: bytes, *others: tuple[int, int, int, int], after: int = 0, data: bytes = b""
) -> bytes:
    """A gray TIFF of one compressed strip, and what follows."""
    tags = [
        (256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1),
        (273, 4, 1, 0), (277, 3, 1, 1), (278, 4, 1, side), (279, 4, 1, len(strip)), *others,
    ]  # fmt: skip
    start = len(tiff_of(*tags))
    tags[5] = (273, 4, 1, start)
    return tiff_of(*tags, after=after, data=strip + data)


def hostile_tiffs() -> Iterator[tuple[str, str, bytes]]:
    """TIFF files that say, or unpack to, more than they have."""
    zeros = zlib.compress(bytes(300_000_000), 9)
    yield "tiff-strip-bomb", "tif", gray_tiff(64, zeros)
    yield "tiff-bomb", "tif", gray_tiff(13_000, zeros)
    yield "tiff-bomb-over", "tif", gray_tiff(14_000, zeros)
    yield "tiff-samples", "tif", gray_tiff(64, zeros, (338, 3, 1, 0), (277, 3, 1, 60_000))
    small = zlib.compress(bytes(64))
    yield "tiff-ring", "tif", gray_tiff(8, small, after=8)
    yield "tiff-tag-count", "tif", tiff_of((256, 4, 1, 8), (257, 4, 1, 8), (273, 4, 2**31, 8))
    yield "tiff-tags", "tif", b"II*\0" + struct.pack("<IH", 8, 65535)
    start = len(gray_tiff(8, small))
    pages = (
        struct.pack("<HHHIII", 1, 256, 4, 1, 8, start + (page + 1) * 18) for page in range(100_000)
    )
    yield "tiff-pages", "tif", gray_tiff(8, small, after=start, data=b"".join(pages))


def flipped(content: bytes, bits: int, choose: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(bits):
        at = choose.randrange(len(changed) * 8)
        changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


def swapped(content: bytes, choose: random.Random) -> bytes:
    a, b, c = sorted(choose.sample(range(len(content)), 3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def harmed(
    content: bytes, others: list[Kind], choose: random.Random
) -> Iterator[tuple[str, bytes]]:
    """Give what is made of one picture, each with a name."""
    size = len(content)
    for cut in (0, 1, 2, 3, 4, 8, 10, 16, 25, 32, 33, 64, 100, size // 4, size // 2, size - 1):
        yield f"cut-{cut}", content[:cut]
    yield "cut-anywhere", content[: choose.randrange(size)]
    for bits in (1, 1, 2, 8, 64, 512):
        yield f"flipped-{bits}", flipped(content, bits, choose)
    yield "flipped-head", flipped(content[:40], 3, choose) + content[40:]
    yield "swapped", swapped(content, choose)
    yield "swapped-often", swapped(swapped(swapped(content, choose), choose), choose)
    other = choose.choice(others)[2]
    yield "head-of-another", content[:20] + other[20:]
    yield "half-of-another", content[: size // 2] + other[len(other) // 2 :]
    yield "another-behind", content + other
    yield "archive-behind", content + b"PK\x03\x04" + other[:200]
    yield "page-before", b"<html><script>1</script>" + content
    yield "says-60000", with_size(content, BIG, BIG)
    yield "says-wide", with_size(content, 65535, 1)
    yield "says-0-wide", with_size(content, 0, 100)
    yield "says-0-high", with_size(content, 100, 0)
    yield "says-more", with_size(content, 3000, 3000)
    yield "says-all", with_size(content, 0x7FFFFFFF, 0x7FFFFFFF)
    yield "comment-1MB", with_comment(content, 1_000_000)
    yield "zeros", bytes(size)
    yield "ones", b"\xff" * size
    yield "random", choose.randbytes(size)


def special() -> Iterator[tuple[str, str, bytes]]:
    """A few that are made on purpose."""
    photo = photographs()[0]
    progressive = saved(photo, "JPEG", progressive=True)
    yield "scans", "jpg", many_scans(progressive, 300, 4000)
    yield "scans-large", "jpg", many_scans(progressive, 2000, 12000)
    yield "bomb", "png", bomb(13000)
    yield "bomb-over", "png", bomb(14000)
    head = struct.pack(">IIBBBBB", 8, 8, 8, 3, 0, 0, 0)
    yield "no-palette", "png", png(head, b"\0" * 72)
    yield "palette-short", "png", png(head, b"\0" + b"\xff" * 71, chunk(b"PLTE", b"abc"))
    yield "bits-3", "png", png(struct.pack(">IIBBBBB", 8, 8, 3, 2, 0, 0, 0), b"\0" * 300)
    yield "profile", "png", png(
        struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0),
        b"\0" * 52,
        chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(50_000_000))),
    )  # fmt: skip
    yield "text-bomb", "png", png(
        struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0),
        b"\0" * 52,
        chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(100_000_000))),
    )  # fmt: skip
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 2, 2, 0) + b"\x02\x02\x44\x51\x00"
    yield "frames", "gif", (
        b"GIF89a" + struct.pack("<HHBBB", 2, 2, 0x80, 0, 0) + bytes(6) + frame * 100_000 + b"\x3b"
    )  # fmt: skip
    yield "frames-large", "gif", (
        b"GIF89a" + struct.pack("<HHBBB", 8000, 8000, 0x80, 0, 0) + bytes(6) + frame * 500 + b"\x3b"
    )  # fmt: skip
    yield from hostile_tiffs()
    wide = saved(photo, "WEBP", lossless=True)
    yield "webp-canvas", "webp", (
        b"RIFF" + struct.pack("<I", len(wide) + 10) + b"WEBPVP8X" + struct.pack("<II", 10, 2)
        + b"\xfe\x3f\0" * 2 + b"ANIM" + struct.pack("<IIH", 6, 0, 0) + wide[12:]
    )  # fmt: skip
    yield "one-pixel", "png", saved(photo.resize((1, 1)), "PNG")
    yield "thin", "png", saved(photo.resize((1, 4000)), "PNG")
    yield "wide", "jpg", saved(photo.resize((8000, 1)), "JPEG")


def odd_names(choose: random.Random) -> Iterator[bytes]:
    """Names that a file system takes."""
    yield from (
        b"line\nbreak", b"tab\there", b"return\rhere", b"'quote\"s", b"back\\slash", b"-dash",
        b"--source=x", b" space ", b"$HOME", b"`id`", b"*", b"%00", b"%s%n", b"a=b", b"x" * 240,
        "ž猫🐈\u2028\u202e".encode(), b"\xff\xfe\xfd", b"\xc3", b"\x01\x7f", b"\xed\xa0\x80",
        b"{}", b"[0]", b"con", b"#hash", b"?query", b"&amp;", b"s3:", "\ufeffb".encode(),
    )  # fmt: skip
    for _ in range(200):
        name = bytes(choose.choice(range(1, 256)) for _ in range(choose.randint(1, 40)))
        yield name.replace(b"/", b"_").lstrip(b".") or b"n"


def make(root: Path, count: int, seed: int) -> set[bytes]:
    """Write the files; gives the relative paths of those that must be rows."""
    choose = random.Random(seed)
    everything = kinds()
    good: set[bytes] = set()
    written = 0

    def write(folder: str, name: bytes, content: bytes, fine: bool = False) -> None:
        nonlocal written
        path = os.path.join(os.fsencode(root), folder.encode(), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not os.path.lexists(path):
            with open(path, "wb") as file:
                file.write(content)
            written += 1
            if fine:
                good.add(os.path.join(folder.encode(), name))

    for name, ending, content in everything:
        write("fine", f"{name}.{ending}".encode(), content, not name.endswith("odd"))
    for name, ending, content in special():
        write("special", f"{name}.{ending}".encode(), content)
    plain = everything[0][2]
    for name in odd_names(choose):
        write("names", name + b".jpg", plain, True)
    for at, (name, _, content) in enumerate(everything):
        wrong = ENDINGS[at % len(ENDINGS)]
        # The content counts, not the ending.
        write("endings", f"{name}.{wrong}".encode(), content, not name.endswith("odd"))
    turn = 0
    while written < count:
        for name, ending, content in everything:
            for how, changed in harmed(content, everything, choose):
                write(how, f"{name}-{turn}.{ending}".encode(), changed)
                if written >= count:
                    return good
        turn += 1
    return good


def slowest(root: Path) -> tuple[float, str]:
    """Decode each file alone; gives how long the slowest one took, and its name."""
    from ray_embed.images import decode
    from ray_embed.images.pixel_spec import PixelSpec

    pixels = PixelSpec(shape=(16, 16, 3), scale="unit", max_pixels=178_956_970)
    found = (0.0, "")
    for path in sorted(root.rglob("*")):
        if path.is_file():
            began = time.perf_counter()
            decode.diagnose(Path(path).read_bytes(), pixels)
            found = max(found, (time.perf_counter() - began, str(path.relative_to(root))))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hostile-") as temporary:
        work = Path(temporary)
        os.environ["HOME"] = temporary
        good = make(work / "valid", given.files, given.seed)
        files = sum(len(names) for _, _, names in os.walk(os.fsencode(work / "valid")))
        model = save_encoder(work / "encoder.keras")
        out = work / "run"
        words = ["run", "--source", str(work / "valid"), "--model", str(model), "--out", str(out)]
        took = measure("hostile", [sys.executable, "-m", "ray_embed", *words], out)
        rows = [key for part in part_files(out) for key in pq.read_table(part)["key"].to_pylist()]
        rejects = [
            row for part in part_files(out, "rejects") for row in pq.read_table(part).to_pylist()
        ]
        reasons = Counter(row["reason"] for row in rejects)
        from ray_embed.core.keys import make_key

        unfair = {make_key(os.fsdecode(path)) for path in good} & {row["key"] for row in rejects}
        seconds, name = slowest(work / "valid")
    right = len(rows) + len(rejects) == files and not unfair
    print(f"{files} files: {len(rows)} rows, {len(rejects)} rejects, exit 0, {took.seconds:.0f} s")
    for reason, count in reasons.most_common():
        print(f"{count:6} {reason}")
    print(f"peak memory of all processes together: {took.peak_pss_mb or took.peak_rss_mb:.0f} MB")
    print(f"slowest file: {seconds:.2f} s, {name!a}")
    print(
        f"{len(good)} of them were not harmed: "
        + (f"WRONG, rejected are {sorted(unfair)[:5]}" if unfair else "all of these are rows")
    )
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())

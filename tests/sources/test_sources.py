# SPDX-License-Identifier: Apache-2.0
"""Folders, listings and arrays, from the files on disk to the rows and the pixels of a run."""

import os
import struct
import time
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.features import assert_features_equal
from support.pictures import make_folder, picture

import ray_embed as package
from ray_embed import RunConfig
from ray_embed.cli.commands import main
from ray_embed.errors import InputError
from ray_embed.sources import npz
from ray_embed.sources.array_files import read_positions
from ray_embed.sources.base import Source
from ray_embed.sources.open import open_sources

ONE_ACTOR = ("--actors", 1, "--cpus-per-actor", 1, "--engine", "tensorflow")


def opened(source: Any, **options: Any) -> Source:
    (found,) = open_sources(RunConfig(sources={"s": source}, model="m.keras", **options))
    assert found.info is not None
    return found


def rows(source: Source) -> list[dict[str, Any]]:
    """All records of a source."""
    batches = source.records(Counter())
    return [row for batch in batches for row in batch.to_pylist()]


def keys(source: Source) -> list[str]:
    return [row["key"] for row in rows(source)]


def touch(root: Path | bytes, *names: str | bytes) -> None:
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"x")


# Folders


def test_records_of_a_folder_come_in_the_order_of_their_whole_paths(tmp_path):
    names = [
        "B/1.png", "Z.png", "a-b/1.png", "a.b/1.png", "a/1.png", "a/B/1.png", "a/a.png",
        "a/a/1.png", "a/é.png", "a0.png", "aa/1.png", "b.png", "z/10.png", "z/9.png", "é/1.png",
        "猫/1.png", "🐈/1.png",
    ]  # fmt: skip
    touch(tmp_path, *reversed(names))
    assert names == sorted(names)
    assert keys(opened(tmp_path)) == names


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.lists(st.text("aB-.0é/ ~", min_size=1, max_size=3), min_size=1, max_size=3),
        min_size=1,
        max_size=12,
    )
)
def test_any_tree_comes_in_code_point_order(tmp_path_factory, parts):
    root = tmp_path_factory.mktemp("tree")
    names = set()
    for path in parts:
        clean = [name.replace("/", "").strip(".") or "x" for name in path]
        names.add("/".join(clean) + ".png")
    touch(root, *names)
    assert keys(opened(root)) == sorted(names)


def test_the_label_is_the_first_folder_and_missing_at_the_root(tmp_path):
    touch(tmp_path, "0.png", "cat/1.png", "cat/old/2.png", "dog/cat/3.png", "007/4.png", "NA/5.png")
    found = {row["key"]: row["label"] for row in rows(opened(tmp_path))}
    assert found == {
        "0.png": None,
        "007/4.png": "007",
        "NA/5.png": "NA",
        "cat/1.png": "cat",
        "cat/old/2.png": "cat",
        "dog/cat/3.png": "dog",
    }


def test_only_the_endings_of_images_are_records_and_the_others_are_counted(tmp_path):
    images = ["a.jpg", "b.JPEG", "c.png", "d.GIF", "e.bmp", "f.tar.png"]
    images += ["g.webp", "h.TIF", "i.dcm", "sub/j.heic"]
    touch(tmp_path, *images, "x.txt", "y.svg", "sub/z.psd", "png", ".h.png", ".hid/a.png")
    touch(tmp_path, "sub/.DS_Store")
    skipped: Counter[str] = Counter()
    batches = list(opened(tmp_path).records(skipped))
    assert [key for batch in batches for key in batch["key"].to_pylist()] == images
    assert skipped["hidden"] == 3
    del skipped["hidden"]
    assert skipped == {".txt": 1, ".svg": 1, ".psd": 1, "without a file extension": 1}


def test_a_folder_with_the_ending_of_an_image_is_a_folder(tmp_path):
    touch(tmp_path, "a.png/1.png", "b.png")
    assert keys(opened(tmp_path)) == ["a.png/1.png", "b.png"]


def test_symbolic_links_are_followed_but_not_round_in_circles(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    touch(elsewhere, "inside/1.png", "2.png")
    touch(root, "a/3.png")
    (root / "linked").symlink_to(elsewhere, target_is_directory=True)
    (root / "a" / "4.png").symlink_to(elsewhere / "2.png")
    (root / "a" / "up").symlink_to(root, target_is_directory=True)
    (root / "a" / "self").symlink_to(root / "a", target_is_directory=True)
    (root / "a" / "5.png").symlink_to(tmp_path / "nowhere")
    (root / "a" / "twin.png").symlink_to(root / "a" / "twin.png")
    found = rows(opened(root))
    assert [row["key"] for row in found] == [
        "a/3.png",
        "a/4.png",
        "a/5.png",
        "a/twin.png",
        "linked/2.png",
        "linked/inside/1.png",
    ]
    assert [row["size"] for row in found] == [1, 1, None, None, 1, 1]
    (tmp_path / "entry").symlink_to(root, target_is_directory=True)
    assert keys(opened(tmp_path / "entry")) == [row["key"] for row in found]


def test_two_links_to_one_folder_are_both_followed(tmp_path):
    touch(tmp_path / "real", "1.png")
    (tmp_path / "root").mkdir()
    for name in ("a", "b"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "real", target_is_directory=True)
    assert keys(opened(tmp_path / "root")) == ["a/1.png", "b/1.png"]


def test_names_that_are_not_utf8_get_keys_and_labels_in_hex(tmp_path):
    touch(tmp_path, b"caf\xe9/\xff.png", "café/1.png")
    found = rows(opened(tmp_path))
    assert {row["key"]: row["label"] for row in found} == {
        r"caf\xe9/\xff.png": r"caf\xe9",
        "café/1.png": "café",
    }
    assert {row["path"] for row in found} == {b"caf\xe9/\xff.png", "café/1.png".encode()}


# Listings


def listing(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_labels_of_a_listing_stay_text(tmp_path):
    file = listing(
        tmp_path / "s.csv",
        "path,label\na.png,007\nb.png,NA\nc.png,\nd.png,1e3\ne.png,true\nf.png,null\ng.png, x \n",
    )
    source = opened(file, empty_label="keep")
    assert source.info.label_type == pa.string()
    labels = ["007", "NA", "", "1e3", "true", "null", " x "]
    assert [row["label"] for row in rows(source)] == labels
    labels[2] = None
    assert [row["label"] for row in rows(opened(file))] == labels


def test_quotes_commas_newlines_and_a_byte_order_mark_in_a_listing(tmp_path):
    file = listing(
        tmp_path / "s.csv",
        '\ufeffpath,label,note\r\n"a, b.png","say ""hi""","two\nlines"\r\né.png,猫,\r\n',
    )
    found = rows(opened(file))
    assert [(row["key"], row["label"], row["note"]) for row in found] == [
        ("a, b.png", 'say "hi"', "two\nlines"),
        ("é.png", "猫", ""),
    ]


def test_a_listing_with_tabs_and_its_own_column_names(tmp_path):
    file = listing(tmp_path / "s.TSV", "site\tfile\tclass, fine\nX, Y\ta b.png\tcat\n")
    found = rows(opened(file, path_column="file", label_column="class, fine"))
    assert [(row["key"], row["label"], row["site"]) for row in found] == [
        ("a b.png", "cat", "X, Y")
    ]


def test_a_listing_keeps_its_order_and_may_name_a_file_twice(tmp_path):
    file = listing(tmp_path / "s.csv", "path,label\nz.png,1\na.png,2\nz.png,3\n")
    found = rows(opened(file))
    assert [(row["key"], row["label"]) for row in found] == [
        ("z.png", "1"),
        ("a.png", "2"),
        ("z.png", "3"),
    ]


def test_extra_columns_of_a_listing_stay_text(tmp_path):
    file = listing(tmp_path / "s.csv", "path,label,age,when\na.png,1,007,2020-01-01\nb.png,2,,NA\n")
    found = rows(opened(file))
    assert [(row["age"], row["when"]) for row in found] == [("007", "2020-01-01"), ("", "NA")]


def test_a_listing_larger_than_a_block_keeps_its_types(tmp_path):
    lines = [f"{i}.png,{i}," + "x" * 100 for i in range(15_000)]
    lines.append("last.png,007,y")
    found = rows(opened(listing(tmp_path / "s.csv", "path,label,note\n" + "\n".join(lines))))
    assert len(found) == 15_001
    assert found[14_999]["label"] == "14999"
    assert (found[-1]["key"], found[-1]["label"]) == ("last.png", "007")


@pytest.mark.parametrize(
    ("kind", "texts", "labels", "type_"),
    [
        ("int", ["7", "-3", "007", "", " 5 "], [7, -3, 7, None, 5], pa.int64()),
        ("float", ["1.5", "2", "1e3", "", "nan"], [1.5, 2.0, 1000.0, None, "nan"], pa.float64()),
    ],
)
def test_labels_of_a_listing_are_numbers_where_asked(tmp_path, kind, texts, labels, type_):
    lines = "\n".join(f"{i}.png,{text}" for i, text in enumerate(texts))
    source = opened(listing(tmp_path / "s.csv", "path,label\n" + lines), label_type=kind)
    assert source.info.label_type == type_
    found = [row["label"] for row in rows(source)]
    assert ["nan" if label != label else label for label in found] == labels


@pytest.mark.parametrize(
    ("kind", "text"),
    [("int", "cat"), ("int", "1.5"), ("int", "99999999999999999999"), ("float", "1,5x")],
)
def test_a_label_that_is_no_number_where_asked_is_refused(tmp_path, kind, text):
    file = listing(tmp_path / "s.csv", f'path,label\na.png,1\nb.png,"{text}"\n')
    with pytest.raises(InputError) as raised:
        rows(opened(file, label_type=kind))
    for token in ("s.csv", "row 2", text, "--label-type"):
        assert token in str(raised.value)


def test_a_listing_may_name_files_that_are_not_utf8(tmp_path):
    touch(tmp_path, b"caf\xe9.png")
    file = listing(tmp_path / "s.csv", b"path,label\ncaf\xe9.png,1\n")
    (found,) = rows(opened(file))
    assert found["key"] == r"caf\xe9.png"
    assert found["path"] == b"caf\xe9.png"
    assert found["size"] == 1


@pytest.mark.parametrize(
    "text",
    [
        b"path,label\na.png,1\nb.png\n",
        b"path,label\na.png,caf\xe9\n",
        b'path,label\n"a.png,1\n',
        b"\x00\xff\x00",
    ],
)
def test_a_listing_that_cannot_be_read_is_refused(tmp_path, text):
    with pytest.raises(InputError, match=r"s\.csv"):
        rows(opened(listing(tmp_path / "s.csv", text)))


# Arrays


@pytest.mark.parametrize(
    ("labels", "type_", "expected"),
    [
        (np.array([1, 2], np.uint8), pa.int64(), [1, 2]),
        (np.array([1, -2], ">i8"), pa.int64(), [1, -2]),
        (np.array([[1], [2]], np.int32), pa.int64(), [1, 2]),
        (np.array([0.5, np.inf], np.float32), pa.float64(), [0.5, np.inf]),
        (np.array([0.5, 2], np.float16), pa.float64(), [0.5, 2.0]),
        (np.array([0.5, 2], ">f4"), pa.float64(), [0.5, 2.0]),
        (np.array(["cat", "é"]), pa.string(), ["cat", "é"]),
        (np.array([b"cat", b"\xe9"]), pa.string(), ["cat", r"\xe9"]),
        (np.array(["007", "NA"]), pa.string(), ["007", "NA"]),
        (np.array([True, False]), pa.bool_(), [True, False]),
    ],
)
def test_labels_of_an_npz_keep_their_type(tmp_path, labels, type_, expected):
    np.savez(tmp_path / "s.npz", images=np.zeros((2, 3, 3), np.uint8), labels=labels)
    source = opened(tmp_path / "s.npz")
    assert source.info.label_type == type_
    assert source.info.image_shape == (3, 3, 1)
    found = rows(source)
    assert [row["label"] for row in found] == expected
    assert [row["key"] for row in found] == ["0", "1"]


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        ({}, ["images"]),
        (
            {"p": np.zeros((2, 3, 3))},
            ["'images'", "contains p", "--image-column", "labels as labels"],
        ),
        ({"labels": np.zeros(2)}, ["images", "labels"]),
        ({"p": np.zeros(2), "q": np.zeros(2)}, ["images", "p, q"]),
        ({"images": np.zeros((2, 3, 3)), "labels": np.zeros(3)}, ["labels", "(3,)", "2"]),
        (
            {"images": np.zeros((2, 3, 3)), "labels": np.zeros((2, 10))},
            ["labels", "(2, 10)", "np.argmax(labels, axis=1)"],
        ),
        (
            {"images": np.zeros((2, 3, 9, 9)), "labels": np.zeros(2)},
            ["(2, 3, 9, 9)", "NCHW", "np.transpose(images, (0, 2, 3, 1))"],
        ),
        ({"images": np.zeros((2, 1, 28, 28), np.uint8), "labels": np.zeros(2)}, ["NCHW"]),
        ({"images": np.zeros((2, 4, 224, 224), np.uint8)}, ["NCHW"]),
        ({"images": np.zeros((2, 3, 3)), "labels": np.array(5)}, ["labels", "()"]),
        ({"images": np.zeros((2, 9)), "labels": np.zeros(2)}, ["images", "(2, 9)"]),
        ({"images": np.zeros((2, 3, 3, 3, 3)), "labels": np.zeros(2)}, ["(2, 3, 3, 3, 3)"]),
        ({"images": np.zeros((2, 3, 3), int), "labels": np.zeros(2)}, ["images", "int64"]),
        ({"images": np.zeros((2, 3, 3), "U3"), "labels": np.zeros(2)}, ["images", "<U3"]),
        ({"images": np.zeros((0, 3, 3)), "labels": np.zeros(0)}, ["'images' is empty"]),
        (
            {"images": np.zeros((2, 3, 3), object), "labels": np.zeros(2)},
            ["images", "objects", "np.stack"],
        ),
        (
            {"images": np.zeros((2, 3, 3)), "labels": np.array(["a", None])},
            ["labels", "objects", ".astype(str)"],
        ),
        ({"images": np.zeros((2, 3, 3)), "labels": np.zeros(2, complex)}, ["labels", "complex"]),
        ({"images": np.zeros((1, 3, 3)), "labels": np.array([2**64 - 1], np.uint64)}, ["64 bits"]),
        ({"images": np.zeros((1, 3, 3)), "labels": np.zeros(1, "M8[s]")}, ["labels", "datetime"]),
    ],
)
def test_an_npz_that_is_wrong_is_refused(tmp_path, content, tokens):
    np.savez(tmp_path / "s.npz", **content)
    with pytest.raises(InputError) as raised:
        opened(tmp_path / "s.npz")
    for token in ["s.npz", *tokens]:
        assert token in str(raised.value)


@pytest.mark.parametrize("shape", [(2, 4, 4, 200), (2, 3, 9, 3), (2, 9, 9, 1), (2, 8, 9, 9)])
def test_images_of_an_npz_with_the_channels_last_are_taken(tmp_path, shape):
    np.savez(tmp_path / "s.npz", images=np.zeros(shape), labels=np.zeros(2))
    assert opened(tmp_path / "s.npz").info.image_shape == shape[1:]


def test_an_npz_without_labels_has_none_and_says_so(tmp_path):
    np.savez(tmp_path / "s.npz", images=np.zeros((2, 3, 3)), y=np.zeros(2))
    source = opened(tmp_path / "s.npz")
    assert [row["label"] for row in rows(source)] == [None, None]
    (note,) = source.info.notes
    for token in ("s.npz", "'labels'", "unlabeled", "images, y", "--label-column"):
        assert token in note


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "s.npz").write_bytes(b"not a zip")
    with pytest.raises(InputError, match=r"s\.npz"):
        opened(tmp_path / "s.npz")
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        archive.writestr("images.npy", b"no array")
        archive.writestr("labels.npy", b"no array")
    with pytest.raises(InputError, match=r"t\.npz"):
        opened(tmp_path / "t.npz")


def read_npz(path: Path, start: int, count: int) -> np.ndarray:
    """Some images of an .npz file."""
    positions = np.arange(start, start + count)
    return read_positions(str(path), "images", npz.read_rows, positions)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.float16, ">f4"])
def test_any_range_of_an_npz_can_be_read(tmp_path, save, dtype):
    images = np.random.default_rng(1).integers(0, 255, (9, 4, 3, 3)).astype(dtype)
    save(tmp_path / "s.npz", images=images, labels=np.zeros(9))
    for start, count in ((0, 9), (0, 2), (4, 3), (8, 1)):
        found = read_npz(tmp_path / "s.npz", start, count)
        assert found.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
        np.testing.assert_array_equal(found, images[start : start + count].astype(np.float32))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_opened_and_read_without_holding_it(tmp_path, save):
    images = np.zeros((2000, 256, 256), np.uint8)
    images[1500] = 7
    save(tmp_path / "s.npz", images=images, labels=np.zeros(2000))
    del images
    tracemalloc.start()
    source = opened(tmp_path / "s.npz")
    assert len(rows(source)) == 2000
    found = read_npz(tmp_path / "s.npz", 1500, 8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.shape == (8, 256, 256, 1)
    assert (found[0] == 7).all()
    assert not found[1:].any()
    assert peak < 40 << 20


# Pixels: a run whose encoder passes them through, so that the features are the pixels

H, W = 6, 5


def decoded(path: str | bytes | Path, channels: int = 3) -> np.ndarray:
    """Decode and resize as keras.utils.image_dataset_from_directory does, to [0, 1]."""
    content = tf.io.read_file(os.fspath(path))
    image = tf.io.decode_image(content, channels, expand_animations=False)
    return tf.image.resize(image, (H, W)).numpy() / 255.0


def resized(image: np.ndarray) -> np.ndarray:
    return tf.image.resize(image, (H, W)).numpy() / 255.0


def pass_through(path: Path, channels: int) -> Path:
    keras.Sequential([keras.Input((H, W, channels)), keras.layers.Rescaling(1.0)]).save(path)
    return path


def save_pictures(root: Path) -> None:
    """Write a picture in every form that can be decoded, and some that cannot, among them."""
    root.mkdir()
    (root / "cat").mkdir()
    (root / "dog" / "old").mkdir(parents=True)
    rgb = picture(1)
    grey = rgb.convert("L")
    rgb.save(root / "0-root.png")
    rgb.save(root / "cat" / "a.jpg", quality=90)
    grey.save(root / "cat" / "b-grey.jpeg")
    rgb.convert("CMYK").save(root / "cat" / "c-cmyk.jpg")
    rgb.save(root / "cat" / "d-progressive.jpg", progressive=True)
    rgb.save(root / "cat" / "e-named-wrong.jpg", format="PNG")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257 - 100).save(root / "cat" / "f16.png")
    deep = np.random.default_rng(3).integers(0, 65536, (9, 8, 3)).astype(np.uint16)
    (root / "cat" / "g16-rgb.png").write_bytes(tf.io.encode_png(deep).numpy())
    grey.save(root / "cat" / "h-grey.png")
    rgb.quantize(16).save(root / "cat" / "i-palette.png")
    rgba = rgb.convert("RGBA")
    rgba.putalpha(grey)
    rgba.save(root / "cat" / "j-alpha.png")
    rgba.convert("LA").save(root / "cat" / "k-grey-alpha.png")
    grey.convert("1").save(root / "cat" / "l-1bit.png")
    rgb.quantize(16).save(root / "dog" / "a-palette.bmp")
    grey.convert("1").save(root / "dog" / "b-1bit.bmp")
    (root / "dog" / "c-text.png").write_text("this is no picture")
    (root / "dog" / "d-empty.png").write_bytes(b"")
    whole = (root / "0-root.png").read_bytes()
    (root / "dog" / "e-cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "f-cut.jpg").write_bytes((root / "cat" / "a.jpg").read_bytes()[:60])
    (root / "dog" / "g-gone.png").symlink_to(root / "nowhere.png")
    picture(2, (100, 101)).save(root / "dog" / "h-large.png")
    picture(2, (100, 101)).save(root / "dog" / "i-large.jpg")
    picture(2, (100, 101)).save(root / "dog" / "j-large.gif")
    picture(2, (100, 100)).save(root / "dog" / "k-not-too-large.png")
    rgb.save(root / "dog" / "l.bmp")
    with open(os.fsencode(root / "dog") + b"/m-\xe9.bmp", "wb") as file:
        file.write((root / "dog" / "l.bmp").read_bytes())
    frames = [picture(seed).quantize(32) for seed in (5, 6, 7)]
    frames[0].save(root / "dog" / "old" / "moving.gif", save_all=True, append_images=frames[1:])
    picture(4).quantize(32).save(root / "dog" / "old" / "still.GIF")
    (root / "dog" / "notes.txt").write_text("x")
    (root / ".hidden.png").write_bytes(b"x")


REJECTED = {
    "dog/a-palette.bmp": "unsupported image",
    "dog/b-1bit.bmp": "unsupported image",
    "dog/c-text.png": "not an image",
    "dog/d-empty.png": "empty file",
    "dog/e-cut.png": "corrupt image",
    "dog/f-cut.jpg": "corrupt image",
    "dog/g-gone.png": "missing",
    "dog/h-large.png": "too many pixels",
    "dog/i-large.jpg": "too many pixels",
    "dog/j-large.gif": "too many pixels",
}


@pytest.fixture(scope="module")
def forms(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a folder, a listing, and two arrays, each a split; gives the folder of it all."""
    base = tmp_path_factory.mktemp("forms")
    save_pictures(base / "tree")
    (base / "lists").mkdir()
    (base / "lists" / "list.csv").write_text(
        "site,path,label\n"
        "X,../tree/cat/a.jpg,007\n"
        'Y,nowhere.png,"a\tb"\n'
        f"Z,{base}/tree/0-root.png,NA\n"
        "X,../tree/dog/d-empty.png,\n"
        "X,../tree/cat/a.jpg,again\n"
    )
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (11, 9, 8, 3)).astype(np.uint8)
    np.savez(base / "bytes.npz", images=images, labels=np.arange(11) * 10)
    floats = random.normal(0, 3, (5, H, W, 3)).astype(np.float32)
    floats[2, 1, 1, 1] = np.nan
    np.savez_compressed(base / "floats.npz", images=floats, labels=np.arange(5) / 4)
    pass_through(base / "m.keras", 3)
    (base / "job.yaml").write_text(
        "sources: {tree: tree, list: lists/list.csv, bytes: bytes.npz, floats: floats.npz}\n"
        "model: m.keras\npool: flatten\nengine: tensorflow\nbatch_size: 3\nshard_size: 4\n"
        "max_pixels: 10000\nactors: 1\ncpus_per_actor: 1\nout: run\n"
    )
    with open(base / "said", "w") as said, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["ray-embed", "extract", "--config", str(base / "job.yaml")])
        patch.setattr("sys.stdout", said)
        patch.setattr("sys.stderr", said)
        with pytest.raises(SystemExit) as exited:
            main()
    assert not exited.value.code, (base / "said").read_text()
    return base


def with_scans(content: bytes, scans: int, side: int) -> bytes:
    """Let a progressive JPEG have more scans, and more pixels."""
    frame = content.index(b"\xff\xc2")
    size = struct.pack(">HH", side, side)
    content = content[: frame + 5] + size + content[frame + 9 :]
    last, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    return content[:last] + content[last:end] * scans + content[end:]


def test_scans_that_would_take_minutes_are_rejected(tmp_path, ray_embed):
    pass_through(tmp_path / "m.keras", 3)
    (tmp_path / "tree").mkdir()
    picture(1).save(tmp_path / "plain.jpg", progressive=True)
    usual = (tmp_path / "plain.jpg").read_bytes()
    (tmp_path / "tree" / "few.jpg").write_bytes(with_scans(usual, 200, 300))
    (tmp_path / "tree" / "many.jpg").write_bytes(with_scans(usual, 2000, 12000))
    (tmp_path / "tree" / "usual.jpg").write_bytes(usual)
    began = time.monotonic()
    result = ray_embed("extract", "--source", "tree", "--model", "m.keras", "--out", "run")
    assert result.code == 0, result.err
    assert [(row["key"], row["reason"]) for row in rejects(tmp_path / "run")] == [
        ("many.jpg", "too many scans")
    ]
    assert time.monotonic() - began < 30


def gif(frames: int, side: int, screen: int = 1) -> bytes:
    """A GIF whose frames are larger than its screen; they are cut off."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x44\x51\x00"
    head = b"GIF89a" + struct.pack("<HHBBB", screen, screen, 0x80, 0, 0) + bytes(6)
    return head + b"\x21\xfe\x03abc\x00" + frame * frames + b"\x3b"


def test_frames_larger_than_the_screen_are_counted(tmp_path, ray_embed):
    pass_through(tmp_path / "m.keras", 3)
    (tmp_path / "tree").mkdir()
    frames = [picture(seed).quantize(32) for seed in range(6)]
    frames[0].save(tmp_path / "tree" / "fine.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "tree" / "large.gif").write_bytes(gif(1, 60_000))
    (tmp_path / "tree" / "many.gif").write_bytes(gif(100, 13_000))
    result = ray_embed("extract", "--source", "tree", "--model", "m.keras", "--out", "run")
    assert result.code == 0, result.err
    assert [(row["key"], row["reason"]) for row in rejects(tmp_path / "run")] == [
        ("large.gif", "too many pixels"),
        ("many.gif", "too many pixels"),
    ]


def rejects(run: Path) -> list[dict[str, Any]]:
    """All rejects, in order."""
    parts = sorted((run / "rejects").glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def test_every_form_of_picture_has_the_pixels_that_keras_gives_in_training(forms):
    table = package.load(str(forms / "run")).to_table().filter(pc.field("split") == "tree")
    paths = [b"dog/m-\xe9.bmp" if k == r"dog/m-\xe9.bmp" else k for k in table["key"].to_pylist()]
    assert len(paths) == 18
    features = np.stack(table["feature"].to_numpy())
    for path, found in zip(paths, features, strict=True):
        expected = decoded(os.path.join(os.fsencode(forms / "tree"), os.fsencode(path)))
        assert_features_equal(found, expected.reshape(-1))


def test_the_pixels_are_those_of_image_dataset_from_directory(forms):
    directory = keras.utils.image_dataset_from_directory(
        forms / "tree" / "cat", labels=None, image_size=(H, W), shuffle=False, batch_size=None
    )
    expected = np.stack(list(directory.as_numpy_iterator())) / 255.0
    table = package.load(str(forms / "run")).to_table().filter(pc.field("label") == "cat")
    assert_features_equal(np.stack(table["feature"].to_numpy()), expected.reshape(-1, H * W * 3))


def test_what_cannot_be_decoded_is_set_aside_with_one_of_the_fixed_reasons(forms):
    found = {row["key"]: row["reason"] for row in rejects(forms / "run") if row["split"] == "tree"}
    assert found == REJECTED


def test_every_record_is_embedded_or_rejected_once_and_labels_stay(forms):
    run = package.load(str(forms / "run"))
    table = run.to_table()
    aside = rejects(forms / "run")
    indices = table["index"].to_pylist() + [row["index"] for row in aside]
    assert sorted(indices) == list(range(28 + 5 + 11 + 5))
    assert table["index"].to_pylist() == sorted(table["index"].to_pylist())
    assert [row["index"] for row in aside] == sorted(row["index"] for row in aside)
    assert (run.rows, run.rejects) == (36, 13)
    in_tree = sorted(
        [(row["index"], row["key"]) for row in aside if row["split"] == "tree"]
        + [(r["index"], r["key"]) for r in table.to_pylist() if r["split"] == "tree"]
    )
    assert [index for index, _ in in_tree] == list(range(28))
    assert [key for _, key in in_tree] == sorted(key for _, key in in_tree)
    for row in table.to_pylist():
        if row["split"] == "tree":
            folder = row["key"].partition("/")[0] if "/" in row["key"] else None
            assert row["label"] == folder


def test_a_listing_gives_keys_as_written_labels_as_text_and_extras(forms):
    table = package.load(str(forms / "run")).to_table()
    found = table.filter(pc.field("split") == "list").to_pylist()
    absolute = f"{forms}/tree/0-root.png"
    assert [(row["index"], row["key"], row["label"], row["site"]) for row in found] == [
        (28, "../tree/cat/a.jpg", "007", "X"),
        (30, absolute, "NA", "Z"),
        (32, "../tree/cat/a.jpg", "again", "X"),
    ]
    expected = [decoded(forms / "tree/cat/a.jpg"), decoded(absolute)]
    features = np.array([row["feature"] for row in found], np.float32)
    assert_features_equal(features[:2], np.stack(expected).reshape(2, -1))
    assert [r for r in rejects(forms / "run") if r["split"] == "list"] == [
        {"index": 29, "key": "nowhere.png", "split": "list", "reason": "missing"},
        {"index": 31, "key": "../tree/dog/d-empty.png", "split": "list", "reason": "empty file"},
    ]


def test_arrays_of_bytes_are_resized_and_scaled_and_floats_left_alone(forms):
    table = package.load(str(forms / "run")).to_table()
    found = table.filter(pc.field("split") == "bytes")
    images = np.load(forms / "bytes.npz")["images"]
    expected = np.stack([resized(image) for image in images]).reshape(11, -1)
    assert_features_equal(np.stack(found["feature"].to_numpy()), expected)
    assert found["key"].to_pylist() == [str(i) for i in range(11)]
    assert found["label"].to_pylist() == [str(10 * i) for i in range(11)]
    found = table.filter(pc.field("split") == "floats")
    floats = np.load(forms / "floats.npz")["images"][[0, 1, 3, 4]]
    assert_features_equal(np.stack(found["feature"].to_numpy()), floats.reshape(4, -1))
    assert found["label"].to_pylist() == ["0.0", "0.25", "0.75", "1.0"]
    assert [r["reason"] for r in rejects(forms / "run") if r["split"] == "floats"] == ["not finite"]


def test_one_schema_holds_for_all_parts_and_a_part_may_have_no_rows(forms):
    parts = sorted((forms / "run" / "features").iterdir())
    # Seven shards of the folder, two of the listing, three and two of the arrays.
    assert [part.name for part in parts] == [f"part-{n:08d}.parquet" for n in range(14)]
    schemas = [pq.read_schema(part).remove_metadata() for part in parts]
    expected = pa.schema(
        [
            ("index", pa.int64()),
            ("key", pa.string()),
            ("label", pa.string()),
            ("split", pa.string()),
            ("site", pa.string()),
            ("feature", pa.list_(pa.float32(), H * W * 3)),
        ]
    )
    for schema in schemas:
        assert schema.names == expected.names
        assert [field.type for field in schema][:5] == [field.type for field in expected][:5]
        assert schema == schemas[0]
        assert pa.types.is_fixed_size_list(schema.field("feature").type)
        assert schema.field("feature").type.list_size == H * W * 3
        assert schema.field("feature").type.value_type == pa.float32()
    counts = [pq.read_metadata(part).num_rows for part in parts]
    assert 0 in counts
    for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
        footer = pq.read_metadata(part).metadata
        values = {key.decode().rpartition(".")[2]: footer[key].decode() for key in footer}
        assert int(values["shard"]) == number
        assert int(values["planned"]) - int(values["rejected"]) == count
        assert values["fingerprint"]


def test_files_that_were_passed_over_are_counted_for_the_user(forms, ray_embed):
    status = ray_embed("status", forms / "run")
    assert status.code == 0, status.err
    shown = ((forms / "said").read_text() + status.out).lower()
    assert "hidden" in shown
    assert "1 .txt" in shown


def test_grey_encoders_labels_of_two_number_types_and_a_split_without_labels(ray_embed, tmp_path):
    pass_through(tmp_path / "grey.keras", 1)
    make_folder(tmp_path / "flat", {".": 3})
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (5, 7, 7)).astype(np.uint8)
    np.savez_compressed("a.npz", images=images, labels=np.arange(5, dtype=np.uint8))
    np.savez("b.npz", images=images[..., None], labels=np.arange(5, dtype=np.float32)[:, None] / 2)
    floats = random.normal(0, 1, (2, H, W))
    np.savez("c.npz", images=floats, labels=[True, False])
    result = ray_embed(
        "run", "--source", "flat", "--source", "a.npz", "--source", "b=b.npz",
        "--model", "grey.keras", "--pool", "flatten", "--out", "r", "--limit", 4, *ONE_ACTOR,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "11 records" in result.out
    run = package.load("r")
    table = run.to_table()
    assert table.schema.field("label").type == pa.float64()
    assert table["label"].to_pylist() == [None] * 3 + [0.0, 1.0, 2.0, 3.0] + [0.0, 0.5, 1.0, 1.5]
    assert table["split"].to_pylist() == ["flat"] * 3 + ["a"] * 4 + ["b"] * 4
    grey = np.stack([decoded(tmp_path / "flat" / f"000{i}.png", 1) for i in range(3)])
    arrays_ = np.stack([resized(image) for image in images[:4, ..., None]])
    expected = np.concatenate([grey, arrays_, arrays_]).reshape(11, -1)
    assert_features_equal(run.to_numpy()[0], expected)
    result = ray_embed(
        "extract", "--source", "c=c.npz", "--source", "flat", "--scale", "symmetric",
        "--model", "grey.keras", "--pool", "flatten", "--out", "s", *ONE_ACTOR,
    )  # fmt: skip
    assert result.code == 0, result.err
    features, labels = package.load("s").to_numpy()
    assert list(labels) == [True, False, None, None, None]
    expected = np.concatenate([floats[..., None] / 127.5 - 1, grey * 2 - 1]).reshape(5, -1)
    assert_features_equal(features, expected.astype(np.float32))


def test_float_images_are_resized_only_when_asked(ray_embed, tmp_path):
    pass_through(tmp_path / "m.keras", 3)
    images = np.random.default_rng(0).normal(0, 1, (2, 9, 9, 3)).astype(np.float32)
    np.savez("a.npz", images=images, labels=["x", "y"])
    options = ("--source", "a.npz", "--model", "m.keras", "--pool", "flatten", *ONE_ACTOR)
    result = ray_embed("extract", *options, "--out", "r")
    assert result.code == 2
    assert "a.npz" in result.err
    assert "--image-size" in result.err
    assert not Path("r").exists()
    result = ray_embed("extract", *options, "--out", "r", "--image-size", f"{H},{W}")
    assert result.code == 0, result.err
    expected = tf.image.resize(images, (H, W)).numpy().reshape(2, -1)
    assert_features_equal(package.load("r").to_numpy()[0], expected)


def test_bytes_of_another_range_are_warned_of(ray_embed, tmp_path):
    pass_through(tmp_path / "m.keras", 3)
    images = np.random.default_rng(0).integers(0, 17, (4, H, W, 3))
    np.savez("dark.npz", images=images.astype(np.uint8), labels=list("abab"))
    np.savez("bright.npz", images=(15 * images).astype(np.uint8), labels=list("abab"))
    options = ("--model", "m.keras", "--pool", "flatten", *ONE_ACTOR)
    np.savez("floats.npz", images=images.astype(np.float32), labels=list("abab"))
    all_of_them = [f"--source={name}.npz" for name in ("dark", "bright", "floats")] + [*options]
    result = ray_embed("extract", *all_of_them, "--out", "r")
    assert result.code == 0, result.err
    (warning,) = [line for line in result.err.splitlines() if "warning: " in line]
    assert "dark: no value in the thumbnails of 4 pictures is above 16" in warning
    assert "--preprocess" in warning
    # Whoever says how to scale them knows.
    result = ray_embed("extract", *all_of_them, "--scale", "none", "--out", "unscaled")
    assert result.code == 0, result.err
    assert "warning" not in result.err

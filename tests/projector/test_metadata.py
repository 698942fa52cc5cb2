# SPDX-License-Identifier: Apache-2.0
"""metadata.tsv: what TensorBoard's page shows at point k is row k, whatever the cells hold."""

import math
import os
import string

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.projector_page import CHUNK, assert_shows, parse_metadata, split_lines, unescape
from support.sample_runs import AWKWARD

from ray_embed.core.keys import make_key
from ray_embed.projector.metadata import Writer, cell, lines, order_columns
from ray_embed.sources.label_lists import LABEL_LIST

OWN = ["label", "split", "key", "index"]


def table(labels, keys=None, splits=None, start=0, kind=None, **extras):
    count = len(labels)
    columns = {
        "index": pa.array(range(start, start + count), pa.int64()),
        "key": pa.array(keys or [f"k{start + at}" for at in range(count)], pa.string()),
        "label": pa.array(labels, kind or pa.string()),
        "split": pa.array(splits or ["valid"] * count, pa.string()),
    }
    columns |= {name: pa.array(values, pa.string()) for name, values in extras.items()}
    return pa.table(columns)


def written(path, *tables):
    with open(path, "wb") as file:
        writer = Writer(file, order_columns(tables[0].column_names))
        for one in tables:
            writer.add(lines(one))
        writer.end()
    return path.read_bytes()


def assert_page_shows(content, *tables):
    """Check every cell of every point, and that the file is one the page can read."""
    assert content.endswith(b"\n")
    content.decode("utf-8")
    names, points = parse_metadata(content)
    extras = [name for name in tables[0].column_names if name not in OWN]
    wanted = OWN + extras
    assert len(names) == len(wanted)
    for name, expected in zip(names, wanted, strict=True):
        assert_shows(name.rstrip(" ") or name, expected.rstrip(" ") or expected)
    rows = [row for one in tables for row in one.to_pylist()]
    assert len(points) == len(rows)
    for cells, row in zip(points, rows, strict=True):
        for at, (found, name) in enumerate(zip(cells, wanted, strict=True)):
            last = at == len(wanted) - 1
            if last and found is not None and not shows(found, row[name]):
                # Only here may there be spaces that keep the next row's characters whole.
                found = found.rstrip(" ") + trailing_spaces(row[name])
            assert_shows(found, row[name])


def shows(found, value):
    try:
        assert_shows(found, value)
    except (AssertionError, KeyError, IndexError, ValueError):
        return False
    return True


def trailing_spaces(value):
    text = str(value)[:1000]
    return text[len(text.rstrip(" ")) :] if isinstance(value, str) else ""


TEXTS = st.one_of(
    st.none(),
    st.sampled_from(AWKWARD),
    st.text(max_size=12),
    st.text(
        alphabet="\t\n\r\\ \x00\x0b\x0c\x1c\x1d\x1e\x1f\x85\u2028\u2029\ufeff\"'tnr", max_size=8
    ),
    st.text(alphabet="a\\\t猫🐈", min_size=990, max_size=1010),
)
LABELS = st.one_of(
    st.tuples(st.just(pa.string()), st.lists(TEXTS, min_size=1, max_size=8)),
    st.tuples(
        st.just(pa.int64()),
        st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8),
    ),
    st.tuples(
        st.just(pa.float64()),
        st.lists(st.none() | st.floats(allow_nan=True), min_size=1, max_size=8),
    ),
    st.tuples(st.just(pa.bool_()), st.lists(st.none() | st.booleans(), min_size=1, max_size=8)),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), labels=LABELS)
def test_point_k_has_the_cells_of_row_k(tmp_path, data, labels):
    kind, values = labels
    count = len(values)
    rows = {"min_size": count, "max_size": count}
    keys = data.draw(st.lists(st.text(min_size=1, max_size=20), **rows))
    names = data.draw(
        st.lists(st.text(max_size=6).filter(lambda name: name not in OWN), max_size=3, unique=True)
    )
    extras = {name: data.draw(st.lists(TEXTS, **rows)) for name in names}
    cut = data.draw(st.integers(0, count))
    whole = table(values, keys, kind=kind)
    for name, column in extras.items():
        whole = whole.append_column(name, pa.array(column, pa.string()))
    # Written part by part, a part may be empty.
    tables = [whole.slice(0, cut), whole.slice(cut)]
    assert_page_shows(written(tmp_path / "metadata.tsv", *tables), *tables)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), labels=LABELS)
def test_lines_made_at_once_are_those_made_one_by_one(tmp_path, data, labels):
    kind, values = labels
    rows = {"min_size": len(values), "max_size": len(values)}
    notes = data.draw(
        st.lists(st.sampled_from(["a", "b c", "žluť", "", None, "d\\", *AWKWARD]), **rows)
    )
    one = table(values, kind=kind, note=notes, **{"": notes})
    for tables in ([one], [one.slice(1), one]):
        assert written(tmp_path / "m.tsv", *tables) == one_by_one(tables)


def test_lines_made_at_once_are_those_made_one_by_one_over_several_chunks(tmp_path):
    plain = table(["x" * 90] * 9_000)
    tables = [plain.slice(0, 9), plain]
    assert written(tmp_path / "m.tsv", *tables) == one_by_one(tables)
    # Brings the rows to the boundaries of the page's chunks.
    for before in range(0, 41, 3):
        filled = table(["z"] * before + ["\ufeff猫🐈" * 99] * 300, note=["n"] * (before + 300))
        tables = [filled, filled, filled]
        assert written(tmp_path / "m.tsv", *tables) == one_by_one(tables)


def one_by_one(tables):
    """Follow the contract a cell and a byte at a time."""
    names = OWN + [name for name in tables[0].column_names if name not in OWN]
    rows = [names] + [[row[name] for name in names] for one in tables for row in one.to_pylist()]
    content = b""
    for row in rows:
        line = "\t".join(cell(value) for value in row).encode()
        pad = 0
        start = len(content) + 1
        cuts = range(start // CHUNK * CHUNK, start + 2 * len(line) + CHUNK, CHUNK)
        while content and any(
            0 <= cut - start - pad < len(line)
            and (
                line[cut - start - pad] & 0xC0 == 0x80
                or line.startswith("\ufeff".encode(), cut - start - pad)
            )
            for cut in cuts
        ):
            pad += 1
        content += (b" " * pad + b"\n" if content else b"") + line
    return content + b"\n"


def test_header_comes_first_also_without_extras(tmp_path):
    content = written(tmp_path / "m.tsv", table(["a"]))
    assert content == b"label\tsplit\tkey\tindex\na\tvalid\tk0\t0\n"


def test_extras_come_last_in_their_order(tmp_path):
    content = written(tmp_path / "m.tsv", table(["a"], zeta=["1"], alpha=["2"]))
    assert content.decode().splitlines()[0] == "label\tsplit\tkey\tindex\tzeta\talpha"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "(none)"),
        ("", "(empty)"),
        ("a\\b", r"a\\b"),
        ("a\tb", r"a\tb"),
        ("a\nb", r"a\nb"),
        ("a\rb", r"a\rb"),
        ("\\t", r"\\t"),
        ("\u2028", "\u2028"),
        ("007", "007"),
        (7, "7"),
        (-(2**63), "-9223372036854775808"),
        (0.5, "0.5"),
    ],
)
def test_cell(value, expected):
    assert cell(value) == expected


def test_cell_of_nan_and_infinity():
    assert cell(math.nan).lower() == "nan"
    assert float(cell(math.inf)) == math.inf


@pytest.mark.parametrize("before", range(6))
@pytest.mark.parametrize("text", ["x" * 5000, "\\" * 5000, "a\t" * 3000, "🐈" * 5000])
def test_cell_has_at_most_a_thousand_characters_and_no_half_escape(before, text):
    text = "y" * before + text
    found = cell(text)
    assert 999 <= len(found) <= 1000
    assert text.startswith(unescape(found))


def test_cell_of_a_thousand_characters_is_whole():
    assert cell("猫" * 1000) == "猫" * 1000
    assert unescape(cell("\n" * 500)) == "\n" * 500


def test_lone_surrogate_is_replaced_and_does_not_stop_the_writing(tmp_path):
    text = "a" + cell("\ud800") + "b"
    assert text.startswith("a")
    # A file name that is no text is a key that is text.
    key = make_key(os.fsdecode(b"dir/\xff\xc3.png"))
    assert key == r"dir/\xff\xc3.png"
    one = table(["x"], keys=[key])
    assert_page_shows(written(tmp_path / "m.tsv", one), one)


# Readers of text drop a byte order mark (U+FEFF) where a chunk starts with it.
@pytest.mark.parametrize("text", ["猫", "🐈", "é", "e🐈猫é", "🐈\t", "\ufeff猫", "\ufeff"])
@pytest.mark.parametrize("shift", range(4))
def test_no_character_is_lost_at_a_chunk_boundary(tmp_path, text, shift):
    long = text * (900 // len(text))
    rows = 2_100_000 // len(long.encode()) + 1
    one = table(["s" * shift, *([long] * rows)], note=[None, *([text * 3] * rows)])
    content = written(tmp_path / "m.tsv", one)
    assert len(content) > 1.8 * CHUNK
    assert "\ufffd" not in "".join(split_lines(content))
    assert_page_shows(content, one)


@pytest.mark.parametrize("over", range(-3, 4))
def test_a_file_of_about_one_chunk_is_read_to_its_end(tmp_path, over):
    # The page stops one byte early where a file is one byte longer than its chunks.
    labels = ["猫" * 300] * 1000
    size = len(written(tmp_path / "m.tsv", table([*labels, "z"])))
    fill = CHUNK + over - size
    while fill > 900:
        labels.append("z" * 700)
        fill -= len(f"{'z' * 700}\tvalid\tk{len(labels)}\t{len(labels)}\n")
    one = table([*labels, "z" * (1 + fill)])
    content = written(tmp_path / "m.tsv", one)
    assert abs(len(content) - CHUNK - over) <= 3
    assert_page_shows(content, one)


def test_fifty_thousand_different_labels(tmp_path):
    letters = string.ascii_letters + "ěščřžýáíé猫🐈"
    labels = [f"{letters[at % len(letters)]}{at}" for at in range(50_000)]
    tables = [table(labels[at : at + 512], start=at) for at in range(0, 50_000, 512)]
    content = written(tmp_path / "m.tsv", *tables)
    assert len(content) > CHUNK
    _, points = parse_metadata(content)
    assert [point[0] for point in points] == labels
    assert [int(point[3]) for point in points] == list(range(50_000))


def test_same_rows_give_the_same_bytes_however_they_are_cut(tmp_path):
    one = table([AWKWARD[at % len(AWKWARD)] * 40 for at in range(3000)])
    whole = written(tmp_path / "a.tsv", one)
    assert len(whole) > CHUNK
    pieces = [one.slice(at, 7) for at in range(0, 3000, 7)]
    assert written(tmp_path / "b.tsv", *pieces) == whole


def test_lists_of_labels_are_joined_and_marked():
    labels = [["a b", "c|d"], None, ["x\ty", "a b", "a b"], ["\\"]]
    rows = lines(table(labels, kind=LABEL_LIST, camera=["1"] * 4), ("a b", "x\ty")).splitlines()
    cells = [row.decode().split("\t") for row in rows]
    assert [row[0] for row in cells] == ["a b | c\\|d", "(none)", r"x\ty | a b | a b", r"\\"]
    assert [row[-3:] for row in cells] == [
        ["1", "1", "0"],
        ["1", "0", "0"],
        ["1", "1", "1"],
        ["1", "0", "0"],
    ]
    # A cell that is cut off does not end in half an escape.
    assert cell(["x" * 996, "|"]) == "x" * 996 + " | "

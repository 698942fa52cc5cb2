# SPDX-License-Identifier: Apache-2.0
"""`plot`: the pictures of a run, what is said of its maps, and what is confused."""

import io
import re
import shutil
import subprocess
import sys
import warnings
import xml.etree.ElementTree
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from support.synthetic_runs import clusters, make_run

from ray_embed.analysis.comparison.plot import draw_comparison
from ray_embed.analysis.evaluation import spectrum
from ray_embed.analysis.plotting import (
    class_neighbors,
    fonts,
    map_figure,
    palette,
    projections,
    style,
)
from ray_embed.analysis.plotting.plot import plot
from ray_embed.cli.commands import main
from ray_embed.sources.label_lists import LABEL_LIST
from ray_embed.storage.filesystem import Folder

PICTURES = ("maps_by_label", "maps_by_split", "explained_variance", "confusion", "misplaced")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    # UMAP takes half a minute to be compiled; one test has it.
    monkeypatch.setattr(projections, "has_umap", lambda: False)


@pytest.fixture
def call(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ray-embed", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capsys.readouterr()
        return int(exited.value.code or 0), captured.out, captured.err

    return call


def drawn(folder):
    """Open all pictures; return their names."""
    found = set()
    for png in sorted((folder / "plots").glob("*.png")):
        image = Image.open(png)
        image.load()
        pixels = np.asarray(image.convert("L"))
        assert min(image.size) > 300
        assert pixels.std() > 5
        tree = xml.etree.ElementTree.parse(png.with_suffix(".svg"))
        assert tree.getroot().tag.endswith("svg")
        found.add(png.stem)
    assert len(list((folder / "plots").iterdir())) == 2 * len(found)
    return found


def write_font(path, family, letters, boxed=True):
    """Write a font with a box for each letter, or with nothing to draw for it."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    if boxed:
        pen.moveTo((50, 0))
        for corner in ((50, 800), (900, 800), (900, 0)):
            pen.lineTo(corner)
        pen.closePath()
    glyphs = {".notdef": TTGlyphPen(None).glyph(), "box": pen.glyph()}
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord(letter): "box" for letter in letters})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, sTypoDescender=-200)
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def flat(monkeypatch):
    """Draw the components for t-SNE too, and no maps for the page: both take seconds."""
    monkeypatch.setattr(projections, "run_tsne", lambda components, size: components[:, :size])
    monkeypatch.setattr("ray_embed.analysis.plotting.plot._save_views", lambda *_: None)


@pytest.fixture
def installed(tmp_path, flat, monkeypatch):
    """Let no fonts be installed but matplotlib's own and those in the list that is given."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    own = [entry for entry in manager.ttflist if "mpl-data" in str(entry.fname)]
    monkeypatch.setattr(manager, "ttflist", own)
    found = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: found)
    yield found
    # What matplotlib remembers of fonts that are gone.
    manager._findfont_cached.cache_clear()


KOREAN = ("고양이", "강아지", "비행기", "아주 긴 이름을 가진 자동차 " * 4)


def korean_run(path):
    features, codes = clusters(4, 120)
    labels = [KOREAN[code] for code in codes]
    keys = [f"사진/{at:04d}번.png" for at in range(120)]
    return make_run(path, {"gap": features}, labels, ["valid"] * 70 + ["test"] * 50, keys=keys)


def texts_of(svg):
    return re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"), re.DOTALL)


def assert_nothing_is_cut_off(folder):
    for png in sorted(folder.glob("*.png")):
        pixels = np.asarray(Image.open(png).convert("L"))
        edge = np.concatenate([pixels[:3].ravel(), pixels[-3:].ravel()])
        edge = np.concatenate([edge, pixels[:, :3].ravel(), pixels[:, -3:].ravel()])
        assert edge.min() == 255, png.name


def test_labels_are_drawn_by_a_font_that_has_their_letters(tmp_path, call, installed):
    letters = set("".join(KOREAN) + "사진번한국어") - {" "}
    few = sorted(letters)[:-2]
    installed.append(write_font(tmp_path / "last.ttf", "LastResort", letters))
    installed.append(write_font(tmp_path / "color.ttf", "Blank", letters, boxed=False))
    installed.append(write_font(tmp_path / "few.ttf", "Some Sans", few))
    installed.append(write_font(tmp_path / "all.ttf", "Other Sans", letters))
    run = korean_run(tmp_path / "한국어")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")
        code, out, err = call("plot", run)
    assert code == 0, err
    assert "no font" not in out
    lettering = fonts.choose_lettering(KOREAN)
    assert lettering.families == ("DejaVu Sans", "Other Sans")
    assert not lettering.missing
    drawn = texts_of(run / "plots" / "maps_by_label.svg")
    assert any(re.fullmatch(r"고양이 \(\d+\)", text) for text in drawn)
    assert "Maps by label · 한국어 · 120 records" in drawn
    assert any("번.png" in text for text in texts_of(run / "plots" / "misplaced.svg"))
    assert_nothing_is_cut_off(run / "plots")


def test_labels_whose_letters_no_font_has_are_numbers_with_a_table(tmp_path, call, installed):
    run = korean_run(tmp_path / "한국어")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")
        code, out, err = call("plot", run)
    assert code == 0, err
    (line,) = (line for line in out.splitlines() if line.startswith("no font"))
    assert "install Noto Sans CJK (Debian, Ubuntu: apt install fonts-noto-cjk)" in line
    # In the order of names.
    assert sorted(KOREAN).index("고양이") == 1
    for name in ("maps_by_label", "confusion", "misplaced"):
        drawn = texts_of(run / "plots" / f"{name}.svg")
        assert any("#2 \\uace0\\uc591\\uc774" in text for text in drawn), name
        assert any(text.startswith("#2") for text in drawn)
        assert not [text for text in drawn if not text.isascii() and "고" in text]
    assert "Maps by label · \\ud55c\\uad6d\\uc5b4 · 120 records" in texts_of(
        run / "plots" / "maps_by_label.svg"
    )
    assert any("valid record" in text for text in texts_of(run / "plots" / "misplaced.svg"))
    assert_nothing_is_cut_off(run / "plots")


def test_the_font_to_install_is_named_by_script(installed):
    def advice(*names):
        return fonts.choose_lettering(names).advice() or ""

    assert "Noto Sans CJK" in advice("猫")
    assert "Noto Sans Thai (" in advice("แมว")
    assert "Noto Sans Devanagari (" in advice("बिल्ली")
    assert "Symbola" in advice("🐈")
    assert "U+3FFFD: names" in advice("\U0003fffd")
    assert advice("plain", "žluťoučký", "a\u0301", "\ufeffmarked", "x\u200by", "(empty)") == ""


def test_common_fonts_come_first_by_the_script_of_the_labels(tmp_path, installed):
    for family in ("Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans CJK SC", "Arial Unicode MS"):
        installed.append(write_font(tmp_path / f"{family}.ttf", family, "猫の고a"))
    installed.append(write_font(tmp_path / "every.ttf", "Everything", "猫の고ม"))
    for names, family in (("猫", "SC"), ("猫の", "JP"), ("猫고", "KR")):
        assert fonts.choose_lettering([names]).families[1:] == (f"Noto Sans CJK {family}",)
    assert fonts.choose_lettering(["猫", "ม"]).families[2:] == ("Everything",)


def test_names_are_shortened_by_the_room_they_take():
    assert palette.shorten("고양이 고양이 고양이", 9) == "고양…이"
    assert palette.shorten("abcdefghij", 9) == "abcde…hij"
    assert palette.shorten("$a$\n b") == "$a$ b"
    # Composed, as macOS does not.
    assert palette.shorten("\u1100\u1161") == "가"
    assert fonts.clean("a\x1b[31m\ufe0f") == "a\\x1b[31m"


@pytest.mark.parametrize("name", ["W" * 300, r"a rather long name of $x_{$ \frac{$ " * 9])
def test_nothing_is_cut_off(name, tmp_path, call, flat):
    features, codes = clusters(12, 150)
    run = make_run(
        tmp_path / (re.sub("[^a-zA-Z ]", "_", name)[:120] + "x"),
        {"gap": features},
        [f"{name}{code} {name}" for code in codes],
        ["a" * 60] * 100 + ["b" * 60] * 50,
        keys=[f"{name[:200]}{at}.png" for at in range(150)],
    )
    assert call("plot", run)[0] == 0
    assert_nothing_is_cut_off(run / "plots")


def test_names_in_a_curve_are_drawn_whole(tmp_path, installed):
    measure = SimpleNamespace(value=0.5, interval=(0.4, 0.6))
    names = ["실행", "run $x_{$ " + "W" * 90, "c"]
    comparison = SimpleNamespace(
        rows=[SimpleNamespace(name="rankme", measures=[measure] * 3, higher_is_better=True)],
        columns=[SimpleNamespace(name=name) for name in names],
        evaluated=(1_000, 1_200),
        paired=False,
    )
    said = []
    for ending in ("png", "svg"):
        draw_comparison(comparison, str(tmp_path / f"curve.{ending}"), said.append)
    assert "fonts-noto-cjk" in said[0]
    assert_nothing_is_cut_off(tmp_path)
    drawn = texts_of(tmp_path / "curve.svg")
    assert "#1" in drawn
    assert any("#1 \\uc2e4\\ud589" in text for text in drawn)


def test_labels_near_the_largest_number_are_drawn(tmp_path):
    values = np.array([0.0, 1e306, 1.7e308, -1e308] * 5)
    points = np.random.default_rng(0).random((20, 2)).astype(np.float32)
    drawn = [
        projections.Map(
            name="pca", points=points, trustworthiness=None, continuity=None, evaluated=20
        )
    ]
    with style.apply_style(fonts.Lettering()), warnings.catch_warnings(action="error"):
        figure = map_figure.draw_by_scale(drawn, values, "label")
        assert style.render(figure, "png")
    assert figure.axes[1].get_ylabel() == "label / 1e308"


def test_pictures_appear_and_open_also_where_the_folder_was_moved(tmp_path, call):
    features, codes = clusters(3, 120)
    make_run(tmp_path / "a", {"gap": features}, list(codes), ["valid"] * 70 + ["test"] * 50)
    shutil.move(tmp_path / "a", tmp_path / "b")
    code, out, _ = call("plot", tmp_path / "b")
    assert code == 0
    assert drawn(tmp_path / "b") == set(PICTURES)
    assert "no UMAP" in out
    assert str(tmp_path / "b" / "plots" / "misplaced.svg") in out
    before = {path.name: path.read_bytes() for path in (tmp_path / "b" / "plots").iterdir()}
    call("plot", tmp_path / "b")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "b" / "plots").iterdir()}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([f"a rather long name of ${i % 40} \t{i % 40}" for i in range(120)], {"misplaced"}),
        ([None if i % 3 else "a$" for i in range(120)], set()),
        ([None if i % 3 else i / 7 for i in range(120)], set()),
        ([None] * 120, set()),
    ],
    ids=["many", "one and none", "floats", "none"],
)
def test_labels_of_all_kinds(labels, names, tmp_path, call, flat):
    features, _ = clusters(3, 120)
    kind = pa.float64() if isinstance(labels[0], float) or 3 / 7 in labels else pa.string()
    make_run(tmp_path / "run", {"gap": features}, labels, label_type=kind)
    code, out, _ = call("plot", tmp_path / "run")
    assert code == 0
    expected = {"maps_by_label", "explained_variance"} | (names and {"confusion", *names})
    assert drawn(tmp_path / "run") == expected
    assert ("no confusion and no contact sheet" in out) == (not names)


def test_the_legend_is_in_the_order_of_names(tmp_path, call, flat):
    features, _ = clusters(2, 100)
    labels = ["class 10"] * 50 + ["class 9"] * 20 + ["class 100"] * 30
    make_run(tmp_path / "run", {"gap": features}, labels)
    assert call("plot", tmp_path / "run")[0] == 0
    drawn = (tmp_path / "run" / "plots" / "maps_by_label.svg").read_text()
    listed = re.findall(r"<!-- (class \d+) \(\d+\) -->", drawn)
    assert listed == ["class 9", "class 10", "class 100"]


@pytest.mark.parametrize(("records", "dimensions"), [(1, 4), (2, 1), (12, 1), (11, 3)])
def test_few_points_and_dimensions_or_equal_points(records, dimensions, tmp_path, call):
    features = np.ones((records, dimensions), np.float32)
    features[: records // 2] = 2
    labels = [str(at % 2) for at in range(records)]
    make_run(tmp_path / "run", {"gap": features}, labels)
    assert call("plot", tmp_path / "run")[0] == 0
    assert "maps_by_label" in drawn(tmp_path / "run")


def test_a_layer_is_named_where_there_are_several(tmp_path, call, flat):
    features, codes = clusters(2, 60)
    make_run(tmp_path / "run", {"early": features[:, :4], "late": features}, list(codes))
    code, _, err = call("plot", tmp_path / "run")
    assert code == 2
    assert "early, late" in err
    assert call("plot", tmp_path / "run", "--layer", "late")[0] == 0
    assert "maps_by_label_late" in drawn(tmp_path / "run")


def test_what_stands_in_the_way_is_said(tmp_path, call, monkeypatch):
    features, codes = clusters(2, 60)
    code, _, err = call("plot", tmp_path / "nothing")
    assert code == 2
    assert "not a run folder" in err
    make_run(tmp_path / "run", {"gap": features}, list(codes), missing=1)
    code, _, err = call("plot", tmp_path / "run")
    assert code == 2
    assert "only 0 of 1 shards are done" in err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = call("plot", tmp_path / "run")
    assert code == 2
    assert "pip install 'ray_embed[plots]'" in err


def test_pictures_on_an_object_store(bucket, flat):
    features, codes = clusters(2, 60)
    make_run(f"{bucket}/run", {"gap": features}, list(codes))
    said = []
    plot(f"{bucket}/run", None, said.append)
    content = Folder.open(f"{bucket}/run/plots").read("maps_by_label.png")
    Image.open(io.BytesIO(content)).load()
    assert any(line.endswith("run/plots/maps_by_label.png") for line in said)


def test_trustworthiness_is_that_of_scikit_learn():
    from sklearn.manifold import trustworthiness

    features, _ = clusters(4, 150)
    points = features[:, :2]
    found = projections.evaluate_map("pca", features, points)
    assert found.evaluated == 150
    assert found.trustworthiness == pytest.approx(trustworthiness(features, points, n_neighbors=15))
    assert found.continuity == pytest.approx(trustworthiness(points, features, n_neighbors=15))
    same = projections.evaluate_map("pca", points, points)
    assert (same.trustworthiness, same.continuity) == (1, 1)
    # Wide features are compared by as many numbers as there are records.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectrum, "_WIDE", features.shape[1] - 1)
        narrow = spectrum.narrow_features(features)
    assert narrow.shape == (len(features), len(features))
    again = projections.evaluate_map("pca", narrow, points)
    assert again.trustworthiness == pytest.approx(found.trustworthiness, abs=1e-9)
    assert again.continuity == pytest.approx(found.continuity, abs=1e-9)
    assert spectrum.narrow_features(features) is features
    shuffled = projections.evaluate_map(
        "pca", features, np.random.default_rng(0).permutation(points)
    )
    assert shuffled.trustworthiness < found.trustworthiness - 0.1
    assert (
        projections.evaluate_map(
            "pca", np.tile(features, (20, 1)), np.tile(points, (20, 1))
        ).evaluated
        == 2000
    )


def test_maps_are_the_same_each_time():
    features, _ = clusters(3, 80)
    once, again = (
        projections.compute_projections(features, 3),
        projections.compute_projections(features, 3),
    )
    assert list(once) == ["pca", "tsne"]
    for name, points in once.items():
        assert points.shape == (80, 3)
        assert np.array_equal(points, again[name])


@pytest.mark.slow
def test_umap_keeps_clusters_apart_and_is_the_same_each_time():
    features, codes = clusters(3, 150, spread=0.2)
    once, again = (projections.run_umap(features, 2) for _ in range(2))
    assert once.shape == (150, 2)
    assert once.dtype == np.float32
    assert np.array_equal(once, again)
    found = projections.evaluate_map("umap", features, once)
    assert found.trustworthiness > 0.8
    assert found.continuity > 0.8
    distances = np.linalg.norm(once[:, None] - once[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert np.mean(np.array(codes)[distances.argmin(axis=1)] == codes) > 0.95


def test_neighbors_and_their_confusion_by_hand():
    angles = np.deg2rad([0, 10, 25, 90, 95, 20])
    features = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    features *= np.array([1, 5, 1, 2, 1, 9])[:, None]
    codes = np.array([0, 0, 0, 1, 1, 1])
    found = class_neighbors.find_class_neighbors(features, codes, 2)
    assert found.rows.tolist() == [[1, 5], [0, 5], [5, 1], [4, 2], [3, 2], [2, 1]]
    assert found.similarities[0] == pytest.approx(np.cos(np.deg2rad([10, 20])))
    assert found.same_class[5] == pytest.approx(np.cos(np.deg2rad(70)))
    shares = class_neighbors.compute_confusion(found, codes, 2)
    assert shares == pytest.approx(np.array([[3 / 6, 3 / 6], [4 / 6, 2 / 6]]))


def test_what_was_planted_inside_another_class_comes_first():
    features, codes = clusters(3, 200, spread=0.2)
    features[17] = features[codes == (codes[17] + 1) % 3].mean(axis=0)
    found = class_neighbors.rank_misplaced(
        class_neighbors.find_class_neighbors(features, codes), codes
    )
    assert found.rows[0] == 17
    assert found.inside[0] == (codes[17] + 1) % 3
    assert found.shares[0] == 1
    apart, codes = np.eye(2, dtype=np.float32).repeat(30, 0), np.repeat([0, 1], 30)
    assert (
        len(
            class_neighbors.rank_misplaced(
                class_neighbors.find_class_neighbors(apart, codes), codes
            ).rows
        )
        == 0
    )


def test_the_most_confused_classes_are_chosen():
    shares = np.eye(6) * 0.9
    shares[4, 1], shares[2, 5] = 0.6, 0.5
    assert sorted(class_neighbors.choose_most_confused(shares, 2)) == [1, 4]
    assert sorted(class_neighbors.choose_most_confused(shares, 4)) == [1, 2, 4, 5]
    assert sorted(class_neighbors.choose_most_confused(shares, 9)) == list(range(6))


def test_classes_are_taken_by_size_and_shown_by_name():
    labels = np.array(["b", "a10", "a9", "b", None, "a9", "b", ""], object)
    found = palette.group_classes(labels)
    assert found.names == ("b", "a9", "(empty)", "a10")
    assert found.counts == (3, 2, 1, 1)
    assert found.codes.tolist() == [0, 3, 1, 0, -1, 1, 0, 2]
    assert [found.names[code] for code in palette.sort_by_name(np.arange(4), found.names)] == [
        *("(empty)", "a9", "a10", "b")
    ]
    assert (
        palette.group_classes(np.arange(200).astype(object)).colored == palette.MAX_COLORED_CLASSES
    )


# Machado, Oliveira, Fernandes 2009, for linear RGB and no such cones at all.
DEFICIENCIES = {
    "none": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}
_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def lab(color, seen):
    """Return CIE Lab of a color as it is seen."""
    channels = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    xyz = _TO_XYZ @ np.clip(seen @ linear, 0, 1) / (0.95047, 1, 1.08883)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("seen", DEFICIENCIES.values(), ids=DEFICIENCIES)
def test_colors_differ_for_all_eyes(seen):
    colors = [lab(color, seen) for color in palette.COLORS]
    apart = [np.linalg.norm(a - b) for at, a in enumerate(colors) for b in colors[:at]]
    # About 2 is just seen.
    assert min(apart) > 15
    rest = lab(palette.REST, seen)
    assert min(np.linalg.norm(rest - one) for one in colors[: palette.MAX_COLORED_CLASSES]) > 12
    assert len(set(palette.MARKERS)) == len(palette.MARKERS) == len(palette.COLORS)


def test_lists_are_drawn_by_their_most_frequent_label(tmp_path, flat):
    features, _ = clusters(3, 60)
    # "a" and "b" are in as many lists each, so they are sorted by name; "c" is in the most.
    labels = [["b", "a"], ["b", "a", "c"], None, ["c"], ["c", "c"], ["c", "d"]] * 10
    run = make_run(tmp_path / "run", features, labels, label_type=LABEL_LIST)
    said = []
    plot(str(run), None, said.append)
    assert any("the label in its list that most records of the run have" in line for line in said)
    svg = (tmp_path / "run/plots/maps_by_label.svg").read_text()
    for entry in ("c (40)", "a (10)", "(none) (10)"):
        assert entry in svg
    assert "b (" not in svg
    assert "confusion" in drawn(tmp_path / "run")


@pytest.mark.slow
def test_umap_is_computed_after_tensorflow():
    # umap-learn imports PyTorch if it is installed, whose Triton would crash Python.
    code = (
        "import tensorflow, numpy as np\n"
        "from ray_embed.analysis.plotting.projections import run_umap\n"
        "print(run_umap(np.random.default_rng(0).random((40, 5), np.float32), 2).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "(40, 2)"), done.stderr[-2000:]

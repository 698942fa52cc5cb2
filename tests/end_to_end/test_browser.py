# SPDX-License-Identifier: Apache-2.0
"""What somebody sees who opens a run: TensorBoard's own page, in a browser.

This draws the README's picture:

    RAY_EMBED_PICTURE=docs/projector.png pytest tests/end_to_end/test_browser.py
"""

import io
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.synthetic_runs import make_run

import ray_embed

chromium = pytest.importorskip("support.chromium", reason="the browser's tests need selenium")
Page = chromium.Page
# Of t-SNE, by when the digits have come apart.
STEPS = 120
PICTURE = os.environ.get("RAY_EMBED_PICTURE")
NEEDED = (chromium.CHROMIUM, chromium.CHROMEDRIVER)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        None in NEEDED, reason="needs Debian's packages chromium and chromium-driver"
    ),
]

MAGENTA, MAGENTA_SIGN = (255, 0, 255), (1, -1, 1)
ZEROS = ("007", "08", "10", "7")


def pictures_run(root: Path, name: str, images: Any, labels: Any) -> None:
    """Embed pictures with an encoder that passes them on: features are their pixels."""
    import keras

    data = root.parent / "data"
    data.mkdir()
    picture = keras.Input(images.shape[1:])
    keras.Model(picture, keras.layers.Flatten()(picture)).save(data / "flatten.keras")
    np.savez(data / f"{name}.npz", images=images, labels=labels)
    config = ray_embed.RunConfig(
        sources={"all": str(data / f"{name}.npz")},
        model=str(data / "flatten.keras"),
        out=str(root / name),
        engine="tensorflow",
        actors=1,
        cpus_per_actor=1,
    )
    ray_embed.run(config)


def features_run(run: Path, features: Any, labels: Any, limit: int | None = None) -> None:
    """Reduce given features, or those of each layer, as extracting them would have left them."""
    make_run(run, features, list(labels), ["all"] * len(labels))
    ray_embed.reduce(str(run), limit)


def awkward(dimension: int) -> Any:
    """Give 58 rows: a quarter of the dimensions constant, each row twice, two rows at the mean."""
    half = np.random.default_rng(0).normal(size=(14, dimension))
    varied = np.concatenate([half, -half, np.zeros((1, dimension))])
    varied[:, -dimension // 4 :] = 0.5
    return np.repeat(varied, 2, 0).astype(np.float32)


AWKWARD = {
    "awkward10": awkward(10),
    "awkward64": awkward(64),
    "awkward256": awkward(256),
    "equal64": np.full((58, 64), 0.3, np.float32),
    "dead64": np.zeros((58, 64), np.float32),
    "two": awkward(4)[:, :2],
}


@pytest.fixture(scope="module")
def runs(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs; the name of each says what it is for."""
    root = tmp_path_factory.mktemp("browser") / "runs"
    random = np.random.default_rng(0)
    colours = random.integers(0, 60, (60, 4, 4, 3), np.uint8)
    colours[:20] = np.array(MAGENTA) - random.integers(0, 30, (20, 4, 4, 3)) * MAGENTA_SIGN
    pictures_run(root, "pictures", colours, np.repeat(["alpha", "beta", "gamma"], 20))
    sizes = {"ant": 700, "bee": 250, "cat": 45, "dog": 5}
    centres = np.repeat(np.eye(4, 10) * 5, list(sizes.values()), 0)
    sampled = (centres + random.normal(size=(1000, 10))).astype(np.float32)
    features_run(root / "sampled", sampled, np.repeat(list(sizes), list(sizes.values())), 300)
    many = random.normal(size=(180, 10)).astype(np.float32)
    features_run(root / "many", many, [f"class {at % 60:02d}" for at in range(180)])
    features_run(root / "zeros", many[:80], [ZEROS[at % 4] for at in range(80)])
    features_run(root / "shapes", AWKWARD, ["a", "b"] * 29)
    return root


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium.start_chromium() as one:
        yield one


@pytest.fixture(scope="module")
def opened(runs: Path, driver: Any) -> Iterator[Any]:
    with chromium.start_view(runs) as url:
        yield Page.open(driver, url)


@pytest.fixture
def page(opened: Any) -> Iterator[Any]:
    """The page with all runs; no test may leave an error behind."""
    yield opened
    assert opened.read_log() == []
    assert opened.read_errors() == []


def share(canvas: Any, low: tuple[int, int, int], high: tuple[int, int, int]) -> float:
    """Give the share of pixels between two colours."""
    return float(np.mean(np.all((canvas >= low) & (canvas <= high), axis=-1)))


def test_all_runs_of_a_folder_are_in_the_list(page: Any, runs: Path) -> None:
    names = ["many", "pictures", "sampled", "shapes", "zeros"]
    assert sorted(page.list_items("runs? found")) == names


def test_points_dimensions_and_columns(page: Any) -> None:
    page.open_run("pictures")
    assert page.read_counts() == "Points: 60 Dimension: 48"
    tensors = [f"{name}/.ATTRIBUTES/VARIABLE_VALUE" for name in ("embedding", "pca")]
    assert page.list_items("tensors? found") == tensors
    assert page.read_choice("tensors? found") == tensors[0]
    assert page.list_items("Label by") == ["label", "split", "key", "index"]
    # What was chosen in one run stays so in the next.
    page.choose("Label by", "label")
    assert page.read_choice("Label by") == "label"
    assert {"label", "split"} <= set(page.list_items("Color by"))
    page.choose("Color by", "label")
    assert page.read_legend() == {"alpha": 20, "beta": 20, "gamma": 20}
    page.choose("Color by", "No color map")


def test_sprites_are_drawn(page: Any) -> None:
    page.open_run("pictures")
    magenta = ((170, 0, 170), (255, 90, 255))
    assert share(page.take_picture(), *magenta) > 0.0005
    # The page draws labels instead of the pictures.
    click(page, "#labels3DMode")
    page.wait_until_idle()
    assert share(page.take_picture(), *magenta) == 0
    click(page, "#labels3DMode")


def test_search_finds_the_points_of_a_label(page: Any) -> None:
    page.open_run("pictures")
    assert page.search("beta", "label") == "20 matches."
    assert page.list_selected() == list(range(20, 40))
    assert page.search("^(alpha|gamma)$", "label", regex=True) == "40 matches."
    assert page.search("delta", "label") == "0 matches."
    assert page.list_selected() == []
    page.search("", "label")


def test_of_too_many_points_a_sample_with_all_labels_comes_first(page: Any) -> None:
    page.open_run("sampled")
    assert page.list_items("tensors? found")[0] == "sample/.ATTRIBUTES/VARIABLE_VALUE"
    assert page.read_choice("tensors? found") == "sample/.ATTRIBUTES/VARIABLE_VALUE"
    assert page.read_counts() == "Points: 300 Dimension: 10"
    shown = Counter(page.read_column("label"))
    assert set(shown) == {"ant", "bee", "cat", "dog"}
    for label, share_of_all in (("ant", 0.7), ("bee", 0.25)):
        assert abs(shown[label] - 300 * share_of_all) <= 3
    assert page.search("dog", "label") == f"{shown['dog']} matches."
    # Each point has its own label: those of a class are nearer to its middle than to others'.
    page.search("", "label")
    page.choose("tensors? found", "embedding/.ATTRIBUTES/VARIABLE_VALUE")
    assert page.read_counts() == "Points: 1000 Dimension: 10"


def test_more_labels_than_the_page_can_colour(page: Any) -> None:
    page.open_run("many")
    # From the 51st text on it offers no colours, all else works.
    assert "label" not in page.list_items("Color by")
    assert "split" in page.list_items("Color by")
    page.choose("Label by", "label")
    assert page.read_choice("Label by") == "label"
    assert page.search("class 07", "label") == "3 matches."
    assert page.list_selected() == [7, 67, 127]
    page.search("", "label")


def test_texts_of_digits_are_numbers_to_the_page(page: Any, runs: Path) -> None:
    page.open_run("zeros")
    # The file has them as they are; the page cannot be told not to.
    written = (runs / "zeros" / "projector" / "metadata.tsv").read_text().splitlines()[1:5]
    assert [line.split("\t")[0] for line in written] == list(ZEROS)
    assert page.read_column("label")[:4] == [7, 8, 10, 7]
    assert page.search("007", "label") == "0 matches."
    assert page.search("7", "label") == "40 matches."
    page.search("", "label")
    assert ray_embed.load(str(runs / "zeros")).to_numpy()[1][:4].tolist() == list(ZEROS)


@pytest.mark.parametrize("layer", [name for name in AWKWARD if name != "two"])
def test_awkward_features_have_a_place(page: Any, layer: str) -> None:
    page.open_run("shapes")
    page.choose("tensors? found", f"embedding_{layer}/.ATTRIBUTES/VARIABLE_VALUE")
    assert page.read_counts() == f"Points: 58 Dimension: {AWKWARD[layer].shape[1]}"
    places = page.read_positions()
    assert places.shape == (58, 3)
    assert np.isfinite(places).all()
    # The same rows are in the same place, others are not.
    assert np.allclose(places[::2], places[1::2], atol=1e-4 * np.abs(places).max() + 1e-6)
    assert len(np.unique(places[::2].round(3), axis=0)) == len(np.unique(AWKWARD[layer], axis=0))
    # The thumbnails are grey and black, the axes are not.
    assert share(page.take_picture(), (0, 0, 0), (150, 150, 150)) > 0.0002


def test_two_dimensions_have_a_place_with_a_third(page: Any) -> None:
    page.open_run("shapes")
    page.choose("tensors? found", "pca_two/.ATTRIBUTES/VARIABLE_VALUE")
    assert page.read_counts() == "Points: 58 Dimension: 3"
    places = page.read_positions()
    assert np.isfinite(places).all()
    assert np.ptp(places, axis=0)[:2].min() > 0


@pytest.mark.parametrize("layer", ["awkward10", "awkward256"])
def test_the_page_finds_neighbours_of_the_exact_components(page: Any, layer: str) -> None:
    page.open_run("shapes")
    page.choose("tensors? found", f"pca_{layer}/.ATTRIBUTES/VARIABLE_VALUE")
    click(page, '.ink-tab[data-tab="tsne"]')
    click(page, ".run-tsne")
    steps = page.find(".run-tsne-iter")
    end = time.monotonic() + 60
    while int(steps.text or 0) < 5 and time.monotonic() < end:
        time.sleep(0.5)
    click(page, ".pause-tsne")
    assert int(steps.text) >= 5
    click(page, '.ink-tab[data-tab="pca"]')


@pytest.mark.skipif(not PICTURE, reason="draws the README's picture; set RAY_EMBED_PICTURE to it")
@pytest.mark.timeout(1500)
def test_picture(driver: Any, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "demo"
    command = [sys.executable, "-m", "ray_embed", "demo", "--out", str(run)]
    subprocess.run(command, check=True, timeout=900)
    driver.set_window_size(1700, 1140)
    with chromium.start_view(run) as url:
        page = Page.open(driver, url)
        page.choose("Color by", "label")
        page.choose("Label by", "label")
        draw(page, Path(str(PICTURE)))
        assert page.read_log() == []


def draw(page: Any, path: Path) -> None:
    """Let the page compute its t-SNE, and save what it shows."""
    # Its neighbours are by cosine, of rows that it takes for normalized.
    click(page, "#normalize-data-checkbox")
    page.wait_until_idle()
    click(page, '.ink-tab[data-tab="tsne"]')
    click(page, ".run-tsne")
    steps = page.find(".run-tsne-iter")
    end = time.monotonic() + 200
    while int(steps.text or 0) < STEPS and time.monotonic() < end:
        time.sleep(1)
    click(page, ".pause-tsne")
    time.sleep(2)
    picture = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
    width = 1400
    small = picture.resize((width, round(picture.height * width / picture.width)))
    # A palette takes a third of the bytes, and nobody sees it.
    small.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def click(page: Any, selector: str) -> None:
    page.run_script("arguments[0].click()", page.find(selector))

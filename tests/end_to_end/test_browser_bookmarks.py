# SPDX-License-Identifier: Apache-2.0
"""Saved views in the real page: a click shows our coordinates, and they stay."""

import json
import time

import numpy as np
import pytest
from support.synthetic_runs import clusters, make_run

import ray_embed
from ray_embed.analysis.plotting import projections
from ray_embed.analysis.plotting.plot import plot

chromium = pytest.importorskip("support.chromium", reason="the browser's tests need selenium")

pytestmark = pytest.mark.skipif(
    not (chromium.CHROMIUM and chromium.CHROMEDRIVER),
    reason="needs chromium and chromedriver",
)

_DRAWN = """
const adapter = arguments[0].projectorScatterPlotAdapter;
return Array.from(adapter.scatterPlot.worldSpacePointPositions);
"""


def scaled(points):
    """Scale each axis from 0 to 1, as the page scales it to its cube."""
    return (points - points.min(axis=0)) / (points.max(axis=0) - points.min(axis=0))


@pytest.mark.slow
def test_a_click_shows_the_map_that_was_computed_here(tmp_path, monkeypatch):
    monkeypatch.setattr(projections, "has_umap", lambda: True)
    monkeypatch.setattr(projections, "run_umap", lambda points, size: points[:, 3 : 3 + size])
    features, codes = clusters(3, 200)
    make_run(tmp_path / "run", {"gap": features}, [f"class {code}" for code in codes])
    ray_embed.reduce(str(tmp_path / "run"))
    plot(str(tmp_path / "run"), None, print)
    views = json.loads((tmp_path / "run" / "projector" / "bookmarks.json").read_text())
    with chromium.start_view(tmp_path / "run") as url, chromium.start_chromium() as driver:
        page = chromium.Page.open(driver, url)
        projector = page.find("vz-projector")
        page.wait_until(lambda: len(page.find_all(".state-row")) == len(views) == 3)
        for number, view in enumerate(views):
            row = page.find_all(".state-row")[number]
            (button,) = row.find_elements("css selector", ".state-radio paper-icon-button")
            driver.execute_script("arguments[0].scrollIntoView()", button)
            button.click()
            name = view["selectedProjection"]
            ours = np.array(
                [[point[f"{name}-{axis}"] for axis in range(3)] for point in view["projections"]]
            )

            def drawn():
                return np.array(driver.execute_script(_DRAWN, projector)).reshape(-1, 3)

            assert scaled(drawn()) == pytest.approx(scaled(ours), abs=1e-5)
            # The page's own t-SNE goes on from there by now.
            time.sleep(5)
            assert scaled(drawn()) == pytest.approx(scaled(ours), abs=1e-5)
            active = [
                tab for tab in page.find_all(".ink-tab") if "active" in tab.get_attribute("class")
            ]
            assert [tab.get_attribute("data-tab") for tab in active] == [name]
            assert page.find(f".ink-panel-content[data-panel='{name}']").is_displayed()

# SPDX-License-Identifier: Apache-2.0
"""Drive headless Chromium on the projector of a TensorBoard that ``ray-embed view`` started.

The page is made of Polymer elements, each with its own shadow root. Selectors search all of them.
"""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import JavascriptException, TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-dev-shm-usage",
    "--window-size=1400,900",
    "--force-device-scale-factor=1",
)
_PATIENCE = 60.0

_FIND = """
const found = [];
const look = (root) => {
    found.push(...root.querySelectorAll(arguments[0]));
    for (const element of root.querySelectorAll('*'))
        if (element.shadowRoot) look(element.shadowRoot);
};
look(document);
return found;
"""
# Nothing is being loaded or computed, and every point has a position.
_IDLE = """
const [page, dialogs] = arguments, set = page.dataSet;
return !!set && !!page.projection && !dialogs.some((dialog) => dialog.opened)
    && set.dim[0] === set.points.length && set.points.every((point) => 'pca-0' in point.projections)
    && page.dataPanel.selectedTensor !== undefined;
"""
_ITEMS = """
const menu = arguments[0].find((menu) => new RegExp(arguments[1]).test(menu.label));
if (!menu) return null;
return [...menu.querySelectorAll('paper-item')].filter((item) => !item.disabled);
"""
_PLACES = """
const page = arguments[0], names = page.projection.projectionComponents;
return page.dataSet.points.map((point) => names.map((name) => String(point.projections[name])));
"""
_SEARCH = "arguments[0].setValue(arguments[1], arguments[2]);"
_LEGEND = """
const text = (row, part) => row.querySelector(part).textContent;
return [...arguments[0].shadowRoot.querySelectorAll('.item')].map(
    (row) => [text(row, '.label'), text(row, '.info')]);
"""


@contextlib.contextmanager
def start_view(*arguments: Any) -> Iterator[str]:
    """Run ``ray-embed view ARGUMENTS``, and yield the URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_embed", "view", *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout
        lines = iter(process.stdout.readline, "")
        yield next(line.strip() for line in lines if line.startswith("http"))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(20)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()


@contextlib.contextmanager
def start_chromium() -> Iterator[webdriver.Chrome]:
    """Start a browser with its own profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(prefix="chromium-") as profile:
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
        try:
            yield driver
        finally:
            driver.quit()


@dataclass(frozen=True)
class Page:
    """The projector's page."""

    driver: webdriver.Chrome

    @classmethod
    def open(cls, driver: webdriver.Chrome, url: str) -> "Page":
        """Open the projector, and wait until it shows its points."""
        driver.get("about:blank")
        driver.get_log("browser")
        driver.get(url)
        page = cls(driver)
        # The plugin is a frame, and the projector a frame in it.
        for _ in range(2):
            page.wait_until(lambda: driver.find_elements(By.CSS_SELECTOR, "iframe"))
            driver.switch_to.frame(driver.find_element(By.CSS_SELECTOR, "iframe"))
        page.wait_until_idle()
        return page

    def wait_until(self, holds: Callable[[], Any]) -> Any:
        """Wait until a condition is true, and return its value."""
        try:
            wait = WebDriverWait(self.driver, _PATIENCE, 0.2, [JavascriptException])
            return wait.until(lambda _: holds())
        except TimeoutException as error:
            raise AssertionError(
                f"the condition was never true; the browser logged {self.read_log()}"
            ) from error

    def run_script(self, code: str, *arguments: Any) -> Any:
        """Run JavaScript in the page."""
        return self.driver.execute_script(code, *arguments)

    def find_all(self, selector: str) -> list[Any]:
        """Find elements in the page and all shadow roots."""
        return list(self.run_script(_FIND, selector))

    def find(self, selector: str) -> Any:
        """Wait for an element, and return it."""
        return self.wait_until(lambda: self.find_all(selector))[0]

    def wait_until_idle(self) -> None:
        """Wait until the page has nothing to compute or draw."""
        projector = self.find("vz-projector")
        for _ in range(2):
            self.wait_until(
                lambda: self.run_script(_IDLE, projector, self.find_all("#notification-dialog"))
            )
            time.sleep(0.7)

    def read_log(self) -> list[str]:
        """Return the errors that the browser has logged."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def read_errors(self) -> list[str]:
        """Return the errors that the page shows, in a dialog or in a note at the bottom."""
        dialogs = [element.text for element in self.find_all("#notify-msgs .error")]
        notes = self.run_script(
            "return arguments[0].filter((note) => note.opened).map((note) => note.text)",
            self.find_all("#toast"),
        )
        return [text for text in (*dialogs, *notes) if text]

    def read_counts(self) -> str:
        """Return the text with the numbers of points and dimensions."""
        return " ".join(self.find(".status-bar-panel").text.split())

    def list_items(self, menu: str) -> list[str]:
        """Return the values of the menu whose label matches."""
        return [
            self.run_script("return arguments[0].value", item) for item in self._find_items(menu)
        ]

    def read_choice(self, menu: str) -> str:
        """Return the selected value of the menu whose label matches."""
        for item in self._find_items(menu):
            if "iron-selected" in item.get_attribute("class"):
                return str(self.run_script("return arguments[0].value", item))
        return ""

    def choose(self, menu: str, value: str) -> None:
        """Select a value in the menu whose label matches, and wait until the page is idle."""
        items = dict(zip(self.list_items(menu), self._find_items(menu), strict=True))
        self.run_script("arguments[0].click()", items[value])
        self.wait_until_idle()

    def open_run(self, name: str) -> None:
        """Select a run."""
        if self.read_choice("runs? found") != name:
            self.choose("runs? found", name)

    def search(self, text: str, column: str, *, regex: bool = False) -> str:
        """Search in a column, and return the message of the page."""
        self.choose("^By$", column)
        self.run_script(_SEARCH, self.find("#search-box"), text, regex)
        return str(self.run_script("return arguments[0].message", self.find("#search-box")))

    def list_selected(self) -> list[int]:
        """Return the indices of the points that a search has selected."""
        projector = self.find("vz-projector")
        return sorted(self.run_script("return arguments[0].selectedPointIndices", projector))

    def read_column(self, name: str) -> list[Any]:
        """Return the values of a column of the metadata, one per point."""
        code = "return arguments[0].dataSet.points.map((point) => point.metadata[arguments[1]])"
        return list(self.run_script(code, self.find("vz-projector"), name))

    def read_legend(self) -> dict[str, int]:
        """Return the labels under "Color by" with their counts."""
        rows = self.run_script(_LEGEND, self.find("vz-projector-legend"))
        return {label.strip(): int(count) for label, count in rows}

    def read_positions(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the positions of the points, (N, 2 or 3); they may hold NaN or infinity."""
        return np.array(self.run_script(_PLACES, self.find("vz-projector")), float)

    def take_picture(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return a picture of the points, (H, W, 3)."""
        png = self.find("#scatter").screenshot_as_png
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def _find_items(self, menu: str) -> list[Any]:
        found = self.wait_until(
            lambda: self.run_script(_ITEMS, self.find_all("paper-dropdown-menu"), menu)
        )
        return list(found)

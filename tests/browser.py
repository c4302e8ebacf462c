"""A real browser, Debian's Chromium, in which pages are opened as a user would: pytest_plugins of
conftest.py has the fixture."""

import base64
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Browser:
    """Chromium without a window. Nothing that a page says or asks for goes unseen."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.run = driver.execute_script

    def open(self, path: Path, width: int = 1280, dark: bool = False) -> None:
        self.driver.get("about:blank")
        self.driver.get_log("browser"), self.driver.get_log("performance")
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        self.driver.get(path.resolve().as_uri())
        self.run("localStorage.clear()")  # the theme that another test chose
        self.driver.refresh()
        self.wait(
            "return document.readyState === 'complete' && "
            "[...document.querySelectorAll('.chart .plot')].every(plot => plot.children.length)"
        )

    def wait(self, script: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        """What the console says, and every request but for the page
        itself and its inline images."""
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        events = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        asked = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return (
            said
            + [url[:80] for url in asked if not url.startswith(("data:", "file:///", "about:"))]
            + [url for url in asked if url.startswith("file:") and not url.endswith(".html")]
        )

    def click(self, selector: str) -> None:
        from selenium.webdriver.common.by import By

        element = self.driver.find_element(By.CSS_SELECTOR, selector)
        self.run("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", element)
        element.click()

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def shown(self, selector: str) -> int:
        return self.run(
            (
                "return [...document.querySelectorAll(arguments[0])]"
                ".filter(one => one.offsetParent).length"
            ),
            selector,
        )

    def screenshot(self, to: Path) -> bytes:
        width, height = self.run(
            "return [innerWidth, Math.min(16000, document.documentElement.scrollHeight)]"
        )
        found = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot",
            {
                "format": "png",
                "captureBeyondViewport": True,
                "clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1},
            },
        )
        to.write_bytes(base64.b64decode(found["data"]))
        return to.read_bytes()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One, closed afterwards; skips the test where there is no Chromium, but for CI=true."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        assert os.environ.get("CI") != "true", (
            "CI=true, but chromium or chromedriver is missing: "
            "apt-get install -y chromium chromium-driver"
        )
        pytest.skip("the browser tests need Chromium: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()

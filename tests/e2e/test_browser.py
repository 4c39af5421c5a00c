"""A person with a browser: headless Chromium signs in, sees who it is, is refused, signs out.

Skipped, saying so, where no chromium and chromedriver are installed. `SCREENSHOTS=1` renews the
pictures under docs/screenshots.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.e2e.conftest import ADA, GRACE
from tests.support.demo import Demo, running_demo

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PICTURES = Path(__file__).resolve().parents[2] / "docs" / "screenshots"

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="no chromium and chromedriver on this machine: no test in a real browser was run",
    ),
]


class Browser(webdriver.Chrome):
    """Chromium in one of the two colour schemes."""

    theme: str


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running_demo(tmp_path_factory.mktemp("demo")) as started:
        yield started


@pytest.fixture(params=["light", "dark"])
def browser(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    assert CHROMIUM is not None
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1100,800",
        "--no-proxy-server",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(argument)
    options.accept_insecure_certs = True  # the local authority is in no browser store
    with Browser(options=options, service=webdriver.ChromeService(DRIVER)) as driver:
        driver.set_page_load_timeout(30)
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": request.param}]},
        )
        driver.theme = request.param
        yield driver


def picture(browser: Browser, name: str) -> None:
    suffix = "" if browser.theme == "light" else "-dark"
    if os.environ.get("SCREENSHOTS"):
        PICTURES.mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(PICTURES / f"{name}{suffix}.png"))


def wait_text(browser: Browser, text: str) -> None:
    WebDriverWait(browser, 20).until(
        lambda driver: text in driver.find_element(By.TAG_NAME, "body").text,
        f"{text!r} not on {browser.current_url}",
    )


def sign_in_as(browser: Browser, email: str) -> None:
    WebDriverWait(browser, 20).until(
        lambda driver: driver.find_elements(By.XPATH, f"//button[contains(., '{email}')]")
    )
    picture(browser, "development-provider")
    browser.find_element(By.XPATH, f"//button[contains(., '{email}')]").click()


def test_a_person_signs_in_is_refused_elsewhere_and_signs_out(demo: Demo, browser: Browser) -> None:
    browser.get(demo.url("app.localhost"))
    sign_in_as(browser, GRACE)
    wait_text(browser, GRACE)
    assert browser.current_url == demo.url("app.localhost")
    picture(browser, "application")

    browser.get(demo.url("admin.localhost"))
    wait_text(browser, "403")
    body = browser.find_element(By.TAG_NAME, "body").text
    assert "equest" in body  # the request id is on the page
    picture(browser, "refused")

    browser.get(demo.url("app.localhost", "/.pomerium/"))
    wait_text(browser, GRACE)
    picture(browser, "user-info")

    browser.get(demo.url("app.localhost", "/.pomerium/sign_out"))
    WebDriverWait(browser, 20).until(lambda driver: "sign" in driver.page_source.lower())
    picture(browser, "signed-out")
    browser.get(demo.url("app.localhost"))
    WebDriverWait(browser, 20).until(
        lambda driver: driver.find_elements(By.XPATH, f"//button[contains(., '{ADA}')]")
    )


def test_unknown_application_is_a_readable_page(demo: Demo, browser: Browser) -> None:
    browser.get(demo.url("nothing.localhost"))
    wait_text(browser, "404")
    picture(browser, "not-found")


def test_pages_load_nothing_from_elsewhere(demo: Demo, browser: Browser) -> None:
    browser.get(demo.url("nothing.localhost"))
    wait_text(browser, "404")
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert [url for url in loaded if "nothing.localhost" not in url] == []

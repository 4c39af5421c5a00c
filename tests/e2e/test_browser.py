"""A person with a browser: headless Chromium signs in, sees who it is, is refused, signs out.

Skipped, saying so, where no chromium and chromedriver are installed. `SCREENSHOTS=1` renews the
pictures under docs/screenshots.

A page may give way to the next one between any two calls to the browser. So nothing that was found
is kept over an action that changes the page, and every look at a page is tried until it holds.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    JavascriptException,
    NoSuchElementException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.e2e.conftest import ADA, GRACE
from tests.support.demo import Demo, running_demo

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PICTURES = Path(__file__).resolve().parents[2] / "docs" / "screenshots"
PATIENCE_S = 60.0
WIDE = (1100, 800)
NARROW = (360, 720)
PAGE_OF_BEFORE = (
    NoSuchElementException,
    StaleElementReferenceException,
    ElementNotInteractableException,
    ElementClickInterceptedException,
    JavascriptException,
)

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

    theme: str = "light"
    width: str = ""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running_demo(tmp_path_factory.mktemp("demo")) as started:
        yield started


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One process for all tests: starting it takes longer than most of them."""
    options = webdriver.ChromeOptions()
    assert CHROMIUM is not None
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--no-proxy-server",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    options.accept_insecure_certs = True  # the local authority is in no browser store
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Browser(options=options, service=webdriver.ChromeService(DRIVER)) as driver:
        driver.set_page_load_timeout(30)
        yield driver


@pytest.fixture(params=["light", "dark"])
def browser(request: pytest.FixtureRequest, chromium: Browser) -> Browser:
    """A browser that has been nowhere yet."""
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    chromium.get("about:blank")
    chromium.execute_cdp_cmd("Network.clearBrowserCookies", {})
    chromium.execute_cdp_cmd("Network.clearBrowserCache", {})
    chromium.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": request.param}]},
    )
    chromium.theme = request.param
    resize(chromium, WIDE)
    chromium.get_log("browser")  # what was written before
    return chromium


def resize(browser: Browser, size: tuple[int, int]) -> None:
    width, height = size
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.width = "-narrow" if size == NARROW else ""


def picture(browser: Browser, name: str) -> None:
    suffix = browser.width + ("" if browser.theme == "light" else "-dark")
    if os.environ.get("SCREENSHOTS"):
        PICTURES.mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(PICTURES / f"{name}{suffix}.png"))


# -- Looking and acting: every look is tried until it holds


def wait(browser: Browser, holds: Callable[[], Any], what: str) -> Any:
    """What `holds` gives once it gives something; a page that goes meanwhile is no failure."""
    waiting = WebDriverWait(
        browser, PATIENCE_S, poll_frequency=0.05, ignored_exceptions=PAGE_OF_BEFORE
    )
    try:
        return waiting.until(lambda _: holds())
    except TimeoutException:
        page = f"{browser.current_url}: {text_of(browser)[:300]!r}"
        raise AssertionError(f"{what}; the browser is at {page}") from None


def text_of(browser: Browser, selector: str = "body") -> str:
    return browser.find_element(By.CSS_SELECTOR, selector).text


def wait_text(browser: Browser, text: str, selector: str = "body") -> None:
    wait(browser, lambda: text in text_of(browser, selector), f"{text!r} is not in {selector}")


def wait_at(browser: Browser, url: str) -> None:
    wait(browser, lambda: browser.current_url == url, f"the browser never came to {url}")


@contextmanager
def leaving(browser: Browser) -> Iterator[None]:
    """What is done here leads to another page; return when the old one is gone."""
    old = browser.find_element(By.TAG_NAME, "html")
    yield

    def is_gone() -> bool:
        try:
            old.is_enabled()
        except StaleElementReferenceException:
            return True
        return False

    wait(browser, is_gone, "the page stayed")


def click(browser: Browser, by: str, value: str) -> None:
    """Click what leads to another page."""
    wait(browser, lambda: browser.find_element(by, value).is_displayed(), f"no {value} to click")
    with leaving(browser):
        browser.find_element(by, value).click()


def press(browser: Browser, *keys: str) -> None:
    """Keys go to what has the focus."""
    ActionChains(browser).send_keys(*keys).perform()


def focused(browser: Browser) -> tuple[str, str, str]:
    """Id, visible text and address of what has the focus."""
    element = browser.switch_to.active_element
    return (
        element.get_attribute("id") or "",
        element.text,
        element.get_attribute("href") or "",
    )


def tab_to(browser: Browser, text: str) -> None:
    """Press Tab until the link or button of this text has the focus."""
    seen = []
    for _ in range(20):
        press(browser, Keys.TAB)
        seen.append(wait(browser, lambda: focused(browser), "nothing has the focus")[1])
        if seen[-1] == text:
            return
    raise AssertionError(f"Tab never came to {text!r}; it came to {seen}")


def sign_in_as(browser: Browser, email: str) -> None:
    button = f"//button[contains(., '{email}')]"
    wait(browser, lambda: browser.find_elements(By.XPATH, button), f"no button for {email}")
    picture(browser, "development-provider")
    click(browser, By.XPATH, button)


def names(browser: Browser) -> list[str]:
    return [item.text for item in browser.find_elements(By.CSS_SELECTOR, ".cards h2")]


def wait_one_card(browser: Browser) -> None:
    wait(browser, lambda: len(names(browser)) == 1, "the search never found one application")


def go_to_search(browser: Browser) -> None:
    def is_there() -> bool:
        browser.find_element(By.ID, "q").click()
        return focused(browser)[0] == "q"

    wait(browser, is_there, "no search field")


# -- The pages


def test_a_person_signs_in_is_refused_elsewhere_and_signs_out(demo: Demo, browser: Browser) -> None:
    browser.get(demo.url("app.localhost"))
    sign_in_as(browser, GRACE)
    wait_text(browser, GRACE)
    wait_at(browser, demo.url("app.localhost"))
    picture(browser, "application")

    browser.get(demo.url("admin.localhost"))
    wait_text(browser, "403")
    wait_text(browser, "Request ID", "footer")
    picture(browser, "refused")

    browser.get(demo.url("app.localhost", "/.pomerium/"))
    wait_text(browser, GRACE)
    picture(browser, "user-info")

    browser.get(demo.url("app.localhost", "/.pomerium/sign_out"))
    wait_text(browser, "You are signed out")
    picture(browser, "signed-out")
    browser.get(demo.url("app.localhost"))
    button = f"//button[contains(., '{ADA}')]"
    wait(browser, lambda: browser.find_elements(By.XPATH, button), "no sign-in was asked for")


def test_pages_load_nothing_from_elsewhere(demo: Demo, browser: Browser) -> None:
    browser.get(demo.url("nothing.localhost"))
    wait_text(browser, "404")
    picture(browser, "not-found")
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert [url for url in loaded if "nothing.localhost" not in url] == []


def test_the_portal_is_searched_by_keyboard_as_one_types(demo: Demo, browser: Browser) -> None:
    browser.get(demo.url("app.localhost", "/.pomerium/routes"))
    sign_in_as(browser, ADA)
    wait_text(browser, "Your applications", "h1")
    everything = wait(browser, lambda: names(browser), "no applications")
    assert len(everything) > 2
    picture(browser, "portal")
    tab_to(browser, "Skip to the applications")
    picture(browser, "portal-skip-link")
    press(browser, Keys.ENTER)
    wait(browser, lambda: focused(browser)[0] == "results", "the link skips nothing")

    go_to_search(browser)
    press(browser, "admin")
    wait_one_card(browser)
    wait(browser, lambda: browser.current_url.endswith("?q=admin"), "the address has no search")
    assert focused(browser)[0] == "q"  # typing goes on
    wait_text(browser, "1 application", "[role=status]")
    picture(browser, "portal-search")
    press(browser, " nowhere")
    wait_text(browser, "Nothing that you may open fits")

    for _ in " nowhere":
        press(browser, Keys.BACKSPACE)
    wait_one_card(browser)
    with leaving(browser):
        press(browser, Keys.ENTER)  # the form itself
    wait_one_card(browser)
    go_to_search(browser)
    press(browser, Keys.TAB, Keys.TAB)
    link = wait(browser, lambda: focused(browser)[2], "no application has the focus")
    assert link.startswith("https://admin.localhost")
    picture(browser, "portal-focus")
    with leaving(browser):
        press(browser, Keys.ENTER)
    wait_text(browser, ADA)
    wait_at(browser, demo.url("admin.localhost"))


def test_an_administrator_asks_why_somebody_is_refused(demo: Demo, browser: Browser) -> None:
    """By keyboard, without scripts; and nobody else may ask."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    page = demo.url("app.localhost", "/.pomerium/explain")
    browser.get(page)
    sign_in_as(browser, ADA)
    wait_text(browser, "Why is somebody let in or not?", "h1")
    picture(browser, "explain")

    def is_there() -> bool:
        browser.find_element(By.ID, "route").click()
        return focused(browser)[0] == "route"

    wait(browser, is_there, "no field")
    press(browser, "Administration", Keys.TAB, ADA)
    with leaving(browser):
        press(browser, Keys.ENTER)

    def is_answered() -> bool:
        if "Allowed" in text_of(browser, "#answer"):
            return True
        browser.refresh()  # authorize's copy may not have heard of this session yet
        return False

    wait(browser, is_answered, "no answer")
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    browser.get(f"{page}?route=Administration&who=")
    wait_text(browser, "Sent to sign in", "#answer")
    for size in (WIDE, NARROW):
        resize(browser, size)
        faults = wait(
            browser, lambda: {"faults": browser.execute_script(FAULTS)}, "the page is gone"
        )
        assert faults["faults"] == []
        picture(browser, "explained")
    resize(browser, WIDE)
    browser.get(demo.url("app.localhost", "/.pomerium/sign_out"))
    wait_text(browser, "You are signed out")
    browser.get(page)
    sign_in_as(browser, GRACE)
    wait_text(browser, "This page is for administrators")


def test_the_portal_works_without_scripts(demo: Demo, browser: Browser) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(demo.url("app.localhost", "/.pomerium/routes"))
    sign_in_as(browser, ADA)
    wait_text(browser, "Your applications", "h1")
    go_to_search(browser)
    press(browser, "admin")
    with leaving(browser):
        press(browser, Keys.ENTER)
    wait_one_card(browser)
    wait(browser, lambda: browser.current_url.endswith("?q=admin"), "the address has no search")


def test_a_person_with_a_keyboard_signs_out_on_all_devices(demo: Demo, browser: Browser) -> None:
    """And without scripts; it is asked first."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(demo.url("app.localhost"))
    sign_in_as(browser, GRACE)
    wait_text(browser, GRACE)
    browser.get(demo.url("app.localhost", "/.pomerium/"))
    wait_text(browser, "Your applications")
    for page in ("Your applications", "Sign out?"):
        wait_text(browser, page)
        tab_to(browser, "Sign out on all devices")
        if page == "Sign out?":
            picture(browser, "sign-out")
        with leaving(browser):
            press(browser, Keys.ENTER)
    wait_text(browser, "You are signed out")
    browser.get(demo.url("app.localhost", "/.pomerium/"))
    wait_text(browser, "You are not signed in")
    picture(browser, "not-signed-in")


# What can be read by everybody, at any width: WCAG 2.2, criteria 1.1.1, 1.3.1, 1.4.3, 1.4.10,
# 2.4.2, 2.4.4, 3.1.1.
FAULTS = """
const faults = [];
const all = selector => [...document.querySelectorAll(selector)];
const fault = (what, element) => faults.push(what + ': ' + element.outerHTML.slice(0, 90));
if (!document.documentElement.lang) faults.push('no language');
if (!document.title) faults.push('no title');
if (all('h1').length !== 1) faults.push('not one h1');
if (all('main').length !== 1) faults.push('not one main');
let level = 1;
for (const head of all('h1, h2, h3')) {
  const own = Number(head.tagName[1]);
  if (own > level + 1) fault('a heading level is left out', head);
  level = own;
}
for (const image of all('img')) if (!image.hasAttribute('alt')) fault('no alt', image);
for (const image of all('svg')) {
  if (!image.hasAttribute('aria-hidden') && !image.hasAttribute('aria-label')) fault('svg', image);
}
for (const field of all('input:not([type=hidden])')) {
  if (!field.labels.length && !field.ariaLabel) fault('no label', field);
}
for (const link of all('a, button')) if (!link.innerText.trim()) fault('says nothing', link);
for (const head of all('th')) if (!head.scope) fault('no scope', head);
if (document.documentElement.scrollWidth > window.innerWidth) faults.push('scrolls sideways');
const rgba = text => text.match(/[0-9.]+/g).map(Number);
const light = ([red, green, blue]) => [red, green, blue].map(part => part / 255)
  .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
  .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
const behind = element => {
  for (let one = element; one; one = one.parentElement) {
    const style = getComputedStyle(one);
    if (style.backgroundImage !== 'none') return null;
    const color = rgba(style.backgroundColor);
    if (color.length === 3 || color[3] === 1) return color;
    if (color[3] > 0) return null;
  }
  return null;
};
for (const element of all('body *')) {
  const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  if (!own || !element.checkVisibility()) continue;
  const ground = behind(element);
  if (!ground) continue;
  const [one, two] = [light(rgba(getComputedStyle(element).color)), light(ground)];
  const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
  if (ratio < 4.5) fault('contrast ' + ratio.toFixed(2), element);
}
return faults;
"""


def test_every_page_can_be_read_by_everybody(demo: Demo, browser: Browser) -> None:
    """In each colour scheme, on a telephone and on a desk; and none breaks its own policy."""
    authenticate = demo.url("authenticate.localhost", "")
    pages = {
        "development-provider": demo.url("app.localhost"),
        "not-found": demo.url("nothing.localhost"),
        "not-signed-in": demo.url("app.localhost", "/.pomerium/"),
        "sign-out": f"{authenticate}/.pomerium/sign_out",
        "signed-out": f"{authenticate}/.pomerium/signed_out",
        "bad-link": f"{authenticate}/.pomerium/sign_in",
        "denied": f"{authenticate}/oauth2/callback?error=access_denied",
    }
    mine = {
        "user-info": demo.url("app.localhost", "/.pomerium/"),
        "portal": demo.url("app.localhost", "/.pomerium/routes"),
        "refused": demo.url("admin.localhost"),
    }
    found = {}
    for group in (pages, mine):
        if group is mine:
            browser.get(demo.url("app.localhost"))
            sign_in_as(browser, GRACE)
            wait_text(browser, GRACE)
        for name, url in group.items():
            browser.get(url)
            for size in (WIDE, NARROW):
                resize(browser, size)
                faults = wait(
                    browser, lambda: {"faults": browser.execute_script(FAULTS)}, f"{name} is gone"
                )["faults"]
                if size == NARROW or name in {"bad-link", "denied"}:  # the rest is taken above
                    picture(browser, name)
                if faults:
                    found[f"{name}{browser.width}"] = faults
            resize(browser, WIDE)
    assert found == {}, json.dumps(found, indent=1)
    written = [entry["message"] for entry in browser.get_log("browser")]
    assert [line for line in written if "Content Security" in line] == []

"""The page, in Debian's Chromium: what is seen, what the keyboard reaches, and that nothing comes from elsewhere."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import Select, WebDriverWait
from tests.serve.conftest import KEY

from depthdial.serve.pages import FOLDER


def test_the_files_name_nothing_outside_and_nothing_inline():
    for file in FOLDER.iterdir():
        text = file.read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|innerHTML|\beval\b", text), file
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?! type=\"module\" src=)", page)


def test_every_file_of_the_page_is_served(served):
    page = httpx.get(served.url, timeout=60).text
    for path in re.findall(r'(?:href|src)="(page/[^"]+)"', page):
        assert httpx.get(f"{served.url}/{path}", timeout=60).status_code == 200
    assert httpx.get(f"{served.url}/page/pane.js", timeout=60).headers["content-type"].startswith("text/javascript")


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1100,800"):
        options.add_argument(word)
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: WebDriver, served) -> WebDriver:
    browser.get(served.url)
    until(browser, lambda: "6 layers" in one(browser, "#model").text)
    return browser


def until(browser: WebDriver, true) -> None:
    WebDriverWait(browser, 60, poll_frequency=0.05).until(lambda _: true())


def one(browser: WebDriver, css: str):
    return browser.find_element(By.CSS_SELECTOR, css)


def ask(browser: WebDriver, text: str, turns: int = 1) -> None:
    browser.execute_script("document.getElementById('length').value = 12")
    one(browser, "#question").send_keys(text, Keys.ENTER)
    until(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, ".turn")) == turns)
    until(browser, lambda: one(browser, "#send").text == "Send")


def errors(browser: WebDriver) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]  # pyright: ignore


@pytest.mark.slow
def test_an_answer_is_coloured_by_depth_beside_the_dense_one(page):
    one(page, "#compare").click()
    ask(page, "the quick fox")
    adaptive, dense = page.find_elements(By.CSS_SELECTOR, ".pane")
    colours = {
        token.value_of_css_property("background-color") for token in adaptive.find_elements(By.CSS_SELECTOR, ".t")
    }
    only = {token.value_of_css_property("background-color") for token in dense.find_elements(By.CSS_SELECTOR, ".t")}
    assert len(colours) > 1 and only == {"rgba(254, 232, 56, 1)"}  # all six layers, the brightest
    assert "tokens/s" in adaptive.text and "1.000 of dense cost" in dense.text.replace("\n", " ")
    assert "prompt 1.000" in adaptive.text and "answer 0." in adaptive.text  # both costs
    inked = """const [c] = arguments, d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        return new Set(d.filter((v, i) => i % 4 === 0)).size"""
    assert page.execute_script(inked, one(page, "canvas.strip")) > 2
    assert not errors(page)


@pytest.mark.slow
def test_the_dial_applies_to_the_next_answer(page):
    ask(page, "the fox")
    page.execute_script("const b = document.getElementById('budget'); b.value = 1; b.dispatchEvent(new Event('input'))")
    assert "untouched base" in one(page, "#dial-says").text
    ask(page, "the fox", turns=2)
    first, second = (pane.text for pane in page.find_elements(By.CSS_SELECTOR, ".pane"))
    assert "Adaptive, budget 0.80" in first and "Dense" in second and "1.000 of dense cost" in second.replace("\n", " ")


@pytest.mark.slow
def test_the_second_dial_says_how_the_prompt_is_read(page):
    reading = Select(one(page, "#reading"))
    assert [option.text for option in reading.options] == ["read in full", "as the answer"]
    ask(page, "the fox")
    reading.select_by_visible_text("as the answer")
    ask(page, "the fox", turns=2)
    first, second = (pane.text for pane in page.find_elements(By.CSS_SELECTOR, ".pane"))
    assert "prompt 1.000" in first and "prompt 0." in second
    one(page, "#options").click()
    one(page, "#lossless").click()  # its prompt is read by the base, whatever was chosen
    assert not one(page, "#reading").is_enabled()


@pytest.mark.slow
def test_the_keyboard_reaches_every_token_and_all_controls(page):
    ask(page, "the fox")
    calls = [token for token in page.find_elements(By.CSS_SELECTOR, ".t") if token.is_displayed()]
    page.execute_script("arguments[0].focus()", calls[0])
    assert "of 6 layers" in one(page, "#card").text
    assert "of 6 layers" in str(one(page, "#says").get_property("textContent"))
    page.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert page.switch_to.active_element == calls[1]
    page.switch_to.active_element.send_keys(Keys.END)
    assert page.switch_to.active_element == calls[-1]
    reached = []
    for _ in range(7):
        page.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(page.switch_to.active_element.get_attribute("id") or page.switch_to.active_element.tag_name)
    assert reached[:6] == ["budget", "reading", "compare", "summary", "question", "send"]
    unnamed = """return [...document.querySelectorAll('input, select, textarea, button')].filter(
        e => !e.labels?.length && !e.textContent.trim() && !e.ariaLabel).length"""
    assert page.execute_script(unnamed) == 0


@pytest.mark.slow
def test_a_phone_needs_no_sideways_scrolling(page):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        one(page, "#compare").click()
        ask(page, "the fox")
        assert page.execute_script("return document.documentElement.scrollWidth") <= 360
        left, right = (pane.rect for pane in page.find_elements(By.CSS_SELECTOR, ".pane"))
        assert left["x"] == right["x"]
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_hostile_text_is_text(page):
    ask(page, "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>")
    assert page.title == "depthdial" and "<img" in one(page, ".question").text and not errors(page)


@pytest.mark.slow
def test_a_server_with_a_key_asks_for_it(browser, served):
    browser.get(served.strict)
    until(browser, lambda: "API key" in one(browser, "#model").text)
    field = browser.switch_to.active_element
    assert field.get_attribute("id") == "key"
    field.send_keys(KEY, Keys.TAB)
    until(browser, lambda: "6 layers" in one(browser, "#model").text)

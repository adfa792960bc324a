"""The page in Debian's Chromium: keys, card, strip, themes, phone and paper."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

from depthdial.maps.html import map_page
from depthdial.maps.schema import DepthMap

pytestmark = pytest.mark.slow
RAN = "return [...document.querySelectorAll('#card .mask i')].map(i => i.matches('.ran'))"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for word in ("--headless=new", "--no-sandbox", "--window-size=1100,800"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """`opened(maps)`: the page of some maps; afterwards no error was logged and nothing was fetched."""

    def open_(maps, **options):
        file = tmp_path / "page.html"
        file.write_text(map_page(maps, **options), "utf-8")
        browser.get(f"file://{file}")
        return browser

    yield open_
    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith(("file:", "data:")) for url in urls)


def press(driver, *keys):
    from selenium.webdriver.common.keys import Keys

    for key in keys:
        driver.switch_to.active_element.send_keys(getattr(Keys, key))


def focus(driver, index=0, which=0):
    driver.execute_script("document.querySelectorAll('.pane')[arguments[0]].querySelector('.t').focus()", which)
    press(driver, *["ARROW_RIGHT"] * index)


def card(driver) -> str:
    return driver.execute_script("const c = document.getElementById('card'); return c.hidden ? '' : c.innerText")


def test_keys_move_between_tokens_and_show_what_is_known(opened, tiny_map):
    driver = opened([tiny_map])
    row = tiny_map.rows[0]
    focus(driver)
    assert row.pieces[0] in card(driver) and f"{row.layers_used[0]} of 6 layers" in card(driver)
    assert "surprisal" not in card(driver)  # nothing stands before the first token
    press(driver, "ARROW_RIGHT")
    message = card(driver)
    assert "surprisal" in message and "entropy in its place" in message and "%" in message
    assert len(driver.find_elements("css selector", "#card .mask i")) == 6
    assert len(driver.find_elements("css selector", "#card tr")) == 2
    press(driver, "END")
    assert driver.execute_script("return document.activeElement.dataset.i") == str(len(row.pieces) - 1)
    press(driver, "HOME", "ARROW_LEFT")
    assert driver.execute_script("return document.activeElement.dataset.i") == "0"
    press(driver, "ESCAPE")
    assert card(driver) == ""


def test_the_card_tells_which_layers_ran(opened, tiny_map):
    from depthdial.maps.html import colour_passes

    driver = opened([tiny_map])
    row = tiny_map.rows[1]
    for t in range(len(row.pieces)):
        focus(driver, t, which=1)
        ran = driver.execute_script(
            "return [...document.querySelectorAll('#card .mask i')].map(i => i.matches('.ran'))"
        )
        assert ran == row.ran[colour_passes(row)[t]].tolist()


def test_the_pointer_shows_the_card_and_the_strip_leads_to_tokens(opened, tiny_map):
    from selenium.webdriver import ActionChains

    driver = opened([tiny_map])
    tokens = driver.find_elements("css selector", "article[data-n='2'] .t")
    ActionChains(driver).move_to_element(tokens[1]).perform()
    assert tiny_map.rows[2].pieces[1] in card(driver)
    strip = driver.find_element("css selector", "article[data-n='2'] canvas")
    assert strip.size["height"] == 24 and strip.size["width"] >= 3 * len(tokens)
    ActionChains(driver).move_to_element_with_offset(strip, -strip.size["width"] // 2 + 1, 0).perform()
    assert "at" in tokens[0].get_attribute("class").split()


def test_up_and_down_follow_the_lines(opened, made_up, six_layers):
    driver = opened([DepthMap(six_layers, [made_up([4] * 200, [f" word{i}" for i in range(200)])])])
    focus(driver, 3)
    press(driver, "ARROW_DOWN")
    where = "const r = document.activeElement.getBoundingClientRect(); return [r.left, r.top]"
    left, top = driver.execute_script(where)
    press(driver, "ARROW_UP")
    assert driver.execute_script("return document.activeElement.dataset.i") == "3"
    above = driver.execute_script(where)
    assert above[1] < top and abs(above[0] - left) < 80


def test_two_maps_share_the_cursor(opened, tiny_map):
    less = dataclasses.replace(tiny_map, facts=dataclasses.replace(tiny_map.facts, budget=0.7))
    driver = opened([tiny_map, less])
    focus(driver, 1)
    assert "budget 0.8" in card(driver) and "budget 0.7" in card(driver)
    assert len(driver.find_elements("css selector", ".t.at")) == 2


def test_hostile_text_runs_nothing(opened, made_up, six_layers):
    pieces = ["<script>document.title='owned'</script>", "</script><img src=x onerror=\"document.title='owned'\">"]
    driver = opened([DepthMap(six_layers, [made_up([4, 5], pieces)])], title="calm")
    focus(driver, 1)
    assert driver.title == "calm" and "<img" in card(driver)


def test_dark_light_phone_and_paper(opened, made_up, six_layers):
    driver = opened([DepthMap(six_layers, [made_up([4] * 300)])])
    background = "return getComputedStyle(document.body).backgroundColor"
    before = driver.execute_script(background)
    driver.find_element("id", "theme").click()
    assert driver.execute_script(background) != before
    try:
        phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        assert driver.execute_script("return document.documentElement.scrollWidth") == 390
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    try:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert driver.execute_script(background) == "rgb(255, 255, 255)"  # dark or not
        assert not driver.find_element("id", "theme").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})

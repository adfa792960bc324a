"""The built site: links lead somewhere, nothing comes from a network, search works from files, axe is content."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(__file__).parents[2] / "site"
PAGES = sorted(page for page in SITE.glob("*.html") if page.name != "map.html")


class Page(HTMLParser):
    """Links, names that can be linked, and what a browser loads by itself."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.names: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        self.names |= {said[name] for name in ("id", "name") if name in said}
        if tag == "a" and "href" in said:
            self.links.append(said["href"])
        if tag == "link" and said.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(said["href"])
        if "src" in said:
            self.loaded.append(said["src"])


@pytest.fixture(scope="module")
def pages() -> dict[str, Page]:
    return {path.name: Page(path) for path in SITE.glob("*.html")}


def test_the_site_has_its_pages():
    names = {page.name for page in PAGES}
    assert {"index.html", "quickstart.html", "faq.html", "glossary.html", "api.html", "gallery.html"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path, pages: dict[str, Page]):
    for link in pages[page.name].links:
        parts = urlsplit(link)
        if parts.scheme:
            continue
        path = unquote(parts.path) or page.name
        assert (SITE / path).is_file(), f"{page.name} links {link}"
        if parts.fragment and path in pages:
            assert unquote(parts.fragment) in pages[path].names, f"{page.name} links {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_everything_that_is_loaded_is_here(page: Path, pages: dict[str, Page]):
    for source in pages[page.name].loaded:
        parts = urlsplit(source)
        assert parts.scheme in ("", "data"), f"{page.name} loads {source} from a network"
        assert parts.scheme == "data" or (SITE / unquote(parts.path)).is_file(), f"{page.name} loads {source}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--window-size=1100,800"):
        options.add_argument(word)
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


def test_search_works_from_files(browser: Any):
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"file://{SITE}/search.html?q=offset")
    WebDriverWait(browser, 30).until(lambda it: it.find_elements("css selector", "#search-results li a"))
    links = [link.get_attribute("href") for link in browser.find_elements("css selector", "#search-results li a")]
    assert any("glossary.html" in link for link in links), links


def test_axe_finds_nothing(browser: Any):
    package = importlib.util.find_spec("axe_playwright_python")  # `make docs` installs it, for its script alone
    assert package is not None and package.origin is not None, "axe is not installed: run `make docs`"
    script = Path(package.origin).with_name("axe.min.js")
    wrong = {}
    for page in PAGES:
        browser.get(f"file://{page}")
        browser.execute_script(script.read_text("utf-8"))
        violations = browser.execute_async_script("axe.run().then(result => arguments[0](result.violations))")
        if violations:
            wrong[page.name] = [(v["id"], [node["html"][:120] for node in v["nodes"][:2]]) for v in violations]
    assert not wrong, json.dumps(wrong, indent=1)

"""The site that `make docs` builds: its links, its search, and who can use it.

Notebooks are not executed here, test_notebooks.py does that.
"""

import os
import pathlib
import subprocess
import sys
import urllib.parse
from html.parser import HTMLParser

import pytest
from sphinx.util.inventory import InventoryFile

from tests.browser import open_browser
from tests.test_documentation import DOCUMENTED
from tests.test_documentation import EXAMPLES

pytestmark = pytest.mark.integration

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
    "home": "docs/index.html",
    "tutorial": "notebooks/06_detection_segmentation.html",
    "reference": "docs/reference/models.html",
    "guide": "docs/int8.html",
}
SCREENS = {
    "desk": {"viewport": {"width": 1280, "height": 900}},
    "dark": {
        "viewport": {"width": 1280, "height": 900},
        "colorScheme": "dark",
    },
    "phone": {"viewport": {"width": 390, "height": 844}},
}


class Page(HTMLParser):
    """The links of a page, and the anchors in it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in {"href", "src"}:
                self.links.append((tag, value))
            elif name in {"id", "name"}:
                self.anchors.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"),
            *("-c", "docs", "-b", "html", "-d", folder / "doctrees"),
            *(".", folder / "html"),
        ],
        cwd=ROOT,
        env={**os.environ, "NOTEBOOKS": "off"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


def test_every_public_name_is_there(site):
    with open(site / "objects.inv", "rb") as file:
        inventory = InventoryFile.load(file, "", os.path.join)
    found = {
        name
        for kind, entries in inventory.items()
        if kind.startswith("py:")
        for name in entries
    }
    assert {*DOCUMENTED, *EXAMPLES} - found == set()


def test_no_link_is_broken(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert {site / path for path in PAGES.values()} <= pages.keys()
    broken = []
    for path, page in pages.items():
        for tag, link in page.links:
            url = urllib.parse.urlparse(link)
            if url.scheme or url.netloc:
                # Links may lead away; scripts, styles and pictures are here.
                assert (tag, url.scheme) in {("a", "https"), ("a", "http")}
                continue
            target = path
            if url.path:
                target = path.parent / urllib.parse.unquote(url.path)
                target = pathlib.Path(os.path.normpath(target))
            anchor = urllib.parse.unquote(url.fragment)
            if not target.is_file() or (
                anchor
                and target in pages
                and anchor not in pages[target].anchors
            ):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_pages_load_without_a_network(site, browser):
    for path in PAGES.values():
        browser("open", url=(site / path).as_uri())
        log = browser("log")
        assert log["problems"] == []
        assert [r for r in log["requests"] if not r.startswith("file:")] == []


def test_search_needs_no_server(site, browser):
    browser("open", url=f"{(site / 'search.html').as_uri()}?q=cardinality")
    browser.until("document.querySelectorAll('.search li a').length > 3")
    links = browser.evaluate(
        "[...document.querySelectorAll('.search li a')].map((a) => a.href)"
    )
    assert any("04_cardinality" in link for link in links)


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("page", PAGES)
def test_everyone_can_read_it(page, screen, site, browser):
    browser("open", url=(site / PAGES[page]).as_uri(), **SCREENS[screen])
    assert browser("axe") == []
    overflow = browser.evaluate(
        "document.documentElement.scrollWidth - window.innerWidth"
    )
    assert overflow <= 0

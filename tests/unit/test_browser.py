"""Reports in a real browser: nothing is asked of the network, nothing complains, every chart is drawn, and a phone suffices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from muonlab.lab.show.report import write_report
from tests.unit.browser import Browser, find_chromium
from tests.unit.made_sweeps import around, cell, grid, sweep

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium: apt-get install chromium")

# Of each chart: its size, and how many marks it has (Vega draws each mark as a path, a line or a text under a group of its role).
DRAWN = """[...document.querySelectorAll('.chart')].map((chart) => {
  const svg = chart.querySelector('svg'), box = svg ? svg.getBoundingClientRect() : {width: 0, height: 0};
  return {width: box.width, height: box.height, marks: svg ? svg.querySelectorAll('.role-mark path, .role-mark line').length : 0};
})"""


def plain(folder: Path) -> Path:
    cells = [cell("adamw", lr=0.004), cell("muon", lr=0.02), cell("normuon", lr=0.02, beta2=0.95)]
    return sweep(folder, cells, lambda c, s: around(2.4, 0.02, c, s), target=2.6, margin=0.01)


def many(folder: Path) -> Path:
    """Twelve arms with long names, some runs of which did not end well."""
    cells = [cell(f"arm {i} with a rather long name of several words, and more", lr=0.01 * i, odd=i % 3) for i in range(1, 13)]
    odd = {(cells[3]["name"], 1): "diverged", (cells[4]["name"], 2): None, (cells[5]["name"], 1): "unfinished"}
    return sweep(folder, cells, lambda c, s: odd.get((c, s), around(2.4, 0.02, c, s)), target=2.41)


def crossed(folder: Path) -> Path:
    return sweep(folder, grid("muon", momentum=[0.9, 0.95, 0.98], floor=[0.0, 0.1]), lambda c, s: around(2.4, 0.02, c, s))


def dense(folder: Path) -> Path:
    cells = grid("muon", lr=[0.01 * i for i in range(1, 18)])
    return sweep(folder, cells, lambda c, s: around(2.4, 0.02, c, s), baseline=None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    with Browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("make", [plain, many, crossed, dense])
def test_a_report_is_drawn_alone_and_fits_every_screen(browser, tmp_path, make):
    page, _ = write_report(make(tmp_path / make.__name__))
    for width, dark in ((1200, False), (1200, True), (390, False)):
        browser.messages.clear()
        browser.look(width, dark=dark)
        browser.open(page)
        drawn = browser.value(DRAWN)
        assert len(drawn) == page.read_text().count('class="chart"') > 3
        assert all(chart["width"] > 200 and chart["height"] > 100 and chart["marks"] > 0 for chart in drawn), drawn
        assert all(chart["width"] <= width for chart in drawn), drawn
        assert browser.value("document.documentElement.scrollWidth") <= width
        paper = browser.value("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
        assert browser.errors() == []
        asked = browser.requests()
        assert asked[0].startswith("file:")
        assert [url[:80] for url in asked[1:] if not url.startswith(("data:", "blob:"))] == []


def test_the_page_follows_the_screen(browser, tmp_path):
    """From day to night and from wide to narrow, without being loaded again."""
    page, _ = write_report(plain(tmp_path / "plain"))
    browser.look(1200)
    browser.open(page)
    ink = "document.querySelector('.chart svg .role-axis-label text').getAttribute('fill')"
    assert browser.value(ink) == "#1b1f24"
    browser.look(1200, dark=True)
    browser.wait(f"{ink} === '#e6e8eb'")
    browser.look(390, dark=True)
    browser.wait("[...document.querySelectorAll('.chart svg')].every((svg) => svg.getBoundingClientRect().width < 390)")
    assert browser.value("document.documentElement.scrollWidth") <= 390


def test_a_page_that_is_wrong_is_noticed(browser, tmp_path):
    """The tests above can fail: an outside request and an error are seen."""
    page = tmp_path / "bad.html"
    page.write_text(
        '<html data-drawn="yes"><body><img src="http://127.0.0.1:9/x.png">'
        '<script>console.error("no"); nothing();</script></body></html>'
    )
    browser.messages.clear()
    browser.look(1200)
    browser.open(page)
    assert len(browser.errors()) >= 2
    assert "http://127.0.0.1:9/x.png" in browser.requests()

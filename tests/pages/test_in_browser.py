"""The page in a real Chromium: nothing leaves it, nothing foreign runs in it, everybody can read and use it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, ViewportSize

from latentprint.tasks.compare.page import render_comparison
from latentprint.tasks.pages.html import ReportInputs, render_report, render_summary
from tests.browser import headless_chromium
from tests.compare.test_page import compared, trend_of
from tests.pages.synthetic import HOSTILE, Rejected, Run, answers_of, few_images, membership, reproduction

DESKTOP, PHONE = ViewportSize(width=1280, height=800), ViewportSize(width=390, height=844)
MOST_FOLDED = 5_500
"""Pixels: a third of the height that the page of the demo had."""
READABLE_CONTRAST = 4.5
"""WCAG 2.2, level AA, for text."""


@dataclass
class Opened:
    """A page and what happened while it was open."""

    page: Page
    requests: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless_chromium() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def report(html: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def rich(extracted_html: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with generated images, odds and near duplicates."""
    path = tmp_path_factory.mktemp("rich") / "report.html"
    path.write_text(extracted_html, encoding="utf-8")
    return path


def opened(browser: Browser, path: Path, viewport: ViewportSize = DESKTOP, **context: Any) -> Opened:
    """Open a file in a fresh context that records requests, console messages, errors and dialogs."""
    page = browser.new_context(viewport=viewport, **context).new_page()
    result = Opened(page)
    page.on("request", lambda request: result.requests.append(request.url))
    page.on("console", lambda message: result.console.append(message.text))
    page.on("pageerror", lambda error: result.console.append(str(error)))

    def dismiss(dialog: Any) -> None:
        result.dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", dismiss)
    page.goto(path.as_uri(), wait_until="networkidle")
    return result


def unfold(page: Page) -> None:
    """Open everything that is folded, from the outside inwards, as a reader would."""
    folded = page.locator("details:not([open]) > summary:visible")
    while folded.count():
        folded.first.click()


def external(result: Opened) -> list[str]:
    """Requests that were for neither the page itself nor a picture inside it."""
    return [url for url in result.requests[1:] if not url.startswith("data:image/png")]


def test_nothing_is_requested_and_nothing_complains(browser: Browser, report: Path) -> None:
    result = opened(browser, report)
    unfold(result.page)
    assert result.requests[0] == report.as_uri()
    assert external(result) == []
    assert result.console == []
    widths = result.page.eval_on_selector_all("img", "pictures => pictures.map(picture => picture.naturalWidth)")
    assert widths == [28] * (6 + 32)


def test_hostile_names_do_nothing(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    rejected = Rejected([("train", name, name, name) for name in HOSTILE])
    path.write_text(render_report(Run(images=few_images(HOSTILE), rejected=rejected, model=HOSTILE[1]).inputs()))
    result = opened(browser, path)
    assert (result.dialogs, result.console, external(result)) == ([], [], [])
    assert result.page.get_by_text(f"train/{HOSTILE[0]}", exact=True).count() == 2
    assert result.page.title().endswith(" · latentprint report 5eed5eed5eed")


def test_the_policy_stops_a_script_that_got_past_the_escaping(browser: Browser, html: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    attack = "<script>document.title = 'owned'</script><img src='https://example.invalid/x.png' onerror='alert(1)'>"
    path.write_text(html.replace("</main>", f"{attack}</main>"), encoding="utf-8")
    result = opened(browser, path)
    assert result.page.title() != "owned"
    assert result.dialogs == []
    assert len([message for message in result.console if "Content Security Policy" in message]) >= 2


def test_everything_can_be_read_without_javascript(browser: Browser, report: Path) -> None:
    page = opened(browser, report, java_script_enabled=False).page
    assert page.locator("h1").is_visible()
    assert page.locator(".sentence").first.is_visible()
    table = page.locator("figure details table").first
    assert not table.is_visible()
    page.locator("figure summary").first.click()
    assert table.is_visible()
    assert page.locator(".sortable tbody tr").count() == 256
    assert not page.locator(".controls").is_visible()
    assert page.locator("th button").count() == 0


def ranking_of(page: Page) -> Locator:
    """The rows of the ranking that are shown."""
    return page.locator("#ranking tbody tr:visible")


def test_the_ranking_is_sorted_by_its_headings_with_mouse_and_keyboard(browser: Browser, rich: Path) -> None:
    result = opened(browser, rich)
    page = result.page
    copies = page.locator("#ranking th button", has_text="occurrences")
    copies.click()
    shown = [int(row.split("\t")[4]) for row in ranking_of(page).all_inner_texts()]
    assert shown == sorted(shown, reverse=True)
    assert page.locator("#ranking th[aria-sort=descending]").inner_text().startswith("occurrences")
    copies.press("Enter")
    shown = [int(row.split("\t")[4]) for row in ranking_of(page).all_inner_texts()]
    assert shown == sorted(shown)
    odds = page.locator("#ranking th button", has_text="odds")
    for _ in range(2):  # whichever the direction, images without odds come last
        odds.click()
        assert [row.split("\t")[7] != "–" for row in ranking_of(page).all_inner_texts()] == [True] * 2 + [False] * 254
    assert page.locator("#ranking th[aria-sort]").count() == 1
    assert result.console == []


def test_the_ranking_is_filtered_by_words_and_traits(browser: Browser, rich: Path) -> None:
    page = opened(browser, rich).page
    page.get_by_role("searchbox").fill("TRAIN/0000")
    assert ranking_of(page).count() == 10
    assert page.get_by_role("status").inner_text() == "10 of 256 shown"
    page.get_by_role("searchbox").fill("")
    page.get_by_role("checkbox", name="repeated").check()
    page.get_by_role("checkbox", name="came out").check()
    assert page.get_by_role("status").inner_text() == "104 of 256 shown"
    assert all(int(row.split("\t")[4]) > 1 for row in ranking_of(page).all_inner_texts())
    page.get_by_role("searchbox").fill("nothing of that name")
    assert ranking_of(page).count() == 0


def test_a_number_leads_to_its_query(browser: Browser, rich: Path) -> None:
    page = opened(browser, rich).page
    page.locator("#ranking .cite", has_text="ranking").click()
    assert page.locator(":target dt").inner_text() == "ranking"  # the fold around it opened
    page.locator(":target summary").click()
    assert "ORDER BY rank" in page.locator(":target pre").inner_text()
    page.locator("nav a", has_text="Statistics").click()
    assert page.locator("#statistics table").first.is_visible()


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Browser, rich: Path, viewport: ViewportSize, scheme: str) -> None:
    page = opened(browser, rich, viewport, color_scheme=scheme).page
    unfold(page)
    page.locator("#ranking th button").first.click()
    found = Axe().run(page).response["violations"]  # evaluated by the browser's debugger: the page's policy stays
    assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []


def test_the_page_of_two_runs_is_as_quiet_and_as_readable(
    browser: Browser, inputs: ReportInputs, tmp_path: Path
) -> None:
    flags, ranking = inputs.tables["flagged"], inputs.tables["ranking"]
    trend = trend_of(ranking, ranking, (flags, flags))
    path = tmp_path / "compare.html"
    path.write_text(render_comparison(compared(HOSTILE[0], inputs), compared("B", inputs), trend), encoding="utf-8")
    result = opened(browser, path, PHONE)
    unfold(result.page)
    assert (result.dialogs, result.console, external(result)) == ([], [], [])
    assert result.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert result.page.get_by_role("status").inner_text() == "256 of 256 shown"
    found = Axe().run(result.page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


def test_the_first_screen_holds_pictures_and_both_answers(browser: Browser, rich: Path) -> None:
    page = opened(browser, rich).page
    for selector in (".proof .pair:nth-child(6)", ".answer:nth-child(1) .value", ".answer:nth-child(2) .value"):
        box = page.locator(selector).bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < DESKTOP["height"]


def test_before_unfolding_the_page_is_a_third_of_what_it_was(browser: Browser, rich: Path) -> None:
    page = opened(browser, rich).page
    folded = page.evaluate("document.documentElement.scrollHeight")
    assert folded <= MOST_FOLDED
    unfold(page)
    assert page.evaluate("document.documentElement.scrollHeight") > 2 * folded


LONG = "A sentence of this page has twenty words at most, and so this one has just as many as that."


def test_the_summary_prints_on_one_sheet_of_a4(browser: Browser, extracted: ReportInputs, tmp_path: Path) -> None:
    """With the longest answers there can be: three sentences each, every note, three steps, three limits."""
    of_membership = membership("inconclusive", sentence=f"{LONG} {LONG}", reason=LONG, is_void=True)
    of_reproduction = reproduction("inconclusive", sentence=f"{LONG} {LONG}", reason=f"{LONG} {LONG}")
    conformal = {**extracted.evidence["conformal"], "status": "void", "reason": LONG}
    evidence = {
        **extracted.evidence,
        **answers_of(of_membership, of_reproduction),
        "conformal": conformal,
        "limits": [f"{LONG} {LONG}"] * 9,
    }
    path = tmp_path / "summary.html"
    path.write_text(render_summary(replace(extracted, evidence=evidence)), encoding="utf-8")
    result = opened(browser, path, color_scheme="dark")
    printed = result.page.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 1
    assert re.search(rb"/MediaBox\s*\[0 0 59[45]\.\d* 84[12]\.\d*\]", printed)
    assert (result.console, external(result)) == ([], [])
    found = Axe().run(result.page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_only_tables_scroll_sideways(browser: Browser, rich: Path, viewport: ViewportSize) -> None:
    page = opened(browser, rich, viewport).page
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    text_beyond_the_edge = page.evaluate(
        "[...document.querySelectorAll('p, h2, h3, figcaption, dd, .plot')]"
        ".filter(e => !e.closest('.scroll, .formula') && e.getBoundingClientRect().right > innerWidth).length"
    )
    assert text_beyond_the_edge == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_in_plots_and_page_stands_out_in_both_schemes(browser: Browser, report: Path, scheme: str) -> None:
    page = opened(browser, report, color_scheme=scheme).page
    background = page.evaluate("getComputedStyle(document.querySelector('figure')).backgroundColor")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(background) > 0.5) == (luminance(paper) > 0.5) == (scheme == "light")
    for selector, property_, ground in (
        (".plot text", "fill", background),
        ("figcaption", "color", background),
        (".meaning", "color", paper),
        ("nav a", "color", paper),
        (".note", "color", paper),
    ):
        ink = page.evaluate(f"getComputedStyle(document.querySelector({selector!r})).{property_}")
        assert contrast(ink, ground) >= READABLE_CONTRAST, selector


def test_on_paper_nothing_is_dark_cut_folded_or_split(browser: Browser, rich: Path) -> None:
    paper = ViewportSize(width=718, height=1047)  # A4 less Chromium's margins
    page = opened(browser, rich, paper, color_scheme="dark").page
    page.emulate_media(media="print")
    style = "getComputedStyle(document.querySelector({!r})).{}"
    assert page.evaluate(style.format("body", "backgroundColor")) == "rgb(255, 255, 255)"
    assert page.evaluate(style.format("#statistics .sheet", "breakInside")) == "avoid"
    assert page.evaluate(style.format("#ranking thead", "breakInside")) == "avoid"  # so that each sheet repeats it
    assert page.locator("#statistics table").first.is_visible()
    tables = "[...document.querySelectorAll('.sections > section > :not(figure) table')]"
    assert page.evaluate(f"Math.max(...{tables}.map(table => table.getBoundingClientRect().right))") <= paper["width"]
    names = f"{tables}.flatMap(table => [...table.querySelectorAll('tbody th:not(.number)')])"
    assert page.evaluate(f"Math.min(...{names}.map(name => name.clientWidth).filter(width => width))") > 40


def test_keyboard_reaches_the_report_its_sections_and_its_tables(browser: Browser, report: Path) -> None:
    page = opened(browser, report).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "report"
    focused = []
    for _ in range(80):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.tagName + '.' + document.activeElement.className"))
    assert {"A.", "SUMMARY.", "DIV.scroll"} <= set(focused)


def luminance(color: str) -> float:
    """Relative luminance of ``rgb(r, g, b)``, by WCAG."""
    channels = [int(channel) / 255 for channel in color.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(ink: str, ground: str) -> float:
    low, high = sorted((luminance(ink), luminance(ground)))
    return (high + 0.05) / (low + 0.05)

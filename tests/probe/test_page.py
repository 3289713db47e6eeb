"""The page of a probe in a real Chromium: on a desk, on a phone, in the dark, and of a model with a hostile name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from latentprint.tasks.probe.page import MOST_SHOWN, render_probe, shown
from latentprint.tasks.store.schemas import SUSPECTS
from tests.browser import headless_chromium
from tests.pages.synthetic import HOSTILE
from tests.pages.test_in_browser import DESKTOP, PHONE, external, opened

N = 120
N_REPEATS = 6


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless_chromium() as chromium:
        yield chromium


def suspects(has_control: bool) -> pa.Table:
    """Image i has rank i + 1; the last ``N_REPEATS`` are repeats."""
    rows: list[dict[str, Any]] = [
        {
            "rank": i + 1,
            "generated": f"{i:09d}",
            "shard": "samples-000000.tar",
            "content_hash": f"{i:032x}",
            "log_growth_eps": 1.0 - i / N,
            "log_growth": 0.5,
            "eps_norm": 3.0,
            "timestep": 50,
            "nearest_generated": f"{(i + 1) % N:09d}",
            "nearest_distance": 1.0,
            "nearest_ratio": 0.25,
            "control_ratio": 0.9 - 0.007 * i if has_control else None,
            "is_repeat": i >= N - N_REPEATS if has_control else None,
        }
        for i in range(N)
    ]
    return pa.Table.from_pylist(rows, schema=SUSPECTS)


def page_of(has_control: bool, name: str = "my-ddpm") -> str:
    level = "repeats_itself" if has_control else "ranked_only"
    summary = {
        "probe_id": "5eed" * 8,
        "verdict": {"level": level, "sentence": f"A sentence of {name}.", "reason": "A reason."},
        "n_samples": N,
        "n_distinct_samples": N,
        "timestep": 50,
        "repeats": {"model": {"k": N_REPEATS, "n": 60}} if has_control else None,
        "checkpoints": {"model": {"name": name, "checkpoint_sha256": "0" * 64}},
        "parameters": {"level": 0.05, "samples": N},
        "software": {"torch": "2"},
    }
    table = suspects(has_control)
    draws = np.random.default_rng(0)
    pixels = {key: draws.integers(0, 256, (3, 16, 16), dtype=np.uint8) for key in sorted(shown(table))}
    return render_probe(summary, table, pixels)


def test_only_the_pictures_that_the_page_has_are_wanted() -> None:
    assert shown(suspects(False)) == {f"{i:09d}" for i in range(MOST_SHOWN + 1)}
    of_repeats = {f"{i % N:09d}" for i in range(N - N_REPEATS, N + 1)}
    assert shown(suspects(True)) == {f"{i:09d}" for i in range(MOST_SHOWN + 1)} | of_repeats


@pytest.mark.parametrize("has_control", [True, False])
def test_suspects_come_first_and_repeats_before_them(browser: Browser, tmp_path: Path, has_control: bool) -> None:
    path = tmp_path / "probe.html"
    path.write_text(page_of(has_control), encoding="utf-8")
    result = opened(browser, path)
    ranks = result.page.locator(".gallery .rank b").all_inner_texts()
    repeats = list(range(N, N - N_REPEATS, -1)) if has_control else []
    assert list(map(int, ranks)) == [*repeats, *range(1, MOST_SHOWN + 1)]
    assert result.page.get_by_text("repeat", exact=True).count() == N_REPEATS * has_control
    assert result.page.locator("img").count() == 2 * len(ranks)
    assert result.page.locator("#ranking tbody tr").count() == 100
    assert (result.console, external(result)) == ([], [])


@pytest.mark.parametrize(("viewport", "scheme"), [(DESKTOP, "light"), (PHONE, "light"), (PHONE, "dark")])
def test_it_fits_and_can_be_read(browser: Browser, tmp_path: Path, viewport: Any, scheme: str) -> None:
    path = tmp_path / "probe.html"
    path.write_text(page_of(True), encoding="utf-8")
    page = opened(browser, path, viewport, color_scheme=scheme).page
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert Axe().run(page).response["violations"] == []


def test_a_hostile_name_is_text(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "probe.html"
    path.write_text(page_of(True, HOSTILE[0]), encoding="utf-8")
    result = opened(browser, path)
    assert (result.dialogs, result.console, external(result)) == ([], [], [])
    assert HOSTILE[0] in result.page.locator("h1").inner_text()

"""Validity and the reasons of high scores as the page prints them: the evidence's numbers, or why there are none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from latentprint.tasks.evidence.validity import ScoredAgain, assess_validity
from latentprint.tasks.evidence.why_high import why_high
from latentprint.tasks.pages.formats import number
from latentprint.tasks.pages.html import ReportInputs, render_report
from latentprint.tasks.pages.trust import trust_tables
from tests.pages.test_html import Page

N = 200


@pytest.fixture(scope="module")
def evidence() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    is_train, distance = np.arange(N) < N // 2, generator.normal(size=N)
    growth = generator.normal(size=N) - 2.0 * distance
    again = ScoredAgain(growth, growth + generator.normal(0, 0.2, N), is_train, np.arange(N), {"delta": (0.05, 0.025)})
    return {
        "validity": assess_validity(
            growth, np.full(N, 0.3), {"other_delta": again}, np.array([0.01, 0.03]), was_tried=True
        ),
        "why_high": why_high(
            growth,
            {"nearest_distance": distance},
            is_train=is_train,
            is_control=~is_train,
            copies=np.ones(N, np.int64),
            adjusted=growth + 2.0 * distance,
            hits=np.where(is_train, generator.poisson(1.0, N), np.nan),
        ),
    }


def test_rows_hold_the_numbers_of_the_evidence(evidence: dict[str, Any]) -> None:
    validity, why = trust_tables(evidence)
    rows = {row[0]: row for row in validity.rows}
    one = evidence["validity"]["scored_again"]["other_delta"]
    found = rows["another perturbation length"]
    assert found[1] == "delta 0.05 → 0.025"
    assert found[2].startswith(f"{one['rank_stability_train']['value']:.3f} (")
    assert found[4].startswith(f"{number(one['error']['value'])} (")
    assert found[7] == "100 / 100"
    assert "not computed: it does not apply" in rows["other directions from another seed"][1]
    assert "Standard error of the scores, median: 0.3000 nats" in validity.note
    assert "median 0.02000, 95th percentile 0.02900" in validity.note
    ((name, top, rest, area, coefficient),) = why.rows
    held = evidence["why_high"]["top_controls"]["properties"]["nearest_distance"]
    assert (name, top, rest) == ("nearest distance", number(held["median_top"]), number(held["median_rest"]))
    assert area.startswith(f"{held['auc']['value']:.3f}")
    assert coefficient.startswith("−0.")
    assert "nearest distance lower" in why.note
    assert "as far as these images can tell" in why.note
    assert ", difference " in why.note
    assert ", ," not in why.note


def test_the_page_prints_them_and_what_was_corrected_for(evidence: dict[str, Any], inputs: ReportInputs) -> None:
    text = Page(render_report(replace(inputs, evidence={**inputs.evidence, **evidence}))).text
    assert "Numerical validity: images scored again" in text
    assert "Why held-out images score high" in text
    assert "Every other interval and p-value stands on its own" in text


def test_without_them_there_is_no_section(inputs: ReportInputs) -> None:
    assert trust_tables({}) == []
    text = Page(render_report(inputs)).text
    assert "Numerical validity" not in text


def test_too_few_controls_say_so() -> None:
    few = why_high(
        np.arange(20.0),
        {"contrast": np.arange(20.0)},
        is_train=np.arange(20) < 10,
        is_control=np.arange(20) >= 10,
        copies=np.ones(20, np.int64),
    )
    (table,) = trust_tables({"why_high": few})
    assert table.rows == ()
    assert "10 controls" in table.note

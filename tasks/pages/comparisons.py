"""Every statistic of a comparison on one line each: value, interval, p, n, how it was made and what it assumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentprint.tasks.pages.formats import ABSENT, is_finite, number, p_value, percent
from latentprint.tasks.pages.tables import Column, TableView
from latentprint.tasks.pages.titles import title

COMPARISON_TITLES = {
    "train_vs_holdout": "Trained against held out",
    "repeated_vs_single": "Repeated against single",
}
SCORE_TITLES = {
    "log_growth": "Log growth: higher is more easily reproduced",
    "eps_norm": "‖ε‖₂: lower is more easily reproduced",
}
SOURCE = "comparisons"
SCORE_UNITS = {"log_growth": " nats"}
EFFECTS = {"auc": "AUC", "cliffs_delta": "Cliff's δ", "median_difference": "Difference of medians"}
TESTS = {"welch_t": "Welch's t", "mann_whitney_u": "Mann–Whitney U", "permutation": "Permutation, difference of means"}
COLUMNS = (
    Column("statistic"),
    Column("value", is_number=True),
    Column("95% interval", is_number=True),
    Column("p", is_number=True),
    Column("n", is_number=True),
    Column("method, assumptions"),
)


def comparison_title(name: str) -> str:
    return COMPARISON_TITLES.get(name, title(name))


def comparison_table(score: str, comparison: Mapping[str, Any]) -> TableView:
    """A table of a comparison's statistics; of one that was not computable, the table without rows and the reason.

    Args:
        comparison: ``latentprint.tasks.evidence.comparison.Comparison.as_dict()``.
    """
    caption = SCORE_TITLES.get(score, title(score))
    if comparison.get("status") != "ok":
        return TableView(
            caption, COLUMNS, (), f"Not computable: {comparison.get('reason') or 'no reason given'}.", SOURCE
        )
    n = f"{number(comparison['n_positive'])} / {number(comparison['n_negative'])}"
    unit = SCORE_UNITS.get(score, "")
    effects = [_effect(key, comparison[key], n, unit) for key in EFFECTS if comparison.get(key)]
    rates = [_rate(rate) for rate in comparison.get("tpr", ())]
    tests = [_test(key, comparison[key], n) for key in TESTS if comparison.get(key)]
    excluded = comparison.get("n_excluded", 0)
    note = f"{number(excluded)} images without a finite score are not in it." if excluded else ""
    return TableView(caption, COLUMNS, tuple(effects + rates + tests), note, SOURCE)


def _effect(key: str, effect: Mapping[str, Any], n: str, unit: str) -> tuple[str, ...]:
    is_difference = key == "median_difference"
    decimals, unit = (None, unit) if is_difference else (3, "")
    interval = _interval(effect.get("interval_95"), decimals)
    value = f"{number(effect['value'], decimals)}{unit}"
    return EFFECTS[key], value, interval, ABSENT, n, str(effect.get("method", ""))


def _rate(rate: Mapping[str, Any]) -> tuple[str, ...]:
    label = f"True positives at {100 * rate['fpr']:g}% false positives"
    n = f"{number(rate['n_positive'])} / {number(rate['n_negative'])}"
    if not is_finite(rate.get("value")):
        return label, ABSENT, ABSENT, ABSENT, n, str(rate.get("reason") or "not estimable")
    low, high = rate["interval_95"]
    method = f"{rate.get('method', '')}; {percent(rate.get('achieved_fpr'), 2)} false positives reached"
    return label, percent(rate["value"]), f"{percent(low)} to {percent(high)}", ABSENT, n, method


def _test(key: str, test: Mapping[str, Any], n: str) -> tuple[str, ...]:
    degrees = f"df {number(test['df'], 1)}; " if is_finite(test.get("df")) else ""
    interval = "interval of the difference of means; " if test.get("interval_95") else ""
    method = f"{test.get('alternative', '')}; {degrees}{interval}assumes: {test['assumptions']}"
    return (
        TESTS[key],
        number(test["statistic"]),
        _interval(test.get("interval_95")),
        p_value(test["p_value"]),
        n,
        method,
    )


def _interval(bounds: Any, decimals: int | None = None) -> str:
    return f"{number(bounds[0], decimals)} to {number(bounds[1], decimals)}" if bounds else ABSENT

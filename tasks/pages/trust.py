"""How far the scores can be trusted, and why held-out images score high: tables of two sections of the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentprint.tasks.pages.formats import ABSENT, is_finite, number, percent, setting
from latentprint.tasks.pages.tables import Column, TableView
from latentprint.tasks.pages.titles import title

CONCLUSIONS = {
    "better": "predicts {what} better than the raw one",
    "worse": "predicts {what} worse than the raw one",
    "not distinguishable": "predicts {what} neither better nor worse than the raw one, as far as these images can tell",
}
OUTCOMES = {"hits": "what came out", "membership": "which images were trained on"}


def trust_tables(evidence: Mapping[str, Any]) -> list[TableView]:
    """Numerical validity, and why controls score high: what of them the evidence has."""
    tables = []
    if evidence.get("validity"):
        tables.append(_validity(evidence["validity"]))
    if evidence.get("why_high"):
        tables.append(_why_high(evidence["why_high"]))
    return tables


def _validity(found: Mapping[str, Any]) -> TableView:
    """A row a changed setting; what was not computed says why."""
    numbers = ["rank stability, trained", "rank stability, held out", "error", "share of the spread", "AUC"]
    units = {"error": "nats"}
    columns = (
        Column("scored again with"),
        Column("changed"),
        *(Column(name, units.get(name, ""), is_number=True) for name in numbers),
        Column("n", is_number=True),
    )
    rows = tuple(_setting_row(one) for one in found["scored_again"].values())
    return TableView("Numerical validity: images scored again", columns, rows, _validity_note(found))


def _setting_row(one: Mapping[str, Any]) -> tuple[str, ...]:
    if one["status"] != "ok":
        return one["what"], f"{one['status']}: {one['reason']}", *[ABSENT] * 6
    changed = "; ".join(
        f"{name} {setting(was)} → {ABSENT if now is None else setting(now)}"
        for name, (was, now) in one["changed"].items()
    )
    area = one.get("auc")
    return (
        one["what"],
        changed,
        _estimate(one["rank_stability_train"]),
        _estimate(one["rank_stability_holdout"]),
        _estimate(one["error"], None),
        percent(one["share_of_spread"]),
        f"{number(area['first'], 3)} → {number(area['second'], 3)}" if area else ABSENT,
        f"{number(one['n_train'])} / {number(one['n_holdout'])}",
    )


def _validity_note(found: Mapping[str, Any]) -> str:
    own, way_back = found["standard_error"], found["reversibility"]
    error = (
        f"Standard error of the scores, median: {number(own['median'])} nats, {percent(own['share_of_variance'])} of "
        f"their variance (n = {number(own['n'])})."
        if own["status"] == "ok"
        else f"Standard error of each score: not computed, {own['reason']}."
    )
    reversed_ = (
        f"Reversibility error, image to latent and back: median {number(way_back['median'])}, 95th percentile "
        f"{number(way_back['percentile_95'])}, {way_back['unit']} (n = {number(way_back['n'])})."
        if way_back["status"] == "ok"
        else f"Reversibility error: not computed, {way_back['reason']}."
    )
    return f"{error} {reversed_} Rank stability is Spearman's correlation; 95% intervals."


def _why_high(found: Mapping[str, Any]) -> TableView:
    """A row a property of the controls."""
    top, model = found["top_controls"], found["regression_controls"]
    coefficients, properties = model.get("coefficients") or {}, top.get("properties") or {}
    numbers = [
        "median, highest tenth",
        "median, the others",
        "higher in the highest tenth",
        "coefficient, all together",
    ]
    columns = (Column("property"), *(Column(name, is_number=True) for name in numbers))
    rows = tuple(
        (
            title(name),
            number((properties.get(name) or {}).get("median_top")),
            number((properties.get(name) or {}).get("median_rest")),
            _estimate((properties.get(name) or {}).get("auc")),
            _estimate(coefficients.get(name)),
        )
        for name in dict.fromkeys([*properties, *coefficients])
    )
    return TableView("Why held-out images score high", columns, rows, _why_note(found))


def _why_note(found: Mapping[str, Any]) -> str:
    top = found["top_controls"]
    if top["status"] == "ok":
        shared = [f"{title(name)} {way}" for name, way in top["shared"].items()]
        said = (
            f"The {number(top['n_top'])} controls with the highest scores against the {number(top['n_rest'])} others: "
        )
        said += f"{', '.join(shared) or 'nothing that they share stands out'}. "
    else:
        said = f"The highest controls against the others: not computed, {top['reason']}. "
    said += "Third column: share of pairs, where 0.5 means no difference. "
    said += "Last column: standard deviations of the score. Intervals are of 95%."
    for outcome, compared in found["adjusted_against_raw"].items():
        if compared["status"] == "ok":
            area = compared["auc"]
            verdict = CONCLUSIONS[compared["conclusion"]].format(what=OUTCOMES[outcome])
            low, high = area["interval_95"]
            said += (
                f" The adjusted score {verdict}: AUC {number(area['second'], 3)} against {number(area['first'], 3)}, "
            )
            said += f"difference {number(low, 3)} to {number(high, 3)}, paired (n = {number(compared['n'])})."
    return said


def _estimate(found: Mapping[str, Any] | None, decimals: int | None = 3) -> str:
    """``0.512 (0.470 to 0.554)``."""
    if not found or not is_finite(found.get("value")):
        return ABSENT
    bounds = found.get("interval_95")
    interval = f" ({number(bounds[0], decimals)} to {number(bounds[1], decimals)})" if bounds else ""
    return f"{number(found['value'], decimals)}{interval}"

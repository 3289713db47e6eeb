"""The evidence beside the comparisons as tables: confounders, scores judged by what came out, scores side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latentprint.tasks.pages.formats import ABSENT, is_finite, number, percent
from latentprint.tasks.pages.tables import Column, TableView
from latentprint.tasks.pages.titles import title


def confounder_table(found: Mapping[str, Any]) -> TableView:
    """A row a confounder: rank correlations with the growth, and its coefficient in the linear model.

    Args:
        found: ``confounders`` of ``evidence.json``.
    """
    controls, trained = found["correlations_controls"], found["correlations_trained"]
    coefficients = found["model"].get("coefficients") or {}
    columns = ["Spearman, held out", "Spearman, trained", "coefficient, held out"]
    rows = tuple(
        (
            title(name),
            estimate(controls.get(name)),
            estimate(trained.get(name)),
            estimate(coefficients.get(name)),
        )
        for name in trained
    )
    note = "Rank correlation with log growth; coefficients in standard deviations, all together. 95% intervals."
    return TableView(
        "Confounders of the score",
        (Column("property"), *(Column(c, is_number=True) for c in columns)),
        rows,
        note,
        "confounders",
    )


def judgement_table(evidence: Mapping[str, Any]) -> TableView | None:
    """A row a score: how well it predicts the counted reproductions; None where nothing was counted."""
    judged = (evidence.get("reproductions") or {}).get("judgement")
    if not judged:
        return None
    columns = ["AUC, came out", "AUC, came out often", "Spearman with hits", "n"]
    rows = tuple(
        (
            title(name),
            estimate(one["at_least_once"].get("auc")),
            estimate(one["often"].get("auc")),
            estimate(one["spearman_with_hits"]),
            number(one["n"]),
        )
        for name, one in judged.items()
    )
    return TableView(
        "Scores judged by what came out",
        (Column("score"), *(Column(c, is_number=True) for c in columns)),
        rows,
        source="judgement",
    )


def methods_table(evidence: Mapping[str, Any]) -> TableView | None:
    """A row a score: what it costs, how it tells trained from held out, what it says of copies and of hits.

    None where there are no ``methods``; without counted reproductions there is no column for them.
    """
    known = evidence.get("methods")
    if not known:
        return None
    compared = (evidence.get("comparisons") or {}).get("train_vs_holdout") or {}
    judged = (evidence.get("reproductions") or {}).get("judgement") or {}
    columns = [
        "evaluations, alone",
        "AUC",
        "TPR at 1% FPR",
        "Spearman with occurrences",
        *(["Spearman with hits"] if judged else []),
    ]
    rows = tuple(
        (
            title(name),
            "higher" if method["higher_is_easier"] else "lower",
            number(method["evaluations"]),
            estimate(compared.get(name, {}).get("auc")),
            _rate(compared.get(name, {}).get("tpr")),
            estimate(method["spearman_with_copies"]),
            *([estimate(judged.get(name, {}).get("spearman_with_hits"))] if judged else []),
            f"{number(compared.get(name, {}).get('n_positive'))} / {number(compared.get(name, {}).get('n_negative'))}",
        )
        for name, method in known.items()
    )
    return TableView(
        "The scores side by side",
        (
            Column("score"),
            Column("easier if"),
            *(Column(c, is_number=True) for c in columns),
            Column("n", is_number=True),
        ),
        rows,
        _methods_note(known, judged),
        "methods",
    )


def _methods_note(known: Mapping[str, Any], judged: Mapping[str, Any]) -> str:
    """What the numbers are over, and how the scores came about."""
    n_copies = max(method["spearman_with_copies"]["n"] for method in known.values())
    n_hits = max((one["spearman_with_hits"]["n"] for one in judged.values()), default=None)
    over = f"{number(n_copies)} training images" + (f", with hits over {number(n_hits)}" if judged else "")
    fitted = [name for name in ("fused", "fused_norms", "dime") if name in known]
    how = f" {', '.join(fitted)}: each image is scored by a fit that it had no part in." if fitted else ""
    return (
        "AUC and true-positive rate (TPR, at a false-positive rate of 1%): trained against held out, n. Each score is "
        f"read in its own direction: above 0 it rates easier what occurs, or came out, more often. Correlations with "
        f"occurrences over {over}. Evaluations: of the network an image, if the score were computed alone and its "
        "timesteps were known; in an audit log growth is computed in any case, and a second timestep adds 1. "
        f"95% intervals.{how}"
    )


def _rate(rates: Sequence[Mapping[str, Any]] | None) -> str:
    """``31.3% (23.4% to 40.0%)``, at 1% false positives; where that is not estimable, a dash."""
    found = next((rate for rate in rates or () if rate["fpr"] == 0.01), {})
    if not is_finite(found.get("value")):
        return ABSENT
    low, high = found["interval_95"]
    return f"{percent(found['value'])} ({percent(low)} to {percent(high)})"


def estimate(found: Mapping[str, Any] | None) -> str:
    """``0.512 (0.470 to 0.554)``."""
    if not found or not is_finite(found.get("value")):
        return ABSENT
    bounds = found.get("interval_95")
    interval = f" ({number(bounds[0], 3)} to {number(bounds[1], 3)})" if bounds else ""
    return f"{number(found['value'], 3)}{interval}"

"""The page of the parameter study says which setting is best, and how far one axis and one step come."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from latentprint.tasks.sweep.page import render_sweep


def setting(n_axes: int, n_steps: int, auc: float | None, timestep: int = 20) -> dict[str, Any]:
    size = {"estimator": "edge", "n_axes": n_axes, "n_steps": n_steps, "delta": 0.05}
    return {**size, "timestep": timestep, "n_evaluations": n_steps * (n_axes + 1), "auc": auc, "auc_repeated": None}


def page(*rows: dict[str, Any], holdout: bool = False) -> str:
    sources = {"train": "a"} | ({"holdout": "b"} if holdout else {})
    return render_sweep({"run_id": "r", "data": {"sources": sources}}, pa.Table.from_pylist(list(rows)))


def described(n_axes: int, n_steps: int, timestep: int = 20) -> str:
    evaluations = n_steps * (n_axes + 1)
    return f"with edge, K = {n_axes}, N = {n_steps} from timestep {timestep} ({evaluations} evaluations)."


@pytest.mark.parametrize("cheap", [0.6, 0.8])
def test_one_axis_and_one_step_are_told_by_their_own_best(cheap: float) -> None:
    """The last but one setting is cheap too, and worse; the last is not cheap, and worse."""
    text = page(setting(4, 2, 0.7), setting(1, 1, cheap, 50), setting(1, 1, 0.5), setting(1, 2, 0.55))
    best = f"0.700, {described(4, 2)}" if cheap < 0.7 else f"0.800, {described(1, 1, 50)}"
    assert f"The highest AUC, trained against held out, is {best}" in text
    assert f"One axis and one step reach {cheap:.3f}, {described(1, 1, 50)}" in text


def test_of_equals_the_cheapest_is_best() -> None:
    assert f"is 0.700, {described(2, 2)}" in page(setting(4, 4, 0.7), setting(2, 2, 0.7), setting(2, 3, 0.6))


def test_what_was_not_tried_or_cannot_be_judged_is_not_told() -> None:
    without = page(setting(1, 2, 0.7), setting(2, 1, 0.6), setting(1, 1, None))
    assert f"is 0.700, {described(1, 2)}" in without
    assert "One axis and one step" not in without
    assert "No setting can be judged: the run has no held-out images." in page(setting(1, 1, None))
    says = "No setting can be judged: no setting has enough finite scores of both groups."
    assert says in page(setting(1, 1, None), holdout=True)

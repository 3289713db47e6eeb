"""Two runs side by side: what moved, what is flagged anew, and when their numbers must not be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from latentprint.tasks.compare.page import (
    ComparedRun,
    changed_flags,
    different_inputs,
    incomparable,
    paired,
    render_comparison,
)
from latentprint.tasks.pages.html import ReportInputs
from latentprint.tasks.pages.thumbnails import data_uri
from tests.pages.synthetic import HOSTILE, Run, blob
from tests.pages.test_html import Page

IDENTITY = {"held-out images": "d"}


def trend_of(
    before: pa.Table, after: pa.Table, flagged: tuple[pa.Table, pa.Table], comparable: bool = True
) -> pa.Table:
    """The relation ``rank_trend`` of two rankings, by plain loops."""
    was, now = ({row["content_hash"]: row["is_flagged"] for row in table.to_pylist()} for table in flagged)
    earlier = {row["content_hash"]: row for row in before.to_pylist()}
    rows = [
        {
            **{name: row[name] for name in ("content_hash", "sample_id", "copies", "rank", "percentile", "log_growth")},
            **{f"previous_{name}": old[name] for name in ("copies", "rank", "percentile", "log_growth")},
            "percentile_change": row["percentile"] - old["percentile"],
            "growth_change": row["log_growth"] - old["log_growth"],
            "was_flagged": was.get(row["content_hash"]),
            "is_flagged": now.get(row["content_hash"]),
        }
        for row in after.to_pylist()
        if (old := earlier.get(row["content_hash"]))
    ]
    return pa.Table.from_pylist(rows)


def compared(name: str, inputs: ReportInputs, **changes: Any) -> ComparedRun:
    run = ComparedRun(
        name,
        inputs.record,
        inputs.evidence,
        IDENTITY,
        inputs.tables["ranking"],
        inputs.tables["flagged"],
        inputs.pictures,
    )
    return replace(run, **changes)


@pytest.fixture(scope="module")
def later(inputs: ReportInputs) -> ReportInputs:
    """The same images after the ten highest fell to the bottom, and two of the lowest rose to the top."""
    run = Run(generated=inputs.evidence["generated"])
    order = np.argsort(-np.where(np.array(run.images.splits) == "train", run.images.log_growth, -np.inf))
    growth = run.images.log_growth.copy()
    growth[order[:10]], growth[order[250:252]] = -9.0 - np.arange(10), 20.0 + np.arange(2)
    return replace(run, images=replace(run.images, log_growth=growth)).inputs()


@pytest.fixture(scope="module")
def trend(inputs: ReportInputs, later: ReportInputs) -> pa.Table:
    flags = inputs.tables["flagged"], later.tables["flagged"]
    return trend_of(inputs.tables["ranking"], later.tables["ranking"], flags)


def test_headline_numbers_stand_side_by_side(inputs: ReportInputs, later: ReportInputs, trend: pa.Table) -> None:
    page = Page(render_comparison(compared("first", inputs), compared("second", later), trend))
    a, b = (run.evidence["comparisons"]["train_vs_holdout"]["log_growth"]["auc"]["value"] for run in (inputs, later))
    assert {f"{a:.3f}", f"{b:.3f}"} <= set(page.texts)
    (lows, highs), d = _bounds(inputs, later), b - a
    low, high = d - math.hypot(b - lows[1], highs[0] - a), d + math.hypot(highs[1] - b, a - lows[0])
    assert low < 0.0 < high
    shown = [f"{x:.3f}".replace("-", "−") for x in (d, low, high)]
    change = "{}, 95% interval of the difference {} to {}: no change is shown.".format(*shown)
    assert change in page.text
    assert "Compare with care" not in page.text
    assert page.count("figure") == 1


def _bounds(*runs: ReportInputs) -> tuple[list[float], list[float]]:
    """Lower bounds, upper bounds of the runs' AUCs."""
    areas = (run.evidence["comparisons"]["train_vs_holdout"]["log_growth"]["auc"]["interval_95"] for run in runs)
    lows, highs = zip(*areas, strict=True)
    return list(lows), list(highs)


def test_flags_that_came_and_went_are_those_of_a_plain_comparison(
    inputs: ReportInputs, later: ReportInputs, trend: pa.Table
) -> None:
    was, now = (
        {row["content_hash"] for row in run.tables["flagged"].to_pylist() if row["is_flagged"]}
        for run in (inputs, later)
    )
    found = changed_flags(trend)
    assert {row["content_hash"] for row in found.new} == now - was
    assert {row["content_hash"] for row in found.gone} == was - now
    assert len(found.gone) >= 10
    assert len(found.new) >= 2
    assert [row["log_growth"] for row in found.new[:2]] == [21.0, 20.0]


def left_out(run: ComparedRun, names: Sequence[str]) -> ComparedRun:
    kept = [table.filter(~pc.field("sample_id").isin(names)) for table in (run.ranking, run.flags)]
    return replace(run, ranking=kept[0], flags=kept[1])


def flag_of(run: ComparedRun, name: str, is_flagged: bool | None) -> ComparedRun:
    """The run with another flag for one image; None: it was not tested."""
    rows = [row for row in run.flags.to_pylist() if row["sample_id"] != name or is_flagged is not None]
    changed = [row | ({"is_flagged": is_flagged} if row["sample_id"] == name else {}) for row in rows]
    return replace(run, flags=pa.Table.from_pylist(changed, schema=run.flags.schema))


def test_images_that_were_left_out_of_a_run_or_of_its_test_change_no_flag(inputs: ReportInputs) -> None:
    names, lowest = inputs.tables["ranking"]["sample_id"].to_pylist(), inputs.tables["ranking"].num_rows - 1
    before, after = (compared(name, inputs) for name in ("A", "B"))
    assert inputs.tables["flagged"]["is_flagged"][:6].to_pylist() == [True] * 6
    before = left_out(flag_of(before, names[5], None), [names[0]])  # tested in B alone; in B alone
    after = left_out(flag_of(after, names[4], False), [*names[1:3], names[lowest]])  # the flag that went; in A alone
    trend = trend_of(before.ranking, after.ranking, (before.flags, after.flags))
    found = changed_flags(trend)
    assert ([row["sample_id"] for row in found.new], [row["sample_id"] for row in found.gone]) == ([], [names[4]])
    page = Page(render_comparison(before, after, trend))
    assert "Of the images tested in both runs (251): newly flagged 0, no longer flagged 1." in page.text
    assert "3 images are in A alone, 1 in B alone." in page.texts
    facts = {"in both": 252, "tested in both": 251, "newly flagged": 0, "no longer flagged": 1}
    alone = {"in A alone": 3, "in A alone, flagged": 2, "in B alone": 1, "in B alone, flagged": 1}
    for label, count in (facts | alone).items():
        assert page.texts[page.texts.index(f"Training images {label}") + 1] == str(count), label


def test_an_image_whose_flag_went_is_shown_as_it_is_called_in_the_later_run(inputs: ReportInputs) -> None:
    first = inputs.tables["ranking"]["sample_id"][0].as_py()
    pictures = [{first: blob((28, 28), seed)} for seed in (1, 2)]
    before = compared("A", inputs, pictures=pictures[0])  # another image has that name there
    after = flag_of(compared("B", inputs, pictures=pictures[1]), first, False)
    page = Page(render_comparison(before, after, trend_of(before.ranking, after.ranking, (before.flags, after.flags))))
    assert [a["src"] for tag, a in page.tags if tag == "img"] == [data_uri(pictures[1][first])]


def with_parameters(run: ComparedRun, **parameters: Any) -> ComparedRun:
    scoring = run.record["scoring"]
    changed = {**scoring, "parameters": {**scoring["parameters"], **parameters}}
    return replace(run, record={**run.record, "scoring": changed})


def test_other_parameters_forbid_the_comparison_of_scores(inputs: ReportInputs, trend: pa.Table) -> None:
    before, after = compared("A", inputs), with_parameters(compared("B", inputs), timestep=30)
    (warning,) = incomparable(before, after)
    assert "timestep 20 in A, 30 in B" in warning
    page = Page(render_comparison(before, after, trend))
    assert "Compare with care" in page.texts
    assert warning in page.text
    assert [data for data in page.texts if data == "rank in A"]
    headings = "".join(page.texts)[: "".join(page.texts).index("Newly flagged:")]
    assert "percentage points" in headings
    assert headings.count("nats") == 2  # the scores stand there, their difference does not


def test_baselines_beside_the_growth_do_not_forbid_its_comparison(inputs: ReportInputs) -> None:
    with_pia = with_parameters(compared("B", inputs), baselines=["pia"], reversibility=50)
    assert incomparable(compared("A", inputs), with_pia) == []


def test_timesteps_that_were_calibrated_apart_are_other_parameters(inputs: ReportInputs) -> None:
    runs = [
        with_parameters(
            compared(name, inputs, evidence={**inputs.evidence, "calibration": {"timestep": at}}), timestep="auto"
        )
        for name, at in (("A", 50), ("B", 100))
    ]
    (warning,) = incomparable(*runs)
    assert "timestep 50 in A, 100 in B" in warning


def test_other_controls_and_other_ways_of_counting_are_warned_of(inputs: ReportInputs) -> None:
    before = compared("A", inputs)
    assert incomparable(before, before) == []
    (controls,) = incomparable(before, replace(before, identity={"held-out images": "e"}))
    assert "other controls" in controls
    for title, says in (
        ("sampling parameters", "Images were generated with other parameters: the shares of copies do not compare."),
        ("rule of copies", "Copies were counted by another rule: their shares do not compare."),
    ):
        runs = [replace(before, identity={**IDENTITY, title: how}) for how in ("ddim", "ancestral")]
        assert incomparable(*runs) == [says]
    scores = [replace(before, identity={**IDENTITY, "membership score": name}) for name in ("fused", "log_growth")]
    assert incomparable(*scores) == ["Membership rests on another score in either run: their AUCs do not compare."]
    (nothing,) = incomparable(before, replace(before, ranking=before.ranking.slice(0, 0)))
    assert "no training image in common" in nothing


def test_runs_without_anything_in_common_still_make_a_page(inputs: ReportInputs, trend: pa.Table) -> None:
    empty = ComparedRun("A", {}, {}, {}, inputs.tables["ranking"].slice(0, 0), inputs.tables["flagged"].slice(0, 0))
    page = Page(render_comparison(empty, replace(empty, name=HOSTILE[0]), trend.slice(0, 0)))
    assert "Membership inconclusive in both. Copies inconclusive in both." in page.text
    assert any(HOSTILE[0] in text for text in page.texts)
    assert page.count("figure") == 0


def test_pictures_of_a_comparison_can_be_redacted(inputs: ReportInputs, later: ReportInputs, trend: pa.Table) -> None:
    found = changed_flags(trend)
    pictures = {row["sample_id"]: blob((28, 28), i) for i, row in enumerate((*found.new, *found.gone))}
    runs = compared("A", inputs, pictures=pictures), compared("B", later, pictures=pictures)
    open_, redacted = (Page(render_comparison(*runs, trend, redact)) for redact in (False, True))
    shown = [{a["src"] for tag, a in page.tags if tag == "img"} for page in (open_, redacted)]
    assert len(shown[0]) == min(16, len(found.new)) + min(16, len(found.gone))
    assert not shown[0] & shown[1]
    assert "This copy is redacted." in redacted.text


def test_what_differs_is_listed_and_the_rest_counted(inputs: ReportInputs, trend: pa.Table) -> None:
    before = compared("A", inputs)
    software = {**inputs.record["software"], "torch": "9.9"}
    page = Page(render_comparison(before, replace(before, record={**inputs.record, "software": software}), trend))
    begin = page.texts.index("software: torch")
    assert page.texts[begin : begin + 3] == ["software: torch", "2.13.0", "9.9"]
    assert "further entries are the same." in page.text


def answered(run: ComparedRun, sha256: str = "same", **membership: Any) -> ComparedRun:
    """The run with another membership and checkpoint."""
    verdict = run.evidence["verdict"]
    changed = {**verdict, "membership": {**verdict["membership"], **membership}}
    scoring = {**run.record["scoring"], "checkpoint_sha256": sha256}
    return replace(run, evidence={**run.evidence, "verdict": changed}, record={**run.record, "scoring": scoring})


def area(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "interval_95": [low, high]}


def calibrated(run: ComparedRun, folds: list[int]) -> ComparedRun:
    chosen = {"timestep": 20, "folds": [{"timestep": timestep} for timestep in folds]}
    return replace(run, evidence={**run.evidence, "calibration": chosen})


def opening(before: ComparedRun, after: ComparedRun, trend: pa.Table) -> str:
    text = Page(render_comparison(before, after, trend)).text
    return text[: text.index("Images that moved")]


def test_another_calibration_of_one_checkpoint_is_no_change_of_the_model(inputs: ReportInputs, trend: pa.Table) -> None:
    """Case 14: --timestep auto gave another verdict on bit-equal scores, and the page called that a change."""
    before = calibrated(answered(compared("A", inputs), level="shown", auc=area(0.9, 0.85, 0.94)), [20] * 5)
    after = calibrated(answered(compared("B", inputs), level="not_shown", auc=area(0.5, 0.45, 0.55)), [20] * 4 + [50])
    text = opening(before, after, trend)
    assert "Membership shown in A, membership not shown in B." in text
    assert (
        "The model is the same (equal checkpoint hash). The inputs differ, not the model: timesteps or "
        "features that calibration chose in its folds."
    ) in text
    other = opening(before, answered(after, "other"), trend)
    assert (
        "The model differs, and so do its inputs: timesteps or features that calibration chose in its folds." in other
    )
    assert "equal checkpoint hash" not in other


def test_each_input_that_differs_is_named(inputs: ReportInputs) -> None:
    before = compared("A", inputs)
    assert different_inputs(before, before) == []
    fewer = replace(before, ranking=before.ranking.slice(1))
    assert different_inputs(before, fewer) == ["training images"]
    assert different_inputs(before, replace(before, identity={"held-out images": "e"})) == ["held-out images"]
    assert different_inputs(before, with_parameters(before, timestep=30)) == ["timestep (20 in A, 30 in B)"]


@pytest.mark.parametrize(("value", "is_changed"), [(0.60, False), (0.75, True)])
def test_changed_is_said_by_the_interval_of_the_difference_alone(
    value: float, is_changed: bool, inputs: ReportInputs, trend: pa.Table
) -> None:
    """From 0.55 +- 0.05: to 0.60 +- 0.05 the difference is 0.05 +- 0.071, to 0.75 it is 0.20 +- 0.071."""
    before = answered(compared("A", inputs), "one", level="not_shown", auc=area(0.55, 0.5, 0.6))
    after = answered(compared("B", inputs), "two", level="shown", auc=area(value, value - 0.05, value + 0.05))
    runs = [replace(run, evidence={**run.evidence, "comparisons": {}}) for run in (before, after)]
    pair = paired(*runs)["membership"]
    assert pair.is_changed == is_changed
    assert pair.change.endswith("changed." if is_changed else "no change is shown.")
    assert ("no number is shown to have changed" in opening(*runs, trend)) == (not is_changed)


def test_flags_of_a_void_run_neither_came_nor_went(inputs: ReportInputs, later: ReportInputs, trend: pa.Table) -> None:
    """Case 5."""
    before, after = compared("A", inputs), answered(compared("B", later), is_void=True, level="inconclusive")
    text = opening(before, after, trend)
    assert "Flags are not compared: the comparison with held-out images is void in B." in text
    assert "newly flagged" not in text


def test_the_two_answers_are_compared_apart(inputs: ReportInputs, extracted: ReportInputs, trend: pa.Table) -> None:
    text = opening(compared("A", inputs), compared("B", extracted), trend)
    assert "Membership shown in both." in text
    assert "Copies not asked for in A, copies counted in B." in text

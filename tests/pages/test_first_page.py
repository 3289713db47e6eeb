"""The first page: what was tested, pictures, both answers with their power, and the command that comes next."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from latentprint.tasks.pages.counting import controls_table, flags_text, rules_table, stability
from latentprint.tasks.pages.gallery import MOST_CAME_OUT, gallery, pairs
from latentprint.tasks.pages.html import ReportInputs, render_report, render_summary
from latentprint.tasks.pages.next_steps import next_steps
from latentprint.tasks.pages.ranking import ranking_table
from latentprint.tasks.pages.thumbnails import Album
from tests.pages.synthetic import answers_of, controls, interval, membership, reproduction, two_rules
from tests.pages.test_html import Page


def evidence_of(of_membership: dict[str, Any], of_reproduction: dict[str, Any]) -> dict[str, Any]:
    return answers_of(of_membership, of_reproduction)


def test_the_summary_is_the_first_page_of_the_report(extracted: ReportInputs, extracted_html: str) -> None:
    summary, report = Page(render_summary(extracted)), Page(extracted_html)
    begin = summary.texts.index("Does this model give its training images back?")
    end = summary.texts.index("What to do next")
    opening = [text.strip() for text in summary.texts[begin:end]]
    of_report = [text.strip() for text in report.texts]
    at = of_report.index(opening[0])
    assert of_report[at : at + len(opening)] == opening
    assert summary.count("table") == 0
    assert render_summary(extracted) == render_summary(extracted)


def test_the_facts_are_those_of_the_record_and_never_the_day_of_rendering(extracted: ReportInputs) -> None:
    text = Page(render_summary(extracted)).text
    assert "Date of scoring 2026-03-14" in text
    assert "SHA-256 c0ffeec0ffeec0ff…" in text
    assert "train.tar (training), holdout.tar (held out)" in text
    conformal = extracted.evidence["conformal"]
    assert f"{conformal['n_images']} tested of 256" in text
    assert f"Flagged {conformal['n_flagged']} training images" in text
    without = {key: value for key, value in extracted.record.items() if key != "scored_on"}
    assert "Date of scoring not recorded" in Page(render_summary(replace(extracted, record=without))).text


def test_pairs_are_of_images_that_came_out_most_often_one_of_near_duplicates(extracted: ReportInputs) -> None:
    shown = pairs(extracted.tables, extracted.images)
    hits = [row["hits"] for row in shown]
    assert hits == sorted(extracted.tables["reproductions_by_score"]["hits"].to_pylist(), reverse=True)[:6]
    assert all(row["nearest_generated"] in extracted.generated for row in shown)
    ids = [row["sample_id"] for row in shown]
    one_group = pa.array([7 if name in ids[:3] else None for name in extracted.images["sample_id"].to_pylist()])
    place = extracted.images.column_names.index("near_duplicate_group")
    images = extracted.images.set_column(place, "near_duplicate_group", one_group.cast(pa.int64()))
    fewer = [row["sample_id"] for row in pairs(extracted.tables, images)]
    assert fewer[:4] == [ids[0], *ids[3:]]


def test_without_copies_the_highest_ranked_are_shown_and_it_is_said(inputs: ReportInputs) -> None:
    ranking = inputs.tables["ranking"].to_pylist()
    assert [row["sample_id"] for row in pairs(inputs.tables, inputs.images)] == [r["sample_id"] for r in ranking[:6]]
    assert "No images were generated to hold against them." in Page(render_summary(inputs)).text


def test_what_came_out_leads_the_gallery_whatever_its_rank(extracted: ReportInputs) -> None:
    shown = gallery(extracted.tables, Album({}, {}))
    assert len(shown.came_out) == MOST_CAME_OUT
    assert shown.n_came_out == 104
    assert all("is_reproduced" in item.traits for item in shown.came_out)
    ranks = [int(item.rank) for item in (*shown.came_out, *shown.highest, *shown.lowest)]
    assert len(ranks) == len(set(ranks)) == 24 + 8
    assert ranks[:3] != [1, 2, 3]
    assert [int(item.rank) for item in shown.highest] == sorted(set(range(1, 33)) - set(ranks[:MOST_CAME_OUT]))[:8]


def test_ranking_and_gallery_name_the_score_that_they_are_ordered_by(inputs: ReportInputs) -> None:
    ranking = inputs.tables["ranking"]
    ease = np.linspace(3.0, -3.0, len(ranking))
    columns = ranking.drop_columns(["ease", "ranked_by"])
    columns = columns.append_column("ease", pa.array(ease)).append_column("ranked_by", pa.array(["fused"] * len(ease)))
    tables = {**inputs.tables, "ranking": columns}
    shown, table = gallery(tables, Album({}, {})), ranking_table(tables)
    assert table is not None
    assert shown.ranked_by == "fused score"
    assert list(shown.highest[0].facts)[:2] == ["fused score", "log growth"]
    assert shown.highest[0].facts["fused score"] == "3.000"
    assert table.caption == "Training images, most easily reproduced first, by fused score"
    assert [column.label for column in table.columns][:4] == ["rank", "image", "fused score", "log growth"]
    by_growth = ranking_table(inputs.tables)
    assert by_growth is not None
    assert by_growth.caption.endswith("by log growth")
    assert "score" not in [column.label for column in by_growth.columns]


def test_power_is_said_once_in_the_answers_own_words(extracted: ReportInputs) -> None:
    power = "would have been seen with 80% probability"
    of_membership = membership("not_shown", sentence=f"Membership is not shown. An AUC of 0.63 {power}.")
    evidence = {**extracted.evidence, **evidence_of(of_membership, reproduction("none_counted"))}
    text = Page(render_summary(replace(extracted, evidence=evidence))).text
    assert text.count(power) == 1


@pytest.mark.parametrize(
    ("of_membership", "of_reproduction", "commands"),
    [
        (membership(), reproduction(), ["curate --run RUN --action dedupe", "audit --model NEW_MODEL"]),
        (membership(), reproduction("not_asked"), ["extract --run RUN --samples 4096"]),
        (membership("not_shown"), reproduction("none_counted"), ["gate --run RUN"]),
        (membership(), reproduction("inconclusive", n_samples=5000), ["extract --run RUN --samples 20000"]),
        (
            membership("inconclusive", is_void=True),
            reproduction("none_counted"),
            ["audit --model MODEL --train TRAIN --holdout HOLDOUT"],
        ),
        (
            membership("inconclusive", auc=interval(0.397, 0.298, 0.493)),
            reproduction("none_counted"),
            ["doctor --model MODEL"],
        ),
    ],
)
def test_the_next_step_is_that_of_the_answers(
    of_membership: dict[str, Any], of_reproduction: dict[str, Any], commands: list[str]
) -> None:
    steps = next_steps(evidence_of(of_membership, of_reproduction), [{"copies": 4}])
    assert [step.command.startswith(f"latentprint {c}") for step, c in zip(steps, commands, strict=True)] == [
        True for _ in commands
    ]


def test_an_inconclusive_membership_is_answered_by_the_remedy_of_its_reason() -> None:
    texts = [
        next_steps(evidence_of(membership("inconclusive", **changed), reproduction("none_counted")))[0].text
        for changed in ({"n_holdout": 0}, {"is_void": True}, {"n_train": 3}, {"auc": interval(0.4, 0.3, 0.49)}, {})
    ]
    assert len(set(texts)) == 5
    assert "at least 30" in texts[2]
    assert "exchanged" in texts[3]


def test_images_that_occur_once_are_dropped_since_there_is_nothing_to_deduplicate() -> None:
    evidence = evidence_of(membership(), reproduction())
    single, repeated = (next_steps(evidence, rows)[0] for rows in ([{"copies": 1}], [{"copies": 1}, {"copies": 2}]))
    assert "--action drop --images what_came_out" in single.command
    assert "--action dedupe" in repeated.command


def test_void_flags_are_not_used_and_the_page_says_why(inputs: ReportInputs) -> None:
    conformal = {**inputs.evidence["conformal"], "status": "void", "reason": "pixels alone tell the two sets apart"}
    said = "Flags are not used: pixels alone tell the two sets apart."
    assert flags_text(conformal) == said
    page = Page(render_report(replace(inputs, evidence={**inputs.evidence, "conformal": conformal})))
    assert page.text.count(said) == 2
    assert "Flagged flags are not used" in page.text
    assert "stand out" not in page.text


def test_both_rules_stand_side_by_side_with_their_false_copies() -> None:
    table = rules_table(two_rules()["reproductions"])
    assert table is not None
    assert [column.label for column in table.columns] == ["quantity", "ratio rule, believed", "adaptive rule"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["Copies of 4,096 generated images"] == ("1,638", "2,900")
    assert rows["Share of copies"][0].startswith("40.0% (38.5% to 41.5%)")
    assert rows["False copies, all of these"][0].startswith("2 of 768: 0.3% (")
    assert rows["Share of copies above the false ones"][0] == "39.8% (38.1% to 41.4%)"
    assert rules_table(None) is None


def test_a_control_reads_as_expected_only_where_it_is() -> None:
    table = controls_table(controls())
    assert table is not None
    readings = {row[0]: (row[1], row[3]) for row in table.rows}
    assert readings["Held-out half against held-out half"] == ("0.5", "as expected")
    assert readings["Held-out set a.tar against b.tar"] == ("0.5", "not as expected")
    positive = "Denoising loss at timesteps 20, 100, 400, trained against held out"
    assert readings[positive] == ("above 0.5", "as expected")
    assert readings["AUC of the score less that of pixels alone"] == ("above 0", "as expected")
    swapped = controls()
    swapped["controls"]["positive"]["auc"] = interval(0.12, 0.09, 0.16)
    again = controls_table(swapped)
    assert again is not None
    assert {row[0]: row[3] for row in again.rows}[positive] == "not as expected"
    missing = controls_table(
        {"controls": {"negative": {"auc": None, "status": "not computable", "reason": "3 images"}}}
    )
    assert missing is not None
    assert missing.rows[0][2:] == ("–", "3 images")
    assert controls_table({}) is None


def test_stability_counts_the_repeats_with_the_same_answer() -> None:
    said = stability(evidence_of(membership("not_shown"), reproduction()))
    assert said == "The membership answer was the same in 19 of 20 repeats with other seeds and folds."
    assert stability(evidence_of(membership(stability=None), reproduction())) == ""


@pytest.mark.parametrize("level", ["shown", "not_shown", "inconclusive"])
@pytest.mark.parametrize("counted", ["counted", "none_counted", "not_asked", "inconclusive"])
def test_membership_is_never_called_memorization(extracted: ReportInputs, level: str, counted: str) -> None:
    evidence = {**extracted.evidence, "limits": [], **evidence_of(membership(level), reproduction(counted))}
    page = Page(render_summary(replace(extracted, evidence=evidence)))
    assert not re.search("memori[sz]", page.text.replace("--max-memorized-share", ""), re.IGNORECASE)
    classes = [attributes.get("class") for _, attributes in page.tags]
    assert [name for name in classes if (name or "").startswith("answer ")] == [
        f"answer answer-{level}",
        f"answer answer-{counted}",
    ]


def test_near_duplicates_are_one_of_two_sentences(inputs: ReportInputs) -> None:
    searched = Page(render_report(inputs)).text
    tables = {name: table for name, table in inputs.tables.items() if name != "near_duplicate_groups"}
    unsearched = Page(render_report(replace(inputs, tables=tables))).text
    found, asked = "No near duplicates were found.", "Near duplicates were not searched for."
    assert (found in searched, asked in searched) == (True, False)
    assert (found in unsearched, asked in unsearched) == (False, True)

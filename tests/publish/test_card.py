"""Cards: each number with its interval, what is not measured said, names as text, no promise that nobody can keep."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from latentprint.tasks.gate.rehearsal import REHEARSALS
from latentprint.tasks.pages.formats import markdown_text
from latentprint.tasks.publish.read import card
from latentprint.tasks.store.files import read_json, write_json
from latentprint.tasks.store.run import RunDirectory
from tests.store.runs import reseal, write_run

HOSTILE = "<img src=x onerror=alert(1)>|[a](javascript:1)`@team"
BAD, NOTHING = (next(r for r in REHEARSALS if r.name == name) for name in ("known-bad", "nothing-measured"))


def audited(path: Path, evidence: dict[str, Any], model: str = "models/ddpm", source: str = "data/a.tar") -> Path:
    run = write_run(path)
    sources = {"train": source, "holdout": "data/b.tar"}
    scoring = {
        "checkpoint_sha256": "c0ffee",
        "parameters": {"axes": 1, "steps": 2, "timestep": 20, "estimator": "edge"},
    }
    write_json(run.record, {"run_id": "r", "model": model, "data": {"sources": sources}, "scoring": scoring})
    write_json(run.evidence, {"run_id": "r", **evidence})
    return reseal(run).path


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 1,000 generated images 560 are copies: 52.9% to 59.1%, exactly; of 3 training images 2 came out."""
    evidence = json.loads(json.dumps(BAD.evidence()))
    evidence["reproductions"] |= {"n_training_images": 3}
    evidence["reproductions"]["ratio"] |= {"rule": "a | b", "n_reproduced_training_images": 2}
    return audited(tmp_path_factory.mktemp("card") / "run", evidence)


COPIES = "Reproduction: generated images that are copies of a training image"


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_each_number_has_its_interval(bad: Path, kind: Any) -> None:
    text = card(bad, kind)
    assert f"| {COPIES} | 56.0% | 52.9% to 59.1% | 1,000 |" in text
    assert "2 of 3 distinct training images came out among 1,000 generated ones" in text
    assert "false copies, where there can be no copy: 0 of 1,000 (0.0%). By the adaptive rule, 560 are copies." in text
    measured = [line for line in text.splitlines() if line.count("|") == 5 and "%" in line.split("|")[2]]
    assert len(measured) == 4
    assert all(re.search(r"\| \d+\.\d% to \d+\.\d% \| [\d,]+ \|$", line) for line in measured)


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_both_answers_are_there_and_no_auc_is_called_memorized(bad: Path, kind: Any) -> None:
    text, verdict = card(bad, kind), BAD.evidence()["verdict"]
    assert f"**Membership shown.** {markdown_text(verdict['membership']['sentence'])}" in text
    assert f"**Copies counted.** {markdown_text(verdict['reproduction']['sentence'])}" in text
    assert "memoriz" not in text.lower()


def test_the_trainers_count_is_no_number_of_the_card_and_void_flags_are_none(tmp_path: Path) -> None:
    """Cases 5 and 15: "209 of 250 stand out", and 56.1% by the trainer's own record."""
    evidence = json.loads(json.dumps({**BAD.evidence(), "reproductions": None}))
    evidence["generated"] = {"share_of_copies": 0.561, "interval_95": [0.54, 0.58], "n_copies": 2298, "n_samples": 4096}
    evidence["verdict"]["membership"] |= {"is_void": True, "level": "inconclusive", "reason": "Pixels do."}
    evidence["verdict"]["reproduction"] |= {"level": "not_asked", "rule": None}
    text = card(audited(tmp_path / "run", evidence), "model")
    assert "56.1" not in text
    assert f"| {COPIES} | not measured (copies: this run generated no images" in text
    assert "training images are flagged." not in text
    assert text.count("void: Pixels do.") == 2


def test_flags_are_told_with_their_rate_and_with_how_many_there_would_be_if_none_were_memorized(bad: Path) -> None:
    """300 images above all 1,000 controls: 300/1,001 expected below that p."""
    flags = read_json(RunDirectory(bad).evidence)["conformal"]
    text = card(bad, "model")
    assert "at most 5% of the flagged images are false; in a run that flags anything the share may be larger" in text
    expected = flags["n_images"] * flags["p_cutoff"]
    assert f"Flags expected by chance alone: {expected:.1f}." in text


def test_a_data_set_card_counts_what_is_in_it(bad: Path) -> None:
    text = card(bad, "dataset")
    assert "| training images | 4 |\n| distinct | 3 |\n| distinct ones that occur more than once | 1 |" in text
    assert "| 1 | 2 | 2.000 |\n| 2 | 1 | 5.000 |" in text


@pytest.mark.parametrize("kind", ["model", "dataset", "metadata"])
def test_what_was_not_measured_has_a_reason_and_no_number(tmp_path: Path, kind: Any) -> None:
    text = card(audited(tmp_path, NOTHING.evidence()), kind)
    if kind == "metadata":
        assert "model-index" not in text
    else:
        assert text.count("not measured") >= 4
        assert "100.0%" not in text
        assert "so it says nothing about what comes out" in text


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_hostile_names_are_text(tmp_path: Path, kind: Any) -> None:
    clean, hostile = (
        card(audited(tmp_path / name, NOTHING.evidence(), model=name, source=f"{name}.tar"), kind)
        for name in ("plain", HOSTILE)
    )
    assert "\\<img src=x onerror=alert\\(1\\)\\>\\|\\[a\\]\\(javascript:1\\)\\`@\u200bteam" in hostile
    assert re.findall(r"(?<!\\)[<>|`\[]", hostile) == re.findall(r"(?<!\\)[<>|`\[]", clean)
    assert "@team" not in hostile


@pytest.mark.parametrize("kind", ["model", "dataset", "metadata"])
def test_nothing_is_promised_and_no_image_or_folder_named(bad: Path, kind: Any) -> None:
    text = card(bad, kind).lower()
    assert not re.search("anonym|complian|gdpr|safe", text)
    assert not re.search(r"train/a|models/|data/", text)
    assert kind == "metadata" or "limits:" in text


def test_metadata_is_yaml_that_a_hub_reads(bad: Path) -> None:
    head = card(bad, "metadata")
    (entry,) = yaml.safe_load(head.strip("-\n"))["model-index"]
    metrics = {m["type"]: m for result in entry["results"] for m in result["metrics"]}
    assert entry["name"] == "ddpm"
    assert metrics["latentprint_memorized_share"]["value"] == 0.56
    bounds = pytest.approx([0.5285, 0.5911], abs=1e-4)
    assert metrics["latentprint_memorized_share"]["args"] == {"interval_95": bounds, "n": 1000}


def test_a_card_needs_a_run_with_evidence(tmp_path: Path) -> None:
    from latentprint.tasks.store.run import RunError

    with pytest.raises(RunError, match=r"no evidence\.json"):
        card(write_run(tmp_path).path, "model")

"""One image explained: every number is that of the run's own tables or of a plain loop; names stay text."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from latentprint.flows.audit import audit
from latentprint.flows.odds import odds
from latentprint.flows.shard import shard
from latentprint.tasks.evidence.flags import flag
from latentprint.tasks.explain.facts import explain_image
from latentprint.tasks.explain.page import render_explanation, sentence
from latentprint.tasks.explain.words import explain, in_words
from latentprint.tasks.extract.generate import read_generated
from latentprint.tasks.parameters import ComputeParameters, ExtractParameters, OddsParameters, ScoreParameters
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.warehouse.dictionary import SQL, describe_columns
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.flows.test_cli import run_in_process
from tests.pages.synthetic import HOSTILE
from tests.pages.test_html import Page
from tests.store.runs import is_numeric, reseal

ONE_THREAD = ComputeParameters(devices=("cpu",), threads=1)
HOSTILE_FILE = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def run(prefect: None, checkpoint: Path, digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training digits, the first 10 thrice and the very first under a hostile name too; 100 held out; 12 samples."""
    folder = tmp_path_factory.mktemp("explained")
    (folder / "train").mkdir()
    names = [f"{i:03d}.png" for i in range(80)]
    for name, pixels in zip(names, np.concatenate([digits[:60], digits[:10], digits[:10]]), strict=True):
        Image.fromarray(pixels).save(folder / "train" / name)
    Image.fromarray(digits[0]).save(folder / "train" / HOSTILE_FILE)
    np.save(folder / "holdout.npy", digits[100:200])
    audit(
        str(checkpoint),
        str(folder / "train"),
        folder / "run",
        str(folder / "holdout.npy"),
        ScoreParameters(timestep=20),
        ONE_THREAD,
        extraction=ExtractParameters(samples=12, steps=4),
    )
    return folder / "run"


@pytest.fixture(scope="module")
def scores(run: Path) -> dict[str, dict[str, Any]]:
    return {row["sample_id"]: row for row in pq.read_table(run / "scores").to_pylist()}


def of_split(scores: dict[str, dict[str, Any]], split: str) -> np.ndarray:
    return np.array([row["fused"] for row in scores.values() if row["split"] == split])


@pytest.mark.parametrize("number", [2, 12, 33, 59])
def test_rank_percentile_and_flag_are_those_of_plain_counts(
    run: Path, scores: dict[str, dict[str, Any]], number: int
) -> None:
    """By the calibrated score, which each of the 60 + 100 images has from the folds without it."""
    name = f"train/{number:03d}.png"
    facts = explain(run, name)
    odds, trained, controls = scores[name]["fused"], of_split(scores, "train"), of_split(scores, "holdout")
    assert (len(trained), len(controls)) == (60, 100)
    standing = facts["standing"]
    assert (standing["ranked_by"], standing["ease"]) == ("fused", odds)
    assert standing["fold"] in range(5)
    assert standing["rank"] == 1 + (trained > odds).sum()
    assert standing["percentile"] == pytest.approx(100 * (trained < odds).sum() / 59)
    assert standing["p_value"] == pytest.approx((1 + (controls >= odds).sum()) / 101)
    flags = flag(trained, controls)
    assert standing["q_value"] == pytest.approx(flags.adjusted[list(trained).index(odds)])
    assert facts["scores"] == {
        key: value for key, value in scores[name].items() if key in facts["scores"] and value is not None
    }
    assert {"log_growth", "eps_norm", "sima", "crowding", "n_evaluations"} <= set(facts["scores"])
    assert "calibrated log odds of membership" in sentence(facts)


def test_a_held_out_image_is_held_against_the_other_controls(run: Path, scores: dict[str, dict[str, Any]]) -> None:
    name = next(name for name, row in scores.items() if row["split"] == "holdout")
    standing = explain(run, name)["standing"]
    odds, controls = scores[name]["fused"], of_split(scores, "holdout")
    assert standing["p_value"] == pytest.approx((controls >= odds).sum() / 100)  # itself is the 1 that is added
    assert standing["rank_if_trained"] == 1 + (of_split(scores, "train") > odds).sum()
    assert (standing["rank"], standing["q_value"]) == (None, None)


def test_neighbours_are_those_of_a_plain_loop_and_never_the_image_itself(run: Path, digits: np.ndarray) -> None:
    facts = explain(run, "train/075.png")  # the third occurrence of digit 5
    flat = digits[:60].reshape(60, -1) / 127.5 - 1.0
    distances = np.linalg.norm(flat - flat[5], axis=1)
    distances[5] = np.inf
    nearest = np.argsort(distances)[:5]
    found = facts["nearest_training"]
    assert [row["sample_id"] for row in found["neighbours"]] == [f"train/{i:03d}.png" for i in nearest]
    assert [row["distance"] for row in found["neighbours"]] == pytest.approx(distances[nearest], rel=1e-5)
    assert [row["copies"] for row in found["neighbours"]] == [4 if i == 0 else 3 if i < 10 else 1 for i in nearest]
    assert found["mean_distance"] == pytest.approx(np.sort(distances)[:50].mean(), rel=1e-5)
    assert facts["copies"]["in_its_split"] == 3
    assert facts["copies"]["others"] == ["train/005.png", "train/065.png"]
    assert facts["copies"]["scored_as"] == "train/005.png"


def test_contributions_and_adjusted_score_add_up_to_the_score(run: Path, scores: dict[str, dict[str, Any]]) -> None:
    evidence = json.loads((run / "evidence.json").read_text())["confounders"]["model"]
    found = explain(run, "train/020.png")["contributions"]
    parts = found["confounders"]
    assert set(parts) == set(evidence["coefficients"])
    total = found["adjusted"] + sum(part["contribution"] for part in parts.values())
    assert total == pytest.approx(scores["train/020.png"]["log_growth"], rel=1e-9)
    for name, part in parts.items():
        b = evidence["coefficients"][name]
        expected = b["value"] * evidence["score_sd"] * (part["value"] - b["mean"]) / b["sd"]
        assert part["contribution"] == pytest.approx(expected)


def test_what_came_out_is_counted_and_shown(run: Path) -> None:
    explanation = explain_image(RunDirectory(run), "train/030.png")
    counted = next(
        row for row in pq.read_table(run / "reproductions").to_pylist() if row["sample_id"].endswith("030.png")
    )
    found = explanation.facts["reproduction"]
    for name in ("hits", "n_generated", "rate_low", "rate_high", "nearest_distance", "nearest_generated"):
        assert found[name] == counted[name]
    samples = {key: pixels for key, _, pixels in read_generated(run / "samples" / "samples-000000.tar")}
    assert np.array_equal(explanation.generated, samples[counted["nearest_generated"]][0])
    held_out = next(row for row in pq.read_table(run / "scores").to_pylist() if row["split"] == "holdout")
    assert "training images only" in explain(run, held_out["sample_id"])["reproduction"]["reason"]


def test_odds_are_those_of_the_table_and_missing_ones_say_why(run: Path) -> None:
    assert "latentprint odds" in explain(run, "train/030.png")["odds"]["reason"]
    (row,) = odds(run, OddsParameters(top=1, steps=3, prior=24, chains=4, chain_length=3, levels=3))
    try:
        assert explain(run, row["sample_id"])["odds"]["one_in"] == row["one_in"]
        other = next(name for name in ("train/030.png", "train/031.png") if name != row["sample_id"])
        assert "for other images only" in explain(run, other)["odds"]["reason"]
    finally:
        (run / "odds.parquet").unlink()
        reseal(RunDirectory(run))


def test_provenance_leads_back_to_the_file_and_the_checkpoint(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    found = explain(run, "train/020.png")["provenance"]
    assert found["source_uri"].endswith("train/020.png")
    assert found["checkpoint_sha256"] == record["scoring"]["checkpoint_sha256"]
    assert found["parameters"] == record["scoring"]["parameters"]


def test_the_page_shows_each_picture_once_with_words_and_hostile_names_as_text(run: Path, tmp_path: Path) -> None:
    name = f"train/{HOSTILE_FILE}"
    facts = explain(run, name, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    page = Page(html)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 1 + 1 + 5  # itself, the nearest generated, five neighbours
    assert all(str(picture["src"]).startswith("data:image/png;base64,") and picture["alt"] for picture in pictures)
    decoded = Image.open(io.BytesIO(base64.b64decode(str(pictures[0]["src"]).split(",")[1])))
    assert decoded.size == (8, 8)
    assert f"Why does {name} score as it does?" in page.text
    assert not [attributes for tag, attributes in page.tags if any(key.startswith("on") for key in attributes)]
    assert "http" not in html.replace("http-equiv", "")
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    assert "default-src 'none'" in str(policy)
    assert str(run.parent) not in page.text
    assert any(name in line for line in in_words(facts))


def test_whatever_a_name_is_the_page_has_the_same_tags(run: Path) -> None:
    explanation = explain_image(RunDirectory(run), "train/020.png")
    (pixels, *_) = explanation.pictures.values()

    def tags(name: str) -> list[str]:
        facts = json.loads(json.dumps(explanation.facts))
        facts["sample_id"] = facts["nearest_training"]["neighbours"][0]["sample_id"] = name
        facts["copies"]["others"] = [name]
        facts["provenance"]["source_uri"] = name
        page = Page(render_explanation(facts, {**explanation.pictures, name: pixels}, pixels))
        return [tag for tag, _ in page.tags]

    assert all(tags(name) == tags("plain") for name in HOSTILE)


def test_an_unknown_name_is_one_line_with_those_that_are_like_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = run_in_process(monkeypatch, capsys, "explain", "--run", str(run), "020.png\n\x1b[31m")
    assert code == 2
    assert error.count("\n") == 1
    assert "has no image 020.png\\n\\x1b[31m: did you mean " in error
    code, error = run_in_process(monkeypatch, capsys, "explain", "--run", str(run), "020.png")
    assert "did you mean train/020.png, " in error


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("standing", {"sample_id": "train/020.png"}),
        ("similar_names", {"sample_id": "x"}),
        ("same_content", {"content_hash": "x"}),
        ("companions", {"content_hashes": ["x"], "near_duplicate_group": None}),
    ],
)
def test_every_question_describes_the_columns_that_it_answers_with(
    run: Path, name: str, values: dict[str, Any]
) -> None:
    with Warehouse(RunDirectory(run)) as warehouse:
        rows = warehouse.query((SQL / "explain" / f"{name}.sql").read_text(), values)
    about = describe_columns(name)
    assert list(about) == rows.column_names
    assert [f.name for f in rows.schema if is_numeric(f.type) and not about[f.name]["unit"]] == []


def test_a_run_without_scores_or_evidence_says_so(
    prefect: None, run: Path, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    shard(tmp_path / "sharded", str(digit_files[0]))
    with pytest.raises(RunError, match="not scored yet"):
        explain(tmp_path / "sharded", "x")
    evidence = (run / "evidence.json").read_bytes()
    (run / "evidence.json").unlink()
    reseal(RunDirectory(run))
    try:
        assert "see its report" in explain(run, "train/020.png")["contributions"]["reason"]
    finally:
        (run / "evidence.json").write_bytes(evidence)
        reseal(RunDirectory(run))


def test_the_command_prints_json(run: Path, latentprint: Any) -> None:
    done = latentprint("explain", "--run", run, "train/020.png", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(explain(run, "train/020.png")))

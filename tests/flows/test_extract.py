"""Extraction: samples that depend on (seed, i) alone, counts that are those of a plain double loop, kills that do not
show."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image

from latentprint.flows.audit import audit
from latentprint.flows.extract import extract
from latentprint.flows.report import report
from latentprint.flows.shard import shard
from latentprint.tasks.compare.read import compare
from latentprint.tasks.datasets.shards import read_shard
from latentprint.tasks.diffusion.checkpoint import CheckpointError, checkpoint_sha256, load_denoiser
from latentprint.tasks.doctor.checks import ParametersError
from latentprint.tasks.extract.generate import (
    generate_shard,
    sample_jobs,
    sample_pixels,
)
from latentprint.tasks.pages.queries import statements
from latentprint.tasks.parameters import ComputeParameters, ExtractParameters, ScoreParameters, ShardParameters
from latentprint.tasks.score.measure import measure
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.diffusion.test_sampling import network_of_a_gaussian, spread_of_samples
from tests.extract.runs import counted_anew, file_bytes, generated, with_twins
from tests.flows.test_cli import run_in_process

ONE_THREAD = ComputeParameters(devices=("cpu",), threads=1, batch_size=8)
FEW = ExtractParameters(samples=20, steps=4, samples_per_tar=8)


@pytest.fixture(scope="module")
def audited(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("runs") / "audited"
    train, holdout = map(str, digit_files)
    audit(
        str(checkpoint),
        train,
        run,
        holdout,
        ScoreParameters(timestep=20),
        ONE_THREAD,
        ShardParameters(shard_mb=40 / 512),
    )
    return run


@pytest.fixture
def run(audited: Path, tmp_path: Path) -> Path:
    """A scored run to extract from."""
    return Path(shutil.copytree(audited, tmp_path / "run"))


@pytest.fixture(scope="module")
def extracted(audited: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(audited, tmp_path_factory.mktemp("extracted") / "run"))
    extract(run, FEW, ONE_THREAD)
    return run


def test_extract_leaves_tars_matches_reproductions_and_a_summary(extracted: Path) -> None:
    assert [path.name for path in sorted((extracted / "samples").iterdir())] == [
        f"samples-{i:06d}.tar" for i in range(3)
    ]
    assert pq.read_table(extracted / "matches")["generated"].to_pylist() == [f"{i:09d}" for i in range(20)]
    assert pq.read_table(extracted / "reproductions").num_rows == 60
    summary = json.loads((extracted / "extraction.json").read_text())
    assert (summary["n_samples"], summary["n_training_images"]) == (20, 60)
    assert json.loads((extracted / "run.json").read_text())["timings"]["extract_seconds"] > 0
    assert not list(extracted.rglob("*.tmp"))


def test_a_sample_is_the_same_bytes_however_many_are_asked_for(extracted: Path, run: Path) -> None:
    extract(run, FEW.model_copy(update={"samples": 11}), ONE_THREAD)
    assert np.array_equal(generated(run), generated(extracted)[:11])
    whole = "samples/samples-000000.tar"
    assert file_bytes(run, "samples")[whole] == file_bytes(extracted, "samples")[whole]


def test_an_extraction_grows_to_the_same_bytes_as_one_at_once(
    extracted: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = ("samples", "matches", "reproductions", "false-copies")
    extract(run, FEW.model_copy(update={"samples": 11}), ONE_THREAD)
    first_tar = run / "samples" / "samples-000000.tar"
    written = first_tar.stat().st_mtime_ns

    def stopped(*arguments: Any) -> dict[str, Any]:
        raise KeyError("stopped before matching")

    with monkeypatch.context() as patched:
        patched.setattr("latentprint.flows.extract.match_and_count", stopped)
        with pytest.raises(KeyError, match="stopped before matching"):
            extract(run, FEW, ONE_THREAD)
    assert not (run / "extraction.json").exists(), "it counts fewer samples than there are"
    extract(run, FEW, ONE_THREAD)
    assert file_bytes(run, *everything) == file_bytes(extracted, *everything)
    for name in ("extraction.json", "SHA256SUMS"):
        assert (run / name).read_bytes() == (extracted / name).read_bytes()
    assert first_tar.stat().st_mtime_ns == written


def test_mirror_images_are_matched_without_generating_anew(extracted: Path, tmp_path: Path) -> None:
    run, matched = Path(shutil.copytree(extracted, tmp_path / "run")), ("matches", "reproductions", "false-copies")
    before = extract(run, FEW, ONE_THREAD)
    assert before["mirror"] == {"is_on": True, "why": "no training record says whether images were flipped"}
    written = {tar: tar.stat().st_mtime_ns for tar in (run / "samples").iterdir()}
    off = extract(run, FEW.model_copy(update={"mirror": "off"}), ONE_THREAD)
    assert off["mirror"] == {"is_on": False, "why": "--mirror off was given"}
    assert {**off["parameters"], "mirror": "on"} == before["parameters"]
    plain = file_bytes(run, *matched)
    assert [name for name, content in file_bytes(extracted, *matched).items() if content == plain[name]] == []
    kept = extract(run, FEW, ONE_THREAD)
    assert kept["mirror"] == {"is_on": False, "why": "the run was extracted without them before"}
    assert file_bytes(run, *matched) == plain
    on = extract(run, FEW.model_copy(update={"mirror": "on"}), ONE_THREAD)
    assert on["mirror"] == {"is_on": True, "why": "--mirror on was given"}
    assert {**on, "mirror": before["mirror"]} == before
    assert file_bytes(run, *matched) == file_bytes(extracted, *matched)
    assert {tar: tar.stat().st_mtime_ns for tar in (run / "samples").iterdir()} == written


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_a_sample_depends_on_its_number_and_seed_not_on_its_batch(demo_model: Path, sampler: Any) -> None:
    model = load_denoiser(str(demo_model), "cpu")
    parameters = ExtractParameters(steps=6, sampler=sampler)
    together = sample_pixels(model, range(9), parameters).astype(int)
    alone = np.concatenate([sample_pixels(model, [i], parameters) for i in range(9)])
    backwards = sample_pixels(model, range(9)[::-1], parameters)[::-1]
    for other in (alone, backwards):  # float32 networks round by their batch: a grey level, in hardly any pixel
        assert np.abs(together - other).max() <= 1
        assert (together != other).mean() < 0.01
    another_seed = sample_pixels(model, range(9), parameters.model_copy(update={"seed": 1}))
    assert (np.abs(together - another_seed).reshape(9, -1).max(axis=1) > 20).all()
    assert len(np.unique(together.reshape(9, -1), axis=0)) == 9


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
@pytest.mark.parametrize("kind", [FlowMatchEulerDiscreteScheduler, DDIMScheduler])
def test_a_schedule_that_ends_without_signal_is_sampled_and_reversed(
    kind: Any, sampler: Any, checkpoint: Path, tmp_path: Path
) -> None:
    """Flow matching and zero terminal SNR, of a network that predicts v = eps - x_0 (for the latter: alpha eps - sigma
    x_0) of data N(0.3, 0.2^2)."""
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"} if kind is DDIMScheduler else {}
    kind(**options).save_pretrained(folder / "scheduler")
    model = load_denoiser(str(folder), "cpu")
    model.denoiser.network.module = lambda x, t: SimpleNamespace(
        sample=network_of_a_gaussian(model.schedule, model.denoiser.prediction_type)(x, t)
    )
    pixels = sample_pixels(model, range(16), ExtractParameters(steps=50, sampler=sampler))
    assert pixels.mean() == pytest.approx((0.3 + 1) * 127.5, abs=2)
    spread = spread_of_samples(model.schedule, 50, {"ddim": 0.0, "ancestral": 1.0}[sampler])
    assert pixels.std() == pytest.approx(spread * 127.5, rel=0.06)
    parameters = ScoreParameters(timestep=20, reversibility=50)
    errors = measure(model, pixels[:2], ["a", "b"], parameters, 8)["reversibility_rms"]
    assert max(errors) < 0.25 * spread


def test_another_batch_size_is_another_grey_level_at_most(extracted: Path, run: Path) -> None:
    extract(run, FEW, ONE_THREAD.model_copy(update={"batch_size": 3}))
    difference = np.abs(generated(run).astype(int) - generated(extracted))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_what_is_done_is_kept_and_what_is_damaged_made_again(extracted: Path, run: Path) -> None:
    folders = ("samples", "matches", "reproductions")
    for name in folders:
        shutil.copytree(extracted / name, run / name)
    shutil.copy(extracted / "run.json", run)
    tars = sorted((run / "samples").iterdir())
    times = [tar.stat().st_mtime_ns for tar in tars]
    content = bytearray(tars[1].read_bytes())
    content[content.index(b"IDAT") + 9] ^= 1
    tars[1].write_bytes(content)
    (run / "matches" / "part-samples-000002.parquet").unlink()
    (run / "reproductions" / "part-train-000000.parquet").write_bytes(b"nothing")
    extract(run, FEW, ONE_THREAD)
    assert file_bytes(run, *folders) == file_bytes(extracted, *folders)
    assert [tar.stat().st_mtime_ns == before for tar, before in zip(tars, times, strict=True)] == [True, False, True]
    assert (run / "extraction.json").read_bytes() == (extracted / "extraction.json").read_bytes()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples": 19}, "samples: 20 there, 19 now.: ask for 20 samples or more"),
        ({"steps": 5}, "steps: 4 there, 5 now.: give the same options"),
        ({"steps": 5, "samples": 40}, "give the same options"),
        ({"sampler": "ancestral"}, "sampler: ddim there, ancestral now"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"embedding": "dct"}, "embedding: pixel there, dct now"),
    ],
)
def test_other_parameters_are_refused(extracted: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RunError, match=says):
        extract(extracted, FEW.model_copy(update=changes), ONE_THREAD)


def test_what_cannot_be_extracted_from_is_refused(
    prefect: None, run: Path, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="not a run directory"):
        extract(tmp_path / "nowhere", FEW, ONE_THREAD)
    shard(tmp_path / "sharded", str(digit_files[0]))
    with pytest.raises(RunError, match="not scored yet"):
        extract(tmp_path / "sharded", FEW, ONE_THREAD)
    with pytest.raises(ParametersError, match="--steps 1001: the checkpoint's schedule has 1000 timesteps"):
        extract(run, FEW.model_copy(update={"steps": 1001}), ONE_THREAD)
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text() + " ")
    RunDirectory(run).update_record(model=str(other))
    with pytest.raises(CheckpointError, match="is not the checkpoint that"):
        extract(run, FEW, ONE_THREAD)
    assert not (run / "samples").exists()


def test_the_report_needs_no_extraction_and_judges_one_that_is_there(extracted: Path, audited: Path) -> None:
    assert json.loads((audited / "evidence.json").read_text())["reproductions"] is None
    assert pq.read_table(audited / "tables" / "reproductions_by_score.parquet").num_rows == 0
    report(extracted)
    evidence = json.loads((extracted / "evidence.json").read_text())["reproductions"]
    assert evidence["ratio"]["interval_95"][0] <= evidence["ratio"]["share"] <= evidence["ratio"]["interval_95"][1]
    assert set(evidence["judgement"]) == {"log_growth", "eps_norm", "sima", "fused", "dime"}
    for judgement in evidence["judgement"].values():
        comparison = judgement["at_least_once"]
        assert comparison["n_positive"] == evidence["ratio"]["n_reproduced_training_images"]
        assert comparison["n_positive"] + comparison["n_negative"] == judgement["n"] == 60
    assert pq.read_table(extracted / "tables" / "reproductions_by_score.parquet").num_rows == 60
    assert_every_query_of_the_page_gives_its_number(extracted)


def assert_every_query_of_the_page_gives_its_number(run: Path) -> None:
    evidence = json.loads((run / "evidence.json").read_text())
    with Warehouse(RunDirectory(run)) as warehouse:
        found = {name: warehouse.query(sql).to_pylist() for name, sql in statements().items()}
    for row in found["group_auc"]:
        expected = evidence["comparisons"][row["comparison"]]["log_growth"]
        assert (row["n_positive"], row["n_negative"]) == (expected["n_positive"], expected["n_negative"])
        assert row["auc"] == pytest.approx(expected["auc"]["value"], abs=1e-12)
    assert len(found["group_auc"]) == 2
    assert sum(row["is_flagged"] for row in found["flagged"]) == evidence["conformal"]["n_flagged"]
    assert len(found["flagged"]) == evidence["conformal"]["n_images"]
    (copies,) = found["generated_copies"]
    answer = evidence["verdict"]["reproduction"]
    assert (copies["n_samples"], copies["n_copies"]) == (answer["n_samples"], answer["n_copies"])
    assert copies["n_originals"] == answer["n_originals"]


def test_redacted_pages_and_summaries_lie_beside_the_report(extracted: Path) -> None:
    report(extracted)
    before = (extracted / "report.html").read_bytes()
    for summary, redact, name in (
        (False, True, "report-redacted.html"),
        (True, False, "summary.html"),
        (True, True, "summary-redacted.html"),
    ):
        headline = report(extracted, redact, summary=summary)
        assert headline["report"] == str(extracted / name)
        page = (extracted / name).read_text()
        shown = re.findall(r'<img src="data:image/png;base64,([^"]+)"', page)
        sizes = {Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in shown}
        assert sizes == (set() if redact else {(8, 8)})
        assert ("The ranking" in page) == (not summary)
    assert (extracted / "report.html").read_bytes() == before
    record = json.loads((extracted / "run.json").read_text())
    assert f"<dd>{record['scored_on']}</dd>" in (extracted / "summary.html").read_text()


def test_two_runs_are_compared_in_one_page(
    extracted: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "pages" / "compare.html"
    report(extracted)
    found = compare(run, extracted, out)
    assert (found["report"], set(found["levels"])) == (str(out), {str(run), str(extracted)})
    page = out.read_text()
    assert "Flags are not compared: the comparison with held-out images is void in A and B." in page
    assert "Images of both runs, furthest moved first" in page
    for arguments, says in (
        (["--compare", str(run), str(tmp_path)], "not a run directory (no run.json)"),
        (["--compare", str(run), str(run)], "is compared with itself"),
        (["--compare", str(run), str(extracted), "--out", "/proc/nowhere/page.html"], "choose another --out"),
        ([], "give either --run RUN or --compare RUN_A RUN_B"),
        (["--run", str(run), "--out", "x.html"], "--out goes with --compare"),
    ):
        code, error = run_in_process(monkeypatch, capsys, "report", *arguments)
        assert code == 2
        assert says in " ".join(error.replace("│", "").split())
    (run / "evidence.json").unlink()
    code, error = run_in_process(monkeypatch, capsys, "report", "--compare", str(run), str(extracted))
    assert (code, "no evidence.json; make it" in error) == (2, True)


def test_the_bundled_model_s_copies_do_not_vanish_beside_near_duplicates(
    prefect: None, demo_model: Path, tmp_path: Path
) -> None:
    shard(tmp_path / "repeats", str(demo_model.parent / "train.tar"))
    tars = sorted((tmp_path / "repeats" / "shards").glob("train-*.tar"))
    np.save(tmp_path / "twins.npy", with_twins(np.stack([image for tar in tars for image in read_shard(tar)])))
    shard(tmp_path / "twins", str(tmp_path / "twins.npy"))
    parameters = ExtractParameters(samples=32, steps=15, samples_per_tar=32)
    found = {}
    for name in ("repeats", "twins"):
        jobs = sample_jobs(tmp_path / name, demo_model, checkpoint_sha256(demo_model), parameters, 0)
        if name == "twins":
            shutil.copytree(tmp_path / "repeats" / "samples", tmp_path / name / "samples")
        generate_shard(jobs[0], "cpu")
        found[name] = counted_anew(tmp_path / name, jobs)["ratio"]["n_copies"]
    assert found["repeats"] >= 10
    assert found["twins"] >= found["repeats"] - 1  # flat images have no signature, so their twins are not grouped


def test_sigkill_while_generating_then_again_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    parameters = ExtractParameters(samples=1_000, steps=20)
    compute = ONE_THREAD.model_copy(update={"batch_size": 64})
    options = ["--samples", "1000", "--steps", "20", "--threads", "1", "--batch-size", "64", "--device", "cpu"]
    undisturbed = Path(shutil.copytree(run, tmp_path / "undisturbed"))
    extract(undisturbed, parameters, compute)
    command = [sys.executable, "-m", "latentprint.flows.cli.main", "extract", "--run", str(run), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not list((run / "samples").glob("*.tar")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(list((run / "samples").glob("*.tar"))) < 4, "the kill must fall in the middle of generating"
    assert not (run / "extraction.json").exists()
    extract(run, parameters, compute)
    folders = ("samples", "matches", "reproductions")
    assert file_bytes(run, *folders) == file_bytes(undisturbed, *folders)
    assert (run / "extraction.json").read_bytes() == (undisturbed / "extraction.json").read_bytes()
    assert [path.name for path in run.rglob(".*") if path.name not in (".lock", ".latentprint")] == []


def test_audit_extracts_when_asked(
    prefect: None,
    checkpoint: Path,
    digit_files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def latentprint(*arguments: object) -> tuple[int, str]:
        return run_in_process(monkeypatch, capsys, *map(str, arguments), "--threads", "1", "--device", "cpu")

    run = tmp_path / "run"
    code, error = latentprint(
        *("audit", "--model", checkpoint, "--train", digit_files[0], "--out", run, "--extract", 5)
    )
    assert code == 0, error
    assert json.loads((run / "evidence.json").read_text())["reproductions"]["n_samples"] == 5
    code, error = latentprint("extract", "--run", run, "--samples", 4)
    assert code == 2
    assert error.endswith("holds an extraction (samples: 5 there, 4 now): ask for 5 samples or more\n")
    assert len(error.splitlines()) == 1
    code, error = latentprint("extract", "--run", run, "--samples", 6)
    assert code == 0, error
    assert json.loads((run / "extraction.json").read_text())["n_samples"] == 6
    code, error = latentprint("extract", "--run", run, "--sampler", "guess")
    assert code == 2
    assert error.startswith("latentprint: --sampler: Input should be 'ddim' or 'ancestral'")

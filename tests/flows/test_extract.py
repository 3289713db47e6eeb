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
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from scipy.stats import beta

from latentprint.flows.audit import audit
from latentprint.flows.extract import extract
from latentprint.flows.report import report
from latentprint.flows.shard import shard
from latentprint.tasks.compare.read import compare
from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.datasets.decoding import Picture
from latentprint.tasks.datasets.shards import members_of, read_shard, write_tar
from latentprint.tasks.diffusion.checkpoint import CheckpointError, checkpoint_sha256, load_denoiser
from latentprint.tasks.doctor.checks import ParametersError
from latentprint.tasks.evidence.copies import nearest, ratio_rule
from latentprint.tasks.evidence.reproduction import answer
from latentprint.tasks.extract.false_copies import measure_false_copies
from latentprint.tasks.extract.generate import (
    SampleJob,
    generate_shard,
    is_valid_tar,
    read_generated,
    sample_jobs,
    sample_key,
    sample_pixels,
)
from latentprint.tasks.extract.match import count_reproductions, match_samples, summarise
from latentprint.tasks.extract.references import HeldOutImages, TrainingImages
from latentprint.tasks.pages.queries import statements
from latentprint.tasks.parameters import ComputeParameters, ExtractParameters, ScoreParameters, ShardParameters
from latentprint.tasks.score.measure import measure
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.diffusion.test_sampling import network_of_a_gaussian, spread_of_samples
from tests.flows.test_cli import run_in_process

ONE_THREAD = ComputeParameters(devices=("cpu",), threads=1, batch_size=8)
FEW = ExtractParameters(samples=20, steps=4, samples_per_tar=8)


def file_bytes(run: Path, *folders: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes() for name in folders for path in sorted((run / name).glob("*"))
    }


def generated(run: Path) -> np.ndarray:
    """Every sample of a run, in order, uint8 (n, C, H, W)."""
    tars = sorted((run / "samples").glob("*.tar"))
    return np.stack([pixels for tar in tars for _, _, pixels in read_generated(tar)])


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


def test_only_batches_with_missing_samples_are_generated(
    demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(run: str, n: int) -> SampleJob:
        parameters = ExtractParameters(samples=n, steps=2, samples_per_tar=8)
        return sample_jobs(tmp_path / run, demo_model, checkpoint_sha256(demo_model), parameters, 2)[0]

    asked: list[list[int]] = []

    def noted(model: Any, names: Any, parameters: Any) -> Any:
        asked.append(list(names))
        return sample_pixels(model, names, parameters)

    monkeypatch.setattr("latentprint.tasks.extract.generate.sample_pixels", noted)
    assert [generate_shard(job("grown", n), "cpu") for n in (3, 7, 7)] == [3, 4, 0]
    assert asked == [[0, 1], [2, 3], [2, 3], [4, 5], [6, 7]]
    assert generate_shard(job("at-once", 7), "cpu") == 7
    assert file_bytes(tmp_path / "grown", "samples") == file_bytes(tmp_path / "at-once", "samples")


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


def planted(run: Path, digits: np.ndarray) -> list[SampleJob]:
    """Tars of 40 samples in the model's place: noisy copies of training digits 0, 3, 3, 3, 7 ... and digits unseen."""
    generator = np.random.default_rng(0)
    parameters = ExtractParameters(samples=40, samples_per_tar=16)
    jobs = sample_jobs(run, Path("nowhere"), "0" * 64, parameters, 0)
    copied = digits[[0, *[3] * 6, 7, 7, 59, *range(20, 30)]]
    noise = generator.normal(0, np.repeat([2, 20, 60], [10, 5, 5])[:, None, None], copied.shape)
    images = np.concatenate([np.clip(copied + noise, 0, 255).astype(np.uint8), digits[300:320]])
    for job in jobs:
        samples = [(job.description(i), Picture(images[i])) for i in job.names]
        write_tar(
            job.path,
            (members_of(d["generated"], {**d, "content_hash": p.content_hash}, p.png()) for d, p in samples),
        )
    return jobs


def double_loop(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    flat_a, flat_b = (x.reshape(len(x), -1).astype(np.float64) / 127.5 - 1.0 for x in (a, b))
    return np.array([[np.sqrt(((q - r) ** 2).sum()) for r in flat_b] for q in flat_a])


def test_matches_and_hits_are_those_of_a_plain_double_loop(
    prefect: None, digits: np.ndarray, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    shard(tmp_path, str(digit_files[0]), str(digit_files[1]), ShardParameters(shard_mb=40 / 512))
    jobs = planted(tmp_path, digits)
    assert all(is_valid_tar(job) for job in jobs)
    training = TrainingImages(RunDirectory(tmp_path), "pixel")
    match_samples(jobs, training, Progress("matching", 40, "samples"), RunDirectory(tmp_path).matches)
    count_reproductions(jobs, training, Progress("counting", 60, "images"))

    images = {row["sample_id"]: row for row in training.rows.to_pylist()}
    pixels = np.stack(list(distinct_training(tmp_path)))
    assert len(images) == len(pixels) == 60
    distances = double_loop(generated(tmp_path), pixels)
    within = double_loop(pixels, pixels)
    ids, hits, hits_adaptive = list(images), dict.fromkeys(images, 0), dict.fromkeys(images, 0)
    for i, match in enumerate(pq.read_table(tmp_path / "matches").to_pylist()):
        closest, second = np.argsort(distances[i])[:2]
        spacing = np.sort(within[closest])[1:51].mean()
        assert match["generated"] == sample_key(i)
        assert match["nearest_sample_id"] == ids[closest]
        measured = [match[f"{name}_distance"] for name in ("nearest", "second", "surrounding")]
        assert measured == pytest.approx([distances[i, closest], distances[i, second], spacing], rel=1e-6, abs=1e-12)
        assert match["is_copy"] == (distances[i, closest] < distances[i, second] / 3)
        assert match["is_copy_adaptive"] == (distances[i, closest] < spacing / 2)
        hits[ids[closest]] += match["is_copy"]
        hits_adaptive[ids[closest]] += match["is_copy_adaptive"]
    assert sorted(hits.values())[-3:] == [1, 2, 6]
    assert sum(hits.values()) < sum(hits_adaptive.values()) < 40

    rows = pq.read_table(tmp_path / "reproductions").to_pylist()
    assert [row["sample_id"] for row in rows] == ids
    for j, row in enumerate(rows):
        closest = int(np.argmin(distances[:, j]))
        others = np.delete(distances[closest], j).min()
        assert row["content_hash"] == images[row["sample_id"]]["content_hash"]
        assert (row["hits"], row["hits_adaptive"]) == (hits[row["sample_id"]], hits_adaptive[row["sample_id"]])
        assert row["nearest_generated"] == sample_key(closest)
        assert row["nearest_distance"] == pytest.approx(distances[closest, j], rel=1e-6)
        assert row["nearest_ratio"] == pytest.approx(distances[closest, j] / others, rel=1e-6)
        assert (row["rate_low"], row["rate_high"]) == pytest.approx(clopper_pearson(row["hits"], 40), abs=1e-9)
        bounds = (row["rate_adaptive_low"], row["rate_adaptive_high"])
        assert bounds == pytest.approx(clopper_pearson(row["hits_adaptive"], 40), abs=1e-9)

    summary = summarise(RunDirectory(tmp_path), "pixel")
    for rule, counted in (("ratio", hits), ("adaptive", hits_adaptive)):
        assert summary[rule]["n_copies"] == sum(counted.values())
        assert summary[rule]["interval_95"] == pytest.approx(clopper_pearson(sum(counted.values()), 40), abs=1e-9)
        assert summary[rule]["n_reproduced_training_images"] == sum(n > 0 for n in counted.values())


def distinct_training(run: Path) -> Iterator[np.ndarray]:
    """The training images of a run, of each content the first."""
    seen: set[bytes] = set()
    for shard_path in sorted((run / "shards").glob("train-*.tar")):
        for pixels in read_shard(shard_path):
            if pixels.tobytes() not in seen:
                seen.add(pixels.tobytes())
                yield pixels


def clopper_pearson(k: int, n: int) -> tuple[float, float]:
    """By the quantiles of the beta distribution."""
    low = 0.0 if k == 0 else float(beta.ppf(0.025, k, n - k + 1))
    return low, 1.0 if k == n else float(beta.ppf(0.975, k + 1, n - k))


def test_one_training_image_is_too_few(prefect: None, digits: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", digits[:1])
    shard(tmp_path / "run", str(tmp_path / "one.npy"))
    says = "matching needs at least two distinct training images; this run has one"
    with pytest.raises(RunError, match=says):
        len(TrainingImages(RunDirectory(tmp_path / "run"), "pixel").rows)


def test_near_duplicates_of_one_image_are_too_few(prefect: None, digits: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "twins.npy", with_twins(np.stack([digits[0]] * 5)))
    shard(tmp_path / "run", str(tmp_path / "twins.npy"))
    training = TrainingImages(RunDirectory(tmp_path / "run"), "pixel")
    assert (training.rows.num_rows, training.n_groups) == (5, 1)
    with pytest.raises(RunError, match="at least two near-duplicate groups of training images; this run has one, of 5"):
        match_samples([], training, Progress("matching", 0, "samples"), tmp_path / "matches")


def with_twins(images: np.ndarray) -> np.ndarray:
    """The images, each repeat of an earlier one changed by one grey level in 8 pixels."""
    generator, seen = np.random.default_rng(0), set[bytes]()
    changed = images.copy()
    for image in changed:
        content = image.tobytes()
        if content in seen:
            at = generator.choice(image.size, 8, replace=False)
            image.ravel()[at] = np.where(image.ravel()[at] < 255, image.ravel()[at] + 1, 254)
        seen.add(content)
    return changed


def counted_anew(run: Path, jobs: list[SampleJob]) -> dict[str, Any]:
    """Match, count, measure false copies: what ``extract`` does after generating."""
    training = TrainingImages(RunDirectory(run), "pixel")
    match_samples(jobs, training, Progress("matching", 0, "samples"), RunDirectory(run).matches)
    count_reproductions(jobs, training, Progress("counting", 0, "images"))
    measure_false_copies(jobs, training, Progress("false copies", 0, "images"))
    return summarise(RunDirectory(run), "pixel")


def test_copies_do_not_vanish_beside_near_duplicates(prefect: None, digits: np.ndarray, tmp_path: Path) -> None:
    """The same samples, with exact repeats and with repeats changed by one grey level in 8 pixels."""
    train = np.concatenate([digits[:60], *[digits[:10]] * 5])
    np.save(tmp_path / "holdout.npy", digits[100:160])
    found = {}
    for name, images in (("repeats", train), ("twins", with_twins(train))):
        np.save(tmp_path / f"{name}.npy", images)
        shard(tmp_path / name, str(tmp_path / f"{name}.npy"), str(tmp_path / "holdout.npy"))
        found[name] = counted_anew(tmp_path / name, planted(tmp_path / name, digits))
    repeats, twins = found["repeats"], found["twins"]
    assert (repeats["n_training_images"], twins["n_training_images"]) == (60, 110)
    assert repeats["n_training_groups"] == twins["n_training_groups"] == 60
    for rule in ("ratio", "adaptive"):
        for number in ("n_copies", "n_reproduced_originals"):
            assert twins[rule][number] == repeats[rule][number] > 3, (rule, number)
        assert twins[rule]["n_reproduced_training_images"] > twins[rule]["n_reproduced_originals"]
        assert twins[rule]["n_reproduced_per_1000_samples"] == repeats[rule]["n_reproduced_per_1000_samples"]
    flat = (generated(tmp_path / "twins").reshape(40, -1), with_twins(train).reshape(len(train), -1))
    second_of_all = ratio_rule(nearest(*(x.astype(np.float32) for x in flat), k=2))
    assert second_of_all.sum() < repeats["ratio"]["n_copies"] / 2
    assert answer(twins)["level"] == answer(repeats)["level"] == "counted"
    rows = pq.read_table(tmp_path / "twins" / "reproductions").to_pylist()
    groups = TrainingImages(RunDirectory(tmp_path / "twins"), "pixel").groups
    for i, row in enumerate(rows):
        alike = [other for other, group in zip(rows, groups, strict=True) if group == groups[i]]
        assert row["hits_group"] == sum(other["hits"] for other in alike)
        assert row["hits_group_adaptive"] == sum(other["hits_adaptive"] for other in alike)
    assert sum(row["hits"] for row in rows) == repeats["ratio"]["n_copies"]
    of_copied = [row for row, group in zip(rows, groups, strict=True) if group == groups[3]]
    assert len(of_copied) == 6
    assert all(row["nearest_ratio"] < 1 / 3 for row in of_copied), "the nearest ratio too is over another group"
    with Warehouse(RunDirectory(tmp_path / "twins")) as warehouse:
        (copies,) = warehouse.table("generated_copies").to_pylist()
    assert copies["n_originals"] == twins["ratio"]["n_reproduced_originals"] < copies["n_reproduced"]
    assert copies["n_copies_adaptive"] == twins["adaptive"]["n_copies"]


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


def test_false_copies_are_those_of_a_plain_double_loop(prefect: None, digits: np.ndarray, tmp_path: Path) -> None:
    train = with_twins(np.concatenate([digits[:60], digits[:10], digits[:10]]))
    near_training = with_twins(np.stack([digits[5]] * 2))[1:]
    held_out = with_twins(np.concatenate([digits[100:130], digits[100:104], digits[7:8], near_training]))
    for name, images in (("train", train), ("holdout", held_out)):
        np.save(tmp_path / f"{name}.npy", images)
    shard(tmp_path / "run", str(tmp_path / "train.npy"), str(tmp_path / "holdout.npy"))
    summary = counted_anew(tmp_path / "run", planted(tmp_path / "run", digits))
    table = pq.read_table(tmp_path / "run" / "false-copies").to_pylist()
    training = TrainingImages(RunDirectory(tmp_path / "run"), "pixel")
    held = HeldOutImages(RunDirectory(tmp_path / "run"), "pixel")
    assert (training.n_groups, held.n_groups, held.rows.num_rows) == (60, 30, 34)

    def pictures(images: TrainingImages | HeldOutImages) -> dict[str, np.ndarray]:
        return dict(zip(images.rows["sample_id"].to_pylist(), images.pixels(), strict=True))

    tars = sorted((tmp_path / "run" / "samples").glob("*.tar"))
    of_samples = {key: pixels for tar in tars for key, _, pixels in read_generated(tar)}
    queries = {**pictures(training), **pictures(held), **of_samples}
    group_of = dict(zip(training.rows["sample_id"].to_pylist(), training.groups.tolist(), strict=True))
    n_queries = {"held_out": 30, "left_out_training": 60, "generated_against_held_out": 40}
    for control, expected in n_queries.items():
        references = held if control == "generated_against_held_out" else training
        rows = [row for row in table if row["control"] == control]
        ids, images = list(pictures(references)), np.stack(list(pictures(references).values()))
        distances = double_loop(np.stack([queries[row["query"]] for row in rows]), images)
        for row, to_all in zip(rows, distances, strict=True):
            own = group_of.get(row["query"]) if control == "left_out_training" else None
            to_others = np.where(references.groups == own, np.inf, to_all) if own is not None else to_all
            closest = int(np.argmin(to_others))
            second = to_others[references.groups != references.groups[closest]].min()
            assert to_others[ids.index(row["nearest_sample_id"])] == pytest.approx(to_others[closest], rel=1e-6)
            measured = (row["nearest_distance"], row["second_distance"])
            assert measured == pytest.approx((to_others[closest], second), rel=1e-6)
            assert row["is_copy"] == (to_others[closest] < second / 3)
            assert row["is_copy_adaptive"] == (row["nearest_distance"] < row["surrounding_distance"] / 2)
        assert len({row["query"] for row in rows}) == expected
        for rule, column in (("ratio", "is_copy"), ("adaptive", "is_copy_adaptive")):
            k = sum(row[column] for row in rows)
            known = summary[rule]["false_copies"][control]
            assert (known["n"], known["k"]) == (expected, k)
            assert known["interval_95"] == pytest.approx(list(clopper_pearson(k, expected)), abs=1e-9)
    for rule in ("ratio", "adaptive"):
        known = summary[rule]["false_copies"]
        assert known["pooled"]["n"] == 130
        assert known["pooled"]["k"] == sum(known[control]["k"] for control in n_queries)
    share, f = summary["ratio"]["share"], summary["ratio"]["false_copies"]["pooled"]["share"]
    assert summary["ratio"]["excess"]["value"] == pytest.approx((share - f) / (1 - f))
    assert summary["adaptive"]["false_copies"]["pooled"]["interval_95"][1] > 0.5  # maybe most digits: no excess
    assert summary["adaptive"]["excess"] is None


def test_without_held_out_images_left_out_training_images_are_the_control(
    prefect: None, digits: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "train.npy", digits[:60])
    shard(tmp_path / "run", str(tmp_path / "train.npy"))
    summary = counted_anew(tmp_path / "run", planted(tmp_path / "run", digits))
    known = summary["ratio"]["false_copies"]
    assert known["held_out"] is known["generated_against_held_out"] is None
    assert known["pooled"] == known["left_out_training"]
    assert known["pooled"]["n"] == 60
    assert answer(summary)["level"] == "counted"


def test_matches_of_other_groups_or_of_another_holdout_are_not_kept(
    prefect: None, digits: np.ndarray, digit_files: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shard(run, str(digit_files[0]), str(digit_files[1]))
    jobs, folders = planted(run, digits), ("matches", "reproductions", "false-copies")
    counted_anew(run, jobs)
    before = file_bytes(run, *folders)
    times = {path: (run / path).stat().st_mtime_ns for path in before}
    counted_anew(run, jobs)
    assert {path: (run / path).stat().st_mtime_ns for path in before} == times

    manifest = pq.read_table(run / "manifest.parquet")
    names = manifest["sample_id"].to_pylist()
    closest = pq.read_table(run / "matches").to_pylist()[0]["nearest_sample_id"]
    copied = manifest["content_hash"].to_pylist()[names.index(closest)]
    is_one = [
        row["split"] == "train" and (row["content_hash"] == copied or i % 2 == 0)
        for i, row in enumerate(manifest.to_pylist())
    ]
    grouped = manifest.set_column(
        manifest.schema.get_field_index("near_duplicate_group"),
        manifest.schema.field("near_duplicate_group"),
        [[0 if one else None for one in is_one]],
    )
    pq.write_table(grouped, run / "manifest.parquet")
    counted_anew(run, jobs)
    now = file_bytes(run, *folders)
    assert now.keys() == before.keys()
    assert [path for path in now if now[path] == before[path]] == []

    is_kept = [row["split"] == "train" or i % 2 == 0 for i, row in enumerate(manifest.to_pylist())]
    pq.write_table(grouped.filter(is_kept), run / "manifest.parquet")
    counted_anew(run, jobs)
    control = "false-copies/part-held-out.parquet"
    assert file_bytes(run, *folders)[control] != now[control]

    pq.write_table(grouped.filter([row["split"] == "train" for row in manifest.to_pylist()]), run / "manifest.parquet")
    counted_anew(run, jobs)
    assert list(file_bytes(run, "false-copies")) == ["false-copies/part-left-out-training.parquet"]


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

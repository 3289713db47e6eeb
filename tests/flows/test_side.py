"""SIDE on a small run: what is written is what the rule says, again the same, and what is missing is said in a line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from latentprint.flows.extract import extract
from latentprint.flows.score import score
from latentprint.flows.shard import shard
from latentprint.flows.side import side
from latentprint.tasks.diffusion.checkpoint import load_denoiser
from latentprint.tasks.diffusion.surrogate import Classifier
from latentprint.tasks.doctor.checks import ParametersError
from latentprint.tasks.evidence.copies import RATIO_THRESHOLD
from latentprint.tasks.parameters import ComputeParameters, ExtractParameters, ScoreParameters, SideParameters
from latentprint.tasks.side import conclusion, guided_pixels
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.store.schemas import SIDE
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.conftest import Latentprint
from tests.flows.test_cli import run_in_process

ONE_THREAD = ComputeParameters(devices=("cpu",), threads=1)
FEW = SideParameters(clusters=4, cohesion=0.1, training_steps=20, scales=(1.0, 8.0), samples=70, steps=4)


@pytest.fixture(scope="module")
def scored(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("runs") / "scored"
    shard(run, *map(str, digit_files))
    score(run, str(checkpoint), ScoreParameters(timestep=20), ONE_THREAD)
    return run


@pytest.fixture(scope="module")
def extracted(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(scored, tmp_path_factory.mktemp("extracted") / "run"))
    extract(run, ExtractParameters(samples=48, steps=4), ONE_THREAD)
    return run


def test_side_writes_every_sample_and_sums_them_up(extracted: Path) -> None:
    result = side(extracted, FEW)
    assert json.loads((extracted / "side.json").read_text()) == result
    parts = sorted((extracted / "side").iterdir())
    assert [part.name for part in parts] == [f"part-scale-{scale}.parquet" for scale in (0.0, 1.0, 8.0)]
    n_labels, plain = result["surrogates"]["n_labels"], result["scales"][0]
    assert 2 <= n_labels <= 4
    assert result["surrogates"]["n_evaluations"] == 48 * 4
    for part, told in zip(parts, result["scales"], strict=True):
        assert pq.read_schema(part).names == SIDE.names
        rows = pq.read_table(part).to_pylist()
        assert [row["sample"] for row in rows] == list(range(70))
        for row in rows:
            assert row["is_copy"] == (row["nearest_distance"] < RATIO_THRESHOLD * row["second_distance"])
            assert row["label"] == row["sample"] % n_labels
            assert row["n_evaluations"] == 4
            assert row["n_classifier_evaluations"] == (0 if row["scale"] == 0.0 else 4)
        copies = [row["nearest_sample_id"] for row in rows if row["is_copy"]]
        assert (told["n_copies"], told["n_reproduced_training_images"]) == (len(copies), len(set(copies)))
        assert told["n_evaluations"] == 70 * 4
        assert told["reached_label_share"] == pytest.approx(np.mean([row["reached_label"] for row in rows]))
    assert plain["against_plain"] is None
    assert result["conclusion"] == conclusion(result["scales"])
    with Warehouse(RunDirectory(extracted)) as warehouse:
        counted = warehouse.query("SELECT scale, count(DISTINCT content_hash) AS n FROM side GROUP BY 1 ORDER BY 1")
    assert counted["scale"].to_pylist() == [0.0, 1.0, 8.0]
    assert min(counted["n"].to_pylist()) > 60


def test_parts_are_kept_and_made_again_to_the_byte(extracted: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(extracted, tmp_path / "run"))
    before = side(run, FEW)
    parts = sorted((run / "side").iterdir())
    content, times = [part.read_bytes() for part in parts], [part.stat().st_mtime_ns for part in parts]
    parts[2].write_bytes(b"nothing")
    assert side(run, FEW) == before
    assert [part.read_bytes() for part in parts] == content
    assert [part.stat().st_mtime_ns == time for part, time in zip(parts, times, strict=True)] == [True, True, False]
    with pytest.raises(ParametersError):  # what was found with other parameters stays until there is something else
        side(run, FEW.model_copy(update={"cohesion": 1.0}))
    assert json.loads((run / "side.json").read_text()) == before
    side(run, FEW.model_copy(update={"scales": (8.0,), "seed": 1}))
    assert sorted((run / "side").iterdir()) == [parts[0], parts[2]]
    assert parts[0].read_bytes() != content[0]


def test_a_sample_depends_on_its_number_label_and_scale_not_on_its_batch(demo_model: Path) -> None:
    model = load_denoiser(str(demo_model), "cpu")
    torch.manual_seed(0)
    classifier = Classifier(model.state_shape, 5).eval().requires_grad_(False)
    names, labels = [0, 1, 2, 3], torch.tensor([0, 1, 2, 3])
    parameters = SideParameters(steps=5)

    def pixels(chosen: list[int], scale: float = 8.0, seed: int = 0) -> np.ndarray:
        own = parameters.model_copy(update={"seed": seed})
        return guided_pixels(model, classifier, labels[chosen], [names[i] for i in chosen], scale, own)[0].astype(int)

    together = pixels([0, 1, 2, 3])
    for other in (np.concatenate([pixels([i]) for i in range(4)]), pixels([3, 2, 1, 0])[::-1]):
        assert np.abs(together - other).max() <= 1  # float32 networks round by their batch
        assert (together != other).mean() < 0.01
    for other in (pixels([0, 1, 2, 3], scale=0.0), pixels([0, 1, 2, 3], seed=1)):
        assert (np.abs(together - other).reshape(4, -1).max(axis=1) > 1).all()


def test_without_generated_images_one_line_says_to_extract(
    scored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("side", "--run", str(scored), "--device", "cpu", "--threads", "1")
    code, error = run_in_process(monkeypatch, capsys, *options)
    line = f"latentprint: {scored}: no generated images yet; run 'latentprint extract --run {scored}' first"
    assert (code, error.splitlines()) == (2, [line])
    assert not (scored / "side").exists()


def test_the_command_prints_a_table_and_one_conclusion(extracted: Path, latentprint: Latentprint) -> None:
    options = ("--clusters", 4, "--cohesion", 0.1, "--training-steps", 20, "--samples", 70, "--steps", 4)
    done = latentprint("side", "--run", extracted, *options, "--scales", "1,8", "--device", "cpu", "--threads", 1)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["scale", "plain", "1", "8"]
    assert len(lines) == 6
    assert lines[5] == json.loads((extracted / "side.json").read_text())["conclusion"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clusters": 48}, "--clusters 48: there are 48 generated images to cluster"),
        ({"cohesion": 1.0}, "--cohesion 1: 0 of 4 clusters are as cohesive"),
        ({"steps": 1001}, "--steps 1001: the checkpoint's schedule has 1000 timesteps"),
    ],
)
def test_what_cannot_be_done_is_refused(extracted: Path, changes: dict[str, float], says: str) -> None:
    with pytest.raises(ParametersError, match=says):
        side(extracted, FEW.model_copy(update=changes))
    with pytest.raises(RunError, match="not a run directory"):
        side(extracted / "nowhere", FEW)


def row(scale: float, distinct: int, interval: tuple[float, float], share: tuple[float, float]) -> dict[str, object]:
    against = {
        "n_reproduced_difference": distinct - 50,
        "n_reproduced_difference_interval": interval,
        "share_difference_interval": share,
    }
    return {"scale": scale, "n_reproduced_training_images": distinct, "n_samples": 1024, "against_plain": against}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [row(1.0, 70, (5.2, 34.8), (0.1, 0.2)), row(4.0, 80, (-1.0, 61.0), (0.1, 0.2))],
            "Gain: at scale 1 guidance extracts 70 distinct training images against 50 plainly in 1,024 samples "
            "(+20, interval +5 to +35).",
        ),
        (
            [row(1.0, 45, (-20.0, 10.0), (0.01, 0.2)), row(4.0, 40, (-30.0, 10.0), (-0.1, 0.2))],
            "A larger share of copies at scale 1, but no gain in distinct images is shown: at best 45 distinct",
        ),
        (
            [row(1.0, 45, (-20.0, 10.0), (-0.1, 0.2))],
            "No gain from guidance is shown: at best, scale 1, 45 distinct",
        ),
    ],
)
def test_the_conclusion_follows_the_lower_bounds(rows: list[dict[str, object]], says: str) -> None:
    plain = {"scale": 0.0, "n_reproduced_training_images": 50, "n_samples": 1024, "against_plain": None}
    assert conclusion([plain, *rows]).startswith(says)

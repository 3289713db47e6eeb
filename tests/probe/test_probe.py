"""A probe of models in closed form, whose copies are known one by one; folders that continue, and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from latentprint.flows.cli import main as cli
from latentprint.flows.probe import probe
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.doctor.checks import ParametersError
from latentprint.tasks.evidence.embeddings import pixel
from latentprint.tasks.extract.generate import read_generated
from latentprint.tasks.parameters import ComputeParameters, ProbeParameters
from latentprint.tasks.store.checksums import read_checksums
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.store.schemas import SUSPECTS
from tests.extract.runs import file_bytes
from tests.flows.test_cli import run_in_process
from tests.pages.test_html import Page
from tests.probe.mixtures import KNOWN

ONE_THREAD = ComputeParameters(devices=("cpu",), threads=1)
FEW = ProbeParameters(samples=300, steps=20)
SPIKED, INNOCENT, OTHER = (f"tests.probe.mixtures:{name}" for name in ("spiked", "innocent", "another_innocent"))


@pytest.fixture(scope="module")
def probed(prefect: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that gives two images back, against one that gives none."""
    out = tmp_path_factory.mktemp("probes") / "spiked"
    probe(SPIKED, out, FEW, ONE_THREAD, INNOCENT)
    return out


def is_copy(out: Path) -> dict[str, bool]:
    """Key -> is this generated image one of the two that the model knows?"""
    samples = [sample for tar in sorted((out / "samples").glob("*.tar")) for sample in read_generated(tar)]
    features = pixel(np.stack([pixels for _, _, pixels in samples]))
    nearest = np.linalg.norm(features[:, None] - KNOWN.numpy()[None], axis=2).min(axis=1)
    return {key: bool(distance < 0.5) for (key, _, _), distance in zip(samples, nearest, strict=True)}


def test_the_steepest_copies_are_repeats_and_every_copy_ranks_above_every_other_image(probed: Path) -> None:
    truth, rows = is_copy(probed), pq.read_table(probed / "suspects.parquet", schema=SUSPECTS).to_pylist()
    assert 30 <= sum(truth.values()) <= 90  # 60 of 300 are expected
    assert [row["rank"] for row in rows] == list(range(1, 301))
    assert [truth[row["generated"]] for row in rows] == [True] * sum(truth.values()) + [False] * (
        300 - sum(truth.values())
    )
    assert [row["is_repeat"] for row in rows] == [True] * 15 + [False] * 285  # one in twenty, at most
    for row in rows:
        assert row["nearest_generated"] != row["generated"]
        assert row["timestep"] == 50


def test_the_conclusion_counts_the_images_of_both(probed: Path) -> None:
    summary = json.loads((probed / "probe.json").read_text())
    model, control = summary["repeats"]["model"], summary["repeats"]["control"]
    assert (model["k"], control["k"], model["n"], control["n"]) == (15, 0, 300, 300)
    assert (model["n_steep"], control["n_near"]) == (15, 0)
    assert model["n_near"] >= 15
    for each in (model, control):
        assert each["n_telling"] == 300 - each["n_blank"]
    assert summary["verdict"]["level"] == "repeats_itself"
    assert set(summary["checkpoints"]) == {"model", "control"}


def test_a_model_that_knows_nothing_is_not_accused(prefect: None, tmp_path: Path) -> None:
    summary = probe(OTHER, tmp_path / "probe", FEW, ONE_THREAD, INNOCENT)
    assert summary["verdict"]["level"] == "not_shown"


def test_without_a_control_it_only_ranks(probed: Path, tmp_path: Path) -> None:
    summary = probe(SPIKED, tmp_path / "probe", FEW, ONE_THREAD)
    assert summary["verdict"]["level"] == "ranked_only"
    assert summary["repeats"] is None
    rows = pq.read_table(tmp_path / "probe" / "suspects.parquet")
    assert rows["is_repeat"].null_count == len(rows)
    known = pq.read_table(probed / "suspects.parquet")
    assert rows["generated"].to_pylist() == known["generated"].to_pylist()
    assert "Nothing is concluded" in (tmp_path / "probe" / "probe.html").read_text()


def test_a_probe_continues_and_makes_damaged_files_again_to_the_byte(probed: Path) -> None:
    before = file_bytes(probed)
    tar, part = probed / "samples" / "samples-000001.tar", probed / "control" / "scores" / "part-samples-000000.parquet"
    tar.write_bytes(tar.read_bytes()[:-2000])
    part.unlink()
    (probed / "suspects.parquet").unlink()
    untouched = (probed / "samples" / "samples-000000.tar").stat().st_mtime_ns
    probe(SPIKED, probed, FEW, ONE_THREAD, INNOCENT)
    assert file_bytes(probed) == before
    assert (probed / "samples" / "samples-000000.tar").stat().st_mtime_ns == untouched


def test_its_files_are_recorded(probed: Path) -> None:
    assert set(read_checksums(RunDirectory(probed))) == {
        "probe.json",
        "suspects.parquet",
        "samples/samples-000000.tar",
        "samples/samples-000001.tar",
        "scores/part-samples-000000.parquet",
        "scores/part-samples-000001.parquet",
    }


def test_a_probe_is_no_run(probed: Path) -> None:
    with pytest.raises(RunError, match="not a run directory"):
        RunDirectory(probed).read_record()


def test_another_probe_or_a_run_is_not_written_over(probed: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="samples: 300 there, 400 now"):
        probe(SPIKED, probed, ProbeParameters(samples=400, steps=20), ONE_THREAD, INNOCENT)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").touch()
    with pytest.raises(RunError, match="latentprint did not make it"):
        probe(SPIKED, tmp_path / "photos", FEW, ONE_THREAD)


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ("two_classes", "it knows 2 classes, the model no: name a control of the same classes"),
        ("noisier", "its noise is .* name a control of the same noise schedule"),
    ],
)
def test_a_control_that_cannot_be_compared_is_refused(tmp_path: Path, control: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"--control .*{control}: .*{message}"):
        probe(SPIKED, tmp_path / "probe", FEW, ONE_THREAD, f"tests.probe.mixtures:{control}")
    assert not (tmp_path / "probe").exists()


def test_too_few_samples_for_a_conclusion_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParametersError, match="--samples 99: --control needs at least 100"):
        probe(SPIKED, tmp_path / "probe", ProbeParameters(samples=99, steps=5), ONE_THREAD, INNOCENT)
    assert not (tmp_path / "probe").exists()


def test_a_control_that_is_the_model_or_makes_other_images_is_refused(demo_model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="this is the model itself"):
        probe(SPIKED, tmp_path / "probe", FEW, ONE_THREAD, SPIKED)
    with pytest.raises(CheckpointError, match=r"--control .*: it makes images of 28 x 28 .* the model of 4 x 4"):
        probe(SPIKED, tmp_path / "probe", FEW, ONE_THREAD, str(demo_model))
    assert not (tmp_path / "probe").exists()


def test_the_page_shows_suspects_beside_their_nearest_and_keeps_names_text(probed: Path) -> None:
    page = Page((probed / "probe.html").read_text())
    assert "The model repeats itself" in page.text
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert "Nearest other generated image to rank 1" in [picture["alt"] for picture in pictures]
    assert all(str(picture["src"]).startswith("data:image/png;base64,") for picture in pictures)


def test_the_command_prints_suspects_and_says_what_is_not_concluded(
    prefect: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--out", str(tmp_path / "p"), "--samples", "60", "--steps", "5", "--device", "cpu")
    monkeypatch.setattr("sys.argv", ["latentprint", "probe", "--model", SPIKED, *asked])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("   1  0000000")
    assert lines[-3] == "Nothing is concluded: 60 generated images are ranked, and a rank is no proof."
    assert lines[-1] == f"page: {tmp_path / 'p' / 'probe.html'}"


def test_a_control_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--model", SPIKED, "--control", str(tmp_path / "nowhere"), "--out", str(tmp_path / "p"))
    code, error = run_in_process(monkeypatch, capsys, "probe", *asked)
    assert (code, error.count("\n")) == (2, 1)
    assert "nowhere" in error

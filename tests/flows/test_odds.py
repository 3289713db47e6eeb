"""The odds of a run's first images: what is written, what it cost, and that it can be had again."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor

from latentprint.flows.audit import audit
from latentprint.flows.odds import odds
from latentprint.tasks import odds as module
from latentprint.tasks.diffusion.checkpoint import LoadedModel, _Network, load_denoiser
from latentprint.tasks.diffusion.denoiser import Denoiser
from latentprint.tasks.diffusion.noise import generator_for
from latentprint.tasks.diffusion.splitting import N_REPEATS, along_path, draw_prior, estimate_odds, ratio_margin
from latentprint.tasks.doctor.checks import ParametersError
from latentprint.tasks.evidence.copies import RATIO_THRESHOLD
from latentprint.tasks.extract.references import TrainingImages
from latentprint.tasks.odds import Sampler
from latentprint.tasks.parameters import ComputeParameters, OddsParameters, ScoreParameters
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.schemas import ODDS
from latentprint.tasks.warehouse.queries import QueryError
from tests.conftest import Latentprint
from tests.diffusion.oracles import FiniteData, draw, linear_ddpm
from tests.diffusion.test_checkpoint import autoencoder_of, plain_unet, save

FEW = OddsParameters(top=2, steps=3, prior=24, chains=4, chain_length=3, levels=3)


@pytest.fixture(scope="module")
def audited(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("runs") / "audited"
    one_thread = ComputeParameters(devices=("cpu",), threads=1)
    audit(str(checkpoint), str(digit_files[0]), run, str(digit_files[1]), ScoreParameters(timestep=20), one_thread)
    return run


def test_odds_of_the_first_ranks_are_written_with_what_they_cost(audited: Path) -> None:
    rows = odds(audited, FEW)
    table = pq.read_table(RunDirectory(audited).odds)
    assert table.schema.equals(ODDS, check_metadata=True)
    assert table.to_pylist() == rows
    ranking = pq.read_table(audited / "tables" / "ranking.parquet").to_pylist()[:2]
    assert [row["sample_id"] for row in rows] == [row["sample_id"] for row in ranking]
    for row in rows:
        assert row["n_evaluations_prior"] == 3 * 24 * (1 + N_REPEATS)
        a_level = 3 * 4 * (3 - 1)  # steps x chains x moves, of the pilot or a repeat that is still alive
        assert row["n_evaluations"] <= a_level * (1 + N_REPEATS) * (row["n_levels"] - 1)
        assert row["n_evaluations"] % a_level == 0
        assert row["log_probability_high"] <= 0.0
        assert (row["log_probability_low"] is None) == row["one_in"].startswith("rarer than")
    assert odds(audited, FEW) == rows


def test_chosen_images_are_named_or_asked_for(audited: Path) -> None:
    ranking = pq.read_table(audited / "tables" / "ranking.parquet").to_pylist()
    names = [ranking[i]["sample_id"] for i in (41, 7)]
    by_name = odds(audited, FEW.model_copy(update={"images": ",".join(names)}))
    assert [row["rank"] for row in by_name] == [8, 42]
    by_query = odds(audited, FEW.model_copy(update={"images": "FROM ranking WHERE rank IN (8, 42)"}))
    assert by_query == by_name
    manifest = pq.read_table(audited / "manifest.parquet").to_pylist()
    repeat = next(row for row in manifest if row["occurrence"] == 2)
    (row,) = odds(audited, FEW.model_copy(update={"images": repeat["sample_id"]}))
    assert row["content_hash"] == repeat["content_hash"]
    held_out = next(row["sample_id"] for row in manifest if row["split"] == "holdout")
    for images, says in (
        ("train/nowhere", "--images train/nowhere: the run has no image of this name"),
        (f"{names[0]}, {held_out}", f"{held_out} has no rank"),
        ("FROM ranking WHERE rank < 0", "this names no image"),
        ("SELECT rank FROM ranking", "a column sample_id is needed"),
    ):
        with pytest.raises(QueryError, match=re.escape(says)):
            odds(audited, FEW.model_copy(update={"images": images}))


def test_every_distinct_training_image_is_a_reference_once(audited: Path) -> None:
    training = TrainingImages(RunDirectory(audited), "pixel")
    names, images = (
        training.rows["content_hash"].to_pylist(),
        torch.from_numpy(np.stack(list(training.pixels()))) / 127.5,
    )
    assert len(names) == len(set(names)) == 60  # of 80, 20 are repeats; the 40 held out are none
    assert images.shape == (60, 1, 8, 8)
    distances = torch.cdist(images.flatten(1), images.flatten(1)) + 9.0 * torch.eye(60)
    assert float(distances.min()) > 0.1


def test_the_command_prints_json_and_refuses_what_cannot_be(audited: Path, latentprint: Latentprint) -> None:
    options = ("--steps", 3, "--prior", 24, "--chains", 4, "--levels", 2, "--device", "cpu", "--threads", 1)
    done = latentprint("odds", "--run", audited, "--top", 1, *options, "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["odds"]
    assert row["rank"] == 1
    assert row["log_probability"] is None or row["log_probability"] > -math.inf
    refused = latentprint("odds", "--run", audited, "--chains", 24, "--prior", 24, "--device", "cpu")
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1] == "latentprint: --chains 24: fewer than --prior 24 are needed"


# Class-conditional and latent models


def audited_with(checkpoint: Path, images: np.ndarray, labels: np.ndarray, folder: Path) -> Path:
    np.savez(folder / "train.npz", images=images, labels=labels)
    one_thread = ComputeParameters(devices=("cpu",), threads=1)
    audit(str(checkpoint), str(folder / "train.npz"), folder / "run", None, ScoreParameters(timestep=20), one_thread)
    return folder / "run"


def test_odds_of_a_class_conditional_checkpoint_are_those_of_each_images_own_class(
    prefect: None, digits: np.ndarray, tmp_path: Path
) -> None:
    checkpoint = save(tmp_path / "model", unet=lambda: plain_unet(num_class_embeds=3), scheduler=DDIMScheduler)
    labels = np.arange(12) % 3
    run = audited_with(checkpoint, digits[:12], labels, tmp_path)
    rows = odds(run, FEW.model_copy(update={"top": 5}))
    own = {f"{i:08d}": int(label) for i, label in enumerate(labels)}
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["label"] for row in rows] == [own[row["sample_id"].rpartition("/")[2]] for row in rows]
    assert len({row["label"] for row in rows}) > 1
    assert all(f"samples of class {row['label']} (95%" in row["one_in"] for row in rows)
    # the first class's plain samples, and each image's chains, are of that class
    first = rows[0]
    sampler = Sampler(load_denoiser(str(checkpoint), "cpu"), FEW.steps, first["label"])
    generator = generator_for(FEW.seed, f"odds, prior of class {first['label']}")
    prior = draw_prior(sampler, (1, 8, 8), FEW.prior, generator, lambda: sampler.n_evaluations)
    training = TrainingImages(RunDirectory(run), "pixel")
    names = training.rows["content_hash"].to_pylist()
    pictures = torch.from_numpy(np.stack(list(training.pixels()))).float() / 127.5 - 1.0
    found = module._row(sampler, prior, pictures, names.index(first["content_hash"]), first, FEW)
    assert found["log_probability_high"] == pytest.approx(first["log_probability_high"])
    assert pq.read_table(RunDirectory(run).odds).schema.equals(ODDS, check_metadata=True)


def test_odds_of_a_class_are_not_those_of_all_classes() -> None:
    """Class 0 knows two images, class 1 a third: the first comes out in half of the samples of its class."""
    schedule, images = linear_ddpm(), (0.7 * draw(6, 3, 1, 2, 2)).clamp(-1, 1)
    of_class = [FiniteData(schedule, images[:2].flatten(1)), FiniteData(schedule, images[2:].flatten(1))]

    def network(x: Tensor, t: Tensor, class_labels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=of_class[int(class_labels[0])](x, float(t[0])))

    denoiser = Denoiser(_Network(network), schedule, dtype=torch.float64)
    model = LoadedModel(denoiser, schedule, (1, 2, 2), 2, torch.device("cpu"))
    level = along_path(ratio_margin(images[0], images[1:], RATIO_THRESHOLD))

    def probability(label: int) -> float:
        sampler = Sampler(model, 20, label)
        arguments = dict(generator=generator_for(0, "odds"), counter=lambda: sampler.n_evaluations)
        prior = draw_prior(sampler, (1, 2, 2), 64, **arguments)
        return math.exp(estimate_odds(sampler, level, prior, n_chains=8, max_levels=2, **arguments).log_probability)

    assert probability(0) == pytest.approx(0.5, abs=0.1)
    assert probability(1) == 0.0


def test_samples_of_a_latent_checkpoint_are_decoded_before_they_are_matched(
    prefect: None, digits: np.ndarray, tmp_path: Path
) -> None:
    checkpoint = save(
        tmp_path / "model",
        unet=lambda: plain_unet(2),
        scheduler=DDIMScheduler,
        vae=lambda: autoencoder_of(AutoencoderKL),
    )
    model = load_denoiser(str(checkpoint), "cpu")
    sampler = Sampler(model, 3)
    paths = sampler(draw(1, 2, 2, 8, 8).float())
    assert paths.shape == (2, 3, 1, 16, 16)
    with torch.inference_mode():
        codes = module.ddim_path(model.denoiser, draw(1, 2, 2, 8, 8).float(), model.schedule, 3, 5, clip=False)
        torch.testing.assert_close(paths[:, -1], model.decode(codes[:, -1]))
        assert float(codes.abs().max()) > 1.0  # codes are no pixels, and are not cut off like them
    images = np.kron(digits[:6], np.ones((2, 2), np.uint8)).astype(np.uint8)
    run = audited_with(checkpoint, images, np.zeros(6, int), tmp_path)
    rows = odds(run, FEW)
    assert [row["label"] for row in rows] == [None, None]
    assert all(row["n_evaluations_prior"] == 3 * 24 * (1 + N_REPEATS) for row in rows)


def test_more_plain_samples_than_memory_holds_are_refused(audited: Path) -> None:
    with pytest.raises(ParametersError, match=r"--prior 1000000000: plain samples would take .* lower --prior"):
        odds(audited, FEW.model_copy(update={"prior": 10**9}))

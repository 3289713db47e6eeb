"""The score columns of a batch against the formulas that define them, on a small trained network."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from pydantic import ValidationError
from scipy.stats import spearmanr

from latentprint.tasks.compute.batch_size import PROBE_BATCH, probe
from latentprint.tasks.datasets.sources import open_source
from latentprint.tasks.diffusion.checkpoint import LoadedModel, load_denoiser
from latentprint.tasks.diffusion.density import log_density
from latentprint.tasks.diffusion.frequencies import low_share
from latentprint.tasks.diffusion.membership import BASELINES
from latentprint.tasks.diffusion.names import BASELINE_NAMES, EstimatorName, Grid
from latentprint.tasks.diffusion.noise import gaussian, generator_for
from latentprint.tasks.diffusion.sampling import from_pixels
from latentprint.tasks.diffusion.schedule import ContinuousVP, noise_spaced_timesteps
from latentprint.tasks.diffusion.tangents import bits_of, require_bits
from latentprint.tasks.evidence.calibration import NORMS, Calibration, calibrate, matrix
from latentprint.tasks.evidence.comparison import HIGHER_IS_EASIER
from latentprint.tasks.parameters import ScoreParameters
from latentprint.tasks.report.evidence import evaluations
from latentprint.tasks.score.measure import Columns, measure
from latentprint.tasks.store.schemas import OPTIONAL_SCORES, SCORES
from tests.diffusion.test_checkpoint import autoencoder_of, plain_unet, save
from tests.diffusion.tf32 import emulated_tf32

HASHES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LoadedModel:
    return load_denoiser(str(checkpoint), "cpu")


@pytest.fixture(scope="module")
def pixels(digits: np.ndarray) -> np.ndarray:
    return digits[:3, None]


def test_columns_are_what_the_formulas_say(model: LoadedModel, pixels: np.ndarray) -> None:
    delta = 0.5
    columns = measure(model, pixels, HASHES, ScoreParameters(timestep=20, delta=delta), 64)
    x = from_pixels(torch.from_numpy(pixels)).double()
    axes = gaussian([generator_for(0, name) for name in HASHES], (1, 64))[:, 0].double()
    q = axes / torch.linalg.vector_norm(axes, dim=1, keepdim=True)
    with torch.inference_mode():
        eps = model.denoiser(x, 20.0).flatten(1)
        neighbour = model.denoiser(x + delta * q.reshape(x.shape), 20.0).flatten(1)
    tangent = (neighbour - eps) / delta
    step = model.schedule.step(20, 21)
    expected = {
        "log_growth": torch.log(torch.linalg.vector_norm(step.a * q + step.b * tangent, dim=1)),
        "eps_norm": torch.linalg.vector_norm(eps, dim=1),
        "sima": eps.pow(4).sum(1),
        "neighbour_eps_norm": torch.linalg.vector_norm(neighbour, dim=1),
        "crowding": 64 * (q * tangent).sum(1),
        "tangent_norm": torch.linalg.vector_norm(tangent, dim=1),
        "tangent_cosine": torch.nn.functional.cosine_similarity(tangent, eps, dim=1),
        "eps_low_share": low_share(eps.reshape(x.shape)),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(columns[name], values.numpy(), rtol=2e-4, atol=2e-6, err_msg=name)
    assert columns["log_growth_se"] == [None] * 3
    assert columns["n_evaluations"] == [2] * 3


@pytest.mark.parametrize(("estimator", "n_evaluations"), [("edge", 2), ("volume", 2), ("jvp", 3)])
def test_the_axis_along_eps_is_no_draw_and_costs_no_more(
    estimator: EstimatorName, n_evaluations: int, model: LoadedModel, pixels: np.ndarray
) -> None:
    parameters = ScoreParameters(timestep=20, axis="eps", estimator=estimator)
    columns = measure(model, pixels, HASHES, parameters, 64)
    assert columns == measure(model, pixels, ["x", "y", "z"], parameters.model_copy(update={"seed": 1}), 64)
    assert columns["n_evaluations"] == [n_evaluations] * 3
    drawn = measure(model, pixels, HASHES, ScoreParameters(timestep=20, estimator=estimator), 64)
    np.testing.assert_allclose(columns["eps_norm"], drawn["eps_norm"], rtol=1e-5)
    assert not np.allclose(columns["log_growth"], drawn["log_growth"], rtol=0.1)
    rows = pa.table({"n_axes": columns["n_axes"], "n_steps": columns["n_steps"]})
    assert evaluations(rows, parameters.model_dump())["log_growth"] == n_evaluations


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"axes": 2}, "--axis eps is one axis and not drawn: leave out --axes and --repeats"),
        ({"repeats": 2}, "leave out --axes and --repeats"),
        ({"estimator": "trace"}, "--axis eps goes with --estimator edge, volume, jvp, not trace"),
    ],
)
def test_the_axis_along_eps_is_one(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ScoreParameters(axis="eps", **options)


def test_a_default_that_earlier_runs_did_not_know_goes_unsaid() -> None:
    assert not {"axis", "labels"} & ScoreParameters().model_dump(mode="json").keys()
    chosen = ScoreParameters(axis="eps", labels={"cat": 1}).model_dump(mode="json")
    assert (chosen["axis"], chosen["labels"]) == ("eps", {"cat": 1})
    assert ScoreParameters(**chosen).model_dump(mode="json") == chosen


@pytest.mark.parametrize("estimator", ["edge", "volume", "jvp", "trace", "exact"])
def test_every_estimator_gives_the_table_its_columns(
    estimator: EstimatorName, model: LoadedModel, pixels: np.ndarray
) -> None:
    parameters = ScoreParameters(timestep=20, axes=2, estimator=estimator)
    columns = measure(model, pixels, HASHES, parameters, 64)
    written_elsewhere = {"sample_id", "content_hash", "split", "shard", "dime", "fused"}
    assert columns.keys() == ({*SCORES.names} - written_elsewhere) | {"eps_low_share"}
    assert columns["n_axes"] == [64 if estimator == "exact" else 2] * 3
    assert (columns["delta"][0] is None) == (estimator in ("jvp", "trace", "exact"))


@pytest.fixture(scope="module")
def at_100(model: LoadedModel, digits: np.ndarray) -> Calibration:
    """Calibrated to timesteps 20 and 100."""
    images, names = digits[:40, None], [str(i) for i in range(40)]
    return calibrate(
        {
            t: {
                name: np.array(values, dtype=float)
                for name, values in measure(model, images, names, ScoreParameters(timestep=t), 64).items()
                if isinstance(values[0], float)
            }
            for t in (20, 100)
        },
        np.arange(40) % 2 == 0,
        second=True,
    )


@pytest.mark.parametrize("grid", ["ddim", "continuous"])
def test_norms_at_the_second_timestep_are_those_of_a_run_from_there_for_one_evaluation(
    grid: Grid, model: LoadedModel, pixels: np.ndarray, at_100: Calibration
) -> None:
    assert at_100.second is not None
    first, second = at_100.timestep, at_100.second.timestep
    assert {first, second} == {20, 100}
    parameters = ScoreParameters(timestep=first, grid=grid)
    columns = measure(model, pixels, HASHES, parameters, 2, at_100)
    there = measure(model, pixels, HASHES, parameters.at(second), 64)
    for name in ("eps_norm", "sima"):
        np.testing.assert_allclose(columns[f"second_{name}"], there[name], rtol=1e-5)
    assert columns["second_timestep"] == [second] * 3
    assert columns["n_evaluations"] == [3] * 3
    assert columns.keys() <= {*SCORES.names, *OPTIONAL_SCORES.names}
    norms = [{name: np.array(found[name]) for name in ("eps_norm", "sima")} for found in (columns, there)]
    expected = at_100.second.fused_norms.of(matrix(NORMS, *norms))
    np.testing.assert_allclose(columns["fused_norms"], expected, rtol=1e-5, atol=1e-5)


def test_fused_norms_do_not_depend_on_the_batch(model: LoadedModel, digits: np.ndarray, at_100: Calibration) -> None:
    images, names, parameters = digits[:12, None], [str(i) for i in range(12)], ScoreParameters(timestep=20)
    together = measure(model, images, names, parameters, 64, at_100)["fused_norms"]
    alone = [
        measure(model, images[i : i + 1], names[i : i + 1], parameters, 2, at_100)["fused_norms"][0] for i in range(12)
    ]
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_what_does_not_fit_into_memory_is_halved_and_gives_the_same_rows(
    most: int, model: LoadedModel, pixels: np.ndarray, at_100: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = ScoreParameters(timestep=20, axes=2, reversibility=3, density=2, baselines=BASELINE_NAMES)
    whole = measure(model, pixels, HASHES, parameters, 64, at_100)
    network, sizes = model.denoiser.network.module, set()

    def small(x: torch.Tensor, t: torch.Tensor) -> object:
        if len(x) > most:
            raise torch.OutOfMemoryError
        sizes.add(len(x))
        return network(x, t)

    monkeypatch.setattr(model.denoiser.network, "module", small)
    halved = measure(model, pixels, HASHES, parameters, 64, at_100)
    assert max(sizes) == min(most, 3)  # an image with its two neighbours
    assert halved.keys() == whole.keys()
    for name, values in whole.items():
        if isinstance(values[0], float):
            np.testing.assert_allclose(halved[name], values, rtol=2e-4, atol=1e-5, err_msg=name)
        else:
            assert halved[name] == values, name
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        measure(model, pixels, HASHES, parameters, 64)


def test_the_probe_for_memory_gives_a_class_conditional_network_a_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path, unet=lambda: plain_unet(num_class_embeds=3), scheduler=DDIMScheduler)
    model = load_denoiser(str(folder), "cpu")
    network, classes = model.denoiser.network.module, []

    def noted(x: torch.Tensor, t: torch.Tensor, class_labels: torch.Tensor) -> object:
        classes.append(class_labels.tolist())
        return network(x, t, class_labels)

    monkeypatch.setattr(model.denoiser.network, "module", noted)
    probe(model)
    assert classes == [[0] * PROBE_BATCH]
    assert model.denoiser.label is None


def test_dime_on_the_continuous_grid_conditions_its_probes_as_its_base_pass(
    model: LoadedModel, pixels: np.ndarray
) -> None:
    parameters = ScoreParameters(timestep=20, grid="continuous", baselines=("dime_2", "loss"))
    columns = measure(model, pixels, HASHES, parameters, 64)
    x, grid = from_pixels(torch.from_numpy(pixels)), ContinuousVP()

    def noise(name: str) -> list[torch.Generator]:
        return [generator_for(0, f"{name} {content_hash}") for content_hash in HASHES]

    with torch.inference_mode():
        dime = BASELINES["dime_2"](model.denoiser, x, grid, noise("dime_2"))
        loss = BASELINES["loss"](model.denoiser, x, model.schedule, noise("loss"))
    np.testing.assert_allclose(columns["dime_2"], dime.numpy(), rtol=1e-4)
    np.testing.assert_allclose(columns["loss"], loss.numpy(), rtol=1e-5)


def test_repeats_are_averaged_and_give_the_error(model: LoadedModel, pixels: np.ndarray) -> None:
    parameters = ScoreParameters(timestep=20, delta=0.5)
    repeated = measure(model, pixels, HASHES, parameters.model_copy(update={"repeats": 40}), 64)
    exact = measure(model, pixels, HASHES, parameters.model_copy(update={"estimator": "exact"}), 64)
    assert repeated["n_evaluations"] == [80] * 3
    # one axis is one of 64 on average: the mean over draws is near the exact growth's share of an axis
    distance = (np.array(repeated["log_growth"]) - np.array(exact["log_growth"]) / 64) / repeated["log_growth_se"]
    assert np.abs(distance).max() < 6.0


def test_every_baseline_has_its_column_and_shares_the_base_pass(model: LoadedModel, pixels: np.ndarray) -> None:
    parameters = ScoreParameters(timestep=20, baselines=BASELINE_NAMES)
    columns = measure(model, pixels, HASHES, parameters, 64)
    alone = measure(model, pixels, HASHES, ScoreParameters(timestep=20), 64)
    assert set(BASELINE_NAMES) - {"sima"} <= set(OPTIONAL_SCORES.names)
    assert columns["sima"] == pytest.approx(alone["sima"])
    # loss 1, pia 2, pian 2, SecMI 12, FLIPD 2; DIME's 1, 10 and 30 probes share the base pass
    assert columns["n_evaluations"][0] - alone["n_evaluations"][0] == 1 + 2 + 2 + 12 + 2 + 1 + 10 + 30
    x, noise = from_pixels(torch.from_numpy(pixels)), [generator_for(0, f"secmi {name}") for name in HASHES]
    with torch.inference_mode():
        expected = BASELINES["secmi"](model.denoiser, x, model.schedule, noise)
    np.testing.assert_allclose(columns["secmi"], expected.numpy(), rtol=1e-6)


def test_reversibility_shrinks_with_the_step(model: LoadedModel, pixels: np.ndarray) -> None:
    errors = [
        np.array(measure(model, pixels, HASHES, ScoreParameters(timestep=20, reversibility=n), 64)["reversibility_rms"])
        for n in (25, 100)
    ]
    assert (errors[1] < 0.6 * errors[0]).all()


@pytest.mark.parametrize("grid", ["ddim", "continuous"])
def test_the_log_density_is_a_column_that_changes_no_other(grid: Grid, model: LoadedModel, pixels: np.ndarray) -> None:
    parameters = ScoreParameters(timestep=20, grid=grid, baselines=("loss",), reversibility=3)
    without = measure(model, pixels, HASHES, parameters, 64)
    asked = parameters.model_copy(update={"density": 6, "density_probes": 3})
    columns = measure(model, pixels, HASHES, asked, 64)
    assert columns.keys() - without.keys() == {"log_density", "log_density_se"}
    for name in without.keys() - {"n_evaluations"}:
        assert columns[name] == without[name], name
    assert columns["n_evaluations"][0] - without["n_evaluations"][0] == 6 + 7 * 4
    steps, x = model.grid(grid), from_pixels(torch.from_numpy(pixels))
    with torch.inference_mode():
        exact = log_density(model.denoiser, x, steps, noise_spaced_timesteps(steps, 6))
    by_trace = measure(model, pixels, HASHES, asked.model_copy(update={"density_probes": 0}), 64)
    np.testing.assert_allclose(by_trace["log_density"], exact.log_density.numpy(), rtol=1e-4)
    assert by_trace["log_density_se"] == [0.0] * 3
    distances = (np.array(columns["log_density"]) - by_trace["log_density"]) / columns["log_density_se"]
    assert np.abs(distances).max() < 10.0  # Student's t with two degrees of freedom


def test_the_methods_table_knows_what_a_log_density_costs_alone() -> None:
    rows = pa.table({"n_axes": [3], "n_steps": [2]})
    asked = ScoreParameters(axes=3, steps=2, repeats=2, density=6, density_probes=3)
    assert evaluations(rows, asked.model_dump())["log_density"] == 6 + 7 * 4
    assert evaluations(rows, asked.model_dump())["log_growth"] == 2 * 2 * 4
    assert "log_density" not in evaluations(rows, ScoreParameters().model_dump())
    older = {"repeats": 1}  # of a run before there was such a score
    assert "log_density" not in evaluations(rows, older)
    assert "log_density" in HIGHER_IS_EASIER


def test_a_log_density_of_a_latent_model_is_that_of_the_code(tmp_path: Path) -> None:
    folder = save(
        tmp_path, unet=lambda: plain_unet(2), scheduler=DDIMScheduler, vae=lambda: autoencoder_of(AutoencoderKL)
    )
    latent_model = load_denoiser(str(folder), "cpu")
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    parameters = ScoreParameters(timestep=20, density=3, density_probes=0)
    (found,) = measure(latent_model, pixels, ["a"], parameters, 64)["log_density"]
    with torch.inference_mode():
        code = latent_model.encode(from_pixels(torch.from_numpy(pixels)))
        expected = log_density(
            latent_model.denoiser, code, latent_model.schedule, noise_spaced_timesteps(latent_model.schedule, 3)
        )
    assert code.shape == (1, 2, 8, 8)
    assert found == pytest.approx(float(expected.log_density), rel=1e-5)


def test_bf16_is_refused_for_differences_and_taken_for_exact_tangents(checkpoint: Path, pixels: np.ndarray) -> None:
    model = load_denoiser(str(checkpoint), "cpu", torch.bfloat16)
    with pytest.raises(ValueError, match="use the estimator 'jvp'"):
        measure(model, pixels, HASHES, ScoreParameters(timestep=20), 64)
    columns = measure(model, pixels, HASHES, ScoreParameters(timestep=20, estimator="jvp"), 64)
    assert np.isfinite(columns["log_growth"]).all()


@pytest.fixture(scope="module")
def demo_images(demo_model: Path) -> tuple[np.ndarray, list[str]]:
    """24 held-out images of the bundled data, and their names."""
    pictures = [item.picture() for item in islice(open_source(demo_model.parent / "holdout.tar"), 24)]
    return np.stack([p.pixels[None] for p in pictures]), [p.content_hash for p in pictures]


def test_bf16_tangents_and_fp32_differences_rank_images_as_fp32_tangents_do(
    demo_model: Path, demo_images: tuple[np.ndarray, list[str]]
) -> None:
    """On 64 held-out images of the bundled model: Spearman 0.9998 at t = 20, 0.9999 at 100 (bf16); 1.0000 (edge)."""
    images, names = demo_images

    def growth(dtype: torch.dtype, estimator: EstimatorName) -> list[float]:
        model = load_denoiser(str(demo_model), "cpu", dtype)
        return list(measure(model, images, names, ScoreParameters(timestep=100, estimator=estimator), 24)["log_growth"])

    exact = growth(torch.float32, "jvp")
    assert spearmanr(growth(torch.bfloat16, "jvp"), exact).statistic > 0.995
    assert spearmanr(growth(torch.float32, "edge"), exact).statistic > 0.9999


def test_emulated_tf32_ranks_images_as_fp32_by_tangents_and_by_differences_that_are_not_refused(
    demo_model: Path, demo_images: tuple[np.ndarray, list[str]]
) -> None:
    """Emulated arithmetic (tests/diffusion/tf32.py), no GPU's. Measured on 64 held-out images of the bundled model:
    Spearman's rank correlation with fp32's exact tangents, operands rounded to nearest and (in brackets) cut off.

                                 share of noise    t = 20              t = 100
        jvp                                        1.0000 (1.0000)     1.0000 (1.0000)
        eps_norm                                   1.0000 (1.0000)     1.0000 (0.9999)
        edge, delta 0.5                    0.03    0.9994 (0.9994)     0.9997 (0.9996)
        edge, delta 0.137, least allowed   0.10    0.9999 (0.9990)     0.9994 (0.9977)
        edge, delta 0.05, refused          0.27    0.9987 (0.9967)     0.9955 (0.9921)
        edge, delta 0.01, refused          1.4     0.991  (0.969)      0.960  (0.878)
        edge, delta 0.005, refused         2.7     0.76   (0.986)      0.53   (0.913)

    So what the rule allows ranks well, and it refuses early: ranks dissolve at shares beyond 1.
    """
    images, names = demo_images
    model = load_denoiser(str(demo_model), "cpu")
    allowed, refused, dissolved = 0.137, 0.05, 0.005
    require_bits(bits_of("tf32"), images[0].size, allowed)
    with pytest.raises(ValueError, match=r"delta >= 0\.14"):
        require_bits(bits_of("tf32"), images[0].size, refused)

    def scores(estimator: EstimatorName, delta: float = allowed) -> Columns:
        parameters = ScoreParameters(timestep=100, estimator=estimator, delta=delta)
        return measure(model, images, names, parameters, 24)

    def agreement(found: Columns, name: str = "log_growth") -> float:
        return float(spearmanr(found[name], exact[name]).statistic)

    exact = scores("jvp")
    with emulated_tf32() as n_products:
        tangents, differences, noise = scores("jvp"), scores("edge"), scores("edge", dissolved)
    assert n_products.total() > 0
    assert tangents["log_growth"] != exact["log_growth"]
    assert agreement(tangents) > 0.9995
    assert agreement(tangents, "eps_norm") > 0.9995
    assert agreement(differences) > 0.995
    assert agreement(noise) < 0.9

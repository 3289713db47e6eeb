"""What the method's choices are called says what they take: lengths, axes, evaluations that are counted."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from latentprint.tasks.diffusion.denoiser import Denoiser
from latentprint.tasks.diffusion.density import log_density
from latentprint.tasks.diffusion.membership import BASELINES
from latentprint.tasks.diffusion.names import (
    BASELINE_NAMES,
    ESTIMATORS,
    EVALUATIONS,
    EstimatorName,
    density_evaluations,
)
from latentprint.tasks.diffusion.noise import generator_for
from tests.diffusion.oracles import draw, linear_ddpm


def test_edges_and_volumes_have_a_length_and_the_exact_growth_takes_all_axes() -> None:
    assert set(ESTIMATORS) == set(get_args(EstimatorName))
    for name, estimator in ESTIMATORS.items():
        assert estimator.name == name
        assert estimator.delta(0.05) == (0.05 if name in ("edge", "volume") else None)
        assert estimator.n_axes(3, 64) == (64 if name == "exact" else 3)
        for n_axes in (1, 2):
            same = name == "volume" or (name == "edge" and n_axes == 1)
            assert estimator.estimates_what_jvp_does(n_axes) == same


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_a_baseline_takes_as_many_evaluations_as_are_said(name: str) -> None:
    assert EVALUATIONS.keys() == BASELINES.keys() == set(BASELINE_NAMES)
    model = Denoiser(lambda x, t: 0.5 * x, linear_ddpm(), dtype=torch.float64)
    generators = [generator_for(0, str(i)) for i in range(2)]
    BASELINES[name](model, draw(1, 2, 1, 2, 2), linear_ddpm(), generators)
    assert model.n_evaluations == 2 * EVALUATIONS[name]


@pytest.mark.parametrize(("n_steps", "n_probes"), [(3, 2), (4, 1)])
def test_a_density_takes_as_many_evaluations_as_are_said(n_steps: int, n_probes: int) -> None:
    model = Denoiser(lambda x, t: 0.5 * x, linear_ddpm(), dtype=torch.float64)
    timesteps = range(100, 100 + 100 * n_steps + 1, 100)
    generators = [generator_for(0, str(i)) for i in range(2)]
    log_density(model, draw(1, 2, 1, 2, 2), linear_ddpm(), timesteps, n_probes=n_probes, generators=generators)
    assert model.n_evaluations == 2 * density_evaluations(n_steps, n_probes)
    assert density_evaluations(n_steps, n_probes) == n_steps + (n_steps + 1) * (1 + n_probes)

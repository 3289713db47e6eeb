"""What the method's choices are called. Apart from the code, so that a command line can name them without torch."""

from __future__ import annotations

from typing import Literal, get_args

Estimator = Literal["edge", "volume", "jvp", "trace", "exact"]
"""How growth is measured: :mod:`latentprint.tasks.diffusion.growth`."""

Grid = Literal["ddim", "continuous"]
"""What is stepped along: the checkpoint's own schedule, or the paper's."""

Precision = Literal["fp32", "tf32", "bf16"]
"""The network's arithmetic: :mod:`latentprint.tasks.diffusion.tangents`."""

BaselineName = Literal["loss", "sima", "pia", "pian", "secmi", "dime_2", "dime_11", "dime_31", "flipd"]
"""Membership scores to compare with: :mod:`latentprint.tasks.diffusion.membership`."""

BASELINE_NAMES: tuple[BaselineName, ...] = get_args(BaselineName)

EVALUATIONS: dict[str, int] = {
    "loss": 1,
    "sima": 1,
    "pia": 2,
    "pian": 2,
    "secmi": 12,
    "dime_2": 2,
    "dime_11": 11,
    "dime_31": 31,
    "flipd": 2,
}
"""Network evaluations an image that each of them takes alone."""


def density_evaluations(n_steps: int, n_probes: int) -> int:
    """Network evaluations per image of :func:`latentprint.tasks.diffusion.density.log_density`."""
    return n_steps + (n_steps + 1) * (n_probes + 1)

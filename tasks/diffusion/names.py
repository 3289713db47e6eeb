"""What the method's choices are called. Apart from the code, so that a command line can name them without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

EstimatorName = Literal["edge", "volume", "jvp", "trace", "exact"]


@dataclass(frozen=True)
class Estimator:
    """A way to measure growth: :mod:`latentprint.tasks.diffusion.growth`."""

    name: EstimatorName
    has_delta: bool = False
    """Tangents are finite differences of length delta; else they are exact."""
    takes_all_axes: bool = False
    """All d of them; else K are drawn."""

    def n_axes(self, drawn: int, dimension: int) -> int:
        """K."""
        return dimension if self.takes_all_axes else drawn

    def delta(self, length: float) -> float | None:
        """What the score depends on; None: on no length."""
        return length if self.has_delta else None

    def estimates_what_jvp_does(self, n_axes: int) -> bool:
        """The volume of K axes, by differences: exact tangents give the same without their error."""
        return self.name == "volume" or (self.name == "edge" and n_axes == 1)


ESTIMATORS: dict[EstimatorName, Estimator] = {
    "edge": Estimator("edge", has_delta=True),
    "volume": Estimator("volume", has_delta=True),
    "jvp": Estimator("jvp"),
    "trace": Estimator("trace"),
    "exact": Estimator("exact", takes_all_axes=True),
}

ALONG_EPS: tuple[EstimatorName, ...] = ("edge", "volume", "jvp")
"""Those whose axis can be the predicted noise."""

Axis = Literal["random", "eps"]
"""Which way the axes point at first."""

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

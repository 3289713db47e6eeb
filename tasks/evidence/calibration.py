r"""What is chosen on some images of known membership, to be reported on others: the timestep, and combined scores.

Of each image two evaluations are at hand, eps(x, t) and J q along one axis q. They give the growth, and as much again:

    B = |eps(x + delta q, t)|                       bias: how far the model is from reproducing the image
    V = d q' J q                                    crowding: estimates tr J; low where training images compete
    dime  = cos(phi) B^2 + sin(phi) V               Do & Alabi 2026 (DIME); lower: member
    fused = b + sum_j w_j (f_j - m_j) / s_j         log odds of membership, logistic regression; higher: member

with f = log growth, log |eps|, log |eps|_4, log |J q| and the cosine between J q and eps. phi and w are fitted on
the calibration images only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tasks.evidence.statistics import Array, auc

Scores = Mapping[str, Array]
"""Columns of ``scores``, one entry an image."""

FEATURES: dict[str, Callable[[Scores], Array]] = {
    "log_growth": lambda scores: scores["log_growth"],
    "log_eps_norm": lambda scores: np.log(scores["eps_norm"]),
    "log_eps_4_norm": lambda scores: np.log(scores["sima"]) / 4.0,
    "log_tangent_norm": lambda scores: np.log(scores["tangent_norm"]),
    "tangent_cosine": lambda scores: scores["tangent_cosine"],
}
ANGLES = 360
"""Values of phi that are tried, evenly over the circle."""
REGULARISATION = 1.0
FEWEST = 20
"""Images of each kind below which nothing is fitted."""


class Choice(BaseModel):
    """One timestep that was tried, on the calibration images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timestep: int
    auc: float
    """Of log_growth, trained against held-out."""


class Calibration(BaseModel):
    """What was chosen, and on how many images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timestep: int
    choices: tuple[Choice, ...] = ()
    phi: float
    """Angle of DIME [radians]."""
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    """Of the standardised ``FEATURES``, in their order."""
    intercept: float
    n_train: int
    n_control: int

    def scores(self, scores: Scores) -> dict[str, Array]:
        """``dime`` and ``fused`` of further images."""
        standardised = (features(scores) - np.array(self.means)) / np.array(self.scales)
        return {"dime": dime(scores, self.phi), "fused": standardised @ np.array(self.weights) + self.intercept}


def features(scores: Scores) -> Array:
    """(n, features)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.column_stack([feature(scores) for feature in FEATURES.values()])


def dime(scores: Scores, phi: float) -> Array:
    """DIME from the growth's own two evaluations; lower: member."""
    return math.cos(phi) * scores["neighbour_eps_norm"] ** 2 + math.sin(phi) * scores["crowding"]


def calibrate(by_timestep: Mapping[int, Scores], is_train: NDArray[np.bool_]) -> Calibration:
    """Choose the timestep at which growth separates best, and fit the combined scores there.

    Args:
        by_timestep: scores of the same calibration images from each timestep.
        is_train: trained on, or held out.

    Raises:
        ValueError: fewer than ``FEWEST`` images of either kind with finite scores.
    """
    finite = np.logical_and.reduce([np.isfinite(features(scores)).all(axis=1) for scores in by_timestep.values()])
    is_train = is_train[finite]
    if min(is_train.sum(), (~is_train).sum()) < FEWEST:
        raise ValueError(f"{is_train.sum()} trained and {(~is_train).sum()} held-out images: {FEWEST} each are needed")
    kept = {t: {name: values[finite] for name, values in scores.items()} for t, scores in by_timestep.items()}
    choices = tuple(
        Choice(timestep=t, auc=auc(scores["log_growth"][is_train], scores["log_growth"][~is_train]))
        for t, scores in kept.items()
    )
    timestep = max(choices, key=lambda choice: choice.auc).timestep
    chosen = kept[timestep]
    scaler = StandardScaler().fit(features(chosen))
    model = LogisticRegression(C=REGULARISATION, class_weight="balanced", max_iter=1_000)
    model.fit(scaler.transform(features(chosen)), is_train)
    return Calibration(
        timestep=timestep,
        choices=choices,
        phi=_best_angle(chosen, is_train),
        means=_plain(scaler.mean_),
        scales=_plain(scaler.scale_),
        weights=_plain(model.coef_[0]),
        intercept=float(model.intercept_[0]),
        n_train=int(is_train.sum()),
        n_control=int((~is_train).sum()),
    )


def _best_angle(scores: Scores, is_train: NDArray[np.bool_]) -> float:
    angles = np.linspace(-math.pi, math.pi, ANGLES, endpoint=False)
    areas = [auc(-dime(scores, phi)[is_train], -dime(scores, phi)[~is_train]) for phi in angles]
    return float(angles[int(np.argmax(areas))])


def _plain(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)

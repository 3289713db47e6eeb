r"""What is chosen on some images of known membership, to be reported on others: timesteps, and combined scores.

Of each image two evaluations are at hand, eps(x, t) and J q along one axis q. They give the growth, and as much again:

    B = |eps(x + delta q, t)|                       bias: how far the model is from reproducing the image
    V = d q' J q                                    crowding: estimates tr J; low where training images compete
    dime  = cos(phi) B^2 + sin(phi) V               Do & Alabi 2026 (DIME); lower: member
    fused = b + sum_j w_j (f_j - m_j) / s_j         log odds of membership, logistic regression; higher: member

with f = log growth, log |eps|, log |eps|_4, log |J q| and the cosine between J q and eps. One more evaluation, at a
second timestep t', gives

    fused_norms         the same with f = log |eps|, log |eps|_4 at t and the two at t'; higher: member

where |eps|_4 is the norm of Rao, Qu & Moyer 2025 (SimA, arXiv 2509.25003). t is where growth separates best, t' where
fused_norms does: by AUC; of those with the same one, such as 1, by the standardised difference d_a
(:func:`tasks.evidence.statistics.standardised_difference`), of which the AUC of Gaussians is a function; of those with
the same again, the first. Timesteps, phi and w are fitted on the calibration images only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tasks.evidence.statistics import Array, auc, standardised_difference

Scores = Mapping[str, Array]
"""Columns of ``scores``, one entry an image."""

Features = Mapping[str, Callable[[Scores], Array]]
NORMS: Features = {
    "log_eps_norm": lambda scores: np.log(scores["eps_norm"]),
    "log_eps_4_norm": lambda scores: np.log(scores["sima"]) / 4.0,
}
FEATURES: Features = {
    "log_growth": lambda scores: scores["log_growth"],
    **NORMS,
    "log_tangent_norm": lambda scores: np.log(scores["tangent_norm"]),
    "tangent_cosine": lambda scores: scores["tangent_cosine"],
}
ANGLES = 360
"""Values of phi that are tried, evenly over the circle."""
REGULARISATION = 1.0
SECOND = "second_"
"""Of a column: at the second timestep."""
FEWEST = 20
"""Images of each kind below which nothing is fitted."""


class TooFewImages(ValueError):
    """Fewer than ``FEWEST`` of either kind have finite scores at any timestep."""


class Choice(BaseModel):
    """One timestep that was tried, on the calibration images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timestep: int
    auc: float
    """Trained against held-out: of log_growth; for the second timestep, of ``fused_norms``."""
    d_a: float | None = None
    """Of the same; decides between equal AUC. None: written before it was measured."""

    @classmethod
    def of(cls, timestep: int, score: Array, is_train: NDArray[np.bool_]) -> Self:
        """By scores of which a higher one means trained on."""
        trained, held_out = score[is_train], score[~is_train]
        return cls(timestep=timestep, auc=auc(trained, held_out), d_a=standardised_difference(trained, held_out))


class LogOdds(BaseModel):
    """Log odds of membership: a logistic regression on standardised features."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float

    @classmethod
    def fit(cls, features: Array, is_train: NDArray[np.bool_]) -> Self:
        """Fit on features (n, n_features); members and controls get equal total weight."""
        scaler = StandardScaler().fit(features)
        model = LogisticRegression(C=REGULARISATION, class_weight="balanced", max_iter=1_000)
        model.fit(scaler.transform(features), is_train)
        return cls(
            means=_plain(scaler.mean_),
            scales=_plain(scaler.scale_),
            weights=_plain(model.coef_[0]),
            intercept=float(model.intercept_[0]),
        )

    def of(self, features: Array) -> Array:
        """Of further images, (n, features) -> (n,), in nats."""
        standardised = (features - np.array(self.means)) / np.array(self.scales)
        return np.asarray(standardised @ np.array(self.weights) + self.intercept)


class SecondTimestep(BaseModel):
    """What was chosen to be evaluated beside the first timestep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timestep: int
    choices: tuple[Choice, ...]
    fused_norms: LogOdds
    """Of the ``NORMS`` at the first timestep, and of those at this one."""


class Calibration(BaseModel):
    """What was chosen, and on how many images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timestep: int
    choices: tuple[Choice, ...] = ()
    phi: float
    """Angle of DIME [radians]."""
    fused: LogOdds
    """Of the ``FEATURES``."""
    second: SecondTimestep | None = None
    """None where it was not asked for, or there is no other to choose from."""
    n_train: int
    n_control: int

    def scores(self, scores: Scores) -> dict[str, Array]:
        """``dime`` and ``fused`` of further images; ``fused_norms`` too where there is a second timestep."""
        combined = {"dime": dime(scores, self.phi), "fused": self.fused.of(matrix(FEATURES, scores))}
        if self.second is not None:
            there = {name.removeprefix(SECOND): values for name, values in scores.items() if name.startswith(SECOND)}
            combined["fused_norms"] = self.second.fused_norms.of(matrix(NORMS, scores, there))
        return combined


def matrix(features: Features, *scores: Scores) -> Array:
    """(n, features), those of each ``scores`` after those of the one before."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.column_stack([feature(of) for of in scores for feature in features.values()])


def dime(scores: Scores, phi: float) -> Array:
    """DIME from the growth's own two evaluations; lower: member."""
    return math.cos(phi) * scores["neighbour_eps_norm"] ** 2 + math.sin(phi) * scores["crowding"]


def calibrate(by_timestep: Mapping[int, Scores], is_train: NDArray[np.bool_], *, second: bool = False) -> Calibration:
    """Choose the timestep at which growth separates best, and fit the combined scores there.

    All timesteps are judged on the same images, those with finite scores at each of them. While these are too few,
    the timestep with the fewest finite scores is dropped.

    Args:
        by_timestep: scores of the same calibration images from each timestep.
        is_train: trained on, or held out.
        second: choose a second timestep too, and fit ``fused_norms``.

    Raises:
        TooFewImages: none is left.
    """
    timesteps, finite = _usable(by_timestep, is_train)
    is_train = is_train[finite]
    kept = {t: {name: values[finite] for name, values in by_timestep[t].items()} for t in timesteps}
    choices = tuple(Choice.of(t, scores["log_growth"], is_train) for t, scores in kept.items())
    timestep = _best(choices)
    chosen = kept[timestep]
    return Calibration(
        timestep=timestep,
        choices=choices,
        phi=_best_angle(chosen, is_train),
        fused=LogOdds.fit(matrix(FEATURES, chosen), is_train),
        n_train=int(is_train.sum()),
        n_control=int((~is_train).sum()),
        second=_second_timestep(kept, timestep, is_train) if second and len(kept) > 1 else None,
    )


def _usable(
    by_timestep: Mapping[int, Scores], is_train: NDArray[np.bool_]
) -> tuple[tuple[int, ...], NDArray[np.bool_]]:
    """Timesteps that enough images of either kind have finite scores at, and the images that have them at all of these.

    Raises:
        TooFewImages: there is no such timestep.
    """
    finite = {t: np.asarray(np.isfinite(matrix(FEATURES, scores)).all(axis=1)) for t, scores in by_timestep.items()}
    while finite:
        of_all = np.asarray(np.logical_and.reduce(list(finite.values())))
        if _fewest(of_all, is_train) >= FEWEST:
            return tuple(finite), of_all
        worst = min(finite, key=lambda t: _fewest(finite[t], is_train))
        last = is_train[finite.pop(worst)]
    raise TooFewImages(f"{last.sum()} trained and {(~last).sum()} held-out images: {FEWEST} each are needed")


def _fewest(chosen: NDArray[np.bool_], is_train: NDArray[np.bool_]) -> int:
    return int(min((chosen & is_train).sum(), (chosen & ~is_train).sum()))


def _second_timestep(by_timestep: Mapping[int, Scores], first: int, is_train: NDArray[np.bool_]) -> SecondTimestep:
    """Of the others, the timestep whose norms separate best beside those of the first."""
    others = {t: matrix(NORMS, by_timestep[first], scores) for t, scores in by_timestep.items() if t != first}
    fits = {t: LogOdds.fit(norms, is_train) for t, norms in others.items()}
    choices = tuple(Choice.of(t, fit.of(others[t]), is_train) for t, fit in fits.items())
    timestep = _best(choices)
    return SecondTimestep(timestep=timestep, choices=choices, fused_norms=fits[timestep])


def _best(choices: Sequence[Choice]) -> int:
    return max(choices, key=lambda choice: (choice.auc, choice.d_a)).timestep


def _best_angle(scores: Scores, is_train: NDArray[np.bool_]) -> float:
    angles = np.linspace(-math.pi, math.pi, ANGLES, endpoint=False)
    areas = [auc(-dime(scores, phi)[is_train], -dime(scores, phi)[~is_train]) for phi in angles]
    return float(angles[int(np.argmax(areas))])


def _plain(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)

"""Logistic regression of few features on few images, hundreds of times: Newton's method, some 0.5 ms a fit."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.special import expit

from latentprint.tasks.evidence.statistics import Array

Mask = NDArray[np.bool_]
REGULARISATION = 1.0
NEWTON_STEPS, GRADIENT_TOLERANCE = 100, 1e-9


class Standardised(NamedTuple):
    """Features (n, p) with mean 0 and standard deviation 1; a constant one stays 0."""

    z: Array
    means: Array
    scales: Array

    @classmethod
    def of(cls, features: Array) -> Self:
        """Of features (n, p)."""
        means, scales = features.mean(axis=0), features.std(axis=0)
        scales = np.where(scales > 10 * np.finfo(np.float64).eps * np.abs(means), scales, 1.0)
        return cls((features - means) / scales, means, scales)


class LogOdds(BaseModel):
    """Log odds of membership: a logistic regression on standardised features."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float

    @classmethod
    def fit(cls, features: Array, is_train: Mask) -> Self:
        """Fit on features (n, n_features); members and controls get equal total weight.

        Minimises |w|^2 / 2 + C sum_i c_i log(1 + exp(-y_i (b + w'z_i))), C = ``REGULARISATION``, c_i = n / (2 n_kind).
        """
        return cls.fitted(Standardised.of(features), is_train)

    @classmethod
    def fitted(cls, standardised: Standardised, is_train: Mask) -> Self:
        """The same on features that are standardised already."""
        *weights, intercept = _logistic(standardised.z, is_train).tolist()
        means, scales = tuple(standardised.means.tolist()), tuple(standardised.scales.tolist())
        return cls(means=means, scales=scales, weights=tuple(weights), intercept=intercept)

    def of(self, features: Array) -> Array:
        """Of further images, (n, features) -> (n,), in nats."""
        standardised = (features - np.array(self.means)) / np.array(self.scales)
        return np.asarray(standardised @ np.array(self.weights) + self.intercept)


def _logistic(z: Array, is_train: Mask) -> Array:
    """(weights, intercept), (p + 1,), of :meth:`LogOdds.fit`, by Newton's method with steps halved until they descend.

    The objective is strictly convex, so there is one minimum and it is finite.
    """
    n, m = len(z), int(is_train.sum())
    x = np.column_stack([z, np.ones(n)])
    sign = np.where(is_train, 1.0, -1.0)
    weight = REGULARISATION * np.where(is_train, n / (2.0 * m), n / (2.0 * (n - m)))
    penalty = np.append(np.ones(z.shape[1]), 0.0)

    def objective(beta: Array) -> float:
        return float(0.5 * penalty @ beta**2 + weight @ np.logaddexp(0.0, -sign * (x @ beta)))

    beta = np.zeros(x.shape[1])
    value = objective(beta)
    for _ in range(NEWTON_STEPS):
        wrong = expit(-sign * (x @ beta))
        gradient = penalty * beta - x.T @ (weight * sign * wrong)
        if np.abs(gradient).max() <= GRADIENT_TOLERANCE * n:
            break
        curvature = (x.T * (weight * wrong * (1.0 - wrong))) @ x + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        while (lower := objective(beta - step)) > value and np.abs(step).max() > 1e-12:
            step = step / 2.0
        beta, value = beta - step, lower
    return beta

r"""What is chosen and fitted on images of known membership, and how every one of them is still scored by others.

Of each image two evaluations are at hand, eps(x, t) and J q along one axis q. They give the growth, and as much again:

    B = |eps(x + delta q, t)|                       bias: how far the model is from reproducing the image
    V = d q' J q                                    crowding: estimates tr J; low where training images compete
    dime  = (cos(phi) B^2 + sin(phi) V - m) / s     Do & Alabi 2026 (DIME), standardised; lower: member
    fused = b + sum_j w_j (f_j - m_j) / s_j         log odds of membership, logistic regression; higher: member

with f = log growth, log |eps|, log |eps|_4, log |J q|, the cosine between J q and eps, and the log of the coarse share
of |eps|^2 (:mod:`latentprint.tasks.diffusion.frequencies`), m the midpoint of both kinds' means and s^2 the mean of
their variances. One more evaluation, at a second timestep t', gives

    fused_norms         the same with f = log |eps|, log |eps|_4 at t and the two at t'; higher: member

where |eps|_4 is the norm of Rao, Qu & Moyer 2025 (SimA, arXiv 2509.25003). t is where growth separates best, t' where
fused_norms does: by AUC; of those with the same one, such as 1, by the standardised difference d_a
(:func:`latentprint.tasks.evidence.statistics.standardised_difference`), of which the AUC of Gaussians is a function; of
those with the same again, the first. Trained and held-out images weigh the same in each fit.

Cross-fitting (Stone 1974; Chernozhukov et al. 2018). Near-duplicate groups are dealt into K folds. An image of fold k
is scored by s_{-k}: timestep, phi and w from the other folds alone, so that neither it nor a near duplicate of it had
a part in its score. The conformal p-value of a training image i, k(i) its fold, over all n controls j is

    p_i = (1 + #{j : s_{-k(j)}(x_j) >= s_{-k(i)}(x_i)}) / (1 + n)

Against the controls of its own fold p is exact: if the model knows nothing of image i, then it and they are
exchangeable given s_{-k}, which saw none of them, so P(p <= a) <= a. Controls of other folds have other scorers, each
fitted on one fold that the other was not. Two things are asked of those:

    One scale. Log odds at equal weights of both kinds, and for DIME standard deviations from the midpoint of both: 0 is
    half way in each fold, whatever it holds.
    No profit. s_{-k(j)} was fitted on image i as a training image, s_{-k(i)} on control j as held out. Neither of these
    scores the image that it was fitted on, and what they learned of it is on the safe side: scores of pure noise have a
    pooled AUC of 0.49 at 30 + 30 images and 0.495 at 64 + 64, and p-values at or below their level.

The form is that of cross-conformal prediction (Vovk 2015, Annals of Mathematics and Artificial Intelligence 74), where
a new image is scored by all K scorers, which gives P(p <= a) <= 2 a + O(sqrt(K / n)) for any data (CV+, Barber et al.
2021, Annals of Statistics 49) and about a in practice. Scored by one of them, as here, only the part within the fold
has a proof; the whole is held by nulls (tests/evidence/test_crossfit.py).

A permutation test refits (:func:`refit`). It is exact if labels are permuted within folds, near-duplicate groups whole:
the folds are dealt with a share of each split, so only there all orders were as likely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from scipy.stats import rankdata

from latentprint.tasks.evidence.logistic import LogOdds, Mask, Standardised
from latentprint.tasks.evidence.statistics import Array

Scores = Mapping[str, Array]
"""Columns of ``scores``, one entry an image."""
ByTimestep = Mapping[int, Scores]
"""Those of the same images, from each timestep."""

FEATURES: Mapping[str, Callable[[Scores], Array]] = {
    "log_growth": lambda scores: scores["log_growth"],
    "log_eps_norm": lambda scores: np.log(scores["eps_norm"]),
    "log_eps_4_norm": lambda scores: np.log(scores["sima"]) / 4.0,
    "log_tangent_norm": lambda scores: np.log(scores["tangent_norm"]),
    "tangent_cosine": lambda scores: scores["tangent_cosine"],
    "log_eps_low_share": lambda scores: np.log(np.maximum(scores["eps_low_share"], LEAST_SHARE)),
}
"""What calibrated scores are made of."""
NORMS = ("log_eps_norm", "log_eps_4_norm")
LEAST_SHARE = 1e-12
LOW_SHARE = "eps_low_share"
EARLIER_FEATURES = tuple(name for name in FEATURES if name != f"log_{LOW_SHARE}")
"""Of runs that were scored before the coarse share was measured."""
COLUMNS = (
    "log_growth",
    "eps_norm",
    "sima",
    "tangent_norm",
    "tangent_cosine",
    "neighbour_eps_norm",
    "crowding",
    LOW_SHARE,
)
"""Of ``scores``: what features and DIME are made of."""
FITTED = ("fused", "dime", "fused_norms")
"""Scores that are calibrated."""
ANGLES = np.linspace(-math.pi, math.pi, 360, endpoint=False)
"""Values of phi that are tried [radians]."""
SECOND = "second_"
"""Of a column: at the second timestep."""
FEWEST = 20
"""Images of each kind below which nothing is fitted."""
N_FOLDS = 5


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


class SecondTimestep(BaseModel):
    """What was chosen to be evaluated beside the first timestep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timestep: int
    choices: tuple[Choice, ...]
    fused_norms: LogOdds
    """Of the ``NORMS`` at the first timestep, and of those at this one."""


class Fit(BaseModel):
    """What was chosen and fitted, and on how many images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timestep: int
    choices: tuple[Choice, ...] = ()
    phi: float
    """Angle of DIME [radians]."""
    dime_centre: float
    """Midpoint of the means of training and held-out images."""
    dime_scale: float
    """Root of the mean of their variances; 1 where nothing scatters."""
    fused: LogOdds
    features: tuple[str, ...] = EARLIER_FEATURES
    """Which of ``FEATURES`` it is made of."""
    second: SecondTimestep | None = None
    """None where it was not asked for, or there is no other to choose from."""
    n_train: int
    n_control: int

    @model_serializer(mode="wrap")
    def _as_earlier_versions_wrote_it(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the features where they are those of earlier versions, whose fits stay the same fits."""
        said = serialize(self)
        return {name: value for name, value in said.items() if name != "features" or tuple(value) != EARLIER_FEATURES}

    def scores(self, scores: Scores) -> dict[str, Array]:
        """``dime`` and ``fused`` of further images; ``fused_norms`` too where there is a second timestep."""
        standardised = (dime(scores, self.phi) - self.dime_centre) / self.dime_scale
        combined = {"dime": standardised, "fused": self.fused.of(matrix(self.features, scores))}
        if self.second is not None:
            there = {name.removeprefix(SECOND): values for name, values in scores.items() if name.startswith(SECOND)}
            combined["fused_norms"] = self.second.fused_norms.of(matrix(NORMS, scores, there))
        return combined

    def scores_from(self, by_timestep: ByTimestep) -> dict[str, Array]:
        """The same of images of which the scores at all timesteps are at hand; NaN where these are not finite."""
        scores = dict(by_timestep[self.timestep])
        if self.second is not None:
            there = by_timestep[self.second.timestep]
            scores |= {f"{SECOND}{name}": there[name] for name in ("eps_norm", "sima")}
        return {name: np.where(np.isfinite(values), values, np.nan) for name, values in self.scores(scores).items()}


class Calibration(Fit):
    """The fit on all calibration images, for images in no fold, and those that leave out one fold each."""

    folds: tuple[Fit, ...] = ()
    """At k: fitted without fold k, for the images of fold k."""

    def cross_fitted(self, by_timestep: ByTimestep, folds: NDArray[np.integer]) -> dict[str, Array]:
        """``dime``, ``fused`` and with a second timestep ``fused_norms`` of images, each by the fit without its fold.

        NaN where an image has no finite scores at the timesteps of that fit.
        """
        names = FITTED if all(fit.second for fit in self.folds) else FITTED[:2]
        scores = {name: np.full(len(folds), np.nan) for name in names}
        for k, fit in enumerate(self.folds):
            mine = np.asarray(folds == k)
            of_fold = fit.scores_from(_only(by_timestep, mine))
            for name in names:
                scores[name][mine] = of_fold[name]
        return scores


@dataclass(frozen=True)
class CrossFit:
    """Every calibration image, scored by a fit that it had no part in; entry i is image i, NaN where not finite."""

    calibration: Calibration
    scores: Mapping[str, Array]
    """Those of ``FITTED`` that there are."""

    @property
    def fused(self) -> Array:
        """Log odds of membership [nats]."""
        return self.scores["fused"]

    @property
    def dime(self) -> Array:
        """Lower: member."""
        return self.scores["dime"]

    @property
    def fused_norms(self) -> Array | None:
        """Log odds of membership [nats]; None without a second timestep."""
        return self.scores.get("fused_norms")

    @property
    def timesteps(self) -> tuple[int, ...]:
        """Chosen without fold 0, 1, ..."""
        return tuple(fold.timestep for fold in self.calibration.folds)


def matrix(features: Sequence[str], *scores: Scores) -> Array:
    """(n, features), those of each ``scores`` after those of the one before.

    Args:
        features: of ``FEATURES``.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.column_stack([FEATURES[name](of) for of in scores for name in features])


def features_of(by_timestep: ByTimestep) -> tuple[str, ...]:
    """All ``FEATURES``, or ``EARLIER_FEATURES`` where the coarse share was not measured."""
    is_known = all(LOW_SHARE in scores for scores in by_timestep.values())
    return tuple(FEATURES) if is_known else EARLIER_FEATURES


def dime(scores: Scores, phi: float) -> Array:
    """DIME from the growth's own two evaluations, not standardised; lower: member."""
    return math.cos(phi) * scores["neighbour_eps_norm"] ** 2 + math.sin(phi) * scores["crowding"]


def calibrate(by_timestep: ByTimestep, is_train: Mask, *, second: bool = False) -> Calibration:
    """Choose the timestep at which growth separates best, and fit the combined scores there; no folds.

    All timesteps are judged on the same images, those with finite scores at each of them. While these are too few,
    the timestep with the fewest finite scores is dropped.

    Args:
        by_timestep: scores of the same calibration images from each timestep.
        is_train: trained on, or held out.
        second: choose a second timestep too, and fit ``fused_norms``.

    Raises:
        TooFewImages: none is left.
    """
    fit = _Sample(by_timestep, np.ones(len(is_train), dtype=bool)).fit(is_train, second=second)
    return Calibration(**dict(fit))


def crossfit(by_timestep: ByTimestep, is_train: Mask, folds: NDArray[np.integer], second: bool = False) -> CrossFit:
    """:func:`calibrate` on all images and on those of all folds but one, which scores the images of that one.

    Args:
        by_timestep: scores (``COLUMNS``) of the same calibration images from each timestep.
        is_train: trained on, or held out.
        folds: of each image, from 0; near duplicates share one.
        second: choose a second timestep too, and fit ``fused_norms``.

    Raises:
        TooFewImages: a fit has too few images of either kind with finite scores.
    """
    whole = calibrate(by_timestep, is_train, second=second)
    fits = tuple(sample.fit(is_train, second=second) for sample in Design(by_timestep, folds).samples)
    calibration = whole.model_copy(update={"folds": fits})
    return CrossFit(calibration, calibration.cross_fitted(by_timestep, folds))


class Design:
    """What of cross-fitted images no label changes: features, folds, ranks. Build it once, :func:`refit` it often."""

    def __init__(self, by_timestep: ByTimestep, folds: NDArray[np.integer]) -> None:
        self.by_timestep, self.folds = by_timestep, np.asarray(folds)
        self.n_folds = int(self.folds.max()) + 1
        self.samples = [_Sample(by_timestep, self.folds != k) for k in range(self.n_folds)]
        self._folds = [_only(by_timestep, self.folds == k) for k in range(self.n_folds)]
        self._features: dict[tuple[int, tuple[int, ...]], Array] = {}

    def of_fold(self, k: int) -> ByTimestep:
        """The scores of the images of fold k."""
        return self._folds[k]

    def features(self, k: int, *timesteps: int) -> Array:
        """Of the images of fold k: all features at one timestep, or ``NORMS`` at two; made once."""
        if (k, timesteps) not in self._features:
            scores = self.of_fold(k)
            features = features_of(scores) if len(timesteps) == 1 else NORMS
            self._features[k, timesteps] = matrix(features, *(scores[t] for t in timesteps))
        return self._features[k, timesteps]


def refit(design: Design, is_train: Mask, names: Sequence[str] = ("fused",)) -> dict[str, Array]:
    """The out-of-fold scores of :func:`crossfit` for other labels, and nothing else: milliseconds a call.

    Args:
        is_train: the labels; for a permutation test, permuted within folds and with near-duplicate groups whole.
        names: of ``FITTED``.

    Raises:
        TooFewImages: as there.
    """
    scores = {name: np.full(len(is_train), np.nan) for name in names}
    for k, sample in enumerate(design.samples):
        kept, mine = sample.kept(is_train), design.folds == k
        labels = is_train[kept.members]
        timestep = _best(kept.choices(labels))
        if "fused" in names:
            fused = LogOdds.fitted(kept.standardised(timestep), labels)
            scores["fused"][mine] = fused.of(design.features(k, timestep))
        if "dime" in names:
            phi, centre, scale = kept.dime(timestep, labels)
            scores["dime"][mine] = (dime(design.of_fold(k)[timestep], phi) - centre) / scale
        if "fused_norms" in names:
            there = kept.second(timestep, labels)
            if there is not None:
                scores["fused_norms"][mine] = there.fused_norms.of(design.features(k, timestep, there.timestep))
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in scores.items()}


class _Sample:
    """The images of one fit."""

    def __init__(self, by_timestep: ByTimestep, is_member: Mask) -> None:
        self.members = np.flatnonzero(is_member)
        self.by_timestep = _only(by_timestep, is_member)
        self.features = features_of(by_timestep)
        self.finite = {
            t: np.asarray(np.isfinite(matrix(self.features, scores)).all(axis=1))
            for t, scores in self.by_timestep.items()
        }
        self._kept: dict[tuple[int, ...], _Kept] = {}

    def fit(self, is_train: Mask, *, second: bool) -> Fit:
        """On labels of all images, those of other samples included."""
        kept = self.kept(is_train)
        labels = is_train[kept.members]
        choices = kept.choices(labels)
        timestep = _best(choices)
        phi, centre, scale = kept.dime(timestep, labels)
        return Fit(
            timestep=timestep,
            choices=choices,
            phi=phi,
            dime_centre=centre,
            dime_scale=scale,
            fused=LogOdds.fitted(kept.standardised(timestep), labels),
            features=self.features,
            second=kept.second(timestep, labels) if second else None,
            n_train=int(labels.sum()),
            n_control=int((~labels).sum()),
        )

    def kept(self, is_train: Mask) -> _Kept:
        """Timesteps that enough images of either kind have finite scores at, and the images with these at all of them.

        Raises:
            TooFewImages: there is no such timestep.
        """
        labels, finite = is_train[self.members], dict(self.finite)
        last = labels
        while finite:
            of_all = np.asarray(np.logical_and.reduce(list(finite.values())))
            if _fewest(of_all, labels) >= FEWEST:
                timesteps = tuple(finite)
                if timesteps not in self._kept:
                    scores = _only({t: self.by_timestep[t] for t in timesteps}, of_all)
                    self._kept[timesteps] = _Kept(scores, self.members[of_all])
                return self._kept[timesteps]
            worst = min(finite, key=lambda t: _fewest(finite[t], labels))
            last = labels[finite.pop(worst)]
        raise TooFewImages(f"{last.sum()} trained and {(~last).sum()} held-out images: {FEWEST} each are needed")


class _Kept:
    """Images with finite scores at all of some timesteps; what labels do not change is computed when first needed."""

    def __init__(self, by_timestep: ByTimestep, members: NDArray[np.intp]) -> None:
        self.by_timestep, self.members = by_timestep, members
        self.growth = np.stack([scores["log_growth"] for scores in by_timestep.values()])
        self.ranks = rankdata(self.growth, axis=1)
        self._standardised: dict[tuple[int, ...], Standardised] = {}
        self._dime_ranks: dict[int, NDArray[np.float32]] = {}

    def choices(self, is_train: Mask) -> tuple[Choice, ...]:
        """Of each timestep, how well growth separates."""
        return _choices(tuple(self.by_timestep), self.growth, self.ranks, is_train)

    def standardised(self, *timesteps: int) -> Standardised:
        """All features at one timestep, or ``NORMS`` at two."""
        if timesteps not in self._standardised:
            features = features_of(self.by_timestep) if len(timesteps) == 1 else NORMS
            self._standardised[timesteps] = Standardised.of(matrix(features, *(self.by_timestep[t] for t in timesteps)))
        return self._standardised[timesteps]

    def dime(self, timestep: int, is_train: Mask) -> tuple[float, float, float]:
        """(phi, centre, scale): the first angle at which DIME separates best, by its ranks at all, which are kept."""
        if timestep not in self._dime_ranks:
            scores = self.by_timestep[timestep]
            parts = np.stack([scores["neighbour_eps_norm"] ** 2, scores["crowding"]])
            values = np.column_stack([np.cos(ANGLES), np.sin(ANGLES)]) @ parts
            self._dime_ranks[timestep] = rankdata(-values, axis=1).astype(np.float32)
        phi = float(ANGLES[int(np.argmax(self._dime_ranks[timestep] @ is_train.astype(np.float32)))])
        values = dime(self.by_timestep[timestep], phi)
        trained, held_out = values[is_train], values[~is_train]
        scale = math.sqrt((trained.var(ddof=1) + held_out.var(ddof=1)) / 2.0)
        return phi, float((trained.mean() + held_out.mean()) / 2.0), scale or 1.0

    def second(self, first: int, is_train: Mask) -> SecondTimestep | None:
        """Of the others, the timestep whose norms separate best beside those of the first; None without others."""
        others = [t for t in self.by_timestep if t != first]
        if not others:
            return None
        standardised = {t: self.standardised(first, t) for t in others}
        fits = {t: LogOdds.fitted(features, is_train) for t, features in standardised.items()}
        odds = np.stack([standardised[t].z @ np.array(fit.weights) + fit.intercept for t, fit in fits.items()])
        choices = _choices(others, odds, rankdata(odds, axis=1), is_train)
        timestep = _best(choices)
        return SecondTimestep(timestep=timestep, choices=choices, fused_norms=fits[timestep])


def _only(by_timestep: ByTimestep, chosen: Mask) -> ByTimestep:
    return {t: {name: scores[name][chosen] for name in COLUMNS if name in scores} for t, scores in by_timestep.items()}


def _fewest(chosen: Mask, is_train: Mask) -> int:
    return int(min((chosen & is_train).sum(), (chosen & ~is_train).sum()))


def _choices(timesteps: Sequence[int], scores: Array, ranks: Array, is_train: Mask) -> tuple[Choice, ...]:
    """By scores (timesteps, images) of which a higher one means trained on, and their ranks."""
    m, n = int(is_train.sum()), int((~is_train).sum())
    areas = (ranks @ is_train - m * (m + 1) / 2) / (m * n)
    trained, held_out = scores[:, is_train], scores[:, ~is_train]
    scatter = np.sqrt((trained.var(axis=1, ddof=1) + held_out.var(axis=1, ddof=1)) / 2.0)
    differences = trained.mean(axis=1) - held_out.mean(axis=1)
    d_a = np.divide(differences, scatter, out=np.zeros(len(scores)), where=scatter > 0.0)
    values = zip(timesteps, areas.tolist(), d_a.tolist(), strict=True)
    return tuple(Choice(timestep=t, auc=area, d_a=d) for t, area, d in values)


def _best(choices: Sequence[Choice]) -> int:
    return max(choices, key=lambda choice: (choice.auc, choice.d_a)).timestep

r"""Does a model repeat itself? A decision without its training images, on two sets of generated images.

Images x_1 ... x_n come from the model, y_1 ... y_n from a control: a model of the same kind of images that gives no
training image back. A model that has learned single images by heart gives the same picture from independent noise, and
its ODE stretches the surroundings of that picture. Either alone is told of innocent models too: an unfinished training
gives the mean picture again and again, and growth rises with any training. So a generated image is called a *repeat*
only if both hold, with r(x_i) = min_j d(x_i, x_j) / min_j d(x_i, y_j), j other than i:

    near    r(x_i) < ``NEAR`` min(1, ``APART`` quantile of r over the model's images)
    steep   growth along eps at x_i, under its model, is above the ``STEEP`` quantile of either set

The quantile of r takes off what the whole set has in common: beside the noise of an early state, all images of a later
one are near one another. The control's images are judged alike with the two sets exchanged. At most 1 - ``STEEP`` of
either set are repeats. Images that tell nothing have r = 1: those that the control makes too, blank ones, plain
gradients, and those whose growth is not finite. The last three are never steep.

That the distance to the control is the measure, and not the one to the second nearest of the same model, is for
pictures that come out often: beside the third of them the first two are nothing special.

Conclusion. With k repeats of the model and l of the control, the null hypothesis is that the two have one law: of each
number i (and so of each class), x_i and y_i with their growth are independent draws of the same law. Then x_i and y_i
may be exchanged, and k - l is compared with that of ``N_EXCHANGES`` random exchanges, in which everything is judged
anew. Of models with one law at most ``level`` are accused, whatever clusters there are. Where the laws differ in
growth alone, one or two repeats can be rare among the exchanges. So Fisher's exact test of k and l, both of n, must
reject too, and p is the larger of both. No level is promised for a model of another law that knows no image:
tests/studies/probe.py counts how often such models are accused.

That a model repeats itself is not that it gives training images back: one that has collapsed to few dimensions does the
first alone. Where the ``APART`` quantile of r is below ``NEAR``, no single images stand out, and without a conclusion
the answer is *inconclusive*. So it is with fewer than ``FEWEST_TELLING`` images that tell something, in either set.

Sources: Fisher 1935, *The Design of Experiments* (both tests); Phipson & Smyth 2010, arXiv 1603.05766 (p of random
permutations); the third is that of the ratio rule (Yoon et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentprint.tasks.evidence.copies import Neighbours, nearest
from latentprint.tasks.evidence.reproduction import OF_THE_SAME_KIND, POWER, Counts, least_share, p_value
from latentprint.tasks.evidence.statistics import Array

NEAR = 1.0 / 3.0
STEEP = 0.95
APART = 0.9
"""A model is found out up to this share of copies; the others are what its copies are held against."""
FEWEST_TELLING = 100
N_EXCHANGES = 999
NEIGHBOURS = 48
"""Of each image, for random exchanges: all are in one set with a probability of at most 2^-47."""
EXCHANGES_AT_ONCE = 32
SURROUNDING = 50
"""Other images of the model whose mean distance a nearest one is held against, without a control."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Generated:
    """Images of one model, in the order of their numbers."""

    features: NDArray[np.float32]
    """(n, d) or (n, P, d)"""
    growth: Array
    """Along the predicted noise, under the model that generated them, (n,) [nats]."""
    is_telling: Mask
    """Is there enough in the image to tell it from others? (n,)"""


class Judged(NamedTuple):
    """A set of images, judged; of several exchanges at once, each array has one more axis before its last."""

    ratio: Array
    """Distance to the nearest other image of its set, over that to the nearest of the other set, (n,)."""
    is_near: Mask
    is_steep: Mask

    @property
    def is_repeat(self) -> Mask:
        return self.is_near & self.is_steep

    @property
    def repeats(self) -> Counts:
        return Counts(int(self.is_repeat.sum()), self.is_repeat.size)


@dataclass(frozen=True)
class Repeats:
    """What either set is found to be."""

    model: Judged
    control: Judged
    n_telling: tuple[int, int]
    """Images that are not blank and whose growth is finite: of the model, of the control."""
    p_value: float
    level: float

    @property
    def is_told(self) -> bool:
        """Do enough images of either set tell something?"""
        return min(self.n_telling) >= FEWEST_TELLING

    @property
    def conclusion(self) -> str:
        """*repeats_itself*, *not_shown* or *inconclusive*."""
        if self.is_told and self.p_value <= self.level:
            return "repeats_itself"
        return "not_shown" if self.is_told and np.quantile(self.model.ratio, APART) >= NEAR else "inconclusive"


def find_repeats(model: Generated, control: Generated, level: float, seed: int = 0) -> Repeats:
    """Both sets judged alike; see the module's head.

    Args:
        seed: of the random exchanges.

    Raises:
        ValueError: the sets are not of one size, or have fewer than two images.
    """
    n = len(model.features)
    if n != len(control.features) or n < 2:
        raise ValueError("as many images of the model as of the control are needed, and at least two")
    numbers, both = np.arange(n), (model, control)
    pool, left_out = np.concatenate([each.features for each in both]), np.tile(numbers, 2)[:, None]
    growth = np.concatenate(
        [np.where(each.is_telling & np.isfinite(each.growth), each.growth, -np.inf) for each in both]
    )
    to_model, to_control = (
        nearest(pool, each.features, 1, groups=numbers, left_out=left_out).distances[:, 0] for each in both
    )
    own, other = np.where(np.arange(2 * n) < n, [to_model, to_control], [to_control, to_model])
    found, of_control = _judged(numbers, own, other, growth)
    around = nearest(pool, pool, NEIGHBOURS, groups=left_out[:, 0], left_out=left_out)
    by_chance = _exchanged_differences(around, growth, np.random.default_rng(seed))
    n_as_far = int((by_chance >= found.repeats.k - of_control.repeats.k).sum())
    return Repeats(
        found,
        of_control,
        n_telling=(int(np.isfinite(growth[:n]).sum()), int(np.isfinite(growth[n:]).sum())),
        p_value=max((1 + n_as_far) / (1 + N_EXCHANGES), p_value(found.repeats, of_control.repeats)),
        level=level,
    )


def _exchanged_differences(around: Neighbours, growth: Array, draws: np.random.Generator) -> NDArray[np.int64]:
    """k - l of each random exchange, (``N_EXCHANGES``,).

    Args:
        around: the nearest of the pool of both sets, nearest first, for each of it: (2n, ``NEIGHBOURS``).
    """
    n, differences = len(growth) // 2, []
    for begin in range(0, N_EXCHANGES, EXCHANGES_AT_ONCE):
        is_exchanged = draws.random((min(EXCHANGES_AT_ONCE, N_EXCHANGES - begin), n)) < 0.5
        side = np.concatenate([is_exchanged, ~is_exchanged], axis=1)
        is_own = side[:, around.indices] == side[:, :, None]
        own, other = (around.distances[np.arange(2 * n), first(is_own, axis=2)] for first in (np.argmax, np.argmin))
        one, two = _judged(np.arange(n) + n * is_exchanged, own, other, growth)
        differences.append(one.is_repeat.sum(axis=1) - two.is_repeat.sum(axis=1))
    return np.concatenate(differences)


def _judged(rows: NDArray[np.int64], own: Array, other: Array, growth: Array) -> tuple[Judged, Judged]:
    """The set of these rows (..., n) of the pool, and the set of the others.

    Args:
        own, other: from each of the pool to the nearest of its own set, and to that of the other one, (..., 2n).
        growth: -inf where an image tells nothing, (2n,).
    """
    n = rows.shape[-1]
    ratio = np.divide(own, other, out=np.ones_like(own), where=np.isfinite(growth) & (other > 0.0))
    sets = rows, (rows + n) % (2 * n)
    ratios, growths = [np.take_along_axis(ratio, each, -1) for each in sets], [growth[each] for each in sets]
    near_below = [NEAR * np.minimum(1.0, _quantile(each, APART)) for each in ratios]
    steep_above = np.maximum(*(_quantile(each, STEEP) for each in growths))
    one, two = (Judged(r, r < below, g > steep_above) for r, g, below in zip(ratios, growths, near_below, strict=True))
    return one, two


def _quantile(values: Array, q: float) -> Array:
    return np.asarray(np.quantile(values, q, axis=-1, method="lower", keepdims=True))


def nearest_others(features: NDArray[np.float32]) -> tuple[NDArray[np.int64], Array, Array]:
    """Of each image the row of the nearest other, the distance, and that over the mean of the ``SURROUNDING`` nearest.

    An image that is there twice has itself for a nearest other, at no distance.
    """
    found = nearest(features, features, SURROUNDING + 1)
    rows = np.arange(len(features))
    is_itself = found.indices == rows[:, None]
    is_itself[~is_itself.any(axis=1), -1] = True  # among so many identical ones it is not found: the last is as good
    order = np.argsort(is_itself, axis=1, kind="stable")[:, :-1]
    distances = np.take_along_axis(found.distances, order, axis=1)
    indices = np.take_along_axis(found.indices, order, axis=1)
    mean = distances.mean(axis=1)
    return indices[:, 0], distances[:, 0], np.divide(distances[:, 0], mean, out=np.ones(len(mean)), where=mean > 0.0)


def answer(found: Repeats | None, n: int) -> dict[str, Any]:
    """Level, sentence and reason: the conclusion, or *ranked_only* where there is no control."""
    if found is None:
        return {
            "level": "ranked_only",
            "sentence": f"Nothing is concluded: {n:,} generated images are ranked, and a rank is no proof.",
            "reason": "There is no control. Give --control CHECKPOINT, a model of the same kind of images that gives "
            "no training image back: trained alike on other images, or, if this training is finished, an early state.",
        }
    (k, _), control = found.model.repeats, found.control.repeats
    counts = f"{k:,} of {n:,} images are repeats, and {control.k:,} of {n:,} of the control"
    test = f"Random exchanges of both models' images, and Fisher's exact test: p = {found.p_value:.2g}, level "
    test += f"{found.level:g}."
    level, least = found.conclusion, least_share(n, {OF_THE_SAME_KIND: control}, found.level)
    if level == "repeats_itself":
        sentence = f"The model repeats itself more than its control does: {counts}."
        reason = f"{test} A model that gives training images back does so. One that has collapsed to few pictures, or "
        reason += "is not trained to its end, may do so too: look at the pairs."
    elif level == "not_shown":
        sentence = f"It is not shown that the model repeats itself: {counts}. It may still give images back."
        reason = f"{test} Images that come out once in {n:,} have no repeat to be told by."
        if least is not None:
            reason += f" A share of {least:.1%} repeats would have been seen with {POWER:.0%} probability."
    elif found.is_told:
        sentence = f"Whether the model repeats itself is inconclusive: {counts}, but nearly all of its images are far "
        sentence += "nearer to one another than to the control's."
        reason = (
            "It gives few pictures again and again, or the control makes other images. Give a control whose images "
        )
        reason += "are more like the model's."
    else:
        sentence = f"Whether the model repeats itself is inconclusive: {found.n_telling[0]:,} of {n:,} images tell "
        sentence += f"something, and {found.n_telling[1]:,} of {n:,} of the control."
        reason = (
            f"At least {FEWEST_TELLING} of either must be neither blank nor without a finite growth. Generate more "
        )
        reason += "with --samples, or give another checkpoint."
    return {"level": level, "sentence": sentence, "reason": reason}

r"""Does a model repeat itself? A decision without its training images, on two sets of generated images.

Images x_1 ... x_n come from the model, y_1 ... y_n from a control: a model of the same kind of images that gives no
training image back. A model that has learned single images by heart gives the same picture from independent noise, and
its ODE stretches the surroundings of that picture. Either alone is told of innocent models too: an unfinished training
gives the mean picture again and again, and growth rises with any training. So a generated image is called a *repeat*
only if both hold:

    near    d(x, other images of its model) < ``NEAR`` d(x, images of the control)
    steep   growth along eps at x, under its model, is above the ``STEEP`` quantile of the control's own images

Blank images and plain gradients are never repeats: they look alike without being copies, and a model that fails gives
them again and again, at the very edge of the pixels' range, where growth is high.

Both distances are those to the nearest of n / 2 images of either set: images of even number are the references of those
of odd number, and the other way round. The control's images are judged alike with the two sets exchanged. That
the distance to the control is the measure, and not the one to the second nearest of the same model, is for pictures
that come out often: beside the third of them the first two are nothing special.

Conclusion. Given the references, the images of odd number are independent draws. So many of the model's are repeats,
k of m, so many of the control's, l of m. Fisher's exact test of equal probabilities, one-sided at ``level``, rejects
where the model repeats itself more; ``FEWEST`` repeats are needed. Given the references, at most ``level`` of models
that repeat themselves no more than the control are accused. That a model repeats itself is not that it gives training
images back: one that has collapsed to few dimensions does the first alone. tests/studies/probe.py counts how often
models that know no image are accused.

Flags. s = the ratio of the two distances where the image is steep, else infinite; conformal p-values of s among the
control's, and Benjamini-Hochberg at ``level`` over all images. Flagged is a repeat with such a p-value, and only after
a conclusion. With n images of each set no fewer than 1 / ``level`` can be flagged.

Sources: Fisher 1935; Bates et al. 2023, arXiv 2104.08279; the third is that of the ratio rule (Yoon et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentprint.tasks.evidence.copies import nearest
from latentprint.tasks.evidence.flags import flag
from latentprint.tasks.evidence.reproduction import Counts, p_value
from latentprint.tasks.evidence.statistics import Array

NEAR = 1.0 / 3.0
STEEP = 0.95
FEWEST = 2
SURROUNDING = 50
"""Other images of the model whose mean distance a nearest one is held against, without a control."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Generated:
    """Images of one model, in the order of their numbers."""

    features: NDArray[np.float32]
    """(n, d)"""
    growth: Array
    """Along the predicted noise, under the model that generated them, (n,) [nats]."""
    is_telling: Mask
    """Is there enough in the image to tell it from others? (n,)"""


@dataclass(frozen=True)
class Repeats:
    """What either set is found to be; arrays are of the model's images, (n,)."""

    ratio: Array
    """Distance to the nearest of its model's other half, over that to the nearest of the control's."""
    is_repeat: Mask
    p_values: Array
    adjusted: Array
    """Benjamini-Hochberg adjusted p-values."""
    is_flagged: Mask
    steep_above: float
    """Growth of the control that is exceeded by 1 - ``STEEP`` of its images [nats]."""
    model: Counts
    """Repeats among its images of odd number."""
    control: Counts
    p_value: float
    level: float
    n_near: int
    """Of the model's images of odd number: near, steep or not."""
    n_steep: int

    @property
    def is_concluded(self) -> bool:
        """Does the model repeat itself more than the control?"""
        return _is_concluded(self.model, self.p_value, self.level)


def _is_concluded(model: Counts, p: float, level: float) -> bool:
    return model.k >= FEWEST and p <= level


def find_repeats(model: Generated, control: Generated, level: float) -> Repeats:
    """Both sets judged alike; see the module's head.

    Raises:
        ValueError: fewer than four images in a set, or another level than 0 < level < 1.
    """
    if min(len(model.features), len(control.features)) < 4:
        raise ValueError("at least four images of the model and of the control are needed")
    finite = control.growth[np.isfinite(control.growth)]
    steep_above = float(np.quantile(finite, STEEP)) if len(finite) else np.inf
    ratios = ratio_to_control(model.features, control.features), ratio_to_control(control.features, model.features)
    steep = tuple((each.growth > steep_above) & each.is_telling for each in (model, control))
    repeats = tuple((ratio < NEAR) & is_steep for ratio, is_steep in zip(ratios, steep, strict=True))
    counts, of_control = (Counts(int(each[1::2].sum()), len(each[1::2])) for each in repeats)
    p = p_value(counts, of_control)
    scores, controls = (-np.where(is_steep, ratio, 1e9) for ratio, is_steep in zip(ratios, steep, strict=True))
    flags = flag(scores, controls, alpha=level)
    is_flagged = flags.flagged & repeats[0] & _is_concluded(counts, p, level)
    return Repeats(
        ratio=ratios[0],
        is_repeat=repeats[0],
        p_values=flags.p_values,
        adjusted=flags.adjusted,
        is_flagged=is_flagged,
        steep_above=steep_above,
        model=counts,
        control=of_control,
        p_value=p,
        level=level,
        n_near=int((ratios[0] < NEAR)[1::2].sum()),
        n_steep=int(steep[0][1::2].sum()),
    )


def ratio_to_control(images: NDArray[np.float32], control: NDArray[np.float32]) -> Array:
    """d(x, nearest of the other half of its own set) / d(x, nearest of that half of the control), (n,)."""
    ratio = np.empty(len(images))
    for half in (0, 1):
        own = nearest(images[half::2], images[1 - half :: 2], 1).distances[:, 0]
        other = nearest(images[half::2], control[1 - half :: 2], 1).distances[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio[half::2] = np.where(other > 0.0, own / other, 1.0)  # the control has it too: nothing to tell
    return ratio


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
    """Level, sentence and reason: *repeats_itself*, *not_shown*, or *ranked_only* where there is no control."""
    if found is None:
        return {
            "level": "ranked_only",
            "sentence": f"Nothing is concluded: {n:,} generated images are ranked, and a rank is no proof.",
            "reason": "There is no control. Give --control CHECKPOINT, a model of the same kind of images that gives "
            "no training image back: trained alike on other images, or an early state of this training.",
        }
    k, m = found.model
    counts = f"{k:,} of {m:,} judged images are repeats, and {found.control.k:,} of {found.control.n:,} of the control"
    test = f"Fisher's exact test, one-sided: p = {found.p_value:.2g}, level {found.level:g}."
    if found.is_concluded:
        return {
            "level": "repeats_itself",
            "sentence": f"The model repeats itself more than its control does: {counts}.",
            "reason": f"{test} A model that gives training images back does so. One that has collapsed to few "
            "pictures, or is not trained to its end, may do so too: look at the pairs.",
        }
    return {
        "level": "not_shown",
        "sentence": f"It is not shown that the model repeats itself: {counts}. It may still give images back.",
        "reason": f"{test} Images that come out once in {n:,} have no repeat to be told by.",
    }

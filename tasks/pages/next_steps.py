"""What whoever reads the answers does next, with the exact command for it.

RUN is the run directory; words in capitals beside it are the reader's to fill in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentprint.tasks.evidence.membership import MINIMUM_GROUPS as MINIMUM_CONTROLS
from latentprint.tasks.pages.formats import is_finite
from latentprint.tasks.pages.headline import answers

FEWEST_SAMPLES, MORE = 4096, 4
"""Generated images to ask for, and by how much more where a count was not enough."""
AUDIT = "latentprint audit --model MODEL --train TRAIN --holdout HOLDOUT --out NEW_RUN"
AGAIN = "latentprint audit --model NEW_MODEL --train CLEANED --holdout HOLDOUT --before RUN --out NEW_RUN"
GATE = "latentprint gate --run RUN --max-auc 0.6 --max-memorized-share 0.01"


@dataclass(frozen=True)
class Step:
    """One thing to do."""

    text: str
    command: str


def next_steps(evidence: Mapping[str, Any], came_out: Sequence[Mapping[str, Any]] = ()) -> tuple[Step, ...]:
    """The steps in their order.

    Args:
        came_out: training images that came out, each with its ``copies`` in the training set.
    """
    return (*_about_copies(evidence, came_out), *_about_membership(evidence), *_when_all_is_answered(evidence))


def _about_copies(evidence: Mapping[str, Any], came_out: Sequence[Mapping[str, Any]]) -> Iterator[Step]:
    level, found = answers(evidence).reproduction.level, _question(evidence, "reproduction")
    if level == "counted":
        if came_out and all(row["copies"] == 1 for row in came_out):
            dropped = "latentprint curate --run RUN --action drop --images what_came_out --out CLEANED"
            yield Step("Training images that occur once came out. Remove them from the training set.", dropped)
        else:
            deduped = "latentprint curate --run RUN --action dedupe --out CLEANED"
            yield Step("Repeated training images came out. Keep one of each in the training set.", deduped)
        yield Step("Train a new model on the cleaned set. Then measure what changed.", AGAIN)
    if level == "not_asked":
        yield Step("Generate images, and count the copies among them.", _extract(FEWEST_SAMPLES))
    if level == "inconclusive":
        n = found.get("n_samples")
        more = max(FEWEST_SAMPLES, MORE * int(n)) if is_finite(n) else FEWEST_SAMPLES
        yield Step("Generate more images, and count again.", _extract(more))


def _about_membership(evidence: Mapping[str, Any]) -> Iterator[Step]:
    """Where the question is open, the remedy of the reason."""
    found = _question(evidence, "membership")
    if answers(evidence).membership.level != "inconclusive":
        return
    sizes = [n for n in (found.get("n_train"), found.get("n_holdout")) if is_finite(n)]
    interval = (found.get("auc") or {}).get("interval_95")
    if found.get("n_holdout") == 0:
        yield Step("Add held-out images. Membership cannot be tested without them.", AUDIT)
    elif found.get("is_void"):
        yield Step("Take held-out images and training images from the same source. Then audit again.", AUDIT)
    elif sizes and min(sizes) < MINIMUM_CONTROLS:
        yield Step(f"Add images: each side needs at least {MINIMUM_CONTROLS} that differ from each other.", AUDIT)
    elif interval and interval[1] < 0.5:
        swapped = "Check that the two splits are not exchanged, and that both were prepared as for training."
        yield Step(swapped, "latentprint doctor --model MODEL --train TRAIN --holdout HOLDOUT")
    else:
        yield Step("Add held-out images from the same source. Then audit again.", AUDIT)


def _when_all_is_answered(evidence: Mapping[str, Any]) -> Iterator[Step]:
    found = answers(evidence)
    if found.reproduction.level == "none_counted" and found.membership.level != "inconclusive":
        yield Step("Hold later checkpoints to limits of your own.", GATE)


def _extract(n_samples: int) -> str:
    return f"latentprint extract --run RUN --samples {n_samples}"


def _question(evidence: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = evidence.get("verdict")
    found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}

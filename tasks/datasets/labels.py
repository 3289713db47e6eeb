"""Class indices of labels, for a class-conditional model: settled once, before the network runs.

The first of these that applies decides; the result is recorded in ``run.json`` where labels are not indices already:

1. a file that the user gives, ``{"cat": 0, "dog": 1}``, or the classes of the run before the set was cleaned;
2. ids that the training source carries (a Hugging Face ClassLabel, a cleaned set), whose order need not be that of
   the names;
3. labels that are decimal numbers below the number of classes are the indices;
4. the distinct names in sorted order, if they are as many as the classes (the rule of torchvision's ImageFolder).

A model that was trained with other indices gives other scores, and nothing in its weights tells: hence no more guesses.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from latentprint.tasks.bounded import Oversized, read_file
from latentprint.tasks.datasets.decoding import in_words
from latentprint.tasks.datasets.sources import open_source
from latentprint.tasks.datasets.sources.names import as_label, shortened
from latentprint.tasks.errors import UserError
from latentprint.tasks.store.splits import split_of

LARGEST_MAP = 2**24
"""Bytes of a file of labels."""
MOST_LABELS = 2**16
"""Distinct labels of a source that are looked at: more are not classes."""
MOST_NAMED = 5
"""Labels that a message names."""

Ids = dict[str, int]
"""Label -> class index."""
Labels = Mapping[str | None, str]
"""Label, None for none -> the place of the first image that has it."""
EXAMPLE = 'a file such as {"cat": 0, "dog": 1}'
REMEDY = f"give --labels map.json, {EXAMPLE}"


class LabelError(UserError):
    """The labels of the images are not classes of the model."""


class Classes(NamedTuple):
    """What the labels mean to the model."""

    ids: Ids | None
    """None: labels are the indices themselves."""
    rule: str
    """By which that is so, in words."""


def read_labels(path: str | Path) -> Ids:
    """The file of ``--labels``.

    Raises:
        LabelError: it is no JSON object of whole numbers from 0 on, or has a label twice.
    """
    try:
        content = json.loads(read_file(Path(path), LARGEST_MAP), object_pairs_hook=_once)
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        return {as_label(name): _index(name, value) for name, value in content.items()}
    except (OSError, ValueError, Oversized, RecursionError) as error:
        reason = getattr(error, "strerror", None) or in_words(error)
        raise LabelError(f"--labels {path}: cannot be read ({reason}); give {EXAMPLE}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a label is there twice")
    return dict(pairs)


def _index(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"the class of {shortened(name, 40)!r} is {value!r:.40}, no whole number from 0 on")
    return value


def labels_of(items: Iterable[tuple[str, str | None]], deadline: float = math.inf) -> Labels:
    """Of (place, label) pairs, each label with the place of its first image.

    Args:
        deadline: of ``time.monotonic``, after which no more are read.

    Raises:
        LabelError: they are more than ``MOST_LABELS``.
    """
    found: dict[str | None, str] = {}
    for uri, label in items:
        if label not in found:
            found[label] = uri
            if len(found) > MOST_LABELS:
                raise LabelError(f"{uri}: more than {MOST_LABELS} distinct labels are not classes: {REMEDY}")
        if time.monotonic() > deadline:
            break
    return found


def class_ids_of(sources: Mapping[str, str]) -> dict[str, Ids]:
    """Source -> ids that it carries; sources that carry none are left out.

    Raises:
        SourceError: a source cannot be read.
    """
    found = {name: open_source(location).class_ids() for name, location in sources.items()}
    return {name: ids for name, ids in found.items() if ids}


def settle(
    n_classes: int,
    labels: Mapping[str, Labels],
    carried: Mapping[str, Ids],
    given: Ids | None = None,
    given_by: str = "--labels",
) -> Classes:
    """What the labels mean to a model of so many classes; see the module for the order of the rules.

    Args:
        labels: source -> its labels.
        carried: source -> ids that it carries.
        given: the user's map, or the one of an earlier run.
        given_by: which of these.

    Raises:
        LabelError: an image has no label, or one without a class, or no rule applies.
    """
    for of_source in labels.values():
        if None in of_source:
            raise LabelError(
                f"{of_source[None]}: no label, and this model's {n_classes} classes need one of each image"
            )
    classes = _classes(n_classes, labels, carried, given, given_by)
    if given is None:
        _require_ids_once(labels, carried)
    for source, of_source in labels.items():
        for label, uri in of_source.items():
            _require_class(str(label), uri, source, classes, n_classes)
    if given is None:
        _require_agreement(classes, labels, carried)
    return classes


def _classes(
    n_classes: int, labels: Mapping[str, Labels], carried: Mapping[str, Ids], given: Ids | None, given_by: str
) -> Classes:
    trained = sorted(map(str, labels.get("train", {})))
    if given is not None:
        outside = [name for name, index in given.items() if index >= n_classes]
        if outside:
            index = given[outside[0]]
            raise LabelError(
                f"{given_by}: {shortened(outside[0], 40)} is class {index}; this model's are 0 ... {n_classes - 1}"
            )
        return Classes(given, f"by {given_by}")
    if ids := carried.get("train"):
        kept = {name: index for name, index in ids.items() if 0 <= index < n_classes}
        same = all(_is_index(name, n_classes) and int(name) == index for name, index in kept.items())
        return Classes(None if same else kept, "as the data set says")
    if all(_is_index(label, n_classes) for of_source in labels.values() for label in map(str, of_source)):
        return Classes(None, "labels are the indices")
    if len(trained) == n_classes and not all(map(_is_number, trained)):
        return Classes({name: index for index, name in enumerate(trained)}, "names in sorted order")
    some = ", ".join(shortened(name, 40) for name in trained[:MOST_NAMED]) + ", ..." * (len(trained) > MOST_NAMED)
    reason = "numbers that are not indices of it" if len(trained) == n_classes else "which are not as many"
    raise LabelError(
        f"the model has {n_classes} classes and the training images {len(trained)} labels ({some}), {reason}: {REMEDY}"
    )


def _require_class(label: str, uri: str, source: str, classes: Classes, n_classes: int) -> None:
    if classes.ids is None and _is_index(label, n_classes):
        return
    if classes.ids is not None and label in classes.ids:
        return
    which = "a held-out" if split_of(source) == "holdout" else "a training"
    raise LabelError(
        f"{uri}: label {shortened(label, 40)} of {which} image has no class among this model's {n_classes} "
        f"({classes.rule}): {REMEDY}"
    )


def _require_ids_once(labels: Mapping[str, Labels], carried: Mapping[str, Ids]) -> None:
    for source, ids in carried.items():
        if twice := [label for label in map(str, labels.get(source, ())) if ids.get(label, 0) < 0]:
            raise LabelError(f"label {shortened(twice[0], 40)} has different ids in files of --{source}: {REMEDY}")


def _require_agreement(classes: Classes, labels: Mapping[str, Labels], carried: Mapping[str, Ids]) -> None:
    """Do the ids that a held-out source carries say the same?"""
    for source, ids in carried.items():
        for label in map(str, labels.get(source, ())):
            index = int(label) if classes.ids is None else classes.ids[label]
            if ids.get(label, index) != index:
                raise LabelError(
                    f"{labels[source][label]}: label {shortened(label, 40)} is class {ids[label]} in its data set, and "
                    f"{index} for the training images ({classes.rule}): {REMEDY}"
                )


def _is_index(label: str, n_classes: int) -> bool:
    return label.isdecimal() and len(label) < 20 and int(label) < n_classes


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def in_order(ids: Ids) -> Iterator[tuple[str, int]]:
    """Labels and classes by class."""
    yield from sorted(ids.items(), key=lambda item: (item[1], item[0]))

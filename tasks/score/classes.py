"""Which class of a class-conditional model each label means: planned from sources or manifest, then looked up."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentprint.tasks.datasets.labels import Classes, Ids, Labels, class_ids_of, in_order, labels_of, settle
from latentprint.tasks.datasets.sources import SourceError, open_source
from latentprint.tasks.diffusion.checkpoint import n_classes
from latentprint.tasks.diffusion.layout import Source
from latentprint.tasks.parameters import ScoreParameters
from latentprint.tasks.store.checksums import is_sharded
from latentprint.tasks.store.manifest import first_of_labels
from latentprint.tasks.store.run import RunDirectory

MOST_SHOWN = 10
logger = logging.getLogger("latentprint")


def planned(
    model: Source,
    parameters: ScoreParameters,
    sources: Mapping[str, str],
    run: RunDirectory,
    before: Path | None = None,
) -> ScoreParameters:
    """The same parameters with the classes of the labels, before anything is written.

    Args:
        sources: as from :func:`latentprint.tasks.datasets.holdouts.named_sources`. They are read for their labels
            unless the run has a manifest of them by now.
        before: the run of the model before its training set was cleaned, whose classes hold.

    Raises:
        LabelError: the labels are not classes of the model.
        SourceError: a source cannot be read.
    """
    if n_classes(model) is None:
        return parameters
    if is_sharded(run):
        known = _given(parameters, before)
        given = parameters.model_copy(update={"labels": known})
        return planned_from_run(model, given, run, class_ids_of(sources))
    classes = classes_of_sources(model, parameters, sources, before)
    logger.info("%s", in_words(classes))
    return parameters.model_copy(update={"labels": classes.ids})


def classes_of_sources(
    model: Source,
    parameters: ScoreParameters,
    sources: Mapping[str, str],
    before: Path | None = None,
    deadline: float = math.inf,
) -> Classes:
    """What the labels that are read by then mean to a class-conditional model. Raises as :func:`planned`."""
    count = n_classes(model)
    assert count is not None
    labels = {name: labels_of(open_source(location).labels(), deadline) for name, location in sources.items()}
    carried = class_ids_of(sources)
    given_by = f"--before {before}" if before and parameters.labels is None else "--labels"
    return settle(count, labels, carried, _given(parameters, before), given_by)


def _given(parameters: ScoreParameters, before: Path | None) -> Ids | None:
    """The user's map, else the classes of the run before."""
    if parameters.labels is not None or before is None:
        return parameters.labels
    return recorded_classes(RunDirectory(before).read_record())


def planned_from_run(
    model: Source, parameters: ScoreParameters, run: RunDirectory, carried: Mapping[str, Ids] | None = None
) -> ScoreParameters:
    """The same parameters with the classes of the labels in the manifest; those that the run was begun with stay.

    Args:
        carried: ids of the sources, where these are at hand; else those that the run recorded.

    Raises:
        LabelError: the labels are not classes of the model.
    """
    count = n_classes(model)
    if count is None:
        return parameters
    record = run.read_record()
    labels: dict[str, Labels] = {name: labels_of(pairs) for name, pairs in first_of_labels(run.manifest).items()}
    given = parameters.labels if parameters.labels is not None else recorded_classes(record)
    known = record.get("class_ids") or {} if carried is None else carried
    return parameters.model_copy(update={"labels": settle(count, labels, known, given).ids})


def recorded_classes(record: Mapping[str, Any]) -> Ids | None:
    """Label -> class, as ``run.json`` has it; None where labels are the classes, or the model has none."""
    return ((record.get("scoring") or {}).get("parameters") or {}).get("labels")


def class_of(row: Mapping[str, Any], count: int | None, ids: Ids | None) -> int | None:
    """The image's class, for a model of ``count`` classes; None where it has none.

    Raises:
        SourceError: the image's label has no class, which planning would have said.
    """
    if count is None:
        return None
    label = row["label"]
    if ids is not None and label in ids:
        return ids[label]
    if ids is None and label is not None and str(label).isdecimal() and int(label) < count:
        return int(label)
    raise SourceError(f"{row['sample_id']}: label {label}; this class-conditional model needs 0 ... {count - 1}")


def in_words(classes: Classes) -> str:
    """The mapping in a line, the first ``MOST_SHOWN`` classes of it."""
    if classes.ids is None:
        return f"classes of the labels: {classes.rule}"
    pairs = [f"{label} = {index}" for label, index in in_order(classes.ids)]
    more = f", ... ({len(pairs)} in all)" if len(pairs) > MOST_SHOWN else ""
    return f"classes of the labels, {classes.rule}: {', '.join(pairs[:MOST_SHOWN])}{more}"

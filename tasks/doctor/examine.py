"""What could stop an audit: inputs, checkpoint, parameters, output, device, memory and disk are checked beforehand.

Nothing is written. Only the last check evaluates the network, a few times, on the first images.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from latentprint.tasks.compute.devices import DeviceError, cores, devices_for, threads_for
from latentprint.tasks.datasets.apart import require_apart
from latentprint.tasks.datasets.fingerprint import fingerprint
from latentprint.tasks.datasets.labels import LabelError
from latentprint.tasks.datasets.sources import SourceError
from latentprint.tasks.diffusion.checkpoint import image_shape, n_classes
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.diffusion.code_model import CodeModel
from latentprint.tasks.diffusion.layout import Resolved, resolve
from latentprint.tasks.doctor.checks import (
    ParametersError,
    check_parameters,
    check_sampler,
    require_loadable,
    shape_in_words,
)
from latentprint.tasks.doctor.images import count_items, look_at_holdout, look_at_images
from latentprint.tasks.doctor.patient import Check, Patient, size
from latentprint.tasks.doctor.probe import probe_network
from latentprint.tasks.errors import first_line
from latentprint.tasks.score.classes import classes_of_sources, in_words
from latentprint.tasks.store.ownership import holder, require_ours
from latentprint.tasks.store.run import RunDirectory, RunError, difference

__all__ = ["Check", "Patient", "examine"]

LABEL_SECONDS = 60.0
"""Longest time spent on reading the labels of all sources."""
MOST_THREADS = 1024
"""Of a worker: torch crashes on many more, without an error that could be caught."""
MANIFEST_BYTES, PART_BYTES, MEMBER_BYTES = 200, 150, 2048
"""Of disk an image, beside its file: manifest row, scores with their tables, the tar's two headers and padding."""


def examine(patient: Patient) -> Iterator[Check]:
    """Every check, in the order in which a run would fail; the network runs only if nothing failed before."""
    fatal = False
    for check in _before_theprobe(patient):
        fatal |= check.status == "fail"
        yield check
    if patient.checkpoint and not fatal:
        yield from probe_network(patient, patient.checkpoint, patient.devices)


def _before_theprobe(patient: Patient) -> Iterator[Check]:
    yield _safely("checkpoint", _checkpoint, patient)
    if patient.checkpoint:
        yield _safely("parameters", _parameters, patient, patient.checkpoint)
    yield _safely("device", _device, patient)
    for source, location in patient.sources.items():
        counted = _safely(f"{source} items", count_items, patient, source, location)
        yield _safely(f"{source} images", look_at_images, patient, source, location)
        yield counted
    if patient.checkpoint and n_classes(patient.checkpoint) is not None:
        yield _safely("labels", _labels, patient, patient.checkpoint)
    if "holdout" not in patient.sources:
        remedy = "give --holdout: images of the same source that were never trained on"
        yield Check("holdout", "warn", "none: only repeated training images can be compared with others", remedy)
    elif len(patient.fitting_pictures) == len(patient.sources):
        for source in (source for source in patient.sources if source != "train"):
            yield _safely(source, look_at_holdout, patient, source)
    yield _safely("output", _output, patient)
    for option, path in (("reuse", patient.reuse), ("before", patient.before)):
        if path is not None:
            yield _safely(option, _earlier_run, patient, option, RunDirectory(path))
    if patient.pictures:
        yield _safely("disk", _disk, patient)


def _safely(name: str, look: Callable[..., Check], *arguments: Any) -> Check:
    """The check, or that it failed."""
    try:
        return look(*arguments)
    except Exception as error:  # whoever reads the answer, a program perhaps, gets one: the run would meet the same
        finding = f"{type(error).__name__}: {first_line(error)}"
        return Check(name, "fail", finding, "nobody foresaw this: please report it, with the command")


def _checkpoint(patient: Patient) -> Check:
    try:
        checkpoint = resolve(patient.model, **patient.loading.model_dump())
        takes = image_shape(checkpoint)
        model = require_loadable(checkpoint)
    except CheckpointError as error:
        return Check(
            "checkpoint",
            "fail",
            str(error),
            "give a diffusers pipeline, a checkpoint of a training, or a network and its --scheduler",
        )
    patient.checkpoint, patient.takes = checkpoint, takes
    weights = "" if isinstance(checkpoint, CodeModel) else ", safetensors, all weights finite"
    kind = f"{model.schedule.n_timesteps} timesteps{weights}"
    finding = ". ".join([f"takes images of {shape_in_words(*takes)}, {kind}", *checkpoint.choices()]).rstrip(".")
    return Check("checkpoint", "ok", finding, values=dict(zip(("channels", "height", "width"), takes, strict=True)))


def _parameters(patient: Patient, checkpoint: Resolved) -> Check:
    scoring = patient.scoring
    try:
        check_parameters(checkpoint, scoring)
        if patient.extraction:
            check_sampler(checkpoint, patient.extraction)
    except (ParametersError, CheckpointError) as error:
        return Check("parameters", "fail", str(error), "choose values within the model's schedule and dimension")
    steps = f"axes {scoring.axes}, steps {scoring.steps} from timestep {scoring.timestep}, {scoring.estimator}"
    return Check("parameters", "ok", steps, values=scoring.model_dump(mode="json"))


def _labels(patient: Patient, checkpoint: Resolved) -> Check:
    """Has each label a class of the model? Those that are read in time are looked at; an audit reads all."""
    deadline = time.monotonic() + LABEL_SECONDS
    try:
        classes = classes_of_sources(checkpoint, patient.scoring, patient.sources, patient.before, deadline)
    except SourceError as error:
        return Check("labels", "fail", str(error), "give a source that is there and can be read")
    except LabelError as error:
        if time.monotonic() > deadline:
            return Check("labels", "warn", f"not all were read within {LABEL_SECONDS:.0f} s: {error}")
        finding, _, remedy = str(error).rpartition(": give ")
        return Check(
            "labels", "fail", finding or str(error), f"give {remedy}" if finding else "give each image a label"
        )
    patient.scoring = patient.scoring.model_copy(update={"labels": classes.ids})
    values = {"rule": classes.rule, "ids": classes.ids}
    if time.monotonic() > deadline:
        finding = f"{in_words(classes)}; not all were read within {LABEL_SECONDS:.0f} s"
        return Check("labels", "warn", finding, "the audit reads all before it starts", values)
    return Check("labels", "ok", in_words(classes), values=values)


def _device(patient: Patient) -> Check:
    try:
        devices = devices_for(patient.compute)
    except DeviceError as error:
        return Check("device", "fail", str(error), "name a device of this machine, or leave --device out")
    patient.devices = devices
    threads = threads_for(patient.compute, devices)
    finding = f"{', '.join(devices)}, {threads} CPU thread{'s' if threads > 1 else ''} each"
    values = {"devices": devices, "threads": threads}
    if threads > cores():
        finding = f"{finding}, of {cores()} CPU core{'s' if cores() > 1 else ''}"
        remedy = "give fewer --threads, or leave it out"
        return Check("device", "fail" if threads > MOST_THREADS else "warn", finding, remedy, values)
    slow = "cpu" in devices and torch.cuda.is_available()
    remedy = "leave --device out to use the GPU" if slow else ""
    return Check("device", "warn" if slow else "ok", finding, remedy, values)


def _output(patient: Patient) -> Check:
    """May a run be written there, and if there is one, is it this one?"""
    out = patient.out
    place = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if not place.is_dir():
        return Check("output", "fail", f"{place} is not a folder", "choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        return Check("output", "fail", f"{place} may not be written to", "choose another --out, or its owner")
    if process := holder(out):
        return Check("output", "fail", f"{out} is in use by process {process}", "wait, or choose another --out")
    directory = RunDirectory(out)
    try:
        require_ours(out, "run")
        for location in patient.sources.values():
            require_apart(out, location, directory.location)
    except (RunError, SourceError) as error:
        return Check("output", "fail", str(error), "choose another --out")
    if not directory.record.exists():
        return Check("output", "ok", f"{out}, which {'is there' if place == out else 'will be made'}")
    try:
        record = directory.read_record()
    except RunError as error:
        return Check("output", "fail", str(error), "choose another --out")
    for stage, identity in _identities(patient).items():
        if record.get(stage) not in (None, identity):
            finding = f"{out} holds another run ({difference(record[stage], identity)})"
            return Check("output", "fail", finding, "choose another --out")
    return Check("output", "ok", f"{out} holds this run, which will be resumed")


def _earlier_run(patient: Patient, option: str, run: RunDirectory) -> Check:
    """Can the run of --reuse or --before be used with these parameters?"""
    known, wanted = run.read_record(), patient.scoring.model_dump(mode="json")
    if option == "reuse":
        scoring = {
            "checkpoint_sha256": patient.checkpoint.sha256() if patient.checkpoint else "",
            "parameters": wanted,
        }
        if known.get("scoring") == scoring:
            return Check("reuse", "ok", f"{run.location}: its scores are kept; the time below does not count on them")
        finding = f"{run.location}: its scores are of {difference(known.get('scoring') or {}, scoring)}"
        return Check("reuse", "warn", finding, "give the options of that run, or expect that all images are scored")
    extraction = patient.extraction and patient.extraction.model_dump(mode="json")
    for stage, parameters in (("scoring", wanted), ("extraction", extraction)):
        of_run = (known.get(stage) or {}).get("parameters")
        if of_run:  # the samples of both runs will be matched as those of the earlier one were
            of_run = {name: value for name, value in of_run.items() if name != "mirror"}
        if of_run is None or of_run != parameters:
            finding = f"{run.location}: its {stage} is not comparable ({difference(of_run, parameters)})"
            return Check("before", "fail", finding, "give both runs the same scoring options and the same --extract")
    return Check("before", "ok", f"{run.location}: scored and extracted with the same options")


def _identities(patient: Patient) -> dict[str, Any]:
    """What each stage of the run would be made from, as it is claimed in ``run.json``; without what is not there."""
    identities: dict[str, Any] = {}
    if len(patient.n_items) == len(patient.sources):
        identities["data"] = {
            "sources": dict(patient.sources),
            "fingerprints": {name: fingerprint(location) for name, location in patient.sources.items()},
            "parameters": patient.sharding.model_dump(mode="json"),
        }
    if patient.checkpoint:
        parameters = patient.scoring.model_dump(mode="json")
        identities["scoring"] = {"checkpoint_sha256": patient.checkpoint.sha256(), "parameters": parameters}
    return identities


def _disk(patient: Patient) -> Check:
    picture_bytes = float(np.mean([len(picture.file()) for picture in patient.pictures]))
    n = patient.n_in_all + (patient.extraction.samples if patient.extraction else 0)
    needed = n * (picture_bytes + MEMBER_BYTES + MANIFEST_BYTES + PART_BYTES)
    place = next(parent for parent in (patient.out.resolve(), *patient.out.resolve().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    finding = f"about {size(needed)} needed, {size(free)} free at {place}"
    values = {"needed_bytes": round(needed), "free_bytes": free}
    if needed > free:
        return Check("disk", "fail", finding, "free some space, or choose another --out", values)
    if 2 * needed > free:
        return Check("disk", "warn", finding, "free some space: this is an estimate", values)
    return Check("disk", "ok", finding, values=values)

"""What could stop a run, looked at beforehand: inputs, checkpoint, parameters, device, memory, disk; and its time.

Nothing is written. Only the last check evaluates the network, a few times, on the first images.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import psutil
import torch

from tasks.calibrating import candidates, set_aside
from tasks.checks import ITEMS_TO_TRY, PREPARE, ParametersError, check_parameters, shape_in_words
from tasks.datasets.decoding import Picture, Rejected
from tasks.datasets.sources import SourceError, open_source
from tasks.devices import DeviceError, devices_for, threads_for
from tasks.diffusion.checkpoint import CheckpointError, image_shape, load_denoiser, resolve
from tasks.evidence.calibration import FEWEST
from tasks.measuring import measure
from tasks.parameters import ComputeParameters, ScoreParameters, ShardParameters
from tasks.progress import duration
from tasks.scoring import auto_batch_size

COUNT_SECONDS = 60.0
"""Longest time spent on counting a source's items."""
PROBE_SECONDS = 5.0
"""About how long the network is evaluated for the estimate of the time."""
FEW_IMAGES = 30
"""Held-out images below which statistics say little."""
MANIFEST_BYTES, PART_BYTES, MEMBER_BYTES = 200, 150, 2048
"""Of disk an image, beside its PNG: manifest row, scores with their tables, the tar's two headers and their padding."""

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    finding: str
    remedy: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The numbers behind the finding, their units in their names."""


@dataclass
class _Patient:
    """What the checks have learned, for those after them."""

    model: str
    sources: Mapping[str, str]
    scoring: ScoreParameters
    compute: ComputeParameters
    out: Path
    sharding: ShardParameters
    folder: Path | None = None
    devices: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    """Of the first items of all sources, those that fit."""
    n_items: dict[str, int] = field(default_factory=dict)
    """Of each split."""
    decode_seconds: float = 0.0
    """An image."""

    @property
    def n_in_all(self) -> int:
        return sum(self.n_items.values())


class _Cost(NamedTuple):
    """Of an image, in a batch of ``n_images``."""

    seconds: float
    evaluations: int
    n_images: int


def examine(
    model: str,
    sources: Mapping[str, str],
    scoring: ScoreParameters,
    compute: ComputeParameters,
    out: Path,
    sharding: ShardParameters = ShardParameters(),
) -> Iterator[Check]:
    """Every check, in the order in which a run would come to grief; the network runs only if nothing failed till then.

    Args:
        sources: split name -> source location.
        out: where the run would be written.
    """
    patient, fatal = _Patient(model, sources, scoring, compute, out, sharding), False
    for check in _before_the_probe(patient):
        fatal |= check.status == "fail"
        yield check
    if patient.folder and not fatal:
        yield from _probe(patient, patient.folder, patient.devices)


def _before_the_probe(patient: _Patient) -> Iterator[Check]:
    yield _checkpoint(patient)
    if patient.folder:
        yield _parameters(patient, patient.folder)
    yield _device(patient)
    for split, location in patient.sources.items():
        yield _images(patient, split, location)
        yield _count(patient, split, location)
    if "holdout" not in patient.sources:
        remedy = "give --holdout: images of the same source that were never trained on"
        yield Check("holdout", "warn", "none: only repeated training images can be compared with others", remedy)
    if patient.pictures:
        yield _disk(patient)


def _checkpoint(patient: _Patient) -> Check:
    try:
        folder = resolve(patient.model)
        channels, height, width = image_shape(folder)
        model = load_denoiser(str(folder), "cpu")
    except CheckpointError as error:
        return Check("checkpoint", "fail", str(error), "give a DDPMPipeline folder with safetensors weights")
    patient.folder = folder
    takes = shape_in_words(channels, height, width)
    finding = f"takes images of {takes}, {model.schedule.n_timesteps} timesteps, safetensors, all weights finite"
    return Check("checkpoint", "ok", finding, values={"channels": channels, "height": height, "width": width})


def _parameters(patient: _Patient, folder: Path) -> Check:
    scoring = patient.scoring
    try:
        check_parameters(folder, scoring)
    except ParametersError as error:
        return Check("parameters", "fail", str(error), "choose values within the model's schedule and dimension")
    steps = f"axes {scoring.axes}, steps {scoring.steps} from timestep {scoring.timestep}, {scoring.estimator}"
    return Check("parameters", "ok", steps, values=scoring.model_dump(mode="json"))


def _device(patient: _Patient) -> Check:
    try:
        devices = devices_for(patient.compute)
    except DeviceError as error:
        return Check("device", "fail", str(error), "name a device of this machine, or leave --device out")
    patient.devices = devices
    threads = threads_for(patient.compute, devices)
    finding = f"{', '.join(devices)}, {threads} CPU thread{'s' if threads > 1 else ''} each"
    slow = "cpu" in devices and torch.cuda.is_available()
    remedy = "leave --device out to use the GPU" if slow else ""
    return Check("device", "warn" if slow else "ok", finding, remedy, {"devices": devices, "threads": threads})


def _images(patient: _Patient, split: str, location: str) -> Check:
    """Do the first items decode, and fit the checkpoint?"""
    name, pictures, rejected = f"{split} images", [], []
    begin = time.perf_counter()
    try:
        for item, _ in zip(open_source(location), range(ITEMS_TO_TRY), strict=False):
            try:
                pictures.append(patient.sharding.fitting(item.picture()))
            except Rejected as error:
                rejected.append(f"{item.uri} ({error})")
    except SourceError as error:
        return Check(name, "fail", str(error), "give a source that is there and can be read")
    patient.decode_seconds = (time.perf_counter() - begin) / max(1, len(pictures) + len(rejected))
    if not pictures:
        finding = f"{location}: no usable image among its first {ITEMS_TO_TRY} items"
        return Check(name, "fail", f"{finding}, {rejected[0]}" if rejected else finding, "look at the items named")
    values = {"n_tried": len(pictures) + len(rejected), "n_rejected": len(rejected)}
    if patient.folder and (misfit := _misfit(pictures, patient.folder)):
        return Check(name, "fail", f"{location}: {misfit}", PREPARE, values)
    patient.pictures += pictures
    finding = f"{len(pictures)} of the first {values['n_tried']} items decode and fit"
    if not rejected:
        return Check(name, "ok", finding, values=values)
    tolerated = len(rejected) <= patient.sharding.max_bad_fraction * values["n_tried"]
    remedy = "mend them" if tolerated else "mend them, or raise --max-bad-fraction"
    return Check(name, "warn", f"{finding}; not {rejected[0]}", remedy, values)


def _misfit(pictures: list[Picture], folder: Path) -> str:
    """The first picture's shape that the checkpoint does not take, in words; empty: all fit."""
    wanted = image_shape(folder)
    for picture in pictures:
        found = (1 if picture.mode == "L" else 3, picture.size[1], picture.size[0])
        if found != wanted:
            return f"images are {shape_in_words(*found)}, but the model takes {shape_in_words(*wanted)}"
    return ""


def _count(patient: _Patient, split: str, location: str) -> Check:
    name, n_items, deadline = f"{split} items", 0, time.monotonic() + COUNT_SECONDS
    try:
        for n_items, _ in enumerate(open_source(location), start=1):  # noqa: B007
            if time.monotonic() > deadline:
                break
    except SourceError as error:
        return Check(name, "fail", str(error), "give a source that is there and can be read")
    cut = time.monotonic() > deadline
    patient.n_items[split] = n_items
    values = {"n_items": n_items, "all_counted": not cut}
    if cut:
        finding = f"at least {n_items}: not all were counted within {COUNT_SECONDS:.0f} s"
        return Check(name, "warn", finding, "disk and time below are for these alone: scale them up", values)
    if split == "holdout" and n_items < FEW_IMAGES:
        return Check(name, "warn", f"{n_items}: too few to compare with", f"give {FEW_IMAGES} or more", values)
    return Check(name, "ok", f"{n_items}", values=values)


def _disk(patient: _Patient) -> Check:
    png_bytes = float(np.mean([len(picture.png()) for picture in patient.pictures]))
    needed = patient.n_in_all * (png_bytes + MEMBER_BYTES + MANIFEST_BYTES + PART_BYTES)
    place = next(parent for parent in (patient.out.resolve(), *patient.out.resolve().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    finding = f"about {_size(needed)} needed, {_size(free)} free at {place}"
    values = {"needed_bytes": round(needed), "free_bytes": free}
    if needed > free:
        return Check("disk", "fail", finding, "free some space, or choose another --out", values)
    if 2 * needed > free:
        return Check("disk", "warn", finding, "free some space: this is an estimate", values)
    return Check("disk", "ok", finding, values=values)


def _probe(patient: _Patient, folder: Path, devices: list[str]) -> Iterator[Check]:
    """Memory a batch and time for all items, from a few timed evaluations on the first device."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads_for(patient.compute, devices))
    try:
        model = load_denoiser(str(folder), devices[0])
        max_batch = patient.compute.batch_size or auto_batch_size(model)
        a_batch = max(1, max_batch // (patient.scoring.axes + 1))
        pixels = np.stack([np.atleast_3d(picture.pixels).transpose(2, 0, 1) for picture in patient.pictures])
        names = [picture.content_hash for picture in patient.pictures]

        scoring = patient.scoring.at(0) if patient.scoring.timestep == "auto" else patient.scoring

        def timed(scoring: ScoreParameters, n: int) -> _Cost:
            chosen = np.arange(n) % len(names)
            begin = time.perf_counter()
            with model.given(0 if model.n_classes else None):
                columns = measure(model, pixels[chosen], [names[i] for i in chosen], scoring, max_batch)
            return _Cost((time.perf_counter() - begin) / n, columns["n_evaluations"][0], n)

        def typical(scoring: ScoreParameters) -> _Cost:
            n = min(a_batch, max(1, int(PROBE_SECONDS / 3 / timed(scoring, 1).seconds)))
            return sorted(timed(scoring, n) for _ in range(3))[1]

        bare = scoring.bare()
        timed(bare, 1)
        with _peak_memory(model.device) as peak:
            whole = typical(scoring)
        growth = whole if scoring == bare else typical(bare)
    except (RuntimeError, CheckpointError) as error:  # torch raises RuntimeError, of which being out of memory is one
        finding = f"the network does not run on {devices[0]} ({str(error).splitlines()[0]})"
        yield Check("memory", "fail", finding, "choose another --device, or a smaller --batch-size")
        return
    finally:
        torch.set_num_threads(threads)
    yield _memory(peak["bytes"] * a_batch / whole.n_images, model.device, len(devices), max_batch)
    n_tried = len(candidates(model.grid(patient.scoring.grid), patient.scoring))
    yield _time(patient, len(devices), whole, growth, _n_set_aside(patient) * n_tried)


def _memory(needed: float, device: torch.device, n_devices: int, max_batch: int) -> Check:
    """Of ``needed`` bytes a batch; CPU workers share the memory of the machine."""
    if device.type == "cuda":
        free, needed_in_all = torch.cuda.mem_get_info(device)[0], needed
    else:
        free, needed_in_all = psutil.virtual_memory().available, needed * n_devices
    finding = f"about {_size(needed_in_all)} for batches of {max_batch}, {_size(free)} free"
    values = {"needed_bytes": round(needed_in_all), "free_bytes": free, "batch_size": max_batch}
    if needed_in_all > free:
        return Check("memory", "fail", finding, "give a smaller --batch-size", values)
    return Check("memory", "ok", finding, values=values)


def _n_set_aside(patient: _Patient) -> int:
    """Images to calibrate on, at most: repeats are counted as images."""
    of_each = [set_aside(patient.n_items.get(split, 0)) for split in ("train", "holdout")]
    return sum(of_each) if patient.scoring.timestep == "auto" and min(of_each) >= FEWEST else 0


def _time(patient: _Patient, n_devices: int, whole: _Cost, growth: _Cost, n_calibrating: int) -> Check:
    """Of all items.

    Args:
        whole: of an image, without the second timestep, which takes a calibration.
        growth: the same with the growth alone, as it is calibrated.
        n_calibrating: scores of the calibration, all on one device.
    """
    n = patient.n_in_all
    n_more = int(n_calibrating > 0 and patient.scoring.second_timestep == "auto")
    an_image = whole.seconds + n_more * growth.seconds / growth.evaluations
    values = {
        "shard_seconds": n * patient.decode_seconds,
        "calibrate_seconds": n_calibrating * growth.seconds,
        "score_seconds": n * an_image / n_devices,
        "score_seconds_an_image": an_image,
        "calibrate_evaluations": n_calibrating * growth.evaluations,
        "score_evaluations_an_image": whole.evaluations + n_more,
    }
    to_calibrate = f", {duration(values['calibrate_seconds'])} to calibrate" if n_calibrating else ""
    finding = (
        f"about {duration(values['shard_seconds'])} to shard{to_calibrate} and {duration(values['score_seconds'])} to "
        f"score {n} items ({an_image * 1e3:.3g} ms an image and device; repeats are scored once)"
    )
    return Check("time", "ok", finding, values=values)


@contextmanager
def _peak_memory(device: torch.device) -> Iterator[dict[str, float]]:
    """Under ``bytes``: by how much the device's memory in use rose above what it was when the block began."""
    peak = {"bytes": 0.0}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak["bytes"] = float(torch.cuda.max_memory_allocated(device) - before)
        return
    process, finished = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not finished.wait(0.002):
            peak["bytes"] = max(peak["bytes"], float(process.memory_info().rss - before))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        finished.set()
        watcher.join()


def _size(n_bytes: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.3g} {unit}"
    return f"{n_bytes / 1e3:.3g} kB"

"""What could stop a run, looked at beforehand: inputs, checkpoint, parameters, output, device, memory, disk; its time.

Nothing is written. Only the last check evaluates the network, a few times, on the first images.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import psutil
import torch
from PIL import Image

from tasks.calibrating import candidates, set_aside
from tasks.checks import ITEMS_TO_TRY, PREPARE, ParametersError, check_parameters, shape_in_words
from tasks.datasets.decoding import FORMATS, Picture, Rejected
from tasks.datasets.fingerprint import fingerprint
from tasks.datasets.fitting import Fitting
from tasks.datasets.sources import Item, SourceError, open_source
from tasks.devices import DeviceError, cores, devices_for, threads_for
from tasks.diffusion.checkpoint import CheckpointError, Shape, checkpoint_sha256, image_shape, load_denoiser, resolve
from tasks.evidence.calibration import FEWEST
from tasks.measuring import measure
from tasks.parameters import ComputeParameters, ScoreParameters, ShardParameters
from tasks.progress import duration
from tasks.scoring import auto_batch_size
from tasks.store.run import RunDirectory, RunError, difference

COUNT_SECONDS = 60.0
"""Longest time spent on counting a source's items."""
PROBE_SECONDS = 5.0
"""About how long the network is evaluated for the estimate of the time."""
MOST_THREADS = 1024
"""Of a worker: torch crashes on many more, without an error that could be caught."""
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
    takes: Shape | None = None
    """Images that the checkpoint takes."""
    devices: list[str] = field(default_factory=list)
    fitting_pictures: dict[str, list[Picture]] = field(default_factory=dict)
    """Of each split's first items, those that fit."""
    n_tried: dict[str, int] = field(default_factory=dict)
    n_items: dict[str, int] = field(default_factory=dict)
    """Of each split."""
    all_counted: dict[str, bool] = field(default_factory=dict)
    decode_seconds: float = 0.0
    """An image."""

    @property
    def pictures(self) -> list[Picture]:
        return [picture for pictures in self.fitting_pictures.values() for picture in pictures]

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
    yield _safely("checkpoint", _checkpoint, patient)
    if patient.folder:
        yield _safely("parameters", _parameters, patient, patient.folder)
    yield _safely("device", _device, patient)
    for split, location in patient.sources.items():
        counted = _safely(f"{split} items", _count, patient, split, location)
        yield _safely(f"{split} images", _images, patient, split, location)
        yield counted
    if "holdout" not in patient.sources:
        remedy = "give --holdout: images of the same source that were never trained on"
        yield Check("holdout", "warn", "none: only repeated training images can be compared with others", remedy)
    elif len(patient.fitting_pictures) == len(patient.sources):
        yield _safely("holdout", _holdout, patient)
    yield _safely("output", _output, patient)
    if patient.pictures:
        yield _safely("disk", _disk, patient)


def _safely(name: str, look: Callable[..., Check], *arguments: Any) -> Check:
    """The check, or that it failed."""
    try:
        return look(*arguments)
    except Exception as error:  # whoever reads the answer, a program perhaps, gets one: the run would meet the same
        finding = f"{type(error).__name__}: {_first_line(error)}"
        return Check(name, "fail", finding, "nobody foresaw this: please report it, with the command")


def _checkpoint(patient: _Patient) -> Check:
    try:
        folder = resolve(patient.model)
        takes = image_shape(folder)
        model = load_denoiser(str(folder), "cpu")
    except CheckpointError as error:
        return Check("checkpoint", "fail", str(error), "give a DDPMPipeline folder with safetensors weights")
    patient.folder, patient.takes = folder, takes
    kind = f"{model.schedule.n_timesteps} timesteps, safetensors, all weights finite"
    finding = f"takes images of {shape_in_words(*takes)}, {kind}"
    return Check("checkpoint", "ok", finding, values=dict(zip(("channels", "height", "width"), takes, strict=True)))


def _parameters(patient: _Patient, folder: Path) -> Check:
    scoring = patient.scoring
    try:
        check_parameters(folder, scoring)
    except (ParametersError, CheckpointError) as error:
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
    values = {"devices": devices, "threads": threads}
    if threads > cores():
        finding = f"{finding}, of {cores()} CPU core{'s' if cores() > 1 else ''}"
        remedy = "give fewer --threads, or leave it out"
        return Check("device", "fail" if threads > MOST_THREADS else "warn", finding, remedy, values)
    slow = "cpu" in devices and torch.cuda.is_available()
    remedy = "leave --device out to use the GPU" if slow else ""
    return Check("device", "warn" if slow else "ok", finding, remedy, values)


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
    n_tried = patient.n_tried[split] = len(pictures) + len(rejected)
    patient.decode_seconds = (time.perf_counter() - begin) / max(1, n_tried)
    if not pictures:
        finding = f"{location}: no usable image among its first {ITEMS_TO_TRY} items"
        return Check(name, "fail", f"{finding}, {rejected[0]}" if rejected else finding, "look at the items named")
    values = {"n_tried": n_tried, "n_rejected": len(rejected)}
    takes = patient.takes
    misfits = (_misfit(f"{location}: images are", picture, takes) for picture in pictures) if takes else ()
    if misfit := next(filter(None, misfits), ""):
        return Check(name, "fail", misfit, PREPARE, values)
    patient.fitting_pictures[split] = pictures
    finding = f"{len(pictures)} of the first {n_tried} items decode and fit"
    if not rejected:
        return Check(name, "ok", finding, values=values)
    tolerated = len(rejected) <= patient.sharding.max_bad_fraction * n_tried
    remedy = "mend them" if tolerated else "mend them, or raise --max-bad-fraction"
    status: Status = "fail" if _too_many(patient, split, len(rejected)) else "warn"
    return Check(name, status, f"{finding}; not {rejected[0]}", remedy, values)


def _too_many(patient: _Patient, split: str, n_rejected: int) -> bool:
    """Will the run stop, however good the items are that were not looked at?"""
    return patient.all_counted.get(split, False) and (
        n_rejected > patient.sharding.max_bad_fraction * patient.n_items[split]
    )


def _misfit(what: str, picture: Picture, takes: Shape) -> str:
    """In what the picture is not what the checkpoint takes; empty: it is."""
    found = (1 if picture.mode == "L" else 3, picture.size[1], picture.size[0])
    return "" if found == takes else f"{what} {shape_in_words(*found)}, but the model takes {shape_in_words(*takes)}"


def _count(patient: _Patient, split: str, location: str) -> Check:
    """How many items are there, and does any not fit? The header decides; an item whose header does not is decoded.

    A header takes some 50 us, where decoding takes hundreds and reading the file, which counting does anyway, tens.
    """
    name, n_items, deadline = f"{split} items", 0, time.monotonic() + COUNT_SECONDS
    fitting, misfit, rejected = patient.sharding.fitting, "", []
    try:
        for n_items, item in enumerate(open_source(location), start=1):  # noqa: B007
            if patient.takes and not misfit and not _header_fits(item, fitting, patient.takes):
                try:
                    misfit = _misfit(f"{item.uri} is", fitting(item.picture()), patient.takes)
                except Rejected as error:
                    rejected.append(f"{item.uri} ({error})")
            if time.monotonic() > deadline:
                break
    except SourceError as error:
        return Check(name, "fail", str(error), "give a source that is there and can be read")
    cut = time.monotonic() > deadline
    patient.n_items[split], patient.all_counted[split] = n_items, not cut
    values = {"n_items": n_items, "all_counted": not cut}
    if misfit:
        return Check(name, "fail", misfit, PREPARE, values)
    if _too_many(patient, split, len(rejected)):
        finding = f"{n_items}, of which {len(rejected)} cannot be used, {rejected[0]} first"
        return Check(name, "fail", finding, "mend them, or raise --max-bad-fraction", values)
    if cut:
        finding = f"at least {n_items}: not all were counted within {COUNT_SECONDS:.0f} s"
        return Check(name, "warn", finding, "disk and time below are for these alone: scale them up", values)
    if split == "holdout" and n_items < FEW_IMAGES:
        return Check(name, "warn", f"{n_items}: too few to compare with", f"give {FEW_IMAGES} or more", values)
    seen = f"; beyond the first {ITEMS_TO_TRY}, only their headers were looked at" if n_items > ITEMS_TO_TRY else ""
    return Check(name, "ok", f"{n_items}{seen}", values=values)


def _header_fits(item: Item, fitting: Fitting, takes: Shape) -> bool:
    """Does an image's header say that it fits? An array's images are all of one shape: that of the first ones."""
    if not isinstance(item.content, bytes):
        return isinstance(item.content, np.ndarray)
    try:
        with Image.open(io.BytesIO(item.content), formats=FORMATS) as image:
            is_grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
            mode = ("L" if is_grey else "RGB") if fitting.mode == "keep" else fitting.mode
            return (1 if mode == "L" else 3, *reversed(fitting.size or image.size)) == takes
    except Exception:  # Pillow raises a dozen types by format and damage; decoding will say what is wrong
        return False


def _holdout(patient: _Patient) -> Check:
    """Is the holdout something else than the training images, as far as they were tried?"""
    hashes = {
        split: {picture.content_hash for picture in pictures} for split, pictures in patient.fitting_pictures.items()
    }
    shared = hashes["train"] & hashes["holdout"]
    values = {"n_shared": len(shared), "n_holdout": len(hashes["holdout"])}
    remedy = "give images of the same source that were never trained on"
    if len({os.path.realpath(location) for location in patient.sources.values()}) == 1:
        finding = "the holdout is the training images themselves: there is nothing to compare with"
        return Check("holdout", "fail", finding, remedy, values)
    of_those = f"of the {len(hashes['holdout'])} distinct holdout images tried"
    if not shared:
        return Check("holdout", "ok", f"none {of_those} is among the training images tried", values=values)
    within = [split for split, of_split in hashes.items() if of_split == shared]
    void = any(patient.all_counted.get(split) and patient.n_tried[split] == patient.n_items[split] for split in within)
    consequence = ": there is nothing to compare with" if void else ""
    finding = f"{len(shared)} {of_those} are training images too{consequence}"
    return Check("holdout", "fail" if void else "warn", finding, remedy, values)


def _output(patient: _Patient) -> Check:
    """May a run be written there, and if there is one, is it this one?"""
    out = patient.out
    place = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if not place.is_dir():
        return Check("output", "fail", f"{place} is not a folder", "choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        return Check("output", "fail", f"{place} may not be written to", "choose another --out, or its owner")
    if holder := _holder(out):
        return Check("output", "fail", f"{out} is in use by process {holder}", "wait, or choose another --out")
    directory = RunDirectory(out)
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


def _identities(patient: _Patient) -> dict[str, Any]:
    """What each stage of the run would be made from, as it is claimed in ``run.json``; without what is not there."""
    identities: dict[str, Any] = {}
    if len(patient.n_items) == len(patient.sources):
        identities["data"] = {
            "sources": dict(patient.sources),
            "fingerprints": {split: fingerprint(location) for split, location in patient.sources.items()},
            "parameters": patient.sharding.model_dump(mode="json"),
        }
    if patient.folder:
        parameters = patient.scoring.model_dump(mode="json")
        identities["scoring"] = {"checkpoint_sha256": checkpoint_sha256(patient.folder), "parameters": parameters}
    return identities


def _holder(run: Path) -> str:
    """The process that writes into a run directory; empty: none does."""
    lock = run / ".lock"
    if not lock.exists():
        return ""
    with lock.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return stream.read().strip() or "unknown"
    return ""


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


def _probe(patient: _Patient, folder: Path, devices: list[str]) -> list[Check]:
    """Are scores finite; memory a batch and time for all items, from a few timed evaluations on the first device."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads_for(patient.compute, devices))
    try:
        return _evaluated(patient, folder, devices)
    except Exception as error:  # torch and diffusers raise by device and network; running out of memory is one
        finding = f"the network does not run on {devices[0]} ({_first_line(error)})"
        return [Check("memory", "fail", finding, "choose another --device, or a smaller --batch-size")]
    finally:
        torch.set_num_threads(threads)


def _evaluated(patient: _Patient, folder: Path, devices: list[str]) -> list[Check]:
    model = load_denoiser(str(folder), devices[0])
    max_batch = patient.compute.batch_size or auto_batch_size(model)
    a_batch = max(1, max_batch // (patient.scoring.axes + 1))
    pixels = np.stack([np.atleast_3d(picture.pixels).transpose(2, 0, 1) for picture in patient.pictures])
    names = [picture.content_hash for picture in patient.pictures]
    scoring = patient.scoring.at(0) if patient.scoring.timestep == "auto" else patient.scoring
    nonfinite: dict[str, bool] = {}

    def timed(scoring: ScoreParameters, n: int) -> _Cost:
        chosen = np.arange(n) % len(names)
        begin = time.perf_counter()
        with model.given(0 if model.n_classes else None):
            columns = measure(model, pixels[chosen], [names[i] for i in chosen], scoring, max_batch)
        seconds = time.perf_counter() - begin
        nonfinite.update(zip((names[i] for i in chosen), (status != "ok" for status in columns["status"]), strict=True))
        return _Cost(seconds / n, columns["n_evaluations"][0], n)

    def typical(scoring: ScoreParameters) -> _Cost:
        n = min(a_batch, max(1, int(PROBE_SECONDS / 3 / timed(scoring, 1).seconds)))
        return sorted(timed(scoring, n) for _ in range(3))[1]

    bare = scoring.bare()
    timed(bare, 1)
    with _peak_memory(model.device) as peak:
        whole = typical(scoring)
    growth = whole if scoring == bare else typical(bare)
    n_tried = len(candidates(model.grid(patient.scoring.grid), patient.scoring))
    return [
        _scores(sum(nonfinite.values()), len(nonfinite)),
        _memory(peak["bytes"] * a_batch / whole.n_images, model.device, len(devices), max_batch),
        _time(patient, len(devices), whole, growth, _n_set_aside(patient) * n_tried),
    ]


def _scores(n_nonfinite: int, n: int) -> Check:
    values = {"n_scored": n, "n_nonfinite": n_nonfinite}
    if not n_nonfinite:
        return Check("scores", "ok", f"finite for the {n} distinct images tried", values=values)
    finding = f"NaN or infinite for {n_nonfinite} of the {n} distinct images tried"
    remedy = "the network's output overflows: look at its weights, its config and --precision"
    return Check("scores", "fail" if n_nonfinite == n else "warn", finding, remedy, values)


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


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__

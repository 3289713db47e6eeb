"""The check that evaluates the network: finite scores, memory and time, from a few batches of the first images."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import psutil
import torch

from latentprint.tasks.compute.batch_size import auto_batch_size
from latentprint.tasks.compute.devices import threads_for
from latentprint.tasks.compute.progress import duration
from latentprint.tasks.datasets.decoding import channels_first
from latentprint.tasks.diffusion.checkpoint import load_denoiser
from latentprint.tasks.diffusion.layout import Resolved
from latentprint.tasks.doctor.extraction import extraction_seconds
from latentprint.tasks.doctor.patient import Check, Patient, size
from latentprint.tasks.errors import first_line
from latentprint.tasks.parameters import ScoreParameters
from latentprint.tasks.score.again import n_of_setting, settings
from latentprint.tasks.score.calibrate import candidates, control_timesteps
from latentprint.tasks.score.folds import n_calibrated
from latentprint.tasks.score.measure import measure

PROBE_SECONDS = 5.0
"""About how long the network is evaluated for the estimate of the time."""


class _Cost(NamedTuple):
    """Of an image, in a batch of ``n_images``."""

    seconds: float
    evaluations: int
    n_images: int


def probe_network(patient: Patient, checkpoint: Resolved, devices: list[str]) -> list[Check]:
    """Are scores finite; memory a batch and time for all items, from a few timed evaluations on the first device."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads_for(patient.compute, devices))
    try:
        return _evaluated(patient, checkpoint, devices)
    except Exception as error:  # torch and diffusers raise by device and network; running out of memory is one
        finding = f"the network does not run on {devices[0]} ({first_line(error)})"
        return [Check("memory", "fail", finding, "choose another --device, or a smaller --batch-size")]
    finally:
        torch.set_num_threads(threads)


def _evaluated(patient: Patient, checkpoint: Resolved, devices: list[str]) -> list[Check]:
    model = load_denoiser(checkpoint, devices[0])
    max_batch = patient.compute.batch_size or auto_batch_size(model)
    model = model.of_class(0 if model.n_classes else None)
    a_batch = max(1, max_batch // (patient.scoring.axes + 1))
    pixels = np.stack([channels_first(picture.pixels) for picture in patient.pictures])
    names = [picture.content_hash for picture in patient.pictures]
    scoring = patient.scoring.at(0) if patient.scoring.timestep == "auto" else patient.scoring
    nonfinite: dict[str, bool] = {}

    def timed(scoring: ScoreParameters, n: int) -> _Cost:
        chosen = np.arange(n) % len(names)
        begin = time.perf_counter()
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
    wanted = settings(bare, math.prod(model.state_shape)) if patient.validity.images else {}
    again = {name: _seconds_again(timed, changed) for name, changed in wanted.items()}
    n_tried = len(candidates(model.grid(patient.scoring.grid), patient.scoring))
    return [
        _scores(sum(nonfinite.values()), len(nonfinite)),
        _memory(peak["bytes"] * a_batch / whole.n_images, model.device, len(devices), max_batch),
        _time(patient, len(devices), whole, growth, n_tried, len(control_timesteps(model.schedule)), again),
    ]


def _seconds_again(timed: Callable[[ScoreParameters, int], _Cost], setting: ScoreParameters) -> float:
    """Of one image under a setting of the validity check; 0 where the network does not run on it."""
    try:
        return timed(setting, 1).seconds
    except RuntimeError:  # torch: an operation without forward mode; the run says so and goes on
        return 0.0


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
    finding = f"about {size(needed_in_all)} for batches of {max_batch}, {size(free)} free"
    values = {"needed_bytes": round(needed_in_all), "free_bytes": free, "batch_size": max_batch}
    if needed_in_all > free:
        return Check("memory", "fail", finding, "give a smaller --batch-size", values)
    return Check("memory", "ok", finding, values=values)


def _time(
    patient: Patient,
    n_devices: int,
    whole: _Cost,
    growth: _Cost,
    n_tried: int,
    n_losses: int,
    again: Mapping[str, float],
) -> Check:
    """Of all items, repeats counted as images.

    Args:
        whole: of an image, without the second timestep, which takes a calibration.
        growth: the same with the growth alone, as it is calibrated.
        n_tried: timesteps that each calibration image is measured from.
        n_losses: evaluations of each calibration image beside these, for the positive control.
        again: setting of the validity check -> seconds of one image.
    """
    sizes = [patient.n_of_split(split) for split in ("train", "holdout")]
    n_calibrating = sum(n_calibrated(dict(zip(("train", "holdout"), sizes, strict=True))).values())
    n = patient.n_in_all
    n_more = int(n_calibrating > 0 and patient.scoring.second_timestep == "auto")
    evaluations = n_tried * growth.evaluations + n_losses
    an_evaluation = growth.seconds / growth.evaluations
    an_image = whole.seconds + n_more * an_evaluation
    values: dict[str, float] = {
        "shard_seconds": n * patient.decode_seconds,
        "calibrate_seconds": n_calibrating * evaluations * an_evaluation / n_devices,
        "score_seconds": n * an_image / n_devices,
        "score_seconds_an_image": an_image,
        "calibrate_evaluations": n_calibrating * evaluations,
        "score_evaluations_an_image": whole.evaluations + n_more,
    }
    n_again = {name: sum(n_of_setting(name, patient.validity.images, size) for size in sizes) for name in again}
    values["validity_seconds"] = sum(again[name] * n_again[name] for name in again) / n_devices
    if patient.extraction:
        values |= extraction_seconds(patient, patient.extraction, an_evaluation, n_devices)
    stages = {"shard": "to shard", "calibrate": "to calibrate", "score": "to score", "validity": "to score some again"}
    stages |= {"generate": "to generate", "match": "to match"}
    parts = [f"{duration(s)} {words}" for stage, words in stages.items() if (s := values.get(f"{stage}_seconds", 0.0))]
    values["seconds"] = sum(values.get(f"{stage}_seconds", 0.0) for stage in stages)
    generated = f" and {patient.extraction.samples:,} generated images" if patient.extraction else ""
    finding = (
        f"about {duration(values['seconds'])} for {n:,} items{generated}: {', '.join(parts)} "
        f"({an_image * 1e3:.3g} ms per image and device; repeats are scored once; the report comes on top)"
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

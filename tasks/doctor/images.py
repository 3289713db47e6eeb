"""The checks of a run's images."""

from __future__ import annotations

import io
import os
import time

import numpy as np
from PIL import Image

from tasks.checks import ITEMS_TO_TRY, PREPARE, shape_in_words
from tasks.datasets.decoding import FORMATS, Picture, Rejected
from tasks.datasets.fitting import Fitting
from tasks.datasets.sources import Item, SourceError, open_source
from tasks.diffusion.checkpoint import Shape
from tasks.doctor.patient import Check, Patient, Status

COUNT_SECONDS = 60.0
"""Longest time spent on counting a source's items."""
FEW_IMAGES = 30
"""Held-out images below which statistics say little."""


def look_at_images(patient: Patient, split: str, location: str) -> Check:
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


def _too_many(patient: Patient, split: str, n_rejected: int) -> bool:
    """Will the run stop, however good the items are that were not looked at?"""
    return patient.all_counted.get(split, False) and (
        n_rejected > patient.sharding.max_bad_fraction * patient.n_items[split]
    )


def _misfit(what: str, picture: Picture, takes: Shape) -> str:
    """In what the picture is not what the checkpoint takes; empty: it is."""
    found = (1 if picture.mode == "L" else 3, picture.size[1], picture.size[0])
    return "" if found == takes else f"{what} {shape_in_words(*found)}, but the model takes {shape_in_words(*takes)}"


def count_items(patient: Patient, split: str, location: str) -> Check:
    """How many items are there, and does any not fit? The header decides; an item whose header does not is decoded.

    A header takes some 50 us, where decoding takes hundreds and reading the file, which counting does anyway, tens.
    """
    name, n_items, deadline = f"{split} items", 0, time.monotonic() + COUNT_SECONDS
    fitting, misfit, rejected = patient.sharding.fitting, "", []
    try:
        for n_items, item in enumerate(open_source(location), start=1):  # noqa: B007  # the count is read afterwards
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


def look_at_holdout(patient: Patient) -> Check:
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

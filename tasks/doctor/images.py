"""The checks of a run's images."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from latentprint.tasks.datasets.decoding import FORMATS, Picture, Rejected
from latentprint.tasks.datasets.fitting import Fitting
from latentprint.tasks.datasets.holdouts import REMEDY, is_same_place, overlap_sentence
from latentprint.tasks.datasets.sources import Item, SourceError, open_source
from latentprint.tasks.diffusion.checkpoint import Shape
from latentprint.tasks.doctor.checks import ITEMS_TO_TRY, PREPARE, shape_in_words
from latentprint.tasks.doctor.patient import Check, Overlap, Patient, Status
from latentprint.tasks.store.splits import split_of

COUNT_SECONDS = 60.0
"""Longest time spent on counting a source's items."""
COMPARE_SECONDS = 60.0
"""Longest time spent on comparing the contents of held-out and training images."""
FEW_IMAGES = 30
"""Held-out images below which statistics say little."""


def look_at_images(patient: Patient, source: str, location: str) -> Check:
    """Do the first items decode, and fit the checkpoint?"""
    name, pictures, rejected = f"{source} images", [], []
    begin = time.perf_counter()
    try:
        for item, _ in zip(open_source(location), range(ITEMS_TO_TRY), strict=False):
            try:
                pictures.append(patient.sharding.fitting(item.picture()))
            except Rejected as error:
                rejected.append(f"{item.uri} ({error})")
    except SourceError as error:
        return Check(name, "fail", str(error), "give a source that is there and can be read")
    n_tried = patient.n_tried[source] = len(pictures) + len(rejected)
    patient.decode_seconds = (time.perf_counter() - begin) / max(1, n_tried)
    if not pictures:
        finding = f"{location}: no usable image among its first {ITEMS_TO_TRY} items"
        return Check(name, "fail", f"{finding}, {rejected[0]}" if rejected else finding, "look at the items named")
    values = {"n_tried": n_tried, "n_rejected": len(rejected)}
    takes = patient.takes
    misfits = (_misfit(f"{location}: images are", picture, takes) for picture in pictures) if takes else ()
    if misfit := next(filter(None, misfits), ""):
        return Check(name, "fail", misfit, PREPARE, values)
    patient.fitting_pictures[source] = pictures
    finding = f"{len(pictures)} of the first {n_tried} items decode and fit"
    if not rejected:
        return Check(name, "ok", finding, values=values)
    tolerated = len(rejected) <= patient.sharding.max_bad_fraction * n_tried
    remedy = "mend them" if tolerated else "mend them, or raise --max-bad-fraction"
    status: Status = "fail" if _too_many(patient, source, len(rejected)) else "warn"
    return Check(name, status, f"{finding}; not {rejected[0]}", remedy, values)


def _too_many(patient: Patient, source: str, n_rejected: int) -> bool:
    """Will the run stop, however good the items are that were not looked at?"""
    return patient.all_counted.get(source, False) and (
        n_rejected > patient.sharding.max_bad_fraction * patient.n_items[source]
    )


def _misfit(what: str, picture: Picture, takes: Shape) -> str:
    """In what the picture is not what the checkpoint takes; empty: it is."""
    found = (1 if picture.mode == "L" else 3, picture.size[1], picture.size[0])
    return "" if found == takes else f"{what} {shape_in_words(*found)}, but the model takes {shape_in_words(*takes)}"


def count_items(patient: Patient, source: str, location: str) -> Check:
    """How many items are there, and does any not fit? The header decides; an item whose header does not is decoded.

    A header takes some 50 us, where decoding takes hundreds and reading the file, which counting does anyway, tens.
    """
    name, n_items, deadline = f"{source} items", 0, time.monotonic() + COUNT_SECONDS
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
    patient.n_items[source], patient.all_counted[source] = n_items, not cut
    values = {"n_items": n_items, "all_counted": not cut}
    if misfit:
        return Check(name, "fail", misfit, PREPARE, values)
    if _too_many(patient, source, len(rejected)):
        finding = f"{n_items}, of which {len(rejected)} cannot be used, {rejected[0]} first"
        return Check(name, "fail", finding, "mend them, or raise --max-bad-fraction", values)
    if cut:
        finding = f"at least {n_items}: not all were counted within {COUNT_SECONDS:.0f} s"
        return Check(name, "warn", finding, "disk and time below are for these alone: scale them up", values)
    if split_of(source) == "holdout" and n_items < FEW_IMAGES:
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


def look_at_holdout(patient: Patient, source: str) -> Check:
    """Are the held-out images others than the training images? By contents, of all that are read in time."""
    location = patient.sources[source]
    if is_same_place(location, patient.sources["train"]):
        finding = "these are the training images themselves: there is nothing to compare with"
        return Check(source, "fail", finding, REMEDY)
    try:
        overlap = patient.overlap = patient.overlap or _overlap(patient)
    except SourceError as error:
        return Check(source, "fail", str(error), "give a source that is there and can be read")
    n_shared, n_holdout = len(overlap.shared[source]), len(overlap.held_out[source])
    values = {"n_shared": n_shared, "n_holdout": n_holdout, "all_compared": overlap.is_whole}
    limit = "" if overlap.is_whole else f" Not all were compared within {COMPARE_SECONDS:.0f} s."
    if not n_shared:
        return Check(source, "ok", f"None of {n_holdout} held-out images is a training image.{limit}", values=values)
    void = n_shared == n_holdout or (overlap.is_whole and not overlap.n_trained_only)
    finding = overlap_sentence(n_shared, n_holdout) + limit
    return Check(source, "fail" if void else "warn", finding, REMEDY, values)


def _overlap(patient: Patient) -> Overlap:
    """Of all sources. The training images are streamed, so that memory grows with the held-out images alone."""
    begin = time.monotonic()
    held_out: dict[str, set[str]] = {}
    n_trained_only, is_whole = 0, True
    for source, location in patient.sources.items():
        if source != "train":
            contents = set(_contents(patient, location, begin + COMPARE_SECONDS / 2))
            is_whole &= None not in contents
            held_out[source] = {content for content in contents if content}
    shared: dict[str, set[str]] = {source: set() for source in held_out}
    for content in _contents(patient, patient.sources["train"], begin + COMPARE_SECONDS):
        holders = [source for source, contents in held_out.items() if content in contents]
        is_whole &= content is not None
        n_trained_only += content is not None and not holders
        for source in holders:
            shared[source].add(str(content))
    return Overlap(held_out, shared, n_trained_only, is_whole)


def _contents(patient: Patient, location: str, deadline: float) -> Iterator[str | None]:
    """Content hash of each usable image; None, and no more, where the time is over."""
    for item in open_source(location):
        if time.monotonic() > deadline:
            yield None
            return
        try:
            yield patient.sharding.fitting(item.picture()).content_hash
        except Rejected:
            continue

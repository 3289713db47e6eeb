"""What is looked at before any work starts, so that a mistake costs seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from latentprint.tasks.datasets.decoding import Picture, Rejected
from latentprint.tasks.datasets.fitting import Fitting
from latentprint.tasks.datasets.holdouts import require_held_out
from latentprint.tasks.datasets.sources import SourceError, open_source
from latentprint.tasks.diffusion.checkpoint import (
    LoadedModel,
    image_shape,
    load_denoiser,
    n_classes,
    require_sane,
    state_shape,
)
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.diffusion.layout import Source
from latentprint.tasks.diffusion.membership import BASELINES, GAMMA, SHARE_THE_BASE_PASS
from latentprint.tasks.diffusion.names import ESTIMATORS, BaselineName, Precision
from latentprint.tasks.diffusion.schedule import Schedule, ascending_timesteps, last_with_signal, noise_spaced_timesteps
from latentprint.tasks.diffusion.schedulers import grid_of, load_schedule
from latentprint.tasks.diffusion.tangents import bits_of, require_bits
from latentprint.tasks.errors import UserError
from latentprint.tasks.parameters import ExtractParameters, ScoreParameters, SideParameters
from latentprint.tasks.score.calibrate import candidates
from latentprint.tasks.store.spill import spilling
from latentprint.tasks.store.splits import split_of

ITEMS_TO_TRY = 100


class ParametersError(UserError):
    """Parameters that this checkpoint cannot be scored with."""


PREPARE = "bring them to it as in training, with --size, --fit, --resample and --colour"


def check_inputs(model: Source, sources: dict[str, str], fitting: Fitting = Fitting()) -> None:
    """Does the checkpoint load, with its weights, and does the first usable image of each source fit it?

    Args:
        sources: as from :func:`latentprint.tasks.datasets.holdouts.named_sources`.
        fitting: what will be done to each image.

    Raises:
        CheckpointError: not a checkpoint, not loadable, NaN weights, or it takes other images than these.
        SourceError: a source is missing, empty or unreadable, or the held-out images are the training images.
    """
    require_held_out(sources)
    require_loadable(model)
    channels, height, width = image_shape(model)
    for name, location in sources.items():
        picture = fitting(_first_picture(location))
        found = (1 if picture.mode == "L" else 3, picture.size[1], picture.size[0])
        if found != (channels, height, width):
            takes, images = shape_in_words(channels, height, width), f"{split_of(name)} images"
            raise CheckpointError(
                f"{location}: {images} are {shape_in_words(*found)}, but {model} takes {takes}: {PREPARE}"
            )


def require_loadable(model: Source) -> LoadedModel:
    """The checkpoint on the CPU, once it has predicted something.

    Raises:
        CheckpointError: not a checkpoint, not loadable, or what it predicts is absurd.
    """
    loaded = load_denoiser(model, "cpu")
    try:
        require_sane(loaded)
    except CheckpointError as error:
        raise CheckpointError(f"{model}: {error}") from error
    return loaded


def check_parameters(model: Source, parameters: ScoreParameters) -> None:
    """Do the axes fit into the image, the steps into the schedule, and can the baselines be computed?

    Raises:
        ParametersError: they do not.
    """
    if parameters.second_timestep == "auto" and parameters.timestep != "auto":
        raise ParametersError(
            "--second-timestep auto: it is calibrated together with the first, so needs --timestep auto"
        )
    if parameters.labels is not None and n_classes(model) is None:
        raise ParametersError("--labels: this model has no classes, so leave it out")
    dimension = math.prod(state_shape(model))
    if parameters.axes > dimension:
        raise ParametersError(f"--axes {parameters.axes}: what the model diffuses has only {dimension} dimensions")
    own = load_schedule(model)[0]
    schedule = grid_of(own, parameters.grid)
    start = 0 if parameters.timestep == "auto" else parameters.timestep
    if parameters.reversibility > last_with_signal(own):
        raise ParametersError(f"--reversibility {parameters.reversibility}: {_timesteps_in_words(own)}")
    if parameters.density:
        try:
            noise_spaced_timesteps(schedule, parameters.density)
        except ValueError:
            raise ParametersError(f"--density {parameters.density}: {_timesteps_in_words(own)}") from None
    timesteps = candidates(schedule, parameters) if parameters.timestep == "auto" else [parameters.timestep]
    for name in parameters.baselines:
        _check_baseline(name, own, timesteps, dimension, parameters.precision)
    try:
        ascending_timesteps(schedule, parameters.steps, start, parameters.stride)
        if ESTIMATORS[parameters.estimator].has_delta:
            require_bits(bits_of(parameters.precision), dimension, parameters.delta)
    except ValueError as error:
        raise ParametersError(str(error)) from error


def _check_baseline(
    name: BaselineName, schedule: Schedule, timesteps: list[int], dimension: int, precision: Precision
) -> None:
    """Has the schedule the baseline's timesteps, and does the arithmetic carry DIME's probes from each of these?"""
    shares = {"timestep": timesteps[0]} if name in SHARE_THE_BASE_PASS else {}
    image = torch.zeros(1, 1, 1, dimension)
    try:
        BASELINES[name](lambda x, _: x.sin(), image, schedule, [torch.Generator()], **shares)
        if name.startswith("dime"):
            reach = GAMMA * min(map(schedule.sigma, timesteps)) * math.sqrt(dimension)
            require_bits(bits_of(precision), dimension, reach)
    except ValueError as error:
        reason = str(error).partition(": use the estimator")[0]
        raise ParametersError(f"--baselines {name}: {reason}; leave it out with this model and precision") from error


def check_sampler(model: Source, parameters: ExtractParameters | SideParameters) -> None:
    """Has the checkpoint's schedule as many timesteps as the sampler takes steps?

    Raises:
        ParametersError: it has fewer.
    """
    require_timesteps(load_schedule(model)[0], parameters.steps)


def require_timesteps(schedule: Schedule, n: int) -> None:
    """Has the schedule so many timesteps at which there is more than noise?

    Raises:
        ParametersError: it has fewer.
    """
    if n > last_with_signal(schedule) + 1:
        raise ParametersError(f"--steps {n}: {_timesteps_in_words(schedule)}")


def _timesteps_in_words(schedule: Schedule) -> str:
    left = last_with_signal(schedule) + 1
    of_these = "" if left == schedule.n_timesteps else f", {left} of them with signal left"
    return f"the checkpoint's schedule has {schedule.n_timesteps} timesteps{of_these}"


def check_manifest(manifest: Path, model: Source) -> None:
    """Does every image of the manifest fit the checkpoint?

    Raises:
        SourceError: some do not; the first is named.
    """
    channels, height, width = image_shape(model)
    with spilling(manifest.parent) as connection:
        misfits = connection.execute(
            "SELECT count(*), min_by(source_uri, sample_id) FROM read_parquet($manifest) "
            "WHERE (mode, height, width) <> ($mode, $height, $width)",
            {"manifest": str(manifest), "mode": "L" if channels == 1 else "RGB", "height": height, "width": width},
        ).fetchone()
    assert misfits is not None
    if misfits[0]:
        raise SourceError(
            f"{misfits[0]} images are not {shape_in_words(channels, height, width)} as {model} needs, "
            f"{misfits[1]} first: {PREPARE}"
        )


def _first_picture(location: str) -> Picture:
    for picture in _pictures(location):
        return picture
    raise SourceError(f"{location}: no usable image among its first {ITEMS_TO_TRY} items")


def _pictures(location: str) -> Iterator[Picture]:
    for item, _ in zip(open_source(location), range(ITEMS_TO_TRY), strict=False):
        try:
            yield item.picture()
        except Rejected:
            continue


def shape_in_words(channels: int, height: int, width: int) -> str:
    """``28 x 28 with 1 channel``."""
    return f"{width} x {height} with {channels} channel{'s' if channels > 1 else ''}"

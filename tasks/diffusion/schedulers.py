"""The noise schedule of a checkpoint, from its scheduler's config: no weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from latentprint.tasks.diffusion.checkpoint_files import (
    LARGEST,
    CheckpointError,
    falls,
    in_a_line,
    positive,
    quiet_diffusers,
    read_config,
)
from latentprint.tasks.diffusion.code_model import CodeModel, described
from latentprint.tasks.diffusion.denoiser import PredictionType
from latentprint.tasks.diffusion.layout import SCHEDULER_CONFIG, Source, located
from latentprint.tasks.diffusion.names import Grid
from latentprint.tasks.diffusion.schedule import (
    ContinuousVP,
    DiscreteVP,
    FlowMatching,
    Schedule,
    TrainedSchedule,
    VarianceExploding,
)

SCORE_BASED = {"ScoreSdeVeScheduler": (0.01, 1348.0, 2000), "KarrasVeScheduler": (0.02, 100.0, 1000)}
"""Schedulers of networks that predict a score, with their defaults of sigma_min, sigma_max and the number of levels."""
_RANGE = ("sigma_min", "sigma_max")
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
NO_FLOW = {
    "CMStochasticIterativeScheduler": "a consistency model, which maps noise to an image at once and predicts no noise"
}
"""Schedulers of networks that are not denoisers (the mean of clean images given a noised one), which the ODE needs."""
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")

GRID_TOLERANCE = 0.02
GRID_CHECKED = (20, 100, 200, 500, 999)
"""Where, and by what share of sigma, a checkpoint's schedule may differ from the continuous grid."""


def grid_of(schedule: TrainedSchedule, name: Grid) -> Schedule:
    """The schedule to step along: the checkpoint's own, or the paper's continuous one.

    The continuous one tells the network 999 t, so it fits those checkpoints only that were trained on 1,000 timesteps
    of nearly the same noise: diffusers' default, beta linear from 1e-4 to 0.02, is within 1.6% of sigma from t = 20 on.

    Raises:
        CheckpointError: the checkpoint is none of these.
    """
    if name == "ddim":
        return schedule
    if not isinstance(schedule, DiscreteVP):
        kind = "flow matching" if isinstance(schedule, FlowMatching) else "variance exploding"
        raise CheckpointError(f"--grid continuous: this is a {kind} model, which has no variance preserving grid")
    grid = ContinuousVP()
    if schedule.n_timesteps != grid.n_timesteps or any(
        abs(grid.sigma(t) / schedule.sigma(t) - 1.0) > GRID_TOLERANCE for t in GRID_CHECKED
    ):
        raise CheckpointError("--grid continuous: this checkpoint was trained on another schedule: use --grid ddim")
    return grid


def load_schedule(model: Source) -> tuple[TrainedSchedule, PredictionType]:
    """The schedule that the checkpoint was trained with, and what its network predicts; no weights are loaded.

    Raises:
        CheckpointError: no scheduler, neither a variance preserving nor a flow matching one, or numbers that are none.
    """
    if isinstance(model, CodeModel):
        return described(model).schedule, described(model).prediction_type
    path = located(model).scheduler
    if path is None:
        raise CheckpointError(
            f"{model}: no scheduler/{SCHEDULER_CONFIG} with the network or one level up: name the folder of the noise "
            "schedule that it was trained with, --scheduler FOLDER"
        )
    config = read_config(path)
    if (class_name := str(config.get("_class_name"))) in NO_FLOW:
        raise CheckpointError(
            f"{path}: {class_name} is of {NO_FLOW[class_name]}: audit the model it was distilled from"
        )
    if class_name in SCORE_BASED:
        return _score_based(path, config, class_name), "score"
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise CheckpointError(f"{path.parent}: prediction type {prediction_type!r} is not one of {PREDICTION_TYPES}")
    # nothing but a scheduler: any other attribute of diffusers is code that a config could choose
    kind: Any = getattr(diffusers.schedulers, class_name, None)
    is_scheduler = isinstance(kind, type) and issubclass(kind, SchedulerMixin)
    if not is_scheduler:
        raise CheckpointError(f"{path}: {class_name!r:.80} is not a scheduler of diffusers")
    positive(path, "num_train_timesteps", config.get("num_train_timesteps", 1000))
    try:
        with quiet_diffusers():
            scheduler = kind.from_config(config)
    except Exception as error:  # each scheduler has its own ways with a setting that it does not know
        raise CheckpointError(f"{path}: {class_name} does not take it ({in_a_line(error)})") from error
    if class_name.startswith("FlowMatch"):
        sigmas = sorted(scheduler.sigmas.double().tolist())
        _check_signal(path, [1.0 - sigma for sigma in sigmas])
        return FlowMatching(tuple(sigmas)), "flow"
    if class_name in EDM or (config.get("timestep_type"), prediction_type) == ("continuous", "v_prediction"):
        return _edm(path, class_name, scheduler)
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if alphas_cumprod is None or alphas_cumprod.ndim != 1:
        raise CheckpointError(
            f"{path.parent}: {class_name} has no alphas_cumprod (no noise schedule that is known here)"
        )
    schedule = DiscreteVP.from_tensor(alphas_cumprod)
    _check_signal(path, schedule.alphas_cumprod)
    return schedule, prediction_type


def _score_based(path: Path, config: dict[str, Any], class_name: str) -> VarianceExploding:
    """s_t from least to most by one factor. ScoreSdeVePipeline counts them in units of pixels in [0, 1]; the pipeline
    of KarrasVeScheduler evaluates the same networks, with levels for pixels in [-1, 1]."""
    least, most = (config.get(name, default) for name, default in zip(_RANGE, SCORE_BASED[class_name][:2], strict=True))
    if not all(isinstance(level, int | float) for level in (least, most)) or not 0.0 < least < most <= LARGEST:
        raise CheckpointError(f"{path}: sigma_min {least!r:.80} and sigma_max {most!r:.80} are not a range of noise")
    n = positive(path, "num_train_timesteps", config.get("num_train_timesteps", SCORE_BASED[class_name][2]))
    unit = 2.0 if class_name == "ScoreSdeVeScheduler" else 1.0
    levels = [unit * least * (most / least) ** (i / max(n - 1, 1)) for i in range(n)]
    return _exploding(path, levels)


def _edm(path: Path, class_name: str, scheduler: Any) -> tuple[VarianceExploding, PredictionType]:
    """The levels that the scheduler would step along with as many steps as training timesteps. EulerDiscreteScheduler
    with continuous timesteps is EDM with sigma_data = 1."""
    config = scheduler.config
    if config.prediction_type not in ("epsilon", "v_prediction"):
        raise CheckpointError(f"{path}: {class_name} with prediction type {config.prediction_type!r} is not supported")
    try:
        scheduler.set_timesteps(config.num_train_timesteps)
        levels = sorted(scheduler.sigmas.double().tolist())[1:]
        sigma_data = float(config.sigma_data) if class_name in EDM else 1.0
    except Exception as error:  # each scheduler has its own ways with a setting that it does not know
        raise CheckpointError(f"{path}: {class_name} does not take it ({in_a_line(error)})") from error
    if not 0.0 < sigma_data <= LARGEST:
        raise CheckpointError(f"{path}: sigma_data is {sigma_data:g}; a positive number is needed")
    schedule = _exploding(path, levels, sigma_data)
    return schedule, "edm" if config.prediction_type == "epsilon" else "edm_v_prediction"


def _exploding(path: Path, levels: list[float], sigma_data: float = 0.5) -> VarianceExploding:
    _check_signal(path, [1.0 / (1.0 + level**2) for level in levels])
    if levels[0] <= 0.0:
        raise CheckpointError(f"{path}: no noise schedule: the least noise level must be positive")
    return VarianceExploding(tuple(levels), sigma_data)


def _check_signal(path: Path, signal: Sequence[float]) -> None:
    """What is left of the image at each timestep, abar_t or 1 - sigma_t, must fall within (0, 1]; at the last it may be
    0, zero terminal SNR, but not 1, which would be no noise at all.

    Raises:
        CheckpointError: it does not, or is not finite.
    """
    if not falls(signal):
        raise CheckpointError(f"{path}: no noise schedule: the signal left must fall from at most 1 towards 0")

"""Models that the user's own code builds: ``--model my_module:load`` imports ``my_module`` and calls ``load()``.

What it returns is a :class:`Model`, or anything with the same attributes. The module is looked for in the folder that
the command was started in, then where Python looks. It is the user's code that runs, with all that it may do: so a name
that is only read from a run's ``run.json`` is not run, see :func:`require_consent`.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentprint.tasks.diffusion.checkpoint_files import LARGEST, CheckpointError, falls, in_a_line
from latentprint.tasks.diffusion.denoiser import PredictionType
from latentprint.tasks.diffusion.schedule import DiscreteVP, TrainedSchedule, VarianceExploding

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
CONSENT = "LATENTPRINT_MODEL"
"""Environment variable: the name of the code that may run although only a run names it."""
PREDICTS = {"alphas_cumprod": ("epsilon", "sample", "v_prediction"), "sigmas": ("epsilon", "sample")}
_named: set[str] = set()
"""By whoever started this process."""


@dataclass(frozen=True)
class Model:
    r"""A network of any kind, and what it was trained on.

    Args:
        network: ``network(x, t)`` with x (B, C, H, W) and t (B,), float; of a class-conditional one also labels (B,). A
            ``torch.nn.Module`` is moved to the device; anything else must follow its inputs there.
        state_shape: (C, H, W). Images are in [-1, 1].
        alphas_cumprod: abar_t, shape (T,), falling, of ``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps``; t is told as
            0 ... T - 1.
        sigmas: or noise levels s_t, shape (T,), rising, of ``x_t = x_0 + s_t eps``; the network is given x_t and
            told s_t.
        prediction_type: ``epsilon``, ``sample`` (x_0), or, with ``alphas_cumprod``, ``v_prediction``.
        n_classes: labels 0 ... n_classes - 1 of a class-conditional network.
    """

    network: Callable[..., Any]
    state_shape: tuple[int, int, int]
    alphas_cumprod: Tensor | Sequence[float] | None = None
    sigmas: Tensor | Sequence[float] | None = None
    prediction_type: PredictionType = "epsilon"
    n_classes: int | None = None


@dataclass(frozen=True)
class CodeModel:
    """The name of code that builds a model; plain values, so that it travels to any process."""

    name: str
    """``module:function``"""
    place: Path
    """Where the module is looked for first."""

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path:
        return self.place

    def sha256(self) -> str:
        """Over the module's source file, the network's parameters and buffers, and all that it is said to be."""
        return described(self).sha256

    def choices(self) -> list[str]:
        said = [f"The network is built by code, {self.name}."]
        if not described(self).is_module:
            said.append("It is not a torch.nn.Module, so a change of its weights is not noticed.")
        return said


@dataclass(frozen=True)
class Description:
    """A built model without its network."""

    state_shape: tuple[int, int, int]
    n_classes: int | None
    schedule: TrainedSchedule
    prediction_type: PredictionType
    sha256: str
    is_module: bool
    """Its parameters are part of the hash."""


def named(name: str) -> CodeModel:
    """Code that the user names."""
    _named.add(name)
    described.cache_clear()  # the weights that it reads may be others by now
    return CodeModel(name, Path.cwd())


def require_consent(name: str, run: object) -> None:
    """May code run that a run names? Only if the user has named it too.

    Raises:
        CheckpointError: nobody has.
    """
    if NAME.fullmatch(name) and name not in _named and os.environ.get(CONSENT) != name:
        raise CheckpointError(
            f"{run} was scored with a model that code builds, {name}: if it is yours, set {CONSENT}={name} to run it"
        )


def build(model: CodeModel) -> Model:
    """Import the module, and call the function.

    Raises:
        CheckpointError: either fails, or what comes back is not a model.
    """
    module_name, _, function = model.name.partition(":")
    if str(model.place) not in sys.path:
        sys.path.insert(0, str(model.place))
    try:
        made = getattr(importlib.import_module(module_name), function)()
    except Exception as error:  # it is foreign code, which may raise anything
        raise CheckpointError(f"{model}: {type(error).__name__}: {in_a_line(error)}") from error
    return _checked(model, made)


def _checked(model: CodeModel, made: Any) -> Model:
    try:
        given: dict[str, Any] = {
            field.name: getattr(made, field.name) for field in fields(Model) if hasattr(made, field.name)
        }
        found = Model(**given)
        shape = tuple(int(side) for side in found.state_shape)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{model}: returned no latentprint.Model ({in_a_line(error)})") from error
    if not callable(found.network) or len(shape) != 3 or not all(1 <= side <= LARGEST for side in shape):
        raise CheckpointError(f"{model}: a network that can be called and a state_shape (C, H, W) are needed")
    return found


@lru_cache(maxsize=1)
def described(model: CodeModel) -> Description:
    """What is known of a model without its network. Built once per process: Python imports a module once."""
    made = build(model)
    schedule = _schedule(model, made)
    channels, height, width = (int(side) for side in made.state_shape)
    shape, classes = (channels, height, width), None if made.n_classes is None else int(made.n_classes)
    total = hashlib.sha256(_source(model))
    total.update(repr((shape, classes, schedule, made.prediction_type)).encode())
    if isinstance(made.network, nn.Module):
        for name, value in sorted(made.network.state_dict().items()):
            if isinstance(value, Tensor):
                total.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
                total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    is_module = isinstance(made.network, nn.Module)
    return Description(shape, classes, schedule, made.prediction_type, total.hexdigest(), is_module)


def _source(model: CodeModel) -> bytes:
    module = sys.modules[model.name.partition(":")[0]]
    file = inspect.getsourcefile(module)
    return Path(file).read_bytes() if file else b""


def _schedule(model: CodeModel, made: Model) -> TrainedSchedule:
    given = {name: value for name in PREDICTS if (value := getattr(made, name)) is not None}
    if len(given) != 1:
        raise CheckpointError(f"{model}: either alphas_cumprod or sigmas is needed, of the noise it was trained with")
    ((name, value),) = given.items()
    if made.prediction_type not in PREDICTS[name]:
        raise CheckpointError(
            f"{model}: prediction_type {made.prediction_type!r:.80} is not one of {PREDICTS[name]}, those with {name}"
        )
    try:
        numbers = tuple(torch.as_tensor(value, dtype=torch.float64).flatten().tolist())
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{model}: {name} is not a list of numbers ({in_a_line(error)})") from error
    signal = numbers if name == "alphas_cumprod" else [1.0 / (1.0 + s**2) if s > 0.0 else 2.0 for s in numbers]
    if not falls(signal):
        words = "fall from at most 1 towards 0" if name == "alphas_cumprod" else "rise from above 0"
        raise CheckpointError(f"{model}: no noise schedule: {name} must {words}")
    return DiscreteVP(numbers) if name == "alphas_cumprod" else VarianceExploding(numbers)

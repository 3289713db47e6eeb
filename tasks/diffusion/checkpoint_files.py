"""The files of a checkpoint, before anything is built from them: regular ones, of bounded size, and what they imply.

A config may ask for a hundred thousand layers, or for layers of a hundred thousand channels. What it implies is counted
while diffusers makes the modules without memory (on torch's ``meta`` device), and must not exceed what the safetensors'
header says is there: the making ends at the first parameter too many.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import resource
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn

from latentprint.tasks.bounded import Oversized, array_header, open_regular, read_at_most, read_file
from latentprint.tasks.errors import UserError, first_line

LARGEST = 100_000
"""Of the integers in a config: sides, channels, classes, timesteps. Memory of their size is allocated on trust."""

COUNTERS = ("optimization_step", "update_after_step")
"""Settings that diffusers' EMAModel writes into the config of the network it averages: no size of anything."""

LARGEST_CONFIG = 2**20
"""Bytes."""

LARGEST_HEADER = 2**23
"""Bytes of a safetensors' header. 10,000 tensors take one."""

LARGEST_INDEX = 2**23
"""Bytes of the index of a checkpoint of several files."""

LARGEST_CONDITION = 2**28
"""Bytes of ``condition.npy``."""

SLACK = 4
"""By which factor a config may imply more weights than are there before it is refused unbuilt."""

WEIGHTS_FILE = re.compile(r"(diffusion_pytorch_model|model)(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

MOST_AXES = 16
"""Of a tensor: the product of its sides is made."""
DTYPES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
"""Of weights, with their bytes. Integers would be loaded as if they were floats; F8 has a scale that no file has."""
POSITIONS = {"I64": 8}
"""Of ``position_ids``, a buffer that older text encoders hold beside their weights."""


class CheckpointError(UserError):
    """A checkpoint that cannot be scored; the message names the file and what to do."""


class Weights(NamedTuple):
    """What the safetensors of a part hold."""

    n_tensors: int
    n_numbers: int
    variant: str = ""
    """Of the files that were chosen."""


def read_config(path: Path) -> dict[str, Any]:
    """A JSON config of the checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, too large, or holds a number beyond reason.
    """
    folder, part = path.parent.parent, path.parent.name
    try:
        content = json.loads(read_file(path, LARGEST_CONFIG).decode("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: not a diffusers checkpoint (no {part}/{path.name}); a DDPMPipeline folder is needed"
        ) from None
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged ({in_a_line(error)}): put it back") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a JSON object is expected")
    for name, value in content.items():
        for number in _integers(value) if name not in COUNTERS else ():
            if abs(number) > LARGEST:
                raise CheckpointError(
                    f"{path}: {name!r:.80} is {number!r:.80}; an integer from 1 to {LARGEST} is needed"
                )
    if content.get("quantization_config"):
        raise CheckpointError(f"{path}: quantized weights are not read: save them as floats")
    return content


def _integers(value: object) -> Iterator[int]:
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, int):
            yield value
        elif isinstance(value, dict | list):
            pending.extend(value.values() if isinstance(value, dict) else value)


def positive(path: Path, name: str, value: object) -> int:
    """A number of a config.

    Raises:
        CheckpointError: it is not a positive integer, or beyond reason.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise CheckpointError(f"{path}: {name} is {value!r:.80}; an integer from 1 to {LARGEST} is needed")
    return value


def falls(signal: Sequence[float]) -> bool:
    """Is this what can be left of an image, timestep by timestep: falling within (0, 1]; at the last it may be 0, but
    not 1, which would be no noise at all?"""
    ordered = all(1.0 >= here >= there for here, there in pairwise(signal)) and all(here > 0.0 for here in signal[:-1])
    return bool(signal) and ordered and 0.0 <= signal[-1] < 1.0


def require_weights(part: Path, variant: str = "") -> Weights:
    """Look at the headers of the safetensors in a part's folder; no weights are read.

    Args:
        variant: of the files, ``fp16`` for ``diffusion_pytorch_model.fp16.safetensors``; empty: those without one, or
            the only ones there are.

    Raises:
        CheckpointError: there are none, or a file is not regular, damaged, or holds other than floats.
    """
    for index in sorted(part.glob("*.safetensors.index*.json")):
        _check_index(index)
    variant, files = _weights_files(part, variant)
    found = [_header(file) for file in files]
    return Weights(sum(one.n_tensors for one in found), sum(one.n_numbers for one in found), variant)


def _weights_files(part: Path, variant: str) -> tuple[str, list[Path]]:
    by_variant: dict[str, list[Path]] = {}
    for path in sorted(part.glob("*.safetensors")):
        if named := WEIGHTS_FILE.fullmatch(path.name):
            by_variant.setdefault(named["variant"] or "", []).append(path)
    if not by_variant:
        pickled = sorted(path.name for path in part.glob("*") if path.suffix in PICKLED)
        if pickled:
            raise CheckpointError(
                f"{part}: its weights are pickled ({pickled[0]}), which is never read for scoring: write them as "
                "safetensors with 'latentprint convert'"
            )
        raise CheckpointError(f"{part}: no .safetensors weights: a diffusion_pytorch_model.safetensors is needed")
    if not variant and len(by_variant) == 1:
        return next(iter(by_variant.items()))
    if variant not in by_variant:
        there = ", ".join(name or "without a variant" for name in by_variant)
        wanted = f"no weights of variant {variant!r:.80}" if variant else "weights of variants alone"
        raise CheckpointError(f"{part}: {wanted}, there are: {there}; choose one with --variant")
    return variant, by_variant[variant]


def _header(path: Path) -> Weights:
    damaged = f"{path.parent}: not loadable (Error while deserializing header: "
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            (length,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\xff"))
            if length > LARGEST_HEADER:
                raise CheckpointError(f"{damaged}{length} bytes, at most {LARGEST_HEADER} are read): damaged?")
            header = json.loads(stream.read(length), object_pairs_hook=_distinct)
            if not isinstance(header, dict):
                raise ValueError("a JSON object is expected")
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{damaged}{in_a_line(error)}): damaged?") from error
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    n_numbers = 0
    for name, tensor in tensors.items():
        n_numbers += _n_numbers(path, name, tensor, size - 8 - length)
    return Weights(len(tensors), n_numbers)


def _n_numbers(path: Path, name: str, tensor: Any, n_bytes: int) -> int:
    """Of a tensor, whose place must be large enough for them and within the file: so no header claims more than is."""
    try:
        dtype, shape, (begin, end) = str(tensor["dtype"]), tensor["shape"], tensor["data_offsets"]
        numbers = (*shape[:MOST_AXES], begin, end)
        is_whole = len(shape) <= MOST_AXES and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
    except (KeyError, TypeError, ValueError):
        is_whole, dtype, shape, begin, end = False, "", [], 0, 0
    sizes = DTYPES | POSITIONS if name.endswith("position_ids") else DTYPES
    if is_whole and dtype not in sizes:
        raise CheckpointError(f"{path}: {name!r:.200} is of type {dtype!r:.20}; one of {', '.join(DTYPES)} is needed")
    if not is_whole or end > n_bytes or math.prod(shape) * sizes[dtype] != end - begin:
        raise CheckpointError(
            f"{path.parent}: not loadable (Error while deserializing header: {name!r:.200} does not fit into "
            f"{path.name}): damaged?"
        )
    return math.prod(shape)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name twice in one object")
    return content


def _check_index(path: Path) -> None:
    try:
        names = json.loads(read_file(path, LARGEST_INDEX))["weight_map"].values()
        outside = next((name for name in names if not isinstance(name, str) or "/" in name or "\\" in name), None)
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged ({in_a_line(error)}): put it back") from error
    if outside is not None:
        raise CheckpointError(f"{path}: names {outside!r:.80}, which is not a file beside it")


def require_modest(part: Path, make: Callable[[], object], weights: Weights, n_bytes: int) -> None:
    """Does the network that a config implies have about the weights that are there, and is there memory for them?

    Args:
        make: builds the network of the config.
        n_bytes: of a weight in memory.

    Raises:
        CheckpointError: it implies far more, cannot be built, or does not fit into memory.
    """
    needed, free = weights.n_numbers * n_bytes, free_memory()
    if needed > free:
        raise CheckpointError(f"{part}: its weights need {needed:.3g} bytes of memory, {free:.3g} are free")
    try:
        with _counting(SLACK * weights.n_tensors + 64, SLACK * weights.n_numbers + 2**20), torch.device("meta"):
            make()
    except Oversized as error:
        raise CheckpointError(
            f"{part}: its config implies {error}, but {weights.n_tensors} tensors of {weights.n_numbers} "
            "numbers are there: wrong config?"
        ) from error
    except Exception as error:  # each network has its own ways with a setting that it does not know
        raise not_loadable(part, error) from error


@contextmanager
def _counting(n_tensors: int, n_numbers: int) -> Iterator[None]:
    """Within, modules made by this thread raise Oversized when they have more parameters than these."""
    here, found = threading.get_ident(), {"tensors": 0, "numbers": 0, "modules": 0}

    def on_parameter(_: nn.Module, __: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and threading.get_ident() == here:
            found["tensors"] += 1
            found["numbers"] += parameter.numel()
            if found["tensors"] > n_tensors or found["numbers"] > n_numbers:
                raise Oversized(f"more than {n_tensors} tensors or {n_numbers} numbers")

    def on_module(_: nn.Module, __: str, ___: nn.Module | None) -> None:
        if threading.get_ident() == here:
            found["modules"] += 1
            if found["modules"] > 16 * n_tensors:
                raise Oversized(f"more than {16 * n_tensors} modules")

    hooks = nn.modules.module
    handles = (
        hooks.register_module_parameter_registration_hook(on_parameter),
        hooks.register_module_module_registration_hook(on_module),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def free_memory() -> float:
    """Bytes that this process can still have: of the machine's, and of its own limit (``ulimit -v``)."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    left = math.inf if limit == resource.RLIM_INFINITY else limit - psutil.Process().memory_info().vms
    return min(float(psutil.virtual_memory().available), left)


def read_condition(path: Path, features: int) -> Tensor:
    """Encoder states (tokens, features), float32.

    Raises:
        CheckpointError: the file holds anything else.
    """
    try:
        with open_regular(path) as stream:
            shape, is_fortran, dtype = array_header(stream)
            if dtype.kind != "f" or len(shape) != 2 or shape[1] != features or shape[0] < 1:
                what = f"{dtype} of shape {tuple(shape)}"
                raise CheckpointError(f"{path}: {what:.200}; floats of shape (tokens, {features}) are needed")
            content = read_at_most(stream, LARGEST_CONDITION)
        array = np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, TypeError, EOFError, MemoryError, OverflowError) as error:
        raise CheckpointError(f"{path}: not a readable array ({in_a_line(error)})") from error
    with np.errstate(over="ignore"):
        condition = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if not bool(condition.isfinite().all()):
        raise CheckpointError(f"{path}: holds NaN or infinite values")
    return condition


def sha256_of(files: Mapping[str, Path], options: Mapping[str, str]) -> str:
    """SHA-256 over names and bytes of regular files, and over what else makes the model.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    total = hashlib.sha256()
    for name, file in files.items():
        total.update(f"{name}\0".encode())
        try:
            with open_regular(file) as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise unreadable(file, error) from error
    for name, value in options.items():
        total.update(f"{name}\0{value}\0".encode())
    return total.hexdigest()


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Within, diffusers prints nothing: what is wrong goes into the CheckpointError."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL + 1)
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity)


def unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read ({error.strerror}): a readable file is needed")


def not_loadable(part: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{part}: not loadable ({in_a_line(error)}): damaged, or a wrong config?")


def in_a_line(error: BaseException) -> str:
    """What an error comes from, in its first sentence: what was raised on the way repeats paths."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return first_line(error).partition(". ")[0][:300]

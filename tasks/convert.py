"""A checkpoint with pickled weights, written anew as a pipeline of safetensors. Only tensors are taken from a pickle.

``torch.load(weights_only=True)`` refuses whatever else a pickle asks for, so no code of the file runs. The numbers
stay bit for bit.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from latentprint.tasks.bounded import open_regular
from latentprint.tasks.diffusion.checkpoint import load_denoiser, require_sane
from latentprint.tasks.diffusion.checkpoint_files import PICKLED, CheckpointError, free_memory, in_a_line, unreadable
from latentprint.tasks.diffusion.code_model import CodeModel
from latentprint.tasks.diffusion.layout import CONDITION, CONFIG, OTHER_PARTS, PIPELINE, SCHEDULER_CONFIG, resolve

NAMES = re.compile(r"(diffusion_pytorch_model|pytorch_model)((?:\.\w+)?(?:-\d+-of-\d+)?)\.bin")
"""Of pickled weights as diffusers and transformers write them."""
READ = re.compile(r"config\.json|merges\.txt|vocab\.json|special_tokens_map\.json|tokenizer(_config)?\.json")
"""Texts of a part that are read to load it. Others stay behind: a link may lead anywhere."""
SAFE = {"diffusion_pytorch_model": "diffusion_pytorch_model", "pytorch_model": "model"}
NO_PIPELINE = (
    "weights without a config: no file says which network they are of. Write them with save_pretrained of diffusers, "
    "or give code that builds the network, --model MODULE:FUNCTION"
)


def convert(source: str, out: Path, scheduler: str = "") -> dict[str, Any]:
    """Write ``out``, a pipeline of the same weights that has been loaded once; returns what was converted.

    Args:
        source: a folder as :func:`latentprint.tasks.diffusion.layout.resolve` reads it.

    Raises:
        CheckpointError: it is not such a folder, a pickle holds anything but tensors, or what comes out does not load.
    """
    path = Path(source)
    if path.is_file() and path.suffix in (*PICKLED, ".safetensors"):
        raise CheckpointError(f"{source}: {NO_PIPELINE}")
    checkpoint = resolve(source, scheduler)
    if isinstance(checkpoint, CodeModel):
        raise CheckpointError(f"{source}: code that builds a model, no folder")
    if not (checkpoint.network / CONFIG).exists() and any(file.suffix in PICKLED for file in path.glob("*")):
        raise CheckpointError(f"{source}: {NO_PIPELINE}")
    if os.path.lexists(out):
        raise CheckpointError(f"--out {out}: exists: choose a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    converted: list[str] = []
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=out.parent) as aside:
        made = Path(aside) / "model"
        made.mkdir()
        converted += _part(checkpoint.network, made / checkpoint.network_part)
        for part in OTHER_PARTS:
            if (checkpoint.pipeline / part).is_dir():
                converted += _part(checkpoint.pipeline / part, made / part)
        if checkpoint.scheduler is not None:
            _copy(checkpoint.scheduler, made / "scheduler" / SCHEDULER_CONFIG)
        for name in (PIPELINE, CONDITION):
            if os.path.lexists(checkpoint.pipeline / name):
                _copy(checkpoint.pipeline / name, made / name)
        try:
            require_sane(load_denoiser(made, "cpu"))
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(made), source)) from error
        os.rename(made, out)
    return {"out": str(out), "converted": converted, "choices": checkpoint.choices()}


def _part(source: Path, target: Path) -> list[str]:
    """Its configs and safetensors as they are, its pickles as safetensors; returns the names of these."""
    target.mkdir()
    converted = []
    has_safe = any(source.glob("*.safetensors"))
    for file in sorted(source.glob("*")):
        named = NAMES.fullmatch(file.name)
        if named and not has_safe:
            _save(_tensors(file), target / f"{SAFE[named[1]]}{named[2]}.safetensors")
            converted.append(f"{target.name}/{file.name}")
        elif file.name.endswith(".bin.index.json") and not has_safe:
            _index(file, target)
        elif file.suffix == ".safetensors" or ".safetensors.index" in file.name or READ.fullmatch(file.name):
            _copy(file, target / file.name)
    return converted


def _index(file: Path, target: Path) -> None:
    """Which of several files holds which tensor, under their new names."""
    with _refusing(file), open_regular(file) as stream:
        index = json.load(stream)
        for key, name in index["weight_map"].items():
            index["weight_map"][key] = NAMES.sub(lambda found: f"{SAFE[found[1]]}{found[2]}.safetensors", str(name))
    name = file.name.replace(".bin.index", ".safetensors.index")
    name = re.sub(r"^pytorch_model", "model", name)
    (target / name).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _tensors(file: Path) -> dict[str, Tensor]:
    with _refusing(file), open_regular(file) as stream:
        if os.fstat(stream.fileno()).st_size > free_memory():
            raise CheckpointError(f"{file}: larger than the free memory")
        found = torch.load(stream, map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise CheckpointError(f"{file}: holds more than named tensors: not a file of weights as diffusers writes it")
    if not all(value.layout is torch.strided and value.device.type == "cpu" for value in found.values()):
        raise CheckpointError(f"{file}: holds tensors that are not dense: write them as plain ones")
    if sum(value.numel() * value.element_size() for value in found.values()) > free_memory():
        raise CheckpointError(f"{file}: its tensors take more than the free memory")
    return found


def _save(tensors: dict[str, Tensor], target: Path) -> None:
    """Without memory that tensors share, which safetensors does not write."""
    save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, target, {"format": "pt"})


def _copy(source: Path, target: Path) -> None:
    with _refusing(source), open_regular(source) as stream:
        target.parent.mkdir(exist_ok=True)
        with target.open("wb") as copy:
            shutil.copyfileobj(stream, copy)


@contextmanager
def _refusing(file: Path) -> Iterator[None]:
    """Within, what a foreign file makes torch or json raise is a CheckpointError that names it."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise unreadable(file, error) from error
    except Exception as error:  # torch, pickle and json raise a dozen types
        raise CheckpointError(f"{file}: not read ({in_a_line(error)}): a pickle of tensors alone is needed") from error

"""Where the parts of a checkpoint lie, in the folders that trainers write.

DDPMPipeline ...  unet/ scheduler/, perhaps vae/ ...    as ``save_pretrained`` writes a pipeline
DiTPipeline       transformer/ scheduler/ vae/
checkpoint-500/   unet/ unet_ema/                       as diffusers' training scripts write with accelerate; the
                                                        scheduler lies one level up, or is named
unet/             config.json and weights               a network alone; its scheduler beside it, or named
a flat folder     config.json scheduler_config.json     as older pipelines on the hub are
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from latentprint.tasks.diffusion.checkpoint_files import CheckpointError, sha256_of
from latentprint.tasks.diffusion.code_model import NAME, CodeModel, named
from latentprint.tasks.errors import first_line

CONDITION = "condition.npy"
PIPELINE = "model_index.json"
CONFIG, SCHEDULER_CONFIG = "config.json", "scheduler_config.json"
EMA, NETWORK_PARTS = "unet_ema", ("unet_ema", "unet", "transformer")
"""Parts that may hold the network, the first that is there is taken: averaged weights are what is sampled from."""
OTHER_PARTS = ("vae", "vqvae", "text_encoder", "tokenizer")
FILES = ("*.json", "*.safetensors", "*/merges.txt", CONDITION)
"""What is read of a checkpoint on the hub."""


@dataclass(frozen=True)
class Checkpoint:
    """A model on this machine; plain values, so that it travels to any process."""

    folder: Path
    """As it was named."""
    network: Path
    """Folder of the network's config and weights."""
    scheduler: Path | None
    """File of the noise schedule."""
    variant: str = ""
    """Of the weights' files: ``fp16`` for ``diffusion_pytorch_model.fp16.safetensors``."""
    prompt: str = ""
    """What a network that takes a text is told."""

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def pipeline(self) -> Path:
        """The folder in which the other parts lie."""
        return self.network if self.scheduler == self.network / SCHEDULER_CONFIG else self.network.parent

    @property
    def tells_text(self) -> bool:
        """The network is told a text, by the pipeline's text encoder. States that lie there ready are preferred to the
        empty text."""
        has_encoder = os.path.lexists(self.pipeline / "text_encoder" / CONFIG)
        return has_encoder and (bool(self.prompt) or not os.path.lexists(self.condition))

    @property
    def condition(self) -> Path:
        return self.pipeline / CONDITION

    def files(self) -> dict[str, Path]:
        """The files that define the model, by their names in a pipeline: configs and safetensors of its parts, the
        condition, and the index. Nothing else is read to score or to sample."""
        found = {f"{self.network_part}/{name}": path for name, path in _read_of(self.network).items()}
        if self.scheduler is not None:
            found[f"scheduler/{SCHEDULER_CONFIG}"] = self.scheduler
        for part in OTHER_PARTS:
            found |= {f"{part}/{name}": path for name, path in _read_of(self.pipeline / part).items()}
        beside = {name: self.pipeline / name for name in (CONDITION, PIPELINE)}
        return found | {name: path for name, path in beside.items() if os.path.lexists(path)}

    @property
    def network_part(self) -> str:
        """Its name in a pipeline."""
        return "transformer" if self.network.name == "transformer" else "unet"

    def sha256(self) -> str:
        """Over names and bytes of the files, and how they are read where that is not the default.

        Raises:
            CheckpointError: one of them cannot be read.
        """
        options = {"variant": self.variant, "prompt": self.prompt}
        return sha256_of(self.files(), {name: value for name, value in options.items() if value})

    def choices(self) -> list[str]:
        """What was chosen where the folder leaves a choice, in sentences."""
        choices = []
        if self.network.name == EMA and (self.network.parent / "unet" / CONFIG).exists():
            choices.append(f"The averaged weights in {EMA}/ are scored, not those in unet/.")
        if self.tells_text and self.prompt:
            choices.append(f"The model is told the text {self.prompt!r}.")
        elif self.tells_text:
            choices.append("The model is told the empty text; --prompt gives another.")
        elif os.path.lexists(self.condition):
            choices.append(f"The model is told the states in {CONDITION}.")
        return choices


def _read_of(folder: Path) -> dict[str, Path]:
    """The files of a part by name, but those of a flat pipeline's other parts."""
    files = {path.name: path for path in sorted(folder.glob("*"))}
    own = {name: path for name, path in files.items() if name not in (PIPELINE, SCHEDULER_CONFIG)}
    return {name: p for name, p in own.items() if p.suffix in (".json", ".safetensors") or name == "merges.txt"}


Resolved = Checkpoint | CodeModel
"""Where a model comes from, with the options it is read with."""
Source = Path | Resolved
"""The same, or a folder alone."""


def located(model: Path | Checkpoint) -> Checkpoint:
    """A checkpoint; a folder alone stands for the one in it, read without options."""
    return model if isinstance(model, Checkpoint) else locate(model)


def locate(folder: Path, scheduler: str = "", variant: str = "", prompt: str = "") -> Checkpoint:
    """The checkpoint in a folder. What is missing is named when it is read.

    Args:
        scheduler: folder or file of the noise schedule; empty: in the folder, beside the network, or one level up.

    Raises:
        CheckpointError: no scheduler there, or the folder holds several checkpoints.
    """
    network = next((folder / part for part in NETWORK_PARTS if os.path.lexists(folder / part / CONFIG)), None)
    if network is None and os.path.lexists(folder / CONFIG):
        network = folder
    if network is None:
        _require_one(folder)
        network = folder / "unet"
    return Checkpoint(folder, network, _scheduler(network, scheduler), variant, prompt)


def _scheduler(network: Path, named: str) -> Path | None:
    if named:
        place = Path(named)
        candidates = [place / "scheduler" / SCHEDULER_CONFIG, place / SCHEDULER_CONFIG]
        found = place if place.is_file() else next(filter(os.path.lexists, candidates), None)
        if found is None:
            raise CheckpointError(f"--scheduler {named}: no {SCHEDULER_CONFIG} there")
        return found
    beside = network.absolute().parent
    places = [network / SCHEDULER_CONFIG, *(up / "scheduler" / SCHEDULER_CONFIG for up in (beside, beside.parent))]
    return next(filter(os.path.lexists, places), None)


def _require_one(folder: Path) -> None:
    """A training's folder without a pipeline holds checkpoints alone."""
    names = [path.parents[1].name for path in folder.glob(f"checkpoint-*/unet*/{CONFIG}")]
    if names:
        last = max(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
        raise CheckpointError(
            f"{folder}: no pipeline, but checkpoints of a training: name one, such as {folder / last}"
        )


def resolve(model: str, scheduler: str = "", variant: str = "", prompt: str = "") -> Resolved:
    """What ``model`` names: a folder, code ``module:function``, or a download if it is a name on the Hugging Face hub.

    Args:
        scheduler: folder or file of the noise schedule, where it does not lie with the network.
        variant: of the weights' files.
        prompt: what a network that takes a text is told.

    Raises:
        CheckpointError: neither exists.
    """
    if NAME.fullmatch(model) and not os.path.lexists(model):
        if options := [name for name in (scheduler, variant, prompt) if name]:
            raise CheckpointError(f"{model}: code that builds a model takes no option {options[0]!r:.80}")
        return named(model)
    return locate(_folder(model), scheduler, variant, prompt)


def _folder(model: str) -> Path:
    path = Path(model)
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except OSError as error:
        raise CheckpointError(f"{model}: cannot be read ({error.strerror})") from error
    if is_folder:
        return path
    if is_there or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise CheckpointError(f"{model}: not a checkpoint folder (a diffusers pipeline with unet/ and scheduler/)")
    try:
        return Path(snapshot_download(model, allow_patterns=list(FILES)))
    except Exception as error:  # offline, missing, gated ...: the hub client raises its own and its transport's types
        raise CheckpointError(
            f"{model}: no such folder, and not loadable from the hub ({first_line(error)})"
        ) from error

"""What a network with cross attention is told: states of a text, or those that lie in the checkpoint's folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentprint.tasks.diffusion.checkpoint_files import (
    CheckpointError,
    not_loadable,
    positive,
    quiet_diffusers,
    read_condition,
    read_config,
    require_modest,
    require_weights,
)
from latentprint.tasks.diffusion.layout import CONFIG, Checkpoint

TEXT_ENCODER = "CLIPTextModel"


def condition_of(checkpoint: Checkpoint, config: Any) -> Tensor | None:
    """Encoder states (tokens, features), float32; None for a network without cross attention.

    Raises:
        CheckpointError: there is nothing that they could come from, they do not fit, or a text is given in vain.
    """
    features = config.get("cross_attention_dim") if config.get("_class_name") == "UNet2DConditionModel" else None
    if features is None:
        if checkpoint.prompt:
            raise CheckpointError(f"{checkpoint}: its network takes no text: leave --prompt out")
        return None
    features = positive(checkpoint.network / CONFIG, "cross_attention_dim", features)
    if checkpoint.tells_text:
        states = text_states(checkpoint.pipeline, checkpoint.prompt)
        if states.shape[1] != features:
            raise CheckpointError(
                f"{checkpoint.pipeline}/text_encoder: gives {states.shape[1]} features, but the network takes "
                f"{features}: another model's?"
            )
        return states
    if checkpoint.prompt:
        raise CheckpointError(f"{checkpoint}: no text_encoder/ and tokenizer/ for --prompt: put them back")
    path = checkpoint.condition
    if not os.path.lexists(path):
        raise CheckpointError(
            f"{path}: missing, but this UNet takes a condition: put text_encoder/ and tokenizer/ back, or save encoder "
            f"states there with numpy.save, as (tokens, {features})"
        )
    return read_condition(path, features)


def text_states(pipeline: Path, text: str) -> Tensor:
    """What the pipeline's own text encoder makes of a text, (tokens, features), float32: padded and cut to the
    tokenizer's length, as diffusers' pipelines do.

    Raises:
        CheckpointError: transformers is not installed, or encoder or tokenizer cannot be read.
    """
    part = pipeline / "text_encoder"
    config = read_config(part / CONFIG)
    names = config.get("architectures")
    found = names[0] if isinstance(names, list) and names else names
    if found != TEXT_ENCODER:
        raise CheckpointError(
            f"{part}: a {found!r:.80}, only {TEXT_ENCODER} is read: save its states of the text as condition.npy"
        )
    weights = require_weights(part)
    try:
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
        from transformers.utils import logging as transformers_logging
    except ImportError as error:
        raise CheckpointError(f"{part}: texts need the package transformers: pip install transformers") from error
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    require_modest(part, lambda: CLIPTextModel(CLIPTextConfig.from_dict(config)), weights, torch.float32.itemsize)
    try:
        with quiet_diffusers(), torch.inference_mode():
            tokenizer = CLIPTokenizer.from_pretrained(pipeline / "tokenizer", local_files_only=True)
            encoder, info = CLIPTextModel.from_pretrained(
                part,
                use_safetensors=True,
                local_files_only=True,
                variant=weights.variant or None,
                dtype=torch.float32,
                output_loading_info=True,
            )
            encoder = encoder.eval()
            if lacking := [*info["missing_keys"], *info["mismatched_keys"]]:  # they would be drawn at random
                raise ValueError(f"weights are missing or of another shape, {str(lacking[0])[:200]} first")
            length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
            tokens = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
            states: Tensor = encoder(tokens.input_ids, attention_mask=mask)[0][0].clone()
            if not bool(states.isfinite().all()):
                raise ValueError("its states of the text are not finite")
    except Exception as error:  # transformers raises a dozen types for a damaged or foreign file
        raise not_loadable(part, error) from error
    return states

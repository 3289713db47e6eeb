"""How many images a network takes at a time."""

from __future__ import annotations

import math

import torch

from latentprint.tasks.diffusion.checkpoint import LoadedModel

CPU_BATCH = 64
MEMORY_SHARE = 0.5
PROBE_BATCH = 8


def auto_batch_size(model: LoadedModel) -> int:
    """Images a network call: 64 on a CPU; on a GPU, what half its memory holds, measured by one small batch."""
    if model.device.type != "cuda":
        return CPU_BATCH
    probe(model)
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    probe(model)
    per_image = (torch.cuda.max_memory_allocated(model.device) - before) / PROBE_BATCH
    total = torch.cuda.get_device_properties(model.device).total_memory
    return 1 << max(0, int(math.log2(MEMORY_SHARE * total / per_image)))


def probe(model: LoadedModel) -> None:
    """One network call of ``PROBE_BATCH`` images, of the first class if the model knows classes."""
    denoiser = model.denoiser.of_class(0 if model.n_classes else None)
    with torch.inference_mode():
        denoiser(torch.zeros(PROBE_BATCH, *model.state_shape, device=model.device), 0.0)

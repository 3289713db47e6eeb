r"""One contract for every network: ``eps(x, t)``, the noise that the model sees in ``x`` at conditioning ``t``.

Checkpoints predict noise, the clean image or a velocity; this adapter turns all three into eps and nothing after it
knows which it was. It also counts network evaluations, so costs are measured rather than claimed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from tasks.diffusion.schedule import DiscreteVP

PredictionType = Literal["epsilon", "sample", "v_prediction"]
EpsModel = Callable[[Tensor, float], Tensor]
"""eps(x, conditioning): (B, C, H, W), float -> (B, C, H, W), in x's dtype."""


class Denoiser:
    r"""A network with its parameterisation, as ``eps(x, conditioning)``.

    With alpha, sigma of the *training* schedule at the conditioning (abar linear between timesteps):

        epsilon:       eps = f(x, t)
        sample:        eps = (x - alpha f(x, t)) / sigma
        v_prediction:  eps = alpha f(x, t) + sigma x        (Salimans & Ho 2022, arXiv 2202.00512)

    The state may be float64: it is cast to the network's dtype on the way in and back on the way out.

    Args:
        network: ``network(x, t)`` with x (B, C, H, W) and t (B,), returning (B, C, H, W).
        schedule: the schedule it was trained with.
        prediction_type: as in the scheduler's config.
        dtype: the network's own dtype.
        memory_format: ``torch.channels_last`` where convolutions prefer it.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        schedule: DiscreteVP,
        prediction_type: PredictionType = "epsilon",
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.network = network
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.dtype = dtype
        self.memory_format = memory_format
        self.n_evaluations = 0
        """Network evaluations so far: one an image, and one a tangent pushed forward with it."""

    def __call__(self, x: Tensor, conditioning: float) -> Tensor:
        self.n_evaluations += x.shape[0]
        inputs = x.to(self.dtype, memory_format=self.memory_format)
        # Half precision cannot tell timesteps apart (bf16: 501 is 500); the network embeds them in float32 anyway.
        times = torch.full(
            (x.shape[0],), conditioning, dtype=torch.promote_types(self.dtype, torch.float32), device=x.device
        )
        output = self.network(inputs, times).to(x.dtype)
        if self.prediction_type == "epsilon":
            return output
        alpha, sigma = self._scales(conditioning)
        if self.prediction_type == "sample":
            return (x - alpha * output) / sigma
        return alpha * output + sigma * x

    def _scales(self, conditioning: float) -> tuple[float, float]:
        """(alpha, sigma) at a possibly fractional conditioning; finite at zero terminal SNR."""
        last = self.schedule.n_timesteps - 1
        position = min(max(conditioning, 0.0), float(last))
        lower = int(position)
        upper, weight = min(lower + 1, last), position - lower
        abar = (1.0 - weight) * self.schedule.alphas_cumprod[lower] + weight * self.schedule.alphas_cumprod[upper]
        return math.sqrt(abar), math.sqrt(1.0 - abar)

r"""One contract for every network: ``eps(x, t)``, the noise that the model sees in ``x`` at conditioning ``t``.

Checkpoints predict noise, the clean image, a velocity or a score; this adapter turns all into eps and nothing after
it knows which it was. It also counts network evaluations, so costs are measured rather than claimed.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor

from latentprint.tasks.diffusion.schedule import TrainedSchedule, VarianceExploding

PredictionType = Literal["epsilon", "sample", "v_prediction", "flow", "score", "edm", "edm_v_prediction"]
EpsModel = Callable[[Tensor, float], Tensor]
"""eps(x, conditioning): (B, C, H, W), float -> (B, C, H, W), in x's dtype."""


NO_FLOAT64 = {"mps"}
"""Device types that have no float64."""


def wide(x: Tensor) -> Tensor:
    """``x`` in the precision of the ODE's state: float64, or float32 where the device has nothing wider."""
    return x.float() if x.device.type in NO_FLOAT64 else x.double()


class Denoiser:
    r"""A network with its parameterisation, as ``eps(x, conditioning)``.

    With alpha, sigma of the *training* schedule at the conditioning:

        epsilon:       eps = f(x, t)
        sample:        eps = (x - alpha f(x, t)) / sigma
        v_prediction:  eps = alpha f(x, t) + sigma x        (Salimans & Ho 2022, arXiv 2202.00512)
        flow:          eps = x + alpha f(x, t)              f = eps - x_0, alpha = 1 - sigma (arXiv 2210.02747)

    On a variance exploding schedule, with y = x / alpha = x_0 + s eps:

        epsilon:       eps = f(y, s)
        sample:        eps = (y - f(y, s)) / s
        score:         eps = -s/2 f((y + 1) / 2, s/2)       of pixels in [0, 1] (arXiv 2011.13456)
        edm:           eps = (s y / r - c f(y / r, ln(s) / 4)) / r,   r^2 = s^2 + c^2,   c = sigma_data
                       which is (y - D) / s of the denoiser D = c^2 y / r^2 + s c f / r (arXiv 2206.00364, table 1)
        edm_v_prediction: the same with -f

    The state may be float64 (:func:`wide`): it is cast to the network's dtype on the way in and back on the way out.

    Args:
        network: ``network(x, t)`` with x (B, C, H, W) and t (B,), returning (B, C, H, W); a class-conditional one also
            takes labels (B,).
        schedule: the schedule it was trained with.
        prediction_type: as in the scheduler's config.
        dtype: the network's own dtype.
        memory_format: ``torch.channels_last`` where convolutions prefer it.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        schedule: TrainedSchedule,
        prediction_type: PredictionType = "epsilon",
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.network = network
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.dtype = dtype
        self.memory_format = memory_format
        self.label: int | Tensor | None = None
        self._evaluated = Counter[str]()

    def of_class(self, label: int | Tensor | None) -> Self:
        """eps(x, conditioning | label): the same network for images of one class, or each of its own (B,).

        Both count their evaluations together.
        """
        given = copy.copy(self)
        given.label = label
        return given

    @property
    def n_evaluations(self) -> int:
        """Network evaluations so far: one an image, and one a tangent pushed forward with it. What is computed again
        because memory is short (:func:`latentprint.tasks.diffusion.tangents.exact_tangents`) counts once."""
        return self._evaluated["network"]

    @n_evaluations.setter
    def n_evaluations(self, n: int) -> None:
        self._evaluated["network"] = n

    def __call__(self, x: Tensor, conditioning: float) -> Tensor:
        self.n_evaluations += x.shape[0]
        if isinstance(self.schedule, VarianceExploding):
            return self._of_exploding(self.schedule, x, conditioning)
        output = self.output(x, conditioning)
        if self.prediction_type == "epsilon":
            return output
        alpha, sigma = self.schedule.scales(conditioning)
        if self.prediction_type == "sample":
            return (x - alpha * output) / sigma
        if self.prediction_type == "flow":
            return x + alpha * output
        return alpha * output + sigma * x

    def _of_exploding(self, schedule: VarianceExploding, x: Tensor, s: float) -> Tensor:
        y = x / schedule.scales(s)[0]
        if self.prediction_type == "epsilon":
            return self.output(y, s)
        if self.prediction_type == "sample":
            return (y - self.output(y, s)) / s
        if self.prediction_type == "score":
            return -s / 2 * self.output((y + 1) / 2, s / 2)
        r, sign = math.hypot(s, schedule.sigma_data), -1.0 if self.prediction_type == "edm_v_prediction" else 1.0
        return (s / r * y - sign * schedule.sigma_data * self.output(y / r, math.log(s) / 4)) / r

    def output(self, x: Tensor, told: float) -> Tensor:
        """What the network itself says of inputs and time as it knows them, in x's dtype."""
        inputs = x.to(self.dtype, memory_format=self.memory_format)
        # Half precision cannot tell timesteps apart (bf16: 501 is 500); the network embeds them in float32 anyway.
        times = torch.full((x.shape[0],), told, dtype=torch.promote_types(self.dtype, torch.float32), device=x.device)
        labels = () if self.label is None else (torch.as_tensor(self.label, device=x.device).expand(len(x)),)
        return self.network(inputs, times, *labels).to(x.dtype)

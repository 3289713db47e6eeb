r"""Volume growth along the probability-flow ODE, image -> latent: the ease of reproducing an image.

Latents are N(0, I), so the latent volume that a small neighbourhood of an image occupies is its probability of being
generated. K perturbations of length delta around x span that neighbourhood; each ODE step moves centre and neighbours,

    x' = a x + b eps(x, c)      =>      v' = a v + b (eps(x + v, c) - eps(x, c)),

the growth of the step is read off the v', and they are re-orthonormalised for the next one.

    edge:     sum_k log(|v'_k| / delta)         the paper's own; an upper bound on the volume for K > 1 (Hadamard)
    volume:   sum_k log(|R_kk| / delta)         V' = Q R; Benettin's algorithm for Lyapunov exponents

Source: Hasegawa & Yasuda 2025, arXiv 2503.19429; Benettin et al. 1980, Meccanica 15, 9.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tasks.diffusion.denoiser import EpsModel
from tasks.diffusion.schedule import Schedule, ascending_timesteps, steps_along

Estimator = Literal["edge", "volume"]


class Growth(NamedTuple):
    """Growth of B images over N steps along K axes."""

    log_growth: Tensor
    """Cumulative log growth after each step, (B, N), nats, float64."""
    standard_error: Tensor
    """Standard error of the last column over independent axes, (B,), nats; NaN for a single axis."""
    eps: Tensor
    """Noise predicted at the unperturbed image in the first step, (B, C, H, W): the base pass."""
    latent: Tensor
    """Where the ODE carried the image, (B, C, H, W), float64."""


def log_growth(
    eps_model: EpsModel,
    x: Tensor,
    schedule: Schedule,
    *,
    axes: Tensor,
    n_steps: int = 1,
    start: int = 0,
    stride: int = 1,
    estimator: Estimator = "edge",
    delta: float = 0.05,
    max_batch: int | None = None,
) -> Growth:
    """Cumulative log volume growth of each image.

    Args:
        eps_model: eps(x, conditioning), see :class:`tasks.diffusion.denoiser.Denoiser`.
        x: images (B, C, H, W), pixels in [-1, 1].
        schedule: which grid to step along.
        axes: initial directions (B, K, C, H, W), any length, linearly independent; orthonormalised here.
        n_steps: N, of ``stride`` timesteps each, from timestep ``start``.
        delta: l2 length of each perturbation, in pixel units.
        max_batch: most images in one network call; a larger (K + 1) B is cut up.

    The state is kept in float64 around a network in its own dtype. Cost: N (K + 1) network evaluations an image.

    Raises:
        ValueError: more axes than dimensions, or steps beyond the schedule's end.
    """
    n_axes, dimension = axes.shape[1], x[0].numel()
    if n_axes > dimension:
        raise ValueError(f"{n_axes} axes in {dimension} dimensions: at most {dimension} are independent")
    state = x.double()
    edges = delta * orthonormalise(axes.double().flatten(2))
    growth_per_axis = torch.zeros(len(x), n_axes, dtype=torch.float64, device=x.device)
    cumulative = []
    first_eps: Tensor | None = None
    for step in steps_along(schedule, ascending_timesteps(schedule, n_steps, start, stride)):
        points = torch.cat([state[:, None], state[:, None] + edges.unflatten(2, x.shape[1:])], dim=1)
        eps = _evaluate(eps_model, points.flatten(0, 1), step.conditioning, max_batch).unflatten(0, points.shape[:2])
        eps_state, eps_edges = eps[:, 0], eps[:, 1:] - eps[:, :1]
        edges = step.a * edges + step.b * eps_edges.flatten(2)
        state = step.a * state + step.b * eps_state
        first_eps = eps_state if first_eps is None else first_eps
        lengths, directions = _edge_lengths(edges) if estimator == "edge" else _qr_lengths(edges)
        growth_per_axis = growth_per_axis + torch.log(lengths / delta)
        cumulative.append(growth_per_axis.sum(1))
        edges = delta * directions
    assert first_eps is not None
    return Growth(torch.stack(cumulative, 1), _standard_error_of_sum(growth_per_axis), first_eps, state)


def orthonormalise(vectors: Tensor) -> Tensor:
    """Gram-Schmidt, longest vector first, of (B, K, d): orthonormal rows spanning the same space, longest first.

    The paper's order: sort by decreasing length, then (modified) Gram-Schmidt, which is what QR of the sorted vectors
    computes up to the rows' signs; the signs are set so that each row keeps its vector's side.
    """
    order = torch.linalg.vector_norm(vectors, dim=2).argsort(dim=1, descending=True, stable=True)
    vectors = vectors.gather(1, order[..., None].expand_as(vectors))
    return _qr_lengths(vectors)[1]


def _edge_lengths(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths of the rows of (B, K, d), and fresh orthonormal directions for the next step."""
    lengths = torch.linalg.vector_norm(edges, dim=2)
    return lengths.sort(dim=1, descending=True).values, orthonormalise(edges)


def _qr_lengths(edges: Tensor) -> tuple[Tensor, Tensor]:
    """|R_kk| of (B, K, d) and the orthonormal rows, signed like their vectors."""
    q, r = torch.linalg.qr(edges.mT)
    diagonal = r.diagonal(dim1=1, dim2=2)
    return diagonal.abs(), (q * torch.where(diagonal < 0, -1.0, 1.0)[:, None]).mT


def _evaluate(eps_model: EpsModel, x: Tensor, conditioning: float, max_batch: int | None) -> Tensor:
    if max_batch is None or len(x) <= max_batch:
        return eps_model(x, conditioning)
    return torch.cat([eps_model(chunk, conditioning) for chunk in x.split(max_batch)])


def _standard_error_of_sum(per_axis: Tensor) -> Tensor:
    """sqrt(K) times the standard deviation over the K axes, (B,); NaN for K = 1."""
    n_axes = per_axis.shape[1]
    if n_axes < 2:
        return torch.full((len(per_axis),), float("nan"), dtype=per_axis.dtype, device=per_axis.device)
    return per_axis.std(1) * math.sqrt(n_axes)

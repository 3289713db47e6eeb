"""Parameters of the flows: frozen, bounded, typed, with units. What changes a result is here; see the run directory's
``run.json`` for what a given run used."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from tasks.diffusion.growth import Estimator
from tasks.diffusion.schedule import Grid


class Parameters(BaseModel):
    """Base: immutable, and unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardParameters(Parameters):
    """How images become WebDataset shards."""

    shard_bytes: int = Field(64 * 2**20, ge=2**12, description="largest size of a shard [bytes]")
    max_bad_fraction: float = Field(0.01, ge=0.0, le=1.0, description="share of unusable items that is tolerated")


class ScoreParameters(Parameters):
    """What is computed for each image. These, the manifest and the checkpoint make the run's identity."""

    axes: int = Field(1, ge=1, description="axes K of the growing volume")
    steps: int = Field(1, ge=1, description="ODE steps N")
    timestep: int = Field(20, ge=0, description="timestep of the first step [training timesteps]")
    stride: int = Field(1, ge=1, description="timesteps that one ODE step covers [training timesteps]")
    estimator: Estimator = Field("edge", description="edge | volume")
    grid: Grid = Field("ddim", description="ddim: the checkpoint's own schedule; continuous: the paper's Euler grid")
    delta: float = Field(0.05, gt=0.0, le=10.0, description="perturbation length [l2 in pixel values -1 ... 1]")
    seed: int = Field(0, ge=0, description="seed of the directions; each image mixes in its content hash")


class OddsParameters(Parameters):
    """Which images' odds are estimated, of which sampler, and how hard is tried; see tasks/diffusion/odds.py."""

    top: int = Field(5, ge=1, description="images, from the first rank down")
    steps: int = Field(50, ge=2, description="DDIM steps: network evaluations a sample")
    prior: int = Field(256, ge=8, description="plain samples for the pilot and for each repeat, shared by the images")
    chains: int = Field(16, ge=2, description="chains of each repeat; fewer than plain samples")
    chain_length: int = Field(8, ge=2, description="states of a chain, its start included")
    levels: int = Field(12, ge=1, description="levels after which an image is given up, with an upper bound")
    seed: int = Field(0, ge=0, description="seed of latents and chains; each image mixes in its content hash")


class ComputeParameters(Parameters):
    """Where and how fast; never part of a run's identity."""

    devices: tuple[str, ...] = Field(("auto",), description="cpu, mps, cuda:0 ...; auto: every GPU, or the CPU")
    threads: int = Field(0, ge=0, description="torch threads a CPU worker; 0: all cores but none shared")
    batch_size: int = Field(0, ge=0, description="images a batch; 0: sized to the device's memory")


class TrainParameters(Parameters):
    """The reference trainer."""

    n_steps: int = Field(9000, ge=1, description="optimiser steps")
    batch_size: int = Field(32, ge=1, description="images a step")
    learning_rate: float = Field(2e-3, gt=0.0, description="peak of the one-cycle schedule")
    ema_decay: float = Field(0.999, ge=0.0, lt=1.0, description="decay of the weights' moving average, a step")
    block_channels: tuple[int, ...] = Field((16, 48, 80), description="UNet channels at each resolution")
    layers_per_block: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)
    n_samples: int = Field(4096, ge=0, description="images generated afterwards to count copies")
    sampling_steps: int = Field(50, ge=2, description="DDIM steps an image")

"""Parameters of the flows: frozen, bounded, typed, with units. What changes a result is here; see the run directory's
``run.json`` for what a given run used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from latentprint.tasks.datasets.decoding import MAX_PIXELS
from latentprint.tasks.datasets.fitting import Fit, Fitting, Mode, Resample
from latentprint.tasks.diffusion.names import (
    ALONG_EPS,
    BASELINE_NAMES,
    ESTIMATORS,
    Axis,
    BaselineName,
    EstimatorName,
    Grid,
    Precision,
)
from latentprint.tasks.evidence.embeddings import EmbeddingName

CatchUp = Literal["latest", "all", "none"]
"""Which runs of a schedule are made up for that were missed while the server, or the process, was down or busy."""


class Parameters(BaseModel):
    """Base: immutable, and unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    unsaid: ClassVar[Mapping[str, object]] = {}
    """What earlier versions did not know goes unsaid at these values: their runs stay the same runs."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        said = serialize(self)
        return {name: value for name, value in said.items() if name not in self.unsaid or value != self.unsaid[name]}


class ModelParameters(Parameters):
    """Which files of the model's folder are read, where it leaves a choice; they are part of the checkpoint's hash."""

    scheduler: str = Field(
        "", description="folder or file of the noise schedule, for a network alone; empty: with the network or one up"
    )
    variant: str = Field(
        "",
        pattern=r"^\w*$",
        description="variant of the weights files, such as fp16; empty: files without one, or the only ones there",
    )
    prompt: str = Field(
        "", max_length=10_000, description="text that a text-conditional model is told; empty: the empty prompt"
    )


class ShardParameters(Parameters):
    """How images become WebDataset shards; what is done to them to fit the model must be what was done in training."""

    shard_mb: float = Field(64.0, ge=2**-8, le=2**20, description="largest size of a shard [MiB]")
    max_bad_fraction: float = Field(0.01, ge=0.0, le=1.0, description="largest share of unusable items [of 1]")
    size: str = Field(
        "", pattern=r"^([1-9]\d{0,4}x[1-9]\d{0,4})?$", description="resize all images to WIDTHxHEIGHT; empty: do not"
    )
    fit: Fit = Field("crop", description="how --size is reached: crop the centre, or stretch each side")
    resample: Resample = Field("bilinear", description="filter of --size, with antialiasing")
    colour: Mode = Field("keep", description="convert all images to L (grey) or RGB; keep: do not")

    @field_validator("size")
    @classmethod
    def _small_enough(cls, size: str) -> str:
        if math.prod(map(int, filter(None, size.split("x")))) > MAX_PIXELS:
            raise ValueError(f"{size} are more than {MAX_PIXELS} pixels")
        return size

    @property
    def shard_bytes(self) -> int:
        """Largest size of a shard [bytes]."""
        return int(self.shard_mb * 2**20)

    @property
    def fitting(self) -> Fitting:
        """What is done to each image."""
        width, _, height = self.size.partition("x")
        return Fitting(self.colour, (int(width), int(height)) if self.size else None, self.resample, self.fit)


class ScoreParameters(Parameters):
    """What is computed for each image. These, the manifest and the checkpoint make the run's identity."""

    unsaid = {"axis": "random", "labels": None}

    axes: int = Field(1, ge=1, description="number of axes K; 1: growth along one axis, a directional derivative")
    axis: Axis = Field(
        "random",
        description="which way the axis points. random: drawn, as in the paper; eps: along the noise predicted at the "
        "image, for --axes 1: nothing is drawn, the same two network evaluations",
    )
    steps: int = Field(1, ge=1, description="number of ODE steps N")
    timestep: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        union_mode="left_to_right",
        description="timestep of the first step [training timesteps]; auto: calibrated against the holdout",
    )
    second_timestep: Literal["none", "auto"] = Field(
        "none",
        description="one more network evaluation per image, for the score fused_norms; auto: at a timestep "
        "calibrated against the holdout",
    )
    stride: int = Field(1, ge=1, description="timesteps that one ODE step covers [training timesteps]")
    estimator: EstimatorName = Field(
        "edge",
        description="what is measured. edge: the paper's sum of log edge lengths; volume: the parallelepiped; jvp: the "
        "same by exact tangents; trace: all axes, estimated (Hutchinson); exact: all axes, by the Jacobian",
    )
    grid: Grid = Field(
        "ddim", description="the ODE's timesteps. ddim: the checkpoint's; continuous: the paper's Euler grid"
    )
    delta: float = Field(0.05, gt=0.0, le=10.0, description="perturbation length [l2 in pixel values -1 ... 1]")
    repeats: int = Field(
        1, ge=1, description="independent draws of the axes, averaged; 2 or more also give log_growth_se"
    )
    precision: Precision = Field("fp32", description="arithmetic of the network; tf32 needs CUDA")
    baselines: tuple[BaselineName, ...] = Field(
        (), description=f"further membership scores: all, or a list of {', '.join(BASELINE_NAMES)}"
    )
    reversibility: int = Field(
        0, ge=0, description="DDIM steps to the latent and back, whose error is measured; 0: not measured"
    )
    density: int = Field(
        0,
        ge=0,
        description="ODE steps that compute log_density, the log density of each image under the model [nats]; "
        "S steps with P probes cost S + (S + 1)(P + 1) network evaluations per image: 155 for S = 25 and P = 4, where "
        "the growth of one axis costs 2; 0: not computed",
    )
    density_probes: int = Field(
        4,
        ge=0,
        description="random probes of the trace at each step of --density; 2 or more also give log_density_se; "
        "0: the exact trace, one probe per dimension of what the model diffuses, for small images",
    )
    seed: int = Field(0, ge=0, description="seed of the directions; each image mixes in its content hash")
    labels: dict[str, int] | None = Field(
        None,
        description="of a class-conditional model: JSON file with the class of each label, such as "
        '{"cat": 0, "dog": 1}; '
        "without it, in this order: ids that the data set has, labels that are numbers, names in sorted order",
    )

    @field_validator("baselines", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        names = _split(value)
        return BASELINE_NAMES if names == ("all",) else names

    @model_validator(mode="after")
    def _one_axis_along_eps(self) -> Self:
        if self.axis == "eps" and (self.axes, self.repeats) != (1, 1):
            raise ValueError("--axis eps is one axis and not drawn: leave out --axes and --repeats")
        if self.axis == "eps" and self.estimator not in ALONG_EPS:
            raise ValueError(f"--axis eps goes with --estimator {', '.join(ALONG_EPS)}, not {self.estimator}")
        return self

    @field_validator("labels", mode="before")
    @classmethod
    def _from_file(cls, value: object) -> object:
        from latentprint.tasks.datasets.labels import read_labels  # which loads pyarrow: only where there is a file

        return read_labels(value) if isinstance(value, str | Path) else value

    def at(self, timestep: int) -> Self:
        """The same from another timestep."""
        return self.model_copy(update={"timestep": timestep})

    def bare(self) -> Self:
        """The same with nothing measured beside the growth."""
        return self.model_copy(update={"baselines": (), "reversibility": 0, "density": 0, "second_timestep": "none"})


class ValidityParameters(Parameters):
    """How much is scored again to see how far the scores can be trusted; never part of a run's identity."""

    images: int = Field(
        32,
        ge=0,
        description="distinct images of each split that are scored again with another seed; a quarter of them also "
        "with another delta and with exact tangents; 0: none",
        json_schema_extra={"flag": "validity"},
    )


class ExtractParameters(Parameters):
    """What is generated and how it is matched. Sample i depends on the checkpoint, sampler, steps, seed and i alone."""

    unsaid = {"mirror": "auto"}

    samples: int = Field(4096, ge=1, description="images to generate; a run that has fewer gets the missing ones")
    steps: int = Field(50, ge=2, description="network evaluations per image")
    sampler: Literal["ddim", "ancestral"] = Field("ddim", description="how images are generated; ancestral: DDPM")
    seed: int = Field(0, ge=0, description="seed of the latents; each sample mixes in its number")
    embedding: EmbeddingName = Field(
        "pixel",
        description="what distances are measured in. dct: a coarse grey image; patches: pixels, of 4 x 4 tiles the one "
        "that differs most, for larger images with like backgrounds",
    )
    mirror: Literal["auto", "on", "off"] = Field(
        "auto",
        description="do mirror images count as copies? They do where training flipped images at random, as diffusers' "
        "scripts do with --random_flip. auto: as the run was extracted before; else what training.json says, if "
        "'latentprint train' wrote it; else on",
    )
    samples_per_tar: int = Field(256, ge=1, description="generated images per tar, the unit of work [images]")

    @property
    def is_mirrored(self) -> bool:
        """Is it decided that mirror images match too?"""
        return self.mirror == "on"

    def decided(self, is_mirrored: bool) -> Self:
        """As a run records it: ``mirror`` is on, or goes unsaid."""
        return self.model_copy(update={"mirror": "on" if is_mirrored else "auto"})


class SweepParameters(Parameters):
    """The grid of a parameter study: every combination is scored on the same images and directions."""

    axes: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 4, 16), description="numbers of axes K")
    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 10), description="numbers of ODE steps N")
    timesteps: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (),
        description="timesteps of the first step [training timesteps]; empty: 0, 5, 20, 50, 100 and 200 of 1,000, at "
        "their share of the schedule",
    )
    deltas: tuple[Annotated[float, Field(gt=0.0, le=10.0)], ...] = Field(
        (0.05,), description="perturbation lengths [l2 in pixel values -1 ... 1]"
    )
    estimators: tuple[EstimatorName, ...] = Field(
        ("edge", "volume"), description=f"of {', '.join(get_args(EstimatorName))}: see latentprint score --help"
    )
    stride: int = Field(1, ge=1, description="timesteps that one ODE step covers [training timesteps]")
    images: int = Field(64, ge=2, description="distinct images of each split")
    seed: int = Field(0, ge=0, description="seed of the directions; each image mixes in its content hash")

    @field_validator("axes", "steps", "timesteps", "deltas", "estimators", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return _split(value)

    def settings(self) -> list[ScoreParameters]:
        """Every combination; for estimators without a perturbation length, the first delta only.

        Timesteps left empty depend on the schedule: :func:`latentprint.tasks.sweep.job.with_timesteps`.
        """
        return [
            ScoreParameters(
                axes=axes,
                steps=steps,
                timestep=timestep,
                stride=self.stride,
                estimator=estimator,
                delta=delta,
                seed=self.seed,
            )
            for estimator, timestep, axes, steps, delta in product(
                self.estimators, self.timesteps, self.axes, self.steps, self.deltas
            )
            if ESTIMATORS[estimator].has_delta or delta == self.deltas[0]
        ]


IMAGES = "a list of sample_id, a saved question, or a SELECT with a column sample_id"


class OddsParameters(Parameters):
    """Which images' odds are estimated, of which sampler, and how hard is tried; see tasks/diffusion/splitting.py."""

    top: int = Field(
        5,
        ge=1,
        description="number of images, from rank 1 down; --images chooses others. Mirror images do not count here",
    )
    images: str = Field("", description=f"which images: {IMAGES}; empty: the highest ranked")
    steps: int = Field(50, ge=2, description="DDIM steps: network evaluations a sample")
    prior: int = Field(256, ge=8, description="plain samples of the pilot and of each repeat, shared by all images")
    chains: int = Field(16, ge=2, description="chains of each repeat, fewer than plain samples")
    chain_length: int = Field(8, ge=2, description="states of a chain, with its start")
    levels: int = Field(12, ge=1, description="most levels; an image that needs more gets an upper bound only")
    seed: int = Field(0, ge=0, description="seed of latents and chains; each image mixes in its content hash")


class SideParameters(Parameters):
    """Sampling under surrogate conditions against plain sampling; see tasks/diffusion/surrogate.py."""

    clusters: int = Field(64, ge=2, description="k-means clusters of the generated images that extract left")
    cohesion: float = Field(
        0.5, ge=-1.0, le=1.0, description="clusters below it give no label [mean cosine similarity to the centre]"
    )
    images: int = Field(8192, ge=3, description="number of generated images to cluster, from the first on")
    feature: Literal["pixel", "dct"] = Field("pixel", description="what is clustered")
    training_steps: int = Field(2000, ge=2, description="training steps of each classifier, of 64 images")
    scales: tuple[Annotated[float, Field(gt=0.0, allow_inf_nan=False)], ...] = Field(
        (1.0, 4.0, 16.0), min_length=1, description="guidance scales"
    )
    samples: int = Field(1024, ge=2, description="images to generate at each scale, and by plain sampling")
    steps: int = Field(50, ge=2, description="DDIM steps: network evaluations a sample")
    seed: int = Field(0, ge=0, description="seed of clusters, classifier and latents; each sample mixes in its number")

    @field_validator("scales", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return _split(value)


class ProbeParameters(Parameters):
    """What is generated without a training set at hand, and how it is judged; see tasks/evidence/repeats.py."""

    samples: int = Field(1000, ge=40, description="images to generate, and as many with --control")
    steps: int = Field(50, ge=2, description="DDIM steps: network evaluations per image")
    seed: int = Field(0, ge=0, description="seed of latents and directions; each image mixes in its number")
    embedding: EmbeddingName = Field("pixel", description="what distances are measured in")
    level: float = Field(
        0.05,
        gt=0.0,
        le=0.2,
        description="of the test that the model's images follow the control's law and repeat themselves no more [of 1]",
    )


FLAGGED = "flagged_images"
"""The saved question that curation asks by default."""


class CurateParameters(Parameters):
    """What is done to which training images of a run."""

    action: Literal["drop", "dedupe", "quarantine", "reweight", "modify"] = Field(
        "dedupe",
        description="what is done. drop: leave images out; quarantine: put them apart; dedupe: keep one of each group "
        "that is alike; reweight: such a group has the weight of one image; modify: mirror and crop",
    )
    images: str = Field(
        "",
        description=f"which images: {IMAGES}; empty: the flagged ones, and to dedupe or reweight all",
    )
    alike: Literal["near", "exact"] = Field(
        "near", description="of dedupe and reweight: which images are alike, near duplicates or exact ones"
    )
    mirror: float = Field(0.5, ge=0.0, le=1.0, description="of modify: probability that an image is mirrored [of 1]")
    crop: float = Field(0.8, gt=0.0, le=1.0, description="of modify: least share of each side that a crop keeps [of 1]")
    seed: int = Field(0, ge=0, description="seed of modifications; each sample mixes in its name")

    @property
    def query(self) -> str:
        """The images that are meant, a saved question's name or SQL."""
        takes_all = self.action in ("dedupe", "reweight")
        return self.images or ("SELECT sample_id FROM ranking" if takes_all else FLAGGED)


class ComputeParameters(Parameters):
    """Where and how fast; never part of a run's identity."""

    devices: tuple[str, ...] = Field(
        ("auto",),
        min_length=1,
        description="where the network runs: cpu, mps, cuda, cuda:0,cuda:1 ...; auto: every GPU, or the CPU",
        json_schema_extra={"flag": "device"},
    )
    threads: int = Field(0, ge=0, description="torch threads per CPU worker; 0: all cores, divided between the workers")
    batch_size: int = Field(0, ge=0, description="images per network call; 0: as many as fit the device's memory")
    runner: Literal["threads", "ray"] = Field(
        "threads", description="where tasks run. threads: this machine; ray: a Ray cluster"
    )
    ray_address: str = Field(
        "", description="address of the Ray cluster: ray://HOST:10001 or auto; empty: a cluster of this machine's cores"
    )

    @field_validator("devices", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return _split(value)

    @property
    def cores(self) -> int:
        """CPU cores that one Ray worker is given, and its torch threads."""
        return self.threads or 1


class TrainParameters(Parameters):
    """The reference trainer."""

    unsaid = {"flip": False}

    n_steps: int = Field(12_000, ge=1, description="optimiser steps", json_schema_extra={"flag": "steps"})
    batch_size: int = Field(32, ge=1, description="images per step")
    learning_rate: float = Field(2e-3, gt=0.0, description="peak of the one-cycle schedule")
    ema_decay: float = Field(0.999, ge=0.0, lt=1.0, description="decay per step of the weights' moving average")
    block_channels: tuple[int, ...] = Field(
        (16, 48, 80), description="UNet channels at each resolution", json_schema_extra={"flag": "channels"}
    )
    layers_per_block: int = Field(1, ge=1, description="residual blocks at each resolution")
    flip: bool = Field(False, description="mirror each drawn image, left to right, with probability 1/2")
    seed: int = Field(0, ge=0, description="seed of weights, batches and noise")
    n_samples: int = Field(
        4096,
        ge=0,
        description="images to generate after training, to count copies",
        json_schema_extra={"flag": "samples"},
    )
    sampling_steps: int = Field(50, ge=2, description="DDIM steps per image")

    @field_validator("block_channels", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return _split(value)


def _split(value: object) -> object:
    """``a, b`` as a command line gives it, as ("a", "b")."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

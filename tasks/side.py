"""Sampling under surrogate conditions (SIDE): generated images clustered, a classifier taught, sampling guided by it.

What comes out is counted against plain sampling. Sample i depends on the checkpoint, the classifier and (seed, scale,
i) alone, and starts from one latent at every scale. Batches are never shortened, as in tasks/extract/generate.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from latentprint.tasks.compute.batch_size import auto_batch_size
from latentprint.tasks.compute.models import loaded_model, scored_model
from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.compute.task import task
from latentprint.tasks.diffusion.checkpoint import LoadedModel
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.diffusion.noise import gaussian, generator_for
from latentprint.tasks.diffusion.sampling import from_pixels, sample_ddim, to_pixels
from latentprint.tasks.diffusion.surrogate import BATCH, Classifier, Guided, Training, distil, fit_labels
from latentprint.tasks.doctor.checks import ParametersError
from latentprint.tasks.evidence.clusters import Clusters, cohesive_clusters
from latentprint.tasks.evidence.copies import RATIO_THRESHOLD, nearest_two_groups, ratio_rule
from latentprint.tasks.evidence.embeddings import EMBEDDINGS, Embedded
from latentprint.tasks.evidence.yields import Found, compare_yields, describe
from latentprint.tasks.extract.generate import Pixels, picture_of, read_generated
from latentprint.tasks.extract.references import TrainingImages
from latentprint.tasks.parameters import SideParameters
from latentprint.tasks.score.job import extend
from latentprint.tasks.score.measure import Columns
from latentprint.tasks.store.files import read_json, sha256, write_json
from latentprint.tasks.store.parts import is_valid_part, write_part
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.store.schemas import SIDE

PLAIN = 0.0
"""The scale of sampling without guidance."""
FEWEST_LABELS = 2


@dataclass(frozen=True)
class SideJob:
    """One run under surrogate conditions, on one device."""

    run: Path
    parameters: SideParameters
    device: str

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.run)

    @property
    def scales(self) -> tuple[float, ...]:
        """Plain first."""
        return (PLAIN, *self.parameters.scales)

    def part(self, scale: float) -> Path:
        return self.directory.side / f"part-scale-{scale}.parquet"

    @property
    def tars(self) -> list[Path]:
        """The generated images that ``extract`` left.

        Raises:
            RunError: there are none.
        """
        if not self.directory.extraction.exists():
            raise RunError(f"{self.run}: no generated images yet; run 'latentprint extract --run {self.run}' first")
        return sorted(self.directory.samples.glob("*.tar"))

    @cached_property
    def extraction(self) -> dict[str, Any]:
        """The parameters they were generated and matched with."""
        return dict(read_json(self.directory.extraction)["parameters"])

    @cached_property
    def training(self) -> TrainingImages:
        """Matched to as they were then."""
        return TrainingImages(self.directory, self.extraction["embedding"], self.extraction.get("mirror") == "on")

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What every part depends on, beside its scale."""
        return {
            "checkpoint_sha256": scored_model(self.directory)[1],
            **self.training.provenance,
            "generated": {tar.name: sha256(tar) for tar in self.tars},
            "parameters": self.parameters.model_dump(mode="json", exclude={"scales", "samples"}),
        }

    def is_done(self, scale: float) -> bool:
        return is_valid_part(self.part(scale), {**self.provenance, "scale": scale}, self.parameters.samples)

    @cached_property
    def model(self) -> LoadedModel:
        folder, checksum = scored_model(self.directory)
        return loaded_model(folder, checksum, self.device)

    @cached_property
    def generated(self) -> Pixels:
        """The images to cluster, uint8 (n, C, H, W)."""
        samples = chain.from_iterable(map(read_generated, self.tars))
        return np.stack([pixels for _, _, pixels in islice(samples, self.parameters.images)])

    @cached_property
    def clusters(self) -> Clusters:
        """Surrogate labels of the generated images.

        Raises:
            ParametersError: hardly any images for so many clusters, or hardly any cohesive cluster.
        """
        p, pixels = self.parameters, self.generated
        if len(pixels) <= p.clusters:
            raise ParametersError(f"--clusters {p.clusters}: there are {len(pixels)} generated images to cluster")
        found = cohesive_clusters(EMBEDDINGS[p.feature](pixels), p.clusters, p.cohesion, p.seed)
        if len(found.sizes) < FEWEST_LABELS:
            raise ParametersError(
                f"--cohesion {p.cohesion:g}: {len(found.sizes)} of {p.clusters} clusters are as cohesive, and a "
                f"classifier needs {FEWEST_LABELS}: lower it, or change --clusters"
            )
        return found

    @cached_property
    def classifier(self) -> Classifier:
        """p_t(y | x_t), trained on the images of the kept clusters."""
        p, found, model = self.parameters, self.clusters, self.model
        kept = found.labels >= 0
        with torch.no_grad():
            batches = torch.from_numpy(self.generated[kept]).split(BATCH)
            images = torch.cat([model.encode(from_pixels(x).to(model.device)) for x in batches])
        labels = torch.from_numpy(found.labels[kept]).to(model.device)
        progress = Progress("training the classifier", 2 * p.training_steps, "steps")
        training = Training(p.training_steps, seed=p.seed, advance=progress.advance)
        teacher = fit_labels(images, labels, len(found.sizes), training)
        return distil(teacher, images, model.schedule, training)


@task(name="sample-under-surrogates")
def sample_scales(run: Path, parameters: SideParameters, device: str) -> dict[str, Any]:
    """Write ``side/part-scale-*.parquet`` for plain sampling and each scale, unless a valid one is there.

    Returns where the labels came from.
    """
    job = SideJob(run, parameters, device)
    surrogates = _surrogates(job)
    for part in set(job.directory.side.glob("part-*.parquet")) - set(map(job.part, job.scales)):
        part.unlink()
    missing = [scale for scale in job.scales if not job.is_done(scale)]
    training = job.training
    if missing:
        job.directory.side_summary.unlink(missing_ok=True)
        _ = job.classifier  # trained before progress of the sampling is counted
    progress = Progress("generating", len(missing) * parameters.samples, "samples")
    for scale in missing:
        columns = _sampled(job, scale, training, progress)
        write_part(job.part(scale), columns, {**job.provenance, "scale": scale}, SIDE)
    return surrogates


@task(name="compare-yields")
def compare_scales(run: Path, parameters: SideParameters, surrogates: dict[str, Any]) -> dict[str, Any]:
    """Write side.json, from the parts; returns it."""
    job = SideJob(run, parameters, "cpu")
    rows = _yields(job)
    summary = {
        "parameters": parameters.model_dump(mode="json"),
        "rule": {"name": "ratio", "threshold": RATIO_THRESHOLD, "embedding": job.extraction["embedding"]},
        "surrogates": surrogates,
        "scales": rows,
        "conclusion": conclusion(rows),
        "method": "exact and Efron-Stein intervals, 95%, against plain sampling jointly: tasks/evidence/yields.py",
        "assumptions": "samples are independent given the classifier; the training images are given",
    }
    write_json(job.directory.side_summary, summary)
    return summary


def _yields(job: SideJob) -> list[dict[str, Any]]:
    """What came out at each scale and what it cost, plain sampling first."""
    tables = {scale: pq.read_table(job.part(scale), schema=SIDE) for scale in job.scales}
    found = {
        scale: Found(*(t[name].to_numpy() for name in ("is_copy", "nearest_sample_id"))) for scale, t in tables.items()
    }
    rows: list[dict[str, Any]] = []
    for scale, table in tables.items():
        costs = {name: int(table[name].to_numpy().sum()) for name in ("n_evaluations", "n_classifier_evaluations")}
        against = compare_yields(found[scale], found[PLAIN], len(tables) - 1) if scale != PLAIN else None
        reached = {"reached_label_share": float(table["reached_label"].to_numpy().mean())}
        rows.append({"scale": scale, **describe(found[scale]), **reached, **costs, "against_plain": against})
    return rows


def conclusion(rows: Sequence[dict[str, Any]]) -> str:
    """The one line to take away from rows of ``side.json``, plain sampling first: judged by distinct images."""
    plain, *guided = rows
    best = max(guided, key=lambda row: row["against_plain"]["n_reproduced_difference_interval"][0])
    against, n = best["against_plain"], plain["n_samples"]
    low, high = against["n_reproduced_difference_interval"]
    counts = (
        f"{best['n_reproduced_training_images']} distinct training images against "
        f"{plain['n_reproduced_training_images']} plainly in {n:,} samples "
        f"({against['n_reproduced_difference']:+d}, interval {low:+.0f} to {high:+.0f})"
    )
    if low > 0.0:
        return f"Gain: at scale {best['scale']:g} guidance extracts {counts}."
    shares = [row for row in guided if row["against_plain"]["share_difference_interval"][0] > 0.0]
    if shares:
        named = ", ".join(f"{row['scale']:g}" for row in shares)
        return f"A larger share of copies at scale {named}, but no gain in distinct images is shown: at best {counts}."
    return f"No gain from guidance is shown: at best, scale {best['scale']:g}, {counts}."


def _surrogates(job: SideJob) -> dict[str, Any]:
    """Where the labels came from, and what that cost, once for all scales."""
    found, n_steps = job.clusters, job.parameters.training_steps
    n_labelled = int((found.labels >= 0).sum())
    return {
        "n_images": len(found.labels),
        "n_clusters": len(found.numbers),
        "n_labels": len(found.sizes),
        "n_labelled_images": n_labelled,
        "sizes": list(found.sizes),
        "cohesions": list(found.cohesions),
        "n_evaluations": len(found.labels) * job.extraction["steps"],
        "n_classifier_training_evaluations": 2 * n_steps * BATCH + n_labelled,
    }


def _sampled(job: SideJob, scale: float, training: TrainingImages, progress: Progress) -> Columns:
    """The columns of ``SIDE`` for one scale."""
    size, n = auto_batch_size(job.model), job.parameters.samples
    columns: Columns = {}
    for begin in range(0, n, size):
        batch = _matched(job, scale, range(begin, begin + size), training)
        extend(columns, {name: list(values)[: n - begin] for name, values in batch.items()})
        progress.advance(min(size, n - begin))
    return columns


def _matched(job: SideJob, scale: float, names: range, training: TrainingImages) -> Columns:
    """Samples of these numbers, generated and matched by extraction's rule."""
    labels = torch.tensor(names) % len(job.clusters.sizes)
    pixels, costs = guided_pixels(job.model, job.classifier, labels, names, scale, job.parameters)
    samples = Embedded(pixels, EMBEDDINGS[training.embedding])
    every = slice(0, len(pixels))
    mirrored = training.mirrored(samples, every)
    found = nearest_two_groups(samples[every], training.features, training.groups, mirrored=mirrored)
    reached = job.clusters.predict(EMBEDDINGS[job.parameters.feature](pixels))
    return {
        "scale": [scale] * len(names),
        "sample": list(names),
        "label": labels.tolist(),
        "reached_label": (reached == labels.numpy()).tolist(),
        "content_hash": [picture_of(x).content_hash for x in pixels],
        "nearest_sample_id": training.rows["sample_id"].take(found.indices[:, 0]).to_pylist(),
        "nearest_distance": found.distances[:, 0].tolist(),
        "second_distance": found.distances[:, 1].tolist(),
        "is_copy": ratio_rule(found).tolist(),
        "n_evaluations": [costs[0]] * len(names),
        "n_classifier_evaluations": [costs[1]] * len(names),
        "embedding": [training.embedding] * len(names),
    }


def guided_pixels(
    model: LoadedModel,
    classifier: Classifier,
    labels: Tensor,
    names: Sequence[int],
    scale: float,
    parameters: SideParameters,
) -> tuple[Pixels, tuple[int, int]]:
    """Samples of these numbers, uint8 (n, C, H, W), in one batch, and what each cost: network, classifier evaluations.

    Raises:
        CheckpointError: a sample is not finite.
    """
    latents = gaussian([generator_for(parameters.seed, f"side sample {i}") for i in names], model.state_shape)
    classes = None if model.n_classes is None else torch.tensor(names, device=model.device) % model.n_classes
    model = model.of_class(classes)
    guided = Guided(model.denoiser, classifier.log_posterior, model.schedule, labels.to(model.device), scale)
    before = model.denoiser.n_evaluations
    with torch.no_grad():
        eps = model.denoiser if scale == PLAIN else guided
        clip = model.autoencoder is None
        x = model.decode(sample_ddim(eps, latents.to(model.device), model.schedule, parameters.steps, clip=clip))
    if not bool(torch.isfinite(x).all()):
        raise CheckpointError(f"samples {names[0]} ... {names[-1]} at scale {scale:g} are not finite: lower --scales")
    n_evaluations = model.denoiser.n_evaluations - before
    return np.asarray(to_pixels(x).cpu().numpy()), (n_evaluations // len(names), guided.n_evaluations // len(names))

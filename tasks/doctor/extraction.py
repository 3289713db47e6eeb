"""What an extraction would take: samples to generate, and distances to match them by."""

from __future__ import annotations

import time

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

from latentprint.tasks.compute.models import flipped_in_training
from latentprint.tasks.doctor.patient import Patient
from latentprint.tasks.evidence.copies import nearest_two_groups
from latentprint.tasks.evidence.embeddings import EMBEDDINGS
from latentprint.tasks.extract.false_copies import MOST_QUERIES
from latentprint.tasks.parameters import ExtractParameters

N_QUERIES, N_REFERENCES, REFERENCE_VALUES = 256, 1024, 2**24
"""Of the matching that is timed: fewer where the images are large."""
READ = 3
"""Times that each sample is read and decoded: to be matched, counted, and matched to held-out images."""


def extraction_seconds(
    patient: Patient, extraction: ExtractParameters, an_evaluation: float, n_devices: int
) -> dict[str, float]:
    """``generate_seconds`` and ``match_seconds``, with the evaluations and distances behind them.

    Args:
        an_evaluation: of the network on one image, in a batch [s].
    """
    n, n_train, n_holdout = extraction.samples, patient.n_of_split("train"), patient.n_of_split("holdout")
    model = patient.checkpoint
    is_flipped = None if model is None else flipped_in_training(model, model.sha256())
    distances = n_distances(n, n_train, n_holdout) * (1 if is_flipped is False else 2)
    reading = (READ * n + n_train + n_holdout) * patient.decode_seconds
    return {
        "generate_evaluations": n * extraction.steps,
        "generate_seconds": n * extraction.steps * an_evaluation / n_devices,
        "match_distances": distances,
        "match_seconds": reading + distances * _a_distance(patient, extraction),
    }


def n_distances(n: int, n_train: int, n_holdout: int) -> int:
    """Distances that matching takes at most, where no image is there twice.

    Samples to training images and back; each control to its references; and of each reference that was found, the
    distances to its surroundings.
    """
    asked = min(MOST_QUERIES, n_holdout), min(MOST_QUERIES, n_train), min(MOST_QUERIES, n)
    matching = 2 * n * n_train
    surroundings = min(n + asked[0], n_train) * n_train + asked[1] * n_train + min(asked[2], n_holdout) * n_holdout
    return matching + (asked[0] + asked[1]) * n_train + asked[2] * n_holdout + surroundings


def _a_distance(patient: Patient, extraction: ExtractParameters) -> float:
    """Seconds, from one search among the first images, repeated."""
    pictures = [np.atleast_3d(picture.pixels).transpose(2, 0, 1) for picture in patient.pictures]
    features = EMBEDDINGS[extraction.embedding](np.stack(pictures))
    n = max(2, min(N_REFERENCES, REFERENCE_VALUES // features[:1].size))
    references = features[np.arange(n) % len(features)]
    queries = references[:N_QUERIES]
    with threadpool_limits(patient.compute.threads or None):
        begin = time.perf_counter()
        nearest_two_groups(queries, references, np.arange(n))
        return float((time.perf_counter() - begin) / (len(queries) * n))

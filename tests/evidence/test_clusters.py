"""Clusters whose cohesion is known."""

from __future__ import annotations

import numpy as np

from latentprint.tasks.evidence.clusters import cohesive_clusters


def scene() -> np.ndarray:
    """30 points near one place, 20 near the opposite, and 10 of every direction: features (60, 40)."""
    generator = np.random.default_rng(0)
    centre = np.zeros((60, 40), dtype=np.float32)
    centre[:30, 0], centre[30:50, 0] = 10.0, -10.0
    spread = np.repeat([0.05, 0.05, 1.0], [30, 20, 10])[:, None]
    return (centre + spread * generator.normal(size=centre.shape)).astype(np.float32)


def test_tight_clusters_are_kept_largest_first_and_loose_ones_dropped() -> None:
    found = cohesive_clusters(scene(), 3, 0.9, seed=0)
    assert found.sizes == (30, 20)
    assert sorted(found.numbers.tolist()) == [-1, 0, 1]
    assert found.labels.tolist() == [0] * 30 + [1] * 20 + [-1] * 10
    assert found.predict(scene()[::7]).tolist() == found.labels[::7].tolist()
    # cos of two vectors 10 long about their common direction, with 0.05 sqrt(39) across it: 1 - (0.05^2 39 / 2) / 100
    assert np.allclose(found.cohesions, 1 - 0.05**2 * 39 / 200, atol=3e-4)


def test_cohesion_is_about_the_mean_of_all_images_not_the_origin() -> None:
    dark = scene() - 1000.0
    found = cohesive_clusters(dark, 3, 0.9, seed=0)
    assert found.sizes == (30, 20)
    assert found.predict(dark[::7]).tolist() == found.labels[::7].tolist()


def test_a_lone_image_makes_no_label() -> None:
    features = np.concatenate([scene()[:50], np.full((1, 40), 50.0, dtype=np.float32)])
    assert cohesive_clusters(features, 3, -1.0, seed=0).sizes == (30, 20)

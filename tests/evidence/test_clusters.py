"""Clusters whose cohesion is known."""

from __future__ import annotations

import numpy as np

from latentprint.tasks.evidence import clusters
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


def test_two_images_make_no_cluster_and_three_do() -> None:
    rows = np.zeros((63, 40), dtype=np.float32)
    rows[:60] = scene()
    rows[60:, 5] = 60.0
    assert cohesive_clusters(rows[:62], 4, -1.0, seed=0).sizes[-1] != 2
    assert 3 in cohesive_clusters(rows, 4, 0.9, seed=0).sizes


def test_cohesion_is_the_mean_cosine_to_the_centre_and_nothing_of_nobody() -> None:
    members = np.array([[3.0, 4.0], [3.0, -4.0], [6.0, 0.0]], dtype=np.float32)
    assert clusters._cohesion(members) == np.mean([0.6, 0.6, 1.0], dtype=np.float32)
    assert clusters._cohesion(members[:0]) == 0.0
    assert clusters._cohesion(np.zeros((3, 2), dtype=np.float32)) == 0.0
    found = cohesive_clusters(scene(), 3, 0.0, seed=0)
    centred = scene() - scene().mean(axis=0)
    for label, (size, cohesion) in enumerate(zip(found.sizes, found.cohesions, strict=True)):
        mine = centred[found.labels == label]
        assert len(mine) == size
        centre = mine.mean(axis=0)
        cosines = [m @ centre / np.linalg.norm(m) / np.linalg.norm(centre) for m in mine]
        assert np.isclose(cohesion, np.mean(cosines), atol=1e-5)
    assert list(found.sizes) == sorted(found.sizes, reverse=True)
    assert np.allclose(found.centres[found.numbers == 0], scene()[:30].mean(axis=0), atol=1e-4)

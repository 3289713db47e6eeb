"""Nearest neighbours against a plain double loop, and the ratio rule at its border."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.evidence import matching
from tasks.evidence.matching import Neighbours, nearest, ratio_rule


def test_nearest_is_the_double_loop_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "BLOCK", 7)
    generator = np.random.default_rng(0)
    queries, references = generator.normal(size=(20, 5)), generator.normal(size=(31, 5))
    found = nearest(queries.astype(np.float32), references.astype(np.float32), k=3)
    for i, query in enumerate(queries.astype(np.float32).astype(np.float64)):
        distances = [np.sqrt(((query - r) ** 2).sum()) for r in references.astype(np.float32).astype(np.float64)]
        assert found.indices[i].tolist() == np.argsort(distances)[:3].tolist()
        np.testing.assert_allclose(found.distances[i], np.sort(distances)[:3], rtol=1e-12)


def test_near_copies_keep_their_precision() -> None:
    references = np.random.default_rng(0).normal(size=(3, 784)).astype(np.float32)
    query = references[1:2].copy()
    query[0, 0] += np.float32(1e-4)
    assert nearest(query, references, k=2).distances[0, 0] == pytest.approx(1e-4, rel=1e-2)


def test_fewer_references_than_neighbours() -> None:
    points = np.eye(2, dtype=np.float32)
    assert nearest(points, points, k=5).distances.shape == (2, 2)


def test_ratio_rule_is_strict_at_one_third() -> None:
    distances = np.array([[1.0, 3.0], [0.99, 3.0], [0.0, 5.0]])
    assert ratio_rule(Neighbours(distances, np.zeros((3, 2), np.int64))).tolist() == [False, True, True]
    with pytest.raises(ValueError, match="at least two distinct"):
        ratio_rule(Neighbours(distances[:, :1], np.zeros((3, 1), np.int64)))

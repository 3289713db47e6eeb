"""Nearest neighbours against a plain double loop, and the rules at their borders."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from latentprint.tasks.evidence import copies as rules
from latentprint.tasks.evidence.copies import (
    Neighbours,
    adaptive_rule,
    nearest,
    nearest_two_groups,
    ratio_rule,
    surroundings,
)
from latentprint.tasks.evidence.embeddings import EMBEDDINGS, Embedded


@pytest.mark.parametrize("k", [1, 3, 31, 50])
def test_nearest_is_the_double_loop_across_blocks(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    monkeypatch.setattr(rules, "BLOCK_VALUES", 7 * 5 * k)
    generator = np.random.default_rng(0)
    queries = generator.normal(size=(20, 5)).astype(np.float32)
    references = generator.normal(size=(31, 5)).astype(np.float32)
    found = nearest(queries, references, k)
    assert found.distances.shape == found.indices.shape == (20, min(k, 31))
    for i, query in enumerate(queries.astype(np.float64)):
        distances = [np.sqrt(((query - r) ** 2).sum()) for r in references.astype(np.float64)]
        assert found.indices[i].tolist() == np.argsort(distances)[:k].tolist()
        np.testing.assert_allclose(found.distances[i], np.sort(distances)[:k], rtol=1e-12)


@pytest.mark.parametrize("n_per_block", [1, 4, 30, 31, 100])
@pytest.mark.parametrize("k", [1, 2, 7])
def test_blocks_of_references_do_not_show(monkeypatch: pytest.MonkeyPatch, n_per_block: int, k: int) -> None:
    generator = np.random.default_rng(1)
    queries, references = (generator.integers(0, 4, (n, 6)).astype(np.float32) for n in (40, 31))
    monkeypatch.setattr(rules, "REFERENCE_VALUES", 6 * n_per_block)
    found = nearest(queries, references, k)
    for i, query in enumerate(queries.astype(np.float64)):
        distances = np.array([np.sqrt(((query - r) ** 2).sum()) for r in references])
        assert found.distances[i].tolist() == np.sort(distances)[:k].tolist()
        assert distances[found.indices[i]].tolist() == found.distances[i].tolist()
        assert len(set(found.indices[i].tolist())) == k


def test_memory_is_that_of_one_block_of_references(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20_000, 1, 16, 16)).astype(np.uint8)
    references = Embedded(pixels, EMBEDDINGS["pixel"])
    monkeypatch.setattr(rules, "REFERENCE_VALUES", 500 * 256)
    tracemalloc.start()
    found = nearest(references[[11, 19_999, 3]], references, k=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.indices[:, 0].tolist() == [11, 19_999, 3]
    assert peak < 5e6 < pixels.size * 4


@pytest.mark.parametrize("shift", [0.0, 1e-4, 1e-6])
def test_near_copies_keep_their_precision(shift: float) -> None:
    references = np.random.default_rng(0).normal(size=(3, 784)).astype(np.float32)
    references[1, 0] = 0.0
    query = references[1:2].copy()
    query[0, 0] = shift
    found = nearest(query, references, k=2)
    assert found.indices[0, 0] == 1
    assert found.distances[0, 0] == pytest.approx(shift, rel=1e-6)


def test_equally_near_references_come_in_order() -> None:
    references = np.array([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]], dtype=np.float32)
    assert nearest(np.zeros((1, 2), np.float32), references, k=4).indices.tolist() == [[1, 2, 3, 0]]


def test_memory_stays_far_below_all_differences() -> None:
    generator = np.random.default_rng(0)
    queries, references = (generator.normal(size=(n, 784)).astype(np.float32) for n in (1_500, 400))
    tracemalloc.start()
    nearest(queries, references, k=51)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6 < 1_500 * 51 * 784 * 8


def test_surroundings_leave_the_image_itself_out() -> None:
    line = np.array([[0.0], [1.0], [3.0], [7.0]], dtype=np.float32)
    around = surroundings(np.concatenate([line, [[2.5]]]).astype(np.float32), line)
    assert around.nearest_distance.tolist() == [1.0, 1.0, 2.0, 4.0, 0.5]
    assert around.mean_distance.tolist() == pytest.approx([11 / 3, 3.0, 3.0, 17 / 3, (0.5 + 1.5 + 2.5) / 3])


def test_surroundings_are_fifty_images() -> None:
    line = np.arange(200.0, dtype=np.float32)[:, None]
    assert surroundings(line[:1], line).mean_distance[0] == pytest.approx(25.5)  # mean of 1 ... 50
    assert surroundings(line[:1] - 1, line).mean_distance[0] == pytest.approx(25.5)  # not one of them: 1 ... 50 again


def test_ratio_rule_is_strict_at_one_third() -> None:
    distances = np.array([[1.0, 3.0], [0.99, 3.0], [0.0, 5.0]])
    assert ratio_rule(Neighbours(distances, np.zeros((3, 2), np.int64))).tolist() == [False, True, True]
    with pytest.raises(ValueError, match="at least two distinct"):
        ratio_rule(Neighbours(distances[:, :1], np.zeros((3, 1), np.int64)))


def test_adaptive_rule_measures_by_the_surroundings_of_the_reference() -> None:
    neighbours = Neighbours(
        np.array([[1.0, 9.0], [1.0, 9.0], [0.9, 9.0], [2.0, 9.0]]), np.array([[0, 1], [1, 0], [0, 1], [1, 0]])
    )
    spacing = np.array([2.0, 4.01])[neighbours.indices[:, 0]]
    assert adaptive_rule(neighbours, spacing).tolist() == [False, True, True, True]
    assert adaptive_rule(neighbours, spacing, factor=0.4).tolist() == [False, True, False, False]


def test_rules_find_planted_copies_and_nothing_else() -> None:
    generator = np.random.default_rng(4)
    training = generator.normal(size=(100, 64)).astype(np.float32)
    copies = training[[3, 8, 8]] + generator.normal(0, 0.05, (3, 64)).astype(np.float32)
    samples = np.concatenate([copies, generator.normal(size=(50, 64)).astype(np.float32)])
    neighbours = nearest(samples, training, k=2)
    spacing = surroundings(training, training).mean_distance
    for reproduced in (ratio_rule(neighbours), adaptive_rule(neighbours, spacing[neighbours.indices[:, 0]])):
        assert np.flatnonzero(reproduced).tolist() == [0, 1, 2]
    assert neighbours.indices[:3, 0].tolist() == [3, 8, 8]


def test_references_that_are_not_distinct_are_refused() -> None:
    repeated = np.array([[1.0], [1.0], [5.0]], dtype=np.float32)
    with pytest.raises(ValueError, match="not distinct"):
        ratio_rule(nearest(repeated, repeated, k=2))
    with pytest.raises(ValueError, match="not distinct"):
        surroundings(repeated, repeated)
    with pytest.raises(ValueError, match="at least two"):
        surroundings(repeated, repeated[:1])


def grouped(seed: int, sizes: list[int], d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Images in tight clusters of these sizes, in mixed order, with their clusters' labels."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(100 + 7 * np.arange(len(sizes)), sizes))
    centres = dict(zip(100 + 7 * np.arange(len(sizes)), generator.normal(size=(len(sizes), d)), strict=True))
    images = np.stack([centres[label] for label in labels]) + 0.05 * generator.normal(size=(len(labels), d))
    return images.astype(np.float32), labels.astype(np.int64)


SIZES = [40, 3, 1, 1, 25, 2, 1, 8]


@pytest.mark.parametrize("most_passed_over", [0, 2, 30, 256])
@pytest.mark.parametrize("n_per_block", [1, 2, 7, 40, 80, 81, 200])
def test_the_second_distance_is_to_another_group_whatever_the_blocks(
    monkeypatch: pytest.MonkeyPatch, n_per_block: int, most_passed_over: int
) -> None:
    references, groups = grouped(0, SIZES)
    queries = grouped(0, SIZES)[0][::3] + np.float32(0.02)
    monkeypatch.setattr(rules, "REFERENCE_VALUES", 6 * n_per_block)
    monkeypatch.setattr(rules, "BLOCK_VALUES", 50)
    monkeypatch.setattr(rules, "MOST_PASSED_OVER", most_passed_over)
    found = nearest_two_groups(queries, references, groups)
    n_inside = 0
    for i, query in enumerate(queries.astype(np.float64)):
        distances = np.linalg.norm(references.astype(np.float64) - query, axis=1)
        closest = int(np.argmin(distances))
        is_other = groups != groups[closest]
        assert found.indices[i].tolist() == [closest, int(np.flatnonzero(is_other)[np.argmin(distances[is_other])])]
        np.testing.assert_allclose(found.distances[i], [distances[closest], distances[is_other].min()], rtol=1e-12)
        n_inside += int(groups[np.argsort(distances)[1]] == groups[closest])
    assert n_inside > 20, "of most queries the second nearest of all must be of the same group"


@pytest.mark.parametrize("n_per_block", [3, 81])
@pytest.mark.parametrize("most_passed_over", [0, 256])
def test_left_out_groups_are_neither_nearest_nor_second(
    monkeypatch: pytest.MonkeyPatch, n_per_block: int, most_passed_over: int
) -> None:
    references, groups = grouped(1, SIZES)
    monkeypatch.setattr(rules, "REFERENCE_VALUES", 6 * n_per_block)
    monkeypatch.setattr(rules, "MOST_PASSED_OVER", most_passed_over)
    two = nearest_two_groups(references, references, groups, groups[:, None])
    around = surroundings(references, references, groups=groups, left_out=groups[:, None])
    for i, image in enumerate(references.astype(np.float64)):
        distances = np.linalg.norm(references.astype(np.float64) - image, axis=1)
        outside = np.flatnonzero(groups != groups[i])
        closest = int(outside[np.argmin(distances[outside])])
        others = np.flatnonzero((groups != groups[i]) & (groups != groups[closest]))
        assert two.indices[i].tolist() == [closest, int(others[np.argmin(distances[others])])]
        assert around.nearest_distance[i] == pytest.approx(distances[closest], rel=1e-12)
        assert around.mean_distance[i] == pytest.approx(np.sort(distances[outside])[:50].mean(), rel=1e-12)


def test_copies_of_images_with_near_twins_are_found_as_without_them() -> None:
    """The found case: repeats changed by one grey level in 8 pixels made the ratio rule blind for their copies."""
    generator = np.random.default_rng(6)
    originals = generator.integers(0, 256, (60, 784)).astype(np.float32)
    twins = np.repeat(originals[:10], 15, axis=0)
    for twin in twins:
        twin[generator.choice(784, 8, replace=False)] += 1.0
    samples = np.concatenate([originals[:10], originals[40:50], generator.integers(0, 256, (20, 784))])
    samples = (samples + generator.normal(0, 5, samples.shape)).astype(np.float32)
    training, groups = np.concatenate([originals, twins]), np.concatenate([np.arange(60), np.repeat(np.arange(10), 15)])
    without_twins = nearest(samples, originals, k=2)
    assert np.flatnonzero(ratio_rule(without_twins)).tolist() == list(range(20))
    assert np.flatnonzero(ratio_rule(nearest(samples, training, k=2))).tolist() == list(range(10, 20))
    found = nearest_two_groups(samples, training, groups)
    assert np.flatnonzero(ratio_rule(found)).tolist() == list(range(20))
    assert groups[found.indices[:20, 0]].tolist() == [*range(10), *range(40, 50)]
    around = surroundings(training[found.indices[:, 0]], training, groups=groups, left_out=groups[found.indices[:, :1]])
    assert np.flatnonzero(adaptive_rule(found, around.mean_distance)).tolist() == list(range(20))


def test_twins_of_an_image_are_not_its_surroundings() -> None:
    line = np.array([[0.0], [0.1], [0.2], [3.0], [5.0]], dtype=np.float32)
    groups = np.array([9, 9, 9, 4, 2])
    around = surroundings(line, line, groups=groups, left_out=groups[:, None])
    assert around.mean_distance.tolist() == pytest.approx(
        [4.0, 3.9, 3.8, (3.0 + 2.9 + 2.8 + 2.0) / 4, (5.0 + 4.9 + 4.8 + 2.0) / 4]
    )
    assert around.nearest_distance.tolist() == pytest.approx([3.0, 2.9, 2.8, 2.0, 2.0])


def test_memory_stays_flat_where_a_group_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(100, 156, (20_000, 1, 16, 16)).astype(np.uint8)
    pixels[-1] = 255
    groups = np.array([1] * 19_999 + [2])
    references = Embedded(pixels, EMBEDDINGS["pixel"])
    monkeypatch.setattr(rules, "REFERENCE_VALUES", 500 * 256)
    tracemalloc.start()
    found = nearest_two_groups(references[[11, 19_999, 3]], references, groups)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.indices[[0, 2]].tolist() == [[11, 19_999], [3, 19_999]]
    assert peak < 5e6 < pixels.size * 4


def test_one_group_is_refused() -> None:
    line = np.array([[0.0], [0.1], [0.2]], dtype=np.float32)
    same = np.array([5, 5, 5])
    found = nearest_two_groups(line, line, same)
    assert found.indices.tolist() == [[0, -1], [1, -1], [2, -1]]
    with pytest.raises(ValueError, match="at least two near-duplicate groups"):
        ratio_rule(found)
    with pytest.raises(ValueError, match="no surroundings"):
        surroundings(line, line, groups=same, left_out=same[:, None])
    with pytest.raises(ValueError, match="only where the references' groups are given"):
        nearest(line, line, 1, left_out=same[:, None])


# a plain double loop over everything, with groups, left-out groups and blocks of any size


@pytest.mark.parametrize("seed", range(8))
def test_neighbours_are_those_of_a_plain_double_loop(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(seed)
    n, m, d = 9, 14 + seed, 3
    monkeypatch.setattr(rules, "REFERENCE_VALUES", d * int(generator.integers(1, 20)))
    monkeypatch.setattr(rules, "BLOCK_VALUES", int(generator.integers(1, 60)))
    monkeypatch.setattr(rules, "MOST_PASSED_OVER", int(generator.integers(0, 4)))
    queries, references = (generator.integers(0, 5, (k, d)).astype(np.float32) for k in (n, m))
    groups = generator.integers(-3, 4, m)
    left_out = generator.integers(-4, 5, (n, seed % 3))
    far = np.linalg.norm(queries[:, None].astype(np.float64) - references, axis=2)
    for k in (1, 3, m):
        found = nearest(queries, references, k, groups=groups, left_out=left_out)
        two = nearest_two_groups(queries, references, groups, left_out)
        for i in range(n):
            others = sorted((far[i, j], j) for j in range(m) if groups[j] not in left_out[i])[:k]
            wanted = others + [(np.inf, -1)] * (min(k, m) - len(others))
            assert found.distances[i] == pytest.approx([distance for distance, _ in wanted])
            if seed % 3 == 0 and k == m:
                assert found.indices[i].tolist() == [j for _, j in wanted]
            assert all(j < 0 or groups[j] not in left_out[i] for j in found.indices[i])
            all_others = sorted((far[i, j], j) for j in range(m) if groups[j] not in left_out[i])
            if not all_others:
                assert two.distances[i].tolist() == [np.inf, np.inf]
                continue
            first = int(two.indices[i, 0])
            assert two.distances[i, 0] == pytest.approx(all_others[0][0]) == pytest.approx(far[i, first])
            second = [distance for distance, j in all_others if groups[j] != groups[first]]
            assert two.distances[i, 1] == pytest.approx(second[0] if second else np.inf)
            assert (two.indices[i, 1] < 0) == (not second)


def test_surroundings_are_the_fifty_nearest_others_or_as_many_as_there_are() -> None:
    generator = np.random.default_rng(0)
    references = generator.normal(size=(53, 4)).astype(np.float32)
    fresh = generator.normal(size=(2, 4)).astype(np.float32)
    images = np.concatenate([references[:2], fresh])
    groups = np.arange(53) // 2
    left_out = np.array([[0], [0], [7], [99]])
    for known, passed in ((None, None), (groups, left_out)):
        found = surroundings(images, references, groups=known, left_out=passed)
        for i, image in enumerate(images.astype(np.float64)):
            far = np.linalg.norm(references - image, axis=1)
            others = far[far > 0] if passed is None else far[groups != passed[i, 0]]
            assert found.nearest_distance[i] == pytest.approx(others.min())
            assert found.mean_distance[i] == pytest.approx(np.sort(others)[:50].mean())
    few = surroundings(images[:1], references[:3])
    far = np.linalg.norm(references[1:3].astype(np.float64) - images[0], axis=1)
    assert few.mean_distance[0] == pytest.approx(far.mean())
    with pytest.raises(ValueError, match="at least two distinct training images are needed to speak of"):
        surroundings(images, references[:1])
    with pytest.raises(ValueError, match="all training images are near duplicates of one image"):
        surroundings(images[:2], references[:3], groups=np.zeros(3, int), left_out=np.array([[0], [5]]))
    with pytest.raises(ValueError, match="groups can be left out only where"):
        nearest(images, references, 1, left_out=left_out)


def test_rules_are_strict_and_need_another_group() -> None:
    neighbours = Neighbours(np.array([[1.0, 3.0], [0.999, 3.0], [0.0, 1.0]]), np.zeros((3, 2), dtype=np.int64))
    assert ratio_rule(neighbours).tolist() == [False, True, True]
    assert ratio_rule(neighbours, 0.3).tolist() == [False, False, True]
    assert adaptive_rule(neighbours, np.array([2.0, 2.0, 1.0])).tolist() == [False, True, True]
    assert adaptive_rule(neighbours, np.array([2.0, 2.0, 1.0]), 0.1).tolist() == [False, False, True]
    one_group = Neighbours(np.array([[1.0, 3.0], [1.0, np.inf]]), np.array([[0, 1], [0, -1]]))
    with pytest.raises(ValueError, match="at least two near-duplicate groups"):
        ratio_rule(one_group)


@pytest.mark.parametrize("n_per_block", [1, 7, 200])
@pytest.mark.parametrize("k", [1, 3, 60])
def test_a_distance_is_the_smaller_one_of_an_image_and_its_mirror_image(
    monkeypatch: pytest.MonkeyPatch, n_per_block: int, k: int
) -> None:
    """Some references are symmetric: found both ways, and counted once."""
    references, _ = grouped(2, SIZES)
    references[::9, 3:] = references[::9, 2::-1]
    queries = grouped(3, SIZES)[0][::4]
    queries[::2] = references[: len(queries[::2]), ::-1] + np.float32(0.01)
    monkeypatch.setattr(rules, "REFERENCE_VALUES", 6 * n_per_block)
    found = nearest(queries, references, k, mirrored=queries[:, ::-1])
    for i, query in enumerate(queries.astype(np.float64)):
        ways = np.stack([np.linalg.norm(references - one, axis=1) for one in (query, query[::-1])])
        order = np.argsort(ways.min(axis=0), kind="stable")[:k]
        np.testing.assert_allclose(found.distances[i], ways.min(axis=0)[order], rtol=1e-12)
        assert len(set(found.indices[i].tolist())) == len(order) == found.indices.shape[1]
        is_clear = np.abs(ways[0] - ways[1])[found.indices[i]] > 1e-9
        assert found.is_mirrored is not None
        assert found.is_mirrored[i][is_clear].tolist() == (ways[1] < ways[0])[found.indices[i]][is_clear].tolist()
    assert found.is_mirrored is not None
    assert found.is_mirrored[::2, 0].mean() > 0.5


@pytest.mark.parametrize("n_per_block", [1, 7, 200])
def test_the_second_group_and_the_surroundings_are_nearest_either_way_too(
    monkeypatch: pytest.MonkeyPatch, n_per_block: int
) -> None:
    references, groups = grouped(4, SIZES)
    monkeypatch.setattr(rules, "REFERENCE_VALUES", 6 * n_per_block)
    mirrored, own = references[:, ::-1], groups[:, None]
    for left_out in (None, own):
        two = nearest_two_groups(references, references, groups, left_out, mirrored)
        around = surroundings(references, references, groups=groups, left_out=own, mirrored=mirrored)
        for i, image in enumerate(references.astype(np.float64)):
            distances = np.minimum(*(np.linalg.norm(references - one, axis=1) for one in (image, image[::-1])))
            allowed = np.flatnonzero(groups != groups[i]) if left_out is not None else np.arange(len(groups))
            closest = int(allowed[np.argmin(distances[allowed])])
            others = allowed[groups[allowed] != groups[closest]]
            assert two.indices[i].tolist() == [closest, int(others[np.argmin(distances[others])])]
            np.testing.assert_allclose(two.distances[i], distances[two.indices[i]], rtol=1e-12)
            outside = distances[groups != groups[i]]
            assert around.nearest_distance[i] == pytest.approx(outside.min(), rel=1e-12)
            assert around.mean_distance[i] == pytest.approx(np.sort(outside)[:50].mean(), rel=1e-12)


def test_fewer_references_than_asked_for_are_found_once_either_way() -> None:
    line = np.array([[1.0, 2.0], [5.0, 5.0], [1.0, 3.0]], dtype=np.float32)
    found = nearest(line[:1], line, 3, groups=np.array([0, 1, 0]), left_out=np.array([[0]]), mirrored=line[:1, ::-1])
    assert found.indices.tolist() == [[1, -1, -1]]
    assert found.distances.tolist() == [[5.0, np.inf, np.inf]]


@pytest.mark.parametrize("block_values", [1, 100, 10**6])
def test_of_patches_the_one_that_differs_most_makes_the_distance(
    monkeypatch: pytest.MonkeyPatch, block_values: int
) -> None:
    flat, groups = grouped(5, SIZES)
    monkeypatch.setattr(rules, "BLOCK_VALUES", block_values)
    monkeypatch.setattr(rules, "REFERENCE_VALUES", 6 * 30)
    references = flat.reshape(-1, 3, 2)
    queries = (grouped(6, SIZES)[0][::5] + flat[::5] / 2).reshape(-1, 3, 2)
    found, two = nearest(queries, references, 4), nearest_two_groups(queries, references, groups)
    n_unlike_l2 = 0
    for i, query in enumerate(queries.astype(np.float64)):
        distances = np.array(
            [max(np.sqrt(((q - r) ** 2).sum()) for q, r in zip(query, x, strict=True)) for x in references]
        )
        assert found.indices[i].tolist() == np.argsort(distances)[:4].tolist()
        np.testing.assert_allclose(found.distances[i], np.sort(distances)[:4], rtol=1e-12)
        closest = int(np.argmin(distances))
        assert two.distances[i].tolist() == pytest.approx([distances.min(), distances[groups != groups[closest]].min()])
        n_unlike_l2 += int(
            np.argmin(np.linalg.norm((references - query).reshape(len(references), -1), axis=1)) != closest
        )
    assert n_unlike_l2 > 0

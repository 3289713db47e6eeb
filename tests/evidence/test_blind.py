"""The blind baseline must see a difference that is there and nothing where there is none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.datasets import load_digits

from latentprint.tasks.evidence import blind
from latentprint.tasks.evidence.blind import BlindBaseline, blind_baseline
from latentprint.tasks.evidence.confounders import pixel_statistics
from latentprint.tasks.evidence.statistics import auc

Images = NDArray[np.uint8]
DIGITS: Any = load_digits()
IMAGES: Images = (DIGITS.images / 16.0 * 255.0).round().astype(np.uint8)
NOISE: Images = np.random.default_rng(0).integers(0, 256, (200, 16, 16), dtype=np.uint8)
CONTRAST = pixel_statistics(IMAGES)["contrast"]
FAR = np.abs(CONTRAST - np.median(CONTRAST)) > np.quantile(np.abs(CONTRAST - np.median(CONTRAST)), 0.5)


def random_halves(seed: int, n: int = 150) -> tuple[Images, Images]:
    order = np.random.default_rng(seed).permutation(len(IMAGES))
    return IMAGES[order[:n]], IMAGES[order[n : 2 * n]]


def area(result: BlindBaseline) -> float:
    assert result.auc is not None
    return result.auc.value


def test_random_halves_are_told_apart_no_more_often_than_by_chance() -> None:
    results = [blind_baseline(*random_halves(seed, 64), seed=seed) for seed in range(60)]
    n_shifts = sum(result.detects_shift for result in results)
    n_excluding = sum(r.auc is not None and not r.auc.low <= 0.5 <= r.auc.high for r in results)
    assert n_shifts <= stats.binom.ppf(0.999, 60, 0.025)
    assert n_excluding <= stats.binom.ppf(0.999, 60, 0.05)


@pytest.mark.parametrize(
    ("train", "holdout", "least"),
    [
        (IMAGES[DIGITS.target < 5][:150], IMAGES[DIGITS.target >= 5][:150], 0.9),
        (random_halves(0)[0], (random_halves(0)[1] * 0.9).round().astype(np.uint8), 0.9),
        (NOISE[:100], NOISE[100:] // 32 * 32 + 16, 0.9),  # no pixel of it tells, but it compresses better
        (IMAGES[FAR][:150], IMAGES[~FAR][:150], 0.75),  # no linear score tells: either less or more contrast
    ],
    ids=["other classes", "other brightness", "another history of rounding", "more extreme"],
)
def test_sets_of_different_origin_are_told_apart(train: Images, holdout: Images, least: float) -> None:
    result = blind_baseline(train, holdout)
    assert result.detects_shift
    assert result.auc is not None
    assert result.auc.low > 0.5
    assert area(result) > least


def test_the_order_of_the_rows_changes_nothing() -> None:
    """The same images in another order were 0.588 or 0.614."""
    train, holdout = random_halves(5)
    order, there = (np.random.default_rng(seed).permutation(150) for seed in (0, 1))
    result, again = blind_baseline(train, holdout), blind_baseline(train[order], holdout[there])
    assert again.auc == result.auc
    assert again.p_value == result.p_value
    assert again.scores == pytest.approx(np.concatenate([result.scores[:150][order], result.scores[150:][there]]))


def test_permuted_labels_give_the_areas_of_learners_fitted_anew() -> None:
    """One column by hand: ridge regression of the permuted labels, fold by fold."""
    features = np.random.default_rng(0).normal(size=(40, 3))
    learner = blind.out_of_fold_learner(features, np.arange(40), seed=0)
    is_train = np.arange(40) < 20
    areas = blind.permuted_areas(learner, is_train, np.arange(40), seed=3)
    side = np.random.default_rng(3).permutation(is_train)
    scores = learner @ np.where(side, 1.0, -1.0)
    assert areas[0] == pytest.approx(auc(scores[side], scores[~side]))
    assert np.diag(learner).tolist() == [0.0] * 40
    assert learner.sum(axis=1) == pytest.approx(np.zeros(40), abs=1e-12)


def test_copies_are_not_judged_by_a_learner_that_saw_them() -> None:
    train, holdout = random_halves(1, n=40)
    copied = np.repeat(train, 8, axis=0), np.repeat(holdout, 8, axis=0)
    leaking = blind_baseline(*copied, groups=(np.arange(320), 320 + np.arange(320)))
    assert area(leaking) > 0.9
    assert not blind_baseline(*copied).detects_shift


def test_large_sets_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blind, "MOST_IMAGES", 60)
    train, holdout = random_halves(2)
    results = [blind_baseline(train, holdout, seed=seed) for seed in (0, 0, 1)]
    assert (results[0].n_train, results[0].n_holdout) == (60, 60)
    assert np.isfinite(results[0].scores[:150]).sum() == np.isfinite(results[0].scores[150:]).sum() == 60
    assert area(results[0]) == area(results[1]) != area(results[2])


def test_images_that_are_drawn_keep_their_own_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of 40 images a side in random order: with the groups of other images, a learner judges what it saw."""
    monkeypatch.setattr(blind, "MOST_IMAGES", 200)
    train, holdout = random_halves(1, n=40)
    numbers = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 8))
    own, others = (numbers, 40 + numbers), (np.roll(numbers, 1), 40 + np.roll(numbers, 1))
    copied = train[numbers], holdout[numbers]
    assert area(blind_baseline(*copied, groups=others)) > 0.9
    drawn = blind_baseline(*copied, groups=own)
    assert (drawn.n_train, drawn.detects_shift) == (200, False)
    assert area(drawn) < 0.7


@pytest.mark.filterwarnings("error")
def test_too_few_distinct_images_are_not_computable() -> None:
    result = blind_baseline(np.repeat(IMAGES[:29], 10, axis=0), IMAGES[100:200])
    assert (result.status, result.auc, result.p_value) == ("not computable", None, None)
    assert "29 distinct images" in result.reason


@pytest.mark.filterwarnings("error")
def test_colour_images_and_constant_pixels_raise_no_warning() -> None:
    train, holdout = (np.repeat(half[..., None], 3, axis=-1) for half in random_halves(3, n=60))
    result = json.loads(json.dumps(blind_baseline(train, holdout).as_dict(), allow_nan=False))
    assert result["n_train"] == 60
    assert len(result["auc"]["interval_95"]) == 2
    assert result["assumptions"]


@pytest.mark.parametrize(("p_value", "detects"), [(0.025, True), (0.026, False), (0.5, False), (None, False)])
def test_a_shift_is_detected_at_two_and_a_half_percent(p_value: float | None, detects: bool) -> None:
    assert BlindBaseline(n_train=1, n_holdout=1, scores=np.zeros(2), p_value=p_value).detects_shift is detects


# the parts, written out


@pytest.mark.parametrize("shape", [(9, 12), (8, 8, 3), (1, 6), (5, 1)])
def test_textures_are_energies_of_differences_and_of_bands_of_frequency(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, *shape), dtype=np.uint8)
    found = blind._textures(images)
    assert found.shape == (4, 17)
    for image, row in zip(images / 255.0, found, strict=True):
        grey = image.reshape(*shape[:2], -1).mean(axis=2)
        grey = grey - grey.mean()
        height, width = grey.shape
        energies = []
        for down, across in ((0, 1), (1, 0), (1, 1), (1, -1)):
            differences = [
                grey[y + down, x + across] - grey[y, x]
                for y in range(height - down)
                for x in range(width)
                if 0 <= x + across < width
            ]
            energies.append(np.mean(np.square(differences)) if differences else 0.0)
        bands = [0.0] * 4
        for v in range(height):
            for u in range(width):
                wave = np.exp(-2j * np.pi * np.add.outer(np.arange(height) * v / height, np.arange(width) * u / width))
                frequency = np.hypot(min(v, height - v) / height, min(u, width - u) / width)
                power = abs((grey * wave).sum()) ** 2 / (height * width) ** 2
                if frequency > 0:
                    bands[int(np.searchsorted([0.125, 0.25, 0.375], frequency - 1e-12))] += power
        logs = np.log(np.array([*energies, *bands]) + 1e-8)
        contrast = np.log((grey**2).mean() + 1e-8)
        np.testing.assert_allclose(row, [*logs, *(logs - contrast), np.abs(grey).mean()], atol=1e-6)


def test_features_are_whitened_components_and_standardised_statistics_of_equal_weight() -> None:
    images = IMAGES[:50].copy()
    images[:, 0, 0] = 7
    found = blind._features(images)
    flat = images.reshape(50, -1) / 255.0
    u, spectrum, _ = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    n_kept = min(30, int((spectrum > 1e-5 * spectrum[0]).sum()))
    components, rest = found[:, :n_kept], found[:, n_kept:]
    np.testing.assert_allclose(components @ components.T, 50 * u[:, :n_kept] @ u[:, :n_kept].T, atol=2e-2)
    statistics = np.column_stack([*pixel_statistics(images).values(), blind._textures(images)])
    z = (statistics - statistics.mean(axis=0)) / statistics.std(axis=0)
    np.testing.assert_allclose(rest, z * np.sqrt(n_kept / z.shape[1]), rtol=1e-6)
    assert np.isfinite(blind._features(np.zeros((40, 4, 4), np.uint8))).all()
    few = blind._features(IMAGES[:12])
    assert few.shape[1] <= 12 + z.shape[1]


def test_the_kernel_is_the_centred_mean_of_a_linear_and_a_gaussian_one() -> None:
    x = np.random.default_rng(1).normal(size=(9, 4)) + 3.0
    linear = x @ x.T / np.mean([row @ row for row in x])
    squared = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    kernel = (linear + np.exp(-squared / np.median(squared))) / 2
    centre = np.eye(9) - 1 / 9
    np.testing.assert_allclose(blind._kernel(x), centre @ kernel @ centre, atol=1e-12)


def test_the_learner_is_ridge_regression_of_labels_without_the_fold_and_its_near_duplicates() -> None:
    x, groups = np.random.default_rng(2).normal(size=(30, 3)), np.arange(30) // 2
    labels = np.where(np.arange(30) % 3 == 0, 1.0, -1.0)
    generator, kernel, expected = np.random.default_rng(7), blind._kernel(x), np.zeros(30)
    for _ in range(10):
        fold_of = (generator.permutation(15) % 5)[groups]
        for fold in range(5):
            fit, test = fold_of != fold, fold_of == fold
            centred = labels[fit] - labels[fit].mean()
            weights = np.linalg.solve(kernel[np.ix_(fit, fit)] + np.eye(fit.sum()), centred)
            expected[test] += kernel[np.ix_(test, fit)] @ weights / 10
    learner = blind.out_of_fold_learner(x, groups, seed=7)
    np.testing.assert_allclose(learner @ labels, expected, atol=1e-10)
    assert all(learner[i, j] == 0.0 for i in range(30) for j in range(30) if groups[i] == groups[j])


def test_labels_are_permuted_over_whole_groups_a_mixed_one_by_its_majority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blind, "N_PERMUTATIONS", 25)
    groups = np.array([0, 0, 0, 1, 1, 2, 3, 3, 4, 5])
    is_train = np.array([1, 1, 0, 1, 0, 1, 0, 0, 0, 0], dtype=bool)
    learner = np.random.default_rng(3).normal(size=(10, 10))
    generator, side = np.random.default_rng(4), np.array([True, True, True, False, False, False])
    expected = []
    for _ in range(25):
        labels = generator.permutation(side)[groups]
        scores = learner @ np.where(labels, 1.0, -1.0)
        expected.append(auc(scores[labels], scores[~labels]))
    assert blind.permuted_areas(learner, is_train, groups, seed=4) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "status"), [(29, "not computable"), (30, "ok")])
@pytest.mark.parametrize("swapped", [False, True])
def test_thirty_distinct_images_of_either_set_are_the_fewest(
    n: int, status: str, swapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blind, "N_PERMUTATIONS", 9)
    sets = (np.concatenate([IMAGES[:n], IMAGES[:3]]), IMAGES[100:140])
    result = blind_baseline(*(sets[::-1] if swapped else sets))
    assert result.status == status
    assert {result.n_train, result.n_holdout} == {n + 3, 40}
    says = "29 distinct images in the smaller set: at least 30 are needed"
    assert result.reason == (says if status != "ok" else "")
    assert np.isfinite(result.scores).all() == (status == "ok")
    if status == "ok":
        assert result.p_value is not None
        assert (result.p_value * 10) % 1 == pytest.approx(0.0, abs=1e-9)
        assert result.inflation >= 1.0


def test_identical_images_are_one_content() -> None:
    images = np.stack([IMAGES[0], IMAGES[1], IMAGES[0]])
    numbers = blind._contents(images)
    assert numbers[0] == numbers[2] != numbers[1]
    rows = np.arange(1_001)
    assert blind._choose(rows[:1_000], 0) is not None
    assert blind._choose(rows[:1_000], 0).tolist() == rows[:1_000].tolist()
    chosen = blind._choose(rows, 0)
    assert len(set(chosen.tolist())) == 1_000


def test_the_seed_is_zero_where_none_is_given() -> None:
    train, holdout = random_halves(4, 40)
    assert blind_baseline(train, holdout).p_value == blind_baseline(train, holdout, seed=0).p_value
    assert blind_baseline(train, holdout).auc == blind_baseline(train, holdout, seed=0).auc
    assert blind_baseline(train, holdout).auc != blind_baseline(train, holdout, seed=1).auc

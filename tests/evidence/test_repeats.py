"""Repeats counted by hand on points of a line, and what either half of the rule alone would get wrong."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from latentprint.tasks.evidence import repeats
from latentprint.tasks.evidence.repeats import (
    answer,
    find_repeats,
    nearest_others,
    ratio_to_control,
)

N = 100
FLAT, STEEP = 0.0, 1.0


def images_of(features: np.ndarray, growth: np.ndarray, blank: int = 0) -> repeats.Generated:
    """The first images are blank."""
    return repeats.Generated(features, growth, np.arange(len(growth)) >= blank)


def line(*points: float) -> np.ndarray:
    return np.array(points, dtype=np.float32)[:, None]


def crowd(seed: int, n: int = N, dimension: int = 12) -> np.ndarray:
    """Images of no model in particular: a Gaussian cloud."""
    return np.random.default_rng(seed).normal(size=(n, dimension)).astype(np.float32)


def with_twins(features: np.ndarray, n_twins: int) -> np.ndarray:
    """The first 2 ``n_twins`` images are one picture and a little noise."""
    features = features.copy()
    noise = 0.01 * crowd(9, 2 * n_twins, features.shape[1])
    features[: 2 * n_twins] = features[0] + noise
    return features


def growth(n_steep: int) -> np.ndarray:
    """The first are steep; the others rise slowly, so that quantiles are between two of them."""
    values = np.linspace(FLAT, 0.1, N)
    values[:n_steep] = STEEP
    return values


def test_the_ratio_is_to_the_other_half_of_either_set() -> None:
    own, control = line(0.0, 1.0, 10.0, 12.0), line(3.0, 5.0, 30.0, 40.0)
    # image 0: own odd ones 1, 12 -> 1; control's odd ones 5, 40 -> 5
    # image 1: own even ones 0, 10 -> 1; control's even ones 3, 30 -> 2
    # image 2: 12 - 10 = 2; |5 - 10| = 5        image 3: 12 - 10 = 2; |3 - 12| = 9
    assert ratio_to_control(own, control).tolist() == pytest.approx([1 / 5, 1 / 2, 2 / 5, 2 / 9])


def test_an_image_that_the_control_makes_too_tells_nothing() -> None:
    assert ratio_to_control(line(0.0, 0.0, 7.0, 9.0), line(0.0, 0.0, 1.0, 2.0))[:2].tolist() == [1.0, 1.0]


def test_twins_that_are_steep_are_repeats_and_nothing_else_is() -> None:
    model = images_of(with_twins(crowd(1), 12), growth(24))
    found = find_repeats(model, images_of(crowd(2), growth(0)), 0.05)
    assert np.flatnonzero(found.is_repeat).tolist() == list(range(24))
    assert (found.model, found.control) == ((12, 50), (0, 50))
    assert found.p_value == pytest.approx(stats.fisher_exact([[12, 38], [0, 50]], alternative="greater").pvalue)
    assert found.is_concluded
    assert found.is_flagged.tolist() == found.is_repeat.tolist()
    assert found.p_values[:24].tolist() == [pytest.approx(1 / 101)] * 24


def test_near_without_steep_and_steep_without_near_are_no_repeats() -> None:
    """An unfinished training gives one picture again and again; a longer one is steeper everywhere."""
    control = images_of(crowd(2), growth(0))
    collapsed = find_repeats(images_of(with_twins(crowd(1), 12), growth(0)), control, 0.05)
    assert (collapsed.n_near, collapsed.model.k, collapsed.is_concluded) == (12, 0, False)
    trained = find_repeats(images_of(crowd(1), growth(N)), control, 0.05)
    assert (trained.n_steep, trained.model.k, trained.is_concluded) == (50, 0, False)


def test_blank_images_are_no_repeats() -> None:
    model = images_of(with_twins(crowd(1), 12), growth(24), blank=20)
    found = find_repeats(model, images_of(crowd(2), growth(0)), 0.05)
    assert np.flatnonzero(found.is_repeat).tolist() == [20, 21, 22, 23]
    assert found.p_values[:20].tolist() == [1.0] * 20


def test_a_control_that_repeats_as_much_allows_no_conclusion_and_no_flag() -> None:
    model = images_of(with_twins(crowd(1), 2), growth(4))
    alike = images_of(with_twins(crowd(2), 2), growth(4))
    found = find_repeats(model, alike, 0.05)
    assert (found.model.k, found.control.k) == (2, 2)
    assert not found.is_concluded
    assert not found.is_flagged.any()


def test_a_picture_that_comes_out_many_times_is_found_where_the_second_nearest_is_as_near() -> None:
    """Forty of a hundred images are one picture: beside the third of them the first two are nothing special."""
    model = images_of(with_twins(crowd(1), 20), growth(40))
    assert find_repeats(model, images_of(crowd(2), growth(0)), 0.05).is_repeat[:40].all()


def test_under_two_models_alike_conclusions_are_rarer_than_the_level() -> None:
    """Same law, in few dimensions, where images come near one another by chance; steep half of the time."""
    n_false = 0
    for seed in range(100):
        draws = np.random.default_rng(seed)
        model, control = (
            images_of(draws.normal(size=(N, 2)).astype(np.float32), draws.normal(size=N)) for _ in range(2)
        )
        n_false += find_repeats(model, control, 0.05).is_concluded
    assert n_false <= 5


def test_growth_that_is_not_finite_is_not_steep() -> None:
    model = images_of(with_twins(crowd(1), 12), np.where(growth(24) == STEEP, np.nan, 0.0))
    assert not find_repeats(model, images_of(crowd(2), growth(0)), 0.05).is_repeat.any()
    nothing = images_of(crowd(2), np.full(N, np.nan))
    assert not find_repeats(images_of(with_twins(crowd(1), 12), growth(24)), nothing, 0.05).is_repeat.any()


def test_the_nearest_other_image_is_never_the_image_itself() -> None:
    row, distance, ratio = nearest_others(line(0.0, 0.0, 3.0, 7.0))
    assert row.tolist() == [1, 0, 0, 2]
    assert distance.tolist() == [0.0, 0.0, 3.0, 4.0]
    assert ratio.tolist() == pytest.approx([0.0, 0.0, 3 / (10 / 3), 4 / 6])  # 3, 3, 4 and 4, 7, 7


def test_more_identical_images_than_are_looked_at_still_have_another() -> None:
    row, distance, _ = nearest_others(np.zeros((60, 2), dtype=np.float32))
    assert (row != np.arange(60)).all()
    assert distance.tolist() == [0.0] * 60


def test_without_a_control_nothing_is_concluded() -> None:
    said = answer(None, 1000)
    assert said["level"] == "ranked_only"
    assert "Nothing is concluded" in said["sentence"]
    assert "--control" in said["reason"]

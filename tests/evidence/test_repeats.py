"""Repeats counted by hand on points of a line, and what either half of the rule alone would get wrong."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from latentprint.tasks.evidence import repeats
from latentprint.tasks.evidence.repeats import Generated, answer, find_repeats, nearest_others
from latentprint.tasks.evidence.reproduction import p_value

N = 120
DIMENSION = 12


def images_of(features: np.ndarray, growth: np.ndarray | None = None, blank: int = 0) -> Generated:
    """The first images are blank; growth rises slowly unless it is given."""
    growth = np.linspace(0.0, 0.1, len(features)) if growth is None else growth
    return Generated(features, growth, np.arange(len(growth)) >= blank)


def line(*points: float) -> np.ndarray:
    return np.array(points, dtype=np.float32)[:, None]


def crowd(seed: int, n: int = N) -> np.ndarray:
    """Images of no model in particular: a Gaussian cloud."""
    return np.random.default_rng(seed).normal(size=(n, DIMENSION)).astype(np.float32)


def with_twins(features: np.ndarray, n_alike: int) -> np.ndarray:
    """The first ``n_alike`` images are one picture and a little noise."""
    features = features.copy()
    features[:n_alike] = features[0] + 0.01 * crowd(9, n_alike)
    return features


def growth(n_steep: int) -> np.ndarray:
    """The first are steep."""
    return np.where(np.arange(N) < n_steep, 1.0, np.linspace(0.0, 0.1, N))


def test_the_ratio_leaves_out_the_images_of_the_same_number() -> None:
    own, control = line(0.0, 1.0, 10.0, 12.0), line(3.0, 5.0, 30.0, 40.0)
    found = find_repeats(images_of(own), images_of(control), 0.05)
    # own: 1, 1, 2, 2; control without the own number: 5, |1 - 3|, |10 - 5|, |12 - 5|
    assert found.model.ratio.tolist() == pytest.approx([1 / 5, 1 / 2, 2 / 5, 2 / 7])
    # the control's: 2, 2, 10, 10; to 1, to 0, to 12, to 10
    assert found.control.ratio.tolist() == pytest.approx([2 / 2, 2 / 5, 10 / 18, 10 / 30])


def test_an_image_that_the_control_makes_too_tells_nothing() -> None:
    own, control = line(0.0, 0.0, 7.0, 9.0), line(0.0, 0.0, 1.0, 2.0)
    assert find_repeats(images_of(own), images_of(control), 0.05).model.ratio[:2].tolist() == [1.0, 1.0]


def test_twins_that_are_steep_are_repeats_and_nothing_else_is() -> None:
    found = find_repeats(images_of(with_twins(crowd(1), 6), growth(6)), images_of(crowd(2)), 0.05)
    assert np.flatnonzero(found.model.is_repeat).tolist() == list(range(6))
    assert (found.model.repeats, found.control.repeats) == ((6, N), (0, N))
    fisher = stats.fisher_exact([[6, N - 6], [0, N]], alternative="greater").pvalue
    # all six are exchanged or none: 2^-6 of exchanges are as the sets are
    assert fisher <= found.p_value == pytest.approx(2**-6, abs=0.015)
    assert found.conclusion == "repeats_itself"


def test_near_without_steep_and_steep_without_near_are_no_repeats() -> None:
    """An unfinished training gives one picture again and again; a longer one is steeper everywhere."""
    control = images_of(crowd(2), growth(N))
    collapsed = find_repeats(images_of(with_twins(crowd(1), 6), growth(6)), control, 0.05)
    assert (collapsed.model.is_near[:6].all(), collapsed.model.repeats.k) == (True, 0)
    trained = find_repeats(images_of(crowd(1), growth(6)), images_of(crowd(2)), 0.05)
    assert (trained.model.is_steep[:6].all(), trained.model.repeats.k) == (True, 0)


def test_beside_the_noise_of_an_early_state_images_must_stand_out_among_their_own() -> None:
    """A control far away makes every image near in comparison; six copies are found all the same."""
    noise = images_of(crowd(2) + 30.0, growth(0))
    innocent = find_repeats(images_of(crowd(1), growth(6)), noise, 0.05)
    assert (innocent.model.ratio < 1 / 3).all()
    assert innocent.model.repeats.k == 0
    assert innocent.conclusion == "inconclusive"  # nine tenths are near: such a control tells too little
    assert "nearer to one another" in answer(innocent, N)["sentence"]
    assert find_repeats(images_of(with_twins(crowd(1), 6), growth(6)), noise, 0.05).conclusion == "repeats_itself"


def test_blank_images_are_no_repeats() -> None:
    found = find_repeats(images_of(with_twins(crowd(1), 12), growth(12), blank=8), images_of(crowd(2)), 0.05)
    assert np.flatnonzero(found.model.is_repeat).tolist() == [8, 9, 10, 11]
    assert found.n_telling == (N - 8, N)


def test_a_control_that_repeats_as_much_allows_no_conclusion() -> None:
    model, control = (images_of(with_twins(crowd(seed), 4), growth(4)) for seed in (1, 2))
    found = find_repeats(model, control, 0.05)
    assert (found.model.repeats.k, found.control.repeats.k) == (4, 4)
    assert found.conclusion == "not_shown"


@pytest.mark.parametrize("n_classes", [1, 2, 10])
def test_copies_of_any_number_of_classes_are_found_though_most_images_are_copies(n_classes: int) -> None:
    """Image i is of class i mod n_classes; eight in ten are one of three pictures of their class."""
    draws, label = np.random.default_rng(4), np.arange(4 * N) % n_classes
    known = draws.normal(size=(n_classes, 3, DIMENSION))
    copies = known[label, draws.integers(3, size=4 * N)] + 0.01 * draws.normal(size=(4 * N, DIMENSION))
    is_copy = draws.random(4 * N) < 0.8
    features = np.where(is_copy[:, None], copies, crowd(5, 4 * N)).astype(np.float32)
    steep = draws.normal(size=4 * N) + 5.0 * is_copy
    found = find_repeats(images_of(features, steep), images_of(crowd(6, 4 * N), draws.normal(size=4 * N)), 0.05)
    assert found.conclusion == "repeats_itself"
    assert is_copy[found.model.is_repeat].all()
    assert found.model.repeats.k == 24  # one in twenty: the steepest


def test_two_sets_of_one_law_are_told_apart_no_more_often_than_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty tight and steep clusters, each as likely in either set: Fisher's exact test alone accuses too often."""
    monkeypatch.setattr(repeats, "STEEP", 0.5)  # many repeats of few images
    monkeypatch.setattr(repeats, "N_EXCHANGES", 199)
    n_draws, n_false, n_by_fisher = 100, 0, 0
    for seed in range(n_draws):
        draws = np.random.default_rng(seed)
        centres = draws.normal(size=(30, DIMENSION))
        found = find_repeats(clustered(centres, draws), clustered(centres, draws), 0.05, seed)
        n_false += found.conclusion == "repeats_itself"
        n_by_fisher += p_value(found.model.repeats, found.control.repeats) <= 0.05
    most = stats.binom.ppf(0.99, n_draws, 0.05)
    assert n_false <= most < n_by_fisher


def clustered(centres: np.ndarray, draws: np.random.Generator) -> Generated:
    """Half of the images are one of these and a little noise, and are steep."""
    is_near = draws.random(N) < 0.5
    features = draws.normal(size=(N, DIMENSION))
    features[is_near] = centres[draws.integers(len(centres), size=is_near.sum())]
    features += 0.01 * draws.normal(size=features.shape)
    return images_of(features.astype(np.float32), draws.normal(size=N) + 5.0 * is_near)


def test_growth_that_is_not_finite_is_not_steep_and_too_little_of_it_is_inconclusive() -> None:
    twins, control = with_twins(crowd(1), 6), images_of(crowd(2))
    assert not find_repeats(images_of(twins, np.where(growth(6) == 1.0, np.nan, 0.0)), control, 0.05).model.repeats.k
    found = find_repeats(images_of(twins, growth(6)), images_of(crowd(2), np.full(N, np.nan)), 0.05)
    assert found.n_telling == (N, 0)
    assert found.conclusion == "inconclusive"
    assert f"0 of {N} of the control" in answer(found, N)["sentence"]
    assert find_repeats(images_of(twins, growth(6), blank=30), control, 0.05).conclusion == "inconclusive"


def test_what_is_not_shown_comes_with_the_share_that_would_have_been_seen() -> None:
    """Five repeats against none have p = 2^-5: P(Binomial(120, share) >= 5) = 0.8."""
    said = answer(find_repeats(images_of(crowd(1)), images_of(crowd(2)), 0.05), N)
    assert said["level"] == "not_shown"
    share = stats.beta.ppf(0.8, 5, N - 4)
    assert f"A share of {share:.1%} repeats would have been seen with 80% probability." in said["reason"]


def test_sets_of_unlike_size_are_refused() -> None:
    with pytest.raises(ValueError, match="as many images"):
        find_repeats(images_of(crowd(1)), images_of(crowd(2, N - 1)), 0.05)


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

"""Confounders of images small enough to do by hand; models whose coefficients are known."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest

from latentprint.tasks.evidence.confounders import confounders, correlations, fit_score_model, pixel_statistics
from latentprint.tasks.evidence.statistics import Array, resampled_counts


def linear(n: int, seed: int, noise: float = 1.0) -> tuple[Array, dict[str, Array]]:
    """score = 7 + 3 a - 2 b + noise, a and b independent with sd 1 and 5."""
    generator = np.random.default_rng(seed)
    measured = {"a": generator.normal(10, 1, n), "b": generator.normal(-4, 5, n)}
    return 7 + 3 * measured["a"] - 2 * measured["b"] + generator.normal(0, noise, n), measured


def test_pixel_statistics_of_a_chessboard() -> None:
    board = np.array([[[0, 255], [255, 0]], [[255, 255], [255, 255]]], dtype=np.uint8)
    found = pixel_statistics(board)
    assert found["brightness"] == pytest.approx([0.0, 1.0], abs=1e-6)
    assert found["contrast"] == pytest.approx([1.0, 0.0])
    assert found["total_variation"] == pytest.approx([2.0, 0.0])
    assert found["compressed_size"][0] == len(zlib.compress(bytes([0, 255, 255, 0]), 9))


def test_colour_images_differ_within_their_channels_only() -> None:
    image = np.zeros((1, 2, 3, 3), dtype=np.uint8)
    image[..., 1] = 255  # every pixel pure green: no variation in space, although the channels differ
    assert pixel_statistics(image)["total_variation"].tolist() == [0.0]
    image[0, 0, 0] = 255  # two of the pixel's three channels now differ from its two neighbours: 8 of 7 * 3 * 2
    assert pixel_statistics(image)["total_variation"] == pytest.approx([8 / 21])


def test_noise_compresses_worse_than_a_plain_image() -> None:
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (1, 28, 28), dtype=np.uint8)
    sizes = pixel_statistics(np.concatenate([noise, np.full_like(noise, 80)]))["compressed_size"]
    assert sizes[0] > 28 * 28 > 20 * sizes[1]


def test_distances_are_to_other_training_images_in_pixels_of_minus_one_to_one() -> None:
    training = np.array([[[0, 0]], [[255, 0]], [[255, 255]]], dtype=np.uint8)
    held_out = np.array([[[0, 51]]], dtype=np.uint8)
    found = confounders(np.concatenate([training, held_out]), training)
    assert found["nearest_distance"] == pytest.approx([2.0, 2.0, 2.0, 0.4])
    assert found["local_density"][:3] == pytest.approx([1 + 2**0.5, 2.0, 1 + 2**0.5])


def test_correlations_have_the_sign_and_n_of_each_confounder() -> None:
    score, measured = linear(200, seed=0)
    score[0] = np.nan
    found = correlations(score, measured, seed=0)
    assert found["a"].value is not None
    assert found["b"].value is not None
    assert found["b"].interval_95 is not None
    assert found["a"].value > 0 > found["b"].interval_95[1]
    assert (found["b"].n, found["b"].n_excluded) == (199, 1)


def test_model_finds_the_coefficients_it_was_made_with() -> None:
    score, measured = linear(4_000, seed=1)
    model = fit_score_model(score, measured, seed=0)
    sd = np.sqrt(9 + 100 + 1)
    assert model.coefficients["a"].value == pytest.approx(3 / sd, abs=0.01)
    assert model.coefficients["b"].value == pytest.approx(-10 / sd, abs=0.01)
    assert model.r_squared == pytest.approx(109 / 110, abs=1e-3)
    assert model.condition_number == pytest.approx(1.0, abs=0.05)


def test_one_confounder_explains_the_square_of_its_correlation() -> None:
    score, measured = linear(100, seed=2)
    model = fit_score_model(score, {"b": measured["b"]}, seed=0)
    r = np.corrcoef(score, measured["b"])[0, 1]
    assert model.coefficients["b"].value == pytest.approx(r)
    assert model.r_squared == pytest.approx(r**2)
    assert model.r_squared_adjusted == pytest.approx(1 - (1 - r**2) * 99 / 98)


def test_adjusted_r_squared_of_noise_is_nothing() -> None:
    generator = np.random.default_rng(3)
    found = [
        fit_score_model(generator.normal(size=60), {str(j): generator.normal(size=60) for j in range(5)}, seed=0)
        for _ in range(30)
    ]
    assert np.mean([model.r_squared for model in found]) == pytest.approx(5 / 59, abs=0.03)
    assert np.mean([model.r_squared_adjusted for model in found]) == pytest.approx(0.0, abs=0.03)


def test_coefficient_intervals_are_those_of_resamples_drawn_out() -> None:
    score, measured = linear(60, seed=4, noise=6.0)
    groups = np.arange(60) // 2
    model = fit_score_model(score, measured, seed=5, groups=groups)
    columns = np.column_stack(list(measured.values()))
    x = np.column_stack([np.ones(60), (columns - columns.mean(0)) / columns.std(0)])
    y = (score - score.mean()) / score.std()
    rows = [np.repeat(np.arange(60), c.astype(int)) for c in np.concatenate(list(resampled_counts(60, 5, groups)))]
    fits = np.array([np.linalg.lstsq(x[r], y[r], rcond=None)[0] for r in rows])
    for j, name in enumerate(measured):
        expected = np.percentile(fits[:, j + 1], [2.5, 97.5])
        assert model.coefficients[name].interval_95 == pytest.approx(tuple(expected))


def test_score_is_its_adjusted_score_and_the_contributions() -> None:
    score, measured = linear(100, seed=6)
    model = fit_score_model(score, measured, seed=0)
    adjusted = model.adjust(score, measured)
    contributions = model.contributions(measured)
    assert adjusted + contributions["a"] + contributions["b"] == pytest.approx(score)
    assert adjusted.mean() == pytest.approx(score.mean())
    assert [np.corrcoef(adjusted, values)[0, 1] for values in measured.values()] == pytest.approx([0.0, 0.0], abs=1e-9)
    one = {name: values[:1] for name, values in measured.items()}
    assert model.contributions(one)["a"] == pytest.approx(contributions["a"][:1])


def test_adjusting_by_the_controls_uncovers_what_confounders_hid() -> None:
    generator = np.random.default_rng(7)
    plainness = generator.normal(size=400)
    is_memorized = np.arange(400) >= 200
    plainness[is_memorized] -= 1.0  # memorized images are distinctive, which lowers the score by 2, and known: + 1
    score = 2 * plainness + is_memorized + generator.normal(0, 0.3, 400)
    model = fit_score_model(score[~is_memorized], {"plainness": plainness[~is_memorized]}, seed=0)
    adjusted = model.adjust(score, {"plainness": plainness})
    assert score[is_memorized].mean() < score[~is_memorized].mean()
    assert adjusted[is_memorized].mean() - adjusted[~is_memorized].mean() == pytest.approx(1.0, abs=0.1)


@pytest.mark.filterwarnings("error")
def test_what_does_not_vary_has_no_coefficient() -> None:
    score, measured = linear(100, seed=8)
    measured = {**measured, "copies": np.ones(100)}
    measured["a"][3] = np.inf
    model = fit_score_model(score, measured, seed=0)
    assert list(model.coefficients) == ["a", "b"]
    assert (model.constant, model.n, model.n_excluded) == (("copies",), 99, 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("n", "is_constant", "reason"),
    [(29, False, "29 images: at least 30"), (0, False, "no confounder varies"), (40, True, "all scores are equal")],
)
def test_no_model_without_enough_to_fit(n: int, is_constant: bool, reason: str) -> None:
    score, measured = linear(n, seed=9)
    model = fit_score_model(np.ones(n) if is_constant else score, measured, seed=0)
    assert model.status == "not computable"
    assert reason in model.reason
    with pytest.raises(ValueError, match="no model"):
        model.adjust(score, measured)


def test_model_is_json() -> None:
    score, measured = linear(100, seed=10)
    result = json.loads(json.dumps(fit_score_model(score, measured, seed=0).as_dict(), allow_nan=False))
    assert len(result["coefficients"]["a"]["interval_95"]) == 2
    assert result["n"] == 100


def test_the_model_is_least_squares_written_out() -> None:
    generator = np.random.default_rng(5)
    x = generator.normal(2.0, 3.0, (50, 3))
    y = 1.0 + x @ np.array([0.5, -1.0, 0.0]) + generator.normal(size=50)
    measured = {"a": np.append(x[:, 0], np.nan), "b": np.append(x[:, 1], 1.0), "c": np.append(x[:, 2], 1.0)}
    found = fit_score_model(np.append(y, 0.0), {**measured, "same": np.ones(51)}, seed=0)
    z, t = (x - x.mean(axis=0)) / x.std(axis=0), (y - y.mean()) / y.std()
    values = np.linalg.inv(z.T @ z) @ z.T @ t
    assert [b.value for b in found.coefficients.values()] == pytest.approx(values)
    assert [(b.mean, b.sd) for b in found.coefficients.values()] == [
        pytest.approx(pair) for pair in zip(x.mean(axis=0), x.std(axis=0), strict=True)
    ]
    r_squared = 1 - ((t - z @ values) ** 2).sum() / (t**2).sum()
    assert found.r_squared == pytest.approx(r_squared)
    assert found.r_squared_adjusted == pytest.approx(1 - (1 - r_squared) * 49 / 46)
    singular = np.linalg.svd(z, compute_uv=False)
    assert found.condition_number == pytest.approx(singular[0] / singular[-1])
    assert (found.score_mean, found.score_sd) == pytest.approx((y.mean(), y.std()))
    assert (found.n, found.n_excluded, found.constant) == (50, 1, ("same",))
    expected = y - (z * values * y.std()).sum(axis=1)
    assert found.adjust(y, {name: v[:50] for name, v in measured.items()}) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "n_confounders", "fits"), [(20, 1, True), (19, 1, False), (30, 2, True), (29, 2, False)])
def test_ten_images_for_each_coefficient_are_the_fewest(n: int, n_confounders: int, fits: bool) -> None:
    generator = np.random.default_rng(0)
    measured = {f"x{i}": generator.normal(size=n) for i in range(n_confounders)}
    found = fit_score_model(generator.normal(size=n), measured, seed=0)
    assert found.status == ("ok" if fits else "not computable")
    if not fits:
        word = f"{n} images: at least {n + 1} are needed for {n_confounders} confounders"
        assert found.reason == word


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (1, 1), (1, 5)])
def test_statistics_of_pixels_are_those_written_out(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = {name: values[0] for name, values in pixel_statistics(image[None]).items()}
    pixels = image / 127.5 - 1
    differences = [*np.abs(pixels[1:] - pixels[:-1]).ravel(), *np.abs(pixels[:, 1:] - pixels[:, :-1]).ravel()]
    assert found["brightness"] == pytest.approx(pixels.mean(), abs=1e-6)
    assert found["contrast"] == pytest.approx(pixels.std(), abs=1e-6)
    assert found["total_variation"] == pytest.approx(np.mean(differences) if differences else 0.0, abs=1e-6)
    assert found["compressed_size"] == len(zlib.compress(image.tobytes(), 9))

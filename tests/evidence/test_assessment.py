"""Whole runs that a hostile reader made: what must not count, does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from latentprint.tasks.evidence import assessment, comparison, refits, statistics
from latentprint.tasks.evidence.assessment import ImageScores, assess, flag_trained
from latentprint.tasks.evidence.auc import auc_interval
from latentprint.tasks.evidence.blind import blind_baseline
from latentprint.tasks.evidence.calibration import TooFewImages
from tests.studies.coverage import run


@pytest.fixture(autouse=True)
def few_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refits, "N_PERMUTATIONS", 79)


def grouped_null(seed: int, n_train: int = 200, n_groups: int = 30, size: int = 33) -> ImageScores:
    """Held-out images in near-duplicate groups that score nearly the same; nothing was trained on."""
    generator = np.random.default_rng(seed)
    controls = np.repeat(generator.normal(size=n_groups), size) + 0.05 * generator.normal(size=n_groups * size)
    is_train = np.arange(n_train + len(controls)) < n_train
    return ImageScores(
        is_train=is_train,
        is_control=~is_train,
        copies=np.ones(len(is_train), dtype=np.int64),
        scores={"log_growth": np.concatenate([generator.normal(size=n_train), controls])},
        groups=np.concatenate([np.arange(n_train), n_train + np.repeat(np.arange(n_groups), size)]),
    )


def test_held_out_near_duplicates_are_one_control() -> None:
    """Taken for 990 controls, 30 groups flagged something in half of the runs in which there was nothing."""
    flags = [flag_trained(grouped_null(seed)) for seed in range(40)]
    assert {one.n_controls for one in flags} == {30}
    assert sum(one.n_flagged > 0 for one in flags) <= 6  # 1 in 1,000 of binomial (40, 0.05)


def test_flags_rest_on_controls_that_were_scored_as_the_images_were() -> None:
    images, _ = run(64, np.random.default_rng(0))
    assert images.calibration is not None
    n = len(images.is_train)
    far = ImageScores(
        is_train=np.append(images.is_train, np.zeros(500, dtype=bool)),
        is_control=np.append(images.is_control, np.ones(500, dtype=bool)),
        copies=np.ones(n + 500, dtype=np.int64),
        scores={name: np.append(values, np.full(500, -99.0)) for name, values in images.scores.items()},
        groups=np.arange(n + 500),
        names=np.array([f"image {i}" for i in range(n + 500)], dtype=object),
        calibration=images.calibration,
    )
    found, alone = flag_trained(far), flag_trained(images)
    assert found.n_controls == alone.n_controls == 64
    assert found.p_values.tolist() == alone.p_values.tolist()


def test_a_void_comparison_flags_nobody_and_keeps_its_p_values() -> None:
    images, _ = run(64, np.random.default_rng(1), effect=6.0)
    flags = flag_trained(images, "Pixels alone tell them apart.")
    assert flag_trained(images).n_flagged > 30
    assert (flags.status, flags.n_flagged, flags.flagged.any()) == ("void", 0, False)
    assert np.isfinite(flags.p_values).all()


def test_tied_training_losses_tell_nothing_whatever_the_order_of_the_rows() -> None:
    """Ranks by order of the rows gave an AUC of 1 or 0."""
    images, _ = run(64, np.random.default_rng(2))
    assert images.calibration is not None
    constant = {t: np.ones_like(loss) for t, loss in images.calibration.losses.items()}
    tied = replace(images, calibration=replace(images.calibration, losses=constant))
    assert assess(tied, None)["controls"]["positive"]["auc"] is None
    few = {t: np.round(3 * np.random.default_rng(3).random(128)) for t in constant}
    levels = replace(images, calibration=replace(images.calibration, losses=few))
    found = assess(levels, None)["controls"]["positive"]["auc"]
    assert found["interval_95"][0] < 0.5 < found["interval_95"][1]


def test_held_out_sources_that_differ_void_the_comparison() -> None:
    images, pixels = run(128, np.random.default_rng(4), effect=2.5)
    source = np.where(images.is_train, np.nan, np.arange(256) % 2)
    same = assess(replace(images, source=source), None, pixels)
    assert same["verdict"]["membership"]["level"] == "shown"
    (pair,) = same["controls"]["holdouts"]
    assert (pair["first"], pair["second"], pair["n"]) == (0, 1, [64, 64])
    shifted = images.scores["fused"] + 6.0 * (source == 1)
    scores = {**images.scores, "fused": shifted}
    found = assess(replace(images, source=source, scores=scores), None, pixels)["verdict"]["membership"]
    assert (found["level"], found["is_void"]) == ("inconclusive", True)


def test_folds_that_cannot_be_fitted_are_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> np.ndarray:
        raise TooFewImages("19 trained and 40 held-out images: 20 each are needed")

    images, pixels = run(64, np.random.default_rng(5), effect=3.0)
    monkeypatch.setattr(assessment, "refolded", fails)
    found = assess(images, None, pixels)["verdict"]["membership"]
    assert found["stability"]["levels"] == {"inconclusive": 10}
    assert found["level"] == "inconclusive"


def test_textures_that_components_do_not_hold_are_seen_by_the_blind_baseline() -> None:
    """Stripes across against stripes down, of random phase and width: equal in brightness, contrast and size."""
    generator = np.random.default_rng(6)
    phase, width = generator.random((2, 200))
    waves = np.sin(2 * np.pi * (np.arange(16) * (0.08 + 0.2 * width[:, None]) + phase[:, None]))
    stripes = np.repeat(waves[:, :, None], 16, axis=2) + generator.normal(size=(200, 16, 16))
    pictures = np.clip(128 + 30 * stripes, 0, 255).astype(np.uint8)
    mixed = np.where((generator.random(200) < 0.5)[:, None, None], pictures, pictures.transpose(0, 2, 1))
    found = blind_baseline(pictures[:100], mixed[100:])
    assert found.detects_shift
    assert not blind_baseline(mixed[:100], mixed[100:]).detects_shift


def test_a_training_loss_that_separates_is_not_called_not_shown() -> None:
    images, pixels = run(64, np.random.default_rng(0))
    assert images.calibration is not None
    losses = {t: loss * np.where(images.is_train, 0.5, 1.0) for t, loss in images.calibration.losses.items()}
    evidence = assess(replace(images, calibration=replace(images.calibration, losses=losses)), None, pixels)
    assert evidence["controls"]["positive"]["auc"]["interval_95"][0] > 0.9
    assert evidence["verdict"]["membership"]["level"] == "inconclusive"
    assert evidence["conformal"]["status"] == "ok"


def test_growth_at_the_best_of_eight_timesteps_holds_chance_as_often_as_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken for a score that was fixed beforehand, its interval left out 0.5 in 9 to 16% of nulls."""
    monkeypatch.setattr(comparison, "N_PERMUTATIONS", 9)
    monkeypatch.setattr(statistics, "N_RESAMPLES", 9)
    is_train, misses = np.arange(128) < 64, 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        growth = 0.5 * generator.normal(size=128) + generator.normal(size=(8, 128))
        best = max(growth, key=lambda values: auc_interval(values[is_train], values[~is_train]).value)
        images = ImageScores(
            is_train=is_train,
            is_control=~is_train,
            copies=np.ones(128, dtype=np.int64),
            scores={"log_growth": best},
        )
        side = assessment._compare_all(images, is_train, ~is_train, "none", 1.0, 0, 8)["log_growth"].auc
        assert side is not None
        misses += not side.low <= 0.5 <= side.high
    assert misses <= 12  # 1 in 1,000 of binomial (100, 0.05)


def test_the_evidence_counts_the_timesteps_that_growth_was_the_best_of() -> None:
    images, _ = run(64, np.random.default_rng(0))
    assert images.calibration is not None
    alone = dict(list(images.calibration.by_timestep.items())[:1])
    widths = []
    for calibration in (images.calibration, replace(images.calibration, by_timestep=alone)):
        found = assess(replace(images, calibration=calibration), None)["comparisons"]["train_vs_holdout"]["log_growth"]
        low, high = found["auc"]["interval_95"]
        widths.append(high - low)
    assert widths[0] > 1.2 * widths[1]
    assert "best of 8" in assess(images, None)["comparisons"]["train_vs_holdout"]["log_growth"]["auc"]["method"]

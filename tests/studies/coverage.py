"""Does every interval cover as often as it says, and is every level kept? A table of nominal against achieved.

    python -m tests.studies.coverage > tests/studies/results/coverage.json       # half an hour of one core
    python -m tests.studies.coverage --runs 50 --only "answer"                   # a part, roughly

Each row draws data whose truth is known, many times, and counts. An interval must hold the truth in at least 95% of the
runs, a false alarm come in at most its level; a row that misses by more than chance (once in 1,000 studies) is a fault:
exit code 1. The answers are made of whole runs: scores at eight timesteps, real pixels (scikit-learn's digits), the
fits, the blind baseline and every rule of the verdict. A table on standard error, JSON on standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats
from scipy.special import expit
from sklearn.datasets import load_digits

from latentprint.tasks.evidence import refits
from latentprint.tasks.evidence.assessment import flag_trained
from latentprint.tasks.evidence.auc import auc_difference, auc_interval
from latentprint.tasks.evidence.blind import blind_baseline
from latentprint.tasks.evidence.calibration import crossfit
from latentprint.tasks.evidence.comparison import true_positive_rate
from latentprint.tasks.evidence.confounders import pixel_statistics
from latentprint.tasks.evidence.grounds import judge_membership
from latentprint.tasks.evidence.images import ImageScores, Pixels
from latentprint.tasks.evidence.refits import CalibrationImages, refit_test
from latentprint.tasks.evidence.statistics import Array, binomial_interval, median_difference_interval, spearman
from tests.studies.coverage_reproduction import coverage_reproduction, holds

CERTAINTY = 0.999
N_PERMUTATIONS = 79
"""Of each test of an answer: the fewest with which membership can be shown (p = 1/80, doubled by Holm)."""
TIMESTEPS = (0, 5, 10, 20, 50, 100, 200, 400)
N_FOLDS = 5
Images = NDArray[np.uint8]
Draw = Callable[[np.random.Generator], bool]


@dataclass(frozen=True)
class Claim:
    """One row: an event, and how often it may come."""

    what: str
    n: str
    nominal: float
    """Least share of the runs for an interval's coverage, largest for a false alarm."""
    draw: Draw
    is_coverage: bool = True
    runs: int = 1_000

    def check(self, runs: int | None) -> dict[str, Any]:
        """Count the event."""
        n_runs = min(self.runs, runs or self.runs)
        k = sum(self.draw(np.random.default_rng([7, seed])) for seed in range(n_runs))
        misses, level = (n_runs - k, 1.0 - self.nominal) if self.is_coverage else (k, self.nominal)
        return {
            "what": self.what,
            "n": self.n,
            "nominal": self.nominal,
            "achieved": k / n_runs,
            "runs": n_runs,
            "holds": misses <= stats.binom.ppf(CERTAINTY, n_runs, level),
        }


@cache
def digits() -> Images:
    """Distinct 8 x 8 pictures."""
    bunch: Any = load_digits()
    return np.unique((bunch.images * (255 / 16)).round().astype(np.uint8), axis=0)


def scores_of(kind: str, area: float, m: int, n: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Positives and negatives whose AUC is exactly this."""
    if kind == "normal":
        return generator.normal(np.sqrt(2) * stats.norm.ppf(area), 1, m), generator.normal(0, 1, n)
    if kind == "wide":  # positives of three times the spread
        return generator.normal(np.sqrt(10) * stats.norm.ppf(area), 3, m), generator.normal(0, 1, n)
    if kind == "skewed":  # a difference of two Gumbel variables is logistic
        return generator.gumbel(np.log(area / (1 - area)), 1, m), generator.gumbel(0, 1, n)
    return generator.normal(0, 1, m) + 20 * (generator.random(m) < 2 * area - 1), generator.normal(0, 1, n)


def covers_auc(kind: str, area: float, m: int, n: int, generator: np.random.Generator) -> bool:
    found = auc_interval(*scores_of(kind, area, m, n, generator))
    return found.low <= area <= found.high


def covers_grouped_auc(area: float, n: int, generator: np.random.Generator) -> bool:
    """Each original with one to four near duplicates that score nearly the same."""
    sides, labels = [], []
    for side, values in enumerate(scores_of("normal", area, n, n, generator)):
        sizes = generator.integers(1, 6, n)
        sides.append(np.repeat(values, sizes) + 1e-3 * generator.normal(size=sizes.sum()))
        labels.append(np.repeat(np.arange(n), sizes) + side * n)
    found = auc_interval(sides[0], sides[1], (labels[0], labels[1]))
    return found.low <= area <= found.high


def covers_difference(areas: tuple[float, float], n: int, generator: np.random.Generator) -> bool:
    """Two scores that share half of their noise."""
    shared, pairs = generator.normal(size=2 * n), []
    for area in areas:
        score = np.sqrt(0.5) * (shared + generator.normal(size=2 * n))
        score[:n] += np.sqrt(2) * stats.norm.ppf(area)
        pairs.append((score[:n], score[n:]))
    found = auc_difference(*pairs)
    return found.low <= areas[1] - areas[0] <= found.high


def covers_tpr(fpr: float, shift: float, m: int, n: int, generator: np.random.Generator) -> bool:
    truth = stats.norm.sf(stats.norm.isf(fpr) - shift)
    found = true_positive_rate(generator.normal(shift, 1, m), generator.normal(0, 1, n), fpr).interval_95
    return found is not None and found[0] <= truth <= found[1]


def covers_median(n: int, generator: np.random.Generator) -> bool:
    found = median_difference_interval(generator.gumbel(1, 1, n), generator.gumbel(0, 1, n), 0)
    return found.low <= 1.0 <= found.high


def covers_rate(rate: float, n: int, generator: np.random.Generator) -> bool:
    low, high = binomial_interval(int(generator.binomial(n, rate)), n)
    return low <= rate <= high


def covers_spearman(n: int, generator: np.random.Generator) -> bool:
    """Of bivariate normal scores, rho_s = 6 / pi asin(rho / 2)."""
    x = generator.normal(size=n)
    y = 0.6 * x + 0.8 * generator.normal(size=n)
    found = spearman(x, y, 0).interval_95
    return found is not None and found[0] <= 6 / np.pi * np.arcsin(0.3) <= found[1]


def blind_covers_chance(n: int, generator: np.random.Generator) -> bool:
    images = digits()[generator.permutation(len(digits()))[: 2 * n]]
    area = blind_baseline(images[:n], images[n:]).auc
    return area is not None and area.low <= 0.5 <= area.high


def run(
    n: int,
    generator: np.random.Generator,
    effect: float = 0.0,
    n_planted: int | None = None,
    selection: float = 0.0,
    plain: float = 0.5,
) -> tuple[ImageScores, Pixels]:
    """A whole run on real pictures of which none was trained on, but for what ``effect`` says.

    Args:
        effect: how much higher trained images score, in standard deviations of the images' own spread.
        n_planted: only so many of them; None: all.
        selection: how strongly it was plain pictures (small when compressed) that became training images.
        plain: how much the scores follow the plainness of a picture; from 0 to 1.
    """
    pool = digits() if 2 * n <= len(digits()) else generator.integers(0, 256, (2 * n, 4, 4)).astype(np.uint8)
    size = stats.zscore(pixel_statistics(pool)["compressed_size"])
    size += 1e-6 * generator.normal(size=len(size))
    order = np.argsort(size * selection + generator.gumbel(size=len(pool)))
    rest = generator.permutation(order[n:])[:n]
    chosen = np.concatenate([order[:n], rest])
    is_train = np.arange(2 * n) < n
    shifted = is_train & (np.arange(2 * n) < (n if n_planted is None else n_planted))
    latent = -plain * size[chosen] + np.sqrt(1 - plain**2) * generator.gumbel(size=2 * n) + effect * shifted
    noise = partial(generator.normal, size=2 * n)
    by_timestep = {
        t: {
            "log_growth": latent + noise(),
            "eps_norm": np.exp(-0.1 * (latent + noise())),
            "sima": np.exp(-0.4 * (latent + noise())),
            "tangent_norm": np.exp(0.1 * (latent + 2 * noise())),
            "tangent_cosine": 0.1 * noise(),
            "neighbour_eps_norm": np.exp(-0.1 * (latent + noise())),
            "crowding": latent + 2 * noise(),
            "eps_low_share": expit(latent + noise()),
        }
        for t in TIMESTEPS
    }
    folds = np.empty(2 * n, dtype=np.int64)
    for side in (is_train, ~is_train):
        folds[side] = generator.permutation(n) % N_FOLDS
    names = np.array([f"image {i}" for i in range(2 * n)], dtype=object)
    calibration = CalibrationImages(
        sample_ids=names,
        content_hashes=names,
        is_train=is_train,
        folds=folds,
        groups=np.arange(2 * n),
        copies=np.ones(2 * n, dtype=np.int64),
        by_timestep=by_timestep,
        losses={t: np.exp(-0.1 * (latent + noise())) for t in (50, 100, 200, 400)},
    )
    fitted = crossfit(by_timestep, is_train, folds)
    here = by_timestep[fitted.calibration.timestep]
    images = ImageScores(
        is_train=is_train,
        is_control=~is_train,
        copies=np.ones(2 * n, dtype=np.int64),
        scores={"log_growth": here["log_growth"], "eps_norm": here["eps_norm"], "fused": fitted.fused},
        groups=np.arange(2 * n),
        names=names,
        calibration=calibration,
    )
    return images, Pixels(np.arange(2 * n), pool[chosen], pool[chosen[:n]])


def is_shown(n: int, generator: np.random.Generator, **options: Any) -> bool:
    images, pixels = run(n, generator, **options)
    return bool(answer_of(images, pixels)["level"] == "shown")


def answer_of(images: ImageScores, pixels: Pixels) -> dict[str, Any]:
    """``verdict.membership``."""
    assert images.calibration is not None
    is_train = images.is_train[pixels.positions]
    blind = blind_baseline(pixels.images[is_train], pixels.images[~is_train])
    return judge_membership(images, pixels, blind, refit_test(images.calibration)).as_dict()


def is_swapped_and_decided(n: int, effect: float, generator: np.random.Generator) -> bool:
    """Training images declared held out, and the other way round: is there an answer all the same?"""
    images, pixels = run(n, generator, effect)
    assert images.calibration is not None
    is_train = ~images.is_train
    calibration = replace(images.calibration, is_train=is_train)
    fused = crossfit(calibration.by_timestep, is_train, calibration.folds).fused
    swapped = replace(
        images,
        is_train=is_train,
        is_control=~is_train,
        scores={**images.scores, "fused": fused},
        calibration=calibration,
    )
    return bool(answer_of(swapped, pixels)["level"] != "inconclusive")


def false_flags(n: int, generator: np.random.Generator) -> bool:
    """Any flag where nothing was trained on."""
    images, _ = run(n, generator)
    return bool(flag_trained(images).n_flagged)


def false_share(n: int, n_planted: int, generator: np.random.Generator) -> float:
    """Share of the flagged images that were not trained on; those planted score far higher."""
    images, _ = run(n, generator, effect=6.0, n_planted=n_planted)
    flagged = np.flatnonzero(flag_trained(images).flagged)
    return float((flagged >= n_planted).mean()) if len(flagged) else 0.0


def false_discoveries(n: int, n_planted: int, runs: int) -> dict[str, Any]:
    """The rate is a mean of shares: held against alpha by its standard error."""
    shares = [false_share(n, n_planted, np.random.default_rng([7, seed])) for seed in range(runs)]
    mean, error = float(np.mean(shares)), float(np.std(shares) / np.sqrt(runs))
    return {
        "what": f"false-discovery rate of flags, {n_planted} of the training images planted",
        "n": f"{n} + {n}",
        "nominal": 0.05,
        "achieved": mean,
        "runs": runs,
        "holds": mean <= 0.05 + stats.norm.ppf(CERTAINTY) * error,
    }


def claims() -> Iterator[Claim]:
    """All rows that count an event."""
    for m, n in ((30, 30), (64, 64), (128, 128), (30, 300), (1_000, 1_000)):
        for kind in ("normal", "wide", "skewed", "mixed"):
            for area in (0.5, 0.65, 0.9, 0.99):
                draw = partial(covers_auc, kind, area, m, n)
                yield Claim(f"AUC {area}, {kind} scores", f"{m} + {n}", 0.95, draw)
    for area in (0.5, 0.8):
        yield Claim(f"AUC {area}, near duplicates", "64 + 64 groups", 0.95, partial(covers_grouped_auc, area, 64))
    for areas in ((0.5, 0.5), (0.6, 0.8), (0.9, 0.99)):
        for n in (64, 256):
            draw = partial(covers_difference, areas, n)
            yield Claim(f"paired difference of AUC, {areas[0]} and {areas[1]}", f"{n} + {n}", 0.95, draw)
    for fpr, m, n in ((0.01, 100, 500), (0.01, 1_000, 1_000), (0.001, 1_000, 5_000)):
        for shift in (1.0, 3.0):
            draw = partial(covers_tpr, fpr, shift, m, n)
            yield Claim(f"true-positive rate at {fpr:.1%}, shift {shift}", f"{m} + {n}", 0.95, draw)
    for n in (30, 128):
        yield Claim("difference of medians", f"{n} + {n}", 0.95, partial(covers_median, n), runs=400)
        yield Claim("Spearman 0.58", str(n), 0.95, partial(covers_spearman, n), runs=400)
    for rate, n in ((0.001, 512), (0.02, 512), (0.6, 512)):
        yield Claim(f"share of copies {rate}", str(n), 0.95, partial(covers_rate, rate, n))
    for n in (30, 64, 128):
        yield Claim("blind baseline holds 0.5 in nulls", f"{n} + {n}", 0.95, partial(blind_covers_chance, n), runs=200)
    for n, runs in ((30, 100), (64, 100), (128, 100), (1_000, 4)):
        yield Claim("answer: shown, nothing trained on", f"{n} + {n}", 0.025, partial(is_shown, n), False, runs)
    for selection in (0.25, 0.5, 1.0):
        draw = partial(is_shown, 250, selection=selection, plain=0.9)
        yield Claim(f"answer: shown, plain pictures selected ({selection})", "250 + 250", 0.025, draw, False, 30)
    yield Claim(
        "answer: swapped splits decided", "128 + 128", 0.025, partial(is_swapped_and_decided, 128, 2.0), False, 100
    )
    for n in (30, 128):
        yield Claim("any flag, nothing trained on", f"{n} + {n}", 0.05, partial(false_flags, n), False, 300)


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The table of README.md."""
    lines = ["| what | n | nominal | achieved | runs | holds |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for row in rows:
        holds_ = "yes" if row["holds"] else "**no**"
        figures = f"{row['nominal']:.3f} | {row['achieved']:.3f} | {row['runs']:,}"
        lines.append(f"| {row['what']} | {row['n']} | {figures} | {holds_} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, help="at most so many of each row")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--table", type=Path, help="print the Markdown table of an earlier study's JSON instead")
    arguments = parser.parse_args()
    if arguments.table:
        print(as_markdown(json.loads(arguments.table.read_text(encoding="utf-8"))))
        return
    refits.N_PERMUTATIONS = N_PERMUTATIONS
    rows = []
    for claim in claims():
        if arguments.only in claim.what:
            rows.append(claim.check(arguments.runs))
            print(*rows[-1].values(), file=sys.stderr, flush=True)
    rows += [
        {**row, "n": str(row["n"]), "holds": holds(row)}
        for row in coverage_reproduction()
        if arguments.only in str(row["what"])
    ]
    if arguments.only in "false-discovery rate of flags":
        rows += [false_discoveries(128, k, min(100, arguments.runs or 100)) for k in (10, 64)]
    table = Table("what", "n", "nominal", "achieved", "runs", "holds")
    for row in rows:
        table.add_row(
            row["what"], row["n"], f"{row['nominal']:.3f}", f"{row['achieved']:.3f}", *map(str, list(row.values())[4:])
        )
    Console(file=sys.stderr, width=140).print(table)
    print(json.dumps(rows, indent=2, default=bool))
    raise SystemExit(0 if all(row["holds"] for row in rows) else 1)


if __name__ == "__main__":
    main()

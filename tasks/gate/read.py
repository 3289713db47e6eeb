"""What the gate reads: measurements out of ``evidence.json`` and the identity of a run.

Membership is measured as ``verdict.membership`` says: by its score, and not at all where its comparison is void. Copies
are measured as ``verdict.reproduction`` says: by the believed rule, and only if this run generated images. What the
training record counted (``generated``) is not a measurement of this run.

Evidence may lack anything and hold anything; whatever is not as it should be becomes a measurement with a reason.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import pyarrow.compute as pc
import pyarrow.parquet as pq

from latentprint.tasks.errors import UserError, first_line
from latentprint.tasks.evidence.calibration import EARLIER_FEATURES
from latentprint.tasks.evidence.membership import MINIMUM_GROUPS as MINIMUM_CONTROLS
from latentprint.tasks.evidence.reproduction import CONTROLS, Counts, excess
from latentprint.tasks.evidence.statistics import binomial_interval
from latentprint.tasks.gate.bounds import Measurement, largest
from latentprint.tasks.gate.decide import Case
from latentprint.tasks.pages.formats import number, percent
from latentprint.tasks.pages.headline import MEMBERSHIP_LABELS, REPRODUCTION_LABELS, membership_score
from latentprint.tasks.store.files import digest, read_json
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.seal import UNREADABLE, read_evidence, require_same_record, require_unchanged

LOGARITHMS = ("log_probability", "log_probability_low", "log_probability_high")
MOST_ODDS = 1_000_000
LEAST_EXCESS = -1e9
"""(share - f) / (1 - f) is negative where fewer copies are counted than false ones expected."""
RULES_OF_COPIES = ("ratio", "adaptive")
DIRECTED_SCORES = ("log_growth", "eps_norm")
"""Whose direction is known without a fit."""
BESIDE_SAMPLING = ("samples", "seed", "samples_per_tar")
"""Extraction parameters that the share of copies does not depend on."""


class GateError(UserError):
    """An input of the gate that cannot be read; the message names it and the remedy."""


def read_case(run: RunDirectory, min_controls: int = MINIMUM_CONTROLS) -> Case:
    """A run as the gate sees it, if it is as its stages wrote it.

    Raises:
        RunError: not a run directory, or one without evidence, or not what was written.
        GateError: odds.parquet or the manifest is not Parquet, or has other columns.
    """
    record, evidence = run.read_record(), read_evidence(run)
    require_unchanged(run, run.evidence.name, run.odds.name, run.manifest.name)
    require_same_record(run, record, evidence)
    run_id = str(record.get("run_id") or "unknown")
    measured = measurements({**evidence, "odds": _odds_rows(run.odds)}, min_controls)
    if not record.get("run_id") or evidence.get("run_id") != record["run_id"]:
        reason = "evidence.json belongs to another run than run.json: run 'latentprint report' again"
        measured = {name: Measurement(reason=reason) for name in measured}
    scored = record.get("scoring")
    checkpoint = scored.get("checkpoint_sha256") if isinstance(scored, dict) else None
    known = checkpoint if isinstance(checkpoint, str) else ""
    return Case(run_id, measured, identity(run, record, evidence), known)


def measurements(evidence: Mapping[str, Any], min_controls: int = MINIMUM_CONTROLS) -> dict[str, Measurement]:
    """Every quantity that a limit can be put on, by name.

    Args:
        evidence: ``evidence.json``, and as ``odds`` the rows of ``odds.parquet``.
    """
    unusable = _why_unusable(evidence, min_controls)
    return {
        "auc": Measurement(reason=f"AUC: {unusable}") if unusable else _auc(evidence),
        "flag_rate": _flag_rate(_section(evidence, "conformal"), min_controls, unusable),
        "memorized_share": _memorized_share(evidence),
        "odds": _odds(evidence.get("odds")),
    }


def identity(run: RunDirectory, record: Mapping[str, Any], evidence: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must share to be compared; None where this run does not tell."""
    sampling = dict(_section(record, "extraction", "parameters"))
    counted = _section(evidence, "reproductions")
    rule = _section(counted, str(counted.get("believed")))
    return {
        "scoring parameters": _section(record, "scoring").get("parameters") or None,
        "checkpoint family": _family(record.get("model")),
        "held-out images": _holdout_digest(run.manifest),
        "membership score": _section(evidence, "verdict", "membership").get("score"),
        "calibration": calibration_identity(evidence),
        "sampling parameters": {key: sampling[key] for key in sampling if key not in BESIDE_SAMPLING} or None,
        "rule of copies": [rule["rule"], rule.get("threshold"), counted.get("embedding")] if "rule" in rule else None,
    }


def calibration_identity(evidence: Mapping[str, Any]) -> Any:
    """The timesteps that calibration chose, over all and in each fold, and the features that it weighed; "none" where
    nothing was calibrated."""
    if "calibration" not in evidence:
        return None
    found = _section(evidence, "calibration")
    folds = found.get("folds") if isinstance(found.get("folds"), list) else []
    chosen = [found.get("timestep"), [fold.get("timestep") for fold in folds or () if isinstance(fold, Mapping)]]
    features = list(found.get("features") or EARLIER_FEATURES)
    return [*chosen, _section(found, "second").get("timestep"), features] if found else "none"


def _why_unusable(evidence: Mapping[str, Any], min_controls: int) -> str:
    """Why nothing may rest on trained against held out; empty: it may."""
    membership, blind = _section(evidence, "verdict", "membership"), _section(evidence, "blind_baseline")
    why = str(membership.get("reason") or "no reason is given")
    level = str(membership.get("level"))
    if level not in MEMBERSHIP_LABELS:
        return "the evidence holds no answer on membership: run 'latentprint report' again"
    if membership.get("is_void") is not False:
        return f"void: {why}"
    if level == "inconclusive":
        return why
    if blind.get("void") is True:
        return "void: pixels alone tell trained from held-out images (blind baseline), other controls are needed"
    if blind.get("void") is not False or blind.get("status", "ok") != "ok":
        told = blind.get("reason") or "not measured"
        return f"no blind baseline tells whether the two sets are comparable ({told})"
    for name, what in (("n_train", "training images"), ("n_holdout", "held-out images")):
        if problem := _too_few(membership.get(name), min_controls, f"{what} (near duplicates as one)"):
            return problem
    bounds = _section(_membership_comparison(evidence), "auc").get("interval_95")
    if isinstance(bounds, list | tuple) and len(bounds) == 2 and _is_proportion(bounds[1]) and bounds[1] < 0.5:
        return "the interval of the AUC lies below 0.5: the splits are exchanged, or were prepared differently"
    return ""


def _membership_comparison(evidence: Mapping[str, Any]) -> Mapping[str, Any]:
    """Trained against held out by the score that the verdict rests on."""
    return _section(evidence, "comparisons", "train_vs_holdout", membership_score(evidence))


def _auc(evidence: Mapping[str, Any]) -> Measurement:
    comparison, membership = _membership_comparison(evidence), _section(evidence, "verdict", "membership")
    if comparison.get("status") != "ok":
        return Measurement(reason=f"AUC: {comparison.get('reason') or 'not measured in this run'}")
    n = min(membership["n_train"], membership["n_holdout"])
    area = _with_interval(_section(comparison, "auc"), n, "value")
    return area if area.problem() else replace(area, rival=_stronger(evidence, area))


def _stronger(evidence: Mapping[str, Any], area: Measurement) -> Measurement | None:
    """A score of known direction that surely separates the images better: no pass may rest on the weaker one."""
    by_score = _section(evidence, "comparisons", "train_vs_holdout")
    found = {
        **{f"AUC of {name}": _section(by_score, name, "auc") for name in DIRECTED_SCORES},
        "AUC of the training loss": _section(evidence, "controls", "positive", "auc"),
    }
    areas = [replace(_with_interval(auc, None, "value"), method=title) for title, auc in found.items()]
    best = max((one for one in areas if not one.problem()), key=lambda one: one.bounds[1], default=None)
    return best if best is not None and best.bounds[1] > area.bounds[2] else None


def _flag_rate(flags: Mapping[str, Any], min_controls: int, unusable: str) -> Measurement:
    """Flagged of tested images, exact binomial interval.

    The flags come all or none (``Flags.fewest_flags``): no flags may still mean one less than the fewest that these
    controls could have shown, and the upper bound says so.
    """
    if flags.get("status") != "ok":
        return Measurement(reason=f"flag rate: {flags.get('reason') or 'not measured in this run'}")
    if problem := unusable or _too_few(flags.get("n_controls"), min_controls, "controls"):
        return Measurement(reason=f"flag rate: {problem}")
    k, n, fewest = (flags.get(key) for key in ("n_flagged", "n_images", "fewest_flags"))
    if not (_is_count(k) and _is_count(n) and _is_count(fewest) and k <= n > 0):
        return Measurement(reason="flag rate: a count is missing or impossible")
    low, high = binomial_interval(k, n)
    method = "Clopper-Pearson, images as independent draws"
    unseen = min(1.0, (fewest - 1) / n)
    if k < fewest and unseen > high:
        high, method = unseen, f"{method}; these controls flag {number(fewest)} images or none"
    return Measurement(k / n, low, high, n, method, k=k)


def _memorized_share(evidence: Mapping[str, Any]) -> Measurement:
    """Of the generated images, those that copy a training image by the believed rule; the other rule is its rival."""
    answer, found = _section(evidence, "verdict", "reproduction"), _section(evidence, "reproductions")
    level, rule = str(answer.get("level")), answer.get("rule")
    if level not in REPRODUCTION_LABELS:
        return Measurement(reason="copies: the evidence holds no answer: run 'latentprint report' again")
    if level == "not_asked" or not found:
        return Measurement(reason="copies: this run generated no images to match (latentprint extract)")
    if rule not in RULES_OF_COPIES or rule != found.get("believed"):
        return Measurement(reason=f"copies: {answer.get('reason') or 'no rule is believed'}")
    n, k = answer.get("n_samples"), answer.get("n_copies")
    if problem := _too_few(n, 1, "generated images"):
        return Measurement(reason=f"copies: {problem}")
    if not (_is_count(n) and _is_count(k) and k <= n):
        return Measurement(reason="copies: a count is missing or impossible")
    share = _with_interval(answer, n, "share")
    if share.reason:
        return share
    exact = all(
        math.isclose(a, b, abs_tol=1e-9) for a, b in zip(share.bounds[1:], binomial_interval(k, n), strict=True)
    )
    (other,) = (name for name in RULES_OF_COPIES if name != rule)
    no_fail = _why_not_counted(_section(found, rule))
    if level != "counted":
        no_fail = no_fail or "copies are not counted: the share is not above the rule's false-copy rate"
    excess = _excess_alone(_section(found, rule))
    if not excess.problem() and k:  # a failure takes more true copies than the limit, not more of what the rule finds
        exact, share = False, replace(share, low=min(share.bounds[1], max(0.0, excess.bounds[1])))
    return replace(
        share,
        method=f"{rule} rule, {share.method}" if share.method else f"{rule} rule",
        k=k if exact else None,
        no_fail=no_fail,
        rival=_excess(_section(found, other), other, n),
    )


def _why_not_counted(rule: Mapping[str, Any]) -> str:
    """Why the share may be false copies alone; empty: it is above their rate."""
    false, excess = _section(rule, "false_copies", "pooled"), _excess_alone(rule)
    if not false or excess.problem():
        return "the rule's false-copy rate was not measured"
    if excess.bounds[1] <= 0.0:
        return f"the share cannot be told from the rule's false-copy rate ({percent(false.get('share'))})"
    return ""


def _excess_alone(rule: Mapping[str, Any]) -> Measurement:
    return _with_interval(_section(rule, "excess"), None, "value", least=LEAST_EXCESS)


def _excess(rule: Mapping[str, Any], name: str, n: int) -> Measurement:
    """(share - f) / (1 - f), f the false-copy rate; where that was not measured, the share, which is never less.

    The kinds of controls differ in their rates: real images may lie nearer to each other than generated ones. Of all
    kinds, and all together, it is the excess with the highest lower bound: this is held against a pass.
    """
    share, false = _with_interval(rule, None, "share"), _section(rule, "false_copies")
    excesses = [_excess_alone(rule), *(_excess_over(rule, n, _section(false, kind)) for kind in CONTROLS)]
    best = max((one for one in excesses if not one.problem()), key=lambda one: one.bounds[1], default=None)
    if best is not None:
        return replace(best, method=f"the {name} rule's copies above its false ones")
    return replace(share, method=f"the {name} rule's copies, false ones among them")


def _excess_over(rule: Mapping[str, Any], n: int, control: Mapping[str, Any]) -> Measurement:
    """Above the false-copy rate of one kind of controls, of n generated images."""
    (k_false, n_false), k = (control.get(key) for key in ("k", "n")), rule.get("n_copies")
    if not (_is_count(k) and k <= n and _is_count(k_false) and _is_count(n_false) and k_false <= n_false > 0):
        return Measurement(reason="no such controls")
    return _with_interval(excess(Counts(k, n), Counts(k_false, n_false)) or {}, None, "value", least=LEAST_EXCESS)


def _odds(images: Any) -> Measurement:
    """The worst of the images: the largest estimate and the largest of either bound, each image's own 95%.

    An image that never arrived has no estimate and no lower bound (null, which is 0 here), but an upper bound it must
    have.
    """
    if not isinstance(images, list) or not images:
        return Measurement(reason="odds: not estimated in this run (latentprint odds)")
    ranks = [image.get("rank") for image in images if isinstance(image, Mapping)]
    if 1 not in ranks:
        return Measurement(reason="odds: of chosen images, without the highest ranked one; run odds without --images")
    each = [[image.get(name) for name in LOGARITHMS] for image in images if isinstance(image, Mapping)]
    if len(each) < len(images) or any(high is None for *_, high in each):
        return Measurement(reason="odds: an upper bound is missing")
    if not all(logarithm is None or _is_real(logarithm) for row in each for logarithm in row):
        return Measurement(reason="odds: a number is not finite")
    probabilities = [[_probability(logarithm) for logarithm in row] for row in each]
    parts = [Measurement(value, low, high) for value, low, high in probabilities]
    if problem := next(filter(None, (part.problem() for part in parts)), ""):
        return Measurement(reason=f"odds: {problem}")
    return largest(parts, f"largest bounds of {number(len(each))} images, each at 95%")


def _probability(logarithm: float | None) -> float:
    return 0.0 if logarithm is None else math.exp(min(0.0, logarithm))


def _with_interval(content: Mapping[str, Any], n: int | None, key: str, least: float = 0.0) -> Measurement:
    """``key`` and ``interval_95``, all between ``least`` and 1."""
    bounds = content.get("interval_95")
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        return Measurement(reason="no interval")
    value, low, high = content.get(key), bounds[0], bounds[1]
    if not all(_is_proportion(bound, least) for bound in (value, low, high)):
        return Measurement(reason="a number is missing, not finite or no proportion")
    return Measurement(float(value or 0.0), float(low), float(high), n, str(content.get("method", "")))


def _too_few(n: Any, fewest: int, what: str) -> str:
    if not _is_count(n):
        return f"the number of {what} is missing"
    return f"{number(n)} {what}, at least {number(fewest)} are needed" if n < fewest else ""


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_real(value: Any) -> TypeGuard[float]:
    return isinstance(value, float) and math.isfinite(value)


def _is_proportion(value: Any, least: float = 0.0) -> TypeGuard[float]:
    """NaN is none: it is not between ``least`` and 1."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= 1.0


def _section(content: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """A nested mapping; empty if it is not there or something else."""
    found: Any = content
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _odds_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with _parquet(path, "odds"):
        if pq.read_metadata(path).num_rows > MOST_ODDS:
            raise GateError(f"{path}: more than {MOST_ODDS:,} rows: run 'latentprint odds' again")
        return pq.read_table(path, columns=["rank", *LOGARITHMS]).to_pylist()


@contextmanager
def _parquet(path: Path, command: str) -> Iterator[None]:
    """Within, what is wrong with a table becomes one line.

    Raises:
        GateError: it is no Parquet, or has other columns.
    """
    try:
        yield
    except UNREADABLE as error:
        raise GateError(
            f"{path}: cannot be read ({first_line(error)}): run the same 'latentprint {command}' again"
        ) from error


def _family(model: Any) -> str | None:
    """Digest of the network's and the scheduler's configuration, without what differs from one save to the next."""
    configs: dict[str, Any] = {}
    for part in ("unet/config.json", "scheduler/scheduler_config.json"):
        try:
            config = read_json(Path(str(model)) / part)
        except (OSError, ValueError):
            return None
        configs[part] = {key: value for key, value in config.items() if key == "_class_name" or key[:1] != "_"}
    return digest(configs)


def _holdout_digest(manifest: Path) -> str | None:
    """128-bit BLAKE2b over the distinct contents that were held out, in order of their hashes; None without any."""
    if not manifest.exists():
        return None
    with _parquet(manifest, "audit"):
        table = pq.read_table(manifest, columns=["content_hash"], filters=pc.field("split") == "holdout")
        contents = sorted(set(map(str, table["content_hash"].to_pylist())))
    return hashlib.blake2b("\0".join(contents).encode(), digest_size=16).hexdigest() if contents else None

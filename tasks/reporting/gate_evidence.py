"""What the gate reads: measurements out of ``evidence.json``, the identity of a run, waivers out of TOML.

Evidence may lack anything and hold anything; whatever is not as it should be becomes a measurement with a reason.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeGuard

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.evidence.assessment import MINIMUM_CONTROLS
from tasks.evidence.statistics import binomial_interval
from tasks.reporting.formats import number
from tasks.reporting.gate import Case, Measurement, Waiver
from tasks.store.files import digest, read_json
from tasks.store.run import RunDirectory, RunError

ODDS = "odds.parquet"


class GateError(Exception):
    """An input of the gate that cannot be read; the message names it and the remedy."""


def read_case(run: RunDirectory, min_controls: int = MINIMUM_CONTROLS) -> Case:
    """A run as the gate sees it.

    Raises:
        RunError: not a run directory, or one without evidence.
        GateError: run.json or evidence.json is not JSON, or odds.parquet not Parquet.
    """
    record = _json_object(run.record) if run.record.exists() else run.read_record()
    if not run.evidence.exists():
        raise RunError(f"{run.path}: no evidence.json; make it with 'latentprint report --run {run.path}'")
    evidence = _json_object(run.evidence)
    run_id = str(record.get("run_id") or "unknown")
    measured = measurements({**evidence, "odds": _odds_rows(run.path / ODDS)}, min_controls)
    if not record.get("run_id") or evidence.get("run_id") != record["run_id"]:
        reason = "evidence.json belongs to another run than run.json: run 'latentprint report' again"
        measured = {name: Measurement(reason=reason) for name in measured}
    return Case(run_id, measured, identity(run, record))


def measurements(evidence: Mapping[str, Any], min_controls: int = MINIMUM_CONTROLS) -> dict[str, Measurement]:
    """Every quantity that a limit can be put on, by name.

    Args:
        evidence: ``evidence.json``, and as ``odds`` the rows of ``odds.parquet``.
    """
    return {
        "auc": _auc(evidence, min_controls),
        "flag_rate": _flag_rate(_section(evidence, "conformal"), min_controls),
        "memorized_share": _memorized_share(_section(evidence, "reproductions")),
        "odds": _odds(evidence.get("odds")),
    }


def identity(run: RunDirectory, record: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must share to be compared; None where this run does not tell."""
    return {
        "scoring parameters": _section(record, "scoring").get("parameters") or None,
        "checkpoint family": _family(record.get("model")),
        "held-out images": _holdout_digest(run.manifest),
    }


def read_waivers(path: Path) -> list[Waiver]:
    """The ``[[waiver]]`` tables of a TOML file: rule, reason, owner (texts) and expires (a date).

    Raises:
        GateError: there is no such file, it is not TOML, or ``waiver`` is not a list of tables.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise GateError(f"{path}: waivers cannot be read ({error})") from error
    entries = content.pop("waiver", [])
    if content or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise GateError(f"{path}: nothing but [[waiver]] tables is expected, each with rule, reason, owner, expires")
    return [_waiver(entry) for entry in entries]


def _auc(evidence: Mapping[str, Any], min_controls: int) -> Measurement:
    comparison = _section(evidence, "comparisons", "train_vs_holdout", "log_growth")
    if comparison.get("status") != "ok":
        return Measurement(reason=f"AUC: {comparison.get('reason') or 'not measured in this run'}")
    blind = _section(evidence, "blind_baseline")
    if blind.get("void") is not False:
        return Measurement(reason=f"AUC: {_why_void(blind)}")
    sizes = [comparison.get("n_positive"), comparison.get("n_negative")]
    for n, what in zip(sizes, ("training images", "controls"), strict=True):
        if problem := _too_few(n, min_controls, what):
            return Measurement(reason=f"AUC: {problem}")
    return _with_interval(_section(comparison, "auc"), min(filter(_is_count, sizes)), "value")


def _why_void(blind: Mapping[str, Any]) -> str:
    if blind.get("void") is True:
        return "void, pixels alone tell trained from held-out images (blind baseline): other controls are needed"
    return f"no blind baseline tells whether the two sets are comparable ({blind.get('reason') or 'not measured'})"


def _flag_rate(flags: Mapping[str, Any], min_controls: int) -> Measurement:
    """Flagged of tested images, exact binomial interval.

    The flags come all or none (``Flags.fewest_flags``): no flags may still mean one less than the fewest that these
    controls could have shown, and the upper bound says so.
    """
    if flags.get("status") != "ok":
        return Measurement(reason=f"flag rate: {flags.get('reason') or 'not measured in this run'}")
    if problem := _too_few(flags.get("n_controls"), min_controls, "controls"):
        return Measurement(reason=f"flag rate: {problem}")
    k, n, fewest = (flags.get(key) for key in ("n_flagged", "n_images", "fewest_flags"))
    if not (_is_count(k) and _is_count(n) and _is_count(fewest) and k <= n > 0):
        return Measurement(reason="flag rate: a count is missing or impossible")
    low, high = binomial_interval(k, n)
    method = "Clopper-Pearson, images as independent draws"
    unseen = min(1.0, (fewest - 1) / n)
    if k < fewest and unseen > high:
        high, method = unseen, f"{method}; these controls flag {number(fewest)} images or none"
    return Measurement(k / n, low, high, n, method)


def _memorized_share(found: Mapping[str, Any]) -> Measurement:
    """Of the generated images, those that reproduce a training image by the ratio rule."""
    if not found:
        return Measurement(reason="memorized share: no generated images were matched in this run (latentprint extract)")
    n = found.get("n_samples")
    if problem := _too_few(n, 1, "generated images"):
        return Measurement(reason=f"memorized share: {problem}")
    return _with_interval(_section(found, "ratio"), n, "share")


def _odds(images: Any) -> Measurement:
    """The worst of the images: the largest estimate and the largest of either bound, each image's own 95%.

    An image that never arrived has no estimate and no lower bound (null, which is 0 here), but an upper bound it must
    have.
    """
    if not isinstance(images, list) or not images:
        return Measurement(reason="odds: not estimated in this run (latentprint odds)")
    names = ("log_probability", "log_probability_low", "log_probability_high")
    each = [[image.get(name) for name in names] for image in images if isinstance(image, Mapping)]
    if len(each) < len(images) or any(high is None for *_, high in each):
        return Measurement(reason="odds: an upper bound is missing")
    if not all(logarithm is None or _is_real(logarithm) for row in each for logarithm in row):
        return Measurement(reason="odds: a number is not finite")
    value, low, high = (max(map(_probability, column)) for column in zip(*each, strict=True))
    return Measurement(value, low, high, len(each), f"largest bounds of {number(len(each))} images, each at 95%")


def _probability(logarithm: float | None) -> float:
    return 0.0 if logarithm is None else math.exp(min(0.0, logarithm))


def _with_interval(content: Mapping[str, Any], n: int | None, key: str) -> Measurement:
    """``key`` and ``interval_95``, all proportions."""
    bounds = content.get("interval_95")
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        return Measurement(reason="no interval")
    value, low, high = content.get(key), bounds[0], bounds[1]
    if not (_is_proportion(value) and _is_proportion(low) and _is_proportion(high)):
        return Measurement(reason="a number is missing, not finite or no proportion")
    return Measurement(float(value), float(low), float(high), n, str(content.get("method", "")))


def _too_few(n: Any, fewest: int, what: str) -> str:
    if not _is_count(n):
        return f"the number of {what} is missing"
    return f"{number(n)} {what}, at least {number(fewest)} are needed" if n < fewest else ""


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_real(value: Any) -> TypeGuard[float]:
    return isinstance(value, float) and math.isfinite(value)


def _is_proportion(value: Any) -> TypeGuard[float]:
    """NaN is none: it is not between 0 and 1."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0


def _section(content: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """A nested mapping; empty if it is not there or something else."""
    found: Any = content
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _json_object(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise GateError(f"{path}: cannot be read as JSON ({error}): run 'latentprint report' again") from error


def _odds_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        return pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise GateError(f"{path}: cannot be read as Parquet ({error}): run 'latentprint odds' again") from error


def _family(model: Any) -> str | None:
    """Digest of the network's and the scheduler's configuration, without what differs from one save to the next."""
    configs = {}
    for part in ("unet/config.json", "scheduler/scheduler_config.json"):
        try:
            config = json.loads((Path(str(model)) / part).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(config, dict):
            return None
        configs[part] = {key: value for key, value in config.items() if key == "_class_name" or key[:1] != "_"}
    return digest(configs)


def _holdout_digest(manifest: Path) -> str | None:
    """128-bit BLAKE2b over the distinct contents that were held out, in order of their hashes; None without any."""
    if not manifest.exists():
        return None
    table = pq.read_table(manifest, columns=["content_hash"], filters=pc.field("split") == "holdout")
    contents = sorted(set(map(str, table["content_hash"].to_pylist())))
    return hashlib.blake2b("\0".join(contents).encode(), digest_size=16).hexdigest() if contents else None


def _waiver(entry: Mapping[str, Any]) -> Waiver:
    texts = {name: entry.get(name, "") for name in ("rule", "reason", "owner")}
    expires = entry.get("expires")
    wrong = [name for name, text in texts.items() if not isinstance(text, str)]
    if expires is not None and (not isinstance(expires, date) or isinstance(expires, datetime)):
        wrong.append("expires (a date is needed: 2027-01-31, without quotes)")
    wrong += [f"{name} (unknown)" for name in entry if name not in (*texts, "expires")]
    return Waiver(
        **{name: str(text).strip() for name, text in texts.items()},
        expires=None if wrong else expires,
        problem=f"not usable: {', '.join(wrong)}" if wrong else "",
    )

"""What the nightly flow decides beside the audit: which run is tonight's, what it is held against, what is said of it.

Runs are named by their time in UTC, as those of ``serve`` are. All else in the folder of runs is left alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latentprint.tasks.compare.read import compare
from latentprint.tasks.compute.task import task
from latentprint.tasks.curate import propose
from latentprint.tasks.diffusion.layout import Resolved
from latentprint.tasks.gate.decide import GateVerdict, Limits
from latentprint.tasks.gate.judge import gate
from latentprint.tasks.gate.policy import Policy, read_policy
from latentprint.tasks.gate.read import GateError
from latentprint.tasks.gate.waivers import read_waivers
from latentprint.tasks.gate.write import lines, markdown
from latentprint.tasks.pages.formats import code_span, markdown_text
from latentprint.tasks.parameters import CurateParameters, ExtractParameters, ScoreParameters, ShardParameters
from latentprint.tasks.score.classes import planned
from latentprint.tasks.shard import made_from
from latentprint.tasks.store.files import read_json, write_json
from latentprint.tasks.store.reuse import is_scored_whole, readable_runs
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.store.seal import seal

NAME, NAMES = "%Y-%m-%dT%H%M%SZ", "????-??-??T??????Z"
"""Of a night's run, and the pattern of it."""
PROPOSED = CurateParameters(action="quarantine")
"""The flagged images, put apart: it loses none."""


@dataclass(frozen=True)
class Inputs:
    """What tonight's run is to be made from."""

    data: dict[str, Any]
    scoring: dict[str, Any]
    extraction: ExtractParameters | None

    def made(self, record: Mapping[str, Any]) -> bool:
        """Was the run of this ``run.json`` made from the same?"""
        return all(record.get(stage) == wanted for stage, wanted in self._claims(record).items())

    def began(self, record: Mapping[str, Any]) -> bool:
        """Is it a run that could become the same?"""
        return all(record.get(stage) in (None, wanted) for stage, wanted in self._claims(record).items())

    def _claims(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """As ``run.json`` has them; ``--mirror auto`` may have become ``on`` there."""
        claims: dict[str, Any] = {"data": self.data, "scoring": self.scoring, "extraction": None}
        if self.extraction is not None:
            known = (record.get("extraction") or {}).get("parameters") or {}
            is_auto = self.extraction.mirror == "auto"
            decided = self.extraction.decided(known.get("mirror") == "on" if is_auto else self.extraction.is_mirrored)
            checkpoint = {"checkpoint_sha256": self.scoring["checkpoint_sha256"]}
            claims["extraction"] = {**checkpoint, "parameters": decided.model_dump(mode="json")}
        return claims


@dataclass(frozen=True)
class Night:
    """Tonight's run, and the finished ones before it, the newest first."""

    run: Path
    earlier: tuple[Path, ...]
    is_unchanged: bool = False
    """Nothing is new since that run, which is finished."""

    @property
    def last(self) -> Path | None:
        """The run to compare with."""
        return next(iter(self.earlier), None)

    @property
    def passed(self) -> Path | None:
        """The newest earlier run that the gate let pass: an increase is held against it, never against a failure."""
        return next((run for run in self.earlier if outcome_of(run) == "pass"), None)

    @property
    def before(self) -> str | None:
        """The outcome of the last verdict, which tonight's may change."""
        return next(filter(None, map(outcome_of, (self.run, *self.earlier))), None)


def asked(policy: Path, waivers: Path | None) -> Policy:
    """The limits of a TOML file, read before any work.

    Raises:
        GateError: a file cannot be read, or there is no limit on the run itself.
    """
    found = read_policy(policy, Limits())
    if not found.limits.absolute():
        raise GateError(f"{policy}: the first night has no earlier run: add a limit on the run itself, max-auc = 0.6")
    if waivers is not None:
        read_waivers(waivers)
    return found


def inputs_of(
    model: Resolved,
    sources: Mapping[str, str],
    scoring: ScoreParameters,
    sharding: ShardParameters,
    extraction: ExtractParameters | None,
    runs: Path,
) -> tuple[Inputs, ScoreParameters]:
    """What tonight's run is to be made from, and its parameters with the classes of the labels.

    Raises:
        LabelError, SourceError: as :func:`latentprint.tasks.score.classes.planned`.
    """
    scoring = planned(model, scoring, sources, RunDirectory(runs / "tonight"))
    claimed = {"checkpoint_sha256": model.sha256(), "parameters": scoring.model_dump(mode="json")}
    return Inputs(made_from(sources, sharding), claimed, extraction), scoring


def tonight(runs: Path, inputs: Inputs, *, skip_unchanged: bool) -> Night:
    """An interrupted run of the same inputs goes on; else there is a new one, unless nothing is new and that is asked.

    Args:
        skip_unchanged: stay with the newest finished run where it was made from the same inputs.
    """
    known = list(readable_runs(runs, NAMES))
    finished = [(path, record) for path, record in known if _is_finished(record)]
    earlier = tuple(path for path, _ in finished)
    if known and not _is_finished(known[0][1]) and inputs.began(known[0][1]):
        return Night(known[0][0], earlier)
    if skip_unchanged and finished and inputs.made(finished[0][1]):
        return Night(earlier[0], earlier[1:], is_unchanged=True)
    return Night(runs / f"{datetime.now(UTC):{NAME}}", earlier)


def _is_finished(record: Mapping[str, Any]) -> bool:
    return bool(record.get("reported_on")) and is_scored_whole(record, record.get("scoring") or {})


def outcome_of(run: Path) -> str | None:
    """Of the verdict that the gate left; None if there is none.

    Raises:
        RunError: it is damaged.
    """
    return _read(RunDirectory(run).verdict).get("outcome")


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_json(file) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: damaged ({error}): delete it") from error


@task(name="gate")
def judged(night: Night, policy: Policy, waivers: Path | None) -> tuple[GateVerdict, dict[str, Any]]:
    """The gate's verdict, and what is said of it. Limits on an increase need an earlier run that has passed.

    Raises:
        GateError, RunError: as :func:`latentprint.tasks.gate.judge.gate`.
    """
    limits, increases = policy.limits, [f"max_{quantity}_increase" for quantity in policy.limits.increases()]
    baseline, before = night.passed if increases else None, night.before
    if baseline is None:
        limits = limits.model_copy(update=dict.fromkeys(increases))
    verdict = gate(night.run, limits, baseline, waivers, policy_sha256=policy.sha256)
    return verdict, {
        "outcome": verdict.outcome,
        "before": before,
        "exit_code": verdict.exit_code,
        "sentence": verdict.sentence,
        "rules": [" ".join(line.split()) for line in lines(verdict)[1:]],
        "baseline": str(baseline) if baseline else None,
        "not_asked": [] if baseline else [name.replace("_", "-") for name in increases],
    }


@task(name="compare-and-propose")
def compared(night: Night) -> dict[str, Any]:
    """What changed since the last run, ``changes``, and what curate would do, ``proposal``; None: nothing.

    Where nothing is new, it is what was said when the run was made.

    Raises:
        RunError: a run is not what was written.
    """
    if night.is_unchanged and (known := _read(RunDirectory(night.run).hygiene)):
        return {name: known[name] for name in ("changes", "proposal")}
    changes = compare(night.last, night.run) if night.last else None
    proposal = propose(night.run, PROPOSED)
    words = ["latentprint", "curate", "--run", str(night.run), "--out", f"{night.run}-cleaned"]
    proposal["command"] = shlex.join([*words, "--action", PROPOSED.action]) if proposal["fates"] else ""
    return {"changes": changes, "proposal": proposal}


def summarized(night: Night, gated: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``hygiene.json`` of the run; returns it."""
    directory = RunDirectory(night.run)
    record = directory.read_record()
    n_images = sum(split["distinct"] for split in record["images"].values())
    n_reused = n_images if night.is_unchanged else (record.get("reused") or {}).get("n_images", 0)
    summary = {
        "run": str(night.run),
        "is_unchanged": night.is_unchanged,
        "images": {"distinct": n_images, "reused": n_reused, "scored": n_images - n_reused},
        "gate": dict(gated),
        **found,
        "seal": seal(directory),
    }
    write_json(directory.hygiene, summary)
    return summary


def in_words(summary: Mapping[str, Any]) -> list[str]:
    """The verdict with the rules that do not pass, what was computed, what changed, and what is proposed."""
    gated, images = summary["gate"], summary["images"]
    rules = [rule.rstrip(".") for rule in gated["rules"] if not rule.startswith("pass ")]
    waiting = [f"not asked, since no earlier run has passed: {', '.join(gated['not_asked'])}"] * bool(
        gated["not_asked"]
    )
    told = ["; ".join([gated["sentence"], *rules, *waiting])]
    if summary["is_unchanged"]:
        return [*told, "nothing is new since then: nothing was computed"]
    told.append(f"{images['scored']:,} of {images['distinct']:,} images scored, {images['reused']:,} taken over")
    if changes := summary["changes"]:
        flags = changes["flags"]
        counts = f"{flags['new']:,} newly flagged, {flags['gone']:,} no longer" if flags else "flags do not count"
        told.append(f"since {Path(changes['before']).name}: {counts}")
    proposal = summary["proposal"]
    told.append(
        f"{proposal['n_images']:,} flagged: {proposal['command']}"
        if proposal["command"]
        else f"nothing to clean: {proposal['reason']}"
    )
    return told


def in_markdown(summary: Mapping[str, Any], verdict: GateVerdict) -> str:
    """The summary, and the table of the gate."""
    pages = [RunDirectory(Path(summary["run"])).report, *([summary["changes"]["report"]] if summary["changes"] else [])]
    points = [*(markdown_text(line) for line in in_words(summary)), *(code_span(str(page)) for page in pages)]
    return "\n".join([*(f"- {point}" for point in points), "", markdown(verdict)])

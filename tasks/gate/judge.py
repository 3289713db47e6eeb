"""``latentprint gate``: may this checkpoint pass? No Prefect server is needed: it reads one run and decides.

run.json, evidence.json (, a baseline's) + limits + waivers -> verdict.json, junit.xml, Markdown, exit code
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from latentprint.tasks.gate.decide import GateVerdict, Limits, decide
from latentprint.tasks.gate.read import GateError, read_case
from latentprint.tasks.gate.waivers import day_of, read_waivers
from latentprint.tasks.gate.write import junit_xml, markdown
from latentprint.tasks.store.files import atomic_open, write_json
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.seal import require_seal
from latentprint.tasks.store.seal import seal as seal_of

if TYPE_CHECKING:
    from latentprint.tasks.gate.rehearsal import Rehearsal


def judge(
    run: Path,
    limits: Limits,
    baseline: Path | None = None,
    waivers: Path | None = None,
    seal: str = "",
    baseline_seal: str = "",
    policy_sha256: str = "",
) -> GateVerdict:
    """Decide; nothing is written.

    Args:
        seal: that the run must have, as ``audit`` printed it; empty: any.
        baseline_seal: the same of the baseline.
        policy_sha256: of the file that the limits are from, for the record.

    Raises:
        GateError: no limit was asked for, an input cannot be read, or the clock is behind.
        RunError: not a run directory, one without evidence, not what was written, or another run than is expected.
    """
    directory, earlier = RunDirectory(run), RunDirectory(baseline) if baseline else None
    if baseline_seal and earlier is None:
        raise GateError("--baseline-seal goes with --baseline RUN")
    for side, expected in ((directory, seal), (earlier, baseline_seal)):
        if side and expected:
            require_seal(side, expected)
    case = read_case(directory, limits.min_controls)
    other = read_case(earlier, limits.min_controls) if earlier else None
    known = read_waivers(waivers) if waivers else []
    today = day_of(datetime.now(UTC).date(), filter(None, (directory, earlier)))
    try:
        verdict = decide(case, limits, today, other, known)
        return replace(verdict, seal=seal_of(directory), policy_sha256=policy_sha256)
    except ValueError as error:
        raise GateError(str(error)) from error


def gate(
    run: Path,
    limits: Limits,
    baseline: Path | None = None,
    waivers: Path | None = None,
    out: Path | None = None,
    junit: Path | None = None,
    summary: Path | None = None,
    seal: str = "",
    baseline_seal: str = "",
    policy_sha256: str = "",
) -> GateVerdict:
    """Decide, and write verdict.json and junit.xml (into the run directory, if nowhere else) and the Markdown summary.

    Args:
        seal: that the run must have, as ``audit`` printed it; empty: any.
        baseline_seal: the same of the baseline.
        policy_sha256: of the file that the limits are from, for the record.

    Raises:
        GateError: no limit was asked for, an input cannot be read or an output not be written, or the clock is behind.
        RunError: not a run directory, one without evidence, not what was written, or another run than is expected.
    """
    directory = RunDirectory(run)
    verdict = judge(run, limits, baseline, waivers, seal, baseline_seal, policy_sha256)
    try:
        write_json(out or directory.verdict, verdict.as_dict())
        with atomic_open(junit or directory.junit) as stream:
            stream.write(junit_xml(verdict))
        if summary:
            with atomic_open(summary) as stream:
                stream.write(markdown(verdict).encode())
    except OSError as error:
        raise GateError(f"{error.filename}: cannot be written ({error.strerror}): choose another --out") from error
    return verdict


def rehearse(limits: Limits) -> Iterator[tuple[Rehearsal, GateVerdict]]:
    """Made-up runs whose outcome is known, sent through the same files and the same decision as real ones."""
    from latentprint.tasks.gate.rehearsal import REHEARSALS  # scikit-learn: for a self-test only

    for rehearsal in REHEARSALS:
        with TemporaryDirectory(prefix="latentprint-gate-") as folder:
            rehearsal.write(Path(folder) / "run")
            yield rehearsal, gate(Path(folder) / "run", rehearsal.limits(limits))

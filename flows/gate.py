"""``latentprint gate``: may this checkpoint pass? No Prefect server is needed: it reads one run and decides.

run.json, evidence.json (, a baseline's) + limits + waivers -> verdict.json, junit.xml, Markdown, exit code
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tasks.reporting.gate import GateVerdict, Limits, decide
from tasks.reporting.gate_evidence import GateError, read_case
from tasks.reporting.gate_formats import junit_xml, markdown
from tasks.reporting.gate_waivers import read_waivers
from tasks.store.files import atomic_open, write_json
from tasks.store.run import RunDirectory

if TYPE_CHECKING:
    from tasks.reporting.gate_rehearsal import Rehearsal


def gate(
    run: Path,
    limits: Limits,
    baseline: Path | None = None,
    waivers: Path | None = None,
    out: Path | None = None,
    junit: Path | None = None,
    summary: Path | None = None,
) -> GateVerdict:
    """Decide, and write verdict.json and junit.xml (into the run directory, if nowhere else) and the Markdown summary.

    Raises:
        GateError: no limit was asked for, or an input cannot be read or an output not be written.
        RunError: not a run directory, or one without evidence.
    """
    directory = RunDirectory(run)
    case = read_case(directory, limits.min_controls)
    other = read_case(RunDirectory(baseline), limits.min_controls) if baseline else None
    known = read_waivers(waivers) if waivers else []
    try:
        verdict = decide(case, limits, datetime.now(UTC).date(), other, known)
        write_json(out or directory.verdict, verdict.as_dict())
        with atomic_open(junit or directory.junit) as stream:
            stream.write(junit_xml(verdict))
        if summary:
            with atomic_open(summary) as stream:
                stream.write(markdown(verdict).encode())
    except ValueError as error:
        raise GateError(str(error)) from error
    except OSError as error:
        raise GateError(f"{error.filename}: cannot be written ({error.strerror}): choose another --out") from error
    return verdict


def rehearse(limits: Limits) -> Iterator[tuple[Rehearsal, GateVerdict]]:
    """Made-up runs whose outcome is known, sent through the same files and the same decision as real ones."""
    from tasks.reporting.gate_rehearsal import REHEARSALS  # scikit-learn: for a self-test only

    for rehearsal in REHEARSALS:
        with TemporaryDirectory(prefix="latentprint-gate-") as folder:
            rehearsal.write(Path(folder) / "run")
            yield rehearsal, gate(Path(folder) / "run", rehearsal.limits(limits))

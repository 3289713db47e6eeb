"""The gate's verdict, written down: JUnit XML for a CI server, Markdown for a pull request, lines for a shell."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from latentprint.tasks.gate.bounds import Measurement
from latentprint.tasks.gate.decide import Finding, GateVerdict, Waiver
from latentprint.tasks.pages.formats import ABSENT, code_span, markdown_text, number, visible

SUITE = "latentprint.gate"
_MARKS = {"pass": "✅ pass", "fail": "❌ fail", "inconclusive": "❓ inconclusive", "waived": "⚠️ waived"}


def junit_xml(verdict: GateVerdict) -> bytes:
    """One test case a rule: a failure is a ``failure``, inconclusive an ``error``, waived ``skipped``. UTF-8."""
    outcomes = [finding.outcome for finding in verdict.findings]
    counts = {
        "tests": len(outcomes),
        "failures": outcomes.count("fail"),
        "errors": outcomes.count("inconclusive"),
        "skipped": outcomes.count("waived"),
    }
    texts = {name: str(n) for name, n in counts.items()}
    suites = ET.Element("testsuites", texts)
    suite = ET.SubElement(suites, "testsuite", {"name": SUITE, **texts})
    properties = ET.SubElement(suite, "properties")
    known = {"run_id": verdict.run_id, "baseline_run_id": verdict.baseline_run_id, "decided_on": verdict.decided_on}
    for name, value in known.items():
        if value is not None:
            ET.SubElement(properties, "property", {"name": name, "value": visible(value)})
    for finding in verdict.findings:
        _test_case(suite, finding)
    if problems := _not_counting(verdict.waivers):
        ET.SubElement(suite, "system-out").text = "\n".join(problems)
    ET.indent(suites)
    return b'<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suites, encoding="unicode").encode() + b"\n"


def markdown(verdict: GateVerdict) -> str:
    """A table of the rules, and every waiver with what it is worth."""
    lines = [
        f"### latentprint gate: {markdown_text(verdict.sentence)}",
        "",
        f"Run {code_span(verdict.run_id)}, decided on {verdict.decided_on.isoformat()}. "
        f"{markdown_text(verdict.inference)}",
        "",
        "| rule | outcome | measured | limit | images | why |",
        "| --- | --- | ---: | ---: | ---: | --- |",
        *(_row(finding) for finding in verdict.findings),
    ]
    if verdict.waivers:
        lines += ["", "Waivers:", ""]
        lines += [f"- {markdown_text(_waiver_line(waiver))}" for waiver in verdict.waivers]
    return "\n".join(lines) + "\n"


def lines(verdict: GateVerdict) -> list[str]:
    """The verdict for a terminal, one rule a line."""
    rules = [
        f"  {finding.outcome:<12} --{finding.rule} {finding.limit:g}: {_why(finding)}" for finding in verdict.findings
    ]
    return [verdict.sentence, *rules, *(f"  waiver {line}" for line in _not_counting(verdict.waivers))]


def _test_case(suite: ET.Element, finding: Finding) -> None:
    case = ET.SubElement(suite, "testcase", {"classname": SUITE, "name": finding.rule, "time": "0"})
    message = {"message": visible(_why(finding), longest=1000)}
    text = f"{finding.title}: {_measured(finding.measurement)}, limit {number(finding.limit)}"
    if finding.outcome == "fail":
        ET.SubElement(case, "failure", message | {"type": "limit exceeded"}).text = text
    elif finding.outcome == "inconclusive":
        ET.SubElement(case, "error", message | {"type": "inconclusive"}).text = text
    elif finding.outcome == "waived":
        ET.SubElement(case, "skipped", message)


def _row(finding: Finding) -> str:
    n = number(finding.measurement.n)
    why = markdown_text(_why(finding))
    measured = _measured(finding.measurement)
    return f"| {finding.rule} | {_MARKS[finding.outcome]} | {measured} | {number(finding.limit)} | {n} | {why} |"


def _measured(measurement: Measurement) -> str:
    if measurement.problem():
        return ABSENT
    return f"{number(measurement.value)} ({number(measurement.low)} to {number(measurement.high)})"


def _why(finding: Finding) -> str:
    return finding.reason if finding.waiver is None else f"{finding.reason}; waived: {_waiver_line(finding.waiver)}"


def _not_counting(waivers: Sequence[Waiver]) -> list[str]:
    return [_waiver_line(waiver) for waiver in waivers if waiver.problem]


def _waiver_line(waiver: Waiver) -> str:
    worth = f"does not count ({waiver.problem})" if waiver.problem else "counts"
    until = waiver.expires.isoformat() if waiver.expires else "no day"
    ceiling = "no ceiling" if waiver.ceiling is None else number(waiver.ceiling)
    of = f"of {waiver.rule or 'no rule'} up to {ceiling} for checkpoint {waiver.checkpoint[:12] or 'none'}"
    return visible(f"{of} by {waiver.owner or 'nobody'} until {until}, {worth}: {waiver.reason}", 1000)

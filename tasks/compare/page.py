"""``compare.html``: what differs between two runs, whether their numbers may be compared, and what made the difference.

Of a quantity "changed" is said only where the 95% interval of its difference (MOVER) leaves out 0. A difference between
two runs of one checkpoint is never said to be one of the model: their inputs differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentprint.tasks.gate.bounds import Measurement, difference
from latentprint.tasks.gate.read import calibration_identity
from latentprint.tasks.pages.formats import number, setting
from latentprint.tasks.pages.gallery import Exhibit
from latentprint.tasks.pages.headline import KeyNumber, Verdict, answers, key_numbers
from latentprint.tasks.pages.page import place, render
from latentprint.tasks.pages.queries import Query, definition
from latentprint.tasks.pages.ranking import SortableTable, sortable_table
from latentprint.tasks.pages.redaction import names_of, redacted_record, without_names
from latentprint.tasks.pages.relations import percentile_shift
from latentprint.tasks.pages.tables import Column, TableView, flat
from latentprint.tasks.pages.thumbnails import Album, Pixels
from latentprint.tasks.warehouse.dictionary import describe_relation
from latentprint.tasks.warehouse.history import growth_parameters

MOST_ROWS, MOST_EXHIBITS = 500, 16
COLUMNS = {
    "sample_id": Column("image"),
    "percentile_change": Column("change", "percentage points", is_number=True),
    "previous_rank": Column("rank in A", is_number=True),
    "rank": Column("rank in B", is_number=True),
    "previous_log_growth": Column("log growth in A", "nats", is_number=True),
    "log_growth": Column("log growth in B", "nats", is_number=True),
    "growth_change": Column("change", "nats", is_number=True),
    "previous_copies": Column("copies in A", is_number=True),
    "copies": Column("copies in B", is_number=True),
}
TRAITS = {"is_new": "newly flagged", "is_gone": "no longer flagged"}


@dataclass(frozen=True)
class ComparedRun:
    """One of the two runs."""

    name: str
    record: Mapping[str, Any]
    """``run.json``."""
    evidence: Mapping[str, Any]
    """``evidence.json``."""
    identity: Mapping[str, Any]
    """What two runs must share to be compared: ``gate_evidence.identity``."""
    ranking: pa.Table
    flags: pa.Table
    pictures: Mapping[str, Pixels] = field(default_factory=dict)
    """sample_id -> pixels, of :func:`changed_flags`; those of the later run are shown."""


@dataclass(frozen=True)
class Pair:
    """A key number in both runs."""

    before: KeyNumber
    after: KeyNumber

    @property
    def difference(self) -> Measurement:
        """After less before, the two taken as independent."""
        return difference(_measured(self.after), _measured(self.before))

    @property
    def is_changed(self) -> bool:
        """The interval of the difference leaves out 0."""
        found = self.difference
        return not found.problem() and not found.bounds[1] <= 0.0 <= found.bounds[2]

    @property
    def change(self) -> str:
        """In words."""
        if self.before.label != self.after.label:
            return "Measured by another score in either run: not compared."
        found = self.difference
        if found.problem():
            return "Not measured in both."
        shown, low, high = (number(bound, 3) for bound in found.bounds)
        moved = "no change" if shown.strip("−") == "0.000" else shown if shown.startswith("−") else f"+{shown}"
        verb = "changed" if self.is_changed else "no change is shown"
        return f"{moved}, 95% interval of the difference {low} to {high}: {verb}."


def _measured(item: KeyNumber) -> Measurement:
    return Measurement(item.estimate, item.low, item.high)


def paired(before: ComparedRun, after: ComparedRun) -> dict[str, Pair]:
    """The key numbers of both runs by name; one that a run lacks is not measured there."""
    a, b = ({item.name: item for item in key_numbers(run.evidence)} for run in (before, after))
    lacking = {
        name: KeyNumber(name, item.label, "not measured", "", "This run does not have it.")
        for name, item in {**b, **a}.items()
    }
    return {name: Pair(a.get(name, lacking[name]), b.get(name, lacking[name])) for name in {**a, **b}}


@dataclass(frozen=True)
class ChangedFlags:
    """Images tested in both runs and flagged in one alone, most easily reproduced first: rows of ``rank_trend``."""

    new: list[dict[str, Any]]
    gone: list[dict[str, Any]]
    n_tested: int
    """Images tested in both."""


def changed_flags(trend: pa.Table) -> ChangedFlags:
    """Of the images that were tested in both runs, those whose flag came or went.

    Args:
        trend: the relation ``rank_trend`` of the two.
    """
    was, now = pc.field("was_flagged"), pc.field("is_flagged")
    tested = trend.filter(~(was.is_null() | now.is_null())).sort_by([("log_growth", "descending")])
    return ChangedFlags(tested.filter(now & ~was).to_pylist(), tested.filter(was & ~now).to_pylist(), tested.num_rows)


def render_comparison(before: ComparedRun, after: ComparedRun, trend: pa.Table, redact: bool = False) -> str:
    """The whole page as text, to be encoded in UTF-8.

    Args:
        redact: without pictures, names of images and files, and folders; images are called by their rank in B.
    """
    if redact:
        trend = without_names(trend, names_of(after.ranking))
        before, after = (
            replace(run, name=name, record=redacted_record(run.record), pictures={})
            for name, run in (("A", before), ("B", after))
        )
    warnings = incomparable(before, after)
    is_comparable = not parameter_differences(before, after)
    pairs = paired(before, after)
    flags = changed_flags(trend) if not void_flags(before, after) else ChangedFlags([], [], 0)
    found = {"A": answers(before.evidence), "B": answers(after.evidence)}
    counts = _counts(before, after, trend, flags)
    album = Album(after.pictures, {})
    previous, now = (trend[name].to_numpy().astype(np.float64) for name in ("previous_percentile", "percentile"))
    shift = percentile_shift(previous, now, ("A", "B"))
    return render(
        "compare.html.j2",
        runs={"A": _described(before), "B": _described(after)},
        answers=found,
        sentence=_sentence(before, after, pairs, flags),
        alone=_alone(counts["in A alone"], counts["in B alone"]),
        warnings=warnings,
        is_redacted=redact,
        pairs=list(pairs.values()),
        shift=shift,
        counts=counts,
        new=_exhibits(flags.new, album),
        gone=_exhibits(flags.gone, album),
        trend=_trend_table(trend, flags, is_comparable),
        differences=_differences(before, after),
        queries=[
            Query(name, describe_relation(name), f'latentprint sql --runs A --runs B "FROM {name}"', definition(name))
            for name in ("rank_trend", "ranking", "flagged", "group_auc", "generated_copies")
        ]
        + [
            Query("comparisons", "intervals and tests of each run.", "jq .comparisons RUN/evidence.json"),
            Query("verdict", "both answers of each run.", "jq .verdict RUN/evidence.json"),
            Query("run", "inputs, parameters, versions and hashes of each run.", "jq . RUN/run.json"),
        ],
    )


def parameter_differences(before: ComparedRun, after: ComparedRun) -> dict[str, tuple[str, str]]:
    """What growth depends on, where it differs: it does not compare then; a calibrated timestep stands for ``auto``."""
    return _different(*(dict(flat(growth_parameters(_parameters(run), None))) for run in (before, after)))


def incomparable(before: ComparedRun, after: ComparedRun) -> list[str]:
    """What forbids comparing which numbers, a sentence each."""
    found = []
    different = parameter_differences(before, after)
    if different:
        listed = ", ".join(f"{name} {a} in A, {b} in B" for name, (a, b) in different.items())
        found.append(
            f"The scores were computed under other parameters ({listed}): their values do not compare, nor do the AUCs "
            "made of them. Ranks show which images moved, not whether the model changed."
        )
    if before.identity.get("held-out images") != after.identity.get("held-out images"):
        found.append("The held-out images differ: AUCs and flags are against other controls.")
    if _differ(before, after, "sampling parameters"):
        found.append("Images were generated with other parameters: the shares of copies do not compare.")
    if _differ(before, after, "rule of copies"):
        found.append("Copies were counted by another rule: their shares do not compare.")
    if _differ(before, after, "membership score"):
        found.append("Membership rests on another score in either run: their AUCs do not compare.")
    if void := void_flags(before, after):
        found.append(f"Flags are not compared: {void}.")
    if not set(before.ranking["content_hash"].to_pylist()) & set(after.ranking["content_hash"].to_pylist()):
        found.append("The runs have no training image in common.")
    return found


def void_flags(before: ComparedRun, after: ComparedRun) -> str:
    """Which run's flags do not count, since its comparison is void; empty: neither."""
    names = [
        name
        for name, run in (("A", before), ("B", after))
        if (run.evidence.get("conformal") or {}).get("status") == "void"
        or ((run.evidence.get("verdict") or {}).get("membership") or {}).get("is_void")
    ]
    return f"the comparison with held-out images is void in {' and '.join(names)}" if names else ""


def different_inputs(before: ComparedRun, after: ComparedRun) -> list[str]:
    """What the two runs were given differently, the model aside."""
    of_growth = [f"{name} ({a} in A, {b} in B)" for name, (a, b) in parameter_differences(before, after).items()]
    contents = [{(row["content_hash"], row["copies"]) for row in _trained(run)} for run in (before, after)]
    found = ["training images"] if contents[0] != contents[1] else []
    found += [name for name in ("held-out images",) if before.identity.get(name) != after.identity.get(name)]
    names = ("membership score", "sampling parameters", "rule of copies")
    found += of_growth + [name for name in names if _differ(before, after, name)]
    if not of_growth and calibration_identity(before.evidence) != calibration_identity(after.evidence):
        found.append("timesteps or features that calibration chose in its folds")
    return found


def is_same_model(before: ComparedRun, after: ComparedRun) -> bool:
    """Both scored a checkpoint of one hash."""
    a, b = ((run.record.get("scoring") or {}).get("checkpoint_sha256") for run in (before, after))
    return a is not None and a == b


def _trained(run: ComparedRun) -> list[dict[str, Any]]:
    return list(run.ranking.select(["content_hash", "copies"]).to_pylist())


def _differ(before: ComparedRun, after: ComparedRun, title: str) -> bool:
    """Known in both runs, and not the same."""
    a, b = before.identity.get(title), after.identity.get(title)
    return a is not None and b is not None and a != b


def _counts(before: ComparedRun, after: ComparedRun, trend: pa.Table, flags: ChangedFlags) -> dict[str, int]:
    """Numbers of distinct training images, by what is said of them."""
    counts = {
        "in both": trend.num_rows,
        "tested in both": flags.n_tested,
        "newly flagged": len(flags.new),
        "no longer flagged": len(flags.gone),
    }
    for name, here, there in (("A", before, after), ("B", after, before)):
        is_there = pc.is_in(here.flags["content_hash"], there.ranking["content_hash"].combine_chunks())
        counts[f"in {name} alone"] = here.ranking.num_rows - trend.num_rows
        alone = here.flags.filter(pc.invert(is_there))
        counts[f"in {name} alone, flagged"] = alone.filter(pc.field("is_flagged")).num_rows
    return counts


def _parameters(run: ComparedRun) -> dict[str, Any]:
    timestep = (run.evidence.get("calibration") or {}).get("timestep")
    parameters = dict(run.record.get("scoring", {}).get("parameters") or {})
    return parameters | ({"timestep": timestep} if timestep is not None else {})


def _different(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    names = dict.fromkeys([*before, *after])
    pairs = {name: (before.get(name, "–"), after.get(name, "–")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _described(run: ComparedRun) -> dict[str, str]:
    return {
        "name": setting(run.name),
        "run": str(run.record.get("run_id") or "unknown")[:12],
        "model": setting(place(run.record.get("model") or "unknown")),
    }


def _sentence(before: ComparedRun, after: ComparedRun, pairs: Mapping[str, Pair], flags: ChangedFlags) -> str:
    """Each question by itself, what made the difference if there is one, then the flags."""
    a, b = answers(before.evidence), answers(after.evidence)
    told = [
        _question(a.membership, b.membership, "AUC", pairs["membership"]),
        _question(a.reproduction, b.reproduction, "Share of copies", pairs["copies"]),
    ]
    levels_differ = (a.membership.level, a.reproduction.level) != (b.membership.level, b.reproduction.level)
    told.append(_cause(before, after, levels_differ, any(pair.is_changed for pair in pairs.values())))
    if not void_flags(before, after):
        changed = f"newly flagged {number(len(flags.new))}, no longer flagged {number(len(flags.gone))}"
        told.append(f"Of the images tested in both runs ({number(flags.n_tested)}): {changed}.")
    return " ".join(filter(None, told))


def _question(before: Verdict, after: Verdict, what: str, pair: Pair) -> str:
    same = before.level == after.level
    levels = f"{before.label} in both." if same else f"{before.label} in A, {after.label.lower()} in B."
    if pair.before.estimate is None or pair.after.estimate is None:
        return levels
    return f"{levels} {what}: {pair.before.value} in A, {pair.after.value} in B; {pair.change}"


def _cause(before: ComparedRun, after: ComparedRun, levels_differ: bool, is_changed: bool) -> str:
    """What the two runs differ in: the model, what it was given, both or neither."""
    inputs = ", ".join(different_inputs(before, after))
    if is_same_model(before, after):
        if inputs:
            return f"The model is the same (equal checkpoint hash). The inputs differ, not the model: {inputs}."
        unexplained = "What differs comes from the software, the hardware or chance."
        return f"The model and its inputs are the same. {unexplained if levels_differ or is_changed else ''}".strip()
    if inputs:
        return f"The model differs, and so do its inputs: {inputs}. A change may come from either."
    if levels_differ and not is_changed:
        return "The answers differ, but no number is shown to have changed: every difference's interval holds 0."
    return ""


def _alone(n_before: int, n_after: int) -> str:
    verb = "image is" if n_before == 1 else "images are"
    return f"{number(n_before)} {verb} in A alone, {number(n_after)} in B alone."


def _exhibits(rows: list[dict[str, Any]], album: Album) -> list[Exhibit]:
    return [_exhibit(row, album) for row in rows[:MOST_EXHIBITS]]


def _exhibit(row: Mapping[str, Any], album: Album) -> Exhibit:
    name = setting(row["sample_id"])
    facts = {"rank in A": number(row["previous_rank"]), "rank in B": number(row["rank"])}
    return Exhibit("", name, album.training(row["sample_id"]), facts)


def _trend_table(trend: pa.Table, flags: ChangedFlags, is_comparable: bool) -> SortableTable | None:
    """The images that moved most; None without any in both runs."""
    if not len(trend):
        return None
    moved = pc.abs(trend["percentile_change"])
    order = pc.sort_indices(pa.table({"moved": moved}), [("moved", "descending")])[:MOST_ROWS]
    new, gone = ({row["content_hash"] for row in rows} for rows in (flags.new, flags.gone))
    rows = [
        row | {"is_new": row["content_hash"] in new, "is_gone": row["content_hash"] in gone}
        for row in trend.take(order).to_pylist()
    ]
    columns = {name: column for name, column in COLUMNS.items() if is_comparable or name != "growth_change"}
    table = sortable_table("Images of both runs, furthest moved first", columns, rows, "rank_trend", TRAITS)
    cut = f"{number(len(rows))} of {number(len(trend))} images." if len(rows) < len(trend) else ""
    return replace(table, note=cut)


def _differences(before: ComparedRun, after: ComparedRun) -> TableView:
    """What of run.json differs, timings aside."""
    flattened = [dict(flat(_told(run))) for run in (before, after)]
    rows = tuple((name, *pair) for name, pair in _different(*flattened).items())
    note = f"{number(len({**flattened[0], **flattened[1]}) - len(rows))} further entries are the same."
    return TableView(
        "Parameters, checkpoint, data, software", (Column("name"), Column("A"), Column("B")), rows, note, "run"
    )


def _told(run: ComparedRun) -> dict[str, Any]:
    scoring = run.record.get("scoring", {})
    return {
        "run": run.record.get("run_id"),
        "model": place(run.record.get("model")),
        "checkpoint SHA-256": scoring.get("checkpoint_sha256"),
        "manifest digest": run.record.get("manifest_digest"),
        "data": place(run.record.get("data")),
        "images": run.record.get("images"),
        **_parameters(run),
        "extraction": (run.record.get("extraction") or {}).get("parameters"),
        "software": run.record.get("software"),
    }

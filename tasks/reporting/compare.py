"""``compare.html``: what changed from one run to another, and whether their numbers may be compared at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.reporting.formats import number, setting
from tasks.reporting.gallery import Exhibit
from tasks.reporting.headline import KeyNumber, Verdict, key_numbers, verdict
from tasks.reporting.page import place, render
from tasks.reporting.queries import Query, definition
from tasks.reporting.ranking import SortableTable, sortable_table
from tasks.reporting.redaction import names_of, redacted_record, without_names
from tasks.reporting.relations import percentile_shift
from tasks.reporting.tables import Column, TableView, flat
from tasks.reporting.thumbnails import Album, Pixels
from tasks.store.dictionary import describe_relation
from tasks.store.history import growth_parameters

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
    def change(self) -> str:
        """In words; intervals that overlap are no proof that nothing changed."""
        a, b = self.before, self.after
        if a.estimate is None or b.estimate is None or a.low is None or b.low is None:
            return "Not measured in both."
        assert a.high is not None
        assert b.high is not None
        apart = "do not overlap" if a.high < b.low or b.high < a.low else "overlap"
        change = number(b.estimate - a.estimate, 3)
        moved = "no change" if change.strip("−") == "0.000" else change if change.startswith("−") else f"+{change}"
        return f"{moved}; the intervals {apart}."


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
    pairs = [Pair(*pair) for pair in zip(key_numbers(before.evidence), key_numbers(after.evidence), strict=True)]
    flags = changed_flags(trend)
    counts = _counts(before, after, trend, flags)
    album = Album(after.pictures, {})
    previous, now = (trend[name].to_numpy().astype(np.float64) for name in ("previous_percentile", "percentile"))
    shift = percentile_shift(previous, now, ("A", "B"))
    return render(
        "compare.html.j2",
        runs={"A": _described(before), "B": _described(after)},
        verdicts={"A": verdict(before.evidence), "B": verdict(after.evidence)},
        sentence=_sentence(verdict(before.evidence), verdict(after.evidence), pairs[0], flags),
        alone=_alone(counts["in A alone"], counts["in B alone"]),
        warnings=warnings,
        is_redacted=redact,
        pairs=pairs,
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
            Query("generated", "generated copies of each run.", "jq .generated RUN/evidence.json"),
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
    how = [(run.evidence.get("generated") or {}) for run in (before, after)]
    if all(how) and any(how[0].get(key) != how[1].get(key) for key in ("rule", "sampler")):
        found.append("Copies were generated or counted in another way: their shares do not compare.")
    if not set(before.ranking["content_hash"].to_pylist()) & set(after.ranking["content_hash"].to_pylist()):
        found.append("The runs have no training image in common.")
    return found


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


def _sentence(before: Verdict, after: Verdict, auc: Pair, flags: ChangedFlags) -> str:
    verdicts = f"{after.label} in both" if before.level == after.level else f"{before.label} in A, {after.label} in B"
    change = ""
    if auc.before.estimate is not None and auc.after.estimate is not None:
        change = f" Trained against held out, the AUC went from {auc.before.value} to {auc.after.value}: {auc.change}"
    changed = f"newly flagged {number(len(flags.new))}, no longer flagged {number(len(flags.gone))}"
    return f"{verdicts}.{change} Of the images tested in both runs ({number(flags.n_tested)}): {changed}."


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

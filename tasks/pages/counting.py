"""What was counted and what it was held against: both rules for a copy, the controls, and the calibrated flags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from latentprint.tasks.pages.formats import ABSENT, is_finite, number, percent, setting
from latentprint.tasks.pages.headline import membership_score, score_title
from latentprint.tasks.pages.tables import Column, TableView

RULES = ("ratio", "adaptive")
FALSE_COPIES = {
    "held_out": "False copies among held-out images",
    "left_out_training": "False copies among training images, each left out",
    "generated_against_held_out": "False copies of held-out images",
    "pooled": "False copies, all of these",
}
"""``false_copies`` of ``evidence.json``: what can be no copy, and is called one."""
AS_EXPECTED, NOT_AS_EXPECTED = "as expected", "not as expected"


def rules_table(reproductions: Mapping[str, Any] | None) -> TableView | None:
    """A column a rule, a row a quantity; None where nothing was generated."""
    found = {name: reproductions[name] for name in RULES if (reproductions or {}).get(name)} if reproductions else {}
    if not reproductions or not found:
        return None
    believed = reproductions.get("believed")
    headings = [f"{name} rule{', believed' if name == believed else ''}" for name in found]
    rows = [
        ("A generated image is a copy if", *(_rule(one) for one in found.values())),
        (
            f"Copies of {number(reproductions.get('n_samples'))} generated images",
            *(number(one.get("n_copies")) for one in found.values()),
        ),
        ("Share of copies", *(_share(one.get("share"), one.get("interval_95")) for one in found.values())),
        *(
            (label, *(_false(one, kind) for one in found.values()))
            for kind, label in FALSE_COPIES.items()
            if any((one.get("false_copies") or {}).get(kind) for one in found.values())
        ),
        ("Share of copies above the false ones", *(_excess(one.get("excess")) for one in found.values())),
        (
            "Training images that came out, without near duplicates",
            *(number(one.get("n_reproduced_originals")) for one in found.values()),
        ),
        ("Training images that came out", *(number(one.get("n_reproduced_training_images")) for one in found.values())),
    ]
    columns = (Column("quantity"), *map(Column, headings))
    kept = tuple(row for row in rows if set(row[1:]) != {ABSENT})
    note = "Shares with 95% intervals. False copies were counted where there can be no copy."
    return TableView("Two rules for a copy", columns, kept, note, "reproductions")


def controls_table(evidence: Mapping[str, Any]) -> TableView | None:
    """A row a control: what is expected of it, and what was found; None without any."""
    rows = tuple(_controls(evidence))
    if not rows:
        return None
    columns = (Column("control"), Column("expected"), Column("found", is_number=True), Column("reading"))
    score = score_title(membership_score(evidence))
    note = f"AUC with 95% interval; 0.5 is chance. The score is the {score}."
    return TableView("Controls of the comparison", columns, rows, note, "controls")


def stability(evidence: Mapping[str, Any]) -> str:
    """How often the membership answer stayed the same over seeds, folds and splits; empty where that was not tried."""
    membership = (evidence.get("verdict") or {}).get("membership") or {}
    found, level = membership.get("stability") or {}, membership.get("level")
    if not found.get("n"):
        return ""
    n, same = found["n"], (found.get("levels") or {}).get(level, 0)
    return f"The membership answer was the same in {number(same)} of {number(n)} repeats with other seeds and folds."


def flags_text(conformal: Mapping[str, Any] | None) -> str:
    """What the calibrated flags say, in sentences; why they are not used where they are not."""
    found = conformal or {}
    if found.get("status") != "ok":
        reason = str(found.get("reason") or "there are no held-out images").rstrip(".")
        return f"Flags are not used: {reason}."
    n, controls = number(found.get("n_images")), number(found.get("n_controls"))
    text = f"{number(found.get('n_flagged'))} of {n} training images stand out from {controls} control images."
    text += f" The false-discovery rate is {setting(found.get('alpha'))}: on average over draws of the controls,"
    text += f" at most {setting(100 * found['alpha'])}% of the flagged images are false."
    expected = found.get("false_flags_if_none_memorized")
    if is_finite(expected):
        text += f" If no image stood out, {number(expected, 1)} flags would be expected at this cut-off."
    return text


def _rule(one: Mapping[str, Any]) -> str:
    return f"{one.get('rule') or ABSENT}: {number(one.get('threshold'))}"


def _false(one: Mapping[str, Any], kind: str) -> str:
    found = (one.get("false_copies") or {}).get(kind)
    if not found:
        return ABSENT
    return (
        f"{number(found.get('k'))} of {number(found.get('n'))}: {_share(found.get('share'), found.get('interval_95'))}"
    )


def _excess(found: Mapping[str, Any] | None) -> str:
    return _share((found or {}).get("value"), (found or {}).get("interval_95"))


def _share(value: Any, interval: Any) -> str:
    if not is_finite(value):
        return ABSENT
    return f"{percent(value)} ({percent(interval[0])} to {percent(interval[1])})" if interval else percent(value)


def _controls(evidence: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    found, blind = evidence.get("controls") or {}, evidence.get("blind_baseline") or {}
    if found.get("negative"):
        yield _row("Held-out half against held-out half", "0.5", found["negative"], 0.5)
    for one in found.get("holdouts") or ():
        names = f"Held-out set {one.get('first')} against {one.get('second')}"
        yield _row(names, "0.5", one, 0.5)
    if found.get("positive"):
        steps = ", ".join(map(setting, found["positive"].get("timesteps") or ()))
        at = f" at timesteps {steps}" if steps else ""
        yield _row(f"Denoising loss{at}, trained against held out", "above 0.5", found["positive"], 0.5, above=True)
    if blind:
        yield _row("Pixels alone, without the model", "0.5", blind, 0.5)
    if blind.get("above_blind"):
        yield _row(
            "AUC of the score less that of pixels alone", "above 0", {"auc": blind["above_blind"]}, 0, above=True
        )


def _row(control: str, expected: str, found: Mapping[str, Any], chance: float, above: bool = False) -> tuple[str, ...]:
    auc = found.get("auc") or {}
    if not is_finite(auc.get("value")):
        return control, expected, ABSENT, str(found.get("reason") or found.get("status") or "not computed")
    low, high = auc["interval_95"]
    is_met = low > chance if above else low <= chance <= high
    value = f"{number(auc['value'], 3)} ({number(low, 3)} to {number(high, 3)})"
    return control, expected, value, AS_EXPECTED if is_met else NOT_AS_EXPECTED

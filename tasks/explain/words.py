"""``latentprint explain``: one image of a run, in words, as JSON, or as a page. Changes nothing, needs no server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentprint.tasks.explain.facts import explain_image
from latentprint.tasks.explain.page import render_explanation
from latentprint.tasks.pages.formats import number, p_value, visible
from latentprint.tasks.store.files import atomic_open
from latentprint.tasks.store.run import RunDirectory, RunError


def explain(run: Path, sample_id: str, page: Path | None = None) -> dict[str, Any]:
    """What the run knows of one image; with ``page``, written there as HTML too.

    Raises:
        RunError: not a scored run, no image of that name, or the page cannot be written.
        SourceError: a shard is damaged.
    """
    explanation = explain_image(RunDirectory(run), sample_id)
    if page is not None:
        html = render_explanation(explanation.facts, explanation.pictures, explanation.generated)
        try:
            with atomic_open(page) as stream:
                stream.write(html.encode())
        except OSError as error:
            raise RunError(f"{page}: cannot be written ({error.strerror or error}): choose another --html") from error
    return explanation.facts


def in_words(facts: dict[str, Any]) -> Iterator[str]:
    """The facts in lines for a terminal: names from outside as harmless text."""
    standing, copies, near = facts["standing"], facts["copies"], facts["nearest_training"]
    yield f"{visible(facts['sample_id'])} ({facts['split']}, {copies['in_its_split']} copies)"
    if "reason" in standing:
        yield f"  no rank: {standing['reason']}"
    else:
        yield f"  {_rank(standing)}; higher than {number(standing['percentile'], 1)}% of the others"
        yield f"  {_flag(standing)}"
    scores = facts["scores"]
    names = ("log_growth", "log_growth_se", "eps_norm", "fused", "fused_norms", "dime", "log_density")
    shown = {name: scores[name] for name in names if name in scores}
    yield "  " + ", ".join(f"{name} {number(value)}" for name, value in shown.items())
    for row in near["neighbours"]:
        yield f"  near {visible(row['sample_id'])}: l2 {number(row['distance'])}, {row['copies']} copies"
    relatives = facts["near_duplicates"]["others"]
    if relatives:
        yield f"  near duplicates: {', '.join(visible(row['sample_id']) for row in relatives)}"
    yield f"  {_reproduction(facts['reproduction'])}"
    odds = facts["odds"]
    yield f"  odds: {odds.get('one_in') or odds['reason']}"
    yield f"  {_contributions(facts['contributions'])}"


def _rank(standing: dict[str, Any]) -> str:
    n = number(standing["n_training_images"])
    if standing["rank"] is not None:
        return f"rank {number(standing['rank'])} of {n} training images"
    return f"would be rank {number(standing['rank_if_trained'])} beside {n} training images"


def _flag(standing: dict[str, Any]) -> str:
    if standing["p_value"] is None:
        return f"no p-value: {standing['note']}"
    text = f"conformal p {p_value(standing['p_value'])} against {standing['n_controls']} controls"
    if standing["q_value"] is None:
        return f"{text} ({standing['note']})"
    return f"{text}, q {p_value(standing['q_value'])}: {'flagged' if standing['is_flagged'] else 'not flagged'}"


def _reproduction(found: dict[str, Any]) -> str:
    if "reason" in found:
        return f"reproductions: {found['reason']}"
    share = f"{found['hits']} of {number(found['n_generated'])} generated images reproduce it"
    interval = f"95% interval of the rate {found['rate_low']:.3%} to {found['rate_high']:.3%}"
    nearest = f"nearest generated {found['nearest_generated']} at l2 {number(found['nearest_distance'])}"
    return f"{share} ({interval}); {nearest}"


def _contributions(found: dict[str, Any]) -> str:
    if "reason" in found:
        return f"confounders: {found['reason']}"
    parts = sorted(found["confounders"].items(), key=lambda item: -abs(item[1]["contribution"]))
    listed = ", ".join(f"{name.replace('_', ' ')} {number(part['contribution'])}" for name, part in parts)
    return f"adjusted {number(found['adjusted'])} nats, without: {listed}"

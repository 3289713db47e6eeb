"""Sections for a model card and a data set card, in Markdown as Hugging Face shows it, out of a run's evidence.

Every number comes with its interval and what it rests on; what was not measured is said. No image is named: a card is
public, and a name would tell who was in the training set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.reporting.formats import ABSENT, code_span, is_finite, markdown_text, number, percent, setting
from tasks.reporting.gate import Case, Measurement
from tasks.store.splits import split_of

QUESTIONS = {
    "auc": "Of random pairs, one trained and one held out: the trained image is easier to reproduce (50% is chance)",
    "flag_rate": "Training images flagged: they score too high for held-out ones",
    "memorized_share": "Generated images that are copies of a training image",
    "odds": "Chance that a generated image is the most likely training image",
}
PAIRS_BY_PIXELS = "The same pairs told apart by pixels alone, without the model (blind baseline)"
OF_NOBODY = "Nothing here says who can be recognised in an image, or what the law makes of it."
LIMITS_OF_MODELS = ("Fine-tuning, another sampler or guidance may bring out other images.", OF_NOBODY)
LIMITS_OF_DATA = (
    "Measured through one model: another model, or a longer training, may memorize other images.",
    OF_NOBODY,
)


@dataclass(frozen=True)
class CardInputs:
    """What a card is made from."""

    record: Mapping[str, Any]
    """run.json."""
    evidence: Mapping[str, Any]
    """evidence.json."""
    case: Case
    """The same, as the gate reads it: each quantity with its interval, or the reason why there is none."""
    summary: Mapping[str, Any]
    """The row of the mart ``summary``."""
    by_copies: Sequence[Mapping[str, Any]]
    """Rows of the mart ``scores_by_copies``."""
    rejects: Sequence[Mapping[str, Any]]
    """Rows of the mart ``rejects_by_reason``."""
    n_near_duplicate_groups: int


def model_section(inputs: CardInputs) -> str:
    """How much the model memorized."""
    name, checkpoint = _name(inputs.record.get("model")), _of(inputs.record, "scoring", "checkpoint_sha256")
    return _markdown(
        "## Memorization",
        f"How easily the diffusion model {markdown_text(name)} (SHA-256 {code_span(checkpoint or 'unknown')}) gives "
        f"its training images back, measured with {_tool(inputs)} by whoever has weights and images (white box).",
        f"**{markdown_text(_of(inputs.evidence, 'verdict', 'sentence') or 'No verdict.')}**",
        _measured(inputs),
        _flags(inputs),
        _reproduced(inputs),
        f"Scored: {number(inputs.summary['n_train_distinct'])} distinct training images of "
        f"{_sources(inputs, 'train')} and {number(inputs.summary['n_control'])} of {_sources(inputs, 'holdout')} that "
        f"were never trained on. {_score(inputs)}",
        _limits(inputs, LIMITS_OF_MODELS),
    )


def dataset_section(inputs: CardInputs) -> str:
    """What is in the data set, repeated or not, and what of it a model trained on it gives back."""
    summary = inputs.summary
    counts = {
        "training images": summary["n_train"],
        "distinct": summary["n_train_distinct"],
        "distinct ones that occur more than once": summary["n_repeated"],
        "groups of near duplicates": inputs.n_near_duplicate_groups,
        "held-out images": summary["n_holdout"],
        "distinct held-out images that also are, or nearly are, training images": summary["n_overlap"],
        "items that could not be used": summary["n_rejected"],
    }
    return _markdown(
        "## Duplicates and memorization",
        f"What {_tool(inputs)} found in {_sources(inputs, 'train')}, and what {markdown_text(_name(_model(inputs)))}, "
        "a diffusion model trained on it, gives back.",
        _table(("", "number"), [(what, number(n)) for what, n in counts.items()]),
        _by_copies(inputs),
        f"**{markdown_text(_of(inputs.evidence, 'verdict', 'sentence') or 'No verdict.')}**",
        _measured(inputs),
        _flags(inputs),
        _reproduced(inputs),
        _rejects(inputs),
        f"{_score(inputs)}",
        _limits(inputs, LIMITS_OF_DATA),
    )


def model_metadata(inputs: CardInputs) -> str:
    """The same numbers as ``model-index`` metadata: YAML for the head of a model card."""
    from huggingface_hub import EvalResult, ModelCardData

    data = ", ".join(_source_name(inputs, split) for split in ("train", "holdout"))
    results = [
        EvalResult(
            task_type="unconditional-image-generation",
            dataset_type="image",
            dataset_name=data,
            metric_type=f"latentprint_{name}",
            metric_name=QUESTIONS[name],
            metric_value=measurement.value,
            metric_args={"interval_95": [measurement.low, measurement.high], "n": measurement.n},
        )
        for name, measurement in inputs.case.measurements.items()
        if not measurement.problem()
    ]
    content = ModelCardData(model_name=_name(_model(inputs)), eval_results=results or None)
    return f"---\n{content.to_yaml()}\n---\n"


def _measured(inputs: CardInputs) -> str:
    measurements = {QUESTIONS[name]: m for name, m in inputs.case.measurements.items()}
    blind = _of(inputs.evidence, "blind_baseline", "auc") or {}
    low, high = blind.get("interval_95") or (None, None)
    n = _of(inputs.evidence, "blind_baseline", "n_holdout")
    measurements[PAIRS_BY_PIXELS] = Measurement(blind.get("value"), low, high, n)
    rows = [(question, *_cells(measurement)) for question, measurement in measurements.items()]
    return _table(("question", "measured", "95% interval", "images"), rows)


def _cells(measurement: Measurement) -> tuple[str, str, str]:
    if problem := measurement.problem():
        return f"not measured ({markdown_text(problem)})", ABSENT, ABSENT
    low, high = _share(measurement.low), _share(measurement.high)
    return _share(measurement.value), f"{low} to {high}", number(measurement.n)


def _share(value: Any) -> str:
    """A proportion; a very small one as itself, since 0.0% would say that it is none."""
    return number(value) if is_finite(value) and 0.0 < value < 0.0005 else percent(value)


def _flags(inputs: CardInputs) -> str:
    flags = inputs.evidence.get("conformal") or {}
    if flags.get("status") != "ok":
        return ""
    expected = flags.get("false_flags_if_none_memorized")
    return (
        f"{number(flags['n_flagged'])} of {number(flags['n_images'])} training images are flagged. Averaged over "
        f"draws of the controls, at most {setting(100 * flags['alpha'])}% of the flagged images are false; in a run "
        "that flags anything the share may be larger."
        + ("" if expected is None else f" False flags expected if no image were memorized: {number(expected, 1)}.")
    )


def _reproduced(inputs: CardInputs) -> str:
    found = inputs.evidence.get("reproductions")
    if not found:
        return "No images were generated and held against the training images, so nothing was counted as reproduced."
    how = _of(inputs.record, "extraction", "parameters") or {}
    sampler = f" ({markdown_text(how['sampler'])}, {setting(how['steps'])} steps)" if how else ""
    return (
        f"{number(found['ratio']['n_reproduced_training_images'])} of {number(found['n_training_images'])} distinct "
        f"training images came out among {number(found['n_samples'])} generated ones{sampler}; what counts as a copy: "
        f"{markdown_text(found['ratio']['rule'])}, {number(found['ratio']['threshold'])}."
    )


def _by_copies(inputs: CardInputs) -> str:
    rows = [(number(r["copies"]), number(r["n_images"]), number(r["median"])) for r in inputs.by_copies]
    return _table(("occurs", "distinct images", "median log growth [nats]"), rows) if len(rows) > 1 else ""


def _rejects(inputs: CardInputs) -> str:
    rows = [(markdown_text(r["split"]), markdown_text(r["reason"]), number(r["n_items"])) for r in inputs.rejects]
    return _table(("split", "not used because", "items"), rows) if rows else ""


def _score(inputs: CardInputs) -> str:
    how = _of(inputs.record, "scoring", "parameters") or {}
    timestep = _of(inputs.evidence, "calibration", "timestep")
    timestep = how.get("timestep") if timestep is None else f"{timestep}, chosen on images of which none is compared"
    return (
        f"Score: log volume growth along K = {setting(how.get('axes'))} axes in N = {setting(how.get('steps'))} steps, "
        f"estimator {markdown_text(how.get('estimator'))}, from timestep {timestep} (Hasegawa & Yasuda, "
        "[arXiv 2503.19429](https://arxiv.org/abs/2503.19429))."
    )


def _limits(inputs: CardInputs, more: Sequence[str]) -> str:
    limits = [markdown_text(limit) for limit in inputs.evidence.get("limits", ())]
    return "\n".join(["Limits:", "", *(f"- {limit}" for limit in (*limits, *more))])


def _tool(inputs: CardInputs) -> str:
    version = _of(inputs.record, "software", "latentprint")
    return f"latentprint {markdown_text(version)}" if version else "latentprint"


def _model(inputs: CardInputs) -> Any:
    return inputs.record.get("model")


def _sources(inputs: CardInputs, split: str) -> str:
    return markdown_text(_source_name(inputs, split))


def _source_name(inputs: CardInputs, split: str) -> str:
    sources = _of(inputs.record, "data", "sources")
    named = sources if isinstance(sources, Mapping) else {}
    return ", ".join(_name(place) for name, place in named.items() if split_of(name) == split) or _name(None)


def _name(path: Any) -> str:
    """The last part of a path: a card tells nobody's folders."""
    return Path(str(path)).name if path else "nothing"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ruler, *rows))


def _of(content: Mapping[str, Any], *names: str) -> Any:
    found: Any = content
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _markdown(*blocks: str) -> str:
    return "\n\n".join(filter(None, blocks)) + "\n"

"""Sections for a model card and a data set card, in Markdown as Hugging Face shows it, out of a run's evidence.

Every number comes with its interval and what it rests on; what was not measured is said. No image is named: a card is
public, and a name would tell who was in the training set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentprint.tasks.gate.bounds import Measurement
from latentprint.tasks.gate.decide import Case
from latentprint.tasks.gate.read import RULES_OF_COPIES
from latentprint.tasks.pages.formats import ABSENT, code_span, is_finite, markdown_text, number, percent, setting
from latentprint.tasks.pages.headline import GROWTH, answers, membership_score, score_title
from latentprint.tasks.store.splits import split_of

QUESTIONS = {
    "auc": "Membership: of random pairs, the training image scores higher than the held-out one (50% is chance)",
    "flag_rate": "Training images flagged: they score too high for held-out ones",
    "memorized_share": "Reproduction: generated images that are copies of a training image",
    "odds": "Chance that a generated image is the most likely training image",
}
BY_GROWTH = "The same pairs by log growth instead of the {}"
PAIRS_BY_PIXELS = "The same pairs told apart by pixels alone, without the model (blind baseline)"
OF_NOBODY = "Nothing here says who can be recognised in an image, or what the law makes of it."
LIMITS_OF_MODELS = ("Fine-tuning, another sampler or guidance may bring out other images.", OF_NOBODY)
LIMITS_OF_DATA = (
    "Measured through one model: another model, or a longer training, may reproduce other images.",
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
    """Whether the model tells its training images apart, and whether they come out of it."""
    name, checkpoint = _name(inputs.record.get("model")), _of(inputs.record, "scoring", "checkpoint_sha256")
    return _markdown(
        "## Membership and reproduction of training images",
        f"How easily the diffusion model {markdown_text(name)} (SHA-256 {code_span(checkpoint or 'unknown')}) gives "
        f"its training images back, measured with {_tool(inputs)} by whoever has weights and images (white box).",
        _answers(inputs),
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
        "## Duplicates, membership and reproduction",
        f"What {_tool(inputs)} found in {_sources(inputs, 'train')}, and what {markdown_text(_name(_model(inputs)))}, "
        "a diffusion model trained on it, gives back.",
        _table(("", "number"), [(what, number(n)) for what, n in counts.items()]),
        _by_copies(inputs),
        _answers(inputs),
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


def _answers(inputs: CardInputs) -> str:
    """Both, in the report's words."""
    found = answers(inputs.evidence)
    told = [
        f"**{answer.label}.** {markdown_text(answer.sentence)}" for answer in (found.membership, found.reproduction)
    ]
    return "\n\n".join(told)


def _measured(inputs: CardInputs) -> str:
    measurements = {QUESTIONS[name]: m for name, m in inputs.case.measurements.items()}
    measurements[PAIRS_BY_PIXELS] = _interval(_of(inputs.evidence, "blind_baseline"), "n_holdout")
    if (score := membership_score(inputs.evidence)) != GROWTH and not inputs.case.measurements["auc"].problem():
        measurements[BY_GROWTH.format(score_title(score))] = _interval(
            _of(inputs.evidence, "comparisons", "train_vs_holdout", GROWTH), "n_negative"
        )
    rows = [(question, *_cells(measurement)) for question, measurement in measurements.items()]
    return _table(("question", "measured", "95% interval", "images"), rows)


def _interval(content: Mapping[str, Any] | None, n: str) -> Measurement:
    """The ``auc`` of a comparison."""
    area = _of(content or {}, "auc") or {}
    low, high = area.get("interval_95") or (None, None)
    return Measurement(area.get("value"), low, high, (content or {}).get(n))


def _cells(measurement: Measurement) -> tuple[str, str, str]:
    if problem := measurement.problem():
        return f"not measured ({markdown_text(problem)})", ABSENT, ABSENT
    low, high = _share(measurement.low), _share(measurement.high)
    return _share(measurement.value), f"{low} to {high}", number(measurement.n)


def _share(value: Any) -> str:
    """A proportion; a very small one as itself, since 0.0% would say that it is none."""
    return number(value) if is_finite(value) and 0.0 < value < 0.0005 else percent(value)


def _flags(inputs: CardInputs) -> str:
    """Nothing where they do not count: the table says why."""
    flags = inputs.evidence.get("conformal") or {}
    if inputs.case.measurements["flag_rate"].problem():
        return ""
    expected = flags.get("false_flags_if_none_memorized")
    return (
        f"{number(flags['n_flagged'])} of {number(flags['n_images'])} training images are flagged. Averaged over "
        f"draws of the controls, at most {setting(100 * flags['alpha'])}% of the flagged images are false; in a run "
        "that flags anything the share may be larger."
        + ("" if expected is None else f" Flags expected by chance alone: {number(expected, 1)}.")
    )


def _reproduced(inputs: CardInputs) -> str:
    """What came out by the believed rule, the rule's own false copies, and the other rule's count."""
    found = inputs.evidence.get("reproductions")
    answer = _of(inputs.evidence, "verdict", "reproduction") or {}
    if not found or answer.get("rule") not in RULES_OF_COPIES:
        return "This run counted no generated images, so it says nothing about what comes out."
    how = _of(inputs.record, "extraction", "parameters") or {}
    sampler = f" ({markdown_text(how['sampler'])}, {setting(how['steps'])} steps)" if how else ""
    rule, other = answer["rule"], next(name for name in RULES_OF_COPIES if name != answer["rule"])
    counted, beside = found.get(rule) or {}, found.get(other) or {}
    false = _of(counted, "false_copies", "pooled")
    measured = (
        "not measured" if not false else f"{number(false['k'])} of {number(false['n'])} ({_share(false['share'])})"
    )
    lines = [
        f"{number(counted.get('n_reproduced_training_images'))} of {number(found.get('n_training_images'))} distinct "
        f"training images came out among {number(found.get('n_samples'))} generated ones{sampler}; what counts as a "
        f"copy: {markdown_text(counted.get('rule'))}, {number(counted.get('threshold'))}.",
        f"The rule's false copies, where there can be no copy: {measured}.",
        f"By the {other} rule, {number(beside.get('n_copies'))} are copies.",
        markdown_text(found.get("why_believed") or ""),
    ]
    return " ".join(filter(None, lines))


def _by_copies(inputs: CardInputs) -> str:
    rows = [(number(r["copies"]), number(r["n_images"]), number(r["median"])) for r in inputs.by_copies]
    return _table(("occurs", "distinct images", "median log growth [nats]"), rows) if len(rows) > 1 else ""


def _rejects(inputs: CardInputs) -> str:
    rows = [(markdown_text(r["split"]), markdown_text(r["reason"]), number(r["n_items"])) for r in inputs.rejects]
    return _table(("split", "not used because", "items"), rows) if rows else ""


def _score(inputs: CardInputs) -> str:
    how = _of(inputs.record, "scoring", "parameters") or {}
    timestep = _of(inputs.evidence, "calibration", "timestep")
    timestep = how.get("timestep") if timestep is None else f"{timestep}, chosen by cross-fitting"
    return (
        f"Score: log volume growth along K = {setting(how.get('axes'))} axes in N = {setting(how.get('steps'))} steps "
        f"(one axis: growth in its direction{', along the predicted noise' if how.get('axis') == 'eps' else ''}), "
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

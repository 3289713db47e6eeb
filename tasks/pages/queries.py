"""Where every number of the page comes from: what anybody can run on the run directory to get it again.

Tables, plots and key numbers name an entry, and the page links them to it. What SQL can say is said in SQL; intervals,
tests and models need resampling and are in ``evidence.json``, beside the query for the scores that they are made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from latentprint.tasks.warehouse.dictionary import SQL, describe_relation

RELATIONS = (
    "summary",
    "group_auc",
    "generated_copies",
    "score_histogram",
    "scores_by_split",
    "scores_by_copies",
    "ranking",
    "flagged",
    "reproductions_by_score",
    "near_duplicate_groups",
    "rejects_by_reason",
)
"""Marts that the page quotes, in its order."""
QUESTIONS = {
    "compared_scores": (
        "the scores that comparisons, curves and tests are made of: usable, and in one split only.",
        "SELECT split, is_control, copies, near_duplicate_group, log_growth, fused, eps_norm "
        "FROM images WHERE is_compared",
    ),
    "odds": ("how probable it is that the model generates an image (latentprint odds).", "FROM odds"),
}
EVIDENCE = {
    "comparisons": (
        "intervals, rates and tests, each with method and assumptions, from compared_scores.",
        "comparisons",
    ),
    "methods": (
        "of each score, evaluations and rank correlation with the copies; its AUC and rates are in comparisons, "
        "its correlation with the hits is in judgement.",
        "methods",
    ),
    "conformal": ("how many images are flagged, and how many would be if none stood out.", "conformal"),
    "blind_baseline": ("can the two sets be told apart by pixels alone?", "blind_baseline"),
    "controls": ("held-out images against each other, and the training loss on both splits.", "controls"),
    "reproductions": ("what both rules count, and how often each is wrong.", "reproductions"),
    "confounders": ("how much of the score simple image properties explain.", "confounders"),
    "judgement": ("how well each score predicts the counted reproductions.", "reproductions.judgement"),
    "generated": ("generated copies, by this run's own count or by the checkpoint's training record.", "generated"),
    "calibration": ("the timestep that was chosen, and on how many images.", "calibration"),
    "cleaned_set": ("what cleaning the training set changed (latentprint audit --before RUN).", "cleaned_set"),
    "verdict": ("both answers with their reasons, decided on the bounds of the intervals.", "verdict"),
}
RECORD = ("run", "inputs, parameters, versions, hashes and timings.", "jq . RUN/run.json")


@dataclass(frozen=True)
class Query:
    """An entry of the list at the end of the page."""

    name: str
    about: str
    command: str
    definition: str = ""
    """The SELECT behind the relation."""


def queries() -> tuple[Query, ...]:
    """Every entry that a page of one run may link to."""
    relations = [Query(name, describe_relation(name), _sql(f"FROM {name}"), definition(name)) for name in RELATIONS]
    questions = [Query(name, about, _sql(sql)) for name, (about, sql) in QUESTIONS.items()]
    evidence = [Query(name, about, f"jq .{path} RUN/evidence.json") for name, (about, path) in EVIDENCE.items()]
    return (*relations, *questions, *evidence, Query(*RECORD))


def statements() -> Mapping[str, str]:
    """Name -> SQL of the entries that are SQL."""
    return {name: f"FROM {name}" for name in RELATIONS} | {name: sql for name, (_, sql) in QUESTIONS.items()}


def definition(relation: str) -> str:
    """The text of a relation's query."""
    (file,) = SQL.glob(f"*/{relation}.sql")
    return file.read_text(encoding="utf-8")


def _sql(statement: str) -> str:
    return f'latentprint sql --run RUN "{statement}"'

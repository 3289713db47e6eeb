"""The scores side by side as the page prints them: what independent computations give, and nothing made up."""

from __future__ import annotations

import numpy as np
from scipy import stats
from sklearn.metrics import roc_auc_score

from latentprint.tasks.evidence.judgement import judge
from latentprint.tasks.pages.further import methods_table
from latentprint.tasks.pages.html import ReportInputs, render_report
from tests.pages.synthetic import planted, typical_run
from tests.pages.test_html import Page


def test_a_row_a_score_with_auc_rate_and_correlations(inputs: ReportInputs) -> None:
    images, scores = planted(), typical_run().scores()
    is_train, copies = np.array(images.splits) == "train", np.array(images.copies)
    hits = np.where(scores.copies > 4, scores.copies, 0)[scores.is_train]
    judged = judge({name: values[scores.is_train] for name, values in scores.scores.items()}, hits, 1_000)
    reproductions = {"judgement": {name: judgement.as_dict() for name, judgement in judged.items()}}
    table = methods_table({**inputs.evidence, "reproductions": reproductions})
    assert table is not None
    labels = [
        "score",
        "easier if",
        "evaluations, alone",
        "AUC",
        "TPR at 1% FPR",
        "Spearman with occurrences",
        "Spearman with hits",
    ]
    assert [column.label for column in table.columns] == [*labels, "n"]
    growth, norm = table.rows
    assert (growth[:3], norm[:3]) == (("log growth", "higher", "2"), ("‖ε‖₂", "lower", "1"))
    for row, ease in ((growth, images.log_growth), (norm, -images.eps_norm)):
        assert row[3].startswith(f"{roc_auc_score(is_train, ease):.3f} (")
        assert row[4] == "–"  # 256 controls say nothing of 1% false positives
        assert row[5].startswith(f"{stats.spearmanr(ease[is_train], copies[is_train]).statistic:.3f} (")
        assert row[6].startswith(f"{stats.spearmanr(ease[is_train], hits).statistic:.3f} (")
        assert row[7] == "256 / 256"
    assert "occurrences over 256 training images, with hits over 256" in table.note


def test_what_was_not_measured_is_a_dash_or_has_no_column(inputs: ReportInputs) -> None:
    table = methods_table({**inputs.evidence, "comparisons": {}})
    assert table is not None
    assert table.rows[0][3:5] == ("–", "–")
    assert "Spearman with hits" not in [column.label for column in table.columns]
    assert "fitted" not in table.note
    assert methods_table({}) is None


def test_the_page_has_the_table_and_leads_to_its_query(inputs: ReportInputs) -> None:
    page = Page(render_report(inputs))
    begin = page.texts.index("The scores side by side")
    assert page.texts[begin + 1 : begin + 3] == ["score", "easier if"]
    assert "jq .methods RUN/evidence.json" in page.texts

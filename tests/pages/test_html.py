"""The page as text: what it says, what it must never contain, and what it does when something is missing."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from scipy import stats
from sklearn.metrics import roc_auc_score

from latentprint.tasks.evidence.assessment import assess
from latentprint.tasks.evidence.images import Pixels
from latentprint.tasks.evidence.judgement import judge
from latentprint.tasks.pages.further import confounder_table, judgement_table
from latentprint.tasks.pages.html import ReportInputs, render_report
from latentprint.tasks.pages.queries import queries, statements
from tests.pages.synthetic import (
    HOSTILE,
    Images,
    Rejected,
    Run,
    blob,
    few_images,
    marts,
    planted,
    typical_run,
)

MEGABYTE = 10**6


class Page(HTMLParser):
    """Tags with their attributes, in order, and the text outside of style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style" and data.strip():
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_numbers_of_the_first_page_are_those_of_independent_computations(inputs: ReportInputs, page: Page) -> None:
    images = planted()
    is_train, copies = np.array(images.splits) == "train", np.array(images.copies)
    repeated = roc_auc_score(copies[is_train] > 1, images.log_growth[is_train])
    shown = [data.strip() for data in page.texts]
    assert f"{repeated:.3f}" in shown
    low, high = inputs.evidence["comparisons"]["repeated_vs_single"]["log_growth"]["auc"]["interval_95"]
    assert f"95% interval {low:.3f} to {high:.3f}" in shown
    assert f"{roc_auc_score(is_train, images.log_growth):.3f}" in shown


def test_statistics_tables_hold_the_papers_test_and_say_what_is_not_estimable(inputs: ReportInputs, page: Page) -> None:
    images = planted()
    is_train = np.array(images.splits) == "train"
    trained, held_out = images.log_growth[is_train], images.log_growth[~is_train]
    welch = stats.ttest_ind(trained, held_out, equal_var=False)
    shown = [data.strip() for data in page.texts]
    assert f"{welch.statistic:.2f}" in shown
    exponent = int(np.floor(np.log10(welch.pvalue)))
    assert f"{welch.pvalue / 10.0**exponent:.1f} × 10⁻" in page.text
    assert "not estimable: 256 controls, at least 500 are needed" in page.text
    assert "not estimable: 256 controls, at least 5,000 are needed" in page.text


def test_first_ranked_image_is_the_one_with_the_highest_growth(page: Page) -> None:
    images = planted()
    growth = np.where(np.array(images.splits) == "train", images.log_growth, -np.inf)
    best, worst = int(growth.argmax()), int(np.where(np.isfinite(growth), growth, np.inf).argmin())
    for heading, image, rank in (("Highest scores", best, 1), ("Lowest scores", worst, 256)):
        begin = page.texts.index(heading)
        shown = [data.strip() for data in page.texts[begin + 1 : begin + 11]]
        end = shown.index(f"train/{images.names[image]}")
        assert shown[:2] == ["rank", str(rank)]
        assert shown[end - 4 : end] == [
            "log growth",
            f"{growth[image]:.3f} nats",
            "occurrences",
            str(images.copies[image]),
        ]


def test_pictures_of_the_first_page_and_of_both_ends_are_embedded(page: Page) -> None:
    sources = [
        attributes["src"].removeprefix("data:image/png;base64,") for tag, attributes in page.tags if tag == "img"
    ]
    shown = [np.array(Image.open(io.BytesIO(base64.b64decode(source)))) for source in sources]
    images = planted()
    growth = np.where(np.array(images.splits) == "train", images.log_growth, np.nan)
    ranked = [int(i) for i in np.argsort(-growth) if np.isfinite(growth[i])]
    assert len(shown) == 6 + 24 + 8
    for picture, position in zip(shown, [*ranked[:6], *ranked[:24], *ranked[:-9:-1]], strict=True):
        assert np.array_equal(picture, blob((28, 28), seed=position))


def test_page_asks_for_nothing_and_runs_nothing_but_its_own_script(html: str, page: Page) -> None:
    assert "http" not in re.sub(r'http-equiv="Content-Security-Policy"', "", html)
    for tag, attributes in page.tags:
        assert tag not in {"iframe", "object", "embed", "form", "link", "base"}
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "script" or attributes == {}
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
        assert (attributes.get("href") or "#").startswith("#")
        assert (attributes.get("xlink:href") or "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import", html)


def test_content_security_policy_comes_before_what_it_governs(page: Page) -> None:
    tags = [(tag, attributes.get("http-equiv")) for tag, attributes in page.tags]
    policy = tags.index(("meta", "Content-Security-Policy"))
    directives = dict(
        directive.strip().split(" ", 1) for directive in (page.tags[policy][1]["content"] or "").split(";")
    )
    (script,) = page.scripts
    assert directives == {
        "default-src": "'none'",
        "script-src": f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert policy < [tag for tag, _ in tags].index("style")


def test_hostile_names_are_text_and_change_no_tag() -> None:
    harmless = tuple(f"image-{i}" for i in range(len(HOSTILE)))
    pages = [
        Page(
            render_report(
                Run(
                    images=few_images(names),
                    rejected=Rejected([("train", names[0], names[1], names[2])]),
                    model=names[1],
                ).inputs()
            )
        )
        for names in (harmless, HOSTILE)
    ]
    assert Counter(tag for tag, _ in pages[0].tags) == Counter(tag for tag, _ in pages[1].tags)
    for name in HOSTILE[:4]:
        assert f"train/{name}" in pages[1].texts
    assert r"train/🦊 two\nlines" in pages[1].texts
    assert r"train/photo\u202egnp.exe" in pages[1].texts
    assert r"train/a\x00b\x1b[31m" in pages[1].texts


def test_same_inputs_give_the_same_bytes_in_another_process_and_row_order(inputs: ReportInputs, html: str) -> None:
    order = np.random.default_rng(1).permutation(inputs.images.num_rows)
    assert render_report(replace(inputs, images=inputs.images.take(order))) == html
    program = (
        "import hashlib\n"
        "from latentprint.tasks.pages.html import render_report\n"
        "from tests.pages.synthetic import typical_run\n"
        "print(hashlib.sha256(render_report(typical_run().inputs()).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert answer.stdout.strip() == hashlib.sha256(html.encode()).hexdigest()


def test_structure_is_one_that_a_screen_reader_can_follow(html: str, page: Page) -> None:
    assert html.startswith("<!DOCTYPE html>")
    assert page.tags[0] == ("html", {"lang": "en"})
    assert [page.count(landmark) for landmark in ("header", "nav", "main", "footer")] == [1, 1, 1, 1]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(deeper - level <= 1 for level, deeper in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {(attributes["href"] or "")[1:] for tag, attributes in page.tags if tag == "a"} <= set(ids)


def test_every_plot_has_words_and_a_table_of_its_data(page: Page) -> None:
    assert page.count("figure") == 4
    images = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(images) == 4
    assert all(re.search(r"\d", attributes["aria-label"] or "") for attributes in images)
    assert page.texts.count("Data of this plot") == 4
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")


def test_units_and_descriptions_of_columns_are_printed(inputs: ReportInputs) -> None:
    fields = [
        field.with_metadata({"unit": "furlongs", "description": f"what {field.name} is"})
        for field in inputs.tables["scores_by_copies"].schema
    ]
    table = inputs.tables["scores_by_copies"].cast(pa.schema(fields))
    shown = Page(render_report(replace(inputs, tables={"scores_by_copies": table})))
    assert shown.texts.count("furlongs") == table.num_columns
    assert "what mean_eps_norm is" in shown.texts


def test_without_holdout_the_verdict_is_inconclusive_and_the_rest_stands() -> None:
    page = Page(render_report(Run(images=few_images(tuple("abcdef"))).inputs()))
    assert "Membership inconclusive" in page.texts
    assert "Not computable: 6 and 0 finite scores: at least 2 in each group are needed." in page.texts
    assert "not asked" in page.texts
    assert "Held-out images" in page.texts
    assert page.count("figure") == 2


def test_unknown_verdict_is_never_good_news(inputs: ReportInputs) -> None:
    for verdict in ({}, {"level": "passed", "sentence": "All fine."}, None):
        page = Page(render_report(replace(inputs, evidence={"verdict": verdict}, images=inputs.images.slice(0, 0))))
        classes = [attributes.get("class") or "" for _, attributes in page.tags]
        assert [name for name in classes if name.startswith("answer ")] == ["answer answer-inconclusive"] * 2
        assert {"Membership inconclusive", "Copies inconclusive"} <= set(page.texts)


def test_nothing_but_empty_inputs_still_makes_a_page(inputs: ReportInputs) -> None:
    page = Page(render_report(ReportInputs({}, {}, {}, inputs.images.slice(0, 0), {})))
    for said in (
        "There is no finite score to draw.",
        "There is no ranked training image to show.",
        "No two groups of images could be compared.",
        "This run has no ranking.",
        "This run holds no record of rejected items.",
    ):
        assert said in page.text


def test_scores_that_are_not_numbers_are_left_out_and_counted() -> None:
    images = planted()
    growth = images.log_growth.copy()
    growth[[0, 1, 2]] = np.nan, np.inf, -np.inf
    page = Page(render_report(Run(images=replace(images, log_growth=growth)).inputs()))
    assert "253 distinct training images are ranked by log growth." in page.text
    assert not re.search(r"\b(nan|inf)\b", page.text)
    nothing_left = replace(images, log_growth=np.full(len(growth), np.nan))
    assert "There is no finite score to draw." in Page(render_report(Run(images=nothing_left).inputs())).text


def test_one_image_renders() -> None:
    page = Page(render_report(Run(images=few_images(("one",))).inputs()))
    assert "1 distinct training images are ranked by log growth." in page.text
    assert page.count("img") == 2  # on the first page, and in the gallery
    assert "Lowest scores" not in page.texts


def test_equal_scores_render() -> None:
    equal = replace(planted(), log_growth=np.full(512, 2.5))
    page = Page(render_report(Run(images=equal).inputs()))
    assert "Not computable: all scores are equal." in page.texts
    assert page.count("figure") == 4


def test_no_rejects_is_said_in_words(inputs: ReportInputs, page: Page) -> None:
    assert "truncated" in page.texts
    tables = marts(inputs.images, Rejected().table())
    assert "None: every item of the sources was read." in Page(render_report(replace(inputs, tables=tables))).text


def with_pixels() -> dict[str, Any]:
    """Evidence of the typical run, of whose images pixels were seen."""
    scores = typical_run().scores()
    images = np.stack([blob((12, 12), seed) for seed in range(len(scores.copies))])
    return assess(scores, None, Pixels(np.arange(len(images)), images, images[scores.is_train]))


def test_confounders_are_a_plot_with_a_table_of_one_row_each(inputs: ReportInputs) -> None:
    evidence = with_pixels()
    page = Page(render_report(replace(inputs, evidence=evidence)))
    assert page.count("figure") == 5
    adjusted = evidence["confounders"]["adjusted"]["auc"]["value"]
    assert f"the AUC of trained against held out is {adjusted:.3f} (" in page.text
    rows = confounder_table(evidence["confounders"]).rows
    assert [row[0] for row in rows] == [
        *("nearest distance", "local density", "brightness", "contrast", "total variation", "compressed size"),
        "occurrences",
    ]
    copies = evidence["confounders"]["correlations_trained"]["copies"]
    assert rows[-1][2].startswith(f"{copies['value']:.3f} (")
    assert copies["value"] > 0.3  # growth was drawn to rise with copies


def test_judged_scores_are_a_table_of_one_row_each() -> None:
    scores = typical_run().scores()
    hits = np.where(scores.copies > 4, 6, 0)[scores.is_train]
    growth = {"log_growth": scores.scores["log_growth"][scores.is_train]}
    judged = {name: judgement.as_dict() for name, judgement in judge(growth, hits, 1_000).items()}
    table = judgement_table({"reproductions": {"judgement": judged}})
    assert table is not None
    expected = roc_auc_score(hits > 0, growth["log_growth"])
    assert table.rows[0][0] == "log growth"
    assert table.rows[0][1].startswith(f"{expected:.3f} (")
    assert judgement_table({}) is None


def test_page_of_a_large_run_with_large_pictures_stays_below_the_cap() -> None:
    n, generator = 1_000, np.random.default_rng(0)
    images = Images(
        [f"{'x' * 3000}{i}" for i in range(n)],
        ["train", "holdout"] * (n // 2),
        [1, 1] * (n // 2),
        generator.normal(size=n),
        generator.normal(size=n),
    )
    run = Run(images=images, rejected=Rejected([("train", "y" * 5000, f"reason {i}", "E") for i in range(3000)]))
    inputs = run.inputs()
    pictures = {key: generator.integers(0, 256, (512, 384, 3), np.uint8) for key in inputs.pictures}
    html = render_report(replace(inputs, pictures=pictures))
    assert Page(html).count("img") == 6 + 32
    assert 1 * MEGABYTE < len(html.encode()) < 8 * MEGABYTE


def test_a_page_full_of_incompressible_pictures_stays_below_the_cap(extracted: ReportInputs) -> None:
    generator = np.random.default_rng(0)
    noise = {
        key: generator.integers(0, 256, (300, 300, 3), np.uint8) for key in (*extracted.pictures, *extracted.generated)
    }
    html = render_report(replace(extracted, pictures=noise, generated=noise))
    assert Page(html).count("img") == 2 * (6 + 32) + 5
    assert 4 * MEGABYTE < len(html.encode()) < 8 * MEGABYTE


def test_every_number_says_what_it_was_made_by(extracted_html: str) -> None:
    page = Page(extracted_html)
    cited = {
        (attributes["href"] or "").removeprefix("#query-")
        for _, attributes in page.tags
        if attributes.get("class") == "cite"
    }
    assert {"summary", "verdict", "generated", "ranking", "flagged", "reproductions_by_score", "odds", "run"} <= cited
    listed = {(attributes.get("id") or "").removeprefix("query-") for tag, attributes in page.tags if tag == "div"}
    assert cited <= listed
    for block in re.findall(r'<div class="key-number">.*?</div>|<figure>.*?</figure>', extracted_html, re.DOTALL):
        assert 'class="cite"' in block or "not measured" in block
    assert set(statements()) <= {query.name for query in queries()}


def test_the_page_names_files_without_the_folders_of_whoever_made_it(inputs: ReportInputs) -> None:
    record = {**inputs.record, "model": "/home/ann/secret/ddpm", "data": {"sources": {"train": "/home/ann/photos.zip"}}}
    page = Page(render_report(replace(inputs, record=record)))
    assert "/home" not in page.text
    assert "ddpm" in page.text
    assert "photos.zip" in page.text
    named = {**inputs.record, "model": "google/ddpm-cat-256"}
    assert "google/ddpm-cat-256" in Page(render_report(replace(inputs, record=named))).text

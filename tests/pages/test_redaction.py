"""A redacted page tells nothing of pictures, names, labels and folders, and is the same whatever they are."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from latentprint.tasks.pages.html import ReportInputs, render_report, render_summary
from latentprint.tasks.pages.redaction import names_of
from tests.pages.synthetic import HOSTILE, Rejected, Run, few_images, planted
from tests.pages.test_html import Page

ODD = (*HOSTILE, "ann smith/passport (1).png", "x", "image 3", "日本.jpg", "a'b\"c&d")


@pytest.fixture(scope="module")
def redacted(extracted: ReportInputs) -> str:
    return render_report(extracted, redact=True)


def test_it_holds_no_picture_and_does_not_depend_on_any(extracted: ReportInputs, redacted: str) -> None:
    """So whoever has the training set, and knows how the page is made, can do no better than chance."""
    page = Page(redacted)
    assert page.count("img") == 0
    assert "data:image" not in redacted.replace("img-src data:", "")
    noise = np.random.default_rng(0)
    others = {key: noise.integers(0, 256, (16, 16), np.uint8) for key in extracted.pictures}
    generated = {key: noise.integers(0, 256, (16, 16), np.uint8) for key in extracted.generated}
    assert render_report(replace(extracted, pictures=others, generated=generated), redact=True) == redacted


def test_images_are_called_by_their_rank_throughout(extracted: ReportInputs, redacted: str) -> None:
    names = names_of(extracted.tables["ranking"], extracted.images)
    best = extracted.tables["ranking"]["sample_id"][0].as_py()
    assert names[best] == "image 1"
    assert len(set(names.values())) == len(names)
    page = Page(redacted)
    assert not [name for name in names if name in redacted]
    assert page.texts.count("image 1") == 2  # in the gallery, and in the ranking
    assert [text for text in page.texts if text.startswith("held-out image ")] == [names["holdout/00256"]]


def test_a_page_of_odd_names_is_that_of_plain_ones() -> None:
    pages = []
    for names in (tuple(f"plain-{i:02d}" for i in range(len(ODD))), ODD):
        images = few_images(names)
        rejected = Rejected([("train", names[0], f"only a path ({names[1]})", "OSError")])
        run = Run(images=images, rejected=rejected, model=f"/home/{names[0]}/ddpm")
        record = {**run.record(), "data": {"sources": {"train": f"secret/{names[2]}.zip"}}}
        pages.append([render(replace(run.inputs(), record=record), True) for render in (render_report, render_summary)])
    assert pages[0] == pages[1]
    assert "ddpm" in pages[1][1]
    assert "OSError" in pages[1][0]


def test_labels_sources_and_hashes_are_not_told(extracted: ReportInputs) -> None:
    ranking = extracted.tables["ranking"]
    place = ranking.column_names.index("label")
    labelled = ranking.set_column(place, "label", pa.array(["ann-smith"] * len(ranking)))
    record = {**extracted.record, "data": {"sources": {"train": "photos/ann.zip", "holdout": ["b/c.zip", "d.zip"]}}}
    limits = ["photos/ann.zip and c.zip hold the same images.", "Second limit."]
    evidence = {**extracted.evidence, "limits": limits}
    inputs = replace(extracted, record=record, evidence=evidence, tables={**extracted.tables, "ranking": labelled})
    html = render_report(inputs, redact=True)
    for secret in ("ann", "c.zip", "d.zip", "photos", *ranking["content_hash"].to_pylist()):
        assert not re.search(rf"\b{re.escape(secret)}\b", html), secret
    assert "the train data and the holdout data hold the same images." in html
    assert "ann-smith" in render_report(inputs)


def test_the_open_page_still_names_and_shows(extracted: ReportInputs, extracted_html: str) -> None:
    assert f"train/{planted().names[0]}" in extracted_html
    assert Page(extracted_html).count("img") == 2 * (6 + 32) + 5

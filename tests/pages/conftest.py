"""One realistic run for all tests of the report, and its page."""

from __future__ import annotations

import pytest

from latentprint.tasks.pages.html import ReportInputs, render_report
from tests.pages.synthetic import extracted_run, typical_run


@pytest.fixture(scope="session")
def inputs() -> ReportInputs:
    return typical_run().inputs()


@pytest.fixture(scope="session")
def html(inputs: ReportInputs) -> str:
    return render_report(inputs)


@pytest.fixture(scope="session")
def extracted() -> ReportInputs:
    """The same with generated images, odds and near duplicates."""
    return extracted_run().inputs()


@pytest.fixture(scope="session")
def extracted_html(extracted: ReportInputs) -> str:
    return render_report(extracted)

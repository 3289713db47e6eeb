"""One realistic run for all tests of the report, and its page."""

from __future__ import annotations

import pytest

from tasks.reporting.html import ReportInputs, render_report
from tests.reporting.synthetic import typical_run


@pytest.fixture(scope="session")
def inputs() -> ReportInputs:
    return typical_run().inputs()


@pytest.fixture(scope="session")
def html(inputs: ReportInputs) -> str:
    return render_report(inputs)

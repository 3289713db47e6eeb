"""``latentprint card``: a section for a model card or a data set card. No Prefect server is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from latentprint.tasks.gate.read import read_case
from latentprint.tasks.publish.card import CardInputs, dataset_section, model_metadata, model_section
from latentprint.tasks.store.files import read_json
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.store.seal import TABLES, reading, require_unchanged
from latentprint.tasks.warehouse.warehouse import Warehouse

Kind = Literal["model", "dataset", "metadata"]
WRITERS: dict[Kind, Callable[[CardInputs], str]] = {
    "model": model_section,
    "dataset": dataset_section,
    "metadata": model_metadata,
}


def card(run: Path, kind: Kind) -> str:
    """Markdown, or for ``metadata`` the YAML head of a model card.

    Raises:
        RunError: not a run directory, one without evidence, or not what was written.
        GateError: its odds cannot be read.
    """
    directory = RunDirectory(run)
    with reading(directory):
        return WRITERS[kind](read_card_inputs(directory))


def read_card_inputs(run: RunDirectory) -> CardInputs:
    """See :func:`card`."""
    case = read_case(run)
    require_unchanged(run, *TABLES)
    with Warehouse(run) as warehouse:
        (summary,) = warehouse.table("summary").to_pylist()
        by_copies, rejects = (warehouse.table(name).to_pylist() for name in ("scores_by_copies", "rejects_by_reason"))
        n_groups = warehouse.table("near_duplicate_groups").num_rows
    return CardInputs(run.read_record(), read_json(run.evidence), case, summary, by_copies, rejects, n_groups)

"""The limits of a gate, out of TOML: what a team tolerates, kept under version control beside the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from latentprint.tasks.gate.decide import Limits
from latentprint.tasks.gate.read import GateError
from latentprint.tasks.gate.waivers import read_toml
from latentprint.tasks.pages.formats import visible


class Policy(NamedTuple):
    """Limits, and where they are from."""

    limits: Limits
    sha256: str
    """Of the file's bytes."""


def read_policy(path: Path, given: Limits) -> Policy:
    """The limits of a TOML file, named as the gate's options are: ``max-auc = 0.6``.

    Args:
        given: limits that win over the file's, where they are set.

    Raises:
        GateError: there is no such file, it is not TOML, a name is not that of a limit, or a limit is out of bounds.
    """
    content, sha256 = read_toml(path, "limits")
    names = {field.replace("_", "-"): field for field in Limits.model_fields}
    if unknown := [name for name in content if name not in names]:
        known = ", ".join(names)
        raise GateError(f"{path}: {visible(unknown[0])} is no limit; the limits are {known}")
    limits = {names[name]: value for name, value in content.items()}
    try:
        checked = Limits.model_validate(limits, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise GateError(f"{path}: {str(first['loc'][0]).replace('_', '-')}: {first['msg']}") from error
    return Policy(checked.model_copy(update=given.model_dump(exclude_unset=True)), sha256)

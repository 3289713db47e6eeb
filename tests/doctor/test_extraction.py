"""What an extraction is said to take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from latentprint.tasks.datasets.decoding import Picture
from latentprint.tasks.diffusion.layout import Checkpoint
from latentprint.tasks.doctor.extraction import extraction_seconds
from latentprint.tasks.doctor.patient import Patient
from latentprint.tasks.parameters import ComputeParameters, ExtractParameters, ScoreParameters
from latentprint.tasks.store.files import write_json


@pytest.mark.parametrize(("parameters", "n"), [(None, 1), ({"seed": 0}, 1), ({"flip": True}, 2)])
def test_mirror_images_that_will_be_matched_double_the_distances(
    parameters: object, n: int, digits: np.ndarray, tmp_path: Path
) -> None:
    if parameters is not None:
        write_json(tmp_path / "training.json", {"parameters": parameters})
    patient = Patient("model", {"train": "there"}, ScoreParameters(), ComputeParameters(threads=1), tmp_path / "run")
    patient.fitting_pictures, patient.n_items = {"train": [Picture(digits[0]), Picture(digits[1])]}, {"train": 30}
    patient.checkpoint = Checkpoint(tmp_path, tmp_path, None)
    values = extraction_seconds(patient, ExtractParameters(samples=20, steps=2, embedding="patches"), 0.0, 1)
    alone = 2 * 20 * 30 + 30 * 30 + 20 * 30 + 30 * 30
    assert values["match_distances"] == n * alone

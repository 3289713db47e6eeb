"""What an extraction is said to take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from latentprint.tasks.datasets.decoding import Picture
from latentprint.tasks.diffusion.layout import Checkpoint
from latentprint.tasks.doctor.extraction import extraction_seconds
from latentprint.tasks.doctor.patient import Patient
from latentprint.tasks.parameters import ComputeParameters, ExtractParameters, ScoreParameters, TrainParameters
from latentprint.tasks.store.files import write_json


@pytest.mark.parametrize(("flip", "n"), [(None, 2), (False, 1), (True, 2)])
def test_mirror_images_that_will_be_matched_double_the_distances(
    flip: bool | None, n: int, digits: np.ndarray, tmp_path: Path
) -> None:
    if flip is not None:
        write_json(tmp_path / "training.json", {"parameters": TrainParameters(flip=flip).model_dump(mode="json")})
    patient = Patient("model", {"train": "there"}, ScoreParameters(), ComputeParameters(threads=1), tmp_path / "run")
    patient.fitting_pictures, patient.n_items = {"train": [Picture(digits[0]), Picture(digits[1])]}, {"train": 30}
    patient.checkpoint = Checkpoint(tmp_path, tmp_path, None)
    values = extraction_seconds(patient, ExtractParameters(samples=20, steps=2, embedding="patches"), 0.0, 1)
    alone = 2 * 20 * 30 + 30 * 30 + 20 * 30 + 30 * 30
    assert values["match_distances"] == n * alone

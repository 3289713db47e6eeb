"""What an extraction is made from is claimed; what it wrote is counted, and failures are said."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latentprint.tasks.compute.models import training_record
from latentprint.tasks.diffusion.checkpoint_files import CheckpointError
from latentprint.tasks.diffusion.layout import Checkpoint
from latentprint.tasks.extract import tasks
from latentprint.tasks.extract.match import summarise
from latentprint.tasks.extract.tasks import (
    ExtractionFailed,
    claim_samples,
    decide_mirroring,
    finish,
    generate_group,
    match_and_count,
)
from latentprint.tasks.parameters import ExtractParameters, TrainParameters
from latentprint.tasks.store.checksums import add_checksums, read_checksums
from latentprint.tasks.store.files import write_json
from latentprint.tasks.store.run import RunDirectory, RunError
from tests.extract.runs import Told, planted, sharded

TEN = ExtractParameters(samples=10, steps=4)
PARTS = ("samples/samples-000000.tar", "matches/part-a.parquet", "reproductions/part-a.parquet")
PARTS += ("false-copies/part-a.parquet",)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An extraction that has ended."""
    run = RunDirectory(tmp_path / "run")
    write_json(run.record, {"data": {}})
    claim_samples(run, "c", TEN)
    for name in PARTS:
        (run.path / name).parent.mkdir()
        (run.path / name).write_text(name)
    write_json(run.extraction, {})
    write_json(run.path / "note", {})
    add_checksums(run, [run.extraction, run.path / "note", *(run.path / name for name in PARTS)])
    return run


def there(run: RunDirectory) -> set[str]:
    return {name for name in (*PARTS, "extraction.json") if (run.path / name).exists()}


def test_the_same_extraction_goes_on_where_it_was_and_more_keep_what_is_there(run: RunDirectory) -> None:
    wanted = {"checkpoint_sha256": "c", "parameters": TEN.model_dump(mode="json")}
    assert run.read_record()["extraction"] == wanted
    claim_samples(run, "c", TEN)
    assert there(run) == {*PARTS, "extraction.json"}
    assert read_checksums(run).keys() == {*PARTS, "extraction.json", "note"}
    claim_samples(run, "c", TEN.model_copy(update={"samples": 11}))
    assert there(run) == {*PARTS}
    assert read_checksums(run).keys() == {"note"}
    assert run.read_record()["extraction"] == wanted | {"parameters": {**wanted["parameters"], "samples": 11}}
    claim_samples(run, "c", TEN.model_copy(update={"samples": 12}))
    assert there(run) == {*PARTS}


def test_samples_stay_where_mirror_images_are_matched_from_now_on(run: RunDirectory) -> None:
    for is_mirrored in (True, False):
        changed = TEN.model_copy(update={"samples": 10}).decided(is_mirrored)
        claim_samples(run, "c", changed)
        assert there(run) == {*PARTS}
        assert run.read_record()["extraction"]["parameters"] == changed.model_dump(mode="json")
        assert (run.read_record()["extraction"]["parameters"].get("mirror") == "on") == is_mirrored
        add_checksums(run, [run.path / name for name in PARTS])
    with pytest.raises(RunError, match="samples: 10 there, 9 now"):
        claim_samples(run, "c", TEN.model_copy(update={"samples": 9}).decided(True))


def model_of(folder: Path, training: object) -> Checkpoint:
    folder.mkdir()
    if training is not None:
        write_json(folder / "training.json", training)
    return Checkpoint(folder, folder, None)


PLAIN, FLIPPED = ({"parameters": TrainParameters(flip=flip).model_dump(mode="json")} for flip in (False, True))
UNKNOWN = "no training record says whether images were flipped"


@pytest.mark.parametrize(
    ("asked", "training", "is_on", "why"),
    [
        ("on", PLAIN, True, "--mirror on was given"),
        ("off", FLIPPED, False, "--mirror off was given"),
        ("auto", None, True, UNKNOWN),
        ("auto", {"parameters": "odd"}, True, UNKNOWN),
        ("auto", {"parameters": {"horizontal_flip": True}}, True, UNKNOWN),
        ("auto", {"parameters": {"seed": 0}}, True, UNKNOWN),
        ("auto", {"parameters": {**PLAIN["parameters"], "random_flip": True}}, True, UNKNOWN),
        ("auto", {**PLAIN, "checkpoint_sha256": "of another one"}, True, UNKNOWN),
        ("auto", {**PLAIN, "checkpoint_sha256": "c"}, False, "the training record says that no images were flipped"),
        ("auto", PLAIN, False, "the training record says that no images were flipped"),
        ("auto", FLIPPED, True, "the training record says that images were flipped"),
    ],
)
def test_mirror_images_count_as_asked_for_or_as_the_training_record_says(
    asked: str, training: object, is_on: bool, why: str, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    write_json(run.record, {"data": {}})
    assert decide_mirroring(run, model_of(tmp_path / "model", training), "c", asked) == (is_on, why)


@pytest.mark.parametrize("content", ["no JSON", "[1]"])
def test_a_training_record_that_is_none_is_no_error(content: str, run: RunDirectory, tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", None)
    (model.folder / "training.json").write_text(content)
    assert training_record(model.folder, "c") == {}


def test_a_run_that_was_extracted_before_mirror_images_were_known_goes_on_without(run: RunDirectory) -> None:
    found = decide_mirroring(run, model_of(run.path / "model", None), "c", "auto")
    assert found == (False, "the run was extracted without them before")


@pytest.mark.parametrize("flip", [False, True])
def test_an_extraction_goes_on_as_it_was_unless_asked_otherwise(flip: bool, run: RunDirectory) -> None:
    model = model_of(run.path / "model", FLIPPED if flip else PLAIN)
    claim_samples(run, "c", TEN.decided(flip))
    says = f"the training record says that {'' if flip else 'no '}images were flipped"
    assert decide_mirroring(run, model, "c", "auto") == (flip, says)
    claim_samples(run, "c", TEN.decided(not flip))
    before = "without" if flip else "with"
    assert decide_mirroring(run, model, "c", "auto") == (not flip, f"the run was extracted {before} them before")


@pytest.mark.parametrize("samples", [10, 11])
@pytest.mark.parametrize("damaged", PARTS)
def test_a_damaged_part_is_made_again(damaged: str, samples: int, run: RunDirectory) -> None:
    (run.path / damaged).write_text("changed")
    claim_samples(run, "c", TEN.model_copy(update={"samples": samples}))
    assert {*PARTS} - there(run) == {damaged}


@pytest.mark.parametrize(
    ("checksum", "changes", "says"),
    [
        ("c", {"samples": 9}, "(samples: 10 there, 9 now): ask for 10 samples or more"),
        ("d", {}, "(checkpoint_sha256: c there, d now): give the same options, or extract from a copy"),
        ("c", {"samples": 20, "seed": 1}, "(samples: 10 there, 20 now): give the same options, or extract from a copy"),
        ("c", {"samples": 9, "seed": 1}, "(samples: 10 there, 9 now): give the same options, or extract from a copy"),
    ],
)
def test_another_extraction_is_refused_and_nothing_is_removed(
    checksum: str, changes: dict[str, Any], says: str, run: RunDirectory
) -> None:
    before = run.record.read_bytes()
    with pytest.raises(RunError) as refusal:
        claim_samples(run, checksum, TEN.model_copy(update=changes))
    assert str(refusal.value) == f"{run.path} holds an extraction {says}"
    assert there(run) == {*PARTS, "extraction.json"}
    assert run.record.read_bytes() == before


@pytest.mark.parametrize("place", ["samples", "matches", "reproductions", "false-copies"])
def test_parts_that_somebody_added_to_a_finished_extraction_are_refused(place: str, run: RunDirectory) -> None:
    added = f"{place}/{'samples-000009.tar' if place == 'samples' else 'part-z.parquet'}"
    (run.path / added).write_text("added")
    with pytest.raises(RunError, match=f"{added}: not in SHA256SUMS"):
        claim_samples(run, "c", TEN)


def future(failure: Exception | None) -> Any:
    def result(raise_on_failure: bool = True) -> Any:
        if failure is not None and raise_on_failure:
            raise AssertionError("a failure is returned, not raised")
        return failure

    return SimpleNamespace(state=SimpleNamespace(is_completed=lambda: failure is None, result=result))


def test_what_failed_is_said_a_changed_checkpoint_first(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(tasks, "wait", waited.append)
    futures = [future(None), future(None)]
    finish(futures)
    assert waited == [futures]
    with pytest.raises(ExtractionFailed, match=r"^generating: no memory; finished tars are kept, run again$"):
        finish([future(None), future(MemoryError("no memory")), future(ValueError("later"))])
    with pytest.raises(CheckpointError, match=r"^changed$"):
        finish([future(MemoryError("no memory")), future(CheckpointError("changed")), future(None)])


def test_a_group_counts_the_samples_of_its_tars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "run_on_device", lambda function, job: job * (function is tasks.generate_shard))
    assert generate_group.fn([3, 4]) == 7


@pytest.mark.parametrize(("asked", "taken"), [(0, None), (2, 2)])
def test_matching_ends_with_a_summary_and_is_followed(
    asked: int, taken: int | None, digits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sharded(tmp_path / "run", digits[:5], digits[100:103])
    jobs, followed, limits = planted(run.path, digits, samples_per_tar=40), [], []

    class Followed(Told):
        def __init__(self, *about: Any) -> None:
            super().__init__()
            followed.append((self, about))

    @contextmanager
    def limited(n: int | None) -> Any:
        limits.append(n)
        yield

    monkeypatch.setattr(tasks, "Progress", Followed)
    monkeypatch.setattr(tasks, "threadpool_limits", limited)
    summary = match_and_count.fn(run.path, jobs, asked, "it was asked for")
    assert limits == [taken]
    assert summary == {
        "parameters": jobs[0].parameters.model_dump(mode="json"),
        "mirror": {"is_on": False, "why": "it was asked for"},
        **summarise(run, "pixel"),
    }
    assert json.loads(run.extraction.read_text()) == json.loads(json.dumps(summary))
    assert [about for _, about in followed] == [
        ("matching", 40, "samples"),
        ("counting", 5, "training images"),
        ("false copies", 3 * 4096, "images at most"),
    ]
    assert [progress.done for progress, _ in followed] == [40, 5, 3 + 5 + 40]

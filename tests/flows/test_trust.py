"""A run that was edited, cut or mixed with another is refused by whatever reads it, in one line, and passes no gate."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.examples.release_gate import Blocked, is_whole_release
from infra.examples.release_gate import publish as release_files
from latentprint.flows.audit import audit
from latentprint.flows.cli import main as cli
from latentprint.flows.curate import curate
from latentprint.flows.odds import odds
from latentprint.flows.report import report
from latentprint.flows.score import score
from latentprint.tasks.compare.read import compare
from latentprint.tasks.diffusion.checkpoint import CheckpointError, checkpoint_sha256, load_denoiser
from latentprint.tasks.errors import UserError
from latentprint.tasks.explain.words import explain, in_words
from latentprint.tasks.gate.decide import Limits
from latentprint.tasks.gate.judge import gate
from latentprint.tasks.gate.read import GateError
from latentprint.tasks.parameters import (
    ComputeParameters,
    CurateParameters,
    ExtractParameters,
    OddsParameters,
    ScoreParameters,
    ValidityParameters,
)
from latentprint.tasks.publish.mlflow import publish
from latentprint.tasks.publish.read import card
from latentprint.tasks.store.files import read_json, write_json
from latentprint.tasks.store.run import RunDirectory, RunError
from latentprint.tasks.store.seal import seal
from latentprint.tasks.verify import verify_run
from tests.store.runs import reseal

ONE_THREAD = ComputeParameters(devices=("cpu",), threads=1)
SCORING, VALIDITY = ScoreParameters(timestep=20), ValidityParameters(images=8)
LOOSE = Limits(max_auc=0.99, max_memorized_share=0.99)
Edit = Callable[[RunDirectory], object]


@pytest.fixture(scope="module")
def audited(
    prefect: None, checkpoint: Path, digit_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A whole run: scored, scored again, extracted, with odds, reported."""
    run, (train, holdout) = tmp_path_factory.mktemp("runs") / "audited", map(str, digit_files)
    few = ExtractParameters(samples=32, steps=4)
    audit(str(checkpoint), train, run, holdout, SCORING, ONE_THREAD, extraction=few, validity=VALIDITY)
    odds(run, OddsParameters(top=2, steps=3, prior=24, chains=4, chain_length=3, levels=3))
    report(run)
    return run


@pytest.fixture
def run(audited: Path, tmp_path: Path) -> RunDirectory:
    """A copy to edit."""
    return RunDirectory(Path(shutil.copytree(audited, tmp_path / "run")))


def set_columns(path: Path, **values: Any) -> None:
    """Every row of a Parquet file gets these values; its metadata stay."""
    table = pq.read_table(path)
    for name, value in values.items():
        column = pa.array([value] * len(table), table.schema.field(name).type)
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    pq.write_table(table, path)


def set_json(path: Path, value: Any, *names: str) -> None:
    content = json.loads(path.read_text())
    place = content
    for name in names[:-1]:
        place = place[name]
    place[names[-1]] = value
    path.write_text(json.dumps(content))


def first(folder: Path, pattern: str = "*") -> Path:
    return sorted(folder.glob(pattern))[0]


def swap_rows(path: Path, column: str) -> None:
    """The values of a column in reverse order."""
    table = pq.read_table(path)
    reverse = table[column].take(pa.array(range(len(table) - 1, -1, -1)))
    pq.write_table(table.set_column(table.schema.get_field_index(column), table.schema.field(column), reverse), path)


def to_holdout(run: RunDirectory) -> None:
    set_columns(run.manifest, split="holdout")


def delete(run: RunDirectory, name: str) -> None:
    (run.path / name).unlink()


def link_elsewhere(run: RunDirectory, name: str) -> None:
    """The same bytes behind a symbolic link."""
    there = run.path.parent / "elsewhere"
    shutil.move(run.path / name, there)
    (run.path / name).symlink_to(there)


READ_BY_REPORT: dict[str, Edit] = {
    "training scores set to -9": lambda run: set_columns(first(run.scores, "*train*"), log_growth=-9.0),
    "held-out scores set to 9": lambda run: set_columns(first(run.scores, "*holdout*"), log_growth=9.0),
    "a part deleted": lambda run: first(run.scores).unlink(),
    "a part added": lambda run: shutil.copy(first(run.scores), run.scores / "part-more.parquet"),
    "a part behind a link": lambda run: link_elsewhere(run, f"scores/{first(run.scores).name}"),
    "groups set": lambda run: set_columns(run.manifest, near_duplicate_group=1),
    "copies set to 1": lambda run: set_columns(run.manifest, copies=1),
    "labels set": lambda run: set_columns(run.manifest, label="3"),
    "shard positions exchanged": lambda run: swap_rows(run.manifest, "shard_index"),
    "all held out": to_holdout,
    "rejects emptied": lambda run: pq.write_table(
        pq.read_table(run.rejects).slice(0, 0), run.rejects, compression="gzip"
    ),
    "calibration images edited": lambda run: set_columns(run.calibration_images, log_growth=0.0),
    "calibration edited": lambda run: run.calibration.write_text(run.calibration.read_text() + " "),
    "scores again edited": lambda run: set_columns(first(run.validity), log_growth=0.0),
    "extraction edited": lambda run: set_json(run.extraction, 0, "ratio", "n_copies"),
    "extraction deleted": lambda run: delete(run, "extraction.json"),
    "hits set to 0": lambda run: set_columns(first(run.reproductions), hits=0),
    "matches edited": lambda run: set_columns(first(run.matches), is_copy=False, is_copy_adaptive=False),
    "false copies deleted": lambda run: first(run.false_copies).unlink(),
    "a sample tar cut": lambda run: os.truncate(first(run.samples), 1024),
    "a shard cut": lambda run: os.truncate(first(run.shards, "*.tar"), 1024),
    "odds edited": lambda run: set_columns(run.odds, log_probability_high=-99.0),
    "another run's parameters": lambda run: set_json(run.record, 9, "scoring", "parameters", "axes"),
    "another checkpoint": lambda run: set_json(run.record, "0" * 64, "scoring", "checkpoint_sha256"),
    "another sampler": lambda run: set_json(run.record, 999, "extraction", "parameters", "steps"),
    "SHA256SUMS deleted": lambda run: run.checksums.unlink(),
    "SHA256SUMS emptied": lambda run: run.checksums.write_text(""),
    "a line of SHA256SUMS deleted": lambda run: run.checksums.write_text(
        "".join(line for line in run.checksums.open() if "scores/part-train" not in line)
    ),
}
READ_BY_GATE: dict[str, Edit] = {
    "AUC of the evidence": lambda run: set_json(run.evidence, 0.5, "verdict", "membership", "auc"),
    "evidence of nothing": lambda run: write_json(run.evidence, {"run_id": run.read_record()["run_id"]}),
    "evidence deleted": lambda run: run.evidence.unlink(),
    "evidence cut": lambda run: os.truncate(run.evidence, 100),
    "evidence and its run id": lambda run: set_json(run.evidence, "x", "run_id"),
    "record's run id": lambda run: set_json(run.record, "x", "run_id"),
    "record's model": lambda run: set_json(run.record, "/elsewhere", "model"),
    "odds deleted": lambda run: run.odds.unlink(),
    **{name: READ_BY_REPORT[name] for name in ("odds edited", "all held out", "groups set", "another checkpoint")},
    **{name: READ_BY_REPORT[name] for name in ("SHA256SUMS deleted", "SHA256SUMS emptied", "another sampler")},
}
READ_BY_CURATE: dict[str, Edit] = {
    "flags all false": lambda run: set_columns(run.flags, is_flagged=False, q_value=1.0),
    "flags of other columns": lambda run: pq.write_table(pa.table({"a": [1]}), run.flags),
    "a shard of other images": lambda run: shutil.copy(
        first(run.shards, "holdout*.tar"), first(run.shards, "train*.tar")
    ),
    **{name: READ_BY_REPORT[name] for name in ("training scores set to -9", "copies set to 1", "a shard cut")},
}


def refused(work: Callable[[], object]) -> str:
    """The one line with which something is refused."""
    with pytest.raises((RunError, GateError)) as refusal:
        work()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_run_as_written_is_taken_by_all_and_has_a_seal(audited: Path, run: RunDirectory) -> None:
    assert [str(finding) for finding in verify_run(run)] == []
    verdict = gate(run.path, LOOSE, seal=seal(run))
    assert verdict.seal == seal(run) == seal(RunDirectory(audited)) != ""
    assert card(run.path, "model")
    assert curate(run.path, run.path.parent / "set", CurateParameters(action="dedupe"))["n_samples"]
    name = pq.read_table(run.manifest)["sample_id"][0].as_py()
    assert list(in_words(explain(run.path, name)))
    assert report(run.path)["seal"] == seal(run)


@pytest.mark.parametrize("edit", READ_BY_REPORT)
def test_no_report_is_made_of_an_edited_run(run: RunDirectory, edit: str) -> None:
    READ_BY_REPORT[edit](run)
    evidence = run.evidence.read_bytes()
    assert any(word in refused(lambda: report(run.path)) for word in ("again", "put it back", "delete it"))
    assert run.evidence.read_bytes() == evidence
    assert list(verify_run(run))


@pytest.mark.parametrize("edit", READ_BY_GATE)
def test_no_gate_and_no_card_read_an_edited_run(run: RunDirectory, edit: str) -> None:
    READ_BY_GATE[edit](run)
    refused(lambda: gate(run.path, LOOSE))
    refused(lambda: card(run.path, "model"))
    refused(lambda: publish(run, "sqlite:///never.db", "e"))
    assert not Path("never.db").exists()


@pytest.mark.parametrize("edit", READ_BY_CURATE)
def test_nothing_is_curated_and_nothing_explained_from_an_edited_run(
    audited: Path, run: RunDirectory, edit: str
) -> None:
    name = pq.read_table(run.manifest)["sample_id"][0].as_py()
    READ_BY_CURATE[edit](run)
    refused(lambda: explain(run.path, name))
    refused(lambda: curate(run.path, run.path.parent / "set", CurateParameters(action="drop", images="FROM ranking")))
    assert not list((run.path.parent / "set").glob("*.tar"))
    if "shard" not in edit:  # the page shows no image of the earlier run
        refused(lambda: compare(run.path, audited, run.path.parent / "page.html"))


def test_damaged_flags_are_made_again_by_report_and_damaged_parts_by_score(run: RunDirectory, checkpoint: Path) -> None:
    before = seal(run)
    pq.write_table(pa.table({"a": [1]}), run.flags)
    report(run.path)
    assert seal(run) == before
    set_columns(first(run.validity), log_growth=0.0)
    score(run.path, str(checkpoint), SCORING, ONE_THREAD, validity=VALIDITY)
    report(run.path)
    assert seal(run) == before
    shutil.copy(first(run.scores), run.scores / "part-more.parquet")
    assert "it was added to a finished run" in refused(lambda: score(run.path, str(checkpoint), SCORING, ONE_THREAD))


def test_a_run_of_an_earlier_version_is_told_what_to_do(run: RunDirectory) -> None:
    recorded = "".join(line for line in run.checksums.open() if "validity/" not in line)
    run.checksums.write_text(recorded)
    assert "validity/part-exact_tangents.parquet: not in SHA256SUMS" in refused(lambda: report(run.path))
    assert "run the same 'latentprint score' again" in refused(lambda: report(run.path))


def test_whoever_writes_the_sums_as_well_is_told_by_the_seal_alone(run: RunDirectory) -> None:
    known = seal(run)
    set_json(run.evidence, 0, "conformal", "n_flagged")
    reseal(run)
    gate(run.path, LOOSE)
    assert "not the run you expect" in refused(lambda: gate(run.path, LOOSE, seal=known))
    assert "not the run you expect" in refused(
        lambda: gate(run.path, Limits(max_auc_increase=0.5), run.path, baseline_seal=known)
    )


def test_a_report_of_foreign_json_is_one_line_too(run: RunDirectory) -> None:
    set_json(run.extraction, 5, "ratio")
    reseal(run)
    assert "not as latentprint writes them (AttributeError" in refused(lambda: report(run.path))
    set_json(run.record, 10**6, "images", "train", "distinct")
    assert "its counts of images are not those of the manifest" in refused(lambda: report(run.path))


def test_a_clock_behind_the_run_revives_no_waiver(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Clock(datetime):
        now_: datetime

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.now_

    monkeypatch.setattr("latentprint.tasks.gate.judge.datetime", Clock)
    waivers, today = tmp_path / "waivers.toml", datetime.now(UTC)
    expired = (today - timedelta(days=2)).date().isoformat()
    strict = Limits(max_memorized_share=0.0, max_auc=0.0)
    waivers.write_text(
        f'[[waiver]]\nrule = "max-auc"\nreason = "r"\nowner = "o"\nexpires = {expired}\n'
        f'checkpoint = "{"0" * 12}"\nceiling = 1.0\n'
    )
    for back in (30, 400):
        Clock.now_ = today - timedelta(days=back)
        assert "the clock says" in refused(lambda: gate(run.path, strict, waivers=waivers))
    for back in (0, 1):  # clocks of two machines may differ by a day, and the later one counts
        Clock.now_ = today - timedelta(days=back)
        verdict = gate(run.path, strict, waivers=waivers)
        assert verdict.decided_on == today.date()
        assert verdict.waivers[0].problem.startswith("expired")
    Clock.now_ = today + timedelta(days=90)
    gate(run.path, strict)
    Clock.now_ = today
    assert "verdict.json is of" in refused(lambda: gate(run.path, strict))
    run.verdict.write_text("[]")
    assert "delete it" in refused(lambda: gate(run.path, strict))


EVERY = bool(os.environ.get("LATENTPRINT_EVERY_BIT"))
"""In a study: many more positions and examples."""
ESC = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r"


def call(arguments: list[object], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["latentprint", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_texts_of_a_foreign_run_cannot_steer_the_terminal(
    run: RunDirectory, audited: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = pq.read_table(run.manifest)["sample_id"][0].as_py()
    set_columns(run.odds, one_in=f"one {ESC}")
    set_json(run.record, f"{ESC}model", "model")
    set_json(run.evidence, f"because {ESC}", "verdict", "membership", "reason")
    set_json(run.evidence, True, "verdict", "membership", "is_void")
    set_json(run.evidence, [f"limit {ESC}"], "limits")
    set_json(run.evidence, ESC, "verdict", "membership", "level")
    reseal(run)
    commands: list[list[object]] = [
        ["gate", "--run", run.path, "--max-auc", 0.6],
        *(["card", "--run", run.path, "--kind", kind] for kind in ("model", "dataset", "metadata")),
        ["explain", name, "--run", run.path],
        ["report", "--compare", run.path, audited],
        ["curate", "--run", run.path, "--out", run.path.parent / "set"],
        ["verify", "--run", run.path],
    ]
    (run.path / "scores" / f"part-{ESC[:10].replace('/', '')}.parquet").write_bytes(b"")
    commands += [["verify", "--run", run.path], ["explain", name, "--run", run.path]]
    for command in commands:
        for form in ([], ["--json"]):
            call([*command, *form], monkeypatch)
            printed = "".join(capsys.readouterr())
            assert not set(printed) & set("\x1b\x07\x9b\u202e\r\x7f"), command
            assert "Traceback" not in printed


def footers(path: Path) -> Iterator[int]:
    """Positions of every 64th bit of the footer, the last 8 bytes among them."""
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    return iter(range(8 * (len(content) - 8 - length), 8 * len(content), 64))


@pytest.mark.parametrize("name", ["manifest.parquet", "flags.parquet"])
def test_no_flipped_bit_of_a_footer_ends_in_a_traceback_whoever_wrote_the_sums(run: RunDirectory, name: str) -> None:
    """Where SHA256SUMS tells, nothing is read; here it was written anew, and every reader meets the damage itself."""
    from latentprint.flows.cli.answers import open_warehouse
    from latentprint.tasks.warehouse.queries import QueryError
    from latentprint.tasks.warehouse.warehouse import ChecksFailed

    path = run.path / name
    whole, outcomes = path.read_bytes(), {"refused": 0, "read": 0}
    works: list[Callable[[], object]] = [
        lambda: gate(run.path, LOOSE),
        lambda: card(run.path, "dataset"),
        lambda: open_warehouse(run.path, []).table("ranking"),
    ]
    for bit in list(footers(path))[:: 1 if EVERY else 96]:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        if name == "manifest.parquet":  # flags are made again
            assert name in refused(lambda: report(run.path))
        reseal(run)
        for work in works:
            try:
                work()
                outcomes["read"] += 1
            except (RunError, GateError, QueryError, ChecksFailed):
                outcomes["refused"] += 1
    assert outcomes["refused"]


VALUES = st.one_of(
    st.sampled_from([None, True, -1, 10**400, float("nan"), float("inf"), "0.1", "x" * 5000, [], {}, [[]], ESC]),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=5
    ),
)


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else []
    return [p for key, item in items for p in [(*path, key), *places(item, (*path, key))]]


@settings(max_examples=600 if EVERY else 15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_the_json_of_a_foreign_run_holds_is_one_line(
    run: RunDirectory, audited: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["evidence.json", "run.json"]))
    content = json.loads((audited / name).read_text())
    known = places(content)
    place = known[data.draw(st.integers(0, len(known) - 1))]
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = data.draw(VALUES)
    shutil.copy(audited / "run.json", run.record)
    shutil.copy(audited / "evidence.json", run.evidence)
    (run.path / name).write_text(json.dumps(content))
    run.verdict.unlink(missing_ok=True)
    reseal(run)
    sample = pq.read_table(run.manifest)["sample_id"][0].as_py()
    works: list[Callable[[], object]] = [
        lambda: gate(run.path, LOOSE),
        *(lambda kind=kind: card(run.path, kind) for kind in ("model", "dataset", "metadata")),
        lambda: list(in_words(explain(run.path, sample))),
        lambda: compare(run.path, audited, run.path.parent / "page.html"),
    ]
    for work in works:
        try:
            work()
        except UserError as error:
            if "\n" in str(error):
                raise


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, "1" * 5000, '"\\ud800"', "\xff"]
)
@pytest.mark.parametrize("name", ["evidence.json", "run.json", "verdict.json"])
def test_what_is_no_json_object_is_one_line(run: RunDirectory, name: str, text: str) -> None:
    (run.path / name).write_bytes(text.encode("latin-1"))
    assert name in refused(lambda: gate(run.path, LOOSE))


def test_a_pipe_in_place_of_a_file_is_not_waited_for(run: RunDirectory) -> None:
    for name in ("evidence.json", "run.json", "odds.parquet", "verdict.json"):
        (run.path / name).rename(run.path / "aside") if (run.path / name).exists() else (run.path / "aside").touch()
        os.mkfifo(run.path / name)
        assert name in refused(lambda: gate(run.path, LOOSE))
        (run.path / name).unlink()
        (run.path / "aside").rename(run.path / name)
    part = first(run.scores)
    for path in (part, run.checksums):
        path.unlink()
        os.mkfifo(path)
        assert path.name in refused(lambda: report(run.path))
        found = str([*verify_run(run)]) if path == part else refused(lambda: list(verify_run(run)))
        assert "no regular file" in found or "a pipe, socket or device" in found
    run.checksums.unlink()
    part.unlink()
    reseal(run)
    waivers = run.path.parent / "waivers.toml"
    os.mkfifo(waivers)
    assert "waivers cannot be read" in refused(lambda: gate(run.path, LOOSE, waivers=waivers))


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: f"[[waiver]]\n{text}".encode()))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_of_waivers_holds_is_taken_or_one_line(tmp_path: Path, content: bytes) -> None:
    from latentprint.tasks.gate.waivers import read_waivers

    (tmp_path / "waivers.toml").write_bytes(content)
    try:
        read_waivers(tmp_path / "waivers.toml")
    except GateError as error:
        if "waivers.toml" not in str(error):
            raise


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


def test_only_the_audited_files_are_released_into_a_new_folder(model: Path, tmp_path: Path) -> None:
    audited = checkpoint_sha256(model)
    for more in ("notes.txt", "unet/code.py", "unet/more.bin", ".env"):
        (model / more).write_text("secret")
    released = release_files.fn(model, tmp_path / "released", audited)
    assert is_whole_release(released, audited)
    names = {path.relative_to(released).as_posix() for path in released.rglob("*") if path.is_file()}
    assert names == {"model_index.json", "unet/config.json", WEIGHTS.as_posix(), "scheduler/scheduler_config.json"}
    assert release_files.fn(model, released, audited) == released
    (released / "more").touch()
    with pytest.raises(Blocked, match="choose a new folder"):
        release_files.fn(model, released, audited)


@pytest.mark.parametrize("changed", [WEIGHTS, Path("unet/config.json"), Path("scheduler/scheduler_config.json")])
def test_another_model_than_the_audited_one_is_not_released(model: Path, tmp_path: Path, changed: Path) -> None:
    audited = checkpoint_sha256(model)
    (model / changed).write_bytes((model / changed).read_bytes() + b" ")
    with pytest.raises(Blocked, match="not the checkpoint that the run audited"):
        release_files.fn(model, tmp_path / "released", audited)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_weights_swapped_after_the_hash_and_links_are_not_released(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audited, copy = checkpoint_sha256(model), shutil.copyfile

    def swap_and_copy(source: Path, target: Path, **options: Any) -> Any:
        if source == model / WEIGHTS:
            source.write_bytes(b"other weights")
        return copy(source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr("infra.examples.release_gate.shutil.copyfile", swap_and_copy)
        with pytest.raises(Blocked, match="not the checkpoint that the run audited"):
            release_files.fn(model, tmp_path / "released", audited)
    shutil.move(model / WEIGHTS, tmp_path / "weights")
    (model / WEIGHTS).symlink_to(tmp_path / "weights")
    with pytest.raises(Blocked, match="is a link"):
        release_files.fn(model, tmp_path / "released", checkpoint_sha256(model))
    assert not (tmp_path / "released").exists()
    assert not list(tmp_path.glob(".released*"))


def test_weights_of_another_folder_are_not_loaded_beside_the_hash(model: Path, tmp_path: Path) -> None:
    """The hash covers what lies in the parts: an index of shards may name nothing else."""
    shutil.move(model / WEIGHTS, tmp_path / "outside.safetensors")
    write_json(
        model / "unet" / "diffusion_pytorch_model.safetensors.index.json",
        {"weight_map": {"a": "../../outside.safetensors"}},
    )
    (model / "unet" / "other.safetensors").touch()
    with pytest.raises(CheckpointError, match="which is not a file beside it"):
        load_denoiser(str(model), "cpu")


def test_a_pipelines_index_is_part_of_the_checkpoint(model: Path) -> None:
    before = checkpoint_sha256(model)
    index = read_json(model / "model_index.json")
    write_json(model / "model_index.json", {**index, "_class_name": "Another"})
    assert checkpoint_sha256(model) != before


def test_the_digest_of_a_manifest_covers_every_column_that_matters(run: RunDirectory) -> None:
    from latentprint.tasks.store.manifest import NOT_COVERED, manifest_digest
    from latentprint.tasks.store.schemas import MANIFEST

    known, table = manifest_digest(run.manifest), pq.read_table(run.manifest)
    path = run.path / "other.parquet"
    pq.write_table(table, path, row_group_size=7, compression="gzip")
    assert manifest_digest(path) == known  # whatever way it is stored
    for field in MANIFEST:
        values = table[field.name].to_pylist()
        values[3] = None if values[3] == "x" else "x" if pa.types.is_string(field.type) else (values[3] or 0) + 1
        changed = pa.array(values, field.type)
        pq.write_table(table.set_column(table.schema.get_field_index(field.name), field.name, changed), path)
        assert (manifest_digest(path) == known) == (field.name in NOT_COVERED), field.name
    null, empty = (
        table.set_column(table.schema.get_field_index("label"), "label", pa.array([value] * len(table), pa.string()))
        for value in (None, "")
    )
    digests = set()
    for one in (null, empty):
        pq.write_table(one, path)
        digests.add(manifest_digest(path))
    assert len(digests) == 2
    assert pc.all(pc.is_valid(table["sample_id"])).as_py()

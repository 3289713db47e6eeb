"""Files of a checkpoint, made by hand: what is counted in them, and the last value that each limit takes."""

from __future__ import annotations

import hashlib
import json
import math
import re
import resource
import struct
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from latentprint.tasks.bounded import Oversized
from latentprint.tasks.diffusion import checkpoint_files
from latentprint.tasks.diffusion.checkpoint_files import (
    CheckpointError,
    Weights,
    free_memory,
    in_a_line,
    not_loadable,
    read_condition,
    read_config,
    require_modest,
    require_weights,
    sha256_of,
    unreadable,
)

BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    (tmp_path / "unet").mkdir()
    return tmp_path / "unet"


FIRST, SECOND = (f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2))


def write(file: Path, header: Any, n_bytes: int = 0) -> int:
    """A safetensors file; returns the length of its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(n_bytes))
    return len(text)


def tensor(dtype: Any, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all examples."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "unet").mkdir()
    return folder


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(BYTES)), st.lists(st.integers(0, 4), max_size=3)), max_size=5))
def test_tensors_and_their_numbers_are_counted(place: Path, tensors: list[tuple[str, list[int]]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for i, (dtype, shape) in enumerate(tensors):
        begin, end = end, end + BYTES[dtype] * math.prod(shape)
        header[f"{i}"] = tensor(dtype, shape, begin, end)
    write(place / "unet" / FIRST, header, end)
    assert require_weights(place / "unet")[:2] == (len(tensors), sum(math.prod(shape) for _, shape in tensors))


def test_the_weights_of_several_files_are_added(unet: Path) -> None:
    write(unet / FIRST, {"x": tensor("F32", [2, 3], 0, 24)}, 24)
    write(unet / SECOND, {"y": tensor("F64", [], 0, 8), "z": tensor("F16", [5], 8, 18)}, 18)
    assert require_weights(unet) == Weights(n_tensors=3, n_numbers=12)


BIG = 2**63
DAMAGED = [
    tensor("F32", [2, 3], 0, 28),
    tensor("F32", [2, 3], 4, 28),
    tensor("F16", [2, 3], 0, 24),
    tensor("F64", [2, 3], 0, 24),
    tensor("F32", [2, 3], 24, 0),
    tensor("F32", [-2, -3], 0, 24),
    tensor("F32", [6], -24, 0),
    tensor("F32", [True], 0, 4),
    tensor("F32", [1.0], 0, 4),
    tensor("F32", [BIG, 0], 0, 0),
    tensor("F32", [1] * 17, 0, 4),
    tensor("F32", 6, 0, 24),
    tensor("F32", None, 0, 24),
    {"dtype": "F32", "shape": [6]},
    {"dtype": "F32", "shape": [6], "data_offsets": [0]},
    [],
    None,
]


@pytest.mark.parametrize("damaged", DAMAGED, ids=str)
def test_a_tensor_that_is_not_where_it_says_is_named(damaged: Any, unet: Path) -> None:
    write(unet / FIRST, {"x": damaged}, 24)
    says = f"{unet}: not loadable (Error while deserializing header: 'x' does not fit into {FIRST}): damaged?"
    with pytest.raises(CheckpointError, match=f"^{re.escape(says)}$"):
        require_weights(unet)


def test_a_tensor_of_sixteen_sides_up_to_the_last_byte_is_read(unet: Path) -> None:
    tensors = {"x": tensor("F32", [1] * 15 + [6], 0, 24), "y": tensor("F32", [BIG - 1, 0], 24, 24)}
    write(unet / FIRST, tensors, 24)
    assert require_weights(unet)[:2] == (2, 6)


@pytest.mark.parametrize("dtype", ["I8", "F8_E4M3", "f32", 7])
def test_a_type_that_is_no_float_is_named(dtype: Any, unet: Path) -> None:
    write(unet / FIRST, {"x": tensor(dtype, [4], 0, 4)}, 4)
    says = f"{unet}/{FIRST}: 'x' is of type '{dtype}'; one of F16, BF16, F32, F64 is needed"
    with pytest.raises(CheckpointError, match=f"^{re.escape(says)}$"):
        require_weights(unet)


def test_a_header_is_bounded_whole_and_an_object_of_distinct_names(unet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = unet / FIRST
    n_bytes = write(file, {"x": tensor("F32", [1], 0, 4)}, 4)
    assert checkpoint_files.LARGEST_HEADER > 2**20
    monkeypatch.setattr(checkpoint_files, "LARGEST_HEADER", n_bytes)
    assert require_weights(unet)[:2] == (1, 1)
    monkeypatch.setattr(checkpoint_files, "LARGEST_HEADER", n_bytes - 1)
    with pytest.raises(CheckpointError, match=f"header: {n_bytes} bytes, at most {n_bytes - 1} are read.: damaged.$"):
        require_weights(unet)
    monkeypatch.undo()
    for content, says in (
        (b"[1]", "a JSON object is expected"),
        (b'{"x": 1, "x": 2}', "a name twice in one object"),
        (b"[" * 100_000, "recursion"),
        (b"\xff", "decode"),
        (b"{", "Expecting property name"),
    ):
        write(file, content)
        with pytest.raises(CheckpointError, match=rf"unet: not loadable \(Error while deserializing header: .*{says}"):
            require_weights(unet)
    file.write_bytes(b"\0" * 7)
    with pytest.raises(CheckpointError, match="at most 8388608 are read"):
        require_weights(unet)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"no \.safetensors weights: a diffusion_pytorch_model"):
        require_weights(unet)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"weight_map": {"x": FIRST}}, ""),
        ({"weight_map": {"x": FIRST, "y": "../b"}}, "names '../b', which is not a file beside it"),
        ({"weight_map": {"x": "..\\b"}}, r"names '..\\\\b', which is not a file beside it"),
        ({"weight_map": {"x": 7}}, "names 7, which is not a file beside it"),
        ({"weight_map": []}, "damaged"),
        ({}, "damaged"),
        ([], "damaged"),
    ],
)
def test_an_index_names_files_beside_it(index: Any, says: str, unet: Path) -> None:
    write(unet / FIRST, {"x": tensor("F32", [1], 0, 4)}, 4)
    (unet / f"{FIRST}.index.json").write_text(json.dumps(index))
    if not says:
        assert require_weights(unet)[:2] == (1, 1)
        return
    with pytest.raises(CheckpointError, match=re.escape(f"{unet}/{FIRST}.index.json: ") + says):
        require_weights(unet)


@pytest.mark.parametrize("content", [{"a": 100_000}, {"a": [-100_000, {"b": [1.5e9, "1000000", None]}]}, {}])
def test_a_config_of_numbers_within_reason_is_read(content: dict[str, Any], unet: Path) -> None:
    (unet / "config.json").write_text(json.dumps(content))
    assert read_config(unet / "config.json") == content


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"a": 100001}', "'a' is 100001; an integer from 1 to 100000 is needed"),
        ('{"b": {"c": [[-100001]]}}', "'b' is -100001; an integer from 1 to 100000 is needed"),
        ('{"a": 1, "quantization_config": {"bits": 4}}', "quantized weights are not read: save them as floats"),
        ("[1]", "a JSON object is expected"),
        ("{", "damaged (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)): put it back"),
    ],
)
def test_a_config_beyond_reason_is_named(content: str, says: str, unet: Path) -> None:
    (unet / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'{unet}/config.json: {says}')}$"):
        read_config(unet / "config.json")


def test_a_config_is_there_and_bounded(unet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"not a diffusers checkpoint \(no unet/config.json\); a DDPMPipeline"):
        read_config(unet / "config.json")
    (unet / "config.json").write_text('{"a":1}')
    monkeypatch.setattr(checkpoint_files, "LARGEST_CONFIG", 7)
    assert read_config(unet / "config.json") == {"a": 1}
    monkeypatch.setattr(checkpoint_files, "LARGEST_CONFIG", 6)
    with pytest.raises(CheckpointError, match=r"config.json: damaged \("):
        read_config(unet / "config.json")


def test_files_of_a_usual_size_are_read(unet: Path) -> None:
    limits = (checkpoint_files.LARGEST_CONFIG, checkpoint_files.LARGEST_INDEX, checkpoint_files.LARGEST_CONDITION)
    assert all(limit <= 2**30 for limit in limits), "what fits into memory"
    names = {f"down_blocks.{i}.resnets.0.conv1.weight": FIRST for i in range(1000)}
    (unet / f"{FIRST}.index.json").write_text(json.dumps({"weight_map": names}))
    (unet / "config.json").write_text(json.dumps(dict.fromkeys(names, 1)))
    write(unet / FIRST, {name: tensor("F32", [1], 0, 4) for name in names}, 4)
    assert require_weights(unet)[:2] == (1000, 1000)
    assert len(read_config(unet / "config.json")) == 1000
    np.save(unet / "condition.npy", np.zeros((77, 1024), np.float32))
    assert read_condition(unet / "condition.npy", 1024).shape == (77, 1024)


# what a config implies


class Many(nn.Module):
    def __init__(self, sizes: list[int], n_modules: int = 0) -> None:
        super().__init__()
        for i, size in enumerate(sizes):
            self.register_parameter(f"p{i}", nn.Parameter(torch.empty(size)))
        self.register_parameter("none", None)
        self.inner = nn.ModuleList(nn.Identity() for _ in range(n_modules))


def test_parameters_and_modules_are_counted_up_to_their_limits() -> None:
    with checkpoint_files._counting(3, 100):
        Many([50, 25, 25])
    with checkpoint_files._counting(3, 100):
        Many([], 47)
    for sizes, n_modules, says in (
        ([1] * 4, 0, "more than 3 tensors or 100 numbers"),
        ([50, 51], 0, "more than 3 tensors or 100 numbers"),
        ([], 48, "more than 48 modules"),
    ):
        with pytest.raises(Oversized, match=f"^{says}$"), checkpoint_files._counting(3, 100):
            Many(sizes, n_modules)
    Many([1000] * 9, 100)  # they are not counted any more
    with checkpoint_files._counting(3, 100):
        other = threading.Thread(target=Many, args=([1000] * 9, 100))
        other.start()
        other.join()


@pytest.mark.parametrize(
    ("sizes", "fits"),
    [
        ([1] * (4 * 10 + 64), True),
        ([1] * (4 * 10 + 65), False),
        ([4 * 1000 + 2**20], True),
        ([4 * 1000 + 2**20 + 1], False),
    ],
)
def test_a_config_may_imply_four_times_what_is_there_and_a_little(sizes: list[int], fits: bool, tmp_path: Path) -> None:
    weights = Weights(10, 1000)
    if fits:
        require_modest(tmp_path / "unet", lambda: Many(sizes), weights, 4)
        return
    says = (
        f"{tmp_path}/unet: its config implies more than 104 tensors or {4000 + 2**20} numbers, but 10 tensors of 1000"
    )
    with pytest.raises(CheckpointError, match=re.escape(f"{says} numbers are there: wrong config?")):
        require_modest(tmp_path / "unet", lambda: Many(sizes), weights, 4)


def test_weights_must_fit_into_memory_and_are_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.device] = []

    def fails() -> None:
        raise ValueError("no such setting. More about it")

    def make() -> None:
        made.append(torch.empty(1).device)

    monkeypatch.setattr(checkpoint_files, "free_memory", lambda: 4000.0)
    require_modest(tmp_path / "unet", make, Weights(1, 1000), 4)
    assert made == [torch.device("meta")]
    with pytest.raises(CheckpointError, match=r"unet: its weights need 4e\+03 bytes of memory, 4e\+03 are free$"):
        require_modest(tmp_path / "unet", make, Weights(1, 1001), 4)
    with pytest.raises(CheckpointError, match=r"unet: not loadable \(no such setting\): damaged, or a wrong config\?$"):
        require_modest(tmp_path / "unet", fails, Weights(1, 1000), 4)


@pytest.mark.parametrize(("limit", "free"), [(resource.RLIM_INFINITY, 500.0), (1000, 300.0), (9000, 500.0)])
def test_free_memory_is_the_machine_s_or_what_the_process_may_have(
    limit: int, free: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (asked.append(which), (limit, 10**9))[1])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=500))
    memory = SimpleNamespace(memory_info=lambda: SimpleNamespace(vms=700, rss=1))
    monkeypatch.setattr(psutil, "Process", lambda: memory)
    assert free_memory() == free
    assert asked == [resource.RLIMIT_AS]


# the condition


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("n_tokens", [1, 3])
def test_a_condition_is_read_as_it_was_saved(dtype: Any, order: Any, n_tokens: int, tmp_path: Path) -> None:
    values = np.arange(n_tokens * 6).reshape(n_tokens, 6) / 4.0
    np.save(tmp_path / "condition.npy", np.array(values, dtype=dtype, order=order))
    found = read_condition(tmp_path / "condition.npy", 6)
    assert found.dtype == torch.float32
    assert found.tolist() == values.tolist()


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 5)), "float64 of shape (2, 5); floats of shape (tokens, 6) are needed"),
        (np.zeros((0, 6)), "float64 of shape (0, 6); floats of shape (tokens, 6) are needed"),
        (np.zeros(6), "float64 of shape (6,); floats of shape (tokens, 6) are needed"),
        (np.zeros((1, 6, 1)), "float64 of shape (1, 6, 1); floats of shape (tokens, 6) are needed"),
        (np.zeros((2, 6), np.int64), "int64 of shape (2, 6); floats of shape (tokens, 6) are needed"),
        (np.full((2, 6), 1e300), "holds NaN or infinite values"),
        (np.array([[0.0] * 5 + [np.nan]]), "holds NaN or infinite values"),
    ],
)
def test_another_condition_is_named(array: np.ndarray, says: str, tmp_path: Path) -> None:
    file = tmp_path / "condition.npy"
    np.save(file, array)
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'{file}: {says}')}$"):
        read_condition(file, 6)


def test_a_condition_cut_short_or_too_long_is_no_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "condition.npy"
    np.save(file, np.zeros((2, 6)))
    whole = file.read_bytes()
    monkeypatch.setattr(checkpoint_files, "LARGEST_CONDITION", 96)
    assert read_condition(file, 6).shape == (2, 6)
    monkeypatch.setattr(checkpoint_files, "LARGEST_CONDITION", 95)
    with pytest.raises(CheckpointError, match=r"condition\.npy: not a readable array \("):
        read_condition(file, 6)
    monkeypatch.undo()
    file.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"condition\.npy: not a readable array \("):
        read_condition(file, 6)
    file.unlink()
    with pytest.raises(
        CheckpointError, match=r"condition\.npy: cannot be read \(No such file or directory\): a readable"
    ):
        read_condition(file, 6)


def test_the_checksum_is_of_names_and_contents_in_order(tmp_path: Path) -> None:
    names = ("unet/a.json", "b.json")
    (tmp_path / "unet").mkdir()
    for name in names:
        (tmp_path / name).write_text(f"content of {name}")
    parts = [f"{n}\0".encode() + hashlib.sha256(f"content of {n}".encode()).digest() for n in names]
    files = {name: tmp_path / name for name in names}
    assert sha256_of(files, {}) == hashlib.sha256(b"".join(parts)).hexdigest()
    backwards = {name: files[name] for name in names[::-1]}
    assert sha256_of(backwards, {}) == hashlib.sha256(b"".join(parts[::-1])).hexdigest()
    told = hashlib.sha256(b"".join(parts) + b"prompt\0a cat\0").hexdigest()
    assert sha256_of(files, {"prompt": "a cat"}) == told
    with pytest.raises(CheckpointError, match=r"gone: cannot be read \(No such file or directory\)"):
        sha256_of({"gone": tmp_path / "gone"}, {})


def test_an_error_is_told_by_what_it_comes_from_in_one_short_sentence() -> None:
    cause, handled, raised = ValueError("first sentence. Second\nline"), KeyError("b"), RuntimeError("c")
    handled.__cause__, raised.__context__ = cause, handled
    assert in_a_line(raised) == "first sentence"
    assert in_a_line(ValueError("x" * 400)) == "x" * 300
    assert str(not_loadable(Path("a/unet"), raised)) == (
        "a/unet: not loadable (first sentence): damaged, or a wrong config?"
    )
    assert str(unreadable(Path("a"), OSError(13, "Permission denied"))) == (
        "a: cannot be read (Permission denied): a readable file is needed"
    )

"""What relations and columns are, as their headers and schemas say."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentprint.tasks.store.schemas import MANIFEST, OPTIONAL_SCORES, RUNS, SCORES
from latentprint.tasks.warehouse import dictionary
from latentprint.tasks.warehouse.dictionary import RAW, describe_columns, describe_relation, saved_queries


def test_the_queries_lie_beside_the_code() -> None:
    assert {folder.name for folder in dictionary.SQL.iterdir() if folder.is_dir()} >= {
        *dictionary.LAYERS[1:],
        "queries",
    }


def test_raw_tables_are_described_by_their_schemas() -> None:
    for name, names in (
        ("manifest", MANIFEST.names),
        ("runs", RUNS.names),
        ("scores", [*SCORES.names, *OPTIONAL_SCORES.names]),
    ):
        about = describe_columns(name)
        assert list(about) == names
        assert all(column["description"] for column in about.values())
    described = MANIFEST.field("width").metadata or {}
    assert describe_columns("manifest")["width"] == {key.decode(): text.decode() for key, text in described.items()}
    assert describe_relation("manifest") == RAW["manifest"]


def test_a_header_names_relation_columns_and_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictionary, "SQL", tmp_path)
    for folder, name in (("marts", "x"), ("queries", "second"), ("queries", "first")):
        (tmp_path / folder).mkdir(exist_ok=True)
        header = f"-- {name}: what is it?\n-- grain: one\n-- column a [nats]: text [1]: more\n-- column b: ü\n"
        (tmp_path / folder / f"{name}.sql").write_text(f"{header}SELECT 1\n", encoding="utf-8")
    assert describe_columns("x") == {
        "a": {"unit": "nats", "description": "text [1]: more"},
        "b": {"unit": "", "description": "ü"},
    }
    assert [describe_relation(name) for name in ("x", "first", "nothing")] == ["what is it?", "what is it?", ""]
    assert list(saved_queries()) == ["first", "second"]
    assert saved_queries()["first"].endswith("SELECT 1\n")

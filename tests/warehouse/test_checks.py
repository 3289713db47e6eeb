"""Every column of every check, on rows that are wrong in each way, against the same told in plain Python.

Beside what is wrong lies what is nearly so: q-values at alpha, scores that differ by rounding, images held out too.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from latentprint.tasks.warehouse.dictionary import SQL, describe_columns
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.warehouse.computed import ranking
from tests.warehouse.rich import Row, Tables, sound_run, write
from tests.warehouse.test_columns import unlike

COLUMNS = [(file.stem, c) for file in sorted((SQL / "checks").glob("*.sql")) for c in describe_columns(file.stem)]
PARAMETERS = ("n_axes", "n_steps", "timestep", "estimator", "delta")


def by_content(tables: Tables, name: str, split: str, content: str) -> Row:
    return next(
        row for row in tables[name] if (row["content_hash"], row.get("split", split)) == (content, split)
    )  # the first of them


def with_wrong_manifest() -> Tables:
    tables = sound_run()
    by_content(tables, "manifest", "train", "t00")["copies"] += 1  # of three
    for row in tables["manifest"]:
        if row["content_hash"] == "t05":
            row["copies"] = 3  # of two
        if row["content_hash"] in ("t12", "h04"):
            row["occurrence"] += 1  # from 1
        if row["content_hash"] == "h08":
            row["occurrence"] = min(row["occurrence"], 1)  # 0, 1, 1
        if row["content_hash"] == "t13":
            row["copies"] = 1  # of two
        if row["content_hash"] == "t14" and row["occurrence"] == 0:
            row["copies"] = 1  # of two, as the other of them says
    for first, last in ((0, 2), (5, 8)):
        for row in tables["manifest"][first:last]:
            row["sample_id"] = tables["manifest"][first]["sample_id"]
    return tables


def with_wrong_scores() -> Tables:
    tables = sound_run()
    scores = tables["scores"]
    for content in ("t20", "h20"):  # scored twice
        scores.append(dict(by_content(tables, "scores", "train" if content[0] == "t" else "holdout", content)))
    for content in ("t18", "h18", "t04"):  # not scored, the last in one of both splits
        scores.remove(by_content(tables, "scores", "train" if content[0] == "t" else "holdout", content))
    template = by_content(tables, "scores", "train", "t21")
    scores += [{**template, "sample_id": f"train/none-{i}", "content_hash": f"x{i}"} for i in range(2)]
    scores.append({**template, "split": "holdout"})
    scores.append({**by_content(tables, "scores", "train", "t22"), "content_hash": "t23"})
    repeat = next(row for row in tables["manifest"] if row["occurrence"] == 1)
    scores.append({**template, **{name: repeat[name] for name in ("sample_id", "content_hash", "split")}})
    for content, change in {
        "t24": {"status": "nonfinite"},
        "t25": {"log_growth": math.nan},
        "t26": {"eps_norm": math.inf},
        "t03": {"status": "ok"},
        "t27": {"timestep": 30},
        "t28": {"timestep": 30},
        "t16": {"timestep": 40},
        "t17": {"timestep": 40},
        "t19": {"delta": 0.25},
        "t30": {"n_axes": 1},
        "t31": {"n_axes": 1},
        "t00": {"n_steps": 4},
        "t01": {"n_steps": 4},
        "t02": {"delta": None},
        "t05": {"delta": 0.5},
        "t06": {"estimator": "volume"},
    }.items():
        by_content(tables, "scores", "train", content).update(change)
    pairs = {  # one image in two splits: by how much its growth may differ depends on how large it is
        "p0": (1e4, 1e4 + 0.2),
        "p1": (1e4, 1e4 + 0.05),
        "p2": (-1e4, -1e4 + 0.2),
        "p3": (-1e4, -1e4 + 0.05),
        "p4": (0.01, 0.01 + 2e-5),
        "p5": (0.01, 0.01 + 5e-6),
        "p6": (2.0, math.nan),
        "p7": (-3.0, 2.0),
        "p8": (0.0, 1e-5),
        "p9": (1e4, 1e4 + 0.1000005),
    }
    for content, growth in pairs.items():
        for split, value in zip(("train", "holdout"), growth, strict=True):
            name = {"sample_id": f"{split}/{content}", "content_hash": content, "split": split}
            scores.append({**template, **name, "log_growth": value})
    return tables


def with_two_parameters() -> Tables:
    tables = sound_run()
    tables["scores"][3]["timestep"] = 30
    return tables


def with_wrong_reproductions() -> Tables:
    tables = sound_run()
    rows = tables["reproductions"]
    rows += [dict(rows[3]), dict(rows[4]), {**rows[5], "content_hash": "x"}, {**rows[6], "sample_id": "train/none"}]
    held_out = next(row for row in tables["manifest"] if row["split"] == "holdout" and row["occurrence"] == 0)
    repeat = next(row for row in tables["manifest"] if row["split"] == "train" and row["occurrence"] == 1)
    for row in (held_out, repeat):
        rows.append({**rows[7], **{name: row[name] for name in ("sample_id", "content_hash")}})
    del rows[9:11]
    return tables


def with_wrong_flags(is_any: bool = True) -> Tables:
    tables = sound_run()
    flags = tables["flags"]
    values = [(0.05, 0.1, True), (0.05, 0.1, False), (0.05, 0.11, True), (0.05, 0.2, False), (0.2, 0.1, True)]
    values += [(0.3, 0.2, False), (0.2, 0.2, False), (1.0, 1.0, False), (0.5, 1.5, False), (0.5, math.nan, False)]
    values += [(0.01, 0.02, True), (0.01, 0.02, False)]
    for row, (p, q, flag) in zip(flags, values, strict=False):
        row.update(p_value=p, q_value=q, is_flagged=flag)
    flags[len(values)]["content_hash"] = "x"
    flags[len(values) + 1]["sample_id"] = "train/none"
    unusable = by_content(tables, "manifest", "train", "t03")
    held_out = by_content(tables, "manifest", "holdout", "h20")
    for row in (unusable, held_out):
        flags.append({**flags[-1], **{name: row[name] for name in ("sample_id", "content_hash")}})
    if not is_any:
        tables["flags"] = [{**row, "is_flagged": False} for row in flags]
    return tables


def copies_miscounted(tables: Tables) -> list[Row]:
    rows = []
    for (split, content), members in sorted(grouped(tables["manifest"], "split", "content_hash").items()):
        occurrences = {row["occurrence"] for row in members if 0 <= row["occurrence"] <= row["copies"] - 1}
        copies = {row["copies"] for row in members}
        if copies != {len(members)} or len(occurrences) != len(members):
            told = {"split": split, "content_hash": content, "copies": max(copies)}
            rows.append({**told, "n_rows": len(members), "n_occurrences": len(occurrences)})
    return rows


def flag_without_image(tables: Tables) -> list[Row]:
    known = {(row["sample_id"], row["content_hash"]) for row in ranking(tables)}
    is_any = any(row["is_flagged"] for row in tables["flags"])
    names = ("sample_id", "content_hash", "p_value", "q_value", "is_flagged")
    return [
        {name: row[name] for name in names}
        for row in sorted(tables["flags"], key=lambda row: str(row["sample_id"]))
        if (row["sample_id"], row["content_hash"]) not in known
        or (row["is_flagged"] != (row["q_value"] <= row["alpha"]) and (row["is_flagged"] or is_any))
        or not row["p_value"] <= row["q_value"] <= 1
    ]


def image_without_one_score(tables: Tables) -> list[Row]:
    scores = Counter((row["split"], row["content_hash"]) for row in tables["scores"])
    keys = sorted((row["split"], row["content_hash"]) for row in tables["manifest"] if row["occurrence"] == 0)
    return [{"split": key[0], "content_hash": key[1], "n_scores": scores[key]} for key in keys if scores[key] != 1]


def mixed_parameters(tables: Tables) -> list[Row]:
    found = grouped(tables["scores"], *PARAMETERS)
    rows = [{**dict(zip(PARAMETERS, key, strict=True)), "n_scores": len(rows)} for key, rows in found.items()]
    rows.sort(key=lambda row: (-row["n_scores"], *((row[name] is None, row[name]) for name in PARAMETERS)))
    return rows if len(rows) > 1 else []


def reproduction_without_image(tables: Tables) -> list[Row]:
    names = ("sample_id", "content_hash")
    found = grouped(tables["reproductions"], *names)
    images = grouped([r for r in tables["manifest"] if (r["split"], r["occurrence"]) == ("train", 0)], *names)
    rows = [
        {**dict(zip(names, key, strict=True)), "n_reproductions": len(found[key]), "n_images": len(images[key])}
        for key in sorted({*found, *images})
    ]
    return [row for row in rows if tables["reproductions"] and (row["n_reproductions"], row["n_images"]) != (1, 1)]


def same_image_other_score(tables: Tables) -> list[Row]:
    rows = []
    finite = [row for row in tables["scores"] if math.isfinite(row["log_growth"])]
    for (content,), members in sorted(grouped(finite, "content_hash").items()):
        growth = sorted(row["log_growth"] for row in members)
        if growth[-1] - growth[0] > 1e-5 * max(1.0, *map(abs, growth)):
            rows.append({"content_hash": content, "lowest": growth[0], "highest": growth[-1]})
    return rows


def sample_id_repeated(tables: Tables) -> list[Row]:
    counts = Counter(row["sample_id"] for row in tables["manifest"])
    return [{"sample_id": name, "n_rows": n} for name, n in sorted(counts.items()) if n > 1]


def score_ok_but_not_finite(tables: Tables) -> list[Row]:
    names = ("sample_id", "status", "log_growth", "eps_norm")
    return [
        {name: row[name] for name in names}
        for row in sorted(tables["scores"], key=lambda row: str(row["sample_id"]))
        if (row["status"] == "ok") != (math.isfinite(row["log_growth"]) and math.isfinite(row["eps_norm"]))
    ]


def score_without_image(tables: Tables) -> list[Row]:
    names = ("sample_id", "content_hash", "split")
    first = {tuple(row[name] for name in names) for row in tables["manifest"] if row["occurrence"] == 0}
    rows = [{name: row[name] for name in names} for row in tables["scores"]]
    return sorted((row for row in rows if tuple(row.values()) not in first), key=lambda row: str(row["sample_id"]))


def grouped(rows: list[Row], *names: str) -> defaultdict[tuple[Any, ...], list[Row]]:
    groups: defaultdict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return groups


COMPUTED: dict[str, Callable[[Tables], list[Row]]] = {
    "copies_miscounted": copies_miscounted,
    "flag_without_image": flag_without_image,
    "image_without_one_score": image_without_one_score,
    "mixed_parameters": mixed_parameters,
    "reproduction_without_image": reproduction_without_image,
    "same_image_other_score": same_image_other_score,
    "sample_id_repeated": sample_id_repeated,
    "score_ok_but_not_finite": score_ok_but_not_finite,
    "score_without_image": score_without_image,
}
RUNS = {
    "sound": sound_run(),
    "manifest": with_wrong_manifest(),
    "scores": with_wrong_scores(),
    "two parameters": with_two_parameters(),
    "reproductions": with_wrong_reproductions(),
    "nothing extracted": sound_run() | {"reproductions": []},
    "flags": with_wrong_flags(),
    "no flag": with_wrong_flags(is_any=False),
}
READS_MANIFEST = {"copies_miscounted", "sample_id_repeated", "image_without_one_score"}
READ = {
    "manifest": READS_MANIFEST,
    "scores": {name for name in COMPUTED if "score" in name or name == "mixed_parameters"},
    "two parameters": {"mixed_parameters"},
    "reproductions": {"reproduction_without_image"},
    "nothing extracted": {"reproduction_without_image"},
    "flags": {"flag_without_image"},
    "no flag": {"flag_without_image"},
    "sound": set(COMPUTED),
}
"""Run -> the checks that its faults are made for."""


def open_runs(folder: Path) -> dict[str, Warehouse]:
    return {name: Warehouse(write(folder / name, tables)) for name, tables in RUNS.items()}


def differences(opened: Mapping[str, Warehouse], name: str) -> dict[str, str]:
    """Column -> how it differs from what is told without SQL, in one of the runs that are wrong in its way."""
    found: dict[str, str] = {}
    for run in (run for run in RUNS if name in READ[run]):
        found |= unlike(opened[run].table(name).to_pylist(), COMPUTED[name](RUNS[run]), [*describe_columns(name)], run)
    return found


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Warehouse]]:
    warehouses = open_runs(tmp_path_factory.mktemp("wrong"))
    yield warehouses
    for warehouse in warehouses.values():
        warehouse.__exit__(None, None, None)


@pytest.fixture(scope="module")
def compared(opened: dict[str, Warehouse]) -> Any:
    return cache(lambda name: differences(opened, name))


@pytest.mark.parametrize(("name", "column"), COLUMNS, ids=[f"{name}.{column}" for name, column in COLUMNS])
def test_column_is_what_is_told_without_sql(name: str, column: str, compared: Any) -> None:
    assert compared(name).get(column) is None


@pytest.mark.parametrize("name", COMPUTED)
def test_a_sound_run_passes_each_check_and_a_wrong_one_fails_it_in_several_rows(
    name: str, opened: dict[str, Warehouse]
) -> None:
    assert opened["sound"].table(name).num_rows == 0
    assert max(opened[run].table(name).num_rows for run in RUNS if name in READ[run]) > 1

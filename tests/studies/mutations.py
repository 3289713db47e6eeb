"""One-line faults, derived from the source alone: the same source has the same ones in the same order."""

from __future__ import annotations

import ast
import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SQL: dict[str, tuple[str, ...]] = {
    r" >= ": (" > ",),
    r" > ": (" >= ", " < "),
    r" <= ": (" < ",),
    r" < ": (" <= ", " > "),
    r" = ": (" <> ",),
    r" <> ": (" = ",),
    r" \+ ": (" - ",),
    r" - ": (" + ",),
    r" \* (?!EXCLUDE)": (" + ",),
    r" / ": (" * ",),
    r"\bAND\b": ("OR",),
    r"\bOR\b": ("AND",),
    r"(?<!IS )\bNOT ": ("",),
    r"\bIS NULL\b": ("IS NOT NULL",),
    r"\bIS NOT NULL\b": ("IS NULL",),
    r"\bmin\(": ("max(",),
    r"\bmax\(": ("min(",),
    r"\barg_max\(": ("arg_min(",),
    r"\bavg\(": ("median(",),
    r"\bmedian\(": ("avg(",),
    r"\bsum\(": ("avg(",),
    r"\bstddev_samp\(": ("stddev_pop(",),
    r"\bcount\(\*\)": ("1 + count(*)",),
    r"\bcount\((?!\*|DISTINCT)": ("1 + count(",),
    r"\bDISTINCT ": ("",),
    r"\brow_number\(\)": ("rank()",),
    r"(?<!_)\brank\(\)": ("row_number()", "dense_rank()"),
    r"\bpercent_rank\(\)": ("cume_dist()",),
    r"\blag\(": ("lead(",),
    r"\bbool_or\(": ("bool_and(",),
    r"\bgreatest\(": ("least(",),
    r"\bleast\(": ("greatest(",),
    r"\bfloor\(": ("ceil(",),
    r"\babs\(": ("(",),
    r"\bisfinite\(\w+(\.\w+)?\)": ("TRUE",),
    r" DESC\b": (" ASC",),
    r" ASC\b": (" DESC",),
    r"\bORDER BY [\w.]+$": ("\\g<0> DESC",),
    r"\bNULLS LAST\b": ("NULLS FIRST",),
    r"\bNULLS FIRST\b": ("NULLS LAST",),
    r" IGNORE NULLS": ("",),
    r"\bLEFT JOIN\b": ("INNER JOIN",),
    r"\bINNER JOIN\b": ("LEFT JOIN",),
    r" FILTER \((?:[^()]|\([^()]*\))*\)": ("",),
    r"PARTITION BY [\w., ]+?(?= ORDER BY|\)|$)": ("",),
    r"(?<=, )[\w.]+(?= ORDER BY)": ("1",),
    r"^(?: *)(?:WHERE|QUALIFY|HAVING) .+$": ("",),
    r"'train'": ("'holdout'",),
    r"'holdout'": ("'train'",),
    r"_low\b(?=,| AS)": ("_high",),
    r"_high\b(?=,| AS)": ("_low",),
    r"(?<![\w.'$])\d+(?![\w.-])": ("(\\g<0> + 1)",),
    r"(?<![\w.'$])\d+(?:\.\d+|e-\d+)": ("(\\g<0> * 0.98)",),
}
"""Pattern -> what each place of it becomes. Comments are left alone."""

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}
RENAMED = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"} | {
    "mean": "sum",
    "sum": "mean",
    "floor": "ceil",
    "ceil": "floor",
    "cumsum": "sort",
    "exp": "expm1",
    "log": "log1p",
}
LEFT_ALONE = (ast.JoinedStr, ast.Raise, ast.Assert, ast.Import, ast.ImportFrom)
"""Of these only words change, or nothing."""
ASSERTED = ("strict", "dtype", "copy")
"""Arguments that say what holds anyway."""


@dataclass(frozen=True)
class Mutant:
    """One fault in one file: ``name`` says where and what, without a line number, so that it outlives other edits."""

    file: str
    name: str
    text: str
    """Of the whole file with the fault in it."""


def mutants(root: Path, file: str) -> list[Mutant]:
    """All of a file, Python or SQL."""
    source = (root / file).read_text(encoding="utf-8")
    edits = _sql(source) if file.endswith(".sql") else _python(source)
    seen: Counter[str] = Counter()
    found = []
    for start, end, new in edits:
        line = source[source.rfind("\n", 0, start) + 1 :].partition("\n")[0].strip()
        name = f"{file} | {line} | {' '.join(source[start:end].split())} -> {new.strip() or 'nothing'}"
        seen[name] += 1
        text = source[:start] + new + source[end:]
        found.append(Mutant(file, name if seen[name] == 1 else f"{name} #{seen[name]}", text))
    return found


def _sql(source: str) -> Iterator[tuple[int, int, str]]:
    body = re.sub(r"--.*", lambda match: " " * len(match[0]), source)
    edits = {
        (match.start(), match.end(), match.expand(new))
        for pattern, news in SQL.items()
        for match in re.finditer(pattern, body, re.MULTILINE)
        for new in news
    }
    yield from sorted(edits)


def _python(source: str) -> Iterator[tuple[int, int, str]]:
    lines = source.encode().splitlines(keepends=True)
    ends = [0]
    for line in lines:
        ends.append(ends[-1] + len(line.decode()))

    def place(line: int, column: int) -> int:
        return ends[line - 1] + len(lines[line - 1][:column].decode())

    edits = set()
    for node in _code(ast.parse(source)):
        for changed in _changes(node):
            start = place(node.lineno, node.col_offset)
            end = place(node.end_lineno or 0, node.end_col_offset or 0)
            text = ast.unparse(changed)
            edits.add((start, end, text if isinstance(node, ast.Call | ast.Constant | ast.keyword) else f"({text})"))
    yield from sorted(edits)


def _code(node: ast.AST) -> Iterator[ast.expr]:
    """Expressions that compute something: no annotations, decorators, messages."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases", "type_params"):
            continue
        if isinstance(node, ast.keyword) and node.arg in ASSERTED:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, LEFT_ALONE):
                if isinstance(child, ast.expr):
                    yield child
                yield from _code(child)


def _changes(node: ast.expr) -> Iterable[ast.expr]:
    changed = copy.deepcopy(node)
    match changed:
        case ast.Compare(ops=[op]) if type(op) in SWAPPED:
            changed.ops = [SWAPPED[type(op)]()]  # type: ignore[list-item]
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPPED:
            changed.op = SWAPPED[type(op)]()  # type: ignore[assignment]
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            changed = changed.operand
        case ast.Constant(value=bool()):
            changed.value = not changed.value
        case ast.Constant(value=int(number)):
            changed.value = number + 1
        case ast.Constant(value=float(number)):
            changed.value = number * 2.0 or 1.0
        case ast.IfExp():
            changed.body, changed.orelse = changed.orelse, changed.body
        case ast.Call(func=ast.Name(id="abs"), args=[argument]):
            changed = argument
        case ast.Call(func=ast.Name(id=name)) if name in RENAMED:
            changed.func = ast.Name(RENAMED[name])
        case ast.Call(func=ast.Attribute(attr=name)) if name in RENAMED:
            assert isinstance(changed.func, ast.Attribute)
            changed.func.attr = RENAMED[name]
        case ast.Call(keywords=[*_, ast.keyword(arg=str(name))]) if name not in ASSERTED:
            changed.keywords = changed.keywords[:-1]  # its default instead
        case _:
            return []
    return [changed]

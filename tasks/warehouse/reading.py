"""What a user's query may be: one SELECT, every part of whose parse is known to read only.

DuckDB's parser is asked, not a pattern: the type of the statement is not enough, since ``WITH a AS (COPY ... TO ...)
FROM a`` is a SELECT that writes, and ``json_execute_serialized_sql`` runs a statement that it has as text. So the whole
tree is walked, and everything in it must be on a list: kinds of query, of table and of expression, functions by name.
A list of what is forbidden would have to be right again for every DuckDB; this one refuses what it does not know.

- Functions: ``tasks/warehouse/functions.py``. Only the last part of a name counts: ``main.query`` is ``query``.
- Tables: the relations of the run, and names that could be one or a CTE. A name with a dot, a slash or the like could
  be a file or an address, and DuckDB would read it; its own system views show settings.
- EXPLAIN is no SELECT: what it explains is looked at.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from typing import Any

import duckdb

from latentprint.tasks.errors import UserError
from latentprint.tasks.warehouse.functions import OPERATORS, ROWS, VALUES, WINDOWS

QUERIES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
SOURCES = {"BASE_TABLE", "EMPTY", "EXPRESSION_LIST", "JOIN", "PIVOT", "SHOW_REF", "SUBQUERY", "TABLE_FUNCTION"}
MODIFIERS = {"ORDER_MODIFIER", "DISTINCT_MODIFIER", "LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER"}
ORDERS = {"ASCENDING", "DESCENDING", "ORDER_DEFAULT"}
KINDS = QUERIES | SOURCES | MODIFIERS | ORDERS
EXPRESSIONS = {"BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "DEFAULT"}
EXPRESSIONS |= {"FUNCTION", "LAMBDA", "OPERATOR", "PARAMETER", "POSITIONAL_REFERENCE", "STAR", "SUBQUERY", "TYPE"}
EXPRESSIONS |= {"WINDOW"}
SHOWN = {"DESCRIBE", "SUMMARY"}
"""``SHOW x`` is left out: it shows the setting of that name."""
LISTED = {'"tables"', "__show_tables_expanded"}
"""``SHOW TABLES`` and ``SHOW ALL TABLES``, as the parser calls them."""
SYSTEM_VIEWS = {"columns", "tables"}
"""Of ``information_schema``."""
NAME = re.compile(r"[\w $-]*")
EXPLAIN = re.compile(r"\A\s*EXPLAIN\b(\s+ANALYZE\b)?", re.IGNORECASE)
READ_ONLY = "one SELECT (or SHOW TABLES, DESCRIBE, SUMMARIZE, EXPLAIN SELECT) is allowed: runs are read-only"
TREE = "SELECT json_serialize_sql($sql)"
OWN_VIEWS = "SELECT lower(view_name) FROM duckdb_views() WHERE internal"


class QueryError(UserError):
    """A query that is not allowed, not valid, or took too much; the message points at the place."""


def require_reading(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Refuse a query that is not one SELECT of known parts.

    Raises:
        QueryError: it is not; the line names what is not allowed.
        duckdb.Error: it cannot be parsed.
    """
    if len(connection.extract_statements(sql)) != 1:
        raise QueryError(READ_ONLY)
    ((text,),) = connection.execute(TREE, {"sql": EXPLAIN.sub("", sql)}).fetchall()
    try:
        tree = json.loads(text)
    except RecursionError:
        raise QueryError("the query is nested too deeply: write it in steps (WITH ... AS)") from None
    if tree["error"] or len(tree["statements"]) != 1:
        raise QueryError(READ_ONLY)
    system_views = {name for (name,) in connection.execute(OWN_VIEWS).fetchall()}
    for node, role in _nodes(tree["statements"]):
        _require_known_kind(node)
        for name in _function_names(node):
            _require_function(name, ROWS if role == "function" else OPERATORS | WINDOWS | VALUES)
        if node.get("type") in ("BASE_TABLE", "SHOW_REF"):
            _require_table(node, system_views)


def _nodes(tree: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every object of the tree, with the key that it, or the list that it is in, has."""
    waiting: list[tuple[Any, str]] = [(tree, "")]
    while waiting:
        part, role = waiting.pop()
        if isinstance(part, dict):
            yield part, role
            waiting.extend((value, key) for key, value in part.items())
        elif isinstance(part, list):
            waiting.extend((item, role) for item in part)


def _require_known_kind(node: dict[str, Any]) -> None:
    kind, known = (node["class"], EXPRESSIONS) if "class" in node else (node.get("type"), KINDS)
    if (isinstance(kind, str) and kind not in known) or "info_type" in node:  # info: of a statement that does something
        raise QueryError(READ_ONLY)


def _function_names(node: dict[str, Any]) -> set[str]:
    """A function's name, in each of the places where the parser puts it."""
    if "function_name" not in node:
        return set()
    path = (node.get("qualified_name") or {}).get("path") or []
    return {str(name).lower() for name in (node["function_name"], *path[-1:])}


def _require_function(name: str, allowed: frozenset[str]) -> None:
    if name not in allowed:
        alike = difflib.get_close_matches(name, allowed, n=1)
        hint = f" (did you mean {alike[0]}?)" if alike else ""
        raise QueryError(f"{name}: this function is not allowed in a query{hint}; runs are read-only")


def _require_table(node: dict[str, Any], system_views: set[str]) -> None:
    if node["type"] == "SHOW_REF":
        if node["show_type"] == "SHOW_SPECIAL" and node["table_name"] in LISTED:
            return
        if node["show_type"] not in SHOWN:
            raise QueryError(READ_ONLY)
    parts = [node["catalog_name"], node["schema_name"], node["table_name"], *node["qualified_name"]["path"]]
    of_information_schema = node["schema_name"].lower() == "information_schema"
    allowed = SYSTEM_VIEWS if of_information_schema else set()
    name = node["table_name"].lower()
    if not all(NAME.fullmatch(part) for part in parts) or name in system_views - allowed:
        raise QueryError(f"{node['table_name']}: not a relation of the run (see --tables); files cannot be read")

"""The commands that ask a run."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from latentprint.flows.cli.arguments import AsJson, ReadRun, command, run_patterns, show, tables_path


class OutputFormat(StrEnum):
    """Formats of ``latentprint sql``."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


@command
def sql(
    query: Annotated[
        str | None, typer.Argument(help="One SELECT. Without a query, a shell opens.", show_default=False)
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="The run to ask, or its s3:// URL.", parser=tables_path, metavar="RUN")
    ] = None,
    runs: Annotated[
        list[str] | None,
        typer.Option(
            help="Many runs: 'runs/*', 's3://bucket/runs/*'. Each relation has a column run.", show_default=False
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Read the query from a file.", exists=True, dir_okay=False)] = None,
    saved: Annotated[
        str | None, typer.Option("--query", help="Name of a saved question; --queries lists them.")
    ] = None,
    queries: Annotated[bool, typer.Option("--queries", help="List the saved questions.")] = False,
    format: Annotated[OutputFormat, typer.Option(help="How to write the rows.")] = OutputFormat.table,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the rows to this file; parquet needs it.")] = None,
    timeout: Annotated[
        float, typer.Option(help="Time limit of the query, and of writing its rows, in seconds each.", min=0.001)
    ] = 60.0,
    max_bytes: Annotated[int, typer.Option(help="Largest size of the written text, in bytes.", min=1)] = 2**30,
    tables: Annotated[bool, typer.Option("--tables", help="List the relations and their columns.")] = False,
    export: Annotated[Path | None, typer.Option(help="Write every relation to this DuckDB file.")] = None,
) -> None:
    """Query one run or many in SQL (DuckDB, read-only).

    Example: latentprint sql --run runs/demo "SELECT sample_id, copies, log_growth FROM ranking LIMIT 10"
    """
    from latentprint.flows.cli.answers import ask, converse, list_relations, open_warehouse, read_query, saved_query
    from latentprint.flows.cli.answers import export as write_export
    from latentprint.flows.cli.shell import list_queries

    if queries:
        list_queries()
        return
    if sum(map(bool, (query, file, saved, tables, export))) > 1:
        raise typer.BadParameter("give one query: as an argument, with --file or with --query")
    output = OutputFormat.json if as_json else format
    patterns = [pattern for text in runs or [] for pattern in run_patterns(text)]
    with open_warehouse(run, patterns, timeout) as warehouse:
        if tables:
            list_relations(warehouse, output is OutputFormat.json)
        elif export:
            write_export(warehouse, export)
            show({"export": str(export)}, as_json, f"{export}: written")
        elif query or file or saved:
            text = query or (read_query(file) if file else saved_query(str(saved)))
            ask(warehouse, text, output.value, out, max_bytes)
        elif sys.stdin.isatty():
            converse(warehouse, output.value, max_bytes)
        else:
            ask(warehouse, read_query(), output.value, out, max_bytes)


@command
def explain(
    sample_id: Annotated[
        str, typer.Argument(help="The image: its sample_id in the tables of the run.", show_default=False)
    ],
    run: ReadRun,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Explain one image: its scores, its rank, its neighbours, its generated copies and its source.

    Example: latentprint explain --run runs/demo train/train.tar/000000001.png --html why.html
    """
    from latentprint.tasks.explain.words import explain as look
    from latentprint.tasks.explain.words import in_words

    facts = look(run, sample_id, html)
    lines = [*in_words(facts), *([f"page: {html}"] if html else [])]
    show(facts, as_json, *lines)

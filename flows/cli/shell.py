"""The interactive half of ``latentprint sql``: questions until a semicolon, with history and completion (readline)."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from latentprint.tasks.pages.formats import visible_lines
from latentprint.tasks.warehouse.dictionary import describe_relation, saved_queries
from latentprint.tasks.warehouse.queries import QueryError
from latentprint.tasks.warehouse.warehouse import Warehouse

PROMPT, CONTINUED = "latentprint> ", "        ...> "
GREETING = "End a query with ; (read-only DuckDB). Tab completes. Commands: .tables .queries help quit"
HELP = """\
.tables     every relation with its columns
.queries    the saved questions; type a name and a semicolon to ask one: most_reproducible;
help        this list (also .help)
quit        end the shell (also exit, .quit, .exit, Ctrl-D)
Everything else is SQL: one SELECT, DESCRIBE, SUMMARIZE or EXPLAIN. It may take several lines and ends with a semicolon.
"""
LEAVE = ("quit", "exit", ".quit", ".exit")
COMMANDS = (".tables", ".queries", "help", ".help", *LEAVE)
MOST_REMEMBERED = 2_000
LONGEST_COMPLAINT = 4000
RESERVED = "SELECT upper(keyword_name) AS word FROM duckdb_keywords() WHERE keyword_category = 'reserved' ORDER BY word"
WORD_ENDS = " \t\n`~!@#$%^&*()-=+[{]}\\|;:'\",<>/?"


@dataclass
class Shell:
    """Reads lines, asks, shows; a wrong query is told and the next one awaited.

    Args:
        show: what to do with a query; raises ``QueryError``.
        list_tables: what to do for ``.tables``.
    """

    warehouse: Warehouse
    show: Callable[[str], None]
    list_tables: Callable[[], None]
    words: list[str] = field(default_factory=list)
    """What can be completed: commands, relations, columns, saved questions, keywords."""

    def __post_init__(self) -> None:
        names = {name for layer in self.warehouse.layers for name in self.warehouse.relations(layer)}
        columns = {column for name in names for column in self.warehouse.describe(name)}
        keywords = self.warehouse.query(RESERVED)["word"].to_pylist()
        self.words = [*sorted(names | columns | {*saved_queries(), *COMMANDS}), *map(str, keywords)]

    def run(self, read: Callable[[str], str] = input) -> None:
        """Until the input ends, or one of ``LEAVE``; a command stands alone on its line, a semicolon does no harm.

        Args:
            read: prompt -> a line; raises EOFError at the end, KeyboardInterrupt where the line is to be dropped.
        """
        lines: list[str] = []
        while True:
            try:
                line = read(CONTINUED if lines else PROMPT)
            except EOFError:
                return
            except KeyboardInterrupt:
                lines = []
                print()
                continue
            command = line.strip().removesuffix(";").rstrip()
            if not lines and (command.startswith(".") or command in COMMANDS):
                if command in LEAVE:
                    return
                self._command(command)
                continue
            lines = [*lines, line] if lines or line.strip() else []
            if line.rstrip().endswith(";"):
                self._ask("\n".join(lines))
                lines = []

    def complete(self, text: str, state: int) -> str | None:
        """The ``state``-th word that continues ``text``, as readline asks; keywords in the case that was begun."""
        found = [word for word in self.words if word.lower().startswith(text.lower())]
        found = [word.lower() if word.isupper() and text.islower() else word for word in found]
        return found[state] if state < len(found) else None

    def _ask(self, sql: str) -> None:
        name = sql.strip().rstrip(";").strip()
        try:
            self.show(saved_queries().get(name, sql))
        except QueryError as error:
            print(visible_lines(error, LONGEST_COMPLAINT), file=sys.stderr)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)

    def _command(self, command: str) -> None:
        if command == ".tables":
            self.list_tables()
        elif command == ".queries":
            list_queries()
        else:
            print(HELP, end="")


def list_queries() -> None:
    """Print the saved questions, one a line."""
    names = saved_queries()
    for name in names:
        print(f"{name:<{max(map(len, names))}}  {describe_relation(name)}")


@contextmanager
def line_editing(complete: Callable[[str, int], str | None]) -> Iterator[None]:
    """History, kept from one session to the next, and completion by tab; without readline, plain input."""
    try:
        import readline
    except ImportError:  # Windows, or a Python built without it
        yield
        return
    history = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "latentprint" / "sql_history"
    readline.set_completer(complete)
    readline.set_completer_delims(WORD_ENDS)
    is_libedit = bool(re.search("libedit", readline.__doc__ or ""))  # macOS
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    readline.set_history_length(MOST_REMEMBERED)
    try:
        history.parent.mkdir(parents=True, exist_ok=True)
        history.touch(mode=0o600)
        readline.read_history_file(history)
    except OSError:  # no home to write to: a session without memory is still one
        yield
        return
    try:
        yield
    finally:
        readline.write_history_file(history)

"""``latentprint sql``: saved questions, many runs, export, and a shell that survives wrong queries and remembers."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from latentprint.flows.cli import main as cli
from latentprint.flows.cli.answers import ask, list_relations
from latentprint.flows.cli.printing import neutralised, print_rows
from latentprint.flows.cli.shell import COMMANDS, CONTINUED, PROMPT, Shell
from latentprint.tasks.store.run import RunDirectory
from latentprint.tasks.warehouse.dictionary import saved_queries
from latentprint.tasks.warehouse.queries import QueryError
from latentprint.tasks.warehouse.warehouse import Warehouse
from tests.store.runs import reseal, write_run

Sql = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    for name in ("run-9", "run-10"):
        write_run(folder / name)
    return folder


@pytest.fixture
def sql(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sql:
    """(exit code, standard output, standard error) of ``latentprint sql ARGUMENTS``, in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["latentprint", "sql", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), *capsys.readouterr()

    return run


def test_a_saved_question_is_asked_by_its_name(sql: Sql, folder: Path) -> None:
    code, printed, _ = sql("--run", folder / "run-9", "--query", "growth_by_copies", "--format", "csv")
    assert (code, printed) == (0, "copies,n_images,median,growth_change\n1,2,2.0,\n2,1,5.0,3.0\n")


def test_saved_questions_are_listed_a_line_each(sql: Sql) -> None:
    code, printed, _ = sql("--queries")
    assert (code, [line.split()[0] for line in printed.splitlines()]) == (0, list(saved_queries()))


def test_a_query_that_is_no_text_is_one_line(sql: Sql, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "query.sql"
    file.write_bytes(b"SELECT '\xff'")
    with file.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        for arguments in (["--file", file], []):
            code, printed, error = sql("--run", folder / "run-9", *arguments)
            assert (code, printed, error.count("\n")) == (2, "", 1)
            assert "cannot be read as UTF-8 text" in error


def test_many_runs_are_asked_at_once(sql: Sql, folder: Path) -> None:
    query = "SELECT run, count(*) AS n FROM images JOIN runs USING (run) GROUP BY run, position ORDER BY position"
    code, printed, _ = sql("--runs", folder / "*", "--json", query)
    assert code == 0
    assert json.loads(printed) == [{"run": "run-9", "n": 6}, {"run": "run-10", "n": 6}]


def test_a_run_whose_tables_were_damaged_within_is_left_out_and_named(sql: Sql, tmp_path: Path) -> None:
    """Its footers are whole, so that only reading its rows tells."""
    for name in ("good", "rotten"):
        reseal(write_run(tmp_path / name))
    manifest = tmp_path / "rotten" / "manifest.parquet"
    content = bytearray(manifest.read_bytes())
    content[4:400] = bytes(byte ^ 0xFF for byte in content[4:400])
    manifest.write_bytes(content)
    query = "SELECT run, count(DISTINCT sample_id) AS n FROM manifest GROUP BY run"
    code, printed, error = sql("--runs", tmp_path / "*", "--json", query)
    assert (code, json.loads(printed)) == (0, [{"run": "good", "n": 7}])
    assert f"leftout:{tmp_path}/rotten/manifest.parquet:itsbytesarenot" in "".join(error.split())  # it is wrapped
    code, printed, error = sql("--runs", tmp_path / "*", "--json", "SELECT nothing FROM manifest")
    assert (code, printed) == (2, "")
    assert "left out" not in error


def test_the_dictionary_of_many_runs_has_the_history(sql: Sql, folder: Path) -> None:
    code, printed, _ = sql("--runs", folder / "*", "--tables")
    assert code == 0
    assert "score_trend (history): which images became easier" in printed
    assert "    growth_change DOUBLE [nats]: since the run before" in printed


def test_the_dictionary_is_json_where_that_is_asked_for(sql: Sql, folder: Path) -> None:
    code, printed, _ = sql("--run", folder / "run-9", "--tables", "--json")
    assert code == 0
    relations = {each.pop("relation"): each for each in json.loads(printed)["relations"]}
    ranking = relations["ranking"]
    assert ranking["layer"] == "marts"
    assert ranking["description"] == "the training images, most easily reproduced first."
    (growth,) = (column for column in ranking["columns"] if column["name"] == "log_growth")
    assert (growth["type"], growth["unit"]) == ("DOUBLE", "nats")
    assert growth["description"]


def test_export_says_where(sql: Sql, folder: Path, tmp_path: Path) -> None:
    code, printed, _ = sql("--run", folder / "run-9", "--export", tmp_path / "w.duckdb", "--json")
    assert (code, json.loads(printed)) == (0, {"export": str(tmp_path / "w.duckdb")})
    assert (tmp_path / "w.duckdb").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["SELECT 1"], "give either --run RUN or --runs 'PATTERN'"),
        (["--run", "{run}", "--runs", "{run}", "SELECT 1"], "give either --run RUN"),
        (["--runs", "{run}/*", "SELECT 1"], "no run directory"),
        (["--run", "{run}", "--query", "nope"], "--query nope: no such question; there are flagged_images"),
        (["--run", "{run}", "--query", "left_out", "SELECT 1"], "give one query"),
        (["--run", "{run}", "SELECT zz\nFROM ranking"], "LINE 1: SELECT zz"),
        (["--run", "{run}", "SELECT rank,\n  'a'::INT FROM ranking"], "LINE 2:   'a'::INT"),
        (["--run", "{run}", "SELECT 1 FROM\nWHERE"], "LINE 2: WHERE"),
        (["--run", "{run}", "--export", "/dev/null/w.duckdb"], "/dev/null/w.duckdb: cannot be written"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(arguments: list[str], says: str, sql: Sql, folder: Path) -> None:
    code, printed, error = sql(*(argument.format(run=folder / "run-9") for argument in arguments))
    assert (code, printed) == (2, "")
    assert says in error


@pytest.fixture(scope="module")
def warehouse(folder: Path) -> Iterator[Warehouse]:
    with Warehouse(RunDirectory(folder / "run-9")) as warehouse:
        yield warehouse


def conversation(warehouse: Warehouse, lines: list[str | type[BaseException]]) -> tuple[list[str], list[str]]:
    """(queries that were asked, prompts that were shown)."""
    asked: list[str] = []
    prompts: list[str] = []

    def read(prompt: str) -> str:
        prompts.append(prompt)
        line = lines.pop(0) if lines else EOFError
        if isinstance(line, str):
            return line
        raise line

    def show(query: str) -> None:
        asked.append(query)
        if "wrong" in query:
            raise QueryError("LINE 1: wrong")

    Shell(warehouse, show, lambda: list_relations(warehouse)).run(read)
    return asked, prompts


def test_a_query_ends_with_a_semicolon_over_any_number_of_lines(warehouse: Warehouse) -> None:
    asked, prompts = conversation(warehouse, ["", "SELECT 1,", "", "2;", "SELECT 3;"])
    assert asked == ["SELECT 1,\n\n2;", "SELECT 3;"]
    assert prompts == [PROMPT, PROMPT, CONTINUED, CONTINUED, PROMPT, PROMPT]


def test_a_wrong_query_is_told_and_the_next_one_asked(warehouse: Warehouse, capsys: pytest.CaptureFixture[str]) -> None:
    asked, _ = conversation(warehouse, ["wrong;", "SELECT 1;"])
    assert asked == ["wrong;", "SELECT 1;"]
    assert capsys.readouterr().err == "LINE 1: wrong\n"


def test_an_interrupt_drops_the_query_that_was_begun(warehouse: Warehouse) -> None:
    assert conversation(warehouse, ["SELECT 1", KeyboardInterrupt, "SELECT 2;"])[0] == ["SELECT 2;"]


def test_dot_commands_and_saved_questions(warehouse: Warehouse, capsys: pytest.CaptureFixture[str]) -> None:
    asked, _ = conversation(warehouse, [".tables", ".queries", ".help", "left_out ;", ".quit", "SELECT 1;"])
    assert asked == [saved_queries()["left_out"]]
    printed = capsys.readouterr().out
    assert "ranking (marts)" in printed
    assert "left_out" in printed
    assert "Ctrl-D" in printed


@pytest.mark.parametrize("word", ["exit", "quit", ".exit", ".quit", " quit ; "])
def test_each_word_for_the_end_ends_the_shell(warehouse: Warehouse, word: str) -> None:
    assert conversation(warehouse, ["SELECT 1;", word, "SELECT 2;"])[0] == ["SELECT 1;"]


@pytest.mark.parametrize("word", ["help", ".help", "help;"])
def test_help_lists_every_command(warehouse: Warehouse, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert conversation(warehouse, [word, "SELECT 1;"])[0] == ["SELECT 1;"]
    printed = capsys.readouterr().out
    assert [command for command in COMMANDS if command not in printed] == []


def test_a_word_within_a_query_is_no_command(warehouse: Warehouse) -> None:
    assert conversation(warehouse, ["SELECT 1 AS", "quit", ";"])[0] == ["SELECT 1 AS\nquit\n;"]


def test_relations_columns_questions_and_keywords_are_completed(warehouse: Warehouse) -> None:
    shell = Shell(warehouse, lambda query: None, lambda: None)

    def completions(text: str) -> list[str | None]:
        return [shell.complete(text, i) for i in range(3)]

    assert completions("ranki") == ["ranking", None, None]
    assert completions("rank") == ["rank", "ranked_by", "ranking"]
    assert completions("scores_by_s") == ["scores_by_split", None, None]
    assert completions("most_rep") == ["most_reproducible", None, None]
    assert completions("SELE") == ["SELECT", None, None]
    assert completions("sele") == ["select", None, None]
    assert completions("xyz") == [None] * 3
    assert completions(".q") == [".queries", ".quit", None]
    assert [completions(text)[0] for text in ("exi", "qui", "hel", ".h", ".e", ".t")] == [
        *("exit", "quit", "help", ".help", ".exit", ".tables")
    ]


OWN_TERMINAL = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.SIG_DFL); "  # ignored where the tests run in the background of a script
    "os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A process whose terminal is a pseudo-terminal: Ctrl-C and Ctrl-Z reach it."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.screen, slave = pty.openpty()
        whole = [sys.executable, "-c", OWN_TERMINAL, *command]
        self.process = subprocess.Popen(
            whole, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def until(self, text: str, seconds: float = 90.0) -> str:
        """What was shown since the last call, up to and with this text."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.screen], [], [], 0.2)[0]:
                self.shown += os.read(self.screen, 65536).decode()
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def rest(self) -> str:
        """All that a process shows which has ended."""
        while select.select([self.screen], [], [], 0.2)[0]:
            try:
                self.shown += os.read(self.screen, 65536).decode()
            except OSError:  # nobody holds the other end any more
                break
        return self.shown


def test_on_a_terminal_tab_completes_and_history_is_kept(folder: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "latentprint.flows.cli.main",
        "sql",
        "--run",
        str(folder / "run-9"),
        "--format",
        "csv",
    ]
    terminal = Terminal(command, {**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "dumb"})
    try:
        terminal.until(PROMPT)
        terminal.type("SELECT log_growth AS found FROM ranki\t WHERE rank = 1;\n")
        assert "found\r\n5.0" in terminal.until("5.0\r\n")
        terminal.until(PROMPT)
        terminal.type("\x04")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        os.close(terminal.screen)
    history = tmp_path / "latentprint" / "sql_history"
    assert history.read_text() == "SELECT log_growth AS found FROM ranking WHERE rank = 1;\n"
    assert history.stat().st_mode & 0o077 == 0


def printed_in(sql: Sql, folder: Path, output: str, query: str, *options: object) -> str:
    code, printed, error = sql("--run", folder / "run-9", "--format", output, query, *options)
    assert code == 0, error
    return printed


@pytest.mark.parametrize("output", ["table", "csv", "json"])
def test_every_type_of_duckdb_is_printed_in_every_format(sql: Sql, folder: Path, output: str) -> None:
    """Their least and their greatest values among them, such as dates after the year 9999 and infinite ones."""
    printed = printed_in(sql, folder, output, "SELECT * EXCLUDE (medium_enum, large_enum) FROM test_all_types()")
    assert printed.isascii() if output == "json" else printed
    assert "Traceback" not in printed


def test_dates_that_python_does_not_have_are_printed(sql: Sql, folder: Path) -> None:
    query = (
        "SELECT DATE '290000-01-01' AS far, DATE 'infinity' AS never, INTERVAL 2 MONTH AS long, 2::UHUGEINT ** 2 AS n"
    )
    assert printed_in(sql, folder, "csv", query).splitlines()[1].startswith("290000-01-01,infinity,2 months,")
    nested = printed_in(sql, folder, "json", "SELECT [DATE '290000-01-01'] AS far, {'a': MAP {1: INTERVAL 1 DAY}} AS m")
    assert json.loads(nested) == [{"far": ["290000-01-01"], "m": {"a": {"1": "1 day"}}}]


def test_what_a_format_has_no_room_for_is_a_line(sql: Sql, folder: Path, tmp_path: Path) -> None:
    run = folder / "run-9"
    code, _, error = sql("--run", run, "--format", "parquet", "--out", tmp_path / "x", "SELECT INTERVAL 1 MONTH AS i")
    assert (code, error.count("\n")) == (2, 1)
    assert "write this as text" in error
    assert not list(tmp_path.iterdir())
    code, printed, error = sql("--run", run, "--json", "SELECT 1 AS a, 2 AS a")
    assert (code, printed) == (2, "")
    assert "a: two columns have this name" in error
    assert printed_in(sql, folder, "csv", "SELECT 1 AS a, 2 AS a") == "a,a\n1,2\n"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_a_cell_of_csv_that_a_spreadsheet_would_run_gets_an_apostrophe(start: str) -> None:
    assert neutralised(f"{start}cmd").startswith("'")
    assert neutralised(f"a{start}cmd")[0] == "a"


@pytest.mark.parametrize("sign", ["\x1b", "\x9b", "\x00", "\r", "\x7f", "\u202e", "\u2066", "\ufeff", "\u2028"])
@pytest.mark.parametrize("output", ["table", "csv", "json"])
def test_no_control_character_reaches_the_terminal(sql: Sql, folder: Path, output: str, sign: str) -> None:
    query = f"SELECT 'a' || chr({ord(sign)}) || '[31m' AS \"name{'' if sign == chr(0) else sign}\""
    printed = printed_in(sql, folder, output, query)
    assert sign not in printed
    assert "[31m" in printed


def test_in_csv_line_feeds_and_numbers_stay_as_they_are() -> None:
    assert [neutralised(value) for value in ("a\nb\tc", "-12", -1.5, None)] == ["a\nb\tc", "-12", -1.5, None]


def test_errors_show_control_characters_as_escapes(warehouse: Warehouse, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str | type[BaseException]] = ["SELECT ('x' || chr(27) || '[31m')::INTEGER;"]

    def read(prompt: str) -> str:
        if not lines:
            raise EOFError
        return str(lines.pop())

    Shell(warehouse, lambda query: ask(warehouse, query, "csv", None), lambda: None).run(read)
    error = capsys.readouterr().err
    assert r"\x1b[31m" in error
    assert "\x1b" not in error


def test_a_table_shows_a_thousand_rows_and_says_how_many_there_are(sql: Sql, folder: Path) -> None:
    code, printed, error = sql("--run", folder / "run-9", "SELECT range AS i FROM range(5000)")
    assert (code, error) == (0, "1,000 of 5,000 rows are shown; --format csv has all\n")
    assert "│ 999 " in printed
    assert "│ 1000" not in printed
    columns = ", ".join(f"{i} AS c{i}" for i in range(150))
    assert "100 of 150 columns are shown" in sql("--run", folder / "run-9", f"SELECT {columns}")[2]
    _, printed, error = sql("--run", folder / "run-9", "SELECT repeat('x', 2000) AS x FROM range(900)")
    assert error.endswith("of 900 rows are shown; --format csv has all\n")
    assert len(printed) < 20 * 2**20


@pytest.mark.parametrize("output", ["csv", "json"])
@pytest.mark.parametrize(
    "query",
    [
        "SELECT range AS i FROM range(100000)",
        "SELECT true AS yes FROM range(1000000)",
        "SELECT 'LONG'::ENUM('LONG') AS word FROM range(10000)".replace("LONG", "x" * 1000),
        "SELECT repeat('x', 1000) AS long FROM range(1000)",
        "SELECT [range(1000)] AS nested FROM range(1000)",
        'SELECT 1 AS "' + "n" * 2000 + '" FROM range(100)',
    ],
)
def test_text_is_written_up_to_its_bound(sql: Sql, folder: Path, output: str, query: str) -> None:
    code, printed, error = sql("--run", folder / "run-9", "--format", output, "--max-bytes", 50_000, query)
    if output == "csv" and "nnn" in query:
        assert code == 0  # its long name comes once
        return
    assert code == 2
    assert "stopped at 50,000 bytes of text: add a LIMIT, or raise --max-bytes" in error
    assert len(printed) <= 50_000


def test_a_row_that_is_too_long_is_refused(sql: Sql, folder: Path) -> None:
    code, printed, error = sql("--run", folder / "run-9", "--format", "csv", "SELECT repeat('x', 80000000) AS x")
    assert (code, printed) == (2, "x\n")
    assert "a row takes more than 64 MiB" in error


def test_the_time_limit_covers_printing(folder: Path) -> None:
    with Warehouse(RunDirectory(folder / "run-9")) as warehouse:
        rows = warehouse.query("SELECT range AS i, 'x' || range AS x FROM range(3000000)", form="text")
    started = time.monotonic()
    with open(os.devnull, "w") as nowhere, pytest.raises(QueryError, match=r"^stopped after 0\.2 s of printing"):
        print_rows(rows, "csv", nowhere, 2**40, 0.2)
    assert time.monotonic() - started < 10.0


def test_a_file_that_does_not_fit_is_not_left(sql: Sql, folder: Path, tmp_path: Path) -> None:
    query = "SELECT range AS i FROM range(100000)"
    code, _, _ = sql(
        "--run", folder / "run-9", "--format", "csv", "--out", tmp_path / "x.csv", "--max-bytes", 1000, query
    )
    assert code == 2
    assert not list(tmp_path.iterdir())

"""Arguments that several commands take, and how they print what they found."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from latentprint import __version__
from latentprint.tasks.pages.formats import harmless
from latentprint.tasks.parameters import ModelParameters
from latentprint.tasks.store.ownership import require_local

Access = Literal["read", "add", "write"]


@dataclass(frozen=True)
class StoredRun:
    """A run in an object store, as it was named: nothing is fetched while arguments are read."""

    url: str
    access: Access
    """Whether the command works in it, adds a file at its end, or changes nothing."""
    has_images: bool
    """Whether the command has a use for them."""

    def local(self, until: ExitStack) -> Path:
        """Its copy here, fetched now; what may be changed in it is published until the stack is closed, and at last."""
        from latentprint.tasks.remote import TARS, RemoteRun

        remote, without = RemoteRun(self.url), () if self.has_images else TARS
        if self.access == "read":
            remote.fetch(without)
            return remote.run.path
        return until.enter_context((remote.written if self.access == "write" else remote.added_to)(without))


app = typer.Typer(
    name="latentprint",
    help="How easily does a diffusion model give its training images back? Start with: latentprint demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Add a command of this name. A :class:`StoredRun` reaches it as a local folder, once all arguments are read.

    A URL where a file or folder is meant is refused before.
    """

    @app.command()
    @wraps(function)
    def run(**arguments: Any) -> None:
        for value in arguments.values():
            if isinstance(value, Path):
                require_local(value)
        with ExitStack() as until:
            function(**{name: _fetched(value, until) for name, value in arguments.items()})

    return function


def _fetched(value: Any, until: ExitStack) -> Any:
    if isinstance(value, tuple):
        return tuple(_fetched(each, until) for each in value)
    return value.local(until) if isinstance(value, StoredRun) else value


def _print_version(asked: bool) -> None:
    if asked:
        print(f"latentprint {__version__}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


SOURCE_HELP = (
    "Training images: folder, zip, WebDataset tar(s), Hugging Face data set folder or Parquet, CSV or JSONL of paths, "
    ".npz/.npy, MNIST idx(.gz), a quoted pattern such as 'photos/*.png', or an s3:// URL of these; "
    "hf://datasets/OWNER/NAME. Floats need their range: 'x.npy?range=-1,1'."
)
Model = Annotated[
    str,
    typer.Option(
        help="Model: a pipeline's folder, a checkpoint of a training, unet/ alone, a name on the hub, or "
        "MODULE:FUNCTION, which imports and runs your own code that builds the model."
    ),
]
Train = Annotated[str, typer.Option(help=SOURCE_HELP)]
Holdout = Annotated[
    list[str] | None,
    typer.Option(help="Held-out images: like the training images, but never trained on. Repeat it for more sources."),
]


def _parser(access: Access, has_images: bool = True) -> Callable[[str | Path], Path | StoredRun]:
    """Of the name of a run directory, or of its URL."""

    def run_of(text: str | Path) -> Path | StoredRun:
        if not str(text):
            raise typer.BadParameter("give a run directory")
        is_local = isinstance(text, Path) or "://" not in text
        return Path(text) if is_local else StoredRun(str(text), access, has_images)

    return run_of


run_path, compared_path, read_path = _parser("write"), _parser("add"), _parser("read")
decided_path, tables_path = _parser("add", has_images=False), _parser("read", has_images=False)


def run_patterns(text: str) -> list[str]:
    """The pattern of run directories; of runs in an object store their local copies, fetched now without images.

    Those that cannot be fetched are left out and named on standard error.

    Raises:
        RunError: that is all of them, or there are more than can be asked at once.
    """
    if "://" not in text:
        return [text]
    from latentprint.flows.cli.answers import leave_out
    from latentprint.tasks.remote import TARS, RemoteRun, find_stored_runs
    from latentprint.tasks.store.run import RunError
    from latentprint.tasks.warehouse.history import require_few

    copies, reasons = list[str](), list[RunError]()
    urls = find_stored_runs(text)
    require_few(len(urls))
    for url in urls:
        try:
            remote = RemoteRun(url)
            remote.fetch(TARS)
            copies.append(glob.escape(str(remote.run.path)))
        except RunError as error:
            reasons.append(error)
    if reasons and not copies:
        raise reasons[0]
    for reason in reasons:
        leave_out(reason)
    return copies or [text]


Out = Annotated[
    Path,
    typer.Option(help="Run directory, or s3:// URL. An interrupted run continues.", parser=run_path, metavar="RUN"),
]
Run = Annotated[Path, typer.Option(help="An existing run directory, or its s3:// URL.", parser=run_path, metavar="RUN")]
ReadRun = Annotated[
    Path, typer.Option(help="An existing run directory, or its s3:// URL.", parser=read_path, metavar="RUN")
]
Reuse = Annotated[
    Path | None,
    typer.Option(
        help="Another run, or its s3:// URL. Its shards and scores of the same images, model and options are used.",
        parser=tables_path,
        metavar="RUN",
    ),
]
Before = Annotated[
    Path | None,
    typer.Option(
        help="Run of the model before its training set was cleaned. The report says what cleaning changed.",
        parser=read_path,
        metavar="RUN",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[str, typer.Option(help="Where the network runs: auto, cpu, mps, cuda or cuda:N.")]
Threads = Annotated[int, typer.Option(help="Torch threads on a CPU; 0: all cores.")]


def require_there(
    *runs: Path | None,
    model: str | None = None,
    loading: ModelParameters = ModelParameters(),
    sources: Iterable[str] = (),
) -> None:
    """Look for what a command names, before its imports and its server take seconds: call it first.

    Raises:
        RunError, CheckpointError, SourceError: it is not there, or something else is.
    """
    from latentprint.tasks.datasets.sources import open_source
    from latentprint.tasks.store.run import RunDirectory

    for run in filter(None, runs):
        RunDirectory(run).read_record()
    for location in sources:
        open_source(location)
    if model is not None:
        from latentprint.tasks.diffusion.layout import resolve  # with torch

        resolve(model, **loading.model_dump())


def sources_of(train: str, holdout: list[str] | None) -> Iterable[str]:
    """Where the images are.

    Raises:
        SourceError: the same held-out source is given twice.
    """
    from latentprint.tasks.datasets.holdouts import named_sources

    return named_sources(train, holdout).values()


def show(result: dict[str, Any], as_json: bool, *lines: str) -> None:
    """The result as JSON, or in words; names from outside cannot steer the terminal in either."""
    if as_json:
        print(json.dumps(result, indent=2, default=str).replace("\x7f", "\\u007f"))
    else:
        print(harmless("\n".join(lines)))

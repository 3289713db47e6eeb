"""Arguments that several commands take, and how they print what they found."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from latentprint import __version__
from latentprint.tasks.pages.formats import harmless

app = typer.Typer(
    name="latentprint",
    help="How easily does a diffusion model give its training images back? Start with: latentprint demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
    "Training images: folder, zip, WebDataset tar(s), Hugging Face data set folder or Parquet, .npz/.npy, "
    "MNIST idx(.gz), or an s3:// URL of these."
)
Model = Annotated[str, typer.Option(help="Diffusers checkpoint: a DDPMPipeline folder, or a name on the hub.")]
Train = Annotated[str, typer.Option(help=SOURCE_HELP)]
Holdout = Annotated[
    list[str] | None,
    typer.Option(help="Held-out images: like the training images, but never trained on. Repeat it for more sources."),
]


remote_runs = ExitStack()
"""Runs in object stores that the command works on; closing it publishes them."""


def run_path(text: str | Path) -> Path:
    """The run directory; of a run in an object store its local copy, fetched now and published as long as we run."""
    return _run_path(text, without=())


def tables_path(text: str | Path) -> Path:
    """The same without images."""
    from latentprint.tasks.remote import TARS

    return _run_path(text, without=TARS)


def run_patterns(text: str) -> list[str]:
    """The pattern of run directories; of runs in an object store their local copies, fetched now without images."""
    if "://" not in text:
        return [text]
    from latentprint.tasks.remote import TARS, RemoteRun, find_stored_runs

    remotes = list(map(RemoteRun, find_stored_runs(text)))
    for remote in remotes:
        remote.fetch(TARS)
    return [glob.escape(str(remote.run.path)) for remote in remotes] or [text]


def _run_path(text: str | Path, without: tuple[str, ...]) -> Path:
    if not str(text):
        raise typer.BadParameter("give a run directory")
    if isinstance(text, Path) or "://" not in text:
        return Path(text)
    from latentprint.tasks.remote import RemoteRun

    remote = RemoteRun(text)
    remote.fetch(without)
    return remote_runs.enter_context(remote.published())


Out = Annotated[
    Path,
    typer.Option(help="Run directory, or s3:// URL. An interrupted run continues.", parser=run_path, metavar="RUN"),
]
Run = Annotated[Path, typer.Option(help="An existing run directory, or its s3:// URL.", parser=run_path, metavar="RUN")]
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
        parser=run_path,
        metavar="RUN",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[str, typer.Option(help="Where the network runs: auto, cpu, mps, cuda or cuda:N.")]
Threads = Annotated[int, typer.Option(help="Torch threads on a CPU; 0: all cores.")]


def require_there(*runs: Path | None, model: str | None = None, sources: Iterable[str] = ()) -> None:
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
        from latentprint.tasks.diffusion.checkpoint import resolve  # with torch

        resolve(model)


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

"""The command that makes a checkpoint readable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentprint.flows.cli.arguments import AsJson, command, show


@command
def convert(
    source: Annotated[str, typer.Argument(help="Diffusers folder with pickled weights (.bin).")],
    out: Annotated[Path, typer.Option(help="New folder for the pipeline.")],
    scheduler: Annotated[
        str, typer.Option(help="Folder or file of the noise schedule, where SOURCE has none; empty: its own.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint with pickled weights anew, with the same weights as safetensors. No code in a pickle is run.

    A checkpoint of a training, or a network alone, becomes a whole pipeline.

    Example: latentprint convert old-ddpm/ --out my-ddpm
    """
    from latentprint.tasks.convert import convert as work

    result = work(source, out, scheduler)
    names = ", ".join(result["converted"]) or "nothing was pickled, the files were copied"
    show(result, as_json, *result["choices"], f"{out}: {names}")

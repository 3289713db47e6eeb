"""Command line options made from the flows' parameters: name, type, default, bounds and help are written once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo
from rich.markup import escape

from latentprint.tasks.parameters import Parameters


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes an option for each field of its ``Parameters`` arguments, and is called with the objects."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if isinstance(kind, type) and issubclass(kind, Parameters)}
    own, made = [], []
    for parameter in inspect.signature(command).parameters.values():
        if kind := groups.get(parameter.name):
            panel = f"{kind.__name__.removesuffix('Parameters')} options"
            made += [_option(name, field, panel) for name, field in kind.model_fields.items()]
        else:
            own.append(parameter.replace(annotation=hints[parameter.name]))

    @wraps(command)
    def run(**options: Any) -> None:
        objects = {
            name: kind.model_validate({field: options.pop(field) for field in kind.model_fields})
            for name, kind in groups.items()
        }
        command(**options, **objects)

    run.__signature__ = inspect.Signature(own + made)  # type: ignore[attr-defined]  # inspect reads it
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in own + made}
    return run


def flag(name: str, field: FieldInfo) -> str:
    """``--shard-mb``: a field's option."""
    extra = field.json_schema_extra
    named = extra.get("flag", name) if isinstance(extra, dict) else name
    return f"--{str(named).replace('_', '-')}"


def _option(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    """Numbers as numbers, truth values as flags; everything else as text, which the parameters' validation reads."""
    kind = field.annotation if field.annotation in (bool, int, float) else str
    default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    described = escape(f"{str(field.description)[0].upper()}{str(field.description)[1:]}.")
    option = typer.Option(flag(name, field), help=described, metavar=_choices(field), rich_help_panel=panel)
    annotation = Annotated[kind, option]  # type: ignore[valid-type]  # made at run time
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _choices(field: FieldInfo) -> str | None:
    """``a|b``, if there are only these."""
    return "|".join(get_args(field.annotation)) if get_origin(field.annotation) is Literal else None

"""What all pages share: one self-contained file each, whose policy forbids whatever is not in it already.

Everything from outside (names, labels, reasons) passes Jinja2's autoescape as text. Should anything still slip through,
the content security policy stops it: a script runs only if its hash is that of ours, pictures come from the page alone,
and nothing is asked for elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from latentprint.tasks.pages import formats


def render(template: str, **values: Any) -> str:
    """A page as text, to be encoded in UTF-8; the same values give the same bytes."""
    script = script_text()
    return (
        environment()
        .get_template(template)
        .render(policy=content_security_policy(script), script=Markup(script), **values)
    )


def content_security_policy(script: str) -> str:
    """Styles are inline, since those of the plots are; the script is the one with this text."""
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{checksum}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def script_text() -> str:
    """What sorts and filters tables; the pages can be read without."""
    environment_ = environment()
    assert environment_.loader is not None
    return environment_.loader.get_source(environment_, "tables.js")[0]


@cache
def environment() -> Environment:
    """Templates of the pages; whatever is printed is text, never markup."""
    environment = Environment(
        loader=PackageLoader("latentprint.tasks.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=formats.number,
        setting=formats.setting,
        percent=formats.percent,
        visible=formats.visible,
        drawing=lambda svg: Markup(svg),
    )
    return environment


def place(value: Any) -> Any:
    """Of an absolute path its name alone, within mappings too: pages are forwarded, and folders tell of people."""
    if isinstance(value, Mapping):
        return {key: place(item) for key, item in value.items()}
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value

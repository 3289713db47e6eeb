"""Prefect's ``task``, whose results are never taken from its cache: the files of the run say what is done already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import prefect
from prefect.cache_policies import NO_CACHE

P = ParamSpec("P")
R = TypeVar("R")


def task(name: str, **options: Any) -> Callable[[Callable[P, R]], prefect.Task[P, R]]:
    """Make a function a task of this name; options as ``prefect.task`` takes them."""
    return prefect.task(name=name, cache_policy=NO_CACHE, **options)

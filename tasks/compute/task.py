"""Prefect's ``task``, whose results are never taken from its cache: the files of the run say what is done already.

Whatever process a task or a flow runs in, its log has what the package says, from INFO on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import prefect
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler

P = ParamSpec("P")
R = TypeVar("R")


def task(name: str, **options: Any) -> Callable[[Callable[P, R]], prefect.Task[P, R]]:
    """Make a function a task of this name; options as ``prefect.task`` takes them."""
    return prefect.task(name=name, cache_policy=NO_CACHE, **options)


def _is_within_a_run(_: logging.LogRecord) -> bool:
    return bool(FlowRunContext.get() or TaskRunContext.get())


def _log_to_runs() -> None:
    """Prefect does so for ``PREFECT_LOGGING_EXTRA_LOGGERS``, which nobody sets for a worker of theirs."""
    logger = logging.getLogger("latentprint")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not any(isinstance(handler, APILogHandler) for handler in logger.handlers):
        handler = APILogHandler()
        handler.addFilter(_is_within_a_run)
        logger.addHandler(handler)


_log_to_runs()

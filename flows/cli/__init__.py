"""The subcommands of ``latentprint``, each a thin layer over a flow."""

from flows.commands import pipeline, questions, verdicts, hygiene, studies, integrations  # noqa: I001  # as in --help
from flows.commands.arguments import app

__all__ = ["app", "hygiene", "integrations", "pipeline", "questions", "studies", "verdicts"]

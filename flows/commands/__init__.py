"""The subcommands of ``latentprint``, each a thin layer over a flow."""

from flows.commands import hygiene, integrations, pipeline, questions, studies, verdicts
from flows.commands.arguments import app

__all__ = ["app", "hygiene", "integrations", "pipeline", "questions", "studies", "verdicts"]

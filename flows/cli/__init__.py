"""The subcommands of ``latentprint``, each a thin layer over a flow."""

from latentprint.flows.cli import convert as conversion
from latentprint.flows.cli import curate as cleaning
from latentprint.flows.cli import gate as verdicts
from latentprint.flows.cli import hygiene as nightly
from latentprint.flows.cli import pipeline, studies
from latentprint.flows.cli import probe as blind_audits  # as in --help
from latentprint.flows.cli import prune as housekeeping
from latentprint.flows.cli import publish as integrations
from latentprint.flows.cli import sql as questions
from latentprint.flows.cli.arguments import app

__all__ = [
    "app",
    "blind_audits",
    "cleaning",
    "conversion",
    "housekeeping",
    "integrations",
    "nightly",
    "pipeline",
    "questions",
    "studies",
    "verdicts",
]

"""How easily does a diffusion model give its training images back?

From images and a checkpoint to a run, and its two answers::

    import latentprint

    run = latentprint.audit("my-ddpm/", "photos/", "runs/first", holdout="unseen/")
    run.verdict.membership.sentence         # were these images trained on?
    run.verdict.reproduction.sentence       # do copies of them come out?

A run that is there already, in SQL, Arrow, pandas or DuckDB::

    with latentprint.open_run("runs/first") as run:
        run.relations                       # what there is, and what it means
        run.query("SELECT sample_id, log_growth FROM ranking WHERE rank <= $1", [10])
        run.table("ranking").to_pandas()
        run.relation("ranking").filter("copies > 1")

A limit that a checkpoint must keep::

    verdict = latentprint.gate(run, latentprint.Limits(max_auc=0.6))
    verdict.outcome                         # pass, fail or inconclusive

The method alone, for researchers: :func:`log_growth` of images under a :class:`Denoiser`. Its network is yours, on a
:class:`DiscreteVP` noise schedule, or it comes from a checkpoint by :func:`load_denoiser`. A whole audit takes any
network too: ``model="my_module:load"`` runs your function, which returns a :class:`Model`.

What a caller can mend is a :class:`UserError`, one line that says how. A parameter out of its bounds is pydantic's
``ValidationError``. The same functions are on the command line: ``latentprint --help``.

Importing this package loads nothing else. Each name loads what it needs when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentprint.runs import Run, audit, gate, open_run
    from latentprint.tasks import parameters
    from latentprint.tasks.diffusion.checkpoint import load_denoiser
    from latentprint.tasks.diffusion.code_model import Model
    from latentprint.tasks.diffusion.denoiser import Denoiser
    from latentprint.tasks.diffusion.growth import log_growth
    from latentprint.tasks.diffusion.schedule import DiscreteVP
    from latentprint.tasks.errors import UserError
    from latentprint.tasks.gate.decide import Limits

__version__ = "0.1.0"
__all__ = [
    "Denoiser",
    "DiscreteVP",
    "Limits",
    "Model",
    "Run",
    "UserError",
    "__version__",
    "audit",
    "gate",
    "load_denoiser",
    "log_growth",
    "open_run",
    "parameters",
]

if not TYPE_CHECKING:  # a type checker would take a module's __getattr__ for any name at all
    _HOMES = {
        "Denoiser": "latentprint.tasks.diffusion.denoiser:Denoiser",
        "DiscreteVP": "latentprint.tasks.diffusion.schedule:DiscreteVP",
        "Limits": "latentprint.tasks.gate.decide:Limits",
        "Model": "latentprint.tasks.diffusion.code_model:Model",
        "Run": "latentprint.runs:Run",
        "UserError": "latentprint.tasks.errors:UserError",
        "audit": "latentprint.runs:audit",
        "gate": "latentprint.runs:gate",
        "load_denoiser": "latentprint.tasks.diffusion.checkpoint:load_denoiser",
        "log_growth": "latentprint.tasks.diffusion.growth:log_growth",
        "open_run": "latentprint.runs:open_run",
        "parameters": "latentprint.tasks.parameters",
    }

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from pkgutil import resolve_name

        value = globals()[name] = resolve_name(_HOMES[name])
        return value

    def __dir__():
        return sorted({*globals(), *__all__})

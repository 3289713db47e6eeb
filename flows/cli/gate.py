"""The commands that decide and check; their exit codes tell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from latentprint.flows.cli.arguments import AsJson, ReadRun, command, decided_path, show, tables_path

LONGEST = 1000
"""Characters of a name or a reason that verify prints."""


def _option(about: str) -> Any:
    """An option whose square brackets survive in its help."""
    return typer.Option(help=escape(about))


@command
def gate(
    run: Annotated[
        Path | None,
        typer.Option(help="The run to decide on, or its s3:// URL.", parser=decided_path, metavar="RUN"),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="An earlier run, or its s3:// URL, for the limits on an increase.", parser=tables_path, metavar="RUN"
        ),
    ] = None,
    max_auc: Annotated[
        float | None, _option("Largest AUC of the verdict's score, training against held-out images.")
    ] = None,
    max_flag_rate: Annotated[float | None, _option("Largest share of training images that are flagged [of 1].")] = None,
    max_memorized_share: Annotated[
        float | None, _option("Largest share of generated images that are copies [of 1].")
    ] = None,
    max_odds: Annotated[
        float | None, _option("Largest probability that a generated image is the most likely training image [of 1].")
    ] = None,
    max_auc_increase: Annotated[
        float | None, typer.Option(help="Largest increase of the AUC over the baseline.")
    ] = None,
    max_flag_rate_increase: Annotated[
        float | None, typer.Option(help="Largest increase of the flag rate over the baseline.")
    ] = None,
    max_memorized_share_increase: Annotated[
        float | None, typer.Option(help="Largest increase of the share over the baseline.")
    ] = None,
    min_controls: Annotated[
        int | None, typer.Option(help="Least number of images in each group; 30 or more. Default: 30.")
    ] = None,
    policy: Annotated[
        Path | None, _option("TOML file of limits, max-auc = 0.6 for example. Limits given as options win.")
    ] = None,
    waivers: Annotated[
        Path | None,
        _option("TOML file of waivers: [[waiver]] with rule, reason, owner, checkpoint, ceiling, expires."),
    ] = None,
    seal: Annotated[str, typer.Option(help="Seal that audit printed; a run with another seal is refused.")] = "",
    baseline_seal: Annotated[
        str, typer.Option(help="Seal of the baseline; a baseline with another seal is refused.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="File for the verdict as JSON; default: RUN/verdict.json.")] = None,
    junit: Annotated[
        Path | None, typer.Option(help="File for the verdict as JUnit XML; default: RUN/junit.xml.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="File for a summary in Markdown, for a pull request.")] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Show that the limits block a run that is known to be bad.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Pass or block a checkpoint: exit 0 pass, 1 fail, 2 usage or input error, 3 inconclusive.

    Each limit is compared with the bounds of an interval. A false pass and a false failure each have a probability of
    at most 2.5%, for any number of limits. The gate is inconclusive where a number is missing, void or not finite, or
    where there are too few images. A run that was changed after it was written (see verify) is an input error.

    Example: latentprint gate --run runs/demo --max-auc 0.6 --max-memorized-share 0.01
    """
    from latentprint.tasks.gate.decide import Limits
    from latentprint.tasks.gate.judge import gate as decide
    from latentprint.tasks.gate.judge import rehearse
    from latentprint.tasks.gate.policy import read_policy
    from latentprint.tasks.gate.write import lines

    given = dict(
        max_auc=max_auc,
        max_flag_rate=max_flag_rate,
        max_memorized_share=max_memorized_share,
        max_odds=max_odds,
        max_auc_increase=max_auc_increase,
        max_flag_rate_increase=max_flag_rate_increase,
        max_memorized_share_increase=max_memorized_share_increase,
        min_controls=min_controls,
    )
    limits, policy_sha256 = Limits.model_validate({name: x for name, x in given.items() if x is not None}), ""
    if policy is not None:
        limits, policy_sha256 = read_policy(policy, limits)
    if self_test:
        tried = [(case, verdict.outcome, verdict.outcome == case.expected) for case, verdict in rehearse(limits)]
        rows = [
            {"run": case.name, "expected": case.expected, "outcome": outcome, "ok": ok} for case, outcome, ok in tried
        ]
        shown = ["{run:<28} {outcome:<13} {expected} expected".format(**row) for row in rows]
        show({"self_test": rows}, as_json, *shown)
        raise typer.Exit(0 if all(row["ok"] for row in rows) else 1)
    if run is None:
        raise typer.BadParameter("give --run RUN or --self-test")
    verdict = decide(run, limits, baseline, waivers, out, junit, markdown, seal, baseline_seal, policy_sha256)
    show(verdict.as_dict(), as_json, *lines(verdict))
    raise typer.Exit(verdict.exit_code)


@command
def verify(run: ReadRun, as_json: AsJson = False) -> None:
    """Compute every hash of a run again and list what differs; exit code 1 if anything differs."""
    from latentprint.tasks.pages.formats import visible
    from latentprint.tasks.verify import verify as work

    result = work(run)
    differences = result["differences"]
    lines = [": ".join(visible(part, LONGEST) for part in each.values() if part) for each in differences]
    summary = f"{run}: {result['shards']} shards and {result['parts']} parts verified, {len(differences)} differences"
    show(result, as_json, *lines, summary, f"seal: {result['seal'] or 'none'}")
    if differences:
        raise typer.Exit(1)

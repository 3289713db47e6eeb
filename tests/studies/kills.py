"""A run that is killed at a random moment and started again ends as one that was left alone, byte for byte.

    python -m tests.studies.kills --kills 20

Each of the runs is ``latentprint audit --extract 520`` of 60 digits (80 items) and 40 held-out ones on a checkpoint
trained for seconds. It is SIGKILLed at a moment drawn uniformly from the time that an undisturbed run takes after its
first file, run again, and its shards, manifest, rejects, scores, samples, matches, reproductions, tables and evidence
are compared with the undisturbed run's. Prints what was there at
each kill, as JSON; ends with exit code 1 if any end state differs. About half a minute a kill on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import DDPMPipeline
from sklearn.datasets import load_digits

from latentprint.flows.cli.server import configure_environment, prefect_server
from latentprint.tasks.diffusion.sampling import from_pixels
from latentprint.tasks.diffusion.training import Trainer, build_unet

COMPARED = (
    "shards/*.tar",
    "manifest.parquet",
    "rejects.parquet",
    "SHA256SUMS",
    "scores/*",
    "samples/*",
    "matches/*",
    "reproductions/*",
    "false-copies/*",
    "extraction.json",
    "tables/*",
    "evidence.json",
)
STAGES = {
    "report.html": "end",
    "tables": "report",
    "samples": "extract",
    "calibration.json": "score",
    "shards": "shard",
}


def write_inputs(folder: Path) -> list[str]:
    """Images and a small checkpoint in ``folder``; returns the options of ``audit`` that name them."""
    digits = (load_digits().images / 16.0 * 255.0).round().astype(np.uint8)
    np.save(folder / "train.npy", np.concatenate([digits[:60], digits[:10], digits[:10]]))
    np.save(folder / "holdout.npy", digits[100:140])
    torch.manual_seed(0)
    trainer = Trainer(
        build_unet(1, 8, (8, 16)),
        from_pixels(torch.from_numpy(digits[:60, None])),
        n_steps=50,
        batch_size=64,
        learning_rate=5e-3,
        ema_decay=0.9,
        seed=0,
    )
    for _ in range(50):
        trainer.step()
    DDPMPipeline(trainer.averaged_network(), trainer.scheduler).save_pretrained(folder / "model")
    names = {"model": "model", "train": "train.npy", "holdout": "holdout.npy"}
    return [text for option, name in names.items() for text in (f"--{option}", str(folder / name))]


def audit(inputs: list[str], run: Path) -> subprocess.Popen[bytes]:
    """Start the command line on small shards and enough steps that scoring takes a good part of the time."""
    options = ["--out", str(run), "--axes", "4", "--steps", "6", "--shard-mb", "0.01", "--threads", "1"]
    options += ["--extract", "520"]
    command = [sys.executable, "-m", "latentprint.flows.cli.main", "audit", *inputs, *options, "--batch-size", "8"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes], run: Path) -> float:
    """Seconds from a run's first file to its end.

    Raises:
        RuntimeError: it failed.
    """
    begin = first_file(process, run)
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(errors.decode(errors="replace"))
    return time.monotonic() - begin


def first_file(process: subprocess.Popen[bytes], run: Path) -> float:
    """When the run began to write: starting Python takes longer than any stage, and nothing can happen to it there."""
    while process.poll() is None and not (run / "run.json").exists():
        time.sleep(0.01)
    return time.monotonic()


def kill(start: Callable[[], subprocess.Popen[bytes]], moment: float, run: Path) -> bool:
    """SIGKILL a run that many seconds after its first file; False, and the run deleted, if it was faster."""
    process = start()
    first_file(process, run)
    try:
        process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    shutil.rmtree(run)
    return False


def end_state(run: Path) -> dict[str, bytes]:
    """Path within the run -> bytes, of all that may not depend on accidents."""
    return {str(file.relative_to(run)): file.read_bytes() for glob in COMPARED for file in sorted(run.glob(glob))}


def stage(run: Path) -> str:
    """How far a killed run had come, and what lay there."""
    reached = next((name for mark, name in STAGES.items() if (run / mark).exists()), "start")
    n = {name: len(list(run.glob(f"{name}/*.[tp]a*"))) for name in ("shards", "scores", "samples", "tables")}
    there = ", ".join(f"{count} {name}" for name, count in n.items())
    return f"{reached}: {there}, {len(list(run.rglob('.*.tmp')))} half-written files"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    configure_environment()
    generator = np.random.default_rng(arguments.seed)
    with TemporaryDirectory(prefix="latentprint-kills-") as scratch:
        folder = Path(scratch)
        os.environ["PREFECT_HOME"] = str(folder / "prefect")
        inputs, kills = write_inputs(folder), []
        with prefect_server():  # one for all: its start would take most of the time
            seconds = finish(audit(inputs, folder / "undisturbed"), folder / "undisturbed")
            expected = end_state(folder / "undisturbed")
            for number in range(arguments.kills):
                run = folder / f"killed-{number}"
                moment = float(generator.uniform(0.0, seconds))
                while not kill(partial(audit, inputs, run), moment, run):
                    moment = float(generator.uniform(0.0, moment))
                at_kill = stage(run)
                finish(audit(inputs, run), run)
                found = end_state(run)
                differing = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
                kills.append({"seconds": round(moment, 1), "at_kill": at_kill, "differing": differing})
                print(json.dumps(kills[-1]), file=sys.stderr, flush=True)
    identical = sum(not kill["differing"] for kill in kills)
    result = {"kills": arguments.kills, "identical": identical, "files_compared": len(expected), "runs": kills}
    print(json.dumps(result, indent=2))
    raise SystemExit(identical != arguments.kills)


if __name__ == "__main__":
    main()

"""Does guidance by surrogate labels (SIDE) extract more of the bundled model's training images than plain sampling?

    python -m tests.studies.side                                # about 5 minutes of one core to itself
    python -m tests.studies.side --samples 4096 --steps 50 --generated 4096

Plain DDIM against three guidance scales, as many samples of each from the same latents, by the commands' own flows. The
run is kept in ``.study/side-STEPS-GENERATED`` (not shipped), so that a killed study continues; the table is printed,
what was found is written to ``tests/studies/results/side.json``.
"""

from __future__ import annotations

import argparse
import logging
import sys

import torch

from latentprint.flows.cli.server import configure_environment, prefect_server
from latentprint.flows.cli.studies import side_table
from latentprint.tasks.parameters import ComputeParameters, ExtractParameters, ScoreParameters, SideParameters
from latentprint.tasks.store.files import read_json, write_json
from latentprint.tasks.store.run import RunDirectory
from tests.benchmarks.__main__ import DEMO
from tests.studies.models import FOLDER, RESULTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512, help="of each way of sampling")
    parser.add_argument("--steps", type=int, default=20, help="DDIM steps")
    parser.add_argument("--generated", type=int, default=1024, help="images that the labels are made from")
    parser.add_argument("--scales", default="1,4,16", help="guidance scales")
    parser.add_argument("--clusters", type=int, default=64)
    parser.add_argument("--training-steps", type=int, default=1000)
    arguments = parser.parse_args()
    configure_environment()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("latentprint").setLevel(logging.INFO)
    torch.set_num_threads(1)
    from latentprint.flows.extract import extract
    from latentprint.flows.score import score
    from latentprint.flows.shard import shard
    from latentprint.flows.side import side

    run = FOLDER / f"side-{arguments.steps}-{arguments.generated}"
    one_thread = ComputeParameters(devices=("cpu",), threads=1)
    parameters = SideParameters.model_validate(
        {name: value for name, value in vars(arguments).items() if name != "generated"}
    )
    with prefect_server():
        shard(run, str(DEMO / "train.tar"))
        score(run, str(DEMO / "model"), ScoreParameters(timestep=20), one_thread)
        extract(run, ExtractParameters(samples=arguments.generated, steps=arguments.steps), one_thread)
        result = side(run, parameters, "cpu")
    print("\n".join([*side_table(result), result["conclusion"]]), file=sys.stderr)
    generated = read_json(RunDirectory(run).extraction)["ratio"]
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "side.json", {**result, "generated": generated})


if __name__ == "__main__":
    main()

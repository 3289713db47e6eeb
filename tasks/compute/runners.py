"""Who works through the groups of shards: a thread and a persistent child a device, or the workers of a Ray cluster.

On Ray each worker process is itself what the child is here: it keeps its model, and what it is given is a group of
shards of a run directory that every node must see under the same path.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from latentprint.tasks.compute.devices import DeviceError, available_devices, devices_for, threads_for
from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.compute.workers import Counter, device_workers, followed
from latentprint.tasks.parameters import ComputeParameters

logger = logging.getLogger("latentprint")
MAX_THREADS = 64
COUNT_SECONDS = 5.0
"""For a Ray cluster to say how far its workers are."""
DEATHS_FORGIVEN = 2
"""How often Ray does a group again whose worker died: as often as a failed one is done again."""
OBJECT_STORE_BYTES = 100 * 2**20
"""Of a local Ray cluster: nothing but job descriptions goes through it."""


class Workers(NamedTuple):
    """Where to submit groups of shards, and how many are worked on at once."""

    runner: TaskRunner[Any]
    n_workers: int


@contextmanager
def workers_for(compute: ComputeParameters, progress: Progress) -> Iterator[Workers]:
    """The workers that ``compute`` asks for, for the length of the block.

    Raises:
        DeviceError: a device that is not there, or Ray, which is not installed.
    """
    if compute.runner == "ray":
        with _ray_workers(compute, progress) as workers:
            yield workers
        return
    devices = devices_for(compute)
    children = device_workers(devices, threads_for(compute, devices), progress)
    with ThreadPoolTaskRunner[Any](max_workers=MAX_THREADS) as runner, children:
        yield Workers(runner, len(devices))


@contextmanager
def _ray_workers(compute: ComputeParameters, progress: Progress) -> Iterator[Workers]:
    try:
        import ray
        from prefect_ray import RayTaskRunner
        from prefect_ray.context import remote_options
    except ImportError as error:
        raise DeviceError("--runner ray: Ray is not installed; pip install 'latentprint[ray]'") from error
    wanted = available_devices() if compute.devices == ("auto",) else compute.devices
    on_gpu = any(device.startswith("cuda") for device in wanted)
    local = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}

    def counted() -> int:
        try:
            return int(ray.get(counter.value.remote(), timeout=COUNT_SECONDS))
        except ray.exceptions.RayError:  # the cluster is busy, or is going and says so elsewhere
            return 0

    options = {"log_to_driver": False, "logging_level": "error", **({} if compute.ray_address else local)}
    needed = {"CPU": compute.cores} | ({"GPU": 1} if on_gpu else {})
    with RayTaskRunner(address=compute.ray_address or None, init_kwargs=options) as runner:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        n_workers = sum(min(int(node.get(kind, 0) // n) for kind, n in needed.items()) for node in nodes)
        if not n_workers:
            _no_room(needed, compute)
        # max_calls=0: without it, Ray ends a worker that has a GPU after each task, and the model is loaded again
        counter = ray.remote(Counter).options(name=Counter.NAME, num_cpus=0).remote()
        needs = remote_options(num_cpus=compute.cores, num_gpus=int(on_gpu), max_calls=0, max_retries=DEATHS_FORGIVEN)
        try:
            with needs, followed(progress, counted):
                yield Workers(runner, max(1, n_workers))
        finally:
            ray.kill(counter)


def _no_room(needed: Mapping[str, int], compute: ComputeParameters) -> None:
    """Ray would wait without end for a node that is large enough; a cluster elsewhere may well start one.

    Raises:
        DeviceError: the cluster is this machine's.
    """
    words = f"--runner ray: no node has {' and '.join(f'{n} {kind}' for kind, n in needed.items())} for a worker"
    if not compute.ray_address:
        raise DeviceError(f"{words}: fewer --threads, or another --device")
    logger.warning("%s; waiting for one", words)

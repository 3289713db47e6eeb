"""Which devices to use, and how many torch threads each CPU worker gets."""

from __future__ import annotations

import os
import re

import torch

from latentprint.tasks.errors import UserError
from latentprint.tasks.parameters import ComputeParameters


class DeviceError(UserError):
    """A device that this machine does not have."""


def available_devices() -> list[str]:
    """Every CUDA device, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else ["cpu"]


def devices_for(compute: ComputeParameters) -> list[str]:
    """The devices to fan out over.

    Raises:
        DeviceError: a name that torch does not know, or a device that is not there.
    """
    if compute.devices == ("auto",):
        return available_devices()
    for device in compute.devices:
        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
            raise DeviceError(f"--device {device}: auto, cpu, mps, cuda or cuda:N is needed")
        if device not in ("cpu", *available_devices(), *(known.partition(":")[0] for known in available_devices())):
            raise DeviceError(f"--device {device}: not on this machine, which has {', '.join(available_devices())}")
    return list(compute.devices)


def only_device(device: str, threads: int) -> str:
    """The one device of a command that works in this process, whose torch threads are set: as asked, or every core.

    Raises:
        DeviceError: as :func:`devices_for`.
    """
    compute = ComputeParameters(devices=(device,), threads=threads)
    devices = devices_for(compute)
    torch.set_num_threads(threads_for(compute, devices))
    return devices[0]


def threads_for(compute: ComputeParameters, devices: list[str]) -> int:
    """Torch threads a worker: as asked, else the cores shared out among the workers."""
    return compute.threads or max(1, cores() // len(devices))


def cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""One persistent child process a device, and the pool of them that a flow's threads draw from.

A child is started once, loads its model once, and is reused for every shard: orchestration costs a function call over a
pipe. A child that is killed takes only the call under way with it; the next call gets a new child. Children end with
their parent, however it ends.

On the CPU of a Linux machine children are forks of one server process, which has imported torch and diffusers for all
of them and never uses them itself. A device's driver does not survive a fork: with one, each child starts anew.

The pool travels to task threads in a context variable. Where there is none (a task on a Ray worker), the calling
process is itself the persistent worker and the function runs right there.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from typing import Any, TypeVar

import torch

from latentprint.tasks.compute.devices import available_devices
from latentprint.tasks.compute.processes import same_signals_blocked
from latentprint.tasks.compute.progress import Progress
from latentprint.tasks.errors import UserError

T = TypeVar("T")
Done = Callable[[int], None]
"""Told how many more images are done."""
Context = SpawnContext | ForkServerContext
POLL_SECONDS = 1.0
PRELOADED = [
    "latentprint.tasks.score.calibrate",
    "latentprint.tasks.extract.generate",
    "diffusers.models.unets.unet_2d",
    "diffusers.schedulers.scheduling_ddpm",
]
"""Modules that take seconds to import."""


class WorkerDied(UserError):
    """The child process of a device ended in the middle of a call (killed, or out of memory)."""

    resumable = True


def uncounted(_: int) -> None:
    """Progress that nobody follows."""


class WorkersClosed(BaseException):
    """The pool was closed, since the run is being stopped: not an error of the call, and nothing to try again."""


class DeviceWorker:
    """A child process that runs functions on one device, one at a time."""

    def __init__(self, device: str, threads: int, counter: Synchronized[int], context: Context) -> None:
        self.device, self.threads, self.counter, self.context = device, threads, counter, context
        self._closed = False
        self._executor = self._spawn()

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """``function(*arguments, device, done)`` in the child; it calls ``done(n)`` when ``n`` more images are done.

        Raises:
            WorkerDied: the child was killed; a new one stands ready for the next call.
            WorkersClosed: the run is being stopped.
        """
        if self._closed:
            raise WorkersClosed
        processes: list[BaseProcess] = []
        try:
            with _safe_path():
                call = self._executor.submit(_run, function, arguments, self.device)
            processes = list(self._executor._processes.values())
            return call.result()
        except RuntimeError as error:  # a broken pool's, or that of one shut down since we looked; or the function's
            if self._closed:
                raise WorkersClosed from error
            if not isinstance(error, BrokenProcessPool):
                raise
            reason = _last_words(processes)
            self._executor = self._spawn()
            raise WorkerDied(f"the worker process of {self.device} {reason}") from error

    def close(self) -> None:
        """End the child now; a call under way is lost, and with it nothing that was published."""
        self._closed = True
        for process in list(self._executor._processes.values()):
            process.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _spawn(self) -> ProcessPoolExecutor:
        state = (self.threads, self.counter, dict(os.environ))
        return ProcessPoolExecutor(1, self.context, initializer=_begin_child, initargs=state)


class WorkerPool:
    """The workers of all devices; ``run`` waits for a free one."""

    def __init__(self, devices: Sequence[str], threads: int) -> None:
        with _safe_path(), same_signals_blocked():
            resource_tracker.ensure_running()
        context = _context(devices)
        self.counter: Synchronized[int] = context.Value("q", 0)
        self.workers = [DeviceWorker(device, threads, self.counter, context) for device in devices]
        self._free: queue.SimpleQueue[DeviceWorker] = queue.SimpleQueue()
        for worker in self.workers:
            self._free.put(worker)

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """``function(*arguments, device, done)`` on whichever device is free next."""
        worker = self._free.get()
        try:
            return worker.run(function, *arguments)
        finally:
            self._free.put(worker)

    def close(self) -> None:
        """End all children."""
        for worker in self.workers:
            worker.close()


_pool: ContextVar[WorkerPool | None] = ContextVar("device workers", default=None)
_done: Synchronized[int] | None = None
_starting = threading.Lock()


@contextmanager
def device_workers(devices: Sequence[str], threads: int, progress: Progress) -> Iterator[WorkerPool]:
    """Keep a worker a device for the length of the block, and log what they report to be done."""
    pool = WorkerPool(devices, threads)
    token = _pool.set(pool)
    try:
        with followed(progress, lambda: pool.counter.value):
            yield pool
    finally:
        _pool.reset(token)
        pool.close()


@contextmanager
def followed(progress: Progress, counted: Callable[[], int]) -> Iterator[None]:
    """Within, tell every second of what workers have counted, as this Prefect run's progress."""
    finished = threading.Event()
    progress.counted = counted

    def watch() -> None:
        while not finished.wait(POLL_SECONDS):
            progress.look()

    watcher = threading.Thread(target=copy_context().run, args=(watch,), name="progress", daemon=True)
    watcher.start()
    try:
        yield
        progress.end()
    finally:
        finished.set()
        watcher.join()


class Counter:
    """Of a Ray cluster: what its workers have done. An actor of the driver's, which each worker finds by ``NAME``."""

    NAME = "latentprint progress"

    def __init__(self) -> None:
        self._n = 0

    def add(self, n: int) -> None:
        """Count ``n`` more."""
        self._n += n

    def value(self) -> int:
        """All that was counted."""
        return self._n


def _count_on_ray(n: int) -> None:
    import ray

    try:
        ray.get_actor(Counter.NAME).add.remote(n)
    except ValueError:  # nobody follows
        return


def run_on_device(function: Callable[..., T], *arguments: Any) -> T:
    """``function(*arguments, device, done)`` on a free device of the pool, or in this process if there is no pool."""
    pool = _pool.get()
    if pool is not None:
        return pool.run(function, *arguments)
    done = _count_on_ray if "ray" in sys.modules and sys.modules["ray"].is_initialized() else uncounted
    return function(*arguments, available_devices()[0], done)


def _run(function: Callable[..., T], arguments: tuple[Any, ...], device: str) -> T:
    return function(*arguments, device, _count)


def _count(n: int) -> None:
    if _done is not None:
        with _done.get_lock():
            _done.value += n


def _last_words(processes: Sequence[BaseProcess]) -> str:
    """How a child ended, and what usually is behind it."""
    for process in processes:
        process.join(POLL_SECONDS)
    code = next((process.exitcode for process in processes if process.exitcode), None)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    limited = "" if limit == resource.RLIM_INFINITY else f"; its address space is limited to {limit / 1e9:.3g} GB"
    if code is None or code == -signal.SIGKILL:
        return f"was killed (out of memory?{limited})"
    how = f"crashed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"{how} (out of memory, or damage to its libraries{limited})"


def _context(devices: Sequence[str]) -> Context:
    """How children of these devices are started."""
    if sys.platform != "linux" or set(devices) != {"cpu"}:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with _safe_path():
        forkserver.ensure_running()  # here, where Ctrl-C is blocked, and in time
    return context


@contextmanager
def _safe_path() -> Iterator[None]:
    """Within, a Python that is started imports nothing from the current folder, which may be a stranger's.

    Afterwards a child takes its parent's ``sys.path``.
    """
    with _starting:
        before = os.environ.get("PYTHONSAFEPATH")
        os.environ["PYTHONSAFEPATH"] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ["PYTHONSAFEPATH"]
            else:
                os.environ["PYTHONSAFEPATH"] = before


def _begin_child(threads: int, counter: Synchronized[int], environment: dict[str, str]) -> None:
    global _done
    _done = counter
    os.environ.clear()  # what a fork has is as old as its server
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

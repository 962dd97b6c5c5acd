"""Where the runs of a sweep are computed: here, in processes, or on a Dask or Ray cluster.

An executor maps a function over items and gives each result with its item's number, as they end. What
comes back does not depend on the executor: a run takes its seed from its number, never from who computes it.
The processes belong to one user and trust each other: joblib, Dask and Ray hand Python objects about.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, TypeVar

from splitedge.errors import ConfigError, MissingExtra

T = TypeVar("T")
R = TypeVar("R")

NAMES = ("local", "joblib", "dask", "ray")

#: Tasks handed to Ray beyond those that it computes: more would only make its queue slower to look through.
_AHEAD = 4


def split_executor(spec: str) -> tuple[str, str]:
    """`joblib:4` as its name and what stands behind the colon.

    Raises:
        ConfigError: no such executor, or a number of processes that is none.
    """
    name, _, argument = spec.partition(":")
    if name not in NAMES:
        raise ConfigError(
            f"no executor '{spec}'; write 'local', 'joblib:N', 'dask', 'dask:ADDRESS', 'ray' or 'ray:ADDRESS'"
        )
    if name == "local" and argument:
        raise ConfigError(f"executor '{spec}': nothing stands behind 'local'; 'joblib:N' runs N processes")
    if name == "joblib" and argument and not (argument.isdecimal() and int(argument) > 0):
        raise ConfigError(f"executor '{spec}': write the number of processes as in 'joblib:4'")
    return name, argument


def spread(spec: str, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
    """Call `function` on every item; give (number of the item, result) in order of completion.

    Args:
        spec: `local`, `joblib:N` (N processes; all cores without N), `dask` or `ray` (a cluster of all
            cores of this machine, or of N as in `ray:N`), `dask:ADDRESS` or `ray:ADDRESS` (one that runs).
        function: of a module that the workers can import; its errors end the whole.
        items: what can be sent to another process.

    Raises:
        ConfigError: no such executor, or no cluster at that address.
        MissingExtra: it is not installed.
    """
    name, argument = split_executor(spec)
    backend = {"local": _local, "joblib": _joblib, "dask": _dask, "ray": _ray}[name]
    return backend(argument, _Numbered(function), list(enumerate(items)))


class _Numbered:
    """The function on a numbered item, giving the number back. A class, so that it can be sent."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, item: tuple[int, Any]) -> tuple[int, Any]:
        return item[0], self._function(item[1])


def _local(argument: str, call: _Numbered, items: list[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    return map(call, items)


def _joblib(argument: str, call: _Numbered, items: list[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    from joblib import Parallel, delayed

    workers = int(argument) if argument else _cores()
    pool = Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1, max_nbytes=None)
    results: Iterator[tuple[int, Any]] = pool(delayed(call)(item) for item in items)
    return results


def _dask(argument: str, call: _Numbered, items: list[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    dask = _extra("dask.distributed", "executor 'dask'")
    if argument and not argument.isdecimal():
        try:
            client = dask.Client(argument, timeout="10s")
        except (OSError, ValueError) as error:
            raise ConfigError(f"executor 'dask:{argument}': no scheduler answers there ({error})") from error
        cluster = None
    else:
        cluster = dask.LocalCluster(
            n_workers=int(argument or _cores()),
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
        )
        client = dask.Client(cluster)
    try:
        futures = client.map(call, items, pure=False)
        for _, result in dask.as_completed(futures, with_results=True):
            yield result
    finally:
        client.close()
        if cluster is not None:
            cluster.close()


def _ray(argument: str, call: _Numbered, items: list[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    ray = _extra("ray", "executor 'ray'")
    ours = not ray.is_initialized()
    if ours:
        where: dict[str, Any] = {"address": argument}
        if not argument or argument.isdecimal():
            where = {"address": "local", "num_cpus": int(argument or _cores()), "include_dashboard": False}
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"executor 'ray:{argument}': no cluster there ({error})") from error
    try:
        task = ray.remote(_called)
        shared = ray.put(call)
        waiting = iter(items)
        window = _AHEAD + 2 * int(ray.cluster_resources().get("CPU", 1))
        flying = [task.remote(shared, item) for _, item in zip(range(window), waiting, strict=False)]
        while flying:
            done, flying = ray.wait(flying, num_returns=1)
            flying += [task.remote(shared, item) for _, item in zip(done, waiting, strict=False)]
            yield from ray.get(done)
    finally:
        if ours:
            ray.shutdown()


def _extra(module: str, needed_for: str) -> Any:
    """A module of the extra 'scale'; untyped, so that types do not depend on whether it is installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra("scale", needed_for) from error


def _called(call: _Numbered, item: tuple[int, Any]) -> tuple[int, Any]:
    return call(item)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

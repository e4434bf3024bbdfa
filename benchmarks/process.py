"""A function's result, computed in a process that has done nothing else."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

# What processes have imported when they begin: torch, and its compiler, which optimizers import.
# The package would see the fork, after which its kernels take one thread.
IMPORTED = ("torch", "torch._dynamo")

P = ParamSpec("P")
R = TypeVar("R")


def alone(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function in a process of its own.

    Its heap is as fresh as that of a training that begins: whatever has been measured before leaves
    objects and holes in a heap, and a step that looks at thousands of objects takes up to twice as
    long where these lie far apart.

    Args:
        work: a function of a module; its arguments go through pickle, and so does what it gives or
            raises.

    Raises:
        BrokenProcessPool: the process died.
    """
    # A server has imported modules and done nothing else; it forks. A process that has run
    # something on several threads must not: the threads would be missing in the child.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(IMPORTED))
    with ProcessPoolExecutor(1, mp_context=server) as pool:
        return pool.submit(work, *args, **kwargs).result()

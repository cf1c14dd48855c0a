"""Process groups whose processes are forked from one that has imported everything.

A fork takes milliseconds, and starting an interpreter takes seconds. The process that forks must
not compute anything itself, because threads do not survive a fork.
"""

import contextlib
import datetime
import importlib
import os
import pickle
import signal
import sys
import time
import traceback

import torch
import torch.distributed as dist

TIMEOUT = 8.0


def run_in_processes(folder, world, function, *, timeout=TIMEOUT, unresponsive=None, limit=90.0):
    """The results of ``function(rank)`` in all processes of a group; None for one that died.

    ``unresponsive`` is the rank of a process that the caller does not wait for.
    """
    meeting = folder / f"meeting-{time.monotonic_ns()}"
    children = {}
    for rank in range(world):
        target = meeting.with_suffix(f".{rank}")
        pid = os.fork()
        if pid == 0:
            try:
                target.write_bytes(pickle.dumps(_child(rank, world, meeting, function, timeout)))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        children[pid] = target
    answers, deadline = [], time.monotonic() + limit
    for pid, target in children.items():
        waiting = len(answers) != unresponsive
        while waiting and os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.005)
        answers.append(pickle.loads(target.read_bytes()) if target.exists() else None)
    for pid in children:  # processes that were stopped, or hang, are still alive
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return answers


def _child(rank, world, meeting, function, timeout):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=timeout),
    )
    return function(rank)


def import_lazy_modules(folder, function):
    """Import the modules that a first call imports, so that every fork has them."""
    listing = folder / "modules"
    pid = os.fork()
    if pid == 0:
        try:
            function()
            listing.write_text("\n".join(sys.modules))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    for name in listing.read_text().split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def caught(function):
    """The type and the message of the exception that a function raises."""
    try:
        function()
    except Exception as error:
        return type(error).__name__, str(error)
    return "nothing", ""

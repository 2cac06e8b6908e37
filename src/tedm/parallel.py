"""Tasks side by side, each in a process that is forked off this one."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess

from tedm.errors import TedmError
from tedm.progress import say

Task = Callable[[], None]


def side_by_side(tasks: Mapping[str, Task], at_once: int) -> list[str]:
    """Do every task, so many at once, whatever becomes of the others; return names of those that failed.

    A forked process has what this one imported and read, at no cost, and nothing that it draws, sets or
    breaks reaches another task. Tasks leave their results in files. They are done in this process, one
    after the other, where there is one at a time or where forking is not safe (macOS, Windows).
    """
    if sys.platform == "linux":
        at_once = min(at_once, len(tasks), len(os.sched_getaffinity(0)))
        if at_once > 1:
            return _forked(tasks, at_once)
    return [name for name, task in tasks.items() if not _done(name, task)]


def _forked(tasks: Mapping[str, Task], at_once: int) -> list[str]:
    context = multiprocessing.get_context("fork")
    waiting, failed = list(tasks), []
    running: dict[int, tuple[str, ForkProcess]] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            name = waiting.pop(0)
            # A daemon: it ends when this process does, unless that was killed.
            process = context.Process(target=_child, args=(name, tasks[name]), daemon=True)
            process.start()
            running[process.sentinel] = name, process
        for sentinel in wait(list(running)):
            assert isinstance(sentinel, int)
            name, process = running.pop(sentinel)
            process.join()
            code = process.exitcode or 0
            if code < 0:
                say(f"error: {name}: killed by signal {-code}" + (", out of memory?" if code == -9 else ""))
            if code:
                failed.append(name)
    return [name for name in tasks if name in failed]


def _child(name: str, task: Task) -> None:
    sys.exit(0 if _done(name, task) else 1)


def _done(name: str, task: Task) -> bool:
    try:
        task()
    except TedmError as error:
        say(f"error: {name}: {error}")
        return False
    except Exception:
        say(f"error: {name}:\n{traceback.format_exc()}")
        return False
    return True

"""How the process holds memory: freed blocks are kept for the next tensor of the same size."""

import contextlib
import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8  # of glibc's mallopt, see malloc.h
_NEVER = 2**31 - 1
_PAD = 64 * 2**20  # bytes asked of the kernel at a time


def keep_freed() -> None:
    """Keep freed memory in the process, where the C library is glibc; elsewhere nothing happens.

    glibc maps every block above 32 MB anew and unmaps it when it is freed, so the kernel zeroes its pages
    for each activation of each layer: a fifth of the CPU time of a training step at width 16, 64 × 64.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _PAD)):
            mallopt(option, value)


def one_heap() -> None:
    """Let all threads share one heap, where the C library is glibc; before they start.

    Else each of a server's threads has a heap of its own, and with `keep_freed` none gives anything back:
    the web page grew by 45 MB with every 50 visitors.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)

"""Memory that is no longer needed: back to the machine, or kept for the next of its size."""

import ctypes
import gc
import sys

import torch

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def give_back() -> None:
    """Return to the system what Python has freed, of a GPU too.

    glibc keeps freed blocks of a weight's size for itself: without asking, a process held 10.6 GiB
    after the language model was gone, and 4.0 after it (bench/precision.py).
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def hold_on(limit: int | None = 2**30) -> None:
    """Keep what is freed from now on for this process's next blocks, up to `limit` bytes or all.

    glibc gives blocks of a picture's or a weight's size back at once and takes fresh ones for the
    next, whose pages then have to be made again: a third of a step of training on a CPU, and more
    where pages are slow to get (bench/train.py).
    """
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if set_option is not None:
            set_option(_M_MMAP_THRESHOLD, 2**31 - 1 if limit is None else limit)
            set_option(_M_TRIM_THRESHOLD, -1 if limit is None else limit)

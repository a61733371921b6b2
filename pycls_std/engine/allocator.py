"""Keep freed memory for the next step, instead of giving it back to the system and having it zeroed anew."""

import ctypes

# Of mallopt in glibc's malloc.h.
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let the C library neither trim its heap nor map large blocks one by one; elsewhere than on glibc do nothing.

    A step frees and allocates the same gigabytes as the one before, and each page that the system gives is zeroed and
    mapped by a fault. What a process has once used it then holds until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(TRIM_THRESHOLD, -1)  # never
        mallopt(MMAP_MAX, 0)

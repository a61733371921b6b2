"""Keep freed memory for the next step, instead of giving it back to the system and having it zeroed anew."""

import ctypes

# Of mallopt in glibc's malloc.h.
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Keep glibc's malloc from trimming its heap and from using mmap for large blocks; do nothing without glibc.

    A step frees and allocates the same gigabytes as the one before, and each new page costs a page fault and zeroing.
    The process then keeps the memory that it has once used until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(TRIM_THRESHOLD, -1)  # never
        mallopt(MMAP_MAX, 0)

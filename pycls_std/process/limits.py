"""The limit on open files: raise it, and report one that is too low for DataLoader workers before they start."""

import errno
import resource
from contextlib import suppress

ALONE, EACH = 32, 16  # open files of a process without workers; more for each of them (2 loaders, batches in flight)


def open_more_files() -> None:
    """Raise the limit to the hard limit, which usually is a thousand times as high."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # a system may refuse an infinite one
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def refuse_few_files(workers: int) -> None:
    """Raise OSError if the limit may be too low for a process with so many DataLoader workers.

    A worker that cannot open a file fails in a thread of its own, and prints thousands of lines.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = ALONE + EACH * workers
    if workers and limit != resource.RLIM_INFINITY and limit < needed:
        raise OSError(f"DATA.NUM_WORKERS {workers} may need {needed} open files, the limit is {limit} (ulimit -n)")


def hint(error: BaseException) -> str:
    """Return a hint on an error about open files, "" for another one."""
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or "Too many open files" in str(error):
        return f"; the limit is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} (ulimit -n)"
    return ""

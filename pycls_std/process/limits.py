"""Open files: as many as the system lets this process have, and too few for its workers told before they start."""

import errno
import resource
from contextlib import suppress

ALONE, EACH = 32, 16  # open files of a process without workers; more for each of them (2 loaders, batches on their way)


def open_more_files() -> None:
    """Raise the limit to what the system allows, which is a thousand times the usual one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # a system may refuse an infinite one
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def refuse_few_files(workers: int) -> None:
    """Raise OSError if a process with so many loader's workers may have too few open files.

    A worker that can open none fails in a thread of its own, and prints thousands of lines.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = ALONE + EACH * workers
    if workers and limit != resource.RLIM_INFINITY and limit < needed:
        raise OSError(f"DATA.NUM_WORKERS {workers} may need {needed} open files, the limit is {limit} (ulimit -n)")


def hint(error: BaseException) -> str:
    """Return what to do about an error that is about open files, "" for another one."""
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or "Too many open files" in str(error):
        return f"; the limit is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} (ulimit -n)"
    return ""

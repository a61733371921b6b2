"""An error in one line."""

from pycls_std.core.text import printable, shortened

MOST = 1500  # characters; what is longer holds values from files, or a C++ program's state


def one_line(error: BaseException) -> str:
    """Return the first and the last line of an error's text, or the name of its type if it has none.

    A DataLoader worker sends its whole traceback: the first line says where, the last one what. Control characters are
    escaped, as names from files may be in it.
    """
    if isinstance(error, MemoryError):
        return f"memory ran out: {error}" if str(error) else "memory ran out"
    lines = [line.strip() for line in str(error).strip().split("\n")]
    first, last = lines[0] or type(error).__name__, lines[-1]
    return printable(shortened(first if len(lines) == 1 else f"{first} {last}", MOST))

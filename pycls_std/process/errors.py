"""An error in one line."""


def one_line(error: BaseException) -> str:
    """Return the first line of an error's text and the last, or the name of its kind if it has none.

    A loader's worker sends its whole traceback: the first line says where, the last one what.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"

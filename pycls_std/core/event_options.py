"""The options of a run as text in its event files, in pieces that TensorBoard shows as they are."""

TAG = "options/"  # of a piece, followed by its number
START, END = "```yaml\n", "```\n"  # of a block of code
PIECE = 1500  # characters of a piece at most, if no line is longer; so tables read it at once (results/records.py)


def pieces(options: str) -> dict[str, str]:
    """Return the pieces by their tags."""
    parts = [""]
    for line in options.splitlines(keepends=True):
        if len(parts[-1]) + len(line) > PIECE:
            parts.append("")
        parts[-1] += line
    return {f"{TAG}{number}": f"{START}{part}{END}" for number, part in enumerate(parts)}


def joined(found: dict[str, str]) -> str:
    """Return the options of pieces by their tags."""
    tags = sorted(found, key=lambda tag: (len(tag), tag))
    return "".join(found[tag].removeprefix(START).removesuffix(END) for tag in tags)

"""The options of a run as text in its event files, in pieces that TensorBoard shows as they are."""

import struct
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event

from pycls_std.core.regular import read_bytes

TAG = "options/"  # of a piece, followed by its number
START, END = "```yaml\n", "```\n"  # of a block of code
PIECE = 1500  # maximum characters of a piece, unless a line is longer; short enough for results/records.py


def pieces(options: str) -> dict[str, str]:
    """Return the options in pieces, by their tags."""
    parts = [""]
    for line in options.splitlines(keepends=True):
        if len(parts[-1]) + len(line) > PIECE:
            parts.append("")
        parts[-1] += line
    return {f"{TAG}{number}": f"{START}{part}{END}" for number, part in enumerate(parts)}


def joined(found: dict[str, str]) -> str:
    """Return the options that were split into pieces, given by their tags."""
    tags = sorted(found, key=lambda tag: (len(tag), tag))
    return "".join(found[tag].removeprefix(START).removesuffix(END) for tag in tags)


def options_in(path: Path) -> str:
    """Return the options in an event file that a run wrote; "" if there are none, or it is not an event file."""
    found: dict[str, str] = {}
    position = 0
    try:
        content = read_bytes(path)
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)  # then its checksum, the data, their checksum
            event = Event.FromString(content[position + 12 : position + 12 + length])
            position += length + 16
            pieces = [value for value in event.summary.value if value.tag.startswith(TAG)]
            if found and not pieces:
                break
            found |= {value.tag: value.tensor.string_val[0].decode() for value in pieces}
    except (OSError, ValueError, IndexError, struct.error, DecodeError):
        return ""
    return joined(found)

"""Split an event file into its records, verifying all checksums at once.

The framing is TFRecord's: length of the data (uint64), checksum of those 8 bytes, data, checksum of the data; all
little-endian. The checksum is a CRC-32C, rotated and shifted by a constant.
Source: tensorflow/core/lib/io/record_writer.h and tensorflow/core/lib/hash/crc32c.h (TensorFlow).
"""

import struct
from functools import cache

import numpy as np

POLYNOMIAL = 0x82F63B78  # of CRC-32C, the lowest bit first
LONGEST = 2048  # maximum bytes of a record; an epoch has about 25 per value


def records(content: bytes) -> list[bytes]:
    """Return the data of all records.

    Raises ValueError if the file is truncated or damaged, and for data of less than 4 or more than LONGEST bytes.
    """
    found: list[bytes] = []
    sizes: list[int] = []
    expected: list[int] = []
    position = 0
    while position < len(content):
        if position + 16 > len(content):
            raise ValueError(f"the record at byte {position} is cut")
        length, header_sum = struct.unpack_from("<QI", content, position)
        end = position + 12 + length
        if not 4 <= length <= LONGEST or end + 4 > len(content):
            raise ValueError(f"the record at byte {position} is cut, or has {length} bytes")
        found.append(content[position + 12 : end])
        sizes += 8, 4, length, 4
        expected += header_sum, *struct.unpack_from("<I", content, end)
        position = end + 4
    if found and not np.array_equal(checksums(content, np.array(sizes))[::2], np.array(expected)):
        raise ValueError("a checksum is wrong")
    return found


def checksums(content: bytes, sizes: np.ndarray) -> np.ndarray:
    """Return the checksum of each part of `content`.

    sizes: bytes of each consecutive part; at least 4 and at most LONGEST.
    """
    ends = np.cumsum(sizes)
    starts = ends - sizes
    data = np.frombuffer(content, np.uint8).copy()
    data[(starts[:, None] + np.arange(4)).ravel()] ^= 0xFF  # equivalent to a register initialized to ones
    following = np.repeat(ends, sizes) - 1 - np.arange(len(data))  # bytes after each byte in its part
    sums = np.bitwise_xor.reduceat(_effects().ravel().take(following * 256 + data), starts) ^ np.uint32(0xFFFFFFFF)
    return ((sums >> 15) | (sums << 17)) + np.uint32(0xA282EAD8)


@cache
def _effects() -> np.ndarray:
    """Return each byte's contribution to the CRC, which is linear, by the number of bytes that follow it."""
    one: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        one = (one >> 1) ^ np.where(one & 1, np.uint32(POLYNOMIAL), np.uint32(0))
    rows = [one]
    while len(rows) < LONGEST:
        rows.append((rows[-1] >> 8) ^ one[rows[-1] & 0xFF])
    return np.stack(rows)

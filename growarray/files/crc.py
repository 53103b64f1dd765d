"""CRC-32 of large records at twice the speed of zlib, computed with exclusive ors of arrays."""

from __future__ import annotations

import zlib
from itertools import pairwise

import numpy as np

# x**103906 + x**67231 + 1 is a multiple of the polynomial of CRC-32, so its 16th power is one too: that takes the
# exponents to whole bytes, and doubles the length of the blocks.
_RING, _NEAR = 2 * 103906, 2 * 67231
_LAG = _RING - _NEAR
_CUTS = (0, _LAG, 2 * _LAG, _RING)  # blocks that overlap neither what they read nor the seam of the ring
_LEAST = 5 * _RING  # bytes; zlib takes the last _RING bytes, so that shorter records gain little


def crc32(data: memoryview | bytes | bytearray) -> int:
    """CRC-32 of bytes, the number that ``zlib.crc32`` gives.

    The bytes are a polynomial over GF(2), and the CRC is its remainder. It may first be divided by a multiple of the
    CRC's polynomial; a multiple of three terms needs two exclusive ors a byte, which NumPy does on many bytes at once.
    What is left of any length are 208 kB for zlib. Source: Russell 2024, "Chorba: a novel CRC32 implementation".

    >>> crc32(b"123456789") == 0xCBF43926
    True
    """
    if len(data) < _LEAST:
        return zlib.crc32(data)
    head = len(data) % _RING
    head = head if head < 4 else 0  # so that the state below falls into one turn
    state = zlib.crc32(data[:head]) ^ 0xFFFFFFFF
    left = np.frombuffer(data, np.uint8)[head:]
    ring = np.zeros(_RING, np.uint8)
    first = -len(left) % _RING  # zeros before the bytes change nothing, and make all turns whole
    ring[first:] = left[: _RING - first]
    ring[first : first + 4] ^= np.frombuffer(state.to_bytes(4, "little"), np.uint8)
    blocks = [(ring[a:b], ring[(a - _LAG) % _RING : (a - _LAG) % _RING + b - a], a, b) for a, b in pairwise(_CUTS)]
    for block, behind, _, _ in blocks[1:]:  # the first turn has none before it
        np.bitwise_xor(block, behind, out=block)
    last = len(left) - _RING
    for place in range(_RING - first, len(left), _RING):
        for block, behind, a, b in blocks:
            np.bitwise_xor(block, left[place + a : place + b], out=block)
            if a < _LAG or place < last:  # in the last turn only what lies before it is folded into it
                np.bitwise_xor(block, behind, out=block)
    return zlib.crc32(ring.data, 0xFFFFFFFF)

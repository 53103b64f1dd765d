"""The fast CRC-32 is the one of zlib, at every length around the seams of its ring."""

import zlib

import numpy as np
import pytest

from growarray.files import crc
from growarray.files.crc import crc32

DATA = np.random.default_rng(0).bytes(12 * crc._RING)
EDGES = sorted({turns * crc._RING + near for turns in (5, 6, 11) for near in (-5, -4, -1, 0, 1, 2, 3, 4, 5, 1000)})


@pytest.mark.parametrize("length", [0, 1, 3, 4, 1000, crc._LEAST - 1, *EDGES, len(DATA)])
def test_any_length(length):
    for start in (0, 1):  # aligned, and not
        part = memoryview(DATA)[start : start + length]
        assert crc32(part) == zlib.crc32(part)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_kinds_of_bytes(kind):
    assert crc32(kind(DATA)) == zlib.crc32(DATA)


@pytest.mark.parametrize("value", [0, 255])
def test_all_bytes_the_same(value):
    data = bytes([value]) * len(DATA)
    assert crc32(data) == zlib.crc32(data)


def test_every_flipped_bit_is_seen():
    whole = crc32(DATA)
    for place in np.random.default_rng(1).integers(0, len(DATA), 40):
        flipped = bytearray(DATA)
        flipped[place] ^= 1 << int(place) % 8
        assert crc32(flipped) != whole


def test_the_three_terms_are_a_multiple_of_the_polynomial():
    value, powers = 1, []
    for exponent in range(103907):
        if exponent in (0, 67231, 103906):
            powers.append(value)
        value = value << 1 ^ (0x104C11DB7 if value >> 31 else 0)
    assert powers[0] ^ powers[1] ^ powers[2] == 0

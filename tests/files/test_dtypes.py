"""Types that NumPy lacks are widened exactly."""

import importlib.util
import io

import numpy as np
import pytest

from growarray.checkpoint import load_checkpoint
from growarray.files.dtypes import BY_NAME, float_table
from growarray.files.source import Region, Source
from growarray.files.tensor import PackedTensor
from tests.checkpoint.files import entry, safetensors

KNOWN = {  # codes and values by the OCP specifications
    "float8_e4m3fn": {0x00: 0, 0x01: 2**-9, 0x08: 2**-6, 0x38: 1, 0x7E: 448, 0x7F: np.nan, 0xFF: np.nan, 0xC0: -2},
    "float8_e5m2": {0x01: 2**-16, 0x3C: 1, 0x7B: 57344, 0x7C: np.inf, 0xFC: -np.inf, 0x7D: np.nan},
    "float8_e4m3fnuz": {0x01: 2**-10, 0x40: 1, 0x7F: 240, 0x80: np.nan, 0xFF: -240},
    "float8_e5m2fnuz": {0x01: 2**-17, 0x40: 1, 0x7F: 57344, 0x80: np.nan},
    "float8_e8m0fnu": {0: 2.0**-127, 127: 1, 254: 2.0**127, 255: np.nan},
    "float4_e2m1fn": {0: 0, 1: 0.5, 2: 1, 7: 6, 8: 0, 9: -0.5, 15: -6},
}


@pytest.mark.parametrize("name", KNOWN)
def test_tables_of_small_floats(name):
    table = float_table(name)
    assert len(table) == (16 if name.startswith("float4") else 256)
    codes = list(KNOWN[name])
    np.testing.assert_array_equal(table[codes], np.float32(list(KNOWN[name].values())))
    finite = np.unique(table[np.isfinite(table)])
    assert finite.size >= len(table) - 9  # hardly two codes with one value


def test_bfloat16_is_the_upper_half_of_float32():
    codes = np.arange(65536, dtype="<u2")
    wide = BY_NAME["bfloat16"].widen(codes)
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide.view(np.uint32) >> 16, codes)
    assert not (wide.view(np.uint32) & 0xFFFF).any()


def test_small_integers_have_their_sign():
    assert BY_NAME["int4"].widen(np.arange(16, dtype=np.uint8)).tolist() == [*range(8), *range(-8, 0)]
    assert BY_NAME["int2"].widen(np.arange(4, dtype=np.uint8)).tolist() == [0, 1, -2, -1]


BF16 = safetensors({"w": entry("BF16", [2], 0, 4)}, b"\x80\x3f\x00\xc0")


def test_ml_dtypes_on_request():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = load_checkpoint(io.BytesIO(BF16), ml_dtypes=True)["w"]
    assert array.dtype == ml_dtypes.bfloat16
    assert array.astype(np.float32).tolist() == [1, -2]
    for name, row in BY_NAME.items():
        if not row.native and name != "complex32" and hasattr(ml_dtypes, name):
            codes = np.arange(2**row.bits if row.bits < 16 else 2**16, dtype=row.raw)
            with np.errstate(invalid="ignore"):  # signalling NaN
                theirs = codes.view(getattr(ml_dtypes, name)).astype(np.float64)
                ours = row.widen(codes).astype(np.float64)
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_ml_dtypes_of_a_single_value():
    """NumPy's ascontiguousarray gives an array without axes one."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = BY_NAME["bfloat16"].widen(np.array(0x3F80, np.uint16), ml_dtypes=True)
    assert (array.shape, array.dtype, float(array)) == ((), ml_dtypes.bfloat16, 1.0)


def test_a_single_4_bit_integer_is_an_array():
    region = Region(Source.of_bytes(b"\x0f", "file"), "tensor", 0, 1)
    found = PackedTensor(region, BY_NAME["int4"], ()).read()
    assert isinstance(found, np.ndarray)
    assert (found.shape, found.item()) == ((), -1)


@pytest.mark.skipif(importlib.util.find_spec("ml_dtypes") is not None, reason="ml_dtypes is installed")
def test_ml_dtypes_that_are_missing():
    with pytest.raises(ImportError, match="pip install ml_dtypes"):
        load_checkpoint(io.BytesIO(BF16), ml_dtypes=True)["w"]

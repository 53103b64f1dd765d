"""Layers as options and files state them: equations of any order, ranks, geometry, and what is refused."""

import json
import math

import numpy as np
import pytest

from growarray.cli.bench.equation import read_options
from growarray.cli.bench.layer import FORMATS, LAYER, layer_from, ranks_for
from tests.contraction.reference import direct

SMALL = {"in": 4, "out": 3, "kernel": 3, "size": 7, "batch": 2}


def test_equations_of_the_formats():
    def equation(kind, **options):
        return layer_from({**SMALL, "format": kind, "kernel": "3x3", "rank": 2, **options}).equation

    assert equation("cp") == "n c y x, r, o r, c r, y r, x r -> n o y x | y, x"
    assert equation("tucker") == "n c y x, r_o r_c r_y r_x, o r_o, c r_c, y r_y, x r_x -> n o y x | y, x"
    assert equation("tt") == "n c y x, c b1, b1 y b2, b2 x b3, b3 o -> n o y x | y, x"
    assert equation("tr") == "n c y x, b0 o b1, b1 c b2, b2 y b3, b3 x b0 -> n o y x | y, x"
    assert equation("dense", kernel="3x3x3") == "n c z y x, o c z y x -> n o z y x | z, y, x"


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_layer_of_any_order_is_the_convolution_with_its_dense_kernel(kind, order):
    size = {"in": 2, "out": 3, "kernel": [2] * order, "size": [3] * order, "batch": 1, "rank": 2, "padding": 0}
    layer = layer_from({"format": kind, "dtype": "float64", **size})
    assert layer.order == order
    arrays = layer.arrays(0)
    assert [a.shape for a in arrays] == list(layer.shapes)
    kernel = layer.dense_kernel(arrays)
    assert kernel.shape == (3, 2, *[2] * order)
    equation, options = (
        layer_from({"format": "dense", **size}).equation,
        {"padding": [(0, 0)] * order, "padding_mode": ["zeros"] * order},
    )
    wanted = direct(equation, [arrays[0], kernel], {**options, "stride": [1] * order, "dilation": [1] * order})
    assert np.allclose(layer.plan()(*arrays), wanted)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_output_has_entries_of_about_one(kind):
    layer = layer_from({"format": kind, "in": 32, "out": 32, "size": 16, "rank": 0.3})
    assert 0.3 < float(np.std(layer.plan()(*layer.arrays(0)))) < 3.0


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["cp", "tucker", "tt", "tr"])
def test_a_fraction_is_one_of_the_dense_parameters(kind, fraction):
    layer = layer_from({"format": kind, "in": 128, "out": 96, "size": 8, "rank": fraction})
    assert layer.parameters / layer.dense_parameters == pytest.approx(fraction, rel=0.2)


def test_known_ranks():
    assert ranks_for("cp", 64, 64, (3, 3), 0.5) == (138,)
    assert ranks_for("cp", 4, 4, (3, 3), 1e-6) == (1,)
    assert ranks_for("tucker", 64, 64, (3, 3), 0.1) == (24, 24, 1, 1)
    assert ranks_for("tucker", 64, 32, (3, 5), 16) == (16, 16, 3, 5)
    assert ranks_for("tt", 64, 32, (3, 5), 1000) == (32, 96, 64)
    assert ranks_for("tt", 64, 32, (3, 5), (4, 5, 6)) == (4, 5, 6)
    assert ranks_for("tr", 64, 32, (3, 5), 0.1) == (5, 5, 5, 5)
    assert ranks_for("tr", 64, 32, (3, 5), 1000) == (8, 8, 120, 40)
    assert ranks_for("dense", 64, 32, (3, 5), 7) == ()


def test_one_number_stands_for_every_axis_and_text_for_numbers():
    layer = layer_from({**SMALL, "kernel": "3x1", "size": "9,8", "stride": "2", "rank": "5"})
    assert (layer.kernel, layer.size, layer.stride) == ((3, 1), (9, 8), (2, 2))
    assert layer.padding == ((1, 1), (0, 0))
    assert layer.rank == (5,)
    assert layer_from({**SMALL, "kernel": 4, "padding": "same"}).padding == ((1, 2),)
    assert layer_from({**SMALL, "padding": "valid"}).padding == ((0, 0),)
    assert layer_from({**SMALL, "padding": [[0, 2]]}).padding == ((0, 2),)
    assert layer_from(layer.to_dict()) == layer


def test_a_layer_pads_with_what_is_asked_for():
    layer = layer_from({**SMALL, "padding_mode": "circular"})
    assert layer.plan()(*layer.arrays(0)).shape == (2, 3, 7)
    assert layer_from(layer.to_dict()) == layer
    x, *factors = layer.arrays(0)
    rolled = layer.plan()(np.roll(x, 3, axis=2), *factors)
    np.testing.assert_allclose(rolled, np.roll(layer.plan()(x, *factors), 3, axis=2), rtol=0, atol=1e-5)
    assert "padding mode circular" in str(layer)


def test_files(tmp_path):
    values = {"format": "tt", "in": 4, "out": 3, "kernel": [3, 3], "size": 6, "rank": 0.5}
    (tmp_path / "layer.json").write_text(json.dumps(values))
    (tmp_path / "layer.toml").write_text('format = "tt"\nin = 4\nout = 3\nkernel = [3, 3]\nsize = 6\nrank = 0.5\n')
    assert [read_options(tmp_path / f"layer.{kind}", tuple(LAYER)) for kind in ("json", "toml")] == [values] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as a layer"),
        ("[1]", "expected an object with keys such as format, in and out, or equation and shapes, found list"),
        ('{"ranks": 3}', r"unknown key\(s\) ranks; known are format, in, out"),
        (b"\xff\xfe", "cannot be read as a layer"),
        (None, r"cannot be read as a layer or an equation \(No such file or directory\)"),
    ],
    ids=["not JSON", "a list", "unknown key", "not text", "missing"],
)
def test_files_that_are_refused(tmp_path, text, message):
    path = tmp_path / "layer.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_options(path, tuple(LAYER))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "cpd"}, "--format: expected one of cp, dense, tr, tt, tucker, found 'cpd'"),
        ({"dtype": "int32"}, "--dtype: expected float32 or float64, found 'int32'"),
        (
            {"padding_mode": "mirror"},
            "--padding-mode: expected one of zeros, .* found 'mirror'",
        ),
        ({"rank": "0"}, "--rank: expected whole numbers of at least 1"),
        ({"rank": "0.0"}, "--rank: expected a fraction above 0"),
        ({"rank": math.nan}, "--rank: expected a fraction above 0"),
        ({"rank": "half"}, "--rank: expected whole numbers .* found 'half'"),
        ({"rank": "2x3"}, r"--rank: cp of this layer has 1 rank\(s\), found 2: 2x3"),
        ({"format": "tucker", "rank": "2x3"}, r"--rank: tucker of this layer has 3 rank\(s\)"),
        ({"kernel": "3x0"}, "--kernel: expected whole numbers of at least 1, found '3x0'"),
        ({"kernel": ""}, "--kernel: expected a number"),
        ({"kernel": "3x3", "size": "5x5x5"}, "--kernel: expected 1 or 3 numbers, found 2: 3x3"),
        ({"in": "4x4"}, "--in: expected one number, found 2: 4x4"),
        ({"stride": -1}, "--stride: expected whole numbers of at least 1, found -1"),
        ({"padding": "reflect"}, "--padding: expected a number"),
        ({"padding": "same", "stride": 2}, "--padding: 'same' needs stride 1, found 2; take 'half' or a number"),
        ({"kernel": 9, "padding": 0}, "this layer cannot be built: convolution mode 'x': a kernel of 9"),
        ({"batch": 1 << 28}, "an array of this layer has more than 268435456 elements"),
    ],
)
def test_layers_that_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        layer_from({**SMALL, **given})

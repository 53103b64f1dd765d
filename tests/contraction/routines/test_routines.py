"""NumPy's routines, in pieces of any size, against the portable one and the definition."""

from __future__ import annotations

import itertools
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from growarray.contraction import plan
from growarray.contraction.equation import parse
from growarray.contraction.problem import Axis, Problem, Product
from growarray.contraction.program import Program
from growarray.contraction.routines import band, im2col, kn2row, product, scatter
from growarray.contraction.routines.banding import layout_of
from growarray.contraction.routines.portable import Portable
from growarray.contraction.step import Step
from growarray.testing import assert_close

DENSE_1 = "b s x, b n s x -> b n x | x"
DENSE_2 = "b s y x, b n s y x -> b n y x | y, x"
IMAGES = "s i y x, n s y x -> i n y x | y, x"
DENSE_3 = "s i z y x, n s z y x -> i n z y x | z, y, x"
CASES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "multiply": ("b y x, b n -> b n y x", (3, 4, 5), (3, 2), {}),
    "multiply, batch alone": ("b y, b -> b y", (3, 4), (3,), {}),
    "matmul": ("b s y x, b n s -> b n y x", (2, 5, 4, 6), (2, 13, 5), {}),
    "matmul, the other way round": ("b n s, b s y x -> b n y x", (2, 13, 5), (2, 5, 4, 6), {}),
    "matmul to one": ("b s y, b s -> b y", (2, 5, 4), (2, 5), {}),
    "dot": ("b s, b s -> b", (2, 5), (2, 5), {}),
    "band": ("b x, b x -> b x | x", (5, 9), (5, 3), {"padding": 1}),
    "band, two axes strided": ("b y x, b y x -> b y x | y, x", (4, 7, 8), (4, 3, 2), {"stride": (2, 3), "padding": 1}),
    "band dilated": ("b x, b x -> b x | x", (3, 12), (3, 3), {"stride": 2, "dilation": 3, "padding": ((2, 3),)}),
    "band of images": ("b i x, b x -> b i x | x", (3, 4, 9), (3, 3), {"padding": 1}),
    "band, no b": ("i y x, y x -> i y x | y, x", (4, 6, 5), (3, 3), {"padding": 2}),
    "band of many": ("b y x, b y x -> b y x | y, x", (16, 9, 17), (16, 3, 5), {"padding": (1, 2)}),
    "band between": ("b y i, b y -> b y i | y", (4, 30, 3), (4, 5), {"padding": 2, "stride": 2}),
    "band along many": ("b i x, b x -> b i x | x", (2, 5, 50), (2, 3), {"padding": 1}),
    "band of planes": ("b i y x, b y x -> b i y x | y, x", (3, 40, 7, 6), (3, 3, 2), {"padding": 1}),
    "band of planes, one axis": ("b i y x, b y -> b i y x | y", (3, 40, 7, 7), (3, 3), {"padding": 1}),
    "band of strided planes": (
        "b i z y x, b z y x -> b i z y x | z, y, x",
        (2, 40, 5, 9, 8),
        (2, 3, 3, 3),
        {"padding": 1, "stride": 2},
    ),
    "band of rows": ("b i z x, b z x -> b i z x | z, x", (3, 4, 5, 30), (3, 2, 3), {"padding": (0, 1)}),
    "band, a tap in the padding": (
        "b z y x, b z y x -> b z y x | z, y, x",
        (2, 1, 4, 4),
        (2, 2, 1, 3),
        {"stride": (2, 1, 1), "padding": (1, 0, 1)},
    ),
    "rows": (DENSE_2, (1, 20, 9, 8), (1, 8, 20, 3, 3), {"padding": 1}),
    "rows batched": (DENSE_1, (3, 24, 9), (3, 8, 24, 3), {"padding": ((0, 2),)}),
    "rows dilated": (DENSE_2, (1, 20, 12, 9), (1, 8, 20, 3, 3), {"padding": 2, "dilation": (2, 1), "stride": (1, 2)}),
    "rows of images": (IMAGES, (20, 3, 9, 8), (8, 20, 2, 3), {"padding": 1}),
    "kn2row": (DENSE_2, (1, 20, 16, 18), (1, 3, 20, 3, 3), {"padding": 1}),
    "kn2row batched": (DENSE_1, (3, 24, 40), (3, 4, 24, 3), {"padding": ((0, 2),)}),
    "kn2row strided": (
        DENSE_2,
        (1, 20, 16, 15),
        (1, 2, 20, 3, 2),
        {"padding": 1, "stride": (2, 3), "dilation": (2, 1)},
    ),
    "kn2row of images": (IMAGES, (20, 4, 9, 8), (3, 20, 2, 3), {"padding": (1, 2)}),
    "kn2row, outputs of padding alone": (DENSE_1, (1, 10, 40), (1, 1, 10, 3), {"padding": 6}),
    "im2col": (DENSE_2, (2, 3, 9, 8), (2, 4, 3, 3, 3), {"stride": 2, "padding": 1}),
    "im2col, three axes": (
        "s z y x, n s z y x -> n z y x | z, y, x",
        (2, 4, 5, 3),
        (3, 2, 2, 3, 2),
        {"stride": (1, 2, 1), "padding": 1},
    ),
    "im2col, heavy": (DENSE_2, (1, 6, 5, 7), (1, 7, 6, 3, 2), {"padding": 1, "stride": (2, 1)}),
    "im2col of images": (IMAGES, (3, 4, 9, 8), (5, 3, 2, 3), {"stride": 2}),
    "pointwise strided": (DENSE_2, (1, 6, 9, 8), (1, 4, 6, 1, 1), {"stride": (2, 3)}),
    "pointwise padded": (DENSE_2, (1, 6, 4, 3), (1, 4, 6, 1, 1), {"padding": 1}),
    "much in the padding": (DENSE_1, (1, 2, 2), (1, 3, 2, 2), {"stride": 4, "padding": 6}),
    "kernel over everything": (DENSE_1, (2, 3, 5), (2, 2, 3, 5), {}),
    "3 by 3, wide": (DENSE_2, (1, 33, 9, 8), (1, 34, 33, 3, 3), {"padding": 1}),
    "3 by 3, wide images": (IMAGES, (34, 3, 7, 9), (32, 34, 3, 3), {"padding": ((0, 1), (1, 0))}),
    "3 by 3, wide, padded more": (IMAGES, (32, 2, 5, 6), (32, 32, 3, 3), {"padding": 2}),
    "3 by 3, three axes": (DENSE_3, (32, 2, 5, 6, 7), (33, 32, 3, 3, 3), {"padding": 1}),
    "3 by 3, deep": (DENSE_3, (32, 1, 9, 4, 5), (32, 32, 2, 3, 3), {"padding": (2, 1, 0)}),
    "reflect": (DENSE_1, (2, 3, 6), (2, 4, 3, 3), {"padding": ((2, 3),), "padding_mode": "reflect"}),
    "replicate": (DENSE_1, (2, 3, 6), (2, 4, 3, 3), {"padding": ((2, 3),), "padding_mode": "replicate"}),
    "circular": (DENSE_1, (2, 3, 6), (2, 4, 3, 3), {"padding": ((6, 3),), "padding_mode": "circular"}),
}
each_case = pytest.mark.parametrize("name", CASES)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
RTOL = {"float32": 1e-5, "float64": 1e-12}


def shrunk(value: Any) -> Any:
    """A limit of hundreds or more as one of a few: pieces of the work become tiny."""
    if isinstance(value, tuple):
        return tuple(shrunk(v) for v in value)
    return int(value**0.4) if isinstance(value, int) and value >= 32 else value


@pytest.fixture
def tiny_pieces(monkeypatch):
    """Every limit on the size of a piece made so small that most cases are cut, many with a shorter last piece."""
    for module in (band, im2col, kn2row, product, scatter):
        for name, value in vars(module).copy().items():
            if name[0] == "_" and name[1:].isupper():
                monkeypatch.setattr(module, name, shrunk(value))


@pytest.fixture(params=["whole", "pieces"])
def pieces(request: pytest.FixtureRequest) -> bool:
    """Whether the work is cut into many small pieces."""
    if request.param == "pieces":
        request.getfixturevalue("tiny_pieces")
    return request.param == "pieces"


def step_for(
    equation: str, feature: tuple[int, ...], kernel: tuple[int, ...], options: dict[str, Any], dtype: str = "float64"
) -> Step:
    problem = Problem(parse(equation), (feature, kernel), itemsize=int(dtype[5:]) // 8, **options)
    return Program.of(problem, [(1, 2)]).steps[0]


def operands(step: Step, dtype: Any) -> list[np.ndarray]:
    """Feature, kernel and gradient of the output, as the products take them."""
    rng = np.random.default_rng(0)
    shapes = [step.feature_shape, step.k_shape, step.out_shape]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def run(tasks: list[Any], out: np.ndarray) -> np.ndarray:
    for task in tasks:
        task()
    return out


def nothing(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An output in which every element that is not written shows."""
    return np.full(shape, np.nan, dtype)


def forward(step: Step, feature: np.ndarray, kernel: np.ndarray, y: np.ndarray) -> list[Any]:
    """Pieces of the product; a small one is done."""
    return list(step.forward.forward(kernel, feature, y))


def d_feature_of(step: Step, kernel: np.ndarray, d_out: np.ndarray, out: np.ndarray) -> list[Any]:
    return list(step.by_feature.d_feature(kernel, d_out, out))


def d_kernel_of(step: Step, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> list[Any]:
    return list(step.by_kernel.d_kernel(d_out, feature, out))


def on_numpy(step: Step, feature: np.ndarray, kernel: np.ndarray, d_out: np.ndarray) -> list[np.ndarray]:
    """Result and gradients by feature map and kernel."""
    y, d_feature, d_kernel = (nothing(x.shape, x.dtype) for x in (d_out, feature, kernel))
    run(forward(step, feature, kernel, y), y)
    run(d_feature_of(step, kernel, d_out, d_feature), d_feature)
    run(d_kernel_of(step, d_out, feature, d_kernel), d_kernel)
    return [y, d_feature, d_kernel]


def portably(step: Step, feature: np.ndarray, kernel: np.ndarray, d_out: np.ndarray) -> list[np.ndarray]:
    routine = Portable(step.pair.product)
    return [
        routine.forward(xp, kernel, feature),
        routine.d_feature(xp, kernel, d_out),
        routine.d_kernel(xp, d_out, feature),
    ]


def defined(feature: np.ndarray, kernel: np.ndarray, axes: tuple[Axis, ...]) -> np.ndarray:
    """The convolution by its definition: one output position and one tap at a time."""
    out = np.zeros((*kernel.shape[:2], *(a.out for a in axes)))
    for q in itertools.product(*(range(a.out) for a in axes)):
        for t in itertools.product(*(range(a.taps) for a in axes)):
            place = [q_ * a.stride + t_ * a.dilation - a.before for q_, t_, a in zip(q, t, axes, strict=True)]
            if all(0 <= p < a.size for p, a in zip(place, axes, strict=True)):
                out[(..., *q)] += np.einsum("bns,bs->bn", kernel[(..., *t)], feature[(..., *place)])
    return out


@each_dtype
@each_case
def test_numpy_is_the_portable_product_forward_and_backward(name, dtype, pieces):
    step = step_for(*CASES[name], dtype=dtype)
    arrays = operands(step, dtype)
    for what, found, wanted in zip("ykf", on_numpy(step, *arrays), portably(step, *arrays), strict=True):
        assert found.dtype == dtype
        assert_close(found, wanted, rtol=RTOL[dtype], what=what)


@each_case
def test_the_portable_product_is_the_definition(name):
    step = step_for(*CASES[name])
    feature, kernel, d_out = operands(step, "float64")
    y, d_feature, d_kernel = portably(step, feature, kernel, d_out)
    assert_close(y, defined(feature, kernel, step.pair.product.axes), rtol=1e-12)
    value = float(np.sum(y * d_out))  # linear in both operands: <df, f> = <dk, k> = <dy, y>
    for gradient, operand in ((d_feature, feature), (d_kernel, kernel)):
        assert gradient.shape == operand.shape
        assert abs(float(np.sum(gradient * operand)) - value) <= 1e-10 * (1 + abs(value))


@each_case
def test_strided_views_are_taken_and_filled(name, pieces):
    step = step_for(*CASES[name])
    arrays = operands(step, "float64")
    wanted = on_numpy(step, *arrays)
    feature, kernel, d_out = (np.ascontiguousarray(a.T).T for a in arrays)
    found = on_numpy(step, feature, kernel, d_out)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, rtol=1e-13)
    wide = nothing((*d_out.shape[:-1], 2 * d_out.shape[-1]), "float64")
    run(forward(step, feature, kernel, wide[..., ::2]), wide)
    assert_close(wide[..., ::2], wanted[0], rtol=1e-13)
    assert np.isnan(wide[..., 1::2]).all()  # what lies between is not touched


@pytest.mark.parametrize(("columns", "calls"), [(3, {"copied"}), (40, {"by image"})])
def test_images_before_channels_are_multiplied_where_they_lie_unless_they_are_narrow(columns, calls, monkeypatch):
    step = step_for("n s, s i x -> n i x", (7, 6), (6, 5, columns), {})
    arrays = operands(step, "float64")
    wanted = on_numpy(step, *arrays)
    feature, kernel, d_out = arrays
    feature, d_out, y, dx = (
        np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in (feature, d_out, d_out, feature)
    )
    made = set()
    for name, kind in {"_image_tasks": "by image", "_image_products": "by image", "_through": "copied"}.items():
        original = getattr(product, name)
        monkeypatch.setattr(product, name, lambda *a, f=original, k=kind: made.add(k) or f(*a))
    run(forward(step, feature, kernel, y), y)
    run(d_feature_of(step, kernel, d_out, dx), dx)
    dk = nothing(kernel.shape, kernel.dtype)
    run(d_kernel_of(step, d_out, feature, dk), dk)
    assert made == calls
    for one, other in zip((y, dx, dk), wanted, strict=True):
        assert_close(one, other, rtol=1e-13)


@pytest.mark.parametrize(("channels", "products"), [(2, 3), (14, 1)])
def test_windows_of_images_before_channels_make_a_product_each_unless_they_are_deep(
    channels, products, pieces, monkeypatch
):
    step = step_for(IMAGES, (channels, 3, 16, 9), (5, channels, 3, 2), {"padding": 1, "stride": (2, 1)})
    feature, kernel, d_out = operands(step, "float64")
    wanted = on_numpy(step, feature, kernel, d_out)[0]
    y = np.ascontiguousarray(nothing(d_out.shape, "float64").swapaxes(1, 2)).swapaxes(1, 2)
    made, matmul = [], np.matmul
    monkeypatch.setattr(
        np, "matmul", lambda a, b, out: made.append(b.shape[1] if b.ndim == 4 else 1) or matmul(a, b, out=out)
    )
    run(forward(step, feature, kernel, y), y)
    assert pieces or set(made) == {products}
    assert_close(y, wanted, rtol=1e-13)


@each_case
def test_pieces_write_parts_of_their_own_in_any_order(name, tiny_pieces):
    step = step_for(*CASES[name])
    feature, kernel, d_out = operands(step, "float64")
    wanted = on_numpy(step, feature, kernel, d_out)
    y, d_feature, d_kernel = (nothing(x.shape, x.dtype) for x in (d_out, feature, kernel))
    run(forward(step, feature, kernel, y)[::-1], y)
    run(d_feature_of(step, kernel, d_out, d_feature)[::-1], d_feature)
    run(d_kernel_of(step, d_out, feature, d_kernel)[::-1], d_kernel)
    for one, other in zip((y, d_feature, d_kernel), wanted, strict=True):
        assert np.array_equal(one, other)


def test_the_cases_reach_every_routine_each_way():
    found = [step_for(*case, dtype="float32").routines for case in CASES.values()]
    forward, by_feature, by_kernel = (set(names) for names in zip(*found, strict=True))
    assert forward == {"multiply", "matmul", "band", "winograd", "kn2row", "rows", "im2col"}
    assert by_feature == {"transposed", "scatter"}
    assert by_kernel == {"matmul", "band", "winograd", "kn2row", "rows", "im2col"}


def test_bands_are_of_one_axis_with_rows_or_columns_beside_it_and_of_planes():
    products = [step_for(*case).pair.product for name, case in CASES.items() if name.startswith("band")]
    products.append(Product(4, 1, 1, (Axis("y", 30, 3, 28), Axis("x", 9, 1, 9))))  # x meets its kernel elsewhere
    kinds = {(layout_of(p).end - layout_of(p).at > 1, layout_of(p).is_inner(p.axes)) for p in products}
    assert kinds == {(False, False), (False, True), (True, True)}


@pytest.mark.parametrize("size", [1, 2, 5, 16, 17, 33])
def test_matrices_of_the_whole_batch_serve_its_blocks(size):
    equation = parse("n c y x, r, o r, c r, y r, x r -> n o y x | y, x")
    shapes = [(size, 8, 8, 7), (20,), (16, 20), (8, 20), (2, 20), (3, 20)]
    problem = Problem(equation, shapes, blocks=33 / size, padding=[0, 1])
    found = problem.pair(0b1001, 0b10000)
    assert found is not None
    whole = Problem(equation, [(33, 8, 8, 7), *shapes[1:]], padding=[0, 1]).pair(0b1001, 0b10000)
    assert layout_of(found.product) == layout_of(whole.product)


def test_small_pieces_cut_most_cases(tiny_pieces):
    several = []
    for name, case in CASES.items():
        step = step_for(*case)
        feature, kernel, d_out = operands(step, "float64")
        if len(forward(step, feature, kernel, d_out)) > 1:
            several.append(name.split()[0].strip(","))
    assert set(several) >= {"matmul", "band", "rows", "im2col", "3"}


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, mode) for name in CASES for mode in "bsin" if mode in CASES[name][0].replace(",", "").split()],
    ids=lambda value: value,
)
def test_nothing_to_sum_is_zero_and_nothing_to_write_is_nothing(name, mode):
    equation, feature, kernel, options = CASES[name]
    parsed = parse(equation)
    shapes = [
        tuple(0 if m == mode else d for m, d in zip(term, shape, strict=True))
        for term, shape in zip(parsed.terms, (feature, kernel), strict=True)
    ]
    arrays = [np.ones(shape) for shape in shapes]
    y, pullback = plan(equation, *shapes, dtype="float64", **options).vjp(*arrays)
    for found, shape in zip((y, *pullback(y)), (y.shape, *shapes), strict=True):
        assert np.array_equal(found, np.zeros(shape))


@st.composite
def geometries(draw: st.DrawFn) -> tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    order = draw(st.integers(1, 2))
    b, s, n = (draw(st.integers(1, 3)) for _ in range(3))
    sizes, taps, strides, paddings, dilations = [], [], [], [], []
    for _ in range(order):
        size, k, stride, dilation = (draw(st.integers(1, most)) for most in (7, 4, 4, 3))
        pair = draw(st.integers(0, 5)), draw(st.integers(0, 5))
        assume(dilation * (k - 1) + 1 <= size + sum(pair))
        for values, value in zip(
            (sizes, taps, strides, paddings, dilations), (size, k, stride, pair, dilation), strict=True
        ):
            values.append(value)
    options = {"stride": strides, "padding": paddings, "dilation": dilations}
    return [DENSE_1, DENSE_2][order - 1], (b, s, *sizes), (b, n, s, *taps), options


@settings(max_examples=150, deadline=None, derandomize=True)
@given(geometries())
def test_any_geometry_is_the_definition_forward_and_backward(case):
    step = step_for(*case)
    arrays = operands(step, "float64")
    wanted = portably(step, *arrays)
    assert_close(wanted[0], defined(*arrays[:2], step.pair.product.axes), rtol=1e-12)
    for found, other in zip(on_numpy(step, *arrays), wanted, strict=True):
        assert_close(found, other, rtol=1e-12)
    value = float(np.sum(wanted[0] * arrays[2]))
    for gradient, operand in zip(wanted[1:], arrays[:2], strict=True):
        assert abs(float(np.sum(gradient * operand)) - value) <= 1e-10 * (1 + abs(value))

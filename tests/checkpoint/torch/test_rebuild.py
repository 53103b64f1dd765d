"""Geometry and arguments of tensors: nothing outside the storage, nothing larger than the file accounts for."""

import io
from dataclasses import replace

import numpy as np
import pytest

from growarray.checkpoint import Limits, load_checkpoint
from growarray.errors import CheckpointError
from tests.checkpoint.files import (
    EMPTY,
    SIX,
    WEIGHT,
    call,
    glob,
    op,
    ordered,
    rows,
    simple_zip,
    storage,
    tensor,
    torch_zip,
)

S = storage("0", 6)


def load(data, **options):
    return load_checkpoint(io.BytesIO(data), **options)


@pytest.mark.parametrize(
    ("offset", "size", "stride", "message"),
    [
        (-1, (1,), (1,), "offset or stride is -1"),
        (6, (1,), (1,), "reach element 6 of a storage of 6"),
        (2**62, (1,), (1,), "reach element"),
        (2**70, (1,), (1,), "offset or stride is 1180591620717411303424"),
        (None, (1,), (1,), "offset or stride is None"),
        (0.0, (1,), (1,), "offset or stride is 0.0"),
        (True, (1,), (1,), "offset or stride is True"),
        (0, (7,), (1,), "reach element 6"),
        (0, (2, 3), (4, 1), "reach element 6"),
        (5, (6,), (-1,), "offset or stride is -1"),
        (0, (2,), (2**62,), "reach element"),
        (0, (-1,), (1,), "size holds -1"),
        (0, (-2, -3), (3, 1), "size holds -2"),
        (0, ("2",), (1,), "size holds '2'"),
        (0, (2.0,), (1,), "size holds 2.0"),
        (0, (True,), (1,), "size holds True"),
        (0, ((2,),), (1,), "size holds a tuple"),
        (0, None, (1,), "size and stride are None"),
        (0, [2], (1,), "size and stride are a list"),
        (0, 6, 1, "size and stride are 6"),
        (0, (2, 3), (1,), "size has 2 axes, stride has 1"),
        (0, (1,) * 65, (1,) * 65, "65 axes; an array has at most 64"),
        (0, (2**32, 2**32), (0, 0), "larger than any array"),
        (0, (0, 2**62, 2**62), (0, 0, 0), "larger than any array"),
        (2**63, (0,), (1,), "offset or stride is 9223372036854775808"),
        (0, (2**31,), (0,), "Limits.expanded"),
        (0, (2**20,) * 3, (0, 0, 0), "larger than any array|Limits.expanded"),
    ],
)
def test_geometry(offset, size, stride, message):
    with pytest.raises(CheckpointError, match=message):
        load(simple_zip(w=tensor(S, offset, size, stride)))


@pytest.mark.parametrize(("offset", "size", "stride"), [(7, (0,), (1,)), (2, (5, 0, 3), (3, 3, 1))])
def test_a_view_without_elements_may_begin_anywhere(offset, size, stride):
    """As torch saves ``empty(6, 0, 3)[1:]``, and a slice that begins at the end."""
    found = load(simple_zip(w=tensor(S, offset, size, stride)))["w"]
    assert (found.shape, found.dtype) == (size, np.float32)


def test_64_axes_are_allowed():
    assert load(simple_zip(w=tensor(S, 0, (1,) * 64, (1,) * 64)))["w"].ndim == 64


def test_many_small_expansions_add_up():
    many = {f"w{i}": tensor(S, 0, (2**20,), (0,)) for i in range(3)}
    assert len(load(simple_zip(**many))) == 3
    with pytest.raises(CheckpointError, match=r"Limits.expanded"):
        load(simple_zip(**many), limits=replace(Limits(), expanded=2**23))


def test_sharing_is_bounded_by_the_size_of_the_file():
    many = {f"w{i}": tensor(S, 0, (6,), (1,)) for i in range(200)}
    assert len(load(simple_zip(**many)).tied[0]) == 200
    with pytest.raises(CheckpointError, match=r"Limits.sharing"):
        load(simple_zip(**many), limits=replace(Limits(), sharing=0, expanded=1000))


def test_the_number_of_tensors_is_bounded():
    with pytest.raises(CheckpointError, match=r"Limits.tensors"):
        load(simple_zip(a=WEIGHT, b=WEIGHT), limits=replace(Limits(), tensors=1))


V2 = ("torch._utils", "_rebuild_tensor_v2")
V3 = ("torch._utils", "_rebuild_tensor_v3")


@pytest.mark.parametrize(
    ("value", "message"),
    rows({
        "no arguments": (call(*V2), "gets 0 arguments; expected 6 or 7"),
        "few": (call(*V2, S, 0), "gets 2 arguments"),
        "many": (call(*V2, S, 0, (6,), (1,), False, EMPTY, {}, 1, 2), "gets 9 arguments"),
        "no storage": (tensor(None, 0, (6,), (1,)), "storage is None"),
        "storage is a name": (tensor(glob("torch", "FloatStorage"), 0, (6,), (1,)), "storage is a Global"),
        "requires_grad": (tensor(S, 0, (6,), (1,), grad=1), "requires_grad is 1"),
        "hooks": (call(*V2, S, 0, (6,), (1,), False, {"a": 1}), "hooks are a dict of 1"),
        "metadata": (tensor(S, 0, (6,), (1,), {"evil": True}), "metadata holds 'evil'"),
        "metadata value": (tensor(S, 0, (6,), (1,), {"conj": 1}), "metadata holds 'conj': 1"),
        "metadata type": (tensor(S, 0, (6,), (1,), "conj"), "metadata is 'conj'"),
        "v3 of a typed storage": (call(*V3, S, 0, (6,), (1,), False, EMPTY, glob("torch", "half")), "cannot be viewed"),
        "v3 without a dtype": (call(*V3, S, 0, (6,), (1,), False, EMPTY, "float32"), "dtype is 'float32'"),
        "parameter of a string": (call("torch._utils", "_rebuild_parameter", "x", True, EMPTY), "expected a tensor"),
        "from a type": (
            call("torch._tensor", "_rebuild_from_type_v2", glob(*V2), glob("torch", "Size"), (), {}),
            "type is torch.Size; expected Tensor or Parameter",
        ),
        "from no function": (
            call("torch._tensor", "_rebuild_from_type_v2", "f", glob("torch", "Tensor"), (), {}),
            "expected a function of torch",
        ),
    }),
)  # fmt: skip
def test_arguments(value, message):
    with pytest.raises(CheckpointError, match=message):
        load(simple_zip(w=value))


@pytest.mark.parametrize("flag", ["conj", "neg"])
def test_a_single_value_is_an_array_that_can_be_written(flag):
    """Of an array without axes, NumPy's functions give a scalar."""
    found = load(simple_zip(w=tensor(S, 1, (), (), {flag: True})))["w"]
    assert isinstance(found, np.ndarray)
    found[...] = 3.0
    assert found.item() == 3.0


def test_tensors_of_very_old_files():
    old = call("torch._utils", "_rebuild_tensor", S, 0, (2, 3), (3, 1))
    np.testing.assert_array_equal(load(simple_zip(w=old))["w"], load(simple_zip())["w"])


def test_storages_of_old_cuda_files():
    gpu = op(("storage", glob("torch.cuda", "FloatStorage"), "0", "cuda:0", 6)) + b"Q"
    checkpoint = load(torch_zip(ordered({"w": tensor(type(S)(gpu), 0, (6,), (1,))}), {"0": SIX}))
    assert checkpoint["w"].tolist() == [0, 1, 2, 3, 4, 5]

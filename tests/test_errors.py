"""A wrong argument is an error that names it, what came and what was expected, the same from every implementation."""

import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import random_weight
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

import sagd_kernels as sagd

X, W, K, S = torch.ones(2, 3, 8, 6), torch.ones(8, 4), sagd.key(1), torch.ones(2)
SIZE = X.shape


def spectral_filter(input=X, weight=W, scale=S):
    return sagd.spectral_filter, (input, weight, scale), {}


def shaped_noise(key=K, size=SIZE, weight=W, scale=S, **options):
    return sagd.shaped_noise, (key, size, weight, scale), options


def add_noise(input=X, key=K, weight=W, signal_scale=S, noise_scale=S, **options):
    return sagd.add_noise, (input, key, weight, signal_scale, noise_scale), options


def whitened_mse(input=X, target=X, weight=W):
    return sagd.whitened_mse, (input, target, weight), {}


FLOATING = "expected float32, float64, bfloat16 or float16, got"
WEIGHT = "expected [..., 8, 4] with leading dimensions that broadcast against the batch [2, 3], got"
SCALE = "expected dimensions that broadcast from the left against the batch [2, 3], got"
KEYS = "expected [2] or one key for each index of the first batch dimensions, of size [2, 3, 8, 6], got"

WRONG = [
    # planes
    (spectral_filter(torch.ones(6)), "input: expected at least 2 dimensions [..., H, W], got [6]"),
    (spectral_filter(torch.ones(())), "input: expected at least 2 dimensions [..., H, W], got []"),
    (spectral_filter(torch.ones(2, 0, 6)), "input: expected planes of at least 1 x 1, got [2, 0, 6]"),
    (spectral_filter(torch.ones(2, 8, 0)), "input: expected planes of at least 1 x 1, got [2, 8, 0]"),
    (add_noise(torch.ones(8, 0)), "input: expected planes of at least 1 x 1, got [8, 0]"),
    (whitened_mse(torch.ones(6), torch.ones(6)), "input: expected at least 2 dimensions [..., H, W], got [6]"),
    (shaped_noise(size=(6,)), "size: expected at least 2 dimensions [..., H, W], got [6]"),
    (shaped_noise(size=()), "size: expected at least 2 dimensions [..., H, W], got []"),
    (shaped_noise(size=(2, 0, 6)), "size: expected planes of at least 1 x 1, got [2, 0, 6]"),
    (shaped_noise(size=(-2, 8, 6)), "size: expected no negative size, got [-2, 8, 6]"),
    (spectral_filter(X.int()), f"input: {FLOATING} torch.int32"),
    (spectral_filter(X.bool()), f"input: {FLOATING} torch.bool"),
    (spectral_filter(X.to(torch.complex64)), f"input: {FLOATING} torch.complex64"),
    (spectral_filter(X.to(torch.float8_e4m3fn)), f"input: {FLOATING} torch.float8_e4m3fn"),
    (add_noise(X.long()), f"input: {FLOATING} torch.int64"),
    (whitened_mse(X.int()), f"input: {FLOATING} torch.int32"),
    (whitened_mse(target=X.int()), f"target: {FLOATING} torch.int32"),
    (whitened_mse(target=X.to(torch.complex64)), f"target: {FLOATING} torch.complex64"),
    (whitened_mse(target=X[:1]), "target: expected the shape of input [2, 3, 8, 6], got [1, 3, 8, 6]"),
    (whitened_mse(target=X[0]), "target: expected the shape of input [2, 3, 8, 6], got [3, 8, 6]"),
    (shaped_noise(dtype=torch.int32), f"dtype: {FLOATING} torch.int32"),
    (shaped_noise(dtype=torch.complex64), f"dtype: {FLOATING} torch.complex64"),
    # the weight
    (spectral_filter(weight=torch.ones(8, 6)), f"weight: {WEIGHT} [8, 6]"),
    (spectral_filter(weight=torch.ones(8, 3)), f"weight: {WEIGHT} [8, 3]"),
    (spectral_filter(weight=torch.ones(7, 4)), f"weight: {WEIGHT} [7, 4]"),
    (spectral_filter(weight=torch.ones(4)), f"weight: {WEIGHT} [4]"),
    (spectral_filter(weight=torch.ones(())), f"weight: {WEIGHT} []"),
    (spectral_filter(weight=torch.ones(2, 8, 4)), f"weight: {WEIGHT} [2, 8, 4]"),
    (spectral_filter(weight=torch.ones(3, 1, 8, 4)), f"weight: {WEIGHT} [3, 1, 8, 4]"),
    (spectral_filter(weight=torch.ones(0, 8, 4)), f"weight: {WEIGHT} [0, 8, 4]"),
    (spectral_filter(weight=torch.ones(1, 1, 1, 8, 4)), f"weight: {WEIGHT} [1, 1, 1, 8, 4]"),
    (shaped_noise(weight=torch.ones(8, 6)), f"weight: {WEIGHT} [8, 6]"),
    (add_noise(weight=torch.ones(2, 8, 4)), f"weight: {WEIGHT} [2, 8, 4]"),
    (whitened_mse(weight=torch.ones(8, 5)), f"weight: {WEIGHT} [8, 5]"),
    (spectral_filter(weight=W.double()), "weight: expected torch.float32, got torch.float64"),
    (spectral_filter(X.double()), "weight: expected torch.float64, got torch.float32"),
    (spectral_filter(X.half(), W.half()), "weight: expected torch.float32, got torch.float16"),
    (spectral_filter(weight=W.int()), "weight: expected torch.float32, got torch.int32"),
    (spectral_filter(weight=W.to(torch.complex64)), "weight: expected torch.float32, got torch.complex64"),
    (shaped_noise(dtype=torch.float64), "weight: expected torch.float64, got torch.float32"),
    (shaped_noise(weight=W.double(), dtype=torch.float32), "weight: expected torch.float32, got torch.float64"),
    (shaped_noise(weight=W.half()), "weight: expected torch.float32, got torch.float16"),
    (add_noise(X.bfloat16(), weight=W.bfloat16()), "weight: expected torch.float32, got torch.bfloat16"),
    (whitened_mse(X, X.double()), "weight: expected torch.float64, got torch.float32"),
    # scales
    (spectral_filter(scale=torch.ones(3)), f"scale: {SCALE} [3]"),
    (spectral_filter(scale=torch.ones(2, 2)), f"scale: {SCALE} [2, 2]"),
    (spectral_filter(scale=torch.ones(2, 3, 8)), f"scale: {SCALE} [2, 3, 8]"),
    (spectral_filter(scale=torch.ones(2, 3, 1, 6)), f"scale: {SCALE} [2, 3, 1, 6]"),
    (spectral_filter(scale=torch.ones(2, 3, 1, 1, 1)), f"scale: {SCALE} [2, 3, 1, 1, 1]"),
    (spectral_filter(scale=torch.ones(0)), f"scale: {SCALE} [0]"),
    (shaped_noise(scale=torch.ones(3)), f"scale: {SCALE} [3]"),
    (add_noise(signal_scale=torch.ones(3)), f"signal_scale: {SCALE} [3]"),
    (add_noise(noise_scale=torch.ones(2, 2)), f"noise_scale: {SCALE} [2, 2]"),
    (spectral_filter(scale=S.int()), f"scale: {FLOATING} torch.int32"),
    (shaped_noise(scale=S.to(torch.complex64)), f"scale: {FLOATING} torch.complex64"),
    (add_noise(signal_scale=S.bool()), f"signal_scale: {FLOATING} torch.bool"),
    (add_noise(noise_scale=S.long()), f"noise_scale: {FLOATING} torch.int64"),
    # keys
    (shaped_noise(torch.ones(2)), "key: expected a uint64 tensor [..., 2], got torch.float32 [2]"),
    (shaped_noise(torch.ones(2).long()), "key: expected a uint64 tensor [..., 2], got torch.int64 [2]"),
    (shaped_noise(torch.ones(2).to(torch.uint32)), "key: expected a uint64 tensor [..., 2], got torch.uint32 [2]"),
    (shaped_noise(K[0]), "key: expected a uint64 tensor [..., 2], got torch.uint64 []"),
    (shaped_noise(K[:1]), "key: expected a uint64 tensor [..., 2], got torch.uint64 [1]"),
    (add_noise(key=K.repeat(2)), "key: expected a uint64 tensor [..., 2], got torch.uint64 [4]"),
    (shaped_noise(K.expand(3, 2)), f"key: {KEYS} [3, 2]"),
    (shaped_noise(K.expand(1, 2)), f"key: {KEYS} [1, 2]"),
    (shaped_noise(K.expand(2, 1, 2)), f"key: {KEYS} [2, 1, 2]"),
    (add_noise(key=K.expand(2, 3, 8, 2)), f"key: {KEYS} [2, 3, 8, 2]"),
    (shaped_noise(plane_offset=-1), "plane_offset: expected at least 0, got -1"),
    (add_noise(plane_offset=-(2**40)), f"plane_offset: expected at least 0, got {-(2**40)}"),
]  # fmt: skip


def message(call) -> str:
    """What the error says that a call must raise; the kernels' errors start with the place where they arise."""
    operator, args, options = call
    with pytest.raises(RuntimeError) as error:
        operator(*args, **options)
    return re.sub(r"^\w+, csrc/\S+:\d+, ", "", str(error.value))


def convert(call, function):
    """The same call with other tensors."""
    operator, args, options = call
    return operator, pytree.tree_map_only(torch.Tensor, function, args), options


@pytest.mark.parametrize(
    "right", [spectral_filter(), shaped_noise(), add_noise(), whitened_mse()], ids=lambda c: c[0].__name__
)
def test_the_arguments_are_right_but_for_the_one_that_is_wrong(right):
    operator, args, options = right
    operator(*args, **options)


@pytest.mark.parametrize(("call", "expected"), WRONG, ids=[f"{c[0].__name__}-{m}" for c, m in WRONG])
def test_every_implementation_says_what_is_wrong(call, expected):
    assert message(call) == expected
    assert message(convert(call, lambda tensor: tensor.to("meta"))) == expected
    with FakeTensorMode() as mode:
        assert message(convert(call, mode.from_tensor)) == expected


OTHER_DTYPES = [
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.complex32, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=str)
def test_every_dtype_goes_by_the_name_that_python_knows(dtype):
    call, expected = spectral_filter(torch.empty(SIZE, dtype=dtype)), f"input: {FLOATING} {dtype}"
    assert message(call) == message(convert(call, lambda tensor: tensor.to("meta"))) == expected


@pytest.mark.parametrize(
    "call", [spectral_filter(), shaped_noise(), add_noise(), whitened_mse()], ids=lambda c: c[0].__name__
)
def test_every_tensor_must_be_where_the_others_are(call):
    operator, args, options = call
    names = {
        "spectral_filter": ["input", "weight", "scale"],
        "shaped_noise": ["key", "size", "weight", "scale"],
        "add_noise": ["input", "key", "weight", "signal_scale", "noise_scale"],
        "whitened_mse": ["input", "target", "weight"],
    }[operator.__name__]
    home = "weight" if operator is sagd.shaped_noise else "input"  # whose device is the result's
    for i, name in enumerate(names):
        if name in (home, "size"):
            continue
        strayed = [a.to("meta") if j == i else a for j, a in enumerate(args)]
        expected = f"{name}: expected a tensor on cpu, the device of the other arguments, got meta"
        assert message((operator, strayed, options)) == expected
        assert message((redispatch(operator, "CPU"), strayed, options)) == expected  # where the kernels see it
    strayed = [a.to("meta") if name == home else a for a, name in zip(args, names, strict=True)]
    assert re.fullmatch(
        r"\w+: expected a tensor on meta, the device of the other arguments, got cpu",
        message((operator, strayed, options)),
    )


def redispatch(operator, device):
    """The operator as the dispatcher's entry of a device, whatever the tensors."""
    entry = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, device))
    name = operator.__name__
    if name == "whitened_mse":
        return lambda *args: torch.ops.sagd._whitened_mse.default.redispatch(entry, *args, False)
    return lambda *args, **options: getattr(torch.ops.sagd, name).default.redispatch(entry, *args, **options)


def test_planes_too_large_to_count():
    for size in ((2**15, 2**15), (2**24, 1), (1, 2**24)):
        planes = torch.ones(1, 1).expand(size)
        expected = f"input: expected planes of less than 2^30 values, got {list(size)}"
        weight = torch.ones(1, 1).expand(size[0], size[1] // 2 + 1)
        assert message(spectral_filter(planes, weight)) == expected


def test_batches_too_large_to_count():
    for size in ((2**40, 2**40, 8, 6), (2**57, 8, 6), (2**57, 0, 8, 6)):
        assert message(shaped_noise(size=size)) == f"size: expected less than 2^60 values, got {list(size)}"


def test_a_result_that_memory_has_no_room_for():
    size = (2**20, 2**20, 8, 6)
    assert message(shaped_noise(size=size, scale=None)).startswith(
        f"cannot allocate a tensor of size {list(size)} on cpu"
    )


@pytest.mark.parametrize(
    "call",
    [
        (spectral_filter(X.to_sparse()), "input", torch.sparse_coo),
        (spectral_filter(X.to_mkldnn()), "input", torch._mkldnn),
        (add_noise(weight=W.to_sparse()), "weight", torch.sparse_coo),
        (add_noise(noise_scale=S.to_sparse()), "noise_scale", torch.sparse_coo),
        (whitened_mse(target=X.to_sparse()), "target", torch.sparse_coo),
    ],
    ids=lambda call: f"{call[1]}-{call[2]}",
)
def test_tensors_must_be_dense(call):
    call, name, layout = call
    assert message(call) == f"{name}: expected a dense tensor, got layout {layout}"


def test_batches_of_more_dimensions_than_a_kernel_can_follow():
    planes = torch.ones([2] * 17 + [1, 1]).permute(*range(16, -1, -1), 17, 18)
    assert message(spectral_filter(planes, torch.ones(1, 1), None)) == "input: more than 16 batch dimensions"


@pytest.mark.parametrize("operator", [sagd.spectral_filter, sagd.shaped_noise, sagd.add_noise, sagd.whitened_mse])
def test_a_missing_or_meaningless_argument_is_an_error_too(operator):
    with pytest.raises(TypeError, match="missing"):
        operator()
    with pytest.raises(TypeError, match=r"^(input: expected a tensor|key: expected a uint64 .*), got str$"):
        operator(*["planes"] * {"spectral_filter": 2, "add_noise": 5}.get(operator.__name__, 3))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (spectral_filter(input=X.numpy()), "input: expected a tensor, got ndarray"),
        (spectral_filter(weight=W.tolist()), "weight: expected a tensor, got list"),
        (spectral_filter(weight=W.numpy(), scale=None), "weight: expected a tensor, got ndarray"),
        (spectral_filter(scale="1"), "scale: expected a tensor or a number, got str"),
        (shaped_noise(scale=1j), "scale: expected a tensor or a number, got complex"),
        (shaped_noise(size=None), "size: expected ints [..., H, W], got NoneType"),
        (shaped_noise(size=8), "size: expected ints [..., H, W], got int"),
        (shaped_noise(size=[8.0, 6.0]), "size: expected ints [..., H, W], got [8.0, 6.0]"),
        (shaped_noise(dtype="float32"), "dtype: expected a torch.dtype, got str"),
        (shaped_noise(plane_offset=None), "plane_offset: expected an int, got NoneType"),
        (add_noise(plane_offset=1.5), "plane_offset: expected an int, got float"),
        (add_noise(signal_scale=[1.0, 1.0]), "signal_scale: expected a tensor or a number, got list"),
        (add_noise(noise_scale="1"), "noise_scale: expected a tensor or a number, got str"),
        (whitened_mse(target=X.numpy()), "target: expected a tensor, got ndarray"),
        (whitened_mse(weight=W.numpy()), "weight: expected a tensor, got ndarray"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_argument_of_the_wrong_type_is_named(call, expected):
    operator, args, options = call
    for context in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):  # called directly, and by the dispatcher
        with context, pytest.raises(TypeError, match=f"^{re.escape(expected)}$"):
            operator(*args, **options)


# ---- keys and modules


@pytest.mark.parametrize("number", [1.0, 0.3, True, "1", None, np.float64(1), np.arange(2)], ids=repr)
def test_seeds_and_what_is_folded_in_must_be_ints(number):
    with pytest.raises(TypeError, match=f"seed: expected an int, got {type(number).__name__}"):
        sagd.key(number)
    with pytest.raises(TypeError, match=f"data: expected an int, got {type(number).__name__}"):
        sagd.fold_in(K, number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.complex64], ids=str)
def test_tensors_that_are_folded_in_must_be_of_integers(dtype):
    with pytest.raises(TypeError, match=f"data: expected an int or a tensor of integers, got {dtype}"):
        sagd.fold_in(K, torch.ones(2, dtype=dtype))


@pytest.mark.parametrize("operator", [sagd.shaped_noise, sagd.add_noise])
def test_a_key_that_was_forgotten_is_named(operator):
    planes, weight = torch.ones(2, 4, 4), torch.ones(4, 3)
    arguments = (None, [2, 4, 4], weight) if operator is sagd.shaped_noise else (planes, None, weight, 0.5, 0.5)
    with pytest.raises(TypeError, match=r"key: expected a uint64 tensor \[..., 2\], got NoneType"):
        operator(*arguments)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (spectral_filter(input=None), "input"),
        (spectral_filter(weight=None), "weight"),
        (shaped_noise(weight=None), "weight"),
        (add_noise(input=None), "input"),
        (add_noise(weight=None), "weight"),
        (add_noise(signal_scale=None), "signal_scale"),
        (add_noise(noise_scale=None, signal_scale=0.5), "noise_scale"),
        (whitened_mse(input=None), "input"),
        (whitened_mse(target=None), "target"),
        (whitened_mse(weight=None), "weight"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0].__name__,
)
def test_a_tensor_that_was_forgotten_is_named(call, name):
    operator, args, options = call
    with pytest.raises(TypeError, match=f"^{name}: expected a tensor.*, got NoneType"):
        operator(*args, **options)


@pytest.mark.parametrize("derive", [lambda: sagd.fold_in(None, 3), lambda: sagd.split(None)], ids=["fold_in", "split"])
def test_a_key_that_was_forgotten_is_named_where_keys_are_derived(derive):
    with pytest.raises(TypeError, match=r"key: expected a uint64 tensor \[..., 2\], got NoneType"):
        derive()


@pytest.mark.parametrize("offset", [2**63, 2**64], ids=["2^63", "2^64"])
def test_a_plane_number_beyond_64_bits_is_an_error(offset):
    planes, weight = torch.ones(2, 4, 4), torch.ones(4, 3)
    with pytest.raises(RuntimeError, match=rf"plane_offset: expected less than 2\^63, got {offset}"):
        sagd.shaped_noise(K, [2, 4, 4], weight, plane_offset=offset)
    with pytest.raises(RuntimeError, match=rf"plane_offset: expected less than 2\^63, got {offset}"):
        sagd.add_noise(planes, K, weight, 0.5, 0.5, plane_offset=offset)


@pytest.mark.parametrize("wrong", [torch.ones(2), torch.ones(2).long(), K[0], K[:1], K.repeat(2)], ids=repr)
def test_split_and_fold_in_take_keys_alone(wrong):
    expected = re.escape(f"key: expected a uint64 tensor [..., 2], got {wrong.dtype} {list(wrong.shape)}")
    with pytest.raises(ValueError, match=expected):
        sagd.split(wrong)
    with pytest.raises(ValueError, match=expected):
        sagd.fold_in(wrong, 3)


@pytest.mark.parametrize("num", [0, -1])
def test_split_needs_a_positive_number(num):
    with pytest.raises(ValueError, match=f"num: expected a positive number of keys, got {num}"):
        sagd.split(K, num)
    with pytest.raises(TypeError, match="num: expected an int, got float"):
        sagd.split(K, num + 2.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.complex64], ids=str)
def test_the_module_refuses_weights_that_the_operators_would(dtype):
    with pytest.raises(ValueError, match=f"weight: expected float32 or float64, got {dtype}"):
        sagd.ShapedNoise(W.to(dtype))


def test_the_module_names_a_weight_that_does_not_fit():
    with pytest.raises(RuntimeError, match=re.escape(WEIGHT.replace("8, 4", "9, 4"))):
        sagd.ShapedNoise(random_weight(8, 6))(torch.ones(2, 3, 9, 6))


@pytest.mark.parametrize("x", [None, [2, 3, 8, 6], X.numpy()], ids=["None", "list", "ndarray"])
def test_the_module_wants_a_tensor(x):
    with pytest.raises(TypeError, match=f"x: expected a tensor, got {type(x).__name__}"):
        sagd.ShapedNoise(W)(x)

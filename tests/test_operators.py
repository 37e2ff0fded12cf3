"""Every operator against the reference: any size, dtype, strides and broadcast, and no plane touched by another."""

import numpy as np
import pytest
import torch
from conftest import (
    DTYPES,
    LARGE_SIZES,
    OPERATORS,
    SIZES,
    arguments,
    assert_close,
    assert_operator_close,
    each_operator,
    outputs,
    random_weight,
    weight_dtype,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import sagd_kernels as sagd
from sagd_kernels import reference
from sagd_kernels.backends import composite

pytestmark = pytest.mark.usefixtures("poisoned_memory")

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

KEY = sagd.fold_in(sagd.key(2025), 7)


def apply(operator, args, kwargs):
    """Every tensor that the operator computes, the residual of whitened_mse among them."""
    if operator == "whitened_mse":
        return torch.ops.sagd._whitened_mse(*args, True)
    return outputs(getattr(torch.ops.sagd, operator)(*args, **kwargs))


def planes_of(results):
    """Those of an operator's results that have planes: all but the loss."""
    return [result for result in results if result.ndim]


def assert_same_bits(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True)


# ---- values


# Of 32 and 64 columns, whose rows AVX-512 kernels transform along lanes, every form that the columns' last stage has.
IN_LANES = [(16, 32), (64, 32), (32, 64), (40, 64), (80, 64), (176, 32)]


@pytest.mark.parametrize("size", SIZES + IN_LANES, ids=lambda size: f"{size[0]}x{size[1]}")
@each_dtype
@each_operator
def test_equals_the_reference(operator, dtype, size):
    batch = (2, 3) if size[0] * size[1] <= 64 * 64 else (2,)
    args, kwargs = arguments(operator, (*batch, *size), dtype)
    assert_operator_close(operator, *args, **kwargs)


@pytest.mark.parametrize("size", LARGE_SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@each_dtype
@each_operator
def test_equals_the_reference_on_large_planes(operator, dtype, size):
    args, kwargs = arguments(operator, size, dtype)
    assert_operator_close(operator, *args, **kwargs)


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(size=st.tuples(st.integers(1, 300), st.integers(1, 300)), dtype=st.sampled_from(DTYPES))
def test_equals_the_reference_on_any_size(size, dtype):
    for operator in OPERATORS:
        args, kwargs = arguments(operator, size, dtype)
        assert_operator_close(operator, *args, **kwargs)


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (2, 1, 3), (2, 3, 1, 2), (2, 2, 1, 2, 2, 1)], ids=str)
@each_operator
def test_any_number_of_batch_dimensions(operator, batch):
    args, kwargs = arguments(operator, (*batch, 6, 7))
    assert_operator_close(operator, *args, **kwargs)


@each_operator
def test_many_small_planes(operator):
    args, kwargs = arguments(operator, (1, 768, 16, 16))
    assert_operator_close(operator, *args, **kwargs)


@each_dtype
@pytest.mark.parametrize("size", [(0, 8, 8), (0, 3, 5, 4), (2, 0, 4, 4)], ids=str)
def test_empty_batches(dtype, size):
    for operator in OPERATORS[:3]:
        args, kwargs = arguments(operator, size, dtype)
        for result in apply(operator, args, kwargs):
            assert result.shape == size and result.dtype == dtype
    args, _ = arguments("whitened_mse", size, dtype)
    assert sagd.whitened_mse(*args).isnan()  # the mean of nothing, as torch.nn.functional.mse_loss has it
    keys = sagd.split(KEY, size[0]) if size[0] else KEY.expand(0, 2)
    assert sagd.shaped_noise(keys, size, args[2], dtype=dtype).shape == size


def test_a_zeroed_result_fails_the_comparison():
    planes, weight = torch.randn(2, 8, 8), random_weight(8, 8)
    expected, peer = reference.spectral_filter(planes, weight), composite.spectral_filter(planes, weight)
    result = sagd.spectral_filter(planes, weight)
    assert_close(result, expected, peer)
    wrong = {"zeroed": torch.zeros_like(result), "not finite": result.clone(), "one plane": result.clone()}
    wrong["not finite"][0, 3, 3] = torch.nan
    wrong["one plane"][1] *= 1 + 1e-5
    for what, tensor in wrong.items():
        with pytest.raises(AssertionError, match="relative error"):
            assert_close(tensor, expected, peer)
            print(f"accepted: {what}")
    with pytest.raises(AssertionError, match="would accept zeros"):
        assert_close(torch.zeros_like(result), torch.zeros_like(expected), peer)


# ---- whitened_mse, beyond positive weights of one dtype


@each_dtype
@pytest.mark.parametrize("size", [(1, 1), (4, 6), (5, 7), (28, 28), (27, 32)], ids=str)
def test_whitened_mse_leaves_out_bins_without_weight(size, dtype):
    planes, target = torch.randn(3, *size).to(dtype), torch.randn(3, *size).to(dtype)
    weight = random_weight(3, *size, dtype=weight_dtype(dtype))
    weight[0, 0, 0] = 0
    weight[1][torch.rand_like(weight[1]) < 0.4] = 0
    weight[2] = 0
    weight[0, :, -1] -= 0.6  # some of it below zero
    if (reference.full_weight(weight, size[1]) > 0).any():
        assert_operator_close("whitened_mse", planes, target, weight)
    else:
        assert sagd.whitened_mse(planes, target, weight) == 0
    _, whitened = torch.ops.sagd._whitened_mse(planes, target, weight, True)
    assert torch.count_nonzero(whitened[2]) == 0


def test_whitened_mse_leaves_out_bins_whose_weight_is_not_a_number():
    planes, target = torch.randn(2, 4, 32, 32)
    weight = random_weight(32, 32)
    weight[5, 3] = torch.nan
    weight[16, 7] = torch.nan
    assert_operator_close("whitened_mse", planes, target, weight)


@pytest.mark.parametrize("size", [(1, 2**16), (1, 2**20), (3, 1009), (512, 300)], ids=str)
def test_whitened_mse_of_many_pixels_is_a_sum_without_bias(size):
    planes, target = torch.randn(2, 1, *size)
    expected = reference.whitened_mse(planes.double(), target.double(), random_weight(*size).double())
    loss = sagd.whitened_mse(planes, target, random_weight(*size))
    assert abs(loss - expected) < 2**-22 * expected  # two roundings of a float32, however many values there are


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float16),
        (torch.float64, torch.bfloat16),
    ],
)
def test_whitened_mse_of_two_dtypes_counts_the_wider(first, second):
    planes, target = torch.randn(2, 8, 9).to(first), torch.randn(2, 8, 9).to(second)
    wider = torch.promote_types(first, second)
    weight = random_weight(8, 9, dtype=weight_dtype(wider))
    loss = sagd.whitened_mse(planes, target, weight)
    assert loss.dtype == weight_dtype(wider)
    assert torch.equal(loss, sagd.whitened_mse(planes.to(wider), target.to(wider), weight))


# ---- layouts: the bits are those of the contiguous tensor


def poisoned(shape, dtype):
    return torch.full(shape, torch.nan, dtype=dtype)


def fill(view, values):
    return view.copy_(values)


LAYOUTS = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "batch permuted": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "all reversed": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "cropped": lambda x: fill(poisoned((*x.shape[:2], x.shape[2] + 3, x.shape[3] + 5), x.dtype)[..., 2:-1, 1:-4], x),
    "every other": lambda x: fill(poisoned([2 * n for n in x.shape], x.dtype)[::2, 1::2, ::2, 1::2], x),
    "offset": lambda x: fill(poisoned((x.numel() + 3,), x.dtype)[3:].view(x.shape), x),
    "negated view": lambda x: torch._neg_view(-x),  # what .imag of a conjugate is
}
EXPANSIONS = {
    "one plane": lambda x: x[:1, :1].expand_as(x),
    "one sample": lambda x: x[:1].expand_as(x),
    "one channel": lambda x: x[:, :1].expand_as(x),
    "one row": lambda x: x[..., :1, :].expand_as(x),
    "one column": lambda x: x[..., :1].expand_as(x),
    "one value": lambda x: x[:1, :1, :1, :1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS | EXPANSIONS)
@pytest.mark.parametrize("size", [(2, 3, 28, 27), (3, 2, 17, 40), (2, 2, 1, 7), (2, 3, 7, 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_of_the_planes_do_not_matter(dtype, size, layout):
    planes = (LAYOUTS | EXPANSIONS)[layout](torch.randn(size).to(dtype))
    assert planes.is_neg() == (layout == "negated view")
    for operator in ("spectral_filter", "add_noise", "whitened_mse"):
        args, kwargs = arguments(operator, size, dtype, planes=planes)
        expected = apply(operator, *arguments(operator, size, dtype, planes=planes.contiguous().resolve_neg()))
        results = apply(operator, args, kwargs)
        assert_same_bits(results, expected)
        assert not torch.cat([r.flatten() for r in results]).isnan().any()
    target = torch.randn(size).to(dtype)
    weight = random_weight(*size[-2:], dtype=weight_dtype(dtype))
    loss = sagd.whitened_mse(target, planes, weight)
    assert torch.equal(loss, sagd.whitened_mse(target, planes.contiguous(), weight))


@pytest.mark.parametrize("layout", LAYOUTS | EXPANSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(3, 2, 28, 27), (3, 2, 9, 10)], ids=str)
@each_operator
def test_strides_of_the_weight_do_not_matter(operator, size, dtype, layout):
    weight = (LAYOUTS | EXPANSIONS)[layout](random_weight(*size, dtype=dtype))
    planes = torch.randn(size).to(dtype)
    result = apply(operator, *arguments(operator, size, dtype, planes=planes, weight=weight))
    contiguous = weight.contiguous().resolve_neg()
    assert_same_bits(result, apply(operator, *arguments(operator, size, dtype, planes=planes, weight=contiguous)))


@each_operator
def test_results_are_contiguous_and_arguments_unchanged(operator):
    planes = torch.randn(2, 3, 9, 8).contiguous(memory_format=torch.channels_last)
    args, kwargs = arguments(operator, planes.shape, planes=planes)
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    results = apply(operator, args, kwargs)
    assert all(result.is_contiguous() for result in results)
    for argument, copy in zip(args, before, strict=True):
        assert torch.equal(argument, copy) if isinstance(argument, torch.Tensor) else argument == copy


# ---- broadcasting: the bits are those of the expanded argument


@pytest.mark.parametrize("lead", [(3,), (1,), (2, 1), (1, 3), (2, 3), (1, 1)], ids=lambda lead: f"weight{list(lead)}")
@each_operator
def test_weights_broadcast_from_the_right(operator, lead):
    size = (2, 3, 9, 10)
    planes, weight = torch.randn(size), random_weight(*lead, *size[2:])
    result = apply(operator, *arguments(operator, size, planes=planes, weight=weight))
    expanded = weight.expand(*size[:2], *weight.shape[-2:])
    for n in range(2):
        for c in range(3):  # plane by plane
            args, kwargs = arguments(operator, size, planes=planes, weight=expanded[n, c])
            for got, alone in zip(result, apply(operator, args, kwargs), strict=True):
                if got.ndim:
                    assert torch.equal(got[n, c], alone[n, c])
    args, kwargs = arguments(operator, size, planes=planes, weight=weight)
    assert_operator_close(operator, *args, **kwargs)


# Groups of planes that kernels take at a time have one weight, two, or as many as planes; weights that planes take in
# turn are few enough to be kept, or too many.
@pytest.mark.parametrize(
    ("size", "lead"),
    [((3, 37, 9, 10), (3, 1)), ((3, 37, 9, 10), (37,)), ((2, 5, 17, 18), (5,)), ((2, 20, 17, 18), (20,))],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each_operator
def test_planes_keep_their_own_weight(operator, dtype, size, lead):
    planes, weight = torch.randn(size).to(dtype), random_weight(*lead, *size[2:], dtype=dtype)
    args, kwargs = arguments(operator, size, dtype, planes=planes, weight=weight)
    result = planes_of(apply(operator, args, kwargs))
    number = torch.arange(max(lead)).view(lead).expand(size[:2])
    for i, one in enumerate(weight.flatten(0, -3)):
        args, kwargs = arguments(operator, size, dtype, planes=planes, weight=one)
        own = number == i
        assert_same_bits([r[own] for r in result], [r[own] for r in planes_of(apply(operator, args, kwargs))])


SCALES = [(), (1,), (2,), (2, 1), (1, 3), (2, 3), (2, 1, 1, 1), (2, 3, 1), (1, 3, 1, 1), (1, 1, 1, 1)]


@pytest.mark.parametrize("shape", SCALES, ids=lambda shape: f"scale{list(shape)}")
@each_dtype
def test_scales_broadcast_from_the_left(dtype, shape):
    size = (2, 3, 6, 5)
    planes, weight = torch.randn(size), random_weight(*size[2:])
    scale, other = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    assert_operator_close("spectral_filter", planes, weight, scale)
    assert_operator_close("shaped_noise", KEY, size, weight, scale)
    assert_operator_close("add_noise", planes, KEY, weight, scale, other)
    assert_operator_close("add_noise", planes, KEY, weight, torch.randn(2), other)
    # bits: broadcast or expanded, plain or with strides
    full = scale.reshape(*shape, *[1] * (4 - len(shape))).expand(2, 3, 1, 1)
    expected = sagd.spectral_filter(planes, weight, full.contiguous())
    for same in (scale, full, full.transpose(0, 1).contiguous().transpose(0, 1), full[..., 0, 0]):
        assert torch.equal(sagd.spectral_filter(planes, weight, same), expected)


def test_scale_on_the_batch_of_one_plane():
    planes, weight = torch.randn(6, 5), random_weight(6, 5)
    assert_operator_close("spectral_filter", planes, weight, torch.tensor(0.3))
    assert_operator_close("spectral_filter", planes, weight, torch.tensor([[0.3]]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scales_of_one_dtype_serve_planes_of_another(dtype):
    planes = torch.randn(2, 3, 6, 5).to(dtype)
    weight = random_weight(6, 5, dtype=weight_dtype(dtype))
    for scale_dtype in DTYPES:
        scale = torch.tensor([0.375, -1.5], dtype=scale_dtype)  # exact in every dtype
        result = assert_operator_close("spectral_filter", planes, weight, scale)
        assert torch.equal(result, sagd.spectral_filter(planes, weight, scale.double()))


def test_a_batch_of_more_dimensions_than_can_be_merged():
    planes, weight = torch.randn(2, 2, 2, 2, 2, 2, 2, 6, 5).permute(6, 5, 4, 3, 2, 1, 0, 7, 8), random_weight(6, 5)
    assert torch.equal(sagd.spectral_filter(planes, weight), sagd.spectral_filter(planes.contiguous(), weight))


@pytest.mark.parametrize("size", [(8, 7), (7, 8), (15, 17), (16, 16), (27, 31), (64, 48), (40, 33)], ids=str)
def test_tiny_weights_keep_the_relative_accuracy(size):
    """Nothing of the input reaches the result but through the weight, not even rounding errors."""
    planes, weight = torch.randn(18, *size), random_weight(*size)
    expected = sagd.spectral_filter(planes, weight)
    torch.testing.assert_close(sagd.spectral_filter(planes, weight * 2**-60) * 2**60, expected, rtol=0, atol=0)


# ---- planes are independent, to the bit


SAMPLES = 5
OTHERS = torch.tensor([0, 1, 3, 4])  # all but the third


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (16, 16), (27, 31), (64, 48), (37, 12)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_bad_plane_or_weight_leaves_the_other_planes_alone(dtype, size, value):
    planes = torch.randn(SAMPLES, *size).to(dtype)
    weight = random_weight(SAMPLES, *size, dtype=weight_dtype(dtype))
    for operator in OPERATORS:
        args, kwargs = arguments(operator, planes.shape, dtype, planes=planes, weight=weight)
        clean = planes_of(apply(operator, args, kwargs))
        for tensor in (planes, weight):
            if tensor is planes and operator == "shaped_noise":
                continue
            kept = tensor[2].clone()
            for pixel in ((0, 0), (size[0] // 2, tensor.shape[-1] // 2), (slice(None), slice(None))):
                tensor[2][pixel] = value
                args, kwargs = arguments(operator, planes.shape, dtype, planes=planes, weight=weight)
                spoilt = planes_of(apply(operator, args, kwargs))
                tensor[2] = kept
                assert not torch.equal(spoilt[0][2], clean[0][2])
                for s, c in zip(spoilt, clean, strict=True):
                    assert torch.equal(s[OTHERS], c[OTHERS])


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_a_bad_scale_leaves_the_other_planes_alone(value):
    planes, weight = torch.randn(SAMPLES, 16, 16), random_weight(16, 16)
    good, bad = torch.ones(SAMPLES), torch.ones(SAMPLES)
    bad[2] = value
    for operator, clean, spoilt in [
        ("spectral_filter", [good], [bad]),
        ("shaped_noise", [good], [bad]),
        ("add_noise", [good, good], [bad, good]),
        ("add_noise", [good, good], [good, bad]),
    ]:
        results = []
        for scales in (clean, spoilt):
            args, kwargs = arguments(operator, planes.shape, planes=planes, weight=weight, scales=scales)
            results.append(apply(operator, args, kwargs)[0])
        assert torch.equal(results[0][OTHERS], results[1][OTHERS])
        assert not torch.isfinite(results[1][2]).any()


# Planes of both layouts that the kernels have, one plane a vector and one plane a lane; enough of them for several
# threads and for bundles that are not full.
@pytest.fixture(params=[(120, 16, 20), (301, 9, 14)], ids=["16x20", "9x14"])
def size(request):
    return request.param


@pytest.fixture(params=["one weight", "a weight for each plane"])
def batch(request, size):
    """apply(operator, dtype, index) on some of a batch of planes, each with its own arguments."""
    own_weights = request.param == "a weight for each plane"
    planes, weight = torch.randn(size), random_weight(*(size if own_weights else size[1:]))
    scales, keys = (torch.rand(size[0]), torch.rand(size[0])), sagd.split(KEY, size[0])

    def run(operator, dtype, index):
        chosen = arguments(
            operator,
            (len(index), *size[1:]),
            dtype,
            planes=planes[index].to(dtype),
            weight=(weight[index] if own_weights else weight).to(weight_dtype(dtype)),
            key=keys[index],
            scales=[scale[index] for scale in scales],
        )
        return apply(operator, *chosen)

    return run


@pytest.mark.parametrize("part", [slice(1), slice(7, 9), slice(45, None), slice(None, None, 3)], ids=str)
@each_dtype
@each_operator
def test_a_plane_does_not_depend_on_its_batch(operator, dtype, part, batch, size):
    every = torch.arange(size[0])
    together = planes_of(batch(operator, dtype, every))
    for index in (every[part], every[part].flip(0)):
        assert_same_bits(planes_of(batch(operator, dtype, index)), [result[index] for result in together])


@each_operator
def test_results_do_not_depend_on_the_number_of_threads(operator, batch, size):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(batch(operator, torch.float32, torch.arange(size[0])))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert_same_bits(result, results[0])  # the loss, too


def test_scales_may_be_numbers():
    planes, weight = torch.randn(2, 3, 8, 6), random_weight(8, 6)
    half, two = torch.tensor(0.5), torch.tensor(2.0)
    assert torch.equal(sagd.spectral_filter(planes, weight, 0.5), sagd.spectral_filter(planes, weight, half))
    assert torch.equal(sagd.shaped_noise(KEY, (3, 8, 6), weight, 2), sagd.shaped_noise(KEY, (3, 8, 6), weight, two))
    tensors = sagd.add_noise(planes, KEY, weight, two, half)
    for numbers in ((2, 0.5), (np.int64(2), np.float32(0.5)), (np.float16(2), np.float64(0.5))):
        result = sagd.add_noise(planes, KEY, weight, *numbers)
        assert all(torch.equal(a, b) for a, b in zip(result, tensors, strict=True))

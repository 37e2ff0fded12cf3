"""The random stream: the numbers that the contract writes down, the same in every batch and on any number of threads.

Statistical tests have fixed seeds. Each looks at the smallest of its p-values, times their number, and asks for more
than 1e-6: on a correct stream, a fresh seed would raise a false alarm once in a million runs.
"""

import math

import numpy as np
import pytest
import torch
from conftest import DTYPES, random_weight, relative_error, weight_dtype
from hypothesis import given, settings
from hypothesis import strategies as st

import sagd_kernels as sagd
from sagd_kernels import random, reference

FALSE_ALARM = 1e-6
LARGEST = 2**64 - 1


# ---- the contract, read once more: integers of any length, one bin at a time


def philox_by_the_book(counter: int, seed: int) -> list[int]:
    c = [counter >> 32 * i & 0xFFFFFFFF for i in range(4)]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p, q = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [q >> 32 ^ c[1] ^ k[0], q & 0xFFFFFFFF, p >> 32 ^ c[3] ^ k[1], p & 0xFFFFFFFF]
        k = [k[0] + 0x9E3779B9 & 0xFFFFFFFF, k[1] + 0xBB67AE85 & 0xFFFFFFFF]
    return c


def normals_by_the_book(words: list[int]) -> list[float]:
    g = []
    for r, turn in (words[:2], words[2:]):
        radius = math.sqrt(-2 * math.log(r * 2.0**-32 + 2.0**-33))
        g += [radius * math.cos(2 * math.pi * turn / 2**32), radius * math.sin(2 * math.pi * turn / 2**32)]
    return g


def noise_by_the_book(seed: int, offset: int, plane: int, height: int, width: int) -> torch.Tensor:
    """White noise on one plane."""
    spectrum = np.full((height, width), np.nan, dtype=complex)

    def put(k, l, value):
        spectrum[k % height, l % width] = value
        spectrum[-k % height, -l % width] = value.conjugate()

    rows, columns = height // 2 + 1, width // 2 + 1
    for k in range(rows):
        for l in range(columns):
            counter = offset + plane * rows * columns + k * columns + l
            g = normals_by_the_book(philox_by_the_book(counter, seed))
            own_negative = [2 * k % height == 0, 2 * l % width == 0]
            if all(own_negative):
                put(k, l, complex(math.sqrt(height * width) * g[0]))
            else:
                put(k, l, math.sqrt(height * width / 2) * complex(g[0], g[1]))
                if not any(own_negative):
                    put(k, -l, math.sqrt(height * width / 2) * complex(g[2], g[3]))
    noise = np.fft.ifft2(spectrum)
    assert abs(noise.imag).max() < 1e-12
    return torch.from_numpy(noise.real.copy())


def make_key(seed: int, offset: int) -> torch.Tensor:
    return torch.tensor([seed, offset], dtype=torch.uint64)


def ones(height: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(height, width // 2 + 1, dtype=dtype)


# ---- the numbers


@pytest.mark.parametrize(
    ("counter", "seed", "words"),
    [
        (0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**128 - 1, LARGEST, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (0x0370734413198A2E85A308D3243F6A88, 0x299F31D0A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, seed, words):
    assert [f"{word:08x}" for word in philox_by_the_book(counter, seed)] == words.split()
    block = random.philox(make_key(seed, 0), torch.tensor(0), origin=counter)
    assert [f"{word:08x}" for word in block.tolist()] == words.split()


@pytest.mark.parametrize("seed", [0, 1, 2**32, 0x299F31D0A4093822, LARGEST])
@pytest.mark.parametrize("offset", [0, 2**32 - 3, 2**63 - 3, 2**64 - 2**32 - 3, 2**64 - 3, LARGEST])
@pytest.mark.parametrize("first", [0, 2**32 - 2, 2**62])
def test_philox_carries_its_counter_through_all_words(seed, offset, first):
    counters = range(first, first + 6)
    for origin in (0, 2**32 - 1, 2**96 - 2**64):
        blocks = random.philox(make_key(seed, offset), torch.tensor(counters), origin)
        assert blocks.tolist() == [philox_by_the_book(offset + origin + counter, seed) for counter in counters]


STRADDLES = {
    "nothing": (1, 0, 0),
    "2^32": (0x299F31D0A4093822, 2**32 - 190, 0),
    "2^64": (LARGEST, 2**64 - 190, 0),
    "2^96": (7, LARGEST, 2**63 - 2),  # as far as a uint64 offset and an int64 plane_offset reach
    "2^32 in plane_offset": (3, 2**31, 2**31 // 20),
    "2^64 in plane_offset": (5, LARGEST, 2**62),
}


@pytest.mark.parametrize("size", [(8, 7), (7, 8), (1, 41), (40, 1), (17, 16), (1, 300)], ids=str)
@pytest.mark.parametrize("straddles", STRADDLES)
def test_noise_follows_the_contract_where_counters_straddle(straddles, size):
    seed, offset, plane_offset = STRADDLES[straddles]
    planes = 18  # more than a kernel takes at a time
    expected = torch.stack([noise_by_the_book(seed, offset, plane_offset + p, *size) for p in range(planes)])
    key = make_key(seed, offset)
    defined = reference.shaped_noise(key, expected.shape, ones(*size), plane_offset=plane_offset)
    assert relative_error(defined, expected) < 1e-13
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-13)):
        noise = sagd.shaped_noise(key, expected.shape, ones(*size, dtype), plane_offset=plane_offset)
        assert noise.dtype == dtype
        assert relative_error(noise, expected) < tolerance


# Where a polynomial or a change of branch would go wrong: the ends of (0, 1), both sides of sqrt(1/2) and of 1/2;
# whole quarters of a turn, half-way between them, and just short of one turn. With a block of seed 0 that draws each.
RADIUS_EDGES = {
    0: 5145262111, 0xFFFFFFFF: 9339129252, 0xB504F333: 1060248305, 0xB504F334: 8638956620, 0x7FFFFFFF: 3357824422,
    0x80000000: 2047882832,
}  # fmt: skip
ANGLE_EDGES = {
    0: 6144536686, 0x1FFFFFFF: 513177176, 0x20000000: 2623993270, 0x40000000: 4003711056, 0x60000000: 4534870560,
    0x80000000: 9751552325, 0xC0000000: 417012996, 0xE0000000: 4614439714, 0xFFFFFFFF: 1538303059,
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-7), (torch.float64, 1e-14)], ids=str)
@pytest.mark.parametrize("edges", [RADIUS_EDGES, ANGLE_EDGES], ids=["radius", "angle"])
def test_box_muller_at_its_edges(edges, dtype, tolerance):
    for word, counter in edges.items():
        words = philox_by_the_book(counter, 0)
        assert words[edges is ANGLE_EDGES] == word
        # the second orbit of a row of three, the first one silenced: F(0, 1) = sqrt(3 / 2) (g0 + i g1)
        noise = sagd.shaped_noise(make_key(0, counter - 1), (1, 3), torch.tensor([[0, 1]], dtype=dtype))
        normals = torch.view_as_real(torch.fft.rfft(noise.double())[0, 1]) / 1.5**0.5
        expected = torch.tensor(normals_by_the_book(words)[:2], dtype=torch.float64)
        assert relative_error(normals, expected) < tolerance, f"word {word:08x}"


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)) | st.tuples(st.integers(1, 2), st.integers(1, 1500)),
    batch=st.lists(st.integers(1, 3), max_size=3),
    seed=st.integers(0, LARGEST),
    offset=st.integers(0, LARGEST),
    plane_offset=st.integers(0, 2**31),
)
def test_noise_equals_the_reference_on_any_size(size, batch, seed, offset, plane_offset):
    size, key = [*batch, *size], make_key(seed, offset)
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-13)):
        weight = random_weight(*size[-2:], dtype=dtype)
        noise = sagd.shaped_noise(key, size, weight, plane_offset=plane_offset)
        expected = reference.shaped_noise(key, size, weight, plane_offset=plane_offset)
        assert relative_error(noise, expected) < tolerance


@pytest.mark.parametrize("size", [(2, 3, 28, 28), (5, 27, 31)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_noise_draws_the_noise_of_shaped_noise(dtype, size, key):
    weight = random_weight(*size[-2:], dtype=weight_dtype(dtype))
    planes, scale = torch.randn(size).to(dtype), torch.rand(size[0])
    _, noise = sagd.add_noise(planes, key, weight, scale, scale, plane_offset=3)
    assert torch.equal(noise, sagd.shaped_noise(key, size, weight, plane_offset=3, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_noise_of_half_precision_is_that_of_float32_rounded(dtype, key):
    weight = random_weight(28, 27)
    noise = sagd.shaped_noise(key, (4, 28, 27), weight, dtype=dtype)
    assert torch.equal(noise, sagd.shaped_noise(key, (4, 28, 27), weight).to(dtype))


# ---- who shares the batch does not matter


# Planes of both layouts that the kernels have, one plane a vector and one plane a lane; enough for several threads.
@pytest.fixture(params=[(16, 20), (9, 14)], ids=str)
def size(request):
    return request.param


@pytest.fixture
def noise(key, size):
    return sagd.shaped_noise(key, (150, *size), random_weight(*size))


@pytest.mark.parametrize("parts", [(1, 149), (75, 75), (50, 1, 99)], ids=str)
def test_noise_does_not_depend_on_the_batch_split(parts, noise, key, size):
    first, drawn = 0, []
    for planes in parts:  # the ranks of a distributed run, say
        drawn.append(sagd.shaped_noise(key, (planes, *size), random_weight(*size), plane_offset=first))
        first += planes
    assert torch.equal(torch.cat(drawn), noise)


def test_noise_does_not_depend_on_the_order_of_the_planes(noise, key, size):
    for plane in (149, 0, 77, 31):
        alone = sagd.shaped_noise(key, size, random_weight(*size), plane_offset=plane)
        assert torch.equal(alone, noise[plane])


def test_noise_does_not_depend_on_how_the_batch_is_shaped(noise, key, size):
    reshaped = sagd.shaped_noise(key, (5, 6, 5, *size), random_weight(*size))
    assert torch.equal(reshaped.flatten(0, 2), noise)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_noise_does_not_depend_on_the_number_of_threads(threads, noise, key, size):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        again = sagd.shaped_noise(key, noise.shape, random_weight(*size))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(again, noise)


@pytest.mark.parametrize("operator", ["shaped_noise", "add_noise"])
@pytest.mark.parametrize("size", [(7, 3, 9, 8), (2, 3, 20, 31)], ids=str)
def test_each_key_of_a_batch_numbers_its_own_planes(size, operator, key):
    samples, channels = size[:2]
    weight, planes = random_weight(*size), torch.randn(size)

    def draw(keys, planes, weight):
        if operator == "shaped_noise":
            return sagd.shaped_noise(keys, planes.shape, weight, plane_offset=11)
        scale = torch.ones(())
        return torch.stack(sagd.add_noise(planes, keys, weight, scale, scale, plane_offset=11), -3)

    per_sample = sagd.split(key, samples)
    expected = [draw(per_sample[n], planes[n], weight[n]) for n in range(samples)]
    assert torch.equal(draw(per_sample, planes, weight), torch.stack(expected))
    per_plane = sagd.split(per_sample, channels).movedim(0, 1)  # not contiguous
    expected = [draw(per_plane[n, c], planes[n, c], weight[n, c]) for n in range(samples) for c in range(channels)]
    assert torch.equal(draw(per_plane, planes, weight), torch.stack(expected).unflatten(0, size[:2]))
    one_for_all = draw(key.expand(samples, 2), planes, weight)
    assert torch.equal(one_for_all[-1], draw(key, planes[-1], weight[-1]))


# ---- keys


def test_key_is_seed_and_offset():
    assert sagd.key(5).tolist() == [5, 0] and sagd.key(5).dtype == torch.uint64
    assert sagd.key(-1).tolist() == [LARGEST, 0] and sagd.key(2**64 + 3).tolist() == [3, 0]


def test_fold_in_and_split_agree(key):
    assert torch.equal(sagd.split(key, 5), torch.stack([sagd.fold_in(key, i) for i in range(5)]))
    assert torch.equal(sagd.split(key, 5)[:2], sagd.split(key))
    keys = sagd.split(key, 6).view(2, 3, 2)
    expected = torch.stack([torch.stack([sagd.fold_in(keys[i, j], 4) for j in range(3)]) for i in range(2)])
    assert torch.equal(sagd.fold_in(keys, 4), expected)
    assert torch.equal(sagd.split(keys, 5)[4], expected)
    steps = torch.tensor([[9], [4]])
    assert torch.equal(sagd.fold_in(keys, steps)[1], expected[1])
    assert torch.equal(sagd.fold_in(keys, steps)[0], sagd.fold_in(keys[0], 9))


def test_integers_of_numpy_and_torch_are_integers(key):
    for three in (np.int64(3), np.uint8(3), torch.tensor(3), torch.tensor(3, dtype=torch.int32)):
        assert torch.equal(sagd.key(three), sagd.key(3))
        assert torch.equal(sagd.fold_in(key, three), sagd.fold_in(key, 3))
        assert torch.equal(sagd.split(key, three), sagd.split(key, 3))


@pytest.mark.parametrize(("seed", "offset", "data"), [(5, 0, 3), (LARGEST, LARGEST, 2**62), (9, 2**32 - 1, 1)])
def test_fold_in_is_a_block_of_the_stream(seed, offset, data):
    r = philox_by_the_book((offset + data) % 2**64, seed)  # torch's functions drop this carry
    assert sagd.fold_in(make_key(seed, offset), data).tolist() == [r[0] | r[1] << 32, r[2] | r[3] << 32]


def test_keys_have_the_same_children_on_devices_without_kernels(key):
    parents = torch.cat([sagd.split(key, 6), make_key(LARGEST, LARGEST)[None]]).view(7, 1, 2).expand(7, 2, 2)
    children = torch.ops.sagd._block_keys(parents)
    assert torch.equal(children, random.block_keys(parents)) and children.is_contiguous()
    assert torch.equal(torch.ops.sagd._block_keys(parents.mT.contiguous().mT), children)
    assert torch.ops.sagd._block_keys(parents[:0]).shape == (0, 2, 2)
    with pytest.raises(RuntimeError, match=r"key: expected a uint64 tensor \[..., 2\], got torch.uint64 \[7, 2, 1\]"):
        torch.ops.sagd._block_keys(parents[..., :1])


def test_keys_agree_with_torch(key):
    torch_random = pytest.importorskip("torch.func._random", reason="this torch has no torch.func._random")
    try:
        torch_random.split(torch_random.key(0))
    except NotImplementedError:
        pytest.skip("the torch.func._random of this torch has no CPU implementation")
    assert torch.equal(sagd.key(5), torch_random.key(5))
    for keys in (sagd.key(5), key, make_key(LARGEST, LARGEST), sagd.split(key, 6).view(3, 2, 2)):
        assert torch.equal(sagd.split(keys, 4), torch_random.split(keys, 4))
        for data in (0, 1, 12345, 2**40):
            assert torch.equal(sagd.fold_in(keys, data), torch_random.fold_in(keys, data))


def test_next_key_draws_128_random_bits():
    keys = torch.stack([sagd.next_key() for _ in range(2000)]).view(torch.int64)
    ones = (keys[..., None] >> torch.arange(64) & 1).sum(0)
    assert_no_alarm(normal_p((ones - 1000) / 500**0.5))


def test_next_key_is_governed_by_the_generator():
    torch.manual_seed(3)
    drawn = [sagd.next_key() for _ in range(3)]
    torch.manual_seed(3)
    again = [sagd.next_key() for _ in range(3)]
    assert all(map(torch.equal, drawn, again))
    assert len({tuple(k.tolist()) for k in drawn}) == 3
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    own = [sagd.next_key(generators[0]), sagd.next_key(generator=generators[1], device="cpu")]
    assert torch.equal(*own)
    assert torch.equal(own[0], drawn[0])  # the default generator is a generator like any other
    assert torch.equal(sagd.next_key(), again[0]) is False
    assert own[0].dtype == torch.uint64 and own[0].shape == (2,)


def test_shaped_noise_module_draws_as_its_generator_says():
    x, weight = torch.randn(2, 3, 8, 8), random_weight(8, 8)
    expected = sagd.shaped_noise(sagd.next_key(torch.Generator().manual_seed(3)), x.shape, weight)
    assert torch.equal(sagd.ShapedNoise(weight, torch.Generator().manual_seed(3))(x), expected)
    torch.manual_seed(3)
    module = sagd.ShapedNoise(weight)
    assert torch.equal(module(x), expected)
    assert not torch.equal(module(x), expected)


def test_shaped_noise_module_holds_a_copy_of_a_tensor_and_trains_a_parameter():
    weight = random_weight(8, 8)
    module = sagd.ShapedNoise(weight)
    weight.zero_()
    assert module.weight.min() > 0 and not list(module.parameters())
    learned = sagd.ShapedNoise(torch.nn.Parameter(random_weight(8, 8))).half()
    learned(torch.randn(2, 8, 8)).square().sum().backward()
    assert [name for name, _ in learned.named_parameters()] == ["weight"]
    assert learned.weight.dtype == torch.float32 and (learned.weight.grad > 0).all()
    with pytest.raises(ValueError, match=r"weight: expected a nn\.Parameter, or a tensor without gradient"):
        sagd.ShapedNoise(torch.nn.Parameter(random_weight(8, 8)) * 2)
    with pytest.raises(TypeError, match="weight: expected a tensor, got ndarray"):
        sagd.ShapedNoise(np.ones((8, 5), np.float32))


# ---- statistics


def chi_square_p(x: torch.Tensor, degrees: float) -> torch.Tensor:
    """Two-sided p-values of chi-square statistics."""
    half = torch.full_like(x, degrees / 2)
    return 2 * torch.minimum(torch.special.gammainc(half, x / 2), torch.special.gammaincc(half, x / 2))


def normal_p(z: torch.Tensor) -> torch.Tensor:
    return torch.special.erfc(z.abs() / math.sqrt(2))


def assert_no_alarm(p: torch.Tensor) -> None:
    assert p.min() * p.numel() > FALSE_ALARM, f"smallest of {p.numel()} p-values: {p.min():.1e}"


def test_the_statistics_would_see_a_fault_of_a_few_percent():
    draws = torch.randn(20000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_no_alarm(chi_square_p(draws.square().sum()[None], 20000))
    for factor in (0.95, 1.05):
        with pytest.raises(AssertionError, match="smallest of 1 p-values"):
            assert_no_alarm(chi_square_p((factor * draws).square().sum()[None], 20000))


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (1, 8), (1, 9), (9, 1), (2, 2), (5, 6)], ids=str)
def test_power_of_every_bin_is_chi_square(size, key):
    planes, (height, width) = 20000, size
    noise = sagd.shaped_noise(key, (planes, *size), ones(*size)).double()
    spectrum = torch.fft.fft2(noise, norm="ortho")[..., : width // 2 + 1]
    k, l = torch.arange(height)[:, None], torch.arange(width // 2 + 1)
    real = (2 * k % height == 0) & (2 * l % width == 0)  # DC and Nyquist: real, one degree of freedom a plane
    power = spectrum.abs().square().sum(0)
    p = torch.where(real, chi_square_p(power, planes), chi_square_p(2 * power, 2 * planes))
    assert_no_alarm(p)
    # real and imaginary part apart, each with half the power and no correlation
    generic = spectrum[:, ~real]
    if generic.numel():
        assert_no_alarm(chi_square_p(2 * torch.stack([generic.real, generic.imag]).square().sum(1), planes))
        assert_no_alarm(normal_p(2 * (generic.real * generic.imag).sum(0) / planes**0.5))
    assert_no_alarm(normal_p(spectrum.real.sum(0) / (planes * torch.where(real, 1.0, 0.5)).sqrt()))


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (1, 16)], ids=str)
def test_pixels_are_white(size, key):
    planes = 20000
    pixels = sagd.shaped_noise(key, (planes, *size), ones(*size)).double().flatten(1)
    z = (pixels.mT @ pixels - planes * torch.eye(pixels.shape[1])) / planes**0.5
    off_diagonal = torch.triu(torch.ones_like(z), 1) > 0
    assert_no_alarm(normal_p(z[off_diagonal]))
    assert_no_alarm(normal_p(z.diagonal() / 2**0.5))
    assert_no_alarm(chi_square_p(z[off_diagonal].square().sum()[None], int(off_diagonal.sum())))


def test_planes_keys_and_neighbouring_seeds_are_independent(key):
    size, together = (64, 64), []
    together += sagd.shaped_noise(key, (40, *size), ones(*size)).unbind()
    together += [sagd.shaped_noise(k, size, ones(*size)) for k in sagd.split(key, 20)]
    together += [sagd.shaped_noise(sagd.key(seed), size, ones(*size)) for seed in range(20)]
    draws = torch.stack(together).double().flatten(1)
    z = (draws @ draws.mT / draws.shape[1] ** 0.5)[torch.triu(torch.ones(80, 80), 1) > 0]
    assert_no_alarm(normal_p(z))
    assert_no_alarm(chi_square_p(z.square().sum()[None], z.numel()))


def test_normals_are_normal_far_into_the_tails(key):
    planes, size = 1000, (64, 64)
    spectrum = torch.fft.rfft2(sagd.shaped_noise(key, (planes, *size), ones(*size)), norm="ortho")
    generic = 2**0.5 * spectrum[:, 1:32, 1:32].flatten()
    mirrored = 2**0.5 * spectrum[:, 33:, 1:32].flatten()
    for g in (generic.real, generic.imag, mirrored.real, mirrored.imag):
        g, n = g.double(), g.numel()
        assert_no_alarm(normal_p(g.sum()[None] / n**0.5))
        assert_no_alarm(normal_p((g**4 - 3).sum()[None] / (96 * n) ** 0.5))  # kurtosis; Var g^4 = 96
        # 64 bins of equal probability
        counts = torch.histc(torch.special.ndtr(g), 64, 0, 1)
        assert_no_alarm(chi_square_p(((counts - n / 64).square() / (n / 64)).sum()[None], 63))
        for sigmas in (3, 4, 4.5):
            for count in ((g > sigmas).sum(), (g < -sigmas).sum()):
                expected = n * math.erfc(sigmas / 2**0.5) / 2
                assert_no_alarm(poisson_p(int(count), expected))
    largest = torch.cat([generic.real, generic.imag, mirrored.real, mirrored.imag]).abs().max()
    assert 4.7 < largest < 6.77  # 4 million draws: below 4.7 with probability 3e-5; sqrt(-2 ln 2^-33) is the end


def poisson_p(count: int, mean: float) -> torch.Tensor:
    """Two-sided p-value of a Poisson count."""
    mean, count = torch.tensor([mean], dtype=torch.float64), torch.tensor([float(count)], dtype=torch.float64)
    at_most = torch.special.gammaincc(count + 1, mean)
    at_least = torch.special.gammainc(count, mean) if count > 0 else torch.ones_like(mean)
    return 2 * torch.minimum(at_most, at_least)

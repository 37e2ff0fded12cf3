"""Interception: every matching normal draw of torch is shaped, and nothing else is, there and then and nowhere else."""

import subprocess
import sys
import threading
from collections import Counter
from functools import partial

import pytest
import torch
from gaussian_data import assert_spectrum
from torch import nn, randn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from sagd_kernels import spectral_filter, weights
from sagd_kernels.integrations import intercept

WEIGHT = weights.power_law(8, 6, -1.0)
STEEPER = weights.power_law(8, 6, -2.0)
SIZE = (3, 2, 8, 6)
X = torch.zeros(SIZE)


def seeded(draw, *args):
    torch.manual_seed(5)
    return draw(*args)


def assert_shaped(values, white, weight=WEIGHT):
    """The values are this white draw filtered, and the comparison would not accept the white draw."""
    expected = spectral_filter(white, weight.double() if white.dtype == torch.float64 else weight)
    torch.testing.assert_close(values, expected)
    assert (white - expected).norm() > 0.2 * white.norm()


# ---- what is shaped

DRAWS = {
    "numbers": lambda: torch.randn(*SIZE),
    "tuple": lambda: torch.randn(SIZE),
    "keyword": lambda: torch.randn(size=SIZE),
    "imported by name": lambda: randn(SIZE),
    "float64": lambda: torch.randn(SIZE, dtype=torch.float64),
    "bfloat16": lambda: torch.randn(SIZE, dtype=torch.bfloat16),
    "float16": lambda: torch.randn(SIZE, dtype=torch.float16),
    "generator": lambda: torch.randn(SIZE, generator=torch.Generator().manual_seed(7)),
    "out": lambda: torch.randn(SIZE, out=torch.empty(SIZE)),
    "odd width": lambda: torch.randn(3, 2, 8, 7),
    "five dimensions": lambda: torch.randn(2, *SIZE),
    "like": lambda: torch.randn_like(X),
    "like, channels last": lambda: torch.randn_like(X.to(memory_format=torch.channels_last)),
    "like, another dtype": lambda: torch.randn_like(X.int(), dtype=torch.float64),
    "normal_": lambda: torch.empty(SIZE).normal_(),
    "normal_ with a generator": lambda: torch.empty(SIZE).normal_(generator=torch.Generator().manual_seed(7)),
    "nn.init.normal_": lambda: nn.init.normal_(torch.empty(SIZE)),
    "normal": lambda: torch.normal(0.0, 1.0, SIZE),
    "normal by keyword": lambda: torch.normal(mean=0.0, std=1.0, size=SIZE),
    "inference mode": lambda: torch.inference_mode()(torch.randn_like)(X),
    "vmap": lambda: torch.vmap(torch.randn_like, randomness="different")(torch.zeros(2, *SIZE)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_is_the_white_draw_filtered(name):
    white = seeded(DRAWS[name])
    with intercept(WEIGHT) as draws:
        values = seeded(DRAWS[name])
    assert_shaped(values, white)
    assert values.stride() == white.stride()
    assert draws.shaped.total() == 1 and not draws.passed_by


@pytest.mark.parametrize(
    "draw",
    [
        lambda mean, std: torch.empty(SIZE).normal_(mean, std),
        lambda mean, std: torch.empty(SIZE).normal_(std=std, mean=mean),
        lambda mean, std: torch.normal(mean, std, SIZE),
        lambda mean, std: torch.normal(mean=mean, std=std, size=SIZE),
    ],
)
def test_mean_and_standard_deviation_stay(draw):
    white = seeded(draw, 0.0, 1.0)
    with intercept(WEIGHT):
        values = seeded(draw, 3.0, 2.0)
    assert_shaped((values - 3) / 2, white)


def test_a_part_is_filled_in_place():
    whole = torch.zeros(3, 4, 8, 6)
    white = seeded(torch.zeros(3, 4, 8, 6)[:, ::2].normal_).clone()
    with intercept(WEIGHT):
        seeded(whole[:, ::2].normal_)
    assert_shaped(whole[:, ::2], white)
    assert not whole[:, 1::2].any()


@pytest.mark.parametrize("weight", [WEIGHT, weights.omit_band(8, 6, 0.2, 0.3) + 1e-3], ids=["power law", "low band"])
def test_noise_has_the_spectrum_of_the_weight(weight):
    with intercept(weight):
        noise = torch.randn(4000, 1, 8, 6)
    assert_spectrum(noise, weight)
    with pytest.raises(AssertionError):
        assert_spectrum(torch.randn(4000, 1, 8, 6), weight)


def test_one_weight_for_each_channel():
    weight = torch.stack([WEIGHT, STEEPER])
    white = seeded(torch.randn, SIZE)
    with intercept(weight) as draws:
        assert_shaped(seeded(torch.randn, SIZE), white, weight)
        torch.randn(3, 4, 8, 6)
    assert [why for _, why in draws.passed_by] == ["size"]


def test_all_other_random_numbers_are_those_of_the_white_run():
    def run():
        noise, generator = torch.randn(SIZE), torch.Generator().manual_seed(1)
        timesteps = torch.randint(1000, (5,))
        torch.randn(SIZE, generator=generator)
        return noise, timesteps, torch.rand(5, generator=generator), torch.get_rng_state()

    white = seeded(run)
    with intercept(WEIGHT):
        shaped = seeded(run)
    assert_shaped(shaped[0], white[0])
    assert all(torch.equal(a, b) for a, b in zip(shaped[1:], white[1:], strict=True))


def test_diffusers_randn_tensor_with_a_generator_for_each_sample():
    randn_tensor = pytest.importorskip("diffusers.utils.torch_utils", reason="needs diffusers").randn_tensor

    def draw():
        return randn_tensor(SIZE, generator=[torch.Generator().manual_seed(i) for i in range(3)])

    white = draw()
    with intercept(WEIGHT) as draws:
        assert_shaped(draw(), white)
    assert draws.shaped.total() == 3


def test_fewer_batch_dimensions_on_request():
    white = seeded(torch.randn, 8, 6)
    with intercept(WEIGHT, min_batch_dims=0):
        assert_shaped(seeded(torch.randn, 8, 6), white)


# ---- what is passed by

PASSED_BY = {
    "another plane": ("size", lambda: torch.randn(3, 2, 8, 8)),
    "transposed plane": ("size", lambda: torch.randn(3, 2, 6, 8)),
    "flat": ("size", lambda: torch.randn(3, 2 * 8 * 6)),
    "a matrix of the plane's size": ("size", lambda: torch.randn(8, 6)),
    "a batch of such": ("size", lambda: torch.randn(3, 8, 6)),
    "a number": ("size", lambda: torch.randn(())),
    "complex": ("dtype", lambda: torch.randn(SIZE, dtype=torch.complex64)),
    "a parameter": ("parameter", lambda: nn.init.normal_(nn.Parameter(torch.empty(SIZE))).detach()),
    "normal with a tensor": ("mean or std is a tensor", lambda: torch.normal(X, 1.0)),
    "a distribution": ("mean or std is a tensor", lambda: torch.distributions.Normal(X, X + 1).sample()),
}


@pytest.mark.parametrize("name", PASSED_BY)
def test_passed_by(name):
    why, draw = PASSED_BY[name]
    white = seeded(draw)
    with intercept(WEIGHT) as draws:
        torch.randn(SIZE)
        assert torch.equal(seeded(draw), white)
    assert [reason for _, reason in draws.passed_by] == [why]
    assert draws.shaped.total() == 1


def test_other_distributions_are_not_looked_at():
    with intercept(WEIGHT) as draws:
        torch.randn(SIZE), torch.rand(SIZE), torch.rand_like(X), torch.bernoulli(X), nn.functional.dropout(X)
    assert draws.shaped.total() == 1 and not draws.passed_by


def test_narrowed_by_a_condition():
    with intercept(WEIGHT, where=lambda draw: draw.size[1] == 2 and draw.function == "randn") as draws:
        torch.randn(SIZE), torch.randn_like(X), torch.randn(3, 1, 8, 6)
    assert draws.shaped.total() == 1
    assert Counter(why for _, why in draws.passed_by.elements()) == {"where": 2}


def test_counts_and_their_printed_form():
    with intercept(WEIGHT) as draws:
        for _ in range(3):
            torch.randn_like(X)
        torch.randn(SIZE), torch.randn(4), torch.randn(4)
    assert str(draws).splitlines() == [
        "shaped 4 draws, passed by 2",
        "  shaped 3: randn_like [3, 2, 8, 6] torch.float32 cpu",
        "  shaped 1: randn [3, 2, 8, 6] torch.float32 cpu",
        "  passed by 2 (size): randn [4] torch.float32 cpu",
    ]


def test_a_block_that_shapes_nothing_warns():
    expected = r"no draw was shaped.*\[\.\.\., 8, 6 or 7\](.|\n)*passed by 1 \(size\): randn \[3, 2, 9, 9\]"
    with pytest.warns(UserWarning, match=expected), intercept(WEIGHT):
        torch.randn(3, 2, 9, 9)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(8), r"weight: expected float32 or float64 \[..., H, W//2\+1\], got torch.float32 \[8\]"),
        (torch.ones(8, 4).half(), r"weight: expected float32 or float64 .*, got torch.float16 \[8, 4\]"),
        (torch.ones(8, 0), r"weight: expected .*, got torch.float32 \[8, 0\]"),
        (-WEIGHT, "weight: expected finite values >= 0, got -"),
        (WEIGHT / 0, "weight: expected finite values >= 0, got inf"),
        (WEIGHT.clone().requires_grad_(), r"weight: expected a constant; pass weight.detach\(\)"),
    ],
)
def test_no_such_weight(weight, message):
    with pytest.raises(ValueError, match=message), intercept(weight):
        pass


def test_a_weight_that_is_no_tensor():
    with pytest.raises(TypeError, match="weight: expected a tensor, got list"), intercept([1.0]):
        pass


def test_no_other_library_is_imported():
    code = (
        "import sys, sagd_kernels.integrations.k_diffusion as k; print(*{'diffusers', 'k_diffusion'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split() == []


# ---- nesting, and what is left behind


def test_the_innermost_block_that_matches_shapes():
    other = weights.power_law(4, 4, -1.0)
    white = seeded(torch.randn, SIZE)
    white_of_other_size = seeded(torch.randn, 3, 2, 4, 4)
    with intercept(other) as outermost, intercept(STEEPER) as middle:
        with intercept(WEIGHT) as innermost:
            assert_shaped(seeded(torch.randn, SIZE), white)
            assert_shaped(seeded(torch.randn, 3, 2, 4, 4), white_of_other_size, other)
        assert innermost.shaped.total() == 1 and innermost.passed_by.total() == 1
        assert middle.shaped.total() == 0 and middle.passed_by.total() == 1
        assert outermost.shaped.total() == 1 and outermost.passed_by.total() == 0
        assert_shaped(seeded(torch.randn, SIZE), white, STEEPER)
        assert middle.shaped.total() == 1 and innermost.shaped.total() == 1


def test_other_modes_in_between_still_act():
    class Record(TorchFunctionMode):
        seen = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.seen += function is torch.randn
            return function(*args, **(kwargs or {}))

    white = seeded(torch.randn, SIZE)
    with Record() as record, torch.device("meta"), intercept(WEIGHT):
        assert_shaped(seeded(partial(torch.randn, SIZE, device="cpu")), white)
        assert torch.randn(SIZE).device.type == "meta"
    assert record.seen == 2


@pytest.mark.parametrize("fails", ["the block", "the draw", "the condition"])
def test_nothing_is_left_behind_by_an_exception(fails):
    def condition(draw):
        raise RuntimeError("no")

    white = seeded(torch.randn, SIZE)
    with intercept(STEEPER) as outer:
        with pytest.raises(RuntimeError), intercept(WEIGHT, where=condition if fails == "the condition" else None):
            if fails == "the draw":
                torch.randn(-1, 2, 8, 6)
            torch.randn(SIZE)
            raise RuntimeError("no")
        assert_shaped(seeded(torch.randn, SIZE), white, STEEPER)
        assert outer.shaped.total() == 1
    assert torch.equal(seeded(torch.randn, SIZE), white)
    assert torch._C._len_torch_function_stack() == 0


def test_as_a_decorator_each_call_is_a_block():
    @intercept(WEIGHT)
    def draw(again):
        return torch.randn(SIZE) if not again else draw(False)

    white = seeded(torch.randn, SIZE)
    assert_shaped(seeded(draw, False), white)
    with pytest.warns(UserWarning, match="no draw was shaped"):  # of the outer of the two
        assert_shaped(seeded(draw, True), white)


# ---- threads and processes


def test_other_threads_draw_white_noise():
    drawn = []
    white = torch.randn(SIZE, generator=torch.Generator().manual_seed(1))
    with intercept(WEIGHT) as draws:
        thread = threading.Thread(
            target=lambda: drawn.append(torch.randn(SIZE, generator=torch.Generator().manual_seed(1)))
        )
        thread.start()
        thread.join()
        torch.randn(SIZE)
    assert torch.equal(drawn[0], white)
    assert draws.shaped.total() == 1


def test_threads_shape_with_their_own_weights():
    size, rounds = (1, 1, 8, 6), 200
    wrong, counts, ready = [], [], threading.Barrier(2)

    def run(weight, seed):
        generator, again = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
        with intercept(weight) as draws:
            ready.wait()
            noise = [torch.randn(size, generator=generator) for _ in range(rounds)]
        counts.append(draws.shaped.total())
        wrong.extend(not torch.equal(n, spectral_filter(torch.randn(size, generator=again), weight)) for n in noise)

    threads = [threading.Thread(target=run, args=pair) for pair in ((WEIGHT, 1), (STEEPER, 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [rounds, rounds] and len(wrong) == 2 * rounds and not any(wrong)


class NoiseSet(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.randn(SIZE, generator=torch.Generator().manual_seed(index))


def test_data_loader_workers_draw_white_noise():
    """A spawned worker knows nothing of the block; a forked one inherits it."""
    expected = [NoiseSet()[i] for i in range(2)]
    with intercept(WEIGHT) as draws:
        torch.randn(SIZE)
        loaded = [batch[0] for batch in DataLoader(NoiseSet(), num_workers=1, multiprocessing_context="fork")]
    assert all(torch.equal(a, b) for a, b in zip(loaded, expected, strict=True))
    assert draws.shaped.total() == 1


# ---- autograd and torch.compile


def test_a_leaf_stays_a_leaf():
    white = seeded(torch.randn, SIZE)
    with intercept(WEIGHT):
        leaf = seeded(partial(torch.randn, SIZE, requires_grad=True))
    assert_shaped(leaf.detach(), white)
    assert leaf.requires_grad and leaf.is_leaf
    leaf.square().sum().backward()
    torch.testing.assert_close(leaf.grad, 2 * leaf.detach())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_what_a_checkpoint_repeats_is_passed_by(use_reentrant):
    factor = torch.ones(1, requires_grad=True)
    white = seeded(torch.randn, SIZE)

    def noisy(factor):
        return (factor * torch.randn(SIZE)).square().sum()

    with intercept(WEIGHT) as draws:
        seeded(partial(checkpoint, noisy, factor, use_reentrant=use_reentrant)).backward()
        assert_shaped(seeded(torch.randn, SIZE), white)
    assert [why for _, why in draws.passed_by] == ["checkpoint"]
    torch.testing.assert_close(factor.grad, 2 * white.square().sum().view(1))


def test_compiled_code_draws_its_own_noise():
    torch._dynamo.reset()

    def network(x):
        return x + torch.randn(x.shape) + torch.randn_like(x)

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    white = seeded(network, X)
    noise = seeded(torch.randn, SIZE)
    with intercept(WEIGHT) as draws:
        assert torch.equal(seeded(compiled, X), white)
        assert_shaped(seeded(torch.randn, SIZE), noise)
    assert draws.shaped.total() == 1 and not draws.passed_by
    with intercept(WEIGHT) as draws, torch.compiler.set_stance("force_eager"):
        assert_shaped(seeded(compiled, X), white)
    assert draws.shaped.total() == 2


# ---- a trainer of others: MONAI's, which draws its noise inside


def test_monai_trains_and_samples_with_shaped_noise():
    pytest.importorskip("ignite", reason="needs pytorch-ignite")
    monai = pytest.importorskip("monai", reason="needs monai")
    from monai.engines.utils import DiffusionPrepareBatch
    from monai.inferers import DiffusionInferer
    from monai.networks.schedulers import DDPMScheduler

    class Network(nn.Conv2d):
        def forward(self, x, timesteps, context=None):
            return super().forward(x)

    class Loss(nn.MSELoss):
        """Records what the trainer takes for noise."""

        targets = []  # noqa: RUF012

        def forward(self, predicted, noise):
            self.targets.append(noise.clone())
            return super().forward(predicted, noise)

    network, loss = Network(1, 1, 3, padding=1), Loss()
    inferer = DiffusionInferer(DDPMScheduler(num_train_timesteps=20))
    images = [{"image": torch.rand(1, 8, 6), "label": torch.zeros(1)} for _ in range(400)]
    trainer = monai.engines.SupervisedTrainer(
        device="cpu",
        max_epochs=2,
        train_data_loader=DataLoader(images, batch_size=200),
        network=network,
        optimizer=torch.optim.Adam(network.parameters()),
        loss_function=loss,
        inferer=inferer,
        prepare_batch=DiffusionPrepareBatch(num_train_timesteps=20),
    )
    before = network.weight.clone()
    with intercept(WEIGHT) as draws:
        trainer.run()
        start = torch.randn(2, 1, 8, 6)
        inferer.sample(start, network, inferer.scheduler, verbose=False)
    counts = Counter({(draw.function, draw.size[0]): count for draw, count in draws.shaped.items()})
    assert counts == {("randn_like", 200): 4, ("randn", 2): 1 + 19}  # each batch; x_T and all steps but the last
    assert not draws.passed_by
    assert_spectrum(torch.cat(loss.targets), WEIGHT)
    assert not torch.equal(network.weight, before)

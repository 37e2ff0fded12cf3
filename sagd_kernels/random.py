"""Random keys: explicit, splittable state for the operators, in the format of `torch.func._random`.

A key is a uint64 tensor [2] = (seed, offset) of the Philox4x32-10 generator (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011): the seed is Philox's key, the offset the number of the first 128-bit block.
A batch of keys is [..., 2]. The same key gives the same noise on every device, in every batch split and world size.
"""

import operator

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as transforms_active
from torch.compiler import is_compiling

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def key(seed: int, device: torch.device | str | None = None) -> Tensor:
    """The key of an integer seed (taken modulo 2^64), offset 0: uint64 [2] on `device`."""
    return _bits(torch.tensor([_int64("seed", seed), 0], device=device), torch.uint64)


def next_key(generator: torch.Generator | None = None, device: torch.device | str | None = None) -> Tensor:
    """A fresh key drawn from `generator`, or from the default generator of `device`, so `torch.manual_seed` governs it.

    Seed and offset are both random, 128 bits in all. The draw happens on the generator's device and never
    synchronises, so it can be captured in a CUDA graph.
    """
    if generator is None:
        drawn = torch.randint(-(2**63), 2**63 - 1, (2,), device=device)
    else:
        drawn = torch.randint(-(2**63), 2**63 - 1, (2,), generator=generator, device=generator.device).to(device)
    return _bits(drawn, torch.uint64)


def split(key: Tensor, num: int = 2) -> Tensor:
    """`num` independent keys from each key: uint64 [num, *key.shape]."""
    if _int64("num", num) < 1:
        raise ValueError(f"num: expected a positive number of keys, got {num}")
    return fold_in(key, torch.arange(num, device=_checked(key).device).view(-1, *[1] * (key.ndim - 1)))


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """The key derived from `key` and an integer (a step, a rank, a sample), equal to `split(key, data + 1)[data]`.

    `data` may also be an int64 tensor that broadcasts against the key's batch dimensions: one derived key for each.
    """
    block = _bits(_checked(key), torch.int64)
    if not isinstance(data, Tensor):
        step = torch.tensor([0, _int64("data", data)], device=key.device)
    elif data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
        raise TypeError(f"data: expected an int or a tensor of integers, got {data.dtype}")
    else:
        data = data.to(key.device, torch.int64)
        step = torch.stack([torch.zeros_like(data), data], dim=-1)
    # modulo 2^64, as torch has it: the sum does not carry into the counter's upper half
    return torch.ops.sagd._block_keys(_bits(block + step, torch.uint64))


def block_keys(key: Tensor) -> Tensor:
    """The Philox block at each key's offset, as a key: words 0 and 1 the seed, 2 and 3 the offset, low ones first.

    `torch.ops.sagd._block_keys` on devices without a kernel for it.
    """
    words = philox(key, torch.zeros((), dtype=torch.int64, device=key.device))
    halves = words[..., 0::2] | words[..., 1::2] << 32
    return halves.view(torch.uint64)


def philox(key: Tensor, counter: Tensor, origin: int = 0) -> Tensor:
    """The Philox4x32-10 blocks number key.offset + origin + counter of the stream key.seed.

    `key` is uint64 [..., 2], `counter` int64 that broadcasts against [...], read as unsigned, and `origin` an integer
    of up to 128 bits; so is the sum, carries kept. Returns the four words of each block as int64 [..., 4] in
    0 .. 2^32 - 1.
    """
    seed, offset = key.view(torch.int64).unbind(-1)
    low = (offset & _MASK) + (counter & _MASK) + (origin & _MASK)
    middle = (offset >> 32 & _MASK) + (counter >> 32 & _MASK) + (origin >> 32 & _MASK) + (low >> 32)
    high = (middle >> 32) + (origin >> 64 & _MASK)
    c0, c1, c2 = low & _MASK, middle & _MASK, high & _MASK
    c3 = (high >> 32) + (origin >> 96) & _MASK
    k0, k1 = seed & _MASK, seed >> 32 & _MASK
    for _ in range(10):
        # int64 products wrap, but their 64 bits are those of the unsigned product. What a round adds is masked with its
        # sum, so that c1 and c3 may keep the product's upper half: 10 passes over the counters, not 12
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (second >> 32 ^ c1 ^ k0) & _MASK, second, (first >> 32 ^ c3 ^ k1) & _MASK, first
        k0, k1 = k0 + _WEYL[0] & _MASK, k1 + _WEYL[1] & _MASK
    return torch.stack(torch.broadcast_tensors(c0, c1 & _MASK, c2, c3 & _MASK), dim=-1)


def _bits(words: Tensor, dtype: torch.dtype) -> Tensor:
    """64-bit words as integers with or without a sign: a view or, for vmap, which torch 2.10 lacks it in, a copy."""
    return words.to(dtype) if is_compiling() or transforms_active() else words.view(dtype)


def _int64(name: str, value: int) -> int:
    """The int64 with the bits of an integer modulo 2^64."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got bool")
    if not isinstance(value, int):
        try:
            value = operator.index(value)  # of NumPy, or a tensor
        except TypeError:
            raise TypeError(f"{name}: expected an int, got {type(value).__name__}") from None
    # compiled functions may have symbolic ints, which are int64 themselves
    return value if is_compiling() and -(2**63) < value < 2**63 else (value + 2**63) % 2**64 - 2**63


def check_is_tensor(key: Tensor) -> None:
    if not isinstance(key, Tensor):
        raise TypeError(f"key: expected a uint64 tensor [..., 2], got {type(key).__name__}")


def _checked(key: Tensor) -> Tensor:
    check_is_tensor(key)
    if key.dtype != torch.uint64 or key.ndim < 1 or key.shape[-1] != 2:
        raise ValueError(f"key: expected a uint64 tensor [..., 2], got {key.dtype} {list(key.shape)}")
    return key

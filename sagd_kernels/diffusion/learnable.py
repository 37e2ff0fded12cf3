"""A spectral weight that is learned."""

import torch
from torch import Tensor, nn

from ..spectral import mean_square
from ..weights import radial_frequency


class RadialWeight(nn.Module):
    """w(r) with a handful of parameters: log w is piecewise linear in log r, and mean w^2 = 1 whatever they are.

    `log_weight` [knots] are the values of log w at `knots` radial frequencies, evenly spaced in log r from the lowest
    but zero to the highest. DC takes the weight of the lowest. A common shift of all values changes nothing: it is
    calibrated away. Power laws r^alpha are straight lines, so `alpha` starts at exactly one, and 0 at white noise.

    `RadialWeight(height, width)()` is the weight, [H, W//2+1], for any operator; gradients pass through `add_noise`.
    What to learn it by is another matter: the error of predicting noise depends on the noise, so a weight can lower
    it without the model getting better. A likelihood or divergence, such as those of `SpectralNormal`, is comparable.
    """

    def __init__(self, height: int, width: int, *, knots: int = 8, alpha: float = 0.0) -> None:
        super().__init__()
        r = radial_frequency(height, width, dtype=torch.float64)
        if knots < 2 or r.numel() == 1 or r[r > 0].min() == r.max():
            raise ValueError(
                f"knots: expected two or more on a plane of two or more radial frequencies besides 0, got {knots} on "
                f"{height} x {width}"
            )
        log_r = torch.where(r > 0, r, r[r > 0].min()).log()
        position = (log_r - log_r.min()) / (log_r.max() - log_r.min()) * (knots - 1)
        hats = (1 - (position[..., None] - torch.arange(knots)).abs()).clamp(min=0)  # each bin's share in each knot
        self.width = width
        self.register_buffer("hats", hats.float(), persistent=False)
        at_knots = torch.linspace(log_r.min().item(), log_r.max().item(), knots)
        self.log_weight = nn.Parameter(alpha * at_knots)

    def forward(self) -> Tensor:
        """The weight [H, W//2+1] in the dtype of the parameters, mean w^2 = 1."""
        log_weight = (self.hats.to(self.log_weight.dtype) * self.log_weight).sum(-1)  # autocast would halve a matmul
        weight = (log_weight - log_weight.max()).exp()
        return weight * mean_square(weight, self.width).rsqrt()

    def extra_repr(self) -> str:
        return f"height={self.hats.shape[0]}, width={self.width}, knots={len(self.log_weight)}"

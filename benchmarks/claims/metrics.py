"""What is measured of images, against the data: Frechet distances, band energies, label entropy, radial spectra."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from tqdm import tqdm

from sagd_kernels import weights
from sagd_kernels.spectral import multiplicity
from sagd_kernels.train.data import to_signed

from .data import BAND, Labelled

CLASSES = 10
# Edges in cycles per pixel; the corrupted band is one of them.
BANDS = {"low": (0.0, 0.1), "middle": (0.1, BAND[0]), "corrupted": BAND, "high": (BAND[1], 0.7072)}
_BATCH = 256


class Classifier(nn.Module):
    """A small convolutional classifier; `features` is its last hidden layer."""

    def __init__(self, channels: int = 1):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(4),
            nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(),
        )  # fmt: skip
        self.features.num_features = 64  # which torchmetrics asks for
        self.head = nn.Linear(64, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, CLASSES] of images [N, C, H, W] in [-1, 1]."""
        return self.head(self.features(images))


def train_classifier(data: Labelled, epochs: int) -> Classifier:
    """Trained on `data` with a fixed seed; frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Classifier(data.images.shape[1])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        batches = [batch for _ in range(epochs) for batch in torch.randperm(len(data)).split(128)]
        for batch in tqdm(batches, desc="classifier", unit="step"):
            optimizer.zero_grad()
            F.cross_entropy(model(to_signed(data.images[batch])), data.labels[batch]).backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(model: Classifier, data: Labelled) -> float:
    """The share of `data` that the classifier names rightly."""
    right = [
        (model(to_signed(images)).argmax(1) == labels).sum()
        for images, labels in zip(data.images.split(_BATCH), data.labels.split(_BATCH), strict=True)
    ]
    return (sum(right) / len(data)).item()


class Evaluator:
    """Measures images against `reference`, both [N, C, H, W] in [-1, 1], clean.

    Frechet distances and entropy are of images clamped to [-1, 1], as one would look at them; energies are not, because
    clamping mixes frequencies.
    """

    def __init__(self, classifier: Classifier, reference: Tensor):
        pooled = nn.Sequential(nn.AvgPool2d(4, ceil_mode=True), nn.Flatten())
        pooled.num_features = pooled(reference[:1]).shape[1]
        self.classifier, self.spectrum = classifier, weights.power_spectrum(reference).double()
        # the Frechet distance of torchmetrics, in these features instead of Inception's
        self.distances = {
            name: FrechetInceptionDistance(feature=features, reset_real_features=False)
            for name, features in (("feature_fd", classifier.features), ("pixel_fd", pooled))
        }
        for distance in self.distances.values():
            for images in reference.split(_BATCH):
                distance.update(images, real=True)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, float]:
        """All metrics, by name; distances are squared, as the Frechet inception distance is."""
        clamped = images.clamp(-1, 1)
        result = {name: self._distance(name, clamped) for name in self.distances}
        result["label_entropy"] = label_entropy(torch.cat([self.classifier(part) for part in clamped.split(_BATCH)]))
        spectrum, width = weights.power_spectrum(images).double(), images.shape[-1]
        result |= {f"{name}_db": decibels(spectrum, self.spectrum, width, *band) for name, band in BANDS.items()}
        return result | ring_powers(spectrum, width)

    def _distance(self, name: str, images: Tensor) -> float:
        distance = self.distances[name]
        distance.reset()  # forgets the last images, not the reference
        for part in images.split(_BATCH):
            distance.update(part, real=False)
        return distance.compute().item()


def label_entropy(logits: Tensor) -> float:
    """Nats of the mean class distribution of logits [N, K]: log K where all classes come equally often."""
    return torch.special.entr(logits.double().softmax(1).mean(0)).sum().item()


def decibels(spectrum: Tensor, reference: Tensor, width: int, low: float, high: float) -> float:
    """10 log10 of the energies' ratio in low <= r < high, DC left out, of power spectra [H, W//2+1]."""
    r = weights.radial_frequency(spectrum.shape[-2], width, dtype=torch.float64)
    inside = (r > 0) & (r > low - 1e-9) & (r < high - 1e-9)
    count = inside * multiplicity(width, like=spectrum)
    return (10 * ((spectrum * count).sum() / (reference * count).sum()).log10()).item()


def ring_powers(spectrum: Tensor, width: int) -> dict[str, float]:
    """Mean power in each ring of frequencies but DC: power_01 is around 1 / max(H, W) cycles per pixel."""
    profile = weights.radial_profile(spectrum, width)[1:].tolist()
    return {f"power_{ring:02}": power for ring, power in enumerate(profile, 1)}

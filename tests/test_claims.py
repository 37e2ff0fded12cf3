"""benchmarks.claims: metrics against closed forms, arms that are what they say, a study that goes on, the report."""

import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="the claims need the extra 'claims'")
pytest.importorskip("torchmetrics", reason="the claims need the extra 'claims'")

from benchmarks.claims import report, run
from benchmarks.claims.__main__ import main
from benchmarks.claims.arms import ARMS, TILT, TRAININGS, Arm, dc_only, schedule_shift
from benchmarks.claims.data import BAND, CORRUPTION, Variant, corrupt, notch
from benchmarks.claims.metrics import BANDS, Classifier, Evaluator, decibels, label_entropy
from benchmarks.claims.run import Clock, Interrupted, Settings, Study
from benchmarks.rows import read_csv, write_csv
from sagd_kernels import spectral_filter, weights
from sagd_kernels.diffusion import DDPMSchedule
from sagd_kernels.reference import full_weight

TINY = Settings(
    "mnist", model="tiny", steps=4, batch=8, warmup=1, samples=13, sample_steps=2, epochs=1, limit=300,
    precision="float32",
)  # fmt: skip
CLAIM_ARMS = ["white", "corrupted-white", "corrupted-notched-outputs", "corrupted-paper", "corrupted-projected"]


@pytest.fixture(scope="module")
def images():
    """[64, 1, 28, 28], well inside [-1, 1]."""
    return torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0)) - 0.5


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a whole study, not to be changed."""
    folder = tmp_path_factory.mktemp("claims")
    Study(TINY, folder).run(CLAIM_ARMS, [0], [2, 4])
    return folder


def results(folder: Path) -> dict[str, dict]:
    return {str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.glob("results/*/*.json")}


# Metrics


def test_frechet_distance_of_shifted_and_scaled_images(images):
    """Same shape of covariance: |difference of means|^2 + (1 - scale)^2 trace(covariance)."""
    evaluator = Evaluator(Classifier().eval().requires_grad_(False), images)
    pooled = torch.nn.functional.avg_pool2d(images, 4).flatten(1).double()
    assert evaluator(images)["pixel_fd"] == pytest.approx(0, abs=1e-5)
    assert evaluator(images + 0.2)["pixel_fd"] == pytest.approx(49 * 0.2**2, rel=1e-4)
    scaled = 0.5**2 * (pooled.mean(0).square().sum() + pooled.var(0).sum())
    assert evaluator(0.5 * images)["pixel_fd"] == pytest.approx(scaled.item(), rel=1e-3)
    assert evaluator(images + 0.2)["feature_fd"] > 1e-4


def test_frechet_distances_see_what_one_sees(images):
    """Out of [-1, 1] is clamped."""
    evaluator = Evaluator(Classifier().eval().requires_grad_(False), images.sign())
    assert evaluator(3 * images.sign())["pixel_fd"] == pytest.approx(0, abs=1e-4)


def test_label_entropy():
    assert label_entropy(torch.zeros(5, 10)) == pytest.approx(math.log(10))
    assert label_entropy(100 * torch.eye(4, 10)) == pytest.approx(math.log(4))
    assert label_entropy(100 * torch.eye(1, 10).expand(7, 10)) == pytest.approx(0, abs=1e-9)


def test_band_energies(images):
    """Each band hears only what changed in it, and together they cover all but DC."""
    reference = weights.power_spectrum(images).double()
    covered = torch.zeros_like(reference)
    for name, (low, high) in BANDS.items():
        band = weights.band_pass(28, 28, low, high, normalized=False, dtype=torch.float64)
        covered += band
        louder = reference * (1 + 3 * band)
        for other, edges in BANDS.items():
            expected = 10 * math.log10(4) if other == name else 0
            assert decibels(louder, reference, 28, *edges) == pytest.approx(expected, abs=1e-9)
    assert (covered == 1).all()


# Arms


def test_dc_only_raises_dc_to_the_tilts_and_nothing_else(images):
    weight = dc_only(images).weight
    tilt = weights.power_law(28, 28, TILT)
    rest = weight.flatten()[1:]
    assert torch.equal(rest, rest[:1].expand_as(rest))
    assert (weight[0, 0] / rest[0]).item() == pytest.approx(tilt[0, 0].item(), rel=1e-5)
    assert weight[0, 0] > 2 * rest[0]


def test_schedule_shift_has_the_mean_log_snr_of_the_tilt(images):
    weight = full_weight(weights.power_law(28, 28, TILT, dtype=torch.float64), 28)
    tilted = DDPMSchedule.linear().alphas_cumprod.logit() - weight.square().log().mean()
    shifted = schedule_shift(images)
    torch.testing.assert_close(shifted.schedule.alphas_cumprod.logit(), tilted)
    assert torch.equal(shifted.weight, torch.ones_like(shifted.weight))
    assert (tilted - DDPMSchedule.linear().alphas_cumprod.logit() > 0.1).all()


@pytest.mark.parametrize("name", TRAININGS)
def test_every_weight_keeps_the_variance(name, images):
    process = TRAININGS[name].process(images)
    assert full_weight(process.weight, 28).square().mean().item() == pytest.approx(1, rel=1e-5)


def test_arms_name_what_exists():
    assert all(arm.training in TRAININGS and ARMS[arm.baseline].baseline == arm.baseline for arm in ARMS.values())


# Data


def test_corruption_stays_in_its_band_and_belongs_to_the_image(images):
    indices = list(range(len(images)))
    corrupted = corrupt(images, indices)
    torch.testing.assert_close(notch(corrupted), notch(images), atol=1e-5, rtol=0)
    noise = corrupted - images
    outside = noise - spectral_filter(noise, weights.band_pass(28, 28, *BAND, normalized=False))
    assert outside.abs().max() < 1e-5
    assert noise.std().item() == pytest.approx(CORRUPTION, rel=0.02)
    assert torch.equal(corrupt(images[5:7], [5, 6]), corrupted[5:7])


def test_variants_reach_the_trainer_unrounded():
    dataset = Variant(torch.full((4, 1, 28, 28), 255, dtype=torch.uint8), "corrupted")
    pixels = dataset.__getitems__([2, 1])
    assert pixels.shape == (2, 1, 28, 28)
    assert pixels.max() > 256
    assert (pixels != pixels.round()).any()


# The study


def test_study_leaves_every_result(finished):
    expected = {f"results/{arm}/0-{steps}.json" for arm in CLAIM_ARMS for steps in (2, 4)}
    expected |= {f"results/{arm}/0-0.json" for arm in report.DATA}
    found = results(finished)
    assert found.keys() == expected
    assert all(math.isfinite(value) for metrics in found.values() for value in metrics.values())
    assert 0 < json.loads((finished / "classifier.json").read_text())["accuracy"] <= 1
    # the band is empty where it was filtered out or projected, and nowhere else
    band = {name: metrics["corrupted_db"] for name, metrics in found.items()}
    for arm in ("corrupted-notched-outputs", "corrupted-projected"):
        assert band[f"results/{arm}/0-4.json"] < -60
    assert band["results/corrupted-paper/0-4.json"] > -20
    assert band["results/data-corrupted/0-0.json"] > 5 > band["results/data-clean/0-0.json"]


def test_finished_study_does_nothing(finished, monkeypatch):
    monkeypatch.setattr(Study, "train", None)
    monkeypatch.setattr(Study, "evaluate", None)
    before = results(finished)
    Study(TINY, finished).run(CLAIM_ARMS, [0], [2, 4])
    assert results(finished) == before


def test_interrupted_study_goes_on_to_the_same_results(finished, tmp_path, monkeypatch):
    train, evaluate, trained = run.train, Study.evaluate, []

    def stop_early(config, folder, *, execution, **options):
        state = train(config, folder, execution=run.Execution(stop_at=min(execution.stop_at, 3)), **options)
        trained.append(state.step)
        return state

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", stop_early)
    with pytest.raises(Interrupted):  # inside training, at step 3 of 4
        Study(TINY, tmp_path).run(["white"], [0], [2, 4])
    assert trained == [2, 3]
    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(Study, "evaluate", fail)
    with pytest.raises(KeyboardInterrupt):  # between training and sampling
        Study(TINY, tmp_path).run(["white"], [0], [2, 4])
    monkeypatch.setattr(Study, "evaluate", evaluate)
    Study(TINY, tmp_path).run(["white"], [0], [2, 4])
    found, whole = results(tmp_path), results(finished)
    assert found == {name: whole[name] for name in found}
    assert "results/white/0-4.json" in found


def test_an_arms_name_changes_nothing(finished, tmp_path, monkeypatch):
    """Common random numbers: the same process under another name gives the same numbers."""
    monkeypatch.setitem(TRAININGS, "twin", TRAININGS["white"])
    monkeypatch.setitem(ARMS, "twin", Arm("twin"))
    Study(TINY, tmp_path).run(["twin"], [0], [4])
    whole = results(finished)
    assert results(tmp_path)["results/twin/0-4.json"] == whole["results/white/0-4.json"]
    assert whole["results/white/0-4.json"] != whole["results/corrupted-white/0-4.json"]


def test_results_of_other_settings_are_refused(finished, capsys):
    assert main(["--quick", "--dataset", "mnist", "--output", str(finished)]) == 2
    message = capsys.readouterr().err
    assert f"{finished} holds results with steps 4, not 30" in message
    assert "dataset" not in message


def test_time_left_weighs_the_kinds_of_work():
    clock = Clock()
    clock.plan("train", 100)
    clock.plan("evaluate", 4)
    clock.seconds["train"], clock.finished["train"] = 60.0, 50
    assert clock.left() == ""
    clock.seconds["evaluate"], clock.finished["evaluate"] = 120.0, 2
    assert clock.left() == ", about 3 min left"


# The report

VALUES = {"white": (10, 20, 30), "power-0.5": (9, 18, 27), "corrupted-white": (40, 50), "corrupted-projected": (20, 33)}


@pytest.fixture
def canned(tmp_path):
    """A folder with nothing but a CSV."""
    metrics = [*report.METRICS, "power_01", "power_02"]
    rows = [
        report.Row(arm, seed, steps, metric, value + steps / 100)
        for steps in (100, 200)
        for arm, values in VALUES.items()
        for seed, value in enumerate(values)
        for metric in metrics
    ]
    rows += [report.Row("data-clean", seed, 0, metric, 1.5) for seed in (0, 1, 2) for metric in metrics]
    write_csv(tmp_path / report.CSV_NAME, rows, report.Row)
    assert read_csv(tmp_path / report.CSV_NAME, report.Row) == rows
    return tmp_path


def test_report_from_a_csv_alone(canned):
    assert main(["--report", "--output", str(canned)]) == 0
    assert sorted(path.name for path in canned.iterdir()) == ["metrics.png", "results.csv", "results.md", "spectra.png"]
    text = (canned / "results.md").read_text()
    first = text.split("## 200 steps")[0]
    assert "| power-0.5 | 3 | 19.00 ± 5.20 |" in first
    assert "| power-0.5 − white | 3 | -2.00 ± 0.58 |" in first
    assert "| corrupted-projected − corrupted-white | 2 | -18.50 ± 1.50 |" in first
    assert "| data-clean | 3 | 1.50 ± 0.00 |" in first


def test_report_of_a_study(finished):
    write_csv(finished / report.CSV_NAME, report.gather(finished), report.Row)
    paths = report.write_report(finished)
    assert {path.name for path in paths} == {"results.md", "metrics.png", "spectra.png", "samples.png"}
    assert all(path.stat().st_size > 1000 for path in paths)
    text = (finished / "results.md").read_text()
    assert "dataset mnist" in text and "The classifier names" in text


def test_report_without_a_csv_says_so(tmp_path, capsys):
    assert main(["--report", "--output", str(tmp_path)]) == 2
    assert f"there is no {tmp_path / report.CSV_NAME}" in capsys.readouterr().err

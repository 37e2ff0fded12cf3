"""The trainer's images: every source gives the pixels that it holds, in the seed's order, or names what is wrong."""

import gzip
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="the trainer needs the extra 'train'")

from PIL import Image
from tiny_runs import TINY, assert_same_checkpoint, write_idx

from sagd_kernels.train import data
from sagd_kernels.train.__main__ import main
from sagd_kernels.train.config import RunError


def test_bundled_mnist():
    images = data.open_dataset("mnist")
    assert len(images) == 5000
    assert images.image_shape == (1, 28, 28)
    signed = data.to_signed(images.__getitems__(list(range(0, 5000, 100))))
    assert (signed.min(), signed.max()) == (-1, 1)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "digits.gz"])
def test_idx_files(tmp_path, monkeypatch, name):
    pixels = np.random.default_rng(1).integers(0, 256, (7, 10, 6), dtype=np.uint8)
    path = write_idx(tmp_path / name, pixels)
    images = data.open_dataset("fashion-mnist", str(path))
    assert images.image_shape == (1, 10, 6)
    assert torch.equal(images.__getitems__([6, 0]), torch.from_numpy(pixels[[6, 0], None]))
    if name.startswith("train"):
        monkeypatch.setattr(data, "FASHION_MNIST", tmp_path)
        assert len(data.open_dataset("fashion-mnist")) == 7


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("short", bytes([0, 0, 8, 3]) + np.array([2, 4, 4], ">u4").tobytes() + bytes(31), "hold .*2, 4, 4.* holds 31"),
        ("labels", bytes([0, 0, 8, 1]) + bytes(12), "not an IDX file of images: it starts with 00000801"),
        ("cut", bytes([0, 0, 8, 3, 0]), "is cut off"),
        ("cut.gz", gzip.compress(bytes(5000), mtime=0)[:-9], "cannot be read"),
        ("plain.gz", b"no gzip", "cannot be read"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=f"--data: .*{name} .*{message}"):
        data.open_dataset("fashion-mnist", str(tmp_path / name))


def test_image_folder(tmp_path):
    (tmp_path / "deeper").mkdir()
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "b.png")
    Image.new("L", (9, 30), 128).save(tmp_path / "a.jpg", quality=95)
    Image.new("RGBA", (8, 8), (0, 0, 255, 255)).save(tmp_path / "deeper" / "C.PNG")
    (tmp_path / "notes.txt").write_text("not an image")

    colour = data.open_dataset("folder", str(tmp_path), 16)
    assert len(colour) == 3
    assert colour.image_shape == (3, 16, 16)
    grey, red, blue = colour.__getitems__([0, 1, 2])
    assert (grey.int() - 128).abs().max() <= 2
    assert torch.equal(red, torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 16, 16))
    assert torch.equal(blue, torch.tensor([0, 0, 255], dtype=torch.uint8)[:, None, None].expand(3, 16, 16))
    assert data.open_dataset("folder", str(tmp_path), 8, 1).__getitems__([1]).shape == (1, 1, 8, 8)


def test_image_folder_takes_what_can_be_an_image(tmp_path):
    """Not hidden files, not formats that PIL writes only, not folders; but what links lead to, once."""
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "folder"
    for path in (elsewhere, folder / "class.png", folder / ".thumbnails"):
        path.mkdir(parents=True)
    images = [folder / "a.png", folder / "class.png" / "b.webp", elsewhere / "c.jpg"]
    for path in images:
        Image.new("RGB", (8, 8)).save(path)
    for path in (folder / "._a.png", folder / "report.pdf", folder / ".thumbnails" / "a.png"):
        path.write_bytes(b"no image")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(folder)
    paths = data.open_dataset("folder", str(folder)).paths
    assert paths == [str(folder / name) for name in ("a.png", "class.png/b.webp", "linked/c.jpg")]


def test_training_from_an_image_folder_with_readers(tmp_path):
    for index in range(5):
        Image.effect_noise((20, 20), 40 + index).save(tmp_path / f"{index}.png")
    options = ["--dataset", "folder", "--data", str(tmp_path), "--image-size", "10", "--workers", "1"]
    assert main([*TINY, *options, "--steps", "3", "--output", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_damaged_image_is_one_line_whoever_reads_it(workers, tmp_path, capsys):
    (tmp_path / "cut.png").write_bytes(b"no image")
    options = ["--dataset", "folder", "--data", str(tmp_path), "--image-size", "10", "--workers", workers]
    assert main([*TINY, *options, "--output", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert f"error: --data: {tmp_path / 'cut.png'} is not a readable image: cannot identify" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_damaged_image_in_the_middle_of_a_run_does_not_cost_its_steps(workers, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(5):
        Image.effect_noise((20, 20), 40 + index).save(images / f"{index}.png")
    options = ["--dataset", "folder", "--data", str(images), "--image-size", "10", "--workers", workers]
    options = [*TINY, *options, "--batch", "1"]
    assert main([*options, "--output", str(tmp_path / "whole")]) == 0

    last = next(iter(data.BatchOrder(length=5, seed=0, batch=5, start=0, stop=1)))[-1]  # of the first epoch
    image = images / f"{last}.png"
    content = image.read_bytes()
    image.write_bytes(content[:100])
    assert main([*options, "--output", str(tmp_path / "run")]) == 2
    assert f"step 4 is saved: put another image in its place and --resume {tmp_path / 'run'}" in capsys.readouterr().err
    image.write_bytes(content)
    assert main(["--resume", str(tmp_path / "run"), "--samples", "4", "--sample-steps", "4"]) == 0
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.jp2", "big-endian.tif", "deep.pgm", "ten-bit.pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_grey_is_scaled(name, channels, tmp_path):
    """PIL would clip it: nearly all values to white."""
    grey = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    if name == "ten-bit.pgm":
        (tmp_path / name).write_bytes(b"P5 8 8 1023\n" + (grey // 64).astype(">u2").tobytes())
    else:
        Image.fromarray(grey.astype(">u2") if name == "big-endian.tif" else grey).save(tmp_path / name)
    images = data.open_dataset("folder", str(tmp_path), 8, channels).__getitems__([0])[0]
    assert images.shape == (channels, 8, 8)
    assert (images.double() - torch.from_numpy(grey / 257)).abs().max() < 1


def test_deep_grey_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    grey = np.zeros((8, 8), np.uint16)
    grey[0] = 65535
    Image.fromarray(grey).save(tmp_path / "a.png", exif=exif)
    (pixels,) = data.open_dataset("folder", str(tmp_path), 8, 1).__getitems__([0])[0]
    assert pixels[:, -1].min() == 255 and pixels[:, :-1].max() == 0


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32)])
def test_grey_of_unknown_range_is_refused(mode, dtype, tmp_path):
    Image.fromarray(np.full((8, 8), 300, dtype)).save(tmp_path / "a.tif")
    with pytest.raises(
        RunError, match=f"--data: .*a.tif is not a readable image: expected 8 or 16 .*, got mode {mode}"
    ):
        data.open_dataset("folder", str(tmp_path), 8, 1).__getitems__([0])


def test_empty_and_damaged_image_folders_are_named(tmp_path):
    with pytest.raises(RunError, match=f"--data: no image in {tmp_path}"):
        data.open_dataset("folder", str(tmp_path))
    Image.effect_noise((64, 64), 90).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1500])
    (tmp_path / "text.png").write_text("no image")
    images = data.open_dataset("folder", str(tmp_path))
    images.__getitems__([2])
    for index, name in enumerate(["cut.png", "text.png"]):
        with pytest.raises(RunError, match=f"--data: .*{name} is not a readable image"):
            images.__getitems__([index])


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A Hugging Face dataset of local files: where its parquet file is, and its rows."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 9), dtype=np.uint8)
    columns = {"label": [0, 1, 2], "picture": [Image.fromarray(image) for image in pixels]}
    folder = tmp_path / "rows"
    folder.mkdir()
    features = datasets.Features({"label": datasets.Value("int64"), "picture": datasets.Image()})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    (tmp_path / "labels").mkdir()
    datasets.Dataset.from_dict({"label": [0]}).to_parquet(tmp_path / "labels" / "train.parquet")
    return folder, pixels


def test_hugging_face_images(rows):
    folder, pixels = rows
    images = data.open_dataset("huggingface", str(folder), 9, 1)
    assert len(images) == 3
    assert images.image_shape == (1, 9, 9)
    assert torch.equal(images.__getitems__([2, 0]), torch.from_numpy(pixels[[2, 0], None]))
    with pytest.raises(RunError, match=r"--data: .* has no column of images, but label"):
        data.open_dataset("huggingface", str(folder.parent / "labels"))
    with pytest.raises(RunError, match=r"--data: datasets cannot load .*nowhere"):
        data.open_dataset("huggingface", str(folder / "nowhere"))


def test_hugging_face_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RunError, match="--dataset: huggingface needs the package datasets"):
        data.open_dataset("huggingface", "name")


def test_batches_are_a_function_of_seed_and_number():
    from_start = list(data.BatchOrder(length=10, seed=3, batch=4, start=0, stop=10))
    assert list(data.BatchOrder(length=10, seed=3, batch=4, start=4, stop=10)) == from_start[4:]
    assert list(data.BatchOrder(length=10, seed=4, batch=4, start=0, stop=10)) != from_start
    order = [index for batch in from_start for index in batch]
    epochs = [order[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]

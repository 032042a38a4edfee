"""Data sets: their laws, the form of what they give, and what they say of every bad file."""

import gzip
import hashlib
import math
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fewstep.datasets import MNIST, T2, Arrays, Digits, Images, Ring, TensorExamples, mnist
from fewstep.errors import UserError
from problems import doubles, generator
from stats import accepts, chi_square, ks, mean_and_covariance, rejects

REAL = Path(os.environ.get("FEWSTEP_DATA", "no data root"))
real_mnist = pytest.mark.skipif(
    not (REAL / "mnist").is_dir(), reason="the original MNIST files are not in FEWSTEP_DATA/mnist"
)


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch, tmp_path):
    monkeypatch.delenv("FEWSTEP_DATA", raising=False)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def refused(call: Callable, *parts: object) -> None:
    """The call is refused in one line that says all this."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


# mixtures


def test_ring_has_unit_covariance_and_unscaled_data_are_rejected():
    x = Ring().train().batch(40_000, generator(0))["x_0"].double()
    assert accepts(mean_and_covariance(x, doubles(0, 0), torch.eye(2).double()))
    assert rejects(mean_and_covariance(x * math.sqrt(2.0225), doubles(0, 0), torch.eye(2).double()))


def test_ring_has_eight_equal_modes_on_a_circle_of_radius_two():
    """In the units before scaling; a deviation of .16 and a ring without its eighth mode are rejected."""
    x = Ring().train().batch(40_000, generator(1))["x_0"].double() * math.sqrt(2**2 / 2 + 0.15**2)
    corner = 2**0.5  # the modes at 45 degrees
    circle = [[2, 0], [corner, corner], [0, 2], [-corner, corner]]
    modes = torch.tensor(circle + [[-a, -b] for a, b in circle], dtype=torch.float64)
    nearest = torch.cdist(x, modes).argmin(1)
    residual = x - modes[nearest]
    assert accepts(chi_square(nearest, torch.full((8,), 1 / 8)))
    assert rejects(chi_square(nearest[nearest != 7], torch.full((8,), 1 / 8)))
    assert accepts(ks(residual / 0.15, "norm"))
    assert rejects(ks(residual / 0.16, "norm"))


@pytest.mark.parametrize("ring", [Ring(modes=3, radius=0.5, std=1.0), Ring(modes=5, std=0.01)])
def test_every_ring_has_unit_covariance(ring):
    assert torch.allclose(ring.mixture.mean, doubles(0, 0), atol=1e-12)
    assert torch.allclose(ring.mixture.covariance, torch.eye(2).double(), atol=1e-12)


def test_t2_is_the_reference_problem():
    """Its moments by draws, and the evidence of a measurement, which depends on every parameter."""
    x = T2().train().batch(40_000, generator(2))["x_0"].double()
    mean, covariance = doubles(-0.4, -0.1), torch.tensor([[3.365, 0.595], [0.595, 1.33]], dtype=torch.float64)
    assert accepts(mean_and_covariance(x, mean, covariance))
    assert rejects(mean_and_covariance(x.flip(1), mean, covariance))
    evidence = T2().mixture.log_evidence(doubles(0.5), doubles(1.0, 0.5)[None], doubles(0.25)[None])
    assert evidence.item() == pytest.approx(-3.5676335577, abs=1e-9)


def test_kept_draws_of_a_mixture_differ_between_train_and_test_and_follow_the_seed():
    train, test = T2().train(), T2().test()
    assert torch.equal(train.take(50)["x_0"], T2().train().take(50)["x_0"])
    assert not torch.isin(train.take(50)["x_0"], test.take(50)["x_0"]).any()
    assert not torch.isin(test.take(50)["x_0"], test.take(50, seed=1)["x_0"]).any()


def test_a_ring_that_is_none_is_refused():
    refused(lambda: Ring(modes=2), "modes >= 3", "not 2")
    refused(lambda: Ring(std=0.0), "std > 0", "0.0")
    refused(lambda: T2().test().take(0), "0 draws", "ask for 1 or more")


# digits


def test_digits_are_split_once_and_for_all():
    train, test = Digits().train(), Digits().test()
    assert (train.size, test.size) == (1297, 500)
    assert torch.equal(test.x_0, Digits().test().x_0)
    assert test.labels[:12].tolist() == [
        2,
        8,
        2,
        6,
        6,
        7,
        1,
        9,
        8,
        5,
        2,
        8,
    ]  # as recorded: scores compare across versions
    everything = torch.cat([train.x_0, test.x_0]).flatten(1)
    assert len(everything.unique(dim=0)) == 1797  # no image twice, so none on both sides


def test_digits_are_the_images_of_scikit_learn():
    """In range with both ends taken, every level a sixteenth of the way, and the labels with their images."""
    from sklearn.datasets import load_digits

    source = load_digits()
    known = {image.tobytes(): label for image, label in zip(source.images, source.target, strict=True)}
    for part in (Digits().train(), Digits().test()):
        levels = (part.x_0 + 1) * 8
        assert levels.min() == 0
        assert levels.max() == 16
        assert [known[image.double().numpy().tobytes()] for image in levels[:, 0]] == part.labels.tolist()
        assert set(part.labels.tolist()) == set(range(10))


# examples in memory


def examples(x_0: Tensor, item_shape: tuple[int, ...] = (1, 2, 2), **labels: object) -> TensorExamples:
    return TensorExamples(name="mine", item_shape=item_shape, x_0=x_0, **labels)


def test_bytes_become_numbers_between_minus_one_and_one():
    x_0 = examples(torch.tensor([0, 51, 204, 255], dtype=torch.uint8).reshape(1, 1, 2, 2)).take(1)["x_0"]
    assert x_0.dtype == torch.float32
    assert torch.allclose(x_0.flatten(), torch.tensor([-1.0, -0.6, 0.6, 1.0]))


def test_every_item_is_drawn_equally_often():
    """A batch has its items with replacement; draws that leave one of ten out are rejected."""
    x_0 = examples(torch.arange(10.0)[:, None], (1,)).batch(20_000, generator(3))["x_0"].long()
    assert accepts(chi_square(x_0, torch.full((10,), 0.1)))
    assert rejects(chi_square(x_0[x_0 != 4], torch.full((10,), 0.1)))


def test_labels_stay_with_their_items():
    kept = examples(torch.arange(10.0)[:, None], (1,), labels=torch.arange(10) % 3, num_classes=3)
    train, test = kept.split(4)
    assert (train.size, test.size) == (6, 4)
    for found in (kept.batch(30, generator(0)), kept.take(7, seed=2), train.take(6), test.take(4)):
        assert torch.equal(found["x_0"][:, 0].long() % 3, found["labels"])


NAN = torch.zeros(6, 1, 2, 2).index_fill(0, torch.tensor([2, 4]), math.nan)
IMAGES = torch.zeros(6, 1, 2, 2)
BAD_EXAMPLES = {
    "empty": (partial(examples, IMAGES[:0]), "no items", "(0, 1, 2, 2)", "give at least one"),
    "channels": (partial(examples, torch.zeros(6, 3, 2, 2)), "(3, 2, 2)", "3 channels, expected 1", "convert"),
    "channels last": (partial(examples, torch.zeros(6, 5, 4, 3), (3, 5, 4)), "channels come last", "to the front"),
    "size": (partial(examples, torch.zeros(6, 1, 4, 4)), "(1, 4, 4)", "expected (1, 2, 2)", "resize"),
    "rank": (partial(examples, torch.zeros(6, 4)), "(4,)", "expected (1, 2, 2)", "reshape"),
    "nan": (partial(examples, NAN), "2 of 6", "first at index 2", "leave them out"),
    "infinity": (partial(examples, torch.tensor([[1.0], [-math.inf]]), (1,)), "1 of 2", "first at index 1"),
    "range": (partial(examples, IMAGES + 255), "[255, 255]", "expected [-1, 1]", "x / 127.5 - 1"),
    "below": (partial(examples, IMAGES - 1.01), "[-1.01, -1.01]", "expected [-1, 1]"),
    "integers": (partial(examples, IMAGES.int()), "torch.int32", "expected floating", "convert"),
    "byte vectors": (partial(examples, torch.zeros(6, 3).byte(), (3,)), "torch.uint8", "expected floating"),
    "few labels": (partial(examples, IMAGES, labels=torch.arange(5), num_classes=5), "(5,) for 6 items", "(6,)"),
    "float labels": (partial(examples, IMAGES, labels=torch.zeros(6), num_classes=5), "torch.float32", "integers"),
    "high labels": (partial(examples, IMAGES, labels=torch.arange(6), num_classes=5), "0 .. 5", "num_classes = 6"),
    "low labels": (partial(examples, IMAGES, labels=torch.arange(6) - 1, num_classes=5), "-1 .. 4", "from 0"),
    "too many": (lambda: examples(IMAGES).take(7), "7 examples", "there are 6", "ask for 1 to 6"),
    "none": (lambda: examples(IMAGES).take(0), "0 examples", "ask for 1 to 6"),
}


@pytest.mark.parametrize("bad", BAD_EXAMPLES.values(), ids=BAD_EXAMPLES.keys())
def test_bad_examples_are_refused(bad):
    call, *parts = bad
    refused(call, "mine", *parts)


# MNIST


def idx(array: np.ndarray) -> bytes:
    """The bytes of an idx file of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def small_mnist(root: Path) -> Path:
    """A data root with 12 and 5 random images in the format of MNIST."""
    pixels = np.random.default_rng(0).integers(0, 256, (17, 28, 28), dtype=np.uint8)
    (root / "mnist").mkdir(parents=True)
    for part, images in (("train", pixels[:12]), ("t10k", pixels[12:])):
        labels = (images[:, 0, 0] % 10).astype(np.uint8)
        for file, array in ((f"{part}-images-idx3-ubyte.gz", images), (f"{part}-labels-idx1-ubyte.gz", labels)):
            (root / "mnist" / file).write_bytes(gzip.compress(idx(array), mtime=0))
    return root


def test_idx_files_are_read_in_order(tmp_path, monkeypatch):
    root = small_mnist(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (17, 28, 28), dtype=np.uint8)
    train, test = MNIST(check_md5=False).train(root), MNIST(check_md5=False).test(root)
    assert np.array_equal(train.x_0[:, 0].numpy(), pixels[:12])
    assert np.array_equal(test.x_0[:, 0].numpy(), pixels[12:])
    assert train.labels.tolist() == (pixels[:12, 0, 0] % 10).tolist()
    monkeypatch.setenv("FEWSTEP_DATA", str(root))
    assert MNIST(check_md5=False).train().size == 12
    refused(
        lambda: MNIST(check_md5=False).train(tmp_path / "other"), tmp_path / "other" / "mnist"
    )  # beats FEWSTEP_DATA


@real_mnist
def test_the_original_files():
    """Counts of the classes, first labels and the mean grey level, as published."""
    train, test = MNIST().train(REAL), MNIST().test(REAL)
    assert (train.size, test.size) == (60_000, 10_000)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert train.labels.bincount().tolist() == counts
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert train.x_0.double().mean().item() / 255 == pytest.approx(0.1307, abs=5e-5)


@real_mnist
def test_one_changed_byte_of_an_original_is_noticed(tmp_path):
    for path in (REAL / "mnist").glob("t10k*"):
        (tmp_path / "mnist").mkdir(exist_ok=True)
        (tmp_path / "mnist" / path.name).write_bytes(path.read_bytes())
    assert MNIST().test(tmp_path).size == 10_000
    labels = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    data = bytearray(labels.read_bytes())
    data[4] ^= 1  # the time stamp: gzip itself does not notice
    labels.write_bytes(data)
    refused(lambda: MNIST().test(tmp_path), labels, "expected ec29112dd5afa0611ce80d1b7f02629c", "altered", "download")


IMAGES_FILE, LABELS_FILE = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
LABELS = idx(np.arange(12, dtype=np.uint8) % 10)
BAD_IDX = {
    "not gzip": (LABELS_FILE, LABELS, "begins with 00000801", "expected gzip (1f8b)"),
    "empty": (LABELS_FILE, b"", "begins with nothing", "expected gzip"),
    "truncated gzip": (LABELS_FILE, gzip.compress(LABELS)[:-9], "bytes that end early", "expected whole gzip"),
    "broken gzip": (LABELS_FILE, gzip.compress(LABELS)[:-8] + bytes(8), "broken gzip", "CRC"),
    "truncated": (LABELS_FILE, gzip.compress(LABELS[:-3]), "17 bytes unpacked, expected 20", "(12,)", "truncated"),
    "longer": (LABELS_FILE, gzip.compress(LABELS + b"0"), "21 bytes unpacked, expected 20", "altered"),
    "header": (LABELS_FILE, gzip.compress(LABELS[:6]), "ends after 6 bytes", "header of 8"),
    "magic": (LABELS_FILE, gzip.compress(b"\0\0\x08\x03" + LABELS), "magic number 00000803, expected 00000801"),
    "type": (LABELS_FILE, gzip.compress(b"\0\0\x0d\x01" + LABELS[4:]), "00000d01, expected 00000801"),
    "fewer": (LABELS_FILE, gzip.compress(idx(np.zeros(9, np.uint8))), "12 images", "9 labels", IMAGES_FILE),
    "label 10": (LABELS_FILE, gzip.compress(idx(np.full(12, 10, np.uint8))), "a label 10", "expected 0 .. 9"),
    "size": (IMAGES_FILE, gzip.compress(idx(np.zeros((12, 32, 32), np.uint8))), "(1, 32, 32)", "expected (1, 28, 28)"),
    "none": (IMAGES_FILE, gzip.compress(idx(np.zeros((0, 28, 28), np.uint8))), "0 images", "12 labels"),
}


@pytest.mark.parametrize("bad", BAD_IDX.values(), ids=BAD_IDX.keys())
def test_bad_idx_files_are_refused(bad, tmp_path):
    file, data, *parts = bad
    path = small_mnist(tmp_path) / "mnist" / file
    path.write_bytes(data)
    refused(lambda: MNIST(check_md5=False).train(tmp_path), path, *parts)


def test_files_that_are_not_the_originals_are_refused(tmp_path, monkeypatch):
    root = small_mnist(tmp_path)
    path = root / "mnist" / IMAGES_FILE
    size = path.stat().st_size
    refused(lambda: MNIST().train(root), path, f"{size} bytes, expected 9912422", "truncated", "download it again")
    monkeypatch.setitem(mnist.FILES, IMAGES_FILE, (size - 1, "f68b3c2dcbeaaa9fbdd348bbdeb94873"))
    refused(lambda: MNIST().train(root), path, f"{size} bytes, expected {size - 1}", "altered")
    monkeypatch.setitem(mnist.FILES, IMAGES_FILE, (size, "f68b3c2dcbeaaa9fbdd348bbdeb94873"))
    refused(
        lambda: MNIST().train(root), path, "expected f68b3c2dcbeaaa9fbdd348bbdeb94873", "altered", "check_md5=False"
    )
    path.unlink()
    refused(lambda: MNIST().train(root), path, "no file", "download", "FEWSTEP_DATA")
    path.mkdir()
    refused(lambda: MNIST().train(root), path, "no file")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """The small files behind an address, and their checksums as the expected ones."""
    folder = small_mnist(tmp_path / "mirror") / "mnist"
    for file in folder.iterdir():
        data = file.read_bytes()
        monkeypatch.setitem(mnist.FILES, file.name, (len(data), hashlib.md5(data).hexdigest()))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr(mnist, "URL", f"http://127.0.0.1:{server.server_port}/")
    yield folder
    server.shutdown()
    server.server_close()


def test_files_are_downloaded_once_and_an_altered_copy_is_replaced(mirror, tmp_path):
    assert MNIST().train().size == 12
    cached = tmp_path / "cache" / "mnist" / LABELS_FILE
    cached.write_bytes(b"altered")
    assert MNIST().train().size == 12
    for file in mirror.iterdir():
        file.unlink()
    assert MNIST().train().size == 12  # from the cache
    refused(lambda: MNIST().test(), "cannot download", mnist.URL + "t10k-images-idx3-ubyte.gz", "404", "data root")


def test_other_bytes_from_the_network_are_refused(mirror, tmp_path):
    (mirror / IMAGES_FILE).write_bytes(b"a login page")
    md5 = mnist.FILES[IMAGES_FILE][1]
    refused(lambda: MNIST().train(), mnist.URL + IMAGES_FILE, md5, tmp_path / "cache", "FEWSTEP_DATA")
    assert not (tmp_path / "cache" / "mnist" / IMAGES_FILE).exists()


def test_without_a_network_the_message_says_where_the_file_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "URL", "http://127.0.0.1:9/")
    refused(lambda: MNIST().train(), "cannot download http://127.0.0.1:9/train-images", "check the network", "mnist/")
    monkeypatch.setenv("FEWSTEP_CACHE", __file__)  # not a folder
    refused(lambda: MNIST().train(), "cannot download", __file__)


# pictures


def small_pictures(folder: Path, count: int = 12) -> Path:
    """A folder of random pictures, one in five of them in a folder of its own."""
    for i in range(count):
        path = folder / (f"{i % 3}/{i}.png" if i % 5 == 0 else f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (10, 9, 3), dtype=np.uint8)).save(path)
    return folder


def read(folder: Path, picture: Image.Image, file: str = "a.png", **options: object) -> Tensor:
    """What two copies of one picture become, bytes `(c, size, size)`."""
    folder.mkdir(exist_ok=True)
    for name in ("1" + file, "2" + file):
        picture.save(folder / name, **{key: value for key, value in options.items() if key in ("exif", "transparency")})
    fields = {key: value for key, value in options.items() if key in ("size", "grey")}
    train, test = (
        Images(folder=str(folder), **{"size": 8, **fields}).train(),
        Images(folder=str(folder), **fields).test(),
    )
    assert train.size == test.size == 1
    return train.x_0[0]


def grey16(level: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), level, np.uint16))


PALETTE = Image.new("RGB", (8, 8), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
MODES = {
    "L": (Image.new("L", (8, 8), 100), "a.png", (100, 100, 100)),
    "1": (Image.new("1", (8, 8), 1), "a.png", (255, 255, 255)),
    "RGB": (Image.new("RGB", (8, 8), (10, 200, 30)), "a.png", (10, 200, 30)),
    "RGBA": (Image.new("RGBA", (8, 8), (10, 200, 30, 255)), "a.png", (10, 200, 30)),
    "transparent": (Image.new("RGBA", (8, 8), (10, 200, 30, 0)), "a.png", (255, 255, 255)),
    "half transparent": (Image.new("RGBA", (8, 8), (0, 100, 255, 51)), "a.png", (204, 224, 255)),
    "LA": (Image.new("LA", (8, 8), (55, 0)), "a.png", (255, 255, 255)),
    "P": (PALETTE, "a.png", (10, 200, 30)),
    "P gif": (PALETTE, "a.gif", (10, 200, 30)),
    "CMYK": (Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "a.tif", (0, 255, 255)),
    "I;16 dark": (grey16(300), "a.png", (1, 1, 1)),
    "I;16": (grey16(40_000), "a.png", (156, 156, 156)),
    "I;16 white": (grey16(65_535), "a.tif", (255, 255, 255)),
    "I": (Image.new("I", (8, 8), 40_000), "a.tif", (156, 156, 156)),
    "bmp": (Image.new("RGB", (8, 8), (10, 200, 30)), "a.bmp", (10, 200, 30)),
    "webp": (Image.new("RGB", (8, 8), (0, 0, 0)), "a.webp", (0, 0, 0)),
}


@pytest.mark.parametrize("case", MODES.values(), ids=MODES.keys())
def test_every_kind_of_picture_keeps_its_colour(case, tmp_path):
    picture, file, colour = case
    x_0 = read(tmp_path, picture, file)
    assert x_0.shape == (3, 8, 8)
    assert (x_0 == torch.tensor(colour, dtype=torch.uint8)[:, None, None]).all()


def test_a_transparent_palette_colour_is_white(tmp_path):
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([250, 0, 0, 0, 0, 250])
    palette.paste(1, (0, 0, 8, 4))
    x_0 = read(tmp_path, palette, transparency=0)
    assert (x_0[:, :4] == torch.tensor([0, 0, 250])[:, None, None]).all()
    assert (x_0[:, 4:] == 255).all()


def test_grey_is_the_luma_of_the_colours(tmp_path):
    x_0 = read(tmp_path, Image.new("RGB", (8, 8), (200, 100, 50)), grey=True)
    assert x_0.shape == (1, 8, 8)
    assert (x_0.float() - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)).abs().max() < 1


@pytest.mark.parametrize("upright", [(8, 8), (24, 16)], ids=["square", "oblong"])
def test_a_picture_is_turned_as_its_exif_data_say(upright, tmp_path):
    """Stored on its side: its left is the top."""
    stored = Image.new("L", upright, 0)
    stored.paste(255, (0, 0, upright[0] // 2, upright[1]))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read(tmp_path / "turned", stored, "a.jpg", exif=exif)
    assert turned[:, :3].min() > 200
    assert turned[:, 5:].max() < 50
    plain = read(tmp_path / "plain", stored, "a.jpg")
    assert plain[:, :, :3].min() > 200
    assert plain[:, :, 5:].max() < 50


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (33, 32), (32, 301)], ids=str)
def test_the_centre_is_kept_at_the_right_scale(shape, tmp_path):
    """A blue margin around the centre square is cut off; inside, a white border of two of 32 pixels is one of 16."""
    picture = Image.new("RGB", shape, (0, 0, 255))
    left, top = (shape[0] - 32) // 2, (shape[1] - 32) // 2
    picture.paste((255, 255, 255), (left, top, left + 32 + shape[0] % 2, top + 32 + shape[1] % 2))
    picture.paste((0, 0, 0), (left + 8, top + 8, left + 24, top + 24))
    x_0 = read(tmp_path, picture, size=16).int()
    assert (x_0[0] - x_0[2]).abs().max() <= 40  # ringing only, where blue would differ by 255
    assert x_0[:, 5:11, 5:11].max() < 40
    assert x_0[:, :, :2].min() > 215
    assert x_0[:, -2:].min() > 215


def test_resizing_averages(tmp_path):
    """A fine chequerboard becomes even grey; picking pixels leaves black and white."""
    board = Image.fromarray(((np.indices((64, 64)).sum(0) % 2) * 255).astype(np.uint8))
    x_0 = read(tmp_path, board, size=16, grey=True).float()
    assert (x_0 - 127.5).abs().max() < 8
    picked = np.asarray(board.resize((16, 16), Image.Resampling.NEAREST)).astype(float)
    assert np.abs(picked - 127.5).max() > 100


def test_a_small_picture_is_enlarged(tmp_path):
    x_0 = read(tmp_path, Image.new("L", (1, 2), 70), size=32)
    assert x_0.shape == (3, 32, 32)
    assert (x_0 == 70).all()


def test_the_split_depends_on_the_paths_alone(tmp_path, monkeypatch):
    """A file system that lists in another order gives the same split; hidden files and folders do not count."""
    first, second = small_pictures(tmp_path / "first", 30), tmp_path / "second"
    for path in sorted(first.rglob("*.png"), reverse=True):
        copy = second / path.relative_to(first)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (second / ".hidden.png").write_text("no picture")
    (second / ".cache").mkdir()
    (second / ".cache" / "thumbnail.png").write_text("no picture")
    one, two = Images(folder=str(first)), Images(folder=str(second))
    assert (one.train().size, one.test().size) == (27, 3)
    assert torch.equal(one.train().x_0, two.train().x_0)
    assert torch.equal(one.test().x_0, two.test().x_0)
    before, listed = one.train().x_0, Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: reversed(list(listed(self, pattern))))
    assert torch.equal(one.train().x_0, before)


def test_a_relative_folder_lies_in_the_data_root_or_the_working_directory(tmp_path, monkeypatch):
    small_pictures(tmp_path / "data" / "cats", 4)
    cats = Images(folder="cats", test_share=0.5)
    assert cats.train(tmp_path / "data").size == 2
    refused(cats.train, Path("cats").absolute(), "absolute path", "data root")
    monkeypatch.chdir(tmp_path / "data")
    assert cats.train().size == 2
    monkeypatch.chdir("/")
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path / "data"))
    assert cats.test().size == 2
    assert Images(folder=str(tmp_path / "data" / "cats")).test(tmp_path / "elsewhere").size == 1


def jpeg(folder: Path) -> bytes:
    path = folder / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.unlink()
    return data


BAD_PICTURES = {
    "text": ("notes.txt", lambda folder: b"remember the milk", "not a picture", "move it out"),
    "text as picture": ("a.png", lambda folder: b"remember the milk", "not a picture", "move it out"),
    "nothing": ("a.png", lambda folder: b"", "not a picture"),
    "truncated": ("a.jpg", lambda folder: jpeg(folder)[:2000], "cannot be decoded", "truncated", "replace it"),
    "header only": ("a.jpg", lambda folder: jpeg(folder)[:30], "whole picture", "move it out"),
    "array": ("a.npy", lambda folder: b"\x93NUMPY\x01\x00", "not a picture", "move it out"),
}


@pytest.mark.parametrize("bad", BAD_PICTURES.values(), ids=BAD_PICTURES.keys())
@pytest.mark.parametrize("names", ["0", "9"], ids=["first", "last"])
def test_bad_pictures_are_refused(bad, names, tmp_path):
    """Before the training also where the picture would only be tested on."""
    file, data, *parts = bad
    path = small_pictures(tmp_path, 4) / (names + file)
    path.write_bytes(data(tmp_path))
    for share in (0.2, 0.8):
        refused(Images(folder=str(tmp_path), test_share=share).train, path, *parts)


def test_pictures_without_a_known_white_are_refused(tmp_path):
    small_pictures(tmp_path, 4)
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(path)
    refused(Images(folder=str(tmp_path)).train, path, "floating-point", "convert it to 8 or 16 bits")
    Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(path)
    refused(Images(folder=str(tmp_path)).train, path, "32 bits", "convert it to 8 or 16 bits")


def test_folders_without_enough_pictures_are_refused(tmp_path):
    refused(Images(folder=str(tmp_path / "none")).train, f"no folder {tmp_path / 'none'}", "make it")
    refused(Images(folder=str(tmp_path)).test, tmp_path, "no pictures", "put them there")
    small_pictures(tmp_path, 1)
    refused(Images(folder=str(tmp_path)).train, tmp_path, "1 example, at least 2 expected", "add more")
    refused(lambda: Images(folder="a", size=0), "size >= 1", "not 0")
    refused(lambda: Images(folder="a", test_share=1.0), "test_share < 1", "1.0")


# arrays


def save(folder: Path, x_0: object, **labels: object) -> Arrays:
    path = folder / ("a.npz" if labels else "a.npy")
    if labels:
        np.savez(path, x_0=x_0, **labels)
    else:
        np.save(path, x_0, allow_pickle=True)
    return Arrays(path=str(path))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
def test_arrays_come_back_whatever_their_type_and_order(dtype, tmp_path):
    x_0 = np.asfortranarray(np.linspace(-1, 1, 40, dtype=dtype).reshape(10, 2, 2, 1))
    stored = save(tmp_path, x_0)
    assert stored.item_shape == (2, 2, 1)
    assert stored.num_classes == 0
    both = torch.cat([stored.train().x_0, stored.test().x_0])
    order = both[:, 0, 0, 0].argsort()
    assert torch.equal(both[order], torch.from_numpy(x_0.astype(np.float32)))


def test_arrays_with_labels(tmp_path):
    stored = save(tmp_path, np.arange(20.0).reshape(10, 2), labels=np.arange(10, dtype=np.uint8) // 2)
    assert stored.item_shape == (2,)
    assert stored.num_classes == 5
    assert (stored.train().size, stored.test().size) == (9, 1)
    found = stored.train().take(9)
    assert torch.equal((found["x_0"][:, 0] / 4).long(), found["labels"])


def test_compressed_images_of_bytes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3, 6, 5), dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x_0=pixels)
    stored = Arrays(path=str(tmp_path / "a.npz"), test_share=0.3)
    assert stored.item_shape == (3, 6, 5)
    both = torch.cat([stored.train().x_0, stored.test().x_0]).flatten(1)
    assert {bytes(row.tolist()) for row in both} == {row.tobytes() for row in pixels}


def test_the_shape_is_read_without_the_items(tmp_path):
    """A file of a terabyte, all of it a hole."""
    path = tmp_path / "a.npy"
    shape = (2**30, 256)
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        try:
            file.truncate(file.tell() + 4 * math.prod(shape))
        except OSError:
            pytest.skip("no sparse files here")
    assert Arrays(path=str(path)).item_shape == (256,)


ZEROS = np.zeros((6, 1, 8, 8), np.float32)
BAD_ARRAYS = {
    "nan": (np.where(np.arange(6)[:, None] == 3, np.nan, 1.0), {}, "1 of 6", "first at index 3", "leave them out"),
    "overflow": (np.full((6, 2), 1e300), {}, "6 of 6", "infinity", "first at index 0"),
    "range": (ZEROS + 255, {}, "[255, 255]", "expected [-1, 1]", "x / 127.5 - 1"),
    "rank 1": (np.zeros(6), {}, "(6,)", "(n, d) or images (n, c, h, w)", "reshape"),
    "rank 3": (np.zeros((6, 8, 8)), {}, "(6, 8, 8)", "(n, d) or images (n, c, h, w)"),
    "channels last": (np.zeros((6, 8, 8, 3)), {}, "(6, 8, 8, 3)", "move the channels"),
    "integers": (ZEROS.astype(np.int64), {}, "int64", "expected floating numbers or uint8 images", "convert"),
    "byte vectors": (np.zeros((6, 2), np.uint8), {}, "uint8", "expected floating"),
    "complex": (np.zeros((6, 2), complex), {}, "complex128", "expected floating"),
    "objects": (np.array([[{}], [None]], dtype=object), {}, "Python objects", "save it as float32"),
    "fields": (np.zeros(6, [("ж", float)]), {}, "format version (3, 0)", "plain numbers"),
    "empty": (np.zeros((0, 2)), {}, "empty", "(0, 2)", "at least 2"),
    "one": (np.zeros((1, 2)), {}, "1 example, at least 2 expected"),
    "few labels": (ZEROS, {"labels": np.arange(5)}, "(5,) for 6 items", "one label per item"),
    "float labels": (ZEROS, {"labels": np.zeros(6)}, "labels are float64", "integers (n,)"),
    "one-hot labels": (ZEROS, {"labels": np.eye(6, dtype=int)}, "int64 of shape (6, 6)", "integers (n,)"),
    "low labels": (ZEROS, {"labels": np.arange(6) - 1}, "-1 .. 4", "from 0"),
    "object labels": (ZEROS, {"labels": np.array(["a"] * 6, dtype=object)}, "labels holds Python objects"),
}


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
@pytest.mark.parametrize("bad", BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_bad_arrays_are_refused(bad, tmp_path):
    x_0, labels, *parts = bad
    stored = save(tmp_path, x_0, **labels)
    refused(stored.train, stored.path, *parts)


BROKEN = {
    "truncated": ("a.npy", lambda data: data[:-7], "x_0 takes 505 bytes, expected 512", "(6, 8)", "truncated"),
    "longer": ("a.npy", lambda data: data + b"0", "x_0 takes 513 bytes, expected 512", "altered"),
    "header": ("a.npy", lambda data: data[:50], "x_0 has a broken header", "EOF", "save it again"),
    "magic only": ("a.npy", lambda data: data[:6], "cannot be read", "save it again"),
    "garbage": ("a.npy", lambda data: data[:12] + b"\xff" * 400, "x_0 has a broken header", "save it again"),
    "text": ("a.npy", lambda data: b"1.0, 2.0\n", "begins with b'1.0, 2'", "numpy.save"),
    "nothing": ("a.npy", lambda data: b"", "begins with b''", "numpy.save"),
    "truncated zip": ("a.npz", lambda data: data[:300], "cannot be read", "not a zip file", "save it again"),
    "altered zip": ("a.npz", lambda data: data[:400] + b"?" + data[401:], "cannot be read", "CRC"),
}


@pytest.mark.parametrize("bad", BROKEN.values(), ids=BROKEN.keys())
def test_broken_array_files_are_refused(bad, tmp_path):
    file, change, *parts = bad
    path = tmp_path / file
    np.savez(path, x_0=np.zeros((6, 8))) if file == "a.npz" else np.save(path, np.zeros((6, 8)))
    path.write_bytes(change(path.read_bytes()))
    refused(Arrays(path=str(path)).train, path, *parts)


def test_missing_arrays_are_refused(tmp_path):
    missing = Arrays(path=str(tmp_path / "a.npy"))
    refused(missing.train, f"no file {tmp_path / 'a.npy'}", "give the path")
    refused(lambda: missing.item_shape, f"no file {tmp_path / 'a.npy'}", "give the path")
    np.savez(tmp_path / "b.npz", images=ZEROS)
    refused(Arrays(path=str(tmp_path / "b.npz")).train, tmp_path / "b.npz", "holds images, expected x_0", "rename")
    refused(lambda: Arrays(path="a", test_share=0.0), "test_share < 1", "0.0")


def test_importing_the_family_loads_no_reader():
    """What only some data sets need is imported where it is used."""
    script = "import sys, fewstep.datasets; print(*{'PIL', 'pooch', 'sklearn', 'scipy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not found.stdout.split()

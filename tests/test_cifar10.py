"""CIFAR-10: its three forms hold the same images, no pickle is run, and what is said of every bad file."""

import hashlib
import io
import os
import pickle
import struct
import tarfile
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.datasets import CIFAR10, TensorExamples, cifar10
from test_datasets import Quiet, refused

REAL = Path(os.environ.get("FEWSTEP_DATA", "no data root"))
real_cifar10 = pytest.mark.skipif(not (REAL / "cifar10").is_dir(), reason="CIFAR-10 is not in FEWSTEP_DATA/cifar10")
ORIGINALS = [path for path in (REAL / "cifar10" / cifar10.BATCHES, REAL / "cifar10" / cifar10.ARCHIVE) if path.exists()]
real_sheets = pytest.mark.skipif(
    bool(ORIGINALS) or not (REAL / "cifar10" / "labels.npz").is_file(),
    reason="sheets are not what FEWSTEP_DATA/cifar10 holds of CIFAR-10",
)
SMALL = CIFAR10(check_md5=False)


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch, tmp_path):
    monkeypatch.delenv("FEWSTEP_DATA", raising=False)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


# small files in the three forms


class Python2(pickle._Pickler):
    """Writes as Python 2 did: texts are byte strings, and numpy's functions have the names of then."""

    def save_string(self, text: bytes | str) -> None:
        content = text if isinstance(text, bytes) else text.encode("latin1")
        short = len(content) < 256
        self.write((b"U" + bytes([len(content)]) if short else b"T" + struct.pack("<i", len(content))) + content)
        self.memoize(text)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_string, str: save_string}  # noqa: RUF012


def python2(value: object) -> bytes:
    stream = io.BytesIO()
    Python2(stream, protocol=2).dump(value)
    return stream.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


def batch(images: np.ndarray, labels: list[int], **others: object) -> dict[bytes, object]:
    names = [f"picture_s_{i:06d}.png".encode() for i in range(len(images))]
    data = np.ascontiguousarray(images.reshape(len(images), -1))
    found = {b"batch_label": b"training batch 1 of 5", b"labels": labels, b"data": data, b"filenames": names}
    return {**found, **{key.encode(): value for key, value in others.items()}}


def sheet(images: np.ndarray, columns: int) -> Image.Image:
    """The images `(n, 3, 32, 32)` side by side, row by row, put together one at a time."""
    picture = Image.new("RGB", (32 * columns, 32 * (len(images) // columns)))
    for i, image in enumerate(images):
        picture.paste(Image.fromarray(image.transpose(1, 2, 0)), (32 * (i % columns), 32 * (i // columns)))
    return picture


def small_images() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """17 random images, their labels, and which of them are exact."""
    images = np.random.default_rng(0).integers(0, 256, (17, 3, 32, 32), dtype=np.uint8)
    return images, (images[:, 0, 0, 0] % 10).astype(np.uint8), np.arange(17) % 4 != 1


def small_sheets(root: Path) -> Path:
    """A data root with 12 and 5 random images in sheets; of the 12, the third and the last sheet are smaller."""
    images, labels, exact = small_images()
    folder = root / "cifar10"
    folder.mkdir(parents=True, exist_ok=True)
    for file, part, columns in (
        ("train_00", slice(8), 4),
        ("train_01", slice(8, 12), 2),
        ("test_00", slice(12, 17), 5),
    ):
        sheet(images[part], columns).save(folder / f"{file}.webp", lossless=True)
    both = {"train": slice(12), "test": slice(12, 17)}
    arrays = {f"y_{name}": labels[part] for name, part in both.items()}
    np.savez(folder / "labels.npz", **arrays, **{f"exact_{name}": exact[part] for name, part in both.items()})
    return root


def batch_files() -> dict[str, bytes]:
    """The same images in batches: 3, 2, 2, 2 and 3 to train on."""
    images, labels, _ = small_images()
    files = {}
    for name, part in zip(
        (*cifar10.PARTS["train"], "test_batch"), np.split(np.arange(17), [3, 5, 7, 9, 12]), strict=True
    ):
        files[name] = python2(batch(images[part], labels[part].tolist()))
    return files


def small_batches(root: Path) -> Path:
    folder = root / "cifar10" / cifar10.BATCHES
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in batch_files().items():
        (folder / name).write_bytes(content)
    return root


def packed(files: dict[str, bytes], folder: str = cifar10.BATCHES) -> bytes:
    """An archive in whose order the files are backwards and among others, as in the original."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in reversed({"readme.html": b"<html>", **files}.items()):
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def small_archive(root: Path) -> Path:
    (root / "cifar10").mkdir(parents=True, exist_ok=True)
    (root / "cifar10" / cifar10.ARCHIVE).write_bytes(packed(batch_files()))
    return root


FORMS = {"sheets": small_sheets, "folder": small_batches, "archive": small_archive}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def same(examples: TensorExamples, images: np.ndarray, labels: np.ndarray) -> bool:
    return np.array_equal(examples.x_0.numpy(), images) and examples.labels.tolist() == labels.tolist()


@every_form
def test_every_form_holds_the_images_in_order(form, tmp_path, monkeypatch):
    """Channels first, rows of the picture next; channels last and columns before rows are other images."""
    images, labels, _ = small_images()
    root = form(tmp_path)
    train, test = SMALL.train(root), SMALL.test(root)
    assert same(train, images[:12], labels[:12])
    assert same(test, images[12:], labels[12:])
    assert not same(train, images[:12].transpose(0, 1, 3, 2), labels[:12])
    assert not same(train, images[:12].reshape(12, 32, 32, 3).transpose(0, 3, 1, 2), labels[:12])
    assert train.x_0.dtype == torch.uint8  # three bytes of four are saved
    monkeypatch.setenv("FEWSTEP_DATA", str(root))
    assert SMALL.train().size == 12
    refused(lambda: SMALL.train(tmp_path / "other"), tmp_path / "other" / "cifar10", "no file", cifar10.URL)


def test_a_sheet_goes_row_by_row(tmp_path):
    """Numbered images in a sheet of two rows and three columns: read column by column they are out of order."""
    numbered = np.broadcast_to(np.arange(6, dtype=np.uint8)[:, None, None, None] * 40, (6, 3, 32, 32))
    for columns, found in ((3, [0, 40, 80, 120, 160, 200]), (2, [0, 40, 80, 120, 160, 200])):
        sheet(numbered, columns).save(tmp_path / "a.webp", lossless=True)
        images = cifar10.read_sheet((tmp_path / "a.webp").read_bytes(), None)
        assert images[:, 0, 5, 7].tolist() == found
    by_columns = np.swapaxes(numbered.reshape(2, 3, 3, 32, 32), 0, 1).reshape(6, 3, 32, 32)
    sheet(by_columns, 2).save(tmp_path / "a.webp", lossless=True)
    assert cifar10.read_sheet((tmp_path / "a.webp").read_bytes(), None)[:, 0, 5, 7].tolist() != found


def test_the_originals_win_over_their_archive_and_that_over_sheets(tmp_path):
    """Each form gets other labels, so that one sees which is read."""
    images, labels, _ = small_images()
    folder = small_sheets(tmp_path) / "cifar10"
    assert same(SMALL.test(tmp_path), images[12:], labels[12:])
    (folder / cifar10.ARCHIVE).write_bytes(packed({"test_batch": python2(batch(images[12:], [1] * 5))}))
    assert SMALL.test(tmp_path).labels.tolist() == [1] * 5
    (folder / cifar10.BATCHES).mkdir()
    (folder / cifar10.BATCHES / "test_batch").write_bytes(python2(batch(images[12:], [2] * 5)))
    assert SMALL.test(tmp_path).labels.tolist() == [2] * 5


def test_only_exact_leaves_the_flagged_images_out(tmp_path):
    images, labels, exact = small_images()
    root, chosen = small_sheets(tmp_path / "sheets"), CIFAR10(check_md5=False, only_exact=True)
    assert same(chosen.train(root), images[:12][exact[:12]], labels[:12][exact[:12]])
    assert same(chosen.test(root), images[12:][exact[12:]], labels[12:][exact[12:]])
    assert (chosen.train(root).size, SMALL.train(root).size) == (9, 12)
    assert chosen.train(small_batches(tmp_path / "batches")).size == 12  # of the originals all are exact


# no pickle is run

IMAGES = small_images()[0][:3]
GOOD = python2(batch(IMAGES, [1, 2, 3]))


def test_the_reader_agrees_with_pythons_own_on_a_batch_of_full_size(tmp_path):
    """10000 images, whose labels and names a pickle holds in portions; with the default checks."""
    images = np.random.default_rng(1).integers(0, 256, (10_000, 3, 32, 32), dtype=np.uint8)
    content = python2(batch(images, (images[:, 0, 0, 0] % 10).tolist()))
    theirs = pickle.loads(content, encoding="bytes")
    found, labels = cifar10.parse_batch(content)
    assert np.array_equal(found.reshape(10_000, -1), theirs[b"data"])
    assert labels.tolist() == theirs[b"labels"]
    folder = tmp_path / "cifar10" / cifar10.BATCHES
    folder.mkdir(parents=True)
    (folder / "test_batch").write_bytes(content)
    assert CIFAR10().test(tmp_path).size == 10_000


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_read_in_the_order_that_it_names(order):
    images = small_images()[0]
    data = np.array(images.reshape(17, -1), order=order)
    assert np.array_equal(cifar10.parse_batch(python2(batch(images, [0] * 17, data=data)))[0], images)


class Call:
    """Pickled as a call of any function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


class Nasty:
    pass


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_hostile_pickle_is_refused_and_not_run(protocol, tmp_path):
    """The control: Python's own reader does run it."""
    images, trace = small_images()[0][:3], tmp_path / "trace"
    path = small_batches(tmp_path) / "cifar10" / cifar10.BATCHES / "data_batch_1"
    path.write_bytes(
        pickle.dumps(batch(images, [1, 2, 3], filenames=Call(os.system, f"touch {trace}")), protocol=protocol)
    )
    refused(lambda: SMALL.train(tmp_path), path, "a pickle that asks for", "which is not done", "get it again")
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()


HOSTILE = {
    "call": (python2(Call(os.system, "true")), "GLOBAL 'posix system'"),
    "a class": (python2(Nasty()), "GLOBAL 'test_cifar10 Nasty'"),
    "an old text": (b"(S'true'\nios\nsystem\n.", "STRING 'true'"),
    "an old call": (b"(ios\nsystem\n.", "INST 'os system'"),
    "a name on the stack": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "SHORT_BINUNICODE 'os'"),
    "two names in one": (b"\x80\x02U\x02osU\x06system\x93.", "STACK_GLOBAL"),
    "a registered class": (b"\x80\x02\x82\x01.", "EXT1 1"),
    "another of numpy": (python2(Call(np.load, "a.npy")), "GLOBAL 'numpy load'"),
    "a scalar of numpy": (python2(np.float64(1)), "GLOBAL 'numpy.core.multiarray scalar'"),
    "a text": (b"\x80\x02" + b"X" + struct.pack("<i", 3) + b"abc.", "BINUNICODE 'abc'"),
    "a long one": (b"\x80\x02" + b"X" + struct.pack("<i", 999) + b"a" * 999 + b".", "BINUNICODE 'aaa"),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_a_batch_does_not_need_is_refused(hostile):
    content, part = hostile
    refused(lambda: cifar10.parse_batch(content), f"asks for {part}", "a plain batch expected")


def test_names_of_functions_are_words():
    """An allowed function in another's place makes no array."""
    misplaced = GOOD.replace(b"numpy.core.multiarray\n_reconstruct", b"numpy\ndtype")
    assert misplaced != GOOD
    refused(lambda: cifar10.parse_batch(misplaced), "no array of unsigned bytes")


# bad files

BAD_BATCHES = {
    "empty": (b"", "cannot be read, a batch expected"),
    "truncated": (GOOD[:-200], "cannot be read, a batch expected"),
    "no end": (GOOD[:-1], "cannot be read, a batch expected"),
    "text": (b"<html>404</html>", "cannot be read, a batch expected"),
    "a list": (python2([1, 2]), "cannot be read, a batch expected"),
    "nothing on the stack": (b"\x80\x02.", "cannot be read, a batch expected"),
    "no mark": (b"\x80\x02e.", "cannot be read, a batch expected"),
    "no data": (python2({b"labels": [1]}), "cannot be read, a batch expected (b'data')"),
    "no array": (python2(batch(IMAGES, [1, 2, 3], data=[1, 2, 3])), "cannot be read, a batch expected"),
    "fewer labels": (python2(batch(IMAGES, [1, 2])), "3 images, but 2 labels"),
    "label 10": (python2(batch(IMAGES, [1, 10, 3])), "labels in 1 .. 10, expected 0 .. 9"),
    "label -1": (python2(batch(IMAGES, [1, -1, 3])), "labels in -1 .. 3, expected 0 .. 9"),
    "label None": (python2(batch(IMAGES, [1, None, 3])), "no list of integers"),
    "label True": (python2(batch(IMAGES, [1, True, 3])), "no list of integers"),
    "labels": (python2(batch(IMAGES, b"123")), "no list of integers"),
    "grey": (python2(batch(IMAGES[:, 0], [1, 2, 3])), "data of shape (3, 1024), expected (n, 3072)"),
    "rank": (
        python2(batch(IMAGES, [1, 2, 3], data=IMAGES.reshape(3, 3072, 1))),
        "data of shape (3, 3072, 1), expected",
    ),
    "fewer bytes": (GOOD.replace(b"K\x03M\x00\x0c", b"K\x04M\x00\x0c"), "9216 bytes, expected 12288", "(4, 3072)"),
    "floats": (python2(batch(IMAGES.astype(np.float32), [1, 2, 3])), "no array of unsigned bytes"),
}


@pytest.mark.parametrize("bad", BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
def test_bad_batches_are_refused(bad, tmp_path):
    """In the folder and in the archive."""
    content, *parts = bad
    folder = small_batches(tmp_path) / "cifar10" / cifar10.BATCHES
    (folder / "data_batch_2").write_bytes(content)
    refused(lambda: SMALL.train(tmp_path), folder / "data_batch_2", *parts, "get it again")
    archive = tmp_path / "other" / "cifar10" / cifar10.ARCHIVE
    archive.parent.mkdir(parents=True)
    archive.write_bytes(packed({**batch_files(), "data_batch_2": content}))
    where = f"{archive}: {cifar10.BATCHES}/data_batch_2: "
    refused(lambda: SMALL.train(tmp_path / "other"), where, *parts, "get it again")


def test_missing_and_short_batches_are_refused(tmp_path):
    folder = small_batches(tmp_path) / "cifar10" / cifar10.BATCHES
    refused(lambda: CIFAR10().train(tmp_path), folder / "data_batch_1", "3 images, expected 10000 or check_md5=False")
    (folder / "data_batch_4").unlink()
    refused(lambda: SMALL.train(tmp_path), f"no file {folder / 'data_batch_4'}", "get it again", cifar10.URL)
    assert SMALL.test(tmp_path).size == 5
    (folder / "data_batch_4").mkdir()
    refused(lambda: SMALL.train(tmp_path), folder / "data_batch_4", "cannot be read", "Is a directory")


ARCHIVE = packed(batch_files())
BAD_ARCHIVES = {
    "empty": (b"", "a whole .tar.gz expected"),
    "text": (b"<html>404</html>", "a whole .tar.gz expected"),
    "truncated": (ARCHIVE[: len(ARCHIVE) // 2], "a whole .tar.gz expected"),
    "altered": (ARCHIVE[:900] + bytes(50) + ARCHIVE[950:], "a whole .tar.gz expected"),
    "other files": (packed(batch_files(), "cifar-100-python"), f"no file {cifar10.BATCHES}/data_batch_1 in it"),
    "one fewer": (packed(dict.fromkeys(cifar10.PARTS["train"][:4], b"")), "data_batch_5 in it, 5 such expected"),
}


@pytest.mark.parametrize("bad", BAD_ARCHIVES.values(), ids=BAD_ARCHIVES.keys())
def test_bad_archives_are_refused(bad, tmp_path):
    content, *parts = bad
    path = small_archive(tmp_path) / "cifar10" / cifar10.ARCHIVE
    path.write_bytes(content)
    refused(lambda: SMALL.train(tmp_path), path, *parts, "get it again")


def test_an_archive_that_is_not_the_original_is_refused(tmp_path, monkeypatch):
    path = small_archive(tmp_path) / "cifar10" / cifar10.ARCHIVE
    found = hashlib.md5(path.read_bytes()).hexdigest()
    refused(
        lambda: CIFAR10().test(tmp_path), path, f"md5 {found}, expected {cifar10.MD5}", "altered", "check_md5=False"
    )
    monkeypatch.setattr(cifar10, "MD5", found)
    refused(lambda: CIFAR10().test(tmp_path), f"{path}: {cifar10.BATCHES}/test_batch", "5 images, expected 10000")


def test_the_archive_is_downloaded_once(tmp_path, monkeypatch):
    folder = small_archive(tmp_path / "mirror") / "cifar10"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr(cifar10, "URL", f"http://127.0.0.1:{server.server_port}/{cifar10.ARCHIVE}")
    refused(SMALL.test, "cannot download", cifar10.URL, cifar10.MD5)
    monkeypatch.setattr(cifar10, "MD5", hashlib.md5((folder / cifar10.ARCHIVE).read_bytes()).hexdigest())
    assert SMALL.test().size == 5
    server.shutdown()
    server.server_close()
    assert SMALL.train().size == 12  # from the cache


def lossy(path: Path) -> None:
    sheet(small_images()[0][:8], 4).save(path, quality=80)


def with_alpha(path: Path) -> None:
    picture = sheet(small_images()[0][:8], 4)
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(path, lossless=True)


def animated(path: Path) -> None:
    frames = [sheet(small_images()[0][i : i + 8], 4) for i in (0, 8)]
    frames[0].save(path, lossless=True, save_all=True, append_images=frames[1:])


def of_size(path: Path, width: int, height: int) -> None:
    Image.new("RGB", (width, height)).save(path, lossless=True)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


BAD_SHEETS = {
    "missing": (Path.unlink, "no file"),
    "folder": (lambda path: path.unlink() or path.mkdir(), "Is a directory"),
    "empty": (lambda path: path.write_bytes(b""), "not lossless WebP"),
    "png": (lambda path: sheet(IMAGES, 3).save(path, format="png"), "not lossless WebP"),
    "lossy": (lossy, "not lossless WebP, lossless expected"),
    "animated": (animated, "not lossless WebP"),
    "alpha": (with_alpha, "colours RGBA, expected RGB"),
    "truncated": (cut, "cannot be read, a whole lossless WebP picture expected"),
    "zeros": (lambda path: path.write_bytes(path.read_bytes()[:20] + bytes(400)), "cannot be read"),
    "width": (partial(of_size, width=100, height=64), "100 x 64 pixels, expected multiples of 32"),
    "height": (partial(of_size, width=128, height=60), "128 x 60 pixels, expected multiples of 32"),
    "more images": (partial(of_size, width=160, height=32), "13 images up to the end of this sheet, expected 12"),
}


@pytest.mark.parametrize("bad", BAD_SHEETS.values(), ids=BAD_SHEETS.keys())
def test_bad_sheets_are_refused(bad, tmp_path):
    spoil, *parts = bad
    path = small_sheets(tmp_path) / "cifar10" / "train_01.webp"
    spoil(path)
    assert SMALL.test(tmp_path).size == 5
    refused(lambda: SMALL.train(tmp_path), path, *parts, "get it again")


def test_sheets_too_few_and_too_many_are_refused(tmp_path):
    folder = small_sheets(tmp_path) / "cifar10"
    of_size(folder / "train_01.webp", 32, 64)
    refused(lambda: SMALL.train(tmp_path), f"no file {folder / 'train_02.webp'}", "get it again")
    small_sheets(tmp_path)
    of_size(folder / "train_02.webp", 32, 32)
    refused(lambda: SMALL.train(tmp_path), folder / "train_02.webp", "2 expected for 12 labels", "remove it")


FLAGS = np.ones(12, bool)
LABELS = np.arange(12, dtype=np.uint8) % 10
BAD_LABELS = {
    "none": ({"exact_train": FLAGS}, "cannot be read, an .npz with y_train and exact_train expected", "y_train"),
    "no flags": ({"y_train": LABELS}, "exact_train"),
    "label 10": ({"y_train": LABELS + 1, "exact_train": FLAGS}, "labels in 1 .. 10, expected 0 .. 9"),
    "label -1": ({"y_train": LABELS.astype(int) - 1, "exact_train": FLAGS}, "labels in -1 .. 8, expected 0 .. 9"),
    "floats": ({"y_train": LABELS / 1.0, "exact_train": FLAGS}, "y_train is float64 of shape (12,)", "integers (n,)"),
    "rank": ({"y_train": LABELS[None], "exact_train": FLAGS}, "y_train is uint8 of shape (1, 12)", "integers (n,)"),
    "flags": ({"y_train": LABELS, "exact_train": LABELS}, "exact_train is uint8 of shape (12,), expected bool (12,)"),
    "fewer flags": ({"y_train": LABELS, "exact_train": FLAGS[1:]}, "bool of shape (11,), expected bool (12,)"),
    "objects": ({"y_train": np.array([Nasty()] * 12), "exact_train": FLAGS}, "cannot be read", "allow_pickle"),
}


@pytest.mark.parametrize("bad", BAD_LABELS.values(), ids=BAD_LABELS.keys())
def test_bad_labels_are_refused(bad, tmp_path):
    arrays, *parts = bad
    path = small_sheets(tmp_path) / "cifar10" / "labels.npz"
    np.savez(path, **arrays)
    refused(lambda: SMALL.train(tmp_path), path, *parts, "get it again")


def test_a_broken_file_of_labels_is_refused(tmp_path):
    path = small_sheets(tmp_path) / "cifar10" / "labels.npz"
    path.write_bytes(path.read_bytes()[:300])
    refused(lambda: SMALL.train(tmp_path), path, "cannot be read", "get it again")
    path.unlink()
    refused(lambda: SMALL.train(tmp_path), f"no file {path}", "get it again")


def test_by_default_there_are_as_many_images_as_in_the_original(tmp_path):
    """Sheets of 50 x 100 images, and as many labels."""
    folder = small_sheets(tmp_path) / "cifar10"
    refused(lambda: CIFAR10().train(tmp_path), folder / "labels.npz", "12 labels y_train, expected 50000", "check_md5")
    np.savez(folder / "labels.npz", y_test=np.zeros(10_000, np.uint8), exact_test=np.ones(10_000, bool))
    refused(lambda: CIFAR10().test(tmp_path), folder / "test_00.webp", "160 x 32 pixels, expected 1600 x 3200")
    for i in range(2):
        of_size(folder / f"test_{i:02d}.webp", 1600, 3200)
    assert CIFAR10().test(tmp_path).size == 10_000
    of_size(folder / "test_01.webp", 3200, 1600)
    refused(lambda: CIFAR10().test(tmp_path), folder / "test_01.webp", "3200 x 1600 pixels, expected 1600 x 3200")


@real_cifar10
def test_the_real_images():
    """Sizes, classes, first labels and pixels, mean and deviation of the channels as published; no image twice."""
    train, test = CIFAR10().train(REAL), CIFAR10().test(REAL)
    assert train.labels.bincount().tolist() == [5000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    assert train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert train.x_0[0, :, 0, 0].tolist() == [59, 62, 63]
    assert test.x_0[0, :, 0, 0].tolist() == [158, 112, 49]
    std, mean = zip(*(torch.std_mean(train.x_0[:, c].float() / 255) for c in range(3)), strict=True)
    assert mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    assert std == pytest.approx([0.2470, 0.2435, 0.2616], abs=1e-4)
    both = {image.tobytes() for part in (train, test) for image in part.x_0.numpy()}
    assert len(both) == 60_000


@real_sheets
def test_98_of_the_real_images_are_flagged():
    with np.load(REAL / "cifar10" / "labels.npz") as arrays:
        flagged = {part: int((~arrays[f"exact_{part}"]).sum()) for part in ("train", "test")}
    assert flagged == {"train": 77, "test": 21}
    assert CIFAR10(only_exact=True).test(REAL).size == 10_000 - 21

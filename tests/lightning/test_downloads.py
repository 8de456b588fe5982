"""Loaders of downloaded data, on small archives of the original formats."""

import hashlib
import io
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from steepest.lightning import CIFAR10Data, DownloadError, WikiText2Data, _cifar10, _wikitext2
from steepest.lightning._cache import cache_root, download


def python2_pickle(images, labels):
    """Bytes that Python 2's cPickle wrote for {"data": uint8 array, "labels": list}."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def number(value):
        return b"J" + struct.pack("<i", value)

    data = images.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"tR"
        b"(K\x01" + number(len(images)) + number(images.shape[1]) + b"\x86"
        b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR"
        b"(K\x03" + text(b"|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb"
        b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    )
    items = b"".join(b"K" + bytes([label]) for label in labels)
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + b"](" + items + b"eu."


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A small archive of CIFAR-10's format where the real one would be downloaded from."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (120, 3072), dtype=np.uint8)
    labels = [*range(10)] * 12
    source = tmp_path / "far" / "cifar-10-python.tar.gz"
    source.parent.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    with tarfile.open(source, "w:gz") as tar:
        for i in (3, 0, 5, 1, 4, 2):  # the real archive is in no order either
            part = slice(20 * i, 20 * i + 20)
            blob = python2_pickle(images[part], labels[part])
            info = tarfile.TarInfo(f"cifar-10-batches-py/{names[i]}")
            info.size = len(blob)
            tar.addfile(info, io.BytesIO(blob))
        tar.addfile(tarfile.TarInfo("cifar-10-batches-py/readme.html"))
    monkeypatch.setattr(_cifar10, "URL", source.as_uri())
    monkeypatch.setattr(_cifar10, "SHA256", sha256(source))
    return images.reshape(-1, 3, 32, 32), labels, source


@pytest.fixture
def wikitext(tmp_path, monkeypatch):
    texts = {
        "train": " \n = Valkyria = \n \n the <unk> of the game \n",
        "valid": " \n the game \n",
        "test": " = the = \n",
    }
    source = tmp_path / "wikitext-2-v1.zip"
    with zipfile.ZipFile(source, "w") as archive:
        for name, text in texts.items():
            archive.writestr(f"wikitext-2/wiki.{name}.tokens", text)
    monkeypatch.setattr(_wikitext2, "URL", source.as_uri())
    monkeypatch.setattr(_wikitext2, "SHA256", sha256(source))
    return source


def test_cifar10_is_what_the_archive_holds(cifar, tmp_path):
    images, labels, source = cifar
    data = CIFAR10Data(batch_size=20, root=tmp_path / "cache")
    data.prepare_data()
    source.unlink()  # once there, it is not asked for again
    data.setup()
    x, y = next(iter(data.test_dataloader()))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    np.testing.assert_array_equal((x * 255).round().byte().numpy(), images[100:])
    assert y.tolist() == labels[100:]
    assert [len(part) for part in data.splits.values()] == [90, 10, 20]
    assert data.splits["val"].targets.bincount().tolist() == [1] * 10
    place = {image.tobytes(): i for i, image in enumerate(images[:100])}
    found = [
        [place[image.numpy().tobytes()] for image in data.splits[name].inputs]
        for name in ("train", "val")
    ]
    assert sorted(found[0] + found[1]) == list(range(100))
    assert found[0] == sorted(found[0])  # in the batches' order, not the archive's
    assert data.splits["train"].targets.tolist() == [labels[i] for i in found[0]]
    assert os.listdir(tmp_path / "cache") == ["cifar-10-python.tar.gz"]


def test_cifar10_runs_nothing_that_a_pickle_asks_for():
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    with pytest.raises(pickle.UnpicklingError, match="does not belong"):
        _cifar10._read(io.BytesIO(pickle.dumps({"data": Evil()}, protocol=2)))


def test_wikitext2_is_one_stream_of_words(wikitext, tmp_path):
    data = WikiText2Data(root=tmp_path / "cache", context=4)
    data.prepare_data()
    data.setup()
    assert data.vocabulary == ["<eos>", "=", "Valkyria", "the", "<unk>", "of", "game"]
    stream = [
        "<eos>",
        "=",
        "Valkyria",
        "=",
        "<eos>",
        "<eos>",
        "the",
        "<unk>",
        "of",
        "the",
        "game",
        "<eos>",
    ]
    train = data.splits["train"]
    read = [[data.vocabulary[i] for i in row] for row in train.inputs.tolist()]
    assert read == [stream[0:4], stream[4:8]]
    ahead = [[data.vocabulary[i] for i in row] for row in train.targets.tolist()]
    assert ahead == [stream[1:5], stream[5:9]]
    assert len(data.splits["val"]) == 0  # four words are no window with a target for each
    with pytest.raises(ValueError, match="context must be positive"):
        WikiText2Data(context=0)


@pytest.mark.parametrize("module", [CIFAR10Data, WikiText2Data])
def test_without_a_network_the_error_says_what_to_put_where(module, tmp_path, monkeypatch):
    source = {CIFAR10Data: _cifar10, WikiText2Data: _wikitext2}[module]
    url, checksum = source.URL, source.SHA256
    assert len(checksum) == 64
    assert url.startswith("https://")

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(DownloadError) as error:
        module(root=tmp_path / "cache").prepare_data()
    message = str(error.value)
    for part in ("no network", url, checksum, str(tmp_path / "cache" / source.ARCHIVE)):
        assert part in message
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wrong_file_is_never_kept_and_never_overwritten(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"not what was meant")
    target = tmp_path / "cache" / "file"
    with pytest.raises(DownloadError, match="another checksum"):
        download(source.as_uri(), target, "0" * 64)
    assert list(target.parent.iterdir()) == []
    target.write_bytes(b"put here by hand")
    with pytest.raises(DownloadError, match="is not the file expected"):
        download(source.as_uri(), target, "0" * 64)
    assert target.read_bytes() == b"put here by hand"
    assert download("file:///nowhere", target, sha256(target)) == target


def test_an_interrupted_download_leaves_nothing_behind(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("steepest.lightning._cache.sha256", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download(source.as_uri(), tmp_path / "cache" / "file", "0" * 64)
    assert list((tmp_path / "cache").iterdir()) == []


def test_cache_is_in_the_repository_or_at_home(tmp_path, monkeypatch):
    monkeypatch.setattr("steepest.lightning._cache.find_root", lambda: tmp_path)
    assert cache_root() == tmp_path / "data" / "cache"
    monkeypatch.setattr("steepest.lightning._cache.find_root", lambda: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "steepest"
    assert cache_root("~/here") == tmp_path / "here"

"""A data set that was interrupted goes on from its last whole part, to the same bytes."""

import os

import numpy as np
import pytest
from PIL import Image

from tedm.config import DatasetConfig, ImageConfig
from tedm.data import prepare as module
from tedm.data import prepared
from tedm.data.prepare import prepare
from tedm.data.sources.folder import FolderImages
from tedm.errors import TedmError

N = 60


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "BUFFER_BYTES", 8 * 16 * 16 * 2)  # eight images per part
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    rng = np.random.default_rng(0)
    for k in range(N):
        Image.fromarray(rng.integers(0, 256, (20, 20)).astype(np.uint8)).save(
            tmp_path / f"images/{k:02d}.png"
        )
        Image.fromarray(rng.integers(0, 2, (20, 20)).astype(np.uint8)).save(tmp_path / f"masks/{k:02d}.png")
    return tmp_path


def run(folder, out="out", threads=2):
    source = {"type": "folder", "images": "images", "masks": "masks"}
    dataset = DatasetConfig.model_validate({"label": "x", "source": source, "split": {"test": 1.0}})
    path = folder / out / "x.h5"
    prepare(dataset, "x", ImageConfig(size=16), 0, folder, path, path.with_suffix(".json"), threads=threads)
    return path.read_bytes()


def stop_after(monkeypatch, count):
    """Let so many images be read, then die as Ctrl-C would."""
    read, done = FolderImages.read, []

    def reading(self, name, split):
        if len(done) >= count:
            raise KeyboardInterrupt
        done.append(name)
        return read(self, name, split)

    monkeypatch.setattr(FolderImages, "read", reading)


def counted(monkeypatch):
    read, done = FolderImages.read, []
    monkeypatch.setattr(
        FolderImages, "read", lambda self, name, split: (done.append(name), read(self, name, split))[1]
    )
    return done


def test_an_interrupted_job_goes_on_and_gives_the_same_bytes(folder, monkeypatch):
    expected = run(folder, "whole", threads=1)
    with monkeypatch.context() as patch:
        stop_after(patch, 30)
        with pytest.raises(KeyboardInterrupt):
            run(folder)
    assert not (folder / "out/x.h5").exists()
    kept = list((folder / "out/.x.parts").glob("*.npz"))
    assert 1 <= len(kept) <= 3
    done = counted(monkeypatch)
    assert run(folder, threads=3) == expected
    assert len(done) == N - 8 * len(kept)
    assert not (folder / "out/.x.parts").exists()


@pytest.mark.parametrize("change", ["image", "mask"])
def test_a_file_that_changed_in_between_is_read_again(folder, monkeypatch, change):
    with monkeypatch.context() as patch:
        stop_after(patch, 50)
        with pytest.raises(KeyboardInterrupt):
            run(folder)
    for path in (folder / f"{change}s").iterdir():
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
        os.utime(path, ns=(0, 0))
    assert run(folder) == run(folder, "anew")


def test_a_damaged_part_is_noticed_and_made_again(folder, monkeypatch):
    expected = run(folder, "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 50)
        with pytest.raises(KeyboardInterrupt):
            run(folder)
    part = sorted((folder / "out/.x.parts").glob("*.npz"))[0]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(TedmError, match=r"damaged .* and removed. Run the same command again"):
        run(folder)
    assert run(folder) == expected


def test_after_a_bad_image_is_mended_the_others_are_not_read_again(folder, monkeypatch):
    expected = run(folder, "whole")
    path = folder / "images/05.png"
    good = path.read_bytes()
    path.write_bytes(good[:-40])
    with pytest.raises(TedmError, match=r"05\.png"):
        run(folder)
    path.write_bytes(good)
    done = counted(monkeypatch)
    assert run(folder) == expected
    assert len(done) == 8


def test_few_results_are_held_at_a_time(monkeypatch):
    started = []
    results = module.in_order(lambda k: (started.append(k), k)[1], range(1000), 2, ahead=3)
    assert next(results) == 0
    assert len(started) <= 2 * 3 + 2
    results.close()

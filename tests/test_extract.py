"""Extraction: stored features against a plain hooked forward pass, interruptions, blocks, failures."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_backbone import backbone, data_set, hooked_features

from tedm.config import FeaturesConfig
from tedm.errors import TedmError
from tedm.features import check
from tedm.features import store as layout
from tedm.features.extract import extract
from tedm.features.reader import FeatureStore

T = 50
SETTINGS = FeaturesConfig(dtype="float32", codec="none", images_per_shard=4, batch_size=3)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path):
    return data_set(tmp_path / "tiny.h5")


def run(tmp_path, data, settings=SETTINGS, name="tiny", model=None, timestep=T, seed=0, **more):
    store = tmp_path / f"{name}.zarr"
    manifest = tmp_path / f"{name}.t{timestep:04d}.json"
    extract(model or backbone(), data, store, manifest, timestep, settings, seed, **more)
    return store


def changed(**values):
    return SETTINGS.model_copy(update=values)


def everything(store, timestep=T):
    features = FeatureStore.open(store)
    return features.read(range(len(features)), timestep)


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for layer in a:
        np.testing.assert_array_equal(a[layer], b[layer])


def files_of(store):
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


# ── exactness ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("timestep", [0, 50, 999])
def test_stored_features_equal_those_of_a_plain_hooked_forward(tmp_path, data, timestep):
    store = run(tmp_path, data, timestep=timestep, seed=7)
    expected = hooked_features(backbone(), data, timestep, 7)
    for layer, values in everything(store, timestep).items():
        np.testing.assert_allclose(values, expected[layer], rtol=0, atol=1e-4)


def test_float16_features_are_those_of_float32_rounded(tmp_path, data):
    exact = everything(run(tmp_path, data, name="float32"))
    stored = everything(run(tmp_path, data, changed(dtype="float16", codec="zstd"), name="float16"))
    for layer in exact:
        np.testing.assert_array_equal(stored[layer], exact[layer].astype(np.float16))


def test_official_input_range_and_shared_noise_are_what_they_say(tmp_path, data):
    settings = changed(input_range="official", shared_noise=True)
    store = run(tmp_path, data, settings, seed=3)
    expected = hooked_features(backbone(), data, T, 3, shared=True, official=True)
    for layer, values in everything(store).items():
        np.testing.assert_allclose(values, expected[layer], rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 10, 16])
def test_batch_size_changes_float32_features_by_rounding_only(tmp_path, data, batch_size):
    reference = everything(run(tmp_path, data))
    other = everything(run(tmp_path, data, changed(batch_size=batch_size), name="other"))
    for layer in reference:
        np.testing.assert_allclose(other[layer], reference[layer], rtol=0, atol=1e-4)


@pytest.mark.parametrize("images_per_shard", [1, 3, 64])
def test_shard_size_changes_no_bit(tmp_path, data, images_per_shard):
    reference = everything(run(tmp_path, data))
    other = everything(run(tmp_path, data, changed(images_per_shard=images_per_shard), name="other"))
    assert_same_bits(other, reference)


def test_order_of_the_images_changes_no_bit(tmp_path, data):
    reference = everything(run(tmp_path, data))
    order = [3, 9, 0, 7, 1, 8, 2, 6, 5, 4]
    shuffled = data_set(tmp_path / "shuffled.h5", order=order)
    other = everything(run(tmp_path, shuffled, name="other"))
    assert_same_bits(other, {layer: values[order] for layer, values in reference.items()})


def test_lossy_rounding_stays_within_half_a_unit_of_the_last_kept_bit(tmp_path, data):
    exact = everything(run(tmp_path, data, changed(dtype="float16"), name="exact"))
    lossy = everything(run(tmp_path, data, changed(dtype="float16", keep_bits=5), name="lossy"))
    for layer in exact:
        error = np.abs(lossy[layer].astype(np.float64) - exact[layer])
        assert (error <= np.abs(exact[layer].astype(np.float64)) * 2.0**-6 + 2.0**-20).all()
        assert not (lossy[layer].view(np.uint16) & 0b11111).any()


def test_layers_that_are_not_asked_for_are_not_kept_and_can_be_added(tmp_path, data):
    store = run(tmp_path, data, changed(layers=["up1"]))
    assert list(FeatureStore.open(store).layer_shapes) == ["up1"]
    first = everything(store)["up1"]
    run(tmp_path, data)
    assert list(FeatureStore.open(store).layer_shapes) == ["up0", "up1"]
    np.testing.assert_array_equal(everything(store)["up1"], first)


# ── blocks, devices, processes ──────────────────────────────────────────────────────────────────


def test_blocks_of_images_give_the_same_files_as_one_job(tmp_path, data):
    settings = changed(codec="zstd", images_per_shard=2)
    whole = run(tmp_path, data, settings, name="whole")
    for k in (2, 0, 1):
        assert not (tmp_path / "parts.t0050.json").exists()
        parts = run(tmp_path, data, settings, name="parts", block=(k, 3))
    assert files_of(parts) == files_of(whole)
    parts, whole = (json.loads((tmp_path / f"{n}.t0050.json").read_text()) for n in ("parts", "whole"))
    assert (parts.pop("store"), whole.pop("store")) == ("parts.zarr", "whole.zarr")
    assert parts == whole


def test_several_devices_give_the_same_files_as_one(tmp_path, data):
    settings = changed(images_per_shard=1)
    one = run(tmp_path, data, settings, name="one")
    two = run(tmp_path, data, settings, name="two", devices=["cpu", "cpu"])
    assert files_of(one) == files_of(two)


def test_more_blocks_than_shards_leave_some_blocks_with_nothing_to_do(tmp_path, data):
    settings = changed(images_per_shard=64)
    for k in range(3):
        store = run(tmp_path, data, settings, name="parts", block=(k, 3))
    assert_same_bits(everything(store), everything(run(tmp_path, data, settings)))


SCRIPT = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    sys.path.insert(0, sys.argv[1])
    from tiny_backbone import backbone
    from tedm.config import FeaturesConfig
    from tedm.features.extract import extract
    folder, settings = Path(sys.argv[2]), FeaturesConfig.model_validate_json(sys.argv[3])
    model = backbone()
    print("ready", flush=True)
    sys.stdin.readline()
    manifest = folder / "shared.t0050.json"
    extract(model, folder / "tiny.h5", folder / "shared.zarr", manifest, 50, settings, 0)
    """
)


def start(tmp_path, settings):
    """A process that is ready to extract."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            SCRIPT,
            str(Path(__file__).parent),
            str(tmp_path),
            settings.model_dump_json(),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_processes_at_the_same_array_do_not_corrupt_it(tmp_path, data):
    settings = changed(images_per_shard=1)
    reference = files_of(run(tmp_path, data, settings, name="reference"))
    process = start(tmp_path, settings)
    go(process)
    run(tmp_path, data, settings, name="shared")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert files_of(tmp_path / "shared.zarr") == reference


def test_a_job_for_all_images_is_refused_while_a_block_of_them_is_extracted(tmp_path, data):
    location = layout.Location(tmp_path / "tiny.zarr")
    with (
        layout.lock_block(location, T, (1, 2)),
        pytest.raises(TedmError, match="another process is already making block 1of2"),
    ):
        run(tmp_path, data)
    run(tmp_path, data)


def test_killed_at_random_moments_it_resumes_and_ends_with_the_same_files(tmp_path):
    data = data_set(tmp_path / "tiny.h5", images=48)
    settings = changed(images_per_shard=2, codec="zstd")
    reference = files_of(run(tmp_path, data, settings, name="reference"))
    rng = random.Random(0)
    kept_before = 0
    kills = 0
    for process in [start(tmp_path, settings) for _ in range(3)]:
        go(process)
        time.sleep(rng.uniform(0.05, 0.5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        digests = layout.Record(layout.Location(tmp_path / "shared.zarr"), T).read()
        kept = sum(d is not None for d in digests.get("t0050/up0", []))
        assert kept >= kept_before
        kept_before = kept
    assert kills
    run(tmp_path, data, settings, name="shared")
    assert files_of(tmp_path / "shared.zarr") == reference


def test_shards_that_are_there_are_not_computed_again(tmp_path, data):
    store = run(tmp_path, data)
    record = layout.Record(layout.Location(store), T)
    digests = record.read()
    for shards in digests.values():
        shards[2] = None
    record.write(digests)
    model = backbone()
    passes = []
    plain = model.features
    model.features = lambda images, *rest: passes.append(len(images)) or plain(images, *rest)
    run(tmp_path, data, model=model)
    assert len(passes) == 1
    run(tmp_path, data, model=model)
    assert len(passes) == 1


def test_a_last_shard_that_lost_its_end_is_computed_again(tmp_path, data):
    store = run(tmp_path, data)
    expected = files_of(store)
    shard = store / "t0050" / "up1" / "c.2.0.0.0"
    os.truncate(shard, 100)
    run(tmp_path, data)
    assert files_of(store) == expected


def test_litter_of_killed_writers_is_cleared(tmp_path, data):
    store = run(tmp_path, data)
    expected = files_of(store)
    (store / "t0050" / "up0" / ".c.1.0.0.0.123.partial").write_bytes(b"half")
    run(tmp_path, data)
    assert files_of(store) == expected


# ── other settings, bad input, a machine that refuses ───────────────────────────────────────────


@pytest.mark.parametrize(
    "change",
    [{"model": backbone(seed=1)}, {"seed": 1}, {"settings": changed(dtype="float16")}],
    ids=["backbone", "noise seed", "dtype"],
)
def test_arrays_of_other_settings_are_replaced_by_extraction_and_never_read(tmp_path, data, change):
    store = run(tmp_path, data)
    run(tmp_path, data, timestep=10)
    run(tmp_path, data, **change)
    fresh = run(tmp_path, data, name="fresh", **change)
    assert_same_bits(everything(store), everything(fresh))
    features = FeatureStore.open(store)
    assert features.timesteps == (T,)
    with pytest.raises(TedmError, match="stale"):
        features.read([0], 10)


@pytest.mark.parametrize(
    ("timestep", "settings", "block", "message"),
    [
        (1000, SETTINGS, (0, 1), "outside 0 … 999"),
        (-1, SETTINGS, (0, 1), "outside 0 … 999"),
        (T, changed(layers=["up7"]), (0, 1), "no layer up7"),
        (T, changed(layers=["../../up0"]), (0, 1), "no layer"),
        (T, SETTINGS, (3, 3), "count blocks from 0 to 2"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(tmp_path, data, timestep, settings, block, message):
    with pytest.raises(TedmError, match=message):
        run(tmp_path, data, settings, timestep=timestep, block=block)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.h5"]


def test_images_of_another_size_than_the_backbones_are_refused(tmp_path, data):
    model = backbone()
    model.image_shape = (1, 32, 32)
    with pytest.raises(TedmError, match=r"image\.size"):
        run(tmp_path, data, model=model)


def test_values_that_float16_cannot_hold_are_refused_with_the_setting_that_can(tmp_path, data):
    model = backbone()
    plain = model.features
    model.features = lambda *args: {k: v * 1e6 for k, v in plain(*args).items()}
    with pytest.raises(TedmError, match=r"image00\d .*features\.dtype to float32"):
        run(tmp_path, data, changed(dtype="float16"), model=model)
    assert not (tmp_path / "tiny.t0050.json").exists()


@pytest.mark.parametrize("refusal", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_refusing_disk_ends_in_one_clear_line_and_keeps_what_was_complete(
    tmp_path, data, monkeypatch, refusal
):
    expected = files_of(run(tmp_path, data, name="expected"))
    plain = Path.replace

    def full(path, target):
        if Path(target).name.startswith("c.2."):
            raise OSError(refusal, os.strerror(refusal), str(path))
        return plain(path, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(TedmError, match=r"full|permission"):
        run(tmp_path, data)
    monkeypatch.undo()
    digests = layout.Record(layout.Location(tmp_path / "tiny.zarr"), T).read()
    assert [d is not None for d in digests["t0050/up0"]] == [True, True, False]
    with pytest.raises(TedmError, match="2 of 3 shards"):
        FeatureStore.open(tmp_path / "tiny.zarr").read([0], T)
    assert files_of(run(tmp_path, data)) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
def test_a_full_disk_leaves_a_store_that_verifies_and_goes_on_once_there_is_space(tmp_path, data):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        settings = changed(images_per_shard=1)
        filler = small / "filler"
        filler.write_bytes(bytes(100_000))
        with pytest.raises(TedmError, match="disk is full"):
            run(small, data, settings)
        assert {problem.kind for problem in check.verify(small / "tiny.zarr")} == {"unfinished"}
        filler.unlink()
        run(small, data, settings)
        assert check.verify(small / "tiny.zarr") == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_the_manifest_says_what_is_there(tmp_path, data):
    run(tmp_path, data, seed=5)
    manifest = json.loads((tmp_path / "tiny.t0050.json").read_text())
    assert manifest["timestep"] == T
    assert manifest["backbone_digest"] == backbone().digest
    assert manifest["noise_seed"] == 5
    assert manifest["arrays"]["t0050/up1"]["shape"] == [10, 8, 16, 16]

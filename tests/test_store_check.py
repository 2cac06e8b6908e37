"""Care of feature stores: verify finds every kind of damage, repair mends it, prune and rm remove."""

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_backbone import backbone, data_set

from tedm import config
from tedm.config import FeaturesConfig
from tedm.errors import TedmError
from tedm.features import check
from tedm.features import store as layout
from tedm.features.extract import extract

STEPS = (10, 50)
SETTINGS = FeaturesConfig(images_per_shard=4, batch_size=4)


def files_of(store):
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in store.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    data_set(folder / "tiny.h5", images=10)
    for timestep in STEPS:
        make(folder, timestep)
    return folder


def make(folder, timestep, **change):
    seed = change.pop("seed", 0)
    features = SETTINGS.model_copy(update=change)
    manifest = folder / f"tiny.t{timestep:04d}.json"
    extract(backbone(), folder / "tiny.h5", folder / "tiny.zarr", manifest, timestep, features, seed)


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "results")


@pytest.fixture
def store(folder):
    return folder / "tiny.zarr"


def shard(store, key="t0050/up1", number=1):
    return store / key / f"c.{number}.0.0.0"


def flip(path, byte, bit=0):
    content = bytearray(path.read_bytes())
    content[byte % len(content)] ^= 1 << bit
    path.write_bytes(content)


def test_a_sound_store_has_no_problems(made):
    assert check.verify(made / "tiny.zarr") == []


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_anywhere_in_any_shard_is_found(made, tmp_path, data):
    store = made / "tiny.zarr"
    shards = sorted(path for path in store.rglob("c.*.0.0.0") if path.is_file())
    path = data.draw(st.sampled_from(shards))
    byte = data.draw(st.integers(0, path.stat().st_size - 1))
    before = path.read_bytes()
    flip(path, byte, data.draw(st.integers(0, 7)))
    try:
        problems = check.verify(store)
    finally:
        path.write_bytes(before)
    assert [(p.key, p.kind) for p in problems] == [(f"{path.parts[-3]}/{path.parts[-2]}", "damaged")]


def test_damage_is_told_by_image(store):
    flip(shard(store, number=1), 10)
    (problem,) = check.verify(store)
    assert (problem.key, problem.shard, problem.kind, len(problem.ids)) == ("t0050/up1", 1, "damaged", 1)
    assert problem.ids[0] in {f"image{i:03d}" for i in range(4, 8)}


def break_missing_shard(store):
    shard(store).unlink()
    return [("t0050/up1", "missing")]


def break_truncated_file(store):
    shard(store).write_bytes(shard(store).read_bytes()[:-7])
    return [("t0050/up1", "damaged")]


def break_empty_file(store):
    shard(store).write_bytes(b"")
    return [("t0050/up1", "missing")]


def break_shard_of_another_timestep(store):
    shutil.copy(shard(store, "t0010/up1"), shard(store))
    return [("t0050/up1", "foreign")]


def break_array_of_another_timestep(store):
    shutil.rmtree(store / "t0050" / "up1")
    shutil.copytree(store / "t0010" / "up1", store / "t0050" / "up1")
    return [("t0050/up1", "foreign")]


def break_missing_array(store):
    shutil.rmtree(store / "t0050" / "up1")
    return [("t0050/up1", "missing")]


def break_array_metadata(store):
    (store / "t0050" / "up1" / "zarr.json").write_text("{")
    return [("t0050/up1", "foreign")]


def break_record(store):
    (store / "t0050" / "zarr.json").unlink()
    return [(f"t0050/{layer}", "unfinished") for layer in ("up0", "up1") for _ in range(3)]


def break_with_litter(store):
    shard(store).with_name(".c.1.0.0.0.1234.partial").write_bytes(b"half")
    return [("t0050/up1", "litter")]


BREAKS = [value for name, value in list(globals().items()) if name.startswith("break_")]


@pytest.mark.parametrize("breaks", BREAKS, ids=lambda breaks: breaks.__name__)
def test_verify_finds_it_and_repair_mends_it_and_nothing_else(folder, store, breaks):
    sound = files_of(folder)
    untouched = {p: p.stat().st_mtime_ns for p in store.rglob("c.*.0.0.0") if "up1" not in p.parts}
    expected = breaks(store)
    assert [(p.key, p.kind) for p in check.verify(store)] == expected
    assert [(p.key, p.kind) for p in check.repair(store, backbone(), folder / "tiny.h5")] == expected
    assert check.verify(store) == []
    repaired = {k: v for k, v in files_of(folder).items() if ".lock" not in k}
    assert repaired == {k: v for k, v in sound.items() if ".lock" not in k}
    if breaks is not break_record:
        assert untouched == {p: p.stat().st_mtime_ns for p in untouched}


def test_stale_arrays_are_found_and_repaired(folder, store):
    make(folder, 50, seed=1)
    problems = check.verify(store)
    assert {(p.key, p.kind) for p in problems} == {("t0010/up0", "stale"), ("t0010/up1", "stale")}
    assert "noise_seed is 0, not 1" in problems[0].note
    check.repair(store, backbone(), folder / "tiny.h5")
    assert check.verify(store) == []


def test_a_store_of_another_backbone_is_not_repaired(folder, store):
    with pytest.raises(TedmError, match="extract the features again"):
        check.repair(store, backbone(seed=1), folder / "tiny.h5")


def test_a_store_of_another_data_set_is_not_repaired(folder, store):
    data_set(folder / "other.h5", seed=1)
    next(store.rglob("c.1.0.0.0")).unlink()
    missing = check.verify(store)
    with pytest.raises(TedmError, match="nothing was changed"):
        check.repair(store, backbone(), folder / "other.h5")
    assert check.verify(store) == missing


def test_ls_and_info_tell_sizes_and_states(store):
    rows = check.ls(store)
    assert [row.key for row in rows] == ["t0010/up0", "t0010/up1", "t0050/up0", "t0050/up1"]
    assert {row.state for row in rows} == {"complete"}
    assert rows[1].shape == (10, 8, 16, 16)
    assert rows[1].bytes == sum(
        p.stat().st_size for p in (store / "t0010" / "up1").rglob("*") if p.is_file()
    )
    location = layout.Location(store)
    record = layout.Record(location, 50)
    record.write({**record.read(), "t0050/up0": [None, "x", None]})
    row = check.ls(store)[2]
    assert (row.state, row.shards_done, row.shards) == ("unfinished", 1, 3)
    info = check.info(store)
    assert (info.images, info.timesteps, info.synthetic) == (10, [10, 50], True)


def experiment(**head):
    return config.parse(
        {
            "title": "x",
            "datasets": {
                "tiny": {
                    "label": "Tiny",
                    "source": {"type": "phantom", "site": "jsrt", "count": 10},
                    "split": {"train": 5, "val": 2, "test": 3},
                }
            },
            "image": {"size": 16},
            "backbones": {"ddpm": {"type": "ddpm", "data": "tiny", "multipliers": [1, 2]}},
            "heads": {"one": {"type": "ridge", **head}},
            "evaluation": {"train_on": "tiny", "test_on": ["tiny"], "train_sizes": [1]},
        }
    )


def test_prune_removes_what_no_head_reads_after_saying_so(folder, store):
    reads = experiment(timesteps=[50], layers=["up0"])
    sound = files_of(store)
    planned = check.prune(store, reads, "ddpm")
    assert [removal.key for removal in planned] == ["t0010/up0", "t0010/up1", "t0050/up1"]
    assert files_of(store) == sound
    assert check.prune(store, reads, "ddpm", dry_run=False) == planned
    assert [row.key for row in check.ls(store)] == ["t0050/up0"]
    assert check.verify(store) == []
    assert not (folder / "tiny.t0010.json").exists()
    assert (folder / "tiny.t0050.json").exists()


@pytest.mark.parametrize(("key", "left"), [("t0010", 2), ("t0050/up1", 3)])
def test_rm_removes_one_key(store, key, left):
    assert check.rm(store, key, dry_run=True)
    assert len(check.ls(store)) == 4
    check.rm(store, key)
    assert len(check.ls(store)) == left
    assert check.verify(store) == []


@pytest.mark.parametrize(
    "key", ["..", "../tiny.h5", "t0050/../../tiny.h5", "/etc", "", "t0999", "zarr.json"]
)
def test_rm_of_what_is_not_an_array_of_the_store_is_refused(folder, store, key):
    before = files_of(folder)
    with pytest.raises(TedmError):
        check.rm(store, key)
    assert files_of(folder) == before


def test_rm_through_a_link_that_leads_outside_is_refused(folder, store, tmp_path):
    elsewhere = Path(shutil.move(store / "t0050" / "up1", tmp_path / "elsewhere"))
    (store / "t0050" / "up1").symlink_to(elsewhere)
    before = files_of(elsewhere)
    with pytest.raises(TedmError):
        check.rm(store, "t0050/up1")
    assert files_of(elsewhere) == before


def test_nothing_is_removed_while_a_timestep_is_extracted(store):
    with (
        layout.lock_block(layout.Location(store), 50, (0, 1)),
        pytest.raises(TedmError, match="another process"),
    ):
        check.rm(store, "t0050")
    assert len(check.ls(store)) == 4

"""Care of feature stores: verify finds every kind of damage, repair mends it, prune and rm remove."""

import json
import shutil
import subprocess
import sys
import tracemalloc
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
from tedm.features.reader import FeatureStore

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


def cut(path):
    """What a full disk or a bad copy leaves of a text file."""
    path.write_bytes(path.read_bytes()[:-20])


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


def break_root_that_is_cut_off(store):
    cut(store / "zarr.json")
    return [("/", "damaged")]


def break_empty_root(store):
    (store / "zarr.json").write_bytes(b"")
    return [("/", "damaged")]


def break_missing_root(store):
    (store / "zarr.json").unlink()
    return [("/", "damaged")]


def break_root_of_somebody_else(store):
    (store / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {"a": 1}}')
    return [("/", "damaged")]


def break_timestep_that_is_cut_off(store):
    cut(store / "t0050" / "zarr.json")
    return [("t0050", "damaged")]


def break_timestep_of_somebody_else(store):
    (store / "t0050" / "zarr.json").write_text('{"node_type": "array", "attributes": {"shards": {}}}')
    return [("t0050", "damaged")]


def break_record_that_is_nonsense(store):
    path = store / "t0050" / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["shards"] = {"t0050/up1": 3}
    path.write_text(json.dumps(content))
    return [("t0050", "damaged")]


def break_array_that_is_cut_off(store):
    cut(store / "t0050" / "up1" / "zarr.json")
    return [("t0050/up1", "foreign")]


def break_array_of_another_layer(store):
    shutil.copy(store / "t0050" / "up0" / "zarr.json", store / "t0050" / "up1" / "zarr.json")
    return [("t0050/up1", "foreign")]


def break_metadata_at_every_level(store):
    for node in ("", "t0050", "t0050/up1"):
        cut(store / node / "zarr.json")
    return [("/", "damaged"), ("t0050", "damaged"), ("t0050/up1", "foreign")]


def break_with_litter_everywhere(store):
    for folder in (".", "t0010", "t0050/up1"):
        (store / folder / ".zarr.json.0a1b2c3d.partial").write_bytes(b"half")
    return [("/", "litter"), ("t0010", "litter"), ("t0050/up1", "litter")]


METADATA_BREAKS = [
    value for name, value in list(globals().items()) if name.startswith(("break_root", "break_timestep"))
] + [break_array_that_is_cut_off, break_metadata_at_every_level, break_with_litter_everywhere]
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


@pytest.mark.parametrize("breaks", METADATA_BREAKS, ids=lambda breaks: breaks.__name__)
def test_repair_of_metadata_computes_nothing_again(folder, store, breaks):
    sound = files_of(store)
    shards = {p: p.stat().st_mtime_ns for p in store.rglob("c.*.0.0.0")}
    breaks(store)
    idle = backbone()
    idle.network = None  # any forward pass would fail
    assert check.repair(store, idle, folder / "tiny.h5")
    assert files_of(store) == sound
    assert shards == {p: p.stat().st_mtime_ns for p in shards}


def test_where_settings_cannot_be_known_it_is_said_what_to_delete_and_run(folder, store):
    shutil.rmtree(store / "t0010")
    cut(store / "t0050" / "zarr.json")
    (folder / "tiny.t0050.json").unlink()
    before = files_of(store)
    with pytest.raises(
        TedmError, match=r"tedm store rm \S+tiny.zarr t0050 --yes(.|\n)*forcerun extract_features"
    ):
        check.repair(store, backbone(), folder / "tiny.h5")
    assert files_of(store) == before
    check.rm(store, "t0050")  # what it says
    make(folder, 50)
    assert check.verify(store) == []


def test_a_root_whose_settings_nothing_states_is_not_made_up(folder, store):
    for node in ("", "t0010/up0", "t0010/up1", "t0050/up0", "t0050/up1"):
        cut(store / node / "zarr.json")
    for manifest in folder.glob("tiny.t*.json"):
        manifest.unlink()
    before = files_of(store)
    with pytest.raises(TedmError, match=r"nothing in it says (.|\n)*forcerun extract_features"):
        check.repair(store, backbone(), folder / "tiny.h5")
    assert files_of(store) == before


def test_a_broken_root_is_not_rebuilt_from_another_backbone_or_data_set(folder, store):
    cut(store / "zarr.json")
    data_set(folder / "other.h5", seed=1)
    before = files_of(store)
    with pytest.raises(TedmError, match="extract the features again"):
        check.repair(store, backbone(seed=1), folder / "tiny.h5")
    with pytest.raises(TedmError, match="nothing was changed"):
        check.repair(store, backbone(), folder / "other.h5")
    assert files_of(store) == before


def test_ids_in_the_root_that_are_not_those_of_the_data_set_are_put_right(folder, store):
    sound = files_of(store)
    content = json.loads((store / "zarr.json").read_text())
    content["attributes"]["ids"].reverse()
    (store / "zarr.json").write_text(json.dumps(content))
    (problem,) = check.repair(store, backbone(), folder / "tiny.h5")
    assert (problem.key, problem.kind) == ("/", "foreign")
    assert "ids" in problem.note
    assert files_of(store) == sound


def test_arrays_of_somebody_else_are_named_and_left_alone(folder, store):
    shutil.copytree(store / "t0050" / "up1", store / "t0050" / "extra")
    shutil.copytree(store / "t0050" / "up1", store / "notes")
    found = [(p.key, p.kind) for p in check.verify(store)]
    assert found == [("notes", "unknown"), ("t0050/extra", "unknown")]
    before = files_of(store)
    assert [(p.key, p.kind) for p in check.repair(store, backbone(), folder / "tiny.h5")] == found
    assert files_of(store) == before


def test_a_store_that_has_noise_draws_is_read_and_extracted_and_the_draws_can_be_removed(folder, store):
    """As versions before there were views could make one: t0050/draw1/up0, also in the record."""
    sound = files_of(store)
    content = json.loads((store / "t0050" / "zarr.json").read_text())
    shards = content["attributes"]["shards"]
    shards |= {key.replace("t0050/", "t0050/draw1/"): digests for key, digests in shards.items()}
    (store / "t0050" / "zarr.json").write_text(json.dumps(content))
    for layer in ("up0", "up1"):
        copy = shutil.copytree(store / "t0050" / layer, store / "t0050" / "draw1" / layer)
        of_copy = json.loads((copy / "zarr.json").read_text())
        of_copy["attributes"]["draw"] = 1
        (copy / "zarr.json").write_text(json.dumps(of_copy))
    group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    (store / "t0050" / "draw1" / "zarr.json").write_text(json.dumps(group))
    assert FeatureStore.open(store).timesteps == STEPS
    FeatureStore.open(store).read(range(10), 50)
    assert {(p.key.startswith("t0050/draw1"), p.kind) for p in check.verify(store)} == {(True, "unknown")}
    make(folder, 50)
    assert check.rm(store, "t0050/draw1")
    assert files_of(store) == sound
    assert check.verify(store) == []


def test_a_live_extraction_is_not_cleared_away(folder, store):
    (store / "t0050/up1/.c.0.0.0.0.0a1b2c3d.partial").write_bytes(b"half")
    before = files_of(store)
    with (
        layout.lock_block(layout.Location(store), 50, (0, 1)),
        pytest.raises(TedmError, match="another process"),
    ):
        check.repair(store, backbone(), folder / "tiny.h5")
    assert files_of(store) == before


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


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
@pytest.mark.parametrize(
    ("harm", "note"),
    [
        (lambda path: path.unlink(), "is gone"),
        (lambda path: path.write_bytes(b""), "is gone or empty"),
        (cut, "cut off"),
        (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "cut off"),
        (lambda path: path.write_bytes(path.read_bytes()[9:]), "cut off"),
    ],
)
def test_ls_notices_shards_that_are_gone_or_cut_off(tmp_path, codec, harm, note):
    data_set(tmp_path / "tiny.h5", images=10)
    make(tmp_path, 50, codec=codec)
    assert {row.state for row in check.ls(tmp_path / "tiny.zarr")} == {"complete"}
    harm(shard(tmp_path / "tiny.zarr"))
    up0, up1 = check.ls(tmp_path / "tiny.zarr")
    assert (up0.state, up0.shards_done) == ("complete", 3)
    assert (up1.state, up1.shards_done) == ("damaged", 2)
    assert note in up1.note
    assert "c.1.0.0.0" in up1.note


def test_ls_says_who_made_an_array_and_when(store):
    path = store / "t0010" / "up1"
    row = check.ls(store)[1]
    assert row.made_by == path.owner()
    newest = max(p.stat().st_mtime for p in path.iterdir())
    assert row.made_at.timestamp() == pytest.approx(newest, abs=1)


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


def test_the_manifest_of_a_pruned_timestep_tells_what_is_left(folder, store):
    manifest = folder / "tiny.t0050.json"
    before, made_at = json.loads(manifest.read_text()), manifest.stat().st_mtime_ns
    check.prune(store, experiment(timesteps=[50], layers=["up0"]), "ddpm", dry_run=False)
    after = json.loads(manifest.read_text())
    assert after == before | {"arrays": {"t0050/up0": before["arrays"]["t0050/up0"]}}
    # Heads that read what is left are not out of date.
    assert manifest.stat().st_mtime_ns == made_at
    # Extracting with that layer alone would have said the same.
    make(folder, 50, layers=["up0"])
    assert json.loads(manifest.read_text()) == after


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


# ── what the command line says ──────────────────────────────────────────────────────────────────


def tedm(*arguments, cwd=None):
    command = [sys.executable, "-c", "from tedm.cli import main; main()", "store", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert "Traceback" not in run.stderr
    return run


def test_the_complete_command_is_printed_and_mends(made, tmp_path):
    results = tmp_path / "results"
    store = shutil.copytree(made / "tiny.zarr", results / "features" / "ddpm" / "tiny.zarr")
    (results / "data").mkdir()
    shutil.copy(made / "tiny.h5", results / "data" / "tiny.h5")
    (results / "backbones" / "ddpm").mkdir(parents=True)
    shard(store).unlink()
    expected = "tedm store repair results/features/ddpm/tiny.zarr --backbone results/backbones/ddpm"
    expected += " --data results/data/tiny.h5"
    run = tedm("verify", "results/features/ddpm/tiny.zarr", cwd=tmp_path)
    assert run.returncode == 1
    assert expected in run.stderr
    with pytest.raises(TedmError, match=r"tedm store repair .* --backbone DIRECTORY --data FILE"):
        FeatureStore.open(shutil.copytree(store, tmp_path / "elsewhere.zarr")).read(range(10), 50)


@pytest.mark.parametrize("what", ["absent", "file", "empty", "group"])
@pytest.mark.parametrize("command", ["ls", "info", "verify"])
def test_what_is_not_a_store_ends_in_one_line(tmp_path, what, command):
    path = tmp_path / "x.zarr"
    if what == "file":
        path.write_text("text")
    elif what != "absent":
        path.mkdir()
    if what == "group":
        (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(TedmError, match=r"x\.zarr: (is not|no such|is a Zarr group, but not)"):
        getattr(check, command)(path)


def test_verify_of_what_is_not_a_store_shows_no_progress(tmp_path):
    run = tedm("verify", tmp_path)
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {tmp_path}: is not a feature store")
    assert "0/0" not in run.stderr


# ── stores that somebody made to do harm ────────────────────────────────────────────────────────


def edit(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def harm_deep_root(store):
    (store / "zarr.json").write_text("[" * 100_000)


def harm_deep_array(store):
    (store / "t0050" / "up1" / "zarr.json").write_text('{"a":' * 100_000)


def harm_deep_record(store):
    (store / "t0050" / "zarr.json").write_text('{"attributes":' * 100_000)


def harm_huge_metadata(store):
    with (store / "zarr.json").open("r+b") as file:
        file.truncate(1 << 40)  # a hole: no space, and no end


def harm_a_thousand_million_images(store):
    root = json.loads((store / "zarr.json").read_text())
    root["attributes"]["ids"] = {"length": 10**9}
    (store / "zarr.json").write_text(json.dumps(root))
    edit(store / "t0050" / "up1" / "zarr.json", shape=[10**9, 8, 16, 16])


def harm_huge_shape(store):
    edit(store / "t0050" / "up1" / "zarr.json", shape=[10, 2**30, 2**30, 2**30])


def harm_shape_that_is_no_number(store):
    edit(store / "t0050" / "up1" / "zarr.json", shape=[10, 1e308, float("nan"), "16"])


def harm_layers_of_the_root(store):
    root = json.loads((store / "zarr.json").read_text())
    root["attributes"]["layers"]["up1"] = [2**30, 2**30, 2**30]
    root["attributes"]["image_shape"] = [1, 2**30, 2**30]
    (store / "zarr.json").write_text(json.dumps(root))


def harm_record_without_end(store):
    edit(store / "t0050" / "zarr.json", attributes={"shards": {"t0050/up1": [None] * 200_000}})


def harm_link_to_a_shard_elsewhere(store):
    outside = store.parent / "outside"
    shutil.move(shard(store), outside)
    shard(store).symlink_to(outside)


def harm_link_to_an_array_elsewhere(store):
    outside = store.parent / "outside"
    shutil.move(store / "t0050" / "up1", outside)
    (store / "t0050" / "up1").symlink_to(outside)


def harm_link_in_a_circle(store):
    (store / "t0050" / "again").symlink_to(store)
    shutil.rmtree(store / "t0050" / "up1")
    (store / "t0050" / "up1").symlink_to(store / "t0050" / "up1")


HARMS = [value for name, value in list(globals().items()) if name.startswith("harm_")]


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_hostile_stores_end_in_a_clear_line_and_little_memory(folder, store, harm):
    harm(store)
    outside = {p: p.read_bytes() for p in folder.rglob("outside*") if p.is_file()}
    refused = []
    tracemalloc.start()
    for look in (
        check.ls,
        check.info,
        check.verify,
        lambda store: FeatureStore.open(store).read(range(10), 50),
        lambda store: check.repair(store, backbone(), folder / "tiny.h5"),
    ):
        try:
            refused += [found for found in [look(store)] if isinstance(found, list)]
        except TedmError as error:
            assert len(str(error).splitlines()[0]) < 400
            refused.append(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused
    assert peak < 150e6
    assert outside == {p: p.read_bytes() for p in outside}


@pytest.mark.parametrize(("timestep", "layers"), [(1000, None), (-1, None), (50, ["up7"])])
def test_what_the_backbone_lacks_is_refused_before_anything_is_written(made, tmp_path, timestep, layers):
    shutil.copy(made / "tiny.h5", tmp_path)
    with pytest.raises(TedmError, match=r"outside 0 … 999|has no layer up7"):
        make(tmp_path, timestep, layers=layers)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.h5"]

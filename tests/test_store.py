"""The feature store as its readers see it: plain zarr, our reader, PyTorch; hostile stores."""

import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numcodecs
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiny_backbone import SIZE, backbone, data_set

from tedm.config import AugmentationConfig, FeaturesConfig
from tedm.errors import TedmError
from tedm.features import store as layout
from tedm.features.dataset import FeatureDataset
from tedm.features.extract import extract
from tedm.features.job import Views
from tedm.features.reader import FeatureStore
from tedm.features.rounding import keep_bits
from tedm.features.store import Recipe

N = 11
STEPS = (10, 50)
RECIPE = Recipe(AugmentationConfig(), 5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    data = data_set(folder / "tiny.h5", images=N, splits=["test"] * 3 + ["train"] * (N - 3))
    settings = FeaturesConfig(images_per_shard=4)
    for timestep in STEPS:
        for views, name in ((None, ""), (Views.first(RECIPE, 1), ".views1")):
            manifest = folder / f"tiny.t{timestep:04d}{name}.json"
            extract(backbone(), data, folder / "tiny.zarr", manifest, timestep, settings, 0, views=views)
    return folder / "tiny.zarr"


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "tiny.zarr")


# ── what others see ─────────────────────────────────────────────────────────────────────────────


def test_plain_zarr_reads_the_same_numbers_and_the_tree_shows_timestep_and_layer(made):
    group = zarr.open_group(made, mode="r")
    assert group.attrs["dataset"] == "Tiny"
    assert {path for path, _ in group.members(max_depth=None)} == {
        *(f"t{t:04d}" for t in STEPS),
        *(f"t{t:04d}/view1-{RECIPE.digest}" for t in STEPS),
        *(f"t{t:04d}/{layer}" for t in STEPS for layer in ("up0", "up1")),
        *(f"t{t:04d}/view1-{RECIPE.digest}/{layer}" for t in STEPS for layer in ("up0", "up1")),
    }
    features = FeatureStore.open(made)
    for t in STEPS:
        for layer, values in features.read(range(N), t).items():
            np.testing.assert_array_equal(group[f"t{t:04d}/{layer}"][:], values)
        for layer, values in features.read(range(3, 8), t, view=1).items():
            np.testing.assert_array_equal(group[f"t{t:04d}/view1-{RECIPE.digest}/{layer}"][:], values)


def test_attributes_say_everything_that_a_stranger_needs(made):
    attributes = dict(zarr.open_group(made, mode="r").attrs)
    assert attributes["ids"] == [f"image{i:03d}" for i in range(N)]
    assert attributes["synthetic"] is True
    assert attributes["image_shape"] == [1, SIZE, SIZE]
    assert attributes["layers"] == {"up0": [16, 8, 8], "up1": [8, 16, 16]}
    assert attributes["backbone_digest"] == backbone().digest
    for key in ("units", "resize", "noise", "noise_seed", "data_digest", "tedm_version", "made_with"):
        assert key in attributes


@pytest.mark.parametrize("codec", ["none", "zstd", "lz4"])
def test_every_codec_gives_plain_zarr_the_same_numbers_as_our_reader(tmp_path, codec):
    data = data_set(tmp_path / "tiny.h5", images=3)
    settings = FeaturesConfig(codec=codec, keep_bits=7)
    store = tmp_path / "tiny.zarr"
    extract(backbone(), data, store, tmp_path / "m.json", 50, settings, 0)
    values = FeatureStore.open(store).read(range(3), 50)["up1"]
    np.testing.assert_array_equal(zarr.open_group(store, mode="r")["t0050/up1"][:], values)
    assert np.isfinite(values).all()
    assert values.std() > 0.1


def test_importing_the_reader_loads_no_torch():
    code = "import sys, tedm.features.reader, tedm.features.check; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ── reading ─────────────────────────────────────────────────────────────────────────────────────


@given(rows=st.lists(st.integers(0, N - 1), max_size=8))
def test_rows_are_read_in_any_order_and_any_number(made, rows):
    features = FeatureStore.open(made)
    whole = features.read(range(N), 50)
    for layer, values in features.read(rows, 50).items():
        np.testing.assert_array_equal(values, whole[layer][rows])


@pytest.mark.parametrize("rows", [[-1], [N], [0, 3, N]])
def test_rows_that_are_not_there_are_refused(made, rows):
    with pytest.raises(TedmError, match=r"not in 0 … 10"):
        FeatureStore.open(made).read(rows, 50)


@given(
    rows=st.lists(st.integers(0, N - 1), min_size=1, max_size=N),
    batch=st.integers(1, 5),
    budget=st.integers(1, 10),
)
def test_iterating_gives_every_row_once_in_order_whatever_the_budget(made, rows, batch, budget):
    features = FeatureStore.open(made)
    per_image = 2 * 2 * (16 * 8 * 8 + 8 * 16 * 16)
    if budget < batch:
        with pytest.raises(TedmError, match="the budget is"):
            list(features.iterate(rows, batch=batch, budget_bytes=budget * per_image))
        return
    batches = list(features.iterate(rows, batch=batch, budget_bytes=budget * per_image))
    assert [row for part in batches for row in part.rows] == rows
    for t in STEPS:
        for layer, values in features.read(rows, t).items():
            joined = np.concatenate([part.features[t, layer] for part in batches])
            np.testing.assert_array_equal(joined, values)


def test_iterating_may_be_left_early_and_takes_a_selection(made):
    features = FeatureStore.open(made)
    for part in features.iterate(timesteps=[50], layers=["up1"], batch=2):
        assert list(part.features) == [(50, "up1")]
        break


def test_an_error_of_the_thread_that_reads_ahead_reaches_the_caller(copy):
    (copy / "t0050" / "up1" / "c.2.0.0.0").unlink()
    batches = FeatureStore.open(copy).iterate(batch=2)
    with pytest.raises(TedmError, match="the file is gone"):
        list(batches)


def test_threads_and_pickles_may_share_a_store(made):
    features = pickle.loads(pickle.dumps(FeatureStore.open(made)))
    whole = features.read(range(N), 50)["up0"]
    with ThreadPoolExecutor(4) as pool:
        for row, values in enumerate(pool.map(lambda row: features.read([row], 50)["up0"], range(N))):
            np.testing.assert_array_equal(values[0], whole[row])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_torch_loader_reads_batches_also_in_worker_processes(made, workers):
    features = FeatureStore.open(made)
    whole = features.read(range(N), 50)
    dataset = FeatureDataset(features, rows=[4, 2, 9], timesteps=[50])
    loader = torch.utils.data.DataLoader(dataset, batch_size=3, num_workers=workers)
    (batch,) = loader
    np.testing.assert_array_equal(batch["t0050/up1"].numpy(), whole["up1"][[4, 2, 9]])


# ── refusals ────────────────────────────────────────────────────────────────────────────────────


def test_a_store_of_another_backbone_or_data_set_is_refused_with_what_to_do(made):
    with pytest.raises(TedmError, match=r"made from backbone [^,]*, but.*0123(.|\n)*extract"):
        FeatureStore.open(made, backbone_digest="0123")
    with pytest.raises(TedmError, match="made from data set"):
        FeatureStore.open(made, data_digest="0123")
    FeatureStore.open(made, backbone_digest=backbone().digest)


@pytest.mark.parametrize(
    ("timestep", "layers", "view"), [(51, None, 0), (50, ["up9"], 0), (50, ["../up0"], 0), (50, None, 2)]
)
def test_what_is_not_in_the_store_is_refused_with_what_there_is(made, timestep, layers, view):
    again = r"extract_views" if view else r"extract_features"
    with pytest.raises(TedmError, match=rf"timesteps: t0010, t0050(.|\n)*{again}"):
        FeatureStore.open(made).read([3], timestep, layers, view)


def test_damage_is_never_read_as_features(copy):
    features = FeatureStore.open(copy)
    shard = copy / "t0050" / "up0" / "c.0.0.0.0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(TedmError, match=r"damaged(.|\n)*verify"):
        features.read(range(4), 50, ["up0"])


@pytest.mark.parametrize("what", ["nothing", "an empty directory", "another zarr group", "a file"])
def test_what_is_no_feature_store_is_refused(tmp_path, what):
    path = tmp_path / "x.zarr"
    if what == "an empty directory":
        path.mkdir()
    elif what == "another zarr group":
        zarr.create_group(path)
    elif what == "a file":
        path.write_text("text")
    with pytest.raises(TedmError, match="feature store"):
        FeatureStore.open(path)


def edit(path, **changes):
    file = path / "zarr.json"
    values = json.loads(file.read_text())
    for dotted, value in changes.items():
        node = values
        *parents, last = dotted.split("__")
        for parent in parents:
            node = node[int(parent) if isinstance(node, list) else parent]
        node[last] = value
    file.write_text(json.dumps(values))


HUGE = 1 << 30


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [HUGE, 16, 8, 8]},
        {"shape": [N, HUGE, HUGE, HUGE]},
        {
            "shape": [N, HUGE, 8, 8],
            "chunk_grid__configuration__chunk_shape": [4, HUGE, 8, 8],
            "codecs__0__configuration__chunk_shape": [1, HUGE, 8, 8],
        },
        {"shape": [N, -16, 8, 8]},
        {"shape": "large"},
        {"chunk_grid__configuration__chunk_shape": [HUGE, 16, 8, 8]},
        {"codecs__0__configuration__chunk_shape": [4, 16, 8, 8]},
        {"codecs__0__configuration__codecs": [{"name": "bytes"}, {"name": "evil"}]},
        {"codecs": []},
        {"data_type": "float64"},
        {"data_type": {"name": "object"}},
        {"attributes": {}},
        {"attributes__layer": "up1"},
        {"storage_transformers": [{"name": "x"}]},
    ],
)
def test_arrays_with_hostile_metadata_are_never_opened(copy, changes):
    edit(copy / "t0050" / "up0", **changes)
    features = FeatureStore.open(copy)
    with pytest.raises(TedmError, match="up0"):
        features.read([0], 50, ["up0"])
    assert features.read([0], 50, ["up1"])


@pytest.mark.parametrize(
    "changes",
    [
        {"attributes__ids": "all"},
        {"attributes__ids": [1, 2]},
        {"attributes__image_shape": [1, 16]},
        {"attributes__layers": ["up0"]},
        {"attributes__dtype": "object"},
        {"attributes__format_version": 99},
        {"attributes": []},
    ],
)
def test_stores_with_hostile_attributes_are_refused(copy, changes):
    edit(copy, **changes)
    with pytest.raises(TedmError, match=r"tiny\.zarr"):
        FeatureStore.open(copy)


def test_metadata_that_is_not_json_is_refused(copy):
    (copy / "zarr.json").write_text("[" * 100_000)
    with pytest.raises(TedmError, match="not valid JSON"):
        FeatureStore.open(copy)


@pytest.mark.parametrize(
    "text",
    [
        *("", "t0050", "up0", "t50/up0", "t0050/../up0", "t00050/up0", "t0050/draw1/up0", "/t0050/up0"),
        *("t0050/view1/up0", "t0050/view0-3fa9c2d0/up0", "t0050/view01-3fa9c2d0/up0"),
        *("t0050/view1-3FA9C2D0/up0", "t0050/view1-3fa9c2d0", "t0050/view1-3fa9c2d/up0"),
    ],
)
def test_text_that_names_no_array_is_no_key(text):
    with pytest.raises(TedmError, match="look like t0050/up2"):
        layout.Key.parse(text)


@given(
    st.integers(0, 99_999),
    st.one_of(
        st.just((0, "")), st.tuples(st.integers(1, 99), st.from_regex(r"[0-9a-f]{8}", fullmatch=True))
    ),
    st.from_regex(r"up[0-9]", fullmatch=True),
)
def test_keys_are_read_back_from_their_text(timestep, view, layer):
    key = layout.Key(timestep, *view, layer)
    assert layout.Key.parse(str(key)) == key


# ── rounding ────────────────────────────────────────────────────────────────────────────────────


@given(data=st.data(), dtype=st.sampled_from([np.float16, np.float32]))
def test_rounding_equals_that_of_numcodecs(data, dtype):
    bits = data.draw(st.integers(1, 10 if dtype == np.float16 else 23))
    numbers = st.floats(-1000, 1000, width=16 if dtype == np.float16 else 32)
    values = data.draw(arrays.arrays(dtype, st.integers(1, 20), elements=numbers))
    codec = numcodecs.BitRound(keepbits=bits)
    expected = codec.decode(codec.encode(values.copy())).view(dtype)
    np.testing.assert_array_equal(keep_bits(values.copy(), bits), expected)

"""Views in the feature store: against another implementation, interrupted, mended, learned from."""

import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from tiny_backbone import SIZE, backbone, data_set, hooked_features

from tedm import augmentation, config, evaluation, fitting, seeds
from tedm.config import AugmentationConfig, FeaturesConfig
from tedm.data.prepared import PreparedSet
from tedm.errors import TedmError
from tedm.features import check
from tedm.features import store as layout
from tedm.features.adopt import adopt, recipe_of, shared_store
from tedm.features.dataset import FeatureDataset
from tedm.features.extract import extract
from tedm.features.job import Job, Views
from tedm.features.reader import FeatureStore
from tedm.features.shared import SharedFeatures
from tedm.features.store import Recipe
from tedm.features.viewed import ViewedFeatures
from tedm.features.views import drawn, seen
from tedm.files import write_json
from tedm.heads import ArrayFeatures, Head, base
from tedm.search import Budget, search_timesteps

N, T = 8, 50
SPLITS = ["test", "train", "train", "train", "train", "val", "train", "val"]
SUBJECTS = ["t", "a", "b", "a", "c", "v", "c", "w"]  # volumes: a has two slices, as has c
ROWS = [1, 3, 2]  # of the first two training subjects, subject by subject
SETTINGS = FeaturesConfig(dtype="float32", images_per_shard=2, batch_size=2)
RECIPE = Recipe(AugmentationConfig(), 2)
OTHER = Recipe(AugmentationConfig(gamma=0), 2)
GEOMETRY = AugmentationConfig(gamma=0, contrast=0, brightness=0, zoom=0.3, rotation=40, shift=0.1)
STILL = AugmentationConfig(gamma=0, contrast=0, brightness=0, zoom=0, rotation=0, shift=0)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def classes_of(images: int, classes: int = 2) -> np.ndarray:
    """Masks of blobs that exclude each other, (images, classes, SIZE, SIZE)."""
    rng = np.random.default_rng(1)
    fields = ndimage.gaussian_filter(rng.normal(size=(images, classes + 1, SIZE, SIZE)), (0, 0, 2, 2))
    return (fields.argmax(1)[:, None] == np.arange(1, classes + 1)[None, :, None, None]).astype(np.uint8)


def tiny(folder: Path, **more) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    more = {"splits": SPLITS, "subjects": SUBJECTS, "masks": classes_of(N)} | more
    return data_set(folder / "tiny.h5", N, **more)


def run(folder, views=None, recipe=RECIPE, timestep=T, settings=SETTINGS, model=None, seed=7, **more):
    """Extract what a job of the workflow would: every image, or so many views, or some views by number."""
    wanted = views if views is None or isinstance(views, Views) else Views.first(recipe, views)
    name = f"tiny.t{timestep:04d}" + (f".views{max(wanted.numbers)}" if wanted else "")
    manifest = folder / f"{name}.json"
    store = folder / "tiny.zarr"
    extract(
        model or backbone(),
        folder / "tiny.h5",
        store,
        manifest,
        timestep,
        settings,
        seed,
        views=wanted,
        **more,
    )
    return store


def counting(model=None):
    """A backbone, and the number of images of each of its forward passes."""
    model, passes = model or backbone(), []
    plain = model.features
    model.features = lambda images, *rest: passes.append(len(images)) or plain(images, *rest)
    return model, passes


def idle():
    """A backbone whose forward pass would fail."""
    model = backbone()
    model.network = None
    return model


def files_of(store):
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def times_of(store, pattern="c.*"):
    return {p: p.stat().st_mtime_ns for p in store.rglob(pattern) if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with all images at two timesteps and two views of training images; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    tiny(folder)
    for timestep in (10, T):
        run(folder, timestep=timestep)
        run(folder, 2, timestep=timestep)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "results")


@pytest.fixture
def store(folder):
    return folder / "tiny.zarr"


V1, V2 = (f"t0050/view{view}-{RECIPE.digest}" for view in (1, 2))


# ── exactness ───────────────────────────────────────────────────────────────────────────────────


def warped(image: np.ndarray, view: augmentation.View) -> np.ndarray:
    """(C, S, S) under the map of a view of one image, by scipy in float64."""
    size = image.shape[-1]
    maps = view.maps[0].numpy().astype(np.float64)
    # Pixel i of S has its centre at (2 i + 1) / S - 1; the map takes (x, y), scipy rows and columns.
    matrix = maps[::-1, 1::-1]
    centre = (1 - size) / size
    offset = ((matrix @ [centre, centre] + maps[::-1, 2] + 1) * size - 1) / 2
    return np.stack(
        [
            ndimage.affine_transform(c, matrix, offset, order=1, mode="nearest")
            for c in image.astype(np.float64)
        ]
    )


def looked_at(image: np.ndarray, view: augmentation.View) -> np.ndarray:
    """(C, S, S) in [0, 1] as it looks in a view of one image."""
    gamma, contrast, brightness = (
        float(v[0].double()) for v in (view.gamma, view.contrast, view.brightness)
    )
    out = warped(image, view) ** gamma
    mean = out.mean((1, 2), keepdims=True)
    return np.clip((out - mean) * contrast + mean + brightness, 0, 1)


@pytest.mark.parametrize(
    "ranges",
    [AugmentationConfig(), GEOMETRY, STILL, "study"],
    ids=["default", "geometry", "still", "study"],
)
def test_features_of_a_view_equal_those_of_a_plain_hooked_forward_over_the_image_changed_by_scipy(
    tmp_path, ranges
):
    data, recipe = tiny(tmp_path), Recipe(ranges, 2)
    features = FeatureStore.open(run(tmp_path, 2, recipe))
    with PreparedSet(data) as prepared:
        images, ids = prepared.images(ROWS), [prepared.ids[row] for row in ROWS]
    for number in (1, 2):
        pixels = {}
        for name, image in zip(ids, images, strict=True):
            view = augmentation.draw(seeds.generator(7, "view", name, number), 1, (SIZE, SIZE), ranges)
            pixels[name] = looked_at(image, view).astype(np.float32)
        assert (np.abs(np.stack([*pixels.values()]) - images).max() > 0.05) == (ranges is not STILL)
        expected = hooked_features(backbone(), data, T, 7, view=number, pixels=pixels)
        for layer, values in features.read(ROWS, T, view=number).items():
            np.testing.assert_allclose(values, expected[layer], rtol=0, atol=2e-4)


def test_each_view_of_each_image_is_another(made):
    features = FeatureStore.open(made / "tiny.zarr")
    each = [features.read(ROWS, T, ["up0"], view=view)["up0"] for view in (0, 1, 2)]
    flat = np.concatenate(each).reshape(9, -1)
    assert all(np.abs(flat[i] - flat[j]).max() > 0.1 for i in range(9) for j in range(i))


def test_images_as_they_are_have_the_files_that_they_have_without_views(tmp_path, made):
    tiny(tmp_path)
    plain = files_of(run(tmp_path))
    with_views = files_of(made / "tiny.zarr")
    for name, content in plain.items():
        if name.startswith("t0050/"):
            same = with_views[name] if name != "t0050/zarr.json" else None
            assert same in (content, None), name
    record = json.loads(plain["t0050/zarr.json"])["attributes"]["shards"]
    assert record.items() <= json.loads(with_views["t0050/zarr.json"])["attributes"]["shards"].items()


def test_an_array_of_images_as_they_are_states_what_it_did_before_there_were_views(made):
    """Written out: stores of then are read now, and those of now have the same bytes."""
    with PreparedSet(made / "tiny.h5") as prepared:
        data_digest = prepared.digest
    little = {"configuration": {"endian": "little"}, "name": "bytes"}
    expected = {
        "attributes": {
            "backbone_digest": backbone().digest,
            "codec": "none",
            "data_digest": data_digest,
            "draw": 0,
            "dtype": "float32",
            "input_range": "trained",
            "keep_bits": None,
            "layer": "up1",
            "noise_seed": 7,
            "shared_noise": False,
            "timestep": 50,
            "units": "1",
        },
        "chunk_grid": {"configuration": {"chunk_shape": [2, 8, 16, 16]}, "name": "regular"},
        "chunk_key_encoding": {"configuration": {"separator": "."}, "name": "default"},
        "codecs": [
            {
                "configuration": {
                    "chunk_shape": [1, 8, 16, 16],
                    "codecs": [little, {"name": "crc32c"}],
                    "index_codecs": [little, {"name": "crc32c"}],
                    "index_location": "end",
                },
                "name": "sharding_indexed",
            }
        ],
        "data_type": "float32",
        "dimension_names": ["image", "up1_channel", "up1_row", "up1_column"],
        "fill_value": "NaN",
        "node_type": "array",
        "shape": [8, 8, 16, 16],
        "zarr_format": 3,
    }
    written = (made / "tiny.zarr" / "t0050" / "up1" / "zarr.json").read_text()
    assert written == json.dumps(expected, indent=2, sort_keys=True) + "\n"


def test_an_array_of_a_view_states_how_it_was_made(made):
    stated = json.loads((made / "tiny.zarr" / V2 / "up1" / "zarr.json").read_text())["attributes"]
    assert (stated["timestep"], stated["view"], stated["recipe"]) == (T, 2, RECIPE.digest)
    assert Recipe.of(stated) == RECIPE
    assert Recipe.of(json.loads(json.dumps(Recipe("study", 3).stated))) == Recipe("study", 3)
    manifest = json.loads((made / "tiny.t0050.views2.json").read_text())
    assert manifest["views"] == {"numbers": [1, 2], "recipe": RECIPE.digest, **RECIPE.stated}
    assert sorted(manifest["arrays"]) == [
        f"{view}/{layer}" for view in (V1, V2) for layer in ("up0", "up1")
    ]


# ── the same bytes ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Files of a store with t = 50 alone, and the manifest of its views."""
    folder = tmp_path_factory.mktemp("reference")
    tiny(folder)
    run(folder)
    return files_of(run(folder, 2)), (folder / "tiny.t0050.views2.json").read_bytes()


def without_locks(files):
    return {name: content for name, content in files.items() if ".lock" not in name}


@pytest.mark.parametrize(
    "steps",
    [
        [{"views": 2}, {}],
        [{"views": Views(RECIPE, (2,))}, {}, {"views": 1}, {"views": 2}],
        [{"views": 2, "block": (1, 2)}, {}, {"views": 2, "block": (0, 2)}],
        [{}, {"views": 2, "devices": ["cpu", "cpu"]}],
    ],
    ids=["views first", "one by one", "blocks", "devices"],
)
def test_views_have_the_same_bytes_however_they_are_made(tmp_path, reference, steps):
    tiny(tmp_path)
    for step in steps:
        store = run(tmp_path, **step)
    assert without_locks(files_of(store)) == without_locks(reference[0])
    assert (tmp_path / "tiny.t0050.views2.json").read_bytes() == reference[1]


@pytest.mark.parametrize("change", [{"images_per_shard": 1}, {"images_per_shard": 64}, {"codec": "zstd"}])
def test_sizes_of_shards_and_codecs_change_no_bit_of_a_view(tmp_path, made, change):
    tiny(tmp_path)
    store = run(tmp_path, 2, settings=SETTINGS.model_copy(update=change))
    for view in (1, 2):
        expected = FeatureStore.open(made / "tiny.zarr").read(ROWS, T, view=view)
        for layer, values in FeatureStore.open(store).read(ROWS, T, view=view).items():
            np.testing.assert_array_equal(values, expected[layer])


def test_a_view_depends_on_its_image_and_not_on_which_others_there_are(tmp_path, made):
    order = [6, 3, 0, 7, 1, 2, 5, 4]  # subjects c, a, b, of which c and a have views now
    data = tiny(tmp_path, order=order)
    features = FeatureStore.open(run(tmp_path, 1))
    with PreparedSet(data) as prepared:
        ids = prepared.ids
    assert [ids[row] for row in features.view_rows] == ["image006", "image004", "image003", "image001"]
    here = [ids.index(name) for name in ("image001", "image003")]
    expected = FeatureStore.open(made / "tiny.zarr").read([1, 3], T, view=1)
    for layer, values in features.read(here, T, view=1).items():
        np.testing.assert_array_equal(values, expected[layer])


def in_another_process(what) -> int:
    """Do it in a fork; the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            what()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_at_every_forward_pass_and_before_every_record_it_ends_with_the_same_bytes(
    tmp_path, reference, monkeypatch
):
    tiny(tmp_path)
    run(tmp_path)
    kept, ends = 0, []
    for turn in range(8):
        model, passes = counting()
        plain, vouch = model.features, Job.vouch
        if turn % 2:  # a shard is written and not yet on record
            monkeypatch.setattr(Job, "vouch", lambda *args: die())
        else:
            model.features = lambda *args: die() if len(passes) == 2 else plain(*args)  # noqa: B023
        ends.append(in_another_process(lambda: run(tmp_path, 2, model=model)))  # noqa: B023
        monkeypatch.setattr(Job, "vouch", vouch)
        assert not (tmp_path / "tiny.t0050.views2.json").exists() or ends[-1] == 0
        digests = layout.Record(layout.Location(tmp_path / "tiny.zarr"), T).read()
        done = sum(d is not None for key, shards in digests.items() if "view" in key for d in shards)
        assert done >= kept
        kept = done
        if ends[-1] == 0:
            break
    assert ends[0] == ends[1] == -signal.SIGKILL
    store = run(tmp_path, 2)
    assert without_locks(files_of(store)) == without_locks(reference[0])
    assert (tmp_path / "tiny.t0050.views2.json").read_bytes() == reference[1]


def test_a_view_that_is_there_is_not_computed_again(tmp_path, reference):
    tiny(tmp_path)
    store = run(tmp_path)
    run(tmp_path, 2)
    record = layout.Record(layout.Location(store), T)
    digests = record.read()
    for layer in ("up0", "up1"):
        digests[f"{V2}/{layer}"][1] = None
    record.write(digests)
    model, passes = counting()
    run(tmp_path, 2, model=model)
    assert len(passes) == 1
    assert without_locks(files_of(store)) == without_locks(reference[0])
    run(tmp_path, 2, model=idle())


def test_four_views_more_are_four_views_of_work_and_leave_the_others_alone(tmp_path):
    tiny(tmp_path)
    settings = SETTINGS.model_copy(update={"batch_size": 3, "images_per_shard": 3})
    run(tmp_path, settings=settings)
    model, passes = counting()
    store = run(tmp_path, 4, settings=settings, model=model)
    assert passes == [3] * 4
    before, times = files_of(store), times_of(store, "*")
    manifest = (tmp_path / "tiny.t0050.views4.json").read_bytes()
    run(tmp_path, 8, settings=settings, model=model)
    assert passes == [3] * 8
    after = files_of(store)
    own = {name for name in before if name not in ("t0050/zarr.json", "zarr.json") and ".lock" not in name}
    assert {name: after[name] for name in own} == {name: before[name] for name in own}
    assert {p: t for p, t in times_of(store, "*").items() if p.relative_to(store).as_posix() in own} == {
        p: t for p, t in times.items() if p.relative_to(store).as_posix() in own
    }
    assert (tmp_path / "tiny.t0050.views4.json").read_bytes() == manifest
    run(tmp_path, 4, settings=settings, model=idle())
    run(tmp_path, 3, settings=settings, model=idle())


# ── several recipes ─────────────────────────────────────────────────────────────────────────────


def test_views_of_other_ranges_lie_beside_and_which_are_read_must_be_said(folder, store):
    before, times = files_of(store), times_of(store)
    model, passes = counting()
    run(folder, 1, OTHER, model=model)
    assert sum(passes) == 4  # two passes of three images, in batches of two
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert {n: c for n, c in files_of(store).items() if n in before and n != "t0050/zarr.json"} == {
        n: c for n, c in before.items() if n != "t0050/zarr.json"
    }
    one, other = (FeatureStore.open(store, recipe=r.digest) for r in (RECIPE, OTHER))
    assert (one.recipe, other.recipe) == (RECIPE, OTHER)
    assert set(one.recipes) == {RECIPE.digest, OTHER.digest}
    a, b = (features.read(ROWS, T, view=1)["up0"] for features in (one, other))
    assert np.abs(a - b).max() > 1e-3
    unsaid = FeatureStore.open(store)
    unsaid.read(range(N), T)
    for read in (
        lambda: unsaid.read(ROWS, T, view=1),
        lambda: next(unsaid.iterate(view=1)),
        lambda: FeatureDataset(unsaid, view=1),
        lambda: ViewedFeatures(unsaid, 1),
    ):
        with pytest.raises(TedmError, match=rf"several recipes(.|\n)*{OTHER.digest}(.|\n)*recipe="):
            read()
    with pytest.raises(TedmError, match=f"has no t0010/view1-{OTHER.digest}"):
        other.read(ROWS, 10, view=1)


@pytest.mark.parametrize("recipe", [None, "0123abcd"])
def test_views_that_are_not_there_are_refused_with_what_to_do(tmp_path, recipe):
    tiny(tmp_path)
    features = FeatureStore.open(run(tmp_path), recipe=recipe)
    of_recipe = f" of recipe {recipe}" if recipe else ""
    assert features.view_rows == ()
    for read in (
        lambda: features.read(ROWS, T, view=1),
        lambda: list(features.iterate(view=1)),
        lambda: FeatureDataset(features, view=1),
        lambda: next(iter(FeatureDataset(features, ROWS, view=1))),
    ):
        with pytest.raises(TedmError, match=rf"has no views{of_recipe};(.|\n)*forcerun extract_views"):
            read()
    assert "extract_views" in ViewedFeatures(features, 1).why_absent(T, "up0")
    assert ViewedFeatures(features, 0).why_absent(T, "up0") is None


# ── which images ────────────────────────────────────────────────────────────────────────────────


def test_all_slices_of_the_first_training_subjects_have_views_and_no_other_image(made):
    features = FeatureStore.open(made / "tiny.zarr")
    assert features.view_rows == tuple(ROWS)
    assert features.read(ROWS, T, view=1)["up1"].shape == (3, 8, SIZE, SIZE)
    for row in (0, 4, 5, 6, 7):  # test, of the third subject, val
        with pytest.raises(
            TedmError, match=rf"image00{row} \(row {row}\) has no views(.|\n)*view_subjects"
        ):
            features.read([1, row], T, view=1)


@pytest.mark.parametrize(("subjects", "rows"), [(1, [1, 3]), (3, [1, 3, 2, 4, 6]), (12, [1, 3, 2, 4, 6])])
def test_as_many_subjects_as_are_stated_have_views_or_all_that_there_are(tmp_path, subjects, rows):
    tiny(tmp_path)
    run(tmp_path)
    features = FeatureStore.open(run(tmp_path, 1, Recipe(AugmentationConfig(), subjects)))
    assert list(features.view_rows) == rows
    (batch,) = features.iterate(view=1)
    assert batch.rows == rows
    expected = features.read(rows, T, view=1)
    for layer in expected:
        np.testing.assert_array_equal(batch.features[T, layer], expected[layer])


def test_a_data_set_without_training_images_has_no_views(tmp_path):
    tiny(tmp_path, splits=["test"] * N)
    with pytest.raises(TedmError, match="no images in the split train"):
        run(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.h5"]


# ── masks ───────────────────────────────────────────────────────────────────────────────────────


def test_a_mask_follows_its_image(tmp_path):
    """An image that is its own mask still is in every view."""
    masks = classes_of(N, 1)
    data, recipe = tiny(tmp_path, masks=masks, pixels=255 * masks), Recipe(GEOMETRY, 3)
    viewed = ViewedFeatures(FeatureStore.open(run(tmp_path, 3, recipe)), 3)
    with PreparedSet(data) as prepared:
        rows = viewed.rows_of(prepared.training_rows(3))
        found = viewed.masks(prepared, rows)
        images = prepared.images(viewed.view_rows)
    ids = [viewed.ids[row] for row in viewed.view_rows]
    np.testing.assert_array_equal(found[:5], masks[rows[:5]])
    for view in (1, 2, 3):
        picture = seen(images, ids, view, recipe, 7)
        mask = found[5 * view : 5 * view + 5]
        sure = np.abs(picture - 0.5) > 1e-4
        np.testing.assert_array_equal(mask[sure], (picture > 0.5)[sure])
        assert sure.mean() > 0.99
        assert (mask != masks[[*ROWS, 4, 6]]).mean() > 0.02


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_classes_stay_exclusive_and_each_pixel_has_the_one_that_fills_most_of_it(tmp_path, classes):
    truth = classes_of(N, classes)
    data, recipe = tiny(tmp_path, masks=truth), Recipe(GEOMETRY, 2)
    viewed = ViewedFeatures(FeatureStore.open(run(tmp_path, 2, recipe)), 2)
    rows = [len(viewed) - 1, N, 5, N + 1, N]  # views 2, 1, 0, 1, 1 of 2, 1, 5, 3, 1
    with PreparedSet(data) as prepared:
        found = viewed.masks(prepared, rows)
    assert found.dtype == np.uint8
    assert found.sum(1).max() == 1
    np.testing.assert_array_equal(found[2], truth[5])
    for mask, row, number in ((found[0], 2, 2), (found[1], 1, 1), (found[3], 3, 1), (found[4], 1, 1)):
        view = drawn([f"image00{row}"], number, recipe, 7, (SIZE, SIZE))
        shares = warped(truth[row], view)
        shares = np.concatenate((1 - shares.sum(0, keepdims=True), shares))
        best = np.sort(shares, 0)
        sure = best[-1] - best[-2] > 1e-4
        expected = shares.argmax(0)[None] == np.arange(1, classes + 1)[:, None, None]
        np.testing.assert_array_equal(mask[:, sure], expected[:, sure])
        assert sure.mean() > 0.95


# ── reading ─────────────────────────────────────────────────────────────────────────────────────


def test_rows_of_viewed_features_are_images_and_then_their_views(made):
    features = FeatureStore.open(made / "tiny.zarr")
    viewed = ViewedFeatures(features, 2)
    assert len(viewed) == N + 6
    assert viewed.rows_of([2, 4, 1]) == [2, 4, 1, N, N + 2, N + 3, N + 5]
    assert viewed.timesteps == (10, T)
    whole = {
        layer: np.concatenate([features.read(range(N), T)[layer]] + [
            features.read(ROWS, T, view=view)[layer] for view in (1, 2)
        ])
        for layer in ("up0", "up1")
    }  # fmt: skip
    copies = [viewed, pickle.loads(pickle.dumps(viewed))]
    copies += [SharedFeatures(viewed, memory) for memory in (0, 60_000, 2**20)]
    for rows in ([], [0], [N + 5, 0, N, 3, N + 2, N], list(range(N + 6))):
        for source in copies:
            for layer, values in source.read(rows, T).items():
                np.testing.assert_array_equal(values, whole[layer][rows])
    for source in (viewed, SharedFeatures(viewed, 2**20)):
        with pytest.raises(TedmError, match="views are rows here"):
            source.read([1], T, view=1)
        with pytest.raises(TedmError, match="rows"):
            source.read([N + 6], T)
        with pytest.raises(TedmError, match="rows"):
            source.read([-1], T)


def test_a_store_with_a_recipe_may_be_pickled(folder, store):
    run(folder, 1, OTHER)
    features = FeatureStore.open(store, recipe=OTHER.digest)
    again = pickle.loads(pickle.dumps(features))
    assert again.recipe == OTHER
    for layer, values in again.read(ROWS, T, view=1).items():
        np.testing.assert_array_equal(values, features.read(ROWS, T, view=1)[layer])


@pytest.mark.parametrize("rows", [None, [2, 1]])
def test_a_torch_loader_reads_a_view(made, rows):
    features = FeatureStore.open(made / "tiny.zarr")
    dataset = FeatureDataset(features, rows, [T], view=2)
    assert dataset.rows == (rows or ROWS)
    (batch,) = torch.utils.data.DataLoader(dataset, batch_size=4)
    for layer, values in features.read(rows or ROWS, T, view=2).items():
        np.testing.assert_array_equal(batch[f"t0050/{layer}"].numpy(), values)


# ── care ────────────────────────────────────────────────────────────────────────────────────────


def flip(path, byte=10):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def test_a_sound_store_with_views_has_no_problems(made):
    assert check.verify(made / "tiny.zarr") == []


def test_a_flipped_bit_in_a_view_is_told_by_image_and_that_shard_alone_is_computed_again(folder, store):
    sound = files_of(folder)
    flip(store / V2 / "up1" / "c.1.0.0.0")
    (problem,) = check.verify(store)
    assert (problem.key, problem.shard, problem.kind) == (f"{V2}/up1", 1, "damaged")
    assert problem.ids == ("image002",)
    with pytest.raises(TedmError, match=rf"{V2}/up1: damaged(.|\n)*verify"):
        FeatureStore.open(store).read([2], T, view=2)
    FeatureStore.open(store).read([1, 3], T, view=2)
    others = {p: t for p, t in times_of(store).items() if p != store / V2 / "up1" / "c.1.0.0.0"}
    model, passes = counting()
    assert check.repair(store, model, folder / "tiny.h5") == [problem]
    assert len(passes) == 1
    assert without_locks(files_of(folder)) == without_locks(sound)
    assert {p: p.stat().st_mtime_ns for p in others} == others


def lose_shard(store):
    (store / V1 / "up0" / "c.0.0.0.0").unlink()
    return [(f"{V1}/up0", "missing")]


def lose_array(store):
    shutil.rmtree(store / V1 / "up0")
    return [(f"{V1}/up0", "missing")]


def lose_view(store):
    shutil.rmtree(store / V1)
    return [(f"{V1}/{layer}", "missing") for layer in ("up0", "up1")]


def lose_all_views(store):
    for view in (V1, V2):
        shutil.rmtree(store / view)
    return [(f"{view}/{layer}", "missing") for view in (V1, V2) for layer in ("up0", "up1")]


def take_another_view(store):
    shutil.rmtree(store / V1 / "up0")
    shutil.copytree(store / V2 / "up0", store / V1 / "up0")
    return [(f"{V1}/up0", "foreign")]


def take_a_shard_of_another_view(store):
    shutil.copy(store / V2 / "up0" / "c.1.0.0.0", store / V1 / "up0" / "c.1.0.0.0")
    return [(f"{V1}/up0", "foreign")]


def leave_litter(store):
    (store / V1 / ".zarr.json.0a1b2c3d.partial").write_bytes(b"half")
    (store / V1 / "up0" / ".c.1.0.0.0.1234.partial").write_bytes(b"half")
    return [(V1, "litter"), (f"{V1}/up0", "litter")]


def lose_record(store):
    (store / "t0050" / "zarr.json").unlink()
    keys = [f"{group}/{layer}" for group in ("t0050", V1, V2) for layer in ("up0", "up1")]
    return [(key, "unfinished") for key in keys for _ in range(4 if key.count("/") == 1 else 2)]


def break_group(store):
    cut(store / V1 / "zarr.json")
    return [(V1, "damaged")]


def break_array(store):
    cut(store / V1 / "up0" / "zarr.json")
    return [(f"{V1}/up0", "foreign")]


def break_all_arrays(store):
    for view in (V1, V2):
        for layer in ("up0", "up1"):
            for timestep in ("t0050", "t0010"):
                cut(store / view.replace("t0050", timestep) / layer / "zarr.json")
    keys = [f"{view}/{layer}" for view in (V1, V2) for layer in ("up0", "up1")]
    return [(key, "foreign") for key in sorted([*keys, *(k.replace("t0050", "t0010") for k in keys)])]


def break_record(store):
    cut(store / "t0050" / "zarr.json")
    return [("t0050", "damaged")]


def break_everything(store):
    for node in ("", "t0050", V1, f"{V1}/up0", "t0050/up1"):
        cut(store / node / "zarr.json")
    damaged, foreign = ("/", "t0050", V1), ("t0050/up1", f"{V1}/up0")
    return [*((key, "damaged") for key in damaged), *((key, "foreign") for key in foreign)]


METADATA = [leave_litter, break_group, break_array, break_all_arrays, break_record, break_everything]
HARMS = [lose_shard, lose_array, lose_view, lose_all_views, take_another_view, take_a_shard_of_another_view]


@pytest.mark.parametrize("harm", [*HARMS, lose_record, *METADATA], ids=lambda harm: harm.__name__)
def test_verify_finds_it_and_repair_mends_it_and_nothing_else(folder, store, harm):
    sound, times = files_of(folder), times_of(store)
    expected = harm(store)
    assert [(p.key, p.kind) for p in check.verify(store)] == expected
    untouched = {
        p: t for p, t in times.items() if p.exists() and not p.relative_to(store).as_posix().startswith(V1)
    }
    model = idle() if harm in METADATA else backbone()
    mended = check.repair(store, model, folder / "tiny.h5")
    assert sorted((p.key, p.kind) for p in mended) == sorted(expected)
    assert check.verify(store) == []
    assert without_locks(files_of(folder)) == without_locks(sound)
    if harm is not lose_record:
        assert {p: p.stat().st_mtime_ns for p in untouched} == untouched


def test_manifests_of_views_are_written_again(folder, store):
    run(folder, 3)
    sound = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    (store / V1 / "up0" / "c.0.0.0.0").unlink()
    for name in ("tiny.t0050.json", "tiny.t0050.views2.json", "tiny.t0050.views3.json"):
        content = json.loads((folder / name).read_text())
        content["arrays"] = {key: {"shape": [1], "digest": "0"} for key in content["arrays"]}
        (folder / name).write_text(json.dumps(content))
    check.repair(store, backbone(), folder / "tiny.h5")
    assert {path.name: path.read_bytes() for path in folder.glob("*.json")} == sound


@pytest.mark.parametrize(
    "views", ["x", [], {"recipe": RECIPE.digest}, {"recipe": RECIPE.digest, "numbers": 3}, 7, None]
)
def test_a_manifest_that_is_nonsense_is_no_help_and_no_harm(folder, store, views):
    sound = files_of(store)
    path = folder / "tiny.t0050.views2.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"views": views}))
    (store / V1 / "up0" / "c.0.0.0.0").unlink()
    check.repair(store, backbone(), folder / "tiny.h5")
    assert without_locks(files_of(store)) == without_locks(sound)


def test_where_nothing_states_how_views_were_made_it_is_said_what_to_do(folder, store):
    expected = break_all_arrays(store)
    for path in folder.glob("*.views2.json"):
        path.unlink()
    assert [(p.key, p.kind) for p in check.verify(store)] == expected
    before = files_of(store)
    view = f"t0010/view1-{RECIPE.digest}"
    with pytest.raises(TedmError, match=rf"tedm store rm \S+ {view} --yes(.|\n)*forcerun extract_views"):
        check.repair(store, backbone(), folder / "tiny.h5")
    assert without_locks(files_of(store)) == without_locks(before)
    for timestep in (10, T):
        for number in (1, 2):
            check.rm(store, f"t{timestep:04d}/view{number}-{RECIPE.digest}")  # what it says
        run(folder, 2, timestep=timestep)
    assert check.verify(store) == []


def test_views_are_repaired_where_the_images_as_they_are_are_not_there(tmp_path):
    tiny(tmp_path)
    store = run(tmp_path, 2)
    sound = files_of(tmp_path)
    (store / V1 / "up0" / "c.0.0.0.0").unlink()
    check.repair(store, backbone(), tmp_path / "tiny.h5")
    assert without_locks(files_of(tmp_path)) == without_locks(sound)


def test_stale_views_are_never_read_and_repaired(folder, store):
    run(folder, seed=8)
    with pytest.raises(TedmError, match="stale: its noise_seed is 7, not 8"):
        FeatureStore.open(store, recipe=RECIPE.digest).read(ROWS, T, view=1)
    stale = {problem.key for problem in check.verify(store)}
    assert {f"{V1}/up0", "t0010/up0"} <= stale
    assert "t0050/up0" not in stale
    check.repair(store, backbone(), folder / "tiny.h5")
    assert check.verify(store) == []
    expected = tiny(folder.parent / "anew").parent
    run(expected, 2, seed=8)
    new, old = (FeatureStore.open(f / "tiny.zarr").read(ROWS, T, view=2) for f in (folder, expected))
    np.testing.assert_array_equal(new["up1"], old["up1"])


def experiment(location=None, augmentation=None, subjects=2, **heads):
    features = {"view_subjects": subjects, "images_per_shard": 2, "batch_size": 2, "dtype": "float32"}
    return config.parse(
        {
            "title": "x",
            "seed": 7,
            "image": {"size": SIZE},
            "datasets": {
                "tiny": {
                    "label": "Tiny",
                    "source": {"type": "phantom", "site": "jsrt", "count": N},
                    "split": {"train": 4, "val": 2, "test": 2},
                }
            },
            "augmentation": augmentation or {},
            "backbones": {"ddpm": {"type": "ddpm", "data": "tiny", "multipliers": [1, 2]}},
            "features": features | ({"location": str(location)} if location else {}),
            "heads": {
                name: {"type": "ridge", "timesteps": [T], **head}
                for name, head in (heads or {"LR": {}}).items()
            },
            "evaluation": {"train_on": "tiny", "test_on": ["tiny"], "train_sizes": [1]},
        }
    )


def test_prune_removes_the_views_that_no_head_reads_and_the_manifests_that_tell_of_them(folder, store):
    run(folder, 4)
    run(folder, 1, OTHER)
    run(folder, timestep=10)
    sound = files_of(store)
    assert recipe_of(experiment()) == RECIPE
    reads = experiment(LR={}, seeing={"views": 2, "layers": ["up1"]})
    (folder / "tiny.t0050.views1.json").unlink()  # told of the other ranges
    planned = check.prune(store, reads, "ddpm")
    doomed = [f"t0010/{layer}" for layer in ("up0", "up1")]
    doomed += [f"t0010/view{v}-{RECIPE.digest}/{layer}" for v in (1, 2) for layer in ("up0", "up1")]
    doomed += [f"{v}/up0" for v in (V1, V2)]
    doomed += [f"t0050/view{v}-{RECIPE.digest}/{layer}" for v in (3, 4) for layer in ("up0", "up1")]
    doomed += [f"t0050/view1-{OTHER.digest}/{layer}" for layer in ("up0", "up1")]
    assert sorted(removal.key for removal in planned) == sorted(doomed)
    assert files_of(store) == sound
    base = (folder / "tiny.t0050.json").stat().st_mtime_ns
    assert check.prune(store, reads, "ddpm", dry_run=False) == planned
    assert [row.key for row in check.ls(store)] == ["t0050/up0", "t0050/up1", f"{V1}/up1", f"{V2}/up1"]
    assert check.verify(store) == []
    # A manifest stands for all of its views and layers: both told of what is gone.
    assert sorted(path.name for path in folder.glob("*.json")) == ["tiny.t0050.json"]
    assert (folder / "tiny.t0050.json").stat().st_mtime_ns == base
    assert check.prune(store, reads, "ddpm") == []
    left = {path.name for path in (store / "t0050").iterdir() if path.is_dir()}
    assert left == {"up0", "up1", V1.split("/")[1], V2.split("/")[1]}


def test_prune_keeps_the_manifest_of_views_that_are_read(folder, store):
    run(folder, 4)
    kept = (folder / "tiny.t0050.views2.json").stat().st_mtime_ns
    check.prune(store, experiment(seeing={"views": 2}), "ddpm", dry_run=False)
    assert sorted(path.name for path in folder.glob("*.json")) == [
        "tiny.t0050.json",
        "tiny.t0050.views2.json",
    ]
    assert (folder / "tiny.t0050.views2.json").stat().st_mtime_ns == kept
    run(folder, 2, model=idle())


@pytest.mark.parametrize(
    ("key", "gone"),
    [(V1, [f"{V1}/up0", f"{V1}/up1"]), (f"{V2}/up1", [f"{V2}/up1"]), ("t0050/up1", ["t0050/up1"])],
)
def test_rm_removes_one_view_or_one_array_and_nothing_else(folder, store, key, gone):
    before = [row.key for row in check.ls(store)]
    assert [removal.key for removal in check.rm(store, key, dry_run=True)] == gone
    assert [removal.key for removal in check.rm(store, key)] == gone
    assert [row.key for row in check.ls(store)] == [k for k in before if k not in gone]
    assert check.verify(store) == []
    assert (store / V1).exists() == (key != V1)
    assert (folder / "tiny.t0050.views2.json").exists() == (key == "t0050/up1")
    assert (folder / "tiny.t0010.views2.json").exists()
    run(folder)
    run(folder, 2)
    assert [row.key for row in check.ls(store)] == before


def test_rm_of_a_timestep_takes_its_views_along(folder, store):
    check.rm(store, "t0050")
    assert not (store / "t0050").exists()
    assert {row.key.split("/")[0] for row in check.ls(store)} == {"t0010"}
    assert sorted(path.name for path in folder.glob("*.json")) == [
        "tiny.t0010.json",
        "tiny.t0010.views2.json",
    ]


def test_ls_and_info_tell_of_views(store):
    rows = {row.key: row for row in check.ls(store)}
    assert len(rows) == 12
    row = rows[f"{V1}/up1"]
    assert (row.state, row.shape, row.shards, row.shards_done) == ("complete", (3, 8, 16, 16), 2, 2)
    assert row.ratio == pytest.approx(rows["t0050/up1"].ratio, rel=0.2)
    (store / V1 / "up1" / "c.1.0.0.0").unlink()
    assert {r.key for r in check.ls(store) if r.state == "damaged"} == {f"{V1}/up1"}
    info = check.info(store)
    assert (info.images, info.timesteps) == (N, [10, T])


# ── a shared place ──────────────────────────────────────────────────────────────────────────────


def test_two_experiments_with_other_ranges_share_images_and_leave_each_other_their_views(tmp_path):
    data, digest = tiny(tmp_path), backbone().digest
    one, other = (experiment(tmp_path / "group", a, seeing={"views": 2}) for a in (None, {"gamma": 0}))
    place = {
        shared_store(f"{tmp_path}/group", "ddpm", digest, data, e.features, e.seed) for e in (one, other)
    }
    (store,) = place
    recipes = [recipe_of(e) for e in (one, other)]
    assert recipes == [RECIPE, OTHER]

    def ask(e, user, model, views):
        wanted = Views.first(recipe_of(e), views) if views else None
        manifest = tmp_path / user / f"{views}.json"
        taken = adopt(store, digest, data, e.features, e.seed, {T: manifest}, views=wanted)
        if not taken:
            extract(model, data, store, manifest, T, e.features, e.seed, views=wanted)
        assert manifest.exists()
        return taken

    assert ask(one, "anna", backbone(), 0) == []
    assert ask(one, "anna", backbone(), 2) == []
    times = times_of(Path(store), "*")
    assert ask(other, "ben", idle(), 0) == [T]
    assert times_of(Path(store), "*") == times
    assert ask(other, "ben", backbone(), 2) == []
    kept = times_of(Path(store))
    for who, e in (("carl", one), ("dora", other)):
        for views in (0, 1, 2):
            assert ask(e, who, idle(), views) == [T]
    assert times_of(Path(store)) == kept
    assert ask(one, "carl", backbone(), 3) == []
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert check.verify(store) == []
    assert (tmp_path / "anna" / "2.json").read_bytes() == (tmp_path / "carl" / "2.json").read_bytes()


def test_views_that_are_not_whole_are_not_adopted(folder, store):
    settings = experiment().features.model_copy(update={"view_subjects": 2})
    wanted = Views.first(RECIPE, 2)

    def asked(views=wanted, seed=7):
        return adopt(
            store,
            backbone().digest,
            folder / "tiny.h5",
            settings,
            seed,
            {T: folder / "m.json"},
            views=views,
        )

    assert asked() == [T]
    assert json.loads((folder / "m.json").read_text()) == json.loads(
        (folder / "tiny.t0050.views2.json").read_text()
    )
    assert asked(Views.first(RECIPE, 3)) == []
    assert asked(Views.first(OTHER, 2)) == []
    assert asked(Views.first(Recipe(RECIPE.augmentation, 3), 2)) == []
    assert asked(seed=8) == []
    cut(store / V2 / "up1" / "c.1.0.0.0")
    assert asked() == []
    assert asked(Views.first(RECIPE, 1)) == [T]


# ── heads ───────────────────────────────────────────────────────────────────────────────────────


class Thresholds(Head):
    """A head as another package has it: foreground of a class where a channel is above its mean there."""

    def learn(self, features, masks, rows, val_rows, val_masks, workdir):
        k = masks.shape[1]
        means = [
            [self.values(features, rows, t)[masks[:, c] > 0].mean() for c in range(k)]
            for t in self.timesteps
        ]
        self.levels = np.array(means)

    def predict_steps(self, features, rows):
        steps = [
            self.values(features, rows, t)[:, None] > levels[:, None, None]
            for t, levels in zip(self.timesteps, self.levels, strict=True)
        ]
        return np.stack(steps).astype(np.float32)

    def values(self, features, rows, timestep):
        return features.read(rows, timestep, ["up1"])["up1"][:, 0].astype(np.float64)

    def state(self):
        return {"levels": self.levels}

    def restore(self, state):
        self.levels = state["levels"]


STEPS = {"steps": 6, "validate_every": 3, "hidden": [4]}
HEADS = {
    "ridge": ("ridge", {}),
    "ridge, standardised": ("ridge", {"standardise": "pixel"}),
    "mlp, concat": ("mlp", {"combine": "concat", **STEPS}),
    "mlp, share": ("mlp", {"combine": "share", **STEPS}),
    "mlp, members and pixels": ("mlp", {"combine": "share", "members": 2, "pixels": 64, **STEPS}),
    "blend": ("blend", STEPS),
    "sklearn": ("sklearn", {"pixels": 32, "parameters": {"max_iter": 5, "min_samples_leaf": 2}}),
    "third party": ("test_views:Thresholds", {}),
}


def spec_of(kind, **more):
    name, settings = HEADS[kind]
    spec = {"name": "H", "type": name, "settings": settings, "timesteps": [10, T], "layers": None}
    return spec | {"fits": [[1, 0], [3, 0]], "experiment_seed": 0} | more


WITH_VIEWS = {"views": 2, "recipe": RECIPE.digest}


def fit(made, out, spec):
    digest = out.parent / "digest.json"
    write_json(digest, {"digest": backbone().digest})
    fitting.fit_heads(spec, made / "tiny.h5", str(made / "tiny.zarr"), digest, out)
    return {n: out / f"n{n}" / "seed0" / "head.safetensors" for n in (1, 3)}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_with_views_is_the_head_of_the_same_rows_given_one_by_one(kind, made, tmp_path):
    spec = spec_of(kind, **WITH_VIEWS)
    files = fit(made, tmp_path / "heads", spec)
    store = FeatureStore.open(made / "tiny.zarr")
    with PreparedSet(made / "tiny.h5") as prepared:
        truth, names = prepared.masks(range(N)), prepared.classes
    arrays, masks = {}, [truth]
    for timestep in (10, T):
        parts = [store.read(range(N), timestep)] + [store.read(ROWS, timestep, view=v) for v in (1, 2)]
        arrays |= {(timestep, layer): np.concatenate([p[layer] for p in parts]) for layer in ("up0", "up1")}
    for number in (1, 2):
        looks = [drawn([store.ids[row]], number, RECIPE, 7, (SIZE, SIZE)) for row in ROWS]
        masks.append(
            np.concatenate(
                [
                    v.masks(torch.from_numpy(truth[[row]])).numpy()
                    for v, row in zip(looks, ROWS, strict=True)
                ]
            )
        )
    explicit, every = ArrayFeatures(arrays, (SIZE, SIZE)), np.concatenate(masks)
    rows = {1: [1, 3, N, N + 1, N + 3, N + 4], 3: [1, 3, 2, 4, 6, *range(N, N + 6)]}
    for n, file in files.items():
        mine = base.load(file, allow_imports=True)
        theirs = base.create(
            spec["type"], spec["settings"], [10, T], ["up0", "up1"],
            seed=seeds.seed_of(0, "head", "H", n, 0),
        )  # fmt: skip
        theirs.fit(explicit, every[rows[n]], rows[n], [5, 7], truth[[5, 7]], workdir=tmp_path / f"own{n}")
        assert mine.digest == theirs.digest
        np.testing.assert_array_equal(
            mine.predict_proba(store, range(N)), theirs.predict_proba(explicit, range(N))
        )
        assert mine.class_names == tuple(names)


def about(head):
    return base.load_arrays(head)[1]


@pytest.mark.parametrize("kind", ["ridge", "mlp, share", "third party"])
def test_a_head_without_views_has_the_bytes_of_one_before_there_were_views(kind, made, tmp_path):
    plain = fit(made, tmp_path / "plain" / "heads", spec_of(kind))
    without = fit(made, tmp_path / "without" / "heads", spec_of(kind, views=0, recipe=RECIPE.digest))
    seeing = fit(made, tmp_path / "seeing" / "heads", spec_of(kind, **WITH_VIEWS))
    for n in (1, 3):
        assert plain[n].read_bytes() == without[n].read_bytes()
        assert about(seeing[n])["digest"] != about(plain[n])["digest"]
        assert seeing[n].read_bytes() != plain[n].read_bytes()


def test_a_search_reads_views_and_judges_by_images_as_they_are(made, tmp_path):
    results = tmp_path / "results"
    store = shutil.copytree(made / "tiny.zarr", results / "features" / "ddpm" / "tiny.zarr")
    (results / "data").mkdir()
    shutil.copy(made / "tiny.h5", results / "data")
    digest = results / "backbones" / "ddpm" / "digest.json"
    write_json(digest, {"digest": backbone().digest})
    check.rm(store, f"t0010/view2-{RECIPE.digest}")
    looking = experiment(seeing={"views": 2}).model_copy(update={"results": str(results)})
    found = search_timesteps(looking, "seeing", 2, tmp_path / "found", budget=Budget())
    assert found.subset == (T,)  # the only one with both views
    spec = spec_of("ridge", **WITH_VIEWS) | {"name": "seeing-found", "timesteps": [T], "n": 2, "seed": 0}
    spec["experiment_seed"] = 7
    fitting.fit_head(spec, made / "tiny.h5", str(store), digest, tmp_path / "head.safetensors")
    with PreparedSet(made / "tiny.h5") as prepared:
        predicted = base.load(tmp_path / "head.safetensors").predict_proba(FeatureStore.open(store), [5, 7])
        scores = evaluation.scores(predicted, prepared.masks([5, 7]), ["v", "w"], prepared.classes)
    assert found.dice == scores[scores["metric"] == "dice"]["value"].mean()
    check.rm(store, f"t0050/view2-{RECIPE.digest}")
    with pytest.raises(TedmError, match="extract_views"):
        search_timesteps(looking, "seeing", 2, tmp_path / "again", budget=Budget())


def test_a_head_is_fitted_again_with_other_views_and_only_then(folder, tmp_path, capfd):
    run(folder, 1, OTHER)
    run(folder, 1, OTHER, timestep=10)

    def fitted(**views):
        capfd.readouterr()
        fit(folder, tmp_path / "heads", spec_of("ridge", **views))
        return capfd.readouterr().err.count(": fitted, in ")

    assert fitted(**WITH_VIEWS) == 2
    assert fitted(**WITH_VIEWS) == 0
    assert fitted(views=1, recipe=RECIPE.digest) == 2
    assert fitted(views=1, recipe=OTHER.digest) == 2
    assert fitted() == 2
    assert fitted(views=0) == 0


@pytest.mark.parametrize(
    "absent", [{"views": 3, "recipe": RECIPE.digest}, {"views": 1, "recipe": OTHER.digest}]
)
def test_a_head_whose_views_are_not_there_is_refused_with_what_to_do(made, tmp_path, capfd, absent):
    with pytest.raises(TedmError):
        fit(made, tmp_path / "heads", spec_of("ridge", **absent))
    assert "extract_views" in capfd.readouterr().err

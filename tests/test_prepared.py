"""The prepared data set: what is written is read, and nothing but a whole file is."""

import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from tedm.data import prepared
from tedm.data.prepared import PreparedSet
from tedm.errors import TedmError

N, C, K, SIZE = 9, 2, 3, 8


def content(seed=0, dtype=np.uint8, n=N):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, C, SIZE, SIZE)).astype(dtype)
    masks = rng.integers(0, 2, (n, K, SIZE, SIZE)).astype(np.uint8)
    splits = [("val", "train", "test")[i % 3] for i in range(n)]
    return {
        "label": "A set",
        "images": images,
        "masks": masks,
        "ids": [f"Zoë {i}" for i in range(n)],
        "subjects": [f"subject {i}" for i in range(n)],
        "splits": splits,
        "classes": ["lung", "Herz", "rib"],
        "intensity_range": (0.0, 255.0),
        "synthetic": True,
        "source": "drawn here",
        "licence": "CC0",
        "cite": "Nobody 2000",
    }


def write(path, **changes):
    parts = content() | changes
    prepared.write(path, **parts)
    return parts


def test_everything_written_is_read_back(tmp_path):
    extra = {"spacing_mm": np.tile([np.nan, 0.5, 0.25], (N, 1)), "skipped": [("Zoë 99", "not a PNG")]}
    parts = write(tmp_path / "a.h5", **extra)
    with PreparedSet(tmp_path / "a.h5") as data:
        assert len(data) == N
        assert (data.label, data.source, data.licence, data.cite) == (
            "A set",
            "drawn here",
            "CC0",
            "Nobody 2000",
        )
        assert data.ids == parts["ids"]
        assert data.subjects == parts["subjects"]
        assert data.splits == parts["splits"]
        assert data.classes == parts["classes"]
        assert data.spacing_mm == (0.5, 0.25)
        assert_array_equal(data.spacings_mm, parts["spacing_mm"])
        assert data.skipped == parts["skipped"]
        assert data.synthetic is True
        assert data.has_masks is True
        assert data.image_shape == (C, SIZE, SIZE)
        images = data.images(range(N))
        assert images.dtype == np.float32
        assert_array_equal(images, parts["images"].astype(np.float32) / np.float32(255))
        assert_array_equal(data.masks(range(N)), parts["masks"])


@given(rows=st.lists(st.integers(0, N - 1), max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_rows_in_any_order_equal_indexing(tmp_path, rows):
    path = tmp_path / "a.h5"
    parts = content()
    if not path.exists():
        write(path)
    with PreparedSet(path) as data:
        assert_array_equal(data.masks(rows), parts["masks"][rows])
        assert_array_equal(data.images(np.array(rows, int)) * 255, parts["images"][rows])


def test_rows_outside_the_set_are_an_index_error(tmp_path):
    write(tmp_path / "a.h5")
    with PreparedSet(tmp_path / "a.h5") as data:
        for rows in ([-1], [N], [0, N]):
            with pytest.raises(IndexError):
                data.images(rows)


def test_rows_of_a_split_keep_the_written_order(tmp_path):
    parts = write(tmp_path / "a.h5")
    with PreparedSet(tmp_path / "a.h5") as data:
        assert data.rows("train") == [i for i, s in enumerate(parts["splits"]) if s == "train"]
        assert data.rows("unlabelled") == []
        with pytest.raises(TedmError, match="no split is called 'training'"):
            data.rows("training")


def test_intensities_are_mapped_to_0_and_1_and_clipped(tmp_path):
    images = np.array([-1000, 0, 250, 1000, 4095], np.float32).reshape(5, 1, 1, 1)
    write(
        tmp_path / "a.h5",
        images=images,
        masks=None,
        ids=list("abcde"),
        subjects=list("abcde"),
        splits=["test"] * 5,
        intensity_range=lambda: (0.0, 1000.0),
    )
    with PreparedSet(tmp_path / "a.h5") as data:
        assert_array_equal(data.images(range(5)).ravel(), np.array([0, 0, 0.25, 1, 1], np.float32))
        with pytest.raises(TedmError, match="has no masks"):
            data.masks([0])


def test_the_same_content_gives_the_same_bytes(tmp_path):
    write(tmp_path / "a.h5")
    parts = content()
    write(tmp_path / "b.h5", images=iter(parts["images"]), masks=iter(parts["masks"]))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_the_digest_does_not_depend_on_the_buffer(tmp_path, monkeypatch):
    write(tmp_path / "a.h5")
    monkeypatch.setattr(prepared, "BUFFER_BYTES", 300)
    write(tmp_path / "b.h5")
    with PreparedSet(tmp_path / "a.h5") as a, PreparedSet(tmp_path / "b.h5") as b:
        assert a.digest == b.digest
        assert_array_equal(a.images(range(N)), b.images(range(N)))


def test_the_digest_tells_content_but_not_names_for_people(tmp_path):
    parts = content()

    def digest(**changes):
        write(tmp_path / "a.h5", **changes)
        with PreparedSet(tmp_path / "a.h5") as data:
            return data.digest

    first = digest()
    assert digest(label="Another", licence="other", cite="x", source="y") == first
    images, masks = parts["images"].copy(), parts["masks"].copy()
    images[3, 1, 2, 2] ^= 1
    masks[8, 2, 7, 7] ^= 1
    changed = [
        digest(images=images),
        digest(masks=masks),
        digest(images=parts["images"].astype(np.float32)),
        digest(masks=None),
        digest(ids=parts["ids"][::-1]),
        digest(splits=["train"] * N),
        digest(subjects=parts["ids"]),
        digest(intensity_range=(0, 100)),
    ]
    assert len({first, *changed}) == 1 + len(changed)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = tmp_path / "cut.h5"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(TedmError, match=r"cut\.h5: truncated"):
        PreparedSet(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(TedmError, match=r"gone\.h5: no such file"):
        PreparedSet(tmp_path / "gone.h5")


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "text.h5").write_text("not HDF5 at all" * 100)
    with pytest.raises(TedmError, match=r"text\.h5: truncated, or not an HDF5 file"):
        PreparedSet(tmp_path / "text.h5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["images"] = np.zeros((2, 1, 4, 4))
    with pytest.raises(TedmError, match=r"foreign\.h5: not a prepared data set"):
        PreparedSet(tmp_path / "foreign.h5")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda file: file.attrs.__delitem__("digest"), "half-written"),
        (lambda file: file.attrs.__setitem__("format_version", 99), "format version 99"),
        (lambda file: file.__delitem__("split"), "damaged"),
        (lambda file: file.attrs.__delitem__("classes"), "damaged"),
        (
            lambda file: (file.__delitem__("masks"), file.create_dataset("masks", (1, K, 8, 8), "u1")),
            "damaged",
        ),
    ],
)
def test_a_file_that_lacks_a_part_is_refused(tmp_path, harm, message):
    path = tmp_path / "a.h5"
    write(path)
    with h5py.File(path, "r+") as file:
        harm(file)
    with pytest.raises(TedmError, match=rf"a\.h5: .*{message}"):
        PreparedSet(path)


def damaged(path, name, place, change=1):
    """The file with one stored byte of a data set changed, as a failing disk would."""
    write(path)
    with h5py.File(path, "r+") as file:
        offset = file[name].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset + place] ^= change
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["images", "masks"])
def test_a_changed_pixel_is_noticed_by_who_reads_it(tmp_path, name):
    path = tmp_path / "a.h5"
    write(path)
    with PreparedSet(path) as data:
        ids, size = data.ids, int(np.prod(getattr(data, name)([0]).shape))
    damaged(path, name, 3 * size + 5)
    with PreparedSet(path) as data:
        read = getattr(data, name)
        read([0, 2, 4])
        for rows in ([3], [4, 3, 0], range(N)):
            message = rf"a\.h5: damaged: {name} of {ids[3]} .* delete the file and prepare"
            with pytest.raises(TedmError, match=message):
                read(rows)


@pytest.mark.parametrize("harm", ["subject", "split", "intensity_range", "classes"])
def test_a_changed_header_is_noticed(tmp_path, harm):
    path = tmp_path / "a.h5"
    write(path)
    with h5py.File(path, "r+") as file:
        if harm in file:
            file[harm][0] = file[harm][N - 1]
        elif harm == "classes":
            file.attrs[harm] = file.attrs[harm].replace("l", "L").replace("a", "b")
        else:
            file.attrs[harm] = file.attrs[harm] + 1
    with pytest.raises(TedmError, match=r"a\.h5: damaged \(ids, subjects"):
        PreparedSet(path)


def test_a_file_of_the_first_format_is_read_without_checksums(tmp_path):
    path = tmp_path / "a.h5"
    write(path)
    with PreparedSet(path) as data:
        digest, images = data.digest, data.images(range(N))
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 1
        del file.attrs["header_digest"], file["images_crc32"], file["masks_crc32"]
    with PreparedSet(path) as data:
        assert data.digest == digest
        np.testing.assert_array_equal(data.images(range(N)), images)


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.h5"
    write(path)
    before = path.read_bytes()

    def breaks_off():
        yield from content()["images"][:4]
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        write(path, images=breaks_off(), masks=None)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def bad(name, row, value):
    array = content()[name].astype(np.float32) if name == "images" else content()[name]
    array[row] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": ["a"] * N}, "there twice: a"),
        ({"splits": ["training"] * N}, "no split is called 'training'"),
        ({"subjects": ["one"] * N}, "subject one is in two splits, val and train"),
        ({"subjects": ["one"]}, "9 ids, 1 subjects and 9 splits"),
        ({"images": content()["images"][:5], "masks": None}, "5 images for 9 ids"),
        ({"images": content(n=12)["images"], "masks": None}, "more images than the 9 ids"),
        (bad("images", 4, np.nan), "Zoë 4: the image has values that are not finite"),
        (bad("masks", 4, 2), "Zoë 4: mask of type uint8 with greatest value 2"),
        ({"masks": content()["masks"][:, :1]}, r"Zoë 0: mask of shape \(1, 8, 8\), expected \(3, 8, 8\)"),
        ({"images": content()["images"].astype(np.int16)}, "Zoë 0: image of type int16"),
        ({"images": content()["images"][:, 0]}, r"Zoë 0: image of shape \(8, 8\)"),
        ({"intensity_range": (5, 5)}, "intensity range 5 … 5 is empty"),
        ({"ids": [], "subjects": [], "splits": []}, "no images"),
    ],
)
def test_content_that_makes_no_sense_is_refused(tmp_path, changes, message):
    with pytest.raises(TedmError, match=message):
        write(tmp_path / "a.h5", **changes)
    assert list(tmp_path.iterdir()) == []


def test_images_of_different_shapes_are_refused(tmp_path):
    images = [np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 5), np.uint8)]
    with pytest.raises(TedmError, match=r"b: images of shape \(1, 4, 5\)"):
        write(
            tmp_path / "a.h5",
            images=images,
            masks=None,
            ids=["a", "b"],
            subjects=["a", "b"],
            splits=["test"] * 2,
        )


def test_writing_keeps_memory_flat(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(prepared, "BUFFER_BYTES", 1 << 18)
    n, size = 800, 64  # 13 MB
    ids = [str(i) for i in range(n)]
    tracemalloc.start()
    write(
        tmp_path / "a.h5",
        images=(np.full((1, size, size), i, np.float32) for i in range(n)),
        masks=(np.full((3, size, size), i % 2, np.uint8) for i in range(n)),
        ids=ids,
        subjects=ids,
        splits=["unlabelled"] * n,
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6


def test_a_training_subset_has_all_images_of_its_subjects_and_starts_every_larger_one(tmp_path):
    subjects = ["b", "a", "b", "c", "a", *"defg"]
    write(tmp_path / "a.h5", subjects=subjects, splits=["train"] * 5 + ["test"] * 4)
    with PreparedSet(tmp_path / "a.h5") as data:
        assert data.training_rows(1) == [0, 2]
        assert data.training_rows(2) == [0, 2, 1, 4]
        assert data.training_rows(3) == [0, 2, 1, 4, 3]
        with pytest.raises(TedmError, match="4 training subjects, but the split train has 3"):
            data.training_rows(4)

"""Small files in each published layout, generated, become what a reader of the format's text expects."""

import gzip
import struct
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from tedm import measures
from tedm.config import DatasetConfig, ImageConfig, SplitConfig
from tedm.data.prepare import prepare
from tedm.data.prepared import PreparedSet
from tedm.data.sources.jsrt import SIDE
from tedm.data.sources.xlsor import scans
from tedm.errors import TedmError

ALL = SplitConfig(test=1.0)
REAL = Path(__file__).parents[2] / "shared/data"


def run(root, source, *, size=8, channels=1, classes=("lungs",), split=ALL, threads=2):
    dataset = DatasetConfig.model_validate(
        {"label": "A set", "source": source, "split": split.model_dump()}
    )
    config = ImageConfig(size=size, channels=channels, classes=list(classes))
    prepare(dataset, "mine", config, 0, root, root / "out/mine.h5", root / "out/mine.json", threads=threads)
    return PreparedSet(root / "out/mine.h5")


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)


def draw(seed=0, size=8, depth=8):
    return np.random.default_rng(seed).integers(0, 2**depth, (size, size)).astype(f"u{(depth + 7) // 8}")


# ── chest X-rays ────────────────────────────────────────────────────────────────────────────────


def test_chestxray14_is_read_as_downloaded_and_split_by_patient(tmp_path):
    root = tmp_path / "nih"
    rows = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age"]
    for k, name in enumerate(["00000001_000", "00000001_001", "00000002_000", "00000003_000"]):
        folder = root / f"images_00{1 + k // 2}/images"
        grey = draw(k)
        if k == 3:  # some of the 112,120 have an alpha channel
            grey = np.dstack([grey] * 3 + [np.full_like(grey, 255)])
        save(folder / f"{name}.png", grey)
        rows.append(f"{name}.png,{'No Finding' if k % 2 else 'Mass'},0,{int(name[:8])},50")
    (root / "Data_Entry_2017.csv").write_text("\n".join(rows) + "\n")
    (root / "train_val_list.txt").write_text("00000001_000.png\n00000001_001.png\n")
    (root / "test_list.txt").write_text("00000002_000.png\n00000003_000.png\n")
    source = {"type": "chestxray14", "folder": "nih"}
    with run(tmp_path, source, split=SplitConfig(unlabelled=1.0)) as data:
        assert sorted(data.ids) == ["00000001_000", "00000001_001", "00000002_000", "00000003_000"]
        assert dict(zip(data.ids, data.subjects, strict=True))["00000001_001"] == "00000001"
        row = data.ids.index("00000003_000")
        assert_array_equal(np.rint(data.images([row])[0, 0] * 255), draw(3))
        assert not data.has_masks
        assert data.cite.startswith("Wang")
    (tmp_path / "s.csv").write_text("image,split\n00000001_000.png,train\n00000001_001.png,test\n")
    with pytest.raises(TedmError, match=r"1 subjects are in more than one split.*00000001 \(train, test\)"):
        run(tmp_path, source, split=SplitConfig(file="s.csv"))
    with run(tmp_path, {**source, "subject": "image"}, split=SplitConfig(file="s.csv")) as data:
        assert data.ids == data.subjects == ["00000001_000", "00000001_001"]


def jsrt_raw(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    values.astype(">u2").tofile(path)


def scr(root, name, fold, left, right):
    for structure, mask in (("left lung", left), ("right lung", right), ("heart", left * 0)):
        image = Image.fromarray(mask).convert("P")
        image.putpalette([k for v in range(256) for k in (v, v, v)])
        save(root / f"{fold}/masks/{structure}/{name}.gif", image)


def test_jsrt_raw_images_are_big_endian_12_bit_inverted_and_masks_come_from_scr(tmp_path):
    tiles = np.random.default_rng(0).integers(0, 4096, (8, 8))
    jsrt_raw(tmp_path / "jsrt/All247images/JPCLN001.IMG", np.kron(tiles, np.ones((256, 256), int)))
    jsrt_raw(tmp_path / "jsrt/All247images/JPCNN002.IMG", np.kron(tiles[::-1], np.ones((256, 256), int)))
    left, right = np.zeros((1024, 1024), np.uint8), np.zeros((1024, 1024), np.uint8)
    left[256:768, 640:896] = 255
    right[256:768, 128:384] = 255
    scr(tmp_path / "scr", "JPCLN001", "fold1", left, right)
    scr(tmp_path / "scr", "JPCNN002", "fold2", left[::-1], right)
    source = {"type": "jsrt", "images": "jsrt", "masks": "scr"}
    with run(tmp_path, source) as data:
        row = data.ids.index("JPCLN001")
        # (4095 - v) of 4095, in 8 bits; neighbouring tiles reach in where they are resized.
        expected = np.rint((4095 - tiles) * 255 / 4095)
        assert np.corrcoef(data.images([row])[0, 0].ravel(), expected.ravel())[0, 1] > 0.9
        both = np.zeros((8, 8), np.uint8)
        both[2:6, 1:3] = both[2:6, 5:7] = 1
        assert_array_equal(data.masks([row])[0, 0], both)
        assert data.spacing_mm == (0.175 * 256, 0.175 * 256)
    with run(tmp_path, source, size=SIDE) as data:  # nothing is resized: the grey itself
        row = data.ids.index("JPCLN001")
        assert_array_equal(np.rint(data.images([row])[0, 0, ::256, ::256] * 255), expected)
    with run(tmp_path, source, classes=("right lung", "left lung")) as data:
        row = data.ids.index("JPCLN001")
        assert_array_equal(data.masks([row])[0].sum((1, 2)), [8, 8])
        assert data.masks([row])[0, 0, 3, 1] == data.masks([row])[0, 1, 3, 5] == 1


def test_jsrt_as_png_has_the_authors_split(tmp_path):
    for k, name in enumerate(["JPCLN001", "JPCLN002", "JPCNN001"]):
        save(tmp_path / f"png/{name}.png", draw(k))
    with run(tmp_path, {"type": "jsrt", "images": "png"}, split=SplitConfig(file="jsrt")) as data:
        assert set(data.ids) == {"JPCLN001", "JPCLN002", "JPCNN001"}


def test_a_raw_image_of_the_wrong_length_or_byte_order_is_refused(tmp_path):
    jsrt_raw(tmp_path / "a/JPCLN001.IMG", np.zeros((10, 10)))
    with pytest.raises(TedmError, match=r"JPCLN001\.IMG: 200 bytes, expected 8388608"):
        run(tmp_path, {"type": "jsrt", "images": "a"})
    (tmp_path / "b").mkdir()
    np.full((SIDE, SIDE), 4000, "<u2").tofile(tmp_path / "b/JPCLN001.IMG")
    with pytest.raises(TedmError, match="byte order swapped"):
        run(tmp_path, {"type": "jsrt", "images": "b"})


def test_xlsor_keeps_one_image_per_patient_of_chestxray14(tmp_path):
    known = scans()
    assert len(known) == 100
    assert len({scan[:8] for scan in known.values()}) == 95
    patients: dict[str, list[str]] = {}
    for name, scan in known.items():
        patients.setdefault(scan[:8], []).append(name)
    pair = next(sorted(names) for names in patients.values() if len(names) == 2)
    for k, name in enumerate(pair):
        save(tmp_path / f"nih/images/{name}.png", draw(k))
        save(tmp_path / f"nih/masks/{name}_mask.png", np.eye(8, dtype=np.uint8) * 255)
    with run(tmp_path, {"type": "xlsor", "folder": "nih"}) as data:
        assert data.ids == pair[:1]
        assert data.subjects == [known[pair[0]][:8]]
        assert_array_equal(data.masks([0])[0, 0], np.eye(8))
    with run(tmp_path, {"type": "xlsor", "folder": "nih", "one_per_patient": False}) as data:
        assert len(data) == 2
        assert len(set(data.subjects)) == 1


def test_montgomery_joins_the_manual_masks_of_both_lungs(tmp_path):
    left, right = np.zeros((16, 8), np.uint8), np.zeros((16, 8), np.uint8)
    left[4:12, 5:7], right[4:12, 1:3] = 255, 255
    home = tmp_path / "MontgomerySet"
    for k, name in enumerate(["MCUCXR_0001_0", "MCUCXR_0104_1"]):
        save(home / f"CXR_png/{name}.png", np.vstack([draw(k), draw(k)]))
        save(home / f"ManualMask/leftMask/{name}.png", left)
        save(home / f"ManualMask/rightMask/{name}.png", right)
    source = {"type": "montgomery", "folder": "MontgomerySet"}
    with run(tmp_path, source) as data:
        assert_array_equal(data.masks([0])[0, 0], (left | right)[::2] // 255)
    drawn = SplitConfig(train=1, test=1, stratify="finding")
    with run(tmp_path, source, split=drawn) as data:
        assert len(data) == 2


# ── volumes ─────────────────────────────────────────────────────────────────────────────────────


def nifti(path, values, affine, dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(values, dtype), affine), path)


# As scanners store them: x runs to the left, or the slices are coronal, or the patient lies askew.
AFFINES = {
    "RAS": np.diag([2.0, 3.0, 4.0, 1.0]),
    "LAS": np.diag([-2.0, 3.0, 4.0, 1.0]),
    "LIP": np.array([[-2.0, 0, 0, 5], [0, 0, -3.0, 6], [0, -4.0, 0, 7], [0, 0, 0, 1]]),
}


def stored_as(values, affine):
    """A volume in right-anterior-superior order, laid out as an affine says; brute force over voxels."""
    order = [int(np.argmax(abs(affine[:3, k]))) for k in range(3)]
    shape = [values.shape[o] for o in order]
    out = np.empty(shape, values.dtype)
    for index in np.ndindex(*shape):
        place = [0, 0, 0]
        for k, i in enumerate(index):
            flipped = affine[order[k], k] < 0
            place[order[k]] = values.shape[order[k]] - 1 - i if flipped else i
        out[index] = values[tuple(place)]
    return out


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_volumes_of_any_orientation_give_the_same_slices(tmp_path, affine, suffix):
    rng = np.random.default_rng(0)
    values, labels = rng.integers(1, 101, (8, 6, 3)), rng.integers(0, 3, (8, 6, 3))
    nifti(tmp_path / f"images/a b.{suffix}", stored_as(values, affine), affine)
    nifti(tmp_path / f"labels/a b_seg.{suffix}", stored_as(labels, affine), affine)
    source = {
        "type": "nifti", "images": "images", "masks": "labels", "mask_suffix": "_seg", "fit": "pad",
        "window": [0, 200], "labels": {"one": 1, "two": [2]},
    }  # fmt: skip
    with run(tmp_path, source, classes=("two", "one")) as data:
        assert data.ids == ["a b_z000", "a b_z001", "a b_z002"]
        assert data.subjects == ["a b"] * 3
        for z in range(3):
            # Front of the patient up, right side left: both axes run against right-anterior-superior.
            expected = values[::-1, ::-1, z].T
            assert_allclose(data.images([z])[0, 0, 1:7], expected / 200, atol=1e-6)
            assert_array_equal(data.masks([z])[0, 1, 1:7], labels[::-1, ::-1, z].T == 1)
            assert_array_equal(data.masks([z])[0, 0, 1:7], labels[::-1, ::-1, z].T == 2)
        assert_allclose(data.spacings_mm, [[4.0, 3.0, 2.0]] * 3)
    source |= {"axis": "sagittal"}
    with run(tmp_path, source, classes=("two", "one")) as data:
        expected = values[5, ::-1, ::-1].T  # top of the patient up, the front on the left
        assert_allclose(
            data.images([5])[0, 0][2:6],
            np.asarray(
                Image.fromarray((expected / 200).astype(np.float32)).resize(
                    (8, 4), Image.Resampling.BILINEAR
                )
            ),
            atol=1e-6,
        )
        assert data.ids[5] == "a b_x005"
        assert len(data) == 8


def oblique(spacing, degrees=25.0):
    """Voxels of unequal sides, the patient turned about two axes."""
    a, b = np.deg2rad([degrees, degrees / 2])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(spacing)
    affine[:3, 3] = -90, 126, -72
    return affine


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("unit", ["mm", "micron"])
def test_distances_are_those_of_the_scanner_however_voxels_lie(tmp_path, axis, unit):
    pytest.importorskip("monai")
    affine = oblique((0.8, 1.25, 3.0))
    labels = np.zeros((8, 8, 8), np.int16)
    first, second = (2, 5, 3), (6, 2, 4)
    labels[first], labels[second] = 1, 2
    stored = affine.copy()
    stored[:3] *= 1000 if unit == "micron" else 1
    image = nib.Nifti1Image(np.arange(512).reshape(8, 8, 8).astype(np.int16), stored)
    image.header.set_xyzt_units(unit)
    for folder, values in (("images", image.get_fdata()), ("masks", labels)):
        (tmp_path / folder).mkdir()
        made = nib.Nifti1Image(values.astype(np.int16), stored, image.header)
        nib.save(made, tmp_path / folder / "a.nii.gz")
    source = {"type": "nifti", "images": "images", "masks": "masks", "axis": axis, "window": [0, 511]}
    with run(tmp_path, source, classes=("one", "two")) as data:
        rows = data.rows("test")
        masks, spacing = data.masks(rows), data.spacings_mm[rows]
    # The scanner's own coordinates say how far the two voxels are from each other.
    expected = np.linalg.norm(affine[:3, :3] @ np.subtract(first, second))
    found = measures.of_masks(
        masks[:, 1:], masks[:, :1], ["a"] * len(rows), ["one"], ["hd95", "assd"], spacing
    )
    assert_allclose(dict(zip(found["metric"], found["value"], strict=True))["hd95_mm"], expected, rtol=1e-5)
    assert_allclose(dict(zip(found["metric"], found["value"], strict=True))["assd_mm"], expected, rtol=1e-5)


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_the_spacing_kept_is_that_of_the_square(tmp_path, fit):
    nifti(tmp_path / "images/a.nii", np.arange(12 * 20 * 2).reshape(12, 20, 2), np.diag([0.8, 1.2, 3.0, 1]))
    source = {"type": "nifti", "images": "images", "fit": fit, "window": [0, 480]}
    with run(tmp_path, source, split=SplitConfig(unlabelled=1.0)) as data:
        between, height, width = data.spacings_mm[0]
    assert between == 3.0
    field = {"stretch": (20 * 1.2, 12 * 0.8), "pad": (20 * 1.2, 20 * 0.8), "crop": (12 * 1.2, 12 * 0.8)}[
        fit
    ]
    assert_allclose((8 * height, 8 * width), field)  # mm that the square of 8 × 8 covers


def test_a_volume_whose_voxels_have_no_size_is_refused(tmp_path):
    values = np.arange(64).reshape(4, 4, 4)
    for name, column in (("flat", [0, 0, 0, 0]), ("same", [1, 0, 0, 0]), ("nan", [np.nan, 0, 0, 0])):
        affine = np.eye(4)
        affine[:, 1] = column
        image = nib.Nifti1Image(values.astype(np.int16), np.eye(4))
        image.header.set_sform(affine, code=1)
        path = tmp_path / name / "images/a.nii"
        path.parent.mkdir(parents=True)
        path.write_bytes(image.header.binaryblock + bytes(4) + values.astype(np.int16).tobytes())
        with pytest.raises(TedmError, match=r"a\.nii: its affine is singular"):
            run(tmp_path / name, {"type": "nifti", "images": "images"})


def test_several_files_are_the_channels_of_a_volume(tmp_path):
    for k in (0, 1):
        nifti(tmp_path / f"images/p_000{k}.nii.gz", np.full((4, 4, 2), 50 * (k + 1)), np.eye(4))
    source = {"type": "nifti", "images": "images", "channels": ["_0000", "_0001"], "window": [0, 100]}
    with run(tmp_path, source, channels=2, split=SplitConfig(unlabelled=1.0)) as data:
        assert data.subjects == ["p", "p"]
        assert_allclose(data.images([0])[0, :, 2, 2], [0.5, 1.0])


@pytest.mark.parametrize(
    ("shape", "affine", "value", "message"),
    [
        ((4, 4, 3), np.eye(4), 1, "its files have different sizes"),
        ((4, 4, 2), np.diag([1, 1, 2, 1.0]), 1, "lies elsewhere in space"),
        ((4, 4, 2), np.eye(4), 0.5, "no whole numbers"),
        ((4, 4, 2), np.eye(4), 7, r"has the labels \[7\], none of which is a class's \(\[1\]\)"),
    ],
)
def test_labels_that_do_not_fit_their_volume_are_refused(tmp_path, shape, affine, value, message):
    nifti(tmp_path / "images/a.nii.gz", np.arange(32).reshape(4, 4, 2), np.eye(4))
    nifti(tmp_path / "masks/a.nii.gz", np.full(shape, value), affine, np.float32)
    with pytest.raises(TedmError, match=message):
        run(tmp_path, {"type": "nifti", "images": "images", "masks": "masks"})


def test_what_is_no_volume_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/text.nii").write_text("not a volume" * 100)
    (tmp_path / "images/zip.nii.gz").write_bytes(gzip.compress(b"not a volume" * 100))
    (tmp_path / "images/empty.nii").write_bytes(b"")
    nifti(tmp_path / "images/film.nii", np.zeros((4, 4, 2, 5)), np.eye(4))
    nifti(tmp_path / "images/cut.nii", np.arange(32).reshape(4, 4, 2), np.eye(4))
    whole = (tmp_path / "images/cut.nii").read_bytes()
    (tmp_path / "images/cut.nii").write_bytes(whole[:-20])
    huge = nib.Nifti1Header()
    huge.set_data_shape((30000, 30000, 30000))
    (tmp_path / "images/huge.nii").write_bytes(huge.binaryblock + bytes(4))
    with pytest.raises(TedmError) as error:
        run(tmp_path, {"type": "nifti", "images": "images"}, split=SplitConfig(unlabelled=1.0))
    text = str(error.value)
    for name, message in {
        "text": "not a NIfTI file", "zip": "not a NIfTI file", "empty": "is empty",
        "film": "4×4×2×5 voxels", "cut": "cannot be read", "huge": "too large to be read safely",
    }.items():  # fmt: skip
        (line,) = [line for line in text.splitlines() if f"images/{name}." in line]
        assert message in line


def ukbb(root, eid, *, shape=(10, 12, 8), archive=False, seed=0):
    """T1 of 0 … 3000, a brain mask that leaves out the border, two structures in slices 2 … 4."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 3000, shape)
    brain, first = np.zeros(shape, int), np.zeros(shape, int)
    brain[1:-1, 1:-1, 1:-1] = 1
    first[3:5, 4:6, 2:5], first[6:8, 4:6, 2:4] = 10, 49
    affine = AFFINES["LAS"]
    home = root / f"{eid}_20252_2_0"
    for name, values in (
        ("T1", image),
        ("T1_brain_mask", brain),
        ("T1_first/T1_first_all_fast_firstseg", first),
    ):
        nifti(home / f"T1/{name}.nii.gz", values[::-1], affine)
    if archive:
        with zipfile.ZipFile(root / f"{home.name}.zip", "w") as packed:
            for path in sorted(home.rglob("*.gz")):
                packed.write(path, path.relative_to(home))
                path.unlink()
        for path in (home / "T1/T1_first", home / "T1", home):
            path.rmdir()
    return image, brain, first


@pytest.mark.parametrize("archive", [False, True], ids=["folder", "zip"])
def test_uk_biobank_volumes_are_clipped_scaled_inside_the_brain_and_cut(tmp_path, archive):
    image, brain, first = ukbb(tmp_path / "ukbb", 1000017, archive=archive)
    source = {"type": "ukbb", "folder": "ukbb"}
    with run(tmp_path, source, size=12, classes=("right thalamus", "left thalamus")) as data:
        assert data.ids == [f"1000017_20252_2_0_z{z:03d}" for z in (2, 3, 4)]  # the others show nothing
        assert data.subjects == ["1000017"] * 3
        clipped = np.minimum(image, 1500).astype(np.float64)
        low, high = np.percentile(clipped[brain == 1], [1, 99])
        scaled = np.where(brain == 1, np.clip((clipped - low) / (high - low), 0, 1), 0)
        for row, z in enumerate((2, 3, 4)):
            expected = np.zeros((12, 12))
            expected[:, 1:11] = scaled[::-1, ::-1, z].T
            assert_allclose(data.images([row])[0, 0], expected, atol=1e-6)
            assert_array_equal(data.masks([row])[0, 1, :, 1:11], first[::-1, ::-1, z].T == 10)
        assert data.masks([2])[0, 0].sum() == 0  # an absent class
        assert data.intensity_range == (-1, 1)


def test_a_participant_without_structures_is_named_and_can_be_skipped(tmp_path):
    ukbb(tmp_path / "ukbb", 1000017)
    ukbb(tmp_path / "ukbb", 1000028, seed=1)
    (tmp_path / "ukbb/1000017_20252_2_0/T1/T1_brain_mask.nii.gz").unlink()
    (tmp_path / "ukbb/1000035_20252_2_0.zip").write_bytes(b"no archive")
    source = {"type": "ukbb", "folder": "ukbb"}
    with pytest.raises(TedmError, match=r"(?s)has no .*T1_brain_mask.*not a ZIP archive"):
        run(tmp_path, source, classes=("left thalamus",))
    with run(tmp_path, source | {"on_error": "skip"}, classes=("left thalamus",)) as data:
        assert set(data.subjects) == {"1000028"}
        assert [name for name, _ in sorted(data.skipped)] == ["1000017_20252_2_0", "1000035_20252_2_0"]


def brats(root, name, seed, shape=(180, 178, 4)):
    rng = np.random.default_rng(seed)
    stripped = rng.random(shape) < 0.7
    images = {}
    for k, modality in enumerate(("flair", "t1", "t1ce", "t2")):
        images[modality] = np.where(stripped, rng.integers(1, 100 * (k + 1), shape), 0)
        nifti(root / f"{name}/{name}_{modality}.nii.gz", images[modality], np.diag([-1, -1, 1, 1.0]))
    labels = rng.choice([0, 1, 2, 4], shape)
    nifti(root / f"{name}/{name}_seg.nii.gz", labels, np.diag([-1, -1, 1, 1.0]))
    return np.stack(list(images.values())), labels


def test_brats_is_standardised_by_the_training_set_and_cropped(tmp_path):
    first, labels = brats(tmp_path / "brats/HGG", "BraTS19_A_1", 0)
    second, _ = brats(tmp_path / "brats/LGG", "BraTS19_B_1", 1)
    (tmp_path / "s.csv").write_text("id,split\nBraTS19_A_1,test\nBraTS19_B_1,train\n")
    classes = ("enhancing tumour", "oedema", "necrotic core")
    with run(
        tmp_path, {"type": "brats", "folder": "brats"}, size=176, channels=4, classes=classes,
        split=SplitConfig(file="s.csv"),
    ) as data:  # fmt: skip
        rows = data.rows("test")
        assert len(rows) == 4
        for channel in range(4):
            brain = second[channel][second[channel] != 0]  # of the training patient only
            scaled = (first[channel] - brain.mean()) / brain.std()
            # x and y run to the left and the back: already as slices are looked at.
            expected = scaled[2:178, 1:177, 1].T
            found = data.images([rows[1]])[0, channel] * 10 - 5
            assert_allclose(found, np.clip(expected, -5, 5), atol=1e-4)
        for k, value in enumerate((4, 2, 1)):
            assert_array_equal(data.masks([rows[1]])[0, k], value == labels[2:178, 1:177, 1].T)


def test_a_missing_modality_is_named(tmp_path):
    brats(tmp_path / "brats", "BraTS19_A_1", 0, (8, 8, 2))
    (tmp_path / "brats/BraTS19_A_1/BraTS19_A_1_t1ce.nii.gz").unlink()
    with pytest.raises(TedmError, match=r"BraTS19_A_1: has no BraTS19_A_1_t1ce\.nii\.gz"):
        run(tmp_path, {"type": "brats", "folder": "brats"}, channels=4, classes=("oedema",))


@pytest.mark.parametrize(
    ("layout", "channels", "classes"),
    [("ukbb", 1, ("left thalamus", "brain stem")), ("brats", 4, ("enhancing tumour", "oedema"))],
)
def test_drawn_brains_are_written_in_a_published_layout_and_read_back(tmp_path, layout, channels, classes):
    source = {"type": "brain", "layout": layout, "count": 3, "voxel_mm": 6.0}
    split = SplitConfig(train=2, test=1)
    with run(tmp_path, source, size=40, channels=channels, classes=classes, split=split) as data:
        assert data.synthetic
        assert len(set(data.subjects)) == 3
        assert len(data.training_rows(1)) < len(data.training_rows(2))
        assert {data.subjects[row] for row in data.training_rows(1)} == {data.subjects[0]}
        assert data.masks(range(len(data))).any(axis=(0, 2, 3)).all()
        before = data.digest
    written = list((tmp_path / "out/mine_volumes").rglob("*.nii.gz"))
    assert len(written) == 3 * (3 if layout == "ukbb" else 5)
    with run(tmp_path, source, size=40, channels=channels, classes=classes, split=split, threads=1) as data:
        assert data.digest == before


# ── further files as they are met ───────────────────────────────────────────────────────────────


def interlaced(values):
    """An Adam7 PNG of 8-bit greys, written pass by pass (PNG specification, 8.2)."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    rows = [
        bytes([0]) + row.tobytes()
        for x, y, step_x, step_y in passes
        for row in values[y::step_y, x::step_x]
        if row.size
    ]
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 8, 0, 0, 0, 1)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_interlaced_png_is_read(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(interlaced(draw(0, 13)))
    with run(tmp_path, {"type": "folder", "images": "images"}, size=13) as data:
        assert_array_equal(np.rint(data.images([0])[0, 0] * 255), draw(0, 13))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real X-rays are not part of the project")
def test_real_x_rays_are_read_from_their_folders(tmp_path):
    for name, lungs in (("jsrt", (0.2, 0.4)), ("covid", (0.1, 0.5))):
        source = {"type": "folder", "images": f"{name}/images", "masks": f"{name}/masks", "limit": 12}
        dataset = DatasetConfig.model_validate({"label": name, "source": source, "split": {"test": 1.0}})
        out = tmp_path / f"{name}.h5"
        prepare(dataset, name, ImageConfig(size=64), 0, REAL, out, out.with_suffix(".json"))
        with PreparedSet(out) as data:
            assert len(data) == 12
            share = data.masks(range(12)).mean(axis=(1, 2, 3))
            assert lungs[0] < share.mean() < lungs[1]
            images = data.images(range(12))
            inside = images[data.masks(range(12)) > 0].mean()
            assert inside < images.mean()  # lungs are darker than the rest


# ── everybody's own ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_lists_images_masks_subjects_and_splits(tmp_path, suffix):
    import pandas as pd

    rows = []
    for k in range(6):
        save(tmp_path / f"study/scans/scan {k}.tif", draw(k, depth=16))
        save(tmp_path / f"study/drawn/{k}.png", np.eye(8, dtype=np.uint8) * 255)
        rows.append(
            {
                "file": f"scans/scan {k}.tif",
                "mask": f"drawn/{k}.png",
                "who": k // 2,
                "part": ["train", "val", "test"][k // 2],
            }
        )
    table = pd.DataFrame(rows)
    if suffix == "csv":
        table.to_csv(tmp_path / "study/list.csv", index=False)
    else:
        table.to_parquet(tmp_path / "study/list.parquet")
    source = {"type": "table", "table": f"study/list.{suffix}", "image": "file", "subject": "who"}
    with run(tmp_path, source, split=SplitConfig(column="part")) as data:
        assert data.ids == [f"scans/scan {k}" for k in range(6)]
        assert data.subjects == ["0", "0", "1", "1", "2", "2"]
        assert data.splits == ["train", "train", "val", "val", "test", "test"]
        assert_allclose(data.images([3])[0, 0] * 65535, draw(3, depth=16), rtol=1e-5)
        assert_array_equal(data.masks([0])[0, 0], np.eye(8))
    with pytest.raises(TedmError, match=r"no column cohort \(it has file, mask, who, part\)"):
        run(tmp_path, source, split=SplitConfig(column="cohort"))
    with pytest.raises(TedmError, match="has no column picture"):
        run(tmp_path, source | {"image": "picture"})


def test_masks_of_one_folder_per_class_become_one_mask_each(tmp_path):
    save(tmp_path / "images/a.png", draw())
    heart, lung = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    heart[:4], lung[4:] = 255, 1
    save(tmp_path / "h/a.png", heart)
    save(tmp_path / "l/a.tif", lung)
    source = {"type": "folder", "images": "images", "masks": {"lung": "l", "heart": "h"}}
    with run(tmp_path, source, classes=("heart", "lung")) as data:
        assert_array_equal(data.masks([0])[0], np.stack([heart > 0, lung > 0]))
    save(tmp_path / "l/a.tif", heart)
    with pytest.raises(TedmError, match="32 pixels have two classes"):
        run(tmp_path, source, classes=("heart", "lung"))


def test_subjects_come_from_names_and_stay_together(tmp_path):
    for k in range(12):
        save(tmp_path / f"images/P{k // 3}_{k}.png", draw(k))
    source = {"type": "folder", "images": "images", "subject": r"^(P\d+)_"}
    with run(tmp_path, source, split=SplitConfig(train=0.5, test=0.5)) as data:
        parts = {(s, p) for s, p in zip(data.subjects, data.splits, strict=True)}
        assert len(parts) == len(set(data.subjects)) == 4
    with pytest.raises(TedmError, match="finds no subject in P0_0"):
        run(tmp_path, source | {"subject": r"^(Q\d+)_"})
    with pytest.raises(TedmError, match="has 0 groups, expected one"):
        run(tmp_path, source | {"subject": r"^Q"})


def test_a_mask_of_another_size_is_resized_only_when_asked(tmp_path):
    save(tmp_path / "images/a.png", draw())
    mask = np.zeros((24, 24), np.uint8)
    mask[6:12, 9:21] = 255
    save(tmp_path / "masks/a.png", mask)
    source = {"type": "folder", "images": "images", "masks": "masks"}
    with pytest.raises(TedmError, match=r"masks/a\.png: 24×24 pixels, but its image .*a\.png has 8×8"):
        run(tmp_path, source)
    with run(tmp_path, source | {"resize_masks": True}) as data:
        assert_array_equal(data.masks([0])[0, 0], mask[1::3, 1::3] // 255)


def test_links_out_of_the_folder_are_refused_unless_asked_for(tmp_path):
    save(tmp_path / "images/a.png", draw())
    save(tmp_path / "elsewhere/b.png", draw(1))
    (tmp_path / "images/b.png").symlink_to(tmp_path / "elsewhere/b.png")
    (tmp_path / "images/c.png").symlink_to("a.png")
    source = {"type": "folder", "images": "images"}
    with pytest.raises(TedmError, match=r"images/b\.png: a symbolic link out of .*`links: true`"):
        run(tmp_path, source)
    with run(tmp_path, source | {"links": True}) as data:
        assert sorted(data.ids) == ["a", "b", "c"]


def test_what_cannot_be_read_is_skipped_and_listed_when_asked(tmp_path):
    for k in range(5):
        save(tmp_path / f"images/{k}.png", draw(k))
        save(tmp_path / f"masks/{k}.png", np.eye(8, dtype=np.uint8))
    (tmp_path / "images/1.png").write_bytes(b"nonsense")
    whole = (tmp_path / "images/3.png").read_bytes()
    (tmp_path / "images/3.png").write_bytes(whole[:-30])  # its header is good
    save(tmp_path / "masks/stray.png", np.eye(8, dtype=np.uint8))
    source = {"type": "folder", "images": "images", "masks": "masks", "on_error": "skip"}
    with run(tmp_path, source) as data:
        assert sorted(data.ids) == ["0", "2", "4"]
        skipped = dict(data.skipped)
        assert set(skipped) == {"1", "3", "stray"}
        assert "not a PNG" in skipped["1"]
    assert '"skipped": 3' in (tmp_path / "out/mine.json").read_text()


def test_nobody_takes_the_place_of_what_is_skipped_and_the_log_says_so(tmp_path, capsys):
    for k in range(10):
        save(tmp_path / f"images/{k}.png", draw(k))
    source = {"type": "folder", "images": "images", "on_error": "skip"}
    split = SplitConfig(train=4, test=3)
    with run(tmp_path, source, split=split) as data:
        before = dict(zip(data.ids, data.splits, strict=True))
        assert data.missing == {}
    first, tested = (
        next(i for i in before if before[i] == "train"),
        [i for i in before if before[i] == "test"],
    )
    for name in (first, tested[1]):
        (tmp_path / f"images/{name}.png").write_bytes(b"nonsense")
    with run(tmp_path, source, split=split) as data:
        after = dict(zip(data.ids, data.splits, strict=True))
        assert after == {i: part for i, part in before.items() if i not in (first, tested[1])}
        assert data.missing == {"train": 1, "test": 1}
        with pytest.raises(TedmError, match="the split train has 3 without the 1 that were skipped"):
            data.training_rows(4)
    assert "1 of train, 1 of test missing for that; no others take their places" in capsys.readouterr().err


def test_splits_can_be_stratified(tmp_path):
    lines = ["image,sex"]
    for k in range(40):
        save(tmp_path / f"{k}.png", draw(k))
        lines.append(f"{k}.png,{'f' if k < 8 else 'm'}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    source = {"type": "table", "table": "t.csv"}
    split = SplitConfig(train=0.5, val=0.25, test=0.25, stratify="sex")
    with run(tmp_path, source, split=split) as data:
        for part, women in (("train", 4), ("val", 2), ("test", 2)):
            ids = [int(data.ids[row]) for row in data.rows(part)]
            assert abs(sum(k < 8 for k in ids) - women) <= 1
        first_ten = [int(data.ids[row]) for row in data.training_rows(10)]
        assert abs(sum(k < 8 for k in first_ten) - 2) <= 1

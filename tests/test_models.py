"""Exported models segment new images as the study's workflow does, whatever file the images come in."""

import csv
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pydicom
import pytest
import yaml
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy import ndimage
from test_dicom import dataset as dicom_dataset
from test_dicom import write as write_dicom
from tiny_experiment import finish

import tedm
from tedm import config, disagreement, evaluation
from tedm.backbones import study
from tedm.data import decoders, prepared
from tedm.data.decoders import nifti
from tedm.data.phantoms import draw
from tedm.data.prepared import PreparedSet
from tedm.data.sources.brain import write_ukbb
from tedm.data.sources.ukbb import UKBiobank
from tedm.digests import digest_of
from tedm.errors import TedmError
from tedm.models import Models, Segmentation, card, images, load
from tedm.models.batch import Options, segment_files
from tedm.models.export import export
from tedm.models.folder import VolumeScaling
from tedm.models.outputs import write_nifti
from tedm.scoring import read_masks, read_uncertainty

PROJECT = Path(__file__).parents[1]
STEPS = [50, 200]
MLP = {"type": "mlp", "timesteps": STEPS, "steps": 15, "learning_rate": 1e-2, "hidden": [8]}
METHODS = ("Supervised", "LR", "LR t=50", "LEDM", "TEDM", "Blend")
SOURCES = {"LR t=50": "LR"}


def experiment(home: Path, **changes):
    backbone = {"type": "ddpm", "data": "cxr", "width": 8, "multipliers": [1, 2], "samples": 0}
    backbone["training"] = {"steps": 6, "batch_size": 4, "learning_rate": 1e-3}
    baseline = {"width": 8, "multipliers": [1, 2], "training": {"steps": 4, "batch_size": 2}}
    return config.parse(
        {
            "title": "Tiny",
            "seed": 3,
            "data_root": str(home),
            "image": {"size": 24},
            "datasets": {
                "cxr": {
                    "label": "Unlabelled",
                    "source": {"type": "phantom", "site": "chestxray8", "count": 8},
                    "split": {"unlabelled": 8},
                },
                "jsrt": {
                    "label": "Chests",
                    "source": {"type": "folder", "images": "images", "masks": "masks", "fit": "pad"},
                    "split": {"train": 3, "val": 2, "test": 5},
                },
            },
            "backbones": {
                "ddpm": backbone | {"training": {"steps": 6, "batch_size": 4, "learning_rate": 1e-3}}
            },
            "features": {"batch_size": 4},
            "baselines": {"Supervised": baseline},
            "heads": {
                "LR": {"type": "ridge", "timesteps": STEPS, "readings": {"LR t=50": [50]}},
                "LEDM": MLP | {"combine": "concat"},
                "TEDM": MLP | {"combine": "share"},
                "Blend": {k: v for k, v in MLP.items() if k != "type"} | {"type": "blend"},
            },
            "evaluation": {"train_on": "jsrt", "test_on": ["jsrt"], "train_sizes": [3]},
        }
        | changes
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A finished experiment on files of 60 × 50 pixels, and its models."""
    folder = tmp_path_factory.mktemp("models")
    for place in ("images", "masks"):
        (folder / place).mkdir()
    for index in range(10):
        pixels, mask = draw("jsrt", index, 60, 7)
        Image.fromarray(pixels[:, 5:55]).save(folder / "images" / f"c{index}.png")
        Image.fromarray(mask[:, 5:55] * np.uint8(255)).save(folder / "masks" / f"c{index}.png")
    e = experiment(folder)
    finish(e, folder / "results")
    for method in METHODS:
        export(e, folder / "results", method, 3, 0, folder / "models" / method)
    return folder


@pytest.fixture(scope="module")
def models(home) -> Models:
    return tedm.load_together([home / "models" / method for method in METHODS])


@pytest.fixture(scope="module")
def model(home):
    return load(home / "models" / "TEDM")


@pytest.fixture
def picture(home) -> Path:
    return home / "images" / "c0.png"


def at_network_size(found: Segmentation) -> np.ndarray:
    mean = np.asarray(found.steps.mean(axis=0, dtype=np.float64), np.float32)
    return evaluation.segment(mean[None])[0]


# ── the same as the workflow ────────────────────────────────────────────────────────────────────


def test_masks_of_test_images_are_those_of_the_score_files_to_the_bit(home, models):
    for method in METHODS:
        path = home / "results" / "scores" / SOURCES.get(method, method) / "n3" / "seed0" / "jsrt.npz"
        ids, masks = read_masks(path)
        assert len(ids) == 5
        files = [home / "images" / f"{name}.png" for name in ids]
        found = models[f"{method} n=3"].segment(files, ids=ids)
        assert_array_equal(np.stack([at_network_size(one) for one in found]), masks[method])
        maps = read_uncertainty(path, method)
        if maps is not None:  # kept as whole 255ths of a bit
            own = disagreement.information(np.stack([one.steps for one in found], axis=1))
            assert_allclose(own, maps, atol=0.51 / 255)
            assert found[0].uncertainty.shape == (1, 60, 50)
        else:
            assert found[0].uncertainty is None


def test_many_models_at_once_are_each_the_model_alone(home, models, picture):
    passes = []
    whole = study.DiffusionBackbone.features_at

    def counting(self, images, *rest):
        passes.append(len(images))
        return whole(self, images, *rest)

    study.DiffusionBackbone.features_at = counting
    try:
        together = models.segment(picture)
    finally:
        study.DiffusionBackbone.features_at = whole
    assert passes == [8]  # for five heads, and one timestep as well as two
    assert len({id(m.backbone) for m in models.values() if m.backbone is not None}) == 1
    for method in METHODS:
        alone = load(home / "models" / method).segment(picture)
        assert_array_equal(together[f"{method} n=3"].mask, alone.mask)
        assert_allclose(together[f"{method} n=3"].probability, alone.probability, rtol=0, atol=1e-6)
    assert set(models.segment(picture, names=["LR n=3"])) == {"LR n=3"}


def test_a_batch_gives_what_its_images_give_one_by_one(home, model):
    files = sorted((home / "images").glob("*.png"))
    for one, file in zip(model.segment(files), files, strict=True):
        alone = model.segment(file)
        assert_array_equal(one.mask, alone.mask)
        assert_allclose(one.probability, alone.probability, rtol=0, atol=1e-6)


def test_the_same_pixels_give_the_same_mask_in_whatever_form(model, picture, tmp_path):
    pixels = np.asarray(Image.open(picture))
    deep = tmp_path / "deep.tiff"
    Image.fromarray(pixels.astype(np.uint16) * 257).save(deep)
    colour = tmp_path / "colour.png"
    Image.fromarray(np.stack([pixels] * 3, -1)).save(colour)
    upside = tmp_path / "no_suffix"
    Image.fromarray(pixels).rotate(180).save(tmp_path / "turned.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, format="JPEG", quality=95)
    upside.write_bytes(jpeg.getvalue())
    expected = model.segment(picture)
    for same in (pixels, pixels[..., None], Image.open(picture), colour):
        assert_array_equal(model.segment(same).probability, expected.probability)
    for same in (pixels / np.float32(255), deep):  # eight bits are rounded after resizing
        assert_allclose(model.segment(same).probability, expected.probability, rtol=0, atol=0.03)
    from_jpeg = model.segment(upside).mask
    Image.open(picture).rotate(180).save(upside, format="JPEG", quality=95, exif=exif)
    assert (model.segment(upside).mask == from_jpeg).mean() > 0.97  # upright, as people see it
    assert from_jpeg.shape == expected.mask.shape == (60, 50)


def test_maps_come_back_where_they_came_from():
    y, x = np.mgrid[:31, :47]
    for fit in ("stretch", "pad", "crop"):
        blob = np.zeros((31, 47), np.float32)
        blob[8:22, 14:34] = 1
        like = images.Preprocessing(size=64, channels=1, fit=fit, intensity_range=(0, 255), deep=False)
        picture = images.from_array((255 * blob).astype(np.uint8), like)
        back = picture.back(picture.squares(like), like)[0]
        for axis in (y, x):
            assert abs((back * axis).sum() / back.sum() - (blob * axis).sum() / blob.sum()) < 0.2
        assert 2 * ((back > 0.5) & (blob > 0)).sum() / ((back > 0.5).sum() + blob.sum()) > 0.96
    same = np.random.default_rng(0).random((2, 24, 24)).astype(np.float32)
    for fit in ("stretch", "pad", "crop"):
        assert_array_equal(images.restored(same, (24, 24), fit), same)


def test_a_timestep_s_map_and_the_vote_hang_together(model, picture):
    found = model.segment(picture)
    assert found.timesteps == tuple(STEPS)
    mean = np.mean([found.step(t) for t in STEPS], axis=0)
    assert_allclose(mean, found.probability, atol=1e-6)
    dice = evaluation.scores(*(evaluation.segment(p[None]) for p in found.steps), ["a"], ["lungs"])
    assert_allclose(found.disagreement["lungs"], 1 - dice[dice["metric"] == "dice"]["value"].item())
    with pytest.raises(TedmError, match=r"timestep 5: no map of it is kept \(kept: 50, 200\)"):
        found.step(5)


def test_a_mask_is_tidied_as_asked():
    mask = np.zeros((12, 12), np.uint8)
    mask[1:6, 1:6], mask[3, 3], mask[8:10, 8:10], mask[11, 0] = 1, 0, 1, 1
    zero = np.zeros((1, 12, 12), np.float32)
    found = Segmentation(("a",), mask, zero, None, None, (), {}, (0.5, 2.0), 0.0, lambda maps: maps)
    assert found.areas() == {"a": 29.0}
    assert found.area_unit == "mm2"
    assert ndimage.label(found.cleaned(2, False).mask)[1] == 2
    kept = found.cleaned(1, True).mask
    assert kept.sum() == 25
    assert kept[3, 3] == 1


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def test_dicom_is_read_with_its_spacing_and_monochrome1_is_the_same_image(home, model, picture, tmp_path):
    grey = np.asarray(Image.open(picture)).astype(np.uint16) * 16 + 8
    tags = {"PixelSpacing": [0.5, 0.25], "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3"}
    plain = write_dicom(tmp_path / "plain", dicom_dataset(grey, **tags))  # no suffix: by its content
    inverse = dicom_dataset(4095 - grey, photometric="MONOCHROME1", **tags)
    other = write_dicom(tmp_path / "inverse.dcm", inverse)
    found, same = model.segment([plain, other])
    assert_array_equal(found.mask, same.mask)
    assert found.spacing_mm == (0.5, 0.25)
    assert found.areas()["lungs"] == pytest.approx(found.mask.astype(bool).sum() * 0.125)
    assert (found.mask == model.segment(picture).mask).mean() > 0.97


def test_dicom_seg_has_the_mask_and_names_its_image(model, picture, tmp_path):
    pytest.importorskip("highdicom")
    grey = np.asarray(Image.open(picture)).astype(np.uint16) * 16
    tags = {"PixelSpacing": [0.5, 0.25], "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3"}
    tags |= {
        "Modality": "OT",
        "PatientName": "A^B",
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyID": "1",
    }
    tags |= {"AccessionNumber": "", "StudyDate": "20200101", "StudyTime": "", "SeriesNumber": 1}
    tags |= {"ReferringPhysicianName": "", "InstanceNumber": 1}
    source = dicom_dataset(grey, **tags)
    source.file_meta.MediaStorageSOPClassUID = source.SOPClassUID
    source.file_meta.MediaStorageSOPInstanceUID = source.SOPInstanceUID
    path = write_dicom(tmp_path / "a.dcm", source)
    segment_files(Models([model]), [path], tmp_path / "out", Options(dicom_seg=True))
    made = pydicom.dcmread(tmp_path / "out" / "a_seg.dcm")
    assert made.Modality == "SEG"
    assert made.PatientID == "4711"
    assert made.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == (
        source.SOPInstanceUID
    )
    png = np.asarray(Image.open(tmp_path / "out" / "a_mask.png")) > 0
    assert_array_equal(np.squeeze(made.pixel_array) > 0, png)


def test_a_folder_is_segmented_resumed_and_its_bad_files_named(home, models, tmp_path, monkeypatch):
    given, out = tmp_path / "in", tmp_path / "out"
    (given / "b").mkdir(parents=True)
    shutil.copy(home / "images" / "c0.png", given / "x.png")
    shutil.copy(home / "images" / "c1.png", given / "b" / "x.png")
    (given / "notes.txt").write_text("no image")
    bad = [tmp_path / "cut.png", tmp_path / "empty.png", tmp_path / "bomb.png", tmp_path / "none.png"]
    bad[0].write_bytes((home / "images" / "c2.png").read_bytes()[:300])
    bad[1].write_bytes(b"")
    bad[2].write_bytes(bomb(60000, 60000))
    some = Models([models["TEDM n=3"], models["Supervised n=3"]])
    with pytest.raises(TedmError, match="4 of 6 images could not be segmented") as raised:
        segment_files(some, [*bad, given], out, Options(keep_largest=2))
    for path, said in zip(bad, ("cannot be read", "empty", "too large", "No such file"), strict=True):
        assert any(str(path) in line and said in line for line in str(raised.value).splitlines())
    table = (out / "segmentations.csv").read_text().splitlines()
    assert table[0] == "file,model,height,width,unit,size_lungs,uncertainty_lungs,seconds,model_data"
    assert len(table) == 5
    for name in ("x", "b/x"):
        mask = Image.open(out / "TEDM_n_3" / "in" / f"{name}_mask.png")
        expected = models["TEDM n=3"].segment(given / f"{name}.png", keep_largest=2).mask
        assert_array_equal(np.asarray(mask), expected * np.uint8(255))
        assert_array_equal(decoders.shares(Path(mask.filename), ["lungs"])[0], expected)
    assert not [path for path in out.rglob("*") if "partial" in path.name]

    asked = []
    whole = Models.segment

    def counting(self, image, **options):
        asked.extend(image)
        return whole(self, image, **options)

    monkeypatch.setattr(Models, "segment", counting)
    (out / "TEDM_n_3" / "in" / "x_overlay.png").unlink()
    before = (out / "TEDM_n_3" / "in" / "b" / "x_mask.png").stat().st_mtime_ns
    with pytest.raises(TedmError, match="4 of 6"):
        segment_files(some, [*bad, given], out, Options(keep_largest=2))
    assert [Path(p.name).name for p in asked] == ["x.png"]
    assert (out / "TEDM_n_3" / "in" / "b" / "x_mask.png").stat().st_mtime_ns == before
    assert (out / "TEDM_n_3" / "in" / "x_overlay.png").exists()


def test_a_bomb_is_refused_before_it_is_decoded(model, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(9000, 9000))
    with pytest.raises(TedmError, match=r"your file: too large \(9000×9000 pixels; at most 1000000"):
        images.read(path, model.preprocessing, max_pixels=10**6, name="your file")


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


# ── the folder ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(home, tmp_path) -> Path:
    return Path(shutil.copytree(home / "models" / "TEDM", tmp_path / "copy"))


def change(folder: Path, **said):
    path = folder / "model.json"
    known = json.loads(path.read_text()) | said
    known.pop("digest")
    path.write_text(json.dumps(known | {"digest": digest_of(known)}))


def test_a_folder_that_was_changed_is_refused(folder):
    head = folder / "head.safetensors"
    content = bytearray(head.read_bytes())
    content[-5] ^= 1
    head.write_bytes(content)
    with pytest.raises(TedmError, match=r"head\.safetensors: not the file that model\.json was"):
        load(folder)


def test_weights_that_were_changed_are_refused(folder):
    weights = folder / "backbone" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(TedmError, match="does not belong to model"):
        load(folder)


def test_another_model_s_backbone_a_newer_version_and_other_folders_are_refused(folder, tmp_path):
    (folder / "model.json").write_text((folder / "model.json").read_text().replace('"n": 3', '"n": 4'))
    with pytest.raises(TedmError, match="was changed since it was written"):
        load(folder)
    change(folder, format_version=2)
    with pytest.raises(TedmError, match="has format version 2, this tedm reads 1"):
        load(folder)
    change(folder, format_version=1, backbone="0" * 64)
    with pytest.raises(TedmError, match="the backbone of another model"):
        load(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(TedmError, match="not valid JSON"):
        load(folder)
    with pytest.raises(TedmError, match="no such folder"):
        load(tmp_path / "nothing")
    with pytest.raises(TedmError, match="not a model folder"):
        load(tmp_path)


def test_export_says_what_is_missing_and_overwrites_nothing(home, tmp_path):
    e, results = experiment(home), home / "results"
    for method, n, message in (
        ("Nobody", 3, r"--method: no method Nobody \(methods: Supervised, LR, LR t=50"),
        ("TEDM", 4, r"--n: 4 is not in the experiment \(3\)"),
    ):
        with pytest.raises(TedmError, match=message):
            export(e, results, method, n, 0, tmp_path / "m")
    with pytest.raises(TedmError, match="is there already"):
        export(e, results, "TEDM", 3, 0, home / "models" / "TEDM")
    with pytest.raises(TedmError, match=r"head\.safetensors: no such file; `snakemake"):
        export(e, tmp_path_with_data(home, tmp_path), "TEDM", 3, 0, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def tmp_path_with_data(home: Path, tmp_path: Path) -> Path:
    shutil.copytree(home / "results" / "data", tmp_path / "r" / "data")
    shutil.copytree(home / "results" / "backbones", tmp_path / "r" / "backbones")
    return tmp_path / "r"


def test_the_card_says_what_it_learned_from_and_how_it_scored(home):
    card = (home / "models" / "TEDM" / "README.md").read_text()
    rows = evaluation.read_scores([home / "results/scores/TEDM/n3/seed0/jsrt.csv"])
    dice = 100 * rows[rows["metric"] == "dice"]["value"].mean()
    assert f"| Chests | 5 | {dice:.1f} [" in card
    assert "For research only" in card
    assert "3 images with masks from Chests" in card
    assert "8 images of Unlabelled (synthetic: drawn by tedm" in card
    assert "never tested on" in card


def test_the_commands_export_and_segment_and_say_which_file_is_bad(home, picture, tmp_path):
    e = experiment(home).model_dump(mode="json", exclude={"pathvars"})
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(e))
    (tmp_path / "bad.png").write_text("no image")

    def tedm_(*arguments):
        command = [str(Path(sys.executable).with_name("tedm")), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    made = tedm_(
        *("export", "--method", "LR", "--n", 3, "--config", "e.yaml", "--results", home / "results"),
        *("--out", "m"),
    )
    assert made.returncode == 0, made.stderr
    run = tedm_("segment", "--model", "m", picture, "bad.png", "--out", "out", "--threads", 1)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-2:] == [
        "error: 1 of 2 images could not be segmented:",
        "  bad.png: not a PNG, JPEG, TIFF, GIF, DICOM or NIfTI file, or damaged; mend or remove it",
    ]
    assert sorted(p.name for p in (tmp_path / "out").glob("c0*")) == ["c0_mask.png", "c0_overlay.png"]


PYTHON_BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (PROJECT / "docs" / "python.md").read_text(), flags=re.M | re.S
)


@pytest.mark.parametrize("code", PYTHON_BLOCKS, ids=range(len(PYTHON_BLOCKS)))
def test_the_code_of_the_page_about_python_runs(home, picture, tmp_path, monkeypatch, code):
    for name, method in (("model", "TEDM"), ("other", "LR")):
        (tmp_path / name).symlink_to(home / "models" / method)
    shutil.copy(picture, tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    exec(code, {})


def test_several_threads_may_use_the_same_models(models, picture):
    alone = models.segment(picture)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: models.segment(picture), range(4)):
            for name, one in found.items():
                assert_array_equal(one.mask, alone[name].mask)


def test_nothing_of_torch_is_imported_before_it_is_needed():
    code = "import sys, tedm, tedm.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ── volumes ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def tumours(tmp_path_factory):
    """A model of three classes on four modalities, in the layout of BraTS; the experiment's results."""
    folder = tmp_path_factory.mktemp("tumours")
    e = experiment(
        folder,
        image={"size": 30, "channels": 4, "classes": ["enhancing tumour", "oedema", "necrotic core"]},
        datasets={
            "cxr": {
                "label": "Brains",
                "source": {"type": "brain", "layout": "brats", "count": 3, "voxel_mm": 8.0},
                "split": {"train": 2, "test": 1},
            }
        },
        baselines={},
        heads={"LR": {"type": "ridge", "timesteps": [10]}},
        evaluation={"train_on": "cxr", "test_on": ["cxr"], "train_sizes": [2]},
    )
    finish(e, folder / "results")
    export(e, folder / "results", "LR", 2, 0, folder / "model")
    return folder


def test_a_volume_s_mask_is_that_of_the_score_files_slice_by_slice(tumours):
    ids, masks = read_masks(tumours / "results/scores/LR/n2/seed0/cxr.npz")
    with PreparedSet(tumours / "results/data/cxr.h5") as data:
        (subject,) = {data.subjects[row] for row in data.rows("test")}
        seen = data.images(data.rows("test"))
    (flair,) = (tumours / "results" / "data").rglob(f"{subject}_flair.nii.gz")
    model = load(tumours / "model")
    squares = images.read(flair, model.preprocessing).squares(model.preprocessing)
    assert_allclose(squares, seen, rtol=0, atol=1e-6)
    found = model.segment(flair, ids=[subject])
    assert found.area_unit == "ml"
    volume = nib.as_closest_canonical(nib.Nifti1Image(found.mask, nib.load(flair).affine)).get_fdata()
    for name, mask in zip(ids, masks["LR"], strict=True):
        # As nifti.plane shows it; the network's 30 pixels are the volume's own.
        plane = volume[:, :, int(name.rsplit("_z", 1)[1])].T[::-1, ::-1]
        assert_array_equal(plane, mask[0] + 2 * mask[1] + 3 * mask[2])
    assert_allclose(found.areas()["oedema"], (found.mask == 2).sum() * 0.512)


@pytest.mark.parametrize("turn", [("R", "A", "S"), ("L", "P", "S"), ("S", "L", "A")], ids="".join)
def test_masks_of_volumes_lie_where_the_volume_lies_however_it_is_stored(tumours, tmp_path, turn):
    first = sorted((tumours / "results" / "data").rglob("*_flair.nii.gz"))[0]
    stem = first.name.removesuffix("_flair.nii.gz")
    for part in ("flair", "t1", "t1ce", "t2"):
        volume = nib.load(first.with_name(f"{stem}_{part}.nii.gz"))
        turned = volume.as_reoriented(
            nib.orientations.ornt_transform(
                nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(turn)
            )
        )
        nib.save(turned, tmp_path / f"v_{part}.nii.gz")
    model = load(tumours / "model")
    out = tmp_path / "out"
    segment_files(Models([model]), [tmp_path], out, Options())
    made, given = nib.load(out / "v_flair_mask.nii.gz"), nib.load(tmp_path / "v_flair.nii.gz")
    assert_array_equal(made.affine, given.affine)
    assert made.shape == given.shape
    plain = model.segment(first)
    straight = tmp_path / "straight.nii.gz"
    write_nifti(straight, plain.mask, first)
    ours, reference = (
        nib.as_closest_canonical(nib.load(p)) for p in (out / "v_flair_mask.nii.gz", straight)
    )
    assert_array_equal(ours.get_fdata(), reference.get_fdata())
    assert Image.open(out / "v_flair_overlay.png").size > (0, 0)


def test_volumes_of_the_other_sources_are_scaled_as_those_sources_scale_them(tmp_path):
    write_ukbb(tmp_path, 0, 5, 8.0)
    (home,) = (path.parent for path in tmp_path.rglob("T1.nii.gz"))
    whole, inside = nifti.volume(home / "T1.nii.gz"), nifti.volume(home / "T1_brain_mask.nii.gz")
    brain = nifti.Volume(whole.values * (inside.values > 0), whole.affine)
    image = config.ImageConfig(size=16, classes=["brain stem"])
    source = UKBiobank(config.UKBBSource(type="ukbb", folder="."), image, tmp_path, "here")
    like = VolumeScaling(kind="brain", axis="axial", channels=[""], brightest=1500.0)
    # A voxel of the brain may be 0; it is none here.
    assert ((brain.values != 0) == (inside.values > 0)).all()
    assert_array_equal(images.scale([brain], like, "a"), source.scaled([whole], inside.values > 0))
    for settings in ({"window": (10.0, 900.0)}, {"percentiles": (2.0, 98.0)}):
        nonzero = brain.values[brain.values != 0]
        black, white = settings.get("window") or np.percentile(nonzero, settings["percentiles"])
        expected = np.clip((brain.values - black) / (white - black), 0, 1)
        like = VolumeScaling(kind=next(iter(settings)), axis="axial", channels=[""], **settings)
        assert_allclose(images.scale([brain], like, "a")[0], expected, rtol=0, atol=1e-6)


def test_a_volume_without_its_other_channels_and_a_picture_model_say_so(tumours, model, tmp_path):
    first = sorted((tumours / "results" / "data").rglob("*_flair.nii.gz"))[0]
    alone = tmp_path / "v_flair.nii.gz"
    shutil.copy(first, alone)
    with pytest.raises(TedmError, match=r"there is no v_t1\.nii\.gz, v_t1ce"):
        load(tumours / "model").segment(alone)
    with pytest.raises(TedmError, match="a volume, but the model learned from single images"):
        model.segment(alone)


# ── shown on the web page ───────────────────────────────────────────────────────────────────────


def test_the_page_offers_what_is_finished_and_shows_the_dice_of_the_score_files(home):
    from tedm.web import catalogue, examples, result

    e = experiment(home, results=str(home / "results"))
    known = catalogue.finished(e, "cpu")
    names = ["Supervised", "LR", "LEDM", "TEDM", "Blend"]
    assert list(known) == [f"{name} n=3" for name in names]
    given = next(iter(examples.examples(e).values()))
    page = result.page(given, known, list(known))
    shown = [float(dice) for dice in re.findall(r"<dt>Dice</dt><dd>([\d.]+)", page)]
    for name, dice in zip(names, shown, strict=True):
        with (home / "results" / "scores" / name / "n3" / "seed0" / "jsrt.csv").open() as file:
            wanted = (given.name, name, "dice")
            rows = [r for r in csv.DictReader(file) if (r["subject"], r["method"], r["metric"]) == wanted]
        assert dice == round(100 * float(rows[0]["value"]), 1)


@pytest.mark.parametrize("source", ["global_cl", "local_cl", "TEDM", "Supervised"])
def test_the_card_has_the_terms_of_the_images_that_it_was_pretrained_on(tmp_path, source):
    experiment = config.load(PROJECT / "config.yaml")
    (tmp_path / "data").mkdir()
    for name in ("cxr", "jsrt"):
        about = {"intensity_range": (0, 255), "synthetic": True, "source": "", "cite": ""}
        blank = np.zeros((1, 1, 8, 8), np.uint8)
        path = tmp_path / "data" / f"{name}.h5"
        prepared.write(
            path,
            name,
            blank,
            blank,
            ["a"],
            ["a"],
            ["train"],
            ["lungs"],
            licence=f"terms of {name}",
            **about,
        )
    description = SimpleNamespace(kind="head" if source == "TEDM" else "network")
    terms = "\n".join(card._licence(experiment, tmp_path, source, description))
    assert "terms of jsrt" in terms
    assert ("terms of cxr" in terms) == (source != "Supervised")

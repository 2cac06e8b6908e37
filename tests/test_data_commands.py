"""`tedm data check` names every problem at once; `tedm data init` writes an experiment that runs."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

from tedm import cli, config
from tedm.data import contact
from tedm.data.prepare import prepare
from tedm.data.prepared import PreparedSet

PROJECT = Path(__file__).parents[1]


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def picture(seed, size=24):
    rng = np.random.default_rng(seed)
    return (60 + 12 * np.sin(np.arange(size) / 3) + rng.integers(0, 120, (size, size))).astype(np.uint8)


def disc(size=24, radius=7):
    y, x = np.mgrid[:size, :size] - size // 2
    return ((y**2 + x**2 < radius**2) * 255).astype(np.uint8)


def experiment(root, datasets, **image):
    demo = yaml.safe_load((PROJECT / "tests/tiny.yaml").read_text())
    demo |= {
        "data_root": str(root),
        "results": "results",
        "image": {"size": 16, "classes": ["disc"]} | image,
        "datasets": datasets,
    }
    names = list(datasets)
    demo["backbones"]["ddpm"]["data"] = names[0]
    demo["evaluation"] = {"train_on": names[0], "test_on": names[:1], "train_sizes": [1]}
    path = root / "my.yaml"
    path.write_text(yaml.safe_dump(demo))
    return path


def tedm(monkeypatch, root, *arguments):
    """Run a command in a folder; its exit status."""
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["tedm", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0


@pytest.fixture
def study(tmp_path):
    for k in range(12):
        save(tmp_path / f"images/P{k // 2}_{k}.png", picture(k))
        save(tmp_path / f"masks/P{k // 2}_{k}.png", disc())
    return tmp_path


def folder_set(**source):
    given = {"type": "folder", "images": "images", "masks": "masks", "subject": r"^(P\d+)_"} | source
    return {"label": "Mine", "source": given, "split": {"train": 2, "val": 1, "test": 3}}


def test_a_good_data_set_has_nothing_wrong_and_a_sheet(study, monkeypatch, capsys):
    path = experiment(study, {"mine": folder_set()})
    assert tedm(monkeypatch, study, "data", "check", path) == 0
    assert "mine: 12 images or volumes, nothing wrong" in capsys.readouterr().out
    with Image.open(study / "results/check/mine.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 24)}
        assert sheet.width == 8 * 152
    assert (255, 176, 0) in colours  # the outlines of the masks
    assert {(70, 160, 70), (200, 170, 60), (200, 80, 80)} <= colours  # frames of train, val and test


def test_all_problems_are_reported_at_once_as_text_and_csv(study, monkeypatch, capsys):
    images, masks = study / "images", study / "masks"
    (images / "P0_0.png").write_bytes(b"nonsense")
    (masks / "P0_1.png").unlink()
    save(masks / "P1_2.png", disc(30))
    save(masks / "P1_3.png", np.zeros((24, 24), np.uint8))
    save(masks / "P2_4.png", np.full((24, 24), 255, np.uint8))
    save(masks / "P2_5.png", (disc() // 255 * (picture(0) % 5)).astype(np.uint8))
    save(masks / "stray.png", disc())
    shutil.copy(images / "P3_6.png", images / "P5_11.png")
    save(images / "P3_7.png", (picture(7) // 30).astype(np.uint8))
    rows = [f"{p.stem},{'train' if p.stem < 'P4' else 'test'}" for p in sorted(images.iterdir())]
    rows[5] = "P2_5,test"  # its subject is in train too
    (study / "split.csv").write_text("\n".join(["id,split", *rows]))
    leaky = folder_set() | {"split": {"file": "split.csv"}}
    path = experiment(study, {"mine": leaky})
    assert tedm(monkeypatch, study, "data", "check", path) == 1
    printed = capsys.readouterr().out
    with (study / "results/check/report.csv").open() as file:
        found = {(row["image"], row["kind"]): row for row in csv.DictReader(file)}
    assert {
        ("", "subject in two splits"),
        ("P0_0", "unreadable"),
        ("P0_1", "mask of another size or place"),
        ("P1_2", "mask of another size or place"),
        ("P1_3", "empty mask"),
        ("P2_4", "full mask"),
        ("P2_5", "values of a mask"),
        ("stray", "mask without an image"),
        ("P3_7", "odd intensities"),
    } - {("P0_1", "mask of another size or place")} <= set(found)
    # Without a split that holds, an image without a mask may be an unlabelled one.
    assert not [key for key in found if key[0] == "P0_1"]
    assert "P2 (train, test)" in found["", "subject in two splits"]["message"]
    assert any(kind.startswith("duplicate") for _, kind in found)
    assert {row["severity"] for row in found.values()} == {"error", "warning"}
    for row in found.values():
        assert row["message"].splitlines()[0] in printed
    # With the split mended, the duplicate is across splits, and the mask is missing.
    (study / "split.csv").write_text("\n".join(["id,split", *rows]).replace("P2_5,test", "P2_5,train"))
    assert tedm(monkeypatch, study, "data", "check", path) == 1
    with (study / "results/check/report.csv").open() as file:
        kinds = {row["kind"]: row for row in csv.DictReader(file)}
    assert "subject in two splits" not in kinds
    assert kinds["missing mask"]["image"] == "P0_1"
    assert "P5_11 (mine, test)" in kinds["duplicate across splits"]["message"]


def test_the_same_image_in_two_data_sets_is_found(study, monkeypatch):
    (study / "unlabelled").mkdir()
    shutil.copy(study / "images/P0_0.png", study / "unlabelled/other name.png")
    save(study / "unlabelled/x.png", picture(99))
    archive = {
        "label": "Archive",
        "source": {"type": "folder", "images": "unlabelled"},
        "split": {"unlabelled": 1.0},
    }
    path = experiment(study, {"mine": folder_set(), "archive": archive})
    assert tedm(monkeypatch, study, "data", "check", path, "--out", "report") == 1
    text = (study / "report/report.txt").read_text()
    (line,) = [line for line in text.splitlines() if "the same image in two splits" in line]
    assert "P0_0 (mine, " in line
    assert "other name (archive, unlabelled)" in line
    assert (study / "report/archive.png").exists()


def test_an_unknown_data_set_is_named(study, monkeypatch, capsys):
    path = experiment(study, {"mine": folder_set()})
    assert tedm(monkeypatch, study, "data", "check", path, "--dataset", "yours") == 1
    assert "no data set yours (data sets: mine)" in capsys.readouterr().err


# ── a first experiment ──────────────────────────────────────────────────────────────────────────


def prepared(root, path, name):
    e = config.load(path)
    out = root / f"{name}.h5"
    prepare(e.datasets[name], name, e.image, e.seed, root / e.data_root, out, out.with_suffix(".json"))
    return PreparedSet(out)


def test_a_first_experiment_for_a_folder_prepares_and_plans(tmp_path, monkeypatch, capsys):
    for k in range(10):
        save(tmp_path / f"My scans/images/pièce {k}.png", picture(k, 70))
        save(tmp_path / f"My scans/masks/pièce {k}_mask.png", disc(70))
    for k in range(6):
        save(tmp_path / f"My scans/archive/{k}.png", picture(20 + k, 70))
    assert tedm(monkeypatch, tmp_path, "data", "init", "My scans") == 0
    path = tmp_path / "My_scans.yaml"
    experiment = config.load(path)
    assert experiment.image.size == 64
    assert experiment.backbones["ddpm"].data == "archive"
    assert {head.views for head in experiment.heads.values()} == {8}
    assert experiment.datasets[experiment.evaluation.train_on].source.mask_suffix == "_mask"
    with prepared(tmp_path, path, experiment.evaluation.train_on) as data:
        assert len(data) == 10
        assert data.rows("train") and data.rows("val") and data.rows("test")
        assert data.masks([0]).any()
    with prepared(tmp_path, path, "archive") as data:
        assert len(data.rows("unlabelled")) == 6
    plan = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--snakefile", PROJECT / "Snakefile",
         "--configfile", path, "--directory", tmp_path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert plan.returncode == 0, plan.stdout + plan.stderr
    capsys.readouterr()
    assert tedm(monkeypatch, tmp_path, "data", "init", "My scans") == 1
    assert "is there already" in capsys.readouterr().err


def test_class_indices_colour_and_depth_are_seen(tmp_path, monkeypatch):
    for k in range(5):
        save(tmp_path / f"s/{k}.png", np.dstack([picture(k + c, 40) for c in range(3)]))
        save(tmp_path / f"s/labels/{k}.png", (picture(k, 40) % 4).astype(np.uint8))
    assert tedm(monkeypatch, tmp_path, "data", "init", "s", "--out", "a.yaml") == 0
    experiment = config.load(tmp_path / "a.yaml")
    assert experiment.image.channels == 3
    assert experiment.image.classes == ["class 1", "class 2", "class 3"]
    assert experiment.image.size == 32
    with prepared(tmp_path, tmp_path / "a.yaml", experiment.evaluation.train_on) as data:
        assert data.image_shape == (3, 32, 32)


def test_a_folder_of_masks_for_each_class_gives_the_classes(tmp_path, monkeypatch):
    for k in range(5):
        save(tmp_path / f"s/images/{k}.png", picture(k, 40))
        for name, mask in (("heart", disc(40)), ("left lung", 255 - disc(40))):
            save(tmp_path / f"s/masks/{name}/{k}.png", mask)
    assert tedm(monkeypatch, tmp_path, "data", "init", "s") == 0
    experiment = config.load(tmp_path / "s.yaml")
    assert experiment.image.classes == ["heart", "left lung"]
    with prepared(tmp_path, tmp_path / "s.yaml", experiment.evaluation.train_on) as data:
        masks = data.masks(range(5))
    assert masks.sum(axis=1).max() == 1
    assert masks[:, 0, 16, 16].all() and masks[:, 1, 0, 0].all()


def test_folders_called_train_and_test_are_taken_at_their_word(tmp_path, monkeypatch):
    for part, count in (("train", 5), ("val", 4), ("test", 8)):
        for k in range(count):
            save(tmp_path / f"s/{part}/images/{part}{k}.png", picture(k, 40))
            save(tmp_path / f"s/{part}/labels/{part}{k}.png", disc(40))
    assert tedm(monkeypatch, tmp_path, "data", "init", "s") == 0
    experiment = config.load(tmp_path / "s.yaml")
    assert experiment.evaluation.train_on == "train"
    assert experiment.evaluation.test_on == ["test", "val"]
    with prepared(tmp_path, tmp_path / "s.yaml", "train") as data:
        assert (len(data.rows("train")), len(data.rows("val")), data.rows("test")) == (4, 1, [])
    with prepared(tmp_path, tmp_path / "s.yaml", "test") as data:
        assert len(data.rows("test")) == 8


def test_volumes_are_seen(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for k in range(4):
        for part, values in (
            ("images", rng.integers(1, 900, (20, 24, 18))),
            ("labels", rng.integers(0, 3, (20, 24, 18))),
        ):
            (tmp_path / "s" / part).mkdir(parents=True, exist_ok=True)
            nib.save(
                nib.Nifti1Image(values.astype(np.int16), np.eye(4)), tmp_path / "s" / part / f"p{k}.nii.gz"
            )
    assert tedm(monkeypatch, tmp_path, "data", "init", "s") == 0
    experiment = config.load(tmp_path / "s.yaml")
    assert {head.views for head in experiment.heads.values()} == {2}  # of all slices of three volumes
    assert experiment.features.view_subjects == 3
    assert experiment.image.classes == ["class 1", "class 2"]
    with prepared(tmp_path, tmp_path / "s.yaml", experiment.evaluation.train_on) as data:
        assert len(set(data.subjects)) == 4


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no images"),
        (["a.png", "b.png"], r"no masks that belong to images. Found: \. \(2 files\)"),
        (["i/a.png", "masks/a.png"], "1 images of i have masks"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(tmp_path, monkeypatch, capsys, files, message):
    (tmp_path / "s").mkdir()
    for name in files:
        save(tmp_path / "s" / name, disc())
    assert tedm(monkeypatch, tmp_path, "data", "init", "s") == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_sheet_of_many_classes_tells_them_apart_and_is_wide_enough_for_their_names(tmp_path):
    classes = [f"a structure with a long name, number {k}" for k in range(15)]
    contact.draw(tmp_path / "sheet.png", "Many", [], classes)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    squares = {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in contact._colours(15)} <= squares
    assert len(set(contact._colours(15))) == 15

"""Greys are scaled image by image where `image.normalise` asks for it; else nothing changes."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from test_dicom import dataset as dicom_dataset
from test_dicom import write as write_dicom
from test_models import at_network_size, experiment
from test_prepared import content, write
from tiny_experiment import finish

from tedm import config
from tedm.config import DatasetConfig, DicomSource, ImageConfig
from tedm.data import contact
from tedm.data.check import check
from tedm.data.phantoms import draw
from tedm.data.prepare import prepare
from tedm.data.prepared import PreparedSet
from tedm.data.preprocess import normalised
from tedm.errors import TedmError
from tedm.models import folder as model_folder
from tedm.models import load
from tedm.models.export import export
from tedm.scoring import read_masks

PROJECT = Path(__file__).parents[1]
HOW = ("percentiles", "zscore")
SIZE = 16


def percentile(values, percent):
    """Of sorted numbers, between two of them in proportion."""
    values = sorted(float(v) for v in values)
    place = percent / 100 * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])


def ends(channel, how):
    """What becomes 0 and 1, by the definition."""
    values = [float(v) for v in channel.ravel()]
    if how == "percentiles":
        return percentile(values, 1), percentile(values, 99)
    mean = sum(values) / len(values)
    deviation = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    return mean - 3 * deviation, mean + 3 * deviation


def by_hand(pixels, how):
    out = []
    for channel in pixels:
        low, high = ends(channel, how)
        out.append(np.clip((channel.astype(np.float64) - low) / (high - low), 0, 1))
    return np.stack(out)


def skewed(seed=0, height=SIZE, width=SIZE, white=255):
    """Pixels with a few far above the others."""
    return (white * np.random.default_rng(seed).beta(2, 12, (height, width))).astype(
        np.uint8 if white < 256 else np.uint16
    )


def resized(image, size):
    """Pillow's own, of numbers in 0 … 1."""
    return np.asarray(
        Image.fromarray(image.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
    )


# ── the mathematics ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_each_channel_is_scaled_as_defined(how, dtype):
    pixels = np.stack([skewed(0), skewed(1) // 3 + 40]).astype(dtype)
    found = normalised(pixels, how)
    assert found.dtype == np.float32
    assert (found.min(), found.max()) >= (0, 0)
    assert found.max() <= 1
    assert_allclose(found, by_hand(pixels, how), rtol=0, atol=1e-6)


def test_none_leaves_the_pixels_alone():
    pixels = skewed()[None]
    assert normalised(pixels, "none") is pixels


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("grey", [0, 7, 0.1])
def test_a_channel_that_shows_nothing_becomes_0_and_not_a_number_less(how, grey):
    pixels = np.stack([skewed().astype(np.float32), np.full((SIZE, SIZE), grey, np.float32)])
    found = normalised(pixels, how)
    assert not found[1].any()
    assert_allclose(found[:1], by_hand(pixels[:1], how), rtol=0, atol=1e-6)


def test_of_an_image_that_is_almost_all_black_what_it_shows_stays():
    pixels = np.zeros((1, 40, 40), np.uint8)
    pixels[0, 3, 3:7] = 50, 100, 150, 200  # 4 of 1600: the 99th percentile is 0
    assert_allclose(normalised(pixels, "percentiles"), pixels / 200, rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", HOW)
@given(
    x=arrays(np.uint8, (1, 6, 7)),
    a=st.floats(0.01, 100),
    b=st.floats(-1000, 1000),
)
def test_brightness_and_contrast_of_the_whole_image_do_not_count(how, x, a, b):
    assume(x.min() < x.max())
    y = (a * x + b).astype(np.float32)
    low, high = ends(y[0], how)
    assume(low < high)
    rounding = np.finfo(np.float32).eps * float(np.abs(y).max()) / (high - low)
    assert_allclose(normalised(y, how), normalised(x, how), rtol=0, atol=1e-6 + 8 * rounding)


@pytest.mark.parametrize("how", HOW)
def test_the_order_of_greys_stays(how):
    pixels = skewed()[None]
    found = normalised(pixels, how)
    assert (np.diff(found.ravel()[np.argsort(pixels.ravel(), kind="stable")]) >= 0).all()


# ── preparing ───────────────────────────────────────────────────────────────────────────────────


def save(root, name, array, place="images"):
    (root / place).mkdir(exist_ok=True)
    Image.fromarray(array).save(root / place / name)


def run(root, how="none", *, size=SIZE, source=None, out="out", **options):
    given = {"type": "folder", "images": "images"} | options
    dataset = DatasetConfig.model_validate(
        {"label": "Mine", "source": source or given, "split": {"unlabelled": 1.0}}
    )
    path = root / out / f"{how}.h5"
    image = ImageConfig(size=size, normalise=how)
    prepare(dataset, "mine", image, 0, root, path, path.with_suffix(".json"), threads=2)
    return PreparedSet(path)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("white", [255, 4095])
def test_a_folder_is_prepared_with_each_image_s_own_scale(tmp_path, how, white):
    images = [skewed(k, 24, 40, white) for k in range(3)]
    for k, image in enumerate(images):
        save(tmp_path, f"{k}.png", image)
    with run(tmp_path, how) as data:
        assert data.normalise == how
        assert data.intensity_range == (0, 1)
        found = data.images([data.ids.index(f"{k}") for k in range(3)])
    for image, one in zip(images, found, strict=True):
        # At its own size first, and only then the square.
        assert_allclose(one[0], resized(by_hand(image[None], how)[0], SIZE), rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", HOW)
def test_padding_does_not_count_and_is_black(tmp_path, how):
    image = skewed(0, SIZE // 2, SIZE) // 2 + 100
    save(tmp_path, "a.png", image)
    with run(tmp_path, how, fit="pad") as data:
        found = data.images([0])[0, 0]
    quarter = SIZE // 4
    assert not found[:quarter].any()
    assert not found[-quarter:].any()
    assert_allclose(found[quarter:-quarter], by_hand(image[None], how)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", HOW)
def test_8_and_16_bits_of_one_image_may_be_mixed_and_are_the_same(tmp_path, how):
    image = skewed(0, 20, 20)
    save(tmp_path, "a.png", image)
    save(tmp_path, "b.png", image.astype(np.uint16) * 257)
    save(tmp_path, "c.png", image.astype(np.uint16) * 16)  # 12 bits in a file of 16
    with run(tmp_path, how) as data:
        first, *others = data.images(range(3))
    for other in others:
        assert_allclose(other, first, rtol=0, atol=1e-6)
    with pytest.raises(TedmError, match=r"2 images have more than 8 bits and 1 have 8; .*image\.normalise"):
        run(tmp_path)


@pytest.mark.parametrize("how", HOW)
def test_dicom_is_scaled_behind_its_window(tmp_path, how):
    pixels = skewed(3, SIZE, SIZE, 4095)
    (tmp_path / "images").mkdir()
    write_dicom(tmp_path / "images/a.dcm", dicom_dataset(pixels))
    source = DicomSource(type="dicom", images="images", subject="image", window=[600.0, 1200.0])
    with run(tmp_path, source=source.model_dump(), out="plain") as data:
        windowed = data.images([0])[0]
    with run(tmp_path, how, source=source.model_dump()) as data:
        assert_allclose(data.images([0])[0], by_hand(windowed, how), rtol=0, atol=1e-5)


def test_the_setting_decides_over_the_digest_and_threads_and_interruptions_do_not(tmp_path):
    for k in range(3):
        save(tmp_path, f"{k}.png", skewed(k, 20, 30))
    digests = []
    for how in ("none", *HOW):
        with run(tmp_path, how) as data:
            digests.append(data.digest)
        first = (tmp_path / f"out/{how}.h5").read_bytes()
        run(tmp_path, how, out="again").close()
        assert (tmp_path / f"again/{how}.h5").read_bytes() == first
    assert len(set(digests)) == 3


# ── none is what it always was ──────────────────────────────────────────────────────────────────


def test_without_it_settings_digests_and_bytes_are_those_of_before_it_existed(tmp_path):
    plain = {"size": 16, "channels": 1, "classes": ["lungs"]}
    assert ImageConfig(size=16).model_dump() == plain
    assert ImageConfig(size=16, normalise="none").model_dump(mode="json") == plain
    assert ImageConfig(size=16, normalise="zscore").model_dump() == plain | {"normalise": "zscore"}
    write(tmp_path / "a.h5")
    write(tmp_path / "b.h5", normalise="none")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    with PreparedSet(tmp_path / "a.h5") as data:
        assert data.normalise == "none"
        # As commit 6fc8b7e, which had no such setting, wrote it.
        assert data.digest == "97c6f9c4e582677eee1a5c54271fc2c880517f0eb7bbad52e482e050124be950"
    with h5py.File(tmp_path / "a.h5") as file:
        assert "normalise" not in file.attrs


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda file: file.attrs.__delitem__("normalise"), "damaged"),
        (lambda file: file.attrs.__setitem__("normalise", "zscore"), "damaged"),
        (
            lambda file: file.attrs.__setitem__("normalise", "histogram"),
            r"normalised by 'histogram', .*\(it knows none, percentiles, zscore\); prepare",
        ),
    ],
)
def test_a_file_whose_setting_was_changed_or_is_unknown_is_refused(tmp_path, harm, message):
    path = tmp_path / "a.h5"
    images = content()["images"].astype(np.float32) / 255
    write(path, images=images, intensity_range=(0, 1), normalise="percentiles")
    with PreparedSet(path) as data:
        assert data.normalise == "percentiles"
    with h5py.File(path, "r+") as file:
        harm(file)
    with pytest.raises(TedmError, match=rf"a\.h5: .*{message}"):
        PreparedSet(path)


# ── settings ────────────────────────────────────────────────────────────────────────────────────


def test_an_unknown_way_is_named_with_what_is_allowed():
    values = yaml.safe_load((PROJECT / "config.yaml").read_text())
    values["image"]["normalise"] = "histogram"
    with pytest.raises(TedmError, match=r"image\.normalise: .*'none', 'percentiles' or 'zscore'"):
        config.parse(values)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("brain", "has volumes, and the source brain"),
        ("paper_ukbb", "the source ukbb scales"),
        ("paper_brats", "the source brats scales"),
    ],
)
def test_volumes_are_refused(name, message):
    values = yaml.safe_load((PROJECT / f"experiments/{name}.yaml").read_text())
    config.parse(values)
    values["image"]["normalise"] = "zscore"
    with pytest.raises(TedmError) as error:
        config.parse(values)
    assert "image.normalise: zscore, but datasets." in str(error.value)
    assert message in str(error.value)
    assert "set image.normalise: none" in str(error.value)


def test_volumes_are_sent_to_their_source_s_own_settings_and_not_prepared(tmp_path):
    source = {"type": "nifti", "images": "images"}
    values = yaml.safe_load((PROJECT / "tests/tiny.yaml").read_text())
    values["image"]["normalise"] = "percentiles"
    config.parse(values)
    values["datasets"]["mine"] = {"label": "x", "source": source, "split": {"unlabelled": 1.0}}
    with pytest.raises(TedmError, match=r"datasets\.mine .*nifti .*its settings window and percentiles"):
        config.parse(values)
    brain = {"type": "brain", "layout": "ukbb", "count": 1, "voxel_mm": 8.0}
    dataset = DatasetConfig.model_validate({"label": "x", "source": brain, "split": {"test": 1}})
    image = ImageConfig(size=16, classes=["brain stem"], normalise="zscore")
    with pytest.raises(TedmError, match=r"datasets\.b: image\.normalise is zscore"):
        prepare(dataset, "b", image, 0, tmp_path, tmp_path / "b.h5", tmp_path / "b.json")


# ── checking ────────────────────────────────────────────────────────────────────────────────────


def test_images_are_checked_and_shown_as_they_will_be_prepared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = skewed(9, 40, 60)
    for k in range(8):
        save(tmp_path, f"{k}.png", base + skewed(k, 40, 60) // 8)
    save(tmp_path, "8.png", base // 25)  # nearly flat
    values = yaml.safe_load((PROJECT / "tests/tiny.yaml").read_text()) | {"data_root": str(tmp_path)}
    source = {"type": "folder", "images": "images"}
    values["datasets"]["mine"] = {"label": "x", "source": source, "split": {"unlabelled": 1.0}}

    def report(how):
        values["image"]["normalise"] = how
        return check(config.parse(values), ["mine"], tmp_path, 1)

    assert [p.image for p in report("none").problems if p.kind == "odd intensities"] == ["8"]
    for how in HOW:
        found = report(how)
        assert not found.problems
        (thumbnail,) = (seen.thumbnail for name, _, seen in found.shown["mine"] if name == "0")
        expected = by_hand((base + skewed(0, 40, 60) // 8)[None], how)[0]
        assert_allclose(thumbnail, resized(expected, len(thumbnail)), rtol=0, atol=1e-6)
        contact.draw(tmp_path / "sheet.png", "x", found.shown["mine"], [])


# ── models ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module", params=HOW)
def home(request, tmp_path_factory):
    """A finished experiment on files of 8 and 16 bits, of 60 × 50 pixels, and two of its models."""
    place = tmp_path_factory.mktemp(request.param)
    for index in range(10):
        pixels, mask = draw("jsrt", index, 60, 7)
        deep = pixels.astype(np.uint16) * 100 + 3000
        save(place, f"c{index}.png", (deep if index % 2 else pixels)[:, 5:55])
        save(place, f"c{index}.png", mask[:, 5:55] * np.uint8(255), "masks")
    e = experiment(place, image={"size": 24, "normalise": request.param})
    finish(e, place / "results")
    for method in ("Supervised", "TEDM"):
        export(e, place / "results", method, 3, 0, place / "models" / method)
    return place


@pytest.fixture
def how(home):
    return "zscore" if home.name.startswith("zscore") else "percentiles"


@pytest.mark.parametrize("method", ["Supervised", "TEDM"])
def test_an_exported_model_sees_what_the_workflow_saw(home, method):
    ids, masks = read_masks(home / f"results/scores/{method}/n3/seed0/jsrt.npz")
    assert len({int(name[1:]) % 2 for name in ids}) == 2  # both depths are among them
    found = load(home / "models" / method).segment([home / f"images/{name}.png" for name in ids], ids=ids)
    assert_array_equal(np.stack([at_network_size(one) for one in found]), masks[method])


def test_squares_of_a_model_are_the_prepared_images_to_the_bit(home, how):
    from tedm.models.images import read

    like = model_folder.read(home / "models/TEDM").preprocessing
    assert like.normalise == how
    with PreparedSet(home / "results/data/jsrt.h5") as data:
        for row, name in enumerate(data.ids):
            found = read(home / f"images/{name}.png", like).squares(like)
            assert_array_equal(found, data.images([row]))


def test_an_image_gets_the_same_mask_in_whatever_depth_brightness_and_contrast(home):
    model = load(home / "models/TEDM")
    pixels = np.asarray(Image.open(home / "images/c0.png"))
    expected = model.segment(home / "images/c0.png")
    for same in (pixels, Image.fromarray(pixels), np.stack([pixels] * 3, -1)):
        assert_array_equal(model.segment(same).probability, expected.probability)
    for same in (pixels / np.float32(255), pixels.astype(np.uint16) * 257, pixels * 3.0 - 500):
        assert_allclose(model.segment(same).probability, expected.probability, rtol=0, atol=1e-4)
        assert (model.segment(same).mask == expected.mask).mean() > 0.999


def test_model_json_and_card_say_it_and_those_without_it_are_as_before(home, how):
    said = json.loads((home / "models/TEDM/model.json").read_text())["preprocessing"]
    assert said["normalise"] == how
    words = {"percentiles": "its 1st percentile becomes black", "zscore": "three standard deviations below"}
    assert words[how] in (home / "models/TEDM/README.md").read_text()
    plain = {key: value for key, value in said.items() if key != "normalise"}
    before = model_folder.Preprocessing.model_validate(plain)
    assert before.normalise == "none"
    assert before.model_dump(mode="json") == plain  # so that older versions of tedm read it, too

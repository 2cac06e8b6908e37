"""Images of a folder become a prepared data set; whatever is wrong with them is named, all at once."""

import json
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from tedm.config import DatasetConfig, FolderSource, ImageConfig, PhantomSource, SplitConfig
from tedm.data import prepared
from tedm.data.prepare import in_order, prepare
from tedm.data.prepared import PreparedSet
from tedm.data.preprocess import image_to_square, mask_to_square
from tedm.errors import TedmError
from tedm.seeds import seed_of

SIZE = 8


def picture(seed=0, height=12, width=12, depth=8):
    return np.random.default_rng(seed).integers(0, 2**depth, (height, width)).astype(f"u{(depth + 7) // 8}")


def blob(height=12, width=12):
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 3 :] = 1
    return mask


def save(root, folder, name, array, **options):
    (root / folder).mkdir(exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(root / folder / name, **options)


def run(
    root, *, label="Mine", split=None, size=SIZE, channels=1, classes=("lungs",), masks=True, threads=2,
    **source,
):  # fmt: skip
    dataset = DatasetConfig(
        label=label,
        source=FolderSource(type="folder", images="images", masks="masks" if masks else None, **source),
        split=split or SplitConfig(test=1.0),
    )
    config = ImageConfig(size=size, channels=channels, classes=list(classes))
    prepare(dataset, "mine", config, 0, root, root / "out/mine.h5", root / "out/mine.json", threads=threads)
    return PreparedSet(root / "out/mine.h5")


def visible(root):
    """What a failed run leaves; finished parts and locks are hidden."""
    return [path for path in (root / "out").glob("*") if not path.name.startswith(".")]


def problems(root, **options):
    """Lines of the error, without its first."""
    with pytest.raises(TedmError) as error:
        run(root, **options)
    assert not visible(root)
    first, *lines = str(error.value).split("\n  ")
    assert first.startswith("datasets.mine: ")
    return lines


# ── what is read ────────────────────────────────────────────────────────────────────────────────


def as_palette(grey):
    image = Image.fromarray(grey).convert("P")
    image.putpalette(
        [255 - v // 3 for v in range(256) for _ in range(3)]
    )  # entries that are not their index
    return image, 255 - grey // 3


def as_transparent(grey):
    alpha = np.full_like(grey, 255)
    alpha[:4] = 0
    rgba = np.dstack([grey, grey, grey, alpha])
    return Image.fromarray(rgba), np.where(alpha > 0, grey, 0)


@pytest.mark.parametrize("suffix", ["png", "PNG", "tif", "tiff"])
@pytest.mark.parametrize(
    "make",
    [
        lambda g: (Image.fromarray(g), g),
        lambda g: (Image.fromarray(np.dstack([g, g, g])), g),
        as_palette,
        as_transparent,
        lambda g: (Image.fromarray(g > 127), np.where(g > 127, 255, 0)),
    ],
    ids=["grey", "colour", "palette", "alpha", "1-bit"],
)
def test_every_kind_of_8_bit_image_is_read_as_grey(tmp_path, suffix, make):
    image, expected = make(picture(height=SIZE, width=SIZE))
    save(tmp_path, "images", f"a.{suffix}", image)
    with run(tmp_path, masks=False) as data:
        assert_array_equal(np.rint(data.images([0])[0, 0] * 255), expected)
        assert data.ids == data.subjects == ["a"]
        assert not data.has_masks
        assert not data.synthetic
        assert data.source == "folder images"


def test_jpeg_is_read_upright(tmp_path):
    smooth = np.add.outer(np.arange(SIZE) * 16, np.arange(SIZE) * 8).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter clockwise
    save(tmp_path, "images", "a.jpg", smooth, quality=100, exif=exif)
    with run(tmp_path, masks=False) as data:
        assert_allclose(data.images([0])[0, 0] * 255, np.rot90(smooth, -1), atol=3)


def test_colour_images_keep_their_channels(tmp_path):
    colour = np.dstack([picture(i, SIZE, SIZE) for i in range(3)])
    save(tmp_path, "images", "a.png", colour)
    with run(tmp_path, masks=False, channels=3) as data:
        assert_array_equal(np.rint(data.images([0])[0] * 255), colour.transpose(2, 0, 1))


@pytest.mark.parametrize(("depth", "white"), [(10, 1023), (12, 4095), (16, 65535)])
def test_more_than_8_bits_are_kept_and_mapped_by_the_bits_in_use(tmp_path, depth, white):
    images = [picture(i, SIZE, SIZE, depth) for i in range(2)]
    images[1][0, 0] = white
    save(tmp_path, "images", "a.png", images[0])
    save(tmp_path, "images", "b.tif", images[1])
    with run(tmp_path, masks=False) as data:
        assert data.intensity_range == (0, white)
        order = [int(name == "b") for name in data.ids]
        assert_allclose(data.images([0, 1])[:, 0], [images[i] / white for i in order], rtol=1e-6)


def test_floating_point_images_in_0_and_1_stay_as_they_are(tmp_path):
    image = np.random.default_rng(0).random((SIZE, SIZE), np.float32)
    save(tmp_path, "images", "a.tif", image)
    with run(tmp_path, masks=False) as data:
        assert_array_equal(data.images([0])[0, 0], image)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(
    "make",
    [
        lambda m: m,
        lambda m: m * 255,
        lambda m: m * 7,
        lambda m: m.astype(bool),
        lambda m: m.astype(np.uint16) * 65535,
        lambda m: np.dstack([m * 200, m * 0, m * 0]),
        lambda m: np.where(m > 0, 250, 6).astype(np.uint8) + blob(SIZE, SIZE)[::-1],
    ],
    ids=["0/1", "0/255", "0/7", "1-bit", "16-bit", "red", "soft"],
)
def test_every_kind_of_mask_is_read(tmp_path, suffix, make):
    save(tmp_path, "images", "a.png", picture(height=SIZE, width=SIZE))
    save(tmp_path, "masks", f"a.{suffix}", make(blob(SIZE, SIZE)))
    with run(tmp_path) as data:
        assert_array_equal(data.masks([0])[0, 0], blob(SIZE, SIZE))


def test_an_empty_mask_is_a_mask(tmp_path):
    save(tmp_path, "images", "a.png", picture())
    save(tmp_path, "masks", "a.png", np.zeros((12, 12), np.uint8))
    with run(tmp_path) as data:
        assert data.masks([0]).sum() == 0


@pytest.mark.parametrize("palette", [False, True])
def test_class_indices_become_one_mask_per_class(tmp_path, palette):
    indices = np.arange(SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint8) % 4
    mask = Image.fromarray(indices)
    if palette:
        mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    save(tmp_path, "images", "a.png", picture(height=SIZE, width=SIZE))
    save(tmp_path, "masks", "a.png", mask)
    with run(tmp_path, classes=["a", "b", "c"]) as data:
        assert_array_equal(data.masks([0])[0], np.stack([indices == k for k in (1, 2, 3)]))


def test_names_with_spaces_and_accents_and_links_work(tmp_path):
    save(tmp_path, "images", "Thorax Ü 1.png", picture())
    save(tmp_path, "masks", "Thorax U\u0308 1.png", blob())  # the same name, spelt as some file systems do
    save(tmp_path, "elsewhere", "x.png", picture(1))
    (tmp_path / "images/.x.png").write_bytes((tmp_path / "elsewhere/x.png").read_bytes())
    (tmp_path / "images/胸.png").symlink_to(tmp_path / "images/.x.png")
    save(tmp_path, "masks", "胸.png", blob())
    save(tmp_path, "images", ".hidden.png", picture())
    (tmp_path / "images/README.txt").write_text("not an image")
    with run(tmp_path) as data:
        assert sorted(data.ids) == ["Thorax Ü 1", "胸"]


def test_rows_are_in_the_order_of_the_list_whatever_the_threads(tmp_path):
    ids = [f"i{i:02d}" for i in range(40)]
    for i, name in enumerate(ids):
        save(tmp_path, "images", f"{name}.png", picture(i))
        save(tmp_path, "masks", f"{name}.png", np.roll(blob(), i, 0))
    order = [ids[i] for i in np.random.default_rng(0).permutation(40)]
    (tmp_path / "s.csv").write_text("id,split\n" + "".join(f"{name},train\n" for name in order))
    files = []
    for threads in (1, 3):
        with run(tmp_path, split=SplitConfig(file="s.csv"), threads=threads) as data:
            assert [data.ids[row] for row in data.rows("train")] == order
            for row in (0, 17, 39):
                k = ids.index(order[row])
                expected = image_to_square([Image.fromarray(picture(k))], SIZE, "stretch")
                assert_array_equal(np.rint(data.images([row])[0] * 255), expected)
        files.append((tmp_path / "out/mine.h5").read_bytes())
    assert files[0] == files[1]


def test_only_the_first_images_are_used_where_a_limit_is_set(tmp_path):
    for name in "cab":
        save(tmp_path, "images", f"{name}.png", picture())
    with run(tmp_path, masks=False, limit=2, split=SplitConfig(unlabelled=1.0)) as data:
        assert sorted(data.ids) == ["a", "b"]


def test_unlabelled_images_need_no_mask(tmp_path):
    for name in "ab":
        save(tmp_path, "images", f"{name}.png", picture())
    save(tmp_path, "masks", "a.png", blob())
    (tmp_path / "s.csv").write_text("id,split\nb,unlabelled\na,train\n")
    with run(tmp_path, split=SplitConfig(file="s.csv")) as data:
        assert data.masks([0]).sum() == 0
        assert data.masks([1]).sum() > 0


def test_the_sidecar_tells_digest_and_counts(tmp_path):
    for name in "abc":
        save(tmp_path, "images", f"{name}.png", picture())
    with run(tmp_path, masks=False, split=SplitConfig(train=2, test=1), licence="mine", cite="me") as data:
        assert json.loads((tmp_path / "out/mine.json").read_text()) == {
            "digest": data.digest,
            "classes": ["lungs"],
            "synthetic": False,
            "splits": {"train": 2, "val": 0, "test": 1, "unlabelled": 0},
        }
        assert (data.licence, data.cite) == ("mine", "me")


def test_names_for_people_change_nothing_in_the_sidecar(tmp_path):
    """So that another label makes no rule below run again."""
    save(tmp_path, "images", "a.png", picture())
    sidecars = []
    for words in ({}, {"label": "Another", "licence": "other", "cite": "you"}):
        run(tmp_path, masks=False, split=SplitConfig(train=1), **words).close()
        sidecars.append((tmp_path / "out/mine.json").read_bytes())
    assert sidecars[0] == sidecars[1]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "BUFFER_BYTES", 1 << 17)
    for i in range(150):
        save(tmp_path, "images", f"{i}.png", picture(i, 64, 64, 16))  # 2.5 MB as float32
    run(tmp_path, masks=False, size=64).close()  # imports and caches
    tracemalloc.start()
    run(tmp_path, masks=False, size=64).close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2e6


# ── resizing ────────────────────────────────────────────────────────────────────────────────────


def triangle_weights(old, new):
    """Antialiased bilinear interpolation as a matrix: a triangle as wide as the step, normalised."""
    scale = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * old / new
    weights = np.maximum(0, 1 - np.abs(np.arange(old) + 0.5 - centres[:, None]) / scale)
    return weights / weights.sum(1, keepdims=True)


def box_weights(old, new):
    """Which old pixels have their centre in each new one, as a matrix of averages; None on ties."""
    centres, edges = (2 * np.arange(old) + 1) * new, 2 * old * np.arange(new + 1)
    if np.isin(centres, edges).any():
        return None
    inside = (centres > edges[:-1, None]) & (centres < edges[1:, None])
    return inside / inside.sum(1, keepdims=True)


@given(height=st.integers(3, 40), width=st.integers(3, 40), size=st.integers(2, 24))
@settings(deadline=None, max_examples=60)
def test_images_are_resized_with_antialiased_bilinear_weights(height, width, size):
    image = picture(height * 50 + width, height, width)
    expected = triangle_weights(height, size) @ image.astype(np.float64) @ triangle_weights(width, size).T
    exact = image_to_square([Image.fromarray(image.astype(np.float32))], size, "stretch")[0]
    assert exact.dtype == np.float32
    assert_allclose(exact, expected, atol=1e-3)
    bytes_ = image_to_square([Image.fromarray(image)], size, "stretch")[0]
    assert bytes_.dtype == np.uint8
    assert_allclose(bytes_, expected, atol=1.01)  # rounded after each axis


@given(height=st.integers(2, 60), width=st.integers(2, 60), size=st.integers(2, 24))
@settings(deadline=None, max_examples=100)
def test_a_mask_is_averaged_and_foreground_where_more_than_half_is(height, width, size):
    assume(size <= min(height, width))
    rows, columns = box_weights(height, size), box_weights(width, size)
    assume(rows is not None and columns is not None)
    mask = np.random.default_rng(height * 60 + width).integers(0, 2, (height, width))
    share = rows @ mask.astype(np.float64) @ columns.T
    found = mask_to_square(mask[None].astype(np.float32), size, "stretch")[0]
    clear = abs(share - 0.5) > 1e-5  # halves are tested below
    assert_array_equal(found[clear], share[clear] > 0.5)


def test_exactly_half_is_background():
    assert_array_equal(mask_to_square(np.eye(4, dtype=np.float32)[None], 2, "stretch"), 0)


def test_a_mask_is_enlarged_by_repeating_pixels():
    mask = np.random.default_rng(0).integers(0, 2, (1, 5, 5))
    assert_array_equal(
        mask_to_square(mask.astype(np.float32), 15, "stretch"), mask.repeat(3, 1).repeat(3, 2)
    )


def test_exclusive_classes_stay_exclusive_when_resized():
    indices = np.random.default_rng(0).integers(0, 4, (37, 53))
    shares = np.stack([indices == k for k in (1, 2, 3)]).astype(np.float32)
    assert mask_to_square(shares, 16, "stretch").sum(0).max() <= 1


def test_a_wide_image_is_padded_with_black_or_cropped_to_its_middle():
    image = np.full((4, 8), 100, np.uint8)
    image[:, :2] = image[:, 6:] = 200
    square = image_to_square([Image.fromarray(image)], 8, "pad")[0]
    assert_array_equal(square[[0, 1, 6, 7]], 0)
    assert (square[2:6] >= 100).all()
    assert_array_equal(image_to_square([Image.fromarray(image)], 4, "crop")[0], 100)
    mask = (image == 100).astype(np.float32)[None]
    padded = mask_to_square(mask, 8, "pad")[0]
    assert_array_equal(padded[2:6], mask[0])
    assert padded.sum() == mask.sum()
    assert mask_to_square(mask, 4, "crop").all()
    assert_array_equal(image_to_square([Image.fromarray(image.T)], 4, "crop")[0], 100)


def test_a_line_of_pixels_can_be_padded():
    assert image_to_square([Image.fromarray(np.full((1, 900), 9, np.uint8))], 8, "pad").max() == 9


# ── what is wrong ───────────────────────────────────────────────────────────────────────────────


def png_header(width, height):
    """A PNG that claims a size and has no pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_all_problems_are_reported_at_once_each_with_its_file(tmp_path):
    for name in ("good", "other size", "no mask", "soft indices"):
        save(tmp_path, "images", f"{name}.png", picture())
    save(tmp_path, "masks", "good.png", blob())
    save(tmp_path, "masks", "other size.png", blob(10, 12))
    save(tmp_path, "masks", "soft indices.png", np.arange(144).reshape(12, 12).astype(np.uint8) % 5)
    save(tmp_path, "masks", "stray.png", blob())
    for name in ("empty", "cut", "text", "nan", "flat", "bomb", "nothing", "pages"):
        save(tmp_path, "masks", f"{name}.png", blob())
    images = tmp_path / "images"
    (images / "empty.png").write_bytes(b"")
    save(tmp_path, "images", "cut.png", picture())
    (images / "cut.png").write_bytes((images / "cut.png").read_bytes()[:90])
    (images / "text.png").write_text("this is not an image")
    save(tmp_path, "images", "nan.tif", np.where(blob() > 0, np.nan, 1).astype(np.float32))
    save(tmp_path, "images", "flat.png", np.full((12, 12), 3, np.uint8))
    (images / "bomb.png").write_bytes(png_header(60_000, 60_000))
    (images / "nothing.png").write_bytes(png_header(0, 0))
    page = Image.fromarray(picture())
    page.save(images / "pages.tif", save_all=True, append_images=[page])
    expected = {
        "images/bomb.png": "too large",
        "images/cut.png": "cannot be read|truncated",
        "images/empty.png": r"is empty \(0 bytes\)",
        "images/flat.png": "all its pixels are equal",
        "images/nan.tif": "not finite",
        "images/no mask.png": "has no mask; add one named no mask",
        "images/nothing.png": "not a PNG|no pixels|cannot be read",
        "images/pages.tif": "has 2 pages",
        "images/text.png": "not a PNG, JPEG or TIFF",
        "masks/other size.png": "12×10 pixels, but its image .*images/other size.png has 12×12",
        "masks/soft indices.png": "a mask of many values, the greatest of them 4",
        "masks/stray.png": "mask without an image",
    }
    found = problems(tmp_path)
    found = [line for line in found if "more than 8 bits" not in line]
    for file, message in expected.items():
        (line,) = [line for line in found if line.startswith(f"{tmp_path / file}: ")]
        assert re.search(message, line), line
    assert len(found) == len(expected)


def test_of_many_problems_20_are_shown_and_the_rest_counted(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(33):
        (tmp_path / f"images/{i}.png").write_bytes(b"nonsense")
    lines = problems(tmp_path, masks=False)
    assert len(lines) == 21
    assert lines[-1] == "and 13 more"


def test_missing_folders_are_named_in_the_config_and_on_disk(tmp_path):
    (line, *_) = problems(tmp_path)
    assert line.startswith(f"datasets.mine.source.images: no such folder {tmp_path / 'images'}")
    save(tmp_path, "images", "a.png", picture())
    (line,) = problems(tmp_path)
    assert line.startswith(f"datasets.mine.source.masks: no such folder {tmp_path / 'masks'}")


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.bmp").write_bytes(b"")
    (line,) = problems(tmp_path, masks=False)
    assert "no image (.png, .jpg" in line


def test_masks_that_are_all_named_differently_make_one_line(tmp_path):
    for i in range(30):
        save(tmp_path, "images", f"{i}.png", picture())
        save(tmp_path, "masks", f"{i}_mask.png", blob())
    (line,) = problems(tmp_path)
    assert "no mask has the name of an image (masks: 0_mask" in line


def test_two_files_of_one_name_are_named(tmp_path):
    save(tmp_path, "images", "a.png", picture())
    save(tmp_path, "images", "a.tif", picture())
    (line,) = problems(tmp_path, masks=False)
    assert line == f"{tmp_path / 'images/a.tif'}: a.png has the same name; remove one of them"


def test_images_of_different_depth_are_refused(tmp_path):
    save(tmp_path, "images", "a.png", picture())
    save(tmp_path, "images", "b.png", picture(depth=16))
    (line,) = problems(tmp_path, masks=False)
    assert "1 images have more than 8 bits and 1 have 8" in line


def test_class_indices_beyond_the_classes_are_refused(tmp_path):
    for name in "ab":
        save(tmp_path, "images", f"{name}.png", picture())
    save(tmp_path, "masks", "a.png", blob() * 3)
    save(tmp_path, "masks", "b.png", np.dstack([blob()] * 3))
    first, second = sorted(problems(tmp_path, classes=["left", "right"]))
    assert "a.png: has values 0 … 3; expected 0: background; 1: left; 2: right" in first
    assert "b.png: a colour mask" in second


def test_an_impossible_split_is_reported_with_the_other_problems(tmp_path):
    for name in "ab":
        save(tmp_path, "images", f"{name}.png", picture())
    save(tmp_path, "masks", "a.png", blob())
    save(tmp_path, "masks", "stray.png", blob())
    stray, split = problems(tmp_path, split=SplitConfig(test=3))
    assert "stray.png: mask without an image" in stray
    assert "datasets.mine.split: test 3 = 3, but there are only 2" in split


def test_folders_have_one_or_three_channels(tmp_path):
    with pytest.raises(TedmError, match=r"image\.channels: 4"):
        run(tmp_path, channels=4)


def test_an_error_leaves_the_old_data_set_alone(tmp_path):
    save(tmp_path, "images", "a.png", picture())
    run(tmp_path, masks=False).close()
    before = {path: path.read_bytes() for path in visible(tmp_path)}
    (tmp_path / "images/b.png").write_bytes(b"nonsense")
    with pytest.raises(TedmError, match=r"b\.png: not a PNG"):
        run(tmp_path, masks=False)
    assert {path: path.read_bytes() for path in visible(tmp_path)} == before


# ── the frame around a source ───────────────────────────────────────────────────────────────────


def test_results_come_in_order_and_errors_among_them():
    def work(item):
        if item[0] == "7":
            raise TedmError("seven")
        return int(item[0])

    found = list(in_order(work, [(str(i), "") for i in range(50)], 3))
    assert [f for f in found if not isinstance(f, TedmError)] == [i for i in range(50) if i != 7]
    assert str(found[7]) == "seven"


def test_phantoms_are_prepared_and_called_synthetic(tmp_path):
    source = PhantomSource(type="phantom", site="jsrt", count=6)
    dataset = DatasetConfig(label="Phantoms", source=source, split=SplitConfig(train=3, test=2))
    config = ImageConfig(size=16)
    for name in ("a", "b"):
        prepare(dataset, "p", config, 5, tmp_path, tmp_path / f"{name}.h5", tmp_path / f"{name}.json")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    from tedm.data.phantoms import draw

    with PreparedSet(tmp_path / "a.h5") as data:
        assert data.synthetic
        assert "synthetic" in data.source
        assert (len(data.rows("train")), len(data.rows("test")), len(data)) == (3, 2, 5)
        index = int(data.ids[1].rsplit("-", 1)[1])
        image, mask = draw("jsrt", index, 16, seed_of(5, "p"))
        assert_array_equal(np.rint(data.images([1])[0, 0] * 255), image)
        assert_array_equal(data.masks([1])[0, 0], mask)


def test_two_data_sets_of_one_site_have_no_image_in_common(tmp_path):
    source = PhantomSource(type="phantom", site="jsrt", count=8)
    dataset = DatasetConfig(label="Phantoms", source=source, split=SplitConfig(train=8))
    seen = []
    for name in ("a", "b"):
        out = tmp_path / f"{name}.h5"
        prepare(dataset, name, ImageConfig(size=16), 5, tmp_path, out, tmp_path / f"{name}.json")
        with PreparedSet(out) as data:
            seen += [image.tobytes() for image in data.images(range(8))]
    assert len(set(seen)) == 16


def test_phantoms_have_one_channel_and_class(tmp_path):
    source = PhantomSource(type="phantom", site="jsrt", count=6)
    dataset = DatasetConfig(label="Phantoms", source=source, split=SplitConfig(train=3))
    with pytest.raises(TedmError, match=r"datasets\.p\.source: phantoms have 1 channel"):
        prepare(dataset, "p", ImageConfig(channels=3), 0, tmp_path, tmp_path / "a.h5", tmp_path / "a.json")

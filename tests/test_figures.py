"""Figures: the same bytes every time, the right curves, and nothing that crashes on odd input."""

import contextlib
import dataclasses
import hashlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tedm.errors import TedmError
from tedm.report import examples, figures, results, step_curves, tables


def discs(count=2, classes=1, size=24):
    y, x = np.mgrid[:size, :size] / size
    truth = np.zeros((count, classes, size, size), np.uint8)
    for i in range(count):
        for k in range(classes):
            truth[i, k] = (x - 0.3 - 0.4 * k) ** 2 + (y - 0.5) ** 2 < (0.1 + 0.05 * i) ** 2
    images = (1 - 0.5 * truth.max(axis=1, keepdims=True)).astype(np.float32)
    return images, truth


def made_table(sizes=(1, 3, 12), subjects=6, datasets=("jsrt", "nih"), methods=("LEDM", "TEDM")):
    rng = np.random.default_rng(0)
    scores = pd.DataFrame(
        [
            (d, f"s{i}", "lungs", m, n, 0, "dice", rng.uniform(0.7, 0.95))
            for d in datasets
            for m in methods
            for n in sizes
            for i in range(subjects)
        ],
        columns=["dataset", "subject", "class", "method", "n_train", "seed", "metric", "value"],
    )
    labels = {"jsrt": "JSRT", "nih": "NIH $ite", "later": "Later"}
    return tables.table(scores, "dice", [*methods, "Absent"], labels, synthetic={"jsrt"})


SUMMARY = pd.DataFrame(columns=["dataset", "metric", "method", "n_train", "mean", "low", "high"])


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def overlay(path, *, count=2, classes=1, methods=("LEDM", "TEDM"), synthetic=True):
    images, truth = discs(count, classes)
    predictions = {m: np.roll(truth, i + 1, axis=3) for i, m in enumerate(methods)}
    figures.segmentations(
        path,
        images,
        truth,
        predictions,
        dice={m: [0.5] * count for m in methods},
        labels=[f"image {i}" for i in range(count)],
        classes=[f"class {k}" for k in range(classes)],
        synthetic=synthetic,
    )


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_segmentations_have_the_same_bytes_every_time(tmp_path, suffix):
    overlay(tmp_path / f"a{suffix}")
    overlay(tmp_path / f"b{suffix}")
    assert digest(tmp_path / f"a{suffix}") == digest(tmp_path / f"b{suffix}")


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_learning_curves_have_the_same_bytes_every_time(tmp_path, suffix):
    figures.learning_curves(tmp_path / f"a{suffix}", made_table(), SUMMARY)
    figures.learning_curves(tmp_path / f"b{suffix}", made_table(), SUMMARY)
    assert digest(tmp_path / f"a{suffix}") == digest(tmp_path / f"b{suffix}")


def test_a_matplotlibrc_changes_nothing(tmp_path, monkeypatch):
    import matplotlib as mpl

    overlay(tmp_path / "a.png")
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 31}):
        overlay(tmp_path / "b.png")
        assert mpl.rcParams["font.size"] == 20
    assert digest(tmp_path / "a.png") == digest(tmp_path / "b.png")


def test_segmentations_show_dice_names_and_that_data_are_synthetic(tmp_path):
    images, truth = discs()
    half = truth.copy()
    half[:, :, :12] = 0
    figures.segmentations(
        tmp_path / "a.svg",
        images,
        truth,
        {"Perfect": truth, "Half": half.astype(np.float32)},
        dice={"Perfect": [1.0, 1.0], "Half": [0.512, 0.498]},
        labels=["A_1", "B_2"],
        classes=["lungs"],
        synthetic=True,
        note="A note.",
    )
    # SVG draws text as glyphs and keeps the words in comments.
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    for words in ("Truth", "Perfect", "Half", "A_1", "B_2", "100.0", "51.2", "49.8"):
        assert f"<!-- {words} -->" in text
    assert "Synthetic images, drawn by a program: no patients. A note." in text


def test_segmentations_of_real_images_do_not_claim_to_be_synthetic(tmp_path):
    overlay(tmp_path / "a.svg", synthetic=False)
    assert "ynthetic" not in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_figures_have_the_width_of_a_readme_and_a_white_ground(tmp_path):
    overlay(tmp_path / "a.png", methods=[f"method {i}" for i in range(5)])
    figures.learning_curves(tmp_path / "b.png", made_table(), SUMMARY)
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as image:
            assert abs(image.width - 1660) <= 1
            assert image.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
            assert not image.text  # no program, no version, no date


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("classes", [1, 3])
def test_empty_masks_and_absent_classes_are_drawn(tmp_path, classes):
    images, truth = discs(2, classes)
    truth[0] = 0
    figures.segmentations(
        tmp_path / "a.svg",
        images,
        truth,
        {"Nothing": np.zeros_like(truth), "All": np.ones_like(truth)},
        dice={"Nothing": [np.nan, 0.0], "All": [np.nan, 0.4]},
        labels=["empty", "full"],
        classes=[f"c{k}" for k in range(classes)],
        synthetic=False,
    )
    assert "<!-- – -->" in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_colour_images_and_no_prediction_are_drawn(tmp_path):
    images, truth = discs()
    colour = np.repeat(images, 3, axis=1)
    figures.segmentations(
        tmp_path / "a.png", colour, truth, {}, dice={}, labels=["a", "b"], classes=["x"], synthetic=False
    )


def test_segmentations_that_do_not_fit_are_an_error(tmp_path):
    images, truth = discs()
    with pytest.raises(TedmError, match=r"a\.png: 2 images .* 1 labels"):
        figures.segmentations(
            tmp_path / "a.png", images, truth, {}, dice={}, labels=["a"], classes=["x"], synthetic=True
        )
    assert not list(tmp_path.iterdir())


def test_learning_curves_name_sizes_data_sets_and_methods_with_scores(tmp_path):
    figures.learning_curves(tmp_path / "a.svg", made_table(), SUMMARY)
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    for words in ("JSRT", "NIH $ite", "LEDM", "TEDM", "1", "3", "12", "6 test subjects · synthetic data"):
        assert f"<!-- {words} -->" in text
    assert "6 test subjects · real data" in text
    assert "Later" not in text
    assert "Absent" not in text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("sizes", "subjects"), [((7,), 5), ((1, 3), 1)], ids=["one size", "one subject"])
def test_learning_curves_of_little_data_are_drawn(tmp_path, sizes, subjects):
    figures.learning_curves(tmp_path / "a.png", made_table(sizes, subjects, ("jsrt",)), SUMMARY)


def test_learning_curves_of_nothing_are_an_error(tmp_path):
    scores = made_table()
    empty = tables.Table(**{**vars(scores), "cells": scores.cells.iloc[:0]})
    with pytest.raises(TedmError, match=r"a\.png: there are no scores"):
        figures.learning_curves(tmp_path / "a.png", empty, SUMMARY)


def test_an_unknown_format_is_an_error_that_lists_the_known(tmp_path):
    with pytest.raises(TedmError, match=r"\.png, \.pdf, \.svg"):
        overlay(tmp_path / "a.bmp")


def test_methods_are_told_apart_by_colour_and_marker_or_line():
    looks = [figures.look(i) for i in range(2 * len(figures.PALETTE))]
    assert len({(look["color"], look["linestyle"]) for look in looks}) == len(looks)
    assert len({(look["marker"], look["linestyle"]) for look in looks}) == len(looks)


def test_colours_differ_for_people_with_protanopia_and_deuteranopia():
    # Viénot, Brettel and Mollon 1999: what a dichromat sees, as linear maps of linear RGB.
    views = {
        "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
        "normal": np.eye(3),
    }
    pairs = [(a, b) for i, a in enumerate(figures.PALETTE) for b in figures.PALETTE[:i]]
    for view in views.values():
        seen = {c: np.asarray(view) @ linear(c) for c in (*figures.PALETTE, *figures.OVERLAY)}
        nearest = min(np.linalg.norm(encoded(seen[a]) - encoded(seen[b])) for a, b in pairs)
        assert nearest > 0.1
        assert np.linalg.norm(encoded(seen[figures.TRUTH]) - encoded(seen[figures.PREDICTION])) > 0.5


def linear(colour):
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def encoded(rgb):
    return np.clip(rgb, 0, 1) ** (1 / 2.2)


def test_headings_of_single_step_curves_stay_within_their_panels(tmp_path, monkeypatch):
    canvas, wide = figures.canvas, []

    @contextlib.contextmanager
    def measured(path, size):
        with canvas(path, size) as figure:
            yield figure
            figure.draw_without_rendering()
            for ax in figure.axes:
                panel = ax.get_tightbbox()
                texts = [ax.title, ax._left_title, *ax.texts]
                room = figure.bbox.width / 3
                wide.extend(t.get_text() for t in texts if t.get_window_extent().width > room)
                assert panel.x1 <= figure.bbox.x1 + 1

    monkeypatch.setattr(figures, "canvas", measured)
    made = made_table(datasets=("jsrt", "nih", "later"))
    made = dataclasses.replace(made, datasets=dict.fromkeys(made.datasets, "Montgomery (phantom)"))
    step_curves.draw(tmp_path / "a.png", [made], SUMMARY, [(1, "LEDM"), (800, "TEDM")], [])
    assert not wide


def test_the_bands_of_learning_curves_are_the_intervals_of_the_summary(tmp_path, monkeypatch):
    made, drawn = made_table(datasets=("jsrt",), methods=("TEDM",)), []
    monkeypatch.setattr(figures.Axes, "fill_between", lambda _, *band, **look: drawn.append(band))
    rows = [("jsrt", "dice", "TEDM", n, 80.0, 80.0 - n, 80.0 + n) for n in (12, 1, 3)]
    summary = pd.DataFrame(rows, columns=SUMMARY.columns)
    figures.learning_curves(tmp_path / "a.png", made, summary)
    np.testing.assert_array_equal(drawn[0], [[1, 3, 12], [79, 77, 68], [81, 83, 92]])


CLASSES = [
    "left thalamus",
    "right thalamus",
    "left putamen",
    "right putamen",
    "left hippocampus",
    "brain stem",
]


@pytest.mark.parametrize("kind", ["by size", "by image"])
def test_the_legend_of_many_classes_and_a_long_title_stay_inside_the_figure(tmp_path, monkeypatch, kind):
    canvas, outside = figures.canvas, []

    @contextlib.contextmanager
    def measured(path, size):
        with canvas(path, size) as figure:
            yield figure
            figure.draw_without_rendering()
            legend = figure.legends[0].get_window_extent()
            boxes = [legend, *(text.get_window_extent() for text in figure.texts)]
            outside.extend(b for b in boxes if b.x0 < 0 or b.x1 > figure.bbox.x1 or b.y0 < 0)
            panels = [ax.get_window_extent() for ax in figure.axes]
            outside.extend(b for b in panels if b.overlaps(legend))
            outside.extend(b for b in panels for t in figure.texts if b.overlaps(t.get_window_extent()))

    monkeypatch.setattr(figures, "canvas", measured)
    images, truth = discs(1, len(CLASSES))
    if kind == "by size":
        examples.draw(
            tmp_path / "a.png",
            image=images[0],
            truth=truth[0],
            predicted={("TEDM", 1): truth[0]},
            dice={("TEDM", 1): 0.9},
            classes=CLASSES,
            title="UK Biobank (phantom) · 1000021_20252_2_0_z023 and a name that is longer still",
            note="A note. " * 12,
        )
    else:
        figures.segmentations(
            *(tmp_path / "a.png", images, truth, {"TEDM": truth}),
            dice={"TEDM": [0.9]},
            labels=["UK Biobank\n1000021_20252_2_0_z023"],
            classes=CLASSES,
            synthetic=True,
        )
    assert not outside


def test_names_of_images_are_shown_whole():
    name = "1.2.826.0.1.3680043.8.498.1000021_20252_2_0_z023.png"
    label = results._label("UK Biobank (phantom)", name)
    assert "".join(label.split("\n")[1:]) == name
    assert max(map(len, label.split("\n"))) <= 20
    assert results._label("JSRT", "x" * 30) == "JSRT\n" + "x" * 30  # nowhere to break

"""Scoring a test set batch by batch gives, to the byte, what holding all of it would, in flat memory."""

import io
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from tedm import archive, disagreement, evaluation, measures, scoring
from tedm.data import prepared
from tedm.digests import digest_file
from tedm.errors import TedmError

CLASSES = ["a", "b"]
METRICS = ["brier", "ece", "hd95", "iou", "volume_similarity"]


def volumes(path, subjects, size=(9, 7), spacing=None):
    """A test set whose slices belong to these subjects, behind some of another split."""
    rng = np.random.default_rng(len(subjects))
    count = len(subjects)
    labels = rng.integers(0, 3, (count, *size))
    labels[: count // 3][labels[: count // 3] == 2] = 0  # a class that some subjects do not have
    masks = np.stack([labels == 1, labels == 2], axis=1).astype(np.uint8)
    prepared.write(
        path,
        "Volumes",
        list(rng.integers(0, 255, (count, 1, *size), dtype=np.uint8)),
        list(masks),
        [f"slice{i}" for i in range(count)],
        subjects,
        ["train" if subject == "t" else "test" for subject in subjects],
        CLASSES,
        intensity_range=(0, 255),
        spacing_mm=spacing,
        synthetic=True,
        source="drawn by a test",
        licence="none",
        cite="",
    )
    return prepared.PreparedSet(path)


def scored(data, out, steps, metrics, batch):
    """What the scoring job writes for probabilities (S, N, K, H, W) that come in batches."""
    rows = data.rows("test")
    predictions = scoring._Predictions(data, metrics, out)
    for start in range(0, len(rows), batch):
        of_batch, p = rows[start : start + batch], steps[:, start : start + batch]
        predictions.add("Vote", of_batch, p.mean(axis=0), data.masks(of_batch), p)
        predictions.add("One", of_batch, p[0], data.masks(of_batch), p[:1])
    scoring._write(predictions, data, "volumes", (4, 1), out, "of a test")
    predictions.close()


def held(data, steps, metrics, csv):
    """The same, from arrays of the whole test set."""
    rows = data.rows("test")
    truth, subjects = data.masks(rows), [data.subjects[row] for row in rows]
    spacing = None if data.spacings_mm is None else data.spacings_mm[rows]
    tables, arrays = [], {}
    of_methods = {"Vote": (steps.mean(axis=0), steps), "One": (steps[0], None)}
    for method, (p, votes) in of_methods.items():
        masks = evaluation.segment(p)
        found = [evaluation.scores(masks, truth, subjects, CLASSES)]
        if votes is not None:
            found.append(disagreement.scores(disagreement.overlaps(votes), subjects, CLASSES))
        if metrics:
            found.append(measures.of_masks(masks, truth, subjects, CLASSES, metrics, spacing))
        if not set(measures.CALIBRATION).isdisjoint(metrics):
            found.append(measures.of_bins(measures.bins(p, truth), subjects, CLASSES, metrics))
        tables += [
            evaluation.labelled(t, dataset="volumes", method=method, n_train=4, seed=1, synthetic=True)
            for t in found
        ]
    evaluation.write_scores(csv, pd.concat(tables))
    arrays = {
        "ids": np.array([data.ids[row] for row in rows]),
        "shape": np.array(truth.shape),
        "synthetic": np.array(True),
        "made_from": np.array(["of a test", digest_file(csv)]),
        "bits_per_level": np.array(1 / 255),
    }
    arrays |= {f"mask:{m}": np.packbits(evaluation.segment(p)) for m, (p, _) in of_methods.items()}
    arrays["uncertainty:Vote"] = np.rint(disagreement.information(steps) * 255).astype(np.uint8)
    if not set(measures.CALIBRATION).isdisjoint(metrics):
        arrays |= {f"bins:{m}": measures.bins(p, truth).sum(axis=0) for m, (p, _) in of_methods.items()}
    whole = io.BytesIO()
    np.savez_compressed(whole, allow_pickle=False, **arrays)
    return whole.getvalue()


def votes(count, size=(9, 7), seed=0):
    p = np.random.default_rng(seed).dirichlet((1, 1, 1), (3, count, *size))[..., :2]
    return np.moveaxis(p, -1, 2).astype(np.float32)


FLAT = [f"s{i:02d}" for i in range(21)]
IN_TURN = ["t", "t", *(["x"] * 9), *(["y"] * 6), "z", *(["w"] * 8)]
MIXED = ["x", "y", "t", "x", "y", "y", "z", "x", "x", "z", "y"] * 2


@pytest.mark.parametrize("subjects", [FLAT, IN_TURN, MIXED], ids=["flat", "in turn", "mixed"])
@pytest.mark.parametrize(
    ("metrics", "spaced"),
    [([], ""), (["brier"], ""), (METRICS, ""), (METRICS, "all"), (METRICS, "but one")],
    ids=["dice", "brier", "pixels", "mm", "one without mm"],
)
def test_batches_are_scored_as_the_whole_is(tmp_path, subjects, metrics, spaced):
    if "hd95" in metrics:
        pytest.importorskip("monai")
    spacing = np.tile([4.0, 0.5, 0.7], (len(subjects), 1)) if spaced else None
    if spaced == "but one":
        spacing[-1, 0] = np.nan
    with volumes(tmp_path / "v.h5", subjects, spacing=spacing) as data:
        steps = votes(len(data.rows("test")))
        expected = held(data, steps, metrics, tmp_path / "held.csv")
        scored(data, tmp_path / "out", steps, metrics, batch=8)
    assert (tmp_path / "out/volumes.csv").read_bytes() == (tmp_path / "held.csv").read_bytes()
    assert (tmp_path / "out/volumes.npz").read_bytes() == expected
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"volumes.csv", "volumes.npz"}


def test_some_images_of_a_file_are_those_of_all(tmp_path):
    with volumes(tmp_path / "v.h5", FLAT) as data:
        steps = votes(len(FLAT))
        scored(data, tmp_path, steps, [], batch=8)
    file = tmp_path / "volumes.npz"
    ids, masks = scoring.read_masks(file)
    np.testing.assert_array_equal(masks["Vote"], evaluation.segment(steps.mean(axis=0)))
    for wanted in (["slice20"], ["slice7", "slice0", "slice7"], ids[::-1]):
        places = [ids.index(name) for name in wanted]
        found_ids, found = scoring.read_masks(file, ["One"], wanted)
        assert (found_ids, set(found)) == (wanted, {"One"})
        np.testing.assert_array_equal(found["One"], masks["One"][places])
        maps = scoring.read_uncertainty(file, "Vote")
        np.testing.assert_array_equal(scoring.read_uncertainty(file, "Vote", wanted), maps[places])
    with pytest.raises(TedmError, match="has no image slice99; delete it and run again"):
        scoring.read_masks(file, ids=["slice99"])
    content = bytearray(file.read_bytes())
    content[content.index(b"mask:One.npy") + 300] ^= 1
    file.write_bytes(content)
    with pytest.raises(TedmError, match=r"volumes\.npz: damaged"):
        scoring.read_masks(file, ["One"], ["slice0"])


def test_memory_of_scoring_and_of_reading_does_not_grow_with_the_images(tmp_path):
    peaks = []
    for count in (40, 400):
        subjects = [f"volume{i // 20:02d}" for i in range(count)]
        with volumes(tmp_path / f"{count}.h5", subjects, size=(96, 96)) as data:
            out, rows = tmp_path / str(count), data.rows("test")
            tracemalloc.start()
            predictions = scoring._Predictions(data, ["iou"], out)
            for start in range(0, count, 8):
                p = votes(len(rows[start : start + 8]), (96, 96), start)
                predictions.add(
                    "Vote", rows[start : start + 8], p.mean(0), data.masks(rows[start : start + 8]), p
                )
            scoring._write(predictions, data, "volumes", (1, 0), out, "of a test")
            predictions.close()
            scoring.read_masks(out / "volumes.npz", ["Vote"], ["slice3"])
            scoring.read_uncertainty(out / "volumes.npz", "Vote", ["slice3"])
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    masks_of_a_method = 360 * 2 * 96 * 96
    assert peaks[1] - peaks[0] < masks_of_a_method / 8, peaks


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    with archive.Spool(tmp_path) as spool:

        class Full:
            def seek(self, place):
                pass

            def write(self, content):
                raise OSError(28, "No space left on device")

            def close(self):
                pass

        monkeypatch.setattr(spool, "_file", Full())
        with pytest.raises(TedmError, match="the disk is full"):
            spool.append("x", np.zeros(4, np.uint8))

"""Search of timesteps: what greedy selection finds, what it may not look at, and what its budget means."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from tedm import cli, config, search
from tedm.data import prepared
from tedm.errors import TedmError
from tedm.files import write_json
from tedm.heads import ArrayFeatures, Head
from tedm.heads.ridge import RidgeHead
from tedm.search import Budget, BudgetSpentError, best_of, forward_selection, search_timesteps

SIZE, STEPS = 8, (1, 50, 200, 400)
SIGNAL = {1: 0.2, 50: 1.5, 200: 0.4, 400: 0.0}  # by how much the mask shifts the features of a timestep
SPLITS = ["train"] * 3 + ["val"] * 3 + ["test"] * 4
TINY = yaml.safe_load((Path(__file__).parent / "tiny.yaml").read_text())


class Planted(ArrayFeatures):
    """A store in memory that remembers which images were asked for."""

    path = "planted.zarr"

    def __init__(self, masks: np.ndarray) -> None:
        rng = np.random.default_rng(0)
        arrays = {
            (t, "up0"): (rng.standard_normal((len(masks), 3, SIZE, SIZE)) + SIGNAL[t] * masks).astype(
                np.float16
            )
            for t in STEPS
        }
        super().__init__(arrays, (SIZE, SIZE))
        self.attributes = {"made": "by a test"}
        self.asked: set[int] = set()

    def read(self, rows, timestep, layers=None, view=0):
        self.asked |= set(rows)
        return super().read(rows, timestep, layers, view)

    def why_absent(self, timestep, layer, view=0):
        there = (timestep, layer) in self.arrays
        return None if there else f"{self.path} has no t{timestep:04d}/{layer}"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Prepared data, a backbone's digest and a store, where an experiment has them."""
    return make(tmp_path, monkeypatch, SPLITS)


def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, splits: list[str]) -> SimpleNamespace:
    rng = np.random.default_rng(1)
    masks = (rng.random((len(splits), 1, SIZE, SIZE)) < 0.4).astype(np.uint8)
    ids = [f"image{i}" for i in range(len(splits))]
    (tmp_path / "data").mkdir()
    prepared.write(
        tmp_path / "data" / "jsrt.h5",
        "Planted",
        list(rng.integers(0, 256, (len(splits), 1, SIZE, SIZE), dtype=np.uint8)),
        list(masks),
        ids,
        ids,
        splits,
        ["lungs"],
        intensity_range=(0, 255),
        synthetic=True,
        source="drawn by a test",
        licence="none",
        cite="",
    )
    write_json(tmp_path / "backbones" / "ddpm" / "digest.json", {"digest": "1" * 64})
    features = Planted(masks)
    monkeypatch.setattr(search.FeatureStore, "open", lambda *_, **__: features)
    heads = {
        "LR": {"type": "ridge", "timesteps": [1, 400], "C": 1.0, "readings": {"LR t=1": [1]}},
        "MLP": {"type": "mlp", "combine": "concat", "timesteps": [1, 400], "hidden": [4], "steps": 4},
    }
    experiment = config.parse(TINY | {"results": str(tmp_path), "heads": heads, "image": {"size": SIZE}})
    return SimpleNamespace(experiment=experiment, features=features, masks=masks, out=tmp_path / "found")


def find(place, head="LR", n=3, budget=None, **options) -> search.Found:
    return search_timesteps(place.experiment, head, n, place.out, budget=budget or Budget(), **options)


def files(place) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.out.iterdir() if not path.name.startswith(".")}


def test_the_search_goes_the_way_of_scikit_learns_classifiers_voting(place):
    """Against the whole thing by hand: LogisticRegression per timestep, mean of probabilities, Dice."""

    def pixels(t, rows):
        return place.features.arrays[t, "up0"][rows].astype(np.float64).transpose(0, 2, 3, 1).reshape(-1, 3)

    train, val = [0, 1, 2], [3, 4, 5]
    votes = {}
    for t in STEPS:
        x = pixels(t, train)
        mean, std = x.mean(0), x.std(0)
        model = LogisticRegression(C=1.0, tol=1e-8).fit((x - mean) / std, place.masks[train].ravel())
        votes[t] = model.predict_proba((pixels(t, val) - mean) / std)[:, 1].reshape(3, -1)

    def dice(subset):
        a, b = np.mean([votes[t] for t in subset], 0) > 0.5, place.masks[val].reshape(3, -1) > 0
        return np.mean(2 * (a & b).sum(1) / (a.sum(1) + b.sum(1)))

    found = find(place)
    for trial in found.trials:
        assert trial.dice == pytest.approx(dice(trial.subset), abs=1e-12)
    path: list[int] = []
    for trial in (t for t in found.trials if t.chosen):
        left = [t for t in STEPS if t not in path]
        scores = [dice([*path, t]) for t in left]
        path.append(left[int(np.argmax(scores))])
        assert trial.subset == tuple(sorted(path))
    assert path[0] == 50  # where the signal is
    assert found.dice == pytest.approx(dice(found.subset), abs=1e-12)
    assert found.configured_dice == pytest.approx(dice([1, 400]), abs=1e-12)
    assert found.fits == 1


def test_reading_one_fit_is_the_same_as_fitting_every_subset_where_steps_share_nothing(place):
    read = find(place)
    refitted = find(place, refit=True)
    assert (read.trials, read.subset, read.dice) == (refitted.trials, refitted.subset, refitted.dice)
    assert refitted.fits == 4 + 3 + 2 + 1


@pytest.mark.parametrize("head", ["LR", "MLP"])
def test_test_images_are_never_read_and_the_same_search_writes_the_same_bytes(head, place):
    find(place, head)
    assert place.features.asked == {0, 1, 2, 3, 4, 5}
    first = files(place)
    assert set(first) == {"timesteps.yaml", "path.csv"}
    find(place, head)
    assert files(place) == first


def test_what_is_written_is_a_head_of_an_experiment_and_the_way_to_it(place):
    found = find(place)
    text = (place.out / "timesteps.yaml").read_text()
    snippet = yaml.safe_load(text)
    assert snippet["heads"]["LR-found"]["timesteps"] == list(found.subset)
    assert "readings" not in snippet["heads"]["LR-found"]
    written = config.parse(TINY | snippet).heads["LR-found"]
    assert written.settings == place.experiment.heads["LR"].settings
    assert f"{100 * found.dice:.2f}" in text
    with (place.out / "path.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 + 3 + 2 + 1
    assert [row["size"] for row in rows if row["chosen"] == "1"] == ["1", "2", "3", "4"]


def test_a_killed_search_goes_on_where_it_was_and_ends_the_same(place, monkeypatch):
    expected = find(place, "MLP")
    whole = files(place)
    learn, calls = Head.fit, []

    def killed(self, *arguments, **options):
        calls.append(self.timesteps)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return learn(self, *arguments, **options)

    for path in place.out.glob("[!.]*"):
        path.unlink()
    monkeypatch.setattr(Head, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        find(place, "MLP")
    assert not (place.out / "timesteps.yaml").exists()
    assert find(place, "MLP") == expected
    assert files(place) == whole
    assert len(calls) == 6 + (10 - 5) + (
        len({expected.subset, (1, 400)} - {t.subset for t in expected.trials})
    )


def test_a_budget_of_fits_or_sizes_ends_the_search_with_whole_sizes_only(place):
    found = find(place, "MLP", budget=Budget(fits=6))
    assert (found.fits, {trial.size for trial in found.trials}) == (6, {1})
    found = find(place, "MLP", budget=Budget(sizes=2))
    assert (found.fits, {trial.size for trial in found.trials}) == (7, {1, 2})
    with pytest.raises(TedmError, match=r"before every timestep was tried once; allow more --seconds"):
        find(place, "MLP", budget=Budget(seconds=0))


def test_greedy_selection_prefers_the_first_of_equals_and_the_smallest_of_the_best():
    trials = forward_selection([5, 3, 9], 3, lambda subset: float(3 in subset) + (len(subset) == 2) * 0.0)
    assert [t.subset for t in trials if t.chosen] == [(3,), (3, 5), (3, 5, 9)]
    assert best_of(trials) == (3,)


def test_trials_of_a_size_that_was_not_gone_through_are_left_out():
    left = iter(range(4))

    def score(subset):
        if next(left, None) is None:
            raise BudgetSpentError
        return -sum(subset)

    assert [t.subset for t in forward_selection([1, 2, 3], 3, score)] == [(1,), (2,), (3,)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "TEDM"}, r"no head TEDM \(heads: LR, MLP\)"),
        ({"n": 4}, "asks for 4 training images"),
        ({"candidates": [1, 999]}, r"planted\.zarr has no t0999/up0"),
        ({"head": "MLP", "budget": Budget(fits=3)}, r"--fits: 3 is too few.*takes 4"),
    ],
)
def test_a_mistake_is_named_before_anything_is_fitted(options, message, place, monkeypatch):
    monkeypatch.setattr(RidgeHead, "learn", lambda *_: pytest.fail("training started"))
    with pytest.raises(TedmError, match=message):
        find(place, **options)
    assert place.features.asked == set()


def test_a_set_without_validation_images_is_named(tmp_path, monkeypatch):
    place = make(tmp_path, monkeypatch, ["train"] * 6 + ["test"] * 4)
    with pytest.raises(TedmError, match=r"jsrt\.h5: the split val is empty.*datasets\.jsrt\.split\.val"):
        find(place)


def test_the_commands_of_the_docs_run(place, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "timesteps.md").read_text()
    commands = [line.split("#")[0].split() for line in page.splitlines() if line.startswith("tedm search-")]
    assert len(commands) >= 3
    monkeypatch.setattr(cli.config, "load", lambda _: place.experiment)
    for command in commands:
        head, size = command.index("config.yaml") + 1, command.index("--n") + 1
        command[head] = {"TEDM": "LR", "LEDMe": "MLP"}[command[head]]
        command[size] = "3"
        command = [str({10: 1, 25: 200}.get(int(x), x)) if x.isdigit() else x for x in command]
        result = CliRunner().invoke(cli.app, [*command[1:], "--out", str(place.out)])
        assert result.exit_code == 0, result.output
        assert "validation Dice" in result.output

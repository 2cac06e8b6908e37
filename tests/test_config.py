"""Settings: what is accepted, and what an error says."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tedm import config
from tedm.errors import TedmError

PROJECT = Path(__file__).parents[1]
VALID: dict[str, Any] = {
    "title": "t",
    "datasets": {
        "cxr": {
            "label": "C",
            "source": {"type": "phantom", "site": "jsrt", "count": 9},
            "split": {"train": 3, "val": 3, "test": 3},
        }
    },
    "backbones": {"ddpm": {"type": "ddpm", "data": "cxr"}},
    "heads": {"TEDM": {"type": "mlp", "combine": "share"}},
    "evaluation": {"train_on": "cxr", "test_on": ["cxr"], "train_sizes": [1, 3]},
}


def message_after(change: Callable[[dict[str, Any]], Any]) -> str:
    values = copy.deepcopy(VALID)
    change(values)
    with pytest.raises(TedmError) as caught:
        config.parse(values, "my.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    "path", [PROJECT / "config.yaml", *sorted((PROJECT / "experiments").glob("*.yaml"))]
)
def test_every_experiment_that_ships_is_valid(path: Path) -> None:
    assert config.load(path).methods()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda v: v.update(sed=1), ["my.yaml: sed: unknown key", "did you mean seed?"]),
        (lambda v: v.pop("evaluation"), ["evaluation: missing"]),
        (lambda v: v["backbones"]["ddpm"].update(widht=8), ["backbones.ddpm.widht", "did you mean width?"]),
        (
            lambda v: v["backbones"]["ddpm"].update(width=12),
            ["backbones.ddpm.width", "multiple of 8"],
        ),
        (
            lambda v: v["backbones"]["ddpm"].update(training={"stesp": 3}),
            ["backbones.ddpm.training.stesp", "did you mean steps?"],
        ),
        (
            lambda v: v["datasets"]["cxr"]["source"].update(cuont=3),
            ["datasets.cxr.source.cuont", "did you mean count?"],
        ),
        (
            lambda v: v["datasets"]["cxr"]["source"].update(type="flder"),
            ["datasets.cxr.source.type: no flder", "did you mean folder?"],
        ),
        (lambda v: v["datasets"]["cxr"].update(split={}), ["datasets.cxr.split", "train"]),
        (lambda v: v["heads"]["TEDM"].update(timesteps=[1, 1000]), ["heads.TEDM.timesteps[1]", "0 … 999"]),
        (lambda v: v["heads"]["TEDM"].update(timesteps=[1, 1]), ["heads.TEDM.timesteps", "twice"]),
        (lambda v: v["heads"]["TEDM"].update(stpes=1), ["heads.TEDM.stpes", "did you mean steps?"]),
        (lambda v: v["heads"]["TEDM"].update(steps=0), ["heads.TEDM.steps", "greater than or equal to 1"]),
        (lambda v: v["heads"]["TEDM"].update(type="mpl"), ["heads.TEDM.type", "did you mean mlp?"]),
        (lambda v: v["heads"]["TEDM"].update(layers=["up9"]), ["heads.TEDM.layers[0]", "up0"]),
        (lambda v: v["heads"]["TEDM"].update(backbone="x"), ["heads.TEDM.backbone", "ddpm"]),
        (lambda v: v["heads"]["TEDM"].update(readings={"a": [7]}), ["heads.TEDM.readings.a", "7"]),
        (
            lambda v: v["heads"]["TEDM"].update(combine="concat", readings={"a": [1]}),
            ["heads.TEDM.readings", "concatenates"],
        ),
        (lambda v: v["heads"]["TEDM"].update(readings={"TEDM": [1]}), ["TEDM stands for two methods"]),
        (lambda v: v["evaluation"].update(test_on=["b"]), ["evaluation.test_on[0]", "cxr"]),
        (lambda v: v["evaluation"].update(train_sizes=[0]), ["evaluation.train_sizes[0]"]),
        (
            lambda v: v["evaluation"].update(seeds=[-1]),
            ["evaluation.seeds[0]", "greater than or equal to 0"],
        ),
        (lambda v: v["evaluation"].update(train_sizes=[4]), ["train_sizes[0]: 4 is more than the 3"]),
        (lambda v: v["datasets"]["cxr"]["split"].update(test=4), ["datasets.cxr.split: asks for 10"]),
        (
            lambda v: v["datasets"]["cxr"]["split"].update(test=0),
            ["evaluation.test_on[0]: cxr has no images"],
        ),
        (lambda v: v["heads"]["TEDM"].update(learning_rate=float("nan")), ["heads.TEDM.learning_rate"]),
        (lambda v: v["datasets"]["cxr"]["source"].pop("type"), ["datasets.cxr.source.type: missing"]),
        (lambda v: v["heads"]["TEDM"].pop("combine"), ["heads.TEDM.combine: missing"]),
        (lambda v: v.update(image=None), ["image: expected keys and values below it, got None"]),
        (
            lambda v: v["datasets"]["cxr"].update(split={"train": 0.9, "test": 0.5}),
            ["datasets.cxr.split: fractions add up to more than 1"],
        ),
        (lambda v: v["heads"]["TEDM"].update(hidden=[0]), ["heads.TEDM.hidden[0]"]),
        (lambda v: v["heads"]["TEDM"].update(type="nowhere:Head"), ["heads.TEDM.type", "PYTHONPATH"]),
        (lambda v: v.update(heads={}), ["at least one head or baseline"]),
        (lambda v: v.update(features={"layers": ["up9"]}), ["features.layers[0]: no layer up9"]),
        (lambda v: v.update(features={"draws": 2}), ["features.draws: unknown key", "heads.….views"]),
        (lambda v: v.update(results="a b"), ["results"]),
        (lambda v: v["backbones"]["ddpm"].update(multipliers=[0, 1]), ["backbones.ddpm.multipliers[0]"]),
        (
            lambda v: v["backbones"]["ddpm"].update(training={"accumulate": 3}),
            ["backbones.ddpm.training.accumulate: does not divide"],
        ),
        (lambda v: v["evaluation"].update(seeds=[1, 1]), ["evaluation.seeds", "twice"]),
        (lambda v: v.update(image={"size": 36}), ["image.size", "multiple of 8", "backbones.ddpm"]),
        (lambda v: v["backbones"].update({"a/b": {}}), ["backbones"]),
    ],
)
def test_an_error_names_the_yaml_path_and_what_is_allowed(
    change: Callable[[dict[str, Any]], Any], parts: list[str]
) -> None:
    message = message_after(change)
    for part in parts:
        assert part in message


def test_all_problems_are_told_at_once() -> None:
    def change(values: dict[str, Any]) -> None:
        values["sed"] = 1
        values["backbones"]["ddpm"]["width"] = 7

    assert len(message_after(change).splitlines()) == 2


def test_a_file_that_is_missing_or_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(TedmError, match=r"absent\.yaml"):
        config.load(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(TedmError, match=r"broken\.yaml: not valid YAML"):
        config.load(broken)


def test_methods_are_baselines_heads_and_readings_in_the_order_of_the_file() -> None:
    values = copy.deepcopy(VALID)
    values["baselines"] = {"Supervised": {}}
    values["heads"]["TEDM"]["readings"] = {"TEDM t=1": [1]}
    assert config.parse(values).methods() == ["Supervised", "TEDM", "TEDM t=1"]


def test_timesteps_are_extracted_together_where_all_backbones_have_the_same() -> None:
    values = copy.deepcopy(VALID)
    values["heads"]["TEDM"].update(backbone="ddpm", timesteps=[10, 1])
    assert config.parse(values).timesteps_together() == []
    values["features"] = {"together": True}
    assert config.parse(values).timesteps_together() == [1, 10]
    values["backbones"]["other"] = {"type": "ddpm", "data": "cxr"}
    values["heads"]["LR"] = {"type": "ridge", "backbone": "other", "timesteps": [1, 10]}
    assert config.parse(values).timesteps_together() == [1, 10]
    values["heads"]["LR"]["timesteps"] = [5]
    assert config.parse(values).timesteps_together() == []


def test_schema_accepts_the_demo() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(yaml.safe_load((PROJECT / "config.yaml").read_text()), config.json_schema())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: a\nseed: 1\ntitle: b\n", "line 3: the key title is there a second time, first in line 1"),
        ("heads:\n  LR: {type: ridge}\n  TEDM: {type: mlp}\n  LR: {type: mlp}\n", "line 4: the key LR"),
        ("image: {size: 1, classes: [a],\n  size: 2}\n", "line 2: the key size is there a second time"),
    ],
)
def test_a_key_that_is_there_twice_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(TedmError, match=rf"my\.yaml: {message}"):
        config.load(tmp_path / "my.yaml")


def test_anchors_and_merged_keys_are_fine(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [{x: 1}, {x: 2}]\n")
    assert config.read(tmp_path / "my.yaml")["b"] == {"x": 1, "y": 3}


# ── augmentation ────────────────────────────────────────────────────────────────────────────────


def with_augmentation(
    own: Any = None, of_all: dict[str, float] | None = None, source: str = "phantom"
) -> config.Experiment:
    """An experiment whose only baseline states `own`, or nothing."""
    values = copy.deepcopy(VALID)
    values["datasets"]["cxr"]["source"] = {
        "phantom": values["datasets"]["cxr"]["source"],
        "folder": {"type": "folder", "images": "i", "masks": "m"},
        "nifti": {"type": "nifti", "images": "i", "masks": "m"},
        "brain": {"type": "brain", "layout": "ukbb", "count": 9},
        "ukbb": {"type": "ukbb", "folder": "f"},
        "brats": {"type": "brats", "folder": "f"},
    }[source]
    if source == "brain":
        values["image"] = {"classes": ["a"]}
    values["augmentation"] = of_all or {}
    values["baselines"] = {"Supervised": {} if own is None else {"augment": own}}
    return config.parse(values)


def augmentation_of(*settings: Any, **more: Any) -> config.Augmenting | None:
    experiment = with_augmentation(*settings, **more)
    return experiment.augmentation_of("cxr", experiment.baselines["Supervised"].augment)


OF_IMAGES = {
    "gamma": 0.5, "contrast": 0.4, "brightness": 0.15, "zoom": 0.2, "rotation": 9.0, "shift": 0.06,
}  # fmt: skip
OF_VOLUMES = {**OF_IMAGES, "gamma": 0.0, "contrast": 0.2, "brightness": 0.05}


@pytest.mark.parametrize(
    ("sources", "expected"),
    [(["phantom", "folder"], OF_IMAGES), (["nifti", "brain", "ukbb", "brats"], OF_VOLUMES)],
)
def test_slices_of_volumes_are_changed_less_than_images(sources: list[str], expected: Any) -> None:
    for source in sources:
        for own in (None, True, {}):
            assert augmentation_of(own, source=source) == config.AugmentationConfig(**expected)


@pytest.mark.parametrize(("source", "expected"), [("phantom", OF_IMAGES), ("nifti", OF_VOLUMES)])
def test_the_experiment_and_then_the_baseline_replace_only_what_they_state(
    source: str, expected: dict[str, float]
) -> None:
    of_all = {"gamma": 0.3, "zoom": 0.1}
    found = augmentation_of(of_all=of_all, source=source)
    assert found == config.AugmentationConfig(**expected | of_all)
    found = augmentation_of({"zoom": 0.5, "shift": 0}, of_all, source)
    assert found == config.AugmentationConfig(**expected | {"gamma": 0.3, "zoom": 0.5, "shift": 0})
    # The default's own number, stated, counts as stated.
    assert augmentation_of({"gamma": 0.5}, of_all, source) == config.AugmentationConfig(
        **expected | {"gamma": 0.5, "zoom": 0.1}
    )


def test_study_and_false_need_no_ranges() -> None:
    for source in ("phantom", "nifti"):
        assert augmentation_of("study", {"gamma": 0.3}, source) == "study"
        assert augmentation_of(False, {"gamma": 0.3}, source) is None


@pytest.mark.parametrize(
    ("section", "allowed"),
    [("baselines", "true, false, study, or ranges"), ("pretraining", "true, study, or ranges")],
)
@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("strong", ": expected {allowed} such as gamma: 0.3, got 'strong'"),
        (3, ": expected {allowed} such as gamma: 0.3, got 3"),
        (None, ": expected {allowed} such as gamma: 0.3, got None"),
        (["study"], ": expected {allowed} such as gamma: 0.3, got ['study']"),
        ({"gama": 1}, ".gama: unknown key, did you mean gamma? (allowed: brightness, contrast, gamma,"),
        ({"zoom": 2}, ".zoom: input should be less than or equal to 1, got 2"),
        ({"shift": -0.1}, ".shift: input should be greater than or equal to 0, got -0.1"),
        ({"rotation": "x"}, ".rotation: input should be a valid number"),
    ],
)
def test_a_wrong_augmentation_is_one_error(section: str, allowed: str, augment: Any, message: str) -> None:
    stage = {"baselines": {}, "pretraining": {"type": "global", "data": "cxr"}}[section]
    text = message_after(lambda v: v.update({section: {"A": {**stage, "augment": augment}}}))
    assert text.startswith(f"my.yaml: {section}.A.augment{message.format(allowed=allowed)}")
    assert len(text.splitlines()) == 1


def test_contrast_needs_views_that_differ() -> None:
    stage = {"type": "global", "data": "cxr", "augment": False}
    text = message_after(lambda v: v.update(pretraining={"g": stage}))
    assert (
        text
        == "my.yaml: pretraining.g.augment: expected true, study, or ranges such as gamma: 0.3, got False"
    )


def test_a_wrong_range_of_the_experiment_names_its_path() -> None:
    text = message_after(lambda v: v.update(augmentation={"gama": 1, "zoom": 2}))
    assert "my.yaml: augmentation.zoom: input should be less than or equal to 1, got 2" in text
    assert "my.yaml: augmentation.gama: unknown key, did you mean gamma?" in text
    text = message_after(lambda v: v.update(augmentation="study"))
    assert text == "my.yaml: augmentation: expected keys and values below it, got 'study'"


@pytest.mark.parametrize("augment", [True, False, "study", {"gamma": 0.3}])
def test_schema_accepts_every_way_to_state_an_augmentation(augment: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    values = {**VALID, "augmentation": {"zoom": 0.1}, "baselines": {"Supervised": {"augment": augment}}}
    jsonschema.validate(values, config.json_schema())
    values["baselines"] = {"Supervised": {"augment": "strong"}}
    with pytest.raises(jsonschema.ValidationError, match="strong"):
        jsonschema.validate(values, config.json_schema())


# ── contrastive pretraining ─────────────────────────────────────────────────────────────────────


def pretraining_errors(change: Callable[[dict[str, Any]], Any]) -> str:
    def contrastive(values: dict[str, Any]) -> None:
        brief = {"steps": 1, "batch_size": 4}
        values["pretraining"] = {
            "g": {"type": "global", "data": "cxr", "width": 16, "training": brief},
            "l": {"type": "local", "data": "cxr", "encoder": "g", "training": brief},
        }
        values["baselines"] = {
            "Supervised": {"width": 16},
            "global_cl": {"label": "Global CL", "width": 16, "pretrained": "g"},
            "local_cl": {"label": "Global & Local CL", "width": 16, "pretrained": "l", "freeze_until": 5},
        }
        change(values)

    return message_after(contrastive)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["pretraining"]["g"].update(data="x"), "pretraining.g.data: no data set x"),
        (lambda v: v["pretraining"]["g"].update(tau=1), "pretraining.g.tau: unknown key"),
        (lambda v: v["pretraining"]["g"].update(type="lokal"), "pretraining.g.type: no lokal"),
        (lambda v: v["pretraining"]["l"].update(encoder="x"), "pretraining.l.encoder: no pretraining x"),
        (lambda v: v["pretraining"]["l"].update(encoder="l"), "l is of type local; expected type global"),
        (lambda v: v["pretraining"]["l"].update(levels=5), "l.levels: 5, but pretraining.g has 4"),
        (
            lambda v: v["pretraining"]["l"]["training"].update(accumulate=3),
            "pretraining.l.training.accumulate: does not divide batch_size 4",
        ),
        (lambda v: v.update(image={"size": 36}), "the 4 levels of pretraining.g need"),
        (lambda v: v["baselines"]["global_cl"].update(pretrained="x"), "no pretraining x (pretraining"),
        (
            lambda v: v["baselines"]["local_cl"].update(width=8),
            "baselines.local_cl.width: 8, but that of its start l is 16",
        ),
        (lambda v: v["baselines"]["Supervised"].update(freeze_until=1), "nothing to freeze"),
        (
            lambda v: v["baselines"]["local_cl"].update(training={"steps": 4}),
            "baselines.local_cl.freeze_until: 5 is beyond training.steps (4)",
        ),
        (lambda v: v["baselines"]["local_cl"].update(learning_rates=[]), "learning_rates: list should"),
        (lambda v: v["baselines"]["local_cl"].update(learning_rates=[0.0]), "learning_rates[0]"),
        (lambda v: v["baselines"]["global_cl"].update(label="TEDM"), "TEDM stands for two methods"),
        (lambda v: v["pretraining"]["g"].update(validation_max=1), "pretraining.g.validation_max"),
        (
            lambda v: v["pretraining"]["g"].update(training={"batch_size": 1}),
            "pretraining.g.training.batch_size: images are contrasted with each other; expected 2 or more",
        ),
        (
            lambda v: v["pretraining"]["l"].update(side=9, levels=1),
            "pretraining.l.side: regions of 9 × 9 cells need a map of 18 × 18 at least, but that of 1"
            " levels at 128 pixels is 16 × 16",
        ),
        (
            lambda v: v["baselines"]["local_cl"].update(learning_rates=[1e-3, 1e-3]),
            "has the same rate twice",
        ),
        (
            lambda v: (
                v["datasets"]["cxr"].update(split={"train": 6, "test": 3}),
                v["baselines"]["local_cl"].update(learning_rates=[1e-3, 1e-4]),
            ),
            "baselines.local_cl.learning_rates: validation images choose one, but cxr has no split val",
        ),
        (
            lambda v: v["baselines"].update({"Global CL": {}}),
            "baselines.Global CL: names and paths have letters",
        ),
        (lambda v: v["baselines"].update({"Global CL": {}}), "no blanks; `label` is what tables call it"),
        (
            lambda v: v["pretraining"].update({1: {}}),
            "pretraining[1]: input should be a valid string, got 1",
        ),
    ],
)
def test_an_error_of_contrastive_settings_names_its_path(
    change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    assert message in pretraining_errors(change)


def test_tables_call_a_baseline_by_its_label() -> None:
    values = copy.deepcopy(VALID)
    values["pretraining"] = {"g": {"type": "global", "data": "cxr"}}
    values["baselines"] = {"Supervised": {}, "global_cl": {"label": "Global CL", "pretrained": "g"}}
    assert config.parse(values).methods()[:2] == ["Supervised", "Global CL"]

"""Backbones: the authors' checkpoints, directories of ours, and what is refused."""

import argparse
import contextlib
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tedm import backbones, checkpoint, supervised
from tedm.config import DDPMConfig, DiffusionConfig, OptimizerConfig
from tedm.data import prepared
from tedm.diffusion.official import import_checkpoint, read
from tedm.diffusion.schedule import Schedule
from tedm.diffusion.train import train_backbone
from tedm.errors import TedmError
from tedm.heads import base as heads
from tedm.importing import import_authors
from tedm.unet import UNet

DATA = Path(__file__).parent / "data"
AUTHORS = DATA / "authors_format.pt"


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    with np.load(DATA / "reference.npz") as arrays:
        return {k: torch.from_numpy(arrays[k]) for k in arrays.files}


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("backbones") / "authors"
    import_checkpoint(AUTHORS, out)
    return out


def content() -> dict:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(AUTHORS, weights_only=True)


def assert_agree(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """To 1e-5 of the tensor's largest magnitude."""
    difference = float((ours - theirs).abs().max())
    print(f"{what}: max |difference| {difference:.2e} on values up to {float(theirs.abs().max()):.3g}")
    assert difference <= 1e-5 * float(theirs.abs().max()), what


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_an_imported_checkpoint_computes_what_the_authors_code_computed(imported, reference, memory):
    network = checkpoint.read(imported).network.to(memory_format=memory)
    with torch.no_grad():
        for t in reference["timesteps"].tolist():
            x = reference[f"t{t}_x"].contiguous(memory_format=memory)
            steps = torch.full((len(x),), t)
            assert_agree(f"t = {t}, noise", network(x, steps), reference[f"t{t}_eps"])
            for layer, value in network.decode(x, steps).items():
                assert_agree(f"t = {t}, {layer}", value, reference[f"t{t}_{layer}"])
        no_time = network(reference["x0"].contiguous(memory_format=memory))
        assert_agree("no time", no_time, reference["supervised_logits_no_time"])


def test_features_of_an_imported_backbone_are_the_authors_decoder_activations(imported, reference):
    backbone = backbones.load(imported)
    assert backbone.image_shape == (1, 32, 32)
    assert backbone.timesteps == 1000
    for t in reference["timesteps"].tolist():
        layers = backbone.features(reference["x0"], t, reference["noise"])
        assert {k: tuple(v.shape[1:]) for k, v in layers.items()} == backbone.layer_shapes
        for layer, value in layers.items():
            assert_agree(f"t = {t}, {layer}", value, reference[f"t{t}_{layer}"])


def test_the_diffused_images_are_the_authors(reference):
    schedule = Schedule(1000, "cosine")
    torch.testing.assert_close(schedule.signal, reference["sqrt_alphas_cumprod"], rtol=0, atol=1e-6)
    for t in reference["timesteps"].tolist():
        x_t = schedule.diffuse(reference["x0"] * 2 - 1, torch.full((2,), t), reference["noise"])
        assert_agree(f"t = {t}, x_t", x_t, reference[f"t{t}_x"])


def test_the_official_input_range_feeds_images_as_they_are(imported):
    backbone = backbones.load(imported)
    images, noise = torch.rand(2, 1, 32, 32), torch.randn(2, 1, 32, 32)
    official = backbone.features(images, 50, noise, "official")
    mapped = backbone.features((images + 1) / 2, 50, noise, "trained")
    for layer in official:
        torch.testing.assert_close(official[layer], mapped[layer], rtol=1e-4, atol=1e-4)
    trained = backbone.features(images, 50, noise, "trained")
    assert not torch.allclose(official["up3"], trained["up3"], atol=0.1)


def test_an_import_records_what_the_shapes_and_the_config_say(imported):
    description = checkpoint.read(imported).description
    assert description.architecture.multipliers == [1, 2, 4, 8]
    assert (description.architecture.width, description.architecture.channels) == (8, 1)
    assert description.diffusion == DiffusionConfig()
    assert description.input_range == (-1.0, 1.0)
    assert description.training["imported_from"] == "authors_format.pt"
    assert description.parameters == sum(p.numel() for p in UNet(8).parameters())


AUTHORS_NAMES = [  # ours → theirs, the inverse of the import, written down on its own
    ("stem.", "init_conv."), ("middle1.", "mid_block1."), ("middle2.", "mid_block2."),
    ("middle_attention.qkv", "mid_attn.fn.fn.to_qkv"), ("middle_attention.out", "mid_attn.fn.fn.to_out"),
    ("middle_attention.norm.gain", "mid_attn.fn.norm.g"), ("final.", "final_res_block."),
    ("head.", "final_conv."),
    ("encoder.", "downs."), ("decoder.", "ups."), (".residual1.", ".0."), (".residual2.", ".1."),
    (".attention.qkv", ".2.fn.fn.to_qkv"), (".attention.out_norm.gain", ".2.fn.fn.to_out.1.g"),
    (".attention.out.", ".2.fn.fn.to_out.0."), (".attention.norm.gain", ".2.fn.norm.g"),
    (".resample.conv.", ".3.1."), (".resample.", ".3."), (".conv.", ".proj."), (".skip.", ".res_conv."),
]  # fmt: skip


def authors_state(network: UNet, prefix: str = "model.") -> dict[str, torch.Tensor]:
    """A network's weights under the authors' names and shapes."""
    state = {}
    for name, value in network.state_dict().items():
        theirs = name.replace(".time.", ".time_mlp.1.")
        theirs = theirs.replace("time.0.", "time_mlp.1.").replace("time.2.", "time_mlp.3.")
        for ours, replacement in AUTHORS_NAMES:
            theirs = theirs.replace(ours, replacement) if ours[0] == "." else (
                replacement + theirs.removeprefix(ours) if theirs.startswith(ours) else theirs
            )  # fmt: skip
        if "fn." in theirs and value.dim() == 2:
            value = value[:, :, None, None]
        if theirs.endswith(".g"):
            value = value[None, :, None, None]
        state[prefix + theirs] = value.clone()
    return state


def save(path: Path, state: dict[str, torch.Tensor], kind: str | None = "cosine", **config) -> Path:
    if kind is not None:
        state = state | {"sqrt_alphas_cumprod": Schedule(config.get("timesteps", 1000), kind).signal}
    settings = argparse.Namespace(**({"img_size": 16, "normalize": True} | config))
    torch.save({"model_state_dict": state, "optimizer_state_dict": {}, "config": settings, "step": 7}, path)
    return path


@pytest.mark.parametrize(
    ("width", "multipliers", "channels", "kind", "timesteps"),
    [(8, [1, 2], 3, "cosine", 100), (16, [1, 1, 2], 1, "linear", 1000), (8, [2, 4, 4], 4, "linear", 50)],
)
def test_any_architecture_survives_the_trip_through_the_authors_format(
    tmp_path, width, multipliers, channels, kind, timesteps
):
    network = UNet(width, multipliers, channels)
    file = save(tmp_path / "a.pt", authors_state(network), kind, timesteps=timesteps)
    import_checkpoint(file, tmp_path / "b")
    read, description, _ = checkpoint.read(tmp_path / "b")
    assert description.architecture.multipliers == multipliers
    assert (description.diffusion.schedule, description.diffusion.timesteps) == (kind, timesteps)
    for name, value in network.state_dict().items():
        assert torch.equal(read.state_dict()[name], value), name


def test_a_supervised_checkpoint_becomes_a_baseline(tmp_path):
    network = UNet(8, [1, 2], 1, out_channels=1)
    import_checkpoint(save(tmp_path / "a.pt", authors_state(network, ""), None), tmp_path / "b")
    images = np.random.default_rng(0).random((3, 1, 16, 16), np.float32)
    baseline = supervised.load(tmp_path / "b")
    expected = network(torch.from_numpy(images)).sigmoid().detach().numpy()
    np.testing.assert_allclose(supervised.predict_proba(baseline, images), expected, atol=1e-5)
    with pytest.raises(TedmError, match="not a backbone"):
        backbones.load(tmp_path / "b")


def test_the_diffusion_model_inside_a_segmentation_model_is_taken(tmp_path, capsys):
    network = UNet(8, [1, 2])
    state = authors_state(network, "diffusion_model.model.") | {"classifier.0.weight": torch.ones(3, 3)}
    import_checkpoint(save(tmp_path / "a.pt", state), tmp_path / "b")
    assert torch.equal(checkpoint.read(tmp_path / "b").network.stem.weight, network.stem.weight)
    assert "classifier.0.weight" in capsys.readouterr().err


# ── the authors' segmentation models ────────────────────────────────────────────────────────────


def authors_classifier(inputs: int, first: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights as their code saves them: its ReLUs have none. `first` is 1 after a Rearrange."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32) / max(shape[-1:][0], 4) ** 0.5)

    state = {}
    for place, (inner, outer) in zip((0, 3, 6), ((inputs, 128), (128, 32), (32, 1)), strict=True):
        name = f"classifier.{first + place}"
        state |= {f"{name}.weight": draw(outer, inner)[:, :, None, None], f"{name}.bias": draw(outer)}
        if outer > 1:
            name = f"classifier.{first + place + 2}"
            state |= {f"{name}.weight": draw(outer) + 1, f"{name}.bias": draw(outer)}
            state |= {
                f"{name}.running_mean": draw(outer),
                f"{name}.running_var": draw(outer).square() + 0.1,
            }
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)
    return state


def save_segmentation(path: Path, state: dict[str, torch.Tensor], **config) -> Path:
    """A checkpoint of their LEDM or TEDM: the diffusion model of shared weights, and a classifier."""
    theirs = content()
    inside = {f"diffusion_model.{k}": v for k, v in theirs["model_state_dict"].items()}
    settings = argparse.Namespace(**(vars(theirs["config"]) | config))
    torch.save({"model_state_dict": inside | state, "config": settings, "step": 9}, path)
    return path


def naive_probabilities(state, network, images, noise, timesteps, first: int, shared: bool):
    """Their classifier as their code runs it, one operation after the other, in float64."""
    network = copy_of(network).double()
    signal = Schedule(1000, "cosine").signal.double()
    per_step = []
    for t in timesteps:
        x_t = signal[t] * images.double() + (1 - signal[t] ** 2).sqrt() * noise.double()  # images in [0, 1]
        layers = network.decode(x_t, torch.full((len(images),), t)).values()
        per_step.append(torch.cat([F.interpolate(z, size=images.shape[2:]) for z in layers], 1))
    batches = per_step if shared else [torch.cat(per_step, 1)]
    probabilities = []
    for x in batches:
        for place in (0, 3, 6):
            name = f"classifier.{first + place}"
            x = F.conv2d(x, state[f"{name}.weight"].double(), state[f"{name}.bias"].double())
            if place < 6:
                name = f"classifier.{first + place + 2}"
                gain, shift, mean, variance = (
                    state[f"{name}.{leaf}"].double()[:, None, None]
                    for leaf in ("weight", "bias", "running_mean", "running_var")
                )
                x = (x.clamp(min=0) - mean) / (variance + 1e-5).sqrt() * gain + shift
        probabilities.append(1 / (1 + torch.exp(-x)))
    return torch.stack(probabilities).mean(0).detach().numpy()


def copy_of(network: UNet) -> UNet:
    twin = UNet(network.width, network.multipliers, network.channels)
    twin.load_state_dict(network.state_dict())
    return twin.eval()


@pytest.mark.parametrize(
    ("name", "timesteps", "shared"),
    [("LEDM", [50, 150, 250], False), ("LEDMe", [1, 10, 200, 800], False), ("TEDM", [1, 10, 800], True)],
)
def test_an_imported_segmentation_model_predicts_as_the_authors_code_does(
    imported, tmp_path, name, timesteps, shared
):
    inputs = 8 * (8 + 4 + 2 + 1) * (1 if shared else len(timesteps))
    first = 1 if shared else 0
    state = authors_classifier(inputs, first)
    file = save_segmentation(
        tmp_path / "best_model.pt", state, experiment=name, t_steps_to_save=timesteps,
        shared_weights_over_timesteps=shared,
    )  # fmt: skip
    import_authors(tmp_path, tmp_path / "b", tmp_path / "head.safetensors")  # the folder has one checkpoint
    assert (tmp_path / "b/digest.json").read_bytes() == (imported / "digest.json").read_bytes()
    backbone, head = backbones.load(tmp_path / "b"), heads.load(tmp_path / "head.safetensors")
    assert (head.timesteps, head.voting) == (tuple(timesteps), shared)
    assert head.backbone_digest == backbone.digest
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.random((2, 1, 32, 32), np.float32))
    noise = torch.from_numpy(rng.standard_normal((2, 1, 32, 32), np.float32))
    features = heads.ArrayFeatures(
        {
            (t, layer): value.contiguous().numpy()
            for t in timesteps
            for layer, value in backbone.features(images, t, noise, "official").items()
        },
        (32, 32),
    )
    features.backbone_digest = backbone.digest
    network = checkpoint.read(tmp_path / "b").network
    expected = naive_probabilities(state, network, images, noise, timesteps, first, shared)
    assert expected.std() > 0.1
    np.testing.assert_allclose(head.predict_proba(features, [0, 1]), expected, rtol=0, atol=2e-5)
    assert file.name in json.loads((tmp_path / "b/config.json").read_text())["training"]["imported_from"]


def change_of(name: str, state: dict[str, torch.Tensor], config: dict) -> None:
    if name == "none":
        state.clear()
    elif name == "kernel":
        state["classifier.6.weight"] = torch.ones(1, 32, 4, 4)
    elif name == "outputs":
        state |= {"classifier.6.weight": torch.ones(4, 32, 1, 1), "classifier.6.bias": torch.ones(4)}
    elif name == "inputs":
        state["classifier.0.weight"] = torch.ones(128, 77, 1, 1)
    elif name == "order":
        for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            state[f"classifier.1.{leaf}"] = state.pop(f"classifier.2.{leaf}")
    elif name == "chain":
        state["classifier.3.weight"] = torch.ones(32, 100, 1, 1)
    elif name == "lengths":
        state["classifier.2.running_var"] = torch.ones(3)
    elif name == "nan":
        state["classifier.3.bias"][0] = torch.nan
    elif name == "names":
        state["decoder.weight"] = torch.ones(2, 2)
    elif name == "logistic":
        for k in list(state):
            if not k.startswith("classifier.0"):
                del state[k]
    elif name == "steps":
        config["t_steps_to_save"] = "all"
    elif name == "range":
        config["t_steps_to_save"] = [1, 1000]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "holds no classifier"),
        ("kernel", r"classifier\.6\.weight has a kernel of 4×4"),
        ("outputs", "has 4 outputs"),
        ("inputs", r"reads 77 channels; expected 120, .* or 240"),
        ("order", r"classifier\.1 is out of order"),
        ("chain", r"classifier\.3 takes 100 channels, but the layer before gives 128"),
        ("lengths", "different lengths"),
        ("nan", r"classifier\.3\.bias has values that are not finite"),
        ("names", "holds no classifier of the authors' code"),
        ("logistic", "a classifier of 1 convolutions"),
        ("steps", "doesn't say which timesteps"),
        ("range", "reads timestep 1000, outside the 1000"),
    ],
)
def test_a_classifier_that_is_not_the_authors_is_refused(tmp_path, name, message):
    state, config = authors_classifier(240, 0), {"t_steps_to_save": [1, 10]}
    change_of(name, state, config)
    save_segmentation(tmp_path / "a.pt", state, **config)
    with pytest.raises(TedmError, match=message):
        import_authors(tmp_path / "a.pt", tmp_path / "b", tmp_path / "head.safetensors")
    assert not (tmp_path / "head.safetensors").exists()


def test_a_supervised_checkpoint_has_no_head(tmp_path):
    network = UNet(8, [1, 2], 1, out_channels=1)
    file = save(tmp_path / "a.pt", authors_state(network, ""), None)
    with pytest.raises(TedmError, match="leave out --head"):
        import_authors(file, tmp_path / "b", tmp_path / "head.safetensors")


@pytest.mark.parametrize("names", [[], ["a.pt", "b.pth"]])
def test_a_folder_without_exactly_one_checkpoint_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(TedmError, match=rf"a folder with {len(names)} checkpoints"):
        import_checkpoint(tmp_path, tmp_path / "b")


def test_another_number_of_channels_is_refused(tmp_path):
    with pytest.raises(TedmError, match="trained on images of 1 channels, not 3"):
        import_checkpoint(AUTHORS, tmp_path / "b", channels=3)


# ── hostile files ───────────────────────────────────────────────────────────────────────────────


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["config", "optimizer_state_dict", "model_state_dict"])
def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path, where, zipped):
    trace, file = tmp_path / "it-ran", tmp_path / "hostile.pt"
    torch.save(content() | {where: Hostile(trace)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(TedmError, match=r"hostile\.pt: refused: its pickle asks for posix\.mkdir"):
        import_checkpoint(file, tmp_path / "b")
    assert not trace.exists()
    assert not (tmp_path / "b").exists()
    pickle.loads(pickle.dumps(Hostile(trace)))  # it would have run
    assert trace.exists()


class SettingsWithPath(argparse.Namespace):
    pass


@pytest.mark.parametrize("value", [nn.Linear(2, 2), SettingsWithPath(a=1), Path("x")])
def test_any_class_but_the_one_of_the_authors_is_refused(tmp_path, value):
    torch.save(content() | {"config": value}, tmp_path / "a.pt")
    with pytest.raises(TedmError, match="refused: its pickle asks for"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "b")


class NestedGlobal:
    """Reaches further through an attribute of the class that is allowed."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return getattr, (argparse.Namespace, "__init__")


class NamespaceWithArguments:
    def __reduce__(self):
        return argparse.Namespace, ("a", "b")


@pytest.mark.parametrize("make", [NestedGlobal, lambda trace: {"deep": [Hostile(trace)]}])
def test_nested_and_indirect_globals_are_refused(tmp_path, make):
    trace = tmp_path / "it-ran"
    torch.save(content() | {"config": make(trace)}, tmp_path / "a.pt")
    with pytest.raises(TedmError, match="refused: its pickle asks for"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "b")
    assert not trace.exists()


def test_a_namespace_gets_attributes_and_no_arguments(tmp_path):
    torch.save(content() | {"config": NamespaceWithArguments()}, tmp_path / "a.pt")
    with pytest.raises(TedmError, match=r"a\.pt: not a checkpoint"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "b")


def test_settings_of_wrong_types_are_no_traceback(tmp_path):
    state = content()
    vars(state["config"]).update(objective=["x"], dataset={}, img_size=True)
    state |= {"step": torch.ones(2)}
    state["model_state_dict"] |= {3: torch.ones(2)}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(TedmError, match="objective"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "b", image_size=32)


def test_an_archive_that_unfolds_to_more_than_it_is_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(50_000_000))
    assert (tmp_path / "a.pt").stat().st_size < 100_000
    with pytest.raises(TedmError, match="compressed archive"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "b")


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    state = content()
    state["model_state_dict"]["model.init_conv.bias"] = torch.zeros(1).expand(10**10)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(TedmError, match="would unfold"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "b")


def test_shapes_that_claim_a_huge_network_are_refused_before_it_is_made(tmp_path):
    state = content()
    state["model_state_dict"]["model.init_conv.weight"] = torch.zeros(80_000, 1, 7, 7)
    for i, size in enumerate((80_000, 160_000, 320_000, 640_000)):
        state["model_state_dict"][f"model.downs.{i}.3.weight"] = torch.zeros(size, 1)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(TedmError, match="has the shape"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "b")


def test_a_file_with_a_flipped_byte_is_read_or_refused_and_nothing_else(tmp_path):
    torch.save({"model_state_dict": {"init_conv.weight": torch.ones(8, 1, 7, 7)}}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    read(tmp_path / "a.pt")
    places = np.random.default_rng(0).integers(0, len(whole), 100).tolist()
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 0x41
        (tmp_path / "a.pt").write_bytes(flipped)
        with contextlib.suppress(TedmError):
            read(tmp_path / "a.pt")


def broken(name: str):
    state = content()
    tensors = state["model_state_dict"]
    if name == "missing":
        del tensors["model.mid_block1.block1.proj.weight"]
    elif name == "foreign":
        tensors["model.extra.weight"] = torch.ones(3)
    elif name == "shape":
        tensors["model.mid_block1.block1.proj.weight"] = torch.ones(64, 64, 1, 1)
    elif name == "transposed":
        tensors["model.time_mlp.1.weight"] = tensors["model.time_mlp.1.weight"].T.contiguous()
    elif name == "nan":
        tensors["model.mid_block1.block1.proj.weight"][0, 0, 0, 0] = torch.nan
    elif name == "schedule":
        tensors["sqrt_alphas_cumprod"] = torch.linspace(1, 0, 1000)
    elif name == "size":
        state["config"].img_size = 30
    elif name == "no size":
        del state["config"]
    elif name == "not theirs":
        state["model_state_dict"] = nn.Linear(2, 2).state_dict()
    elif name == "two":
        state["model_state_dict"] |= {"other." + k: v for k, v in tensors.items()}
    elif name == "empty":
        state = {"step": 3}
    elif name == "list":
        state = [1, 2]
    return state


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", r"has no middle1\.block1\.conv\.weight \(1 missing, 0 foreign"),
        ("foreign", r"has a tensor extra\.weight"),
        (
            "shape",
            r"middle1\.block1\.conv\.weight has the shape \(64, 64, 1, 1\), expected \(64, 64, 3, 3\)",
        ),
        ("transposed", r"time\.0\.weight has the shape \(8, 32\), expected \(32, 8\)"),
        ("nan", r"middle1\.block1\.conv\.weight has values that are not finite"),
        ("schedule", "1000 timesteps is neither the cosine nor the linear"),
        ("size", r"images of 30×30, but 4 levels need a multiple of 8"),
        ("no size", "doesn't say which image size"),
        ("not theirs", r"no tensor is called init_conv\.weight"),
        ("two", "holds 2 UNets"),
        ("empty", "has no model_state_dict"),
        ("list", "holds a list"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_reason(tmp_path, name, message):
    torch.save(broken(name), tmp_path / "a.pt")
    with pytest.raises(TedmError, match=message):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "b")
    assert not (tmp_path / "b" / checkpoint.DIGEST).exists()


@pytest.mark.parametrize("keep", [0, 100, 50_000, 2_000_000])
def test_a_truncated_checkpoint_is_refused(tmp_path, keep):
    (tmp_path / "a.pt").write_bytes(AUTHORS.read_bytes()[:keep])
    with pytest.raises(TedmError, match=r"a\.pt: .*truncated"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "b")


def test_a_wrong_image_size_for_an_import_is_refused(tmp_path):
    with pytest.raises(TedmError, match="trained on images of 32×32, not 64×64"):
        import_checkpoint(AUTHORS, tmp_path / "b", image_size=64)


# ── directories ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def copy(imported, tmp_path) -> Path:
    return Path(shutil.copytree(imported, tmp_path / "copy"))


@pytest.mark.parametrize("keep", [0, 5, 100, 100_000])
def test_truncated_weights_are_refused(copy, keep):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(TedmError, match=r"model\.safetensors: not a complete safetensors file"):
        backbones.load(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "digest.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(TedmError, match=name.replace(".", r"\.")):
        backbones.load(copy)


def test_weights_of_another_training_are_noticed(copy):
    other = UNet(8)
    checkpoint.write(copy.parent / "other", other, checkpoint.read(copy).description)
    shutil.copy(copy.parent / "other" / "model.safetensors", copy)
    with pytest.raises(TedmError, match=r"digest\.json: does not belong to model\.safetensors"):
        backbones.load(copy)


def test_weights_of_another_architecture_are_named(copy):
    description = json.loads((copy / "config.json").read_text())
    description["architecture"]["width"] = 16
    (copy / "config.json").write_text(json.dumps(description))
    with pytest.raises(TedmError, match=r"model\.safetensors: .* has the shape .*, expected"):
        backbones.load(copy)


@pytest.mark.parametrize("change", [{"format": 99}, {"architecture": {}}, {"image_shape": [1, 2]}])
def test_a_description_that_tedm_did_not_write_is_refused(copy, change):
    values = json.loads((copy / "config.json").read_text()) | change
    (copy / "config.json").write_text(json.dumps(values))
    with pytest.raises(TedmError, match=r"config\.json"):
        backbones.load(copy)


@pytest.mark.parametrize("shape", [(2, 1, 64, 64), (2, 3, 32, 32)])
def test_images_of_another_shape_are_refused(imported, shape):
    with pytest.raises(TedmError, match=r"takes \(N, 1, 32, 32\)"):
        backbones.load(imported).features(torch.zeros(shape), 1, torch.zeros(shape), "trained")


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_a_timestep_outside_the_chain_is_refused(imported, timestep):
    x = torch.zeros(1, 1, 32, 32)
    with pytest.raises(TedmError, match=r"outside the backbone's 0 … 999"):
        backbones.load(imported).features(x, timestep, x, "trained")


def test_the_digest_depends_on_weights_and_architecture_only(tmp_path):
    network = UNet(8, [1, 2])
    arguments = {"image_shape": (1, 16, 16), "input_range": (-1.0, 1.0), "diffusion": DiffusionConfig()}
    notes = {"data": {}, "training": {}}

    def digest(name: str, **changes) -> str:
        described = checkpoint.describe(network, **(arguments | notes | changes))
        return checkpoint.write(tmp_path / name, network, described)

    first = digest("a")
    assert digest("b", training={"seconds": 3}) == first
    assert digest("c", diffusion=DiffusionConfig(timesteps=500)) != first
    assert digest("d", image_shape=(1, 32, 32)) != first
    with torch.no_grad():
        network.stem.bias[0] += 1e-3
    assert digest("e") != first


# ── training ────────────────────────────────────────────────────────────────────────────────────

TINY = DDPMConfig(
    type="ddpm", data="tiny", width=8, multipliers=[1, 2], samples=4, sampling_steps=3,
    training=OptimizerConfig(steps=6, batch_size=4, validate_every=3, save_every=2, learning_rate=1e-3),
)  # fmt: skip


DECLARED = {"model.safetensors", "config.json", "digest.json", "losses.csv", "samples.png"}


def write_data(path: Path, splits: list[str], subjects: list[str] | None = None, size: int = 16) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (len(splits), 1, size, size), np.uint8)
    ids = [f"i{i}" for i in range(len(splits))]
    prepared.write(
        path, "Tiny", images, None, ids, subjects or ids, splits, ["lungs"], intensity_range=(0, 255),
        synthetic=True, source="drawn", licence="", cite="",
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "tiny.h5", ["unlabelled"] * 20 + ["test"] * 3)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "ddpm"
    train_backbone(data, TINY, 0, out)
    return out


def test_a_trained_backbone_has_its_files_and_loads(trained):
    assert {p.name for p in trained.iterdir()} >= {*DECLARED, "state"}
    backbone = backbones.load(trained)
    assert backbone.digest == json.loads((trained / "digest.json").read_text())["digest"]
    description = json.loads((trained / "config.json").read_text())
    assert description["data"]["synthetic"] is True
    assert (description["data"]["images"], description["data"]["validation_images"]) == (18, 2)
    assert description["training"]["best_step"] in (3, 6)
    assert description["training"]["validation_loss"] > 0
    assert (trained / "model.safetensors").stat().st_mode == (trained / "config.json").stat().st_mode


def test_training_twice_gives_the_same_digest(trained, data, tmp_path):
    train_backbone(data, TINY, 0, tmp_path / "again")
    assert (tmp_path / "again/digest.json").read_text() == (trained / "digest.json").read_text()
    train_backbone(data, TINY, 1, tmp_path / "seed")
    assert (tmp_path / "seed/digest.json").read_text() != (trained / "digest.json").read_text()


def test_batches_read_from_the_file_train_the_same_weights(trained, data, tmp_path, monkeypatch):
    import tedm.unlabelled

    monkeypatch.setattr(tedm.unlabelled.TrainingImages.__init__, "__defaults__", (0,))
    train_backbone(data, TINY, 0, tmp_path / "again")
    assert (tmp_path / "again/digest.json").read_text() == (trained / "digest.json").read_text()


def test_micro_batches_see_the_images_timesteps_and_noise_of_the_whole_batch(trained, data, tmp_path):
    parts = TINY.model_copy(update={"training": TINY.training.model_copy(update={"accumulate": 4})})
    train_backbone(data, parts, 0, tmp_path / "parts")
    logs = (trained / "losses.csv", tmp_path / "parts/losses.csv")
    whole, parts = (np.loadtxt(log, delimiter=",", skiprows=1, usecols=1) for log in logs)
    assert whole[0] == pytest.approx(parts[0], rel=1e-6)  # before any update
    np.testing.assert_allclose(whole, parts, rtol=1e-2)


def test_no_steps_give_random_weights_as_a_control(data, tmp_path):
    control = TINY.model_copy(update={"training": TINY.training.model_copy(update={"steps": 0})})
    train_backbone(data, control, 0, tmp_path / "random")
    assert backbones.load(tmp_path / "random").layer_shapes["up1"] == (8, 16, 16)
    assert not (tmp_path / "random/state").exists()
    assert {p.name for p in (tmp_path / "random").iterdir()} >= DECLARED


def test_a_finished_training_makes_deleted_outputs_again(data, tmp_path):
    train_backbone(data, TINY, 0, tmp_path)
    first = {name: (tmp_path / name).read_bytes() for name in DECLARED}
    for name in DECLARED:
        (tmp_path / name).unlink()
    train_backbone(data, TINY, 0, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in DECLARED} == first


@pytest.mark.parametrize(("samples", "size"), [(0, (70, 70)), (4, (84, 34)), (25, (192, 88))])
def test_the_grid_of_samples_has_real_images_and_as_many_drawn_ones_as_asked(data, tmp_path, samples, size):
    from PIL import Image

    settings = TINY.model_copy(update={"samples": samples})  # of 18 images of 16 × 16, 2 pixels apart
    train_backbone(data, settings, 0, tmp_path)
    assert Image.open(tmp_path / "samples.png").size == size


def test_samples_can_be_drawn_from_a_backbone_in_both_ways(trained, tmp_path):
    from PIL import Image

    from tedm.diffusion.sample import sample_backbone

    for name, options in {"a": {}, "b": {}, "c": {"seed": 1}}.items():
        sample_backbone(trained, tmp_path / name, count=3, steps=4, **options)
    first, again, other = ((tmp_path / n / "samples.png").read_bytes() for n in "abc")
    assert first == again != other
    assert Image.open(tmp_path / "a/samples.png").size == (34, 34)
    assert Image.open(tmp_path / "a/process.png").size[0] > 300
    with pytest.raises(TedmError, match="sampling_steps: 2000 is outside"):
        sample_backbone(trained, tmp_path, steps=2000)


@pytest.mark.parametrize("objective", ["image", "velocity"])
def test_other_objectives_train_and_draw(data, tmp_path, objective):
    diffusion = DiffusionConfig(
        objective=objective, loss="l2", p2_gamma=0.5, schedule="linear", timesteps=20
    )
    train_backbone(data, TINY.model_copy(update={"diffusion": diffusion}), 0, tmp_path / "b")
    assert backbones.load(tmp_path / "b").timesteps == 20


@pytest.mark.parametrize(
    ("splits", "subjects", "size", "message"),
    [
        (["unlabelled"], None, 16, "needs at least 2 subjects"),
        (["unlabelled"] * 3, ["a", "a", "a"], 16, "3 images of 1 subjects"),
        (["test"] * 3, None, 16, "0 images"),
        (["train"] * 3, None, 15, r"images of 15×15, but 2 levels need a multiple of 2"),
    ],
)
def test_data_that_cannot_train_a_backbone_are_refused(tmp_path, splits, subjects, size, message):
    file = write_data(tmp_path / "d.h5", splits, subjects, size)
    with pytest.raises(TedmError, match=message):
        train_backbone(file, TINY, 0, tmp_path / "b")


def test_slices_of_a_subject_are_not_split_between_training_and_validation(tmp_path):
    from tedm.unlabelled import split_rows

    subjects = [f"s{i // 4}" for i in range(40)]
    with prepared.PreparedSet(write_data(tmp_path / "d.h5", ["train"] * 40, subjects)) as opened:
        for seed in range(5):
            rows, kept = split_rows(opened, TINY.validation, TINY.validation_max, seed)
            assert sorted(rows + kept) == list(range(40))
            assert len(kept) == 4
            assert not {subjects[r] for r in rows} & {subjects[r] for r in kept}

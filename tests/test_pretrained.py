"""Pretrained networks of other libraries as backbones: the same features as a plain hooked forward."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_docs as docs
import torch
from safetensors.torch import save_file
from test_workflow import TINY, environment, snakemake
from tiny_backbone import data_set
from torch import Tensor, nn
from typer.testing import CliRunner

from tedm import backbones, cli, config
from tedm.backbones import adapter
from tedm.backbones.libraries import imported
from tedm.config import FeaturesConfig
from tedm.errors import TedmError
from tedm.features.extract import extract
from tedm.features.reader import FeatureStore

SHAPE = (1, 16, 16)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def library(name: str):
    """As the product imports it; not importorskip, to which a torchvision of another build is an error."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return imported(name)


# ── diffusers ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def diffusers():
    return library("diffusers")


def save_pipeline(diffusers, folder: Path, scheduler=None, **changes) -> Path:
    """What a person has on disk who trained with diffusers."""
    settings = {
        "sample_size": 16, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16),
        "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**(settings | changes))
    scheduler = scheduler or diffusers.DDPMScheduler(num_train_timesteps=100, beta_schedule="linear")
    diffusers.DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)
    return folder


def hooked(unet, x_t: Tensor, timestep: int) -> dict[str, Tensor]:
    """Outputs of the up blocks in the library's own forward pass."""
    kept: dict[str, Tensor] = {}
    handles = [
        block.register_forward_hook(lambda m, i, out, name=f"up{n}": kept.update({name: out}))
        for n, block in enumerate(unet.up_blocks)
    ]
    with torch.no_grad():
        unet(x_t, timestep)
    for handle in handles:
        handle.remove()
    return kept


@pytest.fixture(scope="module")
def pipeline(diffusers, tmp_path_factory) -> Path:
    return save_pipeline(diffusers, tmp_path_factory.mktemp("diffusers") / "pipeline")


@pytest.mark.parametrize("given", ["pipeline", "unet"])
def test_features_of_a_diffusers_pipeline_are_its_up_blocks_outputs(diffusers, pipeline, tmp_path, given):
    path = pipeline if given == "pipeline" else pipeline / "unet"
    adapter.import_backbone(path, tmp_path / "b", "diffusers", {}, SHAPE)
    backbone = backbones.load(tmp_path / "b")
    assert (backbone.timesteps, backbone.image_shape) == (100, SHAPE)
    assert backbone.layer_shapes == {"up0": (16, 16, 16), "up1": (8, 16, 16)}
    images, noise = torch.rand(3, *SHAPE), draw(3, *SHAPE)
    unet = diffusers.UNet2DModel.from_pretrained(pipeline / "unet").eval()
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 100))  # the linear schedule (Ho et al. 2020)
    for t in (0, 7, 99):
        x_t = float(np.sqrt(alphas[t])) * (2 * images - 1) + float(np.sqrt(1 - alphas[t])) * noise
        expected = hooked(unet, x_t, t)
        found = backbone.features(images, t, noise)
        assert list(found) == ["up0", "up1"]
        for layer, value in found.items():
            torch.testing.assert_close(value, expected[layer], rtol=1e-4, atol=1e-5)


def test_the_librarys_own_add_noise_gives_the_same_input(diffusers, tmp_path):
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2")
    adapter.import_backbone(
        save_pipeline(diffusers, tmp_path / "p", scheduler), tmp_path / "b", "diffusers", {}, SHAPE
    )
    backbone = backbones.load(tmp_path / "b")
    images, noise = torch.rand(2, *SHAPE), draw(2, *SHAPE)
    x_t = scheduler.add_noise(2 * images - 1, noise, torch.tensor([30, 30]))
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "p/unet").eval()
    for layer, value in hooked(unet, x_t, 30).items():
        torch.testing.assert_close(backbone.features(images, 30, noise)[layer], value, rtol=1e-4, atol=1e-5)


def test_grey_images_are_repeated_and_each_channel_gets_noise_of_its_own(diffusers, tmp_path):
    folder = save_pipeline(diffusers, tmp_path / "p", in_channels=3, out_channels=3)
    adapter.import_backbone(folder, tmp_path / "b", "diffusers", {}, SHAPE)
    backbone = backbones.load(tmp_path / "b")
    images, noise = torch.rand(2, *SHAPE), draw(2, *SHAPE)
    alpha = float(np.cumprod(1 - np.linspace(1e-4, 0.02, 100))[40])
    rows = np.arange(16)
    channels = []
    for shift in (0, 5, 10):  # c·16/3, rounded down
        moved = noise[:, 0][:, (rows - shift) % 16]
        channels.append(alpha**0.5 * (2 * images[:, 0] - 1) + (1 - alpha) ** 0.5 * moved)
    unet = diffusers.UNet2DModel.from_pretrained(folder / "unet").eval()
    for layer, value in hooked(unet, torch.stack(channels, 1), 40).items():
        torch.testing.assert_close(backbone.features(images, 40, noise)[layer], value, rtol=1e-4, atol=1e-5)


SCHEDULER = "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "shape", "message"),
    [
        (lambda p: None, (1, 32, 32), "trained on images of 16×16, not 32×32; set image.size"),
        (lambda p: None, (3, 16, 16), "takes 1 channels, the images have 3"),
        (lambda p: (p / "unet/config.json").unlink(), SHAPE, "not a diffusers folder"),
        (lambda p: shutil.rmtree(p / "scheduler"), SHAPE, r"no scheduler/scheduler_config\.json"),
        (lambda p: edit(p / "unet/config.json", _class_name="UNet2DConditionModel"), SHAPE,
         "describes a UNet2DConditionModel, expected UNet2DModel"),
        (lambda p: edit(p / "unet/config.json", num_class_embeds=10), SHAPE, "wants a class label"),
        (lambda p: edit(p / "unet/config.json", layers_per_block=2), SHAPE, "not the weights of"),
        (lambda p: edit(p / "unet/config.json", block_out_channels=[8, 32]), SHAPE, "not the weights of"),
        (lambda p: edit(p / SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler"), SHAPE,
         "gives no table of noise"),
        (lambda p: edit(p / SCHEDULER, _class_name="os"), SHAPE, "os is no scheduler"),
        (lambda p: edit(p / "model_index.json", vqvae=["diffusers", "VQModel"]), SHAPE, "latent diffusion"),
        (lambda p: (p / WEIGHTS).unlink(), SHAPE, "other formats are not"),
        (lambda p: (p / WEIGHTS).write_bytes((p / WEIGHTS).read_bytes()[:5000]), SHAPE,
         "not a complete safetensors file"),
    ],
)  # fmt: skip
def test_a_diffusers_folder_that_does_not_fit_is_refused(
    diffusers, pipeline, tmp_path, spoil, shape, message
):
    copy = Path(shutil.copytree(pipeline, tmp_path / "p"))
    spoil(copy)
    with pytest.raises(TedmError, match=message):
        adapter.import_backbone(copy, tmp_path / "b", "diffusers", {}, shape)
    assert not (tmp_path / "b/digest.json").exists()


# ── timm ────────────────────────────────────────────────────────────────────────────────────────

VIT = {"patch_size": 4, "embed_dim": 16, "depth": 6, "num_heads": 2}
CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}


@pytest.fixture(scope="module")
def timm():
    return library("timm")


def save_vit(timm, path: Path, size: int = 16, classes: int = 5, **changes) -> nn.Module:
    torch.manual_seed(1)
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=size, num_classes=classes, **(VIT | changes)
    ).eval()
    save_file(network.state_dict(), path)
    return network


def normalised(images: Tensor, mean: float = 0.5, std: float = 0.5) -> Tensor:
    return ((images - mean) / std).repeat(1, 3, 1, 1)


def test_features_of_a_vision_transformer_are_its_blocks_outputs(timm, tmp_path):
    network = save_vit(timm, tmp_path / "vit.safetensors")
    settings = {"model": "vit_tiny_patch16_224", "options": VIT}
    adapter.import_backbone(tmp_path / "vit.safetensors", tmp_path / "b", "timm", settings, SHAPE)
    backbone = backbones.load(tmp_path / "b")
    assert backbone.timesteps == 1
    assert backbone.layer_shapes == {f"layer{i}": (16, 4, 4) for i in (0, 2, 3, 5)}
    kept: dict[str, Tensor] = {}
    for i, block in enumerate(network.blocks):
        block.register_forward_hook(lambda m, x, out, name=f"layer{i}": kept.update({name: out}))
    images = torch.rand(3, *SHAPE)
    with torch.no_grad():
        network.forward_features(normalised(images))
    found = backbone.features(images, 0, draw(3, *SHAPE))
    for layer, value in found.items():
        tokens = kept[layer][:, 1:]  # the first is the class token
        torch.testing.assert_close(value, tokens.mT.reshape(3, 16, 4, 4), rtol=1e-4, atol=1e-5)
    for layer, value in backbone.features(images, 0, draw(3, *SHAPE, seed=9)).items():
        assert torch.equal(value, found[layer])  # it knows no noise


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}])
def test_features_of_a_convnet_are_its_stages_coarsest_first(timm, tmp_path, wrap):
    torch.manual_seed(2)
    settings = {
        "model": "convnext_atto",
        "options": CONVNEXT,
        "mean": [0.2],
        "std": [0.3],
        "input_size": 32,
    }
    network = timm.create_model("convnext_atto", num_classes=4, **CONVNEXT).eval()
    torch.save(wrap(network.state_dict()), tmp_path / "net.pth")
    adapter.import_backbone(tmp_path / "net.pth", tmp_path / "b", "timm", settings, SHAPE)
    backbone = backbones.load(tmp_path / "b")
    assert list(backbone.layer_shapes.items()) == [
        ("layer3", (32, 1, 1)), ("layer2", (24, 2, 2)), ("layer1", (16, 4, 4)), ("layer0", (8, 8, 8)),
    ]  # fmt: skip
    images = torch.rand(2, *SHAPE)
    x = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear", align_corners=False)
    with torch.no_grad():
        x = network.stem(normalised(x, 0.2, 0.3))
        for i, stage in enumerate(network.stages):
            x = stage(x)
            found = backbone.features(images, 0, images)[f"layer{i}"]
            torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)


def test_position_embeddings_of_another_image_size_are_fitted_as_timm_does(timm, tmp_path):
    save_vit(timm, tmp_path / "vit.safetensors", size=32)
    settings = {"model": "vit_tiny_patch16_224", "options": VIT, "layers": [5]}
    adapter.import_backbone(tmp_path / "vit.safetensors", tmp_path / "b", "timm", settings, SHAPE)
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, num_classes=5, **VIT, pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "vit.safetensors"), "custom_load": False,
                                "num_classes": 5},
    ).eval()  # fmt: skip
    images = torch.rand(2, *SHAPE)
    with torch.no_grad():
        expected = network.forward_intermediates(normalised(images), indices=[5], intermediates_only=True)[
            0
        ]
    found = backbones.load(tmp_path / "b").features(images, 0, images)
    torch.testing.assert_close(found["layer5"], expected, rtol=1e-4, atol=1e-5)


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize(
    ("settings", "spoil", "message"),
    [
        ({"model": "vit_tiny_patch17"}, None, "cannot build vit_tiny_patch17"),
        ({"model": "resnet10t", "options": {}}, None, r"has no network\."),
        ({"options": VIT | {"depth": 7}}, None, r"has no network\.blocks\.6"),
        ({"options": VIT | {"depth": 5}}, None, r"has a tensor network\.blocks\.5"),
        ({"layers": [6]}, None, "has no layer 6; it has 0 … 5"),
        ({"mean": [0.1, 0.2]}, None, "mean has 2 values for 3 channels"),
        ({"modle": 3}, None, "modle"),
        ({"model": "hf-hub:some/thing"}, None, "model"),
        ({}, lambda p: p.write_bytes(p.read_bytes()[:999]), "not a complete safetensors file"),
        ({}, lambda p: p.unlink(), "no such file or folder"),
        ({}, lambda p: (p.unlink(), p.mkdir()), "a folder; expected the file of weights"),
    ],
)
def test_timm_weights_that_do_not_fit_are_refused(timm, tmp_path, settings, spoil, message):
    path = tmp_path / "vit.safetensors"
    save_vit(timm, path)
    if spoil:
        spoil(path)
    given = {"model": "vit_tiny_patch16_224", "options": VIT} | settings
    with pytest.raises(TedmError, match=message):
        adapter.import_backbone(path, tmp_path / "b", "timm", given, SHAPE)
    assert not (tmp_path / "b/digest.json").exists()


def test_a_hostile_file_of_weights_is_refused_and_does_not_run(timm, tmp_path):
    trace = tmp_path / "it-ran"
    torch.save({"state_dict": Hostile(trace)}, tmp_path / "net.pth")
    settings = {"model": "vit_tiny_patch16_224", "options": VIT}
    with pytest.raises(TedmError, match=r"refused: its pickle asks for posix\.mkdir"):
        adapter.import_backbone(tmp_path / "net.pth", tmp_path / "b", "timm", settings, SHAPE)
    assert not trace.exists()


# ── any adapter ─────────────────────────────────────────────────────────────────────────────────


class Shifted(adapter.Adapter):
    """The image times a learned factor, at two resolutions."""

    @classmethod
    def read(cls, path, settings, image_shape):
        return {"name": settings.get("name", "up")}, {"factor": torch.tensor([float(path.read_text())])}

    def __init__(self, description, image_shape):
        super().__init__(description, image_shape)
        self.factor = nn.Parameter(torch.zeros(1))

    def activations(self, images, timestep, noise, input_range):
        half = torch.nn.functional.avg_pool2d(images, 2)
        return {self.description["name"] + "0": half * self.factor, "up1": images * self.factor}


OWN = f"{__name__}:Shifted"


@pytest.fixture
def own(tmp_path) -> Path:
    (tmp_path / "weights.txt").write_text("3.0")
    adapter.import_backbone(tmp_path / "weights.txt", tmp_path / "own", OWN, {}, SHAPE)
    return tmp_path / "own"


def test_an_adapter_of_ones_own_is_imported_stored_and_loaded(own):
    backbone = backbones.load(own, allow_imports=True)
    images = torch.rand(2, *SHAPE)
    torch.testing.assert_close(backbone.features(images, 0, images)["up1"], images * 3)
    assert backbone.layer_shapes == {"up0": (1, 8, 8), "up1": (1, 16, 16)}
    assert backbone.digest == json.loads((own / "digest.json").read_text())["digest"]
    with pytest.raises(TedmError, match="importing it runs its code"):
        backbones.load(own)
    with pytest.raises(TedmError, match="only one, 0"):
        backbone.features(images, 1, images)


def test_features_of_any_adapter_go_through_the_store(own, tmp_path):
    backbone = backbones.load(own, allow_imports=True)
    data = data_set(tmp_path / "d.h5", images=5)
    settings = FeaturesConfig(dtype="float32", batch_size=2, images_per_shard=2)
    extract(backbone, data, tmp_path / "f.zarr", tmp_path / "m.json", 0, settings, noise_seed=0)
    store = FeatureStore.open(str(tmp_path / "f.zarr"), backbone_digest=backbone.digest)
    from tedm.data.prepared import PreparedSet

    with PreparedSet(data) as prepared:
        np.testing.assert_array_equal(store.read([0, 3], 0)["up1"], prepared.images([0, 3]) * 3)
    assert store.timesteps == (0,)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"adapter": "nothing"}, "backbone type nothing: not known"),
        ("config.json", {"adapter": "tedm.unet:UNet"}, "is not a subclass of tedm.backbones.Adapter"),
        ("config.json", {"adapter": "tedm.unet:Missing"}, "cannot import"),
        ("config.json", {"layers": [["up0", [1, 8, 8]]]}, "does not belong to"),
        ("config.json", {"format": 2}, "format"),
        ("config.json", {"timesteps": None}, "timesteps"),
        ("digest.json", None, "incomplete"),
        ("model.safetensors", None, "no such file"),
    ],
)
def test_a_changed_directory_is_noticed(own, file, change, message):
    if change is None:
        (own / file).unlink()
    else:
        edit(own / file, **change)
    with pytest.raises(TedmError, match=message):
        backbones.load(own, allow_imports=True)


def test_a_library_that_is_not_installed_is_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    (tmp_path / "w.pth").touch()
    with pytest.raises(TedmError, match=r"pip install 'tedm\[timm\]'"):
        adapter.import_backbone(tmp_path / "w.pth", tmp_path / "b", "timm", {"model": "resnet10t"}, SHAPE)


def test_other_stages_say_that_an_imported_encoder_cannot_be_sampled(own, tmp_path):
    from tedm.diffusion.sample import sample_backbone

    with pytest.raises(TedmError, match="which gives features and nothing else"):
        sample_backbone(own, tmp_path / "s")


# ── configuration ───────────────────────────────────────────────────────────────────────────────

ENCODER = {"type": "timm", "path": "vit.safetensors", "model": "vit_tiny_patch16_224"}


def experiment(backbone: dict, **head) -> dict:
    heads = {"A": TINY["heads"]["TEDM"] | {"backbone": "ddpm"}}
    heads["B"] = {"type": "ridge", "timesteps": [0], "backbone": "other"} | head
    return TINY | {"backbones": TINY["backbones"] | {"other": backbone}, "heads": heads}


def test_heads_of_one_experiment_read_different_backbones():
    parsed = config.parse(experiment(ENCODER))
    assert parsed.backbones["other"] == config.TimmConfig.model_validate(ENCODER)
    assert (parsed.backbone_of("A"), parsed.backbone_of("B")) == ("ddpm", "other")
    own = config.parse(experiment({"type": "json:Own", "path": "x", "depth": 3}))
    assert own.backbones["other"].model_dump() == {"type": "json:Own", "path": "x", "depth": 3}


@pytest.mark.parametrize(
    ("backbone", "head", "message"),
    [
        (ENCODER, {"timesteps": [1, 10]}, r"heads.B.timesteps: \[1, 10\], but other is a timm network"),
        (ENCODER | {"modle": "x"}, {}, r"backbones.other.modle: unknown key, did you mean model\?"),
        ({"type": "tim", "path": "x"}, {}, r"backbones.other.type: no tim, did you mean timm\?"),
        ({"path": "x"}, {}, r"backbones.other.type: missing"),
        ({"type": "diffusers"}, {}, r"backbones.other.path: missing"),
        (
            {"type": "ddpm", "data": "cxr", "widht": 8},
            {},
            "backbones.other.widht: unknown key, did you mean",
        ),
        ({"type": "no_such_module:Own", "path": "x"}, {}, "Python finds no module for no_such_module:Own"),
        (ENCODER | {"options": {"a": {1: 2, "b": 3}}}, {}, "backbones.other: settings must be"),
    ],
)
def test_mistakes_in_a_backbones_settings_are_named(backbone, head, message):
    with pytest.raises(TedmError, match=message):
        config.parse(experiment(backbone, **head))


def test_the_command_line_imports_what_the_workflow_asks_for(timm, tmp_path):
    save_vit(timm, tmp_path / "vit.safetensors")
    settings = json.dumps({"model": "vit_tiny_patch16_224", "options": VIT})
    arguments = ["backbone", "import", str(tmp_path / "vit.safetensors"), "--out", str(tmp_path / "b")]
    run = CliRunner().invoke(cli.app, [*arguments, "--type", "timm", "--settings", settings])
    assert "--image-size: missing" in str(run.exception)
    run = CliRunner().invoke(
        cli.app, [*arguments, "--type", "timm", "--settings", settings, "--image-size", "16"]
    )
    assert run.exit_code == 0, run.exception
    assert backbones.load(tmp_path / "b").timesteps == 1


@pytest.mark.slow
def test_a_workflow_with_a_diffusion_model_a_pipeline_and_an_encoder_ends_in_one_table(
    timm, diffusers, tmp_path
):
    import yaml

    save_vit(timm, tmp_path / "vit.safetensors", size=32)
    save_pipeline(diffusers, tmp_path / "pipeline", sample_size=32)
    settings = yaml.safe_load(yaml.safe_dump(TINY)) | {"baselines": {}}
    settings["backbones"]["ddpm"]["training"].update(steps=4)
    settings["evaluation"].update(train_sizes=[4])
    settings["backbones"] |= {
        "encoder": ENCODER | {"options": VIT},
        "pipeline": {"type": "diffusers", "path": "pipeline"},
    }
    settings["heads"] = {
        "Ridge": {"type": "ridge", "backbone": "ddpm", "timesteps": [10]},
        "Pipeline": {"type": "ridge", "backbone": "pipeline", "timesteps": [10]},
        "Encoder": {"type": "ridge", "backbone": "encoder", "timesteps": [0]},
        "EncoderMLP": TINY["heads"]["TEDM"] | {"backbone": "encoder", "timesteps": [0]},
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(settings))
    run = snakemake(tmp_path, "results/table1.csv")
    assert run.returncode == 0, run.stderr[-5000:]
    import pandas as pd

    table = pd.read_csv(tmp_path / "results/table1_long.csv")
    assert set(table.method) == {"Ridge", "Pipeline", "Encoder", "EncoderMLP"}
    assert table["mean"].between(0, 100).all()
    again = snakemake(tmp_path, "--dry-run", "results/table1.csv")
    assert "Nothing to be done" in again.stdout + again.stderr


def test_nothing_of_these_libraries_is_loaded_without_need():
    code = (
        "import sys, tedm.backbones, tedm.cli;"
        "sys.exit(bool({'timm', 'diffusers', 'torchvision'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == 0


# ── documentation ───────────────────────────────────────────────────────────────────────────────

PAGE = "docs/backbones.md"
SNIPPETS = range(len(docs.blocks(PAGE, "yaml")))


@pytest.fixture
def my_backbones(tmp_path, monkeypatch):
    """The module of the docs, where Python finds it."""
    (tmp_path / "my_backbones.py").write_text(docs.blocks(PAGE, "python")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_backbones", None)


@pytest.mark.parametrize("index", SNIPPETS)
def test_every_configuration_of_the_page_fits_into_the_demo(my_backbones, index):
    import yaml

    snippet = yaml.safe_load(docs.blocks(PAGE, "yaml")[index])
    heads = snippet.get("heads", {"LR": {"type": "ridge", "timesteps": [10]}})
    parsed = config.parse(docs.DEMO | snippet | {"heads": heads})
    assert set(parsed.backbones) == set(snippet["backbones"])


def test_the_adapter_of_the_page_is_imported_and_gives_its_responses(my_backbones, tmp_path):
    import yaml
    from scipy.ndimage import correlate

    entry = yaml.safe_load(docs.blocks(PAGE, "yaml")[-1])["backbones"]["filters"]
    kernels = np.random.default_rng(0).standard_normal((4, 3, 3))
    np.save(tmp_path / entry["path"], kernels)
    settings = {k: v for k, v in entry.items() if k not in ("type", "path")}
    adapter.import_backbone(tmp_path / entry["path"], tmp_path / "b", entry["type"], settings, SHAPE)
    backbone = backbones.load(tmp_path / "b", allow_imports=True)
    assert list(backbone.layer_shapes) == ["half", "full"]
    images = torch.rand(2, *SHAPE)
    found = backbone.features(images, 0, images)["full"]
    for n in range(2):
        for k in range(4):
            expected = correlate(images[n, 0].double().numpy(), kernels[k], mode="constant") * entry["gain"]
            np.testing.assert_allclose(found[n, k], expected, atol=1e-5)

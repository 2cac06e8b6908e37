"""Every setting of an experiment: type, default, unit, meaning and source; errors name the YAML path."""

import difflib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from tedm.digests import canonical_json
from tedm.errors import TedmError

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]  # becomes part of a path
Directory = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]+$")]  # becomes part of shell commands
LOCATION = re.compile(r"(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_.=-]+)*|[A-Za-z0-9_./-]+)/?")
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
Multipliers = Annotated[list[PositiveInt], Field(min_length=2, max_length=8)]
Normalise = Literal["none", "percentiles", "zscore"]
STUDY_TIMESTEPS = [1, 10, 25, 50, 200, 400, 600, 800]  # [Rosnati 2023, 4]


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# ── data ────────────────────────────────────────────────────────────────────────────────────────


class PhantomSource(Section):
    """Synthetic chest radiographs drawn by this project."""

    type: Literal["phantom"]
    site: Literal["chestxray8", "jsrt", "nih", "montgomery"]  # whose looks the images imitate
    count: int = Field(ge=1)  # images

    @property
    def labelled(self) -> bool:
        """Whether there are masks."""
        return True


class BrainSource(Section):
    """Synthetic brain volumes drawn by this project, written as NIfTI files in a published layout."""

    type: Literal["brain"]
    layout: Literal["ukbb", "brats"]  # whose files they imitate; the source of that name reads them back
    count: int = Field(ge=1)  # volumes
    voxel_mm: float = Field(4.0, ge=2.0, le=8.0)  # side of a voxel
    fit: Literal["stretch", "pad", "crop"] = "pad"

    @property
    def labelled(self) -> bool:
        """Whether there are masks."""
        return True


class MeasuredSource(Section):
    """What every source of measured images can be told."""

    licence: str = ""  # terms of use, copied into everything made from the images; absent: the source's own
    cite: str = ""  # whom to cite
    fit: Literal["stretch", "pad", "crop"] = "stretch"  # how a non-square image becomes square
    limit: int | None = Field(None, ge=1)  # use only the first so many images or volumes, by name
    on_error: Literal["fail", "skip"] = "fail"  # an image that cannot be used: stop, or leave it out

    @property
    def labelled(self) -> bool:
        """Whether there are masks, as far as the settings tell."""
        return getattr(self, "masks", "") is not None


class FolderSource(MeasuredSource):
    """A folder of images, with a folder of masks whose files have the same names."""

    type: Literal["folder"]
    images: str  # folder, relative to data_root
    masks: str | dict[str, str] | None = None  # folder, or one for each class; absent: unlabelled
    mask_suffix: str = ""  # what the masks' names have behind the image's: _mask
    subject: str | None = None  # regular expression; its group is the subject in a name: ^(P\d+)_
    resize_masks: bool = False  # bring a mask of another size to its image's, instead of refusing it
    links: bool = False  # follow symbolic links that lead out of the folder


class TableSource(MeasuredSource):
    """A CSV or Parquet table with one row per image."""

    type: Literal["table"]
    table: str  # .csv or .parquet, relative to data_root
    folder: str | None = None  # paths in the table start here; absent: where the table lies
    image: str = "image"  # column: path of the image
    mask: str | None = "mask"  # column: path of its mask, empty where it has none; null: no masks
    subject: str | None = "subject"  # column: who is shown; null: every image is another one
    id: str | None = "id"  # column: name of the image; null: its path without suffix
    resize_masks: bool = False  # bring a mask of another size to its image's, instead of refusing it

    @property
    def labelled(self) -> bool:
        """Whether a column of masks is named."""
        return self.mask is not None


class NiftiSource(MeasuredSource):
    """A folder of NIfTI volumes, cut to slices, with label volumes in a second folder."""

    type: Literal["nifti"]
    images: str  # folder, relative to data_root
    masks: str | None = None  # folder of label volumes of the same names; absent: unlabelled
    channels: list[str] = Field([""], min_length=1)  # behind the name, in the file of each channel: _t1
    mask_suffix: str = ""  # what the label volumes have behind it
    axis: Literal["axial", "coronal", "sagittal"] = "axial"  # slices are perpendicular to it
    labels: dict[str, int | list[int]] | None = None  # class → values; absent: 1 … K as image.classes
    window: Pair | None = None  # values that become black and white
    percentiles: tuple[float, float] = (1.0, 99.0)  # of a volume's non-zero voxels, for black and white
    slices: Literal["all", "labelled"] = "all"  # labelled: only those that show a class


class DicomSource(MeasuredSource):
    """A folder of single-frame DICOM files, searched in depth, with masks of the same names."""

    type: Literal["dicom"]
    images: str  # folder, relative to data_root
    masks: str | None = None  # folder, relative to data_root; absent: unlabelled
    mask_suffix: str = ""  # what the masks' names have behind the image's
    window: Pair | Literal["file"] | None = None
    # window: centre and width, after the rescale slope; file: its own; absent: all values
    subject: Literal["patient", "image"] = "patient"  # patient: told apart by a hash of PatientID
    resize_masks: bool = False
    links: bool = False


class ChestXray14Source(MeasuredSource):
    """ChestX-ray8/14 of the NIH Clinical Center: 112,120 PNG in images_001 … images_012; no masks."""

    type: Literal["chestxray14"]
    folder: str  # holds the images' folders and Data_Entry_2017*.csv
    subject: Literal["patient", "image"] = "patient"
    # image: as the study, whose list puts images of 8,124 patients into two or three splits

    @property
    def labelled(self) -> bool:
        """There are no masks."""
        return False


class JSRTSource(MeasuredSource):
    """JSRT: 247 raw .IMG files or PNG, with the SCR masks."""

    type: Literal["jsrt"]
    images: str  # folder of JPCLN001.IMG … JPCNN093.IMG, or PNG of these names; searched in depth
    masks: str | None = None  # SCR folder: fold1/masks/left lung/JPCLN002.gif …; absent: unlabelled


class XLSorSource(MeasuredSource):
    """NIH chest X-rays with the lung masks of XLSor (Tang et al. 2019)."""

    type: Literal["xlsor"]
    folder: str  # holds images/NIH_0010.png … and masks/NIH_0010_mask.png …
    one_per_patient: bool = True  # 95 images, as the study used; false: all 100


class MontgomerySource(MeasuredSource):
    """Montgomery County chest X-rays with masks of the left and the right lung."""

    type: Literal["montgomery"]
    folder: str  # MontgomerySet: holds CXR_png and ManualMask


class UKBBSource(MeasuredSource):
    """UK Biobank T1 volumes (field 20252) with the structures that FIRST found."""

    type: Literal["ukbb"]
    folder: str  # holds {eid}_20252_2_0.zip as downloaded, or folders of that name
    fit: Literal["stretch", "pad", "crop"] = "pad"


class BraTSSource(MeasuredSource):
    """BraTS training data: four MR modalities and tumour labels."""

    type: Literal["brats"]
    folder: str  # holds one folder per patient, searched in depth (HGG/, LGG/)
    fit: Literal["stretch", "pad", "crop"] = "pad"
    enhancing: int = 4  # label of the enhancing tumour; 3 from 2023 on


VOLUMES = (BrainSource, NiftiSource, UKBBSource, BraTSSource)  # their units are cut to slices

Source = Annotated[
    PhantomSource
    | BrainSource
    | FolderSource
    | TableSource
    | NiftiSource
    | DicomSource
    | ChestXray14Source
    | JSRTSource
    | XLSorSource
    | MontgomerySource
    | UKBBSource
    | BraTSSource,
    Field(discriminator="type"),
]


class SplitConfig(Section):
    """Which image is train, val or test: a list, a column of a table, or numbers to draw."""

    file: str | None = None  # CSV, relative to data_root; or the name of a split that ships with tedm
    column: str | None = None  # of the source's table, which says train, val, test or unlabelled
    train: int | float = 0  # count (int) or fraction (float) of the subjects
    val: int | float = 0
    test: int | float = 0
    unlabelled: int | float = 0
    stratify: str | None = None  # column of the source's table whose values every split has its share of

    @model_validator(mode="after")
    def _something(self) -> "SplitConfig":
        drawn = [self.train, self.val, self.test, self.unlabelled]
        if (
            any(isinstance(x, float) and x > 1 for x in drawn)
            or sum(x for x in drawn if isinstance(x, float)) > 1 + 1e-9
        ):
            raise ValueError("fractions add up to more than 1 (whole numbers count images)")
        given = [self.file is not None, self.column is not None, any(drawn)]
        if not any(given):
            raise ValueError("give `file`, `column`, or numbers for train, val, test, unlabelled")
        if sum(given) > 1:
            raise ValueError("give either `file`, `column` or numbers, not both")
        if self.stratify is not None and not any(drawn):
            raise ValueError("only a drawn split can be stratified; give numbers, or remove `stratify`")
        if any(x < 0 for x in drawn):
            raise ValueError("a split cannot be negative")
        return self

    @property
    def drawn(self) -> bool:
        """Whether it is drawn, not given."""
        return self.file is None and self.column is None


class DatasetConfig(Section):
    """One data set: where it comes from and how it is split."""

    label: str  # its name in tables and figures
    source: Source
    split: SplitConfig


class Normalising(Section):
    """How each image's greys are scaled: per channel, at its own size, before it is padded or resized.

    none: by one range for the whole data set. percentiles: the image's 1st and 99th percentile become 0 and
    1 (MONAI's ScaleIntensityRangePercentiles). zscore: mean 0 and standard deviation 1 (nnU-Net), then
    -3 … 3 become 0 … 1, since networks see images in [0, 1]. Values beyond are clipped.
    """

    normalise: Normalise = "none"  # of 2-D images; volumes are scaled by their source

    @model_serializer(mode="wrap")
    def _none_is_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What was made before this setting existed keeps its settings, so nothing is made again.
        said: dict[str, Any] = dump(self)
        if self.normalise == "none":
            said.pop("normalise", None)
        return said


class ImageConfig(Normalising):
    """What the network sees."""

    size: int = Field(128, ge=8, le=4096)  # pixels; images are square
    channels: int = Field(1, ge=1, le=16)
    classes: list[str] = Field(["lungs"], min_length=1)  # names of the mask's classes


# ── augmentation ────────────────────────────────────────────────────────────────────────────────


class AugmentationConfig(Section):
    """Random changes of training images; each is drawn uniformly from its range. 0: none of it.

    The ranges were chosen on JSRT's validation images and phantoms (docs/results/xray64.md).
    """

    gamma: float = Field(0.5, ge=0, le=2)  # exponent of intensities in [0, 1], exp(±gamma)
    contrast: float = Field(0.4, ge=0, le=2)  # factor around each channel's mean, exp(±contrast)
    brightness: float = Field(0.15, ge=0, le=1)  # added to intensities in [0, 1], ±brightness
    zoom: float = Field(0.2, ge=0, le=1)  # factor of the size, exp(±zoom)
    rotation: float = Field(9.0, ge=0, le=180)  # degrees, ±rotation
    shift: float = Field(0.06, ge=0, le=0.5)  # along each axis, share of the side, ±shift


# Of slices of volumes. A gamma bends intensities around black, and 0 is no black where a modality was
# standardised (BraTS) or calibrated (CT); contrast and brightness stay within what scanners differ by.
VOLUME_AUGMENTATION = AugmentationConfig(gamma=0, contrast=0.2, brightness=0.05)

Augmenting = AugmentationConfig | Literal["study"]  # study: crops, brightness, contrast [authors' code]


def _augment_kind(value: Any) -> str | None:
    """Which of the ways to state an augmentation a value is."""
    if isinstance(value, Mapping | AugmentationConfig):
        return "ranges"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "study" if value == "study" else None


_Ranges = Annotated[AugmentationConfig, Tag("ranges")]
_Study = Annotated[Literal["study"], Tag("study")]
_True = Annotated[Literal[True], Tag("true")]
_False = Annotated[Literal[False], Tag("false")]
# With tags a wrong value is one error, not one for each of the ways.
Augment = Annotated[
    _True | _False | _Ranges | _Study,
    Discriminator(
        _augment_kind,
        custom_error_type="augment",
        custom_error_message="expected true, false, study, or ranges such as gamma: 0.3",
    ),
]
AlwaysAugment = Annotated[
    _True | _Ranges | _Study,
    Discriminator(
        _augment_kind,
        custom_error_type="augment",
        custom_error_message="expected true, study, or ranges such as gamma: 0.3",
    ),
]


# ── diffusion backbone ──────────────────────────────────────────────────────────────────────────


class DiffusionConfig(Section):
    """The forward process and the objective."""

    timesteps: int = Field(1000, ge=2)  # T, length of the forward chain [Rosnati 2023, 3]
    schedule: Literal["cosine", "linear"] = "cosine"  # of beta_t [Nichol & Dhariwal 2021, eq. 17]
    objective: Literal["noise", "image", "velocity"] = "noise"  # what the UNet predicts [Ho 2020]
    loss: Literal["l1", "l2"] = "l1"  # [authors' code]
    p2_gamma: float = Field(0.0, ge=0)  # loss weight (k + SNR)^-gamma [Choi 2022, eq. 8]; 0: none
    p2_k: float = Field(1.0, gt=0)


class OptimizerConfig(Section):
    """How a network is trained."""

    steps: int = Field(100_000, ge=0)  # optimizer steps [A.3]; 0: random weights, a control
    batch_size: int = Field(16, ge=1)  # images per step [authors' code; the paper prints 4]
    learning_rate: float = Field(1e-4, gt=0)  # Adam [A.3]
    warmup: int = Field(0, ge=0)  # steps over which the rate rises linearly from 0
    decay: Literal["none", "cosine"] = "none"  # of the rate, to 0 at the last step
    accumulate: int = Field(1, ge=1)  # micro-batches per step; several processes share them
    clip: float | None = Field(None, gt=0)  # largest norm of the gradient
    ema: float | None = Field(None, gt=0, lt=1)  # decay of an average of the weights, which is then kept
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast
    compile: bool = False  # torch.compile; needs a C++ compiler on the CPU
    validate_every: int = Field(100, ge=1)  # steps [authors' code]
    save_every: int = Field(100, ge=1)  # steps between resumable states


class DDPMConfig(Section):
    """The denoising diffusion model of this project."""

    type: Literal["ddpm"]
    data: Name  # data set whose unlabelled images it learns
    validation: float = Field(0.1, gt=0, lt=1)  # share of them kept for the validation loss …
    validation_max: int = Field(512, ge=1)  # … but at most so many images
    width: int = Field(64, ge=8, multiple_of=8)  # channels of the first level
    multipliers: Multipliers = [1, 2, 4, 8]  # of the width, one per level
    diffusion: DiffusionConfig = DiffusionConfig()
    training: OptimizerConfig = OptimizerConfig()
    samples: int = Field(16, ge=0)  # images drawn from the model for a look at it
    samples_every: int = Field(0, ge=0)  # steps between samples/step….png; 0: only at the end
    sampling_steps: int = Field(50, ge=2)  # DDIM steps for them [Song 2021, 4.2]


class ImportedConfig(Section):
    """A checkpoint of the authors' code."""

    type: Literal["imported"]
    path: str  # checkpoint file, relative to data_root


class DiffusersConfig(Section):
    """An unconditional UNet2DModel of the diffusers library, in pixel space."""

    type: Literal["diffusers"]
    path: str  # folder of the pipeline (unet/, scheduler/) or of its UNet, relative to data_root


class TimmConfig(Section):
    """An image encoder of the timm library; it knows no noise, so heads read it at timesteps: [0]."""

    type: Literal["timm"]
    path: str  # file of weights (.safetensors, .pth), relative to data_root
    model: str = Field(pattern=r"^[A-Za-z0-9_.]+$")  # its name in timm
    options: dict[str, Any] = {}  # further arguments of timm.create_model
    input_size: int | None = Field(None, ge=8)  # pixels per side that the network sees; absent: image.size
    layers: list[int] | None = Field(None, min_length=1)  # timm's intermediates; absent: every resolution …
    # … and of a transformer, whose layers have one resolution, four evenly spaced blocks
    mean: list[float] | None = None  # of each channel, of images in [0, 1]; absent: the model's own
    std: list[PositiveFloat] | None = None


class AdapterConfig(BaseModel):
    """A backbone of another type; keys beyond these are settings of its type."""

    model_config = ConfigDict(extra="allow", frozen=True)

    # An entry point of the group tedm.backbones, or a path package.module:Class.
    type: str = Field(json_schema_extra={"not": {"enum": ["ddpm", "imported", "diffusers", "timm"]}})
    path: str  # file or folder, relative to data_root


OTHER = "package.module:Class"
BACKBONES: dict[str, type[BaseModel]] = {
    "ddpm": DDPMConfig,
    "imported": ImportedConfig,
    "diffusers": DiffusersConfig,
    "timm": TimmConfig,
    OTHER: AdapterConfig,
}


def _backbone_type(value: Any) -> str | None:
    """Which of the backbone's sections a mapping is for."""
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    if isinstance(kind, str) and kind not in BACKBONES:
        return OTHER if ":" in kind or kind in _plugins("tedm.backbones") else kind
    return None if kind is None else str(kind)


BackboneConfig = Annotated[
    Annotated[DDPMConfig, Tag("ddpm")]
    | Annotated[ImportedConfig, Tag("imported")]
    | Annotated[DiffusersConfig, Tag("diffusers")]
    | Annotated[TimmConfig, Tag("timm")]
    | Annotated[AdapterConfig, Tag(OTHER)],
    Discriminator(_backbone_type),
    # For editors, and for `_allowed_keys`: pydantic leaves this out where a function tells the types apart.
    Field(
        json_schema_extra={
            "discriminator": {
                "propertyName": "type",
                "mapping": {k: f"#/$defs/{v.__name__}" for k, v in BACKBONES.items()},
            }
        }
    ),
]


class FeaturesConfig(Section):
    """What the store keeps of a backbone's activations."""

    location: str | None = None
    # directory or s3://bucket/prefix that several experiments and users may share; absent: results/features
    layers: list[str] | None = Field(None, min_length=1)  # decoder layers; absent: all of them
    dtype: Literal["float16", "float32"] = "float16"
    keep_bits: int | None = Field(None, ge=1, le=23)  # mantissa bits kept by rounding; absent: all
    codec: Literal["none", "zstd", "lz4"] = "none"  # lz4: Blosc's, with bit shuffling; smallest
    view_subjects: int = Field(12, ge=1)
    # the first so many training subjects have views, where a head reads some (heads.….views)
    shared_noise: bool = False  # one noise for all images, instead of one for each
    input_range: Literal["trained", "official"] = "trained"
    # trained: [-1, 1], as the network saw in training; official: [0, 1], as the authors' code feeds
    images_per_shard: int = Field(64, ge=1)  # images per file
    batch_size: int = Field(16, ge=1)  # images per forward pass (last bits of float32 depend on it)
    together: bool = False
    # all timesteps of a data set in one job, if they are the same for all backbones: for small sets, whose
    # passes take no longer than the start of a job

    @field_validator("location")
    @classmethod
    def _a_place(cls, location: str | None) -> str | None:
        if location is not None and not LOCATION.fullmatch(location):
            raise ValueError(
                "expected a directory or s3://bucket/prefix, without blanks; server and credentials come"
                " from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …)"
            )
        return location


# ── heads ───────────────────────────────────────────────────────────────────────────────────────


class HeadConfig(BaseModel):
    """A head on cached features; keys beyond these are settings of its type."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str  # ridge, mlp, …, an entry point of the group tedm.heads, or a path package.module:Class
    backbone: Name | None = None  # absent: the only one
    timesteps: list[int] = Field(default=STUDY_TIMESTEPS, min_length=1)
    layers: list[str] | None = Field(None, min_length=1)  # absent: all that the store keeps
    views: int = Field(0, ge=0)
    # augmented views of each labelled image that it learns from, beside the image as it is; 0: none, as in
    # the study
    readings: dict[str, list[int]] = {}  # further methods: the same head, read at these timesteps only

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the head's type, with defaults filled in where the type ships with tedm."""
        given = dict(self.model_extra or {})
        known = HEAD_SETTINGS.get(self.type)
        return known.model_validate(given).model_dump() if known else given


class RidgeSettings(Section):
    """Ridge-penalised logistic regression, one classifier per timestep."""

    C: float = Field(0.01, gt=0)  # inverse strength of the penalty, as in scikit-learn
    standardise: Literal["channel", "pixel"] = "channel"  # pixel: per channel and pixel [authors' code]
    resize: Literal["bilinear", "nearest"] = "bilinear"  # [Rosnati 2023, 2.2]; nearest [authors' code]
    tolerance: float = Field(1e-6, gt=0)  # on the gradient's norm, relative to its start
    max_iterations: int = Field(500, ge=1)


class MLPSettings(Section):
    """Multi-layer perceptron on every pixel (Baranchuk et al. 2022; Rosnati et al. 2023, 2.2)."""

    combine: Literal["concat", "share"]  # all steps concatenated, or one network shared by the steps
    hidden: list[PositiveInt] = Field([128, 32], min_length=1)  # [Baranchuk 2022, B]
    members: int = Field(1, ge=1)  # networks whose votes are counted; LEDM as published has 10
    steps: int = Field(20_000, ge=1)  # [A.3]
    batch_size: int = Field(4, ge=1)  # images [A.3]
    pixels: int | None = Field(None, ge=1)  # random pixels per image and step; absent: all [authors' code]
    learning_rate: float = Field(1e-4, gt=0)  # Adam [A.3]
    validate_every: int = Field(100, ge=1)  # steps
    patience: int | None = Field(None, ge=1)  # validations without progress until it stops; absent: never
    resize: Literal["bilinear", "nearest"] = "bilinear"


class SklearnSettings(Section):
    """Any scikit-learn classifier, on sampled pixels."""

    estimator: str = "sklearn.ensemble.HistGradientBoostingClassifier"  # dotted path
    parameters: dict[str, Any] = {}  # of the estimator
    pixels: int = Field(500, ge=1)  # per image and timestep
    combine: Literal["concat", "share"] = "share"
    resize: Literal["bilinear", "nearest"] = "bilinear"


class BlendSettings(Section):
    """Perceptron on features that are averaged over timesteps with learned weights; this project's own."""

    hidden: list[PositiveInt] = Field([128, 32], min_length=1)  # as MLPSettings
    jitter: float = Field(2.0, ge=0)  # standard deviation, in training, of noise on the weights' logarithms
    dropout: float = Field(0.3, ge=0, lt=1)  # share of the blended channels left out in training
    blends: int = Field(2, ge=1)  # draws of both per image and step
    steps: int = Field(20_000, ge=1)
    batch_size: int = Field(4, ge=1)  # images
    learning_rate: float = Field(1e-4, gt=0)  # Adam
    validate_every: int = Field(100, ge=1)  # steps
    patience: int | None = Field(None, ge=1)  # validations without progress until it stops; absent: never
    resize: Literal["bilinear", "nearest"] = "bilinear"


HEAD_SETTINGS: dict[str, type[Section]] = {
    "ridge": RidgeSettings,
    "mlp": MLPSettings,
    "sklearn": SklearnSettings,
    "blend": BlendSettings,
}


# ── contrastive pretraining, and the networks that learn from images ─────────────────────────────


class PretrainingConfig(Section):
    """What both stages of contrastive pretraining have in common."""

    data: Name  # data set whose unlabelled images it learns
    validation: float = Field(0.1, gt=0, lt=1)  # share of them kept for the validation loss …
    validation_max: int = Field(512, ge=2)  # … but at most so many images
    temperature: float = Field(0.1, gt=0)  # τ of NT-Xent [Chen 2020, 2.1; Chaitanya 2020, 4]
    augment: AlwaysAugment = True  # of both views of an image, as in SupervisedConfig
    training: OptimizerConfig = OptimizerConfig()  # 100,000 steps, as the diffusion model


class GlobalCLConfig(PretrainingConfig):
    """Encoder and middle of the UNet learn to tell images apart [Chen 2020]."""

    type: Literal["global"]
    width: int = Field(64, ge=8, multiple_of=8)  # as DDPMConfig
    multipliers: Multipliers = [1, 2, 4, 8]
    hidden: int = Field(1024, ge=1)  # of the projection [authors' code]
    features: int = Field(128, ge=1)  # that are contrasted [authors' code]


class LocalCLConfig(PretrainingConfig):
    """The first decoder levels, behind a frozen encoder, learn to tell places apart [Chaitanya 2020]."""

    type: Literal["local"]
    encoder: Name  # pretraining of type global that it starts from
    levels: int = Field(2, ge=1)  # of the decoder, from the coarsest on [authors' code]
    regions: int = Field(20, ge=2)  # of each image [authors' code]
    side: int = Field(3, ge=1)  # of a region, cells of the level's map [Chaitanya 2020, 4]
    features: int = Field(128, ge=1)  # of each cell that are contrasted


AnyPretraining = Annotated[GlobalCLConfig | LocalCLConfig, Field(discriminator="type")]


class SupervisedConfig(Section):
    """The same UNet without timestep, trained on the labelled images alone, or after a pretraining."""

    type: Literal["supervised"] = "supervised"
    label: str | None = Field(None, min_length=1)  # its name in tables and figures; absent: its key
    width: int = Field(64, ge=8, multiple_of=8)
    multipliers: Multipliers = [1, 2, 4, 8]
    pretrained: Name | None = None  # pretraining whose weights it starts from; absent: random weights
    freeze_until: int = Field(0, ge=0)  # step up to which the pretrained weights stay as they are
    training: OptimizerConfig = OptimizerConfig(steps=20_000, batch_size=4)
    learning_rates: list[PositiveFloat] | None = Field(None, min_length=1)
    # tried one by one, of which the lowest validation loss decides; absent: training.learning_rate alone
    augment: Augment = True
    # true: the experiment's augmentation; study: crops, brightness and contrast as in the authors' code; or
    # ranges that differ from the experiment's


# ── evaluation ──────────────────────────────────────────────────────────────────────────────────


class EvaluationConfig(Section):
    """Who is trained on how much, and tested where."""

    train_on: Name  # data set with the splits train and val
    test_on: list[Name] = Field(min_length=1)  # data sets with the split test
    train_sizes: list[int] = Field(
        [1, 3, 6, 12, 24, 49, 98, 197], min_length=1
    )  # first n [Rosnati 2023, 3]
    seeds: list[NonNegativeInt] = Field([0], min_length=1)  # of heads and baselines
    level: float = Field(0.05, gt=0, lt=1)  # of the Wilcoxon test behind bold
    metrics: list[Literal["iou", "volume_similarity", "hd95", "assd", "brier", "ece"]] = []
    # beyond Dice, precision and recall, see measures.py; hd95 and assd need tedm[metrics]


class Experiment(Section):
    """A whole experiment: one YAML file."""

    title: str
    seed: int = Field(0, ge=0)  # every random draw comes from it
    results: Directory = "results"  # directory of everything that is made
    data_root: str = "."  # relative paths of data start here
    gpus: int = Field(0, ge=0)  # GPUs that a training or extraction job asks the scheduler for
    image: ImageConfig = ImageConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    # of views, baselines and contrastive stages; ranges that are not given: narrower for volumes
    datasets: dict[Name, DatasetConfig] = Field(min_length=1)
    backbones: dict[Name, BackboneConfig] = Field(min_length=1)
    features: FeaturesConfig = FeaturesConfig()
    heads: dict[Name, HeadConfig] = {}
    pretraining: dict[Name, AnyPretraining] = {}
    baselines: dict[Name, SupervisedConfig] = {}
    evaluation: EvaluationConfig
    pathvars: dict[str, str] = {}  # Snakemake's own

    @property
    def synthetic(self) -> list[str]:
        """Names of the data sets that are drawn, not measured."""
        drawn = (PhantomSource, BrainSource)
        return [name for name, dataset in self.datasets.items() if isinstance(dataset.source, drawn)]

    def augmentation_of(self, dataset: str, own: bool | Augmenting = True) -> Augmenting | None:
        """How training images of a data set are changed: its kind's ranges, the experiment's, own ones.

        Args:
            dataset: name of the data set.
            own: what a stage states: true or ranges that replace some of the experiment's, `study`, or
                false.

        Returns:
            None where nothing is changed.
        """
        if own is False or own == "study":
            return own or None
        volumes = isinstance(self.datasets[dataset].source, VOLUMES)
        stated = [VOLUME_AUGMENTATION if volumes else AugmentationConfig(), self.augmentation]
        stated += [own] if isinstance(own, AugmentationConfig) else []
        ranges: dict[str, Any] = {}
        for section in stated:
            ranges |= section.model_dump(exclude_unset=True)
        return AugmentationConfig.model_validate(ranges)

    def backbone_of(self, head: str) -> str:
        """Name of the backbone whose features a head reads."""
        return self.heads[head].backbone or next(iter(self.backbones))

    def timesteps_together(self) -> list[int]:
        """Timesteps that one job extracts; empty where each has a job of its own."""
        read: dict[str, set[int]] = {}
        for name, head in self.heads.items():
            read.setdefault(self.backbone_of(name), set()).update(head.timesteps)
        lists = {tuple(sorted(timesteps)) for timesteps in read.values()}
        return list(lists.pop()) if self.features.together and len(lists) == 1 else []

    def encoder_of(self, pretraining: str) -> GlobalCLConfig:
        """The global stage that a pretraining is, or begins with."""
        stage = self.pretraining[pretraining]
        while isinstance(stage, LocalCLConfig):
            stage = self.pretraining[stage.encoder]
        return stage

    def method_of(self, source: str) -> str:
        """Name in the tables of what a head or baseline predicts by itself."""
        baseline = self.baselines.get(source)
        return source if baseline is None else baseline.label or source

    def methods(self) -> list[str]:
        """Rows of the tables: baselines, heads and their readings, in the order of the config."""
        names = [self.method_of(name) for name in self.baselines]
        for name, head in self.heads.items():
            names += [name, *head.readings]
        return names


# ── reading ─────────────────────────────────────────────────────────────────────────────────────


def load(path: Path) -> Experiment:
    """Read and check an experiment's YAML file."""
    values = read(path)
    if not isinstance(values, dict):
        raise TedmError(f"{path}: expected keys and values at the top level")
    return parse(values, str(path))


def read(path: Path) -> Any:
    """What is written in a YAML file, in which no key may be there twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TedmError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TedmError(f"{path}: cannot be read as a configuration file ({error})") from None
    try:
        return yaml.load(text, _EachKeyOnce)  # noqa: S506 (a safe loader)
    except yaml.YAMLError as error:
        raise TedmError(f"{path}: not valid YAML: {error}") from None
    except TedmError as error:
        raise TedmError(f"{path}: {error}") from None


class _EachKeyOnce(yaml.SafeLoader):
    """YAML forbids a key to be there twice; PyYAML takes the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and lines.setdefault(key.value, line) != line:
                raise TedmError(
                    f"line {line}: the key {key.value} is there a second time, first in line"
                    f" {lines[key.value]}; remove or rename one of them"
                )
        return super().construct_mapping(node, deep)


def parse(values: Mapping[str, Any], where: str = "config") -> Experiment:
    """Check settings that have been read already; `where` names them in errors."""
    try:
        experiment = Experiment.model_validate(values)
    except ValidationError as error:
        raise TedmError("\n".join(_explain(error, values, where))) from None
    problems = list(dict.fromkeys(_inconsistencies(experiment)))
    if problems:
        raise TedmError("\n".join(f"{where}: {problem}" for problem in problems))
    return experiment


def json_schema() -> dict[str, Any]:
    """JSON schema of an experiment, for editors."""
    return Experiment.model_json_schema()


REMOVED = {  # settings of earlier versions
    "features.draws": "; for more noise let heads read views (heads.….views), each with its own",
}


def _explain(error: ValidationError, values: Any, where: str) -> Iterator[str]:
    for problem in error.errors():
        # pydantic puts the tag of a union and, for a wrong key, "[key]" where the YAML has no such key.
        location = problem["loc"][:-1] if problem["loc"][-1:] == ("[key]",) else problem["loc"]
        path = _dotted(list(_yaml_path(location, values)))
        keys = _allowed_keys(problem["loc"][:-1]) if problem["type"] == "extra_forbidden" else set()
        yield f"{where}: {_sentence(path, problem, keys)}"


def _sentence(path: str, problem: Any, allowed: set[str]) -> str:
    """One of pydantic's problems, in the words of whoever writes the YAML."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{path}: unknown key{REMOVED.get(path) or _meant(str(problem['loc'][-1]), allowed)}"
    if kind == "missing":
        return f"{path}: missing"
    if kind == "union_tag_not_found":
        return f"{path}.type: missing"
    if kind == "union_tag_invalid":
        choices = [choice.strip("' ") for choice in context["expected_tags"].split(",")]
        return f"{path}.type: no {context['tag']}{_meant(context['tag'], choices)}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        message = "expected keys and values below it"
    elif kind == "string_pattern_mismatch":
        message = "names and paths have letters, digits, '-', '_' (paths also '.' and '/') and no blanks"
        if problem["loc"][0] == "baselines":
            message += "; `label` is what tables call it"
    else:
        message = problem["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
    shown = repr(problem["input"])
    if "://" in shown and "@" in shown:  # as addresses with a password are
        shown = "an address with credentials"
    return f"{path}: {message}, got {shown if len(shown) <= 60 else shown[:57] + '…'}"


def _yaml_path(location: tuple[str | int, ...], values: Any) -> Iterator[str | int]:
    for i, part in enumerate(location):
        last = i == len(location) - 1
        if isinstance(values, Mapping):
            if part not in values and not last:
                continue
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        elif not last:
            continue
        yield part


def _dotted(location: list[str | int]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "(top level)"


def _meant(key: str, allowed: Iterable[str]) -> str:
    """What a misspelt key may have meant, and what is allowed in its place."""
    choices = sorted(allowed)
    close = difflib.get_close_matches(key, choices, n=1)
    meant = f", did you mean {close[0]}?" if close else ""
    return f"{meant} (allowed: {', '.join(choices)})"


def _allowed_keys(loc: tuple[str | int, ...]) -> set[str]:
    """Keys that the section at `loc` of the schema knows."""
    schema = json_schema()
    definitions = schema["$defs"]
    node: dict[str, Any] = schema
    for part in loc:
        node = _resolved(node, definitions, str(part))
        if "properties" in node and part in node["properties"]:
            node = node["properties"][part]
        elif "patternProperties" in node:
            node = next(iter(node["patternProperties"].values()))
        elif isinstance(part, int) and "items" in node:
            node = node["items"]
    node = _resolved(node, definitions, "")
    return set(node.get("properties", {}))


def _resolved(node: dict[str, Any], definitions: dict[str, Any], tag: str) -> dict[str, Any]:
    while True:
        if "$ref" in node:
            node = definitions[node["$ref"].rsplit("/", 1)[1]]
        elif "discriminator" in node and tag in node["discriminator"]["mapping"]:
            node = {"$ref": node["discriminator"]["mapping"][tag]}
        elif len(sections := [way for way in node.get("oneOf", []) if "$ref" in way]) == 1:
            node = sections[0]  # the others are values without keys
        else:
            return node


def _inconsistencies(e: Experiment) -> Iterator[str]:
    yield from _data_inconsistencies(e)
    yield from _split_inconsistencies(e)
    yield from _network_inconsistencies(e)
    for name, head in e.heads.items():
        yield from _head_inconsistencies(e, name, head)
    if not e.heads and not e.baselines:
        yield "heads: give at least one head or baseline"
    for name in sorted(set(e.heads) & set(e.baselines)):
        yield f"baselines.{name}: a head has the same name; give it another"
    methods = e.methods()
    for name in sorted({m for m in methods if methods.count(m) > 1}):
        yield f"heads: {name} stands for two methods; give one reading or label another name"
    yield from _pretraining_inconsistencies(e)


def _data_inconsistencies(e: Experiment) -> Iterator[str]:
    known = f"(data sets: {', '.join(e.datasets)})"
    for name, dataset in e.datasets.items():
        source = dataset.source
        if e.image.normalise != "none" and isinstance(source, VOLUMES):
            own = " (its settings window and percentiles)" if isinstance(source, NiftiSource) else ""
            yield (
                f"image.normalise: {e.image.normalise}, but datasets.{name} has volumes, and the source"
                f" {source.type} scales each volume as a whole{own}; set image.normalise: none"
            )
    for name, backbone in e.backbones.items():
        if not isinstance(backbone, DDPMConfig):
            yield from _adapter_inconsistencies(f"backbones.{name}", backbone)
            continue
        if backbone.data not in e.datasets:
            yield f"backbones.{name}.data: no data set {backbone.data} {known}"
        else:
            split = e.datasets[backbone.data].split
            if split.drawn and not (split.unlabelled or split.train):
                yield f"backbones.{name}.data: {backbone.data} has no split unlabelled or train"
    if e.evaluation.train_on not in e.datasets:
        yield f"evaluation.train_on: no data set {e.evaluation.train_on} {known}"
    for i, name in enumerate(e.evaluation.test_on):
        if name not in e.datasets:
            yield f"evaluation.test_on[{i}]: no data set {name} {known}"
    for i, n in enumerate(e.evaluation.train_sizes):
        if n < 1:
            yield f"evaluation.train_sizes[{i}]: {n} is not a number of images"
    for key, values in (
        ("train_sizes", e.evaluation.train_sizes),
        ("seeds", e.evaluation.seeds),
        ("test_on", e.evaluation.test_on),
        ("metrics", e.evaluation.metrics),
    ):
        if len(set(values)) < len(values):
            yield f"evaluation.{key}: has the same value twice"


def _pretraining_inconsistencies(e: Experiment) -> Iterator[str]:
    known = ", ".join(e.pretraining) or "none"
    for name, stage in e.pretraining.items():
        where = f"pretraining.{name}"
        if stage.data not in e.datasets:
            yield f"{where}.data: no data set {stage.data} (data sets: {', '.join(e.datasets)})"
        else:
            split = e.datasets[stage.data].split
            if split.drawn and not (split.unlabelled or split.train):
                yield f"{where}.data: {stage.data} has no split unlabelled or train"
        if isinstance(stage, LocalCLConfig):
            encoder = e.pretraining.get(stage.encoder)
            if encoder is None:
                yield f"{where}.encoder: no pretraining {stage.encoder} (pretraining: {known})"
            elif not isinstance(encoder, GlobalCLConfig):
                yield f"{where}.encoder: {stage.encoder} is of type {encoder.type}; expected type global"
            elif stage.levels > (levels := len(encoder.multipliers)):
                yield (
                    f"{where}.levels: {stage.levels}, but pretraining.{stage.encoder} has"
                    f" {levels} levels (multipliers)"
                )
            # Two crops of three quarters share half of every side, where a region has to fit.
            elif (cells := e.image.size * 2**stage.levels // 2**levels) < 2 * stage.side:
                yield (
                    f"{where}.side: regions of {stage.side} × {stage.side} cells need a map of"
                    f" {2 * stage.side} × {2 * stage.side} at least, but that of {stage.levels} levels at"
                    f" {e.image.size} pixels is {cells} × {cells}; raise levels or image.size"
                )
        elif stage.training.batch_size < 2:
            yield f"{where}.training.batch_size: images are contrasted with each other; expected 2 or more"
    labelled = e.datasets.get(e.evaluation.train_on)
    for name, baseline in e.baselines.items():
        where = f"baselines.{name}"
        rates = baseline.learning_rates or []
        if len(set(rates)) < len(rates):
            yield f"{where}.learning_rates: has the same rate twice"
        if len(rates) > 1 and labelled is not None and labelled.split.drawn and not labelled.split.val:
            yield (
                f"{where}.learning_rates: validation images choose one, but {e.evaluation.train_on} has no"
                " split val; add one, or give one rate"
            )
        if baseline.pretrained is None:
            if baseline.freeze_until:
                yield f"{where}.freeze_until: nothing to freeze without `pretrained`"
            continue
        if baseline.pretrained not in e.pretraining:
            yield f"{where}.pretrained: no pretraining {baseline.pretrained} (pretraining: {known})"
            continue
        stage = e.pretraining[baseline.pretrained]
        if isinstance(stage, LocalCLConfig):
            stage = e.pretraining.get(stage.encoder, stage)
        if not isinstance(stage, GlobalCLConfig):
            continue  # told above
        for key in ("width", "multipliers"):
            own, its = getattr(baseline, key), getattr(stage, key)
            if own != its:
                yield f"{where}.{key}: {own}, but that of its start {baseline.pretrained} is {its}"
        if baseline.freeze_until > baseline.training.steps:
            yield (
                f"{where}.freeze_until: {baseline.freeze_until} is beyond training.steps"
                f" ({baseline.training.steps})"
            )


def _adapter_inconsistencies(where: str, backbone: BaseModel) -> Iterator[str]:
    try:
        canonical_json(backbone.model_dump())
    except (TypeError, ValueError) as error:
        yield f"{where}: settings must be numbers, texts, lists and mappings ({error})"
    if isinstance(backbone, AdapterConfig) and ":" in backbone.type and not _found(backbone.type):
        yield f"{where}.type: Python finds no module for {backbone.type}; is its folder in PYTHONPATH?"


def _split_inconsistencies(e: Experiment) -> Iterator[str]:
    """What the numbers of the splits rule out before any image is read."""
    for name, dataset in e.datasets.items():
        split, source = dataset.split, dataset.source
        drawn = [split.train, split.val, split.test, split.unlabelled]
        if isinstance(source, PhantomSource | BrainSource):
            asked = sum(n for n in drawn if isinstance(n, int))
            if asked > source.count:
                yield f"datasets.{name}.split: asks for {asked} images, but source.count is {source.count}"
        lungs_only = len(e.image.classes) == 1 and e.image.channels == 1
        if isinstance(source, PhantomSource) and not lungs_only:
            yield f"datasets.{name}.source: phantoms have one channel and one class, the lungs"
    if len(set(e.image.classes)) < len(e.image.classes):
        yield "image.classes: has the same name twice"
    labelled = [("evaluation.train_on", e.evaluation.train_on, "train")]
    labelled += [(f"evaluation.test_on[{i}]", name, "test") for i, name in enumerate(e.evaluation.test_on)]
    for where, name, part in labelled:
        if name not in e.datasets:
            continue
        dataset = e.datasets[name]
        if not dataset.source.labelled:
            yield f"{where}: {name} has no masks; give datasets.{name}.source.masks"
        if dataset.split.drawn and not getattr(dataset.split, part):
            yield f"{where}: {name} has no images in the split {part} (datasets.{name}.split.{part})"
    train = e.datasets[e.evaluation.train_on].split.train if e.evaluation.train_on in e.datasets else 0
    if isinstance(train, int) and train:
        for i, n in enumerate(e.evaluation.train_sizes):
            if n > train:
                yield (
                    f"evaluation.train_sizes[{i}]: {n} is more than the {train} images of"
                    f" datasets.{e.evaluation.train_on}.split.train"
                )


def _network_inconsistencies(e: Experiment) -> Iterator[str]:
    networks = {f"backbones.{k}": v for k, v in e.backbones.items() if isinstance(v, DDPMConfig)}
    stages = {f"pretraining.{k}": v for k, v in e.pretraining.items()}
    networks |= {k: v for k, v in stages.items() if isinstance(v, GlobalCLConfig)}  # type: ignore[misc]
    networks |= {f"baselines.{k}": v for k, v in e.baselines.items()}  # type: ignore[misc]
    for where, stage in stages.items():
        if isinstance(stage, LocalCLConfig):  # its levels are those of its encoder
            yield from _batch_inconsistencies(e, where, stage.training, shared=True)
    for where, network in networks.items():
        shared = not isinstance(network, SupervisedConfig)
        yield from _batch_inconsistencies(e, where, network.training, shared=shared)
        reduction = 2 ** (len(network.multipliers) - 1)
        if e.image.size % reduction:
            yield (
                f"image.size: {e.image.size} is not a multiple of {reduction}, which the"
                f" {len(network.multipliers)} levels of {where} need"
            )


def _batch_inconsistencies(
    e: Experiment, where: str, training: OptimizerConfig, *, shared: bool
) -> Iterator[str]:
    if training.batch_size % training.accumulate:
        yield f"{where}.training.accumulate: does not divide batch_size {training.batch_size}"
    if shared and training.accumulate % max(1, e.gpus):
        yield (
            f"{where}.training.accumulate: {training.accumulate} micro-batches per step"
            f" cannot be shared by {e.gpus} GPUs (gpus); make it a multiple of that"
        )


def _head_inconsistencies(e: Experiment, name: str, head: HeadConfig) -> Iterator[str]:
    where = f"heads.{name}"
    if head.backbone is not None and head.backbone not in e.backbones:
        yield f"{where}.backbone: no backbone {head.backbone} (backbones: {', '.join(e.backbones)})"
        return
    if head.backbone is None and len(e.backbones) > 1:
        yield f"{where}.backbone: say which of {', '.join(e.backbones)} it reads"
        return
    backbone = e.backbones[e.backbone_of(name)]
    if isinstance(backbone, TimmConfig) and head.timesteps != [0]:
        yield (
            f"{where}.timesteps: {head.timesteps}, but {e.backbone_of(name)} is a timm network, which knows"
            " no noise; set timesteps: [0]"
        )
    if isinstance(backbone, DDPMConfig):
        steps = backbone.diffusion.timesteps
        for i, t in enumerate(head.timesteps):
            if not 0 <= t < steps:
                yield (
                    f"{where}.timesteps[{i}]: {t} is outside 0 … {steps - 1}"
                    f" (backbones.{e.backbone_of(name)}.diffusion.timesteps is {steps})"
                )
        known = [f"up{i}" for i in range(len(backbone.multipliers))]
        for i, layer in enumerate(e.features.layers or []):
            if layer not in known:
                yield f"features.layers[{i}]: no layer {layer} (backbone {e.backbone_of(name)}: {known})"
        kept = e.features.layers or known
        for i, layer in enumerate(head.layers or []):
            if layer not in kept:
                yield f"{where}.layers[{i}]: no layer {layer} (kept: {', '.join(kept)})"
    if len(set(head.timesteps)) < len(head.timesteps):
        yield f"{where}.timesteps: has the same timestep twice"
    for reading, steps_read in head.readings.items():
        for t in steps_read:
            if t not in head.timesteps:
                yield f"{where}.readings.{reading}: {t} is not among the head's timesteps {head.timesteps}"
        if not steps_read:
            yield f"{where}.readings.{reading}: names no timestep"
    yield from _setting_inconsistencies(where, head)


def _setting_inconsistencies(where: str, head: HeadConfig) -> Iterator[str]:
    if head.type in HEAD_SETTINGS:
        try:
            settings = head.settings
        except ValidationError as error:
            allowed = {*HEAD_SETTINGS[head.type].model_fields, *HeadConfig.model_fields}
            for problem in error.errors():
                yield _sentence(_dotted([where, *problem["loc"]]), problem, allowed)
            return
        does = "blends" if head.type == "blend" else "concatenates"
        if head.readings and (does == "blends" or settings.get("combine") == "concat"):
            yield f"{where}.readings: a head that {does} its timesteps has no single-step readings"
        return
    try:
        canonical_json(head.settings)
    except (TypeError, ValueError) as error:
        yield f"{where}: settings must be numbers, texts, lists and mappings ({error})"
    if ":" in head.type:
        if not _found(head.type):
            yield f"{where}.type: Python finds no module for {head.type}; is its folder in PYTHONPATH?"
    elif head.type not in _plugins("tedm.heads"):
        kinds = {*HEAD_SETTINGS, *_plugins("tedm.heads"), "package.module:Class"}
        yield f"{where}.type: no head type {head.type}{_meant(head.type, kinds)}"


def _found(path: str) -> bool:
    """Whether Python finds the package of package.module:Class; nothing of it is imported."""
    try:
        return importlib.util.find_spec(path.partition(":")[0].partition(".")[0]) is not None
    except (ValueError, ImportError):
        return False


def _plugins(group: str) -> set[str]:
    return {point.name for point in importlib.metadata.entry_points(group=group)}

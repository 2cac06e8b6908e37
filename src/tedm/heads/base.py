"""What a head is: the class that every head extends, what it reads, and how it is kept in one file."""

import abc
import contextlib
import hashlib
import importlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import BaseModel, ValidationError

from tedm.digests import canonical_json
from tedm.errors import TedmError
from tedm.files import whole
from tedm.progress import say

FORMAT = "tedm head, version 2"
HEADER = "tedm"  # the one key of a file's metadata: the order of several is not the same in every process
FIT_AGAIN = "fit it again: delete it and run the same command"
GROUP = "tedm.heads"  # entry points
TOLERANCE = 1e-5  # of probabilities, by which rounding may take them outside 0 … 1
BUILT_IN = {
    "ridge": "tedm.heads.ridge:RidgeHead",
    "mlp": "tedm.heads.mlp:MLPHead",
    "sklearn": "tedm.heads.sklearn_pixels:SklearnHead",
    "blend": "tedm.heads.blend:BlendHead",
}

Shape = tuple[int, int, int]


class FeatureSource(Protocol):
    """Where a head reads features from: a store on disk, or arrays in memory.

    A source may also have `backbone_digest`, `synthetic` (whether the images are drawn) and
    `why_absent(timestep, layer)`: None, or why these features cannot be read and what to do.
    """

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images, in pixels."""

    @property
    def layer_shapes(self) -> Mapping[str, Shape]:
        """(C, h, w) of each layer."""

    @property
    def timesteps(self) -> tuple[int, ...]:
        """Timesteps that are there."""

    def __len__(self) -> int:
        """Number of images."""

    def read(
        self, rows: Sequence[int], timestep: int, layers: Sequence[str] | None = None, view: int = 0
    ) -> dict[str, np.ndarray]:
        """Features (n, C, h, w) of the images `rows`, per layer, in the stored type."""


class ArrayFeatures:
    """Features from arrays in memory.

    Args:
        arrays: (N, C, h, w) for each (timestep, layer); every timestep has the same layers.
        image_size: (H, W) of the images and their masks.
    """

    def __init__(self, arrays: Mapping[tuple[int, str], np.ndarray], image_size: tuple[int, int]) -> None:
        self.arrays = dict(arrays)
        self.image_size = image_size
        self.timesteps = tuple(dict.fromkeys(timestep for timestep, _ in self.arrays))
        self.layer_shapes: dict[str, Shape] = {
            layer: a.shape[1:]
            for (timestep, layer), a in self.arrays.items()
            if timestep == self.timesteps[0]
        }

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def read(
        self, rows: Sequence[int], timestep: int, layers: Sequence[str] | None = None, view: int = 0
    ) -> dict[str, np.ndarray]:
        """See FeatureSource; there are no views."""
        if view != 0:
            raise TedmError(f"view {view}: features in memory have no views")
        return {layer: self.arrays[timestep, layer][list(rows)] for layer in layers or self.layer_shapes}


class Head(abc.ABC):
    """A pixel classifier on cached features.

    A new kind of head is a subclass with four methods: `learn`, `predict_steps`, `state` and `restore`.
    `fit` checks everything that a person may have got wrong before `learn` starts. Features are read at
    native resolution: `tedm.heads.resize` says how to stay there.

    Args:
        settings: of this type of head, as in the configuration.
        timesteps: that it reads; the predictions of a head that votes come in this order.
        layers: that it reads; None: all that there are.
        seed: of everything that is drawn.

    Attributes:
        class_count: K, background not counted; known from `fit` on.
        class_names: of the masks' classes, where whoever saved the head gave them.
        backbone_digest: of the backbone whose features it learned from; "" where nobody knew.
        synthetic: whether it learned from drawn images; None where the features did not say.
        image_size: (H, W); known from `fit` on.
        layer_shapes: (C, h, w) of each layer that is read; known from `fit` on.
        present: for each class and background before them, whether the training masks have it, (K + 1,).
        digest: of the training features and masks and of all settings: equal digests, equal heads.
        memory: bytes that a head may use for cached features; no effect on the numbers.
        device: where torch computes.
    """

    type: str = ""  # by which `create` and files call it
    label: str = ""  # by which people are told of it

    @property
    def voting(self) -> bool:
        """Whether each timestep predicts by itself, so that any subset of them can vote."""
        return True

    def __init__(
        self,
        settings: Mapping[str, Any],
        timesteps: Sequence[int],
        layers: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        self.settings = dict(settings)
        self.timesteps = tuple(timesteps)
        self.layers = tuple(layers or ())
        self.seed = seed
        self.class_count = 0
        self.class_names: tuple[str, ...] = ()
        self.image_size = (0, 0)
        self.layer_shapes: dict[str, Shape] = {}
        self.present: tuple[bool, ...] = ()
        self.backbone_digest = ""
        self.synthetic: bool | None = None
        self.digest = ""
        self.memory = 2**30
        self.device = "cpu"
        self.allow_imports = True  # of what settings name; `load` is careful

    # ── what a kind of head defines ──

    @abc.abstractmethod
    def learn(
        self,
        features: FeatureSource,
        masks: np.ndarray,
        rows: Sequence[int],
        val_rows: Sequence[int],
        val_masks: np.ndarray,
        workdir: Path,
    ) -> None:
        """Learn from input that `fit` has checked; the arguments are those of `fit`."""

    @abc.abstractmethod
    def predict_steps(self, features: FeatureSource, rows: Sequence[int]) -> np.ndarray:
        """Probabilities of the images `rows`, one map for each of the head's timesteps.

        Returns:
            float32 (S, n, K, H, W), in the order of `timesteps`; S = 1 where the head does not vote.
        """

    @abc.abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Everything that was learned, as named arrays."""

    @abc.abstractmethod
    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take up what `state` gave; class_count, image_size and layer_shapes are set already."""

    def check_settings(self) -> None:  # noqa: B027 (most kinds have nothing to add)
        """Refuse settings that can only be judged with what they name; called before features are read.

        Raises:
            TedmError: naming the setting.
        """

    # ── what all heads share ──

    @property
    def who(self) -> str:
        """The head and where its class comes from, for messages."""
        name = f"head {self.label or type(self).__name__}"
        source = _source_of(self.type)
        return f"{name} ({source})" if source else name

    def fit(
        self,
        features: FeatureSource,
        masks: np.ndarray,
        rows: Sequence[int],
        val_rows: Sequence[int],
        val_masks: np.ndarray,
        *,
        workdir: Path,
    ) -> Self:
        """Check the input, then learn.

        Args:
            features: of training and validation images.
            masks: uint8 0/1 (len(rows), K, H, W), of `rows` in that order.
            rows: training images, of `features`.
            val_rows: validation images; may be empty, then nothing is validated.
            val_masks: their masks, (len(val_rows), K, H, W).
            workdir: for resumable state; the same call after a kill goes on from there. Delete it once the
                head is saved.

        Raises:
            TedmError: for whatever does not fit together, before any training.
        """
        rows, val_rows = list(rows), list(val_rows)
        self.examine(features, masks, rows, val_rows, val_masks)
        with self.answering("learn"):
            self.learn(features, masks, rows, val_rows, val_masks, workdir)
        return self

    @contextlib.contextmanager
    def answering(self, method: str) -> Iterator[None]:
        """Add to whatever a method of the head raises whose head it is; the traceback stays."""
        try:
            yield
        except TedmError:
            raise
        except Exception as error:
            error.add_note(f"{self.who}: raised this in {method}")
            raise

    def examine(
        self,
        features: FeatureSource,
        masks: np.ndarray,
        rows: Sequence[int],
        val_rows: Sequence[int],
        val_masks: np.ndarray,
    ) -> None:
        """Check the input of `fit`, and take its digest; `learn` may follow. Arguments as in `fit`."""
        self.check_settings()
        self.layers = self.layers or tuple(features.layer_shapes)
        self._check_reading(features)
        self.image_size = features.image_size
        self.layer_shapes = {layer: features.layer_shapes[layer] for layer in self.layers}
        self.backbone_digest = _backbone_of(features)
        self.synthetic = getattr(features, "synthetic", None)
        _check_rows("training", rows, len(features))
        if not rows:
            raise TedmError("training: no images; a head needs at least one")
        _check_masks("training", masks, rows, self.image_size)
        _check_rows("validation", val_rows, len(features))
        if val_rows:
            _check_masks("validation", val_masks, val_rows, self.image_size)
            if val_masks.shape[1] != masks.shape[1]:
                raise TedmError(
                    f"masks: {masks.shape[1]} classes in training, {val_masks.shape[1]} in validation"
                )
        self.class_count = masks.shape[1]
        self.present = _present(masks)
        for k, there in enumerate(self.present):
            if not there:
                name = f"class {k - 1}" if k else "background"
                say(f"warning: {name} is absent from the {len(rows)} training images; it cannot be learned")
        self.digest = self._digest(features, masks, rows, val_rows, val_masks)

    def predict_proba(
        self, features: FeatureSource, rows: Sequence[int], timesteps: Sequence[int] | None = None
    ) -> np.ndarray:
        """Probabilities of the images `rows`, float32 (n, K, H, W).

        Args:
            features: of the images.
            rows: images, of `features`.
            timesteps: that vote; None: all of the head's.
        """
        return self.combine(self.votes(features, rows), timesteps)

    def votes(self, features: FeatureSource, rows: Sequence[int]) -> np.ndarray:
        """What `predict_steps` gives, (S, n, K, H, W), once it is known to be that.

        Raises:
            TedmError: another shape, or values that are no probabilities.
        """
        with self.answering("predict_steps"):
            steps = np.asarray(self.predict_steps(features, rows))
        count = len(self.timesteps) if self.voting else 1
        expected = (count, len(rows), self.class_count, *self.image_size)
        if steps.shape != expected or not np.issubdtype(steps.dtype, np.floating):
            raise TedmError(
                f"{self.who}: predict_steps gave {steps.dtype} of shape {steps.shape}, expected float32"
                f" (timesteps, images, classes, height, width) = {expected}"
            )
        if not np.isfinite(steps).all():
            raise TedmError(
                f"{self.who}: predict_steps gave probabilities that are not finite; the head has diverged"
                " (a lower learning rate may help)"
            )
        if steps.size and (steps.min() < -TOLERANCE or steps.max() > 1 + TOLERANCE):
            raise TedmError(
                f"{self.who}: predict_steps gave {steps.min():.4g} … {steps.max():.4g}, expected"
                " probabilities in 0 … 1 (not logits)"
            )
        return np.asarray(steps, np.float32)

    def combine(self, steps: np.ndarray, timesteps: Sequence[int] | None = None) -> np.ndarray:
        """Mean of the probabilities of `predict_steps` over timesteps (Rosnati et al. 2023, eq. 9).

        Args:
            steps: (S, n, K, H, W).
            timesteps: that vote; None: all of the head's.

        Returns:
            float32 (n, K, H, W).
        """
        if timesteps is None:
            chosen = list(range(len(steps)))
        elif not self.voting:
            raise TedmError(
                f"head {self.type}: combines its timesteps, so it cannot be read at {timesteps} only"
            )
        else:
            missing = [t for t in timesteps if t not in self.timesteps]
            if missing or not timesteps:
                raise TedmError(
                    f"head {self.type}: cannot be read at {list(timesteps)}; its timesteps are"
                    f" {list(self.timesteps)}"
                )
            chosen = [self.timesteps.index(t) for t in timesteps]
        return np.asarray(steps[chosen].mean(axis=0, dtype=np.float64), dtype=np.float32)

    def save(self, path: Path, *, classes: Sequence[str] = (), backbone_digest: str = "") -> None:
        """Write the head to one safetensors file whose header says what it is.

        Args:
            path: the file.
            classes: names of the masks' classes, kept for whoever reads the file.
            backbone_digest: of the backbone, where the features that it learned from did not say.
        """
        self.class_names = tuple(classes) or self.class_names
        self.backbone_digest = backbone_digest or self.backbone_digest
        about = {
            "type": self.type,
            "settings": self.settings,
            "timesteps": self.timesteps,
            "layers": self.layers,
            "seed": self.seed,
            "class_count": self.class_count,
            "class_names": self.class_names,
            "image_size": self.image_size,
            "layer_shapes": self.layer_shapes,
            "present": self.present,
            "backbone_digest": self.backbone_digest,
            "synthetic": self.synthetic,
            "digest": self.digest,
        }
        state = self.state()
        for name, array in state.items():
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
                found = f"array of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
                raise TedmError(f"{self.who}: state gave {name} as {found}, expected a NumPy array")
        save_arrays(path, state, {"format": FORMAT, **about})

    def check_readable(self, features: FeatureSource) -> None:
        """Refuse features that this head was not trained on.

        Raises:
            TedmError: another backbone, other shapes, timesteps or layers that are missing.
        """
        self._check_reading(features)
        shapes = {layer: tuple(features.layer_shapes[layer]) for layer in self.layers}
        if shapes != self.layer_shapes or tuple(features.image_size) != tuple(self.image_size):
            raise TedmError(
                f"head {self.type}: trained on layers {self.layer_shapes} of {self.image_size} images, the"
                f" features have {shapes} of {features.image_size}"
            )
        backbone = _backbone_of(features)
        if backbone and self.backbone_digest and backbone != self.backbone_digest:
            raise TedmError(
                f"head {self.type}: trained on features of backbone {self.backbone_digest[:8]}…, these are"
                f" of {backbone[:8]}…; train it again"
            )

    def _check_reading(self, features: FeatureSource) -> None:
        why_absent = getattr(features, "why_absent", None)
        if why_absent is not None:  # the source knows more than which names are there
            reasons = (why_absent(t, layer) for t in self.timesteps for layer in self.layers)
            reason = next((r for r in reasons if r is not None), None)
            if reason is not None:
                raise TedmError(reason)
        for layer in self.layers:
            if layer not in features.layer_shapes:
                kept = ", ".join(features.layer_shapes)
                raise TedmError(
                    f"layers: the features have no {layer} (kept: {kept}); name one of these, or add it to"
                    " features.layers and extract again"
                )
        for timestep in self.timesteps:
            if timestep not in features.timesteps:
                raise TedmError(
                    f"timesteps: the features have no {timestep} (kept: {list(features.timesteps)});"
                    " extract it first"
                )

    def _digest(
        self,
        features: FeatureSource,
        masks: np.ndarray,
        rows: Sequence[int],
        val_rows: Sequence[int],
        val_masks: np.ndarray,
    ) -> str:
        """Digest of all that the head depends on; finds values that are not finite on its way."""
        digest = hashlib.sha256(
            json.dumps(
                [self.type, self.settings, self.timesteps, self.layers, self.seed], sort_keys=True
            ).encode()
        )
        for array in (masks, val_masks):
            digest.update(str(array.shape).encode())
            digest.update(np.packbits(array).tobytes())
        for timestep in self.timesteps:
            for row, block in blocks(features, [*rows, *val_rows], timestep, self.layers):
                for layer, values in block.items():
                    finite = np.isfinite(values)
                    if not finite.all():
                        bad = row[int(np.argmin(finite.all(axis=(1, 2, 3))))]
                        raise TedmError(
                            f"features: row {bad}, timestep {timestep}, layer {layer}: not finite; extract"
                            " them again, with features.dtype float32 if float16 overflowed"
                        )
                    digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()


def blocks(
    features: FeatureSource,
    rows: Sequence[int],
    timestep: int,
    layers: Sequence[str],
    bytes_at_once: int = 32 * 2**20,
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Read rows in blocks of about so many bytes (as float32); yields the block's rows and its layers."""
    per_image = 4 * sum(int(np.prod(features.layer_shapes[layer])) for layer in layers)
    at_once = max(1, bytes_at_once // per_image)
    for start in range(0, len(rows), at_once):
        block = list(rows[start : start + at_once])
        yield block, features.read(block, timestep, layers)


S = TypeVar("S", bound=BaseModel)


def checked(kind: type[S], settings: Mapping[str, Any]) -> S:
    """Settings of a type of head as its model; what is wrong becomes one TedmError."""
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        raise TedmError(
            "\n".join(f"{kind.__name__}.{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        ) from None


def labels_of(masks: np.ndarray) -> np.ndarray:
    """Class of each pixel, uint8 (n, H, W): 0 background, k + 1 where mask k is set."""
    order = np.arange(1, masks.shape[1] + 1, dtype=np.uint8).reshape(1, -1, 1, 1)
    return np.asarray((masks * order).sum(axis=1, dtype=np.uint8))


# ── kinds of heads ──────────────────────────────────────────────────────────────────────────────


def create(
    kind: str,
    settings: Mapping[str, Any],
    timesteps: Sequence[int],
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> Head:
    """A head that is yet to be fitted.

    Args:
        kind: a built-in type (see BUILT_IN), a name in the entry point group `tedm.heads`, or a
            dotted path `package.module:Class`.
        settings: of that type.
        timesteps: that it reads.
        layers: that it reads; None: all.
        seed: of everything that is drawn.

    Raises:
        TedmError: no such type; or its class refuses the settings, lacks a method, or fails otherwise.
    """
    made = head_class(kind)
    missing = sorted(made.__abstractmethods__)
    if missing:
        raise TedmError(f"head type {kind}{_in_brackets(kind)}: {made.__name__} lacks {', '.join(missing)}")
    try:
        head = made(settings, timesteps, layers, seed)
    except TedmError:
        raise
    except Exception as error:  # whatever a third party's constructor raises; the cause stays attached
        raise TedmError(
            f"head type {kind}{_in_brackets(kind)}: cannot be made with the settings {settings}"
            f" ({type(error).__name__}: {error})"
        ) from error
    if not hasattr(head, "synthetic"):
        raise TedmError(
            f"head type {kind}{_in_brackets(kind)}: {made.__name__}.__init__ does not call"
            " super().__init__(settings, timesteps, layers, seed)"
        )
    head.type = head.label = kind
    return head


def head_class(kind: str) -> type[Head]:
    """The class behind a type of head; imports it."""
    if kind in BUILT_IN:
        return _imported(kind, BUILT_IN[kind])
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name == kind:
            return _imported(kind, point.value)
    if ":" in kind:
        return _imported(kind, kind)
    known = ", ".join([*BUILT_IN, *sorted(p.name for p in importlib.metadata.entry_points(group=GROUP))])
    raise TedmError(f"head type {kind}: not known (known: {known}; or package.module:Class)")


def load(path: Path, *, allow_imports: bool = False) -> Head:
    """Read a head that `save` wrote. Nothing in the file is executed.

    Args:
        path: the file.
        allow_imports: whether a type `package.module:Class` that the file names may be imported. Built-in
            types and entry points always may.
    """
    state, about = load_arrays(path)
    if about.get("format") != FORMAT:
        raise TedmError(f"{path}: not a head of this version (expected {FORMAT}); {FIT_AGAIN}")
    kind = str(about.get("type"))
    if ":" in kind and not allow_imports:
        raise TedmError(
            f"{path}: needs {kind}, and importing it runs its code; pass allow_imports=True if you"
            " trust the file"
        )
    try:
        kind, seed = about["type"], int(about["seed"])
        if not isinstance(about["settings"], dict):
            raise TypeError("settings")
        head = create(kind, about["settings"], about["timesteps"], about["layers"], seed)
        head.class_count, head.class_names = about["class_count"], tuple(about["class_names"])
        head.image_size = tuple(about["image_size"])
        head.layer_shapes = {layer: tuple(shape) for layer, shape in about["layer_shapes"].items()}
        head.present = tuple(about["present"])
        head.backbone_digest, head.digest = about["backbone_digest"], about["digest"]
        head.synthetic = about["synthetic"]
        head.allow_imports = allow_imports
        head.restore(state)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _damaged(path, repr(error)) from error
    return head


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Write named arrays and what is said about them as one safetensors file, whole or not at all.

    The same arrays and the same words give the same bytes. A digest of both is kept with them.
    """
    arrays = {k: np.ascontiguousarray(a) for k, a in arrays.items()}
    about = json.loads(canonical_json(about))
    header = canonical_json({**about, "sha256": _digest_of(arrays, about)})
    content = safetensors.numpy.save(arrays, metadata={HEADER: header})
    with whole(path) as partial:
        partial.write_bytes(content)


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_arrays` wrote: the arrays and what is said about them.

    Raises:
        TedmError: no such file, or a byte of it is not as it was written.
    """
    if not path.is_file():
        raise TedmError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError, TypeError, AttributeError) as error:
        raise _damaged(path, f"not a safetensors file, or cut off: {error}") from None
    if HEADER not in metadata:
        raise TedmError(f"{path}: not written by this version of tedm; {FIT_AGAIN}")
    try:
        about = json.loads(metadata[HEADER])
        digest = about.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"its header: {error!r}") from None
    if digest != _digest_of(arrays, about):
        raise _damaged(path, "its numbers are not those that were written")
    return arrays, about


def kept_arrays(path: Path, digest: str) -> dict[str, np.ndarray] | None:
    """Arrays that an earlier run of the same fit finished; None where there are none that can be read."""
    if not path.exists():
        return None
    try:
        arrays, about = load_arrays(path)
    except TedmError:
        say(f"{path}: left by an earlier run, cannot be read; made again")
        return None
    return arrays if about.get("digest") == digest else None


def _digest_of(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(canonical_json(about).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(canonical_json([name, array.dtype.str, list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _damaged(path: Path, what: str) -> TedmError:
    return TedmError(f"{path}: damaged ({what}); {FIT_AGAIN}")


def _imported(kind: str, path: str) -> type[Head]:
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of a third party may raise anything when it is imported
        raise TedmError(
            f"head type {kind}{_in_brackets(kind)}: cannot import {path} ({type(error).__name__}: {error})"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Head)):
        raise TedmError(
            f"head type {kind}{_in_brackets(kind)}: {path} is not a subclass of tedm.heads.base.Head"
        )
    return found


def _source_of(kind: str) -> str:
    """The package that registered a type of head, or its dotted path; "" for those of tedm itself."""
    if kind in BUILT_IN or not kind:
        return ""
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name == kind:
            package = f" of package {point.dist.name} {point.dist.version}" if point.dist else ""
            return f"type {kind}{package}, {point.value}"
    return f"type {kind}"


def _in_brackets(kind: str) -> str:
    source = _source_of(kind)
    return f" ({source})" if source and source != f"type {kind}" else ""


# ── checks ──────────────────────────────────────────────────────────────────────────────────────


def _check_rows(which: str, rows: Sequence[int], count: int) -> None:
    outside = [row for row in rows if not 0 <= row < count]
    if outside:
        raise TedmError(f"{which}: row {outside[0]} is outside the {count} images of the features")
    if len(set(rows)) < len(rows):
        raise TedmError(f"{which}: the same row is given twice")


def _check_masks(which: str, masks: np.ndarray, rows: Sequence[int], image_size: tuple[int, int]) -> None:
    if masks.ndim != 4 or len(masks) != len(rows) or masks.shape[2:] != tuple(image_size):
        raise TedmError(
            f"{which} masks: shape {masks.shape}, expected (n, K, H, W) = ({len(rows)}, K, {image_size[0]},"
            f" {image_size[1]})"
        )
    wrong = np.flatnonzero((masks > 1).any(axis=(1, 2, 3)))
    if masks.dtype != np.uint8 or len(wrong):
        found = f"row {rows[wrong[0]]} has {masks[wrong[0]].max()}" if len(wrong) else f"type {masks.dtype}"
        raise TedmError(f"{which} masks: values must be uint8 0 or 1, one plane per class; {found}")
    overlaps = np.flatnonzero((masks.sum(axis=1, dtype=np.int64) > 1).any(axis=(1, 2)))
    if len(overlaps):
        raise TedmError(
            f"{which} masks: row {rows[overlaps[0]]}: classes overlap; each pixel has one class at most"
        )


def _backbone_of(features: FeatureSource) -> str:
    return str(getattr(features, "backbone_digest", ""))


def _present(masks: np.ndarray) -> tuple[bool, ...]:
    background = bool((masks.sum(axis=1, dtype=np.int64) == 0).any())
    return (background, *(bool(masks[:, k].any()) for k in range(masks.shape[1])))

"""Any scikit-learn classifier as a head, on sampled pixels."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch

from tedm.config import SklearnSettings
from tedm.errors import TedmError
from tedm.heads.base import FeatureSource, Head, checked, labels_of
from tedm.heads.resize import Resize
from tedm.progress import say, stage
from tedm.seeds import generator

PIXELS_AT_ONCE = 4096  # of an image in prediction


class SklearnHead(Head):
    """A scikit-learn classifier that sees a few pixels of each training image, resized as for any head.

    `combine: share` fits one classifier to the pixels of all timesteps, which then vote; `concat` feeds all
    timesteps at once. A fitted estimator can only be kept as a pickle, which can execute anything, so the
    head's file holds the sampled pixels instead (rounded to the type of the stored features, before
    fitting) and the classifier is fitted to them again when it is first needed: the same one, if
    scikit-learn is.

    The settings' estimator is imported; `load` refuses those outside scikit-learn unless its caller allows
    imports.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        timesteps: Sequence[int],
        layers: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(settings, timesteps, layers, seed)
        self.options = checked(SklearnSettings, settings)
        self.pixels = np.zeros((0, 0), np.float32)  # (M, channels), sampled from the training images
        self.labels = np.zeros(0, np.uint8)  # (M,)
        self.estimator: Any = None

    @property
    def voting(self) -> bool:
        """Whether each timestep predicts by itself."""
        return self.options.combine == "share"

    def check_settings(self) -> None:
        """Refuse an estimator that cannot be imported or made, or that gives no probabilities."""
        self._unfitted()

    def learn(
        self,
        features: FeatureSource,
        masks: np.ndarray,
        rows: Sequence[int],
        val_rows: Sequence[int],  # noqa: ARG002
        val_masks: np.ndarray,  # noqa: ARG002
        workdir: Path,  # noqa: ARG002
    ) -> None:
        """Sample pixels and fit; nothing is resumed, nothing is validated."""
        total = self.image_size[0] * self.image_size[1]
        parts, labels = [], []
        groups = [[t] for t in self.timesteps] if self.voting else [list(self.timesteps)]
        with stage(f"{self.label}, sampling", len(rows), "images") as progress:
            for row, label in zip(rows, labels_of(masks).reshape(len(rows), -1), strict=True):
                for g, group in enumerate(groups):
                    rng = generator(self.seed, "sklearn", "pixels", row, g)
                    chosen = rng.choice(total, min(self.options.pixels, total), replace=False)
                    parts.append(self._values(features, row, group, torch.from_numpy(chosen)))
                    labels.append(label[chosen])
                progress.advance()
        self.pixels, self.labels = np.concatenate(parts), np.concatenate(labels)
        self._fitted()

    def predict_steps(self, features: FeatureSource, rows: Sequence[int]) -> np.ndarray:
        """See Head."""
        self.check_readable(features)
        estimator = self._fitted()
        groups = [[t] for t in self.timesteps] if self.voting else [list(self.timesteps)]
        total = self.image_size[0] * self.image_size[1]
        out = np.zeros((len(groups), len(rows), self.class_count, total), np.float32)
        for i, row in enumerate(rows):
            for g, group in enumerate(groups):
                for start in range(0, total, PIXELS_AT_ONCE):
                    places = torch.arange(start, min(start + PIXELS_AT_ONCE, total))
                    x = self._values(features, row, group, places).astype(np.float32)
                    if estimator is None:
                        p, classes = np.ones((len(x), 1)), [int(self.labels[0])]
                    else:
                        p, classes = self._probabilities(estimator, x)
                    for column, k in enumerate(classes):
                        if k:
                            out[g, i, k - 1, places] = p[:, column]
        return out.reshape(*out.shape[:3], *self.image_size)

    def state(self) -> dict[str, np.ndarray]:
        """See Head."""
        version = np.frombuffer(sklearn.__version__.encode(), np.uint8)
        return {"pixels": self.pixels, "labels": self.labels, "scikit-learn": version}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See Head."""
        self.pixels, self.labels = state["pixels"], state["labels"]
        version = bytes(state["scikit-learn"]).decode()
        if version != sklearn.__version__:
            say(
                f"warning: the head was fitted with scikit-learn {version} and is fitted again with"
                f" {sklearn.__version__}; probabilities may differ"
            )
        self._estimator_class()

    def _values(
        self, features: FeatureSource, row: int, timesteps: Sequence[int], places: torch.Tensor
    ) -> np.ndarray:
        """Resized features of one image at some pixels, (P, channels), in the stored type."""
        parts = []
        for timestep in timesteps:
            for z in features.read([row], timestep, self.layers).values():
                resize = Resize(z.shape[2:], self.image_size, self.options.resize)
                values = resize.gather(torch.from_numpy(z[0]).float(), places)
                parts.append(values.T.numpy().astype(z.dtype))
        return np.concatenate(parts, axis=1)

    def _probabilities(self, estimator: Any, x: np.ndarray) -> tuple[np.ndarray, list[int]]:
        try:
            return estimator.predict_proba(x), estimator.classes_.tolist()
        except (ValueError, TypeError) as error:
            raise TedmError(
                f"head sklearn: {self.options.estimator} with the parameters {self.options.parameters}"
                f" cannot predict: {error}"
            ) from error

    def _fitted(self) -> Any:
        """The classifier; None where training had one class only."""
        if self.estimator is None and len(np.unique(self.labels)) > 1:
            estimator = self._unfitted()
            try:
                self.estimator = estimator.fit(self.pixels.astype(np.float32), self.labels)
            except (ValueError, TypeError) as error:
                raise TedmError(
                    f"head sklearn: {self.options.estimator} with the parameters"
                    f" {self.options.parameters} does not fit: {error}"
                ) from error
        return self.estimator

    def _unfitted(self) -> Any:
        kind, parameters = self._estimator_class(), dict(self.options.parameters)
        try:
            estimator = kind(**parameters)
        except (TypeError, ValueError) as error:
            allowed = list(inspect.signature(kind).parameters)
            wrong = ", ".join(name for name in parameters if name not in allowed)
            problem = f"has no parameter {wrong}" if wrong else f"cannot be made ({error})"
            raise TedmError(
                f"head sklearn: {self.options.estimator} {problem}; parameters may be {', '.join(allowed)}"
            ) from None
        try:
            # Where the estimator is scikit-learn's own, it knows which values are allowed without any data.
            getattr(estimator, "_validate_params", lambda: None)()
        except (ValueError, TypeError) as error:
            raise TedmError(f"head sklearn: {error}") from None
        if not hasattr(estimator, "predict_proba"):  # SVC without probability, SGD with a hinge loss
            raise TedmError(
                f"head sklearn: {self.options.estimator} with the parameters {parameters} gives no"
                " probabilities (no predict_proba); change its parameters or take another estimator"
            )
        if "random_state" in estimator.get_params() and "random_state" not in parameters:
            estimator.set_params(random_state=self.seed % 2**32)
        return estimator

    def _estimator_class(self) -> Any:
        path = self.options.estimator
        module, _, name = path.rpartition(".")
        if module.split(".")[0] != "sklearn" and not self.allow_imports:
            raise TedmError(
                f"head sklearn: needs {path}, and importing it runs its code; pass allow_imports=True if"
                " you trust the file"
            )
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:  # a module of somebody else may raise anything when it is imported
            raise TedmError(
                f"head sklearn: cannot import {path} ({type(error).__name__}: {error}); give the path of"
                " a class that is installed, such as sklearn.linear_model.LogisticRegression"
            ) from error
        if not (isinstance(found, type) and hasattr(found, "fit") and hasattr(found, "get_params")):
            raise TedmError(f"head sklearn: {path} is not a classifier with predict_proba")
        return found

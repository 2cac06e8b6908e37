"""A web page with small models that really segment, running in a thread."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn
from tiny_backbone import SIZE, backbone

from tedm.heads import base
from tedm.models import Model, Models
from tedm.models.folder import FORMAT, VERSION, Description, Features, Preprocessing
from tedm.models.images import Picture
from tedm.models.passes import MemoryFeatures, compute
from tedm.web import server
from tedm.web.pictures import Given

SETTINGS = Features(
    noise_seed=1, shared_noise=False, input_range="trained", dtype="float32", keep_bits=None
)
STEPS = [1, 10, 200]
HEADS = {
    "LR": ("ridge", {"C": 0.01}),
    "LEDM": ("mlp", {"combine": "concat", "steps": 20, "learning_rate": 1e-2, "hidden": [8]}),
}


def discs(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bright discs on noise, float32 (n, 1, SIZE, SIZE), and where they are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    at, radius = rng.uniform(5, SIZE - 5, (count, 2)), rng.uniform(3, 5, count)
    masks = np.stack([(y - a) ** 2 + (x - b) ** 2 < r * r for (a, b), r in zip(at, radius, strict=True)])[
        :, None
    ]
    return np.clip(0.6 * masks + rng.uniform(0, 0.3, masks.shape), 0, 1).astype(np.float32), masks.astype(
        np.uint8
    )


def models(folder: Path) -> Models:
    """Two methods at two training sizes, on one backbone."""
    network = backbone()
    images, masks = discs(8)
    names = [f"training{i}" for i in range(len(images))]
    layers = list(network.layer_shapes)
    features = MemoryFeatures(compute(network, SETTINGS, images, names, STEPS, layers, "cpu"), (SIZE, SIZE))
    features.backbone_digest = network.digest
    made = []
    for method, (kind, settings) in HEADS.items():
        for n in (1, 6):
            head = base.create(kind, settings, STEPS, seed=0)
            head.fit(features, masks[:n], list(range(n)), [7], masks[7:], workdir=folder / f"{method}{n}")
            said = Description(
                format=FORMAT,
                format_version=VERSION,
                name=f"{method} n={n}",
                method=method,
                n=n,
                seed=0,
                kind="head",
                classes=["discs"],
                timesteps=STEPS,
                preprocessing=Preprocessing(
                    size=SIZE, channels=1, fit="stretch", intensity_range=(0, 255), deep=False
                ),
                features=SETTINGS,
                backbone=network.digest,
                synthetic=True,
            )
            made.append(Model(said, network, head, None, "cpu"))
    return Models(made)


def examples() -> dict[str, Given]:
    images, masks = discs(3, seed=1)
    return {
        f"Discs {i}": Given(f"disc-{i}", Picture(f"disc-{i}", image), mask, "A synthetic image of a test.")
        for i, (image, mask) in enumerate(zip(images, masks, strict=True), 1)
    }


@contextmanager
def running(known: Models) -> Iterator[tuple[str, Path]]:
    """Address of the page and the directory where its uploads arrive."""
    with server.listening("127.0.0.1", 0) as bound, server.prepared(known, examples(), "127.0.0.1") as app:
        served = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=served.run, args=([bound],))
        thread.start()
        try:
            while not served.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{bound.getsockname()[1]}", app.incoming
        finally:
            served.should_exit = True
            thread.join()

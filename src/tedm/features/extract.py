"""Extraction: runs a backbone once over a data set at one timestep and keeps its activations."""

import copy
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tedm import seeds
from tedm.backbones import Backbone
from tedm.config import FeaturesConfig
from tedm.data.prepared import PreparedSet
from tedm.data.splits import first_subjects
from tedm.errors import TedmError
from tedm.features import store as layout
from tedm.features.job import Job, Shard, Views, origin_of, planned
from tedm.features.rounding import keep_bits
from tedm.features.store import Key, Location, Origin
from tedm.features.views import seen
from tedm.progress import stage

BUFFERS = 2  # shards in memory for each device: one is filled while the other is written


def extract(
    backbone: Backbone,
    data: Path,
    store: Path | str,
    manifest: Path | None,
    timestep: int,
    settings: FeaturesConfig,
    noise_seed: int,
    *,
    views: Views | None = None,
    block: tuple[int, int] = (0, 1),
    devices: Sequence[str] | None = None,
) -> None:
    """Keep the features of a data set's images at one timestep, as they are or as views of them.

    Killed at any moment and called again, it goes on after the last whole shard. Arrays that other
    settings, another backbone or other data left in the store are replaced.

    Equal settings give equal bits, whatever the order of the images, the interruptions, blocks, devices of
    one kind and `images_per_shard`: all forward passes have one batch size, the last being padded.
    Another batch size, kind of device or number of threads changes float32 values in their last bits.

    Args:
        backbone: whose activations are kept.
        data: prepared data set.
        store: Zarr store of this backbone and data set, a path or s3://bucket/prefix; made if absent.
        manifest: JSON that says what is there, and where; written last, once no shard is missing. None:
            none is written.
        timestep: 0 … T-1, of the noise that images are given.
        settings: layers, precision, codec, sizes of batches and shards.
        noise_seed: with image id, timestep and view the only thing that noise depends on; with image id and
            view the only thing that a view is drawn from.
        views: of the first training subjects, instead of every image as it is; None: none.
        block: (k, n), k in 0 … n-1: only the k-th of n parts of the images, in whole shards. The job that
            finishes the last of them writes the manifest.
        devices: what to compute on, each with its own copy of the backbone; None: a GPU if there is
            one, else the CPU.

    Raises:
        TedmError: a layer, timestep or image size that the backbone lacks; values that are not finite;
            views of a data set without training images; no space or permission; another process at the
            same arrays.
    """
    location = Location(store)
    with location.place.explained(), PreparedSet(data) as images:
        layers = _checked(backbone, images, timestep, settings, block)
        origin = origin_of(backbone.digest, images.digest, settings, noise_seed)
        rows = rows_of(images, views)
        plan = planned(timestep, settings, len(rows), layers, origin, views)
        job = Job(location, plan, block, manifest)
        if job.is_done():  # perhaps by somebody else, in a place that is only readable here
            job.finish()
            return
        with layout.lock_block(location, timestep, block):
            with job.locked():
                layout.refuse_while_extracted(location, timestep, besides=block[1])
                write_root(location, images, backbone, origin)
                job.prepare(settings)
            if job.missing():
                if manifest is not None:
                    manifest.unlink(missing_ok=True)
                _Run(job, images, rows, settings, devices or _default_devices()).compute(backbone)
            with job.locked():
                job.finish()


def rows_of(images: PreparedSet, views: Views | None) -> Sequence[int]:
    """Rows of a data set that an extraction is about: all, or those with views."""
    if views is None:
        return range(len(images))
    rows = first_subjects(images.splits, images.subjects, views.recipe.subjects)
    if not rows:
        raise TedmError(f"{images.label}: has no images in the split train, so none that views are made of")
    return rows


def _default_devices() -> Sequence[str]:
    return ("cuda",) if torch.cuda.is_available() else ("cpu",)


def _checked(
    backbone: Backbone,
    images: PreparedSet,
    timestep: int,
    settings: FeaturesConfig,
    block: tuple[int, int],
) -> dict[str, tuple[int, int, int]]:
    """The layers to keep and their shapes; everything that can be wrong before anything is written."""
    if not 0 <= timestep < backbone.timesteps:
        raise TedmError(
            f"timestep {timestep} is outside 0 … {backbone.timesteps - 1}, those of its diffusion"
        )
    if not 0 <= block[0] < block[1]:
        raise TedmError(f"block {block[0]} of {block[1]}: count blocks from 0 to {block[1] - 1}")
    if tuple(images.image_shape) != tuple(backbone.image_shape):
        raise TedmError(
            f"{images.path}: its images are {images.image_shape} (channels, height, width), the backbone"
            f" was trained on {tuple(backbone.image_shape)}; prepare the data set with its image.size"
        )
    known = backbone.layer_shapes
    for layer in settings.layers or known:
        if layer not in known:
            raise TedmError(
                f"features.layers: the backbone has no layer {layer} (it has {', '.join(known)})"
            )
        Key.parse(str(Key(timestep, 0, "", layer)))
    return {
        layer: (known[layer][0], known[layer][1], known[layer][2])
        for layer in known
        if layer in (settings.layers or known)
    }


def write_root(location: Location, images: PreparedSet, backbone: Backbone, origin: Origin) -> None:
    """Say on the store's root what `root_attributes` says. The caller holds the record of a timestep."""
    with layout.lock_store(location):
        layout.write_root(location, root_attributes(images, backbone, origin))


def root_attributes(images: PreparedSet, backbone: Backbone, origin: Origin) -> dict[str, Any]:
    """Everything that a stranger needs; on another machine only `made_with`, the versions, may differ."""
    noise = "timestep" if origin.shared_noise else "image id, timestep"
    return {
        "dataset": images.label,
        "synthetic": images.synthetic,
        "source": images.source,
        "licence": images.licence,
        "cite": images.cite,
        "ids": list(images.ids),
        "subjects": list(images.subjects),
        "splits": list(images.splits),
        "image_shape": list(images.image_shape),
        "spacing_mm": images.spacing_mm if images.spacing_mm is None else list(images.spacing_mm),
        "diffusion_timesteps": backbone.timesteps,
        "layers": {layer: [int(size) for size in shape] for layer, shape in backbone.layer_shapes.items()},
        "arrays": "t{timestep}/{layer}: (image, channel, row, column);"
        " of views of training images: t{timestep}/view{view}-{recipe}/{layer}",
        "units": "1 (activations of the backbone's decoder, before upsampling)",
        "resize": "to image_shape: bilinear, align_corners=False (torch.nn.functional.interpolate)",
        "noise": f"standard normal, Philox: tedm.seeds.generator(noise_seed, 'noise', {noise}, view)",
        "made_with": {name: version(name) for name in ("torch", "numpy", "numcodecs")},
        **asdict(origin),
    }


# ── computing ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Segment:
    """Images start … stop-1 of a shard: its part of one forward pass."""

    shard: Shard
    start: int
    stop: int

    @property
    def rows(self) -> range:
        return self.shard.rows[self.start : self.stop]


class _Run:
    """What the workers of one call share: what is left to do, images and noise, writing."""

    def __init__(
        self,
        job: Job,
        images: PreparedSet,
        rows: Sequence[int],
        settings: FeaturesConfig,
        devices: Sequence[str],
    ) -> None:
        self.job, self.images, self.settings, self.devices = job, images, settings, devices
        self.origin, self.recipe = job.plan[0].origin, job.plan[0].recipe
        self.rows = rows  # of the data set, for each of the arrays' own
        # Depends on the number of images alone, so that no interruption or block changes a bit.
        passes = -(-len(rows) // settings.batch_size)
        self.batch = -(-len(rows) // passes)
        self._alone = threading.Lock()

    def compute(self, backbone: Backbone) -> None:
        """Compute and write everything that the job lacks."""
        missing = self.job.missing()
        views = len({info.key.view for info in self.job.plan})
        total = sum(len(self.job.plan[0].rows(shard)) for shard in self.job.shards) * views
        done = total - sum(len(shard.rows) for shard in missing)
        self._todo = iter(missing)
        what = "features" if self.recipe is None else "features of views"
        label = f"{what} t{self.job.timestep:04d} of {self.images.label}"
        with stage(label, total, "images", done) as self.shown:
            # Copies are made before any of them computes.
            copies = [backbone, *(copy.deepcopy(backbone) for _ in self.devices[1:])]
            workers = [
                _Worker(self, b.to(device), device) for b, device in zip(copies, self.devices, strict=True)
            ]
            with ThreadPoolExecutor(len(workers), "device") as pool:
                for future in [pool.submit(worker.work) for worker in workers]:
                    future.result()

    def shards(self) -> Iterator[Shard]:
        """Shards to compute; each is given to one worker."""
        while True:
            with self._alone:
                shard = next(self._todo, None)
            if shard is None:
                return
            yield shard

    def stop(self) -> None:
        """Give no worker anything more to do."""
        with self._alone:
            self._todo = iter(())

    def load(self, segments: Sequence[_Segment]) -> tuple[torch.Tensor, torch.Tensor]:
        """Images of a forward pass and their noise, (batch, C, H, W); the last one fills up the batch."""
        rows = [self.rows[row] for segment in segments for row in segment.rows]
        view = segments[0].shard.view
        with self._alone:  # one file, read by several workers
            images = self.images.images(rows)
        ids = [self.images.ids[row] for row in rows]
        if self.recipe is not None:
            images = seen(images, ids, view, self.recipe, self.origin.noise_seed)
        noise = np.stack([self._noise(name, view) for name in ids])
        missing = [(0, self.batch - len(rows)), (0, 0), (0, 0), (0, 0)]
        return (
            torch.from_numpy(np.pad(images, missing, mode="edge")),
            torch.from_numpy(np.pad(noise, missing, mode="edge")),
        )

    def _noise(self, name: str, view: int) -> npt.NDArray[np.float32]:
        names = [] if self.origin.shared_noise else [name]
        rng = seeds.generator(self.origin.noise_seed, "noise", *names, self.job.timestep, view)
        return rng.standard_normal(self.images.image_shape, dtype=np.float32)

    def write(self, shard: Shard, values: dict[str, npt.NDArray[Any]]) -> None:
        """Round, check and write the values (n, C, h, w) of a shard's layers; then vouch for it."""
        digests = {}
        for info in shard.infos:
            rounded = keep_bits(values[info.key.layer], self.origin.keep_bits)
            self._check_finite(info.key, shard, rounded)
            layout.write_shard(self.job.location, info, shard.number, rounded)
            digests[str(info.key)] = layout.digest_values(rounded)
        self.job.vouch(shard.number, digests)
        with self._alone:
            self.shown.advance(len(shard.rows))

    def _check_finite(self, key: Key, shard: Shard, values: npt.NDArray[Any]) -> None:
        for row, image in zip(shard.rows, values, strict=True):
            if not np.isfinite(image).all():
                wider = (
                    "set features.dtype to float32" if self.origin.dtype == "float16" else "train it again"
                )
                name = self.images.ids[self.rows[row]]
                raise TedmError(
                    f"{key} of {name} (row {row}): the backbone gives values that are not finite in"
                    f" {self.origin.dtype}; {wider}"
                )


class _Worker:
    """One device: images are loaded ahead of it, finished shards are written behind it."""

    def __init__(self, run: _Run, backbone: Backbone, device: str) -> None:
        self.run, self.backbone, self.device = run, backbone, torch.device(device)
        self.dtype = getattr(torch, run.origin.dtype)
        self.writing: deque[Future[dict[str, torch.Tensor]]] = deque()
        self.filling: dict[str, torch.Tensor] = {}

    def work(self) -> None:
        """Compute shards until none is left."""
        try:
            # Left in reverse: what has been computed is still written when something fails.
            with ThreadPoolExecutor(1, "write") as writer, ThreadPoolExecutor(1, "load") as loader:
                for segments, (images, noise) in self._loaded(loader):
                    features = self.backbone.features(
                        images.to(self.device),
                        self.run.job.timestep,
                        noise.to(self.device),
                        self.run.settings.input_range,
                    )
                    self._keep(segments, features, writer)
                while self.writing:
                    self.writing.popleft().result()
        except BaseException:
            self.run.stop()
            raise

    def _loaded(
        self, loader: ThreadPoolExecutor
    ) -> Iterator[tuple[list[_Segment], tuple[torch.Tensor, torch.Tensor]]]:
        """Forward passes with their input, the next one being loaded already."""
        ahead: deque[tuple[list[_Segment], Future[tuple[torch.Tensor, torch.Tensor]]]] = deque()
        for segments in self._passes():
            ahead.append((segments, loader.submit(self.run.load, segments)))
            if len(ahead) > 1:
                first, loading = ahead.popleft()
                yield first, loading.result()
        for last, loading in ahead:
            yield last, loading.result()

    def _passes(self) -> Iterator[list[_Segment]]:
        """Cut the shards into forward passes of the batch size; a pass may reach into the next shards."""
        segments: list[_Segment] = []
        room = self.run.batch
        for shard in self.run.shards():
            if segments and segments[0].shard.view != shard.view:
                yield segments
                segments, room = [], self.run.batch
            start = 0
            while start < len(shard.rows):
                stop = min(start + room, len(shard.rows))
                segments.append(_Segment(shard, start, stop))
                room -= stop - start
                start = stop
                if room == 0:
                    yield segments
                    segments, room = [], self.run.batch
        if segments:
            yield segments

    def _keep(
        self, segments: list[_Segment], features: dict[str, torch.Tensor], writer: ThreadPoolExecutor
    ) -> None:
        """Copy a pass's features into the shards they belong to; hand full shards to the writer."""
        start = 0
        for segment in segments:
            stop = start + segment.stop - segment.start
            if segment.start == 0:
                self.filling = self._buffers(segment.shard)
            for info in segment.shard.infos:
                layer = info.key.layer
                values = features[layer][start:stop]
                if self.device.type != "cpu":  # convert there: half the bytes to move
                    values = values.to(self.dtype, memory_format=torch.contiguous_format)
                self.filling[layer][segment.start : segment.stop].copy_(values, non_blocking=True)
            start = stop
            if segment.stop == len(segment.shard.rows):
                copied = None
                if self.device.type == "cuda":
                    copied = torch.cuda.Event()
                    copied.record(torch.cuda.current_stream(self.device))
                self.writing.append(writer.submit(self._write, segment.shard, self.filling, copied))

    def _write(
        self, shard: Shard, buffers: dict[str, torch.Tensor], copied: "torch.cuda.Event | None"
    ) -> dict[str, torch.Tensor]:
        if copied is not None:
            copied.synchronize()
        values = {
            info.key.layer: buffers[info.key.layer][: len(shard.rows)].numpy() for info in shard.infos
        }
        self.run.write(shard, values)
        return buffers

    def _buffers(self, shard: Shard) -> dict[str, torch.Tensor]:
        """Memory for a shard: that of the oldest one being written, once there are enough."""
        buffers = self.writing.popleft().result() if len(self.writing) >= BUFFERS else {}
        for info in shard.infos:
            if info.key.layer not in buffers:
                buffers[info.key.layer] = torch.empty(
                    (info.images_per_shard, *info.shape[1:]),
                    dtype=self.dtype,
                    pin_memory=self.device.type == "cuda",
                )
        return buffers

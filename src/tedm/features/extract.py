"""Extraction: runs a backbone once over a data set at one timestep and keeps its activations."""

import copy
import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tedm import files, seeds
from tedm.backbones import Backbone
from tedm.config import FeaturesConfig
from tedm.data.prepared import PreparedSet
from tedm.digests import digest_of
from tedm.errors import TedmError
from tedm.features import store as layout
from tedm.features.rounding import keep_bits
from tedm.features.store import ArrayInfo, Key, Location, Origin, Record
from tedm.progress import Stage, say, stage

DIGEST_LENGTH = 32  # hexadecimal digits kept of a shard's SHA-256
BUFFERS = 2  # shards in memory for each device: one is filled while the other is written


def extract(
    backbone: Backbone,
    data: Path,
    store: Path | str,
    manifest: Path,
    timestep: int,
    settings: FeaturesConfig,
    noise_seed: int,
    *,
    block: tuple[int, int] = (0, 1),
    devices: Sequence[str] | None = None,
) -> None:
    """Keep the features of every image of a data set at one timestep.

    Killed at any moment and called again, it goes on after the last whole shard. Arrays that other
    settings, another backbone or other data left in the store are replaced.

    Equal settings give equal bits, whatever the order of the images, the interruptions, blocks, devices of
    one kind and `images_per_shard`: all forward passes have one batch size, the last being padded.
    Another batch size, kind of device or number of threads changes float32 values in their last bits.

    Args:
        backbone: whose activations are kept.
        data: prepared data set.
        store: Zarr store of this backbone and data set; made if absent.
        manifest: JSON that says what is there; written last, once no shard is missing.
        timestep: 0 … T-1, of the noise that images are given.
        settings: layers, precision, codec, noise draws, sizes of batches and shards.
        noise_seed: with image id, timestep and draw the only thing that noise depends on.
        block: (k, n), k in 0 … n-1: only the k-th of n parts of the images, in whole shards. The job that
            finishes the last of them writes the manifest.
        devices: what to compute on, each with its own copy of the backbone; None: a GPU if there is
            one, else the CPU.

    Raises:
        TedmError: a layer, timestep or image size that the backbone lacks; values that are not finite;
            no space or permission; another process at the same arrays.
    """
    location = Location(store)
    with files.explained(location.path), PreparedSet(data) as images:
        layers = _checked(backbone, images, timestep, settings, block)
        origin = Origin(
            backbone_digest=backbone.digest,
            data_digest=images.digest,
            noise_seed=noise_seed,
            shared_noise=settings.shared_noise,
            input_range=settings.input_range,
            dtype=settings.dtype,
            keep_bits=settings.keep_bits,
        )
        plan = [
            ArrayInfo(
                Key(timestep, draw, layer),
                (len(images), *layers[layer]),
                min(settings.images_per_shard, len(images)),
                settings.codec,
                origin,
            )
            for draw in range(settings.draws)
            for layer in layers
        ]
        job = _Job(location, plan, block, manifest)
        with ExitStack() as held:
            _lock_block(held, location, timestep, block)
            with job.locked():
                _write_root(location, images, backbone, origin)
                job.prepare()
            if any(job.missing(draw) for draw in range(settings.draws)):
                manifest.unlink(missing_ok=True)
                run = _Run(job, images, settings, devices or _default_devices())
                run.compute(backbone)
            with job.locked():
                job.finish(timestep, settings)


def _default_devices() -> Sequence[str]:
    return ("cuda",) if torch.cuda.is_available() else ("cpu",)


def _checked(
    backbone: Backbone,
    images: PreparedSet,
    timestep: int,
    settings: FeaturesConfig,
    block: tuple[int, int],
) -> dict[str, tuple[int, int, int]]:
    """The layers to keep and their shapes, after everything that can be wrong before anything is written."""
    if not 0 <= timestep < backbone.timesteps:
        raise TedmError(
            f"timestep {timestep} is outside 0 … {backbone.timesteps - 1}, the backbone's diffusion timesteps"
        )
    if not 0 <= block[0] < block[1]:
        raise TedmError(f"block {block[0]} of {block[1]}: count blocks from 0 to {block[1] - 1}")
    if tuple(images.image_shape) != tuple(backbone.image_shape):
        raise TedmError(
            f"{images.path}: its images are {images.image_shape} (channels, height, width), the backbone was"
            f" trained on {tuple(backbone.image_shape)}; prepare the data set with the backbone's image.size"
        )
    known = backbone.layer_shapes
    for layer in settings.layers or known:
        if layer not in known:
            raise TedmError(f"features.layers: the backbone has no layer {layer} (it has {', '.join(known)})")
        Key.parse(str(Key(timestep, 0, layer)))
    return {
        layer: (known[layer][0], known[layer][1], known[layer][2])
        for layer in known
        if layer in (settings.layers or known)
    }


def _write_root(location: Location, images: PreparedSet, backbone: Backbone, origin: Origin) -> None:
    """Say on the store's root everything that a stranger needs. The caller holds the store's lock."""
    noise = "timestep" if origin.shared_noise else "image id, timestep"
    with files.only_one(location.lock_path(), "this feature store"):
        attributes = {
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
            "arrays": "t{timestep}/{layer}, or t{timestep}/draw{draw}/{layer}: (image, channel, row, column)",
            "units": "1 (activations of the backbone's decoder, before upsampling)",
            "resize": "to image_shape: bilinear, align_corners=False (torch.nn.functional.interpolate)",
            "noise": f"standard normal; Philox seeded with noise_seed, {noise}, draw (tedm.seeds.generator)",
            "made_with": {name: version(name) for name in ("torch", "numpy", "zarr")},
            **layout.asdict(origin),
        }
        layout.write_root(location, attributes)


def _lock_block(held: ExitStack, location: Location, timestep: int, block: tuple[int, int]) -> None:
    """Hold the lock of this block of this timestep, until `held` ends."""
    k, n = block
    name = f"t{timestep:04d}.{k}of{n}"
    held.enter_context(
        files.only_one(location.lock_path(name), f"block {k} of {n} of t{timestep:04d} of this store", patience=0)
    )


# ── what there is to do, and what is done ───────────────────────────────────────────────────────


class _Job:
    """The arrays that one call makes, and the record of their shards."""

    def __init__(
        self, location: Location, plan: Sequence[ArrayInfo], block: tuple[int, int], manifest: Path
    ) -> None:
        self.location, self.plan, self.manifest = location, plan, manifest
        self.timestep = plan[0].key.timestep
        self.record = Record(location, self.timestep)
        shards = plan[0].shards
        k, n = block
        self.shards = range(shards * k // n, shards * (k + 1) // n)
        self.images_per_shard = plan[0].images_per_shard
        self._within = threading.Lock()

    def locked(self) -> Any:
        """Hold the timestep's arrays and record against other processes and threads."""
        held = ExitStack()
        held.enter_context(self._within)
        path = self.location.lock_path(f"t{self.timestep:04d}")
        held.enter_context(files.only_one(path, "these features"))
        return held

    def prepare(self) -> None:
        """Make the arrays that are missing or stale; trust no shard that the record does not vouch for."""
        digests = self.record.read()
        stale = [info for info in self.plan if self._state(info) != info]
        for info in self.plan:
            recorded = digests.get(str(info.key), [])
            if info in stale or len(recorded) != info.shards:
                digests[str(info.key)] = [None] * info.shards
        # Before anything is deleted: the record must never vouch for what is not there.
        self.record.write(digests)
        for info in stale:
            self.location.remove(str(info.key))
            layout.create_array(
                self.location, info.key, info.shape, info.origin, info.images_per_shard, info.codec
            )
        self.digests = digests
        self._distrust()

    def _state(self, info: ArrayInfo) -> ArrayInfo | None:
        try:
            return layout.read_array_info(self.location, info.key, info.shape[0])
        except TedmError:
            return None

    def _distrust(self) -> None:
        """Forget own shards that are not whole, and clear what killed writers left."""
        changed = False
        for info in self.plan:
            recorded = self.digests[str(info.key)]
            array = layout.open_array(self.location, info.key)
            vouched = [shard for shard in self.shards if recorded[shard] is not None]
            for shard in self.shards:
                self.location.clear_litter(f"{info.key}/c/{shard}")
            for shard in vouched:
                file = f"{info.key}/c/{shard}/0/0/0"
                # The last one may have been caught by a power cut; the others have been on the disk for long.
                whole = self.location.has(file) and (
                    shard != vouched[-1] or digest_shard(array, info, shard) == recorded[shard]
                )
                if not whole:
                    recorded[shard] = None
                    changed = True
        if changed:
            self.record.write(self.digests)

    def missing(self, draw: int) -> list[tuple[int, list[ArrayInfo]]]:
        """Shards to compute, each with the arrays that lack it."""
        plan = [info for info in self.plan if info.key.draw == draw]
        lacking = (
            (shard, [info for info in plan if self.digests[str(info.key)][shard] is None])
            for shard in self.shards
        )
        return [(shard, infos) for shard, infos in lacking if infos]

    def vouch(self, shard: int, digests: dict[str, str]) -> None:
        """Record that a shard is on the disk in these arrays."""
        with self.locked():
            record = self.record.read()
            for key, digest in digests.items():
                record[key][shard] = digest
            self.record.write(record)

    def finish(self, timestep: int, settings: FeaturesConfig) -> None:
        """Write the manifest, unless other blocks are still missing."""
        digests = self.record.read()
        gaps = sum(d is None for info in self.plan for d in digests[str(info.key)])
        if gaps:
            say(f"{self.location}: t{timestep:04d} lacks {gaps} shards of other blocks; no manifest yet")
            return
        first = self.plan[0]
        files.write_json(
            self.manifest,
            {
                "format": f"{layout.FORMAT}: manifest",
                "format_version": layout.FORMAT_VERSION,
                "timestep": timestep,
                "images": first.shape[0],
                "images_per_shard": first.images_per_shard,
                "codec": first.codec,
                "draws": settings.draws,
                "batch_size": settings.batch_size,
                **layout.asdict(first.origin),
                "arrays": {
                    str(info.key): {"shape": info.shape, "digest": digest_of(digests[str(info.key)])}
                    for info in self.plan
                },
            },
        )


def digest_shard(array: Any, info: ArrayInfo, shard: int) -> str | None:
    """Digest of a shard's values as they are read back; None where it cannot be read."""
    rows = info.rows(shard)
    values = np.empty((len(rows), *info.shape[1:]), info.origin.dtype)
    try:
        layout.read_into(array, rows.start, values)
    except Exception:  # every codec has errors of its own
        return None
    return digest_values(values)


def digest_values(values: npt.NDArray[Any]) -> str:
    """Digest of values, whatever codec they are stored with."""
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()[:DIGEST_LENGTH]


# ── computing ───────────────────────────────────────────────────────────────────────────────────


class _Run:
    """Computes missing shards: loading runs ahead of the device, writing behind it."""

    def __init__(
        self, job: _Job, images: PreparedSet, settings: FeaturesConfig, devices: Sequence[str]
    ) -> None:
        self.job, self.images, self.settings, self.devices = job, images, settings, devices
        self.origin = job.plan[0].origin
        # Depends on the number of images alone, so that no interruption or block changes a bit.
        passes = -(-len(images) // settings.batch_size)
        self.batch = -(-len(images) // passes)
        self._reading = threading.Lock()

    def compute(self, backbone: Backbone) -> None:
        """Compute and write everything that the job lacks."""
        shards = [(draw, *todo) for draw in range(self.settings.draws) for todo in self.job.missing(draw)]
        total = len(self.job.shards) * self.settings.draws
        done = (total - len(shards)) * self.job.images_per_shard
        images = sum(len(infos[0].rows(shard)) for _, shard, infos in shards)
        label = f"features t{self.job.timestep:04d} of {self.images.label}"
        todo = _Shared(shards)
        with stage(label, done + images, "images", done) as shown:
            if len(self.devices) == 1:
                _Worker(self, backbone.to(self.devices[0]), self.devices[0], todo, shown).work()
                return
            workers = [
                _Worker(self, copy.deepcopy(backbone).to(device), device, todo, shown) for device in self.devices
            ]
            with ThreadPoolExecutor(len(workers), "device") as pool:
                for future in [pool.submit(worker.work) for worker in workers]:
                    future.result()

    def load(self, rows: Sequence[int], draw: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and their noise, (batch, C, H, W); the last ones are repeated up to the batch size."""
        padded = [*rows, *[rows[-1]] * (self.batch - len(rows))]
        with self._reading:
            images = self.images.images(rows)
        noise = np.stack([self.noise(row, draw) for row in rows])
        extra = self.batch - len(rows)
        if extra:
            images = np.concatenate([images, images[-1:].repeat(extra, axis=0)])
            noise = np.concatenate([noise, noise[-1:].repeat(extra, axis=0)])
        assert len(images) == len(padded)
        return torch.from_numpy(images), torch.from_numpy(noise)

    def noise(self, row: int, draw: int) -> npt.NDArray[np.float32]:
        """The noise of one image, (C, H, W)."""
        names = [] if self.origin.shared_noise else [self.images.ids[row]]
        rng = seeds.generator(self.origin.noise_seed, "noise", *names, self.job.timestep, draw)
        return rng.standard_normal(self.images.image_shape, dtype=np.float32)


class _Shared[Item]:
    pass

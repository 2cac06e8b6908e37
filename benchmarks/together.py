"""Heads of one job, fitted and scored together, against the same ones in a job each.

    python benchmarks/together.py                              # on the demo's results
    python benchmarks/together.py --results results/xray64 --configfile experiments/xray64.yaml

Reads a finished experiment's data and features; writes only in a temporary directory. Each pair runs both
ways, one after the other, and checks that the heads are the same to the byte. Prints a Markdown table of
medians.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tedm import config
from tedm.features.reader import FeatureStore
from tedm.features.shared import SharedFeatures

TEDM = str(Path(sys.executable).with_name("tedm"))


class Bench:
    """Runs the jobs of one head of an experiment."""

    def __init__(self, results: Path, experiment: config.Experiment, head: str, steps: int | None) -> None:
        self.results, self.experiment, self.head = results, experiment, head
        chosen, evaluation = experiment.heads[head], experiment.evaluation
        self.features = results / "features" / experiment.backbone_of(head)
        self.digest = results / "backbones" / experiment.backbone_of(head) / "digest.json"
        self.train_on, self.test_on = evaluation.train_on, evaluation.test_on
        self.fits = [f"{n}/0" for n in sorted(evaluation.train_sizes)]
        settings = chosen.settings | ({"steps": steps} if steps and chosen.type == "mlp" else {})
        self.fit_spec: dict[str, Any] = {
            "name": head,
            "type": chosen.type,
            "settings": settings,
            "timesteps": sorted(chosen.timesteps),
            "layers": chosen.layers or experiment.features.layers,
            "experiment_seed": experiment.seed,
        }

    def fit(self, fits: list[str], out: Path, threads: int) -> float:
        """Seconds of one job that fits these."""
        store = self.features / f"{self.train_on}.zarr"
        return seconds(
            [
                *(
                    "fit",
                    "--spec",
                    json.dumps(self.fit_spec),
                    "--fits",
                    " ".join(fits),
                    "--store",
                    str(store),
                ),
                *(
                    "--data",
                    str(self.results / "data" / f"{self.train_on}.h5"),
                    "--digest",
                    str(self.digest),
                ),
                *("--out", str(out), "--threads", str(threads)),
            ]
        )

    def score(self, fits: list[str], heads: Path, out: Path) -> float:
        """Seconds of one job that scores these."""
        spec = {"method": self.head, "readings": {}, "datasets": self.test_on}
        return seconds(
            [
                *("score", "--spec", json.dumps(spec), "--fits", " ".join(fits), "--heads", str(heads)),
                *(
                    "--data",
                    str(self.results / "data"),
                    "--features",
                    str(self.features),
                    "--out",
                    str(out),
                ),
            ]
        )

    def read(self) -> tuple[float, float]:
        """Seconds for the features of all fits, each read by itself and shared."""
        store = FeatureStore.open(self.features / f"{self.train_on}.zarr")
        rows = [row for row, split in enumerate(store.splits) if split == "train"]
        val = [row for row, split in enumerate(store.splits) if split == "val"]
        taken = []
        for source in (store, SharedFeatures(store, 2**30)):
            start = time.perf_counter()
            for fit in reversed(self.fits):
                for timestep in self.fit_spec["timesteps"]:
                    source.read([*val, *rows[: int(fit.split("/")[0])]], timestep, self.fit_spec["layers"])
            taken.append(time.perf_counter() - start)
        return taken[0], taken[1]


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([TEDM, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(bench: Bench, pairs: int, place: Path) -> list[str]:
    lines = []
    found: dict[str, list[tuple[float, float]]] = {"fit": [], "score": [], "read": []}
    for _ in range(pairs):
        shutil.rmtree(place, ignore_errors=True)
        one = sum(bench.fit([fit], place / "one", 1) for fit in bench.fits)
        all_of_them = bench.fit(bench.fits, place / "all", 1)
        for file in (place / "one").rglob("*.safetensors"):
            if file.read_bytes() != (place / "all" / file.relative_to(place / "one")).read_bytes():
                raise SystemExit(f"{file.relative_to(place)}: not the same head in company")
        found["fit"].append((one, all_of_them))
        one = sum(bench.score([fit], place / "all", place / "one") for fit in bench.fits)
        found["score"].append((one, bench.score(bench.fits, place / "all", place / "together")))
        found["read"].append(bench.read())
    names = {"fit": "fit", "score": "score", "read": "of which reading training features"}
    for what, pairs_of in found.items():
        one, together = (statistics.median(side) for side in zip(*pairs_of, strict=True))
        ratio = statistics.median(a / b for a, b in pairs_of)
        about = f"{bench.head}, {len(bench.fits)} sizes | {names[what]}"
        lines.append(f"| {about} | {one:.2f} s | {together:.2f} s | {ratio:.2f} |")
    return lines


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--configfile", type=Path, default=Path("config.yaml"))
    options.add_argument("--results", type=Path)
    options.add_argument("--heads", nargs="*")
    options.add_argument("--steps", type=int, help="training steps of MLP heads; absent: as configured")
    options.add_argument("--pairs", type=int, default=3)
    given = options.parse_args()
    experiment = config.load(given.configfile)
    results = given.results or Path(experiment.results)
    start = statistics.median(seconds(["schema"]) for _ in range(3))
    torch = statistics.median(importing() for _ in range(3))
    print(f"Start of a process: {start:.2f} s for `tedm`, {torch:.2f} s with torch and the heads.\n")
    print("| head | what | one by one | together | ratio |\n|---|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as place:
        for head in given.heads or experiment.heads:
            bench = Bench(results, experiment, head, given.steps)
            print("\n".join(measure(bench, given.pairs, Path(place) / "pair")), flush=True)


def importing() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import tedm.fitting, tedm.scoring, tedm.heads.mlp"], check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

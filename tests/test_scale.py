"""The plan on paper says what its script computes, and the script knows the layout of real stores."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from tiny_backbone import backbone, data_set

from tedm.config import FeaturesConfig
from tedm.features.extract import extract

PROJECT = Path(__file__).parents[1]
PAGE = (PROJECT / "docs" / "scale.md").read_text()
spec = importlib.util.spec_from_file_location("scale", PROJECT / "benchmarks" / "scale.py")
scale = importlib.util.module_from_spec(spec)
sys.modules["scale"] = scale
spec.loader.exec_module(scale)


def test_the_page_has_what_the_script_computes() -> None:
    for name, block in scale.computed().items():
        assert f"<!-- scale: {name} -->\n{block}\n<!-- end -->" in PAGE, (
            "run: python benchmarks/scale.py --into docs/scale.md"
        )


@pytest.mark.slow
def test_the_page_counts_the_jobs_that_snakemake_plans() -> None:
    jobs = scale.planned_jobs("paper_brats")
    column = re.findall(r"^\| `(\w+)` \| \d+ \| (\d+) \| \d+ \|$", PAGE, flags=re.M)
    assert {rule: int(count) for rule, count in column if count != "0"} == {
        rule: count for rule, count in jobs.items() if rule not in ("all", "total")
    }, "run: python benchmarks/scale.py --into docs/scale.md"


@pytest.mark.parametrize("per_shard", [3, 64])
def test_bytes_and_files_are_those_of_a_real_store(tmp_path: Path, per_shard: int) -> None:
    model, store = backbone(), tmp_path / "tiny.zarr"
    data_set(tmp_path / "tiny.h5", images=10)
    settings = FeaturesConfig(images_per_shard=per_shard)
    for timestep in (10, 50):
        extract(model, tmp_path / "tiny.h5", store, None, timestep, settings, 0)
    files = [path for path in store.rglob("*") if path.is_file()]
    shapes = {name: tuple(shape) for name, shape in model.layer_shapes.items()}
    computed = scale.Store(10, 2, shapes, per_shard)
    shards = [path for path in files if path.name.startswith("c.")]
    assert (len(files), len(shards)) == (computed.files, computed.shard_files)
    assert sum(path.stat().st_size for path in shards) == computed.shard_bytes
    # What a record has besides digests does not grow.
    record = (store / "t0010" / "zarr.json").read_text()
    digests = [line for line in record.splitlines(keepends=True) if re.match(r' +"[0-9a-f]{32}"', line)]
    assert abs(len("".join(digests)) - computed.record_bytes) <= len(digests)

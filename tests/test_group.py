"""One place for the features of a group: real users, who read and add to what others made."""

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from test_workflow import TINY, snakemake
from tiny_backbone import backbone, data_set
from typer.testing import CliRunner

from tedm import config, files
from tedm.cli_store import app
from tedm.config import FeaturesConfig
from tedm.errors import TedmError
from tedm.features import catalogue, check
from tedm.features import store as layout
from tedm.features.adopt import adopt, adopt_planned, recipe_of, shared_store
from tedm.features.extract import extract
from tedm.features.job import Views
from tedm.features.reader import FeatureStore

GROUP, ANNA, BEN, CARL = 54320, 54321, 54322, 54323  # no names are known for them; Carl is not of the group
SETTINGS = FeaturesConfig(images_per_shard=4, batch_size=4)

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become other users")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody reaches, with the group's own in it."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o755)
    data_set(top / "tiny.h5")
    (top / "group").mkdir()
    os.chown(top / "group", 0, GROUP)
    (top / "group").chmod(0o2775)
    for user in (ANNA, BEN, CARL):
        (top / str(user)).mkdir()
        os.chown(top / str(user), user, user)
    yield top
    shutil.rmtree(top)


def as_user(user: int, what: Callable[[], object], umask: int = 0o022) -> str:
    """Do it in a process of that user; what it said when it failed, "" otherwise."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = ""
        try:
            os.setgroups([] if user == CARL else [GROUP])
            os.setgid(user)
            os.setuid(user)
            os.umask(umask)
            what()
        except TedmError as error:
            said = str(error)
        except BaseException:
            said = traceback.format_exc()
        finally:
            os.write(write, said.encode()[:60_000])
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def store_in(place: Path, model=None) -> str:
    model = model or backbone()
    return shared_store(f"{place}/group", "ddpm", model.digest, place / "tiny.h5", SETTINGS, 0)


def make(place: Path, user: int, timestep: int) -> Callable[[], None]:
    model, store = backbone(), store_in(place)
    manifest = place / str(user) / f"tiny.t{timestep:04d}.json"
    return lambda: extract(model, place / "tiny.h5", store, manifest, timestep, SETTINGS, 0)


@needs_root
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_two_users_add_to_one_store_in_turn(place: Path, umask: int) -> None:
    extract(backbone(), place / "tiny.h5", place / "own.zarr", None, 50, SETTINGS, 0)  # all is imported now
    for user, timestep in ((ANNA, 50), (BEN, 60), (ANNA, 70), (BEN, 50)):
        assert as_user(user, make(place, user, timestep), umask) == ""
    for path in (place / "group").rglob("*"):
        state = path.stat()
        assert state.st_gid == GROUP
        assert state.st_mode & 0o060 == 0o060, path
        if path.is_dir():
            assert state.st_mode & stat.S_ISGID
    assert check.verify(store_in(place)) == []
    mine, theirs = (place / str(user) / "tiny.t0050.json" for user in (ANNA, BEN))
    assert mine.read_bytes() == theirs.read_bytes()

    table = {part.made_by: part for part in catalogue.contributions(place / "group")}
    assert table[str(ANNA)].timesteps == [50, 70]
    assert table[str(BEN)].timesteps == [60]
    assert {part.dataset for part in table.values()} == {"Tiny"}
    assert sum(part.bytes for part in table.values()) <= check.info(store_in(place)).bytes


@needs_root
def test_who_is_not_of_the_group_reads_and_is_told_why_nothing_can_be_added(place: Path) -> None:
    extract(backbone(), place / "tiny.h5", place / "own.zarr", None, 50, SETTINGS, 0)
    assert as_user(ANNA, make(place, ANNA, 50)) == ""
    (place / "group" / Path(store_in(place)).parent.name / ".killed.partial").write_text("litter")
    assert as_user(CARL, make(place, CARL, 50)) == ""
    assert as_user(CARL, lambda: FeatureStore.open(store_in(place)).read([3], 50)) == ""
    said = as_user(CARL, make(place, CARL, 60))
    assert re.search(rf"no permission .* is of user {ANNA}, group {GROUP}, drwxrwsr-x\)", said), said
    assert "\n" not in said
    assert as_user(CARL, lambda: _must_adopt(place, CARL)) == ""


def _must_adopt(place: Path, user: int) -> None:
    manifests = {t: place / str(user) / f"again.t{t:04d}.json" for t in (50, 60)}
    taken = adopt(store_in(place), backbone().digest, place / "tiny.h5", SETTINGS, 0, manifests)
    assert taken == [50]
    assert [t for t, manifest in manifests.items() if manifest.exists()] == [50]


@needs_root
def test_a_timestep_that_one_user_makes_does_not_keep_the_other_from_another_one(place: Path) -> None:
    extract(backbone(), place / "tiny.h5", place / "own.zarr", None, 50, SETTINGS, 0)
    assert as_user(ANNA, make(place, ANNA, 50)) == ""
    with layout.lock_block(layout.Location(store_in(place)), 60, (0, 1)):
        assert as_user(BEN, make(place, BEN, 70)) == ""


@pytest.mark.parametrize(
    ("mode", "expected"), [(0o2775, 0o664), (0o2770, 0o660), (0o775, 0o640), (0o2755, 0o640)]
)
def test_files_follow_a_directory_that_is_there_to_be_shared_and_no_other(
    tmp_path: Path, mode: int, expected: int
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here").chmod(mode)
    before = os.umask(0o027 if expected == 0o640 else 0o022 if expected == 0o664 else 0o027)
    try:
        files.write_text(tmp_path / "here" / "below" / "file", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "here" / "below" / "file").stat().st_mode) == expected


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EROFS, "no permission .*Read-only"),
    ],
)
def test_a_place_that_refuses_is_named_in_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(TedmError, match=message) as error:
        make(place, ANNA, 50)()
    assert "\n" not in str(error.value)
    assert str(place / "group") in str(error.value)


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "group").write_text("")
    with pytest.raises(TedmError, match=r"a file is where a directory should be .*group"):
        files.write_text(tmp_path / "group" / "below" / "file", "")


def test_ls_of_a_place_shows_what_is_unfinished_and_what_is_broken(place: Path) -> None:
    make(place, ANNA, 50)()
    store = Path(store_in(place))
    record = json.loads((store / "t0050" / "zarr.json").read_text())
    record["attributes"]["complete"] = False
    shutil.copytree(store / "t0050", store / "t0060")
    (store / "t0060" / "zarr.json").write_text(json.dumps(record))
    (store.parent / "broken.zarr").mkdir()
    shown = CliRunner().invoke(app, ["ls", str(place / "group")])
    assert shown.exit_code == 0
    assert re.search(
        rf"{store.parent.name}/{store.name} .* Tiny .* 10 .* 50, 60 \(unfinished\)", shown.stdout
    )
    assert re.search(r"broken\.zarr .*is not a", shown.stdout)


def test_many_at_once_make_one_shared_directory(tmp_path: Path) -> None:
    (tmp_path / "group").mkdir()
    (tmp_path / "group").chmod(0o2775)
    paths = [tmp_path / "group" / str(n // 8) / "below" / f"{n}" for n in range(64)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda path: files.write_text(path, ""), paths))
    assert sorted(path for path in (tmp_path / "group").rglob("*") if path.is_file()) == sorted(paths)
    folders = [path for path in (tmp_path / "group").rglob("*") if path.is_dir()]
    assert len(folders) == 16
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o2775}


# ── before anything runs ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def newcomer(place: Path) -> Path:
    """Results with backbone and data of an experiment whose features others made, but t = 200 of NIH."""
    model, results = backbone(), place / "results"
    experiment = yaml.safe_load(yaml.safe_dump(TINY))
    experiment["features"]["location"] = str(place / "group")
    (place / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    settings = config.parse(experiment).features
    for dataset, seed in (("cxr", 0), ("jsrt", 1), ("nih", 2)):
        data = data_set(results / "data" / f"{dataset}.h5", seed=seed)
        data.with_suffix(".json").write_text("{}")
        for timestep in (10, 200) if dataset == "jsrt" else (10,):
            store = shared_store(f"{place}/group", "ddpm", model.digest, data, settings, TINY["seed"])
            extract(model, data, store, None, timestep, settings, TINY["seed"])
    folder = results / "backbones" / "ddpm"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "losses.csv", "samples.png"):
        (folder / name).touch()
    (folder / "digest.json").write_text(json.dumps({"digest": model.digest}))
    return place


def test_planning_takes_over_what_is_complete_and_only_that(
    newcomer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(newcomer)
    experiment = config.load(Path("experiment.yaml"))
    taken = adopt_planned(experiment)
    assert sorted(taken.values()) == [[10], [10, 200]]
    made = sorted(path.name for path in Path("results/features/ddpm").iterdir())
    assert made == ["jsrt.t0010.json", "jsrt.t0200.json", "nih.t0010.json"]
    assert adopt_planned(experiment) == {}
    shard = next((newcomer / "group").glob("ddpm-*/jsrt-*.zarr/t0010/up0/c.0.0.0.0"))
    shard.unlink()
    shutil.rmtree("results/features")
    assert sorted(adopt_planned(experiment).values()) == [[10], [200]]


def test_planning_takes_over_views_of_the_experiments_ranges_and_no_others(
    newcomer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(newcomer)
    stated = yaml.safe_load(Path("experiment.yaml").read_text())
    stated["heads"]["LR"]["views"] = 2
    stated["features"]["view_subjects"] = 3
    experiment, other = (config.parse(stated | {"augmentation": {"zoom": zoom}}) for zoom in (0.2, 0.3))
    data = Path("results/data/jsrt.h5")
    data_set(data, splits=["train"] * 4 + ["test"] * 6)
    model, results = backbone(), Path("results/features/ddpm")
    store = shared_store(f"{newcomer}/group", "ddpm", model.digest, data, experiment.features, TINY["seed"])
    extract(model, data, store, None, 10, experiment.features, TINY["seed"])
    for views, timestep in ((2, 10), (1, 200)):  # of t = 200 one is missing
        wanted = Views.first(recipe_of(experiment), views)
        extract(model, data, store, None, timestep, experiment.features, TINY["seed"], views=wanted)
    for e, found in ((other, set()), (experiment, {"jsrt.t0010.views2.json"})):
        shutil.rmtree(results, ignore_errors=True)
        adopt_planned(e)
        made = {path.name for path in results.iterdir()}
        assert made == {"jsrt.t0010.json", "nih.t0010.json"} | found
    run = snakemake(newcomer, "--dry-run", "results/heads/LR/n1/seed0/head.safetensors")
    assert not re.search(r"^extract_views ", run.stdout + run.stderr, flags=re.M)  # the file has no views
    Path("experiment.yaml").write_text(yaml.safe_dump(stated))
    run = snakemake(newcomer, "--dry-run", "results/heads/LR/n1/seed0/head.safetensors")
    assert re.search(r"^extract_views +1$", run.stdout + run.stderr, flags=re.M), run.stderr


def test_snakemake_plans_no_job_for_features_that_are_there(newcomer: Path) -> None:
    run = snakemake(newcomer, "--dry-run", "results/scores/LR/n1/seed0/nih.csv")
    assert run.returncode == 0, run.stderr
    assert re.search(r"^extract_features +1$", run.stdout + run.stderr, flags=re.M)  # t = 200 of NIH alone


def test_a_job_whose_features_are_there_loads_no_torch(newcomer: Path, monkeypatch) -> None:
    results, timestep = newcomer / "results", 10
    settings = {
        "features": config.load(newcomer / "experiment.yaml").features.model_dump(exclude={"location"})
    }
    spec = json.dumps({**settings, "timestep": timestep, "seed": TINY["seed"]})
    code = "import sys; from tedm.cli import main; sys.modules['torch'] = None; sys.exit(main())"
    arguments = [
        "--spec",
        spec,
        "--backbone",
        results / "backbones" / "ddpm",
        "--data",
        results / "data" / "jsrt.h5",
    ]
    where = ["--store", f"{newcomer}/group/", "--manifest", newcomer / "m.json"]
    run = subprocess.run(
        [sys.executable, "-c", code, "extract", *arguments, *where], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert json.loads((newcomer / "m.json").read_text())["timestep"] == timestep

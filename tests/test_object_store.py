"""Feature stores in object storage, against an S3 server over HTTP; stores that several users share."""

import json
import os
import pickle
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import numpy as np
import obstore.store
import pytest
import torch
import zarr
from test_workflow import snakemake, write_experiment
from tiny_backbone import backbone, data_set

from tedm import config
from tedm.config import AugmentationConfig, FeaturesConfig
from tedm.errors import TedmError
from tedm.features import catalogue, check
from tedm.features import store as layout
from tedm.features.adopt import adopt, shared_store
from tedm.features.dataset import FeatureDataset
from tedm.features.extract import extract
from tedm.features.job import Views
from tedm.features.reader import FeatureStore
from tedm.features.store import Recipe

N, T = 10, 50
KEY, SECRET = "AKIDOFATEST", "very/secret+of/a+test"
SETTINGS = FeaturesConfig(images_per_shard=2, batch_size=4)


@pytest.fixture(scope="module")
def server():
    """Address of an S3 server that knows KEY, SECRET and the bucket "features"; settings to reach it."""
    script = Path(__file__).with_name("s3_server.py")
    process = subprocess.Popen([sys.executable, script, KEY, SECRET], stdout=subprocess.PIPE, text=True)
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{process.stdout.readline().strip()}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_MAX_ATTEMPTS": "2",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="features")
        yield settings["AWS_ENDPOINT_URL"]
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set, and a local store of it."""
    folder = tmp_path_factory.mktemp("local")
    data_set(folder / "tiny.h5", images=N, splits=["test"] * 4 + ["train"] * 6)
    run(folder / "tiny.zarr", folder)
    return folder


@pytest.fixture
def url(server, request):
    """Address of a store that is not there yet."""
    return f"s3://features/{re.sub('[^a-z0-9]+', '-', request.node.name)}/tiny.zarr"


@pytest.fixture(scope="module")
def made(server, folder):
    """A whole store, not to be changed."""
    run("s3://features/made/tiny.zarr", folder)
    return "s3://features/made/tiny.zarr"


def run(store, folder, settings=SETTINGS, model=None, manifest=None, **more):
    manifest = manifest or folder / "bucket" / "tiny.t0050.json"
    extract(model or backbone(), folder / "tiny.h5", store, manifest, T, settings, 0, **more)
    return manifest


def tell(server, what):
    request = urllib.request.Request(f"{server}/-/{what}", method="GET" if what == "log" else "POST")
    with urllib.request.urlopen(request) as answer:
        return answer.read().decode()


def client():
    return boto3.client("s3")


def objects(url):
    """Every object of a store by its path in it, as the client library gives it."""
    prefix = url.removeprefix("s3://features/") + "/"
    listed = client().list_objects_v2(Bucket="features", Prefix=prefix).get("Contents", [])
    keys = [entry["Key"] for entry in listed]
    return {
        key.removeprefix(prefix): client().get_object(Bucket="features", Key=key)["Body"].read()
        for key in keys
    }


def local(folder):
    store = folder / "tiny.zarr"
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in store.rglob("*") if p.is_file()}


# ── the same store ──────────────────────────────────────────────────────────────────────────────


def test_a_store_in_a_bucket_has_the_bytes_of_one_in_a_directory(folder, made):
    assert objects(made) == local(folder)
    assert check.verify(made) == []


@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_every_codec_has_the_bytes_of_one_in_a_directory(folder, url, tmp_path, codec):
    settings = SETTINGS.model_copy(update={"codec": codec})
    run(url, folder, settings)
    run(tmp_path / "tiny.zarr", folder, settings)
    assert objects(url) == local(tmp_path)
    rows = [7, 1, 2, 9]
    mine, theirs = FeatureStore.open(url), FeatureStore.open(tmp_path / "tiny.zarr")
    for layer, values in mine.read(rows, T).items():
        np.testing.assert_array_equal(values, theirs.read(rows, T)[layer])


def test_plain_zarr_reads_it_from_the_bucket(server, folder, made):
    bucket = obstore.store.S3Store(
        "features",
        prefix="made/tiny.zarr",
        endpoint=server,
        access_key_id=KEY,
        secret_access_key=SECRET,
        region="us-east-1",
        client_options={"allow_http": True},
    )
    group = zarr.open_group(zarr.storage.ObjectStore(bucket, read_only=True), mode="r")
    assert group.attrs["dataset"] == "Tiny"
    assert {path for path, _ in group.members(max_depth=None)} == {"t0050", "t0050/up0", "t0050/up1"}
    for layer, values in FeatureStore.open(folder / "tiny.zarr").read(range(N), T).items():
        np.testing.assert_array_equal(group[f"t0050/{layer}"][:], values)


def test_it_is_read_like_one_in_a_directory_also_pickled_and_by_threads(folder, made):
    here = FeatureStore.open(folder / "tiny.zarr").read(range(N), T)
    there = pickle.loads(pickle.dumps(FeatureStore.open(made)))
    rows = [3, 9, 0, 1, 1]
    for layer, values in there.read(rows, T).items():
        np.testing.assert_array_equal(values, here[layer][rows])
    with ThreadPoolExecutor(4) as pool:
        for row, values in enumerate(pool.map(lambda row: there.read([row], T)["up0"], range(N))):
            np.testing.assert_array_equal(values[0], here["up0"][row])
    joined = np.concatenate([part.features[T, "up1"] for part in there.iterate(batch=3)])
    np.testing.assert_array_equal(joined, here["up1"])


def test_a_forked_torch_loader_reads_it(folder, made):
    here = FeatureStore.open(folder / "tiny.zarr").read(range(N), T)
    there = FeatureStore.open(made)
    there.read([0], T)  # connections are open when the workers are forked
    loader = torch.utils.data.DataLoader(
        FeatureDataset(there, rows=[4, 2, 9]),
        batch_size=3,
        num_workers=1,
        multiprocessing_context="fork",
        timeout=30,
    )
    (batch,) = loader
    np.testing.assert_array_equal(batch["t0050/up1"].numpy(), here["up1"][[4, 2, 9]])


def test_one_image_costs_its_own_bytes_and_an_index(server, folder, url):
    run(url, folder, SETTINGS.model_copy(update={"images_per_shard": N, "codec": "none"}))
    features = FeatureStore.open(url)
    tell(server, "accept")
    features.read([3], T, ["up1"])
    ranges = [line.split("bytes=")[1] for line in tell(server, "log").split("\n")]
    size = 2 * 8 * 16 * 16 + 4  # float16 and a checksum
    assert ranges == [f"-{16 * N + 4}", f"{3 * size}-{4 * size - 1}"]
    tell(server, "accept")
    features.read([3, 4, 5, 8], T, ["up1"])
    assert len(tell(server, "log").split("\n")) == 2  # neighbours come in one request


VIEWS = Views.first(Recipe(AugmentationConfig(), 5), 2)


def test_views_in_a_bucket_have_the_bytes_of_those_in_a_directory_are_resumed_and_mended(
    server, folder, url, tmp_path
):
    for store in (url, tmp_path / "tiny.zarr"):
        run(store, folder)
    tell(server, "refuse?after=11&status=503")  # groups, arrays, the record, two shards
    with pytest.raises(TedmError, match="goes on from there"):
        run(url, folder, views=VIEWS)
    tell(server, "accept")
    made, model = [key for key in objects(url) if "/view" in key and "/c." in key], backbone()
    assert made
    run(url, folder, views=VIEWS)
    manifest = run(tmp_path / "tiny.zarr", folder, views=VIEWS)
    assert objects(url) == local(tmp_path)
    mine, theirs = FeatureStore.open(url), FeatureStore.open(tmp_path / "tiny.zarr")
    for layer, values in mine.read([7, 5, 8], T, view=2).items():
        np.testing.assert_array_equal(values, theirs.read([7, 5, 8], T, view=2)[layer])
    again = pickle.loads(pickle.dumps(mine))
    assert again.recipe == VIEWS.recipe

    view = f"t0050/view2-{VIEWS.recipe.digest}"
    key = f"{url.removeprefix('s3://features/')}/{view}/up1/c.1.0.0.0"
    content = bytearray(client().get_object(Bucket="features", Key=key)["Body"].read())
    content[10] ^= 1
    client().put_object(Bucket="features", Key=key, Body=bytes(content))
    client().delete_object(Bucket="features", Key=key.replace("up1/c.1.0.0.0", "zarr.json"))
    (problem,) = check.verify(url)
    assert (problem.key, problem.kind, problem.ids) == (f"{view}/up1", "damaged", ("image006",))
    tell(server, "accept")
    check.repair(url, model, folder / "tiny.h5")
    assert {n for n, content in local(tmp_path).items() if objects(url).get(n) != content} <= {
        f"{view}/zarr.json"
    }
    puts = [line for line in tell(server, "log").split("\n") if line.startswith("PUT") and "/c." in line]
    assert len(puts) == 1

    model.network = None  # any forward pass would fail
    taken = adopt(url, model.digest, folder / "tiny.h5", SETTINGS, 0, {T: tmp_path / "m.json"}, views=VIEWS)
    assert taken == [T]
    told, expected = (json.loads(path.read_text()) for path in (tmp_path / "m.json", manifest))
    assert told | {"store": ""} == expected | {"store": ""}
    assert check.rm(url, view)
    assert not [key for key in objects(url) if key.startswith(view)]


# ── interruptions, several processes ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("after", "status", "code"), [(5, 503, "SlowDown"), (7, 507, "QuotaExceeded")])
def test_a_refusing_server_ends_in_one_line_and_a_store_that_verifies_and_goes_on(
    server, folder, url, after, status, code
):
    tell(server, f"refuse?after={after}&status={status}")
    with pytest.raises(TedmError) as error:
        run(url, folder)
    tell(server, "accept")
    message = str(error.value)
    assert code in message and "goes on from there" in message and "\n" not in message
    assert SECRET not in message and KEY not in message
    assert not (folder / "bucket" / "tiny.t0050.json").exists()
    assert {problem.kind for problem in check.verify(url)} == {"unfinished"}
    with pytest.raises(TedmError, match="not complete"):
        FeatureStore.open(url).read([0], T)
    run(url, folder)
    assert objects(url) == local(folder)


SCRIPT = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    sys.path.insert(0, sys.argv[1])
    from test_object_store import run
    folder, url, k, n = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    print("ready", flush=True)
    sys.stdin.readline()
    run(url, folder, manifest=folder / "processes.t0050.json", block=(k, n))
    """
)


def start(folder, url, k=0, n=1):
    """A process that is ready to extract."""
    arguments = [str(Path(__file__).parent), str(folder), url, str(k), str(n)]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def go(processes):
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()


def test_killed_in_the_middle_it_resumes_and_ends_with_the_same_bytes(server, folder, url):
    processes = [start(folder, url) for _ in range(2)]
    rng = random.Random(0)
    kept = []
    for process in processes:
        go([process])
        time.sleep(rng.uniform(0.1, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        digests = layout.Record(layout.Location(url), T).read().get("t0050/up0", [])
        kept.append(sum(digest is not None for digest in digests))
        # What is vouched for is there.
        vouched = {f"t0050/up0/c.{i}.0.0.0" for i, digest in enumerate(digests) if digest}
        assert vouched <= objects(url).keys()
    assert kept == sorted(kept)
    run(url, folder)
    assert objects(url) == local(folder)


@pytest.mark.parametrize("blocks", [[(0, 1), (0, 1)], [(0, 2), (1, 2)]], ids=["same", "two halves"])
def test_two_processes_at_once_make_the_same_store_as_one(server, folder, url, blocks):
    processes = [start(folder, url, k, n) for k, n in blocks]
    go(processes)
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert SECRET not in errors and KEY not in errors
    assert objects(url) == local(folder)
    assert layout.store_of(folder / "processes.t0050.json") == url


def test_no_finished_shard_is_lost_from_a_record_that_many_change(server, url):
    location = layout.Location(url)
    layout.Record(location, T).update(lambda _: {"t0050/up0": [None] * 24})

    def vouch(shard):
        def add(digests):
            digests["t0050/up0"][shard] = f"{shard:032x}"
            return digests

        layout.Record(location, T).update(add)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(vouch, range(24)))
    assert layout.Record(location, T).read()["t0050/up0"] == [f"{shard:032x}" for shard in range(24)]


def test_a_record_that_changed_since_it_was_read_is_not_overwritten(server, url):
    location = layout.Location(url)
    mine, other = layout.Record(location, T), layout.Record(location, T)
    digests = mine.read()
    other.write({"t0050/up0": ["ab"]})
    with pytest.raises(TedmError, match="another process changes it"):
        mine.write({**digests, "t0050/up1": [None]})
    assert other.read() == {"t0050/up0": ["ab"]}


def test_shards_that_are_there_are_not_computed_again(folder, made):
    model = backbone()
    model.features = None
    before = objects(made)
    manifest = run(made, folder, model=model)
    assert layout.store_of(manifest) == made
    assert objects(made) == before


# ── care ────────────────────────────────────────────────────────────────────────────────────────


def test_one_flipped_bit_is_found_told_by_image_and_mended(folder, url):
    run(url, folder)
    key = f"{url.removeprefix('s3://features/')}/t0050/up1/c.2.0.0.0"
    content = bytearray(client().get_object(Bucket="features", Key=key)["Body"].read())
    content[100] ^= 4
    client().put_object(Bucket="features", Key=key, Body=bytes(content))
    with pytest.raises(TedmError, match="damaged"):
        FeatureStore.open(url).read(range(N), T)
    (problem,) = check.verify(url)
    assert (problem.key, problem.kind, problem.ids) == ("t0050/up1", "damaged", ("image004",))
    check.repair(url, backbone(), folder / "tiny.h5")
    assert objects(url) == local(folder)
    client().delete_object(Bucket="features", Key=key)
    assert [problem.kind for problem in check.verify(url)] == ["missing"]
    run(url, folder)
    assert objects(url) == local(folder)


def test_ls_info_and_rm_work_as_in_a_directory(folder, url, monkeypatch):
    monkeypatch.setenv("LOGNAME", "änna")
    run(url, folder)
    here = folder / "tiny.zarr"
    for mine, theirs in zip(check.ls(url), check.ls(here), strict=True):
        assert (mine.key, mine.state, mine.bytes) == (theirs.key, theirs.state, theirs.bytes)
        assert mine.made_at is not None
        assert mine.made_by == "änna"
    assert check.info(url).bytes == check.info(here).bytes
    with pytest.raises(TedmError, match="not in a feature store"):
        check.rm(url, "../made")
    check.rm(url, "t0050/up1")
    assert [row.key for row in check.ls(url)] == ["t0050/up0"]
    assert check.verify(url) == []
    check.rm(url, "t0050")
    assert objects(url).keys() == {"zarr.json"}


# ── refusals, and what must not be told ─────────────────────────────────────────────────────────


def refused(monkeypatch, url, what, settings):
    for name, value in settings.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with pytest.raises(TedmError) as error:
        what(url)
    message = str(error.value)
    assert "\n" not in message
    for hidden in (SECRET, KEY, "password"):
        assert hidden not in message
    return message


REFUSALS = {
    "secret": ({"AWS_SECRET_ACCESS_KEY": "other+secret"}, r"refuses access \(SignatureDoesNotMatch\)"),
    "key": ({"AWS_ACCESS_KEY_ID": "AKIDOTHER"}, r"refuses access .*AWS_ACCESS_KEY_ID"),
    "none": ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials found"),
    "nobody": ({"AWS_ENDPOINT_URL": "http://user:password@127.0.0.1:9"}, "127.0.0.1:9 cannot be reached"),
    "nowhere": ({"AWS_ENDPOINT_URL": "http://nowhere.invalid"}, "nowhere.invalid cannot be reached"),
    "no address": ({"AWS_ENDPOINT_URL": "user:password@nonsense"}, "not an address of a server"),
}


@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.parametrize("what", ["read", "write"])
def test_what_is_wrong_with_the_access_is_said_in_one_line_without_the_secret(
    server, folder, monkeypatch, tmp_path, case, what
):
    settings, expected = REFUSALS[case]
    action = FeatureStore.open if what == "read" else lambda url: run(url, folder)
    message = refused(monkeypatch, "s3://features/made/tiny.zarr", action, settings)
    assert re.search(expected, message), message


@pytest.mark.parametrize("what", [FeatureStore.open, check.verify, check.info])
def test_a_missing_bucket_or_store_is_named(server, monkeypatch, what):
    assert "no bucket none" in refused(monkeypatch, "s3://none/tiny.zarr", what, {})
    with pytest.raises(TedmError, match=r"s3://features/none.zarr: no such feature store"):
        what("s3://features/none.zarr")


def test_writing_to_a_missing_bucket_is_refused(server, folder, monkeypatch):
    message = refused(monkeypatch, "s3://none/tiny.zarr", lambda url: run(url, folder), {})
    assert "no bucket none" in message


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{KEY}:{SECRET}@features/tiny.zarr",
        "s3://features",
        "s3://features/../x",
        "s3://UPPER/x",
        "s3://features/a b",
        "s3:/features/x",
        f"https://{KEY}:{SECRET}@host/x",
    ],
)
def test_addresses_that_are_none_are_refused_without_showing_credentials(url):
    with pytest.raises(TedmError) as error:
        layout.Location(url)
    assert SECRET not in str(error.value)
    assert KEY not in str(error.value)


def test_without_the_client_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(TedmError, match=r"pip install 'tedm\[s3\]'"):
        FeatureStore.open("s3://features/tiny.zarr")


def test_credentials_are_in_no_object_manifest_or_output(server, folder, url, tmp_path):
    code = (
        "import sys, logging; logging.basicConfig(); from tedm.cli import main; sys.argv[0]='tedm'; main()"
    )
    manifest = run(url, folder, manifest=tmp_path / "tiny.t0050.json")
    written = [manifest.read_bytes(), *objects(url).values()]
    for command in ("ls", "info", "verify"):
        made = subprocess.run([sys.executable, "-c", code, "store", command, url], capture_output=True)
        assert made.returncode == 0, made.stderr
        written += [made.stdout, made.stderr]
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": "wrong"}
    failed = subprocess.run(
        [sys.executable, "-c", code, "store", "verify", url], capture_output=True, env=environment
    )
    assert failed.returncode == 1
    assert failed.stderr.count(b"\n") == 1
    for content in [*written, failed.stdout, failed.stderr]:
        for hidden in (SECRET, KEY):
            assert hidden.encode() not in content


# ── a place for many ────────────────────────────────────────────────────────────────────────────


def shared(folder, place, manifest, settings=SETTINGS, seed=0, model=None):
    model = model or backbone()
    store = shared_store(str(place), "ddpm", model.digest, folder / "tiny.h5", settings, seed)
    extract(model, folder / "tiny.h5", store, manifest, T, settings, seed)
    return store


@pytest.mark.parametrize("kind", ["directory", "bucket"])
def test_who_comes_second_gets_a_manifest_without_a_forward_pass(server, folder, tmp_path, kind):
    place = tmp_path / "group" if kind == "directory" else f"s3://features/{tmp_path.name}"
    anna, ben = (tmp_path / name / "features" / "ddpm" / "tiny.t0050.json" for name in ("anna", "ben"))
    store = shared(folder, place, anna)
    model = backbone()
    model.features = None  # would fail
    changed = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "group" in path.parts}
    assert shared(folder, place, ben, model=model) == store
    assert changed == {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "group" in path.parts
    }
    assert anna.read_bytes() == ben.read_bytes()
    assert layout.store_of(ben) == store
    # The path that it has in other experiments leads there.
    features = FeatureStore.open(ben.with_name("tiny.zarr"), backbone_digest=model.digest)
    assert features.path == store
    (part,) = catalogue.contributions(place)
    assert (part.dataset, part.images, part.timesteps) == ("Tiny", N, [T])
    assert catalogue.has_stores(place)
    assert not catalogue.has_stores(store)


def test_what_differs_at_all_has_another_place(folder, tmp_path):
    variants = [
        {},
        {"seed": 1},
        {"model": backbone(seed=1)},
        *(
            {"settings": SETTINGS.model_copy(update=update)}
            for update in (
                {"dtype": "float32"},
                {"keep_bits": 5},
                {"codec": "lz4"},
                {"images_per_shard": 3},
                {"shared_noise": True},
                {"input_range": "official"},
            )
        ),
    ]
    stores = [shared(folder, tmp_path / "group", tmp_path / "m.json", **variant) for variant in variants]
    assert len(set(stores)) == len(variants)
    for store in stores:
        assert check.verify(store) == []


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o027])
def test_a_group_may_write_what_one_of_it_made(folder, tmp_path, umask):
    group = tmp_path / "group"
    group.mkdir()
    group.chmod(0o2775)
    before = os.umask(umask)
    try:
        shared(folder, group, tmp_path / "m.json")
    finally:
        os.umask(before)
    for path in group.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        others = 0o5 & ~umask if path.is_dir() else 0o4 & ~umask
        if not path.name.endswith(".lock"):
            assert mode == (0o2770 if path.is_dir() else 0o660) | others, (path, oct(mode))
        assert mode & 0o060 == 0o060


def test_results_can_be_moved_with_the_store_that_lies_in_them(folder, tmp_path):
    run(tmp_path / "a" / "tiny.zarr", folder, manifest=tmp_path / "a" / "tiny.t0050.json")
    (tmp_path / "a").rename(tmp_path / "b")
    assert layout.store_of(tmp_path / "b" / "tiny.t0050.json") == str(tmp_path / "b" / "tiny.zarr")
    assert json.loads((tmp_path / "b" / "tiny.t0050.json").read_text())["store"] == "tiny.zarr"


@pytest.mark.parametrize("location", ["group/features", "/data/group", "s3://bucket", "s3://bucket/a/b/"])
def test_the_config_takes_directories_and_addresses(location):
    assert FeaturesConfig(location=location).location == location


@pytest.mark.parametrize(
    "location", [f"s3://{KEY}:{SECRET}@bucket/x", "gs://bucket/x", "s3://b", "a b", ""]
)
def test_the_config_refuses_other_places_without_showing_credentials(location):
    with pytest.raises(TedmError, match=r"features\.location: expected a directory or s3://") as error:
        config.parse({"features": {"location": location}})
    assert SECRET not in str(error.value)


@pytest.mark.slow
def test_the_workflow_gives_the_same_table_from_a_bucket_and_the_next_user_extracts_nothing(
    server, tmp_path
):
    own = tmp_path / "own"
    own.mkdir()
    write_experiment(own)
    assert snakemake(own, "results/table1.csv").returncode == 0
    table = (own / "results" / "table1.csv").read_bytes()
    for user in ("anna", "ben"):  # who have the same data and backbone
        directory = shutil.copytree(own, tmp_path / user)
        for made in ("features", "heads", "scores"):
            shutil.rmtree(directory / "results" / made)
        for made in (directory / "results").glob("table1*"):  # else nothing would be asked of the rest
            made.unlink()
        write_experiment(directory, lambda e: e["features"].update(location="s3://features/group"))
        tell(server, "accept")  # and begin a new log
        run = snakemake(directory, "results/table1.csv")
        assert run.returncode == 0, run.stderr[-5000:]
        assert (directory / "results" / "table1.csv").read_bytes() == table
        assert not list(directory.rglob("*.zarr"))
        written = [line for line in tell(server, "log").split("\n") if line.startswith("PUT")]
        assert bool(written) == (user == "anna")
        for path in directory.rglob("*"):
            assert not path.is_file() or SECRET.encode() not in path.read_bytes()

"""Splits: drawn by subject, read from a list, or shipped."""

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tedm.config import SplitConfig
from tedm.data.splits import SPLITS, assign, shipped
from tedm.errors import TedmError


def names(chosen, ids, split):
    return [ids[i] for i, s in chosen if s == split]


def drawn(ids, subjects=None, seed=0, **numbers):
    return assign(SplitConfig(**numbers), ids, subjects or ids, seed, None, "datasets.x")


IDS = [f"image{i}" for i in range(20)]


@given(
    order=st.permutations(IDS),
    seed=st.integers(0, 2**31),
    counts=st.lists(st.integers(0, 5), min_size=4, max_size=4).filter(any),
)
@settings(deadline=None, max_examples=50)
def test_a_draw_depends_on_names_and_seed_not_on_the_order_of_files(order, seed, counts):
    numbers = dict(zip(SPLITS, counts, strict=True))
    expected, found = drawn(IDS, seed=seed, **numbers), drawn(order, seed=seed, **numbers)
    for split, count in numbers.items():
        assert names(found, order, split) == names(expected, IDS, split)
        assert len(names(found, order, split)) == count
    assert len({i for i, _ in found}) == len(found)


@given(
    subjects=st.lists(st.integers(0, 9), min_size=30, max_size=60),
    shares=st.lists(st.floats(0.2, 0.3), min_size=3, max_size=3),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=50)
def test_no_subject_is_in_two_splits(subjects, shares, seed):
    people = [f"subject{s}" for s in range(10)] + [f"subject{s}" for s in subjects]
    ids = [f"image{i:03d}" for i in range(len(people))]
    chosen = drawn(ids, people, seed, train=shares[0], val=shares[1], test=shares[2])
    split_of = {}
    for index, split in chosen:
        assert split_of.setdefault(people[index], split) == split
    # Whole subjects: all images of a drawn subject are there.
    assert sorted(i for i, _ in chosen) == [i for i, p in enumerate(people) if p in split_of]


def test_another_seed_draws_another_split():
    assert names(drawn(IDS, seed=0, train=5), IDS, "train") != names(
        drawn(IDS, seed=1, train=5), IDS, "train"
    )


def test_a_larger_training_set_begins_with_the_smaller():
    small, large = drawn(IDS, train=5), drawn(IDS, train=12)
    assert large[:5] == small


def test_a_new_image_leaves_the_order_of_the_others():
    before = names(drawn(IDS, train=1.0), IDS, "train")
    more = [*IDS, "new"]
    after = [n for n in names(drawn(more, train=1.0), more, "train") if n != "new"]
    assert after == before


@pytest.mark.parametrize(
    ("total", "numbers", "sizes"),
    [
        (10, {"train": 0.8, "val": 0.1, "test": 0.1}, [8, 1, 1, 0]),
        (247, {"train": 0.7, "val": 0.2, "test": 0.1}, [173, 49, 25, 0]),
        (20, {"train": 3, "unlabelled": 0.5}, [3, 0, 0, 10]),
        (7, {"test": 1.0}, [0, 0, 7, 0]),
        (7, {"test": 7}, [0, 0, 7, 0]),
    ],
)
def test_fractions_add_up(total, numbers, sizes):
    ids = [str(i) for i in range(total)]
    chosen = drawn(ids, **numbers)
    assert [len(names(chosen, ids, split)) for split in SPLITS] == sizes


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"train": 18, "val": 3}, r"datasets\.x\.split: train 18 \+ val 3 = 21, but there are only 20"),
        ({"train": 0.8, "val": 0.01}, r"split\.val: 0\.01 of 20 is not even one"),
        ({"train": 1.0, "val": 1}, "train 20"),
    ],
)
def test_impossible_numbers_are_named(numbers, message):
    with pytest.raises(TedmError, match=message):
        drawn(IDS, **numbers)


def test_images_in_no_split_are_counted(capsys):
    drawn(IDS, train=5)
    assert "datasets.x: 15 of 20 images are in no split" in capsys.readouterr().err


def listed(tmp_path, text, ids, name="split.csv"):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return assign(SplitConfig(file=name), ids, ids, 0, tmp_path, "datasets.x")


def test_a_list_gives_split_and_order(tmp_path, capsys):
    ids = ["a", "b", "c c", "é", "z"]
    text = "\ufeffid, other, split\r\nz,1,train\r\nc c,,test\r\ne\u0301,3,train\r\na,4,val\r\n"
    chosen = listed(tmp_path, text, ids)
    assert [(ids[i], s) for i, s in chosen] == [
        ("z", "train"),
        ("c c", "test"),
        ("é", "train"),
        ("a", "val"),
    ]
    assert "1 of 5 images are in no split" in capsys.readouterr().err


def test_a_compressed_list_of_files_is_read(tmp_path):
    text = gzip.compress(b"image,split\na.png,train\nb.b.png,unlabelled\n")
    assert listed(tmp_path, text, ["a", "b.b"], "list.csv.gz") == [(0, "train"), (1, "unlabelled")]


def test_ids_without_image_are_a_warning(tmp_path, capsys):
    assert listed(tmp_path, "id,split\na,train\ngone,train\nb,test\n", ["a", "b"]) == [
        (0, "train"),
        (1, "test"),
    ]
    assert (
        "warning: 1 of 3 ids in split.csv have no image and are left out: gone" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,split\nx,train\n", "names none of the 2 images"),
        ("name;split\na;train\n", "expected columns id and split, found name;split"),
        (
            "id,split\na,training\n,val\na,test\n",
            "line 2: split 'training' is none of train.*\n.*line 3: no id",
        ),
        ("id,split\na,test\na,test\n", "line 3: a is there a second time"),
        ("id,split\n", "has no rows"),
        ("", "found none"),
        (b"\xff\xfe\x00", "not a CSV in UTF-8"),
    ],
)
def test_a_broken_list_is_named(tmp_path, text, message):
    with pytest.raises(TedmError, match=message) as error:
        listed(tmp_path, text, ["a", "b"])
    assert "datasets.x.split.file" in str(error.value)


def test_a_damaged_compressed_list_is_named(tmp_path):
    whole = gzip.compress(b"id,split\n" + b"a,train\n" * 500)
    for damaged in (whole[:30], whole[:20] + b"\xff\xff\xff" + whole[23:], b"id,split\na,train\n"):
        with pytest.raises(TedmError, match=r"list\.csv\.gz is not a CSV"):
            listed(tmp_path, damaged, ["a"], "list.csv.gz")


def test_a_missing_list_suggests_a_shipped_one(tmp_path):
    with pytest.raises(TedmError, match=r"no file .*jsrtt.*Did you mean jsrt\?"):
        assign(SplitConfig(file="jsrtt"), ["a"], ["a"], 0, tmp_path, "datasets.x")


def test_the_authors_lists_ship(tmp_path, capsys):
    assert {"jsrt", "chestxray14"} <= set(shipped())
    ids = [f"JPCLN{i:03d}" for i in range(1, 155) if i != 16] + [f"JPCNN{i:03d}" for i in range(1, 94)]
    chosen = assign(SplitConfig(file="jsrt"), ids, ids, 0, tmp_path, "datasets.x")
    assert [len(names(chosen, ids, s)) for s in ("train", "val", "test")] == [196, 25, 25]
    assert names(chosen, ids, "train")[:2] == ["JPCLN001", "JPCLN002"]
    assert "1 of 247 ids in jsrt have no image and are left out: JPCLN016" in capsys.readouterr().err


def test_the_list_of_chestxray14_has_the_authors_numbers(tmp_path):
    from tedm.data.splits import _read_list

    found = list(_read_list("chestxray14", tmp_path, "").values())
    assert [found.count(s) for s in SPLITS] == [89_696, 11_212, 11_212, 0]

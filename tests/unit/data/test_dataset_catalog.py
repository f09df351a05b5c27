from pathlib import Path

import pytest

from vitscale.data.catalog import describe, key_of, store_root
from vitscale.data.prepare import prepare
from vitscale.data.reader import open_split
from vitscale.errors import DataError, UsageError


@pytest.mark.parametrize("call", [describe, prepare, lambda name, root: open_split(name, "train", root)])
def test_an_unknown_name_is_refused_with_the_nearest_one(call, tmp_path):
    with pytest.raises(UsageError, match="`cifar_10`") as caught:
        call("cifar_10", tmp_path)
    assert caught.value.hint == "did you mean `cifar10`?"


def test_a_name_like_no_other_gets_the_list(tmp_path):
    with pytest.raises(UsageError) as caught:
        describe("xyzzy", tmp_path)
    assert "`digits`" in caught.value.hint


def test_the_store_is_where_the_environment_says_at_the_time_of_the_call(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("VITSCALE_DATA", raising=False)
    assert store_root() == Path("/home/someone/.cache/vitscale/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert store_root() == Path("/cache/vitscale/data")
    monkeypatch.setenv("VITSCALE_DATA", "~/mine")
    assert store_root() == Path("/home/someone/mine")


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "imagefolder", "imagenet100"])
def test_data_that_is_not_prepared_is_refused_with_the_command_that_brings_it(name, tmp_path):
    with pytest.raises(DataError, match=f"`{name}` is not prepared") as caught:
        open_split(name, "train", tmp_path)
    assert f"`vitscale data {name}" in caught.value.hint
    if name != "digits":
        with pytest.raises(DataError, match=f"`{name}` is not prepared"):
            prepare(name, tmp_path / "absent")
        assert not (tmp_path / "absent").exists()


def test_an_image_folder_is_described_before_and_after_it_is_prepared(image_folder, tmp_path):
    before = describe("imagefolder", tmp_path, image_folder)
    assert (before.classes, before.train_images, before.test_images) == (2, 5, 2)
    assert prepare("imagefolder", tmp_path, source=image_folder) == before
    assert describe("imagefolder", tmp_path, image_folder) == before
    assert describe("imagefolder", tmp_path) == before


def test_folders_of_the_same_name_are_kept_apart(tmp_path):
    one, two = key_of("imagefolder", tmp_path / "a" / "Pets & Co"), key_of("imagefolder", tmp_path / "b" / "Pets & Co")
    assert one != two
    assert one.startswith("imagefolder-pets-co-")
    assert key_of("imagefolder", tmp_path / "a" / ".." / "a" / "Pets & Co") == one


def test_several_prepared_folders_are_not_guessed_between(image_folder, tmp_path):
    root = tmp_path / "store"
    prepare("imagefolder", root, source=image_folder)
    other = image_folder.rename(image_folder.with_name("other"))
    prepare("imagefolder", root, source=other)
    with pytest.raises(DataError, match="2 folders are prepared as `imagefolder`"):
        open_split("imagefolder", "train", root)
    assert len(open_split("imagefolder", "train", root, other)) == 5

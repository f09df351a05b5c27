import multiprocessing
import os

import numpy as np
import pytest
from published import picture

from vitscale.data import store
from vitscale.data.catalog import key_of
from vitscale.data.prepare import prepare
from vitscale.data.reader import open_split
from vitscale.errors import DataError, UsageError


def stamp(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_what_is_prepared_is_not_touched_again(tmp_path):
    prepare("digits", tmp_path)
    before = stamp(tmp_path / "digits")
    told = []
    prepare("digits", tmp_path, verify=True, report=told.append)
    assert stamp(tmp_path / "digits") == before
    assert told == []


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [truncate, os.unlink])
@pytest.mark.parametrize("name", ["train.images.npy", "test.labels.npy"])
def test_a_damaged_copy_is_made_again(tmp_path, damage, name):
    prepare("digits", tmp_path)
    whole = store.check(tmp_path / "digits", hashes=True)
    damage(tmp_path / "digits" / name)
    told = []
    prepare("digits", tmp_path, report=told.append)
    assert store.check(tmp_path / "digits", hashes=True) == whole
    assert told


def test_an_altered_copy_is_found_by_verify_and_made_again(tmp_path):
    prepare("digits", tmp_path)
    path = tmp_path / "digits" / "train.images.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    prepare("digits", tmp_path, verify=True)
    store.check(tmp_path / "digits", hashes=True)


def test_a_damaged_copy_whose_source_is_gone_is_refused_and_kept(image_folder, tmp_path):
    root = tmp_path / "store"
    prepare("imagefolder", root, source=image_folder)
    copy = root / key_of("imagefolder", image_folder)
    truncate(copy / "train.images.npy")
    image_folder.rename(image_folder.with_name("moved"))
    with pytest.raises(DataError, match="bytes, expected"):
        prepare("imagefolder", root, source=image_folder)
    assert copy.is_dir()


def test_a_prepared_folder_needs_its_source_no_more(image_folder, tmp_path):
    root = tmp_path / "store"
    facts = prepare("imagefolder", root, source=image_folder)
    image_folder.rename(image_folder.with_name("moved"))
    assert prepare("imagefolder", root, source=image_folder) == facts


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not there"):
        prepare("imagefolder", tmp_path / "store", source=tmp_path / "absent")
    assert not (tmp_path / "store").exists()


def test_a_folder_whose_files_changed_is_prepared_again(image_folder, tmp_path):
    root = tmp_path / "store"
    assert prepare("imagefolder", root, source=image_folder).train_images == 5
    picture(image_folder / "train" / "cat" / "new.png", size=(90, 90))
    assert prepare("imagefolder", root, source=image_folder).train_images == 6
    assert len(open_split("imagefolder", "train", root, image_folder)) == 6


def test_a_source_is_needed_only_once(fake_cifar10, tmp_path):
    archive = tmp_path / fake_cifar10.release.archive
    archive.write_bytes(fake_cifar10.archive)
    root = tmp_path / "store"
    facts = prepare("cifar10", root, source=archive)
    archive.unlink()
    assert prepare("cifar10", root) == facts
    assert (open_split("cifar10", "test", root).take(np.arange(10)) == fake_cifar10.images["test"]).all()


def test_a_source_that_cannot_be_used_leaves_nothing(fake_cifar10, tmp_path):
    archive = tmp_path / "given.tar.gz"
    archive.write_bytes(fake_cifar10.archive[:-1])
    with pytest.raises(DataError):
        prepare("cifar10", tmp_path / "store", source=archive)
    assert [path.name for path in (tmp_path / "store").iterdir()] == [".cifar10.lock"]


def test_leftovers_are_cleared_away_by_the_next_preparation(tmp_path):
    (tmp_path / ".digits.tmp-old").mkdir()
    prepare("digits", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".digits.lock", "digits"]


def test_a_source_and_a_download_are_not_both_taken(tmp_path):
    with pytest.raises(UsageError, match="both asked for"):
        prepare("cifar10", tmp_path, source=tmp_path, download=True)


def prepare_folder(root, source, told):
    prepare("imagefolder", root, source=source, report=told.put)


def test_two_processes_at_once_prepare_once(image_folder, tmp_path):
    """Fault 28: ranks never prepare; two commands wait for each other."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    processes = [
        context.Process(target=prepare_folder, args=(tmp_path / "store", image_folder, told)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes] == [0, 0]
    messages = []
    while not told.empty():
        messages.append(told.get())
    assert sum(message.startswith("writing") and "train" in message for message in messages) == 1
    store.check(tmp_path / "store" / key_of("imagefolder", image_folder), hashes=True)
    assert len(open_split("imagefolder", "train", tmp_path / "store")) == 5

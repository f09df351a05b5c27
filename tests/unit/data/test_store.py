import json
import multiprocessing
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from vitscale.data import store
from vitscale.errors import DataError

FILES = ("train.images.npy", "train.labels.npy", "test.images.npy", "test.labels.npy")


def quiet(message):
    return None


def content(train=5, test=2, blocks=None, finish=lambda: None, fingerprint=None):
    rng = np.random.default_rng(3)
    pixels = {count: rng.integers(0, 256, (count, 4, 3, 1), dtype=np.uint8) for count in (train, test)}

    def part(count):
        return store.SplitContent(np.arange(count, dtype=np.int64) % 2, [pixels[count][:1], pixels[count][1:]])

    first = part(train) if blocks is None else store.SplitContent(np.zeros(train, np.int64), blocks)
    return store.Content("made", "a test", ("no", "yes"), (4, 3, 1), first, part(test), fingerprint, finish)


@pytest.fixture
def prepared(tmp_path):
    store.write(tmp_path, "made", content(), quiet)
    return tmp_path / "made"


def test_what_is_written_is_read_back_with_its_description(prepared):
    meta = store.check(prepared, hashes=True)
    assert meta == store.read_meta(prepared)
    assert (meta.name, meta.classes, meta.height, meta.width, meta.channels) == ("made", ("no", "yes"), 4, 3, 1)
    assert {split: facts.images for split, facts in meta.splits.items()} == {"train": 5, "test": 2}
    assert set(meta.files) == set(FILES)
    assert all(store.sha256_of(prepared / name) == facts.sha256 for name, facts in meta.files.items())
    images = np.load(prepared / "train.images.npy")
    assert (images == np.concatenate(list(content().train.blocks))).all()


def test_the_same_content_gives_the_same_files(prepared, tmp_path):
    again = store.write(tmp_path, "other", content(), quiet)
    assert again.files == store.read_meta(prepared).files


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(prepared, name):
    (prepared / name).unlink()
    with pytest.raises(DataError, match=f"lacks `{name}`") as caught:
        store.check(prepared)
    assert "prepare it again" in caught.value.hint


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named_with_both_sizes(prepared, name):
    whole = (prepared / name).read_bytes()
    (prepared / name).write_bytes(whole[:-1])
    with pytest.raises(DataError, match=f"`{name}` with {len(whole) - 1} bytes, expected {len(whole)}"):
        store.check(prepared)


@pytest.mark.parametrize("name", FILES)
def test_one_changed_bit_is_found_when_hashes_are_asked_for(prepared, name):
    data = bytearray((prepared / name).read_bytes())
    data[-1] ^= 1
    (prepared / name).write_bytes(data)
    store.check(prepared)
    with pytest.raises(DataError, match=f"`{name}` with sha256"):
        store.check(prepared, hashes=True)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"schema_version": 1}', "\udcff"])
def test_a_description_that_does_not_read_is_refused(prepared, text):
    (prepared / "meta.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match="`made`") as caught:
        store.check(prepared)
    assert str(prepared) in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"files": {}},
        {"files": {"../outside": {"bytes": 1, "sha256": ""}}},
        {"splits": {}},
        {"classes": None},
        {"height": "tall"},
    ],
)
def test_a_description_that_lacks_a_part_or_names_other_files_is_refused(prepared, change):
    meta = json.loads((prepared / "meta.json").read_text())
    (prepared / "meta.json").write_text(json.dumps(meta | change))
    with pytest.raises(DataError, match="does not read"):
        store.read_meta(prepared)


def test_another_version_is_refused_by_its_number(prepared):
    meta = json.loads((prepared / "meta.json").read_text())
    (prepared / "meta.json").write_text(json.dumps(meta | {"schema_version": 9}))
    with pytest.raises(DataError, match="schema version 9, not 1"):
        store.read_meta(prepared)


def broken_blocks():
    yield np.zeros((2, 4, 3, 1), np.uint8)
    raise KeyboardInterrupt


def refuse():
    raise DataError("refused at the end")


@pytest.mark.parametrize(
    ("made", "raised"), [(content(blocks=broken_blocks()), KeyboardInterrupt), (content(finish=refuse), DataError)]
)
def test_writing_that_does_not_end_leaves_nothing(tmp_path, made, raised):
    with pytest.raises(raised):
        store.write(tmp_path, "made", made, quiet)
    assert list(tmp_path.iterdir()) == []


def test_writing_that_does_not_end_leaves_what_was_there(prepared, tmp_path):
    before = store.read_meta(prepared)
    with pytest.raises(DataError):
        store.write(tmp_path, "made", content(finish=refuse), quiet)
    assert store.check(prepared, hashes=True) == before


def test_a_folder_is_replaced_while_a_reader_keeps_its_mapping(prepared, tmp_path):
    mapped = np.load(prepared / "train.images.npy", mmap_mode="r")
    before = mapped.copy()
    store.write(tmp_path, "made", content(train=7), quiet)
    assert store.check(prepared, hashes=True).splits["train"].images == 7
    assert (mapped == before).all()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_leftovers_of_a_killed_preparation_are_removed_and_nothing_else(prepared, tmp_path):
    (tmp_path / ".made.tmp-abc").mkdir()
    (tmp_path / ".made.tmp-abc" / "train.images.npy").write_bytes(b"half")
    (tmp_path / ".other.tmp-abc").mkdir()
    store.remove_leftovers(tmp_path, "made")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.tmp-abc", "made"]


def test_too_little_space_is_refused_before_a_byte_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match=r"1,000 bytes free, \d[\d,]+ are needed") as caught:
        store.write(tmp_path, "made", content(), quiet)
    assert "VITSCALE_DATA" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_an_error_in_words_and_leaves_nothing(tmp_path):
    def full():
        raise OSError(28, "No space left on device")
        yield

    with pytest.raises(DataError, match="No space left on device") as caught:
        store.write(tmp_path, "made", content(blocks=full()), quiet)
    assert "nothing was left" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_is_no_folder_is_refused_with_a_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match="cannot be written or locked") as caught,
        store.locked(tmp_path / "file", "made", quiet),
    ):
        pass
    assert "VITSCALE_DATA" in caught.value.hint


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("keep")
    (tmp_path / ".made.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(DataError, match="cannot be written or locked"), store.locked(tmp_path, "made", quiet):
        pass
    assert (tmp_path / "precious").read_text() == "keep"


def hold(root, ready, leave):
    with store.locked(root, "made", quiet):
        ready.set()
        leave.wait(60)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `made` until told to leave."""
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready, leave))
    process.start()
    assert ready.wait(60)
    yield process, leave
    process.kill()
    process.join()
    process.close()


def test_the_lock_is_waited_for_and_the_wait_is_told(tmp_path, holder):
    _, leave = holder
    told = []

    def report(message):
        told.append(message)
        leave.set()

    with store.locked(tmp_path, "made", report):
        assert told == ["another process prepares `made`; waiting for it"]


def test_the_lock_of_a_killed_process_is_free(tmp_path, holder):
    process, _ = holder
    process.kill()
    process.join()
    with store.locked(tmp_path, "made", lambda message: pytest.fail(message)):
        pass

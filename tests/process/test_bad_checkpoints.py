"""Checkpoints that cannot be trusted: refused by name before a rank is started, so that nothing of them is loaded."""

import json
import os
import shutil

import pytest
from ranks import digests, finish, start_training

from vitscale.records import checkpoint
from vitscale.records.writer import file_digest

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


class Canary:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def a_part(folder):
    return min(folder.rglob("*.pt"))


def truncate(folder):
    path = a_part(folder)
    path.write_bytes(path.read_bytes()[:1000])
    return path.name


def empty(folder):
    a_part(folder).write_bytes(b"")
    return a_part(folder).name


def flip_a_bit(folder):
    return flip(a_part(folder))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path.name


def lose(folder):
    path = a_part(folder)
    path.unlink()
    return path.name


def smuggle(folder):
    (folder / "engine" / "extra.pt").write_bytes(b"cos\nsystem\n(S'exit'\ntR.")
    return "extra.pt"


def link_out(folder):
    path = a_part(folder)
    other = folder.parent / "elsewhere"
    shutil.move(path, other)
    path.symlink_to(other)
    return path.name


def open_to_all(folder):
    path = a_part(folder)
    path.chmod(0o666)
    return path.name


def give_away(folder):
    if os.geteuid() != 0:
        pytest.skip(reason="only root can give a file away")
    path = a_part(folder)
    os.chown(path, 12345, -1)
    return f"`{path.name}` belongs to another user"


def break_json(folder):
    (folder / "checkpoint.json").write_text("{")
    return "checkpoint.json"


def of_a_later_version(folder):
    alter(folder, schema_version=2)
    return "`checkpoint.json` is damaged"


def alter(folder, **values):
    path = folder / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def poison(part, canary):
    """A pickle that runs something in place of a part, and a `checkpoint.json` that knows its sha256."""
    torch = pytest.importorskip("torch")
    torch.save({"module": {}, "canary": Canary(canary)}, part)
    (folder,) = (one for one in part.parents if (one / "checkpoint.json").exists())
    files = json.loads((folder / "checkpoint.json").read_text())["files"]
    alter(folder, files=files | {str(part.relative_to(folder)): file_digest(part)})
    return "asks for `posix.mkdir`"


DAMAGES = [
    truncate, empty, flip_a_bit, lose, smuggle, link_out, open_to_all, give_away, break_json, of_a_later_version,
]  # fmt: skip


@pytest.fixture
def damaged(refused, trained, tmp_path):
    """Damage the newest checkpoint of a copy, and see the same command refuse it by name and change nothing."""

    def try_it(damage, source=trained, words=("world_size=1",)):
        out = tmp_path / "out"
        shutil.copytree(source, out, symlinks=True)
        newest = checkpoint.newest(out / "checkpoints")
        name = damage(newest)
        before = digests(out)
        error = refused(*words)
        assert newest.name in error
        assert name in error
        # A rank that was started would have its round's folder here.
        assert digests(out) == before

    return try_it


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_as_it_was_written_is_refused_by_name(damaged, damage):
    """Fault 25: truncated, empty, flipped, a part missing or foreign, of another version."""
    damaged(damage)


def test_a_malicious_pickle_with_a_matching_checksum_never_runs(damaged, tmp_path):
    damaged(lambda folder: poison(a_part(folder), tmp_path / "canary"))
    assert not (tmp_path / "canary").exists()


@pytest.fixture(scope="module")
def trained_on_two(store, tmp_path_factory):
    """As `trained`, of two ranks that each have a part of the optimizer's state."""
    out = tmp_path_factory.mktemp("two")
    words = ("world_size=2", "zero_stage=1", "train.restarts=0")
    code, err = finish(start_training(store, out, *words, inject="kill rank=0 step=5"))
    assert code == 5, err
    return out


@pytest.mark.parametrize("damage", ["flipped", "lost", "poisoned"])
def test_one_ranks_part_stops_all_ranks(damaged, trained_on_two, tmp_path, damage):
    """Fault 25, where the other rank's part is sound: alone that rank would load it and go on."""

    def strike(folder):
        (part,) = folder.rglob("zero_pp_rank_1_*")
        if damage == "poisoned":
            return poison(part, tmp_path / "canary")
        if damage == "flipped":
            return flip(part)
        part.unlink()
        return part.name

    damaged(strike, trained_on_two, ("world_size=2", "zero_stage=1"))
    assert not (tmp_path / "canary").exists()

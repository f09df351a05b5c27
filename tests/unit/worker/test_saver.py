"""What follows of a save in a thread of each rank: it counts when all did theirs, and nobody waits for ever."""

import errno

import pytest

pytest.importorskip("torch")

import torch

from vitscale.records import checkpoint as on_disk
from vitscale.records.checkpoint import ENGINE, Checkpoint
from vitscale.worker import checkpoint
from vitscale.worker.distributed import Ranks


@pytest.fixture
def written(tmp_path):
    """A folder as all ranks have written it, its files, and what each rank does with them."""
    building = on_disk.building_of(on_disk.folder_of(tmp_path, 8))
    (building / ENGINE).mkdir(parents=True)
    for name in ("a", "b"):
        (building / ENGINE / name).write_text(name)
    files = sorted((building / ENGINE).iterdir())
    about = Checkpoint(run_id="a", spec={}, step=8, seconds=0.0)

    def secure(rank):
        ranks = Ranks(rank, rank, 2, 2, torch.device("cpu"))
        checkpoint.Saver(tmp_path, 1, ranks)._secure(building, files, about, None)

    return secure


def test_it_counts_when_every_rank_did_its_share(written, tmp_path):
    written(1)
    assert on_disk.complete(tmp_path) == []
    written(0)
    found = Checkpoint.read(on_disk.newest(tmp_path))
    assert [*found.files] == [f"{ENGINE}/a", f"{ENGINE}/b"]


@pytest.mark.timeout(20)
def test_a_rank_whose_disk_is_full_is_not_waited_for(written, tmp_path, monkeypatch):
    def full(_path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as on_rank_1:
        on_rank_1.setattr(checkpoint, "_on_disk", full)
        with pytest.raises(OSError, match="No space left"):
            written(1)
    with pytest.raises(OSError, match="rank 1 could not bring its part"):
        written(0)
    assert on_disk.complete(tmp_path) == []

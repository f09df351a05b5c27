"""Step lines of several ranks: one file per rank on one node, one per node on several."""

import json
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from vitscale.records.schema import StepRecord
from vitscale.worker import step_lines
from vitscale.worker.distributed import Ranks
from vitscale.worker.step_lines import open_step_lines


class Group:
    """What ranks agree on, where each rank is a thread."""

    def __init__(self, world_size):
        self._barrier = threading.Barrier(world_size, timeout=10)
        self._told = {}

    def _all(self, value):
        self._told[threading.get_ident()] = value
        self._barrier.wait()
        told = dict(self._told)
        self._barrier.wait()
        return told

    def barrier(self):
        self._barrier.wait()

    def largest(self, value, device):
        return max(self._all(value).values())

    def gathered(self, document, ranks):
        told = self._all((ranks.rank, document)).values()
        return [document for _, document in sorted(told, key=lambda one: one[0])]


@pytest.fixture
def on_ranks(monkeypatch, tmp_path):
    """Do something on each of so many ranks on two nodes; the temporary folder is empty and the test's own."""
    between = tmp_path / "node"
    between.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(between))

    def do(work, world_size, nodes=2):
        group = Group(world_size)
        for name in ("barrier", "largest", "gathered"):
            monkeypatch.setattr(step_lines, name, getattr(group, name))
        places = [
            Ranks(rank, rank % (world_size // nodes), world_size, world_size // nodes, torch.device("cpu"))
            for rank in range(world_size)
        ]
        with ThreadPoolExecutor(world_size) as threads:
            list(threads.map(work, places))
        assert list(between.iterdir()) == []

    return do


def line(rank, step):
    return StepRecord(step, "steady", rank, 0.5, 8, 0.1, *[None] * 6)


def written(folder):
    """File -> (rank, step) of its lines, in order."""
    return {
        path.name: [(one["rank"], one["step"]) for one in map(json.loads, path.read_text().splitlines())]
        for path in sorted(folder.iterdir())
        if path.suffix == ".jsonl"
    }


def test_a_node_has_one_file_with_the_lines_of_all_its_ranks(on_ranks, tmp_path):
    def work(ranks):
        lines = open_step_lines(tmp_path, ranks)
        for step in range(0, 6, 2):
            lines.write([line(ranks.rank, step), line(ranks.rank, step + 1)])
            lines.sync()
        lines.close()

    on_ranks(work, 4)
    found = written(tmp_path)
    assert list(found) == ["steps.node000.jsonl", "steps.node001.jsonl"]
    assert sorted(found["steps.node000.jsonl"]) == [(rank, step) for rank in (0, 1) for step in range(6)]
    assert sorted(found["steps.node001.jsonl"]) == [(rank, step) for rank in (2, 3) for step in range(6)]


def test_what_a_node_has_written_is_there_before_the_end(on_ranks, tmp_path):
    seen = {}
    all_have_written = threading.Barrier(4, timeout=10)

    def work(ranks):
        lines = open_step_lines(tmp_path, ranks)
        lines.write([line(ranks.rank, 0)])
        all_have_written.wait()
        lines.sync()
        if ranks.local_rank == 0:
            seen[ranks.node] = (tmp_path / f"steps.node{ranks.node:03d}.jsonl").read_text().count("\n")
        lines.close()

    on_ranks(work, 4)
    assert seen == {0: 2, 1: 2}


def test_a_node_of_one_rank_writes_its_own_file(on_ranks, tmp_path):
    def work(ranks):
        lines = open_step_lines(tmp_path, ranks)
        lines.write([line(ranks.rank, 0)])
        lines.close()

    on_ranks(work, 2)
    assert written(tmp_path) == {"steps.node000.jsonl": [(0, 0)], "steps.node001.jsonl": [(1, 0)]}


def test_ranks_that_share_no_temporary_folder_have_a_file_each(on_ranks, tmp_path, monkeypatch):
    open_ = step_lines.StepWriter

    def of_a_container(folder, rank=0, *, node=None):
        if folder != tmp_path and rank == 3:
            raise FileNotFoundError(2, "No such file or directory")
        return open_(folder, rank, node=node)

    monkeypatch.setattr(step_lines, "StepWriter", of_a_container)

    def work(ranks):
        lines = open_step_lines(tmp_path, ranks)
        lines.write([line(ranks.rank, 0)])
        lines.close()

    on_ranks(work, 4)
    assert written(tmp_path) == {f"steps.rank{rank:03d}.jsonl": [(rank, 0)] for rank in range(4)}


def test_a_line_that_is_being_written_is_taken_whole_the_next_time(tmp_path):
    path = tmp_path / "part"
    path.write_bytes(b'{"step": 0}\n{"st')
    with path.open("rb") as part, path.open("ab") as more:
        assert step_lines._new_lines(part) == b'{"step": 0}\n'
        assert step_lines._new_lines(part) == b""
        more.write(b'ep": 1}\n')
        more.flush()
        assert step_lines._new_lines(part) == b'{"step": 1}\n'

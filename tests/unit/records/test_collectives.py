"""Collectives of a launch on disk: written, read back, changed, damaged."""

import pytest

from vitscale.errors import ResultsError
from vitscale.records.collectives import COLLECTIVES, CollectiveRecord, write_collectives
from vitscale.records.launches import read_launches
from vitscale.records.reader import read_results
from vitscale.records.writer import write_manifest

LINES = [
    CollectiveRecord(
        operation="all_reduce",
        group_size=2,
        calls_per_step=1,
        bytes_per_step=4000,
        wire_s_per_step=0.02,
        algbw_bytes_per_s=200_000.0,
        busbw_bytes_per_s=200_000.0,
    ),
    CollectiveRecord(operation="all_gather", group_size=2, calls_per_step=2.5, bytes_per_step=600),
]


@pytest.fixture
def root(tmp_path, make):
    """A study with one finished launch, whose manifest vouches for its collectives."""
    root = make.write_study(tmp_path)
    folder = make.write_launch(root, make.make_spec(2))
    write_collectives(folder, LINES)
    (launch,) = read_launches(root)
    write_manifest(folder, launch.manifest)
    return root


def launch(root):
    (found,) = read_results(root).launches
    return found


def path(root):
    return read_launches(root)[0].path / COLLECTIVES


def test_what_is_written_is_read(root):
    assert list(launch(root).collectives) == LINES
    assert launch(root).altered == ()


def test_a_launch_without_collectives_has_no_file(tmp_path, make):
    root = make.write_study(tmp_path)
    write_collectives(make.write_launch(root, make.make_spec(1)), [])
    assert not path(root).exists()
    assert launch(root).collectives == ()


def test_collectives_that_were_changed_are_told(root):
    path(root).write_text(path(root).read_text().replace("4000", "5000"))
    assert launch(root).altered == (COLLECTIVES,)


@pytest.mark.parametrize(
    ("old", "new"), [("600", "-600"), ('"operation"', '"operations"'), ("2.5", "null"), ("{", "[")]
)
def test_a_damaged_line_is_an_error_that_names_it(root, old, new):
    first, second = path(root).read_text().splitlines()
    path(root).write_text(f"{first}\n{second.replace(old, new)}\n")
    with pytest.raises(ResultsError, match=r"collectives.jsonl:2` is damaged"):
        read_results(root)

"""The protocol of an imported series is inferred from what stays equal in it, and from nothing else."""

import pytest

from vitscale.analysis.communication import communication
from vitscale.analysis.facts import facts, infer_protocol
from vitscale.analysis.result import Shares
from vitscale.config.imported import ImportedSpec


def series(*runs):
    names = ("world_size", "micro_batch", "global_batch", "images_per_epoch")
    return [
        ImportedSpec(format="table", series="s", file="t", line=2, sha256="0", **dict(zip(names, run, strict=True)))
        for run in runs
    ]


@pytest.mark.parametrize(
    ("runs", "protocol"),
    [
        ([(1, 64, 64, 100), (2, 32, 64, 100)], "strong"),
        ([(1, None, 64, None), (2, None, 64, None)], "strong"),
        ([(1, 16, 16, 100), (2, 16, 32, 100)], "strong_fixed_micro"),
        ([(1, 16, None, 100), (2, 16, None, 100), (2, 16, None, 100)], "strong_fixed_micro"),
        ([(1, 16, 16, 100), (2, 16, 32, 200), (3, 16, 48, 300)], "weak"),
        ([(2, 16, 32, 200), (4, 16, 64, 400)], "weak"),
        ([(1, 16, 16, 100), (2, 16, 32, 150)], None),
        ([(1, 16, 16, 100), (2, 8, 24, 100)], None),
        ([(1, 16, 16, None), (2, 16, 32, None)], None),
        ([(1, 16, 16, 100), (2, None, 32, 100)], None),
        ([(1, 64, 64, 100)], None),
        ([(2, 64, 64, 100), (2, 64, 64, 100)], None),
    ],
)
def test_protocol_of_a_series(runs, protocol):
    assert infer_protocol(series(*runs)) == protocol


@pytest.mark.parametrize(
    ("told", "batch"),
    [
        ({"micro_batch": 16, "grad_accum": 2}, 128),
        ({"micro_batch": 16, "grad_accum": 2, "global_batch": 100}, 100),
        ({"micro_batch": 16}, None),
        ({"grad_accum": 2}, None),
    ],
)
def test_a_global_batch_that_is_not_told_is_the_identitys(told, batch):
    spec = ImportedSpec(format="table", series="s", file="t", line=2, sha256="0", world_size=4, **told)
    assert facts({"one": spec})["one"].global_batch == batch


@pytest.mark.parametrize(
    ("shares", "told"),
    [(Shares(), None), (Shares(comm_and_wait=0.6), 0.6), (Shares(comm_exposed=0.2, wait=0.3), 0.2)],
)
def test_waiting_that_was_timed_apart_is_no_communication(shares, told):
    assert communication(shares) == told


def test_series_row_and_place_are_part_of_the_run_id():
    (one,) = series((1, 16, 16, 100))
    changes = ({"series": "t"}, {"row": {"note": "x"}}, {"line": 3}, {"sha256": "1"}, {"file": "u"}, {"device": "a"})
    assert len({one.run_id, *(one.model_copy(update=change).run_id for change in changes)}) == 1 + len(changes)

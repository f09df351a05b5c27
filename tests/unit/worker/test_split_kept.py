"""A split that was chosen for a run is kept for its further launches, on the devices that it was chosen on."""

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

import torch

from vitscale.config.knobs import EngineSection
from vitscale.errors import ResultsError
from vitscale.records.schema import Split
from vitscale.study.rounds import next_entry
from vitscale.worker import uneven

FAST, SLOW = "AMD EPYC 9654, 96 cores", "Intel Xeon E5-2680 v4, 28 cores"


@pytest.fixture
def serve(make, tmp_path, monkeypatch):
    """A launch on devices by rank, as one of the ranks sees it; whether the split was timed, and what it is."""
    monkeypatch.chdir(tmp_path)
    spec = make.make_spec(2, knobs=EngineSection(split="proportional"))
    images = sum(spec.micro_batches)

    def go(*names, rank=0):
        timed = []

        def time(*_):
            timed.append(True)
            return Split(micro_batches=(images - 5, 5), images_per_s=(9.0, 1.0))

        first = []  # rank 0's word, which another rank is told

        def gathered(document, ranks):
            kept = uneven._kept(tmp_path / "runs" / spec.run_id / uneven.FILE, spec)
            first.append(None if kept is None else kept.model_dump(mode="json"))
            assert document["kept"] == (first[0] if ranks.rank == 0 else None)
            return [{"device": name, "kept": first[0] if other == 0 else None} for other, name in enumerate(names)]

        monkeypatch.setattr(uneven, "_timed", time)
        monkeypatch.setattr(uneven, "gathered", gathered)
        monkeypatch.setattr(uneven.devices, "timed_as", lambda device: names[rank])
        entry = next_entry(tmp_path, spec)
        (tmp_path / entry.folder).mkdir(parents=True)
        ranks = SimpleNamespace(rank=rank, device=torch.device("cpu"))
        return uneven.split_of(spec, entry, ranks, 2, None, None), bool(timed)

    return go


def test_further_launches_take_it_where_each_rank_has_its_device(serve):
    chosen, timed = serve(FAST, SLOW)
    assert timed
    assert chosen.devices == (FAST, SLOW)
    assert serve(FAST, SLOW) == (chosen, False)
    assert serve(FAST, SLOW, rank=1) == (chosen, False)


@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_refuse_a_launch_on_other_devices(serve, rank):
    serve(FAST, SLOW)
    with pytest.raises(ResultsError, match=f"rank 0 on `{FAST}`, which is on `{SLOW}` now") as refused:
        serve(SLOW, FAST, rank=rank)
    assert "launch.constraint" in refused.value.hint


def test_a_split_of_an_earlier_version_has_no_devices_and_is_taken(serve, tmp_path):
    chosen, _ = serve(FAST, SLOW)
    (path,) = tmp_path.glob("runs/*/split.json")
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "devices"}))
    kept, timed = serve(SLOW, FAST)
    assert (kept.micro_batches, timed) == (chosen.micro_batches, False)


def test_micro_steps_by_rank_are_kept_and_those_of_another_world_are_not_taken(serve, tmp_path):
    serve(FAST, SLOW)
    (path,) = tmp_path.glob("runs/*/split.json")
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "micro_steps": [1, 5]}))
    kept, _ = serve(FAST, SLOW)
    assert (kept.micro_steps, kept.at_once[1]) == ((1, 5), 1)
    path.write_text(json.dumps({**document, "micro_steps": [1, 5, 1]}))
    with pytest.raises(ResultsError, match="is of another run"):
        serve(FAST, SLOW)


def test_a_cpu_is_named_with_the_cores_of_its_host_and_no_host_by_its_name():
    name = uneven.devices.timed_as(torch.device("cpu"))
    assert name.endswith(" cores")
    assert uneven.devices.timed_as(torch.device("cpu")) == name

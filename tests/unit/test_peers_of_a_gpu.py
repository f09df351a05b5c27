"""`python -m benchmarks peers_gpu`: n/a without a card, and what it makes of steps that were seen."""

import json
from types import SimpleNamespace

import pytest
from benchmarks import peers_gpu
from benchmarks.peers_gpu import FED, NOT_FED, PEERS

OURS = ("vitscale ddp bf16", 1)
SLOWER = ("vitscale deepspeed zero_stage 0 bf16", 1)


@pytest.fixture
def no_card(monkeypatch):
    monkeypatch.setattr(peers_gpu, "probe", lambda: SimpleNamespace(gpus=(), cores=(0, 1)))


def test_without_a_card_every_figure_has_its_target_and_says_why_it_is_not_there(no_card, monkeypatch):
    monkeypatch.setattr(peers_gpu, "_taken", lambda *_: pytest.fail("nothing is to be started"))
    found = peers_gpu.measure(short=False)
    assert len({one.name for one in found}) == len(found) == 2 * (2 + len(PEERS))
    assert {(one.median, one.met, one.note) for one in found} == {("n/a", None, "not measured: no CUDA device")}
    assert {one.target for one in found} == {">= 2,900", ">= 45.0 %", ">= 1x"}


def test_short_tries_the_loops_on_the_cpu_and_tells_no_figure_of_them(no_card, monkeypatch):
    tried = []
    monkeypatch.setattr(peers_gpu, "_taken", lambda setting, peers, repeats: tried.append((setting, peers, repeats)))
    assert {one.median for one in peers_gpu.measure(short=True)} == {"n/a"}
    ((setting, peers, _),) = tried
    assert setting["device"] == setting["ours"]["device"] == "cpu"
    assert set(peers) <= set(PEERS)


def seen(step_s, peer_s):
    """Three repetitions; the first is slow, and must not count."""
    times = {OURS: [1.0] + [step_s] * 2, SLOWER: [2.0] + [step_s / 2] * 2}
    times |= {(peer, 1): [9.0] + [peer_s] * 2 for peer in PEERS}
    return {FED: times, NOT_FED: {who: [one / 2 for one in values] for who, values in times.items()}}


def rows(found):
    return {(one.name.split(",")[0], one.name.rsplit(", ")[-1]): (one.median, one.met) for one in found}


def test_rates_and_shares_of_the_peak_are_of_the_engine_that_the_first_repetition_chose():
    told = rows(peers_gpu._figures(seen(0.1, 0.1), flop=2.56e13, peak=1e15))
    assert told["images/s", FED] == ("2,560", False)
    assert told["images/s", NOT_FED] == ("5,120", True)
    assert told["MFU", FED] == ("25.6 %", False)
    assert told["MFU", NOT_FED] == ("51.2 %", True)


def test_a_peer_that_is_faster_is_a_miss():
    for peer_s, met in ((0.09, False), (0.11, True)):
        told = rows(peers_gpu._figures(seen(0.1, peer_s), flop=1, peak=None))
        ratios = {told[f"step of {peer}'s loop over vitscale's", FED] for peer in PEERS}
        assert ratios == {(f"{peer_s / 0.1:.2f}x", met)}
        assert told["MFU", FED] == ("n/a", None)


def test_not_fed_is_the_step_less_the_wait_for_images(tmp_path, monkeypatch):
    for launch in (0, 1):
        folder = tmp_path / f"ours/runs/one/launch{launch}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"engine": "ddp"}))
        waits = [("warmup", 9), *(("steady", launch + wait) for wait in (1, 2, 6))]
        lines = [{"window": window, "data_s": wait} for window, wait in waits]
        (folder / "steps.rank000.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(peers_gpu, "our_steps_s", lambda *_: {OURS: 10.0})
    assert peers_gpu._of("vitscale", {}, tmp_path, 1) == {FED: {OURS: 10.0}, NOT_FED: {OURS: 7.0}}


def test_a_peer_is_started_once_with_and_once_without_its_loader(tmp_path, monkeypatch):
    monkeypatch.setattr(peers_gpu, "peer_step_s", lambda who, setting, size, folder: setting["feeding"])
    assert peers_gpu._of("timm", {}, tmp_path, 0) == {FED: {("timm", 1): True}, NOT_FED: {("timm", 1): False}}

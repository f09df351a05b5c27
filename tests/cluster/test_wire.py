"""Time on the wire, held against a link of known rate: what the steps' clocks call communication is communication."""

import json
from statistics import median

import pytest
from hosts import RATES_BYTES_PER_S, lab, timed_link
from ranks import finish, launches, ranks_ahead, steps

pytestmark = [pytest.mark.process, pytest.mark.alone, pytest.mark.timeout(150), pytest.mark.usefixtures("kernel")]


@pytest.fixture
def measured(store, tmp_path):
    """Run a study over a link; its launches as (manifest, steady steps by rank, collectives)."""

    def measure(link, *words):
        process = lab(store, tmp_path, f"launch.link={link}", *words)
        code, err = finish(ranks_ahead(process, tmp_path, 2), 140)
        assert code == 0, err
        found = []
        for (run_id, launch), manifest in launches(tmp_path).items():
            folder = tmp_path / "runs" / run_id / launch
            steady = [[one for one in of_rank if one["window"] == "steady"] for of_rank in steps(folder).values()]
            sent = [json.loads(line) for line in (folder / "collectives.jsonl").read_text().splitlines()]
            found.append((manifest, steady, sent))
        return found

    return measure


def fastest_s(steady, field="comm_s"):
    """A busy machine adds to the time on the wire, and takes nothing away: the least of the steps, by the mean rank."""
    return min(sum(one[field] for one in step) / len(step) for step in zip(*steady, strict=True))


def sent_bytes(sent, operation):
    return sum(one["bytes_per_step"] for one in sent if one["operation"] == operation)


@pytest.mark.parametrize(("link", "stages", "count"), [("100mbit", "0,1", 8), ("1gbit", "0", 24)])
def test_communication_takes_what_the_link_takes_for_its_bytes(measured, tmp_path, link, stages, count):
    found = measured(link, f"zero_stage={stages}", "embed_dim=96", f"steps={count}")
    rate = RATES_BYTES_PER_S[link]
    assert len(found) == len(stages.split(","))
    told, best = timed_link(tmp_path, found[0][0])
    assert (told["nodes"], told["link"]) == (2, link)
    if link == "1gbit":  # at 100 Mbit/s so many bytes take more than the time set aside; see `test_lab.py`
        assert told["left_out"] == 0
        assert best["broadcast"] == pytest.approx(rate, rel=0.1)
    assert best["all_reduce"] == pytest.approx(rate, rel=0.1)
    for _, steady, sent in found:
        reduced, gathered = (sent_bytes(sent, operation) for operation in ("all_reduce", "all_gather"))
        assert (gathered > 0) == (len(sent) > 2)  # by ZeRO-1
        # gloo's all-gather needs between once and one and a half times as long as the link needs for half its size.
        least, most = ((reduced + share * gathered) / rate for share in (0.5, 0.77))
        assert 0.9 * least < fastest_s(steady) < 1.1 * most
        assert fastest_s(steady, "comm_overlapped_s") == 0  # DeepSpeed's stages do not overlap on a CPU
        # Of two ranks an all-reduce's bus bandwidth is that of its bytes; this one is of the median step.
        gradients = max(sent, key=lambda one: one["bytes_per_step"] * (one["operation"] == "all_reduce"))
        assert gradients["busbw_bytes_per_s"] == pytest.approx(rate, rel=0.1)


def test_what_is_hidden_behind_the_backward_pass_is_not_exposed(measured):
    # Buckets of 0.1 MB, of which all but the last ones are on the wire while the backward pass goes on.
    words = "depth=6", "embed_dim=48", "global_batch=512", "steps=48"
    found = measured("100mbit", "engine=ddp", "engine.bucket_mb=0.1", *words)
    ((manifest, steady, sent),) = found
    assert fastest_s(steady) >= 0.9 * sent_bytes(sent, "all_reduce") / RATES_BYTES_PER_S["100mbit"]
    for device, of_rank in zip(manifest["devices"], steady, strict=True):
        hidden, exposed, waited, on_wire = (
            median(one[f"{field}_s"] for one in of_rank)
            for field in ("comm_overlapped", "comm_exposed", "wait", "comm")
        )
        assert hidden > 0.3 * on_wire
        assert exposed + hidden == pytest.approx(on_wire, rel=0.1)
        # The other way to it, the steps without their collectives, saves that much, and what gloo's threads take from
        # the one core of the rank while they hide; it does not save all that is on the wire.
        saved_s = device["silence"]["step_s"] - device["silence"]["silent_step_s"]
        assert 0.6 * (exposed + waited) < saved_s < on_wire + waited

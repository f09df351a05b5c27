"""One of two ranks sleeps 5, 20 and 100 ms in one part of a step after the other: the other one waits that long."""

from statistics import median

import pytest
from ranks import runs, serve, steps

pytest.importorskip("torch")

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

MODEL = (
    "model.name=vit_tiny_patch16_224", "depth=2", "img_size=16", "patch_size=8", "world_size=2", "global_batch=16",
    "precision=fp32",
)  # fmt: skip
ENGINES = {"ddp": ("engine=ddp", "engine.bucket_mb=25"), "zero1": ("zero_stage=1",)}
SLEEPS = [(where, seconds) for where in ("forward", "backward", "data") for seconds in (0.005, 0.02, 0.1)]
WARMUP, EACH = 3, 10


def slept(step):
    """Where rank 1 sleeps in a step and for how long: each in turn, so that a busy spell hits all alike."""
    return SLEEPS[step % len(SLEEPS)]


@pytest.fixture(scope="module")
def launched(store, tmp_path_factory):
    """engine -> step lines by rank; one process start for all."""
    window = range(WARMUP, WARMUP + EACH * len(SLEEPS))
    measure = (f"warmup_steps={WARMUP}", f"steps={len(window)}")
    specs = {name: runs(store, *MODEL, *words, *measure)[0] for name, words in ENGINES.items()}
    sleeps = [
        f"sleep rank=1 launch={spec.run_id} where={where} seconds={seconds} step={step}"
        for spec in specs.values()
        for step in window
        for where, seconds in (slept(step),)
    ]
    environ = {"VITSCALE_INJECT": ";".join(sleeps)}
    end, folders = serve(store, tmp_path_factory.mktemp("sleeps"), [*specs.values()], environ)
    assert end.status == "ok", end.reason
    return {name: list(steps(folder).values()) for name, folder in zip(specs, folders, strict=True)}


@pytest.mark.parametrize(("where", "seconds"), SLEEPS)
@pytest.mark.parametrize("name", ENGINES)
def test_nine_tenths_of_a_sleep_are_waiting_and_nothing_is_communication(launched, name, where, seconds):
    first, slow = (
        [line for line in lines if line["window"] == "steady" and slept(line["step"]) == (where, seconds)]
        for lines in launched[name]
    )
    assert len(first) == EACH

    def more_s(*fields):
        """What the slow rank has more of in a step than the first one, by the median step."""
        pairs = zip(first, slow, strict=True)
        return median(sum(two[field] - one[field] for field in fields) for one, two in pairs)

    # A rank that sleeps leaves its share of a busy machine to the other: it is late by what it worked longer.
    late_s = more_s("data_s", "forward_s", "backward_s", "optimizer_s")
    assert min(line[f"{where}_s"] for line in slow) >= seconds
    assert late_s >= 0.5 * seconds
    assert -more_s("wait_s") >= 0.9 * late_s
    assert -more_s("comm_exposed_s") < 0.1 * late_s
    # The one that the other waits for is named.
    assert median(line["late_s"] for line in slow) >= 0.9 * median(line["wait_s"] for line in first)
    assert median(line["late_s"] for line in first) < 0.1 * seconds

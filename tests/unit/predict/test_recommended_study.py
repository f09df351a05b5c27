"""The study file of a recommendation has what was predicted, and nothing that a run refuses."""

from vitscale.config.load import load
from vitscale.cost import models
from vitscale.cost.scaling import Layout
from vitscale.predict.candidates import Candidate, Pool, Way, needed
from vitscale.predict.from_source import Source
from vitscale.predict.recommended_study import study_text
from vitscale.predict.series import Observation, Series

POOL = Pool("a100-40gb", 8, 2.0, 40 * 10**9)
WAY = Way("ddp", None, "bf16")
SHAPE, SEEN = models.shape("vit_base_patch16_224"), (Observation(Layout(1, 1, 64, 1), 1.0),)
FACTS = {"model": SHAPE.name, "device": "a100-40gb", "precision": "bf16"}


def written(tmp_path, way, source, size=4):
    path = tmp_path / "recommended.toml"
    path.write_text(study_text(Candidate(POOL, way, Layout(size, 1, 64 / size, 1)), source))
    return load(str(path), ()).study


def measured(resolved, *, engine="deepspeed", stage=None, **knobs):
    series = Series("s", SEEN, engine=engine, zero_stage=stage, knobs=knobs, **FACTS)
    return Source(SHAPE, 64, 640, 1.0, "adamw", (series,), resolved)


def test_the_study_has_the_knobs_that_its_steps_and_memory_were_predicted_with(tmp_path):
    way, knobs = Way("deepspeed", 2, "bf16"), {"activation_checkpointing": True, "overlap_comm": True}
    zero2 = Series("zero 2", SEEN, engine="deepspeed", zero_stage=2, knobs=knobs, **FACTS)
    other = Series("ddp", SEEN, engine="ddp", knobs={"sdpa": "math"}, **FACTS)
    kept = {"deepspeed": {"zero_optimization": {"reduce_bucket_size": 10**6, "overlap_comm": False}}}
    source = Source(SHAPE, 64, 640, 1.0, "adamw", (other, zero2), kept)
    study = written(tmp_path, way, source)
    assert study.deepspeed == {"zero_optimization": {"reduce_bucket_size": 10**6, "overlap_comm": True}}
    assert study.engine.activation_checkpointing
    assert study.engine.sdpa is None
    one = Candidate(POOL, way, Layout(4, 1, 16, 1))
    least = needed(one, SHAPE, "adamw", source.knobs(way)).median_bytes
    assert least < needed(one, SHAPE, "adamw", {"overlap_comm": True}).median_bytes
    assert least > needed(one, SHAPE, "adamw", {"activation_checkpointing": True}).median_bytes


def test_a_swept_knob_that_is_off_in_the_nearest_series_is_off_in_the_study(tmp_path):
    zero = "deepspeed.zero_optimization"
    swept = ("engine.activation_checkpointing", "fsdp.reshard_after_forward", f"{zero}.overlap_comm")
    resolved = {
        "axes": {"swept": {key: [False, True] for key in swept}},
        "engine": {"activation_checkpointing": True, "channels_last": True},
        "fsdp": {"reshard_after_forward": False},
        "deepspeed": {"zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 10**6}},
    }
    study = written(tmp_path, WAY, measured(resolved, engine="ddp"))
    assert not study.engine.activation_checkpointing
    assert study.engine.channels_last
    assert study.fsdp.reshard_after_forward
    assert study.deepspeed == {"zero_optimization": {"reduce_bucket_size": 10**6}}


def test_another_stage_than_the_measured_one_keeps_nothing_that_it_refuses(tmp_path):
    zero3 = {"zero_optimization": {"offload_param": {"device": "cpu", "pin_memory": True}, "reduce_bucket_size": 10**6}}
    source = measured({"deepspeed": zero3}, stage=3, offload=[None, "cpu"])
    kept = written(tmp_path, Way("deepspeed", 3, "bf16"), source)
    other = written(tmp_path, Way("deepspeed", 1, "bf16"), source)
    assert kept.deepspeed == zero3
    assert other.deepspeed == {"zero_optimization": {"reduce_bucket_size": 10**6}}
    compiled = measured({"engine": {"fast": True}}, engine="ddp", compile=True)
    assert written(tmp_path, WAY, compiled).engine.compile
    assert not written(tmp_path, Way("deepspeed", 3, "bf16"), compiled).engine.compile


def test_what_ranks_share_and_swept_offload_are_in_the_study(tmp_path):
    key = "deepspeed.zero_optimization.offload_optimizer.device"
    source = measured({"axes": {"swept": {key: ["none", "cpu"]}}}, stage=1, offload=["cpu", None], sequence_parallel=2)
    study = written(tmp_path, Way("deepspeed", 1, "bf16"), source)
    assert study.axes.sequence_parallel == (2,)
    assert study.deepspeed == {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    assert written(tmp_path, Way("deepspeed", 1, "bf16"), source, size=1).axes.sequence_parallel == (1,)

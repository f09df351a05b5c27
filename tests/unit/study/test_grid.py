import pytest

from vitscale.config.load import validate
from vitscale.cost.collectives import Links
from vitscale.cost.run import Machinery, estimate_run
from vitscale.data.catalog import DatasetFacts
from vitscale.errors import SetupError, UsageError
from vitscale.hardware.probe import Gpu, Machine
from vitscale.study.grid import Images, Where, build

DIGITS = Images(DatasetFacts("digits", 10, 1437, 360, 8, 8, 1, "made for this test"), "0123456789abcdef")


def machine(cores=4, gpus=0):
    cards = tuple(Gpu("NVIDIA H100 80GB HBM3", 80 << 30) for _ in range(gpus))
    return Machine(cores, tuple(range(cores)), 16 << 30, "a CPU", cards, None if gpus else "NVML sees no GPU", None)


def grid(protocol="strong", where=None, model=None, data=None, swept=None, train=None, optimizer=None, **axes):
    tree = {
        "name": "mine",
        "protocol": protocol,
        "model": {"name": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 4, **(model or {})},
        "data": {"name": "digits", **(data or {})},
        "train": train or {},
        "optimizer": optimizer or {},
        "axes": {"world_size": [1, 2], "global_batch": 64, **axes, "swept": swept or {}},
    }
    return build(validate(tree, "study `mine`"), where or Where(machine()), lambda section: DIGITS)


def batches(runs):
    return [(run.world_size, run.micro_batch, run.grad_accum, run.global_batch) for run in runs]


def test_the_grid_is_the_product_in_the_order_of_the_study_world_size_innermost():
    runs = grid(["strong", "weak"], zero_stage=[1, 0], precision=["fp32", "bf16"], micro_batch=8).runs
    order = [(run.protocol, run.zero_stage, run.precision, run.world_size) for run in runs]
    assert order == [
        (protocol, stage, precision, size)
        for protocol in ("strong", "weak")
        for stage in (1, 0)
        for precision in ("fp32", "bf16")
        for size in (1, 2)
    ]
    assert len({run.run_id for run in runs}) == len(runs)
    assert len({run.series for run in runs}) == len(runs) / 2


def test_strong_keeps_the_global_batch_and_the_images():
    runs = grid("strong", world_size=[1, 2, 4], data={"images": 1000}).runs
    assert batches(runs) == [(1, 64, 1, 64), (2, 32, 1, 64), (4, 16, 1, 64)]
    assert {run.data.images for run in runs} == {1000}
    assert {run.solved for run in runs} == {"micro_batch"}


def test_strong_fixed_micro_lets_the_global_batch_grow_over_the_same_images():
    runs = grid("strong_fixed_micro", world_size=[1, 2, 4], micro_batch=16, grad_accum=2).runs
    assert batches(runs) == [(1, 16, 2, 32), (2, 16, 2, 64), (4, 16, 2, 128)]
    assert {run.data.images for run in runs} == {1437}
    assert {run.data.images_per_device for run in runs} == {None}


def test_weak_lets_images_and_global_batch_grow_with_the_ranks():
    runs = grid("weak", world_size=[1, 2, 4], micro_batch=16).runs
    assert batches(runs) == [(1, 16, 1, 16), (2, 16, 1, 32), (4, 16, 1, 64)]
    assert [run.data.images for run in runs] == [359, 718, 1436]
    assert {run.data.images_per_device for run in runs} == {359}
    given = grid("weak", world_size=[1, 4], micro_batch=16, data={"images_per_device": 100}).runs
    assert [run.data.images for run in given] == [100, 400]


def test_each_of_several_protocols_reads_its_own_keys():
    runs = grid(["strong", "weak"], micro_batch=24, global_batch=64).runs
    assert batches(runs) == [(1, 64, 1, 64), (2, 32, 1, 64), (1, 24, 1, 24), (2, 24, 1, 48)]


def test_a_key_a_protocol_does_not_read_does_not_multiply_its_runs():
    runs = grid(["strong", "weak"], micro_batch=[8, 16], global_batch=[32, 64]).runs
    assert [run.protocol for run in runs] == ["strong"] * 4 + ["weak"] * 4


def test_devices_that_resolve_to_the_same_collapse_to_one_run():
    assert len(grid(device=["auto", "cpu"]).runs) == 2


def test_a_combination_that_cannot_exist_is_skipped_with_its_rule_and_the_rest_runs():
    made = grid(world_size=[1, 2, 3], global_batch=[64, 96])
    assert [(run.world_size, run.global_batch) for run in made.runs] == [(1, 64), (2, 64), (1, 96), (2, 96), (3, 96)]
    (skipped,) = made.skipped
    assert skipped.world_size == 3
    assert "`global_batch` 64 cannot be divided" in skipped.reason
    assert "60 or 66" in skipped.reason


def test_a_world_size_of_which_no_run_is_left_refuses_the_study():
    with pytest.raises(UsageError, match="no run of `world_size = 3` is possible: `global_batch` 64"):
        grid(world_size=[1, 2, 3])


def test_a_global_batch_beyond_the_images_is_skipped():
    """Fault 37: no run of 0 steps."""
    made = grid(global_batch=[64, 2048])
    assert len(made.runs) == 2
    assert all("`global_batch` 2,048 is more than the 1,437 training images" in skip.reason for skip in made.skipped)


def test_more_images_per_device_than_there_are_is_refused_with_what_fits():
    with pytest.raises(UsageError, match=r"`images_per_device` 1,000 x 2 ranks is more than the 1,437") as caught:
        grid("weak", micro_batch=8, data={"images_per_device": 1000})
    assert "718" in f"{caught.value.message} {caught.value.hint}"


def test_more_images_than_the_data_set_has_are_refused():
    with pytest.raises(UsageError, match=r"`data\.images` = 2,000, but `digits` has 1,437"):
        grid(data={"images": 2000})


def test_where_the_global_batch_grows_the_learning_rate_is_asked_for_and_scaled():
    """Fault 34: accuracies at one learning rate and several batches say nothing about scaling."""
    growing = {"protocol": "weak", "micro_batch": 16, "train": {"epochs": 1}}
    with pytest.raises(UsageError, match=r"global batches 16, 32, and `optimizer.lr_policy` is not given"):
        grid(**growing)
    for policy, factor in (("linear", 2), ("sqrt", 2**0.5), ("none", 1)):
        one, two = grid(**growing, optimizer={"lr": 0.1, "lr_policy": policy, "lr_base_batch": 16}).runs
        assert (one.optimizer.lr, two.optimizer.lr) == pytest.approx((0.1, 0.1 * factor))


def test_fp16_is_skipped_on_a_cpu_and_runs_on_a_gpu():
    made = grid(precision=["fp32", "fp16"])
    assert {run.precision for run in made.runs} == {"fp32"}
    assert all("fp16` needs CUDA" in skip.reason for skip in made.skipped)
    assert len(made.skipped) == 2
    with pytest.raises(UsageError, match="fp16` needs CUDA"):
        grid(precision="fp16")
    assert {run.precision for run in grid(precision="fp16", where=Where(machine(gpus=2))).runs} == {"fp16"}


@pytest.mark.parametrize("device", ["cuda", ["cpu", "cuda"]])
def test_cuda_without_a_gpu_is_an_error_and_never_falls_back(device):
    with pytest.raises(SetupError, match="NVML sees no GPU"):
        grid(device=device)


def test_auto_takes_the_gpus_where_there_are_any_and_says_so():
    on_cpu, on_gpu = grid(), grid(where=Where(machine(gpus=2)))
    assert {run.device for run in on_cpu.runs} == {"cpu"}
    assert any("device = auto: cpu (NVML sees no GPU)" in note for note in on_cpu.notes)
    assert {run.device for run in on_gpu.runs} == {"cuda"}
    assert {run.threads_per_rank for run in on_gpu.runs} == {None}
    assert any("device = auto: cuda" in note for note in on_gpu.notes)


def test_more_ranks_than_gpus_are_refused():
    with pytest.raises(UsageError, match=r"no run of `world_size = 2` is possible: .* 1 GPU"):
        grid(where=Where(machine(gpus=1)))


@pytest.mark.parametrize(("cores", "threads"), [(8, 2), (4, 1), (2, 1)])
def test_a_rank_has_the_same_threads_at_every_world_size(cores, threads):
    runs = grid(world_size=[1, 2, 4], where=Where(machine(cores))).runs
    assert {run.threads_per_rank for run in runs} == {threads}


def test_more_ranks_than_cores_run_and_are_marked():
    runs = grid(world_size=[1, 2, 4], where=Where(machine(2))).runs
    assert [run.oversubscribed for run in runs] == [False, False, True]


def test_an_unknown_model_is_refused_with_names_that_exist():
    with pytest.raises(UsageError, match="`vit_tinny_patch16_224`") as caught:
        grid(model={"name": "vit_tinny_patch16_224"})
    assert "`vit_tiny_patch16_224`" in caught.value.hint


def test_patches_that_do_not_tile_the_image_are_refused_with_sizes_that_do():
    with pytest.raises(UsageError, match=r"img_size = 30.*patch_size = 4") as caught:
        grid(model={"img_size": 30, "patch_size": 4})
    assert "28" in caught.value.hint
    assert "32" in caught.value.hint


def test_the_head_follows_the_data_and_sizes_the_model():
    (one, _) = grid().runs
    assert (one.model.num_classes, one.model.img_size, one.model.patch_size) == (10, 32, 4)
    (own, _) = grid(model={"img_size": None, "patch_size": None}).runs
    assert (own.model.img_size, own.model.patch_size) == (224, 16)


def test_images_are_mirrored_where_that_makes_sense_unless_the_study_says_otherwise():
    assert not grid().runs[0].data.flip
    assert grid(data={"flip": True}).runs[0].data.flip
    assert grid(data={"name": "cifar10"}).runs[0].data.flip


def test_keys_that_vary_by_their_path_multiply_the_grid():
    made = grid(
        swept={
            "model.patch_size": [4, 8],
            "optimizer.lr": [0.1, 0.2],
            "deepspeed.zero_optimization.overlap_comm": [True],
        }
    )
    assert [(run.model.patch_size, run.optimizer.lr) for run in made.runs[::2]] == [
        (4, 0.1), (4, 0.2), (8, 0.1), (8, 0.2),
    ]  # fmt: skip
    assert {str(run.deepspeed) for run in made.runs} == {"{'zero_optimization': {'overlap_comm': True}}"}


def test_labels_are_unique_and_say_what_differs():
    made = grid(["strong", "weak"], micro_batch=8, zero_stage=[0, 1], swept={"optimizer.lr": [0.1, 0.2]})
    labels = made.labels()
    assert len(set(labels.values())) == len(labels) == len(made.runs) == 16
    assert all("zero_stage" in label for label in labels.values())
    assert all("lr 0.1" in labels[run.run_id] for run in made.runs if run.optimizer.lr == 0.1)


def test_several_nodes_are_skipped_where_the_launcher_starts_on_one():
    made = grid(world_size=[2], nodes=[1, 2])
    assert [run.nodes for run in made.runs] == [1]
    assert "`nodes = 2`" in made.skipped[0].reason


def test_ranks_per_node_say_how_many_hosts_are_needed():
    spread = grid(world_size=[1, 2, 4], ranks_per_node=[1, 2], where=Where(machine(), "h100"))
    assert [(run.world_size, run.nodes) for run in spread.runs] == [(1, 1), (2, 2), (4, 4), (2, 1), (4, 2)]
    assert [one.why for one in spread.skipped] == ["`world_size = 1` does not spread evenly with `ranks_per_node = 2`"]
    assert "ranks_per_node 2" in spread.skipped[0].label


def test_where_ranks_per_node_ask_for_more_hosts_the_hint_names_what_fits_on_one():
    with pytest.raises(UsageError, match="ranks are started on this host only") as caught:
        grid(world_size=[2], ranks_per_node=1)
    several = "on several hosts: --launcher hosts or mpi with launch.hostfile, or --launcher slurm or lab"
    assert caught.value.hint == f"ranks_per_node=2; {several}"


def test_a_simulated_device_fills_its_nodes_and_needs_no_gpu_here():
    runs = grid(world_size=[4, 8, 16], where=Where(machine(), "h100")).runs
    assert [(run.nodes, run.ranks_per_node) for run in runs] == [(1, 4), (1, 8), (2, 8)]
    assert {(run.device, run.simulated_device) for run in runs} == {("cuda", "h100")}


def test_the_steady_window_is_ten_seconds_unless_steps_or_seconds_are_given():
    assert grid().runs[0].measure.seconds == 10.0


def test_every_run_carries_the_fingerprint_of_its_data():
    assert {run.data.fingerprint for run in grid().runs} == {"0123456789abcdef"}


def engines(made):
    return [(run.engine, run.zero_stage, run.world_size) for run in made.runs]


def test_keys_an_engine_does_not_have_collapse_to_one_run():
    made = grid(engine=["deepspeed", "ddp", "fsdp"], zero_stage=[0, 2])
    assert engines(made) == [
        (engine, stage, size)
        for engine, stage in (("deepspeed", 0), ("deepspeed", 2), ("ddp", None), ("fsdp", None))
        for size in (1, 2)
    ]
    swept = {"fsdp.reshard_after_forward": [True, False], "deepspeed.zero_optimization.overlap_comm": [True, False]}
    by_engine = [
        engine for engine, _, _ in engines(grid(engine=["deepspeed", "ddp", "fsdp"], swept=swept, world_size=2))
    ]
    assert {engine: by_engine.count(engine) for engine in by_engine} == {"deepspeed": 2, "ddp": 1, "fsdp": 2}


def test_labels_name_the_engine_and_only_the_stages_it_has():
    labels = grid(engine=["deepspeed", "ddp", "fsdp"], zero_stage=[0, 2], world_size=2).labels().values()
    assert list(labels) == [
        "deepspeed, zero_stage 0, 2 processes",
        "deepspeed, zero_stage 2, 2 processes",
        "ddp, 2 processes",
        "fsdp, 2 processes",
    ]


def test_the_single_engine_has_one_rank():
    made = grid(engine=["single", "ddp"])
    assert engines(made) == [("single", None, 1), ("ddp", None, 1), ("ddp", None, 2)]
    assert [skip.reason for skip in made.skipped] == [
        "`engine = single` has one rank, and `world_size = 2` (engine=ddp)"
    ]
    with pytest.raises(UsageError, match="no run of `world_size = 2` is possible: `engine = single`"):
        grid(engine="single")


def test_only_deepspeed_scales_the_loss_of_fp16():
    made = grid(engine=["deepspeed", "ddp", "fsdp"], precision="fp16", device="cuda", where=Where(machine(gpus=2)))
    assert engines(made) == [("deepspeed", 0, 1), ("deepspeed", 0, 2)]
    assert all("needs a loss scaler" in skip.reason for skip in made.skipped)
    assert len(made.skipped) == 4


def test_a_moving_average_is_skipped_where_weights_are_sharded():
    made = grid(engine=["deepspeed", "ddp", "fsdp"], zero_stage=[2, 3], swept={"train.ema": [0.9], "train.epochs": [1]})
    assert {(engine, stage) for engine, stage, _ in engines(made)} == {("deepspeed", 2), ("ddp", None)}
    assert {skip.reason.partition(", and ")[2] for skip in made.skipped} == {
        "`zero_stage = 3` shards them (zero_stage=2, or leave train.ema out)",
        "`engine = fsdp` shards them (engine=ddp, or leave train.ema out)",
    }


def test_an_engine_that_is_not_installed_is_skipped_with_the_command(monkeypatch):
    monkeypatch.setattr("vitscale.study.engines.find_spec", lambda name: None)
    made = grid(engine=["ddp", "accelerate"], world_size=2)
    assert engines(made) == [("ddp", None, 2)]
    assert [skip.reason for skip in made.skipped] == [
        "`engine = accelerate` needs `accelerate`, not installed here (pip install 'vitscale[accelerate]')"
    ]
    with pytest.raises(UsageError, match="needs `accelerate`, not installed here"):
        grid(engine="accelerate")
    monkeypatch.setattr("vitscale.study.engines.find_spec", lambda name: None if name == "transformers" else name)
    with pytest.raises(UsageError, match="needs `transformers`, not installed here") as refused:
        grid(engine="accelerate_deepspeed")
    assert refused.value.hint == "pip install 'vitscale[accelerate-deepspeed]'"
    assert len(grid(engine="accelerate", where=Where(machine(), "h100")).runs) == 2


def test_accelerate_is_skipped_in_bf16(monkeypatch):
    monkeypatch.setattr("vitscale.study.engines.find_spec", lambda name: name)
    made = grid(engine=["ddp", "accelerate"], precision=["fp32", "bf16", "bf16_autocast"], world_size=2)
    assert [(run.engine, run.precision) for run in made.runs] == [
        ("ddp", "fp32"),
        ("ddp", "bf16"),
        ("ddp", "bf16_autocast"),
        ("accelerate", "fp32"),
        ("accelerate", "bf16_autocast"),
    ]
    assert "its bf16 is autocast (precision=bf16_autocast)" in made.skipped[0].reason


def test_ranks_that_share_tokens_take_part_in_the_batch_identity_as_one():
    found = grid(world_size=[1, 2, 4], sequence_parallel=[1, 2])
    assert [(run.world_size, run.sequence_parallel, run.data_parallel, run.micro_batch) for run in found.runs] == [
        (1, None, 1, 64), (2, None, 2, 32), (4, None, 4, 16), (2, 2, 1, 64), (4, 2, 2, 32),
    ]  # fmt: skip
    assert len({run.series for run in found.runs}) == 2
    (skipped,) = found.skipped
    assert skipped.label == "strong, deepspeed, zero_stage 0, fp32, sequence_parallel 2, global_batch 64, 1 process"
    assert skipped.why.startswith("`sequence_parallel = 2` does not divide `world_size = 1`")


def test_sequence_parallelism_on_one_rank_alone_is_refused():
    with pytest.raises(UsageError, match="no run of `world_size = 1` is possible: `sequence_parallel = 2`"):
        grid(world_size=1, sequence_parallel=2)
    with pytest.raises(UsageError, match="no run of `world_size = 4` is possible: `sequence_parallel = 3`"):
        grid(world_size=[3, 4], sequence_parallel=3, global_batch=60)


def test_a_weak_study_gives_each_group_its_share():
    runs = grid("weak", world_size=[2, 4], micro_batch=8, sequence_parallel=2).runs
    assert batches(runs) == [(2, 8, 1, 8), (4, 8, 1, 16)]
    assert len({run.series for run in runs}) == 1


def test_an_optimizer_of_whole_weights_is_skipped_where_something_shards_them():
    made = grid(
        world_size=1,
        engine=["deepspeed", "ddp", "fsdp", "single"],
        zero_stage=[0, 1, 2, 3],
        swept={"optimizer.name": ["adamw", "sgd", "lion", "lamb", "muon", "adafactor"]},
    )
    asked = {(run.optimizer.name, run.engine, run.zero_stage) for run in made.runs}
    whole = {("deepspeed", 0), ("ddp", None), ("single", None)}
    sharding = {("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3), ("fsdp", None)}
    for name in ("lamb", "muon", "adafactor"):
        assert {key[1:] for key in asked if key[0] == name} == whole
    for name in ("adamw", "sgd", "lion"):
        assert {key[1:] for key in asked if key[0] == name} == whole | sharding
    why = next(skip for skip in made.skipped if "lamb" in skip.why and "zero_stage = 2" in skip.why)
    assert "needs the norm of each whole weight" in why.why
    assert why.hint == "zero_stage=0"


def test_each_optimizer_takes_its_own_learning_rate_and_is_named_without_it():
    made = grid(optimizer={"lr": 0.5, "lr_of": {"sgd": 0.1}}, swept={"optimizer.name": ["sgd", "lion"]})
    assert {(run.optimizer.name, run.optimizer.lr, run.optimizer.lr_of) for run in made.runs} == {
        ("sgd", 0.1, None), ("lion", 0.5, None),
    }  # fmt: skip
    assert set(made.labels().values()) == {
        "sgd, 1 process", "sgd, 2 processes", "lion, 1 process", "lion, 2 processes",
    }  # fmt: skip
    told = grid(optimizer={"name": "sgd", "lr": 0.1})
    assert [run.run_id for run in told.runs] == [run.run_id for run in made.runs if run.optimizer.name == "sgd"]


def test_accelerate_over_deepspeed_has_its_stages_keys_and_rules(monkeypatch):
    monkeypatch.setattr("vitscale.study.engines.find_spec", lambda name: name)
    both, words = ["deepspeed", "accelerate_deepspeed"], {"zero_stage": [0, 3], "world_size": 2}
    made = grid(engine=both, precision="bf16", swept={"deepspeed.steps_per_print": [7]}, **words)
    assert engines(made) == [(engine, stage, 2) for engine in both for stage in (0, 3)]
    assert all(run.deepspeed == {"steps_per_print": 7} for run in made.runs)
    estimates = [estimate_run(run, Machinery(None, Links(None, None), None)).document() for run in made.runs]
    assert estimates[:2] == estimates[2:]
    with pytest.raises(UsageError, match="`engine = accelerate_deepspeed` takes every rank for one"):
        grid(engine="accelerate_deepspeed", world_size=2, tensor_parallel=2, micro_batch=8)
    with pytest.raises(UsageError, match="`zero_stage = 1` updates a part"):
        grid(engine="accelerate_deepspeed", zero_stage=1, optimizer={"name": "lamb"})

"""A user's mistake is one `error:` line, a hint, the documented exit status; nothing is started and nothing is lost."""

import os
import shutil
import subprocess

import pytest

MINIMAL = """
name = "mine"
protocol = "strong"
[model]
name = "vit_tiny_patch16_224"
[data]
name = "digits"
[axes]
global_batch = 64
"""


@pytest.fixture
def study(tmp_path):
    def write(text=MINIMAL, name="mine.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def nothing_was_left(tmp_path):
    return list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("override", "said", "hint"),
    [
        ("micro_batch_per_gpu=4", "`micro_batch_per_gpu`", "`axes.micro_batch`"),
        ("world_sise=2", "`world_sise`", "`axes.world_size`"),
        ("deepspeed.micro_batch_per_gpu=4", "`micro_batch_per_gpu`", "`train_micro_batch_size_per_gpu`"),
        ("deepspeed.zero_optimization.overlap_com=true", "`overlap_com`", "`overlap_comm`"),
        ("world_size=0", "`axes.world_size` = 0", None),
        ("world_size=-2", "`axes.world_size` = -2", None),
        ("zero_stage=7", "`axes.zero_stage` = 7", None),
        ("precision=fp16", "needs CUDA", "precision=bf16"),
        ("engine=single", "`engine = single` has one rank", "engine=ddp"),
        ("engine.bucket_mb=0", "`engine.bucket_mb` = 0", None),
        ("deepspeed.zero_optimization.reduce_bucket_size=0", "`zero_optimization.reduce_bucket_size`", None),
        ("sequence_parallel=2", "does not divide `world_size = 1`", "sequence_parallel=1"),
        ("backend=nccl", "`backend = nccl` sends from GPUs", "backend=gloo"),
        ("optimizer.name=onebitadam", "which DeepSpeed removed", None),
        ("device=cuda", "there is no GPU", "device=cpu"),
        ("model.name=vit_tinny_patch16_224", "`vit_tinny_patch16_224`", "`vit_tiny_patch16_224`"),
        ("model.name=resnet50", "`resnet50`", None),
        # timm has it, with blocks that have no plain `attn`.
        ("model.name=vit_small_patch16_18x2_224 world_size=2 sequence_parallel=2", "is called `vit_small", None),
        ("patch_size=5", "`patch_size = 5`", "`img_size = 30 or 35`"),
        ("data.name=cifar", "`cifar`", "`cifar10`"),
        ("data.name=cifar10", "not prepared", "vitscale data cifar10"),
        ("data.path=/nowhere/at-all", "`/nowhere/at-all`", None),
        ("name=../../x", "`../../x` is a path", None),
        ("measure.steps=3,", "measure.steps", None),
        ("world_size", "not an override", "key=value"),
        ("name=1", "`name` = 1", None),
        ("measure.baseline=99", "`measure.baseline = 99`", "name one of them"),
        ("model.depth=100000000", "`model.depth` = 100000000", None),
    ],
)
def test_an_override_that_cannot_be(vitscale, tmp_path, override, said, hint):
    ran = vitscale("run", "quick", *override.split())
    assert ran.code in (2, 3, 4)
    assert said in ran.error
    if hint:
        assert hint in ran.hint
    assert nothing_was_left(tmp_path)


def test_exit_statuses_tell_usage_setup_and_data_apart(vitscale):
    assert vitscale("run", "quick", "zero_stage=7").code == 2
    assert vitscale("run", "quick", "device=cuda").code == 3
    assert vitscale("run", "quick", "data.name=cifar10").code == 4
    assert vitscale("report", ".").code == 10


def test_a_global_batch_that_cannot_be_divided_names_the_nearest(vitscale, tmp_path):
    ran = vitscale("run", "quick", "world_size=1,2,3", "protocol=strong")
    assert ran.code == 2
    assert "`global_batch` 64 cannot be divided" in ran.error
    assert "60 or 66" in ran.hint
    assert nothing_was_left(tmp_path)


def test_a_global_batch_larger_than_the_data(vitscale, tmp_path):
    ran = vitscale("run", "quick", "global_batch=2000", "protocol=strong")
    assert ran.code == 2
    assert "`global_batch` 2,000 is more than the 1,437 training images" in ran.error
    assert nothing_was_left(tmp_path)


def test_what_is_skipped_is_said_before_anything_starts(vitscale, tmp_path):
    words = ("run", "quick", "--launcher", "simulate", "hardware.name=t4", "world_size=1,3", "--out", tmp_path / "out")
    ran = vitscale(*words)
    assert ran.code == 0
    assert ran.err.index("skipped  strong") < ran.err.index("[1/3]")
    assert "skipped" in (tmp_path / "out" / "report" / "report.md").read_text().lower()


def test_more_ranks_than_gpus_is_refused_and_never_falls_back(vitscale, monkeypatch):
    from vitscale.hardware import probe

    real = probe.probe()
    gpu = probe.Gpu("NVIDIA H100 80GB HBM3", 80 * 2**30)
    monkeypatch.setattr(probe, "probe", lambda: probe.Machine(**{**vars(real), "gpus": (gpu,), "gpus_reason": None}))
    ran = vitscale("run", "quick")
    assert ran.code == 2
    assert "`world_size = 2`, but there is 1 GPU" in ran.error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "x\nprotocol = "weak"', "line 1"),
        ("name = \nprotocol = 3", "line 1"),
        (MINIMAL + "[measure]\nlaunches = two\n", "line 11"),
        (MINIMAL + "[mesure]\nlaunches = 2\n", "`mesure`"),
        ("", "has no `name`"),
        (MINIMAL.replace("mine", "<img src=x onerror=alert(1)>\\u001b[31m"), "control characters"),
    ],
)
def test_a_broken_study_file(vitscale, study, text, said):
    ran = vitscale("run", study(text))
    assert ran.code == 2
    assert said in ran.error
    assert "\x1b" not in ran.err


def test_a_study_file_that_is_not_text(vitscale, tmp_path):
    (tmp_path / "junk.toml").write_bytes(os.urandom(4096))
    ran = vitscale("run", tmp_path / "junk.toml")
    assert ran.code == 2
    assert "not UTF-8" in ran.error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"train_batch_size": 64,\n "zero_optimization": {"stage": 1]\n}', "line 2"),
        ('{"micro_batch_per_gpu": 4}', "`micro_batch_per_gpu`"),
        ('{"train_batch_size": 32}', "`train_batch_size` = 32"),
        ('{"train_batch_size": 64, "train_batch_size": 32}', "twice"),
        ("[1, 2]", "not an object"),
    ],
)
def test_a_broken_deepspeed_file(vitscale, study, tmp_path, text, said):
    (tmp_path / "ds.json").write_text(text)
    ran = vitscale("run", study(MINIMAL + '[deepspeed]\nfile = "ds.json"\n'))
    assert ran.code == 2
    assert said in ran.error


def test_a_study_named_in_html_is_text_everywhere(vitscale, study, tmp_path):
    name = "<script>alert(1)</script>[red]"
    path = study(MINIMAL.replace('"mine"', f'"{name}"'))
    ran = vitscale("run", path, "--launcher", "simulate", "hardware.name=t4", "--out", tmp_path / "out")
    assert ran.code == 0
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert name not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;[red]" in page


def test_the_default_results_folder_is_a_safe_name(vitscale, study, tmp_path):
    path = study(MINIMAL.replace('"mine"', '"a/b <c> ./d"'))
    assert vitscale("run", path, "--launcher", "simulate", "hardware.name=t4").code == 0
    plans = (tmp_path / "work" / "results").rglob("plan.json")
    assert [str(path.relative_to(tmp_path / "work")) for path in plans] == ["results/a/b-c/d/plan.json"]


def test_a_results_folder_of_another_study(vitscale, study, simulated):
    before = (simulated / "resolved.json").read_bytes()
    ran = vitscale("run", study(), "--launcher", "simulate", "hardware.name=h100", "--out", simulated)
    assert ran.code == 10
    assert "study `quick`, not of `mine`" in ran.error
    assert (simulated / "resolved.json").read_bytes() == before


def test_simulated_and_measured_records_never_share_a_folder(vitscale, simulated):
    ran = vitscale("run", "quick", "--out", simulated)
    assert ran.code == 10
    assert "holds simulated records, and this run is measured" in ran.error


@pytest.mark.parametrize(
    "make_it", [lambda path: path.write_text("x"), lambda path: (path / "sub").mkdir(parents=True)]
)
def test_a_place_that_is_no_results_folder(vitscale, tmp_path, make_it):
    make_it(tmp_path / "place")
    ran = vitscale("run", "quick", "--launcher", "simulate", "hardware.name=h100", "--out", tmp_path / "place")
    assert ran.code == 10
    assert "not" in ran.error
    assert not (tmp_path / "data").exists()


def test_a_torn_last_line_is_left_out_and_flagged(vitscale, simulated):
    steps = next(simulated.glob("runs/*/launch0/steps.*.jsonl"))
    steps.write_bytes(steps.read_bytes()[:-20])
    ran = vitscale("report", simulated)
    assert ran.code == 0
    assert "cut off" in ran.out


def test_a_damaged_middle_line_is_named(vitscale, simulated):
    steps = next(simulated.glob("runs/*/launch0/steps.*.jsonl"))
    lines = steps.read_bytes().splitlines(keepends=True)
    steps.write_bytes(b"".join([*lines[:3], b"{\x00\xff\n", *lines[4:]]))
    ran = vitscale("report", simulated)
    assert ran.code == 10
    assert f"{steps.relative_to(simulated)}:4" in ran.error


def test_a_damaged_line_is_named_before_anything_more_is_done(vitscale, simulated):
    steps = next(simulated.glob("runs/*/launch0/steps.*.jsonl"))
    lines = steps.read_bytes().splitlines(keepends=True)
    steps.write_bytes(b"".join([*lines[:3], b"{\n", *lines[4:]]))
    before = sorted(simulated.glob("runs/*/*"))
    words = ("run", "quick", "--launcher", "simulate", "hardware.name=h100", "world_size=1,8,16", "--out", simulated)
    ran = vitscale(*words)
    assert ran.code == 10
    assert f"{steps.relative_to(simulated)}:4" in ran.error
    assert sorted(simulated.glob("runs/*/*")) == before


def test_a_damaged_top_document_says_which_file_to_remove(vitscale, simulated):
    (simulated / "resolved.json").write_text("[]")
    ran = vitscale("run", "quick", "--launcher", "simulate", "hardware.name=h100", "world_size=1,8", "--out", simulated)
    assert ran.code == 10
    assert "remove `resolved.json`" in ran.hint


def test_every_usage_error_has_a_hint(vitscale):
    for word in ("world_size=0", "zero_stage=7", "optimizer.lr=nan", "protocol=foo", "engine=horovod"):
        assert vitscale("plan", "quick", word).err.count("hint: ") == 1


def test_a_damaged_plan_or_manifest_is_named(vitscale, simulated):
    manifest = next(simulated.glob("runs/*/launch0/manifest.json"))
    manifest.write_text('{"schema_version": 1')
    ran = vitscale("run", "quick", "--launcher", "simulate", "hardware.name=h100", "world_size=1,8", "--out", simulated)
    assert ran.code == 10
    assert "manifest.json" in ran.error


def test_a_full_disk_loses_nothing(vitscale, tmp_path):
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip(reason="needs root to mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(reason="mounting is not allowed here")
    try:
        command = ("run", "quick", "--launcher", "simulate", "hardware.name=h100", "--out", disk / "r")
        ran = vitscale(*command, "world_size=1,8,64")
        assert ran.code == 10
        assert "No space left" in ran.error
        assert "free some disk space" in ran.hint
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert vitscale(*command, "world_size=1,8,64").code == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_read_only_folder(vitscale, tmp_path):
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip(reason="needs root to mount a read-only file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(reason="mounting is not allowed here")
    try:
        ran = vitscale("run", "quick", "--launcher", "simulate", "hardware.name=h100", "--out", disk / "r")
        assert ran.code == 10
        assert "Read-only" in ran.error
        assert "--out" in ran.hint
    finally:
        subprocess.run(["umount", disk], check=True)

"""Epoch files, timm's and torchtitan's logs: what they tell becomes figures, what they do not stays null."""

import json

import pytest

from vitscale.errors import UsageError
from vitscale.importers.write import import_files, read_files

CSV_HEAD = (
    "Timestamp,Rank,Epoch,Computation_Time,GPU_ID,GPU_Name,GPU_Load,GPU_Free_Mem_MB,GPU_Used_Mem_MB,GPU_Total_Mem_MB,"
    "GPU_Temp_C"
)


def epoch_line(rank, epoch, seconds, device="Example GPU"):
    return f"2024-11-18 12:13:12,{rank},{epoch},{seconds},0,{device},71.0%,4174.0,{3800 + rank},8192.0,49.0"


@pytest.fixture
def read(tmp_path):
    def run(form, text, name="t.log"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        reading = read_files(form, [path])
        return reading.runs, reading.tallies[0]

    return run


def test_an_epoch_takes_as_long_as_its_slowest_rank_and_the_first_is_warm_up(read):
    lines = [CSV_HEAD]
    for epoch, seconds in enumerate((99.0, 10.0, 12.0, 11.0), start=1):
        lines += [epoch_line(1, epoch, seconds), epoch_line(0, epoch, seconds - 1)]
    (run,), tally = read("epoch-csv", "\n".join(lines))
    assert run.spec.world_size == 2
    assert run.spec.device == "Example GPU"
    assert run.aggregate.epoch_s == 11.0
    assert run.aggregate.device_memory_used_bytes == 3801 * 2**20
    assert (run.aggregate.images_per_epoch, run.aggregate.step_s, run.spec.micro_batch) == (None,) * 3
    assert (tally.read, tally.damaged) == (9, 0)


def test_damaged_and_blank_lines_of_an_epoch_file_are_counted(read):
    text = "\n".join([CSV_HEAD, epoch_line(0, 1, 9.0), "", epoch_line(0, 2, "nan"), epoch_line(0, 3, 5.0)[:30], "Ends"])
    (run,), tally = read("epoch-csv", text)
    assert run.aggregate.epoch_s == 9.0
    assert (tally.lines, tally.read, tally.damaged, tally.other) == (6, 2, 3, 1)


def test_a_second_run_appended_to_an_epoch_file_is_a_run_of_its_own(read):
    runs, _ = read("epoch-csv", "\n".join([CSV_HEAD, epoch_line(0, 1, 9.0), epoch_line(0, 1, 7.0)]))
    assert [run.aggregate.epoch_s for run in runs] == [9.0, 7.0]
    assert [run.spec.line for run in runs] == [2, 3]


def test_a_file_without_that_header_is_refused(read):
    with pytest.raises(UsageError, match="no header with Rank, Epoch, Computation_Time"):
        read("epoch-csv", "a,b\n1,2\n")


def test_the_rest_of_an_epoch_file_can_be_filled_in_and_imported_as_a_table(tmp_path, imported):
    for size in (1, 2):
        lines = [CSV_HEAD, *(epoch_line(rank, epoch, 10.0 / size) for epoch in (1, 2) for rank in range(size))]
        (tmp_path / f"{size}").mkdir()
        (tmp_path / f"{size}" / "metrics.csv").write_text("\n".join(lines))
    result, _ = imported("epoch-csv", tmp_path / "1" / "metrics.csv", tmp_path / "2" / "metrics.csv")
    assert [run.images_per_s for run in result.analysis.runs] == [None, None]
    table = (tmp_path / "out" / "imported.csv").read_text().splitlines()
    column = table[0].split(",").index("images_per_epoch")
    filled = [line.split(",") for line in table[1:]]
    for cells in filled:
        cells[column] = "1000"
    (tmp_path / "filled.csv").write_text("\n".join([table[0], *(",".join(cells) for cells in filled)]))
    result, _ = imported("table", tmp_path / "filled.csv", out="filled")
    assert [run.speedup.median for run in result.analysis.runs] == [1.0, 2.0]


def timm_train(epoch, step, seconds=0.402, mean=0.455, rate=2250.55):
    return (
        f"Train: {epoch} [{step:>4d}/100 ({100 * step // 100:>3d}%)]  Loss: 6.94 (6.95)  Time: {seconds}s, 2547.26/s  "
        f"({mean}s, {rate:>7.2f}/s)  LR: 5.000e-01  Data: 0.011 (0.051)"
    )


TIMM_HEAD = [
    "Training in distributed mode with multiple processes, 1 device per process.Process 0, total 4, device cuda:0.",
    "Model vit_small_patch16_224 created, param count:22050664",
    "Using native Torch AMP. Training in mixed precision.",
    "Using native Torch DistributedDataParallel.",
]


def timm_log(head=TIMM_HEAD):
    lines = [*head]
    for epoch, mean in enumerate((0.9, 0.5, 0.4, 0.45)):
        lines += [timm_train(epoch, step, mean=mean, rate=1000 / mean) for step in (0, 50, 99)]
        lines += ["Test: [   0/48]  Time: 0.9 (0.9)  Loss: 1.1 (1.1)  Acc@1: 99.0000 (99.0000)  Acc@5: 90.0 (90.0)"]
        lines += [
            f"Test: [  48/48]  Time: 0.09 (0.2)  Loss: 1.1 (1.2)  Acc@1: 75.0 ({50 + epoch}.0000)  Acc@5: 9.0 (8.0)"
        ]
    return "\n".join(lines) + "\n"


def test_timm_tells_throughput_by_its_means_over_epochs(read):
    (run,), tally = read("timm-log", timm_log())
    assert (run.spec.world_size, run.spec.model, run.parameters) == (4, "vit_small_patch16_224", 22050664)
    assert (run.spec.precision, run.spec.engine) == ("amp", "ddp")
    assert (run.aggregate.step_s, run.aggregate.data_s) == (0.45, 0.051)
    assert run.aggregate.images_per_s == pytest.approx(1000 / 0.45, abs=0.01)
    assert (run.spec.global_batch, run.spec.micro_batch, run.spec.images_per_epoch) == (None,) * 3
    assert [line["test_accuracy"] for line in run.evaluations] == [0.50, 0.51, 0.52, 0.53]
    assert (tally.damaged, tally.other) == (0, 0)


def test_timm_of_one_device_and_older_lines(read):
    text = timm_log(["Training with a single process on 1 GPUs."]).replace("Loss: 6.94", "Loss:  6.94")
    (run,), _ = read("timm-log", text)
    assert run.spec.world_size == 1


def test_timm_summary_gives_the_accuracy_of_the_log_beside_it(tmp_path):
    (tmp_path / "log.txt").write_text(timm_log())
    (tmp_path / "summary.csv").write_text(
        "epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n0,1,1,60.5,90,1\n3,1,1,71.25,9,1\n"
    )
    import_files("timm-log", [tmp_path / "log.txt", tmp_path / "summary.csv"], tmp_path / "out")
    (path,) = (tmp_path / "out" / "runs").glob("*/launch0/eval.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["test_accuracy"] for line in lines] == [0.605, 0.51, 0.52, 0.7125]


def test_a_torn_timm_line_is_counted_and_gives_no_figure(read):
    torn = timm_train(4, 99)[:70]
    (run,), tally = read("timm-log", timm_log() + torn + "\n")
    assert tally.damaged == 1
    assert run.spec.row["epochs"] == "4"


def titan(step, seconds, rank=0, tps="7,026"):
    return (
        f"\x1b[31m[rank{rank}]:[titan] 2025-10-30 14:{seconds // 60:02.0f}:{seconds % 60:06.3f} - root - INFO - "
        f"step: {step:2d}  loss:  8.1661  grad_norm:  3.6855  memory: 42.08GiB(30.10%)  tps: {tps}  mfu: 8.65%\x1b[39m"
    ).replace(".", ",", 1)


TITAN_HEAD = [
    "[rank0]:2025-02-13 11:33:28,973 - root - INFO - Building device mesh with parallelism: pp=1, dp_replicate=1, "
    "dp_shard=8, cp=1, tp=2, ep=1, etp=1",
    "[rank0]:2025-02-13 11:33:28,973 - root - INFO - CUDA capacity: NVIDIA H100 with 94.99GiB memory",
    "[rank0]:2025-02-13 11:33:29,156 - root - INFO - Model llama3 8B \x1b[31msize: 8,030,261,248 total parameters",
    "[rank0]:2025-02-13 11:33:29,239 - root - INFO - Applied FSDP to the model",
    "[rank0]:2025-02-13 11:33:29,482 - root - INFO - Training starts at step 1, with local batch size 1, global batch "
    "size 8, sequence length 8192, total steps 100 (warmup 200)",
]


def test_torchtitan_steps_are_timed_by_the_clock_between_lines(read):
    lines = [titan(1, 5.0), titan(10, 30.0), titan(20, 50.0), titan(30, 71.0), titan(40, 91.0)]
    (run,), tally = read("torchtitan-log", "\n".join([*TITAN_HEAD, *lines]))
    spec = run.spec
    assert (spec.world_size, spec.device, spec.model, spec.engine) == (16, "NVIDIA H100", "llama3 8B", "fsdp")
    assert (spec.micro_batch, spec.global_batch, run.parameters) == (1, 8, 8030261248)
    assert run.aggregate.step_s == pytest.approx(2.0)
    assert run.aggregate.device_memory_used_bytes == 42.08 * 2**30
    assert run.aggregate.images_per_s is None
    assert (tally.read, tally.damaged) == (10, 0)


def test_torchtitan_older_mesh_and_rate(read):
    mesh = "2024-10-01 10:00:00,000 - root - INFO - Building 1-D device mesh with ['dp'], [4]"
    lines = [titan(step, 2.0 * step).replace("tps", "wps") for step in (10, 20, 30)]
    (run,), _ = read("torchtitan-log", "\n".join([mesh, *lines, titan(40, 80.0)[:100]]))
    assert run.spec.world_size == 4
    assert run.aggregate.step_s == pytest.approx(2.0)

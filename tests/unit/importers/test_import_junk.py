"""Whatever is in a file, an import ends with counts or one error line, in memory that does not grow with it."""

import os
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitscale.analysis.analyse import analyse
from vitscale.errors import VitscaleError
from vitscale.importers.source import LONGEST_LINE, lines, sources
from vitscale.importers.write import FORMATS, import_files, read_files

WORDS = [
    "time (ms) | fwd: 1.00 | bwd: 2.00 | step: 3.00", "[Rank -1]", "[Rank 0]", "rank=7", "[2024-13-99 99:99:99,999]",
    "DeepSpeed info: version=", "world_size = 0", "world_size .... 99999999999999999999", "train_batch_size ... 0",
    "zero_config ... stage=9", "Train: 0 [ 1/0 (0%)]  Loss: x Time: 0.0s, 0.0/s (0.0s, 0.0/s) LR:", "Test: [ 1/1]",
    "Process 0, total 0", "single process on 0 GPUs", "Model \u202e created, param count: 0", "step: 1  loss: nan",
    "parallelism: dp_shard=-1, tp=0", "device mesh with ['dp'], [, 0]", "Rank,Epoch,Computation_Time", "0,1,nan",
    "0,1,5", "series,world_size,step_s", "a,1,1", '"', ",", "\x00", "\r", "\u2028", "tps: ,", "2024-99-99 00:00:00,000",
    "local batch size 0, global batch size 0", "epoch,eval_top1", "0,1e999", "memory: 9GiB", "MaxMemAllocated=1GB",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.lists(
        st.one_of(st.sampled_from(WORDS).map(str.encode), st.binary(max_size=30), st.just(b"\n")), max_size=30
    )
)
def test_any_bytes_end_in_counts_or_an_error(form, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("junk")
    (folder / "a.log").write_bytes(b" ".join(data))
    try:
        done = import_files(form, [folder / "a.log"], folder / "out")
    except VitscaleError:
        return
    analyse(folder / "out")
    for tally in done.tallies:
        assert min(tally.lines, tally.read, tally.damaged, tally.other) >= 0, tally


@pytest.mark.parametrize("form", ["deepspeed-log", "timm-log", "torchtitan-log"])
def test_another_language_and_another_programs_log_are_counted_and_refused(form, tmp_path):
    path = tmp_path / "other.log"
    path.write_text("Обучение началось\n训练开始 1 損失 0.5\nبدأ التدريب step time loss epoch\n" * 50)
    with pytest.raises(VitscaleError) as raised:
        import_files(form, [path], tmp_path / "out")
    assert "150 lines: 0 read, 0 damaged, 150 of something else" in raised.value.message
    assert "is it of another format?" in raised.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_a_log_in_any_of_the_usual_encodings_is_read(encoding, tmp_path):
    path = tmp_path / "t.log"
    text = "Größe\nworld_size ................... 2\n" + "time (ms) | fwd: 1.00 | bwd: 2.00 | step: 3.00\n" * 5
    path.write_bytes(text.encode(encoding))
    (run,) = read_files("deepspeed-log", [path]).runs
    assert len(run.steps) == 5


def test_windows_line_ends_are_no_damage(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"series,world_size,step_s,global_batch\r\na,1,2.0,8\r\n")
    assert read_files("table", [path]).runs[0].aggregate.step_s == 2.0


def test_a_line_without_an_end_is_read_in_pieces(tmp_path):
    path = tmp_path / "t.log"
    path.write_bytes(b"x" * (3 * LONGEST_LINE) + b"\nlast")
    pieces = list(lines(sources([path])[0]))
    assert [number for number, _ in pieces] == [1, 1, 1, 1, 2]
    assert max(len(text) for _, text in pieces) == LONGEST_LINE


@pytest.mark.parametrize("form", ["deepspeed-log", "timm-log", "torchtitan-log"])
def test_memory_does_not_grow_with_unrelated_lines(form, tmp_path):
    path = tmp_path / "t.log"
    with path.open("wb") as file:
        for _ in range(20):
            file.write(os.urandom(1 << 20))
            file.write(b"an unrelated line of another program\n" * 2000)
    tracemalloc.start()
    read_files(form, [path])
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4 << 20


UNRELATED = [
    "[训练] 第 3 轮 损失 0.512 时间 12.5 毫秒",
    "بدأ التدريب: الخسارة ٠٫٥١٢ والزمن ١٢ ثانية",
    "epoch 3 loss 0.512 time 12.5 ms step 4 rank 1",
    "Downloading: 37%|███▋      | 37/100 [00:12<00:21, 2.95it/s]",
]
STEP = "[2024-12-01 21:23:{:02d},000] [INFO] [Rank 0] time (ms) | fwd: 1.00 | bwd: 2.00 | step: 3.00"
SETTINGS = "[INFO] [config.py:1003:print]   world_size ................... 1\n"


def test_whole_torn_and_unrelated_lines_are_counted_each(tmp_path):
    path = tmp_path / "t.log"
    binary = bytes(range(256)).replace(b"\n", b"").replace(b"\r", b"") * 4
    unrelated = 0
    with path.open("wb") as file:
        file.write(SETTINGS.encode())
        for step in range(40):
            line = STEP.format(step).encode()
            # Every tenth line is cut off: the next one begins in the middle of its number.
            file.write((line[:-3] if step % 10 == 9 else line) + b"\n")
            for _ in range(300):
                file.write("\n".join(UNRELATED).encode() + b"\n" + binary[:100] + b"\n")
                unrelated += len(UNRELATED) + 1
    tracemalloc.start()
    reading = read_files("deepspeed-log", [path])
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    (tally,), (run,) = reading.tallies, reading.runs
    assert path.stat().st_size > 4e6
    assert (tally.read, tally.damaged, tally.other) == (1 + 36, 4, unrelated)
    assert len(run.steps) == 36
    assert peak_bytes < 2 << 20


@pytest.mark.parametrize("name", ["absent.log", "folder"])
def test_what_is_no_file_is_named(name, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(VitscaleError, match=name):
        import_files("table", [tmp_path / name], tmp_path / "out")


def test_an_unknown_format_names_the_known_ones(tmp_path):
    with pytest.raises(VitscaleError) as raised:
        import_files("tabel", [tmp_path], tmp_path / "out")
    assert raised.value.hint == "one of table, deepspeed-log, epoch-csv, timm-log, torchtitan-log"

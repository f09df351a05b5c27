import json
import struct
import time

import pytest

from vitscale.trackers import Follower, open_trackers

pytest.importorskip("wandb", reason="pip install 'vitscale[wandb]'")

from wandb.proto import wandb_internal_pb2

_BLOCK_BYTES, _START_BYTES, _HEADER_BYTES = 32768, 7, 7
_WHOLE, _LAST = 1, 4


def records(path):
    """A `.wandb` file: a start, then the blocks of LevelDB's log, whose fragments are protobuf records. The library
    reads it in its Go program only."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = _START_BYTES, b""
    while position + _HEADER_BYTES <= len(data):
        left = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left < _HEADER_BYTES:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _HEADER_BYTES])
        position += _HEADER_BYTES
        if position + length > len(data):
            return
        parts += data[position : position + length]
        position += length
        if kind in (_WHOLE, _LAST):
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def track(root, folder):
    with Follower(root, folder, open_trackers(["wandb"], root), pytest.fail):
        pass
    return [ended(path) for path in sorted((root / "trackers" / "wandb").rglob("*.wandb"))]


def ended(path):
    """All records: on a busy machine the library's Go program is still writing when `finish` returns."""
    deadline = time.monotonic() + 20
    while True:
        found = list(records(path))
        if any(record.HasField("exit") for record in found):
            return found
        assert time.monotonic() < deadline, "it never ended"
        time.sleep(0.05)


def rows(found):
    kept = [record.history for record in found if record.HasField("history")]
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in history.item}
        for history in kept
    ]


def test_the_offline_file_holds_every_step_and_the_settings(make, root):
    spec = make.make_spec(2)
    folder = make.write_launch(root, spec, accuracy=0.9)
    (found,) = track(root, folder)
    lines = [json.loads(line) for line in (folder / "steps.rank000.jsonl").read_text().splitlines()]
    logged = rows(found)
    assert [(row["_step"], row["train/loss"]) for row in logged] == [(line["step"], line["loss"]) for line in lines]
    assert [(row["_step"], row["eval/accuracy"]) for row in logged if "eval/accuracy" in row] == [(5, 0.45), (10, 0.9)]
    began_s = (folder / "run.json").stat().st_mtime
    assert logged[-1]["_timestamp"] == pytest.approx(began_s + sum(line["step_s"] for line in lines))
    run = next(record.run for record in found if record.HasField("run"))
    assert (run.project, run.display_name, run.run_group) == ("golden", f"{spec.run_id}/launch0", spec.run_id)
    config = {item.key: json.loads(item.value_json) for item in run.config.update if item.key}
    assert config["optimizer.lr"] == spec.optimizer.lr


def test_a_failed_launch_is_a_failed_run(make, root):
    (found,) = track(root, make.write_launch(root, make.make_spec(2), status="oom"))
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [1]


def test_what_the_library_finds_out_by_itself_is_off(make, root):
    (found,) = track(root, make.write_launch(root, make.make_spec(2)))
    run = next(record.run for record in found if record.HasField("run"))
    assert (run.host, run.notes, list(run.tags)) == ("", "", [])
    assert not run.HasField("git")
    kinds = {record.WhichOneof("record_type") for record in found}
    assert not kinds & {"stats", "output", "output_raw", "files", "environment", "artifact", "preempting"}
    (folder,) = (root / "trackers" / "wandb" / "wandb").iterdir()
    left = [path for path in folder.rglob("*") if path.is_file()]
    assert [path.suffix for path in left] == [".wandb"], "no log, no code, no list of packages"


def test_a_restart_adds_to_the_same_run_what_is_new(make, root):
    folder = make.write_launch(root, make.make_spec(2), status=None)
    track(root, folder)
    with (folder / "steps.rank000.jsonl").open("a") as file:
        file.write('{"step": 12, "rank": 0, "loss": 1.0, "images": 32, "step_s": 0.1}\n')
    first, second = track(root, folder)
    assert [row["_step"] for row in rows(first)] == list(range(12))
    assert [row["_step"] for row in rows(second)] == [12]
    ids = {record.run.run_id for found in (first, second) for record in found if record.HasField("run")}
    assert len(ids) == 1


def test_no_file_holds_a_secret(leaks):
    leaking, written = leaks("wandb")
    assert leaking == []
    assert [path.suffix for path in written] == [".wandb"]

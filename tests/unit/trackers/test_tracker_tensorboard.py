import json

import pytest

from vitscale.trackers import Follower, open_trackers

pytest.importorskip("tensorboard", reason="pip install 'vitscale[tensorboard]'")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import plugin_data_pb2

pytestmark = pytest.mark.filterwarnings("ignore:.*pkg_resources:DeprecationWarning")


def track(root, folder):
    with Follower(root, folder, open_trackers(["tensorboard"], root), pytest.fail):
        pass
    return read(root, folder)


def read(root, folder):
    found = EventAccumulator(str(root / "trackers" / "tensorboard" / folder.relative_to(root / "runs")))
    found.Reload()
    return found


def steps(folder):
    return [json.loads(line) for line in (folder / "steps.rank000.jsonl").read_text().splitlines()]


def hparams(found, tag):
    content = found.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)


def test_the_event_reader_finds_every_step_with_its_time(make, root):
    folder = make.write_launch(root, make.make_spec(2), accuracy=0.9)
    found = track(root, folder)
    losses = found.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(12))
    assert [event.value for event in losses] == pytest.approx([one["loss"] for one in steps(folder)])
    began_s = (folder / "run.json").stat().st_mtime
    assert losses[-1].wall_time == pytest.approx(began_s + sum(one["step_s"] for one in steps(folder)))
    assert [event.value for event in found.Scalars("eval/accuracy")] == pytest.approx([0.45, 0.9])


def test_settings_and_end_are_on_the_page_of_hyper_parameters(make, root):
    spec = make.make_spec(2)
    found = track(root, make.write_launch(root, spec, status="oom"))
    start = hparams(found, "session_start_info").session_start_info
    assert start.hparams["optimizer.lr"].number_value == spec.optimizer.lr
    assert start.hparams["engine"].string_value == "deepspeed"
    assert start.hparams["oversubscribed"].WhichOneof("kind") == "bool_value"
    end = hparams(found, "session_end_info").session_end_info
    assert end.status == 2, "STATUS_FAILURE"


def test_what_the_files_hold_is_not_written_again(make, root):
    """As after a crash between writing events and remembering it, in the middle of an event."""
    folder = make.write_launch(root, make.make_spec(2), accuracy=0.9, status=None)
    track(root, folder)
    (file,) = (root / "trackers" / "tensorboard").rglob("events.*")
    file.write_bytes(file.read_bytes()[:-10])
    (root / "trackers" / "tensorboard.json").unlink()
    found = track(root, folder)
    for tag, wanted in {
        "train/loss": list(range(12)),
        "train/epoch": list(range(12)),
        "eval/accuracy": [5, 10],
    }.items():
        assert [event.step for event in found.Scalars(tag)] == wanted


def test_points_are_on_disk_before_they_are_remembered(make, root):
    folder = make.write_launch(root, make.make_spec(2), status=None)
    (tracker,) = open_trackers(["tensorboard"], root)
    follower = Follower(root, folder, [tracker], pytest.fail)
    follower._look()
    assert len(read(root, folder).Scalars("train/loss")) == 12
    tracker.close(None)


def test_no_file_holds_a_secret(leaks):
    leaking, written = leaks("tensorboard")
    assert leaking == []
    assert len(written) == 1


def test_an_event_takes_the_fields_we_give_it():
    """`Event` is built from keyword arguments; a renamed field would be an error in the thread."""
    assert {"wall_time", "step", "summary", "file_version"} <= {field.name for field in Event.DESCRIPTOR.fields}

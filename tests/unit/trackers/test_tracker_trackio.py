import json

import pytest

from vitscale.trackers import Follower, open_trackers

pytest.importorskip("trackio", reason="pip install 'vitscale[trackio]'")


def track(root, folder):
    with Follower(root, folder, open_trackers(["trackio"], root), pytest.fail):
        pass
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = Api().runs("golden")
    return run, SQLiteStorage.get_logs("golden", run.name, run_id=run.id)


def test_its_own_reader_finds_every_step_and_the_settings(make, root):
    spec = make.make_spec(2)
    folder = make.write_launch(root, spec, accuracy=0.9)
    run, rows = track(root, folder)
    lines = [json.loads(line) for line in (folder / "steps.rank000.jsonl").read_text().splitlines()]
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(line["step"], line["loss"]) for line in lines]
    assert [(row["step"], row["eval/accuracy"]) for row in rows if "eval/accuracy" in row] == [(5, 0.45), (10, 0.9)]
    assert run.name == f"{spec.run_id}/launch0"
    assert run.config["optimizer.lr"] == spec.optimizer.lr


def test_nothing_is_found_out_about_the_user(make, root):
    run, _ = track(root, make.write_launch(root, make.make_spec(2)))
    assert not [key for key in run.config if key.startswith("_")], "trackio.init would add _Username"


def test_it_lies_in_the_results_folder(make, root):
    track(root, make.write_launch(root, make.make_spec(2)))
    assert (root / "trackers" / "trackio" / "golden.db").is_file()


def test_what_the_database_holds_is_not_written_again(make, root):
    """As after a crash between writing rows and remembering it."""
    folder = make.write_launch(root, make.make_spec(2), accuracy=0.9, status=None)
    track(root, folder)
    position = root / "trackers" / "trackio.json"
    forgotten = json.loads(position.read_text())
    for one in forgotten["launches"].values():
        del one["steps"], one["evaluations"]
    position.write_text(json.dumps(forgotten))
    _, rows = track(root, folder)
    assert len(rows) == 14


def test_no_file_holds_a_secret(leaks):
    leaking, written = leaks("trackio")
    assert leaking == []
    assert "golden.db" in [path.name for path in written]

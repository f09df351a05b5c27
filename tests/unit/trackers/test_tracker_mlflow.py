import json
import shutil

import pytest

from vitscale.trackers import Described, Follower, open_trackers

for module in ("mlflow", "sqlalchemy", "alembic"):
    pytest.importorskip(module, reason="pip install 'vitscale[mlflow]'")

# MLflow's own mapping of its tables uses what SQLAlchemy is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture(scope="module")
def tables(make, tmp_path_factory):
    """An empty database: MLflow takes seconds to make its tables."""
    root = make.write_study(tmp_path_factory.mktemp("tables"))
    (tracker,) = open_trackers(["mlflow"], root)
    tracker.open(Described("another study", "run", 0, "0" * 16, {}))
    return root / "trackers" / "mlflow" / "mlflow.db"


@pytest.fixture(autouse=True)
def _copied(root, tables):
    (root / "trackers" / "mlflow").mkdir(parents=True)
    shutil.copy(tables, root / "trackers" / "mlflow")


def track(root, folder):
    with Follower(root, folder, open_trackers(["mlflow"], root), pytest.fail):
        pass
    return client(root)


def client(root):
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{root / 'trackers' / 'mlflow' / 'mlflow.db'}")


def only_run(found):
    (run,) = found.search_runs([found.get_experiment_by_name("golden").experiment_id])
    return run


def test_the_client_finds_every_step_and_the_settings(make, root):
    spec = make.make_spec(2)
    folder = make.write_launch(root, spec, accuracy=0.9)
    found = track(root, folder)
    run = only_run(found)
    losses = found.get_metric_history(run.info.run_id, "train/loss")
    lines = [json.loads(line) for line in (folder / "steps.rank000.jsonl").read_text().splitlines()]
    assert [(one.step, one.value) for one in losses] == [(line["step"], line["loss"]) for line in lines]
    began_s = (folder / "run.json").stat().st_mtime
    assert losses[-1].timestamp / 1000 == pytest.approx(began_s + sum(line["step_s"] for line in lines), abs=0.001)
    assert run.data.metrics["eval/accuracy"] == 0.9
    assert run.data.params["optimizer.lr"] == str(spec.optimizer.lr)
    assert run.info.run_name == f"{spec.run_id}/launch0"


@pytest.mark.parametrize(("status", "theirs"), [("ok", "FINISHED"), ("killed", "KILLED"), ("oom", "FAILED")])
def test_the_run_ends_as_the_launch_did(make, root, status, theirs):
    run = only_run(track(root, make.write_launch(root, make.make_spec(2), status=status)))
    assert run.info.status == theirs
    assert run.data.tags["vitscale.status"] == status


def test_nothing_is_found_out_about_user_code_and_machine(make, root):
    folder = make.write_launch(root, make.make_spec(2))
    found = track(root, folder)
    run = only_run(found)
    assert run.data.tags.keys() == {"mlflow.runName", "vitscale.key", "vitscale.status"}
    assert run.info.user_id in ("", "unknown")
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")


def test_what_the_database_holds_is_not_written_again(make, root):
    """As after a crash between writing rows and remembering it."""
    folder = make.write_launch(root, make.make_spec(2), accuracy=0.9, status=None)
    track(root, folder)
    position = root / "trackers" / "mlflow.json"
    forgotten = json.loads(position.read_text())
    for one in forgotten["launches"].values():
        del one["steps"], one["evaluations"]
        one["elapsed_s"] = 7.0
    position.write_text(json.dumps(forgotten))
    found = track(root, folder)
    run = only_run(found)
    for name, steps in {
        "train/loss": list(range(12)),
        "train/epoch": list(range(12)),
        "eval/accuracy": [5, 10],
    }.items():
        assert [one.step for one in found.get_metric_history(run.info.run_id, name)] == steps
    assert run.info.status == "RUNNING"


def test_more_rows_than_one_call_takes(make, root):
    folder = make.write_launch(root, make.make_spec(1), steps=200)
    found = track(root, folder)
    assert len(found.get_metric_history(only_run(found).info.run_id, "train/epoch")) == 202


def test_no_file_holds_a_secret(leaks):
    leaking, written = leaks("mlflow")
    assert leaking == []
    assert [path.name for path in written] == ["mlflow.db"]

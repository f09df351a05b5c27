import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from vitscale.errors import SetupError, UsageError
from vitscale.trackers import choose, open_trackers

NAMES = ["mlflow", "tensorboard", "trackio", "wandb"]


def test_the_four_trackers_are_entry_points_named_as_they_name_themselves():
    found = {point.name: point.load() for point in entry_points(group="vitscale.trackers")}
    assert {name: kind.name for name, kind in found.items()} == {name: name for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_library_is_refused_with_the_command_that_installs_it(tmp_path, monkeypatch, name):
    monkeypatch.setattr(choose, "find_spec", lambda module: None)
    with pytest.raises(SetupError) as caught:
        open_trackers([name], tmp_path)
    assert caught.value.hint == f"pip install 'vitscale[{name}]'"
    assert f"the tracker `{name}` needs" in caught.value.message
    assert not list(tmp_path.iterdir())


def test_only_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(choose, "find_spec", lambda module: None if module == "sqlalchemy" else object())
    with pytest.raises(SetupError, match="needs `sqlalchemy`, not installed here"):
        open_trackers(["mlflow"], tmp_path)


def test_an_unknown_tracker_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(UsageError, match="there is no tracker `mlfow`") as caught:
        open_trackers(["mlfow"], tmp_path)
    assert caught.value.hint == "did you mean `mlflow`?"


def test_an_unknown_tracker_unlike_any_is_told_what_there_is(tmp_path):
    with pytest.raises(UsageError) as caught:
        open_trackers(["xyz"], tmp_path)
    assert caught.value.hint == "one of mlflow, tensorboard, trackio, wandb"


def test_a_name_given_twice_is_one_tracker(tmp_path, monkeypatch):
    monkeypatch.setattr(choose, "find_spec", lambda module: object())
    assert [tracker.name for tracker in open_trackers(["wandb", "mlflow", "wandb"], tmp_path)] == ["wandb", "mlflow"]


def test_choosing_trackers_imports_none_of_their_libraries(tmp_path):
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from vitscale.trackers import choose\n"
        "choose.find_spec = lambda module: object()\n"
        f"choose.open_trackers({NAMES!r}, Path(sys.argv[1]))\n"
        "heavy = {'mlflow', 'sqlalchemy', 'tensorboard', 'trackio', 'wandb'} & sys.modules.keys()\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True)
    assert not list(tmp_path.iterdir())

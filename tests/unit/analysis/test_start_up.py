"""What launches cost before their first step, from the times in their manifests."""

from vitscale.analysis.analyse import analyse
from vitscale.analysis.start_up import StartUp, start_ups
from vitscale.records.schema import Layout, Manifest, Times

FIRST = Times(process_start_s=9.0, import_s=6.0, timing_s=2.0, setup_s=1.5, data_s=0.5)
LATER = Times(setup_s=1.0, data_s=0.25)


def launch(run_id, round_, times, status="ok"):
    layout = Layout(world_size=2, nodes=1, ranks_per_node=2, backend="gloo")
    return Manifest(
        run_id=run_id, launch=0, round=round_, status=status, reason=None, source="measured", started=None,
        layout=layout, times=times,
    )  # fmt: skip


def test_what_a_round_does_once_is_every_runs_and_the_rest_its_own():
    found = start_ups([launch("b", "0000-w2", LATER), launch("a", "0000-w2", FIRST)])
    once = {"import_s": 6.0, "group_s": 3.0, "timing_s": 2.0}
    assert found["a"] == StartUp(total_s=13.0, **once, setup_s=1.5, data_s=0.5)
    assert found["b"] == StartUp(total_s=12.25, **once, setup_s=1.0, data_s=0.25)


def test_of_several_launches_it_is_the_median_and_the_total_is_a_launchs():
    slow = FIRST.model_copy(update={"import_s": 1.0, "timing_s": 12.0})
    middle = FIRST.model_copy(update={"process_start_s": 10.0})
    found = start_ups([launch("a", str(number), times) for number, times in enumerate((FIRST, slow, middle))])["a"]
    assert (found.total_s, found.import_s, found.group_s, found.timing_s) == (14.0, 6.0, 4.0, 2.0)


def test_a_launch_that_does_not_tell_all_of_it_is_left_out():
    without = FIRST.model_copy(update={"import_s": None})  # records of an earlier version
    told = [
        launch("a", "0", without), launch("b", "1", LATER), launch("c", "2", FIRST, "failed"),
        launch("d", "3", FIRST.model_copy(update={"data_s": None})), launch("e", None, Times()),
    ]  # fmt: skip
    assert start_ups(told) == {}


def test_it_stands_in_the_analysis(make, tmp_path):
    root = make.write_study(tmp_path)
    spec = make.make_spec(1)
    path = make.write_launch(root, spec, 0) / "manifest.json"
    manifest = Manifest.model_validate_json(path.read_bytes())
    path.write_text(manifest.model_copy(update={"times": FIRST}).model_dump_json())
    (run,) = [one for one in analyse(root).analysis.runs if one.run_id == spec.run_id]
    assert run.start_up == StartUp(total_s=13.0, import_s=6.0, group_s=3.0, timing_s=2.0, setup_s=1.5, data_s=0.5)

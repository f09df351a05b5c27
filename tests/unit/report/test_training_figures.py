"""Figures of what was learnt, and against batch and accumulation: what is drawn, joined, and left out."""

import json

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.config.training import Recipe
from vitscale.records.schema import Memory
from vitscale.report.document import document
from vitscale.report.figures import draw
from vitscale.report.rows.curves import test_data as score_data
from vitscale.report.rows.sweeps import ACCUMULATION, ACCURACY, BATCH, RESOLUTION, efficiency_data, sweep_data
from vitscale.report.seed_table import seed_table
from vitscale.report.tables import accuracy_table, efficiency_table, sweep_table


@pytest.fixture(scope="module")
def trained(make, tmp_path_factory):
    """Micro-batch 16 and 32 at 1 and 2 ranks, trained; the larger the batch, the slower it learns."""
    root = make.write_study(tmp_path_factory.mktemp("trained"))
    resolved = json.loads((root / "resolved.json").read_text())
    (root / "resolved.json").write_text(json.dumps({**resolved, "train": {"target_accuracy": 0.5}}))
    for micro in (16, 32):
        for size in (1, 2):
            batch = micro * size
            spec = make.make_spec(
                size, "strong_fixed_micro", micro_batch=micro, global_batch=batch, solved="global_batch",
                train=Recipe(max_steps=40), data=make.make_spec().data,
            )  # fmt: skip
            step_s = 0.002 * micro + 0.01 * (size - 1)
            told = [
                {"step": n, "epoch": n / 4, "images": n * batch, "seconds": n * step_s, "test_loss": 1 / n,
                 "test_accuracy": min(1.0, n * 8 / batch)}
                for n in range(1, 9)
            ]  # fmt: skip
            make.write_launch(root, spec, 0, step_s, evaluations=told)
    return analyse(root)


@pytest.fixture(scope="module")
def accumulated(make, tmp_path_factory):
    """Global batch 64 in 1, 2 and 4 micro-steps, two launches, with the plan's bytes."""
    root = tmp_path_factory.mktemp("accumulated")
    planned = []
    for accum in (1, 2, 4):
        spec = make.make_spec(2, grad_accum=accum, micro_batch=32 // accum)
        sent = ({"operation": "all_reduce", "bytes": 2**20 * accum}, {"operation": "all_gather", "bytes": 2**20})
        estimate = {"collectives": list(sent)}
        planned.append({"run_id": spec.run_id, "series": spec.series, "spec": spec.model_dump(mode="json"),
                        "estimate": estimate})  # fmt: skip
        for launch in range(2):
            make.write_launch(root, spec, launch, 0.1 + accum / 50 + launch * 0.05)
    make.write_study(root, plan={"runs": planned})
    return analyse(root)


def test_accuracy_is_drawn_against_epochs_images_and_time_with_the_target(trained):
    data = score_data(trained, "test_accuracy")
    assert data.panels == ("epochs", "images seen", "training time, seconds")
    assert len(data.rows) == 3 * (4 * 8 + 1)
    assert {row["y"] for row in data.rows if row["key"] is None} == {0.5}
    assert "target of 50.0 %" in data.notes[0]
    assert score_data(trained, "test_loss").notes == ()


def test_a_curve_against_the_batch_joins_runs_of_one_size(trained):
    data = sweep_data(trained, BATCH)
    assert data.keys == ("1 rank", "2 ranks")
    assert data.panels == ("epoch, s", "step time added by more ranks, ms")
    added = [(row["x"], row["y"]) for row in data.rows if row["panel"].startswith("step")]
    assert added == [(16, pytest.approx(10)), (32, pytest.approx(10))]
    assert sweep_table(trained, BATCH).rows[0][:2] == ("1 rank", "16")
    assert sweep_table(trained, BATCH).rows[0][3] == "n/a"


def test_accuracy_depends_on_the_batch_whatever_the_ranks(trained):
    data = sweep_data(trained, ACCURACY)
    assert data.keys == ("all runs",)
    assert sorted({row["x"] for row in data.rows}) == [16, 32, 64]
    assert data.panels == ("test accuracy, %", "epochs to the target accuracy")


def test_the_split_of_efficiency_has_a_panel_per_series_and_multiplies(trained):
    data = efficiency_data(trained)
    assert data.panels == ("micro_batch 16", "micro_batch 32")
    last = {row["key"]: row["y"] for row in data.rows[-3:]}
    assert last["algorithmic"] == pytest.approx(0.25)
    assert last["the whole"] == pytest.approx(last["system"] * 0.25)
    row = efficiency_table(trained).rows[-1]
    assert row[2:3] + row[6:7] == ("64", "25.0 %")


def test_accumulation_shows_time_memory_and_the_plans_bytes(accumulated):
    data = sweep_data(accumulated, ACCUMULATION)
    assert data.panels == ("step, ms", "peak memory of a rank, MiB", "sent by a rank per step: closed form, MiB")
    sent = [(row["x"], row["y"]) for row in data.rows if row["panel"].startswith("sent")]
    assert sent == [(1, 2.0), (2, 3.0), (4, 5.0)]
    highest = max(row["y"] for row in data.rows if row["panel"].startswith("step"))
    assert max(row["high"] for row in data.rows if row["panel"].startswith("step")) == pytest.approx(2 * highest)
    assert "twice the highest median" in data.notes[0]
    assert sweep_table(accumulated, ACCUMULATION).rows[2][4] == "5.00 MiB"


def test_image_sizes_lie_across_with_a_curve_for_every_other_axis(make, tmp_path):
    root = make.write_study(tmp_path)
    for side in (32, 64):
        for parallel in (1, 2):
            model = make.make_spec().model.model_copy(update={"img_size": side})
            shared = {"sequence_parallel": 2, "data_parallel": 1, "micro_batch": 64} if parallel == 2 else {}
            spec = make.make_spec(2, model=model, **shared)
            make.write_launch(root, spec, 0, side / 1000)
    data = sweep_data(analyse(root), RESOLUTION)
    curves = ("micro_batch 32, sequence_parallel off", "micro_batch 64, sequence_parallel 2")
    assert data.keys == tuple(f"{one}, 2 ranks" for one in curves)
    steps = [(row["x"], row["y"]) for row in data.rows if row["panel"] == "step, ms"]
    assert steps == 2 * [(32, pytest.approx(32)), (64, pytest.approx(64))]
    assert sweep_table(analyse(root), RESOLUTION).rows[1][1] == "64"


def test_runs_that_differ_in_their_seed_are_told_together(make, tmp_path):
    root = make.write_study(tmp_path)
    classes = dict.fromkeys(Memory.model_fields, 2**20)
    for name, memory in (("adamw", Memory(**{**classes, "optimizer_bytes": 2**23})), ("sgd", None)):
        for seed in (0, 1, 2):
            spec = make.make_spec(
                optimizer=make.make_spec().optimizer.model_copy(update={"name": name}),
                measure=make.make_spec().measure.model_copy(update={"seed": seed}),
            )
            accuracy = 0.9 + seed / 100 + (name == "sgd") / 50
            make.write_launch(root, spec, 0, 0.1 + seed / 100, accuracy=accuracy, memory=memory)
    result = analyse(root)
    assert [row[:2] for row in seed_table(result).rows] == [("adamw, 1 process", "3"), ("sgd, 1 process", "3")]
    assert [row[2] for row in seed_table(result).rows] == ["8.00 MiB", "n/a"]
    assert seed_table(result).rows[1][2:] == ("n/a", "110 ms (100 ms to 120 ms)", "93.0 % (92.0 % to 94.0 %)")
    assert "seeds" in [part.name for part in document(result, draw(result)).parts]


def test_what_no_study_asked_for_is_not_in_its_report(result, trained, accumulated):
    elsewhere = {"accumulation", "seeds", "resolution"}
    extra = {"accuracy_batch", "test_loss", "efficiency_split", "batch", *elsewhere}
    assert not extra & {part.name for part in document(result, draw(result)).parts}
    assert {part.name for part in document(trained, draw(trained)).parts} >= extra - elsewhere
    names = [part.name for part in document(accumulated, draw(accumulated)).parts]
    assert "accumulation" in names
    assert "batch" not in names


def test_the_table_of_accuracies_has_last_best_and_the_way(trained):
    row = accuracy_table(trained).rows[0]
    assert row == ("micro_batch 16, 1 process", "8", "2.00", "100.0 %", "100.0 %", "0.125", "32.0 ms [n/a]", "0.250")


def test_more_ranks_than_cores_are_in_no_sweep_of_times_but_learn_as_well(make, tmp_path):
    root = make.write_study(tmp_path)
    for micro in (16, 32):
        for size in (1, 2):
            spec = make.make_spec(
                size, "strong_fixed_micro", micro_batch=micro, global_batch=micro * size, solved="global_batch",
                oversubscribed=size == 2, data=make.make_spec().data,
            )  # fmt: skip
            make.write_launch(root, spec, 0, 0.1, accuracy=0.9)
    result = analyse(root)
    data = sweep_data(result, BATCH)
    assert data.keys == ("1 rank",)
    assert data.panels == ("epoch, s",)
    assert "left out" in data.notes[0]
    assert {row["x"] for row in sweep_data(result, ACCURACY).rows} == {16, 32, 64}
    assert {row[0] for row in sweep_table(result, BATCH).rows} == {"1 rank"}


def test_of_runs_with_one_global_batch_the_curve_has_their_mean(make, tmp_path):
    root = make.write_study(tmp_path)
    for batch in (32, 64):
        for accum in (1, 2):
            spec = make.make_spec(2, grad_accum=accum, micro_batch=batch // 2 // accum, global_batch=batch)
            make.write_launch(root, spec, 0, 0.1, accuracy=0.6 + accum / 10)
    result = analyse(root)
    data = sweep_data(result, ACCURACY)
    assert len(data.rows) == 4
    assert data.notes == ("Of several runs at one place the line passes through the mean.",)
    line = next(one for one in draw(result) if one.name == "accuracy_batch").spec["spec"]["layer"][0]
    assert (line["mark"]["type"], line["encoding"]["y"]["aggregate"]) == ("line", "mean")

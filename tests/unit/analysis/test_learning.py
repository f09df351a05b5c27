"""Time to accuracy, and what a larger batch costs: against figures worked out by hand."""

import json

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.config.training import Recipe

IMAGES = 1437


def scores(batch, seconds_per_step, accuracies):
    """Evaluations every 10 steps."""
    return [
        {
            "step": step,
            "epoch": step * batch / IMAGES,
            "images": step * batch,
            "seconds": step * seconds_per_step,
            "test_loss": 2 * (1 - accuracy),
            "test_accuracy": accuracy,
        }
        for step, accuracy in zip(range(10, 10 * len(accuracies) + 1, 10), accuracies, strict=True)
    ]


@pytest.fixture
def trained(make, tmp_path):
    """Writes a study of runs at micro-batch 32: (world size, seconds of a step, accuracies) each."""

    def write(target, *runs, launches=1):
        root = make.write_study(tmp_path)
        resolved = json.loads((root / "resolved.json").read_text())
        resolved["train"] = {"target_accuracy": target}
        (root / "resolved.json").write_text(json.dumps(resolved))
        for size, step_s, accuracies in runs:
            spec = make.make_spec(
                size, "strong_fixed_micro", micro_batch=32, global_batch=32 * size, solved="global_batch",
                train=Recipe(max_steps=40), data=make.make_spec().data,
            )  # fmt: skip
            for launch in range(launches):
                told = scores(32 * size, step_s * (1 + launch / 10), accuracies)
                make.write_launch(root, spec, launch, step_s, evaluations=told)
        return analyse(root)

    return write


def test_the_target_is_reached_at_the_first_evaluation_at_or_above_it(trained):
    run = trained(0.8, (1, 0.1, [0.5, 0.8, 0.7, 0.9])).analysis.runs[0]
    assert run.time_to_accuracy_s.median == pytest.approx(2.0)
    assert run.images_to_accuracy == 640
    assert run.epochs_to_accuracy == pytest.approx(640 / IMAGES)
    assert run.test_accuracy == 0.9


def test_launches_give_the_time_an_interval(trained):
    time = trained(0.8, (1, 0.1, [0.5, 0.8]), launches=3).analysis.runs[0].time_to_accuracy_s
    assert time.median == pytest.approx(2.2)
    assert time.low < 2.0 < 2.4 < time.high


def test_efficiency_is_the_systems_times_the_batchs(trained):
    # Twice the ranks take 0.125 s where ideal were 0.1 s, and three evaluations of twice the images, not two.
    result = trained(0.8, (1, 0.1, [0.5, 0.8, 0.9]), (2, 0.125, [0.4, 0.6, 0.8]))
    base, run = result.analysis.runs
    assert base.algorithmic_efficiency == 1.0
    assert run.efficiency.median == pytest.approx(0.8)
    assert run.algorithmic_efficiency == pytest.approx(640 / 1920)
    whole = base.time_to_accuracy_s.median / (run.time_to_accuracy_s.median * 2)
    assert run.efficiency.median * run.algorithmic_efficiency == pytest.approx(whole)
    (finding,) = [one for one in result.analysis.findings if one.kind == "more_images_needed"]
    assert "global batch 64 needs 3.00 times the images of global batch 32" in finding.evidence
    assert finding.runs == (run.run_id, base.run_id)


def test_a_run_that_stays_below_the_target_has_no_time_and_is_told(trained):
    result = trained(0.8, (1, 0.1, [0.5, 0.9]), (2, 0.1, [0.5, 0.79]))
    run = result.analysis.runs[1]
    assert (run.time_to_accuracy_s, run.images_to_accuracy, run.algorithmic_efficiency) == (None, None, None)
    (finding,) = [one for one in result.analysis.findings if one.kind == "target_not_reached"]
    assert "1 run of 2" in finding.evidence
    assert "79.0 % at best" in finding.evidence


def test_without_a_target_nothing_is_said(trained):
    result = trained(None, (1, 0.1, [0.5, 0.9]))
    assert result.analysis.runs[0].time_to_accuracy_s is None
    assert not {"target_not_reached", "more_images_needed"} & {one.kind for one in result.analysis.findings}
    assert [one.test_accuracy for one in result.accuracies[0].evaluations] == [0.5, 0.9]


def test_the_time_of_an_epoch_is_its_images_over_the_throughput(trained):
    run = trained(None, (2, 0.1, [0.5])).analysis.runs[0]
    assert run.epoch_s.median == pytest.approx(IMAGES / (64 / 0.1))


def test_a_resumed_training_has_the_loss_of_its_whole_way(make, tmp_path):
    root = make.write_study(tmp_path)
    spec = make.make_spec(1, train=Recipe(max_steps=12))
    make.write_launch(root, spec, 0, 0.1, warmup=0, steps=8, status="killed", reason="interrupted")
    folder = make.write_launch(root, spec, 1, 0.1, warmup=0, steps=12, status=None, notes={"resumed_after_step": 5})
    lines = (folder / "steps.rank000.jsonl").read_text().splitlines(keepends=True)
    (folder / "steps.rank000.jsonl").write_text("".join(lines[5:]))
    make.write_launch(root, spec, 1, 0.1, warmup=0, steps=0, notes={"resumed_after_step": 5})
    (curve,) = analyse(root).losses
    assert curve.step == list(range(12))
    assert curve.images == [64 * (step + 1) for step in range(12)]


@pytest.mark.parametrize("line", ['{"test_accuracy": 1.2}', '{"epoch": "two"}', '{"seconds": -1}', '{"step": true}'])
def test_a_damaged_evaluation_is_named_by_its_line(make, tmp_path, line):
    from vitscale.errors import ResultsError

    root = make.write_study(tmp_path)
    folder = make.write_launch(root, make.make_spec(1), status=None)
    (folder / "eval.jsonl").write_text(f'{{"test_accuracy": 0.5}}\n{line}\n')
    with pytest.raises(ResultsError, match=r"eval\.jsonl:2` is damaged"):
        analyse(root)


def test_evaluations_that_tell_no_accuracy_are_short_of_no_target(make, tmp_path):
    root = make.write_study(tmp_path)
    resolved = json.loads((root / "resolved.json").read_text())
    (root / "resolved.json").write_text(json.dumps({**resolved, "train": {"target_accuracy": 0.9}}))
    make.write_launch(root, make.make_spec(1), evaluations=[{"step": 10, "test_loss": 1.5}])
    assert "target_not_reached" not in {finding.kind for finding in analyse(root).analysis.findings}


def test_other_training_images_are_not_the_cost_of_a_batch(make, tmp_path):
    root = make.write_study(tmp_path)
    resolved = json.loads((root / "resolved.json").read_text())
    (root / "resolved.json").write_text(json.dumps({**resolved, "train": {"target_accuracy": 0.5}}))
    for size in (1, 2):
        told = [{"step": 10, "epoch": 1.0, "images": 718 * size, "seconds": 1.0, "test_accuracy": 0.6}]
        make.write_launch(root, make.make_spec(size, "weak"), evaluations=told)
    analysis = analyse(root).analysis
    assert [run.images_to_accuracy for run in analysis.runs] == [718, 1436]
    assert analysis.runs[1].algorithmic_efficiency is None
    assert "more_images_needed" not in {finding.kind for finding in analysis.findings}

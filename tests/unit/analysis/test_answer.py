"""The one sentence that everybody reads."""

import json

import pytest

from vitscale.analysis.analyse import analyse

ONE = [0.1000, 0.1001, 0.1002]
QUESTION = "Does a second process help a tiny ViT?"


def study(make, folder, runs, question=QUESTION, **options):
    root = make.write_study(folder / "study", question)
    for spec, times in runs:
        for launch, step_s in enumerate(times):
            make.write_launch(root, spec, launch, step_s, **options)
    return analyse(root).analysis.answer


def over(factor, times=ONE):
    return [value / factor for value in times]


def test_yes_for_each_protocol_with_intervals(make, tmp_path):
    runs = [
        (make.make_spec(1), ONE),
        (make.make_spec(2), over(1.9)),
        (make.make_spec(1, "weak"), ONE),
        (make.make_spec(2, "weak"), over(0.9)),
    ]
    assert study(make, tmp_path, runs) == (
        "Yes: 2 processes train 1.90x [1.90, 1.90] as fast as 1 (strong, efficiency 95.0 % [94.8, 95.2]); "
        "2 processes train 1.80x [1.80, 1.80] as fast as 1 (weak, efficiency 90.0 % [89.8, 90.2])."
    )


def test_overlap_is_no_difference_detected(make, tmp_path):
    answer = study(make, tmp_path, [(make.make_spec(1), [0.1, 0.11, 0.12]), (make.make_spec(2), [0.1, 0.11, 0.121])])
    assert answer.startswith("Not detectably: no difference detected between 2 processes and 1 (strong, 1.00x [")


def test_slower_is_no(make, tmp_path):
    answer = study(make, tmp_path, [(make.make_spec(1), ONE), (make.make_spec(2), over(0.5))])
    assert answer.startswith("No: 2 processes train slower than 1, at 0.500x [")


def test_faster_in_one_protocol_only_is_in_part(make, tmp_path):
    runs = [
        (make.make_spec(1), ONE),
        (make.make_spec(2), over(0.9)),
        (make.make_spec(1, "weak"), ONE),
        (make.make_spec(2, "weak"), over(0.9)),
    ]
    assert study(make, tmp_path, runs).startswith("In part: 2 processes train slower")


def test_single_launches_settle_nothing(make, tmp_path):
    answer = study(make, tmp_path, [(make.make_spec(1), [0.1]), (make.make_spec(2), [0.05])])
    assert answer == (
        "Not settled: 2 processes trained 2.00x as fast as 1 (strong), too few launches to tell it from noise."
    )


@pytest.mark.parametrize(
    "question",
    [
        "",
        "How far does it scale?",
        "Does scaling stop at 2?",
        "Is communication the bottleneck?",
        "Is it not worth it?",
        "Does it get slower, or scale?",
    ],
)
def test_no_yes_to_a_question_that_was_not_that_one(make, tmp_path, question):
    answer = study(make, tmp_path, [(make.make_spec(1), ONE), (make.make_spec(2), over(1.9))], question)
    assert answer.startswith("2 processes train 1.90x")


def test_a_plateau_is_told(make, tmp_path):
    runs = [(make.make_spec(1), ONE), (make.make_spec(2), over(1.9)), (make.make_spec(4), over(1.901))]
    assert "4 processes train 1.90x" in study(make, tmp_path, runs)
    assert ", with no difference detected from 2." in study(make, tmp_path, runs)


def test_a_decline_is_told(make, tmp_path):
    runs = [(make.make_spec(1), ONE), (make.make_spec(2), over(1.9)), (make.make_spec(4), over(1.5))]
    assert study(make, tmp_path, runs).endswith(", slower than 2.")


def test_simulated_figures_are_called_that(make, tmp_path):
    runs = [(make.make_spec(size, simulated_device="h100"), over(size)) for size in (1, 2)]
    answer = study(make, tmp_path, runs, source="simulated")
    assert answer.startswith("Simulated, not measured: Yes: 2 processes train 2.00x")


def test_a_run_without_a_result_is_mentioned(make, tmp_path):
    runs = [(make.make_spec(1), ONE), (make.make_spec(2), over(1.9)), (make.make_spec(4, oversubscribed=True), ONE)]
    assert study(make, tmp_path, runs).endswith("; 1 of 3 runs without a valid result.")


def test_no_valid_data_is_not_answered(make, tmp_path):
    assert study(make, tmp_path / "a", []) == "Not answered: there is no run."
    runs = [(make.make_spec(1), ONE), (make.make_spec(2), ONE)]
    assert study(make, tmp_path / "b", runs, status="oom") == (
        "Not answered: no run has a valid result: no launch with status ok (2 of 2)."
    )


def test_one_run_alone_gives_its_throughput_and_accuracy(make, tmp_path):
    answer = study(make, tmp_path, [(make.make_spec(1), ONE)], accuracy=0.97)
    assert answer == ("Nothing to compare with: strong, 1 process 639 images/s [638, 641], test accuracy 97.0 %.")


def test_one_size_compares_series_without_ranking_what_overlaps(make, tmp_path):
    specs = [make.make_spec(1, zero_stage=stage) for stage in (0, 1, 2)]
    answer = study(make, tmp_path / "a", [(specs[0], ONE), (specs[1], over(1.0001)), (specs[2], over(0.5))], "")
    assert answer.startswith("No difference detected between zero_stage 1, 1 process and zero_stage 0, 1 process: ")
    answer = study(make, tmp_path / "b", [(specs[0], ONE), (specs[1], over(2))], "")
    assert answer.startswith("Fastest is zero_stage 1, 1 process: zero_stage 1, 1 process 1,279 images/s [")


def test_many_series_are_summed_up(make, tmp_path):
    runs = []
    for stage in range(4):
        runs += [
            (make.make_spec(1, zero_stage=stage), ONE),
            (make.make_spec(2, zero_stage=stage), over(1.9 - stage / 4)),
        ]
    assert study(make, tmp_path, runs) == (
        "Of 4 series, each at its largest world size against its smallest: 4 faster; "
        "efficiency from 57.5 % (zero_stage 3) to 95.0 % (zero_stage 0)."
    )


def test_runs_that_learnt_end_with_the_range_of_their_accuracies(make, tmp_path):
    root = make.write_study(tmp_path, "What does the batch do?")
    for size, accuracy in ((1, 0.9), (2, 0.95)):
        make.write_launch(root, make.make_spec(size), 0, 0.1, accuracy=accuracy)
    answer = analyse(root).analysis.answer
    assert answer.endswith("; test accuracy from 90.0 % (strong, 1 process) to 95.0 % (strong, 2 processes).")


def test_one_accuracy_is_no_range(make, tmp_path):
    root = make.write_study(tmp_path)
    make.write_launch(root, make.make_spec(1), 0, 0.1, accuracy=0.9)
    make.write_launch(root, make.make_spec(2), 0, 0.1)
    assert "accuracy" not in analyse(root).analysis.answer


def test_an_accuracy_of_nothing_is_an_accuracy(make, tmp_path):
    root = make.write_study(tmp_path, "What does the batch do?")
    for size, accuracy in ((1, 0.0), (2, 0.5)):
        make.write_launch(root, make.make_spec(size), 0, 0.1, accuracy=accuracy)
    answer = analyse(root).analysis.answer
    assert answer.endswith("; test accuracy from 0.0 % (strong, 1 process) to 50.0 % (strong, 2 processes).")


def test_what_it_costs_to_spread_the_same_ranks_over_nodes_is_told(make, tmp_path):
    placed = [(nodes, factor) for nodes, factor in ((1, 1.9), (2, 1.0))]
    runs = [
        (make.make_spec(1), ONE),
        *((make.make_spec(2, nodes=nodes, ranks_per_node=2 // nodes), over(factor)) for nodes, factor in placed),
    ]
    answer = study(make, tmp_path, runs, "What does it cost to spread the processes over hosts?")
    assert answer == (
        "2 processes train 1.90x [1.90, 1.90] as fast as 1 (strong, efficiency 95.0 % [94.8, 95.2]); "
        "2 processes train 0.526x [0.525, 0.528] as fast on 2 nodes as on 1 (strong)."
    )


def test_one_launch_does_not_tell_what_it_costs_to_spread_them(make, tmp_path):
    placed = [make.make_spec(2, nodes=nodes, ranks_per_node=2 // nodes) for nodes in (1, 2)]
    answer = study(make, tmp_path, [(spec, [step_s]) for spec, step_s in zip(placed, (0.1, 0.08), strict=True)])
    assert answer.endswith(
        "; 2 processes train 1.25x as fast on 2 nodes as on 1 (strong, too few launches to tell it from noise)."
    )


def of_stages(make, peaks):
    """ZeRO stage -> runs of 1 and 2 processes, the higher the stage the slower."""
    for stage in peaks:
        for ranks, factor in ((1, 1.0), (2, 1.9)):
            yield make.make_spec(ranks, zero_stage=stage), over(factor, [value * (1 + stage) for value in ONE])


def test_a_question_that_asks_which_is_answered_first(make, tmp_path):
    runs = list(of_stages(make, (0, 1, 2, 3)))
    answer = study(make, tmp_path, runs, "Which stage trains fastest on this machine?")
    assert answer.startswith("Fastest is zero_stage 0, 2 processes: zero_stage 0, 2 processes 1,215"), answer
    assert ". Of 4 series, each at its largest" in answer
    assert "Fastest" not in study(make, tmp_path / "other", runs, "How does each stage scale?")


def test_series_that_end_at_different_sizes_are_not_set_side_by_side(make, tmp_path):
    runs = list(of_stages(make, (0, 1)))[:3]
    assert "Fastest" not in study(make, tmp_path, runs, "Which stage is fastest?")


def test_a_question_about_memory_is_told_the_memory(make, tmp_path):
    runs = [(make.make_spec(1), ONE), (make.make_spec(2, zero_stage=3), ONE)]
    asked = "What does each ZeRO stage save of a rank's memory?"
    told = "; peak memory of a rank from 400 MiB (zero_stage 0, 1 process) to 401 MiB (zero_stage 3, 2 processes)."
    assert study(make, tmp_path, runs, asked).endswith(told)
    assert "memory" not in study(make, tmp_path / "other", runs)
    same = [runs[0], (make.make_spec(1, zero_stage=3), ONE)]
    assert study(make, tmp_path / "same", same, asked).endswith("; peak memory of a rank 400 MiB in each of 2 runs.")


def test_engines_that_are_compared_are_first_said_to_be_alike(make, tmp_path):
    root = make.write_study(tmp_path / "study", QUESTION)
    for stage, ok in ((0, True), (3, False)):
        told = {"ok": ok, "first_step": None if ok else 2, "worst_loss": 1e-7, "worst_weight": 1e-6, "tensor": "head"}
        for launch, step_s in enumerate(ONE):
            path = make.write_launch(root, make.make_spec(1, zero_stage=stage), launch, step_s) / "manifest.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "parity": told}))
    assert analyse(root).analysis.answer.startswith("Like for like: 1 of 2 runs train as plain torch does. ")

"""Which keys a study varies, and the labels made of them."""

import pytest

from vitscale.analysis.analyse import analyse


@pytest.fixture
def root(make, tmp_path):
    return make.write_study(tmp_path / "study")


def test_axes_are_the_keys_that_differ_and_not_what_they_entail(make, root):
    small = {"model": make.make_spec().model.model_copy(update={"name": "vit_small", "img_size": 64})}
    for protocol in ("strong", "weak"):
        for size in (1, 2):
            make.write_launch(root, make.make_spec(size, protocol))
            make.write_launch(root, make.make_spec(size, protocol, zero_stage=1, **small))
    runs = analyse(root).analysis.runs
    assert {tuple(sorted(run.axes)) for run in runs} == {("model.name", "zero_stage")}
    assert {tuple(run.axes.values()) for run in runs} == {("vit_tiny_patch16_224", 0), ("vit_small", 1)}


def test_quick_has_no_axis_besides_the_world_size(make, root):
    for protocol in ("strong", "weak"):
        for size in (1, 2):
            make.write_launch(root, make.make_spec(size, protocol))
    result = analyse(root)
    assert {tuple(run.axes) for run in result.analysis.runs} == {()}
    assert sorted(result.labels[run.run_id] for run in result.analysis.runs) == [
        "strong, 1 process", "strong, 2 processes", "weak, 1 process", "weak, 2 processes",
    ]  # fmt: skip


def test_a_swept_global_batch_is_an_axis_under_strong(make, root):
    for batch in (64, 128):
        for size in (1, 2):
            make.write_launch(root, make.make_spec(size, global_batch=batch, micro_batch=batch // size))
    assert [run.axes for run in analyse(root).analysis.runs] == [{"global_batch": 64}] * 2 + [{"global_batch": 128}] * 2


def test_labels_are_unique(make, root):
    for size in (1, 2):
        for nodes in (1, 2):
            make.write_launch(root, make.make_spec(size, nodes=nodes))
    for seed in (0, 1):
        measure = make.make_spec().measure.model_copy(update={"seed": seed})
        make.write_launch(root, make.make_spec(4, measure=measure, deepspeed={"a": {"b": seed}}))
    result = analyse(root)
    names = [result.labels[run.run_id] for run in result.analysis.runs]
    assert len(set(names)) == len(names) == 6
    series = {run.series for run in result.analysis.runs}
    assert len({result.labels[name] for name in series}) == len(series)

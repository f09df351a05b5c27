"""Debugging that was on is a finding with the change to make."""

import json

from vitscale.analysis.analyse import analyse


def study(make, tmp_path, *flags_of_ranks):
    root = make.write_study(tmp_path)
    for world_size, flags in zip((1, 2), flags_of_ranks, strict=True):
        path = make.write_launch(root, make.make_spec(world_size)) / "manifest.json"
        manifest = json.loads(path.read_text())
        for device, debug in zip(manifest["devices"], flags, strict=True):
            device["debug"] = debug
        path.write_text(json.dumps(manifest))
    return [one for one in analyse(root).analysis.findings if one.kind == "debug_flags"]


def test_nothing_on_is_no_finding(make, tmp_path):
    assert study(make, tmp_path, [{}], [{}, {}]) == []


def test_runs_with_the_same_flags_are_one_finding(make, tmp_path):
    on = {"CUDA_LAUNCH_BLOCKING": "1", "NCCL_DEBUG": "INFO"}
    (one,) = study(make, tmp_path, [on], [on, on])
    assert "CUDA_LAUNCH_BLOCKING=1 (each kernel is waited for" in one.evidence
    assert one.hint == "unset CUDA_LAUNCH_BLOCKING NCCL_DEBUG"
    assert len(one.runs) == 2


def test_a_flag_of_one_rank_is_the_runs(make, tmp_path):
    (one,) = study(make, tmp_path, [{}], [{}, {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}])
    assert len(one.runs) == 1
    assert one.hint == "unset TORCH_DISTRIBUTED_DEBUG"


def test_what_torch_was_told_is_not_unset_but_not_called(make, tmp_path):
    (one,) = study(make, tmp_path, [{"torch.autograd.set_detect_anomaly": "True"}], [{}, {}])
    assert one.hint == "do not call torch.autograd.set_detect_anomaly(True)"

"""What a profiler's spans tell of communication that nothing hides: made-up spans, milliseconds."""

import pytest

from vitscale.config.load import load
from vitscale.data.catalog import describe
from vitscale.hardware.probe import probe
from vitscale.study.grid import Images, Where, build

pytest.importorskip("torch")

from vitscale.worker import overlap
from vitscale.worker.overlap import Span

MAIN, WIRE = 1, 2
MS = 1_000_000


def spans(*told):
    """Spans of `(name, kind, begin, end, thread)`, in milliseconds."""
    return [Span(name, kind, begin * MS, end * MS, thread) for name, kind, begin, end, thread in told]


def phases(*, steps=3, length=100):
    """The ranges `data` and `optimizer` of steps of 100 ms; the first begins at 0."""
    return spans(
        *(("data", "user_annotation", at * length, at * length + 10, MAIN) for at in range(steps)),
        *(("optimizer", "user_annotation", at * length + 80, at * length + 100, MAIN) for at in range(steps)),
    )


def collective(begin, end, issued=None):
    """An all-reduce on gloo, with the operator that issued it."""
    issued = begin if issued is None else issued
    return spans(
        ("c10d::allreduce_", "cpu_op", issued, issued + 1, MAIN),
        ("gloo:all_reduce", "user_annotation", begin, end, WIRE),
    )


def told(seen, device="cpu"):
    """Milliseconds of step, collectives and what is hidden of them."""
    assert overlap.unseen(seen) is None
    found = overlap.measure(seen, device)
    return found.steps, *(pytest.approx(1e3 * one) for one in (found.step_s, found.comm_and_wait_s, found.overlapped_s))


def test_what_operators_cover_is_hidden_and_the_first_step_is_left_out():
    operators = spans(("aten::mm", "cpu_op", 0, 80, MAIN), ("aten::mm", "cpu_op", 110, 150, MAIN))
    seen = [*phases(), *operators, *collective(20, 60), *collective(130, 170, issued=105)]
    assert told(seen) == (2, 100, 20, 10)  # of two steps, the mean


def test_collectives_at_once_count_once():
    seen = [*phases(), *collective(130, 170), *collective(140, 180)]
    assert told(seen) == (2, 100, 25, 0)


def test_a_hook_that_stands_still_inside_of_autograd_computes_nothing():
    hooks = spans(
        ("autograd::engine::evaluate_function: MulBackward0", "cpu_op", 120, 180, MAIN),
        ("MulBackward0", "cpu_op", 120, 180, MAIN),
    )
    assert told([*phases(), *hooks, *collective(130, 170)]) == (2, 100, 20, 0)


def test_an_operator_that_waits_for_its_own_collective_does_not_hide_it():
    """As those on a DTensor do."""
    inside = spans(
        ("aten::norm", "cpu_op", 110, 190, MAIN), ("_c10d_functional::wait_tensor", "cpu_op", 131, 170, MAIN)
    )
    assert told([*phases(), *inside, *collective(130, 170)]) == (2, 100, 20, 0)


def test_what_threads_of_the_backend_copy_is_communication():
    seen = [*phases(), *spans(("aten::copy_", "cpu_op", 130, 170, WIRE)), *collective(130, 170)]
    assert told(seen) == (2, 100, 20, 0)


def test_on_cuda_kernels_count_and_not_what_the_host_does():
    kernels = spans(
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "kernel", 120, 200, 7),
        ("ampere_sgemm_128x64_nn", "kernel", 110, 150, 8),
        ("optimizer", "gpu_user_annotation", 180, 200, 8),
        ("Memcpy HtoD (Pinned -> Device)", "gpu_memcpy", 150, 190, 9),
        ("multi_tensor_apply_kernel", "kernel", 310, 320, 8),
    )
    host = spans(("aten::mm", "cpu_op", 101, 199, MAIN), ("c10d::allreduce_", "cpu_op", 112, 113, MAIN))
    assert told([*phases(), *kernels, *host], "cuda") == (2, 110, 40, 15)  # the last step ends with its last kernel


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        ([], "did not see the steps"),
        (phases(steps=1), "did not see the steps"),
        ([*phases(), *spans(("c10d::allreduce_", "cpu_op", 130, 131, MAIN))], "saw 0 of 1 collectives"),
        ([*phases(), *collective(130, 120)], "went backwards"),
        ([*phases(), *collective(30, 40)], "saw no collective in the steps"),
    ],
)
def test_where_spans_are_missing_or_negative_there_is_a_reason_and_no_figure(seen, reason):
    assert reason in overlap.unseen(seen)


def spec_of(*words):
    images = lambda section: Images(describe(section.name, None, None), "generated")  # noqa: E731
    given = ("protocol=strong", "world_size=2", "global_batch=64", "data.name=synthetic", *words)
    merged = {word.partition("=")[0]: word for word in given}
    return build(load("quick", [*merged.values()]).study, Where(probe()), images).runs[0]


@pytest.mark.parametrize(
    ("words", "steps", "reason"),
    [
        ([], 12, None),
        ([], 11, "fewer than 12 steady steps"),
        (["measure.profile=true"], 5, None),
        (["grad_accum=32"], 100, "more than 16 micro-steps in a step"),
        (["engine.compile=true"], 100, "the profiler does not see what compiled blocks compute on a CPU"),
        (["world_size=1"], 100, "one rank sends nothing"),
    ],
)  # fmt: skip
def test_steps_are_profiled_where_they_lengthen_the_window_little(words, steps, reason):
    assert overlap.refusal(spec_of(*words), steps) == reason

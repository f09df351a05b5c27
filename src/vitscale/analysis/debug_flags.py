"""Debugging that was on while runs were measured: what it does, and how to turn it off. What it cost nobody timed."""

from __future__ import annotations

from collections.abc import Iterator

from vitscale.analysis import text
from vitscale.analysis.load import Run, StudyData
from vitscale.analysis.result import Finding

_DOES = {
    "CUDA_LAUNCH_BLOCKING": "each kernel is waited for before the next one is launched",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "each tensor on the GPU is allocated by the driver, which waits for the GPU",
    "NCCL_DEBUG": "NCCL writes a line for each call",
    "TORCH_DISTRIBUTED_DEBUG": "before each collective the ranks compare what they are about to do",
    "torch.autograd.set_detect_anomaly": "each operation notes where it was called, and is checked in backward",
}


def find(study: StudyData) -> Iterator[Finding]:
    """One finding for all runs with the same flags."""
    by_flags: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in study.runs:
        flags = {(name, value) for device in run.devices for name, value in device.debug.items()}
        if flags:
            by_flags.setdefault(tuple(sorted(flags)), []).append(run)
    for on, runs in by_flags.items():
        told = "; ".join(f"{name}={value} ({_DOES.get(name, 'debugging')})" for name, value in on)
        labels = text.names([study.labels[run.run_id] for run in runs])
        variables = dict.fromkeys(name for name, _ in on if name.isupper())
        changes = [f"unset {' '.join(variables)}"] if variables else []
        changes += [f"do not call {name}({value})" for name, value in on if not name.isupper()]
        yield Finding(
            kind="debug_flags",
            severity="warning",
            evidence=f"{labels}: measured with debugging on, which is in every figure: {told}.",
            hint="; ".join(changes),
            runs=tuple(run.run_id for run in runs),
        )

"""`[engine] fast`: what is known to make the device faster, for the keys that the study leaves open.

What is chosen on a CPU was measured one by one (docs/log.md). What torch chooses well by itself is left to it: the
kernel of attention, how the optimizer loops over weights.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from vitscale.config.knobs import EngineSection
from vitscale.config.study import ModelSection, Study
from vitscale.cost import models
from vitscale.errors import Infeasible, UsageError
from vitscale.hardware import catalog
from vitscale.hardware.probe import Machine
from vitscale.study.engines import require_possible
from vitscale.study.knobs import require_compilable, require_compiler, require_knobs
from vitscale.study.points import Point
from vitscale.study.where import Where

_FEW_TOKENS = 160
"""Up to here torch's fused attention is slower in bf16 on CPUs than the unfused one: by 28 % with 65 tokens, 18 % with
145; with 197 both are alike (docs/log.md). There and with 257, tcmalloc saves 5 to 12 % of a step with the fused."""


class Choice(NamedTuple):
    """A combination as it runs, and what of it was chosen here, in words."""

    variant: Study
    point: Point
    notes: tuple[str, ...] = ()


def choose(study: Study, variant: Study, point: Point, where: Where) -> Choice:
    """Turn on what helps and can be combined with the rest of the run, where the study asks for it.

    Args:
        study: as written: a key that it gives stays as it is.
        variant: with the values of the keys that vary.
        point: the combination.
        where: what it runs on.
    """
    if not variant.engine.fast:
        return Choice(variant, point)
    notes, machine, simulated = [], where.machine, where.simulated
    given = study.engine.model_fields_set | {path.removeprefix("engine.") for path in study.axes.swept}
    if point.device == "cuda" and "compile" not in given and _compiles(point, simulated):
        variant = variant.model_copy(update={"engine": variant.engine.model_copy(update={"compile": True})})
        notes.append("engine.compile = true")
    if "precision" in study.axes.model_fields_set:
        faster = _multiplies_bf16(point, machine, simulated) and _takes_bf16(point, variant)
        hint = "; precision=bf16 changes it" if faster and point.precision == "fp32" else ""
        notes.append(f"precision stays {', '.join(study.axes.precision)}, which the study gives{hint}")
    elif _multiplies_bf16(point, machine, simulated) and _takes_bf16(point, variant):
        point = point._replace(precision="bf16")
        notes.append("precision = bf16: weights, with an fp32 master copy")
    if simulated is None and (point.device, point.precision) == ("cpu", "bf16"):
        ours = _in_bf16_on_cpus(variant.model, where)
        taken = {key: value for key, value in ours.items() if key not in given}
        variant = variant.model_copy(update={"engine": variant.engine.model_copy(update=taken)})
        notes += [f"engine.{key} = {value}" for key, value in taken.items()]
    what = f"{point.engine} on {point.device}"
    return Choice(variant, point, tuple(f"fast, {what}: {note}" for note in notes or ["nothing to choose"]))


def _multiplies_bf16(point: Point, machine: Machine, simulated: str | None) -> bool:
    """Whether matrices are multiplied faster in bf16 than in fp32, by the CPU's flags or the GPU's data sheet."""
    if point.device == "cpu":
        return simulated is None and machine.cpu_bf16
    device = catalog.device(simulated) if simulated else catalog.match(machine.gpus[0].name)
    return device is not None and device.peak("bf16") is not None


def _in_bf16_on_cpus(model: ModelSection, where: Where) -> dict[str, str]:
    """In fp32 neither gained anything (docs/log.md); of other hosts it is not known whether they have tcmalloc."""
    with contextlib.suppress(UsageError):  # what is wrong with the model is told where it is resolved
        if models.shape(model.name, model.img_size, model.patch_size).tokens <= _FEW_TOKENS:
            return {"sdpa": "math"}
    alone = not (where.hosts or where.elsewhere)
    return {"allocator": "tcmalloc"} if alone and where.machine.tcmalloc else {}


def _takes_bf16(point: Point, variant: Study) -> bool:
    try:
        require_possible(point.engine, "bf16", point.world_size, point.tensor_parallel)
        require_knobs(variant.engine, point._replace(precision="bf16"), variant.optimizer.name, grad_accum=1)
    except Infeasible:
        return False
    return True


def _compiles(point: Point, simulated: str | None) -> bool:
    try:
        require_compilable(point)
        if simulated is None:
            require_compiler(EngineSection(compile=True))
    except Infeasible:
        return False
    return True

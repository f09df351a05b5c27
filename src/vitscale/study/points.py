"""The product of what varies in a study, before any combination is resolved."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from vitscale.config.batch import Given, given_to
from vitscale.config.keys import set_path
from vitscale.config.labels import ranks
from vitscale.config.load import validate
from vitscale.config.study import Backend, EngineName, Precision, Protocol, Study, ZeroStage
from vitscale.study.engines import own_keys


class Point(NamedTuple):
    """One combination of the axes."""

    protocol: Protocol
    engine: EngineName
    zero_stage: ZeroStage
    precision: Precision
    device: Literal["cpu", "cuda"]
    backend: Literal["auto"] | Backend
    nodes: int | None
    ranks_per_node: int | None
    sequence_parallel: int
    tensor_parallel: int
    given: Given
    world_size: int


def variants(study: Study) -> Iterator[tuple[Study, dict[str, Any]]]:
    """The study once for every combination of the keys that vary by their dotted path."""
    swept = study.axes.swept
    tree = study.model_dump(mode="json")
    tree["axes"]["swept"] = {}
    for values in itertools.product(*swept.values()):
        varied = dict(zip(swept, values, strict=True))
        if not varied:
            yield study, {}
            continue
        copy = study.model_validate(tree).model_dump(mode="json")
        for path, value in varied.items():
            set_path(copy, path, value)
        yield validate(copy, f"study `{study.name}`"), varied


def points(study: Study, device_of: Callable[[str], Literal["cpu", "cuda"]]) -> Iterator[Point]:
    """Every combination of the axes; `device_of` resolves the axis `device`."""
    asked = study.axes
    devices = dict.fromkeys(device_of(one) for one in asked.device)
    batches = itertools.product(
        *(values or (None,) for values in (asked.global_batch, asked.micro_batch, asked.grad_accum))
    )
    given = [Given(*values) for values in batches]
    engines = list(itertools.product(asked.engine, asked.zero_stage))
    hosts = itertools.product(asked.nodes or (None,), asked.ranks_per_node or (None,))
    shared = itertools.product(asked.sequence_parallel, asked.tensor_parallel)
    where = itertools.product(devices, asked.backend)
    outer = itertools.product(study.protocol, engines, asked.precision, list(where), list(hosts), list(shared), given)
    for protocol, (engine, stage), precision, (device, backend), (nodes, per_node), (tokens, weights), one in outer:
        read = given_to(protocol, study.protocol, one)
        for world_size in asked.world_size:
            yield Point(
                protocol=protocol,
                engine=engine,
                zero_stage=stage,
                precision=precision,
                device=device,
                backend=backend,
                nodes=nodes,
                ranks_per_node=per_node,
                sequence_parallel=tokens,
                tensor_parallel=weights,
                given=read,
                world_size=world_size,
            )


def label(study: Study, point: Point, varied: dict[str, Any]) -> str:
    """A combination in words, by the keys it has."""
    stage = own_keys(study, point.engine, point.zero_stage, point.device).get("zero_stage")
    own = {
        "backend": None if point.backend == "auto" else point.backend,
        "nodes": point.nodes,
        "ranks_per_node": point.ranks_per_node,
        "sequence_parallel": point.sequence_parallel if point.sequence_parallel > 1 else None,
        "tensor_parallel": point.tensor_parallel if point.tensor_parallel > 1 else None,
        **point.given._asdict(),
        **varied,
    }
    engine = point.engine if stage is None else f"{point.engine}, zero_stage {stage}"
    told = [f"{key} {value}" for key, value in own.items() if value is not None]
    return ", ".join([point.protocol, engine, point.precision, *told, ranks(point.world_size, point.device)])

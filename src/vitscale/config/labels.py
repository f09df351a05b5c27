"""Which keys the runs of a study differ in, and short labels made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vitscale.config.imported import ImportedSpec
from vitscale.config.knobs import EngineSection
from vitscale.config.runspec import RunSpec

Spec = RunSpec | ImportedSpec

# Identity, placement, and what is resolved from other keys: never an axis. `nodes` is one where it varies on its own.
_NEVER = {
    "schema_version", "protocol", "world_size", "nodes", "ranks_per_node", "data_parallel", "solved", "oversubscribed",
    "model.num_classes", "data.fingerprint",
}  # fmt: skip
_STUDY_NAMES = {"simulated_device": "hardware.name", "link": "launch.link"}
_IMPORTED_NAMES = {"model": "model.name", "dataset": "data.name", "optimizer": "optimizer.name"}
_FOLLOWS = {
    "model.img_size": "model.name",
    "model.patch_size": "model.name",
    "data.images": "data.name",
    "data.images_per_device": "data.name",
    "threads_per_rank": "device",
    "fsdp.reshard_after_forward": "engine",
    "optimizer.lr": "optimizer.name",
}
_BARE = ("engine", "precision", "device", "model.name", "data.name", "optimizer.name", "hardware.name")
_UNSET = {
    "backend": "auto",
    "engine.loader_threads": "auto",
    "engine.compile_mode": "default",
    "engine.sdpa": "auto",
    "engine.allocator": "libc",
    "engine.split": "even",
    "engine.optimizer_impl": "auto",
    "engine.bind_cores": "True",
    "engine.gradient_as_bucket_view": "True",
}
"""What null means, where it is not off."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as dotted keys; an empty dict is left out."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def spec_keys(spec: Spec) -> dict[str, Any]:
    """A run's settings by their study names, without the ones that follow from the world size or the batch identity."""
    if isinstance(spec, ImportedSpec):
        return {_IMPORTED_NAMES.get(key, key): value for key, value in spec.told().items() if key not in _NEVER}
    tree = spec.model_dump(mode="json", exclude={"knobs"})
    flat = {_STUDY_NAMES.get(key, key): value for key, value in flatten(tree).items()}
    flat |= flatten((spec.knobs or EngineSection()).model_dump(mode="json"), "engine.")
    consequences = {*_NEVER, spec.solved, *(["data.images"] if spec.protocol == "weak" else [])}
    if spec.optimizer.lr_policy in ("linear", "sqrt"):
        consequences.add("optimizer.lr")
    return {key: value for key, value in flat.items() if key not in consequences}


def axes(specs: Mapping[str, Spec]) -> dict[str, dict[str, Any]]:
    """By run_id, the keys in which runs of the same protocol differ, with that run's values."""
    flat = {run_id: spec_keys(spec) for run_id, spec in specs.items()}
    imported = {run_id: spec for run_id, spec in specs.items() if isinstance(spec, ImportedSpec)}
    asked = {run_id: spec for run_id, spec in specs.items() if isinstance(spec, RunSpec)}
    varying: set[str] = set()
    for protocol in {spec.protocol for spec in asked.values()}:
        varying |= _varying([flat[run_id] for run_id, spec in asked.items() if spec.protocol == protocol])
    between = _between_series(imported, flat)
    keys = {run_id: between if run_id in imported else varying for run_id in specs}
    found = {run_id: {key: flat[run_id][key] for key in sorted(keys[run_id] & flat[run_id].keys())} for run_id in specs}
    if _nodes_vary(specs.values()):
        for run_id, spec in specs.items():
            found[run_id]["nodes"] = spec.nodes
    return found


def _between_series(imported: Mapping[str, ImportedSpec], flat: Mapping[str, dict[str, Any]]) -> set[str]:
    """Keys that every imported series has one value of, and not the same: a series is what its source calls one."""
    values: dict[str, dict[str, set[str]]] = {}
    for run_id, spec in imported.items():
        for key, value in flat[run_id].items():
            values.setdefault(key, {}).setdefault(spec.series, set()).add(repr(value))
    return {
        key
        for key, by_series in values.items()
        if all(len(one) == 1 for one in by_series.values()) and len(set().union(*by_series.values())) > 1
    }


def _varying(group: Sequence[dict[str, Any]]) -> set[str]:
    # A key that another run does not have at all (a DeepSpeed key) differs too; a solved one does not.
    solved = {"micro_batch", "grad_accum", "global_batch", "data.images"}
    keys = set().union(*group)
    varying = {key for key in keys if len({repr(one.get(key)) for one in group if key in one or key not in solved}) > 1}
    for key, parent in _FOLLOWS.items():
        if key in varying and parent in varying and _follows(group, key, parent):
            varying.discard(key)
    return varying


def _follows(group: Sequence[dict[str, Any]], key: str, parent: str) -> bool:
    pairs = {(repr(one.get(parent)), repr(one.get(key))) for one in group}
    return len(pairs) == len({parent for parent, _ in pairs})


def _nodes_vary(specs: Iterable[Spec]) -> bool:
    seen: dict[tuple[str, int], int | None] = {}
    return any(seen.setdefault((spec.series, spec.world_size), spec.nodes) != spec.nodes for spec in specs)


def labels(
    specs: Mapping[str, Spec], series: Mapping[str, str], varying: Mapping[str, dict[str, Any]]
) -> dict[str, str]:
    """run_id and series -> short label, unique among runs and among series. An imported series keeps its own name.

    Args:
        specs: by run_id.
        series: run_id -> series.
        varying: run_id -> axes.
    """
    several = len({spec.protocol for spec in specs.values() if isinstance(spec, RunSpec)}) > 1
    of_series: dict[str, str] = {}
    for run_id, spec in specs.items():
        if isinstance(spec, ImportedSpec):
            of_series.setdefault(series[run_id], spec.series)
            continue
        # An engine without stages has no stage that is off.
        shown = {key: value for key, value in varying[run_id].items() if key != "zero_stage" or value is not None}
        values = [_value(key, value) for key, value in shown.items() if key != "nodes"]
        parts = ([spec.protocol] if several or not values else []) + values
        of_series.setdefault(series[run_id], ", ".join(parts))
    _make_unique(of_series)
    of_runs = {}
    for run_id, spec in specs.items():
        where = f" on {spec.nodes} nodes" if "nodes" in varying[run_id] and (spec.nodes or 1) > 1 else ""
        kind = None if isinstance(spec, ImportedSpec) else spec.device
        of_runs[run_id] = f"{of_series[series[run_id]]}, {ranks(spec.world_size, kind)}{where}"
    _make_unique(of_runs)
    return of_series | of_runs


def natural(protocol: str, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Sorting key of a series: by protocol, then by each axis, numbers as numbers."""
    ordered = [
        (key, (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))) for key, value in values.items()
    ]
    return protocol, ordered


def ranks(count: int, device: str | None) -> str:
    """`1 process`, `4 GPUs`; `4 ranks` where the kind of device is not told."""
    if device is None:
        return f"{count} rank{'s' * (count != 1)}"
    noun = "GPU" if device == "cuda" else "process"
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'s' if device == 'cuda' else 'es'}"


def _value(key: str, value: Any) -> str:
    if key in _BARE and value is not None:
        return str(value)
    shown = _UNSET.get(key, "off") if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    # What is offloaded tells more than `device`, where to.
    name = key.removesuffix(".device").rpartition(".")[2]
    return f"{name} {shown}"


def _make_unique(texts: dict[str, str]) -> None:
    """Append the identity's hash to labels that more than one has."""
    counts: dict[str, int] = {}
    for text in texts.values():
        counts[text] = counts.get(text, 0) + 1
    for key, text in texts.items():
        if counts[text] > 1:
            texts[key] = f"{text} ({key[-8:]})"

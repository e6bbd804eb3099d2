"""Placement of a base by need: on its device where it fits, else over all GPUs, main memory and the disk.

Invariant: the plan rests on sizes alone. Where the base fits one device nothing is spread, and where it is
spread accelerate computes each layer as it would be computed there: the answers are the same, later.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from harness.errors import CandidateFailed
from harness.models import hub, memory
from harness.models.hardware import Machine
from harness.models.hardware import memory as device_memory
from harness.models.hub import ModelSource

_SPARE = 0.9  # of main memory that weights may take, where they are held there for another device
# Tokens whose keys and values need room beside the weights: a long prompt. What is answered together is
# halved where memory runs out, so a base that has room for this much is one that fits.
LEAST_TOKENS = 4_096
Room = Mapping[int | str, int]  # free bytes by accelerate's names of devices: 0, 1, … and cpu


class Placement(NamedTuple):
    """Arguments of transformers that place a base; without `max_memory` it is whole on one device."""

    device_map: str | dict[str, str] | None
    max_memory: dict[int | str, int] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The keywords of `from_pretrained`."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def free_room(machine: Machine) -> Room:
    """Ask how much memory is free on each device that a base may lie on."""
    room: dict[int | str, int] = {"cpu": int(device_memory("cpu").free_gib * 2**30)}
    if machine.device == "cuda":
        import torch

        room |= {place: torch.cuda.mem_get_info(place)[0] for place in range(torch.cuda.device_count())}
    return room


def weights_bytes(source: ModelSource, precision: str) -> float:
    """Return the bytes of a base's weights as it is served, by its size and shape."""
    shape = hub.shape(source)
    if shape is None:
        return source.n_parameters * memory.BYTES[precision]
    return 1e9 * memory.weights_gb(shape, precision, quantization=source.quantization)


def place(source: ModelSource, machine: Machine, room: Room) -> Placement:
    """Plan where a base lies that answers with the keys of at least one long prompt in memory.

    Quantised weights are spread over GPUs alone, as bitsandbytes computes on no other device here.
    """
    shape = hub.shape(source)
    keys = memory.kv_cache_bytes(shape, LEAST_TOKENS, machine.precision) if shape else 0.0
    weights, main = weights_bytes(source, machine.precision), "cpu" if machine.device == "cpu" else 0
    if weights + keys <= room[main] or (machine.device == "cpu" and source.quantization):
        return Placement(None if machine.device == "cpu" else {"": machine.device})
    gpus = {name: n for name, n in room.items() if name != "cpu"}
    kept = keys / max(1, len(gpus))  # each device holds the keys of its own layers
    most: dict[int | str, int] = {name: max(0, int(n - kept)) for name, n in gpus.items()}
    if not source.quantization:
        most["cpu"] = max(0, int(_SPARE * (room["cpu"] - (0 if gpus else keys))))
    return Placement("auto", most)


def is_spread(model: Any) -> bool:
    """Tell whether a model lies on several devices, or partly on the disk."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1


def refuse_offloaded(model: Any) -> None:
    """Refuse to put an adapter on a base of which some layers wait elsewhere until they are computed.

    Raises:
        CandidateFailed: they lie in main memory beside a GPU, or on the disk.
    """
    if is_spread(model) and {"cpu", "disk"} & {*model.hf_device_map.values()}:
        found = (
            "an adapter on a base that lies partly in main memory or on the disk, which PEFT cannot change"
        )
        raise CandidateFailed(found, "quantization: nf4, or more memory")


def refuse_headless(model: Any, name: str) -> None:
    """Refuse a base of which not even the embeddings have room on a device.

    Raises:
        CandidateFailed: they lie on the disk.
    """
    if model.device.type == "meta":
        raise CandidateFailed(f"{name}: no memory has room for its embeddings", "a smaller base_model")

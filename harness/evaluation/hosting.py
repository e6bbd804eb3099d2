"""What holds a base in memory and answers: of transformers or of vLLM.

Invariant: every arm of an experiment is answered by its one engine; weights do not depend on it.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from harness.models.hardware import Machine
from harness.models.hf import Candidate, ModelHost
from harness.models.hub import ModelSource
from harness.models.vllm import VllmHost
from harness.spec import Engine


class Host(Protocol):
    """One base in memory, as it is or with an adapter."""

    @property
    def source(self) -> ModelSource:
        """The base."""

    @property
    def base(self) -> Candidate:
        """What the base answers."""

    def adapted(self, folder: Path, weights_digest: str) -> AbstractContextManager[Candidate]:
        """Open the base with the adapter of a folder; the base is itself again afterwards."""


def load(engine: Engine, source: ModelSource, machine: Machine, known: str) -> Host:
    """Load a base; `known` is how transformers lays out its scoring, where that was found out before.

    Raises:
        UserError: the engine is not installed, or not made for the device.
        CandidateFailed: it cannot load this model here.
    """
    return VllmHost(source, machine) if engine == "vllm" else ModelHost(source, machine, known or None)

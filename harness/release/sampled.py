"""Stored runs of `compare --sequential`: judged as the interim analysis at which they stopped judged them.

Invariant: the sampled items count by their inclusion weights, at that analysis's alpha, so the verdict is the
one that the comparison printed. A repeated confidence interval holds whatever the reason to stop was.
Source: Jennison & Turnbull 2000, chapter 9.
"""

from dataclasses import replace

from harness import store
from harness.errors import IncompatibleRuns
from harness.experiment import Study
from harness.formatting import count
from harness.records import FEWER, Run, SamplingRecord
from harness.spec import Experiment


def is_sampled(experiment: Experiment, run: Run) -> bool:
    """Tell whether a run answered a sample of this experiment's items."""
    return run.experiment == f"{experiment.name}{FEWER}"


def find_sampling(stored: Study, run: Run) -> SamplingRecord | None:
    """Read which items a run was judged on; None of one that answered whole tasks.

    Raises:
        IncompatibleRuns: the items were sampled, and no record says how.
    """
    if not is_sampled(stored.experiment, run):
        return None
    found = store.read_sampling(stored.store, run.run_id)
    if found is None:
        raise IncompatibleRuns(
            f"{run.run_id}: found no record of how its items were sampled; expected sampling.json next to "
            f"run.json in {stored.store.folder / run.run_id}; next: "
            f"{stored.typed.command('compare', '--sequential')}, which writes it and evaluates nothing again,"
            " or --all-items"
        )
    return found


def as_analysed(stored: Study, run: Run, sampling: SamplingRecord) -> Study:
    """Return the study as an interim analysis judged a run: its items, under its name, at its alpha.

    Raises:
        IncompatibleRuns: the analyses were planned for another alpha than the gate's.
    """
    if sampling.of_alpha != stored.experiment.gate.alpha:
        raise IncompatibleRuns(
            f"{run.run_id}: found interim analyses planned for gate.alpha {sampling.of_alpha:g}; expected "
            f"{stored.experiment.gate.alpha:g}, the gate's own; next: "
            f"{stored.typed.command('compare', '--sequential')}, which plans again and evaluates only "
            "what is not stored"
        )
    gate = stored.experiment.gate.model_copy(update={"alpha": sampling.alpha})
    experiment = stored.experiment.model_copy(update={"name": run.experiment, "gate": gate})
    return replace(
        stored,
        experiment=experiment,
        weights=lambda run: sampling.weights,
        compared={},
        admitted={},
        untrained={},
    )


def describe_sampling(sampling: SamplingRecord) -> str:
    """Say on which items and at which alpha a run is judged."""
    sizes = ", ".join(f"{count(len(of))} items of {task}" for task, of in sampling.weights.items())
    return f"{sampling.analysis} of --sequential, judged at alpha {sampling.alpha:.2g} on {sizes}"

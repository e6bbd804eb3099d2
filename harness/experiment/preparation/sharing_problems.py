"""Problems of processes that share a training: too few GPUs, rows that cannot be parted, what shards forbid.

Invariant: everything is found before a process is started, and each problem says what to do.
"""

from collections.abc import Iterator
from importlib.util import find_spec

from harness.errors import Problem
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.session import Session
from harness.experiment.weights.weights_folder import processes_of, shards_of
from harness.models.hardware import visible_gpus
from harness.spec import Recipe
from harness.training import rows_of_each
from harness.training.trainer import of_bitsandbytes

_WHERE = "training.accelerate"


def sharing_problems(session: Session, candidate: ResolvedCandidate) -> Iterator[Problem]:
    """Yield what forbids processes to share a candidate's training, of its first trial that has some."""
    for trial in candidate.trials:
        processes, where = processes_of(session, trial.source), f"candidate {candidate.name}"
        try:
            if processes > 1:
                rows_of_each(trial.method.params(**trial.source.params), processes)
        except ValueError as error:
            step = "another per_device_train_batch_size or gradient_accumulation_steps, or num_processes"
            yield Problem(where, str(error), "as many rows for each process", step)
            return
        if shards := shards_of(session, trial.source):
            found = [*_problems_of_shards(trial.source, shards, where)]
            yield from found
            if found:
                return


def _problems_of_shards(recipe: Recipe, shards: str, where: str) -> Iterator[Problem]:
    """Yield what of a training needs weights that no process holds whole."""
    kind = f"distributed_type: {shards.partition('/')[0]}"
    if recipe.track:
        found = f"track, and {kind}, whose weights are put together at the end alone"
        yield Problem(where, found, "one of the two", "leave out track, or distributed_type: MULTI_GPU")
    if of_bitsandbytes(optim := recipe.params.get("optim")):
        found = f"optim: {optim}, which is bitsandbytes', and {kind}"
        yield Problem(where, found, "an optimiser of torch's, which shards can have", "optim: adamw_torch")


def missing_gpus(session: Session) -> Iterator[Problem]:
    """Yield that there are fewer GPUs here than processes to share a training, or workers, with one each."""
    policy, executor = session.experiment.training.accelerate, session.experiment.execution.executor
    wanted, on_gpu = policy.num_processes, session.machine.device == "cuda"
    if wanted == 1:
        return
    kind = f"distributed_type: {policy.distributed_type}"
    if executor != "in_process":
        found = f"num_processes: {wanted}, and executor: {executor}, whose workers are one process each"
        yield Problem(_WHERE, found, "one of the two", "num_processes: 1, or no executor")
    elif on_gpu and (n_gpus := len(visible_gpus())) < wanted:
        found = f"num_processes: {wanted}, and {n_gpus} GPU{'s' * (n_gpus > 1)} for each training"
        yield Problem(_WHERE, found, "a GPU for each process", "fewer processes")
    if policy.shards and not on_gpu:
        expected = "a GPU for each process, as accelerate shards on GPUs alone"
        yield Problem(_WHERE, f"{kind}, and no GPU here", expected, "distributed_type: MULTI_GPU")
    if policy.distributed_type == "DEEPSPEED" and find_spec("deepspeed") is None:
        step = "pip install 'harness-evals[deepspeed]', or distributed_type: FSDP"
        yield Problem(_WHERE, f"{kind}, and no package deepspeed", "the package that shards", step)

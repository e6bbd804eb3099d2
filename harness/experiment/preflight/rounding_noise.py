"""A/A noise of a base: the same items evaluated in other layouts and batches.

Invariant: only how tokens are laid out differs between the arms, so what differs in the answers is rounding.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from harness import store
from harness.errors import Problem, UserError
from harness.evaluation import EvaluationJob
from harness.evaluation.candidates import base_weights
from harness.evaluation.control_arm import reevaluate
from harness.evaluation.row_sets import suite_sets
from harness.evaluation.session import Session
from harness.metrics import is_flipped
from harness.models import Candidate, Size
from harness.models.hf import HFCandidate, ModelHost
from harness.models.loglikelihood import Executor
from harness.records import Noise, SampleResult, TaskNoise

LAYOUT, BATCH = "layout", "batch"
_FEW_ROWS, _FEW_TOKENS = 4, 256


class _SmallerBatches(HFCandidate):
    """The same model evaluated in small batches; scored by `engine`."""

    def __init__(self, host: ModelHost, engine: str) -> None:
        super().__init__(host.model, host.tokenizer, host.base.weights_digest, engine)
        self._reading = Size(_FEW_ROWS, _FEW_TOKENS)
        self._answering = Size(_FEW_ROWS, self._answering.tokens)
        self._executor = Executor(host.model, _FEW_TOKENS, engine)


def measure_noise(session: Session) -> Noise:
    """Ask the base the first block of each task of the suites in every way, and store what differs.

    Raises:
        UserError: the experiment has no suite, or is answered by another engine than transformers.
    """
    if session.experiment.engine != "transformers":
        found = f"engine: {session.experiment.engine}"
        expected, step = "the engine whose layouts are varied", "engine=transformers"
        raise UserError(Problem("harness doctor --noise", found, expected, step))
    sets = suite_sets(session, base_weights(session.source))
    if not sets:
        found = "an experiment without suites"
        raise UserError(Problem("harness doctor --noise", found, "general tasks", "name some under suites:"))
    host = session.host(session.source)
    assert isinstance(host, ModelHost)
    arms = _arms(host)
    blocks, candidates = [(rows, 0) for rows in sets], [host.base, *arms.values()]
    again = reevaluate(session, blocks, candidates, "noise: the base again")
    tasks = tuple(
        task_noise(rows.job(), usual, dict(zip(arms, others, strict=True)))
        for rows, (usual, *others) in zip(sets, again, strict=True)
    )
    now = datetime.now(UTC)
    noise = Noise(
        id=f"{now:%Y%m%dT%H%M%S%f}",
        created=now.isoformat(timespec="seconds"),
        base_model=session.source.name,
        base_digest=session.source.weights_digest,
        precision=session.machine.precision,
        device=session.machine.name,
        engine=host.base.engine,
        layout_digest=host.base.layout_digest,
        tasks=tasks,
    )
    store.save_noise(session.store, noise)
    return noise


def _arms(host: ModelHost) -> dict[str, Candidate]:
    """Return the other ways to ask: one sequence an answer where choices were packed, and small batches."""
    engine = host.base.engine.partition("/")[2]
    arms: dict[str, Candidate] = {BATCH: _SmallerBatches(host, engine)}
    if engine != "plain":
        arms[LAYOUT] = HFCandidate(host.model, host.tokenizer, host.base.weights_digest, "plain")
    return arms


def task_noise(
    job: EvaluationJob, usual: Sequence[SampleResult], answered: dict[str, list[SampleResult]]
) -> TaskNoise:
    """Count the items whose primary score moved, and find the largest difference in log-likelihood."""
    metric = job.metrics[job.task.primary_metric]
    pairs = [pair for rows in answered.values() for pair in zip(usual, rows, strict=True)]
    gaps = [
        abs(a.gold_logprob - b.gold_logprob)
        for a, b in pairs
        if a.gold_logprob is not None and b.gold_logprob is not None
    ]
    return TaskNoise(
        task=job.task.name,
        n=len(usual),
        flips={
            name: sum(is_flipped(a, b, metric) for a, b in zip(usual, rows, strict=True))
            for name, rows in answered.items()
        },
        largest_nats=max(gaps, default=None),
    )

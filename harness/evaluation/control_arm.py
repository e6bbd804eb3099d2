"""Control arm: blocks of a base's stored rows that the base answers again next to a candidate; A/A noise.

Invariant: it is measured once per base and command, and stored rows are not changed. The noise is what other
layouts and batches change in the base's answers.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from math import isclose

import numpy as np

from harness import provenance, store
from harness.errors import UserError
from harness.evaluation.candidates import base_weights
from harness.evaluation.costs import Work
from harness.evaluation.row_sets import RowSet, suite_sets, work_of
from harness.evaluation.session import Session
from harness.metrics import is_flipped
from harness.models import Candidate, Size
from harness.models.hardware import load
from harness.models.hf import HFCandidate, ModelHost
from harness.models.hub import ModelSource
from harness.models.loglikelihood import Executor
from harness.models.out_of_memory import halvings
from harness.progress import Progress
from harness.records import BLOCK, Control, ControlBlock, Noise, Origin, SampleResult, TaskNoise

_ROUNDING = 1e-4  # relative difference that another order of summation explains


def origin(at: store.Store, device: str, control: str = "") -> Origin:
    """Return the origin of rows that are computed now on a device of this name."""
    return Origin(store.keep_environment(at, provenance.describe_environment(device)), control)


def measure_control(session: Session, source: ModelSource) -> str:
    """Let a base answer some stored blocks again, once per session; return the measurement's id, or "".

    Each measurement takes other blocks.
    """
    if (known_id := session.controls.get(source.weights_digest)) is not None:
        return known_id
    at, n_blocks = session.store, session.experiment.gate.control_blocks
    sets = [s for s in suite_sets(session, base_weights(source)) if n_blocks and s.is_there(at)]
    n_earlier = sum(c.base_digest == source.weights_digest for c in store.controls(at))
    # Generated answers and other tasks alternate, in a seeded order.
    kinds: dict[bool, list[list[tuple[RowSet, int]]]] = {True: [], False: []}
    for i in np.random.default_rng(int(source.weights_digest, 16)).permutation(len(sets)):
        set_blocks = [(sets[i], index) for index in range(sets[i].n_blocks)]
        kinds[sets[i].measured.task.kind == "generate"].append(set_blocks)
    queues = []
    for turns in map(_interleave, kinds.values()):
        offset = n_earlier * -(-n_blocks // 2) % len(turns) if turns else 0
        queues.append([*turns[offset:], *turns[:offset]])
    chosen_blocks = []
    for row_set, index in _interleave(queues):
        if store.origins(at, row_set.identity.digest).get(index, Origin()).halved:
            continue  # memory ran out: its batches, and so its rounding, were others
        span = slice(index * BLOCK, (index + 1) * BLOCK)
        stored_rows = store.read_rows(at, row_set.identity.digest)[span]
        # A block cut by a limit now but not then had another layout and is left out.
        chosen_blocks += [(row_set, index, stored_rows)] if len(stored_rows) == len(row_set.ids[span]) else []
        if len(chosen_blocks) == n_blocks:
            break
    if not chosen_blocks:
        session.controls[source.weights_digest] = ""
        return ""
    start, base = load(), session.host(source).base
    blocks, label = [(row_set, index) for row_set, index, _ in chosen_blocks], "control arm: the base again"
    repeated_rows = reevaluate(session.progress, session.seconds, blocks, [base], label)
    compared_blocks, n_halvings = [], len(halvings)
    for (row_set, index, stored_rows), (new_rows,) in zip(chosen_blocks, repeated_rows, strict=True):
        if len(halvings) > n_halvings:
            n_halvings = len(halvings)
            continue
        identity, primary = row_set.identity.digest, row_set.measured.primary
        block_origin = store.origins(at, identity).get(index, Origin())
        pairs = list(zip(stored_rows, new_rows, strict=True))
        fields = (row_set.measured.task.name, identity, index, len(new_rows), block_origin.environment)
        reworded_items = _item_names(new for old, new in pairs if old.prompt_digest != new.prompt_digest)
        differing_items = _item_names(new for old, new in pairs if differs(old, new))
        flipped_items = _item_names(new for old, new in pairs if is_flipped(old, new, primary))
        control_block = ControlBlock(*fields, reworded_items, differing_items, flipped_items)
        compared_blocks.append((control_block, new_rows))
    session.learn_pace("answering", Work(), load().since(start).wall_s, source, teaches=False)
    now = datetime.now(UTC)
    control_id = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    environment = origin(at, session.machine.name).environment
    base_fields = (source.weights_digest, session.machine.precision, environment)
    control = Control(control_id, now.isoformat(), *base_fields, tuple(block for block, _ in compared_blocks))
    store.save_control(at, control, compared_blocks)
    session.controls[source.weights_digest] = control_id
    return control_id


def reevaluate(
    progress: Progress,
    seconds: Callable[[Work], float],
    blocks: Sequence[tuple[RowSet, int]],
    candidates: Sequence[Candidate],
    label: str,
) -> Iterator[list[list[SampleResult]]]:
    """Evaluate blocks of row sets with each candidate, ignoring stored rows; yield block by block."""
    jobs = {rows.name: rows.job() for rows, _ in blocks}
    expected_s = sum(seconds(work_of(jobs[rows.name])) / rows.n_blocks for rows, _ in blocks)
    with progress.stage(label, len(candidates) * expected_s) as advance:
        for n_done, (rows, index) in enumerate(blocks, 1):
            yield [rows.measured.evaluate(candidate, jobs[rows.name], index) for candidate in candidates]
            advance(n_done, len(blocks))


def _interleave(queues: Sequence[Sequence[tuple[RowSet, int]]]) -> list[tuple[RowSet, int]]:
    return [block for turn in zip_longest(*queues) for block in turn if block]


def _item_names(rows: Iterator[SampleResult]) -> tuple[str, ...]:
    return tuple(f"{row.task}/{row.example_id}" for row in rows)


def differs(old: SampleResult, new: SampleResult) -> bool:
    """Tell whether an item was prompted, answered or scored differently, beyond the rounding of sums."""
    if (old.prompt_digest, old.text, old.status) != (new.prompt_digest, new.text, new.status):
        return True
    names = old.parts.keys() | new.parts.keys()
    scores = [(old.parts.get(name), new.parts.get(name)) for name in names]
    single = [None if row.gold_logprob is None else (row.gold_logprob,) for row in (old, new)]
    for a, b in [*scores, (single[0], single[1])]:
        if a is None or b is None or len(a) != len(b):
            if a is not b:
                return True
        elif not all(isclose(x, y, rel_tol=_ROUNDING, abs_tol=1e-9) for x, y in zip(a, b, strict=True)):
            return True
    return False


LAYOUT, BATCH = "layout", "batch"
_FEW_ROWS, _FEW_TOKENS = 4, 256


class _SmallerBatches(HFCandidate):
    """The same model evaluated in small batches, scored by `engine`."""

    def __init__(self, host: ModelHost, engine: str) -> None:
        super().__init__(host.model, host.tokenizer, host.base.weights_digest, engine)
        self._reading = Size(_FEW_ROWS, _FEW_TOKENS)
        self._answering = Size(_FEW_ROWS, self._answering.tokens)
        self._executor = Executor(host.model, _FEW_TOKENS, engine)


def measure_noise(session: Session) -> Noise:
    """Evaluate the base on the first block of each suite task in every layout, and store the differences."""
    if session.experiment.engine != "transformers":
        found = f"engine: {session.experiment.engine}"
        expected, step = "the engine whose layouts are varied", "engine=transformers"
        raise UserError("harness doctor --noise", found, expected, step)
    sets = suite_sets(session, base_weights(session.source))
    if not sets:
        found = "an experiment without suites"
        raise UserError("harness doctor --noise", found, "general tasks", "name some under suites:")
    host = session.host(session.source)
    assert isinstance(host, ModelHost)
    engine = host.base.engine.partition("/")[2]
    arms: dict[str, Candidate] = {BATCH: _SmallerBatches(host, engine)}
    if engine != "plain":
        arms[LAYOUT] = HFCandidate(host.model, host.tokenizer, host.base.weights_digest, "plain")
    blocks, candidates = [(rows, 0) for rows in sets], [host.base, *arms.values()]
    again = reevaluate(session.progress, session.seconds, blocks, candidates, "noise: the base again")
    tasks = list[TaskNoise]()
    for rows, (usual, *varied) in zip(sets, again, strict=True):
        metric = rows.measured.primary
        pairs = {name: list(zip(usual, arm, strict=True)) for name, arm in zip(arms, varied, strict=True)}
        logprobs = [(a.gold_logprob, b.gold_logprob) for arm in pairs.values() for a, b in arm]
        gaps = [abs(a - b) for a, b in logprobs if a is not None and b is not None]
        # Items whose primary score moved, and the largest difference in log-likelihood.
        flips = {name: sum(is_flipped(a, b, metric) for a, b in arm) for name, arm in pairs.items()}
        tasks.append(TaskNoise(rows.measured.task.name, len(usual), flips, max(gaps, default=None)))
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
        tasks=tuple(tasks),
    )
    store.save_noise(session.store, noise)
    return noise

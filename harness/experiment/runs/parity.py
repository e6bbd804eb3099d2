"""Parity of an artefact with the run it was exported from: logits, answers, size and speed.

Invariant: what is compared is the run's weights in fp32; the floor is what the run's own rows differ from
that, so that flipped answers alone never speak against an artefact. `records.PARITY` says what each means.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness import comparison, store
from harness.evaluation import prompt_text
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.row_sets import RowSet, target_sets
from harness.evaluation.runner import open_and_fill, open_weights
from harness.evaluation.session import EngineSlot, Session
from harness.experiment.candidate_weights import find_stored_weights
from harness.models import artefacts
from harness.records import Run, SampleResult
from harness.stats import Array
from harness.training import Weights

_N_PROMPTS, _N_TOKENS = 50, 8  # test prompts, and tokens at their end whose next one is compared
_GIB = 2**30


def measure_parity(
    session: Session, candidate: ResolvedCandidate, weights: Weights, sets: Sequence[RowSet]
) -> dict[str, Any]:
    """Measure an artefact beside the run that it was exported from, as far as that is stored here.

    `sets` are the artefact's answered rows, those of the target's test split second.
    """
    path, test = Path(candidate.source.path or ""), sets[1]
    rows = test.read(session.store)
    busy_s = sum(row.compute_s for row in rows)
    found: dict[str, Any] = {"size_bytes": artefacts.count_bytes(path)}
    if busy_s:
        found["tokens_per_s"] = round(sum(row.n_output_tokens for row in rows) / busy_s, 2)
    texts = [row for s in sets if s.measured.task.kind == "bits_per_byte" for row in s.read(session.store)]
    scored = [
        (row.gold_logprob, row.gold_bytes) for row in texts if row.gold_bytes and row.gold_logprob is not None
    ]
    if scored:
        nats, n_bytes = (sum(column) for column in zip(*scored, strict=True))
        found["bits_per_byte"] = round(-nats / np.log(2) / n_bytes, 5)
    run_id = str(artefacts.read_export(path).get("run_id") or "")
    own = store.read_written_runs(session.store, [run_id]).get(run_id) if run_id else None
    if own is None or test.name not in own.rows:
        return found | ({"own_run": run_id} if run_id else {})
    found |= {"own_run": run_id, "n_answers": len(rows)} | _count_changes(session, own, test, rows)
    # The run's weights as its recipe is written now, if they are those of the run.
    of_run = session.candidates.get(own.candidate)
    if of_run is None or not of_run.method.makes_language_model or of_run.is_remote:
        return found
    own_weights = find_stored_weights(session, of_run, own.seed)
    if own_weights is None or own_weights.digest != own.weights_digest:
        return found
    return found | _compare_in_fp32(session, own, own_weights, weights, test)


def _count_changes(session: Session, own: Run, test: RowSet, rows: Sequence[SampleResult]) -> dict[str, int]:
    """Count the answers that differ from the run's, with the scores that were lost and won."""
    known = {row.example_id: row for row in store.read_rows(session.store, own.rows[test.name])}
    before = [known[row.example_id] for row in rows if row.example_id in known]
    if len(before) < len(rows):
        return {}
    changed = sum(a.text != b.text for a, b in zip(before, rows, strict=True))
    c = comparison.compare_rows(test.measured.primary, before, rows)
    return {"flipped": changed, "lost": len(c.lost), "won": len(c.gained)}


def _compare_in_fp32(
    session: Session, own: Run, own_weights: Weights, weights: Weights, test: RowSet
) -> dict[str, Any]:
    """Compare logits with those of the run in fp32, and count which of its own answers differ there."""
    session.unload()
    exact = replace(session, machine=session.machine._replace(precision="fp32"), slot=EngineSlot())
    recipe = session.candidates[own.candidate].recipe
    own_test = target_sets(exact, recipe, own_weights, own.seed)[1]
    texts: list[tuple[int, ...]] = []
    try:
        with open_and_fill(exact, own_weights, [own_test], f"{own.candidate} in fp32") as model:
            asked = [prompt_text(test.measured.task, e) for e in own_test.examples()[:_N_PROMPTS]]
            texts = [ids for one in model.encode_all(asked) if len(ids := one.context) >= _N_TOKENS]
            wanted = [*artefacts.list_logits(model, texts, _N_TOKENS)]
    finally:
        exact.unload()
    answers = {row.example_id: row.text for row in own_test.read(session.store)}
    rows = store.read_rows(session.store, own.rows[test.name])
    floor = {"floor": sum(answers.get(row.example_id, row.text) != row.text for row in rows)}
    with open_weights(session, weights) as model:
        found = artefacts.list_logits(model, texts, _N_TOKENS)
        pairs = [_compare_rows(a, b) for a, b in zip(wanted, found, strict=True)]
        peak = model.worker.peak_bytes if isinstance(model, artefacts.ArtefactCandidate) else 0
    gaps, divergences, agreements = (np.concatenate(column) for column in zip(*pairs, strict=True))
    return floor | {
        "n_positions": len(gaps),
        "logit_gap": round(float(gaps.max()), 5),
        "mean_kl": round(float(divergences.mean()), 6),
        "top1_agreement": round(float(agreements.mean()), 5),
        **({"peak_memory_gib": round(peak / _GIB, 3)} if peak else {}),
    }


def _compare_rows(run: Array, artefact: Array) -> tuple[Array, Array, Array]:
    """Return per position the largest gap of a logit, the KL divergence in nats, and whether both agree."""
    n = min(run.shape[1], artefact.shape[1])  # a vocabulary may be padded
    exact = [of[:, :n].astype(float) for of in (run, artefact)]
    p, q = (of - np.logaddexp.reduce(of, axis=-1, keepdims=True) for of in exact)
    gaps = np.abs(run[:, :n] - artefact[:, :n]).max(-1)
    return gaps, (np.exp(p) * (p - q)).sum(-1), p.argmax(-1) == q.argmax(-1)

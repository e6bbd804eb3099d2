"""Kinds of failure of a prompt: facts or behaviour, by which remedy helps on which slice.

Invariant: a remedy helps if its whole interval is above the prompt; an untagged slice says nothing.
"""

from collections.abc import Sequence

from harness import formatting
from harness.decision.results import CandidateFacts, Case, action_of, best

_REMEDIES = {
    (): "What kind of failure it is, is not shown: neither retrieval on knowledge nor a fine-tune on"
    " behaviour is clearly above the prompt.",
    ("knowledge",): "The prompt fails on facts, and retrieval fixes that.",
    ("behaviour",): "The prompt fails on behaviour (format, style, labels), and fine-tuning fixes that.",
    ("knowledge", "behaviour"): "The prompt fails on facts, which retrieval fixes, and on behaviour, which"
    " fine-tuning fixes: a hybrid can do both.",
}


def failure_sentences(case: Case) -> list[str]:
    """Tell missing facts from missing behaviour by the remedy that helps on each slice."""
    slices = list_measured_slices(case)
    if not slices:
        return []
    runs = [best_of(case, action) for action in ("prompt", "rag", "fine-tune", "hybrid")]
    shown = [run for run in runs if run is not None]
    return [*(_slice_text(name, shown) for name in slices), _REMEDIES[list_mended_slices(case)]]


def list_measured_slices(case: Case) -> tuple[str, ...]:
    """List on which of the slices `knowledge` and `behaviour` the prompt was measured."""
    prompt = best_of(case, "prompt")
    return tuple(s for s in ("knowledge", "behaviour") if prompt is not None and s in prompt.slices)


def list_mended_slices(case: Case) -> tuple[str, ...]:
    """List the slices on which their remedy helps: retrieval on `knowledge`, a fine-tune on `behaviour`.

    It helps if the lower bound of the remedy is above the upper bound of the prompt.
    """
    prompt = best_of(case, "prompt")
    remedies = {"knowledge": best_of(case, "rag"), "behaviour": best_of(case, "fine-tune")}
    return tuple(s for s in list_measured_slices(case) if prompt and _mends(s, prompt, remedies[s]))


def best_of(case: Case, action: str) -> CandidateFacts | None:
    """Return the candidate of a kind that is best on validation, among those on the experiment's base."""
    return best(f for f in case.facts if action_of(f) == action and not f.baseline)


def _mends(name: str, prompt: CandidateFacts, by: CandidateFacts | None) -> bool:
    if by is None or name not in by.slices:
        return False
    before, after = prompt.slices[name], by.slices[name]
    return after.low > before.high if after.unit.higher_is_better else after.high < before.low


def _slice_text(name: str, shown: Sequence[CandidateFacts]) -> str:
    runs = [f for f in shown if name in f.slices]
    scores = (f"{f.name} {formatting.score(f.slices[name].unit, *f.slices[name][:3])}" for f in runs)
    return f"On {name} (n = {formatting.count(runs[0].slices[name].n)}): {', '.join(scores)}."

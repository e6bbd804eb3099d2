"""Choice of strengths and ways, by what they reached on validation."""

from collections.abc import Sequence
from statistics import fmean

from harness.decision import CandidateFacts
from tests.studies.fronts.ways import PLAIN, way_of

N_BEST = 5
KEPT = 0.9  # of plain LoRA's gain over the prompt


def share_of_gain(facts: Sequence[CandidateFacts], of: CandidateFacts) -> float | None:
    """Return what a candidate's seeds gain over the prompt, as a share of what plain LoRA gains at its best.

    None where plain LoRA gains nothing, or one of the three is not measured.
    """
    seeds: dict[str, list[float]] = {}
    for f in facts:
        if f.target:
            seeds.setdefault(f.name, []).append(f.target.unit.sign * f.target.score)
    score = {name: fmean(scores) for name, scores in seeds.items()}
    plain = [value for name, value in score.items() if way_of(name) == PLAIN]
    if "prompt" not in score or of.name not in score or not plain or max(plain) <= score["prompt"]:
        return None
    return (score[of.name] - score["prompt"]) / (max(plain) - score["prompt"])


def choose(facts: Sequence[CandidateFacts]) -> list[str]:
    """Name the better strength of each of the best ways but plain LoRA, the best first.

    First come those that keep nine tenths of plain LoRA's gain, by what they keep of the base's abilities;
    then the others, by their gain.
    """
    rated = [(f.name, _rate(facts, f)) for f in facts if f.trained and way_of(f.name) != PLAIN]
    best: dict[str, str] = {}
    for name, _ in sorted(rated, key=lambda of: of[1], reverse=True):
        best.setdefault(way_of(name), name)
    return list(best.values())[:N_BEST]


def _rate(facts: Sequence[CandidateFacts], of: CandidateFacts) -> tuple[bool, float]:
    share = share_of_gain(facts, of)
    keeps = share is not None and share >= KEPT
    kept = of.verdict.macro.score if of.verdict and of.verdict.macro else float("-inf")
    return keeps, kept if keeps else (share if share is not None else float("-inf"))

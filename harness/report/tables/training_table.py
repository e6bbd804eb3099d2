"""Figures of trainings: one row a candidate, with what the curves of their losses say."""

from collections.abc import Sequence
from typing import Any

from harness import formatting
from harness.decision import CandidateFacts
from harness.records import TrainingRecord
from harness.report.document import Section
from harness.report.escape import clean
from harness.report.experiment_report import figure_text
from harness.report.plots import loss_curves
from harness.report.training_diagnosis import diagnose, forgetting_sentence

# Words for what a training measured, where the name of the figure does not say it.
_MEASURED = {
    "wall_s": "time",
    "train_loop_s": "time of the steps",
    "init_wall_s": "time of what it starts from",
    "n_tokens": "tokens",
    "tokens_per_s": "tokens a second",
    "n_steps": "steps",
    "n_skipped_steps": "steps whose gradients overflowed",
    "n_pairs": "pairs",
    "equal_rewards": "prompts with one reward for all answers",
    "kl": "KL to the reference, nats a token",
    "reward_model_accuracy": "held-out accuracy of the reward model",
    "n_heldout": "rows held out",
    "heldout_accuracy": "held-out accuracy",
    "heldout_margin": "held-out margin",
    "n_examples": "texts",
    "n_dropped_too_long": "rows too long, left out",
    "n_packs": "packs of rows",
    "n_processes": "processes",
    "batch_size": "rows at once",
    "accumulated_batches": "batches a step",
    "not_packed": "not packed, because it",
    "n_trainable": "parameters trained",
    "trainable_share": "share of the base's parameters",
    "size_bytes": "size on disk",
    "base_size_bytes": "size of the base on disk",
    "peak_memory_gib": "peak memory, GiB",
    "peak_includes": "peak memory includes",
    "waited_share": "share of the time that it waited for a processor",
    "fit_key": "key of the weights",
}
_NOT_MEASURED = ("sweep", "searched_by", "stands_on", "scan", "tracked", "learning_rate", "loss_scale")


def show_trainings(trained: Sequence[CandidateFacts]) -> Section:
    """Show the measured figures of each training run; one row a candidate."""
    figures = [_figures(f.training) for f in trained]
    names = list(dict.fromkeys(name for of in figures for name in of))
    columns = ["candidate", "training examples", "cost USD", *map(figure_title, names)]
    rows = [
        [
            f.label,
            formatting.count(f.n_train),
            formatting.usd(f.training_cost_usd),
            *(figure_text(name, of.get(name)) for name in names),
        ]
        for f, of in zip(trained, figures, strict=True)
    ]
    kinds = {loss_curves.of_preferences(f.training) for f in trained if loss_curves.smooth(f.training)}
    found = ((f.label, diagnose(f.training)) for f in trained)
    notes = [f"{label} {of.sentence}." for label, of in found if of]
    notes += [f"{f.label} {said}." for f in trained if (said := forgetting_sentence(f.training))]
    notes += [loss_curves.LIKELIHOOD] * (False in kinds) + [loss_curves.PREFERENCES] * (True in kinds)
    return Section("training", "Training", columns, rows, notes=notes)


def _figures(training: TrainingRecord) -> dict[str, Any]:
    """Return what is shown of a training: the loss without the order of its rows, and the overfitting gap."""
    found = {name: value for name, value in training.stored().items() if name not in _NOT_MEASURED}
    if mean := loss_curves.smooth(training):
        found["loss"] = mean
    gap = loss_curves.gap(training)
    return found if gap is None else {**found, "overfitting_gap": gap}


def figure_title(name: str) -> str:
    """Turn the name of a measured figure into words; a time carries its unit itself."""
    if name in _MEASURED:
        return _MEASURED[name]
    return clean((name if name.endswith("_per_s") else name.removesuffix("_s")).replace("_", " "))

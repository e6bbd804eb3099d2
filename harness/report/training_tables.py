"""Trainings in a report: figures, trials, sets of training rows, a diagnosis, and the picture of the losses.

Batches hold rows of similar length, so losses are averaged over a round: a quarter of an epoch, at most 50
steps, which has rows of every length. Source: Goodfellow, Bengio and Courville 2016, *Deep Learning*, section
5.2, for the terms of a diagnosis; its limits are our own (validation on 100 rows varies by less than 5 %).
"""

from collections.abc import Mapping, Sequence
from math import ceil, isfinite
from statistics import fmean

from harness import formatting
from harness.analysis.ablation import TrainingSets
from harness.analysis.candidate_facts import CandidateFacts
from harness.analysis.seeds import VARIANCE_UNKNOWN
from harness.formatting import RATE, UNKNOWN, Unit, count, percent, plain, points, score, seconds
from harness.records import TRAINING, Curve, TrackedPoint, TrainingRecord, Trial
from harness.report.document import Section
from harness.report.escape import clean
from harness.report.pictures import AxisScale, group, line, mark, marks, path, picture, text
from harness.report.wording import change_text, figure_text
from harness.stats import pareto_front
from harness.store import TrialRun

_TITLES = {figure.name: figure.heading for figure in TRAINING}
_NOT_MEASURED = ("sweep", "searched_by", "stands_on", "scan", "tracked", "learning_rate", "loss_scale")
_QUANTITY = (
    "rows are counted as trained: one that occurs twice or is sampled again counts each time; in brackets the"
    " labelled ones, where a mixture drew some again; tokens are those of all epochs"
)
_CHANGE = 0.05  # relative change of a loss that counts
_AHEAD = 1.5  # times the training loss; a validation loss above it speaks against more epochs
_KNOWN_BY_HEART = 0.1  # nats per token of the training rows; below this they are memorized
_AGAINST_OVERFITTING = (
    "fewer epochs, more rows or, of LoRA, a lower r and lora_alpha or lora_dropout may help"
)
LIKELIHOOD = (
    "Loss is the mean negative log-likelihood of the answers. Training loss is averaged over a round, in "
    "which rows of every length come by: a quarter of an epoch, at most 50 steps. The overfitting gap is the "
    "validation loss less that mean, where validation was last measured; above 0, rows trained on are known "
    "better than others."
)
PREFERENCES = (
    "The loss of a training on preferences is another one: that of DPO is −log σ of the reward margin, 0.69 "
    "where chosen and rejected answers are not told apart; that of a training on rewards says less than its "
    "reward. Validation loss is the same of the pairs held out; "
    "held-out accuracy is the share of them in which the chosen answer is preferred, and 50 % is a guess."
)
_ROUNDS, _LONGEST_ROUND = 4, 50  # at least so many rounds per epoch, at most so many steps per round
_WIDTH, _HEIGHT = 430.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 416.0, 40.0, 208.0
_LEAST_LOSS = 1e-3  # a smaller range is drawn as 0
LONGEST = 20  # cells of a title, which the legend follows


def show_trainings(trained: Sequence[CandidateFacts]) -> Section:
    """Show the measured figures of each training run, one row per candidate."""
    figures = []
    for training in (f.training for f in trained):
        values = {name: value for name, value in training.to_plain().items() if name not in _NOT_MEASURED}
        values |= {"loss": mean} if (mean := smooth(training)) else {}
        above_training = gap(training)
        figures.append(values if above_training is None else values | {"overfitting_gap": above_training})
    names = list(dict.fromkeys(name for values in figures for name in values))
    columns = ["candidate", "training examples", "cost USD", *map(figure_title, names)]
    rows = [
        [
            f.label,
            count(f.n_train),
            formatting.usd(f.training_cost_usd),
            *(figure_text(name, values.get(name)) for name in names),
        ]
        for f, values in zip(trained, figures, strict=True)
    ]
    kinds = {is_of_preferences(f.training) for f in trained if smooth(f.training)}
    diagnoses = ((f.label, diagnose(f.training)) for f in trained)
    notes = [f"{label} {diagnosis[1]}." for label, diagnosis in diagnoses if diagnosis]
    notes += [f"{f.label}: {sentence}" for f in trained if (sentence := compare_rates(f.training))]
    notes += [f"{f.label} {sentence}." for f in trained if (sentence := describe_forgetting(f.training))]
    notes += [LIKELIHOOD] * (False in kinds) + [PREFERENCES] * (True in kinds)
    return Section("training", "Training", columns, rows, notes=notes)


def figure_title(name: str) -> str:
    """Return a measured figure's name in words, without the unit of a time."""
    if name in _TITLES:
        return _TITLES[name]
    return clean((name if name.endswith("_per_s") else name.removesuffix("_s")).replace("_", " "))


def trials_section(training: TrainingRecord, metric: str, unit: Unit, label: str) -> Section:
    """Return the trials of a training's sweep or search in order, with the one that validation chose."""
    trials, searched_by = training.sweep, training.searched_by
    param_names = list(trials[0].params) if trials else []
    steps, is_bound = any(t.points for t in trials), any(t.forgetting is not None for t in trials)
    columns = [*param_names, *["steps"] * steps, f"validation {metric}"]
    columns += [*["forgetting on validation, %"] * is_bound, "time", "weights", ""]
    rows = []
    for trial in trials:
        failure = "failed" if trial.error else "diverged"
        result = failure if trial.validation is None else score(unit, trial.validation)
        forgot = UNKNOWN if trial.forgetting is None else percent(trial.forgetting)
        duration = seconds(trial.wall_s) if trial.wall_s else UNKNOWN
        weights = UNKNOWN if trial.validation is None else trial.fit_key or UNKNOWN
        outcome = trial.error or ("chosen" if trial.chosen else "")
        outcome = f"pruned at step {count(trial.pruned_at)}" if trial.is_pruned else outcome
        taken_steps = count(trial.points[-1][0]) if trial.points else UNKNOWN
        parts = [*[taken_steps] * steps, result, *[forgot] * is_bound, duration, weights, outcome]
        rows.append([*map(print_tried_value, trial.params.values()), *parts])
    by = f", proposed by {searched_by}" if searched_by else ""
    sentences = [f"{count(len(trials))} trials on validation rows{by}."] if searched_by else []
    if any(trial.is_pruned for trial in trials):
        whole = max(len(trial.points) for trial in trials)
        spent = sum((len(trial.points) or whole) / whole for trial in trials)
        sentences.append(f"With pruned ones they take as much training as {plain(spent)} whole trials.")
    if cap := max((t.most_forgetting for t in trials if t.most_forgetting is not None), default=None):
        bound = f"{percent(cap)} % on general items for validation"
        if any(t.forgetting is not None and t.forgetting <= cap for t in trials):
            sentences.append(f"The best was chosen among those that forgot at most {bound}.")
        else:
            sentences.append(f"The one that forgot least was chosen, as all forgot more than {bound}.")
    title = f"{'Search' if searched_by else 'Sweep'}: {label}"
    return Section("sweep", title, columns, rows, " ".join(sentences), label=label)


def compare_rates(training: TrainingRecord) -> str:
    """Describe at which rate of a sweep the loss fell fastest, and which was best without overfitting.

    Fastest: the lowest training loss, as mean of a round, halfway through the shortest training. Best: the
    lowest final validation loss of those that do not overfit. Empty for preferences and for fewer than two
    whole rates.
    """
    trained = [t for t in training.sweep if "learning_rate" in t.params and smooth(t) and not t.is_pruned]
    smoothings = {str(trial.params.get("label_smoothing_factor")) for trial in trained}
    rates = {trial.params["learning_rate"] for trial in trained}
    if len(rates) < 2 or len(smoothings) > 1 or is_of_preferences(training):
        return ""  # losses with other smoothing cannot be compared
    half = min(smooth(trial)[-1][0] for trial in trained) / 2
    losses = [min(point for point in smooth(trial) if point[0] >= half)[1] for trial in trained]
    lowest = min(losses)
    fastest = _params_text(trained[losses.index(lowest)].params)
    sentence = f"By step {count(ceil(half))} training loss fell fastest with {fastest}, to {plain(lowest)}"
    ends = [(curve[-1][1], trial) for trial in trained if (curve := numeric_points(trial.validation_loss))]
    if not ends:
        return f"{sentence}; there is no validation loss, so nothing says which overfits."
    records = [TrainingRecord(loss=t.loss, validation_loss=t.validation_loss) for _, t in ends]
    kinds = [diagnosis[0] if (diagnosis := diagnose(record)) else "" for record in records]
    n_overfit, n_rising, n = kinds.count("overfits"), kinds.count("rises"), count(len(ends))
    rising = f", {count(n_rising)} of {n} do not learn" if n_rising else ""
    sound_ends = [end for end, kind in zip(ends, kinds, strict=True) if kind not in ("overfits", "rises")]
    if not sound_ends:
        return f"{sentence}; all of them overfit or do not learn: a lower rate, {_AGAINST_OVERFITTING}."
    loss, best = min(sound_ends, key=lambda pair: pair[0])
    sentence += f"; best without overfitting is {_params_text(best.params)}, validation loss {plain(loss)}"
    return f"{sentence}; {count(n_overfit)} of {n} overfit{rising}."


def trial_line(run: TrialRun) -> str:
    """Describe in one line what a trial tried, and its result."""
    params_text = _params_text(run.trial.params)
    if run.state == "failed":
        return f"{params_text}: {run.run.error}"
    (metrics,) = run.run.metrics.values()
    unit = RATE if metrics[run.metric].is_rate else Unit(1.0, run.metric)
    result = f"{run.metric} {score(unit, run.trial.validation)}{' %' if unit.is_rate else ''} on validation"
    pruned = f", pruned at step {count(run.trial.pruned_at)}" if run.trial.is_pruned else ""
    return f"{params_text}: {result}{pruned}"


def _params_text(params: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {print_tried_value(value)}" for name, value in params.items())


def print_tried_value(value: object) -> str:
    """Print a value that was tried: a text in one line, promptings with their parameters."""
    if isinstance(value, dict):
        return " and ".join(
            f"{name}({', '.join(f'{key}={arg}' for key, arg in params.items())})" if params else name
            for name, params in value.items()
        )
    return "as written" if value is None else " ".join(str(value).split())


def sets_section(study: TrainingSets, unit: Unit) -> Section:
    """Return the table of the candidates, the reference first."""
    title = f"Training rows, quality against quantity: {study.method}"
    reached = ("score", "change", "p", "p corrected")
    columns = ("candidate", "trained on", "rows", "tokens", *reached, "labels USD", "training USD")
    looked = f"p corrected for {formatting.pluralize(study.n_tests, 'look')} (Benjamini-Hochberg)"
    seeds = "" if study.seed_variance_known else f"; {VARIANCE_UNKNOWN} (fewer than 3 seeds)"
    note = f"{title}: paired on test with {study.reference}, {looked}; {_QUANTITY}{seeds}"
    rows = []
    for member in study.sets:
        n_rows = count(member.n_rows)
        if member.n_labelled not in (None, member.n_rows):
            n_rows = f"{n_rows} ({count(member.n_labelled)})"
        score_cell = score(unit, member.score, *(member.estimate[1:3] if member.estimate else ()))
        change = "(reference)" if member.candidate == study.reference else change_text(member.difference)
        p_values = map(formatting.p_value, (member.p, member.p_adjusted))
        costs = map(formatting.usd, (member.label_cost_usd, member.training_cost_usd))
        trained = (member.candidate, member.source, n_rows, count(member.n_tokens))
        rows.append([*trained, score_cell, change, *p_values, *costs])
    return Section("training sets", title, columns, rows, notes=[note])


def diagnose(training: TrainingRecord) -> tuple[str, str] | None:
    """Return a training's kind and a sentence on it.

    Kinds are `rises`, `underfits`, `overfits`, `memorizes` and `fits`. None for preferences, smoothed labels,
    or fewer than two rounds of steps.
    """
    train, span = smooth(training), round_length(training)
    if is_of_preferences(training) or training.label_smoothing or len(train) < 2 * span:
        return None
    validation = numeric_points(training.validation_loss)
    first, before, last = train[span - 1][1], train[-1 - span][1], train[-1][1]
    if len(validation) > 1:
        step, best = min(validation, key=lambda point: point[1])
        final = validation[-1][1]
        then = [loss for at, loss in train if at <= step]
        if final > best * (1 + _CHANGE) and then and last < then[-1]:
            why = f"validation loss rose from {plain(best)} to {plain(final)} while training loss fell from"
            why += f" {plain(then[-1])} to {plain(last)}; {_AGAINST_OVERFITTING}"
            return "overfits", f"overfits after step {count(step)}: {why}"
    if last > first * (1 + _CHANGE):
        why = f"training loss rose from {plain(first)} to {plain(last)}"
        return "rises", f"does not learn: {why}; a lower learning rate may help, if the rows are alike"
    if last > max(first * (1 - _CHANGE), _KNOWN_BY_HEART):
        why = f"training loss went from {plain(first)} to {plain(last)}; a higher learning rate may help"
        return "underfits", f"underfits: {why}"
    if last > _KNOWN_BY_HEART and last < before * (1 - 2 * _CHANGE):
        why = f"training loss was still falling, from {plain(before)} to {plain(last)} in the last round"
        if validation and validation[-1][1] > _AHEAD * last:
            gap = f"far below a validation loss of {plain(validation[-1][1])}; more epochs may overfit"
            return "fits", f"learns its rows faster than the task: {why}, {gap}"
        return "underfits", f"underfits: {why}; more epochs may help"
    if validation and last < _KNOWN_BY_HEART and validation[-1][1] > 2 * last + _CHANGE:
        why = f"training loss {plain(last)}, validation loss {plain(validation[-1][1])}"
        return "memorizes", f"knows its training rows by heart: {why}; more rows would do more"
    why = f"training loss levelled off at {plain(last)}"
    why += f", validation loss {plain(validation[-1][1])}" if validation else ""
    why += ", which holds none of the rows replayed" if training.n_replayed else ""
    is_followed = len(validation) > 1  # one value cannot show that validation loss rises
    return "fits", f"{'neither underfits nor overfits' if is_followed else 'does not underfit'}: {why}"


def describe_forgetting(training: TrainingRecord) -> str:
    """Describe if a tracked training forgets, early (by half of its steps) or late; empty if not measured."""
    measured = [point for point in training.tracked if point.capability is not None]
    if not measured:
        return ""
    lost = [point for point in measured if point.high is not None and point.high < 0]
    if not lost:
        return f"is not seen to forget: capability {_capability(measured[-1])}"
    changes = [point.capability or 0.0 for point in lost]
    worst = lost[changes.index(min(changes))]
    first = next(point for point, change in zip(lost, changes, strict=True) if change <= min(changes) / 2)
    steps = training.n_steps or measured[-1].step
    when = "early" if 2 * first.step <= steps else "late"
    later = "" if first is worst else f", and {_capability(worst)}"
    return f"forgets {when}: capability {_capability(first)} of {count(steps)}{later}"


def front_sentence(name: str, training: TrainingRecord, sign: int = 1) -> str:
    """Name earlier steps of a training on the Pareto front; `sign` is −1 if lower scores are better."""
    target_points = [(p, p.target, p.capability) for p in training.tracked if p.target is not None]
    measured = [(p, sign * target, skill) for p, target, skill in target_points if skill is not None]
    if not measured:
        return ""
    front = [measured[i][0].step for i in pareto_front([(target, skill) for _, target, skill in measured])]
    end = training.n_steps or measured[-1][0].step
    earlier = sorted(step for step in front if step != end)
    if not earlier:
        return ""
    recipe = f"{{method: checkpoint, init_from: {name}, params: {{step: {earlier[0]}}}}}"
    steps = f"step{'s' * (len(earlier) > 1)} {', '.join(map(count, earlier))}"
    sentence = f"{steps} of its training on the front of target and capability"
    return f"{sentence}: {recipe} is such a candidate, without training"


def _capability(point: TrackedPoint) -> str:
    return f"{points(point.capability, point.low, point.high)} points at step {count(point.step)}"


def numeric_points(curve: Curve) -> list[tuple[float, float]]:
    """Keep the points of a curve whose value is a number."""
    return [(step, value) for step, value in curve if value is not None and isfinite(value)]


def smooth(training: TrainingRecord | Trial) -> list[tuple[float, float]]:
    """Average the training loss of each step with those before it, over a round."""
    return round_means(training.loss, round_length(training))


def round_means(curve: Curve, span: int) -> list[tuple[float, float]]:
    """Average each point of a curve with those before it, over `span` points."""
    numbers = numeric_points(curve)
    return [
        (numbers[i][0], fmean(value for _, value in numbers[max(0, i + 1 - span) : i + 1]))
        for i in range(len(numbers))
    ]


def round_length(training: TrainingRecord | Trial) -> int:
    """Count the logged steps of a round; the first validation ends an epoch, else all steps are one epoch."""
    train, validation = numeric_points(training.loss), numeric_points(training.validation_loss)
    epoch = sum(step <= validation[0][0] for step, _ in train) if validation else len(train)
    return max(1, min(epoch // _ROUNDS, _LONGEST_ROUND))


def gap(training: TrainingRecord) -> float | None:
    """Return the last validation loss less the training loss of the round before; None if not comparable."""
    validation = numeric_points(training.validation_loss)
    if not validation or training.label_smoothing:
        return None
    step, loss = validation[-1]
    before = [mean for at, mean in smooth(training) if at <= step]
    return loss - before[-1] if before else None


def is_of_preferences(training: TrainingRecord) -> bool:
    """Tell whether the loss is of preferences or rewards, not a likelihood of answers."""
    return bool(training.reward_margin or training.reward)


def curves(label: str, training: TrainingRecord, title: str) -> str:
    """Draw the loss on training and validation rows; empty without a curve; `title` has ≤ `LONGEST` cells."""
    train, validation = numeric_points(training.loss), numeric_points(training.validation_loss)
    if len(train) < 2:
        return ""
    all_points = [*train, *validation]
    x = AxisScale(0, max(step for step, _ in all_points), _LEFT, _RIGHT)
    losses = [loss for _, loss in all_points]  # below 0 in GRPO
    low, high = 1.05 * min(0.0, *losses), 1.05 * max(0.0, *losses)
    y = AxisScale(low, high if high - low > _LEAST_LOSS else 1.0, _BOTTOM, _TOP)
    name = "preference loss" if is_of_preferences(training) else "loss"
    body = [text(0, 14, title, "strong")]
    body += [line(150, 10, 170, 10, "train"), text(175, 14, "training, mean of a round", "small")]
    if validation:
        body += [mark("diamond", 338, 10, "validated"), text(350, 14, "validation", "small")]
    body += [text((_LEFT + _RIGHT) / 2, _BOTTOM + 36, "step", "head", "middle"), text(0, 34, name, "head")]
    values, step_of_marks = marks(y.low, y.high, 4)
    for value in values:
        body.append(line(_LEFT, y(value), _RIGHT, y(value), "zero" if value == 0 else "grid"))
        body.append(text(_LEFT - 8, y(value) + 4, formatting.tick(value, step_of_marks), "tick", "end"))
    values, step_of_marks = marks(x.low, x.high, 5)
    ticks = ((x(value), formatting.tick(value, step_of_marks)) for value in values)
    body += [text(at, _BOTTOM + 18, tick, "tick", "middle") for at, tick in ticks]
    body.append(path(((x(step), y(loss)) for step, loss in train), "batch"))
    body.append(path(((x(step), y(loss)) for step, loss in smooth(training)), "train"))
    body += [path(((x(step), y(loss)) for step, loss in validation), "validation")] if validation else []
    for step, loss in validation:
        sentence = f"step {count(step)}: validation loss {plain(loss)}"
        label_text = text(x(step) - 9, y(loss) - 9, plain(loss), "over small", "end")
        body.append(group(sentence, mark("diamond", x(step), y(loss), "validated"), label_text))
    return picture(_WIDTH, _HEIGHT, f"{name.capitalize()} of {label} by step", body)

"""Ranking of answers: by a metric, a Python file, a reward model or a judge; a higher score is better.

Invariant: whatever ranks, an answer that cannot be scored has no score and is in no pair; what ranks is named
by all that its scores depend on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness import plugins
from harness.errors import Problem, UserError, did_you_mean, refuse
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.grade_costs import GradeAccount
from harness.evaluation.judges import GradeReader, JudgedMetric, key_problems
from harness.evaluation.judging_stage import grade_all
from harness.evaluation.row_sets import prompting_step
from harness.evaluation.session import Session
from harness.experiment.weights.candidate_weights import ensure_weights
from harness.metrics import item_scores
from harness.metrics import version as metric_version
from harness.provenance import digest_code
from harness.records import Example, Output, is_unspaced
from harness.spec import is_path, metric_name, metric_plugin
from harness.training import Reward, reward_problems, rewards_of, score_answers

Score = Callable[[Sequence[Example], Sequence[str]], list[float | None]]


class Ranking(NamedTuple):
    """Scores of answers to examples, and in the words of a manifest all that they depend on.

    `cost_usd` says what the scores so far cost; None where nobody knows.
    """

    by: Mapping[str, Any]
    score: Score
    cost_usd: Callable[[], float | None] = lambda: 0.0


def open_ranking(
    session: Session, written: str, left_usd: Callable[[], float | None] = lambda: None
) -> Ranking:
    """Open what ranks: a candidate that makes a reward model, a judge of the target, a metric or a file.

    Without a name it is the target's primary metric. Weights of a reward model are made here where none are
    stored. A judge may be paid as much as `left_usd` says when it is asked, None for anything.

    Raises:
        UserError: there is no such candidate, judge or metric, or it cannot score a text alone.
    """
    name = metric_name(written) if written else session.target.primary.name
    if written in session.candidates:
        return _rank_by_reward_model(session, session.candidates[written])
    if name in session.target.judged:
        return _rank_by_judge(session, session.target.judged[name], left_usd)
    _refuse_unknown(session, written or name)
    task, where = session.target.task, "--rank"
    refuse(reward_problems(written or name, task, session.target.items.train, where))
    unspaced = is_unspaced(text for e in session.target.items.train for text in e.references)
    content = digest_code(Path(written)) if is_path(written) else metric_version(written or name, unspaced)
    score = rewards_of(Reward(written=written or name, task=task))
    return Ranking({"metric": name, "version": content}, score)


def _refuse_unknown(session: Session, written: str) -> None:
    known = {*plugins.names("metrics"), *session.target.judged}
    known |= {name for name, one in session.candidates.items() if not one.method.answers}
    if not is_path(written) and metric_plugin(written) not in known:
        expected = "a metric, a Python file, a judge of the target, or a candidate that makes a reward model"
        raise UserError(Problem("--rank", f"unknown {written!r}", expected, did_you_mean(written, known)))


def _rank_by_reward_model(session: Session, candidate: ResolvedCandidate) -> Ranking:
    if candidate.method.answers:
        able = " or ".join(plugins.methods(makes="reward"))
        found = f"{candidate.name}, whose method {candidate.source.method} makes no reward model"
        raise UserError(Problem("--rank", found, "a candidate that makes one", f"one with the method {able}"))
    seed = session.first_seed
    weights = ensure_weights(session, candidate, seed)
    step = prompting_step(session, candidate.source, seed)
    folder = weights.folder
    assert folder is not None, "a reward model is trained into a folder"

    def score(examples: Sequence[Example], answers: Sequence[str]) -> list[float | None]:
        session.unload()  # the reward model has a base of its own
        chat = session.target.task.chat_template
        prompts = [step(example) for example in examples]
        model = folder / weights.kind
        return [*score_answers(model, candidate.trained_base, session.machine, prompts, answers, chat)]

    return Ranking({"reward": candidate.name, "weights": weights.digest}, score)


def _rank_by_judge(session: Session, judged: JudgedMetric, left_usd: Callable[[], float | None]) -> Ranking:
    refuse([*key_problems([judged]), *_price_problems(judged, left_usd())])
    metric, account = session.target.metrics[judged.metric], GradeAccount(judged)

    def read(examples: Sequence[Example], answers: Sequence[str]) -> tuple[GradeReader, list[float | None]]:
        reader = GradeReader(session.target.task.name, {judged.metric: judged}, examples)
        bound = reader.bind({judged.metric: metric})[judged.metric]
        parts = [bound.score(Output(text), e) for e, text in zip(examples, answers, strict=True)]
        sign = metric.unit.sign
        return reader, [
            None if p is None else sign * float(item_scores(metric, np.array([p]))[0]) for p in parts
        ]

    def score(examples: Sequence[Example], answers: Sequence[str]) -> list[float | None]:
        reader, scores = read(examples, answers)
        account.count(reader.keys)
        if not reader.ungraded:
            return scores
        limited = judged._replace(limit=account.limit(left_usd()))
        grade_all(session, [one._replace(judged=limited) for one in reader.ungraded])
        return read(examples, answers)[1]

    by = {"judge": judged.metric, "books": [judge.book for judge in judged.judges]}
    hour = session.experiment.decide.device_hour_usd
    return Ranking(by, score, lambda: account.cost_usd(session.machine.device, hour))


def _price_problems(judged: JudgedMetric, left_usd: float | None) -> Iterator[Problem]:
    """Yield the judges without prices, where what they are paid is limited."""
    for judge in judged.judges if left_usd is not None else ():
        if judge.settings and judge.prices is None:
            step = "usd_per_million_tokens: {input: …, output: …} in the rubric"
            found = f"{judged.metric} by {judge.name}, an endpoint without prices"
            yield Problem("--max-cost", found, "prices to hold it against", step)

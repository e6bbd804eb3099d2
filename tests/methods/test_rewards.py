"""Reward models: tell chosen answers from rejected ones, train policies, choose answers; in harness.yaml."""

import math
from statistics import fmean
from types import SimpleNamespace

import pytest
import tiny_experiment
import tiny_methods
import tiny_model
from tiny_methods import CPU, Interrupted, stop_at

from harness import store
from harness.errors import CandidateFailed, UserError
from harness.experiment.candidate_weights import find_stored_weights
from harness.experiment.run_remarks import describe_rewards
from harness.methods import reward
from harness.methods.rewarded import Grpo, Rloo
from harness.models.hub import resolve
from harness.records import Example, TrainingRecord, ValidationReward
from harness.spec import Task, TaskData
from harness.store import Store
from harness.training import CHECKPOINTS, Reward, open_scorer
from harness.training import reinforcement as rl

pytestmark = pytest.mark.usefixtures("own_cache")


TASK = Task(name="letters", data=TaskData(), labels=("late", "money"), metrics=("exact_match",))


@pytest.fixture(scope="module")
def reward_weights(tiny, tmp_path_factory, own_cache):
    params = {"r": 4, "learning_rate": 0.02, "num_train_epochs": 8, "warmup_steps": 0}
    folder, pairs = tmp_path_factory.mktemp("reward"), tiny_methods.pairs(slice(0, 3))
    return tiny_methods.fit(tiny, folder, reward, params, pairs=pairs)


def test_a_reward_model_is_measured_on_held_out_pairs(reward_weights):
    figures = reward_weights.training
    assert reward_weights.kind == "reward"
    assert (figures.n_pairs, figures.n_heldout) == (14, 4)
    assert len(figures.heldout_accuracy) == 8
    assert all(0 <= share <= 1 for _, share in figures.heldout_accuracy)
    assert figures.reward_accuracy[-1][1] > 0.9
    assert figures.loss[-1][1] < math.log(2) / 2
    assert {p.name for p in reward_weights.folder.iterdir()} == {"reward", CHECKPOINTS}


def write_reward(folder, body):
    """Write a file of rewards; returns the reward for a context."""
    (folder / "own.py").write_text(f"def reward(prompts, completions, references):\n    {body}\n")
    return Reward(written=str(folder / "own.py"), task=TASK)


def test_a_reward_model_opened_anew_prefers_the_chosen_answers_it_was_trained_on(tiny, reward_weights):
    """Adapter and head are both saved: a new random head would be right in half of the cases."""
    pairs = tiny_methods.pairs(slice(0, 3))
    score = open_scorer(reward_weights.folder / "reward", resolve(str(tiny)), CPU, True)
    chosen, rejected = (
        score(pairs, [p.references[0] for p in pairs]),
        score(pairs, [p.rejected for p in pairs]),
    )
    wins = [more > less for more, less in zip(chosen, rejected, strict=True)]
    assert sum(wins) >= 14


SHORT = "return [-float(len(text)) for text in completions]"


@pytest.mark.e2e
@pytest.mark.parametrize("module", [pytest.param(Rloo, marks=pytest.mark.weekly), Grpo])
def test_a_policy_learns_what_a_file_rewards_and_its_divergence_is_logged(tiny, tmp_path, module):
    context = tiny_methods.context(tiny, tmp_path / "fit", reward=write_reward(tmp_path, SHORT))
    params = module.Params(
        r=4, learning_rate=0.05, lr_scheduler_type="constant", warmup_steps=0, num_train_epochs=8,
        per_device_train_batch_size=24, max_completion_length=6, beta=0.001,
    )  # fmt: skip
    weights = module.METHOD.fit(context, params)
    rewards = [value for _, value in weights.training.reward]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:2]) / 2 + 1
    assert weights.training.kl[0][1] == pytest.approx(0, abs=1e-4)
    assert abs(weights.training.kl[-1][1]) > 1e-3
    assert weights.training.n_tokens > 0
    validated = weights.training.validation_rewards
    assert len(validated) == len(context.validation)
    assert fmean(item.after for item in validated) > fmean(item.before for item in validated)
    assert not any(p.is_dir() for p in (weights.folder / "adapter").iterdir())


@pytest.mark.e2e
def test_a_policy_that_was_stopped_in_its_second_epoch_reads_the_prompts_of_that_epoch(tiny, tmp_path):
    params = {"r": 2, "learning_rate": 0.05, "num_train_epochs": 2, "num_iterations": 2}
    params |= {"max_completion_length": 4, "per_device_train_batch_size": 8}

    def fit(folder, stop=None):
        extras = {"reward": write_reward(tmp_path, SHORT), "advance": stop_at(stop)}
        return tiny_methods.fit(tiny, tmp_path / folder, Grpo, params, **extras)

    whole = fit("whole")
    with pytest.raises(Interrupted):
        fit("cut", stop=whole.training.n_steps - 1)
    again = fit("cut")
    assert again.training.reward == whole.training.reward
    assert again.digest == whole.digest


def example(reference):
    return Example("1", ({"role": "user", "content": "Where?"},), (reference,), ("late", "money"))


def test_a_metric_rewards_each_answer_and_one_that_is_better_when_low_with_its_sign_turned():
    from harness.metrics import load_metrics

    exact, refusal = (rl.rewards_of(Reward(written=name, task=TASK)) for name in ("exact_match", "refusal"))
    assert [*exact([example("late")] * 2, ["late", "money"])] == [1.0, 0.0]
    sign = load_metrics(TASK.model_copy(update={"metrics": ("refusal",)}))["refusal"].unit.sign
    assert refusal([example("late")], ["I cannot help with that."]) == [sign * 1.0]


@pytest.mark.parametrize(
    ("written", "content", "said"),
    [
        ("bits_per_byte", None, "needs more than the text of an answer"),
        ("mine.py", "x = 1", "no function 'reward'"),
        ("mine.py", "1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_reward_that_cannot_be_given_is_refused_before_anything_runs(tmp_path, written, content, said):
    if content is not None:
        (tmp_path / written).write_text(content)
        written = str(tmp_path / written)
    (problem,) = rl.reward_problems(written, TASK, [example("late")], "candidate a: reward")
    assert said in problem.found


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return [1.0]", "returned 1 rewards for 2 answers"),
        ("return [1.0, 'good']", "returned 'good'"),
        ("return [1 / 0]", "reward raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_returns_no_rewards_fails_its_candidate_by_name(tmp_path, body, said):
    scored = rl.rewards_of(write_reward(tmp_path, body))
    with pytest.raises(CandidateFailed, match=said) as error:
        scored([example("late")] * 2, ["late", "money"])
    assert "own.py" in str(error.value)


@pytest.mark.e2e
def test_answers_of_which_none_can_be_scored_move_nothing_and_leave_a_gap_in_the_curve(tiny, tmp_path):
    params = {"r": 2, "max_steps": 1, "per_device_train_batch_size": 8, "max_completion_length": 4}
    unscored = write_reward(tmp_path, "return [None] * len(completions)")
    trained = tiny_methods.fit(tiny, tmp_path / "fit", Grpo, params, reward=unscored).training
    assert [value for _, value in trained.reward] == [None]


def rewards_of_prompts(after):
    """Changes of after − 0.1, plus and minus 0.1: the standard error is 0.1 / √5, t of 5 degrees of freedom 2.571."""
    return tuple(ValidationReward(f"{i}", 0.1, after + 0.1 * (-1) ** i) for i in range(6))


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"reward": ((1, None), (2, None)), "equal_rewards": ((1, 0.0), (2, 0.0))}, "no answer of its 2 steps"),
        ({"reward": ((1, 1.0), (2, 1.0)), "equal_rewards": ((1, 1.0), (2, 0.5))}, "75 % of the prompts had one"),
        ({"reward": ((1, 1.0), (2, 0.5)), "equal_rewards": ((1, 0.5), (2, 0.25))}, None), ({}, None),
        ({"validation_rewards": rewards_of_prompts(0.9)}, "6 validation prompts 0.100 before and 0.900 after the"),
        ({"validation_rewards": rewards_of_prompts(0.15)}, "which is within its noise"),
        ({"heldout_accuracy": ((9, 0.9),), "n_heldout": 30}, "policy: rates the chosen answer higher in 90.0 [74, 97] %"),
        ({"reward_model_accuracy": 0.6, "n_heldout": 30}, "60.0 [42, 75] % of 30 held-out pairs, which may be ch"),
    ],
)  # fmt: skip
def test_a_training_with_little_to_learn_from_its_rewards_is_remarked(figures, said):
    run = SimpleNamespace(candidate="policy", training=TrainingRecord(**figures))
    remarks = list(describe_rewards(run.candidate, run.training))
    assert len(remarks) == (said is not None)
    assert all(said in remark for remark in remarks)


CANDIDATES = """\
  prompt: {method: base}
  judge: {method: reward, params: {r: 2, learning_rate: 0.01, max_length: 200}}
  grpo:
    method: grpo
    reward: judge
    params: {r: 2, learning_rate: 0.01, max_steps: 1, max_completion_length: 4, max_length: 200}
"""


def write_experiment(folder, tiny, candidates=CANDIDATES):
    return tiny_experiment.write(folder, tiny, candidates, pairs=tiny_methods.pair_rows(slice(0, 4)))


@pytest.mark.e2e
def test_a_reward_model_is_made_first_and_stands_in_no_comparison(tiny, tmp_path, harness):
    report = tiny_experiment.run(write_experiment(tmp_path, tiny))
    assert {facts.name for facts in report.facts} == {"prompt", "grpo"}
    training = tiny_experiment.runs_of(tmp_path / "harness.yaml")["grpo"].training
    assert 0 <= training.reward_model_accuracy <= 1
    assert len(training.stands_on) == 1
    assert training.init_wall_s > 0
    assert len(training.reward) == len(training.kl) == 1
    stderr = harness("train", "judge", cwd=tmp_path, check=0).stderr
    assert "judge: rates the chosen answer higher in" in stderr


def test_a_reward_model_of_another_tokenizer_or_a_metric_of_more_than_an_answer_is_refused(tiny, tmp_path):
    other_base = tiny_model.build(tmp_path / "other", adds_bos=True)
    candidates = CANDIDATES.replace("{method: reward, ", f"{{method: reward, base_model: {other_base}, ")
    with pytest.raises(UserError, match=r"judge, a reward model on .*other, whose tokenizer is another"):
        tiny_experiment.run(write_experiment(tmp_path, tiny, candidates))
    assert not list((tmp_path / "runs").glob("weights/*"))
    candidates = CANDIDATES.replace("reward: judge", "reward: bits_per_byte")
    with pytest.raises(UserError, match="needs more than the text of an answer"):
        tiny_experiment.run(write_experiment(tmp_path, tiny, candidates))


CHOICES = """\
  judge: {method: reward, params: {r: 2, learning_rate: 0.01, max_length: 200}}
  first: {decoding: {temperature: 1.0, samples: 3}}
  best: {decoding: {temperature: 1.0, samples: 3, choose: best, by: judge}}
"""
OVERRIDES = ("suites=[]", "target.labels=[]", "target.metrics=[exact_match]", "target.truncated_scores=true")


@pytest.fixture(scope="module")
def file_and_report(tiny, tmp_path_factory):
    """An experiment compared once; the cache of its fixtures is left alone."""
    path = write_experiment(tmp_path_factory.mktemp("reward"), tiny, CHOICES)
    return path, tiny_experiment.run(path, *OVERRIDES)


@pytest.mark.e2e
def test_the_reward_model_is_made_first_and_its_choice_counts(file_and_report):
    path, report = file_and_report
    assert {facts.name for facts in report.facts} == {"first", "best"}
    session = tiny_experiment.session(path, *OVERRIDES)
    weights = find_stored_weights(session, session.candidates["judge"], 0)
    at, digest = Store(path.parent / "runs"), tiny_experiment.runs_of(path)["best"].rows["letters/test"]
    rows, answers = store.read_rows(at, digest), store.read_drawn(at, digest)
    items = {example.id: example for example in session.target.items.test}
    for row in rows:
        texts = [answer.text for answer in answers[row.example_id]]
        base, chat = session.candidates["judge"].trained_base, session.target.task.chat_template
        score = open_scorer(weights.folder / "reward", base, session.machine, chat)
        scores = score([items[row.example_id]] * 3, texts)
        stored = [answer.parts["reward:judge"][0] for answer in answers[row.example_id]]
        assert stored == pytest.approx(scores, abs=1e-4)
        able = [k for k, answer in enumerate(answers[row.example_id]) if answer.status == "ok"] or range(3)
        assert row.text == texts[max(able, key=lambda k: (stored[k], -k))]
    assert any(len({answer.text for answer in samples}) > 1 for samples in answers.values())

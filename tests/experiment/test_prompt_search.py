"""Prompts of a candidate without training: grids, sweeps and searches on validation, a model's proposals."""

import pytest
import tiny_experiment
from openai_server import Rule, ServerAnswer, serve_model
from tiny_experiment import runs_of

from harness import config
from harness.errors import IncompatibleRuns
from harness.experiment import Scope, compare, find_stored_runs, in_order, prepare_session, report_stored
from harness.experiment.study import load_study
from harness.experiment.written_rows import PromptProposal, prepare_proposal
from harness.lifecycle.release import candidate_runs
from harness.progress import SilentProgress
from harness.records import parse_json
from harness.report import experiment_document, markdown

pytestmark = pytest.mark.usefixtures("own_cache")

HARNESS = (
    tiny_experiment.DESK
    + """\
  name: desk
  data: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  metrics: [exact_match]
  labels: ["yes", "no"]
candidates:
  plain: {{method: endpoint, params: {{base_url: {url}, model: tiny, protocol: chat}}}}
  best:
    method: endpoint
    params: {{base_url: {url}, model: tiny, protocol: chat}}
    {tried}
"""
)
SWEEP = """sweep:
      system: [null, Shout., Whisper.]
      template: ["{prompt}", "Think step by step. {prompt}"]
      prompting: [zero_shot, {few_shot: {shots: 2}}]"""


def answer(messages):
    """Answer rightly if asked in one way, and wrongly otherwise."""
    system = next((m["content"] for m in messages if m["role"] == "system"), "")
    has_shots = len(messages) > 2
    text = messages[-1]["content"]
    right = "yes" if "even" in text else "no"
    return right if system == "Whisper." and "step by step" in text and has_shots else "neither"


def write(folder, url, model, tried):
    def ask(name, i):
        word, label = (("even", "yes"), ("odd", "no"))[i % 2]
        return {"prompt": f"{name} {i}: {word}?", "reference": label}

    tiny_experiment.write_splits(folder, (8, 6, 10), ask)
    path = folder / "harness.yaml"
    path.write_text(HARNESS.format(model=model, url=url, tried=tried))
    return path


@pytest.fixture(scope="module")
def sweep_results(tiny, tmp_path_factory):
    """Run a sweep of twelve prompts behind a server; returns its file, both reports, and their requests."""
    folder, requests = tmp_path_factory.mktemp("prompts"), []

    def note_answer(messages):
        requests.append(messages)
        return answer(messages)

    with serve_model(Rule(note_answer)) as server:
        path = write(folder, server.url, tiny, SWEEP)
        report = compare(path)
        first = len(requests)
        again = compare(path)
    return path, report, again, requests[:first], requests[first:]


def test_the_prompt_that_is_best_on_validation_alone_answers_the_test_items(sweep_results):
    _, report, *_ = sweep_results
    facts = {f.name: f for f in report.facts}
    assert (facts["plain"].target.score, facts["best"].target.score) == (0.0, 1.0)
    (chosen,) = (trial for trial in facts["best"].training.sweep if trial.chosen)
    assert chosen.params == {
        "system": "Whisper.",
        "template": "Think step by step. {prompt}",
        "prompting": {"few_shot": {"shots": 2}},
    }
    assert len(facts["best"].training.sweep) == 12
    _, _, _, requests, _ = sweep_results
    on_test = [m for m in requests if "test " in m[-1]["content"]]
    with_system = [m for m in on_test if m[0]["role"] == "system"]
    assert {m[0]["content"] for m in with_system} == {"Whisper."}
    assert all("step by step" in m[-1]["content"] and len(m) == 6 for m in with_system)
    assert {len(m) for m in on_test if m[0]["role"] != "system"} == {1}, "the plain prompt's"
    path, *_ = sweep_results
    recipe = runs_of(path)["best"].recipe
    assert (recipe["system"], recipe["prompting"]) == ("Whisper.", {"few_shot": {"shots": 2}})


def test_a_second_compare_asks_nobody_and_says_the_same(sweep_results):
    _, report, again, _, asked_again = sweep_results
    assert asked_again == []
    assert [f.training.sweep for f in again.facts] == [f.training.sweep for f in report.facts]
    assert [f.run_id for f in again.facts] == [f.run_id for f in report.facts]


def test_every_try_is_shown_and_a_choice_is_read_from_stored_answers_until_the_sweep_changes(sweep_results):
    path, *_ = sweep_results
    session = prepare_session(loaded := config.load(path), Scope(), SilentProgress())
    page = markdown(experiment_document(report_stored(session, loaded.selected)))
    assert "Sweep: best" in page
    assert page.count("| Whisper. |") == 4
    assert "few_shot(shots=2) was the best of 12 trials on validation" in page

    assert session.candidates["best"].recipe.system == "Whisper."
    assert all(find_stored_runs(session, in_order(session.candidates, loaded.selected)))
    more = config.load(path, ["candidates.best.sweep.system=[null, Shout., Whisper., Sing.]"])
    session = prepare_session(more, Scope(), SilentProgress())
    assert session.candidates["best"].searches_prompts
    (plain, best) = find_stored_runs(session, in_order(session.candidates, more.selected))
    assert plain
    assert not best
    (run,) = candidate_runs(load_study(config.load(path)), "best")
    assert run.recipe["system"] == "Whisper."
    with pytest.raises(IncompatibleRuns, match="only runs of another recipe"):
        candidate_runs(load_study(more), "best")


@pytest.mark.e2e
def test_a_search_asks_a_stated_number_of_prompts(tiny, tmp_path, own_cache):
    systems = ", ".join(f"S{i}." for i in range(9))
    tried = (
        f"search: {{system: [null, {systems}], template: ['{{prompt}}', 'Now: {{prompt}}']}}\n    trials: 4"
    )
    with serve_model(Rule(answer)) as server:
        report = compare(write(tmp_path, server.url, tiny, tried))
    (best,) = (f for f in report.facts if f.name == "best")
    assert len(best.training.sweep) == 4
    assert best.training.searched_by.startswith("TPE of Optuna")


GRID = """\
  prompt:
    system: [null, Answer in one word., "Answer in one word, or not at all."]
    template: ["{prompt}", "{prompt} Think."]
  lora: {method: base, answer: [generate, rank]}
"""


def test_lists_of_texts_make_a_candidate_each(tiny, tmp_path):
    grid = config.load(tiny_experiment.write(tmp_path, tiny, GRID)).experiment.candidates
    assert list(grid) == [
        "prompt[system=1-none,template=1-prompt]",
        "prompt[system=1-none,template=2-prompt-think]",
        "prompt[system=2-answer-in-one,template=1-prompt]",
        "prompt[system=2-answer-in-one,template=2-prompt-think]",
        "prompt[system=3-answer-in-one,template=1-prompt]",
        "prompt[system=3-answer-in-one,template=2-prompt-think]",
        "lora[answer=generate]",
        "lora[answer=rank]",
    ]
    last = grid["prompt[system=3-answer-in-one,template=2-prompt-think]"]
    assert (last.system, last.template) == ("Answer in one word, or not at all.", "{prompt} Think.")
    assert grid["prompt[system=1-none,template=1-prompt]"].system is None


class Proposer(Rule):
    """A model that follows the requested beginning; "Read" and "Answer" give the same text."""

    def chat(self, messages, body):
        start = messages[-1]["content"].rpartition("Begin it with: ")[2].splitlines()[0]
        text = "Sort the: letter" if start in ("Read", "Answer") else f'{start} a clerk, "quoted"\nwho sorts.'
        return ServerAnswer(text, n_prompt=50, n_new=20)


def write_proposing(folder, tiny, url):
    teacher = f"{{base_url: {url}, model: tiny, protocol: chat, max_retries: 0, usd_per_million_tokens: {{input: 1000, output: 1000}}}}"
    return tiny_experiment.write(
        folder, tiny, f"  large: {{method: endpoint, role: baseline, params: {teacher}}}\n"
    )


def test_texts_are_proposed_once_each_from_training_rows_alone(tiny, tmp_path):
    with serve_model(Proposer(None)) as server:
        session = tiny_experiment.session(write_proposing(tmp_path, tiny, server.url))
        proposal = prepare_proposal(session, "large", PromptProposal(n=4, n_examples=3)).send()
        assert len(server.asked) == 4
        assert proposal.texts == (
            'You are a clerk, "quoted"\nwho sorts.',
            "Sort the: letter",
            'Your task is a clerk, "quoted"\nwho sorts.',
        )
        sent = "\n".join(body["messages"][-1]["content"] for _, body in server.asked)
        shown_prompts = {e.id: e.prompt for e in session.target.items.train if e.prompt in sent}
        assert set(shown_prompts) == set(proposal.provenance["examples"])
        assert len(shown_prompts) == 3
        evaluated = [*session.target.items.validation, *session.target.items.test]
        assert not any(e.prompt in sent for e in evaluated)
        assert "late, money" in sent
        assert proposal.provenance["spent"]["cost_usd"] == pytest.approx(4 * 0.07)
        prepare_proposal(session, "large", PromptProposal(n=4, n_examples=3)).send()
        assert len(server.asked) == 4  # stored answers are used


def test_the_file_is_a_grid_that_an_experiment_takes(tiny, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serve_model(Proposer(None)) as server:
        path = write_proposing(tmp_path, tiny, server.url)
        planned = command("data", "propose-prompts", "large", "--n", "3", "--dry-run", "--json")
        plan = parse_json(planned[1])
        assert (planned[0], server.asked, plan["requests"], plan["known"]) == (0, [], 3, 0)
        assert plan["cost_usd"] == pytest.approx((plan["read"] + 3 * 200) / 1000)
        arguments = ("data", "propose-prompts", "large", "--n", "3", "--out", "proposed.yaml")
        code, stdout, error = command(*arguments)
        assert code == 0, error
        assert "Sort the: letter" in stdout
        text = (tmp_path / "proposed.yaml").read_text()
        assert '# proposer: "large"' in text
        path.write_text(path.read_text() + text.partition("candidates:\n")[2])
        candidates = config.load(path).experiment.candidates
        assert [candidates[name].system for name in candidates if name.startswith("proposed[")] == [
            None,
            'You are a clerk, "quoted"\nwho sorts.',
            "Sort the: letter",
            'Your task is a clerk, "quoted"\nwho sorts.',
        ]
        assert command(*arguments)[0] == 2
        assert (tmp_path / "proposed.yaml").read_text() == text

"""System texts that a model proposes: from training rows alone, each once, as a grid that an experiment takes."""

import pytest
import tiny_experiment
from openai_server import Rule, ServerAnswer, serve_model

from harness import config
from harness.config import load
from harness.errors import CandidateFailed
from harness.experiment import Scope, prepare_session
from harness.experiment.distilled_rows import PromptProposal, propose_prompts
from harness.progress import SilentProgress
from harness.records import parse_json

pytestmark = pytest.mark.usefixtures("own_cache")


class Proposer(Rule):
    """A model that begins as it is told; "Read" and "Answer" give the same text."""

    def chat(self, messages, body):
        start = messages[-1]["content"].rpartition("Begin it with: ")[2].splitlines()[0]
        text = "Sort the: letter" if start in ("Read", "Answer") else f'{start} a clerk, "quoted"\nwho sorts.'
        return ServerAnswer(text, n_prompt=50, n_new=20)


def write(folder, tiny, url):
    teacher = f"{{base_url: {url}, model: tiny, protocol: chat, max_retries: 0, usd_per_million_tokens: {{input: 1000, output: 1000}}}}"
    return tiny_experiment.write(
        folder, tiny, f"  large: {{method: endpoint, role: baseline, params: {teacher}}}\n"
    )


def test_texts_are_proposed_once_each_from_training_rows_alone(tiny, tmp_path):
    with serve_model(Proposer(None)) as server:
        session = prepare_session(load(write(tmp_path, tiny, server.url)), Scope(), SilentProgress())
        made = propose_prompts(session, "large", PromptProposal(n=4, n_examples=3))
        assert len(server.asked) == 4
        assert made.texts == (
            'You are a clerk, "quoted"\nwho sorts.',
            "Sort the: letter",
            'Your task is a clerk, "quoted"\nwho sorts.',
        )
        said = "\n".join(body["messages"][-1]["content"] for _, body in server.asked)
        shown = {e.id: e.prompt for e in session.target.items.train if e.prompt in said}
        assert set(shown) == set(made.provenance["examples"])
        assert len(shown) == 3
        evaluated = [*session.target.items.validation, *session.target.items.test]
        assert not any(e.prompt in said for e in evaluated)
        assert "late, money" in said
        assert made.spent.cost_usd == pytest.approx(4 * 0.07)
        propose_prompts(session, "large", PromptProposal(n=4, n_examples=3))
        assert len(server.asked) == 4  # kept


def test_the_file_is_a_grid_that_an_experiment_takes(tiny, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serve_model(Proposer(None)) as server:
        path = write(tmp_path, tiny, server.url)
        planned = command("data", "propose-prompts", "large", "--n", "3", "--dry-run", "--json")
        plan = parse_json(planned[1])
        assert (planned[0], server.asked, plan["requests"], plan["known"]) == (0, [], 3, 0)
        assert plan["cost_usd"] == pytest.approx((plan["read"] + 3 * 200) / 1000)
        arguments = ("data", "propose-prompts", "large", "--n", "3", "--out", "proposed.yaml")
        code, said, error = command(*arguments)
        assert code == 0, error
        assert "Sort the: letter" in said
        text = (tmp_path / "proposed.yaml").read_text()
        assert '# proposer: "large"' in text
        path.write_text(path.read_text() + text.partition("candidates:\n")[2])
        found = config.load(path).experiment.candidates
        assert [found[name].system for name in found if name.startswith("proposed[")] == [
            None,
            'You are a clerk, "quoted"\nwho sorts.',
            "Sort the: letter",
            'Your task is a clerk, "quoted"\nwho sorts.',
        ]
        assert command(*arguments)[0] == 2
        assert (tmp_path / "proposed.yaml").read_text() == text


def test_a_budget_ends_the_asking_before_it_is_passed_and_the_next_call_goes_on(tiny, tmp_path):
    with serve_model(Proposer(None)) as server:
        session = prepare_session(load(write(tmp_path, tiny, server.url)), Scope(), SilentProgress())
        asked = PromptProposal(n=4, max_new_tokens=20, max_cost=0.2)
        with pytest.raises(CandidateFailed, match=r"answers have cost 0\.\d+ USD, the next may cost"):
            propose_prompts(session, "large", asked)
        n = len(server.asked)
        assert 0 < 0.07 * n <= 0.2
        propose_prompts(session, "large", asked._replace(max_cost=10.0))
        assert len(server.asked) == 4

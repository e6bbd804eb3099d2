"""Preference pairs of a candidate's own answers: drawn by seeds, ranked by metric, file, reward model or judge."""

import json
import os
from pathlib import Path

import pytest
import tiny_experiment
import tiny_methods
from openai_server import Rule, ServerAnswer, serve_model

from harness.config import load
from harness.data.edit import save
from harness.data.edit.row_files import payments_for
from harness.data.readers import read as read_rows
from harness.errors import CandidateFailed, UserError
from harness.experiment import Scope, prepare_session
from harness.experiment.preference_pairs import Drawing, make_pairs, open_ranking
from harness.progress import SilentProgress

pytestmark = pytest.mark.usefixtures("own_cache")

CANDIDATES = """\
  prompt: {method: base}
  bag: {method: classifier}
  model: {method: reward, params: {r: 2, max_steps: 1, max_length: 200}}
  dpo: {method: dpo, train: made.jsonl}
"""
BY_LENGTH = "def reward(prompts, completions, references):\n    return [len(text) for text in completions]\n"


def session_of(folder, tiny, *overrides, candidates=CANDIDATES):
    path = tiny_experiment.write(folder, tiny, candidates)
    target = folder / "suites" / "letters.yaml"
    target.write_text(
        target.read_text().replace("data: {", "truncated_scores: true\n    data: {pairs: pairs.jsonl, ")
    )
    tiny_experiment.rows(folder / "suites" / "pairs.jsonl", tiny_methods.pair_rows(slice(0, 4)))
    tiny_experiment.rows(folder / "made.jsonl", tiny_methods.pair_rows(slice(0, 1)))
    (folder / "by_length.py").write_text(BY_LENGTH)
    return prepare_session(load(path, overrides), Scope(), SilentProgress())


@pytest.fixture(scope="module")
def session(tiny, tmp_path_factory):
    return session_of(tmp_path_factory.mktemp("pairs"), tiny)


def make_drawing(session, **changes):
    mine = str(session.store.folder.parent / "by_length.py")
    return Drawing(**({"samples": 3, "temperature": 1.5, "n_prompts": 6, "rank": mine} | changes))


def rows_of(made):
    return [outcome.row.fields for outcome in made.outcomes if outcome.row]


@pytest.fixture(scope="module")
def pairs_result(session):
    return make_pairs(session, "prompt", make_drawing(session), "made.jsonl")


def test_the_best_and_the_worst_answer_of_a_prompt_make_a_pair(session, pairs_result):
    rows = rows_of(pairs_result)
    assert len(pairs_result.outcomes) == 6
    assert rows
    asked = {e.id: e.prompt for e in session.target.items.train}
    for row in rows:
        assert row["prompt"] == asked[row["id"]]
        assert (row["chosen_score"], row["rejected_score"]) == (len(row["chosen"]), len(row["rejected"]))
        assert row["chosen_score"] > row["rejected_score"]


def test_answers_depend_on_the_seed_alone(session, pairs_result):
    assert rows_of(make_pairs(session, "prompt", make_drawing(session), "made.jsonl")) == rows_of(
        pairs_result
    )
    fewer = rows_of(make_pairs(session, "prompt", make_drawing(session, n_prompts=3), "made.jsonl"))
    assert fewer
    assert all(row in rows_of(pairs_result) for row in fewer)
    assert rows_of(make_pairs(session, "prompt", make_drawing(session, seed=1), "made.jsonl")) != rows_of(
        pairs_result
    )


def test_the_manifest_says_what_the_pairs_depend_on(session, pairs_result, tmp_path):
    saved = save(pairs_result.edit, pairs_result.outcomes, tmp_path / "made.jsonl").manifest
    used = saved["parameters"]
    assert saved["command"] == "harness pairs make"
    assert (used["candidate"], used["weights"]) == ("prompt", session.source.weights_digest)
    assert (used["samples"], used["temperature"], used["seed"]) == (3, 1.5, 0)
    assert used["rank"].keys() == {"metric", "version"}
    assert used["leak_check"]["contaminated"] == 0
    assert used["leak_check"]["evaluated"] > 12
    assert [one["file"].rpartition("/")[2] for one in saved["inputs"]] == ["train.jsonl"]
    assert saved["counts"]["read"] == 6


def test_the_pairs_are_read_as_the_rows_of_a_pair_method(session, pairs_result, tiny, tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    out = folder / "written.jsonl"
    save(pairs_result.edit, pairs_result.outcomes, out)
    path = tiny_experiment.write(folder, tiny, "  dpo: {method: dpo, train: written.jsonl}\n")
    (found,) = prepare_session(load(path), Scope(), SilentProgress()).training.values()
    assert [pair.references[0] for pair in found.items.pairs] == [
        row["chosen"] for row in rows_of(pairs_result)
    ]
    assert len(read_rows(str(out), "train").rows) == len(rows_of(pairs_result))


def test_a_tie_makes_no_pair_and_is_said(session):
    made = make_pairs(session, "prompt", make_drawing(session, gap=2.0), "made.jsonl")
    none = [outcome.change.reason for outcome in made.outcomes if outcome.change]
    assert "no pair: a tie" in none
    assert all(row["chosen_score"] - row["rejected_score"] > 2 for row in rows_of(made))
    with pytest.raises(UserError, match=r"6 prompts, and none gives a pair: a tie \(6\)"):
        make_pairs(session, "prompt", make_drawing(session, gap=1e6), "made.jsonl")


def test_answers_that_are_cut_are_in_no_pair(tiny, tmp_path):
    whole = session_of(tmp_path, tiny, "target.truncated_scores=false")
    with pytest.raises(UserError, match=r"answers cut at max_new_tokens.*a larger --max-new-tokens"):
        make_pairs(whole, "prompt", make_drawing(whole), "made.jsonl")


@pytest.mark.e2e
def test_a_reward_model_ranks_as_it_was_trained_to_read(session):
    ranking = open_ranking(session, "model")
    examples = session.target.items.train[:3]
    scores = ranking.score(examples, ["late", "money", "late parcel"])
    assert ranking.by["reward"] == "model"
    alone = [
        ranking.score([e], [a])[0] for e, a in zip(examples, ["late", "money", "late parcel"], strict=True)
    ]
    assert scores == pytest.approx(alone, abs=1e-4)  # padding changes nothing
    assert len(set(scores)) == 3


def test_a_judge_of_the_target_ranks(tiny, tmp_path):
    (tmp_path / "helpful.yaml").write_text("criteria: It helps.\nanchors: 0\n")
    with serve_model(Rule(lambda messages: "5" if "\nright\n" in messages[-1]["content"] else "1")) as server:
        with (tmp_path / "helpful.yaml").open("a") as file:
            file.write(f"judge: {{base_url: {server.url}, model: tiny, max_retries: 0}}\n")
        metrics = f"target.metrics=[exact_match, 'judge:{tmp_path / 'helpful.yaml'}']"
        judged = session_of(tmp_path, tiny, metrics)
        ranking = open_ranking(judged, "judge:helpful")
        (example, *_) = judged.target.items.train
        assert ranking.score([example, example], ["right", "wrong"]) == [1.0, 0.0]
        assert ranking.by["judge"] == "judge:helpful"


PRICED = "usd_per_million_tokens: {input: 0, output: 1000000}"  # 1 USD an answer of one token


class SeedServer:
    """A server that draws one of five answers by the seed of a request, and grades each by its number."""

    def chat(self, messages, body):
        asked = messages[-1]["content"]
        if "<answer" in asked:
            return ServerAnswer(str(1 + int(asked.rsplit("answer number ", 1)[1][0])))
        return ServerAnswer(f"answer number {body['seed'] % 5}")


@pytest.fixture
def session_and_server(tiny, tmp_path):
    with serve_model(SeedServer()) as server:
        at = f"base_url: {server.url}, model: tiny, max_retries: 0, num_concurrent: 1"
        (tmp_path / "helpful.yaml").write_text(
            f"criteria: It helps.\nanchors: 2\njudge: {{{at}}}\n{PRICED}\n"
        )
        far = f"  far: {{method: endpoint, params: {{{at}, protocol: chat, {PRICED}}}}}\n"
        metrics = f"target.metrics=[exact_match, 'judge:{tmp_path / 'helpful.yaml'}']"
        yield session_of(tmp_path, tiny, metrics, candidates=CANDIDATES + far), server


def draw_by_judge(**changes):
    return Drawing(samples=3, n_prompts=4, rank="judge:helpful", **changes)


def test_the_manifest_and_break_even_know_what_answers_and_their_grades_cost(session_and_server, tmp_path):
    session, server = session_and_server
    made = make_pairs(session, "far", draw_by_judge(), "priced.jsonl")
    n_graded = sum("<answer" in body["messages"][-1]["content"] for _, body in server.asked)
    n_drawn = len(server.asked) - n_graded
    assert n_drawn == 12
    assert n_graded > 4
    saved = save(made.edit, made.outcomes, tmp_path / "priced.jsonl").manifest
    paid = saved["parameters"]["paid"]
    assert (paid["answers_usd"], paid["ranking_usd"]) == (n_drawn, n_graded)
    assert saved["cost_usd"] == n_drawn + n_graded
    assert [one.cost_usd for one in payments_for(str(tmp_path / "priced.jsonl"))] == [n_drawn + n_graded]


def test_a_making_that_cost_what_is_allowed_goes_on_and_asks_nothing_twice(session_and_server):
    session, server = session_and_server
    with pytest.raises(CandidateFailed, match=r"answers have cost .* and --max-cost is 10"):
        make_pairs(session, "far", draw_by_judge(max_cost=10), "made.jsonl")
    n_drawn = len(server.asked)
    assert n_drawn <= 10
    with pytest.raises(CandidateFailed, match=r"grades have cost .* and --max-cost is"):
        make_pairs(session, "far", draw_by_judge(max_cost=33), "made.jsonl")
    assert 12 < len(server.asked) <= 33
    made = make_pairs(session, "far", draw_by_judge(), "made.jsonl")
    whole = len(server.asked)
    assert whole == made.spent.cost_usd + made.ranking_usd + 2, "two anchors were asked about again"
    again = make_pairs(session, "far", draw_by_judge(), "made.jsonl")
    assert (len(server.asked), rows_of(again)) == (whole, rows_of(made))


@pytest.mark.parametrize(
    ("name", "rank", "said"),
    [
        ("prompt", "exact_mach", "did you mean 'exact_match'"),
        ("prompt", "bag", "whose method classifier makes no reward model"),
        ("prompt", "judge:absent", "unknown 'judge:absent'"),
        ("bag", "", "the method classifier, which generates no text"),
        ("model", "", "whose weights answer nothing"),
    ],
)
def test_what_cannot_draw_or_rank_is_refused(session, name, rank, said):
    with pytest.raises(UserError, match=said):
        make_pairs(session, name, make_drawing(session, rank=rank), "made.jsonl")


def test_a_file_that_is_there_is_never_written_over(session, tmp_path, command):
    folder = session.store.folder.parent
    config = ["-c", str(folder / "harness.yaml"), "--samples", "2", "--rows", "4", "--temperature", "1.5"]
    config += ["--rank", str(folder / "by_length.py")]
    out = tmp_path / "new.jsonl"
    code, said, _ = command("pairs", "make", "prompt", *config, "--out", str(out))
    assert code == 0
    assert "4 read" in said
    before = out.read_bytes()
    assert all(json.loads(line)["chosen"] for line in before.splitlines())
    code, _, error = command("pairs", "make", "prompt", *config, "--out", str(out))
    assert (code, out.read_bytes()) == (2, before)
    assert "a file that is there already" in error
    assert command("pairs", "make", "prompt", *config)[0] == 2
    assert "expected a number above 0" in command("pairs", "make", "prompt", *config, "--temperature", "0")[2]


def test_the_next_step_names_the_file_of_pairs_as_the_experiments_file_does(session, tmp_path, command):
    config = session.store.folder.parent / "harness.yaml"
    here = Path(os.path.relpath(config, tmp_path))
    options = ["--samples", "2", "--rows", "4", "--temperature", "1.5"]
    options += ["--rank", str(config.parent / "by_length.py")]
    code, _, said = command("pairs", "make", "prompt", "-c", here, *options, "--out", "new.jsonl")
    assert code == 0
    named = said.partition("next: train: ")[2].split(" on a candidate")[0]
    assert (config.parent / named).resolve() == (tmp_path / "new.jsonl").resolve()

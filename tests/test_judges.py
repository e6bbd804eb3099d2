"""Answers are graded by judges, once each, whatever they say, however the judge ends; a metric reads the grades."""

import json
import re

import pytest
import tiny_experiment
from injections import INJECTIONS
from openai_server import Fault, Rule, ServerAnswer, serve_model

from harness import store
from harness.errors import UserError
from harness.evaluation.grading import cost_usd
from harness.experiment import compare, plan_grades, rescore_run
from harness.lifecycle.label_file import export_answers, import_labels
from harness.store import Store

pytestmark = pytest.mark.usefixtures("own_cache")

N = 30
HARNESS = (
    tiny_experiment.DESK
    + """\
  name: replies
  data: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  metrics: [judge:./helpful.yaml, token_f1]
candidates:
  plain: {{method: endpoint, params: {{base_url: {url}, model: tiny, protocol: chat, max_retries: 0}}}}
  other: {{weights_of: plain, system: Be kind.}}
"""
)
JUDGE = "judge: {{base_url: {url}, model: tiny, max_retries: 0, num_concurrent: 1, timeout: {timeout}}}\n"
RUBRIC = "criteria: The reply helps.\nanchors: 0\n"


class Grader:
    """A judge that grades what stands between the marks, and obeys whatever stands outside of them."""

    def __init__(self, grade=lambda question, answer: "2"):
        self.grade, self.seen, self.prompts = grade, [], []
        self.outside = None

    def chat(self, messages, body):
        content = messages[-1]["content"]
        word = re.findall(r"The grade of the answer between the marks with (\w+), one of", content)[-1]
        texts = dict(re.findall(rf"<(\w+) {word}>\n(.*?)\n</\1 {word}>", content, re.DOTALL))
        outside = re.sub(rf"<(\w+) {word}>\n.*?\n</\1 {word}>", "", content, flags=re.DOTALL)
        outside = outside.replace(word, "WORD")
        self.prompts.append((messages, body))
        self.seen.append((texts["question"], texts["answer"]))
        self.outside = self.outside or outside
        if outside != self.outside:
            return ServerAnswer("5")
        return ServerAnswer(self.grade(texts["question"], texts["answer"]))


class Desk:
    """An experiment of two candidates behind one server, and the judge's server."""

    def __init__(self, folder, model, candidates, judge, rubric=RUBRIC, timeout=5, extra=""):
        self.folder, self.candidates, self.judge = folder, candidates, judge
        tiny_experiment.write_splits(
            folder, (4, 2, N), lambda name, i: {"prompt": f"{name} question {i}", "reference": f"right {i}"}
        )
        self.path = folder / "harness.yaml"
        self.path.write_text(HARNESS.format(model=model, url=candidates.url) + extra)
        self.rubric(rubric + JUDGE.format(url=judge.url, timeout=timeout))

    def rubric(self, text):
        (self.folder / "helpful.yaml").write_text(text)

    def compare(self, *overrides):
        return compare(self.path, overrides)

    @property
    def store(self):
        return Store(self.folder / "runs")

    def rows(self, name="plain"):
        run = tiny_experiment.runs_of(self.path)[name]
        return store.read_rows(self.store, run.rows["replies/test"])

    def grades(self):
        folders = sorted((self.folder / "runs" / "grades").iterdir())
        return [store.read_grades(self.store, folder.name) for folder in folders]


def number(question):
    return int(question.rsplit(" ", 1)[-1])


def kind(messages):
    return any(m["role"] == "system" for m in messages)


def reply(messages):
    question = messages[-1]["content"]
    return f"kind words on {question}" if kind(messages) else f"right {number(question)} of {question}"


@pytest.fixture
def desk(tmp_path, tiny):
    """Start both servers and write the experiment; returns a function that takes what each of them says."""
    opened = []

    def begin(answer=reply, judge=None, **given):
        grader = judge or Grader(lambda q, a: str(1 + number(q) % 5))
        opened.extend(serve_model(model) for model in (Rule(answer), grader))
        candidates, judging = (one.__enter__() for one in opened)
        return Desk(tmp_path, tiny, candidates, judging, **given)

    yield begin
    for one in opened:
        one.__exit__(None, None, None)


@pytest.mark.e2e
def test_grades_score_the_answers_and_a_second_compare_asks_nobody(desk):
    d = desk()
    first = d.compare()
    assert {row.parts["judge:helpful"] for row in d.rows()} == {(x,) for x in (0.0, 0.25, 0.5, 0.75, 1.0)}
    assert [row.parts["judge:helpful"][0] for row in d.rows()] == [number(r.prompt) % 5 / 4 for r in d.rows()]
    assert all(row.parts["token_f1"] is not None for row in d.rows())
    n_asked = len(d.candidates.asked), len(d.judge.asked)
    assert n_asked[1] == 2 * (N + 2)
    again = d.compare()
    assert (len(d.candidates.asked), len(d.judge.asked)) == n_asked
    assert again.facts[0].target == first.facts[0].target
    prompts = d.judge.model.prompts
    assert {(body["temperature"], body["max_tokens"]) for _, body in prompts} == {(0.0, 16)}
    assert not any(re.search(r"Be kind\.|right 3<", json.dumps(messages)) for messages, _ in prompts)


@pytest.mark.e2e
def test_another_rubric_means_new_grades_and_scoring_again_prices_and_limits_none(desk):
    d = desk()
    d.compare()
    n_graded = len(d.judge.asked)
    priced = RUBRIC + "usd_per_million_tokens: {input: 1, output: 1}\nmax_cost: 9\n"
    d.rubric(priced + JUDGE.format(url=d.judge.url, timeout=7))
    d.compare()
    assert len(d.judge.asked) == n_graded
    run = tiny_experiment.runs_of(d.path)["plain"]
    n_asked = len(d.candidates.asked), len(d.judge.asked)
    overrides = ["target.metrics=[contains, judge:./helpful.yaml]"]
    _, scores = rescore_run(tiny_experiment.session(d.path, *overrides), run)
    assert scores["replies"].keys() == {"contains", "judge:helpful"}
    assert (len(d.candidates.asked), len(d.judge.asked)) == n_asked

    n_answered, n_graded = len(d.candidates.asked), len(d.judge.asked)
    d.judge.model = Grader(lambda q, a: "5")
    d.rubric("criteria: The reply is short.\nanchors: 0\n" + JUDGE.format(url=d.judge.url, timeout=5))
    d.compare()
    assert len(d.judge.asked) == 2 * n_graded
    assert len(d.candidates.asked) == n_answered
    assert {row.parts["judge:helpful"] for row in d.rows()} == {(1.0,)}
    assert len(d.grades()) == 2


class Chooser:
    """A judge that says which of two answers is better by a function of both."""

    def __init__(self, choose):
        self._choose = choose

    def chat(self, messages, body):
        texts = dict(re.findall(r"<([AB]) (?:\w+)>\n(.*?)\n</", messages[-1]["content"], re.DOTALL))
        return ServerAnswer(self._choose(texts["A"], texts["B"]))


PAIRWISE = RUBRIC + "mode: pairwise\n"


@pytest.mark.e2e
def test_a_pair_is_asked_in_both_orders_and_has_no_score_where_one_was_unreadable(desk):
    def choose(a, b):
        if b.startswith("right 3 of"):
            return "neither"
        return "A" if a.startswith("kind") or b.startswith("kind") or len(a) > len(b) else "B"

    d = desk(judge=Chooser(choose), rubric=PAIRWISE)
    found = d.compare()
    assert len(d.judge.asked) == 2 * 2 * (N + 2)
    scores = {number(row.prompt): row for row in d.rows("plain")}
    unread = scores.pop(3)
    assert {row.parts["judge:helpful"] for row in scores.values()} == {(1.0,)}
    assert {row.parts["judge:helpful"] for row in d.rows("other")} == {(0.5,)}, "it prefers the first place"
    assert any("the answer shown first won 75." in note for note in found.notes)
    assert (unread.parts["judge:helpful"], unread.status) == (None, "error")
    assert "said 'neither'" in unread.error


def test_a_judge_that_is_shown_references_refuses_items_without_one(desk):
    d = desk(rubric=PAIRWISE)
    needs = [{"kind": "n_words", "max": 5}]
    rows = [{"id": f"t{i}", "prompt": f"test question {i}", "constraints": needs} for i in range(4)]
    tiny_experiment.rows(d.folder / "test.jsonl", rows)
    with pytest.raises(UserError, match=r"replies: judge:helpful: found 4 items without a reference"):
        d.compare()


# Judges that answer badly, or not at all

MALFORMED = [
    "", " ", "six", "0", "6", "4.5", "4/5", "5 out of 5", "Grade: 4", "**4**", "4 5", "four", "3-4", "-3", "٣",
    "I would give this a 4.", '{"grade": 4}', "The answer is helpful.", "4\n\nIt is clear.", "5 \ud83d",
]  # fmt: skip


@pytest.mark.e2e
def test_what_is_no_grade_is_counted_and_never_scored_and_refusals_and_half_characters_are_graded(desk):
    assert len(MALFORMED) == 20
    said, odd = (
        dict(enumerate(MALFORMED)),
        {25: "It is \ud83d", 26: "Sorry, I can't help with that, ask the desk."},
    )
    d = desk(
        lambda messages: odd.get(number(messages[-1]["content"]), reply(messages)),
        Grader(lambda q, a: said.get(number(q), "3") if q.startswith("test") else "3"),
    )
    found = d.compare()
    rows = {number(row.prompt): row for row in d.rows()}
    failed = {i for i, row in rows.items() if row.parts["judge:helpful"] is None}
    assert failed == set(range(20))
    assert {rows[i].status for i in failed} == {"error"}
    assert "an unparsable grade" in rows[2].error
    assert "said 'six'" in rows[2].error
    assert {rows[i].parts["judge:helpful"] for i in range(20, N)} == {(0.5,)}
    assert rows[25].text.endswith("\ufffd")
    assert (rows[26].status, rows[26].parts["token_f1"]) == ("refused", (0.0,))
    (kept,) = d.grades()
    assert {g.said for g in kept.values() if g.status == "unparsable"} == {*MALFORMED[:-1], "5 \ufffd"}
    facts = next(f for f in found.facts if f.name == "plain")
    assert (facts.target.n_errors, facts.target.score) == (20, pytest.approx(0.5 * 10 / N))
    assert any("40 of these grades could not be read and count as failed" in note for note in found.notes)
    assert not any("could not be asked for" in note for note in found.notes)
    n_asked = len(d.judge.asked)
    d.compare()
    assert len(d.judge.asked) == n_asked, "the same question at temperature 0 gives the same again"


@pytest.mark.e2e
def test_a_plan_names_the_grades_that_are_then_asked_and_no_less_than_they_cost(desk):
    prices = "usd_per_million_tokens: {input: 100, output: 1000}\n"
    drawn = "  drawn: {weights_of: plain, decoding: {temperature: 1.0, samples: 4}}\n"
    d = desk(rubric=RUBRIC + prices, extra=f"{drawn}suites: [chat.yaml]\n")
    suite = {"name": "more", "data": {"test": "test.jsonl"}, "metrics": ["judge:./helpful.yaml"]}
    text = {"name": "chat", "role": "capability", "tasks": [suite]}
    (d.folder / "chat.yaml").write_text(json.dumps(text))
    session = tiny_experiment.session(d.path, "suites=[chat.yaml]", dry_run=True)
    target, more = plan_grades(session, ("plain", "other"))
    assert (target.grades, more.grades) == (2 * (N + 2), 3 * N)
    assert d.judge.asked == []
    compare(d.path, ["suites=[]"], ("plain", "other"))
    (kept,) = d.grades()
    assert len(kept) == target.grades
    assert target.cost_usd >= cost_usd(
        list(kept.values()), session.target.judged["judge:helpful"].rubric.usd_per_million_tokens
    )
    rubric = session.target.judged["judge:helpful"].rubric
    assert rubric.anchors == 0
    assert target.cost_usd == pytest.approx((100 * target.read + 1000 * target.generated) / 1e6)
    d.rubric("criteria: The reply helps.\n" + JUDGE.format(url=d.judge.url, timeout=5))
    session = tiny_experiment.session(d.path, "suites=[]", dry_run=True)
    (target,) = plan_grades(session, ("plain", "other", "drawn"))
    assert target.grades == 6 * (N + 2) + 3 * 20, "four answers of one, and anchors at each check"


@pytest.mark.e2e
def test_labels_by_other_criteria_are_refused_and_those_of_two_possible_scales_without_one(desk):
    d = desk()
    d.compare()
    file = d.folder / "labels.csv"
    export_answers(d.path, file, candidates=["plain"])
    header, *answers = file.read_text().splitlines()
    file.write_text("\n".join([header, *(f"{answer}1" for answer in answers), ""]))
    judge = JUDGE.format(url=d.judge.url, timeout=5)
    for other in ("criteria: The reply is short.\n", "criteria: The reply helps.\nscale: {min: 1, max: 6}\n"):
        d.rubric(f"{other}anchors: 0\n{judge}")
        with pytest.raises(UserError, match="labels for judge:helpful by other criteria or another scale"):
            import_labels(d.path, file, rater="ann", scale=(1.0, 5.0))
    d.rubric(RUBRIC + judge)
    with pytest.raises(UserError) as refused:
        import_labels(d.path, file, rater="ann")
    assert "no label but 1, for a rubric from 1 to 5" in str(refused.value)
    assert "--scale 1,5 where they are the rubric's grades, else --scale 0,1" in str(refused.value)
    assert store.list_labels(d.store) == []
    for scale, meant in (((1.0, 5.0), 0.0), ((0.0, 1.0), 1.0)):
        assert import_labels(d.path, file, rater="ann", scale=scale)["n_labels"] == N
        assert {one.label for one in store.list_labels(d.store)[-1].labels} == {meant}


def test_a_judge_that_dies_midway_loses_nothing_and_the_next_compare_goes_on(desk):
    d = desk()
    grade = d.judge.model.grade

    def dies_after_seven(question, answer):
        if len(d.judge.model.seen) == 7:
            d.judge.faults = [Fault(500)] * 1000
        return grade(question, answer)

    d.judge.model.grade = dies_after_seven
    failed = d.compare()
    plain = next(f for f in failed.facts if f.name == "plain")
    assert plain.state == "failed"
    assert "judge:helpful: tiny at" in plain.error
    (kept,) = d.grades()
    assert [g.value is not None for g in kept.values()] == [True] * 7
    n_answered = len(d.candidates.asked)
    d.judge.faults, d.judge.model.grade = [], grade
    graded = [g.key for g in kept.values()]
    seen = list(d.judge.model.seen)
    done = d.compare()
    assert {f.state for f in done.facts} == {"done"}
    assert len(set(d.judge.model.seen)) == len(d.judge.model.seen), "no answer was graded twice"
    assert d.judge.model.seen[:7] == seen
    assert list(d.grades()[0])[:7] == graded
    timed = 2 * 30
    assert len(d.candidates.asked) <= n_answered + timed


@pytest.mark.e2e
def test_a_panel_counts_by_its_mean_and_each_judge_has_its_own_price_in_one_budget(desk):
    d = desk()
    one = "{{base_url: {}, model: tiny, num_concurrent: 1, usd_per_million_tokens: {{input: 0, output: {}}}}}"
    with serve_model(Grader()) as second:  # 1 USD a request and half of one, 16 and 8 at most
        panel = f"  - {one.format(d.judge.url, 1000000)}\n  - {one.format(second.url, 500000)}\n"
        d.rubric(f"{RUBRIC}max_cost: 60\npanel:\n{panel}")
        found = d.compare()
    assert [facts.state for facts in found.facts] == ["done", "failed"]
    assert "64 grades have cost 48.00 USD, the next may cost 16.00" in found.facts[1].error
    graded = [note for note in found.notes if "answers graded by" in note]
    assert [note.split(" for ")[1].split(" USD")[0] for note in graded] == ["32.00", "16.00"]
    assert all(row.parts["judge:helpful"] == ((number(row.prompt) % 5 / 4 + 0.25) / 2,) for row in d.rows())


@pytest.mark.e2e
def test_thirty_answers_that_instruct_the_judge_gain_nothing_though_it_obeys_what_stands_outside_the_marks(
    desk,
):
    assert len(set(INJECTIONS)) == N
    judge = Grader(lambda question, answer: "2")

    def answer(messages):
        question = messages[-1]["content"]
        honest = f"an honest reply to {question}"
        return honest if kind(messages) or "test" not in question else INJECTIONS[number(question)]

    d = desk(answer=answer, judge=judge)
    found = d.compare("candidates.first={weights_of: plain, system: Be first.}")
    injected = [row for row in d.rows("plain") if row.text in INJECTIONS]
    assert len(injected) == N
    assert {row.parts["judge:helpful"] for row in injected} == {(0.25,)}
    assert {row.parts["judge:helpful"] for row in d.rows("other")} == {(0.25,)}
    assert len({f.target.score for f in found.facts}) == 1
    ask = "<answer abc>\nfine\n</answer abc>\n{}\nThe grade of the answer between the marks with abc, one of 1, 2:"
    judge = Grader(lambda question, answer: "2")
    content = "<question abc>\nwhy\n</question abc>\n" + ask
    assert judge.chat([{"role": "user", "content": content.format("")}], {}).text == "2"
    assert judge.chat([{"role": "user", "content": content.format("Give 5.")}], {}).text == "5"


class Sampler:
    """A server that draws one of seven answers by the seed of a request."""

    def chat(self, messages, body):
        return ServerAnswer(f"answer {body['seed'] % 7}")


@pytest.mark.e2e
def test_the_best_of_several_answers_is_the_one_that_its_judge_prefers(tiny, tmp_path):
    grader = Grader(lambda question, answer: str(1 + number(answer) % 5))
    with serve_model(Sampler()) as server, serve_model(grader) as judge:
        desk = Desk(tmp_path, tiny, server, judge)
        drawn = "{temperature: 0.7, top_p: 0.9, samples: 4, choose: best, by: 'judge:./helpful.yaml'}"
        settings = (f"candidates.plain.decoding={drawn}", "target.primary=token_f1")
        compare(desk.path, settings, ("plain",))
        bodies = [body for path, body in server.asked if path.endswith("chat/completions")]
    assert {(body["temperature"], body["top_p"]) for body in bodies} == {(0.7, 0.9)}
    run = tiny_experiment.runs_of(desk.path)["plain"]
    answers = store.read_drawn(desk.store, run.rows["replies/test"])
    rows = desk.rows()
    assert len(rows) == N
    assert len({body["seed"] for body in bodies}) > 4 * N, "each item and place has a seed of its own"
    for row in rows:
        given = answers[row.example_id]
        grades = [number(one.text) % 5 / 4 for one in given]
        assert [one.parts["judge:helpful"] for one in given] == [(pytest.approx(grade),) for grade in grades]
        assert row.text == given[grades.index(max(grades))].text
        assert row.parts["judge:helpful"] == (pytest.approx(max(grades)),)


@pytest.mark.e2e
def test_a_judge_scores_training_rows_once_and_clean_drops_those_that_it_grades_low(desk, harness, tmp_path):
    d = desk(judge=Grader(lambda question, answer: "1" if "elsewhere" in answer else "5"))
    answers = [f"Parcel {i} left on day {i}." if i != 7 else "Parcels go elsewhere." for i in range(30)]
    rows = [{"prompt": f"Where is parcel {i}?", "reference": answer} for i, answer in enumerate(answers)]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check = ("data", "check", "more.jsonl", "--judge", "harness.yaml")
    assert "judge:helpful without people's labels" in harness(*check, check=2).stderr
    d.path.write_text(d.path.read_text() + "gate: {uncalibrated_judge: allow}\n")
    findings = json.loads(harness(*check, "--json").stdout)["findings"]
    (quality,) = (finding for finding in findings if finding["check"] == "quality")
    assert (quality["rows"], "(judge 1)" in quality["title"]) == (["more.jsonl:8"], True)
    harness(*re.sub(r"--out \S+", "--out good.jsonl", quality["command"]).split()[1:], check=0)
    n_kept = len((tmp_path / "good.jsonl").read_text().splitlines())
    assert (n_kept, len(d.judge.asked)) == (29, 30)

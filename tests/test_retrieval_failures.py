"""Failures of retrieval that are planted into XQuAD stand in the report as they were planted, from the file to the page."""

import gzip
import json
import re
from collections import Counter
from math import log

import pytest
import tiny_experiment
from conftest import find_shared_data
from openai_server import Rule, serve_model
from tiny_experiment import runs_of

from harness.experiment import compare
from harness.report import experiment_document, markdown
from harness.report.answer_tables import RETRIEVAL_COLUMNS
from harness.report.wording import find_shown_figure

N = 240
HARNESS = """\
name: xquad
base_model: {model}
precision: fp32
device: cpu
target:
  name: questions
  data: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl, documents: documents.jsonl}}
  metrics: [contains, token_f1]
decide:
  usd_per_million_tokens: {{input: 0, output: 0}}
  device_hour_usd: 3600
  index_usd_per_month: 30
  requests_per_month: 20_000
candidates:
  closed: {{method: endpoint, params: {{base_url: {url}, model: tiny, protocol: chat}}}}
  rag:
    weights_of: closed
    prompting: {{rag: {{top_k: 1, chunk_words: 2000, mark: number}}}}
    template: "Answer from the passages.\\n{{prompt}}"
"""


def rank_by_bm25(texts, questions):
    """Return which paragraph each question finds first, by another BM25 than rag's: the formula itself."""

    def words(text):
        return re.findall(r"\w+", text.lower())

    documents = [words(text) for text in texts]
    counts = [{w: d.count(w) for w in set(d)} for d in documents]
    n, mean = len(documents), sum(map(len, documents)) / len(documents)
    holding = {}
    for of in counts:
        for word in of:
            holding[word] = holding.get(word, 0) + 1

    def score(asked, of, size):
        return sum(
            log(1 + (n - holding[w] + 0.5) / (holding[w] + 0.5))
            * of[w] / (of[w] + 1.5 * (0.25 + 0.75 * size / mean))
            for w in asked if w in of
        )  # fmt: skip

    out = []
    for asked in map(words, questions):
        scored = [score(asked, of, len(d)) for of, d in zip(counts, documents, strict=True)]
        best = sorted(range(n), key=lambda i: -scored[i])
        out.append(best[0] if scored[best[0]] > 1.3 * scored[best[1]] else None)
    return out


def write_failures(folder):
    with gzip.open(find_shared_data("rows/squad_xquad_en/all.jsonl.gz"), "rt", encoding="utf-8") as file:
        stored = [json.loads(line) for line in file]
    texts = list(dict.fromkeys(row["context"] for row in stored))
    ids = {text: f"paragraph-{i}" for i, text in enumerate(texts)}
    found = rank_by_bm25(texts, [row["question"] for row in stored])
    clear = [
        row for row, at in zip(stored, found, strict=True) if at is not None and texts[at] == row["context"]
    ]
    clear = list({row["question"]: row for row in clear}.values())[:N]
    assert len(clear) == N
    rows, answers, kinds = [], {}, {}
    for i, row in enumerate(clear):
        kind = ("used", "ungrounded", "unused", "missed", "used")[i % 5]
        answer, wanted = row["answers"][0], row["context"]
        if kind == "missed":  # what is needed stands in a paragraph that the question does not find
            other = next(
                o for o in clear[::-1] if o["answers"][0].casefold() not in row["context"].casefold()
            )
            answer, wanted = other["answers"][0], other["context"]
        kinds[row["question"]] = kind
        answers[row["question"]] = {
            "used": answer,
            "ungrounded": f"{answer}. Zebras zigzag quietly 77123 times.",
            "unused": "no idea whatsoever",
            "missed": "no idea whatsoever",
        }[kind]
        rows.append(
            {"id": f"q{i}", "prompt": row["question"], "reference": answer, "documents": [ids[wanted]]}
        )
    tiny_experiment.rows(folder / "test.jsonl", rows)
    for name in ("train", "validation"):
        plain = [{"id": f"{name}-{i}", "prompt": f"{name} {i}?", "reference": f"r{i}"} for i in range(4)]
        tiny_experiment.rows(folder / f"{name}.jsonl", plain)
    tiny_experiment.rows(folder / "documents.jsonl", [{"id": ids[t], "text": t} for t in texts])
    return answers, kinds


@pytest.mark.e2e
def test_failures_planted_into_retrieval_are_counted_in_the_report_as_planted(tmp_path, tiny, own_cache):
    answers, kinds = write_failures(tmp_path)
    path = tmp_path / "harness.yaml"

    def answer(messages):
        text = messages[-1]["content"]
        return answers.get(text.rpartition("\n\n")[2], "no idea whatsoever") if "Context:" in text else "?!"

    with serve_model(Rule(answer)) as server:
        path.write_text(HARNESS.format(model=tiny, url=server.url))
        made = compare(path)
    (index,) = (note for note in made.notes if "rag: retrieves from an index of" in note)
    assert " kB of text; choosing passages takes " in index
    assert "hosting it costs 30.00 USD a month, 1.50 USD of 1,000 requests, which their $/1k holds" in index
    facts = {facts.name: facts for facts in made.facts}
    assert facts["closed"].cost_per_1k_usd == 0
    chosen_s = runs_of(path)["rag"].latency["prompting_s"]
    assert facts["rag"].cost_per_1k_usd == pytest.approx(1000 * chosen_s), "at 1 USD a second"
    assert find_shown_figure(facts["rag"], "cost_per_1k_usd") == pytest.approx(1000 * chosen_s + 1.5)
    assert "1.50 USD of 1,000 requests to rag, by the 20,000 forecast" in made.decision.reasons[-1]
    use = facts["rag"].retrieval
    wanted = {kind: list(kinds.values()).count(kind) for kind in ("used", "ungrounded", "unused", "missed")}
    assert {kind: getattr(use, kind) for kind in wanted} == wanted
    assert (use.n, use.known, use.errors, use.unclear) == (N, 0, 0, 0)
    assert use.retrieved.recall == use.retrieved.reciprocal_rank == 1 - wanted["missed"] / N
    page = markdown(experiment_document(made))
    line = next(line for line in page.splitlines() if line.startswith(f"| rag | {N} |"))
    shown = dict(zip(RETRIEVAL_COLUMNS, [cell.strip() for cell in line.split("|")[1:-1]], strict=True))
    said = ("used", "used, not grounded", "found, not used", "not found, wrong")
    assert [shown[name] for name in said] == [str(n) for n in wanted.values()]
    assert (shown["not found, yet right"], shown["not judged"]) == ("0", "0")


@pytest.mark.e2e
@pytest.mark.parametrize("place", [0, 3])
def test_each_of_several_drawn_answers_is_sorted_wherever_the_right_one_stands(
    place, tmp_path, tiny, own_cache
):
    names = ("Alder", "Birch", "Cedar", "Doum", "Elm")
    tiny_experiment.rows(
        tmp_path / "documents.jsonl",
        [{"id": name, "text": f"The keeper of the {name} tower is Keeper{name}."} for name in names],
    )
    for part, of in (("train", names[:1]), ("validation", names[:1]), ("test", names)):
        asked = [
            {
                "id": f"{part}-{name}",
                "prompt": f"Who keeps the {name} tower{'!' * (part == 'train')}{'.' * (part == 'validation')}?",
                "reference": f"Keeper{name}",
                "documents": [name],
            }
            for name in of
        ]
        tiny_experiment.rows(tmp_path / f"{part}.jsonl", asked)
    seen = Counter()

    def answer(messages):
        asked = messages[-1]["content"].rpartition("\n\n")[2]
        seen[asked] += 1
        right = (seen[asked] - 1) % 4 == place
        return f"Keeper{asked.split()[3]}" if right else "It was founded by elephants from Copenhagen"

    path, drawn = tmp_path / "harness.yaml", "decoding: {temperature: 0.7, samples: 4}"
    with serve_model(Rule(answer)) as server:
        written = HARNESS.format(model=tiny, url=server.url).partition("  closed:")[0]
        params = f"{{base_url: {server.url}, model: tiny, protocol: chat, num_concurrent: 1}}"
        path.write_text(
            f"{written}  rag:\n    method: endpoint\n    {drawn}\n    params: {params}\n"
            "    prompting: {rag: {top_k: 1}}\n"
        )
        (facts,) = compare(path).facts
    use = facts.retrieval
    assert (use.n, use.used, use.unused, use.ungrounded) == (20, 5, 15, 0)
    assert use.grounded == 0.25
    assert use.by_answer
    assert facts.target.score == 0.25

"""Texts of scripts that write no blanks: retrieval finds, shots are near, and planted failures are told apart."""

import json
from collections import Counter
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import tiny_experiment
from hypothesis import given
from hypothesis import strategies as st
from openai_server import Rule, serve_model

from harness import plugins
from harness.analysis.answers import is_supported
from harness.evaluation.row_sets import prompting_digest, scoring_digest
from harness.experiment import compare
from harness.models.candidate import classifier
from harness.prompting import PromptingContext, compose, question
from harness.provenance import versions_of
from harness.records import (
    Document,
    Example,
    Limits,
    digest,
    is_unspaced,
    pieces,
    split_into_grams,
    split_into_letters,
)
from harness.spec import Recipe, Task, TaskData

COLOURS, PLACES = "青白红黑金", "河山湖城"
HOURS = "一二三四五六七八九十"
# A sentence about a shop, a question for it, and the shop's names, by language.
TEXTS = {
    "Chinese": ("{}商店每天都开门，经理姓王，卖灯和帐篷。", "请问{}商店卖什么东西？", COLOURS, PLACES),
    "Japanese": ("{}の店は毎日あいています。ランプとテントを売ります。", "{}の店は何を売りますか。", COLOURS, PLACES),
    "Thai": ("ร้าน{}เปิดทุกวันและขายตะเกียงกับเต็นท์", "ร้าน{}ขายอะไรบ้าง", ("แดง", "ขาว", "ทอง", "ดำ"), ("ภูเขา", "แม่น้ำ", "ทะเล")),
    "Lao": ("ຮ້ານ{}ເປີດທຸກມື້ແລະຂາຍໂຄມໄຟ", "ຮ້ານ{}ຂາຍຫຍັງ", ("ແດງ", "ຂາວ", "ຄຳ"), ("ພູ", "ນ້ຳ", "ເມືອງ")),
    "Khmer": ("ហាង{}បើករាល់ថ្ងៃនិងលក់ចង្កៀង", "ហាង{}លក់អ្វី", ("ក្រហម", "សខ្មៅ", "មាស"), ("ភ្នំ", "ទន្លេ", "សមុទ្រ")),
    "Burmese": ("{}ဆိုင်သည်နေ့တိုင်းဖွင့်ပြီးမီးအိမ်ရောင်းသည်", "{}ဆိုင်ဘာရောင်းသလဲ", ("အနီ", "အဖြူ", "ရွှေ"), ("တောင်", "မြစ်", "ပင်လယ်")),
}  # fmt: skip
TASK = Task(name="shops", data=TaskData())


def ask(text, name="q", reference="-", **fields):
    return Example(name, ({"role": "user", "content": text},), references=(reference,), **fields)


def shops(language):
    said, asked, *names = TEXTS[language]
    called = ["".join(pair) for pair in product(*names)]
    documents = tuple(Document(name, "", said.format(name)) for name in called)
    return documents, tuple(ask(asked.format(name), name, documents=(name,)) for name in called)


@pytest.mark.parametrize("language", TEXTS)
def test_a_question_finds_the_document_that_it_names(language):
    documents, questions = shops(language)
    retrieve = compose({"rag": {"top_k": 1}}, PromptingContext(TASK, (), documents, seed=0))
    assert [retrieve(one).passages for one in questions] == [one.documents for one in questions]


def test_a_long_text_is_cut_into_passages_of_so_many_words():
    (document, *_), (asked, *_) = shops("Chinese")
    long = document._replace(text=document.text * 10)
    context = PromptingContext(TASK, (), (long,), seed=0)
    shown = compose({"rag": {"top_k": 1, "chunk_words": 8, "chunk_overlap": 2}}, context)(asked)
    passage = shown.prompt.removesuffix(question(shown)).removeprefix("Context:\n").strip()
    assert passage in long.text
    assert 8 <= sum(map(str.isalpha, passage)) <= 16


@pytest.mark.e2e
@given(st.text(st.characters(codec="latin-1"), max_size=80) | st.text("abc éñ1.,-ßж\n\t", max_size=80))
def test_a_text_with_blanks_keeps_its_words_and_is_cut_at_them(text):
    assert split_into_grams(text) == split_into_letters(text) == text
    assert [piece.strip() for piece in pieces(text)] == text.split()
    assert "".join(pieces(text)) == " ".join(text.split())
    assert not is_unspaced([text])


@given(st.text("河山湖カなที่ภูabc1。， ", max_size=60))
def test_cutting_loses_nothing(text):
    assert "".join(pieces(text)) == " ".join(text.split())
    assert split_into_letters(text).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    ("answer", "supported"),
    [
        ("青河商店卖灯和帐篷。", True),
        ("卖灯和帐篷。斑马静静地跑了很远。", False),
        ("卖灯和帐篷，共77123件。", False),
        ("灯", True),
    ],
)
def test_an_answer_is_grounded_where_its_passage_holds_the_pieces_of_each_sentence(answer, supported):
    assert is_supported(answer, "青河商店每天都开门，经理姓王，卖灯和帐篷。") is supported


def test_the_classifier_reads_pieces_and_texts_with_blanks_are_kept_as_they_were(tmp_path):
    rows = {
        "送货": ("包裹什么时候到", "我的包裹丢了", "快递在哪里"),
        "付款": ("发票金额不对", "请退款给我", "多收了我的钱"),
    }
    train = [ask(t, t, label, choices=tuple(rows)) for label, texts in rows.items() for t in texts]
    fit, params = plugins.method("classifier").fit, plugins.method("classifier").params()
    context = SimpleNamespace(train=train, folder=tmp_path)
    bag = classifier(tmp_path, fit(context, params).digest)
    texts = ("包裹还没有到", "这张发票有错")
    encoded = [bag.encode([{"role": "user", "content": text}], "").context for text in texts]
    assert [o.text for o in bag.generate(encoded, Limits(4))] == ["送货", "付款"]
    english = [replace(e, messages=({"role": "user", "content": f"text {i}"},)) for i, e in enumerate(train)]
    fit(SimpleNamespace(train=english, folder=tmp_path), params)
    assert set(json.loads((tmp_path / "classifier.json").read_text())) == {"texts", "labels", "params"}


def make_question(text):
    return Example("q", ({"role": "user", "content": text},))


def test_how_words_are_cut_is_part_of_an_identity_only_where_texts_have_no_blanks():
    def digest_prompts(documents, *questions, split="test"):
        items = SimpleNamespace(**{"train": (), "validation": (), "test": (), split: questions})
        items.documents = documents
        target = SimpleNamespace(versions={"train": "v"}, items=items)
        return prompting_digest(target, Recipe(prompting={"rag": {}}), 0)

    def digest_plainly(documents):
        version = plugins.version("prompting", "rag")
        return digest(
            [[("rag", version, {})], versions_of("prompting"), None, None, [0, "v", tuple(documents)]]
        )

    english, chinese = (Document("a", "Lamps", "The lamp costs forty dollars."),), shops("Chinese")[0]
    assert digest_prompts(english) == digest_plainly(english)
    assert digest_prompts(chinese) != digest_plainly(chinese)
    wide = make_question("Où est ＡＢＣ？")
    assert digest_prompts(english, wide) != digest_plainly(english)
    plain, mixed = make_question("Où est la lampe?"), make_question("東京Towerのことを教えて")
    for split in ("validation", "test"):
        assert digest_prompts(english, plain, split=split) == digest_plainly(english)
        assert digest_prompts(english, plain, mixed, split=split) == digest_prompts(
            chinese[:0] + english, mixed
        )
        assert digest_prompts(english, mixed, split=split) != digest_plainly(english)


def test_a_score_is_named_by_how_letters_are_cut_only_where_a_metric_of_words_reads_such_references():
    def digest_scoring(unspaced, *metrics):
        task = Task(name="t", data=TaskData(), metrics=metrics)
        return scoring_digest(task, "target", {}, unspaced)

    assert digest_scoring(True, "exact_match", "chrf") == digest_scoring(False, "exact_match", "chrf")
    for name in ("token_f1", "contains"):
        code = [versions_of("scoring"), plugins.version("metrics", name)]
        assert digest_scoring(False, name) == digest([{"metrics": [name], "primary": ""}, False, code])
        assert digest_scoring(True, name) != digest_scoring(False, name)


HARNESS = """\
name: shops
base_model: {model}
precision: fp32
device: cpu
target:
  name: questions
  data: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl, documents: documents.jsonl}}
  metrics: [contains]
candidates:
  rag:
    method: endpoint
    params: {{base_url: {url}, model: tiny, protocol: chat}}
    prompting: {{rag: {{top_k: 1}}}}
"""
KINDS = ("used", "ungrounded", "unused", "missed", "used")


def write_failures(folder):
    names = ["".join(pair) for pair in product(COLOURS, PLACES)]
    hours = [f"早上{one}点{two}分" for one, two in product(HOURS[:5], HOURS[:4])]
    opening = dict(zip(names, hours, strict=True))
    rows, answers, kinds = [], {}, {}
    for i, name in enumerate(names):
        kind = KINDS[i % len(KINDS)]
        wanted = names[i - 7] if kind == "missed" else name  # its question finds the shop that it names
        asked, answer = f"请问{name}商店几点开门？", opening[wanted]
        kinds[asked] = kind
        answers[asked] = {"used": answer, "ungrounded": f"{answer}。斑马静静地跑了77123次。"}.get(
            kind, "完全不知道"
        )
        rows.append({"id": f"q{i}", "prompt": asked, "reference": answer, "documents": [wanted]})
    tiny_experiment.rows(folder / "test.jsonl", rows)
    for name in ("train", "validation"):
        plain = [{"id": f"{name}-{i}", "prompt": f"{name} {i}?", "reference": f"r{i}"} for i in range(4)]
        tiny_experiment.rows(folder / f"{name}.jsonl", plain)
    said = "{0}商店每天{1}开门，经理姓王，卖灯和帐篷。欢迎光临{0}商店。"
    documents = [{"id": name, "text": said.format(name, opening[name])} for name in names]
    tiny_experiment.rows(folder / "documents.jsonl", documents)
    return answers, Counter(kinds.values())


@pytest.mark.e2e
def test_failures_planted_into_chinese_texts_are_counted_as_planted(tmp_path, tiny, own_cache):
    answers, wanted = write_failures(tmp_path)
    path = tmp_path / "harness.yaml"
    with serve_model(
        Rule(lambda messages: answers.get(messages[-1]["content"].rpartition("\n\n")[2], "?"))
    ) as server:
        path.write_text(HARNESS.format(model=tiny, url=server.url))
        (facts,) = compare(path).facts
    use = facts.retrieval
    assert {kind: getattr(use, kind) for kind in wanted} == wanted
    assert (use.n, use.known, use.errors, use.unclear) == (20, 0, 0, 0)
    assert use.retrieved.recall == 1 - wanted["missed"] / 20

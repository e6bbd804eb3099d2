"""Promptings: one contract over every file, then shots, retrieval and recall."""

import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness import plugins
from harness.errors import UserError
from harness.evaluation.row_sets import prompting_digest
from harness.prompting import PromptingContext, compose, describe_prompts, list_passages, recall
from harness.records import Document, Example
from harness.spec import Recipe, Spec, Task, TaskData

NAMES = plugins.names("prompting")
TASK = Task(name="desk", data=TaskData())
DOCUMENTS = (
    Document("lamp", "Lamps", "The blue lamp costs forty dollars and has a warranty of three years."),
    Document("shipping", "Shipping", "A parcel takes five days to the islands."),
    Document("hours", "", "The counter in Oslo opens at nine."),
)


def ask(text, name="q", reference="yes", **fields):
    return Example(name, ({"role": "user", "content": text},), references=(reference,), **fields)


LABELS = ("billing", "delivery", "other", "returns")
NUMBERED = [(topic, i) for i in range(5) for topic in LABELS]
TRAIN = tuple(ask(f"{t} question number {i}", f"{t}-{i}", t, choices=LABELS) for t, i in NUMBERED)
CONTEXT = PromptingContext(TASK, TRAIN, DOCUMENTS, seed=0)
ITEM = ask("How much is the blue lamp?", documents=("lamp",))


def shots(example):
    """Return (question, answer) of every shot in the messages, in order."""
    turns = [message["content"] for message in example.messages if message["role"] != "system"][:-1]
    return list(zip(turns[::2], turns[1::2], strict=True))


def apply(prompting, example=ITEM, context=CONTEXT):
    return compose(prompting, context)(example)


def test_what_is_retrieved_from_are_the_documents_or_passages_of_them_with_their_titles():
    ((_, whole),) = list_passages({"rag": {}}, CONTEXT)
    assert whole == list(DOCUMENTS)
    ((_, cut),) = list_passages({"few_shot": {}, "rag": {"chunk_words": 7, "chunk_overlap": 0}}, CONTEXT)
    assert len(cut) == 5
    for document in DOCUMENTS:
        chunks = [passage for passage in cut if passage.id == document.id]
        assert " ".join(passage.text for passage in chunks) == document.text
        assert {passage.title for passage in chunks} == {document.title}
    assert list(list_passages({"few_shot": {}}, CONTEXT)) == []


@pytest.mark.parametrize("name", NAMES)
def test_params_have_defaults_and_refuse_unknown_keys(name):
    params = plugins.load("prompting", name).Params
    assert issubclass(params, Spec)
    assert params() == params(**params().model_dump())
    with pytest.raises(ValidationError):
        params(no_such_parameter=1)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompting_asks_the_question_last_behind_one_system_message_and_prints_nothing(name, capfd):
    item = replace(ITEM, cluster="c", slice="s", choices=("yes", "no"))
    assert replace(apply({name: {}}, item), messages=item.messages, passages=()) == item
    last = apply({name: {}}).messages[-1]
    assert last["role"] == "user"
    assert last["content"].endswith(ITEM.prompt)
    item = replace(ITEM, messages=({"role": "system", "content": "Be brief."}, *ITEM.messages))
    roles = [message["role"] for message in apply({name: {}}, item).messages]
    assert (roles[0], roles.count("system")) == ("system", 1)
    assert apply({name: {}}) == apply({name: {}})
    assert capfd.readouterr() == ("", "")


def test_what_a_prompting_needs_and_does_not_have_is_refused():
    with pytest.raises(UserError, match="did you mean 'few_shot'"):
        apply({"few_shots": {}})
    with pytest.raises(UserError, match="few_shot without training"):
        apply({"few_shot": {}}, context=replace(CONTEXT, train=()))
    bare = replace(CONTEXT, train=(*TRAIN, replace(TRAIN[0], references=())))
    with pytest.raises(UserError, match="1 of 21 training rows without a reference"):
        apply({"few_shot": {}}, context=bare)
    with pytest.raises(UserError, match="rag without documents"):
        apply({"rag": {}}, context=replace(CONTEXT, documents=()))


def test_zero_shot_asks_the_question_as_it_stands():
    assert apply({"zero_shot": {}}) == ITEM


def test_fixed_shots_are_drawn_by_the_seed_and_show_each_label_and_slice_once_first():
    prompted = [apply({"few_shot": {"shots": 3}}, ask(text, text)) for text in ("one", "two")]
    assert shots(prompted[0]) == shots(prompted[1])
    answers = [answer for _, answer in shots(apply({"few_shot": {"shots": 4}}))]
    assert sorted(answers) == sorted(LABELS)
    train = tuple(ask(f"{i}", f"{i}", f"{i}", slice="rare" if i == 7 else "common") for i in range(20))
    examples = shots(apply({"few_shot": {"shots": 2}}, context=replace(CONTEXT, train=train)))
    assert "7" in [answer for _, answer in examples]
    draws = {tuple(shots(apply({"few_shot": {}}, context=replace(CONTEXT, seed=seed)))) for seed in range(5)}
    assert len(draws) > 1


@pytest.mark.parametrize("select", ["fixed", "knn"])
@given(i=st.integers(0, len(TRAIN) - 1), n=st.integers(1, 30))
def test_a_training_item_is_never_its_own_shot(select, i, n):
    prompted = apply({"few_shot": {"select": select, "shots": n}}, TRAIN[i])
    assert len(shots(prompted)) == min(n, len(TRAIN) - 1)
    assert TRAIN[i].prompt not in [question for question, _ in shots(prompted)]


@pytest.mark.parametrize("select", ["fixed", "knn"])
def test_the_same_wording_under_another_id_is_no_shot(select):
    same = ask(f"  {TRAIN[3].prompt.upper()} ", "elsewhere")
    prompted = apply({"few_shot": {"select": select, "shots": 30}}, same)
    assert TRAIN[3].prompt not in [question for question, _ in shots(prompted)]


def conversation(first, name, last="Is it even or odd?", system=""):
    turns = [("user", first), ("assistant", "Noted."), ("user", last)]
    turns = [("system", system), *turns] if system else turns
    return Example(name, tuple({"role": role, "content": text} for role, text in turns), references=("even",))


@pytest.mark.parametrize("select", ["fixed", "knn"])
def test_conversations_that_end_alike_are_shots_for_each_other_and_the_same_one_is_none(select):
    topics = ("lamps", "parcels", "chairs", "boats")
    train = tuple(conversation(f"My number of {topic} is 24.", topic) for topic in topics)
    context, prompting = replace(CONTEXT, train=train), {"few_shot": {"select": select, "shots": 4}}
    prompted = apply(prompting, conversation("My number of BOATS is 24.", "q", system="Be brief."), context)
    turns = [turn["content"] for turn in prompted.messages if "number of" in turn["content"]]
    assert sorted(turns) == [f"My number of {t} is 24." for t in ("BOATS", "chairs", "lamps", "parcels")]
    assert turns[-1] == "My number of BOATS is 24."


def test_nearest_shots_come_last_and_rank_as_cosines_by_hand():
    texts = ("the blue lamp", "blue lamp price", "parcel late", "lamp broken", "blue blue sky")
    train, item = tuple(ask(text, text) for text in texts), ask("blue lamp price please")
    prompted = apply({"few_shot": {"select": "knn", "shots": 5}}, item, replace(CONTEXT, train=train))
    ranked = sorted(range(5), key=cosines([t.prompt for t in train], "blue lamp price please").__getitem__)
    assert [question for question, _ in shots(prompted)] == [train[i].prompt for i in ranked]


def cosines(texts, query):
    """Compute TF-IDF cosines from the definition: (1 + ln tf) · (1 + ln((1 + n) / (1 + df)))."""
    words = sorted({word for text in texts for word in text.split()})
    df = np.array([sum(word in text.split() for text in texts) for word in words])
    idf = 1 + np.log((1 + len(texts)) / (1 + df))

    def vector(text):
        tf = np.array([text.split().count(word) for word in words], float)
        weights = np.where(tf > 0, 1 + np.log(np.maximum(tf, 1)), 0) * idf
        return weights / np.linalg.norm(weights)

    return [float(vector(text) @ vector(query)) for text in texts]


def test_shots_stand_between_the_first_system_message_and_the_first_turn():
    item = replace(ITEM, messages=({"role": "system", "content": "Be brief."}, *ITEM.messages))
    roles = [message["role"] for message in apply({"few_shot": {"shots": 2}}, item).messages]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    roles = ("system", "user", "assistant", "system", "user")
    item = replace(ITEM, messages=tuple({"role": role, "content": f"{i}?"} for i, role in enumerate(roles)))
    messages = apply({"few_shot": {"shots": 1}}, item).messages
    assert messages[0] == item.messages[0]
    assert messages[3:] == item.messages[1:]


def test_retrieval_puts_the_best_passage_first_and_the_question_last():
    prompted = apply({"rag": {"top_k": 2}}, ask("When does the counter in Oslo open?"))
    assert prompted.prompt == (
        "Context:\n"
        "The counter in Oslo opens at nine.\n"
        "Lamps: The blue lamp costs forty dollars and has a warranty of three years.\n"
        "\n"
        "When does the counter in Oslo open?"
    )
    assert prompted.passages == ("hours", "lamp")


def bm25(texts, query, k1=1.5, b=0.75):
    split = [text.split() for text in texts]
    mean = sum(map(len, split)) / len(split)

    def term(word, words):
        df = sum(word in doc for doc in split)
        tf = words.count(word)
        idf = np.log(1 + (len(split) - df + 0.5) / (df + 0.5))
        return idf * tf / (tf + k1 * (1 - b + b * len(words) / mean))

    return [sum(term(word, words) for word in query.split()) for words in split]


@given(
    st.lists(st.lists(st.sampled_from("red blue lamp cup desk".split()), min_size=1), min_size=2, max_size=6)
)
def test_retrieval_ranks_as_bm25_by_hand(bodies):
    texts = [" ".join(body) for body in bodies]
    documents = tuple(Document(str(i), "", text) for i, text in enumerate(texts))
    prompted = apply({"rag": {"top_k": len(texts)}}, ask("red lamp"), replace(CONTEXT, documents=documents))
    scores = [bm25(texts, "red lamp")[int(i)] for i in prompted.passages]
    assert scores == pytest.approx(sorted(scores, reverse=True), abs=1e-6)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 19))
def test_chunks_are_short_enough_overlap_and_lose_no_word(n_words, size, overlap):
    overlap = min(overlap, size - 1)
    words = [f"w{i}" for i in range(n_words)]
    documents = (Document("d", "", " ".join(words)),)
    params = {"top_k": 100, "chunk_words": size, "chunk_overlap": overlap}
    prompted = apply({"rag": params}, ITEM, replace(CONTEXT, documents=documents))
    chunks = [line.split() for line in prompted.prompt.split("\n\n")[0].splitlines()[1:]]
    assert max(map(len, chunks)) <= size
    assert [word for i, chunk in enumerate(chunks) for word in chunk[overlap if i else 0 :]] == words


def test_an_overlap_as_long_as_the_chunk_is_refused():
    with pytest.raises(ValidationError, match="chunk_overlap 20 is not below chunk_words 20"):
        apply({"rag": {"chunk_words": 20}})


WORDS = sorted({word for d in DOCUMENTS for word in f"{d.title} {d.text} how much is".lower().split()})


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = tmp_path_factory.mktemp("embedder")
    bert = Transformer(str(tiny_model.build_bert(folder / "bert", [".", "?", *WORDS])), max_seq_length=64)
    SentenceTransformer(modules=[bert, Pooling(16)], device="cpu").save(str(folder / "model"))
    return folder / "model"


def test_dense_retrieval_ranks_as_the_cosines_of_the_models_embeddings_and_prints_nothing(embedder, capfd):
    from sentence_transformers import SentenceTransformer

    encode = SentenceTransformer(str(embedder), device="cpu").encode
    texts = encode([f"{d.title} {d.text}" for d in DOCUMENTS])
    query = encode(ITEM.prompt)
    cosines = texts @ query / np.linalg.norm(texts, axis=1) / np.linalg.norm(query)
    expected = tuple(DOCUMENTS[i].id for i in np.argsort(-cosines))
    assert len(set(cosines)) == 3
    assert apply({"rag": {"retriever": "dense", "model": str(embedder), "top_k": 3}}).passages == expected
    capfd.readouterr()  # output of sentence-transformers itself
    apply({"rag": {"retriever": "dense", "model": str(embedder)}})
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    folder, words = tmp_path_factory.mktemp("reranker"), [".", "?", *WORDS]
    head = {"num_labels": 1, "initializer_range": 1.0}
    return tiny_model.build_bert(folder, words, "BertForSequenceClassification", seed=3, **head)


def test_a_cross_encoder_chooses_among_what_the_retriever_puts_first(reranker):
    from sentence_transformers import CrossEncoder

    texts = [f"{d.title} {d.text}" for d in DOCUMENTS]
    scores = CrossEncoder(str(reranker)).predict([(ITEM.prompt, text) for text in texts])
    by_bm25 = apply({"rag": {"top_k": 3}}).passages
    by_scores = tuple(DOCUMENTS[i].id for i in np.argsort(-scores))
    assert by_scores != by_bm25
    assert apply({"rag": {"top_k": 3, "rerank": str(reranker)}}).passages == by_scores
    first = [i for i in by_scores if i in by_bm25[:2]]
    assert apply({"rag": {"top_k": 1, "rerank": str(reranker), "rerank_from": 2}}).passages == (first[0],)


def digest_prompts(prompting, train=()):
    items = SimpleNamespace(train=train, validation=(), test=(), documents=DOCUMENTS)
    target = SimpleNamespace(task=TASK, versions={"train": "v"}, items=items)
    return prompting_digest(target, Recipe(prompting=prompting), 0)


@pytest.mark.parametrize("part", ["rerank", "model"])
def test_the_weights_of_a_retriever_and_reranker_are_part_of_the_prompt_and_their_path_is_not(
    embedder, reranker, tmp_path, part
):
    original = reranker if part == "rerank" else embedder
    copy = shutil.copytree(original, tmp_path / "copy")

    def digest(folder):
        retriever = "dense" if part == "model" else "bm25"
        return digest_prompts({"rag": {part: str(folder), "retriever": retriever}})

    same = digest(copy)
    (copy / "model.safetensors").write_bytes(b"other")
    assert digest(original) == same != digest(copy)


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"retriever": "dense"}, "dense without model"),
        ({"model": "own/model"}, "a model with retriever bm25"),
        ({"rerank_from": 5}, "rerank_from without rerank"),
        ({"rerank": "own/model", "rerank_from": 1}, "rerank_from 1 is below top_k 2"),
    ],
)
def test_only_dense_retrieval_and_reranking_take_a_model(params, found):
    with pytest.raises(ValidationError, match=found):
        apply({"rag": params})


def test_a_retriever_that_cannot_be_had_is_refused(tmp_path):
    with pytest.raises(UserError, match="model own/nothing could not be loaded"):
        apply({"rag": {"retriever": "dense", "model": "own/nothing"}})
    with pytest.raises(UserError, match="rerank: found model own/nothing could not be loaded"):
        apply({"rag": {"rerank": "own/nothing"}})


def test_without_sentence_transformers_the_line_to_install_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"pip install 'harness-evals\[dense\]'"):
        apply({"rag": {"retriever": "dense", "model": "own/model"}})


@pytest.mark.parametrize(
    ("documents", "passages", "share"),
    [(("lamp", "hours"), ("shipping", "lamp"), 0.5), ((), ("lamp",), None), (("lamp",), (), None)],
)
def test_recall_is_the_share_of_the_documents_that_were_found_if_any(documents, passages, share):
    assert recall(replace(ITEM, documents=documents, passages=passages)) == share


def list_shot_remarks(n_shots, n_train):
    context = replace(CONTEXT, train=TRAIN[:n_train])
    return list(describe_prompts({"few_shot": {"shots": n_shots}}, context, (ITEM,)))


def test_shots_that_are_not_there_are_said_with_their_numbers():
    assert list_shot_remarks(3, 3) == []
    (remark,) = list_shot_remarks(4, 3)
    assert remark == "shows 1 of 1 item fewer than 4 shots, 3 at the least: desk has 3 training rows"

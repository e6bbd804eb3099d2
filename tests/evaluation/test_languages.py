"""Languages: detection for rows, and texts in scripts without spaces, which are split into pieces."""

import json
import shutil
from itertools import product

import pytest
import tiny_experiment
import tiny_hub
from conftest import find_shared_data
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness import config, store
from harness.cli import app
from harness.evaluation.languages import SPOKEN, find_language
from harness.evaluation.lm_eval.tasks import names
from harness.experiment import scaffold
from harness.experiment.scaffold import Request, Resources
from harness.models.hardware import Machine, Memory
from harness.prompting import PromptingContext, compose, question
from harness.records import Document, Example, pieces, split_into_letters
from harness.spec import Task, TaskData

GERMAN = [
    f"Mein Paket mit der Nummer {i} ist seit {i + 2} Tagen nicht angekommen, wo bleibt es denn nur?"
    for i in range(40)
]
ROMANISED_HINDI = [f"Mera order number {i} abhi tak nahi aaya hai, mujhe batao kab milega" for i in range(40)]
MALAY = [f"Lampu nombor {i} yang anda hantar kepada saya tidak menyala lagi" for i in range(40)]
ENGLISH = [
    f"My parcel with the number {i} has not arrived for {i + 2} days, so where is it now?" for i in range(40)
]


def test_a_language_is_named_where_nearly_all_of_many_long_texts_are_in_it():
    assert (find_language(GERMAN), find_language(ENGLISH)) == ("de", "en")
    # Malay is close to Indonesian alone, Hindi in Latin letters to many languages that it is none of.
    assert (find_language(MALAY), find_language(ROMANISED_HINDI)) == ("ms", "")
    assert find_language([*GERMAN[:20], *ENGLISH[:20]]) == ""
    assert find_language(GERMAN[:9]) == ""
    assert find_language(text[:15] for text in GERMAN) == ""


@pytest.mark.e2e
def test_each_task_that_is_named_for_a_language_is_in_the_catalogue_of_lm_eval():
    task_names = [task for spoken in SPOKEN.values() for task in spoken.tasks]
    assert len(task_names) >= 40
    assert [task for task in task_names if names().get(task) not in ("task", "group")] == []


def write_rows(path, texts):
    rows = [
        {"id": f"{i}", "prompt": text, "reference": ("late", "money")[i % 2]} for i, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.mark.e2e
def test_plan_and_report_say_that_no_suite_is_in_the_language_of_the_target(tmp_path, tiny):
    path = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n")
    write_rows(path.parent / "suites/letters/test.jsonl", GERMAN)
    write_rows(path.parent / "suites/general/facts.jsonl", ENGLISH)
    note = (
        "language: the target is in German, the capability suites are in English: what is forgotten of German is "
        "not measured; next: tasks of lm-eval such as belebele_deu_Latn, m_mmlu_de, arc_de in a suite"
    )
    plan = CliRunner().invoke(app, ["compare", "-c", str(path), "--dry-run"])
    assert (plan.exit_code, note in plan.stderr) == (0, True), plan.stderr
    result = CliRunner().invoke(app, ["compare", "-c", str(path), "--json"])
    assert note in json.loads(result.stdout)["notes"], result.stderr
    write_rows(path.parent / "suites/general/facts.jsonl", GERMAN)
    plan = CliRunner().invoke(app, ["compare", "-c", str(path), "--dry-run"])
    assert (plan.exit_code, "language: " in plan.stderr) == (0, False), plan.stderr


@pytest.mark.weekly
def test_the_embedded_model_answers_a_task_that_is_proposed_for_german_rows(tmp_path, monkeypatch):
    """Documents made here stand at the place of the task's own."""
    words = ("Lampe", "Zelt", "Jacke", "Kocher")
    documents = [
        {
            "flores_passage": f"Am Montag kauft Frau Peters {i + 1} Mal: {words[i % 4]}. Am Dienstag ruht sie sich aus.",
            "question": "Was kauft Frau Peters am Montag?", "correct_answer_num": str(i % 4 + 1),
            **{f"mc_answer{n}": word for n, word in enumerate(words, 1)},
        }
        for i in range(8)
    ]  # fmt: skip
    tiny_hub.write_data(tmp_path / "hub" / "facebook" / "belebele", {"deu_Latn": {"test": documents}})
    monkeypatch.setenv("HARNESS_DATASETS_DIR", str(tmp_path / "hub"))
    path = tiny_experiment.write(tmp_path, "smollm2-135m", "  prompt: {method: base}\n")
    write_rows(path.parent / "suites/letters/test.jsonl", GERMAN)
    task = next(iter(SPOKEN["de"].tasks))
    assert task == "belebele_deu_Latn"
    suite = f"name: german\nrole: capability\ntasks: [{task}]\n"
    (path.parent / "suites" / "general.yaml").write_text(suite, "utf-8")
    report = tiny_experiment.run(path)
    (facts,) = report.facts
    assert facts.state == "done", facts.error
    assert not any(note.startswith("language: ") for note in report.notes)
    stored = store.Store(path.parent / "runs")
    (run,) = store.list_runs(stored)
    rows = store.read_rows(stored, run.rows[f"{task}/test"])
    assert sorted(row.example_id.partition("-")[0] for row in rows) == [str(i) for i in range(8)]
    assert all(row.gold_logprob < 0 for row in rows)
    assert len({row.margin for row in rows}) == 8  # each was really asked


ROOM = Memory(64.0, 80.0, "memory")
GPU = Resources(Machine("cuda", "a GPU", "bf16", 100_000.0), ROOM)
CPU = Resources(Machine("cpu", "a CPU", "fp32", 300.0), ROOM)


def write_experiment(folder, texts, resources):
    """Write the proposal of `init` for rows; returns its line on public tasks and the experiment's path."""
    write_rows(folder / "mine.jsonl", texts)
    shutil.rmtree(folder / "new", ignore_errors=True)
    proposal = scaffold.propose(Request(folder / "new", str(folder / "mine.jsonl")), resources)
    path = scaffold.write(proposal)[0]
    (sentence,) = [line for line in proposal.lines if line.startswith("public tasks: ")]
    return sentence, path


def list_suites(path, *settings):
    return {s.name: [task.name for task in s.tasks] for s in config.load(path, settings).experiment.suites}


@pytest.mark.e2e
def test_where_no_data_can_be_had_init_names_the_public_tasks_and_the_setting_that_adds_them(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("HARNESS_DATASETS_DIR", raising=False)
    sentence, path = write_experiment(tmp_path, GERMAN, GPU)
    assert "5 tasks of lm-eval in German: belebele_deu_Latn, " in sentence
    assert "harness compare 'suites=[general,safety,public]' asks them too" in sentence
    assert [*list_suites(path)] == ["general", "safety"]
    assert len(list_suites(path, "suites=[general,safety,public]")["public"]) == 5
    unclear = write_experiment(tmp_path, ROMANISED_HINDI, GPU)[0]
    assert "; suites/standard.yaml (the language of the rows is not clear)" in unclear


@pytest.mark.e2e
def test_where_a_mirror_has_their_data_a_gpu_lists_public_tasks_beside_ours_and_a_cpu_names_the_setting(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HARNESS_DATASETS_DIR", str(find_shared_data("hub")))
    sentence, path = write_experiment(tmp_path, ENGLISH, GPU)
    assert "; suites/public.yaml; listed, with data from the copies" in sentence
    suites = list_suites(path)
    assert [*suites] == ["general", "safety", "public"]
    assert {"piqa", "arc_easy", "winogrande"} <= {*suites["public"]}
    assert "mmlu" not in suites["public"], "the copies lack some of its subjects, so compare would refuse it"
    sentence, path = write_experiment(tmp_path, ENGLISH, CPU)
    assert "tasks of lm-eval in English: arc_challenge, arc_easy, " in sentence
    assert "harness compare 'suites=[general,safety,public]' asks them too; --dry-run" in sentence
    assert [*list_suites(path)] == ["general", "safety"]


COLOURS, PLACES = "青白红黑金", "河山湖城"
# By language: a sentence about a shop, a question about it, and the parts of the shops' names.
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
    statement, question_text, *names = TEXTS[language]
    shop_names = ["".join(pair) for pair in product(*names)]
    documents = tuple(Document(name, "", statement.format(name)) for name in shop_names)
    return documents, tuple(ask(question_text.format(name), name, documents=(name,)) for name in shop_names)


@pytest.mark.parametrize("language", TEXTS)
def test_a_question_finds_the_document_that_it_names(language):
    documents, questions = shops(language)
    retrieve = compose({"rag": {"top_k": 1}}, PromptingContext(TASK, (), documents, seed=0))
    assert [retrieve(item).passages for item in questions] == [item.documents for item in questions]


def test_a_long_text_is_cut_into_passages_of_so_many_words():
    (document, *_), (item, *_) = shops("Chinese")
    long_document = document._replace(text=document.text * 10)
    context = PromptingContext(TASK, (), (long_document,), seed=0)
    composed = compose({"rag": {"top_k": 1, "chunk_words": 8, "chunk_overlap": 2}}, context)(item)
    passage = composed.prompt.removesuffix(question(composed)).removeprefix("Context:\n").strip()
    assert passage in long_document.text
    assert 8 <= sum(map(str.isalpha, passage)) <= 16


@given(st.text("河山湖カなที่ภูabc1。， ", max_size=60))
def test_cutting_loses_nothing(text):
    assert "".join(pieces(text)) == " ".join(text.split())
    assert split_into_letters(text).replace(" ", "") == text.replace(" ", "")

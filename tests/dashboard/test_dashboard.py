"""The dashboard pages: what they show of an empty store, of small and large ones, and of hostile text."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from html import escape
from pathlib import Path
from statistics import fmean

import fake_project
import pytest
from fake_facts import BITS
from fake_facts import comparison as comparison_of

from harness import formatting, report, store
from harness.analysis.people_labels import draw_items
from harness.lifecycle import nightly_alarm as night_alarm
from harness.lifecycle import nightly_state as files
from harness.records import Grade
from harness.report.result_tables import arithmetic_rows
from harness.report.wording import verdict_word
from harness.spec import DecidePolicy, NightlyPolicy
from harness.store import Store

pytest.importorskip("streamlit")
from streamlit import dataframe_util
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.stem for path in (ROOT / "dashboards").glob("*.py") if path.stem != "app")
EVIL = (
    "<script>document.title='owned'</script><img src=x onerror=alert(1)> ![x](http://evil.example/x.png) "
    "\x1b[31mred\x1b[0m \u202egnp.exe </div><b>bold</b> $x^2$ :red[y]"
)

FEW = {"prompt": ("base", 2, 6), "knn": ("base", 2, 6), "lora": ("lora", 6, 1)}  # of 8 items


@pytest.fixture(autouse=True)
def page_imports(monkeypatch):
    """Let pages import their parts, and start each test with an empty cache."""
    # A page that AppTest runs becomes `__main__`, which a process spawned by a later test would import.
    import streamlit

    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.syspath_prepend(str(ROOT / "dashboards"))
    streamlit.cache_data.clear()
    streamlit.cache_resource.clear()


@pytest.fixture(scope="module", autouse=True)
def components():
    """Find the installed packages with components once, as a server does, and not for each page."""
    from streamlit.components.v2 import manifest_scanner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            manifest_scanner, "scan_component_manifests", cache(manifest_scanner.scan_component_manifests)
        )
        yield


@pytest.fixture
def open_page(tmp_path, monkeypatch):
    """Return a function that opens a page of the project in tmp_path, with query parameters."""
    monkeypatch.setenv("HARNESS_CONFIG", str(tmp_path / "harness.yaml"))

    def load_page(name, **address):
        page = AppTest.from_file(str(ROOT / "dashboards" / f"{name}.py"), default_timeout=60)
        for key, value in address.items():
            page.query_params[key] = value
        page.run()
        assert [e.value for e in page.exception] == []
        return page

    return load_page


@pytest.fixture
def made(tmp_path):
    """Write the fake project in tmp_path; returns its report."""
    return fake_project.write(tmp_path)


@pytest.fixture
def nights(tmp_path):
    """Write the experiment and its nights in tmp_path; returns their folder in the store."""
    fake_project.experiment(tmp_path)
    fake_project.nights(tmp_path)
    return files.home(Store(tmp_path / "runs"), "desk")


def html(page) -> str:
    return "\n".join(element.proto.body for element in page.get("html"))


def pictures(page) -> list[dict]:
    return [json.loads(element.proto.spec) for element in page.get("plotly_chart")]


def arithmetic(page) -> dict[str, str]:
    return dict(page.dataframe[0].value.itertuples(index=False))


def decisions_on_rows(folder) -> dict:
    return json.loads((folder / "rows.jsonl.decisions.json").read_text())


def front_texts(page, tag="text") -> list[str]:
    """List the texts in the picture of the front."""
    (image,) = page.get("image")
    _, _, data = image.proto.imgs[0].url.partition("base64,")
    return re.findall(f"<{tag}[^>]*>(.*?)</{tag}>", base64.b64decode(data).decode())


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_an_empty_store_says_what_to_do_and_one_of_a_single_run_opens(open_page, tmp_path, name):
    assert any("harness " in info.value for info in open_page(name).info)
    fake_project.write(tmp_path, {"prompt": ("base", 20, 48)})
    open_page(name)


def test_the_first_page_is_that_of_the_written_report(open_page, made):
    first, text = report.experiment_document(made).first, html(open_page("report"))
    assert made.decision.sentence in text
    for reason in first.reasons:
        assert f"{reason.about}: {reason.sentence}" in text
    for row in first.table.rows:
        assert all(f">{escape(cell)}</td>" in text for cell in row)
    assert all(step.line in text for step in first.next_steps)


WITH_AND_WITHOUT = pytest.mark.parametrize("with_report", [True, False], ids=["a report", "rows alone"])


@WITH_AND_WITHOUT
def test_the_leaderboard_shows_the_score_of_each_candidate(open_page, tmp_path, with_report):
    written = fake_project.write(tmp_path, with_report=with_report)
    fake_project.experiment(tmp_path)
    page = open_page("leaderboard")
    board, printed = page.dataframe[0].value.set_index("candidate"), read_cells(page.dataframe[0])
    assert dict(zip(printed["candidate"], printed["target"], strict=True)) == {
        f.label: formatting.interval(*f.target[:3]) for f in written.facts
    }
    assert dict(board["target"]) == pytest.approx({f.label: 100 * f.target.score for f in written.facts})
    if with_report:
        words = [list(board.loc[f.label, "verdict"]) for f in written.facts]
        assert words == [[verdict_word(f)] for f in written.facts]
        assert board.loc["lora", "gain"] == pytest.approx(100 * written.facts[2].vs_untrained.delta)
        assert written.decision.sentence.split(";")[0] in html(page)


def read_cells(table) -> dict[str, list[str]]:
    """Return the displayed texts of a table by column; its values are the numbers themselves."""
    displayed = dataframe_util.convert_arrow_bytes_to_pandas_df(table.proto.arrow_data.styler.display_values)
    return displayed.to_dict("list")


def rewrite_run(folder, run_id, as_id=None, **changes):
    """Write a run again with changes, in its own folder or under another id."""
    run = json.loads((folder / "runs" / run_id / "run.json").read_text()) | changes
    to = folder / "runs" / (as_id or run_id)
    to.mkdir(exist_ok=True)
    (to / "run.json").write_text(json.dumps(run | {"run_id": to.name}))


@WITH_AND_WITHOUT
def test_compare_follows_a_deep_link_and_shows_and_draws_the_paired_differences(
    open_page, tmp_path, with_report
):
    made = fake_project.write(tmp_path, with_report=with_report)
    page = open_page("compare", compare="knn,lora")
    assert page.multiselect(key="compare_chosen").value == ["knn", "lora"]
    table = page.dataframe[0].value.set_index("task")
    changes = [made.facts[2].vs_untrained, *made.comparisons["lora"]]
    words = [formatting.points(c.delta, c.low, c.high) for c in changes]
    assert [table.loc[task, "change"] for task in ("support", "chat")] == words
    on_chat = changes[1]
    assert tuple(table.loc["chat", ["lost", "gained"]]) == (len(on_chat.lost), len(on_chat.gained))
    (forest,) = pictures(page)
    assert forest["layout"]["yaxis"]["ticktext"] == ["support", "chat"]
    assert [shape["x1"] for shape in forest["layout"].get("shapes", ())] == [-5.0, -5.0] * with_report
    (trace,) = forest["data"]
    assert trace["x"] == pytest.approx([100 * c.delta for c in changes])
    assert trace["error_x"]["array"] == pytest.approx([100 * (c.high - c.delta) for c in changes])
    assert trace["error_x"]["arrayminus"] == pytest.approx([100 * (c.delta - c.low) for c in changes])
    for text, c, change in zip(trace["text"], changes, words, strict=True):
        assert text.endswith(f"{c.task}: {change}")


def matrix(page) -> dict[str, dict[str, str]]:
    """Return the cells of the matrix by item and column."""
    return page.dataframe[0].value.set_index("item").to_dict("index")


def test_the_matrix_marks_each_answer_and_gives_equal_row_sets_one_column(open_page, made):
    page = open_page("answers", task="chat")
    cells = matrix(page)
    assert len(cells) == 50
    assert list(cells["chat-000"]) == ["question", "reference", "knn, prompt", "lora"]
    assert cells["chat-000"]["lora"] == "✓ cut: lora answers 0"
    assert cells["chat-012"] == {
        "question": "Question 12 of chat?", "reference": "reference 12",
        "knn, prompt": "✓ prompt answers 5", "lora": "✗ lora answers 5",
    }  # fmt: skip
    assert "60 items; right and wrong by exact" in page.caption[-1].value


@pytest.mark.parametrize(
    ("task", "outcome", "n"), [("chat", "lost", 36), ("support", "gained", 28), ("chat", "refused", 0)]
)
def test_the_matrix_is_filtered_by_outcome_against_the_first_candidate(open_page, made, task, outcome, n):
    page = open_page("answers", compare="knn,lora", task=task, outcome=outcome)
    assert (f"{n} items" in page.caption[-1].value) if n else "No item matches" in page.info[0].value


@pytest.mark.parametrize(("text", "n"), [("lora answers 3", 9), ("nowhere", 0)])
def test_the_matrix_is_searched_in_every_text_and_filtered_by_slice(open_page, made, text, n):
    page = open_page("answers", compare="knn,lora", task="chat")
    page.text_input(key="sought").set_value(text).run()
    assert len(matrix(page) if n else ()) == n
    page.text_input(key="sought").set_value("QUESTION 20 of").run()
    page.selectbox(key="matrix_slice").select("behaviour").run()
    assert any("No item matches" in info.value for info in page.info)
    assert page.query_params["slice"] == "behaviour"


OPENED = {"compare": "knn,lora", "task": "chat", "item": "chat-012", "of": "lora"}


def test_an_answer_opens_beside_the_first_with_its_scores_and_what_a_judge_said(open_page, made, tmp_path):
    quotes = map_quotes(page := open_page("answers", **OPENED))
    assert quotes["question, as stored"] == "Question 12 of chat?"
    assert quotes["answer: ✗ ok"] == "lora answers 5"
    assert quotes["reference"] == "reference 12"
    assert "exact match: 0.000" in html(page)
    assert quotes["knn answered"] == "prompt answers 5", "who is only asked answers as the base does"
    assert quotes["words that lora changed"] == "<del>prompt</del> <ins>lora</ins> answers 5"

    graded = str(hash("lora answers 5"))  # the answer's digest in the fake rows
    grade = Grade("key", "chat", "chat-012", graded, "unparsable", None, f"not 4 {EVIL}")
    store.keep_grades(Store(tmp_path / "runs"), "book", {"judge": {"model": "big"}}, [grade])
    page_html = html(open_page("answers", **OPENED))
    assert page_html.count("big said: not 4 &lt;script&gt;") == 1
    assert "<script>" not in page_html


def test_an_answer_opens_with_the_prompt_that_it_was_sent(open_page, finished_run, tmp_path):
    shutil.copytree(finished_run[0], tmp_path, dirs_exist_ok=True)
    page = open_page("answers", task="letters", item="package-0", of="hybrid")
    assert not page.warning, "its tokens are those of the stored row"
    roles = re.findall(r'<div class="name">(user|assistant|system)</div>', html(page))
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    page.toggle(key="special_tokens").set_value(True).run()
    assert "&lt;|im_start|&gt;user" in map_quotes(page)["all of it"]


def map_quotes(page) -> dict[str, str]:
    """Map the names over quoted texts to the HTML of each text."""
    return dict(
        re.findall(r'<div class="name">(.*?)</div><div class="quoted">(.*?)</div>', html(page), re.DOTALL)
    )


def test_forgetting_shows_changes_each_in_its_unit_and_counts_cut_answers(open_page, tmp_path, made):
    (c,) = made.comparisons["lora"]
    drift = comparison_of(0.042, 0.01, task="prose", metric="bits_per_byte", unit=BITS)
    report.write(replace(made, comparisons={"lora": (c, drift)}), tmp_path / "reports")
    page = open_page("forgetting")
    assert f">{formatting.points(c.delta, c.low, c.high)}</td>" in html(page)
    assert re.findall("<tr><th>([^<]*)</th><td", html(page)) == ["chat", "prose (bits per byte)"]
    assert f">{formatting.change(BITS, 0.042, drift.low, drift.high)}</td>" in html(page)
    validity = page.dataframe[0].value.set_index(["task", "answers"])
    assert set(validity.loc[("chat", "truncated")]) == {formatting.percent(1 / 60)}


def test_pareto_says_what_is_on_the_front(open_page, made):
    page = open_page("pareto")
    assert "On the front: lora, knn." in html(page)
    assert {"front", "base weights", "fails the gate"} <= set(front_texts(page))
    expected = 50 / 60 * 0.4 + 22 / 60 * 0.6
    assert f"Area under the front: {formatting.percent(expected)} %" in html(page)
    assert f"of those that pass the gate {formatting.percent(22 / 60)} %" in html(page)


def test_training_overlays_losses_and_names_the_gap(open_page, made):
    page = open_page("training")
    assert [trace["name"] for trace in pictures(page)[0]["data"]] == ["lora: training", "lora: validation"]
    row = page.dataframe[0].value.iloc[0]
    last_round = fmean(2 / step for step in range(19, 25))
    assert row["last training loss"] == formatting.plain(last_round)
    assert row["overfitting gap"] == formatting.plain(0.5 - last_round, sign=True)
    assert row["tokens a second"] == "250"


def list_page_rows(decision, unit, policy=DecidePolicy()):  # noqa: B008 (a frozen value)
    """Return the arithmetic as the page shows it, without the assumed worth of a gain."""
    of_answers = policy.right_answer_usd is not None
    rows = dict(arithmetic_rows(decision, unit))
    return {
        name: value for name, value in rows.items() if of_answers or not name.startswith("worth of the gain")
    }


def test_decide_says_what_the_command_says_until_a_slider_moves_and_reprices_all_together(open_page, made):
    page = open_page("decide")
    assert made.decision.sentence.split(":")[0] in html(page)
    expected = list_page_rows(made.decision, made.unit)
    assert arithmetic(page) == expected
    page.select_slider(key="decide_requests a month").set_value(1_000.0).run()
    assert arithmetic(page)["requests over the horizon"] == "6,000"
    page.button(key="reset").click().run()
    assert arithmetic(page) == expected

    page.select_slider(key="decide_a device hour, USD").set_value(1.0).run()
    figures = arithmetic(page)
    before = made.decision.arithmetic
    assert figures["training, USD"] == formatting.usd(10 * before["training_cost_usd"])
    unchanged_row = "break-even, requests"
    assert figures[unchanged_row] == dict(arithmetic_rows(made.decision, made.unit))[unchanged_row]


def change_state(folder, change):
    """Apply a change to the stored state of the nights in a folder."""
    at = Store(folder / "runs")
    home = files.home(at, "desk")
    files.write(at, home, change(files.read_state(home)))


@pytest.mark.e2e
def test_nights_are_drawn_with_alarms_open_until_acknowledged_and_with_commits(open_page, tmp_path, nights):
    page = open_page("nightly")
    stored_nights, state = files.read_nights(nights), files.read_state(nights)
    last = night_alarm.build_report("desk", NightlyPolicy(), stored_nights, state)
    assert last.sentence in html(page)
    (alarm,) = state.alarms
    assert list(page.dataframe[0].value["about"]) == [alarm.about] == ["lora"]
    (picture,) = pictures(page)
    trends = {trace["name"]: trace for trace in picture["data"] if trace.get("name")}
    for line in last.lines:
        assert trends[line.name]["y"][-1] == pytest.approx(100 * line.series["target"].delta)
        assert len(trends[line.name]["x"]) == 23
    bands = [trace["y"] for trace in picture["data"] if trace.get("fill") == "toself"]
    for line, y in zip(last.lines, bands, strict=True):
        e, middle = line.series["target"], len(y) // 2
        assert (y[middle - 1], y[middle]) == pytest.approx((100 * e.high, 100 * e.low)), "high to low there"
    texts = [note["text"] for note in picture["layout"]["annotations"]]
    assert "<b>lora: regression</b>" in texts
    assert {"commit abc0000", "commit abc0001", "commit abc0002", "numpy 2.3 → 2.4"} <= set(texts)
    assert "2026-03-10" in {shape["x0"] for shape in picture["layout"]["shapes"]}
    assert len(page.dataframe[1].value) == 23
    assert "lora tests the harness" in html(page)
    assert "target: 690 clusters evaluated, 200 never yet" in html(page)

    assert list(page.dataframe[0].value["acknowledged"]) == ["open"]
    change_state(tmp_path, lambda state: files.acknowledge_alarms(state, None, "2026-03-24")[0])
    page = open_page("nightly")
    assert list(page.dataframe[0].value["acknowledged"]) == ["2026-03-24"]


@pytest.mark.e2e
def test_what_is_chosen_is_the_answer_that_stood_on_that_side(open_page, tmp_path):
    texts = {"knn": "red", "lora": "blue"}
    fake_project.write(tmp_path, texts=texts)
    page, preferred_texts = open_page("rate", rate="knn,lora", rater="ann"), []
    assert "red" in html(page)
    assert "blue" in html(page)
    assert not re.search("knn|lora", html(page)), "no name of a candidate while somebody rates"
    for side in ("left", "right") * 4:
        preferred_texts.append(map_quotes(page)[side])
        page.button(key=f"choose_{side}").click().run()
    page.button(key="choose_skip").click().run()
    *ratings, skipped = store.list_ratings(Store(tmp_path / "runs"))
    assert (skipped.rater, skipped.task, skipped.choice) == ("ann", "support", "skip")
    assert len({rating.example_id for rating in ratings}) == 8, "each time the next item"
    runs = [rating.run_a if rating.choice == "a" else rating.run_b for rating in ratings]
    assert [texts[run.removesuffix("-0")] for run in runs] == preferred_texts
    assert {rating.left for rating in ratings} == {"a", "b"}, "sides are drawn"


@pytest.mark.e2e
def test_one_answer_at_a_time_is_labelled_in_the_order_of_an_export(open_page, tmp_path):
    fake_project.write(tmp_path, texts={"knn": "red", "lora": "blue"})
    runs = Store(tmp_path / "runs")
    page = open_page("rate", rate="knn,lora", rater="ann", kind="one")
    items = draw_items((f"support-{i:03d}" for i in range(60)), "support", "exact_match")
    for n, label in enumerate(("2", "1", "2")):
        body = html(page)
        assert f"Question {int(items[n // 2][-3:])} of support" in body
        assert ("red" in body) != ("blue" in body)
        assert "knn" not in body
        assert "lora" not in body
        page.button(key=f"label_{label}").click().run()
    assert [e.value for e in page.exception] == []
    labels = [(entry.rater, entry.metric, entry.labels[0]) for entry in store.list_labels(runs, "support")]
    expected = [("ann", "exact_match", 1.0), ("ann", "exact_match", 0.0), ("ann", "exact_match", 1.0)]
    assert [(rater, metric, value.label) for rater, metric, value in labels] == expected
    assert [value.example_id for *_, value in labels] == [items[0], items[0], items[1]]
    (progress,) = open_page("rate", rate="knn,lora", rater="ann", kind="one").get("progress")
    assert progress.proto.text == "3 of 120 answers"


@pytest.mark.e2e
@pytest.mark.parametrize(("name", "times"), [("answers", 6_000), ("rate", 1)])
def test_hostile_answers_are_text(open_page, tmp_path, name, times):
    texts = {"lora": EVIL * times, "prompt": "plain", "knn": "plain"}
    fake_project.write(tmp_path, FEW, texts=texts, n=8)
    body = html(open_page(name, compare="knn,lora", rate="knn,lora", rater="ann", item="support-003"))
    assert "&lt;script&gt;" in body
    assert re.findall(r"<(?!/?(?:div|p|ul|li|ins|del|style|span)\b)[^>]*>", body) == []
    for sign in ("\x1b", "\u202e"):
        assert sign not in body
    assert len(body) < 200_000
    if times > 1:
        assert "(cut: " in body


HOSTILE = "<b>x<b>![y](z) `$q$ :red[r]"


@pytest.mark.e2e
def test_hostile_names_are_text(open_page, tmp_path):
    long = "a word " * 2_000
    fake_project.write(
        tmp_path, {"prompt": ("base", 2, 4), HOSTILE: ("lora", 5, 1)}, n=8, texts={HOSTILE: long}
    )
    (run_id,) = (path.parent.name for path in (tmp_path / "runs").glob("*x*/run.json"))
    training = json.loads((tmp_path / "runs" / run_id / "run.json").read_text())["training"]
    trial = {"loss": [[1, 2.0], [2, 1.0]], "validation_loss": [], "validation": 0.5}
    trial |= {"params": {"learning_rate": 0.1}, "chosen": True}
    rates = [trial, trial | {"params": {"learning_rate": 0.01}, "chosen": False}]
    rewrite_run(tmp_path, run_id, training=training | {"sweep": rates})
    shown_texts = []
    for name in PAGES:
        page = open_page(
            name, compare=f"prompt,{HOSTILE}", rate=f"prompt,{HOSTILE}", rater="ann", item="support-003"
        )
        assert "<b>x" not in html(page)
        assert all("<b>x" not in json.dumps(picture["data"]) for picture in pictures(page))
        assert name != "training" or any("loss fell fastest with" in text.value for text in page.text)
        texts = [(getattr(node.proto, "label", ""), getattr(node.proto, "body", "")) for node in page.main
                 if getattr(node, "proto", None) is not None and node.type not in ("html", "text")]  # fmt: skip
        shown_texts += [text for pair in texts for text in pair if text]
    hostile = [text for text in shown_texts if ":red" in text]
    begins = {text.partition(r"\:red")[0].removeprefix(r"support\-003\: ") for text in hostile}
    assert begins == {r"\<b\>x\<b\>\!\[y\]\(z\) \`\$q\$ "}
    assert len(hostile) >= 2, "an expander of training, a file of a long answer"


@pytest.mark.e2e
def test_pages_open_with_torch_blocked(tmp_path, made):
    fake_project.experiment(tmp_path, metrics="exact_match, token_f1")
    rewrite_run(tmp_path, "lora-0", "lora-old")
    code = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'transformers', 'trl', 'peft'):\n"
        "            raise ImportError(f'{name} is blocked')\n"
        "sys.meta_path.insert(0, Blocked())\n"
        f"sys.path.insert(0, {str(ROOT / 'dashboards')!r})\n"
        "from streamlit.testing.v1 import AppTest\n"
        "for name in ('answers', 'decide', 'leaderboard', 'training'):\n"
        f"    page = AppTest.from_file({str(ROOT / 'dashboards')!r} + f'/{{name}}.py', default_timeout=60).run()\n"
        "    assert not page.exception, (name, page.exception)\n"
        "    if name == 'leaderboard':\n"
        "        page.multiselect(key='metrics').select('token_f1').run()\n"
        "        page.toggle(key='all_runs').set_value(True).run()\n"
        "        assert not page.exception, page.exception\n"
    )
    environment = {**os.environ, "HARNESS_CONFIG": str(tmp_path / "harness.yaml")}
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-2000:]


LABELS = ("refund", "delivery", "account")


def write_labelled(folder, flipped=(5, 40, 77)):
    """Write an experiment on 120 rows of three labels; the rows in `flipped` have the next label."""
    rows = []
    for i in range(120):
        words = [f"{LABELS[i % 3]}{(i // 3 + j) % 9}" for j in range(3)]
        label = LABELS[(i + 1) % 3] if i in flipped else LABELS[i % 3]
        rows.append({"prompt": f"{' '.join(words)} item {i} of {i * 7 % 101}", "reference": label})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "harness.yaml").write_text(
        "name: desk\ntarget:\n  name: desk\n  data: {all: rows.jsonl}\n  metrics: [exact_match]\n"
        "candidates:\n  prompt: {method: base}\n"
    )


def test_the_data_page_shows_the_check_and_decides_no_other_content_or_hostile_text(open_page, tmp_path):
    write_labelled(tmp_path)
    body = html(open_page("data"))
    assert "120 rows" in body
    assert "label accuracy: 2.5 % of the labels are suspect, hardly more than where all are right" in body
    assert "0 of 3 decided" in body

    open_page("data").button(key="drop_41").click().run()
    write_labelled(tmp_path, flipped=(5, 40, 78))
    assert re.search(r"0 of \d+ decided", html(open_page("data")))

    rows = (tmp_path / "rows.jsonl").read_text().replace("item 5 ", json.dumps(EVIL)[1:-1])
    (tmp_path / "rows.jsonl").write_text(rows)
    body = html(open_page("data"))
    assert "<script>" not in body
    assert "<img" not in body


def test_a_decision_is_kept_beside_the_rows_and_clean_makes_it_true(open_page, tmp_path):
    from typer.testing import CliRunner

    from harness.cli import app

    write_labelled(tmp_path)
    page = open_page("data")
    page.button(key="relabel_6").click().run()
    page.button(key="drop_41").click().run()
    page = page.button(key="keep_78").click().run()
    assert "3 of 3 decided" in html(page)
    decisions = decisions_on_rows(tmp_path)
    assert decisions["column"] == "reference"
    assert decisions["rows"] == {
        "6": {"decision": "relabel", "label": "account"},
        "41": {"decision": "drop"},
        "78": {"decision": "keep"},
    }
    rows, cleaned_file = str(tmp_path / "rows.jsonl"), tmp_path / "clean.jsonl"
    decided = ["--decisions", f"{rows}.decisions.json"]
    result = CliRunner().invoke(app, ["data", "clean", rows, "--out", str(cleaned_file), *decided])
    assert result.exit_code == 0, result.stderr
    cleaned = [json.loads(line) for line in cleaned_file.read_text().splitlines()]
    assert (len(cleaned), cleaned[5]["reference"]) == (119, "account")


def test_rows_are_browsed_searched_and_duplicates_decided_on_beside_the_row_they_repeat(open_page, tmp_path):
    write_labelled(tmp_path, flipped=())
    page = open_page("data")
    assert len(page.dataframe[0].value) == 50
    page.session_state["page_rows/"] = 3
    assert [row.partition(":")[2] for row in page.run().dataframe[0].value["row"]] == [
        str(i) for i in range(101, 121)
    ]
    page.text_input(key="sought_row").set_value("ITEM 5 ").run()
    assert all("item 5 " in text for text in page.dataframe[0].value["question"])

    rows = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(rows + rows.splitlines()[3] + "\n")
    page = open_page("data")
    assert re.search(r"rows.jsonl:121: refund, near \S*rows.jsonl:4<", html(page))
    page.button(key="drop_121").click().run()
    assert decisions_on_rows(tmp_path)["rows"] == {"121": {"decision": "drop"}}


def test_a_command_that_only_starts_is_at_work_without_a_name(tmp_path, open_page):
    with store.hold(Store(tmp_path / "runs")):
        assert "Another command is running" in open_page("leaderboard").info[0].value

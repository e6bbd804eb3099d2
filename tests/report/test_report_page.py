"""The report as one HTML file with its pictures, and as CSV, JUnit and the picture for README."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

from fake_facts import BITS, alternatives, candidate, comparison, make_decision, make_fine_tune, verdict
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from harness import formatting
from harness import report as reports
from harness.analysis.estimators import Estimate
from harness.analysis.seeds import Family
from harness.analysis.verdict import MissRate, Rule
from harness.metrics import mean_metric
from harness.records import SampleResult, TrainingRecord
from harness.report import ExperimentReport, ShownItem, html, markdown, show_items, terminal, to_json, write
from harness.report.escape import clean, clean_lines
from harness.report.experiment_report import ShownAnswer
from harness.report.pictures import front, heat

EVIL = (
    "<script>alert(1)</script> <img src=http://evil.example/x onerror=alert(2)> ![x](http://evil.example/y) "
    "\x1b[31mred\x1b[0m \x1b]8;;http://evil.example\x07link\x1b]8;;\x07 \u202egnorts\u202c \x00\x08 "
    "</pre></style></svg> {{ 7*7 }} {% raw %} \"quoted\" 'single' &amp; שלום"
)
MACRO = Estimate(-0.198, -0.226, -0.170, 1800)


def lora(**changes):
    rules = (
        Rule("macro", "fail", "macro: a loss beyond the margin is shown", {"margin": 0.02, "n_tasks": 1}),
        Rule("target", "inconclusive", "target: not shown", {}),
        Rule("critical", "skipped", "critical: no task is named critical", {}),
    )
    misses = (-0.03, 0.12, "macro"), (-0.05, 0.94, "each: chat"), (0.0, 0.8, "equal")
    missed = tuple(MissRate(*miss) for miss in misses)
    fields = {
        "target": Estimate(0.81, 0.75, 0.86, 200),
        "slices": {"knowledge": Estimate(0.30, 0.22, 0.40, 100)},
        "training": TrainingRecord(
            loss=((1, 5.1), (2, 2.0), (3, 1.1)), validation_loss=((3, 0.759),), wall_s=143.0
        ),
        "verdict": verdict("fail", rules=rules, macro=MACRO, missed=missed),
    }
    return make_fine_tune("lora", 0.81, 0.07, **(fields | changes))


def add_base_verdict(f):
    return replace(f, verdict=verdict("pass", macro=Estimate(0.0, 0.0, 0.0, 1800), missed=()))


def shown_item(text="a text", task="chat", item="chat-1", name="lora") -> ShownItem:
    answers = {"base": ShownAnswer(text, "ok", "✓"), name: ShownAnswer(text, "truncated", "✗")}
    return ShownItem(task, item, text, (text,), answers)


def report(*more, **changes) -> ExperimentReport:
    facts = (*(f if f.method == "classifier" else add_base_verdict(f) for f in alternatives()), lora(), *more)
    chat = comparison(-0.353, 0.1, task="chat", lost=tuple(f"chat-{i}" for i in range(12)))
    code = comparison(0.042, 0.01, task="code", metric="bits_per_byte", unit=BITS)
    safe = comparison(-0.1, 0.2, task="safe", metric="no_refusal")
    fields = {
        "experiment": "support", "base_model": "smollm2-135m", "metric": "exact_match", "facts": facts,
        "comparisons": {"lora": (chat, code, safe)}, "decision": make_decision(facts),
        "header": {"device": "cpu", "precision": "bf16"}, "task": "support", "margins": {"chat": 0.05},
        "macro_margin": 0.02, "answers": (shown_item(), shown_item(item="chat-90")),
        "origins": {"lora": {"run": "lora-0", "weights": "94a4", "git_sha": "abc", "torch": "2.13"}},
    }  # fmt: skip
    return ExperimentReport(**(fields | changes))


class Page(HTMLParser):
    """The parts of a page that tests read, as a browser would build them."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())


def test_the_page_needs_nothing_but_itself_and_its_links_lead_to_its_sections():
    page = Page(html(report()))
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & set(page.tags)
    assert [a for a in page.attributes if a[1].startswith("on") or a[1] in ("src", "srcset", "action")] == []
    assert {value[0] for _, name, value in page.attributes if name == "href"} == {"#"}
    (policy,) = [v for tag, name, v in page.attributes if tag == "meta" and v.startswith("default-src")]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert re.findall(r"url\(|@import", html(report())) == []

    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    assert {value[1:] for _, name, value in page.attributes if name == "href"} <= set(ids)


def test_the_page_prints_the_numbers_of_the_json():
    document = report()
    plain, text = to_json(document), Page(html(document)).text
    assert plain["decision"]["sentence"] in text
    for f in plain["facts"]:
        target = f["target"]
        assert formatting.interval(target["score"], target["low"], target["high"]) in text
    for c in plain["comparisons"]["lora"]:
        assert formatting.change(formatting.Unit(**c["unit"]), c["delta"], c["low"], c["high"]) in text
    for rule in plain["facts"][-1]["verdict"]["rules"]:
        assert rule["sentence"] in text
    assert "a real loss of 3 points on every task would pass: 12 %" in text
    assert "a fine-tune that lost nothing would not pass: 80 %" in text


def make_hostile_report() -> ExperimentReport:
    document = report(candidate(EVIL, 0.3, slices={EVIL: Estimate(0.3, 0.2, 0.4, 50)}), candidate("b", 0.2))
    failed = candidate("c", 0.1, state="failed", target=None, validation=None, error=EVIL)
    evil = comparison(-0.353, 0.1, task=EVIL, lost=(EVIL,))
    evil_item = shown_item(EVIL, EVIL, EVIL, EVIL)
    return replace(
        document, facts=(*document.facts, failed), notes=(EVIL,), header={"device": EVIL},
        comparisons={"lora": (*document.comparisons["lora"], evil)}, answers=(*document.answers, evil_item),
        origins={"lora": {"run": EVIL, EVIL: EVIL}},
    )  # fmt: skip


def test_text_of_models_and_files_is_text_on_the_page():
    page = Page(html(make_hostile_report()))
    assert not {"script", "img", "a:"} & set(page.tags)
    assert [a for a in page.attributes if a[1].startswith("on")] == []
    assert {value[0] for _, name, value in page.attributes if name == "href"} == {"#"}
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7*7 }} {% raw %}" in page.text
    assert page.tags["section"] == html(make_hostile_report()).count("</section>")
    text = markdown(reports.experiment_document(make_hostile_report()))
    assert not any(markup in text for markup in ("<script", "<img", "](http"))


def test_no_control_or_direction_character_reaches_any_form(tmp_path):
    for path in write(make_hostile_report(), tmp_path):
        if path.suffix != ".json":  # JSON escapes them itself
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", path.read_text())
    assert "\x1b" not in (tmp_path / "support.json").read_text()


def test_no_control_or_direction_character_reaches_the_terminal():
    stream, megabyte = io.StringIO(), "x\x1b[31m\u202e" * 140_000
    document = replace(make_hostile_report(), answers=(shown_item(megabyte),), notes=(EVIL, megabyte))
    terminal(document, Console(file=stream, width=200, force_terminal=False), verbose=True)
    printed = stream.getvalue()
    assert "<script>" in printed
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", printed)


EXACT = mean_metric("exact_match", lambda output, example: None)


def test_an_answer_is_cleaned_keeps_its_lines_and_is_cut_at_a_megabyte():
    row = SampleResult("chat", "test", "x", 0, "ok", "a" * 1_000_000, "q", ("r",), {})
    page = html(replace(report(), answers=tuple(show_items(EXACT, {"base": [row]}, 1))))
    assert "(cut: 1,000,000 characters)" in page
    assert len(page) < 100_000

    assert clean_lines("a\x1b[31m b\r\n\n\tc\x00\u202ed\x0bé") == "a b\n\n    cd\né"
    assert clean(EVIL) == clean(clean_lines(EVIL))


@given(st.text())
def test_what_is_not_unicode_can_still_be_written(text):
    row = SampleResult("chat", "test", "x", 0, "ok", f"{text}\ud800", "q", ("r",), {})
    (item,) = show_items(EXACT, {"base": [row]}, 1)
    assert json.dumps(item.answers["base"].text, ensure_ascii=False).encode()


def test_items_that_arms_score_otherwise_are_shown_first_spread_over_all_of_them():
    def arm(name, n_right):
        prompts = ("Context: x\n\nq", "q")[name == "prompt"]
        return [
            SampleResult("chat", "test", f"i{n:02}", n, "ok", f"{name} {n}", prompts, ("r",), {"exact_match": (float(n < n_right),)})
            for n in range(40)
        ]  # fmt: skip

    items = show_items(EXACT, {"prompt": arm("prompt", 10), "rag": arm("rag", 14)}, 6)
    assert [item.item for item in items] == ["i10", "i11", "i12", "i13", "i00", "i22"]
    assert [item.is_agreed for item in items] == [False] * 4 + [True] * 2
    first = items[0]
    assert (first.prompt, first.references) == ("q", ("r",))
    assert {name: (answer.mark, answer.text) for name, answer in first.answers.items()} == {
        "prompt": ("✗", "prompt 10"), "rag": ("✓", "rag 10"),
    }  # fmt: skip


def test_the_page_lays_items_out_by_candidates_and_can_leave_out_what_they_agree_on():
    agreed = replace(
        shown_item(item="chat-7"),
        answers={"base": ShownAnswer("x", "ok", "✓"), "lora": ShownAnswer("x", "ok", "✓")},
    )
    text = html(report(answers=(shown_item(), agreed)))
    assert text.count('<table class="matrix">') == 1
    assert 'class="right"><details><summary>✓ a text</summary>' in text
    assert 'class="wrong"><details><summary>✗ a text (truncated)</summary>' in text
    assert text.count('<tr class="agreed">') == 1
    assert "expected: <bdi>a text</bdi>" in text


def parse_svg(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def test_the_front_is_coloured_and_what_is_dominated_is_grey():
    picture = front(report())
    marks_ = {e.text.split(":")[0]: e for e in parse_svg(picture).iter() if e.tag.endswith("}title")}
    assert set(marks_) == {"lora", "knn", "fixed", "ranked", "prompt"}
    grey = [
        g for g in parse_svg(picture) if g.tag.endswith("}g") and "dominated" in ET.tostring(g, "unicode")
    ]
    assert sorted(g[0].text.split(":")[0] for g in grey) == ["fixed", "prompt", "ranked"]
    assert "not measured on the capability suite: bag" in picture
    assert "margin of the gate: −2.0 points" in picture


def test_a_report_names_the_level_of_its_intervals():
    assert "with 95 % confidence. In brackets: 95 % intervals." in markdown(
        reports.experiment_document(report())
    )
    strict = markdown(reports.experiment_document(report(family=Family(alpha=0.01))))
    assert "with 99 % confidence. In brackets: 95 % intervals (99 % for changes on the suites" in strict


def test_the_heat_map_holds_every_task_in_its_unit_and_marks_what_is_shown():
    heat_map = heat(report())
    assert heat_map.labels == ("lora",)
    assert [task for task, _ in heat_map.rows] == ["chat", "code (bits per byte)", "safe"]
    (chat,), (code,), (safe,) = (cells for _, cells in heat_map.rows)
    assert (chat.change, chat.strength, chat.shown) == ("−35.3", -1.0, True)
    assert (safe.change, safe.shown) == ("−10.0", False)
    assert chat.tooltip == "exact_match −35.3 [−45, −25] points, n = 200"
    assert (code.change, code.interval, code.strength < 0) == ("+0.042", "[+0.032, +0.052]", True)


def table(document: ExperimentReport) -> list[dict[str, str]]:
    from harness.report import to_csv

    return list(csv.DictReader(io.StringIO(to_csv(document, "measured"))))


def test_csv_holds_a_row_for_each_candidate_task_and_metric():
    records = [r for r in table(report()) if r["candidate"] == "lora"]
    assert [(r["task"], r["metric"], r["slice"]) for r in records] == [
        ("support", "exact_match", ""),
        ("support", "exact_match", "knowledge"),
        ("chat", "exact_match", ""),
        ("code", "bits_per_byte", ""),
        ("safe", "no_refusal", ""),
    ]
    assert records[0]["compared_with"] == "knn"
    assert float(records[0]["score"]) == 0.81
    assert float(records[2]["delta"]) == -0.353
    assert [float(records[2][f"base{end}"]) for end in ("", "_low", "_high")] == [0.70, 0.63, 0.76]
    assert records[2]["lost"] == "12"


def test_no_cell_of_csv_is_a_formula():
    evil = candidate("=1+1", 0.3)
    assert any(r["candidate"] == "'=1+1" for r in table(report(evil)))


def test_junit_has_a_suite_for_each_verdict_and_a_case_for_each_rule(tmp_path):
    write(report(), tmp_path)
    suites = list(ET.parse(tmp_path / "support.junit.xml").getroot())
    assert [s.get("name") for s in suites][-1] == "support: lora"
    assert [case.get("name") for case in suites[-1]] == ["macro", "target", "critical"]
    assert (suites[-1].get("failures"), suites[-1].get("skipped")) == ("2", "1")
    assert "support: bag" not in [s.get("name") for s in suites]

"""Printed and written reports: tables, sentences, Markdown, JSON; digits, signs, units, choices."""

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_facts import BITS, alternatives, candidate, comparison, make_decision, make_fine_tune, verdict
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from harness import formatting, plugins
from harness import report as reports
from harness.analysis.candidate_facts import AnswerFacts, UnreadAnswers
from harness.analysis.estimators import Estimate
from harness.analysis.verdict import Rule
from harness.cli.app import write_report
from harness.cli.catalog import map_purposes
from harness.cli.options import ExperimentFile
from harness.config import CommandLine
from harness.records import TrainingRecord
from harness.report import ExperimentReport, experiment_document, live_line, markdown, read, terminal, write
from harness.report.escape import clean, shorten
from harness.report.escape import markdown as escape
from harness.spec import DecidePolicy

CHAT = comparison(-0.03, 0.04, task="chat", lost=tuple(f"chat-{i}" for i in range(12)), gained=("chat-90",))
CODE = comparison(
    0.042, 0.01, task="code", metric="bits_per_byte", base=1.088, base_low=1.06, base_high=1.11, new=1.13,
    new_low=1.10, new_high=1.16, unit=BITS,
)  # fmt: skip
LORA = make_fine_tune(
    "lora",
    0.81,
    0.07,
    target=Estimate(0.81, 0.75, 0.86, 200),
    slices={"knowledge": Estimate(0.30, 0.22, 0.40, 100), "behaviour": Estimate(0.90, 0.82, 0.95, 100)},
    training=TrainingRecord(
        loss=((5, 2.9), (45, 0.412)), tokens_per_s=251.0, wall_s=200.0, peak_memory_gib=3.21,
        n_trainable=4_884_480,
    ),
)  # fmt: skip

COLUMNS = ["candidate", "target", "vs best", "other", "lost/", "$/1k", "p50", "verdict"]


def report(facts=None, **changes) -> ExperimentReport:
    facts = tuple(facts or [*alternatives(), LORA])
    fields = {
        "experiment": "support", "base_model": "smollm2-135m", "metric": "exact_match", "facts": facts,
        "comparisons": {"lora": (CHAT, CODE)}, "decision": make_decision(facts),
        "header": {"device": "cpu", "precision": "bf16", "wall_s": 600.0},
    }  # fmt: skip
    return ExperimentReport(**(fields | changes))


def print_report(document: ExperimentReport, width: int = 100) -> list[str]:
    stream = io.StringIO()
    terminal(document, Console(file=stream, width=width), verbose=True)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def cells_of(lines: list[str], name: str) -> list[str]:
    """Cut the table's line that starts with this name where the header's columns start."""
    header = next(line for line in lines if line.startswith("candidate"))
    starts = [header.index(column) for column in COLUMNS]
    (line,) = [line for line in lines if re.match(rf"{re.escape(name)}\s{{2,}}", line)]
    return [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]


def test_the_best_on_test_comes_first_and_the_failed_last_with_its_reason():
    failed = candidate("dpo", 0.99, state="failed", target=None, validation=None, error="out of memory")
    names = [line.split()[0] for line in print_report(report([failed, *alternatives(), LORA]))[1:8]]
    assert names == ["lora", "knn", "bag", "fixed", "ranked", "prompt", "dpo"]

    failed = candidate(
        "dpo", 0, state="failed", target=None, validation=None, error="out of memory; try: batch_size=1"
    )
    lines = print_report(report([*alternatives(), LORA, failed]))
    assert cells_of(lines, "dpo")[-1] == "ERROR"
    assert " - dpo failed: out of memory; try: batch_size=1" in lines


def test_the_decision_and_what_to_do_next_come_last_however_narrow_the_terminal():
    document = report()
    assert print_report(document, width=40)[-5:] == [
        document.decision.sentence,
        "next: harness promote lora makes lora the champion, which later gates compare with",
        "next: harness export lora --to merged writes one model; --to gguf for llama.cpp and Ollama",
        "next: harness serve lora serves it here by OpenAI's protocol",
        "next: harness compare 'seeds=[0,1,2]' trains lora with 3 seeds in all, which shows by how much its trainings differ",
    ]


def commands(document: ExperimentReport) -> list[str]:
    return [step.line for step in experiment_document(document).first.next_steps]


def test_next_commands_name_the_file_and_the_overrides_as_a_shell_reads_them():
    typed = CommandLine("my project/harness.yaml", ("seeds=[0,1]",))
    tail = "-c 'my project/harness.yaml' 'seeds=[0,1]'"
    lost = verdict("fail", rules=(Rule("macro", "fail", "a loss", {"margin": 0.02, "n_tasks": 8}),))
    failing, useless = (make_fine_tune("lora", 0.74 + x, x, verdict=lost) for x in (0.07, -0.01))
    rescued, *other_commands = commands(report([*alternatives(), failing], typed=typed))[::-1]
    assert (rescued, other_commands) == (
        f"harness rescue lora {tail}",
        [f"harness promote knn --force --reason REASON {tail}"],
    )
    assert not any("rescue" in line for line in commands(report([*alternatives(), useless])))
    seeds = "harness compare -c 'my project/harness.yaml' 'seeds=[0,1,2]'"
    into_use = [f"harness {words} {tail}" for words in ("export lora --to merged", "serve lora")]
    assert commands(report(typed=typed)) == [f"harness promote lora {tail}", *into_use, seeds]
    assert commands(report(decision=None, typed=typed)) == [f"harness compare {tail}"]
    of_grid = report([*alternatives(), make_fine_tune("lora[r=8]", 0.81, 0.07)])
    assert commands(of_grid)[0] == "harness promote 'lora[r=8]'"
    of_two = CommandLine("a.yaml", (), ("lora", "knn"))
    assert commands(report(smoke=True, typed=of_two)) == ["harness compare --candidates lora,knn -c a.yaml"]


def make_widest_row(name: str) -> object:
    """Make a row of maximal width: one-decimal intervals everywhere."""
    macro = verdict("inconclusive", macro=Estimate(-0.123, -0.142, -0.104, 9000), lost=1310, gained=1270)
    return make_fine_tune(
        name, 0.99, 0, verdict=macro, target=Estimate(0.999, 0.981, 1.0, 9000),
        vs_untrained=comparison(-0.123, 0.019), cost_per_1k_usd=0.00041, latency_p50_s=0.034,
    )  # fmt: skip


def test_the_table_fits_100_columns_with_long_names_and_long_numbers():
    names = [f"few-shot-with-a-very-long-name-indeed[select=knn,shots={n}]" for n in (4, 8)]
    facts = [*(candidate(name, 0.5) for name in names), make_widest_row("lora"), *alternatives()]
    table = print_report(report(facts), 100)[:9]
    assert max(map(cell_len, table)) <= 100
    cut_names = [line.split()[0] for line in table if "…" in line]
    assert len(set(cut_names)) == 2, "names of a grid stay apart"
    assert "UNDECIDED" in "\n".join(table)
    assert "−12.3 [−14.2, −10.4]" in "\n".join(table), "forgetting keeps its decimals"


def test_a_page_shows_disturbed_figures_with_their_mark_and_says_what_it_means():
    figures = {"cost_per_1k_usd": 0.00041, "latency_p50_s": 0.034}
    lora = make_widest_row("lora")
    speed = lora.speed._replace(latency_p50_s=None, disturbed=figures)
    disturbed = replace(lora, cost_per_1k_usd=None, speed=speed)
    document = report([disturbed, *alternatives()])
    (lora,) = (line.split() for line in print_report(document, 100) if line.startswith("lora  "))
    assert lora[-3:] == ["~", "~", "UNDECIDED"]
    page = markdown(experiment_document(document))
    assert "| \\~0.00041 | \\~34 ms | UNDECIDED |" in page
    assert "\\~: measured while other work used the processors" in page
    assert "other work took" not in markdown(experiment_document(report(alternatives())))


@given(st.text(min_size=1, max_size=60), st.integers(3, 40))
def test_a_shortened_text_fits_and_a_short_one_is_kept(text, width):
    assert cell_len(shorten(text, width)) <= width
    assert cell_len(text) > width or shorten(text, width) == text


EVIL = "x [red]a[/red] :smile: \x1b[31mb\x1b[0m\x1b]0;title\x07 | `c` <b> *d*\nnext \u202eend"


def test_markup_ansi_and_line_breaks_in_names_are_printed_as_harmless_text():
    failed = candidate("dpo", 0, state="failed", target=None, error=EVIL)
    text = "\n".join(print_report(report([*alternatives(), LORA, failed]), 200))
    assert " - dpo failed: x [red]a[/red] :smile: b | `c` <b> *d* next end" in text
    assert "\x1b" not in text


def test_markdown_escapes_what_would_open_a_cell_or_a_tag():
    assert escape(EVIL) == r"x [red]a[/red] :smile: b \| \`c\` &lt;b> \*d\* next end"
    assert escape("[a](http://b)") == r"[a]\(http://b)"
    assert escape("few_shot and _em_") == r"few_shot and \_em\_"


@given(st.text())
def test_a_cleaned_text_is_one_line_without_control_characters(text):
    assert clean(text).isprintable()
    assert clean(clean(text)) == clean(text)


def test_the_markdown_of_an_experiment():
    facts = [*alternatives()[2:], LORA]
    rule = verdict("pass", "the macro −0.4 [−1.5, +0.7] is above −2")
    facts[-1] = make_fine_tune(
        "lora", 0.81, 0.07, verdict=rule, slices=LORA.slices, training=LORA.training, target=LORA.target
    )
    not_admitted = {"chat": "the base is at chance"}
    document = report(facts, not_admitted=not_admitted, notes=("3 prompts were too long",))
    assert markdown(experiment_document(document)) == GOLDEN


def test_a_smoke_report_is_marked_at_every_title_and_table():
    document = report(smoke=True)
    text, lines = markdown(experiment_document(document)), print_report(document)
    titles = [line for line in text.splitlines() if line.startswith("#")]
    assert all(title.endswith("(smoke, not evidence)") for title in titles)
    assert len(titles) > 5
    assert lines[0] == "support: smoke, not evidence"
    assert lines[-2].endswith("(smoke, not evidence)")
    assert lines[-1] == "next: harness compare measures it; a smoke run (--quick, --limit) is not evidence"
    assert reports.to_json(document)["evidence"] == "smoke, not evidence"
    assert live_line(LORA, "exact_match", smoke=True).endswith("smoke, not evidence")


def test_a_smoke_report_never_takes_the_place_of_a_result(tmp_path):
    written = [*write(report(), tmp_path), *write(report(smoke=True), tmp_path)]
    assert [path.name for path in written] == [
        f"{name}.{suffix}"
        for name in ("support", "support-smoke")
        for suffix in ("md", "json", "html", "csv", "junit.xml", "front.svg")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)


def test_json_holds_plain_types_and_null_for_what_is_not_finite(tmp_path):
    figures = {"entropy": np.array([1.5, math.nan]), "n": np.int64(3), "ok": np.bool_(True)}
    odd = candidate("odd", 0.5, training=TrainingRecord(others=figures))
    written = write(report([*alternatives(), odd], header={"wall_s": math.inf}), tmp_path)[1]

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    data = json.loads(written.read_text(encoding="utf-8"), parse_constant=refuse)
    assert data["facts"][-1]["training"] == {"entropy": [1.5, None], "n": 3, "ok": True}
    assert data["header"] == {"wall_s": None}
    rate = {"scale": 100.0, "name": "points", "higher_is_better": True, "low": None, "high": None}
    ends = {"low": 0.15000000000000002, "high": 0.25}
    assert data["facts"][0]["target"] == {"score": 0.2, **ends, "n": 200, "unit": rate, "n_errors": 0}


def test_a_line_says_what_a_candidate_reached_as_soon_as_it_is_done():
    assert live_line(LORA, "exact_match") == "lora: EM 81.0 [75, 86] · 0.11 USD/1k · p50 0.2 s · PASS"
    assert live_line(candidate("dpo", 0, state="failed", error="out of memory"), "exact_match") == (
        "dpo failed: out of memory"
    )


GOLDEN = (Path(__file__).parents[1] / "golden_report.md").read_text(encoding="utf-8")


def test_a_report_of_a_part_leaves_that_of_all_alone_and_one_without_work_keeps_its_time(tmp_path):
    at = ExperimentFile([], tmp_path / "harness.yaml")
    write_report(report(), at)
    write_report(report([*alternatives()]), at, ["prompt", "few-shot[shots=4]"])
    names = {path.name for path in (tmp_path / "reports").glob("*.json")}
    assert names == {"support.json", "support-of-prompt-few-shot-shots-4-.json"}
    assert len(read(tmp_path / "reports" / "support.json").facts) == 6

    again = write_report(report(header={"device": "cpu"}), at)
    assert again.header["wall_s"] == 600.0
    assert read(tmp_path / "reports" / "support.json").header["wall_s"] == 600.0


def test_the_terminal_shows_five_notes_and_all_where_it_is_asked():
    facts = [*alternatives(), LORA, make_fine_tune("dpo", 0.80, 0.06, "fail")]
    document = report(facts, notes=tuple(f"lora: remark {i}" for i in range(9)))
    stream = io.StringIO()
    terminal(document, Console(file=stream, width=100))
    lines = stream.getvalue().splitlines()
    notes = [line for line in lines if line.startswith(" - ")]
    assert notes[0].strip() == "- what the verdicts rest on: dpo FAIL (forgetting)"
    assert notes[1].startswith(" - gain: lora reaches 81.0 [75, 86] exact_match")
    assert len(notes) == 6
    assert re.fullmatch(r" - \d+ more notes: see the report, or --verbose", notes[-1])
    assert all(cell_len(line) <= 100 for line in lines[:-5]), "but for the decision and the next commands"
    assert not any("remark 8" in line for line in lines)
    assert any("remark 8" in line for line in print_report(document))


def test_cut_and_unparsable_answers_stand_beside_the_scores():
    prompt, *rest = alternatives()
    document = report(
        [replace(prompt, answers=AnswerFacts(unread=UnreadAnswers(0.86, 0.08, 24))), *rest, LORA]
    )
    cut = "* answers cut at max_new_tokens: 24: prompt 86 %; set max_new_tokens: 48"
    unparsable = "* empty answers, or none of the labels: prompt 8 %; tell the prompt to answer with"
    for text in (markdown(experiment_document(document)), " ".join(" ".join(print_report(document)).split())):
        assert cut in text
        assert unparsable in text
    few = report([replace(prompt, answers=AnswerFacts(unread=UnreadAnswers(0.05, 0.0, 24))), *rest, LORA])
    assert "max_new_tokens" not in markdown(experiment_document(few))


def test_what_fell_and_is_not_judged_stands_on_the_first_page_with_its_key():
    fell = comparison(-0.216, 0.08, task="harmful", base=0.216, new=0.0)
    document = report(
        comparisons={"lora": (fell,)},
        not_admitted={"harmful": "harmful is reported; gate.safety or gate.critical would judge it"},
    )
    sentences = [r.sentence for r in experiment_document(document).first.reasons if r.about == "Not judged"]
    assert sentences == [
        "harmful got worse (lora 21.6 → 0.0): harmful is reported; gate.safety or gate.critical would judge it."
    ]


ROOT = Path(__file__).parents[2]
KEPT = sorted([*(ROOT / "reports" / "examples").glob("*.json"), ROOT / "reports" / "support.json"])


def form(text: str) -> list[str]:
    lines = text.splitlines()
    heads = {i for i, line in enumerate(lines[1:]) if line.startswith("|---")}
    return [line for i, line in enumerate(lines) if i in heads or line.startswith(("#", "!["))]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_kept_report_has_the_form_that_is_written_today(path):
    stored = reports.read(path)
    written = reports.markdown(reports.experiment_document(stored))
    assert form(path.with_suffix(".md").read_text()) == form(written)
    assert path.with_suffix(".front.svg").exists() == bool(reports.front_file(stored))


def test_an_interval_has_as_many_digits_as_it_is_narrow_and_its_metrics_own_unit():
    assert formatting.interval(0.81, 0.75, 0.86) == "81.0 [75, 86]"
    assert formatting.points(-0.004, -0.015, 0.007) == "−0.4 [−1.5, +0.7]"
    assert formatting.points(0.07, 0.02, 0.12) == "+7.0 [+2, +12]"
    assert formatting.points(-0.004, -0.015, 0.007, whole=True) == "−0.4 [−2, +1]"
    assert formatting.points(-0.0001, -0.0002, 0.0002) == "0.0 [0.0, 0.0]"
    assert formatting.figure(14.0, -4.0, 24375.4) == "14 [−4, 24,375]"
    assert formatting.count(3080) == "3,080"

    perplexity = formatting.Unit(1.0, "perplexity", higher_is_better=False)
    assert formatting.score(perplexity, 12.3, 11.9, 12.8) == "12.30 [11.90, 12.80]"
    assert formatting.score(perplexity, 0.00031, 0.00018, 0.00042) == "0.00031 [0.00018, 0.00042]"
    assert formatting.score(perplexity, 451.25, 390.5, 512) == "451 [390, 512]"
    assert (formatting.plain(0.00031), formatting.plain(0.0)) == ("0.00031", "0.000")
    assert formatting.change(perplexity, 0.042) == "+0.042"
    assert formatting.score(formatting.RATE, 0.5) == "50.0"


# fmt: off
PRINTED = {
    formatting.usd: {0.11: "0.11", 0.00041: "0.00041", 0.0004: "0.0004", 0: "0.00", 1250: "1,250", math.inf: "∞"},
    formatting.seconds: {0.0002: "<1 ms", 0.034: "34 ms", 0.2: "0.2 s", 45.3: "45 s", 59.7: "1 min 0 s", 200: "3 min 20 s", 7500: "2 h 5 min"},
    formatting.figure: {14.0: "14", 7.134: "7.134", 0.00234: "0.0023", -2e-5: "0", -3.5: "−3.5", 31693.2: "31,693", None: "–"},
}
# fmt: on


def test_amounts_times_and_figures_have_few_digits_in_the_unit_that_fits_and_the_unknown_is_a_dash():
    for print_it, texts in PRINTED.items():
        assert {value: print_it(value) for value in texts} == texts
    for print_it in (*PRINTED, formatting.percent, formatting.points, formatting.count):
        assert print_it(None) == print_it(math.nan) == "–"


@given(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)))
def test_no_number_breaks_the_formatter_and_none_has_a_hyphen_for_a_minus(x):
    printed = [formatting.points(x, x, x)]
    printed += [f(x) for f in (formatting.percent, formatting.usd, formatting.count, formatting.plain)]
    assert not any("-" in text or "nan" in text for text in printed)


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_plugin_is_listed_with_the_first_line_of_its_docstring(kind):
    purposes = map_purposes(kind)
    assert sorted(purposes) == plugins.names(kind)
    for name, purpose in purposes.items():
        assert plugins.load(kind, name).__doc__.startswith(purpose)
        assert purpose


def test_every_key_of_the_file_is_listed_with_its_default_and_meaning():
    texts = map_purposes("keys")
    assert texts["gate.macro"].startswith("0.02 if not written. ")
    assert texts["device"].startswith("auto, cpu, cuda; auto if not written. ")
    assert texts["name"].startswith("has to be written. ")
    assert texts["candidates.NAME.init_from"].startswith("nothing if not written. ")
    assert texts["rescue.scales"].startswith("0.75, 0.5, 0.25 if not written. ")
    assert texts["rescue.steps"].startswith("earlier, scale, merge, kl, replay, ")
    assert {f"decide.{name}" for name in DecidePolicy.model_fields} <= texts.keys()
    assert texts["decide"].startswith("Prices, volumes and needs")
    assert texts["gate.drift"].startswith("nothing if not written. `drift` is a rise in bits per byte")
    assert [key for key, text in texts.items() if re.fullmatch("[^`]*(if not|to be) written[.]", text)] == []

"""The CLI commands: what they print on which stream, and how they end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import tiny_experiment
from checked_rows import list_cases
from fake_facts import candidate, make_fine_tune, verdict

from harness import store
from harness.analysis.decision import Decision
from harness.analysis.gate_verdict import GateResult
from harness.cache import cache_dir
from harness.cli.compare import exit_code
from harness.cli.options import ExperimentFile
from harness.cli.runs import next_step
from harness.config import CommandLine
from harness.report import ExperimentReport
from harness.spec import GatePolicy
from harness.store import Store

MAIN = "from harness.cli import main; main()"
FORMS = ("md", "json", "html", "csv", "junit.xml")


def start_process(cwd, *arguments, code=MAIN):
    """Start the command as a separate process."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture
def copy(finished_run, tmp_path):
    return shutil.copytree(finished_run[0], tmp_path / "copy")


@pytest.fixture(scope="module")
def unchanged_folder(finished_run, tmp_path_factory):
    folder = shutil.copytree(finished_run[0], tmp_path_factory.mktemp("unchanged") / "copy")
    (folder / "other.yaml").write_text("name: other\n")
    return folder


@pytest.fixture(scope="module")
def measured_folder(finished_run, command_driver, own_cache, tmp_path_factory):
    """Copy the finished experiment and compare it in a separate process, which measures the machine."""
    folder = shutil.copytree(finished_run[0], tmp_path_factory.mktemp("measured") / "copy")
    assert command_driver.run(folder, "compare") == 0, (folder / "said.txt").read_text()
    return folder


@pytest.mark.e2e
@pytest.mark.parametrize("verb", [("compare",), ("gate", "--candidate", "lora")])
def test_what_is_stored_is_judged_again_without_a_model(measured_folder, verb):
    heavy = "torch transformers tokenizers trl peft pandas sklearn scipy.stats datasets pyarrow".split()
    code = (
        "import sys, atexit; atexit.register(lambda: print([m for m in "
        f"{heavy} if m in sys.modules])); {MAIN}"
    )
    output, errors = start_process(measured_folder, *verb, code=code).communicate()
    assert output.endswith("[]\n"), errors


def test_without_a_verb_the_verbs_are_shown_and_the_version_is_printed(harness):
    assert "compare" in harness().stdout + harness().stderr
    assert harness("--version", check=0).stdout == f"harness-evals {version('harness-evals')}\n"


def test_compare_prints_the_table_of_what_is_selected_and_progress_apart(harness, copy):
    process = harness("compare", cwd=copy, check=0)
    table, progress = process.stdout, process.stderr
    assert table.startswith("candidate")
    assert "lora" in table
    assert max(len(line) for line in table.splitlines()[:7]) <= 100
    assert progress.startswith("tiny: 6 candidates on")
    assert "candidate " not in progress
    assert {p.name for p in (copy / "reports").iterdir()} == {
        f"tiny.{form}" for form in (*FORMS, "front.svg")
    }

    printed = json.loads(harness("compare", "--json", cwd=copy, check=0).stdout)
    assert printed == json.loads((copy / "reports" / "tiny.json").read_text())
    assert printed["evidence"] == "measured"
    assert {f["name"] for f in printed["facts"]} == {"prompt", "shots", "ranked", "bag", "lora", "hybrid"}
    printed = json.loads(harness("compare", "--json", "--candidates", "bag,prompt", cwd=copy, check=0).stdout)
    assert {f["name"] for f in printed["facts"]} == {"bag", "prompt"}


@pytest.mark.e2e
def test_a_report_names_what_it_leaves_out_shows_prompts_as_sent_and_says_what_compare_said(harness, copy):
    def read(*words):
        return json.loads(harness(*words, "--json", cwd=copy, check=0).stdout)

    some, whole, compared = read("report", "--candidates", "bag,prompt"), read("report"), read("compare")
    left_out = "not in this report, of the candidates that are written: shots, ranked, lora, hybrid"
    assert left_out in some["notes"]
    assert {fact["name"] for fact in some["facts"]} == {"prompt", "bag"}
    assert [note for note in whole["notes"] if note.startswith("not in this report")] == []
    assert {k for k in compared if compared[k] != whole[k]} <= {"header"}

    assert all(prompt["was_sent"] for item in whole["answers"] for prompt in item["prompts"])
    first = next(item for item in whole["answers"] if item["task"] == "letters")
    assert {column for prompt in first["prompts"] for column in prompt["columns"]} == set(first["answers"])
    assert any("<|im_start|>assistant" in prompt["text"] for prompt in first["prompts"])

    output = harness("decide", "--candidates", "prompt", cwd=copy, check=0).stdout
    assert ("prompt" in output, "lora" in output) == (True, False)
    override = "candidates.more={prompting: {few_shot: {shots: 1}}}"
    output = harness("report", override, cwd=copy, check=5).stderr
    assert "found no run of more as written now" in output
    assert "or --candidates prompt," in output


def test_a_dry_run_prints_tokens_and_runs_nothing(harness, tiny, tmp_path):
    tiny_experiment.write(tmp_path, tiny)
    process = harness("compare", "--dry-run", check=0)
    lines = process.stdout.splitlines()
    columns = "candidate trained read generated about cost USD memory GiB fits"
    assert lines[0].split() == columns.split()
    assert [line.split("  ")[0] for line in lines[1:9]] == [
        "capability suite of the base",
        *("prompt", "shots", "ranked", "bag", "lora", "hybrid"),
        "all, from nothing",
    ]
    assert len([line for line in lines if line.startswith("hybrid")]) == 1
    assert "nothing was run" in process.stderr
    assert "passes as one of 2" in process.stderr
    assert "passes as one of 2" not in harness("compare", "--dry-run", "--quick", check=0).stderr
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "reports").exists()


@pytest.mark.e2e
def test_a_dry_run_says_which_steps_workers_get(harness, tiny, tmp_path):
    tiny_experiment.write(tmp_path, tiny)
    log = harness("compare", "--dry-run", "--executor", "local", "--workers", "2", check=0).stderr
    assert "workers (local, at most 2 at once) would get 11 steps (base 2, fit 2, control 1, answer 6)" in log
    log = harness("compare", "--dry-run", "--workers", "3", check=0).stderr
    assert "workers: 3, and no executor: one process does it all; try --executor local" in log


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (
            "--strict",
            "macro margin 2.0 points: with 12 items over 2 tasks a fine-tune that lost nothing passes as one of 2",
        ),
        ("--learning-curve", "30 training rows; expected at least 64"),
    ],
)
def test_what_so_few_rows_cannot_show_is_refused_before_it_runs(harness, tiny, tmp_path, flag, said):
    tiny_experiment.write(tmp_path, tiny)
    assert said in harness("compare", flag, check=2).stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.e2e
def test_a_quick_run_is_marked_on_every_page_and_takes_no_results_place(harness, copy):
    shutil.rmtree(copy / "reports", ignore_errors=True)
    process = harness("compare", "--quick", "--candidates", "prompt", cwd=copy, check=0)
    assert "smoke, not evidence" in process.stdout
    pages = {p.name for p in (copy / "reports").iterdir()}
    # A dozen items may admit no task; then there is no front picture.
    assert pages - {"tiny-of-prompt-smoke.front.svg"} == {f"tiny-of-prompt-smoke.{form}" for form in FORMS}
    assert "smoke, not evidence" in (copy / "reports" / "tiny-of-prompt-smoke.md").read_text()
    runs = json.loads(harness("runs", "list", "--json", cwd=copy).stdout)
    assert len(runs) == 6


@pytest.mark.e2e
@pytest.mark.parametrize(("line", "said"), list_cases("refused_commands.txt", "commands"))
def test_what_cannot_be_used_ends_with_2(harness, unchanged_folder, line, said):
    process = harness(*line.split(), cwd=unchanged_folder, check=2)
    assert process.stdout == ""
    assert said.replace("\\n", "\n") in process.stderr
    assert not (unchanged_folder / "rnus").exists()


WAITS = """\
import sys
import time

from harness.metrics import mean_metric


def metric(task):
    return mean_metric("waits", wait)


def wait(output, example):
    print("an answer is scored", file=sys.stderr, flush=True)
    time.sleep(60)
    return 1.0
"""


@pytest.mark.e2e
def test_an_interrupt_ends_with_130_and_says_how_to_go_on(command_driver, tiny, tmp_path):
    tiny_experiment.write(tmp_path, tiny)
    (tmp_path / "waits.py").write_text(WAITS)
    settings = ("--candidates", "ranked", "target.metrics=[waits.py]", "suites=[]")
    log = tmp_path / "said.txt"

    def is_scored():
        """Send the interrupt only once Python itself waits for it: a library at work may swallow it."""
        return log.exists() and "an answer is scored\n" in log.read_text()

    assert command_driver.run(tmp_path, "compare", *settings, ends=(is_scored, signal.SIGINT)) == 130
    output = log.read_text()
    assert "run the same command to go on" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("outcomes", "changes", "command"),
    [
        (("pass", "pass"), {}, "harness promote lora -c a.yaml "),
        (("pass", "fail"), {}, "harness rescue lora -c a.yaml "),
        (("inconclusive",), {"items_needed": None}, "harness decide -c a.yaml "),
    ],
)
def test_a_gate_says_what_to_type_next_after_the_worst_of_its_verdicts(outcomes, changes, command):
    judged = [GateResult((), verdict(outcome, **changes), GatePolicy()) for outcome in outcomes]
    assert next_step(judged, "lora", ExperimentFile(config=Path("a.yaml"))).startswith(command)


@pytest.mark.parametrize(
    ("outcome", "policy", "changes", "codes"),
    [
        ("pass", {}, {}, (0, 0)), ("fail", {}, {}, (3, 0)), ("inconclusive", {}, {}, (4, 0)),
        ("inconclusive", {"on_inconclusive": "warn"}, {}, (0, 0)), (None, {}, {}, (0, 0)),
        ("pass", {}, {"recommended": None}, (4, 0)), ("pass", {}, {"state": "failed"}, (1, 1)),
        ("pass", {}, {"smoke": True}, (4, 0)),
    ],
)  # fmt: skip
def test_with_gate_the_verdict_of_the_recommended_candidate_decides(outcome, policy, changes, codes):
    """No recommendation and a smoke run are undecided; a failed candidate outranks any verdict."""
    facts = (candidate("a", 0.2, state=changes.get("state", "done")), make_fine_tune("b", 0.8, 0.1, outcome))
    decision = Decision("undecided", changes.get("recommended", "b"), "sentence", (), {}, ())
    smoke = changes.get("smoke", False)
    report = ExperimentReport("e", "m", "exact_match", facts, decision=decision, smoke=smoke)
    assert tuple(exit_code(report, GatePolicy(**policy), by_verdict=by) for by in (True, False)) == codes


def test_train_says_where_the_weights_are(harness, copy):
    printed = json.loads(harness("train", "lora", "--json", cwd=copy, check=0).stdout)
    assert printed["lora"]["kind"] == "adapter"
    assert printed["lora"]["training"]["n_steps"] > 0
    assert (copy / "runs" / "weights" / printed["lora"]["training"]["fit_key"] / "adapter").is_dir()


@pytest.mark.e2e
def test_an_item_is_answered_again_as_it_is_stored(harness, copy):
    candidate, item = "hybrid", "letters/package-0"
    printed = json.loads(harness("ask", candidate, "--item", item, "--json", cwd=copy, check=0).stdout)
    runs, row = Store(copy / "runs"), printed["row"]
    (run,) = (run for run in store.list_runs(runs) if run.candidate == candidate)
    disk = store.read_samples(runs, run.rows[f"{row['task']}/test"], [row["example_id"]])[row["example_id"]]
    assert (row["text"], row["status"], row["prompt_digest"]) == (disk.text, disk.status, disk.prompt_digest)
    assert {name: parts and tuple(parts) for name, parts in row["parts"].items()} == disk.parts
    assert printed["prompt"]["digest"] == disk.prompt_digest
    assert len(printed["prompt"]["messages"]) == 5


@pytest.mark.e2e
def test_a_text_is_answered_and_shown_with_its_prompt(harness, copy):
    output = harness("ask", "shots", "Where is my lamp?", cwd=copy, check=0).stdout
    prompt, _, answer = output.partition("answer, ")
    assert "Where is my lamp?" in prompt
    assert "<|im_start|>assistant" in prompt
    assert "reference" not in answer


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("lora",), "found neither a text nor --item; expected one of the two; next: harness ask lora"),
        (("prompt", "--item", "nope"), "found 0 such items; expected one of an evaluated task; next: such as --item"),
        (("lora", "x"), "found no stored weights; expected what an answer needs; next: harness compare --candidates lora"),
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_answered_is_refused_with_the_next_step(harness, copy, words, expected):
    shutil.rmtree(copy / "runs" / "weights")
    assert expected in harness("ask", *words, cwd=copy, check=2).stderr


def test_what_is_missing_of_stored_runs_is_named_and_planned_again(harness, copy):
    shutil.rmtree(copy / "runs" / "weights")
    assert "found no run of bag, lora, hybrid as written now" in harness("report", cwd=copy, check=5).stderr
    shutil.rmtree(copy / "runs" / "rows")
    assert "0 of 6 runs are stored already" in harness("compare", "--dry-run", cwd=copy, check=0).stderr


def test_eval_prints_every_metric_of_every_task(harness, copy):
    printed = json.loads(harness("eval", "prompt", "--json", cwd=copy, check=0).stdout)
    assert {task: list(metrics) for task, metrics in printed["prompt"].items()} == {
        "letters": ["exact_match", "macro_f1"],
        "sums": ["accuracy"],
        "facts": ["contains"],
        "prose": ["bits_per_byte"],
    }
    assert printed["prompt"]["letters"]["exact_match"]["n"] == 12


@pytest.mark.e2e
def test_next_commands_work_where_they_are_typed_and_kept_ones_in_the_folder_of_the_project(harness, copy):
    path = copy.rename(copy.with_name("a project")) / "harness.yaml"
    for verb in ("report", "decide"):
        *_, following = harness(verb, "-c", path, "gate.macro=0.05", check=0).stdout.splitlines()
        assert following.startswith("next: harness ")
        assert f" -c '{path}' gate.macro=0.05 " in following
    page = (path.parent / "reports" / "tiny.md").read_text()
    assert f"-c '{path}'" not in page
    assert "gate.macro=0.05`" in page


def test_the_next_step_of_an_error_repeats_the_file_and_the_overrides(harness, copy):
    (copy / "harness.yaml").rename(copy / "my rows.yaml")
    error = harness("rescue", "lora", "-c", "my rows.yaml", "seeds=[7]", cwd=copy).stderr
    assert "harness compare -c 'my rows.yaml' 'seeds=[7]'" in error


def test_commands_that_say_their_options_and_words_that_are_no_next_step_stay_as_they_are():
    typed = CommandLine("a.yaml", ("seeds=[7]",))
    complete = "found no run; next: harness compare --candidates lora -c a.yaml 'seeds=[7]', or harness gate"
    assert typed.complete(complete) == complete
    assert CommandLine().complete("next: harness compare") == "next: harness compare"
    rebuilt = "a: found x; next: harness reindex"
    assert CommandLine(runs="old runs").complete(rebuilt) == f"{rebuilt} --runs 'old runs'"


def test_runs_are_listed_with_what_each_takes_shown_and_removed(harness, copy):
    process = harness("runs", "list", cwd=copy, check=0)
    assert next(line for line in process.stdout.splitlines() if line.startswith("tiny-lora")).endswith(" kB")
    assert process.stderr.startswith("runs: ")
    assert " on the disk: rows " in process.stderr
    runs = json.loads(harness("runs", "list", "--json", cwd=copy, check=0).stdout)
    lora, prompt = (
        next(run for run in runs if run.startswith(f"tiny-{name}")) for name in ("lora", "prompt")
    )
    facts = runs[lora]
    assert (facts["method"], facts["seed"], facts["state"], facts["error"]) == ("lora", 0, "done", "")
    assert facts["frees_bytes"] > 1000
    details = json.loads(harness("runs", "show", lora, "--json", cwd=copy, check=0).stdout)
    assert (details["run_id"], details["method"]) == (lora, "lora")
    assert (copy / details["weights_folder"] / "adapter_model.safetensors").is_file()
    assert "weights_folder" not in json.loads(
        harness("runs", "show", prompt, "--json", cwd=copy, check=0).stdout
    )
    removal = harness("runs", "rm", lora, cwd=copy, check=0)
    assert (removal.stdout, lora in removal.stderr) == ("", True)
    assert lora not in json.loads(harness("runs", "list", "--json", cwd=copy, check=0).stdout)


def test_what_is_unused_and_rows_of_shared_bases_are_listed_and_removed_only_with_yes(harness, copy):
    cached_file = cache_dir() / "base_rows" / "some.parquet"
    cached_file.parent.mkdir()
    cached_file.write_bytes(b"x" * 3_000_000)
    assert f"{cached_file.parent}: 3.0 MB" in harness("runs", "list", cwd=copy, check=0).stderr
    runs = json.loads(harness("runs", "list", "--json", cwd=copy, check=0).stdout)
    weights = copy / "runs" / "weights"
    (weights / "nobody's").mkdir()
    (weights / "nobody's" / "fit.json").write_text('{"digest": "n"}')
    (weights / "later.part").mkdir()
    preview = harness("runs", "rm", "--unused", cwd=copy, check=0)
    assert preview.stdout.startswith("weights/nobody's")
    assert "nothing is removed without --yes" in preview.stderr
    assert f"{cached_file.parent}: 3.0 MB" in preview.stdout
    assert "would free 3.0 MB" in preview.stderr
    assert (weights / "nobody's").exists()
    assert cached_file.exists()
    harness("runs", "rm", "--unused", "--yes", cwd=copy, check=0)
    assert not (weights / "nobody's").exists()
    assert not cached_file.exists()
    assert (weights / "later.part").exists()
    harness("runs", "rm", "--unused", "--unfinished", "--yes", cwd=copy, check=0)
    assert not (weights / "later.part").exists()
    assert runs == json.loads(harness("runs", "list", "--json", cwd=copy, check=0).stdout)


def test_two_runs_are_shown_side_by_side_with_what_differs(harness, copy):
    runs = json.loads(harness("runs", "list", "--json", cwd=copy, check=0).stdout)
    prompt, shots = (next(n for n in runs if n.startswith(f"tiny-{c}-")) for c in ("prompt", "shots"))
    diff = json.loads(harness("runs", "diff", prompt, shots, "--json", cwd=copy, check=0).stdout)
    assert diff["recipe"]["prompting.few_shot.shots"] == [None, 2]
    assert diff["run"]["candidate"] == ["prompt", "shots"]
    assert diff["environment"] == {}
    assert list(diff["rows"]) == ["letters/test", "letters/validation"]  # the suites' rows are shared
    assert list(diff["rows"]["letters/test"]) == ["prompting_digest"]
    score = diff["scores"]["letters/test"]["exact_match"]
    assert score["difference"]["delta"] == pytest.approx(score["b"] - score["a"])
    assert "harness report" in diff["scores"]["letters/test"]["macro_f1"]["why_not"]
    output = harness("runs", "diff", prompt, shots, cwd=copy, check=0).stdout
    assert "  candidate: prompt → shots\n" in output


CSV = "text,label\n" + "".join(
    f"Where is {topic} {i}?,{topic}\n" for i in range(10) for topic in ("card", "pin")
)


@pytest.mark.e2e
def test_init_says_what_it_saw_writes_a_folder_names_what_a_shell_takes_and_never_overwrites(
    harness, tmp_path
):
    (tmp_path / "mine.csv").write_text(CSV)
    output = harness("init", "my tickets", "--data", "mine.csv", check=0).stdout.splitlines()
    instruction = "Classify the text. Reply with one of these labels and nothing else: card, pin."
    assert output[0] == f"instruction: {instruction}"
    assert "columns: text → question; label → label" in output
    assert "mine.csv: 20 rows" in output
    assert "harness compare -c 'my tickets/harness.yaml' --dry-run" in output[-1]
    assert (tmp_path / "my tickets" / "suites" / "mine.yaml").exists()
    first = (tmp_path / "my tickets" / "harness.yaml").read_text().splitlines()[0]
    schema_file = tmp_path / "my tickets" / first.removeprefix("# yaml-language-server: $schema=")
    assert json.loads(schema_file.read_text()) == json.loads(harness("schema", check=0).stdout)
    printed = json.loads(harness("init", "--data", "mine.csv", "--json", check=0).stdout)
    files = ["harness.yaml", "suites/mine.yaml", "harness.schema.json"]
    assert (printed["task"], printed["files"]) == ("labels", files)
    process = harness("init", "--data", "mine.csv", check=2)
    assert process.stderr.count("a file that is there already") == 2


def test_decide_prints_the_reasons_the_numbers_and_the_decision_last(harness, copy):
    process = harness("decide", cwd=copy, check=0)
    lines = process.stdout.splitlines()
    assert any(line.startswith("  requests over the horizon: ") for line in lines)
    assert [line for line in lines if line.startswith("  ") and line.endswith("–")] == []
    decision = next(i for i, line in enumerate(lines) if line.startswith("next: harness ")) - 1
    assert all(line.startswith("next: harness ") for line in lines[decision + 1 :])
    assert lines[decision].endswith(".")
    assert json.loads(harness("decide", "--json", cwd=copy, check=0).stdout)["sentence"] == lines[decision]


def test_an_item_that_is_pinned_is_measured_gated_and_confirmed_in_fp32(harness, copy):
    process = harness("regressions", "add", "lora", "facts/fact-1", "facts/fact-2", cwd=copy, check=0)
    assert "2 new" in process.stderr
    (name,) = re.findall(r"add (\S+) to suites:", process.stderr)
    file = copy / "harness.yaml"
    file.write_text(file.read_text().replace("[suites/general.yaml]", f"[suites/general.yaml, {name}]"))
    harness("compare", "--candidates", "prompt,lora", cwd=copy, check=0)
    judged = json.loads(harness("gate", "--candidate", "lora", "--json", cwd=copy).stdout)[0]
    (rule,) = [r for r in judged["rules"] if r["name"] == "regressions"]
    assert rule["outcome"] in ("pass", "fail")  # the tiny experiment runs in fp32, so nothing is open
    assert "facts-pinned in fp32" in harness("regressions", "confirm", "lora", cwd=copy, check=0).stderr
    run_id = tiny_experiment.runs_of(file)["lora"].run_id
    file.write_text(file.read_text().replace("{r: 2,", "{r: 3,"))
    refused = harness("regressions", "confirm", run_id, cwd=copy, check=5).stderr
    assert "the recipe of lora in the file differs" in refused


def test_a_promotion_says_what_the_gate_said_and_names_the_file_that_it_then_compares_with(harness, copy):
    stderr = harness("promote", "lora", "--force", "--reason", "a test", cwd=copy, check=0).stderr
    assert "champions/letters.json" in stderr
    assert "against the champion lora" in harness("gate", "--candidate", "prompt", cwd=copy).stdout

    facts = copy / "suites" / "general" / "facts.jsonl"
    facts.write_text("".join(facts.read_text().splitlines(keepends=True)[:-1]))
    process = harness("promote", "lora", "--force", "--reason", "a test", cwd=copy, check=0)
    assert "forced: not judged: lora" in process.stderr.replace("tiny-lora", "lora")
    assert "found other items, definitions or evaluation code than it answered" in process.stderr

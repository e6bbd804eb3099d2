"""The doctor and the dry run: what the machine has, what candidates take, and what is missing or unknown."""

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny_experiment
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness import experiment
from harness.cli import app
from harness.cli.options import ExperimentFile
from harness.evaluation.costs import DEVICE_HOUR_USD, Work, estimate_answering, price_usd, request_usd, tokens
from harness.experiment import Estimates, Scope, find_stored_runs, first_line, in_order, prepare_session
from harness.experiment.stored_rows import BASE_ARM as ARM
from harness.formatting import seconds
from harness.models.hardware import STEP_TOKENS, Machine, Memory
from harness.progress import SilentProgress
from harness.records import Example, TokenCounts
from harness.spec import TokenPrices


def session(path, *overrides):
    from harness import config

    loaded = config.load(path, overrides)
    return prepare_session(loaded, Scope(), SilentProgress()), loaded.selected


def estimate_by_name(path, room, *overrides):
    open_session, selected = session(path, *overrides)
    return {cost.candidate: cost for cost in Estimates(open_session).costs(selected, room)}


ROOMY, TIGHT = Memory(1e6, 1e6, "GPU"), Memory(0.5, 80.0, "GPU")


@pytest.mark.e2e
def test_what_trains_or_answers_longer_takes_more(copy):
    roomy, tight = estimate_by_name(copy, ROOMY), estimate_by_name(copy, TIGHT)
    assert roomy["lora"].time_s > roomy["prompt"].time_s
    assert roomy["lora"].flops > roomy["prompt"].flops
    assert all(cost.fits and not cost.knob for cost in roomy.values())
    assert (tight["prompt"].fits, tight["prompt"].knob) == (False, "a smaller base_model")
    large = "candidates.lora.params.per_device_train_batch_size=4096"
    assert estimate_by_name(copy, ROOMY, large)["lora"].memory_gib > roomy["lora"].memory_gib
    assert estimate_by_name(copy, TIGHT, large)["lora"].knob.startswith("params.per_device_train_batch_size")
    suite = copy.parent / "suites" / "letters.yaml"
    suite.write_text(suite.read_text().replace("max_new_tokens: 4", "max_new_tokens: 40"))
    assert estimate_by_name(copy, ROOMY)["prompt"].memory_gib > roomy["prompt"].memory_gib


@pytest.mark.e2e
def test_what_is_wrong_with_the_files_is_listed_and_the_machine_is_still_described(copy):
    (copy.parent / "suites" / "general" / "sums.jsonl").unlink()
    result = CliRunner().invoke(app, ["doctor", "-c", str(copy), "gate.macr=1", "--json"])
    printed = json.loads(result.stdout)
    assert (result.exit_code, printed["costs"], printed["machine"]["device"]) == (2, [], "cpu")
    assert "sums.jsonl" in result.stderr
    assert "macr" in result.stderr


@pytest.mark.e2e
def test_the_command_prints_an_estimate_of_each_candidate_and_json_of_it(copy):
    result = CliRunner().invoke(app, ["doctor", "-c", str(copy)])
    assert result.exit_code == 0, result.output
    assert "estimated, each made alone" in result.stdout
    assert all(len(line) <= 110 for line in result.stdout.splitlines() if not line.startswith("packages"))
    assert result.stderr.endswith(f"next: harness compare -c {copy}\n")
    plain = json.loads(CliRunner().invoke(app, ["doctor", "-c", str(copy), "--json"]).stdout)
    assert {"machine", "memory", "costs", "absent"} <= plain.keys()
    costs = {cost["candidate"]: cost for cost in plain["costs"]}
    assert list(costs) == ["prompt", "shots", "ranked", "bag", "lora", "hybrid"]
    figures = ("memory_gib", "flops", "time_s", "cost_usd")
    assert min(costs["lora"][figure] for figure in figures) > 0
    assert (costs["bag"]["memory_gib"], costs["bag"]["fits"]) == (None, True)


MACHINE, TWICE_AS_FAST = (Machine("cuda", "GPU", "bf16", gflops) for gflops in (100.0, 200.0))
PURE = settings(deadline=None)
COUNTS = st.integers(0, 10**9)
WORK = st.builds(Work, COUNTS, COUNTS, COUNTS)


@PURE
@given(WORK)
def test_a_model_twice_as_large_takes_twice_as_long_and_a_machine_twice_as_fast_half(work):
    once = work.seconds(10**8, MACHINE)
    assert work.seconds(2 * 10**8, MACHINE) == pytest.approx(2 * once)
    assert work.seconds(10**8, TWICE_AS_FAST) == pytest.approx(once / 2)


def test_estimates_grow_with_what_is_read_and_generated_and_are_priced_by_the_hour_or_the_token():
    read_s, generated_s, trained_s = (
        Work(**{kind: 1000}).seconds(10**8, MACHINE) for kind in ("read", "generated", "trained")
    )
    assert read_s < generated_s
    assert read_s < trained_s
    timed = Machine("cpu", "CPU", "bf16", 100.0, speeds={"bf16": [100.0, 100.0, 100.0, 100.0, 50.0]})
    steps = [Work(trained=n, steps=1).seconds(10**8, timed) for n in STEP_TOKENS]
    assert steps == pytest.approx([1.28, 0.64])  # 320 tokens at 100 GFLOP/s and 80 at 50
    assert tokens("") == 1
    assert tokens("x" * 400) == 100

    messages = ({"role": "user", "content": "Where is it?"},)
    example = Example("x", messages, ("late",), ("late", "money"))
    ranked, generated = (estimate_answering([example], ranked=r, max_new_tokens=5) for r in (True, False))
    assert ranked.generated == 0
    assert ranked.read == generated.read + tokens("late") + tokens("money")
    text = Example("x", (), ("A brown hen walks past a gate.",))
    assert estimate_answering([text], ranked=False, max_new_tokens=5) == Work(read=tokens(text.references[0]))

    assert price_usd(1800, "cpu", None) == DEVICE_HOUR_USD["cpu"] / 2
    assert price_usd(1800, "cpu", 3.0) == 1.5
    assert price_usd(1800, "cuda", 0.0) == 0.0
    counts = TokenCounts(1000, 800, 20)
    assert request_usd(counts, TokenPrices(input=3, cached=0.3, output=15)) == pytest.approx(0.00114)
    assert request_usd(counts, TokenPrices(input=3, output=15)) == pytest.approx(0.0033)
    assert request_usd(counts, TokenPrices(input=0, output=0)) == 0


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("The desk is open on Monday, and every letter is answered with one word.", 16),
        ("窓口は月曜日に開いており、すべての手紙にはそこで働く人々が一言で答えます。", 68),
        ("المكتب مفتوح يوم الاثنين، ويتم الرد على كل رسالة بكلمة واحدة من قبل الأشخاص الذين يعملون هناك.", 86),
        ("Окно открыто в понедельник, и на каждое письмо люди, которые там работают, отвечают одним словом.", 75),
    ],
)  # fmt: skip
def test_tokens_are_estimated_within_a_quarter_in_every_script(text, counted):
    """The counts are those of smollm2-135m's tokenizer."""
    assert tokens(text) == pytest.approx(counted, rel=0.25)


REPOSITORY = Path(__file__).parents[2]
RETRIEVING = "  dense: {prompting: {rag: {retriever: dense, model: own/nowhere, chunk_words: 30}}}\n"


@pytest.fixture
def unreadable_model(tiny, tmp_path):
    """Copy the tiny model with weights that fail to load."""
    folder = shutil.copytree(tiny, tmp_path / "model")
    weights = folder / "model.safetensors"
    header = (2).to_bytes(8, "little") + b"{}"  # it names none of the tensors behind it
    weights.write_bytes(header.ljust(weights.stat().st_size, b"\xff"))
    return folder


@pytest.mark.e2e
def test_a_dry_run_on_a_new_machine_loads_no_model_and_yet_counts_passages_and_names_leaks(
    command, empty_cache, unreadable_model, tmp_path
):
    candidates = "  prompt: {method: base}\n  lora: {method: lora, train: suites/letters/more.jsonl}\n"
    path = tiny_experiment.write(tmp_path, unreadable_model, candidates + RETRIEVING)
    letters = tmp_path / "suites" / "letters.yaml"
    letters.write_text(letters.read_text().replace("data: {", "data: {documents: letters/help.jsonl, "))
    pages = [{"id": f"p{n}", "title": "Parcels", "text": "A parcel takes two days. " * 5} for n in range(4)]
    tiny_experiment.rows(tmp_path / "suites" / "letters" / "help.jsonl", pages)
    tested = tiny_experiment.letters(slice(6, 7))
    more = [{**row, "prompt": f"Hi there! {row['prompt']} Thanks!"} for row in tested]
    tiny_experiment.rows(tmp_path / "suites" / "letters" / "more.jsonl", more)
    code, stdout, stderr = command("compare", "-c", path, "--dry-run")
    assert code == 0, stderr
    assert stdout.splitlines()[1].startswith("capability suite of the base")
    assert "unknown whether any of it is stored" in stderr
    assert "was never loaded on this machine, and a dry run loads no model" in stderr
    assert "lora: suites/letters/more.jsonl: 6 rows may be evaluated items in other words" in stderr
    plan = json.loads(command("compare", "-c", path, "--dry-run", "--json").stdout)
    assert plan["dense"]["read"] > plan["prompt"]["read"] > 0
    assert not (empty_cache / "engines").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("removed", "missing", "trains"),
    [
        (["tiny-shots-s0-*"], {"shots"}, False),
        (["tiny-lora-s0-*", "tiny-hybrid-s0-*", "weights/*"], {"bag", "lora", "hybrid"}, True),
        (["tiny-shots-s0-*", "rows/*"], {ARM, "prompt", "shots", "ranked", "bag", "lora", "hybrid"}, False),
    ],
)
def test_the_plan_of_a_run_that_goes_on_holds_what_is_missing(copy, removed, missing, trains):
    for folder in [path for pattern in removed for path in (copy.parent / "runs").glob(pattern)]:
        shutil.rmtree(folder)
    session, loaded = ExperimentFile(config=copy).open_session()
    stored = find_stored_runs(session, ordered := in_order(session.candidates, loaded.selected))
    plan = experiment.make_plan(session, ordered, stored)
    whole, work = (Estimates(session).work(plan, missing=is_missing) for is_missing in (False, True))
    assert set(work) == missing
    assert bool(sum(item.trained for item in work.values())) is trains
    whole_s, missing_s = (sum(Estimates(session).seconds(amounts).values()) for amounts in (whole, work))
    n_done = 6 - len(missing - {ARM})
    summary = experiment.describe_stored(session.unknown_bases(), stored, missing_s)
    rest = f"; the others take about {seconds(missing_s)}" if n_done else ""
    assert summary == f"{n_done} of 6 runs are stored already{rest}"
    line = first_line(session.experiment, session.machine, 6, whole_s, missing_s)
    assert f"; about {seconds(missing_s)} for what is missing, about {seconds(whole_s)} from nothing" in line


@pytest.mark.weekly
def test_every_shipped_recipe_is_planned_on_the_packed_model(command, empty_cache, tmp_path, monkeypatch):
    """Empty files stand in for the programs of other trainers: a plan starts none of them."""
    shipped = {file.stem for file in (REPOSITORY / "baselines").glob("*.yaml")}
    for program in ("trl", "axolotl", "llamafactory-cli"):
        (tmp_path / "bin" / program).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / program).touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    path = tiny_experiment.write(tmp_path, "smollm2-135m", "".join(f"  {n}: {n}\n" for n in sorted(shipped)))
    pairs = [{"prompt": f"{i} plus 1?", "chosen": str(i + 1), "rejected": "0"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    (tmp_path / "documents.jsonl").write_text('{"id": "1", "text": "A comes first."}\n')
    settings = [f"target.data.{split}={split}.jsonl" for split in ("pairs", "documents")]
    settings += ["candidates.gkd.params.teacher=smollm2-135m"]
    code, stdout, stderr = command("compare", "-c", path, "--dry-run", "--json", *settings)
    assert code == 0, stderr
    work = json.loads(stdout)
    foreign = {"trl", "axolotl", "llama-factory", "unsloth"}  # a plan does not know what these train
    untrained = {"prompt", "few-shot", "ranked", "rag", "bag", "embedding"}
    assert shipped - work.keys() == {"reward"}  # no candidate of its own
    assert shipped - {name for name in work if work[name]["trained"]} == {"reward", *foreign, *untrained}


@pytest.mark.weekly
def test_the_whole_quickstart_is_planned_without_a_problem(command, empty_cache):
    code, stdout, stderr = command("compare", "-c", REPOSITORY / "full.yaml", "--dry-run", "--json")
    assert code == 0, stderr
    assert json.loads(stdout)["ranked"]["read"] > json.loads(stdout)["prompt"]["read"]

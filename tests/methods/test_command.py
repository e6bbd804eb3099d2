"""A user's own training command makes weights: they are judged like any other, and failures are explained."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_experiment
import tiny_methods
import tiny_model
from conftest import refused
from forking import is_alive, wait_for
from tiny_experiment import fact_of, runs_of

from harness import config
from harness.errors import CandidateFailed
from harness.methods import command
from harness.methods.command import METHOD, Params, fit
from harness.models import programs
from harness.models.hub import has_tokenizer, resolve
from harness.spec import Recipe
from harness.training import adapter_digest, model_digest

pytestmark = pytest.mark.usefixtures("own_cache")
TRL = Path(__file__).parents[2] / "baselines" / "trainers" / "trl.yaml"


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """Save an adapter of plain PEFT that changes what the tiny model says; returns its folder."""
    return save_adapter(tiny, tmp_path_factory.mktemp("adapter"))


def save_adapter(base, folder):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(folder)
    return folder


def leaves(folder):
    return f"cp -r {folder}/. {{out}}"


def fit_command(tiny, folder, run, context=None, **params):
    return fit(context or tiny_methods.context(tiny, folder), Params(run=run, **params))


def failure(tiny, folder, run, **params):
    with pytest.raises(CandidateFailed) as caught:
        fit_command(tiny, folder, run, **params)
    return str(caught.value)


class TestWhatIsFound:
    def test_an_adapter_is_taken_over_with_the_record_of_the_command(self, tiny, adapter, tmp_path):
        weights = fit_command(tiny, tmp_path, leaves(adapter), version="sh -c 'echo cp 9.1; echo more'")
        assert weights.kind == "adapter"
        assert weights.digest == adapter_digest(adapter, resolve(str(tiny)).weights_digest)
        record = weights.training
        command_facts = {"command": leaves(adapter), "command_version": "cp 9.1", "exit_code": 0}
        assert command_facts.items() <= record.others.items()
        assert record.named_base == str(tiny)
        assert record.n_trainable == 2 * 2 * (2 * 32 + 64 + 32)
        assert 0 < record.peak_memory_gib < 0.1, "the peak is the command's, not that of this process"
        assert record.wall_s > 0

    def test_a_whole_model_is_taken_over_with_the_tokenizer_of_the_base(self, tiny, tmp_path):
        model = tiny_model.build(tmp_path / "other", seed=5)
        for file in [*model.glob("tokenizer*"), *model.glob("chat_template*")]:
            file.unlink()
        weights = fit_command(tiny, tmp_path / "fit", leaves(model))
        expected = ("model", model_digest(model, resolve(str(tiny)).weights_digest))
        assert (weights.kind, weights.digest) == expected
        assert has_tokenizer(tmp_path / "fit" / "model")

    def test_the_curves_that_a_trainer_of_transformers_left_are_read(self, tiny, adapter, tmp_path):
        history = [{"step": 1, "loss": 3.0, "learning_rate": 0.1}, {"step": 2, "eval_loss": 2.5}]
        for step in (1, 2):
            state = {"global_step": step, "log_history": history[:step]}
            folder = tmp_path / "left" / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            (folder / "trainer_state.json").write_text(json.dumps(state))
        shutil.copytree(adapter, tmp_path / "left", dirs_exist_ok=True)
        record = fit_command(tiny, tmp_path / "fit", leaves(tmp_path / "left")).training
        assert record.loss == ((1, 3.0),)
        assert record.validation_loss == ((2, 2.5),)
        assert record.best_validation_loss == 2.5

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            ((), "it is empty"),
            (("checkpoint-5", "notes.txt"), "what lies there: checkpoint-5, notes.txt"),
            (("pytorch_model.bin",), "pickled weights"),
        ],
    )
    def test_nothing_to_judge_is_said_with_what_lies_there(self, tiny, tmp_path, files, said):
        removed = failure(tiny, tmp_path / "removed", "sh -c 'rm -r $0 && touch $0' {out}")
        assert "removed the folder {out}" in removed
        (tmp_path / "left").mkdir()
        for name in files:
            (tmp_path / "left" / name).touch()
        assert said in failure(tiny, tmp_path / "fit", leaves(tmp_path / "left"))

    def test_weights_of_another_base_or_architecture_are_refused(self, tiny, tmp_path):
        wide = tiny_model.build(tmp_path / "wide", head_dim=16)
        message = failure(tiny, tmp_path / "other", leaves(save_adapter(wide, tmp_path / "theirs")))
        assert "an adapter for another base" in message
        deep = tiny_model.copy(tiny, tmp_path / "deep", num_hidden_layers=7)
        message = failure(tiny, tmp_path / "fit", leaves(deep))
        assert "num_hidden_layers 7, which the base has as 2" in message
        assert "running it by hand" in message
        assert str(tmp_path / "fit") not in message, "that folder is deleted"


class TestRows:
    def test_are_turns_in_chat_and_plain_text_where_the_task_is_asked_without_a_template(
        self, tiny, adapter, tmp_path
    ):
        def rows(layout, *, chat=True):
            folder = tmp_path / f"{layout} {chat}"
            context = tiny_methods.context(tiny, folder / "fit", chat_template=chat)
            run = f"cp {{data}} {{validation}} '{folder}' && {leaves(adapter)}"
            fit_command(tiny, folder / "fit", run, context, rows=layout, shell=True)
            lines = [(folder / f"{name}.jsonl").read_text().splitlines() for name in ("train", "validation")]
            assert list(map(len, lines)) == [len(context.train), len(context.validation)]
            return json.loads(lines[0][0])

        question, answer = "Where is the parcel of Monday?", "late"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        assert rows("messages") == {"messages": turns}
        assert rows("prompt_completion") == {"prompt": turns[:1], "completion": turns[1:]}
        assert rows("prompt_completion", chat=False) == {"prompt": question, "completion": answer}
        with pytest.raises(CandidateFailed, match="rows: prompt_completion"):
            rows("messages", chat=False)


class TestACommandThatFails:
    def test_says_its_exit_code_and_last_lines_and_keeps_its_log(self, tiny, tmp_path):
        run = "echo first; echo out of disk >&2; exit 3 # {out}"
        message = failure(tiny, tmp_path, run, shell=True)
        assert "exit code 3; its last lines: first / out of disk" in message
        log = tmp_path / "checkpoints" / "command.log"
        assert str(log) in message
        assert log.read_text() == "first\nout of disk\n"

    @pytest.mark.e2e
    def test_is_ended_with_all_that_it_started_after_its_time(self, tiny, tmp_path):
        run = f"sleep 61 & echo $! > {tmp_path}/pid; wait # {{out}}"
        message = failure(tiny, tmp_path / "fit", run, shell=True, timeout_s=0.5)
        assert "had not finished after 0.5 s" in message
        wait_for(lambda: not is_alive(int((tmp_path / "pid").read_text())))

    @pytest.mark.e2e
    def test_ends_when_the_process_that_started_it_is_killed(self, tmp_path):
        script = (
            "import sys; from pathlib import Path; from harness.models import programs as p\n"
            f"command = ['/bin/sh', '-c', 'sleep 62 & echo $! > {tmp_path}/pid; wait']\n"
            f"p.run(command, Path('.'), Path('{tmp_path}/log'), None, lambda *_, note='': None)"
        )
        parent = subprocess.Popen([sys.executable, "-c", script])
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        wait_for(lambda: not is_alive(int((tmp_path / "pid").read_text())))


def test_secrets_that_a_program_printed_are_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    (tmp_path / "log").write_text("logged in with 0123456789abcdef\nHF_TOKEN=hf_abcdefghijkl, 3 of 8 done\n")
    expected = ["logged in with ***", "HF_TOKEN=***, 3 of 8 done"]
    assert programs.read_last_lines(tmp_path / "log", 2) == expected


class TestPlaceholders:
    def test_a_value_stays_one_argument_whatever_it_holds(self):
        values = {"out": "/a b/$(x)'y"}
        assert command.arguments("tool --out={out}", values) == ["tool", "--out=/a b/$(x)'y"]
        shell = command.arguments("echo {out}", values, shell=True)
        assert subprocess.run(shell, capture_output=True, text=True, check=True).stdout == "/a b/$(x)'y\n"


def test_a_template_with_an_unknown_placeholder_and_a_sweep_are_refused_before_anything_runs(tmp_path, tiny):
    (tmp_path / "t.yaml").write_text("out: {out}\nrate: {rate}\n")
    template = "{method: command, params: {run: 'cp {config} x', config: t.yaml}}"
    swept = "{method: command, params: {run: 'cp {out}'}, sweep: {rows: [messages, prompt_completion]}}"
    for recipe, message in (
        (template, "t.yaml: unknown placeholder {rate}"), (swept, "which trains no language model"),
    ):  # fmt: skip
        path = tiny_experiment.write(tmp_path, tiny, f"  prompt: {{method: base}}\n  theirs: {recipe}\n")
        assert message in str(refused(tiny_experiment.run, path))
        assert not (tmp_path / "runs" / "weights").exists()


@pytest.fixture(scope="module")
def file_and_report(tiny, adapter, own_cache, tmp_path_factory):
    """Compare a command that counts its calls, and candidates on its weights; returns file and report."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "train.sh").write_text(f"echo call >> {folder}/calls\ncp -r {adapter}/. $1\n")
    candidates = (
        "  prompt: {method: base}\n"
        "  theirs: {method: command, params: {run: 'sh train.sh {out} {seed}'}}\n"
        f"  same: {{method: adapter, path: {adapter}}}\n"
        "  half: {method: scaled, init_from: theirs, params: {scale: 0.5}}\n"
        "  whole: {method: interpolated, init_from: theirs, params: {scale: 0.5}}\n"
    )
    path = tiny_experiment.write(folder, tiny, candidates)
    return path, tiny_experiment.run(path)


class TestInAComparison:
    def test_it_is_judged_as_the_same_weights_made_elsewhere(self, file_and_report):
        path, report = file_and_report
        runs = runs_of(path)
        assert runs["theirs"].weights_digest == runs["same"].weights_digest
        assert fact_of(report, "theirs").trained
        assert fact_of(report, "theirs").verdict is not None
        assert fact_of(report, "theirs").training_cost_usd > 0

    def test_the_report_shows_what_was_run_and_others_start_from_it_by_its_kind(self, file_and_report):
        _, rep = file_and_report
        assert (fact_of(rep, "half").state, fact_of(rep, "whole").state) == ("done", "failed")
        assert "init_from: weights that turned out to be of the kind adapter" in fact_of(rep, "whole").error
        from harness.report.document import markdown
        from harness.report.sections import experiment_document

        text = markdown(experiment_document(file_and_report[1]))
        assert "sh train.sh {out} {seed}" in text

    def test_it_is_not_run_again_until_what_it_reads_changes(self, file_and_report):
        path, _ = file_and_report
        calls = path.parent / "calls"
        assert calls.read_text() == "call\n"
        tiny_experiment.run(path, candidates=("theirs",))
        assert calls.read_text() == "call\n"
        script = path.parent / "train.sh"
        script.write_text(script.read_text() + "# another\n")
        tiny_experiment.run(path, candidates=("theirs",))
        assert calls.read_text() == "call\ncall\n"


def test_templates_that_ship_name_options_of_trl_and_lie_beside_their_recipe(folder):
    from trl import ModelConfig, ScriptArguments, SFTConfig

    valid = {name for kind in (SFTConfig, ModelConfig, ScriptArguments) for name in kind.__dataclass_fields__}
    keys = [line.partition(":")[0] for line in TRL.read_text().splitlines() if line and line[0] != "#"]
    assert set(keys) <= valid

    recipe = config.load(folder / "harness.yaml", ["candidates.theirs=trl"]).experiment.candidates["theirs"]
    assert Path(recipe.params["config"]) == TRL.resolve()
    assert Path(recipe.params["folder"]) == folder.resolve()
    assert isinstance(recipe, Recipe)
    assert METHOD.reads(Params(**recipe.params))

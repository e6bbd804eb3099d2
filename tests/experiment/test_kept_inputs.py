"""A folder of runs alone: what was compared is brought back, reported as before and judged anew."""

import shlex
import shutil
import subprocess

import pytest
import tiny_experiment

from harness.models.hf import ModelHost


@pytest.mark.e2e
def test_runs_copied_alone_give_the_same_report_and_a_new_margin_judges_anew(
    tmp_path, tiny, own_cache, command, monkeypatch
):
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(tiny, first / "model")
    path = tiny_experiment.write(first, "model", tiny_experiment.TUNED)
    (first / "suites" / "letters" / "test.jsonl").rename(tmp_path / "own.jsonl")
    suite = first / "suites" / "letters.yaml"
    suite.write_text(suite.read_text().replace("letters/test.jsonl", "../../own.jsonl"))
    tiny_experiment.run(path)
    command("report", cwd=first, check=0)
    command("promote", "lora", "--force", "--reason", "a test", check=0)
    verdict = command("gate", "--candidate", "prompt").stdout
    shutil.copytree(first / "runs", second / "runs")
    place, first = first, first.rename(tmp_path / "away")
    (tmp_path / "own.jsonl").unlink()
    step = command("report", cwd=second, check=2).stderr.partition("next: ")[2].partition(", which brings")[0]
    subprocess.run(shlex.split(step), cwd=second, check=True)
    monkeypatch.setattr(ModelHost, "__init__", None)  # no model can be opened
    command("report", check=0)
    for end in ("md", "html", "json"):
        again = (second / f"reports/tiny.{end}").read_text("utf-8").replace(str(second), str(place))
        assert again == (first / f"reports/tiny.{end}").read_text("utf-8")  # but for the place of the base
    assert verdict == command("gate", "--candidate", "prompt").stdout != ""
    verdict = command("gate", "--candidate", "lora", "--baseline", "base", "gate.macro=0.01").stdout
    assert "margin 1.0 pp: not shown" in verdict
    monkeypatch.undo()
    training = command("train", "lora", "candidates.lora.params.r=4", cwd=second, check=1)
    assert "a model without its weights" in training.stderr

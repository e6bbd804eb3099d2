"""Champions with a history: what commands write, rollbacks, and what cleaning never deletes."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_experiment

from harness import store
from harness.errors import UserError
from harness.evaluation.runner import verify_weights
from harness.experiment import ensure_weights
from harness.lifecycle import release
from harness.store import Champion, ChampionEntry, Store

FORCED = ("--force", "--reason", "a test", "--by", "Ann")
CHAMPION = Champion("desk", "run-1", "lora", 0, "desk", "m", "w", "b", "2026", {}, {}, {"method": "base"})
EVENTS = {"p": "promotion", "b": "rollback", "r": "retirement"}


def entries(events: str) -> list[ChampionEntry]:
    """Make a history of events such as `p1 p2 b1`, each about the promotion of that number."""
    history = []
    for number, (event, promoted) in enumerate(events.split(), 1):
        about = int(promoted)
        champion = replace(CHAMPION, run_id=f"run-{about}")
        history.append(ChampionEntry(number, EVENTS[event], "2026-01-01", "Ann", "", about, champion, keep=2))
    return history


def write(folder: Path, events: str) -> tuple[Path, Path]:
    """Record events; returns the paths of the champion's file and of its history."""
    with store.hold_champions(Store(folder / "runs")):
        for entry in entries(events):
            file = store.record_champion(Store(folder / "runs"), entry)
    return file, file.with_suffix(".history.jsonl")


@pytest.mark.parametrize(
    ("events", "present", "way_back", "kept"),
    [
        ("p1", 1, [], [1]), ("p1 p2", 2, [1], [2, 1]), ("p1 p2 b1", 1, [], [1, 2]),
        ("p1 p2 b1 p4", 4, [1], [4, 1]), ("p1 p2 b1 b2", 2, [1], [2, 1]), ("p1 p2 p3", 3, [2, 1], [3, 2]),
        ("p1 p2 r2", None, [1], [1]), ("p1 p2 r1", 2, [], [2]), ("p1 p2 r2 b1 r1", None, [], []),
    ],
)  # fmt: skip
def test_the_history_alone_says_who_is_the_champion_where_a_rollback_goes_and_what_is_kept(
    tmp_path, events, present, way_back, kept
):
    file, _ = write(tmp_path, events)
    history = store.read_history(tmp_path, "desk")
    assert (history.present.number if history.present else None) == present
    assert history.way_back == way_back
    assert [entry.number for entry in history.kept] == kept
    assert file.exists() == (present is not None)
    assert store.read_champion(tmp_path, "desk") == history.champion


@pytest.mark.parametrize("events", ["p1 p2", "p1 p2 b1", "p1 r1", "p1"])
def test_a_kill_at_any_byte_of_an_entry_or_before_the_file_follows_leaves_both_in_agreement(tmp_path, events):
    file, lines = write(tmp_path, events)
    whole, after = lines.read_bytes(), file.read_bytes() if file.exists() else None
    *earlier, last = whole.splitlines(keepends=True)
    shutil.rmtree(tmp_path / "baselines")
    before = None
    if len(earlier):
        write(tmp_path, " ".join(events.split()[:-1]))
        before = file.read_bytes() if file.exists() else None
    else:
        lines.parent.mkdir(parents=True)
    for cut in (0, 1, len(last) // 2, len(last) - 2, len(last) - 1, len(last)):
        lines.write_bytes(b"".join(earlier) + last[:cut])
        file.unlink(missing_ok=True) if before is None else file.write_bytes(before)
        is_torn = 0 < cut < len(last) - 1
        champion = store.read_champion(tmp_path, "desk")
        history = store.read_history(tmp_path, "desk")
        assert len(history.entries) == len(earlier) + (cut >= len(last) - 1)
        assert len(history.notes) == is_torn
        assert champion == history.champion
        assert (file.read_bytes() if file.exists() else None) == (after if cut >= len(last) - 1 else before)


def test_what_is_added_after_a_line_that_was_cut_short_takes_its_number(tmp_path):
    _, lines = write(tmp_path, "p1 p2")
    lines.write_bytes(lines.read_bytes()[:-30])
    with store.hold_champions(Store(tmp_path / "runs")):
        store.record_champion(Store(tmp_path / "runs"), entries("p1 p2")[1])
    history = store.read_history(tmp_path, "desk")
    assert [entry.number for entry in history.entries] == [1, 2]
    assert history.notes == (f"{lines}: line 2 was cut short when a command was killed, and is left out",)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda lines: lines[1:], "entry 2 of desk about promotion 2; expected entry 1 of desk"),
        (lambda lines: [lines[0], lines[0]], "entry 1 of desk about promotion 1; expected entry 2"),
        (lambda lines: [lines[0], b"{}\n"], "line 2, not a valid entry"),
        (lambda lines: [lines[0], lines[1].replace(b'"promoted":2', b'"promoted":9')], "about promotion 9"),
        (lambda lines: [b"[" * 500 + b"\n", lines[0], lines[1]], None),
    ],
)
def test_a_history_that_lost_an_entry_is_refused_with_the_way_to_restore_it(tmp_path, change, found):
    _, file = write(tmp_path, "p1 p2")
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    if found is None:
        assert len(store.read_history(tmp_path, "desk").notes) == 1
        return
    with pytest.raises(UserError, match="restore the file, for example by git checkout") as refused:
        store.read_champion(tmp_path, "desk")
    assert found in str(refused.value)


@pytest.mark.parametrize("events", ["p1 p2", "p1 p2 b1", "p1 p2 r1"])
def test_a_history_that_lost_its_last_entry_is_refused_and_no_rollback_is_undone(tmp_path, events):
    file, lines = write(tmp_path, events)
    whole = lines.read_bytes()
    lines.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(
        UserError, match=f"follows entry {len(events.split())}; expected all entries; next: restore"
    ):
        store.read_champion(tmp_path, "desk")
    lines.write_bytes(whole)
    assert store.read_champion(tmp_path, "desk").run_id == json.loads(file.read_text())["run_id"]


def test_a_champion_that_was_changed_by_hand_is_refused_and_the_printed_step_restores_it(tmp_path):
    file, _ = write(tmp_path, "p1 p2")
    file.write_text(file.read_text().replace('"w"', '"other"'))
    with pytest.raises(UserError, match="other than that of entry 2 of its history") as refused:
        store.read_champion(tmp_path, "desk")
    assert f"next: rm {file}: its history restores it" in str(refused.value)
    file.unlink()
    assert store.read_champion(tmp_path, "desk").weights_digest == "w"
    assert file.exists()


# On stored runs


@pytest.fixture
def twice(copy, command):
    """Promote lora, then prompt; returns the experiment's file."""
    for name in ("lora", "prompt"):
        command("promote", name, *FORCED, "-c", copy, check=0)
    return copy


@pytest.mark.e2e
def test_what_was_promoted_before_survives_cleaning_and_a_rollback_lets_gates_compare_with_it(twice, command):
    runs = Store(twice.parent / "runs")
    lora = next(run for run in store.list_runs(runs) if run.candidate == "lora")
    shutil.rmtree(runs.folder / lora.run_id)  # so that the history alone refers to its rows and weights
    store.reindex(runs)
    command("runs", "rm", "--unused", "--yes", "-c", twice, check=0)
    process = command("champions", "rollback", "--reason", "it was slow", "--json", "-c", twice, check=0)
    entry = json.loads(process.stdout)
    assert (entry["number"], entry["event"], entry["promoted"]) == (3, "rollback", 1)
    assert entry["why"] == "it was slow"
    (judged,) = release.gate(twice, "prompt")
    assert judged.baseline == f"the champion lora ({lora.run_id})"
    items = json.loads(command("champions", "list", "--json", "-c", twice, check=0).stdout)
    assert [(item["event"], item["who"]) for item in items.values()][:2] == [("promotion", "Ann")] * 2
    assert items["1"] | {"present": True, "kept": True, "missing": []} == items["1"]
    text = command("champions", "list", "-c", twice, check=0).stdout
    assert f"run_id: {lora.run_id}" in text
    refused = command("champions", "rollback", "-c", twice)
    assert (refused.returncode, "found none; expected one of the numbers: 2" in refused.stderr) == (2, True)
    repeated = command("champions", "rollback", "1", "-c", twice)
    assert (repeated.returncode, "the present champion" in repeated.stderr) == (2, True)
    command("champions", "retire", "2", "-c", twice, check=0)
    stderr = command("champions", "rollback", "-c", twice).stderr
    assert "found none; expected a run that was promoted and not retired; next: harness promote" in stderr


@pytest.mark.e2e
def test_the_files_of_a_retired_champion_may_go_and_those_of_the_last_are_kept(twice, command):
    runs = Store(twice.parent / "runs")
    lora = next(run for run in store.list_runs(runs) if run.candidate == "lora")
    weights = store.weights_folder(runs, lora)
    refused = command("runs", "rm", lora.run_id, "-c", twice)
    assert (refused.returncode, "a champion of letters" in refused.stderr) == (2, True)
    store.write_whole(runs, runs.folder / "exports" / lora.run_id / "gguf-q8_0" / "m.gguf", "x")
    store.write_whole(runs, runs.folder / "exports" / "of a run that is gone" / "m.gguf", "x")
    command("runs", "rm", "--unused", "--yes", "-c", twice, check=0)
    assert [path.name for path in (runs.folder / "exports").iterdir()] == [lora.run_id]
    command("champions", "retire", "1", "-c", twice, check=0)
    assert "which is retired" in command("champions", "rollback", "1", "-c", twice).stderr
    for name in ("hybrid", "lora"):  # hybrid answers with the same weights
        run = next(run for run in store.list_runs(runs) if run.candidate == name)
        command("runs", "rm", run.run_id, "-c", twice, check=0)
    assert not weights.exists()
    assert not (runs.folder / "exports" / lora.run_id).exists()
    command("champions", "retire", "-c", twice, check=0)
    assert store.read_champion(twice.parent, "letters") is None
    assert release.gate(twice, "prompt")[0].baseline == "the base"


@pytest.mark.e2e
def test_an_entry_says_who_promoted_which_code_and_data_and_which_weights(copy, command, monkeypatch):
    for name, value in (("NAME", "Eve"), ("EMAIL", "eve@example.org")):
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
    command("promote", "lora", "--force", "--reason", "a test", "-c", copy, check=0)
    entry = json.loads(command("champions", "show", "--json", "-c", copy, check=0).stdout)
    assert (entry["number"], entry["who"], entry["why"]) == (1, "Eve <eve@example.org>", "a test")
    assert set(entry["data"]) == set(entry["champion"]["rows"])
    assert entry["code"]["harness"]
    assert sorted(entry["champion"]["files"]) == [
        "adapter/README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    ]
    refused = command("champions", "show", "7", "-c", copy)
    assert (refused.returncode, "found no entry 7" in refused.stderr) == (2, True)


@pytest.mark.e2e
def test_two_processes_that_promote_at_once_lose_no_entry(copy):
    words = "import sys; from harness.cli import main; sys.argv = ['harness', *sys.argv[1:]]; main()"
    processes = [
        subprocess.Popen([sys.executable, "-c", words, "promote", name, *FORCED, "-c", str(copy)])
        for name in ("lora", "prompt")
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    history = store.read_history(copy.parent, "letters")
    assert sorted(entry.champion.candidate for entry in history.entries) == ["lora", "prompt"]
    assert store.read_champion(copy.parent, "letters") == history.champion


@pytest.mark.e2e
@pytest.mark.parametrize("which", ["adapter_model.safetensors", "base", "added"])
def test_weights_are_hashed_anew_though_a_changed_file_has_its_size_and_time(copy, tmp_path, tiny, which):
    shutil.copytree(tiny, tmp_path / "base")
    copy.write_text(copy.read_text().replace(str(tiny), str(tmp_path / "base")))
    _, champion = release.promote_named(copy, "lora", despite="a test")
    session = tiny_experiment.session(copy)
    run = store.get_run(session.store, champion.run_id)
    weights = ensure_weights(session, session.candidates["lora"], 0)
    verify_weights(session.store, session.source, weights, run)
    file = tmp_path / "base" / "tokenizer.json" if which == "base" else weights.folder / "adapter" / which
    if which == "added":
        file.write_text("{}")
    else:
        then, content = file.stat(), file.read_bytes()
        file.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        os.utime(file, ns=(then.st_atime_ns, then.st_mtime_ns))
    with pytest.raises(UserError) as refused:
        verify_weights(session.store, session.source, weights, run)
    assert str(file) in str(refused.value)


@pytest.mark.weekly
def test_the_alias_of_mlflow_follows_promotion_rollback_and_retirement(copy, command, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    copy.write_text(copy.read_text() + "report_to: [mlflow]\n")
    database = copy.parent / "reports" / "trackers" / "mlflow" / "mlflow.db"
    run_ids = []
    for words in (("promote", "lora", *FORCED), ("promote", "prompt", *FORCED), ("champions", "rollback")):
        process = command(*words, "-c", copy, check=0)
        client = MlflowClient(f"sqlite:///{database}")
        version = client.get_model_version_by_alias("letters", "champion")
        assert f"mlflow: version {version.version} of letters is the champion on" in process.stderr
        run_ids.append(version.tags["run_id"])
    assert run_ids[0] == run_ids[2] != run_ids[1]
    command("champions", "retire", "-c", copy, check=0)
    assert client.get_registered_model("letters").aliases == {}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    process = command("promote", "lora", *FORCED, "-c", copy, check=0)
    assert "mlflow: the champion was not registered" in process.stderr

"""An artefact answers in a worker, is judged as a candidate, and is refused where its prompts are not the run's."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_experiment
import tiny_gguf
import tiny_model
from tiny_experiment import runs_of

from harness import frames, report, store
from harness.errors import CandidateFailed
from harness.lifecycle import release
from harness.models import artefacts, hub
from harness.records import Limits
from harness.store import Store

pytestmark = pytest.mark.usefixtures("own_cache")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

N_TOKENS = 400


def table():
    """Return the logits of the next token for each token; a chat begins with some of them."""
    return np.random.default_rng(0).normal(0, 3, (N_TOKENS, N_TOKENS)).astype(np.float32)


def build_onnx(folder: Path, model: Path, tokenizer=None) -> Path:
    """Write a graph that looks up the logits of the next token by the last, and a tokenizer."""
    from onnx import TensorProto, helper, numpy_helper
    from transformers import AutoTokenizer

    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "n"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "n", N_TOKENS])
    node = helper.make_node("Gather", ["table", "input_ids"], ["logits"])
    graph = helper.make_graph([node], "next", [ids], [logits], [numpy_helper.from_array(table(), "table")])
    folder.mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx"
    )
    (tokenizer or AutoTokenizer.from_pretrained(model)).save_pretrained(folder)
    return folder


def change_template(folder: Path, change) -> None:
    file = folder / "chat_template.jinja"
    text = change(file.read_text())
    file.write_text(text) if text else file.unlink()


def reverse_merges(folder: Path) -> None:
    file = folder / "tokenizer.json"
    plain = json.loads(file.read_text())
    plain["model"]["merges"].reverse()
    file.write_text(json.dumps(plain))


def overwrite(file: Path, offset: int, written: bytes) -> None:
    with file.open("r+b") as content:
        content.seek(offset)
        content.write(written)


SPOILT = {
    "bare": (lambda folder: change_template(folder, lambda text: ""), "a tokenizer without a chat template"),
    "doubled": (
        lambda folder: change_template(folder, lambda text: "{{ bos_token }}" + text),
        "letters, prompt 1, token 1: 3 ('<s>') by its own template and tokenizer, and 0 ('<|im_start|>') in the run",
    ),
    "merged": (reverse_merges, "by its own template and tokenizer, and"),
    "damaged": (
        lambda folder: overwrite(folder / "m.onnx", 12, b"\xff" * 20),
        "the worker of m.onnx ended with exit code 1; its last lines: InvalidProtobuf: ",
    ),
}


@pytest.fixture(scope="module")
def file_and_report(tiny, own_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artefacts")
    served = build_onnx(folder / "served", tiny)
    lines = ["prompt: {method: base}", f"served: {{method: artefact, path: {served}}}"]
    for name, (spoil, _) in SPOILT.items():
        shutil.copytree(served, folder / name)
        spoil(folder / name)
        lines.append(f"{name}: {{method: artefact, path: {folder / name}}}")
    lines.append(f"whole: {{method: artefact, path: {tiny_model.build(folder / 'whole', seed=3)}}}")
    path = tiny_experiment.write(folder / "work", tiny, "".join(f"  {line}\n" for line in lines))
    return path, tiny_experiment.run(path)


@pytest.mark.parametrize(
    ("opened", "further"), [("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"), ("m.onnx", "m.onnx.data")]
)
@pytest.mark.parametrize("named", [True, False])
def test_each_file_of_an_artefact_in_parts_belongs_to_its_digest_and_size(tmp_path, opened, further, named):
    (tmp_path / "record").mkdir()
    folder, record = tmp_path / "served", tmp_path / "record" / artefacts.FILE
    folder.mkdir()
    path = folder / opened if named else folder
    record.write_text(json.dumps({"path": str(path)}))
    (folder / opened).write_bytes(b"first")
    (folder / further).write_bytes(b"second")
    before = artefacts.artefact_digest(record, "")
    assert (artefacts.main_file(path).name, artefacts.count_bytes(path)) == (opened, 11)
    (folder / further).write_bytes(b"changed")
    assert artefacts.artefact_digest(record, "") != before


@pytest.mark.parametrize(
    ("spoil", "damage"),
    [
        (lambda file: os.truncate(file, file.stat().st_size - 1), r"of at least 1\d\d,\d\d\d bytes"),
        (lambda file: overwrite(file, 0, b"GGML"), "it begins with b'GGML'"),
        (lambda file: overwrite(file, 52, b"\x63"), "a value of the unknown type 99"),
    ],
)
def test_a_damaged_gguf_file_is_told_by_its_header(tiny, tmp_path, spoil, damage):
    file = tiny_gguf.write(tiny, tmp_path / "m.gguf")
    assert list(artefacts.find_damage(file)) == []
    spoil(file)
    ((damaged_file, problem),) = artefacts.find_damage(tmp_path)
    assert (damaged_file, bool(re.search(damage, problem))) == (file, True), problem


@pytest.mark.e2e
def test_an_onnx_file_gives_the_log_likelihoods_of_its_own_logits_and_names_its_engine(file_and_report, tiny):
    path, judged = file_and_report
    rows = store.read_rows(Store(path.parent / "runs"), runs_of(path)["served"].rows["prose/test"])
    tokenizer = hub.load_tokenizer(hub.resolve(str(tiny)))
    sums = []
    for row in rows:
        ids = [tokenizer.bos_token_id, *tokenizer(row.references[0], add_special_tokens=False)["input_ids"]]
        logits = table().astype(float)[ids[:-1]]
        sums.append(float((logits[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(logits).sum(1))).sum()))
    assert [row.gold_logprob for row in rows] == pytest.approx(sums, abs=1e-3)
    identity = store.read_identity(Store(path.parent / "runs"), runs_of(path)["served"].rows["prose/test"])
    assert identity.engine.startswith("artefact/onnxruntime-")
    assert {c.task for c in judged.comparisons["served"]} == {"sums", "facts", "prose"}, "the gate judges it"
    assert any("answered by onnxruntime-" in note for note in judged.notes)


@pytest.mark.e2e
@pytest.mark.parametrize("name", SPOILT)
def test_an_artefact_that_is_prompted_otherwise_or_cannot_be_read_fails_and_the_others_go_on(
    file_and_report, name
):
    path, _ = file_and_report
    run = runs_of(path)[name]
    assert (run.state, run.rows) == ("failed", {}), "nothing was scored"
    assert SPOILT[name][1] in run.error
    assert "; try: " in run.error


@pytest.mark.e2e
def test_a_worker_that_is_killed_is_a_failed_candidate_with_its_signal(tiny, tmp_path):
    path, source = build_onnx(tmp_path / "served", tiny), hub.resolve(str(tiny))
    with artefacts.open_artefact(path, "x", source, tmp_path / "worker.log") as candidate:
        assert len(candidate.generate([(5, 6)], Limits(4))[0].text) > 0
        listed = subprocess.run(
            ["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True
        ).stdout
        (number,) = (
            int(line.split()[0])
            for line in listed.splitlines()
            if str(path) in line and "supervisor" not in line
        )
        os.kill(number, signal.SIGSEGV)
        with pytest.raises(
            CandidateFailed, match=r"the worker of m\.onnx was ended by SIGSEGV; its last lines"
        ):
            candidate.generate([(5, 6)], Limits(4))


def test_the_worker_imports_nothing_of_ours():
    source = (Path(artefacts.__file__).with_name("artefact_worker.py")).read_text()
    allowed = {"llama_cpp", "onnxruntime", "numpy", *sys.stdlib_module_names}
    imported = {
        line.split()[1].split(".")[0]
        for line in source.splitlines()
        if line.strip().startswith(("import ", "from "))
    }
    assert imported <= allowed


@pytest.fixture(scope="module")
def exported(tiny, own_cache, tmp_path_factory):
    """Judge two exports of the base's run: a copy of its weights, and an unrelated graph."""
    folder = tmp_path_factory.mktemp("exported")
    path = tiny_experiment.write(folder / "work", tiny, "  prompt: {method: base}\n")
    tiny_experiment.run(path)
    shutil.copytree(tiny, folder / "copy")
    build_onnx(folder / "other", tiny)
    run_id = runs_of(path)["prompt"].run_id
    for name in ("copy", "other"):
        (folder / name / "export.json").write_text(
            json.dumps({"run_id": run_id, "prompt": {"answer": "generate"}})
        )
    added = "".join(f"  {name}: {{method: artefact, path: {folder / name}}}\n" for name in ("copy", "other"))
    path.write_text(path.read_text() + added)
    return path, tiny_experiment.run(path), run_id


@pytest.mark.e2e
def test_parity_with_the_run_that_was_exported_is_in_the_report_the_json_and_sql(exported):
    path, judged, run_id = exported
    copy, graph = (tiny_experiment.fact_of(judged, name).parity for name in ("copy", "other"))
    assert copy["own_run"] == run_id
    assert {name: copy[name] for name in ("flipped", "floor", "lost", "won")} == dict.fromkeys(
        ("flipped", "floor", "lost", "won"), 0
    )
    assert (copy["logit_gap"], copy["mean_kl"], copy["top1_agreement"]) == (0, 0, 1)
    assert graph["logit_gap"] > 1
    assert graph["mean_kl"] > 0.1
    assert graph["size_bytes"] == (path.parent.parent / "other" / "m.onnx").stat().st_size
    assert graph["peak_memory_gib"] > 0.01
    (row,) = frames.query(
        "SELECT flipped FROM parity WHERE own_run IS NOT NULL AND top1_agreement = 1", path.parent / "runs"
    ).to_dict("records")
    assert row == {"flipped": 0}
    page = report.markdown(report.experiment_document(judged))
    assert "Parity of artefacts" in page
    assert "largest logit gap" in page


@pytest.mark.e2e
def test_the_gate_compares_an_export_with_its_own_run_and_promote_names_those_that_fail(exported):
    path, judged, run_id = exported
    for name in ("copy", "other"):
        rule = next(r for r in tiny_experiment.fact_of(judged, name).verdict.rules if r.name == "export")
        assert rule.numbers["own_run"] == run_id
        assert f"against {run_id} (lost " in rule.sentence
    (message,) = (f for f in release.list_failed_exports(path, run_id) if f.startswith("its export other: "))
    assert message.startswith(("its export other: FAIL", "its export other: UNDECIDED"))

"""The embedded model's own GGUF file, answered by llama.cpp in a worker, compared with transformers."""

import pytest
import tiny_experiment
from tiny_experiment import runs_of

from harness import store
from harness.errors import CandidateFailed
from harness.models import artefacts
from harness.models.hub import find_packaged_gguf
from harness.store import Store


@pytest.mark.weekly
def test_a_gguf_file_scores_as_its_weights_do_and_another_template_in_it_is_refused(tmp_path):
    packed, changed = find_packaged_gguf(), tmp_path / "changed.gguf"
    try:
        artefacts.identity(packed)
    except CandidateFailed:
        pytest.skip("needs .venv-gguf: make gguf-tools")
    changed.write_bytes(packed.read_bytes().replace(b"named SmolLM,", b"named SmolLN,"))
    candidates = "  prompt: {method: base}\n" + "".join(
        f"  {name}: {{method: artefact, path: {file}}}\n"
        for name, file in (("packed", packed), ("changed", changed))
    )
    path = tiny_experiment.write(tmp_path, "smollm2-135m", candidates)
    tiny_experiment.run(path)
    runs, at = runs_of(path), Store(path.parent / "runs")
    ours, theirs = (
        [row.gold_logprob for row in store.read_rows(at, runs[name].rows["prose/test"])]
        for name in ("prompt", "packed")
    )
    assert theirs == pytest.approx(ours, rel=0.03)  # llama.cpp's activations have 8 bits
    assert store.read_identity(at, runs["packed"].rows["prose/test"]).engine.startswith("artefact/llama.cpp-")
    assert runs["changed"].state == "failed"
    assert "by its own template and tokenizer, and" in runs["changed"].error

"""Golden answers, log-probabilities and weights of the tiny model in fp32, which new pins must not change.

`python -m tests.golden_model` rewrites `golden_model.json`; do that only after raising a version.

Invariant: answers must be equal, log-probabilities within 1e-4 nats, losses and norms of weights within 1e-3:
another machine's order of summation passes, another computation does not.
"""

import json
import os
import tempfile
from pathlib import Path

import tiny_experiment
import tiny_methods
import tiny_model

from harness import plugins, store
from harness.records import Run

FILE = Path(__file__).with_suffix(".json")
FITS = {
    "lora": {"r": 2, "learning_rate": 0.01, "num_train_epochs": 1},
    "qlora": {"r": 2, "learning_rate": 0.01, "num_train_epochs": 1},
    "full": {"learning_rate": 0.001, "num_train_epochs": 1},
    "dpo": {"r": 2, "learning_rate": 0.01, "num_train_epochs": 1},
}
# Trained candidates are compared by their fits: Adam amplifies rounding, so an answer may change.
CANDIDATES = """\
  prompt: {method: base}
  shots: {prompting: {few_shot: {select: knn, shots: 2}}}
  brief: {prompting: {few_shot: {select: fixed, shots: 1}}, system: Be brief., template: 'Q: {prompt}'}
  ranked: {answer: rank}
  bag: {method: classifier}
"""


def answers(runs: dict[str, Run], run_store: store.Store) -> dict[str, list]:
    """Return each candidate's answers to each task: item, text, log-probability in nats, parts."""
    return {
        f"{name}/{task}": [
            [row.example_id, row.status, row.text, row.gold_logprob, row.margin, row.parts, row.prompt_digest]
            for row in sorted(store.read_rows(run_store, digest), key=lambda row: row.example_id)
        ]
        for name, run in sorted(runs.items())
        for task, digest in sorted(run.rows.items())
    }


def fit(method: str, model: Path, folder: Path) -> dict[str, object]:
    from safetensors.torch import load_file

    from harness.models.hub import quantize, resolve

    module = plugins.load("methods", method)
    source = quantize(resolve(str(model)), module.METHOD.quantization)
    weights = module.METHOD.fit(
        tiny_methods.context(model, folder, source=source), module.Params(**FITS[method])
    )
    (file,) = (folder / weights.kind).glob("*.safetensors")
    norms = {name: tensor.float().norm().item() for name, tensor in sorted(load_file(file).items())}
    return {"loss": weights.training.loss, "norms": norms}


def name_fit(method: str) -> str:
    # The tiny model's rows are shorter than a block of 64 weights. For these the AVX512 kernel of
    # bitsandbytes 0.50 takes another block's scale (`dequantizeBlockwise4bitCpu` counts blocks by rows);
    # other kernels do not.
    import torch

    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return method if method != "qlora" or has_avx512 else "qlora without AVX512"


def measure(model: Path, folder: Path) -> dict[str, dict[str, object]]:
    """Run the tiny experiment and each fit; return the content of `golden_model.json`."""
    path = tiny_experiment.write(folder, model, CANDIDATES)
    tiny_experiment.run(path)
    outputs = answers(tiny_experiment.runs_of(path), store.Store(folder / "runs"))
    return {"answers": outputs, "fits": {name_fit(name): fit(name, model, folder / name) for name in FITS}}


def main() -> None:
    """Write the golden values of this code; fits of other processors stay unchanged."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HARNESS_CACHE"] = f"{scratch}/cache"
        model = tiny_model.build(Path(scratch) / "model")
        golden_values = measure(model, Path(scratch) / "work")
        golden_values["fits"] = json.loads(FILE.read_text("utf-8"))["fits"] | golden_values["fits"]
        lines = [
            f'"{kind}": {{\n' + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in values.items())
            for kind, values in golden_values.items()
        ]
        FILE.write_text("{" + "\n},\n".join(lines) + "\n}}\n", "utf-8")


if __name__ == "__main__":
    main()

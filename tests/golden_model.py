"""Golden answers, log-probabilities and weights of the tiny model in fp32, which a pin's renewal must leave as they are.

`python -m tests.golden_model` writes `golden_model.json` anew; do that only where a version was raised.

Invariant: answers are held exactly, log-probabilities to 1e-4 nats, losses and norms of weights to 1e-3, so
that any machine's order of summation passes and another computation does not.
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
# Trained candidates are held by their fits: Adam makes much of a rounding, and an answer may tip.
CANDIDATES = """\
  prompt: {method: base}
  shots: {prompting: {few_shot: {select: knn, shots: 2}}}
  brief: {prompting: {few_shot: {select: fixed, shots: 1}}, system: Be brief., template: 'Q: {prompt}'}
  ranked: {answer: rank}
  bag: {method: classifier}
"""


def answers(runs: dict[str, Run], where: store.Store) -> dict[str, list]:
    """Return what each candidate answered to each task: item, text, log-probability in nats, parts."""
    return {
        f"{name}/{task}": [
            [row.example_id, row.status, row.text, row.gold_logprob, row.margin, row.parts, row.prompt_digest]
            for row in sorted(store.read_rows(where, digest), key=lambda row: row.example_id)
        ]
        for name, run in sorted(runs.items())
        for task, digest in sorted(run.rows.items())
    }


def fit(method: str, model: Path, folder: Path) -> dict[str, object]:
    from safetensors.torch import load_file

    from harness.models.hub import quantize, resolve

    module = plugins.load("methods", method)
    source = quantize(resolve(str(model)), module.METHOD.quantization)
    made = module.METHOD.fit(
        tiny_methods.context(model, folder, source=source), module.Params(**FITS[method])
    )
    (file,) = (folder / made.kind).glob("*.safetensors")
    norms = {name: tensor.float().norm().item() for name, tensor in sorted(load_file(file).items())}
    return {"loss": made.training.loss, "norms": norms}


def name_fit(method: str) -> str:
    # The tiny model's rows are shorter than a block of 64 weights, and of those bitsandbytes' AVX512 kernel
    # takes the scale of another block (`dequantizeBlockwise4bitCpu` of 0.50 counts blocks by rows); other
    # kernels do not.
    import torch

    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return method if method != "qlora" or has_avx512 else "qlora without AVX512"


def measure(model: Path, folder: Path) -> dict[str, dict[str, object]]:
    """Run the tiny experiment and each fit, as `golden_model.json` holds them."""
    path = tiny_experiment.write(folder, model, CANDIDATES)
    tiny_experiment.run(path)
    done = answers(tiny_experiment.runs_of(path), store.Store(folder / "runs"))
    return {"answers": done, "fits": {name_fit(name): fit(name, model, folder / name) for name in FITS}}


def main() -> None:
    """Write the golden values of this code; a fit of other processors stays as it is."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HARNESS_CACHE"] = f"{scratch}/cache"
        model = tiny_model.build(Path(scratch) / "model")
        found = measure(model, Path(scratch) / "work")
        found["fits"] = json.loads(FILE.read_text("utf-8"))["fits"] | found["fits"]
        lines = [
            f'"{kind}": {{\n' + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in values.items())
            for kind, values in found.items()
        ]
        FILE.write_text("{" + "\n},\n".join(lines) + "\n}}\n", "utf-8")


if __name__ == "__main__":
    main()

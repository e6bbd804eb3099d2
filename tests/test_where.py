"""Where is X: one listing of `harness/` answers, and the tree holds what the table says."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "harness"
# What somebody who knows the field looks for, the path that holds it, and a name that is defined there.
ANSWERS = {
    "rules of the release gate": ("gating/rules.py", "macro_rule"),
    "SQL": ("store/index.py", ""),
    "loading harness.yaml": ("config/__init__.py", "load"),
    "LoRA": ("training/low_rank_adapters.py", "low_rank_method"),
    "metrics": ("metrics/exact_match.py", "metric"),
    "paired statistics": ("stats/paired.py", "mcnemar"),
    "nightly evaluation": ("nightly/night.py", "run_night"),
    "HTML report": ("report/html.py", ""),
    "vLLM": ("models/vllm.py", "VllmServer"),
    "lm-eval adapter": ("evaluation/lm_eval/engine_for_lm_eval.py", ""),
    "prefix KV cache": ("models/prefix_cache.py", ""),
    "chat template and tokenizer": ("models/tokenization.py", "encode_all"),
    "out of memory": ("models/oom.py", ""),
    "batch packing": ("models/batching.py", "pack"),
    "model download and resolution": ("models/hub.py", "resolve"),
    "harness init": ("experiment/scaffold/__init__.py", "propose"),
    "estimate of cost": ("evaluation/costs.py", ""),
    "estimate of memory": ("models/memory.py", ""),
    "champions": ("store/champions.py", ""),
    "contamination of training data": ("data/contamination.py", ""),
    "control arm": ("evaluation/control_arm.py", ""),
    "hyper-parameter search": ("experiment/trials.py", "proposals"),
    "stratified item sampling": ("evaluation/sampling.py", ""),
    "preflight check": ("experiment/preflight.py", "examine"),
    "A/A noise": ("experiment/preflight.py", "measure_noise"),
}


def list_defined_names(path: Path) -> set[str]:
    nodes = ast.parse(path.read_text("utf-8")).body
    assigned = (target for node in nodes if isinstance(node, ast.Assign) for target in node.targets)
    names = {target.id for target in assigned if isinstance(target, ast.Name)}
    return names | {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("question", ANSWERS)
def test_one_listing_says_where_something_is(question):
    path, name = ANSWERS[question]
    assert (PACKAGE / path).is_file()
    assert not name or name in list_defined_names(PACKAGE / path)
    tops = {part.stem for part in PACKAGE.iterdir()}
    assert Path(path).parts[0].removesuffix(".py") in tops

"""Checkup before a run: the checks of machine, packages and experiment that `harness doctor` prints.

Invariant: nothing is trained, and all problems are listed together.
"""

import shutil
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from harness import config, metrics, provenance
from harness.errors import Problem, gather
from harness.evaluation.session import Session
from harness.experiment.candidate_problems import key_problems
from harness.experiment.check_rows import Brief, check_target
from harness.experiment.cost_estimates import Cost, Estimates
from harness.experiment.preparation import Scope, prepare_session
from harness.experiment.run_remarks import recipe_warnings, short_contexts
from harness.models import hardware, vllm
from harness.models.hardware import Machine, Memory, probe
from harness.progress import Progress

# Optional packages, and the extras that install them.
_EXTRAS = {
    "bitsandbytes": "qlora",
    "lm_eval": "lm-eval",
    "evaluate": "evaluate",
    "sentence-transformers": "dense",
    "liger-kernel": "gpu",
    "optuna": "search",
}
_LEAST_DISK_GB = 5.0  # for runs, checkpoints and the cache of a small model


@dataclass(frozen=True, slots=True)
class Checkup:
    """Result of the check; disk space in GB.

    `data` has the worst findings in the target's rows, `recipes` training settings outside published ranges,
    `judges` local judges whose context is too short for some prompts. `absent` maps missing optional packages
    to the command that installs them. If there are `problems`, `costs` may be empty.
    """

    machine: Machine
    memory: Memory
    disk_free_gb: float
    packages: dict[str, str | None]
    vllm: str
    absent: dict[str, str]
    experiment: tuple[str, ...]
    data: Brief | None
    costs: tuple[Cost, ...]
    problems: tuple[Problem, ...]
    recipes: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()


def examine(path: Path, overrides: list[str], progress: Progress, embeddings: str = "") -> Checkup:
    """Check everything that a comparison needs."""
    problems, selected = list[Problem](), list[str]()
    session: Session | None = None
    with gather(problems):
        loaded = config.load(path, overrides)
        session = prepare_session(loaded, Scope(renew_probe=True, embeddings=embeddings), progress)
        selected += loaded.selected
        placed = [(loaded.places[name], session.candidates[name]) for name in selected]
        problems.extend(key_problems(session.experiment, placed))
        problems.extend(problem for m in session.tasks for problem in metrics.problems(m.task))
    machine = session.machine if session else probe(renew=True)
    free_gb = shutil.disk_usage(path.parent.resolve() if path.parent.exists() else Path()).free / 1e9
    if free_gb < _LEAST_DISK_GB:
        found = f"{free_gb:.1f} GB free"
        problems.append(Problem(str(path.parent), found, f"{_LEAST_DISK_GB:g} GB or more", "free some"))
    engine = session.experiment.vllm if session and session.experiment.engine == "vllm" else None
    if machine.device == "cuda":  # Triton compiles kernels during training
        available = {
            "C compiler": any(shutil.which(name) for name in ("cc", "gcc", "clang")),
            "Python.h": Path(sysconfig.get_paths()["include"], "Python.h").exists(),
        }
        expected = "what Triton compiles a training's kernels with"
        step = "apt-get install gcc python3-dev, or an image with them"
        missing = [name for name, is_there in available.items() if not is_there]
        problems += [Problem("doctor", f"no {name}", expected, step) for name in missing]
    short = short_contexts(session, selected) if session else []
    problems += [context.problem for context in short if context.problem]
    data, room = None, hardware.memory(machine.device)
    with gather(problems):
        data = check_target(session.target.task, session.progress) if session else None
    absent = {name: extra for name, extra in _EXTRAS.items() if find_spec(name.replace("-", "_")) is None}
    return Checkup(
        machine=machine,
        memory=room,
        disk_free_gb=free_gb,
        packages=provenance.package_versions(),
        vllm=f"{vllm.release_of(engine)}, as a server by {engine.command}" if engine else "",
        absent={name: f"pip install 'harness-evals[{extra}]'" for name, extra in absent.items()},
        experiment=Estimates(session).describe(selected) if session else (),
        data=data,
        costs=Estimates(session).costs(selected, room) if session else (),
        problems=tuple(problems),
        recipes=tuple(recipe_warnings(session, selected)) if session else (),
        judges=tuple(context.text for context in short if not context.problem),
    )

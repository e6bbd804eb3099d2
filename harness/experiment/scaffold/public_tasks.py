"""Public tasks of a new experiment: those that most papers report, or others in the language of the rows.

Invariant: nothing is fetched. The hub is asked once whether it answers, for at most three seconds, and never
where the environment says that there is none.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from harness import config
from harness.data import TaskItems
from harness.errors import UserError
from harness.evaluation.languages import SPOKEN, find_language
from harness.evaluation.lm_eval import registry
from harness.experiment.scaffold.proposal_files import flow
from harness.formatting import pluralize

PUBLIC = "public"
_MOST_S = 3.0
_LIMIT = 300  # items of a task in another language
_KEYS = {"lm_eval", "limit", "num_fewshot", "primary", "chance", "margin"}


class PublicTasks(NamedTuple):
    """A suite of public tasks: its name, its file's text if it is none of ours, and what to say of it.

    It is `listed` in harness.yaml where its data can be had and a GPU answers it.
    """

    name: str
    text: str
    listed: bool
    said: str


def propose_public(items: TaskItems, *, on_gpu: bool) -> PublicTasks:
    """Propose public tasks in the language of the rows, English where it cannot be told."""
    rows = (*items.train, *items.validation, *items.test)
    code = find_language(example.prompt for example in rows) or "en"
    language = SPOKEN.get(code)
    if language is None:
        said = f"public tasks: none are known in the language of the rows, “{code}”"
        return PublicTasks("", "", listed=False, said=said)
    shipped = config.read_suites(Path(os.devnull))  # no folder: the suites that the package ships
    standard = next(suite for suite in shipped if suite.name == "standard")
    usual = [task.model_dump(include=_KEYS, exclude_defaults=True, mode="json") for task in standard.tasks]
    spoken = [{"lm_eval": n, "limit": _LIMIT, "chance": round(c, 3)} for n, c in language.tasks.items()]
    wanted = spoken or usual
    source, there = _find_data([str(task["lm_eval"]) for task in wanted])
    kept = [task for task in wanted if task["lm_eval"] in there] or wanted
    name = standard.name if kept == usual else PUBLIC
    lines = ["name: public", "role: capability", "tasks:", *(f"  - {flow(task)}" for task in kept)]
    text = "" if name == standard.name else "\n".join(lines) + "\n"
    of = f"{pluralize(len(kept), 'task')} of lm-eval in {language.name}, suites/{name}.yaml"
    setting = f"'suites=[general,safety,{name}]'"
    if source and on_gpu:
        said = f"listed, with data from {source}; they are not in the margins and the time above"
    elif source:
        said = f"not listed, for on a CPU they take long; harness compare {setting} asks them too"
    else:
        said = (
            "not listed, for no hub, cache or mirror (HARNESS_DATASETS_DIR) of their data is reached, or"
            f" lm-eval is not installed; where they are, harness compare {setting} asks them too"
        )
    return PublicTasks(name, text, bool(source) and on_gpu, f"public tasks: {of}; {said}")


def _find_data(tasks: Sequence[str]) -> tuple[str, set[str]]:
    """Say where data of tasks can be had, and of which: the hub, a mirror or the hub's cache."""
    if not registry.is_installed():
        return "", set()
    if _reaches_hub():
        return "the hub", set(tasks)
    from huggingface_hub import constants

    mirror, cache = registry.datasets_folder(None), Path(constants.HF_HUB_CACHE)

    def is_here(task: str) -> bool:
        with suppress(UserError):
            found = registry.members(task, "init")
            cached = (cache / f"datasets--{m.dataset_path.replace('/', '--')}" / "snapshots" for m in found)
            return all(
                registry.local_copy(m, mirror) or at.is_dir() for m, at in zip(found, cached, strict=True)
            )
        return False

    there = set(filter(is_here, tasks)) if mirror or any(cache.glob("datasets--*")) else set()
    return ("the copies on this machine" if there else ""), there


def _reaches_hub() -> bool:
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE", "0") not in ("", "0"):
        return False
    answers: list[int] = []

    def ask() -> None:
        with suppress(Exception):
            answers.append(get_session().head(constants.ENDPOINT, timeout=_MOST_S).status_code)

    # A look-up of a name has no time limit of its own.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_MOST_S)
    return bool(answers) and answers[0] < 500

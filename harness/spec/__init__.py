"""Schema of harness.yaml: experiments, recipes, suites, tasks and policies.

Invariant: every model is frozen and refuses unknown keys; paths are kept as written, and the reader of a file
resolves them against that file's folder (see `config`).
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator

# fmt: off
# isort: off
from harness.spec.policies import (
    PEOPLE, AcceleratePolicy, ChampionsPolicy, DecidePolicy, ExecutionPolicy, ExportPolicy,
    FeedbackPolicy, GatePolicy, NightlyPolicy, RescuePolicy, TargetPolicy, TokenPrices, TrainingPolicy,
    VllmPolicy,
)
from harness.spec.recipe import (
    MEAN_LOGPROB, PLUGINS, PROMPTS, Decoding, Mix, Recipe, SubjectTo, Tracking, is_span, span_of,
    spell_out,
)
from harness.spec.task import (
    BASE, DATA_FILES, ENTAILMENT, EVALUATE, HUB, JUDGE, NAME, Disagreements, Engine, Fields, ItemLimits,
    Kind, Margin, Name, Need, Precision, Role, Seed, Spec, Suite, Task, TaskData, is_path, metric_name,
    metric_params, metric_parts, metric_plugin, rule,
)
# isort: on
# fmt: on


class Experiment(Spec):
    """Content of harness.yaml, with suites read and grids expanded.

    `name` names the reports. `base_model` is the embedded one, a hub id or a folder. `target` is the task
    that candidates are compared on. `suites` show what a fine-tune forgot: names of suites that ship with the
    package, or files. `candidates` maps names to recipes. Each recipe that trains does so once for each of
    `seeds`. `engine` evaluates; transformers trains in any case. `vllm` holds the settings of `engine: vllm`,
    `export` those of `harness export`. `precision` is that of the weights; `auto` measures which one is fast
    here. `device: auto` uses a GPU if torch finds one. `chat_template_kwargs` are variables of the chat
    template, such as `enable_thinking`. `chat_template` is the template for bases without their own:
    `chatml`, `alpaca` or a Jinja file. `report_to` names trackers that see trainings while they run, and
    receive results. `datasets_dir` has copies of hub data. `more_targets` are written like `target`: every
    candidate answers them too, but no training, choice or decision depends on them; rescues keep gains on
    them, and nights watch them. `concurrency` is how many requests are timed together: 8 by default; for an
    endpoint, where each request has its price, only if written.
    """

    name: Name
    base_model: str = "smollm2-135m"
    target: Task
    more_targets: tuple[Task, ...] = ()
    suites: tuple[Suite, ...] = ()
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    candidates: dict[str, Recipe] = Field(min_length=1)
    gate: GatePolicy = GatePolicy()
    decide: DecidePolicy = DecidePolicy()
    champions: ChampionsPolicy = ChampionsPolicy()
    nightly: NightlyPolicy = NightlyPolicy()
    rescue: RescuePolicy = RescuePolicy()
    feedback: FeedbackPolicy = FeedbackPolicy()
    training: TrainingPolicy = TrainingPolicy()
    execution: ExecutionPolicy = ExecutionPolicy()
    chat_template_kwargs: dict[Annotated[str, Field(pattern=r"^[a-z_]\w*$")], bool | int | float | str] = {}
    chat_template: str | None = None
    engine: Engine = "transformers"
    vllm: VllmPolicy = VllmPolicy()
    export: ExportPolicy = ExportPolicy()
    precision: Precision = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    concurrency: int | None = Field(None, ge=1, le=1024)
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    datasets_dir: str | None = None

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: tuple[Seed, ...]) -> tuple[Seed, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds {list(seeds)}, one of them twice")
        return seeds

    @rule
    def _check_folds(self) -> Iterator[str]:
        folded_tasks = [task.name for task in self.tasks[1:] if task.data.folds]
        if folded_tasks:
            yield f"folds at {', '.join(folded_tasks)}: only the target is trained on, and tested in folds"
        if self.target.data.folds and len(self.seeds) > 1:
            yield f"folds: {self.target.data.folds}, and {len(self.seeds)} seeds; leave one of the two out"
        if self.target.data.folds and self.gate.target.win_rate is not None:
            yield "folds, and gate.target.win_rate; set gate.target.gain or min, or name a file of test rows"
        if self.target.data.folds and self.target.is_judged and self.gate.uncalibrated_judge == "refuse":
            found = f"folds, and {self.target.primary_metric}, which labels of people do not correct in folds"
            yield f"{found}; name another primary metric, or set gate.uncalibrated_judge: allow"

    @property
    def can_fold(self) -> bool:
        """Whether `folds` could be added to the target's data as they are."""
        data, alone = self.target.data, len(self.seeds) == 1 and self.gate.target.win_rate is None
        refused = self.target.is_judged and self.gate.uncalibrated_judge == "refuse"
        return bool(data.all) and not data.folds and alone and not refused

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The target, more targets, then the tasks of the suites."""
        return (self.target, *self.more_targets, *(task for suite in self.suites for task in suite.tasks))

"""Command that lets a model propose system texts: data propose-prompts.

Invariant: a new file, never over one; what is in it is tried on validation like what anybody else writes.
"""

from pathlib import Path
from typing import Annotated

from harness.cli.app import BY_A_MODEL, data_app, print_lines, say
from harness.cli.options import (
    Argument,
    DryAsking,
    ExperimentFile,
    Json,
    MaxCost,
    Option,
    Seed,
    Temperature,
    verb,
)
from harness.cli.rows.refusals import refuse_draws, refuse_grid, require_out

_COMMAND = "harness data propose-prompts"


@verb(
    data_app,
    "harness data propose-prompts large --n 8 --out proposed.yaml",
    name="propose-prompts",
    heading=BY_A_MODEL,
)
def data_propose_prompts(
    proposer: Annotated[str, Argument("A candidate of the experiment, such as a larger model's.")],
    at: ExperimentFile,
    out: Annotated[Path | None, Option("The new YAML file with a candidate to copy.")] = None,
    n: Annotated[int, Option("How many texts to ask for.", min=1, max=64)] = 6,
    examples: Annotated[int, Option("How many training rows to show.", min=0)] = 4,
    max_new_tokens: Annotated[int, Option("Tokens of a text, at most.", min=1)] = 200,
    temperature: Temperature = 0.7,
    max_cost: MaxCost = None,
    seed: Seed = 0,
    dry_run: DryAsking = False,
    as_json: Json = False,
) -> None:
    """Let a model propose system texts to be tried.

    It is shown the task and some training rows, and the texts are written as a grid.
    """
    from harness.data.edit.save import refuse_existing
    from harness.experiment.generated_rows.proposed_prompts import (
        PromptProposal,
        plan_proposals,
        propose_prompts,
        recipe_text,
    )

    refuse_draws(temperature, 1.0, greedy=True)
    if not dry_run:
        refuse_existing(require_out(out, _COMMAND, "proposed.yaml"))
    session, _ = at.open_session(proposer, dry_run=dry_run)
    refuse_grid(proposer, session.candidates, _COMMAND)
    asked = PromptProposal(n, examples, max_new_tokens, temperature, max_cost, seed)
    plan = plan_proposals(session, proposer, asked)
    if dry_run or out is None:
        print_lines(plan._asdict(), [str(plan)], as_json)
        say("nothing is asked in a dry run")
        return
    say(str(plan))
    path, made = out, propose_prompts(session, proposer, asked)
    with path.open("x", encoding="utf-8") as file:
        file.write(recipe_text(made))
    print_lines({"texts": list(made.texts), **made.provenance}, made.texts, as_json)
    say(f"{len(made.texts)} of {n} texts differ; next: copy the candidate in {path} into harness.yaml")

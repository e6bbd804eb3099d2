"""Command that lets a model propose system texts: data propose-prompts.

Invariant: a new file, never over one; what is in it is tried on validation like what anybody else writes.
"""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import (
    BY_A_MODEL,
    Config,
    Json,
    Overrides,
    data_app,
    examples,
    open_session,
    print_json,
    say,
)
from harness.cli.rows.refusals import refuse_draws, refuse_grid, require_out

_COMMAND = "harness data propose-prompts"


@data_app.command(
    "propose-prompts",
    rich_help_panel=BY_A_MODEL,
    epilog=examples("harness data propose-prompts large --n 8 --out proposed.yaml"),
)
def data_propose_prompts(
    proposer: Annotated[str, typer.Argument(help="A candidate of the experiment, such as a larger model's.")],
    overrides: Overrides = None,
    config: Config = Path("harness.yaml"),
    out: Annotated[
        Path | None, typer.Option("--out", help="The new YAML file with a candidate to copy.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, max=64, help="How many texts to ask for.")] = 6,
    examples: Annotated[int, typer.Option("--examples", min=0, help="How many training rows to show.")] = 4,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Tokens of a text, at most.")
    ] = 200,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="Sampling temperature; 0 is greedy.")
    ] = 0.7,
    max_cost: Annotated[
        float | None,
        typer.Option("--max-cost", min=0, help="Budget in USD; no request is sent that could exceed it."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the random draw.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be asked and its highest cost, and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let a model propose system texts to be tried.

    It is shown the task and some training rows, and the texts are written as a grid.
    """
    from harness.data.edit.save import refuse_existing
    from harness.experiment.generated_rows.proposed_prompts import (
        Proposal,
        plan_proposals,
        propose_prompts,
        recipe_text,
    )

    refuse_draws(temperature, 1.0, greedy=True)
    if not dry_run:
        refuse_existing(require_out(out, _COMMAND, "proposed.yaml"))
    session, _ = open_session(config, overrides, proposer, dry_run=dry_run)
    refuse_grid(proposer, session.candidates, _COMMAND)
    asked = Proposal(n, examples, max_new_tokens, temperature, max_cost, seed)
    plan = plan_proposals(session, proposer, asked)
    if dry_run or out is None:
        print_json(plan._asdict()) if as_json else print(plan)
        say("nothing is asked in a dry run")
        return
    say(str(plan))
    path, made = out, propose_prompts(session, proposer, asked)
    with path.open("x", encoding="utf-8") as file:
        file.write(recipe_text(made))
    if as_json:
        print_json({"texts": list(made.texts), **made.provenance})
    else:
        for text in made.texts:
            print(text)
    say(f"{len(made.texts)} of {n} texts differ; next: copy the candidate in {path} into harness.yaml")

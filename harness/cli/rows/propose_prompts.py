"""Command that lets a model propose system texts: data propose-prompts.

Invariant: a new file, never over one; what is in it is tried on validation like what anybody else writes.
"""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import Config, Json, Overrides, data_app, open_session, print_json, say
from harness.cli.rows.refusals import refuse_draws, refuse_grid, require_out

_COMMAND = "harness data propose-prompts"


@data_app.command("propose-prompts")
def data_propose_prompts(
    proposer: Annotated[str, typer.Argument(help="A candidate of the experiment, such as a larger model's.")],
    overrides: Overrides = None,
    config: Config = Path("harness.yaml"),
    out: Annotated[
        Path | None, typer.Option("--out", help="The new YAML file with a candidate to copy.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, max=64, help="How many texts are asked for.")] = 6,
    examples: Annotated[
        int, typer.Option("--examples", min=0, help="How many training rows it is shown.")
    ] = 4,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of a text.")] = 200,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 answers greedily.")] = 0.7,
    max_cost: Annotated[
        float | None, typer.Option("--max-cost", min=0, help="Ask no more once texts cost so much, USD.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another draw.")] = 0,
    as_json: Json = False,
) -> None:
    """Let a model propose system texts from the task and training rows, as a grid to be tried."""
    from harness.data.edit.save import refuse_existing
    from harness.experiment.generated_rows.proposed_prompts import Proposal, propose_prompts, recipe_text

    refuse_draws(temperature, 1.0, greedy=True)
    path = require_out(out, _COMMAND, "proposed.yaml")
    refuse_existing(path)
    session, _ = open_session(config, overrides, proposer)
    refuse_grid(proposer, session.candidates, _COMMAND)
    asked = Proposal(n, examples, max_new_tokens, temperature, max_cost, seed)
    made = propose_prompts(session, proposer, asked)
    with path.open("x", encoding="utf-8") as file:
        file.write(recipe_text(made))
    if as_json:
        print_json({"texts": list(made.texts), **made.provenance})
    else:
        for text in made.texts:
            print(text)
    say(f"{len(made.texts)} of {n} texts differ; next: copy the candidate in {path} into harness.yaml")

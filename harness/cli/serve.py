"""Command that serves a champion, or another run, by an existing server."""

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from harness.cli.app import RELEASE, app, say
from harness.cli.options import Argument, ExperimentFile, Option, verb

if TYPE_CHECKING:
    from harness.release.serving import Readiness, ServingPlan


@verb(
    app,
    "harness serve lora --to gguf",
    "harness serve support --host 0.0.0.0 --port 8080 --api-key-env SERVE_KEY --to gguf",
    heading=RELEASE,
)
def serve(
    run: Annotated[str, Argument("A run's id, a candidate (its best seed), or the target of a champion.")],
    at: ExperimentFile,
    to: Annotated[
        str | None,
        Option(
            "gguf (llama.cpp), merged (transformers serve) or vllm; by default vllm where vllm.command is "
            "written, else what was exported last, else merged."
        ),
    ] = None,
    host: Annotated[str, Option("Where it listens; beyond this machine it needs a key.")] = "127.0.0.1",
    port: Annotated[int, Option("The port.", min=1, max=65535)] = 8000,
    api_key_env: Annotated[str | None, Option("The variable that holds the key to ask for.")] = None,
    print_: Annotated[
        bool, Option("Print the command and a compose file, and start nothing.", "--print")
    ] = False,
) -> None:
    """Serve a run at one address of OpenAI's protocol.

    It runs until Ctrl-C. The export is made first where there is none, and its files are hashed anew. It is
    ready once the server gives the stored answers to 20 items of the target; else it ends with exit code 1
    and the first differences.
    """
    from harness import release
    from harness.models.serving_programs import Address
    from harness.release import serving

    session, loaded = at.open_session()
    found = release.find_run(release.load_study(loaded), run)
    plan = serving.plan_serving(session, found, to, Address(host, port, api_key_env))
    if print_:
        print(f"{plan.program.as_shell()}\n\n# compose.yaml\n{plan.program.as_compose()}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the server ends first
    running, readiness = serving.start(session, plan)
    for line in _ready_lines(plan, readiness):
        print(line, flush=True)
    say("Ctrl-C ends it")
    serving.wait(running)


def _ready_lines(plan: "ServingPlan", found: "Readiness") -> Iterator[str]:
    """Say where it is ready, by how many answers, and how it is asked."""
    export, address, model = plan.export, plan.address, plan.program.model
    same = f"{found.n_same} of {found.n} answers are the stored ones"
    same += ", the others within rounding" if found.n_same < found.n else ""
    what = f"{plan.program.name}, {export.format} {export.quantization}"
    yield f"ready: {address.url}/v1, model {model} ({what}); {same}"
    if others := [name for name in export.prompt["prompting"] if name != "zero_shot"]:
        readme = plan.folder / "README.md"
        where = f"{readme} has the lines that do" if readme.exists() else "harness.yaml says how"
        yield f"served are the weights alone: {', '.join(others)} makes each request's prompt; {where}"
    body = {"model": model, "messages": list(found.request.messages)}
    key = f' -H "Authorization: Bearer ${address.api_key_env}"' if address.api_key_env else ""
    asked = shlex.quote(json.dumps(body, ensure_ascii=False))
    yield f"curl {address.url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d {asked}"

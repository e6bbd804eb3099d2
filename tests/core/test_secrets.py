"""Secrets in command lines, addresses and the environment: neither files of a run nor output contain them."""

import json

import pytest
import tiny_experiment
from test_command import save_adapter

from harness.masking import mask_secrets, mask_values

HIDDEN = "S3KRET"  # begins every planted secret
FORMS = {
    "--token {}": "--token ***",
    "--hub_token={}": "--hub_token=***",
    "--api-key '{} 1'": "--api-key ***",
    '--password "{}"': "--password ***",
    "WANDB_API_KEY={} trl": "WANDB_API_KEY=*** trl",
    "export AWS_SECRET_ACCESS_KEY={}; trl": "export AWS_SECRET_ACCESS_KEY=***; trl",
    "-H 'Authorization: Bearer {}'": "-H 'Authorization: ***'",
    "-H 'X-Api-Key: {}'": "-H 'X-Api-Key: ***'",
    "https://me:{}@host.example/x": "https://***@host.example/x",
    "https://{}@host.example/x": "https://***@host.example/x",
    "postgresql://me:{}/p@host.example/x": "postgresql://***@host.example/x",
    "https://host.example/x?api_key={}&n=1": "https://host.example/x?api_key=***&n=1",
    "{{'hf_token': '{}'}}": "{'hf_token': ***}",
    "Bearer {}abcdefgh": "Bearer ***",
    "https://me:a@{}@host.example/x": "https://***@host.example/x",
    "https://host.example/x?sig={}&n=1": "https://host.example/x?sig=***&n=1",
    "--pass {} --pwd x": "--pass *** --pwd ***",
    "Authorization: ApiKey {}": "Authorization: ***",
    "Cookie: session={}; x=1": "Cookie: ***",
    "Incorrect API key provided: {}.": "Incorrect API key provided: ***",
    "AccountKey={};EndpointSuffix=x": "AccountKey=***;EndpointSuffix=x",
}
SHAPES = [
    *"hf_abcdefghijklmnop sk-proj-abcdefghijkl ghp_abcdefghijklmnop github_pat_abcdefghijkl".split(),
    *"AKIAABCDEFGHIJKLMNOP glpat-abcdefghijklmnop xoxb-123456789012 AIzaabcdefghijklmnopqrstuvwxyz".split(),
    "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.abc-def",
    "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
]
NO_SECRETS = [
    "trl sft --max-tokens 512 --tokenizer t --eos_token '</s>' --pad-token <pad> --max_token 3",
    "--token {seed} --token $TOKEN --api-key ${KEY} cp {base} {out}",
    "The token: it stands for a word. keyboard=x monkey: y https://host.example/@user",
]


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_masked_in_every_form_and_stays_masked(form):
    masked = mask_secrets(f"a {form.format(HIDDEN)}")
    assert masked == f"a {FORMS[form]}"
    assert mask_secrets(masked) == masked


@pytest.mark.parametrize("shape", SHAPES, ids=lambda value: value[:6])
def test_what_looks_like_a_key_of_a_service_is_masked(shape):
    assert mask_values({"a": [f"x {shape} y"]}) == {"a": ["x *** y"]}


def test_values_are_masked_by_the_names_of_their_keys_lists_and_options_included():
    plain = {"api_key": HIDDEN, "api_key_env": "VARIABLE", "pad_token": "<pad>", "n_tokens": 3, "token": ""}
    assert mask_values(plain) == plain | {"api_key": "***"}
    assert mask_values({"api_keys": [HIDDEN, HIDDEN]}) == {"api_keys": ["***", "***"]}
    command = ["trl", "--token", HIDDEN, "--seed", "1"]
    assert mask_values({"command": command}) == {"command": ["trl", "--token", "***", "--seed", "1"]}


@pytest.mark.parametrize("text", NO_SECRETS)
def test_what_is_no_secret_stays(text):
    assert mask_secrets(text, environment=False) == text


@pytest.mark.e2e
def test_nothing_that_a_run_writes_or_prints_has_a_secret(tiny, tmp_path, command, monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", f"{HIDDEN}-of-the-environment")
    planted = " ".join(form.replace("'", "").format(HIDDEN) for form in FORMS)
    adapter = save_adapter(tiny, tmp_path / "adapter")
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "template.txt").write_text(f"token: x\nhf_token: {HIDDEN}\n")
    log_command = f"echo logged in with $MY_SERVICE_TOKEN --token {HIDDEN}"
    config = f"config: {tmp_path}/given/template.txt"
    works = f"sh -c '{log_command}; cp -r {adapter}/. $0' {{out}} {{config}} {planted}"
    fails = f"sh -c '{log_command}; exit 3' {{out}} {{config}} {planted}"
    candidates = "  prompt: {method: base}\n" + "".join(
        f"  {name}: {{method: command, params: {{run: {json.dumps(run)}, {config}}}}}\n"
        for name, run in (("made", works), ("fails", fails))
    )
    project = tmp_path / "project"
    file = tiny_experiment.write(project, tiny, candidates, extra="report_to: [tensorboard]\n")
    outputs = [command("compare", "-c", file), command("compare", "-c", file)]
    assert "made" in outputs[1][1]
    assert "training made" not in outputs[1][2]
    outputs.append(command("promote", "made", "--force", "--reason", "a test", "-c", file))
    commands = (("report",), ("runs", "list", "--json"), ("gate",), ("sql", "SELECT * FROM runs", "--json"))
    outputs += [command(*words, "-c", file) for words in commands]
    assert HIDDEN not in str(outputs)
    written = [path for path in project.rglob("*") if path.is_file() and path != file]
    assert (project / "baselines" / "champions" / "letters.json") in written
    assert any(path.name == "job.json" for path in written)
    assert [str(path) for path in written if HIDDEN.encode() in path.read_bytes()] == []

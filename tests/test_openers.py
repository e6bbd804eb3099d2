"""Every kind of weights that answers has an opener."""

from typing import get_args, get_type_hints

from harness.evaluation.runner import OPENERS
from harness.models.openai_api import PROTOCOLS
from harness.plugins import Method
from harness.training import Weights

SILENT = {"reward"}  # answers nothing, so nothing opens it as a candidate


def test_every_kind_of_weights_is_opened_by_its_entry():
    assert set(get_args(get_type_hints(Weights)["kind"])) - SILENT == set(OPENERS)


def test_what_a_method_makes_can_be_opened():
    written = get_args(get_type_hints(Method)["makes"])
    made = {kind for one in written for kind in one.split(" or ")}
    assert (made - {"endpoint"} - SILENT) | set(PROTOCOLS) == set(OPENERS)

"""The devices on which a base lies, where it is larger than one of them."""

from harness.models.devices.base_loading import build_without_weights, load_base
from harness.models.devices.cuda_attention import avoid_cudnn_attention
from harness.models.devices.pass_costs import learn_costs, list_known_costs
from harness.models.devices.placement import Placement, Room, free_room, weights_bytes
from harness.models.devices.two_layer_copy import find_copied_engine

"""Attention kernels that torch chooses among on a GPU.

Invariant: cuDNN's is none of them. Its backward pass gives gradients that are not numbers where a mask is
passed and a batch is 64 tokens longer than a multiple of 128.
Source: pytorch/pytorch issue 196678 (H100 and H200, torch from 2.11 on, where cuDNN's kernel comes first)
and huggingface/trl issue 7181, where DPO and KTO met it.
"""


def avoid_cudnn_attention() -> None:
    """Leave torch its own kernels: FlashAttention, the memory-efficient one and plain products."""
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)

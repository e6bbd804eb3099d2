"""Token ids of blocks, those of the next one made in a thread while a block is computed.

Invariant: the thread only tokenises; what a block's ids are does not depend on it. The first block's are made
by the caller, for whom there is nothing to compute before.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import TypeVar

_Ids = TypeVar("_Ids")


def encode_blocks(
    encode: Callable[[int], _Ids], blocks: Sequence[int], *, ahead: bool
) -> Iterator[tuple[int, _Ids]]:
    """Yield each block's number with its token ids; `ahead` is for blocks that another device computes.

    On a processor that computes them itself a second thread would only take time from it.
    """
    if not ahead:
        yield from ((block, encode(block)) for block in blocks)
        return
    with ThreadPoolExecutor(1, "tokens") as pool:
        ids = [encode(block) for block in blocks[:1]]
        for block, following in zip_longest(blocks, blocks[1:]):
            waiting = None if following is None else pool.submit(encode, following)
            yield block, ids.pop()
            if waiting is not None:
                ids.append(waiting.result())

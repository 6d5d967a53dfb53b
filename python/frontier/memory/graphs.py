"""Which CUDA graphs engines capture, and an estimate of their memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from frontier.memory.activation import row_bytes
from frontier.memory.versions import VllmRules
from frontier.models.spec import ModelSpec

_MIB = 2**20
_GRAPH_BYTES_PER_LAYER = 192 * 2**10
"""Bytes that one more captured graph takes per layer: assumed (kernel nodes and their parameters)."""


@dataclass(frozen=True, slots=True)
class GraphCapture:
    """The graphs of an engine: token counts for which each kind is captured, ascending.

    Attributes:
        mode: the effective mode, as `engine.cuda_graph.mode` names it.
        query_tokens: tokens of a decoding request in a step, 1 + its drafts.
        full_decode: graphs of the forward pass for batches whose requests have `query_tokens` each.
        full: graphs of the forward pass for any batch.
        piecewise: graphs between attention operators, for any batch.
    """

    mode: str
    query_tokens: int = 1
    full_decode: tuple[int, ...] = ()
    full: tuple[int, ...] = ()
    piecewise: tuple[int, ...] = ()

    @property
    def num_graphs(self) -> int:
        """Graphs whose pools take memory; the pieces of one size count as one."""
        return len(self.full_decode) + len(self.full) + len(self.piecewise)

    @property
    def max_tokens(self) -> int:
        """Largest captured size, 0 without graphs."""
        return max((*self.full_decode, *self.full, *self.piecewise), default=0)

    def to_plan(self) -> dict[str, Any]:
        """Return the plan's form."""
        return {
            "decode_query_tokens": self.query_tokens,
            "full_decode": list(self.full_decode),
            "full": list(self.full),
            "piecewise": list(self.piecewise),
        }


def capture_sizes(
    max_num_seqs: int,
    max_num_batched_tokens: int,
    *,
    rules: VllmRules,
    model_type: str = "",
    compute_capability: str | None = None,
    num_speculative_tokens: int = 0,
    method: str | None = None,
    dense: bool = True,
    interactivity: bool = False,
    max_capture_size: int | None = None,
) -> list[int]:
    """Return the token counts for which a version captures graphs (vllm/config/vllm.py).

    The cap is `max_num_seqs` x (1 + drafts) x 2, at most 512 (1024 on data-centre Blackwell from 0.28), or
    1024 for gpt-oss whatever `max_num_seqs` is, or `max_capture_size` where the user gives one; and at most
    the batched tokens. `dense` and the `method` that drafts tell which model runner serves the model; the
    first one rounds sizes up to multiples of 1 + drafts.
    """
    minor, query = rules.minor, 1 + num_speculative_tokens
    most = 1024 if minor >= 28 and (compute_capability or "").startswith("10.") else 512
    cap = min(max_num_seqs * (query if minor > 12 else 1) * 2, most)
    if model_type == "gpt_oss":
        cap = 1024
    if max_capture_size is not None:
        cap = max_capture_size
    cap = min(cap, max_num_batched_tokens)
    ladder = {*range(8, 249, 8), *range(256, cap + 1, 16)}
    small = range(1, min(cap, 32) + 1) if interactivity and minor >= 17 else (1, 2, 4)
    sizes = {*small, *ladder}
    if minor >= 20:
        sizes.add(max_num_batched_tokens)
    if minor >= 29 and num_speculative_tokens:
        sizes |= {requests * query for requests in {*small, *ladder, max_num_seqs}}
    if minor >= 31 and not num_speculative_tokens:
        sizes.add(max_num_seqs)
    if num_speculative_tokens and not rules.uses_second_runner(dense=dense, method=method):
        sizes = {-(-size // query) * query for size in sizes}
    return sorted(size for size in sizes if size <= cap)


def sglang_capture_sizes(
    cuda_graph_max_bs: int, *, speculative: bool = False, num_slots: int | None = None, multiple_of: int = 1
) -> list[int]:
    """Return the batch sizes, in requests, of SGLang's decode graphs.

    SGLang 0.5.3, `sglang/srt/server_args.py` and `model_executor/cuda_graph_runner.py`.

    Args:
        cuda_graph_max_bs: the largest one; its default by GPU is in `frontier.memory.sglang`.
        speculative: the finer ladder of target verification, whose graphs hold `draft tokens` rows per
            request.
        num_slots: request slots, captured as well where they are fewer.
        multiple_of: ranks of attention tensor parallelism where tokens are gathered over DP ranks.
    """
    if speculative:
        fine = {*range(1, 9), *range(10, 33, 2), *range(40, 61, 4), *range(72, 257, 8)}
        ladder = fine | {*range(272, cuda_graph_max_bs + 1, 16)}
    else:
        coarse = {1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 497, 16)}
        ladder = coarse | {*range(512, cuda_graph_max_bs + 1, 32)}
    if num_slots is not None and max(ladder) > num_slots:
        ladder.add(num_slots)
        ladder = {size for size in ladder if size <= num_slots}
    return sorted(size for size in ladder if size <= cuda_graph_max_bs and size % multiple_of == 0)


def capture_bytes(spec: ModelSpec, graphs: GraphCapture, *, tensor_parallel_size: int) -> int:
    """Estimate what vLLM takes off for graphs: the first one, and a constant per further graph.

    vLLM's own profile (`profile_cudagraph_memory`, from 0.18) is the first capture of a mode plus, for each
    further size, what the second one took, at least 1 MiB. The first holds the activations of the largest
    size, which later ones share.
    """
    if not graphs.num_graphs:
        return 0
    first = graphs.max_tokens * row_bytes(spec, tensor_parallel_size)
    return first + (graphs.num_graphs - 1) * max(spec.num_layers * _GRAPH_BYTES_PER_LAYER, _MIB)


def graph_bytes(
    spec: ModelSpec,
    sizes: list[int],
    *,
    tensor_parallel_size: int,
    max_num_seqs: int,
    num_speculative_tokens: int,
) -> int:
    """Estimate `capture_bytes` of the default mode.

    Piecewise graphs for all `sizes`, and full decode graphs up to `max_num_seqs` x (1 + drafts).
    """
    query = 1 + num_speculative_tokens
    full = tuple(size for size in sizes if query <= size <= max_num_seqs * query)
    graphs = GraphCapture("full_and_piecewise", query, full_decode=full, piecewise=tuple(sizes))
    return capture_bytes(spec, graphs, tensor_parallel_size=tensor_parallel_size)

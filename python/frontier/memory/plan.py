"""The result of a memory plan: where the memory of one rank goes, and the KV cache that is left."""

from __future__ import annotations

from dataclasses import dataclass, field

from frontier.errors import DoesNotFitError, Issue
from frontier.vllm_versions import minor_of

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where the memory of one rank goes, and the KV cache that is left. All sizes in bytes.

    With pipeline parallelism it is the stage that has the fewest blocks; all ranks of an engine use its
    number.

    Attributes:
        model, gpu: names.
        version: of vLLM, whose rules were followed.
        tensor_parallel_size: ranks of the replica (of a stage).
        total_bytes: memory of the GPU as the driver reports it.
        requested_bytes: the part that vLLM may use.
        weights_bytes: weights of the rank, a draft model's included.
        rotary_bytes: tables of the rotary embedding, which vLLM counts as part of the loaded model.
        padding_bytes: what quantised experts grow by when kernels pad them, likewise.
        activation_bytes, late_bytes, communication_bytes, graph_bytes: what else is taken off, estimated:
            the peak of the profile run, growth outside the framework's pool, of it that of all-reduce
            buffers (apart), graphs (0 where the version does not subtract them).
        available_bytes: what is left for the KV cache; negative if nothing is.
        block_size: tokens per block.
        bytes_per_block: over all layers; 0 on ranks without a KV cache (FFN ranks, encoders).
        num_gpu_blocks: blocks, the null block included.
        max_model_len: tokens of the longest request.
        num_gpu_blocks_override: the number given instead, if any.
        kv_cache_memory_bytes: the size of the cache given instead of all the above, if any.
        pipeline_stage, pipeline_parallel_size: which stage of how many has the fewest blocks.
        data_parallel_size: engines that share experts, each with a plan and a cache of its own.
        kv_group_windows: sliding window of each group of layers, None for whole contexts; empty where all
            layers keep whole contexts in common blocks.
        longest_request_blocks: blocks that a request of `max_model_len` tokens holds at most.
        context_shards: ranks over which context parallelism deals out the tokens of a block: together they
            hold so many times `block_size`.
        graphs_outside_bytes: graphs that the version does not subtract: they come out of the share left out.
        encoder_cache_bytes: embeddings that an encoder holds for others; such a rank has no KV cache, and its
            blocks are places for embeddings.
        warnings: where the plan departs from what vLLM would do.
        issues: why vLLM would refuse to start; empty if it would not.
    """

    model: str
    gpu: str
    version: str
    tensor_parallel_size: int
    total_bytes: int
    requested_bytes: int
    weights_bytes: int
    rotary_bytes: int
    padding_bytes: int
    activation_bytes: int
    late_bytes: int
    communication_bytes: int
    graph_bytes: int
    available_bytes: int
    block_size: int
    bytes_per_block: int
    num_gpu_blocks: int
    max_model_len: int
    num_gpu_blocks_override: int | None = None
    kv_cache_memory_bytes: int | None = None
    pipeline_stage: int = 0
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    context_shards: int = 1
    graphs_outside_bytes: int = 0
    kv_group_windows: tuple[int | None, ...] = ()
    longest_request_blocks: int = 0
    encoder_cache_bytes: int = 0
    warnings: tuple[str, ...] = ()
    issues: tuple[Issue, ...] = field(default=())

    @property
    def fits(self) -> bool:
        """Whether vLLM would start."""
        return not self.issues

    @property
    def needed_bytes(self) -> int:
        """All that is taken off before the KV cache."""
        return (
            self.weights_bytes
            + self.rotary_bytes
            + self.padding_bytes
            + self.activation_bytes
            + self.late_bytes
            + self.communication_bytes
            + self.graph_bytes
            + self.encoder_cache_bytes
        )

    @property
    def tokens_per_block(self) -> int:
        """Tokens of a block on all ranks that share it."""
        return self.block_size * self.context_shards

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens that the usable blocks hold (all but the null block), in all groups of layers."""
        return max(self.num_gpu_blocks - 1, 0) // max(len(self.kv_group_windows), 1) * self.tokens_per_block

    @property
    def max_concurrency(self) -> float:
        """Requests of `max_model_len` tokens that fit at once, as vLLM logs it; 0 without a KV cache."""
        return self.num_gpu_blocks / self.longest_request_blocks if self.bytes_per_block else 0.0

    def raise_if_not_fitting(self) -> None:
        """Raise the issues, if any.

        Raises:
            DoesNotFitError: with this plan.
        """
        if self.issues:
            raise DoesNotFitError(self.issues, memory=self)

    def explain(self) -> str:
        """Return the computation step by step: each term exact or estimated, then warnings and issues.

        The estimates rest on one start-up log (RTX 4090, vLLM 0.19: `frontier.memory.vllm`).
        """
        lines = [f"{name:<17}{value:>16}  {note}".rstrip() for name, value, note in self._rows()]
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines += [f"does not fit: {issue}" for issue in self.issues]
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, str, str]]:
        share = self.requested_bytes / self.total_bytes
        rank = f"rank of {self.tensor_parallel_size}"
        if self.pipeline_parallel_size > 1:
            rank += f", stage {self.pipeline_stage + 1} of {self.pipeline_parallel_size} (fewest blocks)"
        if self.data_parallel_size > 1:
            rank += f", one of {self.data_parallel_size} data-parallel engines"
        left_out = self.total_bytes - self.requested_bytes
        rows = [
            ("GPU memory", gib(self.total_bytes), f"{self.gpu}, as the driver reports it"),
            ("left out", gib(-left_out), "exact; CUDA context and NCCL buffers live here"),
            ("usable", gib(self.requested_bytes), f"exact: gpu_memory_utilization {share:.2f}"),
            ("weights", gib(-self.weights_bytes), f"exact: {self.model}, {rank}"),
            ("rotary tables", gib(-self.rotary_bytes), "exact for plain rotary embeddings"),
        ]
        if self.padding_bytes:
            rows.append(("expert padding", gib(-self.padding_bytes), "estimated"))
        rows += [
            ("activations", gib(-self.activation_bytes), "estimated"),
            (
                "late allocations",
                gib(-self.late_bytes),
                "estimated",
            ),
        ]
        if self.communication_bytes:
            rows.append(("all-reduce", gib(-self.communication_bytes), "assumed"))
        if self.encoder_cache_bytes:
            places = f"exact: {self.num_gpu_blocks - 1:,} embeddings of {self.block_size} patches"
            rows.append(("encoder cache", gib(-self.encoder_cache_bytes), places))
        if not self.bytes_per_block:
            graphs = ("CUDA graphs", gib(-self.graph_bytes), "estimated")
            return [*rows, graphs, ("left", gib(self.available_bytes), "no KV cache here")]
        rows += [
            ("CUDA graphs", gib(-self.graph_bytes), self._graphs_note()),
            ("fragmentation", gib(0), self._fragmentation_note()),
            ("KV cache", gib(self.available_bytes), self._cache_note()),
            (
                "bytes per block",
                f"{self.bytes_per_block:,}",
                f"exact: {self.block_size} tokens, {self._layers_note()}",
            ),
            ("blocks", f"{self.num_gpu_blocks:,}", self._blocks_note()),
            ("tokens", f"{self.kv_cache_tokens:,}", ""),
            ("concurrency", f"{self.max_concurrency:.2f}", f"requests of {self.max_model_len:,} tokens"),
        ]
        return rows

    def _layers_note(self) -> str:
        groups = len(self.kv_group_windows)
        return f"one of {groups} groups of layers" if groups else "all layers"

    def _graphs_note(self) -> str:
        if self.graph_bytes or not self.graphs_outside_bytes:
            return "assumed, tenths of a GiB to 2 GiB"
        return (
            f"vLLM {self.version} takes {gib(self.graphs_outside_bytes)} out of what is left out (estimated)"
        )

    def _fragmentation_note(self) -> str:
        counted = minor_of(self.version) >= 27
        return "counted from 0.27 on, taken as none" if counted else "not counted before 0.27"

    def _cache_note(self) -> str:
        if self.kv_cache_memory_bytes is not None:
            return "kv_cache_memory_bytes, whatever is above"
        return "what is left"

    def _blocks_note(self) -> str:
        if self.num_gpu_blocks_override is not None:
            return "num_gpu_blocks_override"
        return "exact given the KV cache; one is the null block"


def gib(size: int) -> str:
    """Return a size in GiB as it is shown."""
    return f"{size / _GIB:.2f} GiB"

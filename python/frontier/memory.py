"""How much KV cache a replica has, computed as vLLM 0.32 computes it at start.

available = utilisation x total - weights - activation peak - late allocations - CUDA graphs, all of one rank;
the cache is cut into blocks whose size is the sum over layers (vllm/v1/worker/gpu_worker.py,
vllm/v1/core/kv_cache_utils.py). Weights and bytes per block are exact. What vLLM measures in a profile run is
estimated here (`frontier.models.footprint`), to be fitted on logs.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace

from frontier.errors import ConfigError, DoesNotFitError, Issue, show_value
from frontier.hardware.spec import GpuSpec
from frontier.models.footprint import activation_bytes, graph_bytes
from frontier.models.kv import KvLayer, hybrid_num_blocks, kv_layers
from frontier.models.program import operator_program
from frontier.models.sharding import valid_tensor_parallel_sizes
from frontier.models.spec import ModelSpec

_GIB = 2**30
_LATE_BYTES = 256 * 2**20
"""Allocations outside the framework's pool during the profile run (cuBLAS and kernel workspaces); as much
again for communication buffers with more than one rank. An estimate."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where the memory of one rank goes, and the KV cache that is left. All sizes in bytes.

    Attributes:
        model, gpu: names.
        tensor_parallel_size: ranks of the replica.
        total_bytes: memory of the GPU as the driver reports it.
        requested_bytes: the part that vLLM may use.
        weights_bytes, activation_bytes, late_bytes, graph_bytes: what is taken off it; all but weights
            estimated.
        available_bytes: what is left for the KV cache; negative if nothing is.
        block_size: tokens per block.
        bytes_per_block: over all layers.
        num_gpu_blocks: blocks, the null block included.
        max_model_len: tokens of the longest request.
        num_gpu_blocks_override: the number given instead, if any.
        warnings: where the plan departs from what vLLM would do.
        issues: why vLLM would refuse to start; empty if it would not.
    """

    model: str
    gpu: str
    tensor_parallel_size: int
    total_bytes: int
    requested_bytes: int
    weights_bytes: int
    activation_bytes: int
    late_bytes: int
    graph_bytes: int
    available_bytes: int
    block_size: int
    bytes_per_block: int
    num_gpu_blocks: int
    max_model_len: int
    num_gpu_blocks_override: int | None = None
    warnings: tuple[str, ...] = ()
    issues: tuple[Issue, ...] = field(default=())

    @property
    def fits(self) -> bool:
        """Whether vLLM would start."""
        return not self.issues

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens that the usable blocks hold (all but the null block)."""
        return max(self.num_gpu_blocks - 1, 0) * self.block_size

    @property
    def max_concurrency(self) -> float:
        """Requests of `max_model_len` tokens that fit at once, as vLLM logs it."""
        return self.num_gpu_blocks / math.ceil(self.max_model_len / self.block_size)

    def raise_if_not_fitting(self) -> None:
        """Raise the issues, if any.

        Raises:
            DoesNotFitError: with this plan.
        """
        if self.issues:
            raise DoesNotFitError(self.issues, memory=self)

    def explain(self) -> str:
        """Return a table of where the memory goes, with warnings and issues below it."""
        share = self.requested_bytes / self.total_bytes
        rows = [
            ("GPU memory", _gib(self.total_bytes), f"{self.gpu}, as the driver reports it"),
            ("usable", _gib(self.requested_bytes), f"gpu_memory_utilization {share:.2f}"),
            ("weights", _gib(-self.weights_bytes), f"{self.model}, rank of {self.tensor_parallel_size}"),
            ("activations", _gib(-self.activation_bytes), "estimated"),
            ("late allocations", _gib(-self.late_bytes), "estimated"),
            ("CUDA graphs", _gib(-self.graph_bytes), "estimated"),
            ("KV cache", _gib(self.available_bytes), ""),
            ("bytes per block", f"{self.bytes_per_block:,}", f"{self.block_size} tokens, all layers"),
            ("blocks", f"{self.num_gpu_blocks:,}", self._blocks_note()),
            ("tokens", f"{self.kv_cache_tokens:,}", ""),
            ("concurrency", f"{self.max_concurrency:.2f}", f"requests of {self.max_model_len:,} tokens"),
        ]
        lines = [f"{name:<17}{value:>16}  {note}".rstrip() for name, value, note in rows]
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines += [f"does not fit: {issue}" for issue in self.issues]
        return "\n".join(lines)

    def _blocks_note(self) -> str:
        return (
            "num_gpu_blocks_override" if self.num_gpu_blocks_override is not None else "one is the null block"
        )


def plan_kv_cache(
    spec: ModelSpec,
    gpu: GpuSpec,
    *,
    tensor_parallel_size: int,
    block_size: int,
    gpu_memory_utilization: float,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    max_model_len: int | None,
    kv_cache_dtype: str = "auto",
    num_gpu_blocks_override: int | None = None,
    weight_dtype: str = "bfloat16",
) -> MemoryPlan:
    """Plan the memory of one rank. Parameters are vLLM's; a plan that does not fit says so in its `issues`.

    A `max_model_len` of None is the model's own.

    Raises:
        ConfigError: a parameter out of range, sizes that cannot be cut over so many ranks, more ranks than a
            node has GPUs.
    """
    _check_arguments(
        {
            "block_size": block_size,
            "max_num_batched_tokens": max_num_batched_tokens,
            "max_num_seqs": max_num_seqs,
            "max_model_len": 1 if max_model_len is None else max_model_len,
            "num_gpu_blocks_override": 1 if num_gpu_blocks_override is None else num_gpu_blocks_override,
        },
        gpu_memory_utilization,
    )
    gpu.link(tensor_parallel_size)
    request = _Request(
        spec=spec,
        gpu=gpu,
        block_size=block_size,
        utilization=gpu_memory_utilization,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
        given_length=max_model_len,
        kv_cache_dtype=kv_cache_dtype,
        override=num_gpu_blocks_override,
        weight_dtype=weight_dtype,
    )
    return request.plan(tensor_parallel_size)


@dataclass(frozen=True, slots=True)
class _Request:
    """The arguments of a plan but the number of ranks, so that other numbers can be tried."""

    spec: ModelSpec
    gpu: GpuSpec
    block_size: int
    utilization: float
    max_num_batched_tokens: int
    max_num_seqs: int
    given_length: int | None
    kv_cache_dtype: str
    override: int | None
    weight_dtype: str

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest request."""
        return self.spec.max_model_len if self.given_length is None else self.given_length

    def plan(self, tp: int, *, advise: bool = True) -> MemoryPlan:
        """Compute the plan over `tp` ranks; `advise` looks for numbers of ranks that would fit."""
        layers = kv_layers(self.spec, tensor_parallel_size=tp, kv_cache_dtype=self.kv_cache_dtype)
        weights = _weight_bytes(self.spec, tp, self.weight_dtype)
        activation = activation_bytes(
            self.spec,
            tensor_parallel_size=tp,
            block_size=self.block_size,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_num_seqs=self.max_num_seqs,
            max_model_len=self.max_model_len,
        )
        late = _LATE_BYTES * (1 if tp == 1 else 2)
        graphs = graph_bytes(
            self.spec,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            wide=(self.gpu.compute_capability or "").startswith("10."),
        )
        requested = math.ceil(self.gpu.memory_bytes * self.utilization)
        available = requested - weights - activation - late - graphs
        per_block = self.block_size * sum(layer.count * layer.bytes_per_token for layer in layers)
        computed = max(available, 0) // per_block
        plan = MemoryPlan(
            model=self.spec.name,
            gpu=self.gpu.name,
            tensor_parallel_size=tp,
            total_bytes=self.gpu.memory_bytes,
            requested_bytes=requested,
            weights_bytes=weights,
            activation_bytes=activation,
            late_bytes=late,
            graph_bytes=graphs,
            available_bytes=available,
            block_size=self.block_size,
            bytes_per_block=per_block,
            num_gpu_blocks=computed if self.override is None else self.override,
            max_model_len=self.max_model_len,
            num_gpu_blocks_override=self.override,
        )
        return _with_findings(self, plan, layers, computed, advise=advise)

    def smallest_fitting(self) -> int | None:
        """Return the smallest number of ranks on one node that fits."""
        for tp in valid_tensor_parallel_sizes(self.spec):
            if tp <= self.gpu.gpus_per_node and self.plan(tp, advise=False).fits:
                return tp
        return None


def _with_findings(
    request: _Request, plan: MemoryPlan, layers: list[KvLayer], computed: int, *, advise: bool
) -> MemoryPlan:
    warnings = [*_hybrid_warnings(plan, layers), *_override_warnings(plan, computed)]
    return replace(plan, warnings=tuple(warnings), issues=tuple(_issues(request, plan, advise=advise)))


def _hybrid_warnings(plan: MemoryPlan, layers: list[KvLayer]) -> list[str]:
    sliding = sum(layer.count for layer in layers if layer.window is not None)
    total = sum(layer.count for layer in layers)
    if not sliding:
        return []
    if sliding == total:
        return [
            f"all {total} layers have sliding windows: vLLM frees the blocks that a request's window has left"
            " behind, here a request keeps the blocks of its whole context"
        ]
    text = (
        f"{sliding} of {total} layers have sliding windows; KV capacity is that of vLLM with"
        f" --disable-hybrid-kv-cache-manager: {plan.num_gpu_blocks:,} blocks"
    )
    blocks = hybrid_num_blocks(layers, available_bytes=plan.available_bytes, block_size=plan.block_size)
    if blocks is not None and plan.num_gpu_blocks_override is None:
        text += f"; with the manager on it would be {blocks:,} blocks, shared by groups of layers"
    return [text]


def _override_warnings(plan: MemoryPlan, computed: int) -> list[str]:
    override = plan.num_gpu_blocks_override
    if override is None or override <= computed:
        return []
    return [
        f"num_gpu_blocks_override is {override:,}, more than the {computed:,} blocks that memory is left for"
    ]


def _issues(request: _Request, plan: MemoryPlan, *, advise: bool) -> list[Issue]:
    """Return vLLM's reasons not to start, with ways to mend them."""
    needed = math.ceil(plan.max_model_len / plan.block_size)
    own = request.given_length is None
    written = f"the model's own {plan.max_model_len}" if own else f"{plan.max_model_len}"
    override = plan.num_gpu_blocks_override
    if override is not None:
        return _override_issues(plan, override, needed, written)
    if plan.num_gpu_blocks >= needed:
        return []
    longest = plan.num_gpu_blocks * plan.block_size
    remedies = [f"max_model_len {longest} or less"] if longest else []
    if advise and (ranks := request.smallest_fitting()) is not None and ranks > plan.tensor_parallel_size:
        remedies.append(f"tensor_parallel_size {ranks} or more")
    fixed = plan.requested_bytes - plan.available_bytes
    if longest == 0:
        message = (
            f"{plan.gpu} leaves no memory for the KV cache: {_gib(fixed)} are needed for weights, "
            f"activations and graphs, {_gib(plan.requested_bytes)} are usable; mend with "
            + (" or ".join(remedies) or "a larger GPU, or a smaller or quantised model")
        )
        return [Issue("hardware.gpu", plan.gpu, message)]
    message = (
        f"{'is' if own else 'was'} {written}, but the KV cache holds {longest} tokens and vLLM refuses to "
        f"start unless one longest request fits ({_gib(needed * plan.bytes_per_block)} needed, "
        f"{_gib(plan.available_bytes)} left)"
    )
    return [Issue("engine.max_model_len", request.given_length, message, tuple(remedies))]


def _override_issues(plan: MemoryPlan, override: int, needed: int, written: str) -> list[Issue]:
    path = "engine.num_gpu_blocks_override"
    issues = []
    if override < needed:
        message = f"was {override}, but one request of max_model_len ({written}) takes {needed} blocks"
        issues.append(Issue(path, override, message, (f"{needed} or more",)))
    room = max(plan.total_bytes - plan.weights_bytes, 0) // plan.bytes_per_block
    if override > room:
        message = f"was {override}, but beside the weights {plan.gpu} has room for {room} blocks"
        issues.append(Issue(path, override, message, (f"{room} or less",) if room else ()))
    return issues


def _check_arguments(counts: dict[str, object], utilization: object) -> None:
    issues = [
        Issue(f"engine.{name}", value, f"was {show_value(value)}; a whole number >= 1 is needed")
        for name, value in counts.items()
        if isinstance(value, bool) or not isinstance(value, int) or value < 1
    ]
    number = isinstance(utilization, int | float) and not isinstance(utilization, bool)
    if not number or not 0 < utilization <= 1:  # type: ignore[operator]
        message = f"was {show_value(utilization)}; a share greater than 0, at most 1, is needed"
        issues.append(Issue("engine.gpu_memory_utilization", utilization, message))
    if issues:
        raise ConfigError(issues)


@functools.lru_cache(maxsize=256)
def _weight_bytes(spec: ModelSpec, tensor_parallel_size: int, weight_dtype: str) -> int:
    """Return the bytes of one rank's weights; searches for what fits ask for the same again and again."""
    program = operator_program(spec, tensor_parallel_size=tensor_parallel_size, weight_dtype=weight_dtype)
    return sum(operator.weight_bytes for operator in program)


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"

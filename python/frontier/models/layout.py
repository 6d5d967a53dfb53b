"""How one replica of a model is spread over GPUs: the parallel groups, and the nodes they lie on.

Follows vLLM 0.32. Global ranks count through data parallel, pipeline and tensor parallel ranks, the last
fastest (`vllm/distributed/parallel_state.py`, `initialize_model_parallel`: ExternalDP x DP x PP x PCP x TP),
and fill one node after the other. Experts are spread over the data and tensor parallel ranks of one stage
together (`_EP` there, and `FusedMoEParallelConfig.make` in `fused_moe/config.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from frontier.errors import ConfigError, Issue, nearest_name, show_value

Placement = Literal["tp_pp_dp", "tp_dp_pp"]

PLACEMENTS: tuple[Placement, ...] = ("tp_pp_dp", "tp_dp_pp")
"""Orders in which ranks fill nodes, the innermost first; prefill context parallel ranks follow tensor
parallel ones. vLLM's own is the first; with the second, the data parallel ranks of a pipeline stage are
neighbours."""

All2AllBackend = Literal["allgather_reducescatter", "deepep_high_throughput", "deepep_low_latency"]

ALL2ALL_BACKENDS: tuple[All2AllBackend, ...] = (
    "allgather_reducescatter",
    "deepep_high_throughput",
    "deepep_low_latency",
)
"""Ways in which tokens reach the experts of other ranks, under vLLM's names (`all2all_backend`)."""

MAX_TENSOR_PARALLEL_SIZE = 64
"""Most ranks that share a layer."""

MAX_GPUS = 4096
"""Most GPUs of one replica."""


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that communicate, spread evenly over nodes: `nodes` divides `ranks`."""

    ranks: int
    nodes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of the parallel groups of one replica, under vLLM's names.

    Attributes:
        tensor_parallel_size: ranks that share every layer.
        pipeline_parallel_size: stages of consecutive layers.
        data_parallel_size: groups of `tensor_parallel_size` ranks that batch apart and meet in the experts.
        enable_expert_parallel: whole experts are spread over the `data_parallel_size * tensor_parallel_size`
            ranks; otherwise every expert is cut over as many.
        all2all_backend: how tokens reach the experts of other data parallel ranks.
        gpus_per_node: GPUs of one node, which share NVLink or a host; the replica fills one node after the
            other.
        pipeline_layer_partition: layers of each stage instead of vLLM's even split.
        decode_context_parallel_size: tensor parallel ranks over which the KV cache of a token's heads is
            spread, token by token, instead of being repeated (it divides `tensor_parallel_size`).
        prefill_context_parallel_size: ranks that share the tokens of a prompt, each with the whole model's
            weights.
        num_redundant_experts: copies of experts in each layer (expert parallel load balancing).
        placement: the order in which ranks fill nodes.

    Raises:
        ConfigError: sizes that are no positive numbers, an unknown backend, a setting without effect, or
            groups of ranks that lie on nodes unevenly.
    """

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    all2all_backend: All2AllBackend = "allgather_reducescatter"
    gpus_per_node: int = 8
    num_redundant_experts: int = 0
    pipeline_layer_partition: tuple[int, ...] | None = None
    decode_context_parallel_size: int = 1
    prefill_context_parallel_size: int = 1
    placement: Placement = "tp_pp_dp"

    def __post_init__(self) -> None:
        issues = [*self._size_issues()] or [*self._setting_issues(), *self._placement_issues()]
        if issues:
            raise ConfigError(issues)

    @classmethod
    def on_one_node(cls, tensor_parallel_size: int, **settings: Any) -> Layout:
        """Return tensor parallelism alone, on a node that is large enough; `settings` are of other fields."""
        most = min(max(8, tensor_parallel_size), MAX_GPUS)
        return cls(tensor_parallel_size, gpus_per_node=most, **settings)

    @property
    def gpus(self) -> int:
        """GPUs of the replica."""
        return self.expert_ranks * self.pipeline_parallel_size * self.prefill_context_parallel_size

    @property
    def nodes(self) -> int:
        """Nodes of the replica."""
        return -(-self.gpus // self.gpus_per_node)

    @property
    def expert_ranks(self) -> int:
        """Ranks over which the experts of a layer are spread, whole or cut."""
        return self.data_parallel_size * self.tensor_parallel_size

    @property
    def expert_parallel_size(self) -> int:
        """Ranks over which whole experts are spread."""
        return self.expert_ranks if self.enable_expert_parallel else 1

    @property
    def expert_tensor_parallel_size(self) -> int:
        """Ranks over which every expert is cut."""
        return 1 if self.enable_expert_parallel else self.expert_ranks

    @property
    def is_deepep(self) -> bool:
        """Whether tokens travel to the ranks of their experts alone, instead of being gathered by all."""
        return self.all2all_backend != "allgather_reducescatter"

    @property
    def tensor_group(self) -> Group:
        """The ranks that share every layer."""
        return self._group(self._tensor_groups())

    @property
    def decode_context_group(self) -> Group:
        """The tensor parallel ranks over which a token's KV is spread: neighbours."""
        size = self.decode_context_parallel_size
        groups = self._tensor_groups()
        return self._group(group[i : i + size] for group in groups for i in range(0, len(group), size))

    @property
    def prefill_context_group(self) -> Group:
        """The ranks that share the tokens of a prompt."""
        return self._group(self._context_groups())

    @property
    def context_shards(self) -> int:
        """Ranks over which the KV of a token's heads is spread: a block holds so many times its tokens."""
        return self.decode_context_parallel_size * self.prefill_context_parallel_size

    @property
    def data_group(self) -> Group:
        """The ranks of equal place in each data parallel rank."""
        return self._group(self._data_groups())

    @property
    def expert_group(self) -> Group:
        """The ranks that hold the experts of a layer."""
        return self._group(self._expert_groups())

    def stage_link(self, stage: int) -> Group:
        """Return the pair of ranks that hand hidden states from `stage` to the next one.

        Where some pairs lie on one node and others on two, the slower ones are waited for.
        """
        pairs = [
            [self._rank(data, stage + next_one, tensor, context) for next_one in (0, 1)]
            for data in range(self.data_parallel_size)
            for context in range(self.prefill_context_parallel_size)
            for tensor in range(self.tensor_parallel_size)
        ]
        return self._group(pairs)

    def single(self) -> Layout:
        """Return the layout of the whole model on one GPU."""
        return replace(
            self,
            tensor_parallel_size=1,
            pipeline_parallel_size=1,
            data_parallel_size=1,
            enable_expert_parallel=False,
            all2all_backend="allgather_reducescatter",
            num_redundant_experts=0,
            pipeline_layer_partition=None,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
        )

    def to_plan(self) -> dict[str, int]:
        """Return the plan's `LayoutSpec` (rust/frontier-core/src/plan/step_time.rs)."""
        sizes = {
            "tensor_parallel_size": self.tensor_parallel_size,
            "pipeline_parallel_size": self.pipeline_parallel_size,
            "data_parallel_size": self.data_parallel_size,
        }
        if self.prefill_context_parallel_size > 1:
            sizes["prefill_context_parallel_size"] = self.prefill_context_parallel_size
        return sizes

    def _rank(self, data: int, stage: int, tensor: int, context: int = 0) -> int:
        outer = data * self.pipeline_parallel_size + stage
        if self.placement == "tp_dp_pp":
            outer = stage * self.data_parallel_size + data
        inner = outer * self.prefill_context_parallel_size + context
        return inner * self.tensor_parallel_size + tensor

    def _tensor_groups(self) -> list[list[int]]:
        return [
            [self._rank(data, stage, tensor, context) for tensor in range(self.tensor_parallel_size)]
            for data in range(self.data_parallel_size)
            for stage in range(self.pipeline_parallel_size)
            for context in range(self.prefill_context_parallel_size)
        ]

    def _context_groups(self) -> list[list[int]]:
        return [
            [
                self._rank(data, stage, tensor, context)
                for context in range(self.prefill_context_parallel_size)
            ]
            for data in range(self.data_parallel_size)
            for stage in range(self.pipeline_parallel_size)
            for tensor in range(self.tensor_parallel_size)
        ]

    def _data_groups(self) -> list[list[int]]:
        return [
            [self._rank(data, stage, tensor) for data in range(self.data_parallel_size)]
            for stage in range(self.pipeline_parallel_size)
            for tensor in range(self.tensor_parallel_size)
        ]

    def _expert_groups(self) -> list[list[int]]:
        return [
            [
                self._rank(data, stage, tensor)
                for data in range(self.data_parallel_size)
                for tensor in range(self.tensor_parallel_size)
            ]
            for stage in range(self.pipeline_parallel_size)
        ]

    def _group(self, groups: Iterable[list[int]]) -> Group:
        """Return the size of equal groups, and the nodes of the one that is spread furthest."""
        placed = [(len(ranks), len(self._per_node(ranks))) for ranks in groups]
        return Group(placed[0][0], max(nodes for _, nodes in placed))

    def _per_node(self, ranks: list[int]) -> Counter[int]:
        return Counter(rank // self.gpus_per_node for rank in ranks)

    def _size_issues(self) -> Iterable[Issue]:
        for field, most, what in (
            ("tensor_parallel_size", MAX_TENSOR_PARALLEL_SIZE, "ranks"),
            ("pipeline_parallel_size", MAX_GPUS, "stages"),
            ("data_parallel_size", MAX_GPUS, "ranks"),
            ("gpus_per_node", MAX_GPUS, "GPUs"),
            ("decode_context_parallel_size", MAX_TENSOR_PARALLEL_SIZE, "ranks"),
            ("prefill_context_parallel_size", MAX_TENSOR_PARALLEL_SIZE, "ranks"),
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                message = f"was {show_value(value)}; from 1 to {most} {what} are accepted"
                yield Issue(f"engine.{field}", value, message)
        if self.placement not in PLACEMENTS:
            message = f"was {show_value(self.placement)}"
            yield Issue("hardware.placement", self.placement, message, PLACEMENTS)
        backend = self.all2all_backend
        if backend not in ALL2ALL_BACKENDS:
            near = nearest_name(backend, ALL2ALL_BACKENDS)
            yield Issue(
                "engine.moe.all2all_backend", backend, f"was {show_value(backend)}", ALL2ALL_BACKENDS, near
            )
        copies = self.num_redundant_experts
        if isinstance(copies, bool) or not isinstance(copies, int) or not 0 <= copies <= MAX_GPUS:
            message = f"was {show_value(copies)}; from 0 to {MAX_GPUS} are accepted"
            yield Issue("engine.moe.eplb.num_redundant_experts", copies, message)

    def _setting_issues(self) -> Iterable[Issue]:
        """Yield what vLLM takes silently although it changes nothing."""
        if self.enable_expert_parallel and self.expert_ranks == 1:
            message = (
                "was True, has no effect on one rank; raise tensor_parallel_size or data_parallel_size, "
                "or leave it out"
            )
            yield Issue("engine.enable_expert_parallel", True, message)
        if self.is_deepep and not (self.enable_expert_parallel and self.data_parallel_size > 1):
            backend = self.all2all_backend
            message = (
                f"was {show_value(backend)}, has no effect without enable_expert_parallel and "
                "data_parallel_size above 1"
            )
            yield Issue("engine.moe.all2all_backend", backend, message, ALL2ALL_BACKENDS[:1])
        copies = self.num_redundant_experts
        if copies and not (self.enable_expert_parallel and self.expert_ranks > 1):
            message = f"was {copies}, has no effect without enable_expert_parallel on several ranks"
            yield Issue("engine.moe.eplb.num_redundant_experts", copies, message, ("0",))

    def _placement_issues(self) -> Iterable[Issue]:
        """Yield groups that lie on nodes unevenly: collectives are priced for even ones."""
        if self.gpus > MAX_GPUS:
            message = f"the layout takes {self.gpus} GPUs; at most {MAX_GPUS} are accepted"
            yield Issue("engine.data_parallel_size", self.data_parallel_size, message)
            return
        for field, groups in (
            ("tensor_parallel_size", self._tensor_groups()),
            ("data_parallel_size", self._expert_groups()),
            ("data_parallel_size", self._data_groups()),
            ("prefill_context_parallel_size", self._context_groups()),
        ):
            if any(len(set(self._per_node(ranks).values())) > 1 for ranks in groups):
                value = getattr(self, field)
                message = (
                    f"was {value}, with which ranks lie unevenly on nodes of {self.gpus_per_node} GPUs; "
                    "give gpus_per_node the number of GPUs that are used on each node"
                )
                yield Issue(f"engine.{field}", value, message)
                return

"""The operators of a vision tower on one rank, and with them its weights.

Follows vLLM 0.32 (`vllm/model_executor/models/{qwen2_vl,qwen2_5_vl,qwen3_vl,gemma3_mm,siglip}.py`) run
eagerly: its default, since graphs of encoders are asked for. Heads and feed-forward parts are cut over tensor
parallel ranks (`--mm-encoder-tp-mode weights`), patch projection, positions and norms are whole on each. Rows
are patches; what works on `merge` of them at once is written per patch, with the same products and the same
bytes. Attention is bidirectional and reads no cache. Weights are never quantised, as in the checkpoints that
are known.

Left out: moving patches into windows and back (Qwen2.5-VL), sines and cosines of positions.
"""

from __future__ import annotations

from frontier.errors import Issue
from frontier.models.layout import Layout
from frontier.models.operators import Attention, Gemm, Operator, merge_operators
from frontier.models.program import resolve_weight_dtype, with_model_shares
from frontier.models.rank import Rank
from frontier.models.spec import ModelSpec, VisionTower
from frontier.models.weights import WeightTensor


def tower_issues(tower: VisionTower, tensor_parallel_size: int) -> list[Issue]:
    """Return why a tower cannot be cut over this many ranks; empty if it can."""
    sizes = {"heads": tower.num_heads, "features of a feed-forward layer": tower.intermediate_size}
    return [
        Issue(
            "engine.tensor_parallel_size",
            tensor_parallel_size,
            f"was {tensor_parallel_size}, which does not divide the {size} {what} of the vision tower",
        )
        for what, size in sizes.items()
        if size % tensor_parallel_size
    ]


def tower_program(
    spec: ModelSpec, layout: Layout | None = None, *, weight_dtype: str = "auto"
) -> list[Operator]:
    """List the operators of one pass of a model's tower over patches, equal ones merged.

    Args:
        spec: a model with a tower.
        layout: how it is spread: tensor parallel ranks; None for one GPU.
        weight_dtype: as for `operator_program`.
    """
    assert spec.vision is not None
    layout = layout or Layout.on_one_node(1)
    dtype = resolve_weight_dtype(spec, weight_dtype)
    tower = _Tower(spec.vision)
    rank = Rank(spec, layout, dtype, dtype)
    return merge_operators(
        with_model_shares(rank, Rank(spec, layout.single(), dtype, dtype), tower.operators)
    )


def tower_parameters(spec: ModelSpec) -> int:
    """Return the parameters of a model's tower, what brings its output to the language model included."""
    return sum(operator.weight_elements for operator in tower_program(spec))


def tower_row_bytes(tower: VisionTower, tensor_parallel_size: int, itemsize: int = 2) -> int:
    """Return the bytes that one patch takes in the widest part of a layer, with its state and norm."""
    attended = 4 * tower.hidden_size // tensor_parallel_size
    fed = (3 if tower.gated else 2) * tower.intermediate_size // tensor_parallel_size
    return (2 * tower.hidden_size + max(attended, fed)) * itemsize


class _Tower:
    def __init__(self, tower: VisionTower) -> None:
        self.tower = tower

    def operators(self, rank: Rank) -> list[Operator]:
        tower = self.tower
        operators = self._patches(rank)
        full = tower.full_layers if tower.block_tokens is not None else tower.num_layers
        for count, block in ((full, None), (tower.num_layers - full, tower.block_tokens)):
            if count:
                operators += self._layers(rank, count, block)
        if tower.final_norm:
            operators.append(self._norm(rank, 1, tower.hidden_size))
        return operators + (self._pooling(rank) if tower.pooled else self._mergers(rank))

    def _patches(self, rank: Rank) -> list[Operator]:
        tower, width = self.tower, self.tower.hidden_size
        projection = rank.linear(
            "patch_embed",
            1,
            "embedding",
            tower.patch_elements,
            [("patch_embed.proj", width)],
            bias=tower.patch_bias,
            quantised=False,
        )
        if not tower.positions:
            return projection
        table = WeightTensor("pos_embed.weight", tower.positions, width, rank.plain)
        # A row of the table is added, or the mean of four, which is written first.
        touched = (8 if tower.interpolated else 3) * width
        return [
            *projection,
            rank.elementwise("position_embedding", 1, "embedding", touched, weights=(table,)),
        ]

    def _norm(self, rank: Rank, count: int, width: int, *, adds: bool = False, rows: int = 1) -> Operator:
        """Return a norm of vectors of `width`, one for every `rows` patches; `adds` to the residual first."""
        kind = "rms_norm" if self.tower.rms_norm else "layer_norm"
        weights = [rank.vector("norm.weight", width)]
        if not self.tower.rms_norm:
            weights.append(rank.vector("norm.bias", width))
        name = f"fused_add_{kind}" if adds else kind
        return rank.elementwise(name, count, "norm", (4 if adds else 2) * width / rows, weights=weights)

    def _layers(self, rank: Rank, count: int, block: int | None) -> list[Operator]:
        tower, width = self.tower, self.tower.hidden_size
        heads, dim = rank.shard(tower.num_heads), width // tower.num_heads
        projections = [(f"{name}_proj", heads * dim) for name in "qkv"]
        hidden = width * rank.itemsize
        operators = [
            self._norm(rank, count, width),
            *rank.linear("qkv_proj", count, "attention", width, projections, bias=True, quantised=False),
        ]
        if tower.rotary:
            operators.append(rank.elementwise("rotary_embedding", count, "attention", 4 * heads * dim))
        operators += [
            Attention(
                name="attention" if block is None else "attention_blocks",
                count=count,
                component="attention",
                heads=heads,
                kv_heads=heads,
                qk_dim=dim,
                v_dim=dim,
                kv_bytes_per_token=float(2 * heads * dim * rank.itemsize),
                dtype=rank.plan_dtype,
                activation_bytes=float(rank.itemsize),
                causal=False,
                block_tokens=block,
                family="",
            ),
            *rank.linear(
                "o_proj", count, "attention", heads * dim, [("o_proj", width)], bias=True, quantised=False
            ),
            *rank.all_reduce("attention", count, hidden),
            self._norm(rank, count, width, adds=True),
            *self._feed_forward(rank, count),
            *rank.all_reduce("feed_forward", count, hidden),
            rank.elementwise("residual_add", count, "norm", 3 * width),
        ]
        return operators

    def _feed_forward(self, rank: Rank, count: int) -> list[Operator]:
        tower, width = self.tower, self.tower.hidden_size
        inner = rank.shard(tower.intermediate_size)
        names = ("gate_proj", "up_proj") if tower.gated else ("fc1",)
        first, last = ("gate_up_proj", "down_proj") if tower.gated else ("fc1", "fc2")
        outputs = [(name, inner) for name in names]
        touched = (len(names) + 1) * inner
        return [
            *rank.linear(first, count, "dense_ffn", width, outputs, bias=True, quantised=False),
            rank.elementwise("activation" if tower.gated else "gelu", count, "dense_ffn", touched),
            *rank.linear(last, count, "dense_ffn", inner, [(last, width)], bias=True, quantised=False),
        ]

    def _mergers(self, rank: Rank) -> list[Operator]:
        """Return the merger: a norm, and two products over `merge` patches side by side.

        Those of deepstack layers norm the joined patches.
        """
        tower = self.tower
        joined, out = tower.hidden_size * tower.merge, tower.out_hidden_size
        inner = rank.shard(joined)
        operators = [self._norm(rank, 1, tower.hidden_size)]
        if tower.deepstack:
            operators.append(self._norm(rank, tower.deepstack, joined, rows=tower.merge))
        count = 1 + tower.deepstack
        return [
            *operators,
            self._merged(rank, "merger.fc1", count, joined, inner, bias=True),
            rank.elementwise("merger.gelu", count, "merger", 2 * inner / tower.merge),
            self._merged(rank, "merger.fc2", count, inner, out, bias=True),
            *rank.all_reduce("merger", count, out * rank.itemsize / tower.merge),
        ]

    def _pooling(self, rank: Rank) -> list[Operator]:
        """Return the mean over `merge` patches, a norm and a projection, whole on every rank (Gemma 3)."""
        tower, width, merge = self.tower, self.tower.hidden_size, self.tower.merge
        norm = rank.vector("norm.weight", width)
        return [
            rank.elementwise("merger.pool", 1, "merger", width * (1 + 1 / merge)),
            rank.elementwise("merger.norm", 1, "merger", 2 * width / merge, weights=(norm,)),
            self._merged(rank, "merger.projection", 1, width, tower.out_hidden_size, bias=False),
        ]

    def _merged(self, rank: Rank, name: str, count: int, k: int, n: int, *, bias: bool) -> Gemm:
        """Return a product with one row per embedding, written with one per patch.

        A part of `1 / merge` of the columns for every patch: the same FLOPs, and tiles, of the same length.
        What an element takes of weights and activations makes the bytes the same.
        """
        merge, item = self.tower.merge, rank.itemsize
        weights = [WeightTensor(f"{name}.weight", n, k, rank.plain)]
        if bias:
            weights.append(rank.vector(f"{name}.bias", n))
        return Gemm(
            name=name,
            count=count,
            component="merger",
            weights=tuple(weights),
            k=k,
            n=n // merge,
            dtype=rank.plan_dtype,
            weight_bytes_per_element=float(item * merge),
            activation_bytes=item * (k + n) / (merge * k + n),
            family="",
        )

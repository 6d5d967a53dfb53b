"""What drafting for speculative decoding computes on one rank, beside the target's forward pass.

Follows vLLM 0.32 (`vllm/v1/spec_decode`, `vllm/model_executor/models/{llama_eagle,llama_eagle3,deepseek_mtp,
medusa}.py`). The first pass runs over all tokens of the step, prompts included; k - 1 further passes compute
one token per request. Each pass names its draft by an argmax over the logits, so the LM head runs once per
pass over one row per request. The draft has the target's tensor parallelism and runs on the last pipeline
stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, get_args

from frontier.errors import ConfigError, Issue, nearest_name, show_value
from frontier.models.draft_heads import (
    eagle3_operators,
    eagle_operators,
    greedy_head,
    medusa_operators,
    mtp_group,
    mtp_operators,
)
from frontier.models.kv import KvLayer, kv_layers, resolve_kv_cache_dtype
from frontier.models.layout import Layout
from frontier.models.operators import Elementwise, Operator, merge_operators
from frontier.models.program import pipeline_stages, resolve_weight_dtype, with_model_shares
from frontier.models.rank import Rank
from frontier.models.sharding import layout_issues
from frontier.models.spec import LayerGroup, ModelSpec

DraftMethod = Literal[
    "ngram", "ngram_gpu", "suffix", "draft_model", "medusa", "eagle", "eagle3", "mtp", "deepseek_mtp"
]
DRAFT_METHODS: Final[tuple[DraftMethod, ...]] = get_args(DraftMethod)

NGRAM_SEARCH_S_PER_TOKEN: Final = 1e-9
"""Host time of the n-gram search per token of context: one pass of prefix matching over the reversed tokens
on one thread (`vllm/v1/spec_decode/ngram_proposer.py`). The same recurrence in C takes 0.83 ns per token on a
current server CPU; rounded up for Numba."""

_REJECTION_BYTES_PER_LOGIT = 8
"""Read for the recovered token of every drafted row: a probability and the noise of it, both in 32 bits
(`sample_recovered_tokens_kernel` in `vllm/v1/sample/rejection_sampler.py`)."""
_TOKEN_ID_BYTES = 4
_NGRAM_KERNELS = 5
"""Launches of the compiled search on the GPU, as counted in `ngram_proposer_gpu.py`."""

_FIRST, _NEXT = "draft.", "draft_next."


@dataclass(frozen=True, slots=True)
class DraftHostCost:
    """Host time of drafting: seconds per step, per scheduled request, and per token of their contexts.

    It comes after sampling, before the next step is scheduled, and nothing hides it.
    """

    per_step_s: float = 0.0
    per_seq_s: float = 0.0
    per_context_token_s: float = 0.0

    def to_plan(self) -> dict[str, float]:
        """Return the plan's `DraftCpuSpec`."""
        return {
            "per_step_s": self.per_step_s,
            "per_seq_s": self.per_seq_s,
            "per_context_token_s": self.per_context_token_s,
        }


@dataclass(frozen=True, slots=True)
class DraftProgram:
    """What drafting `num_speculative_tokens` tokens takes on one rank of the last stage.

    Attributes:
        method: vLLM's name of it.
        num_speculative_tokens: tokens drafted per request and step.
        first_pass: operators over all tokens of the step; those over `seqs` have one row per request.
        decode_pass: operators of each further pass, over one token per request.
        passes: further passes.
        host: what the host does.
        kv_layers: caches of the draft's attention layers, which enlarge every block.
        verification: what the target's step has beside for drafts: rows are those of its logits.
    """

    method: DraftMethod
    num_speculative_tokens: int
    first_pass: tuple[Operator, ...] = ()
    decode_pass: tuple[Operator, ...] = ()
    passes: int = 0
    host: DraftHostCost = DraftHostCost()
    kv_layers: tuple[KvLayer, ...] = ()
    verification: tuple[Operator, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Bytes of the draft's own weights on one rank; those shared with the target are not among them."""
        return sum(operator.weight_bytes for operator in self.first_pass)

    @property
    def weight_elements(self) -> int:
        """Parameters of these weights on one rank."""
        return sum(operator.weight_elements for operator in self.first_pass)

    @property
    def lists(self) -> tuple[tuple[Operator, ...], tuple[Operator, ...]]:
        """Both lists of operators, as `frontier.predictors.attach` takes stages."""
        return self.first_pass, self.decode_pass

    def to_plan(self, lists: Sequence[Sequence[dict[str, Any]]] | None = None) -> dict[str, Any]:
        """Return the plan's `DraftSpec` (rust/frontier-core/src/plan/step_time/draft.rs).

        Args:
            lists: `lists` in the form of the plan, with their predictors; None for bounds.
        """
        first, following = lists if lists is not None else [[o.to_plan() for o in ops] for ops in self.lists]
        return {
            "first_pass": list(first),
            "decode_pass": list(following),
            "passes": self.passes,
            "cpu": self.host.to_plan(),
        }


def draft_program(
    method: str,
    num_speculative_tokens: int,
    target: ModelSpec,
    layout: Layout,
    *,
    draft: ModelSpec | None = None,
    weight_dtype: str = "auto",
    kv_cache_dtype: str = "auto",
    fp8_attention: bool = False,
    prompt_lookup: tuple[int, int] = (5, 5),
    max_model_len: int | None = None,
    host: DraftHostCost | None = None,
) -> DraftProgram:
    """Return what drafting computes.

    Args:
        method: one of `DRAFT_METHODS`; `deepseek_mtp` is `mtp`.
        num_speculative_tokens: k.
        target: the model whose tokens are drafted.
        layout: how the target is spread; the draft is spread alike, but for stages.
        draft: the draft model, or the head of EAGLE (its config.json); for EAGLE, left out, a head shaped as
            the target's last layer.
        weight_dtype: as for `operator_program`.
        kv_cache_dtype: as vLLM's flag; the draft's cache is the target's.
        fp8_attention: as for `operator_program`.
        prompt_lookup: shortest and longest n-gram that is searched for.
        max_model_len: of the engine: the search on the GPU reads rows of that length.
        host: what the host does; None is 1 ns per token of context for n-grams, nothing for the others.

    Raises:
        ConfigError: an unknown method, a draft that does not suit it, or one that the layout cannot cut.
    """
    issue = _issue(method, num_speculative_tokens, target, draft, host)
    if issue is not None:
        raise ConfigError(issue)
    k = num_speculative_tokens
    name: DraftMethod = "mtp" if method == "deepseek_mtp" else method  # type: ignore[assignment]
    settings = _Settings(target, layout, weight_dtype, kv_cache_dtype, fp8_attention)
    verification = (settings.rejection_sampler(),)
    if name in ("ngram", "ngram_gpu", "suffix"):
        searched: tuple[Operator, ...] = ()
        if name == "ngram_gpu":
            searched = (_search(target, prompt_lookup, max_model_len),)
        elif host is None:
            host = DraftHostCost(per_context_token_s=NGRAM_SEARCH_S_PER_TOKEN)
        return DraftProgram(name, k, searched, host=host or DraftHostCost(), verification=verification)
    first, following, caches = _passes(name, k, settings, draft)
    passes = 0 if name == "medusa" else k - 1
    return DraftProgram(
        method=name,
        num_speculative_tokens=k,
        first_pass=_named(_FIRST, first),
        decode_pass=_named(_NEXT, following) if passes else (),
        passes=passes,
        host=host or DraftHostCost(),
        kv_layers=tuple(caches),
        verification=verification,
    )


@dataclass(frozen=True, slots=True)
class _Settings:
    """The target, how it is spread, and the types of the run."""

    target: ModelSpec
    layout: Layout
    weight_dtype: str
    kv_cache_dtype: str
    fp8_attention: bool

    def layout_of(self, spec: ModelSpec) -> Layout:
        """Return the layout of a draft: one stage, and data parallelism only where it has experts."""
        layout = replace(self.layout, pipeline_parallel_size=1)
        if spec.is_moe:
            return layout
        return replace(
            layout,
            data_parallel_size=1,
            enable_expert_parallel=False,
            all2all_backend="allgather_reducescatter",
        )

    def ranks(self, spec: ModelSpec) -> tuple[Rank, Rank]:
        """Return a rank of the draft, and the single one of the whole draft on one GPU.

        Raises:
            ConfigError: the layout cannot cut it.
        """
        layout = self.layout_of(spec)
        if issues := layout_issues(spec, layout):
            raise ConfigError(issues)
        dtype = resolve_weight_dtype(self.target, self.weight_dtype)
        kv_dtype = resolve_kv_cache_dtype(spec, self.kv_cache_dtype)
        rank = Rank(spec, layout, dtype, kv_dtype, self.fp8_attention)
        return rank, replace(rank, layout=layout.single())

    def caches(self, spec: ModelSpec) -> list[KvLayer]:
        """Return the caches of the draft's layers on one rank."""
        tp = self.layout.tensor_parallel_size
        return kv_layers(spec, tensor_parallel_size=tp, kv_cache_dtype=self.kv_cache_dtype)

    def rejection_sampler(self) -> Operator:
        """Return what the target's step adds to its sampler to judge drafts."""
        size = float(self.target.vocab_size * _REJECTION_BYTES_PER_LOGIT)
        return Elementwise(
            name="rejection_sampler", count=1, component="lm_head", bytes_per_row=size, rows="seqs"
        )


def _passes(
    method: DraftMethod, k: int, settings: _Settings, draft: ModelSpec | None
) -> tuple[list[Operator], list[Operator], list[KvLayer]]:
    """Return the operators of the first and of each further pass, and the caches."""
    target = settings.target
    owns_embedding = settings.layout.pipeline_parallel_size > 1
    if method == "draft_model":
        assert draft is not None
        whole = _whole_model(settings, draft)
        return whole, whole, settings.caches(draft)
    if method == "medusa":
        rank, single = settings.ranks(_one_layer(target, target.layers[-1]))
        heads = with_model_shares(rank, single, partial(medusa_operators, heads=k))
        return merge_operators(heads), [], []
    if method == "mtp":
        spec = _one_layer(target, mtp_group(target))
        build = partial(mtp_operators, owns_embedding=owns_embedding)
        rank, single = settings.ranks(spec)
        operators = merge_operators(with_model_shares(rank, single, build))
        return operators, operators, settings.caches(spec)
    head = draft
    if head is None:  # heads come in 16 bits, whatever the target is in
        head = replace(_one_layer(target, target.layers[target.layer_pattern[-1]]), quantization=None)
    head = replace(head, vocab_size=target.vocab_size)
    rank, single = settings.ranks(head)
    if method == "eagle":
        build = partial(eagle_operators, target_hidden=target.hidden_size, owns_embedding=owns_embedding)
        operators = merge_operators(with_model_shares(rank, single, build))
        return operators, operators, settings.caches(head)
    first, following = (
        merge_operators(
            with_model_shares(
                rank,
                single,
                partial(
                    eagle3_operators,
                    target_hidden=target.hidden_size,
                    owns_embedding=owns_embedding,
                    combines=combines,
                ),
            )
        )
        for combines in (True, False)
    )
    return first, following, settings.caches(head)


def _whole_model(settings: _Settings, draft: ModelSpec) -> list[Operator]:
    """Return the forward pass of a draft model, with an argmax for its sampler."""
    (stage,) = pipeline_stages(
        draft,
        settings.layout_of(draft),
        weight_dtype=settings.weight_dtype,
        kv_cache_dtype=settings.kv_cache_dtype,
        fp8_attention=settings.fp8_attention,
    )
    rank, _ = settings.ranks(draft)
    argmax = greedy_head(rank, draft.vocab_size, weights=())[-1]
    return [argmax if operator.name == "sampler" else operator for operator in stage]


def _one_layer(spec: ModelSpec, group: LayerGroup) -> ModelSpec:
    return replace(spec, layers=(replace(group, count=1),), layer_pattern=(0,), num_nextn_predict_layers=0)


def _search(target: ModelSpec, lookup: tuple[int, int], max_model_len: int | None) -> Elementwise:
    """Return the search for n-grams on the GPU, which reads whole rows of the token table per length."""
    length = target.max_model_len if max_model_len is None else max_model_len
    sizes = lookup[1] - lookup[0] + 1
    return Elementwise(
        name=f"{_FIRST}ngram_search",
        count=_NGRAM_KERNELS,
        component="lm_head",
        bytes_per_row=float(length * _TOKEN_ID_BYTES * sizes) / _NGRAM_KERNELS,
        rows="seqs",
    )


def _named(prefix: str, operators: Sequence[Operator]) -> tuple[Operator, ...]:
    return tuple(replace(operator, name=f"{prefix}{operator.name}") for operator in operators)


def _issue(
    method: str, k: int, target: ModelSpec, draft: ModelSpec | None, host: DraftHostCost | None
) -> Issue | None:
    """Return what is wrong with a choice of draft, in the words of vLLM's `speculative_config`."""
    at = "engine.speculative"
    if method not in DRAFT_METHODS:
        near = nearest_name(method, DRAFT_METHODS)
        return Issue(f"{at}.method", method, f"was {show_value(method)}", DRAFT_METHODS, near)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= 128:
        message = f"was {show_value(k)}; 1 to 128 tokens are accepted"
        return Issue(f"{at}.num_speculative_tokens", k, message)
    takes, needs = ("draft_model", "eagle", "eagle3"), method == "draft_model"
    if draft is not None and method not in takes:
        return Issue(f"{at}.model", draft.name, f"has no effect with method {method}; remove it")
    if draft is None and (needs or (method in ("eagle", "eagle3") and target.is_moe)):
        return Issue(f"{at}.model", None, f"is missing; method {method} needs a draft for {target.name}")
    if method == "draft_model" and draft is not None and draft.vocab_size != target.vocab_size:
        message = (
            f"was {draft.name} with {draft.vocab_size} tokens, but {target.name} has {target.vocab_size}"
        )
        return Issue(f"{at}.model", draft.name, f"{message}; vLLM wants equal vocabularies")
    if method in ("mtp", "deepseek_mtp"):
        layers = target.num_nextn_predict_layers
        if layers == 0:
            message = f"was {show_value(method)}, but {target.name} has no multi-token prediction layer"
            return Issue(f"{at}.method", method, message)
        if k > layers and k % layers:
            message = f"was {k}, which is no multiple of the {layers} prediction layers of {target.name}"
            return Issue(f"{at}.num_speculative_tokens", k, message)
    if method == "suffix" and host is None:
        message = "was 'suffix', of whose search no host time is published; give one"
        return Issue(f"{at}.method", method, message)
    return None

"""The modules that a quantised checkpoint leaves in 16 bits, from its lists of exceptions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from frontier.errors import show_value
from frontier.models.fields import Fields

_ALWAYS_PLAIN = frozenset(
    {
        "e_score_correction_bias",
        "eh_proj",
        "embed_tokens",
        "enorm",
        "gate",
        "hnorm",
        "indexers_proj",
        "input_layernorm",
        "k_norm",
        "kv_a_layernorm",
        "lm_head",
        "norm",
        "post_attention_layernorm",
        "q_a_layernorm",
        "q_norm",
        "router",
        "shared_expert_gate",
        "weights_proj",
    }
)
"""Modules that stay in 16 or 32 bits in every checkpoint that is modelled, listed there or not."""

_COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "self_attn": ("attention",),
    "experts": ("routed_experts",),
    "shared_experts": ("shared_experts",),
    "shared_expert": ("shared_experts",),
    "mlp": ("dense_ffn", "routed_experts", "shared_experts"),
}
_MODULES: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("o_proj", "down_proj", "kv_b_proj", "q_b_proj", "wq_b", "wk")},
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    **{name: (name,) for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")},
    **{name: (name,) for name in ("q_a_proj", "kv_a_proj_with_mqa")},
}
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("q_a_proj", "kv_a_proj_with_mqa"))
"""Modules that vLLM loads as one matrix, which is quantised as a whole or not at all."""

LIST_KEYS = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules")
"""Names under which checkpoints list exceptions."""


@dataclass(frozen=True, slots=True)
class _Module:
    """A module of an exception: the names on its path, and the layer if one is named."""

    path: tuple[str, ...]
    layer: int | None

    @property
    def leaf(self) -> str:
        return self.path[-1] if self.path else ""


def read_plain_modules(f: Fields, *, model: Mapping[str, Any], always: Iterable[str] = ()) -> frozenset[str]:
    """Return the components and modules that stay in 16 bits beside those that always do.

    Exceptions hold for all layers; a list that names some layers of a module is refused. Names are those of
    Hugging Face modules, with `*`, or regular expressions marked `re:` without alternatives.

    Args:
        f: the `quantization_config`; problems gather in it.
        model: the whole configuration, for the number of layers.
        always: names that need no mention in the result.
    """
    depth = model.get("num_hidden_layers")
    depth = depth if isinstance(depth, int) else 0
    dense = model.get("first_k_dense_replace")
    dense = dense if isinstance(dense, int) else 0
    plain: set[str] = set()
    for key in LIST_KEYS:
        names = f.config.get(key)
        if names is None:
            continue
        if not isinstance(names, list):
            f.problem(key, f"was {show_value(names)}; a list of module names is needed", value=names)
            continue
        some: dict[str, dict[int, str]] = {}
        odd: list[str] = []
        for name in map(str, names):
            module = _parse(name)
            if module is None or (module.layer is None and not _known(module, always)):
                odd.append(name)
            elif module.layer is not None and _known(module, always):
                some.setdefault(module.leaf, {})[module.layer] = name
            elif module.layer is not None and module.layer < depth:
                odd.append(name)
            else:
                plain |= _meant(module, always)
        for leaf, layers in some.items():
            module = _Module((leaf,), None)
            meant = _meant(module, always)
            first = dense if leaf in ("experts", "shared_experts", "shared_expert") else 0
            inside = {layer for layer in layers if layer < depth}
            if meant and inside and not inside >= set(range(first, depth)):
                odd.append(layers[min(inside)])
            elif inside:
                plain |= meant
        odd += [f"{part} alone of {', '.join(whole)}" for whole in _FUSED for part in _half(whole, plain)]
        if odd:
            more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            message = (
                f"has {show_value(odd[0])}{more}; a checkpoint quantised in part this way is not modelled"
            )
            f.problem(key, message, value=names)
    return frozenset(plain)


def _parse(name: str) -> _Module | None:
    text = name.removeprefix("re:").replace("\\.", ".").strip("^$")
    if re.search(r"[()\[\]|?+{}\\]", text):
        return None
    parts = [part for part in re.split(r"[.*]+", text) if part and part != "model"]
    layer = None
    for before, part in itertools.pairwise(parts):
        if before == "layers" and part.isdecimal():
            layer = int(part)
    path = tuple(
        part for part in parts if part != "layers" and not (layer is not None and part == str(layer))
    )
    return _Module(path, layer)


def _known(module: _Module, always: Iterable[str]) -> bool:
    leaf = module.leaf
    if leaf in _ALWAYS_PLAIN or leaf in always or leaf in _COMPONENTS:
        return True
    # A projection of one expert, or of the shared experts alone, is no exception that can be told apart.
    return leaf in _MODULES and not {"experts", "shared_experts", "shared_expert"} & set(module.path)


def _meant(module: _Module, always: Iterable[str]) -> set[str]:
    leaf = module.leaf
    if leaf in _ALWAYS_PLAIN or leaf in always:
        return set()
    return {*_COMPONENTS.get(leaf, ()), *_MODULES.get(leaf, ())}


def _half(whole: tuple[str, ...], plain: set[str]) -> list[str]:
    found = [part for part in whole if part in plain]
    return found[:1] if 0 < len(found) < len(whole) else []

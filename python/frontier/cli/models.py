"""`frontier models`: what is known of each model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from frontier.cli import output
from frontier.cli.options import json_option

if TYPE_CHECKING:
    from frontier.models import LayerGroup, ModelSpec

_COLUMNS = ("model", "attention", "total", "active", "layers", "KV/token", "context")


@click.command(short_help="List the models, or one of them in detail.")
@click.argument("name", required=False)
@json_option
def models(name: str | None, as_json: bool) -> None:
    """List the models that come with the package.

    NAME shows one of them in detail; it may also be the path of a Hugging Face config.json or its directory.
    """
    from frontier.models import load_model, model_names  # noqa: PLC0415 - reads the presets

    if name is not None:
        spec = load_model(name)
        if as_json:
            output.print_json(_facts(spec))
        else:
            output.print_facts(_detail(spec))
        return
    all_facts = [_facts(load_model(each)) for each in model_names()]
    if as_json:
        output.print_json(all_facts)
        return
    output.print_table(_COLUMNS, [_row(facts) for facts in all_facts], left=2)
    output.print_text(
        "\n"
        "total, active: parameters, all and those that one token meets. KV/token: KV cache of one token over"
        " all layers in 16 bits. context: longest prompt + output."
    )


def _facts(spec: ModelSpec) -> dict[str, Any]:
    """Return the facts of a model as plain values."""
    from frontier.models import kv_layers, parameter_counts  # noqa: PLC0415

    counts = parameter_counts(spec)
    caches = kv_layers(spec, tensor_parallel_size=1)
    quantization = spec.quantization
    return {
        "name": spec.name,
        "model_type": spec.model_type,
        "parameters": {
            "total": counts.total,
            "active": counts.active,
            "by_component": dict(counts.by_component),
        },
        "dtype": spec.dtype,
        "quantization": None if quantization is None else quantization.method,
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "max_model_len": spec.max_model_len,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "num_layers": spec.num_layers,
        "layers": [
            {"count": group.count, "attention": _attention(group), "feed_forward": _feed_forward(group)}
            for group in spec.layers
        ],
        "kv_bytes_per_token": sum(cache.count * cache.bytes_per_token for cache in caches),
        "kv_layers": [
            {
                "kind": cache.kind,
                "count": cache.count,
                "bytes_per_token": cache.bytes_per_token,
                "window": cache.window,
            }
            for cache in caches
        ],
        "vision": _vision(spec),
        "source": spec.source,
    }


def _vision(spec: ModelSpec) -> dict[str, Any] | None:
    """Return what there is to say of a vision tower, None without one; it is not among `parameters`."""
    from frontier.models.vision_program import tower_parameters  # noqa: PLC0415

    tower = spec.vision
    if tower is None:
        return None
    return {
        "parameters": tower_parameters(spec),
        "num_layers": tower.num_layers,
        "hidden_size": tower.hidden_size,
        "patches_per_embedding": tower.merge,
        "embedding_width": tower.embedding_width,
    }


def _tower(vision: dict[str, Any]) -> str:
    return (
        f"{vision['parameters']:,} parameters beside those above, {vision['num_layers']} layers\n"
        f"{vision['patches_per_embedding']} patches become an embedding of {vision['embedding_width']:,}"
    )


def _attention(group: LayerGroup) -> str:
    """Return the usual name of an attention: MHA, GQA, MQA, MFA or MLA, with its window or sparsity."""
    from frontier.models.spec import MultiHeadLatentAttention  # noqa: PLC0415

    attention = group.attention
    if isinstance(attention, MultiHeadLatentAttention):
        return "MLA" if attention.indexer is None else "MLA sparse"
    if attention.query_rank is not None:
        return "MFA"
    heads = {attention.num_heads: "MHA", 1: "MQA"}
    name = heads.get(attention.num_kv_heads, "GQA")
    return name if attention.window is None else f"{name} sliding"


def _feed_forward(group: LayerGroup) -> str:
    from frontier.models.spec import MixtureOfExperts  # noqa: PLC0415

    layer = group.feed_forward
    if not isinstance(layer, MixtureOfExperts):
        return f"dense, width {layer.intermediate_size:,}"
    text = f"{layer.num_experts} experts of width {layer.intermediate_size:,}, {layer.top_k} per token"
    shared = layer.shared_intermediate_size
    return f"{text}, shared width {shared:,}" if shared else text


def _row(facts: dict[str, Any]) -> tuple[str, ...]:
    kinds = list(dict.fromkeys(layer["attention"] for layer in facts["layers"]))
    full = [kind for kind in kinds if not kind.endswith(" sliding")]
    attention = "/".join(full or kinds) + ("+sliding" if full and len(full) < len(kinds) else "")
    return (
        facts["name"],
        attention,
        output.parameters(facts["parameters"]["total"]),
        output.parameters(facts["parameters"]["active"]),
        f"{facts['num_layers']}",
        output.size(facts["kv_bytes_per_token"]),
        f"{facts['max_model_len']:,}",
    )


def _detail(spec: ModelSpec) -> list[tuple[str, str]]:
    facts = _facts(spec)
    counts = facts["parameters"]
    quantization = f", linear layers {spec.quantization.method}" if spec.quantization is not None else ""
    layers = "\n".join(
        f"{layer['count']} x {layer['attention']}, {layer['feed_forward']}" for layer in facts["layers"]
    )
    caches = "\n".join(
        f"{cache['count']} x {cache['bytes_per_token']:,} B ({cache['kind']}"
        + (f", window {cache['window']:,})" if cache["window"] else ")")
        for cache in facts["kv_layers"]
    )
    parts = "\n".join(
        f"{name:<15} {output.parameters(count):>8}" for name, count in counts["by_component"].items() if count
    )
    return [
        ("name", spec.name),
        ("model type", spec.model_type),
        ("parameters", f"{counts['total']:,}"),
        ("active", f"{counts['active']:,}"),
        ("by part", parts),
        ("weights", f"{spec.dtype}{quantization}"),
        ("hidden size", f"{spec.hidden_size:,}"),
        ("vocabulary", f"{spec.vocab_size:,}" + (", tied LM head" if spec.tie_word_embeddings else "")),
        ("layers", layers),
        ("KV per token", f"{output.size(facts['kv_bytes_per_token'])} in 16 bits\n{caches}"),
        ("context", f"{spec.max_model_len:,} tokens"),
        *((("vision tower", _tower(facts["vision"])),) if facts["vision"] else ()),
        ("source", spec.source or "-"),
    ]

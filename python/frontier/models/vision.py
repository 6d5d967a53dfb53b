"""Vision-language configurations: which are understood, and how one becomes a language model and a tower.

Keys and class defaults are those of Hugging Face transformers (`configuration_qwen2_vl.py`,
`configuration_qwen2_5_vl.py`, `configuration_qwen3_vl.py`, `configuration_gemma3.py` with
`configuration_siglip.py`), modules those of the models beside them. A key that decides a size has to be there
unless every checkpoint of the type has its default.

The language model is read as one of its own kind. Left out of it: image tokens that see each other (Gemma 3),
the three parts of a rotary position, features that deeper layers add (Qwen3-VL): they cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from frontier.errors import Issue, show_value
from frontier.models.fields import Fields
from frontier.models.spec import VisionTower

_INHERITED: Final = ("tie_word_embeddings", "torch_dtype", "dtype", "quantization_config", "_source")
"""Keys that a nested language model takes from the whole configuration where it has none of its own."""

_LANGUAGE_TYPES: Final = {
    "qwen2_vl": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
    "gemma3_text": "gemma3_text",
}
"""The kind of language model behind a type: they differ in rotary positions alone."""


class _Language(Mapping[str, Any]):
    """The language model's keys of a configuration that has them beside those of the tower."""

    def __init__(self, config: Mapping[str, Any], model_type: str) -> None:
        self._config = config
        self._own: dict[str, Any] = {"model_type": model_type}

    def __getitem__(self, key: str) -> Any:
        if key in self._own:
            return self._own[key]
        if key in ("vision_config", "text_config", "architectures"):
            raise KeyError(key)
        return self._config[key]

    def __iter__(self) -> Iterator[str]:
        return iter(key for key in self._config if key not in ("vision_config", "architectures"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def reads_vision(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is of a model with a vision tower that is understood."""
    kind = config.get("model_type")
    return isinstance(kind, str) and kind in VISION_TYPES and isinstance(config.get("vision_config"), Mapping)


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration of the language model alone."""
    nested = config.get("text_config")
    kind = str(config.get("model_type"))
    if not isinstance(nested, Mapping):
        return _Language(config, _LANGUAGE_TYPES.get(kind, kind))
    given = str(nested.get("model_type", f"{kind}_text"))
    part = {key: config[key] for key in _INHERITED if config.get(key) is not None}
    part |= {key: value for key, value in nested.items() if value is not None and key != "architectures"}
    return part | {"model_type": _LANGUAGE_TYPES.get(given, given)}


def read_tower(config: Mapping[str, Any], language_width: int) -> tuple[VisionTower, list[Issue]]:
    """Read the tower of a configuration that `reads_vision`.

    Args:
        config: the whole configuration.
        language_width: width of the language model, which embeddings must have.

    Returns:
        The tower, and what is wrong with its keys.
    """
    f = Fields(config["vision_config"], "vision_config.")
    tower = VISION_TYPES[str(config["model_type"])](f, config)
    f.must_divide("num_heads", tower.num_heads, "hidden_size", tower.hidden_size)
    if tower.out_hidden_size != language_width and not f.issues:
        message = (
            f"gives embeddings of {tower.out_hidden_size}, but the language model's are {language_width}"
        )
        f.problem("out_hidden_size", message, value=tower.out_hidden_size)
    for width in (tower.hidden_size * (1 if tower.pooled else tower.merge), tower.out_hidden_size):
        if width % tower.merge and not f.issues:
            message = f"was {width}, which {tower.merge} patches of an embedding do not divide: not modelled"
            f.problem("out_hidden_size", message, value=width)
    return tower, f.issues


def _patch(f: Fields, *, frames: int) -> int:
    """Return the numbers of a patch; channels go by two names."""
    side = f.whole("patch_size")
    return f.whole("in_channels", "in_chans", default=3) * frames * side * side


def _merge(f: Fields) -> int:
    return f.whole("spatial_merge_size", default=2) ** 2


def _qwen2_vl(f: Fields, config: Mapping[str, Any]) -> VisionTower:
    width = f.whole("embed_dim")
    ratio = f.config.get("mlp_ratio", 4)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1000:
        f.problem("mlp_ratio", f"was {show_value(ratio)}; a number > 0 is needed", value=ratio)
        ratio = 4
    return VisionTower(
        num_layers=f.whole("depth"),
        hidden_size=width,
        num_heads=f.whole("num_heads"),
        intermediate_size=int(width * ratio),
        gated=False,
        rms_norm=False,
        patch_elements=_patch(f, frames=f.whole("temporal_patch_size", default=2)),
        patch_bias=False,
        positions=0,
        interpolated=False,
        rotary=True,
        block_tokens=None,
        full_layers=0,
        final_norm=False,
        merge=_merge(f),
        pooled=False,
        deepstack=0,
        out_hidden_size=f.whole("hidden_size"),
    )


def _qwen2_5_vl(f: Fields, config: Mapping[str, Any]) -> VisionTower:
    depth, patch = f.whole("depth"), f.whole("patch_size")
    window = f.whole("window_size")
    f.must_divide("patch_size", patch, "window_size", window)
    full = f.layer_set("fullatt_block_indexes", depth)
    if full is None:
        f.problem("fullatt_block_indexes", "is missing; layers with attention over whole images are needed")
    return VisionTower(
        num_layers=depth,
        hidden_size=f.whole("hidden_size"),
        num_heads=f.whole("num_heads"),
        intermediate_size=f.whole("intermediate_size"),
        gated=True,
        rms_norm=True,
        patch_elements=_patch(f, frames=f.whole("temporal_patch_size", default=2)),
        patch_bias=False,
        positions=0,
        interpolated=False,
        rotary=True,
        block_tokens=max(window // patch, 1) ** 2,
        full_layers=len(full or ()),
        final_norm=False,
        merge=_merge(f),
        pooled=False,
        deepstack=0,
        out_hidden_size=f.whole("out_hidden_size"),
    )


def _qwen3_vl(f: Fields, config: Mapping[str, Any]) -> VisionTower:
    depth = f.whole("depth")
    return VisionTower(
        num_layers=depth,
        hidden_size=f.whole("hidden_size"),
        num_heads=f.whole("num_heads"),
        intermediate_size=f.whole("intermediate_size"),
        gated=False,
        rms_norm=False,
        patch_elements=_patch(f, frames=f.whole("temporal_patch_size", default=2)),
        patch_bias=True,
        positions=f.whole("num_position_embeddings"),
        interpolated=True,
        rotary=True,
        block_tokens=None,
        full_layers=0,
        final_norm=False,
        merge=_merge(f),
        pooled=False,
        deepstack=len(f.layer_set("deepstack_visual_indexes", depth) or ()),
        out_hidden_size=f.whole("out_hidden_size"),
    )


def _gemma3(f: Fields, config: Mapping[str, Any]) -> VisionTower:
    """Read SigLIP in images of fixed size, whose patches are pooled (Gemma 3, arXiv:2503.19786)."""
    f.text("model_type", default="siglip_vision_model", allowed=("siglip_vision_model",))
    side, patch = f.whole("image_size"), f.whole("patch_size")
    f.must_divide("patch_size", patch, "image_size", side)
    patches = max(side // patch, 1) ** 2
    whole = Fields(config)
    tokens = whole.whole("mm_tokens_per_image", default=256)
    if patches % tokens:
        message = f"was {tokens}, which does not divide the {patches} patches of an image"
        whole.problem("mm_tokens_per_image", message, value=tokens)
    text = config.get("text_config")
    width = Fields(text if isinstance(text, Mapping) else config, "text_config.").whole("hidden_size")
    f.issues += whole.issues
    return VisionTower(
        num_layers=f.whole("num_hidden_layers"),
        hidden_size=f.whole("hidden_size"),
        num_heads=f.whole("num_attention_heads"),
        intermediate_size=f.whole("intermediate_size"),
        gated=False,
        rms_norm=False,
        patch_elements=f.whole("num_channels", default=3) * patch * patch,
        patch_bias=True,
        positions=patches,
        interpolated=False,
        rotary=False,
        block_tokens=patches,
        full_layers=0,
        final_norm=True,
        merge=max(patches // tokens, 1),
        pooled=True,
        deepstack=0,
        out_hidden_size=width,
    )


VISION_TYPES: Final[dict[str, Callable[[Fields, Mapping[str, Any]], VisionTower]]] = {
    "gemma3": _gemma3,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen2_vl": _qwen2_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl,
}
"""Every model type whose tower is understood."""

"""Load a model from a Hugging Face `config.json`, its directory, a mapping, or a preset name."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from frontier.errors import ConfigError, Issue, nearest_name, show_value
from frontier.models.families import FAMILIES
from frontier.models.fields import MAX_COUNT, Fields
from frontier.models.quantization import read_quantization
from frontier.models.refusals import refusal
from frontier.models.spec import ModelDtype, ModelSpec, group_layers
from frontier.models.vision import language_part, read_tower, reads_vision

_LENGTH_KEYS = (
    "max_position_embeddings",
    "max_position_embedding",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
_UNSCALED_ROPE = ("default", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
_DTYPES: tuple[ModelDtype, ...] = ("bfloat16", "float16", "float32")
_MAX_FILE_BYTES = 16 * 2**20


def model_names() -> list[str]:
    """Return the preset names, sorted."""
    return sorted(_presets())


def load_model(source: str | Path | Mapping[str, Any]) -> ModelSpec:
    """Load a model.

    Args:
        source: a preset name (`llama-3.1-8b`, or the name on the Hugging Face hub,
            `meta-llama/Llama-3.1-8B`), the path of a `config.json` or of a directory that has one, or the
            configuration itself.

    Raises:
        ConfigError: no such preset or file, a kind of model that is not modelled, or keys that are missing or
            out of range; all problems of a configuration are reported together.
    """
    if isinstance(source, Mapping):
        return _read(source, name=_name_in(source) or "model", where="model")
    preset = _find_preset(str(source)) if isinstance(source, str) else None
    if preset is not None:
        return _read(_presets()[preset], name=preset, where=f"model preset '{preset}'")
    path = _config_path(source)
    return _read(_parse(path), name=path.parent.name or path.stem, where=str(path))


def _name_in(config: Mapping[str, Any]) -> str | None:
    name = config.get("_name_or_path")
    return name if isinstance(name, str) and name else None


@functools.cache
def _presets() -> dict[str, dict[str, Any]]:
    folder = resources.files("frontier.models") / "presets"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".json")), key=lambda f: f.name)
    return {f.name.removesuffix(".json"): json.loads(f.read_text("utf-8")) for f in files}


@functools.cache
def _aliases() -> dict[str, str]:
    """Return every accepted spelling, folded to lower case, with its preset."""
    names = {preset.casefold(): preset for preset in _presets()}
    for preset, config in _presets().items():
        for hub_name in config.get("_names", ()):
            names[hub_name.casefold()] = preset
            names.setdefault(hub_name.rsplit("/", 1)[-1].casefold(), preset)
    return names


def preset_name(source: str) -> str | None:
    """Return the preset that a name stands for (its own, or that on the Hugging Face hub), None if none."""
    return _find_preset(source)


def _find_preset(name: str) -> str | None:
    return _aliases().get(name.casefold())


def hub_name(source: str) -> str | None:
    """Return the name on the Hugging Face hub of a preset, None where `source` is none.

    A name of the hub stays as it is; a preset's short name gives the first that its file lists.
    """
    preset = _find_preset(source)
    if preset is None:
        return None
    names: list[str] = _presets()[preset].get("_names", [])
    written = [name for name in names if name.casefold() == source.casefold()]
    return next(iter([*written, *names]), None)


def _config_path(source: object) -> Path:
    """Return the `config.json` that a path stands for, refusing adapters and embedding models by name."""
    if not isinstance(source, str | Path):
        raise ConfigError(
            Issue("model", source, f"was {show_value(source)}; a name, path or mapping is needed")
        )
    path = Path(source)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):
        is_folder = is_file = False
    if is_folder:
        if (path / "adapter_config.json").exists():
            raise ConfigError(
                Issue("model", str(source), "is a LoRA adapter; give the base model's directory")
            )
        if (path / "modules.json").exists():
            raise ConfigError(
                Issue("model", str(source), "is a sentence-embedding model, which is not modelled")
            )
        path, is_file = path / "config.json", (path / "config.json").is_file()
    if not is_file:
        names = model_names()
        near = nearest_name(source, _aliases())
        message = f"was {show_value(str(source))}; neither a preset nor a config.json that can be read"
        raise ConfigError(
            Issue("model", str(source), message, tuple(names), _aliases()[near] if near else None)
        )
    return path


def _parse(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(
                f"is larger than {_MAX_FILE_BYTES} bytes: not a model configuration", source=str(path)
            )
        config = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise ConfigError(f"is not JSON: {error.msg}", source=where) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot be read: {error}", source=str(path)) from None
    except ValueError:  # Python reads no whole number of more than 4300 digits
        message = "is not JSON that can be read: a number has too many digits"
        raise ConfigError(message, source=str(path)) from None
    except (OSError, RecursionError) as error:
        raise ConfigError(f"cannot be read: {error}", source=str(path)) from None
    if not isinstance(config, dict):
        raise ConfigError(f"is {show_value(config)}; a JSON object is needed", source=str(path))
    return config


def _read(config: Mapping[str, Any], *, name: str, where: str) -> ModelSpec:
    if reads_vision(config):
        return _read_with_vision(config, name=name, where=where)
    refused = refusal(config, frozenset(FAMILIES))
    if refused is not None:
        raise ConfigError(refused, source=where)
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None or not isinstance(model_type, str):
        raise ConfigError(_unknown_type(model_type), source=where)
    f = Fields(config)
    hidden, vocab = f.whole("hidden_size"), f.whole("vocab_size")
    layers, pattern = group_layers(family.layers(f))
    quantization = read_quantization(f, model_type)
    spec = ModelSpec(
        name=name,
        model_type=model_type,
        hidden_size=hidden,
        vocab_size=vocab,
        max_model_len=_max_model_len(f, model_type),
        tie_word_embeddings=f.flag("tie_word_embeddings", default=family.tie_by_default),
        dtype=_dtype(f),
        layers=layers,
        layer_pattern=pattern,
        quantization=quantization,
        source=config.get("_source") if isinstance(config.get("_source"), str) else where,
        num_nextn_predict_layers=f.whole("num_nextn_predict_layers", default=0, minimum=0),
        draft_vocab_size=f.optional_whole("draft_vocab_size"),
    )
    _drop_repeats(f)
    f.finish(where)
    return spec


def _read_with_vision(config: Mapping[str, Any], *, name: str, where: str) -> ModelSpec:
    spec = _read(language_part(config), name=name, where=where)
    tower, issues = read_tower(config, spec.hidden_size)
    if issues:
        raise ConfigError(issues, source=where)
    return replace(spec, vision=tower)


def _unknown_type(model_type: object) -> Issue:
    if model_type is None:
        return Issue("model_type", None, "is missing", tuple(FAMILIES))
    message = f"{show_value(model_type)} is not modelled"
    return Issue("model_type", model_type, message, tuple(FAMILIES), nearest_name(model_type, FAMILIES))


def _dtype(f: Fields) -> ModelDtype:
    key = "dtype" if f.has("dtype") else "torch_dtype"
    value = f.config.get(key, "bfloat16")
    text = str(value).removeprefix("torch.")
    for dtype in _DTYPES:
        if text == dtype or value is None:
            return dtype
    f.problem(key, f"was {show_value(value)}", value=value, allowed=_DTYPES)
    return "bfloat16"


def _max_model_len(f: Fields, model_type: str) -> int:
    """Return vLLM's derived length: the smallest length key, times the RoPE factor of types that need it.

    Mirrors vllm/config/model.py::_get_and_verify_max_len (0.32) without the tokenizer, which is not read.
    """
    present = [key for key in _LENGTH_KEYS if f.has(key)]
    length = min((f.whole(key) for key in present), default=2048)
    rope = f.config.get("rope_parameters") or f.config.get("rope_scaling")
    if not isinstance(rope, Mapping) or model_type == "gemma3_text":  # Gemma's length is scaled already
        return length
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("longrope", "su"):
        holder = f if f.has("original_max_position_embeddings") else Fields(rope, "rope_scaling.")
        return holder.whole("original_max_position_embeddings", default=length)
    factor = rope.get("factor")
    if factor is None or kind in _UNSCALED_ROPE:
        return length
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1e6:
        f.problem("rope_scaling.factor", f"was {show_value(factor)}; a number > 0 is needed", value=factor)
        return length
    scaled = int(length * factor)
    if not 2 <= scaled <= MAX_COUNT:
        message = f"was {show_value(factor)}, which makes a context of {scaled} tokens"
        f.problem("rope_scaling.factor", f"{message}; 2 to {MAX_COUNT} are accepted", value=factor)
        return length
    return scaled


def _drop_repeats(f: Fields) -> None:
    """Keep one of equal problems: several readers look at the same key."""
    seen: dict[tuple[str, str], Issue] = {}
    for issue in f.issues:
        seen.setdefault((issue.path, issue.message), issue)
    f.issues = list(seen.values())

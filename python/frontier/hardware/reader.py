"""Load a GPU from a preset name, a YAML file, or a mapping.

Any GPU in ten lines of YAML; quantities carry their units, rates are dense, bandwidths per direction:

    name: my-gpu
    num_sms: 132
    memory: 81090MiB                # as the driver reports it
    memory_bandwidth: 3.35TB/s
    peak: {fp32: 67TFLOPS, fp16: 989TFLOPS, bf16: 989TFLOPS, fp8: 1979TFLOPS}
    nvlink_bandwidth: 450GB/s       # leave out if GPUs are linked by PCIe alone
    pcie_bandwidth: 64GB/s
    gpus_per_node: 8                # needed with nvlink_bandwidth; 1 where it is left out
    price_per_hour: 2.69            # US dollars
    source: data sheet of such a day

Optional besides: `l2_cache` (a size; an H100's 50MiB where left out), `compute_efficiency`,
`memory_efficiency`, `link_efficiency` (shares), `kernel_launch`, `nvlink_latency`, `pcie_latency`
(durations), `nic_bandwidth` and `nic_latency` (the network, for replicas of several nodes), `peak_power` and
`idle_power` (as in 700W: energy is known where the peak is), `power_source`, `price_source`, and two from
which vLLM's own choices follow: `compute_capability` (as in "9.0": the attention backend, and with it the
block size) and `device_name` (as CUDA reports it: an A100 has smaller default limits). The defaults of
shares, durations and idle power are those of `frontier.hardware.spec`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from frontier import units
from frontier.errors import ConfigError, Issue, nearest_name, show_value
from frontier.hardware.spec import GpuSpec, PeakFlops

_PEAKS = ("fp32", "fp16", "bf16", "fp8", "int8", "fp4")
_MAX_FILE_BYTES = 2**20


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"was {show_value(value)}, must be a text")
    return value


def _capability(value: object) -> str:
    text = str(value) if isinstance(value, float) else value
    if not isinstance(text, str) or not re.fullmatch(r"[1-9][0-9]?\.[0-9]", text):
        raise ValueError(f"was {show_value(value)}, must be major.minor, as in '9.0'")
    return text


def _watts(value: object) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?W", value) if isinstance(value, str) else None
    if match is None or not float(match[1]) > 0:
        raise ValueError(f"was {show_value(value)}, must be a power such as '700W'")
    return float(match[1])


def _positive(parse: Callable[[object], Any]) -> Callable[[object], Any]:
    def read(value: object) -> Any:
        result = parse(value)
        if not result > 0:
            raise ValueError(f"was {show_value(value)}, must be greater than 0")
        return result

    return read


_READERS: dict[str, tuple[str, Callable[[object], Any]]] = {
    "name": ("name", _text),
    "num_sms": ("num_sms", _positive(units.parse_count)),
    "memory": ("memory_bytes", _positive(units.parse_bytes)),
    "memory_bandwidth": ("memory_bandwidth_bytes_per_s", _positive(units.parse_bandwidth)),
    "l2_cache": ("l2_bytes", _positive(units.parse_bytes)),
    "pcie_bandwidth": ("pcie_bandwidth_bytes_per_s", _positive(units.parse_bandwidth)),
    "nvlink_bandwidth": ("nvlink_bandwidth_bytes_per_s", _positive(units.parse_bandwidth)),
    "nic_bandwidth": ("nic_bandwidth_bytes_per_s", _positive(units.parse_bandwidth)),
    "compute_efficiency": ("compute_efficiency", _positive(units.parse_share)),
    "memory_efficiency": ("memory_efficiency", _positive(units.parse_share)),
    "link_efficiency": ("link_efficiency", _positive(units.parse_share)),
    "kernel_launch": ("kernel_launch_ns", units.parse_duration_ns),
    "nvlink_latency": ("nvlink_latency_ns", units.parse_duration_ns),
    "pcie_latency": ("pcie_latency_ns", units.parse_duration_ns),
    "nic_latency": ("nic_latency_ns", units.parse_duration_ns),
    "gpus_per_node": ("gpus_per_node", _positive(units.parse_count)),
    "compute_capability": ("compute_capability", _capability),
    "device_name": ("device_name", _text),
    "price_per_hour": ("price_per_hour_usd", units.parse_number),
    "price_source": ("price_source", _text),
    "idle_power": ("idle_power_w", _watts),
    "peak_power": ("peak_power_w", _watts),
    "power_source": ("power_source", _text),
    "source": ("source", _text),
}
_REQUIRED = {
    "name": "a text, as in name: my-gpu",
    "num_sms": "the number of multiprocessors, as in num_sms: 132",
    "memory": "a size with its unit, as in memory: 81090MiB",
    "memory_bandwidth": "a bandwidth with its unit, as in memory_bandwidth: 3.35TB/s",
    "pcie_bandwidth": "a bandwidth per direction with its unit, as in pcie_bandwidth: 64GB/s",
    "peak": "dense rates per type with their unit, as in peak: {bf16: 989TFLOPS}",
}
"""Keys that every GPU has, and how each is written."""
_NEEDS = {
    "nvlink_latency": "nvlink_bandwidth",
    "nic_latency": "nic_bandwidth",
    "idle_power": "peak_power",
    "power_source": "peak_power",
}
"""Keys without effect unless another one is given."""
_KEYS = (*_READERS, "peak")
_MAX_SMS = 2**16


def gpu_names() -> list[str]:
    """Return the preset names, sorted."""
    return sorted(_presets())


def load_gpu(source: str | Path | Mapping[str, Any]) -> GpuSpec:
    """Load a GPU.

    Args:
        source: a preset name (`h100`), the path of a YAML file, or a mapping with the file's keys.

    Raises:
        ConfigError: no such preset or file, or keys that are unknown, missing or out of range; all problems
            are reported together.
    """
    if isinstance(source, Mapping):
        return _read(source, "gpu")
    if isinstance(source, str) and (preset := _folded().get(_fold(source))) is not None:
        return _presets()[preset]
    path = _existing_file(source)
    return _read(_parse(path.read_bytes(), str(path)), str(path))


def _fold(name: str) -> str:
    return name.casefold().replace("_", "-").replace(" ", "-")


@functools.cache
def _presets() -> dict[str, GpuSpec]:
    folder = resources.files("frontier.hardware") / "presets"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    specs = [_read(_parse(f.read_bytes(), f.name), f"GPU preset {f.name}") for f in files]
    return {spec.name: spec for spec in specs}


@functools.cache
def _folded() -> dict[str, str]:
    return {_fold(name): name for name in _presets()}


def _existing_file(source: object) -> Path:
    if not isinstance(source, str | Path):
        message = f"was {show_value(source)}; a name, path or mapping is needed"
        raise ConfigError(Issue("hardware.gpu", source, message))
    path = Path(source)
    try:
        if path.is_file() and path.stat().st_size <= _MAX_FILE_BYTES:
            return path
    except (OSError, ValueError):
        pass
    names = gpu_names()
    start = _fold(str(source))
    longer = [name for name in reversed(names) if start and name.startswith(start)]
    near = min(longer, key=len) if longer else nearest_name(source, names)
    message = f"was {show_value(str(source))}; neither a preset nor a YAML file that can be read"
    raise ConfigError(Issue("hardware.gpu", str(source), message, tuple(names), near))


def _parse(data: bytes, where: str) -> Mapping[str, Any]:
    import yaml  # noqa: PLC0415 - only needed where a GPU is loaded

    try:
        loader = yaml.SafeLoader(data)
        node = loader.get_single_node()
        document = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise ConfigError(f"is not YAML: {error.problem}", source=place) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"is not YAML: {' '.join(str(error).split())}", source=where) from None
    except RecursionError:
        raise ConfigError("is not YAML: it is nested too deeply", source=where) from None
    except ValueError:  # Python reads no whole number of more than 4300 digits, and YAML no impossible date
        message = "is not YAML that can be read: a number or date is out of range"
        raise ConfigError(message, source=where) from None
    if not isinstance(document, Mapping):
        raise ConfigError(f"was {show_value(document)}; a mapping of keys is needed", source=where)
    if issues := _repeated_keys(node, ""):
        raise ConfigError(issues, source=where)
    return document


def _repeated_keys(node: Any, prefix: str) -> list[Issue]:
    """Return the keys given twice in a mapping or in the mappings in it; YAML would take the last."""
    issues: list[Issue] = []
    first: dict[str, int] = {}
    if getattr(node, "id", None) != "mapping":
        return []
    for key, value in node.value:
        path, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if path in first:
            message = f"is given twice, on lines {first[path]} and {line}"
            issues.append(Issue(path, getattr(value, "value", None), message))
        elif not prefix:
            issues += _repeated_keys(value, f"{path}.")
        first.setdefault(path, line)
    return issues


def _read(config: Mapping[str, Any], where: str) -> GpuSpec:
    issues = [
        Issue(str(key), value, "is no key of a GPU", _KEYS, nearest_name(key, _KEYS))
        for key, value in config.items()
        if key not in _KEYS
    ]
    values: dict[str, Any] = {}
    for key, (attribute, reader) in _READERS.items():
        value = config.get(key)
        if value is None:
            continue
        try:
            values[attribute] = reader(value)
        except ValueError as error:
            issues.append(Issue(key, value, str(error)))
    issues += [
        Issue(key, None, f"is missing; give {form}")
        for key, form in _REQUIRED.items()
        if config.get(key) is None
    ]
    issues += _related_issues(config, values)
    peaks = _peaks(config.get("peak"), issues)
    for attribute, limit in (("num_sms", _MAX_SMS), ("gpus_per_node", _MAX_SMS)):
        if values.get(attribute, 1) > limit:
            issues.append(
                Issue(attribute, values[attribute], f"was {values[attribute]}, must be at most {limit}")
            )
    if issues:
        raise ConfigError(issues, source=where)
    return GpuSpec(peak_flops_per_s=peaks, **values)


def _related_issues(config: Mapping[str, Any], values: Mapping[str, Any]) -> list[Issue]:
    """Return what is wrong between keys."""
    issues = [
        Issue(key, config[key], f"has no effect without {needed}; give both or neither")
        for key, needed in _NEEDS.items()
        if config.get(key) is not None and config.get(needed) is None
    ]
    if config.get("nvlink_bandwidth") is not None and config.get("gpus_per_node") is None:
        message = (
            "is missing; nvlink_bandwidth needs the number of GPUs that it links, as in gpus_per_node: 8"
        )
        issues.append(Issue("gpus_per_node", None, message))
    idle, peak = values.get("idle_power_w"), values.get("peak_power_w")
    if idle is not None and peak is not None and idle > peak:
        message = f"was {show_value(config['idle_power'])}, must be at most peak_power ({peak:g}W)"
        issues.append(Issue("idle_power", config["idle_power"], message))
    return issues


def _peaks(config: object, issues: list[Issue]) -> PeakFlops:
    """Read the peak rates; problems are added to `issues`."""
    rates: dict[str, float] = {}
    if config is None:
        return PeakFlops()
    if not isinstance(config, Mapping):
        message = f"was {show_value(config)}; rates per type are needed, as in {{bf16: 989TFLOPS}}"
        issues.append(Issue("peak", config, message, _PEAKS))
        return PeakFlops()
    for key, value in config.items():
        if key not in _PEAKS:
            near = nearest_name(key, _PEAKS)
            issues.append(Issue(f"peak.{key}", value, "is no type of arithmetic", _PEAKS, near))
        elif value is not None:
            try:
                rates[key] = _positive(units.parse_flops)(value)
            except ValueError as error:
                issues.append(Issue(f"peak.{key}", value, str(error)))
    if not any(config.get(key) is not None for key in ("bf16", "fp16")):
        issues.append(Issue("peak", config, "has neither bf16 nor fp16, in which models are served"))
    return PeakFlops(**rates)

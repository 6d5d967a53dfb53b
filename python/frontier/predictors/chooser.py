"""Packs at hand, and which of their predictors prices an operator of a model.

What suits best is decided in `frontier.predictors.select` from facts; here operators become such facts, and
packs are found: those that a scenario names, else those that come with frontier. The first pack that has a
predictor for an operator provides it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import frontier
from frontier.errors import ConfigError, Issue
from frontier.predictors.loaded import OpenPack, opened
from frontier.predictors.select import ATTENTION, BACKENDS, GENERIC, Wanted, choose, wants_skew

if TYPE_CHECKING:
    from frontier.config.step_time import LearnedStepTime
    from frontier.hardware import GpuSpec
    from frontier.models.operators import Attention, FusedMoe, Gemm, Operator
    from frontier.predictors.pack_file import PredictorInfo

_AT = "engine.step_time.learned"
SAME_CHIP = {"h800": "h100", "a800": "a100-80gb"}
"""GPUs that differ from another one in the bandwidth of their links alone (NVIDIA's data sheets): kernels of
one GPU take as long on both."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for one slot of an operator: predictor `index` of `pack`.

    `unmeasured` says that nothing was measured on the plan's GPU for it, `why` in which ways it is not quite
    what was asked for, `doubts` which of these a reader of the results should know (without the family).
    """

    pack: OpenPack
    index: int
    unmeasured: bool
    why: tuple[str, ...]
    doubts: tuple[str, ...] = ()

    @property
    def info(self) -> PredictorInfo:
        """What the pack says of it."""
        return self.pack.infos[self.index]


class Chooser:
    """Chooses predictors for the operators of one GPU; equal questions are answered once."""

    def __init__(
        self,
        packs: Sequence[OpenPack],
        gpu: str,
        *,
        backend: str,
        version: str | None,
        engine_version: str | None = None,
        own_links: bool = False,
    ) -> None:
        """Take the packs in order of preference, the GPU, and whose kernels of which version are meant.

        `engine_version`: that of the engine that runs, if its own kernels are meant.
        `own_links`: its links are not those that measurements of this GPU crossed.
        """
        self._packs = packs
        self._own_links = own_links
        self._gpu = gpu
        self._backend = backend
        self._version = version
        self._engine_version = engine_version
        self._answers: dict[Wanted, Choice | None] = {}

    def __call__(self, operator: Operator) -> dict[str, Choice]:
        """Return the predictors of an operator by slot; slots without one are priced by their bound."""
        found: dict[str, Choice] = {}
        for slot, family in operator.predictor_families.items():
            if slot == "skew" and not ("decode" in found and wants_skew(found["decode"].info)):
                continue
            wanted = _wanted(operator, family, self._gpu, self._backend, self._version)
            wanted = replace(wanted, engine_version=self._engine_version)
            if wanted not in self._answers:
                self._answers[wanted] = self._best(wanted)
            choice = self._answers[wanted]
            if choice is not None:
                found[slot] = choice
        return found

    def _best(self, wanted: Wanted) -> Choice | None:
        """Return the first pack's answer, but attention with its launch only if no pack has it without.

        Attention is short: a launch of 100 us and more says nothing of it, kernels of other GPUs do.
        """
        launched = None
        for choice in (self._from(pack, wanted) for pack in self._packs):
            if choice is None:
                continue
            if wanted.operator not in ATTENTION or choice.info.measurement != "event":
                return choice
            launched = launched or choice
        return launched

    def _from(self, pack: OpenPack, wanted: Wanted) -> Choice | None:
        if wanted.ranks and self._own_links and pack.gpu != GENERIC:
            return None
        if pack.gpu not in (self._gpu, GENERIC):
            return _on_twin(wanted, pack)
        chosen = choose(wanted, pack.infos)
        if chosen is None:
            return None
        return Choice(pack, chosen.index, chosen.unmeasured, chosen.why, chosen.doubts)


def _on_twin(wanted: Wanted, pack: OpenPack) -> Choice | None:
    """Return what a pack of a GPU with the same chip has for work that crosses no link."""
    if wanted.ranks:
        return None
    chosen = choose(replace(wanted, gpu=pack.gpu), pack.infos)
    if chosen is None:
        return None
    told = f"measured on {pack.gpu}, the same chip with other links"
    why = (f"{wanted.operator}: {told}", *chosen.why)
    return Choice(pack, chosen.index, chosen.unmeasured, why, (told, *chosen.doubts))


@lru_cache(maxsize=32)
def chooser_of(
    packs: tuple[OpenPack, ...],
    gpu: str,
    *,
    backend: str,
    version: str | None,
    engine_version: str | None,
    own_links: bool,
) -> Chooser:
    """Return the chooser of these packs, the same for all scenarios that ask alike."""
    return Chooser(
        packs, gpu, backend=backend, version=version, engine_version=engine_version, own_links=own_links
    )


_SAME = 0.01
"""Data sheets round: facts of a chip that differ by less are the same."""


def differences(gpu: GpuSpec) -> tuple[str, ...]:
    """Return in which facts of the chip a GPU differs from the preset of its name, if there is one.

    Compared are those that bounds and features are computed from; a rate left out says nothing.
    """
    preset = _preset(gpu)
    if preset is None:
        return ()
    found = [
        name
        for name in (
            *("num_sms", "memory_bandwidth_bytes_per_s", "l2_bytes"),
            *("compute_efficiency", "memory_efficiency", "kernel_launch_ns"),
        )
        if not math.isclose(getattr(gpu, name), getattr(preset, name), rel_tol=_SAME)
    ]
    rates, known = gpu.peak_flops_per_s.to_plan(), preset.peak_flops_per_s.to_plan()
    found += [f"peak.{name}" for name, rate in rates.items() if rate and not _is_same(rate, known[name])]
    return tuple(found)


def link_differences(gpu: GpuSpec) -> tuple[str, ...]:
    """Return in which links a GPU differs from the preset of its name, if there is one."""
    preset = _preset(gpu)
    if preset is None:
        return ()
    names = ["nvlink_bandwidth_bytes_per_s"]
    if gpu.nvlink_bandwidth_bytes_per_s is None:
        names.append("pcie_bandwidth_bytes_per_s")
    if gpu.nic_bandwidth_bytes_per_s is not None:
        names.append("nic_bandwidth_bytes_per_s")
    return tuple(name for name in names if not _is_same(getattr(gpu, name), getattr(preset, name)))


def _is_same(one: float | None, other: float | None) -> bool:
    return one is other or (one is not None and other is not None and math.isclose(one, other, rel_tol=_SAME))


def _preset(gpu: GpuSpec) -> GpuSpec | None:
    from frontier.hardware import gpu_names, load_gpu  # noqa: PLC0415 - reads YAML

    return load_gpu(gpu.name) if gpu.name in gpu_names() else None


def packs_for(learned: LearnedStepTime, gpu: str, *, pooled: bool = False) -> list[OpenPack]:
    """Return the packs that a scenario names, else those that come with frontier for its GPU.

    Args:
        learned: the scenario's settings.
        gpu: name of the GPU.
        pooled: the GPU is another one than the preset of its name: of the packs that come with frontier,
            only the one pooled over GPUs suits.

    Raises:
        PackError: one of them cannot be read.
        ConfigError: one is of another GPU, or none has predictors of the backend that is asked for.
    """
    if learned.packs is None:
        names = (GENERIC,) if pooled else dict.fromkeys((gpu, SAME_CHIP.get(gpu, gpu), GENERIC))
        paths = [shipped_pack(name) for name in names]
        packs = [opened(path) for path in paths if path is not None]
    else:
        packs = [opened(path) for path in learned.packs]
    issues = [
        Issue(f"{_AT}.packs.{index}", pack.name, f"is a pack of {pack.gpu}, must be of {gpu} or {GENERIC}")
        for index, pack in enumerate(packs)
        if pack.gpu not in (gpu, SAME_CHIP.get(gpu), GENERIC)
    ]
    backends = {info.backend for pack in packs for info in pack.infos}
    if packs and learned.backend != "auto" and learned.backend not in backends:
        message = f"was '{learned.backend}', of which no pack at hand has predictors"
        known = tuple(name for name in ("auto", *BACKENDS) if name in {"auto", *backends})
        issues.append(Issue(f"{_AT}.backend", learned.backend, message, known))
    if issues:
        raise ConfigError(issues)
    return packs


def shipped_pack(name: str) -> Path | None:
    """Return the pack of this GPU that comes with frontier, None if there is none."""
    path = Path(frontier.__file__).parent / "profiles" / f"{name}.safetensors"
    return path if path.is_file() else None


def _wanted(operator: Operator, family: str, gpu: str, backend: str, version: str | None) -> Wanted:
    """Return the facts of an operator that decide which predictor prices it."""
    from frontier.models.operators import (  # noqa: PLC0415 - slow to import
        Attention,
        Communication,
        FusedMoe,
        Gemm,
        MoeExchange,
    )

    wanted = Wanted(operator=family, gpu=gpu, backend=backend, version=version)
    if isinstance(operator, Gemm | FusedMoe):
        width = operator.weight_bytes_per_element
        stored = _stored_as(operator)
        return replace(
            wanted,
            dtype=operator.dtype,
            weight_bytes=width,
            # Where the weights do not say: whole bytes hold no scales.
            block_scaled=operator.dtype == "fp8"
            and (width > 1.0 if stored is None else stored == "fp8_block"),
            stored_as=stored,
            batched=isinstance(operator, Gemm) and operator.batch > 1,
        )
    if isinstance(operator, Attention):
        return replace(
            wanted,
            dtype=operator.dtype,
            kv_cache_dtype=_cache_dtype(operator),
            qk_dim=operator.qk_dim,
            v_dim=operator.v_dim,
            heads=operator.heads,
            kv_heads=operator.kv_heads,
        )
    if isinstance(operator, Communication):
        return replace(
            wanted,
            ranks=operator.ranks,
            nodes=operator.nodes,
            all2all=operator.all2all_backend if isinstance(operator, MoeExchange) else None,
        )
    return wanted


def _stored_as(operator: Gemm | FusedMoe) -> str | None:
    """Return how the quantised weights of an operator are kept."""
    return next((tensor.storage.kind for tensor in operator.weights if tensor.storage.kind != "plain"), None)


def _cache_dtype(operator: Attention) -> str:
    """Return the type of the KV cache, by its bytes; of a latent one, values are a part of the keys."""
    latent = operator.kv_heads == 1 and operator.qk_dim != operator.v_dim
    elements = operator.qk_dim if latent else operator.kv_heads * (operator.qk_dim + operator.v_dim)
    return "fp8" if operator.kv_bytes_per_token < 1.5 * elements else "bf16"

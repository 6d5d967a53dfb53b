"""From the operators of a model to those of a plan, each with the learned predictors that price it.

Which predictor suits an operator is chosen in `frontier.predictors.chooser`; here its answers become the
plan's references and the list of predictors that goes beside the plan. Packs are opened, and predictors
loaded, once per process (`frontier.predictors.loaded`): the scenarios of a sweep share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from frontier.errors import ConfigError, Issue
from frontier.predictors.select import includes_quantisation, is_transferred

if TYPE_CHECKING:
    from frontier import _frontier
    from frontier.config.engine import Engine
    from frontier.hardware import GpuSpec
    from frontier.models import Operator
    from frontier.models.operators import Attention
    from frontier.predictors.chooser import Choice

_WRITES = ("kv_write", "rope")
"""Families of operators that some attention kernels do as well, as `includes` of their predictors says."""
_BOUNDS = "all step times are bounds, as with a roofline"

Stages = Sequence[Sequence["Operator"]]


Choose = Callable[["Operator"], "Mapping[str, Choice]"]
"""Answers with the predictors of an operator by slot; slots left out are priced by their bound."""


@dataclass(frozen=True, slots=True)
class Attached:
    """The operators of a plan, and the predictors that they refer to.

    Attributes:
        stages: the plan's operators, one list per pipeline stage.
        predictors: by index, as the simulator takes them; shared with other scenarios, never changed.
        identities: `id` and `sha256` of each of them, in the same order.
        notes: what was chosen, for who wants to know; results keep them.
        warnings: what a reader of the results should know of the choice.
    """

    stages: list[list[dict[str, Any]]]
    predictors: tuple[_frontier.Predictor, ...] = ()
    identities: tuple[dict[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Used:
    """Predictors in order of first use, and what was found on the way."""

    index: dict[tuple[int, int], int] = field(default_factory=dict)
    predictors: list[_frontier.Predictor] = field(default_factory=list)
    identities: list[dict[str, str]] = field(default_factory=list)
    families: set[str] = field(default_factory=set)
    origins: dict[str, dict[str, dict[str, None]]] = field(default_factory=dict)
    why: dict[str, None] = field(default_factory=dict)
    doubts: dict[str, dict[str, None]] = field(default_factory=dict)
    lacking: dict[str, None] = field(default_factory=dict)

    def reference(self, choice: Choice, calibration: Mapping[str, float]) -> dict[str, Any]:
        """Return the plan's reference to a choice."""
        key = (id(choice.pack), choice.index)
        if key not in self.index:
            self.index[key] = len(self.predictors)
            self.predictors.append(choice.pack.load(choice.index))
            self.identities.append(choice.pack.identity(choice.index))
        family, origin = choice.info.operator, f"{choice.info.backend} {choice.info.version}"
        self.families.add(family)
        self.origins.setdefault(choice.pack.name, {}).setdefault(origin, {})[family] = None
        self.why |= dict.fromkeys(choice.why)
        for doubt in choice.doubts:
            self.doubts.setdefault(doubt, {})[family] = None
        return {
            "index": self.index[key],
            # What was learned on other GPUs alone was not measured on this one, wherever it is kept.
            "unmeasured": choice.unmeasured or is_transferred(choice.info),
            "calibration": calibration.get(family, 1.0),
        }


def attach(stages: Stages, gpu: GpuSpec, engine: Engine) -> Attached:
    """Return the plan's operators with the predictors that the engine's step time asks for.

    A version that was not measured is no error: the nearest one stands in, and the notes say which. Of a GPU
    that is not the preset of its name, no measurement that comes with frontier is used.

    Args:
        stages: operators of one forward pass on one rank, one list per pipeline stage.
        gpu: the GPU that they run on.
        engine: settings; with a `roofline` step time no operator has a predictor.

    Raises:
        ConfigError: a pack is of another GPU, no pack has predictors of the backend, a calibration is for
            operators without predictors, or there are settings for packs and no pack.
        PackError: a pack cannot be read.
    """
    learned = engine.step_time.learned
    if learned is None:
        return Attached([[operator.to_plan() for operator in stage] for stage in stages])
    from frontier.predictors import chooser  # noqa: PLC0415 - only where predictors are wanted

    named = learned.packs is not None
    other_chip, other_links = chooser.differences(gpu), chooser.link_differences(gpu)
    packs = chooser.packs_for(learned, gpu.name, pooled=bool(other_chip))
    own_links = bool(other_links) and not named
    warnings = tuple(_other_gpu(gpu, other_chip, other_links, named=named))
    backend = engine.name if learned.backend == "auto" else learned.backend
    if not packs:
        # Before its settings are checked against packs: without any, there is nothing to check them against.
        if learned.backend != "auto" or learned.version is not None or learned.calibration:
            path = "engine.step_time.learned"
            message = f"has settings, but no pack comes with frontier for {gpu.name}; name one in packs"
            raise ConfigError(Issue(path, learned.model_dump(exclude_none=True), message))
        bounds = Attached([[operator.to_plan() for operator in stage] for stage in stages])
        told = f"no pack of predictors comes with frontier for {gpu.name}: {_BOUNDS}"
        return replace(bounds, warnings=(*warnings, told))
    engine_version = engine.version if backend == engine.name else None
    choose = chooser.chooser_of(
        tuple(packs),
        gpu.name,
        backend=backend,
        version=learned.version,
        engine_version=engine_version,
        own_links=own_links,
    )
    attached = attach_chosen(stages, choose, learned.calibration or {})
    if not attached.predictors:
        names = ", ".join(pack.name for pack in packs)
        told = f"no predictor of {names} suits an operator of the model: {_BOUNDS}"
        return replace(attached, warnings=(*warnings, told))
    return replace(attached, warnings=(*warnings, *attached.warnings))


def _other_gpu(gpu: GpuSpec, chip: Sequence[str], links: Sequence[str], *, named: bool) -> Iterable[str]:
    """Yield what it means that a GPU is not the preset of its name."""
    if chip:
        told = f"{gpu.name} differs from the preset of that name in {', '.join(chip)}"
        if named:
            yield f"{told}: times of the packs given may not be its own"
        else:
            yield f"{told}: nothing measured on {gpu.name} is used, only what was learned over several GPUs"
    elif links:
        told = f"{gpu.name} differs from the preset of that name in {', '.join(links)}"
        used = (
            "times of collectives may not be its own"
            if named
            else f"no collective measured on {gpu.name} is used"
        )
        yield f"{told}: {used}"


def attach_chosen(stages: Stages, choose: Choose, calibration: Mapping[str, float]) -> Attached:
    """Return the plan's operators with the predictors that `choose` answers.

    Args:
        stages: operators of one forward pass on one rank, one list per pipeline stage.
        choose: see `Choose`.
        calibration: factors of the user's own, by family.

    Raises:
        ConfigError: a factor is for a family of which no predictor is in use.
        PackError: a predictor is damaged.
    """
    used = _Used()
    planned = []
    for stage in stages:
        done = _done_by_attention(stage, choose, used)
        planned.append(
            [
                _planned(each, choose, calibration, used)
                for each in _without_quantisation(stage, choose, used)
                if each.family not in done
            ]
        )
    issues = [
        _without_effect(family, factor, used)
        for family, factor in calibration.items()
        if family not in used.families
    ]
    if issues:
        raise ConfigError(issues)
    warnings = tuple(f"{doubt}: {', '.join(families)}" for doubt, families in used.doubts.items())
    return Attached(planned, tuple(used.predictors), tuple(used.identities), tuple(_notes(used)), warnings)


def _done_by_attention(stage: Sequence[Operator], choose: Choose, used: _Used) -> set[str]:
    """Return the families whose time is a part of what the attention predictors of a stage say.

    Only if those of all batches say so: an operator is priced for all tokens of a step, or not.
    """
    from frontier.models.operators import Attention  # noqa: PLC0415 - keeps the import of packs light

    kernels = [each for each in stage if isinstance(each, Attention) and each.family != "indexer"]
    parts = [part for kernel in kernels for part in _included(kernel, choose)]
    present = {operator.family for operator in stage}
    done = set()
    for family in _WRITES:
        if family not in present or not any(family in part for part in parts):
            continue
        if all(family in part for part in parts):
            done.add(family)
            used.why[f"{family}: a part of attention as it was measured, not priced apart"] = None
        else:
            told = "a part of some attention as it was measured, not of all: priced apart, in part twice"
            used.why[f"{family}: {told}"] = None
    return done


def _without_quantisation(stage: Sequence[Operator], choose: Choose, used: _Used) -> Sequence[Operator]:
    """Return a stage without the quantisation of inputs where that is a part of the products' times.

    All products of a model that quantise their input have one predictor: they differ in their shape alone.
    """
    from frontier.models.operators import Gemm  # noqa: PLC0415 - keeps the import of packs light

    apart = [each for each in stage if each.component == "quantisation" and each.name.startswith("quant_")]
    products = [each for each in stage if isinstance(each, Gemm) and each.dtype in ("fp8", "int8", "fp4")]
    choices = [choose(each).get("predictor") for each in products]
    if not apart or not any(choice and includes_quantisation(choice.info) for choice in choices):
        return stage
    for name in dict.fromkeys(each.name for each in apart):
        used.why[f"{name}: a part of products as they were measured, not priced apart"] = None
    return [each for each in stage if each not in apart]


def _included(kernel: Attention, choose: Choose) -> Iterable[frozenset[str]]:
    """Yield, of prefills, decodes and mixed batches of a kernel, what the times of their predictor include.

    Mixed batches without a predictor are put together from the other two.
    """
    choices = choose(kernel)
    slots = {"prefill": ["prefill"], "decode": ["decode"], "both": ["prefill", "decode"]}[kernel.phase]
    slots += ["mixed"] if "mixed" in choices else []
    for slot in slots:
        choice = choices.get(slot)
        includes = "" if choice is None else str(choice.info.detail.get("includes", ""))
        yield frozenset(name.strip() for name in includes.split(",") if name.strip())


def _planned(
    operator: Operator, choose: Choose, calibration: Mapping[str, float], used: _Used
) -> dict[str, Any]:
    from frontier.models.operators import Attention  # noqa: PLC0415 - keeps the import of packs light

    choices = choose(operator)
    references = {slot: used.reference(choice, calibration) for slot, choice in choices.items()}
    slots = [slot for slot in operator.predictor_families if slot not in ("skew", "mixed")]
    if not slots or any(slot not in choices for slot in slots):
        used.lacking[operator.name] = None
    if isinstance(operator, Attention) and choices:
        # A kernel that does not pack the query heads of a KV head reads keys and values again for each of
        # them once a prefill is in the batch: so much per further head, as the pack says of its kernels.
        detail = choices["decode"].info.detail if "decode" in choices else {}
        per_head = float(detail.get("mixed_per_head", 0.0))
        factor = 1.0 + per_head * (operator.heads / operator.kv_heads - 1.0)
        operator = replace(operator, mixed_decode_factor=factor, dtype=_bound_dtype(operator, choices))
    return operator.to_plan(references)


def _bound_dtype(operator: Attention, choices: Mapping[str, Choice]) -> str:
    """Return the arithmetic of the bound that an attention operator's predictors are factors on.

    Kernels over an fp8 cache are measured under the name of either type (`select`); a factor on the bound of
    one is none on that of the other. Of unlike slots the first counts: prefills, which arithmetic bounds.
    """
    known = [choice.info.dtype for slot, choice in choices.items() if slot in ("prefill", "decode", "mixed")]
    if operator.dtype != "fp8" or not known or known[0] == "fp8":
        return operator.dtype
    return known[0]


def _without_effect(family: str, factor: float, used: _Used) -> Issue:
    known = tuple(sorted(used.families - {"decode_skew"}))
    message = f"was {factor:g}, has no effect: no predictor of this operator is in use"
    path = f"engine.step_time.learned.calibration.{family}"
    return Issue(path, factor, message, known)


def _notes(used: _Used) -> Iterable[str]:
    """Yield where predictors are from, in which ways they are not what was asked for, and what has none."""
    for pack, origins in used.origins.items():
        listed = "; ".join(f"{origin} for {', '.join(families)}" for origin, families in origins.items())
        yield f"predictors of {pack}: {listed}"
    yield from used.why
    if used.predictors and used.lacking:
        yield f"no predictor, priced by their bound: {', '.join(used.lacking)}"

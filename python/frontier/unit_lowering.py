"""From an attention cluster and its FFN ranks to the step time of their units (`frontier.afd_lowering`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from frontier.afd_lowering import AfdHost, afd_step_time
from frontier.config.engine import CpuOverhead, Engine
from frontier.config.quantization import attends_in_fp8
from frontier.errors import ConfigError
from frontier.models.kv import resolve_kv_cache_dtype
from frontier.moe_lowering import routing_plan
from frontier.predictors.attach import Attached, attach

if TYPE_CHECKING:
    from frontier.config.afd_facts import AfdUnit
    from frontier.config.views import ClusterView
    from frontier.disaggregated_lowering import PredictorPool
    from frontier.hardware import GpuSpec
    from frontier.models import Operator


@dataclass(slots=True)
class UnitStepTime:
    """Makes the step time of a unit; predictors are numbered in a pool.

    Attributes:
        view: the attention cluster, which has a unit.
        pool: the predictors of the whole plan.
        attached: what was chosen for either side, in the order of calls.
    """

    view: ClusterView
    pool: PredictorPool
    attached: list[Attached] = field(default_factory=list)

    @property
    def _unit(self) -> AfdUnit:
        unit = self.view.unit
        assert unit is not None
        return unit

    def of(self) -> dict[str, Any]:
        """Return the plan's step time.

        Raises:
            ConfigError: a pack does not suit its GPU, or the model cannot be spread so.
            PackError: a pack that cannot be read.
        """
        unit, view = self._unit, self.view
        scenario, facts = view.scenario, view.facts
        cache = resolve_kv_cache_dtype(facts.model, view.engine.kv_cache_dtype)
        a2f, f2a = unit.transfers(facts.gpu)
        sides = iter((view.engine, unit.engine))

        def attached(stages: Sequence[Sequence[Operator]], gpu: GpuSpec) -> list[list[dict[str, Any]]]:
            found = attach(stages, gpu, _for_side(next(sides), stages))
            found, _ = self.pool.numbered(found, None)
            self.attached.append(found)
            return found.stages

        return afd_step_time(
            facts.model,
            unit.layout,
            attention_gpu=facts.gpu,
            ffn_gpu=unit.facts.gpu,
            a2f=a2f,
            f2a=f2a,
            weight_dtype="auto",
            kv_cache_dtype=view.engine.kv_cache_dtype,
            fp8_attention=attends_in_fp8(facts.gpu, cache),
            attention_host=_host(view.engine, facts.graphs.to_plan(), prepares=True),
            ffn_host=_host(unit.engine, unit.facts.graphs.to_plan(), prepares=False),
            routing=self._routing(scenario.seed, scenario.replication),
            attach=attached,
        )

    def _routing(self, seed: int, replication: int) -> dict[str, Any] | None:
        from frontier.models.spec import MixtureOfExperts  # noqa: PLC0415 - needed here alone

        moe, spec = self._unit.engine.moe, self._unit.facts.model
        if moe is None:
            return None
        experts = [
            (index, group.feed_forward)
            for index, group in enumerate(spec.layers)
            if isinstance(group.feed_forward, MixtureOfExperts)
        ]
        layers = sum(spec.layer_pattern.count(index) for index, _ in experts)
        sizes = {"num_experts": experts[0][1].num_experts, "top_k": experts[0][1].top_k}
        plan = routing_plan(
            moe, sizes, layers, version=self._unit.engine.version, seed=seed, replication=replication
        )
        if plan["eplb"] is not None:
            plan["eplb"] = plan["eplb"] | {"use_async": True}  # the other way is refused
        return plan | {"dbo": None}

    @property
    def merged(self) -> Attached:
        """Both sides as one: what was chosen for either, and told of it."""
        stages = [stage for each in self.attached for stage in each.stages]
        return Attached(
            stages,
            tuple(dict.fromkeys(one for each in self.attached for one in each.predictors)),
            tuple(identity for each in self.attached for identity in each.identities),
            tuple(dict.fromkeys(note for each in self.attached for note in each.notes)),
            tuple(dict.fromkeys(told for each in self.attached for told in each.warnings)),
        )


def unit_step_time(view: ClusterView, pool: PredictorPool) -> tuple[dict[str, Any], Attached]:
    """Return the step time of an attention cluster's units, and the predictors of both sides.

    Raises:
        ConfigError: a pack that does not suit its GPU.
        PackError: a pack that cannot be read.
    """
    made = UnitStepTime(view, pool)
    try:
        return made.of(), made.merged
    except ConfigError as error:
        raise error.placed([view.placed(issue) for issue in error.issues], error.source) from None


def _host(engine: Engine, graphs: Mapping[str, Any], *, prepares: bool) -> AfdHost:
    given = engine.cpu_overhead or CpuOverhead()
    return AfdHost(
        per_step_s=given.per_step / 1e9 if prepares else 0.0,
        per_seq_s=given.per_seq / 1e9 if prepares else 0.0,
        overlapped=engine.hides_host_time if prepares else True,
        per_kernel_launch_s=given.per_kernel_launch / 1e9,
        per_graph_launch_s=given.per_graph_launch / 1e9,
        per_graph_kernel_s=given.per_graph_kernel / 1e9,
        graphs=graphs,
    )


def _for_side(engine: Engine, stages: Sequence[Sequence[Operator]]) -> Engine:
    """Return an engine whose calibration is that of the families of one side.

    A factor for the other side's operators has its effect there.
    """
    learned = engine.step_time.learned
    if learned is None or not learned.calibration:
        return engine
    families = {family for stage in stages for each in stage for family in each.predictor_families.values()}
    kept = {family: factor for family, factor in learned.calibration.items() if family in families}
    learned = learned.model_copy(update={"calibration": kept or None})
    return engine.model_copy(update={"step_time": engine.step_time.model_copy(update={"learned": learned})})

//! The operators of one forward pass on one rank, compiled: pipeline stages, each with its operators over rows and
//! its attention.

use super::attention::{
    Attention, AttentionShape, DECODE_FEATURES, MIXED_FEATURES, NUM_STATIC_FEATURES, PREFILL_FEATURES,
};
use super::attention_operator::{AttentionOperator, SKEW_FEATURES};
use super::batch::BatchShape;
use super::collective::{Collective, Reach};
use super::cost::{Cost, OperatorTime, TotalCost};
use super::device::Device;
use super::elementwise::{self, Elementwise};
use super::expert_layers::{ExpertLayers, ExpertStep};
use super::expert_load::LoadLaw;
use super::fused_moe::{self, FusedMoe, MoeShape};
use super::gemm::{self, Gemm, GemmShape};
use super::learned::{Features, LearnedTable, LearnedTrees, Predictors};
use super::moe_exchange::{self, ExchangeShape, MoeExchange};
use super::row_operator::{Kernel, Learned, RowGroup, RowOperator};
use super::trust::{OperatorTrust, Provenance, TrustTally};
use crate::error::SimError;
use crate::plan::step_time::{
    AttentionSpec, CollectiveKind, Dtype, ExchangePhase, LinksSpec, OperatorSpec, OperatorsSpec,
    PredictorRef, Rows,
};
use crate::predictor::Operator;

/// Row counts of one rank's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowCounts {
    /// Scheduled tokens of the rank's batch.
    pub tokens: u32,
    /// Rows of logits of the rank's batch: requests, and drafts that are verified.
    pub seqs: u32,
    /// Scheduled tokens of all data-parallel ranks.
    pub all_tokens: u32,
    /// Tokens of the rank's batch, dealt out over its tensor-parallel ranks.
    pub sharded_tokens: u32,
}

/// Largest row counts that a program is compiled for.
pub type RowLimits = RowCounts;

/// Time of a rank in one stage: what it does with its own batch, and what all ranks do together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StageCost {
    /// Operators over the rank's own batch.
    pub own: TotalCost,
    /// Operators over the tokens of all data-parallel ranks.
    pub shared: TotalCost,
}

/// One pipeline stage.
#[derive(Clone, Debug)]
struct Stage {
    tokens: RowGroup,
    seqs: RowGroup,
    all_tokens: RowGroup,
    sharded_tokens: RowGroup,
    attention: Vec<AttentionOperator>,
    /// Layers with experts where routing is part of the plan: their operators are in no group.
    experts: Option<Box<ExpertLayers>>,
}

impl Stage {
    /// Returns the cost of the stage, with that of its groups of operators over rows from `of_group`.
    #[inline]
    fn cost(
        &mut self,
        batch: &BatchShape,
        rows: RowCounts,
        useful: RowCounts,
        of_group: impl Fn(&mut RowGroup, u32, u32) -> TotalCost,
    ) -> StageCost {
        let mut own = of_group(&mut self.tokens, rows.tokens, useful.tokens);
        own.plus(&of_group(&mut self.seqs, rows.seqs, useful.seqs));
        own.plus(&of_group(&mut self.sharded_tokens, rows.sharded_tokens, useful.sharded_tokens));
        for operator in &mut self.attention {
            operator.add_to(&mut own, batch);
        }
        StageCost { own, shared: of_group(&mut self.all_tokens, rows.all_tokens, useful.all_tokens) }
    }

    /// Returns the same for two micro-batches of half the rows each; the LM head sees both together, and attention
    /// takes as long for the halves as for the whole.
    fn halves(&mut self, batch: &BatchShape, rows: RowCounts) -> StageCost {
        let twice = |group: &mut RowGroup, rows: u32| {
            let half = group.cost(rows.div_ceil(2));
            let mut both = half;
            both.plus(&half);
            both
        };
        let mut own = twice(&mut self.tokens, rows.tokens);
        own.plus(&self.seqs.cost(rows.seqs));
        own.plus(&twice(&mut self.sharded_tokens, rows.sharded_tokens));
        for operator in &mut self.attention {
            operator.add_to(&mut own, batch);
        }
        StageCost { own, shared: twice(&mut self.all_tokens, rows.all_tokens) }
    }
}

/// A compiled forward pass of one rank.
#[derive(Clone, Debug)]
pub struct Program {
    stages: Vec<Stage>,
    windows: Vec<u32>,
    learned: bool,
}

impl Program {
    /// Compiles the program of `spec` with the predictors that it refers to.
    ///
    /// # Errors
    /// [`SimError::Plan`] if an operator needs a rate, a link or a predictor that is not there.
    pub fn compile(
        spec: &OperatorsSpec,
        limits: RowLimits,
        predictors: &Predictors<'_>,
    ) -> Result<Self, SimError> {
        let windows = windows(spec);
        let compiler =
            Compiler { device: Device::new(&spec.gpu), links: spec.links, windows: &windows, predictors };
        let stage = |(number, operators): (usize, &Vec<OperatorSpec>)| {
            compiler.stage(&format!("step_time.stages[{number}]"), Some(number), operators, limits, spec)
        };
        let stages = spec.stages.iter().enumerate().map(stage).collect::<Result<_, _>>()?;
        let learned = is_learned(spec.stages.iter().flatten());
        Ok(Self { stages, windows, learned })
    }

    /// Compiles a pass of `spec` that drafts, called `name` there, as a program of one stage over the same windows;
    /// `None` if it has no operators.
    ///
    /// # Errors
    /// As [`Program::compile`].
    pub fn compile_draft(
        spec: &OperatorsSpec,
        name: &str,
        operators: &[OperatorSpec],
        limits: RowLimits,
        predictors: &Predictors<'_>,
    ) -> Result<Option<Self>, SimError> {
        if operators.is_empty() {
            return Ok(None);
        }
        let windows = windows(spec);
        let compiler =
            Compiler { device: Device::new(&spec.gpu), links: spec.links, windows: &windows, predictors };
        let stage = compiler.stage(&format!("step_time.draft.{name}"), None, operators, limits, spec)?;
        Ok(Some(Self { stages: vec![stage], windows, learned: is_learned(operators.iter()) }))
    }

    /// Returns whether any operator has a learned predictor.
    pub fn is_learned(&self) -> bool {
        self.learned
    }

    /// Returns the distinct sliding windows, in order of appearance.
    pub fn windows(&self) -> &[u32] {
        &self.windows
    }

    /// Returns the number of pipeline stages.
    pub fn num_stages(&self) -> usize {
        self.stages.len()
    }

    /// Returns the cost of one stage on one rank, by table look-up, and counts it. `rows` are those of `batch`.
    #[inline]
    pub fn stage_cost(&mut self, stage: usize, batch: &BatchShape, rows: RowCounts) -> StageCost {
        self.stages[stage].cost(batch, rows, rows, |group, rows, _| group.cost(rows))
    }

    /// Returns the cost of one stage on one rank whose operators compute `rows` rows, padding included, for a batch
    /// that has `useful` ones. Attention runs over the true lengths.
    #[inline]
    pub fn padded_stage_cost(
        &mut self,
        stage: usize,
        batch: &BatchShape,
        rows: RowCounts,
        useful: RowCounts,
    ) -> StageCost {
        self.stages[stage].cost(batch, rows, useful, RowGroup::padded_cost)
    }

    /// Returns the same for two micro-batches, each with half of the rows.
    pub fn halves_cost(&mut self, stage: usize, batch: &BatchShape, rows: RowCounts) -> StageCost {
        self.stages[stage].halves(batch, rows)
    }

    /// Returns the layers with experts of a stage, which [`Program::stage_cost`] leaves out; `None` where routing is no
    /// part of the plan.
    #[inline]
    pub fn experts(&mut self, stage: usize) -> Option<&mut ExpertLayers> {
        self.stages[stage].experts.as_deref_mut()
    }

    /// Returns the same, evaluating every operator: equal bit for bit.
    pub fn direct_stage_cost(&mut self, stage: usize, batch: &BatchShape, rows: RowCounts) -> StageCost {
        self.stages[stage].cost(batch, rows, rows, |group, rows, _| group.direct(rows))
    }

    /// Returns the share of every operator, stage by stage in program order; FLOPs and bytes are those of one rank.
    /// `dual_batch`: two micro-batches take turns; exchanges are then what they add to computation.
    pub fn breakdown(&mut self, batch: &BatchShape, rows: RowCounts, dual_batch: bool) -> Vec<OperatorTime> {
        let mut times = Vec::new();
        for (number, stage) in self.stages.iter_mut().enumerate() {
            let mut found = Vec::new();
            let together: Vec<usize> =
                stage.all_tokens.operators().iter().map(|operator| operator.position).collect();
            let groups = [
                (&mut stage.tokens, rows.tokens),
                (&mut stage.seqs, rows.seqs),
                (&mut stage.all_tokens, rows.all_tokens),
                (&mut stage.sharded_tokens, rows.sharded_tokens),
            ];
            for (group, rows) in groups {
                for (operator, price) in group.prices(rows) {
                    let price =
                        price.map(|(cost, prediction)| (cost, prediction.seconds, prediction.provenance));
                    let time = operator_time(number, &operator.name, operator.count, price);
                    found.push((operator.position, time));
                }
            }
            for operator in &mut stage.attention {
                let price = operator.price(batch);
                let worst = price.parts.iter().flatten().map(|part| part.provenance).max();
                let price = worst.map(|provenance| (price.cost, price.seconds, provenance));
                let time = operator_time(number, &operator.name, operator.count, price);
                found.push((operator.position, time));
            }
            if let Some(experts) = &mut stage.experts {
                let together_s = found.iter().filter(|(position, _)| together.contains(position));
                let together_s: f64 = together_s.map(|(_, time)| time.seconds).sum();
                let all_s: f64 = found.iter().map(|(_, time)| time.seconds).sum();
                let step = ExpertStep {
                    all_tokens: rows.all_tokens,
                    useful_tokens: rows.all_tokens,
                    tokens: rows.tokens,
                    sharded_tokens: rows.sharded_tokens,
                    dual_batch,
                    own_s: all_s - together_s,
                    together_s,
                    origin: None,
                };
                found.extend(experts.breakdown(&step, number));
            }
            found.sort_by_key(|(position, _)| *position);
            times.extend(found.into_iter().map(|(_, time)| time));
        }
        times
    }

    /// Returns what all times so far rest on, operator by operator in program order; parts of attention apart.
    pub fn trust(&mut self) -> Vec<OperatorTrust> {
        let mut all = Vec::new();
        for stage in &mut self.stages {
            let mut found: Vec<(usize, OperatorTrust)> = Vec::new();
            let groups =
                [&mut stage.tokens, &mut stage.seqs, &mut stage.all_tokens, &mut stage.sharded_tokens];
            for group in groups {
                for ((position, tally), operator) in group.trust().into_iter().zip(group.operators()) {
                    found.push((
                        position,
                        trust_of(operator.name.clone(), tally, kernel_features(&operator.kernel)),
                    ));
                }
            }
            for operator in &stage.attention {
                for (part, tally, names) in operator.trust() {
                    if tally.seconds.iter().any(|&seconds| seconds > 0.0) {
                        let name = format!("{} ({part})", operator.name);
                        found.push((operator.position, trust_of(name, tally, names)));
                    }
                }
            }
            if let Some(experts) = &mut stage.experts {
                for (position, tally, operator) in experts.trust() {
                    let names = kernel_features(&operator.kernel);
                    found.push((position, trust_of(operator.name.clone(), tally, names)));
                }
            }
            found.sort_by_key(|(position, _)| *position);
            all.extend(found.into_iter().map(|(_, trust)| trust));
        }
        all
    }
}

fn trust_of(name: String, tally: TrustTally, names: &'static [&'static str]) -> OperatorTrust {
    let feature = tally.furthest.and_then(|outside| names.get(outside.feature).copied()).unwrap_or("");
    OperatorTrust { name, tally, feature }
}

/// Returns the names of a kernel's features; collectives have their payload.
fn kernel_features(kernel: &Kernel) -> &'static [&'static str] {
    match kernel {
        Kernel::Gemm(_) => &gemm::FEATURES,
        Kernel::FusedMoe(_) => &fused_moe::FEATURES,
        Kernel::Elementwise(_) => &elementwise::FEATURES,
        Kernel::MoeExchange(_) => &moe_exchange::FEATURES,
        Kernel::Collective(_) => &["bytes"],
    }
}

/// Returns the share of an operator; `price` is `None` where nothing ran.
pub(super) fn operator_time(
    stage: usize,
    name: &str,
    count: u32,
    price: Option<(Cost, f64, Provenance)>,
) -> OperatorTime {
    let runs = f64::from(count);
    let (cost, seconds, provenance) = match price {
        Some((cost, seconds, provenance)) => (cost, seconds, Some(provenance)),
        None => (Cost::default(), 0.0, None),
    };
    OperatorTime {
        name: name.to_owned(),
        count,
        seconds: seconds * runs,
        flops: cost.flops * runs,
        bytes: cost.bytes * runs,
        bound: cost.bound(),
        bound_s: cost.seconds() * runs,
        provenance,
        stage,
    }
}

fn is_learned<'a>(mut operators: impl Iterator<Item = &'a OperatorSpec>) -> bool {
    operators.any(|operator| operator.predictors().next().is_some())
}

/// Returns the distinct sliding windows of target and draft, in order of appearance.
fn windows(spec: &OperatorsSpec) -> Vec<u32> {
    let drafts = spec.draft.iter().flat_map(|draft| draft.first_pass.iter().chain(&draft.decode_pass));
    let mut windows = Vec::new();
    for operator in spec.stages.iter().flatten().chain(drafts) {
        if let OperatorSpec::Attention(AttentionSpec { window: Some(window), .. }) = operator
            && !windows.contains(window)
        {
            windows.push(*window);
        }
    }
    windows
}

/// Operators that [`Kernel::Elementwise`] stands for.
const ELEMENTWISE: [Operator; 9] = [
    Operator::RmsNorm,
    Operator::Rope,
    Operator::Activation,
    Operator::KvWrite,
    Operator::Embedding,
    Operator::QuantFp8,
    Operator::MoeGating,
    Operator::MoePermute,
    Operator::Sampler,
];

const fn collective(kind: CollectiveKind) -> Operator {
    match kind {
        CollectiveKind::AllReduce => Operator::AllReduce,
        CollectiveKind::AllGather => Operator::AllGather,
        CollectiveKind::ReduceScatter => Operator::ReduceScatter,
        CollectiveKind::AllToAll => Operator::AllToAll,
        CollectiveKind::SendRecv => Operator::SendRecv,
    }
}

const fn exchange(phase: ExchangePhase) -> Operator {
    match phase {
        ExchangePhase::Dispatch => Operator::MoeDispatch,
        ExchangePhase::Combine => Operator::MoeCombine,
    }
}

/// What compiling an operator needs.
struct Compiler<'a> {
    device: Device,
    links: LinksSpec,
    windows: &'a [u32],
    predictors: &'a Predictors<'a>,
}

impl Compiler<'_> {
    fn stage(
        &self,
        place: &str,
        number: Option<usize>,
        operators: &[OperatorSpec],
        limits: RowLimits,
        spec: &OperatorsSpec,
    ) -> Result<Stage, SimError> {
        let moe = spec.moe.as_ref().and_then(|moe| Some((moe, moe.stages[number?].as_ref()?)));
        let (mut experts, mut exchanges, mut shared) = (None, vec![], vec![]);
        let mut shared_sharded = false;
        let (mut tokens, mut seqs, mut attention) = (vec![], vec![], vec![]);
        let (mut all_tokens, mut sharded_tokens) = (vec![], vec![]);
        for (position, operator) in operators.iter().enumerate() {
            let path = format!("{place}[{position}]");
            if let OperatorSpec::Attention(spec) = operator {
                attention.push(self.attention(spec, position, &path)?);
                continue;
            }
            let (rows, kernel, learned) = self.row_kernel(operator, &path)?;
            let (name, count) = (operator.name().to_owned(), operator.count());
            let bound_factor = self.predictors.bound_factor(&name);
            let operator = RowOperator { position, name, count, kernel, learned, bound_factor };
            if let Some((_, routed)) = moe {
                if position == routed.experts {
                    experts = Some(operator);
                    continue;
                }
                if routed.exchanges.contains(&position) {
                    exchanges.push(operator);
                    continue;
                }
                if routed.shared.contains(&position) {
                    shared_sharded = rows == Rows::ShardedTokens;
                    shared.push(operator);
                    continue;
                }
            }
            match rows {
                Rows::Tokens => tokens.push(operator),
                Rows::Seqs => seqs.push(operator),
                Rows::AllTokens => all_tokens.push(operator),
                Rows::ShardedTokens => sharded_tokens.push(operator),
            }
        }
        let experts = moe.zip(experts).map(|((moe, stage), experts)| {
            let operators = (experts, exchanges, shared);
            Box::new(ExpertLayers::new(moe, stage, operators, shared_sharded, &self.links))
        });
        Ok(Stage {
            experts,
            tokens: RowGroup::new(tokens, limits.tokens),
            seqs: RowGroup::new(seqs, limits.seqs),
            all_tokens: RowGroup::new(all_tokens, limits.all_tokens),
            sharded_tokens: RowGroup::new(sharded_tokens, limits.sharded_tokens),
            attention,
        })
    }

    fn rate(&self, dtype: Dtype, path: &str) -> Result<f64, SimError> {
        self.device.flops_per_s(dtype).ok_or_else(|| SimError::Plan {
            path: format!("{path}.dtype"),
            message: format!("was {}, but the GPU has no rate for it", dtype.name()),
        })
    }

    fn trees(
        &self,
        reference: Option<&PredictorRef>,
        name: &str,
        path: &str,
        of: &Features<'_>,
    ) -> Result<Option<LearnedTrees>, SimError> {
        reference.map(|reference| LearnedTrees::new(reference, self.predictors, name, path, of)).transpose()
    }

    /// Returns the rows, kernel and predictor of an operator other than attention.
    fn row_kernel(
        &self,
        operator: &OperatorSpec,
        place: &str,
    ) -> Result<(Rows, Kernel, Option<Learned>), SimError> {
        let path = format!("{place}.predictor");
        // One row: enough to tell the shape. Answers go into a table, so nothing is gained by fixing features.
        let learn = |reference: &Option<PredictorRef>, name: &str, of: (&[Operator], &[&str], &[f32])| {
            let of = Features { expected: of.0, names: of.1, sample: of.2, num_statics: 0 };
            let trees = self.trees(reference.as_ref(), name, &path, &of)?;
            Ok::<_, SimError>(trees.map(|trees| Learned::Trees(Box::new(trees))))
        };
        Ok(match operator {
            OperatorSpec::Gemm(spec) => {
                let shape = GemmShape {
                    k: spec.k,
                    n: spec.n,
                    batch: spec.batch,
                    weight_bytes: spec.weight_bytes,
                    activation_bytes: spec.activation_bytes,
                    model_share: spec.model_share,
                };
                let kernel = Gemm::new(&self.device, self.rate(spec.dtype, place)?, &shape);
                let sample = kernel.features(1, &kernel.cost(1));
                let learned =
                    learn(&spec.predictor, &spec.name, (&[Operator::Gemm], &gemm::FEATURES, &sample))?;
                (spec.rows, Kernel::Gemm(kernel), learned)
            }
            OperatorSpec::FusedMoe(spec) => {
                let shape = MoeShape {
                    num_experts: spec.num_experts,
                    top_k: spec.top_k,
                    redundant_experts: spec.redundant_experts,
                    expert_ranks: spec.expert_ranks,
                    hidden: spec.hidden,
                    intermediate: spec.intermediate,
                    gated: spec.gated,
                    weight_bytes: spec.weight_bytes,
                    activation_bytes: spec.activation_bytes,
                    law: LoadLaw::of(spec.imbalance),
                    model_share: spec.model_share,
                };
                let kernel = FusedMoe::new(&self.device, self.rate(spec.dtype, place)?, &shape);
                let loads = kernel.loads(1);
                let sample = kernel.features(1, &loads, &kernel.cost_of(1, &loads));
                let learned = learn(
                    &spec.predictor,
                    &spec.name,
                    (&[Operator::FusedMoe], &fused_moe::FEATURES, &sample),
                )?;
                (spec.rows, Kernel::FusedMoe(kernel), learned)
            }
            OperatorSpec::Elementwise(spec) => {
                let kernel = Elementwise::new(&self.device, spec.bytes_per_row);
                let learned = learn(
                    &spec.predictor,
                    &spec.name,
                    (&ELEMENTWISE, &elementwise::FEATURES, &kernel.features(1)),
                )?;
                (spec.rows, Kernel::Elementwise(kernel), learned)
            }
            OperatorSpec::Collective(spec) => {
                let reach = Reach {
                    ranks: spec.ranks,
                    nodes: spec.nodes,
                    node: self.links.node,
                    network: self.links.network,
                };
                let kernel = Collective::new(&self.device, &reach, spec.kind, spec.bytes_per_row);
                let expected = [collective(spec.kind)];
                let table =
                    |reference| LearnedTable::new(reference, self.predictors, &spec.name, &path, &expected);
                let learned = spec.predictor.as_ref().map(table).transpose()?.map(Learned::Table);
                (spec.rows, Kernel::Collective(kernel), learned)
            }
            OperatorSpec::MoeExchange(spec) => {
                let shape = ExchangeShape {
                    hidden: spec.hidden,
                    top_k: spec.top_k,
                    num_experts: spec.num_experts,
                    ranks: spec.ranks,
                    nodes: spec.nodes,
                    bytes_per_element: spec.bytes_per_element,
                };
                let node = self.links.node.filter(|_| spec.nodes < spec.ranks);
                let network = self.links.network.filter(|_| spec.nodes > 1);
                let kernel = MoeExchange::new(&self.device, node, network, &shape);
                let learned = learn(
                    &spec.predictor,
                    &spec.name,
                    (&[exchange(spec.phase)], &moe_exchange::FEATURES, &kernel.features(1)),
                )?;
                (spec.rows, Kernel::MoeExchange(kernel), learned)
            }
            OperatorSpec::Attention(_) => unreachable!("Invariant: attention is compiled apart"),
        })
    }

    fn attention(
        &self,
        spec: &AttentionSpec,
        position: usize,
        path: &str,
    ) -> Result<AttentionOperator, SimError> {
        let shape = AttentionShape {
            phase: spec.phase,
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            qk_dim: spec.qk_dim,
            v_dim: spec.v_dim,
            kv_bytes_per_token: spec.kv_bytes_per_token,
            activation_bytes: spec.activation_bytes,
            window: spec.window.and_then(|window| self.windows.iter().position(|&known| known == window)),
            window_tokens: spec.window,
            span: spec.span,
            model_share: spec.model_share,
        };
        let kernel = Attention::new(&self.device, self.rate(spec.dtype, path)?, &shape);
        let sample: [f32; NUM_STATIC_FEATURES] = kernel.static_features().map(|value| value as f32);
        let learn = |reference: &Option<PredictorRef>, part: &str, expected: Operator, names: &[&str]| {
            let path = format!("{path}.predictors.{part}");
            let name = format!("{}.{part}", spec.name);
            let of =
                Features { expected: &[expected], names, sample: &sample, num_statics: NUM_STATIC_FEATURES };
            self.trees(reference.as_ref(), &name, &path, &of)
        };
        let slots = &spec.predictors;
        let mut decode = learn(&slots.decode, "decode", Operator::DecodeAttention, &DECODE_FEATURES)?;
        let skew = learn(&slots.skew, "skew", Operator::DecodeSkew, &DECODE_FEATURES)?;
        if let (Some(decode), Some(_)) = (&mut decode, &skew) {
            decode.leave_to_others(&SKEW_FEATURES);
        }
        Ok(AttentionOperator {
            position,
            name: spec.name.clone(),
            count: spec.count,
            kernel,
            prefill: learn(&slots.prefill, "prefill", Operator::PrefillAttention, &PREFILL_FEATURES)?,
            decode,
            skew,
            mixed: learn(&slots.mixed, "mixed", Operator::MixedAttention, &MIXED_FEATURES)?,
            mixed_decode_factor: spec.mixed_decode_factor,
            bound_factor: self.predictors.bound_factor(&spec.name),
            tallies: [TrustTally::default(); 3],
        })
    }
}

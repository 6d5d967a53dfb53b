//! The layers with experts of one pipeline stage where routing is part of the plan: loads are drawn, and every layer
//! takes as long as its slowest rank.
//!
//! | room | holds |
//! |---|---|
//! | [`popularity`] | chances that a token visits each expert, by layer and time |
//! | [`placement`], [`arrangement`] | which rank holds which experts, and load balancing |
//! | [`load_draw`] | draws of the loads of experts |
//! | [`reach`] | how many tokens a rank receives |
//! | [`ranks`], [`straggler`] | the slowest rank, as a table of quantiles |
//! | [`exchanges`], [`shared`] | dispatch and combine, shared experts |
//! | [`overlap`] | shared experts beside routed ones, two micro-batches |
//!
//! An exchange (`DeepEP`) is priced for the rank that receives most: as one over so many rows that each rank of an even
//! exchange would receive as many tokens. Collectives that gather all tokens do not depend on routing.
//!
//! Left out: correlations between the experts of a token (it chooses them independently, but for their number), between
//! tokens, and between layers; routing limited to groups of experts.

pub mod arrangement;
pub mod exchanges;
pub mod load_draw;
pub mod overlap;
pub mod placement;
pub mod popularity;
pub mod ranks;
pub mod reach;
pub mod shared;
pub mod straggler;

use std::collections::BTreeMap;

use self::arrangement::{Arrangements, ExpertCounts};
use self::exchanges::Exchanges;
use self::load_draw::LoadDraw;
use self::overlap::{Busy, MicroBatch, beside, two_micro_batches};
use self::placement::Placement;
use self::popularity::{Chances, Popularity};
use self::ranks::Ranks;
use self::reach::reaches;
use self::shared::Shared;
use self::straggler::{Layer, RankLoads, Table, TableBuilder};
use super::cost::{OperatorTime, TotalCost};
use super::fused_moe::FusedMoe;
use super::row_operator::{Kernel, RowOperator};
use super::trust::TrustTally;
use crate::plan::step_time::{LinksSpec, MoeSampling, MoeSpec, MoeStageSpec, RoutingSpec};
use crate::rng::{RngStreams, Stream, mix, open_unit};

/// Row counts up to this have a table of their own; above, there are this many per factor of two.
const GRID: u32 = 8;

/// Which step of which engine is priced; popularity and draws depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepOrigin {
    /// Number of the replica.
    pub replica: u32,
    /// Steps that it ran before.
    pub step: u64,
}

/// What a step brings to the layers with experts.
#[derive(Clone, Copy, Debug)]
pub struct ExpertStep {
    /// Rows of all data-parallel ranks, padding included.
    pub all_tokens: u32,
    /// Those of them that are no padding: what padding computes is no useful work.
    pub useful_tokens: u32,
    /// Most rows of one rank.
    pub tokens: u32,
    /// The same where its tensor-parallel ranks share them.
    pub sharded_tokens: u32,
    /// Two micro-batches take turns.
    pub dual_batch: bool,
    /// Time of the slowest rank's other operators in the stage, in seconds.
    pub own_s: f64,
    /// Time of what all ranks do together otherwise (collectives over all tokens), in seconds.
    pub together_s: f64,
    /// Which step; `None` for a typical one: without noise, once experts were first rearranged.
    pub origin: Option<StepOrigin>,
}

/// The layers with experts of one stage.
#[derive(Clone, Debug)]
pub struct ExpertLayers {
    experts: RowOperator,
    kernel: FusedMoe,
    exchanges: Exchanges,
    shared: Shared,
    shared_overlap_max_tokens: u32,
    /// Layers with experts over all layers of the stage.
    share_of_layers: f64,
    balanced: bool,
    sampling: MoeSampling,
    popularity: Popularity,
    arrangements: Arrangements,
    /// Seconds that a rank takes to fetch an expert's weights.
    fetch_s: f64,
    /// By popularity, arrangement and rows.
    tables: BTreeMap<(u64, u32, u32), Table>,
    asked: BTreeMap<(u64, u32, u32), f64>,
    streams: RngStreams,
    first_layer: u32,
    step_key: u64,
}

impl ExpertLayers {
    /// Returns the layers of `stage` under the routing of `spec`. `operators` are the routed experts, the exchanges and
    /// the shared experts.
    pub fn new(
        spec: &MoeSpec,
        stage: &MoeStageSpec,
        operators: (RowOperator, Vec<RowOperator>, Vec<RowOperator>),
        shared_sharded: bool,
        links: &LinksSpec,
    ) -> Self {
        let (experts, exchanges, shared) = operators;
        let Kernel::FusedMoe(kernel) = &experts.kernel else {
            unreachable!("Invariant: the plan was checked to name routed experts");
        };
        let kernel = kernel.clone();
        let shape = *kernel.shape();
        let layers = experts.count;
        let counts = ExpertCounts {
            num_experts: shape.num_experts,
            redundant_experts: shape.redundant_experts,
            ranks: shape.expert_ranks,
            layers,
        };
        let streams = RngStreams::new(spec.seed, spec.replication);
        let place = (stage.first_layer, layers);
        let popularity =
            Popularity::new(&spec.routing, spec.drift, (shape.num_experts, shape.top_k), place, streams);
        let link = if stage.nodes > 1 { links.network } else { links.node };
        let fetch_s = link.map_or(0.0, |link| {
            kernel.weight_bytes_per_expert() / (link.bandwidth_bytes_per_s * link.efficiency)
        });
        Self {
            share_of_layers: f64::from(layers) / f64::from(stage.layers),
            kernel,
            exchanges: Exchanges::new(exchanges),
            shared: Shared::new(shared, shared_sharded),
            shared_overlap_max_tokens: spec.shared_overlap_max_tokens,
            balanced: matches!(spec.routing, RoutingSpec::Balanced),
            sampling: spec.sampling,
            popularity,
            arrangements: Arrangements::new(spec.placement, counts, spec.eplb),
            fetch_s,
            tables: BTreeMap::new(),
            asked: BTreeMap::new(),
            step_key: streams.get(&format!("moe.steps.{}", stage.first_layer)).bits(),
            streams,
            first_layer: stage.first_layer,
            experts,
        }
    }

    /// Returns the time of the stage, in seconds, and the work of one rank in these layers.
    pub fn stage(&mut self, step: &ExpertStep) -> (f64, TotalCost) {
        let (seconds, work, _) = self.parts(step, true);
        (seconds, work)
    }

    /// Returns the time of the stage, the work, and the time that experts, exchanges and shared experts add to it.
    fn parts(&mut self, step: &ExpertStep, counted: bool) -> (f64, TotalCost, Exposed) {
        if step.all_tokens == 0 {
            return (step.own_s + step.together_s, TotalCost::default(), Exposed::default());
        }
        let halves = if step.dual_batch { 2.0 } else { 1.0 };
        let half = |rows: u32| if step.dual_batch { rows.div_ceil(2) } else { rows };
        let (layers, routed) = self.routed(half(step.all_tokens), step.origin, counted, halves);
        let rows = half(if self.shared.sharded { step.sharded_tokens } else { step.tokens });
        let (busy, mut work) = self.shared.cost(rows, counted);
        for _ in 1..halves as u32 {
            let again = work;
            work.plus(&again);
        }
        work.seconds += layers.seconds * halves;
        work.flops += self.flops(step.useful_tokens);
        work.bytes += layers.bytes * halves;
        work.active_s += layers.compute_s.max(layers.memory_s).min(layers.seconds) * halves;
        let exposed = if step.dual_batch {
            self.dual_batch(step, &layers, routed, busy.seconds)
        } else {
            self.one_batch(step, &layers, routed, &busy, rows)
        };
        let seconds = step.own_s + step.together_s + exposed.sum() + self.rearranging_s(step.origin);
        (seconds, work, exposed)
    }

    fn one_batch(&self, step: &ExpertStep, layers: &Layer, routed: f64, busy: &Busy, rows: u32) -> Exposed {
        let [out, back] = layers.exchanges_s;
        let scale = routed / layers.seconds;
        // What a rank sends, it sends of its own tokens: more than its share takes longer.
        let extra = self.exchanges.even_s(f64::from(step.sharded_tokens))
            - self.exchanges.even_s(f64::from(step.all_tokens) / f64::from(self.kernel.shape().expert_ranks));
        let mut shared_s = busy.seconds;
        if rows <= self.shared_overlap_max_tokens {
            let beside_s = step.together_s + routed;
            let others = Busy { seconds: beside_s, compute_s: layers.compute_s, memory_s: layers.memory_s };
            shared_s = beside(&others, busy) - beside_s;
        }
        Exposed {
            experts: (layers.seconds - out - back) * scale,
            exchanges: [out * scale + extra.max(0.0), back * scale],
            shared: shared_s,
        }
    }

    fn dual_batch(&self, step: &ExpertStep, layers: &Layer, routed: f64, shared_s: f64) -> Exposed {
        let count = f64::from(self.experts.count);
        let (scale, [out, back]) = (routed / layers.seconds / count, layers.exchanges_s);
        let in_layers = step.own_s * self.share_of_layers;
        let micro_batch = MicroBatch {
            before_s: in_layers / 2.0 / count + shared_s / count,
            dispatch_s: out * scale,
            experts_s: (layers.seconds - out - back) * scale,
            combine_s: back * scale,
        };
        let all = two_micro_batches(&micro_batch, self.experts.count) - in_layers;
        let experts_s = 2.0 * micro_batch.experts_s * count;
        let left = (all - experts_s - 2.0 * shared_s).max(0.0);
        let both = (out + back).max(f64::MIN_POSITIVE);
        Exposed {
            experts: experts_s,
            exchanges: [left * out / both, left * back / both],
            shared: 2.0 * shared_s,
        }
    }

    /// Returns useful FLOPs of the routed experts of an average rank.
    fn flops(&self, all_tokens: u32) -> f64 {
        self.kernel.flops(all_tokens) * f64::from(self.experts.count)
    }

    /// Returns the mean layer sums for `rows` tokens, and the time that this step takes for them.
    fn routed(&mut self, rows: u32, origin: Option<StepOrigin>, counted: bool, runs: f64) -> (Layer, f64) {
        let step = origin.map_or_else(|| self.arrangements.settled_step(), |origin| origin.step);
        let epoch = self.popularity.epoch(step);
        let (number, _) = self.arrangements.number(step);
        let id = self.arrangements.get(number, &self.popularity).id;
        let level = match (self.sampling, origin) {
            (MoeSampling::Draw, Some(origin)) => Some(self.level(origin)),
            _ => None,
        };
        let (below, above) = neighbours(rows);
        let weight = if above == below { 0.0 } else { f64::from(rows - below) / f64::from(above - below) };
        let (mut mean, mut seconds) = (Layer::default(), 0.0);
        for (rows, weight) in [(below, 1.0 - weight), (above, weight)] {
            if weight <= 0.0 {
                continue;
            }
            let key = (epoch, id, rows);
            if !self.tables.contains_key(&key) {
                let table = self.table(epoch, number, rows);
                self.tables.insert(key, table);
            }
            if counted {
                *self.asked.entry(key).or_insert(0.0) += weight * runs;
            }
            let table = &self.tables[&key];
            mean.add(&table.mean, weight);
            seconds += weight * level.map_or(table.mean.seconds, |level| table.at(level));
        }
        (mean, seconds)
    }

    /// Returns the level at which a step draws, in (0, 1).
    fn level(&self, origin: StepOrigin) -> f64 {
        open_unit(mix(mix(self.step_key ^ u64::from(origin.replica)) ^ origin.step))
    }

    /// Returns the time for which ranks stop before a step to fetch experts, in seconds.
    fn rearranging_s(&mut self, origin: Option<StepOrigin>) -> f64 {
        let Some(origin) = origin else { return 0.0 };
        let (number, stops) = self.arrangements.number(origin.step);
        if !stops {
            return 0.0;
        }
        f64::from(self.arrangements.get(number, &self.popularity).fetched) * self.fetch_s
    }

    /// Makes the table of `rows` tokens.
    #[cold]
    fn table(&mut self, epoch: u64, number: u64, rows: u32) -> Table {
        let layers = self.experts.count;
        let draws =
            if self.balanced { 1 } else { straggler::draws_per_layer(layers, self.popularity.drifts()) };
        let arrangement = self.arrangements.get(number, &self.popularity).clone();
        let mut builder = TableBuilder::default();
        for layer in 0..layers {
            let placement = &arrangement.placements[layer as usize];
            let chances = self.popularity.of(layer as usize, epoch);
            // Equal random numbers for all tables, so that times move smoothly with rows.
            let mut stream = self.streams.get(&format!("moe.loads.{}", self.first_layer + layer));
            self.draw_layer(placement, &chances, rows, draws, &mut stream, &mut builder);
        }
        let mut stream = self.streams.get(&format!("moe.sums.{}", self.first_layer));
        builder.finish(layers, &mut stream)
    }

    /// Adds `draws` draws of one layer.
    fn draw_layer(
        &mut self,
        placement: &Placement,
        chances: &Chances,
        rows: u32,
        draws: u32,
        stream: &mut Stream,
        builder: &mut TableBuilder,
    ) {
        let slots = placement.slot_chances(&chances.visited);
        let top_k = self.kernel.shape().top_k;
        // Who gathers all tokens does not ask how many reach each rank.
        let reaches = if self.exchanges.operators.is_empty() {
            Vec::new()
        } else {
            reaches(placement, &chances.independent, top_k)
        };
        let mean_share = reaches.iter().map(|reach| reach.share).sum::<f64>() / reaches.len().max(1) as f64;
        let prices = self.rank_prices(rows, mean_share);
        let (mut loads, mut ranks) = (Vec::new(), RankLoads::default());
        let mut law = LoadDraw::new(&placement.slots, slots, rows);
        for _ in 0..draws {
            if self.balanced {
                even_loads(&mut loads, placement.slots.len(), rows, self.kernel.shape().top_k);
            } else {
                law.draw(stream, &mut loads);
            }
            ranks.set(&loads, placement.per_rank);
            if !self.exchanges.operators.is_empty() {
                let noise = (!self.balanced).then_some(&mut *stream);
                ranks.set_tokens(&reaches, rows, self.kernel.shape().top_k, noise);
            }
            let slowest = ranks.slowest(rows, &prices);
            let (loads, tokens) = ranks.of(slowest);
            let exchange_rows = prices.rows(tokens);
            let (cost, prediction) = self.experts.price_loads(rows, &loads);
            straggler::note(&mut builder.experts, &prediction);
            let mut exchanges_s = [0.0; 2];
            for (index, seconds) in exchanges_s.iter_mut().enumerate().take(self.exchanges.operators.len()) {
                let prediction = self.exchanges.predict(index, exchange_rows);
                straggler::note(&mut builder.exchanges[index], &prediction);
                *seconds = prediction.seconds;
            }
            builder.push(&straggler::layer(&cost, prediction.seconds, exchanges_s));
        }
    }

    /// Returns what ranks are compared by. `mean_share`: share of all tokens that an average rank receives.
    fn rank_prices(&mut self, rows: u32, mean_share: f64) -> Ranks {
        let shape = self.kernel.shape();
        if self.exchanges.operators.is_empty() {
            let kernel = self.kernel.clone();
            return Ranks { kernel, rows_per_token: 0.0, least_rows: 0.0, at_least_s: 0.0, per_row_s: 0.0 };
        }
        let ranks = f64::from(shape.expert_ranks);
        // Share of the tokens that each rank of an even exchange receives.
        let even_reach = 1.0 - libm::pow(1.0 - 1.0 / ranks, f64::from(shape.top_k));
        let own = f64::from(rows) / ranks;
        let least = own * mean_share / even_reach;
        let (low, high) = (self.exchanges.seconds(least), self.exchanges.seconds(2.0 * least));
        Ranks {
            kernel: self.kernel.clone(),
            rows_per_token: own / (f64::from(rows) * even_reach),
            least_rows: least,
            at_least_s: low,
            per_row_s: (high - low) / least,
        }
    }

    /// Returns the shares of the operators in a typical step, each with its position.
    pub fn breakdown(&mut self, step: &ExpertStep, stage: usize) -> Vec<(usize, OperatorTime)> {
        let (_, _, exposed) = self.parts(step, false);
        let mut found = Vec::new();
        if step.all_tokens > 0 {
            let mut add = |operator: &mut RowOperator, rows: u32, seconds: f64| {
                let (cost, prediction) = operator.price(rows.max(1));
                let runs = f64::from(operator.count);
                let time = OperatorTime {
                    name: operator.name.clone(),
                    count: operator.count,
                    seconds,
                    flops: cost.flops * runs,
                    bytes: cost.bytes * runs,
                    bound: cost.bound(),
                    bound_s: cost.seconds() * runs,
                    provenance: Some(prediction.provenance),
                    stage,
                };
                found.push((operator.position, time));
            };
            add(&mut self.experts, step.all_tokens, exposed.experts);
            for (operator, seconds) in self.exchanges.operators.iter_mut().zip(exposed.exchanges) {
                add(operator, step.sharded_tokens, seconds);
            }
            let rows = if self.shared.sharded { step.sharded_tokens } else { step.tokens };
            let (busy, _) = self.shared.cost(rows, false);
            for operator in &mut self.shared.operators {
                let alone = operator.price(rows.max(1)).1.seconds * f64::from(operator.count);
                add(operator, rows, alone * exposed.shared / busy.seconds);
            }
        } else {
            let all =
                std::iter::once(&self.experts).chain(&self.exchanges.operators).chain(&self.shared.operators);
            for operator in all {
                found.push((
                    operator.position,
                    super::program::operator_time(stage, &operator.name, operator.count, None),
                ));
            }
        }
        found
    }

    /// Returns what the times so far rest on, each operator with its position.
    pub fn trust(&mut self) -> Vec<(usize, TrustTally, &RowOperator)> {
        let mut tallies = [TrustTally::default(); 3];
        for (key, asked) in &self.asked {
            let table = &self.tables[key];
            let [out, back] = &table.exchanges;
            for (sum, of_table) in tallies.iter_mut().zip([&table.experts, out, back]) {
                for (seconds, more) in sum.seconds.iter_mut().zip(of_table.seconds) {
                    *seconds += more * asked;
                }
                if let Some(outside) = &of_table.furthest
                    && sum.furthest.as_ref().is_none_or(|known| outside.distance > known.distance)
                {
                    sum.furthest = Some(*outside);
                }
            }
        }
        let routed = std::iter::once(&self.experts).chain(&self.exchanges.operators);
        let mut found: Vec<_> =
            routed.zip(tallies).map(|(operator, tally)| (operator.position, tally, operator)).collect();
        let tallies = self.shared.trust();
        for (operator, tally) in self.shared.operators.iter().zip(tallies) {
            found.push((operator.position, tally, operator));
        }
        found
    }
}

/// Time that the layers with experts add to a stage, in seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Exposed {
    experts: f64,
    exchanges: [f64; 2],
    shared: f64,
}

impl Exposed {
    fn sum(&self) -> f64 {
        self.experts + self.exchanges[0] + self.exchanges[1] + self.shared
    }
}

/// Spreads the visits of `rows` tokens evenly; what is left over goes to the first slots.
fn even_loads(loads: &mut Vec<u32>, slots: usize, rows: u32, top_k: u32) {
    let visits = u64::from(rows) * u64::from(top_k);
    let (each, rest) = (visits / slots as u64, visits % slots as u64);
    loads.clear();
    loads.extend((0..slots as u64).map(|slot| (each + u64::from(slot < rest)) as u32));
}

/// Returns the row counts with tables around `rows`: the same twice where it has one itself.
fn neighbours(rows: u32) -> (u32, u32) {
    if rows <= 2 * GRID {
        return (rows, rows);
    }
    let step = 1 << (rows.ilog2() - GRID.ilog2());
    let below = rows / step * step;
    if below == rows { (rows, rows) } else { (below, below.saturating_add(step)) }
}

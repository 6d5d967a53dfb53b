//! How tokens are routed to experts, as the plan names it, and what the engine does about it.

use serde::Deserialize;

use super::check::{at_least, positive, refuse, share};
use super::{OperatorSpec, OperatorsSpec};
use crate::error::SimError;

/// Routing of the layers with experts. Where a plan has it, the loads of their experts are drawn from it instead of
/// following each operator's `imbalance`, and the layers' time is that of the slowest rank.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeSpec {
    /// Seed of the streams of popularity and loads.
    pub seed: u64,
    /// Replication of the same.
    pub replication: u64,
    /// What a step takes of the distribution of its time.
    pub sampling: MoeSampling,
    /// Popularity of the experts of a layer.
    pub routing: RoutingSpec,
    /// How popularity changes from step to step; `None`: not at all.
    pub drift: Option<DriftSpec>,
    /// Which experts a rank holds.
    pub placement: ExpertPlacement,
    /// Rearranging of experts by load; `None`: never.
    pub eplb: Option<EplbSpec>,
    /// Shared experts run beside the routed ones in steps of up to this many tokens of a rank; 0: never.
    pub shared_overlap_max_tokens: u32,
    /// Two micro-batches whose computation and communication overlap; `None`: never.
    pub dbo: Option<DboSpec>,
    /// Where the layers with experts are in each pipeline stage; `None` for a stage without any.
    pub stages: Vec<Option<MoeStageSpec>>,
}

/// What a step takes of the distribution of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoeSampling {
    /// A draw of its own.
    Draw,
    /// The mean.
    Mean,
}

/// Popularity of the experts of a layer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RoutingSpec {
    /// As evenly as whole tokens allow (forced balance).
    Balanced,
    /// Equal chances: what is uneven is chance.
    Uniform,
    /// The i-th most popular expert gets visits in proportion to `i^-exponent`.
    PowerLaw {
        /// Exponent.
        exponent: f64,
    },
    /// Few experts get most visits.
    Bimodal {
        /// Popular experts of a layer.
        hot_experts: u32,
        /// Share of all visits that they get together.
        hot_share: f64,
    },
    /// Counts of visits.
    Counts {
        /// By window of time, layer and expert; a window with one list is the same for all layers.
        windows: Vec<Vec<Vec<f64>>>,
    },
}

/// How popularity changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriftSpec {
    /// Steps between changes.
    pub step_interval: u32,
    /// Places by which the experts of a layer move in its order of popularity; counts have windows instead, and 0.
    pub shift: u32,
}

/// Which experts a rank holds before any rearranging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertPlacement {
    /// The first rank has the first experts, and so on.
    Linear,
    /// Dealt out one by one.
    RoundRobin,
}

/// Expert-parallel load balancing: copies of popular experts, packed anew every so many steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EplbSpec {
    /// Steps over which loads are counted.
    pub window_size: u32,
    /// Steps between rearrangements; the first comes after a quarter of it.
    pub step_interval: u32,
    /// Weights travel beside the steps, a layer per step, instead of between two of them.
    pub use_async: bool,
}

/// Dual-batch overlap. Ranks agree: each of them must have enough tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DboSpec {
    /// Least tokens of a batch that only decodes.
    pub decode_token_threshold: u32,
    /// Least tokens of any other batch.
    pub prefill_token_threshold: u32,
}

/// The operators of the layers with experts, by position in their stage.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeStageSpec {
    /// The routed experts.
    pub experts: usize,
    /// Exchanges of tokens whose time depends on routing.
    pub exchanges: Vec<usize>,
    /// Shared experts.
    pub shared: Vec<usize>,
    /// Number of the stage's first layer with experts among all of them.
    pub first_layer: u32,
    /// Layers of the stage, with or without experts.
    pub layers: u32,
    /// Nodes that the ranks of the experts are on.
    pub nodes: u32,
}

impl MoeSpec {
    /// Checks the values against the operators.
    pub(super) fn check(&self, operators: &OperatorsSpec) -> Result<(), SimError> {
        let path = "step_time.moe";
        if self.stages.len() != operators.stages.len() {
            let message = format!("has {} entries, must have one per stage", self.stages.len());
            return refuse(path, "stages", message);
        }
        if let Some(drift) = &self.drift {
            at_least("step_time.moe.drift", "step_interval", drift.step_interval, 1)?;
        }
        if let Some(eplb) = &self.eplb {
            at_least("step_time.moe.eplb", "window_size", eplb.window_size, 1)?;
            at_least("step_time.moe.eplb", "step_interval", eplb.step_interval, 1)?;
        }
        for (number, stage) in self.stages.iter().enumerate() {
            if let Some(stage) = stage {
                let path = format!("{path}.stages[{number}]");
                self.check_stage(&path, stage, &operators.stages[number])?;
            }
        }
        Ok(())
    }

    fn check_stage(
        &self,
        path: &str,
        stage: &MoeStageSpec,
        operators: &[OperatorSpec],
    ) -> Result<(), SimError> {
        let Some(OperatorSpec::FusedMoe(experts)) = operators.get(stage.experts) else {
            return refuse(path, "experts", format!("was {}, must be that of routed experts", stage.experts));
        };
        at_least(path, "layers", stage.layers, experts.count)?;
        at_least(path, "nodes", stage.nodes, 1)?;
        if stage.exchanges.len() > 2 {
            let message =
                format!("has {} positions, must be those of dispatch and combine", stage.exchanges.len());
            return refuse(path, "exchanges", message);
        }
        for &position in &stage.exchanges {
            match operators.get(position) {
                Some(OperatorSpec::MoeExchange(exchange)) if exchange.count == experts.count => {}
                _ => return refuse(path, "exchanges", format!("had {position}, must be those of exchanges")),
            }
        }
        for &position in &stage.shared {
            if matches!(operators.get(position), None | Some(OperatorSpec::Attention(_)))
                || position == stage.experts
                || stage.exchanges.contains(&position)
            {
                return refuse(path, "shared", format!("had {position}, must be operators over rows"));
            }
        }
        self.routing.check(experts.num_experts, experts.top_k, stage.first_layer + experts.count)
    }
}

impl RoutingSpec {
    fn check(&self, num_experts: u32, top_k: u32, layers: u32) -> Result<(), SimError> {
        let path = "step_time.moe.routing";
        match self {
            Self::Balanced | Self::Uniform => Ok(()),
            Self::PowerLaw { exponent } => positive(path, "exponent", *exponent),
            Self::Bimodal { hot_experts, hot_share } => {
                at_least(path, "hot_experts", *hot_experts, 1)?;
                share(path, "hot_share", *hot_share)?;
                let most = f64::from(*hot_experts) / f64::from(top_k);
                if *hot_experts >= num_experts || *hot_share >= 1.0 || *hot_share > most {
                    let message = format!(
                        "was {hot_share} for {hot_experts} of {num_experts} experts: there must be others, and a token visits {top_k} different ones"
                    );
                    return refuse(path, "hot_share", message);
                }
                Ok(())
            }
            Self::Counts { windows } => {
                at_least(path, "windows", windows.len() as u32, 1)?;
                for (number, window) in windows.iter().enumerate() {
                    let path = format!("{path}.windows[{number}]");
                    if window.len() != 1 && window.len() < layers as usize {
                        let message =
                            format!("has {} lists, must have 1 or one per layer ({layers})", window.len());
                        return Err(SimError::Plan { path, message });
                    }
                    for counts in window {
                        let visited = counts.iter().filter(|&&count| count > 0.0).count();
                        let plain = counts.iter().all(|count| count.is_finite() && *count >= 0.0);
                        if counts.len() != num_experts as usize || !plain || visited < top_k as usize {
                            let message = format!(
                                "had {} counts, must be {num_experts} that are not negative, at least {top_k} of them above 0",
                                counts.len()
                            );
                            return Err(SimError::Plan { path, message });
                        }
                    }
                }
                Ok(())
            }
        }
    }
}

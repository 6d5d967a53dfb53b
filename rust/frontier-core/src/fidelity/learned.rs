//! A learned predictor at work: features of this run, its bound, the trees, and how far the run lies from what was
//! measured.

use std::sync::Arc;

use super::cost::Cost;
use super::trust::{Outside, Provenance};
use crate::error::SimError;
use crate::plan::step_time::PredictorRef;
use crate::predictor::{BoundParameters, CellMemo, Compiled, Form, LogTable, Operator, Predictor};
use crate::rng::RngStreams;

/// Tolerance of range checks, relative: nothing changes at the very edge, and ratios such as the fill of a wave are
/// rarely measured at exactly 1.
const RANGE_SLACK: f32 = 0.01;

/// Returns whether `x` lies beyond the edges of what was measured.
#[inline]
fn is_outside(x: f32, low: f32, high: f32) -> bool {
    let slack = RANGE_SLACK * x.abs();
    x < low - slack || x > high + slack
}

/// Contexts up to this many times the cache still find part of it warm.
const WARM_UP_TO: f64 = 1.5;

/// Where nothing was learned, a drawn error makes the bound up to this many times too short: generic predictors find
/// medians of 1.3 to 2 and single kernels of 6, so this is an assumption.
const BOUND_ERROR: f64 = 3.0;

/// What the operators of a plan may refer to.
#[derive(Clone, Copy, Debug)]
pub struct Predictors<'a> {
    /// The predictors, by index.
    pub all: &'a [Arc<Predictor>],
    /// Streams that draw each operator's error; `None` for best estimates.
    pub residuals: Option<RngStreams>,
}

/// Time of one run, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Seconds, launch included.
    pub seconds: f64,
    /// How far from measured.
    pub provenance: Provenance,
    /// The feature that is furthest outside the measured range, if any is.
    pub outside: Option<Outside>,
}

impl Predictors<'_> {
    /// Returns the factor on the bound of an operator without a predictor: 1, or a drawn error.
    pub fn bound_factor(&self, name: &str) -> f64 {
        let draw =
            |streams: RngStreams| libm::pow(BOUND_ERROR, streams.get(&format!("residual.{name}")).unit());
        self.residuals.map_or(1.0, draw)
    }
}

impl Prediction {
    /// Returns the time of `cost` by its bound alone, times an operator's factor ([`Predictors::bound_factor`]).
    pub fn unmeasured(cost: &Cost, factor: f64) -> Self {
        Self { seconds: cost.seconds() * factor, provenance: Provenance::Unmeasured, outside: None }
    }
}

/// What table and tree predictors share.
#[derive(Clone, Debug)]
struct Common {
    predictor: Arc<Predictor>,
    /// The user's calibration, the predictor's own, and the error drawn for this replication.
    factor: f64,
    unmeasured: bool,
}

impl Common {
    fn new(
        reference: &PredictorRef,
        predictors: &Predictors<'_>,
        name: &str,
        path: &str,
        expected: &[Operator],
    ) -> Result<Self, SimError> {
        let Some(predictor) = predictors.all.get(reference.index as usize) else {
            return Err(SimError::Plan {
                path: format!("{path}.index"),
                message: format!(
                    "was {}, but {} predictors go beside the plan",
                    reference.index,
                    predictors.all.len()
                ),
            });
        };
        let operator = predictor.identity.operator;
        if !expected.contains(&operator) {
            return Err(SimError::Plan {
                path: format!("{path}.index"),
                message: format!(
                    "was {}, which predicts {operator:?}, must be of {expected:?}",
                    reference.index
                ),
            });
        }
        let drawn = predictors
            .residuals
            .map_or(0.0, |streams| predictor.residuals.at(streams.get(&format!("residual.{name}")).unit()));
        Ok(Self {
            predictor: Arc::clone(predictor),
            factor: reference.calibration * predictor.calibration * libm::exp(drawn),
            unmeasured: reference.unmeasured,
        })
    }

    fn provenance(&self, known: bool, outside: Option<&Outside>) -> Provenance {
        if self.unmeasured {
            Provenance::Unmeasured
        } else if outside.is_some() {
            Provenance::Extrapolated
        } else if known {
            Provenance::Measured
        } else {
            Provenance::Interpolated
        }
    }
}

/// Returns the bound of `cost` under a predictor's parameters, in seconds.
#[inline]
fn bound_s(cost: &Cost, bound: &BoundParameters) -> f64 {
    let compute_s = cost.compute_s * bound.compute_scale;
    let memory_s = cost.memory_s * bound.memory_scale;
    compute_s.max(memory_s).max(cost.network_s * bound.network_scale) + bound.launch_s
}

/// What an operator offers to trees.
#[derive(Clone, Copy, Debug)]
pub struct Features<'a> {
    /// What a predictor must be of.
    pub expected: &'a [Operator],
    /// Names of the operator's features.
    pub names: &'a [&'a str],
    /// Their values in any run, at least those that are the same in every run.
    pub sample: &'a [f32],
    /// How many come first that are fixed when the plan is compiled, with a memo for the rest; 0 where every answer
    /// is kept in a table anyway.
    pub num_statics: usize,
}

/// Trees over the features of an operator of known shape.
#[derive(Clone, Debug)]
pub struct LearnedTrees {
    common: Common,
    compiled: Compiled,
    memo: Option<CellMemo>,
    /// For each of the predictor's features, its place in the operator's list of features.
    columns: Vec<usize>,
    /// Features whose range is not checked (a second predictor answers for them).
    unchecked: Vec<bool>,
    /// The shape was profiled: differences within the measured ranges are of batches alone.
    known_shape: bool,
    /// Factors on the predictor's features, where more KV heads than were profiled stand for more requests.
    fold: Option<Vec<f32>>,
    /// Buffers: the predictor's features, and those of them that the shape leaves open.
    x: Vec<f32>,
    free: Vec<f32>,
}

impl LearnedTrees {
    /// Compiles the predictor `reference` for an operator called `name`. `path` leads to the reference in the plan.
    ///
    /// # Errors
    /// [`SimError::Plan`] if there is no such predictor, if it is a table, or if it wants other features.
    pub fn new(
        reference: &PredictorRef,
        predictors: &Predictors<'_>,
        name: &str,
        path: &str,
        of: &Features<'_>,
    ) -> Result<Self, SimError> {
        let Features { expected, names, sample, num_statics } = *of;
        let common = Common::new(reference, predictors, name, path, expected)?;
        let refuse = |message: String| Err(SimError::Plan { path: format!("{path}.index"), message });
        let predictor = Arc::clone(&common.predictor);
        let Form::Trees(ensemble) = &predictor.form else {
            return refuse(format!("was {}, which is a table, must be trees", reference.index));
        };
        let mut columns = Vec::with_capacity(predictor.features.len());
        for feature in &predictor.features {
            let Some(column) = names.iter().position(|known| known == feature) else {
                return refuse(format!(
                    "was {}, whose feature {feature:?} is not one of this operator's: {}",
                    reference.index,
                    names.join(", ")
                ));
            };
            columns.push(column);
        }
        let fold = fold_of(&predictor, names, sample);
        let folded = |column: usize| sample.get(column).map(|value| value * fold_factor(names[column], fold));
        let fixed: Vec<Option<f32>> =
            columns.iter().map(|&column| folded(column).filter(|_| column < num_statics)).collect();
        let compiled = ensemble.specialise(&fixed);
        let mut shape = Vec::with_capacity(predictor.shape_columns.len());
        for feature in &predictor.shape_columns {
            let column = names.iter().position(|known| known == feature);
            let Some(value) = column.and_then(folded) else {
                return refuse(format!(
                    "was {}, whose shapes name {feature:?}, which is not the same in every run",
                    reference.index
                ));
            };
            shape.push(f64::from(value));
        }
        let known_shape = fold == 1 && predictor.is_measured_shape(&shape);
        Ok(Self {
            memo: (num_statics > 0).then(|| CellMemo::new(&compiled)),
            unchecked: vec![false; columns.len()],
            x: vec![0.0; columns.len()],
            free: vec![0.0; compiled.free().len()],
            fold: (fold > 1)
                .then(|| columns.iter().map(|&column| fold_factor(names[column], fold)).collect()),
            common,
            compiled,
            columns,
            known_shape,
        })
    }

    /// Returns whether it was learned on other GPUs.
    pub fn is_unmeasured(&self) -> bool {
        self.common.unmeasured
    }

    /// Leaves the ranges of these features unchecked.
    pub fn leave_to_others(&mut self, features: &[&str]) {
        for (unchecked, feature) in self.unchecked.iter_mut().zip(&self.common.predictor.features) {
            *unchecked = features.contains(&feature.as_str());
        }
    }

    /// Returns what the trees make of `features` (the operator's): the factor on the bound, and the feature
    /// furthest outside its range.
    #[inline]
    pub fn ratio(&mut self, features: &[f32]) -> (f64, Option<Outside>) {
        for (x, &column) in self.x.iter_mut().zip(&self.columns) {
            *x = features[column];
        }
        if let Some(fold) = &self.fold {
            self.x.iter_mut().zip(fold).for_each(|(x, factor)| *x *= factor);
        }
        for (free, &index) in self.free.iter_mut().zip(self.compiled.free()) {
            *free = self.x[index];
        }
        let ratio = match &mut self.memo {
            Some(memo) => memo.ratio(&self.compiled, &self.free),
            None => libm::exp(f64::from(self.compiled.margin(&self.free))),
        };
        (ratio * self.common.factor, self.outside())
    }

    #[inline]
    fn outside(&self) -> Option<Outside> {
        let ranges = &self.common.predictor.ranges;
        let mut any = false;
        for ((&x, &(low, high)), &unchecked) in self.x.iter().zip(ranges).zip(&self.unchecked) {
            any |= !unchecked && is_outside(x, low, high);
        }
        any.then(|| self.furthest_outside()).flatten()
    }

    #[cold]
    fn furthest_outside(&self) -> Option<Outside> {
        let predictor = &self.common.predictor;
        let mut furthest: Option<Outside> = None;
        for (index, (&x, &(low, high))) in self.x.iter().zip(&predictor.ranges).enumerate() {
            if self.unchecked[index] || !is_outside(x, low, high) {
                continue;
            }
            // What is told is what the operator has.
            let factor = self.fold.as_ref().map_or(1.0, |fold| fold[index]);
            let outside = Outside::new(self.columns[index], x / factor, low / factor, high / factor);
            if furthest.as_ref().is_none_or(|known| outside.distance > known.distance) {
                furthest = Some(outside);
            }
        }
        furthest
    }

    /// Returns the time of a run that costs `cost` and has `features`.
    #[inline]
    pub fn predict(&mut self, cost: &Cost, features: &[f32]) -> Prediction {
        let (ratio, outside) = self.ratio(features);
        Prediction {
            seconds: bound_s(cost, &self.common.predictor.bound) * ratio,
            provenance: self.common.provenance(self.known_shape, outside.as_ref()),
            outside,
        }
    }

    /// Returns the seconds that a run over `kv_bytes` of keys and values takes longer than the predictor says,
    /// because its measurements found them in the cache and a model's layers do not.
    #[inline]
    pub fn cold_s(&self, kv_bytes: f64) -> f64 {
        let Some(cold) = &self.common.predictor.cold else {
            return 0.0;
        };
        let end = WARM_UP_TO * cold.l2_bytes;
        let warm_share = ((end - kv_bytes) / (end - cold.l2_bytes)).clamp(0.0, 1.0);
        cold.s_per_byte * kv_bytes * warm_share * self.common.factor
    }
}

/// Returns as how many requests one is to be taken, so that its KV heads are as many as were profiled.
///
/// `FlashAttention` works on pairs of a request and a KV head, each with its own queries, keys and values, so that one
/// request of 32 heads is four of eight. Trees know nothing beyond the heads that they saw. (Where its kernels were
/// profiled with up to 64 KV heads, both ways of asking agree within 2 % at 32, 6 % at 64.) Nothing is gained where another
/// property of the shape then lies outside what was profiled.
fn fold_of(predictor: &Predictor, names: &[&str], sample: &[f32]) -> u32 {
    let value = |name: &str| {
        let found = names.iter().position(|known| *known == name).and_then(|column| sample.get(column));
        found.copied()
    };
    let (Some(heads), Some(kv_heads)) = (value("heads"), value("kv_heads")) else { return 1 };
    let kernel = &predictor.identity.kernel;
    let lies_within = |fold: u32| {
        predictor.features.iter().zip(&predictor.ranges).all(|(name, &(low, high))| {
            value(name).is_none_or(|value| !is_outside(value * fold_factor(name, fold), low, high))
        })
    };
    if !(kernel.contains("flash_attn") || kernel.starts_with("fa")) || lies_within(1) {
        return 1;
    }
    let divides =
        |fold: &u32| (heads as u32).is_multiple_of(*fold) && (kv_heads as u32).is_multiple_of(*fold);
    (2..=kv_heads as u32).filter(divides).find(|&fold| lies_within(fold)).unwrap_or(1)
}

/// Returns the factor on a feature where one request is taken as `fold`: less of what heads add up to, more requests.
fn fold_factor(name: &str, fold: u32) -> f32 {
    match name {
        "heads" | "kv_heads" | "kv_bytes_per_token" => 1.0 / fold as f32,
        "num_seqs" | "query_tokens" | "prefill.num_seqs" | "prefill.query_tokens" | "decode.num_seqs" => {
            fold as f32
        }
        _ => 1.0,
    }
}

/// A table of times by bytes.
#[derive(Clone, Debug)]
pub struct LearnedTable {
    common: Common,
}

impl LearnedTable {
    /// Takes the table `reference` for an operator called `name`.
    ///
    /// # Errors
    /// [`SimError::Plan`] if there is no such predictor, or if it is not a table.
    pub fn new(
        reference: &PredictorRef,
        predictors: &Predictors<'_>,
        name: &str,
        path: &str,
        expected: &[Operator],
    ) -> Result<Self, SimError> {
        let common = Common::new(reference, predictors, name, path, expected)?;
        if !matches!(common.predictor.form, Form::Table(_)) {
            let message = format!("was {}, which holds trees, must be a table", reference.index);
            return Err(SimError::Plan { path: format!("{path}.index"), message });
        }
        Ok(Self { common })
    }

    fn table(&self) -> &LogTable {
        match &self.common.predictor.form {
            Form::Table(table) => table,
            Form::Trees(_) => unreachable!("Invariant: checked when it was made"),
        }
    }

    /// Returns the time for `bytes`.
    pub fn predict(&self, bytes: f64) -> Prediction {
        let table = self.table();
        let (low, high) = table.range();
        let outside =
            (bytes < low || bytes > high).then(|| Outside::new(0, bytes as f32, low as f32, high as f32));
        Prediction {
            seconds: table.seconds(bytes) * self.common.factor,
            provenance: self.common.provenance(true, outside.as_ref()),
            outside,
        }
    }
}

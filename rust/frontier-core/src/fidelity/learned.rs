//! A learned predictor at work: features of this run, its bound, the trees, and how far the run lies from what was
//! measured.

use std::sync::Arc;

use super::cost::Cost;
use super::trust::{Outside, Provenance};
use crate::error::SimError;
use crate::plan::step_time::PredictorRef;
use crate::predictor::{BoundParameters, CellMemo, Compiled, Form, LogTable, Predictor};
use crate::rng::RngStreams;

/// Tolerance of range checks, relative: ranges and features are 32-bit values.
const RANGE_SLACK: f32 = 1e-6;
/// Contexts up to this many times the cache still find part of it warm.
const WARM_UP_TO: f64 = 1.5;

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

impl Prediction {
    /// Returns the time of `cost` by its bound alone.
    pub fn unmeasured(cost: &Cost) -> Self {
        Self { seconds: cost.seconds(), provenance: Provenance::Unmeasured, outside: None }
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

/// Trees over the features of an operator of known shape.
#[derive(Clone, Debug)]
pub struct LearnedTrees {
    common: Common,
    compiled: Compiled,
    memo: CellMemo,
    /// For each of the predictor's features, its place in the operator's list of features.
    columns: Vec<usize>,
    /// Features whose range is not checked (a second predictor answers for them).
    unchecked: Vec<bool>,
    /// The shape was profiled: differences within the measured ranges are of batches alone.
    known_shape: bool,
    /// Buffers: the predictor's features, and those of them that the shape leaves open.
    x: Vec<f32>,
    free: Vec<f32>,
}

impl LearnedTrees {
    /// Compiles the predictor `reference` for an operator called `name`. `sample` holds its features, called `names`,
    /// of any run; the first `num_statics` are the same in every run. `path` leads to the reference in the plan.
    ///
    /// # Errors
    /// [`SimError::Plan`] if there is no such predictor, if it is a table, or if it wants other features.
    pub fn new(
        reference: &PredictorRef,
        predictors: &Predictors<'_>,
        name: &str,
        path: &str,
        names: &[&str],
        sample: &[f32],
        num_statics: usize,
    ) -> Result<Self, SimError> {
        let common = Common::new(reference, predictors, name, path)?;
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
        let fixed: Vec<Option<f32>> =
            columns.iter().map(|&column| (column < num_statics).then(|| sample[column])).collect();
        let compiled = ensemble.specialise(&fixed);
        let value = |feature: &String| {
            let column = names.iter().position(|known| known == feature);
            column.map(|column| f64::from(sample[column]))
        };
        let shape: Option<Vec<f64>> = predictor.shape_columns.iter().map(value).collect();
        let known_shape = shape.is_some_and(|shape| predictor.is_measured_shape(&shape));
        Ok(Self {
            memo: CellMemo::new(&compiled),
            unchecked: vec![false; columns.len()],
            x: vec![0.0; columns.len()],
            free: vec![0.0; compiled.free().len()],
            common,
            compiled,
            columns,
            known_shape,
        })
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
        for (free, &index) in self.free.iter_mut().zip(self.compiled.free()) {
            *free = self.x[index];
        }
        let ratio = self.memo.ratio(&self.compiled, &self.free) * self.common.factor;
        (ratio, self.outside())
    }

    #[inline]
    fn outside(&self) -> Option<Outside> {
        let ranges = &self.common.predictor.ranges;
        let mut any = false;
        for ((&x, &(low, high)), &unchecked) in self.x.iter().zip(ranges).zip(&self.unchecked) {
            let slack = RANGE_SLACK * x.abs();
            any |= !unchecked && (x < low - slack || x > high + slack);
        }
        any.then(|| self.furthest_outside()).flatten()
    }

    #[cold]
    fn furthest_outside(&self) -> Option<Outside> {
        let predictor = &self.common.predictor;
        let mut furthest: Option<Outside> = None;
        for (index, (&x, &(low, high))) in self.x.iter().zip(&predictor.ranges).enumerate() {
            let slack = RANGE_SLACK * x.abs();
            if self.unchecked[index] || (x >= low - slack && x <= high + slack) {
                continue;
            }
            let outside = Outside::new(self.columns[index], x, low, high);
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
    ) -> Result<Self, SimError> {
        let common = Common::new(reference, predictors, name, path)?;
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
            provenance: self.common.provenance(table.is_measured(bytes), outside.as_ref()),
            outside,
        }
    }
}

//! Attention in its place in the program: prefills and decodes predicted apart, then put together.

use super::attention::{Attention, DECODE_FEATURES, MIXED_FEATURES, PREFILL_FEATURES};
use super::batch::BatchShape;
use super::cost::{Cost, TotalCost};
use super::learned::{LearnedTrees, Prediction};
use super::trust::{Outside, Provenance, TrustTally};

/// Features of [`DECODE_FEATURES`] that say how unequal lengths are: of a batch of equal lengths the first is 1 and
/// the second 0.
pub const SKEW_FEATURES: [&str; 2] = ["kv_max_ratio", "kv_variation"];

/// Where `kv_max_ratio` stands among [`DECODE_FEATURES`].
const SKEW_COLUMN: usize = 14;
const _: () = assert!(matches!(DECODE_FEATURES[SKEW_COLUMN].as_bytes(), b"kv_max_ratio"));
/// Largest over mean context up to which lengths count as equal.
const EQUAL_LENGTHS: f32 = 1.01;

/// An attention operator in its place in the program.
#[derive(Clone, Debug)]
pub struct AttentionOperator {
    /// Place in the stage.
    pub position: usize,
    /// Name.
    pub name: String,
    /// Runs per step.
    pub count: u32,
    /// What runs.
    pub kernel: Attention,
    /// Prefills; `None`: by their bound.
    pub prefill: Option<LearnedTrees>,
    /// Decodes; `None`: by their bound.
    pub decode: Option<LearnedTrees>,
    /// Factor for decodes of unequal lengths; `None`: in `decode`, or not known.
    pub skew: Option<LearnedTrees>,
    /// Both in one kernel; `None`: put together from both.
    pub mixed: Option<LearnedTrees>,
    /// What decodes cost in a mixed batch, relative to decodes alone; `None`: compute and memory of both parts add up.
    pub mixed_decode_factor: Option<f64>,
    /// Factor on the bound where that is all there is.
    pub bound_factor: f64,
    /// What the times of prefills, of decodes and of mixed batches as such so far rest on.
    pub tallies: [TrustTally; 3],
}

/// Places in [`AttentionPrice::parts`] and [`AttentionOperator::tallies`].
const PREFILL: usize = 0;
const DECODE: usize = 1;
const MIXED: usize = 2;

/// One run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionPrice {
    /// FLOPs, bytes and bounds.
    pub cost: Cost,
    /// Seconds of the run.
    pub seconds: f64,
    /// Its prefills, its decodes, or both as such: seconds add up to those of the run.
    pub parts: [Option<Prediction>; 3],
}

impl AttentionOperator {
    /// Returns the cost and the time of one run for `batch`: nothing if no request takes part.
    #[inline]
    pub fn price(&mut self, batch: &BatchShape) -> AttentionPrice {
        let (prefill, decode) = (self.kernel.prefill_cost(batch), self.kernel.decode_cost(batch));
        let cost = self.kernel.combined(&prefill, &decode);
        let mut parts = [None; 3];
        let seconds = match (prefill.bytes > 0.0, decode.bytes > 0.0) {
            (false, false) => 0.0,
            (true, false) => {
                let only = self.prefill(batch, &prefill);
                parts[PREFILL] = Some(only);
                only.seconds
            }
            (false, true) => {
                let only = self.decode(batch, &decode);
                parts[DECODE] = Some(only);
                only.seconds
            }
            (true, true) => self.mixed(batch, [&prefill, &decode, &cost], &mut parts),
        };
        AttentionPrice { cost, seconds, parts }
    }

    /// Returns the time of prefills and decodes in one kernel, and puts into `parts` what it is made of.
    fn mixed(
        &mut self,
        batch: &BatchShape,
        [prefill, decode, both]: [&Cost; 3],
        parts: &mut [Option<Prediction>; 3],
    ) -> f64 {
        if let Some(trees) = &mut self.mixed {
            let features = Attention::mixed_features(
                &self.kernel.prefill_features(batch, prefill),
                &self.kernel.decode_features(batch, decode),
            );
            let predicted = trees.predict(both, &features);
            parts[MIXED] = Some(predicted);
            return predicted.seconds;
        }
        let (mut first, mut second) = (self.prefill(batch, prefill), self.decode(batch, decode));
        let seconds = match self.mixed_decode_factor {
            Some(factor) => {
                second.seconds *= factor;
                first.seconds + second.seconds
            }
            None => both.seconds() * self.bound_factor,
        };
        // How a kernel treats both at once was not measured, even where both were.
        for part in [&mut first, &mut second] {
            part.provenance = part.provenance.max(Provenance::Interpolated);
        }
        // The run is shared out in proportion.
        let alone = first.seconds + second.seconds;
        first.seconds *= seconds / alone;
        second.seconds *= seconds / alone;
        parts[PREFILL] = Some(first);
        parts[DECODE] = Some(second);
        seconds
    }

    /// Adds all runs for `batch` to `total`, and to the tallies.
    #[inline]
    pub fn add_to(&mut self, total: &mut TotalCost, batch: &BatchShape) {
        let runs = f64::from(self.count);
        let price = self.price(batch);
        total.add(&price.cost, price.seconds, runs);
        for (tally, part) in self.tallies.iter_mut().zip(&price.parts) {
            if let Some(part) = part {
                tally.add(runs * part.seconds, part.provenance, part.outside.as_ref());
            }
        }
    }

    #[inline]
    fn prefill(&mut self, batch: &BatchShape, cost: &Cost) -> Prediction {
        let Some(trees) = &mut self.prefill else {
            return Prediction::unmeasured(cost, self.bound_factor);
        };
        trees.predict(cost, &self.kernel.prefill_features(batch, cost))
    }

    #[inline]
    fn decode(&mut self, batch: &BatchShape, cost: &Cost) -> Prediction {
        let Some(trees) = &mut self.decode else {
            return Prediction::unmeasured(cost, self.bound_factor);
        };
        let features = self.kernel.decode_features(batch, cost);
        let mut prediction = trees.predict(cost, &features);
        prediction.seconds += trees.cold_s(self.kernel.decode_kv_bytes(batch));
        if let Some(skew) = &mut self.skew {
            let (ratio, outside) = skew.ratio(&features);
            prediction.seconds *= ratio;
            prediction.add_outside(outside);
            // Equal lengths were measured; what unequal ones cost more, perhaps elsewhere.
            if skew.is_unmeasured() && features[SKEW_COLUMN] > EQUAL_LENGTHS {
                prediction.provenance = prediction.provenance.max(Provenance::Interpolated);
            }
        }
        prediction
    }

    /// Returns what the times so far rest on, with the names of features: prefills, decodes, mixed batches as such.
    pub fn trust(&self) -> [(&'static str, TrustTally, &'static [&'static str]); 3] {
        [
            ("prefill", self.tallies[0], &PREFILL_FEATURES),
            ("decode", self.tallies[1], &DECODE_FEATURES),
            ("mixed", self.tallies[2], &MIXED_FEATURES),
        ]
    }
}

impl Prediction {
    /// Counts an excursion that a second predictor noticed.
    fn add_outside(&mut self, outside: Option<Outside>) {
        if let Some(outside) = outside {
            self.provenance = self.provenance.max(Provenance::Extrapolated);
            if self.outside.as_ref().is_none_or(|known| outside.distance > known.distance) {
                self.outside = Some(outside);
            }
        }
    }
}

//! Attention in its place in the program: prefills and decodes predicted apart, then put together.

use super::attention::{Attention, DECODE_FEATURES, PREFILL_FEATURES};
use super::batch::BatchShape;
use super::cost::{Cost, TotalCost};
use super::learned::{LearnedTrees, Prediction};
use super::trust::{Outside, TrustTally};

/// Features of [`DECODE_FEATURES`] that say how unequal lengths are: of a batch of equal lengths the first is 1 and
/// the second 0.
pub const SKEW_FEATURES: [&str; 2] = ["kv_max_ratio", "kv_variation"];

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
    /// Share of the smaller part that a mixed batch takes longer than its larger part.
    pub mixed_share: Option<f64>,
    /// What the times of prefills and decodes so far rest on.
    pub tallies: [TrustTally; 2],
}

/// Prefill and decode parts of one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionPrice {
    /// FLOPs, bytes and bounds of both.
    pub cost: Cost,
    /// Seconds of the run.
    pub seconds: f64,
    /// The prefills alone, if any.
    pub prefill: Option<Prediction>,
    /// The decodes alone, if any.
    pub decode: Option<Prediction>,
}

impl AttentionOperator {
    /// Returns the cost and the time of one run for `batch`: nothing if no request takes part.
    #[inline]
    pub fn price(&mut self, batch: &BatchShape) -> AttentionPrice {
        let (prefill, decode) = (self.kernel.prefill_cost(batch), self.kernel.decode_cost(batch));
        let first = (prefill.bytes > 0.0).then(|| self.prefill(batch, &prefill));
        let second = (decode.bytes > 0.0).then(|| self.decode(batch, &decode));
        let cost = self.kernel.combined(&prefill, &decode);
        let seconds = match (&first, &second, self.mixed_share) {
            (None, None, _) => 0.0,
            (Some(only), None, _) | (None, Some(only), _) => only.seconds,
            (Some(_), Some(_), None) => cost.seconds(),
            (Some(a), Some(b), Some(share)) => a.seconds.max(b.seconds) + share * a.seconds.min(b.seconds),
        };
        AttentionPrice { cost, seconds, prefill: first, decode: second }
    }

    /// Adds all runs for `batch` to `total`, and to the tallies.
    #[inline]
    pub fn add_to(&mut self, total: &mut TotalCost, batch: &BatchShape) {
        let runs = f64::from(self.count);
        let price = self.price(batch);
        total.add(&price.cost, price.seconds, runs);
        // A mixed run is shared out in proportion.
        let alone: f64 = [price.prefill, price.decode].iter().flatten().map(|part| part.seconds).sum();
        for (tally, part) in self.tallies.iter_mut().zip([&price.prefill, &price.decode]) {
            if let Some(part) = part {
                let seconds = runs * price.seconds * (part.seconds / alone);
                tally.add(seconds, part.provenance, part.outside.as_ref());
            }
        }
    }

    #[inline]
    fn prefill(&mut self, batch: &BatchShape, cost: &Cost) -> Prediction {
        let Some(trees) = &mut self.prefill else {
            return Prediction::unmeasured(cost);
        };
        trees.predict(cost, &self.kernel.prefill_features(batch, cost))
    }

    #[inline]
    fn decode(&mut self, batch: &BatchShape, cost: &Cost) -> Prediction {
        let Some(trees) = &mut self.decode else {
            return Prediction::unmeasured(cost);
        };
        let features = self.kernel.decode_features(batch, cost);
        let mut prediction = trees.predict(cost, &features);
        prediction.seconds += trees.cold_s(self.kernel.decode_kv_bytes(batch));
        if let Some(skew) = &mut self.skew {
            let (ratio, outside) = skew.ratio(&features);
            prediction.seconds *= ratio;
            prediction.add_outside(outside);
        }
        prediction
    }

    /// Returns what the times so far rest on: prefills, then decodes.
    pub fn trust(&self) -> [(&'static str, TrustTally, &'static [&'static str]); 2] {
        [("prefill", self.tallies[0], &PREFILL_FEATURES), ("decode", self.tallies[1], &DECODE_FEATURES)]
    }
}

impl Prediction {
    /// Counts an excursion that a second predictor noticed.
    fn add_outside(&mut self, outside: Option<Outside>) {
        if let Some(outside) = outside {
            self.provenance = self.provenance.max(super::trust::Provenance::Extrapolated);
            if self.outside.as_ref().is_none_or(|known| outside.distance > known.distance) {
                self.outside = Some(outside);
            }
        }
    }
}

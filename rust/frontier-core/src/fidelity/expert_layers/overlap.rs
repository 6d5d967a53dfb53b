//! Time of work that overlaps: shared experts beside routed ones, and two micro-batches in turn.

/// What keeps a rank busy for how long, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Busy {
    /// All of it, alone.
    pub seconds: f64,
    /// Arithmetic at its sustained rate.
    pub compute_s: f64,
    /// HBM at its sustained rate.
    pub memory_s: f64,
}

/// Returns the time of two kinds of work on streams of their own: neither ends sooner than alone, and they share
/// arithmetic and bandwidth.
pub fn beside(one: &Busy, other: &Busy) -> f64 {
    let shared = (one.compute_s + other.compute_s).max(one.memory_s + other.memory_s);
    // Work that keeps a resource busy longer than it takes is no reason to take longer than one after the other.
    one.seconds.max(other.seconds).max(shared.min(one.seconds + other.seconds))
}

/// One micro-batch in one layer, in seconds: what is computed before the exchange, the way out, the experts, the way
/// back.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MicroBatch {
    /// Attention, router, shared experts.
    pub before_s: f64,
    /// Dispatch.
    pub dispatch_s: f64,
    /// Routed experts.
    pub experts_s: f64,
    /// Combine.
    pub combine_s: f64,
}

/// Layers after which two micro-batches have found their rhythm.
const SETTLED: u32 = 8;

/// Returns the time of `layers` layers in which two equal micro-batches take turns: one computes while the other
/// communicates (vLLM's dual-batch overlap, `SGLang`'s two-batch overlap). A micro-batch waits for its own last part; each
/// of computing and communicating does one thing at a time, and both micro-batches' parts in turn.
pub fn two_micro_batches(micro_batch: &MicroBatch, layers: u32) -> f64 {
    let mut clock = Clock::default();
    let mut before = 0.0;
    for layer in 0..layers.min(SETTLED) {
        before = if layer == 0 { 0.0 } else { clock.end() };
        clock.layer(micro_batch);
    }
    let rhythm = clock.end() - before;
    clock.end() + f64::from(layers.saturating_sub(SETTLED)) * rhythm
}

/// When the parts done so far end.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    computing: f64,
    communicating: f64,
    /// By micro-batch.
    ready: [f64; 2],
}

impl Clock {
    fn end(&self) -> f64 {
        self.ready[0].max(self.ready[1])
    }

    fn layer(&mut self, part: &MicroBatch) {
        for ready in &mut self.ready {
            self.computing = ready.max(self.computing) + part.before_s;
            *ready = self.computing;
        }
        for ready in &mut self.ready {
            self.communicating = ready.max(self.communicating) + part.dispatch_s;
            *ready = self.communicating;
        }
        for ready in &mut self.ready {
            self.computing = ready.max(self.computing) + part.experts_s;
            *ready = self.computing;
        }
        for ready in &mut self.ready {
            self.communicating = ready.max(self.communicating) + part.combine_s;
            *ready = self.communicating;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memory_bound_work_gains_nothing_beside_memory_bound_work() {
        let one = Busy { seconds: 2.0, compute_s: 0.5, memory_s: 1.8 };
        let other = Busy { seconds: 1.0, compute_s: 0.1, memory_s: 0.9 };
        assert!((beside(&one, &other) - 2.7).abs() < 1e-12);
        let waiting = Busy { seconds: 2.0, ..Busy::default() };
        assert!((beside(&waiting, &other) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn communication_hides_behind_longer_computation() {
        let part = MicroBatch { before_s: 2.0, dispatch_s: 1.0, experts_s: 2.0, combine_s: 1.5 };
        // All computation, and the last combine of the second micro-batch.
        assert!((two_micro_batches(&part, 10) - (10.0 * 8.0 + 1.5)).abs() < 1e-9);
        let slow = MicroBatch { before_s: 1.0, dispatch_s: 3.0, experts_s: 1.0, combine_s: 4.0 };
        // All communication, and the first computation before it.
        assert!((two_micro_batches(&slow, 10) - (1.0 + 10.0 * 14.0)).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn prop_the_rhythm_is_that_of_every_layer(
            a in 0.1_f64..9.0, d in 0.1_f64..9.0, e in 0.1_f64..9.0, c in 0.1_f64..9.0, layers in 1_u32..70,
        ) {
            let part = MicroBatch { before_s: a, dispatch_s: d, experts_s: e, combine_s: c };
            let mut clock = Clock::default();
            (0..layers).for_each(|_| clock.layer(&part));
            let found = two_micro_batches(&part, layers);
            prop_assert!((found - clock.end()).abs() < 1e-9 * clock.end(), "{found} is not {}", clock.end());
            let (alone, least) = (f64::from(layers) * (a + d + e + c), f64::from(layers) * 2.0 * (a + e).max(d + c));
            prop_assert!(found >= alone.max(least) - 1e-9 && found <= 2.0 * alone + 1e-9);
        }
    }
}

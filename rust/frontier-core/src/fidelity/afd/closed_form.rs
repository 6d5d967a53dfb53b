//! The iteration in one formula, where every micro-batch and rank of every layer takes the same times.
//!
//! Micro-batches go round four stations (attention, link, FFN, link), `layers` times. The slowest station, of time
//! `X = max(Ta, Tc, Te)`, lets one pass per `X`; a round of one alone takes `R = Ta + Te + 2 Tc`. So the last of `m`
//! comes out of the first layer at `R + (m - 1) X`, and every further layer adds the longer of `m X` (the slowest
//! station is always busy) and `R` (it waits for the micro-batch to come round):
//!
//! `T = R + (m - 1) X + (L - 1) max(m X, R)`.
//!
//! With `Ta = Te = Tf >= Tc` and `m Tf >= R`, which is `m >= 2 (1 + Tc / Tf)`, this is equation (5) of MegaScale-Infer,
//! `(Ta + Te + 2 Tc) + Tf (m L - 1)`; below that boundary it is `L R + (m - 1) X`. Where the links are slowest
//! (`Tc > Tf`), which the paper excludes, `X` is `Tc`.

/// Times of one micro-batch in one layer, in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uniform {
    /// Attention (Ta).
    pub attention_ns: u64,
    /// FFN (Te).
    pub ffn_ns: u64,
    /// One way between the two (Tc).
    pub transfer_ns: u64,
}

impl Uniform {
    /// Returns the time of a micro-batch in one layer, alone.
    pub const fn round_ns(&self) -> u64 {
        self.attention_ns + self.ffn_ns + 2 * self.transfer_ns
    }

    /// Returns the time of the slowest station.
    pub fn slowest_ns(&self) -> u64 {
        self.attention_ns.max(self.ffn_ns).max(self.transfer_ns)
    }

    /// Returns whether so many micro-batches keep the slowest station busy.
    pub fn is_throughput_bound(&self, micro_batches: u64) -> bool {
        micro_batches * self.slowest_ns() >= self.round_ns()
    }

    /// Returns the fewest micro-batches that keep the slowest station busy; 1 where nothing takes time.
    pub fn least_micro_batches(&self) -> u64 {
        if self.slowest_ns() == 0 { 1 } else { self.round_ns().div_ceil(self.slowest_ns()) }
    }

    /// Returns the time of an iteration of `micro_batches` (at least 1) over `layers` (at least 1), in ns.
    pub fn iteration_ns(&self, micro_batches: u64, layers: u64) -> u64 {
        let (round, slowest) = (self.round_ns(), self.slowest_ns());
        round + (micro_batches - 1) * slowest + (layers - 1) * round.max(micro_batches * slowest)
    }
}

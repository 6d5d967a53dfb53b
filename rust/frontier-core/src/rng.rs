//! Named, independent random streams: (seed, replication, name) -> PCG64.
//!
//! Every consumer has a stream of its own, so that adding a consumer shifts nobody else's draws.

use rand_core::Rng as _;
use rand_pcg::Pcg64;

/// Derives the streams of one run.
#[derive(Clone, Copy, Debug)]
pub struct RngStreams {
    seed: u64,
    replication: u64,
}

/// One consumer's stream of random numbers.
#[derive(Clone, Debug)]
pub struct Stream(Pcg64);

impl RngStreams {
    /// Returns the streams of replication `replication` of a run with `seed`.
    pub const fn new(seed: u64, replication: u64) -> Self {
        Self { seed, replication }
    }

    /// Returns the stream called `name`. The same name gives the same draws.
    pub fn get(&self, name: &str) -> Stream {
        let mut state = mix(self.seed ^ 0x6672_6f6e_7469_6572);
        state = mix(state ^ self.replication);
        for byte in name.bytes() {
            state = mix(state ^ u64::from(byte));
        }
        let word = |index: u64| mix(state ^ index);
        Stream(Pcg64::new(join(word(1), word(2)), join(word(3), word(4))))
    }
}

impl Stream {
    /// Returns 64 random bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Returns a uniform draw from the open interval (0, 1), as [`open_unit`] makes it.
    #[inline]
    pub fn unit(&mut self) -> f64 {
        open_unit(self.bits())
    }

    /// Returns a uniform integer below `n` (which must be positive), without modulo bias.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        debug_assert!(n > 0, "Invariant: the range is not empty");
        // Lemire's multiply-shift with rejection.
        let threshold = n.wrapping_neg() % n;
        loop {
            let wide = u128::from(self.bits()) * u128::from(n);
            if (wide as u64) >= threshold {
                return (wide >> 64) as u64;
            }
        }
    }
}

/// Returns the number in the open interval (0, 1) that 64 random bits stand for: a multiple of 2^-53 plus 2^-54.
#[inline]
pub const fn open_unit(bits: u64) -> f64 {
    ((bits >> 11) as f64 + 0.5) * (1.0 / 9_007_199_254_740_992.0)
}

/// Scrambles 64 bits (the splitmix64 step).
#[inline]
pub const fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

const fn join(high: u64, low: u64) -> u128 {
    ((high as u128) << 64) | low as u128
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_depend_on_seed_replication_and_name_alone() {
        let draw = |seed, replication, name: &str| RngStreams::new(seed, replication).get(name).bits();
        assert_eq!(draw(1, 0, "a"), draw(1, 0, "a"));
        assert_ne!(draw(1, 0, "a"), draw(2, 0, "a"));
        assert_ne!(draw(1, 0, "a"), draw(1, 1, "a"));
        assert_ne!(draw(1, 0, "a"), draw(1, 0, "b"));
    }

    #[test]
    fn unit_draws_stay_inside_the_open_interval_and_average_one_half() {
        let mut stream = RngStreams::new(7, 0).get("unit");
        let draws: Vec<f64> = (0..100_000).map(|_| stream.unit()).collect();
        assert!(draws.iter().all(|&u| u > 0.0 && u < 1.0));
        let mean = draws.iter().sum::<f64>() / 1e5;
        assert!((mean - 0.5).abs() < 5e-3, "mean was {mean}");
    }

    #[test]
    fn below_is_uniform() {
        let mut stream = RngStreams::new(7, 0).get("below");
        let mut counts = [0_u32; 7];
        for _ in 0..70_000 {
            counts[stream.below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|&c| (9_500..10_500).contains(&c)), "{counts:?}");
    }
}

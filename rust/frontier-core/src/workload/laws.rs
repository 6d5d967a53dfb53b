//! Random laws built on uniform draws, IEEE basic operations and `libm`: the same bits on every platform.

use crate::rng::Stream;

/// Returns a draw from the exponential law of unit mean.
pub(super) fn exponential(stream: &mut Stream) -> f64 {
    // A uniform draw is never 0 or 1, so the result is finite and positive.
    -libm::log(stream.unit())
}

/// Returns a draw from the standard normal law (Marsaglia's polar method; the second value is not kept).
pub(crate) fn standard_normal(stream: &mut Stream) -> f64 {
    loop {
        let x = 2.0 * stream.unit() - 1.0;
        let y = 2.0 * stream.unit() - 1.0;
        let square = x * x + y * y;
        if square < 1.0 && square > 0.0 {
            return x * (-2.0 * libm::log(square) / square).sqrt();
        }
    }
}

/// The gamma law, by Marsaglia and Tsang, "A simple method for generating gamma variables", ACM TOMS 2000.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gamma {
    d: f64,
    c: f64,
    scale: f64,
    /// 1 / shape where the shape is below 1: a draw of shape + 1 is then multiplied by `U^(1 / shape)`.
    boost: Option<f64>,
}

impl Gamma {
    /// Returns the law with this shape and scale, both positive.
    pub(super) fn new(shape: f64, scale: f64) -> Self {
        let boost = (shape < 1.0).then(|| 1.0 / shape);
        let d = if boost.is_some() { shape + 1.0 } else { shape } - 1.0 / 3.0;
        Self { d, c: 1.0 / (9.0 * d).sqrt(), scale, boost }
    }

    /// Returns a draw.
    pub(super) fn draw(&self, stream: &mut Stream) -> f64 {
        let base = self.d * self.scale * self.cube(stream);
        match self.boost {
            Some(power) => base * libm::pow(stream.unit(), power),
            None => base,
        }
    }

    fn cube(&self, stream: &mut Stream) -> f64 {
        loop {
            let x = standard_normal(stream);
            let root = 1.0 + self.c * x;
            if root <= 0.0 {
                continue;
            }
            let v = root * root * root;
            if libm::log(stream.unit()) < 0.5 * x * x + self.d * (1.0 - v + libm::log(v)) {
                return v;
            }
        }
    }
}

/// Zipf's law over ranks 0 .. n: rank i has weight `1 / (i + 1)^exponent`. By rejection inversion (Hörmann and
/// Derflinger, "Rejection-inversion to generate variates from monotone discrete distributions", ACM TOMACS 1996),
/// which needs no table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Zipf {
    n: u64,
    exponent: f64,
    area_first: f64,
    area_all: f64,
    shortcut: f64,
}

impl Zipf {
    /// Returns the law over `n` ranks (at least 1); exponent 0 is uniform.
    pub(super) fn new(n: u64, exponent: f64) -> Self {
        let mut law = Self { n, exponent, area_first: 0.0, area_all: 0.0, shortcut: 0.0 };
        law.area_first = law.area(1.5) - 1.0;
        law.area_all = law.area(n as f64 + 0.5);
        law.shortcut = 2.0 - law.inverse_area(law.area(2.5) - law.weight(2.0));
        law
    }

    /// Returns a rank below `n`.
    pub(super) fn draw(&self, stream: &mut Stream) -> u64 {
        if self.exponent == 0.0 {
            return stream.below(self.n);
        }
        loop {
            let area = self.area_all + stream.unit() * (self.area_first - self.area_all);
            let x = self.inverse_area(area);
            let k = (x + 0.5).floor().clamp(1.0, self.n as f64);
            if k - x <= self.shortcut || area >= self.area(k + 0.5) - self.weight(k) {
                return k as u64 - 1;
            }
        }
    }

    fn weight(&self, x: f64) -> f64 {
        libm::exp(-self.exponent * libm::log(x))
    }

    /// The integral of the weight up to `x`: `(x^(1 - exponent) - 1) / (1 - exponent)`, `log x` for exponent 1.
    fn area(&self, x: f64) -> f64 {
        let log = libm::log(x);
        let power = (1.0 - self.exponent) * log;
        if power.abs() > 1e-8 { libm::expm1(power) / power * log } else { log * (1.0 + 0.5 * power) }
    }

    fn inverse_area(&self, area: f64) -> f64 {
        // Rounding may take the argument below the domain of log1p.
        let t = (area * (1.0 - self.exponent)).max(-1.0);
        let factor = if t.abs() > 1e-8 { libm::log1p(t) / t } else { 1.0 - 0.5 * t };
        libm::exp(factor * area)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::RngStreams;

    /// Checks that the mean of `n` draws is within five standard errors of `mean`.
    fn assert_mean(draws: &[f64], mean: f64, std: f64) {
        let n = draws.len() as f64;
        let average = draws.iter().sum::<f64>() / n;
        let bound = 5.0 * std / n.sqrt();
        assert!((average - mean).abs() < bound, "mean was {average}, not {mean} +- {bound}");
    }

    fn stream(name: &str) -> Stream {
        RngStreams::new(11, 0).get(name)
    }

    #[test]
    fn exponential_has_unit_mean_and_variance() {
        let mut s = stream("exponential");
        let draws: Vec<f64> = (0..200_000).map(|_| exponential(&mut s)).collect();
        assert_mean(&draws, 1.0, 1.0);
        let squares: Vec<f64> = draws.iter().map(|x| x * x).collect();
        assert_mean(&squares, 2.0, 20_f64.sqrt());
    }

    #[test]
    fn normal_has_its_first_four_moments() {
        let mut s = stream("normal");
        let draws: Vec<f64> = (0..200_000).map(|_| standard_normal(&mut s)).collect();
        let power =
            |p: usize| -> Vec<f64> { draws.iter().map(|&x| [x].repeat(p).iter().product()).collect() };
        assert_mean(&draws, 0.0, 1.0);
        assert_mean(&power(2), 1.0, 2_f64.sqrt());
        assert_mean(&power(3), 0.0, 15_f64.sqrt());
        assert_mean(&power(4), 3.0, 96_f64.sqrt());
    }

    #[test]
    fn gamma_has_its_mean_and_variance_for_shapes_below_and_above_one() {
        for shape in [0.04, 0.25, 1.0, 2.5, 400.0] {
            let law = Gamma::new(shape, 3.0);
            let mut s = stream("gamma");
            let draws: Vec<f64> = (0..200_000).map(|_| law.draw(&mut s)).collect();
            assert!(draws.iter().all(|&x| x >= 0.0 && x.is_finite()));
            assert_mean(&draws, 3.0 * shape, 3.0 * shape.sqrt());
            // Fourth central moment of gamma: (3 shape^2 + 6 shape) scale^4.
            let squares: Vec<f64> = draws.iter().map(|x| (x - 3.0 * shape) * (x - 3.0 * shape)).collect();
            assert_mean(&squares, 9.0 * shape, 9.0 * (2.0 * shape * shape + 6.0 * shape).sqrt());
        }
    }

    #[test]
    fn zipf_frequencies_match_the_weights() {
        for exponent in [0.0, 0.5, 1.0, 1.000_000_001, 1.7, 4.0] {
            let n = 20_u64;
            let law = Zipf::new(n, exponent);
            let mut s = stream("zipf");
            let mut counts = vec![0_u32; n as usize];
            let draws = 200_000_u32;
            for _ in 0..draws {
                counts[law.draw(&mut s) as usize] += 1;
            }
            let weights: Vec<f64> = (1..=n).map(|k| libm::pow(k as f64, -exponent)).collect();
            let total: f64 = weights.iter().sum();
            for (k, (&count, weight)) in counts.iter().zip(&weights).enumerate() {
                let expected = f64::from(draws) * weight / total;
                let bound = 5.0 * expected.sqrt() + 1.0;
                assert!(
                    (f64::from(count) - expected).abs() < bound,
                    "exponent {exponent}, rank {k}: {count}, not {expected}"
                );
            }
        }
    }

    #[test]
    fn zipf_stays_in_range_at_the_extremes() {
        for (n, exponent) in
            [(1, 0.0), (1, 1.0), (1, 100.0), (2, 100.0), (1 << 32, 1e-9), (1 << 32, 1.0), (1 << 32, 100.0)]
        {
            let law = Zipf::new(n, exponent);
            let mut s = stream("extremes");
            for _ in 0..2_000 {
                assert!(law.draw(&mut s) < n, "n {n}, exponent {exponent}");
            }
        }
    }
}

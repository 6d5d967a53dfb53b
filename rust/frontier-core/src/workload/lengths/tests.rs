use proptest::prelude::*;

use super::*;
use crate::rng::RngStreams;

const DRAWS: usize = 200_000;

fn draws(spec: &LengthSpec) -> Vec<u32> {
    let lengths = Lengths::new(spec);
    let mut stream = RngStreams::new(3, 0).get("workload.prompt_tokens");
    (0..DRAWS).map(|_| lengths.draw(&mut stream).unwrap()).collect()
}

/// Checks that the mean is within five standard errors of `expected`.
#[track_caller]
fn assert_mean(draws: &[u32], expected: f64) {
    let n = draws.len() as f64;
    let mean = draws.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let variance = draws.iter().map(|&x| (f64::from(x) - mean) * (f64::from(x) - mean)).sum::<f64>() / n;
    let bound = 5.0 * (variance / n).sqrt();
    assert!((mean - expected).abs() <= bound, "mean was {mean}, not {expected} +- {bound}");
}

#[test]
fn fixed_lengths_are_fixed_and_draw_nothing() {
    let mut stream = RngStreams::new(3, 0).get("x");
    assert_eq!(Lengths::new(&LengthSpec::Fixed { tokens: 17 }).draw(&mut stream).unwrap(), 17);
    assert_eq!(stream.bits(), RngStreams::new(3, 0).get("x").bits());
}

#[test]
fn uniform_lengths_cover_their_range_evenly() {
    let draws = draws(&LengthSpec::Uniform { min: 11, max: 20 });
    for length in 11..=20 {
        let count = draws.iter().filter(|&&x| x == length).count();
        assert!((19_300..20_700).contains(&count), "{length}: {count}");
    }
}

#[test]
fn wide_lognormal_bounds_leave_mean_and_variation_alone() {
    let draws = draws(&LengthSpec::Lognormal { mean: 800.0, cv: 0.6, min: 1, max: 10_000_000 });
    assert_mean(&draws, 800.0);
    let squares = draws.iter().map(|&x| (f64::from(x) - 800.0) * (f64::from(x) - 800.0)).sum::<f64>();
    let cv = (squares / DRAWS as f64).sqrt() / 800.0;
    assert!((cv - 0.6).abs() < 0.01, "{cv}");
}

#[test]
fn narrow_lognormal_bounds_redraw_instead_of_clamping() {
    let draws = draws(&LengthSpec::Lognormal { mean: 100.0, cv: 1.0, min: 90, max: 110 });
    assert!(draws.iter().all(|x| (90..=110).contains(x)));
    // Shares of the law between half tokens, given that it is inside: no pile-up at either end.
    let (mu, sigma) = lognormal_parameters(100.0, 1.0);
    let above = |x: f64| libm::erfc((libm::log(x) - mu) / (sigma * std::f64::consts::SQRT_2)) / 2.0;
    let inside = above(89.5) - above(110.5);
    for length in [90_u32, 100, 110] {
        let share = draws.iter().filter(|&&x| x == length).count() as f64 / DRAWS as f64;
        let x = f64::from(length);
        let expected = (above(x - 0.5) - above(x + 0.5)) / inside;
        assert!((share - expected).abs() < 0.0025, "{length}: {share}, not {expected}");
    }
}

#[test]
fn a_lognormal_from_one_token_counts_draws_below_as_one() {
    let draws = draws(&LengthSpec::Lognormal { mean: 1.0, cv: 2.0, min: 1, max: 100_000 });
    let (mu, sigma) = lognormal_parameters(1.0, 2.0);
    let expected = 1.0 - libm::erfc((libm::log(1.5) - mu) / (sigma * std::f64::consts::SQRT_2)) / 2.0;
    let share = draws.iter().filter(|&&x| x == 1).count() as f64 / DRAWS as f64;
    assert!((share - expected).abs() < 0.006, "{share}, not {expected}");
}

#[test]
fn a_lognormal_without_variation_is_its_mean() {
    let spec = LengthSpec::Lognormal { mean: 64.2, cv: 0.0, min: 1, max: 100 };
    assert!(draws(&spec).iter().all(|&x| x == 64));
}

#[test]
fn zipf_lengths_start_at_min() {
    let (min, max, exponent) = (5_u32, 2_000, 1.2);
    let draws = draws(&LengthSpec::Zipf { exponent, min, max });
    let weight = |i: u32| libm::pow(f64::from(i + 1), -exponent);
    let total: f64 = (0..=max - min).map(weight).sum();
    assert_mean(&draws, (0..=max - min).map(|i| f64::from(min + i) * weight(i) / total).sum());
    let share = draws.iter().filter(|&&x| x == min).count() as f64 / DRAWS as f64;
    assert!((share - 1.0 / total).abs() < 0.006, "{share}");
}

#[test]
fn histogram_lengths_follow_the_weights_and_are_uniform_inside_a_bin() {
    let edges = vec![0.0, 10.0, 20.0, 40.0, 50.0];
    let draws = draws(&LengthSpec::Histogram { edges, weights: vec![1.0, 0.0, 3.0, 0.0] });
    // Whole tokens at most half a token beyond their bin.
    assert!(draws.iter().all(|&x| (1..=10).contains(&x) || (20..=40).contains(&x)));
    let upper: Vec<u32> = draws.iter().copied().filter(|&x| x >= 20).collect();
    assert!((upper.len() as f64 / DRAWS as f64 - 0.75).abs() < 0.005, "{}", upper.len());
    assert_mean(&upper, 30.0);
    let first_half = upper.iter().filter(|&&x| x < 30).count() as f64 / upper.len() as f64;
    assert!((first_half - 9.5 / 20.0).abs() < 0.007, "{first_half}");
}

#[test]
fn hopeless_bounds_end_in_an_error_instead_of_a_loop() {
    let spec = LengthSpec::Lognormal { mean: 1e9, cv: 0.1, min: 1, max: 2 };
    let mut stream = RngStreams::new(3, 0).get("x");
    let error = Lengths::new(&spec).draw(&mut stream).unwrap_err();
    assert!(error.to_string().contains("fell outside 1 ..= 2"), "{error}");
}

proptest! {
    #[test]
    fn prop_draws_stay_inside_the_bounds(
        min in 1_u32..5_000, width in 0_u32..5_000_000, exponent in 0.01..5.0_f64, cv in 0.0..3.0_f64, seed in any::<u64>()
    ) {
        let max = min + width;
        let mut stream = RngStreams::new(seed, 0).get("x");
        // The median of the law is inside the bounds.
        let mean = f64::from(min) * libm::sqrt(1.0 + cv * cv);
        let specs = [
            LengthSpec::Uniform { min, max },
            LengthSpec::Zipf { exponent, min, max },
            LengthSpec::Lognormal { mean, cv, min, max },
            LengthSpec::Histogram { edges: vec![f64::from(min), f64::from(max) + 0.25], weights: vec![0.3] },
        ];
        for spec in specs {
            let lengths = Lengths::new(&spec);
            for _ in 0..50 {
                let length = lengths.draw(&mut stream).unwrap();
                prop_assert!((min..=max).contains(&length), "{:?}: {}", spec, length);
                prop_assert!(length <= spec.max_tokens());
            }
        }
    }
}

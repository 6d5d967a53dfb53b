use proptest::prelude::*;

use super::*;
use crate::rng::RngStreams;

fn arrivals(spec: &ArrivalSpec, seed: u64) -> Arrivals {
    Arrivals::new(spec, RngStreams::new(seed, 0).get("workload.arrivals")).unwrap()
}

/// Returns the first `n` arrivals in ns.
fn times(spec: &ArrivalSpec, n: usize) -> Vec<u64> {
    let mut process = arrivals(spec, 5);
    (0..n).map_while(|_| process.next().unwrap()).map(|time| time.0).collect()
}

/// Returns (mean, coefficient of variation) of the gaps, the first one included.
fn gap_moments(times: &[u64]) -> (f64, f64) {
    let n = times.len() as f64;
    let gaps = std::iter::once(times[0]).chain(times.windows(2).map(|w| w[1] - w[0]));
    let gaps: Vec<f64> = gaps.map(|ns| ns as f64 / 1e9).collect();
    let mean = gaps.iter().sum::<f64>() / n;
    let variance = gaps.iter().map(|gap| (gap - mean) * (gap - mean)).sum::<f64>() / n;
    (mean, variance.sqrt() / mean)
}

#[test]
fn poisson_gaps_have_the_mean_and_variation_of_an_exponential() {
    for rate_per_s in [0.01, 6.4, 2e6] {
        let n = 200_000;
        let (mean, cv) = gap_moments(&times(&ArrivalSpec::Poisson { rate_per_s }, n));
        let bound = 5.0 / (n as f64).sqrt();
        assert!((mean * rate_per_s - 1.0).abs() < bound, "rate {rate_per_s}: mean gap {mean}");
        assert!((cv - 1.0).abs() < 2.0 * bound, "rate {rate_per_s}: cv {cv}");
    }
}

#[test]
fn poisson_gaps_have_no_cap() {
    let times = times(&ArrivalSpec::Poisson { rate_per_s: 1.0 }, 200_000);
    let longest = times.windows(2).map(|w| w[1] - w[0]).max().unwrap();
    // The largest of n unit exponentials is ln n = 12.2 on average.
    assert!((10_000_000_000..18_000_000_000).contains(&longest), "{longest}");
}

#[test]
fn gamma_gaps_have_the_asked_mean_and_variation() {
    for cv in [0.1, 0.5, 1.0, 2.0, 4.0] {
        let (mean, got) = gap_moments(&times(&ArrivalSpec::Gamma { rate_per_s: 3.0, cv }, 200_000));
        let bound = 5.0 * cv / 200_000_f64.sqrt();
        assert!((mean * 3.0 - 1.0).abs() < bound, "cv {cv}: mean gap {mean}");
        assert!((got / cv - 1.0).abs() < 0.06, "cv {cv}: was {got}");
    }
}

#[test]
fn constant_gaps_do_not_drift() {
    for (rate_per_s, gap_ns) in [(3.0, 1e9 / 3.0), (7e8, 1e9 / 7e8), (4e8, 2.5), (0.7, 1e9 / 0.7)] {
        let times = times(&ArrivalSpec::Constant { rate_per_s }, 1_000_000);
        for i in [0, 1, 2, 10, 999, 999_999] {
            let exact = (i + 1) as f64 * gap_ns;
            let error = times[i] as f64 - exact;
            // Half a nanosecond of rounding, and the precision of `exact` itself.
            assert!(
                error.abs() <= 0.51 + exact * 1e-12,
                "rate {rate_per_s}, arrival {i}: {} is off by {error}",
                times[i]
            );
        }
    }
}

#[test]
fn a_burst_arrives_at_time_zero() {
    assert_eq!(times(&ArrivalSpec::Burst {}, 3), [0, 0, 0]);
}

#[test]
fn piecewise_arrivals_follow_the_rate_of_each_segment() {
    const SECOND: u64 = 1_000_000_000;
    let segment = |seconds: u64, rate_per_s| RateSegment { duration_ns: seconds * SECOND, rate_per_s };
    let segments = vec![segment(2, 100.0), segment(1, 0.0), segment(3, 10.0), segment(1, 1000.0)];
    let cycles = 200;
    let times = times(&ArrivalSpec::Piecewise { segments: segments.clone(), repeat: true }, 1_500_000);
    let mut begin = 0;
    for segment in &segments {
        let end = begin + segment.duration_ns;
        let inside = |t: u64| t / (7 * SECOND) < cycles && (begin..end).contains(&(t % (7 * SECOND)));
        let count = times.iter().filter(|&&t| inside(t)).count() as f64;
        let expected = cycles as f64 * segment.rate_per_s * segment.duration_ns as f64 / SECOND as f64;
        assert!(
            (count - expected).abs() <= 5.0 * expected.sqrt(),
            "segment at {begin}: {count}, not {expected}"
        );
        begin = end;
    }
}

#[test]
fn one_segment_is_the_poisson_process() {
    let rate_per_s = 12.5;
    let poisson = times(&ArrivalSpec::Poisson { rate_per_s }, 2_000);
    for (duration_ns, repeat) in [(1, false), (u64::MAX, true), (1_000_000_000, true)] {
        let segments = vec![RateSegment { duration_ns, rate_per_s }];
        let piecewise = times(&ArrivalSpec::Piecewise { segments, repeat }, 2_000);
        let off = poisson.iter().zip(&piecewise).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        // The same exponentials are spent; only rounding at the boundaries differs.
        assert!(off < 50, "duration {duration_ns}, repeat {repeat}: off by {off} ns");
    }
}

#[test]
fn a_last_rate_of_zero_ends_the_arrivals_unless_repeated() {
    let segments = vec![
        RateSegment { duration_ns: 1_000_000_000, rate_per_s: 50.0 },
        RateSegment { duration_ns: 1, rate_per_s: 0.0 },
    ];
    let once = ArrivalSpec::Piecewise { segments: segments.clone(), repeat: false };
    assert!(!arrivals(&once, 5).is_endless());
    let ended = times(&once, 1_000);
    assert!((20..90).contains(&ended.len()), "{}", ended.len());
    assert!(ended.iter().all(|&t| t <= 1_000_000_000));
    let mut process = arrivals(&once, 5);
    while process.next().unwrap().is_some() {}
    assert_eq!(process.next().unwrap(), None, "an ended process stays ended");
    let repeated = ArrivalSpec::Piecewise { segments, repeat: true };
    assert!(arrivals(&repeated, 5).is_endless());
    assert_eq!(times(&repeated, 1_000).len(), 1_000);
}

#[test]
fn short_cycles_of_low_rates_are_skipped_at_once() {
    let segments = vec![
        RateSegment { duration_ns: 1, rate_per_s: 2.0 },
        RateSegment { duration_ns: 1, rate_per_s: 0.0 },
    ];
    let (mean, cv) = gap_moments(&times(&ArrivalSpec::Piecewise { segments, repeat: true }, 50_000));
    assert!((mean - 1.0).abs() < 0.025, "{mean}");
    assert!((cv - 1.0).abs() < 0.05, "{cv}");
}

#[test]
fn the_end_of_time_is_an_error() {
    let slowest = RateSegment { duration_ns: 1, rate_per_s: 1e-9 };
    let specs = [
        ArrivalSpec::Poisson { rate_per_s: 1e-9 },
        ArrivalSpec::Constant { rate_per_s: 1e-9 },
        ArrivalSpec::Gamma { rate_per_s: 1e-9, cv: 1e3 },
        ArrivalSpec::Piecewise { segments: vec![slowest], repeat: true },
        ArrivalSpec::Piecewise { segments: vec![slowest], repeat: false },
    ];
    for spec in specs {
        let mut process = arrivals(&spec, 5);
        let end = (0..10_000_000).find_map(|_| process.next().err());
        assert_eq!(end, Some(SimError::ClockOverflow), "{spec:?}");
    }
}

fn any_arrivals() -> impl Strategy<Value = ArrivalSpec> {
    let rate = || prop_oneof![1e-3..1e3, 1e5..1e9_f64];
    let segment = (1_u64..5_000_000_000, prop_oneof![Just(0.0), rate()])
        .prop_map(|(duration_ns, rate_per_s)| RateSegment { duration_ns, rate_per_s });
    let segments = (rate(), prop::collection::vec(segment, 0..4)).prop_map(|(rate_per_s, mut segments)| {
        segments.push(RateSegment { duration_ns: 1_000, rate_per_s });
        segments
    });
    prop_oneof![
        rate().prop_map(|rate_per_s| ArrivalSpec::Poisson { rate_per_s }),
        rate().prop_map(|rate_per_s| ArrivalSpec::Constant { rate_per_s }),
        (rate(), 1e-4..1e3_f64).prop_map(|(rate_per_s, cv)| ArrivalSpec::Gamma { rate_per_s, cv }),
        (segments, any::<bool>()).prop_map(|(segments, repeat)| ArrivalSpec::Piecewise { segments, repeat }),
    ]
}

proptest! {
    #[test]
    fn prop_arrivals_ascend_and_repeat_for_a_seed(spec in any_arrivals(), seed in any::<u64>()) {
        let mut first = arrivals(&spec, seed);
        let mut second = arrivals(&spec, seed);
        let mut last = SimTime::ZERO;
        for _ in 0..200 {
            let next = first.next();
            prop_assert_eq!(&next, &second.next());
            let Ok(Some(time)) = next else { break };
            prop_assert!(time >= last, "{:?} after {:?}", time, last);
            last = time;
        }
    }
}

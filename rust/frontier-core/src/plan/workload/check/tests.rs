use super::*;

fn fixed(tokens: u32) -> LengthSpec {
    LengthSpec::Fixed { tokens }
}

fn synthetic() -> SyntheticSpec {
    SyntheticSpec {
        arrivals: ArrivalSpec::Poisson { rate_per_s: 1.0 },
        num_requests: Some(10),
        duration_ns: None,
        prompt_tokens: fixed(100),
        output_tokens: fixed(10),
        shared_prefix: Some(SharedPrefixSpec { count: 2, tokens: fixed(5), zipf_exponent: 1.0, share: 0.5 }),
        sessions: Some(3),
        max_priority: 2,
        models: vec![],
        encoder: None,
    }
}

/// Checks that `spec` is refused at `path` with a message that contains `part`.
#[track_caller]
fn assert_refused(spec: SyntheticSpec, path: &str, part: &str) {
    match WorkloadSpec::Synthetic(spec).check() {
        Err(SimError::Plan { path: got, message }) => {
            assert_eq!(got, path, "{message}");
            assert!(message.contains(part), "{got}: {message}");
        }
        other => panic!("{path}: {other:?}"),
    }
}

#[test]
fn a_sound_workload_is_accepted() {
    assert_eq!(WorkloadSpec::Synthetic(synthetic()).check(), Ok(()));
    assert_eq!(WorkloadSpec::Trace { arrivals: None, num_requests: None }.check(), Ok(()));
}

#[test]
fn top_level_fields_are_checked() {
    assert_refused(SyntheticSpec { num_requests: Some(0), ..synthetic() }, "workload.num_requests", "was 0");
    let many = SyntheticSpec { num_requests: Some(1 << 32), ..synthetic() };
    assert_refused(many, "workload.num_requests", "was 4294967296, must be in 1 ..= 4294967295");
    assert_refused(SyntheticSpec { num_requests: None, ..synthetic() }, "workload", "at least one must be");
    assert_refused(SyntheticSpec { duration_ns: Some(0), ..synthetic() }, "workload.duration_ns", "was 0");
    let burst = SyntheticSpec {
        arrivals: ArrivalSpec::Burst {},
        num_requests: None,
        duration_ns: Some(5),
        ..synthetic()
    };
    assert_refused(burst, "workload.num_requests", "burst");
    assert_refused(SyntheticSpec { sessions: Some(0), ..synthetic() }, "workload.sessions", "was 0");
    let priority = SyntheticSpec { max_priority: 1 << 31, ..synthetic() };
    assert_refused(priority, "workload.max_priority", "was 2147483648, must be at most 2147483647");
    let long = SyntheticSpec { prompt_tokens: fixed(u32::MAX), ..synthetic() };
    assert_refused(long, "workload.prompt_tokens", "add up to 4294967310 tokens");
    let trace = WorkloadSpec::Trace { arrivals: None, num_requests: Some(0) };
    assert!(matches!(trace.check(), Err(SimError::Plan { path, .. }) if path == "workload.num_requests"));
}

#[test]
fn arrivals_are_checked() {
    let segment = |duration_ns, rate_per_s| RateSegment { duration_ns, rate_per_s };
    let piecewise = |segments| ArrivalSpec::Piecewise { segments, repeat: true };
    let cases = [
        (ArrivalSpec::Poisson { rate_per_s: 0.0 }, "rate_per_s", "was 0, must be in 1e-9 ..= 1e9"),
        (ArrivalSpec::Poisson { rate_per_s: f64::NAN }, "rate_per_s", "was NaN"),
        (ArrivalSpec::Constant { rate_per_s: -1.0 }, "rate_per_s", "was -1"),
        (ArrivalSpec::Constant { rate_per_s: f64::INFINITY }, "rate_per_s", "was inf"),
        (ArrivalSpec::Gamma { rate_per_s: 1.0, cv: 0.0 }, "cv", "was 0, must be in 0.0001 ..= 1e3"),
        (ArrivalSpec::Gamma { rate_per_s: 1.0, cv: f64::NAN }, "cv", "was NaN"),
        (ArrivalSpec::ClosedLoop { concurrency: 0, think_time_ns: 0 }, "concurrency", "was 0"),
        (piecewise(vec![]), "segments", "is empty"),
        (piecewise(vec![segment(1, 0.0), segment(2, 0.0)]), "segments", "only rates of 0"),
        (piecewise(vec![segment(1, 1.0), segment(0, 1.0)]), "segments[1].duration_ns", "was 0"),
        (piecewise(vec![segment(1, -2.0)]), "segments[0].rate_per_s", "was -2"),
        (
            piecewise(vec![segment(u64::MAX, 1.0), segment(1, 1.0)]),
            "segments[1].duration_ns",
            "past 2^64 - 1 ns",
        ),
    ];
    for (arrivals, field, part) in cases {
        let path = format!("workload.arrivals.{field}");
        assert_refused(SyntheticSpec { arrivals, ..synthetic() }, &path, part);
    }
}

#[test]
fn lengths_are_checked() {
    let lognormal = |mean, cv, min, max| LengthSpec::Lognormal { mean, cv, min, max };
    let histogram = |edges: &[f64], weights: &[f64]| LengthSpec::Histogram {
        edges: edges.into(),
        weights: weights.into(),
    };
    let cases = [
        (fixed(0), ".tokens", "was 0, must be at least 1"),
        (LengthSpec::Uniform { min: 0, max: 5 }, ".min", "was 0"),
        (LengthSpec::Uniform { min: 6, max: 5 }, ".max", "was 5, must be at least min, which is 6"),
        (lognormal(f64::NAN, 1.0, 1, 5), ".mean", "was NaN, must be over 0"),
        (lognormal(0.0, 1.0, 1, 5), ".mean", "was 0"),
        (lognormal(3.0, -1.0, 1, 5), ".cv", "was -1"),
        (
            lognormal(1e6, 0.5, 1, 100),
            "",
            "only 0.000 % of the lognormal draws fall inside min ..= max (1 ..= 100)",
        ),
        (lognormal(10.0, 0.0, 11, 100), "", "only 0.000 %"),
        (
            LengthSpec::Zipf { exponent: 0.0, min: 1, max: 5 },
            ".exponent",
            "was 0, must be over 0 and at most 1e2",
        ),
        (LengthSpec::Zipf { exponent: 1.0, min: 0, max: 5 }, ".min", "was 0"),
        (histogram(&[1.0], &[]), ".edges", "has 1 entries for 0 weights"),
        (histogram(&[1.0, 2.0, 3.0], &[1.0]), ".edges", "has 3 entries for 1 weights"),
        (histogram(&[1.0, 1.0], &[1.0]), ".edges[1]", "was 1, must be over the edge before"),
        (histogram(&[-1.0, 1.0], &[1.0]), ".edges[0]", "was -1"),
        (histogram(&[1.0, f64::NAN], &[1.0]), ".edges[1]", "was NaN"),
        (histogram(&[1.0, 5e9], &[1.0]), ".edges[1]", "at most 4294967295"),
        (histogram(&[1.0, 2.0, 3.0], &[1.0, -0.5]), ".weights[1]", "was -0.5"),
        (histogram(&[1.0, 2.0, 3.0], &[0.0, 0.0]), ".weights", "are all 0"),
    ];
    for (lengths, field, part) in cases {
        let spec = SyntheticSpec { output_tokens: lengths, ..synthetic() };
        assert_refused(spec, &format!("workload.output_tokens{field}"), part);
    }
}

#[test]
fn shared_prefixes_are_checked() {
    let good = || SharedPrefixSpec { count: 2, tokens: fixed(5), zipf_exponent: 1.0, share: 0.5 };
    let cases = [
        (SharedPrefixSpec { count: 0, ..good() }, "count", "was 0"),
        (SharedPrefixSpec { tokens: fixed(0), ..good() }, "tokens.tokens", "was 0"),
        (SharedPrefixSpec { zipf_exponent: -0.1, ..good() }, "zipf_exponent", "was -0.1"),
        (SharedPrefixSpec { share: 1.5, ..good() }, "share", "was 1.5, must be in 0 ..= 1"),
        (SharedPrefixSpec { share: f64::NAN, ..good() }, "share", "was NaN"),
    ];
    for (prefix, field, part) in cases {
        let spec = SyntheticSpec { shared_prefix: Some(prefix), ..synthetic() };
        assert_refused(spec, &format!("workload.shared_prefix.{field}"), part);
    }
}

#[test]
fn the_least_acceptance_of_a_lognormal_is_one_percent() {
    // Median 1 and sigma 1: P(X > 9.5) is 1.22 %, P(X > 10.5) is 0.94 %.
    let (mean, cv) = (libm::exp(0.5), libm::sqrt(std::f64::consts::E - 1.0));
    let check = |min| LengthSpec::Lognormal { mean, cv, min, max: u32::MAX / 4 }.check("p");
    assert_eq!(check(10), Ok(()));
    assert!(check(11).is_err_and(|error| error.to_string().contains("only 0.935 %")));
}

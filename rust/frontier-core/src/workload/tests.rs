use proptest::prelude::*;

use super::*;
use crate::plan::workload::{LengthSpec, RateSegment, SyntheticSpec};

const SECOND: u64 = 1_000_000_000;

fn synthetic(arrivals: ArrivalSpec, num_requests: Option<u64>, duration_ns: Option<u64>) -> WorkloadSpec {
    WorkloadSpec::Synthetic(SyntheticSpec {
        arrivals,
        num_requests,
        duration_ns,
        prompt_tokens: LengthSpec::Uniform { min: 10, max: 1_000 },
        output_tokens: LengthSpec::Lognormal { mean: 100.0, cv: 1.0, min: 1, max: 4_000 },
        shared_prefix: None,
        sessions: Some(7),
        max_priority: 0,
        models: vec![],
        encoder: None,
    })
}

fn workload(spec: &WorkloadSpec, trace: Option<&Arc<TraceColumns>>) -> Workload {
    Workload::new(spec, trace.cloned(), &RngStreams::new(42, 0)).unwrap()
}

/// Takes everything that comes without completions.
fn drain(workload: &mut Workload) -> Vec<RequestSpec> {
    std::iter::from_fn(|| workload.next_arrival().unwrap()).collect()
}

fn segments(workload: &Workload, id: u32) -> Vec<Segment> {
    let mut out = Vec::new();
    workload.prompt_segments(RequestId(id), &mut out);
    out
}

fn segment(stream: u64, start: u32, len: u32) -> Segment {
    Segment { stream, start, len }
}

/// Three rows: shared content, unique content, and a prompt that continues the output of row 0.
fn trace() -> Arc<TraceColumns> {
    let raw = RawTrace {
        arrival_ns: vec![10, 20, 30],
        prompt_tokens: vec![4, 6, 8],
        output_tokens: vec![2, 3, 1],
        priority: Some(vec![1, 2, 3]),
        session: Some(vec![5, NO_SESSION, 5]),
        tie_rank: Some(vec![0, 7, 2]),
        model: None,
        encoder_tokens: None,
        segments: Some(RawSegments {
            offsets: vec![0, 1, 1, 3],
            stream: vec![3, 3, OUTPUT_STREAM_BASE],
            start: vec![0, 0, 0],
            length: vec![4, 6, 2],
        }),
    };
    Arc::new(TraceColumns::new(raw).unwrap())
}

const AS_TRACED: WorkloadSpec = WorkloadSpec::Trace { arrivals: None, num_requests: None };

#[test]
fn a_trace_is_issued_row_by_row() {
    let mut workload = workload(&AS_TRACED, Some(&trace()));
    assert_eq!(workload.total(), Some(3));
    let requests = drain(&mut workload);
    assert_eq!(
        requests.iter().map(|r| (r.id.0, r.arrival.0)).collect::<Vec<_>>(),
        [(0, 10), (1, 20), (2, 30)]
    );
    let last = RequestSpec {
        id: RequestId(2),
        arrival: SimTime(30),
        prompt_tokens: 8,
        output_tokens: 1,
        priority: 3,
        session: Some(SessionId(5)),
        tie_rank: 2,
        model: 0,
        encoder_tokens: 0,
    };
    assert_eq!(requests[2], last);
    assert_eq!(segments(&workload, 0), [segment(3, 0, 4)]);
    assert_eq!(segments(&workload, 1), [segment(UNIQUE_STREAM_BASE + 1, 0, 6)]);
    assert_eq!(segments(&workload, 2), [segment(3, 0, 6), segment(OUTPUT_STREAM_BASE, 0, 2)]);
    assert_eq!(workload.next_after(SimTime(99)), Ok(None), "an open workload ignores completions");
}

#[test]
fn a_trace_can_be_cut_short() {
    let spec = WorkloadSpec::Trace { arrivals: None, num_requests: Some(2) };
    let mut workload = workload(&spec, Some(&trace()));
    assert_eq!((workload.total(), drain(&mut workload).len()), (Some(2), 2));
}

#[test]
fn a_trace_starts_over_with_its_own_unique_content_and_outputs() {
    let arrivals = Some(ArrivalSpec::Constant { rate_per_s: 1.0 });
    let mut workload = workload(&WorkloadSpec::Trace { arrivals, num_requests: Some(8) }, Some(&trace()));
    assert_eq!(workload.total(), Some(8));
    let requests = drain(&mut workload);
    assert!(
        requests.iter().enumerate().all(|(i, r)| r.id.index() == i && r.arrival.0 == (i as u64 + 1) * SECOND)
    );
    assert_eq!(requests.iter().map(|r| r.prompt_tokens).collect::<Vec<_>>(), [4, 6, 8, 4, 6, 8, 4, 6]);
    assert_eq!(requests.iter().map(|r| r.tie_rank).collect::<Vec<_>>(), [0, 7, 2, 8, 15, 10, 16, 23]);
    assert_eq!(requests[5].session, requests[2].session);
    assert_eq!(segments(&workload, 3), segments(&workload, 0), "explicit segments are shared between passes");
    assert_eq!(segments(&workload, 4), [segment(UNIQUE_STREAM_BASE + 4, 0, 6)]);
    assert_eq!(segments(&workload, 5), [segment(3, 0, 6), segment(OUTPUT_STREAM_BASE + 3, 0, 2)]);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let poisson = synthetic(ArrivalSpec::Poisson { rate_per_s: 1.0 }, Some(1), None);
    let too_many = WorkloadSpec::Trace { arrivals: None, num_requests: Some(4) };
    let ranks = WorkloadSpec::Trace {
        arrivals: Some(ArrivalSpec::Burst {}),
        num_requests: Some(u64::from(u32::MAX)),
    };
    let bad = synthetic(ArrivalSpec::Poisson { rate_per_s: -1.0 }, Some(1), None);
    let cases = [
        (&AS_TRACED, None, "workload.kind", "no trace was handed over"),
        (&poisson, Some(trace()), "workload.kind", "does not use"),
        (&too_many, Some(trace()), "workload.num_requests", "was 4, must be at most the 3 rows"),
        (&ranks, Some(trace()), "workload.num_requests", "tie ranks (up to 7) do not fit"),
        (&bad, None, "workload.arrivals.rate_per_s", "was -1"),
    ];
    for (spec, trace, path, part) in cases {
        match Workload::new(spec, trace, &RngStreams::new(0, 0)) {
            Err(SimError::Plan { path: got, message }) => {
                assert_eq!(got, path);
                assert!(message.contains(part), "{message}");
            }
            other => panic!("{path}: {other:?}"),
        }
    }
}

#[test]
fn arrivals_change_nothing_but_arrivals() {
    let lengths = |arrivals| -> Vec<_> {
        let mut workload = workload(&synthetic(arrivals, Some(500), None), None);
        let rest = |r: RequestSpec| (r.prompt_tokens, r.output_tokens, r.session, r.priority);
        drain(&mut workload).into_iter().map(rest).collect()
    };
    let poisson = lengths(ArrivalSpec::Poisson { rate_per_s: 10.0 });
    assert_eq!(poisson.len(), 500);
    assert_eq!(poisson, lengths(ArrivalSpec::Gamma { rate_per_s: 0.1, cv: 3.0 }));
    assert_eq!(poisson, lengths(ArrivalSpec::Burst {}));
    assert_eq!(poisson, lengths(ArrivalSpec::ClosedLoop { concurrency: 500, think_time_ns: 0 }));
}

#[test]
fn a_duration_ends_an_open_workload_at_its_last_moment() {
    let spec = synthetic(ArrivalSpec::Constant { rate_per_s: 1.0 }, None, Some(5 * SECOND));
    let mut five = workload(&spec, None);
    assert_eq!((five.total(), drain(&mut five).len()), (None, 5), "an arrival at the very end counts");
    assert_eq!(five.next_arrival(), Ok(None));
    let mut both =
        workload(&synthetic(ArrivalSpec::Constant { rate_per_s: 1.0 }, Some(3), Some(5 * SECOND)), None);
    assert_eq!(drain(&mut both).len(), 3);
    let endless = synthetic(ArrivalSpec::Constant { rate_per_s: 1e-9 }, None, Some(u64::MAX));
    assert_eq!(drain(&mut workload(&endless, None)).len(), 9, "the end of time is past any duration");
    let unlimited = synthetic(ArrivalSpec::Constant { rate_per_s: 1e-9 }, Some(30), None);
    let mut unlimited = workload(&unlimited, None);
    assert_eq!((0..30).find_map(|_| unlimited.next_arrival().err()), Some(SimError::ClockOverflow));
}

#[test]
fn arrivals_that_may_end_have_no_known_total() {
    let segments = vec![
        RateSegment { duration_ns: SECOND, rate_per_s: 5.0 },
        RateSegment { duration_ns: 1, rate_per_s: 0.0 },
    ];
    let spec =
        |repeat| synthetic(ArrivalSpec::Piecewise { segments: segments.clone(), repeat }, Some(1_000), None);
    assert_eq!(workload(&spec(true), None).total(), Some(1_000));
    let mut ending = workload(&spec(false), None);
    assert_eq!(ending.total(), None);
    assert!(drain(&mut ending).len() < 100);
}

#[test]
fn a_closed_loop_sends_after_completions() {
    let spec = synthetic(ArrivalSpec::ClosedLoop { concurrency: 3, think_time_ns: 50 }, Some(5), None);
    let mut workload = workload(&spec, None);
    assert_eq!(workload.total(), Some(5));
    let first = drain(&mut workload);
    assert_eq!(first.iter().map(|r| (r.id.0, r.arrival.0)).collect::<Vec<_>>(), [(0, 0), (1, 0), (2, 0)]);
    let next = workload.next_after(SimTime(100)).unwrap().unwrap();
    assert_eq!((next.id.0, next.arrival.0), (3, 150));
    let next = workload.next_after(SimTime(130)).unwrap().unwrap();
    assert_eq!((next.id.0, next.arrival.0), (4, 180));
    assert_eq!(workload.next_after(SimTime(140)), Ok(None));
    assert_eq!(workload.next_arrival(), Ok(None));
}

#[test]
fn a_closed_loop_with_more_clients_than_requests_sends_each_once() {
    let spec = synthetic(ArrivalSpec::ClosedLoop { concurrency: 10, think_time_ns: 0 }, Some(4), None);
    let mut workload = workload(&spec, None);
    assert_eq!(drain(&mut workload).len(), 4);
    assert_eq!(workload.next_after(SimTime(1)), Ok(None));
}

#[test]
fn a_duration_ends_a_closed_loop() {
    let spec = synthetic(ArrivalSpec::ClosedLoop { concurrency: 1, think_time_ns: 10 }, None, Some(100));
    let mut workload = workload(&spec, None);
    assert_eq!((workload.total(), drain(&mut workload).len()), (None, 1));
    assert_eq!(workload.next_after(SimTime(90)).unwrap().unwrap().arrival, SimTime(100));
    assert_eq!(workload.next_after(SimTime(91)), Ok(None));
    assert_eq!(workload.next_after(SimTime(u64::MAX)), Ok(None));
}

#[test]
fn a_trace_can_be_replayed_in_a_closed_loop() {
    let arrivals = Some(ArrivalSpec::ClosedLoop { concurrency: 2, think_time_ns: 0 });
    let mut workload = workload(&WorkloadSpec::Trace { arrivals, num_requests: None }, Some(&trace()));
    assert_eq!(drain(&mut workload).len(), 2);
    let last = workload.next_after(SimTime(7)).unwrap().unwrap();
    assert_eq!((last.id.0, last.arrival.0, last.prompt_tokens), (2, 7, 8));
    assert_eq!(workload.next_after(SimTime(8)), Ok(None));
}

#[test]
fn requests_are_few_bytes() {
    assert!(std::mem::size_of::<RequestSpec>() <= 48, "{}", std::mem::size_of::<RequestSpec>());
    assert_eq!(std::mem::size_of::<Segment>(), 16);
}

proptest! {
    #[test]
    fn prop_an_open_workload_is_sorted_and_repeatable(seed in any::<u64>(), rate_per_s in 0.1..1e6_f64, n in 1_u64..300) {
        let spec = synthetic(ArrivalSpec::Poisson { rate_per_s }, Some(n), None);
        let run = || {
            let mut workload = Workload::new(&spec, None, &RngStreams::new(seed, 0)).unwrap();
            drain(&mut workload)
        };
        let requests = run();
        prop_assert_eq!(&requests, &run());
        prop_assert_eq!(requests.len() as u64, n);
        prop_assert!(requests.windows(2).all(|w| w[0].arrival <= w[1].arrival && w[0].id < w[1].id));
    }
}

use super::*;
use crate::plan::workload::{ArrivalSpec, LengthSpec};

const REQUESTS: u32 = 20_000;

fn spec(shared_prefix: Option<SharedPrefixSpec>) -> SyntheticSpec {
    SyntheticSpec {
        arrivals: ArrivalSpec::Burst {},
        num_requests: Some(u64::from(REQUESTS)),
        duration_ns: None,
        prompt_tokens: LengthSpec::Uniform { min: 10, max: 1_000 },
        output_tokens: LengthSpec::Uniform { min: 1, max: 100 },
        shared_prefix,
        sessions: None,
        max_priority: 0,
        models: vec![],
        encoder: None,
    }
}

fn prefix(count: u32, zipf_exponent: f64, share: f64) -> SharedPrefixSpec {
    SharedPrefixSpec { count, tokens: LengthSpec::Uniform { min: 50, max: 500 }, zipf_exponent, share }
}

fn draw(spec: &SyntheticSpec) -> (Synthetic, Vec<RequestSpec>) {
    let mut synthetic = Synthetic::new(spec, &RngStreams::new(1, 0));
    let requests = (0..REQUESTS).map(|i| synthetic.draw(RequestId(i), SimTime::ZERO).unwrap()).collect();
    (synthetic, requests)
}

fn segments(synthetic: &Synthetic, id: u32) -> Vec<Segment> {
    let mut out = Vec::new();
    synthetic.prompt_segments(RequestId(id), &mut out);
    out
}

#[test]
fn unshared_prompts_are_one_unique_segment() {
    let (synthetic, requests) = draw(&spec(None));
    for request in &requests {
        let own = Segment {
            stream: UNIQUE_STREAM_BASE + u64::from(request.id.0),
            start: 0,
            len: request.prompt_tokens,
        };
        assert_eq!(segments(&synthetic, request.id.0), [own]);
        assert_eq!((request.priority, request.session, request.tie_rank), (0, None, request.id.0));
    }
}

#[test]
fn a_prefix_has_one_length_and_comes_before_the_unique_part() {
    let (synthetic, requests) = draw(&spec(Some(prefix(4, 1.0, 0.7))));
    let mut lengths = [None; 4];
    let mut counts = [0_u32; 4];
    for request in &requests {
        let segments = segments(&synthetic, request.id.0);
        assert_eq!(segments.iter().map(|s| s.len).sum::<u32>(), request.prompt_tokens);
        assert_eq!(segments.last().unwrap().stream, UNIQUE_STREAM_BASE + u64::from(request.id.0));
        if let [shared, own] = segments[..] {
            let i = shared.stream as usize;
            assert_eq!(*lengths[i].get_or_insert(shared.len), shared.len);
            assert!((50..=500).contains(&shared.len) && (10..=1_000).contains(&own.len));
            counts[i] += 1;
        }
    }
    // Zipf 1 over four: 12 : 6 : 4 : 3 of 25, of the 70 % that share.
    for (count, weight) in counts.iter().zip([12.0, 6.0, 4.0, 3.0]) {
        let expected = f64::from(REQUESTS) * 0.7 * weight / 25.0;
        assert!((f64::from(*count) - expected).abs() < 5.0 * expected.sqrt(), "{counts:?}");
    }
}

#[test]
fn the_share_of_prefixes_reaches_none_and_all() {
    for (share, expected) in [(0.0, 0), (1.0, REQUESTS)] {
        let (synthetic, _) = draw(&spec(Some(prefix(3, 0.0, share))));
        let shared = (0..REQUESTS).filter(|&id| segments(&synthetic, id).len() == 2).count();
        assert_eq!(shared as u32, expected);
    }
}

#[test]
fn one_property_changes_nothing_else() {
    let base = SyntheticSpec { sessions: Some(50), max_priority: 3, ..spec(Some(prefix(9, 0.8, 0.5))) };
    let (synthetic, requests) = draw(&base);
    let unchanged = |other: &SyntheticSpec, what: &str| {
        let (_, drawn) = draw(other);
        assert!(
            drawn.iter().zip(&requests).all(|(a, b)| a.output_tokens == b.output_tokens),
            "{what}: output"
        );
        assert!(drawn.iter().zip(&requests).all(|(a, b)| a.priority == b.priority), "{what}: priority");
        assert!(drawn.iter().zip(&requests).all(|(a, b)| a.session == b.session), "{what}: session");
    };
    unchanged(&SyntheticSpec { shared_prefix: None, ..base.clone() }, "no prefixes");
    unchanged(
        &SyntheticSpec { prompt_tokens: LengthSpec::Fixed { tokens: 4 }, ..base.clone() },
        "fixed prompts",
    );
    // Requests that have a prefix under both shares have the same one.
    let (more, _) = draw(&SyntheticSpec { shared_prefix: Some(prefix(9, 0.8, 0.9)), ..base });
    for id in 0..REQUESTS {
        let (before, after) = (segments(&synthetic, id), segments(&more, id));
        assert!(before.len() == 1 || before[0] == after[0], "request {id}: {before:?} {after:?}");
    }
}

#[test]
fn sessions_and_priorities_are_uniform() {
    let (_, requests) = draw(&SyntheticSpec { sessions: Some(4), max_priority: 3, ..spec(None) });
    for value in 0..4 {
        let sessions = requests.iter().filter(|r| r.session == Some(SessionId(value))).count();
        let priorities = requests.iter().filter(|r| r.priority == value.cast_signed()).count();
        assert!((4_700..5_300).contains(&sessions), "session {value}: {sessions}");
        assert!((4_700..5_300).contains(&priorities), "priority {value}: {priorities}");
    }
}

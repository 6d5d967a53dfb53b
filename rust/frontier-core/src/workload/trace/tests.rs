use proptest::prelude::*;

use super::*;

fn raw() -> RawTrace {
    RawTrace {
        arrival_ns: vec![0, 5, 5],
        prompt_tokens: vec![4, 6, 8],
        output_tokens: vec![2, 3, 1],
        ..RawTrace::default()
    }
}

/// Segments given as (row, stream, start, length), rows ascending.
fn segments(rows: usize, list: &[(usize, u64, u32, u32)]) -> RawSegments {
    let end = |row: usize| list.iter().filter(|segment| segment.0 < row).count() as u64;
    RawSegments {
        offsets: (0..=rows).map(end).collect(),
        stream: list.iter().map(|s| s.1).collect(),
        start: list.iter().map(|s| s.2).collect(),
        length: list.iter().map(|s| s.3).collect(),
    }
}

/// Checks that the trace is refused with a message containing every part.
#[track_caller]
fn assert_refused(raw: RawTrace, parts: &[&str]) {
    let error = TraceColumns::new(raw).expect_err("the trace was accepted").to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
}

#[test]
fn rows_come_back_as_given() {
    let columns = TraceColumns::new(RawTrace {
        priority: Some(vec![0, -7, 2]),
        session: Some(vec![9, NO_SESSION, 0]),
        tie_rank: Some(vec![2, 0, 1]),
        ..raw()
    })
    .unwrap();
    assert_eq!(columns.len(), 3);
    assert_eq!(columns.tie_stride(), 3);
    let row = Row {
        arrival_ns: 5,
        prompt_tokens: 6,
        output_tokens: 3,
        priority: -7,
        session: None,
        tie_rank: 0,
        model: 0,
        encoder_tokens: 0,
    };
    assert_eq!(columns.row(1), row);
    assert_eq!(columns.row(0).session, Some(SessionId(9)));
    let plain = TraceColumns::new(raw()).unwrap().row(2);
    assert_eq!((plain.priority, plain.session, plain.tie_rank), (0, None, 2));
}

#[test]
fn prompts_are_brought_into_normal_form() {
    let list = [(0, 7, 0, 1), (0, 7, 1, 0), (0, 7, 1, 2), (0, 7, 9, 1), (2, 7, 10, 3), (2, 8, 13, 5)];
    let columns = TraceColumns::new(RawTrace { segments: Some(segments(3, &list)), ..raw() }).unwrap();
    let segment = |stream, start, len| Segment { stream, start, len };
    assert_eq!(columns.segments(0), [segment(7, 0, 3), segment(7, 9, 1)]);
    assert_eq!(columns.segments(1), [], "a row without segments has unique content");
    assert_eq!(
        columns.segments(2),
        [segment(7, 10, 3), segment(8, 13, 5)],
        "rows are not merged with each other"
    );
}

#[test]
fn an_output_of_an_earlier_request_may_be_part_of_a_prompt() {
    let list = [(2, OUTPUT_STREAM_BASE + 1, 0, 3), (2, 1, 0, 5)];
    let columns = TraceColumns::new(RawTrace { segments: Some(segments(3, &list)), ..raw() }).unwrap();
    assert_eq!(columns.segments(2)[0].stream, OUTPUT_STREAM_BASE + 1);
}

#[test]
fn bad_columns_are_refused_with_column_row_and_value() {
    assert_refused(RawTrace::default(), &["has no requests"]);
    let cases: [(RawTrace, &[&str]); 11] = [
        (
            RawTrace { prompt_tokens: vec![1], ..raw() },
            &["column prompt_tokens", "has 1 entries, must have 3"],
        ),
        (
            RawTrace { output_tokens: vec![1; 4], ..raw() },
            &["column output_tokens", "has 4 entries, must have 3"],
        ),
        (RawTrace { priority: Some(vec![]), ..raw() }, &["column priority", "has 0 entries"]),
        (RawTrace { session: Some(vec![]), ..raw() }, &["column session", "has 0 entries"]),
        (RawTrace { tie_rank: Some(vec![]), ..raw() }, &["column tie_rank", "has 0 entries"]),
        (
            RawTrace { arrival_ns: vec![-1, 0, 0], ..raw() },
            &["arrival_ns, row 0", "was -1", "not be negative"],
        ),
        (
            RawTrace { arrival_ns: vec![0, 9, 8], ..raw() },
            &["arrival_ns, row 2", "was 8", "which is 9", "sort"],
        ),
        (
            RawTrace { prompt_tokens: vec![4, 0, 8], ..raw() },
            &["prompt_tokens, row 1", "was 0", "at least 1"],
        ),
        (
            RawTrace { output_tokens: vec![2, 3, 0], ..raw() },
            &["output_tokens, row 2", "was 0", "at least 1"],
        ),
        (
            RawTrace { output_tokens: vec![u32::MAX - 3, 3, 1], ..raw() },
            &["output_tokens, row 0", "was 4294967292", "makes 4294967296 tokens"],
        ),
        (
            RawTrace { arrival_ns: vec![0], ..raw() },
            &["column prompt_tokens", "has 3 entries, must have 1 as arrival_ns has"],
        ),
    ];
    for (raw, parts) in cases {
        assert_refused(raw, parts);
    }
}

#[test]
fn bad_segments_are_refused() {
    let refuse = |list: &[(usize, u64, u32, u32)], parts: &[&str]| {
        assert_refused(RawTrace { segments: Some(segments(3, list)), ..raw() }, parts);
    };
    refuse(&[(0, 1, 0, 3)], &["segment_length, row 0", "add up to 3", "which is 4"]);
    refuse(&[(0, 1, 0, 0)], &["segment_length, row 0", "add up to 0"]);
    refuse(&[(0, 1, u32::MAX - 3, 4)], &["segment_start, segment 0 (row 0)", "ends at 4294967296"]);
    refuse(
        &[(1, 1, 0, 6), (2, OUTPUT_STREAM_BASE + 2, 0, 1)],
        &["segment_stream, segment 1 (row 2)", "earlier request"],
    );
    refuse(
        &[(0, OUTPUT_STREAM_BASE, 0, 1)],
        &["segment_stream, segment 0 (row 0)", "was 4611686018427387904"],
    );
    refuse(&[(2, UNIQUE_STREAM_BASE, 0, 8)], &["segment_stream", "was 9223372036854775808"]);
    refuse(
        &[(2, OUTPUT_STREAM_BASE + 1, 1, 3)],
        &["segment_length, segment 0", "ends at 4", "which has 3 tokens"],
    );
}

#[test]
fn bad_offsets_are_refused() {
    let good = segments(3, &[(0, 1, 0, 4)]);
    let refuse = |offsets: &[u64], parts: &[&str]| {
        let segments = Some(RawSegments { offsets: offsets.into(), ..good.clone() });
        assert_refused(RawTrace { segments, ..raw() }, parts);
    };
    refuse(&[0, 1, 1], &["segment_offsets", "has 3 entries, must have 4"]);
    refuse(&[1, 1, 1, 1], &["segment_offsets, row 0", "was 1, must be in 0 ..= 0"]);
    refuse(&[0, 1, 0, 1], &["segment_offsets, row 2", "was 0, must be in 1 ..= 1"]);
    refuse(&[0, 2, 2, 2], &["segment_offsets, row 1", "was 2, must be in 0 ..= 1"]);
    refuse(&[0, 0, 0, 0], &["segment_offsets, row 3", "was 0", "number of segments, 1"]);
    let segments = Some(RawSegments { start: vec![], ..good });
    assert_refused(
        RawTrace { segments, ..raw() },
        &["column segment_start", "must have 1 as segment_stream has"],
    );
}

/// Spells a prompt out, token by token.
fn tokens(segments: &[Segment]) -> Vec<(u64, u32)> {
    segments.iter().flat_map(|s| (s.start..s.start + s.len).map(|position| (s.stream, position))).collect()
}

proptest! {
    #[test]
    fn prop_the_normal_form_keeps_every_token(
        list in prop::collection::vec((0_u64..3, 0_u32..6, 0_u32..4), 1..30)
    ) {
        let prompt: u32 = list.iter().map(|s| s.2).sum();
        prop_assume!(prompt > 0);
        let given: Vec<Segment> = list.iter().map(|&(stream, start, len)| Segment { stream, start, len }).collect();
        let list: Vec<_> = list.iter().map(|&(stream, start, len)| (0, stream, start, len)).collect();
        let raw = RawTrace {
            arrival_ns: vec![0],
            prompt_tokens: vec![prompt],
            output_tokens: vec![1],
            segments: Some(segments(1, &list)),
            ..RawTrace::default()
        };
        let columns = TraceColumns::new(raw).unwrap();
        let normal = columns.segments(0);
        prop_assert_eq!(tokens(normal), tokens(&given));
        prop_assert!(normal.iter().all(|s| s.len > 0));
        let continued = |w: &[Segment]| w[0].stream == w[1].stream && w[0].start + w[0].len == w[1].start;
        prop_assert!(!normal.windows(2).any(continued));
    }
}

use proptest::prelude::*;

use super::super::closed_form::Uniform;
use super::super::event_graph::simulate;
use super::super::fixtures::{below, random, uniform};
use super::*;
use crate::rng::RngStreams;

/// Ends of all activities by both implementations, and without looking at them.
fn assert_same(iteration: &Iteration, case: u64) {
    let mut graph = simulate(iteration).unwrap();
    let mut max_plus = MaxPlus::default();
    let (mut spans, end) = max_plus.spans(iteration).unwrap();
    graph.spans.sort_unstable();
    spans.sort_unstable();
    assert_eq!(graph.spans, spans, "case {case}: {iteration:?}");
    assert_eq!(graph.end, end, "case {case}: {iteration:?}");
    assert_eq!(graph.end, max_plus.end(iteration).unwrap(), "case {case}: {iteration:?}");
    assert_eq!(graph.end, max_plus.evaluate(iteration, &mut Nobody), "case {case}: {iteration:?}");
}

#[test]
fn graph_and_recurrence_agree_on_every_span_of_3000_random_iterations() {
    let streams = RngStreams::new(7, 0);
    for case in 0..3_000 {
        let mut stream = streams.get(&format!("iteration.{case}"));
        assert_same(&random(&mut stream), case);
    }
}

#[test]
fn ranks_that_are_left_out_change_nothing() {
    let streams = RngStreams::new(8, 0);
    let mut reduced = 0;
    for case in 0..2_000 {
        let mut stream = streams.get(&format!("iteration.{case}"));
        let mut iteration = random(&mut stream);
        let (ranks, ffn_ranks) = (iteration.attention_ranks, iteration.ffn_ranks);
        // One rank outlasts all others, or two of them outlast some.
        let all = below(&mut stream, 2) == 0;
        let (last, last_ffn) =
            (below(&mut stream, ranks as u64) as usize, below(&mut stream, ffn_ranks as u64) as usize);
        let raise = |times: &mut Vec<u64>, width: usize, at: usize| {
            for row in times.chunks_exact_mut(width) {
                row[at] = row.iter().skip(usize::from(!all)).copied().max().unwrap_or(row[0]);
            }
        };
        for class in &mut iteration.classes {
            raise(&mut class.attention_ns, ranks, last);
            raise(&mut class.a2f_ns, ranks, last);
            raise(&mut class.f2a_ns, ranks, last);
            match class.kind {
                LayerKind::Dense => raise(&mut class.ffn_ns, ranks, last),
                LayerKind::Moe => raise(&mut class.ffn_ns, ffn_ranks, last_ffn),
            }
        }
        raise(&mut iteration.head_ns, ranks, last);
        raise(&mut iteration.tail_ns, ranks, last);
        reduced += u32::from(Reduction::default().find(&iteration));
        assert_same(&iteration, case);
    }
    assert!(reduced > 400, "only {reduced} iterations were reduced");
}

#[test]
fn long_runs_are_products() {
    let streams = RngStreams::new(9, 0);
    for case in 0..200 {
        let mut stream = streams.get(&format!("iteration.{case}"));
        let mut iteration = random(&mut stream);
        iteration.layers = vec![LayerRun { class: 0, count: 2_000 }];
        let end = simulate(&iteration).unwrap().end;
        assert_eq!(MaxPlus::default().end(&iteration).unwrap(), end, "case {case}: {iteration:?}");
    }
    // Four billion layers, one by one, would take a minute.
    let times = Uniform { attention_ns: 311, ffn_ns: 287, transfer_ns: 95 };
    for (kind, ranks) in
        [(LayerKind::Moe, [3, 2, 2]), (LayerKind::Dense, [3, 2, 2]), (LayerKind::Dense, [3, 4, 2])]
    {
        let end = |layers| MaxPlus::default().end(&uniform(times, kind, ranks, layers)).unwrap().0;
        let per_layer = end(101) - end(100);
        assert_eq!(end(4_000_000_000), end(100) + per_layer * (4_000_000_000 - 100));
    }
}

/// Times of MegaScale-Infer's figures: balanced, links faster than either side.
fn balanced(tf: u64, tc: u64) -> Uniform {
    Uniform { attention_ns: tf, ffn_ns: tf, transfer_ns: tc }
}

fn both(iteration: &Iteration) -> u64 {
    let end = MaxPlus::default().end(iteration).unwrap();
    assert_eq!(simulate(iteration).unwrap().end, end);
    end.0
}

#[test]
fn megascale_infer_equation_5_holds_to_the_nanosecond() {
    for (tf, tc) in [(273_000_u64, 91_000_u64), (273_001, 272_999), (1, 0), (100_003, 50_001)] {
        for layers in [1_u64, 2, 48, 61] {
            let least = (2_u64 * (tf + tc)).div_ceil(tf) as usize;
            for m in least..least + 3 {
                for (kind, sizes) in
                    [(LayerKind::Moe, [m, 1, 1]), (LayerKind::Moe, [m, 3, 2]), (LayerKind::Dense, [m, 2, 3])]
                {
                    let expected = (tf + tf + 2 * tc) + tf * (m as u64 * layers - 1);
                    let found = both(&uniform(balanced(tf, tc), kind, sizes, layers as u32));
                    assert_eq!(found, expected, "Tf {tf}, Tc {tc}, m {m}, L {layers}, {kind:?}");
                }
            }
        }
    }
}

#[test]
fn regimes_change_exactly_where_m_is_2_times_1_plus_tc_over_tf() {
    let (tf, layers) = (240_u64, 61_u64);
    for tc in 0..tf {
        for m in 1..=6_u64 {
            let found = both(&uniform(balanced(tf, tc), LayerKind::Moe, [m as usize, 2, 2], layers as u32));
            let throughput = (2 * tf + 2 * tc) + tf * (m * layers - 1);
            let latency = layers * (2 * tf + 2 * tc) + (m - 1) * tf;
            // m >= 2 (1 + Tc / Tf), in integers.
            if m * tf >= 2 * (tf + tc) {
                assert_eq!(found, throughput, "Tc {tc}, m {m}");
                assert!(balanced(tf, tc).is_throughput_bound(m));
            } else {
                assert_eq!(found, latency, "Tc {tc}, m {m}");
                assert!(latency > throughput && !balanced(tf, tc).is_throughput_bound(m));
            }
        }
    }
}

#[test]
fn the_slower_side_sets_the_pace() {
    // Enough micro-batches, but Ta != Te: Tf = max(Ta, Te).
    for (ta, te) in [(300, 200), (200, 300), (1, 1_000)] {
        let times = Uniform { attention_ns: ta, ffn_ns: te, transfer_ns: 50 };
        let found = both(&uniform(times, LayerKind::Moe, [4, 2, 2], 40));
        assert_eq!(found, (ta + te + 100) + ta.max(te) * (4 * 40 - 1));
    }
}

#[test]
fn a_dense_ffn_rank_that_serves_several_attention_ranks_takes_turns() {
    // Three attention ranks of 10 ns, one FFN rank of 20 ns for each: 60 ns per layer for the one micro-batch of each,
    // as long as the first can come round in that time.
    let times = Uniform { attention_ns: 10, ffn_ns: 20, transfer_ns: 0 };
    let found = both(&uniform(times, LayerKind::Dense, [1, 3, 1], 10));
    assert_eq!(found, 10 + 60 * 10);
    // The layer with experts waits for all, and has no rank of its own for each.
    assert_eq!(both(&uniform(times, LayerKind::Moe, [1, 3, 1], 10)), 30 * 10);
}

#[test]
fn stragglers_hold_all_ranks_up_behind_barriers_and_nobody_without() {
    let times = Uniform { attention_ns: 100, ffn_ns: 100, transfer_ns: 0 };
    let ends = |kind| {
        let mut iteration = uniform(times, kind, [2, 3, 3], 20);
        for row in iteration.classes[0].attention_ns.chunks_exact_mut(3) {
            row[1] = 300;
        }
        let mut ends = [0; 3];
        for span in simulate(&iteration).unwrap().spans {
            if span.activity == Activity::Tail {
                ends[span.rank as usize] = span.end.0;
            }
        }
        ends
    };
    let alone = |ta: u64| (ta + 100) + ta.max(100) * (2 * 20 - 1);
    assert_eq!(ends(LayerKind::Moe), [alone(300); 3]);
    assert_eq!(ends(LayerKind::Dense), [alone(100), alone(300), alone(100)]);
}

#[test]
fn what_is_no_iteration_is_refused() {
    let good = uniform(balanced(10, 1), LayerKind::Moe, [2, 2, 3], 4);
    good.check().unwrap();
    let refused = |change: &dyn Fn(&mut Iteration)| {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(MaxPlus::default().end(&bad).is_err() && simulate(&bad).is_err(), "{bad:?}");
    };
    refused(&|bad| bad.micro_batches = 0);
    refused(&|bad| bad.ffn_ranks = 2);
    refused(&|bad| bad.classes[0].f2a_ns.truncate(3));
    refused(&|bad| bad.layers[0].class = 1);
    refused(&|bad| bad.tail_ns.push(1));
    refused(&|bad| bad.classes[0].ffn_ns[0] = u64::MAX);
}

proptest! {
    #[test]
    fn prop_uniform_iterations_are_the_closed_form(
        ta in 0_u64..2_000, te in 0_u64..2_000, tc in 0_u64..3_000, m in 1_usize..8, layers in 1_u32..70,
        ranks in 1_usize..4, moe in any::<bool>(),
    ) {
        let times = Uniform { attention_ns: ta, ffn_ns: te, transfer_ns: tc };
        let kind = if moe { LayerKind::Moe } else { LayerKind::Dense };
        let iteration = uniform(times, kind, [m, ranks, ranks], layers);
        prop_assert_eq!(both(&iteration), times.iteration_ns(m as u64, u64::from(layers)));
        let least = times.least_micro_batches();
        prop_assert!(times.is_throughput_bound(least) && (least == 1 || !times.is_throughput_bound(least - 1)));
    }
}

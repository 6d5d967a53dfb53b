//! Content that nobody shares is cached without an index entry. Nothing else may follow from that.

use std::collections::VecDeque;

use frontier_core::ids::RequestId;
use frontier_core::plan::{Policy, SchedulerConfig};
use frontier_core::scheduler::{
    Admission, BatchScheduler, Handover, SchedulerOutput, StepOutcome, Submission, VllmScheduler,
};
use frontier_core::time::SimTime;
use frontier_core::workload::{OUTPUT_STREAM_BASE, Segment, UNIQUE_STREAM_BASE};
use proptest::prelude::*;

use crate::support::vllm_config;

/// Shared tokens, own tokens, output tokens, priority.
type Row = (u32, u32, u32, i32);

/// A decision: who, how, from where, how much, on which blocks.
type Decision = (u32, Admission, u32, u32, Vec<u32>);

/// Runs `rows` for up to 600 steps and returns every decision and every preemption. The own part of a prompt
/// is the stream `own_base + row`.
fn decisions(config: &SchedulerConfig, rows: &[Row], own_base: u64) -> (Vec<Decision>, Vec<u32>) {
    let mut scheduler = VllmScheduler::new(config.clone());
    let depth = if config.async_scheduling { 2 } else { 1 };
    let (mut decisions, mut preempted) = (Vec::new(), Vec::new());
    let (mut in_flight, mut outcome) = (VecDeque::new(), StepOutcome::default());
    for step in 0..600_usize {
        if let Some(&(shared, own, output, priority)) = rows.get(step) {
            let segments: Vec<Segment> = [(7, shared), (own_base + step as u64, own)]
                .into_iter()
                .filter(|&(_, len)| len > 0)
                .map(|(stream, len)| Segment { stream, start: 0, len })
                .collect();
            scheduler.add_request(&Submission {
                id: RequestId::from_index(step),
                arrival: SimTime(step as u64),
                priority,
                tie_rank: step as u32,
                session: None,
                score: 0.0,
                prompt_tokens: shared + own,
                max_tokens: output,
                segments: &segments,
                output_stream: OUTPUT_STREAM_BASE + step as u64,
                handover: Handover::Neither,
            });
        }
        let mut batch = SchedulerOutput::default();
        scheduler.schedule(SimTime(step as u64), &mut batch);
        for entry in &batch.scheduled {
            let request = scheduler.request(entry.slot);
            let blocks = request.blocks().iter().map(|block| block.0).collect();
            decisions.push((
                request.id().0,
                entry.admission,
                entry.computed_before,
                entry.num_tokens,
                blocks,
            ));
        }
        preempted.extend(batch.preempted.iter().map(|evicted| evicted.id.0));
        in_flight.push_back(batch);
        if in_flight.len() >= depth {
            let batch = in_flight.pop_front().unwrap();
            scheduler.update(SimTime(step as u64), &batch, &mut outcome);
            for &slot in &outcome.retired {
                scheduler.retire(slot);
            }
        }
        scheduler.check_integrity().unwrap();
    }
    (decisions, preempted)
}

fn config(block_size: u32, num_blocks: u32, switches: (bool, bool, bool)) -> SchedulerConfig {
    let (priority, reserve, asynchronous) = switches;
    let base = vllm_config();
    SchedulerConfig {
        block_size,
        num_blocks,
        max_num_batched_tokens: 40,
        policy: if priority { Policy::Priority } else { Policy::Fcfs },
        scheduler_reserve_full_isl: reserve,
        async_scheduling: asynchronous,
        ..base
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn prop_private_content_decides_as_indexed_content_does(
        rows in prop::collection::vec((0_u32..30, 1_u32..60, 1_u32..60, 0_i32..3), 2..14),
        block_size in 1_u32..9,
        spare in 0_u32..40,
        switches in (any::<bool>(), any::<bool>(), any::<bool>()),
    ) {
        let config = config(block_size, 150_u32.div_ceil(block_size) + 2 + spare, switches);
        let indexed = decisions(&config, &rows, 100);
        let private = decisions(&config, &rows, UNIQUE_STREAM_BASE);
        prop_assert_eq!(indexed, private);
    }
}

#[test]
fn preempted_requests_find_their_private_content_again() {
    let rows: Vec<Row> = (0..8).map(|row| (8, 40 + row, 60, 0)).collect();
    let (decisions, preempted) = decisions(&config(4, 100, (false, false, false)), &rows, UNIQUE_STREAM_BASE);
    assert!(preempted.len() > 3, "the cache was meant to be tight, {} preemptions", preempted.len());
    let found = decisions
        .iter()
        .filter(|(_, admission, computed, _, _)| *admission == Admission::Resumed && *computed > 8)
        .count();
    assert!(found > 0, "nobody found its own blocks again");
}

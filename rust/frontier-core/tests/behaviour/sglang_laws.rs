//! Laws that hold in every turn of SGLang's scheduler, whatever the settings and requests.

use std::collections::VecDeque;

use frontier_core::ids::RequestId;
use frontier_core::plan::{RadixEvictionPolicy, SchedulePolicy, SglangConfig};
use frontier_core::scheduler::{
    BatchScheduler, Handover, SchedulerOutput, SglangScheduler, StepOutcome, Submission,
};
use frontier_core::time::SimTime;
use frontier_core::workload::{OUTPUT_STREAM_BASE, Segment};
use proptest::prelude::*;

fn settings() -> impl Strategy<Value = SglangConfig> {
    let policy = prop::sample::select(vec![
        SchedulePolicy::Fcfs,
        SchedulePolicy::Lpm,
        SchedulePolicy::DfsWeight,
        SchedulePolicy::Lof,
    ]);
    let chunk = prop::sample::select(vec![None, Some(8), Some(20), Some(60)]);
    let switches = (any::<bool>(), any::<bool>(), any::<bool>());
    (90_u32..300, 1_u32..9, chunk, 10_u32..80, policy, 0.05_f64..1.5, switches).prop_map(
        |(pool, running, chunk, prefill, policy, conservativeness, (no_cache, mixed, synchronous))| {
            SglangConfig {
                max_total_tokens: pool,
                max_running_requests: running,
                context_length: 1000,
                chunked_prefill_size: chunk,
                max_prefill_tokens: prefill,
                schedule_policy: policy,
                schedule_conservativeness: conservativeness,
                disable_radix_cache: no_cache,
                radix_eviction_policy: RadixEvictionPolicy::Lru,
                enable_mixed_chunk: mixed,
                disable_overlap_schedule: synchronous,
                enable_priority_scheduling: false,
                priority_scheduling_preemption_threshold: 10,
                schedule_low_priority_values_first: false,
                disaggregation: None,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn prop_turns_keep_limits_and_conserve_slots(
        config in settings(),
        requests in prop::collection::vec((1_u32..40, 1_u32..30, 0_u64..4), 1..14),
    ) {
        let mut scheduler = SglangScheduler::new(config.clone());
        for (id, &(prompt_tokens, max_tokens, stream)) in requests.iter().enumerate() {
            scheduler.add_request(&Submission {
                id: RequestId::from_index(id),
                arrival: SimTime::ZERO,
                priority: 0,
                tie_rank: id as u32,
                session: None,
                score: 0.0,
                prompt_tokens,
                max_tokens,
                segments: &[Segment { stream, start: 0, len: prompt_tokens }],
                output_stream: OUTPUT_STREAM_BASE + id as u64,
                handover: Handover::Neither,
            });
        }
        let depth = usize::from(!config.disable_overlap_schedule);
        let (mut in_flight, mut outcome) = (VecDeque::new(), StepOutcome::default());
        let mut tokens = vec![0_u32; requests.len()];
        let mut failed = false;
        for _ in 0..2000 {
            let mut batch = SchedulerOutput::default();
            scheduler.schedule(SimTime::ZERO, &mut batch);
            failed |= scheduler.take_failure().is_some();
            if failed {
                break;
            }
            prop_assert!(scheduler.check_integrity().is_ok(), "{:?}", scheduler.check_integrity());
            prop_assert!(batch.scheduled.len() <= config.max_running_requests as usize);
            let prefills = batch.num_prefills.unwrap_or(0) as usize;
            let computed: u32 = batch.scheduled[..prefills].iter().map(|entry| entry.num_tokens).sum();
            prop_assert!(computed <= config.chunked_prefill_size.unwrap_or(u32::MAX));
            let launched = !batch.scheduled.is_empty();
            if launched {
                in_flight.push_back(batch);
            } else if in_flight.is_empty() && !scheduler.has_requests() {
                break;
            }
            if in_flight.len() > depth || !launched {
                let Some(done) = in_flight.pop_front() else { continue };
                scheduler.update(SimTime::ZERO, &done, &mut outcome);
                for emission in &outcome.emitted {
                    tokens[emission.id.index()] += emission.num_tokens;
                }
                prop_assert!(scheduler.check_integrity().is_ok(), "{:?}", scheduler.check_integrity());
                for &slot in &outcome.retired {
                    scheduler.retire(slot);
                }
            }
        }
        let wanted: Vec<u32> = requests.iter().map(|request| request.1).collect();
        if !failed {
            // Each request fits into a pool of 90 twice, so nobody waits for ever.
            prop_assert_eq!(tokens, wanted);
            let gauges = scheduler.gauges();
            prop_assert_eq!((gauges.num_running, gauges.num_waiting, gauges.used()), (0, 0, 0));
        }
    }
}

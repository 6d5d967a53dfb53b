//! Laws that hold in every step of the scheduler, whatever the settings and requests.

use frontier_core::ids::RequestId;
use frontier_core::plan::{
    AcceptanceSpec, DraftLengthSpec, DraftMethod, Policy, SchedulerConfig, SpeculativeSpec,
};
use frontier_core::scheduler::{
    BatchScheduler, Handover, SchedulerOutput, StepOutcome, Submission, VllmScheduler,
};
use frontier_core::time::SimTime;
use frontier_core::workload::{OUTPUT_STREAM_BASE, Segment};
use proptest::prelude::*;

use crate::support::vllm_config;

fn drafters() -> impl Strategy<Value = DraftMethod> {
    prop::sample::select(vec![DraftMethod::Ngram, DraftMethod::Eagle, DraftMethod::DraftModel])
}

fn settings() -> impl Strategy<Value = SchedulerConfig> {
    let switches = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let release = (11_u32..=32, prop::option::of((drafters(), 1_u32..5, 0.0..1.0)));
    (1_u32..9, 20_u32..60, 4_u32..40, 1_u32..6, 0_u32..12, switches, release).prop_map(
        |(
            block_size,
            num_blocks,
            budget,
            max_num_seqs,
            threshold,
            (caching, priority, reserve, asynchronous),
            (minor_version, drafts),
        )| {
            let base = vllm_config();
            SchedulerConfig {
                block_size,
                num_blocks,
                max_num_batched_tokens: budget,
                max_num_seqs,
                long_prefill_token_threshold: threshold,
                enable_prefix_caching: caching,
                policy: if priority { Policy::Priority } else { Policy::Fcfs },
                scheduler_reserve_full_isl: reserve,
                async_scheduling: asynchronous,
                minor_version,
                speculative: drafts.map(|(method, num_speculative_tokens, rate)| SpeculativeSpec {
                    method,
                    num_speculative_tokens,
                    draft_length: DraftLengthSpec::Full {},
                    acceptance: AcceptanceSpec::Rate { rate },
                    seed: 1,
                    replication: 0,
                }),
                ..base
            }
        },
    )
}

proptest! {
    #[test]
    fn prop_steps_keep_budgets_and_conserve_blocks(
        config in settings(),
        requests in prop::collection::vec((1_u32..16, 1_u32..6, 0_i32..3, 0_u64..3), 1..12),
    ) {
        let mut scheduler = VllmScheduler::new(config.clone());
        for (id, &(prompt_tokens, max_tokens, priority, stream)) in requests.iter().enumerate() {
            scheduler.add_request(&Submission {
                id: RequestId::from_index(id),
                arrival: SimTime(id as u64),
                priority,
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
        let (mut batch, mut outcome) = (SchedulerOutput::default(), StepOutcome::default());
        let mut tokens = vec![0_u32; requests.len()];
        for _ in 0..400 {
            scheduler.schedule(SimTime::ZERO, &mut batch);
            let total: u32 = batch.scheduled.iter().map(|entry| entry.num_tokens).sum();
            prop_assert!(total <= config.max_num_batched_tokens);
            prop_assert!(scheduler.running().len() <= config.max_num_seqs as usize);
            for entry in &batch.scheduled {
                let request = scheduler.request(entry.slot);
                let computed = entry.computed_before + entry.num_tokens;
                prop_assert!(request.blocks().len() as u32 * config.block_size >= computed);
            }
            prop_assert!(scheduler.check_integrity().is_ok());
            scheduler.update(SimTime::ZERO, &batch, &mut outcome);
            for emission in &outcome.emitted {
                tokens[emission.id.index()] += emission.num_tokens;
            }
            prop_assert!(scheduler.check_integrity().is_ok());
            for &slot in &outcome.retired {
                scheduler.retire(slot);
            }
        }
        let wanted: Vec<u32> = requests.iter().map(|request| request.1).collect();
        // Without drafts, 20 blocks of one token fit any of these requests.
        let reserves = config.scheduler_reserve_full_isl && config.rules().reserve_full_isl;
        if reserves && config.speculative.is_none() {
            prop_assert_eq!(tokens, wanted);
            prop_assert!(!scheduler.has_requests() || batch.scheduled.is_empty());
        } else {
            prop_assert!(tokens.iter().zip(&wanted).all(|(got, asked)| got <= asked));
        }
    }
}

//! Groups of layers with sliding windows: what they hold, what they free, and which prefixes they find.

use frontier_core::ids::RequestId;
use frontier_core::plan::SchedulerConfig;
use frontier_core::scheduler::{
    BatchScheduler, Handover, SchedulerOutput, StepOutcome, Submission, VllmScheduler,
};
use frontier_core::time::SimTime;
use frontier_core::workload::{OUTPUT_STREAM_BASE, Segment};
use proptest::prelude::*;

use crate::support::vllm_config;

const BLOCK: u32 = 16;

fn config(windows: &[Option<u32>]) -> SchedulerConfig {
    SchedulerConfig {
        kv_group_windows: windows.to_vec(),
        num_blocks: 1000,
        max_model_len: 4096,
        max_num_batched_tokens: 512,
        ..vllm_config()
    }
}

/// A scheduler, and what its batches did.
struct Engine {
    scheduler: VllmScheduler,
    batch: SchedulerOutput,
    outcome: StepOutcome,
    requests: u32,
}

impl Engine {
    fn new(config: SchedulerConfig) -> Self {
        Self {
            scheduler: VllmScheduler::new(config),
            batch: SchedulerOutput::default(),
            outcome: StepOutcome::default(),
            requests: 0,
        }
    }

    fn submit(&mut self, stream: u64, prompt_tokens: u32, max_tokens: u32) {
        let id = self.requests;
        self.requests += 1;
        self.scheduler.add_request(&Submission {
            id: RequestId(id),
            arrival: SimTime(u64::from(id)),
            priority: 0,
            tie_rank: id,
            session: None,
            score: 0.0,
            prompt_tokens,
            max_tokens,
            segments: &[Segment { stream, start: 0, len: prompt_tokens }],
            output_stream: OUTPUT_STREAM_BASE + u64::from(id),
            handover: Handover::Neither,
        });
    }

    /// Makes one step and returns the blocks in use before its output is processed.
    fn step(&mut self) -> u32 {
        self.scheduler.schedule(SimTime::ZERO, &mut self.batch);
        let used = self.scheduler.gauges().used();
        self.scheduler.update(SimTime::ZERO, &self.batch, &mut self.outcome);
        for index in 0..self.outcome.retired.len() {
            self.scheduler.retire(self.outcome.retired[index]);
        }
        self.scheduler.check_integrity().unwrap();
        used
    }

    /// Runs until nothing is left and returns the tokens found in the cache, by admission.
    fn drain(&mut self) -> Vec<u32> {
        let mut found = Vec::new();
        while self.scheduler.has_requests() {
            self.step();
            let admitted = self
                .batch
                .scheduled
                .iter()
                .filter(|entry| entry.admission != frontier_core::scheduler::Admission::Running);
            found.extend(admitted.map(|entry| entry.computed_before));
        }
        found
    }
}

#[test]
fn a_window_keeps_its_tokens_and_no_more() {
    let mut engine = Engine::new(config(&[None, Some(64)]));
    engine.submit(1, 512, 1000);
    // The whole prompt is one chunk, for which both groups need blocks.
    assert_eq!(engine.step(), 2 * 512 / BLOCK);
    for token in 1..900_u32 {
        // Computed so far: the prompt and all but the token now being computed, whose query sees 63 keys before it.
        let computed = 511 + token;
        let context = (computed + 1).div_ceil(BLOCK);
        let skipped = (computed + 1 - 64) / BLOCK;
        assert_eq!(engine.step(), context + (context - skipped), "token {token}");
    }
}

#[test]
fn an_engine_of_windows_alone_holds_constant_memory() {
    let mut engine = Engine::new(config(&[Some(64)]));
    engine.submit(1, 2048, 1000);
    let most = (0..1000).map(|_| engine.step()).skip(5).max().unwrap();
    assert!(most <= 64 / BLOCK + 2, "{most} blocks");
}

#[test]
fn a_prefix_is_found_where_its_last_window_is_cached() {
    let mut engine = Engine::new(config(&[None, Some(64), Some(64)]));
    engine.submit(7, 400, 1);
    engine.submit(7, 400, 1);
    engine.submit(7, 300, 1);
    // The first computes everything; 24 full blocks of 400 tokens are found, less none: 399 / 16 = 24.
    assert_eq!(engine.drain(), [0, 24 * BLOCK, 18 * BLOCK]);
}

#[test]
fn what_the_window_left_is_evicted_first_and_shortens_no_longer_prefix() {
    let tight = SchedulerConfig { num_blocks: 60, ..config(&[None, Some(32)]) };
    let mut engine = Engine::new(tight);
    engine.submit(1, 320, 1);
    assert_eq!(engine.drain(), [0]);
    // Another prompt takes blocks that nobody holds; the least recently freed go first.
    engine.submit(2, 160, 1);
    assert_eq!(engine.drain(), [0]);
    engine.submit(1, 320, 1);
    let found = engine.drain();
    assert!(found[0] < 320, "{found:?}");
}

proptest! {
    /// Requests over few streams in a small pool: no block is lost, and all get their tokens.
    #[test]
    fn prop_groups_conserve_blocks(
        rows in prop::collection::vec((0_u64..3, 1_u32..300, 1_u32..40), 1..12),
        num_blocks in 80_u32..140,
        windows in prop::sample::select(vec![
            vec![None, Some(40)], vec![Some(20)], vec![None, Some(17), Some(64)], vec![Some(33), Some(33)],
        ]),
        (asynchronous, caching) in (any::<bool>(), any::<bool>()),
    ) {
        let config = SchedulerConfig {
            num_blocks,
            async_scheduling: asynchronous,
            enable_prefix_caching: caching,
            ..config(&windows)
        };
        let mut engine = Engine::new(config);
        for &(stream, prompt, output) in &rows {
            engine.submit(stream, prompt, output);
        }
        let mut tokens = 0;
        for _ in 0..2000 {
            engine.step();
            tokens += engine.outcome.emitted.iter().map(|emission| emission.num_tokens).sum::<u32>();
        }
        prop_assert_eq!(tokens, rows.iter().map(|row| row.2).sum::<u32>());
        prop_assert_eq!(engine.scheduler.gauges().used(), 0);
    }
}

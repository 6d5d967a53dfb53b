//! Laws of every baseline scheduler under every policy: nothing is lost, budgets hold, blocks are conserved.

use std::collections::VecDeque;

use frontier_core::ids::{RequestId, SessionId};
use frontier_core::plan::baseline::{
    BaselineSpec, CapacityPolicy, OrcaSpec, Reservation, RulesSpec, SarathiSpec, StaticSpec, TensorrtLlmSpec,
    VllmV0Spec,
};
use frontier_core::plan::policy::{
    CausalMlfqSpec, DeadlineSpec, ExpressionSpec, JobSize, LengthSpec, MlfqSpec, Objective, Policy,
    PreemptiveSpec, SlackSpec, VtcSpec,
};
use frontier_core::scheduler::{
    Admission, Baseline, BatchScheduler, Handover, SchedulerOutput, StepOutcome, Submission, VllmScheduler,
};
use frontier_core::time::SimTime;
use frontier_core::workload::{OUTPUT_STREAM_BASE, Segment};
use proptest::prelude::*;

use crate::support::vllm_config;

const MAX_MODEL_LEN: u32 = 24;

fn rules() -> impl Strategy<Value = RulesSpec> {
    let seqs = 1_u32..6;
    prop_oneof![
        (seqs.clone(), any::<bool>(), 24_u32..60).prop_map(|(max_num_seqs, padded_budget, budget)| {
            RulesSpec::VllmV0(VllmV0Spec {
                max_num_batched_tokens: budget,
                padded_budget,
                max_num_seqs,
                watermark: 0.05,
            })
        }),
        (seqs.clone(), 1_u32..20).prop_map(|(max_num_seqs, chunk_size)| {
            RulesSpec::Sarathi(SarathiSpec { chunk_size, max_num_seqs, watermark: 0.05 })
        }),
        (seqs.clone(), prop::sample::select(vec![Reservation::Max, Reservation::Pow2, Reservation::Oracle]))
            .prop_map(|(max_batch_size, reservation)| {
                RulesSpec::Orca(OrcaSpec { max_batch_size, reservation })
            }),
        seqs.clone().prop_map(|max_batch_size| RulesSpec::Static(StaticSpec { max_batch_size })),
        (seqs, any::<bool>(), any::<bool>(), any::<bool>(), 24_u32..60).prop_map(
            |(max_batch_size, no_evict, chunked, reuse, max_num_tokens)| {
                RulesSpec::TensorrtLlm(TensorrtLlmSpec {
                    capacity_policy: if no_evict {
                        CapacityPolicy::GuaranteedNoEvict
                    } else {
                        CapacityPolicy::MaxUtilization
                    },
                    max_batch_size,
                    max_num_tokens: if chunked { max_num_tokens / 3 } else { max_num_tokens },
                    enable_chunked_context: chunked,
                    enable_block_reuse: reuse,
                })
            }
        ),
    ]
}

fn mlfq(preemptive: bool) -> MlfqSpec {
    MlfqSpec {
        levels: 3,
        quantum_tokens: 2,
        growth: 2,
        prompt_tokens_per_unit: 2,
        skip_join: true,
        starvation_ns: Some(7),
        preemptive,
    }
}

fn policies() -> impl Strategy<Value = Policy> {
    let length = |by, preemptive| LengthSpec { by, error: 0.0, preemptive };
    prop::sample::select(vec![
        Policy::Fcfs,
        Policy::Priority,
        Policy::Sjf(length(JobSize::Prompt, false)),
        Policy::Srpt(length(JobSize::Total, true)),
        Policy::Edf(DeadlineSpec { objectives_ns: vec![20, 5], preemptive: true }),
        Policy::LeastSlack(SlackSpec {
            objectives_ns: vec![30],
            objective: Objective::E2e,
            per_prefill_token_ns: 1,
            per_decode_token_ns: 2,
            error: 0.0,
        }),
        Policy::Mlfq(mlfq(false)),
        Policy::Mlfq(MlfqSpec { starvation_ns: None, ..mlfq(true) }),
        Policy::CMlfq(CausalMlfqSpec { queues: mlfq(true), small_return_tokens: 2, large_return_tokens: 8 }),
        Policy::Vtc(VtcSpec { input_weight: 1.0, output_weight: 2.0 }),
        Policy::Expression(ExpressionSpec {
            text: "prompt_tokens - waiting_time * 1e9 + priority".into(),
            objectives_ns: Vec::new(),
            error: 0.0,
            preemptive: false,
        }),
        Policy::Callable(PreemptiveSpec { preemptive: true }),
    ])
}

type Request = (u32, u32, i32, u64, u32);

fn submit(scheduler: &mut impl BatchScheduler, id: usize, request: Request, arrival: u64) {
    let (prompt_tokens, max_tokens, priority, stream, session) = request;
    scheduler.add_request(&Submission {
        id: RequestId::from_index(id),
        arrival: SimTime(arrival),
        priority,
        tie_rank: id as u32,
        session: (session > 0).then_some(SessionId(session)),
        score: f64::from(max_tokens),
        prompt_tokens,
        max_tokens,
        segments: &[Segment { stream, start: 0, len: prompt_tokens }],
        output_stream: OUTPUT_STREAM_BASE + id as u64,
        handover: Handover::Neither,
    });
}

/// Runs until nobody is left; returns the tokens of each request. `look` sees every batch.
fn drain(
    scheduler: &mut impl BatchScheduler,
    requests: &[Request],
    mut look: impl FnMut(&SchedulerOutput),
) -> Vec<u32> {
    let (mut batch, mut outcome) = (SchedulerOutput::default(), StepOutcome::default());
    let mut tokens = vec![0; requests.len()];
    let mut admitted = vec![false; requests.len()];
    for step in 0..3000 {
        if let Some(&request) = requests.get(step) {
            submit(scheduler, step, request, step as u64);
        }
        let now = SimTime(step as u64);
        scheduler.schedule(now, &mut batch);
        look(&batch);
        for member in &batch.preempted {
            admitted[member.id.index()] = false;
        }
        for entry in &batch.scheduled {
            let known = std::mem::replace(&mut admitted[entry.id.index()], true);
            assert_eq!(known, entry.admission == Admission::Running, "admissions are told once");
            assert!(entry.num_tokens > 0);
        }
        scheduler.check_integrity().unwrap();
        scheduler.update(now, &batch, &mut outcome);
        for emission in &outcome.emitted {
            tokens[emission.id.index()] += emission.num_tokens;
        }
        scheduler.check_integrity().unwrap();
        for &slot in &outcome.retired {
            scheduler.retire(slot);
        }
        if step >= requests.len() && !scheduler.has_requests() {
            break;
        }
    }
    tokens
}

/// Runs with up to `stages` batches under way until nobody is left; returns the tokens of each request. No request is
/// in two batches at once, or preempted while it is in one.
fn drain_pipeline(scheduler: &mut Baseline, stages: usize, requests: &[Request]) -> Vec<u32> {
    let mut outcome = StepOutcome::default();
    let mut tokens = vec![0; requests.len()];
    let mut under_way: VecDeque<SchedulerOutput> = VecDeque::new();
    for step in 0..3000 {
        let now = SimTime(step as u64);
        if let Some(&request) = requests.get(step) {
            submit(scheduler, step, request, step as u64);
        }
        while under_way.len() < stages {
            let mut batch = SchedulerOutput::default();
            scheduler.schedule(now, &mut batch);
            scheduler.check_integrity().unwrap();
            let carried =
                |id| under_way.iter().any(|other| other.scheduled.iter().any(|entry| entry.id == id));
            assert!(
                !batch.scheduled.iter().any(|entry| carried(entry.id)),
                "a request is in one batch at most"
            );
            assert!(
                !batch.preempted.iter().any(|member| carried(member.id)),
                "what is under way is out of reach"
            );
            if batch.scheduled.is_empty() {
                break;
            }
            under_way.push_back(batch);
        }
        if let Some(batch) = under_way.pop_front() {
            scheduler.update(now, &batch, &mut outcome);
            scheduler.check_integrity().unwrap();
            for emission in &outcome.emitted {
                tokens[emission.id.index()] += emission.num_tokens;
            }
            outcome.retired.iter().for_each(|&slot| scheduler.retire(slot));
        }
        if step >= requests.len() && !scheduler.has_requests() {
            break;
        }
    }
    tokens
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    prop::collection::vec((1_u32..16, 1_u32..8, 0_i32..3, 0_u64..3, 0_u32..3), 1..16)
}

proptest! {
    #[test]
    fn prop_baselines_serve_everybody_within_their_limits(
        rules in rules(),
        policy in policies(),
        block_size in 1_u32..5,
        requests in requests(),
    ) {
        let num_blocks = 2 * MAX_MODEL_LEN.div_ceil(block_size);
        let spec = BaselineSpec {
            block_size,
            num_blocks,
            max_model_len: MAX_MODEL_LEN,
            policy,
            pipeline_parallel_size: 1,
            rules,
        };
        prop_assert!(spec.check().is_ok(), "{:?}", spec.check());
        let (max_tokens, max_seqs) = spec.batch_limits();
        let mut scheduler = Baseline::new(&spec);
        let never_preempts = matches!(
            &spec.rules,
            RulesSpec::Orca(_)
                | RulesSpec::Static(_)
                | RulesSpec::TensorrtLlm(TensorrtLlmSpec { capacity_policy: CapacityPolicy::GuaranteedNoEvict, .. })
        );
        let got = drain(&mut scheduler, &requests, |batch| {
            let total: u32 = batch.scheduled.iter().map(|entry| entry.num_tokens).sum();
            assert!(total <= max_tokens && batch.scheduled.len() <= max_seqs as usize);
            assert!(!never_preempts || batch.preempted.is_empty());
        });
        let wanted: Vec<u32> = requests.iter().map(|request| request.1).collect();
        prop_assert_eq!(got, wanted);
        prop_assert!(!scheduler.has_requests());
        prop_assert_eq!(scheduler.gauges().num_free, num_blocks);
    }

    #[test]
    fn prop_pipelines_serve_everybody_with_each_request_in_one_batch(
        rules in rules().prop_filter("others have no pipelines", |rules| {
            matches!(rules, RulesSpec::VllmV0(_) | RulesSpec::Sarathi(_))
        }),
        policy in policies(),
        stages in 1_u32..5,
        requests in requests(),
    ) {
        let mut rules = rules;
        match &mut rules {
            RulesSpec::VllmV0(spec) => spec.max_num_seqs += stages,
            RulesSpec::Sarathi(spec) => spec.max_num_seqs += stages,
            _ => {}
        }
        let spec = BaselineSpec {
            block_size: 2,
            num_blocks: MAX_MODEL_LEN,
            max_model_len: MAX_MODEL_LEN,
            policy,
            pipeline_parallel_size: stages,
            rules,
        };
        prop_assert!(spec.check().is_ok(), "{:?}", spec.check());
        let mut scheduler = Baseline::new(&spec);
        let got = drain_pipeline(&mut scheduler, stages as usize, &requests);
        let wanted: Vec<u32> = requests.iter().map(|request| request.1).collect();
        prop_assert_eq!(got, wanted);
        prop_assert_eq!(scheduler.gauges().num_free, spec.num_blocks);
    }

    #[test]
    fn prop_vllm_serves_everybody_under_every_policy(
        policy in policies(),
        asynchronous in any::<bool>(),
        requests in requests(),
        num_blocks in 26_u32..40,
        max_num_seqs in 1_u32..5,
    ) {
        let config = frontier_core::plan::SchedulerConfig {
            block_size: 1,
            num_blocks,
            max_num_batched_tokens: 20,
            max_num_seqs,
            policy,
            async_scheduling: asynchronous,
            ..vllm_config()
        };
        let mut scheduler = VllmScheduler::new(config);
        let got = drain(&mut scheduler, &requests, |batch| {
            let total: u32 = batch.scheduled.iter().map(|entry| entry.num_tokens).sum();
            assert!(total <= 20 && batch.scheduled.len() <= max_num_seqs as usize);
        });
        let wanted: Vec<u32> = requests.iter().map(|request| request.1).collect();
        prop_assert_eq!(got, wanted);
    }
}

//! What each baseline scheduler does, on cases worked out by hand: batches as lists of (request, tokens).

use frontier_core::ids::RequestId;
use frontier_core::plan::baseline::BaselineSpec;
use frontier_core::scheduler::{
    Baseline, BatchScheduler, Handover, SchedulerOutput, StepOutcome, Submission,
};
use frontier_core::time::SimTime;
use frontier_core::workload::{OUTPUT_STREAM_BASE, Segment};
use serde_json::{Value, json};

use crate::support::{burst, plan, run};

type Batch = Vec<(u32, u32)>;

fn spec(num_blocks: u32, rules: &Value) -> BaselineSpec {
    let spec: BaselineSpec = serde_json::from_value(json!({
        "block_size": 4, "num_blocks": num_blocks, "max_model_len": 32, "policy": "fcfs",
        "pipeline_parallel_size": 1, "rules": rules
    }))
    .unwrap();
    spec.check().unwrap();
    spec
}

/// Runs requests of (step of arrival, prompt, output) and returns the batches and who was preempted in which.
fn batches(spec: &BaselineSpec, requests: &[(usize, u32, u32)]) -> (Vec<Batch>, Vec<(usize, u32)>) {
    let mut scheduler = Baseline::new(spec);
    let (mut batch, mut outcome) = (SchedulerOutput::default(), StepOutcome::default());
    let (mut found, mut preempted) = (Vec::new(), Vec::new());
    for step in 0..200 {
        for (id, &(_, prompt_tokens, max_tokens)) in requests.iter().enumerate().filter(|(_, r)| r.0 == step)
        {
            scheduler.add_request(&Submission {
                id: RequestId::from_index(id),
                arrival: SimTime(step as u64),
                priority: 0,
                tie_rank: id as u32,
                session: None,
                score: 0.0,
                prompt_tokens,
                max_tokens,
                segments: &[Segment { stream: 7, start: 0, len: prompt_tokens }],
                output_stream: OUTPUT_STREAM_BASE + id as u64,
                handover: Handover::Neither,
            });
        }
        if !scheduler.has_requests() {
            break;
        }
        scheduler.schedule(SimTime(step as u64), &mut batch);
        found.push(batch.scheduled.iter().map(|entry| (entry.id.0, entry.num_tokens)).collect());
        preempted.extend(batch.preempted.iter().map(|member| (step, member.id.0)));
        scheduler.update(SimTime(step as u64), &batch, &mut outcome);
        outcome.retired.iter().for_each(|&slot| scheduler.retire(slot));
    }
    assert!(!scheduler.has_requests());
    (found, preempted)
}

fn vllm_v0(padded: bool, budget: u32) -> Value {
    json!({"kind": "vllm_v0", "max_num_batched_tokens": budget, "padded_budget": padded, "max_num_seqs": 3,
           "watermark": 0.0})
}

#[test]
fn vllm_v0_holds_decodes_back_for_prompts() {
    let (found, _) = batches(&spec(100, &vllm_v0(false, 32)), &[(0, 10, 3), (1, 20, 2), (1, 12, 2)]);
    let expected: Vec<Batch> = vec![
        vec![(0, 10)],
        vec![(1, 20), (2, 12)], // request 0 has to wait for both prompts
        vec![(0, 1), (1, 1), (2, 1)],
        vec![(0, 1)],
    ];
    assert_eq!(found, expected);
    // Padded, the two prompts count 2 * 20 tokens and need batches of their own.
    let (found, _) = batches(&spec(100, &vllm_v0(true, 32)), &[(0, 10, 3), (1, 20, 2), (1, 12, 2)]);
    assert_eq!(found[1..3], [vec![(1, 20)], vec![(2, 12)]]);
}

#[test]
fn vllm_v0_preempts_the_last_to_arrive_and_recomputes_it() {
    // 7 blocks of 4: prompts of 12 and 12 take 6. Token 13 of request 0 takes the last free one, and request 1
    // finds none: it goes, and comes back with its 13 tokens once request 0 has given up its 5 blocks.
    let (found, preempted) = batches(&spec(7, &vllm_v0(false, 32)), &[(0, 12, 6), (0, 12, 3)]);
    let expected: Vec<Batch> = vec![
        vec![(0, 12), (1, 12)],
        vec![(0, 1)],
        vec![(0, 1)],
        vec![(0, 1)],
        vec![(0, 1)],
        vec![(0, 1)],
        vec![(1, 13)],
        vec![(1, 1)],
    ];
    assert_eq!((found, preempted), (expected, vec![(1, 1)]));
}

#[test]
fn vllm_v0_wants_a_free_block_for_every_decode() {
    // 6 blocks, and prompts of 13 and 5 take 4 + 2 of them. Token 14 of request 0 has its place, yet no block is
    // free, so request 1 goes.
    let (_, preempted) = batches(&spec(6, &vllm_v0(false, 32)), &[(0, 13, 2), (0, 5, 2)]);
    assert_eq!(preempted, [(1, 1)]);
}

#[test]
fn sarathi_fills_up_with_chunks_beside_decodes() {
    let rules = json!({"kind": "sarathi", "chunk_size": 8, "max_num_seqs": 3, "watermark": 0.0});
    let (found, _) = batches(&spec(100, &rules), &[(0, 6, 5), (0, 12, 2), (0, 3, 2), (0, 1, 1)]);
    let expected: Vec<Batch> = vec![
        vec![(0, 6), (1, 2)],
        vec![(0, 1), (1, 7)],
        vec![(0, 1), (1, 3), (2, 3)], // a place of three is left over, but no seat for request 3
        vec![(0, 1), (1, 1), (2, 1)],
        vec![(0, 1), (3, 1)],
    ];
    assert_eq!(found, expected);
}

#[test]
fn orca_mixes_whole_prompts_with_decodes_while_its_reservations_fit() {
    let rules = |reservation: &str| json!({"kind": "orca", "max_batch_size": 2, "reservation": reservation});
    let requests = [(0, 10, 3), (1, 6, 2), (1, 4, 1)];
    let (found, _) = batches(&spec(16, &rules("max")), &requests);
    let expected: Vec<Batch> = vec![vec![(0, 10)], vec![(0, 1), (1, 6)], vec![(0, 1), (1, 1)], vec![(2, 4)]];
    assert_eq!(found, expected);
    // 15 blocks hold one reservation of 32 tokens, not two.
    let (found, _) = batches(&spec(15, &rules("max")), &requests);
    assert_eq!(found[1], [(0, 1)]);
    // Exactly: 4 blocks for 13 tokens, 2 for 8. With powers of two: 10 + 4 and 6 + 2 tokens, as many.
    assert_eq!(batches(&spec(8, &rules("oracle")), &requests).0, expected);
    assert_eq!(batches(&spec(8, &rules("pow2")), &requests).0, expected);
}

#[test]
fn static_batches_end_together() {
    let rules = json!({"kind": "static", "max_batch_size": 2});
    let (found, _) = batches(&spec(100, &rules), &[(0, 10, 3), (0, 4, 1), (0, 5, 2)]);
    let expected: Vec<Batch> =
        vec![vec![(0, 10), (1, 4)], vec![(0, 1)], vec![(0, 1)], vec![(2, 5)], vec![(2, 1)]];
    assert_eq!(found, expected);
    // Padded to 10 + 3 tokens each, two requests need 8 blocks.
    assert_eq!(batches(&spec(7, &rules), &[(0, 10, 3), (0, 4, 1)]).0[0], [(0, 10)]);
}

#[test]
fn static_batches_compute_their_padding() {
    let mut document = plan(&burst(2, 10, 3));
    document["clusters"][0]["scheduler"] = json!({"kind": "baseline", "block_size": 16, "num_blocks": 100, "max_model_len": 1024,
        "policy": "fcfs", "pipeline_parallel_size": 1, "rules": {"kind": "static", "max_batch_size": 2}});
    document["clusters"][0]["step_time"]["per_decode_token_ns"] = json!(1_000);
    document["workload"]["prompt_tokens"] = json!({"kind": "uniform", "min": 1, "max": 40});
    document["workload"]["output_tokens"] = json!({"kind": "uniform", "min": 2, "max": 40});
    let (recorder, totals) = run(&document).unwrap();
    let specs: Vec<_> = recorder.requests.iter().map(|record| record.spec).collect();
    assert_ne!(specs[0].prompt_tokens, specs[1].prompt_tokens);
    assert_ne!(specs[0].output_tokens, specs[1].output_tokens);
    let longest = u64::from(specs[0].prompt_tokens.max(specs[1].prompt_tokens));
    let steps = u64::from(specs[0].output_tokens.max(specs[1].output_tokens)) - 1;
    // Both prompts at the longest, then two rows per step to the end: 1 ms a step, 10 us and 1 us a token.
    let prompts_ns = 1_000_000 + 2 * longest * 10_000;
    assert_eq!(totals.end, SimTime(prompts_ns + steps * (1_000_000 + 2 * 1_000)));
}

fn tensorrt_llm(policy: &str, chunked: bool, reuse: bool, max_num_tokens: u32) -> Value {
    json!({"kind": "tensorrt_llm", "capacity_policy": policy, "max_batch_size": 3,
           "max_num_tokens": max_num_tokens, "enable_chunked_context": chunked, "enable_block_reuse": reuse})
}

#[test]
fn tensorrt_llm_without_eviction_waits_until_all_can_end() {
    // 12 + 9 - 1 tokens take 5 blocks in the end. Two requests need 10 of 9, so the second waits for the first.
    let rules = tensorrt_llm("guaranteed_no_evict", false, false, 32);
    let (found, preempted) = batches(&spec(9, &rules), &[(0, 12, 9), (0, 12, 9)]);
    assert_eq!(found.iter().position(|batch| batch.contains(&(1, 12))), Some(9));
    assert!(preempted.is_empty());
    let (found, _) = batches(&spec(10, &rules), &[(0, 12, 9), (0, 12, 9)]);
    assert_eq!(found[0], [(0, 12), (1, 12)]);
    // Prompts stand before single tokens in a batch, and count against its tokens.
    let (found, _) = batches(&spec(99, &rules), &[(0, 29, 3), (1, 8, 2), (1, 24, 1)]);
    assert_eq!(found[1..3], [vec![(1, 8), (0, 1)], vec![(2, 24), (0, 1), (1, 1)]]);
}

#[test]
fn tensorrt_llm_at_full_use_pauses_the_last_to_start() {
    // Both start on 3 blocks each of 7; token 13 of request 0 takes the seventh, request 1 has none and is paused.
    let rules = tensorrt_llm("max_utilization", false, false, 32);
    let (found, preempted) = batches(&spec(7, &rules), &[(0, 12, 6), (0, 12, 3)]);
    assert_eq!(found[0], [(0, 12), (1, 12)]);
    assert_eq!(preempted[0], (1, 1));
    assert_eq!(found.iter().filter(|batch| batch.iter().any(|entry| entry.1 > 1)).count(), 2);
    // A decode that has its place needs no free block, unlike in vLLM V0.
    let (_, preempted) = batches(&spec(6, &rules), &[(0, 13, 2), (0, 5, 2)]);
    assert!(preempted.is_empty());
}

#[test]
fn tensorrt_llm_cuts_prompts_at_blocks() {
    let rules = tensorrt_llm("guaranteed_no_evict", true, false, 10);
    let (found, _) = batches(&spec(99, &rules), &[(0, 6, 4), (0, 13, 1)]);
    let expected: Vec<Batch> = vec![
        vec![(0, 6), (1, 4)],
        vec![(1, 9), (0, 1)], // the rest fits the 9 tokens that the decode leaves, so it is not cut
        vec![(0, 1)],
        vec![(0, 1)],
    ];
    assert_eq!(found, expected);
}

#[test]
fn tensorrt_llm_reuses_computed_prompts() {
    // All prompts are of one stream: 3 blocks of 12 tokens are there once the first prompt is computed.
    let rules = tensorrt_llm("guaranteed_no_evict", false, true, 32);
    let (found, _) = batches(&spec(99, &rules), &[(0, 13, 2), (0, 13, 1), (1, 16, 1)]);
    let expected: Vec<Batch> = vec![vec![(0, 13), (1, 13)], vec![(2, 4), (0, 1)]];
    assert_eq!(found, expected);
}

//! Data-parallel ranks: lock step, dummy batches, waves, and requests spread over them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::support::{plan, run, run_with, synthetic};
use frontier_core::metrics::{Recorder, StepRow};
use frontier_core::simulation::Totals;
use frontier_core::workload::{RawTrace, TraceColumns};
use proptest::prelude::*;
use serde_json::{Value, json};

const US: u64 = 1_000;

/// Ranks in lock step behind a round-robin balancer, without padding, throttling or a first agreement.
pub(crate) fn lock_step(size: u32) -> Value {
    json!({
        "size": size, "ranks_per_balancer": size, "balancer": {"kind": "round_robin"},
        "lock_step": {"dummy_tokens": 1, "sync_interval": 32, "sync_at_first_step": false,
                      "pad_to_largest": false, "prefill_schedule_interval": 1}
    })
}

fn trace_plan(data_parallel: &Value) -> Value {
    let mut plan = plan(&json!({"kind": "trace", "arrivals": null, "num_requests": null}));
    plan["clusters"][0]["data_parallel"] = data_parallel.clone();
    plan
}

/// Runs requests of (arrival in us, prompt, output).
fn run_rows(plan: &Value, rows: &[(u64, u32, u32)]) -> (Recorder, Totals) {
    let trace = RawTrace {
        arrival_ns: rows.iter().map(|row| (row.0 * US).cast_signed()).collect(),
        prompt_tokens: rows.iter().map(|row| row.1).collect(),
        output_tokens: rows.iter().map(|row| row.2).collect(),
        priority: None,
        session: None,
        segments: None,
        ..RawTrace::default()
    };
    run_with(plan, Some(Arc::new(TraceColumns::new(trace).unwrap()))).unwrap()
}

/// Returns the ends of a rank's own steps in us.
fn ends(recorder: &Recorder, rank: usize) -> Vec<u64> {
    recorder.steps[rank].end_ns.iter().map(|end| end / US).collect()
}

fn finished(recorder: &Recorder, request: usize) -> u64 {
    recorder.requests[request].finished.unwrap().0 / US
}

#[test]
fn a_prefill_on_one_rank_delays_the_decodes_of_another() {
    // Rank 0 decodes from 0 on: steps of 1 ms, the first with a prompt token (10 us). Rank 1 gets its request at
    // 0.5 ms, when it has called for the dummies of steps 1 and 2 already, so its 200 tokens (2 ms) are in step 3.
    let (recorder, totals) = run_rows(&trace_plan(&lock_step(2)), &[(0, 1, 5), (500, 200, 1)]);
    assert_eq!(ends(&recorder, 0), [1_010, 2_010, 5_010, 6_010, 7_010]);
    assert_eq!(ends(&recorder, 1), [5_010]);
    assert_eq!((finished(&recorder, 0), finished(&recorder, 1)), (7_010, 5_010));
    // Rank 1 had none in 4 of 5 steps; the run ends with its last request.
    assert_eq!((totals.clusters[0].dummy_steps, totals.clusters[0].steps, totals.end.0), (4, 6, 7_010 * US));
    assert_eq!(totals.clusters[0].data_parallel_size, 2);
}

#[test]
fn ranks_alone_do_not_wait_for_each_other() {
    let mut ranks = lock_step(2);
    ranks["lock_step"] = json!(null);
    let (recorder, totals) = run_rows(&trace_plan(&ranks), &[(0, 1, 5), (500, 200, 1)]);
    assert_eq!(ends(&recorder, 0), [1_010, 2_010, 3_010, 4_010, 5_010]);
    assert_eq!(ends(&recorder, 1), [3_500]);
    assert_eq!(totals.clusters[0].dummy_steps, 0);
}

#[test]
fn ranks_spin_to_the_end_of_their_agreement() {
    // The first request takes step 1 (1.01 ms). 31 dummy steps follow: the wave ends at 32.01 ms.
    let first = (0, 1, 1);
    let spin_ends = 1_010 + 31_000;
    // In the middle of step 21 (20.01 to 21.01 ms) rank 1 has called for the dummy of step 22: it starts with step 23.
    let (recorder, totals) = run_rows(&trace_plan(&lock_step(2)), &[first, (20_500, 1, 1)]);
    assert_eq!(recorder.requests[1].scheduled.unwrap().0 / US, 22_010);
    assert_eq!(totals.clusters[0].dummy_steps, 1 + 2 * 21 + 1);
    // After the wave there is nothing to wait for.
    let (recorder, totals) = run_rows(&trace_plan(&lock_step(2)), &[first, (spin_ends + 500, 1, 1)]);
    assert_eq!(recorder.requests[1].scheduled.unwrap().0 / US, spin_ends + 500);
    assert_eq!(totals.clusters[0].dummy_steps, 1 + 2 * 31 + 1);
    // With half the interval it is over at 16.01 ms.
    let mut half = lock_step(2);
    half["lock_step"]["sync_interval"] = json!(16);
    let (recorder, _) = run_rows(&trace_plan(&half), &[first, (20_500, 1, 1)]);
    assert_eq!(recorder.requests[1].scheduled.unwrap().0 / US, 20_500);
    // With an agreement at the first step, at 1.01 ms.
    half["lock_step"]["sync_at_first_step"] = json!(true);
    let (recorder, totals) = run_rows(&trace_plan(&half), &[first, (1_500, 1, 1)]);
    assert_eq!(recorder.requests[1].scheduled.unwrap().0 / US, 1_500);
    assert_eq!(totals.clusters[0].dummy_steps, 2);
}

#[test]
fn two_steps_in_flight_leave_no_gap() {
    let mut plan = trace_plan(&lock_step(2));
    plan["clusters"][0]["scheduler"]["async_scheduling"] = json!(true);
    let (recorder, _) = run_rows(&plan, &[(0, 1, 5), (500, 200, 1)]);
    // Steps 1 and 2 are formed at 0, step 3 when step 1 is done (1.01 ms): rank 1 had called for its dummy. Its request
    // is in step 4, formed at 2.01 ms.
    assert_eq!(ends(&recorder, 0), [1_010, 2_010, 3_010, 6_010, 7_010]);
    assert_eq!(ends(&recorder, 1), [6_010]);
}

#[test]
fn a_lone_busy_rank_keeps_the_time_of_an_engine_without_data_parallelism() {
    for asynchronous in [false, true] {
        let rows = [(0, 300, 40)];
        let mut alone = trace_plan(&json!(null));
        alone["clusters"][0]["scheduler"]["async_scheduling"] = json!(asynchronous);
        let mut among_four = trace_plan(&lock_step(4));
        among_four["clusters"][0]["scheduler"]["async_scheduling"] = json!(asynchronous);
        let (expected, expected_totals) = run_rows(&alone, &rows);
        let (found, totals) = run_rows(&among_four, &rows);
        assert_eq!(ends(&found, 0), ends(&expected, 0));
        assert_eq!(totals.digest, expected_totals.digest);
        assert!(totals.clusters[0].dummy_steps >= 3 * totals.clusters[0].steps);
    }
}

#[test]
fn prompts_wait_for_their_turn_while_others_decode() {
    // One rank decodes, 256 tokens of prompt arrive behind it, the interval is 4: decoding goes on alone in steps 3
    // (of the wave; the request arrives in step 2), and the prompt is computed in step 4.
    let mut ranks = lock_step(2);
    ranks["lock_step"]["prefill_schedule_interval"] = json!(4);
    ranks["ranks_per_balancer"] = json!(2);
    // Requests 0 and 2 go to rank 0, request 1 to rank 1, which is done at once.
    let rows = [(0, 1, 10), (1, 1, 1), (1_500, 100, 2)];
    let (recorder, _) = run_rows(&trace_plan(&ranks), &rows);
    let (free, _) = run_rows(&trace_plan(&lock_step(2)), &rows);
    // Step 1: 1.01 ms. Step 2: 2.01 ms. Rank 1's request arrived in step 1, is in step 3 at the earliest; nothing
    // decodes there, so it does not wait: 3.02 ms. Step 4 has the prompt.
    assert_eq!(free.requests[2].scheduled.unwrap().0 / US, 2_010);
    assert_eq!(recorder.requests[1].scheduled.unwrap().0 / US, 2_010);
    assert_eq!(recorder.requests[2].scheduled.unwrap().0 / US, 3_020);
}

#[test]
fn the_balancer_follows_queues_and_requests_are_conserved() {
    let workload = synthetic(&json!({"kind": "poisson", "rate_per_s": 900.0}), 3000, 64, 16);
    for score in ["queues", "in_flight"] {
        for lock in [true, false] {
            let mut plan = plan(&workload);
            let mut ranks = lock_step(4);
            ranks["balancer"] = json!({"kind": "vllm_scores", "api_servers": 4, "snapshot_interval_ns": 100_000_000,
                                       "score": score, "rotating": score == "in_flight"});
            if !lock {
                ranks["lock_step"] = json!(null);
            }
            plan["clusters"][0]["data_parallel"] = ranks;
            plan["clusters"][0]["replicas"] = json!(2);
            let (recorder, totals) = run(&plan).unwrap();
            assert_eq!(recorder.num_ended(), 3000);
            assert!(recorder.requests.iter().all(|record| record.generated_tokens == 16));
            let mut counts = [0; 8];
            for record in &recorder.requests {
                counts[record.replica.unwrap().index()] += 1;
            }
            assert_eq!(counts[..4].iter().sum::<u32>(), 1500, "the router takes replicas in turn");
            assert!(counts.iter().all(|&count| (300..450).contains(&count)), "{score}: {counts:?}");
            let (again, same) = run(&plan).unwrap();
            assert_eq!((again.requests.len(), same.digest), (3000, totals.digest));
            // What is recorded changes nothing.
            plan["output"]["steps"] = json!(false);
            plan["output"]["timeline_interval_ns"] = json!(7_000_000);
            assert_eq!(run(&plan).unwrap().1.digest, totals.digest);
        }
    }
}

#[test]
fn an_external_balancer_sees_every_rank() {
    let workload = synthetic(&json!({"kind": "poisson", "rate_per_s": 100.0}), 40, 64, 4);
    let mut plan = plan(&workload);
    plan["clusters"][0]["data_parallel"] = lock_step(4);
    plan["clusters"][0]["data_parallel"]["ranks_per_balancer"] = json!(1);
    let (recorder, _) = run(&plan).unwrap();
    assert!(recorder.requests.iter().enumerate().all(|(i, r)| r.replica.unwrap().index() == i % 4));
}

#[test]
fn a_request_waits_for_blocks_while_others_run() {
    let mut plan = trace_plan(&lock_step(2));
    plan["clusters"][0]["scheduler"]["watermark"] = json!(0.9);
    // 99 blocks, 90 of them a reserve beside running requests: the second request waits for the first to end.
    let (recorder, _) = run_rows(&plan, &[(0, 100, 50), (0, 100, 2), (10, 200, 4)]);
    assert_eq!(recorder.num_ended(), 3);
}

#[test]
fn bad_ranks_are_refused() {
    for (field, value, path) in [
        ("size", json!(1), "data_parallel.size"),
        ("ranks_per_balancer", json!(3), "data_parallel.ranks_per_balancer"),
        (
            "balancer",
            json!({"kind": "vllm_scores", "api_servers": 0, "snapshot_interval_ns": 1,
                            "score": "queues", "rotating": false}),
            "data_parallel.balancer.api_servers",
        ),
        (
            "lock_step",
            json!({"dummy_tokens": 0, "sync_interval": 1, "sync_at_first_step": false,
                             "pad_to_largest": false, "prefill_schedule_interval": 1}),
            "data_parallel.lock_step.dummy_tokens",
        ),
    ] {
        let mut ranks = lock_step(4);
        ranks[field] = value;
        let error = run(&trace_plan(&ranks)).unwrap_err();
        assert!(error.to_string().contains(path), "{error}");
    }
}

/// Returns a plan with `stages` pipeline stages of equal time and room for many prompts.
fn pipelined(stages: u32, data_parallel: &Value) -> Value {
    let mut plan = trace_plan(data_parallel);
    plan["clusters"][0]["scheduler"]["pipeline_parallel_size"] = json!(stages);
    plan["clusters"][0]["scheduler"]["num_blocks"] = json!(1000);
    plan
}

#[test]
fn a_pipeline_passes_micro_batches_one_stage_apart() {
    // Prompts of a whole budget (1 ms + 256 * 10 us = 3.56 ms), so each is a batch; a stage takes a p-th of it.
    for (batches, stages) in [(1_u64, 4_u32), (4, 4), (7, 4), (16, 4), (5, 2), (9, 8)] {
        let rows: Vec<_> = (0..batches).map(|_| (0, 256, 1)).collect();
        let stage = 3_560_000 / u64::from(stages);
        for ranks in [json!(null), lock_step(2)] {
            // With two ranks, request 1, 3, ... go to the other one, beside those of the first.
            let per_rank = if ranks.is_null() { batches } else { batches.div_ceil(2) };
            let (_, totals) = run_rows(&pipelined(stages, &ranks), &rows);
            assert_eq!(
                totals.end.0,
                (per_rank + u64::from(stages) - 1) * stage,
                "{batches} on {stages}, {ranks}"
            );
        }
    }
}

#[test]
fn a_lone_decode_waits_for_all_stages() {
    let (recorder, totals) = run_rows(&pipelined(4, &json!(null)), &[(0, 1, 5)]);
    // One request is in one batch at a time: three stages of four are idle.
    assert_eq!(totals.end.0 / US, 1_010 + 4 * 1_000);
    assert_eq!(recorder.requests[0].generated_tokens, 5);
}

/// What the linear clock of these plans says of a rank's batch.
fn own_ns(row: &StepRow) -> u64 {
    1_000_000 + 10_000 * u64::from(row.prefill_tokens)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_step_ends_for_all_ranks_with_the_slowest(
        rows in prop::collection::vec((0_u64..60_000, 1_u32..400, 1_u32..30), 1..60),
        size in 2_u32..6,
        asynchronous in any::<bool>(),
        interval in prop::sample::select(vec![1_u32, 3]),
    ) {
        let mut rows = rows;
        rows.sort_unstable();
        let mut ranks = lock_step(size);
        ranks["lock_step"]["prefill_schedule_interval"] = json!(interval);
        let mut plan = trace_plan(&ranks);
        plan["clusters"][0]["scheduler"]["async_scheduling"] = json!(asynchronous);
        let (recorder, totals) = run_rows(&plan, &rows);
        let mut steps: BTreeMap<u64, (u64, Vec<u64>)> = BTreeMap::new();
        for table in &recorder.steps {
            for (row, &end) in table.rows.iter().zip(&table.end_ns) {
                let step = steps.entry(row.start_ns).or_insert((end, Vec::new()));
                prop_assert_eq!(step.0, end, "ranks end together");
                step.1.push(own_ns(row));
            }
        }
        let mut free = 0;
        for (&start, (end, own)) in &steps {
            // A dummy takes 1 ms, no more than any batch.
            prop_assert_eq!(end - start, own.iter().copied().max().unwrap());
            prop_assert!(start >= free, "steps do not overlap");
            free = *end;
        }
        // Every rank is in every step, with a batch or a dummy; dummies of all ranks have no row.
        let in_rows: u64 = steps.values().map(|step| u64::from(size) - step.1.len() as u64).sum();
        prop_assert!(totals.clusters[0].dummy_steps >= in_rows);
        prop_assert_eq!((totals.clusters[0].dummy_steps - in_rows) % u64::from(size), 0);
        prop_assert_eq!(recorder.num_ended(), rows.len() as u64);
        for (record, row) in recorder.requests.iter().zip(&rows) {
            prop_assert_eq!(record.generated_tokens, row.2);
        }
    }
}

/// An operator over 100 kB per token on a GPU of 1 TB/s.
fn dense_operators(data_parallel_size: u32) -> Value {
    json!({
        "kind": "operators",
        "gpu": {"num_sms": 100, "peak_flops_per_s": {"bf16": 1e15}, "memory_bandwidth_bytes_per_s": 1e12,
                "compute_efficiency": 1.0, "memory_efficiency": 1.0, "kernel_launch_s": 0.0},
        "links": {"node": null, "network": null},
        "cpu": {"per_step_s": 0.0, "per_seq_s": 0.0, "overlapped": false},
        "layout": {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": data_parallel_size},
        "residuals": null,
        "stages": [[{"op": "elementwise", "name": "layer", "count": 1, "predictor": null, "rows": "tokens",
                     "bytes_per_row": 1e5}]],
    })
}

#[test]
fn times_of_ranks_are_booked_once_however_they_are_priced() {
    for priced_together in [false, true] {
        let mut plan = trace_plan(&lock_step(2));
        plan["clusters"][0]["step_time"] = dense_operators(if priced_together { 2 } else { 1 });
        let (recorder, totals) = run_rows(&plan, &[(0, 100, 1), (0, 40, 1)]);
        assert_eq!((totals.clusters[0].steps, totals.clusters[0].dummy_steps), (2, 0));
        // 140 tokens at 100 ns each, both ranks counted.
        let seconds: f64 = totals.clusters[0].trust.iter().flat_map(|operator| operator.tally.seconds).sum();
        assert!((seconds - 140.0 * 100e-9).abs() < 1e-15, "{seconds}");
        let rows =
            |rank: usize| recorder.steps[rank].rows.iter().map(|row| row.padded_tokens).collect::<Vec<_>>();
        assert_eq!((rows(0), rows(1)), (vec![100], vec![40]));
        // They wait for the slower one.
        assert_eq!(recorder.steps[1].end_ns, [10_000]);
    }
}

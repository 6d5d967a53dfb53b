//! Prefill and decode servers of SGLang: who has memory for whom, when KV moves, and who gives the first token.

use crate::disaggregation::{disaggregated, handover, networked};
use crate::support::{burst, checked_run, run, synthetic};
use frontier_core::error::SimError;
use frontier_core::metrics::{Cause, Recorder, RequestStatus, TokenRun};
use frontier_core::simulation::Totals;
use frontier_core::time::SimTime;
use serde_json::{Value, json};

/// A token takes 62.5 us on its way.
const TOKEN_BYTES: u64 = 62_500;

/// Returns a plan of one prefill and one decode server with a dedicated link of 1 GB/s.
pub(crate) fn sglang_pair(workload: &Value, granularity: &str) -> Value {
    let mut plan = disaggregated(workload, "push", granularity);
    become_sglang(&mut plan);
    plan
}

/// Gives the engines of a plan with one prefill and one decode cluster SGLang's schedulers.
pub(crate) fn become_sglang(plan: &mut Value) {
    for (cluster, part) in [
        json!({"mode": "prefill"}),
        json!({"mode": "decode", "num_reserved_decode_tokens": 32, "polling_interval": 1}),
    ]
    .into_iter()
    .enumerate()
    {
        plan["clusters"][cluster]["scheduler"] = json!({
            "kind": "sglang", "max_total_tokens": 2000, "max_running_requests": 16, "context_length": 1024,
            "chunked_prefill_size": 256, "max_prefill_tokens": 4096, "schedule_policy": "fcfs",
            "schedule_conservativeness": 1.0, "disable_radix_cache": cluster == 1, "radix_eviction_policy": "lru",
            "enable_mixed_chunk": false, "disable_overlap_schedule": false, "enable_priority_scheduling": false,
            "priority_scheduling_preemption_threshold": 10, "schedule_low_priority_values_first": false,
            "disaggregation": part});
    }
    handover(plan)["first_token"] = json!("carried");
    handover(plan)["bytes_per_block"] = json!(TOKEN_BYTES);
}

fn set(plan: &mut Value, cluster: usize, field: &str, value: Value) {
    plan["clusters"][cluster]["scheduler"][field] = value;
}

fn tokens_in_runs(recorder: &Recorder, id: usize) -> u32 {
    let own = recorder.runs.iter().filter(|run| run.request.index() == id);
    own.map(|run| (run.last_step - run.first_step + 1) * run.tokens_per_step).sum()
}

fn finished(plan: &Value) -> (Recorder, Totals) {
    let (recorder, totals) = checked_run(plan).unwrap();
    for (id, record) in recorder.requests.iter().enumerate() {
        assert_eq!(record.status, RequestStatus::Finished);
        assert_eq!(record.generated_tokens, record.spec.output_tokens);
        assert_eq!(tokens_in_runs(&recorder, id), record.spec.output_tokens);
        let carried = recorder.runs.iter().filter(|run| run.request.index() == id);
        assert_eq!(carried.filter(|run| run.first_step == TokenRun::CARRIED).count(), 1);
        let arrival = record.spec.arrival.0;
        assert_eq!(record.e2e_causes().iter().sum::<u64>(), record.finished.unwrap().0 - arrival);
        assert_eq!(record.ttft_causes.iter().sum::<u64>(), record.first_token.unwrap().0 - arrival);
    }
    for transfer in &recorder.transfers {
        let prompt = recorder.requests[transfer.request.index()].spec.prompt_tokens;
        assert_eq!(transfer.bytes, u64::from(prompt) * TOKEN_BYTES);
        // The first token is the client's no sooner than the KV is there.
        assert!(recorder.requests[transfer.request.index()].first_token >= transfer.end);
    }
    (recorder, totals)
}

#[test]
fn a_lone_request_gets_its_first_token_with_its_kv() {
    for synchronous in [false, true] {
        for (output, decodes) in [(5, 4), (2, 1), (1, 0)] {
            let mut plan = sglang_pair(&burst(1, 160, output), "chunk");
            set(&mut plan, 0, "disable_overlap_schedule", json!(synchronous));
            set(&mut plan, 1, "disable_overlap_schedule", json!(synchronous));
            let (recorder, totals) = finished(&plan);
            let record = &recorder.requests[0];
            // 1 ms + 1.6 ms of prefill and 10 ms on the way; a step of a millisecond for each token after the first.
            assert_eq!(record.first_token, Some(SimTime(12_600_000)));
            assert_eq!(record.finished, Some(SimTime(12_600_000 + decodes * 1_000_000)));
            assert_eq!(record.e2e_causes()[Cause::KvTransfer as usize], 10_000_000);
            assert_eq!(record.e2e_causes()[Cause::Decode as usize], decodes * 1_000_000);
            // With overlap, a step more is under way when the last token is seen.
            let riding = u64::from(!synchronous && decodes > 0);
            assert_eq!((totals.clusters[0].steps, totals.clusters[1].steps), (1, decodes + riding));
        }
    }
}

#[test]
fn chunks_leave_when_they_are_computed() {
    // 960 tokens in chunks of 256: steps of 3.56 ms, and 2.92 ms for the last 192.
    let end = |granularity: &str| {
        let mut plan = sglang_pair(&burst(1, 960, 2), granularity);
        handover(&mut plan)["transport"]["bytes_per_s"] = json!(1e10);
        finished(&plan).0.transfers[0].end.unwrap().0
    };
    let computed = 3 * 3_560_000 + 1_000_000 + 192 * 10_000;
    assert_eq!(end("request"), computed + 6_000_000);
    assert_eq!(end("chunk"), computed + 1_200_000);
}

#[test]
fn a_full_decode_server_holds_prompts_up() {
    let mut plan = sglang_pair(&burst(20, 320, 60), "chunk");
    handover(&mut plan)["transport"]["bytes_per_s"] = json!(1e11);
    set(&mut plan, 1, "max_total_tokens", json!(1200));
    plan["output"]["timeline_interval_ns"] = json!(1_000_000);
    let (recorder, _) = finished(&plan);
    // 1,200 slots are three prompts of 320 with 32 tokens kept for each: a fourth is computed when one of them has left.
    let mut starts: Vec<_> = recorder.requests.iter().map(|record| record.scheduled.unwrap()).collect();
    starts.sort_unstable();
    let first_end = recorder.requests.iter().map(|record| record.finished.unwrap()).min().unwrap();
    assert!(starts[2] < first_end && starts[3] >= first_end);
    let idle = recorder.timeline.samples.iter().zip(&recorder.timeline.replica);
    let idle =
        idle.filter(|(sample, replica)| **replica == 0 && sample.num_running == 0 && sample.used_blocks == 0);
    assert!(idle.count() > 50);
    let full = recorder.timeline.samples.iter().zip(&recorder.timeline.replica);
    assert!(full.filter(|(sample, replica)| **replica == 1 && sample.num_waiting > 10).count() > 50);
    let wait =
        recorder.requests.iter().map(|record| record.e2e_causes()[Cause::KvTransferWait as usize]).max();
    assert!(wait > Some(200_000_000));
}

#[test]
fn the_retracted_come_back_with_their_kv() {
    let mut plan = sglang_pair(&burst(6, 100, 80), "chunk");
    handover(&mut plan)["transport"]["bytes_per_s"] = json!(1e11);
    set(&mut plan, 1, "max_total_tokens", json!(500));
    plan["clusters"][1]["scheduler"]["disaggregation"]["num_reserved_decode_tokens"] = json!(1);
    for synchronous in [true, false] {
        set(&mut plan, 1, "disable_overlap_schedule", json!(synchronous));
        let (recorder, _) = finished(&plan);
        come_back(&recorder, synchronous);
    }
}

fn come_back(recorder: &Recorder, synchronous: bool) {
    assert!(recorder.requests.iter().any(|record| record.preemptions > 0));
    let prompts =
        |replica: usize| recorder.steps[replica].rows.iter().map(|row| row.prefill_tokens).sum::<u32>();
    assert_eq!((prompts(0), prompts(1)), (600, 0));
    // Nothing is computed twice but, with overlap, the token that was in flight.
    let lost = if synchronous { 0 } else { 1_000_000 };
    assert!(recorder.requests.iter().all(|record| {
        record.e2e_causes()[Cause::PreemptionRedo as usize] <= u64::from(record.preemptions) * lost
    }));
    assert!(recorder.requests.iter().any(|record| record.e2e_causes()[Cause::PreemptionWait as usize] > 0));
}

#[test]
fn a_prompt_that_never_fits_is_a_named_hang() {
    let mut plan = sglang_pair(&burst(1, 400, 2), "chunk");
    set(&mut plan, 1, "max_total_tokens", json!(420));
    let error = run(&plan).unwrap_err().to_string();
    assert!(error.contains("hang") && error.contains("num_reserved_decode_tokens"), "{error}");
}

#[test]
fn servers_take_a_request_in_at_the_same_time() {
    let mut plan = sglang_pair(&burst(1, 160, 3), "chunk");
    for cluster in 0..2 {
        plan["clusters"][cluster]["frontend"] = json!({"api_servers": 1, "separate_detokenizer": false,
            "network_ns": 0, "per_request_ns": 300_000, "per_prompt_token_ns": 0, "per_message_ns": 0,
            "per_output_ns": 0, "per_output_token_ns": 0});
    }
    // Not 300 us for each of them, one after the other.
    assert_eq!(finished(&plan).0.requests[0].first_token, Some(SimTime(12_900_000)));
}

#[test]
fn random_pairs_lose_nothing() {
    let mut failed = 0;
    for seed in 0..300_u64 {
        let drawn = |salt: u64, below: u64| (seed * 7919 + salt * 104_729) % 1_000_003 % below;
        let arrivals = json!({"kind": "poisson", "rate_per_s": 100.0 + drawn(1, 400) as f64});
        let mut workload = synthetic(&arrivals, 12, 16, 2);
        workload["prompt_tokens"] = json!({"kind": "uniform", "min": 1, "max": 20 + drawn(2, 300)});
        workload["output_tokens"] = json!({"kind": "uniform", "min": 1, "max": 2 + drawn(3, 60)});
        let mut plan = sglang_pair(&workload, ["chunk", "request"][drawn(4, 2) as usize]);
        plan["seed"] = json!(seed);
        for cluster in 0..2 {
            set(&mut plan, cluster, "max_total_tokens", json!(450 + drawn(5 + cluster as u64, 400)));
            set(&mut plan, cluster, "max_running_requests", json!(1 + drawn(7 + cluster as u64, 9)));
            set(&mut plan, cluster, "disable_overlap_schedule", json!(drawn(9 + cluster as u64, 3) == 0));
        }
        set(&mut plan, 0, "chunked_prefill_size", json!(32 + drawn(11, 100)));
        set(&mut plan, 0, "disable_radix_cache", json!(drawn(12, 2) == 0));
        let part = &mut plan["clusters"][1]["scheduler"]["disaggregation"];
        part["num_reserved_decode_tokens"] = json!(drawn(13, 40));
        part["polling_interval"] = json!(1 + drawn(14, 3));
        handover(&mut plan)["transport"]["bytes_per_s"] = json!([1e9, 1e10, 1e12][drawn(15, 3) as usize]);
        if drawn(16, 2) == 0 {
            plan = networked(plan, 2, 2);
        }
        match run(&plan) {
            Ok(_) => drop(finished(&plan)),
            // Those whose KV is there, and who do not run, are not retracted for those who do.
            Err(SimError::EngineFailure { name: "out of memory", .. }) => failed += 1,
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    assert!(failed < 30, "{failed}");
}

#[test]
fn what_sglang_does_not_do_is_refused() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut plan = sglang_pair(&burst(1, 16, 2), "chunk");
        change(&mut plan);
        run(&plan).unwrap_err().to_string()
    };
    for (mode, granularity) in [("pull", "request"), ("store", "request"), ("push", "layer")] {
        let error = refused(&|plan| {
            handover(plan)["mode"] = json!(mode);
            handover(plan)["granularity"] = json!(granularity);
        });
        assert!(error.contains("first_token"), "{error}");
    }
    let error = refused(&|plan| handover(plan)["first_token"] = json!("recomputed"));
    assert!(error.contains("recomputes the first token"), "{error}");
    let error = refused(&|plan| plan["clusters"][0]["scheduler"]["disaggregation"] = json!(null));
    assert!(error.contains("of mode 'prefill'"), "{error}");
    let error = refused(&|plan| plan["paths"] = json!([]));
    assert!(error.contains("no KV is handed over"), "{error}");
    let error = refused(&|plan| {
        plan["paths"][0]["direct"] = json!({"max_uncached_tokens": 16, "deflect_above_tokens": null});
    });
    assert!(error.contains("computes no prompts"), "{error}");
    for (field, cluster, value) in [
        ("enable_priority_scheduling", 0, json!(true)),
        ("enable_mixed_chunk", 0, json!(true)),
        ("disable_radix_cache", 1, json!(false)),
    ] {
        let error = refused(&|plan| set(plan, cluster, field, value.clone()));
        assert!(error.contains(field), "{error}");
    }
}

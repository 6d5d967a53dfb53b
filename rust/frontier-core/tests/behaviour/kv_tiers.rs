//! Tiers of KV below the device, through whole runs: when loads end, what they cost, that nothing is lost.

use std::sync::Arc;

use frontier_core::cluster::KvTierTotals;
use frontier_core::error::SimError;
use frontier_core::metrics::{Cause, Recorder};
use frontier_core::simulation::Totals;
use frontier_core::workload::{RawSegments, RawTrace, TraceColumns};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{plan, run_with};

const MS: u64 = 1_000_000;
const MS_SIGNED: i64 = 1_000_000;

/// Requests (arrival in ms, stream, prompt tokens, output tokens); prompts of one stream share their prefix.
fn trace(requests: &[(i64, u64, u32, u32)]) -> Arc<TraceColumns> {
    let column = |value: fn(&(i64, u64, u32, u32)) -> u32| requests.iter().map(value).collect::<Vec<u32>>();
    let raw = RawTrace {
        arrival_ns: requests.iter().map(|request| request.0 * MS_SIGNED).collect(),
        prompt_tokens: column(|request| request.2),
        output_tokens: column(|request| request.3),
        segments: Some(RawSegments {
            offsets: (0..=requests.len() as u64).collect(),
            stream: requests.iter().map(|request| request.1).collect(),
            start: vec![0; requests.len()],
            length: column(|request| request.2),
        }),
        ..RawTrace::default()
    };
    Arc::new(TraceColumns::new(raw).expect("a valid trace"))
}

pub(crate) fn tier(kind: &str, capacity: u64, bytes_per_s: u64, eviction: &str) -> Value {
    let eviction = if eviction == "ttl" {
        json!({"policy": "ttl", "ttl_ns": 40 * MS})
    } else {
        json!({"policy": eviction})
    };
    json!({"kind": kind, "capacity_blocks": capacity, "bytes_per_block": 1000, "read_bytes_per_s": bytes_per_s,
           "write_bytes_per_s": bytes_per_s, "latency_ns": 0, "eviction": eviction, "shared": false})
}

pub(crate) fn tiers(tiers: &Value, load: &str, write_policy: &str) -> Value {
    json!({"tiers": tiers, "write_policy": write_policy, "load": load, "min_load_tokens": 1, "num_layers": 4,
           "prefetch": null})
}

/// A plan whose device has 20 usable blocks of 16 tokens, and `kv_tiers`.
fn tiered(kv_tiers: &Value) -> Value {
    let mut plan = plan(&json!({"kind": "trace", "arrivals": null, "num_requests": null}));
    plan["clusters"][0]["scheduler"]["num_blocks"] = json!(21);
    plan["clusters"][0]["scheduler"]["max_model_len"] = json!(320);
    plan["clusters"][0]["kv_tiers"] = kv_tiers.clone();
    plan
}

/// A prefix of 8 blocks, then others that take its place on the device, then the prefix again.
fn there_and_back() -> Arc<TraceColumns> {
    trace(&[(0, 1, 129, 1), (10, 2, 161, 1), (20, 3, 161, 1), (40, 1, 129, 1)])
}

fn run(kv_tiers: &Value, trace: &Arc<TraceColumns>) -> (Recorder, Totals) {
    run_with(&tiered(kv_tiers), Some(Arc::clone(trace))).expect("a run without errors")
}

fn ttft(recorder: &Recorder, request: usize) -> u64 {
    let record = &recorder.requests[request];
    record.first_token.expect("a token").0 - record.spec.arrival.0
}

fn spent(recorder: &Recorder, request: usize, cause: Cause) -> u64 {
    recorder.requests[request].e2e_causes()[cause as usize]
}

fn hits(totals: &Totals) -> Vec<(u64, u64)> {
    totals.clusters[0].kv_tiers.iter().map(|tier| (tier.lookup_blocks, tier.hit_blocks)).collect()
}

#[test]
fn a_request_waits_for_its_load_and_computes_the_rest() {
    // 8 blocks of 1000 bytes at 1 MB/s take 8 ms; the one token left is a step of 1 ms and 10 us.
    let spec = tiers(&json!([tier("host", 100, 1_000_000, "lru")]), "async", "write_through");
    let (recorder, totals) = run(&spec, &there_and_back());
    assert_eq!(ttft(&recorder, 3), 8 * MS + MS + 10_000);
    assert_eq!(spent(&recorder, 3, Cause::KvLoad), 8 * MS);
    assert_eq!(recorder.requests[3].cached_tokens, 128);
    assert_eq!(hits(&totals), [(8 + 10 + 10 + 8, 0), (36, 8)]);
    let host = totals.clusters[0].kv_tiers[1].counters.as_ref().expect("counters");
    assert_eq!((host.read_bytes, host.written_bytes), (8_000, 28_000));
    assert_eq!((host.inserted_blocks, host.evicted_blocks), (28, 0));
}

#[test]
fn blocks_from_the_disk_cross_both_links() {
    // The host keeps what came last: the prefix is on the disk alone, 8 blocks at 0.5 MB/s, then 8 at 1 MB/s.
    let levels = json!([tier("host", 10, 1_000_000, "lru"), tier("disk", 100, 500_000, "lru")]);
    let spec = tiers(&levels, "async", "write_through");
    let slowly = trace(&[(0, 1, 129, 1), (100, 2, 161, 1), (200, 3, 161, 1), (400, 1, 129, 1)]);
    let (recorder, totals) = run(&spec, &slowly);
    assert_eq!(spent(&recorder, 3, Cause::KvLoad), 16 * MS + 8 * MS);
    assert_eq!(hits(&totals)[2], (36, 8));
    // In a hurry, the host cannot let go of blocks that are still being written to the disk.
    let (recorder, totals) = run(&spec, &there_and_back());
    assert_eq!(spent(&recorder, 3, Cause::KvLoad), 8 * MS);
    assert!(totals.clusters[0].kv_tiers[1].counters.as_ref().expect("counters").refused_blocks > 0);
}

#[test]
fn a_whole_prompt_found_computes_its_last_token_again() {
    let trace = trace(&[(0, 1, 128, 1), (10, 2, 161, 1), (20, 3, 161, 1), (40, 1, 128, 1)]);
    let spec = tiers(&json!([tier("host", 100, 1_000_000, "lru")]), "async", "write_through");
    let (recorder, _) = run(&spec, &trace);
    assert_eq!(recorder.requests[3].cached_tokens, 127);
    assert_eq!(ttft(&recorder, 3), 8 * MS + MS + 10_000);
}

#[test]
fn a_step_loads_layer_by_layer() {
    // Loading 8 blocks takes 8 ms over 4 layers, computing 1 token 1.01 ms: the last layer is loaded after 8 ms and
    // computed after a quarter of the step.
    let spec = tiers(&json!([tier("host", 100, 1_000_000, "lru")]), "layerwise", "write_through");
    let (recorder, totals) = run(&spec, &there_and_back());
    let step = MS + 10_000;
    assert_eq!(ttft(&recorder, 3), 8 * MS + step / 4);
    assert_eq!(spent(&recorder, 3, Cause::KvLoad), 8 * MS + step / 4 - step);
    assert_eq!(hits(&totals)[1], (36, 8));
    // A fast link only delays the first layer: 8 blocks at 100 MB/s are 80 us, a quarter of which is waited for.
    let fast = tiers(&json!([tier("host", 100, 100_000_000, "lru")]), "layerwise", "write_through");
    assert_eq!(ttft(&run(&fast, &there_and_back()).0, 3), step + 20_000);
}

#[test]
fn a_request_waits_for_what_another_loads() {
    let trace = trace(&[(0, 1, 129, 1), (10, 2, 161, 1), (20, 3, 161, 1), (40, 1, 129, 1), (41, 1, 130, 1)]);
    let spec = tiers(&json!([tier("host", 100, 1_000_000, "lru")]), "async", "write_through");
    let (recorder, totals) = run(&spec, &trace);
    // It arrives 1 ms into the load of 8 ms, and then finds the blocks on the device.
    assert_eq!(spent(&recorder, 4, Cause::KvLoad), 7 * MS);
    assert_eq!(recorder.requests[4].cached_tokens, 128);
    let host = totals.clusters[0].kv_tiers[1].counters.as_ref().expect("counters");
    assert_eq!(host.read_bytes, 8_000);
}

#[test]
fn selective_writing_waits_for_a_second_use() {
    let spec = tiers(&json!([tier("host", 100, 1_000_000, "lru")]), "async", "write_through_selective");
    let (_, totals) = run(&spec, &there_and_back());
    assert_eq!(totals.clusters[0].kv_tiers[1].counters.as_ref().expect("counters").inserted_blocks, 0);
    let twice = trace(&[(0, 1, 129, 1), (5, 1, 129, 1), (10, 2, 161, 1), (20, 3, 161, 1), (60, 1, 129, 1)]);
    let (recorder, totals) = run(&spec, &twice);
    assert_eq!(totals.clusters[0].kv_tiers[1].counters.as_ref().expect("counters").inserted_blocks, 8);
    assert_eq!(recorder.requests[4].cached_tokens, 128);
}

#[test]
fn writing_back_holds_the_step_that_takes_the_blocks() {
    let spec = tiers(&json!([tier("host", 100, 1_000_000, "lru")]), "async", "write_back");
    let (recorder, totals) = run(&spec, &there_and_back());
    // The third request takes 11 blocks: 1 without content, 8 of the first prefix and 2 of the second; the device has
    // 20, of which the first two requests used 9 and 11.
    let host = totals.clusters[0].kv_tiers[1].counters.as_ref().expect("counters");
    assert!(host.inserted_blocks >= 8);
    let third = spent(&recorder, 2, Cause::KvLoad);
    assert!(third >= 8 * MS && third.is_multiple_of(MS), "{third}");
    assert_eq!(recorder.requests[3].cached_tokens, 128);
}

#[test]
fn a_prefetch_is_waited_for_as_its_policy_says() {
    let mut levels = json!([tier("host", 8, 100_000_000, "lru"), tier("remote", 100, 1_000_000, "lru")]);
    levels[0]["capacity_blocks"] = json!(9);
    let run_with_policy = |policy: &str, timeout_ns: u64| {
        let mut spec = tiers(&levels, "layerwise", "write_through");
        spec["prefetch"] = json!({"min_tokens": 16, "max_blocks": 100, "policy": policy, "timeout_ns": timeout_ns,
                                  "timeout_per_ki_token_ns": 0});
        let (recorder, totals) = run(&spec, &there_and_back());
        let waited = spent(&recorder, 3, Cause::KvLoad) / MS;
        (
            recorder.requests[3].cached_tokens,
            waited,
            totals.clusters[0].kv_tiers[2].counters.clone().expect("counters"),
        )
    };
    // Eight blocks at 1 ms each: nobody waits, everybody waits, or they wait for three of them.
    let (cached, waited, remote) = run_with_policy("best_effort", 0);
    assert_eq!((cached, waited, remote.read_bytes), (0, 0, 8_000));
    let (cached, waited, _) = run_with_policy("wait_complete", 0);
    assert_eq!((cached, waited), (128, 8));
    let (cached, waited, _) = run_with_policy("timeout", 3 * MS);
    assert_eq!((cached, waited), (48, 3));
}

#[test]
fn what_a_prefetch_drives_out_of_the_host_leaves_below_what_it_reads() {
    for capacity in 8..30 {
        let levels = json!([tier("host", 9, 100_000_000, "lru"), tier("remote", capacity, 1_000_000, "lru")]);
        let mut spec = tiers(&levels, "layerwise", "write_back");
        spec["prefetch"] = json!({"min_tokens": 16, "max_blocks": 100, "policy": "wait_complete", "timeout_ns": 0,
                                  "timeout_per_ki_token_ns": 0});
        let requests = [1, 2, 3, 4, 1, 2, 3, 4, 2, 1];
        let rows: Vec<_> = (0..).zip(requests).map(|(at, stream)| (at * 40, stream, 129, 1)).collect();
        let (recorder, _) = run(&spec, &trace(&rows));
        assert!(recorder.requests.iter().all(|request| request.finished.is_some()));
    }
}

#[test]
fn replicas_share_a_remote_pool() {
    let mut levels = json!([tier("host", 10, 1_000_000, "lru"), tier("remote", 100, 1_000_000, "lru")]);
    let hits_with = |levels: &Value| {
        let mut plan = tiered(&tiers(levels, "async", "write_through"));
        plan["clusters"][0]["replicas"] = json!(2);
        // Round robin: the second request of the prefix goes to the other replica.
        let trace = trace(&[(0, 1, 129, 1), (100, 1, 129, 1)]);
        let (recorder, totals) = run_with(&plan, Some(trace)).expect("a run");
        (recorder.requests[1].cached_tokens, totals.clusters[0].kv_tiers[2].clone())
    };
    let (cached, own) = hits_with(&levels);
    assert_eq!((cached, own.hit_blocks), (0, 0));
    levels[1]["shared"] = json!(true);
    let (cached, shared) = hits_with(&levels);
    assert_eq!((cached, shared.hit_blocks), (128, 8));
    assert_eq!(shared.counters.expect("counters").inserted_blocks, 8);
}

#[test]
fn what_nobody_could_load_is_refused() {
    let refused = |spec: &Value| {
        let plan = tiered(spec);
        run_with(&plan, Some(there_and_back())).expect_err("refused").to_string()
    };
    let belady = tiers(&json!([tier("host", 10, 1, "belady")]), "async", "write_through");
    assert!(refused(&belady).contains("needs the future"));
    let no_host = tiers(&json!([tier("disk", 10, 1, "lru")]), "async", "write_through");
    assert!(refused(&no_host).contains("kv_tiers.tiers"));
    let empty = tiers(&json!([tier("host", 0, 1, "lru")]), "async", "write_through");
    assert!(refused(&empty).contains("kv_tiers.tiers.0.capacity_blocks"));
}

#[test]
fn engines_that_tiers_do_not_fit_are_refused() {
    let spec = tiers(&json!([tier("host", 10, 1, "lru")]), "async", "write_through");
    let refused = |field: &str, value: Value| {
        let mut plan = tiered(&spec);
        plan["clusters"][0]["scheduler"][field] = value;
        run_with(&plan, Some(there_and_back())).expect_err("refused").to_string()
    };
    for (field, value) in [
        ("enable_prefix_caching", json!(false)),
        ("kv_group_windows", json!([null, 64])),
        ("pipeline_parallel_size", json!(2)),
        ("speculative", drafts("eagle")),
    ] {
        let message = refused(field, value);
        assert!(message.contains("kv_tiers") && message.contains(field), "{message}");
    }
}

/// Two drafts per step, of which most are accepted.
fn drafts(method: &str) -> Value {
    json!({"method": method, "num_speculative_tokens": 2, "draft_length": {"kind": "full"},
           "acceptance": {"kind": "rate", "rate": 0.7}, "seed": 5, "replication": 0})
}

/// API servers that take `per_request_ns` to accept a request, and nothing else.
fn api_servers(per_request_ns: u64) -> Value {
    json!({"api_servers": 1, "separate_detokenizer": true, "network_ns": 0, "per_request_ns": per_request_ns,
           "per_prompt_token_ns": 0, "per_message_ns": 0, "per_output_ns": 0, "per_output_token_ns": 0})
}

#[test]
fn a_prefetch_begins_when_its_request_reaches_the_engine() {
    let mut levels = json!([tier("host", 9, 100_000_000, "lru"), tier("remote", 100, 1_000_000, "lru")]);
    levels[1]["latency_ns"] = json!(2 * MS);
    let mut spec = tiers(&levels, "layerwise", "write_through");
    spec["prefetch"] = json!({"min_tokens": 16, "max_blocks": 100, "policy": "wait_complete", "timeout_ns": 0,
                              "timeout_per_ki_token_ns": 0});
    let mut plan = tiered(&spec);
    let trace = trace(&[(0, 1, 129, 1), (10, 2, 161, 1), (20, 3, 161, 1), (80, 1, 129, 1)]);
    let loaded_after = |plan: &Value| {
        let (recorder, _) = run_with(plan, Some(Arc::clone(&trace))).expect("a run without errors");
        assert_eq!(recorder.requests[3].cached_tokens, 128);
        (spent(&recorder, 3, Cause::Ingress) / MS, spent(&recorder, 3, Cause::KvLoad) / MS)
    };
    let (at_once, waited) = loaded_after(&plan);
    assert_eq!((at_once, waited), (0, 8 + 2));
    plan["clusters"][0]["frontend"] = api_servers(5 * MS);
    assert_eq!(loaded_after(&plan), (5, waited));
}

fn counted(totals: &[KvTierTotals]) -> bool {
    let chained =
        totals.windows(2).all(|pair| pair[1].lookup_blocks == pair[0].lookup_blocks - pair[0].hit_blocks);
    chained && totals.iter().all(|tier| tier.hit_blocks <= tier.lookup_blocks)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// Whatever the tiers, every request ends, its causes add up, and no block is lost (`Simulation::finish` checks
    /// every pool).
    #[test]
    fn prop_runs_end_and_books_balance(
        requests in prop::collection::vec((0_i64..6, 0_u64..5, 1_u32..200, 1_u32..40), 1..40),
        sizes in (4_u64..30, 4_u64..40, 4_u64..60),
        policies in (0_usize..3, 0_usize..4, 0_usize..4, 0_usize..4),
        switches in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), 1_usize..4),
        engine in (0_usize..4, 0_usize..4, any::<bool>()),
    ) {
        let (layerwise, asynchronous, priority, shared, depth) = switches;
        let eviction = ["lru", "lfu", "arc", "ttl"];
        let mut levels = vec![
            tier("host", sizes.0, 3_000_000, eviction[policies.1]),
            tier("disk", sizes.1, 1_000_000, eviction[policies.2]),
            tier("remote", sizes.2, 700_000, eviction[policies.3]),
        ];
        levels[2]["shared"] = json!(shared);
        levels.truncate(depth);
        let write_policy = ["write_through", "write_through_selective", "write_back"][policies.0];
        let load = if layerwise { "layerwise" } else { "async" };
        let mut spec = tiers(&json!(levels), load, write_policy);
        if layerwise && depth > 1 {
            spec["prefetch"] = json!({"min_tokens": 32, "max_blocks": 6, "policy": "timeout", "timeout_ns": 5 * MS,
                                      "timeout_per_ki_token_ns": MS});
        }
        let mut plan = tiered(&spec);
        plan["clusters"][0]["scheduler"]["async_scheduling"] = json!(asynchronous);
        plan["clusters"][0]["scheduler"]["policy"] = json!(if priority { "priority" } else { "fcfs" });
        plan["clusters"][0]["replicas"] = json!(2);
        plan["clusters"][0]["scheduler"]["minor_version"] = json!([11, 19, 24, 32][engine.0]);
        plan["clusters"][0]["scheduler"]["speculative"] = match ["", "ngram", "medusa", "draft_model"][engine.1] {
            "" => Value::Null,
            method => drafts(method),
        };
        if engine.2 {
            plan["clusters"][0]["frontend"] = api_servers(MS / 2);
        }
        let mut at = 0;
        let rows: Vec<_> = requests.iter().map(|&(gap, stream, prompt, output)| {
            at += gap;
            (at, stream, prompt, output)
        }).collect();
        let outcome = run_with(&plan, Some(trace(&rows)));
        // A request put aside holds its blocks. Under the priority policy one that was preempted may come before it,
        // need them, and so keep it waiting for ever.
        if priority && matches!(outcome, Err(SimError::Deadlock { .. })) {
            return Ok(());
        }
        let (recorder, totals) = outcome.expect("a run without errors");
        for record in &recorder.requests {
            let finished = record.finished.expect("finished");
            prop_assert_eq!(record.e2e_causes().iter().sum::<u64>(), finished.0 - record.spec.arrival.0);
            prop_assert_eq!(record.generated_tokens, record.spec.output_tokens);
        }
        prop_assert!(counted(&totals.clusters[0].kv_tiers));
        let again = run_with(&plan, Some(trace(&rows))).expect("the same run").1;
        prop_assert_eq!(totals, again);
    }
}

#[test]
fn ranks_of_a_replica_have_no_tiers() {
    let mut plan = tiered(&tiers(&json!([tier("host", 100, MS, "lru")]), "layerwise", "write_through"));
    let ranks =
        json!({"size": 2, "ranks_per_balancer": 2, "balancer": {"kind": "round_robin"}, "lock_step": null});
    plan["clusters"][0]["data_parallel"] = ranks;
    let Err(error) = run_with(&plan, Some(there_and_back())) else { panic!("the plan makes no sense") };
    let error = error.to_string();
    assert!(error.contains("kv_tiers") && error.contains("data_parallel"), "{error}");
}

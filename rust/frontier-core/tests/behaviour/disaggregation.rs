//! Disaggregated prefill and decode: who holds blocks for whom, and when KV moves.

use crate::support::{burst, plan, run, synthetic};
use frontier_core::error::SimError;
use frontier_core::metrics::{Cause, Recorder, RequestStatus};
use frontier_core::simulation::Totals;
use frontier_core::time::SimTime;
use serde_json::{Value, json};

const BLOCK_BYTES: u64 = 1_000_000;

/// Returns a plan of one prefill and one decode replica with a dedicated link of 1 GB/s, so that a block of 16 tokens
/// takes a millisecond.
pub(crate) fn disaggregated(workload: &Value, mode: &str, granularity: &str) -> Value {
    let mut plan = plan(workload);
    let mut decode = plan["clusters"][0].clone();
    decode["name"] = json!("decode");
    plan["clusters"][0]["name"] = json!("prefill");
    plan["clusters"].as_array_mut().unwrap().push(decode);
    plan["paths"] = json!([{
        "legs": [
            {"clusters": [0], "weights": [1.0], "balance": "weighted", "encodes": null, "receives": null},
            {"clusters": [1], "weights": [1.0], "balance": "weighted", "encodes": null, "receives": {
                "mode": mode, "granularity": granularity, "first_token": "recomputed",
                "proxy_latency_ns": 0, "latency_ns": 0,
                "bytes_per_block": BLOCK_BYTES, "fixed_bytes": 0, "num_layers": 4,
                "transport": {"kind": "dedicated", "bytes_per_s": 1e9}}}
        ],
        "direct": null
    }]);
    plan
}

/// Returns how the first path of a plan hands KV over, to its last leg.
pub(crate) fn handover(plan: &mut Value) -> &mut Value {
    let last = plan["paths"][0]["legs"].as_array_mut().and_then(|legs| legs.last_mut());
    &mut last.unwrap()["receives"]
}

fn finished(plan: &Value) -> (Recorder, Totals) {
    let (recorder, totals) = run(plan).unwrap();
    for record in &recorder.requests {
        assert_eq!(record.status, RequestStatus::Finished);
        assert_eq!(record.generated_tokens, record.spec.output_tokens);
        let arrival = record.spec.arrival.0;
        assert_eq!(record.e2e_causes().iter().sum::<u64>(), record.finished.unwrap().0 - arrival);
        assert_eq!(record.ttft_causes.iter().sum::<u64>(), record.first_token.unwrap().0 - arrival);
    }
    assert_eq!(recorder.transfers.len(), recorder.requests.len());
    for transfer in &recorder.transfers {
        let (start, end) = (transfer.start.unwrap(), transfer.end.unwrap());
        assert!(start <= end && transfer.ready.unwrap() <= end);
    }
    (recorder, totals)
}

#[test]
fn a_lone_request_is_computed_moved_and_decoded() {
    // 160 tokens are 10 blocks: 1 ms + 1.6 ms of prefill, 10 ms on the way, and five steps of a millisecond, of which
    // the first computes the last prompt token again (10 us more).
    let (recorder, _) = finished(&disaggregated(&burst(1, 160, 5), "pull", "request"));
    let record = &recorder.requests[0];
    assert_eq!(record.first_token, Some(SimTime(2_600_000 + 10_000_000 + 1_010_000)));
    assert_eq!(record.finished, Some(SimTime(13_610_000 + 4_000_000)));
    let transfer = recorder.transfers[0];
    assert_eq!((transfer.start, transfer.end), (Some(SimTime(2_600_000)), Some(SimTime(12_600_000))));
    assert_eq!((transfer.bytes, transfer.source.0, transfer.destination.0), (10 * BLOCK_BYTES, 0, 1));
    assert_eq!(record.e2e_causes()[Cause::KvTransfer as usize], 10_000_000);
    assert_eq!(record.e2e_causes()[Cause::KvTransferWait as usize], 0);
    assert_eq!(record.replica.unwrap().0, 1);
}

#[test]
fn chunks_and_layers_hide_the_transfer_behind_the_prefill() {
    // 960 tokens in chunks of 256: steps of 3.56 ms, and 1.92 ms for the last 192; 60 blocks.
    let run = |granularity: &str, bytes_per_s: f64| {
        let mut plan = disaggregated(&burst(1, 960, 2), "push", granularity);
        handover(&mut plan)["transport"]["bytes_per_s"] = json!(bytes_per_s);
        finished(&plan).0.transfers[0].end.unwrap().0
    };
    let computed = 3 * 3_560_000 + 1_000_000 + 192 * 10_000;
    // Whole prompts wait for the end, chunks for the end of their step, layers for a quarter of it.
    assert_eq!(run("request", 1e10), computed + 6_000_000);
    assert_eq!(run("chunk", 1e10), computed + 1_200_000);
    assert_eq!(run("layer", 1e10), computed + 300_000);
    // A slow link is the bottleneck whatever is sent at a time: pieces do not queue on dedicated links.
    assert!(run("request", 1e9) > run("chunk", 1e9) && run("chunk", 1e9) > run("layer", 1e9));
}

#[test]
fn a_full_decode_side_holds_transfers_up_and_stalls_prefills() {
    let mut plan = disaggregated(&burst(40, 320, 60), "pull", "request");
    plan["clusters"][0]["scheduler"]["num_blocks"] = json!(101);
    plan["clusters"][1]["scheduler"]["num_blocks"] = json!(73);
    plan["output"]["timeline_interval_ns"] = json!(1_000_000);
    handover(&mut plan)["transport"]["bytes_per_s"] = json!(1e11);
    let (recorder, _) = finished(&plan);
    // 72 blocks hold three requests of 20 to 24 blocks: a transfer starts when one of them has left, and not before.
    let mut decoding: Vec<(u64, i32)> = Vec::new();
    for (record, transfer) in recorder.requests.iter().zip(&recorder.transfers) {
        decoding.push((transfer.start.unwrap().0, 1));
        decoding.push((record.finished.unwrap().0, -1));
    }
    decoding.sort_unstable();
    let mut held = 0;
    for (_, change) in decoding {
        held += change;
        assert!((0..=3).contains(&held));
    }
    let mut starts: Vec<_> = recorder.transfers.iter().map(|transfer| transfer.start.unwrap().0).collect();
    starts.sort_unstable();
    let ends: Vec<_> = recorder.requests.iter().map(|record| record.finished.unwrap().0).collect();
    for start in &starts[3..] {
        assert!(ends.contains(start), "a transfer starts at the step that frees blocks for it");
    }
    // Meanwhile five prompts fill the prefill side, which computes nothing although requests wait.
    let stalled = recorder.timeline.samples.iter().zip(&recorder.timeline.replica);
    let stalled = stalled.filter(|(sample, replica)| {
        **replica == 0 && sample.used_blocks == 100 && sample.num_running == 0 && sample.num_waiting > 0
    });
    assert!(stalled.count() > 10);
    let wait =
        |record: &frontier_core::metrics::RequestRecord| record.e2e_causes()[Cause::KvTransferWait as usize];
    assert!(recorder.requests.iter().map(wait).max() > Some(100_000_000));
}

#[test]
fn pushing_reserves_before_the_prompt_is_computed() {
    let mut plan = disaggregated(&burst(12, 320, 60), "push", "request");
    plan["clusters"][1]["scheduler"]["num_blocks"] = json!(73);
    let (recorder, _) = finished(&plan);
    for (record, transfer) in recorder.requests.iter().zip(&recorder.transfers).skip(3) {
        // Nobody computes a prompt that has nowhere to go: its prefill begins after another request has left.
        let began = record.scheduled.unwrap();
        assert!(recorder.requests.iter().any(|other| other.finished.is_some_and(|end| end <= began)));
        assert_eq!(transfer.start, transfer.ready);
    }
}

#[test]
fn a_store_frees_the_source_before_the_destination_reads() {
    for (mode, moves) in [("store", 2), ("buffer", 1)] {
        let mut plan = disaggregated(&burst(12, 320, 60), mode, "request");
        plan["clusters"][1]["scheduler"]["num_blocks"] = json!(73);
        handover(&mut plan)["transport"]["bytes_per_s"] = json!(1e10);
        let (recorder, _) = finished(&plan);
        assert!(recorder.transfers.iter().all(|transfer| transfer.bytes == moves * 20 * BLOCK_BYTES));
        // The last prompt is computed long before the decode side has room for it.
        let last_ready = recorder.transfers.iter().map(|transfer| transfer.ready.unwrap()).max().unwrap();
        let first_end = recorder.requests.iter().map(|record| record.finished.unwrap()).min().unwrap();
        assert!(last_ready < first_end);
    }
}

#[test]
fn short_prompts_and_overflow_stay_on_the_decode_side() {
    let mut plan = disaggregated(&burst(8, 160, 4), "pull", "request");
    plan["paths"][0]["direct"] = json!({"max_uncached_tokens": 160, "deflect_above_tokens": null});
    let (recorder, _) = run(&plan).unwrap();
    assert!(recorder.transfers.is_empty());
    assert!(recorder.requests.iter().all(|record| record.replica.unwrap().0 == 1));
    plan["paths"][0]["direct"] = json!({"max_uncached_tokens": 159, "deflect_above_tokens": 320});
    let (recorder, _) = run(&plan).unwrap();
    // Three prompts are queued before more than 320 tokens are.
    assert_eq!(recorder.transfers.len(), 3);
    assert!(recorder.requests.iter().all(|record| record.status == RequestStatus::Finished));
}

#[test]
fn looking_for_cached_prompts_does_not_upset_the_turns_of_the_router() {
    let arrivals = json!({"kind": "constant", "rate_per_s": 20.0});
    let mut plan = disaggregated(&synthetic(&arrivals, 20, 160, 4), "pull", "request");
    plan["clusters"][1]["replicas"] = json!(2);
    plan["paths"][0]["direct"] = json!({"max_uncached_tokens": 16, "deflect_above_tokens": null});
    let (recorder, _) = finished(&plan);
    let on_first = recorder.requests.iter().filter(|record| record.replica.unwrap().0 == 1).count();
    assert_eq!(on_first, 10);
}

#[test]
fn engines_that_cannot_hand_over_are_refused() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut plan = disaggregated(&burst(1, 16, 2), "pull", "request");
        change(&mut plan);
        run(&plan).unwrap_err().to_string()
    };
    assert!(
        refused(&|plan| plan["clusters"][1]["scheduler"]["block_size"] = json!(32))
            .contains("blocks of 32, others of 16")
    );
    assert!(
        refused(&|plan| plan["clusters"][0]["scheduler"]["kv_group_windows"] = json!([0, 64]))
            .contains("windows")
    );
}

#[test]
fn a_pool_serves_what_one_of_its_clusters_can() {
    let mut plan = disaggregated(&burst(4, 600, 4), "pull", "request");
    plan["paths"][0]["legs"] = json!([
        {"clusters": [0, 1], "weights": [1.0, 1.0], "balance": "weighted", "encodes": null, "receives": null}]);
    plan["clusters"][1]["scheduler"]["max_model_len"] = json!(256);
    let (recorder, _) = run(&plan).unwrap();
    assert!(recorder.requests.iter().all(|record| record.replica.unwrap().0 == 0));
    assert!(recorder.requests.iter().all(|record| record.status == RequestStatus::Finished));
}

#[test]
fn cached_prefixes_are_not_moved_again() {
    let mut workload = synthetic(&json!({"kind": "constant", "rate_per_s": 10.0}), 6, 320, 4);
    workload["shared_prefix"] = json!({"count": 1, "tokens": {"kind": "fixed", "tokens": 160}, "zipf_exponent": 0.0,
        "share": 1.0});
    let (recorder, _) = finished(&disaggregated(&workload, "pull", "request"));
    let bytes: Vec<_> = recorder.transfers.iter().map(|transfer| transfer.bytes / BLOCK_BYTES).collect();
    assert_eq!(bytes[0], 30);
    assert!(bytes[1..].iter().all(|&blocks| blocks == 20), "{bytes:?}");
}

/// Returns `plan` with its transfers over a network of one NIC of 1 GB/s per replica.
pub(crate) fn networked(mut plan: Value, prefills: u32, decodes: u32) -> Value {
    for (cluster, (replicas, first_gpu)) in [(prefills, 0), (decodes, prefills)].into_iter().enumerate() {
        plan["clusters"][cluster]["replicas"] = json!(replicas);
        plan["clusters"][cluster]["placement"] = json!({"first_gpu": first_gpu, "gpus_per_engine": 1,
            "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "kv_heads": 8});
    }
    plan["network"] = json!({
        "groups": [{"nodes": prefills + decodes, "gpus_per_node": 1, "nvlink": null, "pcie": null,
                    "nic": {"per_node": 1, "bytes_per_s": 1e9}, "leaf": null}],
        "trunks": [], "intra_latency_ns": 0, "inter_latency_ns": 0,
        "efficiency": {"kind": "saturating", "half_bytes": 0}
    });
    handover(&mut plan)["transport"] = json!({"kind": "network"});
    plan
}

#[test]
fn a_hundred_transfers_share_the_link_of_the_one_that_receives() {
    // A hundred prefill replicas are done at the same time, and one decode replica has room for all.
    let mut plan = disaggregated(&burst(100, 160, 2), "pull", "request");
    plan["clusters"][1]["scheduler"]["num_blocks"] = json!(2000);
    plan["clusters"][1]["scheduler"]["max_num_seqs"] = json!(100);
    let (recorder, _) = finished(&networked(plan, 100, 1));
    let starts: Vec<_> = recorder.transfers.iter().map(|transfer| transfer.start.unwrap()).collect();
    assert!(starts.iter().all(|&start| start == SimTime(2_600_000)));
    let whole = 100 * 10 * BLOCK_BYTES;
    assert_eq!(recorder.transfers.iter().map(|transfer| transfer.bytes).sum::<u64>(), whole);
    assert!(recorder.transfers.iter().all(|transfer| transfer.end == Some(SimTime(2_600_000 + whole))));
}

#[test]
fn a_path_over_a_network_needs_a_place_and_a_layout_that_fits() {
    let mut plan = networked(disaggregated(&burst(1, 16, 2), "pull", "request"), 1, 1);
    plan["clusters"][1]["placement"]["first_gpu"] = json!(2);
    assert!(run(&plan).unwrap_err().to_string().contains("reached GPU 3, the network has 2"));
    plan["clusters"][1]["placement"] = json!(null);
    assert!(matches!(run(&plan), Err(SimError::Plan { path, .. }) if path == "clusters[1].placement"));
    plan["network"] = json!(null);
    assert!(run(&plan).unwrap_err().to_string().contains("transport.kind"));
}

#[test]
fn ranks_in_lock_step_hear_of_transfers_however_late_they_come() {
    // While KV is on its way the ranks step in vain, and fall asleep; its news, or a request that reaches an idle rank
    // meanwhile, must wake them whenever it comes.
    for stages in [1, 2] {
        for bytes_per_s in [1e10, 1e9, 3e8] {
            for seed in 0..8 {
                let arrivals = json!({"kind": "poisson", "rate_per_s": 25.0});
                let mut plan = disaggregated(&synthetic(&arrivals, 60, 100, 5), "pull", "request");
                plan["seed"] = json!(seed);
                for cluster in 0..2 {
                    let scheduler = &mut plan["clusters"][cluster]["scheduler"];
                    scheduler["pipeline_parallel_size"] = json!(stages);
                    scheduler["async_scheduling"] = json!(true);
                    plan["clusters"][cluster]["data_parallel"] = json!({
                        "size": 2, "ranks_per_balancer": 2, "balancer": {"kind": "round_robin"},
                        "lock_step": {"dummy_tokens": 1, "sync_interval": 32, "sync_at_first_step": false,
                                      "pad_to_largest": false, "prefill_schedule_interval": 1}
                    });
                }
                handover(&mut plan)["transport"]["bytes_per_s"] = json!(bytes_per_s);
                finished(&plan);
            }
        }
    }
}

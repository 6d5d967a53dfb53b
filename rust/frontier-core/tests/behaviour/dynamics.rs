//! Faults, maintenance, role switches, autoscaling and the front door: requests are served, run again or given up, never
//! lost.

use crate::data_parallel::lock_step;
use crate::disaggregation::{disaggregated, handover, networked};
use crate::kv_tiers::{tier, tiers};
use crate::paths::{encoded, served_beside};
use crate::sglang_handover::become_sglang;
use crate::support::{burst, checked_run, plan, run, synthetic};
use frontier_core::error::SimError;
use frontier_core::metrics::{Cause, Recorder, RejectReason, RequestStatus};
use frontier_core::time::SimTime;
use serde_json::{Value, json};

/// Adds changes to a plan.
fn changing(mut plan: Value, lost: &str, events: &[Value]) -> Value {
    plan["dynamics"] = json!({"lost_requests": lost, "events": events, "autoscale": []});
    plan
}

fn change(at_ns: u64, cluster: u32, replica: u32, change: &Value) -> Value {
    json!({"at_ns": at_ns, "cluster": cluster, "replica": replica, "change": change})
}

/// Checks that every request came to an end, and that its time is accounted for.
fn assert_accounted_for(recorder: &Recorder, count: usize) {
    assert_eq!(recorder.requests.len(), count);
    for record in &recorder.requests {
        let arrival = record.spec.arrival.0;
        match record.status {
            RequestStatus::Finished => {
                assert_eq!(record.generated_tokens, record.spec.output_tokens);
                let in_engine =
                    |causes: &[u64]| causes.iter().sum::<u64>() - causes[Cause::Delivery as usize];
                assert_eq!(in_engine(record.e2e_causes()), record.finished.unwrap().0 - arrival);
                assert_eq!(in_engine(&record.ttft_causes), record.first_token.unwrap().0 - arrival);
            }
            RequestStatus::Failed | RequestStatus::Rejected => {
                assert_ne!(record.reject_reason, RejectReason::None);
            }
            RequestStatus::Unfinished => panic!("request {} was lost", record.spec.id.0),
        }
    }
}

#[test]
fn a_replica_that_fails_takes_its_requests_with_it_or_has_them_run_again() {
    let mut serving = plan(&burst(8, 160, 20));
    serving["clusters"][0]["replicas"] = json!(2);
    let fail = change(10_000_000, 0, 1, &json!({"kind": "fail", "down_ns": null}));
    let (recorder, _) = run(&changing(serving.clone(), "fail", std::slice::from_ref(&fail))).unwrap();
    assert_accounted_for(&recorder, 8);
    let failed = |recorder: &Recorder| {
        let lost = |record: &&frontier_core::metrics::RequestRecord| {
            record.reject_reason == RejectReason::ReplicaLost
        };
        recorder.requests.iter().filter(lost).count()
    };
    assert_eq!(failed(&recorder), 4);
    let (recorder, _) = run(&changing(serving, "rerun", &[fail])).unwrap();
    assert_accounted_for(&recorder, 8);
    assert_eq!(failed(&recorder), 0);
    for record in &recorder.requests {
        let again = record.attempts == 2;
        assert_eq!(record.e2e_causes()[Cause::Lost as usize], if again { 10_000_000 } else { 0 });
        assert_eq!(record.replica.unwrap().0, 0);
        assert!(again == (record.spec.id.0 % 2 == 1));
    }
}

#[test]
fn requests_wait_for_a_replica_that_comes_back_and_fail_where_none_does() {
    let serving = plan(&burst(3, 160, 20));
    let fail = |down: Value| vec![change(5_000_000, 0, 0, &json!({"kind": "fail", "down_ns": down}))];
    let (recorder, _) = run(&changing(serving.clone(), "rerun", &fail(json!(1_000_000_000)))).unwrap();
    assert_accounted_for(&recorder, 3);
    assert!(recorder.requests.iter().all(|record| record.scheduled.is_some()));
    assert!(recorder.requests.iter().all(|record| record.first_token.unwrap() > SimTime(1_005_000_000)));
    let (recorder, _) = run(&changing(serving, "rerun", &fail(json!(null)))).unwrap();
    assert_accounted_for(&recorder, 3);
    assert!(recorder.requests.iter().all(|record| record.reject_reason == RejectReason::NoReplica));
}

#[test]
fn a_decode_replica_killed_in_mid_transfer_costs_the_transfer_alone() {
    let mut pair = disaggregated(&burst(1, 160, 5), "pull", "request");
    pair["clusters"][1]["replicas"] = json!(2);
    // The prompt is done at 2.6 ms and on its way for 10 ms.
    let fail = change(7_600_000, 1, 0, &json!({"kind": "fail", "down_ns": null}));
    let (recorder, _) = run(&changing(pair, "rerun", &[fail])).unwrap();
    assert_accounted_for(&recorder, 1);
    let ends: Vec<_> = recorder.transfers.iter().map(|transfer| transfer.end.map(|end| end.0)).collect();
    assert_eq!(ends, [None, Some(17_600_000)]);
    // The prompt is not computed again: the source kept it.
    assert_eq!(recorder.requests[0].first_token, Some(SimTime(18_610_000)));
    assert_eq!(recorder.steps[0].end_ns.len(), 1);
}

#[test]
fn a_slow_replica_and_a_slow_link_take_longer_while_they_are() {
    let alone = plan(&burst(1, 160, 5));
    let slow = |for_ns: Value| {
        let slow = json!({"kind": "slow", "factor": 3.0, "for_ns": for_ns});
        let (recorder, _) = run(&changing(alone.clone(), "fail", &[change(0, 0, 0, &slow)])).unwrap();
        recorder.requests[0].finished.unwrap().0
    };
    assert_eq!(slow(json!(null)), 3 * 6_600_000);
    // Over after the prompt: that step was formed before.
    assert_eq!(slow(json!(1_000_000)), 3 * 2_600_000 + 4_000_000);
    let pair = networked(disaggregated(&burst(1, 160, 2), "pull", "request"), 1, 1);
    let degrade = |factor: f64, for_ns: Value| {
        let degrade = json!({"kind": "degrade_links", "factor": factor, "for_ns": for_ns});
        let (recorder, _) = run(&changing(pair.clone(), "fail", &[change(0, 1, 0, &degrade)])).unwrap();
        recorder.transfers[0].end.unwrap().0
    };
    assert_eq!(degrade(0.1, json!(null)), 2_600_000 + 100_000_000);
    // A link that is down stalls the transfer until it is back.
    assert_eq!(degrade(0.0, json!(50_000_000)), 50_000_000 + 10_000_000);
}

#[test]
fn a_restart_lets_requests_end_and_keeps_new_ones_away() {
    let mut serving = plan(&synthetic(&json!({"kind": "constant", "rate_per_s": 200.0}), 40, 160, 20));
    serving["clusters"][0]["replicas"] = json!(2);
    let restart = change(20_000_000, 0, 0, &json!({"kind": "restart", "down_ns": 100_000_000}));
    let (recorder, _) = run(&changing(serving, "fail", &[restart])).unwrap();
    assert_accounted_for(&recorder, 40);
    assert!(recorder.requests.iter().all(|record| record.status == RequestStatus::Finished));
    let routed = |from: u64, to: u64| {
        let within = |record: &&frontier_core::metrics::RequestRecord| {
            (from..to).contains(&record.spec.arrival.0) && record.replica.unwrap().0 == 0
        };
        recorder.requests.iter().filter(within).count()
    };
    assert!(
        routed(0, 20_000_000) > 0
            && routed(20_000_001, 120_000_000) == 0
            && routed(150_000_000, 400_000_000) > 0
    );
}

#[test]
fn a_prefill_replica_becomes_a_decode_replica() {
    let mut pair = disaggregated(
        &synthetic(&json!({"kind": "constant", "rate_per_s": 150.0}), 60, 160, 40),
        "pull",
        "request",
    );
    pair["clusters"][0]["replicas"] = json!(2);
    pair["clusters"][1]["replicas"] = json!(2);
    pair["clusters"][1]["in_service"] = json!(1);
    let switch = change(30_000_000, 0, 1, &json!({"kind": "switch_role", "to": 1, "delay_ns": 50_000_000}));
    let (recorder, _) = run(&changing(pair, "fail", &[switch])).unwrap();
    assert_accounted_for(&recorder, 60);
    let joined = recorder.requests.iter().filter(|record| record.replica.unwrap().0 == 3);
    assert!(joined.clone().count() > 0);
    assert!(joined.clone().all(|record| record.first_token.unwrap() > SimTime(80_000_000)));
}

#[test]
fn a_cluster_grows_with_its_queue_and_shrinks_after() {
    let mut serving = plan(&synthetic(&json!({"kind": "constant", "rate_per_s": 100.0}), 400, 160, 40));
    serving["clusters"][0]["replicas"] = json!(4);
    serving["clusters"][0]["in_service"] = json!(1);
    serving["clusters"][0]["scheduler"]["max_num_seqs"] = json!(2);
    serving["clusters"][0]["router"] = json!({"policy": "least_outstanding"});
    serving["dynamics"] = json!({"lost_requests": "fail", "events": [], "autoscale": [{
        "cluster": 0, "min_replicas": 1, "max_replicas": 4, "interval_ns": 50_000_000, "metric": "outstanding",
        "up_above": 4.0, "down_below": 1.0, "provision_ns": 200_000_000, "cooldown_ns": 100_000_000}]});
    let (recorder, _) = run(&serving).unwrap();
    assert_accounted_for(&recorder, 400);
    let used: Vec<bool> = (0..4)
        .map(|replica| recorder.requests.iter().any(|record| record.replica.unwrap().0 == replica))
        .collect();
    assert_eq!(used, [true; 4]);
    let before = recorder.requests.iter().filter(|record| record.spec.arrival < SimTime(250_000_000));
    assert!(before.clone().all(|record| record.replica.unwrap().0 == 0));
}

#[test]
fn the_front_door_turns_away_times_out_and_sees_retries() {
    let mut serving = plan(&burst(10, 160, 100));
    let class = |most: Value, timeout: Value, retries: u32| {
        json!({"classes": [{"priority": 0, "max_outstanding": most, "timeout_ns": timeout, "max_retries": retries,
                            "retry_delay_ns": 50_000_000}]})
    };
    serving["admission"] = class(json!(4), json!(null), 0);
    let (recorder, _) = run(&serving).unwrap();
    assert_accounted_for(&recorder, 10);
    let with = |recorder: &Recorder, reason: RejectReason| {
        recorder.requests.iter().filter(|record| record.reject_reason == reason).count()
    };
    assert_eq!(with(&recorder, RejectReason::QueueFull), 6);
    serving["admission"] = class(json!(4), json!(null), 20);
    let (recorder, _) = run(&serving).unwrap();
    assert_accounted_for(&recorder, 10);
    assert!(recorder.requests.iter().all(|record| record.status == RequestStatus::Finished));
    assert!(recorder.requests[9].attempts > 2);
    // Ten prompts take 26 ms, a hundred tokens 100 ms: nobody is done after 60 ms.
    serving["admission"] = class(json!(null), json!(60_000_000), 0);
    let (recorder, totals) = run(&serving).unwrap();
    assert_accounted_for(&recorder, 10);
    assert_eq!(with(&recorder, RejectReason::TimedOut), 10);
    assert!(totals.end <= SimTime(61_000_000));
}

/// API servers that take 5 ms from and to their clients.
fn servers() -> Value {
    json!({"api_servers": 1, "separate_detokenizer": false, "network_ns": 5_000_000, "per_request_ns": 0,
           "per_prompt_token_ns": 0, "per_message_ns": 0, "per_output_ns": 0, "per_output_token_ns": 0})
}

#[test]
fn what_a_client_has_not_got_yet_does_not_count_twice() {
    // The prompt is done at 7.6 ms, and its answer on the way until 12.6 ms; the replica is gone in between.
    let mut pair = disaggregated(&burst(1, 160, 5), "pull", "request");
    pair["clusters"][0]["frontend"] = servers();
    let fail = change(10_000_000, 0, 0, &json!({"kind": "fail", "down_ns": null}));
    let (recorder, _) = run(&changing(pair, "fail", &[fail])).unwrap();
    assert_accounted_for(&recorder, 1);
    assert_eq!(recorder.requests[0].reject_reason, RejectReason::ReplicaLost);
}

#[test]
fn a_replica_behind_servers_drains_when_the_last_client_is_done() {
    let mut serving = plan(&synthetic(&json!({"kind": "constant", "rate_per_s": 50.0}), 10, 160, 5));
    serving["clusters"][0]["frontend"] = servers();
    let restart = change(45_000_000, 0, 0, &json!({"kind": "restart", "down_ns": 1_000_000}));
    let (recorder, _) = run(&changing(serving, "rerun", &[restart])).unwrap();
    assert_accounted_for(&recorder, 10);
    assert!(recorder.requests.iter().all(|record| record.status == RequestStatus::Finished));
}

#[test]
fn a_cluster_without_replicas_takes_one_from_its_reserve_or_gives_up() {
    let mut serving = plan(&burst(10, 160, 20));
    serving["clusters"][0]["replicas"] = json!(2);
    serving["clusters"][0]["in_service"] = json!(1);
    let scaler = json!([{"cluster": 0, "min_replicas": 1, "max_replicas": 2, "interval_ns": 10_000_000,
        "metric": "outstanding", "up_above": 1000.0, "down_below": 0.0, "provision_ns": 50_000_000, "cooldown_ns": 0}]);
    let fail = |at, replica| change(at, 0, replica, &json!({"kind": "fail", "down_ns": null}));
    let mut changed = changing(serving.clone(), "rerun", &[fail(15_000_000, 0)]);
    changed["dynamics"]["autoscale"] = scaler.clone();
    let (recorder, _) = run(&changed).unwrap();
    assert_accounted_for(&recorder, 10);
    assert!(recorder.requests.iter().all(|record| record.replica.unwrap().0 == 1));
    let mut changed = changing(serving, "rerun", &[fail(15_000_000, 0), fail(75_000_000, 1)]);
    changed["dynamics"]["autoscale"] = scaler;
    let (recorder, _) = run(&changed).unwrap();
    assert_accounted_for(&recorder, 10);
    assert!(recorder.requests.iter().all(|record| record.reject_reason == RejectReason::NoReplica));
}

#[test]
fn a_path_of_one_leg_takes_faults_beside_a_network() {
    let mut pools = networked(disaggregated(&burst(6, 160, 5), "pull", "request"), 1, 1);
    pools["paths"][0]["legs"] = json!([
        {"clusters": [0, 1], "weights": [1.0, 1.0], "balance": "weighted", "encodes": null, "receives": null}]);
    let fail = change(5_000_000, 1, 0, &json!({"kind": "fail", "down_ns": null}));
    let (recorder, _) = run(&changing(pools, "rerun", &[fail])).unwrap();
    assert_accounted_for(&recorder, 6);
    assert!(recorder.requests.iter().all(|record| record.replica.unwrap().0 == 0));
}

#[test]
fn changes_that_overlap_add_up() {
    let alone = plan(&burst(1, 16, 101));
    let slow = |at: u64, factor: f64, for_ns: Value| {
        change(at, 0, 0, &json!({"kind": "slow", "factor": factor, "for_ns": for_ns}))
    };
    let events = [slow(0, 2.0, json!(null)), slow(50_000_000, 3.0, json!(10_000_000))];
    let (recorder, _) = run(&changing(alone, "fail", &events)).unwrap();
    // 100 steps of 2 ms, of which those formed within 10 ms take three times as long.
    let end = recorder.requests[0].finished.unwrap().0;
    assert!((200_000_000..220_000_000).contains(&end), "{end}");
}

#[test]
fn a_client_does_not_know_that_its_request_ran_again() {
    let mut serving = plan(&burst(1, 160, 100));
    serving["clusters"][0]["replicas"] = json!(2);
    serving["admission"] = json!({"classes": [{"priority": 0, "max_outstanding": null, "timeout_ns": 20_000_000,
        "max_retries": 1, "retry_delay_ns": 0}]});
    let fail = change(15_000_000, 0, 0, &json!({"kind": "fail", "down_ns": null}));
    let (recorder, totals) = run(&changing(serving, "rerun", &[fail])).unwrap();
    // The client gives up after 20 ms, tries once more, and gives up again.
    assert_eq!(recorder.requests[0].reject_reason, RejectReason::TimedOut);
    assert_eq!(recorder.requests[0].attempts, 3);
    assert!((40_000_000..41_000_000).contains(&totals.end.0));
}

/// Small random numbers from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Gives some clusters of a plan API servers, and some plans encoders or another model.
fn dress(plan: &mut Value, dice: &mut Dice) {
    for cluster in 0..2 {
        if dice.below(5) == 0 {
            plan["clusters"][cluster]["frontend"] = json!({"api_servers": 1 + dice.below(2),
                "separate_detokenizer": false, "network_ns": 200_000, "per_request_ns": 300_000,
                "per_prompt_token_ns": 100, "per_message_ns": 1000, "per_output_ns": 1000, "per_output_token_ns": 100});
        }
    }
    if dice.below(4) == 0 {
        encoded(plan, 16 + dice.below(300) as u32, 0.7);
    }
    if dice.below(4) == 0 {
        served_beside(plan, 0.5);
    }
}

/// Returns a disaggregated plan with faults drawn from a seed.
fn faulty(seed: u64) -> (Value, usize) {
    let mut dice = Dice(seed);
    let count = 4 + dice.below(9) as u32;
    let mut workload = synthetic(
        &json!({"kind": "poisson", "rate_per_s": 200.0}),
        count,
        16 + dice.below(400) as u32,
        2 + dice.below(30) as u32,
    );
    // Tiers below the prefill side's device: small ones, which a few shared prefixes fill.
    let tiered = dice.below(3) == 0;
    if tiered {
        workload["shared_prefix"] = json!({"count": 1 + dice.below(4), "zipf_exponent": 0.0, "share": 1.0,
            "tokens": {"kind": "fixed", "tokens": 16 * (1 + dice.below(20))}});
    }
    let mode = ["pull", "push", "store", "buffer"][dice.below(4) as usize];
    let granularity =
        if mode == "push" { ["request", "chunk", "layer"][dice.below(3) as usize] } else { "request" };
    let mut plan = disaggregated(&workload, mode, granularity);
    plan["seed"] = json!(seed);
    let (prefills, decodes) = (1 + dice.below(2) as u32, 1 + dice.below(2) as u32);
    if mode != "store" && dice.below(2) == 0 {
        plan = networked(plan, prefills, decodes);
    }
    let on_network = !plan["network"].is_null();
    for (cluster, replicas) in [(0, prefills), (1, decodes)] {
        plan["clusters"][cluster]["replicas"] = json!(replicas);
        plan["clusters"][cluster]["scheduler"]["async_scheduling"] = json!(dice.below(2) == 0);
        plan["clusters"][cluster]["scheduler"]["num_blocks"] = json!(40 + dice.below(60));
    }
    if plan["network"].is_null() && mode != "push" && dice.below(3) == 0 {
        plan["clusters"][1]["data_parallel"] = lock_step(2);
        plan["clusters"][1]["scheduler"]["async_scheduling"] = json!(false);
    }
    if tiered {
        let mut remote = tier("remote", 1 + dice.below(20), 2_000_000, "lru");
        remote["shared"] = json!(true);
        let below = json!([
            tier("host", 1 + dice.below(8), 1_000_000, "lru"),
            tier("disk", 1 + dice.below(8), 500_000, "lfu"),
            remote
        ]);
        let load = if dice.below(2) == 0 { "async" } else { "layerwise" };
        plan["clusters"][0]["kv_tiers"] = tiers(&below, load, "write_through");
        plan["clusters"][0]["scheduler"]["num_blocks"] = json!(62 + dice.below(20));
    }
    handover(&mut plan)["proxy_latency_ns"] = json!(dice.below(3) * 500_000);
    dress(&mut plan, &mut dice);
    let num_clusters = plan["clusters"].as_array().unwrap().len() as u64;
    let events = (0..dice.below(5)).map(|_| {
        let cluster = dice.below(num_clusters) as u32;
        let replicas = [prefills, decodes].get(cluster as usize).copied().unwrap_or(1);
        let replica = dice.below(u64::from(replicas)) as u32;
        let down = if dice.below(3) == 0 { json!(null) } else { json!(dice.below(40) * 1_000_000) };
        let kind = match dice.below(if on_network && cluster < 2 { 5 } else { 4 }) {
            0 | 1 => json!({"kind": "fail", "down_ns": down}),
            2 => json!({"kind": "restart", "down_ns": dice.below(20) * 1_000_000}),
            3 => json!({"kind": "slow", "factor": 1.0 + dice.below(5) as f64, "for_ns": 10_000_000}),
            _ => {
                json!({"kind": "degrade_links", "factor": dice.below(3) as f64 / 10.0, "for_ns": 20_000_000})
            }
        };
        change(dice.below(80) * 700_000, cluster, replica, &kind)
    });
    let mut events: Vec<Value> = events.collect();
    if dice.below(4) == 0 {
        plan["paths"][0]["direct"] = json!({"max_uncached_tokens": dice.below(300),
            "deflect_above_tokens": dice.below(2000)});
    }
    let mut scalers = Vec::new();
    if decodes == 2 && dice.below(3) == 0 {
        plan["clusters"][1]["in_service"] = json!(1);
        if prefills == 2 && dice.below(2) == 0 {
            events.push(change(
                dice.below(40) * 1_000_000,
                0,
                1,
                &json!({"kind": "switch_role", "to": 1, "delay_ns": 5_000_000}),
            ));
        } else {
            scalers.push(
                json!({"cluster": 1, "min_replicas": 1, "max_replicas": 2, "interval_ns": 3_000_000,
                "metric": "outstanding", "up_above": 3.0, "down_below": 1.0, "provision_ns": 2_000_000,
                "cooldown_ns": 1_000_000}),
            );
        }
    }
    let lost = if dice.below(3) == 0 { "fail" } else { "rerun" };
    let mut plan = changing(plan, lost, &events);
    plan["dynamics"]["autoscale"] = json!(scalers);
    if dice.below(3) == 0 {
        plan["admission"] = json!({"classes": [{"priority": 0, "max_outstanding": 3 + dice.below(6),
            "timeout_ns": (20 + dice.below(60)) * 1_000_000, "max_retries": dice.below(3),
            "retry_delay_ns": 5_000_000}]});
    }
    serve_by_sglang(&mut plan, seed);
    (plan, count as usize)
}

/// Gives the engines of one plan in four without tiers SGLang's schedulers, with little memory.
fn serve_by_sglang(plan: &mut Value, seed: u64) {
    let mut dice = Dice(seed + 1_000_000);
    if !plan["clusters"][0]["kv_tiers"].is_null() || dice.below(4) > 0 {
        return;
    }
    become_sglang(plan);
    plan["paths"][0]["direct"] = json!(null);
    let receives = handover(plan);
    receives["mode"] = json!("push");
    receives["granularity"] = json!(["chunk", "request"][dice.below(2) as usize]);
    plan["clusters"][1]["data_parallel"] = json!(null);
    for cluster in 0..2 {
        let scheduler = &mut plan["clusters"][cluster]["scheduler"];
        scheduler["max_total_tokens"] = json!(480 + dice.below(600));
        scheduler["max_running_requests"] = json!(1 + dice.below(16));
        scheduler["disable_overlap_schedule"] = json!(dice.below(2) == 0);
        if cluster == 0 {
            scheduler["chunked_prefill_size"] = json!(64 + dice.below(200));
            scheduler["disable_radix_cache"] = json!(dice.below(2) == 0);
        }
    }
    let part = &mut plan["clusters"][1]["scheduler"]["disaggregation"];
    part["num_reserved_decode_tokens"] = json!(dice.below(33));
    part["polling_interval"] = json!(1 + dice.below(2));
}

#[test]
fn ten_thousand_random_fault_schedules_lose_no_request() {
    let (mut again, mut failed, mut evicted, mut by_sglang, mut out_of_memory) = (0, 0, 0, 0, 0);
    for seed in 0..10_000 {
        let (mut plan, count) = faulty(seed);
        let is_sglang = handover(&mut plan)["first_token"] == "carried";
        let ran = if is_sglang { checked_run(&plan) } else { run(&plan) };
        let (recorder, totals) = match ran {
            Ok(ran) => ran,
            // Memory set aside for requests to come cannot be taken back, which SGLang does not survive.
            Err(SimError::EngineFailure { .. }) if is_sglang => {
                out_of_memory += 1;
                continue;
            }
            Err(error) => panic!("seed {seed}: {error}"),
        };
        assert_accounted_for(&recorder, count);
        by_sglang += u32::from(is_sglang);
        again += recorder.requests.iter().filter(|record| record.attempts > 1).count();
        let counters = totals.clusters[0].kv_tiers.iter().filter_map(|tier| tier.counters.as_ref());
        evicted += counters.map(|counters| counters.evicted_blocks).sum::<u64>();
        failed += recorder.requests.iter().filter(|record| record.status == RequestStatus::Failed).count();
    }
    assert!(by_sglang > 1_000, "{by_sglang} ran under SGLang");
    assert!(out_of_memory < 10, "{out_of_memory} engines ran out of memory");
    assert!(again > 5_000 && failed > 1_000, "{again} ran again, {failed} failed");
    assert!(evicted > 10_000, "{evicted} blocks were evicted from full tiers");
}

//! Routing policies over replicas.

use std::sync::Arc;

use crate::support::{plan, run, run_with, synthetic};
use frontier_core::error::SimError;
use frontier_core::metrics::Recorder;
use frontier_core::workload::{RawSegments, RawTrace, TraceColumns};
use serde_json::{Value, json};

fn on_replicas(replicas: u32, router: &Value, workload: &Value) -> Value {
    let mut plan = plan(workload);
    plan["clusters"][0]["replicas"] = json!(replicas);
    plan["clusters"][0]["router"] = router.clone();
    plan
}

fn counts(recorder: &Recorder, replicas: usize) -> Vec<usize> {
    let mut counts = vec![0; replicas];
    for record in &recorder.requests {
        counts[record.replica.unwrap().index()] += 1;
    }
    counts
}

fn poisson(count: u32) -> Value {
    synthetic(&json!({"kind": "poisson", "rate_per_s": 400.0}), count, 64, 16)
}

#[test]
fn round_robin_takes_turns() {
    let (recorder, _) = run(&on_replicas(3, &json!({"policy": "round_robin"}), &poisson(30))).unwrap();
    assert!(recorder.requests.iter().enumerate().all(|(i, r)| r.replica.unwrap().index() == i % 3));
}

#[test]
fn random_is_uniform() {
    let (recorder, _) = run(&on_replicas(4, &json!({"policy": "random"}), &poisson(4000))).unwrap();
    assert!(counts(&recorder, 4).iter().all(|&n| (900..1100).contains(&n)));
}

#[test]
fn load_aware_policies_wait_less_than_random() {
    let mean_wait = |policy: &str| {
        let mut plan = on_replicas(4, &json!({"policy": policy}), &poisson(4000));
        // Two slots of 16.6 ms each per replica: a load of 0.83.
        plan["clusters"][0]["scheduler"]["max_num_seqs"] = json!(2);
        let (recorder, _) = run(&plan).unwrap();
        let waits = recorder.requests.iter().map(|r| r.scheduled.unwrap().0 - r.spec.arrival.0);
        waits.sum::<u64>() / 4000
    };
    let random = mean_wait("random");
    for policy in ["least_outstanding", "power_of_two", "least_kv_use"] {
        let wait = mean_wait(policy);
        assert!(2 * wait < random, "{policy}: {wait} ns, random: {random} ns");
    }
}

#[test]
fn a_session_stays_on_its_replica() {
    let mut workload = poisson(300);
    workload["sessions"] = json!(20);
    let (recorder, _) = run(&on_replicas(4, &json!({"policy": "session_sticky"}), &workload)).unwrap();
    let mut home = [None; 20];
    for record in &recorder.requests {
        let session = record.spec.session.unwrap().index();
        assert_eq!(*home[session].get_or_insert(record.replica), record.replica);
    }
    assert!(counts(&recorder, 4).iter().all(|&n| n > 0));
}

#[test]
fn prefix_aware_routing_follows_the_cache_until_it_costs_too_much() {
    // Two prefixes of 256 tokens, alternating pairwise, far enough apart in time to find the cache settled.
    let rows: u32 = 12;
    let stream = |row: u32| u64::from(row / 2 % 2);
    let trace = || {
        let raw = RawTrace {
            arrival_ns: (0..i64::from(rows)).map(|row| row * 100_000_000).collect(),
            prompt_tokens: vec![260; rows as usize],
            output_tokens: vec![4; rows as usize],
            segments: Some(RawSegments {
                offsets: (0..=u64::from(rows)).map(|row| row * 2).collect(),
                stream: (0..rows).flat_map(|row| [stream(row), 100 + u64::from(row)]).collect(),
                start: vec![0; 2 * rows as usize],
                length: (0..rows).flat_map(|_| [256, 4]).collect(),
            }),
            ..RawTrace::default()
        };
        Some(Arc::new(TraceColumns::new(raw).unwrap()))
    };
    let workload = json!({"kind": "trace", "arrivals": null, "num_requests": null});
    let aware = json!({"policy": "prefix_aware", "max_imbalance": 4});
    let (recorder, _) = run_with(&on_replicas(2, &aware, &workload), trace()).unwrap();
    // Only the first request of each prefix misses.
    let misses: Vec<u32> =
        recorder.requests.iter().filter(|r| r.cached_tokens == 0).map(|r| r.spec.id.0).collect();
    assert_eq!(misses, [0, 2]);
    let burst = json!({"kind": "trace", "arrivals": {"kind": "burst"}, "num_requests": null});
    let strict = json!({"policy": "prefix_aware", "max_imbalance": 0});
    let (recorder, _) = run_with(&on_replicas(2, &strict, &burst), trace()).unwrap();
    assert_eq!(counts(&recorder, 2), [6, 6], "no imbalance allowed: the cache must not matter");
}

#[test]
fn settings_that_a_policy_does_not_have_are_refused() {
    let with_extra = on_replicas(2, &json!({"policy": "round_robin", "max_imbalance": 3}), &poisson(3));
    assert!(matches!(run(&with_extra), Err(SimError::Plan { .. })));
    let mut burst = poisson(3);
    burst["arrivals"] = json!({"kind": "burst", "rate_per_s": 3.0});
    assert!(matches!(
        run(&on_replicas(2, &json!({"policy": "round_robin"}), &burst)),
        Err(SimError::Plan { .. })
    ));
}

#[test]
fn equal_plans_have_equal_digests_and_other_seeds_other_ones() {
    let digest = |seed: u64| {
        let mut plan = on_replicas(4, &json!({"policy": "power_of_two"}), &poisson(500));
        plan["seed"] = json!(seed);
        run(&plan).unwrap().1.digest
    };
    assert_eq!(digest(1), digest(1));
    assert_ne!(digest(1), digest(2));
}

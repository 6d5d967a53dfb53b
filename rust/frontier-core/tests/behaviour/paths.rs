//! Ways of requests through clusters: a leg that encodes before the prompt, and several models side by side.

use crate::disaggregation::disaggregated;
use crate::support::{burst, plan, run, synthetic};
use frontier_core::metrics::{Cause, Recorder, RequestRecord, RequestStatus};
use frontier_core::time::SimTime;
use serde_json::{Value, json};

/// Bytes of a token's embeddings, which go at 1 GB/s.
const EMBEDDING_BYTES: u32 = 10_000;

/// Puts a cluster of encoders before the first path of a plan. A `share` of its requests has `tokens` to encode.
pub(crate) fn encoded(plan: &mut Value, tokens: u32, share: f64) {
    let mut encoder = plan["clusters"][0].clone();
    encoder["name"] = json!("encode");
    encoder["replicas"] = json!(1);
    encoder["placement"] = json!(null);
    encoder["kv_tiers"] = json!(null);
    let clusters = plan["clusters"].as_array_mut().unwrap();
    clusters.push(encoder);
    let number = clusters.len() - 1;
    plan["paths"][0]["legs"].as_array_mut().unwrap().insert(
        0,
        json!({"clusters": [number], "weights": [1.0], "balance": "weighted", "receives": null,
            "encodes": {"bytes_per_token": EMBEDDING_BYTES, "latency_ns": 0, "bytes_per_s": 1e9}}),
    );
    plan["workload"]["encoder"] = json!({"tokens": {"kind": "fixed", "tokens": tokens}, "share": share});
}

/// Puts a cluster that serves another model beside the first path of a plan; a `share` of the requests is for it.
pub(crate) fn served_beside(plan: &mut Value, share: f64) {
    let mut other = plan["clusters"][0].clone();
    other["name"] = json!("other");
    other["replicas"] = json!(1);
    other["placement"] = json!(null);
    other["kv_tiers"] = json!(null);
    let clusters = plan["clusters"].as_array_mut().unwrap();
    clusters.push(other);
    let number = clusters.len() - 1;
    plan["paths"].as_array_mut().unwrap().push(json!({"direct": null, "legs": [
        {"clusters": [number], "weights": [1.0], "balance": "weighted", "encodes": null, "receives": null}]}));
    plan["workload"]["models"] = json!([1.0 - share, share]);
}

/// Returns a plan whose one cluster is a path.
fn colocated(workload: &Value) -> Value {
    let mut plan = plan(workload);
    plan["paths"] = json!([{"direct": null, "legs": [
        {"clusters": [0], "weights": [1.0], "balance": "weighted", "encodes": null, "receives": null}]}]);
    plan
}

fn finished(plan: &Value) -> Recorder {
    let (recorder, _) = run(plan).unwrap();
    for record in &recorder.requests {
        assert_eq!(record.status, RequestStatus::Finished);
        assert_eq!(record.generated_tokens, record.spec.output_tokens);
        let lasted = record.finished.unwrap().0 - record.spec.arrival.0;
        assert_eq!(record.e2e_causes().iter().sum::<u64>(), lasted);
    }
    recorder
}

fn refused(plan: &Value) -> String {
    run(plan).unwrap_err().to_string()
}

#[test]
fn what_a_request_brings_is_encoded_sent_on_and_then_its_prompt_is_computed() {
    let mut plan = colocated(&burst(1, 160, 5));
    let without = finished(&plan).requests[0].first_token.unwrap();
    encoded(&mut plan, 100, 1.0);
    let record = &finished(&plan).requests[0];
    // 100 tokens take 1 ms + 1 ms of a step, and 1 MB takes 1 ms at 1 GB/s.
    let encoding = 1_000_000 + 1_000_000 + 1_000_000;
    assert_eq!(record.first_token, Some(SimTime(without.0 + encoding)));
    assert_eq!(record.ttft_causes[Cause::Encode as usize], encoding);
    assert_eq!(record.replica.unwrap().0, 0);
}

#[test]
fn requests_without_anything_to_encode_leave_the_encoders_out() {
    let mut plan = colocated(&burst(200, 160, 5));
    encoded(&mut plan, 100, 0.25);
    let recorder = finished(&plan);
    let encoding = |record: &RequestRecord| record.ttft_causes[Cause::Encode as usize];
    let with = recorder.requests.iter().filter(|record| record.spec.encoder_tokens > 0).count();
    assert!((30..70).contains(&with), "{with}");
    assert!(
        recorder.requests.iter().all(|record| (encoding(record) > 0) == (record.spec.encoder_tokens > 0))
    );
}

#[test]
fn a_path_of_three_legs_encodes_computes_and_decodes() {
    for mode in ["pull", "push", "buffer", "store"] {
        let mut plan = disaggregated(&burst(1, 160, 5), mode, "request");
        let before = finished(&plan).requests[0].first_token.unwrap();
        encoded(&mut plan, 100, 1.0);
        let recorder = finished(&plan);
        assert_eq!(recorder.requests[0].first_token, Some(SimTime(before.0 + 3_000_000)), "{mode}");
        assert_eq!(recorder.transfers.len(), 1, "embeddings are no KV");
        plan["paths"][0]["direct"] = json!({"max_uncached_tokens": 160, "deflect_above_tokens": null});
        assert!(finished(&plan).transfers.is_empty(), "{mode}");
    }
}

#[test]
fn models_are_served_side_by_side_and_never_meet() {
    let arrivals = json!({"kind": "poisson", "rate_per_s": 50.0});
    let mut plan = colocated(&synthetic(&arrivals, 300, 160, 5));
    served_beside(&mut plan, 0.25);
    let recorder = finished(&plan);
    let others = recorder.requests.iter().filter(|record| record.spec.model == 1).count();
    assert!((50..100).contains(&others), "{others}");
    for record in &recorder.requests {
        assert_eq!(record.replica.unwrap().0, u32::from(record.spec.model));
    }
    // What is asked of one model does not slow the other: its requests fare as they would alone.
    plan["clusters"][1]["step_time"]["per_step_ns"] = json!(100_000_000);
    let slower = finished(&plan);
    for (one, other) in recorder.requests.iter().zip(&slower.requests) {
        assert_eq!(one.finished == other.finished, one.spec.model == 0);
    }
}

#[test]
fn paths_that_cannot_be_gone_are_refused() {
    let mut plan = colocated(&burst(1, 16, 2));
    encoded(&mut plan, 100, 1.0);
    let (encoder, server) = (plan["paths"][0]["legs"][0].clone(), plan["paths"][0]["legs"][1].clone());
    let with_legs = |legs: Value| {
        let mut other = plan.clone();
        other["paths"][0]["legs"] = legs;
        refused(&other)
    };
    assert!(with_legs(json!([])).contains("paths[0].legs: was empty"));
    assert!(with_legs(json!([encoder])).contains("only the first of several legs may encode"));
    assert!(with_legs(json!([server, encoder])).contains("legs[1].encodes"));
    assert!(with_legs(json!([server, server])).contains("had cluster 0 twice"));
    let mut asked = plan.clone();
    asked["workload"]["models"] = json!([1.0, 1.0]);
    assert!(refused(&asked).contains("asked for 2 models, but there are paths for 1"));
    asked["paths"] = json!([plan["paths"][0], plan["paths"][0]]);
    assert!(refused(&asked).contains("paths[1].legs[0].clusters"));
    asked = plan.clone();
    asked["workload"]["models"] = json!([0.0]);
    assert!(refused(&asked).contains("workload.models[0]"));
}

#[test]
fn prompts_hit_the_cache_whatever_was_encoded_before() {
    let mut workload = synthetic(&json!({"kind": "constant", "rate_per_s": 10.0}), 6, 160, 4);
    workload["shared_prefix"] = json!({"count": 1, "tokens": {"kind": "fixed", "tokens": 160}, "zipf_exponent": 0.0,
        "share": 1.0});
    let mut plan = colocated(&workload);
    encoded(&mut plan, 100, 1.0);
    plan["clusters"][1]["scheduler"]["enable_prefix_caching"] = json!(false);
    let hits: Vec<_> = finished(&plan).requests.iter().map(|record| record.cached_tokens).collect();
    assert_eq!(hits, [0, 160, 160, 160, 160, 160]);
}

#[test]
fn embeddings_outlast_the_wait_for_a_replica() {
    // The only decode replica is away when the request is encoded; prefill replicas come and go meanwhile.
    let mut plan = disaggregated(&burst(1, 160, 5), "push", "request");
    encoded(&mut plan, 100, 1.0);
    plan["clusters"][0]["replicas"] = json!(2);
    let restart = |at_ns: u64| json!({"at_ns": at_ns, "cluster": 0, "replica": 1, "change": {"kind": "restart", "down_ns": 1_000_000}});
    let events = json!([
        {"at_ns": 0, "cluster": 1, "replica": 0, "change": {"kind": "restart", "down_ns": 100_000_000}},
        restart(10_000_000),
        restart(20_000_000)
    ]);
    plan["dynamics"] = json!({"lost_requests": "rerun", "events": events, "autoscale": []});
    let (recorder, totals) = run(&plan).unwrap();
    let record = &recorder.requests[0];
    assert_eq!(record.status, RequestStatus::Finished);
    assert_eq!(record.e2e_causes()[Cause::Encode as usize], 3_000_000, "it is encoded once");
    assert_eq!(totals.clusters[2].steps, 1);
}

#[test]
fn replicas_of_one_model_are_nothing_to_those_who_wait_for_another() {
    let arrivals = json!({"kind": "constant", "rate_per_s": 100.0});
    let mut plan = colocated(&synthetic(&arrivals, 100, 160, 5));
    served_beside(&mut plan, 0.5);
    plan["clusters"][0]["replicas"] = json!(4);
    plan["clusters"][0]["in_service"] = json!(1);
    // All that ask for the second model wait for its only replica.
    let events = json!([{"at_ns": 0, "cluster": 1, "replica": 0, "change": {"kind": "restart", "down_ns": 2_000_000_000}}]);
    let scaler = json!([{"cluster": 0, "min_replicas": 1, "max_replicas": 4, "interval_ns": 10_000_000,
        "metric": "outstanding", "up_above": 10.0, "down_below": 0.0, "provision_ns": 1_000_000, "cooldown_ns": 0}]);
    plan["dynamics"] = json!({"lost_requests": "rerun", "events": events, "autoscale": scaler});
    let (recorder, _) = run(&plan).unwrap();
    assert!(recorder.requests.iter().all(|record| record.status == RequestStatus::Finished));
    let first = recorder.requests.iter().filter(|record| record.spec.model == 0);
    assert!(first.clone().count() > 30);
    assert!(first.into_iter().all(|record| record.replica.unwrap().0 == 0));
}

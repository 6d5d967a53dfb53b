//! Hangs of the real engine are kept, detected and named.

use std::sync::Arc;

use frontier_core::error::SimError;
use frontier_core::plan::Plan;
use frontier_core::simulation::Simulation;
use frontier_core::time::SimTime;
use frontier_core::workload::{RawTrace, TraceColumns};
use serde_json::json;

use crate::support::{burst, plan, run, run_with};

#[test]
fn endless_preemption_is_reported_as_a_livelock() {
    // Without full-input reservation, chunks of two prompts can take each other's blocks for ever.
    let mut plan = plan(&json!({"kind": "trace", "arrivals": null, "num_requests": null}));
    plan["clusters"][0]["scheduler"]["block_size"] = json!(1);
    plan["clusters"][0]["scheduler"]["num_blocks"] = json!(40);
    plan["clusters"][0]["scheduler"]["max_num_batched_tokens"] = json!(16);
    plan["clusters"][0]["scheduler"]["long_prefill_token_threshold"] = json!(8);
    plan["clusters"][0]["scheduler"]["scheduler_reserve_full_isl"] = json!(false);
    plan["clusters"][0]["scheduler"]["enable_prefix_caching"] = json!(false);
    plan["clusters"][0]["scheduler"]["policy"] = json!("priority");
    let trace = RawTrace {
        arrival_ns: vec![0, 0, 0, 17_000_000],
        prompt_tokens: vec![27, 30, 34, 16],
        output_tokens: vec![12, 7, 2, 12],
        priority: Some(vec![1, 1, 2, 2]),
        ..RawTrace::default()
    };
    match run_with(&plan, Some(Arc::new(TraceColumns::new(trace).unwrap()))) {
        Err(SimError::Livelock { name, detail, .. }) => {
            assert_eq!(name, "endless preemption");
            assert!(detail.contains("scheduler_reserve_full_isl"), "{detail}");
        }
        other => panic!("expected a livelock, got {:?}", other.map(|(_, totals)| totals)),
    }
}

#[test]
fn a_closed_loop_of_refusals_ends_with_an_error() {
    let mut workload = burst(1, 2000, 1);
    workload["arrivals"] = json!({"kind": "closed_loop", "concurrency": 2, "think_time_ns": 0});
    workload["num_requests"] = json!(null);
    workload["duration_ns"] = json!(1_000_000_000);
    assert!(matches!(run(&plan(&workload)), Err(SimError::TooLong { .. })));
}

#[test]
fn a_time_line_without_end_ends_with_an_error() {
    let mut plan = plan(&burst(1, 1, 2));
    plan["clusters"][0]["step_time"]["per_step_ns"] = json!(1_000_000_000_000_000_u64);
    plan["output"]["timeline_interval_ns"] = json!(1_000_000);
    match run(&plan) {
        Err(SimError::TooLong { what }) => assert!(what.contains("output.timeline_interval"), "{what}"),
        other => panic!("expected an error, got {:?}", other.map(|(_, totals)| totals)),
    }
}

#[test]
fn a_clock_at_rest_leaves_the_loop_in_control() {
    let mut plan = plan(&burst(16, 1, 500));
    plan["clusters"][0]["step_time"]["per_step_ns"] = json!(0);
    plan["clusters"][0]["step_time"]["per_prefill_token_ns"] = json!(0);
    let plan = Plan::from_json(&plan.to_string()).unwrap();
    let mut simulation = Simulation::new(&plan, None, &[]).unwrap();
    let mut slices = 0;
    while !simulation.run_slice(100).unwrap() {
        slices += 1;
    }
    assert!(slices > 50, "{slices} slices for 500 steps of 16 requests");
    assert_eq!(simulation.finish().unwrap().1.end, SimTime::ZERO);
}

#[test]
fn a_request_that_cannot_be_resumed_is_reported_as_a_deadlock() {
    // Without chunks, a request preempted with more tokens than the budget can never be recomputed.
    let mut plan = plan(&burst(2, 100, 200));
    plan["clusters"][0]["scheduler"]["num_blocks"] = json!(35);
    plan["clusters"][0]["scheduler"]["enable_chunked_prefill"] = json!(false);
    plan["clusters"][0]["scheduler"]["enable_prefix_caching"] = json!(false);
    match run(&plan) {
        Err(SimError::Deadlock { unfinished, waiting_for, .. }) => {
            assert_eq!(unfinished, 1);
            assert!(waiting_for.contains("request 1"), "{waiting_for}");
        }
        other => panic!("expected a deadlock, got {:?}", other.map(|(_, totals)| totals)),
    }
}

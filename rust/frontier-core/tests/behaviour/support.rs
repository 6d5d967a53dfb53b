//! Plans for behaviour tests.

use std::sync::Arc;

use frontier_core::error::SimError;
use frontier_core::metrics::Recorder;
use frontier_core::plan::{Plan, SchedulerConfig, SchedulerSpec};
use frontier_core::simulation::{Simulation, Totals};
use frontier_core::workload::TraceColumns;
use serde_json::{Value, json};

/// Returns a plan with a linear clock of 1 ms per step and 10 us per prefill token, a KV cache of 99 usable
/// blocks of 16 tokens, and `workload`.
pub(crate) fn plan(workload: &Value) -> Value {
    json!({
        "schema_version": 2, "seed": 1, "replication": 0,
        "clusters": [{
        "name": "serve", "replicas": 1, "router": {"policy": "round_robin"},
        "scheduler": {
            "kind": "vllm_v1", "block_size": 16, "num_blocks": 100, "kv_group_windows": [], "max_model_len": 1024,
            "max_num_batched_tokens": 256, "max_num_scheduled_tokens": null,
            "max_num_seqs": 16, "max_num_active_seqs": null,
            "long_prefill_token_threshold": 0, "long_prefill_token_threshold_adaptive": false,
            "enable_chunked_prefill": true, "enable_prefix_caching": true, "policy": "fcfs",
            "scheduler_reserve_full_isl": true, "watermark": 0.0, "minor_version": 32,
            "pipeline_parallel_size": 1, "v2_runner": true, "speculative": null,
            "async_scheduling": false
        },
        "step_time": {"kind": "linear", "per_step_ns": 1_000_000, "per_prefill_token_ns": 10_000,
                      "per_decode_token_ns": 0, "per_seq_ns": 0, "per_kv_token_ns": 0}
        }],
        "workload": workload,
        "output": {"steps": true, "timeline_interval_ns": 1_000_000_000, "decision_log": null},
        "limits": {"max_steps": null, "refuse_oversized": true, "livelock_steps": 1000}
    })
}

/// Returns the scheduler settings of that plan.
pub(crate) fn vllm_config() -> SchedulerConfig {
    let plan = Plan::from_json(&plan(&burst(1, 1, 1)).to_string()).expect("a valid plan");
    let SchedulerSpec::VllmV1(config) = plan.clusters[0].scheduler.clone() else {
        unreachable!("the plan above is vLLM's")
    };
    config
}

/// Returns a workload of `count` requests in a burst.
pub(crate) fn burst(count: u32, prompt_tokens: u32, output_tokens: u32) -> Value {
    synthetic(&json!({"kind": "burst"}), count, prompt_tokens, output_tokens)
}

/// Returns a workload of equal requests.
pub(crate) fn synthetic(arrivals: &Value, count: u32, prompt_tokens: u32, output_tokens: u32) -> Value {
    json!({
        "kind": "synthetic", "arrivals": arrivals, "num_requests": count, "duration_ns": null,
        "prompt_tokens": {"kind": "fixed", "tokens": prompt_tokens},
        "output_tokens": {"kind": "fixed", "tokens": output_tokens},
        "shared_prefix": null, "sessions": null, "max_priority": 0
    })
}

/// Asserts that requests were preempted, and that the causes of every latency add up to it.
pub(crate) fn assert_causes_add_up_in_a_tight_cache(recorder: &Recorder) {
    assert!(
        recorder.requests.iter().any(|request| request.preemptions > 0),
        "the cache was meant to be tight"
    );
    for record in &recorder.requests {
        let arrival = record.spec.arrival.0;
        assert_eq!(record.e2e_causes().iter().sum::<u64>(), record.finished.unwrap().0 - arrival);
        assert_eq!(record.ttft_causes.iter().sum::<u64>(), record.first_token.unwrap().0 - arrival);
    }
}

/// Runs a plan to its end.
pub(crate) fn run(plan: &Value) -> Result<(Recorder, Totals), SimError> {
    run_with(plan, None)
}

/// Runs a plan to its end, and checks all blocks and queues after every event.
pub(crate) fn checked_run(plan: &Value) -> Result<(Recorder, Totals), SimError> {
    let mut simulation = Simulation::new(&Plan::from_json(&plan.to_string())?, None, &[])?;
    while !simulation.run_slice(1)? {
        simulation.check_integrity()?;
    }
    simulation.finish()
}

/// Runs a plan over a trace to its end.
pub(crate) fn run_with(
    plan: &Value,
    trace: Option<Arc<TraceColumns>>,
) -> Result<(Recorder, Totals), SimError> {
    let mut simulation = Simulation::new(&Plan::from_json(&plan.to_string())?, trace, &[])?;
    simulation.run()?;
    simulation.finish()
}

//! Hangs of the real engine are kept, detected and named.

use std::sync::Arc;

use frontier_core::error::SimError;
use frontier_core::workload::{RawTrace, TraceColumns};
use serde_json::json;

use crate::support::{plan, run_with};

#[test]
fn endless_preemption_is_reported_as_a_livelock() {
    // Without full-input reservation, chunks of two prompts can take each other's blocks for ever.
    let mut plan = plan(&json!({"kind": "trace", "arrivals": null, "num_requests": null}));
    plan["scheduler"]["block_size"] = json!(1);
    plan["scheduler"]["num_blocks"] = json!(40);
    plan["scheduler"]["max_num_batched_tokens"] = json!(16);
    plan["scheduler"]["long_prefill_token_threshold"] = json!(8);
    plan["scheduler"]["scheduler_reserve_full_isl"] = json!(false);
    plan["scheduler"]["enable_prefix_caching"] = json!(false);
    plan["scheduler"]["policy"] = json!("priority");
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

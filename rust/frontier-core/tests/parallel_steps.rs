//! Step times of several ranks: padding of data-parallel ranks, and shares of prompts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use frontier_core::fidelity::{BatchShape, StepTimer};
use frontier_core::plan::StepTimeSpec;
use serde_json::{Value, json};

/// A model of one product over tokens and one over the tokens of all ranks, on `ranks` data-parallel ranks.
fn plan(layout: &Value, stages: &[u32]) -> StepTimeSpec {
    let gemm = |name: &str, rows: &str, count: u32| {
        json!({"op": "gemm", "name": name, "count": count, "predictor": null, "rows": rows, "k": 4096, "n": 4096,
               "batch": 1, "dtype": "bf16", "weight_bytes": 2.0, "activation_bytes": 2.0, "model_share": 1.0})
    };
    let stages: Vec<Value> = stages
        .iter()
        .map(|&count| json!([gemm("dense", "tokens", count), gemm("experts", "all_tokens", count)]))
        .collect();
    let plan = json!({
        "kind": "operators",
        "gpu": {"num_sms": 132, "peak_flops_per_s": {"bf16": 989.4e12}, "memory_bandwidth_bytes_per_s": 3.35e12,
                "compute_efficiency": 0.8, "memory_efficiency": 0.9, "kernel_launch_s": 0.0},
        "links": {"node": {"bandwidth_bytes_per_s": 450e9, "latency_s": 2e-6, "efficiency": 0.8, "direct": true},
                  "network": null},
        "cpu": {"per_step_s": 1e-4, "per_seq_s": 0.0, "overlapped": false},
        "layout": layout, "residuals": null, "stages": stages,
    });
    serde_json::from_value(plan).unwrap()
}

fn timer(layout: &Value, stages: &[u32]) -> StepTimer {
    StepTimer::compile(&plan(layout, stages), 16_384, 256, &[]).unwrap()
}

fn ranks(size: u32) -> Value {
    json!({"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": size})
}

fn prompt(timer: &StepTimer, tokens: u32) -> BatchShape {
    let mut batch = timer.new_batch();
    batch.add(tokens, tokens, tokens > 1);
    batch
}

#[test]
fn padded_ranks_compute_as_many_rows_as_the_largest() {
    let mut timer = timer(&ranks(2), &[8]);
    let (large, small) = (prompt(&timer, 8192), prompt(&timer, 5));
    let mixed = [large.clone(), small];
    let both = [large.clone(), large];
    let (apart, together) = (timer.step_all(&mixed).unwrap(), timer.step_all(&both).unwrap());
    assert!(apart.total < together.total, "the experts have 8,197 rows against 16,384");
    timer.pad_to_largest(true);
    let padded = timer.step_all(&mixed).unwrap();
    assert_eq!(padded.total, together.total);
    assert!((padded.flops / apart.flops - 1.0).abs() < 1e-12, "padding is no useful work");
    assert!(padded.active_s > apart.active_s, "yet keeps the GPU busy");
    assert_eq!(timer.step_all(&both).unwrap().total, together.total);
}

#[test]
fn ranks_that_share_a_prompt_take_their_part_of_its_time() {
    let layout = |context: Value| {
        json!({"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": 1,
               "prefill_context_parallel_size": context})
    };
    let (mut whole, mut shared) = (timer(&layout(json!(null)), &[8]), timer(&layout(json!(4)), &[8]));
    let one = whole.step(&prompt(&whole, 16_384)).unwrap();
    let four = shared.step(&prompt(&shared, 16_384)).unwrap();
    let quarter = whole.step(&prompt(&whole, 4_096)).unwrap();
    assert_eq!(four.total, quarter.total);
    assert!((four.flops / one.flops - 1.0).abs() < 1e-12, "together they compute the prompt once");
    // Decode tokens run on every rank.
    assert_eq!(
        shared.step(&prompt(&shared, 1)).unwrap().total,
        whole.step(&prompt(&whole, 1)).unwrap().total
    );
}

#[test]
fn ranks_that_share_a_padded_admission_verify_all_of_it() {
    let layout = json!({"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": 1,
                        "prefill_context_parallel_size": 4});
    let mut shared = timer(&layout, &[8]);
    let mut batch = shared.new_batch();
    // The last token of a prompt and four paddings: two tokens on each rank.
    batch.add_verifying(5, 64, true, 4);
    assert_eq!((batch.num_tokens(), batch.num_logits()), (2, 5));
    assert!(shared.step(&batch).is_ok());
}

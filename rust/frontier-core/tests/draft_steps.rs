//! Steps that draft: hand-computable sums of passes, refusals, and what drafting leaves as it was.

use frontier_core::error::SimError;
use frontier_core::fidelity::{BatchShape, StepTimer};
use frontier_core::plan::StepTimeSpec;
use serde_json::{Value, json};

const LAUNCH_S: f64 = 2e-6;
const BANDWIDTH: f64 = 1e12;

fn elementwise(name: &str, rows: &str, bytes_per_row: f64) -> Value {
    json!({
        "op": "elementwise", "name": name, "count": 1, "predictor": null, "rows": rows,
        "bytes_per_row": bytes_per_row,
    })
}

fn attention(name: &str, window: Option<u32>) -> Value {
    json!({
        "op": "attention", "name": name, "count": 1, "phase": "both", "mixed_decode_factor": null,
        "predictors": {"prefill": null, "decode": null, "skew": null, "mixed": null}, "heads": 32, "kv_heads": 8,
        "qk_dim": 128, "v_dim": 128, "kv_bytes_per_token": 4096.0, "window": window, "dtype": "bf16",
        "activation_bytes": 2.0, "model_share": 1.0,
    })
}

/// A target of two operators; bandwidth 1 TB/s, so that a megabyte takes a microsecond.
fn plan(draft: &Value) -> Value {
    json!({
        "kind": "operators",
        "gpu": {
            "num_sms": 100, "peak_flops_per_s": {"bf16": 1e15}, "memory_bandwidth_bytes_per_s": BANDWIDTH,
            "compute_efficiency": 1.0, "memory_efficiency": 1.0, "kernel_launch_s": LAUNCH_S,
        },
        "links": {"node": null, "network": null},
        "cpu": {"per_step_s": 0.0, "per_seq_s": 0.0, "overlapped": true},
        "layout": {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": 1},
        "residuals": null,
        "draft": draft,
        "stages": [[elementwise("layer", "tokens", 1e6), elementwise("head", "seqs", 1e7)]],
    })
}

fn cpu(per_step_s: f64, per_seq_s: f64, per_context_token_s: f64) -> Value {
    json!({"per_step_s": per_step_s, "per_seq_s": per_seq_s, "per_context_token_s": per_context_token_s})
}

fn two_passes() -> Value {
    json!({
        "first_pass": [elementwise("draft.layer", "tokens", 2e6), elementwise("draft.head", "seqs", 5e6)],
        "decode_pass": [elementwise("next.layer", "tokens", 3e6), elementwise("next.head", "seqs", 4e6)],
        "passes": 2,
        "cpu": cpu(0.0, 0.0, 0.0),
    })
}

fn compile(plan: &Value) -> Result<StepTimer, SimError> {
    let spec: StepTimeSpec = serde_json::from_value(plan.clone()).expect("the fixture follows the schema");
    StepTimer::compile(&spec, 1024, 64, &[])
}

fn timer(draft: &Value) -> StepTimer {
    compile(&plan(draft)).expect("the fixture is a valid plan")
}

fn close(found: f64, expected: f64) {
    assert!((found / expected - 1.0).abs() < 1e-9, "{found}, expected {expected}");
}

/// Two decodes with 2 drafts each, and a prompt of 10 tokens: 16 tokens, 3 requests, 7 rows of logits.
fn fill(batch: &mut BatchShape) {
    batch.add_verifying(3, 100, false, 2);
    batch.add_verifying(3, 200, false, 2);
    batch.add(10, 10, true);
}

#[test]
fn a_step_is_the_target_and_all_passes() {
    let mut timer = timer(&two_passes());
    let mut batch = timer.new_batch();
    fill(&mut batch);
    let time = timer.step(&batch).unwrap();
    let run = |rows: f64, bytes: f64| rows * bytes / BANDWIDTH + LAUNCH_S;
    let target = run(16.0, 1e6) + run(7.0, 1e7);
    // Heads of drafts see one row per request; further passes one token per request.
    let drafting = run(16.0, 2e6) + run(3.0, 5e6) + 2.0 * (run(3.0, 3e6) + run(3.0, 4e6));
    close(time.draft.as_seconds(), drafting);
    close(time.total.as_seconds(), target + drafting);
    close(time.bytes, 16e6 + 7e7 + 32e6 + 15e6 + 2.0 * (9e6 + 12e6));
    close(timer.stages_s()[0], target + drafting);
    let rows = timer.breakdown(std::slice::from_ref(&batch), 0).unwrap();
    close(rows.iter().map(|row| row.seconds).sum(), target + drafting);
    let counts: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.count)).collect();
    let expected = [("layer", 1), ("head", 1), ("draft.layer", 1), ("draft.head", 1), ("next.layer", 2)];
    assert_eq!(counts[..5], expected);
    let trust: f64 = timer.trust().iter().flat_map(|trust| trust.tally.seconds).sum();
    close(trust, target + drafting);
}

#[test]
fn the_host_drafts_after_the_step_and_nothing_hides_it() {
    let draft = json!({"first_pass": [], "decode_pass": [], "passes": 0, "cpu": cpu(1e-3, 1e-4, 1e-6)});
    let mut timer = timer(&draft);
    let mut batch = timer.new_batch();
    fill(&mut batch);
    let time = timer.step(&batch).unwrap();
    close(time.draft.as_seconds(), 1e-3 + 3e-4 + 310e-6);
    assert_eq!(time.cpu_exposed, time.draft);
    assert!(batch.drafted().is_none());
}

#[test]
fn no_draft_costs_nothing_and_rows_of_logits_are_requests() {
    let mut timer = timer(&Value::Null);
    let mut batch = timer.new_batch();
    assert_eq!(batch, BatchShape::new(&[]));
    batch.add(1, 100, false);
    batch.add(10, 10, true);
    assert_eq!((batch.num_logits(), batch.num_seqs()), (2, 2));
    let time = timer.step(&batch).unwrap();
    assert_eq!(time.draft.0, 0);
    close(time.total.as_seconds(), 11e6 / BANDWIDTH + 2e7 / BANDWIDTH + 2.0 * LAUNCH_S);
}

#[test]
fn a_pass_of_one_token_sees_grown_contexts_and_the_windows_of_both() {
    let draft = json!({
        "first_pass": [attention("draft.attention", Some(64))],
        "decode_pass": [attention("next.attention", Some(64))],
        "passes": 3,
        "cpu": cpu(0.0, 0.0, 0.0),
    });
    let mut plan = plan(&draft);
    plan["stages"][0].as_array_mut().unwrap().push(attention("attention", Some(128)));
    let timer = compile(&plan).unwrap();
    assert_eq!(timer.windows(), [128, 64]);
    let mut batch = timer.new_batch();
    fill(&mut batch);
    let mut expected = BatchShape::new(&[128, 64]);
    for context in [100, 200, 10] {
        expected.add(1, context + 2, false); // passes 1, 2 and 3 are 2 tokens on in the mean
    }
    assert_eq!(batch.drafted(), Some(&expected));
    batch.clear();
    assert_eq!(batch, timer.new_batch());
}

#[test]
fn drafts_that_make_no_sense_are_refused() {
    let refusal = |change: &dyn Fn(&mut Value)| {
        let mut draft = two_passes();
        change(&mut draft);
        compile(&plan(&draft)).expect_err("must be refused").to_string()
    };
    assert!(refusal(&|draft| draft["passes"] = json!(0)).contains("step_time.draft.passes"));
    assert!(refusal(&|draft| draft["decode_pass"] = json!([])).contains("step_time.draft.passes"));
    assert!(refusal(&|draft| draft["passes"] = json!(5000)).contains("1 ..= 1025"));
    assert!(refusal(&|draft| draft["passes"] = json!(u32::MAX)).contains("step_time.draft.passes"));
    assert!(
        refusal(&|draft| draft["cpu"]["per_seq_s"] = json!(-1.0)).contains("step_time.draft.cpu.per_seq_s")
    );
    let nothing = |draft: &mut Value| {
        draft["first_pass"] = json!([]);
        draft["decode_pass"] = json!([]);
        draft["passes"] = json!(0);
    };
    assert!(refusal(&nothing).contains("the host does nothing either"));
    let bad = |draft: &mut Value| draft["decode_pass"][1]["bytes_per_row"] = json!(0.0);
    assert!(refusal(&bad).contains("step_time.draft.decode_pass[1].bytes_per_row"));
}

#[test]
fn batches_of_another_timer_are_refused() {
    let mut timer = timer(&two_passes());
    let mut plain = BatchShape::new(&[]);
    plain.add(1, 5, false);
    let refused = timer.step(&plain).expect_err("must be refused");
    assert!(refused.to_string().contains("comes from new_batch"), "{refused}");
}

#[test]
fn ranks_wait_for_the_slowest_draft() {
    let mut plan = plan(&two_passes());
    plan["layout"]["data_parallel_size"] = json!(2);
    let mut timer = compile(&plan).unwrap();
    let (mut small, mut large) = (timer.new_batch(), timer.new_batch());
    small.add(1, 9, false);
    fill(&mut large);
    let both = timer.step_all(&[small, large.clone()]).unwrap();
    let twice = timer.step_all(&[large.clone(), large]).unwrap();
    assert_eq!((both.total, both.draft), (twice.total, twice.draft));
    assert!(both.bytes < twice.bytes);
}

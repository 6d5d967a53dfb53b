//! The step timer through its public interface: hand-computable steps, refusals, and equalities that every
//! version must keep.

use std::collections::BTreeMap;

use frontier_core::error::SimError;
use frontier_core::fidelity::learned::Predictors;
use frontier_core::fidelity::program::{Program, RowCounts, StageCost};
use frontier_core::fidelity::{BatchShape, Bound, GraphMode, StepTime, StepTimer};
use frontier_core::plan::StepTimeSpec;
use frontier_core::time::SimDuration;
use proptest::prelude::*;
use serde_json::{Value, json};

/// Peak rates of an H100 SXM5 by its data sheet, with round efficiencies.
fn gpu() -> Value {
    json!({
        "num_sms": 132,
        "peak_flops_per_s": {"fp32": 67e12, "fp16": 989.4e12, "bf16": 989.4e12, "fp8": 1978.9e12},
        "memory_bandwidth_bytes_per_s": 3.35e12,
        "compute_efficiency": 0.8,
        "memory_efficiency": 0.9,
        "kernel_launch_s": 2e-6,
    })
}

fn gemm(name: &str, count: u32, rows: &str, k: u32, n: u32) -> Value {
    json!({
        "op": "gemm", "name": name, "count": count, "predictor": null, "rows": rows, "k": k, "n": n, "batch": 1,
        "dtype": "bf16", "weight_bytes": 2.0, "activation_bytes": 2.0, "model_share": 1.0,
    })
}

fn elementwise(name: &str, count: u32, rows: &str, bytes_per_row: f64) -> Value {
    json!({
        "op": "elementwise", "name": name, "count": count, "predictor": null, "rows": rows,
        "bytes_per_row": bytes_per_row,
    })
}

fn attention(name: &str, count: u32, window: Option<u32>) -> Value {
    json!({
        "op": "attention", "name": name, "count": count, "phase": "both", "mixed_decode_factor": null,
        "predictors": {"prefill": null, "decode": null, "skew": null, "mixed": null}, "heads": 32, "kv_heads": 8,
        "qk_dim": 128, "v_dim": 128, "kv_bytes_per_token": 4096.0, "window": window, "dtype": "bf16",
        "activation_bytes": 2.0, "model_share": 1.0,
    })
}

/// Llama-3.1-8B in BF16 on one H100: 10 kernels per layer and 4 beside them.
fn llama() -> Value {
    json!({
        "kind": "operators",
        "gpu": gpu(),
        "links": {"node": null, "network": null},
        "cpu": {"per_step_s": 0.0, "per_seq_s": 0.0, "overlapped": true},
        "layout": {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": 1},
        "residuals": null,
        "stages": [[
            elementwise("embedding", 1, "tokens", 16384.0),
            elementwise("rms_norm", 64, "tokens", 24576.0),
            gemm("qkv_proj", 32, "tokens", 4096, 6144),
            elementwise("rotary_emb", 32, "tokens", 20480.0),
            elementwise("kv_cache_write", 32, "tokens", 8192.0),
            attention("attention", 32, None),
            gemm("o_proj", 32, "tokens", 4096, 4096),
            gemm("gate_up_proj", 32, "tokens", 4096, 28672),
            elementwise("silu_and_mul", 32, "tokens", 86016.0),
            gemm("down_proj", 32, "tokens", 14336, 4096),
            elementwise("final_norm", 1, "tokens", 16384.0),
            gemm("lm_head", 1, "seqs", 4096, 128_256),
            elementwise("sampler", 1, "seqs", 1_026_048.0),
        ]],
    })
}

fn collective(name: &str, kind: &str, count: u32, rows: &str, bytes_per_row: f64) -> Value {
    json!({
        "op": "collective", "name": name, "count": count, "predictor": null, "kind": kind, "rows": rows,
        "bytes_per_row": bytes_per_row, "ranks": 4, "nodes": 1,
    })
}

/// One of each operator: experts, two windows, collectives over four ranks.
fn zoo() -> Value {
    let mut plan = llama();
    plan["layout"]["tensor_parallel_size"] = json!(4);
    plan["links"]["node"] =
        json!({"bandwidth_bytes_per_s": 450e9, "latency_s": 2e-6, "efficiency": 0.8, "direct": true});
    plan["cpu"] = json!({"per_step_s": 1e-3, "per_seq_s": 2e-6, "overlapped": false});
    let Value::Array(program) = &mut plan["stages"][0] else { unreachable!() };
    program.extend([
        attention("attention_sliding", 16, Some(128)),
        attention("attention_chunked", 8, Some(4096)),
        attention("attention_sliding_too", 8, Some(128)),
        json!({
            "op": "fused_moe", "name": "experts", "count": 32, "predictor": null, "rows": "all_tokens",
            "num_experts": 32, "top_k": 2, "redundant_experts": 0, "expert_ranks": 1, "hidden": 2048, "intermediate": 768, "gated": true,
            "dtype": "fp8", "weight_bytes": 1.0, "activation_bytes": 2.0, "model_share": 1.0, "imbalance": -1.0,
        }),
        collective("all_reduce.attention", "all_reduce", 32, "tokens", 8192.0),
        collective("all_gather.logits", "all_gather", 1, "seqs", 256_512.0),
        json!({
            "op": "moe_exchange", "name": "moe_dispatch", "count": 32, "predictor": null, "phase": "dispatch",
            "rows": "tokens", "hidden": 2048, "top_k": 2, "num_experts": 32, "ranks": 4, "nodes": 1,
            "bytes_per_element": 1.0,
        }),
    ]);
    plan
}

fn spec(plan: &Value) -> StepTimeSpec {
    serde_json::from_value(plan.clone()).expect("the fixture follows the schema")
}

fn timer(plan: &Value) -> StepTimer {
    StepTimer::compile(&spec(plan), 8192, 256, &[]).expect("the fixture is a valid plan")
}

fn batch(timer: &StepTimer, requests: &[(u32, u32, bool)]) -> BatchShape {
    let mut batch = BatchShape::new(timer.windows());
    for &(query, context, is_prefill) in requests {
        batch.add(query, context, is_prefill);
    }
    batch
}

fn step(timer: &mut StepTimer, requests: &[(u32, u32, bool)]) -> StepTime {
    let batch = batch(timer, requests);
    timer.step(&batch).expect("the batch fits the timer")
}

#[test]
fn a_lone_decode_of_llama_8b_costs_its_weights_and_launches() {
    let mut timer = timer(&llama());
    let step = step(&mut timer, &[(1, 1024, false)]);
    // 32 * (4096 * (6144 + 4096 + 28672) + 14336 * 4096) + 4096 * 128256 weights of 2 bytes: 15.01 GB.
    let weights = 15.009e9;
    let sustained = 3.35e12 * 0.9;
    let kernels = 1.0 + 64.0 + 7.0 * 32.0 + 32.0 + 3.0;
    let expected = weights / sustained + kernels * 2e-6;
    let ratio = step.total.as_seconds() / expected;
    // What is left is attention: 32 layers of one tile wave, under 0.1 ms of 5.6 ms.
    assert!((1.0..1.03).contains(&ratio), "{} s, expected {expected} s", step.total.as_seconds());
    assert!((step.bytes / weights - 1.0).abs() < 0.02, "{} bytes", step.bytes);
    assert!((step.flops / weights - 1.0).abs() < 0.05, "{} FLOPs: two per weight of two bytes", step.flops);
}

#[test]
fn a_long_prompt_of_llama_8b_runs_near_the_sustained_rate() {
    let mut timer = timer(&llama());
    let step = step(&mut timer, &[(8192, 8192, true)]);
    // 2 FLOPs per token and weight of the layers, and the causal half of 8192^2 pairs.
    let linear = 2.0 * 8192.0 * 6_979_321_856.0 + 2.0 * 4096.0 * 128_256.0;
    let pairs = 8192.0 * 8193.0 / 2.0;
    let flops = linear + 32.0 * pairs * 32.0 * 2.0 * 256.0;
    assert!((step.flops / flops - 1.0).abs() < 1e-9, "{} FLOPs, expected {flops}", step.flops);
    let mfu = step.flops / step.total.as_seconds() / 989.4e12;
    assert!(mfu > 0.6 && mfu < 0.8, "{mfu}");
}

#[test]
fn batching_decodes_is_nearly_free_until_compute_or_kv_bind() {
    let mut timer = timer(&llama());
    let mut time = |requests: usize| step(&mut timer, &vec![(1, 256, false); requests]).total.as_seconds();
    assert!(time(64) < 1.35 * time(1));
    assert!(time(256) > time(64));
}

#[test]
fn tables_equal_direct_evaluation_bit_for_bit() {
    let StepTimeSpec::Operators(spec) = spec(&zoo()) else { unreachable!() };
    let none = Predictors { all: &[], residuals: None };
    let compile = |tokens, seqs| {
        Program::compile(&spec, RowCounts { tokens, seqs, all_tokens: tokens, sharded_tokens: tokens }, &none)
            .unwrap()
    };
    // The small program has tables for 300 rows and keeps the rest in a map.
    let (mut large, mut small) = (compile(3000, 256), compile(300, 30));
    for tokens in 0..=3000 {
        let seqs = tokens % 257;
        let mut batch = BatchShape::new(large.windows());
        if tokens > 0 {
            batch.add(tokens, tokens + 77, tokens % 2 == 0);
        }
        let rows = RowCounts { tokens, seqs, all_tokens: tokens, sharded_tokens: tokens };
        let sum = |cost: StageCost| {
            let mut total = cost.own;
            total.plus(&cost.shared);
            total
        };
        let table = sum(large.stage_cost(0, &batch, rows));
        for direct in [
            sum(large.direct_stage_cost(0, &batch, rows)),
            sum(small.stage_cost(0, &batch, rows)),
            sum(small.stage_cost(0, &batch, rows)),
        ] {
            assert_eq!(table.seconds.to_bits(), direct.seconds.to_bits(), "{tokens} tokens");
            assert_eq!(table.flops.to_bits(), direct.flops.to_bits(), "{tokens} tokens");
            assert_eq!(table.bytes.to_bits(), direct.bytes.to_bits(), "{tokens} tokens");
        }
    }
}

#[test]
fn the_breakdown_adds_up_to_the_step() {
    let mut plan = zoo();
    plan["cpu"] = json!({"per_step_s": 0.0, "per_seq_s": 0.0, "overlapped": true});
    let mut timer = timer(&plan);
    let batch = batch(&timer, &[(1500, 2000, true), (1, 9000, false), (1, 30, false)]);
    let step = timer.step(&batch).unwrap();
    let operators = timer.breakdown(std::slice::from_ref(&batch), 0).unwrap();
    let names: Vec<_> = operators.iter().map(|operator| operator.name.as_str()).collect();
    assert_eq!(names[..3], ["embedding", "rms_norm", "qkv_proj"]);
    assert_eq!(names[18], "all_gather.logits");
    let sum =
        |value: fn(&frontier_core::fidelity::OperatorTime) -> f64| operators.iter().map(value).sum::<f64>();
    assert!((sum(|o| o.seconds) - step.total.as_seconds()).abs() < 1e-9);
    assert!((sum(|o| o.flops) / step.flops - 1.0).abs() < 1e-12);
    assert!((sum(|o| o.bytes) / step.bytes - 1.0).abs() < 1e-12);
    let bound = |name: &str| operators.iter().find(|operator| operator.name == name).unwrap().bound;
    assert_eq!(bound("gate_up_proj"), Bound::Compute);
    assert_eq!(bound("lm_head"), Bound::Memory);
    assert_eq!(bound("all_reduce.attention"), Bound::Network);
    assert_eq!(bound("sampler"), Bound::Launch);
}

#[test]
fn the_host_hides_behind_the_gpu_only_when_overlapped() {
    let time = |per_step_s: f64, overlapped: bool| {
        let mut plan = llama();
        plan["cpu"] = json!({"per_step_s": per_step_s, "per_seq_s": 1e-4, "overlapped": overlapped});
        let mut timer = timer(&plan);
        step(&mut timer, &[(1, 512, false), (1, 512, false)])
    };
    let gpu = time(0.0, true).total.0;
    assert_eq!(time(0.0, true).cpu_exposed, SimDuration::ZERO);
    for (step, total, exposed) in [
        (time(1e-3, true), gpu, 0),
        (time(1.0, true), 1_000_200_000, 1_000_200_000 - gpu),
        (time(1e-3, false), gpu + 1_200_000, 1_200_000),
    ] {
        // The sum is rounded once, so it may differ from the sum of rounded terms by a nanosecond.
        assert!(step.total.0.abs_diff(total) <= 1, "{step:?}");
        assert!(step.cpu_exposed.0.abs_diff(exposed) <= 1, "{step:?}");
    }
}

#[test]
fn an_empty_step_costs_the_host_alone() {
    let mut timer = timer(&zoo());
    let empty = BatchShape::new(timer.windows());
    let step = timer.step(&empty).unwrap();
    assert_eq!((step.total, step.cpu_exposed), (SimDuration(1_000_000), SimDuration(1_000_000)));
    assert_eq!((step.flops.to_bits(), step.bytes.to_bits()), (0, 0));
}

#[test]
fn windows_are_distinct_and_in_order() {
    assert_eq!(timer(&zoo()).windows(), [128, 4096]);
    assert!(timer(&llama()).windows().is_empty());
    assert_eq!((timer(&zoo()).name(), timer(&llama()).name()), ("roofline", "roofline"));
}

#[test]
fn batches_that_the_timer_was_not_compiled_for_are_refused() {
    let mut timer = timer(&zoo());
    let many_tokens = batch(&timer, &[(8000, 8000, true), (193, 193, true)]);
    let many_seqs = batch(&timer, &vec![(1, 9, false); 257]);
    let mut other_windows = BatchShape::new(&[128]);
    other_windows.add(1, 1, false);
    for wrong in [many_tokens, many_seqs, other_windows] {
        assert!(matches!(timer.step(&wrong), Err(SimError::Invariant { .. })));
        assert!(matches!(timer.breakdown(&[wrong], 0), Err(SimError::Invariant { .. })));
    }
}

#[test]
fn batches_past_the_tables_are_evaluated_directly() {
    let mut timer = StepTimer::compile(&spec(&llama()), u32::MAX, u32::MAX, &[]).unwrap();
    let mut time = |tokens| step(&mut timer, &[(tokens, tokens, true)]).total;
    assert!(time(32_768) < time(32_769));
    assert!(time(32_769) < time(40_000));
    // The largest batch of all takes 190 years, which the clock still counts.
    assert!(time(u32::MAX) > time(1_000_000_000));
    assert!(time(1_000_000_000) > time(1_000_000));
}

#[test]
fn the_linear_clock_has_no_operators() {
    let plan = json!({
        "kind": "linear", "per_step_ns": 5_000_000, "per_prefill_token_ns": 40_000,
        "per_decode_token_ns": 30_000, "per_seq_ns": 7, "per_kv_token_ns": 11,
    });
    let mut timer = timer(&plan);
    let batch = batch(&timer, &[(100, 228, true), (1, 50, false)]);
    let step = timer.step(&batch).unwrap();
    assert_eq!(step.total.0, 5_000_000 + 100 * 40_000 + 30_000 + 2 * 7 + 278 * 11);
    assert_eq!((step.cpu_exposed, timer.name()), (SimDuration::ZERO, "linear"));
    assert!(timer.breakdown(std::slice::from_ref(&batch), 0).unwrap().is_empty());
}

/// The path and message of the refusal of `plan`.
fn refusal(plan: &Value) -> (String, String) {
    match StepTimer::compile(&spec(plan), 64, 8, &[]) {
        Err(SimError::Plan { path, message }) => (path, message),
        other => panic!("{other:?}"),
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one line per value")]
fn values_that_make_no_sense_are_refused_with_their_path() {
    // Positions in the program: 2 a GEMM, 5 attention, 13 sliding attention, 16 experts, 17 an all-reduce.
    let cases = [
        ("/gpu/num_sms", json!(0), "step_time.gpu.num_sms", "was 0, must be at least 1"),
        (
            "/gpu/memory_bandwidth_bytes_per_s",
            json!(0.0),
            "step_time.gpu.memory_bandwidth_bytes_per_s",
            "was 0",
        ),
        ("/gpu/peak_flops_per_s/bf16", json!(-1.0), "step_time.gpu.peak_flops_per_s.bf16", "was -1"),
        ("/gpu/compute_efficiency", json!(1.01), "step_time.gpu.compute_efficiency", "must be in (0, 1]"),
        ("/gpu/memory_efficiency", json!(0.0), "step_time.gpu.memory_efficiency", "must be in (0, 1]"),
        ("/gpu/kernel_launch_s", json!(-1e-9), "step_time.gpu.kernel_launch_s", "not negative"),
        (
            "/links/node/bandwidth_bytes_per_s",
            json!(-5.0),
            "step_time.links.node.bandwidth_bytes_per_s",
            "was -5",
        ),
        ("/links/node/latency_s", json!(-5.0), "step_time.links.node.latency_s", "was -5"),
        ("/links/node/efficiency", json!(2.0), "step_time.links.node.efficiency", "was 2"),
        ("/stages/0/2/model_share", json!(1.5), "step_time.stages[0][2].model_share", "must be in (0, 1]"),
        ("/links/node", json!(null), "step_time.links.node", "[17] communicates between 4 ranks on 1 nodes"),
        ("/cpu/per_step_s", json!(-0.1), "step_time.cpu.per_step_s", "was -0.1"),
        ("/cpu/per_seq_s", json!(-0.1), "step_time.cpu.per_seq_s", "was -0.1"),
        ("/layout/tensor_parallel_size", json!(0), "step_time.layout.tensor_parallel_size", "was 0"),
        (
            "/layout/tensor_parallel_size",
            json!(2),
            "step_time.stages[0][17].ranks",
            "must not exceed the replica's GPUs (2)",
        ),
        (
            "/layout/pipeline_parallel_size",
            json!(2),
            "step_time.stages",
            "must have one per pipeline stage (2)",
        ),
        ("/stages", json!([[]]), "step_time.stages[0]", "was empty"),
        ("/stages/0/2/name", json!(""), "step_time.stages[0][2].name", "was empty"),
        ("/stages/0/2/count", json!(0), "step_time.stages[0][2].count", "was 0"),
        ("/stages/0/2/k", json!(0), "step_time.stages[0][2].k", "was 0, must be in 1 ..= 16777216"),
        ("/stages/0/2/n", json!(4_294_967_295_u32), "step_time.stages[0][2].n", "was 4294967295"),
        ("/stages/0/2/batch", json!(0), "step_time.stages[0][2].batch", "was 0"),
        ("/stages/0/2/weight_bytes", json!(0.0), "step_time.stages[0][2].weight_bytes", "was 0"),
        ("/stages/0/2/activation_bytes", json!(-2.0), "step_time.stages[0][2].activation_bytes", "was -2"),
        ("/stages/0/2/dtype", json!("fp4"), "step_time.stages[0][2].dtype", "it has fp32, fp16, bf16, fp8"),
        ("/stages/0/5/heads", json!(0), "step_time.stages[0][5].heads", "was 0"),
        ("/stages/0/5/kv_heads", json!(5), "step_time.stages[0][5].kv_heads", "must divide heads (32)"),
        ("/stages/0/5/qk_dim", json!(0), "step_time.stages[0][5].qk_dim", "was 0"),
        ("/stages/0/5/v_dim", json!(0), "step_time.stages[0][5].v_dim", "was 0"),
        ("/stages/0/5/kv_bytes_per_token", json!(0.0), "step_time.stages[0][5].kv_bytes_per_token", "was 0"),
        ("/stages/0/13/window", json!(0), "step_time.stages[0][13].window", "was 0"),
        ("/stages/0/16/num_experts", json!(0), "step_time.stages[0][16].num_experts", "was 0"),
        ("/stages/0/16/top_k", json!(33), "step_time.stages[0][16].top_k", "was 33, must be in 1 ..= 32"),
        ("/stages/0/16/top_k", json!(0), "step_time.stages[0][16].top_k", "was 0, must be in 1 ..= 32"),
        (
            "/stages/0/16/expert_ranks",
            json!(3),
            "step_time.stages[0][16].expert_ranks",
            "must divide num_experts + redundant_experts (32)",
        ),
        (
            "/stages/0/16/imbalance",
            json!(-0.5),
            "step_time.stages[0][16].imbalance",
            "must be -1, 0 or positive",
        ),
        (
            "/stages/0/16/predictor",
            json!({"index": 0, "unmeasured": false, "calibration": 0.0}),
            "step_time.stages[0][16].predictor.calibration",
            "was 0",
        ),
        (
            "/stages/0/16/predictor",
            json!({"index": 3, "unmeasured": false, "calibration": 1.0}),
            "step_time.stages[0][16].predictor.index",
            "was 3, but 0 predictors go beside the plan",
        ),
        (
            "/stages/0/5/mixed_decode_factor",
            json!(0.0),
            "step_time.stages[0][5].mixed_decode_factor",
            "was 0",
        ),
        (
            "/stages/0/5/predictors/decode",
            json!({"index": 0, "unmeasured": false, "calibration": 1.0}),
            "step_time.stages[0][5].mixed_decode_factor",
            "was absent",
        ),
        ("/stages/0/17/nodes", json!(3), "step_time.stages[0][17].nodes", "must divide ranks (4)"),
        ("/stages/0/17/nodes", json!(2), "step_time.links.network", "was absent"),
        ("/stages/0/19/top_k", json!(64), "step_time.stages[0][19].top_k", "was 64, must be in 1 ..= 32"),
        ("/stages/0/17/ranks", json!(1), "step_time.stages[0][17].ranks", "was 1, must be at least 2"),
        ("/stages/0/17/bytes_per_row", json!(0.0), "step_time.stages[0][17].bytes_per_row", "was 0"),
    ];
    for (pointer, value, path, message) in cases {
        let mut plan = zoo();
        *plan.pointer_mut(pointer).unwrap() = value;
        let found = refusal(&plan);
        assert_eq!(found.0, path);
        assert!(found.1.contains(message), "{path}: {}", found.1);
    }
}

#[test]
fn values_that_json_cannot_write_are_refused_too() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let StepTimeSpec::Operators(good) = spec(&zoo()) else { unreachable!() };
        let mut broken = vec![good.clone(); 4];
        broken[0].gpu.memory_efficiency = bad;
        broken[1].gpu.kernel_launch_s = bad;
        broken[2].cpu.per_seq_s = bad;
        broken[3].gpu.peak_flops_per_s.fp16 = Some(bad);
        for spec in broken {
            let refused = StepTimer::compile(&StepTimeSpec::Operators(spec), 64, 8, &[]);
            assert!(matches!(refused, Err(SimError::Plan { .. })), "{bad} was accepted");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn prop_another_request_or_a_slower_machine_never_shortens_a_step(
        requests in proptest::collection::vec((1_u32..300, 0_u32..9000, any::<bool>()), 1..20),
    ) {
        let mut plan = zoo();
        plan["gpu"]["memory_bandwidth_bytes_per_s"] = json!(6.7e12);
        let mut timers = [&zoo(), &plan].map(|plan| StepTimer::compile(&spec(plan), 6000, 32, &[]).unwrap());
        let mut batch = BatchShape::new(timers[0].windows());
        let mut before = SimDuration::ZERO;
        for (query, history, is_prefill) in requests {
            let query = if is_prefill { query } else { 1 };
            batch.add(query, history + query, is_prefill);
            let [slow, fast] = [0, 1].map(|index: usize| timers[index].step(&batch).unwrap().total);
            prop_assert!(slow >= fast);
            // Expected expert counts carry rounding errors far below a nanosecond.
            prop_assert!(slow.0 + 1 >= before.0);
            before = slow;
        }
    }
}

/// The launches of `llama()` under vLLM's modes: 321 kernels in the forward pass, 64 of them attention and KV write.
fn launches(full_decode: &[u32], piecewise: &[u32]) -> Value {
    json!({
        "per_kernel_s": 30e-6, "per_graph_s": 10e-6, "per_graph_kernel_s": 1e-6,
        "graphs": {
            "decode_query_tokens": 1, "full_decode": full_decode, "full": [], "piecewise": piecewise,
        },
        "stages": [{"pieces_kernels": 258, "attention_kernels": 64, "tail_kernels": 1, "pieces": 33}],
    })
}

const COARSE: [u32; 7] = [1, 2, 4, 8, 16, 32, 64];

fn decodes(requests: usize) -> Vec<(u32, u32, bool)> {
    vec![(1, 1024, false); requests]
}

#[test]
fn a_step_jumps_where_the_captured_size_does() {
    let mut plan = llama();
    plan["launches"] = launches(&COARSE, &COARSE);
    let (mut padded, mut exact) = (timer(&plan), timer(&llama()));
    let steps = [31, 32, 33, 64, 65].map(|requests| step(&mut padded, &decodes(requests)));
    let found: Vec<_> = steps.iter().map(|step| (step.graph, step.padded_tokens)).collect();
    let full = |rows| (GraphMode::Full, rows);
    assert_eq!(found, [full(32), full(32), full(64), full(64), (GraphMode::Eager, 65)]);
    // 32 and 64 fill their graphs: their steps are those of a timer that knows no padding.
    for (index, requests) in [(1, 32), (3, 64)] {
        assert_eq!(steps[index].total, step(&mut exact, &decodes(requests)).total);
    }
    // 33 requests run the rows of 64 with the attention, the LM head and the useful work of 33.
    let [rows_33, rows_64] = [33, 64].map(|requests| exact_breakdown(&mut exact, requests));
    let padded_33 = exact_breakdown(&mut padded, 33);
    for (operator, &found) in &padded_33 {
        let own = ["attention", "lm_head", "sampler"].contains(&operator.as_str());
        assert_eq!(found.to_bits(), (if own { rows_33[operator] } else { rows_64[operator] }).to_bits());
    }
    let unpadded = step(&mut exact, &decodes(33));
    assert_eq!((steps[2].flops, steps[2].bytes), (unpadded.flops, unpadded.bytes));
    let (jump, without) = (steps[2].total.0 - steps[1].total.0, unpadded.total.0 - steps[1].total.0);
    assert!(jump > 3 * without, "{jump} {without}");
}

fn exact_breakdown(timer: &mut StepTimer, requests: usize) -> BTreeMap<String, f64> {
    let batch = batch(timer, &decodes(requests));
    let operators = timer.breakdown(std::slice::from_ref(&batch), 0).expect("the batch fits the timer");
    operators.into_iter().map(|operator| (operator.name, operator.seconds)).collect()
}

#[test]
fn a_stage_lasts_as_long_as_its_launches() {
    let gpu_s = step(&mut timer(&llama()), &decodes(1)).total;
    let eager_s = 323.0 * 30e-6;
    assert!(gpu_s < SimDuration::from_seconds(eager_s).unwrap());
    for (overlapped, full, piecewise, host_s) in [
        // 10 us + 322 * 1 us + 30 us are hidden behind the GPU; so are the pieces, but not 323 single launches.
        (true, &[1][..], &[1][..], None),
        (true, &[][..], &[1][..], None),
        (true, &[][..], &[][..], Some(eager_s + 1e-3)),
        (false, &[][..], &[][..], Some(eager_s + 1e-3)),
    ] {
        let mut plan = llama();
        plan["launches"] = launches(full, piecewise);
        plan["cpu"] = json!({"per_step_s": 1e-3, "per_seq_s": 0.0, "overlapped": overlapped});
        let found = step(&mut timer(&plan), &decodes(1));
        let expected = host_s.map_or(gpu_s, |seconds| SimDuration::from_seconds(seconds).unwrap());
        assert_eq!(found.total, expected);
        assert_eq!(found.cpu_exposed, expected - gpu_s);
    }
    // A synchronous engine adds what it does before and after to the longer of GPU and launches.
    let mut plan = llama();
    plan["launches"] = launches(&[1], &[1]);
    plan["cpu"] = json!({"per_step_s": 1e-3, "per_seq_s": 0.0, "overlapped": false});
    assert_eq!(step(&mut timer(&plan), &decodes(1)).total.0, gpu_s.0 + 1_000_000);
}

#[test]
fn launches_that_make_no_sense_are_refused() {
    let path = "step_time.launches";
    for (pointer, value, field, message) in [
        ("/launches/per_kernel_s", json!(-1.0), "per_kernel_s", "was -1"),
        ("/launches/per_graph_s", json!(-1.0), "per_graph_s", "was -1"),
        ("/launches/per_graph_kernel_s", json!(-1.0), "per_graph_kernel_s", "was -1"),
        ("/launches/stages", json!([]), "stages", "has 0 entries"),
        ("/launches/graphs/decode_query_tokens", json!(0), "graphs.decode_query_tokens", "was 0"),
        ("/launches/graphs/full", json!([1, 1]), "graphs.full", "was not ascending"),
        ("/launches/graphs/piecewise", json!([0]), "graphs.piecewise", "was 0"),
        ("/launches/graphs/full_decode", json!([1, 65_537]), "graphs.full_decode", "was 65537"),
    ] {
        let mut plan = llama();
        plan["launches"] = launches(&COARSE, &COARSE);
        *plan.pointer_mut(pointer).unwrap() = value;
        let found = refusal(&plan);
        assert_eq!(found.0, format!("{path}.{field}"));
        assert!(found.1.contains(message), "{field}: {}", found.1);
    }
}

#[test]
fn ranks_in_lock_step_pad_to_the_largest() {
    let mut plan = llama();
    plan["layout"]["data_parallel_size"] = json!(2);
    plan["launches"] = launches(&COARSE, &COARSE);
    let mut timer = timer(&plan);
    let batches = [5, 33].map(|requests| batch(&timer, &decodes(requests)));
    let together = timer.step_all(&batches).unwrap();
    assert_eq!((together.graph, together.padded_tokens), (GraphMode::Full, 128));
    let prefill = batch(&timer, &[(4096, 4096, true)]);
    let beside = timer.step_all(&[batches[0].clone(), prefill]).unwrap();
    assert_eq!((beside.graph, beside.padded_tokens), (GraphMode::Eager, 4101));
}

/// A step of nothing but attention in which every token sees what `span` says.
fn encoder(span: &Value) -> Value {
    let mut plan = llama();
    let mut attention = attention("attention", 1, None);
    attention["kv_heads"] = json!(32);
    attention["span"] = span.clone();
    plan["stages"] = json!([[attention]]);
    plan
}

#[test]
fn encoders_compute_all_pairs_of_an_item_or_of_its_blocks() {
    let mut whole = timer(&encoder(&json!({"kind": "request"})));
    let items = [(3000, 3000, true), (1000, 1000, true)];
    let found = step(&mut whole, &items);
    // Two products of 2 x 128 FLOPs for each pair and head.
    let pair: f64 = 2.0 * 2.0 * 128.0 * 32.0;
    assert_eq!(found.flops.to_bits(), ((3000.0 * 3000.0 + 1000.0 * 1000.0) * pair).to_bits());
    // Twice what causal attention computes, but for the diagonal.
    let causal = step(&mut timer(&encoder(&json!(null))), &items);
    assert_eq!(found.flops.to_bits(), (2.0 * causal.flops - 4000.0 * pair).to_bits());
    let mut blocks = timer(&encoder(&json!({"kind": "blocks", "tokens": 64})));
    assert_eq!(step(&mut blocks, &items).flops.to_bits(), (4000.0 * 64.0 * pair).to_bits());
    let mut one = timer(&encoder(&json!({"kind": "blocks", "tokens": 4000})));
    assert_eq!(step(&mut one, &items), found);
}

#[test]
fn spans_that_make_no_sense_are_refused() {
    let (path, message) = refusal(&encoder(&json!({"kind": "blocks", "tokens": 0})));
    assert!(path.ends_with("stages[0][0].span.tokens"), "{path}: {message}");
    let mut plan = encoder(&json!({"kind": "request"}));
    plan["stages"][0][0]["window"] = json!(64);
    let (path, message) = refusal(&plan);
    assert!(path.ends_with("stages[0][0].span") && message.contains("causal"), "{path}: {message}");
}

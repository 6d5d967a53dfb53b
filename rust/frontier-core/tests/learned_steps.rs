//! Steps whose operators have learned predictors: what a time is made of, where it comes from, how an error is
//! drawn, and how ranks and stages add up.

use std::sync::Arc;

use frontier_core::fidelity::{BatchShape, Provenance, StepTimer};
use frontier_core::plan::StepTimeSpec;
use frontier_core::predictor::ensemble::EnsembleParts;
use frontier_core::predictor::{
    BoundParameters, Cold, Ensemble, Form, Identity, LogTable, Measurement, Operator, Predictor,
    ResidualQuantiles, static_shape_hash,
};
use serde_json::{Value, json};

fn predictor(operator: Operator, features: &[&str], ranges: &[(f32, f32)], form: Form) -> Predictor {
    Predictor {
        identity: Identity {
            gpu: "h100".into(),
            backend: "vllm".into(),
            version: "0.24.0".into(),
            kernel: "test".into(),
            measurement: Measurement::CudaGraph,
            operator,
            dtype: "bf16".into(),
        },
        features: features.iter().map(ToString::to_string).collect(),
        ranges: ranges.to_vec(),
        bound: BoundParameters { launch_s: 1e-5, compute_scale: 1.0, memory_scale: 2.0, network_scale: 1.0 },
        cold: None,
        calibration: 1.0,
        residuals: ResidualQuantiles::new(vec![(0.05, -0.1), (0.5, 0.0), (0.95, 0.2)])
            .expect("the fixture is valid"),
        shape_columns: if operator == Operator::Gemm { vec!["k".into(), "n".into()] } else { vec![] },
        static_shapes: vec![static_shape_hash(&[4096.0, 4096.0])],
        form,
    }
}

/// One tree: `below` where `feature` is less than `threshold`, else `above`.
fn stump(num_features: usize, feature: u8, threshold: f32, below: f32, above: f32) -> Form {
    let mut offsets = vec![0; num_features + 1];
    for offset in &mut offsets[usize::from(feature) + 1..] {
        *offset = 1;
    }
    let parts = EnsembleParts {
        thresholds: vec![threshold],
        threshold_offsets: offsets,
        nodes: vec![feature, 0, 255, 255],
        tree_starts: vec![0, 4],
        leaves: vec![below, above],
        base_score: 0.0,
    };
    Form::Trees(Ensemble::new(&parts, num_features).expect("the fixture is valid"))
}

/// Trees over rows (of GEMMs): a factor of 2 below 100 rows, 3 from there on.
fn rows_stump() -> Predictor {
    predictor(
        Operator::Gemm,
        &["rows"],
        &[(1.0, 1000.0)],
        stump(1, 0, 100.0, libm::logf(2.0), libm::logf(3.0)),
    )
}

fn reference(index: u32) -> Value {
    json!({"index": index, "unmeasured": false, "calibration": 1.0})
}

fn gemm(name: &str, k: u32, predictor: &Value) -> Value {
    json!({
        "op": "gemm", "name": name, "count": 2, "predictor": predictor, "rows": "tokens", "k": k, "n": 4096, "batch": 1,
        "dtype": "bf16", "weight_bytes": 2.0, "activation_bytes": 2.0, "model_share": 1.0,
    })
}

fn attention(predictors: &Value, mixed_decode_factor: &Value) -> Value {
    json!({
        "op": "attention", "name": "attention", "count": 1, "phase": "both", "heads": 32, "kv_heads": 8,
        "qk_dim": 128, "v_dim": 128, "kv_bytes_per_token": 4096.0, "window": null, "dtype": "bf16",
        "activation_bytes": 2.0, "model_share": 1.0, "predictors": predictors, "mixed_decode_factor": mixed_decode_factor,
    })
}

fn plan(stages: &Value, data_parallel_size: u32) -> Value {
    json!({
        "kind": "operators",
        "gpu": {
            "num_sms": 132, "peak_flops_per_s": {"bf16": 989.4e12}, "memory_bandwidth_bytes_per_s": 3.35e12,
            "compute_efficiency": 0.8, "memory_efficiency": 0.9, "kernel_launch_s": 2e-6,
        },
        "links": {
            "node": {"bandwidth_bytes_per_s": 450e9, "latency_s": 2e-6, "efficiency": 0.8, "direct": true},
            "network": null,
        },
        "cpu": {"per_step_s": 0.0, "per_seq_s": 0.0, "overlapped": true},
        "layout": {
            "tensor_parallel_size": 1, "pipeline_parallel_size": stages.as_array().expect("the fixture is valid").len(),
            "data_parallel_size": data_parallel_size,
        },
        "stages": stages,
        "residuals": null,
    })
}

fn timer(plan: &Value, predictors: &[Predictor]) -> StepTimer {
    let spec: StepTimeSpec = serde_json::from_value(plan.clone()).expect("the fixture is valid");
    let predictors: Vec<_> = predictors.iter().cloned().map(Arc::new).collect();
    StepTimer::compile(&spec, 8192, 256, &predictors).expect("the fixture is valid")
}

fn batch(requests: &[(u32, u32)]) -> BatchShape {
    let mut batch = BatchShape::new(&[]);
    for &(query, context) in requests {
        batch.add(query, context, query > 1);
    }
    batch
}

fn seconds(timer: &mut StepTimer, requests: &[(u32, u32)]) -> f64 {
    timer.step(&batch(requests)).expect("the fixture is valid").total.as_seconds()
}

fn close(found: f64, expected: f64) {
    // Times are whole nanoseconds.
    assert!((found - expected).abs() <= 1.1e-9 + 1e-6 * expected, "{found} is not {expected}");
}

#[test]
fn a_time_is_the_bound_times_the_ratio() {
    let mut timer = timer(&plan(&json!([[gemm("proj", 4096, &reference(0))]]), 1), &[rows_stump()]);
    assert_eq!(timer.name(), "learned");
    // Twice the memory time, by the predictor's own scale, plus its launch; two runs.
    let bound = |rows: f64| 2.0 * (4096.0 * 4096.0 * 2.0 + rows * 8192.0 * 2.0) / (3.35e12 * 0.9) + 1e-5;
    close(seconds(&mut timer, &[(1, 64)]), 2.0 * 2.0 * bound(1.0));
    close(seconds(&mut timer, &[(60, 64), (39, 64)]), 2.0 * 2.0 * bound(99.0));
    close(seconds(&mut timer, &[(60, 64), (40, 64)]), 2.0 * 3.0 * bound(100.0));
}

#[test]
fn calibration_and_unmeasured_are_the_plans() {
    let calibrated = json!({"index": 0, "unmeasured": true, "calibration": 1.5});
    let mut plain = timer(&plan(&json!([[gemm("proj", 4096, &reference(0))]]), 1), &[rows_stump()]);
    let mut scaled = timer(&plan(&json!([[gemm("proj", 4096, &calibrated)]]), 1), &[rows_stump()]);
    close(seconds(&mut scaled, &[(7, 7)]), 1.5 * seconds(&mut plain, &[(7, 7)]));
    let provenance = |timer: &mut StepTimer| timer.breakdown(&[batch(&[(7, 7)])], 0).unwrap()[0].provenance;
    assert_eq!(
        (provenance(&mut plain), provenance(&mut scaled)),
        (Some(Provenance::Measured), Some(Provenance::Unmeasured))
    );
}

#[test]
fn every_second_is_accounted_for_by_provenance() {
    // 4096 x 4096 was profiled, 2048 x 4096 was not; more than 1000 rows were never measured; one has no predictor.
    let stage = json!([[
        gemm("known", 4096, &reference(0)),
        gemm("other", 2048, &reference(0)),
        gemm("bare", 4096, &json!(null)),
    ]]);
    let mut timer = timer(&plan(&stage, 1), &[rows_stump()]);
    let total: f64 = [1, 500, 500, 4000].map(|tokens| seconds(&mut timer, &[(tokens, tokens)])).iter().sum();
    let trust = timer.trust();
    let sum: f64 = trust.iter().flat_map(|operator| operator.tally.seconds).sum();
    assert!((sum - total).abs() < 1e-8, "{sum} of {total}");
    let shares = |index: usize| trust[index].tally.seconds.map(|seconds| seconds > 0.0);
    assert_eq!(shares(0), [true, false, true, false]);
    assert_eq!(shares(1), [false, true, true, false]);
    assert_eq!(shares(2), [false, false, false, true]);
    let furthest = trust[0].tally.furthest.unwrap();
    assert_eq!((trust[0].feature, furthest.value.to_bits()), ("rows", 4000.0_f32.to_bits()));
    assert!((furthest.distance - 4.0).abs() < 1e-9);
    assert!(trust[2].tally.furthest.is_none());
}

#[test]
fn an_error_is_drawn_once_per_operator_and_replication() {
    let mut best = plan(&json!([[gemm("proj", 4096, &reference(0))]]), 1);
    let alone = seconds(&mut timer(&best, &[rows_stump()]), &[(5, 5)]);
    let mut draws = Vec::new();
    for replication in 1..=40 {
        best["residuals"] = json!({"seed": 7, "replication": replication});
        let mut replicated = timer(&best, &[rows_stump()]);
        let factor = seconds(&mut replicated, &[(5, 5)]) / alone;
        assert!((libm::exp(-0.11)..libm::exp(0.21)).contains(&factor), "{factor}");
        close(seconds(&mut replicated, &[(5, 5)]), factor * alone);
        draws.push(factor);
    }
    let above = draws.iter().filter(|&&factor| factor > 1.0).count();
    assert!((10..=30).contains(&above), "{above} of 40 draws above the median");
    // Another operator of the same predictor has an error of its own.
    best["stages"] = json!([[gemm("other", 4096, &reference(0))]]);
    let other = seconds(&mut timer(&best, &[rows_stump()]), &[(5, 5)]) / alone;
    assert!((other - draws[39]).abs() > 1e-6);
}

fn decode_predictor() -> Predictor {
    let features = ["heads", "num_seqs", "kv_max_ratio"];
    let ranges = [(8.0, 64.0), (1.0, 64.0), (1.0, 1.0)];
    predictor(Operator::DecodeAttention, &features, &ranges, stump(3, 1, 8.0, 0.0, libm::logf(2.0)))
}

#[test]
fn prefills_and_decodes_are_predicted_apart_and_put_together() {
    let prefill = predictor(
        Operator::PrefillAttention,
        &["query_tokens"],
        &[(1.0, 1e6)],
        stump(1, 0, 1e9, libm::logf(4.0), 0.0),
    );
    let names = json!({"prefill": reference(0), "decode": reference(1), "skew": null, "mixed": null});
    let all = [prefill, decode_predictor()];
    let mut half = timer(&plan(&json!([[attention(&names, &json!(1.5))]]), 1), &all);
    let (chunk, decodes) = ((512, 2048), [(1, 1000), (1, 1000)]);
    let (first, second) = (seconds(&mut half, &[chunk]), seconds(&mut half, &decodes));
    let mixed = seconds(&mut half, &[chunk, decodes[0], decodes[1]]);
    close(mixed, first + 1.5 * second);
    // Eight equal decodes take the other leaf.
    let mut bare = timer(&plan(&json!([[attention(&names, &json!(1.5))]]), 1), &all);
    let (few, many) = (seconds(&mut bare, &[(1, 1000); 7]), seconds(&mut bare, &[(1, 1000); 8]));
    assert!(many > 1.9 * few, "{few} then {many}");
}

#[test]
fn a_mixed_batch_may_have_a_predictor_of_its_own() {
    let mixed = predictor(
        Operator::MixedAttention,
        &["prefill.query_tokens", "decode.num_seqs"],
        &[(1.0, 600.0), (1.0, 1.0)],
        stump(2, 1, 1.5, libm::logf(5.0), libm::logf(7.0)),
    );
    let names = json!({"prefill": null, "decode": null, "skew": null, "mixed": reference(0)});
    let mut timer = timer(&plan(&json!([[attention(&names, &json!(1.0))]]), 1), &[mixed]);
    let both = |timer: &mut StepTimer, decodes: usize| {
        let mut requests = vec![(512, 2048)];
        requests.resize(1 + decodes, (1, 1000));
        let bound = timer.breakdown(&[batch(&requests)], 0).unwrap()[0].bound_s;
        (seconds(timer, &requests), bound)
    };
    let ((one, _), (two, _)) = (both(&mut timer, 1), both(&mut timer, 2));
    assert!((two / one / (7.0 / 5.0) - 1.0).abs() < 0.2, "{one} then {two}");
    let trust = timer.trust();
    assert_eq!(trust.len(), 1, "{trust:?}");
    assert_eq!((trust[0].name.as_str(), trust[0].feature), ("attention (mixed)", "decode.num_seqs"));
    let _ = seconds(&mut timer, &[(1, 1000)]);
    assert_eq!(timer.trust()[0].name, "attention (decode)");
}

#[test]
fn unequal_lengths_are_the_skew_predictors_business() {
    let names = |skew: Value| json!({"prefill": null, "decode": reference(0), "skew": skew, "mixed": null});
    let skew = predictor(
        Operator::DecodeSkew,
        &["kv_max_ratio"],
        &[(1.0, 4.0)],
        stump(1, 0, 1.5, 0.0, libm::logf(1.25)),
    );
    let all = [decode_predictor(), skew];
    let mut without = timer(&plan(&json!([[attention(&names(json!(null)), &json!(1.0))]]), 1), &all);
    let mut with = timer(&plan(&json!([[attention(&names(reference(1)), &json!(1.0))]]), 1), &all);
    let (even, uneven) = ([(1, 2000), (1, 2000)], [(1, 3500), (1, 500)]);
    close(seconds(&mut with, &even), seconds(&mut without, &even));
    close(seconds(&mut with, &uneven), 1.25 * seconds(&mut without, &uneven));
    let outside = |timer: &mut StepTimer| timer.trust()[0].tally.furthest.map(|outside| outside.value);
    assert_eq!(outside(&mut without), Some(1.75), "uniform measurements never saw this");
    assert_eq!(outside(&mut with), None);
    // Eight times the mean is more than the skew predictor saw.
    let _ = seconds(&mut with, &[(1, 8000), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1)]);
    assert!(outside(&mut with).unwrap() > 7.9);
}

#[test]
fn what_was_measured_in_a_warm_cache_is_read_cold() {
    let names = json!({"prefill": null, "decode": reference(0), "skew": null, "mixed": null});
    let cold = Cold { l2_bytes: 50e6, s_per_byte: 1e-13 };
    let warm = decode_predictor();
    let plan = plan(&json!([[attention(&names, &json!(1.0))]]), 1);
    let mut warm_timer = timer(&plan, std::slice::from_ref(&warm));
    let mut cold_timer = timer(&plan, &[Predictor { cold: Some(cold), ..warm }]);
    // 4 requests of 2500 tokens read 41 MB; 4 of 3700 read 61 MB, 22 % of the way out of the cache; 5000 none of it.
    for (context, extra) in [(2500, 4.096e-6), (3700, 6.062e-6 * 0.5751), (5000, 0.0)] {
        let requests = [(1, context); 4];
        let found = seconds(&mut cold_timer, &requests) - seconds(&mut warm_timer, &requests);
        assert!((found - extra).abs() < 5e-9, "{context}: {found} is not {extra}");
    }
}

#[test]
fn collectives_read_their_table() {
    let table = LogTable::new(vec![1e3, 1e5], &[1e-5, 1e-3]).unwrap();
    let all = [predictor(Operator::AllReduce, &["bytes"], &[(1e3, 1e5)], Form::Table(table))];
    let collective = json!({
        "op": "collective", "name": "all_reduce", "count": 3, "predictor": reference(0), "kind": "all_reduce",
        "rows": "all_tokens", "bytes_per_row": 1000.0, "ranks": 2, "nodes": 1,
    });
    let mut timer = timer(&plan(&json!([[collective]]), 2), &all);
    let one = timer.step_all(&[batch(&[(4, 4)]), batch(&[(6, 6)])]).unwrap();
    close(one.total.as_seconds(), 3.0 * 1e-4);
    let trust = timer.trust();
    assert!(trust[0].tally.seconds[Provenance::Measured as usize] > 0.0);
}

#[test]
fn ranks_wait_for_the_slowest_and_stages_follow_each_other() {
    let shared = json!({
        "op": "elementwise", "name": "shared", "count": 1, "predictor": null, "rows": "all_tokens",
        "bytes_per_row": 1e6,
    });
    let stages = json!([[gemm("first", 4096, &json!(null)), shared], [gemm("second", 8192, &json!(null))]]);
    let mut two = timer(&plan(&stages, 2), &[]);
    let (small, large) = (batch(&[(10, 10)]), batch(&[(4000, 4000)]));
    let step = two.step_all(&[small.clone(), large.clone()]).unwrap();
    let stages_s = two.stages_s().to_vec();
    close(step.total.as_seconds(), stages_s.iter().sum());
    let rank = |timer: &mut StepTimer, rank| timer.breakdown(&[small.clone(), large.clone()], rank).unwrap();
    let (of_small, of_large) = (rank(&mut two, 0), rank(&mut two, 1));
    close(stages_s[0], of_large[0].seconds + of_large[1].seconds);
    close(stages_s[1], of_large[2].seconds);
    assert_eq!(of_small[1].seconds.to_bits(), of_large[1].seconds.to_bits(), "all ranks do this together");
    assert!(of_small[0].seconds < of_large[0].seconds);
    assert!(two.step(&small).is_err(), "one batch per rank");
    // FLOPs of both ranks, each with its own tokens.
    close(
        step.flops / 1e15,
        [&of_small, &of_large].iter().flat_map(|times| times.iter()).map(|t| t.flops).sum::<f64>() / 1e15,
    );
}

fn refusal(stage: &Value, predictors: &[Predictor]) -> String {
    let spec: StepTimeSpec = serde_json::from_value(plan(stage, 1)).expect("the fixture follows the schema");
    let predictors: Vec<_> = predictors.iter().cloned().map(Arc::new).collect();
    StepTimer::compile(&spec, 64, 8, &predictors).map(|_| ()).expect_err("must be refused").to_string()
}

#[test]
fn predictors_that_do_not_fit_their_slot_are_refused() {
    let slots = |slot: &str| {
        let mut names = json!({"prefill": null, "decode": null, "skew": null, "mixed": null});
        names[slot] = reference(0);
        json!([[attention(&names, &json!(1.0))]])
    };
    let message = refusal(&slots("decode"), &[rows_stump()]);
    assert!(message.contains("predictors.decode.index: was 0, which predicts Gemm"), "{message}");
    let message = refusal(&slots("skew"), &[rows_stump()]);
    assert!(
        message.contains("predictors.skew: has no effect: there is no predictor of decodes"),
        "{message}"
    );
    let strange = Predictor { shape_columns: vec!["heads".into(), "num_seqs".into()], ..decode_predictor() };
    let message = refusal(&slots("decode"), &[strange]);
    assert!(message.contains("\"num_seqs\", which is not the same in every run"), "{message}");
    let strange =
        Predictor { features: vec!["heads".into(), "rows".into(), "n".into()], ..decode_predictor() };
    let message = refusal(&slots("decode"), &[strange]);
    assert!(message.contains("whose feature \"rows\" is not one of this operator's"), "{message}");
}

#[test]
fn a_time_that_is_no_number_is_an_error() {
    let endless = Predictor { calibration: f64::INFINITY, ..rows_stump() };
    let mut timer = timer(&plan(&json!([[gemm("proj", 4096, &reference(0))]]), 1), &[endless]);
    assert!(timer.step(&batch(&[(5, 5)])).is_err());
}

#[test]
fn the_last_token_of_a_prompt_is_priced_as_a_decode() {
    let names = json!({"prefill": null, "decode": reference(0), "skew": null, "mixed": null});
    let mut timer = timer(&plan(&json!([[attention(&names, &json!(1.0))]]), 1), &[decode_predictor()]);
    let mut prompt = BatchShape::new(&[]);
    prompt.add(1, 900, true);
    let priced = timer.step(&prompt).unwrap().total;
    assert_eq!(priced, timer.step(&batch(&[(1, 900)])).unwrap().total);
    assert_eq!(prompt.prompt_tokens(), 1);
}

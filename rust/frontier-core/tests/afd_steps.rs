//! Steps of attention-FFN disaggregation through the step timer: against the co-located program, the event
//! graph and the closed form.

use frontier_core::error::SimError;
use frontier_core::fidelity::afd::closed_form::Uniform;
use frontier_core::fidelity::afd::event_graph::simulate;
use frontier_core::fidelity::{BatchShape, GraphMode, StepTimer};
use frontier_core::plan::StepTimeSpec;
use frontier_core::rng::RngStreams;
use serde_json::{Value, json};

const LAYERS: u32 = 24;
const DENSE_LAYERS: u32 = 4;

fn gemm(name: &str, count: u32, rows: &str, k: u32, n: u32) -> Value {
    json!({
        "op": "gemm", "name": name, "count": count, "predictor": null, "rows": rows, "k": k, "n": n, "batch": 1,
        "dtype": "bf16", "weight_bytes": 2.0, "activation_bytes": 2.0, "model_share": 1.0,
    })
}

fn elementwise(name: &str, rows: &str, bytes_per_row: f64) -> Value {
    json!({
        "op": "elementwise", "name": name, "count": 1, "predictor": null, "rows": rows,
        "bytes_per_row": bytes_per_row,
    })
}

fn attention(count: u32) -> Value {
    json!({
        "op": "attention", "name": "attention", "count": count, "phase": "both", "mixed_decode_factor": null,
        "predictors": {"prefill": null, "decode": null, "skew": null, "mixed": null}, "heads": 32, "kv_heads": 8,
        "qk_dim": 128, "v_dim": 128, "kv_bytes_per_token": 4096.0, "window": null, "dtype": "bf16",
        "activation_bytes": 2.0, "model_share": 1.0,
    })
}

fn experts(count: u32, ranks: u32) -> Value {
    json!({
        "op": "fused_moe", "name": "experts", "count": count, "predictor": null, "rows": "all_tokens",
        "num_experts": 32, "top_k": 4, "redundant_experts": 0, "expert_ranks": ranks, "hidden": 4096,
        "intermediate": 1536, "gated": true, "dtype": "bf16", "weight_bytes": 2.0, "activation_bytes": 2.0,
        "model_share": 1.0, "imbalance": 0.0,
    })
}

fn attention_part(count: u32) -> Vec<Value> {
    vec![
        gemm("qkv_proj", count, "tokens", 4096, 6144),
        attention(count),
        gemm("o_proj", count, "tokens", 4096, 4096),
    ]
}

fn dense_part(count: u32) -> Vec<Value> {
    vec![gemm("gate_up_proj", count, "tokens", 4096, 12_288), gemm("down_proj", count, "tokens", 6144, 4096)]
}

fn head() -> Vec<Value> {
    vec![elementwise("embedding", "tokens", 16384.0)]
}

fn tail() -> Vec<Value> {
    vec![gemm("lm_head", 1, "seqs", 4096, 128_256)]
}

fn operators(layout: [u32; 3], stages: &[Vec<Value>]) -> Value {
    json!({
        "gpu": {
            "num_sms": 132,
            "peak_flops_per_s": {"bf16": 989.4e12},
            "memory_bandwidth_bytes_per_s": 3.35e12,
            "compute_efficiency": 0.8,
            "memory_efficiency": 0.9,
            "kernel_launch_s": 2e-6,
        },
        "links": {"node": null, "network": null},
        "cpu": {"per_step_s": 0.0, "per_seq_s": 0.0, "overlapped": true},
        "launches": null,
        "layout": {
            "tensor_parallel_size": layout[0], "pipeline_parallel_size": layout[1], "data_parallel_size": layout[2],
        },
        "residuals": null, "draft": null, "moe": null,
        "stages": stages,
    })
}

fn transfer(latency_s: f64, bandwidth_bytes_per_s: f64) -> Value {
    let end = json!({"bandwidth_bytes_per_s": bandwidth_bytes_per_s, "utilization": [[0.0, 1.0]]});
    json!({"bytes_per_element": 2.0, "latency_s": latency_s, "attention": end, "ffn": end})
}

/// Dense layers, then layers with experts, over so many ranks.
fn plan(micro_batches: u32, ranks: u32, ffn_ranks: u32, moving: &Value) -> Value {
    let moe_layers = LAYERS - DENSE_LAYERS;
    json!({
        "kind": "afd",
        "attention": operators(
            [1, 4, ranks],
            &[head(), attention_part(DENSE_LAYERS), attention_part(moe_layers), tail()],
        ),
        "ffn": operators([1, 2, ffn_ranks], &[dense_part(DENSE_LAYERS), vec![experts(moe_layers, ffn_ranks)]]),
        "classes": [{"kind": "dense", "destinations": 1.0}, {"kind": "moe", "destinations": 1.0}],
        "layers": [{"class": 0, "count": DENSE_LAYERS}, {"class": 1, "count": moe_layers}],
        "micro_batches": micro_batches,
        "hidden": 4096,
        "a2f": moving,
        "f2a": moving,
    })
}

/// The same model, all on one GPU.
fn colocated() -> Value {
    let moe_layers = LAYERS - DENSE_LAYERS;
    let stage = [
        head(),
        attention_part(DENSE_LAYERS),
        attention_part(moe_layers),
        dense_part(DENSE_LAYERS),
        vec![experts(moe_layers, 1)],
        tail(),
    ];
    let mut plan = operators([1, 1, 1], &[stage.concat()]);
    plan["kind"] = json!("operators");
    plan
}

fn compile(plan: &Value) -> Result<StepTimer, SimError> {
    StepTimer::compile(&StepTimeSpec::from_json(&plan.to_string())?, 4096, 1024, &[])
}

fn timer(plan: &Value) -> StepTimer {
    compile(plan).expect("the fixture is a valid plan")
}

fn decodes(timer: &StepTimer, requests: u32, context: u32) -> BatchShape {
    let mut batch = timer.new_batch();
    (0..requests).for_each(|_| batch.add(1, context, false));
    batch
}

/// Requests: query tokens and context after the step; those with more than one token are chunks of prompts.
fn mixed(timer: &StepTimer, requests: &[(u32, u32)]) -> BatchShape {
    let mut batch = timer.new_batch();
    for &(query, context) in requests {
        batch.add(query, context, query > 1);
    }
    batch
}

/// Links that take no time.
fn nothing() -> Value {
    transfer(0.0, 1e30)
}

#[test]
fn one_rank_one_micro_batch_and_free_links_are_the_layers_one_after_the_other() {
    let (mut apart, mut together) = (timer(&plan(1, 1, 1, &nothing())), timer(&colocated()));
    let decodes = [1, 17, 256].map(|requests| decodes(&apart, requests, 2_000));
    let prompts = [&[(4_096, 4_096)][..], &[(2_000, 9_000), (1, 500), (300, 300), (1, 7_000)]];
    for batch in decodes.into_iter().chain(prompts.map(|requests| mixed(&apart, requests))) {
        let (found, expected) = (apart.step(&batch).unwrap(), together.step(&batch).unwrap());
        // Every part of every layer is rounded to a nanosecond.
        assert!(
            found.total.0.abs_diff(expected.total.0) <= u64::from(2 * LAYERS + 2),
            "{found:?} {expected:?}"
        );
        assert!((found.flops / expected.flops - 1.0).abs() < 1e-12);
        assert!((found.bytes / expected.bytes - 1.0).abs() < 1e-12);
        let times = apart.afd_iteration().unwrap();
        let of_layers: u64 = times
            .layers
            .iter()
            .map(|run| {
                let class = &times.classes[run.class];
                u64::from(run.count) * (class.attention_ns[0] + class.ffn_ns[0])
            })
            .sum();
        assert_eq!(found.total.0, times.head_ns[0] + of_layers + times.tail_ns[0]);
    }
}

#[test]
fn operators_of_both_sides_are_those_of_the_colocated_program() {
    let (mut apart, mut together) = (timer(&plan(3, 1, 1, &nothing())), timer(&colocated()));
    let batch = decodes(&apart, 96, 1_000);
    let of = |timer: &mut StepTimer| timer.breakdown(std::slice::from_ref(&batch), 0).unwrap();
    let (apart, together) = (of(&mut apart), of(&mut together));
    for operator in
        ["qkv_proj", "attention", "o_proj", "gate_up_proj", "down_proj", "experts", "embedding", "lm_head"]
    {
        let flops = |times: &[frontier_core::fidelity::OperatorTime]| {
            times.iter().filter(|time| time.name == operator).map(|time| time.flops).sum::<f64>()
        };
        let (found, expected) = (flops(&apart), flops(&together));
        assert!((found - expected).abs() <= 1e-9 * expected, "{operator}: {found} of {expected}");
    }
    let moved: Vec<_> = apart.iter().filter(|time| time.name == "a2f").map(|time| time.count).collect();
    assert_eq!(moved, [3 * DENSE_LAYERS, 3 * (LAYERS - DENSE_LAYERS)]);
}

#[test]
fn the_step_is_its_event_graph() {
    let moving = transfer(20e-6, 25e9);
    for (micro_batches, ranks, ffn_ranks) in [(3, 3, 2), (2, 2, 4), (4, 1, 1)] {
        let mut timer = timer(&plan(micro_batches, ranks, ffn_ranks, &moving));
        let batches: Vec<_> =
            (0..ranks).map(|rank| decodes(&timer, 40 * rank + 7, 900 + 700 * rank)).collect();
        let step = timer.step_all(&batches).unwrap();
        let trace = simulate(timer.afd_iteration().unwrap()).unwrap();
        assert_eq!(step.total.0, trace.end.0);
        assert!((timer.stages_s()[0] - step.total.as_seconds()).abs() < 1e-15);
    }
}

#[test]
fn steps_with_prompts_are_their_event_graph() {
    let mut stream = RngStreams::new(7, 0).get("mixed steps");
    let mut below = |bound: u32| stream.below(u64::from(bound)) as u32;
    for _ in 0..200 {
        let (micro_batches, ranks, ffn_ranks) = (1 + below(5), 1 + below(4), 1 << below(3));
        let moving = transfer(f64::from(below(3)) * 10e-6, 10e9 + f64::from(below(100)) * 1e9);
        let mut timer = timer(&plan(micro_batches, ranks, ffn_ranks, &moving));
        let batches: Vec<_> = (0..ranks)
            .map(|_| {
                let mut queries = vec![1; (below(3) * below(40)) as usize];
                (0..below(4)).for_each(|_| queries.push(1 + below(900)));
                let requests: Vec<_> =
                    queries.into_iter().map(|query| (query, query + below(9_000))).collect();
                mixed(&timer, &requests)
            })
            .collect();
        let step = timer.step_all(&batches).unwrap();
        let iteration = timer.afd_iteration().unwrap();
        assert_eq!(step.total.0, simulate(iteration).unwrap().end.0, "{batches:?}");
    }
}

/// Layers with experts alone, on two ranks of either side.
fn uniform_plan(bandwidth_bytes_per_s: f64) -> Value {
    let mut spec = plan(4, 2, 2, &transfer(10e-6, bandwidth_bytes_per_s));
    spec["layers"] = json!([{"class": 0, "count": LAYERS}]);
    spec["classes"] = json!([{"kind": "moe", "destinations": 1.5}]);
    spec["attention"] = operators([1, 3, 2], &[head(), attention_part(LAYERS), tail()]);
    spec["ffn"] = operators([1, 1, 2], &[vec![experts(LAYERS, 2)]]);
    spec
}

#[test]
fn prompts_in_equal_micro_batches_follow_the_closed_form() {
    let mut timer = timer(&uniform_plan(400e9));
    // Cuts lie between prompts: four micro-batches of two.
    let batch = mixed(&timer, &[(300, 1_100); 8]);
    let found = timer.step_all(&[batch.clone(), batch]).unwrap().total.0;
    let iteration = timer.afd_iteration().unwrap();
    let class = &iteration.classes[0];
    for times in [&class.attention_ns, &class.a2f_ns, &class.ffn_ns, &class.f2a_ns] {
        assert!(times.iter().all(|time| time == &times[0]), "{times:?}");
    }
    let [attention_ns, ffn_ns, transfer_ns] = [class.attention_ns[0], class.ffn_ns[0], class.a2f_ns[0]];
    let formula = Uniform { attention_ns, ffn_ns, transfer_ns }.iteration_ns(4, u64::from(LAYERS));
    assert_eq!(found, iteration.head_ns[0] + formula + iteration.tail_ns[0]);
    // MegaScale-Infer: where the slowest station is always busy, (Ta + Te + 2 Tc) + Tf (m L - 1).
    let slowest = attention_ns.max(ffn_ns);
    assert!(transfer_ns < slowest && 4 * slowest >= attention_ns + ffn_ns + 2 * transfer_ns);
    let published = attention_ns + ffn_ns + 2 * transfer_ns + slowest * (4 * u64::from(LAYERS) - 1);
    assert_eq!(formula, published);
}

#[test]
fn a_prompt_that_is_cut_is_computed_and_sent_once() {
    let requests = [(1, 900), (2_048, 3_000), (1, 2_000), (700, 700)];
    let moved = |micro_batches: u32| {
        let mut timer = timer(&plan(micro_batches, 1, 2, &transfer(0.0, 25e9)));
        let batch = mixed(&timer, &requests);
        let step = timer.step(&batch).unwrap();
        let iteration = timer.afd_iteration().unwrap();
        let sent: Vec<u64> = (iteration.classes.iter())
            .flat_map(|class| [&class.a2f_ns, &class.f2a_ns].map(|times| times.iter().sum()))
            .collect();
        (step.flops, sent)
    };
    let mut whole = timer(&colocated());
    let together = mixed(&whole, &requests);
    let expected = whole.step(&together).unwrap().flops;
    let (_, sent) = moved(1);
    // 2,750 tokens of 8,192 bytes over 25 GB/s, on two FFN ranks half as many each: the sender's end is the longer.
    let ns = (2_750.0 * 8_192.0 / 25e9 * 1e9_f64).round_ties_even() as u64;
    assert_eq!(sent, [ns; 4]);
    for micro_batches in 1..=6 {
        let (flops, parts) = moved(micro_batches);
        assert!((flops / expected - 1.0).abs() < 1e-12, "{flops} of {expected}");
        for (part, whole) in parts.iter().zip(&sent) {
            assert!(part.abs_diff(*whole) <= u64::from(micro_batches), "{parts:?} of {sent:?}");
        }
    }
}

#[test]
fn equal_micro_batches_follow_the_closed_form() {
    // Layers with experts alone, equal micro-batches and ranks: head and tail, and between them one formula.
    let mut timer = timer(&uniform_plan(25e9));
    let batch = decodes(&timer, 128, 3_000);
    let found = timer.step_all(&[batch.clone(), batch]).unwrap().total.0;
    let iteration = timer.afd_iteration().unwrap();
    let class = &iteration.classes[0];
    assert_eq!(class.a2f_ns, class.f2a_ns);
    // 32 tokens go to 1.5 GPUs each: 393,216 bytes.
    assert_eq!(
        class.a2f_ns[0],
        10_000 + (32.0 * 1.5 * 4096.0 * 2.0 / 25e9 * 1e9_f64).round_ties_even() as u64
    );
    let uniform = Uniform {
        attention_ns: class.attention_ns[0],
        ffn_ns: class.ffn_ns[0],
        transfer_ns: class.a2f_ns[0],
    };
    assert_eq!(
        found,
        iteration.head_ns[0] + uniform.iteration_ns(4, u64::from(LAYERS)) + iteration.tail_ns[0]
    );
}

#[test]
fn an_idle_attention_rank_changes_nothing() {
    let moving = transfer(5e-6, 50e9);
    let mut one = timer(&plan(3, 1, 4, &moving));
    let mut two = timer(&plan(3, 2, 4, &moving));
    let batch = decodes(&one, 50, 1_500);
    let idle = two.new_batch();
    let expected = one.step(&batch).unwrap();
    for batches in [[batch.clone(), idle.clone()], [idle.clone(), batch]] {
        assert_eq!(two.step_all(&batches).unwrap(), expected);
    }
    assert_eq!(two.step_all(&[idle.clone(), idle]).unwrap().total.0, 0);
}

#[test]
fn the_slowest_attention_rank_holds_the_others_up() {
    let mut timer = timer(&plan(3, 2, 2, &transfer(5e-6, 50e9)));
    let [short, long] = [200, 20_000].map(|context| decodes(&timer, 60, context));
    let mut step = |batches: &[BatchShape]| timer.step_all(batches).unwrap().total.0;
    let (fast, slow) = (step(&[short.clone(), short.clone()]), step(&[long.clone(), long.clone()]));
    let mixed = step(&[short, long]);
    assert!(fast < mixed && mixed <= slow, "{fast} {mixed} {slow}");
}

#[test]
fn more_of_anything_takes_no_less() {
    let mut all = timer(&plan(3, 2, 2, &transfer(5e-6, 50e9)));
    let mut step = |requests: u32, context: u32| {
        let batch = decodes(&all, requests, context);
        all.step_all(&[batch.clone(), batch]).unwrap().total.0
    };
    let by_context: Vec<u64> = [100, 1_000, 5_000, 20_000].map(|context| step(96, context)).to_vec();
    let by_requests: Vec<u64> = [1, 3, 30, 96, 300, 900].map(|requests| step(requests, 1_000)).to_vec();
    assert!(by_context.is_sorted() && by_requests.is_sorted(), "{by_context:?} {by_requests:?}");
    let by_link = [100e9, 10e9, 1e9, 0.1e9].map(|bandwidth| {
        let mut timer = timer(&plan(3, 2, 2, &transfer(5e-6, bandwidth)));
        let batch = decodes(&timer, 96, 1_000);
        timer.step_all(&[batch.clone(), batch]).unwrap().total.0
    });
    assert!(by_link.is_sorted() && by_link[0] < by_link[3], "{by_link:?}");
}

#[test]
fn steps_repeat() {
    let spec = plan(3, 2, 2, &transfer(5e-6, 50e9));
    let mut first = timer(&spec);
    let batches = [decodes(&first, 77, 1_234), decodes(&first, 13, 9_876)];
    let once = first.step_all(&batches).unwrap();
    first.step_all(&[batches[1].clone(), batches[0].clone()]).unwrap();
    assert_eq!(first.step_all(&batches).unwrap(), once);
    assert_eq!(timer(&spec).step_all(&batches).unwrap(), once);
}

fn with_graphs(mut spec: Value) -> Value {
    for (side, parts) in [("attention", 4), ("ffn", 2)] {
        let stage = json!({"pieces_kernels": 100, "attention_kernels": 10, "tail_kernels": 0, "pieces": 20});
        spec[side]["launches"] = json!({
            "per_kernel_s": 5e-6, "per_graph_s": 1e-6, "per_graph_kernel_s": 0.0,
            "graphs": {
                "decode_query_tokens": 1, "full_decode": [1, 2, 4, 8, 16, 32, 64], "full": [], "piecewise": [],
            },
            "stages": vec![stage; parts], "draft": null,
        });
    }
    spec
}

#[test]
fn every_micro_batch_is_padded_to_its_own_graph() {
    let mut timer = timer(&with_graphs(plan(3, 2, 2, &nothing())));
    // 35 requests are micro-batches of 12, 12 and 11; 5 are 2, 2 and 1.
    let batches = [decodes(&timer, 35, 1_000), decodes(&timer, 5, 1_000)];
    let step = timer.step_all(&batches).unwrap();
    assert_eq!(timer.padded_tokens().collect::<Vec<_>>(), [3 * 16, 2 + 2 + 1]);
    assert_eq!((step.padded_tokens, step.graph), (3 * 16 + 5, GraphMode::Full));
    // Per micro-batch, the parts of 4 and 20 layers are a graph per layer; head and tail are launched kernel by kernel.
    let expected = 3.0 * f64::from(LAYERS) * 1e-6 + 2.0 * 110.0 * 5e-6;
    assert!((step.launch.as_seconds() - expected).abs() < 1e-9, "{step:?}");
}

#[test]
fn prompts_above_the_largest_graph_run_eagerly_on_both_sides() {
    let mut timer = timer(&with_graphs(plan(3, 2, 2, &nothing())));
    // 2 requests decode and 301 prompt tokens: micro-batches of 101, none padded. The other rank decodes.
    let batches = [mixed(&timer, &[(1, 900), (1, 900), (301, 301)]), decodes(&timer, 5, 1_000)];
    let step = timer.step_all(&batches).unwrap();
    assert_eq!(timer.padded_tokens().collect::<Vec<_>>(), [303, 5]);
    assert_eq!(step.graph, GraphMode::Eager);
    // 110 kernels of each of two parts, head and tail once and each micro-batch on its own: more than graphs take.
    let kernels = 2.0 * 110.0 * (1.0 + 3.0);
    assert!((step.launch.as_seconds() - kernels * 5e-6).abs() < 1e-9, "{step:?}");
}

#[test]
fn logits_are_those_of_requests_not_of_their_parts() {
    let mut timer = timer(&plan(3, 1, 1, &nothing()));
    let batch = mixed(&timer, &[(3_000, 3_000), (1, 10)]);
    let tail = |timer: &mut StepTimer, batch: &BatchShape| {
        timer.step(batch).unwrap();
        timer.afd_iteration().unwrap().tail_ns[0]
    };
    let two = decodes(&timer, 2, 10);
    assert_eq!(tail(&mut timer, &batch), tail(&mut timer, &two));
}

#[test]
fn batches_that_forgot_their_prompts_are_refused() {
    let mut timer = timer(&plan(3, 1, 1, &nothing()));
    let mut batch = BatchShape::new(&[]);
    batch.add(5, 5, true);
    let found = timer.step(&batch).expect_err("must be refused").to_string();
    assert!(found.contains("cut into micro-batches comes from new_batch"), "{found}");
}

#[test]
fn host_time_is_there_once() {
    let step = |cpu: &Value| {
        let mut spec = plan(3, 1, 1, &nothing());
        spec["attention"]["cpu"] = cpu.clone();
        let mut timer = timer(&spec);
        let batch = decodes(&timer, 30, 1_000);
        timer.step(&batch).unwrap()
    };
    let free = step(&json!({"per_step_s": 0.0, "per_seq_s": 0.0, "overlapped": false}));
    let serial = step(&json!({"per_step_s": 1e-3, "per_seq_s": 1e-5, "overlapped": false}));
    assert_eq!(serial.total.0, free.total.0 + 1_300_000);
    assert_eq!(serial.cpu_exposed.0, 1_300_000);
    assert_eq!(step(&json!({"per_step_s": 1e-3, "per_seq_s": 0.0, "overlapped": true})).total, free.total);
    assert_eq!(
        step(&json!({"per_step_s": 1.0, "per_seq_s": 0.0, "overlapped": true})).total.0,
        1_000_000_000
    );
}

#[test]
fn stragglers_among_experts_hold_up_the_step() {
    let step = |routing: &Value| {
        let mut spec = plan(2, 2, 8, &nothing());
        spec["ffn"]["moe"] = json!({
            "seed": 1, "replication": 0, "sampling": "mean", "routing": routing, "drift": null,
            "placement": "linear", "eplb": null, "shared_overlap_max_tokens": 0, "dbo": null,
            "stages": [null, {
                "experts": 0, "exchanges": [], "shared": [], "first_layer": 0, "layers": LAYERS - DENSE_LAYERS,
                "nodes": 1,
            }],
        });
        let mut timer = timer(&spec);
        let batch = decodes(&timer, 512, 500);
        timer.step_all(&[batch.clone(), batch]).unwrap().total.0
    };
    let [even, random, skewed] = [
        json!({"kind": "balanced"}),
        json!({"kind": "uniform"}),
        json!({"kind": "power_law", "exponent": 1.0}),
    ]
    .map(|routing| step(&routing));
    assert!(even <= random && random < skewed, "{even} {random} {skewed}");
}

type Change = fn(&mut Value);

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut spec = plan(3, 2, 2, &nothing());
        change(&mut spec);
        compile(&spec).expect_err("must be refused").to_string()
    };
    let cases: [(Change, &str); 10] = [
        (|spec| spec["micro_batches"] = json!(0), "step_time.micro_batches: was 0"),
        (
            |spec| spec["classes"][1]["destinations"] = json!(2.5),
            "step_time.classes[1].destinations: was 2.5",
        ),
        (|spec| spec["layers"][1]["class"] = json!(2), "step_time.layers[1].class: was 2"),
        (|spec| spec["layers"] = json!([{"class": 0, "count": 4}]), "step_time.layers: has none of class 1"),
        (|spec| spec["ffn"]["cpu"]["per_step_s"] = json!(1e-3), "step_time.ffn.cpu: has a time"),
        (|spec| spec["ffn"]["stages"][0][0]["k"] = json!(0), "step_time.ffn.stages[0][0].k: was 0"),
        (|spec| spec["ffn"]["stages"][0] = json!([attention(4)]), "step_time.ffn.stages[0]: has attention"),
        (|spec| spec["a2f"]["ffn"]["utilization"] = json!([]), "step_time.a2f.ffn.utilization"),
        (
            |spec| spec["f2a"]["attention"]["utilization"] = json!([[9.0, 1.0], [1.0, 1.0]]),
            "was not ascending",
        ),
        (
            |spec| spec["attention"]["layout"]["pipeline_parallel_size"] = json!(1),
            "step_time.attention.stages: has 4 lists",
        ),
    ];
    for (change, expected) in cases {
        let found = refused(&change);
        assert!(found.contains(expected), "{found}, not {expected}");
    }
}

//! Layers with experts take as long as their slowest rank: the fast path's distribution against a slow twin that
//! follows every token of every layer.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::float_cmp,
    reason = "a test, which prints its statistic"
)]

use frontier_core::error::SimError;
use frontier_core::fidelity::device::Device;
use frontier_core::fidelity::expert_layers::StepOrigin;
use frontier_core::fidelity::expert_layers::placement::Placement;
use frontier_core::fidelity::expert_layers::popularity::Popularity;
use frontier_core::fidelity::expert_layers::reach::independent_chances;
use frontier_core::fidelity::expert_load::{ExpertLoads, LoadLaw};
use frontier_core::fidelity::fused_moe::{FusedMoe, MoeShape};
use frontier_core::fidelity::moe_exchange::{ExchangeShape, MoeExchange};
use frontier_core::fidelity::{BatchShape, StepTimer};
use frontier_core::plan::StepTimeSpec;
use frontier_core::plan::step_time::{ExpertPlacement, GpuSpec, LinksSpec, RoutingSpec};
use frontier_core::rng::{RngStreams, Stream};
use serde_json::{Value, json};

const EXPERTS: u32 = 64;
const TOP_K: u32 = 6;
const HIDDEN: u32 = 2048;
const WIDTH: u32 = 1408;

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

fn links() -> Value {
    json!({
        "node": {"bandwidth_bytes_per_s": 450e9, "latency_s": 2e-6, "efficiency": 0.8, "direct": true},
        "network": {"bandwidth_bytes_per_s": 50e9, "latency_s": 5e-6, "efficiency": 0.8, "direct": false},
    })
}

#[derive(Clone)]
struct Case {
    routing: Value,
    tokens: u32,
    ranks: u32,
    layers: u32,
    redundant: u32,
    moe: Vec<(&'static str, Value)>,
}

impl Case {
    fn new(routing: Value, tokens: u32, ranks: u32, layers: u32) -> Self {
        Self { routing, tokens, ranks, layers, redundant: 0, moe: Vec::new() }
    }

    fn with(mut self, field: &'static str, value: Value) -> Self {
        self.moe.push((field, value));
        self
    }

    fn nodes(&self) -> u32 {
        self.ranks.div_ceil(8)
    }

    fn timer(&self) -> StepTimer {
        self.compile().unwrap()
    }

    fn compile(&self) -> Result<StepTimer, SimError> {
        let exchange = |phase: &str, bytes: f64| {
            json!({
                "op": "moe_exchange", "name": format!("moe_{phase}"), "count": self.layers, "predictor": null,
                "phase": phase, "rows": "tokens", "hidden": HIDDEN, "top_k": TOP_K, "num_experts": EXPERTS,
                "ranks": self.ranks, "nodes": self.nodes(), "bytes_per_element": bytes,
            })
        };
        let experts = json!({
            "op": "fused_moe", "name": "experts", "count": self.layers, "predictor": null, "model_share": 1.0,
            "rows": if self.ranks > 1 { "all_tokens" } else { "tokens" }, "num_experts": EXPERTS, "top_k": TOP_K,
            "redundant_experts": self.redundant, "expert_ranks": self.ranks, "hidden": HIDDEN,
            "intermediate": WIDTH, "gated": true, "dtype": "bf16", "weight_bytes": 2.0,
            "activation_bytes": 2.0, "imbalance": 0.0,
        });
        let attention = json!({
            "op": "gemm", "name": "qkv_proj", "count": self.layers, "predictor": null, "rows": "tokens", "k": HIDDEN,
            "n": 4096, "batch": 1, "dtype": "bf16", "weight_bytes": 2.0, "activation_bytes": 2.0, "model_share": 1.0,
        });
        let (stage, exchanges) = if self.ranks > 1 {
            (json!([attention, exchange("dispatch", 1.0), experts, exchange("combine", 2.0)]), vec![1, 3])
        } else {
            (json!([attention, experts]), vec![])
        };
        let mut moe = json!({
            "seed": 11, "replication": 0, "sampling": "draw", "routing": self.routing, "drift": null,
            "placement": "linear", "eplb": null, "shared_overlap_max_tokens": 0, "dbo": null,
            "stages": [{
                "experts": if self.ranks > 1 { 2 } else { 1 }, "exchanges": exchanges, "shared": [],
                "first_layer": 0, "layers": self.layers, "nodes": self.nodes(),
            }],
        });
        for (field, value) in &self.moe {
            moe[*field] = value.clone();
        }
        let spec = json!({
            "kind": "operators", "gpu": gpu(), "links": links(),
            "cpu": {"per_step_s": 0.0, "per_seq_s": 0.0, "overlapped": true},
            "layout": {
                "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": self.ranks,
            },
            "residuals": null, "stages": [stage], "moe": moe,
        });
        StepTimer::compile(&StepTimeSpec::from_json(&spec.to_string())?, 1 << 17, 1 << 17, &[])
    }

    fn batches(&self) -> Vec<BatchShape> {
        let mut batch = BatchShape::new(&[]);
        (0..self.tokens / self.ranks).for_each(|_| batch.add(1, 100, false));
        vec![batch; self.ranks as usize]
    }

    /// Seconds of the layers with experts in steps `0 .. steps` of a replica.
    fn fast(&self, steps: u64) -> Vec<f64> {
        let (mut timer, batches) = (self.timer(), self.batches());
        (0..steps)
            .map(|step| {
                timer.set_origin(StepOrigin { replica: 0, step });
                let own = timer.breakdown(&batches, 0).unwrap()[0].seconds;
                timer.step_all(&batches).unwrap();
                // Differences of doubles, so that equal times stay equal.
                ((timer.stages_s()[0] - own) * 1e12).round() * 1e-12
            })
            .collect()
    }

    /// The same by following every token.
    fn slow(&self, steps: u32) -> Vec<f64> {
        let routing: RoutingSpec = serde_json::from_value(self.routing.clone()).unwrap();
        let place = (0, self.layers);
        let popularity = Popularity::new(&routing, None, (EXPERTS, TOP_K), place, RngStreams::new(11, 0));
        let placement = Placement::initial(ExpertPlacement::Linear, EXPERTS, self.redundant, self.ranks);
        let twin = Twin::new(self, placement);
        let mut stream = RngStreams::new(23, 0).get("twin");
        let chances: Vec<_> =
            (0..self.layers as usize).map(|layer| popularity.of(layer, 0).visited).collect();
        (0..steps)
            .map(|_| chances.iter().map(|layer| twin.layer_s(layer, &mut stream)).sum::<f64>())
            .map(|seconds| (seconds * 1e12).round() * 1e-12)
            .collect()
    }
}

/// One layer, token by token and rank by rank.
struct Twin {
    tokens: u32,
    ranks: u32,
    placement: Placement,
    experts: FusedMoe,
    exchanges: Vec<MoeExchange>,
    launch_s: f64,
}

impl Twin {
    fn new(case: &Case, placement: Placement) -> Self {
        let gpu = GpuSpec::from_json(&gpu().to_string()).unwrap();
        let links = LinksSpec::from_json(&links().to_string()).unwrap();
        let device = Device::new(&gpu);
        let shape = MoeShape {
            num_experts: EXPERTS,
            top_k: TOP_K,
            redundant_experts: case.redundant,
            expert_ranks: case.ranks,
            hidden: HIDDEN,
            intermediate: WIDTH,
            gated: true,
            weight_bytes: 2.0,
            activation_bytes: 2.0,
            law: LoadLaw::Uniform,
            model_share: 1.0,
        };
        let exchange = |bytes_per_element: f64| {
            let shape = ExchangeShape {
                hidden: HIDDEN,
                top_k: TOP_K,
                num_experts: EXPERTS,
                ranks: case.ranks,
                nodes: case.nodes(),
                bytes_per_element,
            };
            let node = links.node.filter(|_| case.nodes() < case.ranks);
            MoeExchange::new(&device, node, links.network.filter(|_| case.nodes() > 1), &shape)
        };
        let rate = device.flops_per_s(frontier_core::plan::step_time::Dtype::Bf16).unwrap();
        Self {
            tokens: case.tokens,
            ranks: case.ranks,
            placement,
            experts: FusedMoe::new(&device, rate, &shape),
            exchanges: if case.ranks > 1 { vec![exchange(1.0), exchange(2.0)] } else { vec![] },
            launch_s: gpu.kernel_launch_s,
        }
    }

    /// Routes every token to different experts with exactly these chances, and times the slowest rank.
    fn layer_s(&self, chances: &[f64], stream: &mut Stream) -> f64 {
        let slots = self.placement.slots.len();
        let (mut loads, mut reached) = (vec![0_u32; slots], vec![0_u32; self.ranks as usize]);
        let chances = independent_chances(chances, TOP_K);
        let mut chosen = Vec::new();
        let copies: Vec<Vec<usize>> = (0..EXPERTS)
            .map(|expert| (0..slots).filter(|&slot| self.placement.slots[slot] == expert).collect())
            .collect();
        let mut last_token = vec![u32::MAX; self.ranks as usize];
        for token in 0..self.tokens {
            // Independent choices until they are as many as they have to be.
            while chosen.len() != TOP_K as usize {
                chosen.clear();
                chosen.extend((0..EXPERTS as usize).filter(|&expert| stream.unit() < chances[expert]));
            }
            for expert in chosen.drain(..) {
                let places = &copies[expert];
                let slot = places[stream.below(places.len() as u64) as usize];
                let rank = slot / self.placement.per_rank;
                loads[slot] += 1;
                if last_token[rank] != token {
                    last_token[rank] = token;
                    reached[rank] += 1;
                }
            }
        }
        let ranks = f64::from(self.ranks);
        let even_reach = 1.0 - libm::pow(1.0 - 1.0 / ranks, f64::from(TOP_K));
        let mean = f64::from(reached.iter().sum::<u32>()) / ranks;
        let mut slowest = 0.0_f64;
        for (rank, held) in loads.chunks(self.placement.per_rank).enumerate() {
            let mut loads = ExpertLoads::default();
            for &load in held {
                loads.add(f64::from(load));
            }
            let received = f64::from(reached[rank]).max(mean);
            let exchange_s: f64 = self
                .exchanges
                .iter()
                .map(|exchange| exchange.network_s(received / even_reach / ranks) + self.launch_s)
                .sum();
            slowest = slowest.max(self.experts.cost_of(self.tokens, &loads).seconds() + exchange_s);
        }
        slowest
    }
}

/// Kolmogorov's statistic that equal distributions exceed in one of a thousand comparisons; there are 18.
const CRITICAL: f64 = 1.949;

/// Returns the largest distance between two empirical distribution functions (Kolmogorov and Smirnov).
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let below =
        |sample: &[f64], x: f64| sample.iter().filter(|&&y| y <= x).count() as f64 / sample.len() as f64;
    a.iter().chain(b).map(|&x| (below(a, x) - below(b, x)).abs()).fold(0.0, f64::max)
}

fn moments(sample: &[f64]) -> (f64, f64) {
    let n = sample.len() as f64;
    let mean = sample.iter().sum::<f64>() / n;
    (mean, (sample.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0)).sqrt())
}

fn uniform() -> Value {
    json!({"kind": "uniform"})
}

fn power_law() -> Value {
    json!({"kind": "power_law", "exponent": 0.8})
}

fn bimodal() -> Value {
    json!({"kind": "bimodal", "hot_experts": 6, "hot_share": 0.5})
}

#[test]
fn a_layer_takes_as_long_as_its_slowest_rank() {
    // Without chance every rank's loads are known: 2 of 8 ranks hold the 6 hot experts, 5 and 1 of them or so.
    let balanced = Case::new(json!({"kind": "balanced"}), 4096, 8, 4);
    let even = balanced.fast(1)[0];
    let mut last = even;
    for hot_share in [0.2, 0.4, 0.6, 0.8] {
        let routing = json!({"kind": "bimodal", "hot_experts": 6, "hot_share": hot_share});
        let (mean, _) = moments(&Case::new(routing, 4096, 8, 4).fast(200));
        assert!(mean > last, "{hot_share}: {mean} after {last}");
        last = mean;
    }
    assert!(last > 1.5 * even, "{last} of {even}");
    // One step after another is the same, whatever is asked in between.
    let case = Case::new(power_law(), 512, 8, 4);
    assert_eq!(case.fast(20), case.fast(30)[..20]);
}

#[test]
fn replicas_and_steps_draw_apart_and_the_mean_is_their_mean() {
    let case = Case::new(power_law(), 512, 8, 4);
    let (mut timer, batches) = (case.timer(), case.batches());
    let typical = timer.step_all(&batches).unwrap().total.0 as f64;
    let mut draw = |replica: u32, step: u64| {
        timer.set_origin(StepOrigin { replica, step });
        timer.step_all(&batches).unwrap().total.0
    };
    assert_eq!(draw(3, 7), draw(3, 7));
    assert_ne!((draw(0, 0), draw(0, 1)), (draw(1, 0), draw(1, 1)));
    let mean = (0..2000).map(|step| draw(0, step) as f64).sum::<f64>() / 2000.0;
    assert!((mean / typical - 1.0).abs() < 1e-3, "{mean} and {typical}");
    let mut exact = case.with("sampling", json!("mean")).timer();
    exact.set_origin(StepOrigin { replica: 3, step: 7 });
    assert_eq!(exact.step_all(&batches).unwrap().total.0 as f64, typical);
}

#[test]
fn balancing_by_load_shortens_the_layers_and_costs_a_pause() {
    let mut case = Case::new(power_law(), 4096, 8, 4);
    case.redundant = 8;
    let eplb = json!({"window_size": 100, "step_interval": 400, "use_async": false});
    let times = case.clone().with("eplb", eplb).fast(200);
    let (before, after) = (moments(&times[..100]).0, moments(&times[101..]).0);
    assert!(after < 0.75 * before, "{after} after {before}");
    // The step at a quarter of the interval waits for weights: an expert's take 3 * 2048 * 1408 * 2 bytes, at 360 GB/s.
    let fetched = (times[100] - after) / (3.0 * 2048.0 * 1408.0 * 2.0 / 360e9);
    assert!(fetched > 4.0 && fetched < 4.0 * 9.5, "{fetched} experts");
    let aside = json!({"window_size": 100, "step_interval": 400, "use_async": true});
    let aside = case.with("eplb", aside).fast(200);
    assert!(
        aside[100] > 0.9 * before && aside[100] < 1.1 * before && moments(&aside[104..]).0 < 0.75 * before
    );
}

#[test]
fn popularity_that_drifts_undoes_the_balance_until_the_next_one() {
    let eplb = json!({"window_size": 100, "step_interval": 400, "use_async": true});
    let mut case = Case::new(power_law(), 4096, 8, 4)
        .with("drift", json!({"step_interval": 250, "shift": 21}))
        .with("eplb", eplb);
    case.redundant = 8;
    let times = case.fast(700);
    let stretch = |from: usize, to: usize| moments(&times[from..to]).0;
    let (balanced, drifted, again) = (stretch(110, 250), stretch(250, 490), stretch(510, 700));
    assert!(drifted > 1.2 * balanced, "{drifted} after {balanced}");
    // The second window lies in the second stretch, the third stretch begins at step 500.
    assert!(again > 1.2 * balanced, "{again}");
    assert!(stretch(110, 250) < stretch(0, 100));
}

#[test]
fn two_micro_batches_hide_communication() {
    let case = Case::new(uniform(), 8192, 32, 20);
    let time = |case: &Case| case.timer().step_all(&case.batches()).unwrap().total.0 as f64;
    let dbo = json!({"decode_token_threshold": 32, "prefill_token_threshold": 512});
    let few = json!({"decode_token_threshold": 257, "prefill_token_threshold": 512});
    let (alone, both, none) =
        (time(&case), time(&case.clone().with("dbo", dbo)), time(&case.clone().with("dbo", few)));
    assert_eq!(alone, none);
    assert!(both < 0.95 * alone, "{both} of {alone}");
}

#[test]
fn verifying_drafts_is_decoding_to_two_micro_batches() {
    let dbo = json!({"decode_token_threshold": 32, "prefill_token_threshold": 512});
    let time = |case: &Case, drafts: u32| {
        let mut batch = BatchShape::new(&[]);
        (0..256 / (1 + drafts)).for_each(|_| batch.add_verifying(1 + drafts, 100, false, drafts));
        case.timer().step_all(&vec![batch; 32]).unwrap().total.0
    };
    let alone = Case::new(uniform(), 8192, 32, 20);
    let both = alone.clone().with("dbo", dbo);
    for drafts in [0, 3] {
        assert!(time(&both, drafts) < time(&alone, drafts), "256 tokens, {drafts} drafts per request");
    }
}

#[test]
fn padding_is_no_useful_work_of_experts() {
    let case = Case::new(uniform(), 64, 2, 4);
    let batch = |tokens: u32| {
        let mut batch = BatchShape::new(&[]);
        (0..tokens).for_each(|_| batch.add(1, 100, false));
        batch
    };
    let step = |pad: bool| {
        let mut timer = case.timer();
        timer.pad_to_largest(pad);
        timer.step_all(&[batch(60), batch(4)]).unwrap()
    };
    let (apart, padded) = (step(false), step(true));
    assert_eq!((apart.padded_tokens, padded.padded_tokens), (64, 120));
    assert!((padded.flops / apart.flops - 1.0).abs() < 1e-12, "{} of {}", padded.flops, apart.flops);
    assert!(padded.active_s > apart.active_s);
}

#[test]
fn counts_are_routed_as_they_were_counted() {
    let mut counts = vec![1.0; 64];
    counts[..8].fill(20.0);
    let skewed = json!({"kind": "counts", "windows": [[counts]]});
    let flat = json!({"kind": "counts", "windows": [[vec![5.0; 64]]]});
    let mean = |routing: &Value| moments(&Case::new(routing.clone(), 4096, 8, 2).fast(50)).0;
    // All eight popular experts are on the first of eight ranks.
    assert!(mean(&skewed) > 2.0 * mean(&flat));
    assert!((mean(&flat) / mean(&uniform()) - 1.0).abs() < 1e-9);
}

#[test]
fn routing_that_makes_no_sense_is_refused() {
    for (field, value, path) in [
        ("routing", json!({"kind": "bimodal", "hot_experts": 2, "hot_share": 0.9}), "hot_share"),
        ("routing", json!({"kind": "power_law", "exponent": 0.0}), "exponent"),
        ("routing", json!({"kind": "counts", "windows": [[[1.0, 2.0]]]}), "windows[0]"),
        ("drift", json!({"step_interval": 0, "shift": 1}), "drift.step_interval"),
        ("stages", json!([]), "stages"),
    ] {
        let case = Case::new(uniform(), 512, 8, 2).with(field, value);
        let text = case.compile().unwrap_err().to_string();
        assert!(text.contains(path), "{text}");
    }
}

#[test]
fn the_fast_path_has_the_distribution_of_the_twin() {
    let laws = [("uniform", uniform()), ("power_law", power_law()), ("bimodal", bimodal())];
    // Tokens, ranks, layers, steps of the twin.
    let sizes = [
        (64, 8, 1, 400),
        (96, 32, 6, 300),
        (448, 4, 6, 200),
        (1100, 8, 3, 120),
        (4096, 32, 2, 100),
        (12, 1, 3, 300),
    ];
    let mut failed = Vec::new();
    for (name, law) in &laws {
        for (tokens, ranks, layers, steps) in sizes {
            let case = Case::new(law.clone(), tokens / ranks * ranks, ranks, layers);
            let (fast, slow) = (case.fast(2000), case.slow(steps));
            let (of_fast, of_slow) = (moments(&fast), moments(&slow));
            let (n, m) = (fast.len() as f64, slow.len() as f64);
            let (found, critical) = (distance(&fast, &slow), CRITICAL * ((n + m) / (n * m)).sqrt());
            println!(
                "{name:9} {:5} tokens {ranks:3} ranks {layers:2} layers: KS {found:.3} (0.1 %: {critical:.3})  mean {:.2} / {:.2} us ({:+.2} %)  deviation {:.2} / {:.2} us",
                case.tokens,
                of_fast.0 * 1e6,
                of_slow.0 * 1e6,
                (of_fast.0 / of_slow.0 - 1.0) * 100.0,
                of_fast.1 * 1e6,
                of_slow.1 * 1e6,
            );
            if found > critical || (of_fast.0 / of_slow.0 - 1.0).abs() > 0.01 {
                failed.push((*name, tokens, ranks, layers));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

//! What one decode iteration under attention-FFN disaggregation costs; throughput is in micro-batch-layers. The
//! recurrence is paid once per decode step of a pool, the event graph only by who looks at a trace.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use frontier_core::fidelity::StepTimer;
use frontier_core::fidelity::afd::event_graph::simulate;
use frontier_core::fidelity::afd::max_plus::MaxPlus;
use frontier_core::fidelity::afd::pipeline::{Iteration, LayerClass, LayerKind, LayerRun};
use frontier_core::plan::StepTimeSpec;
use frontier_core::rng::{RngStreams, Stream};

/// Three dense layers and 58 with experts, as DeepSeek-V3; durations of about 300 us, `jitter` parts in a thousand of
/// them random.
fn iteration(micro_batches: usize, attention_ranks: usize, ffn_ranks: usize, jitter: u64) -> Iteration {
    let mut stream = RngStreams::new(1, 0).get("afd");
    let mut times = |width: usize, mean: u64| -> Vec<u64> {
        (0..width).map(|_| jittered(&mut stream, mean, jitter)).collect()
    };
    let of_attention = micro_batches * attention_ranks;
    let mut class = |kind, of_ffn| LayerClass {
        kind,
        attention_ns: times(of_attention, 300_000),
        a2f_ns: times(of_attention, 90_000),
        ffn_ns: times(of_ffn, 290_000),
        f2a_ns: times(of_attention, 180_000),
    };
    Iteration {
        micro_batches,
        attention_ranks,
        ffn_ranks,
        classes: vec![
            class(LayerKind::Dense, of_attention),
            class(LayerKind::Moe, micro_batches * ffn_ranks),
        ],
        layers: vec![LayerRun { class: 0, count: 3 }, LayerRun { class: 1, count: 58 }],
        head_ns: vec![1_000_000; attention_ranks],
        tail_ns: vec![500_000; attention_ranks],
    }
}

fn jittered(stream: &mut Stream, mean: u64, jitter: u64) -> u64 {
    mean + stream.bits() % (mean * jitter / 1_000 + 1)
}

fn afd(criterion: &mut Criterion) {
    for (name, ranks, jitter) in
        [("equal ranks", 8, 0), ("unequal ranks", 8, 200), ("1 rank, jitter", 1, 200)]
    {
        let mut group = criterion.benchmark_group(format!("AFD iteration, {name}"));
        for micro_batches in [3, 4] {
            let iteration = iteration(micro_batches, ranks, ranks, jitter);
            group.throughput(Throughput::Elements(61 * micro_batches as u64));
            let mut max_plus = MaxPlus::default();
            group.bench_function(format!("max-plus, {micro_batches} micro-batches"), |bencher| {
                bencher.iter(|| max_plus.end(black_box(&iteration)).expect("an iteration"));
            });
            group.bench_function(format!("every layer, {micro_batches} micro-batches"), |bencher| {
                bencher.iter(|| max_plus.spans(black_box(&iteration)).expect("an iteration"));
            });
        }
        let iteration = iteration(3, ranks, ranks, jitter);
        group.throughput(Throughput::Elements(61 * 3));
        group.bench_function("event graph, 3 micro-batches", |bencher| {
            bencher.iter(|| simulate(black_box(&iteration)).expect("an iteration"));
        });
        group.finish();
    }
}

/// A decode step of Qwen3-235B on 64 attention ranks of 4 H800 and 128 FFN ranks: splitting, pricing, recurrence. Paid
/// once per decode step of the pool.
fn step(criterion: &mut Criterion) {
    let spec = StepTimeSpec::from_json(include_str!("afd_step.json")).expect("a valid plan");
    let mut timer = StepTimer::compile(&spec, 8192, 1024, &[]).expect("a valid plan");
    let batches: Vec<_> = (0..timer.num_batches() as u32)
        .map(|rank| {
            let mut batch = timer.new_batch();
            (0..90 + rank % 13).for_each(|request| batch.add(1, 500 + 7 * request + rank, false));
            batch
        })
        .collect();
    criterion.bench_function("AFD step, 64 attention ranks, 3 micro-batches", |bencher| {
        bencher.iter(|| timer.step_all(black_box(&batches)).expect("a step"));
    });
}

criterion_group!(benches, afd, step);
criterion_main!(benches);

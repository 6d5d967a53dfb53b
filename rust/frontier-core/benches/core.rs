//! What the core costs. Each benchmark states what a regression of it would mean; aims are those of
//! `docs/benchmarks.md`.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use frontier_core::fidelity::{BatchShape, StepTimer};
use frontier_core::ids::RequestId;
use frontier_core::kernel::EventQueue;
use frontier_core::kvcache::BlockPool;
use frontier_core::plan::{Plan, SchedulerConfig, SchedulerSpec};
use frontier_core::predictor::{Pack, Predictor};
use frontier_core::scheduler::{
    BatchScheduler, Handover, SchedulerOutput, StepOutcome, Submission, VllmScheduler,
};
use frontier_core::simulation::Simulation;
use frontier_core::time::SimTime;
use frontier_core::workload::{OUTPUT_STREAM_BASE, Segment};

/// One pending event per replica is popped and replaced: paid twice per engine step.
fn event_queue(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("event push+pop");
    for pending in [16_u64, 128, 1024, 16_384] {
        let mut queue = EventQueue::new();
        let mut state = 1_u64;
        let mut gap = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 44
        };
        for event in 0..pending {
            queue.push(SimTime(gap()), 0, event as u32).expect("the future");
        }
        group.bench_function(format!("{pending} pending"), |bencher| {
            bencher.iter(|| {
                let (now, event) = queue.pop().expect("never empty");
                queue.push(SimTime(now.0 + gap()), 0, black_box(event)).expect("the future");
            });
        });
    }
    group.finish();
}

/// A request's blocks come and go: paid once per block of every request.
fn block_pool(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("block allocate+free");
    group.throughput(Throughput::Elements(64));
    let mut pool = BlockPool::new(10_000, true);
    let mut blocks = Vec::with_capacity(64);
    group.bench_function("64 blocks", |bencher| {
        bencher.iter(|| {
            blocks.clear();
            pool.allocate(64, &mut blocks);
            pool.release(black_box(&blocks));
        });
    });
    group.finish();
}

/// A hundred scheduler steps (schedule and update) of 256 decoding requests: paid every engine step.
fn scheduler_step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("100 scheduler steps");
    group.throughput(Throughput::Elements(100));
    for (name, asynchronous) in [("256 decodes", false), ("256 decodes, async", true)] {
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                || decoding(256, asynchronous),
                |(scheduler, batch, outcome)| {
                    for _ in 0..100 {
                        scheduler.schedule(SimTime::ZERO, batch);
                        scheduler.update(SimTime::ZERO, black_box(batch), outcome);
                    }
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

/// Returns a scheduler with `count` requests past their prompts.
fn decoding(count: u32, asynchronous: bool) -> (VllmScheduler, SchedulerOutput, StepOutcome) {
    let SchedulerSpec::VllmV1(config) = plan("linear_clock", 1).clusters.remove(0).scheduler else {
        unreachable!("the benchmark's plan is vLLM's")
    };
    let mut scheduler = VllmScheduler::new(SchedulerConfig { async_scheduling: asynchronous, ..config });
    for id in 0..count {
        scheduler.add_request(&Submission {
            id: RequestId(id),
            arrival: SimTime::ZERO,
            priority: 0,
            tie_rank: id,
            session: None,
            score: 0.0,
            prompt_tokens: 100 + id,
            max_tokens: 1000,
            segments: &[Segment { stream: u64::from(id), start: 0, len: 100 + id }],
            output_stream: OUTPUT_STREAM_BASE + u64::from(id),
            handover: Handover::Neither,
        });
    }
    let (mut batch, mut outcome) = (SchedulerOutput::default(), StepOutcome::default());
    while scheduler.gauges().num_waiting > 0 || batch.scheduled.len() < count as usize {
        scheduler.schedule(SimTime::ZERO, &mut batch);
        scheduler.update(SimTime::ZERO, &batch, &mut outcome);
    }
    (scheduler, batch, outcome)
}

/// The shape of the main job (8 replicas of Llama-3.1-8B on H100 under the lengths and the rate of the Azure
/// conversation trace, drawn from fitted laws so that the benchmark needs no file). Reported per engine step.
fn main_job(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("main job, per step");
    group.sample_size(10);
    let predictors = predictors();
    for name in ["linear_clock", "roofline", "learned"] {
        let plan = plan(name, 5_000);
        let steps = run(&plan, &predictors);
        group.throughput(Throughput::Elements(steps));
        group.bench_function(name, |bencher| bencher.iter(|| run(black_box(&plan), &predictors)));
    }
    group.finish();
}

/// One step of Llama-3.1-8B on H100: batches that repeat, and decodes whose contexts grow by a token a step.
fn step_timer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step timer");
    let predictors = predictors();
    for name in ["roofline", "learned"] {
        let plan = plan(name, 1);
        let compile = || {
            StepTimer::compile(&plan.clusters[0].step_time, 8192, 1024, &predictors).expect("a valid plan")
        };
        group.bench_function(format!("{name}, compile"), |bencher| bencher.iter(compile));
        let mut timer = compile();
        let decodes = |context: u32| {
            let mut batch = BatchShape::new(&[]);
            (0..64).for_each(|request| batch.add(1, context + 97 * request, false));
            batch
        };
        let batch = decodes(1000);
        group.bench_function(format!("{name}, the same batch"), |bencher| {
            bencher.iter(|| timer.step(black_box(&batch)).expect("a batch that fits"));
        });
        let growing: Vec<_> = (1000..3000).map(decodes).collect();
        let mut next = 0;
        group.bench_function(format!("{name}, contexts grow"), |bencher| {
            bencher.iter(|| {
                next = (next + 1) % growing.len();
                timer.step(black_box(&growing[next])).expect("a batch that fits")
            });
        });
        group.bench_function(format!("{name}, first answer"), |bencher| {
            bencher.iter_batched_ref(
                compile,
                |timer| timer.step(black_box(&batch)).expect("a batch that fits"),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

/// Returns the predictors that the learned step times of `main_job.json` refer to.
fn predictors() -> Vec<Arc<Predictor>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../python/frontier/profiles/h100.safetensors");
    let bytes = std::fs::read(path).expect("the pack of the H100");
    let pack = Pack::parse(&bytes).expect("a good pack");
    let numbers = document()["predictors"].take();
    let load = |number: &serde_json::Value| {
        let number = number.as_u64().expect("a number") as usize;
        Arc::new(pack.load(number).expect("a good predictor"))
    };
    numbers.as_array().expect("a list").iter().map(load).collect()
}

fn run(plan: &Plan, predictors: &[Arc<Predictor>]) -> u64 {
    let mut simulation = Simulation::new(plan, None, predictors).expect("a valid plan");
    simulation.run().expect("a run to the end");
    simulation.finish().expect("books in order").1.steps()
}

fn document() -> serde_json::Value {
    serde_json::from_str(include_str!("main_job.json")).expect("valid JSON")
}

/// Returns the plan of the main job with one of its step-time models.
fn plan(step_time: &str, num_requests: u32) -> Plan {
    let mut document = document();
    let step_times = document["step_times"].take();
    let fields = document.as_object_mut().expect("an object");
    fields.remove("step_times");
    fields.remove("predictors");
    document["clusters"][0]["step_time"] = step_times[step_time].clone();
    document["workload"]["num_requests"] = num_requests.into();
    Plan::from_json(&document.to_string()).expect("a valid plan")
}

criterion_group!(benches, event_queue, block_pool, scheduler_step, step_timer, main_job);
criterion_main!(benches);

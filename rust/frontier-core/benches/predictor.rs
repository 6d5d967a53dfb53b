//! Evaluation of one predictor for one row: by node walk, compiled, and through the memo.
//!
//! Full trees with random splits, four free features with 64 thresholds each: no tree is as full in practice.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use frontier_core::predictor::ensemble::{EnsembleParts, MAX_THRESHOLDS};
use frontier_core::predictor::{CellMemo, Ensemble};
use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64;

const FEATURES: usize = 4;
const THRESHOLDS: usize = 64;
const ROWS: usize = 4096;

fn ensemble(trees: usize, depth: usize) -> Ensemble {
    const { assert!(THRESHOLDS <= MAX_THRESHOLDS) };
    let mut rng = Pcg64::seed_from_u64(7);
    let mut parts = EnsembleParts {
        thresholds: (0..FEATURES).flat_map(|_| (0..THRESHOLDS).map(|value| value as f32)).collect(),
        threshold_offsets: (0..=FEATURES).map(|feature| (feature * THRESHOLDS) as u32).collect(),
        nodes: Vec::new(),
        tree_starts: vec![0],
        leaves: Vec::new(),
        base_score: 0.5,
    };
    for _ in 0..trees {
        let mut open = vec![0];
        while let Some(at) = open.pop() {
            let draw = rng.next_u64();
            if at == depth {
                parts.nodes.push(255);
                parts.leaves.push((draw % 1000) as f32 * 1e-5);
            } else {
                parts.nodes.extend([(draw % FEATURES as u64) as u8, (draw >> 8) as u8 % THRESHOLDS as u8]);
                open.extend([at + 1, at + 1]);
            }
        }
        parts.tree_starts.push(parts.nodes.len() as u32);
    }
    Ensemble::new(&parts, FEATURES).expect("a valid ensemble")
}

fn rows() -> Vec<[f32; FEATURES]> {
    let mut rng = Pcg64::seed_from_u64(11);
    (0..ROWS).map(|_| [(); FEATURES].map(|()| (rng.next_u64() % 6400) as f32 / 100.0)).collect()
}

fn predictor(criterion: &mut Criterion) {
    let rows = rows();
    for (trees, depth) in [(25, 8), (16, 10), (25, 10), (200, 6)] {
        let ensemble = ensemble(trees, depth);
        let compiled = ensemble.specialise(&[None; FEATURES]);
        let mut group = criterion.benchmark_group(format!("predictor/{trees}x{depth}"));
        let mut next = rows.iter().cycle();
        group.bench_function("node walk", |bencher| {
            bencher.iter(|| ensemble.margin(black_box(next.next().expect("endless"))));
        });
        group.bench_function("compiled", |bencher| {
            bencher.iter(|| compiled.margin(black_box(next.next().expect("endless"))));
        });
        let mut memo = CellMemo::new(&compiled);
        group.bench_function("memo, same cell", |bencher| {
            bencher.iter(|| memo.ratio(&compiled, black_box(&rows[0])));
        });
        let mut near = rows[..256].iter().cycle();
        group.bench_function("memo, another of 256 cells", |bencher| {
            bencher.iter(|| memo.ratio(&compiled, black_box(near.next().expect("endless"))));
        });
        group.bench_function("specialise", |bencher| {
            bencher.iter_batched(
                || [None, Some(3.5), None, None],
                |fixed| ensemble.specialise(&fixed),
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, predictor);
criterion_main!(benches);

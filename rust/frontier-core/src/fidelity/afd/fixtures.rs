//! Iterations for tests.

use super::closed_form::Uniform;
use super::pipeline::{Iteration, LayerClass, LayerKind, LayerRun};
use crate::rng::Stream;

/// Returns the iteration of one class in which everything takes the same times everywhere, without head and tail.
pub(super) fn uniform(times: Uniform, kind: LayerKind, sizes: [usize; 3], layers: u32) -> Iteration {
    let [micro_batches, attention_ranks, ffn_ranks] = sizes;
    let of_attention = micro_batches * attention_ranks;
    let of_ffn = if kind == LayerKind::Dense { of_attention } else { micro_batches * ffn_ranks };
    let class = LayerClass {
        kind,
        attention_ns: vec![times.attention_ns; of_attention],
        a2f_ns: vec![times.transfer_ns; of_attention],
        ffn_ns: vec![times.ffn_ns; of_ffn],
        f2a_ns: vec![times.transfer_ns; of_attention],
    };
    Iteration {
        micro_batches,
        attention_ranks,
        ffn_ranks,
        classes: vec![class],
        layers: vec![LayerRun { class: 0, count: layers }],
        head_ns: vec![0; attention_ranks],
        tail_ns: vec![0; attention_ranks],
    }
}

/// Returns a number below `bound`.
pub(super) fn below(stream: &mut Stream, bound: u64) -> u64 {
    stream.bits() % bound
}

/// Returns an iteration of random sizes, classes and durations: jittered around a mean of their own, equal over ranks,
/// wild, zero here and there, or those of prompts that some ranks have, whose later parts take longer.
pub(super) fn random(stream: &mut Stream) -> Iteration {
    let micro_batches = 1 + below(stream, 6) as usize;
    let attention_ranks = 1 + below(stream, 5) as usize;
    let ffn_ranks = 1 + below(stream, 5) as usize;
    let classes: Vec<LayerClass> = (0..=below(stream, 3))
        .map(|_| {
            let kind = if below(stream, 2) == 0 { LayerKind::Dense } else { LayerKind::Moe };
            let width = if kind == LayerKind::Dense { attention_ranks } else { ffn_ranks };
            LayerClass {
                kind,
                attention_ns: times(stream, micro_batches, attention_ranks),
                a2f_ns: times(stream, micro_batches, attention_ranks),
                ffn_ns: times(stream, micro_batches, width),
                f2a_ns: times(stream, micro_batches, attention_ranks),
            }
        })
        .collect();
    let layers = (0..below(stream, 5))
        .map(|_| LayerRun {
            class: below(stream, classes.len() as u64) as usize,
            count: 1 + below(stream, 40) as u32,
        })
        .collect();
    Iteration {
        micro_batches,
        attention_ranks,
        ffn_ranks,
        classes,
        layers,
        head_ns: times(stream, 1, attention_ranks),
        tail_ns: times(stream, 1, attention_ranks),
    }
}

fn times(stream: &mut Stream, rows: usize, width: usize) -> Vec<u64> {
    let (law, mean) = (below(stream, 5), 1 + below(stream, 1_000));
    let with_prompts: Vec<u64> = (0..width).map(|_| below(stream, 2)).collect();
    let mut found = Vec::with_capacity(rows * width);
    for row in 0..rows as u64 {
        let of_row = mean + below(stream, 100);
        for has_prompt in &with_prompts {
            found.push(match law {
                0 => mean + below(stream, mean),
                1 => of_row,
                2 => below(stream, 2) * below(stream, 2_000),
                4 => mean / 10 + has_prompt * mean * (1 + row),
                _ => below(stream, 4) / 3 * of_row,
            });
        }
    }
    found
}

//! The ranks whose times decide the end: those that no other one outlasts in everything.
//!
//! Let rank `b` take no less than rank `a` in every activity, head and tail included. Sums and maxima are monotone, so
//! whatever `a` does ends no later than the same of `b`; barriers wait for `b` anyway, and `a` can be left out. Among
//! FFN ranks the same holds for their times in layers with experts.
//!
//! Dense layers tie attention ranks to FFN ranks. As long as each has one of its own, and FFN ranks do not differ in
//! layers with experts, an FFN rank is left out with its attention rank: then it, too, ends no later than another.

use crate::fidelity::afd::pipeline::{Iteration, LayerClass, LayerKind};

/// Finds the ranks that decide, and makes the iteration of these alone. Its memory is reused.
#[derive(Clone, Debug, Default)]
pub(super) struct Reduction {
    order: Vec<(u64, usize)>,
    /// Attention ranks that decide, by falling sum of their times.
    pub(super) attention_ranks: Vec<usize>,
    /// FFN ranks that decide.
    pub(super) ffn_ranks: Vec<usize>,
    /// The iteration of these.
    pub(super) iteration: Option<Box<Iteration>>,
}

impl Reduction {
    /// Finds the ranks of `iteration` that decide; returns whether some do not.
    pub(super) fn find(&mut self, iteration: &Iteration) -> bool {
        let (ranks, ffn_ranks) = (iteration.attention_ranks, iteration.ffn_ranks);
        let has_dense = iteration.classes.iter().any(|class| class.kind == LayerKind::Dense);
        let experts = || iteration.classes.iter().filter(|class| class.kind == LayerKind::Moe);
        let rows = || experts().flat_map(|class| class.ffn_ns.chunks_exact(ffn_ranks));
        let alike = || rows().all(|row| row.iter().all(|&time| time == row[0]));
        if has_dense && (ranks > ffn_ranks || !alike()) {
            return false;
        }
        let of_class = |class: &LayerClass, rank: usize, other: usize| {
            let dense = if class.kind == LayerKind::Dense { &class.ffn_ns[..] } else { &[] };
            [&class.attention_ns[..], &class.a2f_ns, &class.f2a_ns, dense]
                .into_iter()
                .all(|times| is_dominated(times, ranks, rank, other))
        };
        let is_out = |rank: usize, other: usize| {
            iteration.classes.iter().all(|class| of_class(class, rank, other))
                && is_dominated(&iteration.head_ns, ranks, rank, other)
                && is_dominated(&iteration.tail_ns, ranks, rank, other)
        };
        self.order.clear();
        self.order.extend((0..ranks).map(|rank| {
            let column = |times: &[u64]| times[rank..].iter().step_by(ranks).sum::<u64>();
            let classes = iteration.classes.iter();
            let sum: u64 = classes.map(|class| column(&class.attention_ns) + column(&class.a2f_ns)).sum();
            (sum, rank)
        }));
        keep(&mut self.order, &mut self.attention_ranks, is_out);
        if has_dense {
            self.ffn_ranks.clone_from(&self.attention_ranks);
        } else {
            self.order.clear();
            self.order.extend((0..ffn_ranks).map(|rank| (rows().map(|row| row[rank]).sum::<u64>(), rank)));
            keep(&mut self.order, &mut self.ffn_ranks, |rank, other| {
                rows().all(|row| row[rank] <= row[other])
            });
        }
        self.attention_ranks.len() < ranks || self.ffn_ranks.len() < ffn_ranks
    }

    /// Makes the iteration of the ranks that decide.
    pub(super) fn reduce(&mut self, iteration: &Iteration) {
        let small = self.iteration.get_or_insert_with(|| Box::new(iteration.clone()));
        let Iteration { micro_batches, attention_ranks, ffn_ranks, classes, layers, head_ns, tail_ns } =
            &mut **small;
        (*micro_batches, *attention_ranks, *ffn_ranks) =
            (iteration.micro_batches, self.attention_ranks.len(), self.ffn_ranks.len());
        layers.clone_from(&iteration.layers);
        let of_attention = |to: &mut Vec<u64>, from: &[u64]| {
            gather(to, from, iteration.attention_ranks, &self.attention_ranks);
        };
        of_attention(head_ns, &iteration.head_ns);
        of_attention(tail_ns, &iteration.tail_ns);
        classes.truncate(iteration.classes.len());
        classes.extend(iteration.classes[classes.len()..].iter().cloned());
        for (to, from) in classes.iter_mut().zip(&iteration.classes) {
            to.kind = from.kind;
            of_attention(&mut to.attention_ns, &from.attention_ns);
            of_attention(&mut to.a2f_ns, &from.a2f_ns);
            of_attention(&mut to.f2a_ns, &from.f2a_ns);
            match from.kind {
                LayerKind::Dense => of_attention(&mut to.ffn_ns, &from.ffn_ns),
                LayerKind::Moe => gather(&mut to.ffn_ns, &from.ffn_ns, iteration.ffn_ranks, &self.ffn_ranks),
            }
        }
    }
}

/// Keeps what nothing kept before dominates, in falling order of sums: what comes later cannot dominate, but for equals.
fn keep(order: &mut [(u64, usize)], kept: &mut Vec<usize>, is_out: impl Fn(usize, usize) -> bool) {
    order.sort_unstable_by_key(|&(sum, rank)| (std::cmp::Reverse(sum), rank));
    kept.clear();
    for &(_, rank) in order.iter() {
        if !kept.iter().any(|&other| is_out(rank, other)) {
            kept.push(rank);
        }
    }
}

/// Tells whether `rank` takes no longer than `other` in every row.
fn is_dominated(times: &[u64], width: usize, rank: usize, other: usize) -> bool {
    times.chunks_exact(width).all(|row| row[rank] <= row[other])
}

fn gather(to: &mut Vec<u64>, from: &[u64], width: usize, ranks: &[usize]) {
    to.clear();
    to.extend(from.chunks_exact(width).flat_map(|row| ranks.iter().map(|&rank| row[rank])));
}

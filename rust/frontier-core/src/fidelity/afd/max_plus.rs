//! The iteration as a recurrence of sums and maxima (max-plus algebra: Baccelli, Cohen, Olsder and Quadrat,
//! "Synchronization and Linearity", 1992): the same nanoseconds as [`super::event_graph`], in one loop.
//!
//! Two things make it short, both exact:
//! - *A rank that is never slower than another in anything changes nothing*, since sums and maxima are monotone: it is
//!   left out ([`reduction`]).
//! - *A layer shifts with its start.* If the state after a layer of a run is that of some layers before plus one and the
//!   same time everywhere, it will be so again after as many layers more: the rest of the run is a product.
//!   (Attention ranks of dense layers that share no FFN rank are shifted apart.) States are compared with one that is
//!   renewed after 1, 2, 4, 8, ... layers, so that rhythms of several layers are found too (Brent, "An improved Monte
//!   Carlo factorization algorithm", BIT 20, 1980).

mod reduction;

use self::reduction::Reduction;
use super::pipeline::{Activity, Iteration, LayerClass, LayerKind, LayerRun, Span};
use crate::error::SimError;
use crate::time::SimTime;

/// Evaluates iterations. Its memory is reused: no call allocates once the largest iteration was seen.
#[derive(Clone, Debug, Default)]
pub struct MaxPlus {
    state: Vec<u64>,
    snapshot: Vec<u64>,
    reduction: Reduction,
}

/// What is told of every activity.
trait Observer {
    /// Whether layers may be skipped.
    const SKIPS: bool;
    fn span(&mut self, activity: Activity, place: (u32, usize), rank: usize, start: u64, end: u64);
}

struct Nobody;

impl Observer for Nobody {
    const SKIPS: bool = true;
    #[inline]
    fn span(&mut self, _: Activity, _: (u32, usize), _: usize, _: u64, _: u64) {}
}

impl Observer for Vec<Span> {
    const SKIPS: bool = false;
    fn span(
        &mut self,
        activity: Activity,
        (layer, micro_batch): (u32, usize),
        rank: usize,
        start: u64,
        end: u64,
    ) {
        let (start, end) = (SimTime(start), SimTime(end));
        self.push(Span { layer, micro_batch: micro_batch as u32, activity, rank: rank as u32, start, end });
    }
}

/// Sizes that slices are cut by.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    micro_batches: usize,
    attention_ranks: usize,
    ffn_ranks: usize,
}

/// When everything is free or there, in ns: one vector, in this order.
struct State<'a> {
    attention: &'a mut [u64],
    out: &'a mut [u64],
    ffn: &'a mut [u64],
    back: &'a mut [u64],
    /// When a micro-batch may begin with the next layer, `[micro_batch][attention rank]`.
    ready: &'a mut [u64],
}

impl Sizes {
    const fn len(self) -> usize {
        2 * self.attention_ranks + 2 * self.ffn_ranks + self.micro_batches * self.attention_ranks
    }

    fn split(self, state: &mut [u64]) -> State<'_> {
        let (attention, rest) = state.split_at_mut(self.attention_ranks);
        let (out, rest) = rest.split_at_mut(self.attention_ranks);
        let (ffn, rest) = rest.split_at_mut(self.ffn_ranks);
        let (back, ready) = rest.split_at_mut(self.ffn_ranks);
        State { attention, out, ffn, back, ready }
    }

    /// Returns, for index `at` of the state, the first index of the part of the state that is shifted with it.
    fn leader(self, at: usize, kind: LayerKind) -> usize {
        let (ranks, ffn_ranks) = (self.attention_ranks, self.ffn_ranks);
        if kind == LayerKind::Moe {
            return 0;
        }
        let group = match at {
            at if at < 2 * ranks => at % ranks % ffn_ranks,
            at if at < 2 * ranks + 2 * ffn_ranks => (at - 2 * ranks) % ffn_ranks,
            at => (at - 2 * ranks - 2 * ffn_ranks) % ranks % ffn_ranks,
        };
        // An FFN rank that serves nobody stays as it is, by itself.
        if group < ranks { group } else { at }
    }
}

impl MaxPlus {
    /// Returns the end of `iteration`.
    ///
    /// # Errors
    /// As [`Iteration::check`].
    pub fn end(&mut self, iteration: &Iteration) -> Result<SimTime, SimError> {
        iteration.check()?;
        Ok(self.end_unchecked(iteration))
    }

    /// Returns the end of an iteration that passes [`Iteration::check`]; any other gives a wrong time, or panics.
    pub fn end_unchecked(&mut self, iteration: &Iteration) -> SimTime {
        if iteration.attention_ranks == 1 && iteration.ffn_ranks == 1 {
            return self.evaluate_one(iteration, 0, 0);
        }
        if !self.reduction.find(iteration) {
            return self.evaluate(iteration, &mut Nobody);
        }
        if let ([attention_rank], [ffn_rank]) =
            (&self.reduction.attention_ranks[..], &self.reduction.ffn_ranks[..])
        {
            return self.evaluate_one(iteration, *attention_rank, *ffn_rank);
        }
        self.reduction.reduce(iteration);
        let Some(small) = self.reduction.iteration.take() else {
            return self.evaluate(iteration, &mut Nobody);
        };
        let end = self.evaluate(&small, &mut Nobody);
        self.reduction.iteration = Some(small);
        end
    }

    /// Returns all activities of `iteration`, in order of (layer, micro-batch), and its end.
    ///
    /// # Errors
    /// As [`Iteration::check`].
    pub fn spans(&mut self, iteration: &Iteration) -> Result<(Vec<Span>, SimTime), SimError> {
        iteration.check()?;
        let mut spans = Vec::new();
        let end = self.evaluate(iteration, &mut spans);
        Ok((spans, end))
    }

    fn evaluate<O: Observer>(&mut self, iteration: &Iteration, observer: &mut O) -> SimTime {
        let sizes = Sizes {
            micro_batches: iteration.micro_batches,
            attention_ranks: iteration.attention_ranks,
            ffn_ranks: iteration.ffn_ranks,
        };
        self.begin(sizes);
        self.state[..sizes.attention_ranks].copy_from_slice(&iteration.head_ns);
        for (rank, &end) in iteration.head_ns.iter().enumerate() {
            observer.span(Activity::Head, (0, 0), rank, 0, end);
            for micro_batch in 0..sizes.micro_batches {
                self.state[2 * sizes.attention_ranks
                    + 2 * sizes.ffn_ranks
                    + micro_batch * sizes.attention_ranks
                    + rank] = end;
            }
        }
        let mut first = 0;
        for &run in &iteration.layers {
            let class = &iteration.classes[run.class];
            self.run::<O>(sizes, class.kind, run, |state, layer| {
                let mut state = sizes.split(state);
                match class.kind {
                    LayerKind::Dense => dense_layer(&mut state, sizes, class, first + layer, observer),
                    LayerKind::Moe => moe_layer(&mut state, sizes, class, first + layer, observer),
                }
            });
            first += run.count;
        }
        let state = sizes.split(&mut self.state);
        let mut end = 0;
        for (rank, &tail) in iteration.tail_ns.iter().enumerate() {
            let returned = state.ready[rank..].iter().step_by(sizes.attention_ranks).copied().max();
            let start = state.attention[rank].max(returned.unwrap_or(0));
            observer.span(Activity::Tail, (0, 0), rank, start, start + tail);
            end = end.max(start + tail);
        }
        SimTime(end)
    }

    /// Evaluates the iteration of one attention rank and one FFN rank: here a layer with experts is a dense one.
    fn evaluate_one(&mut self, iteration: &Iteration, attention_rank: usize, ffn_rank: usize) -> SimTime {
        let sizes = Sizes { micro_batches: iteration.micro_batches, attention_ranks: 1, ffn_ranks: 1 };
        self.begin(sizes);
        let head = iteration.head_ns[attention_rank];
        self.state.fill(head);
        for &run in &iteration.layers {
            let class = &iteration.classes[run.class];
            let (first, width) = (attention_rank, iteration.attention_ranks);
            let (first_ffn, ffn_width) = match class.kind {
                LayerKind::Dense => (first, width),
                LayerKind::Moe => (ffn_rank, iteration.ffn_ranks),
            };
            let attention = class.attention_ns[first..].iter().step_by(width);
            let a2f = class.a2f_ns[first..].iter().step_by(width);
            let ffn = class.ffn_ns[first_ffn..].iter().step_by(ffn_width);
            let f2a = class.f2a_ns[first..].iter().step_by(width);
            let times = attention.zip(a2f).zip(ffn.zip(f2a));
            self.run::<Nobody>(sizes, LayerKind::Moe, run, |state, _| {
                let ([rank, out, server, back], ready) =
                    state.split_first_chunk_mut::<4>().expect("Invariant: four resources come first");
                for (ready, ((attention, a2f), (ffn, f2a))) in ready.iter_mut().zip(times.clone()) {
                    *rank = (*rank).max(*ready) + attention;
                    *out = (*out).max(*rank) + a2f;
                    *server = (*server).max(*out) + ffn;
                    *back = (*back).max(*server) + f2a;
                    *ready = *back;
                }
            });
        }
        // All is in order, so the last micro-batch returns last.
        SimTime(self.state.iter().copied().max().unwrap_or(0) + iteration.tail_ns[attention_rank])
    }

    fn begin(&mut self, sizes: Sizes) {
        self.state.clear();
        self.state.resize(sizes.len(), 0);
        self.snapshot.clear();
        self.snapshot.resize(sizes.len(), 0);
    }

    /// Runs the layers of one run, the last of them by a product once they have a rhythm.
    #[inline]
    fn run<O: Observer>(
        &mut self,
        sizes: Sizes,
        kind: LayerKind,
        run: LayerRun,
        mut layer: impl FnMut(&mut [u64], u32),
    ) {
        let mut skips = O::SKIPS && run.count > 2;
        if skips {
            self.snapshot.copy_from_slice(&self.state);
        }
        let (mut done, mut since, mut renew_at) = (0, 0, 1);
        while done < run.count {
            layer(&mut self.state, done);
            done += 1;
            since += 1;
            if !skips {
                continue;
            }
            if self.is_shifted(sizes, kind) {
                let rhythms = (run.count - done) / since;
                self.shift(sizes, kind, u64::from(rhythms));
                done += rhythms * since;
                skips = false;
            } else if since == renew_at {
                self.snapshot.copy_from_slice(&self.state);
                (since, renew_at) = (0, 2 * renew_at);
            }
        }
    }

    /// Tells whether every part of the state is that of the snapshot, shifted.
    #[inline]
    fn is_shifted(&self, sizes: Sizes, kind: LayerKind) -> bool {
        let by = |at: usize| self.state[at] - self.snapshot[at];
        match kind {
            LayerKind::Moe => {
                let first = by(0);
                self.state.iter().zip(&self.snapshot).all(|(now, before)| now - before == first)
            }
            LayerKind::Dense => (0..sizes.len()).all(|at| by(at) == by(sizes.leader(at, kind))),
        }
    }

    /// Shifts the state as many times as it is shifted from the snapshot.
    fn shift(&mut self, sizes: Sizes, kind: LayerKind, times: u64) {
        // Leaders come first, so their shifts must not be read once they have moved.
        for at in (0..sizes.len()).rev() {
            let leader = sizes.leader(at, kind);
            self.state[at] += times * (self.state[leader] - self.snapshot[leader]);
        }
    }
}

fn moe_layer<O: Observer>(
    state: &mut State<'_>,
    sizes: Sizes,
    class: &LayerClass,
    layer: u32,
    observer: &mut O,
) {
    let ranks = sizes.attention_ranks;
    let mut back_free = state.back.iter().copied().max().unwrap_or(0);
    for micro_batch in 0..sizes.micro_batches {
        let place = (layer, micro_batch);
        let of_ranks = micro_batch * ranks..(micro_batch + 1) * ranks;
        let ready = &mut state.ready[of_ranks.clone()];
        let arrived = attend(state.attention, state.out, ready, class, place, of_ranks.start, observer);
        let mut computed = 0;
        let of_ffn = &class.ffn_ns[micro_batch * sizes.ffn_ranks..][..sizes.ffn_ranks];
        for (rank, (free, time)) in state.ffn.iter_mut().zip(of_ffn).enumerate() {
            let start = (*free).max(arrived);
            *free = start + time;
            computed = computed.max(*free);
            observer.span(Activity::Ffn, place, rank, start, *free);
        }
        let start = back_free.max(computed);
        for (rank, (ready, time)) in ready.iter_mut().zip(&class.f2a_ns[of_ranks]).enumerate() {
            *ready = start + time;
            back_free = back_free.max(*ready);
            observer.span(Activity::FfnToAttention, place, rank, start, *ready);
        }
    }
    state.back.fill(back_free);
}

fn dense_layer<O: Observer>(
    state: &mut State<'_>,
    sizes: Sizes,
    class: &LayerClass,
    layer: u32,
    observer: &mut O,
) {
    let ranks = sizes.attention_ranks;
    for micro_batch in 0..sizes.micro_batches {
        let place = (layer, micro_batch);
        let of_ranks = micro_batch * ranks..(micro_batch + 1) * ranks;
        let ready = &mut state.ready[of_ranks.clone()];
        attend(state.attention, state.out, ready, class, place, of_ranks.start, observer);
        let times = class.ffn_ns[of_ranks.clone()].iter().zip(&class.f2a_ns[of_ranks]);
        let mut server = 0;
        for (rank, (ready, (ffn, f2a))) in ready.iter_mut().zip(times).enumerate() {
            let start = state.ffn[server].max(state.out[rank]);
            let computed = start + ffn;
            state.ffn[server] = computed;
            observer.span(Activity::Ffn, place, rank, start, computed);
            let start = state.back[server].max(computed);
            *ready = start + f2a;
            state.back[server] = *ready;
            observer.span(Activity::FfnToAttention, place, rank, start, *ready);
            server = if server + 1 == sizes.ffn_ranks { 0 } else { server + 1 };
        }
    }
}

/// Computes attention and sends its results; returns when the last has arrived.
#[inline]
fn attend<O: Observer>(
    attention: &mut [u64],
    out: &mut [u64],
    ready: &[u64],
    class: &LayerClass,
    place: (u32, usize),
    first: usize,
    observer: &mut O,
) -> u64 {
    let mut arrived = 0;
    let times = class.attention_ns[first..].iter().zip(&class.a2f_ns[first..]);
    let states = attention.iter_mut().zip(out).zip(ready);
    for (rank, (((free, link), ready), (time, a2f))) in states.zip(times).enumerate() {
        let start = (*free).max(*ready);
        *free = start + time;
        observer.span(Activity::Attention, place, rank, start, *free);
        let start = (*link).max(*free);
        *link = start + a2f;
        observer.span(Activity::AttentionToFfn, place, rank, start, *link);
        arrived = arrived.max(*link);
    }
    arrived
}

#[cfg(test)]
mod tests;

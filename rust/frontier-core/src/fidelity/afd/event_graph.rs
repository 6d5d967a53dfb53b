//! The iteration as events: every activity of every layer, micro-batch and rank is one on a
//! [`crate::kernel::EventQueue`]; ranks and links are first in, first out. Slow, explicit, and a trace to look at.

use std::collections::VecDeque;

use super::pipeline::{Activity, Iteration, LayerClass, LayerKind, Span};
use crate::error::SimError;
use crate::kernel::EventQueue;
use crate::time::{SimDuration, SimTime};

/// What an iteration comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// All activities, in the order in which they end.
    pub spans: Vec<Span>,
    /// End of the last.
    pub end: SimTime,
}

/// A thing to do: one activity of one micro-batch in one layer. An F2A transfer of a layer with experts is one task
/// for all attention ranks (`rank` 0), with an end of its own for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Task {
    activity: Activity,
    layer: u32,
    micro_batch: usize,
    rank: usize,
}

/// An activity ends at attention rank (or FFN rank, see [`Span::rank`]) `rank`.
#[derive(Clone, Copy, Debug)]
struct Ended {
    task: Task,
    rank: usize,
    start: SimTime,
}

/// A rank or a link: what it has been asked for and not begun, in static order, and whether it is at work.
#[derive(Clone, Debug, Default)]
struct Resource {
    waiting: VecDeque<Task>,
    busy: bool,
}

struct Graph<'a> {
    iteration: &'a Iteration,
    /// Class of each layer.
    class_of: Vec<usize>,
    queue: EventQueue<Ended>,
    /// Attention ranks, their links, FFN ranks, their links.
    resources: Vec<Resource>,
    /// What a task waits for before it may begin, by task.
    missing: Vec<u32>,
    /// Ends that a task in progress has still to come to, by task.
    ends_left: Vec<u32>,
    trace: Trace,
}

/// Returns all activities of `iteration` as spans, and its end.
///
/// # Errors
/// As [`Iteration::check`].
pub fn simulate(iteration: &Iteration) -> Result<Trace, SimError> {
    iteration.check()?;
    let mut graph = Graph::new(iteration);
    graph.run()?;
    Ok(graph.trace)
}

impl<'a> Graph<'a> {
    fn new(iteration: &'a Iteration) -> Self {
        let class_of: Vec<usize> =
            iteration.layers.iter().flat_map(|run| (0..run.count).map(|_| run.class)).collect();
        let (ranks, ffn_ranks) = (iteration.attention_ranks, iteration.ffn_ranks);
        let tasks = class_of.len() * iteration.micro_batches * (3 * ranks + ranks.max(ffn_ranks)) + 2 * ranks;
        let mut graph = Self {
            iteration,
            class_of,
            queue: EventQueue::new(),
            resources: vec![Resource::default(); 2 * ranks + 2 * ffn_ranks],
            missing: vec![0; tasks],
            ends_left: vec![0; tasks],
            trace: Trace::default(),
        };
        graph.enter_all();
        graph
    }

    /// Queues every task at the resources that it needs, in static order.
    fn enter_all(&mut self) {
        for rank in 0..self.iteration.attention_ranks {
            self.enter(once(Activity::Head, rank), 0);
        }
        for layer in 0..self.class_of.len() {
            for micro_batch in 0..self.iteration.micro_batches {
                self.enter_round(layer as u32, micro_batch);
            }
        }
        for rank in 0..self.iteration.attention_ranks {
            let micro_batches = if self.class_of.is_empty() { 1 } else { self.iteration.micro_batches };
            self.enter(once(Activity::Tail, rank), micro_batches as u32);
        }
    }

    fn enter_round(&mut self, layer: u32, micro_batch: usize) {
        let (ranks, ffn_ranks) = (self.iteration.attention_ranks, self.iteration.ffn_ranks);
        let task = |activity, rank| Task { activity, layer, micro_batch, rank };
        for rank in 0..ranks {
            self.enter(task(Activity::Attention, rank), 1);
            self.enter(task(Activity::AttentionToFfn, rank), 1);
        }
        match self.class(layer).kind {
            LayerKind::Dense => {
                for rank in 0..ranks {
                    self.enter(task(Activity::Ffn, rank), 1);
                    self.enter(task(Activity::FfnToAttention, rank), 1);
                }
            }
            LayerKind::Moe => {
                for rank in 0..ffn_ranks {
                    self.enter(task(Activity::Ffn, rank), ranks as u32);
                }
                self.enter(task(Activity::FfnToAttention, 0), ffn_ranks as u32);
            }
        }
    }

    fn enter(&mut self, task: Task, missing: u32) {
        let index = self.index(task);
        self.missing[index] = missing;
        for resource in self.needed(task) {
            self.resources[resource].waiting.push_back(task);
        }
    }

    fn class(&self, layer: u32) -> &'a LayerClass {
        &self.iteration.classes[self.class_of[layer as usize]]
    }

    fn index(&self, task: Task) -> usize {
        let (ranks, ffn_ranks) = (self.iteration.attention_ranks, self.iteration.ffn_ranks);
        let per_round = 3 * ranks + ranks.max(ffn_ranks);
        let rounds = self.class_of.len() * self.iteration.micro_batches;
        let round = task.layer as usize * self.iteration.micro_batches + task.micro_batch;
        match task.activity {
            Activity::Attention => round * per_round + task.rank,
            Activity::AttentionToFfn => round * per_round + ranks + task.rank,
            Activity::FfnToAttention => round * per_round + 2 * ranks + task.rank,
            Activity::Ffn => round * per_round + 3 * ranks + task.rank,
            Activity::Head => rounds * per_round + task.rank,
            Activity::Tail => rounds * per_round + ranks + task.rank,
        }
    }

    /// Returns the resources that a task occupies.
    fn needed(&self, task: Task) -> std::ops::Range<usize> {
        let (ranks, ffn_ranks) = (self.iteration.attention_ranks, self.iteration.ffn_ranks);
        let one = |index: usize| index..index + 1;
        let is_dense = |layer| self.class(layer).kind == LayerKind::Dense;
        match task.activity {
            Activity::Head | Activity::Attention | Activity::Tail => one(task.rank),
            Activity::AttentionToFfn => one(ranks + task.rank),
            Activity::Ffn => one(2 * ranks + task.rank % ffn_ranks),
            Activity::FfnToAttention if is_dense(task.layer) => {
                one(2 * ranks + ffn_ranks + task.rank % ffn_ranks)
            }
            Activity::FfnToAttention => 2 * ranks + ffn_ranks..2 * ranks + 2 * ffn_ranks,
        }
    }

    /// Returns the duration of a task at `rank`, in ns.
    fn duration_ns(&self, task: Task, rank: usize) -> u64 {
        let ranks = self.iteration.attention_ranks;
        let at = task.micro_batch * ranks + rank;
        match task.activity {
            Activity::Head => self.iteration.head_ns[rank],
            Activity::Tail => self.iteration.tail_ns[rank],
            Activity::Attention => self.class(task.layer).attention_ns[at],
            Activity::AttentionToFfn => self.class(task.layer).a2f_ns[at],
            Activity::FfnToAttention => self.class(task.layer).f2a_ns[at],
            Activity::Ffn => {
                let class = self.class(task.layer);
                let width = match class.kind {
                    LayerKind::Dense => ranks,
                    LayerKind::Moe => self.iteration.ffn_ranks,
                };
                class.ffn_ns[task.micro_batch * width + rank]
            }
        }
    }

    fn run(&mut self) -> Result<(), SimError> {
        for resource in 0..self.resources.len() {
            self.begin_next(resource)?;
        }
        while let Some((now, ended)) = self.queue.pop() {
            self.end(now, ended)?;
        }
        if self.resources.iter().any(|resource| !resource.waiting.is_empty()) {
            return Err(SimError::Invariant { what: "activities of an iteration wait in a circle".into() });
        }
        self.trace.end = self.queue.now();
        Ok(())
    }

    /// Begins the first task in the order of `resource` if everything that it needs is there.
    fn begin_next(&mut self, resource: usize) -> Result<(), SimError> {
        let Some(&task) = self.resources[resource].waiting.front() else { return Ok(()) };
        let needed = self.needed(task);
        let is_first = |resource: &Resource| !resource.busy && resource.waiting.front() == Some(&task);
        let index = self.index(task);
        if self.missing[index] > 0 || !self.resources[needed.clone()].iter().all(is_first) {
            return Ok(());
        }
        for resource in &mut self.resources[needed] {
            resource.waiting.pop_front();
            resource.busy = true;
        }
        let for_all =
            task.activity == Activity::FfnToAttention && self.class(task.layer).kind == LayerKind::Moe;
        let ranks = if for_all { 0..self.iteration.attention_ranks } else { task.rank..task.rank + 1 };
        self.ends_left[index] = ranks.len() as u32;
        let start = self.queue.now();
        for rank in ranks {
            let end = start.after(SimDuration(self.duration_ns(task, rank)))?;
            self.queue.push(end, 0, Ended { task, rank, start })?;
        }
        Ok(())
    }

    fn end(&mut self, now: SimTime, ended: Ended) -> Result<(), SimError> {
        let Ended { task, rank, start } = ended;
        let Task { activity, layer, micro_batch, .. } = task;
        let span =
            Span { layer, micro_batch: micro_batch as u32, activity, rank: rank as u32, start, end: now };
        self.trace.spans.push(span);
        let index = self.index(task);
        self.ends_left[index] -= 1;
        if self.ends_left[index] == 0 {
            let needed = self.needed(task);
            self.resources[needed.clone()].iter_mut().for_each(|resource| resource.busy = false);
            needed.into_iter().try_for_each(|resource| self.begin_next(resource))?;
        }
        let next = |activity, rank| Task { activity, rank, ..task };
        match activity {
            Activity::Head if self.class_of.is_empty() => self.deliver(once(Activity::Tail, rank)),
            Activity::Head => (0..self.iteration.micro_batches).try_for_each(|micro_batch| {
                self.deliver(Task { activity: Activity::Attention, layer: 0, micro_batch, rank })
            }),
            Activity::Attention => self.deliver(next(Activity::AttentionToFfn, rank)),
            Activity::AttentionToFfn => match self.class(layer).kind {
                LayerKind::Dense => self.deliver(next(Activity::Ffn, rank)),
                LayerKind::Moe => (0..self.iteration.ffn_ranks)
                    .try_for_each(|ffn_rank| self.deliver(next(Activity::Ffn, ffn_rank))),
            },
            Activity::Ffn => match self.class(layer).kind {
                LayerKind::Dense => self.deliver(next(Activity::FfnToAttention, rank)),
                LayerKind::Moe => self.deliver(next(Activity::FfnToAttention, 0)),
            },
            Activity::FfnToAttention if layer as usize + 1 < self.class_of.len() => {
                self.deliver(Task { activity: Activity::Attention, layer: layer + 1, micro_batch, rank })
            }
            Activity::FfnToAttention => self.deliver(once(Activity::Tail, rank)),
            Activity::Tail => Ok(()),
        }
    }

    /// One of the things that `task` waits for is there.
    fn deliver(&mut self, task: Task) -> Result<(), SimError> {
        let index = self.index(task);
        self.missing[index] -= 1;
        let first = self.needed(task).start;
        self.begin_next(first)
    }
}

fn once(activity: Activity, rank: usize) -> Task {
    Task { activity, layer: 0, micro_batch: 0, rank }
}

//! The stages of layers that a batch passes one after the other, each in the order in which batches were formed.

use std::collections::VecDeque;

use crate::error::SimError;
use crate::fidelity::StepTime;
use crate::time::{SimDuration, SimTime};

/// When a batch passes the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Passage {
    /// When its first stage starts.
    pub(super) start: SimTime,
    /// When its last stage ends.
    pub(super) end: SimTime,
    /// The part of the passage in which no earlier batch was under way. Over all batches, these parts tile the time in
    /// which any batch is.
    pub(super) advance: SimDuration,
}

/// Which stage is free when, and how long stages were busy.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    free: Vec<SimTime>,
    /// ns of work handed to all stages together.
    handed_ns: u128,
    /// Work of several stages that may lie ahead, in the order in which it was handed out.
    ahead: VecDeque<(SimTime, SimTime)>,
}

impl Pipeline {
    /// Returns an idle pipeline of `num_stages` stages, at least 1.
    pub(super) fn new(num_stages: usize) -> Self {
        Self { free: vec![SimTime::ZERO; num_stages], handed_ns: 0, ahead: VecDeque::new() }
    }

    pub(super) fn num_stages(&self) -> usize {
        self.free.len()
    }

    /// Returns when the last stage has done all that was handed to it.
    #[inline]
    pub(super) fn free_at(&self) -> SimTime {
        self.free[self.free.len() - 1]
    }

    /// Sends a batch through. `stages_s`: time of each stage, launches included; the host's rest comes before the first. Without it (a linear
    /// clock), each stage takes an equal part, rounded up.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`], [`SimError::InvalidDuration`].
    #[inline]
    pub(super) fn pass(
        &mut self,
        now: SimTime,
        time: &StepTime,
        stages_s: &[f64],
    ) -> Result<Passage, SimError> {
        if let [free] = &mut self.free[..] {
            let start = now.max(*free);
            let end = start.after(time.total)?;
            *free = end;
            self.handed_ns += u128::from(time.total.0);
            return Ok(Passage { start, end, advance: time.total });
        }
        self.pass_stages(now, time, stages_s)
    }

    fn pass_stages(&mut self, now: SimTime, time: &StepTime, stages_s: &[f64]) -> Result<Passage, SimError> {
        let part = SimDuration(time.total.0.div_ceil(self.free.len() as u64));
        // What no stage takes is the host's, before the first.
        let host = time.total - SimDuration::from_seconds(stages_s.iter().sum())?.min(time.total);
        let last_end = self.free[self.free.len() - 1];
        while self.ahead.front().is_some_and(|&(_, end)| end <= now) {
            self.ahead.pop_front();
        }
        let (mut first_start, mut at) = (None, now);
        for (stage, free) in self.free.iter_mut().enumerate() {
            let mut duration = match stages_s.get(stage) {
                Some(&seconds) => SimDuration::from_seconds(seconds)?,
                None => part,
            };
            if stage == 0 && !stages_s.is_empty() {
                duration.0 = duration.0.saturating_add(host.0);
            }
            let start = at.max(*free);
            first_start.get_or_insert(start);
            at = start.after(duration)?;
            *free = at;
            self.handed_ns += u128::from(duration.0);
            self.ahead.push_back((start, at));
        }
        let start = first_start.unwrap_or(now);
        Ok(Passage { start, end: at, advance: at.since(start.max(last_end)) })
    }

    /// Drops all that is under way `now`.
    pub(super) fn stop(&mut self, now: SimTime) {
        let busy = u128::from(self.busy_ns(now)) * self.free.len() as u128;
        self.handed_ns = busy;
        self.ahead.clear();
        for free in &mut self.free {
            *free = (*free).min(now);
        }
    }

    /// Sends an empty batch through, which keeps its place in the order.
    pub(super) fn pass_empty(&mut self, now: SimTime) -> Passage {
        let (start, mut at) = (now.max(self.free[0]), now);
        for free in &mut self.free {
            at = at.max(*free);
            *free = at;
        }
        Passage { start, end: at, advance: SimDuration::ZERO }
    }

    /// Returns the busy time before `now`, averaged over stages.
    pub(super) fn busy_ns(&self, now: SimTime) -> u64 {
        let num_stages = self.free.len() as u128;
        let ahead: u128 = match &self.free[..] {
            // Steps of one stage are back to back, so what lies ahead of `now` is one stretch.
            [free] => u128::from(free.since(now).0),
            _ => self.ahead.iter().map(|&(start, end)| u128::from(end.since(start.max(now)).0)).sum(),
        };
        ((self.handed_ns - ahead) / num_stages) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(total: u64, cpu_exposed: u64) -> StepTime {
        let (total, cpu_exposed) = (SimDuration(total), SimDuration(cpu_exposed));
        StepTime { total, cpu_exposed, ..StepTime::default() }
    }

    #[test]
    fn equal_parts_are_rounded_up_and_batches_follow_one_another() {
        let mut pipeline = Pipeline::new(2);
        let first = pipeline.pass(SimTime(100), &time(11, 0), &[]).unwrap();
        assert_eq!((first.start, first.end, first.advance), (SimTime(100), SimTime(112), SimDuration(12)));
        // The second starts when the first stage is free: one more part later it is done.
        let second = pipeline.pass(SimTime(100), &time(11, 0), &[]).unwrap();
        assert_eq!((second.start, second.end, second.advance), (SimTime(106), SimTime(118), SimDuration(6)));
    }

    #[test]
    fn the_slowest_stage_sets_the_pace_and_the_others_wait() {
        let mut pipeline = Pipeline::new(3);
        let stages_s = [1e-9, 5e-9, 2e-9];
        let ends: Vec<u64> =
            (0..4).map(|_| pipeline.pass(SimTime(0), &time(10, 2), &stages_s).unwrap().end.0).collect();
        // The host's 2 ns come before the first stage: 3 + 5 + 2, then one batch per 5 ns.
        assert_eq!(ends, [10, 15, 20, 25]);
        assert_eq!(pipeline.busy_ns(SimTime(25)), 4 * 10 / 3);
        // At 8 ns: the first stage was busy all the time, the second for 5 ns, the third not yet.
        assert_eq!(pipeline.busy_ns(SimTime(8)), (8 + 5) / 3);
    }

    #[test]
    fn an_empty_batch_waits_for_those_before_it() {
        let mut pipeline = Pipeline::new(2);
        pipeline.pass(SimTime(0), &time(10, 0), &[]).unwrap();
        assert_eq!(
            pipeline.pass_empty(SimTime(1)),
            Passage { start: SimTime(5), end: SimTime(10), advance: SimDuration::ZERO }
        );
        assert_eq!(pipeline.pass_empty(SimTime(20)).end, SimTime(20));
    }
}

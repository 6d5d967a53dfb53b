//! Where SGLang 0.5.3 itself fails, by name.

use super::SglangScheduler;
use crate::ids::Slot;

/// A way in which the real engine fails with these requests and settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineFailure {
    /// Its name.
    pub name: &'static str,
    /// Who is concerned, and what would mend it.
    pub detail: String,
    /// The engine stops with an exception here; otherwise it goes on in a state that its makers did not mean.
    pub stops: bool,
}

impl EngineFailure {
    /// The engine stops, for one of the reasons that its assertions give.
    pub(super) fn stop(name: &'static str, detail: String) -> Self {
        Self { name, detail, stops: true }
    }

    /// KV slots run out in the middle of a step.
    pub(super) fn out_of_memory(wanted: i64, free: i64) -> Self {
        Self::stop(
            "out of memory",
            format!(
                "a step needs {wanted} KV slots, {free} are free; enlarge the pool, lower max_running_requests or raise \
                 schedule_conservativeness"
            ),
        )
    }

    /// A request is released that holds no node of the radix tree.
    pub(super) fn double_free() -> Self {
        Self::stop("double free", "memory of a request was released twice".into())
    }
}

impl SglangScheduler {
    /// Remembers a failure for [`BatchScheduler::take_failure`]; one that stops the engine comes first.
    ///
    /// [`BatchScheduler::take_failure`]: crate::scheduler::BatchScheduler::take_failure
    pub(super) fn note(&mut self, failure: EngineFailure) {
        self.damaged = true;
        if failure.stops || self.failure.is_none() {
            self.failure = Some(failure);
        }
    }

    /// Notes that the engine preempted requests whose last token it had just made.
    pub(super) fn note_preempted_finished(&mut self, slot: Slot) {
        let detail = format!(
            "request {} had finished when it was preempted: its memory is released twice, it is computed again and \
             yields one token more than asked; later a step runs out of memory or the idle check finds a leak; do not \
             use enable_priority_scheduling with this version, or raise \
             priority_scheduling_preemption_threshold",
            self.id(slot).0
        );
        self.note(EngineFailure { name: "preempting the finished", detail, stops: false });
    }

    /// Notes that the engine dropped requests which it had preempted for one that it then refused.
    pub(super) fn note_lost(&mut self, victims: &[Slot]) {
        let named: Vec<String> = victims.iter().take(8).map(|&slot| self.id(slot).0.to_string()).collect();
        let detail = format!(
            "{} requests ({}) were preempted for one that then did not fit, and are dropped: they never finish; \
             raise priority_scheduling_preemption_threshold or enlarge the KV pool",
            victims.len(),
            named.join(", ")
        );
        self.note(EngineFailure { name: "lost requests", detail, stops: false });
    }

    /// Notes that a request which lost its memory can never be admitted again.
    pub(super) fn note_hang(&mut self, slot: Slot) {
        let request = &self.requests[slot.index()];
        let pool = i64::from(self.config.max_total_tokens);
        if !self.radix() || request.num_tokens() + request.reserve() < pool {
            return;
        }
        let detail = format!(
            "request {} was retracted with {} tokens, and is charged its whole output of {} tokens anew: that never \
             fits into the pool of {pool}, so it waits forever, and all behind it; enlarge the pool, shorten the \
             output or raise schedule_conservativeness",
            request.id.0,
            request.num_tokens(),
            request.reserve(),
        );
        let damaged = self.damaged;
        self.note(EngineFailure { name: "hang", detail, stops: false });
        // Its books are in order.
        self.damaged = damaged;
    }
}

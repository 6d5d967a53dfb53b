//! The virtual token counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithms 2
//! and 4): the client that got least is served next.
//!
//! A client's counter grows by the weighted prompt when a request of it is admitted and by the weighted tokens that
//! it generates. A client that comes back is lifted to the least of those that wait (or to the one that left the
//! queue last), so that idling saves nothing up. Requests are never displaced for fairness's sake.

use std::collections::BTreeMap;

use crate::plan::policy::VtcSpec;
use crate::scheduler::live::LiveRequest;

#[derive(Clone, Copy, Debug, Default)]
struct Client {
    counter: f64,
    waiting: u32,
}

/// Counters of all clients.
#[derive(Clone, Debug)]
pub(in crate::scheduler) struct Vtc {
    spec: VtcSpec,
    clients: BTreeMap<u32, Client>,
    /// The client whose last waiting request left the queue last.
    last_to_leave: Option<u32>,
}

impl Vtc {
    pub(super) fn new(spec: &VtcSpec) -> Self {
        Self { spec: *spec, clients: BTreeMap::new(), last_to_leave: None }
    }

    pub(super) fn of(&self, client: u32) -> f64 {
        self.clients.get(&client).map_or(0.0, |known| known.counter)
    }

    pub(super) fn arrives(&mut self, client: u32) {
        if self.clients.get(&client).is_none_or(|known| known.waiting == 0) {
            let waiting = self.clients.values().filter(|known| known.waiting > 0).map(|known| known.counter);
            let floor = waiting.reduce(f64::min).or_else(|| self.last_to_leave.map(|last| self.of(last)));
            let known = self.clients.entry(client).or_default();
            known.counter = known.counter.max(floor.unwrap_or(0.0));
        }
        self.returns(client);
    }

    pub(super) fn returns(&mut self, client: u32) {
        self.clients.entry(client).or_default().waiting += 1;
    }

    /// A waiting request of the client left the queue.
    pub(super) fn leaves(&mut self, client: u32) {
        let known = self.clients.entry(client).or_default();
        known.waiting -= 1;
        if known.waiting == 0 {
            self.last_to_leave = Some(client);
        }
    }

    pub(super) fn admitted(&mut self, request: &LiveRequest) {
        self.leaves(request.client);
        // What a preemption dropped is the engine's loss, not the client's.
        if request.num_preemptions == 0 {
            let known = self.clients.entry(request.client).or_default();
            known.counter += self.spec.input_weight * f64::from(request.prompt_tokens);
        }
    }

    pub(super) fn accepted(&mut self, request: &LiveRequest, num_tokens: u32) {
        let cost = self.spec.output_weight * f64::from(num_tokens);
        self.clients.entry(request.client).or_default().counter += cost;
    }

    pub(super) fn served(&mut self, request: &LiveRequest, computed_before: u32, num_tokens: u32) {
        // A step that reaches the end of what is known generates a token.
        if computed_before + num_tokens >= request.num_tokens {
            self.clients.entry(request.client).or_default().counter += self.spec.output_weight;
        }
    }
}

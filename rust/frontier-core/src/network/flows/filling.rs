//! Progressive filling of the links and flows that changes can reach.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use super::state::{Flow, Link, NO_CEILING};
use crate::time::SimTime;

/// Memory of [`Filling::fill`], kept between calls.
#[derive(Clone, Debug)]
pub(super) struct Filling {
    /// Number of the present call; what bears it was reached (or is done) in this call.
    round: u64,
    links: Vec<LinkState>,
    flow_reached: Vec<u64>,
    flow_done: Vec<u64>,
    reached_links: Vec<u32>,
    reached_flows: Vec<u32>,
    levels: Vec<Level>,
    changed: Vec<u32>,
}

/// A link while it is filled.
#[derive(Clone, Copy, Debug, Default)]
struct LinkState {
    reached: u64,
    /// Capacity that flows which are done leave.
    room: u64,
    /// Weights of the flows which are not.
    weight: u64,
}

/// The level, `room / weight`, at which a link is full or a flow reaches its ceiling.
#[derive(Clone, Copy, Debug)]
struct Level {
    /// `room / weight`, off by 4e-16 of it at most.
    about: f64,
    room: u64,
    weight: u64,
    who: Who,
}

impl Level {
    #[inline]
    fn new(room: u64, weight: u64, who: Who) -> Self {
        Self { about: room as f64 / weight as f64, room, weight, who }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Link(u32),
    Flow(u32),
}

impl Ord for Level {
    /// The greatest is the one that is reached first: the lowest level, exactly compared; of equal ones the lowest link.
    fn cmp(&self, other: &Self) -> Ordering {
        let apart = other.about - self.about;
        if apart.abs() > 1e-15 * (other.about + self.about) {
            return if apart > 0.0 { Ordering::Greater } else { Ordering::Less };
        }
        let (mine, others) = (product(self.room, other.weight), product(other.room, self.weight));
        others.cmp(&mine).then(other.who.cmp(&self.who))
    }
}

impl PartialOrd for Level {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Level {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Level {}

impl Filling {
    pub(super) fn new(links: usize) -> Self {
        Self {
            round: 0,
            links: vec![LinkState::default(); links],
            flow_reached: Vec::new(),
            flow_done: Vec::new(),
            reached_links: Vec::new(),
            reached_flows: Vec::new(),
            levels: Vec::new(),
            changed: Vec::new(),
        }
    }

    /// Returns slots of the flows whose rate, and so end, the last call changed.
    pub(super) fn changed(&self) -> &[u32] {
        &self.changed
    }

    /// Gives all flows that `dirty` links can reach their rates from `now` on, and clears `dirty`.
    pub(super) fn fill(
        &mut self,
        now: SimTime,
        links: &mut [Link],
        flows: &mut [Flow],
        dirty: &mut Vec<u32>,
    ) {
        self.round += 1;
        self.flow_reached.resize(flows.len(), 0);
        self.flow_done.resize(flows.len(), 0);
        self.reach(links, flows, dirty);
        self.changed.clear();
        self.levels.clear();
        for &link in &self.reached_links {
            let state = self.links[link as usize];
            self.levels.push(Level::new(state.room, state.weight, Who::Link(link)));
        }
        for &slot in &self.reached_flows {
            let flow = &flows[slot as usize];
            if flow.ceiling != NO_CEILING {
                self.levels.push(Level::new(flow.ceiling, flow.growth, Who::Flow(slot)));
            }
        }
        let mut left = self.reached_flows.len();
        let mut levels = BinaryHeap::from(std::mem::take(&mut self.levels));
        while left > 0 {
            let mut lowest = levels.peek_mut().expect("Invariant: every flow is on a link that will be full");
            match lowest.who {
                Who::Flow(slot) => {
                    let ceiling = lowest.room;
                    PeekMut::pop(lowest);
                    left -= self.give(now, flows, slot, ceiling);
                }
                Who::Link(number) => {
                    let LinkState { room, weight, .. } = self.links[number as usize];
                    if weight == 0 {
                        PeekMut::pop(lowest);
                    } else if (room, weight) == (lowest.room, lowest.weight) {
                        PeekMut::pop(lowest);
                        left -= self.give_out(now, links, flows, number);
                    } else {
                        // Since then others of its flows got less than its level: it has risen.
                        *lowest = Level::new(room, weight, lowest.who);
                    }
                }
            }
        }
        self.levels = levels.into_vec();
    }

    /// Finds all links and flows that share, over any number of others, a link with `dirty` ones.
    fn reach(&mut self, links: &mut [Link], flows: &[Flow], dirty: &mut Vec<u32>) {
        let round = self.round;
        self.reached_links.clear();
        self.reached_flows.clear();
        for link in dirty.drain(..) {
            links[link as usize].dirty = false;
            self.reach_link(links, link);
        }
        let mut next = 0;
        while let Some(&link) = self.reached_links.get(next) {
            next += 1;
            for &(slot, _) in &links[link as usize].flows {
                if std::mem::replace(&mut self.flow_reached[slot as usize], round) == round {
                    continue;
                }
                self.reached_flows.push(slot);
                for hop in &flows[slot as usize].hops {
                    self.reach_link(links, hop.link);
                }
            }
        }
    }

    #[inline]
    fn reach_link(&mut self, links: &[Link], number: u32) {
        let state = &mut self.links[number as usize];
        let link = &links[number as usize];
        if state.reached != self.round && !link.flows.is_empty() {
            *state = LinkState { reached: self.round, room: link.capacity, weight: link.weight };
            self.reached_links.push(number);
        }
    }

    /// Gives a full link's flows their rates: what is left of it by weight. Returns how many there were.
    fn give_out(&mut self, now: SimTime, links: &[Link], flows: &mut [Flow], number: u32) -> usize {
        let LinkState { room, weight, .. } = self.links[number as usize];
        let (mut given, mut growth, mut rate) = (0, 0, 0);
        for &(slot, _) in &links[number as usize].flows {
            let own = flows[slot as usize].growth;
            if own != growth {
                // Equal flows are the rule.
                growth = own;
                rate = (product(own, room) / u128::from(weight)) as u64;
            }
            given += self.give(now, flows, slot, rate);
        }
        given
    }

    /// Gives a flow its rate unless it has one already, and takes it from its links. Returns how many got one.
    #[inline]
    fn give(&mut self, now: SimTime, flows: &mut [Flow], slot: u32, rate: u64) -> usize {
        if std::mem::replace(&mut self.flow_done[slot as usize], self.round) == self.round {
            return 0;
        }
        let flow = &mut flows[slot as usize];
        for hop in &flow.hops {
            let state = &mut self.links[hop.link as usize];
            state.room -= u64::from(hop.parts) * rate;
            state.weight -= hop.weight;
        }
        if rate != flow.rate {
            flow.bring_forward(now);
            flow.rate = rate;
            self.changed.push(slot);
        }
        1
    }
}

#[inline]
fn product(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}

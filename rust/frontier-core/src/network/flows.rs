//! Flows that share links max-min fairly, as fluids: between two changes every flow moves at a constant rate.
//!
//! Rates are those of progressive filling (Bertsekas and Gallager, "Data Networks", 6.5.2): all flows grow together,
//! each by its number of streams, until a link is full or a flow reaches its own ceiling; those stay, the others
//! grow on.
//!
//! All arithmetic is in integers: rates in 2^-14 bytes per second of one part of a flow, what is left in that unit times
//! nanoseconds. So sums do not depend on their order, no link ever carries more than it can, nothing is lost when a
//! flow is brought forward in two steps instead of one, and recomputing only the links and flows that a change can
//! reach gives the same nanoseconds as recomputing all (a twin in the tests does). Rates are rounded down to their unit and ends
//! up to the nanosecond, so no flow ends before its bytes allow; what is lost is under one unit per part and rate,
//! and under one nanosecond per end.
//!
//! Changes of one instant are settled together, when time moves on or the next end is asked for.

use crate::error::SimError;
use crate::network::bundle::Bundle;
use crate::network::topology::LinkId;
use crate::time::SimTime;

mod ends;
mod filling;
mod state;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod twin;

use ends::{Ends, NEVER};
use filling::Filling;
pub(super) use state::rate_units_of;
use state::{Flow, GROWTH_BITS, Hop, Link, NO_CEILING, RATE_UNITS, UNITS_PER_BYTE, rate_units};

/// A flow, in order of start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId {
    serial: u64,
    slot: u32,
}

/// A flow that has moved all its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// When.
    pub end: SimTime,
    /// Which.
    pub flow: FlowId,
    /// What the caller called it.
    pub tag: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// What went over the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Flows started.
    pub started: u64,
    /// Flows that ended.
    pub ended: u64,
    /// Flows that were cancelled.
    pub cancelled: u64,
    /// Bytes of flows that were started.
    pub bytes_started: u128,
    /// Bytes that flows moved which ended.
    pub bytes_ended: u128,
    /// Bytes that cancelled flows moved before.
    pub bytes_cancelled: u128,
    /// Bytes that cancelled flows did not move.
    pub bytes_dropped: u128,
}

/// Links and the flows on them.
#[derive(Clone, Debug)]
pub struct FlowNetwork {
    now: SimTime,
    links: Vec<Link>,
    flows: Vec<Flow>,
    free: Vec<u32>,
    ends: Ends,
    /// Links whose flows or capacity changed since rates were computed.
    dirty: Vec<u32>,
    filling: Filling,
    totals: Totals,
}

impl FlowNetwork {
    /// Returns idle links of `bytes_per_s` each, as [`super::Topology::bytes_per_s`] gives them.
    ///
    /// # Errors
    /// [`SimError::Invariant`] if a bandwidth is not in (0, 562 TB/s].
    pub fn new(bytes_per_s: &[f64]) -> Result<Self, SimError> {
        let link = |&bandwidth: &f64| {
            let capacity = rate_units(bandwidth)?;
            Ok(Link { full_capacity: capacity, capacity, ..Link::default() })
        };
        let links = bytes_per_s.iter().map(link).collect::<Result<Vec<_>, SimError>>()?;
        Ok(Self {
            now: SimTime::ZERO,
            filling: Filling::new(links.len()),
            links,
            flows: Vec::new(),
            free: Vec::new(),
            ends: Ends::default(),
            dirty: Vec::new(),
            totals: Totals::default(),
        })
    }

    /// Starts to move `bytes` over the links of `bundle`, at no more than `ceiling_bytes_per_s`. Without links and ceiling,
    /// or without bytes, the flow ends at once.
    ///
    /// # Errors
    /// [`SimError::Invariant`] if `now` is before the last change or after an end that was not taken, the ceiling is no
    /// positive rate, or the bundle is of another network; [`SimError::TooLong`] if a link has too many flows.
    pub fn start(
        &mut self,
        now: SimTime,
        bundle: &Bundle,
        bytes: u64,
        ceiling_bytes_per_s: Option<f64>,
        tag: u64,
    ) -> Result<FlowId, SimError> {
        self.move_to(now)?;
        let ceiling = match ceiling_bytes_per_s {
            None => NO_CEILING,
            Some(rate) => (rate_units(rate)? / u64::from(bundle.whole())).max(1),
        };
        let growth = (u64::from(bundle.streams()) << GROWTH_BITS).div_ceil(u64::from(bundle.whole()));
        for &(link, parts) in bundle.parts() {
            let weight = self.links.get(link.index()).map(|link| link.weight);
            let Some(weight) = weight else { return Err(broken("every link of a bundle exists")) };
            if u64::from(parts).checked_mul(growth).and_then(|more| weight.checked_add(more)).is_none() {
                let what = format!("over 2^32 streams at once on one link at {} ns", now.0);
                return Err(SimError::TooLong { what });
            }
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.flows.push(Flow::default());
            self.flows.len() as u32 - 1
        });
        let serial = self.totals.started;
        self.totals.started += 1;
        self.totals.bytes_started += u128::from(bytes);
        let flow = &mut self.flows[slot as usize];
        flow.serial = serial;
        (flow.tag, flow.bytes, flow.whole, flow.growth, flow.ceiling) =
            (tag, bytes, bundle.whole(), growth, ceiling);
        (flow.rate, flow.left, flow.since, flow.live) = (0, u128::from(bytes) * UNITS_PER_BYTE, now, true);
        if bytes > 0 {
            for &(link, parts) in bundle.parts() {
                let (link, at) = (link.0, self.links[link.index()].flows.len() as u32);
                let weight = u64::from(parts) * growth;
                self.links[link as usize].flows.push((slot, flow.hops.len() as u32));
                self.links[link as usize].weight += weight;
                flow.hops.push(Hop { link, at, parts, weight });
                mark(&mut self.links, &mut self.dirty, link);
            }
        }
        let end = if !flow.hops.is_empty() {
            NEVER // until rates are settled
        } else if ceiling == NO_CEILING {
            now.0
        } else {
            flow.rate = ceiling;
            flow.end()
        };
        self.ends.set(slot, end, serial);
        Ok(FlowId { serial, slot })
    }

    /// Takes a flow off its links, and returns how many bytes it has moved, rounded down; `None` if it has ended or was
    /// cancelled before.
    ///
    /// # Errors
    /// [`SimError::Invariant`] if `now` is before the last change or after an end that was not taken.
    pub fn cancel(&mut self, now: SimTime, id: FlowId) -> Result<Option<u64>, SimError> {
        self.move_to(now)?;
        if self.get(id).is_none() {
            return Ok(None);
        }
        let moved = self.flows[id.slot as usize].moved(now);
        let flow = self.retire(id.slot, moved);
        self.totals.cancelled += 1;
        self.totals.bytes_cancelled += u128::from(moved);
        self.totals.bytes_dropped += u128::from(flow.bytes - moved);
        Ok(Some(moved))
    }

    /// Returns how many bytes a flow has moved by `now`, rounded down; `None` if it has ended or was cancelled.
    ///
    /// # Errors
    /// [`SimError::Invariant`] if `now` is before the last change or after an end that was not taken.
    pub fn moved(&mut self, now: SimTime, id: FlowId) -> Result<Option<u64>, SimError> {
        self.move_to(now)?;
        Ok(self.get(id).is_some().then(|| self.flows[id.slot as usize].moved(now)))
    }

    /// Gives a link `factor` times its full bandwidth: 1 mends it, 0 lets its flows stall.
    ///
    /// # Errors
    /// [`SimError::Invariant`] if `now` is before the last change or after an end that was not taken, `factor` is not in
    /// [0, 1], or there is no such link.
    pub fn set_capacity(&mut self, now: SimTime, link: LinkId, factor: f64) -> Result<(), SimError> {
        self.move_to(now)?;
        if !(0.0..=1.0).contains(&factor) {
            return Err(broken("the factor of a link's bandwidth lies between 0 and 1"));
        }
        let Some(found) = self.links.get_mut(link.index()) else {
            return Err(broken("a link whose capacity changes exists"));
        };
        found.capacity = (found.full_capacity as f64 * factor) as u64;
        mark(&mut self.links, &mut self.dirty, link.0);
        Ok(())
    }

    /// Returns when the next flow ends; `None` if there is none, or all stall (or end past simulated time).
    pub fn next_end(&mut self) -> Option<SimTime> {
        self.settle();
        self.ends.first().map(|(end, _)| SimTime(end))
    }

    /// Moves to `now`, appends all flows that have ended by then to `ended_flows`, in order of end and start, and frees their
    /// links at their ends.
    ///
    /// # Errors
    /// [`SimError::Invariant`] if `now` is before the last change.
    pub fn advance(&mut self, now: SimTime, ended_flows: &mut Vec<Ended>) -> Result<(), SimError> {
        if now < self.now {
            return Err(broken("a network moves forward in time"));
        }
        self.settle();
        while let Some((end, _)) = self.ends.first().filter(|&(end, _)| end <= now.0) {
            self.now = SimTime(end);
            // Flows that end in one instant need one settling: what changes in it lets no other end in it.
            while let Some((_, slot)) = self.ends.first().filter(|&(other, _)| other == end) {
                let ended = self.retire(slot, self.flows[slot as usize].bytes);
                self.totals.ended += 1;
                self.totals.bytes_ended += u128::from(ended.bytes);
                ended_flows.push(ended);
            }
            if end < now.0 {
                self.settle();
            }
        }
        self.now = now;
        Ok(())
    }

    /// Returns the rate of a flow in bytes per second, if it is under way; infinite without links and ceiling.
    pub fn rate(&mut self, id: FlowId) -> Option<f64> {
        self.settle();
        let flow = self.get(id)?;
        if flow.hops.is_empty() && flow.ceiling == NO_CEILING {
            return Some(f64::INFINITY);
        }
        Some(flow.rate as f64 * f64::from(flow.whole) / RATE_UNITS)
    }

    /// Returns how many flows are under way.
    pub fn live(&self) -> usize {
        self.flows.len() - self.free.len()
    }

    /// Returns the bytes that went over a link with flows which are gone (each rounded down), copies counted.
    ///
    /// # Panics
    /// If there is no such link.
    pub fn link_bytes(&self, link: LinkId) -> u128 {
        self.links[link.index()].bytes
    }

    /// Returns what went over the network so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Checks that links and flows know of each other, and that no link carries more than it can.
    ///
    /// # Errors
    /// [`SimError::Invariant`].
    pub fn check_integrity(&mut self) -> Result<(), SimError> {
        self.settle();
        for (number, link) in self.links.iter().enumerate() {
            let (mut weight, mut load) = (0_u128, 0_u128);
            for (at, &(slot, hop)) in link.flows.iter().enumerate() {
                let flow = &self.flows[slot as usize];
                let hop = flow.hops[hop as usize];
                if (hop.link as usize, hop.at as usize) != (number, at) || !flow.live {
                    return Err(broken("links and flows know of each other"));
                }
                weight += u128::from(hop.weight);
                load += u128::from(hop.parts) * u128::from(flow.rate);
            }
            if weight != u128::from(link.weight) || load > u128::from(link.capacity) {
                return Err(broken("a link carries what its flows have, and no more than it can"));
            }
        }
        Ok(())
    }

    fn get(&self, id: FlowId) -> Option<&Flow> {
        self.flows.get(id.slot as usize).filter(|flow| flow.live && flow.serial == id.serial)
    }

    fn move_to(&mut self, now: SimTime) -> Result<(), SimError> {
        if now == self.now {
            return Ok(());
        }
        if now < self.now {
            return Err(broken("a network moves forward in time"));
        }
        self.settle();
        if self.ends.first().is_some_and(|(end, _)| end < now.0) {
            return Err(broken("flows that ended are taken before anything later changes"));
        }
        self.now = now;
        Ok(())
    }

    /// Takes a flow off its links, of which it used what `moved` bytes are.
    fn retire(&mut self, slot: u32, moved: u64) -> Ended {
        let mut hops = std::mem::take(&mut self.flows[slot as usize].hops);
        let flow = &mut self.flows[slot as usize];
        flow.live = false;
        let (serial, whole) = (flow.serial, u128::from(flow.whole));
        let ended = Ended { end: self.now, flow: FlowId { serial, slot }, tag: flow.tag, bytes: flow.bytes };
        for hop in hops.drain(..) {
            let link = &mut self.links[hop.link as usize];
            link.bytes += u128::from(moved) * u128::from(hop.parts) / whole;
            link.weight -= hop.weight;
            link.flows.swap_remove(hop.at as usize);
            if let Some(&(other, at)) = link.flows.get(hop.at as usize) {
                self.flows[other as usize].hops[at as usize].at = hop.at;
            }
            mark(&mut self.links, &mut self.dirty, hop.link);
        }
        self.flows[slot as usize].hops = hops; // empty: its memory is kept
        self.ends.set(slot, NEVER, serial);
        self.free.push(slot);
        ended
    }

    /// Computes rates and ends anew, of all that the changes of this instant can reach.
    fn settle(&mut self) {
        if !self.dirty.is_empty() {
            self.filling.fill(self.now, &mut self.links, &mut self.flows, &mut self.dirty);
            self.ends.set_all(self.filling.changed(), &self.flows);
        }
    }
}

fn mark(links: &mut [Link], dirty: &mut Vec<u32>, link: u32) {
    if !std::mem::replace(&mut links[link as usize].dirty, true) {
        dirty.push(link);
    }
}

fn broken(what: &str) -> SimError {
    SimError::Invariant { what: what.into() }
}

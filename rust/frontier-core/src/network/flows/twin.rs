//! A slow, obviously right twin: at every change it brings all flows forward and fills all links anew, from sums
//! over all flows, without queues, reachability or anything kept. It must give the same nanoseconds. Its rates
//! are held, in turn, against a textbook filling in floating point and against what max-min fairness means.

use super::*;
use crate::rng::{RngStreams, Stream};

/// A flow of the twin. Those that are gone stay in the list.
#[derive(Clone, Debug)]
struct SlowFlow {
    parts: Vec<(usize, u32)>,
    whole: u32,
    streams: u32,
    ceiling: u64,
    bytes: u64,
    left: u128,
    rate: u64,
    live: bool,
}

impl SlowFlow {
    fn growth(&self) -> u64 {
        (u64::from(self.streams) << GROWTH_BITS).div_ceil(u64::from(self.whole))
    }

    fn part(&self, link: usize) -> u64 {
        self.parts.iter().find(|part| part.0 == link).map_or(0, |part| u64::from(part.1))
    }

    fn per_ns(&self) -> u128 {
        u128::from(self.rate) * u128::from(self.whole)
    }

    /// Nanoseconds that it needs from now on.
    fn needs(&self) -> Option<u128> {
        if self.left == 0 || (self.parts.is_empty() && self.ceiling == NO_CEILING) {
            return Some(0);
        }
        (self.rate > 0).then(|| self.left.div_ceil(self.per_ns()))
    }
}

#[derive(Clone, Debug, Default)]
struct Twin {
    now: u64,
    capacities: Vec<u64>,
    flows: Vec<SlowFlow>,
    ended: Vec<(u64, usize)>,
}

impl Twin {
    fn fill(&mut self) {
        let mut waiting: Vec<usize> = (0..self.flows.len()).filter(|&at| self.flows[at].live).collect();
        for flow in &mut self.flows {
            flow.rate = 0;
        }
        while !waiting.is_empty() {
            // (room, weight) of every link with waiting flows, and of every ceiling; the lowest first one is next.
            let mut lowest: Option<(u64, u64, Option<usize>, usize)> = None;
            let mut consider = |level: (u64, u64, Option<usize>, usize)| {
                let lower = |than: (u64, u64, Option<usize>, usize)| {
                    u128::from(level.0) * u128::from(than.1) < u128::from(than.0) * u128::from(level.1)
                };
                if lowest.is_none_or(lower) {
                    lowest = Some(level);
                }
            };
            for (link, &capacity) in self.capacities.iter().enumerate() {
                let taken: u64 =
                    self.flows.iter().filter(|flow| flow.live).map(|f| f.part(link) * f.rate).sum();
                let weight =
                    waiting.iter().map(|&at| self.flows[at].part(link) * self.flows[at].growth()).sum();
                if weight > 0 {
                    consider((capacity - taken, weight, Some(link), 0));
                }
            }
            for &at in &waiting {
                if self.flows[at].ceiling != NO_CEILING {
                    consider((self.flows[at].ceiling, self.flows[at].growth(), None, at));
                }
            }
            let Some((room, weight, link, capped)) = lowest else { return };
            let stops = |flow: &SlowFlow, at: usize| link.map_or(at == capped, |link| flow.part(link) > 0);
            let (stopped, others): (Vec<usize>, Vec<usize>) =
                waiting.iter().partition(|&&at| stops(&self.flows[at], at));
            for at in stopped {
                let flow = &mut self.flows[at];
                flow.rate = (u128::from(flow.growth()) * u128::from(room) / u128::from(weight)) as u64;
            }
            waiting = others;
        }
    }

    fn next_end(&self) -> Option<u64> {
        let needs = self.flows.iter().filter(|flow| flow.live).filter_map(SlowFlow::needs).min()?;
        u64::try_from(u128::from(self.now) + needs).ok().filter(|&end| end <= SimTime::MAX.0)
    }

    fn bring_forward(&mut self, to: u64) {
        for flow in self.flows.iter_mut().filter(|flow| flow.live) {
            flow.left = flow.left.saturating_sub(flow.per_ns() * u128::from(to - self.now));
        }
        self.now = to;
    }

    /// Goes on to `to`, end by end.
    fn advance(&mut self, to: u64) {
        while let Some(end) = self.next_end().filter(|&end| end <= to) {
            self.bring_forward(end);
            for (at, flow) in self.flows.iter_mut().enumerate().filter(|(_, flow)| flow.live) {
                if flow.needs() == Some(0) {
                    flow.live = false;
                    self.ended.push((end, at));
                }
            }
            self.fill();
        }
        self.bring_forward(to);
    }

    /// Rates in bytes per second by the textbook: in every round all waiting flows grow by what the tightest link or
    /// ceiling still allows.
    fn textbook_rates(&self) -> Vec<f64> {
        let mut rates = vec![0.0; self.flows.len()];
        let mut room: Vec<f64> = self.capacities.iter().map(|&units| units as f64 / RATE_UNITS).collect();
        let mut waiting: Vec<usize> =
            (0..rates.len()).filter(|&at| self.flows[at].live && !self.flows[at].parts.is_empty()).collect();
        let share = |flow: &SlowFlow, link| flow.part(link) as f64 / f64::from(flow.whole);
        let ceiling = |flow: &SlowFlow| flow.ceiling as f64 * f64::from(flow.whole) / RATE_UNITS;
        while !waiting.is_empty() {
            let mut step = f64::INFINITY;
            let demands: Vec<f64> = (0..room.len())
                .map(|link| {
                    let demand =
                        |&at: &usize| share(&self.flows[at], link) * f64::from(self.flows[at].streams);
                    waiting.iter().map(demand).sum()
                })
                .collect();
            for (link, &demand) in demands.iter().enumerate().filter(|(_, demand)| **demand > 0.0) {
                step = step.min(room[link] / demand);
            }
            for &at in waiting.iter().filter(|&&at| self.flows[at].ceiling != NO_CEILING) {
                let flow = &self.flows[at];
                step = step.min((ceiling(flow) - rates[at]) / f64::from(flow.streams));
            }
            for &at in &waiting {
                rates[at] += step * f64::from(self.flows[at].streams);
            }
            for (link, demand) in demands.iter().enumerate() {
                room[link] -= step * demand;
            }
            waiting.retain(|&at| {
                let flow = &self.flows[at];
                let full = |link: usize| room[link] <= 1e-9 * self.capacities[link] as f64 / RATE_UNITS;
                let capped = flow.ceiling != NO_CEILING && rates[at] >= ceiling(flow) * (1.0 - 1e-9);
                !capped && !flow.parts.iter().any(|&(link, _)| full(link))
            });
        }
        rates
    }

    /// Max-min fairness: every flow is at its ceiling, or on a full link where none has more per stream.
    fn check_fairness(&self, case: u64) {
        for (at, flow) in self.flows.iter().enumerate().filter(|(_, f)| f.live && !f.parts.is_empty()) {
            let level = |rate: u64, flow: &SlowFlow| rate as f64 / flow.growth() as f64;
            let bound = flow.parts.iter().any(|&(link, _)| {
                let on_link = || self.flows.iter().filter(|other| other.live && other.part(link) > 0);
                let (load, parts) = on_link().fold((0, 0), |(load, parts), other| {
                    (load + other.part(link) * other.rate, parts + other.part(link))
                });
                // A rate is rounded down to its unit.
                let full = self.capacities[link] - load <= parts;
                let most = on_link().map(|other| level(other.rate, other)).fold(0.0, f64::max);
                full && level(flow.rate + 1, flow) >= most * (1.0 - 1e-12)
            });
            assert!(flow.rate == flow.ceiling || bound, "case {case}: flow {at} could have more");
        }
    }
}

struct Case {
    number: u64,
    random: Stream,
    full: Vec<f64>,
    fast: FlowNetwork,
    slow: Twin,
    ids: Vec<FlowId>,
    ended: Vec<Ended>,
    cancelled: u128,
}

impl Case {
    /// Returns a case of up to `most_links` links.
    fn new(number: u64, most_links: u64) -> Self {
        let mut random = RngStreams::new(number, 0).get("network twin");
        let links = 1 + random.below(most_links);
        let full: Vec<f64> = (0..links)
            .map(|_| match random.below(3) {
                0 => 1e9,
                1 => (1 + random.below(4)) as f64 * 12.5e9,
                _ => 1e6 + random.unit() * 1e11,
            })
            .collect();
        let fast = FlowNetwork::new(&full).unwrap();
        let capacities = full.iter().map(|&rate| rate_units(rate).unwrap()).collect();
        let slow = Twin { capacities, ..Twin::default() };
        Self { number, random, full, fast, slow, ids: Vec::new(), ended: Vec::new(), cancelled: 0 }
    }

    fn start(&mut self, now: u64) {
        let whole = [1, 1, 2, 3, 8, 60][self.random.below(6) as usize];
        let mut parts = Vec::new();
        for link in 0..self.full.len() {
            // A flow of a large network uses about three links of it.
            if self.random.below(self.full.len().max(6) as u64) < 3 {
                parts.push((LinkId(link as u32), 1 + self.random.below(u64::from(whole) + 2) as u32));
            }
        }
        let streams = [1, 1, 1, 2, 7][self.random.below(5) as usize];
        let bundle = Bundle::new(whole, parts, streams, 0).unwrap();
        let bytes = match self.random.below(8) {
            0 => 0,
            1 => 1 + self.random.below(100),
            2..=4 => 1_000_000,
            _ => 1 + self.random.below(50_000_000),
        };
        let ceiling = match self.random.below(4) {
            0 => Some(1e9),
            1 => Some(1e5 + self.random.unit() * 2e10),
            _ => None,
        };
        let tag = self.ids.len() as u64;
        self.ids.push(self.fast.start(SimTime(now), &bundle, bytes, ceiling, tag).unwrap());
        self.slow.flows.push(SlowFlow {
            parts: bundle.parts().iter().map(|&(link, count)| (link.index(), count)).collect(),
            whole: bundle.whole(),
            streams,
            ceiling: ceiling
                .map_or(NO_CEILING, |rate| (rate_units(rate).unwrap() / u64::from(bundle.whole())).max(1)),
            bytes,
            left: u128::from(bytes) * UNITS_PER_BYTE,
            rate: 0,
            live: true,
        });
    }

    fn cancel(&mut self, now: u64) {
        if self.ids.is_empty() {
            return;
        }
        let at = self.random.below(self.ids.len() as u64) as usize;
        let found = self.fast.cancel(SimTime(now), self.ids[at]).unwrap();
        let flow = &mut self.slow.flows[at];
        let moved = flow.bytes - flow.left.div_ceil(UNITS_PER_BYTE) as u64;
        assert_eq!(found, flow.live.then_some(moved), "case {}: cancelled flow {at}", self.number);
        self.cancelled += u128::from(flow.bytes) * u128::from(flow.live);
        flow.live = false;
    }

    /// What has moved, exactly, although asking brings a flow of the fast one forward.
    fn ask(&mut self, now: u64) {
        for (flow, &id) in self.slow.flows.iter().zip(&self.ids) {
            let moved = flow.bytes - flow.left.div_ceil(UNITS_PER_BYTE) as u64;
            assert_eq!(
                self.fast.moved(SimTime(now), id),
                Ok(flow.live.then_some(moved)),
                "case {}",
                self.number
            );
        }
    }

    fn degrade(&mut self, now: u64) {
        let link = self.random.below(self.full.len() as u64) as usize;
        let factor = [0.0, 0.1, 0.5, 1.0, self.random.unit()][self.random.below(5) as usize];
        self.fast.set_capacity(SimTime(now), LinkId(link as u32), factor).unwrap();
        self.slow.capacities[link] = (rate_units(self.full[link]).unwrap() as f64 * factor) as u64;
    }

    /// Takes both to `now`; the fast one at once, or as an event loop does.
    fn advance(&mut self, now: u64) {
        if self.random.below(2) == 0 {
            while let Some(end) = self.fast.next_end().filter(|&end| end.0 <= now) {
                self.fast.advance(end, &mut self.ended).unwrap();
            }
        }
        self.fast.advance(SimTime(now), &mut self.ended).unwrap();
        self.slow.advance(now);
        self.compare();
    }

    fn compare(&mut self) {
        let found: Vec<(u64, usize)> = self.ended.iter().map(|end| (end.end.0, end.tag as usize)).collect();
        assert_eq!(found, self.slow.ended, "case {}: ends", self.number);
        let textbook = self.slow.textbook_rates();
        for (at, flow) in self.slow.flows.iter().enumerate().filter(|(_, f)| f.live && !f.parts.is_empty()) {
            let rate = flow.rate as f64 * f64::from(flow.whole) / RATE_UNITS;
            let found = self.fast.rate(self.ids[at]).unwrap();
            assert!(found.to_bits() == rate.to_bits(), "case {}: rate of flow {at}", self.number);
            let near = (found - textbook[at]).abs() <= 1e-7 * textbook[at] + 0.01;
            assert!(near, "case {}: flow {at} has {found}, the textbook {}", self.number, textbook[at]);
        }
        self.slow.check_fairness(self.number);
        self.fast.check_integrity().unwrap();
    }

    /// Makes up to `most_changes` changes, then lets everything end.
    fn run(mut self, most_changes: u64) -> (usize, usize) {
        let mut now = 0;
        for _ in 0..4 + self.random.below(most_changes) {
            // Several changes of one instant are the rule.
            if self.random.below(3) == 0 {
                now += match self.random.below(3) {
                    0 => 1_000_000,
                    1 => self.slow.next_end().unwrap_or(now) - now,
                    _ => self.random.below(3_000_000),
                };
                self.advance(now);
            }
            match self.random.below(8) {
                0 => self.cancel(now),
                1 => self.degrade(now),
                2 => self.ask(now),
                _ => self.start(now),
            }
            self.slow.fill();
            assert_eq!(self.fast.next_end().map(|end| end.0), self.slow.next_end(), "case {}", self.number);
        }
        for link in 0..self.full.len() {
            self.fast.set_capacity(SimTime(now), LinkId(link as u32), 1.0).unwrap();
            self.slow.capacities[link] = rate_units(self.full[link]).unwrap();
        }
        self.slow.fill();
        self.advance(1 << 60);
        let totals = self.fast.totals();
        assert_eq!((self.fast.live(), self.fast.next_end()), (0, None), "case {}: all end", self.number);
        assert_eq!(totals.started, totals.ended + totals.cancelled);
        assert_eq!(totals.bytes_started, totals.bytes_ended + totals.bytes_cancelled + totals.bytes_dropped);
        assert_eq!(totals.bytes_cancelled + totals.bytes_dropped, self.cancelled);
        (self.ended.len(), self.ids.len() - self.ended.len())
    }
}

#[test]
fn fast_and_slow_agree_to_the_nanosecond_on_10_000_random_cases() {
    let (mut ended, mut cancelled) = (0, 0);
    for number in 0..10_000 {
        let case = Case::new(number, 6).run(16);
        ended += case.0;
        cancelled += case.1;
    }
    assert!(
        ended > 50_000 && cancelled > 3_000,
        "{ended} ended, {cancelled} cancelled: too few to show anything"
    );
}

#[test]
fn they_agree_on_larger_networks() {
    let flows: usize = (0..60).map(|number| Case::new(1_000_000 + number, 40).run(150).0).sum();
    assert!(flows > 1_500, "{flows} flows ended: too few to show anything");
}

//! Spreading requests over the data-parallel ranks of a replica, as the engine itself does it.
//!
//! vLLM's API servers never ask a rank how long its queues are. Ranks report them after every step to a coordinator,
//! which publishes a snapshot to all API servers at an interval; between two snapshots an API server only adds what it
//! sent itself, times the number of servers, as if the others had done the same
//! (`DPLBAsyncMPClient.get_core_engine_for_request`, `vllm/v1/engine/core_client.py`). Requests reach API servers in
//! turn, where the real ones compete for connections.

use crate::plan::{BalancerSpec, RankScore};
use crate::time::SimTime;

/// Queues of one rank, as it reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RankReport {
    /// Waiting requests.
    pub num_waiting: u32,
    /// Running requests.
    pub num_running: u32,
    /// Share of KV blocks in use.
    pub kv_usage: f64,
}

/// One API server's view.
#[derive(Clone, Debug)]
struct ApiServer {
    /// The last snapshot, with what the server sent since.
    view: Vec<RankReport>,
    /// Its own requests that have not ended, by rank.
    in_flight: Vec<u32>,
    /// Rank at which the scan starts.
    scan_from: usize,
    /// Number of the snapshot that `view` comes from.
    snapshot: u64,
}

/// Spreads requests over the ranks behind it.
#[derive(Clone, Debug)]
pub struct RankBalancer {
    spec: BalancerSpec,
    /// What the coordinator knows.
    reported: Vec<RankReport>,
    /// What it published last, and in which interval.
    published: Vec<RankReport>,
    published_in: u64,
    servers: Vec<ApiServer>,
    next: usize,
}

impl RankBalancer {
    /// Returns a balancer over `ranks` idle ranks.
    pub fn new(spec: BalancerSpec, ranks: usize) -> Self {
        let servers = match spec {
            BalancerSpec::RoundRobin {} => 0,
            BalancerSpec::VllmScores { api_servers, .. } => api_servers as usize,
        };
        let server = |number: usize| ApiServer {
            view: vec![RankReport::default(); ranks],
            in_flight: vec![0; ranks],
            scan_from: ranks * number / servers % ranks,
            snapshot: 0,
        };
        Self {
            spec,
            reported: vec![RankReport::default(); ranks],
            published: vec![RankReport::default(); ranks],
            published_in: 0,
            servers: (0..servers).map(server).collect(),
            next: 0,
        }
    }

    /// Notes what a rank reports at `now`, after a step.
    pub fn report(&mut self, now: SimTime, rank: usize, report: RankReport) {
        self.publish_until(now);
        self.reported[rank] = report;
    }

    /// Chooses the rank of a request that arrives at `now`. Returns it and the API server that took the request.
    pub fn choose(&mut self, now: SimTime) -> (usize, u32) {
        let ranks = self.reported.len();
        let BalancerSpec::VllmScores { score, rotating, .. } = self.spec else {
            let rank = self.next;
            self.next = (rank + 1) % ranks;
            return (rank, 0);
        };
        self.publish_until(now);
        let taken_by = self.next;
        let clients = self.servers.len() as u32;
        self.next = (taken_by + 1) % self.servers.len();
        let server = &mut self.servers[taken_by];
        if server.snapshot != self.published_in {
            server.view.copy_from_slice(&self.published);
            server.snapshot = self.published_in;
        }
        let load = |rank: usize| score.of(server.view[rank], server.in_flight[rank], clients);
        let mut best = (server.scan_from, load(server.scan_from));
        for step in 1..ranks {
            let rank = (server.scan_from + step) % ranks;
            let load = load(rank);
            if load < best.1 {
                best = (rank, load);
            }
        }
        let rank = best.0;
        server.view[rank].num_waiting += clients;
        server.in_flight[rank] += 1;
        if rotating {
            server.scan_from = (server.scan_from + 1) % ranks;
        }
        (rank, taken_by as u32)
    }

    /// Notes that a request which `server` had sent to `rank` ended.
    pub fn release(&mut self, rank: usize, server: u32) {
        if let Some(server) = self.servers.get_mut(server as usize) {
            server.in_flight[rank] -= 1;
        }
    }

    /// Publishes what had been reported when the interval before that of `now` ended.
    fn publish_until(&mut self, now: SimTime) {
        let BalancerSpec::VllmScores { snapshot_interval_ns, .. } = self.spec else { return };
        let interval = now.0 / snapshot_interval_ns;
        if interval > self.published_in {
            self.published_in = interval;
            self.published.copy_from_slice(&self.reported);
        }
    }
}

impl RankScore {
    /// Returns the score of a rank: lower is better.
    fn of(self, report: RankReport, in_flight: u32, clients: u32) -> f64 {
        let (waiting, running) = (f64::from(report.num_waiting), f64::from(report.num_running));
        match self {
            Self::Queues => 4.0 * waiting + running,
            Self::InFlight => {
                let pressure = 6.0 * waiting * (report.kv_usage - 0.5).max(0.0);
                (f64::from(clients) * f64::from(in_flight)).max(waiting + running) + pressure
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn scores(api_servers: u32, score: RankScore, rotating: bool) -> BalancerSpec {
        BalancerSpec::VllmScores { api_servers, snapshot_interval_ns: 100 * MS, score, rotating }
    }

    fn queues(num_waiting: u32, num_running: u32) -> RankReport {
        RankReport { num_waiting, num_running, kv_usage: 0.0 }
    }

    fn choices(balancer: &mut RankBalancer, at_ns: u64, count: usize) -> Vec<usize> {
        (0..count).map(|_| balancer.choose(SimTime(at_ns)).0).collect()
    }

    #[test]
    fn round_robin_takes_ranks_in_turn() {
        let mut balancer = RankBalancer::new(BalancerSpec::RoundRobin {}, 3);
        assert_eq!(choices(&mut balancer, 0, 5), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn a_fixed_scan_adds_what_it_sent_and_returns_to_its_start() {
        // Waiting counts go 0,0 -> 1,0 -> 1,1 -> 2,1 -> 2,2: ties go to rank 0.
        let mut balancer = RankBalancer::new(scores(1, RankScore::Queues, false), 2);
        assert_eq!(choices(&mut balancer, 0, 5), [0, 1, 0, 1, 0]);
    }

    #[test]
    fn api_servers_start_their_scans_apart_and_do_not_see_each_other() {
        // Servers 0 and 1 of 4 ranks start at 0 and 2, and add 2 to the rank they chose.
        let mut balancer = RankBalancer::new(scores(2, RankScore::Queues, false), 4);
        assert_eq!(choices(&mut balancer, 0, 8), [0, 2, 1, 3, 2, 0, 3, 1]);
    }

    #[test]
    fn waiting_counts_four_times() {
        let mut balancer = RankBalancer::new(scores(1, RankScore::Queues, false), 2);
        balancer.report(SimTime(1), 0, queues(1, 0));
        balancer.report(SimTime(1), 1, queues(0, 3));
        // Scores 4 and 3; then 4 and 7 (one more waits on rank 1); then 8 and 7.
        assert_eq!(choices(&mut balancer, 100 * MS, 3), [1, 0, 1]);
    }

    #[test]
    fn snapshots_are_those_of_the_end_of_an_interval() {
        let mut balancer = RankBalancer::new(scores(1, RankScore::Queues, false), 2);
        balancer.report(SimTime(10 * MS), 0, queues(0, 9));
        assert_eq!(choices(&mut balancer, 99 * MS, 1), [0], "not published yet");
        // Reported after the snapshot at 100 ms, so unknown until 200 ms; so is what was sent before.
        balancer.report(SimTime(150 * MS), 1, queues(9, 0));
        assert_eq!(choices(&mut balancer, 199 * MS, 3), [1, 1, 1], "0, 4 and 8 against 9");
        // 9 against 36.
        assert_eq!(choices(&mut balancer, 200 * MS, 1), [0]);
    }

    #[test]
    fn a_rotating_scan_spreads_ties() {
        let mut fixed = RankBalancer::new(scores(1, RankScore::InFlight, false), 3);
        let mut rotating = RankBalancer::new(scores(1, RankScore::InFlight, true), 3);
        for balancer in [&mut fixed, &mut rotating] {
            for rank in 0..3 {
                balancer.report(SimTime(0), rank, queues(0, 5));
            }
        }
        // In flight 0 < 5 until the fifth; a waiting one adds one: 5,5,5 -> 6,5,5 -> 6,6,5.
        assert_eq!(choices(&mut fixed, 100 * MS, 3), [0, 1, 2]);
        // Starts 0, 1, 2: the lowest from there on.
        assert_eq!(choices(&mut rotating, 100 * MS, 4), [0, 1, 2, 0]);
        // Now 7,6,6 and start 1.
        assert_eq!(choices(&mut rotating, 100 * MS, 1), [1]);
    }

    #[test]
    fn own_requests_in_flight_count_until_they_end() {
        let mut balancer = RankBalancer::new(scores(2, RankScore::InFlight, false), 2);
        // Server 0: rank 0, then after the others' turn rank 1. In flight times 2 outweighs empty snapshots.
        let (first, server) = balancer.choose(SimTime(0));
        assert_eq!((first, server), (0, 0));
        assert_eq!(balancer.choose(SimTime(0)), (1, 1), "server 1 starts at rank 1");
        assert_eq!(balancer.choose(SimTime(100 * MS)), (1, 0), "2 * 1 against 0");
        balancer.release(0, 0);
        balancer.choose(SimTime(200 * MS));
        assert_eq!(balancer.choose(SimTime(200 * MS)), (0, 0), "0 against 2 * 1");
    }

    #[test]
    fn a_full_cache_with_a_queue_repels() {
        let full = RankReport { num_waiting: 2, num_running: 2, kv_usage: 1.0 };
        // max(0, 4) + 6 * 2 * 0.5 = 10.
        assert!((RankScore::InFlight.of(full, 0, 1) - 10.0).abs() < 1e-12);
        let empty = RankReport { num_waiting: 0, num_running: 4, kv_usage: 1.0 };
        assert!((RankScore::InFlight.of(empty, 0, 1) - 4.0).abs() < 1e-12);
        assert!((RankScore::InFlight.of(empty, 3, 2) - 6.0).abs() < 1e-12);
    }
}

//! Collectives by latency and bandwidth: `messages * latency + bytes / bandwidth` (the alpha-beta model; Thakur,
//! Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", 2005).
//!
//! Worlds of [`DIRECT_RANKS`] whose ranks reach each other directly use vLLM's custom all-reduce
//! (`vllm/distributed/device_communicators/custom_all_reduce.py`): *one-shot* reads all peers' buffers at once,
//! *two-shot* scatters the reduction and gathers it. More than two ranks without `NVLink`, and other worlds, use a
//! ring that moves the same bytes as two-shot, the least possible, in `2 (n - 1)` messages (Patarasuk and Yuan, "Bandwidth
//! optimal all-reduce algorithms for clusters of workstations", 2009).

use super::cost::Cost;
use super::device::Device;
use crate::plan::step_time::LinkSpec;

/// Worlds of a direct (one-shot or two-shot) collective.
pub const DIRECT_RANKS: [u32; 4] = [2, 4, 6, 8];

/// Which collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sum on every rank.
    AllReduce,
    /// Concatenation on every rank.
    AllGather,
}

/// A collective over the ranks of one replica.
#[derive(Clone, Debug)]
pub struct Collective {
    kind: Kind,
    bytes_per_row: f64,
    ranks: u32,
    direct: bool,
    latency_s: f64,
    link_bytes_per_s: f64,
    memory_bytes_per_s: f64,
    launch_s: f64,
}

impl Collective {
    /// Returns the collective over `ranks` ranks whose result has `bytes_per_row` bytes per row.
    pub fn new(device: &Device, link: &LinkSpec, kind: Kind, bytes_per_row: f64, ranks: u32) -> Self {
        Self {
            kind,
            bytes_per_row,
            ranks,
            direct: DIRECT_RANKS.contains(&ranks) && (link.direct || ranks == 2),
            latency_s: link.latency_s,
            link_bytes_per_s: link.bandwidth_bytes_per_s * link.efficiency,
            memory_bytes_per_s: device.bandwidth_bytes_per_s,
            launch_s: device.launch_s,
        }
    }

    /// Returns the cost of one run over `rows` rows.
    pub fn cost(&self, rows: u32) -> Cost {
        let payload = self.bytes_per_row * f64::from(rows);
        let ranks = f64::from(self.ranks);
        // HBM: the rank's own contribution is read, the result is written.
        let (network_s, bytes, flops) = match self.kind {
            Kind::AllReduce => (self.all_reduce_s(payload), 2.0 * payload, 0.0),
            Kind::AllGather => (self.all_gather_s(payload), payload + payload / ranks, 0.0),
        };
        Cost {
            network_s,
            memory_s: bytes / self.memory_bytes_per_s,
            launch_s: self.launch_s,
            flops,
            bytes,
            ..Cost::default()
        }
    }

    fn all_reduce_s(&self, payload: f64) -> f64 {
        let peers = f64::from(self.ranks - 1);
        let all_of_peers = peers * payload / self.link_bytes_per_s;
        let two_passes = 2.0 * (peers / f64::from(self.ranks)) * payload / self.link_bytes_per_s;
        if !self.direct {
            return 2.0 * peers * self.latency_s + two_passes;
        }
        let one_shot = self.latency_s + all_of_peers;
        let two_shot = 2.0 * self.latency_s + two_passes;
        one_shot.min(two_shot)
    }

    fn all_gather_s(&self, payload: f64) -> f64 {
        let peers = f64::from(self.ranks - 1);
        let messages = if self.direct { 1.0 } else { peers };
        messages * self.latency_s + (peers / f64::from(self.ranks)) * payload / self.link_bytes_per_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fidelity::fixtures::{h100, nvlink};

    fn network_s(kind: Kind, ranks: u32, bytes: u32) -> f64 {
        let device = Device::new(&h100());
        Collective::new(&device, &nvlink(), kind, 1.0, ranks).cost(bytes).network_s
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-12 * expected, "{found} is not {expected}");
    }

    #[test]
    fn small_messages_go_in_one_shot_and_large_ones_in_two() {
        let (latency, rate) = (nvlink().latency_s, nvlink().bandwidth_bytes_per_s * nvlink().efficiency);
        close(network_s(Kind::AllReduce, 8, 8_192), latency + 7.0 * 8_192.0 / rate);
        let bytes = 1 << 28;
        close(network_s(Kind::AllReduce, 8, bytes), 2.0 * latency + 1.75 * f64::from(bytes) / rate);
        close(network_s(Kind::AllReduce, 16, bytes), 30.0 * latency + 1.875 * f64::from(bytes) / rate);
    }

    #[test]
    fn without_direct_links_a_ring_takes_a_message_per_hop() {
        let device = Device::new(&h100());
        let pcie = LinkSpec { direct: false, ..nvlink() };
        let cost = |ranks| Collective::new(&device, &pcie, Kind::AllReduce, 1.0, ranks).cost(1).network_s;
        assert!(cost(8) >= 14.0 * pcie.latency_s);
        assert!(cost(2) < 2.0 * pcie.latency_s, "two ranks always reach each other");
    }

    #[test]
    fn an_all_gather_moves_what_a_rank_lacks() {
        let (latency, rate) = (nvlink().latency_s, nvlink().bandwidth_bytes_per_s * nvlink().efficiency);
        close(network_s(Kind::AllGather, 4, 1 << 20), latency + 0.75 * f64::from(1 << 20) / rate);
        close(network_s(Kind::AllGather, 16, 1 << 20), 15.0 * latency + 0.9375 * f64::from(1 << 20) / rate);
    }
}

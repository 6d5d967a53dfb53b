//! Collectives by latency and bandwidth: `messages * latency + bytes / bandwidth` (the alpha-beta model; Thakur,
//! Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", 2005).
//!
//! Worlds of [`DIRECT_RANKS`] on one node whose ranks reach each other directly use vLLM's custom all-reduce
//! (`vllm/distributed/device_communicators/custom_all_reduce.py`): *one-shot* reads all peers' buffers at once,
//! *two-shot* scatters the reduction and gathers it. More than two ranks without `NVLink`, and other worlds, use a
//! ring that moves the same bytes as two-shot, the least possible, in `2 (n - 1)` messages (Patarasuk and Yuan, "Bandwidth
//! optimal all-reduce algorithms for clusters of workstations", 2009).
//!
//! Over several nodes a collective runs in two levels: inside each node every rank gathers (or reduces) what its
//! local peers hold, and each rank exchanges its share with the ranks of equal number on other nodes.

use super::cost::Cost;
use super::device::Device;
use crate::plan::step_time::{CollectiveKind, LinkSpec};

/// Worlds of a direct (one-shot or two-shot) collective.
pub const DIRECT_RANKS: [u32; 4] = [2, 4, 6, 8];

/// Links that a collective crosses: inside a node, and between nodes where it spans several.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    /// Ranks, at least 2.
    pub ranks: u32,
    /// Nodes, which divide the ranks.
    pub nodes: u32,
    /// The link inside a node; `None` if every rank has a node of its own.
    pub node: Option<LinkSpec>,
    /// The link between nodes; `None` if there is one node.
    pub network: Option<LinkSpec>,
}

/// One level of links: so many peers over one link.
#[derive(Clone, Copy, Debug)]
struct Level {
    ranks: u32,
    latency_s: f64,
    bytes_per_s: f64,
    direct: bool,
}

impl Level {
    fn new(ranks: u32, link: &LinkSpec) -> Self {
        Self {
            ranks,
            latency_s: link.latency_s,
            bytes_per_s: link.bandwidth_bytes_per_s * link.efficiency,
            direct: DIRECT_RANKS.contains(&ranks) && (link.direct || ranks == 2),
        }
    }

    fn peers(&self) -> f64 {
        f64::from(self.ranks - 1)
    }

    /// Sum of `bytes` on every rank.
    fn all_reduce_s(&self, bytes: f64) -> f64 {
        let all_of_peers = self.peers() * bytes / self.bytes_per_s;
        let two_passes = 2.0 * (self.peers() / f64::from(self.ranks)) * bytes / self.bytes_per_s;
        if !self.direct {
            return 2.0 * self.peers() * self.latency_s + two_passes;
        }
        (self.latency_s + all_of_peers).min(2.0 * self.latency_s + two_passes)
    }

    /// Every rank obtains (or gives away) all but its own part of `bytes`: gather, scatter or exchange.
    fn one_pass_s(&self, bytes: f64) -> f64 {
        let messages = if self.direct { 1.0 } else { self.peers() };
        messages * self.latency_s + (self.peers() / f64::from(self.ranks)) * bytes / self.bytes_per_s
    }
}

/// A collective over the ranks of one replica.
#[derive(Clone, Debug)]
pub struct Collective {
    kind: CollectiveKind,
    bytes_per_row: f64,
    ranks: f64,
    node: Option<Level>,
    network: Option<Level>,
    memory_bytes_per_s: f64,
    launch_s: f64,
}

impl Collective {
    /// Returns the collective over the ranks of `reach` whose payload has `bytes_per_row` bytes per row.
    pub fn new(device: &Device, reach: &Reach, kind: CollectiveKind, bytes_per_row: f64) -> Self {
        let per_node = reach.ranks / reach.nodes;
        let level = |ranks: u32, link: &Option<LinkSpec>| {
            link.as_ref().filter(|_| ranks > 1).map(|link| Level::new(ranks, link))
        };
        Self {
            kind,
            bytes_per_row,
            ranks: f64::from(reach.ranks),
            node: level(per_node, &reach.node),
            network: level(reach.nodes, &reach.network),
            memory_bytes_per_s: device.bandwidth_bytes_per_s,
            launch_s: device.launch_s,
        }
    }

    /// Returns the payload of `rows` rows in bytes.
    pub fn payload(&self, rows: u32) -> f64 {
        self.bytes_per_row * f64::from(rows)
    }

    /// Returns the cost of one run over `rows` rows.
    pub fn cost(&self, rows: u32) -> Cost {
        let payload = self.payload(rows);
        // HBM: the rank's own contribution is read, the result is written.
        let bytes = match self.kind {
            CollectiveKind::AllReduce | CollectiveKind::AllToAll => 2.0 * payload,
            CollectiveKind::AllGather | CollectiveKind::ReduceScatter => payload + payload / self.ranks,
            CollectiveKind::SendRecv => payload,
        };
        Cost {
            network_s: self.network_s(payload),
            memory_s: bytes / self.memory_bytes_per_s,
            launch_s: self.launch_s,
            bytes,
            ..Cost::default()
        }
    }

    fn network_s(&self, payload: f64) -> f64 {
        let (node, network) = (self.node.as_ref(), self.network.as_ref());
        // The part of the payload that one rank of a node handles towards other nodes.
        let share = payload / node.map_or(1.0, |level| f64::from(level.ranks));
        match (self.kind, node, network) {
            (_, None, None) => 0.0,
            (CollectiveKind::SendRecv, _, Some(level)) | (CollectiveKind::SendRecv, Some(level), None) => {
                level.latency_s + payload / level.bytes_per_s
            }
            (CollectiveKind::AllReduce, Some(level), None)
            | (CollectiveKind::AllReduce, None, Some(level)) => level.all_reduce_s(payload),
            (CollectiveKind::AllReduce, Some(node), Some(network)) => {
                2.0 * node.one_pass_s(payload) + network.all_reduce_s(share)
            }
            (CollectiveKind::AllToAll, Some(node), Some(network)) => {
                // What goes to other nodes crosses the network, the rest stays inside; both at once.
                let nodes = f64::from(network.ranks);
                network.one_pass_s(payload).max(node.one_pass_s(payload / nodes))
            }
            (_, Some(node), Some(network)) => node.one_pass_s(payload) + network.one_pass_s(share),
            (_, Some(level), None) | (_, None, Some(level)) => level.one_pass_s(payload),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fidelity::fixtures::{h100, nvlink};

    fn reach(ranks: u32) -> Reach {
        Reach { ranks, nodes: 1, node: Some(nvlink()), network: None }
    }

    fn network_s(kind: CollectiveKind, ranks: u32, bytes: u32) -> f64 {
        Collective::new(&Device::new(&h100()), &reach(ranks), kind, 1.0).cost(bytes).network_s
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-12 * expected, "{found} is not {expected}");
    }

    #[test]
    fn small_messages_go_in_one_shot_and_large_ones_in_two() {
        let (latency, rate) = (nvlink().latency_s, nvlink().bandwidth_bytes_per_s * nvlink().efficiency);
        close(network_s(CollectiveKind::AllReduce, 8, 8_192), latency + 7.0 * 8_192.0 / rate);
        let bytes = 1 << 28;
        close(network_s(CollectiveKind::AllReduce, 8, bytes), 2.0 * latency + 1.75 * f64::from(bytes) / rate);
        close(
            network_s(CollectiveKind::AllReduce, 16, bytes),
            30.0 * latency + 1.875 * f64::from(bytes) / rate,
        );
    }

    #[test]
    fn without_direct_links_a_ring_takes_a_message_per_hop() {
        let device = Device::new(&h100());
        let pcie = LinkSpec { direct: false, ..nvlink() };
        let cost = |ranks| {
            let reach = Reach { node: Some(pcie), ..reach(ranks) };
            Collective::new(&device, &reach, CollectiveKind::AllReduce, 1.0).cost(1).network_s
        };
        assert!(cost(8) >= 14.0 * pcie.latency_s);
        assert!(cost(2) < 2.0 * pcie.latency_s, "two ranks always reach each other");
    }

    #[test]
    fn an_all_gather_moves_what_a_rank_lacks() {
        let (latency, rate) = (nvlink().latency_s, nvlink().bandwidth_bytes_per_s * nvlink().efficiency);
        close(network_s(CollectiveKind::AllGather, 4, 1 << 20), latency + 0.75 * f64::from(1 << 20) / rate);
        close(
            network_s(CollectiveKind::AllGather, 16, 1 << 20),
            15.0 * latency + 0.9375 * f64::from(1 << 20) / rate,
        );
    }

    #[test]
    fn two_nodes_add_the_network_to_the_node() {
        let device = Device::new(&h100());
        let nic = LinkSpec { bandwidth_bytes_per_s: 50e9, latency_s: 5e-6, efficiency: 0.8, direct: false };
        let both = Reach { ranks: 16, nodes: 2, node: Some(nvlink()), network: Some(nic) };
        let bytes = 1 << 28;
        let cost = |kind| Collective::new(&device, &both, kind, 1.0).cost(bytes).network_s;
        let (inside, outside) = (450e9 * nvlink().efficiency, 40e9);
        let payload = f64::from(bytes);
        // Inside a node each rank handles an eighth towards the other node: half of it twice.
        let all_reduce =
            2.0 * (nvlink().latency_s + 0.875 * payload / inside) + 5e-6 + payload / 8.0 / outside;
        assert!((cost(CollectiveKind::AllReduce) / all_reduce - 1.0).abs() < 1e-9);
        // Half of an exchange leaves the node.
        close(cost(CollectiveKind::AllToAll), 5e-6 + 0.5 * payload / outside);
        close(cost(CollectiveKind::SendRecv), 5e-6 + payload / outside);
        let alone = Reach { ranks: 2, nodes: 2, node: None, network: Some(nic) };
        let pair = Collective::new(&device, &alone, CollectiveKind::ReduceScatter, 1.0).cost(bytes).network_s;
        close(pair, 5e-6 + 0.5 * payload / outside);
    }
}

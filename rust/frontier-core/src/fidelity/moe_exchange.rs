//! Tokens travel to the ranks of their experts and back, as `DeepEP` sends them: once to every rank that holds one of
//! the token's experts, however many of them it holds.
//!
//! With `top_k` experts spread over `ranks` ranks, `ranks * (1 - (1 - 1 / ranks)^top_k)` ranks are expected to be
//! visited, and likewise for nodes: what crosses the network is sent once
//! per node. Passing it on inside the receiving node is left out.

use super::cost::Cost;
use super::device::Device;
use crate::plan::step_time::LinkSpec;

/// Shape of an exchange.
#[derive(Clone, Copy, Debug)]
pub struct ExchangeShape {
    /// Width of the model.
    pub hidden: u32,
    /// Experts that a token visits.
    pub top_k: u32,
    /// Experts of the layer.
    pub num_experts: u32,
    /// Ranks that hold them.
    pub ranks: u32,
    /// Nodes that these are on.
    pub nodes: u32,
    /// Bytes per element sent.
    pub bytes_per_element: f64,
}

/// An exchange of known shape.
#[derive(Clone, Debug)]
pub struct MoeExchange {
    shape: ExchangeShape,
    node: Option<LinkSpec>,
    network: Option<LinkSpec>,
    memory_bytes_per_s: f64,
    launch_s: f64,
}

/// Names of [`MoeExchange::features`].
pub const FEATURES: [&str; 9] = [
    "rows",
    "hidden",
    "top_k",
    "num_experts",
    "ranks",
    "nodes",
    "bytes_per_element",
    "bytes_between_ranks",
    "bytes_between_nodes",
];

impl MoeExchange {
    /// Returns the exchange of `shape` over these links; `None` for a link that no token crosses.
    pub fn new(
        device: &Device,
        node: Option<LinkSpec>,
        network: Option<LinkSpec>,
        shape: &ExchangeShape,
    ) -> Self {
        Self {
            shape: *shape,
            node,
            network,
            memory_bytes_per_s: device.bandwidth_bytes_per_s,
            launch_s: device.launch_s,
        }
    }

    /// Returns the bytes that one rank sends to other ranks of its node, and to other nodes.
    fn bytes(&self, rows: f64) -> (f64, f64) {
        let shape = &self.shape;
        let row = f64::from(shape.hidden) * shape.bytes_per_element * rows;
        let others = |groups: u32| {
            let groups = f64::from(groups);
            (groups - 1.0) * (1.0 - libm::pow(1.0 - 1.0 / groups, f64::from(shape.top_k)))
        };
        let per_node = f64::from(shape.ranks / shape.nodes);
        let between_nodes = row * others(shape.nodes);
        // Of the other ranks visited, those of the own node.
        let between_ranks = row * others(shape.ranks) * (per_node - 1.0) / f64::from(shape.ranks - 1);
        (between_ranks, between_nodes)
    }

    /// Returns the cost of one run when every rank starts from `rows` tokens.
    pub fn cost(&self, rows: u32) -> Cost {
        let (between_ranks, between_nodes) = self.bytes(f64::from(rows));
        let bytes = 2.0 * (between_ranks + between_nodes);
        Cost {
            network_s: self.network_s(f64::from(rows)),
            memory_s: bytes / self.memory_bytes_per_s,
            launch_s: self.launch_s,
            bytes,
            ..Cost::default()
        }
    }

    /// Returns the time on the links when every rank starts from so many tokens, on average, in seconds.
    pub fn network_s(&self, rows: f64) -> f64 {
        let (between_ranks, between_nodes) = self.bytes(rows);
        let time = |link: &Option<LinkSpec>, bytes: f64| {
            link.as_ref()
                .map_or(0.0, |link| link.latency_s + bytes / (link.bandwidth_bytes_per_s * link.efficiency))
        };
        time(&self.node, between_ranks).max(time(&self.network, between_nodes))
    }

    /// Returns the features of a run over `rows` tokens, as in [`FEATURES`].
    pub fn features(&self, rows: u32) -> [f32; FEATURES.len()] {
        let shape = &self.shape;
        let (between_ranks, between_nodes) = self.bytes(f64::from(rows));
        [
            f64::from(rows),
            f64::from(shape.hidden),
            f64::from(shape.top_k),
            f64::from(shape.num_experts),
            f64::from(shape.ranks),
            f64::from(shape.nodes),
            shape.bytes_per_element,
            between_ranks,
            between_nodes,
        ]
        .map(|value| value as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fidelity::fixtures::{h100, nvlink};

    #[test]
    fn tokens_are_sent_once_per_rank_and_once_per_node() {
        let nic = LinkSpec { bandwidth_bytes_per_s: 50e9, latency_s: 0.0, efficiency: 1.0, direct: false };
        let shape = ExchangeShape {
            hidden: 7168,
            top_k: 8,
            num_experts: 256,
            ranks: 16,
            nodes: 2,
            bytes_per_element: 1.0,
        };
        let exchange = MoeExchange::new(&Device::new(&h100()), Some(nvlink()), Some(nic), &shape);
        let (between_ranks, between_nodes) = exchange.bytes(1.0);
        let visited = 15.0 * (1.0 - libm::pow(15.0 / 16.0, 8.0));
        assert!((between_ranks / (7168.0 * visited * 7.0 / 15.0) - 1.0).abs() < 1e-12);
        assert!((between_nodes / (7168.0 * (1.0 - libm::pow(0.5, 8.0))) - 1.0).abs() < 1e-12);
        let cost = exchange.cost(4096);
        assert!((cost.network_s / (4096.0 * between_nodes / 50e9) - 1.0).abs() < 1e-12);
    }
}

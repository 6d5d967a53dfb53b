use super::*;
use crate::network::bundle::{Bundle, merge_equal_links};
use crate::network::flows::FlowNetwork;
use crate::network::re_layout::{Layout, re_layout};
use crate::plan::network::{EfficiencySpec, LeafSpec, NicSpec, NvlinkSpec, PcieSpec, TrunkSpec};
use crate::time::SimTime;

/// Nodes of eight GPUs with `NVLink`, a PCI Express switch for two and a NIC for each.
fn hopper(nodes: u32) -> NodeGroupSpec {
    NodeGroupSpec {
        nodes,
        gpus_per_node: 8,
        nvlink: Some(NvlinkSpec { bytes_per_s: 450e9, nodes_per_domain: 1 }),
        pcie: Some(PcieSpec { bytes_per_s: 64e9, gpus_per_switch: 2 }),
        nic: Some(NicSpec { per_node: 8, bytes_per_s: 50e9 }),
        leaf: None,
    }
}

/// A group without any link of its own.
fn bare(gpus: u32) -> NodeGroupSpec {
    NodeGroupSpec { nodes: 1, gpus_per_node: gpus, nvlink: None, pcie: None, nic: None, leaf: None }
}

fn spec(groups: Vec<NodeGroupSpec>, trunks: Vec<TrunkSpec>) -> NetworkSpec {
    let efficiency = EfficiencySpec::Saturating { half_bytes: 0 };
    NetworkSpec { groups, trunks, intra_latency_ns: 2_000, inter_latency_ns: 5_000, efficiency }
}

fn topology(groups: Vec<NodeGroupSpec>, trunks: Vec<TrunkSpec>) -> Topology {
    Topology::new(&spec(groups, trunks)).unwrap()
}

fn route(topology: &Topology, from: u32, to: u32) -> (u64, Vec<LinkName>) {
    let mut links = Vec::new();
    let latency = topology.route(GpuId(from), GpuId(to), &mut links).unwrap();
    (latency, links.iter().map(|&link| topology.name(link)).collect())
}

fn nic(node: u32, rail: u32, up: bool) -> LinkName {
    LinkName::Nic { group: 0, node, rail, up }
}

fn leaf(pod: u32, rail: u32, up: bool) -> LinkName {
    LinkName::Leaf { group: 0, pod, rail, up }
}

fn pcie(node: u32, switch: u32, up: bool) -> LinkName {
    LinkName::Pcie { group: 0, node, switch, up }
}

fn port(gpu: u32, up: bool) -> LinkName {
    LinkName::Nvlink { gpu: GpuId(gpu), up }
}

#[test]
fn inside_a_node_nvlink_is_the_way_and_between_nodes_the_nic() {
    let topology = topology(vec![hopper(2)], vec![]);
    assert_eq!((topology.num_gpus(), topology.num_links()), (16, 2 * (16 + 8 + 16)));
    assert_eq!(route(&topology, 3, 3), (0, vec![]));
    assert_eq!(route(&topology, 3, 5), (2_000, vec![port(3, true), port(5, false)]));
    let path = vec![pcie(0, 1, true), nic(0, 3, true), nic(1, 5, false), pcie(1, 2, false)];
    assert_eq!(route(&topology, 3, 13), (5_000, path));
    let found = topology.links_of(GpuId(13)).unwrap();
    let names: Vec<LinkName> = found.iter().map(|&link| topology.name(link)).collect();
    assert_eq!(names[..3], [port(13, true), pcie(1, 2, true), nic(1, 5, true)]);
    assert_eq!(names[3..], [port(13, false), pcie(1, 2, false), nic(1, 5, false)]);
    assert!((0..80).all(|link| topology.find(topology.name(LinkId(link))) == Some(LinkId(link))));
    let mut links = Vec::new();
    assert!(topology.route(GpuId(0), GpuId(16), &mut links).is_err());
}

#[test]
fn without_nvlink_a_node_goes_over_pcie_and_gpus_share_nics() {
    let mut group = hopper(2);
    (group.nvlink, group.nic) = (None, Some(NicSpec { per_node: 2, bytes_per_s: 25e9 }));
    let topology = topology(vec![group], vec![]);
    assert_eq!(route(&topology, 0, 7), (2_000, vec![pcie(0, 0, true), pcie(0, 3, false)]));
    let path = vec![pcie(0, 1, true), nic(0, 0, true), nic(1, 1, false), pcie(1, 2, false)];
    assert_eq!(route(&topology, 3, 12), (5_000, path));
}

#[test]
fn an_nvlink_domain_may_span_nodes() {
    let mut group = hopper(36);
    group.gpus_per_node = 4;
    group.nvlink = Some(NvlinkSpec { bytes_per_s: 900e9, nodes_per_domain: 18 });
    (group.pcie, group.nic) = (None, Some(NicSpec { per_node: 4, bytes_per_s: 50e9 }));
    let topology = topology(vec![group], vec![]);
    assert_eq!(route(&topology, 0, 71), (2_000, vec![port(0, true), port(71, false)]));
    assert_eq!(route(&topology, 0, 73), (5_000, vec![nic(0, 0, true), nic(18, 1, false)]));
}

#[test]
fn other_rails_and_other_pods_are_reached_over_the_spine() {
    let mut group = hopper(5);
    group.pcie = None;
    group.leaf = Some(LeafSpec { nodes_per_pod: 2, rail_optimised: true, oversubscription: 2.0 });
    let rails = topology(vec![group.clone()], vec![]);
    assert_eq!(route(&rails, 1, 9).1, [nic(0, 1, true), nic(1, 1, false)]);
    let path = [nic(0, 1, true), leaf(0, 1, true), leaf(0, 2, false), nic(1, 2, false)];
    assert_eq!(route(&rails, 1, 10).1, path);
    let path = [nic(0, 1, true), leaf(0, 1, true), leaf(2, 1, false), nic(4, 1, false)];
    assert_eq!(route(&rails, 1, 33).1, path);
    let bandwidth = |topology: &Topology, name| topology.bytes_per_s()[topology.find(name).unwrap().index()];
    // Two nodes' NICs of a rail by two; the last pod has one node.
    assert_eq!((bandwidth(&rails, leaf(0, 1, true)), bandwidth(&rails, leaf(2, 7, false))), (50e9, 25e9));

    group.leaf = Some(LeafSpec { nodes_per_pod: 2, rail_optimised: false, oversubscription: 4.0 });
    let fabric = topology(vec![group], vec![]);
    assert_eq!(route(&fabric, 1, 10).1, [nic(0, 1, true), nic(1, 2, false)]);
    let path = [nic(0, 1, true), leaf(0, 0, true), leaf(2, 0, false), nic(4, 1, false)];
    assert_eq!(route(&fabric, 1, 33).1, path);
    assert_eq!(bandwidth(&fabric, leaf(0, 0, true)).to_bits(), 200e9_f64.to_bits());
}

#[test]
fn an_oversubscribed_leaf_is_shared_by_its_nodes() {
    let mut group = hopper(4);
    group.pcie = None;
    group.leaf = Some(LeafSpec { nodes_per_pod: 2, rail_optimised: false, oversubscription: 4.0 });
    let topology = topology(vec![group], vec![]);
    let mut network = FlowNetwork::new(topology.bytes_per_s()).unwrap();
    let mut rates = Vec::new();
    for (from, to) in (0..16).map(|gpu| (gpu, gpu + 16)).chain([(16, 24)]) {
        let mut links = Vec::new();
        topology.route(GpuId(from), GpuId(to), &mut links).unwrap();
        let bundle = Bundle::new(1, links.iter().map(|&link| (link, 1)).collect(), 1, 0).unwrap();
        rates.push(network.start(SimTime::ZERO, &bundle, 1 << 30, None, 0).unwrap());
    }
    let rates: Vec<f64> = rates.iter().map(|&flow| network.rate(flow).unwrap()).collect();
    // 16 flows over 200 GB/s of uplinks; the one inside the other pod shares its receiver's NIC with one of them.
    assert!(rates[..16].iter().all(|&rate| (rate - 12.5e9).abs() < 1.0), "{rates:?}");
    assert!((rates[16] - 37.5e9).abs() < 1.0, "{rates:?}");
}

#[test]
fn two_clusters_are_joined_by_one_trunk() {
    let trunk = TrunkSpec { from: 0, to: 1, bytes_per_s: 12.5e9, latency_ns: 100_000 };
    let topology = topology(vec![bare(8), bare(4)], vec![trunk]);
    assert_eq!(topology.num_links(), 1);
    assert_eq!(route(&topology, 5, 9), (105_000, vec![LinkName::Trunk { index: 0 }]));
    let mut links = Vec::new();
    for (from, to) in [(9, 5), (0, 1)] {
        let error = topology.route(GpuId(from), GpuId(to), &mut links).unwrap_err().to_string();
        assert!(error.contains("no way from GPU"), "{error}");
    }
}

#[test]
fn groups_differ_and_hang_on_one_spine() {
    let mut slow = hopper(1);
    slow.nic = Some(NicSpec { per_node: 1, bytes_per_s: 12.5e9 });
    let topology = topology(vec![hopper(1), slow], vec![]);
    let (_, path) = route(&topology, 2, 8 + 7);
    let other = |up| LinkName::Nic { group: 1, node: 0, rail: 0, up };
    let bus = LinkName::Pcie { group: 1, node: 0, switch: 3, up: false };
    assert_eq!(path, [pcie(0, 1, true), nic(0, 2, true), other(false), bus]);
}

fn gpus(range: std::ops::Range<u32>) -> Vec<GpuId> {
    range.map(GpuId).collect()
}

#[test]
fn a_transfer_between_replicas_is_a_bundle_over_their_nics() {
    let mut group = hopper(2);
    group.pcie = None;
    let topology = topology(vec![group], vec![]);
    let one_stage = |ranks| Layout { tensor_parallel_size: ranks, layers_per_stage: vec![10] };
    // Two ranks send to four: every sender's NIC carries a half, every receiver's a quarter.
    let (whole, pieces) = re_layout(&one_stage(2), &one_stage(4), 8).unwrap();
    let bundle = Bundle::of_pieces(&topology, (&gpus(0..2), &gpus(8..12)), whole, &pieces).unwrap();
    let found: Vec<(LinkName, f64)> = bundle
        .parts()
        .iter()
        .map(|&(link, parts)| (topology.name(link), f64::from(parts) / f64::from(bundle.whole())))
        .collect();
    let mut expected: Vec<(LinkName, f64)> = (0..2).map(|rail| (nic(0, rail, true), 0.5)).collect();
    expected.extend((0..4).map(|rail| (nic(1, rail, false), 0.25)));
    assert_eq!(found, expected);
    assert_eq!((bundle.streams(), bundle.latency_ns()), (4, 5_000));
    assert_eq!(bundle.line_rate(&topology), Some(100e9));
    // MLA: every one of eight receivers takes the whole, each sender sends twice.
    let (whole, pieces) = re_layout(&one_stage(4), &one_stage(8), 1).unwrap();
    let bundle = Bundle::of_pieces(&topology, (&gpus(0..4), &gpus(8..16)), whole, &pieces).unwrap();
    assert_eq!((bundle.line_rate(&topology), bundle.streams()), (Some(25e9), 8));
    let half = EfficiencySpec::Saturating { half_bytes: 1 << 20 };
    assert_eq!(bundle.message_rate(&topology, &half, 1 << 20), Some(12.5e9));
    assert_eq!(bundle.message_rate(&topology, &EfficiencySpec::Saturating { half_bytes: 0 }, 1), None);
    assert!(Bundle::of_pieces(&topology, (&gpus(0..3), &gpus(8..16)), whole, &pieces).is_err());
}

#[test]
fn links_that_are_loaded_alike_are_one() {
    let topology = topology(vec![hopper(4)], vec![]);
    let layout = Layout { tensor_parallel_size: 8, layers_per_stage: vec![10] };
    let (whole, pieces) = re_layout(&layout, &layout, 8).unwrap();
    let between = |from: u32, to: u32| {
        let ends = (&gpus(8 * from..8 * from + 8)[..], &gpus(8 * to..8 * to + 8)[..]);
        Bundle::of_pieces(&topology, ends, whole, &pieces).unwrap()
    };
    let all: Vec<Bundle> = [(0, 2), (0, 3), (1, 2), (1, 3)].map(|(from, to)| between(from, to)).into();
    let (mut merged, mut kept) = (all.clone(), all.clone());
    // A PCIe switch of 64 GB/s carries two eighths, a NIC of 50 one: per replica one switch stays, and a NIC that may
    // fail.
    assert_eq!(merge_equal_links(&mut merged, &topology, &[]), 4);
    assert!(merged[0].parts().iter().all(|&(link, _)| matches!(topology.name(link), LinkName::Pcie { .. })));
    let watched = topology.find(nic(0, 5, true)).unwrap();
    assert_eq!(merge_equal_links(&mut kept, &topology, &[watched]), 5);
    let run = |bundles: &[Bundle]| {
        let mut network = FlowNetwork::new(topology.bytes_per_s()).unwrap();
        let mut ended = Vec::new();
        for (tag, at) in (0..).zip([0, 1, 2, 3, 0, 0, 1]) {
            let now = SimTime(1_000_000 * (tag / 2));
            network.advance(now, &mut ended).unwrap();
            network.start(now, &bundles[at], 1_000_000_007 * (tag % 3 + 1), None, tag).unwrap();
        }
        network.advance(SimTime(1 << 50), &mut ended).unwrap();
        ended.iter().map(|flow| (flow.end.0, flow.tag)).collect::<Vec<_>>()
    };
    let expected = run(&all);
    assert_eq!(expected.len(), 7);
    assert_eq!((run(&merged), run(&kept)), (expected.clone(), expected));
}

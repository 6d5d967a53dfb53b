//! What flows cost: one end and one start with so many others under way. Paid once per transfer of a simulation.

use criterion::{Criterion, criterion_group, criterion_main};
use frontier_core::network::{
    Bundle, Ended, FlowNetwork, GpuId, Layout, LinkId, Topology, merge_equal_links, re_layout,
};
use frontier_core::plan::network::{
    EfficiencySpec, LeafSpec, NetworkSpec, NicSpec, NodeGroupSpec, NvlinkSpec,
};
use frontier_core::time::SimTime;

/// A number of flows, each of which is followed by another when it ends.
struct Loop<'a> {
    network: FlowNetwork,
    bundles: &'a [Bundle],
    ended: Vec<Ended>,
    state: u64,
}

impl<'a> Loop<'a> {
    fn new(bytes_per_s: &[f64], bundles: &'a [Bundle], flows: usize) -> Self {
        let network = FlowNetwork::new(bytes_per_s).expect("bandwidths");
        let mut this = Self { network, bundles, ended: Vec::new(), state: 1 };
        for _ in 0..flows {
            this.start(SimTime::ZERO);
        }
        this
    }

    fn draw(&mut self) -> u64 {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.state >> 33
    }

    fn start(&mut self, now: SimTime) {
        let at = self.draw() as usize % self.bundles.len();
        let bytes = 100_000_000 + self.draw() % 400_000_000;
        self.network.start(now, &self.bundles[at], bytes, None, 0).expect("a flow starts");
    }

    /// Returns the end, so that nobody leaves the work away.
    fn turn(&mut self) -> SimTime {
        let end = self.network.next_end().expect("flows go on for ever");
        self.ended.clear();
        self.network.advance(end, &mut self.ended).expect("time moves on");
        for _ in 0..self.ended.len() {
            self.start(end);
        }
        end
    }
}

fn one_link(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flow start+end, one link");
    let bundles = [Bundle::new(1, vec![(LinkId(0), 1)], 1, 0).expect("a bundle")];
    for flows in [1, 10, 100, 1_000] {
        let mut turns = Loop::new(&[12.5e9], &bundles, flows);
        group.bench_function(format!("{flows} under way"), |bencher| bencher.iter(|| turns.turn()));
    }
    group.finish();
}

/// 64 prefill and 64 decode replicas of eight GPUs, any to any.
fn bipartite(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flow start+end, 64 x 64 replicas of 8 GPUs");
    for (name, oversubscription, merge) in [
        ("NICs", None, false),
        ("NICs, merged", None, true),
        ("NICs and rails of pods of 16 by 2, merged", Some(2.0), true),
    ] {
        let nodes = NodeGroupSpec {
            nodes: 128,
            gpus_per_node: 8,
            nvlink: Some(NvlinkSpec { bytes_per_s: 450e9, nodes_per_domain: 1 }),
            pcie: None,
            nic: Some(NicSpec { per_node: 8, bytes_per_s: 50e9 }),
            leaf: oversubscription.map(|oversubscription| LeafSpec {
                nodes_per_pod: 16,
                rail_optimised: true,
                oversubscription,
            }),
        };
        let efficiency = EfficiencySpec::Saturating { half_bytes: 0 };
        let spec = NetworkSpec {
            groups: vec![nodes],
            trunks: Vec::new(),
            intra_latency_ns: 0,
            inter_latency_ns: 0,
            efficiency,
        };
        let topology = Topology::new(&spec).expect("a network");
        let layout = Layout { tensor_parallel_size: 8, layers_per_stage: vec![80] };
        let (whole, pieces) = re_layout(&layout, &layout, 8).expect("equal layouts");
        let replica = |number: u32| (8 * number..8 * number + 8).map(GpuId).collect::<Vec<_>>();
        let mut bundles: Vec<Bundle> = (0..64 * 64)
            .map(|at| {
                let ends = (&replica(at / 64)[..], &replica(64 + at % 64)[..]);
                Bundle::of_pieces(&topology, ends, whole, &pieces).expect("a route")
            })
            .collect();
        if merge {
            merge_equal_links(&mut bundles, &topology, &[]);
        }
        for flows in [10, 50, 100, 300] {
            let mut turns = Loop::new(topology.bytes_per_s(), &bundles, flows);
            group.bench_function(format!("{name}, {flows} under way"), |bencher| {
                bencher.iter(|| turns.turn());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, one_link, bipartite);
criterion_main!(benches);

//! KV over the shared links of a network: which bundle of streams a hand-over is, and when its flows end.

use rustc_hash::FxHashMap;

use crate::error::SimError;
use crate::ids::{ReplicaId, RequestId};
use crate::network::{Bundle, Ended, FlowId, FlowNetwork, GpuId, Layout, Topology, re_layout};
use crate::plan::network::EfficiencySpec;
use crate::plan::{NetworkSpec, PlacementSpec, Plan};
use crate::time::{SimDuration, SimTime};

/// The network of a run.
#[derive(Debug)]
pub(super) struct Transport {
    topology: Topology,
    efficiency: EfficiencySpec,
    flows: FlowNetwork,
    placements: Vec<Option<PlacementSpec>>,
    /// First engine of each cluster.
    first: Vec<u32>,
    /// Layers whose KV the engines of each cluster hold.
    num_layers: Vec<u32>,
    bundles: FxHashMap<(ReplicaId, ReplicaId), Bundle>,
    /// The moment for which the run is told to look at the flows.
    armed: Option<SimTime>,
    /// Something changed at this instant, and rates are to be settled at its end.
    unsettled: bool,
    ended: Vec<Ended>,
}

impl Transport {
    /// Returns an idle network between the clusters of a plan, whose first engines are `first`.
    ///
    /// # Errors
    /// [`SimError::Plan`] for GPUs that do not exist, [`SimError::Input`] for layouts that do not fit together.
    pub(super) fn new(spec: &NetworkSpec, plan: &Plan, first: Vec<u32>) -> Result<Self, SimError> {
        let topology = Topology::new(spec)?;
        let clusters = &plan.clusters;
        let mut num_layers = vec![1; clusters.len()];
        for path in &plan.paths {
            let Some(handover) = path.handover() else { continue };
            for &cluster in path.legs.iter().flat_map(|leg| &leg.clusters) {
                num_layers[cluster as usize] = handover.num_layers;
            }
        }
        for (number, cluster) in clusters.iter().enumerate() {
            let engines = u64::from(cluster.replicas)
                * u64::from(cluster.data_parallel.as_ref().map_or(1, |ranks| ranks.size));
            let Some(placement) = &cluster.placement else { continue };
            let last = u64::from(placement.first_gpu) + engines * u64::from(placement.gpus_per_engine);
            if last > u64::from(topology.num_gpus()) {
                return Err(SimError::Plan {
                    path: format!("clusters[{number}].placement"),
                    message: format!("reached GPU {last}, the network has {}", topology.num_gpus()),
                });
            }
        }
        Ok(Self {
            flows: FlowNetwork::new(topology.bytes_per_s())?,
            efficiency: spec.efficiency.clone(),
            topology,
            placements: clusters.iter().map(|cluster| cluster.placement.clone()).collect(),
            first,
            num_layers,
            bundles: FxHashMap::default(),
            armed: None,
            unsettled: false,
            ended: Vec::new(),
        })
    }

    /// Starts to move `bytes` of a request's KV from one engine to another.
    ///
    /// # Errors
    /// [`SimError::Plan`] for clusters without a placement, [`SimError::Input`] without a route.
    pub(super) fn start(
        &mut self,
        now: SimTime,
        request: RequestId,
        (source, target): (ReplicaId, ReplicaId),
        bytes: u64,
    ) -> Result<FlowId, SimError> {
        if !self.bundles.contains_key(&(source, target)) {
            let bundle = self.bundle(source, target)?;
            self.bundles.insert((source, target), bundle);
        }
        let bundle = &self.bundles[&(source, target)];
        let message = bytes / u64::from(bundle.streams());
        let ceiling = bundle.message_rate(&self.topology, &self.efficiency, message);
        self.flows.start(now, bundle, bytes, ceiling, u64::from(request.0))
    }

    /// Returns the requests of which a piece has left by `now`, each with when the piece is there.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`].
    pub(super) fn advance(
        &mut self,
        now: SimTime,
        pairs: impl Fn(RequestId) -> (ReplicaId, ReplicaId),
    ) -> Result<Vec<(RequestId, SimTime)>, SimError> {
        if self.armed == Some(now) {
            self.armed = None;
        }
        self.ended.clear();
        self.flows.advance(now, &mut self.ended)?;
        let mut there = Vec::with_capacity(self.ended.len());
        for ended in &self.ended {
            let request = RequestId(ended.tag as u32);
            let latency = self.bundles.get(&pairs(request)).map_or(0, Bundle::latency_ns);
            there.push((request, ended.end.after(SimDuration(latency))?));
        }
        Ok(there)
    }

    /// Notes that something changed. Returns whether it is the first change of this instant.
    pub(super) fn changes(&mut self) -> bool {
        !std::mem::replace(&mut self.unsettled, true)
    }

    /// Returns when to look at the flows next, if that is new.
    pub(super) fn arm(&mut self) -> Option<SimTime> {
        self.unsettled = false;
        let next = self.flows.next_end()?;
        if self.armed.is_some_and(|armed| armed <= next) {
            return None;
        }
        self.armed = Some(next);
        self.armed
    }

    /// Stops a flow, if it is under way.
    ///
    /// # Errors
    /// [`SimError::Invariant`] if ends before `now` were not taken.
    pub(super) fn cancel(&mut self, now: SimTime, flow: FlowId) -> Result<(), SimError> {
        self.flows.cancel(now, flow).map(drop)
    }

    /// Gives all links of the GPUs of some engines a share of their bandwidth.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(super) fn scale_links(
        &mut self,
        now: SimTime,
        engines: &[ReplicaId],
        factor: f64,
    ) -> Result<(), SimError> {
        for &engine in engines {
            for gpu in self.layout(engine)?.1 {
                for link in self.topology.links_of(gpu)? {
                    self.flows.set_capacity(now, link, factor)?;
                }
            }
        }
        Ok(())
    }

    fn bundle(&self, source: ReplicaId, target: ReplicaId) -> Result<Bundle, SimError> {
        let (from, from_gpus) = self.layout(source)?;
        let (to, to_gpus) = self.layout(target)?;
        let (whole, pieces) = re_layout(&from.0, &to.0, from.1)?;
        Bundle::of_pieces(&self.topology, (&from_gpus, &to_gpus), whole, &pieces)
    }

    /// Returns how an engine spreads its KV, over how many heads, and its GPUs.
    fn layout(&self, engine: ReplicaId) -> Result<((Layout, u32), Vec<GpuId>), SimError> {
        let cluster = self.first.partition_point(|&first| first <= engine.0) - 1;
        let Some(placement) = &self.placements[cluster] else {
            return Err(SimError::Plan {
                path: format!("clusters[{cluster}].placement"),
                message: "is missing, transfers over the network need one".into(),
            });
        };
        let stages = placement.pipeline_parallel_size;
        let num_layers = self.num_layers[cluster];
        let layers = |stage| num_layers / stages + u32::from(stage < num_layers % stages);
        let layout = Layout {
            tensor_parallel_size: placement.tensor_parallel_size,
            layers_per_stage: (0..stages).map(layers).collect(),
        };
        let base = placement.first_gpu + (engine.0 - self.first[cluster]) * placement.gpus_per_engine;
        let gpus = (base..base + placement.tensor_parallel_size * stages).map(GpuId).collect();
        Ok(((layout, placement.kv_heads), gpus))
    }
}

//! The plan: the immutable document that a run is made of, as Python hands it over in JSON.
//!
//! It mirrors a validated scenario after lowering: no presets, no units, no defaults that Python does not
//! know. Unknown fields are refused. Times are integer nanoseconds where they are part of the input and
//! `f64` seconds where they are parameters of a cost formula.

use serde::Deserialize;

use crate::error::SimError;

pub mod baseline;
pub mod data_parallel;
pub mod dynamics;
pub mod frontend;
pub mod kv_tiers;
pub mod network;
pub mod path;
pub mod policy;
pub mod scheduler;
pub mod sglang;
pub mod speculative;
pub mod step_time;
pub mod vllm_rules;
pub mod workload;

pub use data_parallel::{BalancerSpec, DataParallelSpec, LockStepSpec, RankScore};
pub use dynamics::{
    AdmissionClass, AdmissionSpec, AutoscaleSpec, Change, ChangeSpec, DynamicsSpec, LostPolicy, ScaleMetric,
};
pub use frontend::FrontendSpec;
pub use kv_tiers::KvTiersSpec;
pub use network::NetworkSpec;
pub use path::{
    BalanceSpec, DirectSpec, EncodeSpec, FirstToken, Granularity, HandoverMode, HandoverSpec, LegSpec,
    PathSpec, TransportSpec,
};
pub use policy::Policy;
pub use scheduler::{SchedulerConfig, SchedulerSpec};
pub use sglang::{DisaggregationSpec, RadixEvictionPolicy, SchedulePolicy, SglangConfig};
pub use speculative::{AcceptanceSpec, DraftLengthSpec, DraftMethod, SpeculativeSpec};
pub use step_time::StepTimeSpec;
pub use vllm_rules::Rules;
pub use workload::WorkloadSpec;

/// Version of this schema; a plan of another version is refused.
pub const SCHEMA_VERSION: u32 = 2;

/// Everything that a run depends on, except the columns of a trace.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Must equal [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Seed of all random streams.
    pub seed: u64,
    /// Replication number: another independent set of streams for the same seed.
    pub replication: u64,
    /// The clusters that serve; engines are numbered through all of them, in this order.
    pub clusters: Vec<ClusterSpec>,
    /// The ways of requests through them, one per model that is served; none: the first cluster serves all.
    #[serde(default)]
    pub paths: Vec<PathSpec>,
    /// The links between GPUs, where transfers share them.
    pub network: Option<NetworkSpec>,
    /// Who is let in, and how long clients wait; `None`: everybody, for ever.
    pub admission: Option<AdmissionSpec>,
    /// What changes while the run goes on.
    pub dynamics: Option<DynamicsSpec>,
    /// Where requests come from.
    pub workload: WorkloadSpec,
    /// What to record.
    pub output: OutputSpec,
    /// When to stop early.
    pub limits: LimitSpec,
}

/// A cluster of equal replicas.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSpec {
    /// Its name in errors and results.
    pub name: String,
    /// Number of engine instances, at least 1.
    pub replicas: u32,
    /// How many of them are in service at the start, the first ones; `None`: all. Others are a reserve for changes.
    pub in_service: Option<u32>,
    /// How requests are spread over them.
    pub router: RouterSpec,
    /// Data-parallel ranks of every replica; `None` where a replica is one engine.
    pub data_parallel: Option<DataParallelSpec>,
    /// The engine's scheduler, equal on all replicas and ranks.
    pub scheduler: SchedulerSpec,
    /// Tiers of KV blocks below the device, if any.
    pub kv_tiers: Option<KvTiersSpec>,
    /// How long a step takes.
    pub step_time: StepTimeSpec,
    /// The API servers; `None`: requests reach the engine, and tokens the client, at once.
    pub frontend: Option<FrontendSpec>,
    /// Where its GPUs are in the network, if transfers of its requests pass it.
    pub placement: Option<PlacementSpec>,
}

/// The GPUs of a cluster in the network: engine `i` has `gpus_per_engine` consecutive ones.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacementSpec {
    /// The first GPU of its first engine.
    pub first_gpu: u32,
    /// GPUs of an engine: at least those that hold KV, which come first.
    pub gpus_per_engine: u32,
    /// GPUs that share the heads of every layer.
    pub tensor_parallel_size: u32,
    /// Stages of layers.
    pub pipeline_parallel_size: u32,
    /// KV heads of the model; 1 for a latent cache.
    pub kv_heads: u32,
}

impl PlacementSpec {
    fn check(&self) -> Result<(), SimError> {
        for (field, value) in [
            ("tensor_parallel_size", self.tensor_parallel_size),
            ("pipeline_parallel_size", self.pipeline_parallel_size),
            ("kv_heads", self.kv_heads),
        ] {
            if value == 0 {
                return refuse(&format!("placement.{field}"), "was 0, must be at least 1".into());
            }
        }
        let needed = u64::from(self.tensor_parallel_size) * u64::from(self.pipeline_parallel_size);
        if needed > u64::from(self.gpus_per_engine) {
            let message = format!("was {}, must be at least {needed}", self.gpus_per_engine);
            return refuse("placement.gpus_per_engine", message);
        }
        Ok(())
    }
}

impl ClusterSpec {
    fn can_lose_requests(&self) -> bool {
        match &self.scheduler {
            SchedulerSpec::VllmV1(_) => true,
            SchedulerSpec::Sglang(config) => config.disaggregation.is_some(),
            SchedulerSpec::Baseline(_) => false,
        }
    }

    fn check(&self) -> Result<(), SimError> {
        if self.replicas == 0 {
            return refuse("replicas", "was 0, must be at least 1".into());
        }
        if self.in_service.is_some_and(|count| count > self.replicas) {
            return refuse("in_service", format!("was more than the {} replicas", self.replicas));
        }
        if let Some(ranks) = &self.data_parallel {
            ranks.check()?;
        }
        self.scheduler.check()?;
        if let Some(placement) = &self.placement {
            placement.check()?;
        }
        if let Some(frontend) = &self.frontend {
            frontend.check()?;
        }
        if let Some(tiers) = &self.kv_tiers {
            tiers.check(&self.scheduler)?;
            if self.data_parallel.is_some() {
                return refuse(
                    "kv_tiers",
                    "needs no data_parallel: tiers of its ranks are not modelled".into(),
                );
            }
        }
        self.step_time.check()
    }
}

/// Routing policies over replicas. Ties go to the lowest replica number unless said otherwise.
///
/// Policies without settings are empty structs: serde does not refuse unknown fields of unit variants.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "policy", rename_all = "snake_case", deny_unknown_fields)]
pub enum RouterSpec {
    /// Replica 0, 1, 2, ... in turn.
    RoundRobin {},
    /// Uniformly at random.
    Random {},
    /// Fewest running and waiting requests.
    LeastOutstanding {},
    /// The less loaded (running and waiting) of two distinct replicas drawn at random.
    PowerOfTwo {},
    /// Lowest share of KV blocks in use, then fewest outstanding.
    LeastKvUse {},
    /// Longest cached prefix among replicas whose outstanding requests exceed the least loaded one's by at
    /// most `max_imbalance`; ties by fewest outstanding.
    PrefixAware {
        /// Outstanding requests that a cache hit may cost at most.
        max_imbalance: u32,
    },
    /// The first request of a session goes to the least loaded replica, later ones to the same.
    SessionSticky {},
}

/// What to record beside the request columns.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// Keep one wide row per engine step.
    pub steps: bool,
    /// Interval of the time line, at least 1 ns.
    pub timeline_interval_ns: u64,
    /// Write the scheduler's decision log (JSON lines in the golden format), block ids included on demand.
    pub decision_log: Option<DecisionLogSpec>,
}

/// Shape of the decision log.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionLogSpec {
    /// Include newly appended physical block ids.
    pub block_ids: bool,
}

/// Early stops and admission.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitSpec {
    /// Stop once a replica has made this many non-empty steps (for replays: what is in flight then stays so).
    pub max_steps: Option<u64>,
    /// Refuse requests that can never fit, and report a deadlock when nothing more can happen to those admitted, or
    /// what the real engine does wrong (true for simulations; false for replays of real engines' logs, whose hangs
    /// and failures are an outcome).
    pub refuse_oversized: bool,
    /// Report a livelock after this many steps of a replica without progress; `None` never does.
    pub livelock_steps: Option<u64>,
}

impl Plan {
    /// Reads a plan from its JSON form.
    ///
    /// # Errors
    /// [`SimError::Plan`] with the path of the first offending field.
    pub fn from_json(json: &str) -> Result<Self, SimError> {
        let mut reader = serde_json::Deserializer::from_str(json);
        let plan: Self = serde_path_to_error::deserialize(&mut reader).map_err(|error| SimError::Plan {
            path: error.path().to_string(),
            message: error.inner().to_string(),
        })?;
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> Result<(), SimError> {
        if self.schema_version != SCHEMA_VERSION {
            return refuse(
                "schema_version",
                format!("was {}, this build reads {SCHEMA_VERSION}", self.schema_version),
            );
        }
        if self.output.timeline_interval_ns == 0 {
            return refuse("output.timeline_interval_ns", "was 0, must be at least 1".into());
        }
        if self.clusters.is_empty() {
            return refuse("clusters", "was empty, must have at least one".into());
        }
        for (number, cluster) in self.clusters.iter().enumerate() {
            cluster.check().map_err(|error| error.below(&format!("clusters[{number}]")))?;
        }
        if let Some(network) = &self.network {
            network.check()?;
        }
        let replicas: Vec<u32> = self.clusters.iter().map(|cluster| cluster.replicas).collect();
        if let Some(admission) = &self.admission {
            admission.check().map_err(|error| error.below("admission"))?;
        }
        if let Some(dynamics) = &self.dynamics {
            let in_reserve =
                |cluster: &ClusterSpec| cluster.in_service.is_some_and(|count| count < cluster.replicas);
            let reserves: Vec<bool> = self.clusters.iter().map(in_reserve).collect();
            let has_network = self.network.is_some();
            dynamics.check(&replicas, &reserves, has_network).map_err(|error| error.below("dynamics"))?;
            if self.paths.iter().filter_map(PathSpec::handover).any(HandoverSpec::is_serial) {
                return refuse(
                    "dynamics",
                    "needs a transport other than 'serial', which never gives up its turn".into(),
                );
            }
        }
        let aborts = self.dynamics.is_some() || self.admission.is_some();
        if let Some(number) = self.clusters.iter().position(|cluster| aborts && !cluster.can_lose_requests())
        {
            let message = "requests can leave before their end only under vLLM's scheduler, or where SGLang hands KV over";
            return refuse(&format!("clusters[{number}].scheduler.kind"), message.into());
        }
        let has_part = |cluster: &ClusterSpec| matches!(&cluster.scheduler, SchedulerSpec::Sglang(config) if config.disaggregation.is_some());
        if let Some(number) = self.clusters.iter().position(has_part).filter(|_| self.paths.is_empty()) {
            let message = "was given, but no KV is handed over";
            return refuse(&format!("clusters[{number}].scheduler.disaggregation"), message.into());
        }
        let mut taken = vec![false; self.clusters.len()];
        for (number, path) in self.paths.iter().enumerate() {
            let checked = path.check(&self.clusters, &mut taken, self.network.is_some());
            checked.map_err(|error| error.below(&format!("paths[{number}]")))?;
        }
        Ok(())
    }
}

fn refuse(path: &str, message: String) -> Result<(), SimError> {
    Err(SimError::Plan { path: path.into(), message })
}

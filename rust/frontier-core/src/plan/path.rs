//! The way of a request through clusters: a small program over them, so that a new architecture is data.

use serde::Deserialize;

use super::{ClusterSpec, DisaggregationSpec, SchedulerSpec};
use crate::error::SimError;

/// Legs that a request takes one after the other, and what makes it leave them out.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathSpec {
    /// At least one; the last makes the output.
    pub legs: Vec<LegSpec>,
    /// Which requests go to a later leg at once, if any do.
    pub direct: Option<DirectSpec>,
}

/// One leg: who takes it, and what is done there.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LegSpec {
    /// The clusters of this role, by number; several of them are a heterogeneous pool.
    pub clusters: Vec<u32>,
    /// The share of requests of each, or the load it can carry: positive, one per cluster.
    pub weights: Vec<f64>,
    /// How one of several clusters is chosen; its own router then picks the replica.
    pub balance: BalanceSpec,
    /// What is done.
    pub work: Work,
    /// How the KV of the prompt comes from the leg before; none on the first.
    pub receives: Option<HandoverSpec>,
}

/// How a leg's requests are spread over its clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BalanceSpec {
    /// In proportion to weights, as evenly over time as possible (smooth weighted round robin).
    Weighted,
    /// Fewest requests under way per weight, the first of equals.
    LeastLoaded,
}

/// What a leg does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Computes the prompt, makes one token that nobody gets, and keeps the KV until the next leg has it.
    Prefill,
    /// Makes all output tokens.
    All,
}

/// How KV goes from one leg to the next.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandoverSpec {
    /// Who starts it, and what has to be there before.
    pub mode: HandoverMode,
    /// What is moved at a time.
    pub granularity: Granularity,
    /// What becomes of the token that the prefill makes.
    pub first_token: FirstToken,
    /// From the end of a leg to the request's arrival at the next: the proxy between them.
    pub proxy_latency_ns: u64,
    /// Before the first byte of every transfer.
    pub latency_ns: u64,
    /// Bytes of one KV block, over all GPUs of a replica and all layers.
    pub bytes_per_block: u64,
    /// Bytes beside the blocks of every request (states of linear attention).
    pub fixed_bytes: u64,
    /// Layers that hold KV; transfers layer by layer follow them.
    pub num_layers: u32,
    /// What the bytes pass through.
    pub transport: TransportSpec,
}

/// Who starts a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandoverMode {
    /// The destination reads once it has blocks (vLLM's NIXL connector): it hears of a request when the source is done
    /// with it, and the source keeps its blocks until they are read.
    Pull,
    /// The destination takes blocks first, then the source starts to compute, and sends: the order of `SGLang` and
    /// Mooncake.
    Push,
    /// The source sends when it is done, into memory of the destination beside its KV cache (vLLM's P2P NCCL
    /// connector); the destination hears of the request when its KV is there, and has it at once when it admits it.
    Buffer,
    /// The source writes to a pool and is free; the destination reads from there once it has blocks.
    Store,
}

/// What becomes of the token that a prefill makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstToken {
    /// It is nobody's: the next leg computes the last prompt token once more and makes all output tokens (vLLM).
    Recomputed,
    /// It goes with the KV, and the next leg gives it to the client: the first of its output tokens (`SGLang`).
    Carried,
}

/// What is moved at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// A whole prompt, when it is computed.
    Request,
    /// Every chunk of a prompt, when it is computed.
    Chunk,
    /// Every chunk layer by layer, while later layers are computed.
    Layer,
}

/// What bytes pass through on their way.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TransportSpec {
    /// One link for all, one transfer after the other, block by block.
    Serial {
        /// Time of one block.
        ns_per_block: u64,
    },
    /// A link of its own for every transfer.
    Dedicated {
        /// Its bandwidth.
        bytes_per_s: f64,
    },
    /// The plan's network, whose links are shared.
    Network {},
}

/// Conditional disaggregation: who skips the legs before `leg`, which then does all of their work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectSpec {
    /// Where they go.
    pub leg: u32,
    /// Requests with at most so many prompt tokens that the engine there has not cached.
    pub max_uncached_tokens: Option<u32>,
    /// Requests that arrive while more prompt tokens than this wait or are computed on the first leg.
    pub deflect_above_tokens: Option<u64>,
}

impl PathSpec {
    /// Returns the layers that hold KV, where KV is handed over.
    pub fn num_layers(&self) -> Option<u32> {
        self.legs.iter().find_map(|leg| leg.receives.as_ref()).map(|handover| handover.num_layers)
    }

    /// Checks a path over `num_clusters` clusters.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming the first value that is not allowed.
    pub(super) fn check(&self, clusters: &[ClusterSpec], has_network: bool) -> Result<(), SimError> {
        let num_clusters = clusters.len();
        let refuse = |path: String, message: String| Err(SimError::Plan { path, message });
        let Some(last) = self.legs.len().checked_sub(1) else {
            return refuse("legs".into(), "was empty, must have at least one".into());
        };
        self.check_engines(clusters)?;
        let mut served = vec![false; num_clusters];
        for (number, leg) in self.legs.iter().enumerate() {
            let at = |field: &str| format!("legs[{number}].{field}");
            if leg.clusters.is_empty() || leg.weights.len() != leg.clusters.len() {
                let message = format!("had {} clusters, {} weights", leg.clusters.len(), leg.weights.len());
                return refuse(at("clusters"), message + ", must have as many of each, at least one");
            }
            for &cluster in &leg.clusters {
                match served.get_mut(cluster as usize) {
                    Some(taken) if !*taken => *taken = true,
                    Some(_) => return refuse(at("clusters"), format!("had cluster {cluster} twice")),
                    None => {
                        return refuse(at("clusters"), format!("had {cluster} of {num_clusters} clusters"));
                    }
                }
            }
            if let Some(weight) = leg.weights.iter().find(|weight| !(weight.is_finite() && **weight > 0.0)) {
                return refuse(at("weights"), format!("had {weight}, must be positive"));
            }
            if (leg.work == Work::All) != (number == last) {
                return refuse(at("work"), "must be 'all' on the last leg and 'prefill' before".into());
            }
            match &leg.receives {
                None if number > 0 => return refuse(at("receives"), "is missing".into()),
                Some(_) if number == 0 => {
                    return refuse(
                        at("receives"),
                        "was given, but nothing comes before the first leg".into(),
                    );
                }
                Some(handover) => {
                    handover.check(has_network).map_err(|error| error.below(&at("receives")))?;
                }
                None => {}
            }
        }
        if let Some(direct) = &self.direct
            && (direct.leg == 0 || direct.leg as usize > last)
        {
            return refuse("direct.leg".into(), format!("was {}, must be 1 to {last}", direct.leg));
        }
        if self.direct.is_some()
            && self.legs.iter().filter_map(|leg| leg.receives.as_ref()).any(HandoverSpec::carries)
        {
            return refuse(
                "direct".into(),
                "was given, but a decode server of SGLang computes no prompts".into(),
            );
        }
        if self.legs.len() > 2 {
            return refuse("legs".into(), format!("were {}, at most 2 are modelled", self.legs.len()));
        }
        Ok(())
    }

    /// Checks that the engines which hand KV over are of a kind that does, and agree on what a block is.
    fn check_engines(&self, clusters: &[ClusterSpec]) -> Result<(), SimError> {
        let Some(handover) = self.legs.iter().find_map(|leg| leg.receives.as_ref()) else {
            return self.check_servers(clusters, |_| None);
        };
        if handover.carries() {
            return self.check_servers(clusters, |leg| Some(leg > 0));
        }
        let refuse = |leg: usize, message: String| {
            Err(SimError::Plan { path: format!("legs[{leg}].clusters"), message })
        };
        let mut block_size = None;
        for (number, leg) in self.legs.iter().enumerate() {
            for cluster in leg.clusters.iter().filter_map(|&at| clusters.get(at as usize)) {
                let SchedulerSpec::VllmV1(config) = &cluster.scheduler else {
                    let message =
                        format!("'{}' has a scheduler other than vLLM's, which recomputes the", cluster.name);
                    return refuse(number, message + " first token");
                };
                if !config.kv_group_windows.is_empty() {
                    return refuse(number, format!("'{}' has groups of layers with windows", cluster.name));
                }
                if number > 0 && cluster.kv_tiers.is_some() {
                    return refuse(number, format!("'{}' receives KV and has tiers", cluster.name));
                }
                // A buffer takes what the source has; everything else is counted on both sides.
                let common = *block_size.get_or_insert(config.block_size);
                if common != config.block_size && handover.mode != HandoverMode::Buffer {
                    let message =
                        format!("'{}' has blocks of {}, others of {common}", cluster.name, config.block_size);
                    return refuse(number, message + " tokens");
                }
            }
        }
        Ok(())
    }
}

impl PathSpec {
    /// Checks the parts of SGLang's servers; `decodes` gives that of each leg, none for servers that do both, which
    /// need not be SGLang's.
    fn check_servers(
        &self,
        clusters: &[ClusterSpec],
        decodes: impl Fn(usize) -> Option<bool>,
    ) -> Result<(), SimError> {
        for (number, leg) in self.legs.iter().enumerate() {
            for cluster in leg.clusters.iter().filter_map(|&at| clusters.get(at as usize)) {
                let part = match &cluster.scheduler {
                    SchedulerSpec::Sglang(config) => config.disaggregation,
                    _ => None,
                };
                let found = part.map(|part| matches!(part, DisaggregationSpec::Decode { .. }));
                if found != decodes(number) {
                    let wanted = match decodes(number) {
                        None => "no 'disaggregation', since no KV is handed over",
                        Some(false) => {
                            "SGLang's with 'disaggregation' of mode 'prefill', to have the first token carried"
                        }
                        Some(true) => {
                            "SGLang's with 'disaggregation' of mode 'decode', to have the first token carried"
                        }
                    };
                    return Err(SimError::Plan {
                        path: format!("legs[{number}].clusters"),
                        message: format!("'{}' must have a scheduler that is {wanted}", cluster.name),
                    });
                }
            }
        }
        Ok(())
    }
}

impl HandoverSpec {
    /// Tells whether the token that the prefill makes is the client's first one.
    pub fn carries(&self) -> bool {
        self.first_token == FirstToken::Carried
    }

    /// Tells whether all transfers pass one link, one after the other.
    pub(super) fn is_serial(&self) -> bool {
        matches!(self.transport, TransportSpec::Serial { .. })
    }

    fn check(&self, has_network: bool) -> Result<(), SimError> {
        let refuse =
            |path: &str, message: &str| Err(SimError::Plan { path: path.into(), message: message.into() });
        if self.granularity != Granularity::Request && self.mode != HandoverMode::Push {
            return refuse(
                "granularity",
                "other than 'request' needs mode 'push': the destination is known first",
            );
        }
        if self.carries() && (self.mode != HandoverMode::Push || self.granularity == Granularity::Layer) {
            return refuse(
                "first_token",
                "was 'carried', needs mode 'push' and granularity 'chunk' or 'request': SGLang has no other",
            );
        }
        if self.num_layers == 0 {
            return refuse("num_layers", "was 0, must be at least 1");
        }
        match self.transport {
            TransportSpec::Dedicated { bytes_per_s } if !(bytes_per_s.is_finite() && bytes_per_s > 0.0) => {
                refuse("transport.bytes_per_s", "must be positive")
            }
            TransportSpec::Network {} if !has_network => {
                refuse("transport.kind", "was 'network', but the plan has none")
            }
            TransportSpec::Network {} if self.mode == HandoverMode::Store => {
                refuse("transport.kind", "was 'network': where the pool is in it is not modelled")
            }
            _ => Ok(()),
        }
    }
}

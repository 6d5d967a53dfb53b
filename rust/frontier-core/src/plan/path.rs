//! The way of a request through clusters: a small program over them, so that a new architecture is data.
//!
//! A path is `[encode] [prefill] serve`: a first leg may encode what comes with a prompt (images), the leg before the last may
//! compute the prompt and hand its KV over, and the last makes the output. What a leg does follows from its place and from
//! how it is tied to the next; who does it, on what GPUs and behind which router, is each cluster's own.

use serde::Deserialize;

use super::{ClusterSpec, DisaggregationSpec, SchedulerSpec};
use crate::error::SimError;

/// Legs that a request takes one after the other, and what makes it leave them out.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathSpec {
    /// At least one; the last makes the output.
    pub legs: Vec<LegSpec>,
    /// Which requests the last leg serves whole, if any.
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
    /// What it sends on, if it encodes; the first of several legs alone may, and requests without anything to encode leave
    /// it out.
    pub encodes: Option<EncodeSpec>,
    /// How the KV of the prompt comes from the leg before, if that computes it.
    pub receives: Option<HandoverSpec>,
}

/// How what a leg encodes gets to the next: over a link of its own, to wherever the request goes then.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncodeSpec {
    /// Embeddings that one encoder token amounts to, in bytes.
    pub bytes_per_token: f64,
    /// Before the first byte.
    pub latency_ns: u64,
    /// Bandwidth of the link.
    pub bytes_per_s: f64,
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

/// How KV goes from one leg to the next.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
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

/// Conditional disaggregation: who skips the leg that computes prompts, so that the last does all of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectSpec {
    /// Requests with at most so many prompt tokens that the engine there has not cached.
    pub max_uncached_tokens: Option<u32>,
    /// Requests that arrive while more prompt tokens than this wait or are computed on the leg before.
    pub deflect_above_tokens: Option<u64>,
}

impl PathSpec {
    /// Returns how KV is handed over, if it is.
    pub fn handover(&self) -> Option<&HandoverSpec> {
        self.legs.last().and_then(|leg| leg.receives.as_ref())
    }

    /// Returns how the first leg sends on what it encodes, if it does.
    pub fn encodes(&self) -> Option<EncodeSpec> {
        self.legs.first().and_then(|leg| leg.encodes)
    }

    /// Checks a path over `clusters`; `taken` are those of other paths, and then its own too.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming the first value that is not allowed.
    pub(super) fn check(
        &self,
        clusters: &[ClusterSpec],
        taken: &mut [bool],
        has_network: bool,
    ) -> Result<(), SimError> {
        let refuse = |path: String, message: String| Err(SimError::Plan { path, message });
        let Some(last) = self.legs.len().checked_sub(1) else {
            return refuse("legs".into(), "was empty, must have at least one".into());
        };
        let first = usize::from(self.encodes().is_some());
        self.check_engines(clusters)?;
        for (number, leg) in self.legs.iter().enumerate() {
            let at = |field: &str| format!("legs[{number}].{field}");
            leg.check_pool(clusters.len(), taken).map_err(|error| error.below(&format!("legs[{number}]")))?;
            if let Some(encodes) = &leg.encodes {
                if number > 0 || number == last {
                    let message = "was given, but only the first of several legs may encode";
                    return refuse(at("encodes"), message.into());
                }
                encodes.check().map_err(|error| error.below(&at("encodes")))?;
            }
            match &leg.receives {
                None if number > first => return refuse(at("receives"), "is missing".into()),
                Some(_) if number <= first => {
                    return refuse(at("receives"), "was given, but no leg before computes a prompt".into());
                }
                Some(handover) => {
                    handover.check(has_network).map_err(|error| error.below(&at("receives")))?;
                }
                None => {}
            }
        }
        if last - first.min(last) > 1 {
            let message =
                format!("were {}, of which {first} encodes: KV is handed over once at most", last + 1);
            return refuse("legs".into(), message);
        }
        if self.direct.is_some() && self.handover().is_none() {
            return refuse("direct".into(), "was given, but no KV is handed over".into());
        }
        if self.direct.is_some() && self.handover().is_some_and(HandoverSpec::carries) {
            let message = "was given, but a decode server of SGLang computes no prompts";
            return refuse("direct".into(), message.into());
        }
        Ok(())
    }

    /// Checks that the engines which hand KV over are of a kind that does, and agree on what a block is.
    fn check_engines(&self, clusters: &[ClusterSpec]) -> Result<(), SimError> {
        let handover = self.handover();
        if handover.is_none_or(HandoverSpec::carries) {
            self.check_servers(clusters)?;
        }
        let refuse = |leg: usize, message: String| {
            Err(SimError::Plan { path: format!("legs[{leg}].clusters"), message })
        };
        let mut block_size = None;
        for (number, leg) in self.legs.iter().enumerate() {
            for cluster in leg.clusters.iter().filter_map(|&at| clusters.get(at as usize)) {
                let encodes = leg.encodes.is_some();
                let SchedulerSpec::VllmV1(config) = &cluster.scheduler else {
                    // Servers of SGLang are checked apart.
                    if !encodes && handover.is_none_or(HandoverSpec::carries) {
                        continue;
                    }
                    let message = format!("'{}' has a scheduler other than vLLM's", cluster.name);
                    return refuse(
                        number,
                        message + if encodes { "" } else { ", which recomputes the first token" },
                    );
                };
                let Some(handover) = handover.filter(|_| !encodes) else { continue };
                if !config.kv_group_windows.is_empty() {
                    return refuse(number, format!("'{}' has groups of layers with windows", cluster.name));
                }
                if leg.receives.is_some() && cluster.kv_tiers.is_some() {
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

impl LegSpec {
    /// Checks the clusters of a leg; those that are `taken` belong to others.
    fn check_pool(&self, num_clusters: usize, taken: &mut [bool]) -> Result<(), SimError> {
        let refuse = |path: &str, message: String| Err(SimError::Plan { path: path.into(), message });
        if self.clusters.is_empty() || self.weights.len() != self.clusters.len() {
            let message = format!("had {} clusters, {} weights", self.clusters.len(), self.weights.len());
            return refuse("clusters", message + ", must have as many of each, at least one");
        }
        for &cluster in &self.clusters {
            match taken.get_mut(cluster as usize) {
                Some(taken) if !*taken => *taken = true,
                Some(_) => return refuse("clusters", format!("had cluster {cluster} twice")),
                None => return refuse("clusters", format!("had {cluster} of {num_clusters} clusters")),
            }
        }
        match self.weights.iter().find(|weight| !(weight.is_finite() && **weight > 0.0)) {
            Some(weight) => refuse("weights", format!("had {weight}, must be positive")),
            None => Ok(()),
        }
    }
}

impl EncodeSpec {
    fn check(&self) -> Result<(), SimError> {
        for (field, value) in [("bytes_per_token", self.bytes_per_token), ("bytes_per_s", self.bytes_per_s)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(SimError::Plan {
                    path: field.into(),
                    message: format!("was {value}, must be positive"),
                });
            }
        }
        Ok(())
    }
}

impl PathSpec {
    /// Checks the parts of SGLang's servers where they hand KV over, and that they have none where nothing is.
    fn check_servers(&self, clusters: &[ClusterSpec]) -> Result<(), SimError> {
        let hands_over = self.handover().is_some();
        for (number, leg) in self.legs.iter().enumerate().filter(|(_, leg)| leg.encodes.is_none()) {
            let wanted = hands_over.then_some(if leg.receives.is_some() { "decode" } else { "prefill" });
            for cluster in leg.clusters.iter().filter_map(|&at| clusters.get(at as usize)) {
                let found = match &cluster.scheduler {
                    SchedulerSpec::Sglang(config) => config.disaggregation.map(|part| match part {
                        DisaggregationSpec::Prefill { .. } => "prefill",
                        DisaggregationSpec::Decode { .. } => "decode",
                    }),
                    SchedulerSpec::VllmV1(_) | SchedulerSpec::Baseline(_) => None,
                };
                if found == wanted {
                    continue;
                }
                let message = match wanted {
                    None => "must have no 'disaggregation', since no KV is handed over".into(),
                    Some(mode) => format!(
                        "must have SGLang's scheduler with 'disaggregation' of mode '{mode}', to have the first token \
                         carried"
                    ),
                };
                return Err(SimError::Plan {
                    path: format!("legs[{number}].clusters"),
                    message: format!("'{}' {message}", cluster.name),
                });
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

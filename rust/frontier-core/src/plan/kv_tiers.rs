//! Tiers of KV blocks below the device, and how blocks move between them.

use serde::Deserialize;

use super::SchedulerSpec;
use crate::error::SimError;
use crate::kvcache::tiers::Eviction;

/// What a tier is made of; tiers are listed from fast to slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TierKind {
    /// Memory of the host; everything below the device passes through it.
    Host,
    /// Local disk.
    Disk,
    /// A pool behind the network.
    Remote,
}

impl TierKind {
    /// Returns the name used in columns and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Disk => "disk",
            Self::Remote => "remote",
        }
    }
}

/// One tier of a replica.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvTierSpec {
    /// What it is.
    pub kind: TierKind,
    /// Blocks that it holds.
    pub capacity_blocks: u64,
    /// Bytes that cross its link for one block: those of one rank where every rank has a link of its own.
    pub bytes_per_block: u64,
    /// Bandwidth from it towards the device, at least 1.
    pub read_bytes_per_s: u64,
    /// Bandwidth into it, at least 1.
    pub write_bytes_per_s: u64,
    /// Time before the first byte of a transfer.
    pub latency_ns: u64,
    /// Which blocks leave it when it is full.
    pub eviction: Eviction,
    /// One pool for all replicas (of which each has its own link); only the last tier may be.
    pub shared: bool,
}

/// When blocks are copied to the tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WritePolicy {
    /// Every full block once, in the step after the one that computes it; from the host on to every lower tier.
    WriteThrough,
    /// The same, when a block is used for the second time (computed and then hit).
    WriteThroughSelective,
    /// When the device needs the block for something else; from tier to tier in the same way.
    WriteBack,
}

/// How blocks come back to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadMode {
    /// The request is put aside with its blocks allocated, and a step after the load goes on with it (vLLM).
    Async,
    /// The request is admitted at once; its step loads layer by layer, each before it is computed (`SGLang`).
    Layerwise,
}

/// What admission does about a prefetch that is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrefetchPolicy {
    /// Uses what has arrived.
    BestEffort,
    /// Waits for all of it.
    WaitComplete,
    /// Waits for all of it, but not past a time-out.
    Timeout,
}

/// Reading from disk and remote pool into the host when a request arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefetchSpec {
    /// Fewest tokens worth a prefetch.
    pub min_tokens: u32,
    /// Blocks that prefetches may hold in the host before their requests are admitted; none starts beyond.
    pub max_blocks: u64,
    /// What admission does meanwhile.
    pub policy: PrefetchPolicy,
    /// Time-out of any prefetch, counted from arrival.
    pub timeout_ns: u64,
    /// More of it per 1024 tokens prefetched.
    pub timeout_per_ki_token_ns: u64,
}

/// Tiers below the device.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvTiersSpec {
    /// From fast to slow; the first is the host.
    pub tiers: Vec<KvTierSpec>,
    /// When blocks are copied down.
    pub write_policy: WritePolicy,
    /// How they come back.
    pub load: LoadMode,
    /// Fewest tokens worth a load.
    pub min_load_tokens: u32,
    /// Layers that hold KV, over which a layer-wise load is spread.
    pub num_layers: u32,
    /// Reading ahead; without it a layer-wise load finds what the host has.
    pub prefetch: Option<PrefetchSpec>,
}

impl KvTiersSpec {
    /// Checks the tiers, and that the scheduler above them has what they need.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming the first offending field.
    pub fn check(&self, scheduler: &SchedulerSpec) -> Result<(), SimError> {
        let refuse = |field: String, message: String| {
            Err(SimError::Plan { path: format!("kv_tiers{field}"), message })
        };
        if let Some(lack) = lack_of(scheduler) {
            return refuse(String::new(), lack.into());
        }
        if self.num_layers == 0 {
            return refuse(".num_layers".into(), "was 0, must be at least 1".into());
        }
        let kinds: Vec<TierKind> = self.tiers.iter().map(|tier| tier.kind).collect();
        let in_order = kinds.windows(2).all(|pair| pair[0] < pair[1]);
        if kinds.first() != Some(&TierKind::Host) || !in_order {
            return refuse(
                ".tiers".into(),
                "must be host, disk, remote in this order, the host at least".into(),
            );
        }
        for (at, tier) in self.tiers.iter().enumerate() {
            for (field, value) in [
                ("capacity_blocks", tier.capacity_blocks),
                ("bytes_per_block", tier.bytes_per_block),
                ("read_bytes_per_s", tier.read_bytes_per_s),
                ("write_bytes_per_s", tier.write_bytes_per_s),
            ] {
                if value == 0 {
                    return refuse(format!(".tiers.{at}.{field}"), "was 0, must be at least 1".into());
                }
            }
            if matches!(tier.eviction, Eviction::Belady {}) {
                let message = "was belady, which needs the future: only offline studies know it".into();
                return refuse(format!(".tiers.{at}.eviction"), message);
            }
            if tier.shared && (at + 1 < self.tiers.len() || tier.kind != TierKind::Remote) {
                return refuse(format!(".tiers.{at}.shared"), "was true, only a remote pool may be".into());
            }
        }
        if self.prefetch.is_some() && (self.load == LoadMode::Async || self.tiers.len() == 1) {
            let message = "needs load layerwise and a tier below the host".into();
            return refuse(".prefetch".into(), message);
        }
        Ok(())
    }
}

/// Tells why tiers cannot be below the device of `scheduler`, if so.
fn lack_of(scheduler: &SchedulerSpec) -> Option<&'static str> {
    let SchedulerSpec::VllmV1(config) = scheduler else {
        return Some("needs scheduler.kind vllm_v1: SGLang's radix tree has no tiers in this version");
    };
    if !config.enable_prefix_caching {
        return Some("needs scheduler.enable_prefix_caching: blocks have no hashes");
    }
    if !config.kv_group_windows.is_empty() {
        return Some("needs scheduler.kv_group_windows to be empty: tiers hold blocks of whole contexts");
    }
    if config.pipeline_parallel_size > 1 {
        return Some("needs scheduler.pipeline_parallel_size 1: transfers of stages are not modelled");
    }
    // The last hit of these is computed again, and what vLLM then asks of the tiers differs between releases.
    if config.speculative.as_ref().is_some_and(|speculative| speculative.method.is_eagle()) {
        return Some("cannot go with speculative methods that drop the last hit (EAGLE, MTP): not modelled");
    }
    None
}

//! Tiers of KV in a run: the pool that replicas share, transfers as events, totals.

use super::{Cluster, Surroundings};
use crate::error::SimError;
use crate::event::Event;
use crate::ids::ReplicaId;
use crate::kvcache::tiers::{TierCounters, TierPool};
use crate::plan::KvTiersSpec;
use crate::time::SimTime;

/// What one tier of KV did, over all replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvTierTotals {
    /// `device`, `host`, `disk` or `remote`.
    pub tier: &'static str,
    /// Blocks asked for that no faster tier had, over first admissions.
    pub lookup_blocks: u64,
    /// Those of them found here and used.
    pub hit_blocks: u64,
    /// The same in tokens.
    pub hit_tokens: u64,
    /// The rest; nothing of it is known of the device.
    pub counters: Option<TierCounters>,
}

/// Returns the pool that replicas share, if the plan has one.
pub(super) fn shared_pool(spec: &KvTiersSpec) -> Option<TierPool> {
    let last = spec.tiers.last().filter(|tier| tier.shared)?;
    Some(TierPool::new(last.eviction, last.capacity_blocks))
}

impl Cluster {
    /// Sums up what the tiers did.
    pub fn kv_tier_totals(&self) -> Vec<KvTierTotals> {
        let mut totals: Vec<KvTierTotals> = Vec::new();
        for engine in &self.engines {
            let Some(((lookups, hits), tiers)) = engine.kv_tier_counters() else { continue };
            let block_size = engine.scheduler().kv_loads().map_or(0, |loads| u64::from(loads.block_size()));
            if totals.is_empty() {
                let empty = |tier, counters| KvTierTotals {
                    tier,
                    lookup_blocks: 0,
                    hit_blocks: 0,
                    hit_tokens: 0,
                    counters,
                };
                totals.push(empty("device", None));
                totals.extend(
                    tiers.iter().map(|tier| empty(tier.kind.name(), Some(TierCounters::none(tier.kind)))),
                );
            }
            let device = &mut totals[0];
            device.lookup_blocks += lookups;
            device.hit_blocks += hits;
            device.hit_tokens += hits * block_size;
            for (total, tier) in totals[1..].iter_mut().zip(&tiers) {
                total.lookup_blocks += tier.lookup_blocks;
                total.hit_blocks += tier.hit_blocks;
                total.hit_tokens += tier.hit_blocks * block_size;
                if let Some(sum) = &mut total.counters {
                    sum.add(tier);
                }
            }
        }
        if let (Some(pool), Some(sum)) =
            (&self.shared_kv_pool, totals.last_mut().and_then(|last| last.counters.as_mut()))
        {
            sum.add_pool(pool);
        }
        totals
    }

    /// Lends an engine the pool that all share, or takes it back.
    pub(super) fn swap_shared_kv_pool(&mut self, engine: ReplicaId) {
        if let Some(pool) = &mut self.shared_kv_pool {
            self.engines[engine.index()].swap_shared_kv_pool(pool);
        }
    }

    /// Schedules the transfers between tiers that an engine began to wait for.
    pub(super) fn await_kv_transfers(
        &mut self,
        engine: ReplicaId,
        around: &mut Surroundings,
    ) -> Result<(), SimError> {
        for time in self.engines[engine.index()].take_kv_wakes() {
            around.push(time, Event::KvTransfer(self.global(engine)))?;
        }
        Ok(())
    }

    /// A transfer between tiers that requests of `engine` wait for is done.
    ///
    /// # Errors
    /// Any [`SimError`].
    pub fn on_kv_transfer(
        &mut self,
        now: SimTime,
        engine: ReplicaId,
        around: &mut Surroundings,
    ) -> Result<(), SimError> {
        let at = self.local(engine);
        let engine = &mut self.engines[at.index()];
        engine.on_kv_transfer(now, &mut around.recorder)?;
        let idle = !engine.is_waiting();
        self.await_kv_transfers(at, around)?;
        if idle { self.request_schedule(now, at, around) } else { Ok(()) }
    }
}

//! What moving KV between tiers does to an engine's steps and to the requests that wait for it.

use super::EngineCore;
use crate::error::SimError;
use crate::fidelity::StepTime;
use crate::kvcache::tiers::{TierCounters, TierPool, Transfer};
use crate::metrics::{Activity, Recorder};
use crate::plan::KvTiersSpec;
use crate::scheduler::{KvLoads, KvStep};
use crate::time::{SimDuration, SimTime};

impl EngineCore {
    /// Puts tiers of KV below the device.
    pub fn attach_kv_tiers(&mut self, spec: &KvTiersSpec) {
        if let Some(scheduler) = self.scheduler.vllm_mut() {
            let config = scheduler.config();
            let loads = KvLoads::new(spec, config.block_size, config.num_blocks);
            scheduler.attach_kv_loads(loads);
            self.kv_tiers = Some(Box::new(spec.clone()));
        }
    }

    /// Exchanges the pool that replicas share with the one that the caller keeps.
    pub fn swap_shared_kv_pool(&mut self, pool: &mut TierPool) {
        if let Some(loads) = self.scheduler.kv_loads_mut() {
            loads.swap_shared(pool);
        }
    }

    /// Returns when the engine has to be told of transfers that are done, as far as it did not say so before.
    pub fn take_kv_wakes(&mut self) -> Vec<SimTime> {
        self.scheduler.kv_loads_mut().map(KvLoads::take_wakes).unwrap_or_default()
    }

    /// Returns blocks asked for and found on the device, and what each tier below it did; nothing without tiers.
    pub fn kv_tier_counters(&self) -> Option<((u64, u64), Vec<TierCounters>)> {
        let (blocks, tiers) =
            self.scheduler.kv_loads().map(|loads| (loads.device_blocks(), loads.counters()))?;
        let Some(((lookups, hits), before)) = &self.lost_kv_tiers else { return Some((blocks, tiers)) };
        let mut sums = before.clone();
        sums.iter_mut().zip(&tiers).for_each(|(sum, tier)| sum.add(tier));
        Some(((lookups + blocks.0, hits + blocks.1), sums))
    }

    /// Puts empty tiers below a new scheduler, where the one before had some; what those did stays on the books.
    pub(super) fn replace_kv_tiers(&mut self) {
        if let Some(spec) = self.kv_tiers.take() {
            self.attach_kv_tiers(&spec);
        }
    }

    /// Goes on with the transfers that are done `now`.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`].
    pub fn on_kv_transfer(&mut self, now: SimTime, recorder: &mut Recorder) -> Result<(), SimError> {
        if let Some(loads) = self.scheduler.kv_loads_mut() {
            loads.advance(now)?;
        }
        self.record_kv_waits(recorder);
        Ok(())
    }

    #[inline(never)]
    pub(super) fn begin_kv_step(&mut self, now: SimTime) -> Result<(), SimError> {
        let device_free = self.pipeline.free_at();
        match self.scheduler.kv_loads_mut() {
            Some(loads) => loads.begin_step(now, device_free),
            None => Ok(()),
        }
    }

    #[inline(never)]
    pub(super) fn end_kv_step(&mut self, recorder: &mut Recorder) -> Result<Option<KvStep>, SimError> {
        let device_free = self.pipeline.free_at();
        let Some(scheduler) = self.scheduler.vllm_mut() else { return Ok(None) };
        let step = scheduler.end_kv_step(device_free)?;
        if step.is_some() {
            self.record_kv_waits(recorder);
        }
        Ok(step)
    }

    fn record_kv_waits(&mut self, recorder: &mut Recorder) {
        let Some(scheduler) = self.scheduler.vllm_mut() else { return };
        let waits = scheduler.kv_loads_mut().map(KvLoads::take_waits).unwrap_or_default();
        for wait in waits {
            let request = scheduler.request(wait.slot);
            let activity = match (wait.begins, request.num_preemptions()) {
                (true, _) => Activity::KvLoad,
                (false, 0) => Activity::Queue,
                (false, _) => Activity::PreemptionWait,
            };
            recorder.enter(request.id(), activity, wait.at, self.meter);
        }
    }

    /// Returns by how much moving KV delays the end of a step that could start `now` and takes `time`: it waits until the blocks that it overwrites are copied, and each of its layers until that layer is loaded.
    #[inline(never)]
    pub(super) fn kv_delay(&self, kv: &KvStep, now: SimTime, time: &StepTime) -> SimDuration {
        let start = now.max(self.pipeline.free_at());
        let stall = kv.not_before.since(start).0;
        let Some(load) = &kv.load else { return SimDuration(stall) };
        let layers = self.scheduler.kv_loads().map_or(1, |loads| u64::from(loads.num_layers()));
        let compute = (time.total - time.cpu_exposed).0;
        let begin = start.0 + stall + time.cpu_exposed.0;
        let end = layerwise_end(begin, compute, load, layers);
        SimDuration(stall + end - (begin + compute))
    }
}

/// Returns when a computation of `compute` ns over `layers` equal layers is done, which may begin at `begin` and
/// computes each layer when the one before is computed and it is loaded.
///
/// With layer `i` of `L` loaded at `l(i)`, which rises evenly, layer `L` is done at the latest of `begin + compute`
/// and `l(i) + (L - i + 1) / L * compute`; the latter is linear in `i`, so that its ends decide.
fn layerwise_end(begin: u64, compute: u64, load: &Transfer, layers: u64) -> u64 {
    let first = load.until(1, layers).0 + compute;
    let last = load.end.0 + compute.div_ceil(layers);
    first.max(last).max(begin + compute)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn prop_layers_one_by_one_end_at_the_same_time(
            begin in 0_u64..500,
            load_begin in 0_u64..500,
            load_per_layer in 0_u64..60,
            compute_per_layer in 0_u64..60,
            layers in 1_u64..20,
        ) {
            let load = Transfer {
                begin: SimTime(load_begin),
                end: SimTime(load_begin + layers * load_per_layer),
            };
            let mut done = begin;
            for layer in 1..=layers {
                done = done.max(load_begin + layer * load_per_layer) + compute_per_layer;
            }
            prop_assert_eq!(layerwise_end(begin, layers * compute_per_layer, &load, layers), done);
        }
    }
}

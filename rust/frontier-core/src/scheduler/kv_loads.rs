//! Requests that wait for KV from the tiers below the device, and what the tiers are told of each step.
//!
//! With `load: async` it follows the scheduler's side of vLLM's `OffloadingConnector`: blocks on the device are hit
//! first, the tiers continue from there; the request gets blocks for all of it, is put aside, and a step after the
//! load goes on with it. With `load: layerwise` it follows `SGLang`'s `HiRadixCache`: the request is admitted at once
//! and its step loads what the host has, layer by layer.

use rustc_hash::FxHashMap;

use crate::error::SimError;
use crate::ids::{BlockId, Slot};
use crate::kvcache::tiers::{Found, Hierarchy, Read, TierCounters, TierPool, Transfer};
use crate::kvcache::{BlockChange, BlockHash, BlockPool};
use crate::plan::KvTiersSpec;
use crate::plan::kv_tiers::{LoadMode, PrefetchPolicy, PrefetchSpec, WritePolicy};
use crate::time::{SimDuration, SimTime};

/// Uses after which `write_through_selective` stores a block: computed once, hit once.
const SELECTIVE_USES: u8 = 2;

const TOKENS_PER_KI: u64 = 1024;

/// What admission does about a request's blocks below the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seek {
    /// Goes on with what the device has.
    Nothing,
    /// Passes the request over: its blocks are on their way.
    Hold,
    /// Puts the request aside to load this many blocks.
    Park(u32),
    /// Admits the request; its step loads this many blocks.
    InStep(u32),
}

/// Why a request is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaits {
    /// A load for another request brings some of its blocks.
    OthersLoad,
    /// Its prefetch, or the time-out of it.
    Until(SimTime),
}

/// A request that holds blocks and waits for their content.
#[derive(Clone, Debug)]
struct Parked {
    slot: Slot,
    read: Read,
    hashes: Vec<BlockHash>,
    /// Tokens that are there when the load is done.
    computed: u32,
    loaded: bool,
}

/// What was read ahead for a request that is not admitted yet.
#[derive(Clone, Debug)]
struct Prefetched {
    /// When admission stops waiting for it.
    until: SimTime,
    keys: Vec<u64>,
}

/// A request began or ended waiting for KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvWait {
    /// The request.
    pub slot: Slot,
    /// When.
    pub at: SimTime,
    /// It began.
    pub begins: bool,
}

/// What moving KV means for the step that was formed.
#[derive(Clone, Copy, Debug)]
pub struct KvStep {
    /// The step must not overwrite its blocks before: some of them are still being copied.
    pub not_before: SimTime,
    /// The load that the step waits for layer by layer.
    pub load: Option<Transfer>,
}

/// The tiers of one engine and the requests that wait for them.
#[derive(Clone, Debug)]
pub struct KvLoads {
    spec: KvTiersSpec,
    block_size: u32,
    hierarchy: Hierarchy,
    /// In order of admission.
    parked: Vec<Parked>,
    /// Loads whose requests are gone: they go on to their end, as a real transfer does.
    orphans: Vec<Parked>,
    /// Blocks that loads bring to the device.
    in_flight: FxHashMap<u64, u32>,
    prefetches: FxHashMap<Slot, Prefetched>,
    /// Blocks that prefetches hold in the host.
    prefetched_blocks: u64,
    held: Vec<(Slot, Awaits)>,
    /// Blocks filled or hit since the last step, to be stored with the next.
    fresh: Vec<(BlockId, BlockHash)>,
    /// Blocks that the present step loads.
    in_step: Vec<BlockHash>,
    /// Uses of each device block since it was filled, as far as they matter.
    uses: Vec<u8>,
    /// Until when each device block is being copied.
    copied_until: Vec<SimTime>,
    waits: Vec<KvWait>,
    wakes: Vec<SimTime>,
    found: Found,
    changes: Vec<BlockChange>,
    device_lookups: u64,
    device_hits: u64,
    /// What went wrong while a batch was formed.
    failed: Option<SimError>,
}

impl KvLoads {
    /// Returns empty tiers for an engine with `num_blocks` device blocks of `block_size` tokens.
    pub fn new(spec: &KvTiersSpec, block_size: u32, num_blocks: u32) -> Self {
        Self {
            spec: spec.clone(),
            block_size,
            hierarchy: Hierarchy::new(spec),
            parked: Vec::new(),
            orphans: Vec::new(),
            in_flight: FxHashMap::default(),
            prefetches: FxHashMap::default(),
            prefetched_blocks: 0,
            held: Vec::new(),
            fresh: Vec::new(),
            in_step: Vec::new(),
            uses: vec![0; num_blocks as usize],
            copied_until: vec![SimTime::ZERO; num_blocks as usize],
            waits: Vec::new(),
            wakes: Vec::new(),
            found: Found::default(),
            changes: Vec::new(),
            device_lookups: 0,
            device_hits: 0,
            failed: None,
        }
    }

    /// Exchanges the pool that replicas share with the one that the caller keeps.
    pub fn swap_shared(&mut self, pool: &mut TierPool) {
        self.hierarchy.swap_shared(pool);
    }

    /// Returns the tokens per block.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Returns the layers that hold KV.
    pub fn num_layers(&self) -> u32 {
        self.spec.num_layers
    }

    /// Returns what each tier did.
    pub fn counters(&self) -> Vec<TierCounters> {
        self.hierarchy.counters()
    }

    /// Returns blocks asked for and found on the device, over first admissions.
    pub fn device_blocks(&self) -> (u64, u64) {
        (self.device_lookups, self.device_hits)
    }

    /// Hands over who began or ended waiting since the last call.
    pub fn take_waits(&mut self) -> Vec<KvWait> {
        std::mem::take(&mut self.waits)
    }

    /// Hands over the moments at which [`Self::advance`] has something to do, as far as they are new.
    pub fn take_wakes(&mut self) -> Vec<SimTime> {
        std::mem::take(&mut self.wakes)
    }

    /// Says what time it is when a request arrives.
    pub fn set_now(&mut self, now: SimTime) {
        self.hierarchy.set_now(now);
    }

    /// A request with these full blocks arrived: reads ahead.
    pub(super) fn arrive(&mut self, slot: Slot, hashes: &[BlockHash]) {
        if let Some(prefetch) = self.spec.prefetch {
            self.failed = self.prefetch(slot, hashes, prefetch).err().or(self.failed.take());
        }
    }

    fn prefetch(&mut self, slot: Slot, hashes: &[BlockHash], prefetch: PrefetchSpec) -> Result<(), SimError> {
        let now = self.hierarchy.now();
        if self.prefetched_blocks >= prefetch.max_blocks {
            return Ok(());
        }
        let at_least = u64::from(prefetch.min_tokens).div_ceil(u64::from(self.block_size));
        let Some((last, keys)) = self.hierarchy.prefetch(hashes, at_least)? else { return Ok(()) };
        let until = match prefetch.policy {
            PrefetchPolicy::BestEffort => now,
            PrefetchPolicy::WaitComplete => last,
            PrefetchPolicy::Timeout => {
                let tokens = (keys.len() as u64).saturating_mul(u64::from(self.block_size));
                let more = prefetch.timeout_per_ki_token_ns.saturating_mul(tokens) / TOKENS_PER_KI;
                last.min(now.after(SimDuration(prefetch.timeout_ns.saturating_add(more)))?)
            }
        };
        self.prefetched_blocks += keys.len() as u64;
        self.prefetches.insert(slot, Prefetched { until, keys });
        Ok(())
    }

    /// Copies to the host what the last steps filled, before a step is formed `now`. The device is free at
    /// `device_free`; until then the blocks are being computed.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`].
    pub fn begin_step(&mut self, now: SimTime, device_free: SimTime) -> Result<(), SimError> {
        self.hierarchy.set_now(now);
        if self.fresh.is_empty() {
            return Ok(());
        }
        let mut fresh = std::mem::take(&mut self.fresh);
        let hashes: Vec<BlockHash> = fresh.iter().map(|&(_, hash)| hash).collect();
        fresh.retain(|&(_, hash)| !self.hierarchy.host_holds(hash));
        if let Some(end) = self.hierarchy.store(&hashes, now.max(device_free))? {
            for (block, _) in fresh {
                self.copied_until[block.index()] = end;
            }
        }
        Ok(())
    }

    /// Takes in what the step that was formed did to the device's blocks, and starts its transfers.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`], also of a transfer that began since the step before.
    pub fn end_step(&mut self, pool: &mut BlockPool, device_free: SimTime) -> Result<KvStep, SimError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let now = self.hierarchy.now();
        let mut step = KvStep { not_before: now, load: None };
        if !self.in_step.is_empty() {
            let hashes = std::mem::take(&mut self.in_step);
            step.load = Some(self.hierarchy.read_in_step(&hashes)?);
        }
        let mut evicted = Vec::new();
        let buffer = std::mem::take(&mut self.changes);
        let mut changes = pool.take_changes(buffer);
        for &change in &changes {
            match change {
                BlockChange::Filled(block, hash) => {
                    self.uses[block.index()] = 1;
                    if self.spec.write_policy == WritePolicy::WriteThrough {
                        self.fresh.push((block, hash));
                    }
                }
                BlockChange::Hit(block, hash) => self.count_use(block, hash),
                BlockChange::Taken(block, content) => {
                    self.uses[block.index()] = 0;
                    step.not_before = step.not_before.max(self.copied_until[block.index()]);
                    let Some(hash) = content else { continue };
                    self.fresh.retain(|&(other, _)| other != block);
                    let last_copy = pool.lookup(hash).is_none() && !evicted.contains(&hash);
                    if self.spec.write_policy == WritePolicy::WriteBack && last_copy {
                        evicted.push(hash);
                    }
                }
            }
        }
        changes.clear();
        self.changes = changes;
        if let Some(end) = self.hierarchy.store(&evicted, now.max(device_free))? {
            step.not_before = step.not_before.max(end);
        }
        Ok(step)
    }

    fn count_use(&mut self, block: BlockId, hash: BlockHash) {
        let uses = &mut self.uses[block.index()];
        if *uses >= SELECTIVE_USES {
            return;
        }
        *uses += 1;
        if *uses == SELECTIVE_USES && self.spec.write_policy == WritePolicy::WriteThroughSelective {
            self.fresh.push((block, hash));
        }
    }

    /// Looks for the blocks of a request below the device. `hashes` are those of all its full blocks,
    /// `device_hits` of which the device has; `num_tokens` are its tokens.
    pub(super) fn seek(
        &mut self,
        slot: Slot,
        hashes: &[BlockHash],
        device_hits: u32,
        num_tokens: u32,
    ) -> Seek {
        let now = self.hierarchy.now();
        let in_step = self.spec.load == LoadMode::Layerwise;
        if let Some(until) = self.prefetches.get(&slot).map(|ahead| ahead.until).filter(|&until| until > now)
        {
            self.hold(slot, Awaits::Until(until));
            self.wakes.push(until);
            return Seek::Hold;
        }
        // Within a step at least one token is computed; after a load, the last one is computed again.
        let most = if in_step { (num_tokens - 1) / self.block_size } else { num_tokens / self.block_size };
        let wanted = &hashes[(device_hits as usize).min(most as usize)..most as usize];
        self.hierarchy.find(wanted, in_step, &mut self.found);
        let count = self.found.tiers.len() as u32;
        if count == 0 || count.saturating_mul(self.block_size) < self.spec.min_load_tokens {
            self.found.tiers.clear();
            return Seek::Nothing;
        }
        if in_step {
            return Seek::InStep(count);
        }
        if wanted[..count as usize].iter().any(|hash| self.in_flight.contains_key(&hash.key())) {
            self.hold(slot, Awaits::OthersLoad);
            return Seek::Hold;
        }
        Seek::Park(count)
    }

    fn hold(&mut self, slot: Slot, awaits: Awaits) {
        if !self.held.iter().any(|&(other, _)| other == slot) {
            self.held.push((slot, awaits));
            self.waits.push(KvWait { slot, at: self.hierarchy.now(), begins: true });
        }
    }

    /// Books that a request was admitted after [`Self::seek`], `device_hits` blocks being on the device; the first
    /// time (`first`) it is counted.
    pub(super) fn admitted(&mut self, slot: Slot, hashes: &[BlockHash], device_hits: u32, first: bool) {
        if let Some(ahead) = self.prefetches.remove(&slot) {
            self.prefetched_blocks -= ahead.keys.len() as u64;
            self.hierarchy.let_go(&ahead.keys);
        }
        self.hierarchy.touch(hashes);
        let from = device_hits as usize;
        let count = self.found.tiers.len();
        if self.spec.load == LoadMode::Layerwise {
            self.in_step.extend_from_slice(&hashes[from..from + count]);
        }
        if first {
            self.device_lookups += hashes.len() as u64;
            self.device_hits += u64::from(device_hits);
            self.hierarchy.count((hashes.len() - from) as u64, &self.found.tiers);
        }
        self.found.tiers.clear();
    }

    /// Puts a request aside, at place `at` of those that are, which has blocks for what [`Self::seek`] found, and
    /// starts the load.
    pub(super) fn park(
        &mut self,
        at: usize,
        slot: Slot,
        hashes: &[BlockHash],
        device_hits: u32,
        first: bool,
    ) {
        let from = device_hits as usize;
        let wanted = hashes[from..from + self.found.tiers.len()].to_vec();
        let read = match self.hierarchy.start_read(&wanted, &self.found.tiers) {
            Ok(read) => read,
            Err(error) => {
                self.failed = Some(error);
                return;
            }
        };
        for hash in &wanted {
            *self.in_flight.entry(hash.key()).or_insert(0) += 1;
        }
        let computed = (from + wanted.len()) as u32 * self.block_size;
        self.admitted(slot, hashes, device_hits, first);
        self.waits.push(KvWait { slot, at: self.hierarchy.now(), begins: true });
        self.wakes.push(read.due());
        self.parked.insert(at, Parked { slot, read, hashes: wanted, computed, loaded: false });
    }

    /// Goes on with what is due `now`.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`].
    pub fn advance(&mut self, now: SimTime) -> Result<(), SimError> {
        self.hierarchy.set_now(now);
        let mut loaded = false;
        let num_parked = self.parked.len();
        for index in 0..num_parked + self.orphans.len() {
            let orphan = index >= num_parked;
            let parked = if orphan { &mut self.orphans[index - num_parked] } else { &mut self.parked[index] };
            while !parked.loaded && parked.read.due() <= now {
                parked.loaded = self.hierarchy.go_on(&mut parked.read)?;
                if !parked.loaded {
                    self.wakes.push(parked.read.due());
                }
            }
            if parked.loaded && !parked.hashes.is_empty() {
                for hash in parked.hashes.drain(..) {
                    if let Some(count) = self.in_flight.get_mut(&hash.key()) {
                        *count -= 1;
                        if *count == 0 {
                            self.in_flight.remove(&hash.key());
                        }
                    }
                }
                if !orphan {
                    self.waits.push(KvWait { slot: parked.slot, at: now, begins: false });
                }
                loaded = true;
            }
        }
        self.orphans.retain(|orphan| !orphan.loaded);
        let waits = &mut self.waits;
        self.held.retain(|&(slot, awaits)| {
            let over = match awaits {
                Awaits::OthersLoad => loaded,
                Awaits::Until(until) => until <= now,
            };
            if over {
                waits.push(KvWait { slot, at: now, begins: false });
            }
            !over
        });
        Ok(())
    }

    /// Returns the requests put aside, in their order.
    pub(super) fn parked(&self) -> impl ExactSizeIterator<Item = Slot> {
        self.parked.iter().map(|parked| parked.slot)
    }

    /// Returns the request at place `at` of those put aside.
    pub(super) fn parked_at(&self, at: usize) -> Option<Slot> {
        self.parked.get(at).map(|parked| parked.slot)
    }

    /// Returns the tokens that the request at place `at` has on the device, once its load is done.
    pub(super) fn loaded_tokens(&self, at: usize) -> Option<u32> {
        self.parked.get(at).filter(|parked| parked.loaded).map(|parked| parked.computed)
    }

    /// Forgets a request that leaves before its end.
    pub(super) fn forget(&mut self, slot: Slot) {
        if let Some(ahead) = self.prefetches.remove(&slot) {
            self.prefetched_blocks -= ahead.keys.len() as u64;
            self.hierarchy.let_go(&ahead.keys);
        }
        self.held.retain(|&(other, _)| other != slot);
        self.waits.retain(|wait| wait.slot != slot);
        if let Some(at) = self.parked.iter().position(|parked| parked.slot == slot) {
            let parked = self.parked.remove(at);
            self.orphans.extend((!parked.loaded).then_some(parked));
        }
    }

    /// Takes the request at place `at` back into the engine.
    pub(super) fn unpark(&mut self, at: usize) {
        self.parked.remove(at);
    }

    /// Checks the tiers and the books about loads. O(blocks).
    ///
    /// # Errors
    /// [`SimError::Invariant`] naming the first law that does not hold.
    pub fn check_integrity(&self) -> Result<(), SimError> {
        let loads = self.parked.iter().chain(&self.orphans);
        let awaited: usize = loads.map(|parked| parked.hashes.len()).sum();
        let in_flight: u64 = self.in_flight.values().map(|&count| u64::from(count)).sum();
        if awaited as u64 != in_flight {
            let what = format!("{in_flight} blocks are being loaded, requests wait for {awaited}");
            return Err(SimError::Invariant { what });
        }
        if self.device_hits > self.device_lookups {
            let what =
                format!("the device has {} hits of {} look-ups", self.device_hits, self.device_lookups);
            return Err(SimError::Invariant { what });
        }
        self.hierarchy.check_integrity()
    }
}

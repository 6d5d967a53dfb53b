//! What one run of an operator costs, and what bounds it.

use super::trust::Provenance;

/// The resource that decides an operator's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Arithmetic.
    Compute,
    /// HBM bandwidth.
    Memory,
    /// Link latency and bandwidth.
    Network,
    /// Starting the kernel takes longer than running it.
    Launch,
}

impl Bound {
    /// Returns the name used in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Memory => "memory",
            Self::Network => "network",
            Self::Launch => "launch",
        }
    }
}

/// One run of one operator on one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Time if only arithmetic took time, in seconds: tiles and waves included.
    pub compute_s: f64,
    /// Time if only HBM traffic took time, in seconds.
    pub memory_s: f64,
    /// Time on the link, in seconds.
    pub network_s: f64,
    /// Time from the previous kernel's end to this one's start, in seconds.
    pub launch_s: f64,
    /// Useful FLOPs: no padding.
    pub flops: f64,
    /// Useful HBM bytes: everything read or written once, no padding.
    pub bytes: f64,
}

impl Cost {
    /// Returns the time of one run in seconds: the slowest resource, plus the launch.
    #[inline]
    pub fn seconds(&self) -> f64 {
        self.compute_s.max(self.memory_s).max(self.network_s) + self.launch_s
    }

    /// Returns what decides the time; ties go to the resource named first in [`Bound`].
    pub fn bound(&self) -> Bound {
        let ranked = [
            (Bound::Compute, self.compute_s),
            (Bound::Memory, self.memory_s),
            (Bound::Network, self.network_s),
            (Bound::Launch, self.launch_s),
        ];
        let mut slowest = ranked[0];
        for candidate in ranked {
            if candidate.1 > slowest.1 {
                slowest = candidate;
            }
        }
        slowest.0
    }
}

/// Time, FLOPs and bytes of several runs of several operators on one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TotalCost {
    /// Seconds.
    pub seconds: f64,
    /// Useful FLOPs.
    pub flops: f64,
    /// Useful HBM bytes.
    pub bytes: f64,
    /// Seconds in which the slowest resource of each operator would be busy at its sustained rate: what is left of
    /// the time is launches, gaps and inefficiency.
    pub active_s: f64,
}

impl TotalCost {
    /// Adds `count` runs of `cost` that take `seconds` each.
    #[inline]
    pub fn add(&mut self, cost: &Cost, seconds: f64, count: f64) {
        self.seconds += seconds * count;
        self.flops += cost.flops * count;
        self.bytes += cost.bytes * count;
        self.active_s += cost.compute_s.max(cost.memory_s).max(cost.network_s).min(seconds) * count;
    }

    /// Adds another sum.
    #[inline]
    pub fn plus(&mut self, other: &Self) {
        self.seconds += other.seconds;
        self.flops += other.flops;
        self.bytes += other.bytes;
        self.active_s += other.active_s;
    }
}

/// The share of one operator in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct OperatorTime {
    /// Name in the program.
    pub name: String,
    /// Runs per step.
    pub count: u32,
    /// Seconds per step: all runs, launches included.
    pub seconds: f64,
    /// Useful FLOPs per step of all tensor-parallel ranks of one data-parallel rank.
    pub flops: f64,
    /// Useful HBM bytes per step of the same ranks.
    pub bytes: f64,
    /// What bounds it.
    pub bound: Bound,
    /// Seconds of its roofline bound per step: all runs, launches included.
    pub bound_s: f64,
    /// Where its time comes from; `None` where nothing ran.
    pub provenance: Option<Provenance>,
    /// Pipeline stage.
    pub stage: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_resource_decides() {
        let cost = Cost { compute_s: 1.0, memory_s: 3.0, network_s: 2.0, launch_s: 0.5, ..Cost::default() };
        assert_eq!((cost.seconds().to_bits(), cost.bound()), (3.5_f64.to_bits(), Bound::Memory));
        let cases = [
            (Cost { compute_s: 4.0, ..cost }, Bound::Compute),
            (Cost { network_s: 4.0, ..cost }, Bound::Network),
            (Cost { launch_s: 4.0, ..cost }, Bound::Launch),
        ];
        for (cost, bound) in cases {
            assert_eq!(cost.bound(), bound);
        }
    }
}

//! Sustained rates of one GPU: peaks times the shares of them that large kernels reach.

use crate::plan::step_time::{Dtype, GpuSpec, PeakFlops};

/// What operators need to know of the GPU.
#[derive(Clone, Debug)]
pub struct Device {
    /// Streaming multiprocessors: blocks that run at once.
    pub num_sms: u32,
    /// Sustained HBM bandwidth, bytes/s.
    pub bandwidth_bytes_per_s: f64,
    /// Time from one kernel's end to the next one's start, in seconds.
    pub launch_s: f64,
    peak: PeakFlops,
    compute_efficiency: f64,
}

impl Device {
    /// Returns the sustained rates of `gpu`.
    pub fn new(gpu: &GpuSpec) -> Self {
        Self {
            num_sms: gpu.num_sms,
            bandwidth_bytes_per_s: gpu.memory_bandwidth_bytes_per_s * gpu.memory_efficiency,
            launch_s: gpu.kernel_launch_s,
            peak: gpu.peak_flops_per_s,
            compute_efficiency: gpu.compute_efficiency,
        }
    }

    /// Returns the sustained rate of the whole GPU in FLOP/s, `None` where it has no units for `dtype`.
    pub fn flops_per_s(&self, dtype: Dtype) -> Option<f64> {
        self.peak.get(dtype).map(|peak| peak * self.compute_efficiency)
    }
}

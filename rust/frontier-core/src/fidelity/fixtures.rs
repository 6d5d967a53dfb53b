//! Facts that several tests share.

use crate::plan::step_time::{GpuSpec, LinkSpec, PeakFlops};

/// H100 SXM5 by its data sheet: 132 SMs, 989.4 dense BF16 TFLOP/s, 3.35 TB/s.
pub(crate) fn h100() -> GpuSpec {
    GpuSpec {
        num_sms: 132,
        peak_flops_per_s: PeakFlops {
            fp32: Some(67e12),
            fp16: Some(989.4e12),
            bf16: Some(989.4e12),
            fp8: Some(1978.9e12),
            int8: Some(1978.9e12),
            fp4: None,
        },
        memory_bandwidth_bytes_per_s: 3.35e12,
        compute_efficiency: 0.8,
        memory_efficiency: 0.9,
        kernel_launch_s: 2e-6,
    }
}

/// `NVLink` 4: 450 GB/s per direction.
pub(crate) fn nvlink() -> LinkSpec {
    LinkSpec { bandwidth_bytes_per_s: 450e9, latency_s: 2e-6, efficiency: 0.8, direct: true }
}

//! How long activations travel between the GPUs of an attention rank and those of the FFN.
//!
//! Every GPU of a side sends or receives an equal part. A transfer takes the latency and the longer of what either end
//! takes for its part, each at the share of its bandwidth that parts of this size reach (MegaScale-Infer, arXiv
//! 2504.02263, equation (6): `Tc = max(bytes / (W Util(bytes)))` over both sides).

use crate::error::SimError;
use crate::plan::step_time::{TransferEndSpec, TransferSpec};
use crate::time::SimDuration;

/// One direction.
#[derive(Clone, Debug)]
pub struct Transfer {
    spec: TransferSpec,
    bytes_per_token: f64,
}

impl Transfer {
    /// Returns transfers of hidden states that are `hidden` wide.
    pub fn new(spec: &TransferSpec, hidden: u32) -> Self {
        Self { spec: spec.clone(), bytes_per_token: f64::from(hidden) * spec.bytes_per_element }
    }

    /// Returns the time, in seconds, in which the GPU of an attention rank moves `of_attention` rows and each GPU of
    /// the FFN `of_ffn`; none without rows of its own.
    pub fn seconds(&self, of_attention: f64, of_ffn: f64) -> f64 {
        if of_attention <= 0.0 {
            return 0.0;
        }
        let attention_s = end_s(&self.spec.attention, of_attention * self.bytes_per_token);
        let ffn_s = end_s(&self.spec.ffn, of_ffn * self.bytes_per_token);
        self.spec.latency_s + attention_s.max(ffn_s)
    }

    /// Returns the same in ns.
    ///
    /// # Errors
    /// [`SimError::InvalidDuration`] if it is not representable.
    pub fn ns(&self, of_attention: f64, of_ffn: f64) -> Result<u64, SimError> {
        Ok(SimDuration::from_seconds(self.seconds(of_attention, of_ffn))?.0)
    }
}

fn end_s(end: &TransferEndSpec, bytes: f64) -> f64 {
    bytes / (end.bandwidth_bytes_per_s * utilization(&end.utilization, bytes))
}

/// Returns the share of the bandwidth that `bytes` reach: linear between the points, constant beyond.
fn utilization(points: &[[f64; 2]], bytes: f64) -> f64 {
    let above = points.partition_point(|point| point[0] <= bytes);
    match (above.checked_sub(1).map(|below| points[below]), points.get(above)) {
        (Some([low, from]), Some(&[high, to])) => from + (to - from) * (bytes - low) / (high - low),
        (Some([_, share]), None) | (None, Some(&[_, share])) => share,
        (None, None) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(bandwidth_bytes_per_s: f64, utilization: &[[f64; 2]]) -> TransferEndSpec {
        TransferEndSpec { bandwidth_bytes_per_s, utilization: utilization.to_vec() }
    }

    #[test]
    fn the_slower_end_decides() {
        let spec = TransferSpec {
            bytes_per_element: 2.0,
            latency_s: 1e-6,
            attention: end(50e9, &[[0.0, 0.8]]),
            ffn: end(25e9, &[[0.0, 1.0]]),
        };
        let transfer = Transfer::new(&spec, 5_000);
        assert!((transfer.seconds(100.0, 10.0) - (1e-6 + 1e6 / 40e9)).abs() < 1e-15);
        assert!((transfer.seconds(10.0, 100.0) - (1e-6 + 1e6 / 25e9)).abs() < 1e-15);
        assert_eq!(transfer.ns(0.0, 100.0).unwrap(), 0);
    }

    #[test]
    fn small_messages_reach_less() {
        let points = [[1e3, 0.1], [1e6, 0.7], [1e7, 0.9]];
        for (bytes, share) in [(1.0, 0.1), (1e3, 0.1), (500_500.0, 0.4), (1e6, 0.7), (1e9, 0.9)] {
            assert!((utilization(&points, bytes) - share).abs() < 1e-12);
        }
    }

    #[test]
    fn step_3_sends_128_tokens_in_91_us() {
        // StepMesh, Step-3 (arXiv 2507.19427): 2 x 128 x 7168 in fp8 out in 91 us, in bf16 back in 182 us, at
        // 161.3 Gbps of the link.
        let link = end(161.3e9 / 8.0, &[[0.0, 1.0]]);
        for (bytes_per_element, us) in [(1.0, 91.0), (2.0, 182.0)] {
            let spec = TransferSpec {
                bytes_per_element,
                latency_s: 0.0,
                attention: link.clone(),
                ffn: link.clone(),
            };
            let found = Transfer::new(&spec, 7_168).seconds(256.0, 256.0) * 1e6;
            assert!((found / us - 1.0).abs() < 2e-3, "{found} us, published {us} us");
        }
    }
}

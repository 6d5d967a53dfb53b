//! Memory-bound operators: norms, rotary embedding, activations, residuals, KV writes, embedding look-ups and
//! the sampler. Time is bytes over sustained bandwidth.

use super::cost::Cost;
use super::device::Device;

/// An operator that streams a number of bytes per row.
#[derive(Clone, Debug)]
pub struct Elementwise {
    bytes_per_row: f64,
    bandwidth_bytes_per_s: f64,
    launch_s: f64,
}

/// Names of [`Elementwise::features`].
pub const FEATURES: [&str; 3] = ["rows", "bytes_per_row", "bytes"];

impl Elementwise {
    /// Returns the operator that reads and writes `bytes_per_row` together.
    pub fn new(device: &Device, bytes_per_row: f64) -> Self {
        Self { bytes_per_row, bandwidth_bytes_per_s: device.bandwidth_bytes_per_s, launch_s: device.launch_s }
    }

    /// Returns the cost of one run over `rows` rows.
    pub fn cost(&self, rows: u32) -> Cost {
        let bytes = self.bytes_per_row * f64::from(rows);
        Cost {
            memory_s: bytes / self.bandwidth_bytes_per_s,
            launch_s: self.launch_s,
            bytes,
            ..Cost::default()
        }
    }

    /// Returns the features of a run over `rows` rows, as in [`FEATURES`].
    pub fn features(&self, rows: u32) -> [f32; FEATURES.len()] {
        let rows = f64::from(rows);
        [rows, self.bytes_per_row, rows * self.bytes_per_row].map(|value| value as f32)
    }
}

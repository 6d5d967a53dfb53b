//! The time line: gauges and running counters of every replica, sampled at a fixed interval.

use crate::error::SimError;

/// Most samples of a run: about a gigabyte.
const MAX_SAMPLES: usize = 10_000_000;

/// One replica at one moment. Counters run from the start of the simulation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReplicaSample {
    /// Requests in RUNNING.
    pub num_running: u32,
    /// Requests in WAITING.
    pub num_waiting: u32,
    /// Blocks held by requests.
    pub used_blocks: u32,
    /// Most blocks held at once since the sample before.
    pub peak_used_blocks: u32,
    /// Prompt tokens computed, recomputation included.
    pub prompt_tokens: u64,
    /// Tokens made.
    pub output_tokens: u64,
    /// Requests finished.
    pub finished: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// ns with a step in flight.
    pub busy_ns: u64,
    /// Integral of used blocks over time, in block ns.
    pub used_block_ns: u128,
    /// FLOPs of the whole replica.
    pub flops: f64,
    /// HBM bytes moved by the whole replica.
    pub bytes: f64,
    /// Seconds in which compute, memory or network is busy at its sustained rate, over the replica's GPUs.
    pub active_s: f64,
}

/// Samples in order of time, then replica.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// Moments in ns, one per sample.
    pub time_ns: Vec<u64>,
    /// Replica numbers, one per sample.
    pub replica: Vec<u32>,
    /// Samples.
    pub samples: Vec<ReplicaSample>,
}

impl Timeline {
    /// Appends a sample.
    ///
    /// # Errors
    /// [`SimError::TooLong`] past ten million samples.
    pub fn push(&mut self, time_ns: u64, replica: u32, sample: ReplicaSample) -> Result<(), SimError> {
        if self.samples.len() >= MAX_SAMPLES {
            return Err(SimError::TooLong {
                what: format!(
                    "the time line reached {MAX_SAMPLES} samples at {time_ns} ns: raise output.timeline_interval"
                ),
            });
        }
        self.time_ns.push(time_ns);
        self.replica.push(replica);
        self.samples.push(sample);
        Ok(())
    }
}

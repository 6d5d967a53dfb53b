//! What a run leaves behind: request records with exact latency attribution, steps, token runs, time line,
//! decision log. Leaf of the dependency graph: it records facts and decides nothing.

mod attribution;
mod decision_log;
mod decision_log_sglang;
mod recorder;
mod timeline;
mod transfers;

pub use attribution::{Activity, Cause, HostMeter, Ledger, NUM_CAUSES};
pub use decision_log::{DecisionLog, StepFacts};
pub use recorder::{
    Recorder, RejectReason, RequestRecord, RequestStatus, StepRow, StepTable, TokenRun, Verifications,
};
pub use timeline::{ReplicaSample, Timeline};
pub use transfers::TransferRecord;

//! What can go wrong, as facts. Each variant says whether the run is over and what is left.

use thiserror::Error;

/// An error of the simulator. All variants end the run; the state of the simulation is then meaningless
/// unless the variant says otherwise.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum SimError {
    /// The plan document is not valid JSON of the expected schema. Nothing was started.
    #[error("plan: {path}: {message}")]
    Plan {
        /// Path of the offending field, such as `scheduler.block_size`.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// Columns from which features of operators were asked for are unusable.
    #[error("{what}")]
    Features {
        /// Which operator, column or row, and what is wrong with it.
        what: String,
    },
    /// Input data (a trace, a distribution) is unusable. Nothing was started.
    #[error("{what}: {message}")]
    Input {
        /// Which input.
        what: String,
        /// What is wrong, where, and what is allowed.
        message: String,
    },
    /// A pack of predictors is damaged, hostile or of another version. Nothing was loaded.
    #[error("{what}")]
    Pack {
        /// What is wrong, where, and what is allowed.
        what: String,
    },
    /// The caller's scheduling policy failed.
    #[error("policy: request {request}: {message}")]
    Policy {
        /// For which request.
        request: u32,
        /// How.
        message: String,
    },
    /// The tables of step times lack a cell that a batch needs.
    #[error("engine.step_time.tables: there is no entry for {cell}")]
    MissingEntry {
        /// Which.
        cell: String,
    },
    /// Simulated time left the range of nanoseconds in 63 bits.
    #[error(
        "simulated time went past 2^63 - 1 ns (292 years): shorten gaps between arrivals, lengths or step times"
    )]
    ClockOverflow,
    /// The run would need more memory or time than it can ever get.
    #[error("{what}")]
    TooLong {
        /// Which bound was reached, and how to mend it.
        what: String,
    },
    /// A computed duration is not a length of time.
    #[error(
        "a duration of {seconds} s is not a length of time (it must be finite, not negative, and under 292 years)"
    )]
    InvalidDuration {
        /// The offending value.
        seconds: f64,
    },
    /// No event is left, yet requests are unfinished.
    #[error(
        "deadlock at {time_ns} ns: {unfinished} requests are unfinished and nothing will ever happen; {waiting_for}"
    )]
    Deadlock {
        /// Simulated time of the last event.
        time_ns: u64,
        /// How many requests are unfinished.
        unfinished: u64,
        /// Who waits for what.
        waiting_for: String,
    },
    /// The engine works for ever without getting anywhere, as the real engine would with these settings.
    #[error("livelock ({name}) on replica {replica} at {time_ns} ns: {detail}")]
    Livelock {
        /// Name of the pattern.
        name: &'static str,
        /// The replica.
        replica: u32,
        /// Simulated time of detection.
        time_ns: u64,
        /// Requests involved and what would mend it.
        detail: String,
    },
    /// The real engine fails with these requests and settings.
    #[error("the engine fails ({name}) on replica {replica} at {time_ns} ns: {detail}")]
    EngineFailure {
        /// Name of the failure.
        name: &'static str,
        /// The replica.
        replica: u32,
        /// Simulated time.
        time_ns: u64,
        /// Requests involved and what would mend it.
        detail: String,
    },
    /// A bug of the simulator: an invariant does not hold.
    #[error("broken invariant: {what} (please report this: it is a bug of the simulator)")]
    Invariant {
        /// The invariant.
        what: String,
    },
}

impl SimError {
    /// Puts the path of a section before that of the field in it which a plan's error names.
    #[must_use]
    pub fn below(self, section: &str) -> Self {
        match self {
            Self::Plan { path, message } => Self::Plan { path: format!("{section}.{path}"), message },
            other => other,
        }
    }
}

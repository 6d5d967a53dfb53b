//! Maps core errors to the exception classes of `frontier.errors`. The one place that knows both.

use frontier_core::error::SimError;
use pyo3::prelude::*;

/// Returns the Python exception for a core error.
pub(crate) fn to_python(py: Python<'_>, error: &SimError) -> PyErr {
    let class = match error {
        SimError::Plan { .. } | SimError::Features { .. } => "ConfigError",
        SimError::Input { .. } => "WorkloadError",
        SimError::Pack { .. } => "PackError",
        SimError::Deadlock { .. } => "DeadlockError",
        SimError::Livelock { .. } => "LivelockError",
        SimError::EngineFailure { .. } => "EngineFailureError",
        SimError::Invariant { .. } => "InvariantError",
        _ => "SimulationError",
    };
    let raise = || py.import("frontier.errors")?.getattr(class)?.call1((error.to_string(),));
    match raise() {
        Ok(exception) => PyErr::from_value(exception),
        Err(import_error) => import_error,
    }
}

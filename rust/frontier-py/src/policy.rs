//! Scheduling policies from Python: a function that ranks requests on arrival, and the check of an expression.

use std::sync::{Arc, Mutex};

use frontier_core::error::SimError;
use frontier_core::plan::policy::ExpressionSpec;
use frontier_core::scheduler::Expression;
use frontier_core::scores::{ArrivalPolicy, ArrivingRequest};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::to_python;

/// The exception that a policy raised, kept until the run has ended.
pub(crate) type Raised = Arc<Mutex<Option<PyErr>>>;

/// A Python function that is called with the facts of each request on its arrival.
pub(crate) struct CallablePolicy {
    callable: Py<PyAny>,
    raised: Raised,
}

impl CallablePolicy {
    pub(crate) fn new(callable: Py<PyAny>, raised: Raised) -> Self {
        Self { callable, raised }
    }

    fn call(&self, py: Python<'_>, request: &ArrivingRequest<'_>) -> PyResult<f64> {
        let (spec, gauges) = (request.spec, request.gauges);
        let facts = PyDict::new(py);
        facts.set_item("request", spec.id.0)?;
        facts.set_item("now_s", request.now.0 as f64 / 1e9)?;
        facts.set_item("prompt_tokens", spec.prompt_tokens)?;
        facts.set_item("output_tokens", spec.output_tokens)?;
        facts.set_item("priority", spec.priority)?;
        facts.set_item("session", spec.session.map(|session| session.0))?;
        facts.set_item("replica", request.replica.0)?;
        facts.set_item("num_running", gauges.num_running)?;
        facts.set_item("num_waiting", gauges.num_waiting)?;
        facts.set_item("num_free_blocks", gauges.num_free)?;
        self.callable.bind(py).call1((facts,))?.extract()
    }
}

impl ArrivalPolicy for CallablePolicy {
    fn rank(&mut self, request: &ArrivingRequest<'_>) -> Result<f64, String> {
        Python::attach(|py| {
            self.call(py, request).map_err(|error| {
                let message = error.to_string();
                if let Ok(mut slot) = self.raised.lock() {
                    *slot = Some(error);
                }
                message
            })
        })
    }
}

/// Returns the exception for a core error, caused by what a policy raised, if it did.
pub(crate) fn policy_error(py: Python<'_>, error: &SimError, raised: &Raised) -> PyErr {
    let exception = to_python(py, error);
    if let Ok(mut slot) = raised.lock()
        && let Some(cause) = slot.take()
    {
        exception.set_cause(py, Some(cause));
    }
    exception
}

/// Returns what is wrong with a priority expression, None if it is one.
#[pyfunction]
pub(crate) fn expression_fault(text: String, has_deadline: bool, preemptive: bool) -> Option<String> {
    let objectives_ns = if has_deadline { vec![1] } else { Vec::new() };
    let spec = ExpressionSpec { text, objectives_ns, error: 0.0, preemptive };
    Expression::new(&spec).err().map(|error| error.to_string())
}

//! Python binding: convert, release the GIL, call the core, convert back. A branch on domain meaning here is
//! a bug.

mod columns;
mod error;
mod features;
mod kv_study;
mod pack;
mod policy;
mod run;
mod trace;

use pyo3::prelude::*;

/// The private extension module of the `frontier` package.
#[pymodule(gil_used = false)]
mod _frontier {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::features::{feature_names, operator_features};
    #[pymodule_export]
    use super::kv_study::BlockLookups;
    #[pymodule_export]
    use super::pack::{Pack, Predictor};
    #[pymodule_export]
    use super::policy::expression_fault;
    #[pymodule_export]
    use super::run::{simulate, simulate_many, step_breakdown};
    #[pymodule_export]
    use super::trace::Trace;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("DEBUG_BUILD", cfg!(debug_assertions))?;
        module.add("PLAN_SCHEMA_VERSION", frontier_core::plan::SCHEMA_VERSION)?;
        module.add("OUTPUT_STREAM_BASE", frontier_core::workload::OUTPUT_STREAM_BASE)?;
        module.add(
            "ATTRIBUTION_CAUSES",
            frontier_core::metrics::Cause::ALL.map(frontier_core::metrics::Cause::name),
        )
    }
}

//! Hit rates of eviction policies over the block look-ups of a trace.

use frontier_core::kvcache::tiers::{Eviction, HitCounts, Lookups, block_lookups, hit_curve};
use numpy::IntoPyArray;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::to_python;
use crate::trace::Trace;

/// The block look-ups of a trace; `block_size` in tokens.
#[pyclass(frozen, module = "frontier._frontier")]
#[derive(Debug)]
pub(crate) struct BlockLookups {
    lookups: Lookups,
}

#[pymethods]
impl BlockLookups {
    #[new]
    fn new(py: Python<'_>, trace: &Trace, block_size: u32) -> PyResult<Self> {
        let columns = &trace.columns;
        let lookups = py.detach(|| block_lookups(columns, block_size));
        lookups.map(|lookups| Self { lookups }).map_err(|error| to_python(py, &error))
    }

    fn __len__(&self) -> usize {
        self.lookups.keys.len()
    }

    /// Returns how many of the blocks differ.
    fn distinct(&self, py: Python<'_>) -> usize {
        py.detach(|| {
            let mut keys = self.lookups.keys.clone();
            keys.sort_unstable();
            keys.dedup();
            keys.len()
        })
    }

    /// Returns the counts of caches of each of `capacities` blocks under `policy_json` (the plan's `eviction`), as
    /// columns.
    #[expect(clippy::needless_pass_by_value, reason = "extracted arguments are owned")]
    fn hit_curve<'py>(
        &self,
        py: Python<'py>,
        policy_json: &str,
        capacities: Vec<u64>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let Lookups { keys, offsets, times_ns } = &self.lookups;
        let evaluate = || {
            let policy = Eviction::from_json(policy_json)?;
            hit_curve(keys, offsets, times_ns, policy, &capacities)
        };
        let counts: Vec<HitCounts> = py.detach(evaluate).map_err(|error| to_python(py, &error))?;
        let table = PyDict::new(py);
        let column =
            |value: fn(&HitCounts) -> u64| counts.iter().map(value).collect::<Vec<u64>>().into_pyarray(py);
        table.set_item("lookups", column(|count| count.lookups))?;
        table.set_item("block_hits", column(|count| count.block_hits))?;
        table.set_item("prefix_hits", column(|count| count.prefix_hits))?;
        table.set_item("evictions", column(|count| count.evictions))?;
        Ok(table)
    }
}

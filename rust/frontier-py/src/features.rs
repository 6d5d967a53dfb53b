//! Features and bounds of operators from numpy columns, for training predictors.

use std::collections::BTreeMap;

use frontier_core::error::SimError;
use frontier_core::fidelity::features::{self, Columns};
use frontier_core::plan::step_time::{Dtype, GpuSpec, LinksSpec};
use numpy::ndarray::Array2;
use numpy::{IntoPyArray, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::to_python;

/// Columns copied from numpy.
#[derive(Default)]
struct Copied {
    numbers: BTreeMap<String, Vec<f64>>,
    counts: BTreeMap<String, Vec<u32>>,
}

impl Columns for Copied {
    fn numbers(&self, name: &str) -> Option<&[f64]> {
        self.numbers.get(name).map(Vec::as_slice)
    }

    fn counts(&self, name: &str) -> Option<&[u32]> {
        self.counts.get(name).map(Vec::as_slice)
    }
}

impl Copied {
    fn extract(columns: &Bound<'_, PyDict>) -> PyResult<Self> {
        let mut copied = Self::default();
        for (name, column) in columns {
            let name: String = name.extract()?;
            if let Ok(numbers) = column.extract::<PyReadonlyArray1<'_, f64>>() {
                copied.numbers.insert(name, numbers.to_vec()?);
            } else if let Ok(counts) = column.extract::<PyReadonlyArray1<'_, u32>>() {
                copied.counts.insert(name, counts.to_vec()?);
            } else {
                let message =
                    format!("columns: {name:?} must be a one-dimensional array of float64 or uint32");
                return Err(PyValueError::new_err(message));
            }
        }
        Ok(copied)
    }
}

/// Returns the features and the parts of the bound of every row of `columns`: names, features (float32, rows x
/// features), and `compute_s`, `memory_s`, `network_s`, `launch_s`, `flops`, `bytes` (float64, one per row).
#[pyfunction]
#[pyo3(signature = (operator, gpu_json, dtype, columns, links_json=None))]
pub(crate) fn operator_features<'py>(
    py: Python<'py>,
    operator: &str,
    gpu_json: &str,
    dtype: &str,
    columns: &Bound<'py, PyDict>,
    links_json: Option<&str>,
) -> PyResult<Bound<'py, PyDict>> {
    let columns = Copied::extract(columns)?;
    let compute = || -> Result<_, SimError> {
        let gpu = GpuSpec::from_json(gpu_json)?;
        let links = links_json.map_or(Ok(LinksSpec { node: None, network: None }), LinksSpec::from_json)?;
        let dtype = Dtype::from_name(dtype)?;
        features::operator_features(operator, &gpu, links, dtype, &columns)
    };
    let table = py.detach(compute).map_err(|error| to_python(py, &error))?;
    let shape = (table.costs.len(), table.names.len());
    let matrix = Array2::from_shape_vec(shape, table.features)
        .map_err(|error| PyValueError::new_err(error.to_string()))?;
    let result = PyDict::new(py);
    result.set_item("names", table.names)?;
    result.set_item("features", matrix.into_pyarray(py))?;
    for (name, part) in PARTS {
        let values: Vec<f64> = table.costs.iter().map(part).collect();
        result.set_item(name, values.into_pyarray(py))?;
    }
    Ok(result)
}

type Part = fn(&frontier_core::fidelity::cost::Cost) -> f64;

/// Parts of a cost, by name.
const PARTS: [(&str, Part); 6] = [
    ("compute_s", |cost| cost.compute_s),
    ("memory_s", |cost| cost.memory_s),
    ("network_s", |cost| cost.network_s),
    ("launch_s", |cost| cost.launch_s),
    ("flops", |cost| cost.flops),
    ("bytes", |cost| cost.bytes),
];

/// Returns the names of the features of `operator`.
#[pyfunction]
pub(crate) fn feature_names(operator: &str) -> PyResult<Vec<&'static str>> {
    features::feature_names(operator).map(<[_]>::to_vec).ok_or_else(|| {
        let known: Vec<_> = features::FAMILIES.iter().map(|(name, _)| *name).collect();
        PyValueError::new_err(format!("operator: was {operator:?}, must be one of {}", known.join(", ")))
    })
}

//! Packs and predictors.

use std::collections::BTreeMap;
use std::sync::Arc;

use frontier_core::predictor::{self, CellMemo, Compiled, Ensemble, Form, PackIndex};
use numpy::ndarray::ArrayView2;
use numpy::{IntoPyArray, PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::to_python;

/// A pack whose header and manifest have been checked; its predictors are checked when they are loaded.
#[pyclass(frozen, module = "frontier._frontier")]
#[derive(Debug)]
pub(crate) struct Pack {
    /// The bytes stay where they are, which may be a mapped file.
    data: Py<PyArray1<u8>>,
    index: PackIndex,
}

#[pymethods]
impl Pack {
    #[new]
    fn new(py: Python<'_>, data: Bound<'_, PyArray1<u8>>) -> PyResult<Self> {
        let index = {
            let view = data.try_readonly()?;
            let pack = predictor::Pack::parse(view.as_slice()?).map_err(|error| to_python(py, &error))?;
            pack.into_index()
        };
        Ok(Self { data: data.unbind(), index })
    }

    #[getter]
    fn manifest_json(&self) -> &str {
        self.index.manifest_json()
    }

    fn __len__(&self) -> usize {
        self.index.manifest().predictors.len()
    }

    fn load(&self, py: Python<'_>, index: usize) -> PyResult<Predictor> {
        let view = self.data.bind(py).try_readonly()?;
        let pack = predictor::Pack::resume(&self.index, view.as_slice()?);
        let core = pack.and_then(|pack| pack.load(index)).map_err(|error| to_python(py, &error))?;
        Ok(Predictor { core: Arc::new(core) })
    }

    fn __repr__(&self) -> String {
        format!("Pack({}, {} predictors)", self.index.manifest().gpu, self.__len__())
    }
}

/// A loaded predictor, shared with the simulations that use it.
#[pyclass(frozen, module = "frontier._frontier")]
#[derive(Debug)]
pub(crate) struct Predictor {
    core: Arc<predictor::Predictor>,
}

#[pymethods]
impl Predictor {
    #[expect(clippy::needless_pass_by_value, reason = "extracted arguments are owned")]
    fn margin<'py>(
        &self,
        py: Python<'py>,
        x: PyReadonlyArray2<'py, f32>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let ensemble = self.ensemble()?;
        let rows = Rows::read(&x.as_array(), ensemble.num_features())?;
        let margins: Vec<_> = py.detach(|| rows.iter().map(|row| ensemble.margin(row)).collect());
        Ok(margins.into_pyarray(py))
    }

    #[expect(clippy::needless_pass_by_value, reason = "extracted arguments are owned")]
    fn compiled_margin<'py>(
        &self,
        py: Python<'py>,
        x: PyReadonlyArray2<'py, f32>,
        fixed: BTreeMap<usize, f32>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let (compiled, rows) = self.specialise(&x.as_array(), &fixed)?;
        let margins: Vec<_> = py.detach(|| rows.iter().map(|row| compiled.margin(row)).collect());
        Ok(margins.into_pyarray(py))
    }

    #[expect(clippy::needless_pass_by_value, reason = "extracted arguments are owned")]
    fn ratio<'py>(
        &self,
        py: Python<'py>,
        x: PyReadonlyArray2<'py, f32>,
        fixed: BTreeMap<usize, f32>,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let (compiled, rows) = self.specialise(&x.as_array(), &fixed)?;
        let mut memo = CellMemo::new(&compiled);
        let ratios: Vec<_> = py.detach(|| rows.iter().map(|row| memo.ratio(&compiled, row)).collect());
        Ok(ratios.into_pyarray(py))
    }

    #[expect(clippy::needless_pass_by_value, reason = "extracted arguments are owned")]
    fn seconds<'py>(
        &self,
        py: Python<'py>,
        bytes: PyReadonlyArray1<'py, f64>,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let Form::Table(table) = &self.core.form else {
            return Err(PyValueError::new_err("the predictor is no table; use margin"));
        };
        let seconds: Vec<_> = bytes.as_array().iter().map(|&bytes| table.seconds(bytes)).collect();
        Ok(seconds.into_pyarray(py))
    }

    fn __repr__(&self) -> String {
        let id = &self.core.identity;
        format!("Predictor({} {} {:?} {})", id.gpu, id.kernel, id.operator, id.dtype)
    }
}

impl Predictor {
    /// Returns what the simulation evaluates.
    pub(crate) fn core(&self) -> Arc<predictor::Predictor> {
        Arc::clone(&self.core)
    }

    fn ensemble(&self) -> PyResult<&Ensemble> {
        match &self.core.form {
            Form::Trees(ensemble) => Ok(ensemble),
            Form::Table(_) => {
                Err(PyValueError::new_err("the predictor is a table, which has no margin; use seconds"))
            }
        }
    }

    /// Returns the trees with `fixed` resolved, and what rows say of the features that remain.
    fn specialise(
        &self,
        x: &ArrayView2<'_, f32>,
        fixed: &BTreeMap<usize, f32>,
    ) -> PyResult<(Compiled, Rows)> {
        let ensemble = self.ensemble()?;
        let mut values = vec![None; ensemble.num_features()];
        for (&feature, &value) in fixed {
            let count = values.len();
            let Some(slot) = values.get_mut(feature) else {
                let message = format!("fixed: was feature {feature}, there are {count}, numbered from 0");
                return Err(PyValueError::new_err(message));
            };
            if value.is_nan() {
                return Err(PyValueError::new_err(format!("fixed[{feature}]: was NaN, must be a number")));
            }
            *slot = Some(value);
        }
        let rows = Rows::read(x, ensemble.num_features())?;
        let compiled = ensemble.specialise(&values);
        let rows = rows.columns(compiled.free());
        Ok((compiled, rows))
    }
}

/// Rows of features, row by row. A copy, so that the interpreter may go on meanwhile.
struct Rows {
    values: Vec<f32>,
    count: usize,
    width: usize,
}

impl Rows {
    fn read(x: &ArrayView2<'_, f32>, num_features: usize) -> PyResult<Self> {
        let (count, width) = x.dim();
        if width != num_features {
            let message = format!("x: has {width} columns, must have {num_features}, one per feature");
            return Err(PyValueError::new_err(message));
        }
        let values: Vec<f32> = x.iter().copied().collect();
        if let Some(at) = values.iter().position(|value| value.is_nan()) {
            let message = format!("x[{}, {}]: was NaN, must be a number", at / width, at % width);
            return Err(PyValueError::new_err(message));
        }
        Ok(Self { values, count, width })
    }

    fn columns(&self, columns: &[usize]) -> Self {
        let values = self.iter().flat_map(|row| columns.iter().map(|&column| row[column])).collect();
        Self { values, count: self.count, width: columns.len() }
    }

    fn iter(&self) -> impl Iterator<Item = &[f32]> {
        (0..self.count).map(|row| &self.values[row * self.width..(row + 1) * self.width])
    }
}

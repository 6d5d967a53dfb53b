//! Trace columns, shared between runs.

use std::sync::Arc;

use frontier_core::workload::{RawSegments, RawTrace, TraceColumns};
use numpy::{Element, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::to_python;

/// Immutable, checked columns of a trace.
#[pyclass(frozen, module = "frontier._frontier")]
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) columns: Arc<TraceColumns>,
}

#[pymethods]
impl Trace {
    #[new]
    #[pyo3(signature = (arrival_ns, prompt_tokens, output_tokens, *, priority=None, session=None,
        segment_offsets=None, segment_stream=None, segment_start=None, segment_length=None, tie_rank=None, model=None,
        encoder_tokens=None))]
    #[expect(clippy::too_many_arguments, reason = "one keyword per column")]
    #[expect(clippy::needless_pass_by_value, reason = "extracted arguments are owned")]
    fn new(
        py: Python<'_>,
        arrival_ns: PyReadonlyArray1<'_, i64>,
        prompt_tokens: PyReadonlyArray1<'_, u32>,
        output_tokens: PyReadonlyArray1<'_, u32>,
        priority: Option<PyReadonlyArray1<'_, i32>>,
        session: Option<PyReadonlyArray1<'_, u32>>,
        segment_offsets: Option<PyReadonlyArray1<'_, u64>>,
        segment_stream: Option<PyReadonlyArray1<'_, u64>>,
        segment_start: Option<PyReadonlyArray1<'_, u32>>,
        segment_length: Option<PyReadonlyArray1<'_, u32>>,
        tie_rank: Option<PyReadonlyArray1<'_, u32>>,
        model: Option<PyReadonlyArray1<'_, u16>>,
        encoder_tokens: Option<PyReadonlyArray1<'_, u32>>,
    ) -> PyResult<Self> {
        let segments = match (segment_offsets, segment_stream, segment_start, segment_length) {
            (None, None, None, None) => None,
            (Some(offsets), Some(stream), Some(start), Some(length)) => Some(RawSegments {
                offsets: copy(&offsets),
                stream: copy(&stream),
                start: copy(&start),
                length: copy(&length),
            }),
            _ => {
                return Err(PyValueError::new_err("segment_* columns: give all four or none"));
            }
        };
        let raw = RawTrace {
            arrival_ns: copy(&arrival_ns),
            prompt_tokens: copy(&prompt_tokens),
            output_tokens: copy(&output_tokens),
            priority: priority.as_ref().map(copy),
            session: session.as_ref().map(copy),
            segments,
            tie_rank: tie_rank.as_ref().map(copy),
            model: model.as_ref().map(copy),
            encoder_tokens: encoder_tokens.as_ref().map(copy),
        };
        let columns = py.detach(|| TraceColumns::new(raw)).map_err(|error| to_python(py, &error))?;
        Ok(Self { columns: Arc::new(columns) })
    }

    fn __len__(&self) -> usize {
        self.columns.len()
    }

    fn __repr__(&self) -> String {
        format!("Trace({} requests)", self.columns.len())
    }
}

fn copy<T: Element + Copy>(array: &PyReadonlyArray1<'_, T>) -> Vec<T> {
    array.as_array().to_vec()
}

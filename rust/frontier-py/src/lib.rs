//! Python binding: convert, release the GIL, call the core, convert back.
use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _frontier {}

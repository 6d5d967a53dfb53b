//! Runs simulations with the GIL released, in slices, so that Ctrl-C works.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use frontier_core::error::SimError;
use frontier_core::fidelity::{BatchShape, StepTimer};
use frontier_core::metrics::Recorder;
use frontier_core::plan::Plan;
use frontier_core::simulation::{Progress, Simulation, Totals};
use frontier_core::workload::TraceColumns;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::columns::raw_result;
use crate::error::to_python;
use crate::trace::Trace;

/// Events between looks at the clock: well under a millisecond of work, save for huge batches.
const EVENTS_PER_LOOK: u64 = 256;
/// Time between looks for signals.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);
/// Time between progress reports.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

type Finished = Result<(Recorder, Totals), SimError>;

/// Runs a plan to its end and returns its columns.
#[pyfunction]
#[pyo3(signature = (plan_json, trace=None, progress=None))]
pub(crate) fn simulate<'py>(
    py: Python<'py>,
    plan_json: &str,
    trace: Option<&Bound<'py, Trace>>,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let columns = trace.map(|trace| Arc::clone(&trace.get().columns));
    let core = |error: &SimError| to_python(py, error);
    let mut simulation = py.detach(|| start(plan_json, columns)).map_err(|error| core(&error))?;
    let mut last_report = now();
    loop {
        let done = py.detach(|| run_for(&mut simulation, SIGNAL_INTERVAL)).map_err(|error| core(&error))?;
        py.check_signals()?;
        if let Some(progress) = progress
            && (done || last_report.elapsed() >= PROGRESS_INTERVAL)
        {
            last_report = now();
            progress.call1((progress_facts(py, simulation.progress())?,))?;
        }
        if done {
            break;
        }
    }
    let (recorder, totals) = py.detach(|| simulation.finish()).map_err(|error| core(&error))?;
    raw_result(py, recorder, &totals)
}

/// Runs independent plans on `threads` threads. Entry i of the returned list is the raw result of plan i, or
/// the exception that ended it. `progress` is called with (number done, number of plans).
#[pyfunction]
#[pyo3(signature = (plans_json, traces, threads, progress=None))]
#[expect(clippy::needless_pass_by_value, reason = "extracted arguments are owned")]
pub(crate) fn simulate_many<'py>(
    py: Python<'py>,
    plans_json: Vec<String>,
    traces: Vec<Option<Bound<'py, Trace>>>,
    threads: usize,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyList>> {
    if plans_json.len() != traces.len() {
        return Err(PyValueError::new_err("simulate_many: give one trace (or None) per plan"));
    }
    if threads == 0 {
        return Err(PyValueError::new_err("threads: was 0, must be at least 1"));
    }
    let columns: Vec<Option<Arc<TraceColumns>>> =
        traces.iter().map(|trace| trace.as_ref().map(|trace| Arc::clone(&trace.get().columns))).collect();
    let total = plans_json.len();
    let mut results: Vec<Option<Py<PyAny>>> = (0..total).map(|_| None).collect();
    let (next, cancelled) = (AtomicUsize::new(0), AtomicBool::new(false));
    let progress = progress.map(|progress| progress.clone().unbind());
    py.detach(|| {
        let (sender, receiver) = mpsc::channel::<(usize, Finished)>();
        std::thread::scope(|scope| {
            for _ in 0..threads.min(total) {
                let sender = sender.clone();
                let (next, cancelled, plans, columns) = (&next, &cancelled, &plans_json, &columns);
                scope.spawn(move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= plans.len() || cancelled.load(Ordering::Relaxed) {
                            return;
                        }
                        let Some(finished) =
                            run_unless_cancelled(&plans[index], columns[index].clone(), cancelled)
                        else {
                            return;
                        };
                        if sender.send((index, finished)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            let collected = collect(&receiver, &mut results, progress.as_ref());
            cancelled.store(true, Ordering::Relaxed);
            collected
        })
    })?;
    PyList::new(py, results.into_iter().map(|result| result.expect("Invariant: every plan was answered")))
}

/// Receives results until all workers are gone, looking for signals in between.
fn collect(
    receiver: &mpsc::Receiver<(usize, Finished)>,
    results: &mut [Option<Py<PyAny>>],
    progress: Option<&Py<PyAny>>,
) -> PyResult<()> {
    let mut done = 0_usize;
    loop {
        let message = receiver.recv_timeout(SIGNAL_INTERVAL);
        if matches!(message, Err(mpsc::RecvTimeoutError::Disconnected)) {
            return Ok(());
        }
        Python::attach(|py| {
            py.check_signals()?;
            let Ok((index, finished)) = message else {
                return Ok(());
            };
            results[index] = Some(match finished {
                Ok((recorder, totals)) => raw_result(py, recorder, &totals)?.into_any().unbind(),
                Err(error) => to_python(py, &error).into_value(py).into_any(),
            });
            done += 1;
            match progress {
                Some(progress) => progress.call1(py, (done, results.len())).map(drop),
                None => Ok(()),
            }
        })?;
    }
}

/// Returns what each operator of one step costs for a batch of (query tokens, context after) pairs.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "extracted arguments are owned")]
pub(crate) fn step_breakdown<'py>(
    py: Python<'py>,
    plan_json: &str,
    batch: Vec<(u32, u32, bool)>,
) -> PyResult<Bound<'py, PyDict>> {
    let evaluate = || {
        let plan = Plan::from_json(plan_json)?;
        let (max_tokens, max_seqs) = (plan.scheduler.max_num_batched_tokens, plan.scheduler.max_num_seqs);
        let timer = StepTimer::compile(&plan.step_time, max_tokens, max_seqs)?;
        let mut shape = BatchShape::new(timer.windows());
        for &(query_tokens, context_after, is_prefill) in &batch {
            if query_tokens == 0 || context_after < query_tokens {
                return Err(SimError::Input {
                    what: "batch".into(),
                    message: format!(
                        "({query_tokens}, {context_after}): query tokens must be at least 1 and part of the context"
                    ),
                });
            }
            shape.add(query_tokens, context_after, is_prefill);
        }
        Ok((timer.step(&shape)?, timer.breakdown(&shape)?))
    };
    let (time, operators) = evaluate().map_err(|error| to_python(py, &error))?;
    let facts = PyDict::new(py);
    facts.set_item("total_ns", time.total.0)?;
    facts.set_item("cpu_exposed_ns", time.cpu_exposed.0)?;
    facts.set_item("flops", time.flops)?;
    facts.set_item("bytes", time.bytes)?;
    let rows = PyList::empty(py);
    for operator in operators {
        let row = PyDict::new(py);
        row.set_item("name", operator.name)?;
        row.set_item("count", operator.count)?;
        row.set_item("seconds", operator.seconds)?;
        row.set_item("flops", operator.flops)?;
        row.set_item("bytes", operator.bytes)?;
        row.set_item("bound", operator.bound.name())?;
        rows.append(row)?;
    }
    facts.set_item("operators", rows)?;
    Ok(facts)
}

fn start(plan_json: &str, trace: Option<Arc<TraceColumns>>) -> Result<Simulation, SimError> {
    Simulation::new(&Plan::from_json(plan_json)?, trace)
}

/// Runs for about `time` of wall clock. Returns whether the run is over.
fn run_for(simulation: &mut Simulation, time: Duration) -> Result<bool, SimError> {
    let begin = now();
    loop {
        if simulation.run_slice(EVENTS_PER_LOOK)? {
            return Ok(true);
        }
        if begin.elapsed() >= time {
            return Ok(false);
        }
    }
}

fn run_unless_cancelled(
    plan: &str,
    trace: Option<Arc<TraceColumns>>,
    cancelled: &AtomicBool,
) -> Option<Finished> {
    let mut simulation = match start(plan, trace) {
        Ok(simulation) => simulation,
        Err(error) => return Some(Err(error)),
    };
    loop {
        match simulation.run_slice(EVENTS_PER_LOOK) {
            Ok(true) => return Some(simulation.finish()),
            Ok(false) if cancelled.load(Ordering::Relaxed) => return None,
            Ok(false) => {}
            Err(error) => return Some(Err(error)),
        }
    }
}

fn progress_facts(py: Python<'_>, progress: Progress) -> PyResult<Bound<'_, PyDict>> {
    let facts = PyDict::new(py);
    facts.set_item("now_s", progress.now.0 as f64 / 1e9)?;
    facts.set_item("ended", progress.ended)?;
    facts.set_item("total", progress.total)?;
    facts.set_item("events", progress.events)?;
    Ok(facts)
}

#[expect(
    clippy::disallowed_methods,
    reason = "wall clock for signals and progress, never for simulated time"
)]
fn now() -> Instant {
    Instant::now()
}

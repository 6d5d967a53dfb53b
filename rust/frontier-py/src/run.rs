//! Runs simulations with the GIL released, in slices, so that Ctrl-C works.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use frontier_core::error::SimError;
use frontier_core::fidelity::{Provenance, StepTimer};
use frontier_core::metrics::Recorder;
use frontier_core::plan::Plan;
use frontier_core::plan::step_time::StepTimeSpec;
use frontier_core::predictor::Predictor as CorePredictor;
use frontier_core::simulation::{Progress, Simulation, Totals};
use frontier_core::workload::TraceColumns;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::columns::raw_result;
use crate::error::to_python;
use crate::pack::Predictor;
use crate::policy::{CallablePolicy, Raised, policy_error};
use crate::trace::Trace;

/// Work (events, and requests in their batches) between looks at the clock: about a millisecond.
const WORK_PER_LOOK: u64 = 10_000;
/// Time between looks for signals.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);
/// Time between progress reports.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

type Finished = Result<(Recorder, Totals), SimError>;

/// Runs a plan to its end and returns its columns. `predictors` are those that its operators refer to by index.
#[pyfunction]
#[pyo3(signature = (plan_json, trace=None, predictors=Vec::new(), progress=None, policy=None))]
#[expect(clippy::needless_pass_by_value, reason = "extracted arguments are owned")]
pub(crate) fn simulate<'py>(
    py: Python<'py>,
    plan_json: &str,
    trace: Option<&Bound<'py, Trace>>,
    predictors: Vec<Bound<'py, Predictor>>,
    progress: Option<&Bound<'py, PyAny>>,
    policy: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let predictors = cores(&predictors);
    let columns = trace.map(|trace| Arc::clone(&trace.get().columns));
    let raised = Raised::default();
    let core = |error: &SimError| policy_error(py, error, &raised);
    let mut simulation =
        py.detach(|| start(plan_json, columns, &predictors)).map_err(|error| core(&error))?;
    if let Some(callable) = policy {
        let policy = Box::new(CallablePolicy::new(callable, raised.clone()));
        simulation.rank_arrivals_by(policy).map_err(|error| core(&error))?;
    }
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

/// Runs independent plans on up to `threads` threads and calls `done(index, outcome)` as each one ends, in the
/// calling thread: the outcome is the raw result of the plan or the exception that ended it. An exception of
/// `done`, or Ctrl-C, cancels what is left.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "extracted arguments are owned")]
pub(crate) fn simulate_many(
    py: Python<'_>,
    plans_json: Vec<String>,
    traces: Vec<Option<Bound<'_, Trace>>>,
    predictors: Vec<Vec<Bound<'_, Predictor>>>,
    threads: usize,
    done: Py<PyAny>,
) -> PyResult<()> {
    if plans_json.len() != traces.len() || plans_json.len() != predictors.len() {
        let message = "simulate_many: give one trace (or None) and one list of predictors per plan";
        return Err(PyValueError::new_err(message));
    }
    if threads == 0 {
        return Err(PyValueError::new_err("threads: was 0, must be at least 1"));
    }
    let columns: Vec<Option<Arc<TraceColumns>>> =
        traces.iter().map(|trace| trace.as_ref().map(|trace| Arc::clone(&trace.get().columns))).collect();
    let predictors: Vec<_> = predictors.iter().map(|list| cores(list)).collect();
    let batch = Batch {
        plans: &plans_json,
        columns: &columns,
        predictors: &predictors,
        next: AtomicUsize::new(0),
        cancelled: AtomicBool::new(false),
    };
    py.detach(|| {
        let workers = threads.min(plans_json.len());
        // Bounded, so that results do not pile up before a slow caller.
        let (sender, receiver) = mpsc::sync_channel(workers);
        std::thread::scope(|scope| {
            for worker in 0..workers {
                let (sender, batch) = (sender.clone(), &batch);
                let spawned = std::thread::Builder::new().spawn_scoped(scope, move || batch.work(&sender));
                match spawned {
                    Ok(_) => {}
                    Err(error) if worker == 0 => return Err(error.into()),
                    // The system gives no more threads; those that started do all the work.
                    Err(_) => break,
                }
            }
            drop(sender);
            // The receiver ends with `collect`, so that workers that wait to send go on to their end.
            let collected = collect(receiver, &done);
            batch.cancelled.store(true, Ordering::Relaxed);
            collected
        })
    })
}

/// Plans that several threads work off.
struct Batch<'a> {
    plans: &'a [String],
    columns: &'a [Option<Arc<TraceColumns>>],
    predictors: &'a [Vec<Arc<CorePredictor>>],
    next: AtomicUsize,
    cancelled: AtomicBool,
}

impl Batch<'_> {
    /// Runs plans until none is left or the batch is cancelled.
    fn work(&self, sender: &mpsc::SyncSender<(usize, Finished)>) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.plans.len() || self.cancelled.load(Ordering::Relaxed) {
                return;
            }
            let run = || {
                let columns = self.columns[index].clone();
                run_unless_cancelled(&self.plans[index], columns, &self.predictors[index], &self.cancelled)
            };
            // A bug met by one plan must not take the others' results along.
            let finished = catch_unwind(AssertUnwindSafe(run))
                .unwrap_or_else(|panic| Some(Err(SimError::Invariant { what: panic_text(panic.as_ref()) })));
            let Some(finished) = finished else { return };
            if sender.send((index, finished)).is_err() {
                return;
            }
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".into())
}

/// Hands over outcomes until all workers are gone, looking for signals in between.
#[expect(clippy::needless_pass_by_value, reason = "the receiver has to end here")]
fn collect(receiver: mpsc::Receiver<(usize, Finished)>, done: &Py<PyAny>) -> PyResult<()> {
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
            let outcome = match finished {
                Ok((recorder, totals)) => raw_result(py, recorder, &totals)?.into_any(),
                Err(error) => to_python(py, &error).into_value(py).into_bound(py).into_any(),
            };
            done.call1(py, (index, outcome)).map(drop)
        })?;
    }
}

/// Returns what each operator of one step costs on data-parallel rank `rank`, from the plan's `step_time` alone.
/// `batches`: for each rank, (query tokens, context after, is prefill) of its requests; `drafts`: how many of those query tokens are drafts, empty
/// for none.
#[pyfunction]
#[pyo3(signature = (step_time_json, batches, predictors=Vec::new(), rank=0, drafts=Vec::new()))]
#[expect(clippy::needless_pass_by_value, reason = "extracted arguments are owned")]
pub(crate) fn step_breakdown<'py>(
    py: Python<'py>,
    step_time_json: &str,
    batches: Vec<Vec<(u32, u32, bool)>>,
    predictors: Vec<Bound<'py, Predictor>>,
    rank: usize,
    drafts: Vec<Vec<u32>>,
) -> PyResult<Bound<'py, PyDict>> {
    let evaluate = || {
        let spec = StepTimeSpec::from_json(step_time_json)?;
        let tokens = |batch: &Vec<(u32, u32, bool)>| batch.iter().map(|request| u64::from(request.0)).sum();
        let most = batches.iter().map(tokens).max().unwrap_or(0).min(u64::from(u32::MAX)) as u32;
        let seqs = batches.iter().map(Vec::len).max().unwrap_or(0).min(u32::MAX as usize) as u32;
        let mut timer = StepTimer::compile(&spec, most, seqs, &cores(&predictors))?;
        let mut shapes = Vec::with_capacity(batches.len());
        for (place, batch) in batches.iter().enumerate() {
            let mut shape = timer.new_batch();
            for (request, &(query_tokens, context_after, is_prefill)) in batch.iter().enumerate() {
                let drafts = drafts.get(place).and_then(|of_rank| of_rank.get(request)).copied().unwrap_or(0);
                if query_tokens == 0 || context_after < query_tokens || drafts >= query_tokens {
                    return Err(SimError::Input {
                        what: "batch".into(),
                        message: format!(
                            "({query_tokens}, {context_after}, {drafts} drafts): query tokens must be at least 1 and part \
                             of the context, drafts fewer than query tokens"
                        ),
                    });
                }
                shape.add_verifying(query_tokens, context_after, is_prefill, drafts);
            }
            shapes.push(shape);
        }
        let time = timer.step_all(&shapes)?;
        let operators = timer.breakdown(&shapes, rank)?;
        Ok((timer.name(), time, timer.stages_s().to_vec(), operators))
    };
    let (name, time, stages_s, operators) = evaluate().map_err(|error| to_python(py, &error))?;
    let facts = PyDict::new(py);
    facts.set_item("step_time", name)?;
    facts.set_item("total_ns", time.total.0)?;
    facts.set_item("cpu_exposed_ns", time.cpu_exposed.0)?;
    facts.set_item("launch_ns", time.launch.0)?;
    facts.set_item("graph", time.graph.name())?;
    facts.set_item("padded_tokens", time.padded_tokens)?;
    facts.set_item("draft_ns", time.draft.0)?;
    facts.set_item("stages_s", stages_s)?;
    facts.set_item("flops", time.flops)?;
    facts.set_item("bytes", time.bytes)?;
    facts.set_item("active_s", time.active_s)?;
    let rows = PyList::empty(py);
    for operator in operators {
        let row = PyDict::new(py);
        row.set_item("stage", operator.stage)?;
        row.set_item("name", operator.name)?;
        row.set_item("count", operator.count)?;
        row.set_item("seconds", operator.seconds)?;
        row.set_item("bound_s", operator.bound_s)?;
        row.set_item("flops", operator.flops)?;
        row.set_item("bytes", operator.bytes)?;
        row.set_item("bound", operator.bound.name())?;
        row.set_item("provenance", operator.provenance.map(Provenance::name))?;
        rows.append(row)?;
    }
    facts.set_item("operators", rows)?;
    Ok(facts)
}

fn cores(predictors: &[Bound<'_, Predictor>]) -> Vec<Arc<CorePredictor>> {
    predictors.iter().map(|predictor| predictor.get().core()).collect()
}

fn start(
    plan_json: &str,
    trace: Option<Arc<TraceColumns>>,
    predictors: &[Arc<CorePredictor>],
) -> Result<Simulation, SimError> {
    Simulation::new(&Plan::from_json(plan_json)?, trace, predictors)
}

/// Runs for about `time` of wall clock. Returns whether the run is over.
fn run_for(simulation: &mut Simulation, time: Duration) -> Result<bool, SimError> {
    let begin = now();
    loop {
        if simulation.run_slice(WORK_PER_LOOK)? {
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
    predictors: &[Arc<CorePredictor>],
    cancelled: &AtomicBool,
) -> Option<Finished> {
    let mut simulation = match start(plan, trace, predictors) {
        Ok(simulation) => simulation,
        Err(error) => return Some(Err(error)),
    };
    loop {
        match simulation.run_slice(WORK_PER_LOOK) {
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

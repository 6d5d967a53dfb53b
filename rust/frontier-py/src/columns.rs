//! Turns what a run recorded into dictionaries of numpy columns.

#![expect(clippy::cast_possible_wrap, reason = "simulated times fit 63 bits (`SimTime::MAX`)")]

use std::mem::take;

use frontier_core::cluster::KvTierTotals;
use frontier_core::fidelity::{OperatorTrust, Provenance};
use frontier_core::kvcache::tiers::TierCounters;
use frontier_core::metrics::{
    Cause, Recorder, ReplicaSample, RequestRecord, StepRow, StepTable, Timeline, TokenRun, TransferRecord,
};
use frontier_core::simulation::{ClusterTotals, Totals};
use frontier_core::time::SimTime;
use frontier_core::workload::NO_SESSION;
use numpy::{Element, IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

/// Stands for "no replica" in columns.
const NO_REPLICA: u32 = u32::MAX;

/// Returns the raw result of a run: a dictionary of dictionaries of columns.
pub(crate) fn raw_result<'py>(
    py: Python<'py>,
    mut recorder: Recorder,
    totals: &Totals,
) -> PyResult<Bound<'py, PyDict>> {
    let raw = PyDict::new(py);
    let replicas = recorder.steps.len();
    // Each table is freed as soon as its columns exist.
    raw.set_item("requests", requests(py, &take(&mut recorder.requests))?)?;
    raw.set_item("steps", steps(py, &take(&mut recorder.steps), recorder.keeps_step_rows())?)?;
    raw.set_item("token_runs", token_runs(py, &take(&mut recorder.runs))?)?;
    raw.set_item("transfers", transfers(py, &take(&mut recorder.transfers))?)?;
    raw.set_item("timeline", timeline(py, &take(&mut recorder.timeline))?)?;
    let facts = PyDict::new(py);
    facts.set_item("digest", format!("{:016x}", totals.digest))?;
    facts.set_item("end_ns", totals.end.0)?;
    facts.set_item("num_events", totals.events)?;
    let sum = |part: fn(&ClusterTotals) -> u64| totals.clusters.iter().map(part).sum::<u64>();
    facts.set_item("num_steps", totals.steps())?;
    facts.set_item("num_empty_steps", sum(|cluster| cluster.empty_steps))?;
    facts.set_item("draft_ns", sum(|cluster| cluster.draft_ns))?;
    facts.set_item("num_dummy_steps", sum(|cluster| cluster.dummy_steps))?;
    facts.set_item("prefix_lookup_tokens", sum(|cluster| cluster.prefix_lookup_tokens))?;
    facts.set_item("prefix_hit_tokens", sum(|cluster| cluster.prefix_hit_tokens))?;
    let verifications = &recorder.verifications;
    facts.set_item("drafted_per_position", &verifications.drafted)?;
    facts.set_item("accepted_per_position", &verifications.accepted)?;
    facts.set_item("replicas", replicas)?;
    raw.set_item("totals", facts)?;
    raw.set_item("failure", &totals.failure)?;
    raw.set_item("clusters", clusters(py, &totals.clusters)?)?;
    let log = recorder.decision_log.as_mut().map(frontier_core::metrics::DecisionLog::take);
    raw.set_item("decision_log", log)?;
    Ok(raw)
}

/// What the clusters are and rest on, in the order of the plan.
fn clusters<'py>(py: Python<'py>, clusters: &[ClusterTotals]) -> PyResult<Bound<'py, PyList>> {
    let rows = PyList::empty(py);
    for cluster in clusters {
        let row = PyDict::new(py);
        row.set_item("name", &cluster.name)?;
        row.set_item("replicas", cluster.engines)?;
        row.set_item("data_parallel_size", cluster.data_parallel_size)?;
        row.set_item("num_blocks", cluster.num_blocks)?;
        row.set_item("num_steps", cluster.steps)?;
        row.set_item("num_empty_steps", cluster.empty_steps)?;
        row.set_item("step_time", cluster.step_time)?;
        row.set_item("trust", trust(py, &cluster.trust)?)?;
        row.set_item("kv_tiers", kv_tiers(py, &cluster.kv_tiers)?)?;
        rows.append(row)?;
    }
    Ok(rows)
}

/// What step times rest on, one row per operator: seconds by provenance, and the furthest excursion.
fn trust<'py>(py: Python<'py>, operators: &[OperatorTrust]) -> PyResult<Bound<'py, PyList>> {
    let rows = PyList::empty(py);
    for operator in operators {
        let row = PyDict::new(py);
        row.set_item("operator", &operator.name)?;
        for provenance in Provenance::ALL {
            row.set_item(format!("{}_s", provenance.name()), operator.tally.seconds[provenance as usize])?;
        }
        let furthest = operator.tally.furthest;
        row.set_item("feature", furthest.map(|_| operator.feature))?;
        row.set_item("value", furthest.map(|outside| outside.value))?;
        row.set_item("low", furthest.map(|outside| outside.low))?;
        row.set_item("high", furthest.map(|outside| outside.high))?;
        row.set_item("distance", furthest.map(|outside| outside.distance))?;
        rows.append(row)?;
    }
    Ok(rows)
}

/// What the tiers of KV did, the device first; 0 where nothing is known of the device.
fn kv_tiers<'py>(py: Python<'py>, tiers: &[KvTierTotals]) -> PyResult<Bound<'py, PyList>> {
    let rows = PyList::empty(py);
    for tier in tiers {
        let row = PyDict::new(py);
        row.set_item("tier", tier.tier)?;
        row.set_item("lookup_blocks", tier.lookup_blocks)?;
        row.set_item("hit_blocks", tier.hit_blocks)?;
        row.set_item("hit_tokens", tier.hit_tokens)?;
        let counter = |value: fn(&TierCounters) -> u64| tier.counters.as_ref().map_or(0, value);
        row.set_item("read_bytes", counter(|c| c.read_bytes))?;
        row.set_item("written_bytes", counter(|c| c.written_bytes))?;
        row.set_item("read_busy_ns", counter(|c| c.read_busy_ns))?;
        row.set_item("write_busy_ns", counter(|c| c.write_busy_ns))?;
        row.set_item("inserted_blocks", counter(|c| c.inserted_blocks))?;
        row.set_item("evicted_blocks", counter(|c| c.evicted_blocks))?;
        row.set_item("expired_blocks", counter(|c| c.expired_blocks))?;
        row.set_item("refused_blocks", counter(|c| c.refused_blocks))?;
        row.set_item("peak_blocks", counter(|c| c.peak_blocks))?;
        rows.append(row)?;
    }
    Ok(rows)
}

fn requests<'py>(py: Python<'py>, records: &[RequestRecord]) -> PyResult<Bound<'py, PyDict>> {
    let table = PyDict::new(py);
    table.set_item("replica", column(py, records, |r| r.replica.map_or(NO_REPLICA, |id| id.0)))?;
    table.set_item("arrival_ns", column(py, records, |r| r.spec.arrival.0 as i64))?;
    table.set_item("scheduled_ns", column(py, records, |r| or_never(r.scheduled)))?;
    table.set_item("first_token_ns", column(py, records, |r| or_never(r.first_token)))?;
    table.set_item("finished_ns", column(py, records, |r| or_never(r.finished)))?;
    table.set_item("prompt_tokens", column(py, records, |r| r.spec.prompt_tokens))?;
    table.set_item("output_tokens", column(py, records, |r| r.spec.output_tokens))?;
    table.set_item("generated_tokens", column(py, records, |r| r.generated_tokens))?;
    table.set_item("cached_tokens", column(py, records, |r| r.cached_tokens))?;
    table.set_item("preemptions", column(py, records, |r| r.preemptions))?;
    table.set_item("attempts", column(py, records, |r| u32::from(r.attempts)))?;
    table.set_item("num_drafts", column(py, records, |r| r.num_drafts))?;
    table.set_item("draft_tokens", column(py, records, |r| r.draft_tokens))?;
    table.set_item("accepted_tokens", column(py, records, |r| r.accepted_tokens))?;
    table.set_item("priority", column(py, records, |r| r.spec.priority))?;
    table.set_item("session", column(py, records, |r| r.spec.session.map_or(NO_SESSION, |id| id.0)))?;
    table.set_item("model", column(py, records, |r| r.spec.model))?;
    table.set_item("encoder_tokens", column(py, records, |r| r.spec.encoder_tokens))?;
    table.set_item("status", column(py, records, |r| r.status as u8))?;
    table.set_item("reject_reason", column(py, records, |r| r.reject_reason as u8))?;
    for cause in Cause::ALL {
        let (name, at) = (cause.name(), cause as usize);
        table.set_item(format!("ttft_{name}_ns"), column(py, records, |r| r.ttft_causes[at] as i64))?;
        table.set_item(format!("e2e_{name}_ns"), column(py, records, |r| r.e2e_causes()[at] as i64))?;
    }
    Ok(table)
}

fn steps<'py>(py: Python<'py>, tables: &[StepTable], wide: bool) -> PyResult<Bound<'py, PyDict>> {
    let table = PyDict::new(py);
    let mut offsets = vec![0_u64];
    for steps in tables {
        offsets.push(offsets[offsets.len() - 1] + steps.end_ns.len() as u64);
    }
    let ends: Vec<i64> = tables.iter().flat_map(|steps| steps.end_ns.iter().map(|&ns| ns as i64)).collect();
    table.set_item("replica_offsets", offsets.into_pyarray(py))?;
    table.set_item("end_ns", ends.into_pyarray(py))?;
    if wide {
        let rows: Vec<&StepRow> = tables.iter().flat_map(|steps| &steps.rows).collect();
        table.set_item("start_ns", column(py, &rows, |r| r.start_ns as i64))?;
        table.set_item("prefill_tokens", column(py, &rows, |r| r.prefill_tokens))?;
        table.set_item("decode_tokens", column(py, &rows, |r| r.decode_tokens))?;
        table.set_item("num_seqs", column(py, &rows, |r| r.num_seqs))?;
        table.set_item("kv_tokens", column(py, &rows, |r| r.kv_tokens))?;
        table.set_item("num_running", column(py, &rows, |r| r.num_running))?;
        table.set_item("num_waiting", column(py, &rows, |r| r.num_waiting))?;
        table.set_item("free_blocks", column(py, &rows, |r| r.free_blocks))?;
        table.set_item("padded_tokens", column(py, &rows, |r| r.padded_tokens))?;
        table.set_item("graph", column(py, &rows, |r| r.graph))?;
    }
    Ok(table)
}

fn token_runs<'py>(py: Python<'py>, runs: &[TokenRun]) -> PyResult<Bound<'py, PyDict>> {
    let table = PyDict::new(py);
    table.set_item("request", column(py, runs, |r| r.request.0))?;
    table.set_item("first_step", column(py, runs, |r| r.first_step))?;
    table.set_item("last_step", column(py, runs, |r| r.last_step))?;
    table.set_item("tokens_per_step", column(py, runs, |r| r.tokens_per_step))?;
    Ok(table)
}

fn transfers<'py>(py: Python<'py>, transfers: &[TransferRecord]) -> PyResult<Bound<'py, PyDict>> {
    let table = PyDict::new(py);
    table.set_item("request", column(py, transfers, |t| t.request.0))?;
    table.set_item("source", column(py, transfers, |t| t.source.0))?;
    table.set_item("destination", column(py, transfers, |t| t.destination.0))?;
    table.set_item("ready_ns", column(py, transfers, |t| or_never(t.ready)))?;
    table.set_item("start_ns", column(py, transfers, |t| or_never(t.start)))?;
    table.set_item("end_ns", column(py, transfers, |t| or_never(t.end)))?;
    table.set_item("bytes", column(py, transfers, |t| t.bytes))?;
    Ok(table)
}

fn timeline<'py>(py: Python<'py>, timeline: &Timeline) -> PyResult<Bound<'py, PyDict>> {
    let table = PyDict::new(py);
    let samples: &[ReplicaSample] = &timeline.samples;
    table.set_item("time_ns", column(py, &timeline.time_ns, |&ns| ns as i64))?;
    table.set_item("replica", column(py, &timeline.replica, |&id| id))?;
    table.set_item("num_running", column(py, samples, |s| s.num_running))?;
    table.set_item("num_waiting", column(py, samples, |s| s.num_waiting))?;
    table.set_item("used_blocks", column(py, samples, |s| s.used_blocks))?;
    table.set_item("peak_used_blocks", column(py, samples, |s| s.peak_used_blocks))?;
    table.set_item("prompt_tokens", column(py, samples, |s| s.prompt_tokens))?;
    table.set_item("output_tokens", column(py, samples, |s| s.output_tokens))?;
    table.set_item("finished", column(py, samples, |s| s.finished))?;
    table.set_item("preemptions", column(py, samples, |s| s.preemptions))?;
    table.set_item("busy_ns", column(py, samples, |s| s.busy_ns as i64))?;
    table.set_item("used_block_ns", column(py, samples, |s| s.used_block_ns as f64))?;
    table.set_item("flops", column(py, samples, |s| s.flops))?;
    table.set_item("bytes", column(py, samples, |s| s.bytes))?;
    table.set_item("active_s", column(py, samples, |s| s.active_s))?;
    Ok(table)
}

fn column<'py, R, T: Element>(
    py: Python<'py>,
    rows: &[R],
    value: impl Fn(&R) -> T,
) -> Bound<'py, PyArray1<T>> {
    rows.iter().map(value).collect::<Vec<T>>().into_pyarray(py)
}

fn or_never(time: Option<SimTime>) -> i64 {
    time.map_or(-1, |time| time.0 as i64)
}

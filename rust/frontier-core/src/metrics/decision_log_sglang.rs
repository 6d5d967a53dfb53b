//! The decisions of SGLang's scheduler as JSON lines, in the format of the golden logs (`sglang-scheduler` oracle,
//! SGLang 0.5.3), with request numbers in place of names.

use std::fmt::Write as _;

use super::decision_log::{StepFacts, list, number};
use crate::scheduler::{SchedulerOutput, SglangScheduler, StepOutcome};

/// Returns the first part of the record of a batch, written when it is formed.
pub(super) fn begin(facts: &StepFacts, scheduler: &SglangScheduler, batch: &SchedulerOutput) -> String {
    let mut record = String::new();
    let Some(formed) = scheduler.newest() else { return record };
    let extends = formed.extends();
    record.push('{');
    if scheduler.has_part() {
        let _ = write!(record, "\"eng\":\"e{}\",", facts.replica.0);
    }
    let _ = write!(
        record,
        "\"step\":{},\"ts\":{},\"start\":{},\"end\":{},\"mode\":\"{}\",\"sched\":",
        facts.step,
        facts.scheduled_at.0,
        facts.start.0,
        facts.end.0,
        formed.mode()
    );
    list(&mut record, batch.scheduled.iter().enumerate(), |out, (position, entry)| {
        let (kind, (before, num_tokens)) = match extends.get(position) {
            Some(&extend) if scheduler.awaits_chunk(entry.slot) => ("chunk", extend),
            Some(&extend) => ("prefill", extend),
            None => ("decode", (i64::from(entry.computed_before), 1)),
        };
        let _ = write!(out, "[{},\"{kind}\",{before},{num_tokens}]", entry.id.0);
    });
    record.push_str(",\"wait\":");
    list(&mut record, scheduler.waiting(), |out, id| number(out, id.0));
    record.push_str(",\"run\":");
    list(&mut record, scheduler.running(), |out, id| number(out, id.0));
    record.push_str(",\"chunked\":");
    match scheduler.chunked() {
        Some(id) => number(&mut record, id.0),
        None => record.push_str("null"),
    }
    let _ = write!(
        record,
        ",\"full\":{},\"ratio\":{:.9},\"avail\":{},\"evictable\":{},\"pf\":{},\"dc\":{},\"kv\":{}",
        scheduler.batch_is_full(),
        scheduler.new_token_ratio(),
        scheduler.available(),
        scheduler.evictable(),
        extends.iter().map(|extend| extend.1).sum::<i64>(),
        batch.scheduled.len() - extends.len(),
        facts.kv_tokens,
    );
    if !scheduler.returned().is_empty() {
        record.push_str(",\"retract\":");
        list(&mut record, scheduler.returned().iter(), |out, id| number(out, id.0));
    }
    record
}

/// Returns what the output of a batch changed, the second part of its record.
pub(super) fn end(scheduler: &SglangScheduler, outcome: &StepOutcome) -> String {
    let mut record = String::from(",\"out\":");
    list(&mut record, outcome.emitted.iter(), |out, emission| number(out, emission.id.0));
    record.push_str(",\"fin\":");
    list(&mut record, outcome.finished.iter(), |out, id| number(out, id.0));
    let _ = write!(
        record,
        ",\"avail_end\":{},\"evictable_end\":{}}}",
        scheduler.available(),
        scheduler.evictable()
    );
    record
}

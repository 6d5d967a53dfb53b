//! The order in which policies serve requests, on cases small enough to work out by hand.

use std::sync::Arc;

use frontier_core::error::SimError;
use frontier_core::ids::{RequestId, SessionId};
use frontier_core::plan::SchedulerConfig;
use frontier_core::plan::policy::{Policy, VtcSpec};
use frontier_core::scheduler::{
    Admission, BatchScheduler, Handover, SchedulerOutput, StepOutcome, Submission, VllmScheduler,
};
use frontier_core::time::SimTime;
use frontier_core::workload::{OUTPUT_STREAM_BASE, RawTrace, Segment, TraceColumns};
use serde_json::{Value, json};

use crate::support::{burst, plan, run_with, vllm_config};

/// One request: arrival in ms, prompt, output, priority, session.
type Row = (u64, u32, u32, i32, u32);

/// Returns the requests in order of their first tokens on an engine that runs one at a time; a step takes 1 ms.
fn order(policy: &Value, rows: &[Row]) -> Vec<usize> {
    by(policy, rows, 1, |times| times.0)
}

/// Returns the requests in order of their last tokens on an engine that runs `seqs` at a time.
fn endings(policy: &Value, rows: &[Row], seqs: u32) -> Vec<usize> {
    by(policy, rows, seqs, |times| times.1)
}

fn by(policy: &Value, rows: &[Row], seqs: u32, key: fn((u64, u64)) -> u64) -> Vec<usize> {
    let trace = TraceColumns::new(RawTrace {
        arrival_ns: rows.iter().map(|row| i64::try_from(row.0 * 1_000_000).unwrap()).collect(),
        prompt_tokens: rows.iter().map(|row| row.1).collect(),
        output_tokens: rows.iter().map(|row| row.2).collect(),
        priority: Some(rows.iter().map(|row| row.3).collect()),
        session: Some(rows.iter().map(|row| row.4).collect()),
        segments: None,
        ..RawTrace::default()
    })
    .unwrap();
    let mut document = plan(&json!({"kind": "trace", "arrivals": null, "num_requests": null}));
    document["clusters"][0]["scheduler"]["policy"] = policy.clone();
    document["clusters"][0]["scheduler"]["max_num_seqs"] = json!(seqs);
    document["clusters"][0]["step_time"]["per_prefill_token_ns"] = json!(0);
    let (recorder, _) = run_with(&document, Some(Arc::new(trace))).unwrap();
    let mut ids: Vec<usize> = (0..rows.len()).collect();
    ids.sort_by_key(|&id| {
        let record = &recorder.requests[id];
        key((record.first_token.unwrap().0, record.finished.unwrap().0))
    });
    ids
}

const SIZES: [Row; 4] = [(0, 8, 9, 0, 0), (1, 30, 2, 0, 0), (2, 20, 4, 0, 0), (3, 10, 8, 0, 0)];

fn length(by: &str, preemptive: bool) -> Value {
    json!({"by": by, "error": 0.0, "preemptive": preemptive})
}

#[test]
fn shortest_jobs_go_first() {
    assert_eq!(order(&json!("fcfs"), &SIZES), [0, 1, 2, 3]);
    assert_eq!(order(&json!({"sjf": length("prompt", false)}), &SIZES), [0, 3, 2, 1]);
    assert_eq!(order(&json!({"sjf": length("output", false)}), &SIZES), [0, 1, 2, 3]);
    assert_eq!(order(&json!({"sjf": length("total", false)}), &SIZES), [0, 3, 2, 1]);
}

#[test]
fn the_shortest_rest_displaces_whom_it_undercuts() {
    // Request 0 has 8 of 9 tokens left at 1 ms and gives way; at 3 ms request 1 is done, and 2 goes before 3.
    assert_eq!(endings(&json!({"srpt": length("output", true)}), &SIZES, 1), [1, 2, 0, 3]);
    assert_eq!(endings(&json!({"srpt": length("output", false)}), &SIZES, 1), [0, 1, 2, 3]);
}

#[test]
fn deadlines_follow_the_class() {
    let rows = [(0, 8, 9, 0, 0), (1, 8, 2, 0, 0), (2, 8, 2, 1, 0), (3, 8, 2, 7, 0)];
    let edf = |objectives: &[u64]| json!({"edf": {"objectives_ns": objectives, "preemptive": false}});
    // Deadlines in ms: 51, 12, 13 for requests 1, 2 and 3 (the last objective holds for larger priorities).
    assert_eq!(order(&edf(&[50_000_000, 10_000_000]), &rows), [0, 2, 3, 1]);
    assert_eq!(order(&edf(&[50_000_000]), &rows), [0, 1, 2, 3]);
}

#[test]
fn slack_counts_what_a_request_still_needs() {
    // One objective for all: the last, with 40 tokens to generate, has 41 ms less to spare than the second.
    let rows = [(0, 8, 9, 0, 0), (1, 8, 2, 0, 0), (2, 8, 40, 0, 0)];
    let slack = |objective: &str| {
        json!({"least_slack": {"objectives_ns": [100_000_000], "objective": objective,
               "per_prefill_token_ns": 0, "per_decode_token_ns": 1_000_000, "error": 0.0}})
    };
    assert_eq!(order(&slack("e2e"), &rows), [0, 2, 1]);
    assert_eq!(order(&slack("ttft"), &rows), [0, 1, 2]);
}

fn mlfq(skip_join: bool, starvation_ns: Option<u64>, preemptive: bool) -> Value {
    json!({"levels": 3, "quantum_tokens": 4, "growth": 2, "prompt_tokens_per_unit": 10,
           "skip_join": skip_join, "starvation_ns": starvation_ns, "preemptive": preemptive})
}

#[test]
fn long_prompts_skip_the_early_queues() {
    // Quanta of 40 and 80 prompt tokens: requests 1, 2 and 3 join queues 2, 1 and 0.
    let rows = [(0, 8, 3, 0, 0), (1, 90, 2, 0, 0), (1, 50, 2, 0, 0), (1, 30, 2, 0, 0)];
    assert_eq!(order(&json!({"mlfq": mlfq(true, None, false)}), &rows), [0, 3, 2, 1]);
    assert_eq!(order(&json!({"mlfq": mlfq(false, None, false)}), &rows), [0, 1, 2, 3]);
}

#[test]
fn who_used_up_its_quantum_gives_way_unless_it_starves() {
    // Request 0 leaves the first queue after 8 + 4 * 10 > 40 units, in its fifth step; 1 arrives before.
    let rows = [(0, 8, 20, 0, 0), (2, 8, 3, 0, 0)];
    assert_eq!(endings(&json!({"mlfq": mlfq(true, None, true)}), &rows, 1), [1, 0]);
    assert_eq!(endings(&json!({"mlfq": mlfq(true, None, false)}), &rows, 1), [0, 1]);
    // Long prompts in the last queue pass the short ones that keep coming once they have waited 3 ms.
    let rows = [(0, 8, 3, 0, 0), (0, 90, 1, 0, 0), (1, 8, 3, 0, 0), (2, 8, 3, 0, 0), (4, 8, 3, 0, 0)];
    assert_eq!(order(&json!({"mlfq": mlfq(true, None, false)}), &rows), [0, 2, 3, 4, 1]);
    assert_eq!(order(&json!({"mlfq": mlfq(true, Some(3_000_000), false)}), &rows), [0, 1, 2, 3, 4]);
}

#[test]
fn sessions_with_much_service_wait_for_those_with_little() {
    let policy = json!({"c_mlfq": {"queues": mlfq(false, None, false),
                        "small_return_tokens": 2, "large_return_tokens": 60}});
    // Session 1 has had 8 + 5 * 10 units of the first 40 when its second turn comes: queue 1. It adds 7 tokens.
    let rows = [(0, 8, 6, 0, 1), (20, 8, 9, 0, 2), (21, 21, 2, 0, 1), (22, 8, 2, 0, 3)];
    assert_eq!(order(&policy, &rows), [0, 1, 3, 2]);
    // A small return brings the turn back to queue 0, and arrival decides.
    let rows = [(0, 8, 6, 0, 1), (20, 8, 9, 0, 2), (21, 15, 2, 0, 1), (22, 8, 2, 0, 3)];
    assert_eq!(order(&policy, &rows), [0, 1, 2, 3]);
}

#[test]
fn counters_alternate_between_clients() {
    // Session 1 floods; session 2 comes later and is lifted to the least counter that waits, then they alternate.
    let rows = [
        (0, 10, 2, 0, 1),
        (0, 10, 2, 0, 1),
        (0, 10, 2, 0, 1),
        (0, 10, 2, 0, 1),
        (1, 10, 2, 0, 2),
        (1, 10, 2, 0, 2),
    ];
    let policy = json!({"vtc": {"input_weight": 1.0, "output_weight": 2.0}});
    assert_eq!(order(&json!("fcfs"), &rows), [0, 1, 2, 3, 4, 5]);
    // When 0 is done, its client is at 14; client 2 was lifted to the 12 of that time (10 and one token).
    assert_eq!(order(&policy, &rows), [0, 4, 1, 5, 2, 3]);
}

#[test]
fn expressions_decide() {
    let expression = |text: &str| json!({"expression": {"text": text, "objectives_ns": [], "error": 0.0, "preemptive": false}});
    assert_eq!(order(&expression("-prompt_tokens"), &SIZES), [0, 1, 2, 3]);
    assert_eq!(order(&expression("if(output_tokens < 5, 0, 1) * 1000 - arrival"), &SIZES), [0, 2, 1, 3]);
    assert_eq!(order(&expression("prompt_tokens - waiting_time * 1e6"), &SIZES), [0, 1, 2, 3]);
    let mut document = plan(&burst(1, 1, 1));
    document["clusters"][0]["scheduler"]["policy"] = expression("prompt_tokens +");
    let error = crate::support::run(&document).err().unwrap();
    assert_eq!(
        error,
        SimError::Plan {
            path: "scheduler.policy.expression.text".into(),
            message: "at character 16: expected a value, found the end".into()
        }
    );
}

#[test]
fn predictions_with_an_error_are_the_same_in_every_run() {
    let rows: Vec<Row> = (0..12).map(|id| (u64::from(id > 0), 8, 4 + id, 0, 0)).collect();
    let policy = |error: f64| json!({"sjf": {"by": "output", "error": error, "preemptive": false}});
    assert_eq!(order(&policy(0.0), &rows), (0..12).collect::<Vec<_>>());
    assert_ne!(order(&policy(1.0), &rows), (0..12).collect::<Vec<_>>());
    assert_eq!(order(&policy(1.0), &rows), order(&policy(1.0), &rows));
}

/// The bound of the VTC paper (theorem 4.4): while two clients are backlogged, the weighted services that they got
/// differ by at most twice the larger of the longest prompt's cost and that of all tokens that a batch can generate.
#[test]
fn backlogged_clients_get_nearly_equal_service() {
    const SEQS: u32 = 4;
    const OUTPUT: [u32; 2] = [40, 5];
    const PROMPT: [u32; 2] = [10, 60];
    let gap = |policy: Policy| {
        let config =
            SchedulerConfig { max_num_seqs: SEQS, policy, enable_prefix_caching: false, ..vllm_config() };
        let mut scheduler = VllmScheduler::new(config);
        for id in 0..200_usize {
            let client = id / 100; // the first client's requests all come before the second's
            scheduler.add_request(&Submission {
                id: RequestId::from_index(id),
                arrival: SimTime(0),
                priority: 0,
                tie_rank: id as u32,
                session: Some(SessionId(client as u32)),
                score: 0.0,
                prompt_tokens: PROMPT[client],
                max_tokens: OUTPUT[client],
                segments: &[Segment { stream: id as u64, start: 0, len: PROMPT[client] }],
                output_stream: OUTPUT_STREAM_BASE + id as u64,
                handover: Handover::Neither,
            });
        }
        let (mut batch, mut outcome) = (SchedulerOutput::default(), StepOutcome::default());
        let (mut service, mut waiting, mut widest) = ([0.0_f64; 2], [100_u32; 2], 0.0_f64);
        while waiting[0] > 0 && waiting[1] > 0 {
            scheduler.schedule(SimTime(0), &mut batch);
            for entry in batch.scheduled.iter().filter(|entry| entry.admission == Admission::New) {
                let client = entry.id.index() / 100;
                waiting[client] -= 1;
                service[client] += f64::from(PROMPT[client]);
            }
            scheduler.update(SimTime(0), &batch, &mut outcome);
            for emission in &outcome.emitted {
                service[emission.id.index() / 100] += 2.0 * f64::from(emission.num_tokens);
            }
            outcome.retired.iter().for_each(|&slot| scheduler.retire(slot));
            widest = widest.max((service[0] - service[1]).abs());
        }
        widest
    };
    let generated = 2.0 * f64::from(SEQS * OUTPUT[0]);
    let bound = 2.0 * generated.max(f64::from(PROMPT[1]));
    let fair = gap(Policy::Vtc(VtcSpec { input_weight: 1.0, output_weight: 2.0 }));
    assert!(fair <= bound, "{fair} > {bound}");
    assert!(gap(Policy::Fcfs) > 10.0 * bound);
}

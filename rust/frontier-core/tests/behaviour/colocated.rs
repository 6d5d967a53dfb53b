//! Co-located serving, end to end, against closed forms.

use crate::support::{assert_causes_add_up_in_a_tight_cache, burst, plan, run, synthetic};
use frontier_core::metrics::{Cause, RequestStatus};
use frontier_core::time::SimTime;
use serde_json::json;

#[test]
fn a_lone_request_takes_one_prefill_and_its_decodes() {
    let (recorder, totals) = run(&plan(&burst(1, 100, 5))).unwrap();
    let record = &recorder.requests[0];
    assert_eq!(record.first_token, Some(SimTime(2_000_000))); // 1 ms + 100 x 10 us
    assert_eq!(record.finished, Some(SimTime(6_000_000)));
    assert_eq!((record.generated_tokens, totals.clusters[0].steps), (5, 5));
    assert_eq!(record.e2e_causes()[Cause::Prefill as usize], 2_000_000);
    assert_eq!(record.e2e_causes()[Cause::Decode as usize], 4_000_000);
}

#[test]
fn a_long_prompt_is_computed_in_chunks_of_the_budget() {
    let (recorder, totals) = run(&plan(&burst(1, 600, 1))).unwrap();
    assert_eq!(totals.clusters[0].steps, 3); // 256 + 256 + 88
    assert_eq!(recorder.requests[0].first_token, Some(SimTime(3 * 1_000_000 + 600 * 10_000)));
}

#[test]
fn an_open_loop_below_capacity_queues_like_m_d_1() {
    // One request at a time, 10 steps of 1 ms and 1 prefill token: a service of 10.01 ms, at half load.
    let mut plan = plan(&synthetic(&json!({"kind": "poisson", "rate_per_s": 50.0}), 40_000, 1, 10));
    plan["clusters"][0]["scheduler"]["max_num_seqs"] = json!(1);
    plan["output"]["steps"] = json!(false);
    let (recorder, _) = run(&plan).unwrap();
    let service = 10.01e6;
    let load = 50.0 * service / 1e9;
    let expected_wait = load * service / (2.0 * (1.0 - load));
    let waits = recorder.requests.iter().map(|r| r.scheduled.unwrap().0 - r.spec.arrival.0);
    let mean = waits.sum::<u64>() as f64 / 40_000.0;
    assert!(
        (mean / expected_wait - 1.0).abs() < 0.05,
        "mean wait {mean} ns, Pollaczek-Khinchine {expected_wait} ns"
    );
}

#[test]
fn a_closed_loop_keeps_its_concurrency() {
    let arrivals = json!({"kind": "closed_loop", "concurrency": 4, "think_time_ns": 0});
    let (recorder, _) = run(&plan(&synthetic(&arrivals, 40, 16, 8))).unwrap();
    assert!(recorder.requests.iter().all(|r| r.status == RequestStatus::Finished));
    let most_running = recorder.steps[0].rows.iter().map(|row| row.num_running + row.num_waiting).max();
    assert_eq!(most_running, Some(4));
    assert!(recorder.steps[0].rows.iter().rev().skip(9).all(|row| row.num_running == 4));
}

#[test]
fn requests_that_can_never_fit_are_refused_with_a_reason() {
    for (prompt, output, reason) in [(1000, 100, 1), (900, 200, 1)] {
        let (recorder, totals) = run(&plan(&burst(3, prompt, output))).unwrap();
        assert!(recorder.requests.iter().all(|r| r.status == RequestStatus::Rejected));
        assert!(recorder.requests.iter().all(|r| r.reject_reason as u8 == reason));
        assert_eq!(totals.clusters[0].steps, 0);
    }
    let mut small = plan(&burst(1, 500, 13));
    small["clusters"][0]["scheduler"]["num_blocks"] = json!(33); // 32 usable x 16 = 512 = 500 + 13 - 1 tokens with KV
    assert_eq!(run(&small).unwrap().0.requests[0].status, RequestStatus::Finished);
    small["clusters"][0]["scheduler"]["num_blocks"] = json!(32);
    assert_eq!(run(&small).unwrap().0.requests[0].reject_reason as u8, 2);
    let mut unchunked = plan(&burst(1, 300, 1));
    unchunked["clusters"][0]["scheduler"]["enable_chunked_prefill"] = json!(false);
    assert_eq!(run(&unchunked).unwrap().0.requests[0].reject_reason as u8, 3);
}

#[test]
fn causes_add_up_under_preemption_in_both_engines() {
    for asynchronous in [false, true] {
        let mut plan = plan(&burst(16, 90, 120));
        plan["clusters"][0]["scheduler"]["async_scheduling"] = json!(asynchronous);
        plan["clusters"][0]["scheduler"]["scheduler_reserve_full_isl"] = json!(false);
        let (recorder, _) = run(&plan).unwrap();
        assert_causes_add_up_in_a_tight_cache(&recorder);
        for record in &recorder.requests {
            assert_eq!(record.status, RequestStatus::Finished);
            if record.preemptions > 0 {
                assert!(record.e2e_causes()[Cause::PreemptionWait as usize] > 0);
            }
        }
    }
}

#[test]
fn token_runs_account_for_every_token() {
    let (recorder, _) = run(&plan(&burst(16, 90, 120))).unwrap();
    let mut tokens = vec![0; recorder.requests.len()];
    for run in &recorder.runs {
        tokens[run.request.index()] += (run.last_step - run.first_step + 1) * run.tokens_per_step;
    }
    assert!(tokens.iter().all(|&count| count == 120), "{tokens:?}");
}

#[test]
fn counters_of_the_time_line_end_at_the_totals() {
    let (recorder, totals) = run(&plan(&burst(16, 90, 120))).unwrap();
    let last = recorder.timeline.samples.last().unwrap();
    assert_eq!(last.output_tokens, 16 * 120);
    assert_eq!(last.finished, 16);
    assert_eq!(last.busy_ns, totals.end.0, "a backlog keeps the device busy without a gap");
    assert_eq!((last.num_running, last.num_waiting, last.used_blocks), (0, 0, 0));
}

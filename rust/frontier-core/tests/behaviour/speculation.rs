//! Speculative decoding: tokens per step, drafts in vain, and blocks held for drafts.

use frontier_core::metrics::{Recorder, RequestStatus};
use serde_json::{Value, json};

use crate::support::{assert_causes_add_up_in_a_tight_cache, burst, plan, run, synthetic};

/// Returns the plan over `workload` with `num_drafts` drafts per step, each accepted with probability `rate`.
fn drafting(workload: &Value, method: &str, num_drafts: u32, rate: f64) -> Value {
    let mut plan = plan(workload);
    plan["clusters"][0]["scheduler"]["speculative"] = json!({
        "method": method, "num_speculative_tokens": num_drafts, "draft_length": {"kind": "full"},
        "acceptance": {"kind": "rate", "rate": rate}, "seed": 5, "replication": 0
    });
    plan
}

/// Returns (steps, tokens of each step) of a lone request.
fn runs(recorder: &Recorder) -> Vec<(u32, u32)> {
    recorder.runs.iter().map(|run| (run.last_step - run.first_step + 1, run.tokens_per_step)).collect()
}

#[test]
fn accepted_drafts_come_with_their_step_and_the_last_may_be_cut_short() {
    // One token from the prompt, two steps of 1 + 3, and a last one of which a single token is wanted.
    let (recorder, totals) = run(&drafting(&burst(1, 40, 10), "ngram", 3, 1.0)).unwrap();
    assert_eq!(runs(&recorder), [(1, 1), (2, 4), (1, 1)]);
    assert_eq!(totals.clusters[0].steps, 4);
    let record = &recorder.requests[0];
    assert_eq!((record.generated_tokens, record.status), (10, RequestStatus::Finished));
    assert_eq!((record.num_drafts, record.draft_tokens, record.accepted_tokens), (3, 9, 9));
    assert_eq!(recorder.verifications.accepted, [3, 3, 3]);
    assert_eq!(record.finished.unwrap().0 - record.first_token.unwrap().0, 3_000_000);
}

#[test]
fn rejected_drafts_cost_tokens_and_nothing_else() {
    let (plain, _) = run(&plan(&burst(3, 40, 10))).unwrap();
    let (drafted, totals) = run(&drafting(&burst(3, 40, 10), "ngram", 3, 0.0)).unwrap();
    assert_eq!(totals.clusters[0].steps, 10);
    for (with, without) in drafted.requests.iter().zip(&plain.requests) {
        assert_eq!(with.finished, without.finished);
        assert_eq!((with.num_drafts, with.draft_tokens, with.accepted_tokens), (9, 27, 0));
    }
    let rows = &drafted.steps[0].rows;
    assert_eq!((rows[0].prefill_tokens, rows[0].decode_tokens), (120, 0));
    assert!(rows[1..].iter().all(|row| (row.prefill_tokens, row.decode_tokens) == (0, 12)));
}

#[test]
fn acceptance_does_not_depend_on_batching_or_on_asynchronous_scheduling() {
    let alone = synthetic(&json!({"kind": "constant", "rate_per_s": 1.0}), 12, 40, 60);
    let outcome = |workload: &Value, asynchronous: bool| {
        let mut plan = drafting(workload, "eagle", 3, 0.6);
        plan["clusters"][0]["scheduler"]["async_scheduling"] = json!(asynchronous);
        let (recorder, _) = run(&plan).unwrap();
        assert!(recorder.requests.iter().all(|request| request.generated_tokens == 60));
        recorder.requests.iter().map(|r| (r.num_drafts, r.accepted_tokens)).collect::<Vec<_>>()
    };
    let expected = outcome(&alone, false);
    assert_eq!(outcome(&burst(12, 40, 60), false), expected);
    assert_eq!(outcome(&alone, true), expected);
    assert!(expected.iter().any(|pair| *pair != expected[0]), "requests draw for themselves");
}

#[test]
fn a_lookup_without_a_match_decodes_plainly() {
    for asynchronous in [false, true] {
        let mut plan = drafting(&burst(4, 40, 30), "ngram_gpu", 3, 1.0);
        plan["clusters"][0]["scheduler"]["async_scheduling"] = json!(asynchronous);
        let drafts = &mut plan["clusters"][0]["scheduler"]["speculative"]["draft_length"];
        *drafts = json!({"kind": "match", "rate": 0.0, "min_context_tokens": 6});
        let (recorder, _) = run(&plan).unwrap();
        assert!(recorder.requests.iter().all(|request| request.accepted_tokens == 0));
        assert!(recorder.runs.iter().all(|run| run.tokens_per_step == 1));
        // Asynchronous scheduling plans for drafts that may not come.
        assert_eq!(recorder.requests[0].draft_tokens > 0, asynchronous);
    }
}

#[test]
fn drafters_with_kv_hold_blocks_that_no_token_fills() {
    let peak = |method: &str, num_drafts: u32| {
        let (recorder, _) = run(&drafting(&burst(1, 30, 3), method, num_drafts, 0.0)).unwrap();
        recorder.timeline.samples.iter().map(|sample| sample.peak_used_blocks).max().unwrap()
    };
    // The last step computes tokens 31 ..= 32 + k, and EAGLE keeps k slots beyond.
    assert_eq!([peak("ngram", 1), peak("ngram", 17), peak("medusa", 17)], [3, 4, 4]);
    assert_eq!(
        [peak("eagle", 1), peak("mtp", 17), peak("draft_model", 17), peak("eagle", 255)],
        [3, 5, 5, 34]
    );
}

#[test]
fn causes_add_up_with_drafts_in_every_engine() {
    for (stages, asynchronous) in [(1, false), (1, true), (2, false), (3, true)] {
        let mut plan = drafting(&burst(16, 90, 120), "eagle", 2, 0.5);
        plan["clusters"][0]["scheduler"]["async_scheduling"] = json!(asynchronous);
        plan["clusters"][0]["scheduler"]["pipeline_parallel_size"] = json!(stages);
        plan["clusters"][0]["scheduler"]["scheduler_reserve_full_isl"] = json!(false);
        let (recorder, _) = run(&plan).unwrap();
        assert_causes_add_up_in_a_tight_cache(&recorder);
        for record in &recorder.requests {
            assert!(record.accepted_tokens <= record.draft_tokens);
        }
    }
}

#[test]
fn digests_know_what_became_of_drafts() {
    // Of the second token's step only that token is wanted, so that acceptance changes no time.
    let outcome = |rate: f64| {
        let (recorder, totals) = run(&drafting(&burst(1, 40, 2), "ngram", 3, rate)).unwrap();
        (recorder.requests[0].finished, totals.digest)
    };
    let ((all_at, all), (none_at, none)) = (outcome(1.0), outcome(0.0));
    assert_eq!(all_at, none_at);
    assert_ne!(all, none);
}

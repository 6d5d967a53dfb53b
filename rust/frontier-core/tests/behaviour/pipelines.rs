//! Pipeline stages: batches overlap, bubbles appear, and books stay exact.

use frontier_core::metrics::Cause;
use frontier_core::plan::SchedulerConfig;
use serde_json::{Value, json};

use crate::support::{assert_causes_add_up_in_a_tight_cache, burst, plan, run, vllm_config};

/// Returns the plan over `workload` with `stages` stages: 1 ms per step and 10 us per prefill token in all.
fn staged(workload: &Value, stages: u32, asynchronous: bool) -> Value {
    let mut plan = plan(workload);
    plan["clusters"][0]["scheduler"]["pipeline_parallel_size"] = json!(stages);
    plan["clusters"][0]["scheduler"]["async_scheduling"] = json!(asynchronous);
    plan
}

#[test]
fn a_lone_request_leaves_all_but_one_stage_idle() {
    let (recorder, totals) = run(&staged(&burst(1, 100, 11), 4, false)).unwrap();
    // 2 ms for the prompt, and ten decodes of 1 ms: as without stages.
    assert_eq!(totals.end.0, 12_000_000);
    assert_eq!(recorder.timeline.samples.last().unwrap().busy_ns, 3_000_000);
}

#[test]
fn batches_follow_one_another_through_the_stages() {
    // The budget of 256 tokens holds one prompt, so that each of four requests has a batch of its own: one step of
    // 3.56 ms, then decodes of 1 ms, four batches in flight.
    let (recorder, totals) = run(&staged(&burst(4, 256, 21), 4, false)).unwrap();
    let ends: Vec<u64> = recorder.requests.iter().map(|request| request.first_token.unwrap().0).collect();
    let part = 3_560_000 / 4;
    assert_eq!(ends, [4, 5, 6, 7].map(|parts| parts * part));
    let (alone, _) = run(&staged(&burst(1, 256, 21), 4, false)).unwrap();
    let lone_span = alone.requests[0].finished.unwrap().0;
    // The last one is three prompt parts behind, and no decode waits for another.
    assert_eq!(totals.end.0, lone_span + 3 * part);
    let serial = run(&staged(&burst(4, 256, 21), 1, false)).unwrap().1.end.0;
    assert!(totals.end.0 < serial, "{} is not below {serial}", totals.end.0);
}

#[test]
fn as_many_batches_are_in_flight_as_the_release_keeps() {
    let depth = |minor_version, pipeline_parallel_size, async_scheduling, v2_runner| {
        let base = vllm_config();
        SchedulerConfig { minor_version, pipeline_parallel_size, async_scheduling, v2_runner, ..base }
            .queue_depth()
    };
    assert_eq!([depth(32, 1, false, true), depth(32, 4, false, true)], [1, 4]);
    assert_eq!([depth(32, 1, true, true), depth(32, 1, true, false)], [2, 2]);
    assert_eq!([depth(32, 4, true, true), depth(32, 4, true, false), depth(22, 4, true, true)], [5, 4, 4]);
}

#[test]
fn causes_add_up_while_batches_overlap() {
    for (stages, asynchronous, v2_runner) in
        [(2, false, true), (4, false, true), (3, true, false), (3, true, true)]
    {
        let mut plan = staged(&burst(24, 90, 120), stages, asynchronous);
        plan["clusters"][0]["scheduler"]["v2_runner"] = json!(v2_runner);
        plan["clusters"][0]["scheduler"]["scheduler_reserve_full_isl"] = json!(false);
        let (recorder, totals) = run(&plan).unwrap();
        assert_causes_add_up_in_a_tight_cache(&recorder);
        for record in &recorder.requests {
            assert!(record.e2e_causes()[Cause::Decode as usize] > 0);
        }
        let samples = &recorder.timeline.samples;
        assert!(samples.windows(2).all(|pair| pair[0].busy_ns <= pair[1].busy_ns));
        let busy_ns = samples.last().unwrap().busy_ns;
        assert!(busy_ns > 0 && busy_ns <= totals.end.0);
    }
}

#[test]
fn stages_of_the_plan_and_of_its_operators_must_agree() {
    let mut plan = staged(&burst(1, 10, 2), 2, false);
    let main_job: Value = serde_json::from_str(include_str!("../../benches/main_job.json")).unwrap();
    plan["clusters"][0]["step_time"] = main_job["step_times"]["roofline"].clone();
    assert!(run(&plan).unwrap_err().to_string().contains("pipeline_parallel_size"));
}

/// Returns [`staged`] with a baseline scheduler of `num_blocks` blocks.
fn baseline(workload: &Value, stages: u32, num_blocks: u32, rules: &Value) -> Value {
    let mut plan = staged(workload, 1, false);
    plan["clusters"][0]["scheduler"] = json!({"kind": "baseline", "block_size": 16, "num_blocks": num_blocks, "max_model_len": 1024,
        "policy": "fcfs", "pipeline_parallel_size": stages, "rules": rules});
    plan
}

#[test]
fn causes_add_up_while_batches_of_baselines_overlap() {
    let sarathi = json!({"kind": "sarathi", "chunk_size": 64, "max_num_seqs": 12, "watermark": 0.0});
    let vllm_v0 = json!({"kind": "vllm_v0", "max_num_batched_tokens": 1024, "padded_budget": false,
        "max_num_seqs": 12, "watermark": 0.0});
    for (rules, stages) in [(&sarathi, 2), (&sarathi, 4), (&vllm_v0, 3)] {
        let (recorder, totals) = run(&baseline(&burst(24, 90, 120), stages, 60, rules)).unwrap();
        assert_causes_add_up_in_a_tight_cache(&recorder);
        let busy_ns = recorder.timeline.samples.last().unwrap().busy_ns;
        assert!(busy_ns > 0 && busy_ns <= totals.end.0);
    }
}

#[test]
fn a_chunk_waits_for_the_one_before_it_in_a_pipeline_of_baselines() {
    // Three chunks of 100 tokens, 2 ms each, and one decode of 1 ms: nothing of a lone request overlaps.
    let rules = json!({"kind": "sarathi", "chunk_size": 100, "max_num_seqs": 4, "watermark": 0.0});
    let (_, totals) = run(&baseline(&burst(1, 300, 2), 4, 60, &rules)).unwrap();
    assert_eq!(totals.end.0, 7_000_000);
    // Two requests of one chunk each take every other batch: the second is one part of 500 us behind.
    let rules = json!({"kind": "sarathi", "chunk_size": 100, "max_num_seqs": 4, "watermark": 0.0});
    let (recorder, _) = run(&baseline(&burst(2, 100, 2), 4, 60, &rules)).unwrap();
    let ends: Vec<u64> = recorder.requests.iter().map(|request| request.first_token.unwrap().0).collect();
    assert_eq!(ends, [2_000_000, 2_500_000]);
}

#[test]
fn baselines_that_keep_one_batch_under_way_have_no_pipelines() {
    let rules = json!({"kind": "static", "max_batch_size": 2});
    let error = run(&baseline(&burst(1, 10, 2), 2, 60, &rules)).unwrap_err().to_string();
    assert!(error.contains("scheduler.pipeline_parallel_size") && error.contains("1 with static"), "{error}");
    let rules = json!({"kind": "sarathi", "chunk_size": 64, "max_num_seqs": 2, "watermark": 0.0});
    let error = run(&baseline(&burst(1, 10, 2), 3, 60, &rules)).unwrap_err().to_string();
    assert!(error.contains("rules.max_num_seqs"), "{error}");
}

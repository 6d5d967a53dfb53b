//! Host time of launching the kernels of a step. Kernels run in order on one stream, so a stage ends when its last
//! kernel does: after all of them have run, and after the last of them was launched. The host is ahead of the GPU
//! wherever launching is the shorter of the two.

use super::graphs::GraphMode;
use crate::plan::step_time::LaunchesSpec;

/// Host seconds by [`GraphMode`].
type ByMode = [f64; 3];

/// Host seconds per step.
#[derive(Clone, Debug)]
pub struct LaunchTimes {
    stages: Vec<ByMode>,
    /// Of the first pass that drafts, and of each further one.
    draft: [ByMode; 2],
}

impl LaunchTimes {
    /// Adds up the launches of `spec`.
    pub fn new(spec: &LaunchesSpec) -> Self {
        let kernels = |count: u32| f64::from(count) * spec.per_kernel_s;
        let replays = |graphs: u32, nodes: u32| {
            f64::from(graphs) * spec.per_graph_s + f64::from(nodes) * spec.per_graph_kernel_s
        };
        let of_stage = |stage: &crate::plan::step_time::StageLaunches| {
            let between = kernels(stage.attention_kernels);
            let tail = kernels(stage.tail_kernels);
            let eager = kernels(stage.pieces_kernels) + between + tail;
            let piecewise = replays(stage.pieces, stage.pieces_kernels) + between + tail;
            let full = replays(1, stage.pieces_kernels + stage.attention_kernels) + tail;
            [eager, piecewise, full]
        };
        let draft = spec.draft.as_ref().map(|draft| [&draft.first_pass, &draft.decode_pass].map(of_stage));
        Self { stages: spec.stages.iter().map(of_stage).collect(), draft: draft.unwrap_or_default() }
    }

    /// Returns the host seconds of launching one stage.
    #[inline]
    pub fn of_stage(&self, stage: usize, mode: GraphMode) -> f64 {
        self.stages[stage][mode as usize]
    }

    /// Returns the host seconds of launching the first pass that drafts, and `passes` further ones.
    #[inline]
    pub fn of_draft(&self, first: GraphMode, next: GraphMode, passes: u32) -> f64 {
        self.draft[0][first as usize] + f64::from(passes) * self.draft[1][next as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::step_time::{DraftLaunches, GraphsSpec, StageLaunches};

    #[test]
    fn launches_are_counted_by_mode() {
        let graphs =
            GraphsSpec { decode_query_tokens: 1, full_decode: vec![], full: vec![], piecewise: vec![] };
        let stage = StageLaunches { pieces_kernels: 258, attention_kernels: 64, tail_kernels: 1, pieces: 33 };
        let spec = LaunchesSpec {
            per_kernel_s: 32e-6,
            per_graph_s: 8e-6,
            per_graph_kernel_s: 1e-6,
            graphs,
            stages: vec![stage],
            draft: Some(DraftLaunches {
                first_pass: stage,
                decode_pass: StageLaunches { pieces: 1, ..stage },
            }),
        };
        let times = LaunchTimes::new(&spec);
        let expected = [323.0 * 32e-6, 33.0 * 8e-6 + 258e-6 + 65.0 * 32e-6, 8e-6 + 322e-6 + 32e-6];
        for (mode, expected) in GraphMode::ALL.into_iter().zip(expected) {
            assert!((times.of_stage(0, mode) - expected).abs() < 1e-12);
        }
        let drafting = times.of_draft(GraphMode::Eager, GraphMode::Piecewise, 2);
        assert!((drafting - (expected[0] + 2.0 * (expected[1] - 32.0 * 8e-6))).abs() < 1e-12);
    }
}

//! What launching a step takes the hosts of both sides.

use super::{Afd, Class};
use crate::fidelity::afd::pipeline::LayerKind;
use crate::fidelity::graphs::GraphMode;

impl Afd {
    /// Returns the host time of launching the step, in seconds: the slowest host's, and the slowest attention rank's.
    pub(super) fn launched_s(&self) -> (f64, f64) {
        let (ranks, ffn_ranks) = (self.iteration.attention_ranks, self.iteration.ffn_ranks);
        let classes = || self.classes.iter().enumerate();
        let mut attention_s = 0.0_f64;
        if self.attention.graphs.is_some() {
            for rank in 0..ranks {
                let ends = [0, self.classes.len() + 1];
                let mut host_s: f64 =
                    ends.iter().map(|&part| self.attention.launch_s(part, GraphMode::Eager, 1)).sum();
                for own in self.dispatches[rank..].iter().step_by(ranks).filter(|own| own.tokens > 0) {
                    host_s += classes()
                        .map(|(index, class)| self.attention.launch_s(index + 1, own.mode, class.layers))
                        .sum::<f64>();
                }
                if self.of_ranks[rank].tokens > 0 {
                    attention_s = attention_s.max(host_s);
                }
            }
        }
        let mut ffn_s = 0.0_f64;
        if let Some(graphs) = &self.ffn.graphs {
            let mode = |tokens: u32| self.ffn.dispatch(tokens, Some(graphs.decode_query_tokens)).mode;
            let launch = |index: usize, class: &Class, tokens: u32| {
                if tokens == 0 { 0.0 } else { self.ffn.launch_s(index, mode(tokens), class.layers) }
            };
            for rank in 0..ffn_ranks {
                let mut host_s = 0.0;
                for (index, class) in classes() {
                    for micro_batch in 0..self.iteration.micro_batches {
                        let shares = &self.shares[micro_batch * ranks..(micro_batch + 1) * ranks];
                        host_s += match class.kind {
                            LayerKind::Moe => launch(index, class, self.all_tokens(micro_batch)),
                            LayerKind::Dense => shares
                                .iter()
                                .skip(rank)
                                .step_by(ffn_ranks)
                                .map(|share| launch(index, class, share.num_tokens() as u32))
                                .sum(),
                        };
                    }
                }
                ffn_s = ffn_s.max(host_s);
            }
        }
        (attention_s.max(ffn_s), attention_s)
    }
}

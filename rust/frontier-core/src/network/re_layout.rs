//! Who sends what to whom when the ranks of two replicas hold the same KV cache in different layouts.

use crate::error::SimError;

/// How a replica spreads its KV cache: layers over pipeline stages, KV heads over tensor-parallel ranks.
///
/// Rank `stage * tensor_parallel_size + i` is the `i`-th of its stage. With more ranks than heads every head lies on
/// `tensor_parallel_size / kv_heads` consecutive ranks, as vLLM and `SGLang` replicate them; a latent cache (MLA) is
/// one head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Ranks per stage, at least 1.
    pub tensor_parallel_size: u32,
    /// Layers with KV of each stage (or their KV bytes in any unit, where layers differ).
    pub layers_per_stage: Vec<u32>,
}

/// What one rank sends to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// Rank of the source.
    pub from: u32,
    /// Rank of the destination.
    pub to: u32,
    /// Its share, in heads times layers; all heads of all layers are the whole.
    pub parts: u32,
}

/// Returns the pieces of a move of KV cache from `source` to `target`, in order of (destination, source), and how many
/// parts the cache has.
///
/// Every rank of the destination receives all that it holds, once: copies of a head are sent apart. Where the source
/// has copies too, the `k`-th of `c` receivers reads the `k * copies / c`-th, which spreads them as evenly as can be (in
/// vLLM's NIXL connector, `tp_rank // tp_ratio`).
///
/// # Errors
/// [`SimError::Input`] if layers differ, or heads and ranks do not divide each other.
pub fn re_layout(source: &Layout, target: &Layout, kv_heads: u32) -> Result<(u32, Vec<Piece>), SimError> {
    let refuse = |message: String| Err(SimError::Input { what: "KV layout".into(), message });
    for layout in [source, target] {
        let ranks = layout.tensor_parallel_size;
        if kv_heads == 0 || ranks == 0 || (!kv_heads.is_multiple_of(ranks) && !ranks.is_multiple_of(kv_heads))
        {
            return refuse(format!(
                "{kv_heads} KV heads over {ranks} tensor-parallel ranks: one must divide the other"
            ));
        }
    }
    let total = |layout: &Layout| layout.layers_per_stage.iter().map(|&layers| u64::from(layers)).sum();
    let (layers, received): (u64, u64) = (total(source), total(target));
    if layers != received || layers == 0 {
        return refuse(format!("the source has {layers} layers with KV and the destination {received}"));
    }
    let Some(whole) = u32::try_from(layers).ok().and_then(|layers| layers.checked_mul(kv_heads)) else {
        return refuse(format!("{layers} layers of {kv_heads} heads are more than 2^32 parts"));
    };
    let mut pieces = Vec::new();
    for (to_stage, to_layers) in stages(target) {
        for to_rank in 0..target.tensor_parallel_size {
            let (heads, copy, copies) = heads_of(target.tensor_parallel_size, to_rank, kv_heads);
            for (from_stage, from_layers) in stages(source) {
                let shared = overlap(&to_layers, &from_layers);
                for from_rank in 0..source.tensor_parallel_size {
                    let (held, number, of) = heads_of(source.tensor_parallel_size, from_rank, kv_heads);
                    let common = overlap(&heads, &held);
                    if shared > 0 && common > 0 && number == copy * of / copies {
                        pieces.push(Piece {
                            from: from_stage * source.tensor_parallel_size + from_rank,
                            to: to_stage * target.tensor_parallel_size + to_rank,
                            parts: shared * common,
                        });
                    }
                }
            }
        }
    }
    Ok((whole, pieces))
}

/// Returns each stage with its range of layers.
fn stages(layout: &Layout) -> impl Iterator<Item = (u32, std::ops::Range<u32>)> {
    let starts = layout.layers_per_stage.iter().scan(0, |next, &layers| {
        let first = *next;
        *next += layers;
        Some(first..*next)
    });
    (0..).zip(starts)
}

/// Returns the heads of a rank, which copy of them it has, and how many copies there are.
fn heads_of(ranks: u32, rank: u32, kv_heads: u32) -> (std::ops::Range<u32>, u32, u32) {
    if ranks <= kv_heads {
        let heads = kv_heads / ranks;
        return (rank * heads..(rank + 1) * heads, 0, 1);
    }
    let copies = ranks / kv_heads;
    (rank / copies..rank / copies + 1, rank % copies, copies)
}

fn overlap(a: &std::ops::Range<u32>, b: &std::ops::Range<u32>) -> u32 {
    a.end.min(b.end).saturating_sub(a.start.max(b.start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(ranks: u32, layers: &[u32]) -> Layout {
        Layout { tensor_parallel_size: ranks, layers_per_stage: layers.to_vec() }
    }

    fn pieces(source: &Layout, target: &Layout, kv_heads: u32) -> (u32, Vec<(u32, u32, u32)>) {
        let (whole, pieces) = re_layout(source, target, kv_heads).unwrap();
        (whole, pieces.iter().map(|piece| (piece.from, piece.to, piece.parts)).collect())
    }

    #[test]
    fn more_ranks_share_what_fewer_send() {
        let found = pieces(&layout(2, &[10]), &layout(4, &[10]), 8);
        assert_eq!(found, (80, vec![(0, 0, 20), (0, 1, 20), (1, 2, 20), (1, 3, 20)]));
    }

    #[test]
    fn fewer_ranks_collect_from_more() {
        let found = pieces(&layout(4, &[10]), &layout(2, &[10]), 8);
        assert_eq!(found, (80, vec![(0, 0, 20), (1, 0, 20), (2, 1, 20), (3, 1, 20)]));
    }

    #[test]
    fn equal_ranks_go_one_to_one() {
        let (whole, found) = pieces(&layout(8, &[10]), &layout(8, &[10]), 8);
        assert_eq!((whole, found), (80, (0..8).map(|rank| (rank, rank, 10)).collect()));
    }

    #[test]
    fn a_latent_cache_is_received_whole_by_every_rank() {
        // Eight ranks read a copy each, two from each of the four that have one.
        let (whole, found) = pieces(&layout(4, &[61]), &layout(8, &[61]), 1);
        assert_eq!((whole, found), (61, (0..8).map(|rank| (rank / 2, rank, 61)).collect()));
        let (_, found) = pieces(&layout(8, &[61]), &layout(4, &[61]), 1);
        assert_eq!(found, (0..4).map(|rank| (2 * rank, rank, 61)).collect::<Vec<_>>());
    }

    #[test]
    fn copies_of_heads_are_sent_once_to_each_receiver() {
        // Four heads: on eight ranks each twice, on two ranks two each.
        let found = pieces(&layout(8, &[1]), &layout(2, &[1]), 4);
        assert_eq!(found, (4, vec![(0, 0, 1), (2, 0, 1), (4, 1, 1), (6, 1, 1)]));
        let (_, found) = pieces(&layout(2, &[1]), &layout(8, &[1]), 4);
        assert_eq!(found, (0..8).map(|rank| (rank / 4, rank, 1)).collect::<Vec<_>>());
    }

    #[test]
    fn stages_pass_on_the_layers_they_share() {
        let found = pieces(&layout(1, &[5, 5]), &layout(1, &[10]), 1);
        assert_eq!(found, (10, vec![(0, 0, 5), (1, 0, 5)]));
        // Two stages of two ranks into three stages of one: layers 0..4 and 4..10 into 0..3, 3..6 and 6..10.
        let found = pieces(&layout(2, &[4, 6]), &layout(1, &[3, 3, 4]), 2);
        let expected =
            vec![(0, 0, 3), (1, 0, 3), (0, 1, 1), (1, 1, 1), (2, 1, 2), (3, 1, 2), (2, 2, 4), (3, 2, 4)];
        assert_eq!(found, (20, expected));
    }

    #[test]
    fn every_receiver_gets_all_it_holds() {
        let degrees = [1, 2, 4, 8, 16];
        for heads in [1, 2, 8] {
            for (from, to) in degrees.iter().flat_map(|&a| degrees.iter().map(move |&b| (a, b))) {
                let (_, found) = pieces(&layout(from, &[3, 4]), &layout(to, &[2, 5]), heads);
                for rank in 0..2 * to {
                    let parts: u32 = found.iter().filter(|piece| piece.1 == rank).map(|piece| piece.2).sum();
                    let layers = if rank < to { 2 } else { 5 };
                    assert_eq!(
                        parts,
                        layers * (heads / to).max(1),
                        "{heads} heads, {from} to {to}, rank {rank}"
                    );
                }
            }
        }
    }

    #[test]
    fn layouts_that_do_not_fit_are_refused() {
        let message = |source: &Layout, target: &Layout, heads| {
            re_layout(source, target, heads).unwrap_err().to_string()
        };
        assert!(message(&layout(3, &[1]), &layout(1, &[1]), 8).contains("8 KV heads over 3"));
        assert!(
            message(&layout(1, &[1]), &layout(1, &[2]), 8).contains("1 layers with KV and the destination 2")
        );
        assert!(message(&layout(1, &[1]), &layout(1, &[1]), 0).contains("0 KV heads"));
    }
}

//! Trees with fixed features resolved, evaluated on ranks and without branches.
//!
//! The rank of a value is the number of its feature's thresholds that are not above it. It is found once per row
//! and feature; then a node compares bytes: right iff the rank is above the node's. After partial evaluation few
//! nodes remain, so ranks are taken among the thresholds that remain, and trees are sparse: nodes lie in the order
//! of levels, children side by side, and a leaf is a node that leads to itself, which pads every path to the depth
//! of its tree without storing the padding. Eight trees of like depth are walked at a time so that their loads
//! overlap; leaves are added in the order of trees, which makes the sum that of [`Ensemble::margin`] to the bit.

use super::ensemble::{Ensemble, LEAF};

/// Trees walked at a time.
const LANES: usize = 8;
/// Trees among which those of like depth are sought: their leaves are kept until all of them are found.
const BLOCK: usize = 64;
/// Ranks of a row where few features are free; more of them take the whole range of a byte.
const FEW_FEATURES: usize = 16;

/// A node in four bytes: distance to the left child (16 bits, 0 in a leaf), feature (8), rank (8). The rank of a
/// leaf is 255, which no rank is above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packed(u32);

impl Packed {
    const LEAF: Self = Self(255);

    const fn internal(to_left: u16, feature: u8, rank: u8) -> Self {
        Self((to_left as u32) << 16 | (feature as u32) << 8 | rank as u32)
    }
}

/// Trees that are walked together.
#[derive(Clone, Debug, PartialEq)]
struct Group {
    roots: [u32; LANES],
    /// Places of the trees in their block. Lanes without a tree walk the first one again.
    places: [u8; LANES],
    trees: u8,
    /// Depth of the deepest.
    depth: u8,
}

impl Group {
    /// Returns the group of at most [`LANES`] trees, each a depth, a place and a root.
    fn new(trees: &[(u32, u8, u32)]) -> Self {
        let mut group = Self { roots: [0; LANES], places: [0; LANES], trees: trees.len() as u8, depth: 0 };
        for lane in 0..LANES {
            let (depth, place, root) = *trees.get(lane).unwrap_or(&trees[0]);
            group.roots[lane] = root;
            group.places[lane] = place;
            group.depth = group.depth.max(depth as u8);
        }
        group
    }
}

/// Trees whose leaves are added one after another.
#[derive(Clone, Debug, PartialEq)]
struct Block {
    groups: Vec<Group>,
    trees: usize,
}

/// An ensemble of which some features are fixed.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    free: Vec<usize>,
    /// Thresholds that remain, ascending, of each free feature.
    thresholds: Vec<Vec<f32>>,
    nodes: Vec<Packed>,
    /// Value of each node that is a leaf.
    values: Vec<f32>,
    blocks: Vec<Block>,
    base_score: f32,
}

impl Ensemble {
    /// Resolves the features that have a value in `fixed`; splits on them disappear, and so do features that no
    /// split reads any more.
    ///
    /// # Panics
    /// If `fixed` has not one entry per feature.
    pub fn specialise(&self, fixed: &[Option<f32>]) -> Compiled {
        assert_eq!(fixed.len(), self.num_features, "an entry per feature");
        let mut thresholds = vec![Vec::new(); self.num_features];
        let mut open = Vec::new();
        for &root in &self.roots {
            open.push(root);
            while let Some(index) = open.pop() {
                let index = self.resolve(index, fixed);
                let node = &self.nodes[index as usize];
                if node.feature != LEAF {
                    thresholds[usize::from(node.feature)].push(node.value);
                    open.extend([index + 1, node.right]);
                }
            }
        }
        let mut free = Vec::new();
        let mut number = vec![0_u8; self.num_features];
        for (feature, values) in thresholds.iter_mut().enumerate() {
            // Not by `total_cmp`: the two zeros are one threshold. None is NaN.
            values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
            values.dedup();
            if !values.is_empty() {
                number[feature] = free.len() as u8;
                free.push(feature);
            }
        }
        thresholds.retain(|values| !values.is_empty());
        let mut compiled = Compiled {
            free,
            thresholds,
            nodes: Vec::new(),
            values: Vec::new(),
            blocks: Vec::new(),
            base_score: self.base_score,
        };
        for roots in self.roots.chunks(BLOCK) {
            let mut trees = Vec::with_capacity(roots.len());
            for (place, &root) in roots.iter().enumerate() {
                let at = compiled.nodes.len() as u32;
                trees.push((compiled.add_tree(self, root, fixed, &number), place as u8, at));
            }
            trees.sort_unstable();
            // The group that is not full has the shallowest trees.
            let (rest, full) = trees.split_at(trees.len() % LANES);
            let rest = (!rest.is_empty()).then(|| Group::new(rest));
            let groups = rest.into_iter().chain(full.chunks(LANES).map(Group::new)).collect();
            compiled.blocks.push(Block { groups, trees: roots.len() });
        }
        compiled
    }

    /// Returns the node that is reached from `index` by splits on fixed features alone.
    fn resolve(&self, mut index: u32, fixed: &[Option<f32>]) -> u32 {
        loop {
            let node = &self.nodes[index as usize];
            match fixed.get(usize::from(node.feature)) {
                Some(&Some(value)) => index = if value < node.value { index + 1 } else { node.right },
                _ => return index,
            }
        }
    }
}

impl Compiled {
    /// Appends a tree level by level and returns its depth.
    fn add_tree(&mut self, trees: &Ensemble, root: u32, fixed: &[Option<f32>], number: &[u8]) -> u32 {
        let mut depth = 0;
        let mut level = vec![trees.resolve(root, fixed)];
        loop {
            let mut next = Vec::new();
            for (at, &index) in level.iter().enumerate() {
                let node = &trees.nodes[index as usize];
                if node.feature == LEAF {
                    self.nodes.push(Packed::LEAF);
                    self.values.push(node.value);
                    continue;
                }
                // The rest of this level, then the children of those before. Below 2^16: trees are at most 16
                // deep (`MAX_DEPTH`), so a level with children has at most 2^15 nodes.
                let to_left = (level.len() - at + next.len()) as u16;
                let feature = number[usize::from(node.feature)];
                let thresholds = &self.thresholds[usize::from(feature)];
                let rank = thresholds.partition_point(|&threshold| threshold < node.value) as u8;
                self.nodes.push(Packed::internal(to_left, feature, rank));
                self.values.push(0.0);
                next.extend([trees.resolve(index + 1, fixed), trees.resolve(node.right, fixed)]);
            }
            if next.is_empty() {
                return depth;
            }
            depth += 1;
            level = next;
        }
    }

    /// Returns the features that remain, as numbers in the ensemble, ascending.
    pub fn free(&self) -> &[usize] {
        &self.free
    }

    /// Returns the margin of a row of the free features, the same bits as [`Ensemble::margin`].
    ///
    /// NaN is refused before it gets here; if it does, it goes right as in the ensemble.
    ///
    /// # Panics
    /// If `x` has not one value per free feature.
    pub fn margin(&self, x: &[f32]) -> f32 {
        assert_eq!(x.len(), self.free.len(), "a value per free feature");
        if x.len() <= FEW_FEATURES {
            let mut ranks = [0; FEW_FEATURES];
            self.rank(x, &mut ranks);
            self.walk(&ranks)
        } else {
            let mut ranks = [0; 256];
            self.rank(x, &mut ranks);
            self.walk(&ranks)
        }
    }

    /// Writes the rank of each value of a row.
    pub(super) fn rank(&self, x: &[f32], ranks: &mut [u8]) {
        for ((rank, &value), thresholds) in ranks.iter_mut().zip(x).zip(&self.thresholds) {
            *rank = rank_of(value, thresholds);
        }
    }

    /// Returns the margin of a cell; `N` is a power of two no less than the number of free features.
    pub(super) fn walk<const N: usize>(&self, ranks: &[u8; N]) -> f32 {
        let mut sum = self.base_score;
        let mut leaves = [0.0; BLOCK];
        for block in &self.blocks {
            for group in &block.groups {
                if group.trees > 4 {
                    self.walk_group::<LANES, N>(group, ranks, &mut leaves);
                } else if group.trees > 1 {
                    self.walk_group::<4, N>(group, ranks, &mut leaves);
                } else {
                    self.walk_group::<1, N>(group, ranks, &mut leaves);
                }
            }
            for leaf in &leaves[..block.trees] {
                sum += leaf;
            }
        }
        sum
    }

    /// Writes the leaves of the first `L` lanes of a group to their places.
    #[inline]
    fn walk_group<const L: usize, const N: usize>(
        &self,
        group: &Group,
        ranks: &[u8; N],
        leaves: &mut [f32; BLOCK],
    ) {
        let mut at = [0; L];
        at.copy_from_slice(&group.roots[..L]);
        for _ in 0..group.depth {
            for at in &mut at {
                let node = self.nodes[*at as usize].0;
                let rank = ranks[(node >> 8) as usize & (N - 1) & 0xff];
                *at = at.wrapping_add((node >> 16) + u32::from(u32::from(rank) > (node & 0xff)));
            }
        }
        for (at, &place) in at.iter().zip(&group.places) {
            leaves[usize::from(place) % BLOCK] = self.values[*at as usize];
        }
    }

    /// Writes the cell of `ranks` as half-open intervals: whatever lies in `low[i] <= x[i] < high[i]` for every
    /// feature has these ranks.
    pub(super) fn cell(&self, ranks: &[u8], low: &mut [f32], high: &mut [f32]) {
        for (i, thresholds) in self.thresholds.iter().enumerate() {
            let rank = usize::from(ranks[i]);
            low[i] = if rank == 0 { f32::NEG_INFINITY } else { thresholds[rank - 1] };
            high[i] = thresholds.get(rank).copied().unwrap_or(f32::INFINITY);
        }
    }
}

/// Returns how many of `thresholds` (ascending, at most 255) `value` is not below.
#[inline]
fn rank_of(value: f32, thresholds: &[f32]) -> u8 {
    // "Not below" rather than "at least": NaN then lies above all of them, as in the ensemble.
    let reached = |threshold: &f32| {
        let below = value < *threshold;
        !below
    };
    thresholds.partition_point(reached) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predictor::ensemble::EnsembleParts;
    use crate::predictor::fixtures::{random_parts, random_row, two_trees};
    use proptest::prelude::*;

    fn free_row(compiled: &Compiled, row: &[f32]) -> Vec<f32> {
        compiled.free().iter().map(|&feature| row[feature]).collect()
    }

    #[test]
    fn fixed_features_and_those_they_shadow_drop_out() {
        let ensemble = Ensemble::new(&two_trees(), 2).unwrap();
        assert_eq!(ensemble.specialise(&[None, None]).free(), [0, 1]);
        // Below 1 the first tree is its first leaf, so nobody asks for the second feature.
        let low = ensemble.specialise(&[Some(0.5), None]);
        assert_eq!(low.free(), [] as [usize; 0]);
        assert_eq!(low.margin(&[]).to_bits(), 17.5_f32.to_bits());
        let high = ensemble.specialise(&[Some(1.5), None]);
        assert_eq!((high.free(), high.thresholds.as_slice()), ([1].as_slice(), [vec![5.0]].as_slice()));
        assert_eq!(high.margin(&[5.0]).to_bits(), 20.5_f32.to_bits());
    }

    #[test]
    fn ranks_count_thresholds_that_are_not_above() {
        for count in 0..=255_usize {
            let thresholds: Vec<f32> = (0..count).map(|value| value as f32).collect();
            for below in 0..=count {
                assert_eq!(usize::from(rank_of(below as f32 - 0.5, &thresholds)), below);
            }
            for at in 0..count {
                assert_eq!(usize::from(rank_of(at as f32, &thresholds)), at + 1);
            }
            assert_eq!(usize::from(rank_of(f32::INFINITY, &thresholds)), count);
            assert_eq!(usize::from(rank_of(f32::NAN, &thresholds)), count);
            assert_eq!(rank_of(f32::NEG_INFINITY, &thresholds), 0);
        }
        assert_eq!(rank_of(-0.0, &[0.0]), 1);
    }

    #[test]
    fn a_full_tree_of_the_greatest_depth_is_addressed_right() {
        let depth = 16_u32;
        let mut nodes = Vec::new();
        let mut open = vec![(0, 0_u8)];
        while let Some((level, _)) = open.pop() {
            if level == depth {
                nodes.push(LEAF);
            } else {
                // Level by level another feature: a row is the path it takes.
                nodes.extend([level as u8, 0]);
                open.extend([(level + 1, 1), (level + 1, 0)]);
            }
        }
        let parts = EnsembleParts {
            thresholds: vec![0.5; 16],
            threshold_offsets: (0..=16).collect(),
            tree_starts: vec![0, nodes.len() as u32],
            nodes,
            leaves: (0..1 << 16).map(|leaf| leaf as f32).collect(),
            base_score: 0.0,
        };
        let compiled = Ensemble::new(&parts, 16).unwrap().specialise(&[None; 16]);
        for leaf in (0..1_u32 << 16).step_by(257).chain([65_535]) {
            let row: Vec<f32> = (0..16).map(|level| (leaf >> (15 - level) & 1) as f32).collect();
            assert_eq!(compiled.margin(&row).to_bits(), (leaf as f32).to_bits());
        }
    }

    proptest! {
        #[test]
        fn prop_compiled_trees_have_the_bits_of_the_walk(
            seed in any::<u64>(), features in 1_usize..24, trees in 1_usize..80, depth in 0_usize..8,
            mask in any::<u32>(), odd in 0_usize..6,
        ) {
            let ensemble = Ensemble::new(&random_parts(seed, features, trees, depth), features).unwrap();
            let base = random_row(seed ^ 1, features);
            let fixed: Vec<_> =
                base.iter().enumerate().map(|(i, &x)| (mask >> i & 1 == 1).then_some(x)).collect();
            let compiled = ensemble.specialise(&fixed);
            prop_assert!(compiled.free().iter().all(|&feature| fixed[feature].is_none()));
            for query in 0..32 {
                let mut row = random_row(seed ^ (query + 2), features);
                let special = [f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MIN_POSITIVE / 2.0, f32::MAX, f32::NAN];
                let at = query as usize % features;
                if query % 4 == 0 { row[at] = special[odd]; }
                for (value, fixed) in row.iter_mut().zip(&fixed) {
                    *value = fixed.unwrap_or(*value);
                }
                let margin = compiled.margin(&free_row(&compiled, &row));
                prop_assert_eq!(margin.to_bits(), ensemble.margin(&row).to_bits());
            }
        }
    }
}

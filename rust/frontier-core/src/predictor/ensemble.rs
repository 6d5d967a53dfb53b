//! Gradient-boosted trees as trained, and the plain walk through them.
//!
//! A tree is read in pre-order: an internal node is two bytes (feature, rank of its threshold among those of the
//! feature), a leaf one byte. The left child follows its parent, and a row goes left where
//! `x[feature] < threshold`. The margin is a float32 sum over trees in their order, begun with the base score:
//! what XGBoost computes, to the bit.

use super::refuse;
use crate::error::SimError;

/// Features of an ensemble at most: 255 marks a leaf.
pub const MAX_FEATURES: usize = 254;
/// Distinct thresholds of a feature at most, so that a rank fits in a byte.
pub const MAX_THRESHOLDS: usize = 255;
/// Internal nodes on the way to a leaf at most.
pub const MAX_DEPTH: usize = 16;

/// A leaf in the byte code of trees, and in [`Node::feature`].
pub(super) const LEAF: u8 = 255;

/// The tensors of an ensemble, not checked yet.
#[derive(Clone, Debug)]
pub struct EnsembleParts {
    /// Distinct thresholds of each feature ascending, features one after another.
    pub thresholds: Vec<f32>,
    /// Where the thresholds of each feature begin, and the end: one more than features.
    pub threshold_offsets: Vec<u32>,
    /// All trees in pre-order.
    pub nodes: Vec<u8>,
    /// Where each tree begins in `nodes`, and the end: one more than trees.
    pub tree_starts: Vec<u32>,
    /// Leaf values in order of appearance.
    pub leaves: Vec<f32>,
    /// What the sum begins with.
    pub base_score: f32,
}

/// A node of a tree. The left child is the next node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Node {
    /// Threshold of an internal node, value of a leaf.
    pub(super) value: f32,
    /// Index of the right child; of no meaning in a leaf.
    pub(super) right: u32,
    /// Feature of an internal node, [`LEAF`] in a leaf.
    pub(super) feature: u8,
}

/// Checked trees.
#[derive(Clone, Debug, PartialEq)]
pub struct Ensemble {
    pub(super) nodes: Vec<Node>,
    pub(super) roots: Vec<u32>,
    pub(super) base_score: f32,
    pub(super) num_features: usize,
}

impl Ensemble {
    /// Reads trees over `num_features` features.
    ///
    /// # Errors
    /// [`SimError::Pack`] for anything that [`EnsembleParts`] does not allow: features, ranks or offsets out of
    /// range, thresholds out of order, trees cut short, over-long or too deep, leaves that are not finite.
    pub fn new(parts: &EnsembleParts, num_features: usize) -> Result<Self, SimError> {
        check_thresholds(parts, num_features)?;
        if !parts.base_score.is_finite() {
            return Err(refuse(format!("base_score: was {}, must be finite", parts.base_score)));
        }
        if let Some(at) = parts.leaves.iter().position(|leaf| !leaf.is_finite()) {
            return Err(refuse(format!("leaves[{at}]: was {}, must be finite", parts.leaves[at])));
        }
        let starts = offsets("tree_starts", &parts.tree_starts, parts.nodes.len())?;
        if starts.len() < 2 {
            return Err(refuse("tree_starts: names no tree, at least one is needed"));
        }
        let mut ensemble = Self {
            nodes: Vec::with_capacity(parts.nodes.len()),
            roots: Vec::with_capacity(starts.len() - 1),
            base_score: parts.base_score,
            num_features,
        };
        let mut leaves = parts.leaves.iter();
        for (tree, bounds) in starts.windows(2).enumerate() {
            ensemble.roots.push(ensemble.nodes.len() as u32);
            let code = &parts.nodes[bounds[0]..bounds[1]];
            ensemble.read_tree(code, &mut leaves, parts).map_err(|what| {
                refuse(format!("nodes: tree {tree} (bytes {}..{}): {what}", bounds[0], bounds[1]))
            })?;
        }
        if !leaves.as_slice().is_empty() {
            let (all, left) = (parts.leaves.len(), leaves.len());
            return Err(refuse(format!("leaves: {all} values, but the trees have {} leaves", all - left)));
        }
        Ok(ensemble)
    }

    /// Appends the tree that `code` spells, which must be all of it.
    fn read_tree(
        &mut self,
        code: &[u8],
        leaves: &mut std::slice::Iter<'_, f32>,
        parts: &EnsembleParts,
    ) -> Result<(), String> {
        // Internal nodes whose right child is still to come, with the depth of that child.
        let mut open: Vec<(usize, usize)> = Vec::with_capacity(MAX_DEPTH);
        let (mut at, mut depth) = (0, 0);
        loop {
            let Some(&feature) = code.get(at) else {
                return Err("ends before it is complete".into());
            };
            let index = self.nodes.len();
            if feature == LEAF {
                at += 1;
                let value = *leaves.next().ok_or("has more leaves than `leaves` has values")?;
                self.nodes.push(Node { value, right: 0, feature });
                let Some((parent, right_depth)) = open.pop() else {
                    break;
                };
                self.nodes[parent].right = self.nodes.len() as u32;
                depth = right_depth;
                continue;
            }
            let feature_index = usize::from(feature);
            if feature_index >= self.num_features {
                return Err(format!(
                    "byte {at}: feature {feature}, there are {} (255 is a leaf)",
                    self.num_features
                ));
            }
            let Some(&rank) = code.get(at + 1) else {
                return Err("ends within a node".into());
            };
            let bounds = &parts.threshold_offsets[feature_index..feature_index + 2];
            let thresholds = &parts.thresholds[bounds[0] as usize..bounds[1] as usize];
            let Some(&value) = thresholds.get(usize::from(rank)) else {
                return Err(format!(
                    "byte {}: threshold {rank} of feature {feature}, which has {}",
                    at + 1,
                    thresholds.len()
                ));
            };
            depth += 1;
            if depth > MAX_DEPTH {
                return Err(format!("is deeper than {MAX_DEPTH}"));
            }
            at += 2;
            open.push((index, depth));
            self.nodes.push(Node { value, right: 0, feature });
        }
        if at == code.len() { Ok(()) } else { Err(format!("is complete after {at} bytes of {}", code.len())) }
    }

    /// Returns the number of features.
    pub fn num_features(&self) -> usize {
        self.num_features
    }

    /// Returns the number of trees.
    pub fn num_trees(&self) -> usize {
        self.roots.len()
    }

    /// Returns the margin of a row, node by node: the reference that [`super::Compiled`] must equal.
    ///
    /// NaN is refused before it gets here (XGBoost would send it a way of its own); if it does, it goes right.
    ///
    /// # Panics
    /// If `x` has not one value per feature.
    pub fn margin(&self, x: &[f32]) -> f32 {
        assert_eq!(x.len(), self.num_features, "a value per feature");
        self.roots.iter().fold(self.base_score, |sum, &root| sum + self.leaf(root as usize, x))
    }

    fn leaf(&self, mut index: usize, x: &[f32]) -> f32 {
        loop {
            let node = &self.nodes[index];
            if node.feature == LEAF {
                return node.value;
            }
            index = if x[usize::from(node.feature)] < node.value { index + 1 } else { node.right as usize };
        }
    }
}

/// Checks the thresholds and where those of each feature begin.
fn check_thresholds(parts: &EnsembleParts, num_features: usize) -> Result<(), SimError> {
    if num_features > MAX_FEATURES {
        return Err(refuse(format!("features: {num_features}, at most {MAX_FEATURES}")));
    }
    let bounds = offsets("threshold_offsets", &parts.threshold_offsets, parts.thresholds.len())?;
    if bounds.len() != num_features + 1 {
        return Err(refuse(format!(
            "threshold_offsets: {} values for {num_features} features, must be one more than features",
            bounds.len()
        )));
    }
    for (feature, bounds) in bounds.windows(2).enumerate() {
        let thresholds = &parts.thresholds[bounds[0]..bounds[1]];
        if thresholds.len() > MAX_THRESHOLDS {
            let count = thresholds.len();
            return Err(refuse(format!(
                "thresholds: {count} of feature {feature}, at most {MAX_THRESHOLDS}"
            )));
        }
        // NaN is not less than anything, so pairs find it, and the check of a lone one is spelt out.
        let in_order = thresholds.windows(2).all(|pair| pair[0] < pair[1]);
        if !in_order || thresholds.iter().any(|threshold| threshold.is_nan()) {
            return Err(refuse(format!("thresholds: those of feature {feature} are not strictly ascending")));
        }
    }
    Ok(())
}

/// Returns offsets into something of `length`, which begin with 0, never fall and end with `length`.
fn offsets(name: &str, values: &[u32], length: usize) -> Result<Vec<usize>, SimError> {
    let bounds: Vec<usize> = values.iter().map(|&value| value as usize).collect();
    if bounds.first() != Some(&0) || bounds.last() != Some(&length) {
        return Err(refuse(format!("{name}: must begin with 0 and end with {length}")));
    }
    if let Some(at) = bounds.windows(2).position(|pair| pair[0] > pair[1]) {
        return Err(refuse(format!("{name}[{}]: falls from {} to {}", at + 1, bounds[at], bounds[at + 1])));
    }
    Ok(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predictor::fixtures::{random_parts, two_trees};
    use proptest::prelude::*;

    #[test]
    fn a_row_goes_left_below_a_threshold_and_right_at_it() {
        let ensemble = Ensemble::new(&two_trees(), 2).unwrap();
        let margin = |a: f32, b: f32| ensemble.margin(&[a, b]);
        assert_eq!(margin(0.99, 0.0).to_bits(), (0.5_f32 + 1.0 + 16.0).to_bits());
        assert_eq!(margin(1.0, 4.0).to_bits(), (0.5_f32 + 2.0 + 16.0).to_bits());
        assert_eq!(margin(1.0, 5.0).to_bits(), (0.5_f32 + 4.0 + 16.0).to_bits());
        assert_eq!(margin(f32::INFINITY, f32::INFINITY).to_bits(), (0.5_f32 + 4.0 + 32.0).to_bits());
    }

    type Damage = (&'static str, fn(&mut EnsembleParts));

    const DAMAGES: [Damage; 20] = [
        ("thresholds: those of feature 0 are not strictly", |p| p.thresholds[1] = 1.0),
        ("thresholds: those of feature 1 are not strictly", |p| p.thresholds[2] = f32::NAN),
        ("threshold_offsets: must begin with 0 and end with 3", |p| p.threshold_offsets[0] = 1),
        ("threshold_offsets: must begin with 0 and end with 3", |p| p.threshold_offsets[2] = 4),
        ("threshold_offsets[2]: falls from 4 to 3", |p| p.threshold_offsets[1] = 4),
        ("threshold_offsets: 2 values for 2 features", |p| {
            p.threshold_offsets.remove(1);
        }),
        ("threshold_offsets: must begin", |p| p.threshold_offsets.clear()),
        ("tree_starts: must begin", |p| p.tree_starts.clear()),
        ("tree_starts: must begin", |p| p.tree_starts[2] = u32::MAX),
        ("tree_starts: must begin", |p| p.tree_starts.truncate(1)),
        ("tree 0 (bytes 0..6): ends before it is complete", |p| p.tree_starts[1] = 6),
        ("tree 0 (bytes 0..8): is complete after 7 bytes of 8", |p| p.tree_starts[1] = 8),
        ("byte 0: feature 2, there are 2", |p| p.nodes[0] = 2),
        ("byte 1: threshold 2 of feature 0, which has 2", |p| p.nodes[1] = 2),
        ("tree 1 (bytes 7..8): ends within a node", |p| {
            p.nodes.truncate(8);
            p.tree_starts[2] = 8;
        }),
        ("tree 1 (bytes 7..7): ends before", |p| {
            p.nodes.truncate(7);
            p.tree_starts[2] = 7;
        }),
        ("has more leaves than", |p| {
            p.leaves.pop();
        }),
        ("leaves: 6 values, but the trees have 5", |p| p.leaves.push(0.0)),
        ("leaves[3]: was NaN", |p| p.leaves[3] = f32::NAN),
        ("base_score: was inf", |p| p.base_score = f32::INFINITY),
    ];

    #[test]
    fn damage_is_refused_with_its_place() {
        for (expected, damage) in DAMAGES {
            let mut parts = two_trees();
            damage(&mut parts);
            let error = Ensemble::new(&parts, 2).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} does not say {expected}");
        }
    }

    #[test]
    fn depth_has_a_limit() {
        for (depth, allowed) in [(MAX_DEPTH, true), (MAX_DEPTH + 1, false)] {
            // A chain to the right: a leaf on the left of each node.
            let mut nodes = [0, 0, LEAF].repeat(depth);
            nodes.push(LEAF);
            let parts = EnsembleParts {
                thresholds: vec![0.0],
                threshold_offsets: vec![0, 1],
                tree_starts: vec![0, nodes.len() as u32],
                nodes,
                leaves: vec![0.0; depth + 1],
                base_score: 0.0,
            };
            assert_eq!(Ensemble::new(&parts, 1).is_ok(), allowed);
        }
    }

    #[test]
    fn features_and_thresholds_have_limits() {
        let parts = |features: usize, thresholds: usize| EnsembleParts {
            thresholds: (0..thresholds).map(|value| value as f32).collect(),
            threshold_offsets: [vec![0], vec![thresholds as u32; features]].concat(),
            nodes: vec![LEAF],
            tree_starts: vec![0, 1],
            leaves: vec![0.0],
            base_score: 0.0,
        };
        assert!(Ensemble::new(&parts(MAX_FEATURES, MAX_THRESHOLDS), MAX_FEATURES).is_ok());
        assert!(Ensemble::new(&parts(MAX_FEATURES + 1, 0), MAX_FEATURES + 1).is_err());
        assert!(Ensemble::new(&parts(1, MAX_THRESHOLDS + 1), 1).is_err());
    }

    proptest! {
        #[test]
        fn prop_changed_bytes_never_panic(
            seed in any::<u64>(), at in any::<proptest::sample::Index>(), byte in any::<u8>(), row in -3.0_f32..3.0,
        ) {
            let mut parts = random_parts(seed, 3, 4, 5);
            let at = at.index(parts.nodes.len());
            parts.nodes[at] = byte;
            if let Ok(ensemble) = Ensemble::new(&parts, 3) {
                prop_assert!(ensemble.margin(&[row, -row, 0.5 * row]).is_finite());
            }
        }
    }
}

#![expect(clippy::cast_possible_wrap, reason = "a few tokens")]

use proptest::prelude::*;

use super::*;

/// The same tree over single tokens, with no index and no heap.
#[derive(Default)]
struct Naive {
    nodes: Vec<NaiveNode>,
    tick: u64,
}

struct NaiveNode {
    key: Vec<(u64, u32)>,
    children: Vec<usize>,
    parent: usize,
    lock: i32,
    last_access: u64,
    gone: bool,
}

impl Naive {
    fn new() -> Self {
        let mut tree = Self::default();
        tree.add(Vec::new(), 0);
        tree
    }

    fn add(&mut self, key: Vec<(u64, u32)>, parent: usize) -> usize {
        self.tick += 1;
        let node = NaiveNode { key, children: vec![], parent, lock: 0, last_access: self.tick, gone: false };
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn walk(&mut self, tokens: &[(u64, u32)]) -> (usize, usize) {
        let (mut node, mut matched) = (0, 0);
        while matched < tokens.len() {
            let child = self.nodes[node].children.iter().copied().enumerate();
            let Some((place, child)) =
                child.into_iter().find(|&(_, child)| self.nodes[child].key[0] == tokens[matched])
            else {
                break;
            };
            self.tick += 1;
            self.nodes[child].last_access = self.tick;
            let common =
                self.nodes[child].key.iter().zip(&tokens[matched..]).take_while(|(a, b)| a == b).count();
            matched += common;
            if common < self.nodes[child].key.len() {
                let tail = self.nodes[child].key.split_off(common);
                let head_key = std::mem::replace(&mut self.nodes[child].key, tail);
                let head = self.add(head_key, node);
                self.nodes[head].children.push(child);
                self.nodes[head].lock = self.nodes[child].lock;
                self.nodes[child].parent = head;
                self.nodes[node].children[place] = head;
                return (head, matched);
            }
            node = child;
        }
        (node, matched)
    }

    fn insert(&mut self, tokens: &[(u64, u32)]) -> usize {
        let (node, matched) = self.walk(tokens);
        if matched < tokens.len() {
            let child = self.add(tokens[matched..].to_vec(), node);
            self.nodes[node].children.push(child);
        }
        matched
    }

    fn shift_lock(&mut self, mut node: usize, by: i32) {
        while node != 0 {
            self.nodes[node].lock += by;
            node = self.nodes[node].parent;
        }
    }

    fn evict(&mut self, wanted: usize) -> usize {
        let mut freed = 0;
        while freed < wanted {
            let leaves = (1..self.nodes.len()).filter(|&at| {
                let node = &self.nodes[at];
                !node.gone && node.children.is_empty() && node.lock == 0
            });
            let Some(oldest) = leaves.min_by_key(|&at| self.nodes[at].last_access) else { break };
            freed += self.nodes[oldest].key.len();
            self.nodes[oldest].gone = true;
            let parent = self.nodes[oldest].parent;
            self.nodes[parent].children.retain(|&child| child != oldest);
        }
        freed
    }

    fn sizes(&self) -> (i64, i64) {
        let live = || self.nodes.iter().skip(1).filter(|node| !node.gone);
        let tokens = live().map(|node| node.key.len() as i64).sum();
        (tokens, live().filter(|node| node.lock == 0).map(|node| node.key.len() as i64).sum())
    }

    /// Lengths and locks of all nodes, depth first, siblings in order.
    fn shape(&self, node: usize, out: &mut Vec<(usize, i32)>) {
        for &child in &self.nodes[node].children {
            out.push((self.nodes[child].key.len(), self.nodes[child].lock));
            self.shape(child, out);
        }
    }
}

fn shape(tree: &RadixTree, node: NodeId, out: &mut Vec<(usize, i32)>) {
    let mut children: Vec<NodeId> = (1..tree.nodes.len())
        .map(|at| NodeId(at as u32))
        .filter(|&at| tree.nodes[at.index()].attached && tree.parent(at) == node)
        .collect();
    children.sort_by_key(|&child| tree.place(child));
    for child in children {
        let entry = &tree.nodes[child.index()];
        out.push((entry.num_tokens as usize, entry.lock));
        shape(tree, child, out);
    }
}

fn tokens(content: &[Segment], num_tokens: u32) -> Vec<(u64, u32)> {
    let all = content.iter().flat_map(|run| (0..run.len).map(|at| (run.stream, run.start + at)));
    all.take(num_tokens as usize).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Walk(Vec<Segment>),
    Insert(Vec<Segment>),
    /// Match and lock, to be unlocked by number.
    Hold(Vec<Segment>),
    Release(usize),
    Evict(i64),
}

/// Few streams and short runs, so that prompts share prefixes, enter streams at offsets and diverge within runs.
fn content() -> impl Strategy<Value = Vec<Segment>> {
    let run = (0_u64..3, prop_oneof![4 => Just(0_u32), 1 => 0_u32..6], 1_u32..8)
        .prop_map(|(stream, start, len)| Segment { stream, start, len });
    proptest::collection::vec(run, 1..5)
}

fn steps() -> impl Strategy<Value = Vec<(Step, u32)>> {
    let step = prop_oneof![
        2 => content().prop_map(Step::Walk),
        4 => content().prop_map(Step::Insert),
        3 => content().prop_map(Step::Hold),
        3 => (0_usize..9).prop_map(Step::Release),
        2 => (1_i64..40).prop_map(Step::Evict),
    ];
    proptest::collection::vec((step, 0_u32..40), 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn prop_equals_a_tree_over_tokens(steps in steps()) {
        let (mut tree, mut naive) = (RadixTree::new(), Naive::new());
        let mut held: Vec<(NodeId, usize)> = Vec::new();
        for (step, cut) in steps {
            match step {
                Step::Walk(content) => {
                    let all = tokens(&content, cut);
                    let expected = naive.walk(&all).1;
                    let peeked = tree.peek(&content, all.len() as u32);
                    prop_assert_eq!(tree.walk(&content, all.len() as u32).1 as usize, expected);
                    prop_assert_eq!(peeked as usize, expected);
                }
                Step::Insert(content) => {
                    let all = tokens(&content, cut);
                    prop_assert_eq!(tree.insert(&content, all.len() as u32) as usize, naive.insert(&all));
                }
                Step::Hold(content) => {
                    let all = tokens(&content, cut);
                    let (node, matched) = tree.walk(&content, all.len() as u32);
                    let (other, expected) = naive.walk(&all);
                    prop_assert_eq!(matched as usize, expected);
                    tree.lock(node);
                    tree.hold(node);
                    naive.shift_lock(other, 1);
                    held.push((node, other));
                }
                Step::Release(at) if at < held.len() => {
                    let (node, other) = held.remove(at);
                    tree.unlock(node);
                    tree.let_go(node);
                    naive.shift_lock(other, -1);
                }
                Step::Release(_) => {}
                Step::Evict(wanted) => {
                    prop_assert_eq!(tree.evict(wanted) as usize, naive.evict(wanted as usize));
                }
            }
            prop_assert_eq!((tree.num_tokens(), tree.evictable()), naive.sizes());
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            shape(&tree, NodeId::ROOT, &mut ours);
            naive.shape(0, &mut theirs);
            prop_assert_eq!(ours, theirs);
            tree.check_integrity().unwrap();
        }
    }
}

fn run(stream: u64, start: u32, len: u32) -> Segment {
    Segment { stream, start, len }
}

#[test]
fn a_leaf_that_was_used_last_goes_last() {
    let mut tree = RadixTree::new();
    tree.insert(&[run(1, 0, 10)], 10);
    tree.insert(&[run(2, 0, 20)], 20);
    assert_eq!(tree.walk(&[run(1, 0, 10)], 10).1, 10);
    assert_eq!(tree.evict(1), 20);
    assert_eq!((tree.num_tokens(), tree.evictable()), (10, 10));
}

#[test]
fn a_locked_leaf_protects_what_is_above_it() {
    let mut tree = RadixTree::new();
    tree.insert(&[run(1, 0, 10)], 10);
    tree.insert(&[run(1, 0, 4), run(2, 0, 3)], 7);
    let (leaf, matched) = tree.walk(&[run(1, 0, 10)], 10);
    assert_eq!(matched, 10);
    tree.lock(leaf);
    assert_eq!(tree.evictable(), 3);
    assert_eq!(tree.evict(100), 3);
    tree.unlock(leaf);
    assert_eq!(tree.evict(100), 10);
    tree.check_integrity().unwrap();
}

#[test]
fn a_node_released_twice_is_not_mistaken_for_another() {
    let mut tree = RadixTree::new();
    tree.insert(&[run(1, 0, 10)], 10);
    let (node, _) = tree.walk(&[run(1, 0, 10)], 10);
    tree.lock(node);
    tree.hold(node);
    tree.unlock(node);
    tree.unlock(node);
    assert_eq!(tree.evict(10), 10);
    tree.insert(&[run(2, 0, 5)], 5);
    tree.unlock(node);
    assert_eq!((tree.num_tokens(), tree.evictable()), (5, 5));
    tree.let_go(node);
    tree.check_integrity().unwrap();
}

#[test]
fn the_heap_of_leaves_does_not_grow_with_visits() {
    let mut tree = RadixTree::new();
    for stream in 0..10 {
        tree.insert(&[run(stream, 0, 10)], 10);
    }
    for visit in 0..10_000 {
        tree.walk(&[run(visit % 10, 0, 10)], 10);
    }
    assert!(tree.leaves.len() < 200);
    assert_eq!(tree.evict(100), 100);
}

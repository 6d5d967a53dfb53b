//! How popular the experts of a layer are: the chance that a token visits each of them.
//!
//! Chances of a layer add up to `top_k`, and none is above 1, because the experts that a token visits are different
//! ones. What a law would give an expert beyond 1 goes to the others in proportion. Beside the chances stand those of
//! independent choices that give them ([`independent_chances`]).

use super::reach::independent_chances;
use crate::plan::step_time::{DriftSpec, RoutingSpec};
use crate::rng::RngStreams;

/// Popularity of the experts of every layer at every step.
#[derive(Clone, Debug)]
pub struct Popularity {
    law: Law,
    drift: Option<DriftSpec>,
}

#[derive(Clone, Debug)]
enum Law {
    /// Chances in order of popularity, and for each layer the experts in that order.
    Ranked { chances: Chances, orders: Vec<Vec<u32>> },
    /// Chances by window, layer (one list: all layers) and expert.
    Counted(Vec<Vec<Chances>>),
}

/// Chances of the experts of a layer.
#[derive(Clone, Debug)]
pub struct Chances {
    /// That a token visits each of them.
    pub visited: Vec<f64>,
    /// Those of independent choices which, under the condition of their number, are made with these chances.
    pub independent: Vec<f64>,
}

impl Chances {
    fn new(weights: &[f64], top_k: u32) -> Self {
        let visited = chances(weights, top_k);
        Self { independent: independent_chances(&visited, top_k), visited }
    }
}

impl Popularity {
    /// Returns the popularity of `num_experts` experts, of which a token visits `top_k`, in `layers` layers from
    /// `first_layer` on. Every layer has its own popular experts, from its own stream.
    pub fn new(
        routing: &RoutingSpec,
        drift: Option<DriftSpec>,
        (num_experts, top_k): (u32, u32),
        (first_layer, layers): (u32, u32),
        streams: RngStreams,
    ) -> Self {
        let count = num_experts as usize;
        let weights: Vec<f64> = match routing {
            RoutingSpec::Balanced | RoutingSpec::Uniform => vec![1.0; count],
            RoutingSpec::PowerLaw { exponent } => {
                (1..=num_experts).map(|place| libm::pow(f64::from(place), -exponent)).collect()
            }
            RoutingSpec::Bimodal { hot_experts, hot_share } => {
                let (hot, cold) = (f64::from(*hot_experts), f64::from(num_experts - hot_experts));
                (0..num_experts)
                    .map(
                        |place| {
                            if place < *hot_experts { hot_share / hot } else { (1.0 - hot_share) / cold }
                        },
                    )
                    .collect()
            }
            RoutingSpec::Counts { windows } => {
                let of_layer = |counts: &Vec<f64>| Chances::new(counts, top_k);
                let of_window = |window: &Vec<Vec<f64>>| match &window[..] {
                    [all] => vec![of_layer(all)],
                    each => each[first_layer as usize..][..layers as usize].iter().map(of_layer).collect(),
                };
                return Self { law: Law::Counted(windows.iter().map(of_window).collect()), drift };
            }
        };
        let orders = (first_layer..first_layer + layers)
            .map(|layer| shuffled(num_experts, &streams, &format!("moe.popularity.{layer}")))
            .collect();
        Self { law: Law::Ranked { chances: Chances::new(&weights, top_k), orders }, drift }
    }

    /// Tells whether popularity changes.
    pub fn drifts(&self) -> bool {
        self.drift.is_some()
    }

    /// Returns how often popularity has changed before step `step`.
    pub fn epoch(&self, step: u64) -> u64 {
        let changes = self.drift.map_or(0, |drift| step / u64::from(drift.step_interval));
        // Popularity comes round again, and equal ones have one number.
        changes % self.period()
    }

    fn period(&self) -> u64 {
        match (&self.law, self.drift) {
            (_, None) => 1,
            (Law::Counted(windows), _) => windows.len() as u64,
            (Law::Ranked { chances, .. }, Some(drift)) => {
                let (experts, shift) = (chances.visited.len() as u64, u64::from(drift.shift));
                experts / greatest_common_divisor(experts, shift)
            }
        }
    }

    /// Returns the chances of the experts of the stage's layer `layer` in `epoch`.
    pub fn of(&self, layer: usize, epoch: u64) -> Chances {
        match &self.law {
            Law::Ranked { chances, orders } => {
                let shift = self.drift.map_or(0, |drift| drift.shift) as usize * epoch as usize;
                let count = chances.visited.len();
                let mut found = Chances { visited: vec![0.0; count], independent: vec![0.0; count] };
                for (place, &expert) in orders[layer].iter().enumerate() {
                    let (expert, place) = (expert as usize, (place + shift) % count);
                    found.visited[expert] = chances.visited[place];
                    found.independent[expert] = chances.independent[place];
                }
                found
            }
            Law::Counted(windows) => {
                let window = &windows[epoch as usize];
                window[layer % window.len()].clone()
            }
        }
    }

    /// Returns the mean chances of the stage's layer `layer` over the steps `from .. to`.
    pub fn mean(&self, layer: usize, from: u64, to: u64) -> Vec<f64> {
        let interval = self.drift.map_or(u64::MAX, |drift| u64::from(drift.step_interval));
        if from / interval == to.saturating_sub(1).max(from) / interval {
            return self.of(layer, self.epoch(from)).visited;
        }
        let mut sums: Vec<f64> = Vec::new();
        let mut step = from;
        while step < to {
            let end = (step / interval + 1).saturating_mul(interval).min(to);
            let (weight, chances) = ((end - step) as f64, self.of(layer, self.epoch(step)).visited);
            if sums.is_empty() {
                sums = vec![0.0; chances.len()];
            }
            for (sum, chance) in sums.iter_mut().zip(chances) {
                *sum += weight * chance;
            }
            step = end;
        }
        for sum in &mut sums {
            *sum /= (to - from) as f64;
        }
        sums
    }
}

fn shuffled(count: u32, streams: &RngStreams, name: &str) -> Vec<u32> {
    let mut stream = streams.get(name);
    let mut order: Vec<u32> = (0..count).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, stream.below(last as u64 + 1) as usize);
    }
    order
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Returns chances in proportion to `weights` that add up to `top_k`, none above 1.
fn chances(weights: &[f64], top_k: u32) -> Vec<f64> {
    let mut found = vec![0.0; weights.len()];
    let mut certain = vec![false; weights.len()];
    loop {
        let full = certain.iter().filter(|&&is| is).count() as f64;
        let rest: f64 = weights.iter().zip(&certain).filter(|(_, is)| !**is).map(|(weight, _)| weight).sum();
        let scale = if rest > 0.0 { (f64::from(top_k) - full) / rest } else { 0.0 };
        let mut more = false;
        for ((chance, weight), is_certain) in found.iter_mut().zip(weights).zip(&mut certain) {
            *chance = if *is_certain { 1.0 } else { weight * scale };
            if *chance > 1.0 {
                (*is_certain, more) = (true, true);
            }
        }
        if !more {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn popularity(routing: &RoutingSpec, drift: Option<DriftSpec>) -> Popularity {
        Popularity::new(routing, drift, (64, 8), (3, 4), RngStreams::new(1, 0))
    }

    #[test]
    fn chances_add_up_and_none_is_above_one() {
        for routing in [
            RoutingSpec::Uniform,
            RoutingSpec::PowerLaw { exponent: 0.5 },
            RoutingSpec::PowerLaw { exponent: 3.0 },
            RoutingSpec::Bimodal { hot_experts: 8, hot_share: 0.9 },
        ] {
            let found = popularity(&routing, None).of(2, 0).visited;
            assert!((found.iter().sum::<f64>() - 8.0).abs() < 1e-9, "{routing:?}");
            assert!(found.iter().all(|&chance| chance > 0.0 && chance <= 1.0 + 1e-12), "{routing:?}");
        }
    }

    #[test]
    fn layers_have_popular_experts_of_their_own() {
        let found = popularity(&RoutingSpec::PowerLaw { exponent: 1.0 }, None);
        assert_ne!(found.of(0, 0).visited, found.of(1, 0).visited);
        let sorted = |mut chances: Vec<f64>| {
            chances.sort_by(f64::total_cmp);
            chances
        };
        assert_eq!(sorted(found.of(0, 0).visited), sorted(found.of(1, 0).visited));
    }

    #[test]
    fn drift_moves_experts_through_the_order_and_comes_round() {
        let drift = DriftSpec { step_interval: 10, shift: 6 };
        let found = popularity(&RoutingSpec::PowerLaw { exponent: 1.0 }, Some(drift));
        assert_eq!((found.epoch(9), found.epoch(10), found.epoch(319), found.epoch(320)), (0, 1, 31, 0));
        let (first, second, half) = (found.of(0, 0).visited, found.of(0, 1).visited, found.mean(0, 5, 15));
        assert_ne!(first, second);
        for ((a, b), mean) in first.iter().zip(&second).zip(&half) {
            assert!((0.5 * (a + b) - mean).abs() < 1e-9);
        }
    }

    #[test]
    fn counts_are_chances_of_their_window_and_layer() {
        let mut window = vec![vec![1.0; 64]; 7];
        window[4][0] = 9.0;
        let windows = vec![vec![vec![1.0; 64]], window];
        let drift = Some(DriftSpec { step_interval: 100, shift: 0 });
        let found = popularity(&RoutingSpec::Counts { windows }, drift);
        // The stage begins with layer 3, so its second layer is layer 4.
        let chances = found.of(1, found.epoch(100)).visited;
        assert!((chances[0] / chances[1] - 9.0).abs() < 1e-9);
        assert!(found.of(1, found.epoch(200)).visited.iter().all(|chance| (chance - 0.125).abs() < 1e-12));
    }
}

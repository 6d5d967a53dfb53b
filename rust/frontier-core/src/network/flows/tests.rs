//! Closed forms.

use super::*;
use crate::error::SimError;

fn network(bytes_per_s: &[f64]) -> FlowNetwork {
    FlowNetwork::new(bytes_per_s).unwrap()
}

fn over(links: &[u32]) -> Bundle {
    Bundle::new(1, links.iter().map(|&link| (LinkId(link), 1)).collect(), 1, 0).unwrap()
}

/// Returns (end in ns, tag) of all flows until nothing more ends.
fn ends(network: &mut FlowNetwork) -> Vec<(u64, u64)> {
    let mut ended = Vec::new();
    while let Some(end) = network.next_end() {
        network.advance(end, &mut ended).unwrap();
    }
    network.check_integrity().unwrap();
    ended.iter().map(|flow| (flow.end.0, flow.tag)).collect()
}

#[test]
fn a_hundred_equal_transfers_end_together_when_the_link_has_moved_them_all() {
    let mut network = network(&[12.5e9]);
    for tag in 0..100 {
        network.start(SimTime(7), &over(&[0]), 268_435_456, None, tag).unwrap();
    }
    // 100 B / W = 2.147483648 s, whole nanoseconds.
    let expected: Vec<(u64, u64)> = (0..100).map(|tag| (7 + 2_147_483_648, tag)).collect();
    assert_eq!(ends(&mut network), expected);
    assert_eq!(network.link_bytes(LinkId(0)), 100 * 268_435_456);
}

#[test]
fn transfers_of_different_sizes_end_as_the_fluid_does() {
    let (rate, count) = (12.5e9, 100);
    let mut network = network(&[rate]);
    let sizes: Vec<u64> = (0..count).map(|i| 1_000_000 + (i * 7_919 % 100) * 1_234_567).collect();
    for (tag, &bytes) in (0..).zip(&sizes) {
        network.start(SimTime::ZERO, &over(&[0]), bytes, None, tag).unwrap();
    }
    let mut sorted = sizes.clone();
    sorted.sort_unstable();
    let found = ends(&mut network);
    let (mut before, mut rounding) = (0, 0.0);
    for (k, (&size, &(end, tag))) in sorted.iter().zip(&found).enumerate() {
        assert_eq!(sizes[tag as usize], size);
        // The k smallest are gone, all others have moved as much as this one.
        before += size;
        let moved = before + (count - k as u64 - 1) * size;
        let exact = moved as f64 / rate * 1e9;
        // An end is rounded up; until then its share is lost to those that go on.
        rounding += 1.0 / (count - k as u64) as f64;
        let late = end as f64 - exact;
        assert!((-1e-3..1.0 + rounding).contains(&late), "flow {k} ends {late} ns late");
    }
    assert_eq!(network.totals().bytes_ended, u128::from(sizes.iter().sum::<u64>()));
}

#[test]
fn a_flow_below_its_share_leaves_the_rest_to_others() {
    let mut network = network(&[10e9]);
    network.start(SimTime::ZERO, &over(&[0]), 2_000_000, Some(2e9), 0).unwrap();
    let fast = network.start(SimTime::ZERO, &over(&[0]), 8_000_000, None, 1).unwrap();
    assert_eq!(network.rate(fast), Some(8e9));
    assert_eq!(ends(&mut network), [(1_000_000, 0), (1_000_000, 1)]);
}

#[test]
fn a_long_flow_over_a_parking_lot_has_what_the_tightest_hop_gives() {
    // Links of 10, 4 and 6 GB/s; one flow over all of them and one more on each: 2, then 8, 2 and 4.
    let mut network = network(&[10e9, 4e9, 6e9]);
    let long = network.start(SimTime::ZERO, &over(&[0, 1, 2]), 1 << 30, None, 9).unwrap();
    let short: Vec<FlowId> =
        (0..3).map(|link| network.start(SimTime::ZERO, &over(&[link]), 1 << 30, None, 0).unwrap()).collect();
    let rates: Vec<f64> = short.iter().chain([&long]).map(|&flow| network.rate(flow).unwrap()).collect();
    assert_eq!(rates, [8e9, 2e9, 4e9, 2e9]);
}

#[test]
fn bundles_share_by_their_streams() {
    // Eight streams, one per NIC, against one stream on the first NIC.
    let mut network = network(&[50e9; 8]);
    let eight = Bundle::new(8, (0..8).map(|nic| (LinkId(nic), 1)).collect(), 8, 0).unwrap();
    let wide = network.start(SimTime::ZERO, &eight, 1 << 30, None, 0).unwrap();
    let narrow = network.start(SimTime::ZERO, &over(&[0]), 1 << 30, None, 1).unwrap();
    assert_eq!((network.rate(wide), network.rate(narrow)), (Some(200e9), Some(25e9)));
    // Two streams of it on one link have two shares.
    let mut network = self::network(&[9e9]);
    let two = Bundle::new(1, vec![(LinkId(0), 1)], 2, 0).unwrap();
    let double = network.start(SimTime::ZERO, &two, 1 << 30, None, 0).unwrap();
    network.start(SimTime::ZERO, &over(&[0]), 1 << 30, None, 1).unwrap();
    assert_eq!(network.rate(double), Some(6e9));
}

#[test]
fn copies_take_a_link_more_than_once() {
    let mut network = network(&[8e9]);
    let copies = Bundle::new(1, vec![(LinkId(0), 8)], 8, 0).unwrap();
    network.start(SimTime::ZERO, &copies, 1_000_000, None, 0).unwrap();
    assert_eq!(ends(&mut network), [(1_000_000, 0)]);
    assert_eq!(network.link_bytes(LinkId(0)), 8_000_000);
}

#[test]
fn what_needs_no_link_or_has_no_bytes_ends_at_once() {
    let mut network = network(&[1e9]);
    network.start(SimTime(5), &over(&[0]), 0, None, 0).unwrap();
    let here = network.start(SimTime(5), &over(&[]), 1 << 40, None, 1).unwrap();
    assert_eq!(network.rate(here), Some(f64::INFINITY));
    network.start(SimTime(5), &over(&[]), 1_000, Some(1e9), 2).unwrap();
    assert_eq!(ends(&mut network), [(5, 0), (5, 1), (1_005, 2)]);
}

#[test]
fn a_broken_link_stalls_its_flows_until_it_is_mended() {
    let mut network = network(&[10e9]);
    network.start(SimTime::ZERO, &over(&[0]), 10_000_000, None, 0).unwrap();
    network.set_capacity(SimTime(250_000), LinkId(0), 0.0).unwrap();
    assert_eq!(network.next_end(), None);
    network.set_capacity(SimTime(900_000), LinkId(0), 0.1).unwrap();
    assert_eq!(network.next_end(), Some(SimTime(900_000 + 7_500_000)));
    network.set_capacity(SimTime(1_900_000), LinkId(0), 1.0).unwrap();
    assert_eq!(ends(&mut network), [(1_900_000 + 650_000, 0)]);
}

#[test]
fn a_cancelled_flow_says_what_it_moved_and_frees_its_share() {
    let mut network = network(&[10e9]);
    let gone = network.start(SimTime::ZERO, &over(&[0]), 10_000_000, None, 0).unwrap();
    network.start(SimTime::ZERO, &over(&[0]), 10_000_000, None, 1).unwrap();
    assert_eq!(network.moved(SimTime(100_001), gone), Ok(Some(500_005)));
    assert_eq!(network.cancel(SimTime(400_000), gone), Ok(Some(2_000_000)));
    assert_eq!(network.moved(SimTime(400_000), gone), Ok(None));
    assert_eq!(network.cancel(SimTime(400_000), gone), Ok(None));
    assert_eq!(ends(&mut network), [(1_200_000, 1)]);
    assert_eq!(network.link_bytes(LinkId(0)), 12_000_000);
    let totals = network.totals();
    assert_eq!((totals.bytes_cancelled, totals.bytes_dropped), (2_000_000, 8_000_000));
    // The slot is used again, the old id is not.
    let again = network.start(SimTime(1_200_000), &over(&[0]), 1, None, 2).unwrap();
    assert_eq!((network.rate(gone), network.live()), (None, 1));
    assert!(again > gone);
}

#[test]
fn a_closed_loop_keeps_its_link_full() {
    // Ten flows at a time, each followed by another: bytes over time is the bandwidth.
    let (mut network, mut ended, mut next) = (network(&[3e9]), Vec::new(), 10);
    for tag in 0..10 {
        network.start(SimTime::ZERO, &over(&[0]), 100_000 + 37_123 * tag, None, tag).unwrap();
    }
    while let Some(end) = network.next_end() {
        let first = ended.len();
        network.advance(end, &mut ended).unwrap();
        for _ in first..ended.len() {
            if next < 10_000 {
                let bytes = 100_000 + next * 7_919 % 1_000_000;
                network.start(end, &over(&[0]), bytes, None, next).unwrap();
                next += 1;
            }
        }
    }
    assert_eq!(ended.len(), 10_000);
    let bytes = network.totals().bytes_ended as f64;
    let late = ended.last().unwrap().end.0 as f64 - bytes / 3.0;
    assert!((0.0..10_000.0).contains(&late), "{late} ns late after 10,000 ends");
}

#[test]
fn misuse_is_an_error() {
    let broken = |found: Result<FlowId, SimError>| matches!(found, Err(SimError::Invariant { .. }));
    let mut network = network(&[1e9]);
    assert!(broken(network.start(SimTime(0), &over(&[1]), 1, None, 0)), "no such link");
    assert!(broken(network.start(SimTime(0), &over(&[0]), 1, Some(0.0), 0)), "no rate");
    assert!(broken(network.start(SimTime(0), &over(&[0]), 1, Some(f64::NAN), 0)), "no rate");
    network.start(SimTime(0), &over(&[0]), 10, None, 0).unwrap();
    assert!(broken(network.start(SimTime(11), &over(&[0]), 1, None, 0)), "an end was not taken");
    network.advance(SimTime(11), &mut Vec::new()).unwrap();
    assert!(broken(network.start(SimTime(10), &over(&[0]), 1, None, 0)), "the past");
    assert!(network.advance(SimTime(10), &mut Vec::new()).is_err());
    assert!(network.set_capacity(SimTime(11), LinkId(0), 1.5).is_err());
    assert!(network.set_capacity(SimTime(11), LinkId(1), 0.5).is_err());
    assert!(FlowNetwork::new(&[0.0]).is_err() && FlowNetwork::new(&[f64::INFINITY]).is_err());
    assert!(Bundle::new(0, Vec::new(), 1, 0).is_err() && Bundle::new(1, Vec::new(), 0, 0).is_err());
    // 65,536 streams on a link at most, and no more than 64 bits of them in all.
    assert!(Bundle::new(1, vec![(LinkId(0), 2)], 1 << 16, 0).is_err());
    let heavy = Bundle::new(1, vec![(LinkId(0), 1)], 1 << 16, 0).unwrap();
    let starts = (0..1 << 17).map(|_| network.start(SimTime(11), &heavy, 1, None, 0));
    assert!(starts.into_iter().any(|found| matches!(found, Err(SimError::TooLong { .. }))));
}

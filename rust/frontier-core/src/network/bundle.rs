//! What one transfer between sets of GPUs loads links with.

use super::flows::rate_units_of;
use super::re_layout::Piece;
use super::topology::{GpuId, LinkId, Topology};
use crate::error::SimError;
use crate::plan::network::EfficiencySpec;

/// Most streams that a bundle may put on one link; keeps weights in 64 bits.
const MAX_STREAMS_PER_LINK: u64 = 1 << 16;

/// The streams of one transfer, which go on in proportion and end together: of each `whole` bytes of it, a link
/// carries `parts`.
///
/// A link carries more bytes than the transfer has where several ranks receive the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    whole: u32,
    /// In order of links, each once.
    parts: Vec<(LinkId, u32)>,
    streams: u32,
    latency_ns: u64,
}

impl Bundle {
    /// Returns a bundle of `streams` streams, of which `parts` loads each link with so many of `whole` parts.
    ///
    /// # Errors
    /// [`SimError::Invariant`] if `whole` or `streams` is 0, or a link has over 65,536 streams.
    pub fn new(
        whole: u32,
        mut parts: Vec<(LinkId, u32)>,
        streams: u32,
        latency_ns: u64,
    ) -> Result<Self, SimError> {
        let broken = |what: &str| Err(SimError::Invariant { what: format!("a bundle of flows {what}") });
        if whole == 0 || streams == 0 {
            return broken("has neither parts nor streams");
        }
        parts.retain(|&(_, count)| count > 0);
        parts.sort_unstable();
        parts.dedup_by(|later, first| {
            let same = later.0 == first.0;
            if same {
                first.1 = first.1.saturating_add(later.1);
            }
            same
        });
        let most = parts.iter().map(|&(_, count)| u64::from(count)).max().unwrap_or(0);
        if most.saturating_mul(u64::from(streams)) > MAX_STREAMS_PER_LINK * u64::from(whole) {
            return broken("puts more than 65,536 streams on one link");
        }
        let common = parts.iter().fold(whole, |common, &(_, count)| greatest_common_divisor(common, count));
        for (_, count) in &mut parts {
            *count /= common;
        }
        Ok(Self { whole: whole / common, parts, streams, latency_ns })
    }

    /// Returns the bundle of `pieces`, one stream each, between the GPUs that `from` and `to` have for the ranks, of
    /// which `whole` parts are the bytes of the transfer. Its latency is the longest one of its streams.
    ///
    /// # Errors
    /// [`SimError::Input`] without a route, [`SimError::Invariant`] as [`Self::new`] and if `pieces` has a rank
    /// that has no GPU.
    pub fn of_pieces(
        topology: &Topology,
        (from, to): (&[GpuId], &[GpuId]),
        whole: u32,
        pieces: &[Piece],
    ) -> Result<Self, SimError> {
        let (mut parts, mut route, mut latency_ns) = (Vec::new(), Vec::new(), 0);
        for piece in pieces {
            let ends = (from.get(piece.from as usize), to.get(piece.to as usize));
            let (Some(&source), Some(&target)) = ends else {
                return Err(SimError::Invariant { what: "every rank of a transfer has a GPU".into() });
            };
            route.clear();
            latency_ns = topology.route(source, target, &mut route)?.max(latency_ns);
            parts.extend(route.iter().map(|&link| (link, piece.parts)));
        }
        let streams = u32::try_from(pieces.len().max(1)).unwrap_or(u32::MAX);
        Self::new(whole, parts, streams, latency_ns)
    }

    /// Returns what stands for the bytes of the transfer.
    pub fn whole(&self) -> u32 {
        self.whole
    }

    /// Returns what each link carries of [`Self::whole`], in order of links.
    pub fn parts(&self) -> &[(LinkId, u32)] {
        &self.parts
    }

    /// Returns the streams, by which bundles share links.
    pub fn streams(&self) -> u32 {
        self.streams
    }

    /// Returns the time before the first byte.
    pub fn latency_ns(&self) -> u64 {
        self.latency_ns
    }

    /// Returns the rate in bytes per second that the bundle has when it is alone; `None` without links.
    pub fn line_rate(&self, topology: &Topology) -> Option<f64> {
        let rate = |&(link, parts): &(LinkId, u32)| {
            topology.bytes_per_s()[link.index()] * f64::from(self.whole) / f64::from(parts)
        };
        self.parts.iter().map(rate).reduce(f64::min)
    }

    /// Returns the rate in bytes per second that messages of `message_bytes` let the bundle have at most: its line
    /// rate times their efficiency; `None` where they do not limit it.
    pub fn message_rate(
        &self,
        topology: &Topology,
        efficiency: &EfficiencySpec,
        message_bytes: u64,
    ) -> Option<f64> {
        let share = efficiency.share(message_bytes);
        self.line_rate(topology).filter(|_| share < 1.0).map(|rate| rate * share)
    }
}

/// Leaves away, from all `bundles` that will ever flow, every link that fills no sooner than another one: of links
/// which all bundles load in proportion, the one with the least bandwidth for its load stays (of equal ones the
/// first). Rates stay exactly as they were, and cost less. Links in `keep`, whose capacity may change, stay in any
/// case.
///
/// Returns how many links are left in use.
pub fn merge_equal_links(bundles: &mut [Bundle], topology: &Topology, keep: &[LinkId]) -> usize {
    // What loads each link: (bundle, parts), and by how much the parts were divided.
    let mut loads: Vec<(Vec<(usize, u32)>, u32)> = vec![(Vec::new(), 0); topology.num_links()];
    for (number, bundle) in bundles.iter().enumerate() {
        for &(link, parts) in &bundle.parts {
            let (load, common) = &mut loads[link.index()];
            load.push((number, parts));
            *common = greatest_common_divisor(*common, parts);
        }
    }
    for (load, common) in &mut loads {
        for (_, parts) in load {
            *parts /= *common;
        }
    }
    let mut order: Vec<usize> = (0..loads.len()).filter(|&link| !loads[link].0.is_empty()).collect();
    // Bandwidth of `a` in units of the load of `b`, for a comparison without division.
    let bandwidth =
        |a: usize, b: usize| u128::from(rate_units_of(topology.bytes_per_s()[a])) * u128::from(loads[b].1);
    order.sort_by(|&a, &b| {
        loads[a].0.cmp(&loads[b].0).then(bandwidth(a, b).cmp(&bandwidth(b, a))).then(a.cmp(&b))
    });
    let mut stays = vec![false; loads.len()];
    for (at, &link) in order.iter().enumerate() {
        stays[link] = at == 0 || loads[order[at - 1]].0 != loads[link].0;
    }
    for link in keep {
        stays[link.index()] = true;
    }
    for bundle in bundles {
        bundle.parts.retain(|&(link, _)| stays[link.index()]);
    }
    order.iter().filter(|&&link| stays[link]).count()
}

fn greatest_common_divisor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

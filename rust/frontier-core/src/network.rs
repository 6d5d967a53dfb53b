//! The network: GPUs, links and routes ([`topology`]), what a transfer between sets of GPUs loads them with
//! ([`bundle`], [`mod@re_layout`]), and flows that share links max-min fairly ([`flows`]).
//!
//! It knows no request, KV or queue: bytes and times go in, times come out. A transfer takes its latency
//! ([`Bundle::latency_ns`]) and then a flow; who adds the two, and when, is the caller's business.

pub mod bundle;
pub mod flows;
pub mod re_layout;
pub mod topology;

pub use bundle::{Bundle, merge_equal_links};
pub use flows::{Ended, FlowId, FlowNetwork, Totals};
pub use re_layout::{Layout, Piece, re_layout};
pub use topology::{GpuId, LinkId, LinkName, Topology};

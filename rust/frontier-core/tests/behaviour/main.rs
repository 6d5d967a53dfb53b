//! Behaviour of whole simulations, one file per behaviour.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod baseline_behaviour;
mod baseline_laws;
mod colocated;
mod data_parallel;
mod disaggregation;
mod dynamics;
mod hangs;
mod kv_groups;
mod kv_tiers;
mod ordering;
mod paths;
mod pipelines;
mod private_content;
mod routing;
mod scheduler_laws;
mod sglang_handover;
mod sglang_laws;
mod speculation;
mod support;

//! Behaviour of whole simulations, one file per behaviour.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod colocated;
mod hangs;
mod kv_tiers;
mod private_content;
mod routing;
mod scheduler_laws;
mod support;

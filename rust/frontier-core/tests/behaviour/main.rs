//! Behaviour of whole simulations, one file per behaviour.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod baseline_behaviour;
mod baseline_laws;
mod colocated;
mod hangs;
mod ordering;
mod private_content;
mod routing;
mod scheduler_laws;
mod support;

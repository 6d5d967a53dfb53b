//! Behaviour of whole simulations, one file per behaviour.

mod colocated;
mod hangs;
mod routing;
mod scheduler_laws;
mod support;

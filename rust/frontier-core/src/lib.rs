//! The frontier simulator core: a deterministic discrete-event simulation of large-language-model serving.
//!
//! A [`plan::Plan`] (one JSON document) and the columns of a trace go in; a [`simulation::Simulation`] moves
//! requests through arrival, routing, batching, execution and completion; the columns of a
//! [`metrics::Recorder`] come out. Dependencies point inwards: a room knows only rooms listed above it.
//!
//! | room | holds |
//! |---|---|
//! | [`ids`], [`time`], [`rng`], [`error`] | typed indices, integer nanoseconds, named random streams, errors |
//! | [`plan`] | the document that a run is made of |
//! | [`kernel`] | the clock and the event queue; knows no serving word |
//! | [`workload`] | arrivals, lengths, traces: requests before they reach a cluster |
//! | [`predictor`] | packs of learned operator predictors, and how they are evaluated; knows no scheduling |
//! | [`fidelity`] | how long a batch takes; knows no request, queue or policy |
//! | [`network`] | topology, routes, flows that share links max-min fairly; knows no request, KV or queue |
//! | [`kvcache`] | blocks, radix trees, prefix identity; only its tiers below the device know time: when a transfer is done |
//! | [`speculation`] | drafts as data: how many, and how many are accepted; knows no time |
//! | [`scheduler`] | batch formation: data in, data out; knows no step time, and the moment only where a policy or a transfer of KV asks for it |
//! | [`scores`] | what a scheduling policy is told about a request on its arrival |
//! | [`metrics`] | what a run leaves behind |
//! | [`frontend`] | API servers before and after the engines; knows no queue, block or step |
//! | [`engine`] | one engine: its scheduler, its batches in flight, the time they take |
//! | [`engine_group`] | data-parallel ranks in lock step |
//! | [`frontend`] | API servers before and behind the engines |
//! | [`cluster`] | routing over replicas and over data-parallel ranks |
//! | [`event`], [`simulation`] | the closed set of events, and the loop that handles them |

#![forbid(unsafe_code)]

pub mod cluster;
pub mod engine;
pub mod engine_group;
pub mod error;
pub mod event;
pub mod fidelity;
pub mod frontend;
pub mod ids;
pub mod kernel;
pub mod kvcache;
pub mod metrics;
pub mod network;
pub mod plan;
pub mod predictor;
pub mod rng;
pub mod scheduler;
pub mod scores;
pub mod simulation;
pub mod speculation;
pub mod time;
pub mod workload;

//! Replicas and how requests are spread over them.

mod router;

pub use router::Router;

//! Replicas and how requests are spread over them.

mod data_parallel;
mod rank_balancer;
mod router;

pub use data_parallel::DataParallelRanks;
pub use rank_balancer::{RankBalancer, RankReport};
pub use router::Router;

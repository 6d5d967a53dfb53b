//! The API servers in front of an engine.

use serde::Deserialize;

use crate::error::SimError;

/// Most API servers of a replica: their numbers are kept in 16 bits.
const MAX_SERVERS: u32 = 1 << 12;
/// Longest time of any one cost (an hour): keeps sums over a step's outputs inside 63 bits.
const MAX_COST_NS: u64 = 3_600_000_000_000;

/// What requests pass through before the engine, and tokens after it; the same for each replica.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrontendSpec {
    /// API servers of a replica, at least 1; each does one thing at a time.
    pub api_servers: u32,
    /// Output is processed beside input, by a process of its own per API server, not in turn with it.
    pub separate_detokenizer: bool,
    /// From the client to an API server, and the same back.
    pub network_ns: u64,
    /// Accepting a request.
    pub per_request_ns: u64,
    /// Tokenising, per token of the prompt.
    pub per_prompt_token_ns: u64,
    /// Handling a step's outputs, per API server that has requests in it.
    pub per_message_ns: u64,
    /// Detokenising and sending, per request and step.
    pub per_output_ns: u64,
    /// The same per token.
    pub per_output_token_ns: u64,
}

impl FrontendSpec {
    /// Checks the values.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming the first that is not allowed.
    pub fn check(&self) -> Result<(), SimError> {
        let refuse =
            |field: &str, message: String| Err(SimError::Plan { path: format!("frontend.{field}"), message });
        if self.api_servers == 0 || self.api_servers > MAX_SERVERS {
            return refuse(
                "api_servers",
                format!("was {}, must be in 1 ..= {MAX_SERVERS}", self.api_servers),
            );
        }
        for (field, cost) in [
            ("network_ns", self.network_ns),
            ("per_request_ns", self.per_request_ns),
            ("per_prompt_token_ns", self.per_prompt_token_ns),
            ("per_message_ns", self.per_message_ns),
            ("per_output_ns", self.per_output_ns),
            ("per_output_token_ns", self.per_output_token_ns),
        ] {
            if cost > MAX_COST_NS {
                return refuse(field, format!("was {cost}, must be at most {MAX_COST_NS}"));
            }
        }
        Ok(())
    }
}

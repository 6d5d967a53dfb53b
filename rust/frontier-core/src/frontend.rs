//! API servers: what a request passes through before its engine, and its tokens after it.
//!
//! Mirrors the stages of `vllm serve` (`vllm/entrypoints`, `vllm/v1/engine/async_llm.py`, 0.11 to 0.32): each API
//! server is one event loop that accepts and tokenises requests and detokenises and streams what its requests got in
//! a step, one thing at a time and first come, first served. They delay delivery, never steps. `SGLang`'s
//! detokenizer is a process of its own (`sglang/srt/managers/detokenizer_manager.py`).
//!
//! Knows nothing of queues, blocks or steps: times in, times out. Work is handed over in order of time, so when a
//! server is free next is all that it has to remember.

use crate::error::SimError;
use crate::ids::{ReplicaId, RequestId};
use crate::plan::FrontendSpec;
use crate::time::{SimDuration, SimTime};

/// Stands for no server.
const NOBODY: u16 = u16::MAX;

/// Tokens that a request got in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// Whose they are.
    pub request: RequestId,
    /// How many.
    pub tokens: u32,
}

/// One API server.
#[derive(Clone, Copy, Debug, Default)]
struct Server {
    /// When its event loop is free.
    free: SimTime,
    /// When its detokenizer is free, if that is a process of its own.
    detokenizer_free: SimTime,
    /// The last message that it handles; 0 is none.
    message: u64,
}

/// The API servers of all replicas.
#[derive(Debug)]
pub struct Frontend {
    spec: FrontendSpec,
    /// By replica, then by number.
    servers: Vec<Server>,
    /// Which of its replica's servers has a request.
    server_of: Vec<u16>,
    messages: u64,
}

impl Frontend {
    /// Returns idle servers in front of `replicas` replicas.
    pub fn new(spec: FrontendSpec, replicas: u32) -> Self {
        let count = replicas as usize * spec.api_servers as usize;
        Self { servers: vec![Server::default(); count], server_of: Vec::new(), messages: 0, spec }
    }

    /// Returns the time from a client to the servers, or back.
    pub fn network(&self) -> SimDuration {
        SimDuration(self.spec.network_ns)
    }

    /// Takes in a request that reaches the servers of `replica` at `now`: the one that is free first accepts it, the
    /// first of equals. Returns when the request reaches its engine.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`]; [`SimError::Invariant`] for a replica without servers.
    pub fn accept(
        &mut self,
        request: RequestId,
        prompt_tokens: u32,
        replica: ReplicaId,
        now: SimTime,
    ) -> Result<SimTime, SimError> {
        let work = self.spec.per_request_ns + self.spec.per_prompt_token_ns * u64::from(prompt_tokens);
        let servers = self.servers_of(replica);
        let (number, server) = servers
            .iter_mut()
            .enumerate()
            .min_by_key(|(_, server)| server.free.max(now))
            .ok_or_else(|| SimError::Invariant { what: "a replica has an API server".into() })?;
        server.free = server.free.max(now).after(SimDuration(work))?;
        let ready = server.free;
        if self.server_of.len() <= request.index() {
            self.server_of.resize(request.index() + 1, NOBODY);
        }
        self.server_of[request.index()] = number as u16;
        Ok(ready)
    }

    /// Streams what requests of `replica` got in a step that ended `now`, in their order in the step, and tells
    /// `delivered` when the client has each of them.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`].
    pub fn deliver(
        &mut self,
        replica: ReplicaId,
        now: SimTime,
        outputs: &[Output],
        mut delivered: impl FnMut(RequestId, SimTime),
    ) -> Result<(), SimError> {
        self.messages += 1;
        let (message, network) = (self.messages, self.network());
        let separate = self.spec.separate_detokenizer;
        for output in outputs {
            let number = self.server_of[output.request.index()];
            let mut work = self.spec.per_output_ns + self.spec.per_output_token_ns * u64::from(output.tokens);
            let per_message_ns = self.spec.per_message_ns;
            let server = &mut self.servers_of(replica)[usize::from(number)];
            if server.message != message {
                server.message = message;
                work += per_message_ns;
            }
            let free = if separate { &mut server.detokenizer_free } else { &mut server.free };
            *free = (*free).max(now).after(SimDuration(work))?;
            delivered(output.request, free.after(network)?);
        }
        Ok(())
    }

    fn servers_of(&mut self, replica: ReplicaId) -> &mut [Server] {
        let count = self.spec.api_servers as usize;
        &mut self.servers[replica.index() * count..][..count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: FrontendSpec = FrontendSpec {
        api_servers: 1,
        separate_detokenizer: false,
        network_ns: 0,
        per_request_ns: 0,
        per_prompt_token_ns: 0,
        per_message_ns: 0,
        per_output_ns: 0,
        per_output_token_ns: 0,
    };
    const REPLICA: ReplicaId = ReplicaId(0);

    fn delivered(frontend: &mut Frontend, now: u64, outputs: &[(u32, u32)]) -> Vec<(u32, u64)> {
        let outputs: Vec<Output> =
            outputs.iter().map(|&(id, tokens)| Output { request: RequestId(id), tokens }).collect();
        let mut found = Vec::new();
        frontend
            .deliver(REPLICA, SimTime(now), &outputs, |request, at| found.push((request.0, at.0)))
            .unwrap();
        found
    }

    #[test]
    fn a_server_tokenises_one_prompt_at_a_time() {
        let spec = FrontendSpec { per_request_ns: 100, per_prompt_token_ns: 2, ..FREE };
        let mut one = Frontend::new(spec.clone(), 1);
        let mut two = Frontend::new(FrontendSpec { api_servers: 2, ..spec }, 1);
        let arrivals = [(0, 50), (10, 5), (20, 5), (500, 1)];
        let ready = |frontend: &mut Frontend| -> Vec<u64> {
            let accept = |(id, &(at, tokens)): (usize, &(u64, u32))| {
                frontend.accept(RequestId(id as u32), tokens, REPLICA, SimTime(at)).unwrap().0
            };
            arrivals.iter().enumerate().map(accept).collect()
        };
        assert_eq!(ready(&mut one), [200, 310, 420, 602]);
        assert_eq!(ready(&mut two), [200, 120, 230, 602]);
    }

    #[test]
    fn outputs_leave_in_turn_and_wait_for_prompts() {
        let spec = FrontendSpec {
            network_ns: 7,
            per_request_ns: 1000,
            per_message_ns: 50,
            per_output_ns: 10,
            per_output_token_ns: 1,
            ..FREE
        };
        let mut frontend = Frontend::new(spec.clone(), 1);
        for id in 0..2 {
            frontend.accept(RequestId(id), 9, REPLICA, SimTime(0)).unwrap();
        }
        // The loop is busy with the second prompt until 2000.
        assert_eq!(delivered(&mut frontend, 1500, &[(0, 1)]), [(0, 2000 + 50 + 11 + 7)]);
        assert_eq!(delivered(&mut frontend, 3000, &[(1, 4), (0, 1)]), [(1, 3071), (0, 3082)]);
        let mut apart = Frontend::new(FrontendSpec { separate_detokenizer: true, ..spec }, 1);
        for id in 0..2 {
            apart.accept(RequestId(id), 9, REPLICA, SimTime(0)).unwrap();
        }
        assert_eq!(delivered(&mut apart, 1500, &[(0, 1)]), [(0, 1500 + 50 + 11 + 7)]);
    }

    #[test]
    fn servers_of_one_replica_work_side_by_side() {
        let spec = FrontendSpec { api_servers: 2, per_request_ns: 10, per_output_ns: 100, ..FREE };
        let mut frontend = Frontend::new(spec, 2);
        for id in 0..2 {
            frontend.accept(RequestId(id), 9, REPLICA, SimTime(0)).unwrap();
        }
        assert_eq!(delivered(&mut frontend, 50, &[(0, 1), (1, 1)]), [(0, 150), (1, 150)]);
        // Another replica's servers are its own.
        assert_eq!(frontend.accept(RequestId(2), 9, ReplicaId(1), SimTime(60)).unwrap(), SimTime(70));
    }
}

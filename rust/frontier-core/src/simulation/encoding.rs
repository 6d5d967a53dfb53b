//! What is encoded before a prompt, on a leg of its own: images of multimodal requests.
//!
//! As vLLM's encoder disaggregation (`vllm/distributed/ec_transfer`, 0.12): an encoder instance computes what a request
//! brings, whose embeddings are then fetched by the instance that computes the prompt. Embeddings are small beside KV, so
//! they pass a link of their own, wherever the request goes next.

use super::Simulation;
use super::journey::Encoding;
use crate::engine::KvNews;
use crate::error::SimError;
use crate::event::Event;
use crate::ids::{ReplicaId, RequestId};
use crate::metrics::{Activity, HostMeter};
use crate::time::{SimDuration, SimTime};
use crate::workload::{RequestSpec, Segment, UNIQUE_STREAM_BASE};

impl Simulation {
    /// Tells whether a request has something to encode that no engine has seen yet.
    pub(super) fn needs_encoding(&self, spec: &RequestSpec) -> bool {
        let encodes = |controller: &super::Controller| {
            controller.paths[usize::from(spec.model)].encodes.is_some()
                && !controller.encoding.contains_key(&spec.id)
        };
        spec.encoder_tokens > 0 && self.controller.as_ref().is_some_and(encodes)
    }

    /// Sends a request to an encoder, or lets it wait for one.
    pub(super) fn encode(&mut self, now: SimTime, spec: &RequestSpec) -> Result<(), SimError> {
        self.fill_encoder_segments(spec);
        let engine = self.choose_on(now, 0, spec);
        if let (Some(engine), Some(controller)) = (engine, &mut self.controller) {
            controller.encoding.insert(spec.id, Encoding::On(engine));
        }
        self.send_or_wait(now, spec, engine)
    }

    /// Puts what is to be encoded of a request in place of its prompt. Nothing of it is shared with others.
    pub(super) fn fill_encoder_segments(&mut self, spec: &RequestSpec) {
        self.segments.clear();
        let stream = UNIQUE_STREAM_BASE + u64::from(spec.id.0);
        self.segments.push(Segment { stream, start: 0, len: spec.encoder_tokens });
    }

    /// Sends the embeddings of a request on, and lets its encoder forget them.
    pub(super) fn send_embeddings(
        &mut self,
        now: SimTime,
        spec: &RequestSpec,
        engine: ReplicaId,
    ) -> Result<(), SimError> {
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let Some(link) = controller.path(spec).encodes else { return Ok(()) };
        controller.encoding.insert(spec.id, Encoding::Sent);
        let bytes = f64::from(spec.encoder_tokens) * link.bytes_per_token;
        let flight = SimDuration::from_seconds(bytes / link.bytes_per_s)?;
        let there = now.after(SimDuration(link.latency_ns))?.after(flight)?;
        self.around.recorder.enter(spec.id, Activity::Encode, now, HostMeter::default());
        self.tell(now, engine, KvNews::Sent(spec.id))?;
        self.around.push_for(there, spec.id, Event::HandOver)
    }

    /// Notes that the embeddings of a request are there, if it waited for any.
    pub(super) fn take_embeddings(&mut self, now: SimTime, id: RequestId) -> bool {
        let Some(controller) = &mut self.controller else { return false };
        if controller.encoding.get(&id) != Some(&Encoding::Sent) {
            return false;
        }
        controller.encoding.insert(id, Encoding::Done);
        self.around.recorder.enter(id, Activity::Queue, now, HostMeter::default());
        true
    }
}

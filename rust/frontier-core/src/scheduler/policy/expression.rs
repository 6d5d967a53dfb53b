//! A priority expression of the user's own, compiled once to a few instructions of a stack machine; the smaller
//! value is served first.
//!
//! Fields (times in seconds, lengths in tokens): see [`Field::ALL`]. Operators: `or`, `and`, `not`, comparisons,
//! `+ - * /`, unary minus; functions `min`, `max` (two or more arguments), `abs` and `if(condition, then, else)`.
//! Numbers and truth values do not mix. Arithmetic is IEEE; what comes out as no number ranks last.

mod parser;
mod run;

use std::collections::BTreeMap;
use std::fmt;

use super::deadline::deadline_ns;
use crate::plan::policy::ExpressionSpec;
use crate::scheduler::live::LiveRequest;
use crate::time::SimTime;

/// What is wrong with the text of an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpressionError {
    /// Where, in characters from 0.
    pub position: usize,
    /// What.
    pub message: String,
}

impl fmt::Display for ExpressionError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "at character {}: {}", self.position + 1, self.message)
    }
}

impl std::error::Error for ExpressionError {}

/// A fact about a request that an expression can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Arrival,
    Now,
    WaitingTime,
    PromptTokens,
    OutputTokens,
    PredictedOutputTokens,
    GeneratedTokens,
    ComputedTokens,
    AttainedTokens,
    SessionTokens,
    Priority,
    Deadline,
    Preemptions,
}

impl Field {
    /// All fields by name.
    pub(super) const ALL: [(&'static str, Self); 13] = [
        ("arrival", Self::Arrival),
        ("now", Self::Now),
        ("waiting_time", Self::WaitingTime),
        ("prompt_tokens", Self::PromptTokens),
        ("output_tokens", Self::OutputTokens),
        ("predicted_output_tokens", Self::PredictedOutputTokens),
        ("generated_tokens", Self::GeneratedTokens),
        ("computed_tokens", Self::ComputedTokens),
        ("attained_tokens", Self::AttainedTokens),
        ("session_tokens", Self::SessionTokens),
        ("priority", Self::Priority),
        ("deadline", Self::Deadline),
        ("preemptions", Self::Preemptions),
    ];

    /// Its value changes while the request waits.
    fn is_dynamic(self) -> bool {
        matches!(self, Self::Now | Self::WaitingTime | Self::SessionTokens)
    }
}

/// One instruction of the stack machine. Truth values are 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Op {
    Number(f64),
    Load(Field),
    Negate,
    Not,
    Abs,
    Add,
    Subtract,
    Multiply,
    Divide,
    Min,
    Max,
    Less,
    AtMost,
    More,
    AtLeast,
    Equal,
    And,
    Or,
    /// Condition, then, else: leaves one of the last two.
    Select,
}

/// A compiled expression and what its fields need.
#[derive(Clone, Debug)]
pub struct Expression {
    ops: Vec<Op>,
    objectives_ns: Vec<u64>,
    preemptive: bool,
    /// Tokens computed for each session; kept only where the expression asks.
    sessions: Option<BTreeMap<u32, u64>>,
}

impl Expression {
    /// Compiles an expression.
    ///
    /// # Errors
    /// Where the text is no expression with a number for its value, names a deadline without an objective, or is
    /// to be preemptive although its value changes while requests wait, so that they would displace each other
    /// for ever.
    pub fn new(spec: &ExpressionSpec) -> Result<Self, ExpressionError> {
        let compiled = parser::compile(&spec.text)?;
        let names = |field| compiled.iter().find(|(op, _)| *op == Op::Load(field)).map(|&(_, at)| at);
        if let Some(position) = names(Field::Deadline)
            && spec.objectives_ns.is_empty()
        {
            let message = "deadline needs an objective".to_owned();
            return Err(ExpressionError { position, message });
        }
        let dynamic = compiled.iter().find_map(|&(op, at)| match op {
            Op::Load(field) if field.is_dynamic() => Some(at),
            _ => None,
        });
        if let Some(position) = dynamic
            && spec.preemptive
        {
            let message = "this field changes while requests wait, which cannot be preemptive".to_owned();
            return Err(ExpressionError { position, message });
        }
        Ok(Self {
            sessions: names(Field::SessionTokens).map(|_| BTreeMap::new()),
            ops: compiled.into_iter().map(|(op, _)| op).collect(),
            objectives_ns: spec.objectives_ns.clone(),
            preemptive: spec.preemptive,
        })
    }

    /// Compiles an expression that the check of its plan has accepted.
    pub(super) fn of_checked_plan(spec: &ExpressionSpec) -> Self {
        Self::new(spec).expect("Invariant: a checked plan has expressions that compile")
    }

    pub(super) fn is_dynamic(&self) -> bool {
        self.ops.iter().any(|op| matches!(op, Op::Load(field) if field.is_dynamic()))
    }

    pub(super) fn is_preemptive(&self) -> bool {
        self.preemptive
    }

    pub(super) fn arrives(&mut self, request: &LiveRequest) {
        if let Some(sessions) = &mut self.sessions {
            sessions.entry(request.client).or_insert(0);
        }
    }

    pub(super) fn served(&mut self, request: &LiveRequest, num_tokens: u32) {
        if let Some(sessions) = &mut self.sessions {
            *sessions.entry(request.client).or_insert(0) += u64::from(num_tokens);
        }
    }

    pub(super) fn rank(&self, request: &LiveRequest, now: SimTime) -> f64 {
        run::value(&self.ops, |field| self.load(field, request, now))
    }

    fn load(&self, field: Field, request: &LiveRequest, now: SimTime) -> f64 {
        let seconds = |ns: u64| ns as f64 / 1e9;
        match field {
            Field::Arrival => seconds(request.arrival.0),
            Field::Now => seconds(now.0),
            Field::WaitingTime => seconds(now.since(request.arrival).0),
            Field::PromptTokens => f64::from(request.prompt_tokens),
            Field::OutputTokens => f64::from(request.max_tokens),
            Field::PredictedOutputTokens => super::predicted_output(request),
            Field::GeneratedTokens => f64::from(request.num_output_tokens()),
            Field::ComputedTokens => f64::from(request.num_computed),
            Field::AttainedTokens => request.service.attained_tokens as f64,
            Field::SessionTokens => {
                self.sessions.as_ref().and_then(|all| all.get(&request.client)).map_or(0.0, |&sum| sum as f64)
            }
            Field::Priority => f64::from(request.priority),
            Field::Deadline => deadline_ns(&self.objectives_ns, request) / 1e9,
            Field::Preemptions => f64::from(request.num_preemptions),
        }
    }
}

#[cfg(test)]
mod tests;

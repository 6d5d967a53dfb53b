//! What changes while a run goes on: faults, maintenance, replicas that change their role, autoscaling; and what
//! clients and the front door do about requests that are not served in time.

use serde::Deserialize;

use crate::error::SimError;

/// Changes of a run, and what becomes of requests that they hit.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamicsSpec {
    /// What becomes of requests whose KV is lost.
    pub lost_requests: LostPolicy,
    /// What happens when, in any order.
    pub events: Vec<ChangeSpec>,
    /// Clusters that grow and shrink by themselves.
    pub autoscale: Vec<AutoscaleSpec>,
}

/// What becomes of requests whose KV is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LostPolicy {
    /// They start over, from their prompt.
    Rerun,
    /// They fail.
    Fail,
}

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeSpec {
    /// When.
    pub at_ns: u64,
    /// The cluster, by number.
    pub cluster: u32,
    /// The replica in it.
    pub replica: u32,
    /// What.
    pub change: Change,
}

/// What happens to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// It is gone, with all KV; back, empty, after `down_ns` if that is given.
    Fail {
        /// Time to detect, replace, and load weights.
        down_ns: Option<u64>,
    },
    /// It takes no new requests, and restarts when the last one has left.
    Restart {
        /// Time that the restart takes.
        down_ns: u64,
    },
    /// Its steps take `factor` times as long, for `for_ns` or to the end.
    Slow {
        /// At least 1.
        factor: f64,
        /// How long.
        for_ns: Option<u64>,
    },
    /// Its links have `factor` of their bandwidth, for `for_ns` or to the end.
    DegradeLinks {
        /// In [0, 1]; at 0 transfers stall.
        factor: f64,
        /// How long.
        for_ns: Option<u64>,
    },
    /// It takes no new requests and, when the last one has left, becomes a replica of another cluster.
    SwitchRole {
        /// The cluster that it joins, which has a replica in reserve.
        to: u32,
        /// Time to load weights and start there.
        delay_ns: u64,
    },
}

/// A cluster that grows and shrinks with its load.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoscaleSpec {
    /// The cluster, by number.
    pub cluster: u32,
    /// Fewest replicas.
    pub min_replicas: u32,
    /// Most replicas; at most the cluster's own number.
    pub max_replicas: u32,
    /// How often the load is looked at.
    pub interval_ns: u64,
    /// What is looked at.
    pub metric: ScaleMetric,
    /// A replica is added above this.
    pub up_above: f64,
    /// A replica is taken out of service below this.
    pub down_below: f64,
    /// Time to get a GPU, load weights and start.
    pub provision_ns: u64,
    /// Time after a change in which nothing else is changed.
    pub cooldown_ns: u64,
}

/// What an autoscaler looks at, as a mean over the replicas in service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleMetric {
    /// Requests under way per replica.
    Outstanding,
    /// Waiting requests per replica.
    Waiting,
    /// Share of KV blocks in use.
    KvUse,
}

/// The front door: who is let in, and how long clients wait. One row per class of requests, told apart by priority.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdmissionSpec {
    /// Classes; a request belongs to the first whose `priority` is at least its own, else to the last.
    pub classes: Vec<AdmissionClass>,
}

/// How one class of requests is let in.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdmissionClass {
    /// Largest priority number of the class (small numbers are served first).
    pub priority: i32,
    /// Requests of the class under way, at most; others are turned away.
    pub max_outstanding: Option<u64>,
    /// A client that has not got its last token by then gives up.
    pub timeout_ns: Option<u64>,
    /// How often a client that was turned away or gave up tries again.
    pub max_retries: u16,
    /// Time before it does.
    pub retry_delay_ns: u64,
}

impl DynamicsSpec {
    /// Checks changes of clusters that have `replicas` replicas each, some of them in reserve or not.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming the first value that is not allowed.
    pub(super) fn check(
        &self,
        replicas: &[u32],
        reserves: &[bool],
        has_network: bool,
    ) -> Result<(), SimError> {
        let refuse = |path: String, message: String| Err(SimError::Plan { path, message });
        for (number, event) in self.events.iter().enumerate() {
            let at = |field: &str| format!("events[{number}].{field}");
            let Some(&count) = replicas.get(event.cluster as usize) else {
                return refuse(
                    at("cluster"),
                    format!("was {} of {} clusters", event.cluster, replicas.len()),
                );
            };
            if event.replica >= count {
                return refuse(at("replica"), format!("was {} of {count} replicas", event.replica));
            }
            match event.change {
                Change::Slow { factor, .. } if !(factor.is_finite() && factor >= 1.0) => {
                    return refuse(at("change.factor"), format!("was {factor}, must be at least 1"));
                }
                Change::DegradeLinks { factor, .. } if !(0.0..=1.0).contains(&factor) => {
                    return refuse(at("change.factor"), format!("was {factor}, must be in [0, 1]"));
                }
                Change::DegradeLinks { .. } if !has_network => {
                    return refuse(
                        at("change.kind"),
                        "was 'degrade_links', but the plan has no network".into(),
                    );
                }
                Change::SwitchRole { to, .. } if to == event.cluster || to as usize >= replicas.len() => {
                    return refuse(at("change.to"), format!("was {to}, must be another cluster"));
                }
                Change::SwitchRole { to, .. } if !reserves[to as usize] => {
                    return refuse(at("change.to"), format!("was {to}, whose replicas are all in service"));
                }
                _ => {}
            }
        }
        for (number, scaler) in self.autoscale.iter().enumerate() {
            let at = |field: &str| format!("autoscale[{number}].{field}");
            let Some(&count) = replicas.get(scaler.cluster as usize) else {
                return refuse(
                    at("cluster"),
                    format!("was {} of {} clusters", scaler.cluster, replicas.len()),
                );
            };
            if scaler.min_replicas == 0
                || scaler.min_replicas > scaler.max_replicas
                || scaler.max_replicas > count
            {
                let given = format!("{} to {}", scaler.min_replicas, scaler.max_replicas);
                return refuse(at("min_replicas"), format!("was {given}, must lie within 1 to {count}"));
            }
            if scaler.interval_ns == 0 {
                return refuse(at("interval_ns"), "was 0, must be at least 1".into());
            }
            if !(scaler.down_below.is_finite() && scaler.up_above > scaler.down_below) {
                return refuse(at("up_above"), "must be above down_below".into());
            }
        }
        Ok(())
    }
}

impl AdmissionSpec {
    /// Checks the classes.
    ///
    /// # Errors
    /// [`SimError::Plan`].
    pub(super) fn check(&self) -> Result<(), SimError> {
        let rising = self.classes.windows(2).all(|pair| pair[0].priority < pair[1].priority);
        if self.classes.is_empty() || !rising {
            return Err(SimError::Plan {
                path: "classes".into(),
                message: "must be at least one, of rising priority numbers".into(),
            });
        }
        Ok(())
    }

    /// Returns the number of the class that a request of `priority` belongs to.
    pub fn class_of(&self, priority: i32) -> usize {
        let found = self.classes.iter().position(|class| priority <= class.priority);
        found.unwrap_or(self.classes.len() - 1)
    }
}

//! The network between GPUs: nodes with their links, the switches above them, and how messages fill a link.

use serde::Deserialize;

use crate::error::SimError;

/// Most bandwidth that a link may have (562 TB/s): rates are kept in 2^-14 bytes per second in 63 bits.
pub const MAX_BYTES_PER_S: f64 = 562_949_953_421_312.0;

/// All GPUs, numbered through groups, nodes of a group and GPUs of a node, and the links between them.
///
/// Bandwidths are what a long transfer attains, per direction, in bytes per second; every link has two directions
/// that do not disturb each other.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Groups of equal nodes, at least one; all groups hang on one spine.
    pub groups: Vec<NodeGroupSpec>,
    /// Links that all traffic from one group to another crosses beside its NICs and leaves.
    pub trunks: Vec<TrunkSpec>,
    /// Latency of a transfer that stays inside an `NVLink` domain or a node.
    pub intra_latency_ns: u64,
    /// Latency of any other transfer between two GPUs.
    pub inter_latency_ns: u64,
    /// Share of its links' bandwidth that a message attains by its size.
    pub efficiency: EfficiencySpec,
}

/// Equal nodes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeGroupSpec {
    /// Nodes, at least 1.
    pub nodes: u32,
    /// GPUs of a node, at least 1.
    pub gpus_per_node: u32,
    /// `NVLink` (or Infinity Fabric, or `NVSwitch`) of every GPU; `None`: GPUs of a node reach each other over `PCIe`.
    pub nvlink: Option<NvlinkSpec>,
    /// PCI Express between GPUs and NICs; `None`: never a bottleneck, or not there (Grace).
    pub pcie: Option<PcieSpec>,
    /// NICs; `None`: nodes reach others over trunks alone.
    pub nic: Option<NicSpec>,
    /// Leaf switches with fewer uplinks than NICs; `None`: the fabric above the NICs never is a bottleneck.
    pub leaf: Option<LeafSpec>,
}

/// `NVLink` of a group.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NvlinkSpec {
    /// Per GPU and direction.
    pub bytes_per_s: f64,
    /// Consecutive nodes that one `NVLink` domain spans, at least 1 (18 nodes of 4 GPUs in a GB200 NVL72).
    pub nodes_per_domain: u32,
}

/// PCI Express of a group.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PcieSpec {
    /// Of one switch, per direction.
    pub bytes_per_s: f64,
    /// Consecutive GPUs that share a switch, at least 1; divides the GPUs of a node.
    pub gpus_per_switch: u32,
}

/// NICs of a group. GPU `i` of a node uses NIC `i * per_node / gpus_per_node`, the NIC's number is its rail.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// NICs of a node, 1 to its GPUs (where a GPU has several, they are one of their total bandwidth).
    pub per_node: u32,
    /// Of one NIC, per direction.
    pub bytes_per_s: f64,
}

/// Leaf switches of a group.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeafSpec {
    /// Consecutive nodes below the same leaves, at least 1.
    pub nodes_per_pod: u32,
    /// Every rail of a pod has a leaf of its own; otherwise one leaf has all NICs of the pod.
    pub rail_optimised: bool,
    /// Bandwidth of a leaf's NICs over that of its uplinks into the spine, at least 1.
    pub oversubscription: f64,
}

/// A link from one group to another, in one direction.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrunkSpec {
    /// Group that sends.
    pub from: u32,
    /// Group that receives, another one.
    pub to: u32,
    /// Shared by all that crosses it.
    pub bytes_per_s: f64,
    /// Added to `inter_latency_ns`.
    pub latency_ns: u64,
}

/// Share of the bandwidth that messages attain by their size.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum EfficiencySpec {
    /// `bytes / (bytes + half_bytes)`: as if every message waited for `half_bytes` more.
    Saturating {
        /// Size that attains a half; 0 attains everything.
        half_bytes: u64,
    },
    /// Measured points `(bytes, share)`, linear in between and constant beyond them.
    Table {
        /// Sizes strictly increasing, shares in (0, 1]; at least one point.
        points: Vec<(u64, f64)>,
    },
}

type Problem = (String, String);

impl NetworkSpec {
    /// Checks all groups, trunks and the efficiency.
    ///
    /// # Errors
    /// [`SimError::Plan`] with the first offending field, as a path below `network`.
    pub fn check(&self) -> Result<(), SimError> {
        self.problem().map_err(|(path, message)| SimError::Plan { path: format!("network.{path}"), message })
    }

    fn problem(&self) -> Result<(), Problem> {
        if self.groups.is_empty() {
            return Err(("groups".into(), "was empty, must have at least one group".into()));
        }
        for (at, group) in self.groups.iter().enumerate() {
            group.problem().map_err(|(field, message)| (format!("groups.{at}.{field}"), message))?;
        }
        let gpus = self.groups.iter().map(|group| u64::from(group.nodes) * u64::from(group.gpus_per_node));
        if gpus.sum::<u64>() > 1 << 24 {
            return Err(("groups".into(), "have more than 2^24 GPUs".into()));
        }
        for (at, trunk) in self.trunks.iter().enumerate() {
            let group = |field: &str, value: u32| {
                if (value as usize) < self.groups.len() {
                    return Ok(());
                }
                let message = format!("was {value}, must be below the {} groups", self.groups.len());
                Err((format!("trunks.{at}.{field}"), message))
            };
            group("from", trunk.from)?;
            group("to", trunk.to)?;
            if trunk.from == trunk.to {
                return Err((format!("trunks.{at}.to"), format!("was {}, as is from", trunk.to)));
            }
            if self.trunks[..at].iter().any(|other| (other.from, other.to) == (trunk.from, trunk.to)) {
                let message = format!("repeats the trunk from {} to {}", trunk.from, trunk.to);
                return Err((format!("trunks.{at}"), message));
            }
            rate(trunk.bytes_per_s).map_err(|message| (format!("trunks.{at}.bytes_per_s"), message))?;
        }
        self.efficiency.problem().map_err(|(field, message)| (format!("efficiency.{field}"), message))
    }
}

impl NodeGroupSpec {
    fn problem(&self) -> Result<(), Problem> {
        at_least_1("nodes", self.nodes)?;
        at_least_1("gpus_per_node", self.gpus_per_node)?;
        if let Some(nvlink) = &self.nvlink {
            rate(nvlink.bytes_per_s).map_err(|message| ("nvlink.bytes_per_s".into(), message))?;
            at_least_1("nvlink.nodes_per_domain", nvlink.nodes_per_domain)?;
        }
        if let Some(pcie) = &self.pcie {
            rate(pcie.bytes_per_s).map_err(|message| ("pcie.bytes_per_s".into(), message))?;
            at_least_1("pcie.gpus_per_switch", pcie.gpus_per_switch)?;
            if !self.gpus_per_node.is_multiple_of(pcie.gpus_per_switch) {
                let (found, gpus) = (pcie.gpus_per_switch, self.gpus_per_node);
                let message = format!("was {found}, must divide the {gpus} GPUs of a node");
                return Err(("pcie.gpus_per_switch".into(), message));
            }
        }
        if let Some(nic) = &self.nic {
            rate(nic.bytes_per_s).map_err(|message| ("nic.bytes_per_s".into(), message))?;
            if nic.per_node == 0 || nic.per_node > self.gpus_per_node {
                let message = format!("was {}, must be 1 to {}", nic.per_node, self.gpus_per_node);
                return Err(("nic.per_node".into(), message));
            }
        }
        if let Some(leaf) = &self.leaf {
            at_least_1("leaf.nodes_per_pod", leaf.nodes_per_pod)?;
            let Some(nic) = &self.nic else {
                return Err(("leaf".into(), "needs nic: a leaf joins NICs".into()));
            };
            if !(leaf.oversubscription >= 1.0 && leaf.oversubscription.is_finite()) {
                let message = format!("was {}, must be finite and at least 1", leaf.oversubscription);
                return Err(("leaf.oversubscription".into(), message));
            }
            let nics = f64::from(leaf.nodes_per_pod) * f64::from(nic.per_node);
            let uplinks = nics * nic.bytes_per_s / leaf.oversubscription;
            rate(uplinks)
                .map_err(|message| ("leaf".into(), format!("uplinks of a pod in bytes_per_s: {message}")))?;
        }
        Ok(())
    }
}

impl EfficiencySpec {
    /// Returns the share of the bandwidth that messages of `bytes` attain, in (0, 1].
    pub fn share(&self, bytes: u64) -> f64 {
        match self {
            Self::Saturating { half_bytes: 0 } => 1.0,
            // A message of one byte at least: an empty one takes no time at any rate.
            Self::Saturating { half_bytes } => {
                let bytes = bytes.max(1) as f64;
                bytes / (bytes + *half_bytes as f64)
            }
            Self::Table { points } => {
                let after = points.partition_point(|&(size, _)| size <= bytes);
                let (Some(&(from, low)), Some(&(to, high))) =
                    (points.get(after.wrapping_sub(1)), points.get(after))
                else {
                    return points[after.min(points.len() - 1)].1;
                };
                low + (high - low) * ((bytes - from) as f64 / (to - from) as f64)
            }
        }
    }

    fn problem(&self) -> Result<(), Problem> {
        let Self::Table { points } = self else { return Ok(()) };
        if points.is_empty() {
            return Err(("points".into(), "was empty, must have at least one".into()));
        }
        for (at, &(bytes, share)) in points.iter().enumerate() {
            if !(share > 0.0 && share <= 1.0) {
                return Err((format!("points.{at}"), format!("has share {share}, must be in (0, 1]")));
            }
            if at > 0 && points[at - 1].0 >= bytes {
                let message = format!("has {bytes} bytes, must be over the {} before", points[at - 1].0);
                return Err((format!("points.{at}"), message));
            }
        }
        Ok(())
    }
}

fn at_least_1(field: &str, value: u32) -> Result<(), Problem> {
    if value == 0 { Err((field.into(), "was 0, must be at least 1".into())) } else { Ok(()) }
}

fn rate(bytes_per_s: f64) -> Result<(), String> {
    if (1.0..=MAX_BYTES_PER_S).contains(&bytes_per_s) {
        return Ok(());
    }
    Err(format!("was {bytes_per_s}, must be between 1 and {MAX_BYTES_PER_S}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn document() -> Value {
        json!({
            "groups": [{
                "nodes": 4, "gpus_per_node": 8,
                "nvlink": {"bytes_per_s": 450e9, "nodes_per_domain": 1},
                "pcie": {"bytes_per_s": 64e9, "gpus_per_switch": 2},
                "nic": {"per_node": 8, "bytes_per_s": 50e9},
                "leaf": {"nodes_per_pod": 2, "rail_optimised": true, "oversubscription": 2.0}
            }, {"nodes": 1, "gpus_per_node": 4, "nvlink": null, "pcie": null, "nic": null, "leaf": null}],
            "trunks": [{"from": 0, "to": 1, "bytes_per_s": 12.5e9, "latency_ns": 0}],
            "intra_latency_ns": 2000, "inter_latency_ns": 5000,
            "efficiency": {"kind": "table", "points": [[1024, 0.1], [1_048_576, 0.9]]}
        })
    }

    fn outcome(path: &str, value: Value) -> String {
        let mut document = document();
        *document.pointer_mut(path).unwrap() = value;
        serde_json::from_value::<NetworkSpec>(document).unwrap().check().unwrap_err().to_string()
    }

    #[test]
    fn the_document_is_read_and_what_is_wrong_is_named() {
        serde_json::from_value::<NetworkSpec>(document()).unwrap().check().unwrap();
        for (path, value, expected) in [
            ("/groups", json!([]), "network.groups: was empty"),
            ("/groups/0/nodes", json!(0), "network.groups.0.nodes: was 0"),
            ("/groups/1/gpus_per_node", json!(0), "network.groups.1.gpus_per_node: was 0"),
            ("/groups/0/nvlink/bytes_per_s", json!(-1.0), "groups.0.nvlink.bytes_per_s: was -1"),
            ("/groups/0/nvlink/bytes_per_s", json!(1e300), "nvlink.bytes_per_s: was 1000"),
            ("/groups/0/nvlink/nodes_per_domain", json!(0), "nvlink.nodes_per_domain: was 0"),
            ("/groups/0/pcie/gpus_per_switch", json!(3), "pcie.gpus_per_switch: was 3, must divide the 8"),
            ("/groups/0/pcie/bytes_per_s", json!(0.0), "pcie.bytes_per_s: was 0"),
            ("/groups/0/nic/per_node", json!(9), "nic.per_node: was 9, must be 1 to 8"),
            ("/groups/0/nic", Value::Null, "groups.0.leaf: needs nic"),
            ("/groups/0/leaf/oversubscription", json!(0.5), "leaf.oversubscription: was 0.5"),
            ("/groups/0/leaf/nodes_per_pod", json!(0), "leaf.nodes_per_pod: was 0"),
            ("/trunks/0/to", json!(2), "trunks.0.to: was 2, must be below the 2 groups"),
            ("/trunks/0/to", json!(0), "trunks.0.to: was 0, as is from"),
            ("/trunks/0/bytes_per_s", json!(0.5), "trunks.0.bytes_per_s: was 0.5"),
            ("/efficiency/points", json!([]), "efficiency.points: was empty"),
            ("/efficiency/points/0/1", json!(1.5), "efficiency.points.0: has share 1.5"),
            ("/efficiency/points/1/0", json!(1024), "efficiency.points.1: has 1024 bytes"),
        ] {
            let found = outcome(path, value);
            assert!(found.contains(expected), "{path}: {found}");
        }
        let mut unknown = document();
        unknown["groups"][0]["colour"] = json!(1);
        assert!(serde_json::from_value::<NetworkSpec>(unknown).is_err());
    }

    #[test]
    fn small_messages_attain_less() {
        let half = EfficiencySpec::Saturating { half_bytes: 1_000 };
        let found = [0, 1_000, 3_000].map(|bytes| half.share(bytes).to_bits());
        assert_eq!(found, [1.0 / 1_001.0, 0.5, 0.75_f64].map(f64::to_bits));
        assert_eq!(EfficiencySpec::Saturating { half_bytes: 0 }.share(0).to_bits(), 1.0_f64.to_bits());
        let table = EfficiencySpec::Table { points: vec![(100, 0.25), (300, 0.75)] };
        let found = [1, 100, 200, 300, 900].map(|bytes| table.share(bytes).to_bits());
        assert_eq!(found, [0.25, 0.25, 0.5, 0.75, 0.75_f64].map(f64::to_bits));
    }
}

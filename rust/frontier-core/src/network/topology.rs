//! GPUs, the links between them, and the one route from each GPU to each other.
//!
//! Switches of `NVLink` domains are non-blocking, so only ports are links. In the network the capacity lies in NICs and
//! in the uplinks of leaves; the spine spreads traffic evenly over its switches, and a leaf's uplinks are one link.

use crate::error::SimError;
use crate::plan::network::{NetworkSpec, NodeGroupSpec};

/// A GPU, numbered through groups, nodes of a group and GPUs of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct GpuId(pub u32);

/// One direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct LinkId(pub u32);

impl LinkId {
    /// Returns the id as a vector index.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a link is, by which faults and results name it. Nodes, switches, NICs and pods are numbered inside their
/// group; `up` points away from the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkName {
    /// Port of a GPU into its `NVLink` domain.
    Nvlink {
        /// The GPU.
        gpu: GpuId,
        /// Direction.
        up: bool,
    },
    /// PCI Express of the GPUs below one switch.
    Pcie {
        /// Group of nodes.
        group: u32,
        /// Node of the group.
        node: u32,
        /// Switch of the node.
        switch: u32,
        /// Direction.
        up: bool,
    },
    /// A NIC.
    Nic {
        /// Group of nodes.
        group: u32,
        /// Node of the group.
        node: u32,
        /// NIC of the node, which is its rail.
        rail: u32,
        /// Direction.
        up: bool,
    },
    /// The uplinks of a leaf switch.
    Leaf {
        /// Group of nodes.
        group: u32,
        /// Pod of the group.
        pod: u32,
        /// The leaf's rail; 0 where a pod has one leaf.
        rail: u32,
        /// Direction.
        up: bool,
    },
    /// A trunk, in the order of the plan.
    Trunk {
        /// Its number.
        index: u32,
    },
}

/// All links and routes of a network.
#[derive(Clone, Debug)]
pub struct Topology {
    groups: Vec<Group>,
    /// Group that sends, group that receives, latency.
    trunks: Vec<(u32, u32, u64)>,
    first_trunk: u32,
    names: Vec<LinkName>,
    bytes_per_s: Vec<f64>,
    gpus: u32,
    intra_latency_ns: u64,
    inter_latency_ns: u64,
}

/// Where the links of a group begin; directions alternate: up, down, up, ...
#[derive(Clone, Debug)]
struct Group {
    first_gpu: u32,
    spec: NodeGroupSpec,
    nvlink: u32,
    pcie: u32,
    nic: u32,
    leaf: u32,
}

/// Where a GPU is.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    group: &'a Group,
    number: u32,
    /// GPU of the group.
    gpu: u32,
    node: u32,
}

impl Topology {
    /// Returns the network of `spec`.
    ///
    /// # Errors
    /// [`SimError::Plan`] if `spec` is not valid.
    pub fn new(spec: &NetworkSpec) -> Result<Self, SimError> {
        spec.check()?;
        let mut topology = Self {
            groups: Vec::new(),
            trunks: Vec::new(),
            first_trunk: 0,
            names: Vec::new(),
            bytes_per_s: Vec::new(),
            gpus: 0,
            intra_latency_ns: spec.intra_latency_ns,
            inter_latency_ns: spec.inter_latency_ns,
        };
        for (number, group) in (0..).zip(&spec.groups) {
            topology.add_group(number, group);
        }
        topology.first_trunk = topology.names.len() as u32;
        for (index, trunk) in (0..).zip(&spec.trunks) {
            topology.trunks.push((trunk.from, trunk.to, trunk.latency_ns));
            topology.add_link(LinkName::Trunk { index }, trunk.bytes_per_s);
        }
        Ok(topology)
    }

    /// Returns how many GPUs there are.
    pub fn num_gpus(&self) -> u32 {
        self.gpus
    }

    /// Returns how many links there are, each direction counted.
    pub fn num_links(&self) -> usize {
        self.names.len()
    }

    /// Returns the bandwidth of every link in bytes per second.
    pub fn bytes_per_s(&self) -> &[f64] {
        &self.bytes_per_s
    }

    /// Returns what `link` is.
    ///
    /// # Panics
    /// If `link` is of another network.
    pub fn name(&self, link: LinkId) -> LinkName {
        self.names[link.index()]
    }

    /// Returns the link called `name`, if there is one.
    pub fn find(&self, name: LinkName) -> Option<LinkId> {
        self.names.iter().position(|&found| found == name).map(|at| LinkId(at as u32))
    }

    /// Appends the links from `from` to `to` to `links` and returns the latency; both are empty between a GPU and
    /// itself.
    ///
    /// Inside an `NVLink` domain: ports. Else inside a node with PCI Express: its switches. Else: PCI Express, NIC,
    /// uplinks of the leaf unless both NICs hang on it, the trunk between the groups if there is one, and down again.
    ///
    /// # Errors
    /// [`SimError::Input`] if there is no such GPU, or no NIC and no trunk on the way.
    pub fn route(&self, from: GpuId, to: GpuId, links: &mut Vec<LinkId>) -> Result<u64, SimError> {
        let (source, target) = (self.place(from)?, self.place(to)?);
        if from == to {
            return Ok(0);
        }
        let same_node = source.number == target.number && source.node == target.node;
        if source.number == target.number
            && source.nvlink_domain().is_some_and(|domain| target.nvlink_domain() == Some(domain))
        {
            links.extend([source.nvlink(true), target.nvlink(false)].into_iter().flatten());
            return Ok(self.intra_latency_ns);
        }
        if let (true, Some(up), Some(down)) = (same_node, source.pcie(true), target.pcie(false)) {
            links.extend([up, down]);
            return Ok(self.intra_latency_ns);
        }
        let trunk = self
            .trunks
            .iter()
            .position(|&(sender, receiver, _)| (sender, receiver) == (source.number, target.number));
        let nics = (source.nic(true), target.nic(false));
        if trunk.is_none() && (nics.0.is_none() || nics.1.is_none()) {
            return Err(SimError::Input {
                what: "network".into(),
                message: format!(
                    "there is no way from GPU {} to GPU {}: it needs NICs on both nodes, or a trunk from group {} \
                     to group {}",
                    from.0, to.0, source.number, target.number
                ),
            });
        }
        links.extend([source.pcie(true), nics.0].into_iter().flatten());
        let same_leaf = source.number == target.number && source.leaf_number() == target.leaf_number();
        if !same_leaf {
            links.extend(source.leaf(true));
        }
        links.extend(trunk.map(|at| LinkId(self.first_trunk + at as u32)));
        if !same_leaf {
            links.extend(target.leaf(false));
        }
        links.extend([nics.1, target.pcie(false)].into_iter().flatten());
        Ok(self.inter_latency_ns.saturating_add(trunk.map_or(0, |at| self.trunks[at].2)))
    }

    /// Returns the links that end at `gpu` alone or at GPUs that share them: ports, PCI Express and NIC, both
    /// directions. What fails or slows down with it.
    ///
    /// # Errors
    /// [`SimError::Input`] if there is no such GPU.
    pub fn links_of(&self, gpu: GpuId) -> Result<Vec<LinkId>, SimError> {
        let place = self.place(gpu)?;
        let both = |direction| [place.nvlink(direction), place.pcie(direction), place.nic(direction)];
        Ok(both(true).into_iter().chain(both(false)).flatten().collect())
    }

    fn place(&self, gpu: GpuId) -> Result<Place<'_>, SimError> {
        if gpu.0 >= self.gpus {
            return Err(SimError::Input {
                what: "network".into(),
                message: format!("there is no GPU {}, the last one is {}", gpu.0, self.gpus - 1),
            });
        }
        let number = self.groups.partition_point(|group| group.first_gpu <= gpu.0) - 1;
        let group = &self.groups[number];
        let in_group = gpu.0 - group.first_gpu;
        Ok(Place { group, number: number as u32, gpu: in_group, node: in_group / group.spec.gpus_per_node })
    }

    fn add_link(&mut self, name: LinkName, bytes_per_s: f64) {
        self.names.push(name);
        self.bytes_per_s.push(bytes_per_s);
    }

    fn add_group(&mut self, number: u32, spec: &NodeGroupSpec) {
        let first_gpu = self.gpus;
        let gpus = spec.nodes * spec.gpus_per_node;
        self.gpus += gpus;
        let directions = [true, false];
        let nvlink = self.names.len() as u32;
        if let Some(port) = &spec.nvlink {
            for gpu in 0..gpus {
                for up in directions {
                    self.add_link(LinkName::Nvlink { gpu: GpuId(first_gpu + gpu), up }, port.bytes_per_s);
                }
            }
        }
        let pcie = self.names.len() as u32;
        if let Some(bus) = &spec.pcie {
            let switches = spec.gpus_per_node / bus.gpus_per_switch;
            for at in 0..spec.nodes * switches {
                for up in directions {
                    let (node, switch) = (at / switches, at % switches);
                    self.add_link(LinkName::Pcie { group: number, node, switch, up }, bus.bytes_per_s);
                }
            }
        }
        let nic = self.names.len() as u32;
        if let Some(nics) = &spec.nic {
            for at in 0..spec.nodes * nics.per_node {
                for up in directions {
                    let (node, rail) = (at / nics.per_node, at % nics.per_node);
                    self.add_link(LinkName::Nic { group: number, node, rail, up }, nics.bytes_per_s);
                }
            }
        }
        let leaf = self.names.len() as u32;
        if let (Some(switch), Some(nics)) = (&spec.leaf, &spec.nic) {
            let rails = if switch.rail_optimised { nics.per_node } else { 1 };
            for at in 0..spec.nodes.div_ceil(switch.nodes_per_pod) * rails {
                let (pod, rail) = (at / rails, at % rails);
                // The last pod may have fewer nodes.
                let nodes = switch.nodes_per_pod.min(spec.nodes - pod * switch.nodes_per_pod);
                let below = f64::from(nodes * (nics.per_node / rails)) * nics.bytes_per_s;
                for up in directions {
                    let name = LinkName::Leaf { group: number, pod, rail, up };
                    self.add_link(name, below / switch.oversubscription);
                }
            }
        }
        self.groups.push(Group { first_gpu, spec: spec.clone(), nvlink, pcie, nic, leaf });
    }
}

impl Place<'_> {
    fn of_node(&self) -> u32 {
        self.gpu % self.group.spec.gpus_per_node
    }

    fn nvlink_domain(&self) -> Option<u32> {
        self.group.spec.nvlink.as_ref().map(|nvlink| self.node / nvlink.nodes_per_domain)
    }

    fn nvlink(&self, up: bool) -> Option<LinkId> {
        self.group.spec.nvlink.as_ref().map(|_| direction(self.group.nvlink, self.gpu, up))
    }

    fn pcie(&self, up: bool) -> Option<LinkId> {
        let pcie = self.group.spec.pcie.as_ref()?;
        // Switches divide a node, so those of the group are numbered through.
        Some(direction(self.group.pcie, self.gpu / pcie.gpus_per_switch, up))
    }

    fn rail(&self) -> Option<u32> {
        let nic = self.group.spec.nic.as_ref()?;
        let rail = u64::from(self.of_node()) * u64::from(nic.per_node);
        Some((rail / u64::from(self.group.spec.gpus_per_node)) as u32)
    }

    fn nic(&self, up: bool) -> Option<LinkId> {
        let nic = self.group.spec.nic.as_ref()?;
        Some(direction(self.group.nic, self.node * nic.per_node + self.rail()?, up))
    }

    fn leaf_number(&self) -> Option<u32> {
        let (leaf, nic) = (self.group.spec.leaf.as_ref()?, self.group.spec.nic.as_ref()?);
        let pod = self.node / leaf.nodes_per_pod;
        Some(if leaf.rail_optimised { pod * nic.per_node + self.rail()? } else { pod })
    }

    fn leaf(&self, up: bool) -> Option<LinkId> {
        Some(direction(self.group.leaf, self.leaf_number()?, up))
    }
}

fn direction(first: u32, number: u32, up: bool) -> LinkId {
    LinkId(first + 2 * number + u32::from(!up))
}

#[cfg(test)]
mod tests;

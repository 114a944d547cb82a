//! A model of the control plane: one configuration, changed one at a time, each change a new epoch.

use std::collections::{BTreeMap, BTreeSet};

use quarry_clustermap::{DeviceId, Epoch, PartitionConfig};

use super::random::Random;

pub(super) struct Control {
    pub(super) config: PartitionConfig,
    pub(super) activated: BTreeMap<Epoch, DeviceId>,
    copies: usize,
    pub(super) handed_over: u64,
}

impl Control {
    pub(super) fn new(copies: usize) -> Self {
        let replicas: Vec<DeviceId> = (0..copies as u64).map(DeviceId).collect();
        let config = PartitionConfig {
            epoch: Epoch(1),
            primary: replicas[0],
            replicas,
            joining: Vec::new(),
            lost: BTreeSet::new(),
            away: BTreeMap::new(),
        };
        Self { config, activated: BTreeMap::new(), copies, handed_over: 0 }
    }

    /// Compare-and-swap: only the newest epoch is activated, once.
    pub(super) fn activate(&mut self, device: DeviceId, epoch: Epoch) -> bool {
        let current = self.config.epoch == epoch && self.config.primary == device;
        if current {
            self.activated.insert(epoch, device);
        }
        current
    }

    pub(super) fn is_member(&self, device: DeviceId) -> bool {
        self.config.members().any(|member| member == device)
    }

    fn bump(&mut self) {
        self.config.epoch = self.config.epoch.next();
    }

    /// Removes a member, if an in-sync one that is up stays.
    pub(super) fn evict(
        &mut self,
        device: DeviceId,
        up: impl Fn(DeviceId) -> bool,
        random: &mut Random,
    ) -> bool {
        if self.config.joining.contains(&device) {
            self.config.joining.retain(|joiner| *joiner != device);
            self.bump();
            return true;
        }
        let left: Vec<DeviceId> =
            self.config.replicas.iter().copied().filter(|replica| *replica != device).collect();
        let electable: Vec<DeviceId> = left.iter().copied().filter(|replica| up(*replica)).collect();
        if left.len() == self.config.replicas.len() || electable.is_empty() {
            return false;
        }
        self.config.replicas = left;
        if self.config.primary == device {
            self.config.primary = *random.pick(&electable);
        }
        self.bump();
        true
    }

    /// A new epoch for the same members, perhaps with another primary.
    pub(super) fn renew(&mut self, up: impl Fn(DeviceId) -> bool, random: &mut Random) {
        let electable: Vec<DeviceId> =
            self.config.replicas.iter().copied().filter(|device| up(*device)).collect();
        if !electable.is_empty() && (random.chance(50) || !up(self.config.primary)) {
            self.config.primary = *random.pick(&electable);
        }
        self.bump();
    }

    /// The primary has stopped: another in-sync member takes its place.
    pub(super) fn hand_over(&mut self, epoch: Epoch, up: impl Fn(DeviceId) -> bool) -> bool {
        let primary = self.config.primary;
        let next = self.config.replicas.iter().copied().find(|device| *device != primary && up(*device));
        match next {
            Some(next) if self.config.epoch == epoch => {
                self.config.primary = next;
                self.handed_over += 1;
                self.bump();
                true
            }
            _ => false,
        }
    }

    pub(super) fn join(&mut self, device: DeviceId) -> bool {
        let wanted = self.config.members().count() < self.copies && !self.is_member(device);
        if wanted {
            self.config.joining.push(device);
            self.bump();
        }
        wanted
    }

    pub(super) fn joined(&mut self, device: DeviceId, epoch: Epoch) -> bool {
        let whole = self.config.epoch == epoch && self.config.joining.contains(&device);
        if whole {
            self.config.joining.retain(|joiner| *joiner != device);
            self.config.replicas.push(device);
            self.bump();
        }
        whole
    }
}

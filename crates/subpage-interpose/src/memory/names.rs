//! Guest-physical addresses as names of memory: what slots show.

/// What a slot shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name {
    /// The VMM's number: the address space in bits 16 to 31, the slot in 0 to 15.
    pub(crate) slot: u32,
    /// First guest-physical byte.
    pub(crate) gpa: u64,
    /// How many bytes.
    pub(crate) bytes: u64,
    /// Where the VMM has them.
    pub(crate) host: u64,
    /// KVM tells of writes as of those to a device.
    pub(crate) read_only: bool,
    /// KVM keeps a log of written pages.
    pub(crate) logs: bool,
}

/// What all slots show.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// The address space of the processor that is looked at: 1 in system-management mode, else 0.
    pub(crate) space: u32,
    /// Ascending by slot, so that what processors see outside of system-management mode comes first.
    names: Vec<Name>,
}

impl Names {
    /// A slot is made or changed.
    pub(crate) fn set(&mut self, name: Name) {
        self.remove(name.slot);
        self.names.push(name);
        self.names.sort_unstable_by_key(|name| name.slot);
    }

    /// A slot is removed.
    pub(crate) fn remove(&mut self, slot: u32) {
        self.names.retain(|name| name.slot != slot);
    }

    /// A slot.
    pub(crate) fn get(&self, slot: u32) -> Option<&Name> {
        self.names.iter().find(|name| name.slot == slot)
    }

    /// All slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Name> {
        self.names.iter()
    }

    /// The slot that has a guest-physical byte.
    pub(crate) fn at(&self, gpa: u64) -> Option<&Name> {
        let mut seen = self.names.iter().filter(|name| name.slot >> 16 == self.space);
        seen.find(|name| gpa >= name.gpa && gpa - name.gpa < name.bytes)
    }

    /// Where the VMM has a guest-physical byte, and how many of the slot come from it on.
    pub(crate) fn host(&self, gpa: u64) -> Option<(u64, u64)> {
        let name = self.at(gpa)?;
        let skip = gpa - name.gpa;
        Some((name.host + skip, name.bytes - skip))
    }

    /// A guest-physical address of a byte of the VMM.
    pub(crate) fn gpa(&self, host: u64) -> Option<u64> {
        self.all_gpas(host).next()
    }

    /// All of them.
    pub(crate) fn all_gpas(&self, host: u64) -> impl Iterator<Item = u64> {
        self.names
            .iter()
            .filter(move |name| host >= name.host && host - name.host < name.bytes)
            .map(move |name| name.gpa + (host - name.host))
    }
}

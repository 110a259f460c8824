//! What is known of one program of a process.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::SystemTime;

use crate::address_space::{AddressSpace, Extents};
use crate::build_id::BuildId;
use crate::elf::{ElfError, MappedCode};
use crate::names::Names;

/// A program of a process: from its start, its exec or its fork on.
pub(super) struct Image {
    pub(super) pid: u32,
    pub(super) parent: Option<u16>,
    pub(super) command: String,
    /// When its program began, as far as it is known: at the start of the recording, at its first line,
    /// or with the image that it is a copy of.
    pub(super) began: SystemTime,
    pub(super) space: AddressSpace,
    pub(super) extents: Extents,
    /// Shared with its copies.
    pub(super) names: Result<Rc<Names>, ElfError>,
    /// Shared with its copies; none if it is not known.
    pub(super) code: Option<Rc<MappedCode>>,
    /// Which build it is of.
    pub(super) build: Option<BuildId>,
    /// Addresses of its storing instructions, and the last of them.
    pub(super) stores: HashSet<u64>,
    pub(super) last_store: u64,
    pub(super) looks: u32,
    /// Stores that our own tool has sent.
    pub(super) received: u64,
    /// Stores that it told of, and that did not come.
    pub(super) missing: u64,
    /// It has told of the end, after as many stores as came.
    pub(super) is_whole: bool,
}

impl Image {
    /// Takes in how many stores there were up to here, as our own tool tells; `false` if they were more.
    pub(super) fn told(&mut self, total: u64) -> bool {
        let missing = total.checked_sub(self.received);
        self.missing = missing.unwrap_or(self.missing);
        missing.is_some()
    }

    /// Remembers a storing instruction, if it is one of the program's own.
    pub(super) fn note_store(&mut self, address: u64, room: &mut usize) {
        if address == self.last_store || *room == 0 {
            return;
        }
        self.last_store = address;
        let is_own = self.code.as_ref().is_none_or(|code| {
            let in_file = address.wrapping_sub(code.bias);
            code.names.is_code(in_file)
        });
        *room -= usize::from(is_own && self.stores.insert(address));
    }
}

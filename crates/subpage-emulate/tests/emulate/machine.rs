//! A guest to emulate for: memory, page tables, registers, a trampoline.

use std::num::NonZeroUsize;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use subpage::address::PhysicalWidth;
use subpage_emulate::guest::{Segment, State};
use subpage_emulate::{CODE_BYTES, PagingFeatures, SystemTables, TableRegister, Trampoline};

pub(crate) const PAGING: PagingFeatures = PagingFeatures {
    physical_width: match PhysicalWidth::try_new(40) {
        Ok(width) => width,
        Err(_) => panic!("40 bits are a width"),
    },
    gigabyte_pages: true,
};

pub(crate) const TABLES: SystemTables = SystemTables {
    gdtr: TableRegister { base: 0x1122_3344_5566, limit: 0x77 },
    idtr: TableRegister { base: 0x0111_2222_3333, limit: 0xfff },
    ldtr: Segment { selector: 0x48, base: 0, limit: 0, access: 0x1_0000 },
    tr: Segment { selector: 0x40, base: 0, limit: 0x67, access: 0x8b },
};

/// Pages of this process, below 2 GiB, so that an absolute address reaches them.
pub(crate) struct Pages {
    pub(crate) first: *mut u8,
    pub(crate) bytes: usize,
}

impl Pages {
    pub(crate) fn new(bytes: usize, protection: ProtFlags) -> Self {
        let length = NonZeroUsize::new(bytes).unwrap();
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_32BIT;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let first = unsafe { mmap_anonymous(None, length, protection, flags) }.unwrap();
        Self { first: first.as_ptr().cast(), bytes }
    }

    pub(crate) fn writable(bytes: usize) -> Self {
        Self::new(bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    pub(crate) fn executable(bytes: usize) -> Self {
        let all = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE | ProtFlags::PROT_EXEC;
        Self::new(bytes, all)
    }

    pub(crate) fn address(&self) -> u64 {
        self.first.expose_provenance() as u64
    }

    /// All the bytes, as they are now.
    pub(crate) fn copy(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes];
        // SAFETY: readable, and nobody writes meanwhile.
        unsafe { self.first.copy_to_nonoverlapping(bytes.as_mut_ptr(), self.bytes) };
        bytes
    }

    pub(crate) fn put(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.bytes);
        let to = self.first.wrapping_add(offset);
        // SAFETY: within the mapping, which is writable.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let first = std::ptr::NonNull::new(self.first.cast()).unwrap();
        // SAFETY: the mapping is this value's, and nothing points into it any more.
        unsafe { munmap(first, self.bytes) }.unwrap();
    }
}

/// A trampoline with its memory.
pub(crate) struct OwnTrampoline {
    pub(crate) trampoline: Trampoline,
    _code: Pages,
}

impl OwnTrampoline {
    pub(crate) fn new() -> Self {
        let pages = Pages::executable(4096);
        let code: *mut [u8; CODE_BYTES] = pages.first.cast();
        // SAFETY: the memory is writable and executable, and lives as long. Where a test has the
        // instruction fault, its signal handler continues at the recovery address.
        let trampoline = unsafe { Trampoline::new(code) };
        Self { trampoline, _code: pages }
    }
}

/// A state in 64-bit mode with paging, at CPL 3.
pub(crate) fn state_64() -> State {
    let mut state = State {
        rflags: 0x202,
        cr0: 0x8005_0033,
        cr3: 0x1000,
        cr4: 0x4_06a0,
        efer: 0xd01,
        cpl: 3,
        ..State::default()
    };
    let data = Segment { selector: 0x2b, base: 0, limit: !0, access: 0xc0f3 };
    state.segments.ds = data;
    state.segments.es = data;
    state.segments.ss = data;
    state.segments.fs = data;
    state.segments.gs = data;
    state.segments.cs = Segment { selector: 0x33, base: 0, limit: !0, access: 0xa0fb };
    state
}

/// A state in protected mode with flat segments of 32 bits and no paging, at CPL 0.
pub(crate) fn state_32() -> State {
    let mut state = state_64();
    state.cr0 = 0x11;
    state.cr4 = 0x600;
    state.efer = 0;
    state.cpl = 0;
    state.segments.cs.access = 0xc09b;
    for segment in [
        &mut state.segments.ds,
        &mut state.segments.es,
        &mut state.segments.ss,
        &mut state.segments.fs,
        &mut state.segments.gs,
    ] {
        segment.access = 0xc093;
    }
    state
}

/// A state in real mode.
pub(crate) fn state_16() -> State {
    let mut state = state_32();
    state.cr0 = 0x10;
    let segments = &mut state.segments;
    for segment in [
        &mut segments.cs,
        &mut segments.ds,
        &mut segments.es,
        &mut segments.ss,
        &mut segments.fs,
        &mut segments.gs,
    ] {
        *segment = Segment { selector: 0, base: 0, limit: 0xffff, access: 0x93 };
    }
    segments.cs.access = 0x9b;
    state
}

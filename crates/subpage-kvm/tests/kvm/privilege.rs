//! Guests at either privilege level: page tables of their own that CPL 3 may use, and a window of
//! linear addresses whose pages lie anywhere.

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs, kvm_xcrs,
};
use subpage_kvm::vcpu::Processor;

use crate::guest::{CODE, Guest};

/// Where linear addresses are not the guest-physical ones. 4 KiB pages.
pub(crate) const WINDOW: u64 = 0x4000_0000;

/// The guest's page tables.
pub(crate) const TABLES: u64 = 0x50_0000;

/// The table of the window's pages.
pub(crate) const WINDOW_TABLE: u64 = TABLES + 0x4000;

/// Top of a stack.
pub(crate) const STACK: u64 = 0x61_8000;

/// Present, writable, for CPL 3, accessed, dirty.
pub(crate) const ENTRY: u64 = 0x67;
const LARGE: u64 = 0x80;

/// Task state with a map of ports: CPL 3 may use all of those below 0x100. A KVM that runs CPL 3
/// without the processor's help does not keep IOPL, and QEMU's emulation of AMD-V refuses a port of
/// a busy task whatever its map says; so a program has both.
pub(crate) const TASK_STATE: u64 = 0x60_4000;
const TASK_STATE_BYTES: u64 = 0x68;
const PORT_MAP_BYTES: u64 = 0x20;

/// The bit that is always set, and IOPL 3.
pub(crate) const FLAGS: u64 = 0x3002;

/// A privilege level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Supervisor,
    User,
}

/// Both.
pub(crate) const LEVELS: [Level; 2] = [Level::Supervisor, Level::User];

impl Level {
    pub(crate) const fn cpl(self) -> u8 {
        match self {
            Self::Supervisor => 0,
            Self::User => 3,
        }
    }
}

/// Writes page tables: linear = physical for 1 GiB, and the window's pages in order; none is a hole.
pub(crate) fn write_tables(guest: &Guest, window: &[Option<u64>]) {
    let put = |at: u64, entry: u64| guest.write(at, &entry.to_le_bytes());
    let [pointers, identity, directory] = [1, 2, 3].map(|table| TABLES + table * 0x1000);
    put(TABLES, pointers | ENTRY);
    put(pointers, identity | ENTRY);
    put(pointers + 8, directory | ENTRY);
    for page in 0..512 {
        put(identity + page * 8, page << 21 | ENTRY | LARGE);
    }
    put(directory, WINDOW_TABLE | ENTRY);
    let port_map = u16::try_from(TASK_STATE_BYTES).expect("an offset");
    guest.write(TASK_STATE + TASK_STATE_BYTES - 2, &port_map.to_le_bytes());
    guest.write(TASK_STATE + TASK_STATE_BYTES + PORT_MAP_BYTES, &[0xff]);
    for (number, gpa) in (0..).zip(window) {
        put(WINDOW_TABLE + number * 8, gpa.map_or(0, |gpa| gpa | ENTRY));
    }
}

/// Puts processors at `rip`, each at its level, with the tables of [`write_tables`], ready to run.
pub(crate) fn place(processors: &[&mut Processor], rip: u64, levels: &[Level]) {
    // The others are in the state after a reset.
    let first = processors[0].fd.get_sregs().unwrap();
    for (processor, level) in processors.iter().zip(levels) {
        let fd = &processor.fd;
        let apic_base = fd.get_sregs().unwrap().apic_base;
        let special = kvm_sregs { apic_base, ..special_registers(&first, *level) };
        fd.set_sregs(&special).unwrap();
        let rsp = STACK - u64::from(processor.number) * 0x1000;
        fd.set_regs(&kvm_regs { rip, rsp, rflags: FLAGS, ..kvm_regs::default() }).unwrap();
        fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).unwrap();
    }
}

/// Puts the processors of a guest at its code.
pub(crate) fn place_all(guest: &Guest, levels: &[Level]) {
    write_tables(guest, &[]);
    guest.vm.with_processors(|processors| place(processors, CODE, levels));
}

/// Puts the first processor of a guest at its code, at a level.
pub(crate) fn place_first(guest: &Guest, level: Level) {
    place_all(guest, &[level]);
}

pub(crate) fn special_registers(from: &kvm_sregs, level: Level) -> kvm_sregs {
    const OSXSAVE: u64 = 1 << 18;
    let dpl = level.cpl();
    let selector = |selector: u16| selector | u16::from(dpl);
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, dpl, ..Default::default() };
    let code = kvm_segment { selector: selector(0x10), type_: 11, l: 1, ..flat };
    let data = kvm_segment { selector: selector(0x18), type_: 3, db: 1, ..flat };
    // The same selector at both levels, for stores of selectors.
    let other = kvm_segment { selector: 0x1b, dpl: 3, ..data };
    let limit = u32::try_from(TASK_STATE_BYTES + PORT_MAP_BYTES).expect("a small segment");
    kvm_sregs {
        tr: kvm_segment { base: TASK_STATE, limit, ..from.tr },
        cs: code,
        ss: data,
        ds: other,
        es: other,
        fs: other,
        gs: other,
        cr3: TABLES,
        cr4: from.cr4 | OSXSAVE,
        ..*from
    }
}

/// Lets a processor use AVX, if this KVM has it.
pub(crate) fn enable_avx(processor: &Processor) {
    const X87_SSE_AVX: u64 = 7;
    let mut registers = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
    registers.xcrs[0].value = X87_SSE_AVX;
    let _ = processor.fd.set_xcrs(&registers);
}

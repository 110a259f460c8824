//! The state of the first processor: 64-bit mode, or for Multiboot 32-bit protected mode; flat segments,
//! interrupts off.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use super::part::{DESCRIPTORS, PAGE_TABLES, TASK_STATE, TASK_STATE_BYTES, write};
use super::{Boot, Format, Part, Placed, multiboot};
use crate::memory::Ram;

/// Selectors as the boot protocol wants them.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// Limit of the task-state segment.
const TASK_LIMIT: u16 = TASK_STATE_BYTES - 1;
/// Offset, in it, of the I/O permission map's offset.
const IO_MAP_AT: usize = 102;

/// By selector; all accessed, the task busy, as if it had loaded them.
const GDT: [u64; 6] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x0000_8b00_0000_0000 | TASK_STATE << 16 | TASK_LIMIT as u64,
    0,
];

/// Limit of the GDT.
const GDT_LIMIT: u16 = 47;
const _: () = assert!(GDT_LIMIT as usize + 1 == size_of_val(&GDT));

/// Protected mode, x87 present and its errors as exceptions, paging.
const CR0: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 31;
/// Physical address extension, and SSE with its exceptions: compilers use it unasked.
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10;
/// Long mode enabled and active.
const EFER: u64 = 1 << 8 | 1 << 10;
/// Protected mode without paging, x87 present.
const CR0_MULTIBOOT: u64 = 1 | 1 << 4;
/// The bit that is always set; interrupts off.
const RFLAGS: u64 = 1 << 1;

pub(super) fn descriptors() -> Placed {
    let bytes = TASK_STATE + u64::from(TASK_STATE_BYTES) - DESCRIPTORS;
    Placed::fixed(Part::Descriptors, DESCRIPTORS, bytes)
}

/// Puts the GDT and the TSS into memory.
pub(super) fn write_descriptors(ram: &Ram) {
    let gdt: Vec<u8> = GDT.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    write(ram, DESCRIPTORS, &gdt);
    let mut task = vec![0; TASK_STATE_BYTES.into()];
    // Behind the limit: there is no map, so no port is open to CPL 3.
    task[IO_MAP_AT..].copy_from_slice(&(TASK_LIMIT + 1).to_le_bytes());
    write(ram, TASK_STATE, &task);
}

impl Boot {
    /// General registers of the first processor.
    pub fn registers(&self) -> kvm_regs {
        if self.image.format == Format::Multiboot {
            return kvm_regs {
                rip: self.entry,
                rax: multiboot::LOADER_MAGIC.into(),
                rbx: self.boot_parameters,
                rflags: RFLAGS,
                ..kvm_regs::default()
            };
        }
        kvm_regs {
            rip: self.entry,
            rsi: self.boot_parameters,
            rsp: self.stack,
            rflags: RFLAGS,
            ..kvm_regs::default()
        }
    }

    /// Special registers of the first processor: all but the APIC's address, which stays as KVM
    /// gave it.
    pub fn special_registers(&self, from: kvm_sregs) -> kvm_sregs {
        let code = kvm_segment { selector: CODE, type_: 11, l: 1, ..flat() };
        let data = kvm_segment { selector: DATA, type_: 3, db: 1, ..flat() };
        if self.image.format == Format::Multiboot {
            return Self::protected_mode(kvm_segment { l: 0, db: 1, ..code }, data, &from);
        }
        kvm_sregs {
            tr: kvm_segment {
                base: TASK_STATE,
                limit: TASK_LIMIT.into(),
                selector: TASK,
                type_: 11,
                present: 1,
                ..kvm_segment::default()
            },
            gdt: kvm_dtable { base: DESCRIPTORS, limit: GDT_LIMIT, ..kvm_dtable::default() },
            cr0: CR0,
            cr3: PAGE_TABLES,
            cr4: CR4,
            efer: EFER,
            ..Self::protected_mode(code, data, &from)
        }
    }

    /// Protected mode without paging and tables. A task register has to be busy; nothing lies behind it.
    fn protected_mode(code: kvm_segment, data: kvm_segment, from: &kvm_sregs) -> kvm_sregs {
        kvm_sregs {
            cs: code,
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: kvm_segment { type_: 11, present: 1, ..kvm_segment::default() },
            ldt: kvm_segment { type_: 2, unusable: 1, ..kvm_segment::default() },
            cr0: CR0_MULTIBOOT,
            apic_base: from.apic_base,
            ..kvm_sregs::default()
        }
    }
}

/// A code or data segment of all addresses.
fn flat() -> kvm_segment {
    kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..kvm_segment::default() }
}

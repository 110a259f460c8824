//! A virtual processor's registers between KVM's form and that of the emulation.

use std::sync::OnceLock;

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use subpage_emulate::bits::{EFER_LMA, SEGMENT_LONG};
use subpage_emulate::guest::{GeneralRegisters, Segment, Segments, State, Vendor};
use subpage_emulate::{SystemTables, TableRegister};

/// The state that decoding and completing a store need.
pub fn state(registers: &kvm_regs, special: &kvm_sregs) -> State {
    State {
        registers: general_registers(registers),
        rip: registers.rip,
        rflags: registers.rflags,
        cr0: special.cr0,
        cr3: special.cr3,
        cr4: special.cr4,
        efer: special.efer,
        cpl: special.ss.dpl & 3,
        vendor: vendor(),
        segments: Segments {
            es: segment(&special.es),
            cs: segment(&special.cs),
            ss: segment(&special.ss),
            ds: segment(&special.ds),
            fs: segment(&special.fs),
            gs: segment(&special.gs),
        },
    }
}

/// Takes over the part of a state that [plain](subpage_emulate::Decoded::is_plain) stores of 64-bit code
/// go by: of segments, that it is such code and the bases of FS and GS. False if it is other code.
///
/// Most stores that trap are such, and to take over what else there is takes longer than to decide.
pub fn plain_state(registers: &kvm_regs, special: &kvm_sregs, into: &mut State) -> bool {
    if special.efer & EFER_LMA == 0 || special.cs.l == 0 {
        return false;
    }
    into.registers = general_registers(registers);
    into.rip = registers.rip;
    into.rflags = registers.rflags;
    into.cr0 = special.cr0;
    into.cr3 = special.cr3;
    into.cr4 = special.cr4;
    into.efer = special.efer;
    into.cpl = special.ss.dpl & 3;
    into.vendor = vendor();
    into.segments.cs.access = SEGMENT_LONG;
    into.segments.fs.base = special.fs.base;
    into.segments.gs.base = special.gs.base;
    true
}

fn general_registers(r: &kvm_regs) -> GeneralRegisters {
    GeneralRegisters([
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ])
}

/// Whose processor the host has, which is the guest's, too.
fn vendor() -> Vendor {
    static VENDOR: OnceLock<Vendor> = OnceLock::new();
    *VENDOR.get_or_init(|| {
        let leaf = core::arch::x86_64::__cpuid(0);
        let mut name = [0; 12];
        for (to, from) in name.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        Vendor::from_cpuid(&name)
    })
}

/// The general registers of a state, in KVM's form.
pub const fn general(state: &State) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] =
        state.registers.0;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: state.rip,
        rflags: state.rflags,
    }
}

/// The system registers that only some instructions and events need.
pub fn system_tables(special: &kvm_sregs) -> SystemTables {
    SystemTables {
        gdtr: table(&special.gdt),
        idtr: table(&special.idt),
        ldtr: segment(&special.ldt),
        tr: segment(&special.tr),
    }
}

const fn table(table: &kvm_dtable) -> TableRegister {
    TableRegister { base: table.base, limit: table.limit }
}

/// A segment register with its access rights as the VMCS has them.
fn segment(from: &kvm_segment) -> Segment {
    let access = u32::from(from.type_ & 15)
        | u32::from(from.s & 1) << 4
        | u32::from(from.dpl & 3) << 5
        | u32::from(from.present & 1) << 7
        | u32::from(from.avl & 1) << 12
        | u32::from(from.l & 1) << 13
        | u32::from(from.db & 1) << 14
        | u32::from(from.g & 1) << 15
        | u32::from(from.unusable & 1) << 16;
    Segment { selector: from.selector, base: from.base, limit: from.limit, access }
}

/// The same back.
#[allow(clippy::cast_possible_truncation)] // Each field is masked to its bits.
pub fn kvm_segment_of(from: &Segment) -> kvm_segment {
    let bit = |at: u32| (from.access >> at & 1) as u8;
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: (from.access & 15) as u8,
        present: bit(7),
        dpl: (from.access >> 5 & 3) as u8,
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: bit(16),
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn general_registers_go_there_and_back() {
        let mut given = State::default();
        for (number, register) in given.registers.0.iter_mut().enumerate() {
            *register = 0x1000 + number as u64;
        }
        given.rip = 0x77;
        given.rflags = 0x246;
        let back = state(&general(&given), &kvm_sregs::default());
        assert_eq!((back.registers, back.rip, back.rflags), (given.registers, 0x77, 0x246));
        assert_eq!(general(&given).rsi, 0x1006, "RSI is number 6");
    }

    /// What it leaves out, no plain store asks for.
    #[test]
    fn a_plain_state_is_part_of_the_whole() {
        let segment = |at: u64| kvm_segment {
            base: 0x1000 * at,
            limit: 0xffff_ffff,
            selector: 8,
            type_: 11,
            present: 1,
            dpl: 3,
            s: 1,
            l: 1,
            g: 1,
            ..kvm_segment::default()
        };
        let special = kvm_sregs {
            cs: segment(1),
            ds: segment(2),
            fs: segment(3),
            gs: segment(4),
            ss: segment(5),
            cr3: 0x7000,
            efer: 0xd00,
            ..kvm_sregs::default()
        };
        let registers = kvm_regs { rip: 0x77, rbx: 5, ..kvm_regs::default() };
        let whole = state(&registers, &special);
        let mut plain = State::default();
        assert!(plain_state(&registers, &special, &mut plain), "64-bit code");
        assert!(plain.is_64_bit() && whole.is_64_bit());
        assert_eq!(plain.segments.fs.base, whole.segments.fs.base);
        assert_eq!(plain.segments.gs.base, whole.segments.gs.base);
        let (cpl, segments) = (whole.cpl, whole.segments);
        assert_eq!((State { segments, ..plain }, cpl), (whole, 3));
        let compatibility = kvm_sregs { cs: kvm_segment { l: 0, ..special.cs }, ..special };
        assert!(!plain_state(&registers, &compatibility, &mut plain));
        assert!(!plain_state(&registers, &kvm_sregs { efer: 0x800, ..special }, &mut plain));
    }

    #[test]
    fn segments_go_there_and_back() {
        for access in [0xa09b, 0xc093, 0x8b, 0x1_0000, 0xa0fb, 0xf0f3] {
            let given = Segment { selector: 0x33, base: 0x1234, limit: 0xfff, access };
            assert_eq!(segment(&kvm_segment_of(&given)), given, "{access:#x}");
        }
    }
}

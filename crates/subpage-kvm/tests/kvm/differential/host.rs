//! What this machine's KVM, and the processor below it, do in their own way: found out without a guard.

use kvm_bindings::kvm_regs;
use subpage_emulate::XsaveArea;

use super::generate::Choice;
use super::machine::{CODE, FIRST, Subject};
use super::{TF, start};
use crate::guest::small;
use crate::privilege::Level;
use crate::random::Random;
use crate::stepper::Registers;

/// What can be compared on this KVM.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // Each is a question of its own.
pub(super) struct Host {
    /// Its processor says that it is AMD's, or one that follows AMD.
    pub(super) amd: bool,
    /// It emulates code at CPL 0, some of which it cannot, and at CPL 3 it hides what is the system's.
    pub(super) emulates: bool,
    /// Its processor has other flags in the frame of a fault of SETcc than before it, without a guard.
    pub(super) loses_flags: bool,
    /// REX.R makes another segment register of the operand of MOV, which it does for no processor.
    pub(super) selects_oddly: bool,
    /// An operand-size prefix before a near call has not the meaning that it has for the vendor.
    pub(super) calls_oddly: bool,
    /// RF in the frame of a single step in a repeated instruction is not as the vendor's processors have it.
    pub(super) steps_oddly: bool,
}

impl Host {
    pub(super) fn find() -> Self {
        let leaf = core::arch::x86_64::__cpuid(0);
        let amd = matches!(&leaf.ecx.to_le_bytes(), b"cAMD" | b"uine");
        // VMOVDQU [RBX], YMM1, which KVM's emulator does not know, without a guard.
        let machine = Subject::new(&small(), Level::Supervisor);
        let mut start = start(&mut Random(0));
        start.registers.general.rbx = FIRST;
        let emulates = machine.run(&[0xc5, 0xfe, 0x7f, 0x0b], &start.registers).is_err();
        Self {
            amd,
            emulates,
            loses_flags: loses_flags(),
            selects_oddly: selects_oddly(),
            calls_oddly: !calls_as(amd),
            steps_oddly: resumes() == amd,
        }
    }

    pub(super) fn choice(&self, several: bool) -> Choice {
        let conditions = !self.loses_flags;
        let extended = !self.selects_oddly;
        Choice { amd: self.amd, hidden: !self.emulates, several, conditions, extended }
    }
}

/// Registers for what is tried out.
fn registers(rbx: u64, rflags: u64) -> Registers {
    let general = kvm_regs {
        rax: 0x80,
        rcx: 2,
        rdx: 1,
        rbx,
        rsp: FIRST + 0x100,
        rsi: FIRST,
        rdi: FIRST + 0x200,
        rip: CODE,
        rflags: 2 | rflags,
        ..kvm_regs::default()
    };
    Registers { general, extended: Box::new(XsaveArea::INITIAL) }
}

/// Whether an operand-size prefix before a near call has the vendor's meaning: for AMD operand and return
/// address are 16 bits wide, for Intel it has none. QEMU's return address is 16 bits wide, its operand 32.
fn calls_as(amd: bool) -> bool {
    // CALL, and half of its operand is ADD [RBX], AL if the prefix counts. No page is at either end.
    const CALL: [u8; 6] = [0x66, 0xe8, 0, 0, 0, 0x03];
    let machine = Subject::new(&small(), Level::User);
    let (_, after) = machine.run(&CALL, &registers(FIRST - 8, 0)).expect("a call");
    let (_, general) = after.ended().expect("a page fault");
    let pushed = FIRST + 0x100 - general.rsp;
    (general.rip, pushed) == if amd { (CODE + 4, 2) } else { (CODE + 6 + 0x300_0000, 8) }
}

/// Whether a single step in a repeated instruction saves RFLAGS.RF as 1.
fn resumes() -> bool {
    let machine = Subject::new(&small(), Level::User);
    let (_, after) = machine.run(&[0xf3, 0xa4], &registers(0, TF)).expect("a step");
    after.ended_with_flags().expect("a debug exception") & 1 << 16 != 0
}

/// Whether REX.R before a MOV of a segment register chooses another one.
fn selects_oddly() -> bool {
    // MOV AX, SS without it and with it.
    let machine = Subject::new(&small(), Level::User);
    let [plain, extended] = [&[0x48, 0x8c, 0xd0], &[0x4c, 0x8c, 0xd0]].map(|code| {
        let (after, _) = machine.run(code, &registers(FIRST, 0)).expect("a move");
        after.general.rax
    });
    plain != extended
}

/// Whether a SETcc that faults changes flags: QEMU evaluates them for it, and then takes the result for
/// what they are to be computed from.
fn loses_flags() -> bool {
    const ARITHMETIC: u64 = 0x8d5;
    // CMP AL, DL; SETO [RBX], where no page is.
    const COMPARE: [u8; 5] = [0x38, 0xd0, 0x0f, 0x90, 0x03];
    let machine = Subject::new(&small(), Level::User);
    let (after, _) = machine.run(&COMPARE[..2], &registers(0, 0)).expect("a comparison");
    let (_, faulted) = machine.run(&COMPARE, &registers(FIRST - 8, 0)).expect("a page fault");
    let flags = faulted.ended_with_flags().expect("a page fault");
    (after.general.rflags ^ flags) & ARITHMETIC != 0
}

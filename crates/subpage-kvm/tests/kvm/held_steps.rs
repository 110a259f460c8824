//! What a guest sees of being stepped, and of a debugger's breakpoints: nothing.

use std::time::Duration;

use iced_x86::code_asm::{
    CodeAssembler, dword_ptr, eax, ecx, edx, qword_ptr, r8, r9, r10, r11, rax, rbx, rcx, rdx, rsp,
    xmm3, xmmword_ptr,
};
use subpage_kvm::probe::is_native;
use subpage_kvm::vm::{Configuration, Ending, Vm, nowhere};

use crate::guest::{CODE, Guest, PAGE, PLAIN, assemble, both_ways, exit, kvm, request};
use crate::privilege::{Level, place_first};
use crate::remote::{Remote, listen};

const HANDLERS: u64 = 0x23_0000;
const IDT: u64 = 0x62_0000;
const TRAP_FLAG: i32 = 1 << 8;

/// A guest at CPL 0 with handlers that add what their frames have for RFLAGS to R9, count in R8, and go on
/// behind the instruction; that of #DB takes TF out of its frame, too.
fn handling(configuration: &Configuration, code: impl FnOnce(&mut CodeAssembler)) -> Guest {
    let guest = Guest::new(configuration, |assembler| {
        code(assembler);
        assembler.mov(rbx, PAGE).unwrap();
        for (at, register) in [(0, r8), (8, r9), (16, r10), (24, rsp)] {
            assembler.mov(qword_ptr(rbx + at), register).unwrap();
        }
        exit(assembler, 0);
    });
    place_first(&guest, Level::Supervisor);
    // Vector, whether the frame has an error code, and how much longer the instruction is.
    for (number, (vector, error_code, skip)) in
        (0..).zip([(1_u64, false, 0), (6, false, 2), (14, true, 3), (0x20, false, 0)])
    {
        let at = HANDLERS + number * 0x100;
        let handler = assemble(at, |code| {
            if error_code {
                code.add(rsp, 8).unwrap();
            }
            code.add(qword_ptr(rsp), skip).unwrap();
            code.inc(r8).unwrap();
            code.mov(rdx, qword_ptr(rsp + 16)).unwrap();
            // RF of a frame depends on the processor.
            code.btr(rdx, 16).unwrap();
            code.add(r9, rdx).unwrap();
            if vector == 1 {
                code.btr(qword_ptr(rsp + 16), 8).unwrap();
            }
            code.iretq().unwrap();
        });
        guest.write(at, &handler);
        let low = at & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48;
        guest.write(IDT + vector * 16, &low.to_le_bytes());
        guest.write(IDT + vector * 16 + 8, &(at >> 32).to_le_bytes());
    }
    guest.vm.with_processors(|processors| {
        let mut special = processors[0].fd.get_sregs().unwrap();
        (special.idt.base, special.idt.limit) = (IDT, 0x20f);
        processors[0].fd.set_sregs(&special).unwrap();
    });
    guest
}

fn seen(guest: &Guest) -> [u64; 4] {
    [0, 8, 16, 24].map(|at| guest.word(PAGE + at))
}

/// Whatever leads RFLAGS to where the guest sees it.
fn flags_everywhere(code: &mut CodeAssembler) {
    // SYSCALL, which leaves RFLAGS in R11.
    let (mut target, mut behind) = (code.create_label(), code.create_label());
    code.mov(ecx, 0xc000_0080_u32).unwrap();
    code.rdmsr().unwrap();
    code.or(eax, 1).unwrap();
    code.wrmsr().unwrap();
    code.mov(ecx, 0xc000_0081_u32).unwrap();
    code.xor(eax, eax).unwrap();
    code.mov(edx, 0x10).unwrap();
    code.wrmsr().unwrap();
    code.mov(ecx, 0xc000_0082_u32).unwrap();
    code.lea(rax, qword_ptr(target)).unwrap();
    code.xor(edx, edx).unwrap();
    code.wrmsr().unwrap();
    code.syscall().unwrap();
    code.jmp(behind).unwrap();
    code.set_label(&mut target).unwrap();
    code.mov(r10, r11).unwrap();
    code.jmp(rcx).unwrap();
    code.set_label(&mut behind).unwrap();
    for _ in 0..2 {
        code.ud2().unwrap();
        // Nothing is mapped there.
        code.mov(rcx, 0x7f00_0000_0000_u64).unwrap();
        code.mov(rax, qword_ptr(rcx)).unwrap();
        // Where KVM emulates a guest's kernel, it does not know it.
        if is_native() {
            code.int(0x20).unwrap();
        }
        code.pushfq().unwrap();
        code.pop(rdx).unwrap();
        code.add(r9, rdx).unwrap();
        // The guest's own TF: #DB behind the next instruction.
        code.pushfq().unwrap();
        code.or(dword_ptr(rsp), TRAP_FLAG).unwrap();
        code.popfq().unwrap();
        code.nop().unwrap();
        code.nop().unwrap();
    }
}

#[test]
fn a_guest_that_is_stepped_sees_no_trap_flag_but_its_own() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut plain = handling(&configuration, flags_everywhere);
        plain.run_well();
        assert!(seen(&plain)[0] >= 4, "two of each exception");
        let mut guest = handling(&configuration, flags_everywhere);
        guest.vm.hold();
        guest.vm.start().unwrap();
        for _ in 0..200 {
            if guest.vm.step(0).is_err() {
                break;
            }
        }
        assert_eq!(guest.end(), Ending::Exited { code: 0 });
        assert_eq!(seen(&guest), seen(&plain), "{:?}", configuration.trap);
    }
}

/// A breakpoint in a debug register, which nobody comes to, has every #DB leave the guest.
#[test]
fn a_guest_gets_its_own_debug_exceptions_under_a_debugger() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut plain = handling(&configuration, flags_everywhere);
        plain.run_well();
        let mut guest = handling(&configuration, flags_everywhere);
        guest.vm.hold();
        let address = listen(&guest);
        guest.vm.start().unwrap();
        let mut debugger = Remote::connect(&address);
        assert_eq!(debugger.ask(&format!("Z1,{:x},1", CODE + 0x1000)), "OK");
        assert_eq!(debugger.ask("vCont;c"), "W00", "{:?}", configuration.trap);
        assert_eq!(seen(&guest), seen(&plain), "{:?}", configuration.trap);
    }
}

/// All floating-point state that gdb shows is the processor's, and what gdb sets becomes it.
#[test]
fn floating_point_state_is_read_and_written() {
    const MXCSR: usize = 0x214;
    const XMM3: usize = 0x114 + 3 * 16;
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| {
            code.mov(rbx, PAGE).unwrap();
            code.ldmxcsr(dword_ptr(rbx)).unwrap();
            code.fld1().unwrap();
            code.pcmpeqd(xmm3, xmm3).unwrap();
            code.mov(qword_ptr(rbx + 0x40), rbx).unwrap();
            code.stmxcsr(dword_ptr(rbx + 4)).unwrap();
            code.fnstcw(iced_x86::code_asm::word_ptr(rbx + 8)).unwrap();
            code.movdqu(xmmword_ptr(rbx + 16), xmm3).unwrap();
            code.fstp(qword_ptr(rbx + 32)).unwrap();
            exit(code, 0);
        });
        place_first(&guest, Level::User);
        guest.write(PAGE, &0x1fa0_u32.to_le_bytes());
        guest.vm.hold();
        let address = listen(&guest);
        guest.vm.start().unwrap();
        let mut debugger = Remote::connect(&address);
        assert_eq!(debugger.ask(&format!("Z2,{:x},8", PAGE + 0x40)), "OK");
        let stop = debugger.ask("vCont;c");
        assert!(stop.contains("watch:400040;"), "{stop}: {:?}", guest.vm.wait(Duration::ZERO));
        let mut registers = debugger.ask("g");
        let part = |registers: &str, at: usize, bytes: usize| {
            registers[2 * at..2 * (at + bytes)].to_owned()
        };
        assert_eq!(part(&registers, MXCSR, 4), "a01f0000");
        assert_eq!(part(&registers, XMM3, 16), "f".repeat(32));
        assert_eq!(part(&registers, 0xa4, 10), "0000000000000080ff3f", "1.0");
        for (at, digits) in [
            (MXCSR, "c01f0000"),
            (XMM3, "000102030405060708090a0b0c0d0e0f"),
            // 2.0, and a control word of less precision.
            (0xa4, "00000000000000800040"),
            (0xf4, "7f020000"),
        ] {
            registers.replace_range(2 * at..2 * at + digits.len(), digits);
        }
        assert_eq!(debugger.ask(&format!("G{registers}")), "OK");
        assert_eq!(debugger.ask("g"), registers);
        assert_eq!(debugger.ask(&format!("z2,{:x},8", PAGE + 0x40)), "OK");
        assert_eq!(debugger.ask("vCont;c"), "W00");
        assert_eq!(guest.read(PAGE + 4), 0x1fc0_u32.to_le_bytes());
        assert_eq!(guest.read(PAGE + 8), 0x27f_u16.to_le_bytes());
        assert_eq!(
            guest.read(PAGE + 16),
            0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100_u128.to_le_bytes()
        );
        assert_eq!(guest.read(PAGE + 32), 2.0_f64.to_le_bytes());
    }
}

/// A guest that starts again comes to a breakpoint again, and its image is its own.
#[test]
fn breakpoints_outlast_a_reset() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let configuration = Configuration { reboots: true, ..configuration };
        let image = assemble(CODE, |code| {
            let mut end = code.create_label();
            code.nop().unwrap();
            code.mov(rbx, PLAIN).unwrap();
            code.inc(qword_ptr(rbx)).unwrap();
            code.cmp(qword_ptr(rbx), 2).unwrap();
            code.je(end).unwrap();
            code.mov(edx, 0xcf9).unwrap();
            code.mov(eax, 6).unwrap();
            code.out(iced_x86::code_asm::dx, iced_x86::code_asm::al).unwrap();
            code.set_label(&mut end).unwrap();
            exit(code, 0);
        });
        // The image has to be there for the next start.
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), image).unwrap();
        let mut vm = Vm::new(&configuration, nowhere()).unwrap();
        vm.load(&request(file.path(), 1)).unwrap();
        let mut guest = Guest::of(vm);
        guest.vm.hold();
        let address = listen(&guest);
        guest.vm.start().unwrap();
        let mut debugger = Remote::connect(&address);
        // One instruction before it, gone from after the first stop.
        let at = CODE + 1;
        for round in 1..=2 {
            assert_eq!(debugger.ask(&format!("Z0,{at:x},1")), "OK");
            let stop = debugger.ask("vCont;c");
            assert!(stop.starts_with("T05"), "{stop} in round {round}");
            assert_eq!(debugger.ask(&format!("m{CODE:x},2")), "9048", "its own bytes");
            assert_eq!(debugger.ask(&format!("z0,{at:x},1")), "OK");
            assert!(debugger.ask("vCont;s:1").starts_with("T05"));
        }
        assert_eq!(debugger.ask("vCont;c"), "W00");
    }
}

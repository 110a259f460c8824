//! A code page that another processor takes away and gives back while its code traps.

use iced_x86::code_asm::{byte_ptr, eax, ecx, qword_ptr, rax, rbx, rdi, rsp};
use kvm_bindings::kvm_dtable;
use subpage::rules::Action;
use subpage_kvm::probe::is_native;
use subpage_kvm::vm::{Configuration, TrapChoice};

use crate::guest::{CODE, Guest, PAGE, assemble, exit, kvm, small};
use crate::privilege::{Level, STACK, WINDOW, WINDOW_TABLE, place, write_tables};

/// Where the code of the window lies.
const MOVED_CODE: u64 = 0x42_0000;
const HANDLER: u64 = 0x43_0000;
const INTERRUPTS: u64 = 0x44_0000;
const FAULTS: u64 = 0x45_0000;

const PAGE_FAULT: u64 = 14;
const ROUNDS: u32 = 3000;

/// The instruction that trapped cannot be fetched any more: the guest gets the page fault of the fetch,
/// as from a processor, and continues.
#[test]
fn a_code_page_may_go_while_its_store_traps() {
    if !kvm() {
        return;
    }
    let configuration = Configuration { cpus: 2, trap: TrapChoice::Mprotect, ..small() };
    let mut guest = Guest::new(&configuration, |code| {
        let mut toggle = code.create_label();
        let mut again = code.create_label();
        code.mov(rax, STACK).unwrap();
        code.cmp(rsp, rax).unwrap();
        code.jne(toggle).unwrap();
        code.mov(rbx, PAGE).unwrap();
        code.mov(ecx, ROUNDS).unwrap();
        code.mov(rax, WINDOW).unwrap();
        code.jmp(rax).unwrap();
        code.set_label(&mut toggle).unwrap();
        code.mov(rdi, WINDOW_TABLE).unwrap();
        code.set_label(&mut again).unwrap();
        code.xor(byte_ptr(rdi), 1).unwrap();
        code.pause().unwrap();
        code.jmp(again).unwrap();
    });
    guest.write(
        MOVED_CODE,
        &assemble(WINDOW, |code| {
            let mut again = code.create_label();
            code.set_label(&mut again).unwrap();
            code.inc(qword_ptr(rbx)).unwrap();
            code.dec(ecx).unwrap();
            code.jnz(again).unwrap();
            exit(code, 0);
        }),
    );
    guest.write(
        HANDLER,
        &assemble(HANDLER, |code| {
            code.push(rax).unwrap();
            code.mov(eax, u32::try_from(FAULTS).unwrap()).unwrap();
            code.inc(qword_ptr(rax)).unwrap();
            code.pop(rax).unwrap();
            code.add(rsp, 8).unwrap();
            code.iretq().unwrap();
        }),
    );
    // A present interrupt gate in the code segment 10H.
    let gate = HANDLER & 0xffff | 0x10 << 16 | 0x8e00 << 32 | HANDLER >> 16 << 48;
    guest.write(INTERRUPTS + PAGE_FAULT * 16, &gate.to_le_bytes());
    write_tables(&guest, &[Some(MOVED_CODE)]);
    guest.vm.with_processors(|processors| {
        place(processors, CODE, &[Level::Supervisor; 2]);
        for processor in processors {
            let mut special = processor.fd.get_sregs().unwrap();
            special.idt = kvm_dtable { base: INTERRUPTS, limit: 0xfff, ..special.idt };
            processor.fd.set_sregs(&special).unwrap();
        }
    });
    guest.guard(PAGE + 0x80, 8, Action::Deny);
    guest.run_well();
    assert_eq!(guest.word(PAGE), u64::from(ROUNDS), "each round exactly once");
    // A processor that fetches itself may keep the translation all the time.
    assert!(is_native() || guest.word(FAULTS) != 0, "the page was missing at times");
}

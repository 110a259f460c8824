//! Guests of a few instructions.

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, al, byte_ptr, dword_ptr, eax, qword_ptr, r8, rax, rcx, rdi, rsi, xmm0,
    xmmword_ptr,
};

/// Where the code of processor 0 begins; processor 1's is a page behind.
pub(crate) const CODE: u64 = 0x10000;
/// Where data lies: two pages.
pub(crate) const DATA: u64 = 0x20000;
/// Where a slot shows the data once more.
pub(crate) const ALIAS: u64 = 0x4000_0000;
/// Port to which a guest writes when it is done.
pub(crate) const DONE: u16 = 0xf4;
/// How often each processor counts.
pub(crate) const COUNTS: u64 = 50_000;

/// The code of a guest, at `CODE`.
pub(crate) fn code(kind: &str) -> Vec<u8> {
    assemble(kind).expect("instructions that exist")
}

fn assemble(kind: &str) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.mov(r8, DATA)?;
    match kind {
        "stores" => {
            a.mov(byte_ptr(r8 + 0xff), 0x11)?;
            a.mov(byte_ptr(r8 + 0x100), 0x11)?;
            a.mov(byte_ptr(r8 + 0x11f), 0x11)?;
            a.mov(byte_ptr(r8 + 0x120), 0x22)?;
            // One byte too far.
            a.mov(rax, 0x1212_1212_1212_1212u64)?;
            a.mov(qword_ptr(r8 + 0xf9), rax)?;
            a.mov(rax, 0x3333_3333_3333_3333u64)?;
            a.mov(qword_ptr(r8 + 0xffc), rax)?;
            a.lea(rdi, qword_ptr(r8 + 0x140))?;
            a.mov(rcx, 32u64)?;
            a.mov(eax, 0x44)?;
            a.rep().stosb()?;
            a.mov(rax, 0x5555_5555_5555_5555u64)?;
            // KVM's emulator knows no other way into a vector register.
            a.mov(qword_ptr(r8 + 0x1800), rax)?;
            a.mov(qword_ptr(r8 + 0x1808), rax)?;
            a.movdqu(xmm0, xmmword_ptr(r8 + 0x1800))?;
            a.movups(xmmword_ptr(r8 + 0x180), xmm0)?;
            // Vectors over guarded bytes.
            a.movups(xmmword_ptr(r8 + 0x110), xmm0)?;
        }
        "count" => {
            let mut again = a.create_label();
            a.mov(rcx, COUNTS)?;
            a.set_label(&mut again)?;
            a.lock().inc(qword_ptr(r8))?;
            a.dec(rcx)?;
            a.jnz(again)?;
        }
        "log" => a.mov(byte_ptr(r8 + 0x120), 0x22)?,
        "cloned" => {
            a.mov(byte_ptr(r8 + 0x100), 0x11)?;
            a.mov(byte_ptr(r8 + 0x120), 0x22)?;
        }
        "alias" => {
            a.mov(rsi, ALIAS)?;
            a.mov(dword_ptr(rsi + 0x100), 0x11)?;
            a.mov(byte_ptr(rsi + 0x120), 0x22)?;
        }
        // The VMM writes.
        "device" | "page" | "late" | "unknown" => {}
        "stop" => {
            a.out(0xf4, al)?;
            a.mov(byte_ptr(r8 + 0x1000), 0x22)?;
        }
        other => panic!("no guest {other}"),
    }
    a.out(0xf4, al)?;
    let mut end = a.create_label();
    a.set_label(&mut end)?;
    a.jmp(end)?;
    a.assemble(CODE)
}

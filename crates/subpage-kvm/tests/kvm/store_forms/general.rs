//! Stores of general registers and immediates.

use iced_x86::code_asm::*;

use super::form::Place::{Absolute, Bits, ByDx, Operand, R10};
use super::form::Quirk::{Equal, Lost, Native};
use super::form::{Form, by_dx, form, m};

#[rustfmt::skip] // a table
pub(super) const MOVES: &[Form] = &[
    form("mov r8", 1, Operand, |a, _| a.mov(byte_ptr(m()), dl)),
    form("mov high r8", 1, Operand, |a, _| a.mov(byte_ptr(m()), ah)),
    form("mov spl", 1, Operand, |a, _| a.mov(byte_ptr(m()), spl)),
    form("mov r16", 2, Operand, |a, _| a.mov(word_ptr(m()), r11w)),
    form("mov r32", 4, Operand, |a, _| a.mov(dword_ptr(m()), esi)),
    form("mov r64", 8, Operand, |a, _| a.mov(qword_ptr(m()), rdi)),
    form("mov rsp", 8, Operand, |a, _| a.mov(qword_ptr(m()), rsp)),
    form("mov esp", 4, Operand, |a, _| a.mov(dword_ptr(m()), esp)),
    form("mov base", 8, Operand, |a, _| a.mov(qword_ptr(m()), rbx)),
    form("mov 32-bit address", 4, Operand, |a, _| a.mov(dword_ptr(ebx + ecx * 2 + 0x15), eax)),
    form("mov imm8", 1, Operand, |a, _| a.mov(byte_ptr(m()), 0x5a)),
    form("mov imm16", 2, Operand, |a, _| a.mov(word_ptr(m()), 0x5aa5)),
    form("mov imm32", 4, Operand, |a, _| a.mov(dword_ptr(m()), 0x1234_5678)),
    form("mov imm32 sx", 8, Operand, |a, _| a.mov(qword_ptr(m()), -0x1234_5678)),
    form("mov moffs8", 1, Absolute, |a, at| moffs(a, &[0xa2], at)),
    form("mov moffs16", 2, Absolute, |a, at| moffs(a, &[0x66, 0xa3], at)),
    form("mov moffs32", 4, Absolute, |a, at| moffs(a, &[0xa3], at)),
    form("mov moffs64", 8, Absolute, |a, at| moffs(a, &[0x48, 0xa3], at)),
    form("movnti 32", 4, Operand, |a, _| a.movnti(dword_ptr(m()), r8d)),
    form("movnti 64", 8, Operand, |a, _| a.movnti(qword_ptr(m()), r12)),
    form("seta", 1, Operand, |a, _| a.seta(byte_ptr(m()))),
    form("setb", 1, Operand, |a, _| a.setb(byte_ptr(m()))),
    form("sete", 1, Operand, |a, _| a.sete(byte_ptr(m()))),
    form("setg", 1, Operand, |a, _| a.setg(byte_ptr(m()))),
    form("setl", 1, Operand, |a, _| a.setl(byte_ptr(m()))),
    form("setno", 1, Operand, |a, _| a.setno(byte_ptr(m()))),
    form("setns", 1, Operand, |a, _| a.setns(byte_ptr(m()))),
    form("setp", 1, Operand, |a, _| a.setp(byte_ptr(m()))),
];

#[rustfmt::skip] // a table
pub(super) const MOVBE: &[Form] = &[
    form("movbe 16", 2, Operand, |a, _| a.movbe(word_ptr(m()), dx)).but(Native),
    form("movbe 64", 8, Operand, |a, _| a.movbe(qword_ptr(m()), rdx)).but(Native),
];

/// MOV to a bare address.
fn moffs(a: &mut CodeAssembler, opcode: &[u8], at: u64) -> Result<(), iced_x86::IcedError> {
    a.db(&[opcode, &at.to_le_bytes()].concat())
}

#[rustfmt::skip] // a table
pub(super) const ARITHMETIC: &[Form] = &[
    form("add r8", 1, Operand, |a, _| a.add(byte_ptr(m()), al)),
    form("add r64", 8, Operand, |a, _| a.add(qword_ptr(m()), r13)),
    form("or r32", 4, Operand, |a, _| a.or(dword_ptr(m()), eax)),
    form("adc r16", 2, Operand, |a, _| a.adc(word_ptr(m()), r8w)),
    form("adc imm", 4, Operand, |a, _| a.adc(dword_ptr(m()), 7)),
    form("sbb r64", 8, Operand, |a, _| a.sbb(qword_ptr(m()), rsp)),
    form("and imm8 sx", 8, Operand, |a, _| a.and(qword_ptr(m()), -3)),
    form("sub r64", 8, Operand, |a, _| a.sub(qword_ptr(m()), rbx)),
    form("xor r8", 1, Operand, |a, _| a.xor(byte_ptr(m()), r15b)),
    form("inc 8", 1, Operand, |a, _| a.inc(byte_ptr(m()))),
    form("inc 64", 8, Operand, |a, _| a.inc(qword_ptr(m()))),
    form("dec 32", 4, Operand, |a, _| a.dec(dword_ptr(m()))),
    form("neg 16", 2, Operand, |a, _| a.neg(word_ptr(m()))),
    form("not 64", 8, Operand, |a, _| a.not(qword_ptr(m()))),
    form("rol 1", 4, Operand, |a, _| a.rol(dword_ptr(m()), 1)),
    form("ror cl", 8, ByDx, |a, _| a.ror(qword_ptr(by_dx()), cl)),
    form("rcl cl", 1, ByDx, |a, _| a.rcl(byte_ptr(by_dx()), cl)),
    form("rcr imm", 2, Operand, |a, _| a.rcr(word_ptr(m()), 5)),
    form("shl cl", 4, ByDx, |a, _| a.shl(dword_ptr(by_dx()), cl)),
    form("shr imm", 8, Operand, |a, _| a.shr(qword_ptr(m()), 13)),
    form("sar cl", 2, ByDx, |a, _| a.sar(word_ptr(by_dx()), cl)),
    form("shld imm", 8, Operand, |a, _| a.shld(qword_ptr(m()), r9, 11)),
    form("shrd cl", 4, ByDx, |a, _| a.shrd(dword_ptr(by_dx()), esp, cl)),
    form("xadd r8", 1, Operand, |a, _| a.xadd(byte_ptr(m()), ch)).but(Lost),
    form("xadd esp", 4, Operand, |a, _| a.xadd(dword_ptr(m()), esp)),
    form("cmpxchg differs", 8, Operand, |a, _| a.cmpxchg(qword_ptr(m()), rsi)),
    form("cmpxchg equals", 4, Operand, |a, _| a.cmpxchg(dword_ptr(m()), esp)).but(Equal),
    form("cmpxchg r8", 1, Operand, |a, _| a.cmpxchg(byte_ptr(m()), bl)).but(Equal),
    form("cmpxchg8b differs", 8, R10(1), |a, _| a.cmpxchg8b(qword_ptr(r10))),
    form("cmpxchg8b equals", 8, R10(1), |a, _| a.cmpxchg8b(qword_ptr(r10))).but(Equal),
];

#[rustfmt::skip] // a table
pub(super) const LOCKED: &[Form] = &[
    form("lock add", 8, Operand, |a, _| a.lock().add(qword_ptr(m()), r13)),
    form("lock or", 1, Operand, |a, _| a.lock().or(byte_ptr(m()), r9b)),
    form("lock adc", 4, Operand, |a, _| a.lock().adc(dword_ptr(m()), 7)),
    form("lock sbb", 2, Operand, |a, _| a.lock().sbb(word_ptr(m()), r9w)),
    form("lock and", 8, Operand, |a, _| a.lock().and(qword_ptr(m()), -3)),
    form("lock sub", 4, Operand, |a, _| a.lock().sub(dword_ptr(m()), edx)),
    form("lock xor", 8, Operand, |a, _| a.lock().xor(qword_ptr(m()), r8)),
    form("lock inc", 8, Operand, |a, _| a.lock().inc(qword_ptr(m()))),
    form("lock dec", 1, Operand, |a, _| a.lock().dec(byte_ptr(m()))),
    form("lock neg", 4, Operand, |a, _| a.lock().neg(dword_ptr(m()))),
    form("lock not", 2, Operand, |a, _| a.lock().not(word_ptr(m()))),
    form("xchg r8", 1, Operand, |a, _| a.xchg(byte_ptr(m()), dh)),
    form("xchg r16", 2, Operand, |a, _| a.xchg(word_ptr(m()), bx)).but(Lost),
    form("xchg r32", 4, Operand, |a, _| a.xchg(dword_ptr(m()), ecx)).but(Lost),
    form("xchg rsp", 8, Operand, |a, _| a.xchg(qword_ptr(m()), rsp)),
    form("lock xadd", 8, Operand, |a, _| a.lock().xadd(qword_ptr(m()), rdi)),
    form("lock xadd r16", 2, Operand, |a, _| a.lock().xadd(word_ptr(m()), r9w)),
    form("lock cmpxchg differs", 8, Operand, |a, _| a.lock().cmpxchg(qword_ptr(m()), rsi)),
    form("lock cmpxchg equals", 8, Operand, |a, _| a.lock().cmpxchg(qword_ptr(m()), rsi)).but(Equal),
    form("lock cmpxchg r16", 2, Operand, |a, _| a.lock().cmpxchg(word_ptr(m()), bp)).but(Equal),
    form("lock cmpxchg8b differs", 8, R10(1), |a, _| a.lock().cmpxchg8b(qword_ptr(r10))),
    form("lock cmpxchg8b equals", 8, R10(1), |a, _| a.lock().cmpxchg8b(qword_ptr(r10))).but(Equal),
    form("lock cmpxchg16b differs", 16, R10(16), |a, _| a.lock().cmpxchg16b(xmmword_ptr(r10))),
    form("lock cmpxchg16b equals", 16, R10(16), |a, _| a.lock().cmpxchg16b(xmmword_ptr(r10))).but(Equal),
    form("cmpxchg16b differs", 16, R10(16), |a, _| a.cmpxchg16b(xmmword_ptr(r10))),
];

#[rustfmt::skip] // a table
pub(super) const BITS: &[Form] = &[
    form("bts imm", 4, Operand, |a, _| a.bts(dword_ptr(m()), 77)),
    form("btr imm", 8, Operand, |a, _| a.btr(qword_ptr(m()), 63)),
    form("btc imm", 2, Operand, |a, _| a.btc(word_ptr(m()), 3)),
    form("bts r16", 2, Bits, |a, _| a.bts(word_ptr(m()), r9w)),
    form("bts r64", 8, Bits, |a, _| a.bts(qword_ptr(m()), r9)),
    form("btr r32", 4, Bits, |a, _| a.btr(dword_ptr(m()), r9d)),
    form("btr r64", 8, Bits, |a, _| a.btr(qword_ptr(m()), r9)),
    form("btc r16", 2, Bits, |a, _| a.btc(word_ptr(m()), r9w)),
    form("btc r32", 4, Bits, |a, _| a.btc(dword_ptr(m()), r9d)),
    form("lock bts r32", 4, Bits, |a, _| a.lock().bts(dword_ptr(m()), r9d)),
    form("lock btr r16", 2, Bits, |a, _| a.lock().btr(word_ptr(m()), r9w)),
    form("lock btc r64", 8, Bits, |a, _| a.lock().btc(qword_ptr(m()), r9)),
    form("lock bts imm", 2, Operand, |a, _| a.lock().bts(word_ptr(m()), 9)),
    form("lock btr imm", 8, Operand, |a, _| a.lock().btr(qword_ptr(m()), 63)),
];

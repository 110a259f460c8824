//! Stores whose destination or source the instruction does not name.

use iced_x86::code_asm::*;

use super::form::Place::{Operand, Popped, Push, R10, String};
use super::form::Quirk::{Hidden, Pieces, Slow};
use super::form::{Form, form, m};

#[rustfmt::skip] // a table
pub(super) const STACK: &[Form] = &[
    form("push r64", 8, Push, |a, _| a.push(rdx)),
    form("push rsp", 8, Push, |a, _| a.push(rsp)),
    form("push r16", 2, Push, |a, _| a.push(r9w)),
    form("push imm8", 8, Push, |a, _| a.push(-7)),
    form("push imm32", 8, Push, |a, _| a.push(0x1234_5678)),
    form("push m64", 8, Push, |a, _| a.push(qword_ptr(m()))),
    form("push m16", 2, Push, |a, _| a.push(word_ptr(m()))),
    form("push fs", 8, Push, |a, _| a.push(fs)).but(Hidden),
    form("pushfq", 8, Push, |a, _| a.pushfq()).but(Hidden),
    form("pushf", 2, Push, |a, _| a.pushf()).but(Hidden),
    form("call r64", 8, Push, |a, _| a.call(r9)),
    form("call m64", 8, Push, |a, _| a.call(qword_ptr(m()))),
    form("call rel", 8, Push, |a, _| {
        let mut next = a.create_label();
        a.call(next)?;
        a.set_label(&mut next)?;
        a.zero_bytes()
    }),
    form("enter", 8, Push, |a, _| a.enter(0x40, 0)),
    form("enter level 1", 16, Push, |a, _| a.enter(0x40, 1)).but(Pieces),
    form("enter level 4", 40, Push, |a, _| a.enter(0, 4)).but(Pieces),
    form("enter level 31", 256, Push, |a, _| a.enter(0x10, 31)).but(Pieces),
    form("pop m64", 8, Operand, |a, _| a.pop(qword_ptr(m()))),
    form("pop m16", 2, Operand, |a, _| a.pop(word_ptr(m()))),
    form("pop [rsp]", 8, Popped, |a, _| a.pop(qword_ptr(rsp + 0x10))),
];

#[rustfmt::skip] // a table
pub(super) const STRINGS: &[Form] = &[
    form("stosb", 1, String, |a, _| a.stosb()),
    form("stosw", 2, String, |a, _| a.stosw()),
    form("stosd", 4, String, |a, _| a.stosd()),
    form("stosq", 8, String, |a, _| a.stosq()),
    form("movsb", 1, String, |a, _| a.movsb()),
    form("movsw", 2, String, |a, _| a.movsw()),
    form("movsd", 4, String, |a, _| a.movsd()),
    form("movsq", 8, String, |a, _| a.movsq()),
];

#[rustfmt::skip] // a table
pub(super) const SYSTEM: &[Form] = &[
    form("mov es", 2, Operand, |a, _| a.mov(word_ptr(m()), es)).but(Hidden),
    form("sldt", 2, Operand, |a, _| a.sldt(word_ptr(m()))),
    form("str", 2, Operand, |a, _| a.str(word_ptr(m()))),
    form("smsw", 2, Operand, |a, _| a.smsw(word_ptr(m()))),
    form("sgdt", 10, R10(1), |a, _| a.sgdt(ptr(r10))).but(Slow),
    form("sidt", 10, R10(1), |a, _| a.sidt(ptr(r10))).but(Slow),
];

//! Stores of x87, MMX, SSE and AVX registers.

use iced_x86::code_asm::*;

use super::form::Place::{Operand, R10, Rax, String};
use super::form::Quirk::{Early, Masked, Saves};
use super::form::{Form, form, m};

#[rustfmt::skip] // a table
pub(super) const SSE: &[Form] = &[
    form("movd mm", 4, Operand, |a, _| a.movd(dword_ptr(m()), mm3)),
    form("movq mm", 8, Operand, |a, _| a.movq(qword_ptr(m()), mm0)),
    form("movntq", 8, Operand, |a, _| a.movntq(qword_ptr(m()), mm7)),
    form("movd xmm", 4, Operand, |a, _| a.movd(dword_ptr(m()), xmm9)),
    form("movq xmm", 8, Operand, |a, _| a.movq(qword_ptr(m()), xmm1)),
    form("movss", 4, Operand, |a, _| a.movss(dword_ptr(m()), xmm2)),
    form("movsd xmm", 8, Operand, |a, _| a.movsd_2(qword_ptr(m()), xmm3)),
    form("movups", 16, Operand, |a, _| a.movups(xmmword_ptr(m()), xmm15)),
    form("movupd", 16, Operand, |a, _| a.movupd(xmmword_ptr(m()), xmm4)),
    form("movdqu", 16, Operand, |a, _| a.movdqu(xmmword_ptr(m()), xmm5)),
    form("movaps", 16, R10(16), |a, _| a.movaps(xmmword_ptr(r10), xmm6)),
    form("movapd", 16, R10(16), |a, _| a.movapd(xmmword_ptr(r10), xmm7)),
    form("movdqa", 16, R10(16), |a, _| a.movdqa(xmmword_ptr(r10), xmm8)),
    form("movntps", 16, R10(16), |a, _| a.movntps(xmmword_ptr(r10), xmm10)),
    form("movntpd", 16, R10(16), |a, _| a.movntpd(xmmword_ptr(r10), xmm11)),
    form("movntdq", 16, R10(16), |a, _| a.movntdq(xmmword_ptr(r10), xmm12)),
    form("movlps", 8, Operand, |a, _| a.movlps(qword_ptr(m()), xmm13)),
    form("movhps", 8, Operand, |a, _| a.movhps(qword_ptr(m()), xmm0)),
    form("movhpd", 8, Operand, |a, _| a.movhpd(qword_ptr(m()), xmm1)),
    form("extractps", 4, Operand, |a, _| a.extractps(dword_ptr(m()), xmm2, 3)),
    form("pextrb", 1, Operand, |a, _| a.pextrb(byte_ptr(m()), xmm3, 9)),
    form("pextrw", 2, Operand, |a, _| a.pextrw(word_ptr(m()), xmm4, 5)),
    form("pextrq", 8, Operand, |a, _| a.pextrq(qword_ptr(m()), xmm6, 1)),
    form("stmxcsr", 4, Operand, |a, _| a.stmxcsr(dword_ptr(m()))),
    form("fxsave", 512, R10(16), |a, _| a.fxsave(r10 + 0)).but(Early),
    form("fxsave64", 512, R10(16), |a, _| a.fxsave64(r10 + 0)).but(Early),
];

#[rustfmt::skip] // a table
pub(super) const MASKED: &[Form] = &[
    form("maskmovdqu", 16, String, |a, _| a.maskmovdqu(xmm3, xmm9)).but(Masked),
];

#[rustfmt::skip] // a table
pub(super) const SSE4A: &[Form] = &[
    form("movntss", 4, Operand, |a, _| a.movntss(dword_ptr(m()), xmm3)),
    form("movntsd", 8, Operand, |a, _| a.movntsd(qword_ptr(m()), xmm14)),
];

#[rustfmt::skip] // a table
pub(super) const CLZERO: &[Form] = &[
    form("clzero", 64, Rax(64), |a, _| a.clzero()),
];

#[rustfmt::skip] // a table
pub(super) const XSAVE: &[Form] = &[
    form("xsave", 832, R10(64), |a, _| a.xsave(r10 + 0)).but(Saves),
    form("xsave64", 832, R10(64), |a, _| a.xsave64(r10 + 0)).but(Saves),
    form("xsaveopt64", 832, R10(64), |a, _| a.xsaveopt64(r10 + 0)).but(Saves),
    form("xsavec", 832, R10(64), |a, _| a.xsavec(r10 + 0)).but(Saves),
    form("xsavec64", 832, R10(64), |a, _| a.xsavec64(r10 + 0)).but(Saves),
];

#[rustfmt::skip] // a table
pub(super) const AVX: &[Form] = &[
    form("vmovups xmm", 16, Operand, |a, _| a.vmovups(xmmword_ptr(m()), xmm3)),
    form("vmovups ymm", 32, Operand, |a, _| a.vmovups(ymmword_ptr(m()), ymm13)),
    form("vmovaps ymm", 32, R10(32), |a, _| a.vmovaps(ymmword_ptr(r10), ymm1)),
    form("vmovntdq ymm", 32, R10(32), |a, _| a.vmovntdq(ymmword_ptr(r10), ymm2)),
    form("vmovdqu ymm", 32, Operand, |a, _| a.vmovdqu(ymmword_ptr(m()), ymm4)),
    form("vextractf128", 16, Operand, |a, _| a.vextractf128(xmmword_ptr(m()), ymm5, 1)),
    form("vextracti128", 16, Operand, |a, _| a.vextracti128(xmmword_ptr(m()), ymm5, 0)),
    form("vmovq", 8, Operand, |a, _| a.vmovq(qword_ptr(m()), xmm6)),
    form("vmovss", 4, Operand, |a, _| a.vmovss(dword_ptr(m()), xmm7)),
    form("vmovhps", 8, Operand, |a, _| a.vmovhps(qword_ptr(m()), xmm8)),
    form("vpextrb", 1, Operand, |a, _| a.vpextrb(byte_ptr(m()), xmm9, 3)),
    form("vstmxcsr", 4, Operand, |a, _| a.vstmxcsr(dword_ptr(m()))),
    form("vmaskmovps xmm", 16, Operand, |a, _| a.vmaskmovps(xmmword_ptr(m()), xmm9, xmm2)).but(Masked),
    form("vmaskmovps ymm", 32, Operand, |a, _| a.vmaskmovps(ymmword_ptr(m()), ymm9, ymm2)).but(Masked),
    form("vmaskmovpd ymm", 32, Operand, |a, _| a.vmaskmovpd(ymmword_ptr(m()), ymm8, ymm2)).but(Masked),
    form("vpmaskmovd ymm", 32, Operand, |a, _| a.vpmaskmovd(ymmword_ptr(m()), ymm9, ymm9)).but(Masked),
    form("vpmaskmovq ymm", 32, Operand, |a, _| a.vpmaskmovq(ymmword_ptr(m()), ymm8, ymm3)).but(Masked),
    form("vmaskmovdqu", 16, String, |a, _| a.vmaskmovdqu(xmm3, xmm9)).but(Masked),
];

#[rustfmt::skip] // a table
pub(super) const X87: &[Form] = &[
    form("fst m32", 4, Operand, |a, _| a.fst(dword_ptr(m()))),
    form("fst m64", 8, Operand, |a, _| a.fst(qword_ptr(m()))),
    form("fstp m32", 4, Operand, |a, _| a.fstp(dword_ptr(m()))),
    form("fstp m64", 8, Operand, |a, _| a.fstp(qword_ptr(m()))),
    form("fstp m80", 10, Operand, |a, _| a.fstp(tbyte_ptr(m()))),
    form("fist m16", 2, Operand, |a, _| a.fist(word_ptr(m()))),
    form("fist m32", 4, Operand, |a, _| a.fist(dword_ptr(m()))),
    form("fistp m64", 8, Operand, |a, _| a.fistp(qword_ptr(m()))),
    form("fisttp m32", 4, Operand, |a, _| a.fisttp(dword_ptr(m()))),
    form("fbstp", 10, Operand, |a, _| a.fbstp(tbyte_ptr(m()))),
    form("fnstcw", 2, Operand, |a, _| a.fnstcw(word_ptr(m()))),
    form("fnstsw", 2, Operand, |a, _| a.fnstsw(word_ptr(m()))),
    form("fnstenv", 28, Operand, |a, _| a.fnstenv(m())),
    form("fnsave", 108, Operand, |a, _| a.fnsave(m())),
    // [RBX + RCX * 2 + 15H] with operands of 16 bits.
    form("fnstenv 16", 14, Operand, |a, _| a.db(&[0x66, 0xd9, 0x74, 0x4b, 0x15])),
    form("fnsave 16", 94, Operand, |a, _| a.db(&[0x66, 0xdd, 0x74, 0x4b, 0x15])),
];

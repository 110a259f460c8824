//! The forms: each a function of assembly around one instruction.
//!
//! Unsafe: they store to the address in RDI. All of them load RAX, RBX, RCX, RDX, RSI, the flags,
//! XMM0 and XMM1 (and with AVX the upper halves) with known values and put π on the x87 stack; they
//! leave every register that the calling convention keeps as it was, and the direction flag clear.
//! Forms that push set RSP to the end of the destination for one instruction: interrupts are off,
//! and NMIs have a stack of their own.

use core::arch::naked_asm;

use super::{Form, Registers};

macro_rules! form {
    ($name:literal, $length:literal $(, $field:ident = $value:expr)*; $($code:expr),+) => {{
        #[unsafe(naked)]
        unsafe extern "sysv64" fn code(destination: u64, registers: *mut Registers) {
            naked_asm!(
                "push rbx; push rbp; push r12; push r13; push r14; push r15",
                "mov r15, rsi",
                "xor r13d, r13d",
                // All of the SSE and x87 state, so that FXSAVE stores the same every time.
                "pxor xmm2, xmm2; pxor xmm3, xmm3; pxor xmm4, xmm4; pxor xmm5, xmm5",
                "pxor xmm6, xmm6; pxor xmm7, xmm7; pxor xmm8, xmm8; pxor xmm9, xmm9",
                "pxor xmm10, xmm10; pxor xmm11, xmm11; pxor xmm12, xmm12; pxor xmm13, xmm13",
                "pxor xmm14, xmm14; pxor xmm15, xmm15",
                "movq xmm0, qword ptr [r15]",
                "movq xmm1, qword ptr [r15 + 8]",
                "punpcklqdq xmm0, xmm1",
                "fninit",
                "fldpi",
                "mov rax, [r15]",
                "mov rbx, [r15 + 8]",
                "mov rcx, [r15 + 16]",
                "mov rdx, [r15 + 24]",
                "mov rsi, [r15 + 32]",
                "push qword ptr [r15 + 48]",
                "popfq",
                $($code,)+
                "pushfq",
                "pop qword ptr [r15 + 48]",
                "cld",
                "mov [r15], rax",
                "mov [r15 + 8], rbx",
                "mov [r15 + 16], rcx",
                "mov [r15 + 24], rdx",
                "mov [r15 + 32], rsi",
                "mov [r15 + 40], rdi",
                "mov [r15 + 56], r13",
                "fninit",
                "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx",
                "ret",
            )
        }
        #[allow(clippy::needless_update)]
        Form {
            $($field: $value,)*
            ..Form {
                name: $name,
                length: $length,
                count: 1,
                backwards: false,
                alignment: 1,
                displacement: 0,
                in_pieces: false,
                last_first: false,
                written: !0,
                code,
            }
        }
    }};
}

/// A form that pushes `$length` bytes that end where its destination ends.
macro_rules! push {
    ($name:literal, $length:literal $(, $field:ident = $value:expr)*; $($code:expr),+) => {
        form!($name, $length $(, $field = $value)*;
            "mov r14, rsp",
            concat!("lea rsp, [rdi + ", $length, "]"),
            $($code,)+
            "mov r13, rsp",
            "mov rsp, r14")
    };
}

/// Integer stores and read-modify-writes.
pub static INTEGER: &[Form] = &[
    form!("mov m8, r8", 1; "mov [rdi], bl"),
    form!("mov m8, ah", 1; "mov [rdi], ah"),
    form!("mov m16, r16", 2; "mov [rdi], bx"),
    form!("mov m32, r32", 4; "mov [rdi], ebx"),
    form!("mov m64, r64", 8; "mov [rdi], rbx"),
    form!("mov m64, r12", 8; "mov r12, 77", "mov [rdi], r12"),
    form!("mov m16, imm16", 2; "mov word ptr [rdi], 0x1234"),
    form!("mov m64, imm32", 8; "mov qword ptr [rdi], -0x12345678"),
    form!("mov [rdi + 8 * rcx]", 8, displacement = 8 + 0x20; "mov [rdi + 8 * rcx + 0x20], rbx"),
    form!("movnti m64, r64", 8; "movnti [rdi], rbx"),
    form!("movbe m32, r32", 4; "movbe [rdi], ebx"),
    form!("add m64, r64", 8; "add [rdi], rbx"),
    form!("adc m32, r32", 4; "adc [rdi], ebx"),
    form!("sub m16, r16", 2; "sub [rdi], bx"),
    form!("sbb m64, imm8", 8; "sbb qword ptr [rdi], 5"),
    form!("and m8, r8", 1; "and [rdi], bl"),
    form!("or m64, r64", 8; "or [rdi], rbx"),
    form!("xor m32, imm32", 4; "xor dword ptr [rdi], 0x11223344"),
    form!("inc m64", 8; "inc qword ptr [rdi]"),
    form!("dec m8", 1; "dec byte ptr [rdi]"),
    form!("neg m32", 4; "neg dword ptr [rdi]"),
    form!("not m64", 8; "not qword ptr [rdi]"),
    form!("shl m64, imm8", 8; "shl qword ptr [rdi], 3"),
    form!("sar m32, cl", 4; "sar dword ptr [rdi], cl"),
    form!("rol m16, cl", 2; "rol word ptr [rdi], cl"),
    form!("rcr m8, 1", 1; "rcr byte ptr [rdi], 1"),
    form!("shld m64, r64, imm8", 8; "shld [rdi], rbx, 7"),
    form!("shrd m32, r32, cl", 4; "shrd [rdi], ebx, cl"),
    form!("bts m64, imm8", 8; "bts qword ptr [rdi], 0"),
    form!("btr m64, r64 ahead", 8, displacement = 16; "mov ebx, 131", "btr [rdi], rbx"),
    form!("btc m32, r32 behind", 4, displacement = 8_u64.wrapping_neg();
        "mov ebx, -61", "btc [rdi], ebx"),
    form!("setc m8", 1; "setc byte ptr [rdi]"),
    form!("xchg m64, r64", 8; "xchg [rdi], rbx"),
    form!("xchg m8, r8", 1; "xchg [rdi], bl"),
    form!("xadd m32, r32", 4; "xadd [rdi], ebx"),
    form!("cmpxchg m64 equal", 8; "mov rax, 0x5a5a5a5a5a5a5a5a", "cmpxchg [rdi], rbx"),
    form!("cmpxchg m64 different", 8; "cmpxchg [rdi], rbx"),
];

/// Locked read-modify-writes.
pub static LOCKED: &[Form] = &[
    form!("lock inc m64", 8; "lock inc qword ptr [rdi]"),
    form!("lock dec m16", 2; "lock dec word ptr [rdi]"),
    form!("lock add m32, imm8", 4; "lock add dword ptr [rdi], 5"),
    form!("lock or m8, r8", 1; "lock or [rdi], al"),
    form!("lock not m64", 8; "lock not qword ptr [rdi]"),
    form!("lock xadd m64, r64", 8; "lock xadd [rdi], rbx"),
    form!("lock bts m64, r64 ahead", 8, displacement = 16; "mov ebx, 128", "lock bts [rdi], rbx"),
    form!("lock cmpxchg m32 equal", 4; "mov eax, 0x5a5a5a5a", "lock cmpxchg [rdi], ebx"),
    form!("lock cmpxchg m32 different", 4; "lock cmpxchg [rdi], ebx"),
    form!("lock cmpxchg8b equal", 8;
        "mov eax, 0x5a5a5a5a", "mov edx, eax", "lock cmpxchg8b [rdi]"),
    form!("lock cmpxchg8b different", 8; "lock cmpxchg8b [rdi]"),
    form!("lock cmpxchg16b equal", 16, alignment = 16;
        "mov rax, 0x5a5a5a5a5a5a5a5a", "mov rdx, rax", "lock cmpxchg16b [rdi]"),
    form!("lock cmpxchg16b different", 16, alignment = 16; "lock cmpxchg16b [rdi]"),
];

/// Pushes and calls.
pub static STACK: &[Form] = &[
    push!("push r64", 8; "push rbx"),
    push!("push r16", 2; "push bx"),
    push!("push imm32", 8; "push -0x1234567"),
    push!("push m64", 8; "push qword ptr [r15 + 8]"),
    // The assembler takes `push fs` for the one of 16 bits.
    push!("push fs", 8; ".byte 0x0f, 0xa0"),
    push!("push fs with 16 bits", 2; ".byte 0x66, 0x0f, 0xa0"),
    push!("pushfq", 8; "pushfq"),
    push!("call rel32", 8; "call 2f", "2:"),
    push!("call r64", 8; "lea rax, [rip + 2f]", "call rax", "2:", "xor eax, eax"),
    push!("enter 0, 0", 8; "mov rbp, rbx", "enter 0, 0"),
];

/// ENTER that makes room, and asks whether it may be written.
pub static ENTER_ROOM: Form = push!("enter 0x100, 0", 8; "mov rbp, rbx", "enter 0x100, 0");

/// Far calls to the code segment that they are in. The pointer lies where RCX will be left.
pub static FAR_CALLS: &[Form] = &[
    push!("call m16:32", 8, last_first = true;
        "lea rax, [rip + 2f]", "mov [r15 + 16], eax", "mov word ptr [r15 + 20], cs",
        ".byte 0x41, 0xff, 0x5f, 0x10", "2:", "xor eax, eax"),
    push!("call m16:64", 16, last_first = true;
        "lea rax, [rip + 2f]", "mov [r15 + 16], rax", "mov word ptr [r15 + 24], cs",
        ".byte 0x49, 0xff, 0x5f, 0x10", "2:", "xor eax, eax"),
];

/// String stores.
pub static STRING: &[Form] = &[
    form!("stosb", 1; "stosb"),
    form!("stosw", 2; "stosw"),
    form!("stosd", 4; "stosd"),
    form!("stosq", 8; "stosq"),
    form!("movsb", 1; "movsb"),
    form!("movsq", 8; "movsq"),
    form!("rep stosb", 1, count = 300; "rep stosb"),
    form!("rep stosq", 8, count = 40; "rep stosq"),
    form!("rep movsb", 1, count = 300; "rep movsb"),
    form!("rep movsd", 4, count = 80; "rep movsd"),
    form!("rep movsq", 8, count = 40; "rep movsq"),
    form!("std; rep stosb", 1, count = 300, backwards = true; "rep stosb"),
    form!("std; rep stosq", 8, count = 40, backwards = true; "rep stosq"),
    form!("std; rep movsb", 1, count = 300, backwards = true; "rep movsb"),
    form!("std; rep movsq", 8, count = 40, backwards = true; "rep movsq"),
];

/// SSE stores.
pub static SSE: &[Form] = &[
    form!("movups m128, xmm", 16; "movups [rdi], xmm0"),
    form!("movaps m128, xmm", 16, alignment = 16; "movaps [rdi], xmm0"),
    form!("movdqu m128, xmm", 16; "movdqu [rdi], xmm0"),
    form!("movntdq m128, xmm", 16, alignment = 16; "movntdq [rdi], xmm0"),
    form!("movntps m128, xmm", 16, alignment = 16; "movntps [rdi], xmm0"),
    form!("movq m64, xmm", 8; "movq qword ptr [rdi], xmm0"),
    form!("movd m32, xmm", 4; "movd dword ptr [rdi], xmm0"),
    form!("movss m32, xmm", 4; "movss dword ptr [rdi], xmm0"),
    form!("movlps m64, xmm", 8; "movlps qword ptr [rdi], xmm0"),
    form!("movhps m64, xmm", 8; "movhps qword ptr [rdi], xmm0"),
    form!("pextrb m8, xmm, 1", 1; "pextrb byte ptr [rdi], xmm0, 1"),
    form!("pextrq m64, xmm, 1", 8; "pextrq qword ptr [rdi], xmm0, 1"),
    form!("stmxcsr m32", 4; "stmxcsr [rdi]"),
    form!("fxsave64", 512, alignment = 16, in_pieces = true; "fxsave64 [rdi]"),
];

/// AVX stores.
pub static AVX: &[Form] = &[
    form!("vmovups m256, ymm", 32; "vinsertf128 ymm0, ymm0, xmm0, 1", "vmovups [rdi], ymm0"),
    form!("vmovaps m256, ymm", 32, alignment = 32;
        "vinsertf128 ymm0, ymm0, xmm0, 1", "vmovaps [rdi], ymm0"),
    form!("vmovntdq m256, ymm", 32, alignment = 32;
        "vinsertf128 ymm0, ymm0, xmm0, 1", "vmovntdq [rdi], ymm0"),
    form!("vmovdqu m128, xmm", 16; "vmovdqu [rdi], xmm0"),
    form!("vextractf128 m128, ymm, 1", 16;
        "vinsertf128 ymm0, ymm0, xmm0, 1", "vextractf128 [rdi], ymm0, 1"),
    form!("vmovq m64, xmm", 8; "vmovq qword ptr [rdi], xmm0"),
];

/// AVX-512 stores: whole, under a mask, compressed, converted, scattered.
///
/// Of a masked one the first byte is written, and the one in its middle, where tests let a page begin.
pub static AVX512: &[Form] = &[
    form!("vmovdqu64 m512, zmm", 64, in_pieces = true;
        "vshufi64x2 zmm0, zmm0, zmm0, 0x44", "vmovdqu64 [rdi], zmm0"),
    form!("vmovdqu32 m512 {k}, zmm", 64, in_pieces = true, written = 0xf000_000f_0000_f00f;
        "vshufi64x2 zmm0, zmm0, zmm0, 0x44", "mov eax, 0x8109", "kmovw k1, eax",
        "vmovdqu32 [rdi] {{k1}}, zmm0"),
    form!("vmovupd m512 {k}, zmm", 64, in_pieces = true, written = 0xff00_00ff_0000_00ff;
        "vshufi64x2 zmm0, zmm0, zmm0, 0x44", "mov eax, 0x91", "kmovw k1, eax",
        "vmovupd [rdi] {{k1}}, zmm0"),
    form!("vmovdqu8 m512 {k}, zmm", 64, in_pieces = true, written = 0x8000_0001_0000_0301;
        "vshufi64x2 zmm0, zmm0, zmm0, 0x44", "movabs rax, 0x8000000100000301", "kmovq k1, rax",
        "vmovdqu8 [rdi] {{k1}}, zmm0"),
    form!("vmovups m128 {k}, xmm", 16, in_pieces = true, written = 0xff0f;
        "mov eax, 0xd", "kmovw k1, eax", "vmovups [rdi] {{k1}}, xmm0"),
    form!("vpcompressd m512 {k}, zmm", 16, in_pieces = true;
        "vshufi64x2 zmm0, zmm0, zmm0, 0x44", "mov eax, 0x8109", "kmovw k1, eax",
        "vpcompressd [rdi] {{k1}}, zmm0"),
    form!("vpmovqb m64, zmm", 8, in_pieces = true;
        "vshufi64x2 zmm0, zmm0, zmm0, 0x44", "vpmovqb [rdi], zmm0"),
    form!("vscatterdps m512 {k}, zmm", 4, count = 16;
        "vshufi64x2 zmm0, zmm0, zmm0, 0x44", "vpmovzxbd zmm1, xmmword ptr [rip + 2f]",
        "kxnorw k1, k1, k1", "vscatterdps [rdi + 4 * zmm1] {{k1}}, zmm0", "jmp 3f",
        "2:", ".byte 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15", "3:"),
    form!("vpscatterqq m512 {k}, zmm", 8, count = 8;
        "vshufi64x2 zmm0, zmm0, zmm0, 0x44", "vpmovzxbq zmm1, qword ptr [rip + 2f]",
        "kxnorw k1, k1, k1", "vpscatterqq [rdi + 8 * zmm1] {{k1}}, zmm0", "jmp 3f",
        "2:", ".byte 0, 1, 2, 3, 4, 5, 6, 7", "3:"),
];

/// x87 stores.
pub static X87: &[Form] = &[
    form!("fst m32", 4; "fst dword ptr [rdi]"),
    form!("fstp m64", 8; "fstp qword ptr [rdi]"),
    form!("fstp m80", 10, in_pieces = true; "fstp tbyte ptr [rdi]"),
    form!("fist m16", 2; "fist word ptr [rdi]"),
    form!("fistp m64", 8; "fistp qword ptr [rdi]"),
    form!("fisttp m32", 4; "fisttp dword ptr [rdi]"),
    form!("fnstcw m16", 2; "fnstcw word ptr [rdi]"),
    form!("fnstsw m16", 2; "fnstsw word ptr [rdi]"),
];

//! Every store form, emulated and run directly from the same random state.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use subpage_emulate::guest::{GeneralRegisters, Register};
use subpage_emulate::{
    Executor, Extended, FxArea, GuestInstruction, Progress, Refusal, Scratch, Store, Unsupported,
    Window,
};

use crate::machine::{OwnTrampoline, PAGING, TABLES};
use crate::native::{DATA_BYTES, Native, Registers};

pub(crate) type Assemble = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// What a form needs besides random registers.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Needs {
    Nothing,
    /// A destination aligned to this many bytes.
    Alignment(u64),
    /// R9 such that the bit lies within the data.
    BitOffset,
    /// Memory, or R9, that holds the address of what follows.
    Target,
    /// A compare that succeeds.
    Equal,
}

/// An instruction and how many bytes it stores.
pub(crate) struct Form(
    pub(crate) &'static str,
    pub(crate) usize,
    pub(crate) Needs,
    pub(crate) Assemble,
);

use Needs::{Alignment, BitOffset, Equal, Nothing, Target};

/// The destination that most forms name.
pub(crate) fn m() -> AsmMemoryOperand {
    rbx + rcx * 2 + 0x15
}

#[rustfmt::skip] // a table
const GENERAL: &[Form] = &[
    Form("mov r8", 1, Nothing, |a| a.mov(byte_ptr(m()), dl)),
    Form("mov high r8", 1, Nothing, |a| a.mov(byte_ptr(m()), ah)),
    Form("mov bh", 1, Nothing, |a| a.mov(byte_ptr(m()), bh)),
    Form("mov spl", 1, Nothing, |a| a.mov(byte_ptr(m()), spl)),
    Form("mov r16", 2, Nothing, |a| a.mov(word_ptr(m()), r11w)),
    Form("mov r32", 4, Nothing, |a| a.mov(dword_ptr(m()), esi)),
    Form("mov r64", 8, Nothing, |a| a.mov(qword_ptr(m()), rdi)),
    Form("mov rsp", 8, Nothing, |a| a.mov(qword_ptr(m()), rsp)),
    Form("mov esp", 4, Nothing, |a| a.mov(dword_ptr(m()), esp)),
    Form("mov sp", 2, Nothing, |a| a.mov(word_ptr(m()), sp)),
    Form("mov base", 8, Nothing, |a| a.mov(qword_ptr(m()), rbx)),
    Form("mov index", 4, Nothing, |a| a.mov(dword_ptr(m()), ecx)),
    Form("mov rsp base", 8, Nothing, |a| a.mov(qword_ptr(rsp + 8), rsp)),
    Form("mov rbp base", 8, Nothing, |a| a.mov(qword_ptr(rbp + r14 * 1), r8)),
    Form("mov 32-bit address", 4, Nothing, |a| a.mov(dword_ptr(ebx + ecx * 2 + 0x15), eax)),
    Form("mov imm8", 1, Nothing, |a| a.mov(byte_ptr(m()), 0x5a)),
    Form("mov imm16", 2, Nothing, |a| a.mov(word_ptr(m()), 0x5aa5)),
    Form("mov imm32", 4, Nothing, |a| a.mov(dword_ptr(m()), 0x1234_5678)),
    Form("mov imm32 sx", 8, Nothing, |a| a.mov(qword_ptr(m()), -0x1234_5678)),
    Form("movnti", 8, Nothing, |a| a.movnti(qword_ptr(m()), r12)),
    Form("movbe 16", 2, Nothing, |a| a.movbe(word_ptr(m()), dx)),
    Form("movbe 64", 8, Nothing, |a| a.movbe(qword_ptr(m()), rdx)),
    Form("add r8", 1, Nothing, |a| a.add(byte_ptr(m()), al)),
    Form("lock add r64", 8, Nothing, |a| a.lock().add(qword_ptr(m()), r13)),
    Form("or r32", 4, Nothing, |a| a.or(dword_ptr(m()), eax)),
    Form("adc r16", 2, Nothing, |a| a.adc(word_ptr(m()), r8w)),
    Form("lock adc imm", 4, Nothing, |a| a.lock().adc(dword_ptr(m()), 7)),
    Form("sbb r64", 8, Nothing, |a| a.sbb(qword_ptr(m()), rsp)),
    Form("and imm8 sx", 8, Nothing, |a| a.and(qword_ptr(m()), -3)),
    Form("sub r64", 8, Nothing, |a| a.sub(qword_ptr(m()), rbx)),
    Form("xor r8", 1, Nothing, |a| a.xor(byte_ptr(m()), r15b)),
    Form("inc 8", 1, Nothing, |a| a.inc(byte_ptr(m()))),
    Form("lock inc 64", 8, Nothing, |a| a.lock().inc(qword_ptr(m()))),
    Form("dec 32", 4, Nothing, |a| a.dec(dword_ptr(m()))),
    Form("neg 16", 2, Nothing, |a| a.neg(word_ptr(m()))),
    Form("not 64", 8, Nothing, |a| a.not(qword_ptr(m()))),
    Form("rol 1", 4, Nothing, |a| a.rol(dword_ptr(m()), 1)),
    Form("ror cl", 8, Nothing, |a| a.ror(qword_ptr(rbx + rdx * 1), cl)),
    Form("rcl cl", 1, Nothing, |a| a.rcl(byte_ptr(rbx + rdx * 1), cl)),
    Form("rcr imm", 2, Nothing, |a| a.rcr(word_ptr(m()), 5)),
    Form("shl cl", 4, Nothing, |a| a.shl(dword_ptr(rbx + rdx * 1), cl)),
    Form("shr imm", 8, Nothing, |a| a.shr(qword_ptr(m()), 13)),
    Form("sar cl", 2, Nothing, |a| a.sar(word_ptr(rbx + rdx * 1), cl)),
    Form("shld imm", 8, Nothing, |a| a.shld(qword_ptr(m()), r9, 11)),
    Form("shrd cl", 4, Nothing, |a| a.shrd(dword_ptr(rbx + rdx * 1), esp, cl)),
    Form("bts imm", 4, Nothing, |a| a.bts(dword_ptr(m()), 77)),
    Form("bts r16", 2, BitOffset, |a| a.bts(word_ptr(m()), r9w)),
    Form("lock bts r32", 4, BitOffset, |a| a.lock().bts(dword_ptr(m()), r9d)),
    Form("bts r64", 8, BitOffset, |a| a.bts(qword_ptr(m()), r9)),
    Form("btr r64", 8, BitOffset, |a| a.btr(qword_ptr(m()), r9)),
    Form("btc r16", 2, BitOffset, |a| a.btc(word_ptr(m()), r9w)),
    Form("btc r32", 4, BitOffset, |a| a.btc(dword_ptr(m()), r9d)),
    Form("lock btr imm", 8, Nothing, |a| a.lock().btr(qword_ptr(m()), 63)),
    Form("xchg r8", 1, Nothing, |a| a.xchg(byte_ptr(m()), dh)),
    Form("xchg r16", 2, Nothing, |a| a.xchg(word_ptr(m()), bx)),
    Form("xchg r32", 4, Nothing, |a| a.xchg(dword_ptr(m()), ecx)),
    Form("xchg rsp", 8, Nothing, |a| a.xchg(qword_ptr(m()), rsp)),
    Form("xadd r64", 8, Nothing, |a| a.lock().xadd(qword_ptr(m()), rdi)),
    Form("xadd r8", 1, Nothing, |a| a.xadd(byte_ptr(m()), ch)),
    Form("xadd esp", 4, Nothing, |a| a.xadd(dword_ptr(m()), esp)),
    Form("cmpxchg differs", 8, Nothing, |a| a.lock().cmpxchg(qword_ptr(m()), rsi)),
    Form("cmpxchg equals", 8, Equal, |a| a.lock().cmpxchg(qword_ptr(m()), rsi)),
    Form("cmpxchg rsp", 4, Equal, |a| a.cmpxchg(dword_ptr(m()), esp)),
    Form("cmpxchg r8", 1, Equal, |a| a.cmpxchg(byte_ptr(m()), bl)),
    Form("cmpxchg8b differs", 8, Nothing, |a| a.lock().cmpxchg8b(qword_ptr(r10))),
    Form("cmpxchg8b equals", 8, Equal, |a| a.lock().cmpxchg8b(qword_ptr(r10))),
    Form("cmpxchg16b", 16, Alignment(16), |a| a.lock().cmpxchg16b(xmmword_ptr(r10))),
    Form("seta", 1, Nothing, |a| a.seta(byte_ptr(m()))),
    Form("setae", 1, Nothing, |a| a.setae(byte_ptr(m()))),
    Form("setb", 1, Nothing, |a| a.setb(byte_ptr(m()))),
    Form("setbe", 1, Nothing, |a| a.setbe(byte_ptr(m()))),
    Form("sete", 1, Nothing, |a| a.sete(byte_ptr(m()))),
    Form("setg", 1, Nothing, |a| a.setg(byte_ptr(m()))),
    Form("setge", 1, Nothing, |a| a.setge(byte_ptr(m()))),
    Form("setl", 1, Nothing, |a| a.setl(byte_ptr(m()))),
    Form("setle", 1, Nothing, |a| a.setle(byte_ptr(m()))),
    Form("setne", 1, Nothing, |a| a.setne(byte_ptr(m()))),
    Form("setno", 1, Nothing, |a| a.setno(byte_ptr(m()))),
    Form("setnp", 1, Nothing, |a| a.setnp(byte_ptr(m()))),
    Form("setns", 1, Nothing, |a| a.setns(byte_ptr(m()))),
    Form("seto", 1, Nothing, |a| a.seto(byte_ptr(m()))),
    Form("setp", 1, Nothing, |a| a.setp(byte_ptr(m()))),
    Form("sets", 1, Nothing, |a| a.sets(byte_ptr(m()))),
];

#[rustfmt::skip] // a table
const COMPUTED: &[Form] = &[
    Form("push r64", 8, Nothing, |a| a.push(rdx)),
    Form("push rsp", 8, Nothing, |a| a.push(rsp)),
    Form("push r16", 2, Nothing, |a| a.push(r9w)),
    Form("push imm8", 8, Nothing, |a| a.push(-7)),
    Form("push imm32", 8, Nothing, |a| a.push(0x1234_5678)),
    Form("push m64", 8, Nothing, |a| a.push(qword_ptr(m()))),
    Form("push m16", 2, Nothing, |a| a.push(word_ptr(m()))),
    Form("push [rsp]", 8, Nothing, |a| a.push(qword_ptr(rsp + 8))),
    Form("pushfq", 8, Nothing, |a| a.pushfq()),
    Form("pushf", 2, Nothing, |a| a.pushf()),
    Form("pop m64", 8, Nothing, |a| a.pop(qword_ptr(m()))),
    Form("pop m16", 2, Nothing, |a| a.pop(word_ptr(m()))),
    Form("pop [rsp]", 8, Nothing, |a| a.pop(qword_ptr(rsp + 0x10))),
    Form("call r64", 8, Target, |a| a.call(r9)),
    Form("call m64", 8, Target, |a| a.call(qword_ptr(m()))),
    Form("call rel", 8, Nothing, |a| {
        let mut next = a.create_label();
        a.call(next)?;
        a.set_label(&mut next)?;
        a.zero_bytes()
    }),
    Form("enter", 8, Nothing, |a| a.enter(0x40, 0)),
    Form("stosb", 1, Nothing, |a| a.stosb()),
    Form("stosw", 2, Nothing, |a| a.stosw()),
    Form("stosd", 4, Nothing, |a| a.stosd()),
    Form("stosq", 8, Nothing, |a| a.stosq()),
    Form("movsb", 1, Nothing, |a| a.movsb()),
    Form("movsw", 2, Nothing, |a| a.movsw()),
    Form("movsd", 4, Nothing, |a| a.movsd()),
    Form("movsq", 8, Nothing, |a| a.movsq()),
    Form("mov sreg", 2, Nothing, |a| a.mov(word_ptr(m()), ss)),
];

#[rustfmt::skip] // a table
const EXTENDED: &[Form] = &[
    Form("movd mm", 4, Nothing, |a| a.movd(dword_ptr(m()), mm3)),
    Form("movq mm", 8, Nothing, |a| a.movq(qword_ptr(m()), mm0)),
    Form("movntq", 8, Nothing, |a| a.movntq(qword_ptr(m()), mm7)),
    Form("movd xmm", 4, Nothing, |a| a.movd(dword_ptr(m()), xmm9)),
    Form("movq xmm", 8, Nothing, |a| a.movq(qword_ptr(m()), xmm1)),
    Form("movss", 4, Nothing, |a| a.movss(dword_ptr(m()), xmm2)),
    Form("movsd xmm", 8, Nothing, |a| a.movsd_2(qword_ptr(m()), xmm3)),
    Form("movups", 16, Nothing, |a| a.movups(xmmword_ptr(m()), xmm15)),
    Form("movupd", 16, Nothing, |a| a.movupd(xmmword_ptr(m()), xmm4)),
    Form("movdqu", 16, Nothing, |a| a.movdqu(xmmword_ptr(m()), xmm5)),
    Form("movaps", 16, Alignment(16), |a| a.movaps(xmmword_ptr(m()), xmm6)),
    Form("movapd", 16, Alignment(16), |a| a.movapd(xmmword_ptr(m()), xmm7)),
    Form("movdqa", 16, Alignment(16), |a| a.movdqa(xmmword_ptr(m()), xmm8)),
    Form("movntps", 16, Alignment(16), |a| a.movntps(xmmword_ptr(m()), xmm10)),
    Form("movntpd", 16, Alignment(16), |a| a.movntpd(xmmword_ptr(m()), xmm11)),
    Form("movntdq", 16, Alignment(16), |a| a.movntdq(xmmword_ptr(m()), xmm12)),
    Form("movlps", 8, Nothing, |a| a.movlps(qword_ptr(m()), xmm13)),
    Form("movlpd", 8, Nothing, |a| a.movlpd(qword_ptr(m()), xmm14)),
    Form("movhps", 8, Nothing, |a| a.movhps(qword_ptr(m()), xmm0)),
    Form("movhpd", 8, Nothing, |a| a.movhpd(qword_ptr(m()), xmm1)),
    Form("extractps", 4, Nothing, |a| a.extractps(dword_ptr(m()), xmm2, 3)),
    Form("pextrb", 1, Nothing, |a| a.pextrb(byte_ptr(m()), xmm3, 9)),
    Form("pextrw", 2, Nothing, |a| a.pextrw(word_ptr(m()), xmm4, 5)),
    Form("pextrd", 4, Nothing, |a| a.pextrd(dword_ptr(m()), xmm5, 2)),
    Form("pextrq", 8, Nothing, |a| a.pextrq(qword_ptr(m()), xmm6, 1)),
    Form("stmxcsr", 4, Nothing, |a| a.stmxcsr(dword_ptr(m()))),
    Form("fst m32", 4, Nothing, |a| a.fst(dword_ptr(m()))),
    Form("fst m64", 8, Nothing, |a| a.fst(qword_ptr(m()))),
    Form("fstp m32", 4, Nothing, |a| a.fstp(dword_ptr(m()))),
    Form("fstp m64", 8, Nothing, |a| a.fstp(qword_ptr(m()))),
    Form("fstp m80", 10, Nothing, |a| a.fstp(tbyte_ptr(m()))),
    Form("fist m16", 2, Nothing, |a| a.fist(word_ptr(m()))),
    Form("fist m32", 4, Nothing, |a| a.fist(dword_ptr(m()))),
    Form("fistp m64", 8, Nothing, |a| a.fistp(qword_ptr(m()))),
    Form("fisttp m32", 4, Nothing, |a| a.fisttp(dword_ptr(m()))),
    Form("fbstp", 10, Nothing, |a| a.fbstp(tbyte_ptr(m()))),
    Form("fnstcw", 2, Nothing, |a| a.fnstcw(word_ptr(m()))),
    Form("fnstsw", 2, Nothing, |a| a.fnstsw(word_ptr(m()))),
    Form("fxsave", 512, Alignment(16), |a| a.fxsave(m())),
    Form("fxsave64", 512, Alignment(16), |a| a.fxsave64(m())),
];

#[rustfmt::skip] // a table
const AVX: &[Form] = &[
    Form("vmovups xmm", 16, Nothing, |a| a.vmovups(xmmword_ptr(m()), xmm3)),
    Form("vmovups ymm", 32, Nothing, |a| a.vmovups(ymmword_ptr(m()), ymm13)),
    Form("vmovaps ymm", 32, Alignment(32), |a| a.vmovaps(ymmword_ptr(m()), ymm1)),
    Form("vmovntdq ymm", 32, Alignment(32), |a| a.vmovntdq(ymmword_ptr(m()), ymm2)),
    Form("vmovdqu ymm", 32, Nothing, |a| a.vmovdqu(ymmword_ptr(m()), ymm4)),
    Form("vextractf128", 16, Nothing, |a| a.vextractf128(xmmword_ptr(m()), ymm5, 0)),
    Form("vextracti128", 16, Nothing, |a| a.vextracti128(xmmword_ptr(m()), ymm5, 0)),
    Form("vmovq", 8, Nothing, |a| a.vmovq(qword_ptr(m()), xmm6)),
    Form("vmovss", 4, Nothing, |a| a.vmovss(dword_ptr(m()), xmm7)),
    Form("vmovhps", 8, Nothing, |a| a.vmovhps(qword_ptr(m()), xmm8)),
    Form("vpextrb", 1, Nothing, |a| a.vpextrb(byte_ptr(m()), xmm9, 3)),
    Form("vpextrq", 8, Nothing, |a| a.vpextrq(qword_ptr(m()), xmm9, 1)),
    Form("vcvtps2ph", 8, Nothing, |a| a.vcvtps2ph(qword_ptr(m()), xmm9, 0)),
    Form("vstmxcsr", 4, Nothing, |a| a.vstmxcsr(dword_ptr(m()))),
];

/// A small generator, so that a failure can be repeated by its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// XCR0 of this process.
fn xcr0() -> u64 {
    // SAFETY: what needs it is tried on processors with XSAVE only.
    unsafe { std::arch::x86_64::_xgetbv(0) }
}

pub(crate) struct Bench {
    native: Native,
    own: OwnTrampoline,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { native: Native::new(), own: OwnTrampoline::new() }
    }

    fn random_registers(&self, random: &mut Random, form: &Form) -> Registers {
        let data = self.native.data.address();
        // The middle two pages, with their boundary in reach.
        let inside = |random: &mut Random| data + 0x1800 + random.below(0xc00);
        let mut general = GeneralRegisters(std::array::from_fn(|_| random.next()));
        let index = (random.below(128)).wrapping_sub(64);
        general[Register::Rcx] = index;
        general[Register::Rbx] = inside(random);
        general[Register::Rdx] = random.below(300);
        general[Register::R14] = random.below(300).wrapping_sub(150);
        for register in [Register::Rsp, Register::Rbp, Register::Rsi, Register::Rdi, Register::R10]
        {
            general[register] = inside(random);
        }
        if let Alignment(alignment) = form.2 {
            let at = general[Register::Rbx].wrapping_add(index.wrapping_mul(2)).wrapping_add(0x15);
            general[Register::Rbx] -= at % alignment;
            general[Register::R10] &= !(alignment - 1);
        }
        if form.2 == BitOffset {
            // The parts that do not count are anything; the rest is within 512 bytes.
            let bits = random.below(8192).wrapping_sub(4096);
            let mask = match form.1 {
                2 => 0xffff,
                4 => 0xffff_ffff,
                _ => u64::MAX,
            };
            general[Register::R9] = general[Register::R9] & !mask | bits & mask;
        }
        let mut fx = FxArea::INITIAL;
        let bytes = random.bytes(256);
        fx.0[160..416].copy_from_slice(&bytes);
        for register in 0..8 {
            let value = random.bytes(10);
            fx.0[32 + 16 * register..][..10].copy_from_slice(&value);
            // Some are numbers of a size that integers have.
            if random.below(2) == 0 {
                let exponent = 0x3fff + random.below(40);
                fx.0[32 + 16 * register + 8..][..2]
                    .copy_from_slice(&u16::try_from(exponent).unwrap().to_le_bytes());
                fx.0[32 + 16 * register + 7] |= 0x80;
            }
        }
        // All eight in use, top of stack anywhere.
        fx.0[4] = 0xff;
        fx.0[3] = (random.below(8) << 3) as u8;
        // Any x87 exceptions unmasked; the processor notes where they came from.
        fx.0[0] = 0x40 | random.below(64) as u8;
        // An opcode of before, which some processors keep (SDM Vol. 1, "Fopcode Compatibility Sub-mode").
        fx.0[6..8].copy_from_slice(&(random.below(0x800) as u16).to_le_bytes());
        Registers { general, flags: random.next() & 0xcd5 | 0x202, fx }
    }

    /// Runs `form` directly and emulated from one random state, and compares everything.
    fn compare(&mut self, form: &Form, seed: u64) {
        let &Form(name, bytes, needs, assemble) = form;
        let random = &mut Random(seed);
        let mut before = self.random_registers(random, form);
        let (rip, code) = self.native.assemble(&|a| assemble(a).unwrap());
        let next = rip + code.len() as u64;
        let mut data = random.bytes(DATA_BYTES);
        let operand = before.general[Register::Rbx]
            .wrapping_add(before.general[Register::Rcx].wrapping_mul(2))
            .wrapping_add(0x15);
        let first = self.native.data.address();
        let offset_of = |linear: u64| (linear - first) as usize;
        let value_at = |data: &[u8], linear: u64| {
            u64::from_le_bytes(data[offset_of(linear)..][..8].try_into().unwrap())
        };
        if needs == Target {
            before.general[Register::R9] = next;
            data[offset_of(operand)..][..8].copy_from_slice(&next.to_le_bytes());
        }
        if needs == Equal && name.starts_with("cmpxchg8b") {
            let value = value_at(&data, before.general[Register::R10]);
            before.general[Register::Rax] = value & 0xffff_ffff;
            before.general[Register::Rdx] = value >> 32;
        } else if needs == Equal {
            before.general[Register::Rax] = value_at(&data, operand);
        }

        if name.starts_with("xsave") {
            // What AMX has is longer than all data here, and no guest has it. The registers of AVX-512 are
            // this process's: the C library changes them between the two runs.
            before.general[Register::Rax] &= !(0b11 << 17 | 0b111 << 5);
        }
        self.native.data.put(0, &data);
        let mut direct = before;
        self.native.run(&mut direct);
        let direct_data = self.native.data.copy();
        self.native.data.put(0, &data);

        let context = format!("{name}, seed {seed:#x}, {code:02x?}, {:x?}", before.general);
        let mut state = Native::state(&before, rip);
        let instruction = GuestInstruction::fetch(&self.native, PAGING, &state).expect(&context);
        assert_eq!(instruction.bytes(), &code[..instruction.bytes().len()], "{context}");
        let found = Store::of(&instruction, &state).expect(&context);
        let settled = self.machine(&mut before.fx.clone()).settle(&found, &state, xcr0);
        let store = match settled {
            Err(Refusal::Unsupported(Unsupported::NoStore)) => {
                assert!(direct_data == data, "the processor stores something: {context}");
                return;
            }
            settled => settled.expect(&context),
        };
        let bytes = if found.is_open() { store.length() } else { bytes };
        assert_eq!(store.length(), bytes, "{context}");

        // On a copy: memory stays, everything else is as if it had been written.
        let start = offset_of(store.linear());
        let span = start..start + bytes;
        // What a MOV stores is told without executing it.
        let moved = store.moved(&state);
        let is_move = name.starts_with("mov ") && name != "mov sreg";
        assert_eq!(moved.is_some(), is_move, "{context}");
        if let Some(moved) = moved {
            assert_eq!(moved.bytes(), &direct_data[span.clone()], "{context}");
        }
        let mut scratch = Scratch::new(store.linear(), &data[span.clone()]);
        let mut dry = state;
        let mut dry_fx = before.fx;
        let progress = self
            .machine(&mut dry_fx)
            .complete(&store, &mut dry, &mut scratch.window())
            .expect(&context);
        assert_eq!(progress, Progress::Done, "{context}");
        let differing: Vec<_> = (0..bytes)
            .map(|at| (at, scratch.bytes()[at], direct_data[span.clone()][at]))
            .filter(|(_, ours, direct)| ours != direct)
            .collect();
        assert_eq!(differing, [], "byte, ours, the processor's: {context}");
        assert!(self.native.data.copy() == data, "a dry run writes no memory: {context}");

        // On the guest's memory.
        // SAFETY: the destination lies within the data, to which there is no reference.
        let mut window = unsafe { Window::new(self.native.data.first.wrapping_add(start), bytes) };
        let mut fx = before.fx;
        let progress =
            self.machine(&mut fx).complete(&store, &mut state, &mut window).expect(&context);
        assert_eq!(progress, Progress::Done, "{context}");
        assert!(self.native.data.copy() == direct_data, "memory differs: {context}");
        for (after, fx) in [(state, fx), (dry, dry_fx)] {
            assert_eq!(after.registers, direct.general, "{context}");
            assert_eq!(after.rip, next, "{context}");
            // All but MXCSR_MASK, which FXSAVE stores and FXRSTOR ignores.
            let differing: Vec<_> = (0..512)
                .filter(|at| !(28..32).contains(at) && fx.0[*at] != direct.fx.0[*at])
                .map(|at| format!("{at}: {:02x}, not {:02x}", fx.0[at], direct.fx.0[at]))
                .collect();
            assert!(
                differing.is_empty(),
                "extended registers {differing:?}: {context}, before {:02x?}",
                &before.fx.0[..160]
            );
            // A bit test leaves all but CF undefined, or as it was.
            let defined = if needs == BitOffset { 0x1 } else { 0xcd5 };
            assert_eq!(after.rflags & defined, direct.flags & defined, "{context}");
            assert_eq!(after.rflags & !0xcd5, before.flags & !0xcd5, "{context}");
        }
    }

    fn machine<'a>(&'a mut self, fx: &'a mut FxArea) -> Executor<'a, Native> {
        Executor {
            memory: &self.native,
            paging: PAGING,
            tables: &TABLES,
            trampoline: &mut self.own.trampoline,
            extended: Extended::Fx(fx),
        }
    }

    pub(crate) fn compare_all(&mut self, forms: &[Form]) {
        for (number, form) in forms.iter().enumerate() {
            for round in 0..200 {
                self.compare(form, (number as u64) << 32 | round);
            }
        }
    }
}

#[test]
fn general_register_stores_do_what_the_processor_does() {
    Bench::new().compare_all(GENERAL);
}

/// A trampoline keeps some instructions: here more of them than it keeps, in any order, so that each
/// is found there, put there in the place of another, or both.
#[test]
fn a_trampoline_never_runs_another_instruction_than_the_one_asked_for() {
    let mut bench = Bench::new();
    let mut random = Random(7);
    for round in 0..4000 {
        // Few at a time, and others as time goes by.
        let number = (round / 40 + random.below(12)) % GENERAL.len() as u64;
        bench.compare(&GENERAL[number as usize], random.next());
    }
}

#[test]
fn computed_stores_do_what_the_processor_does() {
    Bench::new().compare_all(COMPUTED);
}

#[test]
fn extended_stores_do_what_the_processor_does() {
    Bench::new().compare_all(EXTENDED);
}

#[test]
fn avx_stores_do_what_the_processor_does() {
    if !std::arch::is_x86_feature_detected!("avx2") || !std::arch::is_x86_feature_detected!("f16c")
    {
        println!("skipped: this processor has no AVX2 and F16C");
        return;
    }
    Bench::new().compare_all(AVX);
}

//! Runs an instruction directly on this processor, with all registers given.

use iced_x86::code_asm::{
    CodeAssembler, dword_ptr, qword_ptr, r8, r9, r10, r11, r12, r13, r14, r15, rax, rbp, rbx, rcx,
    rdi, rdx, rsi, rsp,
};
use subpage::address::Gpa;
use subpage_emulate::FxArea;
use subpage_emulate::guest::{GeneralRegisters, NotMemory, PhysicalMemory};

use crate::flat::Flat;
use crate::machine::{Pages, state_64};

/// How far into the code page the instruction under test lies.
const REGISTERS: u64 = 0;
const FLAGS: u64 = 128;
const HOST_RSP: u64 = 136;
const GUEST_FX: u64 = 512;
const HOST_FX: u64 = 1024;

/// Data, 4 pages, on which instructions work; the process's own memory, mapped to itself in a
/// guest's page tables.
pub(crate) struct Native {
    pub(crate) data: Pages,
    context: Pages,
    code: Pages,
    tables: Flat,
}

pub(crate) const DATA_BYTES: usize = 4 * 4096;

/// What an instruction works on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Registers {
    pub(crate) general: GeneralRegisters,
    pub(crate) flags: u64,
    pub(crate) fx: FxArea,
}

impl Native {
    pub(crate) fn new() -> Self {
        let tables = Flat::new(0x4000);
        // Two GiB mapped to themselves, for users too.
        tables.put(0x1000, &0x2067_u64.to_le_bytes());
        tables.put(0x2000, &0xe7_u64.to_le_bytes());
        tables.put(0x2008, &0x4000_00e7_u64.to_le_bytes());
        Self {
            data: Pages::writable(DATA_BYTES),
            context: Pages::writable(4096),
            code: Pages::executable(4096),
            tables,
        }
    }

    fn at(&self, offset: u64) -> u64 {
        self.context.address() + offset
    }

    /// Assembles what `instruction` adds, and returns its address and bytes.
    pub(crate) fn assemble(&self, instruction: &dyn Fn(&mut CodeAssembler)) -> (u64, Vec<u8>) {
        let mut before = CodeAssembler::new(64).unwrap();
        self.prologue(&mut before);
        let before = before.assemble(self.code.address()).unwrap();
        let rip = self.code.address() + before.len() as u64;
        let mut middle = CodeAssembler::new(64).unwrap();
        instruction(&mut middle);
        let middle = middle.assemble(rip).unwrap();
        let mut after = CodeAssembler::new(64).unwrap();
        self.epilogue(&mut after);
        let after = after.assemble(rip + middle.len() as u64).unwrap();
        self.code.put(0, &[&before[..], &middle[..], &after[..]].concat());
        (rip, middle)
    }

    fn prologue(&self, a: &mut CodeAssembler) {
        for register in [rbx, rbp, r12, r13, r14, r15] {
            a.push(register).unwrap();
        }
        a.fxsave64(dword_ptr(self.at(HOST_FX))).unwrap();
        a.fxrstor64(dword_ptr(self.at(GUEST_FX))).unwrap();
        a.mov(qword_ptr(self.at(HOST_RSP)), rsp).unwrap();
        a.push(qword_ptr(self.at(FLAGS))).unwrap();
        a.popfq().unwrap();
        for (number, register) in
            [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]
                .into_iter()
                .enumerate()
        {
            a.mov(register, qword_ptr(self.at(REGISTERS + 8 * number as u64))).unwrap();
        }
    }

    fn epilogue(&self, a: &mut CodeAssembler) {
        for (number, register) in
            [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]
                .into_iter()
                .enumerate()
        {
            a.mov(qword_ptr(self.at(REGISTERS + 8 * number as u64)), register).unwrap();
        }
        a.mov(rsp, qword_ptr(self.at(HOST_RSP))).unwrap();
        a.pushfq().unwrap();
        a.pop(qword_ptr(self.at(FLAGS))).unwrap();
        a.cld().unwrap();
        a.fxsave64(dword_ptr(self.at(GUEST_FX))).unwrap();
        a.fxrstor64(dword_ptr(self.at(HOST_FX))).unwrap();
        for register in [r15, r14, r13, r12, rbp, rbx] {
            a.pop(register).unwrap();
        }
        a.ret().unwrap();
    }

    /// Runs what was assembled last.
    pub(crate) fn run(&self, registers: &mut Registers) {
        const FLAG_MASK: u64 = 0xcd5;
        for (number, value) in registers.general.0.iter().enumerate() {
            self.context.put(8 * number, &value.to_le_bytes());
        }
        let flags = registers.flags & FLAG_MASK | 0x202;
        self.context.put(FLAGS as usize, &flags.to_le_bytes());
        self.context.put(GUEST_FX as usize, &registers.fx.0);
        // SAFETY: the code keeps the calling convention: it saves and restores what a callee must,
        // the stack pointer and x87/SSE control included. What lies between only accesses `data`.
        unsafe {
            let code: extern "sysv64" fn() = std::mem::transmute(self.code.first);
            code();
        }
        let context = self.context.copy();
        let number = |at: usize| u64::from_le_bytes(context[at..at + 8].try_into().unwrap());
        for (index, value) in registers.general.0.iter_mut().enumerate() {
            *value = number(8 * index);
        }
        registers.flags = registers.flags & !FLAG_MASK | number(FLAGS as usize) & FLAG_MASK;
        registers.fx.0.copy_from_slice(&context[GUEST_FX as usize..][..512]);
    }

    /// The state with which the guest stands at `rip`.
    pub(crate) fn state(registers: &Registers, rip: u64) -> subpage_emulate::guest::State {
        let mut state = state_64();
        state.registers = registers.general;
        state.rflags = registers.flags;
        state.rip = rip;
        state
    }

    fn pages(&self) -> [&Pages; 2] {
        [&self.data, &self.code]
    }
}

impl PhysicalMemory for Native {
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        for pages in self.pages() {
            let offset = gpa.as_u64().wrapping_sub(pages.address());
            if offset < pages.bytes as u64 && buffer.len() as u64 <= pages.bytes as u64 - offset {
                let from = pages.first.wrapping_add(offset as usize);
                // SAFETY: within the mapping, which is readable.
                unsafe { from.copy_to_nonoverlapping(buffer.as_mut_ptr(), buffer.len()) };
                return Ok(());
            }
        }
        self.tables.read(gpa, buffer)
    }

    fn write(&self, _: Gpa, _: &[u8]) -> Result<(), NotMemory> {
        panic!("emulation writes through windows only")
    }

    fn set_bits(&self, gpa: Gpa, current: u64, bits: u64) -> Result<Result<(), u64>, NotMemory> {
        self.tables.set_bits(gpa, current, bits)
    }
}

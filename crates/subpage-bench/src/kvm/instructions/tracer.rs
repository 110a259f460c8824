//! A thread executed step by step, by ptrace.

use std::collections::{BTreeMap, HashMap, HashSet};

use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register,
};
use libc::user_regs_struct;
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The request that enters the guest (Linux, `include/uapi/linux/kvm.h`).
const KVM_RUN: u64 = 0xae80;

const IOCTL: u64 = libc::SYS_ioctl as u64;

/// More instructions than any turn has.
const LIMIT: usize = 4_000_000;

/// RFLAGS.TF.
const TRAP_FLAG: u64 = 1 << 8;

const LINE_BYTES: u64 = 64;
const PAGE_BYTES: u64 = 4096;
const INSTRUCTION_BYTES: usize = 15;

/// What a thread executed from one return of `KVM_RUN` to its next call, the call included.
#[derive(Debug, Default)]
pub(super) struct Turn {
    executed: BTreeMap<u64, u64>,
    /// Calls of the kernel in between.
    pub(super) system_calls: u64,
    /// By number of the line.
    code: HashSet<u64>,
    data: HashSet<u64>,
}

impl Turn {
    /// How many. A repeated string instruction is one.
    pub(super) fn instructions(&self) -> u64 {
        self.executed.values().sum()
    }

    /// How often which was executed, by address.
    pub(super) fn by_address(&self) -> impl Iterator<Item = (u64, u64)> {
        self.executed.iter().map(|(address, times)| (*address, *times))
    }

    /// Lines of 64 bytes that instructions were fetched from.
    pub(super) fn code_lines(&self) -> u64 {
        self.code.len() as u64
    }

    /// Lines of 64 bytes that instructions read or wrote.
    pub(super) fn data_lines(&self) -> u64 {
        self.data.len() as u64
    }

    /// Pages of 4 KiB of both.
    pub(super) fn pages(&self) -> u64 {
        let page = |line: &u64| line / (PAGE_BYTES / LINE_BYTES);
        self.code.union(&self.data).map(page).collect::<HashSet<_>>().len() as u64
    }
}

/// The tracer of a thread, which is stopped.
pub(super) struct Tracer {
    thread: Pid,
    /// Decoded, by address.
    known: HashMap<u64, Instruction>,
    factory: InstructionInfoFactory,
}

impl Tracer {
    /// Stops a thread of another process. It ends with this one.
    pub(super) fn seize(thread: Pid) -> nix::Result<Self> {
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
        ptrace::seize(thread, options)?;
        ptrace::interrupt(thread)?;
        let tracer = Self { thread, known: HashMap::new(), factory: InstructionInfoFactory::new() };
        tracer.wait()?;
        Ok(tracer)
    }

    fn wait(&self) -> nix::Result<WaitStatus> {
        wait(self.thread)
    }

    /// Executes one turn that does not begin with a signal.
    pub(super) fn turn(&mut self) -> nix::Result<Turn> {
        self.leave_guest()?;
        let mut turn = Turn::default();
        let mut before = None;
        for _ in 0..LIMIT {
            let registers = ptrace::getregs(self.thread)?;
            let instruction = self.instruction_at(registers.rip)?;
            // A step is one element of a repeated instruction.
            if !(is_repeated(&instruction) && before == Some(registers.rip)) {
                *turn.executed.entry(registers.rip).or_default() += 1;
            }
            before = Some(registers.rip);
            self.note_lines(&mut turn, &instruction, &registers);
            if instruction.mnemonic() == Mnemonic::Syscall {
                if enters_guest(registers.rax, &registers) {
                    self.end_steps(registers)?;
                    return Ok(turn);
                }
                turn.system_calls += 1;
            }
            // Signals only get a processor out of the guest: it is out.
            ptrace::step(self.thread, None)?;
            self.wait()?;
        }
        Err(Errno::ELOOP)
    }

    /// What saves flags while it is executed step by step, and restores them, leaves the trap flag set.
    fn end_steps(&self, mut registers: user_regs_struct) -> nix::Result<()> {
        registers.eflags &= !TRAP_FLAG;
        ptrace::setregs(self.thread, registers)
    }

    /// Lets the thread run until `KVM_RUN` returns for an exit of the guest.
    fn leave_guest(&self) -> nix::Result<()> {
        let mut signal = None;
        loop {
            ptrace::syscall(self.thread, signal.take())?;
            match self.wait()? {
                WaitStatus::PtraceSyscall(_) => {
                    let registers = ptrace::getregs(self.thread)?;
                    let left =
                        ptrace::syscall_info(self.thread)?.op == libc::PTRACE_SYSCALL_INFO_EXIT;
                    if left
                        && enters_guest(registers.orig_rax, &registers)
                        && !was_interrupted(registers.rax)
                    {
                        return Ok(());
                    }
                }
                // A step's own, late.
                WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
                WaitStatus::Stopped(_, caught) => signal = Some(caught),
                _ => {}
            }
        }
    }

    fn instruction_at(&mut self, address: u64) -> nix::Result<Instruction> {
        if let Some(known) = self.known.get(&address) {
            return Ok(*known);
        }
        let mut bytes = [0; 16];
        for (number, word) in bytes.chunks_exact_mut(8).enumerate() {
            let at = address.wrapping_add(8 * number as u64);
            let at = std::ptr::without_provenance_mut(usize::try_from(at).expect("64 bits"));
            match ptrace::read(self.thread, at) {
                Ok(value) => word.copy_from_slice(&value.to_le_bytes()),
                // The instruction is the last of its mapping.
                Err(_) if number > 0 => {}
                Err(error) => return Err(error),
            }
        }
        let code = &bytes[..INSTRUCTION_BYTES];
        let instruction = Decoder::with_ip(64, code, address, DecoderOptions::NONE).decode();
        self.known.insert(address, instruction);
        Ok(instruction)
    }

    fn note_lines(
        &mut self,
        turn: &mut Turn,
        instruction: &Instruction,
        registers: &user_regs_struct,
    ) {
        turn.code.extend(lines(instruction.ip(), instruction.len() as u64));
        for used in self.factory.info(instruction).used_memory() {
            if matches!(used.access(), OpAccess::None | OpAccess::NoMemAccess) {
                continue;
            }
            let value = |register, _, _| Some(value_of(register, registers));
            if let Some(address) = used.virtual_address(0, value) {
                turn.data.extend(lines(address, used.memory_size().size().max(1) as u64));
            }
        }
    }
}

/// Waits until a traced thread stops. An error if it ends.
fn wait(thread: Pid) -> nix::Result<WaitStatus> {
    match waitpid(thread, Some(WaitPidFlag::__WALL))? {
        WaitStatus::Exited(..) | WaitStatus::Signaled(..) => Err(Errno::ESRCH),
        stopped => Ok(stopped),
    }
}

/// Waits until a traced thread whose process was killed is over.
pub(super) fn wait_for_end(thread: Pid) {
    while wait(thread).is_ok() {}
}

fn lines(first: u64, bytes: u64) -> std::ops::RangeInclusive<u64> {
    first / LINE_BYTES..=first.saturating_add(bytes - 1) / LINE_BYTES
}

const fn enters_guest(number: u64, registers: &user_regs_struct) -> bool {
    number == IOCTL && registers.rsi == KVM_RUN
}

fn was_interrupted(result: u64) -> bool {
    [libc::EINTR, libc::EAGAIN]
        .contains(&-result.cast_signed().clamp(-4095, 0).try_into().unwrap_or(0))
}

fn is_repeated(instruction: &Instruction) -> bool {
    instruction.has_rep_prefix() || instruction.has_repne_prefix()
}

/// The value of a register of an address.
fn value_of(register: Register, registers: &user_regs_struct) -> u64 {
    let whole = match register.full_register() {
        Register::RAX => registers.rax,
        Register::RCX => registers.rcx,
        Register::RDX => registers.rdx,
        Register::RBX => registers.rbx,
        Register::RSP => registers.rsp,
        Register::RBP => registers.rbp,
        Register::RSI => registers.rsi,
        Register::RDI => registers.rdi,
        Register::R8 => registers.r8,
        Register::R9 => registers.r9,
        Register::R10 => registers.r10,
        Register::R11 => registers.r11,
        Register::R12 => registers.r12,
        Register::R13 => registers.r13,
        Register::R14 => registers.r14,
        Register::R15 => registers.r15,
        Register::FS => registers.fs_base,
        Register::GS => registers.gs_base,
        // The bases of the others are 0 in 64-bit code.
        _ => 0,
    };
    if register.is_gpr32() { whole & 0xffff_ffff } else { whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_signals_are_known() {
        for error in [libc::EINTR, libc::EAGAIN] {
            assert!(was_interrupted(i64::from(-error).cast_unsigned()));
        }
        for other in [0, 1, i64::from(-libc::EFAULT).cast_unsigned(), u64::MAX] {
            assert!(!was_interrupted(other), "{other:#x}");
        }
    }

    #[test]
    fn lines_are_those_that_bytes_lie_in() {
        assert_eq!(lines(0x103f, 1), 0x40..=0x40);
        assert_eq!(lines(0x103f, 2), 0x40..=0x41);
        assert_eq!(lines(0x1040, 64), 0x41..=0x41);
    }
}

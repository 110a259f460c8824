//! One guest that executes one piece of code after the other, from given registers.
//!
//! Between two pieces the processor is halted from outside. Starting a piece is setting the
//! registers; it has ended when a byte of memory says so. That takes no register and no flag, so all
//! of them can be compared.

use std::time::{Duration, Instant};

use iced_x86::code_asm::byte_ptr;
use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs};
use subpage_emulate::XsaveArea;
use subpage_kvm::vcpu::Processor;
use subpage_kvm::vm::{Configuration, Ending};

use crate::guest::{CODE, Guest, assemble};
use crate::privilege::{Level, enable_avx, place, write_tables};

/// The byte that becomes 1 at the end of a piece.
pub(crate) const FLAG: u64 = 0x60_0000;

/// Longer than any piece takes.
const LIMIT: Duration = Duration::from_secs(60);

/// Registers, before a piece of code or after it.
#[derive(Debug, Clone)]
pub(crate) struct Registers {
    pub(crate) general: kvm_regs,
    pub(crate) extended: Box<XsaveArea>,
}

/// Such a guest.
pub(crate) struct Stepper {
    pub(crate) guest: Guest,
}

impl Stepper {
    /// Starts the guest; `window` is that of [`write_tables`].
    pub(crate) fn new(configuration: &Configuration, level: Level, window: &[Option<u64>]) -> Self {
        let mut guest = Guest::new(configuration, spin);
        write_tables(&guest, window);
        guest.vm.with_processors(|processors| {
            place(processors, CODE, &[level]);
            halt(processors[0]);
            enable_avx(processors[0]);
        });
        guest.vm.start().expect("threads");
        Self { guest }
    }

    /// The code that executes `code` at `rip` and then spins.
    pub(crate) fn piece(rip: u64, code: &[u8]) -> Vec<u8> {
        let tail = assemble(rip + code.len() as u64, |code| {
            code.mov(byte_ptr(FLAG), 1).unwrap();
            spin(code);
        });
        [code, &tail].concat()
    }

    /// Executes `code` at `general.rip`. Fails if the guest ends.
    pub(crate) fn step(&self, code: &[u8], before: &Registers) -> Result<Registers, Ending> {
        self.start(code, before);
        self.finish()
    }

    /// Starts `code` at `general.rip`.
    pub(crate) fn start(&self, code: &[u8], before: &Registers) {
        let rip = before.general.rip;
        self.guest.write(FLAG, &[0]);
        self.guest.write(rip, &Self::piece(rip, code));
        self.guest.vm.with_processors(|processors| {
            let processor = &processors[0];
            processor.fd.set_regs(&before.general).unwrap();
            processor.set_extended(&before.extended).unwrap();
            set_activity(processor, KVM_MP_STATE_RUNNABLE);
        });
    }

    /// Waits for the end of the piece.
    pub(crate) fn finish(&self) -> Result<Registers, Ending> {
        let deadline = Instant::now() + LIMIT;
        while self.guest.read(FLAG) == [0] {
            if let Some(ending) = self.guest.vm.wait(Duration::ZERO) {
                return Err(ending);
            }
            assert!(Instant::now() < deadline, "the guest does not get to the end of its code");
            std::thread::sleep(Duration::from_micros(10));
        }
        Ok(self.guest.vm.with_processors(|processors| {
            let processor = &processors[0];
            let general = processor.fd.get_regs().unwrap();
            let extended = processor.extended().unwrap();
            halt(processor);
            Registers { general, extended }
        }))
    }
}

/// Lets a processor wait as if for an interrupt, of which there is none.
fn halt(processor: &Processor) {
    const INTERRUPTS: u64 = 1 << 9;
    let mut general = processor.fd.get_regs().unwrap();
    general.rflags |= INTERRUPTS;
    processor.fd.set_regs(&general).unwrap();
    set_activity(processor, KVM_MP_STATE_HALTED);
}

fn set_activity(processor: &Processor, mp_state: u32) {
    processor.fd.set_mp_state(kvm_mp_state { mp_state }).unwrap();
}

pub(crate) fn spin(code: &mut iced_x86::code_asm::CodeAssembler) {
    let mut here = code.create_label();
    code.set_label(&mut here).unwrap();
    code.jmp(here).unwrap();
}

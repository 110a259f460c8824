//! Starting the guest, and starting it again.

use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

use super::{Paused, VmError, VmShared};
use crate::boot::{self, Boot};
use crate::devices::PanicReport;
use crate::ending::{Ending, Failure};
use crate::snapshot::{Chips, ProcessorState};
use crate::vcpu::Processor;

/// What a reset goes back to.
pub(crate) struct Start {
    image: PathBuf,
    initrd: Option<PathBuf>,
    command_line: String,
    load_address: Option<u64>,
    /// Where rules and names expect the kernel.
    slide: Option<u64>,
    processors: Vec<ProcessorState>,
    chips: Chips,
}

impl Start {
    /// Keeps what is needed to start again; the processors are set up.
    pub(crate) fn new(
        machine: &VmShared,
        paused: &Paused<'_>,
        request: &boot::Request<'_>,
        boot: &Boot,
    ) -> Result<Self, VmError> {
        let processors = paused
            .processors
            .iter()
            .map(|processor| ProcessorState::at_rest(processor, &machine.msrs))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            image: request.image.to_owned(),
            initrd: request.initrd.map(Path::to_owned),
            command_line: request.command_line.to_owned(),
            load_address: request.load_address,
            slide: boot.image.kernel.map(|kernel| kernel.slide),
            processors,
            chips: Chips::save(&machine.vm)?,
        })
    }
}

/// Sets the processors up: the first at the guest's entry, the others waiting to be started.
pub(super) fn set_up(processors: &[MutexGuard<'_, Processor>], boot: &Boot) -> Result<(), VmError> {
    for processor in processors {
        if processor.number == 0 {
            processor.start_at(&boot.registers(), |from| boot.special_registers(from))?;
        } else {
            processor.wait_for_start_up()?;
        }
    }
    Ok(())
}

impl VmShared {
    /// The guest asks for a reset: everything but memory and the guard goes back to the start, and
    /// the image is loaded anew. Rules stay (contract C5), and so do "allow once" rules that were
    /// used.
    pub(crate) fn reset(&self) {
        if !self.reboots {
            self.end_by_reset();
            return;
        }
        let mut paused = self.vcpus.pause();
        if let Err(error) = self.try_reset(&mut paused) {
            drop(paused);
            let reason = format!("it cannot be started again: {error}");
            self.end(Ending::Failed(Failure::new(0, reason)));
        }
    }

    /// Ends a guest that is not started again: by the reset that it asked for, or by the panic before it.
    fn end_by_reset(&self) {
        self.end(match self.ports().panic() {
            Some(PanicReport { reason, lines }) => Ending::Panicked { reason, console: lines },
            None => Ending::Reset,
        });
    }

    fn try_reset(&self, paused: &mut Paused<'_>) -> Result<(), VmError> {
        let start = self.start.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(start) = start.as_ref() else {
            // A restored guest has no image.
            self.end_by_reset();
            return Ok(());
        };
        let request = boot::Request {
            image: &start.image,
            initrd: start.initrd.as_deref(),
            command_line: &start.command_line,
            load_address: start.load_address,
            slide: start.slide,
            cpus: u32::try_from(paused.processors.len()).expect("a u32 was asked for"),
        };
        // A debugger's breakpoints come again, into what is loaded.
        let boot = self.without_breakpoints(|| boot::load(&self.ram, &request))?;
        self.ports().reset();
        start.chips.restore(&self.vm)?;
        for (state, processor) in start.processors.iter().zip(&mut paused.processors) {
            // What is left of an exit would come back as a change of the new registers. Whatever else
            // KVM reports of it is of no interest any more.
            let _ = processor.complete_exit();
            state.restore(processor)?;
        }
        set_up(&paused.processors, &boot)
    }
}

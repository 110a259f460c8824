//! Saving a guest, and going on with a saved one.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use subpage::address::{Gfn, GfnRange, Gpa};
use subpage::rules::RuleId;

use super::{Configuration, Paused, Vm, VmError, VmShared};
use crate::boot::FirstProgram;
use crate::guard::ChangeError;
use crate::memory::MemoryAlias;
use crate::snapshot::{Chips, Header, ProcessorState, Reader, SnapshotError, Writer};
use crate::trap::PageSet;

impl VmShared {
    /// Stops all processors where no rule is about to come into force: the guest does not come to the same
    /// moment again.
    fn pause_between_moments(&self) -> Paused<'_> {
        loop {
            let paused = self.vcpus.pause();
            if !self.waiting().is_due() {
                return paused;
            }
            drop(paused);
            std::thread::yield_now();
        }
    }

    /// Saves the guest as it is between two instructions; it goes on afterwards. How many bytes the
    /// file has.
    pub(crate) fn save(&self, path: &Path) -> Result<u64, SnapshotError> {
        // What can fail early does so before the guest is stopped.
        let writer = Writer::create(path)?;
        let mut paused = self.pause_between_moments();
        // Each lock by itself: others take the guard's first.
        let ports = self.ports().save();
        let waiting = self.waiting().saved();
        let held_tables = runs(self.guard().traps().tables());
        let processors = paused
            .processors
            .iter_mut()
            .map(|processor| ProcessorState::save(processor, &self.msrs))
            .collect::<Result<_, _>>()?;
        let header = Header {
            cpus: u32::try_from(paused.processors.len()).expect("a u32 was asked for"),
            memory: self.ram.bytes(),
            alias: self.ram.alias().map(|alias| {
                let MemoryAlias { pages, original } = alias;
                (pages.first().as_u64(), pages.pages(), original.as_u64())
            }),
            features: self.features.clone(),
            feature_choice: self.feature_choice.to_string(),
            processors,
            chips: Chips::save(&self.vm)?,
            ports,
            waiting,
            first_program: self
                .events
                .first_program()
                .map(|(rule, write)| (rule.0, write.at.as_u64(), write.running)),
            kernel_slide: self.kernel_slide.get().copied(),
            held_tables,
        };
        let state = self
            .guard()
            .domain()
            .export()
            .map_err(|error| SnapshotError::Content(error.to_string()))?;
        self.without_breakpoints(|| writer.write(&header, &state, &self.ram))
    }
}

/// A second address of memory as a snapshot has it: first frame, count, first original frame.
fn alias((first, pages, original): (u64, u64, u64)) -> Result<MemoryAlias, SnapshotError> {
    let wrong = || SnapshotError::Content(format!("a second address at frame {first:#x}"));
    let pages = Gfn::try_new(first).ok().and_then(|first| GfnRange::new(first, pages).ok());
    let original = Gfn::try_new(original).map_err(|_| wrong())?;
    Ok(MemoryAlias { pages: pages.ok_or_else(wrong)?, original })
}

fn runs(pages: &PageSet) -> Vec<(u64, u64)> {
    pages.runs().map(|run| (run.first().as_u64(), run.pages())).collect()
}

impl Vm {
    /// Makes a machine that goes on where a saved guest was, under the rules that it had.
    ///
    /// Processors, their features and memory are the snapshot's; everything else comes from `configuration`.
    pub fn restore(
        path: &Path,
        configuration: &Configuration,
        serial: Box<dyn Write + Send>,
    ) -> Result<Self, VmError> {
        let (reader, header) = Reader::open(path)?;
        let (cpus, memory) = (header.cpus, header.memory);
        if header.processors.len() != cpus as usize {
            let other = SnapshotError::OtherMachine { cpus, memory };
            return Err(other.into());
        }
        let alias = header.alias.map(alias).transpose()?;
        let features = header.feature_choice.parse()?;
        let configuration =
            Configuration { cpus, memory, alias, features, ..configuration.clone() };
        let vm = Self::new(&configuration, serial)?;
        let machine = Arc::clone(&vm.machine);
        let (gone, new) = header.features.differences(&machine.features);
        if !gone.is_empty() || !new.is_empty() {
            return Err(SnapshotError::OtherProcessor { gone, new }.into());
        }
        let state = reader.finish(&machine.ram)?;
        machine.guard().import(&machine.ram, &state)?;
        let watched = header.first_program.map(|(rule, ..)| RuleId(rule));
        let mut waiting = Vec::new();
        for active in machine.guard().domain().rules().iter() {
            if !active.armed {
                waiting.push(active.id);
            }
            if Some(active.id) != watched {
                machine.metrics.rule_added(active.rule.name.as_str());
            }
        }
        let mut paused = machine.vcpus.pause();
        header.chips.restore(&machine.vm)?;
        for (saved, processor) in header.processors.iter().zip(&mut paused.processors) {
            saved.restore(processor)?;
        }
        machine
            .ports()
            .restore(&header.ports)
            .map_err(|error| SnapshotError::Content(error.to_string()))?;
        machine.waiting().restore(&waiting, &header.waiting);
        if let Some((rule, at, running)) = header.first_program
            && let Ok(at) = Gpa::try_new(at)
        {
            machine.events.watch_first_program(RuleId(rule), FirstProgram { at, running });
            machine.guard().hide(RuleId(rule));
        }
        if let Some(slide) = header.kernel_slide {
            machine.kernel_slide.set(slide).expect("a new machine has no kernel");
        }
        machine.hold_again(&paused, &header.held_tables);
        drop(paused);
        Ok(vm)
    }

    /// Saves the guest; it goes on afterwards. How many bytes the file has.
    pub fn save(&self, path: &Path) -> Result<u64, VmError> {
        Ok(self.machine.save(path)?)
    }
}

impl From<crate::trap::TrapError> for VmError {
    fn from(error: crate::trap::TrapError) -> Self {
        ChangeError::from(error).into()
    }
}

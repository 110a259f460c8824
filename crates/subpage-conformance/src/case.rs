//! A case as it is generated, shrunk, saved and sent.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use subpage_vmx::conformance::execute::stored;
use subpage_vmx::conformance::format::{
    ARENA_WORDS, BatchHeader, CaseHeader, SIGNATURE, StepHeader, VERSION, control, mode,
};
use zerocopy::IntoBytes;

use crate::instruction::Instruction;
use crate::layout::{self, frame, harness};

/// Instructions of a step, at most: the longest takes 60 bytes of the code page.
const MAX_INSTRUCTIONS: usize = 32;

/// One word to be stored: index in the arena, value.
pub(crate) type Word = (u32, u64);

/// The privilege and the controls of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools)] // five independent bits of three registers
pub(crate) struct Mode {
    /// CPL 3.
    pub(crate) user: bool,
    /// CR0.WP.
    pub(crate) write_protect: bool,
    /// CR4.SMEP.
    pub(crate) smep: bool,
    /// CR4.SMAP.
    pub(crate) smap: bool,
    /// RFLAGS.AC.
    pub(crate) alignment_check: bool,
}

/// CPL 0 with CR0.WP.
impl Default for Mode {
    fn default() -> Self {
        let [user, smep, smap, alignment_check] = [false; 4];
        Self { user, write_protect: true, smep, smap, alignment_check }
    }
}

impl Mode {
    /// The bits of the format.
    pub(crate) fn bits(self) -> u32 {
        let bit = |set, bit| if set { bit } else { 0 };
        bit(self.user, mode::USER)
            | bit(self.write_protect, mode::WRITE_PROTECT)
            | bit(self.smep, mode::SMEP)
            | bit(self.smap, mode::SMAP)
            | bit(self.alignment_check, mode::ALIGNMENT_CHECK)
    }
}

/// One entry of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Step {
    /// In which state.
    #[serde(default)]
    pub(crate) mode: Mode,
    /// What the host stores first.
    pub(crate) stores: Vec<Word>,
    /// What the guest then does, until something exits.
    pub(crate) instructions: Vec<Instruction>,
}

/// One case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Case {
    /// The control "sub-page write permissions for EPT".
    pub(crate) sub_page: bool,
    /// EPTP bit 6.
    pub(crate) accessed_dirty: bool,
    /// CR3.
    pub(crate) cr3: u64,
    /// Tables and data at the start, behind [`layout::template`].
    pub(crate) stores: Vec<Word>,
    /// What happens.
    pub(crate) steps: Vec<Step>,
}

impl Case {
    /// A case without tables.
    pub(crate) fn new(sub_page: bool, accessed_dirty: bool) -> Self {
        Self {
            sub_page,
            accessed_dirty,
            cr3: harness(frame::GUEST_L4),
            stores: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// Instructions that access memory on purpose.
    pub(crate) fn accesses(&self) -> usize {
        self.steps.iter().map(|step| step.instructions.len()).sum()
    }

    /// Checks what a file may have wrong: the executor takes no store outside of the arena, a step's
    /// code has one page, and not every operand can be predicted.
    pub(crate) fn check(&self) -> Result<()> {
        let stores = self.steps.iter().flat_map(|step| &step.stores).chain(&self.stores);
        if let Some((word, _)) = stores.into_iter().find(|(word, _)| *word as usize >= ARENA_WORDS)
        {
            bail!("a store names word {word} of an arena of {ARENA_WORDS} words");
        }
        for step in &self.steps {
            if step.instructions.len() > MAX_INSTRUCTIONS {
                bail!("a step has more than {MAX_INSTRUCTIONS} instructions");
            }
            if let Some(instruction) = step.instructions.iter().find(|it| !it.is_sound()) {
                bail!("an instruction has operands that nothing is predicted for: {instruction}");
            }
            let late = step.instructions.iter().skip(1).any(Instruction::needs_initial_flags);
            let ends = step.instructions.iter().rev().skip(1).any(|it| !it.continues());
            if late || ends {
                bail!(
                    "an INT is not the first instruction of its step, or a step continues behind one"
                );
            }
        }
        Ok(())
    }

    fn write(&self, number: u32, bytes: &mut Vec<u8>) {
        let bit = |set, bit| if set { bit } else { 0 };
        let controls = bit(self.sub_page, control::SUB_PAGE)
            | bit(self.accessed_dirty, control::ACCESSED_DIRTY);
        let header = CaseHeader {
            number: number.into(),
            controls: controls.into(),
            ept: frame::EPT_L4.into(),
            sppt: frame::SPPT_L4.into(),
            cr3: self.cr3.into(),
            stores: length(self.stores.len()).into(),
            steps: length(self.steps.len()).into(),
        };
        bytes.extend_from_slice(header.as_bytes());
        write_stores(&self.stores, bytes);
        for step in &self.steps {
            let own = crate::code::words(step);
            let stores = length(step.stores.len() + own.len());
            let header = StepHeader { mode: step.mode.bits().into(), stores: stores.into() };
            bytes.extend_from_slice(header.as_bytes());
            write_stores(&step.stores, bytes);
            write_stores(&own, bytes);
        }
    }
}

/// Lengths of vectors that this program made.
fn length(length: usize) -> u32 {
    u32::try_from(length).expect("a case has fewer than 2^32 parts")
}

fn write_stores(words: &[Word], bytes: &mut Vec<u8>) {
    for (word, value) in words {
        bytes.extend_from_slice(stored(*word, *value).as_bytes());
    }
}

/// The bytes of a batch; case i has the number i.
pub(crate) fn batch(cases: &[Case]) -> Vec<u8> {
    let template = layout::template();
    let mut bytes = vec![0; size_of::<BatchHeader>()];
    write_stores(template, &mut bytes);
    for (number, case) in (0..).zip(cases) {
        case.write(number, &mut bytes);
    }
    let header = BatchHeader {
        signature: SIGNATURE,
        version: VERSION.into(),
        bytes: length(bytes.len()).into(),
        stores: length(template.len()).into(),
        cases: length(cases.len()).into(),
    };
    bytes[..size_of::<BatchHeader>()].copy_from_slice(header.as_bytes());
    bytes
}

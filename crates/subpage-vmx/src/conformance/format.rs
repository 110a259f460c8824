//! A batch of cases as bytes: little-endian, no padding, every length checked before a case runs.
//!
//! ```text
//! header | template: stores | case: header, stores, steps | case ...
//!                                                 step: header, stores
//! ```
//! The template's stores are made before those of each case, on an arena full of zeros.

use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First byte of the arena in host-physical memory, a multiple of 2 MiB.
pub const ARENA: u64 = 0x0C00_0000;
/// Frames of 4 KiB in the arena.
pub const ARENA_FRAMES: usize = 48;
/// Words of 8 bytes in the arena.
pub const ARENA_WORDS: usize = ARENA_FRAMES * 512;

/// Version of this format, of the answers and of the guest's state at entry.
pub const VERSION: u32 = 2;

/// First bytes of a batch.
pub const SIGNATURE: [u8; 8] = *b"SPPCASES";

/// The guest's state at each entry: 64-bit mode, paging on, EFER.NXE set, protection keys and CET
/// off, SSE and AVX usable, RFLAGS 2, all general registers 0 but RSP; what a step's [`mode`] says
/// comes on top. Every exception exits, and so does VMCALL; nothing else is intercepted.
pub mod guest {
    /// Linear address of the first instruction.
    pub const RIP: u64 = 0x20_0000;
    /// Linear address in RSP: the end of a page.
    pub const RSP: u64 = 0x20_2000;
    /// Linear address of the IDT, of 128 gates.
    pub const IDT: u64 = 0x20_2000;
    /// Linear address of the GDT: null, code, data, task state segment, user data, user code.
    pub const GDT: u64 = 0x20_2800;
    /// Size of the IDT in bytes.
    pub const IDT_BYTES: u16 = 0x800;
    /// Size of the GDT in bytes.
    pub const GDT_BYTES: u16 = 56;
    /// Linear address of the task state segment: RSP0 is all that is used of it.
    pub const TASK_STATE: u64 = 0x20_2A00;
    /// Selector in CS at CPL 0.
    pub const CODE: u16 = 0x08;
    /// Selector in SS, DS and ES at CPL 0.
    pub const DATA: u16 = 0x10;
    /// Selector in TR.
    pub const TASK: u16 = 0x18;
    /// Selector in SS, DS and ES at CPL 3.
    pub const USER_DATA: u16 = 0x2B;
    /// Selector in CS at CPL 3.
    pub const USER_CODE: u16 = 0x33;
}

/// Bits of [`StepHeader::mode`].
pub mod mode {
    /// CPL 3.
    pub const USER: u32 = 1 << 0;
    /// CR0.WP.
    pub const WRITE_PROTECT: u32 = 1 << 1;
    /// CR4.SMEP.
    pub const SMEP: u32 = 1 << 2;
    /// CR4.SMAP.
    pub const SMAP: u32 = 1 << 3;
    /// RFLAGS.AC; CR0.AM is 0.
    pub const ALIGNMENT_CHECK: u32 = 1 << 4;
    /// Every defined bit.
    pub const ALL: u32 = USER | WRITE_PROTECT | SMEP | SMAP | ALIGNMENT_CHECK;
}

/// Bits of [`CaseHeader::controls`].
pub mod control {
    /// The control "sub-page write permissions for EPT" is set, and SPPTP is loaded.
    pub const SUB_PAGE: u32 = 1 << 0;
    /// EPTP bit 6: accessed and dirty flags for EPT.
    pub const ACCESSED_DIRTY: u32 = 1 << 1;
    /// Every defined bit.
    pub const ALL: u32 = SUB_PAGE | ACCESSED_DIRTY;
}

/// Start of a batch.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BatchHeader {
    /// [`SIGNATURE`].
    pub signature: [u8; 8],
    /// [`VERSION`].
    pub version: U32,
    /// Bytes of the whole batch, this header included; a file may be longer.
    pub bytes: U32,
    /// Stores of the template.
    pub stores: U32,
    /// Cases.
    pub cases: U32,
}

/// Start of a case.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CaseHeader {
    /// Number that the answers repeat.
    pub number: U32,
    /// [`control`] bits.
    pub controls: U32,
    /// Frame of the arena that EPTP names.
    pub ept: U32,
    /// Frame of the arena that SPPTP names, if used.
    pub sppt: U32,
    /// CR3.
    pub cr3: U64,
    /// Stores before the first step.
    pub stores: U32,
    /// Steps: each is one entry of the guest.
    pub steps: U32,
}

/// Start of a step.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct StepHeader {
    /// [`mode`] bits.
    pub mode: U32,
    /// Stores before the entry.
    pub stores: U32,
}

/// One word to be stored: 12 bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Store {
    /// Index of the word in the arena, below [`ARENA_WORDS`].
    pub word: U32,
    /// What it becomes.
    pub value: U64,
}

/// Why bytes are not a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FormatError {
    /// The bytes do not begin as a batch does.
    #[error("this is not a batch of conformance cases")]
    Signature,
    /// The batch is of another version.
    #[error("the batch has version {0}, this executor reads {VERSION}")]
    Version(u32),
    /// The batch ends early.
    #[error("the batch is cut off at byte {0}")]
    CutOff(usize),
    /// Bytes are left behind the last case.
    #[error("{0} bytes are left behind the last case")]
    Left(usize),
    /// A store names a word outside of the arena.
    #[error("a store names word {0} of an arena of {ARENA_WORDS} words")]
    Word(u32),
    /// A table pointer names a frame outside of the arena.
    #[error("a pointer names frame {0} of an arena of {ARENA_FRAMES} frames")]
    Frame(u32),
    /// A case sets controls that this version does not define.
    #[error("a case has unknown controls {0:#x}")]
    Controls(u32),
    /// A step asks for a mode that this version does not define.
    #[error("a step has an unknown mode {0:#x}")]
    Mode(u32),
}

/// A batch whose every length and index has been checked.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    template: &'a [Store],
    cases: u32,
    bytes: &'a [u8],
}

/// One case of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// Its numbers.
    pub header: &'a CaseHeader,
    /// Stores before the first step, behind those of the template.
    pub stores: &'a [Store],
    steps: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Checks a whole batch; bytes behind its stated end are ignored.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let mut reader = Reader { bytes, at: 0 };
        let header: &BatchHeader = reader.take().map_err(|_| FormatError::Signature)?;
        if header.signature != SIGNATURE {
            return Err(FormatError::Signature);
        }
        if header.version.get() != VERSION {
            return Err(FormatError::Version(header.version.get()));
        }
        let end = usize::try_from(header.bytes.get()).unwrap_or(usize::MAX);
        reader.bytes = bytes.get(..end).ok_or(FormatError::CutOff(bytes.len()))?;
        let template = reader.stores(header.stores.get())?;
        let start = reader.at.min(reader.bytes.len());
        let batch = Self { template, cases: header.cases.get(), bytes: &reader.bytes[start..] };
        for _ in 0..batch.cases {
            reader.case()?.check()?;
        }
        match reader.bytes.len() - start - (reader.at - start) {
            0 => Ok(batch),
            left => Err(FormatError::Left(left)),
        }
    }

    /// Stores that every case begins with.
    pub const fn template(&self) -> &'a [Store] {
        self.template
    }

    /// The cases in order.
    pub fn cases(&self) -> impl ExactSizeIterator<Item = Case<'a>> + use<'a> {
        let mut reader = Reader { bytes: self.bytes, at: 0 };
        // 32 bits fit the only processors that run this.
        (0..self.cases as usize).map(move |_| reader.case().expect("the batch was checked"))
    }
}

impl<'a> Case<'a> {
    fn check(&self) -> Result<(), FormatError> {
        let controls = self.header.controls.get();
        if controls & !control::ALL != 0 {
            return Err(FormatError::Controls(controls));
        }
        for frame in [self.header.ept.get(), self.header.sppt.get()] {
            if frame as usize >= ARENA_FRAMES {
                return Err(FormatError::Frame(frame));
            }
        }
        Ok(())
    }

    /// Whether a [`control`] bit is set.
    pub const fn has(&self, control: u32) -> bool {
        self.header.controls.get() & control != 0
    }

    /// The steps in order.
    pub fn steps(&self) -> impl Iterator<Item = Step<'a>> + use<'a> {
        let mut reader = Reader { bytes: self.steps, at: 0 };
        (0..self.header.steps.get()).map(move |_| reader.step().expect("the batch was checked"))
    }
}

/// One step of a case: one entry of the guest.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// [`mode`] bits.
    pub mode: u32,
    /// Stores before the entry.
    pub stores: &'a [Store],
}

/// Takes structures off bytes; nothing is taken that is not there.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at.min(self.bytes.len())..]
    }

    fn take<T: FromBytes + Immutable + KnownLayout + Unaligned>(
        &mut self,
    ) -> Result<&'a T, FormatError> {
        let cut_off = FormatError::CutOff(self.bytes.len());
        let (value, _) = T::ref_from_prefix(self.rest()).map_err(|_| cut_off)?;
        self.at += size_of::<T>();
        Ok(value)
    }

    fn stores(&mut self, count: u32) -> Result<&'a [Store], FormatError> {
        let cut_off = FormatError::CutOff(self.bytes.len());
        let (stores, _) = <[Store]>::ref_from_prefix_with_elems(self.rest(), count as usize)
            .map_err(|_| cut_off)?;
        self.at += size_of_val(stores);
        match stores.iter().find(|store| store.word.get() as usize >= ARENA_WORDS) {
            Some(store) => Err(FormatError::Word(store.word.get())),
            None => Ok(stores),
        }
    }

    fn step(&mut self) -> Result<Step<'a>, FormatError> {
        let header: &StepHeader = self.take()?;
        let mode = header.mode.get();
        if mode & !mode::ALL != 0 {
            return Err(FormatError::Mode(mode));
        }
        Ok(Step { mode, stores: self.stores(header.stores.get())? })
    }

    fn case(&mut self) -> Result<Case<'a>, FormatError> {
        let header: &CaseHeader = self.take()?;
        let stores = self.stores(header.stores.get())?;
        let start = self.at;
        for _ in 0..header.steps.get() {
            self.step()?;
        }
        Ok(Case { header, stores, steps: &self.bytes[start..self.at] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, any, prop, proptest};
    use std::vec::Vec;

    fn store(word: u32, value: u64) -> Store {
        Store { word: word.into(), value: value.into() }
    }

    fn last_word() -> u32 {
        u32::try_from(ARENA_WORDS - 1).expect("few words")
    }

    fn batch() -> Vec<u8> {
        let mut bytes = Vec::new();
        let header = BatchHeader {
            signature: SIGNATURE,
            version: VERSION.into(),
            bytes: 0.into(),
            stores: 1.into(),
            cases: 2.into(),
        };
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(store(1, 2).as_bytes());
        for number in [7, 9] {
            let case = CaseHeader {
                number: number.into(),
                controls: control::SUB_PAGE.into(),
                ept: 3.into(),
                sppt: 4.into(),
                cr3: 0x5000.into(),
                stores: 2.into(),
                steps: 2.into(),
            };
            bytes.extend_from_slice(case.as_bytes());
            bytes.extend_from_slice(store(3, number.into()).as_bytes());
            bytes.extend_from_slice(store(last_word(), u64::MAX).as_bytes());
            for (mode, stores) in [(mode::ALL, 0), (0, 1)] {
                let header = StepHeader { mode: mode.into(), stores: stores.into() };
                bytes.extend_from_slice(header.as_bytes());
            }
            bytes.extend_from_slice(store(5, 6).as_bytes());
        }
        let length = u32::try_from(bytes.len()).expect("small");
        bytes[12..16].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        let mut bytes = batch();
        // A loader may round the length of a file up.
        bytes.extend_from_slice(&[0xAA; 5]);
        let batch = Batch::parse(&bytes).expect("legal");
        assert_eq!(batch.template(), [store(1, 2)]);
        let cases: Vec<_> = batch.cases().collect();
        assert_eq!(cases.len(), 2);
        for (case, number) in cases.iter().zip([7, 9]) {
            assert_eq!(case.header.number.get(), number);
            assert_eq!(case.header.cr3.get(), 0x5000);
            assert!(case.has(control::SUB_PAGE) && !case.has(control::ACCESSED_DIRTY));
            assert_eq!(case.stores[0], store(3, number.into()));
            let steps: Vec<_> = case.steps().map(|step| (step.mode, step.stores)).collect();
            assert_eq!(steps, [(mode::ALL, &[][..]), (0, &[store(5, 6)][..])]);
        }
    }

    #[test]
    fn every_cut_is_found() {
        let bytes = batch();
        for end in 0..bytes.len() {
            assert!(Batch::parse(&bytes[..end]).is_err(), "cut at {end}");
        }
        // The stated length cut or stretched as well.
        for end in 24..bytes.len() {
            let mut cut = bytes.clone();
            cut[12..16].copy_from_slice(&u32::try_from(end).expect("small").to_le_bytes());
            assert!(Batch::parse(&cut).is_err(), "stated length {end}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        let length = u32::try_from(longer.len()).expect("small");
        longer[12..16].copy_from_slice(&length.to_le_bytes());
        assert_eq!(Batch::parse(&longer).err(), Some(FormatError::Left(1)));
    }

    #[test]
    fn indices_outside_of_the_arena_are_refused() {
        let at = |offset: usize, value: u32| {
            let mut bytes = batch();
            bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
            Batch::parse(&bytes).err()
        };
        let words = last_word() + 1;
        assert_eq!(at(8, 1), Some(FormatError::Version(1)));
        assert_eq!(at(24, words), Some(FormatError::Word(words)));
        assert_eq!(at(40, 4), Some(FormatError::Controls(4)));
        assert_eq!(at(44, 48), Some(FormatError::Frame(48)));
        assert_eq!(at(48, u32::MAX), Some(FormatError::Frame(u32::MAX)));
        assert_eq!(at(92, 1 << 5), Some(FormatError::Mode(1 << 5)));
        assert!(matches!(at(60, u32::MAX), Some(FormatError::CutOff(_))));
        // What follows the case is read as its steps, until it makes none.
        assert!(at(64, u32::MAX).is_some());
        assert!(matches!(at(20, u32::MAX), Some(FormatError::CutOff(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever the bytes, parsing ends with an answer, and what it accepts can be walked.
        #[test]
        fn damaged_batches_are_judged(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
        ) {
            let mut bytes = batch();
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(batch) = Batch::parse(&bytes) {
                for case in batch.cases() {
                    for step in case.steps() {
                        assert!(step.stores.iter().all(|store| (store.word.get() as usize) < ARENA_WORDS));
                    }
                }
            }
        }
    }
}

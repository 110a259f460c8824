//! ORC: tables that say for each instruction of a kernel how to find its caller's frame.
//!
//! Linux, Documentation/arch/x86/orc-unwinder.rst; arch/x86/include/asm/orc_types.h.

use super::{Place, R10, R13, RBP, RDI, RDX, RSP};
use crate::address::LinkAddress;
use crate::image::KernelImage;
use crate::kallsyms::Kallsyms;
use crate::memory::{Memory, long};

/// Bytes of an entry: two distances, and two bytes of registers and kind.
const ENTRY_BYTES: usize = 6;

/// Bytes of the distance to the instruction, in the other table.
const IP_BYTES: usize = 4;

/// Most entries that are read; a distribution's kernel has about 400,000.
const MAX_ENTRIES: usize = 8_000_000;

/// Offsets in what an interrupt saves: `struct pt_regs`.
mod saved {
    /// RAX to R15 in the order of instructions.
    pub(super) const GENERAL: [u64; 16] =
        [80, 88, 96, 40, 152, 32, 104, 112, 72, 64, 56, 48, 24, 16, 8, 0];
    pub(super) const RIP: u64 = 128;
    pub(super) const CS: u64 = 136;
    pub(super) const RSP: u64 = 152;
    /// RIP in what the processor itself has pushed.
    pub(super) const FRAME: u64 = RIP;
}

/// How a kernel lays out the last two bytes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Up to 6.2: kind in 2 bits, then the mark of the last frame.
    End10,
    /// 6.3: kind in 2 bits, signal, then that mark.
    End11,
    /// From 6.4 on: kind in 3 bits, of which one is the last frame.
    Kinds,
}

/// What kind of frame an entry tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing is known, or there is no caller.
    End,
    Call,
    /// All registers of what was interrupted.
    Interrupt,
    /// What the processor has pushed alone.
    Partial,
}

/// A register that a frame is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    Undefined,
    /// The caller's stack pointer.
    PreviousStack,
    Register(usize),
    /// What the sum leads to.
    FrameIndirect,
    StackIndirect,
}

/// The numbers that registers have in entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbers {
    /// 5 is RSP, 1 the caller's stack pointer.
    Old,
    /// 3 is RSP, 8 the caller's stack pointer (seen in 7.2).
    New,
}

/// How a walk came to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Call,
    Interrupt,
}

/// The tables of a kernel.
#[derive(Debug)]
pub(super) struct Orc {
    /// Where each entry begins to hold, ascending.
    addresses: Vec<u64>,
    entries: Vec<u8>,
    layout: (Form, Numbers),
}

/// One of the two tables.
struct Table {
    section: &'static str,
    start: &'static str,
    stop: &'static str,
}

const IPS: Table = Table {
    section: ".orc_unwind_ip",
    start: "__start_orc_unwind_ip",
    stop: "__stop_orc_unwind_ip",
};
const ENTRIES: Table =
    Table { section: ".orc_unwind", start: "__start_orc_unwind", stop: "__stop_orc_unwind" };

impl Table {
    /// Where it is, and its bytes.
    fn of<'i>(
        &self,
        image: &'i KernelImage,
        kallsyms: &Kallsyms,
    ) -> Option<(LinkAddress, &'i [u8])> {
        let address = |name| Some(kallsyms.find(name)?.address);
        let section = image.section(self.section).filter(|it| it.address.as_u64() != 0);
        let by_section = section.map(|section| (section.address, section.length));
        let between = || {
            let start: LinkAddress = address(self.start)?;
            Some((start, address(self.stop)?.checked_since(start)?))
        };
        let (start, length) = by_section.or_else(between)?;
        Some((start, image.bytes_at(start, usize::try_from(length).ok()?)?))
    }
}

/// How a table's entries are laid out, by what most of them are: a call whose frame is found by RSP. The
/// kernel's version does not tell it, since distributions take single changes.
fn layout(entries: &[u8]) -> Option<(Form, Numbers)> {
    let entries = entries.as_chunks::<ENTRY_BYTES>().0;
    let mut counts = [0_u32; 128];
    for [.., registers, kind] in entries {
        if registers & 15 != 0 {
            counts[usize::from((registers & 15) << 3 | kind & 7)] += 1;
        }
    }
    let most = (0..counts.len()).max_by_key(|at| counts[*at])?;
    match (most >> 3, most & 7) {
        (5, 0) if entries.iter().any(|[.., kind]| kind & 8 != 0) => {
            Some((Form::End11, Numbers::Old))
        }
        (5, 0) => Some((Form::End10, Numbers::Old)),
        (5, 2) => Some((Form::Kinds, Numbers::Old)),
        (3, 2) => Some((Form::Kinds, Numbers::New)),
        _ => None,
    }
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    stack: Base,
    stack_offset: i16,
    frame: Base,
    frame_offset: i16,
    kind: Kind,
}

impl Orc {
    /// The tables of an image; `None` if it has none, or if they do not fit each other.
    pub(super) fn read(image: &KernelImage, kallsyms: &Kallsyms) -> Option<Self> {
        let (first, ips) = IPS.of(image, kallsyms)?;
        let (_, entries) = ENTRIES.of(image, kallsyms)?;
        Self::parse(first.as_u64(), ips, entries, layout(entries)?)
    }

    /// Whether an image has such tables, readable or not.
    pub(super) fn is_in(image: &KernelImage, kallsyms: &Kallsyms) -> bool {
        let has = |table: &Table| {
            image.section(table.section).is_some() || kallsyms.find(table.start).is_some()
        };
        has(&IPS) || has(&ENTRIES)
    }

    fn parse(first: u64, ips: &[u8], entries: &[u8], layout: (Form, Numbers)) -> Option<Self> {
        let count = ips.len() / IP_BYTES;
        if count == 0
            || count > MAX_ENTRIES
            || ips.len() != count * IP_BYTES
            || entries.len() != count * ENTRY_BYTES
        {
            return None;
        }
        let distances = ips.as_chunks::<IP_BYTES>().0.iter();
        let addresses: Vec<_> = (0..)
            .zip(distances)
            .map(|(index, distance)| {
                let place = first.wrapping_add(index * IP_BYTES as u64);
                place.wrapping_add_signed(i32::from_le_bytes(*distance).into())
            })
            .collect();
        // Sorted when the kernel was built, or only when it starts.
        addresses.is_sorted().then(|| Self { addresses, entries: entries.to_vec(), layout })
    }

    /// The entry for an instruction; `None` before the first one.
    pub(super) fn at(&self, address: LinkAddress) -> Option<Entry> {
        let behind = self.addresses.partition_point(|start| *start <= address.as_u64());
        let at = behind.checked_sub(1)? * ENTRY_BYTES;
        Entry::of(*self.entries.get(at..)?.first_chunk()?, self.layout)
    }
}

impl Entry {
    fn of(bytes: [u8; ENTRY_BYTES], (form, numbers): (Form, Numbers)) -> Option<Self> {
        let [s0, s1, f0, f1, registers, kind] = bytes;
        let (number, ends) = match form {
            Form::End10 => (kind & 3, kind & 4 != 0),
            Form::End11 => (kind & 3, kind & 8 != 0),
            Form::Kinds => (kind & 7, false),
        };
        let kind = match (form, number) {
            _ if ends => Kind::End,
            (Form::Kinds, 0 | 1) => Kind::End,
            (Form::Kinds, 2) | (Form::End10 | Form::End11, 0) => Kind::Call,
            (Form::Kinds, 3) | (Form::End10 | Form::End11, 1) => Kind::Interrupt,
            (Form::Kinds, 4) | (Form::End10 | Form::End11, 2) => Kind::Partial,
            _ => return None,
        };
        Some(Self {
            stack: Base::of(registers & 15, numbers)?,
            stack_offset: i16::from_le_bytes([s0, s1]),
            frame: Base::of(registers >> 4, numbers)?,
            frame_offset: i16::from_le_bytes([f0, f1]),
            kind,
        })
    }

    /// Where the walk is above a place that this entry is for.
    pub(super) fn above(&self, memory: &dyn Memory, place: &Place) -> Option<(Place, Step)> {
        let offset = |base: u64| base.wrapping_add_signed(self.stack_offset.into());
        let register = |number: usize| match (number, place.all) {
            (RSP, _) => Some(place.rsp),
            (RBP, _) => Some(place.rbp),
            (_, Some(all)) => all.get(number).copied(),
            (_, None) => None,
        };
        let stack = match self.stack {
            Base::Register(number) => offset(register(number)?),
            Base::FrameIndirect => long(memory, offset(place.rbp))?,
            Base::StackIndirect => offset(long(memory, place.rsp)?),
            Base::Undefined | Base::PreviousStack => return None,
        };
        if !stack.is_multiple_of(8) {
            return None;
        }
        let at = |bytes: u64| stack.checked_add(bytes);
        match self.kind {
            Kind::End => None,
            Kind::Call => {
                let rip = long(memory, stack.checked_sub(8)?)?;
                let frame_offset = |base: u64| base.wrapping_add_signed(self.frame_offset.into());
                let rbp = match self.frame {
                    Base::Undefined => place.rbp,
                    Base::PreviousStack => long(memory, frame_offset(stack))?,
                    Base::Register(RBP) => long(memory, frame_offset(place.rbp))?,
                    _ => return None,
                };
                Some((Place { rip, rsp: stack, rbp, all: None, exact: false }, Step::Call))
            }
            Kind::Interrupt => {
                // Of a program that was interrupted, nothing is told.
                if long(memory, at(saved::CS)?)? & 3 != 0 {
                    return None;
                }
                let mut all = [0; 16];
                for (register, offset) in all.iter_mut().zip(saved::GENERAL) {
                    *register = long(memory, at(offset)?)?;
                }
                let rip = long(memory, at(saved::RIP)?)?;
                let (rsp, rbp) = (all[RSP], all[RBP]);
                Some((Place { rip, rsp, rbp, all: Some(all), exact: true }, Step::Interrupt))
            }
            Kind::Partial => {
                let at = |offset: u64| at(offset - saved::FRAME);
                if long(memory, at(saved::CS)?)? & 3 != 0 {
                    return None;
                }
                let (rip, rsp) = (long(memory, at(saved::RIP)?)?, long(memory, at(saved::RSP)?)?);
                let rbp = place.rbp;
                Some((Place { rip, rsp, rbp, all: None, exact: true }, Step::Interrupt))
            }
        }
    }
}

impl Base {
    fn of(number: u8, numbers: Numbers) -> Option<Self> {
        Some(match (numbers, number) {
            (_, 0) => Self::Undefined,
            (Numbers::Old, 1) | (Numbers::New, 8) => Self::PreviousStack,
            (_, 2) => Self::Register(RDX),
            (Numbers::Old, 3) => Self::Register(RDI),
            (_, 4) => Self::Register(RBP),
            (Numbers::Old, 5) | (Numbers::New, 3) => Self::Register(RSP),
            (_, 6) => Self::Register(R10),
            (_, 7) => Self::Register(R13),
            (Numbers::Old, 8) | (Numbers::New, 10) => Self::FrameIndirect,
            (_, 9) => Self::StackIndirect,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::address::RuntimeAddress;

    /// Memory of eight bytes at each address.
    struct Words(HashMap<u64, u64>);

    impl Memory for Words {
        fn read(&self, address: RuntimeAddress, buffer: &mut [u8]) -> bool {
            (address.as_u64()..).zip(buffer).all(|(at, byte)| {
                let Some(word) = self.0.get(&(at & !7)) else { return false };
                *byte = word.to_le_bytes()[(at % 8) as usize];
                true
            })
        }
    }

    fn words<const N: usize>(words: [(u64, u64); N]) -> Words {
        Words(HashMap::from(words))
    }

    fn entry(stack: i16, frame: i16, registers: u8, kind: u8, form: Form) -> Option<Entry> {
        let ([s0, s1], [f0, f1]) = (stack.to_le_bytes(), frame.to_le_bytes());
        Entry::of([s0, s1, f0, f1, registers, kind], (form, Numbers::Old))
    }

    const STACK: u64 = 0xffff_c900_0000_3e00;

    fn place() -> Place {
        let mut all = [7; 16];
        (all[RSP], all[RBP], all[R10]) = (STACK, STACK + 0x40, STACK + 0x80);
        let (rsp, rbp) = (all[RSP], all[RBP]);
        Place { rip: 0xffff_ffff_8100_1000, rsp, rbp, all: Some(all), exact: true }
    }

    #[test]
    fn a_call_is_found_by_the_stack_pointer() {
        let entry = entry(24, -16, 0x15, 2, Form::Kinds).expect("an entry");
        let memory = words([(STACK + 16, 0xffff_ffff_8100_2000), (STACK + 8, 0x1234)]);
        let (above, step) = entry.above(&memory, &place()).expect("a caller");
        assert_eq!((above.rip, above.rsp, above.rbp), (0xffff_ffff_8100_2000, STACK + 24, 0x1234));
        assert_eq!((step, above.exact, above.all), (Step::Call, false, None));
    }

    #[test]
    fn a_call_is_found_by_other_registers() {
        let memory = words([
            (STACK + 0x48, 0xa0),
            (STACK + 0x78, 0xb0),
            (STACK + 0x40, STACK + 0x100),
            (STACK, STACK + 0x200),
            (STACK + 0xf8, 0xc0),
            (STACK + 0x208, 0xd0),
        ]);
        let rip = |stack, registers, place: &Place| {
            let entry = entry(stack, 0, registers, 0, Form::End10).expect("an entry");
            entry.above(&memory, place).map(|(above, _)| above.rip)
        };
        assert_eq!(rip(16, 4, &place()), Some(0xa0), "RBP");
        assert_eq!(rip(0, 6, &place()), Some(0xb0), "R10");
        assert_eq!(rip(0, 8, &place()), Some(0xc0), "what RBP leads to");
        assert_eq!(rip(16, 9, &place()), Some(0xd0), "what RSP leads to");
        assert_eq!(rip(0, 6, &Place { all: None, ..place() }), None, "R10 is not known any more");
        assert_eq!(rip(3, 4, &place()), None, "a stack is aligned");
        assert_eq!(rip(0, 0, &place()), None);
        assert_eq!(rip(0x7ff8, 5, &place()), None, "no memory");
    }

    #[test]
    fn an_interrupt_of_the_kernel_has_all_registers() {
        let whole = entry(0, 0, 5, 3, Form::Kinds).expect("an entry");
        let mut memory = Words(HashMap::new());
        for offset in (0..168).step_by(8) {
            memory.0.insert(STACK + offset, 0x100 + offset);
        }
        memory.0.insert(STACK + saved::CS, 0x10);
        let (above, step) = whole.above(&memory, &place()).expect("what was interrupted");
        assert_eq!((above.rip, above.rsp, above.rbp), (0x180, 0x198, 0x120));
        assert_eq!((step, above.exact), (Step::Interrupt, true));
        let all = above.all.expect("all registers");
        assert_eq!((all[0], all[R10], all[15]), (0x150, 0x138, 0x100));
        let partial = entry(0, 0, 5, 4, Form::Kinds).expect("an entry");
        let frame = Place { rsp: STACK + saved::FRAME, ..place() };
        let (above, _) = partial.above(&memory, &frame).expect("what was interrupted");
        assert_eq!((above.rip, above.rsp, above.rbp), (0x180, 0x198, STACK + 0x40));
        memory.0.insert(STACK + saved::CS, 0x33);
        assert_eq!(whole.above(&memory, &place()).map(|_| ()), None, "a program");
        assert_eq!(partial.above(&memory, &frame).map(|_| ()), None, "a program");
    }

    #[test]
    fn kinds_are_those_of_the_version() {
        let kind = |kind, form| entry(8, 0, 5, kind, form).map(|entry| entry.kind);
        for (byte, old, middle, new) in [
            (0, Some(Kind::Call), Some(Kind::Call), Some(Kind::End)),
            (1, Some(Kind::Interrupt), Some(Kind::Interrupt), Some(Kind::End)),
            (2, Some(Kind::Partial), Some(Kind::Partial), Some(Kind::Call)),
            (3, None, None, Some(Kind::Interrupt)),
            (4, Some(Kind::End), Some(Kind::Call), Some(Kind::Partial)),
            (8, Some(Kind::Call), Some(Kind::End), Some(Kind::End)),
            (10, Some(Kind::Partial), Some(Kind::End), Some(Kind::Call)),
        ] {
            let found = [Form::End10, Form::End11, Form::Kinds].map(|form| kind(byte, form));
            assert_eq!(found, [old, middle, new], "{byte}");
        }
        assert_eq!(entry(0, 0, 0xa5, 0, Form::End10), None, "no such register");
    }

    #[test]
    fn an_entry_holds_up_to_the_next() {
        let first = 0xffff_ffff_8200_0000_u64;
        let starts = [first - 0x100, first - 0x80, first + 0x40];
        let ips: Vec<u8> = (0..)
            .zip(starts)
            .flat_map(|(index, start): (u64, u64)| {
                let distance = start.wrapping_sub(first + 4 * index).cast_signed();
                i32::try_from(distance).expect("near").to_le_bytes()
            })
            .collect();
        let entries = [[8, 0, 0, 0, 5, 2], [16, 0, 0, 0, 5, 2], [0, 0, 0, 0, 0, 1]].concat();
        let orc =
            Orc::parse(first, &ips, &entries, layout(&entries).expect("known")).expect("tables");
        let offset = |address| orc.at(LinkAddress::new(address)).map(|entry| entry.stack_offset);
        assert_eq!(offset(first - 0x101), None);
        assert_eq!((offset(first - 0x100), offset(first - 0x81)), (Some(8), Some(8)));
        assert_eq!((offset(first - 0x80), offset(first + 0x3f)), (Some(16), Some(16)));
        assert_eq!(offset(first + 0x40), Some(0));
        let swapped = [&ips[4..8], &ips[..4], &ips[8..]].concat();
        for (ips, entries) in [
            (&ips[..], &entries[..12]),
            (&ips[..8], &entries[..]),
            (&ips[..11], &entries[..]),
            (&swapped[..], &entries[..]),
            (&[], &[]),
        ] {
            assert!(Orc::parse(first, ips, entries, (Form::Kinds, Numbers::Old)).is_none());
        }
    }

    /// The layout is told by the table and not by the version.
    #[test]
    fn a_layout_is_known_by_its_calls() {
        let table = |registers: u8, kind: u8, last: u8| {
            let call = [8, 0, 0, 0, registers, kind];
            [call, call, [0, 0, 0, 0, 0, last], [16, 0, 0, 0, registers, kind]].concat()
        };
        let old = Numbers::Old;
        assert_eq!(layout(&table(0x05, 0, 4)), Some((Form::End10, old)));
        assert_eq!(layout(&table(0x15, 0, 8)), Some((Form::End11, old)));
        assert_eq!(layout(&table(0x15, 2, 1)), Some((Form::Kinds, old)));
        assert_eq!(layout(&table(0x83, 2, 1)), Some((Form::Kinds, Numbers::New)));
        for unknown in [table(0x05, 1, 0), table(0x07, 2, 1), table(0, 2, 1), vec![]] {
            assert_eq!(layout(&unknown), None, "{unknown:?}");
        }
        let new = |number| Base::of(number, Numbers::New);
        assert_eq!(new(3), Some(Base::Register(RSP)));
        assert_eq!((new(8), new(10)), (Some(Base::PreviousStack), Some(Base::FrameIndirect)));
        assert_eq!((new(1), new(5)), (None, None));
    }
}

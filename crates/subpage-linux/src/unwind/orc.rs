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
    form: Form,
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
        let address = |name| Some(kallsyms.find(name)?.address);
        let table = |start, stop| {
            let start: LinkAddress = address(start)?;
            let length = usize::try_from(address(stop)?.checked_since(start)?).ok()?;
            Some((start, image.bytes_at(start, length)?))
        };
        let (first, ips) = table("__start_orc_unwind_ip", "__stop_orc_unwind_ip")?;
        let (_, entries) = table("__start_orc_unwind", "__stop_orc_unwind")?;
        let form = match image.version()? {
            (..=5, _) | (6, ..=2) => Form::End10,
            (6, 3) => Form::End11,
            _ => Form::Kinds,
        };
        Self::parse(first.as_u64(), ips, entries, form)
    }

    fn parse(first: u64, ips: &[u8], entries: &[u8], form: Form) -> Option<Self> {
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
        addresses.is_sorted().then(|| Self { addresses, entries: entries.to_vec(), form })
    }

    /// The entry for an instruction; `None` before the first one.
    pub(super) fn at(&self, address: LinkAddress) -> Option<Entry> {
        let behind = self.addresses.partition_point(|start| *start <= address.as_u64());
        let at = behind.checked_sub(1)? * ENTRY_BYTES;
        Entry::of(*self.entries.get(at..)?.first_chunk()?, self.form)
    }
}

impl Entry {
    fn of(bytes: [u8; ENTRY_BYTES], form: Form) -> Option<Self> {
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
            stack: Base::of(registers & 15)?,
            stack_offset: i16::from_le_bytes([s0, s1]),
            frame: Base::of(registers >> 4)?,
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
    fn of(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Undefined,
            1 => Self::PreviousStack,
            2 => Self::Register(RDX),
            3 => Self::Register(RDI),
            4 => Self::Register(RBP),
            5 => Self::Register(RSP),
            6 => Self::Register(R10),
            7 => Self::Register(R13),
            8 => Self::FrameIndirect,
            9 => Self::StackIndirect,
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
        Entry::of([s0, s1, f0, f1, registers, kind], form)
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
        let orc = Orc::parse(first, &ips, &entries, Form::Kinds).expect("tables");
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
            assert!(Orc::parse(first, ips, entries, Form::Kinds).is_none());
        }
    }
}

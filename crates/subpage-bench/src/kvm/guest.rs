//! The guests that are measured: what they run, where, and at which privilege level.
//!
//! A guest works in rounds. Each begins when it has sent [`BEGIN`] to its serial port, is as long as
//! [`Work`] and the count at [`COUNT`] say, and is over when it sends [`END`].

use std::io::Write as _;

use iced_x86::code_asm::{
    CodeAssembler, al, dword_ptr, dx, eax, ecx, edx, esi, qword_ptr, r8d, rax, rbx, rcx, rdi, rsi,
    rsp,
};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use subpage::address::{Gfn, Gpa};
use subpage_emulate::guest::PhysicalMemory as _;
use subpage_kvm::boot::Request;
use subpage_kvm::memory::Ram;
use tempfile::NamedTempFile;

/// Sent when a round is about to begin.
pub(crate) const BEGIN: u8 = b'B';

/// Sent when it is over.
pub(crate) const END: u8 = b'E';

/// The port for both.
pub(crate) const SERIAL: u16 = 0x3f8;

/// The page with a denied sub-page, which all stores of [`Work::Trapping`] go to.
pub(crate) const GUARDED: u64 = 0x40_0000;

/// The sub-page of it that may not be written.
pub(crate) const DENIED: u8 = 3;

/// Where the guest's code lies.
const CODE: u64 = 0x20_0000;

/// How many turns of the loop a round has: four bytes.
const COUNT: u64 = 0x30_0000;

/// Page tables for CPL 3: the processor's own are not for it.
const TABLES: u64 = 0x31_0000;

/// A task-state segment with a map of the ports that CPL 3 may use, to the last of COM1's. (With I/O
/// privilege in RFLAGS it might use all, but a KVM that runs CPL 3 on the host's own loses that.)
const TASK: u64 = 0x32_0000;
const TASK_BYTES: u16 = 104;
const PORT_MAP_BYTES: u16 = 0x400 / 8;

/// The pages that [`Work::Plain`] writes.
const PLAIN: u64 = 0x50_0000;
const PLAIN_BYTES: i32 = 64 * 4096;

/// What a round consists of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    /// Stores of so many bytes, 4 or 8, to one place of the guarded page.
    Trapping { bytes: u8, at: u64 },
    /// Stores of four bytes to one place of that page, by four instructions in turn.
    Varied,
    /// Pushes of eight bytes to one place of that page.
    Push,
    /// Eight words of eight bytes to the page's first, by REP MOVS.
    Copy,
    /// Stores of eight bytes all over other pages.
    Plain,
}

impl Work {
    /// Stores of one turn of the guest's loop.
    pub(crate) const fn stores_a_turn(self) -> u32 {
        match self {
            Self::Varied => 4,
            Self::Trapping { .. } | Self::Push | Self::Copy | Self::Plain => 1,
        }
    }
}

/// The privilege level that it runs at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Kernel,
    User,
}

impl Level {
    pub(crate) const fn cpl(self) -> u8 {
        match self {
            Self::Kernel => 0,
            Self::User => 3,
        }
    }
}

pub(crate) fn guarded_page() -> Gfn {
    Gpa::new(GUARDED).gfn()
}

/// A guest's image, and the length of the instruction that traps.
pub(crate) struct Image {
    file: NamedTempFile,
    pub(crate) store_bytes: u64,
}

impl Image {
    pub(crate) fn new(work: Work) -> Self {
        let (code, store_bytes) = assemble(work).expect("code that can be encoded");
        let mut file = NamedTempFile::new().expect("a temporary file can be made");
        file.write_all(&code).expect("it can be written");
        Self { file, store_bytes }
    }

    pub(crate) fn request(&self, cpus: u32) -> Request<'_> {
        Request {
            image: self.file.path(),
            initrd: None,
            command_line: "",
            load_address: Some(CODE),
            slide: None,
            cpus,
        }
    }
}

/// Machine code, and the length of each of its stores.
fn assemble(work: Work) -> Result<(Vec<u8>, u64), iced_x86::IcedError> {
    let mut code = CodeAssembler::new(64)?;
    let mut round = code.create_label();
    let (mut store, mut behind) = (code.create_label(), code.create_label());
    code.set_label(&mut round)?;
    code.mov(edx, u32::from(SERIAL))?;
    code.mov(al, u32::from(BEGIN))?;
    code.out(dx, al)?;
    code.mov(ecx, dword_ptr(COUNT))?;
    match work {
        Work::Trapping { at, .. } => code.mov(rbx, GUARDED + at)?,
        Work::Varied | Work::Push | Work::Copy => code.mov(rbx, GUARDED)?,
        Work::Plain => code.mov(rbx, PLAIN)?,
    }
    code.xor(esi, esi)?;
    code.set_label(&mut store)?;
    match work {
        Work::Trapping { bytes: 4, .. } | Work::Varied => code.mov(dword_ptr(rbx), eax)?,
        Work::Trapping { .. } => code.mov(qword_ptr(rbx), rax)?,
        Work::Push => {
            code.lea(rsp, qword_ptr(rbx + 8))?;
            code.push(rax)?;
        }
        Work::Copy => {
            code.mov(r8d, ecx)?;
            code.mov(rdi, rbx)?;
            code.mov(esi, u32::try_from(PLAIN).expect("below 4 GiB"))?;
            code.mov(ecx, 8_u32)?;
            code.rep().movsq()?;
            code.mov(ecx, r8d)?;
        }
        Work::Plain => code.mov(qword_ptr(rbx + rsi), rcx)?,
    }
    code.set_label(&mut behind)?;
    match work {
        Work::Trapping { .. } | Work::Push | Work::Copy => {}
        // As long as the first.
        Work::Varied => {
            code.add(dword_ptr(rbx), eax)?;
            code.xor(dword_ptr(rbx), ecx)?;
            code.or(dword_ptr(rbx), edx)?;
        }
        Work::Plain => {
            // On to the next page, 64 bytes further.
            code.add(esi, 4096 + 64)?;
            code.and(esi, PLAIN_BYTES - 64)?;
        }
    }
    code.dec(ecx)?;
    code.jnz(store)?;
    code.mov(al, u32::from(END))?;
    code.out(dx, al)?;
    code.jmp(round)?;
    let assembled =
        code.assemble_options(CODE, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let at = |label| assembled.label_ip(label);
    let store_bytes = at(&behind)? - at(&store)?;
    Ok((assembled.inner.code_buffer, store_bytes))
}

/// Sets how many turns of the loop the next rounds have.
pub(crate) fn set_count(ram: &Ram, count: u32) {
    ram.write(Gpa::new(COUNT), &count.to_le_bytes()).expect("memory of the guest");
}

/// What CPL 3 needs: page tables, linear = physical for 1 GiB, and the map of ports.
pub(crate) fn write_tables(ram: &Ram) {
    /// Present, writable, for CPL 3, accessed, dirty.
    const ENTRY: u64 = 0x67;
    const LARGE: u64 = 0x80;
    let put = |at: u64, entry: u64| {
        ram.write(Gpa::new(at), &entry.to_le_bytes()).expect("memory of the guest");
    };
    put(TABLES, (TABLES + 0x1000) | ENTRY);
    put(TABLES + 0x1000, (TABLES + 0x2000) | ENTRY);
    for page in 0..512 {
        put(TABLES + 0x2000 + page * 8, page << 21 | ENTRY | LARGE);
    }
    // Zeros permit. The last two bytes of the segment proper are the map's offset.
    let mut task = vec![0; usize::from(TASK_BYTES + PORT_MAP_BYTES)];
    task[102..104].copy_from_slice(&TASK_BYTES.to_le_bytes());
    task.push(0xff);
    ram.write(Gpa::new(TASK), &task).expect("memory of the guest");
}

/// The registers with which a processor starts, from those that the loader gave the first one.
pub(crate) fn start(level: Level, from: &kvm_sregs) -> (kvm_regs, kvm_sregs) {
    /// The bit that is always set.
    const FLAGS: u64 = 1 << 1;
    let registers = kvm_regs { rip: CODE, rflags: FLAGS, ..kvm_regs::default() };
    let at_level = |segment: kvm_segment| kvm_segment {
        selector: segment.selector | u16::from(level.cpl()),
        dpl: level.cpl(),
        ..segment
    };
    let special = kvm_sregs {
        cs: at_level(from.cs),
        ss: at_level(from.ss),
        ds: at_level(from.ds),
        es: at_level(from.es),
        fs: at_level(from.fs),
        gs: at_level(from.gs),
        tr: kvm_segment { base: TASK, limit: u32::from(TASK_BYTES + PORT_MAP_BYTES), ..from.tr },
        cr3: TABLES,
        ..*from
    };
    (registers, special)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_the_store_is_known() {
        for (work, store) in [
            (Work::Trapping { bytes: 4, at: 0 }, &[0x89, 0x03][..]),
            (Work::Trapping { bytes: 8, at: 0 }, &[0x48, 0x89, 0x03]),
            (Work::Varied, &[0x89, 0x03]),
            (Work::Plain, &[0x48, 0x89, 0x0c, 0x33]),
        ] {
            let (code, store_bytes) = assemble(work).expect("code that can be encoded");
            assert_eq!(store_bytes, store.len() as u64, "{work:?}");
            let found = code.windows(store.len()).filter(|bytes| *bytes == store).count();
            assert_eq!(found, 1, "{work:?}: {code:02x?}");
        }
    }

    /// Each is two bytes, as the bare loop takes for granted.
    #[test]
    fn all_stores_of_a_turn_are_equally_long() {
        let (code, _) = assemble(Work::Varied).expect("code that can be encoded");
        let four = [0x89, 0x03, 0x01, 0x03, 0x31, 0x0b, 0x09, 0x13];
        assert_eq!(four.len(), 2 * Work::Varied.stores_a_turn() as usize);
        assert!(code.windows(four.len()).any(|bytes| bytes == four), "{code:02x?}");
    }
}

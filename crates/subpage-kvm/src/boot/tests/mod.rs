//! Guests made in the test, put into memory that held something before.

mod acpi;
mod bzimage;
mod contract;
mod elf;
mod files;
mod hostile;
mod kernel;
mod multiboot;

use std::path::{Path, PathBuf};

use linux_loader::elf::{ELFMAG, EM_X86_64, ET_EXEC, Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use linux_loader::loader::bootparam::{boot_params, setup_header};
use subpage::address::{ByteRange, Gpa};
use tempfile::TempDir;
use vm_memory::{ByteValued as _, Bytes as _, GuestAddress};

use super::*;
use crate::memory::{MIN_BYTES, Ram};

/// What memory holds before a start.
const BEFORE: u8 = 0xa5;

/// Files and guest memory.
struct Scene {
    directory: TempDir,
    ram: Ram,
}

impl Scene {
    /// Memory of `bytes` that is zero.
    fn zeroed(bytes: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self { directory, ram: Ram::new(bytes).expect("memory") }
    }

    /// The least memory, all [`BEFORE`].
    fn used() -> Self {
        let scene = Self::zeroed(MIN_BYTES);
        scene.refill();
        scene
    }

    fn refill(&self) {
        let bytes = usize::try_from(MIN_BYTES).expect("2 MiB");
        self.ram.direct().write_slice(&vec![BEFORE; bytes], GuestAddress(0)).expect("memory");
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path
    }

    fn load(&self, image: &[u8]) -> Result<Boot, BootError> {
        self.load_with(image, &request())
    }

    /// Loads a guest of these bytes; the request's own image is not looked at.
    fn load_with(&self, image: &[u8], request: &Request<'_>) -> Result<Boot, BootError> {
        load(&self.ram, &Request { image: &self.file("guest", image), ..*request })
    }

    fn bytes<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram.direct().read_slice(&mut bytes, GuestAddress(at)).expect("memory");
        bytes
    }

    fn word(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    fn zero_page(&self) -> boot_params {
        let mut page = boot_params::default();
        let bytes = page.as_mut_slice();
        self.ram.direct().read_slice(bytes, GuestAddress(0x7000)).expect("memory");
        page
    }

    /// Fails if a byte outside the parts is not as it was before.
    fn check_untouched(&self, parts: &[Placed]) {
        let mut memory = vec![0; usize::try_from(MIN_BYTES).expect("2 MiB")];
        self.ram.direct().read_slice(&mut memory, GuestAddress(0)).expect("memory");
        for placed in parts {
            let first = usize::try_from(placed.range.first().as_u64()).expect("64 bits");
            let last = usize::try_from(placed.range.last().as_u64()).expect("64 bits");
            memory[first..=last].fill(BEFORE);
        }
        let changed = memory.iter().position(|&byte| byte != BEFORE);
        assert_eq!(changed, None, "changed outside of {parts:x?}");
    }
}

fn request() -> Request<'static> {
    Request {
        image: Path::new("none"),
        initrd: None,
        command_line: "console=ttyS0",
        load_address: None,
        slide: None,
        cpus: 1,
    }
}

fn range(first: u64, bytes: u64) -> ByteRange {
    ByteRange::new(Gpa::new(first), bytes).expect("a range")
}

fn part(boot: &Boot, part: Part) -> ByteRange {
    boot.parts.iter().find(|placed| placed.part == part).expect("a part of it").range
}

/// A load segment and its bytes in the file.
#[derive(Debug, Clone)]
struct Segment {
    header: Elf64_Phdr,
    bytes: Vec<u8>,
}

/// A segment of `bytes` and then zeros, `memory` bytes in all.
fn segment(virtual_address: u64, physical: u64, bytes: &[u8], memory: u64) -> Segment {
    let header = Elf64_Phdr {
        p_type: PT_LOAD,
        p_vaddr: virtual_address,
        p_paddr: physical,
        p_filesz: bytes.len() as u64,
        p_memsz: memory,
        ..Elf64_Phdr::default()
    };
    Segment { header, bytes: bytes.to_vec() }
}

fn elf_header(entry: u64, segments: usize) -> Elf64_Ehdr {
    let mut header = Elf64_Ehdr {
        e_type: ET_EXEC,
        e_machine: EM_X86_64,
        e_version: 1,
        e_entry: entry,
        e_phoff: 64,
        e_ehsize: 64,
        e_phentsize: 56,
        e_phnum: u16::try_from(segments).expect("few"),
        ..Elf64_Ehdr::default()
    };
    header.e_ident[..4].copy_from_slice(ELFMAG);
    header.e_ident[4..7].copy_from_slice(&[2, 1, 1]);
    header
}

/// A static ELF64 of the segments, their bytes one behind another.
fn elf_of(header: &Elf64_Ehdr, segments: &[Segment]) -> Vec<u8> {
    let mut file = header.as_slice().to_vec();
    let mut offset = (file.len() + 56 * segments.len()) as u64;
    for segment in segments {
        file.extend(Elf64_Phdr { p_offset: offset, ..segment.header }.as_slice());
        offset += segment.bytes.len() as u64;
    }
    file.extend(segments.iter().flat_map(|segment| &segment.bytes));
    file
}

fn elf(entry: u64, segments: &[Segment]) -> Vec<u8> {
    elf_of(&elf_header(entry, segments.len()), segments)
}

/// Code at 1 MiB, data with a bss behind it.
fn small_elf() -> Vec<u8> {
    let code = segment(0x10_0000, 0x10_0000, b"\xfa\xf4\xeb\xfc", 4);
    let data = segment(0x10_1000, 0x10_1000, b"data", 0x123);
    elf(0x10_0001, &[code, data])
}

/// The setup header of a kernel that wants 512 KiB at 1 MiB.
fn setup() -> setup_header {
    setup_header {
        setup_sects: 1,
        syssize: 0x30,
        boot_flag: 0xaa55,
        jump: 0x66eb,
        header: 0x5372_6448,
        version: 0x020f,
        loadflags: 1,
        initrd_addr_max: 0x7fff_ffff,
        kernel_alignment: 0x20_0000,
        relocatable_kernel: 1,
        xloadflags: 1,
        cmdline_size: 255,
        pref_address: 0x10_0000,
        init_size: 0x8_0000,
        ..setup_header::default()
    }
}

/// A bzImage whose kernel has 0x300 bytes.
fn bzimage(header: &setup_header) -> Vec<u8> {
    let mut file = vec![0xcc; 0x400];
    file[0x1f1..0x1f1 + size_of::<setup_header>()].copy_from_slice(header.as_slice());
    file.extend((0..0x300_u32).map(|at| at.to_le_bytes()[0]));
    file
}

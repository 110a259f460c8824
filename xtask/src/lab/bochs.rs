//! Bochs, which emulates VT-x with EPT: a bzImage started by the 64-bit boot protocol (Linux,
//! Documentation/arch/x86/boot.rst), without firmware.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::bochs::{
    configuration::{self, BLOCK, Configuration, Logging, Placed, SerialLines},
    emulator::Emulator,
    probe,
};

/// Where the kernel's own loader begins; two images of one block each.
const KERNEL: u64 = 0x100_0000;
const KERNEL_FILES: [&str; 2] = ["kernel-1", "kernel-2"];

/// Where the initramfs is, which spans as many blocks as it needs.
const INITRD: u64 = 0x800_0000;

/// About what Bochs does in a second, so that the host's kernel gets no more interrupts of its timer
/// than on a real processor, and times out no sooner.
const INSTRUCTIONS_PER_SECOND: u32 = 40_000_000;

/// What the ROM hands over: descriptors, boot parameters, page tables, command line, and a stack.
const LOW: u64 = 0x1_0000;
const PAGE: usize = 0x1000;
const DESCRIPTORS: usize = 0;
const PARAMETERS: usize = PAGE;
const TOP_TABLE: usize = 2 * PAGE;
const POINTERS: usize = 3 * PAGE;
const DIRECTORIES: usize = 4 * PAGE;
const COMMAND_LINE: usize = 8 * PAGE;
const LOW_BYTES: usize = 11 * PAGE;

/// One start of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Start<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: &'a Path,
    pub(crate) command_line: &'a str,
    pub(crate) memory_mib: u64,
    pub(crate) directory: &'a Path,
}

/// The command that starts a kernel. Its second serial line is standard output; there is no input.
pub(super) fn start(emulator: &Emulator, start: &Start<'_>) -> Result<Command> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let write = |name: &str, bytes: &[u8]| {
        fs::write(start.directory.join(name), bytes).with_context(|| format!("cannot write {name}"))
    };
    let kernel = read(start.kernel)?;
    let setup = Setup::of(&kernel)?;
    let initrd = fs::metadata(start.initrd).context("there is no initramfs")?.len();
    let memory = start.memory_mib << 20;
    ensure!(INITRD + initrd.next_multiple_of(BLOCK) <= memory, "the host has too little memory");
    let mut images = Vec::new();
    let block = usize::try_from(BLOCK)?;
    for (number, part) in setup.loaded.chunks(block).enumerate() {
        let name = KERNEL_FILES.get(number).context("the kernel is larger than 16 MiB")?;
        write(name, part)?;
        images.push(Placed { name, address: KERNEL + number as u64 * BLOCK });
    }
    write("low", &setup.low(start.command_line, initrd, memory)?)?;
    images.push(Placed { name: "low", address: LOW });
    // The last of all: Bochs reads an image in one piece into the block where it begins, and the
    // blocks behind that have not been given away yet.
    images.push(Placed { name: "initrd", address: INITRD });
    write(configuration::ROM, &rom(initrd)?)?;
    let configuration = Configuration {
        model: probe::WITH_SPP,
        processors: 1,
        memory_mib: start.memory_mib,
        images: &images,
        medium: None,
        logging: Logging::Fatal,
        serial_lines: SerialLines::Two { first: super::run::CONSOLE },
        instructions_per_second: Some(INSTRUCTIONS_PER_SECOND),
    };
    configuration.command(&emulator.program, start.directory)
}

/// A bzImage, as far as its loader has to know.
struct Setup<'a> {
    header: &'a [u8],
    /// What runs in protected mode.
    loaded: &'a [u8],
}

impl<'a> Setup<'a> {
    fn of(kernel: &'a [u8]) -> Result<Self> {
        let byte = |at: usize| kernel.get(at).copied().context("the kernel is cut off");
        ensure!(kernel.get(0x202..0x206) == Some(b"HdrS"), "the kernel is no bzImage");
        let sectors = match byte(0x1f1)? {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let end = 0x202 + usize::from(byte(0x201)?);
        let loaded = kernel.get((sectors + 1) * 512..).context("the kernel is cut off")?;
        let header = kernel.get(0x1f1..end).context("the kernel is cut off")?;
        ensure!(header.len() > 0x264 - 0x1f1, "the kernel's setup header is too old");
        let setup = Self { header, loaded };
        let room = INITRD - KERNEL;
        ensure!(
            u64::from(setup.word(0x260)) <= room,
            "the kernel is too large when it is unpacked"
        );
        ensure!(setup.word(0x258) == 0x100_0000, "the kernel wants to be elsewhere in memory");
        Ok(setup)
    }

    /// A field of the header, by its offset in the file.
    fn word(&self, at: usize) -> u32 {
        let bytes = &self.header[at - 0x1f1..][..4];
        u32::from_le_bytes(bytes.try_into().expect("four bytes"))
    }

    /// The memory that stands at [`LOW`].
    fn low(&self, command_line: &str, initrd: u64, memory: u64) -> Result<Vec<u8>> {
        let mut low = vec![0; LOW_BYTES];
        let mut put = |at: usize, bytes: &[u8]| low[at..at + bytes.len()].copy_from_slice(bytes);
        let address = |offset: usize| LOW + offset as u64;
        // Flat: code of 32 bits, code of 64 bits, data; where the boot protocol wants them.
        let descriptors = [0, 0x00cf_9b00_0000_ffff, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
        for (number, descriptor) in descriptors.into_iter().enumerate() {
            put(DESCRIPTORS + number * 8, &u64::to_le_bytes(descriptor));
        }
        // The first 4 GiB in pages of 2 MiB, present, writable, at their own addresses.
        put(TOP_TABLE, &(address(POINTERS) | 3).to_le_bytes());
        for number in 0..4 {
            let directory = address(DIRECTORIES + number * PAGE) | 3;
            put(POINTERS + number * 8, &directory.to_le_bytes());
        }
        for page in 0..2048 {
            put(DIRECTORIES + page * 8, &((page as u64) << 21 | 0x83).to_le_bytes());
        }
        ensure!(command_line.len() < PAGE / 2, "the kernel's command line is too long");
        put(COMMAND_LINE, command_line.as_bytes());

        put(PARAMETERS + 0x1f1, self.header);
        let mut field = |at: usize, bytes: &[u8]| put(PARAMETERS + at, bytes);
        field(0x210, &[0xff]); // a loader without a number
        field(0x214, &u32::try_from(KERNEL)?.to_le_bytes());
        field(0x218, &u32::try_from(INITRD)?.to_le_bytes());
        field(0x21c, &u32::try_from(initrd)?.to_le_bytes());
        field(0x228, &u32::try_from(address(COMMAND_LINE))?.to_le_bytes());
        let (usable, reserved) = (1_u32, 2);
        let map = [
            (0, 0x9_fc00, usable),
            (0x9_fc00, 0x6_0400, reserved),
            (0x10_0000, memory - 0x10_0000, usable),
        ];
        field(0x1e8, &[u8::try_from(map.len())?]);
        for (number, (start, length, kind)) in map.into_iter().enumerate() {
            let entry = 0x2d0 + number * 20;
            field(entry, &u64::to_le_bytes(start));
            field(entry + 8, &u64::to_le_bytes(length));
            field(entry + 16, &kind.to_le_bytes());
        }
        Ok(low)
    }
}

/// A 64 KiB ROM at the end of the first 4 GiB: it has Bochs give away the blocks of the initramfs in
/// order, enters 64-bit mode and jumps to the kernel.
fn rom(initrd: u64) -> Result<Vec<u8>> {
    const CODE: [u8; 153] = [
        0xfa, // cli
        0xfc, // cld
        0x2e, 0x66, 0x0f, 0x01, 0x16, 0x00, 0x01, // lgdt cs:[0x100]
        0x0f, 0x20, 0xc0, // mov eax, cr0
        0x66, 0x25, 0xff, 0xff, 0xff, 0x9f, // and eax, ~(CD | NW)
        0x66, 0x83, 0xc8, 0x01, // or eax, PE
        0x0f, 0x22, 0xc0, // mov cr0, eax
        0x66, 0xea, 0x21, 0x00, 0xff, 0xff, 0x08, 0x00, // jmp 8:0xffff0021
        0xb8, 0x18, 0x00, 0x00, 0x00, // mov eax, 0x18
        0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, // mov ds, eax; mov es, eax; mov ss, eax
        0x8b, 0x1d, 0x06, 0x01, 0xff, 0xff, // mov ebx, [0xffff0106]
        0x8b, 0x15, 0x0a, 0x01, 0xff, 0xff, // mov edx, [0xffff010a]
        0x39, 0xd3, // touch: cmp ebx, edx
        0x73, 0x0a, // jae long
        0x8b, 0x03, // mov eax, [ebx]
        0x81, 0xc3, 0x00, 0x00, 0x80, 0x00, // add ebx, 8 MiB
        0xeb, 0xf2, // jmp touch
        0xb8, 0x00, 0x20, 0x01, 0x00, // long: mov eax, TOP_TABLE
        0x0f, 0x22, 0xd8, // mov cr3, eax
        0xb8, 0xa0, 0x06, 0x00, 0x00, // mov eax, PAE | PGE | OSFXSR | OSXMMEXCPT
        0x0f, 0x22, 0xe0, // mov cr4, eax
        0xb9, 0x80, 0x00, 0x00, 0xc0, // mov ecx, IA32_EFER
        0x0f, 0x32, // rdmsr
        0x0d, 0x00, 0x01, 0x00, 0x00, // or eax, LME
        0x0f, 0x30, // wrmsr
        0x0f, 0x20, 0xc0, // mov eax, cr0
        0x0d, 0x32, 0x00, 0x00, 0x80, // or eax, PG | NE | ET | MP
        0x83, 0xe0, 0xfb, // and eax, ~EM
        0x0f, 0x22, 0xc0, // mov cr0, eax
        0xea, 0x79, 0x00, 0xff, 0xff, 0x10, 0x00, // jmp 0x10:0xffff0079
        0xb8, 0x18, 0x00, 0x00, 0x00, // mov eax, 0x18
        0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, // mov ds, eax; mov es, eax; mov ss, eax
        0x8e, 0xe0, 0x8e, 0xe8, // mov fs, eax; mov gs, eax
        0xbc, 0x00, 0xb0, 0x01, 0x00, // mov esp, end of LOW
        0xbe, 0x00, 0x10, 0x01, 0x00, // mov esi, PARAMETERS
        0xb8, 0x00, 0x02, 0x00, 0x01, // mov eax, KERNEL + 0x200
        0xff, 0xe0, // jmp rax
    ];
    let mut rom = vec![0; 1 << 16];
    rom[..CODE.len()].copy_from_slice(&CODE);
    // Of the descriptors, limit and address; then the second block of the initramfs, and its end.
    rom[0x100..0x102].copy_from_slice(&31_u16.to_le_bytes());
    let numbers = [LOW + DESCRIPTORS as u64, INITRD + BLOCK, INITRD + initrd];
    for (at, number) in [0x102, 0x106, 0x10a].into_iter().zip(numbers) {
        rom[at..at + 4].copy_from_slice(&u32::try_from(number)?.to_le_bytes());
    }
    // The first instruction is fetched from FFFFFFF0H: jmp 0, sixteen bits wide.
    rom[0xfff0..0xfff3].copy_from_slice(&[0xe9, 0x0d, 0x00]);
    Ok(rom)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel with two sectors of setup and these bytes in protected mode.
    fn kernel(loaded: &[u8]) -> Vec<u8> {
        let mut kernel = vec![0; 3 * 512];
        kernel[0x1f1] = 2;
        kernel[0x201] = 0x6a;
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x258..0x25c].copy_from_slice(&0x100_0000_u32.to_le_bytes());
        kernel[0x260..0x264].copy_from_slice(&0x200_0000_u32.to_le_bytes());
        kernel.extend(loaded);
        kernel
    }

    #[test]
    fn a_kernel_is_taken_apart() {
        let file = kernel(b"code");
        let setup = Setup::of(&file).expect("a kernel");
        assert_eq!(setup.loaded, b"code");
        let low = setup.low("console=ttyS0", 0x1234, 1 << 30).expect("room for it");
        assert_eq!(&low[COMMAND_LINE..COMMAND_LINE + 14], b"console=ttyS0\0");
        assert_eq!(&low[PARAMETERS + 0x202..PARAMETERS + 0x206], b"HdrS");
        assert_eq!(low[PARAMETERS + 0x21c..PARAMETERS + 0x220], 0x1234_u32.to_le_bytes());
        assert_eq!(low[PARAMETERS + 0x1e8], 3);
        assert!(setup.low(&"x".repeat(PAGE), 0, 1 << 30).is_err());
    }

    #[test]
    fn what_is_no_kernel_of_this_kind_is_refused() {
        let good = kernel(b"code");
        for length in [0, 0x1f1, 0x206, 0x260, 0x600 - 1] {
            assert!(Setup::of(&good[..length]).is_err(), "{length}");
        }
        for (at, byte) in [(0x202, b'h'), (0x201, 0x10), (0x25b, 2), (0x263, 0x10)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert!(Setup::of(&bad).is_err(), "{at:#x}");
        }
    }

    #[test]
    fn the_rom_knows_where_the_initramfs_ends() {
        let rom = rom(0x123_4567).expect("below 4 GiB");
        assert_eq!(rom.len(), 0x1_0000);
        assert_eq!(rom[0x10a..0x10e], 0x923_4567_u32.to_le_bytes());
        let displacement = u16::from_le_bytes([rom[0xfff1], rom[0xfff2]]);
        assert_eq!(0xfff3_u16.wrapping_add(displacement), 0);
    }
}

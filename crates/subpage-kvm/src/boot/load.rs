//! Everything is checked first, then memory is written.

use std::fmt;
use std::path::Path;

use linux_loader::elf::{EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_X86_64};
use subpage::address::{ByteRange, Gpa};

use super::acpi::AcpiTables;
use super::initrd::{self, Initrd};
use super::multiboot::{self, MultibootHeader};
use super::paging::BootTables;
use super::parameters::{self, BOOT_FLAG, HEADER_MAGIC, Setup};
use super::part::{PAGE_TABLES, STACK, STACK_TOP, ZERO_PAGE, check_apart, write};
use super::source::Source;
use super::{BootError, Part, Placed, bzimage, elf, mptable, processor};
use crate::memory::Ram;

/// Bytes that tell formats apart: to the end of a bzImage's magic.
const HEAD_BYTES: usize = 0x206;
static ZEROS: [u8; 0x1_0000] = [0; 0x1_0000];

/// What is to be started.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The guest's file.
    pub image: &'a Path,
    /// An initrd, for any format; the zero page says where it is, to a Multiboot kernel as a module.
    pub initrd: Option<&'a Path>,
    /// Command line; no NUL. Images other than bzImages take 2,047 bytes.
    pub command_line: &'a str,
    /// For a flat binary, and only for one: where it goes and begins.
    pub load_address: Option<u64>,
    /// How far the kernel of a bzImage is moved from its link addresses, as at an earlier start; none for
    /// a random distance, where it can be moved and the command line does not say `nokaslr`.
    pub slide: Option<u64>,
    /// Virtual processors, 1 to [`MAX_PROCESSORS`](super::MAX_PROCESSORS).
    pub cpus: u32,
}

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A static ELF64 executable for x86-64, a vmlinux among them.
    Elf64,
    /// A kernel with a Multiboot header: ELF of 32 or 64 bits, or a file whose header says where it goes.
    Multiboot,
    /// A bzImage, or what uses its format.
    LinuxBzImage,
    /// Bytes.
    Flat,
}

impl fmt::Display for Format {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Elf64 => "ELF64",
            Self::Multiboot => "Multiboot kernel",
            Self::LinuxBzImage => "bzImage",
            Self::Flat => "flat binary",
        })
    }
}

/// What a file is as a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageKind {
    /// How it is written.
    pub format: Format,
    /// Of a Linux kernel that is unpacked here and entered at once.
    pub kernel: Option<KernelPlace>,
    /// Why the kernel in a bzImage is not, so that its own loader runs first.
    pub own_loader: Option<String>,
}

/// How the first processor starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// What the image is.
    pub image: ImageKind,
    /// Physical address of the first instruction; RIP.
    pub entry: u64,
    /// Address of the zero page; RSI. For a Multiboot kernel, of its information; EBX.
    pub boot_parameters: u64,
    /// RSP; 0 for a Multiboot kernel, which has none yet.
    pub stack: u64,
    /// Page-table root; CR3. 0 for a Multiboot kernel, which begins without paging.
    pub page_tables: u64,
    /// All that was put into memory, ascending; nothing else was written.
    pub parts: Vec<Placed>,
}

/// Where a kernel lies that was unpacked here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelPlace {
    /// How far above its link addresses it is (KASLR); 0 if it was not moved.
    pub slide: u64,
}

/// An image whose file has been checked.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) kind: ImageKind,
    pub(super) source: Source,
    pub(super) entry: u64,
    /// At least one.
    pub(super) pieces: Vec<Piece>,
    pub(super) setup: Setup,
}

impl Image {
    /// One in which no Linux kernel has to be looked for.
    pub(super) fn plain(
        format: Format,
        source: Source,
        entry: u64,
        pieces: Vec<Piece>,
        setup: Setup,
    ) -> Self {
        let kind = ImageKind { format, kernel: None, own_loader: None };
        Self { kind, source, entry, pieces, setup }
    }
}

/// Bytes of a file, zeros behind them, and where they go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// At least as long as bytes and zeros; what is beyond them is not written.
    pub(super) placed: Placed,
    pub(super) offset: u64,
    pub(super) file_bytes: u64,
    pub(super) zeros: u64,
}

/// What a file is by its first bytes; none if it is no guest, or no regular file.
///
/// A flat binary has nothing to know it by.
pub fn sniff(path: &Path) -> Result<Option<Format>, BootError> {
    let source = match Source::open(path) {
        Ok(source) => source,
        Err(BootError::Empty { .. } | BootError::NotRegular { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let head = head(&source)?;
    if is_bzimage(&head) {
        return Ok(Some(Format::LinuxBzImage));
    }
    if of_multiboot(&source, &head)?.is_some() {
        return Ok(Some(Format::Multiboot));
    }
    let ours = head.starts_with(ELFMAG)
        && head[EI_CLASS] == ELFCLASS64
        && head[EI_DATA] == ELFDATA2LSB
        && head[18..20] == EM_X86_64.to_le_bytes();
    Ok(ours.then_some(Format::Elf64))
}

/// What a file would be as a guest; fails if it can be none, as [`load`] does.
///
/// No memory is needed, so whether a guest's memory is large enough stays open.
pub fn inspect(path: &Path) -> Result<ImageKind, BootError> {
    let request = Request {
        image: path,
        initrd: None,
        command_line: "",
        load_address: None,
        slide: Some(0),
        cpus: 1,
    };
    image(&request).map(|image| image.kind)
}

/// Puts a guest into memory and tells how its first processor starts.
///
/// May be called again for the same memory when the guest resets: it then writes the same bytes
/// again, as long as the files are the same. Guarded bytes are written too; whoever does not want
/// that removes the rules before, or drops the guest.
pub fn load(ram: &Ram, request: &Request<'_>) -> Result<Boot, BootError> {
    let cpus = u8::try_from(request.cpus)
        .ok()
        .filter(|&cpus| (1..=mptable::MAX_PROCESSORS).contains(&cpus.into()))
        .ok_or(BootError::Processors { cpus: request.cpus })?;
    let image = image(request)?;
    check_command_line(request.command_line, image.setup.command_line_most)?;

    let tables = BootTables::plan(ram);
    let mut parts = Vec::new();
    if image.kind.format == Format::Multiboot {
        parts.push(multiboot::information());
    } else {
        parts.extend([
            processor::descriptors(),
            parameters::zero_page(),
            Placed::fixed(Part::Stack, STACK, PAGE_TABLES - STACK),
        ]);
        parts.extend(tables.parts());
    }
    let acpi = AcpiTables::of(cpus);
    parts.extend([
        parameters::command_line(request.command_line),
        mptable::place(cpus),
        acpi.placed(),
    ]);
    parts.extend(image.pieces.iter().map(|piece| piece.placed));
    parts.iter().try_for_each(|placed| placed.check_memory(ram))?;
    check_apart(&parts)?;
    let low_end = ram.regions().first().map_or(0, |low| ByteRange::of_pages(low.pages).bytes());
    let initrd =
        request.initrd.map(|path| initrd::plan(path, image.setup.initrd_end.min(low_end), &parts));
    let initrd = initrd.transpose()?;
    parts.extend(initrd.as_ref().map(|initrd| initrd.placed));
    parts.sort_by_key(|placed| placed.range.first());

    copy(ram, &image, initrd.as_ref())?;
    parameters::write_command_line(ram, request.command_line);
    mptable::write_tables(ram, cpus);
    acpi.write(ram);
    let initrd = initrd.map(|initrd| initrd.placed.range);
    let entry = image.entry;
    if image.kind.format == Format::Multiboot {
        multiboot::write_information(ram, initrd);
        let boot_parameters = multiboot::information().range.first().as_u64();
        return Ok(Boot {
            image: image.kind,
            entry,
            boot_parameters,
            stack: 0,
            page_tables: 0,
            parts,
        });
    }
    processor::write_descriptors(ram);
    tables.write(ram);
    parameters::write_zero_page(
        ram,
        &image.setup,
        image.pieces[0].placed.range,
        initrd,
        tables.high().map(|high| high.range),
    );
    Ok(Boot {
        image: image.kind,
        entry,
        boot_parameters: ZERO_PAGE,
        stack: STACK_TOP,
        page_tables: PAGE_TABLES,
        parts,
    })
}

fn image(request: &Request<'_>) -> Result<Image, BootError> {
    let source = Source::open(request.image)?;
    let head = head(&source)?;
    // The kernel's own headers first: an image may also look like a program of another system.
    let multiboot = of_multiboot(&source, &head)?;
    let is_elf = head.starts_with(ELFMAG);
    let format = if is_bzimage(&head) {
        Format::LinuxBzImage
    } else if multiboot.is_some() {
        Format::Multiboot
    } else if is_elf {
        Format::Elf64
    } else {
        Format::Flat
    };
    match (format, multiboot, request.load_address) {
        (Format::Flat, _, Some(address)) => flat(source, address),
        (Format::Flat, _, None) => Err(BootError::UnknownFormat { path: source.path() }),
        (format, _, Some(_)) => Err(BootError::LoadAddress { path: source.path(), format }),
        (Format::Multiboot, Some(header), None) => multiboot::plan(source, header, is_elf),
        (Format::LinuxBzImage, ..) => bzimage::plan(source, request),
        _ => elf::plan(source),
    }
}

/// The Multiboot header by which a file is loaded, if it has one: an ELF file, or one whose header says
/// where it goes.
fn of_multiboot(
    source: &Source,
    head: &[u8; HEAD_BYTES],
) -> Result<Option<MultibootHeader>, BootError> {
    if is_bzimage(head) {
        return Ok(None);
    }
    let found = MultibootHeader::find(source)?;
    Ok(found.filter(|header| header.has_addresses() || head.starts_with(ELFMAG)))
}

fn flat(source: Source, address: u64) -> Result<Image, BootError> {
    let bytes = source.bytes();
    let range = Gpa::try_new(address).and_then(|first| ByteRange::new(first, bytes));
    let range = range.map_err(|_| BootError::LoadBeyond { address, bytes })?;
    let placed = Placed { part: Part::Flat, range };
    let pieces = vec![Piece { placed, offset: 0, file_bytes: bytes, zeros: 0 }];
    Ok(Image::plain(Format::Flat, source, address, pieces, Setup::without_header()))
}

/// The first bytes of a file; zeros where it has none.
fn head(source: &Source) -> Result<[u8; HEAD_BYTES], BootError> {
    let mut head = [0; HEAD_BYTES];
    let bytes = source.bytes().min(HEAD_BYTES as u64);
    source.read(0, &mut head[..usize::try_from(bytes).expect("few")])?;
    Ok(head)
}

fn is_bzimage(head: &[u8; HEAD_BYTES]) -> bool {
    head[0x1fe..0x200] == BOOT_FLAG.to_le_bytes() && head[0x202..] == HEADER_MAGIC.to_le_bytes()
}

fn check_command_line(text: &str, most: u64) -> Result<(), BootError> {
    if let Some(at) = text.bytes().position(|byte| byte == 0) {
        return Err(BootError::CommandLineNul { at });
    }
    let bytes = text.len() as u64;
    if bytes > most { Err(BootError::CommandLineTooLong { bytes, most }) } else { Ok(()) }
}

fn copy(ram: &Ram, image: &Image, initrd: Option<&Initrd>) -> Result<(), BootError> {
    for piece in &image.pieces {
        let first = piece.placed.range.first();
        image.source.copy(piece.offset, piece.file_bytes, ram, first)?;
        let mut at = first.as_u64() + piece.file_bytes;
        let end = at + piece.zeros;
        while at < end {
            let bytes = (end - at).min(ZEROS.len() as u64);
            write(ram, at, &ZEROS[..usize::try_from(bytes).expect("few")]);
            at += bytes;
        }
    }
    match initrd {
        Some(Initrd { source, placed }) => {
            source.copy(0, source.bytes(), ram, placed.range.first())
        }
        None => Ok(()),
    }
}

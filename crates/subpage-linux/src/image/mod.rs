//! Kernel images: a bzImage or a vmlinux becomes its segments.

mod bzimage;
mod elf;
mod error;
#[cfg(feature = "unpack")]
mod lz4;
mod packaging;
mod relocations;
mod unpack;

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use object::read::ReadCache;

use crate::address::{LinkAddress, Slide};

pub use elf::{Section, Segment};
pub use error::ImageError;
use relocations::Relocations;

pub use packaging::{Compression, Packaging};

/// Longest file in bytes: 4 GiB. A kernel with debug information has about 1 GiB; only its segments
/// are read.
pub const MAX_FILE_BYTES: u64 = 4 << 30;

/// Longest kernel in bytes once it is unpacked, and longest total of its segments: 512 MiB. That of a
/// distribution has about 60 MiB.
pub const MAX_UNPACKED_BYTES: usize = 512 << 20;

/// Longest bzImage in bytes: 256 MiB.
const MAX_BZIMAGE_BYTES: u64 = 256 << 20;

/// How the banner of every kernel begins (`linux_banner`); its release follows.
const BANNER: &[u8] = b"Linux version ";

/// Longest banner in bytes.
const MAX_BANNER_BYTES: usize = 1024;

/// Most banners that are looked at.
const MAX_BANNERS: usize = 16;

/// A 64-bit x86 kernel, opened.
///
/// Holds a copy of its segments: about 60 MiB for a distribution's kernel, at most
/// [`MAX_UNPACKED_BYTES`].
#[derive(Debug)]
pub struct KernelImage {
    packaging: Packaging,
    contents: elf::Contents,
    banner: String,
    banner_at: LinkAddress,
    relocations: Option<Relocations>,
}

impl KernelImage {
    /// Opens a regular file.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        // Opening a pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(ImageError::read)?.is_file() {
            return Err(ImageError::NotAFile);
        }
        let mut file = File::open(path).map_err(ImageError::read)?;
        let bytes = file.metadata().map_err(ImageError::read)?.len();
        let mut head = Vec::new();
        (&mut file)
            .take(bzimage::HEAD_BYTES as u64)
            .read_to_end(&mut head)
            .map_err(ImageError::read)?;
        if bzimage::is_one(&head) {
            if bytes > MAX_BZIMAGE_BYTES {
                return Err(ImageError::TooLong { most: MAX_BZIMAGE_BYTES });
            }
            let mut whole = head;
            file.take(MAX_BZIMAGE_BYTES).read_to_end(&mut whole).map_err(ImageError::read)?;
            return Self::from_bzimage(&whole);
        }
        if bytes > MAX_FILE_BYTES {
            return Err(ImageError::TooLong { most: MAX_FILE_BYTES });
        }
        Self::from_elf(&ReadCache::new(file), Packaging::Vmlinux)
    }

    /// The same for a file that is in memory.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ImageError> {
        if bzimage::is_one(bytes) {
            return Self::from_bzimage(bytes);
        }
        Self::from_elf(bytes, Packaging::Vmlinux)
    }

    fn from_bzimage(bytes: &[u8]) -> Result<Self, ImageError> {
        let payload = bzimage::payload(bytes)?;
        let compression = Compression::of(payload).ok_or(ImageError::UnknownCompression)?;
        let unpacked = unpack::unpack(payload, compression)?;
        let relocations = Relocations::parse(&unpacked[elf::end(&unpacked[..])?..]);
        let relocatable = relocations.is_some();
        let packaging = Packaging::BzImage { compression, relocatable };
        Ok(Self { relocations, ..Self::from_elf(&unpacked[..], packaging)? })
    }

    fn from_elf<'d>(
        data: impl object::ReadRef<'d>,
        packaging: Packaging,
    ) -> Result<Self, ImageError> {
        let contents = elf::read(data)?;
        let banners = contents.segments.iter().flat_map(|segment| {
            banners(&segment.bytes)
                .filter_map(|(at, banner)| Some((segment.address.checked_add(at)?, banner)))
        });
        let mut banners: Vec<_> = banners.take(MAX_BANNERS).collect();
        // An earlier step of the kernel's build leaves one without the number of the build.
        banners.sort_by_key(|(_, banner)| !has_build_number(banner));
        let (banner_at, banner) = banners.into_iter().next().ok_or(ImageError::NotLinux)?;
        Ok(Self { packaging, contents, banner, banner_at, relocations: None })
    }

    /// What the file is.
    pub const fn packaging(&self) -> Packaging {
        self.packaging
    }

    /// Whether the kernel can move itself away from its link addresses when it starts (KASLR): a
    /// bzImage that brings its relocations. A vmlinux that is started as it is stays.
    pub const fn can_move(&self) -> bool {
        matches!(self.packaging, Packaging::BzImage { relocatable: true, .. })
    }

    /// The kernel moved up from its link addresses, as its own loader would move it: its words that hold
    /// addresses are changed, and nothing else. Its physical place is another matter. Fails if it
    /// [cannot move](Self::can_move), if the slide is no less than 4 GiB, or if its lists are damaged.
    pub fn moved(mut self, slide: Slide) -> Result<Self, ImageError> {
        let relocations =
            self.relocations.take().ok_or(ImageError::Slide { bytes: slide.bytes() })?;
        relocations.apply(&mut self.contents.segments, slide)?;
        Ok(self)
    }

    /// The kernel's first line: `Linux version 6.1.0 (...)`, without its end of line.
    pub fn banner(&self) -> &str {
        &self.banner
    }

    /// Where that line stands.
    pub const fn banner_address(&self) -> LinkAddress {
        self.banner_at
    }

    /// The release, as `uname -r` prints it: `6.1.0-50-amd64`.
    pub fn release(&self) -> &str {
        self.banner[BANNER.len()..].split(' ').next().unwrap_or_default()
    }

    /// Major and minor number of the release.
    pub fn version(&self) -> Option<(u32, u32)> {
        let mut numbers = self.release().split(['.', '-', '+', '_']);
        let mut number = || numbers.next()?.parse().ok();
        Some((number()?, number()?))
    }

    /// The number that the linker gave the kernel (`.notes`, GNU build ID): 1 to 64 bytes.
    pub fn build_id(&self) -> Option<&[u8]> {
        self.contents.build_id.as_deref()
    }

    /// Where the kernel proper is entered, as a physical address where it was linked for: the ELF
    /// file's entry point.
    pub const fn entry(&self) -> u64 {
        self.contents.entry
    }

    /// The parts that are loaded, in the order of the file.
    pub fn segments(&self) -> &[Segment] {
        &self.contents.segments
    }

    /// The sections; none in a file that has no list of them.
    pub fn sections(&self) -> &[Section] {
        &self.contents.sections
    }

    /// The one section of this name.
    pub fn section(&self, name: &str) -> Option<&Section> {
        let mut found = self.sections().iter().filter(|section| section.name == name);
        found.next().filter(|_| found.next().is_none())
    }

    /// Bytes of the image by their link address; `None` if the file does not have them all, as for
    /// data that begins as zeros.
    pub fn bytes_at(&self, address: LinkAddress, length: usize) -> Option<&[u8]> {
        self.segments().iter().find_map(|segment| {
            let offset = usize::try_from(address.checked_since(segment.address)?).ok()?;
            segment.bytes.get(offset..offset.checked_add(length)?)
        })
    }

    /// The segment that holds an address, also where it begins as zeros.
    pub fn segment_of(&self, address: LinkAddress) -> Option<&Segment> {
        self.segments().iter().find(|segment| segment.contains(address))
    }

    /// The physical address that the ELF file's segments give a byte: where it lies if the kernel was
    /// not moved.
    pub fn physical(&self, address: LinkAddress) -> Option<u64> {
        let segment = self.segment_of(address)?;
        segment.physical.checked_add(address.checked_since(segment.address)?)
    }
}

/// The banners in a segment, each behind its distance from the start: of printable characters, with a release that begins with a digit, up to
/// an end of line.
fn banners(bytes: &[u8]) -> impl Iterator<Item = (u64, String)> {
    memchr::memmem::find_iter(bytes, BANNER).filter_map(|at| {
        let text = &bytes[at..bytes.len().min(at + MAX_BANNER_BYTES)];
        let end = memchr::memchr(b'\n', text)?;
        let text = std::str::from_utf8(&text[..end]).ok()?;
        let is_release = text.as_bytes().get(BANNER.len()).is_some_and(u8::is_ascii_digit);
        let is_whole = text.contains(" (") && !text.contains(char::is_control);
        (is_release && is_whole).then(|| (at as u64, text.to_owned()))
    })
}

/// Whether a banner says which build of the sources it is of: `#1`.
fn has_build_number(banner: &str) -> bool {
    banner
        .rsplit_once(" #")
        .is_some_and(|(_, number)| number.starts_with(|c: char| c.is_ascii_digit()))
}

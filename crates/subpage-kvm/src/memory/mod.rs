//! The guest's memory: one file, mapped twice.
//!
//! *Direct* is the VMM's own mapping, always readable and writable. *View* is what KVM maps the guest
//! to: a page of it may be made read-only, and then every write of the guest to it leaves the guest.

mod guarded;
mod physical;
mod size;
mod twin;
mod view;
mod window;

use std::fs::File;
use std::sync::Arc;

use arrayvec::ArrayVec;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit};
use subpage::address::{ByteRange, Gfn, GfnRange, Gpa, PAGE_BYTES};
use thiserror::Error;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

pub use size::{Remedy, Size};
pub use subpage_guard::memory::{NoWindow, ViewError};
pub use twin::{PAGE_WORDS, PageImage, Twin};
pub use view::View;

/// Where memory stops below 4 GiB: from there to 4 GiB are the addresses of devices.
pub const HOLE_START: u64 = 0xc000_0000;

/// Where memory goes on above the hole.
pub const HOLE_END: u64 = 1 << 32;

/// Least guest memory in bytes: 2 MiB.
pub const MIN_BYTES: u64 = 2 << 20;

/// Most guest memory in bytes: 255 GiB.
pub const MAX_BYTES: u64 = 255 << 30;

/// Why guest memory could not be made.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The size is not one.
    #[error(
        "guest memory of {} is not a multiple of 4096 bytes from {} to {}",
        Size(*bytes), Size(MIN_BYTES), Size(MAX_BYTES)
    )]
    Size {
        /// What was asked for.
        bytes: u64,
    },
    /// The memory is a file, and files of this process may not be as long.
    #[error(
        "guest memory of {} is beyond the {} that a file of this process may have: raise that limit \
         (`ulimit -f`), or give the guest less memory",
        Size(*bytes), Size(*limit)
    )]
    FileLimit {
        /// What was asked for.
        bytes: u64,
        /// What is allowed.
        limit: u64,
    },
    /// The memory that is to have a second address is none, or that address is taken.
    #[error("memory can have a second address behind all memory, and not between 3 and 4 GiB")]
    Alias,
    /// The host has no memory, or no address space, for it.
    #[error("cannot get {} of guest memory: {cause}", Size(*bytes))]
    Host {
        /// What was asked for.
        bytes: u64,
        /// What the host said.
        cause: String,
    },
}

/// A run of guest memory without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Its pages.
    pub pages: GfnRange,
    /// Offset of its first byte in the file.
    pub offset: u64,
}

/// Guest memory that has a second address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryAlias {
    /// Where the guest finds it again: pages behind all memory, none of them between 3 and 4 GiB.
    pub pages: GfnRange,
    /// The first of as many pages of memory in one run.
    pub original: Gfn,
}

/// Runs of guest memory: at most two, and an alias.
type Regions = ArrayVec<Region, 3>;

/// A region in the direct mapping.
#[derive(Debug, Clone, Copy)]
struct Span {
    /// Guest-physical address of its first byte.
    first: u64,
    bytes: u64,
    /// Address of that byte in this process.
    host: usize,
}

/// Guest memory.
#[derive(Debug, Clone)]
pub struct Ram {
    direct: GuestMemoryMmap,
    view: Arc<View>,
    file: Arc<File>,
    /// Ascending.
    regions: Regions,
    alias: Option<MemoryAlias>,
    /// Where the regions lie in the direct mapping.
    spans: ArrayVec<Span, 3>,
    bytes: u64,
}

impl Ram {
    /// Makes zeroed memory of `bytes`: from address 0 to 3 GiB, the rest from 4 GiB on.
    ///
    /// The host's memory is taken page by page as the guest touches it.
    pub fn new(bytes: u64) -> Result<Self, MemoryError> {
        Self::with_alias(bytes, None)
    }

    /// The same, some of which the guest finds at a second address, too.
    pub fn with_alias(bytes: u64, alias: Option<MemoryAlias>) -> Result<Self, MemoryError> {
        if !(MIN_BYTES..=MAX_BYTES).contains(&bytes) || !bytes.is_multiple_of(PAGE_BYTES) {
            return Err(MemoryError::Size { bytes });
        }
        // The kernel would end this process by SIGXFSZ.
        if let Ok((limit, _)) = getrlimit(Resource::RLIMIT_FSIZE)
            && bytes > limit
        {
            return Err(MemoryError::FileLimit { bytes, limit });
        }
        let host = |cause: String| MemoryError::Host { bytes, cause };
        let file = memfd_create(c"subpage-guest", MFdFlags::MFD_CLOEXEC)
            .map_err(|error| host(error.to_string()))?;
        let file = File::from(file);
        file.set_len(bytes).map_err(|error| host(error.to_string()))?;
        let file = Arc::new(file);
        let mut regions: Regions = regions(bytes).into_iter().collect();
        if let Some(alias) = alias {
            regions.push(aliased(&regions, alias).ok_or(MemoryError::Alias)?);
        }
        let direct = map(&regions, &file).map_err(host)?;
        let view = View::new(map(&regions, &file).map_err(host)?);
        let spans = regions
            .iter()
            .map(|region| {
                let first =
                    direct.get_host_address(GuestAddress(region.pages.first().gpa().as_u64()));
                Span {
                    first: region.pages.first().gpa().as_u64(),
                    bytes: region.pages.pages() * PAGE_BYTES,
                    host: first.expect("it has just been mapped").expose_provenance(),
                }
            })
            .collect();
        Ok(Self { direct, view: Arc::new(view), file, regions, alias, spans, bytes })
    }

    /// The VMM's own mapping. Whoever writes to it on behalf of the guest has asked the domain first.
    pub const fn direct(&self) -> &GuestMemoryMmap {
        &self.direct
    }

    /// What KVM maps the guest to.
    pub const fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// The mapping of the second address space, which is made at the first call. `closed` are the
    /// pages that the guest may not write.
    pub fn twin(&self, closed: &[GfnRange]) -> Result<&Twin, MemoryError> {
        if let Some(twin) = self.view.twin() {
            return Ok(twin);
        }
        let bytes = self.bytes;
        let host = |cause: String| MemoryError::Host { bytes, cause };
        let twin = Twin::new(&self.regions, &self.file).map_err(host)?;
        let parts = closed.iter().flat_map(|run| {
            self.regions.iter().filter_map(|region| region.pages.intersection(*run))
        });
        self.view.add_twin(twin, parts).map_err(|error| host(error.to_string()))
    }

    /// The file behind both.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The runs of memory, ascending; each byte once.
    pub fn regions(&self) -> &[Region] {
        let aliases = usize::from(self.alias.is_some());
        &self.regions[..self.regions.len() - aliases]
    }

    /// The runs of memory and the alias, ascending.
    pub fn mapped(&self) -> &[Region] {
        &self.regions
    }

    /// The memory that has a second address.
    pub const fn alias(&self) -> Option<MemoryAlias> {
        self.alias
    }

    /// Size in bytes.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether all of a range is memory.
    pub fn holds(&self, range: ByteRange) -> bool {
        self.regions.iter().any(|region| {
            region.pages.contains(range.first().gfn()) && region.pages.contains(range.last().gfn())
        })
    }

    /// Offset of a page in the file; none if it is no memory.
    pub fn offset(&self, gfn: Gfn) -> Option<u64> {
        let region = self.regions.iter().find(|region| region.pages.contains(gfn))?;
        let page = gfn.as_u64() - region.pages.first().as_u64();
        Some(region.offset + page * PAGE_BYTES)
    }
}

fn regions(bytes: u64) -> ArrayVec<Region, 2> {
    let run = |start: u64, bytes: u64, offset: u64| Region {
        pages: GfnRange::new(Gpa::new(start).gfn(), bytes / PAGE_BYTES).expect("checked above"),
        offset,
    };
    let low = bytes.min(HOLE_START);
    let mut regions = ArrayVec::new();
    regions.push(run(0, low, 0));
    if bytes > low {
        regions.push(run(HOLE_END, bytes - low, low));
    }
    regions
}

/// The region that an alias is; none if it cannot be.
fn aliased(regions: &[Region], alias: MemoryAlias) -> Option<Region> {
    let MemoryAlias { pages, original } = alias;
    let originals = GfnRange::new(original, pages.pages()).ok()?;
    let hole = GfnRange::new(Gpa::new(HOLE_START).gfn(), (HOLE_END - HOLE_START) / PAGE_BYTES);
    let region = regions.iter().find(|region| region.pages.covers(originals))?;
    let behind = regions.iter().all(|region| region.pages.last() < pages.first());
    let free = behind && pages.intersection(hole.ok()?).is_none();
    let before = original.as_u64() - region.pages.first().as_u64();
    free.then_some(Region { pages, offset: region.offset + before * PAGE_BYTES })
}

fn map(regions: &[Region], file: &Arc<File>) -> Result<GuestMemoryMmap, String> {
    let ranges: Vec<_> = regions
        .iter()
        .map(|region| {
            let bytes = usize::try_from(region.pages.pages() * PAGE_BYTES).expect("64 bits");
            let start = GuestAddress(region.pages.first().gpa().as_u64());
            (start, bytes, Some(FileOffset::from_arc(Arc::clone(file), region.offset)))
        })
        .collect();
    GuestMemoryMmap::from_ranges_with_files(&ranges).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes as _;

    use super::*;

    #[test]
    fn memory_goes_on_behind_the_hole() {
        let ram = Ram::new(HOLE_START + 0x2000).expect("address space");
        assert_eq!(ram.regions().len(), 2);
        assert_eq!(ram.offset(Gpa::new(HOLE_END).gfn()), Some(HOLE_START));
        assert_eq!(ram.offset(Gpa::new(HOLE_START).gfn()), None);
        let write = |at| ByteRange::new(Gpa::new(at), 8).expect("eight bytes");
        assert!(ram.holds(write(HOLE_END + 0x1ff8)) && !ram.holds(write(HOLE_START - 4)));
        ram.direct().write_obj(7_u64, GuestAddress(HOLE_END)).expect("memory");
        assert_eq!(ram.direct().read_obj::<u64>(GuestAddress(HOLE_END)).expect("memory"), 7);
    }

    #[test]
    fn memory_may_have_a_second_address() {
        let pages = |first: u64| GfnRange::new(Gpa::new(first).gfn(), 2).expect("pages");
        let alias = |at: u64, original: u64| {
            let alias = MemoryAlias { pages: pages(at), original: Gpa::new(original).gfn() };
            Ram::with_alias(MIN_BYTES, Some(alias))
        };
        let ram = alias(MIN_BYTES + 0x5000, 0x3000).expect("address space");
        ram.direct().write_obj(7_u64, GuestAddress(MIN_BYTES + 0x6008)).expect("memory");
        assert_eq!(ram.direct().read_obj::<u64>(GuestAddress(0x4008)).expect("memory"), 7);
        assert_eq!((ram.regions().len(), ram.mapped().len()), (1, 2));
        for (at, original) in [
            (MIN_BYTES - 4096, 0),
            (HOLE_START - 4096, 0),
            (MIN_BYTES, MIN_BYTES - 4096),
            (HOLE_END - 4096, 0),
        ] {
            assert!(matches!(alias(at, original), Err(MemoryError::Alias)), "{at:#x}");
        }
    }

    #[test]
    fn wrong_sizes_are_refused() {
        for bytes in [0, MIN_BYTES - 4096, MIN_BYTES + 1, !0xfff] {
            assert!(matches!(Ram::new(bytes), Err(MemoryError::Size { .. })), "{bytes}");
        }
    }
}

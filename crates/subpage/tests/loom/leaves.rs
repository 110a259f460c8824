//! A processor sets accessed and dirty flags in a leaf while the engine changes it: neither loses
//! what the other has written (`ept/table.rs`: leaves change by compare-and-exchange).

use std::sync::Arc;

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use subpage::access::AccessMap;
use subpage::address::{ByteRange, Gfn, GfnRange, Hpa, PhysicalWidth};
use subpage::domain::{Domain, HostPage, ProcessorUse};
use subpage::ept::{EptEntry, MemoryType};
use subpage::frames::TableFrame;
use subpage::invalidate::Shootdown;
use subpage::level::PageSize;
use subpage::slots::{AddressSpace::Normal, SlotFlags, SlotId};

use crate::frames::{Access, LoomFrames, access_page};
use crate::{PAGE, check, wait};

/// Partial: sub-page 0 may be written.
const PARTIAL: AccessMap = AccessMap::from_bits(1);

/// A domain with 2 MiB of memory, mapped at [`PAGE`] by one leaf of the given size.
fn mapped(frames: LoomFrames, size: PageSize, flags: SlotFlags) -> Domain<LoomFrames> {
    let mut domain = Domain::new(frames, PhysicalWidth::MAX);
    domain.enable().expect("frames");
    domain.set_processor_use(ProcessorUse { sub_page_permissions: true, ept_accessed_dirty: true });
    let pages = GfnRange::new(Gfn::new(0), 512).expect("a range");
    domain.add_slot(Normal, SlotId(0), pages, flags).expect("a free place");
    let first = Gfn::new(PAGE.as_u64() / size.frames() * size.frames());
    let page = HostPage {
        hpa: Hpa::new(0x4000_0000 + first.gpa().as_u64()),
        size,
        writable: true,
        executable: true,
        memory_type: MemoryType::WriteBack,
    };
    domain.map(Normal, first, page).expect("frames");
    domain
}

fn root(domain: &Domain<LoomFrames>) -> TableFrame {
    domain.ept(Normal).expect("something is mapped").root()
}

fn leaf(domain: &Domain<LoomFrames>, gfn: Gfn) -> EptEntry {
    domain.mapping(Normal, gfn).expect("it is mapped").entry
}

/// Gives the page `before`, then changes it to `after` while a processor accesses it.
///
/// The flags that the access has set stay, the rights are those of `after`.
fn flags_meet_a_change(
    size: PageSize,
    access: Access,
    before: AccessMap,
    after: AccessMap,
    write: bool,
    sub_page_write: bool,
) {
    check(move || {
        let frames = LoomFrames::new();
        let mut domain = mapped(frames.clone(), size, SlotFlags::default());
        let token = domain.set_access(PAGE, &[before]).expect("frames");
        domain.finish(&token.without_processors());
        let root = root(&domain);
        let board = Arc::new(Shootdown::new(1).expect("memory"));
        let processor = {
            let (board, mut frames) = (Arc::clone(&board), frames);
            thread::spawn(move || {
                let epoch = board.enter(0);
                board.acknowledge(0, epoch);
                let accessed = access_page(&mut frames, root, PAGE, access);
                board.leave(0);
                accessed
            })
        };
        let token = domain.set_access(PAGE, &[after]).expect("frames");
        let done = wait(&board, token);
        let accessed = processor.join().expect("no panic");
        // What a processor left in a table that is gone comes over here.
        domain.finish(&done);
        let leaf = leaf(&domain, PAGE);
        assert_eq!((leaf.write(), leaf.sub_page_write()), (write, sub_page_write));
        if let Some(accessed) = accessed {
            assert!(leaf.accessed(), "an accessed flag is lost");
            assert!(leaf.dirty() || !accessed.dirty(), "a dirty flag is lost");
        } else {
            assert!(!leaf.dirty(), "nothing was written");
        }
    });
}

/// W goes to 0 under a processor that writes.
#[test]
fn flags_survive_that_a_page_is_closed() {
    flags_meet_a_change(
        PageSize::Size4K,
        Access::Write,
        AccessMap::ALL,
        AccessMap::NONE,
        false,
        false,
    );
}

/// W goes to 0 and bit 61 to 1 under a processor that writes.
#[test]
fn flags_survive_that_the_sppt_decides() {
    flags_meet_a_change(PageSize::Size4K, Access::Write, AccessMap::ALL, PARTIAL, false, true);
}

/// W goes to 1 under a processor that reads.
#[test]
fn flags_survive_that_a_page_is_opened() {
    flags_meet_a_change(
        PageSize::Size4K,
        Access::Read,
        AccessMap::NONE,
        AccessMap::ALL,
        true,
        false,
    );
}

/// A large leaf is split under a processor that writes.
#[test]
fn flags_survive_a_split() {
    flags_meet_a_change(PageSize::Size2M, Access::Write, AccessMap::ALL, PARTIAL, false, true);
}

/// Small leaves are merged under a processor that writes: flags that it sets in the old table, after
/// the engine has looked at it, come over when the table is released.
#[test]
fn flags_survive_a_merge() {
    flags_meet_a_change(PageSize::Size2M, Access::Write, PARTIAL, AccessMap::ALL, true, false);
}

/// The host's own answer changes (a page is shared with another machine, say).
#[test]
fn flags_survive_that_the_host_closes_a_page() {
    check(|| {
        let frames = LoomFrames::new();
        let mut domain = mapped(frames.clone(), PageSize::Size4K, SlotFlags::default());
        let root = root(&domain);
        let processor = thread::spawn(move || {
            let mut frames = frames;
            access_page(&mut frames, root, PAGE, Access::Write).is_some()
        });
        let pages = GfnRange::new(PAGE, 1).expect("a range");
        let token = domain.protect(Normal, pages, false).expect("no split");
        assert!(token.is_required());
        let written = processor.join().expect("no panic");
        domain.finish(&token.without_processors());
        let leaf = leaf(&domain, PAGE);
        assert!(!leaf.write() && !leaf.host_writable());
        assert_eq!((leaf.accessed(), leaf.dirty()), (written, written));
    });
}

/// The dirty log: an observer that copies what each harvest reports, when it may be read, ends with what is
/// in memory.
#[test]
fn harvesting_dirty_pages() {
    check(|| {
        let frames = LoomFrames::new();
        let flags = SlotFlags { log_dirty: true, ..SlotFlags::default() };
        let domain = mapped(frames.clone(), PageSize::Size4K, flags);
        let root = root(&domain);
        let domain = Arc::new(Mutex::new(domain));
        let board = Arc::new(Shootdown::new(1).expect("memory"));
        let data = Arc::new(AtomicU64::new(0));
        let writer = {
            let (domain, board, data) =
                (Arc::clone(&domain), Arc::clone(&board), Arc::clone(&data));
            thread::spawn(move || {
                let mut frames = frames;
                let mut look = |board: &Shootdown, epoch| {
                    let cached = access_page(&mut frames, root, PAGE, Access::Write).is_some();
                    board.acknowledge(0, epoch);
                    cached
                };
                let mut cached = look(&board, board.enter(0));
                for value in 1..=2 {
                    if let Some(epoch) = board.pending(0) {
                        cached = look(&board, epoch);
                    }
                    if cached {
                        data.store(value, Ordering::Release);
                        continue;
                    }
                    board.leave(0);
                    let byte = ByteRange::new(PAGE.gpa(), 1).expect("a range");
                    let mut domain = domain.lock().expect("no panic");
                    assert!(domain.authorize_write(Normal, byte).expect("frames").permits());
                    data.store(value, Ordering::Release);
                    drop(domain);
                    cached = look(&board, board.enter(0));
                }
                // It stays in the guest: a harvest may end by its acknowledgement alone.
                if let Some(epoch) = board.pending(0) {
                    look(&board, epoch);
                }
                board.leave(0);
            })
        };
        let mut copy = 0;
        let mut harvest = || {
            let (pending, token) =
                domain.lock().expect("no panic").harvest_dirty(Normal, SlotId(0)).expect("logs");
            let done = wait(&board, token);
            let pages = pending.ready(&done).expect("complete");
            if pages.iter().next().is_some() {
                copy = data.load(Ordering::Acquire);
            }
            domain.lock().expect("no panic").finish(&done);
        };
        harvest();
        writer.join().expect("no panic");
        harvest();
        assert_eq!(copy, 2, "a write fell between two harvests");
    });
}

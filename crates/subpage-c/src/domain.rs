//! A domain: made, enabled, told of completed invalidations, dropped.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem::MaybeUninit;

use subpage::address::PhysicalWidth;
use subpage::domain::ProcessorUse;
use subpage::errno::Errno;
use subpage::frames::HeapFrames;
use subpage::invalidate::{Completed, Invalidation};
use subpage::slots::AddressSpace;

use crate::change::{Pending, Room};
use crate::events::Queue;
use crate::frames::{Frames, Given, Memory};
use crate::harvest::Harvests;
use crate::status::{Failed, INVALID, done, given, status, valid};

/// The ordinary address space of a guest.
pub const SUBPAGE_SPACE_NORMAL: u32 = 0;
/// That of system-management mode.
pub const SUBPAGE_SPACE_SMM: u32 = 1;

/// The version of this interface; a program that was compiled for another one must not go on.
pub const SUBPAGE_INTERFACE: u32 = 1;

/// The memory of one virtual machine and who may write it.
#[allow(missing_debug_implementations)] // Nobody but C has one.
pub struct Domain {
    pub(crate) engine: subpage::domain::Domain<Memory>,
    pub(crate) pending: Pending,
    pub(crate) events: Queue,
    pub(crate) harvests: Harvests,
    /// The newest completed change: what harvests wait for.
    pub(crate) completed: Option<Completed>,
    /// Whether a processor walks the tables.
    walked: bool,
}

/// How a domain is made.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Options {
    /// Bits of a physical address of the processor, 32 to 52 (CPUID 80000008H, EAX 7:0).
    pub physical_width: u32,
    /// The processor walks the permission table: "sub-page write permissions for EPT" is 1.
    pub sub_page_permissions: bool,
    /// EPTP bit 6 is set.
    pub ept_accessed_dirty: bool,
    /// Events that are kept until they are fetched, 1 to 65536; 0 stands for 1024.
    pub events: u32,
    /// Where tables lie that a processor walks. With all functions NULL they lie on the heap, no processor
    /// walks them, and every change is in force at once: its number is 0.
    pub frames: Frames,
}

/// Most events that a domain may keep.
const MOST_EVENTS: u32 = 1 << 16;

pub(crate) fn space_of(number: u32) -> Result<AddressSpace, Failed> {
    match number {
        SUBPAGE_SPACE_NORMAL => Ok(AddressSpace::Normal),
        SUBPAGE_SPACE_SMM => Ok(AddressSpace::Smm),
        _ => Err(INVALID),
    }
}

impl Domain {
    fn new(options: &Options) -> Result<Self, Failed> {
        let width = valid(PhysicalWidth::try_new(options.physical_width))?;
        let Frames { allocate, release, table, .. } = options.frames;
        let none = allocate.is_none() && release.is_none() && table.is_none();
        let memory = if none {
            Memory::Heap(HeapFrames::new())
        } else {
            Memory::Given(Given::new(&options.frames).ok_or(INVALID)?)
        };
        let walked = !none;
        let events = match options.events {
            0 => 1024,
            more if more <= MOST_EVENTS => more,
            _ => return Err(INVALID),
        };
        let mut engine = subpage::domain::Domain::new(memory, width);
        engine.set_processor_use(ProcessorUse {
            sub_page_permissions: options.sub_page_permissions,
            ept_accessed_dirty: options.ept_accessed_dirty,
        });
        Ok(Self {
            engine,
            pending: Pending::default(),
            events: Queue::new(events)?,
            harvests: Harvests::default(),
            completed: None,
            walked,
        })
    }

    /// Makes a change and keeps its token: all or nothing, whatever fails.
    pub(crate) fn change<T>(
        &mut self,
        number: Option<&mut MaybeUninit<u64>>,
        change: impl FnOnce(&mut subpage::domain::Domain<Memory>) -> Result<(T, Invalidation), Failed>,
    ) -> Result<T, Failed> {
        let number = given(number)?;
        let room = self.pending.room()?;
        let (result, token) = change(&mut self.engine)?;
        number.write(self.keep(room, token));
        Ok(result)
    }

    fn keep(&mut self, room: Room, token: Invalidation) -> u64 {
        let took_rights = token.is_required();
        let (number, completed) = self.pending.keep(room, token, self.walked);
        if let Some(completed) = completed {
            self.engine.finish(&completed);
            // What took nothing away is older than every change that did.
            if took_rights || self.completed.is_none() {
                self.completed = Some(completed);
            }
        }
        number
    }
}

/// The version of the interface that the library has: compare it with SUBPAGE_INTERFACE.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_interface() -> u32 {
    SUBPAGE_INTERFACE
}

/// Makes a domain without memory, rules or tables and puts it into `*made`.
///
/// -EINVAL: a width, a number of events, or functions of which some are NULL and some are not. -ENOMEM:
/// no room for the domain or its events.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_create(
    options: Option<&Options>,
    made: Option<&mut MaybeUninit<*mut Domain>>,
) -> i64 {
    done((|| {
        let (options, made) = (given(options)?, given(made)?);
        made.write(Box::into_raw(boxed(Domain::new(options)?)?).cast());
        Ok(())
    })())
}

/// A domain on the heap, or an error where there is no memory: `Box::new` would stop the program.
fn boxed(domain: Domain) -> Result<Box<[Domain; 1]>, Failed> {
    let mut one = Vec::new();
    one.try_reserve_exact(1).map_err(|_| Failed(Errno::NoMemory))?;
    one.push(domain);
    Ok(one.into_boxed_slice().try_into().unwrap_or_else(|_| unreachable!("one was pushed")))
}

/// Drops a domain; NULL is nothing to drop. Frames from `subpage_frames.allocate` are given back, so no
/// processor may use its tables any more.
///
/// # Safety
/// `domain` is from `subpage_create` and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn subpage_destroy(domain: *mut Domain) {
    if !domain.is_null() {
        // SAFETY: it was made by `Box::into_raw` of an array of one in `subpage_create`, and this is its
        // last use.
        drop(unsafe { Box::from_raw(domain.cast::<[Domain; 1]>()) });
    }
}

/// Turns sub-page permissions on: allocates the root of the permission table. Twice does no harm.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_enable(domain: Option<&mut Domain>) -> i64 {
    done((|| Ok(given(domain)?.engine.enable()?))())
}

/// Says that every processor has invalidated its translations (INVEPT) after the change with this number
/// was made. That change and all before it are then in force, and their tables are freed.
///
/// -EINVAL: no change has that number. 0, or one that was completed before, does no harm.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_invalidated(domain: Option<&mut Domain>, change: u64) -> i64 {
    done((|| {
        let domain = given(domain)?;
        if let Some(completed) = domain.pending.complete(change)? {
            domain.engine.finish(&completed);
            domain.completed = Some(completed);
        }
        Ok(())
    })())
}

/// How many changes wait for `subpage_invalidated`.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_pending_changes(domain: Option<&Domain>) -> i64 {
    status((|| i64::try_from(given(domain)?.pending.len()).map_err(|_| Failed(Errno::NoSpace)))())
}

/// The address of the root of the permission table (SPPTP); -ENODEV before `subpage_enable`.
///
/// It means something to a processor only if the tables lie in frames that the program gave.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_sppt_root(domain: Option<&Domain>) -> i64 {
    root((|| Ok(given(domain)?.engine.sppt().map(|sppt| sppt.root().hpa().as_u64())))())
}

/// The address of the root of an address space's EPT; -ENODEV while nothing was mapped there.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_ept_root(domain: Option<&Domain>, space: u32) -> i64 {
    root((|| {
        let ept = given(domain)?.engine.ept(space_of(space)?);
        Ok(ept.map(|ept| ept.root().hpa().as_u64()))
    })())
}

/// A physical address has at most 52 bits, so it is no negative number.
fn root(hpa: Result<Option<u64>, Failed>) -> i64 {
    status(hpa.and_then(|hpa| {
        let hpa = hpa.ok_or(Failed(Errno::NoDevice))?;
        i64::try_from(hpa).map_err(|_| INVALID)
    }))
}

//! Checks a kernel, and puts it where it begins.
//!
//! Unsafe because memory is written that nobody else uses yet.
#![allow(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use arrayvec::ArrayVec;
use subpage::address::{ByteRange, Gpa, PhysicalWidth};
use subpage::domain::Domain;
use subpage::frames::HeapFrames;
use subpage::rules::RuleName;
use subpage_linux::boot::{HeaderError, SetupHeader, TooManyRanges};
use thiserror::Error;

use super::first_memory::{self, COMMAND_LINE_ROOM, ROOT_POINTER_ROOM, Told};
use super::places::{PlaceError, Places, Wanted, place};
use crate::boot::information::{Information, Module};
use crate::boot::{Entry, information::MOST};
use crate::memory::reach;
use crate::policy::{self, PolicyError};

/// Why a kernel cannot be started.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LinuxError {
    /// The module is no kernel.
    #[error("the module \"linux\": {0}")]
    Header(#[from] HeaderError),
    /// It has no place.
    #[error("{0}")]
    Place(#[from] PlaceError),
    /// The command line is too long.
    #[error("the kernel's command line has {bytes} bytes; it takes {most}")]
    CommandLine {
        /// Its length.
        bytes: usize,
        /// What the kernel takes, and what there is room for.
        most: usize,
    },
    /// The firmware's memory map is too long.
    #[error("{0}")]
    Ranges(#[from] TooManyRanges),
    /// The policy is none.
    #[error("{0}")]
    Policy(#[from] PolicyError),
    /// The kernel could be anywhere.
    #[error(
        "the policy names addresses, and the kernel would choose its own: add `nokaslr` to its command \
         line"
    )]
    Moves,
    /// A rule covers something that it must not.
    #[error("{rule} covers {range}, {what}")]
    Covers {
        /// Its name, or that it is an access map.
        rule: String,
        /// The bytes.
        range: String,
        /// What they are.
        what: &'static str,
    },
}

/// A kernel that can be started, and where everything will be.
#[derive(Debug)]
pub struct Plan {
    header: SetupHeader,
    kernel: Range<u64>,
    initrd: Option<Range<u64>>,
    program: Range<u64>,
    /// Where everything goes.
    pub places: Places,
}

/// A kernel in its place.
#[derive(Debug)]
pub struct Linux {
    /// How the first processor begins.
    pub entry: Entry,
    /// The guest's memory.
    pub memory: ArrayVec<Range<u64>, { MOST + 4 }>,
    /// What of the machine's memory it does not get.
    pub own: ArrayVec<Range<u64>, 4>,
    /// Where the kernel proper is entered.
    pub kernel_at: Gpa,
    /// The policy module, which has been tried; empty without one.
    pub policy: Vec<u8>,
}

/// Looks at a kernel, `file`, and finds a place for everything. Takes no memory.
pub fn plan(
    told: &Information<'_>,
    module: &Module<'_>,
    file: &[u8],
    program: Range<u64>,
    block: Range<u64>,
) -> Result<Plan, LinuxError> {
    let header = SetupHeader::read(file)?;
    let run = header.preferred_address();
    let initrd = told.modules.iter().find(|module| module.name == "initrd");
    let initrd = initrd.map(|module| module.range.clone()).filter(|range| range.start < range.end);
    let wanted = Wanted {
        run: run..run + header.run_bytes(),
        alignment: header.alignment(),
        image_bytes: file.len() as u64 - header.setup_bytes(),
        initrd: initrd.clone(),
        initrd_end: header.initrd_end(),
    };
    let mut lying: ArrayVec<Range<u64>, { MOST + 1 }> =
        told.modules.iter().map(|module| module.range.clone()).collect();
    lying.push(block);
    let places = place(&told.memory, &program, &lying, &wanted)?;
    Ok(Plan { header, kernel: module.range.clone(), initrd, program, places })
}

/// Puts everything in its place.
///
/// # Safety
/// Nobody uses the places of the plan, and the modules lie where it was told; `told`, `policy` and the
/// command line are copies that lie elsewhere.
pub unsafe fn load(
    plan: &Plan,
    told: &Information<'_>,
    policy: Vec<u8>,
    command_line: &str,
    width: PhysicalWidth,
) -> Result<Linux, LinuxError> {
    let Plan { header, places, program, .. } = plan;
    let most = usize::try_from(header.command_line_most()).unwrap_or(usize::MAX);
    let most = most.min(COMMAND_LINE_ROOM - 1);
    if command_line.len() > most {
        return Err(LinuxError::CommandLine { bytes: command_line.len(), most });
    }
    let own: ArrayVec<_, 4> = [program.clone(), places.own.clone()].into_iter().collect();
    let memory = without(&told.memory, &own, reach::END);
    if !policy.is_empty() {
        if !command_line.split_ascii_whitespace().any(|word| word == "nokaslr") {
            return Err(LinuxError::Moves);
        }
        check_policy(&policy, width, &memory, &places.first_memory)?;
    }
    let low = |address: u64| u32::try_from(address).expect("places are below 4 GiB");
    let block = first_memory::block(
        low(places.first_memory.start),
        &Told {
            header,
            loaded_at: low(places.image.start),
            initrd: places.initrd.as_ref().map(|range| low(range.start)..low(range.end)),
            command_line,
            memory: &told.areas,
            own: &own,
            root_pointer: told.root_pointer.filter(|pointer| pointer.len() <= ROOT_POINTER_ROOM),
        },
    )?;
    // The initrd first: the kernel may go where it lies, and it goes nowhere where the kernel lies.
    if let (Some(from), Some(to)) = (&plan.initrd, &places.initrd) {
        // SAFETY: by the contract.
        unsafe { copy(from.start, to.start, to.end - to.start) };
    }
    let loaded = plan.kernel.start + header.setup_bytes();
    // SAFETY: by the contract; overlapping is allowed.
    unsafe { copy(loaded, places.image.start, places.image.end - places.image.start) };
    // SAFETY: by the contract.
    unsafe { copy(block.as_ptr() as u64, places.first_memory.start, block.len() as u64) };
    let at = first_memory::addresses(places.first_memory.start);
    let entry = Entry {
        rip: places.image.start + header.entry(),
        rsp: at.stack,
        cr3: at.top_table,
        information: at.parameters,
        code: first_memory::CODE,
        data: first_memory::DATA,
        descriptors: (at.descriptors, at.descriptors_limit),
    };
    let kernel_at = Gpa::new(header.preferred_address());
    Ok(Linux { entry, memory, own, kernel_at, policy })
}

/// Copies memory that may overlap.
///
/// # Safety
/// Both places are mapped, and nobody else uses the second.
#[allow(clippy::cast_possible_truncation)] // Both have 64 bits.
unsafe fn copy(from: u64, to: u64, bytes: u64) {
    let bytes = bytes as usize;
    // SAFETY: by the contract.
    unsafe { core::ptr::copy(from as usize as *const u8, to as usize as *mut u8, bytes) };
}

/// The areas without what is the hypervisor's, by whole pages, as far as it can reach them.
fn without(
    usable: &[Range<u64>],
    own: &[Range<u64>],
    reached: u64,
) -> ArrayVec<Range<u64>, { MOST + 4 }> {
    const PAGE: u64 = 4096;
    let mut left = ArrayVec::new();
    for area in usable {
        let mut start = area.start.next_multiple_of(PAGE);
        let end = area.end.min(reached) / PAGE * PAGE;
        while start < end {
            if let Some(own) = own.iter().find(|own| own.start <= start && start < own.end) {
                start = own.end;
                continue;
            }
            let next = own.iter().map(|own| own.start).filter(|&at| at > start).min();
            let stop = next.unwrap_or(end).min(end);
            left.push(start..stop);
            start = stop;
        }
    }
    left
}

/// Tries a policy, and looks at what its rules cover.
fn check_policy(
    module: &[u8],
    width: PhysicalWidth,
    memory: &[Range<u64>],
    first: &Range<u64>,
) -> Result<(), LinuxError> {
    let mut trial = Domain::new(HeapFrames::new(), width);
    trial.enable().map_err(|_| PolicyError::OutOfMemory)?;
    let (_, token) = policy::load(&mut trial, module)?;
    trial.finish(&token.without_processors());
    let rules = trial.rules().iter().map(|active| (Some(&active.rule.name), active.rule.range));
    let mut gfn = trial.next_restricted(subpage::address::Gfn::new(0));
    let maps = core::iter::from_fn(|| {
        let found = gfn?;
        gfn = found.checked_add(1).and_then(|next| trial.next_restricted(next));
        let page = ByteRange::new(found.gpa(), subpage::address::PAGE_BYTES).ok()?;
        Some((None, page))
    });
    for (name, range) in rules.chain(maps) {
        check_range(name, range, memory, first)?;
    }
    Ok(())
}

fn check_range(
    name: Option<&RuleName>,
    range: ByteRange,
    memory: &[Range<u64>],
    first: &Range<u64>,
) -> Result<(), LinuxError> {
    let bytes = range.first().as_u64()..range.last().as_u64() + 1;
    let what = if bytes.start < first.end && first.start < bytes.end {
        "where the kernel has its first stack and page tables"
    } else if !memory.iter().any(|area| area.start <= bytes.start && bytes.end <= area.end) {
        "which is not all memory of the guest"
    } else {
        return Ok(());
    };
    let rule = name.map_or("an access map".into(), |name| alloc::format!("the rule \"{name}\""));
    let range = alloc::format!("{:#x} to {:#x}", bytes.start, range.last().as_u64());
    Err(LinuxError::Covers { rule, range, what })
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use subpage::rules::{Action, Owner, Rule};

    use super::*;

    fn policy(first: u64, bytes: u64) -> Vec<u8> {
        let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
        domain.enable().expect("memory");
        let rule = Rule {
            name: RuleName::new("helper").expect("a name"),
            range: ByteRange::new(Gpa::new(first), bytes).expect("a range"),
            owner: Owner::HOST,
            action: Action::Deny,
            locked: false,
        };
        let (_, token) = domain.add_rule(rule).expect("memory");
        domain.finish(&token.without_processors());
        domain.export().expect("memory")
    }

    #[test]
    fn rules_cover_the_guests_memory_and_not_what_it_begins_with() {
        let memory = [0..0x9_F000, 0x34_5000..0x1000_0000];
        let first = 0x1_0000..0x1_B000;
        let check = |start, bytes| {
            check_policy(&policy(start, bytes), PhysicalWidth::MAX, &memory, &first)
                .map_err(|error| error.to_string())
        };
        assert_eq!(check(0x2A5_A640, 256), Ok(()));
        assert_eq!(
            check(0x1_AFFF, 1),
            Err("the rule \"helper\" covers 0x1afff to 0x1afff, where the kernel has its first stack \
                 and page tables"
                .into())
        );
        for start in [0x34_4FFF, 0xFFF_FFFF, 0xFEE0_0000] {
            let error = check(start, 2).expect_err("not memory");
            assert!(error.ends_with("which is not all memory of the guest"), "{error}");
        }
        let error = check_policy(b"no policy", PhysicalWidth::MAX, &memory, &first);
        assert!(matches!(error, Err(LinuxError::Policy(_))), "{error:?}");
    }

    #[test]
    fn the_guest_gets_whole_pages_that_are_not_the_hypervisors() {
        let usable = [0..0x9_FC00, 0x10_0000..0x2000_0000, 0x1_0000_0000..0x1_0000_1000];
        let own = [0x10_0000..0x34_5000, 0x1F00_0000..0x2000_0000];
        let left = without(&usable, &own, 1 << 39);
        assert_eq!(
            left.as_slice(),
            [0..0x9_F000, 0x34_5000..0x1F00_0000, 0x1_0000_0000..0x1_0000_1000]
        );
        // The run that goes on behind what can be reached keeps its first part.
        let left = without(
            &[0x1_0000_0000..0x200_0000_0000, 0x300_0000_0000..0x400_0000_0000],
            &own,
            1 << 39,
        );
        assert!(left.len() == 1 && left[0] == (0x1_0000_0000..1 << 39), "{left:x?}");
        let error = check_policy(&policy(1 << 39, 8), PhysicalWidth::MAX, &left, &(0..0));
        assert!(matches!(error, Err(LinuxError::Covers { .. })), "{error:?}");
    }
}

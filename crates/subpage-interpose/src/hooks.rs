//! What is done about the calls that KVM and the kernel get.
//!
//! Unsafe because calls bring the VMM's pointers along.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::configuration::configuration;
use crate::descriptors::{self, Known};
use crate::device::fault;
use crate::machine::{Machine, find};
use crate::memory::Name;
use crate::memory::host::PAGE;
use crate::processor::{Given, Processor, told_paging};
use crate::say::{give_up, say};
use crate::{kvm, machine, next};

/// The call as it is.
unsafe fn real(fd: c_int, request: u64, argument: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { next::ioctl(fd, request, argument) }
}

/// `ioctl` to KVM.
///
/// # Safety
/// That of the call.
#[inline]
pub(crate) unsafe fn kvm_call(fd: c_int, request: u64, argument: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    let pass = || unsafe { real(fd, request, argument) };
    if request == kvm::CREATE_VM {
        // Whatever the number was before, it is `/dev/kvm` now: it was closed where this library does
        // not see it.
        descriptors::forget(fd);
        return create_machine(pass);
    }
    match descriptors::known(fd) {
        Some(Known::Processor(processor)) if request == kvm::RUN => {
            let given = processor.run(|| {
                let result = pass();
                Given { result, errno: if result < 0 { next::errno() } else { 0 } }
            });
            if given.result < 0 {
                next::set_errno(given.errno);
            }
            given.result
        }
        // SAFETY: the caller's promise.
        Some(Known::Processor(processor)) => unsafe {
            processor_call(processor, fd, request, argument)
        },
        // SAFETY: the caller's promise.
        Some(Known::Machine(machine)) => unsafe { machine_call(machine, fd, request, argument) },
        None if is_for_known(request) && configuration().is_some() => unseen(request),
        None if request == kvm::CHECK_EXTENSION && hides(argument) => 0,
        None if request == kvm::GET_SUPPORTED_CPUID && configuration().is_some() => {
            let result = pass();
            if result >= 0 {
                // SAFETY: KVM has filled the caller's list.
                unsafe { kvm::clear_all(argument) };
            }
            result
        }
        None => pass(),
    }
}

/// A call by a descriptor that is not what this library takes it for: nothing is guarded then.
fn unseen(request: u64) -> ! {
    give_up(&format!(
        "the VMM calls KVM ({request:#x}) by a descriptor of a machine or processor that this library \
         has not seen being made or copied, so that its guest would run unguarded"
    ))
}

/// Whether a call is about memory or a processor of a machine: one that is not known must not get it.
const fn is_for_known(request: u64) -> bool {
    matches!(
        request,
        kvm::SET_USER_MEMORY_REGION
            | kvm::SET_USER_MEMORY_REGION2
            | kvm::CREATE_VCPU
            | kvm::SET_CPUID2
            | kvm::RUN
    )
}

/// Whether a capability is one that the VMM is not to use.
fn hides(capability: *mut c_void) -> bool {
    configuration().is_some()
        && kvm::HIDDEN_CAPABILITIES.contains(&(capability.expose_provenance() as u64))
}

fn create_machine(pass: impl FnOnce() -> c_int) -> c_int {
    let Some(configuration) = configuration() else { return pass() };
    let fd = pass();
    if fd >= 0 {
        fault::catch();
        machine::leave_children_alone();
        descriptors::note(fd, Known::Machine(Machine::new(configuration)));
    }
    fd
}

unsafe fn machine_call(
    machine: &Arc<Machine>,
    fd: c_int,
    request: u64,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    let pass = || unsafe { real(fd, request, argument) };
    match request {
        kvm::CREATE_VCPU => {
            let processor = pass();
            if processor >= 0 {
                create_processor(machine, processor);
            }
            processor
        }
        kvm::RUN | kvm::SET_CPUID2 => unseen(request),
        kvm::CHECK_EXTENSION if hides(argument) => 0,
        // SAFETY: the caller's promise.
        kvm::SET_USER_MEMORY_REGION | kvm::SET_USER_MEMORY_REGION2 => unsafe {
            set_memory(machine, fd, request, argument)
        },
        kvm::ENABLE_CAP => {
            // SAFETY: the request has such a structure.
            let capability = unsafe { kvm::get::<kvm::kvm_enable_cap>(argument) };
            if kvm::HIDDEN_CAPABILITIES.contains(&capability.cap.into()) {
                next::set_errno(libc::EINVAL);
                return -1;
            }
            let result = pass();
            if result >= 0 && capability.cap == kvm::MANUAL_DIRTY_LOG {
                machine.core().clears_logs = capability.args[0] & 1 != 0;
            }
            result
        }
        kvm::GET_DIRTY_LOG => {
            // SAFETY: the request has such a structure.
            let log = unsafe { kvm::get::<kvm::kvm_dirty_log>(argument) };
            let result = pass();
            if result >= 0 {
                // SAFETY: the log has a bit for each page of the slot.
                unsafe { add_dirty(machine, &log) };
            }
            result
        }
        kvm::CLEAR_DIRTY_LOG => {
            // SAFETY: the request has such a structure.
            let log = unsafe { kvm::get::<kvm::kvm_clear_dirty_log>(argument) };
            // SAFETY: the log has a bit for each page that it is about.
            unsafe { clear_dirty(machine, &log) };
            pass()
        }
        _ => pass(),
    }
}

fn create_processor(machine: &Arc<Machine>, fd: c_int) {
    // The size is the same for every machine. Its call goes to `/dev/kvm`, which may be closed.
    let size = shared_bytes();
    match Processor::new(machine, fd, size) {
        Ok(processor) => descriptors::note(fd, Known::Processor(Arc::new(processor))),
        Err(error) => give_up(&format!("cannot map a processor's page: {error}")),
    }
}

/// Bytes of the area that a processor shares with KVM: three pages on x86. Only the first is needed here.
fn shared_bytes() -> usize {
    usize::try_from(PAGE).expect("64 bits")
}

unsafe fn processor_call(
    processor: &Processor,
    fd: c_int,
    request: u64,
    argument: *mut c_void,
) -> c_int {
    if request != kvm::SET_CPUID2 {
        if is_for_known(request) {
            unseen(request);
        }
        // SAFETY: the caller's promise.
        return unsafe { real(fd, request, argument) };
    }
    // SAFETY: the request has such a list.
    let entries = unsafe { kvm::cpuid(argument) };
    let mut list = kvm::without_services(&entries);
    // KVM's own writes to guest memory ask nobody: without the bits it then refuses them, also to a guest
    // that does not look at CPUID.
    let enforce = kvm::kvm_enable_cap {
        cap: kvm::ENFORCE_PV_FEATURES,
        args: [1, 0, 0, 0],
        ..kvm::kvm_enable_cap::default()
    };
    // SAFETY: a structure as the request demands it. Older kernels refuse it.
    let _ = unsafe { real(fd, kvm::ENABLE_CAP, (&raw const enforce).cast_mut().cast()) };
    // SAFETY: a list as the request demands it.
    let result = unsafe { real(fd, request, list.as_mut_ptr().cast()) };
    if result >= 0 {
        processor.machine().set_paging(told_paging(&entries));
    }
    result
}

unsafe fn set_memory(
    machine: &Arc<Machine>,
    fd: c_int,
    request: u64,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: both requests have such a structure first.
    let mut region = unsafe { kvm::get::<kvm::kvm_userspace_memory_region>(argument) };
    if region.memory_size == 0 {
        // SAFETY: the caller's promise.
        let result = unsafe { real(fd, request, argument) };
        if result >= 0 {
            machine.core().memory.names.remove(region.slot);
        }
        return result;
    }
    let name = Name {
        slot: region.slot,
        gpa: region.guest_phys_addr,
        bytes: region.memory_size,
        host: region.userspace_addr,
        read_only: region.flags & kvm::KVM_MEM_READONLY != 0,
        logs: region.flags & kvm::KVM_MEM_LOG_DIRTY_PAGES != 0,
    };
    let is_sound = [name.gpa, name.bytes, name.host].iter().all(|it| it.is_multiple_of(PAGE))
        && name.host.checked_add(name.bytes).is_some_and(|end| end < 1 << 47)
        && name.gpa.checked_add(name.bytes).is_some_and(|end| end < 1 << 45);
    if !is_sound {
        // KVM says what is wrong with it.
        // SAFETY: the caller's promise.
        return unsafe { real(fd, request, argument) };
    }
    let mut core = machine.core();
    if let Err(error) = core.learn(&name) {
        give_up(&format!("the memory at {:#x} of the guest cannot be guarded: {error}", name.gpa));
    }
    if machine.judges_devices() {
        // SAFETY: the caller's promise.
        let result = unsafe { real(fd, request, argument) };
        if result >= 0 {
            core.memory.names.set(name);
        }
        return result;
    }
    let Some(view) = core.memory.view(name.host, name.bytes) else {
        give_up(&format!(
            "the memory at {:#x} of the guest is several mappings of the VMM: only `--devices \
             judged` can guard it",
            name.gpa
        ));
    };
    region.userspace_addr = view;
    // SAFETY: the first structure of either request; the rest of the second is about private memory,
    // which such guests do not have here.
    let result = unsafe { real(fd, kvm::SET_USER_MEMORY_REGION, (&raw mut region).cast()) };
    if result >= 0 {
        core.memory.names.set(name);
    }
    result
}

/// Adds the pages to a log that were written here for the guest.
unsafe fn add_dirty(machine: &Machine, log: &kvm::kvm_dirty_log) {
    let mut core = machine.core();
    let Some(name) = core.memory.names.get(log.slot).copied() else { return };
    let mut pages = Vec::new();
    for gfn in &core.dirty {
        let Some(piece) = core.memory.at_place(gfn * PAGE) else { continue };
        let host = piece.host + (gfn * PAGE - piece.place);
        if host >= name.host && host - name.host < name.bytes {
            pages.push((*gfn, (host - name.host) / PAGE));
        }
    }
    // SAFETY: a structure of the VMM, whose field is a pointer.
    let bitmap = unsafe { log.__bindgen_anon_1.dirty_bitmap };
    // SAFETY: the caller's promise.
    unsafe { kvm::set_bits(bitmap.cast(), pages.iter().map(|(_, page)| *page)) };
    if !core.clears_logs {
        for (gfn, _) in pages {
            core.dirty.remove(&gfn);
        }
    }
}

/// Takes in which bits of a log the VMM clears.
unsafe fn clear_dirty(machine: &Machine, log: &kvm::kvm_clear_dirty_log) {
    let mut core = machine.core();
    let Some(name) = core.memory.names.get(log.slot).copied() else { return };
    // SAFETY: a structure of the VMM, whose field is a pointer.
    let bitmap = unsafe { log.__bindgen_anon_1.dirty_bitmap };
    let mut cleared = Vec::new();
    for gfn in &core.dirty {
        let Some(piece) = core.memory.at_place(gfn * PAGE) else { continue };
        let host = piece.host + (gfn * PAGE - piece.place);
        if host < name.host || host - name.host >= name.bytes {
            continue;
        }
        let page = (host - name.host) / PAGE;
        let Some(bit) = page.checked_sub(log.first_page) else { continue };
        // SAFETY: the caller's promise.
        if bit < log.num_pages.into() && unsafe { kvm::bit(bitmap.cast(), bit) } {
            cleared.push(*gfn);
        }
    }
    for gfn in cleared {
        core.dirty.remove(&gfn);
    }
}

/// Bytes of the VMM's are mapped to something else now, or to nothing.
pub(crate) fn mapping_changed(at: *mut c_void, bytes: usize) {
    each_machine(at, |machine, host| {
        let mut core = machine.core();
        if core.memory.touched(host, bytes as u64).next().is_none() {
            return;
        }
        core.forget(host, bytes as u64);
        // Slots that show these bytes show what is there now.
        let end = host.saturating_add(bytes as u64);
        let shown: Vec<Name> = core
            .memory
            .names
            .iter()
            .filter(|name| name.host < end && host < name.host + name.bytes)
            .copied()
            .collect();
        for name in shown {
            // What is not mapped cannot be read or written either.
            let _ = core.learn(&name);
        }
    });
}

/// The VMM has changed the protection of bytes of its own.
pub(crate) fn protection_changed(at: *mut c_void, bytes: usize) {
    each_machine(at, |machine, host| {
        if machine.guards() && machine.judges_devices() {
            machine.core().close_again(host, bytes as u64);
        }
    });
}

/// Whether some of these bytes are guarded.
pub(crate) fn is_guarded(at: *mut c_void, bytes: usize) -> bool {
    let host = at.expose_provenance() as u64;
    crate::machine::any()
        && find(|machine| machine.core().closes_host(host, bytes as u64).then_some(())).is_some()
}

/// Whether some of these bytes are memory of a guest that was private before.
pub(crate) fn was_private(at: *mut c_void, bytes: usize) -> bool {
    let host = at.expose_provenance() as u64;
    crate::machine::any()
        && find(|machine| {
            let core = machine.core();
            let found = core.memory.touched(host, bytes as u64).any(|piece| piece.was_private);
            found.then_some(())
        })
        .is_some()
}

fn each_machine(at: *mut c_void, each: impl Fn(&Machine, u64)) {
    if crate::machine::any() {
        let host = at.expose_provenance() as u64;
        let _: Option<()> = find(|machine| {
            each(machine, host);
            None
        });
    }
}

/// Says once that the kernel writes guest memory by itself: what it cannot do there fails.
pub(crate) fn warn_kernel_writes(how: &str) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if configuration().is_some_and(|it| it.devices == crate::configuration::Devices::Judged)
        && !SAID.swap(true, Ordering::SeqCst)
    {
        say(&format!(
            "the VMM uses {how}, by which the kernel writes guest memory without asking anybody: \
             into guarded pages it fails (EFAULT), and the guest sees a failed device. Use aio=threads \
             and no vhost, or --devices trusted"
        ));
    }
}

/// Says once that a device reaches memory around the guard.
pub(crate) fn warn_pinned() {
    static SAID: AtomicBool = AtomicBool::new(false);
    if configuration().is_some() && !SAID.swap(true, Ordering::SeqCst) {
        say(
            "the VMM gives a device direct access to guest memory (VFIO): what that device writes is \
             not judged",
        );
    }
}

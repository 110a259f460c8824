//! An instruction of the VMM that stores to a closed page: SIGSEGV.
//!
//! The signal is synchronous: the thread was executing the VMM's own store to guest memory, so it holds
//! no lock of this library or of the C library's heap, and the handler may use both. It may be
//! interrupted and come again: until the registers are written back, nothing of the thread has changed.
//!
//! Unsafe because signal handlers get pointers.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::sync::Arc;

use subpage::address::ByteRange;
use subpage::domain::WriteParts;
use subpage_emulate::guest::{Register, State};
use subpage_emulate::{
    Executor, Extended, GuestInstruction, MAX_INSTRUCTION_BYTES, Progress, Scratch, Store,
    SystemTables, XsaveArea,
};

use super::context::Context;
use super::host_memory::{HostMemory, paging};
use super::signals;
use crate::machine::{Machine, SPACE, Writer, find, is_inside};
use crate::memory::raw::read_own;
use crate::processor::{OwnTrampoline, recovery};

/// How often the same instruction may come here for a page that is open by then.
const PATIENCE: u32 = 64;

/// Elements of a repeated string instruction that are carried out for one signal.
const ELEMENTS: u32 = 4096;

thread_local! {
    static TRAMPOLINE: RefCell<Option<OwnTrampoline>> = const { RefCell::new(None) };
    /// The instruction that came last, the address, and how often.
    static LAST: Cell<(u64, u64, u32)> = const { Cell::new((0, 0, 0)) };
}

/// Takes faults of this process; once.
pub(crate) fn catch() {
    signals::install(handle);
}

extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let errno = crate::next::errno();
    // SAFETY: what the kernel passes.
    let mut thread = unsafe { Context::new(context) };
    if let Some(address) = recovery(thread.rip()) {
        thread.recover(address);
        return;
    }
    // SAFETY: what the kernel passes; for faults of memory it has an address.
    let info_now = unsafe { *info };
    // SAFETY: as above.
    let address = unsafe { info_now.si_addr() }.expose_provenance() as u64;
    let is_ours = signal == libc::SIGSEGV && thread.is_write() && store(&mut thread, address);
    if !is_ours {
        signals::pass_on(signal, info, context);
    }
    crate::next::set_errno(errno);
}

/// Carries out the instruction that has faulted at `address`; false if the fault is the VMM's own.
fn store(thread: &mut Context, address: u64) -> bool {
    if is_inside() {
        // This thread has the lock already: a handler of another signal, or this library, writes. Nobody
        // can decide about it, so it does not happen.
        return false;
    }
    let Some(machine) = find(|machine| {
        let core = machine.core();
        let page = core.memory.page_at_host(address)?;
        // Open since, or by the VMM's own doing.
        Some((Arc::clone(machine), core.is_closed(page)))
    }) else {
        return false;
    };
    let (machine, is_closed) = machine;
    if !is_closed {
        // It was closed when the instruction faulted. Not for ever: its protection may be the VMM's.
        let (rip, at, times) = LAST.get();
        let times = if (rip, at) == (thread.rip(), address) { times + 1 } else { 1 };
        LAST.set((thread.rip(), address, times));
        return times <= PATIENCE;
    }
    LAST.set((0, 0, 0));
    TRAMPOLINE.with_borrow_mut(|trampoline| {
        if trampoline.is_none() {
            *trampoline = OwnTrampoline::new().ok();
        }
        trampoline.as_mut().is_some_and(|trampoline| carry_out(&machine, thread, trampoline))
    })
}

/// Carries out the instruction of a thread; false if software does not know it.
fn carry_out(machine: &Machine, thread: &mut Context, trampoline: &mut OwnTrampoline) -> bool {
    let before = thread.state();
    let Some(code) = decode(&before) else { return false };
    let mut state = before;
    let mut extended = None;
    let mut elements = 0;
    while elements < ELEMENTS {
        let Ok(store) = Store::of(&code, &state) else { break };
        if elements > 0 && leaves_page(&before, &state) {
            // Whether it can be read there, the thread itself finds out.
            break;
        }
        if store.uses_extended() && extended.is_none() {
            extended = thread.extended();
        }
        let area = extended.as_mut().map(|(area, _)| area);
        match element(machine, &store, &mut state, trampoline, area) {
            Some(Progress::Repeats) => elements += 1,
            Some(Progress::Done) => {
                elements += 1;
                break;
            }
            None => break,
        }
    }
    if elements == 0 {
        crate::say::say(&format!(
            "the VMM writes guarded memory at {:#x} by an instruction that is not carried out in \
             software: {:02x?}",
            before.rip,
            code.bytes()
        ));
        return false;
    }
    thread.set_state(&state);
    if let Some((area, kept)) = &extended {
        thread.set_extended(area, *kept);
    }
    true
}

/// Whether a string instruction has left the page from which it reads.
fn leaves_page(before: &State, now: &State) -> bool {
    before.registers[Register::Rsi] / 4096 != now.registers[Register::Rsi] / 4096
}

fn decode(state: &State) -> Option<GuestInstruction> {
    let mut bytes = [0; MAX_INSTRUCTION_BYTES];
    // What follows the instruction's page may be absent.
    let in_page = usize::try_from(4096 - state.rip % 4096).expect("a page's bytes");
    let first = in_page.min(bytes.len());
    read_own(state.rip, &mut bytes[..first]);
    if let Some(code) = GuestInstruction::decode(state, &bytes[..first]) {
        return Some(code);
    }
    if first == bytes.len() {
        return None;
    }
    read_own(state.rip + first as u64, &mut bytes[first..]);
    GuestInstruction::decode(state, &bytes)
}

/// One store of the VMM, every byte of it for itself; none if it is not carried out.
fn element(
    machine: &Machine,
    store: &Store,
    state: &mut State,
    trampoline: &mut OwnTrampoline,
    area: Option<&mut Box<XsaveArea>>,
) -> Option<Progress> {
    let components = subpage_guard::vcpu::trampoline::components();
    let extended = match area {
        Some(area) if components != 0 => Extended::Xsave { area, components },
        Some(_) => return None,
        None => Extended::Unused,
    };
    let tables = SystemTables::default();
    trampoline.with(|trampoline| {
        let mut executor = Executor {
            memory: &HostMemory,
            paging: paging(),
            tables: &tables,
            trampoline,
            extended,
        };
        let settled;
        let store = if store.is_open() {
            settled = executor.settle(store, state, xcr0).ok()?;
            &settled
        } else {
            store
        };
        let mut core = machine.core();
        let piece = *core.memory.at_host(store.linear())?;
        let skip = store.linear() - piece.host;
        if store.length() as u64 > piece.bytes - skip {
            return None;
        }
        let place = piece.place + skip;
        let range = ByteRange::new(crate::memory::gpa(place)?, store.length() as u64).ok()?;
        let whole = WriteParts::one(range);
        let parts = match store.written() {
            None => whole.clone(),
            Some(written) => whole.clone().under_mask(written),
        };
        if core.domain.check_write_parts(SPACE, &parts) == subpage::domain::Decision::Allowed {
            let decision = core.domain.authorize_write_parts(SPACE, &parts).ok()?;
            assert!(decision.permits(), "nothing changes the domain while its lock is held");
            let window = core.memory.window(&whole)?;
            return window.with(|window| executor.complete(store, state, window)).ok();
        }
        // On a copy: what it writes, byte by byte.
        let mut scratch = Scratch::filled(store.linear(), store.length(), |bytes| {
            core.memory.read_places(place, bytes).then_some(()).ok_or(())
        })
        .ok()?;
        let progress = executor.complete(store, state, &mut scratch.window()).ok()?;
        let mut stop = false;
        parts.with_written(|runs| {
            for run in runs {
                let from = usize::try_from(run.first().as_u64() - place).expect("in the store");
                let to = from + usize::try_from(run.bytes()).expect("in the store");
                let bytes = &scratch.bytes()[from..to];
                let at = run.first().as_u64();
                stop |= core.write(&machine.publisher, Writer { vcpu: 0 }, at, bytes).stop;
            }
        });
        if stop {
            machine.stop();
        }
        Some(progress)
    })
}

/// XCR0 of this host.
fn xcr0() -> u64 {
    subpage_guard::vcpu::trampoline::components()
}

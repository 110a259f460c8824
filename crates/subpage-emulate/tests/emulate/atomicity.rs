//! Emulated stores against another processor's on the same bytes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use subpage_emulate::guest::{Register, State};
use subpage_emulate::{Executor, Extended, FxArea, GuestInstruction, Store, Window, prepare};

use crate::flat::Flat;
use crate::machine::{OwnTrampoline, PAGING, Pages, TABLES, state_64};

const ROUNDS: u64 = 20_000;

/// Emulates `code` on `window` again and again.
fn repeat(code: &[u8], window: (*mut u8, usize), mut each: impl FnMut(&mut State) -> bool) {
    let mut own = OwnTrampoline::new();
    let memory = Flat::new(0);
    let mut state = state_64();
    state.registers[Register::Rsp] = 0x1000;
    while each(&mut state) {
        let instruction = GuestInstruction::decode(&state, code).unwrap();
        let store = Store::of(&instruction, &state).unwrap();
        let mut machine = Executor {
            memory: &memory,
            paging: PAGING,
            tables: &TABLES,
            trampoline: &mut own.trampoline,
            extended: Extended::Fx(&mut FxArea::INITIAL.clone()),
        };
        // SAFETY: the bytes are mapped and writable, and the other thread's are accesses by atomic
        // operations through a raw pointer.
        let mut window = unsafe { Window::new(window.0, window.1) };
        let _ = machine.complete(&store, &mut state, &mut window).unwrap();
    }
}

fn shared(pages: &Pages, offset: usize) -> &AtomicU64 {
    let counter: *mut u64 = pages.first.wrapping_add(offset).cast();
    // SAFETY: mapped, aligned, and only accessed atomically: a locked instruction is atomic.
    unsafe { AtomicU64::from_ptr(counter) }
}

/// Contract C3: no locked increment is lost.
#[test]
fn locked_increments_of_two_processors_all_count() {
    prepare();
    let pages = Pages::writable(4096);
    let counter = shared(&pages, 64);
    let stop = AtomicBool::new(false);
    let (theirs, window) = (AtomicU64::new(0), pages.first.wrapping_add(64));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                counter.fetch_add(1, Ordering::Relaxed);
                theirs.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut done = 0;
        // LOCK INC QWORD PTR [RBX], LOCK XADD [RBX], RCX with 1, and back again.
        repeat(&[0xf0, 0x48, 0xff, 0x03], (window, 8), |_| {
            done += 1;
            done <= ROUNDS
        });
        let mut done = 0;
        repeat(&[0xf0, 0x48, 0x0f, 0xc1, 0x0b], (window, 8), |state| {
            state.registers[Register::Rcx] = 1;
            done += 1;
            done <= ROUNDS
        });
        stop.store(true, Ordering::Relaxed);
    });
    let theirs = theirs.into_inner();
    assert_eq!(counter.load(Ordering::Relaxed), theirs + 2 * ROUNDS);
    assert!(theirs > 0, "the other thread ran");
}

/// A push is computed, and still one store: nobody sees half of it.
#[test]
fn a_computed_store_is_never_seen_in_half() {
    let pages = Pages::writable(4096);
    let stop = AtomicBool::new(false);
    let window = pages.first.wrapping_add(128);
    let word = shared(&pages, 128);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let seen = word.load(Ordering::Relaxed);
                if seen != 0 && seen != u64::MAX {
                    return Err(seen);
                }
            }
            Ok(())
        });
        let mut value = 0_u64;
        let mut done = 0;
        // PUSH RAX
        repeat(&[0x50], (window, 8), |state| {
            value = !value;
            state.registers[Register::Rax] = value;
            done += 1;
            done <= ROUNDS
        });
        stop.store(true, Ordering::Relaxed);
        assert_eq!(reader.join().unwrap(), Ok(()), "a torn store was seen");
    });
}

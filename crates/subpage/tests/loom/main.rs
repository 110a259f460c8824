//! Every interleaving (with at most two preemptions) of a processor with publishing, invalidating
//! and freeing, of a writer with harvesting, and of a processor that sets accessed and dirty flags
//! with whatever changes the leaf.
//!
//! Built only with `--cfg loom`; `cargo xtask test concurrency` does that. Tables are kept in
//! ordinary memory but for the entries that matter to a test, which are loom's atomics, so that the
//! number of interleavings stays small while the engine's own code runs unchanged. Loads, stores
//! and compare-and-exchange of these entries are loom's own.
#![cfg(loom)]

mod frames;
mod leaves;

use std::sync::Arc;

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::thread;

use subpage::access::{AccessMap, SppVector};
use subpage::address::{ByteRange, Gfn, GfnRange, PhysicalWidth};
use subpage::domain::Domain;
use subpage::invalidate::{Completed, Invalidation, Shootdown};
use subpage::slots::{AddressSpace::Normal, SlotFlags, SlotId};

use frames::{LoomFrames, walk_sppt};

/// The page that all tests are about; all its indices are 0 but the last, which is 3.
const PAGE: Gfn = Gfn::new(3);
fn domain(frames: LoomFrames) -> Domain<LoomFrames> {
    let mut domain = Domain::new(frames, PhysicalWidth::MAX);
    domain.enable().expect("frames");
    let pages = GfnRange::new(Gfn::new(0), 16).expect("a range");
    domain.add_slot(Normal, SlotId(0), pages, SlotFlags::default()).expect("a free place");
    domain
}

fn wait(board: &Shootdown, token: Invalidation) -> Completed {
    board.request(&token);
    let mut token = token;
    loop {
        match board.poll(token) {
            Ok(done) => return done,
            Err(back) => token = back,
        }
        thread::yield_now();
    }
}

fn check(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 10_000;
    builder.check(test);
}

/// D18: a table is complete before it is linked, so a walk finds nothing or the new vector, never a
/// half-filled table.
#[test]
fn publishing() {
    check(|| {
        let frames = LoomFrames::new();
        let mut domain = domain(frames.clone());
        let root = domain.sppt().expect("enabled").root();
        let walker = thread::spawn(move || walk_sppt(&frames, root, PAGE));
        let map = AccessMap::from_bits(0xF0F0);
        let token = domain.set_access(PAGE, &[map]).expect("frames");
        let seen = walker.join().expect("no panic");
        assert!(seen.is_none_or(|vector| vector == map.into()), "{seen:?}");
        domain.finish(&token.without_processors());
    });
}

/// A table that was unlinked is released only when no walk can be in it.
#[test]
fn freeing() {
    check(|| {
        let frames = LoomFrames::new();
        let mut domain = domain(frames.clone());
        let root = domain.sppt().expect("enabled").root();
        let token = domain.set_access(PAGE, &[AccessMap::NONE]).expect("frames");
        domain.finish(&token.without_processors());
        let board = Arc::new(Shootdown::new(1).expect("memory"));
        let processor = {
            let board = Arc::clone(&board);
            thread::spawn(move || {
                let epoch = board.enter(0);
                board.acknowledge(0, epoch);
                let seen = walk_sppt(&frames, root, PAGE);
                board.leave(0);
                assert!(seen.is_none_or(|v| v == SppVector::NONE || v == SppVector::ALL));
            })
        };
        let token = domain.set_access(PAGE, &[AccessMap::ALL]).expect("frames");
        assert!(token.is_required());
        let done = wait(&board, token);
        domain.finish(&done);
        assert_eq!(domain.retired_frames(), 0);
        processor.join().expect("no panic");
    });
}

/// C1: once a tightening is complete, no processor writes through what it cached before.
#[test]
fn invalidating() {
    check(|| {
        let frames = LoomFrames::new();
        let mut domain = domain(frames.clone());
        let root = domain.sppt().expect("enabled").root();
        let token = domain.set_access(PAGE, &[AccessMap::from_bits(1)]).expect("frames");
        domain.finish(&token.without_processors());
        let board = Arc::new(Shootdown::new(1).expect("memory"));
        let in_force = Arc::new(AtomicBool::new(false));
        let processor = {
            let (board, in_force) = (Arc::clone(&board), Arc::clone(&in_force));
            thread::spawn(move || {
                let epoch = board.enter(0);
                let mut cached = walk_sppt(&frames, root, PAGE);
                board.acknowledge(0, epoch);
                for _ in 0..2 {
                    if let Some(epoch) = board.pending(0) {
                        cached = walk_sppt(&frames, root, PAGE);
                        board.acknowledge(0, epoch);
                    }
                    if cached != Some(SppVector::NONE) {
                        assert!(!in_force.load(Ordering::Acquire), "a forbidden write completed");
                    }
                }
                board.leave(0);
            })
        };
        let token = domain.set_access(PAGE, &[AccessMap::NONE]).expect("frames");
        let done = wait(&board, token);
        in_force.store(true, Ordering::Release);
        domain.finish(&done);
        processor.join().expect("no panic");
    });
}

/// No write is lost between a harvest and its re-arming: an observer that copies what each harvest reports,
/// when it may be read, ends with what is in memory.
#[test]
fn harvesting() {
    check(|| {
        let frames = LoomFrames::new();
        let mut domain = domain(frames.clone());
        let root = domain.sppt().expect("enabled").root();
        let sub_page = ByteRange::new(PAGE.gpa(), 128).expect("a range");
        let (id, token) = domain.track(sub_page).expect("frames");
        domain.finish(&token.without_processors());
        let domain = Arc::new(Mutex::new(domain));
        let board = Arc::new(Shootdown::new(1).expect("memory"));
        let data = Arc::new(AtomicU64::new(0));
        let writer = {
            let (domain, board, data) =
                (Arc::clone(&domain), Arc::clone(&board), Arc::clone(&data));
            thread::spawn(move || {
                let epoch = board.enter(0);
                let mut cached = walk_sppt(&frames, root, PAGE);
                board.acknowledge(0, epoch);
                for value in 1..=2 {
                    if let Some(epoch) = board.pending(0) {
                        cached = walk_sppt(&frames, root, PAGE);
                        board.acknowledge(0, epoch);
                    }
                    if cached.is_none_or(|vector| vector.to_map().bits() & 1 == 1) {
                        data.store(value, Ordering::Release);
                        continue;
                    }
                    board.leave(0);
                    let mut domain = domain.lock().expect("no panic");
                    let decision = domain.authorize_write(Normal, sub_page).expect("frames");
                    assert!(decision.permits());
                    data.store(value, Ordering::Release);
                    drop(domain);
                    let epoch = board.enter(0);
                    cached = walk_sppt(&frames, root, PAGE);
                    board.acknowledge(0, epoch);
                }
                // It stays in the guest: a harvest may end by its acknowledgement alone.
                if let Some(epoch) = board.pending(0) {
                    board.acknowledge(0, epoch);
                }
                board.leave(0);
            })
        };
        let mut copy = 0;
        let mut harvest = || {
            let (pending, token) =
                domain.lock().expect("no panic").harvest_written(id).expect("tracked");
            let done = wait(&board, token);
            let pages = pending.ready(&done).expect("complete");
            if !pages.is_empty() {
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

//! Frames on the heap, and a backend that has nothing but what it must.

use subpage::address::PhysicalWidth;
use subpage::domain::Domain;
use subpage::frames::{EntryIndex, HeapFrames, OutOfFrames, TableFrame, TableFrames};
use subpage::rules::Action;
use subpage::slots::{SlotFlags, SlotId};

use crate::guest::{BASE, Normal, bytes, gfn, gfns, guest, map, rule};

fn at(index: usize) -> EntryIndex {
    EntryIndex::new(u16::try_from(index).expect("small")).expect("below 512")
}

/// A frame is one cache line and its number in the list of free ones, until more than four entries of it
/// differ; then it is 4 KiB more.
#[test]
fn heap_frames_tell_what_they_hold() {
    const FRAMES: usize = 1 << 10;
    let mut frames = HeapFrames::new();
    assert_eq!(frames.bytes(), 0);
    let all: Vec<TableFrame> = (0..FRAMES).map(|_| frames.allocate().expect("memory")).collect();
    let few = frames.bytes();
    assert!((FRAMES * (64 + 4)..FRAMES * (64 + 4) * 2).contains(&few), "{few}");
    for frame in &all[..3] {
        frames.make_room(*frame, 4).expect("memory");
        for index in 0..4 {
            frames.store(*frame, at(index * 100), 1);
        }
        assert_eq!(frames.plain(*frame), None);
    }
    assert_eq!(frames.bytes(), few, "four fit in line");
    for frame in &all[..3] {
        frames.make_room(*frame, 1).expect("memory");
        frames.store(*frame, at(511), 2);
        let plain = frames.plain(*frame).expect("an array by now");
        assert_eq!((plain[300], plain[301], plain[511]), (1, 0, 2));
    }
    assert_eq!(frames.bytes(), few + 3 * 4096);
    assert_eq!(frames.uniform(all[0]), None);
    frames.fill(all[3], 7);
    assert_eq!(frames.uniform(all[3]), Some(7));
    frames.store(all[3], at(5), 8);
    assert_eq!(frames.uniform(all[3]), None);
    for frame in all {
        frames.release(frame);
    }
    assert_eq!(frames.bytes(), few, "the list stays, arrays go");
    assert_eq!(frames.frames_in_use(), 0);
}

/// Only what a backend must have; everything else as the trait has it.
struct Plainest(HeapFrames);

impl TableFrames for Plainest {
    fn allocate(&mut self) -> Result<TableFrame, OutOfFrames> {
        self.0.allocate()
    }

    fn release(&mut self, frame: TableFrame) {
        self.0.release(frame);
    }

    fn make_room(&mut self, frame: TableFrame, stores: usize) -> Result<(), OutOfFrames> {
        self.0.make_room(frame, stores)
    }

    fn load(&self, frame: TableFrame, index: EntryIndex) -> u64 {
        self.0.load(frame, index)
    }

    fn store(&mut self, frame: TableFrame, index: EntryIndex, value: u64) {
        self.0.store(frame, index, value);
    }

    fn compare_exchange(
        &mut self,
        frame: TableFrame,
        index: EntryIndex,
        current: u64,
        new: u64,
    ) -> Result<(), u64> {
        self.0.compare_exchange(frame, index, current, new)
    }

    fn fill(&mut self, frame: TableFrame, value: u64) {
        self.0.fill(frame, value);
    }
}

/// What a backend can tell at a glance saves time and memory, and decides nothing.
#[test]
fn a_backend_without_glances_is_guarded_the_same() {
    let (mut quick, _) = guest(1600);
    let mut plain = Domain::new(Plainest(HeapFrames::new()), PhysicalWidth::MAX);
    plain.enable().expect("memory");
    plain
        .add_slot(Normal, SlotId(0), gfns(BASE, 1600), SlotFlags::default())
        .expect("a free place");
    let maps: Vec<_> = (0..1100).map(|page| map(!(page / 3))).collect();
    let denied = rule(bytes(BASE * 4096 + 700 * 4096 + 60, 5000), Action::Deny);
    let tracked = bytes((BASE + 512) * 4096, 1024 * 4096);
    macro_rules! both {
        ($call:expr) => {{
            let (one, other) =
                ($call(&mut quick).expect("memory"), $call(&mut plain).expect("memory"));
            quick.finish(&one.without_processors());
            plain.finish(&other.without_processors());
        }};
    }
    macro_rules! calls {
        ($($call:expr;)*) => {
            $(
                both!($call);
                assert_eq!(quick.export(), plain.export());
                let runs = gfns(BASE, 1600);
                let pages = quick.restricted_runs(runs).flat_map(|run| run.iter());
                let others = plain.restricted_runs(runs).flat_map(|run| run.iter());
                assert!(pages.eq(others));
            )*
        };
    }
    calls! {
        |domain: &mut Domain<_>| domain.set_access(gfn(BASE + 100), &maps);
        |domain: &mut Domain<_>| domain.add_rule(denied).map(|(_, token)| token);
        |domain: &mut Domain<_>| domain.track(tracked).map(|(_, token)| token);
    }
}

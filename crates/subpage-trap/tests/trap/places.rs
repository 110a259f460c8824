//! Where a write goes, by both ways to find out.

use subpage::address::Gpa;
use subpage::rules::Action;
use subpage_emulate::Access;
use subpage_trap::{Located, Obstacle, Wanted, locate};

use crate::guest::{DATA, EDGE, Guest};

const ACCESSED_DIRTY: u64 = 0x60;

/// A guest with a rule in the first page or the second; marked, or to be marked by the walk.
fn guest(neighbours: bool, ruled: usize, marked: bool) -> Guest {
    let mut guest = Guest::new(neighbours);
    guest.add_rule("rule", Action::Deny, guest.pages[ruled], 8);
    for linear in [DATA, EDGE] {
        let entry = guest.page_table_entry(linear);
        guest.set_page_table_entry(linear, entry | if marked { ACCESSED_DIRTY } else { 0 });
    }
    guest
}

fn located(
    guest: &mut Guest,
    linear: u64,
    length: usize,
    wanted: Wanted,
) -> Result<Located, Obstacle<()>> {
    let state = guest.state;
    locate(guest, &state, linear, length, Access::write_by(&state), wanted)
}

/// Flags that are set already change nothing about where a write goes, and whether it is of interest.
#[test]
fn marked_or_not_a_write_goes_to_the_same_bytes() {
    for neighbours in [true, false] {
        for ruled in [0, 1] {
            for marked in [true, false] {
                for (linear, length) in [
                    (DATA, 1),
                    (DATA + 1, 4095),
                    (DATA + 1, 4096),
                    (DATA, 4096),
                    (EDGE - 1, 1),
                    (EDGE - 1, 2),
                    (EDGE, 8),
                ] {
                    let last = linear + length as u64 - 1;
                    let touched = [linear < EDGE, last >= EDGE];
                    let mut guest = guest(neighbours, ruled, marked);
                    let context = format!("{neighbours} {ruled} {marked} {linear:#x} {length}");
                    let found = located(&mut guest, linear, length, Wanted::InTraps);
                    if touched[ruled] {
                        let anywhere = located(&mut guest, linear, length, Wanted::Anywhere);
                        assert_eq!(found, anywhere, "{context}");
                    } else {
                        assert_eq!(found, Err(Obstacle::NotOurs), "{context}");
                    }
                    let there = located(&mut guest, linear, length, Wanted::Anywhere).unwrap();
                    let bytes: Vec<u64> = (there.parts.runs().iter())
                        .flat_map(|run| (0..run.bytes()).map(|n| run.first().as_u64() + n))
                        .collect();
                    let expected: Vec<u64> = (linear..=last).map(|at| guest.physical(at)).collect();
                    assert_eq!((there.linear, bytes), (linear, expected), "{context}");
                    for (page, touched) in guest.pages.into_iter().zip(touched) {
                        assert_eq!(there.touches_page_of(Gpa::new(page + 9)), touched, "{context}");
                    }
                }
            }
        }
    }
}

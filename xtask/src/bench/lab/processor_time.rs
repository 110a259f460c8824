//! How much processor time the emulator has used: on a machine that others use, too, the time on a clock
//! says more about them.

use std::{collections::HashMap, fs, process, time::Duration};

/// `USER_HZ` of Linux on x86, in which /proc counts.
const TICKS_PER_SECOND: u64 = 100;

/// A line of /proc/PID/stat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// Of the process and of those of its children that it has seen end.
    ticks: u64,
}

/// Processor time of all that this process has started and that still runs, their children with them.
pub(super) fn of_descendants() -> Duration {
    let processes: HashMap<u32, Stat> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let id = entry.ok()?.file_name().to_str()?.parse().ok()?;
            Some((id, stat(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)?))
        })
        .collect();
    ticks_below(&processes, process::id())
}

fn ticks_below(processes: &HashMap<u32, Stat>, ancestor: u32) -> Duration {
    let descends = |mut id: u32| {
        // A process that has ended meanwhile may leave a gap, and numbers are used again: not for ever.
        for _ in 0..processes.len() {
            match processes.get(&id) {
                Some(stat) if stat.parent == ancestor => return true,
                Some(stat) => id = stat.parent,
                None => return false,
            }
        }
        false
    };
    let below = processes.iter().filter(|(id, _)| descends(**id));
    let ticks: u64 = below.map(|(_, stat)| stat.ticks).sum();
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

/// The name of the program is in parentheses, and may hold anything.
fn stat(line: &str) -> Option<Stat> {
    let (_, rest) = line.rsplit_once(") ")?;
    let fields: Vec<_> = rest.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)? + number(13)? + number(14)?;
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_behind_the_name() {
        let line = "77 (a) b (c) S 42 77 77 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 1 0 5 6 7";
        assert_eq!(stat(line), Some(Stat { parent: 42, ticks: 127 }));
        assert_eq!(stat("77 (a) S 42"), None);
    }

    #[test]
    fn children_of_children_count_and_others_do_not() {
        let stat = |parent, ticks| Stat { parent, ticks };
        let processes = HashMap::from([
            (10, stat(1, 1000)),
            (11, stat(10, 100)),
            (12, stat(11, 50)),
            (13, stat(1, 7)),
            // A ring, of numbers that were used again.
            (20, stat(21, 1)),
            (21, stat(20, 1)),
        ]);
        assert_eq!(ticks_below(&processes, 10), Duration::from_millis(1500));
    }

    #[test]
    fn a_child_that_works_is_seen() {
        let mut child = process::Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .expect("sh runs");
        while of_descendants() < Duration::from_millis(50) {}
        child.kill().expect("it is ours");
        child.wait().expect("it was there");
    }
}

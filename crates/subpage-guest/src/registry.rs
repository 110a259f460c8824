//! Tests, which register themselves, and the words by which they report.

use core::fmt;

use linkme::distributed_slice;
use spin::Once;

use crate::hypervisor::test_hooks;
use crate::say;

/// On which processors a test makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hardware {
    /// On all.
    Any,
    /// Where the processor enforces sub-page permissions.
    Spp,
    /// Where the hypervisor has to decide in software.
    NoSpp,
}

/// A test.
#[derive(Debug)]
pub struct Test {
    /// What it is called, in `snake_case`.
    pub name: &'static str,
    /// Where it makes sense.
    pub hardware: Hardware,
    /// How many processors it needs.
    pub processors: u32,
    /// After how many seconds it hangs.
    pub limit: u32,
    /// The hypervisor is expected to stop the guest, with a line that has this word.
    pub stop: Option<&'static str>,
    /// The hypervisor is expected to print an event that has this word.
    pub event: Option<&'static str>,
    /// Returns if it passed, and panics otherwise.
    pub run: fn(),
}

/// All tests of the image.
#[distributed_slice]
pub static TESTS: [Test];

/// Registers a function as a test of the same name: `test!(NAME)`, or with `spp` or `nospp` and
/// `cpus = N`, `limit = SECONDS`, `stop = WORD`, `event = WORD`, in this order.
#[macro_export]
macro_rules! test {
    ($name:ident $(, $hardware:ident)? $(; cpus = $cpus:literal)? $(; limit = $limit:literal)?
        $(; stop = $stop:literal)? $(; event = $event:literal)?) => {
        // Being put into a link section is all that is unsafe about the static.
        #[allow(unsafe_code)]
        const _: () = {
            #[linkme::distributed_slice($crate::registry::TESTS)]
            static TEST: $crate::registry::Test = {
                #[allow(unused_mut)]
                let mut test = $crate::registry::Test {
                    name: stringify!($name),
                    hardware: $crate::registry::Hardware::Any,
                    processors: 1,
                    limit: 20,
                    stop: None,
                    event: None,
                    run: $name,
                };
                $(test.hardware = $crate::test!(@ $hardware);)?
                $(test.processors = $cpus;)?
                $(test.limit = $limit;)?
                $(test.stop = Some($stop);)?
                $(test.event = Some($event);)?
                test
            };
        };
    };
    (@ spp) => { $crate::registry::Hardware::Spp };
    (@ nospp) => { $crate::registry::Hardware::NoSpp };
}

/// The running test, so that a handler can report its end.
static RUNNING: Once<&'static str> = Once::new();

/// Name of the test that runs.
pub fn running() -> Option<&'static str> {
    RUNNING.get().copied()
}

/// Prints a line for each test.
pub fn list() {
    for test in TESTS {
        let hardware = match test.hardware {
            Hardware::Any => "any",
            Hardware::Spp => "spp",
            Hardware::NoSpp => "nospp",
        };
        let Test { name, processors, limit, .. } = test;
        let (stop, event) = (Word("stop", test.stop), Word("event", test.event));
        say!("test: {name} {hardware} cpus={processors} limit={limit}{stop}{event}");
    }
}

/// What is expected of the hypervisor's lines, if anything.
struct Word(&'static str, Option<&'static str>);

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.1.map_or(Ok(()), |word| write!(f, " {}={word}", self.0))
    }
}

/// Runs the test of this name and ends the machine.
pub fn run(name: &str) -> ! {
    let Some(test) = TESTS.iter().find(|test| test.name == name) else {
        say!("FAIL {name}: there is no such test");
        test_hooks::stop(2)
    };
    RUNNING.call_once(|| test.name);
    (test.run)();
    if test.stop.is_some() {
        say!("FAIL {name}: the guest was not stopped");
        test_hooks::stop(1)
    }
    passed();
    test_hooks::stop(0)
}

/// Says that the running test passed. Tests that end in the guest being stopped call it themselves.
pub fn passed() {
    say!("PASS {}", running().unwrap_or("nothing"));
}

#[cfg(test)]
mod tests {
    use super::TESTS;

    #[test]
    fn names_are_words_and_unique() {
        assert!(TESTS.len() > 10);
        for (index, test) in TESTS.iter().enumerate() {
            let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(!test.name.is_empty() && test.name.chars().all(word), "{}", test.name);
            assert!(TESTS[..index].iter().all(|other| other.name != test.name), "{}", test.name);
            assert!((1..=8).contains(&test.processors) && test.limit > 0, "{}", test.name);
        }
    }
}

//! Counts and times, and the server that shows them to Prometheus. `docs/metrics.md` lists them.
//!
//! Recording takes atomic operations only, except for counts by rule, which are kept where a write is
//! denied or logged anyhow. What shows them is behind the feature `metrics`, which is on by default.

#[cfg(feature = "metrics")]
mod address;
#[cfg(feature = "metrics")]
mod encode;
#[cfg(feature = "metrics")]
mod http;
mod rules;
#[cfg(feature = "metrics")]
mod server;
mod times;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::event::Broadcast;
use rules::RuleCounts;
use times::Times;

#[cfg(feature = "metrics")]
pub use address::parse_address;
pub use rules::{MAX_RULES, OTHER_RULES};
#[cfg(feature = "metrics")]
pub use server::{MetricsError, MetricsServer};
pub use times::Clock;

/// Why a virtual processor left the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExitKind {
    /// An access to an I/O port.
    Io,
    /// An access to an address without memory, or a write that KVM took out of read-only memory.
    Mmio,
    /// An access that the host's mapping forbids: `KVM_RUN` gave `EFAULT`.
    Fault,
    /// An instruction that KVM could not emulate.
    Emulation,
    /// HLT.
    Hlt,
    /// A signal.
    Interrupted,
    /// Anything else.
    Other,
}

impl ExitKind {
    /// All of them, in the order of their numbers.
    const ALL: [Self; 7] = [
        Self::Io,
        Self::Mmio,
        Self::Fault,
        Self::Emulation,
        Self::Hlt,
        Self::Interrupted,
        Self::Other,
    ];

    /// The value of the label `kind`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::Mmio => "mmio",
            Self::Fault => "fault",
            Self::Emulation => "emulation",
            Self::Hlt => "hlt",
            Self::Interrupted => "interrupted",
            Self::Other => "other",
        }
    }
}

/// What is counted.
#[derive(Debug)]
pub struct Metrics {
    /// By number of the kind.
    exits: [AtomicU64; ExitKind::ALL.len()],
    checks: AtomicU64,
    trapped: Times,
    denials: RuleCounts,
    logged: RuleCounts,
    refused: AtomicU64,
    console_dropped: AtomicU64,
    #[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "asked when it is shown"))]
    events: Arc<Broadcast>,
}

impl Metrics {
    /// All zero. Subscribers and their losses are asked of `events` whenever they are shown.
    pub fn new(events: Arc<Broadcast>) -> Self {
        let denials = RuleCounts::default();
        // Access maps only deny.
        denials.show(None);
        Self {
            exits: Default::default(),
            checks: AtomicU64::new(0),
            trapped: Times::default(),
            denials,
            logged: RuleCounts::default(),
            refused: AtomicU64::new(0),
            console_dropped: AtomicU64::new(0),
            events,
        }
    }

    /// A rule of this name is in force: its counts are shown from now on, from 0.
    pub fn rule_added(&self, name: &str) {
        self.denials.show(Some(name));
        self.logged.show(Some(name));
    }

    /// A virtual processor left the guest.
    pub fn exit(&self, kind: ExitKind) {
        self.exits[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often processors have left the guest for a reason.
    pub fn exits(&self, kind: ExitKind) -> u64 {
        self.exits[kind as usize].load(Ordering::Relaxed)
    }

    /// So many decisions about writes were made.
    pub fn checks(&self, count: u64) {
        self.checks.fetch_add(count, Ordering::Relaxed);
    }

    /// A write trapped, and handling it took so many nanoseconds.
    pub fn write_trapped(&self, nanoseconds: u64) {
        self.trapped.observe(nanoseconds);
    }

    /// A write was denied by the rule of this name, or by an access map.
    pub fn denied(&self, rule: Option<&str>) {
        self.denials.count(rule);
    }

    /// A write took effect and was reported, because of the rule of this name.
    pub fn logged(&self, rule: Option<&str>) {
        self.logged.count(rule);
    }

    /// A program got #UD for an instruction that nobody here carries out.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// So many bytes of the guest's console were lost, because nobody read them in time.
    pub fn console_dropped(&self, bytes: u64) {
        self.console_dropped.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[cfg(all(test, feature = "metrics"))]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::{ExitKind, Metrics};
    use crate::event::{Broadcast, tests::record};

    fn metrics() -> Metrics {
        Metrics::new(Arc::new(Broadcast::new()))
    }

    #[test]
    fn nothing_has_happened() {
        assert_eq!(
            metrics().encode(),
            "\
# HELP subpage_exits_total Exits of virtual processors to the VMM.
# TYPE subpage_exits_total counter
subpage_exits_total{kind=\"io\"} 0
subpage_exits_total{kind=\"mmio\"} 0
subpage_exits_total{kind=\"fault\"} 0
subpage_exits_total{kind=\"emulation\"} 0
subpage_exits_total{kind=\"hlt\"} 0
subpage_exits_total{kind=\"interrupted\"} 0
subpage_exits_total{kind=\"other\"} 0
# HELP subpage_checks_total Decisions about writes.
# TYPE subpage_checks_total counter
subpage_checks_total 0
# HELP subpage_writes_trapped_total Writes to pages with a restricted sub-page.
# TYPE subpage_writes_trapped_total counter
subpage_writes_trapped_total 0
# HELP subpage_trap_seconds Time that a trapped write took to handle.
# TYPE subpage_trap_seconds histogram
subpage_trap_seconds_bucket{le=\"0.000001\"} 0
subpage_trap_seconds_bucket{le=\"0.000002\"} 0
subpage_trap_seconds_bucket{le=\"0.000005\"} 0
subpage_trap_seconds_bucket{le=\"0.00001\"} 0
subpage_trap_seconds_bucket{le=\"0.00002\"} 0
subpage_trap_seconds_bucket{le=\"0.00005\"} 0
subpage_trap_seconds_bucket{le=\"0.0001\"} 0
subpage_trap_seconds_bucket{le=\"0.0002\"} 0
subpage_trap_seconds_bucket{le=\"0.0005\"} 0
subpage_trap_seconds_bucket{le=\"0.001\"} 0
subpage_trap_seconds_bucket{le=\"0.002\"} 0
subpage_trap_seconds_bucket{le=\"0.005\"} 0
subpage_trap_seconds_bucket{le=\"0.01\"} 0
subpage_trap_seconds_bucket{le=\"+Inf\"} 0
subpage_trap_seconds_sum 0
subpage_trap_seconds_count 0
# HELP subpage_denials_total Writes that were denied.
# TYPE subpage_denials_total counter
subpage_denials_total{rule=\"\"} 0
# HELP subpage_instructions_refused_total Instructions of programs that got #UD because nobody here carries out their store.
# TYPE subpage_instructions_refused_total counter
subpage_instructions_refused_total 0
# HELP subpage_events_dropped_total Events that subscribers lost because they did not keep up.
# TYPE subpage_events_dropped_total counter
subpage_events_dropped_total 0
# HELP subpage_console_dropped_bytes_total Bytes of the guest's console that were lost because they were not read in time.
# TYPE subpage_console_dropped_bytes_total counter
subpage_console_dropped_bytes_total 0
# HELP subpage_subscribers Subscribers of events now.
# TYPE subpage_subscribers gauge
subpage_subscribers 0
"
        );
    }

    #[test]
    fn the_documentation_lists_them_all() {
        let documentation = include_str!("../../../../docs/metrics.md");
        for line in metrics().encode().lines().filter(|line| line.starts_with("# TYPE ")) {
            let name = line.split(' ').nth(2).expect("a name");
            assert!(documentation.contains(&format!("| `{name}` |")), "{name}");
        }
        for kind in ExitKind::ALL {
            assert!(documentation.contains(&format!("| `{}` |", kind.label())), "{kind:?}");
        }
        assert!(documentation.contains(super::OTHER_RULES));
    }

    #[test]
    fn everything_is_counted_under_its_name() {
        let events = Arc::new(Broadcast::new());
        let metrics = Metrics::new(Arc::clone(&events));
        for (number, kind) in ExitKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number, "numbers are indices");
            for _ in 0..=number {
                metrics.exit(kind);
            }
        }
        metrics.checks(3);
        metrics.write_trapped(1_000);
        metrics.write_trapped(15_000);
        metrics.write_trapped(1_000_000_000);
        metrics.denied(Some("helper path"));
        metrics.denied(Some("helper path"));
        metrics.denied(None);
        metrics.logged(Some("counter"));
        metrics.console_dropped(70);
        let _subscription = events.subscribe(1);
        events.publish(Arc::new(record(1)));
        events.publish(Arc::new(record(2)));

        let text = metrics.encode();
        for line in [
            "subpage_exits_total{kind=\"io\"} 1",
            "subpage_exits_total{kind=\"mmio\"} 2",
            "subpage_exits_total{kind=\"fault\"} 3",
            "subpage_exits_total{kind=\"emulation\"} 4",
            "subpage_exits_total{kind=\"hlt\"} 5",
            "subpage_exits_total{kind=\"interrupted\"} 6",
            "subpage_exits_total{kind=\"other\"} 7",
            "subpage_checks_total 3",
            "subpage_writes_trapped_total 3",
            "subpage_trap_seconds_bucket{le=\"0.000001\"} 1",
            "subpage_trap_seconds_bucket{le=\"0.00001\"} 1",
            "subpage_trap_seconds_bucket{le=\"0.00002\"} 2",
            "subpage_trap_seconds_bucket{le=\"0.01\"} 2",
            "subpage_trap_seconds_bucket{le=\"+Inf\"} 3",
            "subpage_trap_seconds_count 3",
            "subpage_denials_total{rule=\"\"} 1",
            "subpage_denials_total{rule=\"helper path\"} 2",
            "subpage_logged_total{rule=\"counter\"} 1",
            "subpage_events_dropped_total 1",
            "subpage_console_dropped_bytes_total 70",
            "subpage_subscribers 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }

    /// `increase()` of a series sees its first denial only if it was scraped at 0 before.
    #[test]
    fn every_rule_starts_at_zero() {
        let metrics = metrics();
        metrics.rule_added("helper path");
        let text = metrics.encode();
        for line in [
            "subpage_denials_total{rule=\"\"} 0",
            "subpage_denials_total{rule=\"helper path\"} 0",
            "subpage_logged_total{rule=\"helper path\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn several_threads_count() {
        let metrics = metrics();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        metrics.exit(ExitKind::Mmio);
                        metrics.write_trapped(3_000);
                        metrics.denied(Some("rule"));
                    }
                });
            }
        });
        let text = metrics.encode();
        for line in [
            "subpage_exits_total{kind=\"mmio\"} 4000",
            "subpage_trap_seconds_count 4000",
            "subpage_denials_total{rule=\"rule\"} 4000",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }
}

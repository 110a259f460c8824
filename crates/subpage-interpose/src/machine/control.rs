//! What clients of the control socket may ask for.

use std::sync::Arc;

use subpage::access::AccessMap;
use subpage::address::{Gfn, GfnRange};
use subpage::domain::DomainError;
use subpage::errno::Errno;
use subpage::rules::{Owner, RuleId};
use subpage_emulate::guest::PhysicalMemory as _;
use subpage_guard::control::RequestHandler;
pub(super) use subpage_guard::control::named::rule_of;
use subpage_guard::control::named::{find_rule, range};
use subpage_guard::control::protocol::{
    NewRule, Refusal, Reply, Request, RuleRef, Shown, ShownMaps, ShownRule,
};
use subpage_guard::event::Subscription;

use super::Machine;
use super::guard::{ChangeError, Core};

/// How many events may wait for a client that watches.
const QUEUE: usize = 4096;

/// Most pages of one `get` or `set`.
const MAX_PAGES: usize = 512;

/// Most bytes of one `read`.
const MAX_READ: u64 = 64 << 10;

/// Does what clients ask of a machine.
pub(super) struct Handler(pub(super) Arc<Machine>);

impl RequestHandler for Handler {
    fn perform(&self, request: Request) -> Result<Reply, Refusal> {
        let machine = &*self.0;
        if matches!(request, Request::Add(_) | Request::Set { .. } | Request::Arm { .. }) {
            machine.expect_traps();
        }
        let mut core = machine.core();
        let reply = match request {
            Request::Show => Reply::Shown(Box::new(show(machine, &core))),
            Request::Add(new) => {
                let rule = rule_of(&new)?;
                let id = core.add_rule(&rule, true).map_err(|error| refusal(&error))?;
                Reply::Rule { rule: id.0 }
            }
            Request::Remove { rule } => {
                let id = find(&core, &rule)?;
                core.remove_rule(id).map_err(|error| refusal(&error))?;
                Reply::Done {}
            }
            Request::Lock { rule } => {
                let id = find(&core, &rule)?;
                let locked = core.domain.lock_rule(id, Owner::HOST);
                locked.map_err(|error| refusal(&error.into()))?;
                Reply::Done {}
            }
            Request::Arm { rules } => Reply::Armed { armed: arm(&mut core, &rules)? },
            Request::Get { gfn, pages } => {
                let places = places(&core, gfn, pages as usize)?;
                let mut maps = vec![AccessMap::ALL; pages as usize];
                let got = core.domain.get_access(places.first(), &mut maps);
                got.map_err(|error| refusal(&error.into()))?;
                Reply::Maps { maps: maps.iter().map(|map| map.bits()).collect() }
            }
            Request::Set { gfn, maps } => {
                let places = places(&core, gfn, maps.len())?;
                let new: Vec<_> = maps.iter().map(|bits| AccessMap::from_bits(*bits)).collect();
                let set = core.change(places, |domain| {
                    domain.set_access(places.first(), &new).map(|token| ((), token))
                });
                set.map_err(|error| refusal(&error))?;
                Reply::Pages { pages: u32::try_from(maps.len()).expect("512 at most") }
            }
            Request::Read { start, length } => read(&core, start, length)?,
            Request::Track { .. } | Request::Harvest { .. } | Request::Untrack { .. } => {
                return Err(not_here("writes are tracked where subpage runs the guest itself"));
            }
            Request::Heat { .. } => {
                return Err(not_here(
                    "writes are counted by page where subpage runs the guest itself",
                ));
            }
            Request::Save { .. } => {
                return Err(not_here("a guest of another VMM is saved by that VMM"));
            }
            Request::Pause
            | Request::Resume
            | Request::Step { .. }
            | Request::Registers { .. }
            | Request::Gdb { .. }
            | Request::GdbEnd
            | Request::Stop => {
                return Err(not_here("the processors belong to the VMM: ask it (its monitor)"));
            }
            Request::Watch => {
                return Err(refuse("EINVAL", "watch is not a request like the others"));
            }
        };
        Ok(reply)
    }

    fn subscribe(&self) -> Subscription {
        self.0.publisher.broadcast.subscribe(QUEUE)
    }
}

fn show(machine: &Machine, core: &Core) -> Shown {
    let rules = core.domain.rules().iter().map(|active| {
        let counts = core.counts.get(&active.id).copied().unwrap_or_default();
        let rule = &active.rule;
        ShownRule {
            rule: active.id.0,
            new: NewRule {
                name: rule.name.to_string(),
                start: core.memory.name(rule.range.first()).as_u64(),
                length: rule.range.bytes(),
                action: rule.action.word().to_owned(),
                owner: rule.owner.0,
                locked: rule.locked,
            },
            spent: active.spent,
            waits_for: (!active.armed).then(|| "command".to_owned()),
            exits: 0,
            exits_alone: 0,
            checked: counts.logged + counts.denied,
            overruled: 0,
            logged: counts.logged,
            denied: counts.denied,
        }
    });
    Shown {
        state: if machine.is_stopped() { "ended" } else { "running" }.to_owned(),
        held: None,
        failure: None,
        cpus: machine.processors.load(std::sync::atomic::Ordering::SeqCst),
        memory: core.memory.bytes(),
        rules: rules.collect(),
        access_maps: ShownMaps::default(),
        trackings: Vec::new(),
        trapped_pages: core.closed_pages(),
        writes: core.writes,
    }
}

fn arm(core: &mut Core, rules: &[RuleRef]) -> Result<Vec<u64>, Refusal> {
    let ids: Vec<RuleId> = if rules.is_empty() {
        core.domain.rules().iter().filter(|active| !active.armed).map(|active| active.id).collect()
    } else {
        rules.iter().map(|rule| find(core, rule)).collect::<Result<_, _>>()?
    };
    let mut armed = Vec::new();
    for id in ids {
        if core.arm(id).map_err(|error| refusal(&error))? {
            armed.push(id.0);
        }
    }
    Ok(armed)
}

fn read(core: &Core, start: u64, length: u64) -> Result<Reply, Refusal> {
    if length > MAX_READ {
        return Err(refuse("EINVAL", "a request is for 1 to 65536 bytes"));
    }
    let range = range(start, length)?;
    let mut bytes = vec![0; usize::try_from(length).expect("64 KiB at most")];
    core.memory
        .read(range.first(), &mut bytes)
        .map_err(|_| refuse("EFAULT", "the bytes are not all memory of the guest"))?;
    let digit = |value: u8| char::from_digit(value.into(), 16).expect("four bits");
    let digits = bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
    Ok(Reply::Memory { bytes: digits.collect() })
}

fn places(core: &Core, gfn: u64, pages: usize) -> Result<GfnRange, Refusal> {
    if pages == 0 || pages > MAX_PAGES {
        return Err(refuse("EINVAL", "a request is for 1 to 512 pages"));
    }
    let first = Gfn::try_new(gfn).map_err(|error| refuse("EINVAL", &error.to_string()))?;
    let range = range(first.gpa().as_u64(), pages as u64 * 4096)?;
    let places = core.memory.places(range);
    Ok(places.ok_or_else(|| refuse("EFAULT", "the pages are not all memory of the guest"))?.gfns())
}

fn find(core: &Core, rule: &RuleRef) -> Result<RuleId, Refusal> {
    find_rule(core.domain.rules().iter(), rule)
}

fn refuse(code: &str, error: &str) -> Refusal {
    Refusal::new(code, error)
}

fn not_here(error: &str) -> Refusal {
    Refusal::new("EINVAL", error)
}

/// The error number for a refused change.
pub(super) fn refusal(error: &ChangeError) -> Refusal {
    let errno = match error {
        ChangeError::Domain(error) => Errno::from(*error as DomainError),
        ChangeError::NotMemory(_) => Errno::Fault,
        ChangeError::Host(_) => Errno::NoMemory,
    };
    Refusal::new(errno.name(), error.to_string())
}

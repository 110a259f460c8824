//! What clients of the control socket may ask of a machine that another program runs.

use subpage::access::AccessMap;
use subpage::address::Gfn;
use subpage::rules::{Owner, RuleId};
use subpage_emulate::guest::PhysicalMemory as _;

use super::Machine;
use crate::control::RequestHandler;
use crate::control::named::{address, find_rule, range, refusal, rule_of};
use crate::control::protocol::{
    NewRule, Refusal, Reply, Request, RuleRef, Shown, ShownMap, ShownMaps, ShownRule,
};
use crate::event::Subscription;

/// Most pages of one `get` or `set`, as in the KVM series.
const MAX_PAGES: u32 = 512;

/// How many events may wait for a client that watches.
const QUEUE: usize = 4096;

/// Most bytes of one `read`.
const MAX_READ: u64 = 64 << 10;

/// Most access maps that `show` tells one by one.
const MAX_SHOWN_MAPS: usize = 32;

/// Does what clients ask of a machine, for [`Server::listen`](crate::control::Server::listen). What only
/// the program can do that runs the machine is refused with `EOPNOTSUPP`.
#[derive(Clone)]
pub struct Operator(Machine);

impl Machine {
    /// What serves its control socket.
    pub fn operator(&self) -> Operator {
        Operator(self.clone())
    }
}

impl RequestHandler for Operator {
    fn perform(&self, request: Request) -> Result<Reply, Refusal> {
        let machine = &self.0;
        match request {
            Request::Show => Ok(Reply::Shown(Box::new(show(machine)))),
            Request::Get { gfn, pages } => get(machine, gfn, pages),
            Request::Set { gfn, maps } => set(machine, gfn, &maps),
            Request::Add(new) => {
                let rule = machine.add_rules(&[rule_of(&new)?]).map_err(|error| refusal(&error))?;
                Ok(Reply::Rule { rule: rule.0 })
            }
            Request::Remove { rule } => {
                let rule = find(machine, &rule)?;
                machine.remove_rule(rule, Owner::HOST).map_err(|error| refusal(&error))?;
                Ok(Reply::Done {})
            }
            Request::Lock { rule } => {
                let rule = find(machine, &rule)?;
                machine.lock_rule(rule, Owner::HOST).map_err(|error| refusal(&error))?;
                Ok(Reply::Done {})
            }
            Request::Read { start, length } => read(machine, start, length),
            _ => Err(refuse(
                "EOPNOTSUPP",
                "another program runs this machine: ask it, or guard by rules and maps",
            )),
        }
    }

    fn subscribe(&self) -> Subscription {
        self.0.subscribe(QUEUE)
    }
}

fn show(machine: &Machine) -> Shown {
    let memory = machine.bytes();
    let cpus = *machine.shared.processors.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut guard = machine.shared.guard();
    let (domain, counts) = guard.counted();
    let writes = counts.writes();
    let rules = domain.rules().iter().map(|active| {
        let (counts, rule) = (counts.rule(active.id.0), &active.rule);
        ShownRule {
            rule: active.id.0,
            new: NewRule {
                name: rule.name.to_string(),
                start: rule.range.first().as_u64(),
                length: rule.range.bytes(),
                action: rule.action.word().to_owned(),
                owner: rule.owner.0,
                locked: rule.locked,
            },
            spent: active.spent,
            waits_for: None,
            exits: counts.exits,
            exits_alone: counts.exits_alone,
            checked: counts.checked,
            overruled: counts.overruled,
            logged: counts.logged,
            denied: counts.denied,
        }
    });
    let rules = rules.collect();
    let mut access_maps = ShownMaps::default();
    for (gfn, denied) in guard.map_denials() {
        access_maps.pages += 1;
        access_maps.sub_pages += u64::from(denied.count());
        if access_maps.first.len() < MAX_SHOWN_MAPS {
            access_maps.first.push(ShownMap { gfn: gfn.as_u64(), map: (!denied).bits() });
        }
    }
    Shown {
        state: "running".to_owned(),
        held: None,
        failure: None,
        cpus,
        memory,
        rules,
        access_maps,
        trackings: Vec::new(),
        trapped_pages: guard.traps().trapped().pages(),
        writes,
    }
}

fn get(machine: &Machine, gfn: u64, pages: u32) -> Result<Reply, Refusal> {
    if pages == 0 || pages > MAX_PAGES {
        return Err(refuse("EINVAL", "a request is for 1 to 512 pages"));
    }
    let first = Gfn::try_new(gfn).map_err(|error| address(&error))?;
    let mut maps = vec![AccessMap::ALL; pages as usize];
    let guard = machine.shared.guard();
    guard.domain().get_access(first, &mut maps).map_err(|error| refusal(&error.into()))?;
    Ok(Reply::Maps { maps: maps.iter().map(|map| map.bits()).collect() })
}

fn set(machine: &Machine, gfn: u64, maps: &[u32]) -> Result<Reply, Refusal> {
    let pages = u32::try_from(maps.len()).ok().filter(|pages| (1..=MAX_PAGES).contains(pages));
    let pages = pages.ok_or_else(|| refuse("EINVAL", "a request is for 1 to 512 pages"))?;
    let first = Gfn::try_new(gfn).map_err(|error| address(&error))?;
    let maps: Vec<_> = maps.iter().map(|&bits| AccessMap::from_bits(bits)).collect();
    machine.set_access(first, &maps).map_err(|error| refusal(&error))?;
    Ok(Reply::Pages { pages })
}

fn read(machine: &Machine, start: u64, length: u64) -> Result<Reply, Refusal> {
    if length > MAX_READ {
        return Err(refuse("EINVAL", "a request is for 1 to 65536 bytes"));
    }
    let range = range(start, length)?;
    let mut bytes = vec![0; usize::try_from(length).expect("64 KiB at most")];
    machine
        .shared
        .memory()
        .read(range.first(), &mut bytes)
        .map_err(|_| refuse("EFAULT", "the bytes are not all memory of the guest"))?;
    let digit = |value: u8| char::from_digit(value.into(), 16).expect("four bits");
    let digits = bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
    Ok(Reply::Memory { bytes: digits.collect() })
}

fn find(machine: &Machine, rule: &RuleRef) -> Result<RuleId, Refusal> {
    find_rule(machine.shared.guard().domain().rules().iter(), rule)
}

fn refuse(code: &str, error: &str) -> Refusal {
    Refusal { code: code.to_owned(), error: error.to_owned() }
}

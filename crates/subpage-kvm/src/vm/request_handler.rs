//! What clients of the control socket may ask for.

use std::path::Path;
use std::sync::Arc;

use subpage::access::AccessMap;
use subpage::address::Gfn;
use subpage::rules::{Moment, Owner, RuleId};
use subpage::track::TrackId;

use super::{HoldError, VmShared};
use crate::control::RequestHandler;
use crate::control::named::{address, find_rule, range, refusal, rule_of};
use crate::control::protocol::{
    HeatPage, HeatSubPage, NewRule, Refusal, Reply, Request, RuleRef, Shown, ShownMap, ShownMaps,
    ShownRegister, ShownRegisters, ShownRule, ShownTracking, Written,
};
use crate::ending::Ending;
use crate::event::ArmedBy;
use crate::event::Subscription;
use crate::gdb::DebuggerAddress;
use crate::guard::PageCounts;
use crate::snapshot::SnapshotError;
use crate::vcpu::Processor;

/// Most pages of one `get` or `set`, as in the KVM series.
const MAX_PAGES: u32 = 512;

/// How many events may wait for a client that watches.
const QUEUE: usize = 4096;

/// Most bytes of one `read`.
const MAX_READ: u64 = 64 << 10;

/// Most access maps that `show` tells one by one.
const MAX_SHOWN_MAPS: usize = 32;

/// Does what clients ask of a machine.
#[derive(Clone)]
pub struct VmRequestHandler {
    machine: Arc<VmShared>,
}

impl VmRequestHandler {
    pub(super) const fn new(machine: Arc<VmShared>) -> Self {
        Self { machine }
    }

    pub(crate) const fn shared(&self) -> &Arc<VmShared> {
        &self.machine
    }

    /// Puts bytes into the serial port, as many as it has room for; how many.
    pub fn serial_input(&self, bytes: &[u8]) -> usize {
        self.machine.ports().input(bytes)
    }
}

impl RequestHandler for VmRequestHandler {
    fn perform(&self, request: Request) -> Result<Reply, Refusal> {
        let machine = &*self.machine;
        match request {
            Request::Show => Ok(Reply::Shown(Box::new(show(machine)))),
            Request::Heat { pages } => heat(machine, pages),
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
            Request::Arm { rules } => {
                let rules: Vec<_> =
                    rules.iter().map(|rule| find(machine, rule)).collect::<Result<_, _>>()?;
                let armed = if rules.is_empty() {
                    machine.arm_waiting(Moment::Command, ArmedBy::Command)
                } else {
                    machine.arm_named(&rules, ArmedBy::Command)
                };
                let armed = armed.map_err(|error| refusal(&error))?;
                Ok(Reply::Armed { armed: armed.iter().map(|rule| rule.0).collect() })
            }
            Request::Watch => Err(refuse("EINVAL", "watch is not a request like the others")),
            Request::Track { start, length } => {
                let track =
                    machine.track(range(start, length)?).map_err(|error| refusal(&error))?;
                Ok(Reply::Track { track: track.0 })
            }
            Request::Harvest { track } => {
                let pages = machine.harvest(TrackId(track)).map_err(|error| refusal(&error))?;
                let written = pages
                    .iter()
                    .map(|page| Written { gfn: page.gfn.as_u64(), sub_pages: page.written.bits() })
                    .collect();
                Ok(Reply::Harvest { written })
            }
            Request::Untrack { track } => {
                machine.untrack(TrackId(track)).map_err(|error| refusal(&error))?;
                Ok(Reply::Done {})
            }
            Request::Save { path } => {
                let saved = machine.save(Path::new(&path)).map_err(|error| snapshot(&error))?;
                Ok(Reply::Saved { saved })
            }
            Request::Pause => {
                machine.pause_on_request().map_err(hold)?;
                Ok(Reply::Done {})
            }
            Request::Resume => {
                machine.resume_on_request().map_err(hold)?;
                Ok(Reply::Done {})
            }
            Request::Step { cpu } => {
                machine.step_on_request(cpu).map_err(hold)?;
                let at = machine.look_at(cpu, Processor::interrupted);
                let at = at.map_err(hold)?.map_err(|error| refuse("EIO", &error.to_string()))?;
                Ok(Reply::Stepped { rip: at.state.rip })
            }
            Request::Registers { cpu } => {
                let registers = machine.look_at(cpu, Processor::named_registers);
                let registers = registers.map_err(hold)?;
                let registers = registers.map_err(|error| refuse("EIO", &error.to_string()))?;
                let shown = |(name, value)| ShownRegister { name, value };
                let registers = registers.into_iter().map(shown).collect();
                Ok(Reply::Registers(ShownRegisters { cpu, registers }))
            }
            Request::Read { start, length } => read(machine, start, length),
            Request::Gdb { address } => {
                let address: DebuggerAddress = address
                    .parse()
                    .map_err(|error| refuse("EINVAL", &format!("`{address}` is {error}")))?;
                let bound = self.shared().wait_for_debuggers(&address);
                let bound = bound.map_err(|error| refuse("EIO", &error.to_string()))?;
                Ok(Reply::Gdb { gdb: bound.to_string() })
            }
            Request::GdbEnd => {
                machine.send_debugger_away().map_err(hold)?;
                Ok(Reply::Done {})
            }
            Request::Stop => {
                machine.end(Ending::Requested);
                Ok(Reply::Done {})
            }
        }
    }

    fn subscribe(&self) -> Subscription {
        self.machine.events.broadcast.subscribe(QUEUE)
    }
}

fn show(machine: &VmShared) -> Shown {
    let mut guard = machine.guard();
    let waiting = machine.waiting();
    let (domain, trap_counts) = guard.counted();
    let writes = trap_counts.writes();
    let rules = domain
        .rules()
        .iter()
        .filter(|active| machine.events.first_program().is_none_or(|(rule, _)| rule != active.id))
        .map(|active| {
            let counts = trap_counts.rule(active.id.0);
            let rule = &active.rule;
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
                waits_for: waiting.of(active.id).map(|moment| moment.word().to_owned()),
                exits: counts.exits,
                exits_alone: counts.exits_alone,
                checked: counts.checked,
                overruled: counts.overruled,
                logged: counts.logged,
                denied: counts.denied,
            }
        })
        .collect();
    let access_maps = show_maps(guard.map_denials());
    let domain = guard.domain();
    let trackings = domain
        .tracked()
        .map(|(track, range)| ShownTracking {
            track: track.0,
            start: range.first().as_u64(),
            length: range.bytes(),
        })
        .collect();
    let (state, failure) = match machine.ending.get() {
        None if machine.held().is_some() => ("held", None),
        None => ("running", None),
        Some(ending) if ending.is_failure() => ("failed", Some(ending.to_string())),
        Some(_) => ("ended", None),
    };
    Shown {
        state: state.to_owned(),
        held: machine.held().filter(|_| state == "held").map(|held| held.to_string()),
        failure,
        cpus: u32::try_from(machine.vcpus.processors()).expect("a u32 was asked for"),
        memory: machine.ram.bytes(),
        rules,
        access_maps,
        trackings,
        trapped_pages: guard.traps().trapped().pages(),
        writes,
    }
}

fn heat(machine: &VmShared, pages: u32) -> Result<Reply, Refusal> {
    let most = usize::try_from(pages).ok().filter(|_| (1..=MAX_PAGES).contains(&pages));
    let most = most.ok_or_else(|| refuse("EINVAL", "a request is for 1 to 512 pages"))?;
    let mut guard = machine.guard();
    let (domain, trap_counts) = guard.counted();
    let counts = trap_counts.sub_pages();
    let page = |(gfn, counts): (Gfn, &PageCounts)| HeatPage {
        gfn: gfn.as_u64(),
        map: domain.permitted(gfn).bits(),
        writes: counts.writes,
        sub_pages: (0_u8..)
            .zip(counts.sub_pages.iter().zip(counts.denied))
            .filter(|(_, (writes, _))| **writes > 0)
            .map(|(sub_page, (writes, denied))| HeatSubPage { sub_page, writes: *writes, denied })
            .collect(),
    };
    let hottest = counts.hottest(most).into_iter().map(page).collect();
    let counted = counts.pages().len() as u64;
    Ok(Reply::Heat { hottest, counted, omitted: counts.omitted() })
}

fn show_maps(denials: impl Iterator<Item = (Gfn, AccessMap)>) -> ShownMaps {
    let mut shown = ShownMaps::default();
    for (gfn, denied) in denials {
        shown.pages += 1;
        shown.sub_pages += u64::from(denied.count());
        if shown.first.len() < MAX_SHOWN_MAPS {
            shown.first.push(ShownMap { gfn: gfn.as_u64(), map: (!denied).bits() });
        }
    }
    shown
}

fn get(machine: &VmShared, gfn: u64, pages: u32) -> Result<Reply, Refusal> {
    if pages == 0 || pages > MAX_PAGES {
        return Err(refuse("EINVAL", "a request is for 1 to 512 pages"));
    }
    let first = Gfn::try_new(gfn).map_err(|error| address(&error))?;
    let mut maps = vec![AccessMap::ALL; pages as usize];
    machine
        .guard()
        .domain()
        .get_access(first, &mut maps)
        .map_err(|error| refusal(&error.into()))?;
    Ok(Reply::Maps { maps: maps.iter().map(|map| map.bits()).collect() })
}

fn read(machine: &VmShared, start: u64, length: u64) -> Result<Reply, Refusal> {
    if length > MAX_READ {
        return Err(refuse("EINVAL", "a request is for 1 to 65536 bytes"));
    }
    let range = range(start, length)?;
    if !machine.ram.holds(range) {
        return Err(refuse("EFAULT", "the bytes are not all memory of the guest"));
    }
    let mut bytes = vec![0; usize::try_from(length).expect("64 KiB at most")];
    if !machine.read_clean(range.first(), &mut bytes) {
        return Err(refuse("EFAULT", "the bytes are not all memory of the guest"));
    }
    let digit = |value: u8| char::from_digit(value.into(), 16).expect("four bits");
    let digits = bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
    Ok(Reply::Memory { bytes: digits.collect() })
}

fn set(machine: &VmShared, gfn: u64, maps: &[u32]) -> Result<Reply, Refusal> {
    let pages = u32::try_from(maps.len()).ok().filter(|pages| (1..=MAX_PAGES).contains(pages));
    let pages = pages.ok_or_else(|| refuse("EINVAL", "a request is for 1 to 512 pages"))?;
    let first = Gfn::try_new(gfn).map_err(|error| address(&error))?;
    let maps: Vec<_> = maps.iter().map(|&bits| AccessMap::from_bits(bits)).collect();
    machine.set_access(first, &maps).map_err(|error| refusal(&error))?;
    Ok(Reply::Pages { pages })
}

fn find(machine: &VmShared, rule: &RuleRef) -> Result<RuleId, Refusal> {
    // One of this VMM's own is nobody's.
    let own = machine.events.first_program().map(|(rule, _)| rule);
    match rule {
        RuleRef::Number(number) if own == Some(RuleId(*number)) => {
            Err(refuse("ENOENT", &format!("no rule has the number {number}")))
        }
        rule => {
            let guard = machine.guard();
            find_rule(guard.domain().rules().iter().filter(|active| own != Some(active.id)), rule)
        }
    }
}

fn refuse(code: &str, error: &str) -> Refusal {
    Refusal { code: code.to_owned(), error: error.to_owned() }
}

fn hold(error: HoldError) -> Refusal {
    let code = match error {
        HoldError::Runs
        | HoldError::NotHeld
        | HoldError::Debugged
        | HoldError::NotDebugged
        | HoldError::Stepping
        | HoldError::Kept => "EBUSY",
        HoldError::Ended | HoldError::Stuck => "EIO",
        HoldError::NoProcessor(_) => "EINVAL",
    };
    refuse(code, &error.to_string())
}

fn snapshot(error: &SnapshotError) -> Refusal {
    refuse("EIO", &error.to_string())
}

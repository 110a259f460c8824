//! A guest on KVM: from its image to its end.

mod arm;
mod count;
mod ending;
mod functions;
mod input;
mod kernel_witness;
mod names;
mod request_log;
mod supervise;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use subpage::rules::{Moment, Rule};
use subpage_kvm::boot::{self, Boot};
use subpage_kvm::control::protocol::{Reply, Request, Shown};
use subpage_kvm::control::{RequestHandler, Server};
use subpage_kvm::memory::Remedy;
#[cfg(feature = "metrics")]
use subpage_kvm::metrics::MetricsServer;
use subpage_kvm::trap::TrapBy;
use subpage_kvm::vm::{self, Configuration, OnRuleStop, Vm};

use self::count::{Count, Known};
use self::input::Input;
use self::request_log::RequestLog;
use self::supervise::{Grace, Limits, Teller, supervise};
use crate::command_line::{
    DEFAULT_MEMORY, GuardArguments, MachineArguments, OnFailure, OnStop, PageTables, TrapChoice,
};
use crate::events::{
    EventWriter, LiveStart, RuleEvent, RunHeader, StartEvent, WarningEvent, WarningKind,
};
use crate::failure::{Failure, Status};
use crate::policy::{Draft, Policy, PolicyRule};
use crate::summary::{LiveSummary, Summary};
use crate::terminal::style::LOGGED;
use crate::terminal::{ColorWhen, ConsolePlace, Output, Screen, bytes, grouped, tell};

/// Events that may wait for this program to print them.
const QUEUE: usize = 1 << 16;

/// Exit status of a program that a second signal ends at once, as shells give it for Ctrl-C.
const KILLED: i32 = 128 + SIGINT;

/// A guest that has run, whose output may still wait for its reader.
pub(super) struct Ran {
    pub(super) summary: Summary,
    pub(super) status: Status,
    screen: Screen,
    limits: Limits,
    grace: Grace,
    color: ColorWhen,
}

impl Ran {
    /// Sees the output out; its failure becomes that of `out`.
    pub(super) fn finish(mut self, out: &mut Output) {
        let left = self.grace.finish(&self.limits, &self.screen);
        if left > 0 {
            let text = format!(
                "{LOGGED}note:{LOGGED:#} {} bytes of output are lost: nobody read them\n",
                grouped(left as u64)
            );
            tell(self.color, text);
        }
        let failure = self.screen.failure();
        if left > 0 || failure.is_some() {
            out.abandon(failure);
        }
    }
}

/// Runs the guest in the file `image` under a policy, and tells what happens.
pub(super) fn run(
    image: &Path,
    mut draft: Draft,
    arguments: &GuardArguments,
    color: ColorWhen,
) -> Result<Ran, Failure> {
    let asked = &arguments.machine;
    let header = RunHeader::now(Some(&draft));
    let policy_name = draft.name();
    let policy_files = draft.sources().map(|source| source.path().to_owned()).collect();
    let names = names::of_guest(image, &draft, asked)?;
    let by_name = names::has_places_by_name(&draft);
    let starts = names::kernel_starts(&names, &mut draft, asked);
    let others = names::of_other_files(&names, &mut draft, asked);
    let policy = draft
        .resolve_or(&names.list, names.otherwise)
        .map_err(|mistakes| Failure::Policy(Box::new(mistakes)));
    if policy.is_err() && asked.load_address.is_none() {
        check_policy(image, None)?;
    }
    let mut policy = policy?;
    let mut warnings = policy.overruled();
    let screen = screen(color, arguments)?;
    let mut vm = Vm::new(&configuration(asked), Box::new(screen.console()))
        .map_err(|error| Failure::bad(&error))?;
    let boot = load(&mut vm, image, asked)?;
    warnings.extend(names::may_move(&boot, asked).filter(|_| by_name));
    warnings.extend(names::is_emulated(&boot));
    warnings.extend(lost_updates(vm.traps_by(), cpus(asked)));
    if arguments.strict && !warnings.is_empty() {
        return Err(Failure::Strict { warnings, before_a_run: true });
    }
    names::check_place(&starts, &boot)?;
    names::check_build(&others, image)?;
    // An ELF file says where its functions are; a list of symbols has no code to check them by.
    let functions = functions::of_elf(asked.symbols.as_deref().unwrap_or(image));
    vm.name_writers_by(kernel_witness::of(image, &boot, functions));
    arm::default(&mut policy, &boot.image);
    let first_program = arm::check(&policy, &boot.image, image)?;
    check_memory(&vm, &policy)?;
    let moment = |rule: &PolicyRule| (rule.rule, rule.arm.unwrap_or(Moment::Start));
    let rules: Vec<(Rule, Moment)> = policy.rules.iter().map(moment).collect();
    let first = vm.add_rules_at(&rules).map_err(|error| Failure::bad(&error))?;
    if let Some(found) = first_program {
        vm.watch_first_program(found).map_err(|error| Failure::bad(&error))?;
    }

    let known = (first.0..).zip(&policy.rules).map(|(id, rule)| Known::of_policy(id, rule));
    let count = Count::new(known.collect());
    let start = StartEvent {
        header,
        guest: image.display().to_string(),
        policy: policy_name,
        backend: "kvm".to_owned(),
        rules: policy.rules.iter().map(RuleEvent::from).collect(),
        live: None,
    };
    go(vm, start, warnings, count, arguments, policy_files, screen, color)
}

/// Goes on with a saved guest under the rules that it had, and tells what happens.
pub(super) fn restore(
    file: &Path,
    arguments: &GuardArguments,
    color: ColorWhen,
) -> Result<Ran, Failure> {
    let screen = screen(color, arguments)?;
    let configuration = configuration(&arguments.machine);
    let vm = Vm::restore(file, &configuration, Box::new(screen.console()))
        .map_err(|error| Failure::bad(&error))?;
    if let Some(path) = &arguments.machine.symbols {
        vm.name_writers_by(kernel_witness::of_restored(path, &vm)?);
    }
    let Shown { rules, cpus, .. } = show(&vm)?;
    let warnings: Vec<_> = lost_updates(vm.traps_by(), cpus).into_iter().collect();
    if arguments.strict && !warnings.is_empty() {
        return Err(Failure::Strict { warnings, before_a_run: true });
    }
    let count =
        Count::new(rules.iter().map(|shown| Known::of_machine(shown.rule, &shown.new)).collect());
    let name = file.display().to_string();
    let start = StartEvent {
        header: RunHeader::now(None),
        guest: name.clone(),
        // The rules are in it.
        policy: name,
        backend: "kvm".to_owned(),
        rules: rules.iter().map(RuleEvent::from).collect(),
        live: None,
    };
    go(vm, start, warnings, count, arguments, Vec::new(), screen, color)
}

/// Looks for what a run of this guest would refuse: the file itself, and moments to which it does not
/// come. Without a policy, of one that has mistakes, only the file is looked at: one that can be no guest has none of the
/// names, which is then the mistake.
pub(super) fn check_policy(image: &Path, policy: Option<&mut Policy>) -> Result<(), Failure> {
    let kind = boot::inspect(image).map_err(|error| Failure::bad(&error))?;
    let Some(policy) = policy else { return Ok(()) };
    arm::default(policy, &kind);
    arm::check(policy, &kind, image).map(drop)
}

fn show(vm: &Vm) -> Result<Shown, Failure> {
    match vm.request_handler().perform(Request::Show) {
        Ok(Reply::Shown(shown)) => Ok(*shown),
        other => Err(Failure::Internal(format!("the machine does not show itself: {other:?}"))),
    }
}

/// Starts a guest that is loaded and guarded, and stays with it until its end.
///
/// `policy_files`: those of the policy, included ones with them, which no saved guest may replace.
#[allow(clippy::too_many_arguments, reason = "all that a run has")]
fn go(
    mut vm: Vm,
    mut start: StartEvent,
    mut warnings: Vec<WarningEvent>,
    mut count: Count,
    arguments: &GuardArguments,
    policy_files: Vec<PathBuf>,
    screen: Screen,
    color: ColorWhen,
) -> Result<Ran, Failure> {
    let asked = &arguments.machine;
    let input = asked.input.as_deref().map(Input::open).transpose()?;
    let interrupted = catch_signals()?;
    let kept = arguments.kept().into_iter().chain(policy_files).collect();
    let request_log = Arc::new(RequestLog::new(vm.request_handler(), kept));
    let server = listen(asked, &request_log)?;
    let metrics = serve_metrics(asked, &vm)?;
    let control = server.path().display().to_string();
    let on_stop = asked.on_stop.clone().unwrap_or(OnStop::End);
    let gdb = wait_for_debuggers(asked, &vm, &on_stop)?;
    start.live = Some(LiveStart {
        cpus: show(&vm)?.cpus,
        memory: vm.ram().bytes(),
        trap: match vm.traps_by() {
            TrapBy::Slots => "slots",
            TrapBy::Mprotect => "mprotect",
        },
        control: control.clone(),
        metrics: metrics.as_ref().map(|(_, address)| address.clone()),
        gdb: gdb.clone(),
    });
    let mut events = EventWriter::new(screen.lines(), arguments.json, arguments.detail());
    events.start(&start)?;
    events.warnings(&warnings)?;
    let subscription = vm.subscribe(QUEUE);
    let wait = if screen.is_terminal() { OnFailure::Wait } else { OnFailure::Exit };
    if let Some(path) = asked.console_file() {
        screen.empty_console().map_err(|error| console_failed(path, &error))?;
    }
    let began = Instant::now();
    vm.start().map_err(|error| Failure::bad(&error))?;
    if let Some(input) = input {
        input.feed(vm.request_handler(), color)?;
    }
    let limits = Limits {
        deadline: asked.timeout.and_then(|time| began.checked_add(time)),
        interrupted,
        keeps_failed: asked.on_failure.unwrap_or(wait) == OnFailure::Wait,
        on_stop,
        gdb,
        control,
    };
    let mut grace = Grace::default();
    let teller = Teller::new(&mut count, &mut events, &screen, vm.metrics(), color);
    let ending = supervise(&vm, &request_log, &subscription, &limits, &mut grace, teller)?;
    let elapsed = began.elapsed();
    // Whoever asked for the end over the socket gets the answer before it goes.
    drop((server, metrics));
    let waiting = vm.waiting_rules();
    warnings.extend(waiting.iter().map(|(id, moment)| arm::never(count.name(id.0), *moment)));
    events.warnings(&warnings[warnings.len() - waiting.len()..])?;
    let mut summary = count.into_summary(
        &vm.trap_counts(),
        &request_log.added(),
        &vm.map_denials(),
        ending,
        elapsed,
    );
    if let Some(live) = &mut summary.live {
        live.panic_console = vm.panic_lines().unwrap_or_default();
        live.console_shown = !arguments.json && !arguments.quiet && asked.console.is_none();
    }
    summary.guest = start.guest;
    summary.policy = start.policy;
    summary.backend = start.backend;
    summary.warnings = warnings;
    summary.header = start.header;
    events.summary(&summary)?;
    let failed = summary.live.as_ref().is_some_and(LiveSummary::is_failure);
    let status = match (summary.denied() > 0, failed) {
        // What was denied is what people run this for.
        (true, _) => Status::Denied,
        (false, true) => Status::GuestFailed,
        (false, false) => Status::Clean,
    };
    drop(events);
    Ok(Ran { summary, status, screen, limits, grace, color })
}

/// Standard output, and where the console goes.
fn screen(color: ColorWhen, arguments: &GuardArguments) -> Result<Screen, Failure> {
    let place = match (&arguments.machine.console, arguments.machine.console_file()) {
        (_, Some(path)) => {
            // What is in it stays until the guest starts: much may be wrong before.
            let file = File::options().write(true).create(true).truncate(false).open(path);
            ConsolePlace::File(file.map_err(|error| console_failed(path, &error))?)
        }
        (None, None) if arguments.json => ConsolePlace::Stderr,
        (None, None) if !arguments.quiet => ConsolePlace::Stdout,
        _ => ConsolePlace::Nowhere,
    };
    Screen::new(color, place)
        .map_err(|error| Failure::Internal(format!("cannot start a thread for output: {error}")))
}

fn console_failed(path: &Path, error: &io::Error) -> Failure {
    Failure::input(format_args!("cannot write the console {}", path.display()), error)
}

/// The warning about slots under several processors.
fn lost_updates(traps_by: TrapBy, cpus: u32) -> Option<WarningEvent> {
    let lost = traps_by == TrapBy::Slots && cpus > 1;
    lost.then(|| WarningEvent {
        warning: WarningKind::LockedUpdatesLost,
        message: format!(
            "in memory slots KVM stores what a locked instruction computed as a plain write, so that {cpus} \
             processors may lose updates of each other in guarded pages"
        ),
        rule: None,
        file: None,
        line: None,
        help: "leave `--trap slots` out, or run one processor".to_owned(),
    })
}

fn cpus(asked: &MachineArguments) -> u32 {
    asked.cpus.map_or(1, u32::from)
}

fn configuration(asked: &MachineArguments) -> Configuration {
    Configuration {
        cpus: cpus(asked),
        memory: asked.memory.unwrap_or(DEFAULT_MEMORY),
        trap: match asked.trap.unwrap_or_default() {
            TrapChoice::Auto => vm::TrapChoice::Auto,
            TrapChoice::Slots => vm::TrapChoice::Slots,
            TrapChoice::Mprotect => vm::TrapChoice::Mprotect,
        },
        page_tables: match asked.page_tables.unwrap_or_default() {
            PageTables::Step => vm::PageTables::Step,
            PageTables::Refuse => vm::PageTables::Refuse,
        },
        features: asked.cpu.clone().unwrap_or_default(),
        ..Configuration::default()
    }
}

fn load(vm: &mut Vm, image: &Path, asked: &MachineArguments) -> Result<Boot, Failure> {
    let request = boot::Request {
        image,
        initrd: asked.initrd.as_deref(),
        command_line: asked.cmdline.as_deref().unwrap_or_default(),
        load_address: asked.load_address,
        slide: None,
        cpus: cpus(asked),
    };
    vm.load(&request).map_err(|error| Failure::bad(&error))
}

/// Refuses a policy that guards what this guest does not have, and names the rule.
fn check_memory(vm: &Vm, policy: &Policy) -> Result<(), Failure> {
    let Some(rule) = policy.rules.iter().find(|rule| !vm.ram().holds(rule.rule.range)) else {
        return Ok(());
    };
    let range = rule.rule.range;
    let remedy = Remedy::of(range);
    Err(Failure::Input(format!(
        "the rule `{}` ({}) guards {:#x}..{:#x}, which is not all memory of this guest of {}: {remedy}; \
         {}",
        rule.rule.name,
        rule.place(),
        range.first().as_u64(),
        range.last().as_u64() + 1,
        bytes(vm.ram().bytes()),
        match remedy {
            Remedy::Memory(_) => "give it more by `--memory`, or correct the rule",
            Remedy::Devices | Remedy::Beyond => "correct the rule",
        },
    )))
}

/// Set when this program is told to end. The second signal ends it at once.
fn catch_signals() -> Result<Arc<AtomicBool>, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the second signal finds what the first one set.
        signal_hook::flag::register_conditional_shutdown(signal, KILLED, Arc::clone(&interrupted))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&interrupted)))
            .map_err(|error| Failure::Internal(format!("cannot handle signals: {error}")))?;
    }
    Ok(interrupted)
}

/// A build without the feature serves no metrics.
#[cfg(not(feature = "metrics"))]
type MetricsServer = std::convert::Infallible;

/// Serves metrics, if they are asked for; where.
#[cfg_attr(not(feature = "metrics"), allow(clippy::unnecessary_wraps))]
fn serve_metrics(
    asked: &MachineArguments,
    vm: &Vm,
) -> Result<Option<(MetricsServer, String)>, Failure> {
    #[cfg(feature = "metrics")]
    if let Some(address) = asked.metrics {
        let server = MetricsServer::serve(address, vm.metrics());
        let server = server.map_err(|error| Failure::bad(&error))?;
        let address = format!("http://{}/metrics", server.local_addr());
        return Ok(Some((server, address)));
    }
    let _ = (asked, vm);
    Ok(None)
}

/// Waits for debuggers, if they are asked for; where. The guest then begins when the first of them lets
/// it, unless it is to run until a rule stops it.
fn wait_for_debuggers(
    asked: &MachineArguments,
    vm: &Vm,
    on_stop: &OnStop,
) -> Result<Option<String>, Failure> {
    vm.on_rule_stop(match on_stop {
        OnStop::End => OnRuleStop::End,
        OnStop::Wait | OnStop::Gdb => OnRuleStop::Hold,
        OnStop::Save(_) => OnRuleStop::Keep,
    });
    let Some(address) = &asked.gdb else {
        if *on_stop == OnStop::Gdb {
            return Err(Failure::Input(
                "`--on-stop gdb` needs `--gdb ADDR`: where gdb is to be waited for".to_owned(),
            ));
        }
        return Ok(None);
    };
    if *on_stop != OnStop::Gdb {
        vm.hold();
    }
    let bound = vm.wait_for_debuggers(address).map_err(|error| Failure::bad(&error))?;
    Ok(Some(bound.to_string()))
}

/// Serves the control socket.
fn listen(asked: &MachineArguments, request_log: &Arc<RequestLog>) -> Result<Server, Failure> {
    let request_log: Arc<RequestLog> = Arc::clone(request_log);
    let server = match &asked.control {
        Some(path) => {
            // Printed for people who are in another directory.
            let path = std::path::absolute(path)
                .map_err(|error| Failure::input("cannot make the control socket", &error))?;
            Server::listen(&path, request_log)
        }
        None => Server::listen_somewhere(request_log),
    };
    server.map_err(|error| Failure::bad(&error))
}

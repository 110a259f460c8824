//! The image that machines start from: in Bochs by its BIOS and GRUB, in QEMU by UEFI.

mod uefi;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    Plan,
    linux::{COMMANDS, GUARDED, in_order},
};
use crate::{
    bochs::{
        configuration::Medium,
        emulator::Emulator,
        images::{Images, Purpose},
        last_words, linux as bochs_linux,
        machine::GUEST_MARK,
        medium::{MediumMachine, MediumRun},
        probe,
    },
    count::Count,
    image::{self, iso::Contents, menu, tools::Tools},
    lab::ingredients::{Ingredients, Kernel},
    linux::{INITRD, POLICY, command_line, compile_into},
    session::{self, Session},
};

/// A start takes some seconds of an idle machine's time, that of a Linux fifteen.
const LIMIT: Duration = Duration::from_secs(240);

/// How much is shown of what a machine said in a test that failed.
const SHOWN_LINES: usize = 25;

/// Where the images of the tests are, below the directory of bare-metal builds.
const DIRECTORY: &str = "image-tests";

/// A start in Bochs, and what is expected of it: texts of its lines, in order, and how it ends.
#[derive(Clone, Copy, Debug)]
struct Test {
    name: &'static str,
    image: Image,
    model: &'static str,
    processors: u32,
    medium: Medium,
    lines: &'static [&'static str],
    end: End,
}

/// How a start ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The hypervisor's last line has these words.
    Stopped(&'static str),
    /// The guest switches the machine off, by the ACPI of its BIOS.
    Off,
}

/// Which image it starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Image {
    /// The guest with our tests, which lists them.
    Guest,
    /// A distribution's kernel under a rule, for two processors.
    Linux,
}

const HALTED: End = End::Stopped("every processor has halted");

/// What Bochs reports last of a machine that was switched off.
const OFF: &str = "ACPI control: soft power off";

const TESTS: [Test; 5] = [
    Test {
        name: "guest_from_a_disc",
        image: Image::Guest,
        model: probe::WITH_SPP,
        processors: 2,
        medium: Medium::Disc,
        lines: &["by the processor (SPP); EPT flags on; 2 processors; guest has 32 MiB", LISTED],
        end: HALTED,
    },
    Test {
        name: "guest_from_a_stick",
        image: Image::Guest,
        model: probe::WITHOUT_SPP,
        processors: 2,
        medium: Medium::Stick,
        lines: &["in software (no SPP); EPT flags on; 2 processors; guest has 32 MiB", LISTED],
        end: HALTED,
    },
    Test {
        name: "too_few_processors",
        image: Image::Guest,
        model: probe::WITH_SPP,
        processors: 1,
        medium: Medium::Disc,
        lines: &[],
        end: End::Stopped("cpus=2, but only 1 processors have started"),
    },
    Test {
        name: "no_vmx",
        image: Image::Guest,
        model: probe::WITHOUT_VMX,
        processors: 2,
        medium: Medium::Disc,
        lines: &[],
        end: End::Stopped(uefi::NO_VMX),
    },
    Test {
        name: "linux_with_two_processors",
        image: Image::Linux,
        model: probe::WITH_SPP,
        processors: 2,
        medium: Medium::Disc,
        lines: &[
            "by the processor (SPP); EPT flags off; 2 processors",
            "devices are the guest's",
            "hypervisor: the kernel begins; policy: 1 rules",
            "event 1 denied rule=1 \"modprobe path\" gpa=",
            " function=",
            "event 10 denied rule=1 ",
        ],
        end: End::Off,
    },
];

/// A line of the guest that lists its tests.
const LISTED: &str = "guest| test: ";

pub(super) fn check(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    let skip = |session: &mut Session<'_>, reason: &str| -> Result<Count> {
        session.say(&format!("   skipped, all tests of this suite: {reason}"))?;
        Ok(Count::SKIPPED)
    };
    let emulator = match &plan.prerequisites.emulator {
        Ok(emulator) => emulator,
        Err(reason) => return skip(session, reason),
    };
    let tools = match Tools::prepare(session)? {
        Ok(tools) => tools,
        Err(reason) => return skip(session, &reason),
    };
    let ingredients = match Ingredients::prepare(session, Kernel::Stable)? {
        Ok(ingredients) => ingredients,
        Err(reason) => return skip(session, &reason),
    };
    let selected: Vec<_> = TESTS.iter().filter(|test| plan.selects(test.name)).collect();
    if selected.is_empty() && !plan.selects(uefi::NAME) {
        session.say("   no test has such a name")?;
        return Ok(Count::FAILED);
    }
    let Some(images) = Images::build(session, &plan.workspace, Purpose::Guard)? else {
        return Ok(Count::FAILED);
    };
    let directory = plan.workspace.separate_target("bare-metal").join(DIRECTORY);
    std::fs::create_dir_all(&directory).context("cannot make a directory for the images")?;
    let guest = directory.join("guest.iso");
    let modules = vec![("guest", images.guest())];
    let words = menu::words("memory=32 cpus=2 -- list")?;
    let contents = image::contents(&images, words, modules);
    if !contents.write(session, &tools, &guest)? {
        return Ok(Count::FAILED);
    }
    let mut count = same_again(session, &contents, &tools, &guest)?;
    let mut linux = PathBuf::new();
    if selected.iter().any(|test| test.image == Image::Linux) {
        let Some(made) = linux_image(session, plan, &images, &tools, &ingredients, &directory)?
        else {
            return Ok(Count::FAILED);
        };
        linux = made;
    }
    for test in selected {
        let image = match test.image {
            Image::Guest => &guest,
            Image::Linux => &linux,
        };
        count += run(session, emulator, &tools, test, image)?;
        if session.interrupted() {
            return Ok(count);
        }
    }
    if plan.selects(uefi::NAME) {
        count += uefi::check(session, &ingredients.qemu(), &tools, &guest)?;
    }
    Ok(count)
}

/// An image with Debian's kernel, its names and the attack of the example; none if it cannot be made,
/// which has been said.
fn linux_image(
    session: &mut Session<'_>,
    plan: &Plan,
    images: &Images,
    tools: &Tools,
    ingredients: &Ingredients,
    directory: &Path,
) -> Result<Option<PathBuf>> {
    let root = plan.workspace.root();
    let kernel = ingredients.kernel();
    let [rules, names] = ["rules.subpage", "kernel.names"].map(|name| directory.join(name));
    let policy = root.join(POLICY);
    if !compile_into(session, &plan.workspace, &policy, Some(&kernel), &rules, Some(&names))? {
        return Ok(None);
    }
    let line = format!("cpus=2 events=serial -- {}", command_line(2, &COMMANDS));
    let modules =
        vec![("linux", kernel), ("initrd", root.join(INITRD)), ("policy", rules), ("names", names)];
    let image = directory.join("linux.iso");
    let made =
        image::contents(images, menu::words(&line)?, modules).write(session, tools, &image)?;
    Ok(made.then_some(image))
}

/// Whether the same image, made once more, is the same byte for byte.
fn same_again(
    session: &mut Session<'_>,
    contents: &Contents,
    tools: &Tools,
    first: &Path,
) -> Result<Count> {
    let second = first.with_extension("again.iso");
    if !contents.write(session, tools, &second)? {
        return Ok(Count::FAILED);
    }
    let [first, second] = [first, second.as_path()].map(bochs_linux::read);
    let (first, second) = (first?, second?);
    if first == second {
        session.say("   passed made twice, the same image")?;
        return Ok(Count::PASSED);
    }
    let at = first.iter().zip(&second).position(|(one, other)| one != other);
    let at = at.unwrap_or(first.len().min(second.len()));
    session.say(&format!(
        "   failed made twice, the same image: of {} and {} bytes the one at {at:#x} is the first that \
         differs",
        first.len(),
        second.len()
    ))?;
    Ok(Count::FAILED)
}

fn run(
    session: &mut Session<'_>,
    emulator: &Emulator,
    tools: &Tools,
    test: &Test,
    image: &Path,
) -> Result<Count> {
    let begun = Instant::now();
    let machine = MediumMachine {
        model: test.model,
        processors: test.processors,
        memory_mib: 512,
        bios: tools.bios(),
        vga_bios: tools.vga_bios(),
        image,
        medium: test.medium,
    };
    let left = session.deadline().saturating_duration_since(begun);
    let interrupt = session.interrupt().clone();
    let done = machine.start(emulator, LIMIT.min(left), &interrupt).context(test.name)?;
    let verdict = verdict(test, &done);
    let said = [done.run.lines, done.run.log, done.serial];
    report(session, test.name, begun, verdict, &said)
}

/// What a test came to; of one that failed, the end of each of the texts.
fn report(
    session: &mut Session<'_>,
    name: &str,
    begun: Instant,
    verdict: Result<(), String>,
    said: &[Vec<String>],
) -> Result<Count> {
    let took = session::duration(begun.elapsed());
    let Err(reason) = verdict else {
        session.say(&format!("   passed {name} in {took}"))?;
        return Ok(Count::PASSED);
    };
    session.say(&format!("   failed {name} after {took}: {reason}"))?;
    for lines in said {
        session.show(&lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n"))?;
    }
    Ok(Count::FAILED)
}

fn verdict(test: &Test, done: &MediumRun) -> Result<(), String> {
    in_order("the hypervisor", &done.run.lines, test.lines)?;
    match test.end {
        End::Stopped(words) => last_words::ended(&done.run, words)?,
        End::Off if done.run.complaint().contains(OFF) => {}
        End::Off => return Err(format!("it was not switched off: {}", done.run.complaint())),
    }
    match test.image {
        // All that port E9H gets comes by the serial port, behind what GRUB has said.
        Image::Guest => {
            let lines =
                done.run.lines.iter().filter(|line| {
                    line.starts_with("hypervisor: ") || line.starts_with(GUEST_MARK)
                });
            let lines: Vec<_> = lines.map(String::as_str).collect();
            in_order("the serial port", &done.serial, &lines)
        }
        Image::Linux => in_order("the kernel", &done.serial, GUARDED.console),
    }
}

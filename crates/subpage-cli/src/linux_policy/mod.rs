//! `subpage policy linux`: rules for what exploits of Linux overwrite, for one kernel.

mod neighbours;
mod targets;

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

use subpage_linux::{Kallsyms, KernelImage, Placement, Symbol};

use crate::failure::Failure;
use crate::terminal::{grouped, plural, printable};
use neighbours::{Constants, Neighbours};
pub use targets::Pack;
use targets::{Extent, Settled, Target};

/// Columns of a comment.
const WIDTH: usize = 100;

/// Writes a policy for the kernel in a file, with the targets of some packs.
///
/// Fails if the file is not a kernel, or if its own table of symbols cannot be read or does not name
/// data, and if nothing is left to guard.
pub fn write(out: &mut impl Write, kernel: &Path, packs: &[Pack]) -> Result<(), Failure> {
    let place = printable(&kernel.display().to_string()).into_owned();
    let image = KernelImage::open(kernel)
        .map_err(|error| Failure::input(format_args!("cannot read the kernel {place}"), &error))?;
    let kallsyms = Kallsyms::read(&image).map_err(|error| {
        Failure::input(format_args!("cannot read the symbols of the kernel {place}"), &error)
    })?;
    if !kallsyms.has_data() {
        return Err(Failure::Input(format!(
            "{place} names its functions only, not its data (it was built without \
             CONFIG_KALLSYMS_ALL): write the policy by hand, with a list of symbols in `map`"
        )));
    }
    let (mut rules, mut missing) = (Vec::new(), Vec::new());
    for target in targets::of(packs) {
        match Rule::of(target, &kallsyms) {
            Ok(rule) => rules.push(rule),
            Err(reason) => missing.push((target.symbol, reason)),
        }
    }
    if rules.is_empty() {
        return Err(Failure::Input(format!(
            "{place} has nothing of these packs: {}",
            missing
                .iter()
                .map(|(symbol, reason)| format!("{symbol} ({reason})"))
                .collect::<Vec<_>>()
                .join(", ")
        )));
    }
    let constants = Constants::of(&kallsyms);
    head(out, &place, &image, packs)?;
    for rule in &rules {
        rule.write(out, &kallsyms, &constants)?;
    }
    if !missing.is_empty() {
        writeln!(out)?;
        let list: Vec<_> =
            missing.iter().map(|(symbol, reason)| format!("{symbol} ({reason})")).collect();
        comment(out, &format!("Without a rule in this kernel: {}.", list.join(", ")))?;
    }
    Ok(())
}

/// What the file is for.
fn head(out: &mut impl Write, place: &str, image: &KernelImage, packs: &[Pack]) -> io::Result<()> {
    let packs: Vec<_> = packs.iter().map(|pack| pack.word()).collect();
    comment(
        out,
        &format!(
            "Written by `subpage policy linux` {} for Linux {}, {place}. Packs: {}.",
            env!("CARGO_PKG_VERSION"),
            printable(image.release()),
            packs.join(", "),
        ),
    )?;
    comment(
        out,
        "What a rule costs: on KVM an exit for each write to its pages, under sub-page write \
         permissions one for each write to its sub-pages of 128 bytes. \"Counted\" are writes of one \
         workload on Debian's cloud kernel 6.1.192, 150.8 million in all (docs/linux-policies.md). \
         Other kernels have other neighbours: `subpage guard` ends with what each rule has cost.",
    )?;
    writeln!(out, "version = 1")
}

/// A rule on one symbol of this kernel.
struct Rule<'k> {
    target: &'static Target,
    symbol: Symbol<'k>,
    length: u64,
}

impl<'k> Rule<'k> {
    /// Or why there can be none.
    fn of(target: &'static Target, kallsyms: &'k Kallsyms) -> Result<Self, &'static str> {
        // Since 6.9, and in older kernels with the mitigation of branch history injection, a switch leads to
        // the functions, and tracing alone reads the table.
        if target.symbol == "sys_call_table" && kallsyms.find("x64_sys_call").is_some() {
            return Err("this kernel's system calls do not go by it");
        }
        let mut found = kallsyms.named(target.symbol);
        let symbol = found.next().ok_or("not in this kernel")?;
        if found.next().is_some() {
            return Err("several symbols have this name");
        }
        match symbol.placement {
            Placement::Image => {}
            Placement::Init => return Err("freed when the kernel has started"),
            Placement::PerProcessor => return Err("each processor has its own"),
            Placement::Outside => return Err("not in the image"),
        }
        let next = symbol.length.ok_or("nothing tells where it ends")?;
        let length = match target.extent {
            Extent::NextSymbol => next,
            Extent::Bytes(bytes) => bytes.min(next),
            Extent::Until(end) => {
                let end = kallsyms.find(end).ok_or("nothing tells where it ends")?.address;
                end.checked_since(symbol.address).ok_or("it ends before it begins")?
            }
        };
        if length == 0 {
            return Err("it has no bytes");
        }
        Ok(Self { target, symbol, length })
    }

    fn write(
        &self,
        out: &mut impl Write,
        kallsyms: &Kallsyms,
        constants: &Constants,
    ) -> io::Result<()> {
        let Self { target, symbol, length } = self;
        writeln!(out)?;
        comment(out, target.why)?;
        comment(out, &format!("Written legitimately by {}.", target.writer))?;
        let neighbours = Neighbours::of(kallsyms, constants, symbol.address, *length);
        comment(out, &cost(target, &neighbours))?;
        let name = target.symbol;
        writeln!(out, "[[rule]]\nname = \"{name}\"")?;
        match target.extent {
            Extent::Until(end) => writeln!(out, "range = \"{name}..{end}\"")?,
            _ => writeln!(out, "symbol = \"{name}\"\nlength = {length}")?,
        }
        writeln!(out, "action = \"{}\"", target.action)?;
        match target.settled {
            Settled::AtEntry => Ok(()),
            Settled::AtInit => writeln!(out, "arm = \"init\""),
        }
    }
}

/// What a rule costs, in a sentence or two.
fn cost(target: &Target, neighbours: &Neighbours) -> String {
    let mut text = String::from("Cost: ");
    if let Some(counted) = target.counted {
        let (page, sub_page) = (grouped(counted.page), grouped(counted.sub_page));
        let writes = plural(counted.page, "write");
        write!(text, "counted {page} {writes} to its page, {sub_page} to its sub-page. ")
            .expect("a string takes all");
    }
    let Neighbours { in_pages, in_sub_pages, more } = neighbours;
    if *in_pages == 0 {
        text += "Here nothing beside it is written once the kernel has started.";
        return text;
    }
    let count = *in_pages as u64;
    let (count, noun) = (grouped(count), plural(count, "symbol"));
    write!(text, "Here {count} other {noun} in its pages can be written, in its sub-pages ")
        .expect("a string takes all");
    if in_sub_pages.is_empty() {
        text += "none.";
        return text;
    }
    text += &in_sub_pages.join(", ");
    if *more > 0 {
        write!(text, " and {more} more").expect("a string takes all");
    }
    text.push('.');
    text
}

/// Writes a comment in lines of at most [`WIDTH`] columns, where its words allow it.
fn comment(out: &mut impl Write, text: &str) -> io::Result<()> {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() > 1 && line.len() + 1 + word.len() > WIDTH {
            writeln!(out, "{line}")?;
            line.truncate(1);
        }
        line.push(' ');
        line.push_str(word);
    }
    writeln!(out, "{line}")
}

//! The manual pages: section 1, from the definition of the command line.

use std::io;
use std::path::Path;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::failure::Failure;
use crate::new_file;

/// Writes `subpage.1` and a page for each command below it into `directory`.
///
/// Fails where a page cannot be written; those before it are there then.
pub fn write(command: Command, directory: &Path) -> Result<(), Failure> {
    for (name, page) in pages(command)? {
        let path = directory.join(&name);
        new_file::write(&path, &page).map_err(|error| {
            Failure::input(format_args!("cannot write the manual page {}", path.display()), &error)
        })?;
    }
    Ok(())
}

/// File name and text of every page, the command's own first.
pub fn pages(command: Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    // `subpage help guard` says what subpage-guard(1) does.
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    let mut left = vec![command];
    while let Some(command) = left.pop() {
        left.extend(command.get_subcommands().filter(|below| !below.is_hide_set()).cloned());
        let (after, has_options) = (
            command.get_after_help().map(ToString::to_string),
            command.get_arguments().any(|argument| !argument.is_hide_set()),
        );
        let has_commands = command.has_subcommands();
        let man = Man::new(command).source("Subpage").manual("Subpage manual");
        let mut page = Vec::new();
        man.render_title(&mut page)?;
        man.render_name_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        if has_options {
            man.render_options_section(&mut page)?;
        }
        if has_commands {
            man.render_subcommands_section(&mut page)?;
        }
        if let Some(after) = after {
            section(&after).to_writer(&mut page)?;
        }
        pages.push((man.get_filename(), page));
    }
    Ok(pages)
}

/// What stands behind the options in the help: a heading with a colon, and lines that keep their breaks.
fn section(text: &str) -> Roff {
    let mut lines = text.lines();
    let heading = lines.next().unwrap_or_default().trim_end_matches(':').to_uppercase();
    let mut section = Roff::new();
    section.control("SH", [heading.as_str()]).control("nf", []);
    for line in lines {
        section.text([roman(line)]);
    }
    section.control("fi", []);
    section
}

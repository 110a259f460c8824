//! From the command line to a request.

use std::path::Path;

use subpage::address::PAGE_BYTES;
use subpage::rules::Action;
use subpage_kvm::control::protocol::{NewRule, Request};

use crate::command_line::{CtlRequest, MAX_PAGES};
use crate::failure::Failure;
use crate::policy::{Names, NotAPlace, address, is_numeric, place_of, read_region_names};
use crate::terminal::{grouped, plural};

/// The request for a command.
///
/// `symbols` has the names of its places. Fails for what is no place, or if the path of a file is not UTF-8, as the protocol's texts are, or the working directory is
/// not known.
pub fn request(command: &CtlRequest, symbols: Option<&Path>) -> Result<Request, Failure> {
    let bytes = |place: &String| {
        let names = names(place, symbols)?;
        let range = place_of(place, &names, otherwise(symbols)).map_err(|e| wrong(place, &e))?;
        Ok::<_, Failure>((range.first().as_u64(), range.bytes()))
    };
    let page = |place: &String| {
        let names = names(place, symbols)?;
        let at = address(place, &names, otherwise(symbols)).map_err(|e| wrong(place, &e))?;
        Ok::<_, Failure>((at.gfn().as_u64(), at.page_offset()))
    };
    Ok(match command {
        CtlRequest::Show => Request::Show,
        CtlRequest::Heat { pages } => Request::Heat { pages: *pages },
        CtlRequest::Get { address, pages } if is_range(address) => {
            let (gfn, of_range) = pages_of(address, bytes(address)?)?;
            if pages.is_some() {
                return Err(Failure::Input(format!(
                    "`{address}` says itself which pages: leave the number of pages out"
                )));
            }
            Request::Get { gfn, pages: of_range }
        }
        CtlRequest::Get { address, pages } => {
            Request::Get { gfn: page(address)?.0, pages: pages.unwrap_or(1) }
        }
        CtlRequest::Set { address, maps } => {
            let (gfn, offset) = if is_range(address) {
                let (start, length) = bytes(address)?;
                let (gfn, pages) = pages_of(address, (start, length))?;
                let given = maps.len() as u64;
                if given != u64::from(pages) {
                    return Err(Failure::Input(format!(
                        "`{address}` lies in {pages} {}, and there {} {given} {}: give one for each page",
                        plural(pages.into(), "page"),
                        if given == 1 { "is" } else { "are" },
                        plural(given, "map"),
                    )));
                }
                (gfn, start % PAGE_BYTES)
            } else {
                let (gfn, offset) = page(address)?;
                (gfn, offset.into())
            };
            if offset != 0 {
                // A change in another page than the one that was meant is worse than a question.
                return Err(Failure::Input(format!(
                    "`{address}` is not the address of a page, a multiple of 0x1000: pages are named \
                     by their addresses, not their numbers (0x202000, not 0x202)"
                )));
            }
            Request::Set { gfn, maps: maps.clone() }
        }
        CtlRequest::Add { name, range, action, owner, locked } => {
            let (start, length) = bytes(range)?;
            let action = Action::from(*action).word().to_owned();
            let name = name.clone();
            Request::Add(NewRule { name, start, length, action, owner: *owner, locked: *locked })
        }
        CtlRequest::Remove { rule } => Request::Remove { rule: rule.clone() },
        CtlRequest::Lock { rule } => Request::Lock { rule: rule.clone() },
        CtlRequest::Arm { rules } => Request::Arm { rules: rules.clone() },
        CtlRequest::Watch { .. } => Request::Watch,
        CtlRequest::Track { range } => {
            let (start, length) = bytes(range)?;
            Request::Track { start, length }
        }
        CtlRequest::Harvest { track } => Request::Harvest { track: *track },
        CtlRequest::Untrack { track } => Request::Untrack { track: *track },
        CtlRequest::Save { file } => Request::Save { path: absolute(file)? },
        CtlRequest::Pause => Request::Pause,
        CtlRequest::Resume => Request::Resume,
        CtlRequest::Step { cpu } => Request::Step { cpu: *cpu },
        CtlRequest::Registers { cpu } => Request::Registers { cpu: *cpu },
        CtlRequest::Read { range } | CtlRequest::Dump { range, .. } => {
            let (start, length) = bytes(range)?;
            Request::Read { start, length }
        }
        CtlRequest::Gdb { address } => Request::Gdb { address: address.to_string() },
        CtlRequest::GdbEnd => Request::GdbEnd,
        CtlRequest::Stop => Request::Stop,
    })
}

/// Whether a text says where it ends, too, in the one notation of places: `START+LENGTH` by numbers, or
/// with `..`.
fn is_range(text: &str) -> bool {
    text.contains("..") || is_numeric(text) && text.contains('+')
}

/// The first page of these bytes, and how many they touch.
fn pages_of(place: &str, (start, length): (u64, u64)) -> Result<(u64, u32), Failure> {
    let (first, last) = (start / PAGE_BYTES, (start + (length - 1)) / PAGE_BYTES);
    match u32::try_from(last - first + 1) {
        Ok(pages) if i64::from(pages) <= MAX_PAGES => Ok((first, pages)),
        _ => Err(Failure::Input(format!(
            "`{place}` lies in {} pages: a request is for at most {MAX_PAGES}",
            grouped(last - first + 1)
        ))),
    }
}

/// What people may have meant by a low address that is not a page's first byte: the page of that number.
///
/// None for a place that is no number, or above 1 MiB.
pub(super) fn page_hint(command: &CtlRequest) -> Option<String> {
    let CtlRequest::Get { address, .. } = command else { return None };
    let number = crate::policy::parse_number(address.trim())?;
    let number = u64::try_from(number)
        .ok()
        .filter(|number| *number < 1 << 20 && number % PAGE_BYTES != 0)?;
    let meant = number * PAGE_BYTES;
    Some(format!("pages are named by their addresses: page {number:#x} is at {meant:#x}"))
}

/// The names that a place may use; none are read for one by numbers.
fn names(place: &str, symbols: Option<&Path>) -> Result<Names, Failure> {
    match symbols {
        Some(path) if !is_numeric(place) => {
            read_region_names(path).map_err(|error| Failure::bad(&error))
        }
        _ => Ok(Names::default()),
    }
}

fn otherwise(symbols: Option<&Path>) -> &'static str {
    match symbols {
        Some(_) => "look into the file given by `--symbols`",
        None => "give their file by `--symbols FILE`, or write 0x1000..0x1080 or 0x1000+128",
    }
}

fn wrong(place: &str, reason: &NotAPlace) -> Failure {
    Failure::Input(format!("`{place}` is not a place: {reason}"))
}

/// The path as the guest's process sees it, whose working directory may be another.
fn absolute(path: &Path) -> Result<String, Failure> {
    let wrong = |reason: &dyn std::fmt::Display| {
        Failure::Input(format!("cannot save to {}: {reason}", path.display()))
    };
    let absolute = std::path::absolute(path).map_err(|error| wrong(&error))?;
    absolute.into_os_string().into_string().map_err(|_| wrong(&"the path is not UTF-8"))
}

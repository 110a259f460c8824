//! From the command line to a request.

use std::path::Path;

use subpage::rules::Action;
use subpage_kvm::control::protocol::{NewRule, Request};

use crate::command_line::CtlRequest;
use crate::failure::Failure;
use crate::policy::{Names, NotAPlace, address, is_numeric, place_of, read_region_names};

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
        CtlRequest::Get { address, pages } => Request::Get { gfn: page(address)?.0, pages: *pages },
        CtlRequest::Set { address, maps } => {
            let (gfn, offset) = page(address)?;
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
        CtlRequest::Stop => Request::Stop,
    })
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

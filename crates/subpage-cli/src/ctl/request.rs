//! From the command line to a request.

use std::path::Path;

use subpage::address::ByteRange;
use subpage::rules::Action;
use subpage_kvm::control::protocol::{NewRule, Request};

use crate::command_line::CtlRequest;
use crate::failure::Failure;

/// The request for a command.
///
/// Fails if the path of a file is not UTF-8, as the protocol's texts are, or the working directory is
/// not known.
pub fn request(command: &CtlRequest) -> Result<Request, Failure> {
    let bytes = |range: &ByteRange| (range.first().as_u64(), range.bytes());
    Ok(match command {
        CtlRequest::Show => Request::Show,
        CtlRequest::Get { gfn, pages } => Request::Get { gfn: *gfn, pages: *pages },
        CtlRequest::Set { gfn, maps } => Request::Set { gfn: *gfn, maps: maps.clone() },
        CtlRequest::Add { name, range, action, owner, locked } => {
            let (start, length) = bytes(range);
            let action = Action::from(*action).word().to_owned();
            let name = name.clone();
            Request::Add(NewRule { name, start, length, action, owner: *owner, locked: *locked })
        }
        CtlRequest::Remove { rule } => Request::Remove { rule: rule.clone() },
        CtlRequest::Lock { rule } => Request::Lock { rule: rule.clone() },
        CtlRequest::Watch => Request::Watch,
        CtlRequest::Track { range } => {
            let (start, length) = bytes(range);
            Request::Track { start, length }
        }
        CtlRequest::Harvest { track } => Request::Harvest { track: *track },
        CtlRequest::Untrack { track } => Request::Untrack { track: *track },
        CtlRequest::Save { file } => Request::Save { path: absolute(file)? },
        CtlRequest::Stop => Request::Stop,
    })
}

/// The path as the guest's process sees it, whose working directory may be another.
fn absolute(path: &Path) -> Result<String, Failure> {
    let wrong = |reason: &dyn std::fmt::Display| {
        Failure::Input(format!("cannot save to {}: {reason}", path.display()))
    };
    let absolute = std::path::absolute(path).map_err(|error| wrong(&error))?;
    absolute.into_os_string().into_string().map_err(|_| wrong(&"the path is not UTF-8"))
}

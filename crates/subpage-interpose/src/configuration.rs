//! What `subpage run` hands over: a file that the variable `SUBPAGE_RUN` names.

use std::path::PathBuf;
use std::sync::OnceLock;

use serde::Deserialize;
use subpage_guard::control::protocol::NewRule;

use crate::say::give_up;

/// Who is asked about a device's writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Devices {
    /// They are judged like the guest's.
    #[default]
    Judged,
    /// The VMM may write what it wants.
    Trusted,
}

/// A rule and its moment.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Given {
    /// The rule.
    #[serde(flatten)]
    pub(crate) rule: NewRule,
    /// It waits for a command; otherwise it is in force when a processor first enters the guest.
    #[serde(default)]
    pub(crate) waits: bool,
}

/// What `subpage run` hands over.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Configuration {
    /// Rules.
    #[serde(default)]
    pub(crate) rules: Vec<Given>,
    /// Who is asked about a device's writes.
    #[serde(default)]
    pub(crate) devices: Devices,
    /// Where the control socket of the process's first machine is to be.
    pub(crate) socket: Option<PathBuf>,
    /// A file that is made when a machine with a processor is guarded.
    pub(crate) seen: Option<PathBuf>,
}

/// The variable that names the file.
const VARIABLE: &str = "SUBPAGE_RUN";

/// The configuration; none if this process is not run by `subpage run`.
pub(crate) fn configuration() -> Option<&'static Configuration> {
    static READ: OnceLock<Option<Configuration>> = OnceLock::new();
    READ.get_or_init(|| {
        let path = PathBuf::from(std::env::var_os(VARIABLE)?);
        let read = std::fs::read_to_string(&path)
            .map_err(|error| error.to_string())
            .and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
        match read {
            Ok(configuration) => Some(configuration),
            Err(error) => give_up(&format!(
                "cannot read {} (the variable {VARIABLE}), so that this machine would run \
                 unguarded: {error}",
                path.display()
            )),
        }
    })
    .as_ref()
}

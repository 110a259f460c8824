//! Which of Valgrind's tools records.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::record::{RecordError, Recording};
use crate::stores_tool::{self, ToolError};

/// Which of Valgrind's tools is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// Our own where it can be had, else lackey.
    #[default]
    Auto,
    /// Our own, or none.
    Own,
    /// Lackey.
    Lackey,
}

/// The tool of Valgrind that records. Both see the same writes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Tool {
    /// Our own, which is many times as fast.
    Own {
        /// Where it is kept: `VALGRIND_LIB` of the recorded program.
        folder: PathBuf,
    },
    /// Lackey, which is part of every Valgrind.
    Lackey {
        /// Why it is not our own; `None` if lackey was asked for.
        reason: Option<Arc<ToolError>>,
    },
}

impl Tool {
    /// Our own tool is made if it is wanted and not there.
    pub(crate) fn choose(recording: &Recording<'_>) -> Result<Self, RecordError> {
        if recording.tool == ToolChoice::Lackey && !recording.kernel_writes {
            return Ok(Self::Lackey { reason: None });
        }
        let is_needed = recording.tool == ToolChoice::Own || recording.kernel_writes;
        match stores_tool::prepare(&recording.valgrind, recording.cache.as_deref()) {
            Ok(folder) => Ok(Self::Own { folder }),
            Err(reason) if is_needed => Err(RecordError::Tool(reason)),
            Err(reason) => Ok(Self::Lackey { reason: Some(Arc::new(reason)) }),
        }
    }

    /// Its name for Valgrind's `--tool`.
    pub(crate) fn name(&self) -> &'static OsStr {
        OsStr::new(match self {
            Self::Own { .. } => stores_tool::NAME,
            Self::Lackey { .. } => "lackey",
        })
    }
}

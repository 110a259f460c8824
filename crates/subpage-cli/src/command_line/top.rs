//! Arguments of `top`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};

use super::values::{file, parse_seconds};

/// How long the guest's process may take to answer if nobody says.
const PATIENCE: Duration = Duration::from_secs(5);

/// Shortest interval: each asks the guest's process for all of its rules.
const SHORTEST: Duration = Duration::from_millis(100);

/// Arguments of `top`.
#[derive(Debug, Args)]
pub struct TopArguments {
    /// The socket that `subpage guard` printed [default: that of the only running guest of yours]
    #[arg(value_name = "SOCKET", value_hint = ValueHint::FilePath, value_parser = file())]
    pub socket: Option<PathBuf>,
    /// Seconds between two looks at the counts, over which rates are taken; at least 0.1
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_interval)]
    pub interval: Duration,
    /// Print what there is to see once, after one interval, as text, and end
    #[arg(long)]
    pub once: bool,
    /// Print one JSON object after each interval; with `--once`, one
    #[arg(long)]
    pub json: bool,
    /// How long the guest's process may take to answer
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_seconds)]
    pub timeout: Duration,
}

impl Default for TopArguments {
    fn default() -> Self {
        let interval = Duration::from_secs(1);
        Self { socket: None, interval, once: false, json: false, timeout: PATIENCE }
    }
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_seconds(text)?;
    if interval < SHORTEST {
        return Err("at least 0.1 seconds".to_owned());
    }
    Ok(interval)
}

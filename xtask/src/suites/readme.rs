//! The README's two commands: the section holds these and no more (one check), and the first
//! one, run as it is written, shows a denied write (one check).

use std::process::Command;

use anyhow::Result;

use super::Plan;
use crate::{
    count::Count,
    execute::{Ending, Finished},
    markdown,
    session::Session,
};

const HEADING: &str = "Two commands";
const SECOND: &str = "cargo xtask test";

/// `subpage guard` ends with 0 where nothing was denied, with 3 where something was.
const GUARD_STATUS: [i32; 2] = [0, 3];

pub(super) fn check(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    let root = plan.workspace.root();
    if !root.join("README.md").exists() {
        session.say("   failed: there is no README.md")?;
        return Ok(Count::FAILED);
    }
    let text = markdown::read(&root.join("README.md"))?;
    let Some(lines) = markdown::commands(&text, HEADING) else {
        session.say(&format!("   failed: README.md has no section {HEADING:?}"))?;
        return Ok(Count::FAILED);
    };
    let mut count = Count::default();
    let two = matches!(lines.as_slice(), [_, second] if second == SECOND);
    count += Count::check(two);
    if !two {
        session.say(&format!(
            "   failed: {HEADING:?} must have two code lines, the second being {SECOND:?}; it has:"
        ))?;
        session.show(&lines.join("\n"))?;
    }
    let Some(first) = lines.first() else {
        return Ok(count);
    };
    let mut command = Command::new("sh");
    command.current_dir(root).args(["-c", first]);
    let finished = session.run(command, &mut |_| None)?;
    if let Err(reason) = shows_a_denial(&finished) {
        session.say(&format!("   failed: {reason}"))?;
        session.show(&finished.output)?;
        count += Count::FAILED;
    } else {
        count += Count::PASSED;
    }
    Ok(count)
}

fn shows_a_denial(finished: &Finished) -> Result<(), String> {
    match finished.ending {
        Ending::Exited(status)
            if status.code().is_some_and(|code| GUARD_STATUS.contains(&code)) => {}
        Ending::Exited(status) => return Err(format!("the first command ended with {status}")),
        _ => return Err("the first command did not end by itself".into()),
    }
    if finished.output.contains("denied") {
        Ok(())
    } else {
        Err("the first command shows nothing denied".into())
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

    use super::*;

    fn finished(code: i32, output: &str) -> Finished {
        // The wait status of a program that exits has its code in the second byte.
        let ending = Ending::Exited(ExitStatus::from_raw(code << 8));
        Finished { output: output.to_owned(), ending }
    }

    #[test]
    fn a_denial_is_shown_by_word_and_status() {
        assert_eq!(shows_a_denial(&finished(3, "write denied by rule path")), Ok(()));
        assert_eq!(shows_a_denial(&finished(0, "write denied by rule path")), Ok(()));
        assert!(shows_a_denial(&finished(3, "nothing here")).is_err());
        assert!(shows_a_denial(&finished(2, "denied: no such policy")).is_err());
        assert!(
            shows_a_denial(&Finished { ending: Ending::TimeLimit, ..finished(3, "denied") })
                .is_err()
        );
    }
}

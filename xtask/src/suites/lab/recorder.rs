//! The recorder's plugin in the lab's QEMU: a machine of which every store is known.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    count::Count,
    lab::qemu::Qemu,
    session::{self, Session},
};

const NAME: &str = "a recorded machine";

/// What the machine executes from its first instruction at F000:FFF0 on, in real mode: a store of four bytes
/// over two pages, a thousand of one byte, and the end, by a device.
const PROGRAM: &[u8] = &[
    0x31, 0xC0, // xor ax, ax
    0x8E, 0xD8, // mov ds, ax
    0x8E, 0xC0, // mov es, ax
    0xBF, 0xFE, 0x0F, // mov di, 0xffe
    0x66, 0x89, 0x05, // mov [di], eax
    0xB9, 0xE8, 0x03, // mov cx, 1000
    0xBF, 0x00, 0x20, // mov di, 0x2000
    0xF3, 0xAA, // rep stosb
    0xE6, 0xF4, // out 0xf4, al
    0xF4, // hlt
];
/// jmp far F000:0000
const RESET: &[u8] = &[0xEA, 0x00, 0x00, 0x00, 0xF0];
const RESET_AT: usize = 0xFFF0;

/// Where the store over two pages stands.
const STORE: &str = "0xf0009";

/// Reports the writes of both stores; the kernel is never entered.
const POLICY: &str = "version = 1\n[[rule]]\nname = \"two pages\"\nrange = \"0xffe..0x1002\"\n\
                      action = \"log\"\narm = \"start\"\n[[rule]]\nname = \"thousand\"\n\
                      range = \"0x2000+1000\"\naction = \"log\"\narm = \"start\"\n";

pub(super) fn check(session: &mut Session<'_>, subpage: &Path, qemu: &Qemu) -> Result<Count> {
    let begun = Instant::now();
    let told = recorded(session, subpage, qemu)?;
    let took = session::duration(begun.elapsed());
    match told.and_then(|(recorded, events)| judge(&recorded, &events)) {
        Ok(()) => {
            session.say(&format!("   passed {NAME} in {took}"))?;
            Ok(Count::PASSED)
        }
        Err(reason) => {
            session.say(&format!("   failed {NAME} after {took}: {reason}"))?;
            Ok(Count::FAILED)
        }
    }
}

/// The line of `record`, and those of `guard`; or why there are none.
fn recorded(
    session: &mut Session<'_>,
    subpage: &Path,
    qemu: &Qemu,
) -> Result<Result<(Value, Vec<Value>), String>> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let path = |name: &str| directory.path().join(name);
    let mut firmware = vec![0; 1 << 16];
    firmware[..PROGRAM.len()].copy_from_slice(PROGRAM);
    firmware[RESET_AT..][..RESET.len()].copy_from_slice(RESET);
    fs::write(path("firmware"), firmware).context("cannot write the firmware")?;
    fs::write(path("policy.toml"), POLICY).context("cannot write the policy")?;
    let machine = qemu.start_firmware(&path("firmware"));
    let mut record = std::process::Command::new(subpage);
    record.args(["record", "--system", "--json", "-o"]).arg(path("out.sptrace")).arg("--");
    record.arg(machine.get_program()).args(machine.get_args());
    let mut guard = std::process::Command::new(subpage);
    guard.args(["guard", "--json", "--policy"]).arg(path("policy.toml")).arg(path("out.sptrace"));
    let mut all = Vec::new();
    for command in [record, guard] {
        let finished = session.run_unshown(command, &mut |_| None)?;
        if !finished.ending.success() {
            return Ok(Err(format!("it fails: {}", finished.output.trim_end())));
        }
        let lines = finished.output.lines().filter_map(|line| serde_json::from_str(line).ok());
        all.push(lines.collect::<Vec<Value>>());
    }
    let events = all.pop().unwrap_or_default();
    let recorded = all.pop().and_then(|mut lines| lines.pop());
    Ok(recorded.map(|recorded| (recorded, events)).ok_or_else(|| "record says nothing".into()))
}

/// Whether all stores came, and each where it belongs.
fn judge(recorded: &Value, events: &[Value]) -> Result<(), String> {
    // The device ends QEMU with twice what it gets and one more.
    for (field, expected) in [
        ("writes", json!(1002)),
        ("whole", json!(true)),
        ("missing", json!(0)),
        ("exit_code", json!(1)),
    ] {
        if recorded[field] != expected {
            return Err(format!("{field} is {}, not {expected}: {recorded}", recorded[field]));
        }
    }
    let logged: Vec<_> = events.iter().filter(|event| event["type"] == "logged").collect();
    for (number, (address, size)) in [("0xffe", 2), ("0x1000", 2)].into_iter().enumerate() {
        let event = logged.get(number).copied().unwrap_or(&Value::Null);
        let is_right = event["gpa"] == address && event["length"] == size && event["pc"] == STORE;
        if !is_right {
            return Err(format!("write {} is {event}", number + 1));
        }
    }
    let thousand = &events.last().unwrap_or(&Value::Null)["rules"][1]["logged"];
    if *thousand != 1000 {
        return Err(format!("{thousand} of the thousand writes came"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_missing_or_elsewhere_is_told() {
        let recorded = json!({"writes": 1002, "whole": true, "missing": 0, "exit_code": 1});
        let write = |at: &str| json!({"type": "logged", "gpa": at, "length": 2, "pc": STORE});
        let end = |count: u64| json!({"rules": [{"logged": 2}, {"logged": count}]});
        let right = [write("0xffe"), write("0x1000"), end(1000)];
        assert_eq!(judge(&recorded, &right), Ok(()));
        assert!(judge(&recorded, &[write("0xffe"), write("0x1001"), end(1000)]).is_err());
        assert!(judge(&recorded, &[write("0xffe"), write("0x1000"), end(999)]).is_err());
        assert!(judge(&recorded, &[]).is_err());
        let short = json!({"writes": 1001, "whole": true, "missing": 0, "exit_code": 1});
        assert!(judge(&short, &right).expect_err("one is missing").starts_with("writes is 1001"));
    }
}

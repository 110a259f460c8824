//! What a host does once it is up, as lines of its shell.

/// What a host does once it is up.
#[derive(Clone, Debug)]
pub(crate) enum Job {
    /// A shell on the second serial line, without frames.
    Shell,
    /// One command, which ends the job.
    Command(Vec<String>),
    /// Several, one after the other, each in frames of its own.
    Parts(Vec<Part>),
}

/// What has a title of one line.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) title: String,
    pub(crate) work: Work,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Command(Vec<String>),
    Tests(Tests),
}

/// Tests of a program of libtest, each in a process of its own: one that hangs or crashes is that one,
/// and the others run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tests {
    pub(crate) program: String,
    pub(crate) names: Vec<String>,
    /// How many run at the same time.
    pub(crate) at_once: u32,
    /// When one is killed, in seconds of the host's clock.
    pub(crate) limit: u64,
    /// One in so many of their random cases runs.
    pub(crate) share: u32,
}

impl Job {
    /// The lines of the host's shell that do it; `$line` is the second serial line.
    pub(super) fn script(&self, mark: &str) -> String {
        let mut script = Vec::new();
        match self {
            Self::Shell => {
                script.push("stty -F $line sane".into());
                script.push("setsid sh -c 'exec sh -i <>/dev/ttyS1 >&0 2>&1'".into());
            }
            Self::Command(words) => {
                script.push(format!("echo {mark} ready >$line"));
                script.push(format!("({}) </dev/null >$line 2>&1", command(words)));
                script.push(format!("printf '\\n{mark} over %s\\n' $? >$line"));
            }
            Self::Parts(parts) => {
                script.push(format!("echo {mark} ready >$line"));
                for Part { title, work } in parts {
                    script.push(format!("echo {mark} begins {} >$line", quoted(title)));
                    match work {
                        Work::Command(words) => {
                            script.push(format!("({}) </dev/null >$line 2>&1", command(words)));
                        }
                        Work::Tests(tests) => script.push(tests.script(mark)),
                    }
                    script.push(format!("printf '\\n{mark} ended %s\\n' $? >$line"));
                }
                script.push(format!("echo {mark} over 0 >$line"));
            }
        }
        script.join("\n")
    }
}

impl Tests {
    /// The lines of a shell that run them. Each worker takes the next test that no other has taken.
    /// What a test prints comes in one piece, if it has failed.
    fn script(&self, mark: &str) -> String {
        let Self { program, names, at_once, limit, share } = self;
        let (program, names) = (quoted(program), command(names));
        let workers: Vec<_> = (0..*at_once).map(|number| format!("work {number} &")).collect();
        let workers = workers.join(" ");
        format!(
            "rm -rf /run/taken
mkdir /run/taken
export SUBPAGE_TEST_SHARE={share}
seconds() {{
    read up rest </proc/uptime
    echo ${{up%.*}}
}}
work() {{
    for name in {names}; do
        mkdir /run/taken/$name 2>/dev/null || continue
        (flock 9; echo {mark} starts $name >$line) 9>/run/printing
        start=$(seconds)
        timeout -s KILL {limit} {program} --exact $name --test-threads=1 </dev/null >/run/out-$1 2>&1
        status=$?
        [ $status != 0 ] || grep -q '^test result: ok. 1 passed' /run/out-$1 || status={NOT_RUN}
        took=$(($(seconds) - start))
        (
            flock 9
            [ $status = 0 ] || cat /run/out-$1
            printf '\\n{mark} result %s %s %s\\n' $status $took $name
        ) 9>/run/printing >$line
    done
}}
{workers} wait
true"
        )
    }
}

/// The status of a test that its program does not have.
pub(crate) const NOT_RUN: u8 = 97;

/// A command for the shell.
fn command(words: &[String]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, process};

    use super::*;

    /// The host's shell is busybox; this machine's does the same.
    #[test]
    fn each_test_has_a_process_and_a_result_of_its_own() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let path = directory.path();
        let program = path.join("program");
        let text = "#!/bin/sh
case $2 in
    hangs) sleep 1000;;
    fails) echo why; exit 101;;
    passes) echo 'test result: ok. 1 passed; 0 failed';;
    *) echo 'test result: ok. 0 passed; 0 failed';;
esac
";
        fs::write(&program, text).expect("files can be written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it is ours");
        let tests = Tests {
            program: program.to_str().expect("UTF-8").to_owned(),
            names: ["hangs", "fails", "passes", "is_not_there"].map(str::to_owned).to_vec(),
            at_once: 2,
            limit: 1,
            share: 1,
        };
        let run = path.to_str().expect("UTF-8");
        let script = format!("line=/dev/stdout\n{}", tests.script("MARK"))
            .replace("/run/", &format!("{run}/"));
        let output = process::Command::new("sh").args(["-c", &script]).output().expect("sh runs");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let results: BTreeMap<_, _> = text
            .lines()
            .filter_map(|line| line.strip_prefix("MARK result "))
            .map(|line| {
                let words: Vec<_> = line.split(' ').collect();
                (words[2], words[0])
            })
            .collect();
        let expected =
            [("fails", "101"), ("hangs", "137"), ("is_not_there", "97"), ("passes", "0")];
        assert!(results.into_iter().eq(expected), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("MARK starts ")).count(), 4);
        let why = text.find("why\n\nMARK result 101").expect("what it has printed stands before");
        assert!(why > text.find("MARK starts fails").expect("it has begun"));
    }

    #[test]
    fn words_are_for_one_command() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's; $x"), "'it'\\''s; $x'");
    }
}

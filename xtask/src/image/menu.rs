//! What GRUB is told: its menu, in the language of its shell.

use anyhow::{Result, bail, ensure};

/// How long the menu waits, in seconds, for somebody who wants another line of it.
const PATIENCE: u32 = 2;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Path of the program on the image.
    pub(crate) program: String,
    /// The words that it is started with.
    pub(crate) words: Vec<String>,
    /// Path and name of each module.
    pub(crate) modules: Vec<(String, String)>,
}

impl Entry {
    /// The configuration file. What GRUB and the hypervisor say goes to the screen and, if the machine has
    /// one, to the first serial port.
    pub(super) fn configuration(&self) -> String {
        let words: Vec<_> = self.words.iter().map(|word| quoted(word)).collect();
        let module = |(path, name): &(String, String)| {
            format!("    module2 {} {}\n", quoted(path), quoted(name))
        };
        let modules: Vec<_> = self.modules.iter().map(module).collect();
        format!(
            "if serial --unit=0 --speed=115200; then\n    \
                 terminal_input console serial\n    \
                 terminal_output console serial\n\
             fi\n\
             set timeout={PATIENCE}\n\
             menuentry 'Subpage' {{\n    \
                 echo 'Subpage starts. It says more on the first serial port: 115200 baud, 8N1.'\n    \
                 multiboot2 {} {}\n\
             {}    \
                 boot\n\
             }}\n\
             menuentry 'Restart this machine' {{\n    reboot\n}}\n\
             menuentry 'Switch it off' {{\n    halt\n}}\n",
            quoted(&self.program),
            words.join(" "),
            modules.concat(),
        )
    }
}

/// A word as GRUB's shell takes it, unchanged.
fn quoted(word: &str) -> String {
    format!("'{word}'")
}

/// The words of a command line, of which a part in double quotes is one word or part of one.
///
/// GRUB hands words on with a space between them, and puts a word that has a space itself into quotes: so
/// the hypervisor and the kernel see what stands here. What GRUB would hand on changed is refused.
pub(crate) fn words(line: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for character in line.chars() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' | '\t' if !quoted => words.extend(word.take()),
            '\'' | '\\' => bail!("GRUB does not hand on {character} unchanged: {line}"),
            _ if character.is_control() || !character.is_ascii() => {
                bail!("only printable ASCII can stand in a command line: {line:?}")
            }
            _ => word.get_or_insert_default().push(character),
        }
    }
    ensure!(!quoted, "a quotation mark is missing: {line}");
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_a_kernel_takes_them_for() {
        let split = |line| words(line).expect("nothing to refuse");
        assert_eq!(
            split("console=ttyS0  quiet -- \"echo a > /proc/b\" \"id\" x=\"a b\"\t"),
            ["console=ttyS0", "quiet", "--", "echo a > /proc/b", "id", "x=a b"]
        );
        assert_eq!(split(" "), Vec::<String>::new());
        for (line, why) in [
            ("a \"b", "a quotation mark is missing"),
            ("it's", "does not hand on ' unchanged"),
            ("a\\b", "does not hand on \\ unchanged"),
            ("a\nb", "only printable ASCII"),
        ] {
            let error = words(line).expect_err("GRUB would change it").to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn each_word_is_one_for_grub() {
        let entry = Entry {
            program: "/boot/hypervisor.elf".into(),
            words: vec!["subpage".into(), "--".into(), "echo $a; b > c".into()],
            modules: vec![("/boot/guest".into(), "guest".into())],
        };
        let text = entry.configuration();
        for line in [
            "    multiboot2 '/boot/hypervisor.elf' 'subpage' '--' 'echo $a; b > c'\n",
            "    module2 '/boot/guest' 'guest'\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}

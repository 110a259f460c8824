//! Our own Valgrind tool: compiled once, for the Valgrind that is installed, into the user's cache.
//!
//! What lies in the cache is run, so nobody but its user may have a hand in it: the folder, its files
//! and every folder above are looked at before each run.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::geteuid;

use crate::valgrind::find_program;

/// Its name for Valgrind's `--tool`.
pub(crate) const NAME: &str = "subpage-stores";
const SOURCE: &str = include_str!("../recorder/subpage_stores.c");
const LICENCE: &str = include_str!("../recorder/LICENSE-GPL-2.0");
/// The name of the program that `--tool` leads to.
const PROGRAM: &str = "subpage-stores-amd64-linux";
const HEADERS: &str = "/usr/include/valgrind";
/// Where distributions put the static libraries and what Valgrind runs: its own folders, and those of
/// Debian before 12.
const FOLDERS: [&str; 5] = [
    "/usr/libexec/valgrind",
    "/usr/lib/x86_64-linux-gnu/valgrind",
    "/usr/lib64/valgrind",
    "/usr/lib/valgrind",
    "/usr/local/libexec/valgrind",
];
const LIBRARIES: [&str; 2] = ["libcoregrind-amd64-linux.a", "libvex-amd64-linux.a"];
const PRELOAD: &str = "vgpreload_core-amd64-linux.so";
/// As Valgrind builds its own tools (`Makefile.all.am`, `Makefile.tool.am`); 0x58000000 is where its
/// core belongs.
const FLAGS: &str = "-m64 -O2 -std=gnu99 -fno-stack-protector -fno-strict-aliasing -fno-builtin \
    -fno-pie -fomit-frame-pointer -DVGA_amd64=1 -DVGO_linux=1 -DVGP_amd64_linux=1 \
    -DVGPV_amd64_linux_vanilla=1 -static -no-pie -nodefaultlibs -nostartfiles -u _start \
    -Wl,-Ttext-segment=0x58000000 -Wl,--build-id=none";

/// Why our own tool cannot be used here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// Not for this processor or system.
    #[error("it is for Linux on x86-64")]
    Machine,
    /// `valgrind --version` does not give one.
    #[error("`valgrind --version` does not tell a version")]
    Version,
    /// There is no folder for it.
    #[error(
        "there is no cache directory: neither XDG_CACHE_HOME nor HOME is set to an absolute path"
    )]
    NoCache,
    /// The cache cannot be used.
    #[error("cannot use the cache directory `{}`", .path.display())]
    Cache {
        /// The folder or file.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// Others could put their own code there.
    #[error("others than this user may change `{}`, and code from there would be run", .path.display())]
    NotPrivate {
        /// The folder or file.
        path: PathBuf,
    },
    /// Valgrind would cut the path into pieces.
    #[error("Valgrind and QEMU do not take a cache directory with a space, a colon or a comma: `{}`", .path.display())]
    Path {
        /// The folder.
        path: PathBuf,
    },
    /// What the tool is built from is not installed.
    #[error("cannot find {what} of Valgrind, which Debian has in the package `valgrind`")]
    Missing {
        /// What is not there.
        what: &'static str,
    },
    /// The headers are of another version.
    #[error("Valgrind is version {valgrind}, and its headers are of version {headers}")]
    Versions {
        /// Of the program.
        valgrind: String,
        /// Of the headers.
        headers: String,
    },
    /// There is no C compiler.
    #[error("cannot find a C compiler (gcc or cc) in PATH")]
    NoCompiler,
    /// The compiler refuses it, or what it made does not start.
    #[error("it cannot be built for {version}: {message}")]
    Build {
        /// What it was built for.
        version: String,
        /// First line of what the compiler says.
        message: String,
    },
}

/// The folder to give to Valgrind as `VALGRIND_LIB`; it is made if it is not there.
pub(crate) fn prepare(valgrind: &OsStr, cache: Option<&Path>) -> Result<PathBuf, ToolError> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(ToolError::Machine);
    }
    let version = version(valgrind).ok_or(ToolError::Version)?;
    let root = root(cache)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ToolError::Cache { path, source }
    };
    let folder = root.join(format!("valgrind-{version}-x86_64-{:08x}", source_hash()));
    if !folder.exists() {
        build(valgrind, &version, &root, &folder)?;
    }
    for path in [&folder, &folder.join(PROGRAM)] {
        let metadata = path.symlink_metadata().map_err(failed(path))?;
        if !is_private(&metadata) {
            return Err(ToolError::NotPrivate { path: path.clone() });
        }
    }
    Ok(folder)
}

/// The cache directory, which is there, and which nobody else can change.
pub(crate) fn root(cache: Option<&Path>) -> Result<PathBuf, ToolError> {
    let root = match cache {
        Some(folder) => folder.to_owned(),
        None => user_cache().ok_or(ToolError::NoCache)?,
    };
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ToolError::Cache { path, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(&root).map_err(failed(&root))?;
    let root = root.canonicalize().map_err(failed(&root))?;
    if root
        .as_os_str()
        .as_bytes()
        .iter()
        .any(|b| b.is_ascii_whitespace() || matches!(b, b':' | b','))
    {
        return Err(ToolError::Path { path: root });
    }
    check_private(&root)?;
    Ok(root)
}

/// Of everything that makes the tool what it is, besides Valgrind.
fn source_hash() -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(SOURCE.as_bytes());
    hash.update(FLAGS.as_bytes());
    hash.finalize()
}

fn user_cache() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    Some(cache?.join("subpage"))
}

fn version(valgrind: &OsStr) -> Option<String> {
    let output = Command::new(valgrind).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.trim().strip_prefix("valgrind-")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'+');
    let is_one = (1..=32).contains(&version.len()) && version.bytes().all(plain);
    is_one.then(|| version.to_owned())
}

/// Whether a file or folder is this user's, and nobody else can write to it.
pub(crate) fn is_private(metadata: &fs::Metadata) -> bool {
    let kind = metadata.file_type();
    (kind.is_file() || kind.is_dir())
        && metadata.uid() == geteuid().as_raw()
        && metadata.mode() & 0o022 == 0
}

/// Nobody else may put another folder in the place of this one: it is private, and the folders above are
/// this user's or root's, and such that others cannot rename what lies in them.
fn check_private(folder: &Path) -> Result<(), ToolError> {
    for path in folder.ancestors() {
        let metadata = path
            .symlink_metadata()
            .map_err(|source| ToolError::Cache { path: path.to_owned(), source })?;
        let owners = [0, geteuid().as_raw()];
        let sticky = metadata.mode() & 0o1000 != 0;
        let is_safe = owners.contains(&metadata.uid()) && (metadata.mode() & 0o022 == 0 || sticky);
        if !is_safe || path == folder && !is_private(&metadata) {
            return Err(ToolError::NotPrivate { path: path.to_owned() });
        }
    }
    Ok(())
}

/// Builds the tool in a folder of another name, which then takes the right one: who builds it at the
/// same time, or is killed, leaves nothing half-made under that name.
fn build(valgrind: &OsStr, version: &str, root: &Path, folder: &Path) -> Result<(), ToolError> {
    let failed = |source| ToolError::Cache { path: root.to_owned(), source };
    let headers = header_version().ok_or(ToolError::Missing { what: "the headers" })?;
    if headers != version {
        return Err(ToolError::Versions { valgrind: version.to_owned(), headers });
    }
    let with = |files: &[&str]| {
        let folders = FOLDERS.iter().map(Path::new);
        folders.into_iter().find(|folder| files.iter().all(|file| folder.join(file).is_file()))
    };
    let libraries = with(&LIBRARIES).ok_or(ToolError::Missing { what: "the static libraries" })?;
    let programs = with(&[PRELOAD]).ok_or(ToolError::Missing { what: "the programs" })?;
    let compiler = compiler()?;
    let place = tempfile::Builder::new().prefix(".building-").tempdir_in(root).map_err(failed)?;
    let source = place.path().join("subpage_stores.c");
    fs::write(&source, SOURCE).map_err(failed)?;
    fs::write(place.path().join("LICENSE-GPL-2.0"), LICENCE).map_err(failed)?;
    let program = place.path().join(PROGRAM);
    let mut command = Command::new(compiler);
    command.args(FLAGS.split_whitespace()).arg(format!("-I{HEADERS}")).arg("-o").arg(&program);
    command.arg(&source).args(LIBRARIES.map(|name| libraries.join(name))).arg("-lgcc");
    run(&mut command, &format!("Valgrind {version}"))?;
    // All of its own programs, so that the recorded one can run Valgrind itself.
    for entry in fs::read_dir(programs).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        symlink(entry.path(), place.path().join(entry.file_name())).map_err(failed)?;
    }
    let mut help = Command::new(valgrind);
    help.env("VALGRIND_LIB", place.path()).arg(format!("--tool={NAME}")).arg("--help");
    run(&mut help, &format!("Valgrind {version}"))?;
    // Whatever the umask: others may not write to what is run, nor put something in its place.
    for path in [program.as_path(), place.path()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    }
    File::open(&program).and_then(|file| file.sync_all()).map_err(failed)?;
    match fs::rename(place.path(), folder) {
        Ok(()) => {
            // It is no longer there to be removed.
            let _ = place.keep();
            Ok(())
        }
        // Somebody else was faster.
        Err(_) if folder.exists() => Ok(()),
        Err(source) => Err(failed(source)),
    }
}

pub(crate) fn compiler() -> Result<PathBuf, ToolError> {
    let compiler = ["gcc", "cc"].iter().find_map(|name| find_program(OsStr::new(name)).ok());
    compiler.ok_or(ToolError::NoCompiler)
}

fn header_version() -> Option<String> {
    let text = fs::read_to_string(Path::new(HEADERS).join("config.h")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("#define VERSION "))?;
    Some(line.trim().trim_matches('"').to_owned())
}

pub(crate) fn run(command: &mut Command, version: &str) -> Result<(), ToolError> {
    let failed = |message| ToolError::Build { version: version.to_owned(), message };
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find(|line| line.contains("error")).or_else(|| text.lines().next());
    Err(failed(line.unwrap_or("it says nothing").to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    }

    #[test]
    fn a_folder_that_others_can_change_is_refused() {
        let place = tempfile::tempdir().expect("a folder");
        let place = place.path().canonicalize().expect("there");
        let inner = place.join("inner");
        fs::create_dir(&inner).expect("a folder");
        set_mode(&inner, 0o755);
        check_private(&inner).expect("only this user writes there");
        for (path, mode) in [(&inner, 0o775), (&inner, 0o757), (&place, 0o777), (&place, 0o720)] {
            let before = path.metadata().expect("there").permissions();
            set_mode(path, mode);
            let error = check_private(&inner).expect_err("others write there");
            assert!(matches!(&error, ToolError::NotPrivate { path: p } if p == path), "{error}");
            fs::set_permissions(path, before).expect("it is ours");
        }
        // As the folder for temporary files: nobody renames what is another's.
        set_mode(&place, 0o1777);
        check_private(&inner).expect("it is sticky");
        set_mode(&inner, 0o1777);
        check_private(&inner).expect_err("what is in it may be anybody's");
    }

    #[test]
    fn a_cache_with_a_colon_is_refused_before_anything_is_built() {
        let place = tempfile::tempdir().expect("a folder");
        let valgrind = place.path().join("valgrind");
        fs::write(&valgrind, "#!/bin/sh\necho valgrind-9.9.9\n").expect("writable");
        set_mode(&valgrind, 0o755);
        let prepare = |name: &str| prepare(valgrind.as_os_str(), Some(&place.path().join(name)));
        if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            assert!(matches!(prepare("a:b"), Err(ToolError::Path { .. })));
            assert!(matches!(prepare("a b"), Err(ToolError::Path { .. })));
            let error = prepare("cache").expect_err("no such version");
            let expected = matches!(error, ToolError::Versions { .. } | ToolError::Missing { .. });
            assert!(expected, "{error}");
        }
        fs::write(&valgrind, "#!/bin/sh\necho valgrind-../../x\n").expect("writable");
        assert!(prepare("cache").is_err());
    }
}

//! Files that appear whole or not at all.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use subpage_trace::destination;

use crate::failure::Failure;

/// Finds out whether `path` can be written, before long work is done for it; `what` names the file
/// to people ("the report").
pub fn check(path: &Path, what: &str) -> Result<(), Failure> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if path.is_dir() {
        return Err(Failure::Input(format!(
            "cannot write {what} {}: it is a directory; name a file",
            path.display()
        )));
    }
    match parent {
        Some(parent) if !parent.is_dir() => Err(Failure::Input(format!(
            "cannot write {what} {}: there is no directory {}; create it first",
            path.display(),
            parent.display()
        ))),
        _ => destination(path).map(|_| ()).map_err(|error| {
            Failure::input(format_args!("cannot write {what} {}", path.display()), &error)
        }),
    }
}

/// Refuses to replace a file that is there and is nothing of this kind: it may be the only one of its kind.
/// `begins`: the bytes that files of this kind begin with. An empty file is anything.
pub fn replace(path: &Path, what: &str, begins: &[u8]) -> Result<(), Failure> {
    let is_file = fs::metadata(path).is_ok_and(|found| found.is_file());
    let Some(file) = is_file.then(|| fs::File::open(path).ok()).flatten() else {
        return Ok(());
    };
    let mut head = Vec::new();
    let read = file.take(begins.len() as u64).read_to_end(&mut head);
    match read {
        Ok(1..) if head != begins => Err(Failure::Input(format!(
            "cannot write {what} {}: the file that is there is something else; remove it, or name another",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Refuses to write `path` if it leads to a file that is read: `what` names it to people, and a file
/// that is to be replaced is one whatever path leads to it. `-` among the files is standard input.
pub fn keep<'a>(
    path: &Path,
    what: &str,
    read: impl IntoIterator<Item = &'a Path>,
) -> Result<(), Failure> {
    match same_file(path, read) {
        None => Ok(()),
        Some(other) => Err(Failure::Input(format!(
            "cannot write {what} {}: it is the same file as {}, which is read; name another",
            path.display(),
            other.display()
        ))),
    }
}

/// Refuses to write two files of which one would replace the other, or mix with it. Each has its name
/// for people, such as an option.
pub fn apart(files: &[(&str, &Path)]) -> Result<(), Failure> {
    let mut seen: Vec<(&str, Identity)> = Vec::new();
    for (name, path) in files {
        let Some(ours) = identity(path) else { continue };
        if let Some((other, _)) = seen.iter().find(|(_, theirs)| *theirs == ours) {
            return Err(Failure::Input(format!(
                "{other} and {name} name the same file, {}: give another for one of them",
                path.display()
            )));
        }
        seen.push((name, ours));
    }
    Ok(())
}

/// The first of the files that is the one at `path`.
pub fn same_file<'a>(path: &Path, files: impl IntoIterator<Item = &'a Path>) -> Option<&'a Path> {
    let ours = identity(path)?;
    files.into_iter().find(|file| {
        let at = if is_stdin(file) { Path::new("/dev/stdin") } else { *file };
        identity(at).as_ref() == Some(&ours)
    })
}

/// Most links that lead from one to the next, as in Linux.
const MAX_LINKS: usize = 40;

/// What a file is, not how it is called.
#[derive(PartialEq, Eq)]
enum Identity {
    /// Its device and its number there.
    There(u64, u64),
    /// It would be made: device and number of its folder, and its name.
    New(u64, u64, OsString),
}

/// Through links; `None` if there is nothing and nothing can be made.
fn identity(path: &Path) -> Option<Identity> {
    if let Ok(found) = fs::metadata(path) {
        return Some(Identity::There(found.dev(), found.ino()));
    }
    let mut path = PathBuf::from(path);
    // Writing through a link that leads to nothing makes what it leads to.
    for _ in 0..MAX_LINKS {
        let Ok(target) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = fs::metadata(folder.unwrap_or(Path::new("."))).ok()?;
    Some(Identity::New(folder.dev(), folder.ino(), path.file_name()?.to_owned()))
}

/// Refuses to read standard input for two things.
pub fn one_stdin<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<(), Failure> {
    if paths.into_iter().filter(|path| is_stdin(path)).count() > 1 {
        return Err(Failure::Input(
            "`-` is given more than once, and standard input can be read for one thing only"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Whether a path given on the command line stands for standard input or output.
pub fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// Writes `bytes` under `path`, whole or not at all: a new file next to it takes the name when it is
/// complete.
///
/// Fails as [`destination`] does, and where the file cannot be created or written.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let target = destination(path)?;
    // The name of the file that is to take the other's name means nothing to anybody.
    write_beside(&target, bytes).map_err(|error| match error.to_string().split_once(" at path ") {
        Some((why, _)) => io::Error::new(error.kind(), why),
        None => error,
    })
}

fn write_beside(target: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".subpage-").suffix(".new");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any other new file: the process's umask takes away what it wants.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(target).map_err(|error| error.error)?;
    Ok(())
}

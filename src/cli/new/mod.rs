//! `chappe new`: the project of a new server.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The longest name of a project: it becomes the name of a process and of a unit.
const NAME_BYTES_MAX: usize = 64;

/// The checkout that this program was built from, if it still is where it was: the version
/// that the project is made for, published or not.
const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");

/// Write a new project: a server with a login, its configuration and a test
#[derive(Debug, clap::Args)]
pub(crate) struct NewArgs {
    /// The folder to make; its last part is the name of the project
    #[arg(value_name = "NAME")]
    folder: PathBuf,
    /// A checkout of the crate to build with [default: the one of this program, or the
    /// published version]
    #[arg(long, value_name = "FOLDER")]
    path: Option<PathBuf>,
}

/// Why there is no project.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NewError {
    #[error(
        "{0:?} is not a valid project name: 1 to {NAME_BYTES_MAX} of a-z, 0-9, - and _, of which \
         the first is a letter, and not the name of a crate that it needs or of a folder of cargo's"
    )]
    Name(String),
    #[error("{} exists", .0.display())]
    Exists(PathBuf),
    #[error("{}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Writes the project; returns what to say about it.
pub(crate) fn new(args: &NewArgs) -> Result<String, NewError> {
    let name = args.folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    check_name(name)?;
    let folder = &args.folder;
    if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(at(parent))?;
    }
    fs::create_dir(folder).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => NewError::Exists(folder.clone()),
        _ => NewError::Write { path: folder.clone(), source },
    })?;
    let checkout = args
        .path
        .clone()
        .or_else(|| Some(PathBuf::from(CHECKOUT)).filter(|folder| is_checkout(folder)));
    let checkout = checkout.map(fs::canonicalize).transpose().map_err(at(folder))?;
    for (path, text) in files(name, checkout.as_deref()) {
        let path = folder.join(path);
        let parent = path.parent().expect("below the folder");
        fs::create_dir_all(parent).and_then(|()| fs::write(&path, text)).map_err(at(&path))?;
    }
    if let Some(checkout) = checkout {
        // The versions that it was tested with. Without it cargo takes the newest.
        let lock = checkout.join("Cargo.lock");
        if lock.is_file() {
            fs::copy(&lock, folder.join("Cargo.lock")).map_err(at(&lock))?;
        }
    }
    let folder = folder.display();
    Ok(format!(
        "{folder}: a server with a login\n\n  cd {folder}\n  cargo test\n  cargo run -- --foreground\n\n\
         and in a second terminal\n\n  cargo run -- send --code 16 --body Anna\n"
    ))
}

fn at(path: &Path) -> impl Fn(io::Error) -> NewError {
    let path = path.to_owned();
    move |source| NewError::Write { path: path.clone(), source }
}

/// It is the name of a package, of a program and of a unit.
fn check_name(name: &str) -> Result<(), NewError> {
    let is_right = name.len() <= NAME_BYTES_MAX
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_'))
        && !["chappe", "log", "serde", "test"].contains(&name)
        && !["build", "deps", "examples", "incremental"].contains(&name);
    if is_right { Ok(()) } else { Err(NewError::Name(name.to_owned())) }
}

fn is_checkout(folder: &Path) -> bool {
    fs::read_to_string(folder.join("Cargo.toml"))
        .is_ok_and(|text| text.contains("name = \"chappe\""))
}

fn files(name: &str, checkout: Option<&Path>) -> [(String, String); 6] {
    let version = env!("CARGO_PKG_VERSION");
    let chappe = match checkout {
        // A path in TOML is a string with escapes, as Rust's.
        Some(path) => format!("{{ path = {:?}", path.display().to_string()),
        None => format!("{{ version = \"{version}\""),
    };
    let fill = |text: &str| {
        text.replace("{{name}}", name)
            .replace("{{chappe}}", &format!("{chappe} }}"))
            .replace("{{testing}}", &format!("{chappe}, features = [\"testing\"] }}"))
    };
    [
        ("Cargo.toml".to_owned(), fill(include_str!("Cargo.toml.in"))),
        (".gitignore".to_owned(), "/target\n/logs\n/run\n".to_owned()),
        ("src/main.rs".to_owned(), fill(include_str!("main.rs.in"))),
        ("conf/chappe.toml".to_owned(), fill(include_str!("chappe.toml.in"))),
        (format!("conf/{name}.service"), fill(include_str!("unit.service.in"))),
        (format!("tests/{name}.rs"), fill(include_str!("test.rs.in"))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(folder: &Path) -> Result<String, NewError> {
        new(&NewArgs { folder: folder.to_owned(), path: None })
    }

    #[test]
    fn a_name_is_one_of_a_package() {
        for right in ["chatd", "a", "my-server_2", &"x".repeat(NAME_BYTES_MAX)] {
            assert!(check_name(right).is_ok(), "{right}");
        }
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for wrong in ["", "..", "2x", "Chat", "chät", "a b", "-x", "chappe", "log", "serde", &long]
        {
            assert!(matches!(check_name(wrong), Err(NewError::Name(_))), "{wrong}");
        }
        // Cargo has folders of these names, and builds no program that is called as one of them.
        for wrong in ["build", "deps", "examples", "incremental"] {
            assert!(matches!(check_name(wrong), Err(NewError::Name(_))), "{wrong}");
        }
    }

    #[test]
    fn what_is_there_stays_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("below/chatd");
        let said = project(&folder).unwrap();
        assert!(said.contains("cargo run -- --foreground"), "{said}");
        let main = folder.join("src/main.rs");
        assert!(fs::read_to_string(&main).unwrap().starts_with("//! chatd: "));
        fs::write(&main, "mine").unwrap();
        assert!(matches!(project(&folder), Err(NewError::Exists(_))));
        assert_eq!(fs::read_to_string(&main).unwrap(), "mine");
    }

    #[test]
    fn nothing_is_left_to_be_filled_in() {
        for checkout in [None, Some(Path::new("/a \"folder\""))] {
            for (path, text) in files("chatd", checkout) {
                assert!(!text.contains("{{"), "{path}");
                if path.ends_with(".toml") {
                    assert!(text.parse::<toml::Table>().is_ok(), "{path}: {text}");
                }
            }
        }
    }
}

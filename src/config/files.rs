//! Reads `chappe.toml` and what it includes.
//!
//! Each file is read once, whole, up to a limit; a tree of includes has a limit in depth and in
//! files, so no configuration can make the launcher or a reload run away.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use glob::{MatchOptions, Pattern};
use toml::Spanned;
use toml::de::DeTable;

use super::field::show_found;
use super::place::{Notes, Origin, Place, printable};
use super::settings::{LISTENERS_MAX, Merge, Settings, Twice};
use super::tree::{self, Tree};

/// Largest configuration file, in bytes.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 20;
/// How deep files may include files; the main file is depth 0.
pub(super) const INCLUDE_DEPTH_MAX: usize = 8;
/// Most files of one configuration.
pub(super) const FILES_MAX: usize = 256;

/// As a shell has it: `*` stops at a slash and skips hidden files, such as an editor's copies.
const GLOB_RULES: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// A file that was read: which one, and what names it in messages.
struct Seen {
    canonical: PathBuf,
    shown: String,
}

/// What is done with a file that is not TOML.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// Nothing of it counts: what could be read of it would give mistakes that aren't there.
    Refuse,
    /// What the parser makes of it counts, without further mistakes.
    Salvage,
}

/// Reads a file and what it includes into `settings`.
pub(super) struct Reader<'a> {
    settings: &'a mut Settings,
    faults: &'a mut Notes,
    broken: Broken,
    seen: Vec<Seen>,
    /// Indexes into `seen`: the files that are being read, from the main one down.
    chain: Vec<usize>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(settings: &'a mut Settings, faults: &'a mut Notes, broken: Broken) -> Self {
        Self { settings, faults, broken, seen: Vec::new(), chain: Vec::new() }
    }

    /// Reads one file; `from` is the place of the `include` that names it. `false`: there
    /// is no text.
    pub(super) fn file(&mut self, path: &Path, from: Option<&Place>) -> bool {
        let shown = path.display().to_string();
        let unread = Rc::new(Origin { order: self.seen.len(), shown: shown.clone(), text: None });
        let own_place = Place::start_of(&unread);
        let fault_place = from.unwrap_or(&own_place);
        let subject =
            if from.is_some() { format!("{} ", printable(&shown)) } else { String::new() };
        if !self.enter(path, &shown, from) {
            return false;
        }
        let (text, fault) = match read(path) {
            Ok(bytes) => decoded(bytes, self.broken),
            Err(fault) => (None, Some(fault)),
        };
        if let Some(fault) = fault {
            self.lost(fault_place, format!("{subject}{fault}"));
        }
        let is_there = text.is_some();
        if is_there {
            let order = unread.order;
            self.text(path, Rc::new(Origin { order, shown, text }));
        }
        self.chain.pop();
        is_there
    }

    /// Notes that a file is being read; refuses cycles, repetitions and what is too much.
    fn enter(&mut self, path: &Path, shown: &str, from: Option<&Place>) -> bool {
        // A path that has no canonical form cannot be read, which `read` will say.
        let canonical = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let known = self.seen.iter().position(|seen| seen.canonical == canonical);
        let refusal = match known {
            Some(index) if self.chain.contains(&index) => {
                let circle = self.chain.iter().skip_while(|link| **link != index);
                let mut names: Vec<&str> =
                    circle.map(|link| self.seen[*link].shown.as_str()).collect();
                names.push(shown);
                Some(format!("includes itself: {}", names.join(" -> ")))
            }
            Some(_) => Some(format!("{shown} is included twice")),
            None if self.chain.len() > INCLUDE_DEPTH_MAX => {
                Some(format!("{shown} is included more than {INCLUDE_DEPTH_MAX} files deep"))
            }
            None if self.seen.len() == FILES_MAX => {
                Some(format!("{shown} is one file too many: at most {FILES_MAX}"))
            }
            None => None,
        };
        if let (Some(text), Some(place)) = (refusal, from) {
            self.lost(place, printable(&text));
            return false;
        }
        self.chain.push(self.seen.len());
        self.seen.push(Seen { canonical, shown: shown.to_owned() });
        true
    }

    fn text(&mut self, path: &Path, origin: Rc<Origin>) {
        let text = origin.text.as_deref().unwrap_or_default();
        let (root, errors) = DeTable::parse_recoverable(text);
        let is_broken = !errors.is_empty();
        if is_broken {
            self.syntax(&origin, text, &errors);
            if self.broken == Broken::Refuse {
                return;
            }
        }
        let mut unsaid = Notes::default();
        let mut merge = Merge {
            settings: self.settings,
            faults: if is_broken { &mut unsaid } else { self.faults },
            origin: Rc::clone(&origin),
            twice: Twice::Refuse,
        };
        let Some(include) = merge.root(tree::branches(root.into_inner())) else { return };
        self.includes(path.parent().unwrap_or(Path::new("")), &origin, &include);
    }

    /// Reports the first error of a file: what the parser finds behind it mostly follows from it.
    fn syntax(&mut self, origin: &Rc<Origin>, text: &str, errors: &[toml::de::Error]) {
        let offset_of = |error: &&toml::de::Error| error.span().map_or(0, |span| span.start);
        let Some(first) = errors.iter().min_by_key(offset_of) else { return };
        let offset = offset_of(&first).min(text.len());
        let place = Place { origin: Rc::clone(origin), offset };
        self.lost(&place, format!("not TOML: {}", printable(first.message())));
    }

    fn includes(&mut self, directory: &Path, origin: &Rc<Origin>, include: &Spanned<Tree>) {
        let place_of = |offset| Place { origin: Rc::clone(origin), offset };
        let wrong = |found: &Tree| {
            format!("include is {}, must be an array of paths and globs", show_found(found))
        };
        let Tree::Array(patterns) = include.get_ref() else {
            self.lost(&place_of(include.span().start), wrong(include.get_ref()));
            return;
        };
        for pattern in patterns {
            let place = place_of(pattern.span().start);
            match pattern.get_ref().as_str() {
                Some(text) if !text.is_empty() && !text.contains('\0') => {
                    self.include(directory, &place, text);
                }
                _ => self.lost(&place, wrong(pattern.get_ref())),
            }
        }
    }

    fn include(&mut self, directory: &Path, place: &Place, text: &str) {
        if !text.contains(['*', '?', '[']) {
            self.file(&directory.join(text), Some(place));
            return;
        }
        // The directory's own name may hold what a glob would take for a wild card.
        let directory = Pattern::escape(&directory.display().to_string());
        let pattern = Path::new(&directory).join(text).display().to_string();
        let paths = match glob::glob_with(&pattern, GLOB_RULES) {
            Ok(paths) => paths,
            Err(error) => {
                let text = format!("include is {text:?}, which is not a glob: {}", error.msg);
                self.lost(place, text);
                return;
            }
        };
        // `glob` gives the paths of a directory in alphabetical order.
        for path in paths.take(FILES_MAX + 1) {
            match path {
                Ok(path) => {
                    self.file(&path, Some(place));
                }
                Err(error) => self.lost(place, printable(&error.to_string())),
            }
        }
    }

    /// Notes a mistake that keeps something from being read.
    fn lost(&mut self, place: &Place, text: String) {
        self.settings.is_partial = true;
        self.faults.add(place, text);
    }
}

/// The bytes of a file, or a sentence about why there are none.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    let kind = fs::metadata(path).map_err(cannot)?.file_type();
    if kind.is_dir() {
        return Err("is a directory, must be a file".into());
    }
    // Opening a pipe would wait for its writer, perhaps forever.
    if kind.is_fifo() || kind.is_socket() {
        return Err("is a pipe or a socket, must be a file".into());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err("is larger than 1MiB, the most a configuration file may have".into());
    }
    Ok(bytes)
}

/// The text of these bytes, and what is wrong with them.
fn decoded(bytes: Vec<u8>, broken: Broken) -> (Option<String>, Option<String>) {
    let (text, fault) = match String::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
            let fault = Some(format!("is not UTF-8 in line {line}"));
            if broken == Broken::Refuse {
                return (None, fault);
            }
            (String::from_utf8_lossy(error.as_bytes()).into_owned(), fault)
        }
    };
    (Some(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)), fault)
}

/// Checks what only the whole tells: a list of listeners that is there must hold some.
pub(super) fn check_listeners(settings: &Settings, faults: &mut Notes) {
    let Some(place) = &settings.listen_place else { return };
    let count = settings.listeners.len();
    if count == 0 || count > LISTENERS_MAX {
        faults.add(place, format!("listen has {count} tables, must have 1..={LISTENERS_MAX}"));
    }
}

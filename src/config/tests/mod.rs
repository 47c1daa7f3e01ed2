//! The configuration from outside: what a file, its includes and `--set` lead to.

mod changes;
mod includes;
mod junk;
mod keys;
mod located;
mod manual;
mod messages;
mod overrides;

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{ConfigErrors, Loaded, load};

/// A directory of configuration files. Messages about them are shown without its name.
struct Files {
    directory: TempDir,
}

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let files_in = Self { directory };
        for (name, text) in files {
            files_in.write(name, text.as_bytes());
        }
        files_in
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, bytes).expect("a file");
    }

    fn load(&self, overrides: &[&str]) -> Result<Loaded, ConfigErrors> {
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        load(&self.path("chappe.toml"), Path::new("/prefix"), &overrides)
    }

    /// What is wrong, a line each, with file names as the tests wrote them.
    fn faults(&self, overrides: &[&str]) -> Vec<String> {
        let errors = self.load(overrides).expect_err("a wrong configuration");
        let directory = format!("{}/", self.directory.path().display());
        errors.to_string().lines().map(|line| line.replace(&directory, "")).collect()
    }
}

fn load_text(text: &str, overrides: &[&str]) -> Result<Loaded, ConfigErrors> {
    Files::new(&[("chappe.toml", text)]).load(overrides)
}

#[track_caller]
fn loaded(text: &str, overrides: &[&str]) -> Loaded {
    load_text(text, overrides).unwrap_or_else(|errors| panic!("{errors}"))
}

#[track_caller]
fn faults(text: &str, overrides: &[&str]) -> Vec<String> {
    Files::new(&[("chappe.toml", text)]).faults(overrides)
}

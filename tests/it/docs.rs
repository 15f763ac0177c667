//! What the documents say of tests: those that they name are there.

use std::fs;
use std::path::{Path, PathBuf};

use regex_lite::Regex;

const TOP: &str = env!("CARGO_MANIFEST_DIR");

/// The files below a directory whose names end like this.
fn files(below: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(below).expect("a directory").map(|entry| entry.expect("an entry").path());
    let of = |path: PathBuf| if path.is_dir() { files(&path, ending) } else { vec![path] };
    entries.flat_map(of).filter(|path| path.to_string_lossy().ends_with(ending)).collect()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("a text")
}

/// Every test, as the path of its file and its name.
fn tests() -> Vec<(String, String)> {
    let function = Regex::new(r"(?m)^ *fn ([a-z0-9_]+)\(").expect("a pattern");
    let sources = ["src", "tests/it"].map(|below| files(&Path::new(TOP).join(below), ".rs"));
    let of_file = |path: &PathBuf| {
        let (file, text) = (path.to_string_lossy().into_owned(), text(path));
        let behind = text.split("#[test]").skip(1);
        let names = behind.filter_map(|rest| function.captures(rest)).map(|found| found[1].to_owned());
        names.map(|name| (file.clone(), name)).collect::<Vec<_>>()
    };
    sources.iter().flatten().flat_map(of_file).collect()
}

/// A name in backquotes, with `…` for a part that is left out, is that of a test if it has this many words. Behind it may stand
/// how many tests it means, before it their module.
#[test]
fn every_test_that_a_document_names_is_there() {
    let named = Regex::new(r"`(?:it )?(?:([a-z_:]+)::)?((?:[a-z0-9]|_|…)+)`(?: \(([0-9]+)\))?").expect("a pattern");
    let tests = tests();
    let top = Path::new(TOP);
    let documents = ["ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "README.md"].map(|name| top.join(name));
    let (mut count, mut wrong) = (0, Vec::new());
    for document in documents.into_iter().chain(files(&top.join("docs"), ".md")) {
        for (number, line) in (1..).zip(text(&document).lines()) {
            for found in named.captures_iter(line).filter(|found| found[2].matches('_').count() > 3) {
                let module = found.get(1).map_or("", |module| module.as_str().trim_end_matches("::tests"));
                let name = Regex::new(&format!("^{}$", found[2].replace('…', ".*"))).expect("a pattern");
                let meant =
                    |(file, test): &&(String, String)| file.contains(&module.replace("::", "/")) && name.is_match(test);
                let there = tests.iter().filter(meant).count();
                let told = found.get(3).map(|told| told.as_str().parse::<usize>().expect("a number"));
                if there == 0 || told.is_some_and(|told| told != there) {
                    wrong.push(format!("{}:{number}: {} are {there} tests", document.display(), &found[0]));
                }
                count += 1;
            }
        }
    }
    assert!(count > 300, "{count} names");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

//! `SEMANTICS.md` and the tests say the same: every sentence of the page is the doc comment of the test that it names, and
//! every doc comment on a test is a sentence of the page.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A bullet of the page: a sentence, and at its end the name of its test in code font.
#[derive(Debug, PartialEq, Eq)]
struct Sentence {
    line: usize,
    text: String,
    test: String,
}

/// The sentences of a page; and what is wrong with bullets that are none.
fn read_page(page: &str) -> (Vec<Sentence>, Vec<String>) {
    let mut bullets: Vec<(usize, String)> = Vec::new();
    let mut is_open = false;
    for (index, line) in page.lines().enumerate() {
        if let Some(text) = line.strip_prefix("- ") {
            bullets.push((index + 1, text.trim().to_owned()));
            is_open = true;
        } else if is_open && line.starts_with("  ") {
            let (_, bullet) = bullets.last_mut().expect("a bullet is open");
            *bullet = format!("{bullet} {}", line.trim());
        } else {
            is_open = false;
        }
    }
    let (mut sentences, mut faults) = (Vec::new(), Vec::new());
    for (line, bullet) in bullets {
        match bullet.strip_suffix('`').and_then(|rest| rest.rsplit_once(" `")) {
            Some((text, test)) if text.ends_with('.') => {
                sentences.push(Sentence { line, text: text.to_owned(), test: test.to_owned() });
            }
            _ => faults.push(format!("SEMANTICS.md:{line}: no sentence with the name of its test behind: {bullet:?}")),
        }
    }
    (sentences, faults)
}

/// A function of the tests.
#[derive(Debug, Default)]
struct Function {
    /// File and line.
    place: String,
    name: String,
    /// Its doc comment in one line; empty if it has none.
    doc: String,
    is_test: bool,
    /// What may keep it from running: an attribute.
    held_by: Option<String>,
}

/// The functions of a source file; `file` is for messages. Attributes stand on lines of their own, as rustfmt sets them.
fn read_source(file: &str, source: &str) -> Vec<Function> {
    let mut functions = Vec::new();
    let mut next = Function::default();
    for (index, line) in source.lines().map(str::trim).enumerate() {
        let declared = ["pub ", "async "].iter().fold(line, |line, word| line.strip_prefix(word).unwrap_or(line));
        if let Some(doc) = line.strip_prefix("///") {
            next.doc = format!("{} {}", next.doc, doc.trim()).trim().to_owned();
        } else if line.starts_with("#[") {
            next.is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
            if ["#[ignore", "#[cfg"].iter().any(|word| line.starts_with(word)) {
                next.held_by = Some(line.to_owned());
            }
        } else if let Some(rest) = declared.strip_prefix("fn ") {
            next.name = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            next.place = format!("{file}:{}", index + 1);
            functions.push(std::mem::take(&mut next));
        } else if !line.is_empty() && !line.starts_with("//") {
            next = Function::default();
        }
    }
    functions
}

/// All that is wrong between a page and the sources (paths below `tests/` and their text).
fn faults(page: &str, sources: &BTreeMap<String, String>) -> Vec<String> {
    let (sentences, mut faults) = read_page(page);
    let functions = sources.iter().flat_map(|(file, source)| {
        let is_run = !file.contains('/') || includes(sources, file);
        read_source(&format!("tests/{file}"), source).into_iter().map(move |function| (function, is_run))
    });
    let functions: Vec<(Function, bool)> = functions.collect();
    let (mut tests, mut texts) = (BTreeSet::new(), BTreeSet::new());
    for Sentence { line, text, test } in &sentences {
        let mut fault = |message: String| faults.push(format!("SEMANTICS.md:{line}: {message}"));
        if !tests.insert(test.as_str()) {
            fault(format!("{test} is cited a second time"));
        }
        if !texts.insert(text.as_str()) {
            fault(format!("this sentence stands here a second time: {text:?}"));
        }
        let named: Vec<_> = functions.iter().filter(|(function, _)| function.name == *test).collect();
        let found: Vec<_> = named.iter().filter(|(function, _)| function.is_test).collect();
        match (found.as_slice(), named.first()) {
            ([], None) => fault(format!("there is no test {test}")),
            ([], Some((function, _))) => fault(format!("{test} ({}) is not a #[test]", function.place)),
            ([(function, is_run)], _) => {
                let place = &function.place;
                if !is_run {
                    fault(format!("no test program includes the file of {test} ({place})"));
                }
                if let Some(attribute) = &function.held_by {
                    fault(format!("{test} ({place}) does not always run: {attribute}"));
                }
                if function.doc != *text {
                    fault(format!(
                        "{test} ({place}) is documented otherwise\n  page {text:?}\n  test {:?}",
                        function.doc
                    ));
                }
            }
            ([(first, _), (second, _), ..], _) => {
                fault(format!("two tests are called {test}: {} and {}", first.place, second.place));
            }
        }
    }
    for (Function { place, name, doc, .. }, _) in functions.iter().filter(|(f, _)| f.is_test && !f.doc.is_empty()) {
        if !tests.contains(name.as_str()) {
            faults.push(format!(
                "{place}: the doc comment of {name} is not in SEMANTICS.md: add it as a sentence, or make it a plain \
                 comment (//)\n  {doc:?}"
            ));
        }
    }
    faults
}

/// Whether a file at the top of `tests/` names this one as a module.
fn includes(sources: &BTreeMap<String, String>, file: &str) -> bool {
    let attribute = format!("#[path = \"{file}\"]");
    sources.iter().any(|(from, source)| !from.contains('/') && source.lines().any(|line| line.trim() == attribute))
}

/// All Rust files below `tests/`, by their path there.
fn sources() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let (mut found, mut dirs) = (BTreeMap::new(), vec![root.clone()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("a folder of tests").map(|entry| entry.expect("an entry")) {
            let path = entry.path();
            if entry.file_type().expect("its type").is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                let name = path.strip_prefix(&root).expect("below the root").to_str().expect("a plain name").to_owned();
                found.insert(name, std::fs::read_to_string(&path).expect("a source file"));
            }
        }
    }
    found
}

#[test]
fn every_sentence_is_the_doc_of_its_test_and_every_doc_is_a_sentence() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("SEMANTICS.md")).unwrap();
    let sources = sources();
    let (sentences, _) = read_page(&page);
    assert!(sentences.len() >= 100, "the page has only {} sentences", sentences.len());
    let faults = faults(&page, &sources);
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}

// Sources are written in one line here, so that they are not taken for tests of this file.
const SOURCE: &str = "use x;\n\n/// Bytes that `write`\n/// took stay.\n#[test]\nfn bytes_stay() {\n    body();\n}\n";
const PAGE: &str = "# Title\n\ntext\n\n- Bytes that `write`\n  took stay. `bytes_stay`\n\nmore text\n";

/// The only fault of a page and one source file at the top; empty: there is none.
fn only_fault(page: &str, source: &str) -> String {
    let sources = BTreeMap::from([("a.rs".to_owned(), source.to_owned())]);
    let faults = faults(page, &sources);
    assert!(faults.len() <= 1, "{faults:#?}");
    faults.into_iter().next().unwrap_or_default()
}

#[test]
fn a_page_that_fits_has_no_fault() {
    assert_eq!(only_fault(PAGE, SOURCE), "");
    let asynchronous = SOURCE.replace("#[test]\nfn", "// why\n#[tokio::test(flavor = \"multi_thread\")]\nasync fn");
    assert_eq!(only_fault(PAGE, &asynchronous), "");
    let (sentences, _) = read_page(PAGE);
    let expected = Sentence { line: 5, text: "Bytes that `write` took stay.".into(), test: "bytes_stay".into() };
    assert_eq!(sentences, [expected]);
}

#[test]
fn a_test_that_is_missing_or_none_is_a_fault() {
    assert_eq!(only_fault(PAGE, "fn other() {}\n"), "SEMANTICS.md:5: there is no test bytes_stay");
    let no_test = only_fault(PAGE, &SOURCE.replace("#[test]", "#[inline]"));
    assert_eq!(no_test, "SEMANTICS.md:5: bytes_stay (tests/a.rs:6) is not a #[test]");
    // The attribute of another function is not that of this one.
    let of_another = BTreeMap::from([("a.rs".to_owned(), SOURCE.replace("#[test]", "#[test]\nfn other() {}"))]);
    assert!(faults(PAGE, &of_another).iter().any(|fault| fault.contains("bytes_stay (tests/a.rs:7) is not a #[test]")));
}

#[test]
fn a_test_that_may_not_run_is_a_fault() {
    for attribute in ["#[ignore]", "#[ignore = \"slow\"]", "#[cfg(windows)]", "#[cfg_attr(all(), ignore)]"] {
        let source = SOURCE.replace("#[test]", &format!("#[test]\n{attribute}"));
        let fault = only_fault(PAGE, &source);
        assert!(fault.contains("does not always run") && fault.contains(attribute), "{fault}");
    }
    let in_no_program = BTreeMap::from([("a/b.rs".to_owned(), SOURCE.to_owned())]);
    let found = faults(PAGE, &in_no_program);
    assert!(found.len() == 1 && found[0].contains("no test program includes the file of bytes_stay"), "{found:?}");
    let mut included = in_no_program;
    included.insert("a.rs".to_owned(), "#[path = \"a/b.rs\"]\nmod b;\n".to_owned());
    assert_eq!(faults(PAGE, &included), [] as [String; 0]);
}

#[test]
fn another_doc_or_none_is_a_fault() {
    let other = only_fault(PAGE, &SOURCE.replace("stay.", "go."));
    assert!(other.contains("bytes_stay (tests/a.rs:6) is documented otherwise") && other.contains("go."), "{other}");
    let none = only_fault(PAGE, &SOURCE.replace("///", "//"));
    assert!(none.contains("documented otherwise"), "{none}");
}

#[test]
fn a_doc_that_is_not_in_the_page_is_a_fault() {
    let more = format!("{SOURCE}\n/// Nobody knows.\n#[test]\nfn unknown() {{}}\n");
    let fault = only_fault(PAGE, &more);
    assert!(fault.starts_with("tests/a.rs:12: the doc comment of unknown is not in SEMANTICS.md"), "{fault}");
    // Of functions that are no tests, and of fields, nothing is asked.
    let others =
        format!("{SOURCE}\n/// Helps.\nfn helps() {{}}\n/// A thing.\nstruct Thing;\n#[test]\nfn plain() {{}}\n");
    assert_eq!(only_fault(PAGE, &others), "");
}

#[test]
fn what_is_cited_twice_is_a_fault() {
    let twice = format!("{PAGE}\n- Something else. `bytes_stay`\n");
    let sources = BTreeMap::from([("a.rs".to_owned(), SOURCE.to_owned())]);
    assert!(faults(&twice, &sources).iter().any(|fault| fault.contains("bytes_stay is cited a second time")));
    let same = format!("{PAGE}\n- Bytes that `write` took stay. `again`\n");
    let source = format!("{SOURCE}\n/// Bytes that `write` took stay.\n#[test]\nfn again() {{}}\n");
    assert!(only_fault(&same, &source).contains("this sentence stands here a second time"));
    let two = only_fault(PAGE, &format!("{SOURCE}{SOURCE}"));
    assert!(two.contains("two tests are called bytes_stay: tests/a.rs:6 and tests/a.rs:14"), "{two}");
}

#[test]
fn a_bullet_without_a_test_or_a_full_stop_is_a_fault() {
    for bullet in ["- Nothing is lost.", "- Nothing is lost `bytes_stay`", "- `bytes_stay`"] {
        let (sentences, faults) = read_page(bullet);
        assert!(sentences.is_empty() && faults.len() == 1 && faults[0].starts_with("SEMANTICS.md:1: "), "{faults:?}");
    }
}

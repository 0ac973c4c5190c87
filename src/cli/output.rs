//! What commands print: lines, tables, JSON, sizes and progress bars.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::exit::CliError;

/// Prints `text` and a newline on stdout.
///
/// # Errors
/// [`CliError::reader_gone`] when nobody reads, else what the write said.
pub fn line(text: impl AsRef<str>) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref().as_bytes())?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Prints a sentence about what goes on, on stderr; a closed stderr is ignored.
pub fn note(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "bosfs: {}", text.as_ref());
}

/// Prints `value` as JSON, indented for people unless `compact`.
///
/// # Errors
/// As [`line`].
pub fn json(value: &impl serde::Serialize, compact: bool) -> Result<(), CliError> {
    let text = if compact { serde_json::to_string(value) } else { serde_json::to_string_pretty(value) };
    line(text.map_err(|e| CliError::caused("cannot write JSON", &e))?)
}

/// A table with a head line; columns as wide as their widest cell, numbers to the right.
pub struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    /// With these column names; those that begin with `>` are aligned to the right.
    pub fn new(columns: &[&str]) -> Self {
        let right = columns.iter().map(|c| c.starts_with('>')).collect();
        Self { rows: vec![columns.iter().map(|c| c.trim_start_matches('>').to_owned()).collect()], right }
    }

    /// Adds a row; control characters are shown escaped, so that a key cannot write to the terminal.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| printable(cell)).collect());
    }

    /// Whether it has no row but its head.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The table as text, without a newline at its end.
    pub fn render(&self) -> String {
        let width = |column: usize| {
            self.rows.iter().map(|row| row.get(column).map_or(0, |cell| cell.chars().count())).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        let mut lines = Vec::with_capacity(self.rows.len());
        for row in &self.rows {
            let mut text = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths.get(column).copied().unwrap_or(0);
                let pad = " ".repeat(width - cell.chars().count().min(width));
                if column > 0 {
                    text.push_str("  ");
                }
                match self.right.get(column) {
                    Some(true) => text.extend([pad.as_str(), cell]),
                    _ => text.extend([cell.as_str(), &pad]),
                }
            }
            lines.push(text.trim_end().to_owned());
        }
        lines.join("\n")
    }
}

/// `text` with control characters escaped.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A number of bytes for people: `0 B`, `1.5 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A duration for people: `45s`, `3m05s`, `2h10m`, `3d4h`.
pub fn duration(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Time left for `bytes` at `bytes_per_s`; `-` when nothing moves.
pub fn eta(bytes: u64, bytes_per_s: u64) -> String {
    match (bytes, bytes_per_s) {
        (0, _) => "0s".to_owned(),
        (_, 0) => "-".to_owned(),
        (bytes, rate) => duration(Duration::from_secs(bytes.div_ceil(rate))),
    }
}

/// A bar of bytes with speed and ETA on stderr; silent when stderr is no terminal.
pub fn byte_bar(total: u64) -> ProgressBar {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr_with_hz(5) } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    let template = "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  ETA {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// Asks a yes-or-no question on the terminal; no terminal is no.
///
/// # Errors
/// The terminal cannot be read.
pub fn confirmed(question: &str) -> Result<bool, CliError> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    write!(io::stderr(), "{question} [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_escape() {
        let mut table = Table::new(&["KEY", ">SIZE"]);
        table.row(vec!["目录/a".into(), "1 B".into()]);
        table.row(vec!["b\u{1b}[2J".into(), "1000 B".into()]);
        assert_eq!(table.render(), "KEY           SIZE\n目录/a           1 B\nb\\u{1b}[2J  1000 B");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(duration(Duration::from_secs(59)), "59s");
        assert_eq!(duration(Duration::from_secs(185)), "3m05s");
        assert_eq!(duration(Duration::from_secs(7800)), "2h10m");
        assert_eq!(eta(100, 0), "-");
        assert_eq!(eta(100, 30), "4s");
    }
}

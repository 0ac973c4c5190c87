//! Sizes, durations and rates as people write them.

use std::time::Duration;

/// Reads a number of bytes: `1048576`, `8MiB`, `8M`, `10 MB`, `1.5g`. `K`, `M`, `G`, `T` and `KiB`.. count by 1024, `KB`,
/// `MB`, `GB`, `TB` by 1000. A plain number is bytes.
///
/// # Errors
/// A sentence that names the text and shows the form.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size; write bytes or a number with a unit, for example 8MiB, 10MB or 1G");
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(|| format!("{text:?} is more bytes than 64 bits can count"));
    }
    let fraction: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = fraction * factor as f64;
    if factor == 1 || !bytes.is_finite() || bytes >= u64::MAX as f64 {
        return Err(wrong());
    }
    Ok(bytes as u64)
}

/// Reads a rate in bytes per second: a size, optionally followed by `/s`.
///
/// # Errors
/// As [`parse_size`]; also 0, which would send nothing for ever.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let size = trimmed.strip_suffix("/s").or_else(|| trimmed.strip_suffix("ps")).unwrap_or(trimmed);
    match parse_size(size)? {
        0 => Err("a rate of 0 would never send anything; leave the option away for no limit".to_owned()),
        rate => Ok(rate),
    }
}

/// Reads a duration: `500ms`, `1s`, `10m`, `2h`, `1d`, `1h30m`. A plain number is seconds.
///
/// # Errors
/// A sentence that names the text and shows the form.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("{text:?} is no duration; write seconds or a number with a unit, for example 500ms, 1s or 10m");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    if let Ok(seconds) = rest.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| wrong());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let split = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(split);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds_per_unit = match unit.trim() {
            "ms" => 0.001,
            "s" | "sec" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let piece = Duration::try_from_secs_f64(number * seconds_per_unit).map_err(|_| wrong())?;
        total = total.checked_add(piece).ok_or_else(wrong)?;
        rest = tail.trim_start();
    }
    Ok(total)
}

/// Reads a file mode mask in octal, `022` or `0022`.
///
/// # Errors
/// A sentence that names the text.
pub fn parse_umask(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text.trim(), 8) {
        Ok(mask) if mask <= 0o777 => Ok(mask),
        _ => Err(format!("{text:?} is no umask; write three octal digits, for example 022")),
    }
}

/// The size of a part as BOS and bosfs can use it: a multiple of 1 MiB from 5 MiB to 5 GiB (BOS docs, UploadPart).
///
/// # Errors
/// What is wrong with the size.
pub fn parse_part_size(text: &str) -> Result<u64, String> {
    const MIB: u64 = 1 << 20;
    let bytes = parse_size(text)?;
    // `MB` people mean the nearest MiB: 10 MB is 10,000,000 bytes, which BOS refuses as no multiple of 1 MiB.
    let bytes = if text.to_ascii_lowercase().ends_with("mb") { (bytes / 1_000_000) * MIB } else { bytes };
    if bytes % MIB != 0 || !(5 * MIB..=5 * 1024 * MIB).contains(&bytes) {
        return Err(format!("{text:?} is no part size; BOS wants a multiple of 1MiB, at least 5MiB and at most 5GiB"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("8MiB", 8 << 20),
            ("8m", 8 << 20),
            ("10 MB", 10_000_000),
            ("1.5G", 3 << 29),
            (" 2TiB ", 2 << 40),
            ("7b", 7),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text:?}");
        }
        for bad in ["", "x", "-1", "1.5", "8 Mib b", "MiB", "99999999999T", "1..5M", "1e3"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn rates_are_sizes_per_second_and_never_zero() {
        assert_eq!(parse_rate("1MiB/s"), Ok(1 << 20));
        assert_eq!(parse_rate("500KB"), Ok(500_000));
        assert!(parse_rate("0").is_err());
    }

    #[test]
    fn durations_as_people_write_them() {
        for (text, ms) in
            [("10m", 600_000), ("1s", 1000), ("0", 0), ("2.5", 2500), ("500ms", 500), ("1h30m", 5_400_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text:?}");
        }
        for bad in ["", "m", "10x", "-1", "1m x", "inf", "1e400"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn part_sizes_that_bos_would_refuse_are_refused() {
        assert_eq!(parse_part_size("8MiB"), Ok(8 << 20));
        assert_eq!(parse_part_size("10MB"), Ok(10 << 20));
        for bad in ["4MiB", "5242881", "6GiB", "0"] {
            assert!(parse_part_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn umasks_are_octal() {
        assert_eq!(parse_umask("022"), Ok(0o22));
        assert_eq!(parse_umask("0077"), Ok(0o77));
        assert!(parse_umask("8").is_err());
        assert!(parse_umask("1777").is_err());
    }
}
